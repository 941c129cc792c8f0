//! Memory, with or without renames, whose objects are as old as a test says.

use crate::{
    buffer::Region,
    error::{Error, Result},
    store::{
        Capabilities, Listing, MemoryStore, ObjectMeta, ObjectWriter, Priority, RenameMode, Span,
        Store,
    },
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, future::ready};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

#[derive(Debug)]
pub(super) struct Aged {
    inner: Arc<MemoryStore>,
    capabilities: Capabilities,
    ages: Arc<Mutex<BTreeMap<String, Duration>>>,
}

impl Aged {
    pub(super) fn new(rename: bool) -> Arc<Self> {
        let inner = MemoryStore::new();
        let capabilities = Capabilities {
            rename,
            exchange: rename,
            positional_writes: rename,
            ..inner.capabilities().clone()
        };
        Arc::new(Self { inner, capabilities, ages: Arc::default() })
    }

    /// Makes everything whose key begins so older; a later put of the same key is as old.
    pub(super) fn age(&self, start: &str, minutes: u64) {
        self.ages.lock().unwrap().insert(start.to_owned(), Duration::from_mins(minutes));
    }

    pub(super) fn keys(&self) -> Vec<String> {
        let all = futures::executor::block_on(self.inner.list_all("")).unwrap();
        all.into_iter().map(|object| object.key).collect()
    }

    fn aging(&self) -> impl Fn(ObjectMeta) -> ObjectMeta + Send + 'static {
        let ages = Arc::clone(&self.ages);
        move |mut meta| {
            for (start, age) in &*ages.lock().unwrap() {
                if meta.key.starts_with(start) {
                    meta.modified -= *age;
                }
            }
            meta
        }
    }
}

impl Store for Aged {
    fn url(&self) -> &str {
        self.inner.url()
    }
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn get(&self, key: &str, span: Span, priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        self.inner.get(key, span, priority)
    }
    fn read(
        &self,
        key: &str,
        offset: u64,
        parts: Vec<Region>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        self.inner.read(key, offset, parts, priority)
    }
    fn put(
        &self,
        key: &str,
        payload: Vec<Bytes>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<()>> {
        self.inner.put(key, payload, priority)
    }
    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        self.inner.put_new(key, payload)
    }
    fn create(
        &self,
        key: &str,
        bytes: u64,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        self.inner.create(key, bytes, priority)
    }
    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        self.inner.copy(from, to)
    }
    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        let (found, aging) = (self.inner.head(key), self.aging());
        async move { found.await.map(aging) }.boxed()
    }
    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        let (found, aging) = (self.inner.list(prefix), self.aging());
        async move {
            let Listing { objects, prefixes } = found.await?;
            Ok(Listing { objects: objects.into_iter().map(aging).collect(), prefixes })
        }
        .boxed()
    }
    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        let (found, aging) = (self.inner.list_all(prefix), self.aging());
        async move { Ok(found.await?.into_iter().map(aging).collect()) }.boxed()
    }
    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        self.inner.delete(keys)
    }
    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.inner.delete_all(prefix)
    }
    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.inner.sync(prefix)
    }
    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        if self.capabilities.rename {
            return self.inner.rename(from, to, mode);
        }
        ready(Err(Error::unsupported("an object store has no rename"))).boxed()
    }
    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.inner.create_dir(prefix)
    }
}
