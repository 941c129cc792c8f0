//! Arrays of other writers: any document that zarrs understands, decoded a chunk at a time.
//!
//! zarrs makes sense of the document: data type, fill value, grid, key encoding, codecs, Zarr v2 too. It does no I/O
//! here and starts no thread: the caller fetches the stored chunk and hands its bytes in.
//!
//! What zarrs trusts, hostile files exploit; so this room stands between: compressors are our own bounded ones
//! ([`bounded`]), grids are expanded by us before zarrs would ([`grid`]), a chunk is at most
//! [`CHUNK_BYTES_MAX`], and a panic in zarrs is caught and becomes an error.
//!
//! TensorStore's `float8_e4m3fn` is unknown to zarrs. Its elements are single bytes, so the document is given to zarrs
//! with `uint8` in its place; nothing is registered in zarrs' process-wide tables.
//!
//! **Invariant:** reading only; nothing here encodes.

mod bounded;
mod grid;

use crate::{
    chunk::{Grid, elements},
    codec::minifloat,
    dtype::DataType,
    error::{Error, Result},
};
use serde_json::Value;
use std::{
    borrow::Cow,
    num::NonZeroU64,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};
use zarrs::{
    array::{
        Array, ArrayMetadata, ArrayMetadataV2, ArrayMetadataV3, ArrayToBytesCodecTraits,
        CodecChain, CodecError, CodecOptions,
    },
    convert::array_metadata_v2_to_v3,
};

/// The largest chunk that is decoded: 8 GiB. Whole arrays are stored as one chunk, but not larger ones.
pub(super) const CHUNK_BYTES_MAX: u64 = 8 << 30;

/// The data type that TensorStore has and zarrs has not.
const E4M3FN: &str = "float8_e4m3fn";

/// An array that zarrs decodes.
pub(crate) struct ForeignArray {
    array: Array<()>,
    chain: CodecChain,
    grid: Arc<Grid>,
    data_type_name: String,
    item_bytes: usize,
}

impl std::fmt::Debug for ForeignArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ForeignArray({} {:?})", self.data_type_name, self.grid.shape())
    }
}

impl ForeignArray {
    /// Understands an array document: a Zarr v3 `zarr.json` or a Zarr v2 `.zarray`.
    ///
    /// # Errors
    /// `Corrupt` where the document is none, `Unsupported` for a data type without a fixed size, an unknown
    /// codec, grid or extension.
    pub(crate) fn new(document: &Value) -> Result<Self> {
        let (metadata, data_type_name) = understand(document)?;
        let grid_document = serde_json::to_value(&metadata.chunk_grid)
            .map_err(|e| malformed("the chunk grid is no JSON").because(e))?;
        let grid = Grid::from_axes(grid::axes(&grid_document, &metadata.shape)?)
            .map_err(|e| Error::unsupported("an array larger than this build counts").because(e))?;
        if !metadata.storage_transformers.is_empty() {
            return Err(Error::unsupported("storage transformers are not read"));
        }
        for (name, field) in &metadata.additional_fields {
            if field.must_understand() {
                return Err(
                    Error::unsupported("an unknown member must be understood").with("member", name)
                );
            }
        }
        let rank = metadata.shape.len();
        let (array, chain) = guarded("zarrs fails on the array document", || {
            let chain = bounded::chain(&metadata.codecs, Some(rank))?;
            let metadata = ArrayMetadata::V3(metadata);
            let array = Array::new_with_metadata(Arc::new(()), "/", metadata).map_err(|e| {
                Error::unsupported("zarrs does not read this array").because(e.to_string())
            })?;
            Ok((array, chain))
        })?;
        let fixed = array.data_type().fixed_size().filter(|n| *n > 0);
        let (Some(item_bytes), false) = (fixed, array.data_type().is_optional()) else {
            return Err(Error::unsupported("elements of this data type have no fixed size")
                .with("data_type", data_type_name));
        };
        Ok(Self { array, chain, grid: Arc::new(grid), data_type_name, item_bytes })
    }

