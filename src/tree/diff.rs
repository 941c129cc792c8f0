//! Structural diff: what differs between a tree that is wanted and one that is there, all at once.
//!
//! Both trees are walked together. Children meet by node name, so that an integer key of a dict finds the name
//! it had in a file without integers; whether such a pair is a mismatch is the caller's rule. What meets is
//! a pair of leaves, for the caller to judge; what meets nobody is missing or unexpected, leaf by leaf.
//!
//! ```text
//!   want ─┐            ┌─ pairs       leaf meets leaf
//!         ├─ Meeting ──┼─ missing     only in want     (None and empty containers as leafless entries)
//!   have ─┘            ├─ unexpected  only in have
//!                      └─ mismatches  container meets leaf, or another container, or another key
//! ```
//!
//! **Invariant:** each leaf of either tree is in exactly one of the lists, or below a mismatch of a container
//! with a leaf.

use super::{
    leaf::{LeafSpec, kind_name},
    nearest::nearest,
    path::{KeyPath, describe, segment},
    tree::{Tree, container_name},
};
use crate::error::Error;
use milepost_formats::{
    DataType,
    index::{Key, LeafKind},
};
use std::{borrow::Cow, collections::HashMap, fmt};

/// So many paths are compared for near names, over all lines: about 0.1 s, where all of a large tree by all
/// of another would take hours. The first lines get theirs.
const COMPARISONS_MAX: usize = 100_000;

/// One difference between a wanted tree and one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where.
    pub path: KeyPath,
    /// What differs.
    pub what: What,
    /// For what is missing or unexpected: the nearest path of the other tree that met nobody.
    pub nearest: Option<String>,
}

/// What differs at a key path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// It is wanted and not there.
    Missing,
    /// It is there and not wanted.
    Unexpected,
    /// Another container, or a container and a leaf.
    Container {
        /// The wanted kind of node.
        want: &'static str,
        /// The kind that is there.
        have: &'static str,
    },
    /// The same name by another type of key.
    Key {
        /// The wanted key.
        want: Key,
        /// The key that is there.
        have: Key,
    },
    /// Another kind of leaf.
    Kind {
        /// The wanted kind.
        want: LeafKind,
        /// The kind that is there.
        have: LeafKind,
    },
    /// Another shape.
    Shape {
        /// The wanted shape.
        want: Vec<u64>,
        /// The shape that is there.
        have: Vec<u64>,
    },
    /// Another data type.
    DataType {
        /// The wanted data type.
        want: DataType,
        /// The data type that is there.
        have: DataType,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_root() {
            f.write_str("(root): ")?;
        } else {
            write!(f, "{}: ", self.path)?;
        }
        match &self.what {
            What::Missing => f.write_str("missing")?,
            What::Unexpected => f.write_str("unexpected")?,
            What::Container { want, have } => write!(f, "{want} wanted, {have} found")?,
            What::Key { want, have } => {
                write!(f, "key {} wanted, {} found", describe(want), describe(have))?;
            }
            What::Kind { want, have } => {
                write!(f, "{} wanted, {} found", kind_name(want), kind_name(have))?;
            }
            What::Shape { want, have } => write!(f, "shape {want:?} wanted, {have:?} found")?,
            What::DataType { want, have } => write!(f, "data type {want} wanted, {have} found")?,
        }
        match &self.nearest {
            Some(path) => write!(f, " (nearest: {path})"),
            None => Ok(()),
        }
    }
}

/// Every mismatch of two trees: the cause of the error that refuses a restore target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatches(Vec<Mismatch>);

impl Mismatches {
    pub(crate) fn new(mismatches: Vec<Mismatch>) -> Self {
        Self(mismatches)
    }

    /// Returns the mismatches behind an error, where it is about some.
    #[must_use]
    pub fn of(error: &Error) -> Option<&Self> {
        std::error::Error::source(error)?.downcast_ref()
    }

    /// Returns the mismatches: those of pairs in tree order, then what is missing, then what is unexpected.
    #[must_use]
    pub fn as_slice(&self) -> &[Mismatch] {
        &self.0
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Mismatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mismatch) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mismatch}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mismatches {}

