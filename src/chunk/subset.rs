//! A box of elements, and the text form in which people select one.
//!
//! [`Subset`] is what every layer passes: start and shape an axis. [`Selection`] is what a person asks for:
//! `0:10,:`, `...,3`, `::2`, `-1`. It is a box to read plus what is picked from it, so that readers know
//! boxes only; the pick is a copy in memory afterwards.
//!
//! **Invariant:** in a `Subset` the ranks agree, `start + shape` of each axis and the number of elements fit
//! a `u64`; nothing that uses one checks it again.

use crate::error::{Error, Result};
use std::fmt;

/// Counts the elements of a shape; `None` where they do not fit a `u64`.
///
/// A shape with a zero has none, however long its other axes; a 0-d shape has one.
pub(crate) fn elements(shape: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n))
}

/// A box of elements in an array.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Subset {
    start: Vec<u64>,
    shape: Vec<u64>,
}

impl Subset {
    /// Creates the box of `shape` at `start`.
    ///
    /// # Errors
    /// `Invalid` where the ranks differ or an end or the number of elements does not fit a `u64`.
    pub fn new(start: Vec<u64>, shape: Vec<u64>) -> Result<Self> {
        if start.len() != shape.len() {
            return Err(Error::invalid("start and shape of a box have different ranks")
                .with("start", format!("{start:?}"))
                .with("shape", format!("{shape:?}")));
        }
        let ends_fit = start.iter().zip(&shape).all(|(s, n)| s.checked_add(*n).is_some());
        if !ends_fit || elements(&shape).is_none() {
            return Err(Error::invalid("a box has more elements than 64 bits count")
                .with("start", format!("{start:?}"))
                .with("shape", format!("{shape:?}")));
        }
        Ok(Self { start, shape })
    }

    /// Creates the box that is all of an array.
    ///
    /// # Errors
    /// `Invalid` where the number of elements does not fit a `u64`.
    pub fn whole(shape: &[u64]) -> Result<Self> {
        Self::new(vec![0; shape.len()], shape.to_vec())
    }

    /// Returns the number of axes.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Returns the first index on each axis.
    #[must_use]
    pub fn start(&self) -> &[u64] {
        &self.start
    }

    /// Returns the length of each axis.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Returns the index after the last on `axis`.
    ///
    /// # Panics
    /// Where there is no such axis.
    #[must_use]
    pub fn end(&self, axis: usize) -> u64 {
        self.start[axis] + self.shape[axis]
    }

    /// Counts the elements; one for a 0-d box.
    #[must_use]
    pub fn elements(&self) -> u64 {
        elements(&self.shape).unwrap_or(0) // it fits: checked when the box was made
    }

    /// Tells whether the box has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Tells whether the box lies inside an array of `shape`.
    #[must_use]
    pub fn fits(&self, shape: &[u64]) -> bool {
        self.rank() == shape.len() && shape.iter().enumerate().all(|(a, n)| self.end(a) <= *n)
    }

    /// Tells whether every element of `other` is in this box.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.rank() == other.rank()
            && (other.is_empty()
                || (0..self.rank())
                    .all(|a| self.start[a] <= other.start[a] && other.end(a) <= self.end(a)))
    }

    /// Returns this box as seen from the start of `outer`, which contains it.
    ///
    /// # Errors
    /// `Invalid` where it does not.
    pub(crate) fn within(&self, outer: &Self) -> Result<Self> {
        if !outer.contains(self) {
            return Err(Error::invalid("a box is not inside another")
                .with("box", self)
                .with("outer", outer));
        }
        let start = self.start.iter().zip(&outer.start).map(|(s, o)| s - o).collect();
        Self::new(start, self.shape.clone())
    }

    /// Returns the elements in both boxes; `None` where there are none or the ranks differ.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.rank() != other.rank() {
            return None;
        }
        let mut both = Self { start: Vec::new(), shape: Vec::new() };
        for axis in 0..self.rank() {
            let start = self.start[axis].max(other.start[axis]);
            let end = self.end(axis).min(other.end(axis));
            if start >= end {
                return None;
            }
            both.start.push(start);
            both.shape.push(end - start);
        }
        Some(both)
    }

    /// Returns the same elements counted from the start of `outer`, which holds them.
    ///
    /// # Panics
    /// Where the box begins before `outer`.
    pub(crate) fn relative_to(&self, outer: &Self) -> Self {
        assert_eq!(self.rank(), outer.rank(), "boxes of one array have one rank");
        let start = self.start.iter().zip(&outer.start).map(|(a, b)| {
            a.checked_sub(*b).expect("a box is counted from one that begins before it")
        });
        Self { start: start.collect(), shape: self.shape.clone() }
    }
}

