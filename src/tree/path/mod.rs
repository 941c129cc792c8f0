//! Key paths and the node names they get on disk.
//!
//! A [`KeyPath`] is where a leaf is in the caller's tree: typed keys. Each key becomes one segment of a
//! Zarr node path by [`escape_segment`], a pure function that never maps two texts to one segment:
//!
//! ```text
//! bytes outside A-Za-z0-9._-   %XX of the UTF-8, upper case     "h 0"        h%200
//! leading "__"                 its first byte                   "__x"        %5F_x
//! only dots                    every dot                        ".."         %2E%2E
//! trailing dot                 that dot                         "a."         a%2E
//! "zarr.json", "_milepost"     the first byte                   "zarr.json"  %7Aarr.json
//! ""                           a bare percent                   ""           %
//! over 200 bytes by then       prefix, %h, 32 hex of xxh3-128   "aaa…"       aaa…%h5c0f…
//! ```
//!
//! A percent sign of the text itself is `%25`, so `%`, `%h` and the escapes above cannot be written by a
//! key in any other way: the map is injective but for collisions of a 128-bit hash. Integers and
//! positions are their decimal text; that the integer 1 and the string `1` are then one node is found where
//! siblings meet ([`crate::tree::lay_out`]).
//!
//! **Invariant:** the text form of a key path is its node path, relative to the item. It is what errors,
//! the command line and the index show; nothing else is.

use crate::error::{Error, Result};
use milepost_formats::index::Key;
use std::{borrow::Cow, fmt};

/// A longer segment is cut and hashed. File systems allow 255 bytes; chunk and temporary names need some.
const SEGMENT_BYTES_MAX: usize = 200;
/// How much of a hashed segment stays readable.
const PREFIX_BYTES_MAX: usize = 160;
/// The longest node path; object stores allow 1,024 bytes, and run, step, item and chunk need their part.
pub(crate) const PATH_BYTES_MAX: usize = 900;
/// How deep a tree may be.
pub(crate) const DEPTH_MAX: usize = 512;

/// Names that mean something else in every group: escaped where a key is exactly one of them.
const RESERVED: [&str; 2] = ["zarr.json", "_milepost"];

/// Where a leaf is in a tree: the keys from the root to it.
///
/// Its text form is the escaped node path, for example `params/h_0/kernel`; the root's is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPath(Vec<Key>);

impl KeyPath {
    /// Returns the path of the root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Parses a text form: every segment becomes a [`Key::Name`].
    ///
    /// The text does not tell names from integers, positions and fields; where types matter, look the text
    /// up in the index instead.
    ///
    /// # Errors
    /// `Invalid` where the text is not what any key path displays as, or holds a hashed segment.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::root());
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(too_long(text));
        }
        text.split('/')
            .map(|segment| unescape_segment(segment).map(Key::Name))
            .collect::<Result<_>>()
            .map(Self)
            .map_err(|e| e.with("path", text))
    }

    /// Returns this path followed by one key.
    #[must_use]
    pub fn child(&self, key: impl IntoKey) -> Self {
        let mut keys = Vec::with_capacity(self.0.len() + 1);
        keys.extend_from_slice(&self.0);
        keys.push(key.into_key());
        Self(keys)
    }

    /// Appends one key.
    pub fn push(&mut self, key: impl IntoKey) {
        self.0.push(key.into_key());
    }

    /// Removes and returns the last key.
    pub fn pop(&mut self) -> Option<Key> {
        self.0.pop()
    }

    /// Returns the keys from the root on.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.0
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// Tells whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells whether `self` is `prefix` or below it.
    #[must_use]
    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// Returns the escaped node path, relative to the item.
    ///
    /// # Errors
    /// `Invalid` where it is longer than 900 bytes.
    pub fn node_path(&self) -> Result<String> {
        let path = self.to_string();
        if path.len() > PATH_BYTES_MAX { Err(too_long(&path)) } else { Ok(path) }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, key) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("/")?;
            }
            f.write_str(&segment(key))?;
        }
        Ok(())
    }
}

impl From<Vec<Key>> for KeyPath {
    fn from(keys: Vec<Key>) -> Self {
        Self(keys)
    }
}

impl<K: IntoKey> FromIterator<K> for KeyPath {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        Self(keys.into_iter().map(IntoKey::into_key).collect())
    }
}

impl<K: IntoKey, const N: usize> From<[K; N]> for KeyPath {
    fn from(keys: [K; N]) -> Self {
        keys.into_iter().collect()
    }
}

/// What can stand for a [`Key`]: text is a name, `i32` and `i64` a dict's integer, `usize` a position.
pub trait IntoKey {
    /// Returns the key.
    fn into_key(self) -> Key;
}

