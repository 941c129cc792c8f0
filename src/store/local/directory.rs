//! Directories: made, listed, emptied, renamed and made durable.
//!
//! Walks go by directory descriptors (`openat` with `O_NOFOLLOW`): nothing is followed out of the tree that
//! was named, whatever is renamed or linked into it meanwhile (links *on the way* to it are the user's: `/data` may
//! be one). Names that are not UTF-8 are no keys: they are
//! not listed, but deleted with their directory.
//!
//! A sync is `syncfs`, or for a handful of files `fdatasync` of each and `fsync` of their directories. It is
//! never repeated: after a failed one the kernel has dropped the dirty pages and a second would lie
//! (fsyncgate). The error of a write-back that happened *before* the sync is told to a descriptor opened
//! before it, so `create_dir` keeps one until `sync` (a witness).

use super::errno::{reading, syncing, writing};
use crate::error::{Error, Result};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, StatxFlags, fdatasync, fsync,
        mkdirat, openat, renameat, renameat_with, statx, syncfs, unlinkat,
    },
    io::{Errno, retry_on_intr},
};
use std::{
    ffi::CString,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::super::{Listing, ObjectMeta, RenameMode, key};

/// Directories nested deeper than this are refused: each level holds a descriptor.
const DEPTH_MAX: usize = 512;
/// Up to this many files are synced one by one; more are cheaper by one `syncfs`, which however also waits
/// for whatever else is being written to that file system.
const SYNC_EACH_MAX: usize = 16;
/// A directory that others keep filling is emptied this often before the error is told.
const EMPTY_ROUNDS_MAX: usize = 8;

fn open_dir(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    more: OFlags,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    retry_on_intr(|| openat(dir, name, flags, Mode::empty()))
}

/// Opens the directory of a prefix; a missing one is nothing.
fn open_prefix(path: &Path) -> Result<Option<OwnedFd>> {
    match open_dir(CWD, path, OFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(reading(errno)),
    }
}

/// Makes a directory and those above it; returns the ones that were not there, topmost first.
pub(super) fn make_dirs(path: &Path) -> Result<Vec<PathBuf>, Errno> {
    let all = Mode::from_raw_mode(0o777); // less the umask
    let mut missing = Vec::new();
    let mut at = path;
    let mut made = Vec::new();
    loop {
        match mkdirat(CWD, at, all) {
            Ok(()) => made.push(at.to_owned()),
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => {
                missing.push(at);
                at = at.parent().ok_or(Errno::NOENT)?;
                continue;
            }
            Err(errno) => return Err(errno),
        }
        break;
    }
    for dir in missing.into_iter().rev() {
        match mkdirat(CWD, dir, all) {
            Ok(()) => made.push(dir.to_owned()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(made)
}

/// Makes a directory and returns a descriptor of it.
pub(super) fn create(path: &Path) -> Result<OwnedFd> {
    make_dirs(path).map_err(writing)?;
    open_dir(CWD, path, OFlags::empty()).map_err(writing)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    let dir = open_dir(CWD, path, OFlags::empty()).map_err(syncing)?;
    fsync(dir).map_err(syncing)
}

struct Entry {
    name: CString,
    kind: FileType,
}

impl Entry {
    fn key(&self) -> Option<&str> {
        self.name.to_str().ok()
    }
}

fn entries(dir: BorrowedFd<'_>) -> Result<Vec<Entry>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not tell.
            FileType::Unknown => match stat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok((kind, ..)) => kind,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            kind => kind,
        };
        found.push(Entry { name: name.to_owned(), kind });
    }
    Ok(found)
}

fn stat(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    flags: AtFlags,
) -> Result<(FileType, u64, SystemTime), Errno> {
    let mask = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::MTIME;
    let stat = statx(dir, name, flags, mask)?;
    let time = &stat.stx_mtime;
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    let modified = if time.tv_sec < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    let modified =
        modified.unwrap_or(SystemTime::UNIX_EPOCH) + Duration::from_nanos(time.tv_nsec.into());
    Ok((FileType::from_raw_mode(u32::from(stat.stx_mode)), stat.stx_size, modified))
}

/// Tells size and time of an object.
pub(super) fn head(path: &Path, key: &str) -> Result<ObjectMeta> {
    match stat(CWD, path, AtFlags::empty()).map_err(reading)? {
        (FileType::RegularFile, bytes, modified) => {
            Ok(ObjectMeta { key: key.to_owned(), bytes, modified })
        }
        (FileType::Directory, ..) => Err(reading(Errno::ISDIR)),
        _ => Err(reading(Errno::SPIPE)),
    }
}

/// Lists one level. Links are followed here: a step may be a link to another disk.
pub(super) fn list(path: &Path, prefix: &str) -> Result<Listing> {
    let mut listing = Listing::default();
    let Some(dir) = open_prefix(path)? else { return Ok(listing) };
    for entry in entries(dir.as_fd()).map_err(reading)? {
        let Some(name) = entry.key() else { continue };
        if entry.kind == FileType::Directory {
            listing.prefixes.push(name.to_owned());
            continue;
        }
        match stat(dir.as_fd(), entry.name.as_c_str(), AtFlags::empty()) {
            Ok((FileType::Directory, ..)) => listing.prefixes.push(name.to_owned()),
            Ok((FileType::RegularFile, bytes, modified)) => {
                listing.objects.push(ObjectMeta { key: key::join(prefix, name), bytes, modified });
            }
            // Sockets and the like are no objects; a dangling link or a file deleted meanwhile is gone.
            Ok(_) | Err(Errno::NOENT | Errno::LOOP) => {}
            Err(errno) => return Err(reading(errno)),
        }
    }
    listing.objects.sort_by(|a, b| a.key.cmp(&b.key));
    listing.prefixes.sort();
    Ok(listing)
}

/// Lists every object below a prefix, never through a link.
pub(super) fn list_all(path: &Path, prefix: &str) -> Result<Vec<ObjectMeta>> {
    let mut found = Vec::new();
    if let Some(dir) = open_prefix(path)? {
        collect(dir.as_fd(), prefix, 0, &mut found)?;
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

fn collect(
    dir: BorrowedFd<'_>,
    prefix: &str,
    depth: usize,
    found: &mut Vec<ObjectMeta>,
) -> Result<()> {
    check_depth(depth, prefix)?;
    for entry in entries(dir).map_err(reading)? {
        let Some(name) = entry.key() else { continue };
        let key = key::join(prefix, name);
        match entry.kind {
            FileType::Directory => match open_dir(dir, entry.name.as_c_str(), OFlags::NOFOLLOW) {
                Ok(child) => collect(child.as_fd(), &key, depth + 1, found)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(reading(errno).with("object", key)),
            },
            FileType::RegularFile => {
                match stat(dir, entry.name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok((_, bytes, modified)) => found.push(ObjectMeta { key, bytes, modified }),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(reading(errno).with("object", key)),
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_depth(depth: usize, at: &str) -> Result<()> {
    if depth <= DEPTH_MAX {
        return Ok(());
    }
    Err(Error::invalid("directories are nested too deeply").with("object", at))
}

/// Deletes one object; one that is gone is no error.
pub(super) fn delete(path: &Path) -> Result<()> {
    match retry_on_intr(|| unlinkat(CWD, path, AtFlags::empty())) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(writing(errno)),
    }
}

/// Deletes a directory and all below it. A link is deleted itself; a file of that name is left alone.
pub(super) fn delete_all(path: &Path) -> Result<()> {
    match open_dir(CWD, path, OFlags::NOFOLLOW) {
        Ok(dir) => empty(dir.as_fd(), 0)?,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return match stat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
                Ok((FileType::Symlink, ..)) => delete(path),
                _ => Ok(()),
            };
        }
        Err(errno) => return Err(writing(errno)),
    }
    remove_emptied(CWD, path, || open_dir(CWD, path, OFlags::NOFOLLOW), 0)
}

fn empty(dir: BorrowedFd<'_>, depth: usize) -> Result<()> {
    check_depth(depth, "")?;
    for entry in entries(dir).map_err(writing)? {
        let name = entry.name.as_c_str();
        let told = |errno| writing(errno).with("entry", name.to_string_lossy());
        if entry.kind != FileType::Directory {
            match retry_on_intr(|| unlinkat(dir, name, AtFlags::empty())) {
                // A directory that took the place of the file meanwhile is seen by the next round.
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => continue,
                Err(errno) => return Err(told(errno)),
            }
        }
        let open = || open_dir(dir, name, OFlags::NOFOLLOW);
        match open() {
            Ok(child) => empty(child.as_fd(), depth + 1)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(told(errno)),
        }
        remove_emptied(dir, name, open, depth + 1)?;
    }
    Ok(())
}

/// Removes a directory that was emptied; what others put there meanwhile is deleted again.
fn remove_emptied(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
    open: impl Fn() -> Result<OwnedFd, Errno>,
    depth: usize,
) -> Result<()> {
    for _ in 0..EMPTY_ROUNDS_MAX {
        match retry_on_intr(|| unlinkat(dir, name, AtFlags::REMOVEDIR)) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => match open() {
                Ok(child) => empty(child.as_fd(), depth)?,
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(writing(errno)),
            },
            Err(errno) => return Err(writing(errno)),
        }
    }
    Err(Error::conflict("others keep writing into the directory that is deleted"))
}

/// Makes everything below a prefix durable; `witness` is a descriptor from before the writes.
pub(super) fn sync(path: &Path, witness: Option<&OwnedFd>) -> Result<()> {
    let dir = open_dir(CWD, path, OFlags::empty()).map_err(syncing)?;
    let mut count = 0;
    if !is_small(dir.as_fd(), 0, &mut count)? {
        match syncfs(witness.unwrap_or(&dir)) {
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {}
            result => return result.map_err(syncing),
        }
    }
    sync_each(dir.as_fd(), 0)?;
    sync_ancestors(path)
}

/// Tells whether so few files and directories are below that syncing each is cheaper.
fn is_small(dir: BorrowedFd<'_>, depth: usize, count: &mut usize) -> Result<bool> {
    check_depth(depth, "")?;
    let entries = entries(dir).map_err(syncing)?;
    *count += entries.len();
    if *count > SYNC_EACH_MAX {
        return Ok(false);
    }
    for entry in entries.iter().filter(|entry| entry.kind == FileType::Directory) {
        let child = open_dir(dir, entry.name.as_c_str(), OFlags::NOFOLLOW).map_err(syncing)?;
        if !is_small(child.as_fd(), depth + 1, count)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sync_each(dir: BorrowedFd<'_>, depth: usize) -> Result<()> {
    check_depth(depth, "")?;
    for entry in entries(dir).map_err(syncing)? {
        let name = entry.name.as_c_str();
        match entry.kind {
            FileType::Directory => {
                let child = open_dir(dir, name, OFlags::NOFOLLOW).map_err(syncing)?;
                sync_each(child.as_fd(), depth + 1)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = openat(dir, name, flags, Mode::empty()).map_err(syncing)?;
                fdatasync(file).map_err(syncing)?;
            }
            _ => {}
        }
    }
    fsync(dir).map_err(syncing)
}

/// Makes the names that lead to `path` durable, up to the root of its file system.
fn sync_ancestors(path: &Path) -> Result<()> {
    let device = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
    let mut below = None;
    for ancestor in path.ancestors().skip(1) {
        let dir = match open_dir(CWD, ancestor, OFlags::empty()) {
            Ok(dir) => dir,
            // We may not look there, so we made nothing there.
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(syncing(errno)),
        };
        let here = device(&dir).map_err(syncing)?;
        if below.replace(here).is_some_and(|below| below != here) {
            return Ok(());
        }
        fsync(dir).map_err(syncing)?;
    }
    Ok(())
}

/// Renames a directory and makes the rename durable.
pub(super) fn rename(from: &Path, to: &Path, mode: RenameMode) -> Result<()> {
    let (kind, ..) = stat(CWD, from, AtFlags::SYMLINK_NOFOLLOW).map_err(writing)?;
    let parent = to.parent().unwrap_or(to);
    let (flags, parents) = match mode {
        RenameMode::NoReplace => (RenameFlags::NOREPLACE, make_dirs(parent).map_err(writing)?),
        RenameMode::Exchange => (RenameFlags::EXCHANGE, Vec::new()),
    };
    match (renameat_with(CWD, from, CWD, to, flags), mode) {
        (Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP), RenameMode::NoReplace) => {
            rename_plain(from, to, kind)?;
        }
        (Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP), RenameMode::Exchange) => {
            return Err(Error::unsupported("the file system cannot exchange two directories"));
        }
        (result, _) => result.map_err(writing)?,
    }
    for dir in parents.iter().filter_map(|dir| dir.parent()) {
        sync_dir(dir)?;
    }
    sync_dir(parent)?;
    match from.parent() {
        Some(source) if source != parent => sync_dir(source),
        _ => Ok(()),
    }
}

/// Renames without the flag. A plain rename of a directory replaces nothing but an *empty* directory, so of
/// two callers with content one gets `AlreadyExists`; of a file it would replace, so that is refused.
fn rename_plain(from: &Path, to: &Path, kind: FileType) -> Result<()> {
    if kind != FileType::Directory {
        return Err(Error::unsupported(
            "the file system cannot rename a file without replacing another",
        ));
    }
    match renameat(CWD, from, CWD, to) {
        Err(Errno::NOTDIR) => Err(writing(Errno::EXIST)), // a file has the name
        result => result.map_err(writing),
    }
}
