//! The record as JSON, and its own hash.

use super::{Item, ItemKind, Record, Timing};
use crate::{
    FormatError, Result, hex,
    index::{Object, is_node_name},
    json, version,
    zarr3::GroupDocument,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

/// The largest record without the user's metadata, of items too, and metrics.
pub const RECORD_BYTES_MAX: usize = 64 << 10;
/// The largest user metadata, of items too, and metrics together.
pub const METADATA_BYTES_MAX: usize = 1 << 20;
/// The longest name of a custom handler.
pub const HANDLER_BYTES_MAX: usize = 200;

/// What stands before the record's own digits; its first occurrence in the document is theirs.
const HASH_MARK: &[u8] = b"\"hash\":\"";
const NO_HASH: &str = "00000000000000000000000000000000";

#[derive(Serialize, Deserialize)]
struct WireRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<WireClaim>,
    committed_ms: u64,
    created_ms: u64,
    items: Vec<WireItem>,
    #[serde(default)]
    metadata: Map<String, Value>,
    #[serde(default)]
    metrics: Map<String, Value>,
    #[serde(default)]
    notes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    #[serde(default)]
    timings: Vec<WireTiming>,
    writer: String,
}

#[derive(Serialize, Deserialize)]
struct WireClaim {
    bytes: u64,
    crc32c: u32,
}

#[derive(Serialize, Deserialize)]
struct WireTiming {
    ms: f64,
    stage: String,
}

#[derive(Serialize, Deserialize)]
struct WireItem {
    data_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handler: Option<String>,
    index_bytes: u64,
    index_hash: String,
    index_json_bytes: u64,
    kind: String,
    leaves: u64,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    metadata: Value,
    name: String,
    objects: u64,
    stored_bytes: u64,
}

impl ItemKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Tree, Self::Array, Self::Json, Self::Bytes, Self::Opaque];

    /// Returns the name in records, on the command line and in Python.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Array => "array",
            Self::Json => "json",
            Self::Bytes => "bytes",
            Self::Opaque => "opaque",
        }
    }

    /// Parses the name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl From<&Item> for WireItem {
    fn from(item: &Item) -> Self {
        Self {
            data_bytes: item.data_bytes,
            handler: item.handler.clone(),
            index_bytes: item.index_bytes,
            index_hash: hex::to_text(item.index_hash),
            index_json_bytes: item.index_json_bytes,
            kind: item.kind.as_str().to_owned(),
            leaves: item.leaves,
            metadata: item.metadata.clone(),
            name: item.name.clone(),
            objects: item.objects,
            stored_bytes: item.stored_bytes,
        }
    }
}

impl TryFrom<WireItem> for Item {
    type Error = FormatError;

    fn try_from(wire: WireItem) -> Result<Self> {
        let kind = ItemKind::from_name(&wire.kind).ok_or_else(|| {
            let kind = json::shorten(&wire.kind);
            FormatError::unsupported(format!("unknown item kind. kind=`{kind}`"))
        })?;
        let index_hash = hex::parse(&wire.index_hash).ok_or_else(|| {
            FormatError::corrupt(format!("`index_hash` is not a hash. item=`{}`", wire.name))
        })?;
        Ok(Self {
            name: wire.name,
            kind,
            leaves: wire.leaves,
            data_bytes: wire.data_bytes,
            stored_bytes: wire.stored_bytes,
            objects: wire.objects,
            index_bytes: wire.index_bytes,
            index_json_bytes: wire.index_json_bytes,
            index_hash,
            handler: wire.handler,
            metadata: wire.metadata,
        })
    }
}

