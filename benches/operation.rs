//! One operation of the engine in a process of its own, as `benches/python/operation.py` does it in Python.
//!
//! ```text
//! operation save STATE CHECKPOINT     reads STATE, then saves it, to the end of `syncfs`
//! operation restore CHECKPOINT        the whole state into fresh memory
//! ```
//!
//! Starting the engine and reading STATE are outside the clock. Prints one JSON object.

use futures::executor::block_on;
use milepost::{
    ArrayData, Checkpoint, CheckpointWriter, Engine, Item, Leaf, Result as MilepostResult, Select,
    Tree,
};
use std::{
    error::Error,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

/// The item that `milepost.save` makes of a tree.
const ITEM: &str = "state";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let engine = Engine::shared()?;
    let took = match arguments[..] {
        ["save", state, checkpoint] => save(&engine, state, checkpoint)?,
        ["restore", checkpoint] => timed(|| restore(&engine, checkpoint))?.0,
        _ => return Err("usage: operation save STATE CHECKPOINT | restore CHECKPOINT".into()),
    };
    let seconds = took.as_secs_f64();
    Ok(writeln!(std::io::stdout(), "{}", serde_json::json!({"seconds": seconds}))?)
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(Duration, T), E> {
    let begun = Instant::now();
    let value = work()?;
    Ok((begun.elapsed(), value))
}

fn restore(engine: &Arc<Engine>, url: &str) -> MilepostResult<Tree<ArrayData>> {
    let checkpoint = Checkpoint::open_blocking(engine, &engine.place(url, &[])?)?;
    block_on(checkpoint.item_index_blocking(ITEM)?.restore(&Select::all()))
}

fn save(engine: &Arc<Engine>, from: &str, to: &str) -> Result<Duration, Box<dyn Error>> {
    let state = restore(engine, from)?;
    let leaves =
        state.try_map(|_, data| Leaf::from_bytes(data.data_type, data.shape, data.bytes.into()))?;
    let place = engine.place(to, &[])?;
    let parent = place.parent().local_path().ok_or("only local places are synced")?;
    let directory = std::fs::File::open(&parent)?;
    rustix::fs::syncfs(&directory)?;
    let (took, ()) = timed(|| -> Result<(), Box<dyn Error>> {
        let writer = CheckpointWriter::standalone(engine, &place);
        writer.item(ITEM, Item::Tree(leaves)).save_blocking()?;
        Ok(rustix::fs::syncfs(&directory)?)
    })?;
    Ok(took)
}
