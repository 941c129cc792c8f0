//! What one of several writers says it holds: small, the same whoever asks, known before a byte moves.

use crate::{
    array::Leaf,
    checkpoint::items::Item,
    chunk::Subset,
    dtype::DataType,
    error::{Error, Result},
    tree::{Tree, lay_out},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a participant holds of the items of a step that several save together.
///
/// [`crate::ParticipantWriter`] makes its own from its items. A launcher that knows the global sharding can make everybody's
/// and so saves the exchange of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Declaration {
    pub(super) items: BTreeMap<String, DeclaredItem>,
}

/// What a participant holds of one item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeclaredItem {
    /// Whether its leaves may have several writers; else one writes all of it.
    pub(super) shared: bool,
    pub(super) bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) leaves: Vec<DeclaredLeaf>,
}

/// What a participant holds of one leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeclaredLeaf {
    pub(super) path: String,
    pub(super) data_type: DataType,
    pub(super) shape: Vec<u64>,
    /// Start and shape of each box; nothing where all of it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boxes: Option<Vec<(Vec<u64>, Vec<u64>)>>,
}

impl DeclaredLeaf {
    /// Returns the boxes, those without elements left out.
    pub(super) fn held(&self) -> Result<Vec<Subset>> {
        let boxes = match &self.boxes {
            None => vec![Subset::whole(&self.shape)?],
            Some(boxes) => boxes
                .iter()
                .map(|(start, shape)| Subset::new(start.clone(), shape.clone()))
                .collect::<Result<_>>()?,
        };
        Ok(boxes.into_iter().filter(|place| !place.is_empty()).collect())
    }
}

impl Declaration {
    /// Holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a leaf of a tree item and the boxes that are held of it; leaves come in the order of the tree.
    ///
    /// The path of an array item is empty.
    pub fn leaf(
        mut self,
        (item, path): (&str, &str),
        data_type: DataType,
        shape: &[u64],
        boxes: &[Subset],
    ) -> Self {
        let whole = |place: &Subset| place.shape() == shape;
        let boxes = (!boxes.iter().any(whole)).then(|| boxes.iter().map(corners).collect());
        let (path, shape) = (path.to_owned(), shape.to_vec());
        let leaf = DeclaredLeaf { path, data_type, shape, boxes };
        let declared = self.items.entry(item.to_owned()).or_default();
        declared.shared = true;
        declared.leaves.push(leaf);
        self
    }

    /// Adds an item that one participant writes: JSON, bytes, files.
    pub fn item(mut self, item: &str, bytes: u64) -> Self {
        let declared = DeclaredItem { shared: false, bytes, leaves: Vec::new() };
        self.items.insert(item.to_owned(), declared);
        self
    }

    /// Declares what the items hold.
    ///
    /// # Errors
    /// `Invalid` where a tree cannot be laid out.
    pub(super) fn of(items: &BTreeMap<String, Item>) -> Result<Self> {
        let mut declaration = Self::new();
        for (name, item) in items {
            let blame = |e: Error| e.with("item", name);
            declaration = match item {
                Item::Tree(tree) => declaration.tree(name, tree).map_err(blame)?,
                Item::Array(leaf) => declaration.own(name, "", leaf),
                Item::Json(value) => declaration.item(name, value.to_string().len() as u64),
                Item::Bytes(bytes) => declaration.item(name, bytes.len() as u64),
                Item::Opaque(files) => {
                    let tree = files.tree().map_err(blame)?;
                    let layout = lay_out(&tree).map_err(blame)?;
                    let bytes = layout.leaves.iter().map(|node| node.leaf.data_bytes()).sum();
                    declaration.item(name, bytes)
                }
            };
        }
        Ok(declaration)
    }

    fn tree(mut self, name: &str, tree: &Tree<Leaf>) -> Result<Self> {
        // An empty tree is an item, too.
        self.items.entry(name.to_owned()).or_default().shared = true;
        for node in lay_out(tree)?.leaves {
            self = self.own(name, &node.path, node.leaf);
        }
        Ok(self)
    }

    fn own(self, name: &str, path: &str, leaf: &Leaf) -> Self {
        let whole = Subset::whole(leaf.shape()).into_iter().collect();
        let boxes: Vec<Subset> = leaf.held.clone().unwrap_or(whole);
        self.leaf((name, path), leaf.data_type(), leaf.shape(), &boxes)
    }

    /// Writes it down for the others.
    ///
    /// # Errors
    /// Never for one that was made here.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let failed = |e| Error::internal("a declaration cannot be written as JSON").because(e);
        serde_json::to_vec(self).map_err(failed)
    }

    /// Reads what another wrote down.
    ///
    /// # Errors
    /// `Invalid` where it is no declaration.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let failed = |e| Error::invalid("a participant's declaration cannot be read").because(e);
        serde_json::from_slice(bytes).map_err(failed)
    }
}

fn corners(place: &Subset) -> (Vec<u64>, Vec<u64>) {
    (place.start().to_vec(), place.shape().to_vec())
}
