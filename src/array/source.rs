//! Where the data of a leaf comes from: memory that was handed over, a copy, or a callback.

use super::{borrow::Loan, element::Element};
use crate::{
    buffer::Buffer,
    chunk::{PlanOptions, Subset, elements},
    dtype::DataType,
    error::{Error, Result},
};
use bytes::Bytes;
use milepost_formats::{index::LeafKind, zarr3::Compressor};
use ndarray::{ArcArray, Dimension};
use std::{fmt, sync::Arc};

/// Fills a requested box of an array that need not be in memory.
///
/// Called on the codec threads, from several at once, once for every chunk.
pub trait Provider: Send + Sync {
    /// Writes the elements of `subset` to `out`: little endian, C order, exactly its size.
    ///
    /// # Errors
    /// Any error fails the save; it carries the leaf and the chunk when it surfaces.
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> Result<()>;
}

impl<F: Fn(&Subset, &mut [u8]) -> Result<()> + Send + Sync> Provider for F {
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        self(subset, out)
    }
}

#[derive(Clone)]
pub(crate) enum Source {
    Memory(Bytes),
    Provider(Arc<dyn Provider>),
    /// Memory of the caller, which a save replaces by one of the others.
    Borrowed(Loan),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "Memory({} bytes)", bytes.len()),
            Self::Provider(_) => f.write_str("Provider"),
            Self::Borrowed(_) => f.write_str("Borrowed"),
        }
    }
}

/// A leaf to save: what it is, its shape, and where its elements come from.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub(crate) kind: LeafKind,
    pub(crate) data_type: DataType,
    pub(crate) shape: Vec<u64>,
    pub(crate) source: Source,
    pub(crate) dimension_names: Option<Vec<Option<String>>>,
    pub(crate) foreign_name: Option<String>,
    pub(crate) layout: LeafLayout,
    /// The boxes of it that this process holds, where others hold the rest.
    pub(crate) held: Option<Vec<Subset>>,
}

/// What one leaf asks for beyond the options of its save.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeafLayout {
    pub(crate) chunk_bytes: Option<u64>,
    pub(crate) chunk_shape: Option<Vec<u64>>,
    pub(crate) shard_shape: Option<Vec<u64>>,
    pub(crate) reshard_axes: Vec<usize>,
    pub(crate) transpose: Option<Vec<usize>>,
    pub(crate) compressor: Option<Compressor>,
}

impl LeafLayout {
    pub(crate) fn refine(&self, options: &mut PlanOptions) {
        if let Some(bytes) = self.chunk_bytes {
            options.chunk_bytes = bytes;
        }
        options.chunk_shape.clone_from(&self.chunk_shape);
        options.shard_shape.clone_from(&self.shard_shape);
        options.reshard_axes.clone_from(&self.reshard_axes);
    }
}

impl Leaf {
    fn new(kind: LeafKind, data_type: DataType, shape: Vec<u64>, source: Source) -> Self {
        let (dimension_names, foreign_name) = (None, None);
        let layout = LeafLayout::default();
        let held = None;
        Self { kind, data_type, shape, source, dimension_names, foreign_name, layout, held }
    }

    /// Names an array over a source that was checked.
    pub(super) fn over(data_type: DataType, shape: Vec<u64>, source: Source) -> Self {
        Self::new(LeafKind::Array, data_type, shape, source)
    }

    /// Hands over raw bytes: little endian, C order. Nothing is copied before it is written.
    ///
    /// # Errors
    /// `Invalid` where the number of bytes is not that of the shape.
    pub fn from_bytes(data_type: DataType, shape: Vec<u64>, bytes: Bytes) -> Result<Self> {
        check_size(data_type, &shape, bytes.len())?;
        Ok(Self::new(LeafKind::Array, data_type, shape, Source::Memory(bytes)))
    }

    /// Hands over a vector in C order. Nothing is copied before it is written.
    ///
    /// # Errors
    /// `Invalid` where the number of elements is not that of the shape.
    pub fn from_vec<T: Element>(values: Vec<T>, shape: &[u64]) -> Result<Self> {
        Self::from_bytes(T::DATA_TYPE, shape.to_vec(), T::into_bytes(values))
    }

