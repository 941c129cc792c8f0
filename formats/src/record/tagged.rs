//! Floats that JSON lacks, inside metadata and metrics.
//!
//! A NaN or infinity is an object of one member, its value Zarr's string for it:
//!
//! ```text
//! NaN                    {"milepost.float": "NaN"}           other NaNs by their bits: "0x7ff8000000000001"
//! -∞                     {"milepost.float": "-Infinity"}
//! {"milepost.float": x}  {"milepost.float~": x}              a user's own object that looks like the tag
//! {"milepost.float~": x} {"milepost.float~~": x}             and so on: one tilde more
//! ```
//!
//! Only objects of exactly one member are tags, so all others stay as they are. Front ends write floats with
//! [`float`] and objects with [`object`], and read objects with [`read`]; a value that is JSON already goes
//! through [`escape`].

use serde_json::{Map, Value};
use std::borrow::Cow;

const TAG: &str = "milepost.float";
const NAN: u64 = 0x7ff8_0000_0000_0000;

/// What an object in stored metadata stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Tagged<'a> {
    /// A float that JSON lacks.
    Float(f64),
    /// The user's object, its name unescaped; its members are still to be read.
    Object(Cow<'a, Map<String, Value>>),
}

/// Returns a number, or the tagged form of a float that JSON lacks.
#[must_use]
pub fn float(x: f64) -> Value {
    let text = match x {
        _ if x.is_finite() => return x.into(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ if x.to_bits() == NAN => "NaN".to_owned(),
        _ => format!("0x{:016x}", x.to_bits()),
    };
    Value::Object(Map::from_iter([(TAG.to_owned(), text.into())]))
}

/// Escapes a user's object that looks like the tag; its members must be in stored form already.
#[must_use]
pub fn object(members: Map<String, Value>) -> Map<String, Value> {
    match only_tag(&members) {
        Some(name) => {
            let name = format!("{name}~");
            members.into_iter().map(|(_, value)| (name.clone(), value)).collect()
        }
        None => members,
    }
}

/// Reads an object of stored metadata.
#[must_use]
pub fn read(members: &Map<String, Value>) -> Tagged<'_> {
    match only_tag(members) {
        // An unknown text in a tag is no float that we write: the object is given as it is.
        Some(TAG) => match members.get(TAG).and_then(parse) {
            Some(x) => Tagged::Float(x),
            None => Tagged::Object(Cow::Borrowed(members)),
        },
        Some(name) => {
            let short = name.strip_suffix('~').unwrap_or(name).to_owned();
            let value = members.get(name).cloned().unwrap_or_default();
            Tagged::Object(Cow::Owned(Map::from_iter([(short, value)])))
        }
        None => Tagged::Object(Cow::Borrowed(members)),
    }
}

/// Reads a number of stored metadata, be it JSON's or tagged.
#[must_use]
pub fn number(value: &Value) -> Option<f64> {
    match value.as_object().map(read) {
        Some(Tagged::Float(x)) => Some(x),
        _ => value.as_f64(),
    }
}

/// Returns the stored form of a user's JSON value.
#[must_use]
pub fn escape(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(escape).collect(),
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, escape(value))).collect();
            Value::Object(object(members))
        }
        scalar => scalar,
    }
}

/// Returns a value as JSON alone can say it, for display: tagged floats become Zarr's strings.
#[must_use]
pub fn plain(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(members) => match read(members) {
            Tagged::Float(_) => members.get(TAG).cloned().unwrap_or_default(),
            Tagged::Object(members) => {
                Value::Object(members.iter().map(|(k, v)| (k.clone(), plain(v))).collect())
            }
        },
        scalar => scalar.clone(),
    }
}

/// Returns the name of an object's only member, where that is the tag or an escape of it.
fn only_tag(members: &Map<String, Value>) -> Option<&str> {
    let name = members.keys().next().filter(|_| members.len() == 1)?;
    let tildes = name.strip_prefix(TAG)?;
    tildes.bytes().all(|b| b == b'~').then_some(name)
}

fn parse(value: &Value) -> Option<f64> {
    match value.as_str()? {
        "NaN" => Some(f64::from_bits(NAN)),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        text => {
            let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 16)?;
            let x = f64::from_bits(u64::from_str_radix(digits, 16).ok()?);
            x.is_nan().then_some(x)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// What a front end does with a stored value that holds no floats that JSON lacks.
    fn unescape(value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(unescape).collect(),
            Value::Object(members) => match read(members) {
                Tagged::Float(x) => panic!("{x} is not the user's"),
                Tagged::Object(members) => {
                    Value::Object(members.iter().map(|(k, v)| (k.clone(), unescape(v))).collect())
                }
            },
            scalar => scalar.clone(),
        }
    }

    #[test]
    fn the_stored_forms_are_those_of_the_specification() {
        assert_eq!(float(f64::NAN), json!({"milepost.float": "NaN"}));
        assert_eq!(float(f64::NEG_INFINITY), json!({"milepost.float": "-Infinity"}));
        assert_eq!(float(1.5), json!(1.5));
        let user = json!([{"milepost.float": "NaN"}, {"milepost.float~": 1, "b": 2}]);
        let stored = json!([{"milepost.float~": "NaN"}, {"milepost.float~": 1, "b": 2}]);
        assert_eq!(escape(user.clone()), stored);
        assert_eq!(unescape(&stored), user);
        assert_eq!(plain(&json!({"a": [float(f64::INFINITY)]})), json!({"a": ["Infinity"]}));
    }

    #[test]
    fn every_float_survives_with_its_bits() {
        for bits in
            [0, 1, NAN, NAN + 1, u64::MAX, 0x7ff0 << 48, 0xfff0 << 48, 0x7ff0_0000_0000_0001]
        {
            let stored = float(f64::from_bits(bits));
            let back = match &stored {
                Value::Object(members) => match read(members) {
                    Tagged::Float(x) => x,
                    Tagged::Object(_) => panic!("{stored}"),
                },
                number => number.as_f64().unwrap(),
            };
            assert_eq!(back.to_bits(), bits);
            assert_eq!(number(&stored).map(f64::to_bits), Some(bits));
        }
        for none in [json!(null), json!("1"), json!(true), json!({"milepost.float": "1"})] {
            assert_eq!(number(&none), None, "{none}");
        }
    }

    #[test]
    fn a_tag_that_we_do_not_write_is_an_object() {
        for text in ["nan", "0x7ff8", "0x+ff8000000000001", "0x3ff0000000000000"] {
            let stored = json!({"milepost.float": text});
            let members = stored.as_object().unwrap();
            assert_eq!(read(members), Tagged::Object(Cow::Borrowed(members)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_user_value_survives(
            value in crate::json::tests::values(),
            name in "milepost[.]float~{0,3}",
        ) {
            let nested = json!({name.clone(): [value, {name: {}}]});
            prop_assert_eq!(unescape(&escape(nested.clone())), nested);
        }
    }
}
