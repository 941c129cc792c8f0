//! Capture: what the caller keeps is copied before a save returns, within the budget.
//!
//! Small leaves are copied first, whole, into memory that the budget holds until they are written; the save then
//! goes on without the caller. What does not fit (the overflow: the largest leaves, which are written first) is served:
//! the save asks for a chunk, the caller's thread copies it, and `save` returns when all of it was asked for. Of one
//! leaf in between, the end is copied and the start served.
//!
//! ```text
//! leaves by size   ▪ ▪ ▪ ▪▪ ▪▪ ▪▪▪▪ ▪▪▪▪▪▪▪▪▪▪ ▪▪▪▪▪▪▪▪▪▪▪▪▪▪
//!                  └──── copied at once ────┘└── served, chunk by chunk ──┘
//! ```
//!
//! **Invariant:** nothing reads the borrowed memory but the thread that lent it.

mod copies;

pub(crate) use copies::Copies;

use super::items::Item;
use crate::{
    array::{Borrowed, Leaf, Provider, Source},
    buffer::Buffer,
    chunk::{Grid, Subset, contiguous_run},
    error::{Error, Result},
    io::Engine,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

/// Below this it is not worth to cut a leaf in two.
const CUT_BYTES_MIN: u64 = 1 << 20;

/// A leaf's lent memory, and how much of its start is served.
struct Served<'a> {
    bytes: &'a [u8],
    shape: Vec<u64>,
    item_bytes: usize,
    head: u64,
}

/// A question of the save: the elements of `subset` below the leaf's head, in order.
struct Request {
    leaf: usize,
    subset: Subset,
    answer: Sender<Buffer>,
}

/// What is still to be served from the caller's thread before `save` may return.
pub(crate) struct Service<'a> {
    leaves: Vec<Served<'a>>,
    requests: Receiver<Request>,
    left: u64,
}

impl Service<'_> {
    /// Tells whether everything was copied at once.
    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Answers until everything was asked for, or nobody is left who asks; with `to_the_end`, until the latter: a save
    /// that is tried again asks again.
    pub(crate) fn serve(mut self, to_the_end: bool) {
        let mut some = self.left > 0;
        while some {
            let Ok(request) = self.requests.recv() else { return };
            let Some(leaf) = self.leaves.get(request.leaf) else { return };
            let mut copy = Vec::new();
            for run in runs(&leaf.shape, &request.subset) {
                let head = run.start..run.end.min(leaf.head);
                if !head.is_empty() {
                    copy.push(&leaf.bytes[bytes_of(&head, leaf.item_bytes)]);
                    self.left = self.left.saturating_sub(head.end - head.start);
                }
            }
            // A save that ended meanwhile takes no answer.
            drop(request.answer.send(joined(&copy)));
            some = to_the_end || self.left > 0;
        }
    }
}

fn joined(pieces: &[&[u8]]) -> Buffer {
    let mut buffer = Buffer::zeroed(pieces.iter().map(|piece| piece.len()).sum());
    let mut at = 0;
    for piece in pieces {
        buffer[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    buffer
}

fn bytes_of(run: &Range<u64>, item_bytes: usize) -> Range<usize> {
    small(run.start) * item_bytes..small(run.end) * item_bytes
}

/// An offset into memory that is there.
fn small(n: u64) -> usize {
    usize::try_from(n).expect("the bytes of a leaf fit the address space (leaf_bytes)")
}

/// Returns the elements of a box as runs in an array of `shape`, in order.
fn runs(shape: &[u64], subset: &Subset) -> Vec<Range<u64>> {
    if let Some(run) = contiguous_run(shape, subset) {
        return vec![run];
    }
    // Not contiguous, so there is an axis; the last one gives a run a row.
    let (Some((row, outer)), Ok(grid)) = (
        subset.shape().split_last(),
        Grid::new(&subset.shape()[..shape.len() - 1], &vec![1; shape.len() - 1]),
    ) else {
        return Vec::new();
    };
    debug_assert_eq!(outer.len(), shape.len() - 1);
    let start = |index: &[u64]| {
        let at = index.iter().chain([&0]).zip(subset.start()).map(|(i, start)| i + start);
        at.zip(shape).fold(0, |linear, (i, n)| linear * n + i)
    };
    grid.indices().map(|index| start(&index)..start(&index) + row).collect()
}

/// Fills chunks from the copied end of a leaf and, for the rest, by asking the thread that lent it.
struct Lent {
    leaf: usize,
    shape: Vec<u64>,
    item_bytes: usize,
    /// So many elements from the start are served.
    head: u64,
    tail: Bytes,
    ask: Sender<Request>,
}

impl Provider for Lent {
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        let runs = runs(&self.shape, subset);
        let served = if runs.iter().any(|run| run.start < self.head) {
            Some(self.ask(subset)?)
        } else {
            None
        };
        let mut served = served.as_deref().unwrap_or_default();
        let mut out = out;
        for run in runs {
            let cut = self.head.clamp(run.start, run.end);
            for (part, from_tail) in [(run.start..cut, false), (cut..run.end, true)] {
                let bytes = small(part.end - part.start) * self.item_bytes;
                let (here, rest) = out.split_at_mut(bytes);
                out = rest;
                if from_tail && bytes > 0 {
                    let part = part.start - self.head..part.end - self.head;
                    here.copy_from_slice(&self.tail[bytes_of(&part, self.item_bytes)]);
                } else if bytes > 0 {
                    let (piece, rest) = served.split_at(bytes);
                    here.copy_from_slice(piece);
                    served = rest;
                }
            }
        }
        Ok(())
    }
}

impl Lent {
    fn ask(&self, subset: &Subset) -> Result<Buffer> {
        let gone = || {
            Error::invalid("the memory of a leaf was lent only until the save returned")
                .hint("hand the data over, or save again")
        };
        let (answer, receive) = channel();
        let request = Request { leaf: self.leaf, subset: subset.clone(), answer };
        self.ask.send(request).map_err(|_| gone())?;
        receive.recv().map_err(|_| gone())
    }
}

/// Takes what the caller keeps out of `items`: copied where the budget holds it or `beyond` it, else to be served.
///
/// # Errors
/// `Invalid` where a leaf borrows memory that `borrowed` does not lend, naming item and key path.
pub(crate) fn capture<'a>(
    engine: &Engine,
    items: &mut BTreeMap<String, Item>,
    borrowed: &Borrowed<'a>,
    (copies, beyond): (&Arc<Copies>, bool),
) -> Result<Service<'a>> {
    let mut capture = Capture { engine, copies, beyond, found: Vec::new() };
    for (name, item) in items.iter() {
        capture.find(item, borrowed).map_err(|e| e.with("item", name))?;
    }
    let (sources, service) = capture.copy()?;
    if !sources.is_empty() {
        let mut sources = sources.into_iter();
        for item in items.values_mut() {
            replace(item, &mut sources);
        }
    }
    Ok(service)
}

