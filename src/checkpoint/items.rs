//! Items: named parts of a checkpoint, and how each becomes nodes, documents and chunks.

use super::{
    layout::{DOCUMENT, join},
    names::dimension_names,
    opaque::Opaque,
    options::{Consolidate, SaveOptions},
};
use crate::{
    array::{Leaf, Stored, codec_text, document, write::LeafPlan},
    chunk::{Subset, divide, plan},
    codec::crc32c,
    error::{Error, Result},
    io::write::{Body, ObjectPlan, Written},
    store::Place,
    tree::{Key, Layout, LeafNode, Tree, lay_out, to_node},
};
use bytes::Bytes;
use milepost_formats::{
    index::{self, ChildMark, Group, Index, Object},
    record::{Item as ItemEntry, ItemKind, json_document, tagged},
    zarr3::{GroupDocument, document_bytes},
};
use serde_json::Value;
use std::collections::HashMap;

/// JSON values up to this size live in their group's attributes, larger ones in a byte array.
const INLINE_JSON_BYTES_MAX: usize = 64 * 1024;
/// Item names are one path segment of plain characters.
const ITEM_NAME_BYTES_MAX: usize = 200;
const CONSOLIDATED_LEAVES_MAX: usize = 1_000;

/// A named part of a checkpoint, to save.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Item {
    /// A pytree of leaves.
    Tree(Tree<Leaf>),
    /// A single array.
    Array(Leaf),
    /// A JSON value.
    Json(Value),
    /// Bytes.
    Bytes(Bytes),
    /// Files: a tokenizer, a configuration, the state of a data iterator, a source snapshot.
    Opaque(Opaque),
}

/// Where several writers cut each leaf of an item, by its node path.
pub(crate) type Cuts = HashMap<String, Vec<Option<u64>>>;

/// What an item is planned for.
#[derive(Clone, Copy)]
struct Setting<'a> {
    place: &'a Place,
    options: &'a SaveOptions,
    /// Where the leaves are cut, if several write the item.
    cuts: Option<&'a Cuts>,
}

/// An item ready to be written.
pub(crate) struct ItemPlan {
    name: String,
    kind: ItemKind,
    index: Index,
    leaves: Vec<LeafPlan>,
    documents: Vec<(String, Bytes)>,
    inline_bytes: u64,
    handler: Option<String>,
    metadata: Value,
    pub(crate) notes: Vec<String>,
}

/// Checks that an item's name is one plain node name.
pub(crate) fn check_item_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let good = !name.is_empty()
        && name.len() <= ITEM_NAME_BYTES_MAX
        && name.bytes().all(plain)
        && !name.starts_with("__")
        && !name.ends_with('.')
        && !matches!(name, "_milepost" | "zarr.json");
    if good {
        return Ok(());
    }
    Err(Error::invalid("an item's name is not a plain word")
        .with("item", name)
        .hint("use letters, digits, `.`, `_`, `-`"))
}

impl ItemPlan {
    /// Plans an item that will lie below `place`.
    ///
    /// # Errors
    /// `Invalid` names the leaf or the two keys that cannot be stored.
    pub(crate) fn new(
        name: &str,
        item: &Item,
        place: &Place,
        options: &SaveOptions,
    ) -> Result<Self> {
        Self::planned(name, item, Setting { place, options, cuts: None })
    }

    /// Plans an item that several write, whose leaves are cut so that no shard has two writers.
    ///
    /// # Errors
    /// As [`ItemPlan::new`].
    pub(crate) fn shared(
        name: &str,
        item: &Item,
        place: &Place,
        (options, cuts): (&SaveOptions, &Cuts),
    ) -> Result<Self> {
        Self::planned(name, item, Setting { place, options, cuts: Some(cuts) })
    }

    fn planned(name: &str, item: &Item, setting: Setting<'_>) -> Result<Self> {
        check_item_name(name)?;
        let planned = match item {
            Item::Tree(tree) => Self::tree(name, ItemKind::Tree, tree, setting),
            Item::Array(leaf) => {
                Self::tree(name, ItemKind::Array, &Tree::leaf(leaf.clone()), setting)
            }
            Item::Bytes(bytes) => {
                let tree = Tree::leaf(Leaf::bytes(bytes.clone()));
                Self::tree(name, ItemKind::Bytes, &tree, setting)
            }
            Item::Json(value) => Self::json(name, value, setting),
            Item::Opaque(opaque) => Self::opaque(name, opaque, setting),
        };
        planned.map_err(|e| e.with("item", name))
    }

