//! `milepost participate`: one participant of a step that several processes save together, to try a place out.

mod state;

use super::{context::Context, size};
use futures::executor::block_on;
use milepost::{
    CastRule, Checkpoint, DataType, Error, ErrorKind, FaultStore, ParticipantWriter, Place,
    Rendezvous, Result, SaveOptions, StoreRendezvous, Verb, formats::zarr3::Compressor,
};
use serde_json::json;
use state::State;
use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Save a generated step together with other processes, to try a shared directory or bucket before a run trusts it.
///
/// Start it COUNT times by your own launcher, each with its own INDEX (`--index $SLURM_PROCID`, say) and all else the
/// same. They meet through the place alone. Then each reads back what its neighbour has written, and compares.
///
/// Exit code 1 where the step was not saved, by the deadline at the latest, or what is read back differs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of the run, which is made where it is not there.
    run: String,
    /// The step to save.
    #[arg(long)]
    step: u64,
    /// Which participant this is, from 0.
    #[arg(long)]
    index: usize,
    /// How many participants there are.
    #[arg(long)]
    count: usize,
    /// A name that no job at this run ever had, the same for all; without it, they meet in the lobby.
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// The shape of every leaf.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1024,1024")]
    shape: Vec<u64>,
    /// In how many parts each axis is divided, from the first [default: the first axis, by all].
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    mesh: Vec<u64>,
    /// A leaf of each of these data types.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "float32,bfloat16,int8",
        value_parser = data_type)]
    dtype: Vec<DataType>,
    /// Compressor: none, zstd[:level], gzip[:level], blosc[:cname[:level[:shuffle]]].
    #[arg(long, default_value = "none")]
    codec: Compressor,
    /// Replace a step that is there.
    #[arg(long)]
    overwrite: bool,
    /// How long the others are waited for at each meeting: 90s, 15m.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = size::duration)]
    deadline: Duration,
}

fn data_type(name: &str) -> Result<DataType, String> {
    DataType::from_name(name).ok_or_else(|| format!("`{name}` is no data type of Zarr v3"))
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let whole = [args.count as u64];
    let mesh = if args.mesh.is_empty() { &whole[..] } else { &args.mesh };
    let state = State { step: args.step, shape: &args.shape, mesh, data_types: &args.dtype };
    if args.index >= args.count {
        return Err(Error::new(ErrorKind::Invalid, "there is no such participant")
            .with("index", args.index)
            .with("count", args.count)
            .hint("the indices go from 0 to count - 1"));
    }
    state.check(args.count)?;
    let item = state.item(args.index)?;
    let plain = ctx.place(&args.run)?;
    let store = FaultStore::new(Arc::clone(plain.store()));
    let commits = watch_commits(&store);
    let run = Place::new(Arc::clone(&store) as _, plain.prefix());
    let (engine, member) = (ctx.engine(), (args.index, args.count));
    let bar = ctx.progress("saving");
    let joined = match &args.session {
        Some(session) => block_on(StoreRendezvous::with_session(engine, &run, session, member)),
        None => StoreRendezvous::join_blocking(engine, &run, member, args.deadline),
    };
    let rendezvous: Arc<dyn Rendezvous> = Arc::new(joined?);
    let options =
        SaveOptions { compressor: args.codec, overwrite: args.overwrite, ..SaveOptions::default() };
    store.reset_counts();
    let saved = ParticipantWriter::step(engine, &run, args.step, rendezvous)
        .item("state", item)
        .options(options)
        .deadline(args.deadline)
        .progress(bar.progress())
        .save_blocking()?;
    drop(bar);
    let writes = count(&store, &[Verb::Put, Verb::PutNew, Verb::WriteAt]);
    let others = count(&store, &[Verb::Get, Verb::Read, Verb::Head, Verb::List, Verb::ListAll]);
    let committed = commits.load(Ordering::Relaxed);
    let read = read_back(&state, (args.index + 1) % args.count, (ctx, &saved.place))?;
    let (index, all, step) = (args.index, args.count, args.step);
    if ctx.json() {
        let place = plain.parent().join(plain.name()).to_string();
        ctx.print_json(&json!({
            "run": place, "step": step, "participant": index, "count": all,
            "committed_here": committed, "written_bytes": writes.1, "writes": writes.0,
            "reads": others.0, "read_back_bytes": read, "stored_bytes": saved.stored_bytes,
        }))?;
    } else {
        let who = if committed { "; it committed" } else { "" };
        ctx.line(format_args!(
            "participant {index} of {all}: step {step}, {} in {}, {}{who}; {} of its neighbour read back, the same",
            size::show(writes.1),
            size::count(writes.0, "write", "writes"),
            size::count(others.0, "read or poll", "reads and polls"),
            size::show(read),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Notes when the commit is asked for: a rename of the attempt, or the creation of the step's record.
fn watch_commits(store: &FaultStore) -> Arc<AtomicBool> {
    let commits = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&commits);
    store.set_rule(move |operation| {
        let record = operation.verb == Verb::PutNew
            && operation.key.ends_with("/zarr.json")
            && !operation.key.contains("milepost/");
        if record || operation.verb == Verb::Rename {
            seen.store(true, Ordering::Relaxed);
        }
        None
    });
    commits
}

/// Returns how many requests there were, and of how many bytes.
fn count(store: &FaultStore, verbs: &[Verb]) -> (usize, u64) {
    let of = verbs.iter().map(|verb| store.count(*verb));
    let sum = of.fold((0, 0), |(n, bytes), count| (n + count.requests, bytes + count.bytes));
    (usize::try_from(sum.0).unwrap_or(usize::MAX), sum.1)
}

/// Reads what another participant held, and compares it.
fn read_back(state: &State<'_>, neighbour: usize, (ctx, place): (&Context, &Place)) -> Result<u64> {
    let checkpoint = Checkpoint::open_blocking(ctx.engine(), place)?;
    let held = state.held(neighbour)?;
    let mut bytes = 0;
    for data_type in state.data_types {
        if held.is_empty() {
            continue;
        }
        let leaf = checkpoint.leaf_blocking("state", &data_type.to_string())?;
        let read = block_on(leaf.read_as(&held, None, CastRule::SameKind))?;
        if read.bytes[..] != state.bytes(&held, *data_type)?[..] {
            return Err(Error::new(ErrorKind::Corrupt, "what another participant wrote differs")
                .with("leaf", data_type)
                .with("participant", neighbour)
                .with("box", &held)
                .hint("the place does not show what was written; `milepost doctor` shows what it can do"));
        }
        bytes += read.bytes.len() as u64;
    }
    Ok(bytes)
}
