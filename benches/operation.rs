//! One operation of the engine in a process of its own, beside those of `benches/peers` and `benches/python`.
//!
//! ```text
//! operation save STATE CHECKPOINT     reads STATE, then saves it, to the end of `syncfs`
//! operation restore CHECKPOINT        the whole state into fresh memory
//! operation one CHECKPOINT LEAF       a single parameter, open included
//! ```
//!
//! Starting the engine and reading STATE are outside the clock. Prints one JSON object: seconds, and the peak of resident
//! memory from the start of the operation on, the state of a save included.

use futures::executor::block_on;
use milepost::{ArrayData, Checkpoint, CheckpointWriter, Engine, Item, Leaf, Select, Tree};
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
    let took =
        match arguments[..] {
            ["save", state, checkpoint] => save(&engine, state, checkpoint)?,
            ["restore", checkpoint] => timed(|| restore(&engine, checkpoint))?.0,
            ["one", checkpoint, leaf] => timed(|| one(&engine, checkpoint, leaf))?.0,
            _ => return Err(
                "usage: operation save STATE CHECKPOINT | restore CHECKPOINT | one CHECKPOINT LEAF"
                    .into(),
            ),
        };
    let said = serde_json::json!({"seconds": took.as_secs_f64(), "peak_bytes": peak_bytes()?});
    Ok(writeln!(std::io::stdout(), "{said}")?)
}

fn timed<T, E: From<std::io::Error>>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<(Duration, T), E> {
    std::fs::write("/proc/self/clear_refs", "5")?; // the peak starts here
    let begun = Instant::now();
    let value = work()?;
    Ok((begun.elapsed(), value))
}

fn peak_bytes() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    Ok(peak.unwrap_or(0) * 1024)
}

fn one(engine: &Arc<Engine>, url: &str, leaf: &str) -> Result<ArrayData, Box<dyn Error>> {
    let checkpoint = Checkpoint::open_blocking(engine, &engine.place(url, &[])?)?;
    Ok(checkpoint.leaf_blocking(ITEM, leaf)?.read_blocking()?)
}

fn restore(engine: &Arc<Engine>, url: &str) -> Result<Tree<ArrayData>, Box<dyn Error>> {
    let checkpoint = Checkpoint::open_blocking(engine, &engine.place(url, &[])?)?;
    Ok(block_on(checkpoint.item_index_blocking(ITEM)?.restore(&Select::all()))?)
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