    fn json(name: &str, value: &Value, setting: Setting<'_>) -> Result<Self> {
        let text = serde_json::to_vec(value)
            .map_err(|e| Error::invalid("a value is no JSON").because(e))?;
        if text.len() > INLINE_JSON_BYTES_MAX {
            let tree = Tree::leaf(Leaf::bytes(text));
            return Self::tree(name, ItemKind::Json, &tree, setting);
        }
        let document = Bytes::from(json_document(value)?);
        let group = Group { path: String::new(), document: document_object(&document) };
        Ok(Self {
            name: name.to_owned(),
            kind: ItemKind::Json,
            index: Index {
                root: index::Node::None,
                leaves: Vec::new(),
                groups: vec![group],
                foreign_metadata: Vec::new(),
            },
            leaves: Vec::new(),
            documents: vec![(DOCUMENT.to_owned(), document)],
            inline_bytes: text.len() as u64,
            handler: None,
            metadata: Value::Null,
            notes: Vec::new(),
        })
    }

    fn opaque(name: &str, opaque: &Opaque, setting: Setting<'_>) -> Result<Self> {
        let mut planned = Self::tree(name, ItemKind::Opaque, &opaque.tree()?, setting)?;
        planned.handler = opaque.handler().map(str::to_owned);
        planned.metadata = opaque.metadata().clone();
        Ok(planned)
    }

    fn tree(name: &str, kind: ItemKind, tree: &Tree<Leaf>, setting: Setting<'_>) -> Result<Self> {
        let Setting { place, options, .. } = setting;
        let layout = lay_out(tree)?;
        let notes = case_notes(name, &layout, place)?;
        let dimensions = dimension_names(name, &layout.leaves);
        let keys = group_keys(&layout);
        let mut planned = Self {
            name: name.to_owned(),
            kind,
            index: Index {
                root: to_node(tree)?,
                leaves: Vec::with_capacity(layout.leaves.len()),
                groups: Vec::with_capacity(layout.groups.len()),
                foreign_metadata: Vec::new(),
            },
            leaves: Vec::with_capacity(layout.leaves.len()),
            documents: Vec::with_capacity(layout.leaves.len() + layout.groups.len()),
            inline_bytes: 0,
            handler: None,
            metadata: Value::Null,
            notes,
        };
        let consolidate = options.consolidate == Consolidate::Auto
            && layout.leaves.len() <= CONSOLIDATED_LEAVES_MAX
            && layout.leaves.iter().all(|l| options.portable || l.leaf.data_type.is_core());
        let mut members = Vec::new();
        for (node, dimensions) in layout.leaves.iter().zip(dimensions) {
            let keys = node_keys(&keys, &node.path, node.key);
            let document = planned
                .leaf((node, &keys), dimensions, setting)
                .map_err(|e| e.with("leaf", &node.path))?;
            if consolidate && !node.path.is_empty() {
                members.push((node.path.clone(), document));
            }
        }
        planned.groups(&layout, &keys, consolidate.then_some(members));
        Ok(planned)
    }

