//! Opaque items: files that are saved as they are, each a byte array of the checkpoint, and written back as files.
//!
//! The life of an opaque item: its files are listed and their sizes and times noted ([`Opaque::from_path`]) → copied
//! where they may change before they are written ([`Opaque::captured`]) → read chunk by chunk while they are saved,
//! and refused where they are not what was noted → [`Checkpoint::restore_files`].
//!
//! ```text
//! tokenizer/vocab.txt      <item>/vocab.txt/{zarr.json, c.0 …}      a leaf of kind `bytes`
//!           merges/a b     <item>/merges/a%20b/…                    escaped as any key
//!           empty/         in the attributes of <item>              an empty dict
//! ```
//!
//! Modes, times and owners are not kept: an executable file comes back as a plain one.
//!
//! **Invariant:** links to directories are never followed, so that a tree of files ends.

use super::scratch::{Scratch, refused, wrong};
use crate::{
    array::{Leaf, Provider},
    chunk::Subset,
    dtype::DataType,
    error::{Error, Result},
    tree::{Key, LeafKind, Tree},
};
use rustix::fs::OFlags;
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{File, Metadata, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Deeper directories are refused: an item with a tree so deep could not be saved.
const DEPTH_MAX: usize = 512;

/// A file or a directory of files, to be saved as an item.
///
/// Clones share the files; a scratch copy ([`Opaque::captured`]) is removed with the last of them.
#[derive(Clone, Debug)]
pub struct Opaque {
    tree: Tree<Arc<Source>>,
    scratch: Option<Arc<Scratch>>,
    handler: Option<String>,
    metadata: Value,
}

/// A file as it was when it was noted.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    stamp: Stamp,
    /// Keeps the copy until the last chunk is read.
    _scratch: Option<Arc<Scratch>>,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    inode: (u64, u64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
        }
    }
}

impl Opaque {
    /// Takes a file, or all files below a directory; nothing of their content is read yet.
    ///
    /// Links to files are followed. The files must not change until they are saved: one that does fails the save.
    ///
    /// # Errors
    /// `NotFound` where nothing is there; `Invalid` names a link to a directory, what is neither file nor directory,
    /// and a name that is not UTF-8.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        Self::list(path.as_ref(), None)
    }

    /// Takes what is below a scratch directory, and the directory itself.
    pub(super) fn owned(scratch: Scratch) -> Result<Self> {
        let scratch = Arc::new(scratch);
        Self::list(scratch.path(), Some(&scratch))
    }

    fn list(path: &Path, scratch: Option<&Arc<Scratch>>) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| refused(path, e))?;
        let tree = if metadata.is_dir() {
            list_directory(path, scratch, 0)?
        } else {
            let name = path.file_name().ok_or_else(|| wrong(path, "the path names no file"))?;
            let name = checked(path, name)?;
            Tree::dict([(name, note(path, &metadata, scratch)?)])
        };
        let scratch = scratch.map(Arc::clone);
        Ok(Self { tree, scratch, handler: None, metadata: Value::Null })
    }

    /// Names the handler that restores the item.
    pub(super) fn with_handler(mut self, name: &str, metadata: Value) -> Self {
        (self.handler, self.metadata) = (Some(name.to_owned()), metadata);
        self
    }

    /// Copies the files into a new directory below `scratch_root`, so that later changes do not matter.
    ///
    /// What has been copied already is given back as it is. The copy is removed when the last clone is dropped.
    ///
    /// # Errors
    /// `Conflict` where a file has changed since it was noted, or does while it is copied; the system's errors.
    pub fn captured(self, scratch_root: &Path) -> Result<Self> {
        if self.scratch.is_some() {
            return Ok(self);
        }
        let scratch = Scratch::new(scratch_root)?;
        copy(&self.tree, scratch.path())?;
        let copy = Self::owned(scratch)?;
        Ok(Self { handler: self.handler, metadata: self.metadata, ..copy })
    }

    /// Returns the number of files.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.tree.leaf_count()
    }

    /// Returns the bytes of all files.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.tree.leaves().map(|(_, source)| source.stamp.bytes).sum()
    }

    pub(super) fn handler(&self) -> Option<&str> {
        self.handler.as_deref()
    }

    pub(super) fn metadata(&self) -> &Value {
        &self.metadata
    }

    /// Returns the files as leaves; their content is read when a chunk is written.
    ///
    /// # Errors
    /// `Conflict` where a file has changed since it was noted.
    pub(super) fn tree(&self) -> Result<Tree<Leaf>> {
        self.tree.as_ref().try_map(|_, source| {
            // An empty file has no chunk that would find out.
            source.open()?;
            let provider = Arc::new(FileBytes(Arc::clone(source)));
            let leaf = Leaf::from_provider(DataType::UInt8, vec![source.stamp.bytes], provider)?;
            Ok(leaf.with_kind(LeafKind::Bytes))
        })
    }
}