impl fmt::Debug for Subset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Subset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for axis in 0..self.rank() {
            let comma = if axis == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", self.start[axis], self.end(axis))?;
        }
        f.write_str("]")
    }
}

/// A box to read and what is picked from it: `NumPy`'s basic indexing with positive steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// What is read; it ends with the last element that is picked.
    pub subset: Subset,
    /// Every how manieth element of the box is picked, an axis.
    pub step: Vec<u64>,
    /// Which axes a single index removed from the result.
    pub dropped: Vec<bool>,
}

impl Selection {
    /// Selects all of a box.
    #[must_use]
    pub fn of(subset: Subset) -> Self {
        let rank = subset.rank();
        Self { subset, step: vec![1; rank], dropped: vec![false; rank] }
    }

    /// Parses slice text (`0:10,:`, `...`, `-1`, `::2`) against the shape it selects from.
    ///
    /// As in `NumPy`, slice bounds beyond an axis are cut to it, and a single index beyond it is an error.
    ///
    /// # Errors
    /// `Invalid` that names the axis and its size.
    pub fn parse(text: &str, shape: &[u64]) -> Result<Self> {
        let at = |error: Error| error.with("slice", text).with("shape", format!("{shape:?}"));
        let items = expand(text, shape.len()).map_err(at)?;
        let (mut start, mut lengths, mut step, mut dropped) = (vec![], vec![], vec![], vec![]);
        for (axis, item) in items.iter().enumerate() {
            let pick = Pick::parse(item, shape[axis])
                .map_err(|e| at(e.with("axis", axis).with("size", shape[axis])))?;
            start.push(pick.start);
            lengths.push(pick.length);
            step.push(pick.step);
            dropped.push(pick.dropped);
        }
        Ok(Self { subset: Subset::new(start, lengths).map_err(at)?, step, dropped })
    }

    /// Returns how many elements are picked on each axis of the box.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.subset.shape().iter().zip(&self.step).map(|(n, step)| n.div_ceil(*step)).collect()
    }

    /// Returns the shape of the result, without the dropped axes.
    #[must_use]
    pub fn shape(&self) -> Vec<u64> {
        let kept = self.counts().into_iter().zip(&self.dropped).filter(|(_, dropped)| !**dropped);
        kept.map(|(n, _)| n).collect()
    }

    /// Tells whether the result is the box itself, so that nothing needs to be picked.
    #[must_use]
    pub fn is_whole_box(&self) -> bool {
        self.step.iter().all(|step| *step == 1)
    }

    /// Copies what is picked out of the bytes of the box.
    ///
    /// # Panics
    /// Where `boxed` is not the box in bytes.
    #[must_use]
    pub fn pick(&self, boxed: &[u8], item_bytes: usize) -> Vec<u8> {
        let block = super::Block::new(boxed, self.subset.shape(), item_bytes);
        if self.is_whole_box() {
            return boxed.to_vec();
        }
        let counts = self.counts();
        let mut out = Vec::with_capacity(
            usize::try_from(elements(&counts).unwrap_or(0)).unwrap_or(0) * item_bytes,
        );
        let strides = block.strides();
        let mut index = vec![0u64; counts.len()];
        if counts.contains(&0) {
            return out;
        }
        loop {
            let offset: usize = (0..index.len())
                .map(|a| super::scatter::small(index[a] * self.step[a]) * strides[a])
                .sum();
            out.extend_from_slice(&boxed[offset..offset + item_bytes]);
            if !super::grid::advance(&mut index, &counts) {
                return out;
            }
        }
    }
}