    fn leaf(
        &mut self,
        (node, keys): (&LeafNode<'_, Leaf>, &[Key]),
        dimension_names: Vec<Option<String>>,
        setting: Setting<'_>,
    ) -> Result<Value> {
        let (leaf, options) = (node.leaf, setting.options);
        let stored = if options.portable { leaf.data_type.portable() } else { leaf.data_type };
        let stored_as = (stored != leaf.data_type).then_some(stored);
        let item_bytes = stored.size_bytes();
        let shard_bytes = setting.place.store().capabilities().shard_bytes;
        let mut plan_options = options.plan_options(shard_bytes);
        leaf.layout.refine(&mut plan_options);
        let plan = match (setting.cuts.map(|cuts| cuts.get(&node.path)), &leaf.held) {
            (Some(Some(cuts)), _) => divide(&leaf.shape, cuts, item_bytes, &plan_options)?,
            (Some(None), _) => return Err(Error::internal("a leaf has no place in the plan")),
            (None, None) => plan(&leaf.shape, item_bytes, &plan_options)?,
            (None, Some(_)) => {
                return Err(Error::invalid("a leaf of which others hold the rest")
                    .hint("save it together with them: `CheckpointWriter::together`"));
            }
        };
        let mut document = document(Stored {
            data_type: stored,
            shape: &leaf.shape,
            chunk_shape: &plan.chunk_shape,
            shard_shape: plan.shard_shape.as_deref(),
            compressor: leaf.layout.compressor.unwrap_or(options.compressor),
            transpose: leaf.layout.transpose.clone(),
        });
        document.dimension_names = Some(dimension_names);
        document.attributes = index::leaf_attributes(keys, &leaf.kind, leaf.data_type, stored_as);
        let json = document.to_json(); // also what the root consolidates
        let bytes = Bytes::from(document_bytes(&json));
        self.index.leaves.push(index::Leaf {
            path: node.path.clone(),
            kind: leaf.kind.clone(),
            data_type: leaf.data_type,
            stored_as,
            shape: leaf.shape.clone(),
            chunk_shape: plan.chunk_shape.clone(),
            shard_shape: plan.shard_shape.clone(),
            codec: codec_text(&document),
            name: leaf.foreign_name.clone(),
            document: document_object(&bytes),
            objects: Vec::new(),
        });
        self.leaves.push(LeafPlan::new(&node.path, leaf, &plan, document)?);
        self.documents.push((join(&node.path, DOCUMENT), bytes));
        Ok(json)
    }

    /// Writes down the groups, parents after children so that the root's document can carry them all.
    fn groups(
        &mut self,
        layout: &Layout<'_, Leaf>,
        keys: &HashMap<&str, Vec<Key>>,
        mut members: Option<Vec<(String, Value)>>,
    ) {
        let mut groups = Vec::with_capacity(layout.groups.len());
        for node in layout.groups.iter().rev() {
            let marks = node.children.iter().map(|(key, child)| (key.clone(), mark(child)));
            let marks: Vec<_> = marks.collect();
            let path = keys.get(node.path.as_str()).map(Vec::as_slice).unwrap_or_default();
            let attributes = index::group_attributes(path, node.container, &marks);
            let mut document = GroupDocument { attributes, consolidated: None };
            if node.path.is_empty() {
                document.consolidated = members.take();
            }
            let document = document.into_json();
            let bytes = Bytes::from(document_bytes(&document));
            if let (Some(members), false) = (&mut members, node.path.is_empty()) {
                members.push((node.path.clone(), document));
            }
            groups.push(Group { path: node.path.clone(), document: document_object(&bytes) });
            self.documents.push((join(&node.path, DOCUMENT), bytes));
        }
        groups.reverse();
        self.index.groups = groups;
    }

    /// Carries free-form strings of a foreign format in the index.
    pub(crate) fn set_foreign_metadata(&mut self, metadata: Vec<(String, String)>) {
        self.index.foreign_metadata = metadata;
    }

    pub(crate) fn foreign_metadata(&self) -> &[(String, String)] {
        &self.index.foreign_metadata
    }

    /// Names what made the item.
    pub(crate) fn set_handler(&mut self, handler: &str) {
        self.handler = Some(handler.to_owned());
    }

    /// Sets the user's metadata of the item, which the record carries.
    pub(crate) fn set_metadata(&mut self, metadata: Value) {
        self.metadata = metadata;
    }

    /// Returns the entry of the item as far as it is known before anything is written.
    pub(crate) fn entry(&self) -> ItemEntry {
        ItemEntry {
            name: self.name.clone(),
            kind: self.kind,
            leaves: self.leaves.len() as u64,
            data_bytes: self.data_bytes(),
            stored_bytes: 0,
            objects: 0,
            index_bytes: 0,
            index_json_bytes: 0,
            index_hash: 0,
            handler: self.handler.clone(),
            metadata: match &self.metadata {
                Value::Object(members) => Value::Object(tagged::object(members.clone())),
                value => value.clone(),
            },
        }
    }

    /// Returns leaves, chunks and decoded bytes, for progress.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        let chunks = self.leaves.iter().map(LeafPlan::chunks).sum();
        (self.leaves.len() as u64, chunks, self.data_bytes())
    }

    fn data_bytes(&self) -> u64 {
        let leaf = |l: &index::Leaf| crate::array::leaf_bytes(l.data_type, &l.shape).unwrap_or(0);
        self.inline_bytes + self.index.leaves.iter().map(leaf).sum::<u64>()
    }

    /// Returns the plans of all objects: documents first, then each leaf's in C order.
    pub(crate) fn objects(&self, place: &Place) -> Vec<ObjectPlan> {
        let root = place.join(&self.name);
        let document = |(key, bytes): &(String, Bytes)| ObjectPlan {
            key: root.key(key),
            body: Body::Ready(bytes.clone()),
        };
        let mut objects: Vec<ObjectPlan> = self.documents.iter().map(document).collect();
        for (plan, leaf) in self.leaves.iter().zip(&self.index.leaves) {
            objects.extend(plan.objects(|key| root.key(&join(&leaf.path, key))));
        }
        objects
    }

    /// Returns the documents of all nodes by key: what every writer of the item must have the same.
    pub(crate) fn documents(&self) -> &[(String, Bytes)] {
        &self.documents
    }

    /// Returns how many objects a leaf is stored in, for each leaf in order.
    pub(crate) fn stored_objects(&self) -> Vec<usize> {
        self.leaves.iter().map(LeafPlan::stored_objects).collect()
    }

