//! JSON as all formats here use it: a strict parser and one canonical form.
//!
//! The parser refuses what JSON leaves open and readers disagree on: a member that is there twice, and
//! nesting beyond 128 levels. The canonical form is UTF-8 without white space, members sorted by the bytes
//! of their names, integers in decimal and floats in the fewest digits that give them back. Equal values
//! have equal bytes, so documents can be compared and hashed.
//!
//! **Invariant:** nothing here recurses deeper than [`DEPTH_MAX`] on bytes that were read.

use crate::{FormatError, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// The largest JSON document that is parsed.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 64 << 20;

/// How deep a value that we write may nest, so that 128 levels with what is around it still parse.
pub(crate) const DEPTH_MAX: usize = 100;

/// Parses a JSON document strictly.
pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Value> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(FormatError::corrupt(format!(
            "{what} is larger than 64 MiB. bytes=`{}`",
            bytes.len()
        )));
    }
    serde_json::from_slice::<Strict>(bytes)
        .map(|strict| strict.0)
        .map_err(|e| FormatError::corrupt(format!("{what} is not valid JSON: {e}")))
}

/// A value none of whose objects names a member twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let Strict(value) = map.next_value()?;
            if members.contains_key(&name) {
                let message = format!("member `{}` is there twice", shorten(&name));
                return Err(serde::de::Error::custom(message));
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

/// Returns the canonical bytes of a value.
pub(crate) fn to_bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(v) => out.extend_from_slice(if *v { b"true" } else { b"false" }),
        Value::Number(n) => out.extend_from_slice(n.to_string().as_bytes()),
        Value::String(s) => write_str(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
            out.push(b'{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_str(name, out);
                out.push(b':');
                write(member, out);
            }
            out.push(b'}');
        }
    }
}

/// Writes a string as JSON does: `"`, `\` and control characters escaped, nothing else.
fn write_str(s: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in s.chars() {
        let short = match c {
            '"' | '\\' => c,
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\u{8}' => 'b',
            '\u{c}' => 'f',
            '\0'..='\u{1f}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
                continue;
            }
            _ => {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        out.push(b'\\');
        out.extend_from_slice(short.encode_utf8(&mut [0; 4]).as_bytes());
    }
    out.push(b'"');
}

/// Tells whether a value nests at most `levels` deep.
pub(crate) fn is_within_depth(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|v| is_within_depth(v, levels - 1)),
        Value::Object(map) => levels > 0 && map.values().all(|v| is_within_depth(v, levels - 1)),
        _ => true,
    }
}

/// Returns an object with these members.
pub(crate) fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Cuts text of unknown length for a message.
pub(crate) fn shorten(text: &str) -> String {
    const BYTES_MAX: usize = 120;
    if text.len() <= BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(BYTES_MAX);
    format!("{}…", text.get(..end).unwrap_or_default())
}

/// Returns a short text of a value for a message.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(members) => format!("an object of {}", members.len()),
        scalar => shorten(&scalar.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn canonical_bytes_are_sorted_and_without_spaces() {
        let value =
            json!({"b": [1, -2, 1.5, 1e300, null, true], "a": {"é\n\"\u{1}": "x"}, "": 0.0});
        let want = r#"{"":0.0,"a":{"é\n\"\u0001":"x"},"b":[1,-2,1.5,1e+300,null,true]}"#;
        assert_eq!(String::from_utf8(to_bytes(&value)).unwrap(), want);
        assert_eq!(parse(want.as_bytes(), "x").unwrap(), value);
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"a":2}}]"#] {
            let error = parse(text.as_bytes(), "the document").unwrap_err();
            assert!(error.to_string().contains("member `a` is there twice"), "{error}");
        }
    }

    #[test]
    fn nesting_without_end_and_huge_numbers_are_errors() {
        for text in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 20), "[1e999]".into()] {
            assert!(parse(text.as_bytes(), "x").is_err());
        }
    }

    /// Any JSON value of moderate size.
    pub(crate) fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            proptest::num::f64::NORMAL.prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|v| Value::Object(v.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_survives_its_canonical_bytes(value in values()) {
            let bytes = to_bytes(&value);
            let back = parse(&bytes, "x").unwrap();
            prop_assert_eq!(&back, &value);
            prop_assert_eq!(to_bytes(&back), bytes);
        }
    }
}
