//! Objects in memory: for tests, for scratch, and for `memory://name/prefix`.
//!
//! Every operation is one short critical section, so all of them are atomic, renames of whole prefixes too.
//! There are no directories: a prefix is there while an object is below it. Stores with a name live as long as
//! the process, so that a path opened twice shows the same objects.

use super::{
    Capabilities, Listing, ObjectMeta, ObjectWriter, Priority, RenameMode, Span, Store, key,
};
use crate::{
    buffer::{Buffer, Region},
    error::{Error, Result},
    tasks::PerProcess,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

type Objects = BTreeMap<String, (Bytes, SystemTime)>;

static NAMED: PerProcess<BTreeMap<String, Arc<MemoryStore>>> = PerProcess::new();

/// A store whose objects are gone with it.
pub struct MemoryStore {
    url: String,
    objects: Arc<Mutex<Objects>>,
    capabilities: Capabilities,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({})", self.url)
    }
}

/// The time of this store.
fn now() -> SystemTime {
    #[cfg(test)]
    if let Some(machine) = crate::tasks::simulated::machine() {
        return machine.time();
    }
    SystemTime::now()
}

fn lock(objects: &Mutex<Objects>) -> MutexGuard<'_, Objects> {
    objects.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// Makes an empty store that nobody else sees.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::with_url("memory://".to_owned()))
    }

    /// Returns the store of that name, the same one in the whole process.
    #[must_use]
    pub fn named(name: &str) -> Arc<Self> {
        let mut named = NAMED.lock();
        let store = named
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Self::with_url(format!("memory://{name}"))));
        Arc::clone(store)
    }

    fn with_url(url: String) -> Self {
        let capabilities = Capabilities {
            rename: true,
            exchange: true,
            put_new: true,
            copy: true,
            positional_writes: true,
            writable: true,
            case_sensitive: true,
            concurrency: 8,
            part_bytes: 8 << 20,
            coalesce_gap_bytes: 0,
            shard_bytes: 256 << 20,
        };
        Self { url, objects: Arc::default(), capabilities }
    }

    fn answer<T: Send + 'static>(
        &self,
        key: &str,
        checked: Result<()>,
        job: impl FnOnce(&mut Objects) -> Result<T>,
    ) -> BoxFuture<'static, Result<T>> {
        let result = checked
            .and_then(|()| job(&mut lock(&self.objects)))
            .map_err(|error| error.with("object", key).with("store", &self.url));
        futures::future::ready(result).boxed()
    }

    fn object<T: Send + 'static>(
        &self,
        key: &str,
        job: impl FnOnce(&mut Objects) -> Result<T>,
    ) -> BoxFuture<'static, Result<T>> {
        self.answer(key, key::check_key(key), job)
    }

    fn prefix<T: Send + 'static>(
        &self,
        prefix: &str,
        job: impl FnOnce(&mut Objects) -> Result<T>,
    ) -> BoxFuture<'static, Result<T>> {
        self.answer(prefix, key::check_prefix(prefix), job)
    }
}

fn find<'a>(objects: &'a Objects, key: &str) -> Result<&'a (Bytes, SystemTime)> {
    objects.get(key).ok_or_else(|| Error::not_found("not found"))
}

fn slice(bytes: &Bytes, span: Span) -> Result<Bytes> {
    let (offset, len) = span.resolve(bytes.len() as u64)?;
    let start = usize::try_from(offset).map_err(|_| Error::internal("an offset overflows"))?;
    let len = usize::try_from(len).map_err(|_| Error::internal("a length overflows"))?;
    Ok(bytes.slice(start..start + len))
}

fn meta(key: &str, (bytes, modified): &(Bytes, SystemTime)) -> ObjectMeta {
    ObjectMeta { key: key.to_owned(), bytes: bytes.len() as u64, modified: *modified }
}

/// The keys below a prefix, with what is below it.
fn range<'a>(
    objects: &'a Objects,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a str, &'a (Bytes, SystemTime), &'a str)> {
    let start = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let end = start.clone();
    objects
        .range(start..)
        .take_while(move |(key, _)| key.starts_with(&end))
        .filter_map(move |(key, value)| Some((key.as_str(), value, key::below(key, prefix)?)))
}

fn take(objects: &mut Objects, prefix: &str) -> Vec<(String, (Bytes, SystemTime))> {
    let keys: Vec<(String, String)> =
        range(objects, prefix).map(|(key, _, below)| (key.to_owned(), below.to_owned())).collect();
    keys.into_iter().filter_map(|(key, below)| Some((below, objects.remove(&key)?))).collect()
}