/// Splits the text at its commas and puts `:` where `...` or nothing stands.
fn expand(text: &str, rank: usize) -> Result<Vec<&str>> {
    if text.trim().is_empty() {
        return Err(Error::invalid("the slice is empty").hint("`...` selects everything"));
    }
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    let dots = items.iter().filter(|item| **item == "...").count();
    let given = items.len() - dots;
    if dots > 1 {
        return Err(Error::invalid("a slice has more than one `...`"));
    }
    if given > rank {
        return Err(Error::invalid(format!("a slice of {given} axes of an array with {rank}")));
    }
    let mut expanded = Vec::with_capacity(rank);
    for item in items {
        if item == "..." {
            expanded.extend(std::iter::repeat_n(":", rank - given));
        } else {
            expanded.push(item);
        }
    }
    expanded.resize(rank, ":");
    Ok(expanded)
}

/// What one item of a slice selects on its axis.
struct Pick {
    start: u64,
    length: u64,
    step: u64,
    dropped: bool,
}

impl Pick {
    fn parse(item: &str, size: u64) -> Result<Self> {
        let fields: Vec<&str> = item.split(':').map(str::trim).collect();
        match fields.as_slice() {
            [single] => Self::single(single, size),
            [start, end] => Self::range([start, end, ""], size),
            [start, end, step] => Self::range([start, end, step], size),
            _ => Err(Error::invalid("a slice has at most start, end and step")),
        }
    }

    fn single(text: &str, size: u64) -> Result<Self> {
        let index = number(text)?;
        let wrapped = if index < 0 { index + i128::from(size) } else { index };
        match u64::try_from(wrapped) {
            Ok(start) if start < size => Ok(Self { start, length: 1, step: 1, dropped: true }),
            _ => Err(Error::invalid(format!("index {index} is out of bounds"))),
        }
    }

    fn range([start, end, step]: [&str; 3], size: u64) -> Result<Self> {
        let step = if step.is_empty() { 1 } else { number(step)? };
        let Some(step) = u64::try_from(step).ok().filter(|step| *step > 0) else {
            return Err(Error::invalid(format!("the step {step} is not positive"))
                .hint("read forwards and reverse the result"));
        };
        let start = bound(start, 0, size)?;
        let end = bound(end, size, size)?;
        let span = end.saturating_sub(start);
        let length = if span == 0 { 0 } else { (span - 1) / step * step + 1 };
        Ok(Self { start, length, step, dropped: false })
    }
}

fn number(text: &str) -> Result<i128> {
    text.parse().map_err(|_| Error::invalid(format!("`{text}` is not an index")))
}

