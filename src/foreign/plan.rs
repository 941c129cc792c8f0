//! Plans an export: which leaf gets which name, in which file, at which place; nothing is read yet.
//!
//! Names come from the source file where there was one, else from the keys, joined by the separator that they
//! were split at (`.` where they never were). So does the order; without a source it is the reference writer's,
//! in which every tensor is aligned. What the format cannot hold (None, empty containers, text, bytes, PRNG
//! keys, `complex128` and other data types) is collected and told all at once.

use super::{
    detect::{EXTENSION, INDEX_EXTENSION},
    origin::{Origin, Pairs},
};
use crate::{
    checkpoint::ItemIndex,
    error::{Error, Result},
    tree::{Container, Key, KeyPath, LeafKind, Select, Tree},
};
use milepost_formats::{
    index::Leaf,
    record::ItemKind,
    safetensors::{Dtype, Order, ShardIndex, Tensor, encode_header, place, shard_file_name},
};
use std::collections::HashMap;

/// What joins keys to names where no source says otherwise.
const SEPARATOR: &str = ".";
/// Leaves that one error names; a message of more is read by nobody.
const NAMED_MAX: usize = 100;

/// A leaf or an empty container that an export has left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its key path.
    pub path: String,
    /// Why the format cannot hold it.
    pub reason: String,
}

/// What the caller asks for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) select: Select,
    pub(super) separator: Option<String>,
    pub(super) skip_unsupported: bool,
    pub(super) shard_bytes: Option<u64>,
}

/// The files of an export.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) files: Vec<FilePlan>,
    /// Name and bytes of the index, where there are several files.
    pub(super) index: Option<(String, Vec<u8>)>,
    pub(super) skipped: Vec<Skipped>,
}

/// One file: its header and the leaves that follow it, in order.
#[derive(Debug)]
pub(super) struct FilePlan {
    pub(super) name: String,
    pub(super) header: Vec<u8>,
    /// Position of the leaf and data type in the file.
    pub(super) leaves: Vec<(usize, Dtype)>,
    /// Of the whole file.
    pub(super) bytes: u64,
}

/// A leaf that the format can hold.
struct Wanted {
    position: usize,
    name: String,
    dtype: Dtype,
    bytes: u64,
}

impl Plan {
    /// Plans the export of an item to files named after `out`.
    ///
    /// # Errors
    /// `Unsupported` lists what the format cannot hold; `Invalid` where two leaves would have one name, the item is
    /// no tree, or `out` does not end in `.safetensors`.
    pub(super) fn new(index: &ItemIndex, wish: &Wish, out: &str) -> Result<Self> {
        let stem = stem(out)?;
        if wish.shard_bytes == Some(0) {
            return Err(Error::invalid("files of 0 bytes hold no tensor").with("shard_bytes", 0));
        }
        if index.item.kind == ItemKind::Json {
            return Err(Error::invalid("a JSON item holds no tensors"));
        }
        let (origin, metadata) = Origin::decode(index.foreign_metadata(), index.leaves().len())?;
        let mut walk =
            Walk { index, wish, origin: origin.as_ref(), wanted: vec![], skipped: vec![] };
        walk.node(&index.tree.select(&wish.select)?, &mut KeyPath::root());
        let Walk { mut wanted, skipped, .. } = walk;
        if !wish.skip_unsupported {
            refuse(&skipped)?;
        }
        check_names(index, &wanted)?;
        let ranks = origin.as_ref().map(|origin| origin.ranks(index.leaves().len()));
        match &ranks {
            Some(ranks) => wanted.sort_by_key(|w| ranks[w.position]),
            None => wanted.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))),
        }
        let parts = cut(wanted, wish.shard_bytes.unwrap_or(u64::MAX));
        let count = parts.len();
        let mut plan = Self { skipped, ..Self::default() };
        let mut shards = ShardIndex::default();
        for (number, part) in parts.into_iter().enumerate() {
            let name = match count {
                1 => out.to_owned(),
                _ => shard_file_name(stem, number + 1, count),
            };
            let metadata = match (&origin, &ranks) {
                (Some(origin), Some(ranks)) if count > 1 => {
                    origin.metadata_of(&sources(origin, ranks, &part), &metadata)
                }
                _ => metadata.clone(),
            };
            shards.weight_map.extend(part.iter().map(|w| (w.name.clone(), name.clone())));
            plan.files.push(FilePlan::new(index, name, part, &metadata)?);
        }
        if count > 1 {
            shards.metadata = origin.map(|origin| origin.index_metadata).unwrap_or_default();
            shards.total_size = Some(plan.data_bytes());
            plan.index = Some((format!("{stem}{INDEX_EXTENSION}"), shards.encode()?));
        }
        Ok(plan)
    }

    /// Returns the number of tensors.
    pub(super) fn tensors(&self) -> usize {
        self.files.iter().map(|file| file.leaves.len()).sum()
    }

    /// Returns the bytes of all tensors.
    pub(super) fn data_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes - file.header.len() as u64).sum()
    }

    /// Returns the names of all files, those that a reader opens first last.
    pub(super) fn names(&self) -> Vec<&str> {
        let files = self.files.iter().map(|file| file.name.as_str());
        files.chain(self.index.as_ref().map(|(name, _)| name.as_str())).collect()
    }
}

