//! Writing files: whole objects, exclusive ones, and objects written at offsets by several threads.
//!
//! | call | how |
//! |---|---|
//! | `put` < 1 MiB | one new file, `pwritev` of the gather list |
//! | `put` ≥ 1 MiB | preallocated, direct writes of aligned blocks, cut to its exact size |
//! | `put` over an object | the same under a temporary name, then one rename: no reader sees a torn object |
//! | `put_new` | temporary name, synced, published by a rename that does not replace (or a link) |
//! | `create` | preallocated; each aligned write is direct, any other goes through the page cache |
//!
//! `O_DIRECT` is switched on after the open (`fcntl`): a refusal then costs one system call and needs no
//! memory of which file systems refuse. Parent directories are made when an open finds them missing, so
//! 100,000 leaves cost one failed open each and there is no cache that a delete could make wrong.

use super::{
    directory::{make_dirs, sync_dir},
    errno::{reading, syncing, writing},
};
use crate::{
    buffer::{Buffer, PAGE_BYTES},
    error::{Error, Result},
    store::key::unique,
};
use bytes::Bytes;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, fallocate, fcntl_setfl, fdatasync,
        fstat, ftruncate, linkat, openat, renameat, renameat_with, unlinkat,
    },
    io::{Errno, pwrite, pwritev, retry_on_intr},
};
use std::{
    io::IoSlice,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// From here preallocation and direct I/O pay: below, one buffered write is faster than the set-up.
const LARGE_BYTES_MIN: u64 = 1024 * 1024;
/// One direct write of a gather list: big enough for a disk, small enough for every disk thread to hold one.
const BLOCK_BYTES: usize = 8 * 1024 * 1024;
/// A piece of a gather list is written from where it lies from this size, if its address is aligned.
const IN_PLACE_BYTES_MIN: usize = 256 * 1024;
/// The kernel's limit of one vectored call.
const IOV_MAX: usize = 1024;

/// Writes a whole object, replacing any other.
pub(super) fn put(path: &Path, payload: &[Bytes]) -> Result<()> {
    let (file, staged) = match open_new(path) {
        Ok(file) => (file, None),
        Err(Errno::EXIST) => {
            let name = temporary_beside(path)?;
            (open_new(&name).map_err(writing)?, Some(name))
        }
        Err(errno) => return Err(writing(errno)),
    };
    let written = staged.as_deref().unwrap_or(path);
    let result = write_payload(&file, payload).and_then(|()| match &staged {
        Some(name) => renameat(CWD, name, CWD, path).map_err(writing),
        None => Ok(()),
    });
    // What could not be written whole is not to be found later.
    result.inspect_err(|_| discard(written))
}

/// Creates an object that nobody has created; durable when it returns.
pub(super) fn put_new(path: &Path, payload: &Bytes) -> Result<()> {
    let name = temporary_beside(path)?;
    let parent = path.parent().unwrap_or(path);
    let (file, made) = open_new_below(&name).map_err(writing)?;
    let published = write_payload(&file, std::slice::from_ref(payload))
        .and_then(|()| fdatasync(&file).map_err(syncing))
        .and_then(|()| publish(&name, path, &file));
    published.inspect_err(|_| discard(&name))?;
    for dir in made.iter().filter_map(|dir| dir.parent()) {
        sync_dir(dir)?;
    }
    sync_dir(parent)
}

/// Gives the temporary file its name unless another has it.
fn publish(name: &Path, path: &Path, file: &OwnedFd) -> Result<()> {
    match renameat_with(CWD, name, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system has the flag (NFS, some FUSE): a hard link is exclusive, too.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        result => return result.map_err(writing),
    }
    match linkat(CWD, name, CWD, path, AtFlags::empty()) {
        // The answer of an NFS server can be lost and the link be there: then the file has two names.
        Err(Errno::EXIST) if fstat(file).is_ok_and(|stat| stat.st_nlink == 2) => {}
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
            return Err(Error::unsupported("the file system cannot create a file exclusively")
                .hint("choose a file system with hard links or `renameat2(NOREPLACE)`"));
        }
        result => result.map_err(writing)?,
    }
    discard(name);
    Ok(())
}

