//! One committed checkpoint: where names (tree) meet values (array).
//!
//! A [`CheckpointWriter`] plans its items, writes them into an attempt and publishes the record; a
//! [`Checkpoint`] is a record that was read, from which indexes, leaves and whole trees are restored or
//! verified. The layout on disk is spec/layout.md, the commit spec/commit.md.

mod files;
mod items;
mod judge;
mod layout;
mod leaf;
mod lease;
mod names;
mod options;
mod publish;
mod reader;
mod restore;
mod verify;
mod writer;
mod zarr;

// What names a checkpoint, for the rooms above, which open no other room.
pub(crate) use crate::{io::Engine, store::Place};

pub(crate) use files::{Files, Sink};
pub(crate) use layout::{parse_revision, revision_name};
pub(crate) use reader::{Peek, peek};

pub use items::Item;
pub use leaf::{ArrayData, LeafHandle};
pub use options::{Consolidate, SaveOptions};
pub use publish::Durability;
pub use reader::Checkpoint;
pub use restore::ItemIndex;
pub use verify::{Finding, Outcome, VerifyReport};
pub use writer::{CheckpointWriter, Saved};
pub use zarr::{
    ZarrNode, open_zarr_array, open_zarr_array_blocking, walk_zarr, walk_zarr_blocking,
};
