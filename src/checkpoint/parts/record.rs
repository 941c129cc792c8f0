//! Part records: what a participant has written, put when its bytes are durable.
//!
//! ```text
//! <32 hex digits: xxh3-128 of what follows>\n{"attempt","plan","index","count","items","record"}
//! ```
//! `items` has the objects of shared items as `[leaf, object, bytes, crc32c, content]`, numbers in C order; `record` is a
//! commit record that lists the items which the participant wrote alone.

use super::plan::{Share, SharePlan, named};
use crate::error::{Error, Result};
use milepost_formats::{
    index::Object,
    record::{Item as ItemEntry, Record, Root},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_128;

/// No part record is longer, in bytes.
pub(super) const PART_BYTES_MAX: u64 = 1 << 30;
const DIGITS: usize = 32;

/// One of a part's objects: leaf, its number in the leaf, size, checksum, content hash.
type Stored = (usize, u64, u64, u32, String);

/// What a participant has written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) attempt: String,
    /// Hash of the plan and of all documents.
    pub(super) plan: String,
    pub(super) index: usize,
    pub(super) count: usize,
    pub(super) items: BTreeMap<String, Vec<Stored>>,
    record: String,
}

/// The objects of each leaf of an item.
pub(super) type Objects = Vec<Vec<Object>>;

impl Part {
    /// Begins the part of participant `index` of `count` in an attempt.
    pub(super) fn new(attempt: &str, plan: &str, (index, count): (usize, usize)) -> Self {
        let (attempt, plan) = (attempt.to_owned(), plan.to_owned());
        Self { attempt, plan, index, count, items: BTreeMap::new(), record: String::new() }
    }

    /// Adds objects of a shared item.
    pub(super) fn add(&mut self, item: &str, leaf: usize, number: u64, object: &Object) {
        let content = format!("{:032x}", object.content.unwrap_or_default());
        let stored = (leaf, number, object.bytes, object.crc32c, content);
        self.items.entry(item.to_owned()).or_default().push(stored);
    }

    /// Names the items that the participant has written alone.
    pub(super) fn set_alone(&mut self, items: Vec<ItemEntry>) -> Result<()> {
        let document = Record { items, ..Record::default() }.to_document()?;
        self.record = String::from_utf8(document)
            .map_err(|e| Error::internal("a record is no text").because(e))?;
        Ok(())
    }

