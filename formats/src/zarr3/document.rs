//! `zarr.json` as plain data, and its canonical bytes.
//!
//! Canonical means: JSON without white space, members sorted by name, every codec in full object form with
//! explicit `endian`, `index_location` and zstd `checksum`, an explicit `separator`. The bytes are a pure
//! function of the document, so writing a state twice gives equal files.

use super::{Codecs, codec_json, fill};
use crate::{DataType, json};
use serde_json::{Map, Value, json};

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

impl ArrayDocument {
    /// Returns the shape of a chunk: the unit that is encoded, inside a shard where there is one.
    #[must_use]
    pub fn chunk_shape(&self) -> &[u64] {
        self.codecs.sharding.as_ref().map_or(&self.grid_shape, |s| &s.chunk_shape)
    }

    /// Returns the number of stored objects along each axis.
    #[must_use]
    pub fn grid_counts(&self) -> Vec<u64> {
        self.shape.iter().zip(&self.grid_shape).map(|(n, g)| n.div_ceil((*g).max(1))).collect()
    }

    /// Returns the number of chunks in a shard along each axis; ones where there is no sharding.
    #[must_use]
    pub fn chunks_per_shard(&self) -> Vec<u64> {
        self.grid_shape.iter().zip(self.chunk_shape()).map(|(g, c)| g / (*c).max(1)).collect()
    }

    /// Returns the key of a stored object, relative to the array: `c.0.1`, `c/0/1`, or `c` in rank 0.
    #[must_use]
    pub fn object_key(&self, position: &[u64]) -> String {
        position.iter().fold("c".to_owned(), |key, n| format!("{key}{}{n}", self.separator))
    }

    /// Returns the document as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut members = json::object([
            ("zarr_format", json!(3)),
            ("node_type", json!("array")),
            ("shape", json!(self.shape)),
            ("data_type", json!(self.data_type)),
            (
                "chunk_grid",
                json!({"name": "regular", "configuration": {"chunk_shape": self.grid_shape}}),
            ),
            (
                "chunk_key_encoding",
                json!({"name": "default", "configuration": {"separator": self.separator}}),
            ),
            ("fill_value", fill::to_json(&self.fill_value, self.data_type)),
            ("codecs", codec_json::to_json(&self.codecs)),
            ("attributes", Value::Object(self.attributes.clone())),
        ]);
        if let Some(names) = &self.dimension_names {
            members.insert("dimension_names".to_owned(), json!(names));
        }
        Value::Object(members)
    }

    /// Returns the canonical bytes of `zarr.json`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_bytes(&self.to_json())
    }
}

/// Returns the canonical bytes of a document that is JSON already.
#[must_use]
pub fn document_bytes(document: &Value) -> Vec<u8> {
    json::to_bytes(document)
}

impl GroupDocument {
    /// Turns the document into JSON, without a copy of what it consolidates.
    #[must_use]
    pub fn into_json(self) -> Value {
        let mut members = json::object([
            ("zarr_format", json!(3)),
            ("node_type", json!("group")),
            ("attributes", Value::Object(self.attributes)),
        ]);
        if let Some(consolidated) = self.consolidated {
            let consolidated = json::object([
                ("kind", json!("inline")),
                ("must_understand", json!(false)),
                ("metadata", Value::Object(consolidated.into_iter().collect())),
            ]);
            members.insert("consolidated_metadata".to_owned(), Value::Object(consolidated));
        }
        Value::Object(members)
    }

    /// Returns the canonical bytes of `zarr.json`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_bytes(&self.clone().into_json())
    }
}