fn list_directory(
    path: &Path,
    scratch: Option<&Arc<Scratch>>,
    depth: usize,
) -> Result<Tree<Arc<Source>>> {
    if depth > DEPTH_MAX {
        return Err(wrong(path, "the directories are nested too deep"));
    }
    let mut children = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| refused(path, e))? {
        let entry = entry.map_err(|e| refused(path, e))?;
        let path = entry.path();
        let name = checked(&path, &entry.file_name())?;
        let link = entry.file_type().map_err(|e| refused(&path, e))?.is_symlink();
        let metadata = std::fs::metadata(&path).map_err(|e| refused(&path, e))?;
        let child = match (metadata.is_dir(), link) {
            (true, true) => return Err(wrong(&path, "a link to a directory is not followed")),
            (true, false) => list_directory(&path, scratch, depth + 1)?,
            (false, _) => note(&path, &metadata, scratch)?,
        };
        children.push((name, child));
    }
    // Directories list in any order; equal trees are to be equal items.
    children.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Tree::dict(children))
}

/// Returns a name that every reader takes.
fn checked(path: &Path, name: &OsStr) -> Result<String> {
    let name = name.to_str().ok_or_else(|| wrong(path, "a file's name is not UTF-8"))?;
    if name.contains('\\') {
        return Err(wrong(path, "a file's name has a backslash, which separates names elsewhere"));
    }
    Ok(name.to_owned())
}

fn note(
    path: &Path,
    metadata: &Metadata,
    scratch: Option<&Arc<Scratch>>,
) -> Result<Tree<Arc<Source>>> {
    if !metadata.is_file() {
        return Err(wrong(path, "neither a file nor a directory"));
    }
    // What was noted is to be found when the working directory is another.
    let path = std::path::absolute(path).map_err(|e| refused(path, e))?;
    let (stamp, scratch) = (Stamp::of(metadata), scratch.map(Arc::clone));
    Ok(Tree::leaf(Arc::new(Source { path, stamp, _scratch: scratch })))
}

fn copy(tree: &Tree<Arc<Source>>, to: &Path) -> Result<()> {
    match tree {
        Tree::None => Ok(()),
        Tree::Leaf(source) => {
            source.open()?;
            std::fs::copy(&source.path, to).map_err(|e| refused(&source.path, e))?;
            source.open().map(drop)
        }
        Tree::Branch { children, .. } => {
            if !to.is_dir() {
                std::fs::create_dir(to).map_err(|e| refused(to, e))?;
            }
            children.iter().try_for_each(|(key, child)| match key {
                Key::Name(name) => copy(child, &to.join(name)),
                _ => Ok(()),
            })
        }
    }
}

impl Source {
    /// Opens the file, which is the one that was noted.
    fn open(&self) -> Result<File> {
        // Without blocking, where a pipe has taken its place.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let file = file.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => self.changed().because(e),
            _ => refused(&self.path, e),
        })?;
        self.check(&file)?;
        Ok(file)
    }

    fn check(&self, file: &File) -> Result<()> {
        let metadata = file.metadata().map_err(|e| refused(&self.path, e))?;
        if metadata.is_file() && Stamp::of(&metadata) == self.stamp {
            return Ok(());
        }
        Err(self.changed().with("bytes", metadata.len()).with("noted", self.stamp.bytes))
    }

    fn changed(&self) -> Error {
        Error::conflict("a file has changed while it was to be saved")
            .with("file", self.path.display())
            .hint("save it again when nobody writes to it, or capture a copy first")
    }
}

/// The content of a file, read when a chunk of it is written.
struct FileBytes(Arc<Source>);

impl Provider for FileBytes {
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        let source = &self.0;
        let file = source.open()?;
        let offset = subset.start().first().copied().unwrap_or(0);
        let read = file.read_exact_at(out, offset);
        // What was read is what was noted only where nobody wrote until now.
        source.check(&file)?;
        read.map_err(|e| refused(&source.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_chunk_is_read_only_while_the_file_is_the_one_that_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let opaque = Opaque::from_path(&path).unwrap();
        let (_, source) = opaque.tree.leaves().next().unwrap();
        let provider = FileBytes(Arc::clone(source));
        let chunk = Subset::new(vec![3], vec![4]).unwrap();
        let mut out = [0; 4];
        provider.fill(&chunk, &mut out).unwrap();
        assert_eq!(&out, b"3456");

        let changed = |provider: &FileBytes| {
            let error = provider.fill(&chunk, &mut [0; 4]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            assert_eq!(error.get("file"), path.to_str(), "{error}");
        };
        std::fs::write(&path, b"0123").unwrap();
        changed(&provider);
        std::fs::remove_file(&path).unwrap();
        changed(&provider);
        // A pipe that nobody writes to does not hold a thread.
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        changed(&provider);
    }
}
