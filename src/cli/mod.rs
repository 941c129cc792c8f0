//! The command line: a door to the library, one file a verb.
//!
//! A verb is a file `src/cli/<verb>.rs` (or a folder) with two things:
//!
//! ```text
//! #[derive(Debug, clap::Args)]
//! pub(crate) struct Args { … }                                     what it takes; doc comments are --help
//! pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode>  what it does
//! ```
//!
//! and plugs in by three lines here: `mod <verb>;`, a variant of [`Verb`] and its arm in [`Verb::run`]. All
//! else it needs is in [`Context`]: the engine, places and checkpoints by URL, standard output, progress bars.
//!
//! Standard output is data, standard error is talk (warnings, bars, errors with hints). Exit codes: 0 ok, 1 not
//! ok, 2 usage.
//!
//! **Invariant:** only what the crate root re-exports is used here, and no verb holds logic worth a unit test.

mod bench;
mod cat;
mod context;
mod demo;
mod doctor;
mod export;
mod import;
mod ls;
mod npy;
mod participate;
mod pin;
mod prune;
mod rm;
mod size;
mod sweep;
mod tree;
mod unpin;
mod values;
mod verify;
mod watch;

use clap::{Parser, Subcommand};
use context::{Context, Globals};
use milepost::Result;
use std::process::ExitCode;

/// Chunked array storage for ML checkpoints: a pytree on disk as plain Zarr v3.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "CKPT is the path or URL of a checkpoint (`RUN/12`), or of a run, whose newest step is then meant.\n\
                  Places are paths or URLs: file:// s3:// gs:// az:// http(s):// (as far as built in).\n\
                  Exit codes: 0 ok, 1 not ok, 2 usage. MILEPOST_LOG sets the log filter (default: warn)."
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Import(import::Args),
    Export(export::Args),
    Ls(ls::Args),
    Tree(tree::Args),
    Cat(cat::Args),
    Verify(verify::Args),
    Watch(watch::Args),
    Pin(pin::Args),
    Unpin(unpin::Args),
    Prune(prune::Args),
    Rm(rm::Args),
    Sweep(sweep::Args),
    Doctor(doctor::Args),
    Participate(participate::Args),
    Bench(bench::Args),
}

impl Verb {
    fn run(self, ctx: &Context) -> Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(&args, ctx),
            Self::Import(args) => import::run(args, ctx),
            Self::Export(args) => export::run(args, ctx),
            Self::Ls(args) => ls::run(&args, ctx),
            Self::Tree(args) => tree::run(&args, ctx),
            Self::Cat(args) => cat::run(&args, ctx),
            Self::Verify(args) => verify::run(&args, ctx),
            Self::Watch(args) => watch::run(&args, ctx),
            Self::Pin(args) => pin::run(&args, ctx),
            Self::Unpin(args) => unpin::run(&args, ctx),
            Self::Prune(args) => prune::run(&args, ctx),
            Self::Rm(args) => rm::run(args, ctx),
            Self::Sweep(args) => sweep::run(&args, ctx),
            Self::Doctor(args) => doctor::run(&args, ctx),
            Self::Participate(args) => participate::run(&args, ctx),
            Self::Bench(args) => bench::run(args, ctx),
        }
    }
}

/// Reads the command line, runs the verb and tells how it ended.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    context::start_log();
    let done = Context::new(cli.globals).and_then(|ctx| {
        let code = cli.verb.run(&ctx)?;
        ctx.flush()?;
        Ok(code)
    });
    done.unwrap_or_else(|error| {
        context::report(&error);
        ExitCode::FAILURE
    })
}
