//! What Python saves: leaves over its buffers, and items of them.

use crate::{
    errors::raise,
    json::to_value,
    options::invalid,
    structure::to_tree,
    wait::{attached, detached},
};
use bytes::Bytes;
use milepost::{Borrowed, DataType, Subset, Tree, formats::zarr3::Compressor};
use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyBufferError, PyValueError},
    prelude::*,
    types::{PyByteArray, PyBytes, PyTuple},
};
use serde_json::Value;
use std::{mem::ManuallyDrop, path::PathBuf, str::FromStr, sync::Arc};

/// A buffer of Python that a save holds on to: nobody writes to it meanwhile. It may be dropped where Python is gone.
struct Held(ManuallyDrop<PyBuffer<u8>>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        bytes_of(&self.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Where the interpreter is gone, its buffers are too.
        let _ = attached(|_| {
            #[expect(unsafe_code, reason = "a buffer is released early, while Python is there")]
            // SAFETY: `drop` runs once and nothing reads the buffer afterwards.
            unsafe {
                ManuallyDrop::drop(&mut self.0);
            }
        });
    }
}

/// Returns the bytes of a C-contiguous buffer.
fn bytes_of(buffer: &PyBuffer<u8>) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    #[expect(unsafe_code, reason = "a Python buffer is read without a copy")]
    // SAFETY: contiguous (checked in `contiguous`), alive as long as the view, and not written to while it is saved:
    // the package hands over immutable arrays only, or what the caller gave away; all else is lent for the
    // duration of a call that copies it.
    unsafe {
        std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes())
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<u8>> {
    let buffer = PyBuffer::<u8>::get(object)?;
    if buffer.is_c_contiguous() {
        return Ok(buffer);
    }
    Err(PyBufferError::new_err("a buffer is not contiguous in C order"))
}

fn held(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    Ok(Bytes::from_owner(Held(ManuallyDrop::new(contiguous(object)?))))
}

enum Source {
    /// Held by the save until it is written.
    Ready(Box<milepost::Leaf>),
    /// Copied before the save returns.
    Lent { buffer: Arc<Held>, data_type: DataType, shape: Vec<u64> },
}

#[derive(Clone, Default)]
struct Layout {
    chunk_bytes: Option<u64>,
    chunk_shape: Option<Vec<u64>>,
    reshard_axes: Option<Vec<usize>>,
    compressor: Option<Compressor>,
    implementation: Option<String>,
}

/// A leaf as the doors hold it.
pub(crate) struct LeafData {
    source: Source,
    layout: Layout,
}

impl LeafData {
    /// Makes the leaf of one save.
    fn leaf<'a>(&'a self, borrowed: &mut Borrowed<'a>) -> milepost::Result<milepost::Leaf> {
        let mut leaf = match &self.source {
            Source::Ready(leaf) => milepost::Leaf::clone(leaf),
            Source::Lent { buffer, data_type, shape } => {
                borrowed.leaf_of_bytes(*data_type, shape.clone(), bytes_of(&buffer.0))?
            }
        };
        let layout = self.layout.clone();
        if let Some(implementation) = layout.implementation {
            leaf = leaf.prng_key(implementation);
        }
        if let Some(bytes) = layout.chunk_bytes {
            leaf = leaf.with_chunk_bytes(bytes);
        }
        if let Some(shape) = layout.chunk_shape {
            leaf = leaf.with_chunk_shape(shape);
        }
        if let Some(axes) = layout.reshard_axes {
            leaf = leaf.with_reshard_axes(axes);
        }
        if let Some(compressor) = layout.compressor {
            leaf = leaf.with_compressor(compressor);
        }
        Ok(leaf)
    }
}

/// A leaf to save: an array over a buffer, or a scalar, text or bytes.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Leaf(Arc<LeafData>);

impl Leaf {
    fn ready(leaf: milepost::Leaf) -> Self {
        Self(Arc::new(LeafData {
            source: Source::Ready(Box::new(leaf)),
            layout: Layout::default(),
        }))
    }
}

pub(crate) fn data_type(name: &str) -> PyResult<DataType> {
    let known = "give a data type of Zarr: float32, bfloat16, …";
    DataType::from_name(name)
        .ok_or_else(|| invalid(format!("there is no data type {name:?}"), known.to_owned()))
}

fn made(leaf: milepost::Result<milepost::Leaf>) -> PyResult<milepost::Leaf> {
    leaf.map_err(|e| raise(&e))
}

