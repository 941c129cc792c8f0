//! Stores: where objects live. Keys and bytes only; no Zarr, no dtypes, no meaning of keys.
//!
//! A [`Store`] is one bucket, file system or memory; a [`Place`] is a store and a prefix in it. Each store
//! states its own character in [`Capabilities`], and the layers above choose their path by that, never by
//! what kind of store it is.
//!
//! Futures need no runtime of the caller's: local work runs on the engine's disk threads, remote requests on
//! the engine's own Tokio runtime. Dropping a read future gives its result up; the buffers it owns are freed when
//! the system call returns.
//!
//! - `local/`: the file system; [`memory`]: tests and scratch; [`object`]: everything `object_store` speaks, on
//!   the runtime of [`remote`];
//! - [`url`]: from what a user types to a [`Place`]; [`key`]: what a key may be;
//! - [`fault`]: a store that fails on purpose; [`mod@probe`]: what a place can do, found out by trying.

mod fault;
mod key;
mod local;
mod memory;
mod object;
mod probe;
mod remote;
#[cfg(test)]
mod tests;
mod url;

pub use fault::{Action, Count, FaultStore, Operation, Verb};
pub(crate) use local::{Disk, LocalStore};
pub use memory::MemoryStore;
pub use object::ObjectStoreAdapter;
pub use probe::{Finding, Outcome, probe};
pub use remote::Remote;
pub(crate) use url::Stores;

use crate::{
    buffer::{Buffer, Region},
    error::{Error, Result},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::{fmt, path::Path, sync::Arc, time::SystemTime};

pub(crate) use crate::tasks::Priority;

/// What a store can do and how it wants to be used.
#[expect(clippy::struct_excessive_bools, reason = "a table of yes and no, each with its name")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A directory can be renamed atomically, without replacing another.
    pub rename: bool,
    /// Two directories can be exchanged atomically.
    pub exchange: bool,
    /// `put_new` has exactly one winner.
    pub put_new: bool,
    /// Objects can be copied inside the store.
    pub copy: bool,
    /// `create` works: one object is written at offsets, by several threads.
    pub positional_writes: bool,
    /// Objects can be written at all.
    pub writable: bool,
    /// Names that differ only in case are different names.
    pub case_sensitive: bool,
    /// How many requests at once are useful.
    pub concurrency: usize,
    /// The ideal size of one request in bytes.
    pub part_bytes: usize,
    /// Ranges closer than this are fetched as one, in bytes.
    pub coalesce_gap_bytes: u64,
    /// Shards up to this size are written, in bytes.
    pub shard_bytes: u64,
}

/// Which bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of it, but never more than this many bytes.
    Whole {
        /// `Corrupt` where the object is longer.
        bytes_max: u64,
    },
    /// From `offset`, exactly `len` bytes.
    Range {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The last `len` bytes; `Corrupt` where the object is shorter.
    Suffix {
        /// Number of bytes.
        len: u64,
    },
}

impl Span {
    /// Returns offset and length in an object of `size` bytes.
    ///
    /// Called before anything is allocated: the length is then that of bytes which are there.
    ///
    /// # Errors
    /// `Corrupt` where the object is longer (`Whole`) or shorter (the others) than that.
    fn resolve(self, size: u64) -> Result<(u64, u64)> {
        let truncated = |expected: u64| {
            Error::corrupt("object is truncated")
                .with("range", self)
                .with("expected_bytes", expected)
                .with("actual_bytes", size)
        };
        match self {
            Self::Whole { bytes_max } if size > bytes_max => {
                Err(Error::corrupt("object is longer than it can be")
                    .with("bytes_max", bytes_max)
                    .with("actual_bytes", size))
            }
            Self::Whole { .. } => Ok((0, size)),
            Self::Range { offset, len } => match offset.checked_add(len) {
                Some(end) if end <= size => Ok((offset, len)),
                end => Err(truncated(end.unwrap_or(u64::MAX))),
            },
            Self::Suffix { len } if len > size => Err(truncated(len)),
            Self::Suffix { len } => Ok((size - len, len)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole { .. } => f.write_str(".."),
            Self::Range { offset, len } => write!(f, "{offset}..{}", offset.saturating_add(*len)),
            Self::Suffix { len } => write!(f, "last {len}"),
        }
    }
}

/// An object as a listing or a head shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key in the store.
    pub key: String,
    /// The size in bytes.
    pub bytes: u64,
    /// When it was last written, by the store's clock.
    pub modified: SystemTime,
}

/// One level of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The objects directly below the prefix, sorted by key.
    pub objects: Vec<ObjectMeta>,
    /// The names (one segment, no slash) of what has objects below it, sorted.
    pub prefixes: Vec<String>,
}

/// How a directory is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// `AlreadyExists` where the target is there.
    NoReplace,
    /// Source and target change places; `Unsupported` where the file system cannot.
    Exchange,
}