fn rename(objects: &mut Objects, from: &str, to: &str, mode: RenameMode) -> Result<()> {
    let there = |prefix: &str| range(objects, prefix).next().is_some();
    if !there(from) {
        return Err(Error::not_found("not found"));
    }
    if key::below(to, from).is_some() || key::below(from, to).is_some() {
        return Err(Error::invalid("a directory cannot be renamed into itself"));
    }
    match mode {
        RenameMode::NoReplace if there(to) || objects.contains_key(to) => {
            return Err(Error::exists("exists already"));
        }
        RenameMode::Exchange if !there(to) => return Err(Error::not_found("not found")),
        _ => {}
    }
    let (ours, theirs) = (take(objects, from), take(objects, to));
    objects.extend(ours.into_iter().map(|(below, value)| (key::join(to, &below), value)));
    objects.extend(theirs.into_iter().map(|(below, value)| (key::join(from, &below), value)));
    Ok(())
}

impl Store for MemoryStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn get(&self, key: &str, span: Span, _priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        self.object(key, |objects| slice(&find(objects, key)?.0, span))
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        mut parts: Vec<Region>,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        // The copy is done outside the lock: it may be long.
        let found =
            self.object(key, |objects| slice(&find(objects, key)?.0, Span::Range { offset, len }));
        async move {
            let mut rest = &found.await?[..];
            for part in &mut parts {
                let (piece, more) = rest.split_at(part.len());
                part.copy_from_slice(piece);
                rest = more;
            }
            Ok(parts)
        }
        .boxed()
    }

    fn put(
        &self,
        key: &str,
        mut payload: Vec<Bytes>,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<()>> {
        let bytes = match payload.len() {
            1 => payload.remove(0),
            _ => payload.concat().into(),
        };
        self.object(key, |objects| {
            objects.insert(key.to_owned(), (bytes, now()));
            Ok(())
        })
    }

    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        self.object(key, |objects| {
            if objects.contains_key(key) {
                return Err(Error::exists("exists already"));
            }
            objects.insert(key.to_owned(), (payload, now()));
            Ok(())
        })
    }

    fn create(
        &self,
        key: &str,
        _bytes: u64,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        let writer = MemoryWriter {
            key: key.to_owned(),
            url: self.url.clone(),
            objects: Arc::clone(&self.objects),
            bytes: Mutex::default(),
        };
        self.object(key, |_| Ok(Arc::new(writer) as Arc<dyn ObjectWriter>))
    }

    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        let checked = key::check_key(from).and_then(|()| key::check_key(to));
        self.answer(from, checked, |objects| {
            let bytes = find(objects, from)?.0.clone();
            objects.insert(to.to_owned(), (bytes, now()));
            Ok(())
        })
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        self.object(key, |objects| Ok(meta(key, find(objects, key)?)))
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        self.prefix(prefix, |objects| {
            let mut listing = Listing::default();
            for (key, value, below) in range(objects, prefix) {
                match below.split_once('/') {
                    None => listing.objects.push(meta(key, value)),
                    Some((name, _)) => listing.prefixes.push(name.to_owned()),
                }
            }
            // Keys are in order, but `a-b/` sorts before `a/`, so the names may not be.
            listing.prefixes.sort();
            listing.prefixes.dedup();
            Ok(listing)
        })
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        self.prefix(prefix, |objects| {
            Ok(range(objects, prefix).map(|(key, value, _)| meta(key, value)).collect())
        })
    }

    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        let checked = keys.iter().try_for_each(|key| key::check_key(key));
        self.answer("", checked, |objects| {
            for key in &keys {
                objects.remove(key);
            }
            Ok(())
        })
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.answer(prefix, key::check_key(prefix), |objects| {
            drop(take(objects, prefix));
            Ok(())
        })
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.prefix(prefix, |_| Ok(()))
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        let checked = key::check_key(from).and_then(|()| key::check_key(to));
        self.answer(from, checked, |objects| {
            rename(objects, from, to, mode).map_err(|error| error.with("target", to))
        })
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.prefix(prefix, |_| Ok(()))
    }
}

struct MemoryWriter {
    key: String,
    url: String,
    objects: Arc<Mutex<Objects>>,
    bytes: Mutex<Vec<u8>>,
}

impl fmt::Debug for MemoryWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryWriter({})", self.key)
    }
}

impl MemoryWriter {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self, bytes: Option<u64>) -> Result<usize> {
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
            Error::invalid("an object is larger than memory")
                .with("object", &self.key)
                .with("store", &self.url)
        })
    }
}

impl ObjectWriter for MemoryWriter {
    fn write_at(&self, offset: u64, data: Buffer) -> BoxFuture<'static, Result<Buffer>> {
        let write = || {
            let end = self.size(offset.checked_add(data.len() as u64))?;
            let mut bytes = self.bytes();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[end - data.len()..end].copy_from_slice(&data);
            Ok(())
        };
        futures::future::ready(write().map(|()| data)).boxed()
    }

    fn finish(&self, bytes: u64) -> BoxFuture<'static, Result<()>> {
        let finish = || {
            let size = self.size(Some(bytes))?;
            let mut content = std::mem::take(&mut *self.bytes());
            content.resize(size, 0);
            let entry = (content.into(), now());
            lock(&self.objects).insert(self.key.clone(), entry);
            Ok(())
        };
        futures::future::ready(finish()).boxed()
    }
}
