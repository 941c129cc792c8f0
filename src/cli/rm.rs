//! `milepost rm`: steps go, at once and for good, or to a directory of the user's.

use super::context::{self, Context};
use futures::executor::block_on;
use milepost::{Burial, Error, ErrorKind, LeaseKind, Place, Result, Run};
use serde_json::{Value, json};
use std::{collections::BTreeSet, process::ExitCode};

/// Remove steps of a run, without asking; --dry-run shows what would go.
///
/// Each step becomes invisible at one instant, then its bytes are freed; what an interruption leaves, `milepost sweep`
/// frees. Never removed: a pinned step, one that somebody reads under a lease, a damaged one unless --damaged says
/// so, a step with a directory in it that is not Milepost's, anything beside the steps. Not followed: symbolic links.
///
/// Exit code 1 where a step could not be removed; the others are all the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of the run.
    run: String,
    /// The steps.
    #[arg(required = true, value_name = "STEP")]
    steps: Vec<u64>,
    /// Remove damaged steps, too.
    #[arg(long)]
    damaged: bool,
    /// Move the steps to this directory below the run, where they stay readable as RUN/DIR/STEP.
    #[arg(long, value_name = "DIR")]
    trash: Option<String>,
    /// Only show what would go.
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// What became of a step.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It would be removed.
    Removable,
    Removed,
    /// It is here now.
    Moved(Place),
    /// Somebody uses it; only where steps were not named one by one.
    InUse(Error),
    Failed(Error),
}

pub(crate) fn run(args: Args, ctx: &Context) -> Result<ExitCode> {
    let run = ctx.run(&args.run)?;
    let how = args.trash.map_or(Burial::Delete, Burial::MoveTo);
    let mut outcomes = Vec::new();
    let mut done = BTreeSet::new();
    for step in args.steps.into_iter().filter(|step| done.insert(*step)) {
        let outcome = if args.dry_run {
            match refusal(&run, step, args.damaged)? {
                Some(error) => Outcome::Failed(error),
                None => Outcome::Removable,
            }
        } else {
            remove(&run, step, &how, args.damaged)
        };
        tell(step, &outcome, ctx)?;
        outcomes.push((step, outcome));
    }
    if ctx.json() {
        let steps: Vec<_> = outcomes.iter().map(|(step, o)| to_json(*step, o)).collect();
        let run = run.place().to_string();
        ctx.print_json(&json!({"run": run, "dry_run": args.dry_run, "steps": steps}))?;
    }
    Ok(exit_code(&outcomes))
}

/// Removes one step; an error is an outcome, so that the others go all the same.
pub(super) fn remove(run: &Run, step: u64, how: &Burial, damaged: bool) -> Outcome {
    match block_on(run.remove(step, how, damaged)) {
        Ok(None) => Outcome::Removed,
        Ok(Some(place)) => Outcome::Moved(place),
        Err(error) => Outcome::Failed(error.with("step", step)),
    }
}

/// Tells why a step would not be removed, as far as that shows without trying.
fn refusal(run: &Run, step: u64, damaged: bool) -> Result<Option<Error>> {
    match block_on(run.step(step)) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::Corrupt && damaged => {}
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            let error = Error::new(ErrorKind::Corrupt, e.message()).with("step", step);
            return Ok(Some(error.hint("--damaged removes it all the same")));
        }
        Err(e) => return Ok(Some(e)),
    }
    let conflict = |message| Error::new(ErrorKind::Conflict, message).with("step", step);
    if let Some(pin) = block_on(run.pins())?.into_iter().find(|pin| pin.step == step) {
        let error = conflict("the step is pinned").with("why", pin.why);
        return Ok(Some(error.hint("`milepost unpin` it first")));
    }
    let reads = |kind, alive| kind == LeaseKind::Reader && alive;
    let mut leases = block_on(run.leases())?.into_iter();
    let lease = leases.find(|lease| lease.step == step && reads(lease.kind, lease.alive));
    Ok(lease.map(|lease| conflict("the step is being read").with("holder", lease.holder)))
}

/// Says what became of a step: what was done on standard output, what failed on standard error.
pub(super) fn tell(step: u64, outcome: &Outcome, ctx: &Context) -> Result<()> {
    match outcome {
        Outcome::Failed(error) => {
            // In their order, where both go to one terminal.
            ctx.flush()?;
            context::report(error);
            Ok(())
        }
        _ if ctx.json() => Ok(()),
        Outcome::Removable => ctx.line(format_args!("would remove {step}")),
        Outcome::Removed => ctx.line(format_args!("removed {step}")),
        Outcome::Moved(place) => ctx.line(format_args!("moved {step} to {place}")),
        Outcome::InUse(error) => ctx.line(format_args!("left {step}: {error}")),
    }
}

pub(super) fn to_json(step: u64, outcome: &Outcome) -> Value {
    let failed = |word, error: &Error| {
        json!({"step": step, "outcome": word, "error": error.to_string(),
            "hint": error.hint_text()})
    };
    match outcome {
        Outcome::Removable => json!({"step": step, "outcome": "removable"}),
        Outcome::Removed => json!({"step": step, "outcome": "removed"}),
        Outcome::Moved(place) => {
            json!({"step": step, "outcome": "moved", "place": place.to_string()})
        }
        Outcome::InUse(error) => failed("in use", error),
        Outcome::Failed(error) => failed("failed", error),
    }
}

pub(super) fn exit_code(outcomes: &[(u64, Outcome)]) -> ExitCode {
    let failed = outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
