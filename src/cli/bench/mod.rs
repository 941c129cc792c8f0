//! `milepost bench`: what a place gives, measured beside what it could give.
//!
//! Three verbs. [`checkpoint`] saves and restores a whole training state; [`chunks`] writes and reads single
//! chunks; [`save`] times what a background save costs its caller. All work on a directory of their own below
//! the place that is named ([`ground`]), hold every row against the machine's own rate for the same bytes, measured
//! in the same run ([`ceiling`]), and print one [`report`]. [`state`] makes the data, [`sample`] the statistics, [`metered`] counts requests.
//!
//! **Invariant:** nothing that a benchmark did not create is written, read or removed.

mod ceiling;
mod checkpoint;
mod chunks;
mod ground;
mod metered;
mod report;
mod sample;
mod save;
mod state;

use super::context::Context;
use milepost::{Error, ErrorKind, Result};
use report::{Form, Report};
use std::process::ExitCode;

/// Measure what a place gives, beside what it could give.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Checkpoint(checkpoint::Args),
    Chunks(chunks::Args),
    Save(save::Args),
}

pub(crate) fn run(args: Args, ctx: &Context) -> Result<ExitCode> {
    match args.verb {
        Verb::Checkpoint(args) => checkpoint::run(&args, ctx),
        Verb::Chunks(args) => chunks::run(&args, ctx),
        Verb::Save(args) => save::run(&args, ctx),
    }
}

/// Prints a report as `--json`, `--csv` or a table.
fn print(report: &Report, csv: bool, ctx: &Context) -> Result<()> {
    let form = match (ctx.json(), csv) {
        (true, true) => {
            return Err(Error::new(ErrorKind::Invalid, "a report is JSON or CSV, not both")
                .hint("give one of --json and --csv"));
        }
        (true, false) => Form::Json,
        (false, true) => Form::Csv,
        (false, false) => Form::Table,
    };
    ctx.print(format_args!("{}", report.text(form)))
}