impl Tree<LeafSpec> {
    /// Returns every difference from `have`, where `self` is what is wanted.
    ///
    /// Containers, key types, kinds, data types and shapes are compared; the informative type names of
    /// containers are not.
    #[must_use]
    pub fn diff(&self, have: &Self) -> Mismatches {
        let mut meeting = Meeting::new(true);
        meeting.meet(self, have, &mut KeyPath::root());
        let mut mismatches = std::mem::take(&mut meeting.mismatches);
        for (path, want, have) in &meeting.pairs {
            let mut push = |what| {
                mismatches.push(Mismatch { path: path.clone(), what, nearest: None });
            };
            if want.kind != have.kind {
                push(What::Kind { want: want.kind.clone(), have: have.kind.clone() });
            }
            if want.data_type != have.data_type {
                push(What::DataType { want: want.data_type, have: have.data_type });
            }
            if want.shape != have.shape {
                push(What::Shape { want: want.shape.clone(), have: have.shape.clone() });
            }
        }
        mismatches.extend(lost(&meeting.missing, &What::Missing, &meeting.unexpected));
        mismatches.extend(lost(&meeting.unexpected, &What::Unexpected, &meeting.missing));
        Mismatches(mismatches)
    }
}

/// A node that met nobody: its leaf, or `None` where it is `None` or an empty container.
pub(crate) type Lost<'a, L> = (KeyPath, Option<&'a L>);

