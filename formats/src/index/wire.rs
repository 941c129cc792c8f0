//! The index as JSON: the shape of spec/index.md, and the way in and out of it.

use super::{Container, DEPTH_MAX, Group, Index, Key, Leaf, LeafKind, Node, Object, check::check};
use crate::{DataType, FormatError, Result, version};
use serde::{
    Deserialize, Serialize,
    de::{self, Deserializer, MapAccess, Visitor},
    ser::{SerializeMap, Serializer},
};
use std::fmt;

// Members in alphabetical order: serde writes them as they stand here.
#[derive(Serialize, Deserialize)]
struct WireIndex {
    branches: Vec<WireBranch>,
    #[serde(default)]
    foreign_metadata: Vec<(String, String)>,
    groups: Vec<WireGroup>,
    leaves: Vec<WireLeaf>,
    #[serde(default)]
    requires: Vec<String>,
    root: Slot,
    version: [u32; 2],
}

#[derive(Serialize, Deserialize)]
struct WireBranch {
    children: Vec<(Key, Slot)>,
    kind: String,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    type_name: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireGroup {
    document: WireObject,
    path: String,
}

#[derive(Serialize, Deserialize)]
struct WireLeaf {
    chunk_shape: Vec<u64>,
    codec: String,
    data_type: String,
    document: WireObject,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    implementation: Option<String>,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    objects: Vec<WireObject>,
    path: String,
    shape: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard_shape: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored_as: Option<String>,
}

/// `[bytes, crc32c, "32 hex digits" or null]`.
#[derive(Serialize, Deserialize)]
struct WireObject(u64, u32, Option<Hex128>);

/// What a place in the tree holds: a leaf's number, null, or `{"branch": n}`.
#[derive(Clone, Copy)]
enum Slot {
    Leaf(u32),
    None,
    Branch(u32),
}

/// A hash as 32 lower-case hexadecimal digits, most significant first.
#[derive(Clone, Copy)]
struct Hex128(u128);

impl Serialize for Hex128 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::hex::to_text(self.0))
    }
}

impl<'de> Deserialize<'de> for Hex128 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HexVisitor;
        impl Visitor<'_> for HexVisitor {
            type Value = Hex128;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("32 lower-case hexadecimal digits")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Hex128, E> {
                let hash = crate::hex::parse(v);
                hash.map(Hex128).ok_or_else(|| E::invalid_value(de::Unexpected::Str(v), &self))
            }
        }
        deserializer.deserialize_str(HexVisitor)
    }
}

impl Serialize for Slot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Leaf(n) => serializer.serialize_u32(*n),
            Self::None => serializer.serialize_unit(),
            Self::Branch(n) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("branch", n)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Slot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SlotVisitor;
        impl<'de> Visitor<'de> for SlotVisitor {
            type Value = Slot;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a leaf's number, null or {\"branch\": n}")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Slot, E> {
                let leaf = u32::try_from(v).map(Slot::Leaf);
                leaf.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(v), &self))
            }
            fn visit_unit<E>(self) -> Result<Slot, E> {
                Ok(Slot::None)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Slot, A::Error> {
                if map.next_key::<String>()?.as_deref() != Some("branch") {
                    return Err(de::Error::custom("a node without `branch`"));
                }
                let slot = Slot::Branch(map.next_value()?);
                match map.next_key::<de::IgnoredAny>()? {
                    None => Ok(slot),
                    Some(_) => Err(de::Error::custom("a node with more than one member")),
                }
            }
        }
        deserializer.deserialize_any(SlotVisitor)
    }
}

impl From<&Object> for WireObject {
    fn from(object: &Object) -> Self {
        Self(object.bytes, object.crc32c, object.content.map(Hex128))
    }
}

impl From<WireObject> for Object {
    fn from(WireObject(bytes, crc32c, content): WireObject) -> Self {
        Self { bytes, crc32c, content: content.map(|hex| hex.0) }
    }
}

