//! The local file system: objects are files, prefixes are directories.
//!
//! Every blocking call runs on the disk threads that the engine passes in; a future that is dropped before
//! its call started skips it. Large writes and cold large reads go past the page cache (`O_DIRECT`), where
//! the file system lets them; everything else, and every file system that does not, takes the buffered path.
//!
//! - [`read`], [`direct`]: ranges into regions; [`mod@write`]: whole objects, exclusive ones, at offsets;
//! - [`directory`]: listing, deleting, renaming, syncing; [`errno`]: what refusals mean;
//!   [`inspect`]: what `milepost doctor` asks of a file system.
//!
//! Capabilities are those of Linux file systems in general; a mount that cannot do one of them (an exchange on
//! NFS) says so when asked, with `Unsupported`, and nothing is written to find out.
//!
//! **Invariant:** an error names `store` and `object`, and nothing is done at a path that a key check refused.

mod direct;
mod directory;
mod errno;
mod inspect;
mod read;
mod write;

use super::{
    Capabilities, Listing, ObjectMeta, ObjectWriter, Priority, RenameMode, Span, Store, key,
    probe::Finding,
};
use crate::{
    buffer::{Buffer, Region},
    error::{Error, Result},
    tasks::Pool,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use rustix::fd::OwnedFd;
use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// More directories than this are not watched for write-back errors at once: each holds a descriptor.
const WITNESSES_MAX: usize = 64;
/// Threads for reads, for one that writes.
const READS: usize = 2;

/// The threads that wait for local disks.
///
/// Reads have threads of their own, and more of them: they fault in fresh memory, and the device should not wait for
/// that. As many writes at once would only queue in the device.
#[derive(Debug)]
pub(crate) struct Disk {
    reads: Pool,
    others: Pool,
}

impl Disk {
    /// Starts `threads` threads, and [`READS`] times as many for reads.
    ///
    /// # Errors
    /// `Unavailable` where the system refuses another thread.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let reads = Pool::new("milepost-read", threads * READS)?;
        Ok(Self { reads, others: Pool::new("milepost-disk", threads)? })
    }
}

/// A directory of the local file system, and everything below it.
pub(crate) struct LocalStore {
    root: Arc<Root>,
    disk: Arc<Disk>,
    capabilities: Capabilities,
}

struct Root {
    path: PathBuf,
    url: String,
    /// Descriptors of directories that were made and not yet synced, by prefix.
    witnesses: Mutex<HashMap<String, OwnedFd>>,
}

impl Root {
    fn path(&self, key: &str) -> PathBuf {
        if key.is_empty() { self.path.clone() } else { self.path.join(key) }
    }

    fn witnesses(&self) -> MutexGuard<'_, HashMap<String, OwnedFd>> {
        self.witnesses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalStore({})", self.root.url)
    }
}

impl LocalStore {
    /// Opens the directory `root`, which need not exist yet; nothing is written before something is put.
    ///
    /// # Errors
    /// `Invalid` where `root` is not absolute.
    pub(crate) fn new(root: PathBuf, disk: Arc<Disk>) -> Result<Arc<Self>> {
        let url = root.display().to_string();
        if !root.is_absolute() {
            return Err(Error::invalid("a local store needs an absolute path").with("store", url));
        }
        let capabilities = Capabilities {
            rename: true,
            exchange: true,
            put_new: true,
            copy: true,
            positional_writes: true,
            writable: true,
            case_sensitive: cfg!(target_os = "linux"),
            concurrency: disk.reads.threads(),
            part_bytes: 8 << 20,
            coalesce_gap_bytes: 256 << 10,
            shard_bytes: 256 << 20,
        };
        let root = Arc::new(Root { path: root, url, witnesses: Mutex::default() });
        Ok(Arc::new(Self { root, disk, capabilities }))
    }

    /// Runs `job` with the path of a checked key on a thread of a pool.
    fn run_on<T: Send + 'static>(
        &self,
        pool: &Pool,
        checked: Result<()>,
        key: &str,
        priority: Priority,
        job: impl FnOnce(&Root, &Path, &str) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        if let Err(error) = checked {
            let error = error.with("store", &self.root.url);
            return futures::future::ready(Err(error)).boxed();
        }
        let (root, key) = (Arc::clone(&self.root), key.to_owned());
        pool.run(priority, move || {
            job(&root, &root.path(&key), &key)
                .map_err(|error| error.with("object", &key).with("store", &root.url))
        })
        .boxed()
    }

    fn run<T: Send + 'static>(
        &self,
        checked: Result<()>,
        key: &str,
        priority: Priority,
        job: impl FnOnce(&Root, &Path, &str) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        self.run_on(&self.disk.others, checked, key, priority, job)
    }

    fn object<T: Send + 'static>(
        &self,
        key: &str,
        priority: Priority,
        job: impl FnOnce(&Path, &str) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        self.run(key::check_key(key), key, priority, move |_, path, key| job(path, key))
    }

    /// Reads the bytes of an object.
    fn reading<T: Send + 'static>(
        &self,
        key: &str,
        priority: Priority,
        job: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let checked = key::check_key(key);
        self.run_on(&self.disk.reads, checked, key, priority, move |_, path, _| job(path))
    }

    fn prefix<T: Send + 'static>(
        &self,
        prefix: &str,
        job: impl FnOnce(&Root, &Path, &str) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        self.run(key::check_prefix(prefix), prefix, Priority::Foreground, job)
    }
}

