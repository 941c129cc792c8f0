//! `milepost verify`: every stored byte against its checksum.

use super::{context::Context, size};
use futures::executor::block_on;
use milepost::{
    Checkpoint, ErrorKind, Finding, Found, Outcome, Progress, Result, StepState, VerifyReport,
};
use serde_json::{Value, json};
use std::{process::ExitCode, time::Instant};

/// Read every stored byte of a checkpoint, or of all steps of a run, and compare it with its checksum.
///
/// Prints one line for each thing that is not intact: corrupt, not verified (it could not be read), rewritten (by
/// another tool, with equal content) or stray (it belongs to no item). Exit code 1 where anything is corrupt or
/// could not be verified.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a checkpoint, or of a run: all its steps.
    place: String,
}

/// A checkpoint and what was found in it.
struct Verified {
    step: Option<u64>,
    place: String,
    report: VerifyReport,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let started = Instant::now();
    let bar = ctx.progress("verify");
    let verified = match ctx.find(&args.place) {
        Ok(Found::Run(run)) => {
            let steps = run.steps_blocking()?.into_iter();
            steps
                .map(|entry| match entry.state {
                    StepState::Committed(checkpoint) => verify(*checkpoint, bar.progress()),
                    StepState::Damaged(why) => {
                        Ok(damaged(Some(entry.step), entry.place.to_string(), why))
                    }
                })
                .collect::<Result<Vec<_>>>()?
        }
        Ok(Found::Checkpoint(checkpoint)) => vec![verify(*checkpoint, bar.progress())?],
        Ok(Found::Foreign(place)) => {
            vec![verify(Checkpoint::open_blocking(ctx.engine(), &place)?, bar.progress())?]
        }
        // The record itself is bad: that is a finding, too.
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            let place = ctx.place(&args.place)?;
            vec![damaged(place.name().parse().ok(), place.to_string(), e.message().to_owned())]
        }
        Err(e) => return Err(e),
    };
    drop(bar);
    let good = verified.iter().all(|v| v.report.is_good());
    if ctx.json() {
        let checkpoints: Vec<_> = verified.iter().map(to_json).collect();
        let seconds = started.elapsed().as_secs_f64();
        ctx.print_json(&json!({"good": good, "seconds": seconds, "checkpoints": checkpoints}))?;
    } else {
        verified.iter().try_for_each(|v| print(v, ctx))?;
        let objects: u64 = verified.iter().map(|v| v.report.objects).sum();
        let bytes: u64 = verified.iter().map(|v| v.report.bytes).sum();
        let (all, rate) = (size::show(bytes), size::rate(bytes, started.elapsed()));
        let word = if good { "ok" } else { "NOT OK" };
        let count = size::count(verified.len(), "checkpoint", "checkpoints");
        ctx.line(format_args!("{word}: {count}, {objects} objects, {all} at {rate}"))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verify(checkpoint: Checkpoint, progress: Progress) -> Result<Verified> {
    let checkpoint = checkpoint.with_progress(progress);
    let report = block_on(checkpoint.verify())?;
    Ok(Verified { step: checkpoint.record().step, place: checkpoint.place().to_string(), report })
}

fn damaged(step: Option<u64>, place: String, why: String) -> Verified {
    let finding = Finding {
        outcome: Outcome::Corrupt,
        message: why,
        object: "zarr.json".to_owned(),
        item: None,
        leaf: None,
        chunk: None,
        range: None,
    };
    Verified { step, place, report: VerifyReport { objects: 1, bytes: 0, findings: vec![finding] } }
}

fn print(verified: &Verified, ctx: &Context) -> Result<()> {
    for f in &verified.report.findings {
        let mut text = format!("{}: {}.", word(f.outcome), f.message);
        let step = verified.step.map(|s| s.to_string());
        let range = f.range.map(|(start, len)| format!("{start}..{}", start.saturating_add(len)));
        let pairs = [
            ("step", step.as_ref()),
            ("item", f.item.as_ref()),
            ("leaf", f.leaf.as_ref()),
            ("chunk", f.chunk.as_ref()),
            ("object", Some(&f.object)),
            ("range", range.as_ref()),
            ("checkpoint", Some(&verified.place)),
        ];
        let pairs = pairs.into_iter().filter_map(|(k, v)| Some(format!("{k}=`{}`", v?)));
        text = format!("{text} {}", pairs.collect::<Vec<_>>().join(", "));
        ctx.line(format_args!("{text}"))?;
    }
    Ok(())
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Rewritten => "rewritten",
        Outcome::Stray => "stray",
        Outcome::Corrupt => "corrupt",
        Outcome::NotVerified => "not verified",
    }
}

fn to_json(verified: &Verified) -> Value {
    let report = &verified.report;
    let findings = report.findings.iter().map(|f| {
        let range = f.range.map(|(start, len)| json!({"start": start, "bytes": len}));
        json!({"outcome": word(f.outcome), "message": f.message, "object": f.object, "item": f.item,
            "leaf": f.leaf, "chunk": f.chunk, "range": range})
    });
    json!({
        "step": verified.step,
        "checkpoint": verified.place,
        "good": report.is_good(),
        "objects": report.objects,
        "bytes": report.bytes,
        "findings": findings.collect::<Vec<_>>(),
    })
}
