//! The vectors of `spec/vectors` that concern formats, and the golden checkpoint there.
//!
//! Each file is a JSON array of inputs with what must come of them. `MILEPOST_VECTORS=write` computes the
//! outcomes anew and rewrites the files: for new entries only, as a changed outcome is a changed format.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test crate: clippy knows tests by their attribute, not their helpers"
)]

mod checkpoint;
mod content;
mod documents;
mod records;

use serde_json::Value;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../spec/vectors").join(name)
}

fn is_writing() -> bool {
    std::env::var("MILEPOST_VECTORS").is_ok_and(|v| v == "write")
}

fn read(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

/// Compares each entry of a file with what `outcome` makes of it.
fn check(name: &str, outcome: impl Fn(&Value) -> Value) {
    let entries = read(name);
    assert!(!entries.is_empty());
    let want: Vec<Value> = entries.iter().map(outcome).collect();
    if is_writing() {
        let lines: Vec<String> = want.iter().map(Value::to_string).collect();
        std::fs::write(path(name), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
        return;
    }
    for (entry, want) in entries.iter().zip(&want) {
        assert_eq!(entry, want, "{name}");
    }
}

/// Returns the entry with one member set.
fn with(entry: &Value, member: &str, value: impl Into<Value>) -> Value {
    let mut entry = entry.clone();
    entry[member] = value.into();
    entry
}

fn text(entry: &Value, member: &str) -> String {
    entry[member].as_str().unwrap_or_else(|| panic!("{member} in {entry}")).to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from_digit(n.into(), 16).unwrap())
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn kind(error: &milepost_formats::FormatError) -> &'static str {
    use milepost_formats::FormatErrorKind as Kind;
    match error.kind() {
        Kind::Corrupt => "corrupt",
        Kind::Unsupported => "unsupported",
        Kind::Invalid => "invalid",
    }
}
