//! Writes what comes before the tensors: their places and the header.

use super::{
    Dtype, HEADER_BYTES_MAX, Tensor,
    header::{METADATA, PREFIX_BYTES, check_offsets, shown},
};
use crate::{FormatError, Result};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::HashSet;

/// The order of tensors in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As the caller has them: a file that was imported in order comes back byte-identical in its data.
    AsGiven,
    /// As the reference writer: largest alignment first, then by name, so that every tensor is aligned.
    #[default]
    Reference,
}

/// Gives tensors their places, one after the other; returns them in file order.
///
/// # Errors
/// `Invalid` where a name is there twice or reserved, or sizes overflow or do not end at a byte.
pub fn place(
    tensors: impl IntoIterator<Item = (String, Dtype, Vec<u64>)>,
    order: Order,
) -> Result<Vec<Tensor>> {
    let mut placed: Vec<_> = tensors
        .into_iter()
        .map(|(name, dtype, shape)| Tensor { name, dtype, shape, begin: 0, end: 0 })
        .collect();
    check_names(&placed)?;
    if order == Order::Reference {
        placed.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    }
    let mut begin = 0_u64;
    for tensor in &mut placed {
        let end = tensor.dtype.bytes(&tensor.shape).and_then(|bytes| begin.checked_add(bytes));
        let Some(end) = end else {
            let Tensor { name, dtype, shape, .. } = tensor;
            return Err(FormatError::invalid(format!(
                "tensor {}: {dtype}{shape:?} overflows or does not end at a byte",
                shown(name)
            )));
        };
        (tensor.begin, tensor.end) = (begin, end);
        begin = end;
    }
    Ok(placed)
}

/// Encodes the length and the JSON that come before the tensors' bytes, padded to 8 bytes.
///
/// Byte-identical to the reference writer's where tensors are in its order and metadata has at most one
/// entry (it writes more in random order). Without metadata there is no `__metadata__`.
///
/// # Errors
/// `Invalid` where a name is there twice or reserved, tensors do not follow each other, or the JSON is over
/// 100 MB.
pub fn encode_header(tensors: &[Tensor], metadata: &[(String, String)]) -> Result<Vec<u8>> {
    check_names(tensors)?;
    check_offsets(tensors).map_err(|e| FormatError::invalid(e.to_string()))?;
    let mut keys = HashSet::new();
    if let Some((key, _)) = metadata.iter().find(|(key, _)| !keys.insert(key)) {
        return Err(FormatError::invalid(format!("metadata {} is there twice", shown(key))));
    }
    let mut bytes = vec![0; 8];
    serde_json::to_writer(&mut bytes, &Document { tensors, metadata })
        .map_err(|e| FormatError::invalid(format!("the safetensors header: {e}")))?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let json_bytes = bytes.len() as u64 - PREFIX_BYTES;
    if json_bytes > HEADER_BYTES_MAX {
        return Err(FormatError::invalid(format!(
            "the safetensors header would have {json_bytes} bytes, the limit is {HEADER_BYTES_MAX}"
        )));
    }
    if let Some(prefix) = bytes.first_chunk_mut() {
        *prefix = json_bytes.to_le_bytes();
    }
    Ok(bytes)
}

fn check_names(tensors: &[Tensor]) -> Result<()> {
    let mut names = HashSet::with_capacity(tensors.len());
    for Tensor { name, .. } in tensors {
        if name == METADATA {
            return Err(FormatError::invalid("`__metadata__` cannot be the name of a tensor"));
        }
        if !names.insert(name) {
            return Err(FormatError::invalid(format!("tensor {} is there twice", shown(name))));
        }
    }
    Ok(())
}

struct Document<'a> {
    tensors: &'a [Tensor],
    metadata: &'a [(String, String)],
}

struct Texts<'a>(&'a [(String, String)]);

#[derive(serde::Serialize)]
struct Info<'a> {
    dtype: &'a str,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &Texts(self.metadata))?;
        }
        for t in self.tensors {
            let data_offsets = [t.begin, t.end];
            let info = Info { dtype: t.dtype.name(), shape: &t.shape, data_offsets };
            map.serialize_entry(&t.name, &info)?;
        }
        map.end()
    }
}

impl Serialize for Texts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, text)| (key, text)))
    }
}
