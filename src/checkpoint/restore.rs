//! Restoring: whole, into a target, by selection, or streamed leaf by leaf.
//!
//! All leaves of a restore are one plan: their shard indexes are fetched together, then their byte ranges are
//! merged and read together. What does not fit a target is listed by key path before a byte is read.

use super::{
    layout::{DOCUMENT, DOCUMENT_BYTES_MAX, join},
    leaf::{ArrayData, LeafHandle, allocate, run},
    reader::Checkpoint,
};
use crate::{
    array::{
        document_of, leaf_bytes,
        open::{Missing, OpenArray},
        read::{Reads, plan},
    },
    chunk::Subset,
    codec::{Cast, CastRule, check_cast},
    dtype::DataType,
    error::{Error, Result},
    io::read::Context,
    store::Span,
    tasks::wait,
    tree::{LeafSpec, MatchOptions, Matched, Select, TargetLeaf, Tree, TreeIndex, match_target},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use milepost_formats::{
    index,
    record::{Item, ItemKind, parse_json_document},
    zarr3::Document,
};
use serde_json::Value;
use std::sync::Arc;

/// A leaf by its position, the box of it (`None`: all), and the cast.
type Wanted = (usize, Option<Subset>, Option<Cast>);

/// What [`ItemIndex::read_boxes`] reads of a leaf.
#[derive(Clone, Debug, Default)]
pub struct WantedBox {
    /// The leaf, by its position in tree order.
    pub position: usize,
    /// The box of it; `None`: all.
    pub part: Option<Subset>,
    /// The data type to cast to; `None`: as stored.
    pub data_type: Option<DataType>,
}

/// The index of an item, read: its structure, leaves and stored objects.
#[derive(Debug)]
pub struct ItemIndex {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) item: Item,
    pub(crate) tree: TreeIndex,
}

impl Checkpoint {
    /// Reads the index of an item: one request.
    ///
    /// # Errors
    /// `NotFound` for an unknown item, `Corrupt` for a damaged index.
    pub async fn item_index(&self, item: &str) -> Result<ItemIndex> {
        let item = self.item(item)?.clone();
        let tree = self.index(&item).await?;
        Ok(ItemIndex { checkpoint: self.clone(), item, tree })
    }

    /// Reads the index of an item on the calling thread; as [`Checkpoint::item_index`].
    ///
    /// # Errors
    /// As [`Checkpoint::item_index`].
    pub fn item_index_blocking(&self, item: &str) -> Result<ItemIndex> {
        wait(self.item_index(item))
    }

    /// Restores a whole tree, its containers exactly as saved.
    ///
    /// # Errors
    /// `Corrupt` names leaf, chunk and object; `Conflict` where the checkpoint was replaced since it was opened; the
    /// store's errors. Nothing is returned in part.
    pub async fn restore(&self, item: &str) -> Result<Tree<ArrayData>> {
        self.item_index(item).await?.restore(&Select::all()).await
    }

    /// Restores a whole tree on the calling thread; as [`Checkpoint::restore`].
    ///
    /// # Errors
    /// As [`Checkpoint::restore`].
    pub fn restore_blocking(&self, item: &str) -> Result<Tree<ArrayData>> {
        wait(self.restore(item))
    }

    /// Restores the value of a JSON item.
    ///
    /// # Errors
    /// `Invalid` where the item is of another kind; as [`Checkpoint::restore`].
    pub async fn restore_json(&self, item: &str) -> Result<Value> {
        let entry = self.expect_kind(item, ItemKind::Json)?;
        let key = self.place.join(&entry.name).key(DOCUMENT);
        let span = Span::Whole { bytes_max: DOCUMENT_BYTES_MAX };
        let store = self.place.store();
        let blame = |e: Error| self.blame(e.with("item", item).with("object", &key));
        let read = async {
            let bytes = store.get(&key, span, self.priority).await.map_err(&blame)?;
            if let Some(value) = parse_json_document(&bytes).map_err(|e| blame(e.into()))? {
                return Ok(value);
            }
            let data = self.leaf(item, "").await?.read().await?;
            serde_json::from_slice(&data.bytes)
                .map_err(|e| blame(Error::corrupt("a JSON item is no JSON").because(e)))
        };
        self.settle(read.await).await
    }

