//! The index of a model in several files: `*.safetensors.index.json`.
//!
//! `{"metadata": {"total_size": 1234}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}`
//!
//! **Invariant:** a file name that parsed stays in the index's directory, however it is joined to it.

use super::header::{HEADER_BYTES_MAX, Pairs, shown};
use crate::{FormatError, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};

/// The longest file name that file systems allow.
const FILE_NAME_BYTES_MAX: usize = 255;

/// Which file holds which tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardIndex {
    /// Tensor name to file name, in order.
    pub weight_map: Vec<(String, String)>,
    /// `metadata` but for `total_size`.
    pub metadata: Map<String, Value>,
    /// `metadata.total_size`: the sum of the tensors' bytes, where it is a whole number.
    pub total_size: Option<u64>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    weight_map: Pairs,
}

impl ShardIndex {
    /// Parses an index.
    ///
    /// # Errors
    /// `Corrupt` where it is no index, names a tensor twice, or names a file outside its directory.
    pub fn parse(json: &[u8]) -> Result<Self> {
        if json.len() as u64 > HEADER_BYTES_MAX {
            return Err(FormatError::corrupt("the safetensors index is over 100 MB"));
        }
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|e| FormatError::corrupt(format!("not a safetensors index: {e}")))?;
        for (tensor, file) in &raw.weight_map.0 {
            check_file_name(file).map_err(|e| {
                FormatError::corrupt(format!(
                    "tensor {} of the safetensors index: {e}",
                    shown(tensor)
                ))
            })?;
        }
        let mut metadata = raw.metadata.unwrap_or_default();
        let total_size = metadata.get("total_size").and_then(whole_number);
        if total_size.is_some() {
            metadata.shift_remove("total_size");
        }
        Ok(Self { weight_map: raw.weight_map.0, metadata, total_size })
    }

    /// Returns the files, each once, in the order they first appear.
    #[must_use]
    pub fn files(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        self.weight_map.iter().map(|(_, file)| file.as_str()).filter(|f| seen.insert(*f)).collect()
    }

    /// Encodes the index as Hugging Face's writer does: indented, keys sorted, a newline at the end.
    ///
    /// # Errors
    /// `Invalid` where a tensor is there twice or a file name leaves the directory.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut weight_map = BTreeMap::new();
        for (tensor, file) in &self.weight_map {
            check_file_name(file)?;
            if weight_map.insert(tensor, file).is_some() {
                return Err(FormatError::invalid(format!(
                    "tensor {} is there twice",
                    shown(tensor)
                )));
            }
        }
        let mut metadata: BTreeMap<_, _> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        if let Some(bytes) = self.total_size {
            metadata.insert("total_size", bytes.into());
        }
        let document = serde_json::json!({ "metadata": metadata, "weight_map": weight_map });
        let mut bytes = serde_json::to_vec_pretty(&document)
            .map_err(|e| FormatError::invalid(format!("the safetensors index: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Checks that a file name stays in its directory on every platform and in a URL.
///
/// # Errors
/// `Invalid` where it is empty, too long, `.`, `..`, or holds a separator, a colon or a control character.
pub fn check_file_name(name: &str) -> Result<()> {
    // URL parsers take `%2e` for a dot, and what precedes a colon for a scheme or a drive.
    let decoded =
        name.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    let leaves = matches!(decoded.as_str(), "" | "." | "..")
        || decoded.contains(['/', '\\', ':'])
        || name.contains(char::is_control);
    if leaves || name.len() > FILE_NAME_BYTES_MAX {
        let name = shown(name);
        return Err(FormatError::invalid(format!("{name} is not a file name in the directory")));
    }
    Ok(())
}

/// Names one of `count` files; `number` counts from 1: `model-00001-of-00003.safetensors`.
#[must_use]
pub fn shard_file_name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{number:05}-of-{count:05}.safetensors")
}

/// Reads a size; some writers have it as a float.
fn whole_number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        // 2^53: from here on a float does not hold every integer, and what it means is a guess.
        let whole = float.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&float);
        whole.then(|| format!("{float:.0}").parse().ok())?
    })
}
