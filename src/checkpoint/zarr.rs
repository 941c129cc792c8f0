//! Plain Zarr that is no checkpoint of ours: walked by listing, read through the same paths.
//!
//! Whatever zarrs decodes can be read: other grids, nested sharding, other codecs, big endian. A chunk that
//! is not stored stands for the fill value here.

use super::{
    layout::{DOCUMENT, DOCUMENT_BYTES_MAX, join},
    leaf::LeafHandle,
};
use crate::{
    array::open::{Missing, OpenArray},
    dtype::DataType,
    error::{Error, ErrorKind, Result},
    io::{Engine, Progress, read::Context},
    store::{Place, Span},
    tasks::{Priority, wait},
};
use milepost_formats::{index::parse_leaf_attributes, zarr3::Document};
use std::sync::Arc;

/// Groups nested deeper than this are not walked.
const DEPTH_MAX: usize = 128;

/// A node of a Zarr hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZarrNode {
    /// A group.
    Group {
        /// The path below the place that was walked; empty for itself.
        path: String,
    },
    /// An array.
    Array {
        /// The path below the place that was walked; empty for itself.
        path: String,
        /// The data type; `None` where it is none of ours.
        data_type: Option<DataType>,
        /// The name of the data type as written.
        data_type_name: String,
        /// The shape in elements.
        shape: Vec<u64>,
        /// The shape of a chunk, where the grid is regular.
        chunk_shape: Option<Vec<u64>>,
        /// The shape of a shard, where sharded in our profile.
        shard_shape: Option<Vec<u64>>,
        /// The codec, in the short form where it is in our profile, else `foreign`.
        codec: String,
    },
    /// A node that could not be understood, and why.
    Bad {
        /// The path below the place that was walked.
        path: String,
        /// What is wrong.
        message: String,
    },
}

impl ZarrNode {
    fn of(path: &str, document: Document) -> Self {
        let path = path.to_owned();
        match document {
            Document::Group(_) => Self::Group { path },
            Document::Array(array) => Self::Array {
                path,
                data_type: Some(array.data_type),
                data_type_name: array.data_type.to_string(),
                chunk_shape: Some(array.chunk_shape().to_vec()),
                shard_shape: array.codecs.sharding.as_ref().map(|_| array.grid_shape.clone()),
                codec: crate::array::codec_text(&array),
                shape: array.shape,
            },
            Document::Foreign(array) => Self::Array {
                path,
                data_type: array.data_type,
                data_type_name: array.data_type_name,
                shape: array.shape,
                chunk_shape: None,
                shard_shape: None,
                codec: "foreign".to_owned(),
            },
        }
    }
}

async fn read_document(place: &Place) -> Result<Document> {
    let key = place.key(DOCUMENT);
    let span = Span::Whole { bytes_max: DOCUMENT_BYTES_MAX };
    let bytes = place.store().get(&key, span, Priority::Restore).await?;
    Document::parse(&bytes).map_err(|e| Error::from(e).with("object", key))
}

/// Walks the Zarr hierarchy at `place`, parents before children, by listing; chunks are not listed.
///
/// # Errors
/// `NotFound` where no Zarr v3 node is there; the store's errors. A bad node below is [`ZarrNode::Bad`].
pub async fn walk_zarr(place: &Place) -> Result<Vec<ZarrNode>> {
    let mut nodes = Vec::new();
    let mut open = vec![(String::new(), 0)];
    while let Some((path, depth)) = open.pop() {
        let here = place.join(&path);
        let document = match read_document(&here).await {
            Ok(document) => document,
            Err(e) if e.kind() == ErrorKind::NotFound && path.is_empty() => {
                return Err(Error::not_found("no Zarr here").with("place", place).because(e));
            }
            // A directory that is no node: groups need not be the only thing in a hierarchy.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                nodes.push(ZarrNode::Bad { path, message: e.to_string() });
                continue;
            }
            Err(e) => return Err(e),
        };
        let is_group = matches!(document, Document::Group(_));
        nodes.push(ZarrNode::of(&path, document));
        if is_group && depth < DEPTH_MAX {
            let listing = place.store().list(here.prefix()).await?;
            open.extend(listing.prefixes.iter().rev().map(|name| (join(&path, name), depth + 1)));
        }
    }
    Ok(nodes)
}

/// Opens one array of any Zarr hierarchy by its path.
///
/// # Errors
/// `NotFound` where no node is there, `Invalid` where it is a group, `Unsupported` where nobody here decodes it.
pub async fn open_zarr_array(
    engine: &Arc<Engine>,
    place: &Place,
    path: &str,
) -> Result<LeafHandle> {
    let root = place.join(path);
    let document = read_document(&root).await.map_err(|e| e.with("leaf", path))?;
    let attributes = match &document {
        Document::Array(array) => parse_leaf_attributes(&array.attributes).ok().flatten(),
        _ => None,
    };
    let array = OpenArray::new(root, path, document, Missing::Fill)?;
    let context = Context {
        engine: Arc::clone(engine),
        store: Arc::clone(place.store()),
        priority: Priority::Restore,
        progress: Progress::default(),
    };
    let (kind, data_type) = attributes.map(|a| (a.kind, a.data_type)).unwrap_or_default();
    Ok(LeafHandle::new(context, array, kind, data_type))
}

/// Walks on the calling thread; as [`walk_zarr`].
///
/// # Errors
/// As [`walk_zarr`].
pub fn walk_zarr_blocking(place: &Place) -> Result<Vec<ZarrNode>> {
    wait(walk_zarr(place))
}

/// Opens on the calling thread; as [`open_zarr_array`].
///
/// # Errors
/// As [`open_zarr_array`].
pub fn open_zarr_array_blocking(
    engine: &Arc<Engine>,
    place: &Place,
    path: &str,
) -> Result<LeafHandle> {
    wait(open_zarr_array(engine, place, path))
}
