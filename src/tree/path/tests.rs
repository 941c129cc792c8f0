//! Tests of key paths and their escaping.

use super::*;
use proptest::prelude::*;

#[test]
fn segments_escape_as_the_specification_says() {
    for (text, want) in [
        ("kernel", "kernel"),
        ("h_0", "h_0"),
        ("layer-1.weight", "layer-1.weight"),
        ("_private", "_private"),
        ("", "%"),
        ("%", "%25"),
        ("%h", "%25h"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("é", "%C3%A9"),
        ("\0", "%00"),
        ("~", "%7E"),
        ("__", "%5F_"),
        ("__init__", "%5F_init__"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "%2E%2E%2E"),
        ("a.", "a%2E"),
        ("a..", "a.%2E"),
        (".a", ".a"),
        ("__.", "%5F_%2E"),
        ("zarr.json", "%7Aarr.json"),
        ("zarr.json.", "zarr.json%2E"),
        ("Zarr.json", "Zarr.json"),
        ("_milepost", "%5Fmilepost"),
        (".milepost", ".milepost"),
        ("c.0.0", "c.0.0"),
        ("['b'][0]", "%5B%27b%27%5D%5B0%5D"),
    ] {
        assert_eq!(escape_segment(text), want, "{text:?}");
        assert_eq!(unescape_segment(want).unwrap(), text);
    }
}

#[test]
fn a_long_segment_is_a_readable_prefix_and_the_hash_of_its_text() {
    let just = "a".repeat(200);
    assert_eq!(escape_segment(&just), just);
    let text = "a".repeat(201);
    let hash = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
    let want = format!("{}%h{hash:032x}", "a".repeat(160));
    assert_eq!(escape_segment(&text), want);
    assert!(unescape_segment(&want).is_err());
    // 158 + one escape that begins at 158, or 159: the cut moves before it.
    for lead in [158, 159] {
        let text = format!("{}{}", "a".repeat(lead), " ".repeat(40));
        let escaped = escape_segment(&text);
        assert!(escaped.starts_with(&format!("{}%h", "a".repeat(lead))), "{escaped}");
    }
    let text = format!("{}{}", "a".repeat(157), " ".repeat(40));
    assert!(escape_segment(&text).starts_with(&format!("{}%20%h", "a".repeat(157))));
}

#[test]
fn a_path_displays_as_its_node_path_and_has_a_limit() {
    let path = KeyPath::root().child("opt").child(0_usize).child(-7).child("a/b");
    assert_eq!(path.to_string(), "opt/0/-7/a%2Fb");
    assert_eq!(path.node_path().unwrap(), "opt/0/-7/a%2Fb");
    assert_eq!(KeyPath::root().to_string(), "");
    assert!(path.starts_with(&KeyPath::from(["opt"])));
    let key = "k".repeat(199);
    let fits: KeyPath = [&key, &key, &key, &key, &"k".repeat(100)].into_iter().collect();
    assert_eq!(fits.node_path().unwrap().len(), 900);
    let over: KeyPath = [&key, &key, &key, &key, &"k".repeat(101)].into_iter().collect();
    assert_eq!(over.node_path().unwrap_err().kind(), crate::ErrorKind::Invalid);
}

#[test]
fn text_that_no_key_path_displays_as_is_refused() {
    for text in [
        "/a",
        "a/",
        "a//b",
        "a b",
        "%2f",
        "%2",
        "%zz",
        "%61",
        ".",
        "..",
        "__a",
        "zarr.json",
        "é",
        "%FF",
    ] {
        let error = KeyPath::parse(text).expect_err(text);
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
    }
    assert_eq!(KeyPath::parse("a/%/%2E").unwrap(), KeyPath::from(["a", "", "."]));
    assert_eq!(KeyPath::parse("").unwrap(), KeyPath::root());
}

/// Texts that meet the rules: short ones of special characters, any Unicode, and long ones.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[._%ah/ 2E-]{0,4}",
        2 => any::<String>(),
        1 => "[a. ]{150,210}",
        1 => proptest::sample::select(vec!["zarr.json", "_milepost", "__", "%", ""])
            .prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn two_texts_never_share_a_segment(a in texts(), b in texts()) {
        prop_assert_eq!(a == b, escape_segment(&a) == escape_segment(&b));
    }

    #[test]
    fn a_segment_is_a_legal_node_name_and_gives_its_text_back(text in texts()) {
        let segment = escape_segment(&text);
        prop_assert!(!segment.is_empty() && segment.len() <= SEGMENT_BYTES_MAX);
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-%".contains(&b);
        prop_assert!(segment.bytes().all(legal));
        prop_assert!(!segment.starts_with("__") && !segment.ends_with('.'));
        prop_assert!(!RESERVED.contains(&&*segment));
        if !segment.contains("%h") {
            prop_assert_eq!(unescape_segment(&segment).unwrap(), text);
        }
    }

    #[test]
    fn whatever_unescapes_escapes_back(segment in "[%a-fA-F0-9._h-]{0,12}") {
        if let Ok(text) = unescape_segment(&segment) {
            prop_assert_eq!(escape_segment(&text), segment);
        }
    }
}
