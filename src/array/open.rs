//! An array that is open for reading: its document understood, nothing else fetched.

use crate::{
    chunk::{Grid, Subset},
    codec::{Chain, ForeignArray},
    dtype::DataType,
    error::{Error, Result},
    store::Place,
};
use milepost_formats::{
    index::Object,
    zarr3::{ArrayDocument, Document, ShardIndex},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// So many chunks of a document's claim are believed in one read: about 400 MB of plan, 4 TiB at 4 MiB each.
const CLAIMED_CHUNKS_MAX: u64 = 1 << 20;

/// What a chunk that is not stored means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// In our steps every chunk is written: it was lost.
    Corrupt,
    /// In other Zarr it stands for the fill value.
    Fill,
}

#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) document: ArrayDocument,
    pub(crate) chain: Arc<Chain>,
    pub(crate) stored_grid: Grid,
}

#[derive(Debug)]
pub(crate) enum Format {
    Ours(Box<Ours>),
    Foreign(Arc<ForeignArray>),
}

/// An array that can be read.
#[derive(Debug)]
pub(crate) struct OpenArray {
    pub(crate) root: Place,
    /// The key path in its text form, for errors.
    pub(crate) leaf: Arc<str>,
    pub(crate) shape: Vec<u64>,
    /// The stored data type; `None` where only zarrs knows it.
    pub(crate) data_type: Option<DataType>,
    pub(crate) item_bytes: usize,
    /// The grid of chunks (of inner chunks where sharded by us).
    pub(crate) grid: Arc<Grid>,
    pub(crate) format: Format,
    pub(crate) missing: Missing,
    /// The stored objects, where an index told.
    objects: Option<Arc<[Object]>>,
    /// Shard indexes that were read, by shard.
    indexes: Mutex<HashMap<Vec<u64>, Arc<ShardIndex>>>,
}

/// So many entries of shard indexes a handle keeps: 16 MiB of them.
const INDEX_ENTRIES_MAX: usize = 1 << 20;

impl OpenArray {
    /// Understands `document`, the `zarr.json` at `root`.
    ///
    /// # Errors
    /// `Unsupported` for groups, data types of variable length and codecs nobody here knows.
    pub(crate) fn new(
        root: Place,
        leaf: &str,
        document: Document,
        missing: Missing,
    ) -> Result<Self> {
        Self::open(root, leaf, document, missing).map_err(|e| e.with("leaf", leaf))
    }

    fn open(root: Place, leaf: &str, document: Document, missing: Missing) -> Result<Self> {
        let leaf = Arc::from(leaf);
        match document {
            Document::Group(_) => Err(Error::invalid("the node is a group, not an array")
                .hint("name one of the arrays below it; `milepost tree` lists them")),
            Document::Array(document) => {
                let chunk_shape = document.chunk_shape().to_vec();
                let chain = Chain::new(&document.codecs.chain, document.data_type, &chunk_shape)?;
                Ok(Self {
                    root,
                    leaf,
                    missing,
                    shape: document.shape.clone(),
                    data_type: Some(document.data_type),
                    item_bytes: document.data_type.size_bytes(),
                    grid: Arc::new(Grid::new(&document.shape, &chunk_shape)?),
                    format: Format::Ours(Box::new(Ours {
                        stored_grid: Grid::new(&document.shape, &document.grid_shape)?,
                        chain: Arc::new(chain),
                        document,
                    })),
                    objects: None,
                    indexes: Mutex::default(),
                })
            }
            Document::Foreign(foreign) => {
                let array = ForeignArray::new(&foreign.json)?;
                Ok(Self {
                    root,
                    leaf,
                    missing,
                    shape: foreign.shape,
                    data_type: array.data_type(),
                    item_bytes: array.item_bytes(),
                    grid: Arc::clone(array.grid()),
                    format: Format::Foreign(Arc::new(array)),
                    objects: None,
                    indexes: Mutex::default(),
                })
            }
        }
    }

    /// Tells the sizes of the stored objects, in C order, as an index has them.
    pub(crate) fn with_objects(mut self, objects: Arc<[Object]>) -> Self {
        self.objects = Some(objects);
        self
    }

    /// Returns the index of a shard where this handle has read it.
    pub(crate) fn known_index(&self, shard: &[u64]) -> Option<Arc<ShardIndex>> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).get(shard).cloned()
    }

    /// Keeps the index of a shard for the next read through this handle, forgetting others beyond a limit.
    pub(crate) fn keep_index(&self, shard: &[u64], index: &Arc<ShardIndex>) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = indexes.values().map(|index| index.entries.len()).sum();
        if kept + index.entries.len() > INDEX_ENTRIES_MAX {
            indexes.clear();
        }
        indexes.insert(shard.to_vec(), Arc::clone(index));
    }

    /// Returns the size of a stored object, where an index told.
    pub(crate) fn object_bytes(&self, linear: u64) -> Option<u64> {
        let objects = self.objects.as_ref()?;
        objects.get(usize::try_from(linear).ok()?).map(|o| o.bytes)
    }

    /// Counts the chunks that one read of `subset` plans.
    ///
    /// # Errors
    /// `Unsupported` beyond a million, where only a document claims them: each costs memory before a byte is read.
    pub(crate) fn count_chunks(&self, subset: &Subset) -> Result<u64> {
        let chunks = self.grid.intersecting_count(subset);
        if chunks <= CLAIMED_CHUNKS_MAX || self.objects.is_some() {
            return Ok(chunks);
        }
        Err(Error::unsupported("a read of more chunks than one plan holds")
            .with("leaf", &self.leaf)
            .with("shape", format!("{:?}", self.shape))
            .with("chunks_max", CLAIMED_CHUNKS_MAX)
            .hint("read it slice by slice"))
    }

    /// Returns the shape of a whole chunk of ours.
    pub(crate) fn chunk_shape(&self) -> &[u64] {
        match &self.format {
            Format::Ours(ours) => ours.document.chunk_shape(),
            Format::Foreign(_) => &[],
        }
    }

    /// Returns the shape of a chunk as it is decoded, beyond the end of the array too.
    ///
    /// # Errors
    /// `Unsupported` where a foreign chunk is larger than this build decodes.
    pub(crate) fn full_chunk_shape(&self, chunk: &[u64]) -> Result<Vec<u64>> {
        match &self.format {
            Format::Ours(ours) => Ok(ours.document.chunk_shape().to_vec()),
            Format::Foreign(foreign) => foreign.chunk_shape(chunk),
        }
    }
}
