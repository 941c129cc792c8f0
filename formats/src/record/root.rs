//! What the root document of a place is.

use super::{
    Record, Root,
    wire::{Seal, check_seal},
};
use crate::{FormatError, Result, json, version, zarr3::Document};
use serde_json::Value;

/// Kinds that nodes inside a checkpoint have; as the root of a place they are nothing of ours.
const INNER_KINDS: [&str; 4] = ["claim", "index", "indexes", "json"];

impl Root {
    /// Parses the `zarr.json` at the root of a place, and checks a record's hash.
    ///
    /// # Errors
    /// `Corrupt` where the document is not a Zarr node or the record is not the one that was written,
    /// `Unsupported` where it is of a newer format, needs an unknown feature, or is of an unknown kind.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let Document::Group(group) = Document::parse(bytes)? else { return Ok(Self::Foreign) };
        let Some(value) = group.attributes.get("milepost") else { return Ok(Self::Foreign) };
        let kind = match value.get("kind").and_then(Value::as_str) {
            None => return Ok(Self::Foreign),
            Some(kind) if INNER_KINDS.contains(&kind) => return Ok(Self::Foreign),
            Some(kind) => kind,
        };
        if !["checkpoint", "run", "revoked"].contains(&kind) {
            let kind = json::shorten(kind);
            return Err(FormatError::unsupported(format!("unknown kind of root. kind=`{kind}`")));
        }
        version::check_value(value, &format!("the document of a {kind}"))?;
        // It has a member, so it is an object.
        let mut members = value.as_object().cloned().unwrap_or_default();
        match kind {
            "checkpoint" => parse_checkpoint(bytes, members),
            "run" => {
                for name in RESERVED {
                    members.remove(name);
                }
                Ok(Self::Run(members))
            }
            _ => match members.remove("writer") {
                Some(Value::String(writer)) => {
                    let deleted = members.get("deleted") == Some(&Value::Bool(true));
                    Ok(Self::Revoked { writer, deleted })
                }
                _ => Err(FormatError::corrupt("a revoked record does not say by whom")),
            },
        }
    }
}

/// The members of the `milepost` attribute that every kind has.
pub(super) const RESERVED: [&str; 3] = ["kind", "requires", "version"];

fn parse_checkpoint(bytes: &[u8], members: serde_json::Map<String, Value>) -> Result<Root> {
    let rewritten = match check_seal(bytes, &members) {
        Seal::Intact => false,
        Seal::Rewritten => true,
        Seal::Broken => {
            return Err(FormatError::corrupt("the record is damaged: its hash does not match"));
        }
    };
    let record = Box::new(Record::from_members(members)?);
    Ok(Root::Checkpoint { record, rewritten })
}
