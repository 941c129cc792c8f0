//! Owned memory that chunk bytes live in: page-aligned, reusable, divisible into exclusive regions.
//!
//! A [`Buffer`] is one allocation. Large ones are anonymous mappings: zero pages that cost nothing until
//! they are touched, aligned for direct I/O (4 KiB) and, from 4 MiB, for huge pages (2 MiB), which are left to
//! the system's setting: asking for them (`MADV_HUGEPAGE`) made first touch three times slower on a virtual
//! machine that hands free huge pages back to its host (spec/decisions/0008). A buffer becomes a [`Region`], and a region divides into disjoint regions that different threads fill; when all
//! but one are gone, [`Region::into_buffer`] gives the whole allocation back.
//!
//! It stands on the street because `store`, `io` and `chunk` all pass it (spec/decisions/0002).
//!
//! **Invariant:** the bytes of two live regions of one allocation never overlap, so a `&mut [u8]` of one
//! aliases nothing; only [`Region::raw`] hands out a pointer, to `chunk::scatter` alone.
#![expect(unsafe_code, reason = "owned aligned memory; see each SAFETY comment")]

use std::{
    fmt,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::Arc,
};

/// The alignment that direct I/O asks of addresses, offsets and lengths: one page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// From here a buffer is its own mapping.
const MAP_BYTES_MIN: usize = 128 * 1024;
/// From here a mapping is aligned for huge pages.
const HUGE_BYTES_MIN: usize = 4 * 1024 * 1024;
const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Rounds `n` up to a multiple of the page size.
pub(crate) const fn page_ceil(n: usize) -> usize {
    n.next_multiple_of(PAGE_BYTES)
}

enum Memory {
    Heap { ptr: NonNull<u8>, layout: std::alloc::Layout },
    Map { base: NonNull<u8>, base_bytes: usize, ptr: NonNull<u8> },
}

// SAFETY: `Memory` owns its allocation; nothing in it is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared access to `Memory` only reads the pointer; writes go through exclusive regions.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(bytes: usize) -> Option<Self> {
        if bytes >= MAP_BYTES_MIN {
            return Self::map(bytes);
        }
        let align = if bytes >= PAGE_BYTES { PAGE_BYTES } else { 64 };
        let layout = std::alloc::Layout::from_size_align(bytes.max(1), align).ok()?;
        // SAFETY: the layout has a size of at least one byte.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        NonNull::new(ptr).map(|ptr| Self::Heap { ptr, layout })
    }

    fn map(bytes: usize) -> Option<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let bytes = bytes.checked_next_multiple_of(PAGE_BYTES)?;
        let huge = bytes >= HUGE_BYTES_MIN;
        let base_bytes = if huge { bytes.checked_add(HUGE_PAGE_BYTES)? } else { bytes };
        // SAFETY: a fresh private anonymous mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                base_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .ok()?;
        let base = NonNull::new(base.cast::<u8>())?;
        if !huge {
            return Some(Self::Map { base, base_bytes, ptr: base });
        }
        let skip = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: the mapping is one huge page longer than `bytes`, and `skip` is less than that.
        let ptr = unsafe { base.add(skip) };
        Some(Self::Map { base, base_bytes, ptr })
    }

    fn ptr(&self) -> NonNull<u8> {
        match self {
            Self::Heap { ptr, .. } | Self::Map { ptr, .. } => *ptr,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match *self {
            // SAFETY: allocated in `zeroed` with this layout.
            Self::Heap { ptr, layout } => unsafe { std::alloc::dealloc(ptr.as_ptr(), layout) },
            Self::Map { base, base_bytes, .. } => {
                // SAFETY: our own mapping, unmapped once, with its whole length.
                let _ = unsafe { rustix::mm::munmap(base.as_ptr().cast(), base_bytes) };
            }
        }
    }
}

