//! Packs the elements of one tensor after the other, slab by slab.
//!
//! A slab may end anywhere, a tensor ends at a byte: what does not fill a byte is carried to the next slab.

use crate::{
    buffer::Buffer,
    error::{Error, Result},
};
use milepost_formats::safetensors::{Dtype, pack};

/// Elements that wait for the rest of their byte.
#[derive(Debug, Default)]
pub(super) struct Packer {
    carried: Vec<u8>,
}

impl Packer {
    /// Packs elements that come a byte each, after those that were carried.
    pub(super) fn pack(&mut self, elements: &[u8], dtype: Dtype) -> Result<Buffer> {
        let bits = dtype.bits();
        let mut all = std::mem::take(&mut self.carried);
        all.extend_from_slice(elements);
        // F4: 2 elements a byte; F6: 4 in 3 bytes.
        let unit = if bits.is_multiple_of(4) { 2 } else { 4 };
        self.carried = all.split_off(all.len() - all.len() % unit);
        let mut buffer = Buffer::try_zeroed(all.len() * bits as usize / 8)
            .ok_or_else(|| Error::unavailable("no memory to pack elements"))?;
        pack(bits, &all, &mut buffer)?;
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_that_end_inside_a_byte_pack_as_one() {
        for (bits, dtype) in [(4, Dtype::F4), (6, Dtype::F6E3M2)] {
            let elements: Vec<u8> = (0..24).map(|i| i * 7 % (1 << bits)).collect();
            let mut whole = vec![0; 24 * bits / 8];
            pack(dtype.bits(), &elements, &mut whole).unwrap();
            for slab in 1..=24 {
                let mut packer = Packer::default();
                let parts = elements.chunks(slab).map(|part| packer.pack(part, dtype).unwrap());
                let joined: Vec<u8> = parts.flat_map(|part| part.to_vec()).collect();
                assert_eq!(joined, whole, "{dtype} in slabs of {slab}");
                assert!(packer.carried.is_empty());
            }
        }
    }
}
