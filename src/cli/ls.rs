//! `milepost ls`: the steps of a run, or one checkpoint, from their small records only.

use super::{context::Context, size};
use milepost::{
    Checkpoint, Error, ErrorKind, Found, Result, StepEntry, StepState,
    formats::record::tagged::{self, Tagged},
};
use serde_json::{Map, Value, json};
use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// List the steps of a run: state, size, leaves, age, metrics.
///
/// One listing, then one small request a step. A damaged step is listed with what is wrong with it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a run; a checkpoint shows as one line.
    run: String,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let entries = match ctx.find(&args.run)? {
        Found::Run(run) => run.steps_blocking()?,
        Found::Checkpoint(checkpoint) => vec![StepEntry {
            step: checkpoint.record().step.unwrap_or(0),
            place: checkpoint.place().clone(),
            state: StepState::Committed(checkpoint),
        }],
        Found::Foreign(place) => {
            return Err(Error::new(ErrorKind::Invalid, "the place is Zarr, but no run of ours")
                .with("run", place)
                .hint("`milepost tree` shows what it holds"));
        }
    };
    show(&entries, ctx)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints steps as `ls` does.
pub(crate) fn show(entries: &[StepEntry], ctx: &Context) -> Result<()> {
    if ctx.json() {
        return ctx.print_json(&entries.iter().map(to_json).collect());
    }
    if entries.is_empty() {
        ctx.note(format_args!("the run has no step yet"));
        return Ok(());
    }
    ctx.line(format_args!(
        "{:>10}  {:9}  {:>9}  {:>7}  {:>5}  metrics",
        "step", "state", "size", "leaves", "age"
    ))?;
    for entry in entries {
        match &entry.state {
            StepState::Committed(checkpoint) => line(checkpoint, ctx)?,
            StepState::Damaged(why) => {
                let step = entry.step;
                ctx.line(format_args!("{step:>10}  {:9}  {why}", "damaged"))?;
            }
        }
    }
    Ok(())
}

fn line(checkpoint: &Checkpoint, ctx: &Context) -> Result<()> {
    let record = checkpoint.record();
    let step = record.step.map_or_else(|| "-".to_owned(), |step| step.to_string());
    let (stored, leaves) = totals(checkpoint);
    let age = size::age(since(record.committed_ms));
    let metrics: Vec<_> =
        record.metrics.iter().map(|(name, v)| format!("{name}={}", metric(v))).collect();
    let text = format!(
        "{step:>10}  {:9}  {:>9}  {leaves:>7}  {age:>5}  {}",
        "committed",
        size::show(stored),
        metrics.join(" ")
    );
    ctx.line(format_args!("{}", text.trim_end()))
}

fn totals(checkpoint: &Checkpoint) -> (u64, u64) {
    let items = &checkpoint.record().items;
    (items.iter().map(|i| i.stored_bytes).sum(), items.iter().map(|i| i.leaves).sum())
}

fn since(unix_ms: u64) -> Duration {
    let then = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    SystemTime::now().duration_since(then).unwrap_or_default()
}

/// Shows a metric; floats that JSON lacks are stored as tagged objects.
fn metric(value: &Value) -> String {
    match value {
        Value::Object(members) => match tagged::read(members) {
            Tagged::Float(x) => x.to_string(),
            Tagged::Object(_) => value.to_string(),
        },
        // Six digits are enough here; --json has all.
        Value::Number(n) => match n.as_f64().map(|x| format!("{x:.5e}").parse::<f64>()) {
            Some(Ok(x)) => x.to_string(),
            _ => n.to_string(),
        },
        _ => value.to_string(),
    }
}

fn to_json(entry: &StepEntry) -> Value {
    let place = entry.place.to_string();
    let checkpoint = match &entry.state {
        StepState::Damaged(why) => {
            return json!({"step": entry.step, "state": "damaged", "why": why, "place": place});
        }
        StepState::Committed(checkpoint) => checkpoint,
    };
    let record = checkpoint.record();
    let (stored_bytes, leaves) = totals(checkpoint);
    let items: Map<String, Value> = record
        .items
        .iter()
        .map(|i| {
            let of = json!({"kind": i.kind.as_str(), "leaves": i.leaves, "data_bytes": i.data_bytes,
                "stored_bytes": i.stored_bytes, "objects": i.objects});
            (i.name.clone(), of)
        })
        .collect();
    json!({
        "step": record.step,
        "state": "committed",
        "place": place,
        "stored_bytes": stored_bytes,
        "leaves": leaves,
        "created_ms": record.created_ms,
        "committed_ms": record.committed_ms,
        "metrics": record.metrics,
        "metadata": record.metadata,
        "items": items,
        "notes": record.notes,
    })
}
