//! Opaque items, restored: the byte arrays of an item become files again.
//!
//! The life of a restore: names checked → existing files refused → small files read together, large ones by slabs,
//! all into a directory beside their names → synced → renamed one by one.
//!
//! What a checkpoint says of names is not believed: every name is checked before the first file is written, so
//! that none leaves the directory it is restored into.
//!
//! **Invariant:** what is under a final name is a whole file.

use super::{
    files::Files,
    reader::Checkpoint,
    restore::ItemIndex,
    scratch::{refused, wrong},
};
use crate::{
    chunk::Subset,
    dtype::DataType,
    error::{Error, Result},
    store::Place,
    tasks::wait,
    tree::{Container, Key, Tree},
};
use milepost_formats::record::ItemKind;
use std::path::{Path, PathBuf};

/// No file system takes a longer name.
const NAME_BYTES_MAX: usize = 255;
/// Files are read in slabs of at most so much; small budgets have smaller ones.
const SLAB_BYTES: (u64, u64) = (1 << 20, 32 << 20);
/// Small files are read together, so many at most.
const TOGETHER_MAX: usize = 256;

/// The files of an item as its index has them, the names checked.
#[derive(Default)]
struct Listed {
    files: Vec<Listing>,
    /// Parents first.
    directories: Vec<String>,
}

struct Listing {
    /// Relative to the directory that the item is restored into.
    name: String,
    position: usize,
    bytes: u64,
}

impl Checkpoint {
    /// Lists the files of an opaque item with their sizes, without reading data: one request.
    ///
    /// A name is the file's own. That of its leaf is escaped ([`crate::KeyPath`]): the same, where it consists of
    /// letters, digits, `.`, `_`, `-`.
    ///
    /// # Errors
    /// `Invalid` where the item is of another kind, `Corrupt` where a name is none that a file can have.
    pub async fn opaque_files(&self, item: &str) -> Result<Vec<(String, u64)>> {
        self.expect_kind(item, ItemKind::Opaque)?;
        let listed = self.listed(&self.item_index(item).await?)?;
        Ok(listed.files.into_iter().map(|file| (file.name, file.bytes)).collect())
    }

    /// Lists the files on the calling thread; as [`Checkpoint::opaque_files`].
    ///
    /// # Errors
    /// As [`Checkpoint::opaque_files`].
    pub fn opaque_files_blocking(&self, item: &str) -> Result<Vec<(String, u64)>> {
        wait(self.opaque_files(item))
    }

    /// Writes the files of an opaque item below the directory `into`, and returns their paths.
    ///
    /// Each file is whole when it appears under its name; those that are there are replaced only with `overwrite`.
    /// Large files pass in slabs within the budget. Modes and times are those of new files.
    ///
    /// # Errors
    /// `Invalid` where the item is of another kind; `AlreadyExists` names a file that is there; `Corrupt` where a name
    /// would leave the directory (nothing is written then) or stored bytes are damaged; the stores' errors.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the files that had their names; it removes what it has written beside them.
    pub async fn restore_files(
        &self,
        item: &str,
        into: impl AsRef<Path>,
        overwrite: bool,
    ) -> Result<Vec<PathBuf>> {
        self.expect_kind(item, ItemKind::Opaque)?;
        let into = into.as_ref();
        let into = std::path::absolute(into).map_err(|e| refused(into, e))?;
        let index = self.item_index(item).await?;
        let listed = self.listed(&index)?;
        self.unpack(&index, &listed, &into, overwrite)
            .await
            .map_err(|e| self.blame(e.with("item", item).with("into", into.display())))?;
        Ok(listed.files.into_iter().map(|file| into.join(file.name)).collect())
    }

    /// Writes the files on the calling thread; as [`Checkpoint::restore_files`].
    ///
    /// # Errors
    /// As [`Checkpoint::restore_files`].
    pub fn restore_files_blocking(
        &self,
        item: &str,
        into: impl AsRef<Path>,
        overwrite: bool,
    ) -> Result<Vec<PathBuf>> {
        wait(self.restore_files(item, into, overwrite))
    }

    fn listed(&self, index: &ItemIndex) -> Result<Listed> {
        let mut listed = Listed::default();
        listed
            .collect(index, index.tree.tree(), &mut String::new())
            .map_err(|e| self.blame(e.with("item", &index.item.name)))?;
        Ok(listed)
    }

    async fn unpack(
        &self,
        index: &ItemIndex,
        listed: &Listed,
        into: &Path,
        overwrite: bool,
    ) -> Result<()> {
        let text = into.to_str().ok_or_else(|| wrong(into, "a directory's name is not UTF-8"))?;
        let place = self.engine.place(text, &[])?;
        let output = Files::new(&self.engine, place.clone(), overwrite, self.priority);
        let names: Vec<&str> = listed.files.iter().map(|file| file.name.as_str()).collect();
        output.check(&names).await?;
        let result = match self.write_files(index, &listed.files, &output).await {
            Ok(()) => publish(&output, &place, listed, &names).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            output.abandon().await;
        }
        result
    }

