//! Blosc 1 by the C library that zarrs links too; the thread-safe `_ctx` calls only, one thread each.
//!
//! The crate `blosc` would link the same library a second time, which cargo refuses, so these few calls
//! are made here.
#![expect(unsafe_code, reason = "three calls into the C library; each SAFETY comment says why")]

use crate::error::{Error, Result};
use blosc::{
    BLOSC_BITSHUFFLE, BLOSC_BLOSCLZ_COMPNAME, BLOSC_LZ4_COMPNAME, BLOSC_LZ4HC_COMPNAME,
    BLOSC_MAX_BUFFERSIZE, BLOSC_MAX_OVERHEAD, BLOSC_MAX_TYPESIZE, BLOSC_NOSHUFFLE, BLOSC_SHUFFLE,
    BLOSC_SNAPPY_COMPNAME, BLOSC_ZLIB_COMPNAME, BLOSC_ZSTD_COMPNAME, blosc_cbuffer_validate,
    blosc_compress_ctx, blosc_decompress_ctx,
};
use milepost_formats::zarr3::{BloscCname, BloscShuffle};
use std::ffi::{CStr, c_int};

/// What the encoder is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) cname: BloscCname,
    pub(super) level: u8,
    pub(super) shuffle: BloscShuffle,
    pub(super) typesize: u32,
    pub(super) blocksize: u32,
}

impl Settings {
    /// Checks the settings before any chunk is encoded.
    pub(super) fn validate(&self, raw_bytes: usize) -> Result<()> {
        if self.level > 9 {
            return Err(Error::invalid("a blosc level out of range").with("level", self.level));
        }
        if raw_bytes > BLOSC_MAX_BUFFERSIZE as usize {
            return Err(Error::invalid("a chunk is larger than blosc holds")
                .with("bytes", raw_bytes)
                .with("bytes_max", BLOSC_MAX_BUFFERSIZE));
        }
        Ok(())
    }

    /// The element size for the library; what it cannot hold is 1, as in its own rule.
    fn typesize_or_one(&self) -> usize {
        if self.typesize > BLOSC_MAX_TYPESIZE { 1 } else { self.typesize.max(1) as usize }
    }

    fn name(&self) -> &'static CStr {
        let name: &'static [u8] = match self.cname {
            BloscCname::Blosclz => BLOSC_BLOSCLZ_COMPNAME,
            BloscCname::Lz4 => BLOSC_LZ4_COMPNAME,
            BloscCname::Lz4hc => BLOSC_LZ4HC_COMPNAME,
            BloscCname::Snappy => BLOSC_SNAPPY_COMPNAME,
            BloscCname::Zlib => BLOSC_ZLIB_COMPNAME,
            BloscCname::Zstd => BLOSC_ZSTD_COMPNAME,
        };
        CStr::from_bytes_with_nul(name).expect("the library's names end with a zero")
    }
}

/// Returns how many bytes encoding takes at most.
pub(super) fn bound(raw_bytes: usize) -> usize {
    raw_bytes.saturating_add(BLOSC_MAX_OVERHEAD as usize)
}

/// Encodes `raw` as one buffer and returns its length.
pub(super) fn encode(raw: &[u8], out: &mut [u8], settings: &Settings) -> Result<usize> {
    let shuffle = match settings.shuffle {
        BloscShuffle::Noshuffle => BLOSC_NOSHUFFLE,
        BloscShuffle::Shuffle => BLOSC_SHUFFLE,
        BloscShuffle::Bitshuffle => BLOSC_BITSHUFFLE,
    };
    // SAFETY: the library reads `raw.len()` bytes at `raw` and writes at most `out.len()` bytes at `out`; both are
    // live slices that do not overlap. The name is a C string. The call keeps no pointer and no global state.
    let written = unsafe {
        blosc_compress_ctx(
            c_int::from(settings.level),
            shuffle.cast_signed(),
            settings.typesize_or_one(),
            raw.len(),
            raw.as_ptr().cast(),
            out.as_mut_ptr().cast(),
            out.len(),
            settings.name().as_ptr(),
            settings.blocksize as usize,
            1,
        )
    };
    // 0 means that `out` is too small, which `bound` excludes.
    usize::try_from(written)
        .ok()
        .filter(|written| *written > 0)
        .ok_or_else(|| Error::internal("blosc cannot encode a chunk").with("code", written))
}

/// Returns how many bytes a buffer decodes to, by its header.
///
/// # Errors
/// `Corrupt` where the header is not one of a buffer of this length.
pub(super) fn decoded_bytes(encoded: &[u8]) -> Result<usize> {
    let mut bytes = 0;
    // SAFETY: the library reads at most `encoded.len()` bytes at `encoded`, a live slice, and writes one size.
    let valid =
        unsafe { blosc_cbuffer_validate(encoded.as_ptr().cast(), encoded.len(), &raw mut bytes) };
    if valid == 0 { Ok(bytes) } else { Err(Error::corrupt("the chunk has no blosc header")) }
}

/// Decodes one buffer into `out` and returns how many bytes that gave.
pub(super) fn decode(encoded: &[u8], out: &mut [u8]) -> Result<usize> {
    let claimed = decoded_bytes(encoded)?;
    if claimed != out.len() {
        return Ok(claimed); // the caller refuses a wrong size by name
    }
    // SAFETY: `decoded_bytes` has just proven that the lengths in the header are those of `encoded`, as this call
    // demands; it writes at most `out.len()` bytes at `out`, a live slice that does not overlap.
    let written = unsafe {
        blosc_decompress_ctx(encoded.as_ptr().cast(), out.as_mut_ptr().cast(), out.len(), 1)
    };
    usize::try_from(written)
        .map_err(|_| Error::corrupt("blosc cannot decode the chunk").with("code", written))
}