/// An owned, aligned run of bytes.
pub struct Buffer {
    memory: Memory,
    len: usize,
    capacity: usize,
}

impl Buffer {
    /// Allocates `len` zero bytes; from 4 KiB they are page-aligned.
    ///
    /// # Panics
    /// Where memory is out; [`Buffer::try_zeroed`] tells instead.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).expect("memory for a buffer")
    }

    /// Allocates `len` zero bytes, `None` where memory or address space is out.
    #[must_use]
    pub fn try_zeroed(len: usize) -> Option<Self> {
        Memory::zeroed(len).map(|memory| Self { memory, len, capacity: len })
    }

    /// Returns how many bytes the allocation holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the visible length; bytes beyond the old one are whatever was there before.
    ///
    /// # Panics
    /// Where `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer's length exceeds its capacity");
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes are initialised (zeroed at allocation) and owned.
        unsafe { std::slice::from_raw_parts(self.memory.ptr().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.ptr().as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl From<Buffer> for bytes::Bytes {
    fn from(buffer: Buffer) -> Self {
        Self::from_owner(buffer)
    }
}

/// An exclusive part of a buffer that can move to another thread.
pub struct Region {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Region {
    /// Divides the region at `at`, relative to its start.
    ///
    /// # Panics
    /// Where `at` is beyond its end.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.range.len(), "a region is divided beyond its end");
        let middle = self.range.start + at;
        let head = Self { buffer: Arc::clone(&self.buffer), range: self.range.start..middle };
        let tail = Self { range: middle..self.range.end, buffer: self.buffer };
        (head, tail)
    }

    /// Gives the whole allocation back where this is its last region; its length is as before.
    ///
    /// # Errors
    /// The region itself while another part of the allocation lives.
    pub fn into_buffer(self) -> Result<Buffer, Self> {
        let range = self.range;
        Arc::try_unwrap(self.buffer).map_err(|buffer| Self { buffer, range })
    }

    /// Returns a pointer to the first byte, for writes through disjoint strided views.
    pub(crate) fn raw(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
}

impl From<Buffer> for Region {
    fn from(buffer: Buffer) -> Self {
        let range = 0..buffer.len();
        Self { buffer: Arc::new(buffer), range }
    }
}

impl Deref for Region {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let start = self.buffer.memory.ptr().as_ptr();
        // SAFETY: the range lies inside the buffer's length; no other region covers these bytes.
        unsafe { std::slice::from_raw_parts(start.add(self.range.start), self.range.len()) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.buffer.memory.ptr().as_ptr();
        // SAFETY: regions are made whole from a buffer and only ever divided, so these bytes belong to
        // this region alone, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.add(self.range.start), self.range.len()) }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_and_aligned_at_every_size_class() {
        for len in [0, 1, 64, 4096, 5000, 131_072, 1 << 20, (4 << 20) + 1] {
            let buffer = Buffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|b| *b == 0));
            if len >= PAGE_BYTES {
                assert_eq!(buffer.as_ptr().align_offset(PAGE_BYTES), 0);
            }
            if len >= HUGE_BYTES_MIN {
                assert_eq!(buffer.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
            }
        }
    }

    #[test]
    fn regions_divide_fill_in_parallel_and_join() {
        let (mut a, b) = Region::from(Buffer::zeroed(300_000)).split_at(100_000);
        let (mut b, c) = b.split_at(100_000);
        std::thread::scope(|scope| {
            scope.spawn(|| a.fill(1));
            scope.spawn(|| b.fill(2));
        });
        let c = c.into_buffer().expect_err("two other regions live");
        drop((a, b));
        let whole = c.into_buffer().expect("the last region");
        assert_eq!(whole.len(), 300_000);
        assert!(whole[..100_000].iter().all(|x| *x == 1));
        assert!(whole[100_000..200_000].iter().all(|x| *x == 2));
        assert!(whole[200_000..].iter().all(|x| *x == 0));
    }
}
