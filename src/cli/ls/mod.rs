//! `milepost ls`: the steps of a run, or one checkpoint, from their small records only.

mod json;
mod marks;

pub(super) use json::to_json;
pub(super) use marks::Marks;

use super::{context::Context, size};
use milepost::{
    Checkpoint, Error, ErrorKind, Found, Result, StepEntry, StepState, WriterInfo,
    formats::record::tagged::{self, Tagged},
};
use serde_json::Value;
use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// List the steps of a run: state, size, leaves, age, marks, metrics.
///
/// One listing, one small request a step, and one for each mark. Marks are `pinned` (never deleted), `leased` (being
/// read), `deleting`, and `opaque` (it has items that are files). A damaged step is listed with what is wrong with it.
/// Below the steps are the saves in the making, and those whose writer is dead, which `milepost sweep` frees.
/// Nothing is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a run; a checkpoint shows as one line.
    run: String,
    /// Look for saves in the making on object stores, too: up to two requests a step, one after the other.
    #[arg(long)]
    writers: bool,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let (entries, marks) = match ctx.find(&args.run)? {
        Found::Run(run) => {
            // First the writers: a save that ends meanwhile is seen twice rather than never.
            let marks = Marks::of(&run, args.writers)?;
            (run.steps_blocking()?, Some(marks))
        }
        Found::Checkpoint(checkpoint) => (vec![entry(*checkpoint)], None),
        Found::Foreign(place) => {
            return Err(Error::new(ErrorKind::Invalid, "the place is Zarr, but no run of ours")
                .with("run", place)
                .hint("`milepost tree` shows what it holds"));
        }
    };
    show(&entries, marks.as_ref(), ctx)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes one checkpoint the line of a list.
pub(super) fn entry(checkpoint: Checkpoint) -> StepEntry {
    StepEntry {
        step: checkpoint.record().step.unwrap_or(0),
        place: checkpoint.place().clone(),
        state: StepState::Committed(Box::new(checkpoint)),
    }
}

/// Prints steps as `ls` does.
pub(super) fn show(entries: &[StepEntry], marks: Option<&Marks>, ctx: &Context) -> Result<()> {
    let writers = marks.map_or(&[][..], Marks::writers);
    if ctx.json() {
        let steps = entries.iter().map(|entry| to_json(entry, marks));
        return ctx.print_json(&steps.chain(writers.iter().map(json::saving)).collect());
    }
    if entries.is_empty() && writers.is_empty() {
        ctx.note(format_args!("the run has no step yet"));
        return Ok(());
    }
    let of = |entry: &StepEntry| marks::words(entry, marks);
    let width = entries.iter().map(|entry| of(entry).len()).max().unwrap_or(0).max("marks".len());
    ctx.line(format_args!(
        "{:>10}  {:9}  {:>9}  {:>7}  {:>5}  {:width$}  metrics",
        "step", "state", "size", "leaves", "age", "marks"
    ))?;
    for entry in entries {
        match &entry.state {
            StepState::Committed(checkpoint) => {
                let text = line(checkpoint, &format!("{:width$}", of(entry)));
                ctx.line(format_args!("{text}"))?;
            }
            StepState::Damaged(why) => {
                let marks = marks.map(|marks| marks.words(entry.step)).unwrap_or_default();
                let marks = if marks.is_empty() { String::new() } else { marks.join(",") + "; " };
                ctx.line(format_args!("{:>10}  {:9}  {marks}{why}", entry.step, "damaged"))?;
            }
        }
    }
    writers.iter().try_for_each(|writer| saving(writer, ctx))
}

/// Shows a committed step with its marks.
pub(super) fn line(checkpoint: &Checkpoint, marks: &str) -> String {
    let record = checkpoint.record();
    let step = record.step.map_or_else(|| "-".to_owned(), |step| step.to_string());
    let (stored, leaves) = totals(checkpoint);
    let age = size::age(since(record.committed_ms));
    let metrics: Vec<_> =
        record.metrics.iter().map(|(name, v)| format!("{name}={}", metric(v))).collect();
    let text = format!(
        "{step:>10}  {:9}  {:>9}  {leaves:>7}  {age:>5}  {marks}  {}",
        "committed",
        size::show(stored),
        metrics.join(" ")
    );
    text.trim_end().to_owned()
}

fn saving(writer: &WriterInfo, ctx: &Context) -> Result<()> {
    let step = writer.step.map_or_else(|| "-".to_owned(), |step| step.to_string());
    let since = match writer.since_ms {
        0 => String::new(),
        ms => format!(", since {}", size::age(since(ms))),
    };
    let text = if writer.alive {
        format!("writer alive{since}")
    } else {
        format!("writer dead{since}; `milepost sweep` frees it")
    };
    ctx.line(format_args!("{step:>10}  {:9}  {text}", "saving"))
}

fn totals(checkpoint: &Checkpoint) -> (u64, u64) {
    let items = &checkpoint.record().items;
    (items.iter().map(|i| i.stored_bytes).sum(), items.iter().map(|i| i.leaves).sum())
}

fn since(unix_ms: u64) -> Duration {
    let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    then.and_then(|then| SystemTime::now().duration_since(then).ok()).unwrap_or_default()
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
