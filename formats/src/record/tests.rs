//! Root documents: golden bytes, round trips, hashes, rewriting, truncation, flips and hostile members.

use super::*;
use crate::{FormatErrorKind, json};
use proptest::prelude::*;
use serde_json::json;

const GOLDEN: &str = concat!(
    r#"{"attributes":{"milepost":{"claim":{"bytes":150,"crc32c":7},"committed_ms":1700000001000,"#,
    r#""created_ms":1700000000000,"hash":"HASH","#,
    r#""items":[{"data_bytes":400,"index_bytes":120,"#,
    r#""index_hash":"0000000000000000000000000000002a","index_json_bytes":300,"kind":"tree","#,
    r#""leaves":2,"name":"state","objects":2,"stored_bytes":408}],"kind":"checkpoint","#,
    r#""metadata":{"hash":"user","lr":{"milepost.float":"NaN"}},"metrics":{"loss":2.5},"#,
    r#""notes":["a note"],"requires":[],"step":1200,"timings":[{"ms":1.5,"stage":"write"}],"#,
    r#""version":[1,0],"writer":"w-1"}},"node_type":"group","zarr_format":3}"#,
);

fn golden() -> Record {
    Record {
        step: Some(1200),
        writer: "w-1".into(),
        created_ms: 1_700_000_000_000,
        committed_ms: 1_700_000_001_000,
        items: vec![Item {
            name: "state".into(),
            kind: ItemKind::Tree,
            leaves: 2,
            data_bytes: 400,
            stored_bytes: 408,
            objects: 2,
            index_bytes: 120,
            index_json_bytes: 300,
            index_hash: 42,
            handler: None,
            metadata: Value::Null,
        }],
        claim: Some(Object { bytes: 150, crc32c: 7, content: None }),
        metadata: json::object([("lr", tagged::float(f64::NAN)), ("hash", json!("user"))]),
        metrics: json::object([("loss", json!(2.5))]),
        timings: vec![Timing { stage: "write".into(), ms: 1.5 }],
        notes: vec!["a note".into()],
    }
}

fn checkpoint(bytes: &[u8]) -> (Record, bool) {
    match Root::parse(bytes).unwrap() {
        Root::Checkpoint { record, rewritten } => (*record, rewritten),
        other => panic!("no checkpoint: {other:?}"),
    }
}

#[test]
fn the_document_is_that_of_the_specification_and_hashes_itself() {
    let document = golden().to_document().unwrap();
    let zeroed = GOLDEN.replace("HASH", &"0".repeat(32));
    let hash = xxhash_rust::xxh3::xxh3_128(zeroed.as_bytes());
    let want = GOLDEN.replace("HASH", &format!("{hash:032x}"));
    assert_eq!(String::from_utf8(document.clone()).unwrap(), want);
    assert_eq!(checkpoint(&document), (golden(), false));
}

#[test]
fn a_record_that_another_tool_wrote_anew_is_accepted_and_said_to_be() {
    let document = golden().to_document().unwrap();
    let mut value: Value = serde_json::from_slice(&document).unwrap();
    let pretty = serde_json::to_vec_pretty(&value).unwrap();
    assert_eq!(checkpoint(&pretty), (golden(), true));
    value["attributes"]["other"] = json!("theirs");
    value["consolidated_metadata"] = Value::Null;
    let members = value["attributes"]["milepost"].as_object().unwrap().clone();
    value["attributes"]["milepost"] = Value::Object(members.into_iter().rev().collect());
    assert_eq!(checkpoint(value.to_string().as_bytes()), (golden(), true));
    value["attributes"]["milepost"]["metrics"]["loss"] = json!(2.25);
    let error = Root::parse(value.to_string().as_bytes()).unwrap_err();
    assert_eq!(error.kind(), FormatErrorKind::Corrupt);
}

#[test]
fn any_truncation_and_any_flipped_bit_is_no_checkpoint() {
    let document = golden().to_document().unwrap();
    for end in 0..document.len() {
        assert!(Root::parse(&document[..end]).is_err());
    }
    for bit in 0..8 * document.len() {
        let mut bad = document.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(root) = Root::parse(&bad) {
            // A flip that takes the record its name leaves a node that is not ours.
            assert_eq!(root, Root::Foreign, "bit {bit}");
        }
    }
}

#[test]
fn unknown_members_are_ignored_where_the_hash_covers_them() {
    let mut value: Value = serde_json::from_slice(&golden().to_document().unwrap()).unwrap();
    let milepost = &mut value["attributes"]["milepost"];
    milepost["later"] = json!({"hash": "x"});
    milepost["version"] = json!([1, 4]);
    milepost["hash"] = json!("0".repeat(32));
    let zeroed = json::to_bytes(&value);
    let hash = xxhash_rust::xxh3::xxh3_128(&zeroed);
    value["attributes"]["milepost"]["hash"] = json!(format!("{hash:032x}"));
    assert_eq!(checkpoint(&json::to_bytes(&value)), (golden(), false));
}