impl Record {
    /// Returns the whole `zarr.json` of the checkpoint, with its hash in it.
    ///
    /// The items are written sorted by name.
    ///
    /// # Errors
    /// `Invalid` where the record is over 64 KiB without metadata (of items too) and metrics, these are over 1 MiB or
    /// nested too deep, a timing is not finite, an item's name is no node name or there twice, or the name of
    /// its handler is empty or over 200 bytes.
    pub fn to_document(&self) -> Result<Vec<u8>> {
        let wire = self.to_wire()?;
        let mut members = match serde_json::to_value(&wire) {
            Ok(Value::Object(members)) => members,
            Ok(_) => Map::new(),
            Err(e) => return Err(FormatError::invalid(e.to_string())),
        };
        members.insert("kind".to_owned(), json!("checkpoint"));
        members.insert("version".to_owned(), json!(version::CURRENT));
        members.insert("requires".to_owned(), json!([]));
        let (mut document, hash) = sealed(members);
        self.check_sizes(document.len())?;
        let place = hash_place(&document).unwrap_or_default();
        match document.get_mut(place..place + hex::DIGITS) {
            Some(digits) if place > 0 => digits.copy_from_slice(hex::to_text(hash).as_bytes()),
            _ => return Err(FormatError::invalid("the record has no place for its hash")),
        }
        Ok(document)
    }

    fn to_wire(&self) -> Result<WireRecord> {
        for (what, map) in [("metadata", &self.metadata), ("metrics", &self.metrics)] {
            if !map.values().all(|value| json::is_within_depth(value, json::DEPTH_MAX)) {
                let levels = json::DEPTH_MAX;
                return Err(FormatError::invalid(format!("`{what}` nests over {levels} levels")));
            }
        }
        for item in &self.items {
            check_custom(item)?;
        }
        if let Some(timing) = self.timings.iter().find(|timing| !timing.ms.is_finite()) {
            let stage = &timing.stage;
            return Err(FormatError::invalid(format!("a timing is not finite. stage=`{stage}`")));
        }
        let mut items: Vec<WireItem> = self.items.iter().map(WireItem::from).collect();
        items.sort_by(|a, b| a.name.cmp(&b.name));
        check_names(&items).map_err(FormatError::invalid)?;
        let claim = self.claim.as_ref().map(|o| WireClaim { bytes: o.bytes, crc32c: o.crc32c });
        Ok(WireRecord {
            claim,
            committed_ms: self.committed_ms,
            created_ms: self.created_ms,
            items,
            metadata: self.metadata.clone(),
            metrics: self.metrics.clone(),
            notes: self.notes.clone(),
            step: self.step,
            timings: self
                .timings
                .iter()
                .map(|t| WireTiming { ms: t.ms, stage: t.stage.clone() })
                .collect(),
            writer: self.writer.clone(),
        })
    }

    fn check_sizes(&self, document_bytes: usize) -> Result<()> {
        let size = |map: &Map<String, Value>| json::to_bytes(&Value::Object(map.clone())).len();
        let (metadata, metrics) = (size(&self.metadata), size(&self.metrics));
        let of_items =
            self.items.iter().map(|item| &item.metadata).filter(|value| !value.is_null());
        let of_items: usize = of_items.map(|value| json::to_bytes(value).len()).sum();
        if metadata + metrics + of_items > METADATA_BYTES_MAX {
            return Err(FormatError::invalid(format!(
                "user metadata and metrics are over 1 MiB. metadata=`{metadata}`, metrics=`{metrics}`, \
                 of_items=`{of_items}`"
            )));
        }
        let record = document_bytes - metadata - metrics - of_items;
        if record > RECORD_BYTES_MAX {
            let notes: usize = self.notes.iter().map(String::len).sum();
            return Err(FormatError::invalid(format!(
                "the record is over 64 KiB. bytes=`{record}`, items=`{}`, note_bytes=`{notes}`",
                self.items.len()
            )));
        }
        Ok(())
    }

