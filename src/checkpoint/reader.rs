//! An open checkpoint: its record is read, nothing else. Indexes and arrays are fetched when asked for.
//!
//! One parameter costs one parameter: [`Checkpoint::leaf`] goes straight to the node of its key path, without
//! the index; opening is one request, then a leaf's document, then its bytes.

use super::{
    layout::{DOCUMENT, DOCUMENT_BYTES_MAX, index_chunk, join},
    publish::{Found, look},
};
use crate::{
    array::open::{Missing, OpenArray},
    error::{Error, ErrorKind, Result},
    io::{Engine, Progress, read::Context},
    store::{Place, Span},
    tasks::{Priority, wait},
    tree::TreeIndex,
};
use milepost_formats::{
    index::{self, Index, is_node_path},
    record::{Item, ItemKind, Record, Root},
    zarr3::Document,
};
use serde_json::{Map, Value};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// A committed checkpoint, open for reading; clones share the record.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(crate) engine: Arc<Engine>,
    pub(crate) place: Place,
    record: Arc<Record>,
    pub(crate) priority: Priority,
    pub(crate) progress: Progress,
    rewritten: bool,
}

impl Checkpoint {
    fn new(engine: &Arc<Engine>, place: &Place, record: Record, rewritten: bool) -> Self {
        Self {
            engine: Arc::clone(engine),
            place: place.clone(),
            record: Arc::new(record),
            priority: Priority::Restore,
            progress: Progress::default(),
            rewritten,
        }
    }

    /// Opens what was just saved, without a request.
    pub(crate) fn of(engine: &Arc<Engine>, saved: &super::Saved) -> Self {
        Self::new(engine, &saved.place, saved.record.clone(), false)
    }

    /// Opens the checkpoint at `place`: one request.
    ///
    /// # Errors
    /// `NotFound` where nothing is there, `Invalid` where it is a run or foreign Zarr, `Corrupt` where the
    /// record is damaged, `Unsupported` where it is of a newer version.
    pub async fn open(engine: &Arc<Engine>, place: &Place) -> Result<Self> {
        match look(place).await.map_err(|e| e.with("checkpoint", place))? {
            Found::Root(Root::Checkpoint { record, rewritten }) => {
                Ok(Self::new(engine, place, *record, rewritten))
            }
            Found::Root(Root::Run(_)) => {
                Err(Error::invalid("the place is a run, not a checkpoint")
                    .with("checkpoint", place)
                    .hint("name one of its steps; `milepost ls` lists them"))
            }
            Found::Root(Root::Revoked { .. }) => {
                Err(Error::not_found("the checkpoint was deleted").with("checkpoint", place))
            }
            Found::Root(_) => Err(Error::invalid("the place is Zarr, but no checkpoint of ours")
                .with("checkpoint", place)
                .hint("`milepost tree` and `milepost cat` read foreign Zarr too")),
            Found::Bad(error) => Err(error.with("checkpoint", place)),
            Found::Nothing => Err(Error::not_found("no checkpoint here")
                .with("checkpoint", place)
                .hint("check the path; a save in the making is not visible")),
        }
    }

