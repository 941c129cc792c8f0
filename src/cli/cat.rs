//! `milepost cat`: the values of one leaf, on screen, as JSON, or into a `.npy` file.

use super::{context::Context, npy, values};
use futures::executor::block_on;
use milepost::{
    CastRule, Checkpoint, DataType, Error, ErrorKind, Found, LeafHandle, LeafKind, Result,
    Selection, Subset, formats::record::ItemKind, open_zarr_array_blocking,
};
use std::{path::PathBuf, process::ExitCode};

/// Print the values of one leaf; read only the chunks that hold them.
///
/// Arrays of more than 1,000 elements are shown by their edges, as NumPy does; --json prints them whole. Text and
/// bytes are printed as they are, a JSON item as JSON.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The path or URL of a checkpoint, of a run (its newest step), or of other Zarr v3.
    ckpt: String,
    /// The key path as `milepost tree` prints it; leave it out for an item that is no tree.
    #[arg(default_value = "", hide_default_value = true)]
    keypath: String,
    /// The item [default: the only one, else `state`].
    #[arg(long)]
    item: Option<String>,
    /// What to read, as NumPy slices it: `0:10,:`, `...,3`, `::2`, `-1`. Steps are positive.
    #[arg(long, allow_hyphen_values = true)]
    slice: Option<String>,
    /// Write a NumPy file instead; bfloat16, float8 and the like as `ml_dtypes` does.
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,
    /// Convert the elements: float32, int64, bfloat16, … Any cast that is named is done.
    #[arg(long = "as", value_name = "DTYPE", value_parser = data_type)]
    data_type: Option<DataType>,
}

fn data_type(text: &str) -> Result<DataType, String> {
    let names = || DataType::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    DataType::from_name(text).ok_or_else(|| format!("no such data type; there are {}", names()))
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let bar = ctx.progress("read");
    let found = ctx.find(&args.ckpt)?;
    if let Found::Foreign(place) = &found {
        if args.item.is_some() {
            let error = Error::new(ErrorKind::Invalid, "only checkpoints have items");
            return Err(error.with("place", place).hint("leave out --item"));
        }
        let leaf = open_zarr_array_blocking(ctx.engine(), place, &args.keypath)?;
        return show(&leaf, args, ctx);
    }
    let checkpoint = ctx.open(found)?.with_progress(bar.progress());
    let item = match &args.item {
        Some(name) => checkpoint.item(name)?,
        None => checkpoint.default_item()?,
    };
    if item.kind == ItemKind::Json && args.keypath.is_empty() {
        json_item(&checkpoint, &item.name, args, ctx)?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&checkpoint.leaf_blocking(&item.name, &args.keypath)?, args, ctx)
}

fn show(leaf: &LeafHandle, args: &Args, ctx: &Context) -> Result<ExitCode> {
    let selection = match &args.slice {
        Some(text) => leaf.select(text)?,
        None => Selection::of(Subset::whole(leaf.shape())?),
    };
    let plain = args.slice.is_none() && args.data_type.is_none();
    match (&args.out, leaf.kind()) {
        (Some(file), _) => npy::write(leaf, &selection, args.data_type, file, ctx)?,
        (None, LeafKind::Str | LeafKind::Bytes) if plain => text(leaf, ctx)?,
        (None, _) => values::show(leaf, &selection, args.data_type, ctx)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn json_item(checkpoint: &Checkpoint, item: &str, args: &Args, ctx: &Context) -> Result<()> {
    if args.slice.is_some() || args.out.is_some() || args.data_type.is_some() {
        return Err(Error::new(ErrorKind::Invalid, "a JSON item has no elements")
            .with("item", item)
            .hint("leave out --slice, --out and --as; the JSON goes to standard output"));
    }
    let value = block_on(checkpoint.restore_json(item))?;
    if ctx.json() { ctx.print_json(&value) } else { ctx.line(format_args!("{value:#}")) }
}

/// Prints text with a line end, bytes without one; as JSON, text is a string and bytes are numbers.
fn text(leaf: &LeafHandle, ctx: &Context) -> Result<()> {
    let data = leaf.read_blocking()?;
    let text = std::str::from_utf8(&data.bytes).ok().filter(|_| data.kind == LeafKind::Str);
    match text {
        Some(text) if ctx.json() => values::show_text(leaf, text, ctx),
        Some(text) => ctx.line(format_args!("{text}")),
        None if ctx.json() => {
            let whole = Selection::of(Subset::whole(leaf.shape())?);
            values::show(leaf, &whole, None, ctx)
        }
        None => ctx.bytes(&data.bytes),
    }
}

/// Reads a selection, converted where a type is named; every cast that is named is done.
pub(crate) fn read(
    leaf: &LeafHandle,
    selection: &Selection,
    data_type: Option<DataType>,
) -> Result<milepost::ArrayData> {
    let mut data = block_on(leaf.read_as(&selection.subset, data_type, CastRule::Unsafe))?;
    data.shape = selection.shape();
    if !selection.is_whole_box() {
        data.bytes = selection.pick(&data.bytes, data.data_type.size_bytes())[..].into();
    }
    Ok(data)
}
