//! Files of other formats: written in blocks and published whole, or not at all.
//!
//! An export writes what is no checkpoint, but it is published, replaced and cleaned up after as one, so that is here
//! (`foreign` reads stores and leaves the rest to this room). In a file system, files grow in a directory of
//! their own beside the output, in blocks that are written directly, are synced, and are renamed to their names
//! one by one, in the order the caller wants. Elsewhere a file is gathered in memory and put at once, so it
//! must fit into half of the budget.
//!
//! **Invariant:** what is under a final name is a whole file; what fails leaves nothing, and an earlier file as it was.

use crate::{
    buffer::{Buffer, PAGE_BYTES},
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{ObjectWriter, Place, Priority, RenameMode},
};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::sync::Arc;

/// What is written does not begin on pages, so it is copied into blocks of this size, which do.
const BLOCK_BYTES: usize = 4 << 20;
/// Blocks that wait for the disk: one in flight, two behind it.
const BLOCKS_MAX: usize = 3;

/// Where a set of files goes.
#[derive(Debug)]
pub(crate) struct Files {
    engine: Arc<Engine>,
    /// The directory of the output.
    directory: Place,
    /// Where files grow; `None` where they are put whole.
    temporary: Option<Place>,
    overwrite: bool,
    priority: Priority,
}

impl Files {
    /// Prepares to write beside `directory`; nothing is written yet.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        directory: Place,
        overwrite: bool,
        priority: Priority,
    ) -> Self {
        // Stores promise to rename directories; that it works for one file, too, only file systems do.
        let files =
            directory.store().capabilities().positional_writes && directory.local_path().is_some();
        let temporary = files
            .then(|| directory.join(&format!(".milepost-tmp-{:032x}", engine.clock().unique_id())));
        Self { engine: Arc::clone(engine), directory, temporary, overwrite, priority }
    }

    /// Refuses files that are there already, unless they may be replaced.
    pub(crate) async fn check(&self, names: &[&str]) -> Result<()> {
        for name in names {
            if !self.overwrite && self.is_there(name).await? {
                return Err(exists().with("file", self.directory.join(name)));
            }
        }
        Ok(())
    }

    /// Refuses a file beside the output that readers would take for it.
    pub(crate) async fn check_absent(&self, name: &str) -> Result<()> {
        if self.is_there(name).await? {
            return Err(Error::exists(
                "another export is there, which readers would take for this",
            )
            .with("file", self.directory.join(name))
            .hint("delete it first, or choose another name"));
        }
        Ok(())
    }

    async fn is_there(&self, name: &str) -> Result<bool> {
        match self.directory.store().head(&self.directory.key(name)).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Starts a file of `bytes`.
    ///
    /// # Errors
    /// `Unsupported` where the store takes whole files only and it is too large to be held.
    pub(crate) async fn create(&self, name: &str, bytes: u64) -> Result<Sink> {
        let kind = if let Some(temporary) = &self.temporary {
            let key = temporary.key(name);
            Kind::Blocks(temporary.store().create(&key, bytes, self.priority).await?)
        } else {
            self.check_size(name, bytes)?;
            Kind::Whole(self.directory.join(name), Vec::new())
        };
        let engine = Arc::clone(&self.engine);
        let (block, writing) = (Block::default(), FuturesUnordered::new());
        Ok(Sink { engine, kind, block, written: 0, bytes, writing, priority: self.priority })
    }

    fn check_size(&self, name: &str, bytes: u64) -> Result<()> {
        let limit = self.engine.budget().limit() / 2;
        if bytes <= limit {
            return Ok(());
        }
        let what = "the store takes whole files only, and this one exceeds half of the budget";
        Err(Error::unsupported(what)
            .with("file", self.directory.join(name))
            .with("bytes", bytes)
            .with("limit", limit)
            .hint("divide it with `--shard-bytes`, or write to a local path"))
    }

    /// Gives the files their names, durably; the last of `names` appears last.
    pub(crate) async fn publish(&self, names: &[&str]) -> Result<()> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let store = temporary.store();
        store.sync(temporary.prefix()).await?;
        for name in names {
            let (from, to) = (temporary.key(name), self.directory.key(name));
            match store.rename(&from, &to, RenameMode::NoReplace).await {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    // Only a file is replaced: a directory in its place is the user's.
                    if !self.overwrite || !self.is_there(name).await? {
                        return Err(exists().with("file", self.directory.join(name)).because(e));
                    }
                    self.replace(&from, &to).await?;
                }
                result => result?,
            }
        }
        store.delete_all(temporary.prefix()).await
    }

    /// Exchanges the new file with the old one, which goes with the temporary directory.
    async fn replace(&self, from: &str, to: &str) -> Result<()> {
        let store = self.directory.store();
        match store.rename(from, to, RenameMode::Exchange).await {
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                store.delete(vec![to.to_owned()]).await?;
                store.rename(from, to, RenameMode::NoReplace).await
            }
            result => result,
        }
    }

    /// Takes back what was written; the error that led here is the one to tell.
    pub(crate) async fn abandon(&self) {
        if let Some(temporary) = &self.temporary {
            drop(temporary.store().delete_all(temporary.prefix()).await);
        }
    }
}

