//! How arrays are stored: one set of options for a save, refined by a leaf.

use super::publish::Durability;
use crate::{
    chunk::PlanOptions,
    error::{Error, Result},
};
use milepost_formats::zarr3::Compressor;

/// Whether an item's group document carries the metadata of all its members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consolidate {
    /// Where every data type is known to stock zarr-python and there are at most 1,000 leaves.
    ///
    /// One unknown type would make zarr-python refuse the whole group, and at 20,000 leaves the document takes
    /// 10 MB and 3 s to open.
    #[default]
    Auto,
    /// Never. Nothing of ours depends on it.
    Never,
}

/// How the arrays of a checkpoint are stored and when the save counts as done.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// The compressor of every chunk. Default: none, the fastest on local disks.
    pub compressor: Compressor,
    /// The decoded size a chunk should have, in bytes. Default: 4 MiB.
    pub chunk_bytes: u64,
    /// The decoded size up to which chunks share a shard, in bytes; 0: each chunk is its own object.
    /// Default: what the store asks for, 256 MiB on disks and 64 MiB on object stores.
    pub shard_bytes: Option<u64>,
    /// Stores data types that stock zarr-python lacks as integers of the same size. Default: off.
    pub portable: bool,
    /// Consolidated metadata. Default: where it helps.
    pub consolidate: Consolidate,
    /// When the save counts as done. Default: durable.
    pub durability: Durability,
    /// Whether a checkpoint that is there may be replaced. Default: no.
    pub overwrite: bool,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            compressor: Compressor::None,
            chunk_bytes: 4 << 20,
            shard_bytes: None,
            portable: false,
            consolidate: Consolidate::Auto,
            durability: Durability::Durable,
            overwrite: false,
        }
    }
}

impl SaveOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` names the field and its bounds.
    pub fn validate(&self) -> Result<()> {
        if self.chunk_bytes == 0 || self.chunk_bytes > 1 << 30 {
            return Err(Error::invalid("the chunk size is out of range")
                .with("chunk_bytes", self.chunk_bytes)
                .hint("give 1 byte to 1GiB; 4MiB is the default"));
        }
        Ok(())
    }

    /// Returns the options of one array on a store that asks for shards of `store_shard_bytes`.
    pub(crate) fn plan_options(&self, store_shard_bytes: u64) -> PlanOptions {
        PlanOptions {
            chunk_bytes: self.chunk_bytes,
            shard_bytes: self.shard_bytes.unwrap_or(store_shard_bytes),
            ..PlanOptions::default()
        }
    }
}
