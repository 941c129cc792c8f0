//! Root documents and indexes.

use crate::{check, hex, kind, text, unhex, with};
use milepost_formats::{index::Index, record::Root};
use serde_json::json;

#[test]
fn root_documents_parse_to_their_outcome() {
    check("roots.json", |entry| {
        let outcome = match Root::parse(text(entry, "document").as_bytes()) {
            Ok(Root::Checkpoint { rewritten: false, .. }) => "checkpoint",
            Ok(Root::Checkpoint { rewritten: true, .. }) => "rewritten",
            Ok(Root::Run(_)) => "run",
            Ok(Root::Revoked { .. }) => "revoked",
            Ok(Root::Foreign) => "foreign",
            Err(error) => kind(&error),
        };
        with(entry, "outcome", outcome)
    });
}

#[test]
fn indexes_parse_to_their_outcome() {
    check("indexes.json", |entry| match Index::parse_json(text(entry, "json").as_bytes()) {
        Ok(index) => {
            let canonical = String::from_utf8(index.to_json().unwrap()).unwrap();
            with(&with(entry, "outcome", "index"), "canonical", canonical)
        }
        Err(error) => with(entry, "outcome", kind(&error)),
    });
}

#[test]
fn stored_index_chunks_parse_to_their_outcome() {
    check("index_chunks.json", |entry| {
        let chunk = unhex(&text(entry, "chunk"));
        assert_eq!(hex(&chunk), text(entry, "chunk"));
        match Index::parse_chunk(&chunk, entry["json_bytes"].as_u64().unwrap()) {
            Ok(index) => with(entry, "leaves", json!(index.leaves.len())),
            Err(error) => with(entry, "leaves", kind(&error)),
        }
    });
}