impl FilePlan {
    fn new(index: &ItemIndex, name: String, part: Vec<Wanted>, metadata: &Pairs) -> Result<Self> {
        let leaves = part.iter().map(|w| (w.position, w.dtype)).collect();
        let shape = |position: usize| index.leaves()[position].shape.clone();
        let tensors = part.into_iter().map(|w| (w.name, w.dtype, shape(w.position)));
        let tensors: Vec<Tensor> = place(tensors, Order::AsGiven)?;
        let header = encode_header(&tensors, metadata)?;
        let data_bytes = tensors.last().map_or(0, |t| t.end);
        Ok(Self { name, bytes: header.len() as u64 + data_bytes, header, leaves })
    }
}

/// Returns what comes before `.safetensors` in the name of the output.
pub(super) fn stem(out: &str) -> Result<&str> {
    out.strip_suffix(EXTENSION).filter(|stem| !stem.is_empty()).ok_or_else(|| {
        Error::invalid("the name of the output does not end in `.safetensors`")
            .with("name", out)
            .hint("`milepost export` writes safetensors; name a file `*.safetensors`")
    })
}

/// Walks the selected tree and divides it into what can be held and what cannot.
struct Walk<'a> {
    index: &'a ItemIndex,
    wish: &'a Wish,
    origin: Option<&'a Origin>,
    wanted: Vec<Wanted>,
    skipped: Vec<Skipped>,
}

impl Walk<'_> {
    fn node(&mut self, tree: &Tree<usize>, path: &mut KeyPath) {
        match tree {
            Tree::Leaf(position) => self.leaf(*position, path),
            Tree::None => self.skip(path, "None"),
            Tree::Branch { container, children } if children.is_empty() => {
                // The root of an empty file is an empty dict; nothing is lost by leaving that out.
                if !(path.is_root() && *container == Container::Dict) {
                    self.skip(path, "an empty container");
                }
            }
            Tree::Branch { children, .. } => {
                for (key, child) in children {
                    path.push(key);
                    self.node(child, path);
                    path.pop();
                }
            }
        }
    }

    fn skip(&mut self, path: &KeyPath, reason: impl Into<String>) {
        self.skipped.push(Skipped { path: path.to_string(), reason: reason.into() });
    }

    fn leaf(&mut self, position: usize, path: &KeyPath) {
        let leaf = &self.index.leaves()[position];
        match held(leaf) {
            Ok((dtype, bytes)) => {
                let name = self.name(leaf, path);
                self.wanted.push(Wanted { position, name, dtype, bytes });
            }
            Err(reason) => self.skip(path, reason),
        }
    }

    fn name(&self, leaf: &Leaf, path: &KeyPath) -> String {
        if path.is_root() {
            return self.index.item.name.clone();
        }
        let chosen = self.wish.separator.as_deref();
        if let (None, Some(name)) = (chosen, &leaf.name) {
            return name.clone();
        }
        let known = self.origin.and_then(|origin| origin.separator.as_deref());
        join(path, chosen.or(known).unwrap_or(SEPARATOR))
    }
}

