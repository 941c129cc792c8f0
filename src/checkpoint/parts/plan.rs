//! Who writes what: computed by everybody from the same declarations, with the same end.
//!
//! A box that several hold has one writer. Boxes of a single holder come first, then the others, the largest first, each
//! to that of its holders who has least to write. On the common grid of a leaf's boxes (`chunk::cuts`) every shard lies
//! in one box, so no object has two writers and none is read to be written.
//!
//! **Invariant:** pure, and independent of who asks: the hash of it is compared before a byte moves.

use super::declare::{Declaration, DeclaredItem, DeclaredLeaf};
use crate::{
    chunk::{Misfit, Subset, check_cover, cuts, is_regular, nearest_grid},
    error::{Error, Result},
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};
use xxhash_rust::xxh3::Xxh3;

/// So many participants are named in an error.
const NAMED_MAX: usize = 8;

/// Who writes what of a step that several save together; it prints as a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharePlan {
    pub(super) items: BTreeMap<String, Share>,
    bytes: Vec<u64>,
}

/// Who writes an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// One participant, all of it, index included.
    Sole(usize),
    /// Each leaf has its own writers, and the finaliser writes the index.
    Shared(Vec<LeafShare>),
}

/// Who writes a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeafShare {
    pub(super) path: String,
    /// The grid that no shard crosses.
    pub(super) cuts: Vec<Option<u64>>,
    /// Each box with its writer, sorted.
    pub(super) boxes: Vec<(Subset, usize)>,
    /// Who writes the document.
    pub(super) document: usize,
}

/// A box that waits for its writer.
struct Wanted {
    bytes: u64,
    item: String,
    leaf: usize,
    place: usize,
    holders: Vec<usize>,
}

impl SharePlan {
    /// Plans from the declarations of all participants, by index.
    ///
    /// # Errors
    /// `Invalid` where two declare a leaf differently, boxes overlap, elements are missing, or the boxes lie on
    /// no grid that is worth writing: it names item, leaf, boxes and participants.
    pub fn new(declarations: &[Declaration]) -> Result<Self> {
        let mut holders: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
        for (index, declaration) in declarations.iter().enumerate() {
            for name in declaration.items.keys() {
                holders.entry(name).or_default().push(index);
            }
        }
        let mut plan = Self { items: BTreeMap::new(), bytes: vec![0; declarations.len()] };
        let mut wanted = Vec::new();
        for (name, holders) in holders {
            let declared: Vec<&DeclaredItem> =
                holders.iter().filter_map(|index| declarations[*index].items.get(name)).collect();
            let share = plan.item(name, (&holders, &declared), &mut wanted);
            plan.items.insert(name.clone(), share.map_err(|e| e.with("item", name))?);
        }
        plan.assign(wanted);
        Ok(plan)
    }

    fn item(
        &self,
        name: &str,
        (holders, declared): (&[usize], &[&DeclaredItem]),
        wanted: &mut Vec<Wanted>,
    ) -> Result<Share> {
        let count = self.bytes.len();
        let first = declared[0];
        if let Some(other) = declared.iter().position(|item| item.shared != first.shared) {
            return Err(Error::invalid("an item is a tree for some and none for others")
                .with("participants", named(&[holders[0], holders[other]])));
        }
        let alone = holders.len() == 1 && count > 1;
        if !first.shared || alone {
            let holders = holders.to_vec();
            let bytes = first.bytes.max(first.leaves.iter().map(leaf_bytes).sum());
            wanted.push(Wanted { bytes, item: name.to_owned(), leaf: 0, place: 0, holders });
            return Ok(Share::Sole(0));
        }
        if holders.len() < count {
            let lacking: Vec<usize> = (0..count).filter(|i| !holders.contains(i)).collect();
            return Err(Error::invalid("some participants lack an item that others share")
                .with("participants", named(&lacking))
                .hint("give everybody the whole tree; a leaf may be held in no box at all"));
        }
        let mut leaves = Vec::with_capacity(first.leaves.len());
        for number in 0..first.leaves.len() {
            let leaf = self.leaf(name, (number, declared), wanted);
            leaves.push(leaf.map_err(|e| e.with("leaf", &first.leaves[number].path))?);
        }
        if let Some(other) = declared.iter().position(|i| i.leaves.len() != first.leaves.len()) {
            let more = declared[other].leaves.get(first.leaves.len());
            let path = more.map_or(first.leaves.last().map(|l| &l.path), |l| Some(&l.path));
            return Err(Error::invalid("participants have different leaves")
                .with("leaf", path.map_or("", String::as_str))
                .with("participants", named(&[0, other])));
        }
        Ok(Share::Shared(leaves))
    }

