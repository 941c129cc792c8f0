//! Files made to hurt: each is an error that says what is wrong, never a panic, never a large allocation.

use super::{GOLDEN, file, parse};
use crate::{
    FormatErrorKind,
    safetensors::{Header, header_bytes},
};
use proptest::prelude::*;

fn refused(json: &str, data_bytes: usize) -> String {
    let error = parse(&file(json, data_bytes)).expect_err(json);
    assert_eq!(error.kind(), FormatErrorKind::Corrupt, "{json}");
    error.to_string()
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    for end in 0..GOLDEN.len() {
        let error = parse(&GOLDEN[..end]).expect_err("a truncated file");
        assert_eq!(error.kind(), FormatErrorKind::Corrupt, "{end}");
    }
    let longer = [GOLDEN, b"\0"].concat();
    assert!(parse(&longer).unwrap_err().to_string().contains("89 bytes"));
}

#[test]
fn a_huge_header_length_is_refused_before_anything_is_fetched() {
    for length in [100_000_001, u64::MAX, u64::MAX - 8] {
        assert!(header_bytes(&length.to_le_bytes()).is_err());
    }
    assert_eq!(header_bytes(&100_000_000_u64.to_le_bytes()).unwrap(), 100_000_000);
    assert!(header_bytes(b"\x08\0\0").unwrap_err().to_string().contains("has 3"));
}

#[test]
fn headers_that_are_no_headers_are_refused() {
    assert!(Header::parse(b"", 8).is_err());
    assert!(Header::parse(b"{\"\xFF\":0}", 100).unwrap_err().to_string().contains("UTF-8"));
    for json in
        ["[]", "null", "{", "{}x", "\"a\"", "{\"a\":1}", "{\"a\":{}}", "{\"a\":[]}", "{} {}"]
    {
        refused(json, 0);
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    refused(&deep, 0);
    let deep = format!("{{\"a\":{}1{}}}", "{\"b\":".repeat(100_000), "}".repeat(100_000));
    refused(&deep, 0);
    let hidden = "[".repeat(100_000);
    refused(
        &format!(r#"{{"a":{{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":{hidden}}}}}"#),
        1,
    );
}

#[test]
fn tensors_that_do_not_say_what_they_are_are_refused() {
    for tensor in [
        r#"{"dtype":"U8","shape":[1]}"#,
        r#"{"dtype":"U8","data_offsets":[0,1]}"#,
        r#"{"shape":[1],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}"#,
        r#"{"dtype":1,"shape":[1],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[0]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":{"0":0,"1":1}}"#,
    ] {
        refused(&format!(r#"{{"a":{tensor}}}"#), 1);
    }
    let unknown = file(r#"{"a":{"dtype":"F3","shape":[1],"data_offsets":[0,1]}}"#, 1);
    let error = parse(&unknown).unwrap_err();
    assert_eq!(error.kind(), FormatErrorKind::Unsupported);
    assert!(error.to_string().contains("\"F3\"") && error.to_string().contains("\"a\""));
    let rank = |n: usize| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#,
            "1,".repeat(n - 1)
        )
    };
    parse(&file(&rank(64), 1)).unwrap();
    assert!(refused(&rank(65), 1).contains("64 dimensions"));
}

#[test]
fn sizes_that_lie_are_refused() {
    let one = |dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    for (dtype, shape, begin, end) in [
        ("U8", "[2]", 0, 1),
        ("F32", "[1]", 0, 1),
        ("U8", "[1]", 1, 2),
        ("U8", "[1]", 1, 0),
        ("U8", "[0]", 1, 1),
        ("F4", "[1]", 0, 1),
        ("F6_E2M3", "[3]", 0, 3),
        ("F64", "[2305843009213693952]", 0, 0),
        ("U8", "[4294967296,4294967296,4294967296]", 0, 0),
        ("U8", "[18446744073709551615]", 0, u64::MAX),
    ] {
        refused(&one(dtype, shape, begin, end), 1);
    }
    parse(&file(&one("F4", "[2]", 0, 1), 1)).unwrap();
    parse(&file(&one("F6_E3M2", "[4]", 0, 3), 3)).unwrap();
    assert!(refused(&one("U8", "[1]", 0, 1), 2).contains("its tensors 1"));
    assert!(refused(&one("U8", "[1]", 0, 1), 0).contains("file has"));
}

#[test]
fn tensors_that_overlap_or_leave_holes_are_refused_by_name() {
    let two = |b: (u64, u64)| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},
                "b":{{"dtype":"U8","shape":[4],"data_offsets":[{},{}]}}}}"#,
            b.0, b.1
        )
    };
    parse(&file(&two((4, 8)), 8)).unwrap();
    for b in [(0, 4), (2, 6), (5, 9)] {
        let error = refused(&two(b), 9);
        assert!(error.contains("tensor \"") && error.contains("hole or overlap"), "{error}");
    }
}

#[test]
fn names_that_are_there_twice_are_refused() {
    let a = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    assert!(refused(&format!("{{{a},{a}}}"), 1).contains("\"a\" is there twice"));
    let escaped = r#""\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}"#;
    assert!(refused(&format!("{{{a},{escaped}}}"), 2).contains("twice"));
    assert!(refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("twice"));
    assert!(refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0).contains("\"k\" is there twice"));
    refused(r#"{"__metadata__":{"k":1}}"#, 0);
    refused(r#"{"__metadata__":["k"]}"#, 0);
}

#[test]
fn a_long_name_does_not_make_a_long_message() {
    let name = "n".repeat(1_000_000);
    let json = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}}}"#);
    assert!(refused(&json, 2).len() < 400);
}

proptest! {
    #[test]
    fn no_flip_of_a_byte_panics(at in 0..GOLDEN.len(), to in any::<u8>()) {
        let mut file = GOLDEN.to_vec();
        file[at] = to;
        drop(parse(&file));
    }

    #[test]
    fn no_text_panics(json in "[{}\\[\\]\":,0-9a-zU_-]{0,80}", data in 0_usize..20) {
        drop(parse(&file(&json, data)));
    }
}
