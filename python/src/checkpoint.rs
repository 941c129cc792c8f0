//! Open checkpoints: the record, indexes, leaves, and what is read of them.

use crate::{
    array::Array,
    engine::Place,
    errors::raise,
    options::unknown,
    save::{progress_dict, record_dict},
    structure::{from_key, to_node, to_tree},
    wait::{Owned, block, detached, drive},
};
use futures::future::join;
use milepost::{
    CastRule, ContainerPolicy, DataType, Found, MatchOptions, MissingPolicy, Progress, Subset,
    TargetLeaf, UnexpectedPolicy, WantedBox,
    formats::index::{Key, LeafKind},
};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};
use std::{path::PathBuf, sync::Arc};

/// Says what is at a place: `"checkpoint"`, `"run"` or `"foreign"`; and the checkpoint.
#[pyfunction]
pub(crate) fn find(py: Python<'_>, place: &Place) -> PyResult<(&'static str, Option<Checkpoint>)> {
    let (engine, place) = place.get()?;
    Ok(match block(py, milepost::find(&engine, &place))? {
        Found::Checkpoint(checkpoint) => ("checkpoint", Some(Checkpoint::new(*checkpoint))),
        Found::Run(_) => ("run", None),
        Found::Foreign(_) => ("foreign", None),
    })
}

/// A committed checkpoint, open for reading.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Checkpoint(Owned<milepost::Checkpoint>);

impl Checkpoint {
    pub(crate) fn get(&self) -> PyResult<&milepost::Checkpoint> {
        self.0.get()
    }

    pub(crate) fn new(checkpoint: milepost::Checkpoint) -> Self {
        Self(Owned::new(checkpoint))
    }
}

pub(crate) fn cast_rule(word: &str) -> PyResult<CastRule> {
    match word {
        "same_kind" => Ok(CastRule::SameKind),
        "unsafe" => Ok(CastRule::Unsafe),
        _ => Err(unknown("cast", word, "\"same_kind\" or \"unsafe\"")),
    }
}

#[pymethods]
impl Checkpoint {
    /// Opens a checkpoint, or the newest step of a run.
    #[staticmethod]
    fn open(py: Python<'_>, place: &Place) -> PyResult<Self> {
        let (engine, place) = place.get()?;
        block(py, milepost::open(&engine, &place)).map(Self::new)
    }

    /// Opens a step of a run.
    #[staticmethod]
    fn step(py: Python<'_>, run: &Place, step: u64) -> PyResult<Self> {
        let (engine, place) = run.get()?;
        let opened = async {
            let run = match milepost::Run::open(&engine, &place).await {
                Err(e) if e.kind() == milepost::ErrorKind::NotFound => {
                    milepost::Run::new(&engine, &place)
                }
                run => run?,
            };
            run.step(step).await
        };
        block(py, opened).map(Self::new)
    }

    /// Where it is.
    #[getter]
    fn url(&self) -> PyResult<String> {
        Ok(self.0.get()?.place().to_string())
    }

    /// The commit record.
    fn record<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        record_dict(py, self.0.get()?.record())
    }

    /// The name of the item that is meant where none is named.
    fn default_item(&self) -> PyResult<String> {
        let item = self.0.get()?.default_item().map_err(|e| raise(&e))?;
        Ok(item.name.clone())
    }

    /// Reads the index of an item: one request.
    fn index(&self, py: Python<'_>, item: String) -> PyResult<ItemIndex> {
        let progress = Progress::default();
        let checkpoint = self.0.get()?.clone().with_progress(progress.clone());
        let index = block(py, async move { checkpoint.item_index(&item).await })?;
        Ok(ItemIndex { index: Owned::new(Arc::new(index)), progress })
    }

    /// Opens a leaf by the text form of its key path, without the index.
    fn leaf(&self, py: Python<'_>, item: String, path: String) -> PyResult<LeafHandle> {
        let checkpoint = self.0.get()?.clone();
        let of = checkpoint.clone();
        // Side by side: a leaf of a checkpoint that replaced this one is not shown, and takes no longer to open.
        let leaf = block(py, async move {
            let (leaf, current) = join(of.leaf(&item, &path), of.check_current()).await;
            let leaf = leaf?;
            current.map(|()| leaf)
        })?;
        Ok(LeafHandle(Owned::new((Arc::new(leaf), checkpoint))))
    }

    /// Restores a JSON item.
    fn json<'py>(&self, py: Python<'py>, item: String) -> PyResult<Bound<'py, PyAny>> {
        let checkpoint = self.0.get()?.clone();
        let value = block(py, async move { checkpoint.restore_json(&item).await })?;
        crate::json::to_python(py, &value)
    }

    /// Restores a bytes item.
    fn bytes<'py>(
        &self,
        py: Python<'py>,
        item: String,
    ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
        let checkpoint = self.0.get()?.clone();
        let bytes = block(py, async move { checkpoint.restore_bytes(&item).await })?;
        Ok(pyo3::types::PyBytes::new(py, &bytes))
    }

    /// The files of an opaque item and their sizes in bytes.
    fn files(&self, py: Python<'_>, item: String) -> PyResult<Vec<(String, u64)>> {
        let checkpoint = self.0.get()?.clone();
        block(py, async move { checkpoint.opaque_files(&item).await })
    }

    /// Restores the files of an opaque item into a directory.
    fn extract(
        &self,
        py: Python<'_>,
        item: String,
        directory: PathBuf,
        overwrite: bool,
    ) -> PyResult<()> {
        let checkpoint = self.0.get()?.clone();
        let restore =
            move || async move { checkpoint.restore_files(&item, &directory, overwrite).await };
        drive(py, restore).map(drop)
    }

    /// Verifies every stored byte: `{"good", "objects", "bytes", "findings": [{…}]}`.
    fn verify<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let checkpoint = self.0.get()?.clone();
        let verify = move || async move {
            let report = checkpoint.verify().await?;
            if !report.is_good() {
                // What differs is no damage where it is of another checkpoint.
                checkpoint.check_current().await?;
            }
            Ok(report)
        };
        let report = drive(py, verify)?;
        let dict = PyDict::new(py);
        dict.set_item("good", report.is_good())?;
        dict.set_item("objects", report.objects)?;
        dict.set_item("bytes", report.bytes)?;
        let findings = PyList::empty(py);
        for found in &report.findings {
            let finding = PyDict::new(py);
            let outcome = match found.outcome {
                milepost::Outcome::Rewritten => "rewritten",
                milepost::Outcome::Stray => "stray",
                milepost::Outcome::Corrupt => "corrupt",
                milepost::Outcome::NotVerified => "not_verified",
            };
            finding.set_item("outcome", outcome)?;
            finding.set_item("message", &found.message)?;
            finding.set_item("object", &found.object)?;
            finding.set_item("item", found.item.as_deref())?;
            finding.set_item("leaf", found.leaf.as_deref())?;
            finding.set_item("chunk", found.chunk.as_deref())?;
            finding.set_item("range", found.range)?;
            findings.append(finding)?;
        }
        dict.set_item("findings", findings)?;
        Ok(dict)
    }
}

