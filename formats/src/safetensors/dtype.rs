//! The data types of safetensors, in the order that the reference writer sorts by.

use crate::{DataType, FormatError, Result};
use std::fmt;

macro_rules! dtypes {
    ($($variant:ident = $name:literal, $bits:literal, $data_type:ident;)*) => {
        /// A data type of a safetensors file, ordered by alignment as the reference orders them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each variant is its name in the file")]
        pub enum Dtype {
            $($variant,)*
        }

        impl Dtype {
            /// Every data type, in the reference's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the name in the file.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns the size of an element in bits; sub-byte types are packed.
            #[must_use]
            pub fn bits(self) -> u32 {
                match self { $(Self::$variant => $bits,)* }
            }

            /// Returns the Zarr data type.
            #[must_use]
            pub fn data_type(self) -> DataType {
                match self { $(Self::$variant => DataType::$data_type,)* }
            }

            /// Parses a name in a file.
            ///
            /// # Errors
            /// `Unsupported` where it is none of the format's.
            pub fn from_name(name: &str) -> Result<Self> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => {
                        let shown: String = name.chars().take(40).collect();
                        Err(FormatError::unsupported(format!("unknown safetensors dtype {shown:?}")))
                    }
                }
            }

            /// Returns the data type that holds a Zarr data type.
            ///
            /// # Errors
            /// `Unsupported` where the format has none.
            pub fn from_data_type(data_type: DataType) -> Result<Self> {
                match data_type {
                    $(DataType::$data_type => Ok(Self::$variant),)*
                    _ => Err(FormatError::unsupported(format!(
                        "safetensors has no dtype for {data_type}"
                    ))),
                }
            }
        }
    };
}

dtypes! {
    Bool = "BOOL", 8, Bool;
    F4 = "F4", 4, Float4E2M1Fn;
    F6E2M3 = "F6_E2M3", 6, Float6E2M3Fn;
    F6E3M2 = "F6_E3M2", 6, Float6E3M2Fn;
    U8 = "U8", 8, UInt8;
    I8 = "I8", 8, Int8;
    F8E5M2 = "F8_E5M2", 8, Float8E5M2;
    F8E4M3 = "F8_E4M3", 8, Float8E4M3Fn;
    F8E8M0 = "F8_E8M0", 8, Float8E8M0Fnu;
    F8E4M3Fnuz = "F8_E4M3FNUZ", 8, Float8E4M3Fnuz;
    F8E5M2Fnuz = "F8_E5M2FNUZ", 8, Float8E5M2Fnuz;
    I16 = "I16", 16, Int16;
    U16 = "U16", 16, UInt16;
    F16 = "F16", 16, Float16;
    BF16 = "BF16", 16, BFloat16;
    I32 = "I32", 32, Int32;
    U32 = "U32", 32, UInt32;
    F32 = "F32", 32, Float32;
    C64 = "C64", 64, Complex64;
    F64 = "F64", 64, Float64;
    I64 = "I64", 64, Int64;
    U64 = "U64", 64, UInt64;
}

impl Dtype {
    /// Returns the size of `shape` in bytes, packed where elements are smaller than a byte.
    ///
    /// `None` where it overflows or does not end at a byte.
    #[must_use]
    pub fn bytes(self, shape: &[u64]) -> Option<u64> {
        let elements = shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim))?;
        let bits = elements.checked_mul(self.bits().into())?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Tells whether several elements share a byte, so that they must be unpacked for Zarr.
    #[must_use]
    pub fn is_packed(self) -> bool {
        self.bits() < 8
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
