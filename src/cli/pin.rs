//! `milepost pin`: a step that nothing of ours deletes.

use super::context::Context;
use futures::executor::block_on;
use milepost::Result;
use serde_json::json;
use std::process::ExitCode;

/// Pin a step: no policy, no `rm` and no `prune` deletes it until it is unpinned.
///
/// A small mark below RUN/.milepost; the step itself is not touched. Pinning again replaces the reason. A save that
/// overwrites the step is refused, too.
///
/// Exit code 1 where the step is not there, is damaged, or is being deleted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of the run.
    run: String,
    /// The step.
    step: u64,
    /// Why, for whoever wants to delete it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let (run, step) = (ctx.run(&args.run)?, args.step);
    block_on(run.pin(step, &args.why))?;
    if ctx.json() {
        ctx.print_json(&json!({"step": step, "pinned": true, "why": args.why}))?;
    } else {
        ctx.line(format_args!("pinned {step}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