/// The word for a kind of leaf.
fn kind_word(kind: &LeafKind) -> &'static str {
    match kind {
        LeafKind::Array => "array",
        LeafKind::Int => "int",
        LeafKind::Float => "float",
        LeafKind::Bool => "bool",
        LeafKind::Complex => "complex",
        LeafKind::Str => "str",
        LeafKind::Bytes => "bytes",
        LeafKind::PrngKey { .. } => "prng_key",
    }
}

fn implementation(kind: &LeafKind) -> Option<&str> {
    match kind {
        LeafKind::PrngKey { implementation } => Some(implementation),
        _ => None,
    }
}

fn kind_of(word: &str, implementation: Option<String>) -> PyResult<LeafKind> {
    Ok(match word {
        "array" => LeafKind::Array,
        "int" => LeafKind::Int,
        "float" => LeafKind::Float,
        "bool" => LeafKind::Bool,
        "complex" => LeafKind::Complex,
        "str" => LeafKind::Str,
        "bytes" => LeafKind::Bytes,
        "prng_key" => LeafKind::PrngKey { implementation: implementation.unwrap_or_default() },
        _ => return Err(PyValueError::new_err(format!("no such kind of leaf: {word}"))),
    })
}

/// The index of an item: its structure and leaves.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct ItemIndex {
    index: Owned<Arc<milepost::ItemIndex>>,
    progress: Progress,
}

/// A target leaf: kind, implementation, data type and shape; `None` is as stored.
type Target = (Option<String>, Option<String>, Option<String>, Option<Vec<u64>>);
/// A leaf by position, the data type to cast to, and the box of it.
type Request = (usize, Option<String>, Option<(Vec<u64>, Vec<u64>)>);

fn data_type(name: Option<&str>) -> PyResult<Option<DataType>> {
    name.map(crate::leaf::data_type).transpose()
}

fn target((kind, implementation, data_type, shape): Target) -> PyResult<TargetLeaf> {
    let kind = kind.map(|word| kind_of(&word, implementation)).transpose()?;
    Ok(TargetLeaf { kind, data_type: self::data_type(data_type.as_deref())?, shape })
}

