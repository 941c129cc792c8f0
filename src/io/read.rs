//! Reading: byte ranges with destinations → merged requests → verify and decode on the CPU pool.
//!
//! The life of an item: planned → merged with its neighbours in the object → its scratch reserved →
//! requested → finished (its closure checks and decodes on the CPU pool) → scratch back in the pool. Bytes that need no
//! decoding go straight into their destination region; scratch is for checksums, gaps and encoded chunks.

use super::{
    Engine, Progress,
    coalesce::{CoalesceOptions, coalesce},
};
use crate::{
    buffer::Region,
    error::{Error, ErrorKind, Result},
    store::{Span, Store},
    tasks::Priority,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{ops::Range, sync::Arc};

/// Where some bytes of an item go.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Straight into the destination.
    Into(Region),
    /// Into staging memory of this many bytes.
    Scratch(usize),
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Self::Into(region) => region.len(),
            Self::Scratch(bytes) => *bytes,
        }
    }
}

/// What is done with an item's bytes, one region a piece, on the CPU pool.
pub(crate) type Finish = Box<dyn FnOnce(&mut [Region]) -> Result<()> + Send>;

/// One contiguous byte range of an object, what it fills, and what is done then.
pub(crate) struct ReadItem {
    pub(crate) key: Arc<str>,
    pub(crate) offset: u64,
    pub(crate) pieces: Vec<Piece>,
    /// Decoded bytes, for progress.
    pub(crate) raw_bytes: u64,
    /// What the bytes belong to, for errors.
    pub(crate) leaf: Arc<str>,
    pub(crate) finish: Finish,
}

/// What is done with a whole object, `None` where it is not there, on the CPU pool.
pub(crate) type FinishWhole = Box<dyn FnOnce(Option<Bytes>) -> Result<()> + Send>;

/// A whole object of unknown size, or one that may be missing.
pub(crate) struct WholeItem {
    pub(crate) key: Arc<str>,
    /// `Corrupt` beyond this size.
    pub(crate) bytes_max: u64,
    /// What is reserved while it is fetched and decoded.
    pub(crate) reserve_bytes: u64,
    /// Decoded bytes, for progress.
    pub(crate) raw_bytes: u64,
    /// What the bytes belong to, for errors.
    pub(crate) leaf: Arc<str>,
    pub(crate) finish: FinishWhole,
}

impl ReadItem {
    fn range(&self) -> Range<u64> {
        let bytes: usize = self.pieces.iter().map(Piece::bytes).sum();
        self.offset..self.offset.saturating_add(bytes as u64)
    }
}

/// Who reads, from where, and who is told.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) engine: Arc<Engine>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) priority: Priority,
    pub(crate) progress: Progress,
}

impl Context {
    /// How many operations are kept under way at once.
    pub(crate) fn concurrency(&self) -> usize {
        self.store.capabilities().concurrency.max(1) * 2
    }
}

/// Reads all `items`; returns when every one is finished, or at the first error.
///
/// # Cancel safety
/// Dropping the future gives up what has not been requested; reservations and scratch come back.
pub(crate) async fn read_all(context: &Context, items: Vec<ReadItem>) -> Result<()> {
    let requests = plan(context, items);
    stream::iter(requests)
        .map(|items| request(context, items))
        .buffer_unordered(context.concurrency())
        .try_collect::<()>()
        .await
}

/// Fetches whole objects; as [`read_all`].
pub(crate) async fn read_whole(context: &Context, items: Vec<WholeItem>) -> Result<()> {
    stream::iter(items)
        .map(|item| async move {
            let engine = &context.engine;
            let reservation = engine.budget().reserve(context.priority, item.reserve_bytes).await;
            let span = Span::Whole { bytes_max: item.bytes_max };
            let bytes = match context.store.get(&item.key, span, context.priority).await {
                Ok(bytes) => Some(bytes),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(e.with("leaf", &item.leaf)),
            };
            engine.cpu().run(context.priority, move || (item.finish)(bytes)).await?;
            context.progress.chunk_done(item.raw_bytes);
            drop(reservation);
            Ok(())
        })
        .buffer_unordered(context.concurrency())
        .try_collect::<()>()
        .await
}

