//! Documents: golden bytes, round trips, truncation, flips and hostile members.

use super::{short::tests::compressors, *};
use crate::{DataType, FormatErrorKind, json};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const GOLDEN: &str = concat!(
    r#"{"attributes":{"milepost":{"key":["w"]}},"#,
    r#""chunk_grid":{"configuration":{"chunk_shape":[256,512]},"name":"regular"},"#,
    r#""chunk_key_encoding":{"configuration":{"separator":"."},"name":"default"},"#,
    r#""codecs":[{"configuration":{"chunk_shape":[64,512],"codecs":["#,
    r#"{"configuration":{"endian":"little"},"name":"bytes"},"#,
    r#"{"configuration":{"checksum":false,"level":3},"name":"zstd"},{"name":"crc32c"}],"#,
    r#""index_codecs":[{"configuration":{"endian":"little"},"name":"bytes"},{"name":"crc32c"}],"#,
    r#""index_location":"end"},"name":"sharding_indexed"}],"#,
    r#""data_type":"bfloat16","dimension_names":["in",null],"fill_value":0.0,"#,
    r#""node_type":"array","shape":[1000,512],"zarr_format":3}"#,
);

fn golden() -> ArrayDocument {
    ArrayDocument {
        shape: vec![1000, 512],
        data_type: DataType::BFloat16,
        grid_shape: vec![256, 512],
        separator: '.',
        codecs: Codecs {
            sharding: Some(Sharding {
                chunk_shape: vec![64, 512],
                index_location: IndexLocation::End,
                index_crc32c: true,
            }),
            chain: Chain {
                transpose: None,
                compressor: Compressor::Zstd { level: 3, checksum: false },
                crc32c: true,
            },
        },
        fill_value: vec![0, 0],
        dimension_names: Some(vec![Some("in".into()), None]),
        attributes: json::object([("milepost", json!({"key": ["w"]}))]),
    }
}

/// A plain array document with one member replaced or, for null, removed.
fn with(member: &str, value: Value) -> Vec<u8> {
    let mut document = json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": [10, 20],
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 20]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 7,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    });
    if value.is_null() {
        document.as_object_mut().unwrap().remove(member);
    } else {
        document[member] = value;
    }
    document.to_string().into_bytes()
}

fn array(bytes: &[u8]) -> ArrayDocument {
    match Document::parse(bytes).unwrap() {
        Document::Array(array) => array,
        other => panic!("not in our profile: {other:?}"),
    }
}

#[test]
fn the_canonical_bytes_of_an_array_are_those_of_the_specification() {
    assert_eq!(String::from_utf8(golden().to_bytes()).unwrap(), GOLDEN);
    assert_eq!(array(GOLDEN.as_bytes()), golden());
}

#[test]
fn derived_sizes_and_keys_follow_the_grid() {
    let mut array = golden();
    assert_eq!(array.grid_counts(), [4, 1]);
    assert_eq!(array.chunks_per_shard(), [4, 1]);
    assert_eq!(array.chunk_shape(), [64, 512]);
    assert_eq!(array.object_key(&[3, 0]), "c.3.0");
    array.separator = '/';
    assert_eq!(array.object_key(&[3, 0]), "c/3/0");
    assert_eq!(array.object_key(&[]), "c");
    array.codecs.sharding = None;
    assert_eq!(array.chunks_per_shard(), [1, 1]);
    assert_eq!(array.chunk_shape(), [256, 512]);
}

#[test]
fn groups_and_consolidated_metadata_survive() {
    let consolidated = Some(vec![("a".into(), json!({"x": 1})), ("a/b".into(), json!({}))]);
    let group = GroupDocument { attributes: Map::new(), consolidated };
    let want = concat!(
        r#"{"attributes":{},"consolidated_metadata":{"kind":"inline","metadata":{"a":{"x":1},"#,
        r#""a/b":{}},"must_understand":false},"node_type":"group","zarr_format":3}"#,
    );
    assert_eq!(String::from_utf8(group.to_bytes()).unwrap(), want);
    assert_eq!(Document::parse(want.as_bytes()).unwrap(), Document::Group(group));
    let plain = br#"{"zarr_format":3,"node_type":"group","consolidated_metadata":null}"#;
    assert_eq!(Document::parse(plain).unwrap(), Document::Group(GroupDocument::default()));
    let other = br#"{"zarr_format":3,"node_type":"group","x":{"must_understand":false}}"#;
    assert_eq!(Document::parse(other).unwrap(), Document::Group(GroupDocument::default()));
}