    /// Restores the bytes of a bytes item.
    ///
    /// # Errors
    /// `Invalid` where the item is of another kind; as [`Checkpoint::restore`].
    pub async fn restore_bytes(&self, item: &str) -> Result<Bytes> {
        self.expect_kind(item, ItemKind::Bytes)?;
        Ok(self.only_leaf(item).await?.bytes.into())
    }

    /// Restores the array of an array item.
    ///
    /// # Errors
    /// `Invalid` where the item is of another kind; as [`Checkpoint::restore`].
    pub async fn restore_array(&self, item: &str) -> Result<ArrayData> {
        self.expect_kind(item, ItemKind::Array)?;
        self.only_leaf(item).await
    }

    async fn only_leaf(&self, item: &str) -> Result<ArrayData> {
        let leaf = self.leaf(item, "").await?;
        self.settle(leaf.read().await).await
    }

    pub(super) fn expect_kind(&self, name: &str, kind: ItemKind) -> Result<&Item> {
        let item = self.item(name)?;
        if item.kind == kind {
            return Ok(item);
        }
        Err(self
            .blame(Error::invalid(format!("the item is no {}", kind.as_str())).with("item", name))
            .hint(format!("it is a {}", item.kind.as_str())))
    }
}

impl ItemIndex {
    /// Returns what each leaf is, in the containers as saved.
    #[must_use]
    pub fn specs(&self) -> Tree<LeafSpec> {
        self.tree.specs()
    }

    /// Returns the selected part of the containers, with the positions of its leaves.
    ///
    /// # Errors
    /// `NotFound` where a pattern matches nothing.
    pub fn selected(&self, select: &Select) -> Result<Tree<usize>> {
        self.tree.select(select).map_err(|e| self.checkpoint.blame(e))
    }

    /// Returns the leaves in tree order, with their stored objects.
    #[must_use]
    pub fn leaves(&self) -> &[index::Leaf] {
        self.tree.leaves()
    }

    /// Returns the free-form strings that came with a foreign file.
    #[must_use]
    pub fn foreign_metadata(&self) -> &[(String, String)] {
        &self.tree.index().foreign_metadata
    }

    /// Opens one leaf by the text form of its key path, without another request where the index suffices.
    ///
    /// # Errors
    /// `NotFound` with the nearest names.
    pub async fn leaf(&self, path: &str) -> Result<LeafHandle> {
        let position = self.tree.lookup(path).map_err(|e| self.checkpoint.blame(e))?;
        self.open(position).await
    }

    /// Restores the selected leaves in their containers.
    ///
    /// # Errors
    /// `NotFound` where a pattern matches nothing; as [`Checkpoint::restore`].
    pub async fn restore(&self, select: &Select) -> Result<Tree<ArrayData>> {
        let tree = self.selected(select)?;
        let wanted: Vec<_> = tree.leaves().map(|(_, position)| (*position, None, None)).collect();
        let mut data = self.read(wanted).await?.into_iter();
        tree.try_map(|_, _| data.next().ok_or_else(|| Error::internal("a leaf was not read")))
    }

    /// Restores into a target: what it asks for is checked, cast where the rule allows, and read.
    ///
    /// A target leaf that is not stored is `None` where [`MatchOptions::missing`] skips it.
    ///
    /// # Errors
    /// `Invalid` lists every mismatch by key path before a byte is read; else as [`Checkpoint::restore`].
    pub async fn restore_into(
        &self,
        target: &Tree<TargetLeaf>,
        options: &MatchOptions,
        rule: CastRule,
    ) -> Result<Tree<Option<ArrayData>>> {
        let matched = self.matched(target, *options, rule)?;
        let types: Vec<_> = target.leaves().map(|(_, leaf)| leaf.data_type).collect();
        let wanted = matched.pairs.iter().map(|pair| {
            let stored = self.tree.leaves()[pair.stored].data_type;
            let to = types[pair.target].filter(|_| pair.needs_cast);
            let cast = to.map(|to| Cast::new(stored, to, rule)).transpose()?;
            Ok((pair.stored, None, cast))
        });
        let read = self.read(wanted.collect::<Result<_>>()?).await?;
        let mut filled: Vec<Option<ArrayData>> = types.iter().map(|_| None).collect();
        for (pair, data) in matched.pairs.iter().zip(read) {
            filled[pair.target] = Some(data);
        }
        let mut filled = filled.into_iter();
        Ok(target.as_ref().map(|_| filled.next().flatten()))
    }

