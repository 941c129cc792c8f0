//! `milepost export`: a checkpoint, or a part of it, becomes safetensors.

use super::{context::Context, size};
use milepost::{Export, ExportReport, Result, Select};
use serde_json::json;
use std::{process::ExitCode, time::Instant};

/// Export a checkpoint to safetensors, streamed within the budget.
///
/// Names, order and metadata are those of the file it was imported from, if it was. Leaves that the format cannot hold
/// (None, empty containers, text, bytes, PRNG keys, complex128, …) are listed, and nothing is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a checkpoint, or of a run: its newest step.
    ckpt: String,
    /// The file to write; its name ends in `.safetensors`.
    out: String,
    /// The item [default: the only one, else `state`].
    #[arg(long)]
    item: Option<String>,
    /// Export only what this key path or glob names; `!` excludes (repeatable).
    #[arg(long, value_name = "GLOB")]
    select: Vec<String>,
    /// Leave out what the format cannot hold.
    #[arg(long)]
    skip_unsupported: bool,
    /// Join keys to names with this text [default: as in the source of the import, else `.`].
    #[arg(long, value_name = "TEXT")]
    split: Option<String>,
    /// Divide into files of at most this many bytes of tensors, with an index.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    shard_bytes: Option<u64>,
    /// Replace files that are there.
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: Args, ctx: &Context) -> Result<ExitCode> {
    let started = Instant::now();
    let checkpoint = ctx.checkpoint(&args.ckpt)?;
    let bar = ctx.progress("export");
    let mut export = Export::new(&checkpoint, &ctx.place(&args.out)?)
        .select(Select::new(&args.select)?)
        .skip_unsupported(args.skip_unsupported)
        .overwrite(args.overwrite)
        .progress(bar.progress());
    if let Some(item) = args.item {
        export = export.item(item);
    }
    if let Some(separator) = args.split {
        export = export.separator(separator);
    }
    if let Some(bytes) = args.shard_bytes {
        export = export.shard_bytes(bytes);
    }
    let report = export.write_blocking()?;
    drop(bar);
    show(&report, started, ctx)?;
    Ok(ExitCode::SUCCESS)
}

fn show(report: &ExportReport, started: Instant, ctx: &Context) -> Result<()> {
    let time = started.elapsed();
    if ctx.json() {
        let files = report.files.iter();
        let skipped = report.skipped.iter();
        return ctx.print_json(&json!({
            "item": report.item,
            "files": files.map(|f| json!({"place": f.place.to_string(), "bytes": f.bytes})).collect::<Vec<_>>(),
            "tensors": report.tensors,
            "data_bytes": report.data_bytes,
            "skipped": skipped.map(|s| json!({"path": s.path, "reason": s.reason})).collect::<Vec<_>>(),
            "seconds": time.as_secs_f64(),
        }));
    }
    for skipped in &report.skipped {
        ctx.note(format_args!("left out: {} ({})", skipped.path, skipped.reason));
    }
    for file in &report.files {
        ctx.line(format_args!("{}: {}", file.place, size::show(file.bytes)))?;
    }
    ctx.line(format_args!(
        "{} tensors, {}, {}",
        report.tensors,
        size::show(report.data_bytes),
        size::rate(report.data_bytes, time)
    ))
}