fn join(path: &KeyPath, separator: &str) -> String {
    let texts = path.keys().iter().map(|key| match key {
        Key::Name(text) | Key::Attr(text) => text.clone(),
        Key::Int(number) => number.to_string(),
        Key::Index(number) => number.to_string(),
    });
    texts.collect::<Vec<_>>().join(separator)
}

/// Returns data type and size of a leaf in a file, or why it cannot be in one.
fn held(leaf: &Leaf) -> Result<(Dtype, u64), String> {
    match &leaf.kind {
        LeafKind::Str => return Err("text".to_owned()),
        LeafKind::Bytes => return Err("bytes".to_owned()),
        LeafKind::PrngKey { implementation } => {
            return Err(format!("a PRNG key, {implementation}"));
        }
        LeafKind::Array | LeafKind::Int | LeafKind::Float | LeafKind::Bool | LeafKind::Complex => {}
    }
    let dtype = Dtype::from_data_type(leaf.data_type).map_err(|_| leaf.data_type.to_string())?;
    let bytes = dtype
        .bytes(&leaf.shape)
        .ok_or_else(|| format!("{} of {:?} does not end at a byte", leaf.data_type, leaf.shape))?;
    Ok((dtype, bytes))
}

fn refuse(skipped: &[Skipped]) -> Result<()> {
    if skipped.is_empty() {
        return Ok(());
    }
    let show = |s: &Skipped| format!("{} ({})", s.path, s.reason);
    let mut named: Vec<_> = skipped.iter().take(NAMED_MAX).map(show).collect();
    if skipped.len() > NAMED_MAX {
        named.push(format!("and {} more", skipped.len() - NAMED_MAX));
    }
    let what = match skipped.len() {
        1 => "a leaf cannot be in a safetensors file".to_owned(),
        n => format!("{n} leaves cannot be in a safetensors file"),
    };
    Err(Error::unsupported(what)
        .with("leaves", named.join(", "))
        .hint("`--skip-unsupported` leaves them out; `--select` names what is wanted"))
}

fn check_names(index: &ItemIndex, wanted: &[Wanted]) -> Result<()> {
    let mut seen = HashMap::with_capacity(wanted.len());
    for Wanted { name, position, .. } in wanted {
        let path = &index.leaves()[*position].path;
        if let Some(other) = seen.insert(name, path) {
            return Err(Error::invalid("two leaves would have one name")
                .with("leaf", other)
                .with("other", path)
                .with("name", name)
                .hint("choose another separator with `--split`"));
        }
    }
    Ok(())
}

/// Divides tensors into files of at most `bytes_max`; one that is larger has a file of its own.
fn cut(wanted: Vec<Wanted>, bytes_max: u64) -> Vec<Vec<Wanted>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0_u64;
    for tensor in wanted {
        let after = bytes.saturating_add(tensor.bytes);
        let full = after > bytes_max && parts.last().is_some_and(|part| !part.is_empty());
        if full {
            parts.push(Vec::new());
        }
        bytes = if full { tensor.bytes } else { after };
        if let Some(part) = parts.last_mut() {
            part.push(tensor);
        }
    }
    parts
}

/// Returns the source files that the tensors of a file were in, in order.
fn sources(origin: &Origin, ranks: &[usize], part: &[Wanted]) -> Vec<usize> {
    let mut files: Vec<usize> =
        part.iter().filter_map(|w| origin.file_of(ranks[w.position])).collect();
    files.sort_unstable();
    files.dedup();
    files
}
