//! The store over the simulated disk: the system calls of `src/store/local`, in their order.

use super::image::{Content, Entry, Fate, Image, Node, Op};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use milepost::{
    Buffer, Capabilities, Error, ErrorKind, Listing, ObjectMeta, ObjectWriter, Priority, Region,
    RenameMode, Result, Span, Store,
};
use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

/// A local file system in memory that logs what is done to it.
pub(crate) struct SimDisk {
    capabilities: Capabilities,
    disk: Arc<Mutex<Disk>>,
}

struct Disk {
    /// What was there at the start; all of it is durable.
    start: Image,
    live: Image,
    log: Vec<Op>,
    /// When files were written, in milliseconds of the disk's clock; those of the start: at 0.
    written_ms: BTreeMap<Node, u64>,
    now_ms: u64,
    temporary: usize,
    /// From so many operations on, nothing answers.
    limit: Option<usize>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

fn fail<T>(kind: ErrorKind, what: &str) -> Result<T> {
    Err(Error::new(kind, what))
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

impl Disk {
    fn push(&mut self, op: Op) {
        if let Op::Write(node, ..) | Op::Resize(node, _) = &op {
            self.written_ms.insert(*node, self.now_ms);
        }
        self.live.apply(&op);
        self.log.push(op);
    }

    fn exists(&self, key: &str) -> bool {
        self.live.find(key).is_some()
    }

    fn entry(&self, key: &str) -> Result<Entry> {
        let (parent, name) = split(key);
        match self.live.find(parent) {
            Some(node) => Ok((node, name.to_owned())),
            None => fail(ErrorKind::NotFound, "not found"),
        }
    }

    fn bytes(&self, key: &str) -> Result<(Node, Arc<Vec<u8>>)> {
        match self.live.find(key).map(|node| (node, self.live.node(node))) {
            Some((node, Content::File(bytes))) => Ok((node, Arc::clone(bytes))),
            _ => fail(ErrorKind::NotFound, "not found"),
        }
    }

    /// Makes a directory and those above it; returns it, and the directories that got a new name.
    fn make_directories(&mut self, path: &str) -> Result<(Node, Vec<Node>)> {
        let (mut at, mut changed) = (0, Vec::new());
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let next = self.live.child(at, name);
            let next = next.unwrap_or_else(|| {
                self.push(Op::MakeDirectory((at, name.to_owned())));
                changed.push(at);
                self.live.len() - 1
            });
            if matches!(self.live.node(next), Content::File(_)) {
                return fail(ErrorKind::Invalid, "a file is in the way");
            }
            at = next;
        }
        Ok((at, changed))
    }

    fn make_file(&mut self, key: &str) -> Result<(Node, Vec<Node>)> {
        let (parent, name) = split(key);
        let (directory, changed) = self.make_directories(parent)?;
        self.push(Op::MakeFile((directory, name.to_owned())));
        Ok((self.live.len() - 1, changed))
    }

    fn temporary_beside(&mut self, key: &str) -> String {
        self.temporary += 1;
        let (parent, _) = split(key);
        format!("{parent}/.milepost-tmp-{}", self.temporary).trim_start_matches('/').to_owned()
    }

    fn put(&mut self, key: &str, payload: &[Bytes]) -> Result<()> {
        let staged = self.exists(key).then(|| self.temporary_beside(key));
        let (node, _) = self.make_file(staged.as_deref().unwrap_or(key))?;
        self.push(Op::Write(node, 0, payload.concat()));
        if let Some(staged) = staged {
            let rename = Op::Rename(self.entry(&staged)?, self.entry(key)?);
            self.push(rename);
        }
        Ok(())
    }

    fn put_new(&mut self, key: &str, payload: &[u8]) -> Result<()> {
        let staged = self.temporary_beside(key);
        let (node, changed) = self.make_file(&staged)?;
        self.push(Op::Write(node, 0, payload.to_vec()));
        self.push(Op::SyncFile(node));
        let (from, to) = (self.entry(&staged)?, self.entry(key)?);
        let parent = to.0;
        if self.exists(key) {
            self.push(Op::Unlink(from));
            return fail(ErrorKind::AlreadyExists, "exists already");
        }
        self.push(Op::Rename(from, to));
        for directory in changed.into_iter().chain([parent]) {
            self.push(Op::SyncDirectory(directory));
        }
        Ok(())
    }

    fn list_all(&self, node: Node, key: &str, found: &mut Vec<ObjectMeta>) {
        if let Content::File(bytes) = self.live.node(node) {
            found.push(self.meta(node, key, bytes));
        }
        for (name, child) in self.live.names(node) {
            let below = if key.is_empty() { name } else { format!("{key}/{name}") };
            self.list_all(child, &below, found);
        }
    }

    fn meta(&self, node: Node, key: &str, bytes: &[u8]) -> ObjectMeta {
        let at = Duration::from_millis(self.written_ms.get(&node).copied().unwrap_or(0));
        let modified = SystemTime::UNIX_EPOCH + at;
        ObjectMeta { key: key.to_owned(), bytes: bytes.len() as u64, modified }
    }

    fn empty(&mut self, directory: Node) {
        for (name, child) in self.live.names(directory) {
            self.empty(child);
            self.push(Op::Unlink((directory, name)));
        }
    }

    fn delete_all(&mut self, key: &str) {
        // As there: a file of that name is left alone.
        let Some(node) = self.live.find(key) else { return };
        if let (Content::Directory(_), Ok(entry)) = (self.live.node(node), self.entry(key)) {
            self.empty(node);
            self.push(Op::Unlink(entry));
        }
    }

    fn sync_each(&mut self, node: Node) {
        for (_, child) in self.live.names(node) {
            self.sync_each(child);
        }
        self.push(match self.live.node(node) {
            Content::File(_) => Op::SyncFile(node),
            Content::Directory(_) => Op::SyncDirectory(node),
        });
    }

    fn sync(&mut self, key: &str) -> Result<()> {
        let Some(node) = self.live.find(key) else {
            return fail(ErrorKind::NotFound, "not found");
        };
        self.sync_each(node);
        let mut at = key;
        while !at.is_empty() {
            at = split(at).0;
            if let Some(ancestor) = self.live.find(at) {
                self.push(Op::SyncDirectory(ancestor));
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> Result<()> {
        if !self.exists(from) {
            return fail(ErrorKind::NotFound, "not found");
        }
        let mut changed = Vec::new();
        if mode == RenameMode::NoReplace {
            changed = self.make_directories(split(to).0)?.1;
        }
        let (source, target) = (self.entry(from)?, self.entry(to)?);
        let parents = (source.0, target.0);
        match (mode, self.exists(to)) {
            (RenameMode::NoReplace, true) => {
                return fail(ErrorKind::AlreadyExists, "exists already");
            }
            (RenameMode::NoReplace, false) => self.push(Op::Rename(source, target)),
            (RenameMode::Exchange, true) => self.push(Op::Exchange(source, target)),
            (RenameMode::Exchange, false) => return fail(ErrorKind::NotFound, "not found"),
        }
        for directory in changed.into_iter().chain([parents.1, parents.0]) {
            self.push(Op::SyncDirectory(directory));
        }
        Ok(())
    }
}

impl SimDisk {
    /// Starts a disk that holds `start`; its clock shows an hour after all of that was written.
    pub(crate) fn new(start: Image) -> Arc<Self> {
        let capabilities = Capabilities {
            rename: true,
            exchange: true,
            put_new: true,
            copy: true,
            positional_writes: true,
            writable: true,
            case_sensitive: true,
            concurrency: 1,
            part_bytes: 8 << 20,
            coalesce_gap_bytes: 256 << 10,
            shard_bytes: 256 << 20,
        };
        let (live, now_ms) = (start.clone(), 3_600_000);
        let (log, written_ms) = (Vec::new(), BTreeMap::new());
        let disk = Disk { start, live, log, written_ms, now_ms, temporary: 0, limit: None };
        Arc::new(Self { capabilities, disk: Arc::new(Mutex::new(disk)) })
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    /// Returns a digest of what was done so far, but for the bytes, in which are measured times.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for op in &self.disk().log {
            match op {
                Op::Write(node, offset, _) => (node, offset).hash(&mut hasher),
                Op::Resize(node, _) => node.hash(&mut hasher),
                _ => op.hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    /// Describes one operation.
    pub(crate) fn operation(&self, index: usize) -> String {
        let text = format!("{:?}", self.disk().log[index]);
        text.chars().take(200).collect()
    }

    /// Lets every call fail once so many operations were done; `None` ends that.
    pub(crate) fn fail_after(&self, operations: Option<usize>) {
        self.disk().limit = operations;
    }

    /// Sets the disk's clock forward.
    pub(crate) fn advance(&self, time: Duration) {
        self.disk().now_ms += u64::try_from(time.as_millis()).unwrap();
    }

    /// Returns how many operations were done so far.
    pub(crate) fn operations(&self) -> usize {
        self.disk().log.len()
    }

    /// Returns what a crash after the first `count` operations leaves.
    pub(crate) fn crash(&self, count: usize, fate: Fate) -> Image {
        let disk = self.disk();
        disk.start.crash(&disk.log[..count], fate)
    }

    fn answer<T: Send + 'static>(
        &self,
        key: &str,
        job: impl FnOnce(&mut Disk) -> Result<T>,
    ) -> BoxFuture<'static, Result<T>> {
        let mut disk = self.disk();
        let answer = match disk.limit {
            Some(limit) if disk.log.len() >= limit => {
                fail(ErrorKind::Unavailable, "the disk is gone")
            }
            _ => job(&mut disk),
        };
        let answer = answer.map_err(|e| e.with("object", key).with("store", "sim://"));
        futures::future::ready(answer).boxed()
    }
}

fn cut(bytes: &[u8], span: Span) -> Result<Bytes> {
    let size = bytes.len() as u64;
    let (start, len) = match span {
        Span::Whole { bytes_max } if size <= bytes_max => (0, size),
        Span::Range { offset, len } if offset.saturating_add(len) <= size => (offset, len),
        Span::Suffix { len } if len <= size => (size - len, len),
        _ => return fail(ErrorKind::Corrupt, "object has another size"),
    };
    let (start, len) = (usize::try_from(start).unwrap(), usize::try_from(len).unwrap());
    Ok(Bytes::copy_from_slice(&bytes[start..start + len]))
}

impl Store for SimDisk {
    fn url(&self) -> &'static str {
        "sim://"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn get(&self, key: &str, span: Span, _: Priority) -> BoxFuture<'static, Result<Bytes>> {
        self.answer(key, |disk| cut(&disk.bytes(key)?.1, span))
    }

    fn read(
        &self,
        key: &str,
        offset: u64,
        mut parts: Vec<Region>,
        _: Priority,
    ) -> BoxFuture<'static, Result<Vec<Region>>> {
        self.answer(key, move |disk| {
            let len = parts.iter().map(|part| part.len() as u64).sum();
            let bytes = cut(&disk.bytes(key)?.1, Span::Range { offset, len })?;
            let mut rest = &bytes[..];
            for part in &mut parts {
                let (piece, more) = rest.split_at(part.len());
                part.copy_from_slice(piece);
                rest = more;
            }
            Ok(parts)
        })
    }

    fn put(&self, key: &str, payload: Vec<Bytes>, _: Priority) -> BoxFuture<'static, Result<()>> {
        self.answer(key, |disk| disk.put(key, &payload))
    }

    fn put_new(&self, key: &str, payload: Bytes) -> BoxFuture<'static, Result<()>> {
        self.answer(key, |disk| disk.put_new(key, &payload))
    }

