//! The commit record: `attributes.milepost` of a checkpoint's root group.

use serde_json::{Map, Value};

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// A pytree: a group with an array a leaf.
    Tree,
    /// A single array.
    Array,
    /// A JSON value.
    Json,
    /// Bytes.
    Bytes,
    /// A group of byte arrays, one a file.
    Opaque,
}

/// One item of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The name, also of its node.
    pub name: String,
    /// What it is.
    pub kind: ItemKind,
    /// The number of leaves.
    pub leaves: u64,
    /// The sum of the decoded leaf sizes in bytes.
    pub data_bytes: u64,
    /// The sum of its stored objects' sizes in bytes.
    pub stored_bytes: u64,
    /// The number of stored objects.
    pub objects: u64,
    /// Stored size of the index chunk (`_milepost/<item>/c.0`) in bytes.
    pub index_bytes: u64,
    /// Size of the index's JSON in bytes.
    pub index_json_bytes: u64,
    /// xxh3-128 of the stored index chunk.
    pub index_hash: u128,
}

/// How long one stage of the save took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The stage: `capture`, `write`, ….
    pub stage: String,
    /// Milliseconds.
    pub ms: f64,
}

/// The commit record of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The step number, where it was saved as a step.
    pub step: Option<u64>,
    /// The writer's id.
    pub writer: String,
    /// When the save began, in Unix milliseconds.
    pub created_ms: u64,
    /// When the record was written, in Unix milliseconds.
    pub committed_ms: u64,
    /// The items, sorted by name.
    pub items: Vec<Item>,
    /// The user's metadata.
    pub metadata: Map<String, Value>,
    /// The metrics of the step.
    pub metrics: Map<String, Value>,
    /// Stages up to data written.
    pub timings: Vec<Timing>,
    /// Notes for the operator (keys that differ only in case, fallbacks taken).
    pub notes: Vec<String>,
}

/// What the root document of a place says it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Root {
    /// A checkpoint, with its record.
    Checkpoint(Record),
    /// A run, with the `milepost` attribute's other members.
    Run(Map<String, Value>),
    /// Any other Zarr node.
    Foreign,
}