/// Copies an object inside the file system, sharing blocks where it can.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = super::read::open(from)?;
    super::read::regular_size(&fstat(&source).map_err(reading)?)?;
    let name = temporary_beside(to)?;
    let (file, _) = open_new_below(&name).map_err(writing)?;
    let (mut source, mut target) = (std::fs::File::from(source), std::fs::File::from(file));
    std::io::copy(&mut source, &mut target) // copy_file_range, where there is one
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
        .and_then(|_| renameat(CWD, &name, CWD, to))
        .map_err(writing)
        .inspect_err(|_| discard(&name))
}

/// An object that several threads write at offsets.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    file: OwnedFd,
    direct: AtomicBool,
    /// A second open of the same file, for what is not aligned.
    buffered: OnceLock<OwnedFd>,
}

impl OpenFile {
    /// Creates or empties the file and reserves `bytes` for it.
    pub(super) fn create(path: PathBuf, bytes: u64) -> Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = match open_with(&path, flags) {
            Err(Errno::NOENT) => {
                make_dirs(path.parent().unwrap_or(&path)).map_err(writing)?;
                open_with(&path, flags)
            }
            opened => opened,
        }
        .map_err(writing)?;
        let direct = prepare(&file, bytes).inspect_err(|_| discard(&path))?;
        Ok(Self { path, file, direct: AtomicBool::new(direct), buffered: OnceLock::new() })
    }

    /// Writes all of `data` at `offset`.
    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let aligned = offset.is_multiple_of(PAGE_BYTES as u64) && is_aligned(data);
        if !self.is_direct() {
            return write_all(self.buffered.get().unwrap_or(&self.file), offset, data)
                .map_err(writing);
        }
        if aligned {
            match write_all(&self.file, offset, data) {
                Err(Errno::INVAL) => {} // refused after all: buffered from here on
                result => return result.map_err(writing),
            }
            self.buffered()?;
            self.direct.store(false, Ordering::Relaxed);
        }
        write_all(self.buffered()?, offset, data).map_err(writing)
    }

    /// Tells whether aligned writes go past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Sets the final size.
    pub(super) fn finish(&self, bytes: u64) -> Result<()> {
        cut(&self.file, bytes).map_err(writing)
    }

    fn buffered(&self) -> Result<&OwnedFd> {
        if let Some(file) = self.buffered.get() {
            return Ok(file);
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = open_with(&self.path, flags).map_err(writing)?;
        let (first, second) = (fstat(&self.file).map_err(writing)?, fstat(&file).map_err(writing)?);
        if (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino) {
            return Err(Error::conflict("the object was replaced while it was written"));
        }
        Ok(self.buffered.get_or_init(|| file))
    }
}

fn open_with(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| openat(CWD, path, flags, Mode::from_raw_mode(0o666)))
}

/// Opens a file that is not there yet, and tells the directories that were made for it.
fn open_new_below(path: &Path) -> Result<(OwnedFd, Vec<PathBuf>), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match open_with(path, flags) {
        Err(Errno::NOENT) => {
            let made = make_dirs(path.parent().unwrap_or(path))?;
            Ok((open_with(path, flags)?, made))
        }
        opened => Ok((opened?, Vec::new())),
    }
}

fn open_new(path: &Path) -> Result<OwnedFd, Errno> {
    open_new_below(path).map(|(file, _)| file)
}

/// Names a file beside `path` that nobody else names; sweepers know it by its start.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let name = format!("{TEMPORARY}{}", unique()?);
    Ok(path.with_file_name(name))
}

/// How the names of temporary files start.
pub(super) const TEMPORARY: &str = ".milepost-tmp-";

/// Removes what a failed write left; if that fails too, the first error is the one to tell.
fn discard(path: &Path) {
    let _ = unlinkat(CWD, path, AtFlags::empty());
}

/// Reserves space and switches to direct I/O for a large file; tells whether it is direct.
fn prepare(file: &OwnedFd, bytes: u64) -> Result<bool> {
    if bytes < LARGE_BYTES_MIN {
        return Ok(false);
    }
    // To whole pages: the last direct write then stays inside the file, where ext4 lets several in at once.
    let reserved = bytes.next_multiple_of(PAGE_BYTES as u64);
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, reserved)) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(errno) => return Err(writing(errno)),
    }
    Ok(fcntl_setfl(file, OFlags::DIRECT).is_ok())
}

