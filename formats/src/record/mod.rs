//! The commit record: `attributes.milepost` of a checkpoint's root group, and the other root documents.
//!
//! The record is the last object of a checkpoint that is written; where it is whole, the checkpoint is. It
//! hashes itself, and each item's index by size and hash, and an index holds size and checksum of every
//! stored object: from one small document, every byte of a checkpoint can be proven.
//!
//! ```text
//! zarr.json   {"attributes":{"milepost":{…,"hash":"<xxh3-128 of this text, these digits 0>",…}},…}
//!   └─ items[i].index_hash ──▶ _milepost/<item>/c.0 ──▶ every zarr.json, chunk object and shard
//! ```
//!
//! **Invariant:** the documents that no index lists (`_milepost/zarr.json`, `_milepost/<item>/zarr.json`) are
//! pure functions of the record ([`crate::index::index_group_document`],
//! [`crate::index::index_document`]); a claim, which is not, is in [`Record::claim`] by size and checksum.

mod documents;
mod root;
mod run;
pub mod tagged;
#[cfg(test)]
mod tests;
mod wire;

pub use documents::{
    Claim, claim_document, deleted_document, json_document, parse_claim, parse_json_document,
    revoked_document, run_document,
};
pub use run::{RunMembers, StepFormat};
pub use wire::{HANDLER_BYTES_MAX, METADATA_BYTES_MAX, RECORD_BYTES_MAX};

use crate::index::Object;
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
    /// The name of the custom handler that made it and can restore it.
    pub handler: Option<String>,
    /// The user's metadata of the item, as [`Record::metadata`]; null where there is none.
    pub metadata: Value,
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
    /// `_milepost/zarr.json` where it is a claim (object stores), by size and checksum.
    pub claim: Option<Object>,
    /// The user's metadata, with non-finite floats as [`tagged`] has them.
    pub metadata: Map<String, Value>,
    /// The metrics of the step, likewise.
    pub metrics: Map<String, Value>,
    /// Stages up to data written.
    pub timings: Vec<Timing>,
    /// Notes for the operator (keys that differ only in case, fallbacks taken).
    pub notes: Vec<String>,
}

/// What the root document of a place says it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Root {
    /// A checkpoint.
    Checkpoint {
        /// Its record, whose hash is right.
        record: Box<Record>,
        /// Whether another tool wrote the document anew, with equal content.
        rewritten: bool,
    },
    /// A run, with the `milepost` attribute's other members.
    Run(Map<String, Value>),
    /// A checkpoint that was deleted, or an attempt that was taken over and can never be committed.
    Revoked {
        /// Who revoked it.
        writer: String,
        /// Whether it was committed before: then no writer of it is left.
        deleted: bool,
    },
    /// Any other Zarr node.
    Foreign,
}
