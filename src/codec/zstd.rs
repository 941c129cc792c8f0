//! Zstandard, one context a thread.
//!
//! A context costs an allocation of some hundred KiB to a few MiB; reusing it is worth 5 to 10 % at 64 KiB chunks.
//! Those of high levels hold tens of MiB outside every budget, so they are freed after each chunk.
//!
//! One-shot decoding writes straight into the target: a frame that claims more content, or a larger window,
//! than the target holds fails without an allocation.

use crate::error::{Error, Result};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// From here a compression context is large enough to be freed between chunks.
const LEVEL_RETAINED_MAX: i32 = 9;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Returns how many bytes encoding takes at most.
pub(super) fn bound(raw_bytes: usize) -> usize {
    zstd::zstd_safe::compress_bound(raw_bytes)
}

/// Checks a level before any chunk is encoded.
pub(super) fn validate(level: i32) -> Result<()> {
    if zstd::compression_level_range().contains(&level) {
        return Ok(());
    }
    Err(Error::invalid("a zstd level out of range").with("level", level))
}

/// Encodes `raw` as one frame with its content size and returns the frame's length.
pub(super) fn encode(raw: &[u8], out: &mut [u8], level: i32, checksum: bool) -> Result<usize> {
    let failed = |e| Error::internal("zstd cannot encode a chunk").because(e);
    COMPRESSOR.with_borrow_mut(|slot| {
        let mut compressor = match slot.take() {
            Some(compressor) => compressor,
            None => Compressor::new(level).map_err(failed)?,
        };
        compressor.set_compression_level(level).map_err(failed)?;
        compressor.include_checksum(checksum).map_err(failed)?;
        let bytes = compressor.compress_to_buffer(raw, out).map_err(failed)?;
        if level <= LEVEL_RETAINED_MAX {
            *slot = Some(compressor);
        }
        Ok(bytes)
    })
}

/// Decodes all frames of `encoded` into `out` and returns how many bytes that gave.
pub(super) fn decode(encoded: &[u8], out: &mut [u8]) -> Result<usize> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let mut decompressor = match slot.take() {
            Some(decompressor) => decompressor,
            None => Decompressor::new()
                .map_err(|e| Error::internal("zstd cannot make a context").because(e))?,
        };
        let result = decompressor.decompress_to_buffer(encoded, out);
        *slot = Some(decompressor);
        result.map_err(|e| Error::corrupt("zstd cannot decode the chunk").because(e))
    })
}
