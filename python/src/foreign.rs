//! Safetensors in and out.

use crate::{
    checkpoint::Checkpoint, engine::Place, errors::raise, json::to_members, options::SaveOptions,
    save::SaveHandle, wait::drive,
};
use milepost::{Export, Import, Select};
use pyo3::{prelude::*, types::PyDict};

/// Begins to import safetensors (a file, a directory with one, a model by its index) as a step of a run or a checkpoint.
#[pyfunction]
#[pyo3(signature = (source, target, options, *, step=None, item="state".to_owned(), split=None, metadata=None))]
#[expect(clippy::too_many_arguments, reason = "the options of one import")]
pub(crate) fn import_safetensors(
    py: Python<'_>,
    source: &Place,
    target: &Place,
    options: &SaveOptions,
    step: Option<u64>,
    item: String,
    split: Option<String>,
    metadata: Option<&Bound<'_, PyDict>>,
) -> PyResult<SaveHandle> {
    let (engine, source) = source.get()?;
    let (_, target) = target.get()?;
    let mut import = match step {
        Some(step) => Import::step(&engine, &source, &target, step),
        None => Import::standalone(&engine, &source, &target),
    };
    import = import.item(item).options(options.get()).metadata(to_members(metadata, "metadata")?);
    if let Some(separator) = split {
        import = import.split(separator);
    }
    drive(py, || import.start()).map(SaveHandle::new)
}

/// Exports an item as safetensors; returns the files with their sizes in bytes.
#[pyfunction]
#[pyo3(signature = (checkpoint, target, *, item=None, select=None, separator=None, shard_bytes=None, skip_unsupported=false, overwrite=false))]
#[expect(clippy::too_many_arguments, reason = "the options of one export")]
pub(crate) fn export_safetensors(
    py: Python<'_>,
    checkpoint: &Checkpoint,
    target: &Place,
    item: Option<String>,
    select: Option<Vec<String>>,
    separator: Option<String>,
    shard_bytes: Option<u64>,
    skip_unsupported: bool,
    overwrite: bool,
) -> PyResult<Vec<(String, u64)>> {
    let (_, target) = target.get()?;
    let mut export = Export::new(checkpoint.get()?, &target)
        .skip_unsupported(skip_unsupported)
        .overwrite(overwrite);
    if let Some(item) = item {
        export = export.item(item);
    }
    if let Some(patterns) = select {
        export = export.select(Select::new(patterns).map_err(|e| raise(&e))?);
    }
    if let Some(separator) = separator {
        export = export.separator(separator);
    }
    if let Some(bytes) = shard_bytes {
        export = export.shard_bytes(bytes);
    }
    let report = drive(py, || export.write())?;
    Ok(report.files.into_iter().map(|file| (file.place.to_string(), file.bytes)).collect())
}
