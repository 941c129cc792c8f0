//! `milepost tree`: what a checkpoint or other Zarr holds, by key path.

mod json;
mod rows;

use super::{context::Context, size};
use milepost::{
    Checkpoint, Error, ErrorKind, Found, KeyPath, Place, Result, formats::record::ItemKind,
    walk_zarr_blocking,
};
use serde_json::json;
use std::process::ExitCode;

/// Show the key paths of a checkpoint with data type, shape, chunks, codec and stored size.
///
/// Reads the record and the index of each item. Other Zarr v3 (a group or an array that Milepost did not write,
/// or a node inside a checkpoint) is walked by listing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a checkpoint, of a run (its newest step), or of other Zarr v3.
    ckpt: String,
    /// Only this item [default: all].
    #[arg(long)]
    item: Option<String>,
    /// Fold what is deeper than N keys.
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    match ctx.find(&args.ckpt)? {
        Found::Foreign(place) => {
            if args.item.is_some() {
                return Err(Error::new(ErrorKind::Invalid, "only checkpoints have items")
                    .with("place", place)
                    .hint("leave out --item"));
            }
            show_foreign(&place, args.depth.unwrap_or(usize::MAX), ctx)?;
        }
        found => {
            let checkpoint = ctx.open(found)?;
            show(&checkpoint, args.item.as_deref(), args.depth.unwrap_or(usize::MAX), ctx)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a checkpoint as `tree` does.
pub(crate) fn show(
    checkpoint: &Checkpoint,
    item: Option<&str>,
    depth: usize,
    ctx: &Context,
) -> Result<()> {
    let items = match item {
        Some(name) => std::slice::from_ref(checkpoint.item(name)?),
        None => checkpoint.record().items.as_slice(),
    };
    let indexes = items.iter().map(|item| checkpoint.item_index_blocking(&item.name));
    let indexes = indexes.collect::<Result<Vec<_>>>()?;
    let pairs = items.iter().zip(&indexes);
    if ctx.json() {
        let items: Vec<_> = pairs.map(|(item, index)| json::item(item, index)).collect();
        let (step, place) = (checkpoint.record().step, checkpoint.place().to_string());
        return ctx.print_json(&json!({"checkpoint": place, "step": step, "items": items}));
    }
    for (item, index) in pairs {
        let (name, kind, bytes) = (&item.name, item.kind.as_str(), size::show(item.stored_bytes));
        let count = match item.kind {
            ItemKind::Tree => format!(", {} leaves", item.leaves),
            ItemKind::Opaque => format!(", {} files", item.leaves),
            _ => String::new(),
        };
        ctx.line(format_args!("{name}: {kind}{count}, {bytes}"))?;
        if item.kind == ItemKind::Json {
            continue;
        }
        let mut rows = Vec::new();
        let mut leaves = index.leaves().iter();
        rows::collect(&index.specs(), &mut KeyPath::root(), depth, &mut leaves, &mut rows);
        rows::print(&rows, ctx)?;
    }
    Ok(())
}

fn show_foreign(place: &Place, depth: usize, ctx: &Context) -> Result<()> {
    let nodes = walk_zarr_blocking(place)?;
    if ctx.json() {
        let nodes: Vec<_> = nodes.iter().map(json::node).collect();
        return ctx.print_json(&json!({"zarr": place.to_string(), "nodes": nodes}));
    }
    ctx.line(format_args!("{place}: Zarr v3"))?;
    rows::print(&rows::collect_nodes(&nodes, depth), ctx)
}
