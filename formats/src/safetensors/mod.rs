//! safetensors: header, shard index and writer.
//!
//! ```text
//!   0        8                    8 + n                              end of file
//!   ├────────┼─────────────────────┼──────────────────────────────────┤
//!   │ n: u64 │ JSON, space-padded  │ tensors, no holes, no overlaps   │
//!   └────────┴─────────────────────┴──────────────────────────────────┘
//!     little   { "__metadata__": {text: text}, name: {dtype, shape, data_offsets: [begin, end]}, … }
//! ```
//!
//! Reading: [`header_bytes`] of the first 8 bytes says how much to fetch, [`Header::parse`] checks all that the
//! reference implementation checks and refuses duplicate names besides. Writing: [`place`] gives tensors their
//! offsets, [`encode_header`] the bytes that come before them. Models in several files have a [`ShardIndex`];
//! [`split_names`] turns dotted names into key paths without loss.
//!
//! **Invariant:** a header that parses covers the file exactly, so every tensor can be read where it says.

mod dtype;
mod header;
mod names;
mod packing;
mod shards;
mod writer;

pub use dtype::Dtype;
pub use header::{HEADER_BYTES_MAX, Header, Tensor, header_bytes};
pub use names::{join_names, split_names};
pub use packing::{pack, unpack};
pub use shards::{ShardIndex, check_file_name, shard_file_name};
pub use writer::{Order, encode_header, place};

#[cfg(test)]
mod tests;
