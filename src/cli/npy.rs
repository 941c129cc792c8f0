//! Writing an array into a `.npy` file, whole or not at all.

use super::{cat::read, context::Context, size};
use milepost::{
    DataType, Error, ErrorKind, LeafHandle, Result, Selection, Subset, formats::npy::header,
};
use serde_json::json;
use std::{fs::File, io::Write, path::Path};

/// Writes the selection to `file`, an array larger than a part of the budget in slabs.
pub(super) fn write(
    leaf: &LeafHandle,
    selection: &Selection,
    data_type: Option<DataType>,
    file: &Path,
    ctx: &Context,
) -> Result<()> {
    let data_type = data_type.or(leaf.data_type()).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "the data type has no counterpart here")
            .with("leaf", leaf.path())
    })?;
    let shape = selection.shape();
    let whole = *selection == Selection::of(Subset::whole(leaf.shape())?);
    let slabs: Vec<_> = if whole {
        leaf.slabs(ctx.engine().budget().limit() / 4).into_iter().map(Selection::of).collect()
    } else {
        vec![selection.clone()]
    };
    let failed = |e| {
        Error::new(ErrorKind::Unavailable, "the file cannot be written")
            .with("file", file.display())
            .because(e)
    };
    // Beside the file and renamed onto it, so that half an array is never taken for one.
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".milepost-tmp-{}", std::process::id()));
    let unfinished = file.with_file_name(name);
    let write_all = || {
        let mut out = File::create(&unfinished).map_err(failed)?;
        let head = header(data_type, &shape)?;
        let mut total = head.len() as u64;
        out.write_all(&head).map_err(failed)?;
        for slab in &slabs {
            let data = read(leaf, slab, Some(data_type))?;
            out.write_all(&data.bytes).map_err(failed)?;
            total += data.bytes.len() as u64;
        }
        std::fs::rename(&unfinished, file).map_err(failed)?;
        Ok(total)
    };
    let bytes = write_all().inspect_err(|_: &Error| drop(std::fs::remove_file(&unfinished)))?;
    if ctx.json() {
        return ctx.print_json(&json!({"file": file.display().to_string(), "data_type": data_type,
            "shape": shape, "bytes": bytes}));
    }
    let bytes = size::show(bytes);
    ctx.note(format_args!("{}: {data_type}{shape:?}, {bytes}", file.display()));
    Ok(())
}
