//! A store that fails on purpose, and counts what it is asked.
//!
//! It holds another store and a rule. Every operation is counted when it is called (so the order of calls is the
//! order of counts, whatever executes the futures), shown to the rule, and then done, failed, torn or delayed:
//!
//! ```text
//! call ─► count ─► rule(&Operation) ─► None: pass on
//!                                      Fail: not done, error      Lose: done, error (a lost answer)
//!                                      Truncate / Flip: the object looks damaged
//!                                      Tear: half of it written, error      Delay: later
//! ```
//!
//! **Invariant:** every method of the traits is written out here, defaults too: a method that is added to the
//! contract and forgotten here would go past the rule unseen.

use super::{
    Capabilities, Finding, Listing, ObjectMeta, ObjectWriter, Priority, Remote, RenameMode, Span,
    Store,
};
use crate::{
    buffer::{Buffer, Region},
    error::{Error, ErrorKind, Result},
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The operations of a store and of its writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// [`Store::get`].
    Get,
    /// [`Store::read`].
    Read,
    /// [`Store::put`].
    Put,
    /// [`Store::put_new`].
    PutNew,
    /// [`Store::create`].
    Create,
    /// [`ObjectWriter::write_at`].
    WriteAt,
    /// [`ObjectWriter::finish`].
    Finish,
    /// [`Store::copy`].
    Copy,
    /// [`Store::head`].
    Head,
    /// [`Store::list`].
    List,
    /// [`Store::list_all`].
    ListAll,
    /// [`Store::delete`].
    Delete,
    /// [`Store::delete_all`].
    DeleteAll,
    /// [`Store::sync`].
    Sync,
    /// [`Store::rename`].
    Rename,
    /// [`Store::create_dir`].
    CreateDir,
    /// [`Store::inspect`].
    Inspect,
}

impl Verb {
    /// Tells whether the operation can change what is stored.
    #[must_use]
    pub fn changes(self) -> bool {
        !matches!(
            self,
            Self::Get | Self::Read | Self::Head | Self::List | Self::ListAll | Self::Inspect
        )
    }
}

/// An operation that is about to be done.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What is asked.
    pub verb: Verb,
    /// The key, prefix, or source of a rename.
    pub key: String,
    /// How many bytes are asked for or handed over, as far as the call tells.
    pub bytes: u64,
    /// Its number among those of its verb, from 1.
    pub nth: u64,
    /// Its number among all, from 1.
    pub nth_of_all: u64,
    /// Its number among those that can change what is stored, from 1; a reading one has that of the last.
    pub nth_change: u64,
}

/// What a rule does to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is not done and fails.
    Fail(ErrorKind),
    /// It is done, and then fails: the answer was lost.
    Lose(ErrorKind),
    /// A read finds the object shorter than it was; other operations pass.
    Truncate,
    /// A read finds one bit changed, in the middle of what it returns; other operations pass.
    Flip,
    /// A write is done to half of its bytes and fails; other operations fail without being done.
    Tear,
    /// It is done after so long.
    Delay(Duration),
}

/// How often an operation was asked for, and for how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of calls.
    pub requests: u64,
    /// Bytes of the calls together, as far as the calls tell (a `get` of a whole object adds what came).
    pub bytes: u64,
}

type Rule = Box<dyn FnMut(&Operation) -> Option<Action> + Send>;

#[derive(Default)]
struct Plan {
    rule: Option<Rule>,
    counts: BTreeMap<Verb, Count>,
}

struct Shared {
    plan: Mutex<Plan>,
    timer: Arc<Remote>,
    url: String,
}

/// A store that holds a store, counts its operations and lets a rule spoil them.
pub struct FaultStore {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({:?})", self.inner)
    }
}

