//! The tree itself: containers with typed keys around leaves of any type.
//!
//! The order of children is kept and is the order of leaves everywhere: in the index, in a restore, on
//! screen. `None` and empty containers are part of the structure and come back as they were saved.
//!
//! A tree may be *partial*: [`Tree::select`] drops what was not asked for and keeps the keys of the rest, so
//! a list can hold the positions 3 and 7 only. A partial list can be walked, mapped and exported;
//! [`Tree::validate`] refuses it, and with it saving does.
//!
//! **Invariant:** what passed [`Tree::validate`] is at most 512 deep, so recursion over it is bounded.

use super::path::{DEPTH_MAX, IntoKey, KeyPath, describe};
use crate::error::{Error, Result};
use milepost_formats::index::{Container, Key};
use std::collections::HashSet;

/// A leaf, `None`, or a container of trees.
///
/// ```
/// use milepost::Tree;
///
/// let state = Tree::dict([
///     ("params", Tree::dict([("w", Tree::leaf(1)), ("b", Tree::leaf(2))])),
///     ("opt", Tree::tuple([Tree::None, Tree::leaf(3)])),
/// ]);
/// let paths: Vec<_> = state.leaves().map(|(path, _)| path.to_string()).collect();
/// assert_eq!(paths, ["params/w", "params/b", "opt/1"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree<L> {
    /// A value.
    Leaf(L),
    /// Python's `None`.
    None,
    /// A container and its children in order; it may be empty.
    Branch {
        /// What it is.
        container: Container,
        /// What it holds.
        children: Vec<(Key, Tree<L>)>,
    },
}

impl<L> Tree<L> {
    /// Creates a leaf.
    pub fn leaf(value: L) -> Self {
        Self::Leaf(value)
    }

    /// Creates a dict; keys are text or integers.
    pub fn dict<K: IntoKey>(children: impl IntoIterator<Item = (K, Self)>) -> Self {
        let children = children.into_iter().map(|(key, tree)| (key.into_key(), tree)).collect();
        Self::Branch { container: Container::Dict, children }
    }

    /// Creates a list.
    pub fn list(children: impl IntoIterator<Item = Self>) -> Self {
        Self::Branch { container: Container::List, children: positions(children) }
    }

    /// Creates a tuple.
    pub fn tuple(children: impl IntoIterator<Item = Self>) -> Self {
        Self::Branch { container: Container::Tuple, children: positions(children) }
    }

    /// Creates a named tuple; `type_name` is informative.
    pub fn named_tuple<S: Into<String>>(
        type_name: impl Into<String>,
        fields: impl IntoIterator<Item = (S, Self)>,
    ) -> Self {
        let container = Container::NamedTuple { type_name: type_name.into() };
        Self::Branch { container, children: attrs(fields) }
    }

    /// Creates a dataclass or registered node of fields; `type_name` is informative.
    pub fn object<S: Into<String>>(
        type_name: impl Into<String>,
        fields: impl IntoIterator<Item = (S, Self)>,
    ) -> Self {
        let container = Container::Object { type_name: type_name.into() };
        Self::Branch { container, children: attrs(fields) }
    }

    /// Puts `tree` at `path`, creating dicts on the way, and returns what was there.
    ///
    /// An existing container of any kind is entered; a leaf or `None` on the way is not replaced.
    ///
    /// # Errors
    /// `Invalid` where the way is blocked, the path is too deep, or a key does not fit its container.
    pub fn insert_path(&mut self, path: &KeyPath, tree: Self) -> Result<Option<Self>> {
        if path.depth() > DEPTH_MAX {
            return Err(too_deep(path));
        }
        let mut at = self;
        let mut tree = Some(tree);
        for (i, key) in path.keys().iter().enumerate() {
            let blocked = || KeyPath::from(path.keys()[..i].to_vec());
            let Self::Branch { container, children } = at else {
                return Err(Error::invalid("a leaf or None is in the way")
                    .with("leaf", blocked())
                    .with("path", path));
            };
            if !fits(container, key) {
                return Err(misfit(container, key).with("path", blocked()));
            }
            let last = i + 1 == path.depth();
            let position = children.iter().position(|(k, _)| k == key).unwrap_or_else(|| {
                let child = if last { tree.take() } else { None };
                children.push((key.clone(), child.unwrap_or_else(Self::empty)));
                children.len() - 1
            });
            at = &mut children[position].1;
        }
        // Where `tree` is gone it went into a place that was not there before.
        Ok(tree.map(|tree| std::mem::replace(at, tree)))
    }

    fn empty() -> Self {
        Self::Branch { container: Container::Dict, children: Vec::new() }
    }