#[pymethods]
impl Leaf {
    /// An array over a buffer of bytes; `hold`: it is not written to any more, so it need not be copied.
    #[staticmethod]
    fn array(
        buffer: &Bound<'_, PyAny>,
        data_type: &str,
        shape: Vec<u64>,
        hold: bool,
    ) -> PyResult<Self> {
        let data_type = self::data_type(data_type)?;
        if hold {
            return made(milepost::Leaf::from_bytes(data_type, shape, held(buffer)?))
                .map(Self::ready);
        }
        let buffer = Arc::new(Held(ManuallyDrop::new(contiguous(buffer)?)));
        let source = Source::Lent { buffer, data_type, shape };
        Ok(Self(Arc::new(LeafData { source, layout: Layout::default() })))
    }

    /// An array in several blocks, each with its first index and its shape; all of them are held.
    #[staticmethod]
    fn boxes(
        data_type: &str,
        shape: Vec<u64>,
        boxes: Vec<(Vec<u64>, Vec<u64>, Bound<'_, PyAny>)>,
    ) -> PyResult<Self> {
        let boxes = blocks(boxes)?;
        made(milepost::Leaf::from_boxes(self::data_type(data_type)?, shape, boxes)).map(Self::ready)
    }

    /// An array that `fill(start, shape)` gives in parts, as buffers; called from several threads.
    #[staticmethod]
    fn provider(data_type: &str, shape: Vec<u64>, fill: Py<PyAny>) -> PyResult<Self> {
        let provider = Arc::new(Provider { fill });
        made(milepost::Leaf::from_provider(self::data_type(data_type)?, shape, provider))
            .map(Self::ready)
    }

    /// The blocks that this process holds of an array which several save together, as `boxes`; there may be none.
    #[staticmethod]
    fn held_boxes(
        data_type: &str,
        shape: Vec<u64>,
        boxes: Vec<(Vec<u64>, Vec<u64>, Bound<'_, PyAny>)>,
    ) -> PyResult<Self> {
        let boxes = blocks(boxes)?;
        made(milepost::Leaf::from_held_boxes(self::data_type(data_type)?, shape, boxes))
            .map(Self::ready)
    }

    /// As `held_boxes`, given in parts by `fill(start, shape)` as those of `provider` are.
    #[staticmethod]
    fn held_provider(
        data_type: &str,
        shape: Vec<u64>,
        boxes: Vec<(Vec<u64>, Vec<u64>)>,
        fill: Py<PyAny>,
    ) -> PyResult<Self> {
        let subset = |(start, shape)| Subset::new(start, shape).map_err(|e| raise(&e));
        let held = boxes.into_iter().map(subset).collect::<PyResult<Vec<_>>>()?;
        let provider = Arc::new(Provider { fill });
        made(milepost::Leaf::from_held_provider(self::data_type(data_type)?, shape, held, provider))
            .map(Self::ready)
    }

    /// An integer of at most 64 bits.
    #[staticmethod]
    fn int(value: i128) -> PyResult<Self> {
        made(milepost::Leaf::int(value)).map(Self::ready)
    }

    /// A float.
    #[staticmethod]
    fn float(value: f64) -> Self {
        Self::ready(milepost::Leaf::float(value))
    }

    /// A boolean.
    #[staticmethod]
    fn bool(value: bool) -> Self {
        Self::ready(milepost::Leaf::bool(value))
    }

    /// A complex number.
    #[staticmethod]
    fn complex(re: f64, im: f64) -> Self {
        Self::ready(milepost::Leaf::complex(re, im))
    }

    /// Text.
    #[staticmethod]
    fn text(value: String) -> Self {
        Self::ready(milepost::Leaf::text(value))
    }

    /// Bytes; a `bytes` object is held, any other buffer copied now.
    #[staticmethod]
    fn bytes(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        bytes(value).map(|bytes| Self::ready(milepost::Leaf::bytes(bytes)))
    }

    /// The same leaf with what it asks for beyond the options of its save.
    #[pyo3(signature = (*, chunk_bytes=None, chunk_shape=None, reshard_axes=None, compression=None, implementation=None))]
    fn with_layout(
        &self,
        chunk_bytes: Option<u64>,
        chunk_shape: Option<Vec<u64>>,
        reshard_axes: Option<Vec<usize>>,
        compression: Option<&str>,
        implementation: Option<String>,
    ) -> PyResult<Self> {
        let compressor = compression.map(compressor).transpose()?;
        let old = self.0.layout.clone();
        let layout = Layout {
            chunk_bytes: chunk_bytes.or(old.chunk_bytes),
            chunk_shape: chunk_shape.or(old.chunk_shape),
            reshard_axes: reshard_axes.or(old.reshard_axes),
            compressor: compressor.or(old.compressor),
            implementation: implementation.or(old.implementation),
        };
        let source = match &self.0.source {
            Source::Ready(leaf) => Source::Ready(leaf.clone()),
            Source::Lent { buffer, data_type, shape } => Source::Lent {
                buffer: Arc::clone(buffer),
                data_type: *data_type,
                shape: shape.clone(),
            },
        };
        Ok(Self(Arc::new(LeafData { source, layout })))
    }
}

/// Holds blocks of an array, each with its first index and its shape.
fn blocks(boxes: Vec<(Vec<u64>, Vec<u64>, Bound<'_, PyAny>)>) -> PyResult<Vec<(Subset, Bytes)>> {
    let block = |(start, shape, buffer): (_, _, Bound<'_, PyAny>)| {
        let place = Subset::new(start, shape).map_err(|e| raise(&e))?;
        Ok((place, held(&buffer)?))
    };
    boxes.into_iter().map(block).collect()
}

pub(crate) fn compressor(text: &str) -> PyResult<Compressor> {
    let known = "give none, zstd[:LEVEL], gzip[:LEVEL] or blosc:NAME:LEVEL:SHUFFLE";
    Compressor::from_str(text)
        .map_err(|e| invalid(format!("compression={text:?}: {e}"), known.to_owned()))
}

fn bytes(value: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if value.is_instance_of::<PyBytes>() {
        return held(value);
    }
    if let Ok(array) = value.cast::<PyByteArray>() {
        return Ok(array.to_vec().into());
    }
    Ok(Bytes::copy_from_slice(bytes_of(&contiguous(value)?)))
}

/// Gives the parts of an array that Python makes when they are written.
struct Provider {
    fill: Py<PyAny>,
}

impl milepost::Provider for Provider {
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> milepost::Result<()> {
        let filled = attached(|py| -> PyResult<()> {
            let start = PyTuple::new(py, subset.start())?;
            let shape = PyTuple::new(py, subset.shape())?;
            let part = contiguous(&self.fill.bind(py).call1((start, shape))?)?;
            let bytes = bytes_of(&part);
            if bytes.len() != out.len() {
                let (have, want) = (bytes.len(), out.len());
                return Err(PyValueError::new_err(format!("{have} bytes came, not {want}")));
            }
            out.copy_from_slice(bytes);
            Ok(())
        });
        let failed = |text: String| {
            milepost::Error::new(
                milepost::ErrorKind::Invalid,
                format!("an array gave no data: {text}"),
            )
        };
        match filled {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(failed(error.to_string())),
            None => Err(failed("the interpreter has ended".to_owned())),
        }
    }
}

enum Content {
    Tree(Tree<Arc<LeafData>>),
    Array(Arc<LeafData>),
    Json(Value),
    Bytes(Bytes),
    Files(milepost::Opaque),
}

/// A named part of a checkpoint, to save.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Item(Arc<Content>);

/// An item that has left Python, for a save on another thread.
pub(crate) struct ItemData(Arc<Content>);

impl Item {
    pub(crate) fn data(&self) -> ItemData {
        ItemData(Arc::clone(&self.0))
    }
}

impl ItemData {
    /// Makes the item of one save.
    pub(crate) fn item<'a>(
        &'a self,
        borrowed: &mut Borrowed<'a>,
    ) -> milepost::Result<milepost::Item> {
        Ok(match &*self.0 {
            Content::Tree(tree) => {
                milepost::Item::Tree(tree.as_ref().try_map(|_, leaf| leaf.leaf(borrowed))?)
            }
            Content::Array(leaf) => milepost::Item::Array(leaf.leaf(borrowed)?),
            Content::Json(value) => milepost::Item::Json(value.clone()),
            Content::Bytes(bytes) => milepost::Item::Bytes(bytes.clone()),
            Content::Files(files) => milepost::Item::Opaque(files.clone()),
        })
    }
}

#[pymethods]
impl Item {
    /// A pytree: a structure with leaf numbers, and the leaves.
    #[staticmethod]
    fn tree(structure: &Bound<'_, PyAny>, leaves: Vec<PyRef<'_, Leaf>>) -> PyResult<Self> {
        let leaves: Vec<_> = leaves.iter().map(|leaf| Arc::clone(&leaf.0)).collect();
        Ok(Self(Arc::new(Content::Tree(to_tree(structure, &leaves)?))))
    }

    /// A single array.
    #[staticmethod]
    fn array(leaf: &Leaf) -> Self {
        Self(Arc::new(Content::Array(Arc::clone(&leaf.0))))
    }

    /// A JSON value.
    #[staticmethod]
    fn json(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(Arc::new(Content::Json(to_value(value, "the JSON item")?))))
    }

    /// Bytes.
    #[staticmethod]
    fn bytes(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(Arc::new(Content::Bytes(bytes(value)?))))
    }

    /// A file, or the files below a directory.
    #[staticmethod]
    fn files(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let files = detached(py, || milepost::Opaque::from_path(path)).map_err(|e| raise(&e))?;
        Ok(Self(Arc::new(Content::Files(files))))
    }
}
