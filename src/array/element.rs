//! Rust types that are elements of arrays, seen as little-endian bytes.

use crate::{
    dtype::DataType,
    error::{Error, Result},
};
use bytes::Bytes;
use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
}

/// A Rust type with a data type of the same size and layout.
///
/// Sealed: implemented for the integers, `f32`, `f64`, and [`half::f16`], [`half::bf16`].
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Its data type.
    const DATA_TYPE: DataType;

    /// Hands a vector over as bytes, without a copy.
    fn into_bytes(values: Vec<Self>) -> Bytes;

    /// Hands bytes of an owner over as they are; `None` where they cannot be seen in place.
    fn view(values: &[Self]) -> &[u8];

    /// Copies little-endian bytes into a vector; their number is a multiple of the size.
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}

struct Owner<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        T::view(&self.0)
    }
}

macro_rules! elements {
    ($($type:ty = $data_type:ident),* $(,)?) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DATA_TYPE: DataType = DataType::$data_type;

            fn into_bytes(values: Vec<Self>) -> Bytes {
                Bytes::from_owner(Owner(values))
            }

            fn view(values: &[Self]) -> &[u8] {
                bytemuck::cast_slice(values)
            }

            fn from_bytes(bytes: &[u8]) -> Vec<Self> {
                bytemuck::pod_collect_to_vec(bytes)
            }
        }
    )*};
}

elements! {
    i8 = Int8, i16 = Int16, i32 = Int32, i64 = Int64,
    u8 = UInt8, u16 = UInt16, u32 = UInt32, u64 = UInt64,
    f16 = Float16, bf16 = BFloat16, f32 = Float32, f64 = Float64,
}

// Elements are seen as bytes without a swap; the format is little-endian.
const _: () = assert!(cfg!(target_endian = "little"), "Milepost runs on little-endian machines");

/// Checks that `data_type` is the one of `T`.
pub(crate) fn check<T: Element>(data_type: DataType) -> Result<()> {
    if data_type == T::DATA_TYPE {
        return Ok(());
    }
    Err(Error::invalid("the leaf has another data type")
        .with("data_type", data_type)
        .with("wanted", T::DATA_TYPE)
        .hint("ask for the stored type, or name the type to cast to"))
}