    /// Returns the size of a decoded element in bytes.
    pub(crate) fn item_bytes(&self) -> usize {
        self.item_bytes
    }

    /// Returns the Zarr v3 name of the data type.
    #[cfg(test)]
    pub(crate) fn data_type_name(&self) -> &str {
        &self.data_type_name
    }

    /// Returns the data type, where it is one of ours.
    pub(crate) fn data_type(&self) -> Option<DataType> {
        DataType::from_name(&self.data_type_name)
    }

    /// Returns the division into stored chunks; shards count as chunks here.
    pub(crate) fn grid(&self) -> &Arc<Grid> {
        &self.grid
    }

    /// Returns the number of stored chunks on each axis.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> &[u64] {
        self.grid.counts()
    }

    /// Returns the key of a stored chunk, relative to the array.
    ///
    /// # Panics
    /// Where the index is outside the grid.
    pub(crate) fn chunk_key(&self, index: &[u64]) -> String {
        let _inside = self.grid.linear(index);
        self.array.chunk_key(index).as_str().to_owned()
    }

    /// Returns the elements of a stored chunk that exist, cut by the end of the array.
    ///
    /// # Panics
    /// Where the index is outside the grid.
    #[cfg(test)]
    pub(crate) fn chunk_box(&self, index: &[u64]) -> crate::chunk::Subset {
        self.grid.chunk_box(index)
    }

    /// Returns the shape that a stored chunk decodes to, beyond the end of the array too.
    ///
    /// # Errors
    /// `Unsupported` where a chunk is larger than 8 GiB.
    pub(crate) fn chunk_shape(&self, index: &[u64]) -> Result<Vec<u64>> {
        Ok(self.decoded_shape(index)?.into_iter().map(NonZeroU64::get).collect())
    }

    fn decoded_shape(&self, index: &[u64]) -> Result<Vec<NonZeroU64>> {
        let _inside = self.grid.linear(index);
        let shape = guarded("zarrs fails on the chunk grid", || {
            let shape = self.array.chunk_grid().chunk_shape(index).ok().flatten();
            shape.ok_or_else(|| malformed("the chunk grid has no such chunk"))
        })?;
        let lengths: Vec<u64> = shape.iter().map(|n| n.get()).collect();
        let bytes = elements(&lengths).and_then(|n| n.checked_mul(self.item_bytes as u64));
        if bytes.is_none_or(|bytes| bytes > CHUNK_BYTES_MAX) {
            return Err(Error::unsupported("a chunk is larger than this build decodes")
                .with("chunk_shape", format!("{lengths:?}"))
                .with("bytes_max", CHUNK_BYTES_MAX));
        }
        Ok(shape)
    }

    /// Decodes a stored chunk to all its elements, in C order and little endian.
    ///
    /// It runs on the calling thread alone; what it takes beside its result is at most the sizes between its
    /// codecs.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not what a writer wrote, `Unsupported` where the chunk is larger than
    /// 8 GiB or zarrs lacks a codec for the data type.
    ///
    /// # Panics
    /// Where the index is outside the grid.
    pub(crate) fn decode(&self, index: &[u64], encoded: &[u8]) -> Result<Vec<u8>> {
        let shape = self.decoded_shape(index)?;
        let options =
            CodecOptions::default().with_concurrent_target(1).with_validate_checksums(true);
        let decoded = guarded("zarrs fails on the chunk", || {
            let (data_type, fill) = (self.array.data_type(), self.array.fill_value());
            self.chain
                .decode(Cow::Borrowed(encoded), &shape, data_type, fill, &options)
                .and_then(|bytes| Ok(bytes.into_fixed()?.into_owned()))
                .map_err(codec_error)
        })?;
        let count = elements(&self.chunk_shape(index)?).unwrap_or(0);
        if decoded.len() as u64 != count * self.item_bytes as u64 {
            return Err(Error::corrupt("the chunk decodes to a wrong size")
                .with("expected", count * self.item_bytes as u64)
                .with("found", decoded.len()));
        }
        Ok(decoded)
    }

    /// Returns the bytes of the element that stands for missing chunks.
    pub(crate) fn fill_value(&self) -> &[u8] {
        self.array.fill_value().as_ne_bytes()
    }

    /// Returns a missing chunk: the fill value, as often as the chunk has elements.
    ///
    /// # Errors
    /// As [`ForeignArray::chunk_shape`].
    ///
    /// # Panics
    /// Where the index is outside the grid.
    #[cfg(test)]
    pub(crate) fn fill(&self, index: &[u64]) -> Result<Vec<u8>> {
        let count = elements(&self.chunk_shape(index)?).and_then(|n| usize::try_from(n).ok());
        let count = count.ok_or_else(|| Error::unsupported("a chunk is larger than memory"))?;
        let fill = self.fill_value();
        // Zeros cost no memory until they are touched.
        let zero = fill.iter().all(|byte| *byte == 0);
        Ok(if zero { vec![0; count * fill.len()] } else { fill.repeat(count) })
    }
}