    /// Returns the subtree at `path`.
    #[must_use]
    pub fn get(&self, path: &KeyPath) -> Option<&Self> {
        path.keys().iter().try_fold(self, |at, key| match at {
            Self::Branch { children, .. } => {
                // Positions are where they say in all but partial trees.
                let guess = match key {
                    Key::Index(n) => usize::try_from(*n).ok().and_then(|n| children.get(n)),
                    _ => None,
                };
                guess
                    .filter(|(k, _)| k == key)
                    .or_else(|| children.iter().find(|(k, _)| k == key))
                    .map(|(_, child)| child)
            }
            _ => None,
        })
    }

    /// Iterates over the leaves in order, with their key paths.
    #[must_use]
    pub fn leaves(&self) -> Leaves<'_, L> {
        Leaves { path: KeyPath::root(), start: Some(self), stack: Vec::new() }
    }

    /// Returns the number of leaves.
    #[must_use]
    pub fn leaf_count(&self) -> usize {
        match self {
            Self::Leaf(_) => 1,
            Self::None => 0,
            Self::Branch { children, .. } => children.iter().map(|(_, c)| c.leaf_count()).sum(),
        }
    }

    /// Returns the leaves in order.
    #[must_use]
    pub fn into_leaves(self) -> Vec<L> {
        let mut leaves = Vec::new();
        drop(self.map(|leaf| leaves.push(leaf)));
        leaves
    }

    /// Returns the same structure around references.
    #[must_use]
    pub fn as_ref(&self) -> Tree<&L> {
        match self {
            Self::Leaf(leaf) => Tree::Leaf(leaf),
            Self::None => Tree::None,
            Self::Branch { container, children } => Tree::Branch {
                container: container.clone(),
                children: children.iter().map(|(k, c)| (k.clone(), c.as_ref())).collect(),
            },
        }
    }

    /// Turns every leaf into another, in order.
    pub fn map<M>(self, mut f: impl FnMut(L) -> M) -> Tree<M> {
        fn walk<L, M>(tree: Tree<L>, f: &mut impl FnMut(L) -> M) -> Tree<M> {
            match tree {
                Tree::Leaf(leaf) => Tree::Leaf(f(leaf)),
                Tree::None => Tree::None,
                Tree::Branch { container, children } => Tree::Branch {
                    container,
                    children: children.into_iter().map(|(k, c)| (k, walk(c, f))).collect(),
                },
            }
        }
        walk(self, &mut f)
    }

    /// Turns every leaf into another, in order, up to the first error.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<M, E>(
        self,
        mut f: impl FnMut(&KeyPath, L) -> Result<M, E>,
    ) -> Result<Tree<M>, E> {
        fn walk<L, M, E>(
            tree: Tree<L>,
            path: &mut KeyPath,
            f: &mut impl FnMut(&KeyPath, L) -> Result<M, E>,
        ) -> Result<Tree<M>, E> {
            let (container, children) = match tree {
                Tree::Leaf(leaf) => return f(path, leaf).map(Tree::Leaf),
                Tree::None => return Ok(Tree::None),
                Tree::Branch { container, children } => (container, children),
            };
            let mut mapped = Vec::with_capacity(children.len());
            for (key, child) in children {
                path.push(&key);
                mapped.push((key, walk(child, path, f)?));
                path.pop();
            }
            Ok(Tree::Branch { container, children: mapped })
        }
        walk(self, &mut KeyPath::root(), &mut f)
    }

    /// Checks the depth, that keys fit their containers, and that none is there twice.
    ///
    /// # Errors
    /// `Invalid`, naming the container and the key.
    pub fn validate(&self) -> Result<()> {
        fn walk<L>(tree: &Tree<L>, path: &mut KeyPath) -> Result<()> {
            let Tree::Branch { container, children } = tree else { return Ok(()) };
            if path.depth() >= DEPTH_MAX && !children.is_empty() {
                return Err(too_deep(path));
            }
            check_keys(container, children).map_err(|e| e.with("path", &*path))?;
            for (key, child) in children {
                path.push(key);
                walk(child, path)?;
                path.pop();
            }
            Ok(())
        }
        walk(self, &mut KeyPath::root())
    }
}

/// Iterator over the leaves of a [`Tree`].
#[derive(Debug)]
pub struct Leaves<'a, L> {
    path: KeyPath,
    start: Option<&'a Tree<L>>,
    stack: Vec<std::slice::Iter<'a, (Key, Tree<L>)>>,
}