    fn leaf(
        &self,
        item: &str,
        (number, declared): (usize, &[&DeclaredItem]),
        wanted: &mut Vec<Wanted>,
    ) -> Result<LeafShare> {
        let first = &declared[0].leaves[number];
        let mut boxes: HashMap<Subset, Vec<usize>> = HashMap::new();
        for (index, declared) in declared.iter().enumerate() {
            let leaf = declared.leaves.get(number);
            let same = |leaf: &&DeclaredLeaf| {
                (&leaf.path, leaf.data_type, &leaf.shape)
                    == (&first.path, first.data_type, &first.shape)
            };
            let Some(leaf) = leaf.filter(same) else {
                let other = leaf.map(|l| format!("{} {} {:?}", l.path, l.data_type, l.shape));
                return Err(Error::invalid("participants declare a leaf differently")
                    .with("participants", named(&[0, index]))
                    .with("first", format!("{} {:?}", first.data_type, first.shape))
                    .with("other", other.unwrap_or_else(|| "nothing".to_owned())));
            };
            for place in leaf.held()? {
                let holders = boxes.entry(place).or_default();
                if holders.last() != Some(&index) {
                    holders.push(index);
                }
            }
        }
        let mut boxes: Vec<(Subset, Vec<usize>)> = boxes.into_iter().collect();
        boxes.sort_by(|(a, _), (b, _)| (a.start(), a.shape()).cmp(&(b.start(), b.shape())));
        let (places, holders): (Vec<Subset>, Vec<Vec<usize>>) = boxes.into_iter().unzip();
        let cuts = grid(first, (&places, &holders))?;
        let item_bytes = first.data_type.size_bytes() as u64;
        for (place, holders) in holders.into_iter().enumerate() {
            let bytes = places[place].elements().saturating_mul(item_bytes);
            wanted.push(Wanted { bytes, item: item.to_owned(), leaf: number, place, holders });
        }
        let boxes = places.into_iter().map(|place| (place, 0)).collect();
        let document = number % self.bytes.len();
        Ok(LeafShare { path: first.path.clone(), cuts, boxes, document })
    }

    /// Gives every box a writer.
    fn assign(&mut self, mut wanted: Vec<Wanted>) {
        // The sort is stable: of equal sizes, items, leaves and boxes keep their order.
        wanted.sort_by_key(|box_| (box_.holders.len() > 1, std::cmp::Reverse(box_.bytes)));
        for Wanted { bytes, item, leaf, place, holders } in wanted {
            let least = holders.iter().copied().min_by_key(|index| (self.bytes[*index], *index));
            let Some(writer) = least else { continue };
            self.bytes[writer] += bytes;
            match self.items.get_mut(&item) {
                Some(Share::Sole(sole)) => *sole = writer,
                Some(Share::Shared(leaves)) => leaves[leaf].boxes[place].1 = writer,
                None => unreachable!("what is wanted belongs to an item of the plan"),
            }
        }
    }

    /// Returns how many decoded bytes a participant writes.
    ///
    /// # Panics
    /// Where there is no such participant.
    #[must_use]
    pub fn bytes_of(&self, participant: usize) -> u64 {
        self.bytes[participant]
    }

    /// Returns the number of participants.
    #[must_use]
    pub fn participants(&self) -> usize {
        self.bytes.len()
    }

