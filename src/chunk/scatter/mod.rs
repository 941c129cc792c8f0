//! Strided copies between C-order blocks, and a destination that several threads fill together.
//!
//! [`copy_box`] moves a box of one block to a box of another. Trailing axes that both blocks hold whole are one
//! run, so a chunk that is a contiguous run of its array is one `memcpy`.
//!
//! [`SharedTarget`] is the destination of a read: a [`Region`] that holds a box of an array in C order.
//! [`SharedTarget::divide`] consumes the region and hands out one [`Part`] a chunk; each part may go to its own
//! thread and writes its elements only. When the parts are gone, [`SharedTarget::into_region`] gives the region
//! back.
//!
//! **Invariant:** two parts of one target never cover the same byte: [`Parts`] yields each chunk of a [`Grid`]
//! once, the chunks of a grid are disjoint, parts cannot be cloned, and nothing else makes one.
#![expect(unsafe_code, reason = "disjoint strided writes into one allocation; see SAFETY comments")]

use super::{
    grid::{ChunkIndices, Grid},
    subset::{Subset, elements},
};
use crate::buffer::Region;
use std::{fmt, ops::Range, sync::Arc};

/// Converts a count of elements that are in memory.
///
/// # Panics
/// Where it exceeds the address space, which what is in memory cannot.
pub(super) fn small(n: u64) -> usize {
    usize::try_from(n).expect("what is in memory is counted by a usize")
}

/// Returns how many bytes a block takes.
///
/// # Panics
/// Where that exceeds the address space.
fn block_bytes(shape: &[u64], item_bytes: usize) -> usize {
    let bytes = elements(shape).and_then(|n| n.checked_mul(item_bytes as u64));
    small(bytes.expect("a block in memory is counted by 64 bits"))
}

/// Returns the elements of `subset` as one range where they are contiguous in an array of `shape`.
///
/// An empty box is the empty range at its start. The box lies inside the array.
pub(crate) fn contiguous_run(shape: &[u64], subset: &Subset) -> Option<Range<u64>> {
    assert!(subset.fits(shape), "a box lies inside its array");
    if subset.is_empty() {
        return Some(0..0);
    }
    let mut start = 0;
    let mut whole_so_far = true;
    let mut stride = 1;
    for axis in (0..shape.len()).rev() {
        if !whole_so_far && subset.shape()[axis] != 1 {
            return None;
        }
        whole_so_far &= subset.shape()[axis] == shape[axis];
        start += subset.start()[axis] * stride;
        stride *= shape[axis];
    }
    Some(start..start + subset.elements())
}

/// The bytes of a C-order block of elements.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    bytes: &'a [u8],
    shape: &'a [u64],
    item_bytes: usize,
}

impl<'a> Block<'a> {
    /// Names the shape of `bytes`.
    ///
    /// # Panics
    /// Where the shape is not that of so many bytes.
    pub(crate) fn new(bytes: &'a [u8], shape: &'a [u64], item_bytes: usize) -> Self {
        assert_eq!(bytes.len(), block_bytes(shape, item_bytes), "a block is as long as its shape");
        Self { bytes, shape, item_bytes }
    }

    /// Returns the distance in bytes between neighbours on each axis.
    pub(super) fn strides(&self) -> Vec<usize> {
        strides(self.shape, self.item_bytes)
    }
}

impl fmt::Debug for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:?} of {} bytes)", self.shape, self.item_bytes)
    }
}

/// The bytes of a C-order block of elements that is written.
pub(crate) struct BlockMut<'a> {
    bytes: &'a mut [u8],
    shape: &'a [u64],
    item_bytes: usize,
}

impl<'a> BlockMut<'a> {
    /// Names the shape of `bytes`.
    ///
    /// # Panics
    /// Where the shape is not that of so many bytes.
    pub(crate) fn new(bytes: &'a mut [u8], shape: &'a [u64], item_bytes: usize) -> Self {
        assert_eq!(bytes.len(), block_bytes(shape, item_bytes), "a block is as long as its shape");
        Self { bytes, shape, item_bytes }
    }
}

impl fmt::Debug for BlockMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMut({:?} of {} bytes)", self.shape, self.item_bytes)
    }
}

fn strides(shape: &[u64], item_bytes: usize) -> Vec<usize> {
    let mut strides = vec![item_bytes; shape.len()];
    for axis in (1..shape.len()).rev() {
        // Wraps only where another axis is 0, and then no stride is used.
        strides[axis - 1] = strides[axis].wrapping_mul(small(shape[axis]));
    }
    strides
}

