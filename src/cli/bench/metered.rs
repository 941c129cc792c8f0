//! A store that counts and times what is asked of another, and lets only so much of it happen at once.
//!
//! The whole engine works on it as on any store: what is measured is what a user gets, with the requests
//! visible from outside. Waiting for a turn is not part of a request's time.

use super::sample::Samples;
use bytes::Bytes;
use futures::future::BoxFuture;
use milepost::{
    Budget, Buffer, Capabilities, Listing, ObjectMeta, ObjectWriter, Priority, Region, RenameMode,
    Result, Span, Store,
};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// The name of documents: what they cost is no chunk's.
const DOCUMENT: &str = "/zarr.json";

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    data_ms: Samples,
}

#[derive(Debug)]
struct Meter {
    turns: Budget,
    counts: Mutex<Counts>,
}

impl Meter {
    /// Waits for a turn, runs the request and counts it; requests for `data` are timed.
    async fn count<T, F: Future<Output = Result<T>>>(
        self: Arc<Self>,
        priority: Priority,
        data: bool,
        request: impl FnOnce() -> F,
    ) -> Result<T> {
        let turn = self.turns.reserve(priority, 1).await;
        let started = Instant::now();
        // Only now: a local store begins when it is called, not when it is polled.
        let result = request().await;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        drop(turn);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.requests += 1;
        if data {
            counts.data_ms.push(ms);
        }
        result
    }
}

/// Another store, metered.
#[derive(Debug)]
pub(crate) struct MeteredStore {
    inner: Arc<dyn Store>,
    capabilities: Capabilities,
    meter: Arc<Meter>,
}

impl MeteredStore {
    /// Lets at most `at_once` requests into `inner`.
    pub(crate) fn new(inner: Arc<dyn Store>, at_once: usize) -> Arc<Self> {
        let mut capabilities = inner.capabilities().clone();
        capabilities.concurrency = at_once;
        let turns = Budget::new(at_once as u64);
        let meter = Arc::new(Meter { turns, counts: Mutex::default() });
        Arc::new(Self { inner, capabilities, meter })
    }

    /// Returns the requests since the last call, and the milliseconds of those that carried chunks.
    pub(crate) fn take(&self) -> (u64, Samples) {
        let mut counts = self.meter.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Counts { requests, data_ms } = std::mem::take(&mut *counts);
        (requests, data_ms)
    }

    fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        data: bool,
        request: impl FnOnce(&dyn Store) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (meter, inner) = (Arc::clone(&self.meter), Arc::clone(&self.inner));
        Box::pin(async move { meter.count(priority, data, || request(&*inner)).await })
    }

    /// Runs a request that carries no chunk.
    fn side<T: Send + 'static>(
        &self,
        request: impl FnOnce(&dyn Store) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        self.run(Priority::Foreground, false, request)
    }
}

impl Store for MeteredStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn get(&self, key: &str, span: Span, priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        let (data, key) = (!key.ends_with(DOCUMENT), key.to_owned());
        self.run(priority, data, move |inner| inner.get(&key, span, priority))
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        parts: Vec<Region>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        let key = key.to_owned();
        self.run(priority, true, move |inner| inner.read(&key, offset, parts, priority))
    }

    fn put(
        &self,
        key: &str,
        payload: Vec<Bytes>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<()>> {
        let (data, key) = (!key.ends_with(DOCUMENT), key.to_owned());
        self.run(priority, data, move |inner| inner.put(&key, payload, priority))
    }

    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        let key = key.to_owned();
        self.side(move |inner| inner.put_new(&key, payload))
    }

    fn create(
        &self,
        key: &str,
        bytes: u64,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        let (meter, key) = (Arc::clone(&self.meter), key.to_owned());
        let created = self.run(priority, false, move |inner| inner.create(&key, bytes, priority));
        Box::pin(async move {
            let inner = created.await?;
            Ok(Arc::new(MeteredWriter { inner, meter, priority }) as Arc<dyn ObjectWriter>)
        })
    }

    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.side(move |inner| inner.copy(&from, &to))
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        let key = key.to_owned();
        self.side(move |inner| inner.head(&key))
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        let prefix = prefix.to_owned();
        self.side(move |inner| inner.list(&prefix))
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        let prefix = prefix.to_owned();
        self.side(move |inner| inner.list_all(&prefix))
    }

    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        self.side(move |inner| inner.delete(keys))
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let prefix = prefix.to_owned();
        self.side(move |inner| inner.delete_all(&prefix))
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let prefix = prefix.to_owned();
        self.side(move |inner| inner.sync(&prefix))
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.side(move |inner| inner.rename(&from, &to, mode))
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let prefix = prefix.to_owned();
        self.side(move |inner| inner.create_dir(&prefix))
    }

    fn local_path(&self, key: &str) -> Option<PathBuf> {
        self.inner.local_path(key)
    }
}

/// A writer whose writes are counted.
#[derive(Debug)]
struct MeteredWriter {
    inner: Arc<dyn ObjectWriter>,
    meter: Arc<Meter>,
    priority: Priority,
}

impl ObjectWriter for MeteredWriter {
    fn write_at(&self, offset: u64, data: Buffer) -> BoxFuture<'static, Result<Buffer>> {
        let (meter, inner, priority) = self.parts();
        Box::pin(meter.count(priority, true, move || inner.write_at(offset, data)))
    }

    fn finish(&self, bytes: u64) -> BoxFuture<'static, Result<()>> {
        let (meter, inner, priority) = self.parts();
        Box::pin(meter.count(priority, false, move || inner.finish(bytes)))
    }
}

impl MeteredWriter {
    fn parts(&self) -> (Arc<Meter>, Arc<dyn ObjectWriter>, Priority) {
        (Arc::clone(&self.meter), Arc::clone(&self.inner), self.priority)
    }
}
