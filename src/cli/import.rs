//! `milepost import`: safetensors become a step, or a checkpoint that stands alone.

use super::{context::Context, size};
use milepost::{Import, Result, SaveOptions, Saved, formats::zarr3::Compressor};
use serde_json::json;
use std::{process::ExitCode, time::Instant};

/// Import safetensors as a step of a run, streamed within the budget.
///
/// Prints what was saved. Metadata, order and names of the source are kept; `milepost export` gives them back.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub(crate) struct Args {
    /// A `.safetensors` file, a `.safetensors.index.json`, or a directory with one of them.
    src: String,
    /// The path or URL of the run, which is created where it is not there; with --standalone, of the checkpoint.
    run: String,
    /// The step to save.
    #[arg(long, value_name = "N", group = "target")]
    step: Option<u64>,
    /// Save a checkpoint that stands alone at RUN, not a step of a run.
    #[arg(long, group = "target")]
    standalone: bool,
    /// Replace the step if it is there.
    #[arg(long)]
    overwrite: bool,
    /// The name of the item.
    #[arg(long, default_value = "state")]
    item: String,
    /// Split names at this text into a tree [default: each name is one key].
    #[arg(long, value_name = "TEXT")]
    split: Option<String>,
    /// The compressor: none, zstd[:level], blosc[:cname[:level[:shuffle]]] or gzip[:level].
    #[arg(long, value_name = "CODEC", default_value = "none")]
    codec: Compressor,
    /// The decoded size of a chunk [default: 4MiB].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    chunk_bytes: Option<u64>,
    /// The decoded size of a shard, 0 for none [default: what suits the store].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    shard_bytes: Option<u64>,
    /// Store data types that stock zarr-python lacks as integers of the same size.
    #[arg(long)]
    portable: bool,
}

pub(crate) fn run(args: Args, ctx: &Context) -> Result<ExitCode> {
    let started = Instant::now();
    let defaults = SaveOptions::default();
    let options = SaveOptions {
        compressor: args.codec,
        chunk_bytes: args.chunk_bytes.unwrap_or(defaults.chunk_bytes),
        shard_bytes: args.shard_bytes,
        portable: args.portable,
        overwrite: args.overwrite,
        ..defaults
    };
    let (source, target) = (ctx.place(&args.src)?, ctx.place(&args.run)?);
    let import = match args.step {
        Some(step) => Import::step(ctx.engine(), &source, &target, step),
        None => Import::standalone(ctx.engine(), &source, &target),
    };
    let import = match args.split {
        Some(separator) => import.split(separator),
        None => import,
    };
    let bar = ctx.progress("import");
    let saved = import.item(args.item).options(options).progress(bar.progress()).save_blocking()?;
    drop(bar);
    show(&saved, started, ctx)?;
    Ok(ExitCode::SUCCESS)
}

fn show(saved: &Saved, started: Instant, ctx: &Context) -> Result<()> {
    let leaves: u64 = saved.record.items.iter().map(|item| item.leaves).sum();
    let time = started.elapsed();
    if ctx.json() {
        return ctx.print_json(&json!({
            "place": saved.place.to_string(),
            "step": saved.record.step,
            "items": saved.record.items.iter().map(|item| &item.name).collect::<Vec<_>>(),
            "leaves": leaves,
            "data_bytes": saved.data_bytes,
            "stored_bytes": saved.stored_bytes,
            "seconds": time.as_secs_f64(),
        }));
    }
    ctx.line(format_args!(
        "{}: {leaves} leaves, {} ({} stored), {}",
        saved.place,
        size::show(saved.data_bytes),
        size::show(saved.stored_bytes),
        size::rate(saved.data_bytes, time)
    ))
}
