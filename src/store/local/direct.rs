//! Direct reads: from the device into the destination, past the page cache.
//!
//! A direct read asks that offsets, lengths and addresses are multiples of the device's unit (`statx`
//! tells it). Each window of up to 16 MiB is one `preadv`: what meets the alignment lands in its
//! destination, the rest in one aligned scratch buffer and is copied from there.
//!
//! ```text
//! file      │ unit │ unit │ unit … unit │ unit │      A shard's chunk is a multiple of the unit, its checksum
//! wanted       └head┴──── body ─────────┴tail┘        and the gap to the next chunk are not: the chunk goes to
//! iovecs    [scratch][ destination ....][scratch]     its place, checksum and gap to a scratch page.
//! ```
//!
//! A short result (the file's end, a signal) is no error here: what is missing is read by the plain path,
//! which also decides whether the file is truncated.

use super::read::Window;
use crate::buffer::{Buffer, PAGE_BYTES, Region};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, OFlags, StatxFlags, fcntl_setfl, statx},
    io::{Errno, preadv, retry_on_intr},
};
use std::{io::IoSliceMut, ops::Range};

/// One `preadv` covers at most this much: two or three requests of a disk, and the bound of the scratch.
const WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// A shorter aligned body is copied from scratch: that keeps a window below the kernel's 1,024 vectors
/// (at most 16 MiB / 64 KiB bodies, and as many gaps).
const BODY_BYTES_MIN: u64 = 64 * 1024;

/// Reads `range` (relative to `offset`) directly as far as that works; returns how far it came.
///
/// Leaves the file in buffered mode.
pub(super) fn read(
    file: &OwnedFd,
    offset: u64,
    parts: &mut [Region],
    range: Range<u64>,
) -> Result<u64, Errno> {
    let Some(unit) = unit(file) else { return Ok(range.start) };
    if fcntl_setfl(file, OFlags::DIRECT).is_err() {
        return Ok(range.start);
    }
    let result = windows(file, offset, parts, range, unit);
    fcntl_setfl(file, OFlags::empty())?;
    result
}

/// Tells the alignment of direct I/O on this file; nothing where it is refused.
pub(super) fn unit(file: &OwnedFd) -> Option<u64> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Some(PAGE_BYTES as u64); // a kernel before 6.1: pages suit every device
    }
    let unit = u64::from(stat.stx_dio_mem_align.max(stat.stx_dio_offset_align));
    let sane = stat.stx_dio_offset_align > 0 && unit.is_power_of_two() && unit <= 1 << 16;
    sane.then_some(unit)
}

fn windows(
    file: &OwnedFd,
    offset: u64,
    parts: &mut [Region],
    range: Range<u64>,
    unit: u64,
) -> Result<u64, Errno> {
    let mut done = range.start;
    while done < range.end {
        let window = done..range.end.min(done + WINDOW_BYTES);
        let slices = Window::new(parts, window.clone());
        match one(file, offset + window.start..offset + window.end, slices, unit) {
            // The end of the file, or refused after all (an odd stacked file system): the plain path sees.
            Ok(0) | Err(Errno::INVAL | Errno::OPNOTSUPP) => break,
            Ok(n) => done += n,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Where the pieces of one window go.
struct Layout<'a> {
    /// The vectors in file order: a destination, or so many bytes of scratch.
    vectors: Vec<Vector<'a>>,
    /// What is copied from scratch afterwards: file offset, offset in scratch, destination.
    copies: Vec<(u64, usize, &'a mut [u8])>,
    scratch_bytes: usize,
}

enum Vector<'a> {
    Body(&'a mut [u8]),
    Scratch(usize),
}

/// Reads the file range `wanted` into `slices` with one `preadv`; returns the bytes that arrived.
fn one(file: &OwnedFd, wanted: Range<u64>, slices: Window<'_>, unit: u64) -> Result<u64, Errno> {
    let start = wanted.start - wanted.start % unit;
    let Layout { vectors, copies, scratch_bytes } = lay_out(&wanted, slices, unit);
    let mut scratch = Buffer::zeroed(scratch_bytes.next_multiple_of(PAGE_BYTES));
    let n = {
        let mut left = &mut scratch[..];
        let mut slices: Vec<IoSliceMut<'_>> = Vec::with_capacity(vectors.len());
        for vector in vectors {
            slices.push(IoSliceMut::new(match vector {
                Vector::Body(body) => body,
                Vector::Scratch(len) => {
                    let (piece, rest) = std::mem::take(&mut left).split_at_mut(len);
                    left = rest;
                    piece
                }
            }));
        }
        retry_on_intr(|| preadv(file, &mut slices, start))?
    };
    let reached = start + n as u64;
    for (at, from, to) in copies {
        let valid =
            usize::try_from(reached.saturating_sub(at)).map_or(to.len(), |n| n.min(to.len()));
        to[..valid].copy_from_slice(&scratch[from..from + valid]);
    }
    Ok(reached.min(wanted.end).saturating_sub(wanted.start))
}

/// Decides for each slice which part of it the device can write to.
fn lay_out<'a>(wanted: &Range<u64>, slices: Window<'a>, unit: u64) -> Layout<'a> {
    let mut layout = Layout { vectors: Vec::new(), copies: Vec::new(), scratch_bytes: 0 };
    let mut covered = wanted.start - wanted.start % unit; // the vectors reach to here
    let mut scratch_start = covered; // file offset of the scratch piece that is open
    let mut at = wanted.start;
    for slice in slices {
        let end = at + slice.len() as u64;
        let body = body(slice, at, covered, unit);
        if body.is_empty() {
            let from = layout.scratch_bytes + distance(scratch_start, at);
            layout.copies.push((at, from, slice));
            covered = covered.max(end.next_multiple_of(unit));
        } else {
            let (head, rest) = slice.split_at_mut(distance(at, body.start));
            let (middle, tail) = rest.split_at_mut(distance(body.start, body.end));
            if !head.is_empty() {
                let from = layout.scratch_bytes + distance(scratch_start, at);
                layout.copies.push((at, from, head));
            }
            layout.scratch(distance(scratch_start, body.start));
            layout.vectors.push(Vector::Body(middle));
            scratch_start = body.end;
            covered = end.next_multiple_of(unit);
            if !tail.is_empty() {
                layout.copies.push((body.end, layout.scratch_bytes, tail));
            }
        }
        at = end;
    }
    layout.scratch(distance(scratch_start, at.next_multiple_of(unit)));
    layout
}

impl Layout<'_> {
    fn scratch(&mut self, len: usize) {
        if len > 0 {
            self.vectors.push(Vector::Scratch(len));
            self.scratch_bytes += len;
        }
    }
}