    fn matched(
        &self,
        target: &Tree<TargetLeaf>,
        options: MatchOptions,
        rule: CastRule,
    ) -> Result<Matched> {
        let castable = |from, to| check_cast(from, to, rule).is_ok();
        match_target(target, &self.tree, options, &castable)
            .map_err(|e| self.checkpoint.blame(e.with("item", &self.item.name)))
    }

    /// Pairs the leaves of a target with the stored leaves that fill them; both are positions in tree order.
    ///
    /// [`ItemIndex::read_boxes`] reads what was paired, by parts where it is wanted in parts.
    ///
    /// # Errors
    /// `Invalid` lists every mismatch by key path.
    pub fn pair(
        &self,
        target: &Tree<TargetLeaf>,
        options: MatchOptions,
        rule: CastRule,
    ) -> Result<Vec<(usize, usize)>> {
        let pairs = self.matched(target, options, rule)?.pairs;
        Ok(pairs.into_iter().map(|pair| (pair.target, pair.stored)).collect())
    }

    /// Reads any boxes of any leaves as one plan: only the chunks that hold an element of them.
    ///
    /// # Errors
    /// `NotFound` where there is no such leaf, `Invalid` where a box is not inside its leaf or the rule does not allow
    /// a cast; else as [`Checkpoint::restore`].
    pub async fn read_boxes(&self, wanted: &[WantedBox], rule: CastRule) -> Result<Vec<ArrayData>> {
        let leaves = self.tree.leaves();
        let wanted = wanted.iter().map(|want| {
            let leaf = leaves.get(want.position).ok_or_else(|| {
                Error::not_found("there is no such leaf").with("position", want.position)
            })?;
            let to = want.data_type.filter(|to| *to != leaf.data_type);
            let cast = to.map(|to| Cast::new(leaf.data_type, to, rule)).transpose();
            let cast = cast.map_err(|e| e.with("leaf", &leaf.path))?;
            if let Some(part) = want.part.as_ref().filter(|part| !part.fits(&leaf.shape)) {
                return Err(Error::invalid("the box is not inside the array")
                    .with("leaf", &leaf.path)
                    .with("box", part)
                    .with("shape", format!("{:?}", leaf.shape)));
            }
            Ok((want.position, want.part.clone(), cast))
        });
        let wanted = wanted.collect::<Result<_>>().map_err(|e| self.checkpoint.blame(e))?;
        self.read(wanted).await
    }

