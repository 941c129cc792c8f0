//! The short text of a compressor, as the command line takes it and the index keeps it.
//!
//! ```text
//! none
//! zstd[:level[:checksum]]                          level 3
//! gzip[:level]                                     level 6
//! blosc[:cname[:level[:shuffle[:blocksize]]]]      lz4, level 5, shuffle, blosc's own block size
//! ```
//!
//! Display writes the parameters out and leaves what follows them off where it is the default, so text and
//! compressor give each other back; blosc's element size alone comes from the array
//! ([`Compressor::with_typesize`]).

use super::{BloscCname, BloscShuffle, Compressor};
use crate::{FormatError, Result};
use std::{fmt, ops::RangeInclusive, str::FromStr};

/// The levels of zstd.
pub(super) const ZSTD_LEVELS: RangeInclusive<i32> = -131_072..=22;
/// The levels of gzip and blosc.
pub(super) const DEFLATE_LEVELS: RangeInclusive<u8> = 0..=9;

const FORMS: &str = "none, zstd[:level[:checksum]], gzip[:level] or \
    blosc[:cname[:level[:shuffle[:blocksize]]]], where level is -131072 to 22 for zstd and 0 to 9 for \
    gzip and blosc, cname one of blosclz, lz4, lz4hc, snappy, zlib, zstd and shuffle one of noshuffle, \
    shuffle, bitshuffle";

impl BloscCname {
    /// Every inner compressor.
    pub const ALL: [Self; 6] =
        [Self::Blosclz, Self::Lz4, Self::Lz4hc, Self::Snappy, Self::Zlib, Self::Zstd];

    /// Returns the Zarr name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blosclz => "blosclz",
            Self::Lz4 => "lz4",
            Self::Lz4hc => "lz4hc",
            Self::Snappy => "snappy",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// Parses the Zarr name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }
}

impl BloscShuffle {
    /// Every filter.
    pub const ALL: [Self; 3] = [Self::Noshuffle, Self::Shuffle, Self::Bitshuffle];

    /// Returns the Zarr name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Noshuffle => "noshuffle",
            Self::Shuffle => "shuffle",
            Self::Bitshuffle => "bitshuffle",
        }
    }

    /// Parses the Zarr name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

impl Compressor {
    /// Returns the compressor with blosc's element size set to `bytes`; the others have none.
    #[must_use]
    pub fn with_typesize(self, bytes: u32) -> Self {
        match self {
            Self::Blosc { cname, level, shuffle, blocksize, .. } => {
                Self::Blosc { cname, level, shuffle, blocksize, typesize: bytes }
            }
            other => other,
        }
    }
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd { level, checksum: false } => write!(f, "zstd:{level}"),
            Self::Zstd { level, checksum: true } => write!(f, "zstd:{level}:checksum"),
            Self::Gzip { level } => write!(f, "gzip:{level}"),
            Self::Blosc { cname, level, shuffle, blocksize, .. } => {
                write!(f, "blosc:{}:{level}:{}", cname.as_str(), shuffle.as_str())?;
                if *blocksize == 0 { Ok(()) } else { write!(f, ":{blocksize}") }
            }
        }
    }
}

impl FromStr for Compressor {
    type Err = FormatError;

    /// Parses the short text; blosc's element size is 1 until [`Compressor::with_typesize`].
    fn from_str(text: &str) -> Result<Self> {
        let bad = || FormatError::invalid(format!("codec `{text}` is none of {FORMS}"));
        let mut parts = text.split(':');
        let compressor = match parts.next().unwrap_or_default() {
            "none" => Some(Self::None),
            "zstd" => zstd(&mut parts),
            "gzip" => level(parts.next(), 6).map(|level| Self::Gzip { level }),
            "blosc" => blosc(&mut parts),
            _ => None,
        };
        match (compressor, parts.next()) {
            (Some(compressor), None) => Ok(compressor),
            _ => Err(bad()),
        }
    }
}

fn zstd<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<Compressor> {
    let level = parts.next().map_or(Ok(3), str::parse).ok()?;
    let checksum = match parts.next() {
        None => false,
        Some("checksum") => true,
        Some(_) => return None,
    };
    ZSTD_LEVELS.contains(&level).then_some(Compressor::Zstd { level, checksum })
}

fn blosc<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<Compressor> {
    let cname = parts.next().map_or(Some(BloscCname::Lz4), BloscCname::from_name)?;
    let level = level(parts.next(), 5)?;
    let shuffle = parts.next().map_or(Some(BloscShuffle::Shuffle), BloscShuffle::from_name)?;
    let blocksize = parts.next().map_or(Ok(0), str::parse).ok()?;
    Some(Compressor::Blosc { cname, level, shuffle, typesize: 1, blocksize })
}

fn level(text: Option<&str>, default: u8) -> Option<u8> {
    let level = text.map_or(Ok(default), str::parse).ok()?;
    DEFLATE_LEVELS.contains(&level).then_some(level)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_texts_have_their_documented_defaults() {
        for (text, full) in [
            ("none", "none"),
            ("zstd", "zstd:3"),
            ("zstd:-7", "zstd:-7"),
            ("zstd:1:checksum", "zstd:1:checksum"),
            ("gzip", "gzip:6"),
            ("gzip:9", "gzip:9"),
            ("blosc", "blosc:lz4:5:shuffle"),
            ("blosc:zstd", "blosc:zstd:5:shuffle"),
            ("blosc:lz4hc:9:bitshuffle", "blosc:lz4hc:9:bitshuffle"),
            ("blosc:lz4:1:noshuffle:65536", "blosc:lz4:1:noshuffle:65536"),
        ] {
            assert_eq!(text.parse::<Compressor>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn a_wrong_text_is_refused_with_the_valid_forms() {
        for text in [
            "",
            "lzma",
            "none:1",
            "zstd:23",
            "zstd:x",
            "zstd:1:2",
            "zstd:1:checksum:",
            "gzip:10",
            "gzip:",
            "gzip:-1",
            "blosc:zip",
            "blosc:lz4:10",
            "blosc:lz4:5:both",
            "blosc:lz4:5:shuffle:0:1",
            "ZSTD",
        ] {
            let error = text.parse::<Compressor>().unwrap_err();
            assert_eq!(error.kind(), crate::FormatErrorKind::Invalid);
            assert!(error.to_string().contains("zstd[:level"), "{error}");
        }
    }

    /// Any compressor that our documents can hold.
    pub(crate) fn compressors() -> impl Strategy<Value = Compressor> {
        let blosc = (0..6_usize, 0..=9_u8, 0..3_usize, 1..=255_u32, any::<u32>());
        prop_oneof![
            Just(Compressor::None),
            (ZSTD_LEVELS, any::<bool>())
                .prop_map(|(level, checksum)| Compressor::Zstd { level, checksum }),
            DEFLATE_LEVELS.prop_map(|level| Compressor::Gzip { level }),
            blosc.prop_map(|(cname, level, shuffle, typesize, blocksize)| Compressor::Blosc {
                cname: BloscCname::ALL[cname],
                level,
                shuffle: BloscShuffle::ALL[shuffle],
                typesize,
                blocksize,
            }),
        ]
    }

    proptest! {
        #[test]
        fn text_and_compressor_give_each_other_back(compressor in compressors()) {
            let back: Compressor = compressor.to_string().parse().unwrap();
            prop_assert_eq!(back.with_typesize(3), compressor.with_typesize(3));
        }
    }
}
