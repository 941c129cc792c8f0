//! Zarr v3 documents: arrays and groups in our profile, shard index, consolidated metadata.

mod codecs;
mod document;

pub use codecs::{BloscCname, BloscShuffle, Chain, Codecs, Compressor, IndexLocation, Sharding};
pub use document::{ArrayDocument, Document, ForeignArray, GroupDocument};
