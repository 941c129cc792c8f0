//! The ground a benchmark works on: one directory of its own below the place that was named.
//!
//! Every repetition gets a fresh place below it, and nothing is deleted before the end: on an ext4 without a
//! journal, creating files is several times slower for minutes after a bulk delete. At the end, and when a
//! benchmark fails, all that it created is removed and nothing else: its own directory, and the directories
//! above it that were not there before, as long as they are empty.
//!
//! Cold means: no page of the files is in the page cache. After a `syncfs`, `posix_fadvise(DONTNEED)` frees
//! the clean pages of every file below a place, which needs no rights and disturbs nobody else on the machine.

use futures::executor::block_on;
use milepost::{Error, ErrorKind, Place, Result};
use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, openat, statvfs, syncfs};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The directory of one benchmark, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Ground {
    place: Place,
    /// Directories above ours that were not there, the lowest first.
    made: Vec<PathBuf>,
    cleared: bool,
}

impl Ground {
    /// Chooses a directory below `base`; nothing is written yet.
    ///
    /// # Errors
    /// `Unsupported` where the place is read-only.
    pub(crate) fn new(base: &Place) -> Result<Self> {
        let random = getrandom::u64()
            .map_err(|e| Error::new(ErrorKind::Unavailable, "no randomness").with("cause", e))?;
        let name = format!("milepost-bench-{random:016x}");
        if !base.store().capabilities().writable {
            return Err(
                Error::new(ErrorKind::Unsupported, "the place is read-only").with("place", base)
            );
        }
        let mut made = Vec::new();
        let mut at = base.local_path();
        while let Some(path) = at.filter(|path| path.symlink_metadata().is_err()) {
            at = path.parent().map(Path::to_owned);
            made.push(path);
        }
        let place = base.join(&name);
        Ok(Self { place, made, cleared: false })
    }

    /// Returns the ground below `base`, the same place opened by another engine.
    pub(crate) fn below(&self, base: &Place) -> Place {
        base.join(self.place.name())
    }

    /// Returns the ground.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Refuses to begin what would fill the disk.
    ///
    /// # Errors
    /// `Unavailable` where fewer than `bytes` and 2 % of the disk are free.
    pub(crate) fn expect_room(&self, bytes: u64) -> Result<()> {
        let above = self.made.last().and_then(|path| path.parent().map(Path::to_owned));
        let Some(path) = above.or_else(|| self.place.parent().local_path()) else { return Ok(()) };
        let stat =
            statvfs(&path).map_err(|e| failed("the disk cannot be asked", &path, e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let spare = stat.f_blocks.saturating_mul(stat.f_frsize) / 50;
        if bytes.saturating_add(spare) <= free {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "the disk has no room for the benchmark")
            .with("place", &self.place)
            .with("bytes", bytes)
            .with("free_bytes", free)
            .hint("nothing is deleted before the end: take a smaller state or fewer repetitions"))
    }

    /// Removes all that the benchmark created.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) fn clear(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.cleared, true) {
            return Ok(());
        }
        block_on(self.place.store().delete_all(self.place.prefix()))?;
        for path in &self.made {
            // Another's files may be in it by now: then it stays, as do those above it.
            if std::fs::remove_dir(path).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, place = %self.place, "the benchmark's files could not be removed");
        }
    }
}

/// Frees the page cache of all files below a local place; elsewhere there is none.
///
/// # Errors
/// `Unavailable` where a file cannot be opened or the disk refuses to sync.
pub(crate) fn evict(place: &Place) -> Result<()> {
    let Some(path) = place.local_path() else { return Ok(()) };
    sync(&path)?;
    each_file(&path, &mut |file| Ok(fadvise(file, 0, None, Advice::DontNeed)?))
}

/// Reads all files below a local place into the page cache.
///
/// # Errors
/// `Unavailable` where a file cannot be read.
pub(crate) fn warm(place: &Place) -> Result<()> {
    let Some(path) = place.local_path() else { return Ok(()) };
    let mut block = vec![0; 1 << 20];
    each_file(&path, &mut |mut file| {
        while file.read(&mut block)? > 0 {}
        Ok(())
    })
}

/// Writes everything of the file system of `path` to the disk.
///
/// # Errors
/// `Unavailable` where the disk refuses.
pub(crate) fn sync(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .and_then(syncfs)
        .map_err(|e| failed("the file system cannot be synced", path, e.into()))
}

/// Calls `job` with every file below a directory.
fn each_file(dir: &Path, job: &mut dyn FnMut(&File) -> io::Result<()>) -> Result<()> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |e| failed("a file of the benchmark cannot be read", &path, e)
    };
    for entry in std::fs::read_dir(dir).map_err(unreadable(dir))? {
        let entry = entry.map_err(unreadable(dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(unreadable(&path))?;
        if kind.is_dir() {
            each_file(&path, job)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|file| job(&file)).map_err(unreadable(&path))?;
        }
    }
    Ok(())
}

/// Makes an error of a failed system call.
pub(crate) fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, what).with("path", path.display()).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use milepost::{Engine, Priority};
    use std::sync::Arc;

    fn engine() -> Arc<Engine> {
        Engine::builder().budget_bytes(1 << 20).build().unwrap()
    }

    fn used(ground: &Ground) {
        let place = ground.place().clone();
        let key = place.key("a/b");
        block_on(place.store().put(&key, vec!["x".into()], Priority::Foreground)).unwrap();
        evict(&place).unwrap();
        warm(&place).unwrap();
    }

    #[test]
    fn what_a_benchmark_made_goes_and_what_was_there_stays() {
        let engine = engine();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), "kept").unwrap();
        let url = dir.path().to_str().unwrap().to_owned();
        for below in ["", "/not/there"] {
            let ground =
                Ground::new(&engine.place(&format!("{url}{below}"), &[]).unwrap()).unwrap();
            used(&ground);
            assert!(std::fs::read_dir(format!("{url}{below}")).unwrap().count() > 0);
            ground.clear().unwrap();
            let left = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
            assert_eq!(left.collect::<Vec<_>>(), ["mine"]);
        }
        let ground = Ground::new(&engine.place(&url, &[]).unwrap()).unwrap();
        used(&ground);
        drop(ground);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a failed run leaves nothing"
        );
    }

    #[test]
    fn a_directory_that_others_use_meanwhile_stays() {
        let engine = engine();
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new");
        let ground = Ground::new(&engine.place(new.to_str().unwrap(), &[]).unwrap()).unwrap();
        used(&ground);
        std::fs::write(new.join("other"), "kept").unwrap();
        ground.clear().unwrap();
        assert_eq!(std::fs::read_dir(&new).unwrap().count(), 1);
    }

    #[test]
    fn a_disk_without_room_is_refused_before_anything_is_written() {
        let engine = engine();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/y");
        let ground = Ground::new(&engine.place(path.to_str().unwrap(), &[]).unwrap()).unwrap();
        let error = ground.expect_room(u64::MAX).unwrap_err();
        assert!(error.get("free_bytes").is_some(), "{error}");
        ground.expect_room(1).unwrap();
        drop(ground);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
