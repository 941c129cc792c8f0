//! Several processes save one step of a sharded state together; one of them is killed, and nothing is lost.
//!
//! `cargo run --release --example many_writers -- --processes 4 RUN`
//!
//! 1. All processes save step 1, each its own rows of every matrix.
//! 2. They save step 2, and one of them is killed when it has begun to write: an error everywhere, no step.
//! 3. They save step 2 again.
//! 4. This process alone restores step 2 and compares every element.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it does")]

use clap::Parser;
use milepost::{
    Checkpoint, DataType, Engine, Error, ErrorKind, FaultStore, Item, Leaf, ParticipantWriter,
    Place, Rendezvous, Result, Run, StoreRendezvous, Subset, Tree, Verb,
};
use std::{
    path::PathBuf,
    process::{Child, Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Rows and columns of each matrix, and how many there are.
const ROWS: u64 = 4096;
const COLUMNS: u64 = 1024;
const LAYERS: u64 = 4;
const DEADLINE: Duration = Duration::from_mins(1);

#[derive(Parser)]
struct Arguments {
    /// How many processes save together.
    #[arg(long, default_value_t = 4)]
    processes: usize,
    /// Which of them this is; without it, the one that starts the others.
    #[arg(long, hide = true)]
    index: Option<usize>,
    #[arg(long, hide = true, default_value_t = 1)]
    step: u64,
    /// Dies when it has begun to write.
    #[arg(long, hide = true)]
    dies: bool,
    /// Where the run is, or is to be.
    run: String,
}

fn value(step: u64, layer: u64, element: u64) -> u32 {
    let mixed = (step << 50 ^ layer << 40 ^ element).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    u32::try_from(mixed >> 32).unwrap_or_default()
}

/// The rows that one participant holds of every layer; the step counter is everybody's.
fn state(step: u64, (index, count): (usize, usize)) -> Result<Item> {
    let rows = ROWS.div_ceil(count as u64);
    let start = (index as u64 * rows).min(ROWS);
    let own = Subset::new(vec![start, 0], vec![rows.min(ROWS - start), COLUMNS])?;
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let elements = start * COLUMNS..start * COLUMNS + own.elements();
        let bytes: Vec<u8> =
            elements.flat_map(|element| value(step, layer, element).to_le_bytes()).collect();
        let boxes = vec![(own.clone(), bytes.into())];
        let leaf = Leaf::from_held_boxes(DataType::UInt32, vec![ROWS, COLUMNS], boxes)?;
        layers.push((format!("layer_{layer}"), Tree::leaf(leaf)));
    }
    layers.push(("step".to_owned(), Tree::leaf(Leaf::int(step.into())?)));
    Ok(Item::Tree(Tree::dict(layers)))
}

/// What each process does.
fn participate(arguments: &Arguments, index: usize) -> Result<()> {
    let engine = Engine::shared()?;
    let plain = engine.place(&arguments.run, &[])?;
    let store = FaultStore::new(Arc::clone(plain.store()));
    let (dies, committer) = (arguments.dies, Arc::new(AtomicBool::new(false)));
    let commits = Arc::clone(&committer);
    store.set_rule(move |operation| {
        if dies && operation.verb.changes() && operation.key.contains("/layer_0/c") {
            println!("  participant {index}: killed");
            std::process::abort();
        }
        // The last thing that a commit does: a rename, or the creation of the record.
        let record = operation.verb == Verb::PutNew
            && operation.key.ends_with("/zarr.json")
            && !operation.key.contains("milepost");
        if record || operation.verb == Verb::Rename {
            commits.store(true, Ordering::Relaxed);
        }
        None
    });
    let run = Place::new(Arc::clone(&store) as _, plain.prefix());
    let member = (index, arguments.processes);
    let rendezvous = StoreRendezvous::join_blocking(&engine, &run, member, DEADLINE)?;
    let rendezvous: Arc<dyn Rendezvous> = Arc::new(rendezvous);
    let writer = ParticipantWriter::step(&engine, &run, arguments.step, rendezvous)
        .item("state", state(arguments.step, member)?)
        .deadline(DEADLINE);
    let before = store.counts();
    let saved = writer.save_blocking();
    let count = |verbs: &[Verb]| {
        let now = store.counts();
        let of = |verb: &Verb| {
            let (now, before) = (now.get(verb), before.get(verb));
            let now = now.copied().unwrap_or_default();
            let before = before.copied().unwrap_or_default();
            (now.requests - before.requests, now.bytes - before.bytes)
        };
        verbs.iter().map(of).fold((0, 0), |(r, b), (requests, bytes)| (r + requests, b + bytes))
    };
    let (puts, bytes) = count(&[Verb::Put, Verb::PutNew, Verb::WriteAt]);
    let (reads, _) = count(&[Verb::Get, Verb::Read, Verb::Head, Verb::List, Verb::ListAll]);
    match saved {
        Ok(_) => {
            let note = if committer.load(Ordering::Relaxed) { "; it committed" } else { "" };
            println!(
                "  participant {index}: {bytes} bytes in {puts} writes; {reads} reads and polls{note}"
            );
        }
        Err(error) => println!("  participant {index}: {error}"),
    }
    Ok(())
}

/// Starts all processes and waits for them.
fn together(arguments: &Arguments, step: u64, victim: Option<usize>) -> Result<()> {
    let failed = |e| Error::new(ErrorKind::Unavailable, "a process cannot be started").because(e);
    start_all(arguments, step, victim).map_err(failed)
}

fn start_all(arguments: &Arguments, step: u64, victim: Option<usize>) -> std::io::Result<()> {
    let program: PathBuf = std::env::current_exe()?;
    let start = |index: usize| -> std::io::Result<Child> {
        let mut command = Command::new(&program);
        command.args(["--processes", &arguments.processes.to_string()]);
        command.args(["--index", &index.to_string(), "--step", &step.to_string()]);
        if victim == Some(index) {
            command.arg("--dies");
        }
        command.arg(&arguments.run).spawn()
    };
    let children: Vec<Child> = (0..arguments.processes).map(start).collect::<Result<_, _>>()?;
    for mut child in children {
        child.wait()?;
    }
    Ok(())
}

fn open(arguments: &Arguments, step: u64) -> Result<Checkpoint> {
    let engine = Engine::shared()?;
    let run = Run::new(&engine, &engine.place(&arguments.run, &[])?);
    futures::executor::block_on(run.step(step))
}

fn compare(arguments: &Arguments, step: u64) -> Result<()> {
    let checkpoint = open(arguments, step)?;
    let mut different = 0_u64;
    for layer in 0..LAYERS {
        let leaf = checkpoint.leaf_blocking("state", &format!("layer_{layer}"))?;
        let values = leaf.read_blocking()?.to_vec::<u32>()?;
        let expected = (0..ROWS * COLUMNS).map(|element| value(step, layer, element));
        different += values.into_iter().zip(expected).filter(|(a, b)| a != b).count() as u64;
    }
    let elements = LAYERS * ROWS * COLUMNS;
    println!("restored by one process: {elements} elements, {different} differ");
    if different == 0 { Ok(()) } else { Err(Error::new(ErrorKind::Corrupt, "values differ")) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.index {
        Some(index) => participate(&arguments, index),
        None => show(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn show(arguments: &Arguments) -> Result<()> {
    let count = arguments.processes;
    println!("{count} processes save step 1");
    together(arguments, 1, None)?;
    compare(arguments, 1)?;
    println!("{count} processes save step 2, and one is killed");
    together(arguments, 2, Some(count - 1))?;
    match open(arguments, 2) {
        Err(error) if error.kind() == ErrorKind::NotFound => println!("there is no step 2"),
        Err(error) => return Err(error),
        Ok(_) => return Err(Error::new(ErrorKind::Internal, "step 2 was committed")),
    }
    println!("{count} processes save step 2 again");
    together(arguments, 2, None)?;
    compare(arguments, 2)
}