/// Reads a bound of a slice: counted from the end where negative, cut to the axis.
fn bound(text: &str, default: u64, size: u64) -> Result<u64> {
    if text.is_empty() {
        return Ok(default);
    }
    let value = number(text)?;
    let wrapped = if value < 0 { value.saturating_add(i128::from(size)) } else { value };
    Ok(u64::try_from(wrapped.clamp(0, i128::from(size))).unwrap_or(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(text: &str, shape: &[u64]) -> (String, Vec<u64>) {
        let selection = Selection::parse(text, shape).unwrap();
        (selection.subset.to_string(), selection.shape())
    }

    #[test]
    fn slices_select_as_numpy_does() {
        for (text, shape, read, result) in [
            ("0:10,:", vec![100, 7], "[0:10,0:7]", vec![10, 7]),
            ("...", vec![3, 4], "[0:3,0:4]", vec![3, 4]),
            ("...", vec![], "[]", vec![]),
            ("..., 3", vec![5, 6, 7], "[0:5,0:6,3:4]", vec![5, 6]),
            ("1, ..., ::2", vec![5, 6, 7], "[1:2,0:6,0:7]", vec![6, 4]),
            ("-1", vec![5], "[4:5]", vec![]),
            ("-3:", vec![5], "[2:5]", vec![3]),
            ("-99:99", vec![5], "[0:5]", vec![5]),
            ("3:1", vec![5], "[3:3]", vec![0]),
            ("7:", vec![5], "[5:5]", vec![0]),
            ("::2", vec![6], "[0:5]", vec![3]),
            ("1:6:4", vec![9], "[1:6]", vec![2]),
            ("1", vec![5, 2], "[1:2,0:2]", vec![2]),
            (":", vec![0], "[0:0]", vec![0]),
            (
                "1:18446744073709551615:9223372036854775807",
                vec![u64::MAX],
                "[1:9223372036854775809]",
                vec![2],
            ),
        ] {
            assert_eq!(picked(text, &shape), (read.to_owned(), result), "{text} of {shape:?}");
        }
    }

    #[test]
    fn bad_slices_name_axis_and_size() {
        let error = Selection::parse("0:1,9", &[3, 4]).unwrap_err();
        assert_eq!((error.get("axis"), error.get("size")), (Some("1"), Some("4")));
        assert_eq!(error.message(), "index 9 is out of bounds");
        for text in ["", "0,0,0", "...,...", "a", "::0", "::-1", "1:2:3:4", "1.5", "-4", "0,,0"] {
            let error = Selection::parse(text, &[3, 3]).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{text}");
            assert!(error.get("slice").is_some() && error.get("shape").is_some());
        }
    }

    #[test]
    fn picking_takes_every_step_of_the_box() {
        let selection = Selection::parse("::2,1::3", &[3, 6]).unwrap();
        assert_eq!(selection.subset.to_string(), "[0:3,1:5]");
        let boxed: Vec<u8> = (0..12).collect(); // 3 rows of columns 1..5
        assert_eq!(selection.pick(&boxed, 1), [0, 3, 8, 11]);
        let empty = Selection::parse("2:1:2,:", &[3, 6]).unwrap();
        assert_eq!(empty.pick(&[], 4), [0u8; 0]);
    }

    #[test]
    fn boxes_intersect_contain_and_move() {
        let a = Subset::new(vec![2, 0], vec![4, 5]).unwrap();
        let b = Subset::new(vec![4, 3], vec![9, 9]).unwrap();
        let both = a.intersection(&b).unwrap();
        assert_eq!(both.to_string(), "[4:6,3:5]");
        assert_eq!(both.relative_to(&a).to_string(), "[2:4,3:5]");
        assert!(a.contains(&both) && !both.contains(&a) && a.fits(&[6, 5]) && !a.fits(&[5, 5]));
        assert_eq!(a.intersection(&Subset::new(vec![6, 0], vec![1, 1]).unwrap()), None);
        assert_eq!(a.intersection(&Subset::new(vec![2], vec![1]).unwrap()), None);
        let scalar = Subset::whole(&[]).unwrap();
        assert_eq!((scalar.elements(), scalar.intersection(&scalar)), (1, Some(scalar.clone())));
    }

    #[test]
    fn boxes_that_64_bits_cannot_count_are_refused() {
        Subset::new(vec![1], vec![u64::MAX]).unwrap_err();
        Subset::new(vec![0, 0], vec![1 << 32, 1 << 32]).unwrap_err();
        Subset::new(vec![0], vec![]).unwrap_err();
        assert_eq!(Subset::whole(&[1 << 40, 1 << 40, 0]).unwrap().elements(), 0);
    }
}
