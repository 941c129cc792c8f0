//! What an index keeps of the file an item came from, so that an export makes that file again.
//!
//! The `__metadata__` of the source is kept as it is, as plain pairs; of several files it is the union, the first
//! file's text first. One more pair, always the last, is ours: `milepost.origin`, a JSON object of
//!
//! ```text
//! format           "safetensors"
//! separator        what names were split at; absent where each name is one key
//! order            the leaf of each tensor in file order; absent where that is the order of the leaves
//! files            of a model in several files: name, number of tensors, its metadata where not the union
//! index_metadata   what the index of several files says beside `total_size`
//! ```
//!
//! Names themselves are not here: keys give them back, and where the text of a path does not, the leaf has its name.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

const KEY: &str = "milepost.origin";
const FORMAT: &str = "safetensors";

/// Free-form pairs of texts, in order.
pub(super) type Pairs = Vec<(String, String)>;

/// Where an item came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) separator: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) order: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) files: Vec<OriginFile>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) index_metadata: Map<String, Value>,
}

/// One of the files of a model in several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct OriginFile {
    pub(super) name: String,
    pub(super) tensors: u64,
    /// `None`: the union.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Pairs>,
}

impl Origin {
    /// Creates the origin of an item whose names were split at `separator`.
    pub(super) fn new(separator: Option<&str>) -> Self {
        let separator = separator.map(str::to_owned);
        Self { format: FORMAT.to_owned(), separator, ..Self::default() }
    }

    /// Returns the pairs that the index carries.
    pub(super) fn encode(&self, mut metadata: Pairs) -> Result<Pairs> {
        let text = serde_json::to_string(self)
            .map_err(|e| Error::internal("an origin is no JSON").because(e))?;
        metadata.push((KEY.to_owned(), text));
        Ok(metadata)
    }

    /// Divides the pairs of an index of `leaves` leaves into the origin, where there is one, and the metadata.
    ///
    /// # Errors
    /// `Corrupt` where the order is none of the leaves.
    pub(super) fn decode(
        pairs: &[(String, String)],
        leaves: usize,
    ) -> Result<(Option<Self>, Pairs)> {
        let Some(((_, text), rest)) = pairs.split_last().filter(|((key, _), _)| key == KEY) else {
            return Ok((None, pairs.to_vec()));
        };
        let corrupt = |what: &str| Error::corrupt(what.to_owned()).with("key", KEY);
        let origin: Self = serde_json::from_str(text)
            .map_err(|e| corrupt("the origin of an item is damaged").because(e))?;
        if origin.format != FORMAT {
            return Ok((None, rest.to_vec()));
        }
        if let Some(order) = &origin.order {
            let mut seen = vec![false; leaves];
            let fresh = |position: &u32| {
                seen.get_mut(*position as usize).is_some_and(|seen| !std::mem::replace(seen, true))
            };
            if order.len() != leaves || !order.iter().all(fresh) {
                return Err(corrupt("the order of an item's origin is not one of its leaves"));
            }
        }
        Ok((Some(origin), rest.to_vec()))
    }

    /// Returns for each leaf which tensor of the source it was.
    pub(super) fn ranks(&self, leaves: usize) -> Vec<usize> {
        let Some(order) = &self.order else { return (0..leaves).collect() };
        let mut ranks = vec![0; leaves];
        for (rank, position) in order.iter().enumerate() {
            ranks[*position as usize] = rank;
        }
        ranks
    }

    /// Returns the file that held the tensor `rank`; `None` where there was one file only.
    pub(super) fn file_of(&self, rank: usize) -> Option<usize> {
        let mut end = 0;
        self.files.iter().position(|file| {
            end += file.tensors;
            (rank as u64) < end
        })
    }

    /// Returns the metadata of a file made of the tensors of the source files `from`.
    pub(super) fn metadata_of(&self, from: &[usize], union: &Pairs) -> Pairs {
        let files = from.iter().filter_map(|file| self.files.get(*file));
        let all: Vec<&Pairs> = files.map(|file| file.metadata.as_ref().unwrap_or(union)).collect();
        if all.is_empty() { union.clone() } else { merge(all) }
    }
}

/// Joins the metadata of several files; of one key the first text stays.
pub(super) fn merge<'a>(all: impl IntoIterator<Item = &'a Pairs>) -> Pairs {
    let mut merged = Pairs::new();
    for (key, text) in all.into_iter().flatten() {
        if !merged.iter().any(|(other, _)| other == key) {
            merged.push((key.clone(), text.clone()));
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_comes_back_and_leaves_the_metadata_as_it_was() {
        let mine =
            vec![("format".to_owned(), "pt".to_owned()), (KEY.to_owned(), "mine".to_owned())];
        let mut origin = Origin::new(Some("."));
        origin.order = Some(vec![2, 0, 1]);
        origin.files = vec![
            OriginFile { name: "a".into(), tensors: 2, metadata: None },
            OriginFile { name: "b".into(), tensors: 1, metadata: Some(Pairs::new()) },
        ];
        let pairs = origin.encode(mine.clone()).unwrap();
        let (read, metadata) = Origin::decode(&pairs, 3).unwrap();
        assert_eq!((read, &metadata), (Some(origin.clone()), &mine), "a key like ours is kept");
        assert_eq!(origin.ranks(3), [1, 2, 0]);
        assert_eq!(
            (0..4).map(|rank| origin.file_of(rank)).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1), None]
        );
        assert_eq!(origin.metadata_of(&[1], &mine), Pairs::new());
        assert_eq!(origin.metadata_of(&[1, 0], &mine), mine);
    }

    #[test]
    fn an_order_that_is_none_is_corrupt() {
        for order in [vec![0, 0], vec![0], vec![0, 2], vec![0, 1, 2]] {
            let mut origin = Origin::new(None);
            origin.order = Some(order);
            let pairs = origin.encode(Pairs::new()).unwrap();
            let error = Origin::decode(&pairs, 2).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
        }
        let other = vec![("a".to_owned(), "b".to_owned())];
        assert_eq!(Origin::decode(&other, 2).unwrap(), (None, other));
    }
}