#[test]
fn what_other_writers_leave_out_has_its_default() {
    let plain = array(&with("attributes", json!({})));
    assert_eq!((plain.separator, plain.dimension_names), ('/', None));
    assert_eq!(plain.fill_value, [7, 0]);
    let zstd = json!([{"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 0}}, "crc32c"]);
    let chain = array(&with("codecs", zstd)).codecs.chain;
    assert_eq!(chain.compressor, Compressor::Zstd { level: 0, checksum: false });
    assert!(chain.crc32c);
    array(&with("storage_transformers", json!([])));
    array(&with("other", json!({"must_understand": false, "x": 1})));
    array(&with("data_type", json!({"name": "int16", "configuration": {}})));
}

#[test]
fn valid_arrays_outside_the_profile_are_foreign() {
    let little = json!({"name": "bytes", "configuration": {"endian": "little"}});
    let shard = json!({"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 5],
        "codecs": [little.clone()], "index_codecs": [little.clone()]}});
    array(&with("codecs", json!([shard.clone()])));
    let mut nested = shard.clone();
    nested["configuration"]["codecs"] = json!([shard.clone()]);
    for (member, value) in [
        ("codecs", json!([{"name": "bytes", "configuration": {"endian": "big"}}])),
        ("codecs", json!([{"name": "bytes"}])),
        (
            "codecs",
            json!([little, {"name": "crc32c"}, {"name": "gzip", "configuration": {"level": 1}}]),
        ),
        ("codecs", json!([little, {"name": "numcodecs.lzma"}])),
        ("codecs", json!([{"name": "crc32c"}])),
        ("codecs", json!([shard, {"name": "crc32c"}])),
        ("codecs", json!([nested])),
        ("codecs", json!([little, {"name": "zstd", "configuration": {"level": 1, "x": 2}}])),
        ("chunk_grid", json!({"name": "rectilinear", "configuration": {}})),
        ("chunk_key_encoding", json!({"name": "v2", "configuration": {"separator": "."}})),
        ("storage_transformers", json!([{"name": "x"}])),
        ("fill_value", json!("x")),
        ("fill_value", json!(40000)),
        ("data_type", json!("string")),
        ("data_type", json!({"name": "int16", "configuration": {"x": 1}})),
    ] {
        let bytes = with(member, value);
        let document = Document::parse(&bytes).unwrap();
        let Document::Foreign(foreign) = document else { panic!("{document:?}") };
        assert_eq!(foreign.shape, [10, 20]);
        assert!(["int16", "string"].contains(&foreign.data_type_name.as_str()));
    }
}

#[test]
fn sizes_that_lie_are_refused_by_name() {
    let grid = |shape: Value| json!({"name": "regular", "configuration": {"chunk_shape": shape}});
    let shard = |shape: Value| {
        json!([{"name": "sharding_indexed", "configuration": {"chunk_shape": shape,
            "codecs": [], "index_codecs": []}}])
    };
    for (member, value) in [
        ("shape", json!([10])),
        ("shape", json!([10, -1])),
        ("shape", json!([10, 1.5])),
        ("shape", json!([u64::MAX, 1])),
        ("shape", json!([1_u64 << 33, 1_u64 << 33])),
        ("shape", json!(vec![1; 65])),
        ("shape", json!(10)),
        ("shape", Value::Null),
        ("chunk_grid", grid(json!([0, 20]))),
        ("chunk_grid", grid(json!([4]))),
        ("chunk_grid", grid(json!([1_u64 << 32, 1_u64 << 32]))),
        ("chunk_grid", grid(json!([u64::MAX, 1]))),
        ("chunk_grid", grid(Value::Null)),
        ("chunk_grid", Value::Null),
        ("codecs", shard(json!([3, 20]))),
        ("codecs", shard(json!([0, 20]))),
        ("codecs", shard(json!([4]))),
        ("codecs", json!([])),
        ("codecs", json!([{"name": "transpose", "configuration": {"order": [0, 0]}}])),
        ("codecs", json!([{"name": "transpose", "configuration": {"order": [0]}}])),
        ("codecs", json!([{"name": "gzip", "configuration": {"level": 10}}])),
        ("codecs", json!([{"name": "zstd", "configuration": {"level": 1e3}}])),
        ("codecs", json!([{"name": "blosc", "configuration": {"typesize": 0}}])),
        ("codecs", json!([{"configuration": {}}])),
        ("codecs", json!([7])),
        ("chunk_key_encoding", json!({"name": "default", "configuration": {"separator": "-"}})),
        ("chunk_key_encoding", Value::Null),
        ("dimension_names", json!(["x"])),
        ("dimension_names", json!(["x", 1])),
        ("attributes", json!([])),
        ("fill_value", Value::Null),
        ("data_type", json!(7)),
        ("storage_transformers", json!({})),
        ("zarr_format", json!("3")),
        ("node_type", Value::Null),
    ] {
        let error = Document::parse(&with(member, value)).expect_err(member);
        assert_eq!(error.kind(), FormatErrorKind::Corrupt, "{error}");
        let named = error.to_string().contains(member);
        assert!(
            named || (member == "shape" && error.to_string().contains("chunk_shape")),
            "{error}"
        );
    }
}

#[test]
fn what_is_newer_is_unsupported() {
    for (member, value) in [
        ("zarr_format", json!(2)),
        ("zarr_format", json!(4)),
        ("node_type", json!("link")),
        ("other", json!({"must_understand": true})),
        ("other", json!(1)),
    ] {
        let error = Document::parse(&with(member, value)).unwrap_err();
        assert_eq!(error.kind(), FormatErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(member));
    }
}

#[test]
fn truncated_and_flipped_documents_are_errors_or_documents_never_a_panic() {
    for end in 0..GOLDEN.len() {
        assert!(Document::parse(&GOLDEN.as_bytes()[..end]).is_err());
    }
    for bit in 0..8 * GOLDEN.len() {
        let mut bytes = GOLDEN.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        drop(Document::parse(&bytes));
    }
}

#[test]
fn hostile_documents_are_errors() {
    let twice = GOLDEN.replacen(r#""shape""#, r#""zarr_format":3,"shape""#, 1);
    let deep = GOLDEN.replacen(r#"{"key":["w"]}"#, &"[".repeat(100_000), 1);
    let huge = GOLDEN.replacen("1000", "1e400", 1);
    let long = vec![b' '; json::DOCUMENT_BYTES_MAX + 1];
    for bytes in [twice.as_bytes(), deep.as_bytes(), huge.as_bytes(), &long, b"", b"3", b"\xff"] {
        assert_eq!(Document::parse(bytes).unwrap_err().kind(), FormatErrorKind::Corrupt);
    }
}

fn documents() -> impl Strategy<Value = ArrayDocument> {
    let types = proptest::sample::select(DataType::ALL)
        .prop_filter("sub-byte and boolean elements have unused bits", |t| {
            *t != DataType::Bool && !t.to_string().contains(['2', '4', '6']) || t.size_bytes() > 1
        });
    let axes = proptest::collection::vec((0..50_u64, 1..9_u64, 1..5_u64), 0..4);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let fill = proptest::collection::vec(any::<u8>(), 16);
    (types, axes, flags, fill, compressors()).prop_map(
        |(data_type, axes, flags, fill, compressor)| {
            let (sharded, crc32c, named, dotted, transposed) = flags;
            let chunk_shape: Vec<u64> = axes.iter().map(|a| a.1).collect();
            let sharding = sharded.then(|| Sharding {
                chunk_shape: chunk_shape.clone(),
                index_location: if named { IndexLocation::End } else { IndexLocation::Start },
                index_crc32c: dotted,
            });
            let grid = |a: &(u64, u64, u64)| if sharded { a.1 * a.2 } else { a.1 };
            let transpose = transposed.then(|| (0..axes.len()).rev().collect());
            ArrayDocument {
                shape: axes.iter().map(|a| a.0).collect(),
                data_type,
                grid_shape: axes.iter().map(grid).collect(),
                separator: if dotted { '.' } else { '/' },
                codecs: Codecs { sharding, chain: Chain { transpose, compressor, crc32c } },
                fill_value: fill[..data_type.size_bytes()].to_vec(),
                dimension_names: named
                    .then(|| axes.iter().map(|a| Some(format!("d{}", a.2))).collect()),
                attributes: Map::new(),
            }
        },
    )
}

proptest! {
    #[test]
    fn every_array_document_survives(document in documents()) {
        let bytes = document.to_bytes();
        let back = Document::parse(&bytes).unwrap();
        prop_assert_eq!(back, Document::Array(document));
    }

    #[test]
    fn any_member_may_be_any_value(
        member in proptest::sample::select(vec![
            "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
            "attributes", "storage_transformers", "dimension_names", "consolidated_metadata"]),
        value in json::tests::values(),
    ) {
        drop(Document::parse(&with(member, value)));
    }
}
