//! Gzip by `flate2`, the encoder that zarrs uses too.
//!
//! The header has no time and no name: equal chunks have equal bytes. Decoding reads all members of the stream,
//! as Python's does, into the target and stops there.

use crate::error::{Error, Result};
use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};
use std::io::{Cursor, ErrorKind, Read, Write};

/// Header and trailer of a member without optional fields.
const FRAME_BYTES: usize = 18;

/// Returns how many bytes encoding takes at most: miniz's own bound and the frame.
pub(super) fn bound(raw_bytes: usize) -> usize {
    let stored = raw_bytes + (raw_bytes / (31 * 1024) + 1) * 5; // blocks that do not compress
    let deflated = raw_bytes.saturating_add(raw_bytes / 10); // Huffman codes that do not pay
    stored.max(deflated) + 128 + FRAME_BYTES
}

/// Checks a level before any chunk is encoded.
pub(super) fn validate(level: u8) -> Result<()> {
    if level <= 9 {
        return Ok(());
    }
    Err(Error::invalid("a gzip level out of range").with("level", level))
}

/// Encodes `raw` as one member and returns its length.
pub(super) fn encode(raw: &[u8], out: &mut [u8], level: u8) -> Result<usize> {
    let mut encoder = GzEncoder::new(Cursor::new(out), Compression::new(u32::from(level)));
    let written = encoder.write_all(raw).and_then(|()| encoder.finish());
    let cursor = written.map_err(|e| Error::internal("gzip cannot encode a chunk").because(e))?;
    Ok(usize::try_from(cursor.position()).unwrap_or(usize::MAX))
}

/// Decodes `encoded` into `out` and returns how many bytes that gave.
pub(super) fn decode(encoded: &[u8], out: &mut [u8]) -> Result<usize> {
    let failed = |e| Error::corrupt("gzip cannot decode the chunk").because(e);
    let mut decoder = MultiGzDecoder::new(encoded);
    let mut filled = 0;
    loop {
        // One byte beyond the target tells a stream that is too long, and makes the decoder reach the trailer.
        let mut beyond = [0];
        let into = if filled < out.len() { &mut out[filled..] } else { beyond.as_mut_slice() };
        match decoder.read(into) {
            Ok(0) => return Ok(filled),
            Ok(_) if filled == out.len() => {
                return Err(Error::corrupt("the chunk decodes to more bytes than it has"));
            }
            Ok(read) => filled += read,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}