/// Returns the file range of `slice` (at file offset `at`) that direct I/O can fill in place.
///
/// Units before `covered` are shared with the slice before and already go to scratch.
fn body(slice: &[u8], at: u64, covered: u64, unit: u64) -> Range<u64> {
    let start = at.max(covered).next_multiple_of(unit);
    let end = (at + slice.len() as u64) / unit * unit;
    if end < start + BODY_BYTES_MIN {
        return 0..0;
    }
    let address = slice.as_ptr().addr() as u64 + (start - at);
    if address.is_multiple_of(unit) { start..end } else { 0..0 }
}

/// Distances inside a window fit a usize: a window is 16 MiB.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).expect("a window is smaller than memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    /// Lays out regions of `lens` bytes, each `skew` bytes into its pages, at file offset `start`.
    fn shape(start: u64, lens: &[usize], skew: usize) -> Vec<String> {
        let mut parts: Vec<Region> = lens
            .iter()
            .map(|len| Region::from(Buffer::zeroed(len + skew)).split_at(skew).1)
            .collect();
        let wanted = start..start + lens.iter().sum::<usize>() as u64;
        let slices = Window::new(&mut parts, 0..wanted.end - wanted.start);
        let layout = lay_out(&wanted, slices, 512);
        let copies = layout.copies.iter().map(|(at, from, to)| format!("{at}@{from}+{}", to.len()));
        let vectors = layout.vectors.iter().map(|vector| match vector {
            Vector::Body(body) => format!("body {}", body.len()),
            Vector::Scratch(len) => format!("scratch {len}"),
        });
        vectors.chain(copies).collect()
    }

    #[test]
    fn a_checksum_behind_a_chunk_does_not_spoil_its_direct_read() {
        let chunk = 256 * KIB;
        assert_eq!(shape(0, &[chunk, 4], 0), ["body 262144", "scratch 512", "262144@0+4"]);
        assert_eq!(
            shape(4096, &[chunk, 4, 4092, chunk, 4], 0),
            [
                "body 262144",
                "scratch 4096",
                "body 262144",
                "scratch 512",
                "266240@0+4",
                "266244@4+4092",
                "532480@4096+4"
            ]
        );
    }

    #[test]
    fn head_and_tail_of_a_range_go_through_scratch() {
        // The region begins where the file does modulo the unit, as a divided buffer's does.
        assert_eq!(
            shape(512 + 100, &[256 * KIB], 100),
            ["scratch 512", "body 261632", "scratch 512", "612@100+412", "262656@512+100"]
        );
    }

    #[test]
    fn a_destination_that_the_device_cannot_write_to_is_copied() {
        assert_eq!(shape(0, &[256 * KIB], 100), ["scratch 262144", "0@0+262144"]);
        assert_eq!(shape(100, &[256 * KIB], 0), ["scratch 262656", "100@100+262144"]);
        // Too short to be worth a vector of its own.
        assert_eq!(shape(0, &[32 * KIB], 0), ["scratch 32768", "0@0+32768"]);
    }
}
