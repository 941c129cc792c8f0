//! The version that records and indexes carry, and what a reader does about it.
//!
//! The major number changes where older readers would misread; the minor number where they only miss
//! something. `requires` names what a reader must know beyond the major version; this one knows nothing
//! beyond it.

use crate::{FormatError, Result, json};
use serde::Deserialize;

/// What this crate writes.
pub(crate) const CURRENT: [u32; 2] = [1, 0];

#[derive(Deserialize)]
struct Head {
    version: [u32; 2],
    #[serde(default)]
    requires: Vec<String>,
}

/// Refuses a document of another major version or with an unknown requirement.
///
/// Reads nothing else, so that a document of a later major version is not taken for a damaged one.
pub(crate) fn check(bytes: &[u8], what: &str) -> Result<()> {
    let head: Head = serde_json::from_slice(bytes)
        .map_err(|e| FormatError::corrupt(format!("{what} is damaged: {e}")))?;
    refuse_unknown(&head, what)
}

/// Does the same for a parsed document.
pub(crate) fn check_value(value: &serde_json::Value, what: &str) -> Result<()> {
    let head = Head::deserialize(value)
        .map_err(|e| FormatError::corrupt(format!("{what} is damaged: {e}")))?;
    refuse_unknown(&head, what)
}

fn refuse_unknown(head: &Head, what: &str) -> Result<()> {
    let [major, minor] = head.version;
    if major != CURRENT[0] {
        return Err(FormatError::unsupported(format!(
            "{what} is of a newer format; a newer Milepost reads it. version=`{major}.{minor}`"
        )));
    }
    match head.requires.first() {
        None => Ok(()),
        Some(name) => Err(FormatError::unsupported(format!(
            "{what} needs a feature that this version does not have. requires=`{}`",
            json::shorten(name)
        ))),
    }
}
