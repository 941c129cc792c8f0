//! An array whose elements lie in several blocks of memory: the shards of a device array.

use super::source::{Leaf, Provider, check_size};
use crate::{
    chunk::{Block, BlockMut, Subset, copy_box, elements},
    dtype::DataType,
    error::{Error, Result},
};
use bytes::Bytes;
use std::{collections::HashSet, sync::Arc};

/// Blocks of one array, each in C order.
struct Boxes {
    item_bytes: usize,
    boxes: Vec<(Subset, Bytes)>,
}

impl Provider for Boxes {
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        let mut target = BlockMut::new(out, subset.shape(), self.item_bytes);
        let mut filled = 0;
        for (place, bytes) in &self.boxes {
            if let Some(both) = place.intersection(subset) {
                let source = Block::new(bytes, place.shape(), self.item_bytes);
                copy_box(source, &both.within(place)?, &mut target, &both.within(subset)?);
                filled += both.elements();
            }
        }
        // Blocks are disjoint: a part that others hold would be left as it is.
        if filled == subset.elements() {
            return Ok(());
        }
        Err(Error::internal("a part of an array that is not held here was to be written")
            .with("box", subset))
    }
}

impl Leaf {
    /// Hands over an array that lies in several blocks: where each is, and its bytes, little endian in C order.
    ///
    /// # Errors
    /// `Invalid` where a block is not inside the array or not as long as its box, and where the blocks do not cover
    /// every element exactly once.
    pub fn from_boxes(
        data_type: DataType,
        shape: Vec<u64>,
        boxes: Vec<(Subset, Bytes)>,
    ) -> Result<Self> {
        check_disjoint(data_type, &shape, &boxes)?;
        // Disjoint and inside: they cover all where they are as many elements.
        let covered: u64 = boxes.iter().map(|(place, _)| place.elements()).sum();
        if elements(&shape) != Some(covered) {
            return Err(
                refuse("the blocks do not cover the array", &shape).with("covered", covered)
            );
        }
        let item_bytes = data_type.size_bytes();
        Self::from_provider(data_type, shape, Arc::new(Boxes { item_bytes, boxes }))
    }

    /// Hands over the blocks that this process holds of an array which several save together.
    ///
    /// There may be none. A block that is given twice (by two devices of the process) counts once.
    ///
    /// # Errors
    /// `Invalid` where a block is not inside the array, not as long as its box, or overlaps another one.
    pub fn from_held_boxes(
        data_type: DataType,
        shape: Vec<u64>,
        mut boxes: Vec<(Subset, Bytes)>,
    ) -> Result<Self> {
        let mut seen = HashSet::new();
        boxes.retain(|(place, _)| !place.is_empty() && seen.insert(place.clone()));
        check_disjoint(data_type, &shape, &boxes)?;
        let held = boxes.iter().map(|(place, _)| place.clone()).collect();
        let item_bytes = data_type.size_bytes();
        let mut leaf =
            Self::from_provider(data_type, shape, Arc::new(Boxes { item_bytes, boxes }))?;
        leaf.held = Some(held);
        Ok(leaf)
    }

    /// Hands over what this process holds of an array which several save together, as [`Leaf::from_held_boxes`] does; what
    /// is written of it is asked of `provider`, and nothing outside of `held` is.
    ///
    /// # Errors
    /// `Invalid` where a box is not inside the array.
    pub fn from_held_provider(
        data_type: DataType,
        shape: Vec<u64>,
        mut held: Vec<Subset>,
        provider: Arc<dyn Provider>,
    ) -> Result<Self> {
        let mut seen = HashSet::new();
        held.retain(|place| !place.is_empty() && seen.insert(place.clone()));
        if let Some(place) = held.iter().find(|place| !place.fits(&shape)) {
            return Err(refuse("a block is not inside the array", &shape).with("box", place));
        }
        let mut leaf = Self::from_provider(data_type, shape, provider)?;
        leaf.held = Some(held);
        Ok(leaf)
    }
}

fn check_disjoint(data_type: DataType, shape: &[u64], boxes: &[(Subset, Bytes)]) -> Result<()> {
    for (place, bytes) in boxes {
        check_size(data_type, place.shape(), bytes.len())?;
        if !place.fits(shape) {
            return Err(refuse("a block is not inside the array", shape).with("box", place));
        }
    }
    for (i, (one, _)) in boxes.iter().enumerate() {
        let twice = boxes[..i].iter().find(|(other, _)| other.intersection(one).is_some());
        if let Some((other, _)) = twice {
            return Err(refuse("two blocks of an array overlap", shape)
                .with("box", one)
                .with("other", other));
        }
    }
    Ok(())
}

fn refuse(message: &str, shape: &[u64]) -> Error {
    Error::invalid(message).with("shape", format!("{shape:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: [u64; 2], shape: [u64; 2]) -> (Subset, Bytes) {
        let place = Subset::new(start.into(), shape.into()).unwrap();
        let values = (0..shape[0]).flat_map(|i| {
            (0..shape[1]).map(move |j| u8::try_from((start[0] + i) * 10 + start[1] + j).unwrap())
        });
        (place, values.collect::<Vec<u8>>().into())
    }

    #[test]
    fn a_chunk_is_filled_from_every_block_it_meets() {
        let boxes = vec![block([0, 0], [2, 3]), block([0, 3], [2, 1]), block([2, 0], [1, 4])];
        let boxes = Boxes { item_bytes: 1, boxes };
        let mut out = [0; 4];
        boxes.fill(&Subset::new(vec![1, 2], vec![2, 2]).unwrap(), &mut out).unwrap();
        assert_eq!(out, [12, 13, 22, 23]);
    }

    #[test]
    fn blocks_that_overlap_leave_holes_or_lie_outside_are_refused() {
        let leaf = |boxes| Leaf::from_boxes(DataType::UInt8, vec![2, 4], boxes);
        let message = |boxes| leaf(boxes).unwrap_err().message().to_owned();
        assert!(leaf(vec![block([0, 0], [2, 4])]).is_ok());
        assert!(message(vec![block([0, 0], [2, 3])]).contains("do not cover"));
        assert!(message(vec![block([0, 0], [2, 3]), block([0, 2], [2, 2])]).contains("overlap"));
        assert!(message(vec![block([0, 0], [2, 5])]).contains("not inside"));
        let short = (block([0, 0], [2, 4]).0, Bytes::from_static(b"abc"));
        assert!(message(vec![short]).contains("size"));
    }
}