impl<'a, L> Iterator for Leaves<'a, L> {
    type Item = (KeyPath, &'a L);

    fn next(&mut self) -> Option<Self::Item> {
        match self.start.take() {
            Some(Tree::Leaf(leaf)) => return Some((KeyPath::root(), leaf)),
            Some(Tree::Branch { children, .. }) => self.stack.push(children.iter()),
            Some(Tree::None) | None => {}
        }
        // `path` holds a key for each level of the stack but the first.
        loop {
            let Some((key, child)) = self.stack.last_mut()?.next() else {
                self.stack.pop();
                self.path.pop();
                continue;
            };
            match child {
                Tree::Leaf(leaf) => return Some((self.path.child(key), leaf)),
                Tree::None => {}
                Tree::Branch { children, .. } => {
                    self.path.push(key);
                    self.stack.push(children.iter());
                }
            }
        }
    }
}

fn positions<L>(children: impl IntoIterator<Item = Tree<L>>) -> Vec<(Key, Tree<L>)> {
    children.into_iter().enumerate().map(|(i, tree)| (i.into_key(), tree)).collect()
}

fn attrs<L, S: Into<String>>(
    fields: impl IntoIterator<Item = (S, Tree<L>)>,
) -> Vec<(Key, Tree<L>)> {
    fields.into_iter().map(|(name, tree)| (Key::Attr(name.into()), tree)).collect()
}

/// Names a container's kind for messages.
pub(crate) fn container_name(container: &Container) -> &'static str {
    match container {
        Container::Dict => "dict",
        Container::List => "list",
        Container::Tuple => "tuple",
        Container::NamedTuple { .. } => "named tuple",
        Container::Object { .. } => "object",
    }
}

fn fits(container: &Container, key: &Key) -> bool {
    match container {
        Container::Dict => matches!(key, Key::Name(_) | Key::Int(_)),
        Container::List | Container::Tuple => matches!(key, Key::Index(_)),
        Container::NamedTuple { .. } => matches!(key, Key::Attr(_)),
        Container::Object { .. } => true,
    }
}

fn misfit(container: &Container, key: &Key) -> Error {
    Error::invalid(format!("a {} cannot hold this key", container_name(container)))
        .with("key", describe(key))
}

fn too_deep(path: &KeyPath) -> Error {
    let keys = path.keys();
    let head = KeyPath::from(keys[..keys.len().min(4)].to_vec());
    Error::invalid(format!("a tree is deeper than {DEPTH_MAX}")).with("path", format!("{head}/…"))
}

