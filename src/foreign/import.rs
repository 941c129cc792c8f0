//! Import: tensors of foreign files become leaves whose bytes are read when their chunk is written.
//!
//! The life of an import: detected → headers read → names made key paths → saved as any other tree, with one
//! provider a leaf. Nothing of the data is read before the save asks for a chunk, and the source is never mapped:
//! what is held is what the budget says, and a file that is truncated meanwhile is an error, not a signal.

use super::{
    detect::{Model, find},
    origin::{Origin, OriginFile, Pairs, merge},
    source::TensorSource,
};
use crate::{
    array::{Borrowed, Leaf},
    checkpoint::{CheckpointWriter, Item, SaveHandle, SaveOptions, Saved},
    error::{Error, Result},
    io::{Engine, Progress},
    store::Place,
    tasks::{Priority, wait},
    tree::{Key, KeyPath, Tree},
};
use milepost_formats::safetensors::split_names;
use serde_json::{Map, Value};
use std::{collections::HashMap, sync::Arc};

/// Imports safetensors: a file, a directory with one, or a model in several files by its index.
///
/// ```no_run
/// use milepost::{Engine, Import};
/// # fn main() -> milepost::Result<()> {
/// let engine = Engine::shared()?;
/// let source = engine.place("./model.safetensors", &[])?;
/// let run = engine.place("./run", &[])?;
/// let saved = Import::step(&engine, &source, &run, 1).split(".").save_blocking()?;
/// println!("{} bytes at {}", saved.data_bytes, saved.place);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Import {
    engine: Arc<Engine>,
    source: Place,
    writer: CheckpointWriter,
    item: String,
    split: Option<String>,
}

impl Import {
    /// Imports `source` as `step` of the run at `run`, which is created where it is not there.
    pub fn step(engine: &Arc<Engine>, source: &Place, run: &Place, step: u64) -> Self {
        Self::new(engine, source, CheckpointWriter::step(engine, run, step))
    }

    /// Imports `source` as a checkpoint that stands alone at `target`.
    pub fn standalone(engine: &Arc<Engine>, source: &Place, target: &Place) -> Self {
        Self::new(engine, source, CheckpointWriter::standalone(engine, target))
    }

    fn new(engine: &Arc<Engine>, source: &Place, writer: CheckpointWriter) -> Self {
        let (item, split) = ("state".to_owned(), None);
        Self { engine: Arc::clone(engine), source: source.clone(), writer, item, split }
    }

    /// Names the item. Default: `state`.
    pub fn item(mut self, name: impl Into<String>) -> Self {
        self.item = name.into();
        self
    }

    /// Splits names at `separator` into key paths. Default: each name is one key.
    ///
    /// Lossless: where one name is a prefix of another, the longer keeps its tail as one key.
    pub fn split(mut self, separator: impl Into<String>) -> Self {
        self.split = Some(separator.into());
        self
    }

    /// Sets how arrays are stored and when the save counts as done.
    pub fn options(mut self, options: SaveOptions) -> Self {
        self.writer = self.writer.options(options);
        self
    }

    /// Sets the user's metadata of the checkpoint; that of the source is carried in any case.
    pub fn metadata(mut self, metadata: Map<String, Value>) -> Self {
        self.writer = self.writer.metadata(metadata);
        self
    }

    /// Sets who goes first where operations share the engine. Default: foreground.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.writer = self.writer.priority(priority);
        self
    }

    /// Sets the progress that is told about every chunk.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.writer = self.writer.progress(progress);
        self
    }

    /// Imports on the calling thread; as [`Import::save`].
    ///
    /// # Errors
    /// As [`Import::save`].
    pub fn save_blocking(self) -> Result<Saved> {
        wait(self.save())
    }

    /// Imports in the background; returns when the source is found and its headers are read.
    ///
    /// # Errors
    /// Those of the source as [`Import::save`]; what goes wrong later is the handle's.
    ///
    /// # Cancel safety
    /// Nothing is written before it returns.
    pub async fn start(self) -> Result<SaveHandle> {
        let source = self.source.clone();
        let writer = self.writer().await.map_err(|e| e.with("source", &source))?;
        writer.start(&Borrowed::new())
    }

    /// Imports and commits.
    ///
    /// # Errors
    /// `NotFound` and `Unsupported` where the source is none, `Corrupt` naming file and tensor where it is damaged;
    /// else as [`CheckpointWriter::save`]. Nothing is visible then.
    ///
    /// # Cancel safety
    /// As [`CheckpointWriter::save`].
    pub async fn save(self) -> Result<Saved> {
        let source = self.source.clone();
        let blame = |e: Error| e.with("source", &source);
        self.writer().await.map_err(blame)?.save().await.map_err(blame)
    }

    /// Reads the headers of the source; the writer reads its tensors.
    async fn writer(self) -> Result<CheckpointWriter> {
        let model = find(&self.source).await?;
        let (tree, metadata) = state(&self.engine, &model, self.split.as_deref())?;
        let writer = self.writer.item(&self.item, Item::Tree(tree));
        Ok(writer.foreign_metadata(&self.item, metadata))
    }
}