impl IntoKey for Key {
    fn into_key(self) -> Key {
        self
    }
}
impl IntoKey for &Key {
    fn into_key(self) -> Key {
        self.clone()
    }
}
impl IntoKey for &str {
    fn into_key(self) -> Key {
        Key::Name(self.to_owned())
    }
}
impl IntoKey for &String {
    fn into_key(self) -> Key {
        Key::Name(self.clone())
    }
}
impl IntoKey for String {
    fn into_key(self) -> Key {
        Key::Name(self)
    }
}
impl IntoKey for i32 {
    fn into_key(self) -> Key {
        Key::Int(self.into())
    }
}
impl IntoKey for i64 {
    fn into_key(self) -> Key {
        Key::Int(self)
    }
}
impl IntoKey for usize {
    fn into_key(self) -> Key {
        Key::Index(self as u64)
    }
}

/// Describes a key with its type, for messages that must tell `1` from `"1"`.
pub(crate) fn describe(key: &Key) -> String {
    match key {
        Key::Name(name) => format!("name {name:?}"),
        Key::Int(n) => format!("integer {n}"),
        Key::Index(n) => format!("position {n}"),
        Key::Attr(name) => format!("field {name:?}"),
    }
}

/// Returns the unescaped text of a key.
pub(crate) fn text(key: &Key) -> Cow<'_, str> {
    match key {
        Key::Name(name) | Key::Attr(name) => Cow::Borrowed(name),
        Key::Int(n) => Cow::Owned(n.to_string()),
        Key::Index(n) => Cow::Owned(n.to_string()),
    }
}

/// Returns the node name of a key.
pub(crate) fn segment(key: &Key) -> Cow<'_, str> {
    match key {
        Key::Name(name) | Key::Attr(name) => escape_segment(name),
        number => text(number),
    }
}

/// Escapes one key's text to one segment of a node path.
pub(crate) fn escape_segment(text: &str) -> Cow<'_, str> {
    if text.is_empty() {
        return Cow::Borrowed("%");
    }
    let bytes = text.as_bytes();
    let only_dots = bytes.iter().all(|b| *b == b'.');
    let escape_first = text.starts_with("__") || RESERVED.contains(&text);
    let must = |i: usize| {
        let b = bytes[i];
        !(b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            || (i == 0 && escape_first)
            || (b == b'.' && (only_dots || i + 1 == bytes.len()))
    };
    let hidden = (0..bytes.len()).filter(|i| must(*i)).count();
    let escaped = if hidden == 0 {
        Cow::Borrowed(text)
    } else {
        let mut out = String::with_capacity(bytes.len() + 2 * hidden);
        for (i, b) in bytes.iter().enumerate() {
            if must(i) {
                out.push('%');
                out.push(hex_digit(b >> 4));
                out.push(hex_digit(b & 15));
            } else {
                out.push(char::from(*b));
            }
        }
        Cow::Owned(out)
    };
    if escaped.len() <= SEGMENT_BYTES_MAX {
        return escaped;
    }
    let hash = xxhash_rust::xxh3::xxh3_128(bytes);
    Cow::Owned(format!("{}%h{hash:032x}", readable_prefix(&escaped)))
}

fn hex_digit(nibble: u8) -> char {
    char::from(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 })
}

/// Cuts an escaped segment for its hashed form, never inside an escape.
fn readable_prefix(escaped: &str) -> &str {
    let bytes = escaped.as_bytes();
    let mut end = PREFIX_BYTES_MAX;
    for back in 1..=2 {
        if bytes[PREFIX_BYTES_MAX - back] == b'%' {
            end = PREFIX_BYTES_MAX - back;
        }
    }
    &escaped[..end] // an escaped segment is ASCII
}

/// Returns the text that escapes to `segment`.
///
/// # Errors
/// `Invalid` where no text does, or where only its hash is there.
pub(crate) fn unescape_segment(segment: &str) -> Result<String> {
    let bad = || {
        Error::invalid("not an escaped key path segment")
            .with("segment", segment)
            .hint("bytes other than A-Za-z0-9._- are written %XX; `milepost tree` prints the paths")
    };
    if segment == "%" {
        return Ok(String::new());
    }
    if segment.contains("%h") {
        return Err(
            Error::invalid("a hashed segment does not give its key back").with("segment", segment)
        );
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else { return Err(bad()) };
        let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(high), digit(low)) else { return Err(bad()) };
        bytes.push(high << 4 | low);
        rest = tail;
    }
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    // Lower-case digits, needless and missing escapes all end here: one text, one segment.
    if escape_segment(&text) == segment { Ok(text) } else { Err(bad()) }
}

pub(crate) fn too_long(path: &str) -> Error {
    let bytes = path.len();
    let end = path.floor_char_boundary(PREFIX_BYTES_MAX);
    Error::invalid(format!("a node path is longer than {PATH_BYTES_MAX} bytes"))
        .with("bytes", bytes)
        .with("path", format!("{}…", &path[..end]))
}

#[cfg(test)]
mod tests;
