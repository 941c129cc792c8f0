//! Lays a tree out as Zarr nodes: which arrays and groups there are, and where.
//!
//! Each leaf is an array at its node path. Each container that holds something is a group; `None` and empty
//! containers have no node, their parent's group remembers them. Within one container two keys can mean one
//! node (the integer 1 and the name `1`): an error that names both. Names that differ only in case are
//! different nodes here and on most stores; they are collected, and the caller refuses them where the store
//! does not tell them apart.
//!
//! Names that look like chunk keys (`c`, `c.0.0`) need no care: chunks live below arrays, children below
//! groups, and no node is both.

use super::{
    path::{PATH_BYTES_MAX, describe, segment, too_long},
    tree::Tree,
};
use crate::error::{Error, Result};
use milepost_formats::index::{Container, Key};
use std::{borrow::Cow, collections::HashMap};

/// The nodes of a tree, in tree order.
#[derive(Debug)]
pub(crate) struct Layout<'a, L> {
    /// The arrays.
    pub(crate) leaves: Vec<LeafNode<'a, L>>,
    /// The groups, parents first. The root is one even where it is empty; not where it is a leaf or `None`.
    pub(crate) groups: Vec<GroupNode<'a, L>>,
    /// Pairs of node paths that differ only in case.
    pub(crate) case_collisions: Vec<(String, String)>,
}

/// A leaf and its node.
#[derive(Debug)]
pub(crate) struct LeafNode<'a, L> {
    /// The node path relative to the item; empty where the leaf is the item.
    pub(crate) path: String,
    /// The key in its container; `None` at the root.
    pub(crate) key: Option<&'a Key>,
    /// The leaf.
    pub(crate) leaf: &'a L,
}

/// A container and its node.
#[derive(Debug)]
pub(crate) struct GroupNode<'a, L> {
    /// The node path relative to the item; empty at the root.
    pub(crate) path: String,
    /// The key in its container; `None` at the root.
    pub(crate) key: Option<&'a Key>,
    /// What it is.
    pub(crate) container: &'a Container,
    /// What it holds.
    pub(crate) children: &'a [(Key, Tree<L>)],
}

/// Lays out a whole tree.
///
/// # Errors
/// `Invalid` where the tree is not valid, two keys are one node, or a path is longer than 900 bytes.
pub(crate) fn lay_out<L>(tree: &Tree<L>) -> Result<Layout<'_, L>> {
    tree.validate()?;
    let mut layout = Layout { leaves: Vec::new(), groups: Vec::new(), case_collisions: Vec::new() };
    layout.walk(tree, None, &mut String::new())?;
    Ok(layout)
}

impl<'a, L> Layout<'a, L> {
    fn walk(&mut self, tree: &'a Tree<L>, key: Option<&'a Key>, path: &mut String) -> Result<()> {
        let (container, children) = match tree {
            Tree::None => return Ok(()),
            Tree::Leaf(leaf) => {
                self.leaves.push(LeafNode { path: path.clone(), key, leaf });
                return Ok(());
            }
            Tree::Branch { container, children } => (container, children),
        };
        if key.is_none() || !children.is_empty() {
            self.groups.push(GroupNode { path: path.clone(), key, container, children });
        }
        self.check_siblings(children, path)?;
        let parent_bytes = path.len();
        for (key, child) in children {
            join(path, &segment(key));
            if path.len() > PATH_BYTES_MAX {
                return Err(too_long(path));
            }
            self.walk(child, Some(key), path)?;
            path.truncate(parent_bytes);
        }
        Ok(())
    }

    fn check_siblings(&mut self, children: &'a [(Key, Tree<L>)], path: &str) -> Result<()> {
        // Distinct positions are distinct nodes, so lists of any length cost nothing here.
        if children.len() < 2 || children.iter().all(|(key, _)| matches!(key, Key::Index(_))) {
            return Ok(());
        }
        let mut seen: HashMap<String, Vec<(Cow<'a, str>, &'a Key)>> =
            HashMap::with_capacity(children.len());
        for (key, _) in children {
            let name = segment(key);
            let alike = seen.entry(name.to_ascii_lowercase()).or_default();
            if let Some((_, other)) = alike.iter().find(|(n, _)| *n == name) {
                return Err(Error::invalid("two keys would be one node")
                    .with("key", describe(other))
                    .with("other", describe(key))
                    .with("node", joined(path, &name)));
            }
            if let Some((first, _)) = alike.first() {
                self.case_collisions.push((joined(path, first), joined(path, &name)));
            }
            alike.push((name, key));
        }
        Ok(())
    }
}

/// Appends a segment to a node path.
pub(crate) fn join(path: &mut String, segment: &str) {
    if !path.is_empty() {
        path.push('/');
    }
    path.push_str(segment);
}

fn joined(path: &str, segment: &str) -> String {
    let mut path = path.to_owned();
    join(&mut path, segment);
    path
}

