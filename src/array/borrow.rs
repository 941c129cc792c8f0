//! Leaves over memory that the caller keeps: named now, copied by the save before it returns.

use super::{
    element::Element,
    source::{Leaf, Source, check_size},
};
use crate::{dtype::DataType, error::Result};
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// Which slice of which [`Borrowed`] a leaf means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loan {
    lender: u64,
    position: usize,
}

/// Memory that is lent to one save: the save copies it, within the budget, before it returns.
///
/// Leaves made here are saved together with it (`SaveRequest::borrowing`, `CheckpointWriter::start`); a save without
/// it refuses them.
///
/// ```
/// use milepost::{Borrowed, Tree};
/// # fn main() -> milepost::Result<()> {
/// let weights = vec![1.0_f32; 12];
/// let mut borrowed = Borrowed::new();
/// let state = Tree::dict([("w", Tree::leaf(borrowed.leaf(&weights, &[3, 4])?))]);
/// # Ok(())
/// # }
/// ```
pub struct Borrowed<'a> {
    lender: u64,
    slices: Vec<&'a [u8]>,
}

impl Default for Borrowed<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Borrowed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Borrowed({} slices)", self.slices.len())
    }
}

impl<'a> Borrowed<'a> {
    /// Creates one that lends nothing yet.
    #[must_use]
    pub fn new() -> Self {
        static LENDERS: AtomicU64 = AtomicU64::new(0);
        Self { lender: LENDERS.fetch_add(1, Ordering::Relaxed), slices: Vec::new() }
    }

    /// Names a slice in C order as a leaf; nothing is copied yet.
    ///
    /// # Errors
    /// `Invalid` where the number of elements is not that of the shape.
    pub fn leaf<T: Element>(&mut self, values: &'a [T], shape: &[u64]) -> Result<Leaf> {
        self.leaf_of_bytes(T::DATA_TYPE, shape.to_vec(), T::view(values))
    }

    /// Names raw bytes, little endian and in C order, as a leaf; nothing is copied yet.
    ///
    /// # Errors
    /// `Invalid` where the number of bytes is not that of the shape.
    pub fn leaf_of_bytes(
        &mut self,
        data_type: DataType,
        shape: Vec<u64>,
        bytes: &'a [u8],
    ) -> Result<Leaf> {
        check_size(data_type, &shape, bytes.len())?;
        let loan = Loan { lender: self.lender, position: self.slices.len() };
        self.slices.push(bytes);
        Ok(Leaf::over(data_type, shape, Source::Borrowed(loan)))
    }

    /// Returns the memory of a leaf that was made here.
    pub(crate) fn slice(&self, leaf: &Leaf) -> Option<&'a [u8]> {
        let Source::Borrowed(loan) = leaf.source else { return None };
        self.slices.get(loan.position).copied().filter(|_| loan.lender == self.lender)
    }
}
