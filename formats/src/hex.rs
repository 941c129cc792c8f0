//! 128-bit hashes as text: 32 lower-case hexadecimal digits, most significant first.

/// The number of digits.
pub(crate) const DIGITS: usize = 32;

/// Returns the digits of a hash.
pub(crate) fn to_text(hash: u128) -> String {
    format!("{hash:032x}")
}

/// Parses exactly 32 lower-case digits.
pub(crate) fn parse(text: &str) -> Option<u128> {
    let legal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != DIGITS || !text.bytes().all(legal) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}
