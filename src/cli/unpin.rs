//! `milepost unpin`: the end of a pin.

use super::context::Context;
use futures::executor::block_on;
use milepost::Result;
use serde_json::json;
use std::process::ExitCode;

/// Unpin a step: it can be deleted again.
///
/// Only the mark goes; nothing is deleted. A pin whose step is gone can be taken away, too.
///
/// Exit code 0 also where the step was not pinned.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of the run.
    run: String,
    /// The step.
    step: u64,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let (run, step) = (ctx.run(&args.run)?, args.step);
    let was_pinned = block_on(run.unpin(step))?;
    if ctx.json() {
        ctx.print_json(&json!({"step": step, "pinned": false, "was_pinned": was_pinned}))?;
    } else if was_pinned {
        ctx.line(format_args!("unpinned {step}"))?;
    } else {
        ctx.line(format_args!("{step} was not pinned"))?;
    }
    Ok(ExitCode::SUCCESS)
}