fn check_keys<L>(container: &Container, children: &[(Key, Tree<L>)]) -> Result<()> {
    let mut seen = HashSet::with_capacity(children.len());
    for (i, (key, _)) in children.iter().enumerate() {
        if !fits(container, key) {
            return Err(misfit(container, key));
        }
        if !seen.insert(key) {
            return Err(Error::invalid("a key is there twice").with("key", describe(key)));
        }
        if matches!(container, Container::List | Container::Tuple) && *key != i.into_key() {
            let kind = container_name(container);
            return Err(Error::invalid(format!("the positions of a {kind} are 0, 1, … in order"))
                .with("key", describe(key))
                .hint("a tree from a selection may be partial; save the whole list, or make it a dict"));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    fn state() -> Tree<u32> {
        Tree::dict([
            ("params", Tree::dict([("w", Tree::leaf(1)), ("b", Tree::leaf(2))])),
            ("opt", Tree::tuple([Tree::None, Tree::list([]), Tree::leaf(3)])),
            ("mu", Tree::named_tuple("optax.ScaleByAdamState", [("count", Tree::leaf(4))])),
        ])
    }

    /// Trees of every container, valid by construction but for siblings that share a node name.
    pub(crate) fn trees() -> impl Strategy<Value = Tree<u32>> {
        let leaf = prop_oneof![4 => any::<u32>().prop_map(Tree::leaf), 1 => Just(Tree::None)];
        leaf.prop_recursive(5, 40, 6, |inner| {
            let text = || "[a-cA-C.%_/é]{0,3}";
            let named = proptest::collection::btree_map(text(), inner.clone(), 0..5);
            let fields = proptest::collection::btree_map(text(), inner.clone(), 0..5);
            let mixed = proptest::collection::btree_map(-3_i64..3, inner.clone(), 0..5);
            prop_oneof![
                named.prop_map(Tree::dict),
                mixed.prop_map(Tree::dict),
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Tree::list),
                proptest::collection::vec(inner, 0..4).prop_map(Tree::tuple),
                fields.clone().prop_map(|f| Tree::named_tuple("m.T", f)),
                fields.prop_map(|f| Tree::object("m.O", f)),
            ]
        })
    }

    #[test]
    fn leaves_come_in_order_with_their_typed_paths() {
        let state = state();
        let leaves: Vec<_> = state.leaves().collect();
        assert_eq!(leaves[2], (KeyPath::root().child("opt").child(2_usize), &3));
        assert_eq!(leaves[3].0.keys()[1], Key::Attr("count".into()));
        assert_eq!(leaves.iter().map(|l| *l.1).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(Tree::leaf(7).leaves().collect::<Vec<_>>(), [(KeyPath::root(), &7)]);
        assert_eq!(Tree::<u32>::None.leaves().count(), 0);
        assert_eq!(state.get(&leaves[2].0), Some(&Tree::Leaf(3)));
        assert_eq!(state.get(&KeyPath::from(["opt", "2"])), None, "a position is not a name");
    }

    #[test]
    fn insert_creates_dicts_and_says_what_is_in_the_way() {
        let mut tree = Tree::dict([("a", Tree::leaf(1))]);
        let deep = KeyPath::from(["x", "y", "z"]);
        assert_eq!(tree.insert_path(&deep, Tree::leaf(2)).unwrap(), None);
        assert_eq!(tree.insert_path(&deep, Tree::leaf(3)).unwrap(), Some(Tree::Leaf(2)));
        assert_eq!(tree.get(&deep), Some(&Tree::Leaf(3)));
        let error = tree.insert_path(&KeyPath::from(["a", "b"]), Tree::None).unwrap_err();
        assert_eq!(error.get("leaf"), Some("a"));
        let error = tree.insert_path(&KeyPath::root().child(0_usize), Tree::None).unwrap_err();
        assert_eq!(error.get("key"), Some("position 0"));
        assert_eq!(
            tree.insert_path(&KeyPath::root(), Tree::None).unwrap().unwrap().leaf_count(),
            2
        );
        assert_eq!(tree, Tree::None);
        let far: KeyPath = std::iter::repeat_n("k", 513).collect();
        assert!(Tree::dict::<&str>([]).insert_path(&far, Tree::leaf(1)).is_err());
    }

    #[test]
    fn keys_that_do_not_fit_are_named_with_their_container() {
        let branch = |container, keys: &[Key]| -> Tree<u32> {
            let children = keys.iter().map(|k| (k.clone(), Tree::None)).collect();
            Tree::dict([("at", Tree::Branch { container, children })])
        };
        let name = |s: &str| Key::Name(s.into());
        let twice = branch(Container::Dict, &[name("a"), name("b"), name("a")]);
        let error = twice.validate().unwrap_err();
        assert_eq!((error.get("path"), error.get("key")), (Some("at"), Some("name \"a\"")));
        let named = Container::NamedTuple { type_name: "T".into() };
        for bad in [
            branch(Container::Dict, &[Key::Index(0)]),
            branch(Container::Dict, &[Key::Attr("a".into())]),
            branch(Container::List, &[Key::Index(1)]),
            branch(Container::List, &[Key::Index(0), Key::Index(2)]),
            branch(Container::Tuple, &[Key::Int(0)]),
            branch(named, &[name("a")]),
        ] {
            assert_eq!(bad.validate().expect_err("a misfit").kind(), ErrorKind::Invalid, "{bad:?}");
        }
        let object = Container::Object { type_name: "T".into() };
        let any = branch(object, &[Key::Index(5), name("a"), Key::Attr("b".into()), Key::Int(1)]);
        any.validate().unwrap();
    }

    #[test]
    fn depth_512_is_the_limit() {
        let deep = |n| (0..n).fold(Tree::leaf(0), |t, _| Tree::list([t]));
        deep(512).validate().unwrap();
        assert_eq!(deep(513).validate().unwrap_err().kind(), ErrorKind::Invalid);
    }

    proptest! {
        #[test]
        fn mapping_keeps_the_structure_and_the_order(tree in trees()) {
            tree.validate().unwrap();
            let paths: Vec<_> = tree.leaves().map(|(path, leaf)| (path, *leaf)).collect();
            prop_assert_eq!(paths.len(), tree.leaf_count());
            prop_assert_eq!(tree.clone().into_leaves(), paths.iter().map(|l| l.1).collect::<Vec<_>>());
            let mut seen = Vec::new();
            let same = tree.clone().try_map(|path, leaf| {
                seen.push((path.clone(), leaf));
                Ok::<_, ()>(leaf)
            });
            prop_assert_eq!(&same.unwrap(), &tree);
            prop_assert_eq!(&seen, &paths);
            for (path, leaf) in paths {
                prop_assert_eq!(tree.get(&path), Some(&Tree::Leaf(leaf)));
            }
            prop_assert_eq!(tree.as_ref().map(|leaf| *leaf), tree);
        }
    }
}
