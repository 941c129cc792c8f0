//! The other group documents with a `milepost` attribute: run, revoked record, claim, JSON item.

use super::root::RESERVED;
use crate::{
    FormatError, Result, json, version,
    zarr3::{Document, GroupDocument},
};
use serde_json::{Map, Value, json};

/// An attempt's claim on its prefix (object stores).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The writer's id.
    pub writer: String,
    /// When the attempt began, in Unix milliseconds of its writer's clock.
    pub heartbeat_ms: u64,
    /// Which process the writer is, as a mark of an attempt says it; those of the same machine know by it who is gone.
    pub holder: Option<Value>,
}

/// Returns a group document of this kind.
fn document(kind: &str, mut members: Map<String, Value>) -> Vec<u8> {
    members.insert("kind".to_owned(), json!(kind));
    members.insert("version".to_owned(), json!(version::CURRENT));
    members.insert("requires".to_owned(), json!([]));
    let attributes = json::object([("milepost", Value::Object(members))]);
    GroupDocument { attributes, consolidated: None }.to_bytes()
}

/// Returns the `milepost` members of a group of this kind; `None` of any other node.
fn parse(bytes: &[u8], kind: &str) -> Result<Option<Map<String, Value>>> {
    let Document::Group(mut group) = Document::parse(bytes)? else { return Ok(None) };
    match group.attributes.remove("milepost") {
        Some(value) if value.get("kind").and_then(Value::as_str) == Some(kind) => {
            version::check_value(&value, &format!("the document of kind `{kind}`"))?;
            Ok(value.as_object().cloned())
        }
        _ => Ok(None),
    }
}

/// Returns the `zarr.json` of a run; `metadata` are the `milepost` attribute's other members.
///
/// # Errors
/// `Invalid` where `metadata` has `kind`, `version` or `requires`, or nests too deep.
pub fn run_document(metadata: Map<String, Value>) -> Result<Vec<u8>> {
    if let Some(name) = RESERVED.into_iter().find(|name| metadata.contains_key(*name)) {
        return Err(FormatError::invalid(format!(
            "a run's own member is reserved. member=`{name}`"
        )));
    }
    if !metadata.values().all(|value| json::is_within_depth(value, json::DEPTH_MAX)) {
        return Err(too_deep());
    }
    Ok(document("run", metadata))
}

/// Returns the `zarr.json` that makes an attempt impossible to commit.
#[must_use]
pub fn revoked_document(writer: &str) -> Vec<u8> {
    document("revoked", json::object([("writer", json!(writer))]))
}

/// Returns the `zarr.json` of a checkpoint that was committed and is deleted: nobody writes there any more.
#[must_use]
pub fn deleted_document(writer: &str) -> Vec<u8> {
    let members = [("writer", json!(writer)), ("deleted", json!(true))];
    document("revoked", json::object(members))
}

/// Returns the `_milepost/zarr.json` by which an attempt claims its prefix.
#[must_use]
pub fn claim_document(claim: &Claim) -> Vec<u8> {
    let members = [("writer", json!(claim.writer)), ("heartbeat_ms", json!(claim.heartbeat_ms))];
    let mut members = json::object(members);
    members.extend(claim.holder.clone().map(|holder| ("holder".to_owned(), holder)));
    document("claim", members)
}

/// Parses `_milepost/zarr.json`; `None` where it is a node but no claim.
///
/// # Errors
/// `Corrupt` where it is not a node or not a whole claim, `Unsupported` for a newer format.
pub fn parse_claim(bytes: &[u8]) -> Result<Option<Claim>> {
    let Some(members) = parse(bytes, "claim")? else { return Ok(None) };
    let writer = members.get("writer").and_then(Value::as_str);
    let heartbeat_ms = members.get("heartbeat_ms").and_then(Value::as_u64);
    match (writer, heartbeat_ms) {
        (Some(writer), Some(heartbeat_ms)) => {
            let holder = members.get("holder").cloned();
            Ok(Some(Claim { writer: writer.to_owned(), heartbeat_ms, holder }))
        }
        _ => Err(FormatError::corrupt("a claim lacks its writer or heartbeat")),
    }
}

/// Returns the `zarr.json` of a JSON item: a group with the value in its attributes.
///
/// # Errors
/// `Invalid` where the value nests over 100 levels.
pub fn json_document(value: &Value) -> Result<Vec<u8>> {
    if !json::is_within_depth(value, json::DEPTH_MAX) {
        return Err(too_deep());
    }
    Ok(document("json", json::object([("value", value.clone())])))
}

/// Parses the `zarr.json` of a JSON item; `None` where it is another node.
///
/// # Errors
/// `Corrupt` where it is not a node, `Unsupported` for a newer format.
pub fn parse_json_document(bytes: &[u8]) -> Result<Option<Value>> {
    let Some(mut members) = parse(bytes, "json")? else { return Ok(None) };
    let value = members.remove("value");
    value.map(Some).ok_or_else(|| FormatError::corrupt("a JSON item lacks its value"))
}

fn too_deep() -> FormatError {
    FormatError::invalid(format!("a JSON value nests over {} levels", json::DEPTH_MAX))
}
