//! What a node's own attributes say, so that a lost index can be rebuilt from the nodes alone.
//!
//! ```text
//! array  {"milepost": {"key": ["opt", {"index": 0}, "w"], "kind": "array", "data_type": "bfloat16"}}
//! group  {"milepost": {"key": ["opt"], "container": {"kind": "tuple"},
//!                      "children": [[{"index": 0}], [{"index": 1}, null], [{"index": 2}, {"kind": "dict"}]]}}
//! ```
//!
//! `data_type` is the logical type and is there only where the array is stored as another one. A child is
//! its key alone where it is a node of its own, its key and null for None, its key and its container for
//! an empty container: those two have no node.

use super::{Container, Key, LeafKind, check::check_keys};
use crate::{DataType, FormatError, Result, json};
use serde_json::{Map, Value, json};

/// How a child of a group is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildMark {
    /// As a node: a leaf, or a container that is not empty.
    Node,
    /// None: in the parent's attributes only.
    None,
    /// An empty container: in the parent's attributes only.
    Empty(Container),
}

/// What the attributes of a leaf's array say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafAttributes {
    /// The key path.
    pub keys: Vec<Key>,
    /// What the leaf was.
    pub kind: LeafKind,
    /// The logical data type, where the stored one is another.
    pub data_type: Option<DataType>,
}

/// What the attributes of a container's group say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupAttributes {
    /// The key path.
    pub keys: Vec<Key>,
    /// What the container is.
    pub container: Container,
    /// Its children in order.
    pub children: Vec<(Key, ChildMark)>,
}

/// Returns the attributes of a leaf's array.
#[must_use]
pub fn leaf_attributes(
    keys: &[Key],
    kind: &LeafKind,
    data_type: DataType,
    stored_as: Option<DataType>,
) -> Map<String, Value> {
    let (kind, implementation) = kind.to_parts();
    let mut members = json::object([("key", keys_to_json(keys)), ("kind", json!(kind))]);
    if let Some(implementation) = implementation {
        members.insert("implementation".to_owned(), json!(implementation));
    }
    if stored_as.is_some_and(|stored| stored != data_type) {
        members.insert("data_type".to_owned(), json!(data_type));
    }
    json::object([("milepost", Value::Object(members))])
}

/// Returns the attributes of a container's group.
#[must_use]
pub fn group_attributes(
    keys: &[Key],
    container: &Container,
    children: &[(Key, ChildMark)],
) -> Map<String, Value> {
    let child = |(key, mark): &(Key, ChildMark)| match mark {
        ChildMark::Node => json!([key.to_json()]),
        ChildMark::None => json!([key.to_json(), null]),
        ChildMark::Empty(container) => json!([key.to_json(), container.to_json()]),
    };
    let members = json::object([
        ("key", keys_to_json(keys)),
        ("container", container.to_json()),
        ("children", children.iter().map(child).collect()),
    ]);
    json::object([("milepost", Value::Object(members))])
}

/// Reads the attributes of an array; `None` where it has none of ours.
///
/// # Errors
/// `Corrupt` where they are not a leaf's, `Unsupported` for an unknown kind.
pub fn parse_leaf_attributes(attributes: &Map<String, Value>) -> Result<Option<LeafAttributes>> {
    let Some(members) = milepost(attributes)? else { return Ok(None) };
    let Some(kind) = members.get("kind").and_then(Value::as_str) else {
        return Err(damaged("kind"));
    };
    let implementation = members.get("implementation").and_then(Value::as_str).map(str::to_owned);
    let data_type = match members.get("data_type") {
        None => None,
        Some(Value::String(name)) => Some(DataType::from_name(name).ok_or_else(|| {
            let name = json::shorten(name);
            FormatError::unsupported(format!("unknown data type. data_type=`{name}`"))
        })?),
        Some(_) => return Err(damaged("data_type")),
    };
    let kind = LeafKind::from_parts(kind, implementation)?;
    Ok(Some(LeafAttributes { keys: parse_keys(members)?, kind, data_type }))
}

/// Reads the attributes of a group; `None` where it has none of ours or is no container.
///
/// # Errors
/// `Corrupt` where they are not a container's, `Unsupported` for an unknown kind.
pub fn parse_group_attributes(attributes: &Map<String, Value>) -> Result<Option<GroupAttributes>> {
    let Some(members) = milepost(attributes)? else { return Ok(None) };
    let Some(container) = members.get("container") else { return Ok(None) };
    let container = Container::from_json(container)?;
    let children = members
        .get("children")
        .and_then(Value::as_array)
        .ok_or_else(|| damaged("children"))?
        .iter()
        .map(parse_child)
        .collect::<Result<Vec<_>>>()?;
    check_keys(&container, children.iter().map(|(key, _)| key)).map_err(FormatError::corrupt)?;
    Ok(Some(GroupAttributes { keys: parse_keys(members)?, container, children }))
}

fn parse_child(value: &Value) -> Result<(Key, ChildMark)> {
    match value.as_array().map(Vec::as_slice) {
        Some([key]) => Ok((Key::from_json(key)?, ChildMark::Node)),
        Some([key, Value::Null]) => Ok((Key::from_json(key)?, ChildMark::None)),
        Some([key, container]) => {
            Ok((Key::from_json(key)?, ChildMark::Empty(Container::from_json(container)?)))
        }
        _ => Err(damaged("children")),
    }
}

fn milepost(attributes: &Map<String, Value>) -> Result<Option<&Map<String, Value>>> {
    match attributes.get("milepost") {
        None => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(FormatError::corrupt("`attributes.milepost` is not an object")),
    }
}

fn keys_to_json(keys: &[Key]) -> Value {
    keys.iter().map(Key::to_json).collect()
}

fn parse_keys(members: &Map<String, Value>) -> Result<Vec<Key>> {
    let keys = members.get("key").and_then(Value::as_array).ok_or_else(|| damaged("key"))?;
    keys.iter().map(Key::from_json).collect()
}

fn damaged(member: &str) -> FormatError {
    FormatError::corrupt(format!("`attributes.milepost.{member}` is missing or damaged"))
}