fn write_payload(file: &OwnedFd, payload: &[Bytes]) -> Result<()> {
    let total: u64 = payload.iter().map(|piece| piece.len() as u64).sum();
    if prepare(file, total)? {
        write_blocks(file, payload, total)
    } else {
        write_gathered(file, payload).map_err(writing)
    }
}

/// Writes a gather list through the page cache.
fn write_gathered(file: &OwnedFd, payload: &[Bytes]) -> Result<(), Errno> {
    let mut slices: Vec<IoSlice<'_>> =
        payload.iter().filter(|piece| !piece.is_empty()).map(|piece| IoSlice::new(piece)).collect();
    let (mut rest, mut offset) = (&mut slices[..], 0);
    while !rest.is_empty() {
        let n = retry_on_intr(|| pwritev(file, &rest[..rest.len().min(IOV_MAX)], offset))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        offset += n as u64;
        IoSlice::advance_slices(&mut rest, n);
    }
    Ok(())
}

/// Writes a gather list directly: aligned pieces from where they lie, the rest by way of one block.
fn write_blocks(file: &OwnedFd, payload: &[Bytes], total: u64) -> Result<()> {
    let bytes = usize::try_from(total).unwrap_or(BLOCK_BYTES).next_multiple_of(PAGE_BYTES);
    let mut out =
        Blocks { file, block: None, block_bytes: bytes.min(BLOCK_BYTES), used: 0, offset: 0 };
    for piece in payload {
        out.push(piece).map_err(writing)?;
    }
    out.flush().map_err(writing)?;
    cut(file, total).map_err(writing)
}

struct Blocks<'a> {
    file: &'a OwnedFd,
    block: Option<Buffer>,
    block_bytes: usize,
    used: usize,
    /// Where the block goes in the file: a multiple of the page size.
    offset: u64,
}

impl Blocks<'_> {
    fn push(&mut self, mut piece: &[u8]) -> Result<(), Errno> {
        while !piece.is_empty() {
            let whole = piece.len() / PAGE_BYTES * PAGE_BYTES;
            if self.used == 0 && whole >= IN_PLACE_BYTES_MIN && is_aligned(&piece[..whole]) {
                write_direct(self.file, self.offset, &piece[..whole])?;
                self.offset += whole as u64;
                piece = &piece[whole..];
                continue;
            }
            let bytes = self.block_bytes;
            let block = self.block.get_or_insert_with(|| Buffer::zeroed(bytes));
            let take = piece.len().min(bytes - self.used);
            block[self.used..self.used + take].copy_from_slice(&piece[..take]);
            self.used += take;
            piece = &piece[take..];
            if self.used == bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let Some(block) = self.block.as_mut().filter(|_| self.used > 0) else { return Ok(()) };
        let padded = self.used.next_multiple_of(PAGE_BYTES);
        block[self.used..padded].fill(0);
        write_direct(self.file, self.offset, &block[..padded])?;
        self.offset += padded as u64;
        self.used = 0;
        Ok(())
    }
}

/// Writes directly; where the file system refuses after all, through the page cache from then on.
fn write_direct(file: &OwnedFd, offset: u64, data: &[u8]) -> Result<(), Errno> {
    match write_all(file, offset, data) {
        Err(Errno::INVAL) => {
            fcntl_setfl(file, OFlags::empty())?;
            write_all(file, offset, data)
        }
        result => result,
    }
}

fn write_all(file: impl AsFd, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        let n = retry_on_intr(|| pwrite(file.as_fd(), data, offset))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        offset += n as u64;
        data = &data[n..];
    }
    Ok(())
}

/// Sets the size where it is another.
fn cut(file: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    if u64::try_from(fstat(file)?.st_size) == Ok(bytes) {
        return Ok(());
    }
    retry_on_intr(|| ftruncate(file, bytes))
}

fn is_aligned(data: &[u8]) -> bool {
    data.as_ptr().addr().is_multiple_of(PAGE_BYTES) && data.len().is_multiple_of(PAGE_BYTES)
}
