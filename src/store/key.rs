//! What a key may be: segments joined by `/`, the same rule in every store.
//!
//! A key that could leave its root (`..`), name the same object twice (`a//b`, `./a`) or end early in a
//! system call (NUL) is refused before any store sees it, so that a path in a foreign index cannot reach
//! outside the place it was found in.

use crate::error::{Error, Result};

/// Longer keys are refused by S3, GCS and Azure (1,024 bytes), and no file system takes them either.
const KEY_BYTES_MAX: usize = 4096;

/// Checks the key of an object.
///
/// # Errors
/// `Invalid` for an empty key, an empty, `.` or `..` segment, a NUL, or more than 4,096 bytes.
pub(super) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("a key is empty"));
    }
    check_prefix(key)
}

/// Checks a prefix: a key, or nothing for the root.
///
/// # Errors
/// As [`check_key`], but the empty prefix is the root.
pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.is_empty() {
        return Ok(());
    }
    let wrong = if prefix.len() > KEY_BYTES_MAX {
        "a key is longer than 4,096 bytes"
    } else if prefix.contains('\0') {
        "a key contains a NUL"
    } else if prefix.split('/').any(str::is_empty) {
        "a key has an empty segment"
    } else if prefix.split('/').any(|segment| segment == "." || segment == "..") {
        "a key has a `.` or `..` segment"
    } else {
        return Ok(());
    };
    Err(Error::invalid(wrong).with("object", prefix.escape_debug()))
}

/// Returns what is below `prefix` in `key`, where it is.
pub(super) fn below<'k>(key: &'k str, prefix: &str) -> Option<&'k str> {
    if prefix.is_empty() {
        return Some(key);
    }
    key.strip_prefix(prefix)?.strip_prefix('/')
}

/// Joins a prefix and a name.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

/// Returns 16 hexadecimal digits that nobody else has.
pub(super) fn unique() -> Result<String> {
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|e| {
        Error::unavailable("the system has no randomness")
            .because(std::io::Error::other(e.to_string()))
    })?;
    Ok(format!("{:016x}", u64::from_le_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_leave_their_root_or_have_two_spellings_are_refused() {
        for bad in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b", &"x/".repeat(3000)]
        {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b", "...", "a b/%20/ü", ".milepost/tmp/x", "c.0.0"] {
            check_key(good).unwrap();
        }
        check_prefix("").unwrap();
    }

    #[test]
    fn below_asks_for_a_whole_segment() {
        assert_eq!(below("ab/c", "a"), None);
        assert_eq!(below("a/c", "a"), Some("c"));
        assert_eq!(below("a", "a"), None);
        assert_eq!(below("a", ""), Some("a"));
    }
}