    /// Returns the items that the participant has written alone.
    pub(super) fn alone(&self) -> Result<Vec<ItemEntry>> {
        match Root::parse(self.record.as_bytes())? {
            Root::Checkpoint { record, .. } => Ok(record.items),
            _ => Err(Error::corrupt("a part lists its items in no record")),
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let failed = |e| Error::internal("a part cannot be written as JSON").because(e);
        let json = serde_json::to_vec(self).map_err(failed)?;
        Ok([format!("{:032x}\n", xxh3_128(&json)).into_bytes(), json].concat())
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let split = bytes.get(..DIGITS).zip(bytes.get(DIGITS + 1..));
        let whole = split.filter(|(hash, json)| {
            *hash == format!("{:032x}", xxh3_128(json)).as_bytes() && bytes[DIGITS] == b'\n'
        });
        let Some((_, json)) = whole else {
            return Err(Error::corrupt("a part record is torn or damaged"));
        };
        serde_json::from_slice(json)
            .map_err(|e| Error::corrupt("a part record cannot be read").because(e))
    }
}

/// Checks that the parts are all of one attempt and plan and cover it exactly.
///
/// `shapes` says how many objects each leaf of each shared item has. Returns these objects, and the items that were written
/// alone.
///
/// # Errors
/// `Conflict` where a part is of another attempt or plan, `Corrupt` where parts overlap or leave a hole.
pub(super) fn cover(
    parts: &[Part],
    expected: &Part,
    plan: &SharePlan,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<(BTreeMap<String, Objects>, Vec<ItemEntry>)> {
    let indices: Vec<usize> = parts.iter().map(|part| part.index).collect();
    let missing: Vec<usize> = (0..expected.count).filter(|i| !indices.contains(i)).collect();
    if !missing.is_empty() || parts.len() != expected.count {
        return Err(Error::unavailable("parts of a save are missing or there twice")
            .with("missing", named(&missing))
            .with("parts", parts.len()));
    }
    let foreign = |part: &&Part| {
        (&part.attempt, &part.plan, part.count)
            != (&expected.attempt, &expected.plan, expected.count)
    };
    if let Some(part) = parts.iter().find(foreign) {
        return Err(Error::conflict("a part is of another attempt or another plan")
            .with("participant", part.index)
            .with("attempt", &part.attempt));
    }
    let mut slots: BTreeMap<&str, Vec<Vec<Option<Object>>>> = BTreeMap::new();
    for (item, leaves) in shapes {
        slots.insert(item, leaves.iter().map(|objects| vec![None; *objects]).collect());
    }
    let mut entries = Vec::new();
    for part in parts {
        place(part, &mut slots)?;
        for entry in part.alone()? {
            if plan.items.get(&entry.name) != Some(&Share::Sole(part.index)) {
                return Err(Error::corrupt("a part has an item that it was not to write")
                    .with("item", &entry.name)
                    .with("participant", part.index));
            }
            entries.push(entry);
        }
    }
    let alone = plan.items.values().filter(|share| matches!(share, Share::Sole(_))).count();
    if entries.len() != alone {
        return Err(Error::corrupt("the parts have not every item")
            .with("items", entries.len())
            .with("expected", alone));
    }
    let mut objects = BTreeMap::new();
    for (item, leaves) in slots {
        let whole: Option<Objects> =
            leaves.into_iter().map(|leaf| leaf.into_iter().collect()).collect();
        let hole = || Error::corrupt("the parts leave a hole").with("item", item);
        objects.insert(item.to_owned(), whole.ok_or_else(hole)?);
    }
    Ok((objects, entries))
}

fn place(part: &Part, slots: &mut BTreeMap<&str, Vec<Vec<Option<Object>>>>) -> Result<()> {
    for (item, stored) in &part.items {
        for (leaf, number, bytes, crc32c, content) in stored {
            let at = usize::try_from(*number).unwrap_or(usize::MAX);
            let slot = slots.get_mut(item.as_str()).and_then(|leaves| leaves.get_mut(*leaf));
            let slot = slot.and_then(|objects| objects.get_mut(at)).filter(|slot| slot.is_none());
            let content = u128::from_str_radix(content, 16).ok();
            let (Some(slot), Some(_)) = (slot, content) else {
                return Err(Error::corrupt("a part has an object that is none, or another's")
                    .with("participant", part.index)
                    .with("item", item)
                    .with("object", format!("{leaf}.{number}")));
            };
            *slot = Some(Object { bytes: *bytes, crc32c: *crc32c, content });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::declare::Declaration, *};
    use crate::error::ErrorKind;
    use crate::{chunk::Subset, dtype::DataType};

    fn object(bytes: u64) -> Object {
        Object { bytes, crc32c: 7, content: Some(9) }
    }

    fn parts() -> (SharePlan, Vec<Part>) {
        let half = |start| Subset::new(vec![start], vec![2]).unwrap();
        let declare = |start| {
            let boxes = [half(start)];
            Declaration::new().leaf(("s", "w"), DataType::Int8, &[4], &boxes).item("n", 4)
        };
        let plan = SharePlan::new(&[declare(0), declare(2)]).unwrap();
        let mut parts: Vec<Part> = (0..2).map(|i| Part::new("a", "p", (i, 2))).collect();
        for (i, part) in (0..).zip(&mut parts) {
            part.add("s", 0, i, &object(2));
            part.set_alone(Vec::new()).unwrap();
        }
        let name = "n".to_owned();
        let kind = milepost_formats::record::ItemKind::Bytes;
        let entry = ItemEntry {
            name,
            kind,
            leaves: 1,
            data_bytes: 4,
            stored_bytes: 4,
            objects: 1,
            index_bytes: 1,
            index_json_bytes: 1,
            index_hash: 1,
            handler: None,
            metadata: serde_json::Value::Null,
        };
        parts[0].set_alone(vec![entry]).unwrap();
        (plan, parts)
    }

    fn covered(plan: &SharePlan, parts: &[Part]) -> Result<usize> {
        let expected = Part::new("a", "p", (0, 2));
        let shapes = BTreeMap::from([("s".to_owned(), vec![2])]);
        cover(parts, &expected, plan, &shapes).map(|(objects, alone)| {
            assert_eq!(objects["s"], [[object(2), object(2)]]);
            alone.len()
        })
    }

    #[test]
    fn parts_come_back_as_they_were_put_and_torn_ones_do_not() {
        let (_, parts) = parts();
        let bytes = parts[0].to_bytes().unwrap();
        assert_eq!(Part::parse(&bytes).unwrap(), parts[0]);
        for cut in 0..bytes.len() {
            assert_eq!(Part::parse(&bytes[..cut]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn only_parts_that_cover_the_plan_exactly_pass() {
        let (plan, good) = parts();
        assert_eq!(covered(&plan, &good).unwrap(), 1);
        let refused = |change: &dyn Fn(&mut Vec<Part>)| {
            let mut parts = good.clone();
            change(&mut parts);
            covered(&plan, &parts).unwrap_err().kind()
        };
        assert_eq!(refused(&|parts| drop(parts.pop())), ErrorKind::Unavailable);
        assert_eq!(refused(&|parts| parts[1].index = 0), ErrorKind::Unavailable);
        assert_eq!(refused(&|parts| parts[1].attempt = "b".into()), ErrorKind::Conflict);
        assert_eq!(refused(&|parts| parts[1].plan = "q".into()), ErrorKind::Conflict);
        assert_eq!(refused(&|parts| parts[1].items.clear()), ErrorKind::Corrupt);
        assert_eq!(refused(&|parts| parts[1].add("s", 0, 0, &object(2))), ErrorKind::Corrupt);
        assert_eq!(refused(&|parts| parts[1].add("s", 1, 0, &object(2))), ErrorKind::Corrupt);
        assert_eq!(refused(&|parts| parts[1].add("t", 0, 0, &object(2))), ErrorKind::Corrupt);
        assert_eq!(refused(&|parts| parts[0].set_alone(vec![]).unwrap()), ErrorKind::Corrupt);
    }
}
