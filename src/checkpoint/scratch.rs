//! Scratch directories: made empty below a root of the caller's, removed with all they hold when they are dropped.
//!
//! Custom handlers write there what becomes an opaque item, and read there what was one. A process that is killed
//! leaves its scratch behind: a caller that minds names a root that is swept.

use crate::error::{Error, Result};
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// A directory that nobody else has.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty directory below `root`, which is made where it is not there.
    pub(super) fn new(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(|e| refused(root, e))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| {
            Error::unavailable("the system has no randomness")
                .because(std::io::Error::other(e.to_string()))
        })?;
        let root = std::path::absolute(root).map_err(|e| refused(root, e))?;
        let path = root.join(format!("milepost-scratch-{:032x}", u128::from_le_bytes(id)));
        // What a handler writes is nobody else's to read.
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| refused(&path, e))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a scratch directory was not removed");
        }
    }
}

/// Explains what the system says of a file of the user's.
pub(super) fn refused(path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    let (make, message): (fn(&'static str) -> Error, _) = match error.kind() {
        Io::NotFound => (|m| Error::not_found(m), "no such file or directory"),
        Io::PermissionDenied => (|m| Error::invalid(m), "permission denied"),
        Io::NotADirectory | Io::InvalidInput | Io::InvalidFilename => {
            (|m| Error::invalid(m), "the path cannot be used")
        }
        Io::AlreadyExists => (|m| Error::exists(m), "exists already"),
        _ => (|m| Error::unavailable(m), "a file cannot be read or copied"),
    };
    make(message).with("file", path.display()).because(error)
}

/// An error of the caller's about a file.
pub(super) fn wrong(path: &Path, message: &str) -> Error {
    Error::invalid(message).with("file", path.display())
}