    /// Returns what two plans have in common where they are the same: xxh3-128 of who writes which box.
    #[must_use]
    pub fn hash(&self) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(format!("milepost shares 1 {}\n", self.bytes.len()).as_bytes());
        for (name, share) in &self.items {
            match share {
                Share::Sole(writer) => hash.update(format!("item {name:?} {writer}\n").as_bytes()),
                Share::Shared(leaves) => {
                    hash.update(format!("tree {name:?}\n").as_bytes());
                    for leaf in leaves {
                        hash.update(format!("{leaf:?}\n").as_bytes());
                    }
                }
            }
        }
        hash.digest128()
    }
}

impl fmt::Display for SharePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bytes) in self.bytes.iter().enumerate() {
            writeln!(f, "participant {index} writes {bytes} bytes")?;
        }
        for (name, share) in &self.items {
            match share {
                Share::Sole(writer) => writeln!(f, "{name}: participant {writer}")?,
                Share::Shared(leaves) => {
                    for leaf in leaves {
                        for (place, writer) in &leaf.boxes {
                            writeln!(f, "{name}/{} {place}: participant {writer}", leaf.path)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn leaf_bytes(leaf: &DeclaredLeaf) -> u64 {
    crate::array::leaf_bytes(leaf.data_type, &leaf.shape).unwrap_or(0)
}

/// Checks that the boxes cover the leaf and returns the grid that they lie on.
fn grid(
    leaf: &DeclaredLeaf,
    (places, holders): (&[Subset], &[Vec<usize>]),
) -> Result<Vec<Option<u64>>> {
    let shape = &leaf.shape;
    crate::array::leaf_bytes(leaf.data_type, shape)?;
    let refuse = |message: &str| Error::invalid(message).with("shape", format!("{shape:?}"));
    match check_cover(shape, places) {
        Ok(()) => {}
        Err(Misfit::Outside(one)) => {
            return Err(refuse("a box is not inside the array")
                .with("box", &places[one])
                .with("participants", named(&holders[one])));
        }
        Err(Misfit::Overlap(one, other)) => {
            return Err(refuse("boxes of participants overlap and are not the same")
                .with("box", &places[one])
                .with("participants", named(&holders[one]))
                .with("other", &places[other])
                .with("other_participants", named(&holders[other])));
        }
        Err(Misfit::Gap(gap)) => {
            return Err(refuse("no participant holds a part of an array").with("box", gap));
        }
    }
    let cuts = cuts(shape, places);
    if is_regular(shape, &cuts, places.len(), leaf.data_type.size_bytes()) {
        return Ok(cuts);
    }
    let unit: Vec<u64> = shape.iter().zip(&cuts).map(|(n, cut)| cut.unwrap_or(*n)).collect();
    let nearest = nearest_grid(shape, places);
    Err(refuse("the boxes of an array lie on no regular grid that is worth writing")
        .with("boxes", places.len())
        .with("common_grid", format!("{unit:?}"))
        .with("nearest_grid", format!("{nearest:?}"))
        .hint(format!("cut the array into boxes of {nearest:?}, the last ones shorter")))
}

/// Names participants, not more than people read.
pub(super) fn named(participants: &[usize]) -> String {
    let shown: Vec<String> = participants.iter().take(NAMED_MAX).map(usize::to_string).collect();
    let more = participants.len().saturating_sub(NAMED_MAX);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DataType;

    fn place(start: [u64; 2], shape: [u64; 2]) -> Subset {
        Subset::new(start.to_vec(), shape.to_vec()).unwrap()
    }

    fn holds(boxes: &[Subset]) -> Declaration {
        Declaration::new().leaf(("state", "w"), DataType::Float32, &[8, 6], boxes)
    }

    #[test]
    fn replicas_have_one_writer_each_and_share_the_bytes_evenly() {
        // Two rows of boxes, each held by two participants; a whole leaf held by all.
        let declared: Vec<Declaration> = (0..4_u64)
            .map(|i| {
                holds(&[place([i / 2 * 4, 0], [4, 3]), place([i / 2 * 4, 3], [4, 3])])
                    .leaf(("state", "b"), DataType::Float32, &[12], &[])
                    .leaf(("state", "all"), DataType::UInt8, &[3], &[Subset::whole(&[3]).unwrap()])
                    .item("notes", 5)
            })
            .collect();
        let gap = SharePlan::new(&declared).unwrap_err();
        assert_eq!((gap.get("leaf"), gap.get("box")), (Some("b"), Some("[0:12]")));
        let declared: Vec<Declaration> = (0..4_u64)
            .map(|i| {
                holds(&[place([i / 2 * 4, 0], [4, 3]), place([i / 2 * 4, 3], [4, 3])]).item("n", 5)
            })
            .collect();
        let plan = SharePlan::new(&declared).unwrap();
        assert_eq!(plan.participants(), 4);
        assert_eq!((0..4).map(|i| plan.bytes_of(i)).collect::<Vec<_>>(), [53, 48, 48, 48]);
        let Share::Shared(leaves) = &plan.items["state"] else { panic!("{plan}") };
        assert_eq!(leaves[0].cuts, [Some(4), Some(3)]);
        assert_eq!(plan.items["n"], Share::Sole(0));
        assert_eq!(plan.hash(), SharePlan::new(&declared).unwrap().hash());
        assert!(plan.to_string().contains("state/w [4:8,3:6]: participant"));
    }

    #[test]
    fn what_cannot_be_written_is_refused_by_name() {
        let top = [place([0, 0], [4, 6])];
        let refused = |declared: &[Declaration]| {
            let error = SharePlan::new(declared).unwrap_err();
            assert_eq!(error.get("item"), Some("state"), "{error}");
            error
        };
        let overlap = refused(&[holds(&top), holds(&[place([3, 0], [5, 6])])]);
        assert_eq!(overlap.get("box"), Some("[0:4,0:6]"));
        assert_eq!(overlap.get("other_participants"), Some("1"));
        let gap = refused(&[holds(&top), holds(&[place([4, 0], [4, 5])])]);
        assert_eq!(gap.get("box"), Some("[4:8,5:6]"));
        let other = Declaration::new().leaf(("state", "w"), DataType::Int8, &[8, 6], &[]);
        let differs = refused(&[holds(&top), other]);
        assert_eq!(differs.get("participants"), Some("0, 1"));
        let lacks = refused(&[holds(&top), holds(&top), Declaration::new()]);
        assert_eq!(lacks.get("participants"), Some("2"));
        let outside = refused(&[holds(&[place([0, 0], [9, 6])]), holds(&top)]);
        assert_eq!(outside.get("participants"), Some("0"));
    }

    #[test]
    fn boxes_on_no_grid_are_refused_with_the_nearest_one() {
        let row = |start: u64, rows: u64| {
            let place = Subset::new(vec![start], vec![rows]).unwrap();
            Declaration::new().leaf(("s", "w"), DataType::Int8, &[100_000], &[place])
        };
        let error = SharePlan::new(&[row(0, 33_331), row(33_331, 66_669)]).unwrap();
        assert_eq!(error.bytes_of(1), 66_669);
        let error = SharePlan::new(&[row(0, 33_331), row(33_331, 33_333), row(66_664, 33_336)])
            .unwrap_err();
        assert_eq!(error.get("common_grid"), Some("[1]"));
        assert_eq!(error.get("nearest_grid"), Some("[33334]"));
    }

    #[test]
    fn an_item_that_one_participant_has_is_its_own() {
        let whole = Subset::whole(&[3]).unwrap();
        let own = Declaration::new().leaf(("iterator", ""), DataType::Int8, &[3], &[whole]);
        let plan = SharePlan::new(&[Declaration::new(), own]).unwrap();
        assert_eq!(plan.items["iterator"], Share::Sole(1));
    }
}
