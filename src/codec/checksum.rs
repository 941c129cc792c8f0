//! crc32c and xxh3-128, fused with the copy that has to be made anyway.
//!
//! A copy of a chunk that is larger than the cache reads memory once and writes it once. Checksumming it in a
//! second pass would read it again; so the fused copies go in pieces of [`PIECE_BYTES`], and each piece is
//! summed while it is in the cache.
//!
//! crc32c ends every chunk and covers every stored object. The sum of an object comes from those of its parts by
//! [`crc32c_combine`], without a second pass. xxh3-128 names content: the hash of a chunk is that of its decoded
//! bytes, the hash of several chunks that of their digests in order, so chunks hash on different threads.

use crate::error::{Error, Result};
use xxhash_rust::xxh3::Xxh3;

pub(crate) use ::crc32c::{crc32c, crc32c_append};

/// The bytes that a `crc32c` codec adds.
pub(crate) const CRC32C_BYTES: usize = 4;
/// Source and target of a piece are in the L2 cache together, and mostly in L1.
const PIECE_BYTES: usize = 32 * 1024;

/// Copies `source` to `target` and returns its crc32c.
///
/// # Panics
/// Where the lengths differ.
pub(crate) fn copy_crc32c(source: &[u8], target: &mut [u8]) -> u32 {
    let mut crc = 0;
    in_pieces(source, target, |piece| crc = crc32c_append(crc, piece));
    crc
}

/// Copies `source` to `target` and returns its crc32c and xxh3-128.
///
/// # Panics
/// Where the lengths differ.
pub(crate) fn copy_crc32c_xxh3(source: &[u8], target: &mut [u8]) -> (u32, u128) {
    let mut crc = 0;
    let mut hasher = Xxh3::new();
    in_pieces(source, target, |piece| {
        crc = crc32c_append(crc, piece);
        hasher.update(piece);
    });
    (crc, hasher.digest128())
}

fn in_pieces(source: &[u8], target: &mut [u8], mut sum: impl FnMut(&[u8])) {
    assert_eq!(source.len(), target.len(), "a copy keeps the length");
    for (from, to) in source.chunks(PIECE_BYTES).zip(target.chunks_mut(PIECE_BYTES)) {
        to.copy_from_slice(from);
        sum(to);
    }
}

/// Returns the crc32c of two runs one after the other, from those of each and the second's length.
pub(crate) fn crc32c_combine(first: u32, second: u32, second_bytes: u64) -> u32 {
    shift(first, second_bytes) ^ second
}

/// Returns the crc32c of what `crc` covers followed by `count` zero bytes.
pub(crate) fn crc32c_zeros(crc: u32, count: u64) -> u32 {
    !shift(!crc, count)
}

/// The Castagnoli polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Multiplies two polynomials modulo the Castagnoli polynomial; bit 31 is the coefficient of 1.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 == 1 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

/// `x^(8 · 2^i)`: what `2^i` zero bytes multiply a remainder by. By repeated squaring, so that the sums of
/// chunks combine in about a microsecond; the crate's 32 × 32 bit matrices take twenty.
const BYTE_SHIFTS: [u32; 64] = {
    let mut shifts = [1 << 23; 64]; // x^8
    let mut i = 1;
    while i < 64 {
        shifts[i] = multiply(shifts[i - 1], shifts[i - 1]);
        i += 1;
    }
    shifts
};

/// Multiplies a remainder by `x^(8 · bytes)`.
fn shift(remainder: u32, bytes: u64) -> u32 {
    let set = BYTE_SHIFTS.iter().enumerate().filter(|(i, _)| bytes >> i & 1 == 1);
    set.fold(remainder, |product, (_, factor)| multiply(*factor, product))
}

/// Compares the crc32c of `data` with the stored one.
///
/// # Errors
/// `Corrupt` with both.
pub(crate) fn verify_crc32c(data: &[u8], stored: [u8; CRC32C_BYTES]) -> Result<()> {
    compare(crc32c(data), stored)
}

/// Compares a computed crc32c with the stored one.
pub(super) fn compare(found: u32, stored: [u8; CRC32C_BYTES]) -> Result<()> {
    let expected = u32::from_le_bytes(stored);
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt("checksum mismatch")
        .with("expected", format!("{expected:08x}"))
        .with("found", format!("{found:08x}")))
}

/// Returns the content hash of one chunk: xxh3-128 of its decoded bytes.
pub(crate) fn content_hash(decoded: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(decoded)
}

/// Returns the content hash of a shard from the digests of its chunks in C order.
///
/// It is xxh3-128 over them, 16 bytes little endian each; also where there is only one (spec/index.md).
pub(crate) fn content_hash_of_chunks(digests: &[u128]) -> u128 {
    let mut hasher = Xxh3::new();
    for digest in digests {
        hasher.update(&digest.to_le_bytes());
    }
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i * i % 253).unwrap()).collect()
    }

    #[test]
    fn fused_copies_equal_copy_then_sum() {
        for len in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7] {
            let source = bytes(len);
            let (mut a, mut b) = (vec![0; len], vec![0; len]);
            assert_eq!(copy_crc32c(&source, &mut a), crc32c(&source));
            let sums = copy_crc32c_xxh3(&source, &mut b);
            assert_eq!(sums, (crc32c(&source), content_hash(&source)));
            assert!(a == source && b == source);
        }
        assert_eq!(crc32c(b"123456789"), 0xe306_9283); // the check value of RFC 3720
    }

    #[test]
    fn sums_of_parts_combine_to_that_of_the_whole() {
        let whole = bytes(100_000);
        for cut in [0, 1, 4095, 4096, 65_536, 99_999, 100_000] {
            let (head, tail) = whole.split_at(cut);
            let (a, b) = (crc32c(head), crc32c(tail));
            assert_eq!(crc32c_combine(a, b, tail.len() as u64), crc32c(&whole), "cut at {cut}");
            assert_eq!(crc32c_zeros(a, 777), crc32c_append(a, &[0; 777]));
        }
        for len in [1 << 31, (1 << 40) + 12_345, usize::MAX] {
            let ours = crc32c_combine(0x1234_5678, 0x9abc_def0, len as u64);
            assert_eq!(ours, ::crc32c::crc32c_combine(0x1234_5678, 0x9abc_def0, len), "{len}");
        }
    }

    #[test]
    fn the_hash_of_one_chunk_is_its_own_and_order_counts() {
        assert_ne!(content_hash_of_chunks(&[7]), 7);
        assert_ne!(content_hash_of_chunks(&[1, 2]), content_hash_of_chunks(&[2, 1]));
        let mut joined = 1u128.to_le_bytes().to_vec();
        joined.extend(2u128.to_le_bytes());
        assert_eq!(content_hash_of_chunks(&[1, 2]), content_hash(&joined));
    }

    #[test]
    fn a_mismatch_shows_both_sums() {
        let error = verify_crc32c(b"123456789", [0; 4]).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
        assert_eq!(error.get("expected"), Some("00000000"));
        assert_eq!(error.get("found"), Some("e3069283"));
        verify_crc32c(b"123456789", 0xe306_9283u32.to_le_bytes()).unwrap();
    }
}
