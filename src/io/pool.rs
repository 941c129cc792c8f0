//! Staging buffers that are reused, because touching fresh memory costs more than the copy into it.
//!
//! Writing into untouched pages ran at 1.4 GB/s where warm ones took 8.8 (reference/engines.md §0.10). The
//! pool keeps what fits its limit and drops the rest; its bytes are part of no reservation, so the limit is
//! small beside the budget.

use crate::{
    buffer::{Buffer, PAGE_BYTES},
    error::{Error, Result},
};
use std::sync::{Mutex, PoisonError};

/// Smaller buffers are not worth a search: checksums, gaps, small chunks.
const POOLED_BYTES_MIN: usize = 64 * 1024;

/// Freed staging buffers, for the next operation of about that size.
#[derive(Debug)]
pub(crate) struct BufferPool {
    free: Mutex<Vec<Buffer>>,
    bytes_max: usize,
}

impl BufferPool {
    /// Creates a pool that keeps at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { free: Mutex::default(), bytes_max }
    }

    /// Returns a page-aligned buffer of exactly `len` visible bytes, whatever they hold.
    ///
    /// # Errors
    /// `Unavailable` where memory is out.
    pub(crate) fn take(&self, len: usize) -> Result<Buffer> {
        let out = || Error::unavailable("no memory to stage in").with("bytes", len);
        let capacity = len.checked_next_multiple_of(PAGE_BYTES).ok_or_else(out)?;
        if capacity < POOLED_BYTES_MIN {
            let mut buffer = Buffer::try_zeroed(capacity).ok_or_else(out)?;
            buffer.set_len(len);
            return Ok(buffer);
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // Best fit, but never one of more than twice the size: that would hoard large ones for small needs.
        let found = free
            .iter()
            .enumerate()
            .filter(|(_, b)| b.capacity() >= capacity && b.capacity() / 2 <= capacity)
            .min_by_key(|(_, b)| b.capacity())
            .map(|(i, _)| i);
        let reused = found.map(|i| free.swap_remove(i));
        drop(free);
        let mut buffer = match reused {
            Some(buffer) => buffer,
            None => Buffer::try_zeroed(capacity).ok_or_else(out)?,
        };
        buffer.set_len(len);
        Ok(buffer)
    }

    /// Takes a buffer back, or frees it where the pool is full.
    pub(crate) fn give(&self, mut buffer: Buffer) {
        let capacity = buffer.capacity();
        if capacity < POOLED_BYTES_MIN || capacity > self.bytes_max {
            return;
        }
        buffer.set_len(capacity);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept: usize = free.iter().map(Buffer::capacity).sum();
        let mut evicted = Vec::new();
        while kept + capacity > self.bytes_max && !free.is_empty() {
            let oldest = free.remove(0);
            kept -= oldest.capacity();
            evicted.push(oldest);
        }
        free.push(buffer);
        drop(free);
        drop(evicted); // unmapping outside the lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_for_about_its_size_and_the_limit_holds() {
        let pool = BufferPool::new(1 << 20);
        let first = pool.take(300_000).unwrap();
        let address = first.as_ptr();
        pool.give(first);
        let small = pool.take(100).unwrap();
        assert_ne!(small.as_ptr(), address, "a large buffer is not spent on a small need");
        let again = pool.take(290_000).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (address, 290_000));
        for _ in 0..10 {
            pool.give(Buffer::zeroed(300_000));
        }
        let kept: usize = pool.free.lock().unwrap().iter().map(Buffer::capacity).sum();
        assert!(kept <= 1 << 20);
    }
}
