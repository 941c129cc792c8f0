//! Tests of restore targets.

use super::{
    super::{index::tests::index_of, tree::tests::trees},
    *,
};
use crate::ErrorKind;
use proptest::prelude::*;

fn f32s(length: u64) -> Tree<TargetLeaf> {
    Tree::leaf(LeafSpec::array(DataType::Float32, [length]).into())
}

fn stored() -> TreeIndex {
    let tree = Tree::dict([
        ("params", Tree::dict([("w", Tree::leaf(1)), ("b", Tree::leaf(2))])),
        ("opt", Tree::tuple([Tree::None, Tree::leaf(3)])),
    ]);
    TreeIndex::new(index_of(&tree)).unwrap()
}

fn matched(target: &Tree<TargetLeaf>, options: MatchOptions) -> Result<Matched> {
    match_target(target, &stored(), options, &|have, want| {
        have == DataType::Float32 && want == DataType::BFloat16
    })
}

const LENIENT: MatchOptions = MatchOptions {
    missing: MissingPolicy::Skip,
    unexpected: UnexpectedPolicy::Ignore,
    containers: ContainerPolicy::Same,
};

#[test]
fn a_target_in_another_order_meets_by_name() {
    let target = Tree::dict([
        ("opt", Tree::tuple([Tree::None, f32s(3)])),
        ("params", Tree::dict([("b", f32s(2)), ("w", f32s(1))])),
    ]);
    let matched = matched(&target, MatchOptions::default()).unwrap();
    let pairs: Vec<_> = matched.pairs.iter().map(|p| (p.target, p.stored)).collect();
    assert_eq!(pairs, [(0, 2), (1, 1), (2, 0)]);
    assert!(matched.pairs.iter().all(|p| !p.needs_cast));
}

#[test]
fn all_mismatches_are_in_one_error_by_key_path() {
    let int = TargetLeaf { data_type: Some(DataType::Int32), ..TargetLeaf::default() };
    let target = Tree::dict([
        ("params", Tree::dict([("w", f32s(7)), ("bb", f32s(2)), ("x", f32s(1))])),
        ("opt", Tree::list([Tree::None, Tree::leaf(int)])),
    ]);
    let error = matched(&target, MatchOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(
        error.message(),
        "the target does not fit the checkpoint in 6 places:\
         \n  opt: list wanted, tuple found\
         \n  params/w: shape [7] wanted, [1] found\
         \n  opt/1: data type int32 wanted, float32 found\
         \n  params/bb: missing (nearest: params/b)\
         \n  params/x: missing (nearest: params/b)\
         \n  params/b: unexpected (nearest: params/bb)"
    );
    assert_eq!(Mismatches::of(&error).unwrap().len(), 6);
    assert!(error.hint_text().is_some());
}

#[test]
fn policies_leave_out_one_side_and_report_it() {
    let target = Tree::dict([
        ("head", Tree::dict([("w", f32s(9))])),
        ("params", Tree::dict([("b", f32s(2))])),
    ]);
    let matched_ = matched(&target, LENIENT).unwrap();
    assert_eq!(matched_.pairs, [Pair { target: 1, stored: 1, needs_cast: false }]);
    assert_eq!((matched_.missing, matched_.unexpected), (vec![0], vec![0, 2]));
    let only_missing = MatchOptions { unexpected: UnexpectedPolicy::Error, ..LENIENT };
    let error = matched(&target, only_missing).unwrap_err();
    let mismatches = Mismatches::of(&error).unwrap();
    assert!(mismatches.as_slice().iter().all(|m| m.what == What::Unexpected));
    assert_eq!(mismatches.len(), 2);
}

#[test]
fn a_leaf_never_takes_a_containers_place_whatever_the_policy() {
    let target = Tree::dict([("params", f32s(1))]);
    let error = matched(&target, LENIENT).unwrap_err();
    assert!(error.message().contains("params: leaf wanted, dict found"));
}

#[test]
fn casts_are_asked_for_and_open_leaves_take_what_is_stored() {
    let half = TargetLeaf { data_type: Some(DataType::BFloat16), ..TargetLeaf::default() };
    let target = Tree::dict([
        ("params", Tree::dict([("w", Tree::leaf(half)), ("b", Tree::leaf(TargetLeaf::default()))])),
        ("opt", Tree::tuple([Tree::None, f32s(3)])),
    ]);
    let matched = matched(&target, MatchOptions::default()).unwrap();
    let casts: Vec<_> = matched.pairs.iter().map(|p| p.needs_cast).collect();
    assert_eq!(casts, [true, false, false]);
}

#[test]
fn containers_of_another_kind_meet_by_name_where_asked() {
    let target = Tree::object(
        "State",
        [
            ("params", Tree::dict([("w", f32s(1)), ("b", f32s(2))])),
            ("opt", Tree::dict([("1", f32s(3))])),
        ],
    );
    assert!(matched(&target, MatchOptions::default()).is_err());
    let by_name = MatchOptions { containers: ContainerPolicy::ByName, ..MatchOptions::default() };
    assert_eq!(matched(&target, by_name).unwrap().pairs.len(), 3);
}

#[test]
fn scalars_meet_arrays_text_has_no_shape_and_keys_need_their_implementation() {
    let fits = |want: LeafKind, have: LeafKind, shape: u64| {
        let mut index = index_of(&Tree::leaf(5));
        index.leaves[0].kind = have;
        let index = TreeIndex::new(index).unwrap();
        let want = LeafSpec { kind: want, data_type: DataType::Float32, shape: vec![shape] };
        let target = Tree::leaf(want.into());
        match_target(&target, &index, MatchOptions::default(), &|_, _| false).is_ok()
    };
    let key = |name: &str| LeafKind::PrngKey { implementation: name.into() };
    assert!(fits(LeafKind::Array, LeafKind::Int, 5));
    assert!(fits(LeafKind::Float, LeafKind::Array, 5));
    assert!(!fits(LeafKind::Array, LeafKind::Int, 6));
    assert!(fits(LeafKind::Str, LeafKind::Str, 99));
    assert!(!fits(LeafKind::Array, LeafKind::Str, 5));
    assert!(!fits(LeafKind::Str, LeafKind::Bytes, 5));
    assert!(fits(key("rbg"), key("rbg"), 5));
    assert!(!fits(key("rbg"), key("threefry2x32"), 5));
}

#[test]
fn a_long_list_is_cut_in_the_message_and_whole_in_the_cause() {
    let target = Tree::list((0..500).map(|_| f32s(1)));
    let error = matched(&target, MatchOptions::default()).unwrap_err();
    assert!(error.message().ends_with("more"), "{}", error.message());
    assert_eq!(error.message().lines().count(), 102);
    assert_eq!(Mismatches::of(&error).unwrap().len(), 500 + 3 + 1);
}

proptest! {
    #[test]
    fn a_tree_is_its_own_target(tree in trees()) {
        let stored = TreeIndex::new(index_of(&tree)).unwrap();
        let target = stored.specs().map(TargetLeaf::from);
        let matched =
            match_target(&target, &stored, MatchOptions::default(), &|_, _| false).unwrap();
        prop_assert_eq!(matched.pairs.len(), tree.leaf_count());
        prop_assert!(matched.pairs.iter().enumerate().all(|(i, p)| p.target == i && p.stored == i));
    }
}
