//! The codec chains of our own profile, compiled once an array.
//!
//! ```text
//! decoded chunk ─ transpose? ─ bytes (little endian) ─ zstd | gzip | blosc | nothing ─ crc32c? ─ stored
//! ```
//! A chunk goes from the caller's slice to the caller's slice; only a transpose needs a block between. Where nothing
//! compresses, storing is one copy that sums on the way.
//!
//! zarrs owns the format: what a chain here writes, zarrs' own codecs read, and the reverse (a test says so).
//! The chain is ours because zarrs' encoders allocate and copy for every link, and checksums once more.

use super::{
    blosc, checksum,
    checksum::{CRC32C_BYTES, copy_crc32c, copy_crc32c_xxh3, crc32c, crc32c_append},
    gzip,
    transpose::Permutation,
    zstd,
};
use crate::{
    buffer::page_ceil,
    dtype::DataType,
    error::{Error, Result},
};
use milepost_formats::zarr3;

/// What one chunk became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// How many bytes of the output are the stored chunk.
    pub(crate) bytes: usize,
    /// crc32c of all of them.
    pub(crate) crc32c: u32,
    /// xxh3-128 of the decoded chunk.
    pub(crate) content: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compressor {
    None,
    Zstd { level: i32, checksum: bool },
    Gzip { level: u8 },
    Blosc(blosc::Settings),
}

impl Compressor {
    fn new(parameters: zarr3::Compressor, decoded_bytes: usize) -> Result<Self> {
        Ok(match parameters {
            zarr3::Compressor::None => Self::None,
            zarr3::Compressor::Zstd { level, checksum } => {
                zstd::validate(level)?;
                Self::Zstd { level, checksum }
            }
            zarr3::Compressor::Gzip { level } => {
                gzip::validate(level)?;
                Self::Gzip { level }
            }
            zarr3::Compressor::Blosc { cname, level, shuffle, typesize, blocksize } => {
                let settings = blosc::Settings { cname, level, shuffle, typesize, blocksize };
                settings.validate(decoded_bytes)?;
                Self::Blosc(settings)
            }
        })
    }

    fn bound(self, raw_bytes: usize) -> usize {
        match self {
            Self::None => raw_bytes,
            Self::Zstd { .. } => zstd::bound(raw_bytes),
            Self::Gzip { .. } => gzip::bound(raw_bytes),
            Self::Blosc(_) => blosc::bound(raw_bytes),
        }
    }

    fn encode(self, raw: &[u8], out: &mut [u8]) -> Result<usize> {
        match self {
            Self::None => {
                out[..raw.len()].copy_from_slice(raw);
                Ok(raw.len())
            }
            Self::Zstd { level, checksum } => zstd::encode(raw, out, level, checksum),
            Self::Gzip { level } => gzip::encode(raw, out, level),
            Self::Blosc(settings) => blosc::encode(raw, out, &settings),
        }
    }

    /// Decodes into `out`, which must be filled exactly.
    fn decode(self, encoded: &[u8], out: &mut [u8]) -> Result<()> {
        let found = match self {
            Self::None if encoded.len() == out.len() => {
                out.copy_from_slice(encoded);
                encoded.len()
            }
            Self::None => encoded.len(),
            Self::Zstd { .. } => zstd::decode(encoded, out)?,
            Self::Gzip { .. } => gzip::decode(encoded, out)?,
            Self::Blosc(_) => blosc::decode(encoded, out)?,
        };
        if found == out.len() { Ok(()) } else { Err(wrong_size(out.len(), found)) }
    }
}

fn wrong_size(expected: usize, found: usize) -> Error {
    Error::corrupt("the chunk decodes to a wrong size")
        .with("expected", expected)
        .with("found", found)
}

/// The codec chain of the chunks of one array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    transpose: Option<Permutation>,
    compressor: Compressor,
    crc32c: bool,
    decoded_bytes: usize,
}

impl Chain {
    /// Compiles the chain for chunks of `chunk_shape`.
    ///
    /// # Errors
    /// `Invalid` where a parameter is out of range, the transpose is no permutation, or a chunk has no element
    /// or more bytes than memory.
    pub(crate) fn new(
        chain: &zarr3::Chain,
        data_type: DataType,
        chunk_shape: &[u64],
    ) -> Result<Self> {
        let item_bytes = data_type.size_bytes();
        let lengths: Option<Vec<usize>> =
            chunk_shape.iter().map(|n| usize::try_from(*n).ok().filter(|n| *n > 0)).collect();
        let bytes = lengths.as_ref().and_then(|lengths| {
            lengths.iter().try_fold(item_bytes, |product, n| product.checked_mul(*n))
        });
        // Half of the address space, so that no bound below overflows.
        let bytes = bytes.filter(|bytes| *bytes > 0 && *bytes <= usize::MAX / 4);
        let (Some(lengths), Some(decoded_bytes)) = (lengths, bytes) else {
            return Err(Error::invalid("a chunk has no element, or more than memory holds")
                .with("chunk_shape", format!("{chunk_shape:?}")));
        };
        let transpose = match &chain.transpose {
            Some(order) => Some(Permutation::new(&lengths, order, item_bytes)?),
            None => None,
        };
        let compressor = Compressor::new(chain.compressor, decoded_bytes)?;
        Ok(Self { transpose, compressor, crc32c: chain.crc32c, decoded_bytes })
    }

    /// Returns the size of a decoded chunk in bytes.
    pub(crate) fn decoded_bytes(&self) -> usize {
        self.decoded_bytes
    }