    /// Returns the plans of the objects that one of several writes: documents by number, boxes by leaf.
    ///
    /// Documents come first; each object of a leaf with the leaf's number and its own.
    pub(crate) fn objects_of(
        &self,
        place: &Place,
        (documents, boxes): (&[usize], &[Vec<Subset>]),
    ) -> (Vec<ObjectPlan>, Vec<(usize, u64)>) {
        let root = place.join(&self.name);
        let ready = |number: &usize| {
            let (key, bytes) = &self.documents[*number];
            ObjectPlan { key: root.key(key), body: Body::Ready(bytes.clone()) }
        };
        let mut objects: Vec<ObjectPlan> = documents.iter().map(ready).collect();
        let mut numbers = Vec::new();
        let leaves = self.leaves.iter().zip(&self.index.leaves).zip(boxes).enumerate();
        for (leaf, ((plan, entry), boxes)) in leaves {
            for (number, object) in plan.objects_in(boxes, |key| root.key(&join(&entry.path, key)))
            {
                numbers.push((leaf, number));
                objects.push(object);
            }
        }
        (objects, numbers)
    }

    /// Lets go of the data of the leaves that are not `wanted`, by number.
    pub(crate) fn release(&mut self, wanted: impl Fn(usize) -> bool) {
        for (number, leaf) in self.leaves.iter_mut().enumerate() {
            if !wanted(number) {
                leaf.release();
            }
        }
    }

    /// Returns size and checksums of objects of leaf `number`.
    pub(crate) fn stored(&self, leaf: usize, written: &[Written]) -> Vec<Object> {
        self.leaves[leaf].stored(written)
    }

    /// Completes the index with the objects of every leaf, whoever wrote them.
    pub(crate) fn complete_shared(mut self, objects: Vec<Vec<Object>>) -> (Index, ItemEntry) {
        let mut entry = self.entry();
        let documents = self.documents.iter().map(|(_, bytes)| bytes.len() as u64);
        entry.stored_bytes = documents.sum();
        entry.objects = self.documents.len() as u64;
        assert_eq!(objects.len(), self.leaves.len(), "every leaf has its objects");
        for (leaf, objects) in self.index.leaves.iter_mut().zip(objects) {
            entry.stored_bytes += objects.iter().map(|object| object.bytes).sum::<u64>();
            entry.objects += objects.len() as u64;
            leaf.objects = objects;
        }
        (self.index, entry)
    }

    /// Completes the index with what was written; `written` is in the order of [`ItemPlan::objects`].
    pub(crate) fn complete(mut self, written: &[Written]) -> (Index, ItemEntry) {
        let (_, mut chunks) = written.split_at(self.documents.len());
        let mut objects = 0;
        for (plan, leaf) in self.leaves.iter().zip(&mut self.index.leaves) {
            let (mine, rest) = chunks.split_at(plan.stored_objects());
            chunks = rest;
            leaf.objects = plan.stored(mine);
            objects += mine.len() as u64;
        }
        assert!(chunks.is_empty(), "every written object belongs to a leaf");
        let mut entry = self.entry();
        entry.stored_bytes = written.iter().map(|w| w.bytes).sum();
        entry.objects = objects + self.documents.len() as u64;
        (self.index, entry)
    }
}

/// Returns the key path of every group by its node path.
fn group_keys<'a>(layout: &'a Layout<'_, Leaf>) -> HashMap<&'a str, Vec<Key>> {
    let mut keys = HashMap::new();
    for node in &layout.groups {
        let path = node_keys(&keys, &node.path, node.key); // parents come first
        keys.insert(node.path.as_str(), path);
    }
    keys
}

/// Returns the key path of a node: its group's and its own key.
fn node_keys(groups: &HashMap<&str, Vec<Key>>, path: &str, key: Option<&Key>) -> Vec<Key> {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let above = if key.is_some() { groups.get(parent).cloned() } else { None };
    above.unwrap_or_default().into_iter().chain(key.cloned()).collect()
}

fn mark(child: &Tree<Leaf>) -> ChildMark {
    match child {
        Tree::None => ChildMark::None,
        Tree::Branch { container, children } if children.is_empty() => {
            ChildMark::Empty(container.clone())
        }
        _ => ChildMark::Node,
    }
}

fn document_object(bytes: &[u8]) -> Object {
    Object { bytes: bytes.len() as u64, crc32c: crc32c(bytes), content: None }
}

fn case_notes(item: &str, layout: &Layout<'_, Leaf>, place: &Place) -> Result<Vec<String>> {
    let sensitive = place.store().capabilities().case_sensitive;
    if let (false, Some((a, b))) = (sensitive, layout.case_collisions.first()) {
        return Err(Error::invalid("two keys differ only in case, which the store ignores")
            .with("leaf", a)
            .with("other", b));
    }
    let notes = layout.case_collisions.iter().take(16);
    Ok(notes.map(|(a, b)| format!("{item}: `{a}` and `{b}` differ only in case")).collect())
}