    /// Copies a borrowed slice in C order.
    ///
    /// # Errors
    /// `Invalid` where the number of elements is not that of the shape.
    pub fn copy_from_slice<T: Element>(values: &[T], shape: &[u64]) -> Result<Self> {
        let copy = Buffer::from(T::view(values));
        Self::from_bytes(T::DATA_TYPE, shape.to_vec(), copy.into())
    }

    /// Shares an ndarray: without a copy where it is contiguous in C order, else copied.
    ///
    /// # Errors
    /// `Invalid` where the shape has too many elements.
    pub fn from_array<T: Element, D: Dimension + 'static>(array: ArcArray<T, D>) -> Result<Self> {
        struct Owner<T, D: Dimension>(ArcArray<T, D>);
        impl<T: Element, D: Dimension> AsRef<[u8]> for Owner<T, D> {
            fn as_ref(&self) -> &[u8] {
                T::view(self.0.as_slice().unwrap_or_default())
            }
        }
        let shape: Vec<u64> = array.shape().iter().map(|n| *n as u64).collect();
        let bytes = if array.is_standard_layout() {
            Bytes::from_owner(Owner(array))
        } else {
            T::into_bytes(array.iter().copied().collect())
        };
        Self::from_bytes(T::DATA_TYPE, shape, bytes)
    }

    /// Names a callback that fills any box: for arrays larger than memory.
    ///
    /// # Errors
    /// `Invalid` where the shape has too many elements.
    pub fn from_provider(
        data_type: DataType,
        shape: Vec<u64>,
        provider: Arc<dyn Provider>,
    ) -> Result<Self> {
        leaf_bytes(data_type, &shape)?;
        Ok(Self::new(LeafKind::Array, data_type, shape, Source::Provider(provider)))
    }

    fn scalar(kind: LeafKind, data_type: DataType, bytes: Vec<u8>) -> Self {
        Self::new(kind, data_type, Vec::new(), Source::Memory(bytes.into()))
    }

    /// An integer: `int64`, or `uint64` where it does not fit.
    ///
    /// # Errors
    /// `Invalid` where it fits neither.
    pub fn int(value: i128) -> Result<Self> {
        if let Ok(value) = i64::try_from(value) {
            return Ok(Self::scalar(LeafKind::Int, DataType::Int64, value.to_le_bytes().into()));
        }
        let value = u64::try_from(value).map_err(|_| {
            Error::invalid("an integer fits neither int64 nor uint64").with("value", value)
        })?;
        Ok(Self::scalar(LeafKind::Int, DataType::UInt64, value.to_le_bytes().into()))
    }

    /// A float: `float64`.
    #[must_use]
    pub fn float(value: f64) -> Self {
        Self::scalar(LeafKind::Float, DataType::Float64, value.to_le_bytes().into())
    }

    /// A boolean.
    #[must_use]
    pub fn bool(value: bool) -> Self {
        Self::scalar(LeafKind::Bool, DataType::Bool, vec![u8::from(value)])
    }

    /// A complex number: `complex128`.
    #[must_use]
    pub fn complex(re: f64, im: f64) -> Self {
        let bytes = [re.to_le_bytes(), im.to_le_bytes()].concat();
        Self::scalar(LeafKind::Complex, DataType::Complex128, bytes)
    }

    /// Text: a 1-d `uint8` array of its UTF-8, so that every reader opens it.
    #[must_use]
    pub fn text(value: impl Into<String>) -> Self {
        Self::raw(LeafKind::Str, value.into().into_bytes().into())
    }

    /// Bytes: a 1-d `uint8` array.
    #[must_use]
    pub fn bytes(value: impl Into<Bytes>) -> Self {
        Self::raw(LeafKind::Bytes, value.into())
    }

    fn raw(kind: LeafKind, bytes: Bytes) -> Self {
        let shape = vec![bytes.len() as u64];
        Self::new(kind, DataType::UInt8, shape, Source::Memory(bytes))
    }

    /// Marks the leaf as the key data of a typed PRNG key.
    #[must_use]
    pub fn prng_key(mut self, implementation: impl Into<String>) -> Self {
        self.kind = LeafKind::PrngKey { implementation: implementation.into() };
        self
    }

    /// Marks the leaf as one of `kind`, for callers that carry a leaf over from another place.
    #[must_use]
    pub fn with_kind(mut self, kind: LeafKind) -> Self {
        self.kind = kind;
        self
    }

    /// Names the dimensions, for xarray; without names they are `<leaf>_<axis>`.
    ///
    /// # Errors
    /// `Invalid` where their number is not the rank.
    pub fn with_dimension_names(mut self, names: Vec<Option<String>>) -> Result<Self> {
        if names.len() != self.shape.len() {
            return Err(Error::invalid("there is not one dimension name an axis")
                .with("names", names.len())
                .with("rank", self.shape.len()));
        }
        self.dimension_names = Some(names);
        Ok(self)
    }

    /// Keeps the name the leaf had in a foreign file; the index carries it.
    #[must_use]
    pub fn with_foreign_name(mut self, name: impl Into<String>) -> Self {
        self.foreign_name = Some(name.into());
        self
    }

    /// Names the decoded size a chunk should have, in bytes, instead of that of the save's options.
    #[must_use]
    pub fn with_chunk_bytes(mut self, bytes: u64) -> Self {
        self.layout.chunk_bytes = Some(bytes);
        self
    }

    /// Names the shape of a chunk instead of its size in bytes; checked when it is saved.
    #[must_use]
    pub fn with_chunk_shape(mut self, shape: Vec<u64>) -> Self {
        self.layout.chunk_shape = Some(shape);
        self
    }

    /// Names the shape of a shard, a multiple of the chunk shape, which it needs too.
    #[must_use]
    pub fn with_shard_shape(mut self, shape: Vec<u64>) -> Self {
        self.layout.shard_shape = Some(shape);
        self
    }

    /// Names the axes that will be resharded: chunks are cut along these.
    #[must_use]
    pub fn with_reshard_axes(mut self, axes: Vec<usize>) -> Self {
        self.layout.reshard_axes = axes;
        self
    }

    /// Stores the axes of every chunk in another order (Zarr's `transpose` codec).
    ///
    /// # Errors
    /// `Invalid` where it is no order of the axes.
    pub fn with_transpose(mut self, order: Vec<usize>) -> Result<Self> {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.shape.len()) {
            return Err(Error::invalid("a transpose is no order of the axes")
                .with("order", format!("{order:?}"))
                .with("rank", self.shape.len()));
        }
        self.layout.transpose = Some(order);
        Ok(self)
    }

    /// Stores this leaf with another compressor than the rest.
    #[must_use]
    pub fn with_compressor(mut self, compressor: Compressor) -> Self {
        self.layout.compressor = Some(compressor);
        self
    }

    /// Returns the data type.
    #[must_use]
    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// Returns the shape in elements.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Returns the decoded size in bytes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        leaf_bytes(self.data_type, &self.shape).unwrap_or(0)
    }
}

/// Refuses data that has not the size of its shape.
pub(super) fn check_size(data_type: DataType, shape: &[u64], bytes: usize) -> Result<()> {
    let wanted = leaf_bytes(data_type, shape)?;
    if bytes as u64 == wanted {
        return Ok(());
    }
    Err(Error::invalid("the data has not the size of the shape")
        .with("shape", format!("{shape:?}"))
        .with("data_type", data_type)
        .with("bytes", bytes)
        .with("wanted", wanted))
}

/// Returns the decoded size of a leaf, which fits an `isize`.
pub(crate) fn leaf_bytes(data_type: DataType, shape: &[u64]) -> Result<u64> {
    elements(shape)
        .and_then(|n| n.checked_mul(data_type.size_bytes() as u64))
        .filter(|n| i64::try_from(*n).is_ok())
        .ok_or_else(|| {
            Error::invalid("an array is larger than the address space")
                .with("shape", format!("{shape:?}"))
                .with("data_type", data_type)
        })
}
