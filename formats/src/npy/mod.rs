//! The header of a `.npy` file, version 1.0, byte for byte as NumPy writes it.
//!
//! ```text
//! 93 "NUMPY" 01 00 | u16: bytes of what follows | {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } … \n
//! ```
//!
//! Spaces pad the header to a multiple of 64, after room for the first dimension to grow to 21 digits; the
//! elements follow, little endian, in C order. NumPy has no name for bfloat16, float8 and their like: `ml_dtypes`
//! writes them as opaque bytes (`<V2`, `<V1`), to be seen again by `np.load(f).view(ml_dtypes.bfloat16)`. Its
//! `float8_e5m2` alone comes out as `<f1`, which NumPy then refuses to load; here it is `<V1` as the others.
//!
//! **Invariant:** this room only writes. Nothing of ours reads `.npy` files.

use crate::{DataType, FormatError, Result};

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
const ALIGN_BYTES: usize = 64;
/// How many digits NumPy leaves for the first dimension to grow.
const GROWTH_DIGITS: usize = 21;
/// NumPy arrays have no more axes than this.
const RANK_MAX: usize = 64;

/// Returns the header of a file that holds an array of `shape`; its elements follow.
///
/// ```
/// use milepost_formats::{DataType, npy};
///
/// let header = npy::header(DataType::BFloat16, &[2, 3])?;
/// assert!(header.starts_with(b"\x93NUMPY\x01\x00v\x00{'descr': '<V2', "));
/// assert_eq!(header.len() % 64, 0);
/// # Ok::<(), milepost_formats::FormatError>(())
/// ```
///
/// # Errors
/// `Invalid` for more than 64 axes.
pub fn header(data_type: DataType, shape: &[u64]) -> Result<Vec<u8>> {
    if shape.len() > RANK_MAX {
        return Err(FormatError::invalid(format!(
            "an npy file has at most {RANK_MAX} axes, the array {}",
            shape.len()
        )));
    }
    let dimensions: Vec<String> = shape.iter().map(u64::to_string).collect();
    let tuple = match dimensions.as_slice() {
        [only] => format!("({only},)"),
        several => format!("({})", several.join(", ")),
    };
    let descr = descr(data_type);
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple}, }}").into_bytes();
    let growth = dimensions.first().map_or(0, |first| GROWTH_DIGITS.saturating_sub(first.len()));
    text.resize(text.len() + growth, b' ');
    let head = MAGIC.len() + 2;
    let end = (head + text.len() + 1).next_multiple_of(ALIGN_BYTES);
    text.resize(end - head - 1, b' ');
    text.push(b'\n');
    let bytes = u16::try_from(text.len())
        .map_err(|_| FormatError::invalid("the shape is too long for an npy header"))?;
    Ok([MAGIC, &bytes.to_le_bytes(), &text].concat())
}

/// Returns the type as NumPy and `ml_dtypes` describe it.
fn descr(data_type: DataType) -> String {
    use DataType as T;
    let bytes = data_type.size_bytes();
    let letter = match data_type {
        T::Bool => 'b',
        T::Int8 | T::Int16 | T::Int32 | T::Int64 => 'i',
        T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => 'u',
        T::Float16 | T::Float32 | T::Float64 => 'f',
        T::Complex64 | T::Complex128 => 'c',
        T::Raw(_) => return format!("|V{bytes}"),
        _ => return format!("<V{bytes}"),
    };
    let order = if bytes == 1 { '|' } else { '<' };
    format!("{order}{letter}{bytes}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NumPy 2 and `ml_dtypes` 0.5 wrote, but for `float8_e5m2` (`<f1`).
    const DESCRS: &[(&str, &str)] = &[
        ("bool", "|b1"),
        ("int2", "<V1"),
        ("int4", "<V1"),
        ("int8", "|i1"),
        ("int16", "<i2"),
        ("int32", "<i4"),
        ("int64", "<i8"),
        ("uint2", "<V1"),
        ("uint4", "<V1"),
        ("uint8", "|u1"),
        ("uint16", "<u2"),
        ("uint32", "<u4"),
        ("uint64", "<u8"),
        ("float4_e2m1fn", "<V1"),
        ("float6_e2m3fn", "<V1"),
        ("float6_e3m2fn", "<V1"),
        ("float8_e3m4", "<V1"),
        ("float8_e4m3", "<V1"),
        ("float8_e4m3b11fnuz", "<V1"),
        ("float8_e4m3fn", "<V1"),
        ("float8_e4m3fnuz", "<V1"),
        ("float8_e5m2", "<V1"),
        ("float8_e5m2fnuz", "<V1"),
        ("float8_e8m0fnu", "<V1"),
        ("float16", "<f2"),
        ("bfloat16", "<V2"),
        ("float32", "<f4"),
        ("float64", "<f8"),
        ("complex64", "<c8"),
        ("complex128", "<c16"),
    ];

    #[test]
    fn every_data_type_is_described_as_numpy_and_ml_dtypes_do() {
        let ours: Vec<_> = DataType::ALL.iter().map(|t| (t.to_string(), descr(*t))).collect();
        let theirs: Vec<_> =
            DESCRS.iter().map(|(name, d)| ((*name).to_owned(), (*d).to_owned())).collect();
        assert_eq!(ours, theirs);
        assert_eq!(descr(DataType::Raw(3)), "|V3");
    }

    #[test]
    fn headers_are_those_of_numpy_byte_for_byte() {
        let start = b"\x93NUMPY\x01\x00v\x00".to_vec();
        for (shape, text) in [
            (&[][..], "()"),
            (&[3], "(3,)"),
            (&[0, 7], "(0, 7)"),
            (&[1_000_000_000_000], "(1000000000000,)"),
        ] {
            let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}");
            let mut wanted = [&start[..], text.as_bytes()].concat();
            wanted.resize(127, b' ');
            wanted.push(b'\n');
            assert_eq!(header(DataType::Float32, shape).unwrap(), wanted);
        }
    }

    #[test]
    fn a_header_that_just_overflows_a_block_gets_another() {
        // With the room for growth, NumPy takes 320 bytes for 64 axes of length 2.
        assert_eq!(header(DataType::Float32, &[2; 64]).unwrap().len(), 320);
        assert!(header(DataType::Float32, &[2; 65]).is_err());
    }
}
