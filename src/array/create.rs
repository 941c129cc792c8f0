//! The document of an array of ours, made for a leaf or made again from the index.

use milepost_formats::{
    DataType,
    index::Leaf,
    zarr3::{ArrayDocument, Chain, Codecs, Compressor, IndexLocation, Sharding},
};
use serde_json::Map;

/// What decides how an array of ours is stored.
pub(crate) struct Stored<'a> {
    pub(crate) data_type: DataType,
    pub(crate) shape: &'a [u64],
    pub(crate) chunk_shape: &'a [u64],
    pub(crate) shard_shape: Option<&'a [u64]>,
    pub(crate) compressor: Compressor,
    pub(crate) transpose: Option<Vec<usize>>,
}

/// Returns the document in the interop profile, without names and attributes.
pub(crate) fn document(stored: Stored<'_>) -> ArrayDocument {
    let typesize = u32::try_from(stored.data_type.size_bytes()).unwrap_or(1);
    let compressor = stored.compressor.with_typesize(typesize);
    ArrayDocument {
        shape: stored.shape.to_vec(),
        data_type: stored.data_type,
        grid_shape: stored.shard_shape.unwrap_or(stored.chunk_shape).to_vec(),
        separator: '.',
        codecs: Codecs {
            sharding: stored.shard_shape.map(|_| Sharding {
                chunk_shape: stored.chunk_shape.to_vec(),
                index_location: IndexLocation::End,
                index_crc32c: true,
            }),
            chain: Chain { transpose: stored.transpose, compressor, crc32c: true },
        },
        fill_value: vec![0; stored.data_type.size_bytes()],
        dimension_names: None,
        attributes: Map::new(),
    }
}

/// Returns the codec of a document in the index's text form.
///
/// A transpose has no short form: it makes the text one that [`document_of`] does not take.
pub(crate) fn codec_text(document: &ArrayDocument) -> String {
    let chain = &document.codecs.chain;
    match &chain.transpose {
        None => chain.compressor.to_string(),
        Some(order) => {
            let order: Vec<_> = order.iter().map(usize::to_string).collect();
            format!("transpose({}),{}", order.join(","), chain.compressor)
        }
    }
}

/// Makes the document of a leaf again from its entry in the index, where that says everything.
///
/// Saves a request a leaf: a whole restore reads no documents.
pub(crate) fn document_of(leaf: &Leaf) -> Option<ArrayDocument> {
    let compressor: Compressor = leaf.codec.parse().ok()?;
    Some(document(Stored {
        data_type: leaf.stored_as.unwrap_or(leaf.data_type),
        shape: &leaf.shape,
        chunk_shape: &leaf.chunk_shape,
        shard_shape: leaf.shard_shape.as_deref(),
        compressor,
        transpose: None,
    }))
}

/// Returns the key of a stored object relative to its array, by its linear number in C order.
pub(crate) fn object_name(leaf: &Leaf, mut linear: u64) -> String {
    let stored = leaf.shard_shape.as_ref().unwrap_or(&leaf.chunk_shape);
    let mut position = vec![0; leaf.shape.len()];
    for axis in (0..position.len()).rev() {
        let count = leaf.shape[axis].div_ceil(stored[axis].max(1)).max(1);
        position[axis] = linear % count;
        linear /= count;
    }
    let mut name = "c".to_owned();
    for index in position {
        name.push('.');
        name.push_str(&index.to_string());
    }
    name
}
