//! What a leaf is, without its data.

use crate::error::{Error, Result};
use milepost_formats::{
    DataType,
    index::{Leaf, LeafKind},
};
use std::fmt;

/// Kind, data type and shape of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafSpec {
    /// What it is in the caller's language.
    pub kind: LeafKind,
    /// The logical data type.
    pub data_type: DataType,
    /// The shape in elements; empty for 0-d.
    pub shape: Vec<u64>,
}

impl LeafSpec {
    /// Describes an array.
    pub fn array(data_type: DataType, shape: impl Into<Vec<u64>>) -> Self {
        Self { kind: LeafKind::Array, data_type, shape: shape.into() }
    }

    /// Returns the number of elements; 1 for 0-d.
    ///
    /// # Errors
    /// `Invalid` where it does not fit 64 bits, zero-size dimensions set aside.
    pub fn elements(&self) -> Result<u64> {
        // Without its zeros, so that [0, 2^63, 2^63] is refused whatever the order of dimensions.
        let product = self
            .shape
            .iter()
            .filter(|n| **n != 0)
            .try_fold(1_u64, |product, n| product.checked_mul(*n))
            .ok_or_else(|| self.too_large())?;
        Ok(if self.shape.contains(&0) { 0 } else { product })
    }

    /// Returns the size of the decoded data in bytes; sub-byte types take a byte an element.
    ///
    /// # Errors
    /// `Invalid` where it does not fit 63 bits: no file system or memory holds more.
    pub fn bytes(&self) -> Result<u64> {
        self.elements()?
            .checked_mul(self.data_type.size_bytes() as u64)
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .ok_or_else(|| self.too_large())
    }

    fn too_large(&self) -> Error {
        Error::invalid("the size of a leaf does not fit 63 bits").with("spec", self)
    }
}

impl From<&Leaf> for LeafSpec {
    fn from(leaf: &Leaf) -> Self {
        Self { kind: leaf.kind.clone(), data_type: leaf.data_type, shape: leaf.shape.clone() }
    }
}

impl fmt::Display for LeafSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.data_type, self.shape)?;
        if self.kind == LeafKind::Array {
            return Ok(());
        }
        write!(f, " ({})", kind_name(&self.kind))
    }
}

/// Names a leaf's kind for messages.
pub(crate) fn kind_name(kind: &LeafKind) -> String {
    match kind {
        LeafKind::Array => "array".into(),
        LeafKind::Int => "int".into(),
        LeafKind::Float => "float".into(),
        LeafKind::Bool => "bool".into(),
        LeafKind::Complex => "complex".into(),
        LeafKind::Str => "str".into(),
        LeafKind::Bytes => "bytes".into(),
        LeafKind::PrngKey { implementation } => format!("PRNG key {implementation}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_and_scalars_are_one_element() {
        let spec = |shape: &[u64]| LeafSpec::array(DataType::Float32, shape);
        assert_eq!(spec(&[]).bytes().unwrap(), 4);
        assert_eq!(spec(&[3, 4]).bytes().unwrap(), 48);
        assert_eq!(spec(&[0, 4]).bytes().unwrap(), 0);
        assert!(spec(&[1 << 63, 2]).elements().is_err());
        assert!(spec(&[0, 1 << 63, 2]).bytes().is_err(), "a zero hides no overflow");
        assert!(spec(&[1 << 61]).bytes().is_err(), "2^63 bytes");
        assert_eq!(spec(&[(1 << 61) - 1]).bytes().unwrap(), (1 << 63) - 4);
    }

    #[test]
    fn a_spec_displays_as_data_type_shape_and_kind() {
        assert_eq!(LeafSpec::array(DataType::BFloat16, [3, 4]).to_string(), "bfloat16[3, 4]");
        let kind = LeafKind::PrngKey { implementation: "threefry2x32".into() };
        let key = LeafSpec { kind, data_type: DataType::UInt32, shape: vec![2] };
        assert_eq!(key.to_string(), "uint32[2] (PRNG key threefry2x32)");
    }
}
