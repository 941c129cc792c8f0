//! The index of a model in several files.

use crate::{
    FormatErrorKind,
    safetensors::{ShardIndex, check_file_name, shard_file_name},
};
use proptest::prelude::*;

const GOLDEN: &str = r#"{
  "metadata": {
    "format": "pt",
    "total_size": 24
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors"
  }
}
"#;

#[test]
fn the_golden_index_reads_and_is_written_again_byte_for_byte() {
    let index = ShardIndex::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(index.total_size, Some(24));
    assert_eq!(index.metadata.len(), 1);
    assert_eq!(
        index.files(),
        ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    );
    assert_eq!(index.encode().unwrap(), GOLDEN.as_bytes());
    assert_eq!(shard_file_name("model", 2, 2), index.files()[0]);
}

#[test]
fn an_index_cut_at_any_byte_is_refused() {
    for end in 0..GOLDEN.len() - 2 {
        let error = ShardIndex::parse(&GOLDEN.as_bytes()[..end]).expect_err("a truncated index");
        assert_eq!(error.kind(), FormatErrorKind::Corrupt);
    }
}

#[test]
fn the_size_may_be_a_whole_float_or_absent() {
    let size = |json: &str| ShardIndex::parse(json.as_bytes()).unwrap().total_size;
    assert_eq!(
        size(r#"{"metadata":{"total_size":13476831232.0},"weight_map":{}}"#),
        Some(13_476_831_232)
    );
    assert_eq!(size(r#"{"metadata":{"total_size":1e300},"weight_map":{}}"#), None);
    assert_eq!(size(r#"{"metadata":{"total_size":-1},"weight_map":{}}"#), None);
    assert_eq!(size(r#"{"metadata":null,"weight_map":{}}"#), None);
    assert_eq!(size(r#"{"weight_map":{}}"#), None);
}

#[test]
fn file_names_that_leave_the_directory_are_refused_with_their_tensor() {
    for name in [
        "",
        ".",
        "..",
        "../a.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        "..\\a",
        "C:a",
        "http:a",
        "a\0b",
        "a\nb",
        "%2e%2E",
        "..%2fa",
        "%5C%5Chost",
    ] {
        assert!(check_file_name(name).is_err(), "{name:?}");
        let json = serde_json::json!({ "weight_map": { "the.tensor": name } }).to_string();
        let error = ShardIndex::parse(json.as_bytes()).expect_err(name);
        assert_eq!(error.kind(), FormatErrorKind::Corrupt);
        assert!(error.to_string().contains("the.tensor"));
        let weight_map = vec![("t".to_owned(), name.to_owned())];
        assert!(ShardIndex { weight_map, ..ShardIndex::default() }.encode().is_err());
    }
    for name in ["a.safetensors", "...", "..a", "a b", "ü.safetensors", "-"] {
        check_file_name(name).unwrap();
    }
    assert!(check_file_name(&"a".repeat(256)).is_err());
}

#[test]
fn an_index_that_is_none_or_names_a_tensor_twice_is_refused() {
    let deep = format!(r#"{{"metadata":{}"#, "[".repeat(100_000));
    let deep_value = format!(
        r#"{{"weight_map":{{}},"metadata":{{"a":{}{}}}}}"#,
        "[".repeat(9_999),
        "]".repeat(9_999)
    );
    for json in [
        "",
        "{}",
        "[]",
        r#"{"weight_map":[]}"#,
        r#"{"weight_map":{"a":1}}"#,
        r#"{"weight_map":{"a":"f","a":"g"}}"#,
        r#"{"weight_map":{},"weight_map":{}}"#,
        r#"{"metadata":1,"weight_map":{}}"#,
        &deep,
        &deep_value,
    ] {
        let error = ShardIndex::parse(json.as_bytes()).expect_err(json);
        assert_eq!(error.kind(), FormatErrorKind::Corrupt);
    }
    assert!(ShardIndex::parse(b"{\"weight_map\":{\"\xFF\":\"a\"}}").is_err());
}

proptest! {
    #[test]
    fn an_index_comes_back_sorted(map in proptest::collection::btree_map(any::<String>(), "[a-z]{1,5}", 0..9)) {
        let weight_map: Vec<_> = map.into_iter().collect();
        let index = ShardIndex { weight_map, total_size: Some(u64::MAX), ..ShardIndex::default() };
        prop_assert_eq!(ShardIndex::parse(&index.encode().unwrap()).unwrap(), index);
    }
}
