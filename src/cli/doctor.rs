//! `milepost doctor`: what a place can do, found out by trying.

use super::context::Context;
use futures::executor::block_on;
use milepost::{ProbeOutcome, Result, probe};
use serde_json::json;
use std::process::ExitCode;

/// Find out what a place can do, by trying, and which path a save takes there.
///
/// Writes below PLACE/.milepost/probe and removes it again. Exit code 1 where the place cannot be used at all.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory or URL; it need not exist yet.
    place: String,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let place = ctx.place(&args.place)?;
    let findings = block_on(probe(&place))?;
    if ctx.json() {
        let findings: Vec<_> = findings
            .iter()
            .map(|f| json!({"name": f.name, "outcome": word(f.outcome), "detail": f.detail}))
            .collect();
        ctx.print_json(&json!({"place": place.to_string(), "findings": findings}))?;
        return Ok(ExitCode::SUCCESS);
    }
    ctx.line(format_args!("{place}"))?;
    let width = findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
    for finding in &findings {
        let (name, outcome, detail) = (finding.name, finding.outcome.to_string(), &finding.detail);
        let line = format!("  {name:width$}  {outcome:7}  {detail}");
        ctx.line(format_args!("{}", line.trim_end()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn word(outcome: ProbeOutcome) -> &'static str {
    match outcome {
        ProbeOutcome::Yes => "yes",
        ProbeOutcome::No => "no",
        ProbeOutcome::Fact => "fact",
    }
}