#[cfg(test)]
mod tests {
    use super::{super::tree::tests::trees, *};
    use proptest::prelude::*;

    fn key_tree(keys: Vec<Key>) -> Tree<u32> {
        let container = Container::Object { type_name: "T".into() };
        let children = keys.into_iter().map(|key| (key, Tree::leaf(0))).collect();
        Tree::dict([("at", Tree::Branch { container, children })])
    }

    #[test]
    fn leaves_and_groups_get_their_paths_and_empty_containers_none() {
        let tree = Tree::dict([
            ("a b", Tree::list([Tree::leaf(1), Tree::None])),
            ("empty", Tree::dict::<&str>([])),
            ("", Tree::leaf(2)),
            ("nones", Tree::tuple([Tree::None])),
        ]);
        let layout = lay_out(&tree).unwrap();
        let leaves: Vec<_> = layout.leaves.iter().map(|l| (l.path.as_str(), *l.leaf)).collect();
        assert_eq!(leaves, [("a%20b/0", 1), ("%", 2)]);
        let groups: Vec<_> = layout.groups.iter().map(|g| g.path.as_str()).collect();
        assert_eq!(groups, ["", "a%20b", "nones"]);
        assert_eq!(layout.leaves[0].key, Some(&Key::Index(0)));
    }

    #[test]
    fn the_item_itself_may_be_a_leaf_an_empty_container_or_none() {
        let layout = |tree: &Tree<u32>| {
            let layout = lay_out(tree).unwrap();
            (layout.leaves.len(), layout.groups.len())
        };
        assert_eq!(layout(&Tree::leaf(1)), (1, 0));
        assert_eq!(layout(&Tree::list([])), (0, 1));
        assert_eq!(layout(&Tree::None), (0, 0));
    }

    #[test]
    fn two_keys_that_would_be_one_node_are_both_named() {
        let name = |s: &str| Key::Name(s.into());
        for (keys, first, other) in [
            (vec![Key::Int(1), name("1")], "integer 1", "name \"1\""),
            (vec![name("-1"), Key::Int(-1)], "name \"-1\"", "integer -1"),
            (vec![Key::Attr("a".into()), name("a")], "field \"a\"", "name \"a\""),
            (vec![Key::Index(0), Key::Int(0)], "position 0", "integer 0"),
        ] {
            let error = lay_out(&key_tree(keys)).map(|_| ()).unwrap_err();
            assert_eq!((error.get("key"), error.get("other")), (Some(first), Some(other)));
            assert!(error.get("node").unwrap().starts_with("at/"));
        }
        // At the item's root, too.
        let Tree::Branch { children, .. } = key_tree(vec![Key::Int(1), name("1")]) else {
            panic!()
        };
        assert!(lay_out(&children[0].1).is_err());
    }

    #[test]
    fn names_that_differ_only_in_case_are_noted_with_their_paths() {
        let tree = Tree::dict([("at", Tree::dict(["W", "x", "w"].map(|k| (k, Tree::leaf(0)))))]);
        let layout = lay_out(&tree).unwrap();
        assert_eq!(layout.case_collisions, [("at/W".to_owned(), "at/w".to_owned())]);
        // É and é are %C3%89 and %C3%A9: no collision on any store.
        let tree = Tree::dict(["É", "é"].map(|k| (k, Tree::leaf(0))));
        assert!(lay_out(&tree).unwrap().case_collisions.is_empty());
    }

    #[test]
    fn children_named_like_chunks_are_fine_because_a_group_has_no_chunks() {
        let tree = Tree::dict(["c", "c.0.0", "c.0"].map(|k| (k, Tree::leaf(0))));
        let layout = lay_out(&tree).unwrap();
        let paths: Vec<_> = layout.leaves.iter().map(|l| l.path.as_str()).collect();
        assert_eq!(paths, ["c", "c.0.0", "c.0"]);
    }

    #[test]
    fn a_path_over_900_bytes_is_refused_before_anything_is_written() {
        let deep =
            |n: usize| (0..n).fold(Tree::leaf(0), |tree, _| Tree::dict([("k".repeat(99), tree)]));
        lay_out(&deep(9)).unwrap();
        assert_eq!(lay_out(&deep(10)).map(|_| ()).unwrap_err().kind(), crate::ErrorKind::Invalid);
    }

    proptest! {
        #[test]
        fn paths_are_distinct_and_those_of_the_key_paths(tree in trees()) {
            let layout = lay_out(&tree).unwrap();
            let paths: Vec<_> = layout.leaves.iter().map(|l| l.path.clone()).collect();
            let want: Vec<_> = tree.leaves().map(|(path, _)| path.node_path().unwrap()).collect();
            prop_assert_eq!(&paths, &want);
            let distinct: std::collections::HashSet<_> =
                paths.iter().chain(layout.groups.iter().map(|g| &g.path)).collect();
            prop_assert_eq!(distinct.len(), paths.len() + layout.groups.len());
        }
    }
}
