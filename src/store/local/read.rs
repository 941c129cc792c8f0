//! Reading a range of a file into regions: from the page cache where it is there, else from the device.
//!
//! ```text
//! small (< 256 KiB) ───────────────────────────────► preadv
//! large ─► RWF_NOWAIT, one page ─┬─ there ─► RWF_NOWAIT, rest ─┬─ all there: done
//!                                └─ cold ──────────────────────┴─► O_DIRECT (direct.rs) ─► preadv for what is left
//! ```
//!
//! The first question to the page cache is one page long on purpose: a `RWF_NOWAIT` read that misses starts
//! the kernel's readahead for as much as was asked, which the direct read would then fetch a second time.
//! Where `RWF_NOWAIT` or `O_DIRECT` is refused, the plain path is taken; a refusal costs one system call
//! (under a microsecond), so it is not remembered across file systems.
//!
//! **Invariant:** bytes are returned in full or not at all: a file that ends early is `Corrupt`.

use super::{
    direct,
    errno::{reading, writing},
};
use crate::{
    buffer::{Buffer, PAGE_BYTES, Region},
    error::{Error, Result},
    store::Span,
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat},
    io::{Errno, ReadWriteFlags, preadv2, retry_on_intr},
};
use std::{io::IoSliceMut, path::Path};

/// From here the page cache is asked first and direct I/O considered: below, one copy costs less than that.
const DIRECT_BYTES_MIN: u64 = 256 * 1024;
/// The kernel's limit of one vectored call.
const IOV_MAX: usize = 1024;

/// Opens an object for reading.
pub(super) fn open(path: &Path) -> Result<OwnedFd> {
    // O_NONBLOCK: a FIFO in the user's directory must not hang a disk thread; files ignore it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    retry_on_intr(|| openat(CWD, path, flags, Mode::empty())).map_err(reading)
}

/// Reads `span` of the object at `path`.
pub(super) fn get(path: &Path, span: Span) -> Result<bytes::Bytes> {
    let file = open(path)?;
    let stat = fstat(&file).map_err(reading)?;
    let size = regular_size(&stat)?;
    let (offset, len) = span.resolve(size)?;
    let len =
        usize::try_from(len).map_err(|_| Error::invalid("the object is larger than memory"))?;
    // The length is that of bytes on disk, or was checked against them: no input can inflate it.
    let region = Region::from(Buffer::zeroed(len));
    let mut parts = [region];
    scatter(&file, offset, &mut parts)?;
    let [region] = parts;
    let buffer = region.into_buffer().map_err(|_| Error::internal("a region is shared"))?;
    Ok(buffer.into())
}

/// Reads the range from `offset` that is as long as `parts` together.
pub(super) fn read(path: &Path, offset: u64, parts: &mut [Region]) -> Result<()> {
    scatter(&open(path)?, offset, parts)
}

/// Tells the size of a regular file; anything else is not an object.
pub(super) fn regular_size(stat: &Stat) -> Result<u64> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(u64::try_from(stat.st_size).unwrap_or(0)),
        FileType::Directory => Err(reading(Errno::ISDIR)),
        _ => Err(writing(Errno::SPIPE)),
    }
}

fn scatter(file: &OwnedFd, offset: u64, parts: &mut [Region]) -> Result<()> {
    let wanted: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let end = offset.saturating_add(wanted);
    // No file reaches beyond 2^63; an offset from a hostile index must not wrap around.
    let result = match i64::try_from(end) {
        Ok(_) => fill(file, offset, parts, wanted).map_err(reading),
        Err(_) => Ok(0),
    };
    match result {
        Ok(done) if done == wanted => Ok(()),
        Ok(_) => {
            let size = regular_size(&fstat(file).map_err(reading)?)?;
            Err(Error::corrupt("object is truncated")
                .with("range", format!("{offset}..{end}"))
                .with("expected_bytes", end)
                .with("actual_bytes", size))
        }
        Err(error) => Err(error.with("range", format!("{offset}..{end}"))),
    }
}

/// Fills the parts as far as the file reaches and tells how far that was.
fn fill(file: &OwnedFd, offset: u64, parts: &mut [Region], wanted: u64) -> Result<u64, Errno> {
    let mut done = 0;
    if wanted >= DIRECT_BYTES_MIN {
        let page = PAGE_BYTES as u64;
        let probe = page - offset % page;
        done = cached(file, offset, parts, 0..probe)?;
        if done == probe {
            done = cached(file, offset, parts, probe..wanted)?;
        }
        if wanted - done >= DIRECT_BYTES_MIN {
            done = direct::read(file, offset, parts, done..wanted)?;
        }
    }
    while done < wanted {
        match preadv(file, offset, parts, done..wanted, ReadWriteFlags::empty())? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// Reads what the page cache holds, up to the first page that it does not hold.
fn cached(
    file: &OwnedFd,
    offset: u64,
    parts: &mut [Region],
    range: std::ops::Range<u64>,
) -> Result<u64, Errno> {
    let mut done = range.start;
    while done < range.end {
        match preadv(file, offset, parts, done..range.end, ReadWriteFlags::NOWAIT) {
            // EAGAIN: not cached. The others: this file system or kernel does not know the question.
            Ok(0) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
            Ok(n) => done += n,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Performs one vectored read of `range` (relative to `offset`) and tells how many bytes came.
fn preadv(
    file: impl AsFd,
    offset: u64,
    parts: &mut [Region],
    range: std::ops::Range<u64>,
    flags: ReadWriteFlags,
) -> Result<u64, Errno> {
    let mut slices: Vec<IoSliceMut<'_>> =
        Window::new(parts, range.clone()).take(IOV_MAX).map(IoSliceMut::new).collect();
    let at = offset + range.start;
    let n = if flags.is_empty() {
        retry_on_intr(|| rustix::io::preadv(file.as_fd(), &mut slices, at))?
    } else {
        retry_on_intr(|| preadv2(file.as_fd(), &mut slices, at, flags))?
    };
    Ok(n as u64)
}

/// The destination slices of one range of the concatenated parts, in order, none empty.
pub(super) struct Window<'a> {
    parts: std::slice::IterMut<'a, Region>,
    skip: u64,
    left: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(parts: &'a mut [Region], range: std::ops::Range<u64>) -> Self {
        Self { parts: parts.iter_mut(), skip: range.start, left: range.end - range.start }
    }
}

impl<'a> Iterator for Window<'a> {
    type Item = &'a mut [u8];

    fn next(&mut self) -> Option<&'a mut [u8]> {
        while self.left > 0 {
            let slice: &'a mut [u8] = self.parts.next()?;
            let len = slice.len() as u64;
            if len <= self.skip {
                self.skip -= len;
                continue;
            }
            // Both fit a usize: they are at most the slice's length.
            let from = usize::try_from(self.skip).ok()?;
            let take = usize::try_from(self.left.min(len - self.skip)).ok()?;
            self.skip = 0;
            self.left -= take as u64;
            return slice.get_mut(from..from + take);
        }
        None
    }
}
