//! Array and group documents, fill values, codec texts and shard indexes.

use crate::{check, hex, kind, text, unhex, with};
use milepost_formats::zarr3::{Compressor, Document, ShardIndex};
use serde_json::{Value, json};

fn array(data_type: &str, fill_value: &Value, codecs: &Value) -> Value {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill_value, "codecs": codecs,
    })
}

fn plain() -> Value {
    json!([{"name": "bytes", "configuration": {"endian": "little"}}])
}

#[test]
fn documents_parse_to_their_outcome_and_canonical_bytes() {
    check("documents.json", |entry| {
        let (outcome, canonical) = match Document::parse(text(entry, "document").as_bytes()) {
            Ok(Document::Array(array)) => ("array", Some(array.to_bytes())),
            Ok(Document::Group(group)) => ("group", Some(group.to_bytes())),
            Ok(Document::Foreign(_)) => ("foreign", None),
            Err(error) => (kind(&error), None),
        };
        let entry = with(entry, "outcome", outcome);
        match canonical {
            Some(bytes) => with(&entry, "canonical", String::from_utf8(bytes).unwrap()),
            None => entry,
        }
    });
}

#[test]
fn fill_values_parse_to_their_element_and_canonical_json() {
    check("fill_values.json", |entry| {
        let document = array(&text(entry, "data_type"), &entry["fill_value"], &plain());
        match Document::parse(document.to_string().as_bytes()).unwrap() {
            Document::Array(array) => {
                let entry = with(entry, "element", hex(&array.fill_value));
                with(&entry, "canonical", array.to_json()["fill_value"].clone())
            }
            _ => with(entry, "element", Value::Null),
        }
    });
}

#[test]
fn codec_texts_have_their_canonical_text_and_codecs() {
    check("codecs.json", |entry| {
        let Ok(compressor) = text(entry, "text").parse::<Compressor>() else {
            return with(entry, "canonical", Value::Null);
        };
        let document = array("float32", &json!(0), &plain());
        let Document::Array(mut array) = Document::parse(document.to_string().as_bytes()).unwrap()
        else {
            panic!("a plain array is in our profile");
        };
        array.codecs.chain.compressor = compressor.with_typesize(4);
        array.codecs.chain.crc32c = true;
        let entry = with(entry, "canonical", compressor.to_string());
        with(&entry, "codecs", array.to_json()["codecs"].clone())
    });
}

#[test]
fn shard_indexes_parse_to_their_entries() {
    check("shard_index.json", |entry| {
        let bytes = unhex(&text(entry, "bytes"));
        let chunks = entry["chunks"].as_u64().unwrap();
        let crc32c = entry["crc32c"].as_bool().unwrap();
        match ShardIndex::parse(&bytes, chunks, crc32c, entry["object_bytes"].as_u64()) {
            Ok(index) => {
                assert_eq!(index.to_bytes(crc32c), bytes);
                with(entry, "entries", json!(index.entries))
            }
            Err(error) => with(entry, "entries", kind(&error)),
        }
    });
}
