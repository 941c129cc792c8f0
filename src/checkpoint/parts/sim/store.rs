//! A store whose operations take time, overlap, and go wrong; with renames or with conditional creates only.

use super::{
    executor::{Core, NOBODY},
    trouble::Phase,
    wire::{Call, Commit, Wire},
};
use crate::{
    buffer::Region,
    error::{Error, Result},
    store::{
        Capabilities, Listing, MemoryStore, ObjectMeta, ObjectWriter, Priority, RenameMode, Span,
        Store, Verb,
    },
};
use bytes::Bytes;
use futures::{FutureExt, channel::oneshot, future::BoxFuture};
use std::sync::{Arc, Mutex};

#[derive(Debug)]
pub(super) struct SimulatedStore {
    url: String,
    capabilities: Capabilities,
    wire: Arc<Wire>,
}

impl SimulatedStore {
    pub(super) fn new(core: &Arc<Core>, renames: bool, url: String) -> Arc<Self> {
        let inner = MemoryStore::new();
        let capabilities = Capabilities {
            rename: renames,
            exchange: renames,
            copy: false,
            positional_writes: false,
            ..inner.capabilities().clone()
        };
        let (commits, recent) = (Mutex::default(), Mutex::default());
        let wire = Wire { core: Arc::clone(core), inner, renames, commits, recent };
        Arc::new(Self { url, capabilities, wire: Arc::new(wire) })
    }

    /// What is stored, as it is now.
    pub(super) fn inner(&self) -> &Arc<MemoryStore> {
        &self.wire.inner
    }

    pub(super) fn commits(&self) -> Vec<Commit> {
        self.wire.commits.lock().unwrap().clone()
    }

    fn operate<T: Send + 'static>(
        &self,
        call: Call,
        effect: impl Fn(&MemoryStore) -> Result<T> + Send + Sync + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let wire = Arc::clone(&self.wire);
        async move {
            let process = wire.core.current();
            if wire.core.weather(process).delay == 0 {
                return effect(&wire.inner);
            }
            if call.is_decisive() && !wire.core.point(process, Phase::Before, !wire.renames) {
                return futures::future::pending().await;
            }
            let (tell, told) = oneshot::channel();
            wire.send(process, call, Arc::new(effect), tell);
            told.await.unwrap_or_else(|_| Err(Error::unavailable("the simulation is over")))
        }
        .boxed()
    }
}

fn now<T>(future: BoxFuture<'static, Result<T>>) -> Result<T> {
    future.now_or_never().expect("memory answers at once")
}

impl Store for SimulatedStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn get(&self, key: &str, span: Span, priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        let key = key.to_owned();
        self.operate(Call::new(Verb::Get, &key), move |inner| now(inner.get(&key, span, priority)))
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        mut parts: Vec<Region>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        let found = self.get(key, Span::Range { offset, len }, priority);
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
        payload: Vec<Bytes>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<()>> {
        let (key, payload) = (key.to_owned(), Bytes::from(payload.concat()));
        self.operate(Call::new(Verb::Put, &key), move |inner| {
            now(inner.put(&key, vec![payload.clone()], priority))
        })
    }

    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        let key = key.to_owned();
        self.operate(Call::new(Verb::PutNew, &key), move |inner| {
            now(inner.put_new(&key, payload.clone()))
        })
    }

    fn create(
        &self,
        key: &str,
        _bytes: u64,
        _priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        let error = Error::unsupported("objects are put whole here").with("object", key);
        futures::future::ready(Err(error)).boxed()
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        let key = key.to_owned();
        self.operate(Call::new(Verb::Head, &key), move |inner| now(inner.head(&key)))
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        let (prefix, wire) = (prefix.to_owned(), Arc::clone(&self.wire));
        let stale = self.wire.core.weather(self.wire.core.current()).stale;
        self.operate(Call::new(Verb::List, &prefix), move |inner| {
            let mut listing = now(inner.list(&prefix))?;
            if prefix.contains("/parts/") && wire.core.chance(stale) {
                let before = listing.objects.len();
                wire.age(&prefix, &mut listing);
                if listing.objects.len() != before {
                    wire.core.strike(NOBODY, "stale listings");
                }
            }
            Ok(listing)
        })
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        let prefix = prefix.to_owned();
        self.operate(Call::new(Verb::ListAll, &prefix), move |inner| now(inner.list_all(&prefix)))
    }

    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        let first = keys.first().cloned().unwrap_or_default();
        self.operate(Call::new(Verb::Delete, &first), move |inner| now(inner.delete(keys.clone())))
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let prefix = prefix.to_owned();
        self.operate(Call::new(Verb::DeleteAll, &prefix), move |inner| {
            now(inner.delete_all(&prefix))
        })
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.operate(Call::new(Verb::Sync, prefix), |_| Ok(()))
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let mut call = Call::new(Verb::Rename, &from);
        (call.target, call.exchange) = (to.clone(), mode == RenameMode::Exchange);
        let renames = self.capabilities.rename;
        self.operate(call, move |inner| {
            if !renames {
                return Err(Error::unsupported("there are no renames here"));
            }
            now(inner.rename(&from, &to, mode))
        })
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.operate(Call::new(Verb::CreateDir, prefix), |_| Ok(()))
    }
}
