//! The index of an item, ready to be asked: find a leaf, a subtree, what is near a name.
//!
//! [`to_node`] turns a tree into the index's structure, with the leaves numbered in tree order;
//! [`TreeIndex::new`] turns a parsed index back and checks what a parser of plain data cannot: that every leaf is
//! there once and in order, that keys fit their containers, and that each leaf's path is the one its keys
//! escape to. So a path of the index can be joined to a store key without another look.
//!
//! Positions (`usize`) stand for leaves: `tree.leaves()` yields key path and position, `leaf(position)` the rest.
//!
//! **Invariant:** all leaves below one container are neighbours in `leaves`.

use super::{
    layout::lay_out,
    leaf::LeafSpec,
    nearest::{hint, nearest},
    path::{DEPTH_MAX, segment},
    select::Select,
    tree::Tree,
};
use crate::error::{Error, ErrorKind, Result};
use milepost_formats::index::{Index, Leaf, Node};
use std::{ops::Range, sync::OnceLock};

/// Turns a tree into the structure of an index; leaves are numbered in tree order.
///
/// # Errors
/// `Invalid` where the tree is not valid or has more than 2³² leaves.
pub(crate) fn to_node<L>(tree: &Tree<L>) -> Result<Node> {
    fn walk<L>(tree: &Tree<L>, next: &mut u32) -> Result<Node> {
        Ok(match tree {
            Tree::Leaf(_) => {
                let position = *next;
                *next = next
                    .checked_add(1)
                    .ok_or_else(|| Error::invalid("a tree has more than 2^32 leaves"))?;
                Node::Leaf(position)
            }
            Tree::None => Node::None,
            Tree::Branch { container, children } => Node::Branch {
                container: container.clone(),
                children: children
                    .iter()
                    .map(|(key, child)| Ok((key.clone(), walk(child, next)?)))
                    .collect::<Result<_>>()?,
            },
        })
    }
    tree.validate()?;
    walk(tree, &mut 0)
}

/// Turns the structure of an index into a tree of leaf positions.
fn from_node(node: &Node, next: &mut usize, depth: usize) -> Result<Tree<usize>> {
    if depth > DEPTH_MAX {
        return Err(Error::corrupt(format!("the index is deeper than {DEPTH_MAX}")));
    }
    Ok(match node {
        Node::Leaf(position) if *position as usize == *next => {
            *next += 1;
            Tree::Leaf(*next - 1)
        }
        Node::Leaf(position) => {
            return Err(Error::corrupt("the index does not number its leaves in order")
                .with("position", position)
                .with("expected", *next));
        }
        Node::None => Tree::None,
        Node::Branch { container, children } => {
            let mut mapped = Vec::with_capacity(children.len());
            for (key, child) in children {
                mapped.push((key.clone(), from_node(child, next, depth + 1)?));
            }
            Tree::Branch { container: container.clone(), children: mapped }
        }
    })
}

/// A checked index with its tree and a lookup by node path.
#[derive(Debug)]
pub(crate) struct TreeIndex {
    index: Index,
    tree: Tree<usize>,
    /// Leaf positions sorted by path, made when first asked: a whole restore needs none.
    sorted: OnceLock<Vec<usize>>,
}

impl TreeIndex {
    /// Checks a parsed index.
    ///
    /// # Errors
    /// `Corrupt` where structure, leaves and paths do not agree.
    pub(crate) fn new(index: Index) -> Result<Self> {
        let mut count = 0;
        let tree = from_node(&index.root, &mut count, 0)?;
        if count != index.leaves.len() {
            return Err(Error::corrupt("the index lists other leaves than its structure has")
                .with("listed", index.leaves.len())
                .with("leaves", count));
        }
        let layout = lay_out(&tree).map_err(|e| match e.kind() {
            ErrorKind::Invalid => Error::corrupt("the index holds an impossible tree").because(e),
            _ => e,
        })?;
        for (node, leaf) in layout.leaves.iter().zip(&index.leaves) {
            if node.path != leaf.path {
                return Err(Error::corrupt("a leaf's path is not that of its keys")
                    .with("leaf", &leaf.path)
                    .with("expected", &node.path));
            }
        }
        drop(layout);
        Ok(Self { index, tree, sorted: OnceLock::new() })
    }

