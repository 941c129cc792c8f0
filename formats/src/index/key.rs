//! Typed keys and containers ⇄ JSON.
//!
//! ```text
//! Name "w"    "w"              dict         {"kind":"dict"}
//! Int 7       7                list, tuple  {"kind":"list"}
//! Index 0     {"index":0}      namedtuple   {"kind":"namedtuple","type":"optax.ScaleByAdamState"}
//! Attr "mu"   {"attr":"mu"}    object       {"kind":"object","type":"flax.nnx.State"}
//! ```

use super::{Container, Key};
use crate::{FormatError, Result, json};
use serde::{
    de::{self, Deserialize, Deserializer, MapAccess, Visitor},
    ser::{Serialize, SerializeMap, Serializer},
};
use serde_json::{Value, json};
use std::fmt;

impl Key {
    /// Returns the typed key as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Name(name) => json!(name),
            Self::Int(n) => json!(n),
            Self::Index(n) => json!({"index": n}),
            Self::Attr(name) => json!({"attr": name}),
        }
    }

    /// Reads a typed key.
    ///
    /// # Errors
    /// `Corrupt` where the JSON is none.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::deserialize(value).map_err(|e| {
            FormatError::corrupt(format!("not a typed key: {e}. value=`{}`", json::show(value)))
        })
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Name(name) => serializer.serialize_str(name),
            Self::Int(n) => serializer.serialize_i64(*n),
            Self::Index(n) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("index", n)?;
                map.end()
            }
            Self::Attr(name) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("attr", name)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a 64-bit integer, {\"index\": n} or {\"attr\": \"x\"}")
    }

    fn visit_str<E>(self, v: &str) -> Result<Key, E> {
        Ok(Key::Name(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Key, E> {
        Ok(Key::Name(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Key, E> {
        Ok(Key::Int(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Key, E> {
        i64::try_from(v)
            .map(Key::Int)
            .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(v), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Key, A::Error> {
        let key = match map.next_key::<String>()?.as_deref() {
            Some("index") => Key::Index(map.next_value()?),
            Some("attr") => Key::Attr(map.next_value()?),
            _ => return Err(de::Error::custom("a key that is neither `index` nor `attr`")),
        };
        match map.next_key::<de::IgnoredAny>()? {
            None => Ok(key),
            Some(_) => Err(de::Error::custom("a key with more than one member")),
        }
    }
}

impl Container {
    /// Returns the container as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut members = json::object([("kind", json!(self.kind()))]);
        if let Some(type_name) = self.type_name() {
            members.insert("type".to_owned(), json!(type_name));
        }
        Value::Object(members)
    }

    /// Reads a container; members that it does not know are ignored.
    ///
    /// # Errors
    /// `Corrupt` where the JSON is none, `Unsupported` for a kind that this version does not know.
    pub fn from_json(value: &Value) -> Result<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let kind = text("kind").ok_or_else(|| {
            FormatError::corrupt(format!("not a container. value=`{}`", json::show(value)))
        })?;
        Self::from_parts(kind, text("type"))
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Dict => "dict",
            Self::List => "list",
            Self::Tuple => "tuple",
            Self::NamedTuple { .. } => "namedtuple",
            Self::Object { .. } => "object",
        }
    }

    pub(super) fn type_name(&self) -> Option<&str> {
        match self {
            Self::NamedTuple { type_name } | Self::Object { type_name } => Some(type_name),
            _ => None,
        }
    }

    pub(super) fn from_parts(kind: &str, type_name: Option<&str>) -> Result<Self> {
        let typed = || {
            type_name.map(str::to_owned).ok_or_else(|| {
                FormatError::corrupt(format!("a container of kind `{kind}` lacks its type"))
            })
        };
        Ok(match kind {
            "dict" => Self::Dict,
            "list" => Self::List,
            "tuple" => Self::Tuple,
            "namedtuple" => Self::NamedTuple { type_name: typed()? },
            "object" => Self::Object { type_name: typed()? },
            _ => {
                let kind = json::shorten(kind);
                return Err(FormatError::unsupported(format!("unknown container. kind=`{kind}`")));
            }
        })
    }
}