impl From<&Leaf> for WireLeaf {
    fn from(leaf: &Leaf) -> Self {
        let (kind, implementation) = leaf.kind.to_parts();
        Self {
            chunk_shape: leaf.chunk_shape.clone(),
            codec: leaf.codec.clone(),
            data_type: leaf.data_type.to_string(),
            document: (&leaf.document).into(),
            implementation: implementation.map(str::to_owned),
            kind: kind.to_owned(),
            name: leaf.name.clone(),
            objects: leaf.objects.iter().map(WireObject::from).collect(),
            path: leaf.path.clone(),
            shape: leaf.shape.clone(),
            shard_shape: leaf.shard_shape.clone(),
            stored_as: leaf.stored_as.map(|t| t.to_string()),
        }
    }
}

impl TryFrom<WireLeaf> for Leaf {
    type Error = FormatError;

    fn try_from(wire: WireLeaf) -> Result<Self> {
        Ok(Self {
            kind: LeafKind::from_parts(&wire.kind, wire.implementation)?,
            path: wire.path,
            data_type: data_type(&wire.data_type)?,
            stored_as: wire.stored_as.as_deref().map(data_type).transpose()?,
            shape: wire.shape,
            chunk_shape: wire.chunk_shape,
            shard_shape: wire.shard_shape,
            codec: wire.codec,
            name: wire.name,
            document: wire.document.into(),
            objects: wire.objects.into_iter().map(Object::from).collect(),
        })
    }
}

fn data_type(name: &str) -> Result<DataType> {
    DataType::from_name(name).ok_or_else(|| {
        let name = crate::json::shorten(name);
        FormatError::unsupported(format!("unknown data type. data_type=`{name}`"))
    })
}

impl LeafKind {
    pub(super) fn to_parts(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Array => ("array", None),
            Self::Int => ("int", None),
            Self::Float => ("float", None),
            Self::Bool => ("bool", None),
            Self::Complex => ("complex", None),
            Self::Str => ("str", None),
            Self::Bytes => ("bytes", None),
            Self::PrngKey { implementation } => ("prng_key", Some(implementation)),
        }
    }

    pub(super) fn from_parts(kind: &str, implementation: Option<String>) -> Result<Self> {
        Ok(match (kind, implementation) {
            ("array", _) => Self::Array,
            ("int", _) => Self::Int,
            ("float", _) => Self::Float,
            ("bool", _) => Self::Bool,
            ("complex", _) => Self::Complex,
            ("str", _) => Self::Str,
            ("bytes", _) => Self::Bytes,
            ("prng_key", Some(implementation)) => Self::PrngKey { implementation },
            ("prng_key", None) => {
                return Err(FormatError::corrupt(
                    "a leaf of kind `prng_key` lacks `implementation`",
                ));
            }
            (other, _) => {
                let kind = crate::json::shorten(other);
                return Err(FormatError::unsupported(format!("unknown leaf kind. kind=`{kind}`")));
            }
        })
    }
}

impl Index {
    /// Returns the canonical JSON.
    ///
    /// # Errors
    /// `Invalid` where the index is not consistent (see the module's invariant) or deeper than 512 keys.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        check(self).map_err(FormatError::invalid)?;
        let mut branches = Vec::new();
        let root = flatten(&self.root, &mut branches).map_err(FormatError::invalid)?;
        let wire = WireIndex {
            branches,
            foreign_metadata: self.foreign_metadata.clone(),
            groups: self
                .groups
                .iter()
                .map(|g| WireGroup { document: (&g.document).into(), path: g.path.clone() })
                .collect(),
            leaves: self.leaves.iter().map(WireLeaf::from).collect(),
            requires: Vec::new(),
            root,
            version: version::CURRENT,
        };
        serde_json::to_vec(&wire).map_err(|e| FormatError::invalid(e.to_string()))
    }

    /// Parses the JSON of an index and checks that it is consistent.
    ///
    /// # Errors
    /// `Corrupt`, or `Unsupported` for an unknown major version, requirement, container or leaf kind.
    pub fn parse_json(bytes: &[u8]) -> Result<Self> {
        version::check(bytes, "the index")?;
        let wire: WireIndex = serde_json::from_slice(bytes)
            .map_err(|e| FormatError::corrupt(format!("the index is damaged: {e}")))?;
        let root = unflatten(wire.root, wire.branches)?;
        let index = Self {
            root,
            leaves: wire.leaves.into_iter().map(Leaf::try_from).collect::<Result<_>>()?,
            groups: wire
                .groups
                .into_iter()
                .map(|g| Group { path: g.path, document: g.document.into() })
                .collect(),
            foreign_metadata: wire.foreign_metadata,
        };
        check(&index).map_err(|e| FormatError::corrupt(format!("the index is damaged: {e}")))?;
        Ok(index)
    }
}

