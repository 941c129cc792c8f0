//! The index of a shard: where each of its chunks is.
//!
//! ```text
//! ┌──────────── 16 bytes a chunk, in C order ───────────┐┌── 4 bytes ──┐
//! │ offset u64 LE │ length u64 LE │ offset │ length │ … ││ crc32c LE   │
//! └─────────────────────────────────────────────────────┘└─ if asked ──┘
//! ```
//!
//! A chunk that is not there has 2^64 − 1 as both. Its size follows from the number of chunks, so readers
//! ask for exactly [`ShardIndex::encoded_bytes`] at the shard's end (or start).

use crate::{FormatError, Result};

const ENTRY_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const MISSING: u64 = u64::MAX;

/// The place of every chunk of a shard, in C order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardIndex {
    /// Offset in the shard and stored size, both in bytes; `None` where the chunk is missing.
    pub entries: Vec<Option<(u64, u64)>>,
}

impl ShardIndex {
    /// Returns the encoded size in bytes; `None` where it does not fit 64 bits.
    #[must_use]
    pub fn encoded_bytes(chunks: u64, crc32c: bool) -> Option<u64> {
        chunks.checked_mul(ENTRY_BYTES as u64)?.checked_add(if crc32c {
            CRC_BYTES as u64
        } else {
            0
        })
    }

    /// Parses and checks the encoded index of a shard of `chunks` chunks.
    ///
    /// `object_bytes` is the shard's stored size, where it is known: every chunk must lie inside it.
    ///
    /// # Errors
    /// `Corrupt` where the length, the checksum or a chunk's range is wrong.
    pub fn parse(
        bytes: &[u8],
        chunks: u64,
        crc32c: bool,
        object_bytes: Option<u64>,
    ) -> Result<Self> {
        if Self::encoded_bytes(chunks, crc32c) != u64::try_from(bytes.len()).ok() {
            return Err(FormatError::corrupt(format!(
                "the shard index has a wrong size. bytes=`{}`, chunks=`{chunks}`",
                bytes.len()
            )));
        }
        let entry_bytes = bytes.len() - if crc32c { CRC_BYTES } else { 0 };
        let (table, stored) = bytes.split_at_checked(entry_bytes).unwrap_or_default();
        if crc32c && crc32c::crc32c(table).to_le_bytes() != stored {
            return Err(FormatError::corrupt("checksum mismatch in the shard index"));
        }
        let (pairs, _) = table.as_chunks::<ENTRY_BYTES>();
        let entries = pairs
            .iter()
            .enumerate()
            .map(|(i, pair)| entry(*pair, object_bytes).map_err(|what| out_of_bounds(i, what)))
            .collect::<Result<_>>()?;
        Ok(Self { entries })
    }

    /// Encodes the index.
    #[must_use]
    pub fn to_bytes(&self, crc32c: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * ENTRY_BYTES + CRC_BYTES);
        for entry in &self.entries {
            let (offset, len) = entry.unwrap_or((MISSING, MISSING));
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        if crc32c {
            let crc = crc32c::crc32c(&out);
            out.extend_from_slice(&crc.to_le_bytes());
        }
        out
    }
}

fn entry(
    pair: [u8; ENTRY_BYTES],
    object_bytes: Option<u64>,
) -> Result<Option<(u64, u64)>, (u64, u64)> {
    let both = u128::from_le_bytes(pair);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of 16 bytes")]
    let (offset, len) = (both as u64, (both >> 64) as u64);
    if (offset, len) == (MISSING, MISSING) {
        return Ok(None);
    }
    match offset.checked_add(len) {
        Some(end) if end <= object_bytes.unwrap_or(MISSING) => Ok(Some((offset, len))),
        _ => Err((offset, len)),
    }
}

fn out_of_bounds(i: usize, (offset, len): (u64, u64)) -> FormatError {
    FormatError::corrupt(format!(
        "a chunk lies outside its shard. chunk=`{i}`, offset=`{offset}`, bytes=`{len}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn golden() -> ShardIndex {
        ShardIndex { entries: vec![Some((0, 5)), None, Some((4096, 300))] }
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let bytes = golden().to_bytes(true);
        let mut want = Vec::new();
        for n in [0, 5, u64::MAX, u64::MAX, 4096, 300] {
            want.extend(n.to_le_bytes());
        }
        assert_eq!(bytes[..48], want);
        assert_eq!(bytes[48..], crc32c::crc32c(&want).to_le_bytes());
        assert_eq!(golden().to_bytes(false), want);
        assert_eq!(ShardIndex::encoded_bytes(3, true), Some(52));
        assert_eq!(ShardIndex::encoded_bytes(u64::MAX / 16 + 1, false), None);
    }

    #[test]
    fn any_truncation_and_any_flipped_bit_is_found() {
        let bytes = golden().to_bytes(true);
        assert_eq!(ShardIndex::parse(&bytes, 3, true, Some(4396 + 52)).unwrap(), golden());
        for end in 0..bytes.len() {
            assert!(ShardIndex::parse(&bytes[..end], 3, true, None).is_err());
        }
        for bit in 0..8 * bytes.len() {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ShardIndex::parse(&bad, 3, true, None).is_err());
        }
    }

    #[test]
    fn ranges_that_lie_are_refused() {
        for (offset, len) in [(u64::MAX, 0), (0, u64::MAX), (1, u64::MAX), (4000, 1), (0, 4001)] {
            let index = ShardIndex { entries: vec![None, Some((offset, len))] };
            let error = ShardIndex::parse(&index.to_bytes(true), 2, true, Some(4000)).unwrap_err();
            assert!(error.to_string().contains("chunk=`1`"), "{error}");
        }
        let end = ShardIndex { entries: vec![Some((4000, 0))] };
        assert!(ShardIndex::parse(&end.to_bytes(false), 1, false, Some(4000)).is_ok());
        assert!(ShardIndex::parse(&[], u64::MAX, true, None).is_err());
        assert!(ShardIndex::parse(&[0; 16], u64::MAX / 16 + 2, false, None).is_err());
    }

    proptest! {
        #[test]
        fn every_index_survives(
            entries in proptest::collection::vec(
                proptest::option::of((0..1_u64 << 40, 0..1_u64 << 40)), 0..40),
            crc in any::<bool>(),
        ) {
            let index = ShardIndex { entries };
            let bytes = index.to_bytes(crc);
            let chunks = index.entries.len() as u64;
            prop_assert_eq!(ShardIndex::encoded_bytes(chunks, crc), Some(bytes.len() as u64));
            prop_assert_eq!(ShardIndex::parse(&bytes, chunks, crc, None).unwrap(), index);
        }

        #[test]
        fn any_bytes_are_an_index_or_an_error(bytes in any::<Vec<u8>>(), crc in any::<bool>()) {
            let chunks = (bytes.len() / 16) as u64;
            drop(ShardIndex::parse(&bytes, chunks, crc, Some(100)));
        }
    }
}