    /// Returns the index as parsed.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Returns the tree of leaf positions.
    pub(crate) fn tree(&self) -> &Tree<usize> {
        &self.tree
    }

    /// Returns the leaves in tree order.
    pub(crate) fn leaves(&self) -> &[Leaf] {
        &self.index.leaves
    }

    /// Returns what each leaf is, in the item's structure.
    pub(crate) fn specs(&self) -> Tree<LeafSpec> {
        self.tree.as_ref().map(|position| LeafSpec::from(&self.index.leaves[*position]))
    }

    /// Returns the position of the leaf at a node path.
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        let sorted = self.sorted();
        let at = sorted.binary_search_by(|i| self.path(*i).cmp(path)).ok()?;
        Some(sorted[at])
    }

    /// Returns the position of the leaf at a node path, or says what is there or near.
    ///
    /// # Errors
    /// `NotFound` with the nearest paths; `Invalid` where a container is there.
    pub(crate) fn lookup(&self, path: &str) -> Result<usize> {
        if let Some(position) = self.find(path) {
            return Ok(position);
        }
        let (error, near) = if self.subtree(path).is_some() {
            let below = self.below(path).take(3).map(|i| self.path(i)).collect::<Vec<_>>();
            (Error::invalid("the key path names no leaf but a container or None"), below)
        } else {
            (Error::not_found("no such key path"), self.nearest(path, 3))
        };
        let error = error.with("leaf", path);
        Err(match hint(&near) {
            Some(text) => error.hint(text),
            None => error.hint("`milepost tree` prints the key paths"),
        })
    }

    /// Returns the positions of the leaves at or below a node path, in tree order; all for the root's.
    pub(crate) fn below(&self, path: &str) -> Range<usize> {
        if path.is_empty() {
            return 0..self.index.leaves.len();
        }
        if let Some(position) = self.find(path) {
            return position..position + 1;
        }
        let sorted = self.sorted();
        let prefix = format!("{path}/");
        let from = sorted.partition_point(|i| self.path(*i) < prefix.as_str());
        let neighbours =
            || sorted[from..].iter().take_while(|i| self.path(**i).starts_with(&prefix));
        let start = neighbours().min().copied().unwrap_or(0);
        start..start + neighbours().count()
    }

    /// Returns the subtree at a node path, be it a leaf, a container or `None`.
    pub(crate) fn subtree(&self, path: &str) -> Option<&Tree<usize>> {
        if path.is_empty() {
            return Some(&self.tree);
        }
        path.split('/').try_fold(&self.tree, |at, name| match at {
            Tree::Branch { children, .. } => {
                children.iter().find(|(key, _)| segment(key) == name).map(|(_, child)| child)
            }
            _ => None,
        })
    }

    /// Returns the subtree that `select` names, of leaf positions.
    ///
    /// # Errors
    /// `NotFound` where a pattern matches nothing, `Invalid` where nothing is left.
    pub(crate) fn select(&self, select: &Select) -> Result<Tree<usize>> {
        self.tree.select(select)
    }

    /// Returns up to `n` node paths near `path`.
    pub(crate) fn nearest(&self, path: &str, n: usize) -> Vec<&str> {
        let leaves = self.index.leaves.iter().map(|leaf| leaf.path.as_str());
        let groups = self.index.groups.iter().map(|group| group.path.as_str());
        nearest(path, leaves.chain(groups), n)
    }

    fn path(&self, position: usize) -> &str {
        &self.index.leaves[position].path
    }

    fn sorted(&self) -> &[usize] {
        self.sorted.get_or_init(|| {
            let mut sorted: Vec<_> = (0..self.index.leaves.len()).collect();
            sorted.sort_unstable_by(|a, b| self.path(*a).cmp(self.path(*b)));
            sorted
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
