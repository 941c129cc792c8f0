//! `milepost sweep`: what dead writers and interrupted deletions left.

use super::{
    context::{self, Context},
    size,
};
use futures::executor::block_on;
use milepost::{
    Error, ErrorKind, Found, Leftover, LeftoverKind, Place, Result, Run, SweepReport,
    leftovers_beside, sweep_beside,
};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Free what dead writers and interrupted deletions left at a run, or beside a checkpoint that stands alone.
///
/// Prints a line for each leftover: what it is, its size, why it is dead. A writer of this machine is dead when its
/// process is gone; one of another machine when it has not renewed its mark for a minute. Never touched: a step,
/// damaged or not, a live writer's save, and whatever is not Milepost's.
///
/// Exit code 1 where a leftover could not be freed; another sweep tries again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a run, or of a checkpoint that stands alone, committed or not.
    place: String,
    /// Only show the leftovers.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// Where leftovers are looked for.
enum Site {
    Run(Run),
    /// Beside a checkpoint of this name.
    Beside(Place),
}

impl Site {
    fn leftovers(&self, ctx: &Context) -> Result<Vec<Leftover>> {
        match self {
            Self::Run(run) => block_on(run.leftovers()),
            Self::Beside(place) => block_on(leftovers_beside(ctx.engine(), place)),
        }
    }

    fn sweep(&self, dead: &[Leftover], ctx: &Context) -> Result<SweepReport> {
        match self {
            Self::Run(run) => block_on(run.sweep(dead)),
            Self::Beside(place) => block_on(sweep_beside(ctx.engine(), place, dead)),
        }
    }
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let (site, dead) = find(args, ctx)?;
    if !ctx.json() {
        for leftover in &dead {
            let Leftover { place, kind, bytes, why } = leftover;
            let (word, bytes) = (word(*kind), size::show(*bytes));
            ctx.line(format_args!("{word:9}  {bytes:>9}  {place}: {why}"))?;
        }
        ctx.flush()?;
    }
    let report = if args.dry_run { SweepReport::default() } else { site.sweep(&dead, ctx)? };
    if ctx.json() {
        ctx.print_json(&to_json(args.dry_run, &dead, &report))?;
    } else {
        show(args.dry_run, &dead, &report, ctx)?;
    }
    for (_, error) in &report.failed {
        context::report(error);
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Finds out where to sweep. A first save that died leaves no run and no checkpoint to be found: there, what it left tells.
fn find(args: &Args, ctx: &Context) -> Result<(Site, Vec<Leftover>)> {
    let place = ctx.place(&args.place)?;
    let beside = Site::Beside(place.clone());
    let none = match ctx.find(&args.place) {
        Ok(Found::Run(run)) => {
            let site = Site::Run(run);
            return site.leftovers(ctx).map(|dead| (site, dead));
        }
        Ok(Found::Checkpoint(_)) => {
            return beside.leftovers(ctx).map(|dead| (beside, dead));
        }
        Ok(Found::Foreign(place)) => {
            return Err(Error::new(ErrorKind::Invalid, "the place is Zarr, but no run of ours")
                .with("place", place));
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => e,
        Err(e) => return Err(e),
    };
    for site in [Site::Run(Run::new(ctx.engine(), &place)), beside] {
        match site.leftovers(ctx) {
            Ok(dead) if dead.is_empty() => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            dead => return dead.map(|dead| (site, dead)),
        }
    }
    Err(none)
}

fn word(kind: LeftoverKind) -> &'static str {
    match kind {
        LeftoverKind::Attempt => "attempt",
        LeftoverKind::Trash => "trash",
        LeftoverKind::Revision => "revision",
        LeftoverKind::Tombstone => "tombstone",
        LeftoverKind::Mark => "mark",
        LeftoverKind::Probe => "probe",
        LeftoverKind::Parts => "parts",
    }
}

fn show(dry_run: bool, dead: &[Leftover], report: &SweepReport, ctx: &Context) -> Result<()> {
    for leftover in &report.passed_over {
        ctx.line(format_args!("passed over {}: alive again, or gone", leftover.place))?;
    }
    let count = |n| size::count(n, "leftover", "leftovers");
    if dry_run {
        let bytes = size::show(dead.iter().map(|leftover| leftover.bytes).sum());
        return ctx.line(format_args!("would free {}, {bytes}", count(dead.len())));
    }
    let bytes = size::show(report.freed_bytes);
    ctx.line(format_args!("freed {}, {bytes}", count(report.swept.len())))
}

fn to_json(dry_run: bool, dead: &[Leftover], report: &SweepReport) -> Value {
    let all = |list: &[Leftover]| list.iter().map(one).collect::<Vec<_>>();
    let failed = report.failed.iter().map(|(leftover, error)| {
        let mut value = one(leftover);
        value["error"] = error.to_string().into();
        value
    });
    json!({
        "dry_run": dry_run,
        "leftovers": all(dead),
        "swept": all(&report.swept),
        "freed_bytes": report.freed_bytes,
        "passed_over": all(&report.passed_over),
        "failed": failed.collect::<Vec<_>>(),
    })
}

fn one(leftover: &Leftover) -> Value {
    json!({"kind": word(leftover.kind), "place": leftover.place.to_string(), "bytes": leftover.bytes,
        "why": leftover.why})
}
