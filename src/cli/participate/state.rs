//! The generated state of `milepost participate`: what each participant holds, and what every element is.
//!
//! Element `e` (in C order) of a leaf is the low bytes of `(e + 1) * 0x9E3779B97F4A7C15 ^ step`, little endian, so that
//! anybody can check any box of it; a bool is its lowest bit.

use milepost::{DataType, Error, ErrorKind, Item, Leaf, Result, Subset, Tree};

/// What a box of one participant may take at most; more is a slip of the pen.
const BOX_BYTES_MAX: u64 = 8 << 30;

/// A state whose leaves all have one shape, divided over a mesh.
#[derive(Debug)]
pub(super) struct State<'a> {
    pub(super) step: u64,
    pub(super) shape: &'a [u64],
    /// Parts of each axis; axes that are not named are not divided.
    pub(super) mesh: &'a [u64],
    pub(super) data_types: &'a [DataType],
}

impl State<'_> {
    /// Refuses a mesh that does not divide `count` participants.
    pub(super) fn check(&self, count: usize) -> Result<()> {
        let invalid = |message| Err(Error::new(ErrorKind::Invalid, message));
        let parts = self.mesh.iter().try_fold(1_u64, |all, parts| all.checked_mul(*parts));
        if self.mesh.len() > self.shape.len() || parts.is_none_or(|n| n == 0) {
            return invalid("the mesh does not fit the shape").map_err(|e: Error| {
                e.hint("give one number of parts for each axis of --shape, from the first")
            });
        }
        if parts.is_some_and(|parts| !(count as u64).is_multiple_of(parts)) {
            return invalid("the mesh does not divide the participants").map_err(|e: Error| {
                let e = e.with("parts", parts.unwrap_or_default()).with("count", count);
                e.hint("the product of --mesh has to be --count, or to divide it: then boxes are replicated")
            });
        }
        let names: std::collections::BTreeSet<String> =
            self.data_types.iter().map(ToString::to_string).collect();
        if names.len() < self.data_types.len() {
            return invalid("a data type is named twice");
        }
        Ok(())
    }

    /// Returns the box of a participant, which may be empty where the parts are more than the rows.
    pub(super) fn held(&self, index: usize) -> Result<Subset> {
        let mut rest = index as u64;
        let (mut start, mut extent) = (Vec::new(), Vec::new());
        for (axis, length) in self.shape.iter().enumerate() {
            let parts = self.mesh.get(axis).copied().unwrap_or(1);
            let each = length.div_ceil(parts);
            let from = (rest % parts).saturating_mul(each).min(*length);
            rest /= parts;
            start.push(from);
            extent.push(each.min(length - from));
        }
        Subset::new(start, extent)
    }

    /// Returns the bytes of a box of every leaf.
    pub(super) fn bytes(&self, held: &Subset, data_type: DataType) -> Result<Vec<u8>> {
        let size = data_type.size_bytes();
        let elements = held.shape().iter().try_fold(1_u64, |all, n| all.checked_mul(*n));
        let bytes = elements.and_then(|n| n.checked_mul(size as u64));
        let Some(bytes) = bytes.filter(|bytes| *bytes <= BOX_BYTES_MAX) else {
            return Err(Error::new(ErrorKind::Invalid, "the box of a participant is too large")
                .with("box", held)
                .hint("give a smaller --shape, or a --mesh of more parts"));
        };
        let mut out = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
        for element in 0..elements.unwrap_or_default() {
            let (mut rest, mut linear, mut stride) = (element, 0_u64, 1_u64);
            for axis in (0..self.shape.len()).rev() {
                let position = held.start()[axis] + rest % held.shape()[axis];
                linear = linear.wrapping_add(position.wrapping_mul(stride));
                rest /= held.shape()[axis];
                stride = stride.wrapping_mul(self.shape[axis]);
            }
            let value = linear.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.step;
            if data_type == DataType::Bool {
                out.push(u8::from(value & 1 == 1));
            } else {
                let value = [value, value.rotate_left(32)].map(u64::to_le_bytes).concat();
                out.extend_from_slice(&value[..size]);
            }
        }
        Ok(out)
    }

    /// Returns the item of a participant.
    pub(super) fn item(&self, index: usize) -> Result<Item> {
        let held = self.held(index)?;
        let mut leaves = Vec::new();
        for data_type in self.data_types {
            let boxes = vec![(held.clone(), self.bytes(&held, *data_type)?.into())];
            let leaf = Leaf::from_held_boxes(*data_type, self.shape.to_vec(), boxes)?;
            leaves.push((data_type.to_string(), Tree::leaf(leaf)));
        }
        leaves.push(("step".to_owned(), Tree::leaf(Leaf::int(self.step.into())?)));
        Ok(Item::Tree(Tree::dict(leaves)))
    }
}