/// Copies the elements of `source_part` to those of `target_part`, a box of equal shape.
///
/// # Panics
/// Where a box is not inside its block, or the shapes or item sizes differ.
pub(crate) fn copy_box(
    source: Block<'_>,
    source_part: &Subset,
    target: &mut BlockMut<'_>,
    target_part: &Subset,
) {
    assert_eq!(source.item_bytes, target.item_bytes, "a copy keeps the item size");
    let copy =
        Copy::new((source.shape, source_part), (target.shape, target_part), source.item_bytes);
    copy.each_run(|from, to, run| {
        target.bytes[to..to + run].copy_from_slice(&source.bytes[from..from + run]);
    });
}

/// Copies a box of an array to the origin of a chunk; what the box does not cover is untouched.
///
/// # Panics
/// Where the box is not inside the array or does not fit the chunk.
pub(crate) fn gather(source: Block<'_>, part: &Subset, chunk: &mut BlockMut<'_>) {
    let origin = Subset::whole(part.shape()).expect("a box of equal shape was counted");
    copy_box(source, part, chunk, &origin);
}

/// The runs of a strided copy: offsets and lengths only, no bytes.
struct Copy {
    from: usize,
    to: usize,
    run: usize,
    /// Count and the two strides of each axis that is not part of a run, outermost first.
    outer: Vec<(u64, usize, usize)>,
}

impl Copy {
    fn new(
        (source_shape, source_part): (&[u64], &Subset),
        (target_shape, target_part): (&[u64], &Subset),
        item_bytes: usize,
    ) -> Self {
        assert!(source_part.fits(source_shape), "a box lies inside its source");
        assert!(target_part.fits(target_shape), "a box lies inside its target");
        assert_eq!(source_part.shape(), target_part.shape(), "a copy keeps the shape");
        if source_part.is_empty() {
            return Self { from: 0, to: 0, run: 0, outer: Vec::new() };
        }
        let (a, b) = (strides(source_shape, item_bytes), strides(target_shape, item_bytes));
        let offset = |part: &Subset, strides: &[usize]| {
            part.start().iter().zip(strides).map(|(i, stride)| small(*i) * stride).sum()
        };
        let (from, to) = (offset(source_part, &a), offset(target_part, &b));
        let shape = source_part.shape();
        let mut run = item_bytes;
        let mut axis = shape.len();
        while axis > 0 && run == a[axis - 1] && run == b[axis - 1] {
            axis -= 1;
            run *= small(shape[axis]);
        }
        let outer = (0..axis).filter(|axis| shape[*axis] > 1);
        Self { from, to, run, outer: outer.map(|i| (shape[i], a[i], b[i])).collect() }
    }

    fn each_run(&self, mut copy: impl FnMut(usize, usize, usize)) {
        if self.run == 0 {
            return;
        }
        let Some(((count, from_stride, to_stride), outer)) = self.outer.split_last() else {
            return copy(self.from, self.to, self.run);
        };
        let mut index = vec![0u64; outer.len()];
        let counts: Vec<u64> = outer.iter().map(|axis| axis.0).collect();
        loop {
            let (mut from, mut to) = (self.from, self.to);
            for (i, (_, a, b)) in index.iter().zip(outer) {
                from += small(*i) * a;
                to += small(*i) * b;
            }
            for _ in 0..*count {
                copy(from, to, self.run);
                from += from_stride;
                to += to_stride;
            }
            if !super::grid::advance(&mut index, &counts) {
                return;
            }
        }
    }
}

struct Target {
    region: Region,
    start: *mut u8,
    shape: Vec<u64>,
    item_bytes: usize,
}

// SAFETY: the pointer is into `region`, which the target owns and which may move between threads.
unsafe impl Send for Target {}
// SAFETY: through a shared target only the bytes of a part are written, each by the part's one owner.
unsafe impl Sync for Target {}

/// A destination in memory that several threads fill, each its own parts.
#[derive(Debug)]
pub(crate) struct SharedTarget {
    target: Arc<Target>,
}

impl SharedTarget {
    /// Turns a region into the destination of `subset` of the array that `grid` divides.
    ///
    /// The region holds the box in C order. The parts come one a chunk that holds an element of the box.
    ///
    /// # Panics
    /// Where the box is not inside the array or the region is not as long as the box.
    pub(crate) fn divide(
        mut region: Region,
        item_bytes: usize,
        grid: Arc<Grid>,
        subset: Subset,
    ) -> (Self, Parts) {
        assert_eq!(
            region.len(),
            block_bytes(subset.shape(), item_bytes),
            "a destination is as long as the box that it receives"
        );
        let start = region.raw();
        let shape = subset.shape().to_vec();
        let target = Arc::new(Target { region, start, shape, item_bytes });
        let chunks = grid.intersecting(&subset);
        let parts = Parts { target: Arc::clone(&target), grid, subset, chunks };
        (Self { target }, parts)
    }