/// Puts the new sources where the borrowed leaves are, in the order in which [`Capture::find`] met them.
fn replace(item: &mut Item, sources: &mut impl Iterator<Item = Source>) {
    let mut renew = |mut leaf: Leaf| {
        // The next source is taken for a borrowed leaf only: another one between them must not use it up.
        if matches!(leaf.source, Source::Borrowed(_))
            && let Some(source) = sources.next()
        {
            leaf.source = source;
        }
        leaf
    };
    *item = match std::mem::replace(item, Item::Json(serde_json::Value::Null)) {
        Item::Tree(tree) => Item::Tree(tree.map(renew)),
        Item::Array(leaf) => Item::Array(renew(leaf)),
        other => other,
    };
}

struct Capture<'e, 'a> {
    engine: &'e Engine,
    copies: &'e Arc<Copies>,
    /// Whether everything is copied, beyond the budget too.
    beyond: bool,
    found: Vec<Served<'a>>,
}

impl<'a> Capture<'_, 'a> {
    fn find(&mut self, item: &Item, borrowed: &Borrowed<'a>) -> Result<()> {
        match item {
            Item::Tree(tree) => {
                tree.validate()?; // so that walking it is bounded
                for (path, leaf) in tree.leaves() {
                    self.leaf(leaf, borrowed).map_err(|e| e.with("leaf", path))?;
                }
                Ok(())
            }
            Item::Array(leaf) => self.leaf(leaf, borrowed),
            _ => Ok(()),
        }
    }

    fn leaf(&mut self, leaf: &Leaf, borrowed: &Borrowed<'a>) -> Result<()> {
        if !matches!(leaf.source, Source::Borrowed(_)) {
            return Ok(());
        }
        let bytes = borrowed.slice(leaf).ok_or_else(not_lent)?;
        let item_bytes = leaf.data_type().size_bytes();
        let shape = leaf.shape().to_vec();
        self.found.push(Served { bytes, shape, item_bytes, head: 0 });
        Ok(())
    }

    /// Copies smallest first, as long as the budget holds it.
    fn copy(mut self) -> Result<(Vec<Source>, Service<'a>)> {
        let (ask, requests) = channel();
        let mut order: Vec<usize> = (0..self.found.len()).collect();
        order.sort_by_key(|position| self.found[*position].bytes.len());
        let mut sources: BTreeMap<usize, Source> = BTreeMap::new();
        for position in order {
            let leaf = &mut self.found[position];
            let bytes = leaf.bytes.len() as u64;
            if let Some(copy) = self.copies.copy(self.engine, leaf.bytes, self.beyond)? {
                sources.insert(position, Source::Memory(copy));
                continue;
            }
            let item_bytes = leaf.item_bytes as u64;
            let holdable = self.engine.budget().holdable().min(bytes) / item_bytes * item_bytes;
            let cut = &leaf.bytes[small(bytes - holdable)..];
            let tail = if holdable < CUT_BYTES_MIN {
                None
            } else {
                self.copies.copy(self.engine, cut, false)?
            };
            let tail = tail.unwrap_or_default();
            leaf.head = (bytes - tail.len() as u64) / item_bytes;
            let (shape, item_bytes, head) = (leaf.shape.clone(), leaf.item_bytes, leaf.head);
            let ask = ask.clone();
            let lent = Lent { leaf: position, shape, item_bytes, head, tail, ask };
            sources.insert(position, Source::Provider(Arc::new(lent)));
        }
        if !sources.is_empty() {
            self.copies.clear(); // what this save did not use, the next one will not
        }
        let left = self.found.iter().map(|leaf| leaf.head).sum();
        Ok((sources.into_values().collect(), Service { leaves: self.found, requests, left }))
    }
}

fn not_lent() -> Error {
    Error::invalid("a leaf borrows memory that was not lent to this save")
        .hint("pass the `Borrowed` that the leaf was made with, once")
}

#[cfg(test)]
mod tests;