#[pymethods]
impl ItemIndex {
    /// The containers as saved, with leaf numbers.
    fn structure<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let tree = self.index.get()?.specs();
        let mut next = 0..;
        to_node(py, &tree, &mut |_| next.next().unwrap_or_default())
    }

    /// The leaves in order: text path, keys, kind, implementation, data type, shape, chunk and shard shape, stored bytes.
    fn leaves<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let index = self.index.get()?;
        let specs = index.specs();
        let keys: Vec<Vec<Key>> = specs.leaves().map(|(path, _)| path.keys().to_vec()).collect();
        let list = PyList::empty(py);
        for (leaf, keys) in index.leaves().iter().zip(keys) {
            let keys = keys.iter().map(|key| from_key(py, key)).collect::<PyResult<Vec<_>>>()?;
            let stored: u64 = leaf.objects.iter().map(|object| object.bytes).sum();
            list.append((
                &leaf.path,
                PyTuple::new(py, keys)?,
                kind_word(&leaf.kind),
                implementation(&leaf.kind),
                leaf.data_type.to_string(),
                PyTuple::new(py, &leaf.shape)?,
                PyTuple::new(py, &leaf.chunk_shape)?,
                leaf.shard_shape.as_ref().map(|shape| PyTuple::new(py, shape)).transpose()?,
                stored,
            ))?;
        }
        Ok(list)
    }

    /// Pairs the leaves of a target with stored ones; raises `TreeMismatch` with all mismatches.
    #[pyo3(signature = (structure, targets, *, missing, unexpected, containers, cast))]
    #[expect(clippy::too_many_arguments, reason = "the options of one question")]
    fn pair(
        &self,
        py: Python<'_>,
        structure: &Bound<'_, PyAny>,
        targets: Vec<Target>,
        missing: &str,
        unexpected: &str,
        containers: &str,
        cast: &str,
    ) -> PyResult<Vec<(usize, usize)>> {
        let targets = targets.into_iter().map(target).collect::<PyResult<Vec<_>>>()?;
        let tree = to_tree(structure, &targets)?;
        let options = MatchOptions {
            missing: match missing {
                "error" => MissingPolicy::Error,
                "skip" => MissingPolicy::Skip,
                word => return Err(unknown("missing", word, "\"error\" or \"skip\"")),
            },
            unexpected: match unexpected {
                "error" => UnexpectedPolicy::Error,
                "ignore" => UnexpectedPolicy::Ignore,
                word => return Err(unknown("unexpected", word, "\"error\" or \"ignore\"")),
            },
            containers: match containers {
                "same" => ContainerPolicy::Same,
                "by_name" => ContainerPolicy::ByName,
                word => return Err(unknown("containers", word, "\"same\" or \"by_name\"")),
            },
        };
        let rule = cast_rule(cast)?;
        let index = self.index.get()?;
        detached(py, || index.pair(&tree, options, rule)).map_err(|e| raise(&e))
    }

    /// Returns the positions of the selected leaves and the structure that holds them.
    fn select<'py>(&self, py: Python<'py>, patterns: Vec<String>) -> PyResult<Bound<'py, PyAny>> {
        let select = milepost::Select::new(patterns).map_err(|e| raise(&e))?;
        let tree = self.index.get()?.selected(&select).map_err(|e| raise(&e))?;
        to_node(py, &tree, &mut |position| *position)
    }

    /// Reads whole leaves and boxes of leaves as one plan.
    fn read(&self, py: Python<'_>, requests: Vec<Request>, cast: &str) -> PyResult<Vec<Array>> {
        let rule = cast_rule(cast)?;
        let wanted = requests.into_iter().map(|(position, data_type, part)| {
            let part = part.map(|(start, shape)| Subset::new(start, shape)).transpose();
            Ok(WantedBox {
                position,
                part: part.map_err(|e| raise(&e))?,
                data_type: self::data_type(data_type.as_deref())?,
            })
        });
        let wanted = wanted.collect::<PyResult<Vec<_>>>()?;
        let index = Arc::clone(self.index.get()?);
        let read = block(py, async move { index.read_boxes(&wanted, rule).await })?;
        Ok(read.into_iter().map(Array::new).collect())
    }

    /// The counters of what is read through this index.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let snapshot = detached(py, || self.progress.snapshot());
        progress_dict(py, &snapshot)
    }

    /// What a foreign file carried in its header.
    fn foreign_metadata(&self) -> PyResult<Vec<(String, String)>> {
        Ok(self.index.get()?.foreign_metadata().to_vec())
    }
}

/// One leaf, open for reading boxes of it.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct LeafHandle(Owned<(Arc<milepost::LeafHandle>, milepost::Checkpoint)>);

#[pymethods]
impl LeafHandle {
    /// The text form of its key path.
    #[getter]
    fn path(&self) -> PyResult<String> {
        Ok(self.0.get()?.0.path().to_owned())
    }

    /// Elements an axis.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.get()?.0.shape())
    }

    /// What it was in the language of who saved it, and the implementation of a PRNG key.
    #[getter]
    fn kind(&self) -> PyResult<(&'static str, Option<String>)> {
        let kind = self.0.get()?.0.kind();
        Ok((kind_word(kind), implementation(kind).map(str::to_owned)))
    }

    /// The data type's name.
    #[getter]
    fn data_type(&self) -> PyResult<Option<String>> {
        Ok(self.0.get()?.0.data_type().map(|data_type| data_type.to_string()))
    }

    /// Reads a box: only the chunks that hold an element of it.
    fn read(&self, py: Python<'_>, start: Vec<u64>, shape: Vec<u64>) -> PyResult<Array> {
        let part = Subset::new(start, shape).map_err(|e| raise(&e))?;
        let (leaf, checkpoint) = self.0.get()?.clone();
        // Views live long: what was read may be of a checkpoint that replaced this one since.
        let read = async move {
            let read = leaf.read_box(&part).await?;
            checkpoint.check_current().await.map(|()| read)
        };
        block(py, read).map(Array::new)
    }
}