    fn create(
        &self,
        key: &str,
        _: u64,
        _: Priority,
    ) -> BoxFuture<'static, Result<Arc<dyn ObjectWriter>>> {
        let shared = Arc::clone(&self.disk);
        self.answer(key, |disk| {
            let node = match disk.bytes(key) {
                Ok((node, _)) => {
                    disk.push(Op::Resize(node, 0));
                    node
                }
                Err(_) => disk.make_file(key)?.0,
            };
            Ok(Arc::new(SimWriter { disk: shared, node }) as Arc<dyn ObjectWriter>)
        })
    }

    fn copy(&self, from: &str, to: &str) -> BoxFuture<'static, Result<()>> {
        self.answer(from, |disk| {
            let (_, bytes) = disk.bytes(from)?;
            let staged = disk.temporary_beside(to);
            let (node, _) = disk.make_file(&staged)?;
            disk.push(Op::Write(node, 0, bytes.to_vec()));
            let rename = Op::Rename(disk.entry(&staged)?, disk.entry(to)?);
            disk.push(rename);
            Ok(())
        })
    }

    fn head(&self, key: &str) -> BoxFuture<'static, Result<ObjectMeta>> {
        self.answer(key, |disk| {
            let (node, bytes) = disk.bytes(key)?;
            Ok(disk.meta(node, key, &bytes))
        })
    }

    fn list(&self, prefix: &str) -> BoxFuture<'static, Result<Listing>> {
        self.answer(prefix, |disk| {
            let mut listing = Listing::default();
            let Some(node) = disk.live.find(prefix) else { return Ok(listing) };
            for (name, child) in disk.live.names(node) {
                match disk.live.node(child) {
                    Content::Directory(_) => listing.prefixes.push(name),
                    Content::File(bytes) => {
                        let key = format!("{prefix}/{name}").trim_start_matches('/').to_owned();
                        listing.objects.push(disk.meta(child, &key, bytes));
                    }
                }
            }
            Ok(listing)
        })
    }

    fn list_all(&self, prefix: &str) -> BoxFuture<'static, Result<Vec<ObjectMeta>>> {
        self.answer(prefix, |disk| {
            let mut found = Vec::new();
            if let Some(node) = disk.live.find(prefix) {
                disk.list_all(node, prefix, &mut found);
            }
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
    }

    fn delete(&self, keys: Vec<String>) -> BoxFuture<'static, Result<()>> {
        self.answer("", |disk| {
            for key in &keys {
                if let (Ok(_), Ok(entry)) = (disk.bytes(key), disk.entry(key)) {
                    disk.push(Op::Unlink(entry));
                }
            }
            Ok(())
        })
    }

    fn delete_all(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.answer(prefix, |disk| {
            disk.delete_all(prefix);
            Ok(())
        })
    }

    fn sync(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.answer(prefix, |disk| disk.sync(prefix))
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> BoxFuture<'static, Result<()>> {
        self.answer(from, |disk| disk.rename(from, to, mode))
    }

    fn create_dir(&self, prefix: &str) -> BoxFuture<'static, Result<()>> {
        self.answer(prefix, |disk| disk.make_directories(prefix).map(drop))
    }
}

struct SimWriter {
    disk: Arc<Mutex<Disk>>,
    node: Node,
}

impl fmt::Debug for SimWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimWriter({})", self.node)
    }
}

impl ObjectWriter for SimWriter {
    fn write_at(&self, offset: u64, data: Buffer) -> BoxFuture<'static, Result<Buffer>> {
        let offset = usize::try_from(offset).unwrap();
        self.disk.lock().unwrap().push(Op::Write(self.node, offset, data.to_vec()));
        futures::future::ready(Ok(data)).boxed()
    }

    fn finish(&self, bytes: u64) -> BoxFuture<'static, Result<()>> {
        let bytes = usize::try_from(bytes).unwrap();
        self.disk.lock().unwrap().push(Op::Resize(self.node, bytes));
        futures::future::ready(Ok(())).boxed()
    }
}