fn malformed(message: &str) -> Error {
    Error::corrupt(message.to_owned())
}

/// Reads a document of either version as one of version 3, with the name of its data type.
fn understand(document: &Value) -> Result<(ArrayMetadataV3, String)> {
    let no_array = |e| malformed("the document is no Zarr array").because(e);
    if document.get("zarr_format").and_then(Value::as_u64) == Some(2) {
        let v2: ArrayMetadataV2 = serde_json::from_value(document.clone()).map_err(no_array)?;
        let v3 = guarded("zarrs fails on the array document", || {
            array_metadata_v2_to_v3(&v2).map_err(|e| {
                Error::unsupported("zarrs does not read this array").because(e.to_string())
            })
        })?;
        let name = v3.data_type.name().to_owned();
        return Ok((v3, name));
    }
    let type_name = |v: &Value| v.as_str().or_else(|| v.get("name")?.as_str()).map(str::to_owned);
    let mut document = Cow::Borrowed(document);
    if document.get("data_type").and_then(type_name).as_deref() == Some(E4M3FN) {
        let code = document.get("fill_value").and_then(e4m3fn);
        let code = code.ok_or_else(|| malformed("the fill value is no float8_e4m3fn"))?;
        let document = document.to_mut();
        document["data_type"] = "uint8".into();
        document["fill_value"] = code.into();
        let v3: ArrayMetadataV3 = serde_json::from_value(document.clone()).map_err(no_array)?;
        return Ok((v3, E4M3FN.to_owned()));
    }
    let v3: ArrayMetadataV3 = serde_json::from_value(document.into_owned()).map_err(no_array)?;
    let name = v3.data_type.name().to_owned();
    Ok((v3, name))
}

/// Reads a fill value of `float8_e4m3fn`: a number, `"NaN"`, or the code as `"0x…"`.
fn e4m3fn(fill: &Value) -> Option<u8> {
    let (format, _) = minifloat::of(DataType::Float8E4M3Fn)?;
    let number = match fill {
        Value::String(text) => match (text.as_str(), text.strip_prefix("0x")) {
            (_, Some(digits)) if digits.len() == 2 => return u8::from_str_radix(digits, 16).ok(),
            ("NaN", _) => f64::NAN,
            _ => return None, // it has no infinity
        },
        _ => fill.as_f64()?,
    };
    u8::try_from(format.encode(number)).ok()
}

fn codec_error(error: CodecError) -> Error {
    match error {
        CodecError::InvalidChecksum => Error::corrupt("checksum mismatch"),
        CodecError::UnsupportedDataType(..) | CodecError::UnsupportedDataTypeCodec(_) => {
            Error::unsupported("zarrs has no codec for the data type").because(error.to_string())
        }
        error => Error::corrupt("zarrs cannot decode the chunk").because(error.to_string()),
    }
}

/// Runs zarrs; where it panics, that is the file's fault, not the process's end.
fn guarded<T>(message: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Err(Error::corrupt(message).because(text.to_owned()))
    })
}

#[cfg(test)]
mod tests;
