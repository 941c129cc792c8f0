//! What turns decoded chunks into stored bytes and back, and nothing else: CPU only, no files, no tokio.
//!
//! - [`chain`]: the chains of our own profile, compiled once an array, straight into the caller's buffers
//! - [`zstd`], [`gzip`], [`blosc`], [`transpose`]: their links, one file each
//! - [`checksum`]: crc32c and xxh3, fused with the copy that has to be made anyway
//! - [`foreign`]: any other array, decoded by zarrs
//! - [`mod@cast`]: numeric conversion of decoded elements, [`minifloat`] its formats of eight bits and fewer
//!
//! Every function runs on the caller's thread and starts none; the caller's pool decides how many run.
//!
//! **Invariant:** a decoder writes into the slice it is given and nowhere else, whatever the bytes claim;
//! bad bytes are a `Corrupt` error, never a panic, and never an allocation that follows a claimed length.

mod blosc;
mod cast;
mod chain;
mod checksum;
mod foreign;
mod gzip;
mod minifloat;
mod transpose;
mod zstd;

// Zarr's bytes and our records are little-endian, and elements are copied as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "milepost needs a little-endian machine");

pub use cast::CastRule;
pub(crate) use cast::{Cast, check as check_cast};
pub(crate) use chain::{Chain, Encoded};
pub(crate) use checksum::{
    CRC32C_BYTES, content_hash, content_hash_of_chunks, copy_crc32c_xxh3, crc32c, crc32c_append,
    crc32c_combine, crc32c_zeros,
};
pub(crate) use foreign::ForeignArray;
