//! The index of an item: its containers, its leaves and every stored object with size and checksum.
//!
//! One request opens an item: the index is the only chunk of a uint8 array beside the item, so any Zarr
//! reader gets its JSON (spec/index.md). It says nothing that the item's own nodes do not say: keys,
//! containers and logical types are in their attributes too ([`leaf_attributes`], [`group_attributes`]),
//! and an index that is lost can be rebuilt.
//!
//! ```text
//! Index ──to_json──▶ canonical JSON ──zstd, crc32c──▶ _milepost/<item>/c.0        (to_chunk)
//!       ◀─parse_json─                ◀──────────────                              (parse_chunk)
//! ```
//!
//! The tree is written as a flat list of branches, parents first: JSON nests by a few levels however deep
//! the tree is, and neither parser nor writer needs a stack.
//!
//! **Invariant:** an index that parses is consistent: every leaf is in the tree exactly once, paths are
//! legal and distinct, shapes agree, and the objects are as many as the grid has cells.

mod attributes;
mod check;
mod chunk;
mod key;
#[cfg(test)]
mod tests;
mod wire;

pub use attributes::{
    ChildMark, GroupAttributes, LeafAttributes, group_attributes, leaf_attributes,
    parse_group_attributes, parse_leaf_attributes,
};
pub use check::{DEPTH_MAX, NODE_NAME_BYTES_MAX, NODE_PATH_BYTES_MAX, is_node_name, is_node_path};
pub use chunk::{INDEX_JSON_BYTES_MAX, IndexChunk, index_document, index_group_document};

use crate::DataType;

/// One step of a key path, with its type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A string key of a dict.
    Name(String),
    /// An integer key of a dict.
    Int(i64),
    /// A position in a list or tuple.
    Index(u64),
    /// A field of a named tuple, dataclass or registered node.
    Attr(String),
}

/// The kind of an inner node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Container {
    /// A mapping; keys are [`Key::Name`] or [`Key::Int`].
    Dict,
    /// A list; keys are [`Key::Index`] 0, 1, ….
    List,
    /// A tuple; keys are [`Key::Index`] 0, 1, ….
    Tuple,
    /// A named tuple; keys are [`Key::Attr`].
    NamedTuple {
        /// `module.QualName`, informative.
        type_name: String,
    },
    /// A dataclass or any registered node; keys are of any kind.
    Object {
        /// `module.QualName`, informative.
        type_name: String,
    },
}

/// The container structure of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Position of a leaf in [`Index::leaves`].
    Leaf(u32),
    /// Python's `None`.
    None,
    /// A container and its children in order; it may be empty.
    Branch {
        /// What it is.
        container: Container,
        /// What it holds.
        children: Vec<(Key, Node)>,
    },
}

/// What a leaf was in the caller's language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LeafKind {
    /// An array of any rank.
    #[default]
    Array,
    /// An integer scalar, 0-d.
    Int,
    /// A float scalar, 0-d.
    Float,
    /// A boolean scalar, 0-d.
    Bool,
    /// A complex scalar, 0-d.
    Complex,
    /// UTF-8 text, 1-d uint8.
    Str,
    /// Bytes, 1-d uint8.
    Bytes,
    /// The key data of a typed PRNG key.
    PrngKey {
        /// For example `threefry2x32`.
        implementation: String,
    },
}

/// Size and checksum of one stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The stored size in bytes.
    pub bytes: u64,
    /// crc32c of all its bytes.
    pub crc32c: u32,
    /// Content hash of the decoded bytes of a chunk object or shard; `None` for documents.
    pub content: Option<u128>,
}

/// One leaf of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The escaped node path relative to the item; empty where the item itself is the leaf.
    pub path: String,
    /// What it was.
    pub kind: LeafKind,
    /// The logical data type.
    pub data_type: DataType,
    /// The stored data type where it differs (`portable`).
    pub stored_as: Option<DataType>,
    /// The shape in elements.
    pub shape: Vec<u64>,
    /// The shape of a chunk.
    pub chunk_shape: Vec<u64>,
    /// The shape of a shard, where sharded.
    pub shard_shape: Option<Vec<u64>>,
    /// The codec in its short form (`none`, `zstd:3`, `blosc:lz4:5:shuffle`).
    pub codec: String,
    /// The name in the foreign file it was imported from, where the path does not give it back.
    pub name: Option<String>,
    /// The array's `zarr.json`.
    pub document: Object,
    /// The chunk objects or shards in C order of their grid.
    pub objects: Vec<Object>,
}

/// One group document of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The escaped node path relative to the item; empty for the item's root.
    pub path: String,
    /// The group's `zarr.json`.
    pub document: Object,
}

/// The pytree metadata index of one item.
///
/// An item that is not a tree has one, too: of an array or bytes the root is leaf 0 at the empty path, of
/// JSON it is [`Node::None`] with one group at the empty path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The container structure.
    pub root: Node,
    /// The leaves in tree order.
    pub leaves: Vec<Leaf>,
    /// The groups in tree order.
    pub groups: Vec<Group>,
    /// Free-form strings carried for a foreign format (safetensors' `__metadata__`), in order.
    pub foreign_metadata: Vec<(String, String)>,
}