impl Drop for Files {
    /// Who gave up before the end, by dropping the future, leaves nothing either.
    fn drop(&mut self) {
        let Some(path) = self.temporary.as_ref().and_then(Place::local_path) else { return };
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "a temporary directory was not removed");
            }
            _ => {} // mostly it is gone
        }
    }
}

fn exists() -> Error {
    Error::exists("the output is there already").hint("`--overwrite` replaces it")
}

#[derive(Debug)]
enum Kind {
    Blocks(Arc<dyn ObjectWriter>),
    Whole(Place, Vec<Bytes>),
}

/// The block that is being filled.
#[derive(Debug, Default)]
struct Block {
    buffer: Option<Buffer>,
    used: usize,
}

/// One file under construction.
pub(crate) struct Sink {
    engine: Arc<Engine>,
    kind: Kind,
    block: Block,
    /// Bytes handed to the store or the gather list.
    written: u64,
    /// The size it must have in the end.
    bytes: u64,
    writing: FuturesUnordered<BoxFuture<'static, Result<Buffer>>>,
    priority: Priority,
}

impl Sink {
    /// Appends bytes.
    pub(crate) async fn push(&mut self, data: Buffer) -> Result<()> {
        let whole = matches!(self.kind, Kind::Whole(..));
        let mut block = std::mem::take(&mut self.block);
        let engine = Arc::clone(&self.engine);
        let job = move || {
            let mut full = Vec::new();
            if whole {
                full.push(data);
            } else {
                block.fill(&engine, &data, &mut full)?;
            }
            Ok((block, full))
        };
        let (block, full) = self.engine.cpu().run(self.priority, job).await?;
        self.block = block;
        for buffer in full {
            self.write(buffer).await?;
        }
        Ok(())
    }

    async fn write(&mut self, buffer: Buffer) -> Result<()> {
        let offset = self.written;
        self.written += buffer.len() as u64;
        match &mut self.kind {
            Kind::Whole(_, payload) => payload.push(buffer.into()),
            Kind::Blocks(writer) => {
                self.writing.push(writer.write_at(offset, buffer));
                while self.writing.len() >= BLOCKS_MAX {
                    self.written_one().await?;
                }
            }
        }
        Ok(())
    }

    async fn written_one(&mut self) -> Result<()> {
        if let Some(buffer) = self.writing.next().await {
            self.engine.buffers().give(buffer?);
        }
        Ok(())
    }

    /// Writes what is left and closes the file.
    pub(crate) async fn finish(mut self) -> Result<()> {
        let rest = self.block.used;
        if let Some(mut buffer) = self.block.buffer.take().filter(|_| rest > 0) {
            // Whole pages may go past the page cache; the size is set afterwards.
            let padded = rest.next_multiple_of(PAGE_BYTES);
            buffer[rest..padded].fill(0);
            buffer.set_len(padded);
            self.write(buffer).await?;
            self.written -= (padded - rest) as u64;
        }
        while !self.writing.is_empty() {
            self.written_one().await?;
        }
        assert_eq!(self.written, self.bytes, "a file has the size that its header says");
        match self.kind {
            Kind::Blocks(writer) => writer.finish(self.bytes).await,
            Kind::Whole(place, payload) => {
                place.store().put(place.prefix(), payload, self.priority).await
            }
        }
    }
}

impl Block {
    /// Copies `data` into blocks and moves those that are full to `full`.
    fn fill(&mut self, engine: &Engine, mut data: &[u8], full: &mut Vec<Buffer>) -> Result<()> {
        while !data.is_empty() {
            let mut buffer = match self.buffer.take() {
                Some(buffer) => buffer,
                None => engine.buffers().take(BLOCK_BYTES)?,
            };
            let count = data.len().min(BLOCK_BYTES - self.used);
            buffer[self.used..self.used + count].copy_from_slice(&data[..count]);
            data = &data[count..];
            self.used += count;
            if self.used == BLOCK_BYTES {
                full.push(buffer);
                self.used = 0;
            } else {
                self.buffer = Some(buffer);
            }
        }
        Ok(())
    }
}