/// Makes the tree of leaves of a model, and the pairs that its index carries.
fn state(engine: &Arc<Engine>, model: &Model, split: Option<&str>) -> Result<(Tree<Leaf>, Pairs)> {
    let names: Vec<&str> =
        model.files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str()).collect();
    let paths = match split {
        Some(separator) => split_names(&names, separator)?,
        None => names.iter().map(|name| vec![(*name).to_owned()]).collect(),
    };
    let mut root = Branch::default();
    for (tensor, keys) in paths.into_iter().enumerate() {
        root.insert(keys, tensor)?;
    }
    let tree = root.into_tree();
    let mut origin = Origin::new(split);
    let tensors: Vec<usize> = tree.leaves().map(|(_, tensor)| *tensor).collect();
    origin.order = order(&tensors)?;
    let metadata = carried(model, &mut origin);

    let places: Vec<(usize, usize)> = model
        .files
        .iter()
        .enumerate()
        .flat_map(|(file, f)| (0..f.header.tensors.len()).map(move |position| (file, position)))
        .collect();
    let tree = tree.try_map(|path, tensor| {
        let (file, position) = places[tensor];
        let file = &model.files[file];
        let header = &file.header.tensors[position];
        let source = Arc::new(TensorSource::new(engine, file, position));
        let leaf = Leaf::from_provider(header.dtype.data_type(), header.shape.clone(), source)
            .map_err(|e| e.with("tensor", &header.name).with("file", &file.place))?;
        let says = says_name(path, &header.name, split);
        Ok::<_, Error>(if says { leaf } else { leaf.with_foreign_name(&header.name) })
    })?;
    Ok((tree, origin.encode(metadata)?))
}

/// Returns the leaf of each tensor in file order, where it is not simply its number.
fn order(tensors: &[usize]) -> Result<Option<Vec<u32>>> {
    if tensors.iter().enumerate().all(|(leaf, tensor)| leaf == *tensor) {
        return Ok(None);
    }
    let mut order = vec![0; tensors.len()];
    for (leaf, tensor) in tensors.iter().enumerate() {
        order[*tensor] = u32::try_from(leaf)
            .map_err(|_| Error::unsupported("a file of more than 2^32 tensors"))?;
    }
    Ok(Some(order))
}

/// Notes the files of a model in several, and returns the metadata that is carried as it is.
fn carried(model: &Model, origin: &mut Origin) -> Pairs {
    let union = merge(model.files.iter().map(|f| &f.header.metadata));
    if let Some(index_metadata) = &model.index_metadata {
        origin.index_metadata.clone_from(index_metadata);
        origin.files = model
            .files
            .iter()
            .map(|file| OriginFile {
                name: file.name().to_owned(),
                tensors: file.header.tensors.len() as u64,
                metadata: (file.header.metadata != union).then(|| file.header.metadata.clone()),
            })
            .collect();
    }
    union
}

/// Tells whether the text of a path gives a name back by putting the separator where its slashes are.
fn says_name(path: &KeyPath, name: &str, split: Option<&str>) -> bool {
    let text = path.to_string();
    let Some(separator) = split else { return text == name };
    let tails = path.keys().iter().any(|key| matches!(key, Key::Name(k) if k.contains(separator)));
    !tails && text.replace('/', separator) == name
}

/// A dict under construction; its map finds a child among thousands.
#[derive(Default)]
struct Branch {
    children: Vec<(String, Child)>,
    positions: HashMap<String, usize>,
}

enum Child {
    Tensor(usize),
    Branch(Branch),
}

impl Branch {
    fn insert(&mut self, keys: Vec<String>, tensor: usize) -> Result<()> {
        let blocked = || Error::internal("a name was split into the way of another");
        let mut at = self;
        let mut keys = keys.into_iter().peekable();
        while let Some(key) = keys.next() {
            let known = at.positions.get(&key).copied();
            if keys.peek().is_none() {
                if known.is_some() {
                    return Err(blocked().with("key", key));
                }
                at.push(key, Child::Tensor(tensor));
                return Ok(());
            }
            let position = known.unwrap_or_else(|| at.push(key, Child::Branch(Branch::default())));
            match &mut at.children[position].1 {
                Child::Branch(branch) => at = branch,
                Child::Tensor(_) => return Err(blocked()),
            }
        }
        Err(Error::internal("a name was split into no keys"))
    }

    fn push(&mut self, key: String, child: Child) -> usize {
        let position = self.children.len();
        self.positions.insert(key.clone(), position);
        self.children.push((key, child));
        position
    }

    fn into_tree(self) -> Tree<usize> {
        Tree::dict(self.children.into_iter().map(|(key, child)| {
            let tree = match child {
                Child::Tensor(tensor) => Tree::Leaf(tensor),
                Child::Branch(branch) => branch.into_tree(),
            };
            (key, tree)
        }))
    }
}
