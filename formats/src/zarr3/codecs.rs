//! The codec chains of our profile as plain data.

/// What turns one decoded chunk into its stored bytes, in order.
///
/// `[transpose?] → bytes (little endian) → [compressor?] → [crc32c?]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The axis order of a `transpose` codec.
    pub transpose: Option<Vec<usize>>,
    /// The bytes-to-bytes compressor.
    pub compressor: Compressor,
    /// Whether four bytes of crc32c (little endian) end the chunk.
    pub crc32c: bool,
}

/// A bytes-to-bytes compressor and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// The bytes as they are.
    None,
    /// Zstandard; `checksum` adds its own xxh64 to the frame.
    Zstd {
        /// −131072 to 22.
        level: i32,
        /// Whether the frame carries a checksum.
        checksum: bool,
    },
    /// Gzip.
    Gzip {
        /// 0 to 9.
        level: u8,
    },
    /// Blosc 1.
    Blosc {
        /// The inner compressor.
        cname: BloscCname,
        /// 0 to 9.
        level: u8,
        /// The filter before it.
        shuffle: BloscShuffle,
        /// The element size the shuffle works on, in bytes.
        typesize: u32,
        /// The block size in bytes; 0 lets blosc choose.
        blocksize: u32,
    },
}

/// The compressors inside blosc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is its Zarr name")]
pub enum BloscCname {
    Blosclz,
    Lz4,
    Lz4hc,
    Snappy,
    Zlib,
    Zstd,
}

/// The filters inside blosc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is its Zarr name")]
pub enum BloscShuffle {
    Noshuffle,
    Shuffle,
    Bitshuffle,
}

/// Where a shard keeps its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is its Zarr name")]
pub enum IndexLocation {
    Start,
    End,
}

/// One sharding level: chunks inside a stored shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharding {
    /// The shape of a chunk; it divides the shard's shape.
    pub chunk_shape: Vec<u64>,
    /// Where the index is.
    pub index_location: IndexLocation,
    /// Whether four bytes of crc32c end the index.
    pub index_crc32c: bool,
}

/// The whole `codecs` member of an array document in our profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codecs {
    /// The sharding level, where there is one.
    pub sharding: Option<Sharding>,
    /// The chain of one chunk.
    pub chain: Chain,
}
