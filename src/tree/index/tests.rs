//! Tests of the index as a thing to ask.

use super::{super::tree::tests::trees, *};
use milepost_formats::{
    DataType,
    index::{Group, Key, LeafKind, Object},
};
use proptest::prelude::*;

/// An index of `tree`, as a writer would make it; each leaf a float32 vector of its value's length.
pub(crate) fn index_of(tree: &Tree<u32>) -> Index {
    let document = Object { bytes: 1, crc32c: 0, content: None };
    let layout = lay_out(tree).unwrap();
    let leaf = |path: &str, length: u32| Leaf {
        path: path.to_owned(),
        kind: LeafKind::Array,
        data_type: DataType::Float32,
        stored_as: None,
        shape: vec![length.into()],
        chunk_shape: vec![1],
        shard_shape: None,
        codec: "none".into(),
        name: None,
        document: document.clone(),
        objects: Vec::new(),
    };
    Index {
        root: to_node(tree).unwrap(),
        leaves: layout.leaves.iter().map(|n| leaf(&n.path, *n.leaf)).collect(),
        groups: layout
            .groups
            .iter()
            .map(|g| Group { path: g.path.clone(), document: document.clone() })
            .collect(),
        foreign_metadata: Vec::new(),
    }
}

fn state() -> Tree<u32> {
    let layer = || Tree::dict([("kernel", Tree::leaf(1)), ("bias", Tree::leaf(2))]);
    Tree::dict([
        ("params", Tree::dict([("h", layer()), ("h-1", layer()), ("h0", layer())])),
        ("opt", Tree::tuple([Tree::None, Tree::list([]), Tree::leaf(3)])),
    ])
}

#[test]
fn leaves_are_found_by_path_and_containers_are_not_leaves() {
    let index = TreeIndex::new(index_of(&state())).unwrap();
    assert_eq!(index.lookup("params/h-1/bias").unwrap(), 3);
    assert_eq!(index.lookup("opt/2").unwrap(), 6);
    let error = index.lookup("params/h/kernal").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.hint_text().unwrap().starts_with("nearest: `params/h/kernel`"), "{error:?}");
    let error = index.lookup("params").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint_text().unwrap().contains("params/h/kernel"));
    assert_eq!(index.lookup("opt/0").unwrap_err().kind(), ErrorKind::Invalid, "None");
    assert_eq!(index.lookup("opt/2/x").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn below_is_the_subtree_and_not_what_merely_begins_alike() {
    let index = TreeIndex::new(index_of(&state())).unwrap();
    assert_eq!(index.below("params/h"), 0..2);
    assert_eq!(index.below("params/h-1"), 2..4);
    assert_eq!(index.below("params"), 0..6);
    assert_eq!(index.below("opt/2"), 6..7);
    assert_eq!(index.below("opt/1").len(), 0);
    assert_eq!(index.below("nope").len(), 0);
    assert_eq!(index.below(""), 0..7);
}

#[test]
fn an_index_whose_parts_disagree_is_corrupt() {
    let good = index_of(&state());
    let broken = |change: &dyn Fn(&mut Index)| {
        let mut index = good.clone();
        change(&mut index);
        TreeIndex::new(index).expect_err("a broken index").kind()
    };
    for change in [
        &(|i: &mut Index| i.leaves[0].path = "../../etc".into()) as &dyn Fn(&mut Index),
        &|i| drop(i.leaves.pop()),
        &|i| i.leaves.push(i.leaves[0].clone()),
        &|i| i.leaves.swap(0, 1),
        &|i| i.root = Node::Leaf(1),
        &|i| i.root = Node::None,
        &|i| {
            if let Node::Branch { children, .. } = &mut i.root {
                children[1].0 = Key::Index(0);
            }
        },
        &|i| {
            if let Node::Branch { children, .. } = &mut i.root {
                children.push(children[0].clone());
            }
        },
        &|i| {
            for _ in 0..600 {
                let children =
                    vec![(Key::Name("d".into()), std::mem::replace(&mut i.root, Node::None))];
                i.root = Node::Branch { container: super::super::Container::Dict, children };
            }
        },
    ] {
        assert_eq!(broken(change), ErrorKind::Corrupt);
    }
}

proptest! {
    #[test]
    fn a_tree_comes_back_from_its_index_as_it_was(tree in trees()) {
        let index = TreeIndex::new(index_of(&tree)).unwrap();
        let values = tree.clone().into_leaves();
        prop_assert_eq!(&index.tree().as_ref().map(|i| values[*i]), &tree);
        for (position, leaf) in index.leaves().iter().enumerate() {
            prop_assert_eq!(index.find(&leaf.path), Some(position));
            prop_assert_eq!(index.subtree(&leaf.path), Some(&Tree::Leaf(position)));
        }
        for group in &index.index().groups {
            let below: Vec<_> = index.below(&group.path).collect();
            let want = index.subtree(&group.path).unwrap().clone().into_leaves();
            prop_assert_eq!(below, want);
        }
    }
}
