//! The index as a Zarr array: `_milepost/<item>/zarr.json` and its only chunk, `c.0`.
//!
//! ```text
//! canonical JSON ──zstd level 3──▶ frame ──▶ frame ‖ crc32c of the frame, 4 bytes LE
//! ```
//!
//! The array's document is a pure function of the JSON's size, which the commit record holds; a reader
//! needs the record and this one object.

use super::Index;
use crate::{
    DataType, FormatError, Result, json,
    zarr3::{ArrayDocument, Chain, Codecs, Compressor, GroupDocument},
};
use serde_json::json;
use std::io::Read;

/// The largest JSON of an index.
pub const INDEX_JSON_BYTES_MAX: u64 = 4 << 30;

const ZSTD_LEVEL: i32 = 3;
const CRC_BYTES: usize = 4;

/// An index as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexChunk {
    /// `_milepost/<item>/zarr.json`.
    pub document: Vec<u8>,
    /// `_milepost/<item>/c.0`.
    pub chunk: Vec<u8>,
    /// The size of the JSON inside, which the record carries.
    pub json_bytes: u64,
}

/// Returns the bytes of `_milepost/<item>/zarr.json`: a function of the JSON's size alone.
#[must_use]
pub fn index_document(json_bytes: u64) -> Vec<u8> {
    let array = ArrayDocument {
        shape: vec![json_bytes],
        data_type: DataType::UInt8,
        grid_shape: vec![json_bytes.max(1)],
        separator: '.',
        codecs: Codecs {
            sharding: None,
            chain: Chain {
                transpose: None,
                compressor: Compressor::Zstd { level: ZSTD_LEVEL, checksum: false },
                crc32c: true,
            },
        },
        fill_value: vec![0],
        dimension_names: Some(vec![Some("byte".to_owned())]),
        attributes: json::object([("milepost", json!({"kind": "index"}))]),
    };
    array.to_bytes()
}

/// Returns the bytes of `_milepost/zarr.json` where it is not a claim.
#[must_use]
pub fn index_group_document() -> Vec<u8> {
    let attributes = json::object([("milepost", json!({"kind": "indexes"}))]);
    GroupDocument { attributes, consolidated: None }.to_bytes()
}

impl Index {
    /// Encodes the index as it is stored.
    ///
    /// # Errors
    /// `Invalid` as [`Index::to_json`], or where the JSON is over 4 GiB.
    pub fn to_chunk(&self) -> Result<IndexChunk> {
        let json = self.to_json()?;
        let json_bytes = json.len() as u64;
        if json_bytes > INDEX_JSON_BYTES_MAX {
            return Err(FormatError::invalid(format!(
                "the index is over 4 GiB. bytes=`{json_bytes}`"
            )));
        }
        let mut chunk = zstd::bulk::compress(&json, ZSTD_LEVEL)
            .map_err(|e| FormatError::invalid(format!("cannot compress the index: {e}")))?;
        let crc = crc32c::crc32c(&chunk);
        chunk.extend_from_slice(&crc.to_le_bytes());
        Ok(IndexChunk { document: index_document(json_bytes), chunk, json_bytes })
    }

    /// Decodes `_milepost/<item>/c.0`; `json_bytes` is what the record says about it.
    ///
    /// # Errors
    /// `Corrupt` where checksum, size or content is wrong; otherwise as [`Index::parse_json`].
    pub fn parse_chunk(chunk: &[u8], json_bytes: u64) -> Result<Self> {
        Self::parse_json(&unpack(chunk, json_bytes)?)
    }
}

/// Returns the JSON of a stored index chunk.
fn unpack(chunk: &[u8], json_bytes: u64) -> Result<Vec<u8>> {
    let corrupt = |what: &str| FormatError::corrupt(format!("the index is damaged: {what}"));
    if json_bytes > INDEX_JSON_BYTES_MAX {
        return Err(corrupt("it claims over 4 GiB"));
    }
    let frame_bytes =
        chunk.len().checked_sub(CRC_BYTES).ok_or_else(|| corrupt("it is too short"))?;
    let (frame, crc) = chunk.split_at_checked(frame_bytes).unwrap_or_default();
    if crc32c::crc32c(frame).to_le_bytes() != crc {
        return Err(corrupt("checksum mismatch"));
    }
    let mut json = Vec::new();
    // Grows with what is really there; one byte more than was claimed proves the claim false.
    zstd::stream::read::Decoder::new(frame)
        .and_then(|decoder| decoder.take(json_bytes + 1).read_to_end(&mut json))
        .map_err(|e| corrupt(&e.to_string()))?;
    if json.len() as u64 == json_bytes {
        Ok(json)
    } else {
        Err(corrupt("its size is not what the record says"))
    }
}