#[test]
fn newer_records_are_unsupported() {
    let document = String::from_utf8(golden().to_document().unwrap()).unwrap();
    for (from, to) in [
        (r#""version":[1,0]"#, r#""version":[2,0]"#),
        (r#""requires":[]"#, r#""requires":["teleport"]"#),
        (r#""kind":"checkpoint""#, r#""kind":"holograph""#),
        (r#""zarr_format":3"#, r#""zarr_format":4"#),
    ] {
        let error = Root::parse(document.replace(from, to).as_bytes()).unwrap_err();
        assert_eq!(error.kind(), FormatErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn records_over_their_limits_are_not_written() {
    let mut large = golden();
    large.metadata.insert("blob".into(), json!("x".repeat(METADATA_BYTES_MAX)));
    let error = large.to_document().unwrap_err();
    assert!(error.to_string().contains("over 1 MiB. metadata=`1048"), "{error}");
    let mut chatty = golden();
    chatty.notes = vec!["n".repeat(1000); 66];
    let error = chatty.to_document().unwrap_err();
    assert!(error.to_string().contains("over 64 KiB. bytes=`6"), "{error}");
    let mut fits = golden();
    fits.metadata.insert("blob".into(), json!("x".repeat(METADATA_BYTES_MAX - 1000)));
    assert_eq!(checkpoint(&fits.to_document().unwrap()), (fits, false));
    let mut deep = golden();
    let nested = (0..200).fold(json!(1), |inner, _| json!([inner]));
    deep.metrics.insert("deep".into(), nested);
    let mut endless = golden();
    endless.timings[0].ms = f64::INFINITY;
    let mut twice = golden();
    twice.items.push(twice.items[0].clone());
    let mut astray = golden();
    astray.items[0].name = "../state".into();
    for record in [large, chatty, deep, endless, twice, astray] {
        assert_eq!(record.to_document().unwrap_err().kind(), FormatErrorKind::Invalid);
    }
}

#[test]
fn the_handler_and_the_metadata_of_an_item_are_kept_and_have_limits() {
    let mut record = golden();
    let plain = record.to_document().unwrap();
    assert!(!String::from_utf8(plain).unwrap().contains("handler"), "absent where there is none");
    record.items[0].handler = Some("vocab".into());
    record.items[0].metadata = json!({"hash": "theirs", "x": [tagged::float(f64::NAN)]});
    let document = record.to_document().unwrap();
    assert_eq!(checkpoint(&document), (record.clone(), false));
    let text = String::from_utf8(document).unwrap();
    assert!(text.contains(r#""data_bytes":400,"handler":"vocab","index_bytes""#), "{text}");

    // Metadata counts as metadata, a handler's name as record.
    let mut large = record.clone();
    large.items[0].metadata = json!("x".repeat(RECORD_BYTES_MAX * 2));
    assert_eq!(checkpoint(&large.to_document().unwrap()), (large.clone(), false));
    large.items[0].metadata = json!("x".repeat(METADATA_BYTES_MAX - 8));
    assert!(large.to_document().unwrap_err().to_string().contains("over 1 MiB"));
    let mut deep = record.clone();
    deep.items[0].metadata = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let mut long = record.clone();
    long.items[0].handler = Some("h".repeat(HANDLER_BYTES_MAX + 1));
    let mut empty = record;
    empty.items[0].handler = Some(String::new());
    for record in [deep, long, empty] {
        assert_eq!(record.to_document().unwrap_err().kind(), FormatErrorKind::Invalid);
    }
}

#[test]
fn runs_revoked_records_and_claims_are_told_apart() {
    let metadata = json::object([("step_format", json!("{step}")), ("user", json!({"a": 1}))]);
    let run = run_document(metadata.clone()).unwrap();
    assert_eq!(Root::parse(&run).unwrap(), Root::Run(metadata));
    assert!(run_document(json::object([("kind", json!("x"))])).is_err());
    let revoked = revoked_document("w-2");
    assert_eq!(
        Root::parse(&revoked).unwrap(),
        Root::Revoked { writer: "w-2".into(), deleted: false }
    );
    let deleted = deleted_document("w-4");
    assert_eq!(
        Root::parse(&deleted).unwrap(),
        Root::Revoked { writer: "w-4".into(), deleted: true }
    );
    let claim = Claim { writer: "w-3".into(), heartbeat_ms: 17, holder: None };
    let document = claim_document(&claim);
    let want = concat!(
        r#"{"attributes":{"milepost":{"heartbeat_ms":17,"kind":"claim","requires":[],"#,
        r#""version":[1,0],"writer":"w-3"}},"node_type":"group","zarr_format":3}"#,
    );
    assert_eq!(String::from_utf8(document.clone()).unwrap(), want);
    assert_eq!(parse_claim(&document).unwrap(), Some(claim));
    assert_eq!(parse_claim(&run).unwrap(), None);
    assert_eq!(parse_claim(&crate::index::index_group_document()).unwrap(), None);
    assert!(parse_claim(&document.replace(b"17", b"-1")).is_err());
    assert_eq!(Root::parse(&document).unwrap(), Root::Foreign);
}

trait Replace {
    fn replace(&self, from: &[u8], to: &[u8]) -> Vec<u8>;
}

impl Replace for Vec<u8> {
    fn replace(&self, from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = self.windows(from.len()).position(|w| w == from).unwrap();
        [&self[..at], to, &self[at + from.len()..]].concat()
    }
}

#[test]
fn other_nodes_are_foreign() {
    for text in [
        r#"{"zarr_format":3,"node_type":"group"}"#,
        r#"{"zarr_format":3,"node_type":"group","attributes":{"milepost":7}}"#,
        r#"{"zarr_format":3,"node_type":"group","attributes":{"milepost":{"key":[]}}}"#,
    ] {
        assert_eq!(Root::parse(text.as_bytes()).unwrap(), Root::Foreign);
    }
    assert_eq!(Root::parse(&crate::index::index_document(5)).unwrap(), Root::Foreign);
    let value = json!({"a": [1, "NaN", null]});
    let document = json_document(&value).unwrap();
    assert_eq!(Root::parse(&document).unwrap(), Root::Foreign);
    assert_eq!(parse_json_document(&document).unwrap(), Some(value));
    assert_eq!(parse_json_document(&crate::index::index_document(5)).unwrap(), None);
}

#[test]
fn hostile_roots_are_errors() {
    let document = String::from_utf8(golden().to_document().unwrap()).unwrap();
    let many = document.replacen(
        r#""hash":"user""#,
        &format!(r#""hash":"user",{}"z":0"#, r#""q":[{"hash":"0"}],"#),
        1,
    );
    let twice = document.replacen(r#""writer""#, r#""step":1,"writer""#, 1);
    let deep = document.replacen("2.5", &"[".repeat(100_000), 1);
    for text in [many, twice, deep, "{}".into(), String::new()] {
        assert_eq!(Root::parse(text.as_bytes()).unwrap_err().kind(), FormatErrorKind::Corrupt);
    }
}

proptest! {
    #[test]
    fn every_record_survives(
        step in any::<Option<u64>>(),
        writer in ".{0,20}",
        times in any::<(u64, u64)>(),
        names in proptest::collection::btree_set("[a-z0-9]{1,8}", 0..4),
        numbers in any::<(u64, u64, u128)>(),
        kind in proptest::sample::select(&ItemKind::ALL),
        user in json::tests::values(),
        ms in proptest::num::f64::NORMAL,
    ) {
        let item = |name: String| Item {
            name,
            kind,
            leaves: numbers.0,
            data_bytes: numbers.1,
            index_hash: numbers.2,
            handler: step.map(|step| format!("h{step}")),
            metadata: user.clone(),
            ..golden().items[0].clone()
        };
        let record = Record {
            step,
            writer,
            created_ms: times.0,
            committed_ms: times.1,
            items: names.into_iter().map(item).collect(),
            claim: step.map(|bytes| Object { bytes, crc32c: 1, content: None }),
            metadata: json::object([("user", user.clone())]),
            metrics: json::object([("hash", user)]),
            timings: vec![Timing { stage: "\"hash\":\"".into(), ms }],
            notes: vec![],
        };
        prop_assert_eq!(checkpoint(&record.to_document().unwrap()), (record, false));
    }

    #[test]
    fn any_member_may_be_any_value(
        member in proptest::sample::select(vec!["hash", "items", "kind", "version", "requires", "step"]),
        value in json::tests::values(),
    ) {
        let mut document: Value = serde_json::from_slice(&golden().to_document().unwrap()).unwrap();
        document["attributes"]["milepost"][member] = value;
        let bytes = document.to_string().into_bytes();
        if let Ok(Root::Checkpoint { record, .. }) = Root::parse(&bytes) {
            prop_assert_eq!(*record, golden());
        }
        drop(parse_claim(&bytes));
        drop(parse_json_document(&bytes));
    }
}