    /// Opens on the calling thread; as [`Checkpoint::open`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_blocking(engine: &Arc<Engine>, place: &Place) -> Result<Self> {
        wait(Self::open(engine, place))
    }

    /// Sets the progress that the reads of this handle tell about.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Sets who goes first where operations share the engine. Default: restore.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Returns where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the commit record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Tells whether another tool rewrote the record's document without changing what it says.
    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        self.rewritten
    }

    /// Returns the entry of an item.
    ///
    /// # Errors
    /// `NotFound` names the items there are.
    pub fn item(&self, name: &str) -> Result<&Item> {
        self.record.items.iter().find(|item| item.name == name).ok_or_else(|| {
            let names: Vec<_> = self.record.items.iter().map(|i| format!("`{}`", i.name)).collect();
            self.blame(Error::not_found("no such item").with("item", name))
                .hint(format!("the checkpoint has {}", names.join(", ")))
        })
    }

    /// Returns the item meant where none is named: the only one, else `state`.
    ///
    /// # Errors
    /// `Invalid` where there are several and none is `state`.
    pub fn default_item(&self) -> Result<&Item> {
        match self.record.items.as_slice() {
            [only] => Ok(only),
            items => items.iter().find(|item| item.name == "state").ok_or_else(|| {
                let names: Vec<_> = items.iter().map(|i| format!("`{}`", i.name)).collect();
                self.blame(Error::invalid("the checkpoint has several items"))
                    .hint(format!("name one of {}", names.join(", ")))
            }),
        }
    }

    /// Checks that no other checkpoint, nor a tombstone, is in its place by now: one request.
    ///
    /// A checkpoint is a place: what is read of one that was replaced since it was opened is of another. Restores of
    /// trees and items ask by themselves; a [`super::LeafHandle`] does where a read fails only, so that one leaf
    /// costs one leaf: who keeps a handle for long asks after its reads.
    ///
    /// # Errors
    /// `Conflict` where it was replaced or deleted; those of the store.
    pub async fn check_current(&self) -> Result<()> {
        let became = match look(&self.place).await.map_err(|e| self.blame(e))? {
            Found::Root(Root::Checkpoint { record, .. }) => {
                if record.writer == self.record.writer {
                    return Ok(());
                }
                "replaced"
            }
            Found::Bad(error) => return Err(self.blame(error)),
            _ => "replaced or deleted",
        };
        let conflict = Error::conflict(format!("the checkpoint was {became} since it was opened"))
            .with("object", self.place.key(DOCUMENT));
        Err(self.blame(conflict).hint("open it again"))
    }

    /// Says why a read failed: damage that is none, where the checkpoint was replaced since it was opened.
    pub(crate) async fn explain(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) {
            return error;
        }
        match self.check_current().await {
            Err(conflict) if conflict.kind() == ErrorKind::Conflict => conflict.because(error),
            // Nothing new is known: the first error is the one to tell.
            _ => error,
        }
    }

    /// Gives what was read only where it is of this checkpoint.
    pub(crate) async fn settle<T>(&self, read: Result<T>) -> Result<T> {
        match read {
            Ok(read) => self.check_current().await.map(|()| read),
            Err(error) => Err(self.explain(error).await),
        }
    }

    pub(crate) fn context(&self) -> Context {
        Context {
            engine: Arc::clone(&self.engine),
            store: Arc::clone(self.place.store()),
            priority: self.priority,
            progress: self.progress.clone(),
        }
    }

    /// Adds what every error of this checkpoint says.
    pub(crate) fn blame(&self, error: Error) -> Error {
        match self.record.step {
            Some(step) => error.with("step", step),
            None => error,
        }
        .with("checkpoint", &self.place)
    }

    /// Reads and checks the index of an item: one request.
    pub(crate) async fn index(&self, item: &Item) -> Result<TreeIndex> {
        let index = match self.raw_index(item).await {
            Ok(index) => index,
            Err(error) => return Err(self.explain(error).await),
        };
        TreeIndex::new(index).map_err(|e| self.blame(e.with("item", &item.name)))
    }

    async fn raw_index(&self, item: &Item) -> Result<Index> {
        let key = self.place.key(&index_chunk(&item.name));
        let context = |e: Error| self.blame(e.with("item", &item.name).with("object", &key));
        let span = Span::Whole { bytes_max: item.index_bytes };
        let bytes = self.place.store().get(&key, span, self.priority).await.map_err(|e| {
            let gone = e.kind() == ErrorKind::NotFound;
            context(if gone { Error::corrupt("the index is missing").because(e) } else { e })
        })?;
        if bytes.len() as u64 != item.index_bytes || xxh3_128(&bytes) != item.index_hash {
            return Err(context(Error::corrupt("the index is not the one the record names"))
                .hint("run `milepost verify`, or restore another step"));
        }
        Index::parse_chunk(&bytes, item.index_json_bytes).map_err(|e| context(e.into()))
    }

    /// Opens one leaf by the text form of its key path, without reading the index.
    ///
    /// # Errors
    /// `NotFound` with the nearest names; `Invalid` where a container is there; `Conflict` where it is not there because
    /// the checkpoint was replaced.
    pub async fn leaf(&self, item: &str, path: &str) -> Result<super::LeafHandle> {
        let item = self.item(item)?;
        match self.open_leaf(item, path).await {
            Ok(leaf) => Ok(leaf),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn open_leaf(&self, item: &Item, path: &str) -> Result<super::LeafHandle> {
        let node = self.place.join(&join(&item.name, path));
        let key = node.key(DOCUMENT);
        let span = Span::Whole { bytes_max: DOCUMENT_BYTES_MAX };
        let found = if is_node_path(path) {
            self.place.store().get(&key, span, self.priority).await
        } else {
            Err(Error::not_found("no such key path"))
        };
        let bytes = match found {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // Only now the index is worth its price: it knows the nearest names.
                self.index(item).await?.lookup(path).map_err(|e| self.blame(e))?;
                let lost = Error::corrupt("the document of a leaf is missing").because(e);
                return Err(self.blame(lost.with("leaf", path).with("object", key)));
            }
            Err(e) => return Err(self.blame(e.with("leaf", path))),
        };
        let blame = |e: Error| self.blame(e.with("leaf", path).with("object", &key));
        let document = Document::parse(&bytes).map_err(|e| blame(e.into()))?;
        let attributes = match &document {
            Document::Array(array) => {
                index::parse_leaf_attributes(&array.attributes).map_err(|e| blame(e.into()))?
            }
            _ => None,
        };
        if let Document::Group(_) = document
            && matches!(item.kind, ItemKind::Tree | ItemKind::Opaque)
        {
            self.index(item).await?.lookup(path).map_err(|e| self.blame(e))?;
        }
        let array = OpenArray::new(node, path, document, Missing::Corrupt).map_err(blame)?;
        let (kind, data_type) = attributes.map(|a| (a.kind, a.data_type)).unwrap_or_default();
        Ok(super::LeafHandle::new(self.context(), array, kind, data_type).of(self))
    }

    /// Opens one leaf on the calling thread; as [`Checkpoint::leaf`].
    ///
    /// # Errors
    /// As [`Checkpoint::leaf`].
    pub fn leaf_blocking(&self, item: &str, path: &str) -> Result<super::LeafHandle> {
        wait(self.leaf(item, path))
    }
}

/// What the root document of a place says it is, for those who look for checkpoints.
#[derive(Debug)]
pub(crate) enum Peek {
    Checkpoint(Box<Checkpoint>),
    /// With the run's own members.
    Run(Map<String, Value>),
    Revoked,
    Foreign,
    Nothing,
    Bad(Error),
}

/// Looks at a place: one request.
///
/// # Errors
/// Those of the store; a bad document is [`Peek::Bad`].
pub(crate) async fn peek(engine: &Arc<Engine>, place: &Place) -> Result<Peek> {
    Ok(match look(place).await.map_err(|e| e.with("checkpoint", place))? {
        Found::Root(Root::Checkpoint { record, rewritten }) => {
            Peek::Checkpoint(Box::new(Checkpoint::new(engine, place, *record, rewritten)))
        }
        Found::Root(Root::Run(members)) => Peek::Run(members),
        Found::Root(Root::Revoked { .. }) => Peek::Revoked,
        Found::Root(Root::Foreign) => Peek::Foreign,
        Found::Bad(error) => Peek::Bad(error),
        Found::Nothing => Peek::Nothing,
    })
}