impl Store for LocalStore {
    fn url(&self) -> &str {
        &self.root.url
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn get(&self, key: &str, span: Span, priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        self.reading(key, priority, move |path| read::get(path, span))
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        mut parts: Vec<Region>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        self.reading(key, priority, move |path| {
            read::read(path, offset, &mut parts)?;
            Ok(parts)
        })
    }

    fn put(
        &self,
        key: &str,
        payload: Vec<Bytes>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<()>> {
        self.object(key, priority, move |path, _| write::put(path, &payload))
    }

    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        self.object(key, Priority::Foreground, move |path, _| write::put_new(path, &payload))
    }

    fn create(
        &self,
        key: &str,
        bytes: u64,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        let (root, disk) = (Arc::clone(&self.root), Arc::clone(&self.disk));
        self.object(key, priority, move |path, key| {
            let file = Arc::new(write::OpenFile::create(path.to_owned(), bytes)?);
            let key = key.into();
            Ok(Arc::new(LocalWriter { file, root, disk, key, priority }) as Arc<dyn ObjectWriter>)
        })
    }

    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        let checked = key::check_key(from).and_then(|()| key::check_key(to));
        let to = to.to_owned();
        self.run(checked, from, Priority::Foreground, move |root, path, _| {
            write::copy(path, &root.path(&to)).map_err(|error| error.with("target", to))
        })
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        self.object(key, Priority::Foreground, directory::head)
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        self.prefix(prefix, |_, path, prefix| directory::list(path, prefix))
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        self.prefix(prefix, |_, path, prefix| directory::list_all(path, prefix))
    }

    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        let checked = keys.iter().try_for_each(|key| key::check_key(key));
        self.run(checked, "", Priority::Foreground, move |root, _, _| {
            keys.iter().try_for_each(|key| {
                directory::delete(&root.path(key)).map_err(|error| error.with("object", key))
            })
        })
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        // Never the root: a bug above must not be able to empty a file system.
        self.run(key::check_key(prefix), prefix, Priority::Foreground, |root, path, prefix| {
            root.witnesses().remove(prefix);
            directory::delete_all(path)
        })
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.prefix(prefix, |root, path, prefix| {
            let witness = root.witnesses().remove(prefix);
            directory::sync(path, witness.as_ref())
        })
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        let checked = key::check_key(from).and_then(|()| key::check_key(to));
        let to = to.to_owned();
        self.run(checked, from, Priority::Foreground, move |root, path, from| {
            root.witnesses().remove(from);
            directory::rename(path, &root.path(&to), mode).map_err(|error| error.with("target", to))
        })
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.prefix(prefix, |root, path, prefix| {
            let dir = directory::create(path)?;
            let mut witnesses = root.witnesses();
            if witnesses.len() < WITNESSES_MAX {
                witnesses.insert(prefix.to_owned(), dir);
            }
            Ok(())
        })
    }

    fn inspect(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<Finding>>> {
        self.prefix(prefix, |_, path, _| inspect::inspect(path))
    }

    fn local_path(&self, key: &str) -> Option<PathBuf> {
        Some(self.root.path(key))
    }
}

struct LocalWriter {
    file: Arc<write::OpenFile>,
    root: Arc<Root>,
    disk: Arc<Disk>,
    key: Arc<str>,
    priority: Priority,
}

impl fmt::Debug for LocalWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalWriter({})", self.key)
    }
}

impl LocalWriter {
    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&write::OpenFile) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (file, root, key) =
            (Arc::clone(&self.file), Arc::clone(&self.root), Arc::clone(&self.key));
        self.disk
            .others
            .run(self.priority, move || {
                job(&file).map_err(|error| error.with("object", &key).with("store", &root.url))
            })
            .boxed()
    }
}

impl ObjectWriter for LocalWriter {
    fn write_at(&self, offset: u64, data: Buffer) -> BoxFuture<'static, Result<Buffer>> {
        self.run(move |file| {
            let range = || format!("{offset}..{}", offset.saturating_add(data.len() as u64));
            file.write_at(offset, &data).map_err(|error| error.with("range", range()))?;
            Ok(data)
        })
    }

    fn finish(&self, bytes: u64) -> BoxFuture<'static, Result<()>> {
        self.run(move |file| file.finish(bytes))
    }
}
