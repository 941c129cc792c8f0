//! The header of a safetensors file: read, checked against the file's size, in file order.
//!
//! The JSON is read as a stream into tensors, never into a tree of values: a header of 100 MB costs what its
//! tensors cost. Unknown members of a tensor are ignored, as the reference does.

use super::Dtype;
use crate::{FormatError, Result};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::{collections::HashSet, fmt};

/// The largest header that the reference implementation reads.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The limit of `NumPy`; a shape that is longer is an attack.
const RANK_MAX: usize = 64;
/// The key of the free-form metadata.
pub(super) const METADATA: &str = "__metadata__";
/// The size of the length before the JSON.
pub(super) const PREFIX_BYTES: u64 = 8;

/// A tensor and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name.
    pub name: String,
    /// The data type.
    pub dtype: Dtype,
    /// The shape in elements; empty for 0-d.
    pub shape: Vec<u64>,
    /// Where its bytes begin, counted from the end of the header.
    pub begin: u64,
    /// Where they end.
    pub end: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors in file order; empty ones at the same place as in the JSON.
    pub tensors: Vec<Tensor>,
    /// `__metadata__`, in order.
    pub metadata: Vec<(String, String)>,
    /// The offset in the file that `begin` and `end` count from.
    pub data_start: u64,
}

/// Returns the size of the JSON that follows the first 8 bytes of a file.
///
/// # Errors
/// `Corrupt` where there are fewer than 8 bytes or the size is over 100 MB.
pub fn header_bytes(first8: &[u8]) -> Result<u64> {
    let Some(Ok(prefix)) = first8.get(..8).map(<[u8; 8]>::try_from) else {
        return Err(FormatError::corrupt(format!(
            "a safetensors file begins with 8 bytes of header length, this one has {}",
            first8.len()
        )));
    };
    let bytes = u64::from_le_bytes(prefix);
    if bytes > HEADER_BYTES_MAX {
        return Err(FormatError::corrupt(format!(
            "the safetensors header claims {bytes} bytes, the limit is {HEADER_BYTES_MAX}"
        )));
    }
    Ok(bytes)
}

impl Header {
    /// Parses the JSON and checks it against the size of the whole file.
    ///
    /// # Errors
    /// `Corrupt` where the JSON is none, a name is there twice, or the tensors do not cover the rest of the
    /// file one after the other; `Unsupported` where a data type is unknown.
    pub fn parse(json: &[u8], file_bytes: u64) -> Result<Self> {
        if json.len() as u64 > HEADER_BYTES_MAX {
            return Err(FormatError::corrupt("the safetensors header is over 100 MB"));
        }
        let text = std::str::from_utf8(json).map_err(|e| {
            FormatError::corrupt(format!("the safetensors header is not UTF-8: {e}"))
        })?;
        let raw: RawHeader = serde_json::from_str(text)
            .map_err(|e| FormatError::corrupt(format!("not a safetensors header: {e}")))?;
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, raw) in raw.tensors {
            let dtype = Dtype::from_name(&raw.dtype)
                .map_err(|e| FormatError::unsupported(format!("{e} of tensor {}", shown(&name))))?;
            let (begin, end) = raw.data_offsets;
            tensors.push(Tensor { name, dtype, shape: raw.shape.0, begin, end });
        }
        // Stable: empty tensors keep the order of the JSON.
        tensors.sort_by_key(|t| (t.begin, t.end));
        let data_start = PREFIX_BYTES + json.len() as u64;
        let data_bytes = check_offsets(&tensors)?;
        if data_start.checked_add(data_bytes) != Some(file_bytes) {
            return Err(FormatError::corrupt(format!(
                "the safetensors file has {file_bytes} bytes, its header {data_start} and its tensors \
                 {data_bytes}"
            )));
        }
        Ok(Self { tensors, metadata: raw.metadata, data_start })
    }
}

/// Checks that tensors in file order follow each other, each of its shape's size; returns where they end.
pub(super) fn check_offsets(tensors: &[Tensor]) -> Result<u64> {
    let mut start = 0;
    for tensor in tensors {
        let Tensor { name, dtype, shape, begin, end } = tensor;
        let bad = |what: &str| {
            let name = shown(name);
            FormatError::corrupt(format!("tensor {name}: {what} ([{begin}, {end}] after {start})"))
        };
        if *begin != start {
            return Err(bad("its offsets leave a hole or overlap"));
        }
        let Some(bytes) = end.checked_sub(*begin) else {
            return Err(bad("it ends before it begins"));
        };
        match dtype.bytes(shape) {
            Some(want) if want == bytes => {}
            Some(want) => return Err(bad(&format!("{dtype}{shape:?} takes {want} bytes"))),
            None => {
                return Err(bad(&format!("{dtype}{shape:?} overflows or does not end at a byte")));
            }
        }
        start = *end;
    }
    Ok(start)
}

/// Quotes a name for a message, cut where it is long.
pub(super) fn shown(name: &str) -> String {
    let mut cut: String = name.chars().take(100).collect();
    if cut.len() < name.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

struct RawHeader {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, RawTensor)>,
}

#[derive(Deserialize)]
#[serde(expecting = "a tensor: {dtype, shape, data_offsets}")]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader { metadata: Vec::new(), tensors: Vec::new() };
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("{} is there twice", shown(&name))));
            }
            if name == METADATA {
                header.metadata = map.next_value::<Option<Pairs>>()?.map_or(Vec::new(), |p| p.0);
            } else {
                let tensor = map.next_value()?;
                header.tensors.push((name, tensor));
            }
        }
        Ok(header)
    }
}

/// An object of texts, in order, without duplicates.
pub(super) struct Pairs(pub(super) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                let mut names = HashSet::new();
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{} is there twice", shown(&name))));
                    }
                    pairs.push((name, text));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {RANK_MAX} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while shape.len() < RANK_MAX {
                    let Some(dim) = seq.next_element()? else { return Ok(Shape(shape)) };
                    shape.push(dim);
                }
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Shape(shape)),
                    Some(_) => Err(A::Error::invalid_length(RANK_MAX + 1, &self)),
                }
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}