    /// Returns how many bytes an output must have: what a chunk takes at most, rounded up to a page.
    pub(crate) fn encoded_bytes_max(&self) -> usize {
        page_ceil(self.compressor.bound(self.decoded_bytes) + CRC32C_BYTES)
    }

    /// Returns the size of every stored chunk where it does not depend on the contents.
    pub(crate) fn encoded_bytes_fixed(&self) -> Option<usize> {
        let plain = self.compressor == Compressor::None;
        plain.then(|| self.decoded_bytes + if self.crc32c { CRC32C_BYTES } else { 0 })
    }

    /// Tells whether stored chunks are decoded ones, but for the crc32c at their end.
    pub(crate) fn is_plain(&self) -> bool {
        self.transpose.is_none() && self.compressor == Compressor::None
    }

    /// Tells whether four bytes of crc32c end each chunk.
    pub(crate) fn has_crc32c(&self) -> bool {
        self.crc32c
    }

    /// Encodes a whole chunk (C order, little endian) into `out` and returns the stored size.
    ///
    /// # Errors
    /// `Internal` where a library fails.
    ///
    /// # Panics
    /// Where `raw` is not a whole chunk or `out` is shorter than [`Chain::encoded_bytes_max`] without the
    /// rounding.
    pub(crate) fn encode_into(&self, raw: &[u8], out: &mut [u8]) -> Result<usize> {
        self.check_encode(raw, out);
        if self.is_plain() && self.crc32c {
            let crc = copy_crc32c(raw, &mut out[..raw.len()]);
            return Ok(append(out, raw.len(), crc));
        }
        let bytes = self.transform(raw, out)?;
        Ok(if self.crc32c { append(out, bytes, crc32c(&out[..bytes])) } else { bytes })
    }

    /// Encodes like [`Chain::encode_into`] and sums both sides, each byte read once where it can be.
    ///
    /// # Errors
    /// As [`Chain::encode_into`].
    ///
    /// # Panics
    /// As [`Chain::encode_into`].
    pub(crate) fn encode_summed(&self, raw: &[u8], out: &mut [u8]) -> Result<Encoded> {
        self.check_encode(raw, out);
        let (payload, crc, content) = if self.is_plain() {
            let (crc, content) = copy_crc32c_xxh3(raw, &mut out[..raw.len()]);
            (raw.len(), crc, content)
        } else {
            let content = checksum::content_hash(raw);
            let payload = self.transform(raw, out)?;
            (payload, crc32c(&out[..payload]), content)
        };
        if !self.crc32c {
            return Ok(Encoded { bytes: payload, crc32c: crc, content });
        }
        let bytes = append(out, payload, crc);
        Ok(Encoded { bytes, crc32c: crc32c_append(crc, &crc.to_le_bytes()), content })
    }

    fn check_encode(&self, raw: &[u8], out: &[u8]) {
        assert_eq!(raw.len(), self.decoded_bytes, "a whole chunk is encoded");
        let bound = self.compressor.bound(raw.len()) + CRC32C_BYTES;
        assert!(out.len() >= bound, "an output holds whatever a chunk becomes");
    }

    fn transform(&self, raw: &[u8], out: &mut [u8]) -> Result<usize> {
        match &self.transpose {
            Some(permutation) if self.compressor == Compressor::None => {
                permutation.apply(raw, &mut out[..raw.len()]);
                Ok(raw.len())
            }
            Some(permutation) => {
                let mut turned = vec![0; raw.len()];
                permutation.apply(raw, &mut turned);
                self.compressor.encode(&turned, out)
            }
            None => self.compressor.encode(raw, out),
        }
    }

    /// Decodes a stored chunk into `out`; where it fails, `out` holds anything.
    ///
    /// # Errors
    /// `Corrupt` where the checksum differs, a codec cannot decode, or the size is not a chunk's.
    ///
    /// # Panics
    /// Where `out` is not as long as a chunk.
    pub(crate) fn decode_into(&self, encoded: &[u8], out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len(), self.decoded_bytes, "a whole chunk is decoded");
        let payload = match self.split(encoded)? {
            // The copy sums on the way; nothing is decoded from bytes that are not checked yet.
            (payload, Some(stored)) if self.is_plain() && payload.len() == out.len() => {
                return checksum::compare(copy_crc32c(payload, out), stored);
            }
            (payload, Some(stored)) => {
                checksum::verify_crc32c(payload, stored)?;
                payload
            }
            (payload, None) => payload,
        };
        match &self.transpose {
            None => self.compressor.decode(payload, out),
            Some(permutation) if self.compressor == Compressor::None => {
                if payload.len() != out.len() {
                    return Err(wrong_size(out.len(), payload.len()));
                }
                permutation.revert(payload, out);
                Ok(())
            }
            Some(permutation) => {
                let mut turned = vec![0; out.len()];
                self.compressor.decode(payload, &mut turned)?;
                permutation.revert(&turned, out);
                Ok(())
            }
        }
    }

    /// Cuts the crc32c off a stored chunk.
    fn split<'a>(&self, encoded: &'a [u8]) -> Result<(&'a [u8], Option<[u8; CRC32C_BYTES]>)> {
        if !self.crc32c {
            return Ok((encoded, None));
        }
        match encoded.split_last_chunk() {
            Some((payload, stored)) => Ok((payload, Some(*stored))),
            None => Err(Error::corrupt("the chunk is shorter than its checksum")
                .with("found", encoded.len())),
        }
    }
}

/// Puts the crc32c behind the payload and returns the end.
fn append(out: &mut [u8], payload: usize, crc: u32) -> usize {
    let end = payload + CRC32C_BYTES;
    out[payload..end].copy_from_slice(&crc.to_le_bytes());
    end
}

#[cfg(test)]
mod tests;