impl FaultStore {
    /// Wraps `inner`; everything passes until a rule is set.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let url = inner.url().to_owned();
        let shared = Arc::new(Shared { plan: Mutex::default(), timer: Remote::new(), url });
        Arc::new(Self { inner, shared })
    }

    /// Sets the rule; it is asked about every operation, in the order of calls.
    pub fn set_rule(&self, rule: impl FnMut(&Operation) -> Option<Action> + Send + 'static) {
        self.shared.plan().rule = Some(Box::new(rule));
    }

    /// Lets everything pass again.
    pub fn clear_rule(&self) {
        self.shared.plan().rule = None;
    }

    /// Spoils the `nth` operation of `verb` from now on (1 is the next), once.
    pub fn spoil(&self, verb: Verb, nth: u64, action: Action) {
        let mut left = nth;
        self.set_rule(move |operation| {
            if operation.verb != verb || left == 0 {
                return None;
            }
            left -= 1;
            (left == 0).then_some(action)
        });
    }

    /// Fails every operation of `verb` from now on.
    pub fn spoil_all(&self, verb: Verb, action: Action) {
        self.set_rule(move |operation| (operation.verb == verb).then_some(action));
    }

    /// Dies at the `nth` operation from now on that can change what is stored: that one is treated as `last`
    /// says, and every later one, reads too, fails.
    pub fn crash_at(&self, nth: u64, last: Action) {
        let (mut left, mut dead) = (nth, false);
        self.set_rule(move |operation| {
            if dead {
                return Some(Action::Fail(ErrorKind::Unavailable));
            }
            if operation.verb.changes() {
                left = left.saturating_sub(1);
                dead = left == 0;
            }
            dead.then_some(last)
        });
    }

    /// Returns how often `verb` was asked for.
    #[must_use]
    pub fn requests(&self, verb: Verb) -> u64 {
        self.count(verb).requests
    }

    /// Returns requests and bytes of `verb`.
    #[must_use]
    pub fn count(&self, verb: Verb) -> Count {
        self.shared.plan().counts.get(&verb).copied().unwrap_or_default()
    }

    /// Returns requests and bytes by verb, without those that were not asked for.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Verb, Count> {
        self.shared.plan().counts.clone()
    }

    /// Starts counting from zero.
    pub fn reset_counts(&self) {
        self.shared.plan().counts.clear();
    }

    fn judge(&self, verb: Verb, key: &str, bytes: u64) -> Verdict {
        self.shared.judge(verb, key, bytes)
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(self: &Arc<Self>, verb: Verb, key: &str, bytes: u64) -> Verdict {
        let mut plan = self.plan();
        let count = plan.counts.entry(verb).or_default();
        count.requests += 1;
        count.bytes += bytes;
        let nth = count.requests;
        let nth_of_all = plan.counts.values().map(|count| count.requests).sum();
        let changes = plan.counts.iter().filter(|(verb, _)| verb.changes());
        let nth_change = changes.map(|(_, count)| count.requests).sum();
        let operation = Operation { verb, key: key.to_owned(), bytes, nth, nth_of_all, nth_change };
        let action = plan.rule.as_mut().and_then(|rule| rule(&operation));
        drop(plan);
        Verdict { shared: Arc::clone(self), operation, action }
    }
}

/// An operation and what is to happen to it.
struct Verdict {
    shared: Arc<Shared>,
    operation: Operation,
    action: Option<Action>,
}

impl Verdict {
    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, "a fault was injected")
            .with("operation", format!("{:?}", self.operation.verb))
            .with("object", &self.operation.key)
            .with("store", &self.shared.url)
    }

    /// Performs an operation that returns nothing that could be damaged, and cannot be done by half.
    async fn pass<T>(self, done: impl FnOnce() -> BoxFuture<'static, Result<T>>) -> Result<T> {
        match self.action {
            Some(Action::Fail(kind)) => Err(self.error(kind)),
            Some(Action::Tear) => Err(self.error(ErrorKind::Unavailable)),
            Some(Action::Lose(kind)) => {
                done().await?;
                Err(self.error(kind))
            }
            Some(Action::Delay(time)) => {
                self.delay(time).await?;
                done().await
            }
            None | Some(Action::Truncate | Action::Flip) => done().await,
        }
    }

    async fn delay(&self, time: Duration) -> Result<()> {
        let sleep = async move {
            tokio::time::sleep(time).await;
            Ok(())
        };
        self.shared.timer.run(sleep).await
    }

    fn truncated(&self) -> Error {
        Error::corrupt("object is truncated")
            .with("object", &self.operation.key)
            .with("store", &self.shared.url)
    }

    fn arrived(&self, bytes: usize) {
        let mut plan = self.shared.plan();
        plan.counts.entry(self.operation.verb).or_default().bytes += bytes as u64;
    }
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
}

fn total(payload: &[Bytes]) -> u64 {
    payload.iter().map(|piece| piece.len() as u64).sum()
}