/// Turns what met nobody into mismatches, with the nearest of `others` that met nobody either.
pub(crate) fn lost<L, M>(
    lost: &[Lost<'_, L>],
    what: &What,
    others: &[Lost<'_, M>],
) -> Vec<Mismatch> {
    let others: Vec<_> = others.iter().map(|(path, _)| path.to_string()).collect();
    let lines_max = (COMPARISONS_MAX / others.len().max(1)).max(1);
    let near = |i: usize, path: &KeyPath| {
        let compared = if i < lines_max { others.as_slice() } else { &[] };
        let candidates = compared.iter().map(String::as_str);
        nearest(&path.to_string(), candidates, 1).first().map(|near| (*near).to_owned())
    };
    lost.iter()
        .enumerate()
        .map(|(i, (path, _))| Mismatch {
            path: path.clone(),
            what: what.clone(),
            nearest: near(i, path),
        })
        .collect()
}

/// Two trees walked together.
pub(crate) struct Meeting<'a, W, H> {
    /// Whether containers and the types of keys must be the same.
    exact: bool,
    pub(crate) pairs: Vec<(KeyPath, &'a W, &'a H)>,
    pub(crate) missing: Vec<Lost<'a, W>>,
    pub(crate) unexpected: Vec<Lost<'a, H>>,
    pub(crate) mismatches: Vec<Mismatch>,
}

impl<'a, W, H> Meeting<'a, W, H> {
    pub(crate) fn new(exact: bool) -> Self {
        Self {
            exact,
            pairs: Vec::new(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            mismatches: Vec::new(),
        }
    }

    /// Walks both trees from `path` on; `path` is unchanged afterwards.
    pub(crate) fn meet(&mut self, want: &'a Tree<W>, have: &'a Tree<H>, path: &mut KeyPath) {
        match (want, have) {
            (Tree::Leaf(want), Tree::Leaf(have)) => self.pairs.push((path.clone(), want, have)),
            (Tree::None, Tree::None) => {}
            (
                Tree::Branch { container: want, children: wanted },
                Tree::Branch { container: have, children: there },
            ) => {
                let same = container_name(want) == container_name(have);
                if self.exact && !same {
                    let what =
                        What::Container { want: container_name(want), have: container_name(have) };
                    self.mismatch(path, what);
                }
                self.meet_children(wanted, there, path, same);
            }
            (Tree::Leaf(_), Tree::Branch { container, .. }) => {
                let what = What::Container { want: "leaf", have: container_name(container) };
                self.mismatch(path, what);
            }
            (Tree::Branch { container, .. }, Tree::Leaf(_)) => {
                let what = What::Container { want: container_name(container), have: "leaf" };
                self.mismatch(path, what);
            }
            (Tree::None, _) => lose(have, path, &mut self.unexpected),
            (_, Tree::None) => lose(want, path, &mut self.missing),
        }
    }

    fn meet_children(
        &mut self,
        want: &'a [(Key, Tree<W>)],
        have: &'a [(Key, Tree<H>)],
        path: &mut KeyPath,
        same_container: bool,
    ) {
        // Trees of one program have the same children in the same order: the names are needed elsewhere only.
        let mut names: Option<HashMap<Cow<'_, str>, usize>> = None;
        let mut met = vec![false; have.len()];
        for (i, (key, child)) in want.iter().enumerate() {
            let position = if have.get(i).is_some_and(|(k, _)| k == key) {
                Some(i)
            } else {
                names
                    .get_or_insert_with(|| {
                        have.iter().enumerate().map(|(i, (key, _))| (segment(key), i)).collect()
                    })
                    .get(&segment(key))
                    .copied()
            };
            path.push(key);
            match position.filter(|i| !met[*i]) {
                None => lose(child, path, &mut self.missing),
                Some(position) => {
                    met[position] = true;
                    let (other, there) = &have[position];
                    if self.exact && same_container && key != other {
                        let what = What::Key { want: key.clone(), have: other.clone() };
                        self.mismatch(path, what);
                    }
                    self.meet(child, there, path);
                }
            }
            path.pop();
        }
        for ((key, child), _) in have.iter().zip(met).filter(|(_, met)| !*met) {
            path.push(key);
            lose(child, path, &mut self.unexpected);
            path.pop();
        }
    }

    fn mismatch(&mut self, path: &KeyPath, what: What) {
        self.mismatches.push(Mismatch { path: path.clone(), what, nearest: None });
    }
}

/// Lists what is below a node that met nobody.
fn lose<'a, L>(tree: &'a Tree<L>, path: &mut KeyPath, lost: &mut Vec<Lost<'a, L>>) {
    match tree {
        Tree::Leaf(leaf) => lost.push((path.clone(), Some(leaf))),
        Tree::Branch { children, .. } if !children.is_empty() => {
            for (key, child) in children {
                path.push(key);
                lose(child, path, lost);
                path.pop();
            }
        }
        Tree::None | Tree::Branch { .. } => lost.push((path.clone(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{path::IntoKey as _, tree::tests::trees},
        *,
    };
    use proptest::prelude::*;

    fn array(shape: &[u64]) -> Tree<LeafSpec> {
        Tree::leaf(LeafSpec::array(DataType::Float32, shape))
    }

    fn lines(want: &Tree<LeafSpec>, have: &Tree<LeafSpec>) -> Vec<String> {
        want.diff(have).as_slice().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_difference_is_a_line_at_its_key_path() {
        let want = Tree::dict([
            ("kernel", array(&[3, 4])),
            ("bais", array(&[4])),
            ("scale", Tree::leaf(LeafSpec::array(DataType::BFloat16, []))),
            ("h", Tree::list([array(&[1]), array(&[2])])),
            ("opt", Tree::dict([("mu", array(&[1]))])),
            ("none", Tree::None),
        ]);
        let have = Tree::dict([
            ("bias", array(&[4])),
            ("kernel", array(&[4, 3])),
            ("scale", array(&[])),
            ("h", Tree::tuple([array(&[1])])),
            ("opt", array(&[1])),
            ("none", Tree::list([])),
        ]);
        assert_eq!(
            lines(&want, &have),
            [
                "h: list wanted, tuple found",
                "opt: dict wanted, leaf found",
                "kernel: shape [3, 4] wanted, [4, 3] found",
                "scale: data type bfloat16 wanted, float32 found",
                "bais: missing (nearest: bias)",
                "h/1: missing",
                "none: unexpected",
                "bias: unexpected (nearest: bais)",
            ]
        );
    }

    #[test]
    fn keys_of_another_type_meet_and_are_told_apart() {
        let want = Tree::dict([(1, array(&[]))]);
        let have = Tree::dict([("1", array(&[]))]);
        assert_eq!(lines(&want, &have), ["1: key integer 1 wanted, name \"1\" found"]);
        assert_eq!(lines(&array(&[]), &want), ["(root): leaf wanted, dict found"]);
    }

    #[test]
    fn two_wanted_keys_of_one_name_do_not_share_a_leaf() {
        let both = [(1.into_key(), array(&[])), ("1".into_key(), array(&[]))];
        let have = Tree::dict([("1", array(&[]))]);
        let want = Tree::dict(both);
        assert_eq!(
            lines(&want, &have),
            ["1: key integer 1 wanted, name \"1\" found", "1: missing"]
        );
    }

    #[test]
    fn type_names_are_informative_and_no_difference() {
        let object = |name: &str| Tree::object(name, [("a", array(&[]))]);
        assert!(lines(&object("old.module.State"), &object("State")).is_empty());
    }

    proptest! {
        #[test]
        fn a_tree_differs_from_itself_in_nothing(tree in trees()) {
            let tree = tree.map(|n| LeafSpec::array(DataType::UInt8, [n.into()]));
            prop_assert!(tree.diff(&tree).is_empty());
        }

        #[test]
        fn each_leaf_meets_or_is_lost_once(want in trees(), have in trees()) {
            let mut meeting = Meeting::new(false);
            meeting.meet(&want, &have, &mut KeyPath::root());
            let real = |lost: &[Lost<'_, u32>]| lost.iter().filter(|l| l.1.is_some()).count();
            let blocked = !meeting.mismatches.is_empty();
            for (tree, lost) in
                [(&want, real(&meeting.missing)), (&have, real(&meeting.unexpected))]
            {
                let seen = meeting.pairs.len() + lost;
                prop_assert!(seen == tree.leaf_count() || blocked && seen < tree.leaf_count());
            }
        }
    }
}
