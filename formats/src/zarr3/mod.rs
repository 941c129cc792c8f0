//! Zarr v3 documents: arrays and groups in our profile, shard index, consolidated metadata.
//!
//! A `zarr.json` parses to a [`Document`]: an array of our profile, a group, or an array that is valid Zarr
//! but outside it, which zarrs decodes. The profile is what Milepost writes and reads on its own paths:
//!
//! ```text
//! grid     regular                       keys   default, separator . or /
//! codecs   [transpose?] bytes(little) [zstd|gzip|blosc]? [crc32c]?
//!          or sharding_indexed alone, that chain inside, index [bytes(little), crc32c?]
//! types    every DataType, fill value of that type
//! ```
//!
//! **Invariant:** sizes of a parsed document are true to each other: equal ranks, no zero chunk, the chunk
//! divides the shard, products fit. Whoever computes with them need not check again.

mod codec_json;
mod codecs;
mod document;
mod fill;
mod float;
mod parse;
mod shard;
mod short;
#[cfg(test)]
mod tests;

pub use codecs::{BloscCname, BloscShuffle, Chain, Codecs, Compressor, IndexLocation, Sharding};
pub use document::{ArrayDocument, Document, ForeignArray, GroupDocument, document_bytes};
pub use shard::ShardIndex;