fn plan(context: &Context, mut items: Vec<ReadItem>) -> Vec<Vec<ReadItem>> {
    let capabilities = context.store.capabilities();
    let options = CoalesceOptions {
        gap_bytes_max: capabilities.coalesce_gap_bytes,
        request_bytes_max: capabilities.part_bytes as u64,
    };
    items.sort_by(|a, b| (&a.key, a.offset).cmp(&(&b.key, b.offset)));
    let mut requests = Vec::new();
    let mut rest = items.into_iter().peekable();
    while let Some(first) = rest.next() {
        let mut same = vec![first];
        while let Some(item) = rest.next_if(|item| item.key == same[0].key) {
            same.push(item);
        }
        let ranges: Vec<_> = same.iter().map(ReadItem::range).collect();
        let order: Vec<_> = (0..ranges.len()).collect();
        let groups = coalesce(&ranges, &order, options);
        let mut same = same.into_iter();
        requests.extend(groups.into_iter().map(|group| same.by_ref().take(group.len()).collect()));
    }
    requests
}

async fn request(context: &Context, items: Vec<ReadItem>) -> Result<()> {
    let engine = &context.engine;
    let key = Arc::clone(&items[0].key);
    let (leaf, offset) = (Arc::clone(&items[0].leaf), items[0].offset);
    let mut end = offset;
    let mut scratch_bytes = 0_u64;
    for item in &items {
        let range = item.range();
        scratch_bytes += range.start - end;
        end = range.end;
        for piece in &item.pieces {
            if let Piece::Scratch(bytes) = piece {
                scratch_bytes += *bytes as u64;
            }
        }
    }
    let reservation = engine.budget().reserve(context.priority, scratch_bytes).await;
    let Gathered { parts, layout, finishes } = gather(engine, items, offset)?;
    let mut parts =
        context.store.read(&key, offset, parts, context.priority).await.map_err(|e| {
            let gone = e.kind() == ErrorKind::NotFound;
            let error =
                if gone { Error::corrupt("a stored object is missing").because(e) } else { e };
            error.with("leaf", &leaf).with("object", &key)
        })?;
    let progress = context.progress.clone();
    let pool = Arc::clone(engine.buffers());
    let finish = move || {
        let mut rest = parts.as_mut_slice();
        for (count, raw_bytes, finish) in finishes {
            let (mine, others) = rest.split_at_mut(count);
            rest = others;
            finish(mine)?;
            if raw_bytes > 0 {
                progress.chunk_done(raw_bytes);
            }
        }
        for (part, scratch) in parts.into_iter().zip(layout) {
            if scratch && let Ok(buffer) = part.into_buffer() {
                pool.give(buffer);
            }
        }
        Ok(())
    };
    engine.cpu().run(context.priority, finish).await?;
    drop(reservation);
    Ok(())
}

struct Gathered {
    /// Contiguous in the object, gaps included.
    parts: Vec<Region>,
    /// Whether each part is scratch.
    layout: Vec<bool>,
    /// How many parts, how many decoded bytes, and what is done with them.
    finishes: Vec<(usize, u64, Finish)>,
}

fn gather(engine: &Engine, items: Vec<ReadItem>, offset: u64) -> Result<Gathered> {
    let mut gathered = Gathered { parts: Vec::new(), layout: Vec::new(), finishes: Vec::new() };
    let mut end = offset;
    for item in items {
        let range = item.range();
        if range.start > end {
            let gap = usize::try_from(range.start - end)
                .map_err(|_| Error::internal("a gap between ranges exceeds the address space"))?;
            gathered.parts.push(engine.buffers().take(gap)?.into());
            gathered.layout.push(true);
            gathered.finishes.push((1, 0, Box::new(|_| Ok(()))));
        }
        end = range.end;
        let count = item.pieces.len();
        for piece in item.pieces {
            let (region, scratch) = match piece {
                Piece::Into(region) => (region, false),
                Piece::Scratch(bytes) => (engine.buffers().take(bytes)?.into(), true),
            };
            gathered.parts.push(region);
            gathered.layout.push(scratch);
        }
        gathered.finishes.push((count, item.raw_bytes, item.finish));
    }
    Ok(gathered)
}