    /// Reads the members of a record whose version and hash are right.
    pub(super) fn from_members(members: Map<String, Value>) -> Result<Self> {
        let corrupt = |what: &str| FormatError::corrupt(format!("the record is damaged: {what}"));
        let wire: WireRecord =
            serde_json::from_value(Value::Object(members)).map_err(|e| corrupt(&e.to_string()))?;
        check_names(&wire.items).map_err(|what| corrupt(&what))?;
        Ok(Self {
            step: wire.step,
            writer: wire.writer,
            created_ms: wire.created_ms,
            committed_ms: wire.committed_ms,
            items: wire.items.into_iter().map(Item::try_from).collect::<Result<_>>()?,
            claim: wire.claim.map(|c| Object { bytes: c.bytes, crc32c: c.crc32c, content: None }),
            metadata: wire.metadata,
            metrics: wire.metrics,
            timings: wire
                .timings
                .into_iter()
                .map(|t| Timing { stage: t.stage, ms: t.ms })
                .collect(),
            notes: wire.notes,
        })
    }
}

/// Checks what a custom item says of itself.
fn check_custom(item: &Item) -> Result<()> {
    let name = json::shorten(&item.name);
    let long = |handler: &String| handler.is_empty() || handler.len() > HANDLER_BYTES_MAX;
    if item.handler.as_ref().is_some_and(long) {
        let text = format!("the name of a handler is empty or over 200 bytes. item=`{name}`");
        return Err(FormatError::invalid(text));
    }
    if !json::is_within_depth(&item.metadata, json::DEPTH_MAX) {
        let levels = json::DEPTH_MAX;
        let text = format!("the metadata of an item nests over {levels} levels. item=`{name}`");
        return Err(FormatError::invalid(text));
    }
    Ok(())
}

/// Checks that the items are sorted by name, distinct, and named as nodes can be.
fn check_names(items: &[WireItem]) -> Result<(), String> {
    if let Some(item) = items.iter().find(|item| !is_node_name(&item.name)) {
        return Err(format!("not a node name. item=`{}`", json::shorten(&item.name)));
    }
    let unsorted = |pair: &&[WireItem]| matches!(pair, [a, b] if a.name >= b.name);
    match items.windows(2).find(unsorted) {
        Some([_, item]) => Err(format!("items are not sorted and distinct. item=`{}`", item.name)),
        _ => Ok(()),
    }
}

/// Returns the canonical document of a record whose digits are 0, and its hash.
fn sealed(mut members: Map<String, Value>) -> (Vec<u8>, u128) {
    members.insert("hash".to_owned(), json!(NO_HASH));
    let attributes = json::object([("milepost", Value::Object(members))]);
    let document = GroupDocument { attributes, consolidated: None }.to_bytes();
    let hash = xxh3_128(&document);
    (document, hash)
}

/// Returns where the digits of the document's own hash are.
fn hash_place(document: &[u8]) -> Option<usize> {
    let mark = document.windows(HASH_MARK.len()).position(|w| w == HASH_MARK)?;
    let place = mark + HASH_MARK.len();
    (place + hex::DIGITS <= document.len()).then_some(place)
}

/// How a record's document agrees with its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// The bytes are those that were written.
    Intact,
    /// The bytes are another tool's, the record is the one that was written.
    Rewritten,
    /// The record is not the one that was written.
    Broken,
}

/// Checks a document against the hash in its record.
pub(super) fn check_seal(document: &[u8], members: &Map<String, Value>) -> Seal {
    let Some(recorded) = members.get("hash").and_then(Value::as_str) else { return Seal::Broken };
    let Some(hash) = hex::parse(recorded) else { return Seal::Broken };
    if let Some(place) = hash_place(document) {
        let mut zeroed = document.to_vec();
        if let Some(digits) = zeroed.get_mut(place..place + hex::DIGITS)
            && digits == recorded.as_bytes()
        {
            digits.fill(b'0');
            if xxh3_128(&zeroed) == hash {
                return Seal::Intact;
            }
        }
    }
    if sealed(members.clone()).1 == hash { Seal::Rewritten } else { Seal::Broken }
}