impl Store for FaultStore {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn get(&self, key: &str, span: Span, priority: Priority) -> BoxFuture<'static, Result<Bytes>> {
        let asked = match span {
            Span::Whole { .. } => None,
            Span::Range { len, .. } | Span::Suffix { len } => Some(len),
        };
        let verdict = self.judge(Verb::Get, key, asked.unwrap_or(0));
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        async move {
            let action = verdict.action;
            if action == Some(Action::Truncate) && asked.is_some() {
                return Err(verdict.truncated());
            }
            let (shared, operation) = (Arc::clone(&verdict.shared), verdict.operation.clone());
            let bytes = verdict.pass(|| inner.get(&key, span, priority)).await?;
            if asked.is_none() {
                Verdict { shared, operation, action }.arrived(bytes.len());
            }
            Ok(match action {
                Some(Action::Truncate) => bytes.slice(..bytes.len() / 2),
                Some(Action::Flip) => {
                    let mut copy = bytes.to_vec();
                    flip(&mut copy);
                    copy.into()
                }
                _ => bytes,
            })
        }
        .boxed()
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        parts: Vec<Region>,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let verdict = self.judge(Verb::Read, key, bytes);
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        async move {
            let action = verdict.action;
            if action == Some(Action::Truncate) {
                return Err(verdict.truncated());
            }
            let mut parts = verdict.pass(|| inner.read(&key, offset, parts, priority)).await?;
            if action == Some(Action::Flip)
                && let Some(part) = parts.iter_mut().find(|part| !part.is_empty())
            {
                flip(part);
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
        let verdict = self.judge(Verb::Put, key, total(&payload));
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        async move {
            if verdict.action == Some(Action::Tear) {
                let whole = Bytes::from(payload.concat());
                let half = whole.slice(..whole.len() / 2);
                inner.put(&key, vec![half], priority).await?;
            }
            verdict.pass(|| inner.put(&key, payload, priority)).await
        }
        .boxed()
    }

    // Not torn: a store that can write half of an exclusive object has no exclusive create.
    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::PutNew, key, payload.len() as u64);
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        async move { verdict.pass(|| inner.put_new(&key, payload)).await }.boxed()
    }

    fn create(
        &self,
        key: &str,
        bytes: u64,
        priority: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        let verdict = self.judge(Verb::Create, key, 0);
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        let shared = Arc::clone(&self.shared);
        async move {
            let writer = verdict.pass(|| inner.create(&key, bytes, priority)).await?;
            Ok(Arc::new(FaultWriter { inner: writer, shared, key }) as Arc<dyn ObjectWriter>)
        }
        .boxed()
    }

    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::Copy, from, 0);
        let (inner, from, to) = (Arc::clone(&self.inner), from.to_owned(), to.to_owned());
        async move { verdict.pass(|| inner.copy(&from, &to)).await }.boxed()
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        let verdict = self.judge(Verb::Head, key, 0);
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        async move {
            let truncate = verdict.action == Some(Action::Truncate);
            let mut meta = verdict.pass(|| inner.head(&key)).await?;
            if truncate {
                meta.bytes /= 2;
            }
            Ok(meta)
        }
        .boxed()
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        let verdict = self.judge(Verb::List, prefix, 0);
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.to_owned());
        async move { verdict.pass(|| inner.list(&prefix)).await }.boxed()
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        let verdict = self.judge(Verb::ListAll, prefix, 0);
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.to_owned());
        async move { verdict.pass(|| inner.list_all(&prefix)).await }.boxed()
    }

    fn delete(&self, mut keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::Delete, keys.first().map_or("", String::as_str), 0);
        let inner = Arc::clone(&self.inner);
        async move {
            if verdict.action == Some(Action::Tear) {
                keys.truncate(keys.len() / 2);
                inner.delete(keys.clone()).await?;
            }
            verdict.pass(|| inner.delete(keys)).await
        }
        .boxed()
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::DeleteAll, prefix, 0);
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.to_owned());
        async move {
            if verdict.action == Some(Action::Tear) {
                let found = inner.list_all(&prefix).await?;
                let half = found.iter().take(found.len() / 2).map(|meta| meta.key.clone());
                inner.delete(half.collect()).await?;
            }
            verdict.pass(|| inner.delete_all(&prefix)).await
        }
        .boxed()
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::Sync, prefix, 0);
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.to_owned());
        async move { verdict.pass(|| inner.sync(&prefix)).await }.boxed()
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::Rename, from, 0);
        let (inner, from, to) = (Arc::clone(&self.inner), from.to_owned(), to.to_owned());
        async move { verdict.pass(|| inner.rename(&from, &to, mode)).await }.boxed()
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        let verdict = self.judge(Verb::CreateDir, prefix, 0);
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.to_owned());
        async move { verdict.pass(|| inner.create_dir(&prefix)).await }.boxed()
    }

    fn inspect(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<Finding>>> {
        let verdict = self.judge(Verb::Inspect, prefix, 0);
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.to_owned());
        async move { verdict.pass(|| inner.inspect(&prefix)).await }.boxed()
    }

    fn local_path(&self, key: &str) -> Option<std::path::PathBuf> {
        self.inner.local_path(key)
    }
}

struct FaultWriter {
    inner: Arc<dyn ObjectWriter>,
    shared: Arc<Shared>,
    key: String,
}

impl fmt::Debug for FaultWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultWriter({:?})", self.inner)
    }
}

impl ObjectWriter for FaultWriter {
    fn write_at(&self, offset: u64, mut data: Buffer) -> BoxFuture<'static, Result<Buffer>> {
        let verdict = self.shared.judge(Verb::WriteAt, &self.key, data.len() as u64);
        let inner = Arc::clone(&self.inner);
        async move {
            if verdict.action == Some(Action::Tear) {
                data.set_len(data.len() / 2);
                data = inner.write_at(offset, data).await?;
            }
            verdict.pass(|| inner.write_at(offset, data)).await
        }
        .boxed()
    }

    fn finish(&self, bytes: u64) -> BoxFuture<'static, Result<()>> {
        let verdict = self.shared.judge(Verb::Finish, &self.key, 0);
        let inner = Arc::clone(&self.inner);
        async move { verdict.pass(|| inner.finish(bytes)).await }.boxed()
    }
}