    async fn write_files(
        &self,
        index: &ItemIndex,
        files: &[Listing],
        output: &Files,
    ) -> Result<()> {
        let budget = self.engine.budget().limit();
        let slab = (budget / 8).clamp(SLAB_BYTES.0, SLAB_BYTES.1);
        let mut rest = files;
        while let Some((first, _)) = rest.split_first() {
            let mut bytes = 0;
            let fits = |file: &&Listing| {
                bytes += file.bytes;
                bytes <= slab
            };
            let together = rest.iter().take(TOGETHER_MAX).take_while(fits).count();
            let (batch, later) = rest.split_at(together.max(1));
            rest = later;
            if together == 0 {
                self.write_large(index, first, slab, output).await?;
            } else {
                write_batch(index, batch, output).await?;
            }
        }
        // A checkpoint is a place: one that was replaced meanwhile would give files of two.
        self.check_current().await
    }

    async fn write_large(
        &self,
        index: &ItemIndex,
        file: &Listing,
        slab: u64,
        output: &Files,
    ) -> Result<()> {
        let leaf = &index.leaves()[file.position];
        let handle = index.leaf(&leaf.path).await?;
        // No chunk is decoded twice, unless it is most of the budget.
        let chunk = leaf.chunk_shape.first().copied().unwrap_or(1).max(1);
        let slab = if chunk > slab {
            chunk.min(self.engine.budget().limit() / 2).max(slab)
        } else {
            slab - slab % chunk
        };
        self.progress.plan(1, file.bytes.div_ceil(chunk), file.bytes);
        let mut sink = output.create(&file.name, file.bytes).await?;
        // One box after the other: a list of them would be as long as the size that the index claims.
        let mut start = 0;
        while start < file.bytes {
            let count = slab.min(file.bytes - start);
            let subset = Subset::new(vec![start], vec![count])?;
            sink.push(handle.read_planned(&subset).await?).await?;
            start += count;
        }
        sink.finish().await
    }
}

async fn write_batch(index: &ItemIndex, files: &[Listing], output: &Files) -> Result<()> {
    let wanted = files.iter().map(|file| (file.position, None, None)).collect();
    for (file, data) in files.iter().zip(index.read(wanted).await?) {
        let mut sink = output.create(&file.name, file.bytes).await?;
        sink.push(data.bytes).await?;
        sink.finish().await?;
    }
    Ok(())
}

/// Makes the directories and gives the files their names.
async fn publish(output: &Files, place: &Place, listed: &Listed, names: &[&str]) -> Result<()> {
    place.store().create_dir(place.prefix()).await?;
    for directory in &listed.directories {
        place.store().create_dir(&place.key(directory)).await?;
    }
    if names.is_empty() { Ok(()) } else { output.publish(names).await }
}

impl Listed {
    fn collect(&mut self, index: &ItemIndex, tree: &Tree<usize>, path: &mut String) -> Result<()> {
        match tree {
            Tree::Leaf(position) if !path.is_empty() => {
                let leaf = &index.leaves()[*position];
                let ([bytes], DataType::UInt8) = (leaf.shape.as_slice(), leaf.data_type) else {
                    return Err(Error::corrupt("a file of the item is no bytes")
                        .with("leaf", &leaf.path)
                        .with("data_type", leaf.data_type));
                };
                self.files.push(Listing { name: path.clone(), position: *position, bytes: *bytes });
                Ok(())
            }
            Tree::Branch { container: Container::Dict, children } => {
                if !path.is_empty() {
                    self.directories.push(path.clone());
                }
                let parent_bytes = path.len();
                for (key, child) in children {
                    check_name(key).map_err(|e| e.with("below", path.escape_debug()))?;
                    if let Key::Name(name) = key {
                        if !path.is_empty() {
                            path.push('/');
                        }
                        path.push_str(name);
                    }
                    self.collect(index, child, path)?;
                    path.truncate(parent_bytes);
                }
                Ok(())
            }
            Tree::Leaf(_) | Tree::None | Tree::Branch { .. } => {
                Err(Error::corrupt("the item is not a tree of files")
                    .with("path", path.escape_debug()))
            }
        }
    }
}

/// Refuses what is no name of a file, or one that leaves its directory.
fn check_name(key: &Key) -> Result<()> {
    let Key::Name(name) = key else {
        return Err(Error::corrupt("a file has no name").with("key", format!("{key:?}")));
    };
    let bad = name.is_empty()
        || name == "."
        || name == ".."
        || name.len() > NAME_BYTES_MAX
        || name.contains(['/', '\\', '\0']);
    if !bad {
        return Ok(());
    }
    // `\` is a letter here and a separator elsewhere: `from_path` refuses it, so we never wrote it.
    let end = name.floor_char_boundary(NAME_BYTES_MAX);
    Err(Error::corrupt("a name in the item is none that a file may have")
        .with("name", name[..end].escape_debug())
        .hint("nothing was written; `leaf` reads the bytes of such a file"))
}
