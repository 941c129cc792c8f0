//! The index: golden bytes, round trips, truncation, flips and hostile trees.

use super::*;
use crate::{FormatErrorKind, json};
use proptest::prelude::*;
use serde_json::{Value, json};

const GOLDEN: &str = concat!(
    r#"{"branches":[{"children":[["params",{"branch":1}],["opt",{"branch":2}],[7,null]],"kind":"dict"},"#,
    r#"{"children":[["w",0]],"kind":"dict"},"#,
    r#"{"children":[[{"attr":"mu"},1],[{"attr":"nu"},{"branch":3}]],"kind":"namedtuple","type":"optax.State"},"#,
    r#"{"children":[],"kind":"list"}],"#,
    r#""foreign_metadata":[["format","pt"]],"#,
    r#""groups":[{"document":[90,1,null],"path":""},{"document":[91,2,null],"path":"params"}],"#,
    r#""leaves":[{"chunk_shape":[4,8],"codec":"zstd:3","data_type":"bfloat16","document":[500,3,null],"#,
    r#""kind":"array","name":"wte.weight","objects":[[64,4,"0000000000000000000000000000002a"],"#,
    r#"[32,5,"ffffffffffffffffffffffffffffffff"]],"path":"params/w","shape":[12,8],"shard_shape":[8,8],"#,
    r#""stored_as":"uint16"},"#,
    r#"{"chunk_shape":[],"codec":"none","data_type":"uint32","document":[400,6,null],"#,
    r#""implementation":"threefry2x32","kind":"prng_key","objects":[[8,7,null]],"path":"opt/mu","shape":[]}],"#,
    r#""requires":[],"root":{"branch":0},"version":[1,0]}"#,
);

fn name(text: &str) -> Key {
    Key::Name(text.into())
}

fn object(bytes: u64, crc32c: u32, content: Option<u128>) -> Object {
    Object { bytes, crc32c, content }
}

fn leaf(path: &str) -> Leaf {
    Leaf {
        path: path.into(),
        kind: LeafKind::Array,
        data_type: DataType::UInt32,
        stored_as: None,
        shape: vec![],
        chunk_shape: vec![],
        shard_shape: None,
        codec: "none".into(),
        name: None,
        document: object(400, 6, None),
        objects: vec![object(8, 7, None)],
    }
}

fn branch(container: Container, children: Vec<(Key, Node)>) -> Node {
    Node::Branch { container, children }
}

fn golden() -> Index {
    let opt = branch(
        Container::NamedTuple { type_name: "optax.State".into() },
        vec![
            (Key::Attr("mu".into()), Node::Leaf(1)),
            (Key::Attr("nu".into()), branch(Container::List, vec![])),
        ],
    );
    let params = branch(Container::Dict, vec![(name("w"), Node::Leaf(0))]);
    let root = vec![(name("params"), params), (name("opt"), opt), (Key::Int(7), Node::None)];
    Index {
        root: branch(Container::Dict, root),
        leaves: vec![
            Leaf {
                data_type: DataType::BFloat16,
                stored_as: Some(DataType::UInt16),
                shape: vec![12, 8],
                chunk_shape: vec![4, 8],
                shard_shape: Some(vec![8, 8]),
                codec: "zstd:3".into(),
                name: Some("wte.weight".into()),
                document: object(500, 3, None),
                objects: vec![object(64, 4, Some(42)), object(32, 5, Some(u128::MAX))],
                ..leaf("params/w")
            },
            Leaf {
                kind: LeafKind::PrngKey { implementation: "threefry2x32".into() },
                ..leaf("opt/mu")
            },
        ],
        groups: vec![
            Group { path: String::new(), document: object(90, 1, None) },
            Group { path: "params".into(), document: object(91, 2, None) },
        ],
        foreign_metadata: vec![("format".into(), "pt".into())],
    }
}

/// The golden index as JSON with one place changed.
fn edited(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(GOLDEN).unwrap();
    edit(&mut value);
    value.to_string().into_bytes()
}

/// A tree whose only leaf has a key path of `depth` keys.
fn deep(depth: usize) -> Index {
    let mut root = Node::Leaf(0);
    for _ in 0..depth {
        root = branch(Container::List, vec![(Key::Index(0), root)]);
    }
    Index { root, leaves: vec![leaf("0")], groups: vec![], foreign_metadata: vec![] }
}

#[test]
fn the_json_is_that_of_the_specification() {
    assert_eq!(String::from_utf8(golden().to_json().unwrap()).unwrap(), GOLDEN);
    assert_eq!(Index::parse_json(GOLDEN.as_bytes()).unwrap(), golden());
    let sorted = json::to_bytes(&serde_json::from_str(GOLDEN).unwrap());
    assert_eq!(String::from_utf8(sorted).unwrap(), GOLDEN, "members are sorted");
}