    /// Gives the region back once all parts are dropped.
    ///
    /// # Errors
    /// The target itself while a part or the iterator of the parts lives.
    pub(crate) fn into_region(self) -> Result<Region, Self> {
        Arc::try_unwrap(self.target).map(|target| target.region).map_err(|target| Self { target })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({:?} of {} bytes)", self.shape, self.item_bytes)
    }
}

/// The parts of a [`SharedTarget`], in C order of the chunks.
#[derive(Debug)]
pub(crate) struct Parts {
    target: Arc<Target>,
    grid: Arc<Grid>,
    subset: Subset,
    chunks: ChunkIndices,
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let chunk = self.chunks.next()?;
        let chunk_box = self.grid.chunk_box(&chunk);
        let both = chunk_box.intersection(&self.subset).expect("the chunk intersects the box");
        Some(Part {
            target: Arc::clone(&self.target),
            in_chunk: both.relative_to(&chunk_box),
            in_target: both.relative_to(&self.subset),
            chunk,
        })
    }
}

/// The elements of one chunk in a [`SharedTarget`]: the right to write them.
#[derive(Debug)]
pub(crate) struct Part {
    target: Arc<Target>,
    chunk: Vec<u64>,
    in_chunk: Subset,
    in_target: Subset,
}

impl Part {
    /// Returns the index of the chunk.
    pub(crate) fn chunk(&self) -> &[u64] {
        &self.chunk
    }

    /// Returns which elements of the chunk are wanted.
    pub(crate) fn in_chunk(&self) -> &Subset {
        &self.in_chunk
    }

    /// Returns where in the destination they go.
    #[cfg(test)]
    pub(crate) fn in_target(&self) -> &Subset {
        &self.in_target
    }

    /// Returns the destination of the part where it is one run of bytes.
    ///
    /// It is the whole of a decoded chunk where [`Part::in_chunk`] is the chunk.
    pub(crate) fn as_run(&mut self) -> Option<&mut [u8]> {
        let run = contiguous_run(&self.target.shape, &self.in_target)?;
        let item_bytes = self.target.item_bytes;
        let (start, len) = (small(run.start) * item_bytes, small(run.end - run.start) * item_bytes);
        // SAFETY: the box lies inside the target (`relative_to` of an intersection with it), so its run
        // lies inside the region's bytes. No other part covers them (the module's invariant), the region itself
        // is not read before all parts are gone (`into_region`), and `self` is borrowed exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(self.target.start.add(start), len) })
    }

    /// Copies the wanted elements of the decoded chunk into the destination.
    ///
    /// # Panics
    /// Where the wanted elements are not inside the chunk or its item size differs.
    pub(crate) fn scatter(&mut self, chunk: Block<'_>) {
        assert_eq!(chunk.item_bytes, self.target.item_bytes, "a copy keeps the item size");
        let copy = Copy::new(
            (chunk.shape, &self.in_chunk),
            (&self.target.shape, &self.in_target),
            chunk.item_bytes,
        );
        copy.each_run(|from, to, run| {
            let source = &chunk.bytes[from..from + run];
            // SAFETY: `Copy` yields runs of the box `in_target` only, which lies inside the region; no other
            // part covers these bytes, and `source` is borrowed from elsewhere, so nothing overlaps.
            unsafe {
                std::ptr::copy_nonoverlapping(source.as_ptr(), self.target.start.add(to), run);
            }
        });
    }

    /// Fills the wanted elements with one element's bytes.
    ///
    /// # Panics
    /// Where `item` is not one element.
    pub(crate) fn fill(&mut self, item: &[u8]) {
        assert_eq!(item.len(), self.target.item_bytes, "a fill value is one element");
        let place = (self.target.shape.as_slice(), &self.in_target);
        Copy::new(place, place, item.len()).each_run(|_, to, run| {
            // SAFETY: as in `as_run`: a run of this part's own bytes, borrowed exclusively through `self`.
            let bytes = unsafe { std::slice::from_raw_parts_mut(self.target.start.add(to), run) };
            bytes.chunks_exact_mut(item.len()).for_each(|to| to.copy_from_slice(item));
        });
    }
}

#[cfg(test)]
mod tests;
