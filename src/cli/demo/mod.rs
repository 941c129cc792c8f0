//! `milepost demo`: a small real train state saved, shown and partly restored.

mod state;
mod train;

use super::{cat::read, context::Context, ls, size, tree, values};
use futures::executor::block_on;
use milepost::{Checkpoint, CheckpointWriter, Error, ErrorKind, Found, Place, Result, Run, Saved};
use serde_json::json;
use std::{process::ExitCode, time::Duration};
use train::State;

const ROUNDS: u64 = 3;
const STEPS: u64 = 100;
const PARAMETER: &str = "params/dense_1/kernel";
const SLICE: &str = "10:13,:4";

/// Train a tiny network, save it as steps of a run, show it, restore a part, and say how others open it.
///
/// A second demo into the same directory resumes the training from the newest step.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run to make or to resume: a directory or URL.
    dir: String,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let place = ctx.place(&args.dir)?;
    let mut state = begin(&args.dir, ctx)?;
    let mut history = Vec::new();
    for _ in 0..ROUNDS {
        let loss = (0..STEPS).map(|_| state.train()).last().unwrap_or_default();
        let saved = save(&state, loss, &place, ctx)?;
        if !ctx.json() {
            let time: Duration = saved.stages.iter().map(|stage| stage.time).sum();
            let (bytes, ms) = (size::show(saved.stored_bytes), time.as_millis());
            ctx.line(format_args!(
                "saved step {}: loss {loss:.5}, {bytes} in {ms} ms",
                state.step
            ))?;
        }
        history.push((saved, loss));
    }
    let checkpoint = block_on(Run::new(ctx.engine(), &place).newest())?;
    // One parameter and a slice of it: each reads only its own chunks, and they are the trained numbers.
    let leaf = checkpoint.leaf_blocking("state", PARAMETER)?;
    let same = leaf.read_blocking()?.to_vec::<f32>()? == state.params[1].kernel;
    let selection = leaf.select(SLICE)?;
    if ctx.json() {
        let slice = read(&leaf, &selection, None)?.to_vec::<f32>()?;
        let saved: Vec<_> = history
            .iter()
            .map(|(s, loss)| json!({"step": s.record.step, "loss": loss, "stored_bytes": s.stored_bytes}))
            .collect();
        ctx.print_json(&json!({"run": place.to_string(), "saved": saved, "restored": {
            "key_path": PARAMETER, "same": same, "slice": SLICE, "values": slice}}))?;
    } else {
        ctx.line(format_args!("\n$ milepost ls {}", args.dir))?;
        ls::show(&Run::new(ctx.engine(), &place).steps_blocking()?, None, ctx)?;
        ctx.line(format_args!("\n$ milepost tree {}", args.dir))?;
        tree::show(&checkpoint, None, usize::MAX, ctx)?;
        ctx.line(format_args!("\n$ milepost cat {} {PARAMETER} --slice '{SLICE}'", args.dir))?;
        values::show(&leaf, &selection, None, ctx)?;
        let word = if same { "equals" } else { "DIFFERS FROM" };
        ctx.line(format_args!("\nThe whole of {PARAMETER}, restored, {word} the one in memory."))?;
        how_to_open(&checkpoint, ctx)?;
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a training, or resumes that of the newest step.
fn begin(dir: &str, ctx: &Context) -> Result<State> {
    let occupied = |what: &str| {
        let message = format!("{what} is at the place of the demo's run");
        Err(Error::new(ErrorKind::AlreadyExists, message)
            .with("place", dir)
            .hint("name a directory that is new, or that of an earlier demo"))
    };
    let run = match ctx.find(dir) {
        Ok(Found::Run(run)) => run,
        Ok(Found::Checkpoint(_)) => return occupied("a checkpoint"),
        Ok(Found::Foreign(_)) => return occupied("other Zarr"),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(State::new(0)),
        Err(e) => return Err(e),
    };
    let newest = match block_on(run.newest()) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(State::new(0)),
        newest => newest?,
    };
    let state = state::restore(&newest).map_err(|e| {
        let message = "the newest step is not one of a demo";
        Error::new(ErrorKind::Invalid, message)
            .with("run", dir)
            .because(e)
            .hint("name another directory")
    })?;
    ctx.note(format_args!("resumed from step {}", state.step));
    Ok(state)
}

fn save(state: &State, loss: f32, run: &Place, ctx: &Context) -> Result<Saved> {
    let bar = ctx.progress("save");
    CheckpointWriter::step(ctx.engine(), run, state.step)
        .item("state", state::tree(state)?)
        .item("config", state::config())
        .metric("loss", f64::from(loss))
        .progress(bar.progress())
        .save_blocking()
}

fn how_to_open(checkpoint: &Checkpoint, ctx: &Context) -> Result<()> {
    let Some(path) = checkpoint.place().join("state").local_path() else { return Ok(()) };
    let path = path.display().to_string();
    let leaf = format!("file://{path}/serving/dense_1/kernel/");
    ctx.line(format_args!(
        "
It is plain Zarr v3. In Python (pip install zarr tensorstore ml_dtypes):

import zarr                                   # every leaf but the bfloat16 one
state = zarr.open_group({path:?}, mode=\"r\")
print(state[{PARAMETER:?}][10:13, :4], state[\"step\"][()])

import tensorstore as ts                      # every leaf, bfloat16 too
leaf = ts.open({{\"driver\": \"zarr3\", \"kvstore\": {leaf:?}}}).result()
print(leaf[10:13, :4].read().result())

Next: milepost verify {0}; milepost cat {0} serving/dense_1/kernel --out kernel.npy",
        checkpoint.place()
    ))
}