#[test]
fn an_item_that_is_no_tree_has_an_index() {
    for root in [Node::None, Node::Leaf(0), branch(Container::Tuple, vec![])] {
        let leaves = if root == Node::Leaf(0) { vec![leaf("")] } else { vec![] };
        let index = Index { root, leaves, groups: vec![], foreign_metadata: vec![] };
        assert_eq!(Index::parse_json(&index.to_json().unwrap()).unwrap(), index);
    }
}

#[test]
fn unknown_members_are_ignored_and_newer_versions_are_not() {
    let more = edited(|v| {
        v["later"] = json!({"a": [1]});
        v["leaves"][0]["later"] = json!(1);
        v["version"] = json!([1, 9]);
    });
    assert_eq!(Index::parse_json(&more).unwrap(), golden());
    for bytes in [
        edited(|v| v["version"] = json!([2, 0])),
        edited(|v| *v = json!({"version": [2, 0], "nothing": "known"})),
        edited(|v| v["requires"] = json!(["teleport"])),
        edited(|v| v["leaves"][0]["kind"] = json!("quantity")),
        edited(|v| v["leaves"][0]["data_type"] = json!("float7")),
        edited(|v| v["branches"][0]["kind"] = json!("set")),
    ] {
        let error = Index::parse_json(&bytes).unwrap_err();
        assert_eq!(error.kind(), FormatErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn an_inconsistent_index_is_corrupt() {
    let edits = [
        ("/root", json!(0)),
        ("/root", json!({"branch": 1})),
        ("/root", json!({"branch": 0, "x": 1})),
        ("/root", json!({"twig": 0})),
        ("/branches/1/children/0/1", json!(1)), // leaf 1 twice
        ("/branches/1/children/0/1", json!(2)), // no such leaf
        ("/branches/1/children/0/1", Value::Null), // leaf 0 nowhere
        ("/branches/1/children/0/1", json!(-1)),
        ("/branches/1/children/0/1", json!(4_294_967_296_u64)),
        ("/branches/1/children/0/1", json!({"branch": 1})), // a cycle
        ("/branches/1/children/0/1", json!({"branch": 9})),
        ("/branches/2/children/1/1", json!({"branch": 1})), // two parents
        ("/branches/2/children/1/1", Value::Null),          // an orphan
        ("/branches/0/children/2/1", json!(1)),             // leaf 1 twice, none left out
        ("/branches/0/children/1/0", json!("params")),
        ("/branches/0/children/2/0", json!({"index": 2})),
        ("/branches/0/children/2/0", json!(1.5)),
        ("/branches/0/children/2/0", json!(u64::MAX)),
        ("/branches/0/kind", json!("list")),
        ("/branches/0/kind", json!("object")), // lacks its type
        ("/groups/1/path", json!("params/w")),
        ("/leaves/0/path", json!("../../etc")),
        ("/leaves/0/path", json!("/w")),
        ("/leaves/0/path", json!("a//b")),
        ("/leaves/0/path", json!("zarr.json")),
        ("/leaves/0/path", json!("a/b".repeat(400))),
        ("/leaves/0/shape", json!([20, 8])),
        ("/leaves/0/shape", json!([12])),
        ("/leaves/0/shape", json!([u64::MAX, u64::MAX])),
        ("/leaves/0/chunk_shape", json!([0, 8])),
        ("/leaves/0/chunk_shape", json!([3, 8])),
        ("/leaves/0/shard_shape", json!([8])),
        ("/leaves/0/objects/0/2", json!("2A")),
        ("/leaves/0/objects/0/2", json!("+".repeat(32))),
        ("/leaves/0/objects/0/1", json!(4_294_967_296_u64)),
        ("/leaves/0/objects/0", json!([1])),
        ("/leaves/1/implementation", Value::Null),
    ];
    for (place, value) in edits {
        let bytes = edited(|v| *v.pointer_mut(place).unwrap() = value.clone());
        let error = Index::parse_json(&bytes).expect_err(&format!("{place} = {value}"));
        assert_eq!(error.kind(), FormatErrorKind::Corrupt, "{place} = {value}: {error}");
    }
}

#[test]
fn an_inconsistent_index_is_not_written() {
    let mut twice = golden();
    twice.leaves[1].path = "params/w".into();
    let mut short = golden();
    short.leaves[0].objects.pop();
    for index in [twice, short, deep(DEPTH_MAX + 1)] {
        assert_eq!(index.to_json().unwrap_err().kind(), FormatErrorKind::Invalid);
        assert_eq!(index.to_chunk().unwrap_err().kind(), FormatErrorKind::Invalid);
    }
}

#[test]
fn trees_are_as_deep_as_the_limit_and_hostile_ones_do_not_use_the_stack() {
    let index = deep(DEPTH_MAX);
    assert_eq!(Index::parse_json(&index.to_json().unwrap()).unwrap(), index);
    let branch = |n: usize| json!({"kind": "list", "children": [[{"index": 0}, {"branch": n}]]});
    let chain = edited(|v| v["branches"] = (1..=200_000).map(branch).collect());
    let error = Index::parse_json(&chain).unwrap_err();
    assert!(error.to_string().contains("deeper than 512"), "{error}");
    for text in ["[".repeat(1 << 20), "{\"root\":".repeat(1 << 20)] {
        assert!(Index::parse_json(text.as_bytes()).is_err());
    }
}

#[test]
fn a_stored_index_is_a_zarr_array_of_one_chunk() {
    let stored = golden().to_chunk().unwrap();
    assert_eq!(stored.json_bytes, GOLDEN.len() as u64);
    assert_eq!(Index::parse_chunk(&stored.chunk, stored.json_bytes).unwrap(), golden());
    assert_eq!(stored.document, index_document(stored.json_bytes));
    let want = concat!(
        r#"{"attributes":{"milepost":{"kind":"index"}},"#,
        r#""chunk_grid":{"configuration":{"chunk_shape":[7]},"name":"regular"},"#,
        r#""chunk_key_encoding":{"configuration":{"separator":"."},"name":"default"},"#,
        r#""codecs":[{"configuration":{"endian":"little"},"name":"bytes"},"#,
        r#"{"configuration":{"checksum":false,"level":3},"name":"zstd"},{"name":"crc32c"}],"#,
        r#""data_type":"uint8","dimension_names":["byte"],"fill_value":0,"#,
        r#""node_type":"array","shape":[7],"zarr_format":3}"#,
    );
    assert_eq!(String::from_utf8(index_document(7)).unwrap(), want);
}

#[test]
fn any_truncation_and_any_flipped_bit_of_a_stored_index_is_found() {
    let IndexChunk { chunk, json_bytes, .. } = golden().to_chunk().unwrap();
    for end in 0..chunk.len() {
        assert!(Index::parse_chunk(&chunk[..end], json_bytes).is_err());
    }
    for bit in 0..8 * chunk.len() {
        let mut bad = chunk.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Index::parse_chunk(&bad, json_bytes).is_err());
    }
}

#[test]
fn an_index_larger_or_smaller_than_the_record_says_is_corrupt() {
    let IndexChunk { chunk, json_bytes, .. } = golden().to_chunk().unwrap();
    for claimed in [0, 1, json_bytes - 1, json_bytes + 1, INDEX_JSON_BYTES_MAX, u64::MAX] {
        let error = Index::parse_chunk(&chunk, claimed).unwrap_err();
        assert_eq!(error.kind(), FormatErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn truncated_and_flipped_json_is_an_error_or_an_index_never_a_panic() {
    for end in 0..GOLDEN.len() {
        assert!(Index::parse_json(&GOLDEN.as_bytes()[..end]).is_err());
    }
    for bit in 0..8 * GOLDEN.len() {
        let mut bytes = GOLDEN.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        drop(Index::parse_json(&bytes));
    }
    let twice = GOLDEN.replacen(r#""requires""#, r#""root":0,"requires""#, 1);
    assert!(Index::parse_json(twice.as_bytes()).unwrap_err().to_string().contains("duplicate"));
}

#[test]
fn a_hundred_thousand_leaves_stay_below_two_hundred_bytes_each() {
    let leaves: Vec<Leaf> = (0..100_000).map(|n| leaf(&format!("l{n}"))).collect();
    let child = |n: u32| (name(&format!("l{n}")), Node::Leaf(n));
    let root = branch(Container::Dict, (0..100_000).map(child).collect());
    let index = Index { root, leaves, groups: vec![], foreign_metadata: vec![] };
    let stored = index.to_chunk().unwrap();
    assert!(stored.json_bytes < 200 * 100_000, "{}", stored.json_bytes);
    assert!(stored.chunk.len() < 20 * 100_000, "{}", stored.chunk.len());
    assert_eq!(Index::parse_chunk(&stored.chunk, stored.json_bytes).unwrap(), index);
}

#[test]
fn attributes_of_nodes_give_keys_kinds_and_containers_back() {
    let keys = [name("opt"), Key::Index(0), Key::Attr("mu".into()), Key::Int(-3)];
    let kind = LeafKind::PrngKey { implementation: "rbg".into() };
    let attributes = leaf_attributes(&keys, &kind, DataType::BFloat16, Some(DataType::UInt16));
    let want = json!({"milepost": {"key": ["opt", {"index": 0}, {"attr": "mu"}, -3],
        "kind": "prng_key", "implementation": "rbg", "data_type": "bfloat16"}});
    assert_eq!(Value::Object(attributes.clone()), want);
    let back = parse_leaf_attributes(&attributes).unwrap().unwrap();
    let data_type = Some(DataType::BFloat16);
    assert_eq!(back, LeafAttributes { keys: keys.to_vec(), kind, data_type });
    let same = leaf_attributes(&keys, &LeafKind::Int, DataType::Int64, Some(DataType::Int64));
    assert_eq!(parse_leaf_attributes(&same).unwrap().unwrap().data_type, None);

    let container = Container::Object { type_name: "m.T".into() };
    let children = vec![
        (name("w"), ChildMark::Node),
        (Key::Int(1), ChildMark::None),
        (Key::Attr("e".into()), ChildMark::Empty(Container::Dict)),
    ];
    let attributes = group_attributes(&keys, &container, &children);
    let want = json!([["w"], [1, null], [{"attr": "e"}, {"kind": "dict"}]]);
    assert_eq!(attributes["milepost"]["children"], want);
    let back = parse_group_attributes(&attributes).unwrap().unwrap();
    assert_eq!(back, GroupAttributes { keys: keys.to_vec(), container, children });
}

#[test]
fn attributes_that_are_not_ours_are_none_and_damaged_ones_are_errors() {
    let map = |value: Value| value.as_object().unwrap().clone();
    assert_eq!(parse_leaf_attributes(&map(json!({"x": 1}))).unwrap(), None);
    assert_eq!(parse_group_attributes(&map(json!({"milepost": {"kind": "run"}}))).unwrap(), None);
    for value in [
        json!({"milepost": 1}),
        json!({"milepost": {"key": ["a"]}}),
        json!({"milepost": {"key": "a", "kind": "int"}}),
        json!({"milepost": {"key": [1.5], "kind": "int"}}),
        json!({"milepost": {"key": [], "kind": "int", "data_type": 1}}),
    ] {
        assert!(parse_leaf_attributes(&map(value)).is_err());
    }
    for children in [json!(1), json!([[]]), json!([["a"], ["a"]]), json!([["a", 1]]), json!(["a"])]
    {
        let value =
            json!({"milepost": {"key": [], "container": {"kind": "dict"}, "children": children}});
        assert!(parse_group_attributes(&map(value)).is_err());
    }
}

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![
        ".{0,6}".prop_map(Key::Name),
        any::<i64>().prop_map(Key::Int),
        any::<u64>().prop_map(Key::Index),
        ".{0,6}".prop_map(Key::Attr),
    ]
}

/// A tree with `Leaf(0)` at every leaf; [`number`] gives them their numbers.
fn nodes() -> impl Strategy<Value = Node> {
    prop_oneof![Just(Node::Leaf(0)), Just(Node::None)].prop_recursive(5, 40, 5, |inner| {
        (proptest::collection::btree_map(keys(), inner, 0..5), any::<bool>()).prop_map(
            |(map, list)| {
                if list {
                    let children = map.into_values().enumerate();
                    branch(
                        Container::List,
                        children.map(|(i, n)| (Key::Index(i as u64), n)).collect(),
                    )
                } else {
                    let type_name = "t".to_owned();
                    branch(Container::Object { type_name }, map.into_iter().collect())
                }
            },
        )
    })
}

fn number(node: &mut Node, next: &mut u32) {
    match node {
        Node::Leaf(n) => {
            *n = *next;
            *next += 1;
        }
        Node::None => {}
        Node::Branch { children, .. } => children.iter_mut().for_each(|c| number(&mut c.1, next)),
    }
}

proptest! {
    #[test]
    fn every_index_survives(mut root in nodes(), sizes in any::<(u64, u32, Option<u128>)>()) {
        let mut count = 0;
        number(&mut root, &mut count);
        let objects = vec![object(sizes.0, sizes.1, sizes.2)];
        let leaves = (0..count).map(|n| Leaf { objects: objects.clone(), ..leaf(&format!("{n}")) });
        let index =
            Index { root, leaves: leaves.collect(), groups: vec![], foreign_metadata: vec![] };
        let json = index.to_json().unwrap();
        prop_assert_eq!(&Index::parse_json(&json).unwrap(), &index);
        let canonical = json::to_bytes(&serde_json::from_slice(&json).unwrap());
        prop_assert_eq!(canonical, json);
    }

    #[test]
    fn any_member_may_be_any_value(
        member in proptest::sample::select(vec![
            "branches", "foreign_metadata", "groups", "leaves", "requires", "root", "version"]),
        value in json::tests::values(),
    ) {
        drop(Index::parse_json(&edited(|v| v[member] = value)));
    }

    #[test]
    fn every_key_survives_as_json(key in keys()) {
        prop_assert_eq!(Key::from_json(&key.to_json()).unwrap(), key);
    }
}