/// Appends the branches below `node`, parents before children and siblings in order.
///
/// Recurses as deep as the tree, which [`check`] has limited.
fn flatten(node: &Node, branches: &mut Vec<WireBranch>) -> Result<Slot, &'static str> {
    let (container, children) = match node {
        Node::Leaf(n) => return Ok(Slot::Leaf(*n)),
        Node::None => return Ok(Slot::None),
        Node::Branch { container, children } => (container, children),
    };
    let place = branches.len();
    branches.push(WireBranch {
        children: Vec::new(),
        kind: container.kind().to_owned(),
        type_name: container.type_name().map(str::to_owned),
    });
    let mut slots = Vec::with_capacity(children.len());
    for (key, child) in children {
        slots.push((key.clone(), flatten(child, branches)?));
    }
    if let Some(branch) = branches.get_mut(place) {
        branch.children = slots;
    }
    u32::try_from(place).map(Slot::Branch).map_err(|_| "the tree has 2^32 branches")
}

/// Builds the tree from its branches, children before parents.
fn unflatten(root: Slot, branches: Vec<WireBranch>) -> Result<Node> {
    check_shape(root, &branches)
        .map_err(|what| FormatError::corrupt(format!("the index is damaged: {what}")))?;
    let mut nodes: Vec<Option<Node>> = Vec::new();
    nodes.resize_with(branches.len(), || None);
    let take = |slot: Slot, nodes: &mut [Option<Node>]| match slot {
        Slot::Leaf(n) => Node::Leaf(n),
        Slot::None => Node::None,
        // There, as each branch is named once and by an earlier one.
        Slot::Branch(n) => nodes.get_mut(n as usize).and_then(Option::take).unwrap_or(Node::None),
    };
    for (i, branch) in branches.into_iter().enumerate().rev() {
        let container = Container::from_parts(&branch.kind, branch.type_name.as_deref())?;
        let children =
            branch.children.into_iter().map(|(key, slot)| (key, take(slot, &mut nodes))).collect();
        if let Some(node) = nodes.get_mut(i) {
            *node = Some(Node::Branch { container, children });
        }
    }
    Ok(take(root, &mut nodes))
}

/// Checks that the branches are one tree, parents first, and not too deep to be dropped.
fn check_shape(root: Slot, branches: &[WireBranch]) -> Result<(), String> {
    let mut depths = vec![None; branches.len()];
    match (root, depths.first_mut()) {
        (Slot::Branch(0), Some(depth)) => *depth = Some(0),
        (Slot::Leaf(_) | Slot::None, None) => return Ok(()),
        _ => return Err("the root is not branch 0".to_owned()),
    }
    for (i, branch) in branches.iter().enumerate() {
        let Some(depth) = depths.get(i).copied().flatten() else {
            return Err(format!("a branch has no parent before it. branch=`{i}`"));
        };
        for (_, slot) in &branch.children {
            let Slot::Branch(n) = slot else { continue };
            match depths.get_mut(*n as usize) {
                _ if depth == DEPTH_MAX => {
                    return Err(format!("the tree is deeper than {DEPTH_MAX} keys"));
                }
                Some(child) if child.is_none() && *n as usize > i => *child = Some(depth + 1),
                _ => return Err(format!("a branch is not a child of one parent. branch=`{n}`")),
            }
        }
    }
    Ok(())
}
