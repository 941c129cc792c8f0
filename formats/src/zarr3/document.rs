//! `zarr.json` as plain data.

use super::Codecs;
use crate::DataType;
use serde_json::{Map, Value};

/// A parsed `zarr.json`.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// An array that our own paths read and write.
    Array(ArrayDocument),
    /// A valid array outside our profile: zarrs decodes it.
    Foreign(ForeignArray),
    /// A group.
    Group(GroupDocument),
}

/// An array document in our profile.
#[derive(Clone, Debug, PartialEq)]
pub struct ArrayDocument {
    /// The shape in elements; empty for 0-d.
    pub shape: Vec<u64>,
    /// The stored data type.
    pub data_type: DataType,
    /// The shape of a stored object: the shard where there is one, else the chunk.
    pub grid_shape: Vec<u64>,
    /// The separator of the `default` chunk key encoding: `.` in ours, `/` in many others.
    pub separator: char,
    /// The codec chain.
    pub codecs: Codecs,
    /// One element, little endian, that stands for missing chunks.
    pub fill_value: Vec<u8>,
    /// The dimension names.
    pub dimension_names: Option<Vec<Option<String>>>,
    /// The attributes, ours under `milepost`.
    pub attributes: Map<String, Value>,
}

/// An array outside our profile.
#[derive(Clone, Debug, PartialEq)]
pub struct ForeignArray {
    /// The whole document.
    pub json: Value,
    /// The shape in elements.
    pub shape: Vec<u64>,
    /// The data type, where it is one of ours.
    pub data_type: Option<DataType>,
    /// The name of the data type as written.
    pub data_type_name: String,
}

/// A group document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupDocument {
    /// The attributes, ours under `milepost`.
    pub attributes: Map<String, Value>,
    /// Member path to its document, sorted, where metadata is consolidated.
    pub consolidated: Option<Vec<(String, Value)>>,
}