    /// Calls `each` with one selected leaf after the other; those in memory at once fit half of the budget.
    ///
    /// A leaf larger than that is read alone; [`LeafHandle::slabs`] divides it.
    ///
    /// # Errors
    /// The first error of a read or of `each`.
    pub async fn stream(
        &self,
        select: &Select,
        mut each: impl FnMut(&index::Leaf, ArrayData) -> Result<()>,
    ) -> Result<()> {
        let tree = self.selected(select)?;
        let limit = self.checkpoint.engine.budget().limit() / 2;
        let mut rest = tree.leaves().map(|(_, position)| *position).peekable();
        while rest.peek().is_some() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some(position) = rest.next_if(|position| {
                let leaf = &self.tree.leaves()[*position];
                let size = leaf_bytes(leaf.data_type, &leaf.shape).unwrap_or(u64::MAX);
                batch.is_empty() || size <= limit.saturating_sub(bytes)
            }) {
                let leaf = &self.tree.leaves()[position];
                bytes += leaf_bytes(leaf.data_type, &leaf.shape)?;
                batch.push((position, None, None));
            }
            let positions: Vec<_> = batch.iter().map(|(position, ..)| *position).collect();
            for (position, data) in positions.into_iter().zip(self.read(batch).await?) {
                each(&self.tree.leaves()[position], data)?;
            }
        }
        Ok(())
    }

    /// Reads whole leaves, some cast, as one plan.
    ///
    /// A checkpoint is a place: one that was replaced meanwhile would give leaves of two. So its record is read
    /// again afterwards, and what may be mixed is not given out.
    pub(super) async fn read(&self, wanted: Vec<Wanted>) -> Result<Vec<ArrayData>> {
        let read = self.read_plan(wanted).await;
        self.checkpoint.settle(read.map_err(|e| self.checkpoint.blame(e))).await
    }

    async fn read_plan(&self, wanted: Vec<Wanted>) -> Result<Vec<ArrayData>> {
        let context = self.checkpoint.context();
        let concurrency = context.concurrency();
        let planned: Vec<_> = stream::iter(wanted)
            .map(|wanted| self.plan_leaf(&context, wanted))
            .buffered(concurrency)
            .try_collect()
            .await?;
        let (results, reads): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
        let buffers = run(&context, reads).await?;
        let fill = |(mut data, bytes): (ArrayData, _)| {
            data.bytes = bytes;
            data
        };
        Ok(results.into_iter().zip(buffers).map(fill).collect())
    }

    async fn plan_leaf(
        &self,
        context: &Context,
        (position, part, cast): Wanted,
    ) -> Result<(ArrayData, Reads)> {
        let leaf = &self.tree.leaves()[position];
        let array = self.open_array(position).await?;
        let data_type = cast.map_or(leaf.data_type, |cast| cast.to());
        let part = part.map_or_else(|| Subset::whole(&leaf.shape), Ok)?;
        let shape = part.shape().to_vec();
        let buffer = allocate(data_type, &shape).map_err(|e| e.with("leaf", &leaf.path))?;
        let bytes = leaf_bytes(leaf.data_type, &shape)?;
        context.progress.plan(1, array.count_chunks(&part)?, bytes);
        let reads = plan(context, &array, &part, buffer, cast).await?;
        let bytes = crate::buffer::Buffer::zeroed(0);
        Ok((ArrayData { kind: leaf.kind.clone(), data_type, shape, bytes }, reads))
    }

    async fn open(&self, position: usize) -> Result<LeafHandle> {
        let leaf = &self.tree.leaves()[position];
        let array = match self.open_array(position).await {
            Ok(array) => array,
            Err(error) => return Err(self.checkpoint.explain(self.checkpoint.blame(error)).await),
        };
        Ok(LeafHandle::new(
            self.checkpoint.context(),
            array,
            leaf.kind.clone(),
            Some(leaf.data_type),
        )
        .of(&self.checkpoint))
    }

    /// Opens the array of a leaf, from the index alone where it says everything.
    pub(crate) async fn open_array(&self, position: usize) -> Result<OpenArray> {
        let leaf = &self.tree.leaves()[position];
        let root = self.checkpoint.place.join(&join(&self.item.name, &leaf.path));
        let document = if let Some(document) = document_of(leaf) {
            Document::Array(document)
        } else {
            let key = root.key(DOCUMENT);
            let span = Span::Whole { bytes_max: leaf.document.bytes };
            let context = |e: Error| e.with("leaf", &leaf.path).with("object", &key);
            let store = root.store();
            let bytes = store.get(&key, span, self.checkpoint.priority).await.map_err(context)?;
            let document = Document::parse(&bytes).map_err(|e| context(e.into()))?;
            if !describes(&document, leaf) {
                return Err(context(Error::corrupt("the document is not the one the index names")));
            }
            document
        };
        let array = OpenArray::new(root, &leaf.path, document, Missing::Corrupt)?;
        Ok(array.with_objects(Arc::from(leaf.objects.as_slice())))
    }
}

/// Tells whether a document says of an array what the index says of the leaf.
fn describes(document: &Document, leaf: &index::Leaf) -> bool {
    let Document::Array(array) = document else { return false };
    let stored_shape = leaf.shard_shape.as_ref().unwrap_or(&leaf.chunk_shape);
    array.shape == leaf.shape
        && array.data_type == leaf.stored_as.unwrap_or(leaf.data_type)
        && array.chunk_shape() == leaf.chunk_shape
        && array.grid_shape == *stored_shape
}
