//! What is fuzzed: one function a parser, called with any bytes; it returns, whatever they are.
//!
//! Two drivers share this file: the libFuzzer binaries beside it, and `tests/it/fuzz.rs`, which mutates the
//! seeds with a fixed seed on every test run. Beyond not panicking, what was parsed is written and must parse
//! to the same again. Parameters that a caller would know from elsewhere are the first bytes of the input.

use milepost_formats::{
    index::Index,
    record::{Root, RunMembers},
    safetensors::{Header, encode_header, header_bytes},
    zarr3,
};

/// A fuzzed parser.
pub type Target = fn(&[u8]);

/// Every target under the name of its seeds' folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("zarr3_document", zarr3_document),
    ("zarr3_shard_index", zarr3_shard_index),
    ("record", record),
    ("index_chunk", index_chunk),
    ("index_json", index_json),
    ("safetensors_header", safetensors_header),
];

/// A `zarr.json`: array, group or foreign.
///
/// # Panics
/// Where what was parsed does not survive writing.
pub fn zarr3_document(bytes: &[u8]) {
    let Ok(document) = zarr3::Document::parse(bytes) else { return };
    let written = match &document {
        zarr3::Document::Array(array) => array.to_bytes(),
        zarr3::Document::Group(group) => group.to_bytes(),
        zarr3::Document::Foreign(_) => return,
    };
    let again = zarr3::Document::parse(&written).expect("a document that we wrote parses");
    assert_eq!(again, document, "a document changed on its way through bytes");
}

/// A shard index; the first 8 bytes are chunks (u16), flags (u16) and the shard's size (u32).
///
/// # Panics
/// Where what was parsed does not survive writing.
pub fn zarr3_shard_index(bytes: &[u8]) {
    let Some((head, index)) = bytes.split_first_chunk::<8>() else { return };
    let [c0, c1, flags, _, b0, b1, b2, b3] = *head;
    let chunks = u64::from(u16::from_le_bytes([c0, c1]));
    let crc32c = flags & 1 == 1;
    let object_bytes = (flags & 2 == 2).then(|| u64::from(u32::from_le_bytes([b0, b1, b2, b3])));
    let Ok(parsed) = zarr3::ShardIndex::parse(index, chunks, crc32c, object_bytes) else { return };
    assert_eq!(parsed.to_bytes(crc32c), index, "a shard index changed on its way through bytes");
}

/// The root document of a place, with its commit record, or with what a run says.
///
/// # Panics
/// Where what a run says does not survive writing.
pub fn record(bytes: &[u8]) {
    let Ok(Root::Run(members)) = Root::parse(bytes) else { return };
    let Ok(run) = RunMembers::from_members(&members) else { return };
    if let Ok(written) = run.to_members() {
        assert_eq!(RunMembers::from_members(&written).expect("what was written parses"), run);
    }
}

/// A stored index chunk; the first 4 bytes are the size of its JSON.
pub fn index_chunk(bytes: &[u8]) {
    let Some((head, chunk)) = bytes.split_first_chunk::<4>() else { return };
    drop(Index::parse_chunk(chunk, u64::from(u32::from_le_bytes(*head))));
}

/// The JSON inside an index chunk: random bytes never get past the checksum outside it.
///
/// # Panics
/// Where what was parsed does not survive writing.
pub fn index_json(bytes: &[u8]) {
    let Ok(index) = Index::parse_json(bytes) else { return };
    let chunk = index.to_chunk().expect("an index that parsed can be written");
    let again = Index::parse_chunk(&chunk.chunk, chunk.json_bytes).expect("ours parses");
    assert_eq!(again, index, "an index changed on its way through bytes");
}

/// The header of a safetensors file; the first 4 bytes are the size of the data behind it.
///
/// # Panics
/// Where what was parsed does not survive writing.
pub fn safetensors_header(bytes: &[u8]) {
    let Some((head, file)) = bytes.split_first_chunk::<4>() else { return };
    let data_bytes = u64::from(u32::from_le_bytes(*head));
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return };
    let Ok(length) = header_bytes(length) else { return };
    let json = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(json) = json else { return };
    let Ok(header) = Header::parse(json, 8 + length + data_bytes) else { return };
    let written = encode_header(&header.tensors, &header.metadata).expect("what parsed is written");
    let file_bytes = written.len() as u64 + data_bytes;
    let again = Header::parse(&written[8..], file_bytes).expect("a header that we wrote parses");
    assert_eq!(again.tensors, header.tensors, "tensors changed on their way through bytes");
    assert_eq!(again.metadata, header.metadata, "metadata changed on its way through bytes");
}