/// An object under construction that is written at offsets.
///
/// It is visible under its key at once (a local file); the layers above put it below a temporary prefix.
pub trait ObjectWriter: fmt::Debug + Send + Sync {
    /// Writes all of `data` at `offset` and gives the buffer back for reuse.
    ///
    /// Where `offset`, the buffer's address and its length are page-aligned, the write may be direct.
    fn write_at(&self, offset: u64, data: Buffer) -> BoxFuture<'static, Result<Buffer>>;

    /// Sets the object's final size and closes it. Not durable before [`Store::sync`].
    fn finish(&self, bytes: u64) -> BoxFuture<'static, Result<()>>;
}

/// A place for objects.
///
/// Every error carries `store` and `object` (the key). Missing objects are `NotFound`, refusals by permission
/// `Invalid` with a hint, a full disk `Unavailable` with a hint; short reads are `Corrupt`.
pub trait Store: fmt::Debug + Send + Sync {
    /// Returns the root as a URL or path, for messages.
    fn url(&self) -> &str;

    /// Returns what the store can do.
    fn capabilities(&self) -> &Capabilities;

    /// Reads a small object or part of one.
    fn get(&self, key: &str, span: Span, priority: Priority) -> BoxFuture<'static, Result<Bytes>>;

    /// Reads one contiguous range, scattered over `parts` in order, and gives them back filled.
    fn read(
        &self,
        key: &str,
        offset: u64,
        parts: Vec<Region>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>>;

    /// Writes a whole object from a gather list, replacing any other.
    fn put(
        &self,
        key: &str,
        payload: Vec<Bytes>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<()>>;

    /// Creates a small object, durably; `AlreadyExists` where one is there. Of several callers one wins.
    ///
    /// The payload must name its writer (an id): where the answer of a remote store is lost, the object is
    /// read back, and equal bytes are taken for our own.
    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>>;

    /// Starts an object that is written at offsets; `bytes` is its expected size, for preallocation.
    ///
    /// `Unsupported` without [`Capabilities::positional_writes`].
    fn create(
        &self,
        key: &str,
        bytes: u64,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>>;

    /// Copies an object inside the store; `Unsupported` without [`Capabilities::copy`].
    fn copy(&self, from: &str, _to: &str) -> BoxFuture<'static, Result<()>> {
        let error = Error::unsupported("this store cannot copy objects")
            .with("object", from)
            .with("store", self.url());
        Box::pin(futures::future::ready(Err(error)))
    }

    /// Returns size and time of an object.
    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>>;

    /// Lists one level below `prefix` (no trailing slash; empty for the root). An absent prefix is empty.
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>>;

    /// Lists every object below `prefix`, sorted by key.
    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>>;

    /// Deletes objects; those that are gone already are no error.
    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>>;

    /// Deletes everything below `prefix` (and the directory itself), never through a symbolic link.
    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>>;

    /// Makes everything written below `prefix` durable. A no-op where every put is.
    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>>;

    /// Renames a directory and makes the rename durable; `Unsupported` without [`Capabilities::rename`].
    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>>;

    /// Creates an empty directory chain where the store has directories; else a no-op.
    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>>;

    /// Finds out what is special about the place of an existing, empty prefix, by trying inside it.
    fn inspect(&self, _prefix: &str) -> BoxFuture<'static, Result<Vec<Finding>>> {
        Box::pin(futures::future::ready(Ok(Vec::new())))
    }

    /// Tells the place of a prefix in the local file system, where it has one.
    fn local_path(&self, _key: &str) -> Option<std::path::PathBuf> {
        None
    }
}

/// A store and a prefix in it: where a run, a checkpoint or an array is.
#[derive(Clone, Debug)]
pub struct Place {
    store: Arc<dyn Store>,
    prefix: String,
}

impl Place {
    /// Names `prefix` (no leading or trailing slash) in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, prefix: impl Into<String>) -> Self {
        Self { store, prefix: prefix.into() }
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Returns the prefix in the store.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the last segment of the prefix.
    #[must_use]
    pub fn name(&self) -> &str {
        self.prefix.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the full key of `relative` below this place.
    #[must_use]
    pub fn key(&self, relative: &str) -> String {
        match (self.prefix.is_empty(), relative.is_empty()) {
            (true, _) => relative.to_owned(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}/{relative}", self.prefix),
        }
    }

    /// Returns the place `relative` below this one.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        Self { store: Arc::clone(&self.store), prefix: self.key(relative) }
    }

    /// Returns the place that holds this one; the root's is itself.
    #[must_use]
    pub fn parent(&self) -> Self {
        let prefix = self.prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
        Self { store: Arc::clone(&self.store), prefix: prefix.to_owned() }
    }

    /// Returns the local path, where the store is a file system.
    #[must_use]
    pub fn local_path(&self) -> Option<std::path::PathBuf> {
        self.store.local_path(&self.prefix)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local_path() {
            Some(path) => Path::display(&path).fmt(f),
            None => write!(f, "{}/{}", self.store.url().trim_end_matches('/'), self.prefix),
        }
    }
}
