//! Data types under their Zarr v3 names (TensorStore's names where the registry has none).

use std::fmt;

macro_rules! data_types {
    ($($variant:ident = $name:literal, $bytes:literal, $core:literal;)*) => {
        /// The data type of one element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "each variant is its Zarr name")]
        pub enum DataType {
            $($variant,)*
            /// `r<bits>`: opaque bytes of a fixed size; the payload counts bytes.
            Raw(u32),
        }

        impl DataType {
            /// Every named data type, in spec order.
            pub const ALL: &'static [DataType] = &[$(DataType::$variant,)*];

            /// Returns the size of one element in bytes; sub-byte types take one.
            #[must_use]
            pub fn size_bytes(self) -> usize {
                match self { $(Self::$variant => $bytes,)* Self::Raw(n) => n as usize }
            }

            /// Tells whether stock zarr-python and xarray open it.
            #[must_use]
            pub fn is_core(self) -> bool {
                match self { $(Self::$variant => $core,)* Self::Raw(_) => false }
            }

            /// Parses a Zarr v3 data type name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => {
                        let bits: u32 = name.strip_prefix('r')?.parse().ok()?;
                        (bits > 0 && bits % 8 == 0 && bits <= 8 * 65_536)
                            .then_some(Self::Raw(bits / 8))
                    }
                }
            }
        }

        impl fmt::Display for DataType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.pad($name),)*
                    Self::Raw(n) => f.pad(&format!("r{}", u64::from(*n) * 8)),
                }
            }
        }
    };
}

data_types! {
    Bool = "bool", 1, true;
    Int2 = "int2", 1, false;
    Int4 = "int4", 1, false;
    Int8 = "int8", 1, true;
    Int16 = "int16", 2, true;
    Int32 = "int32", 4, true;
    Int64 = "int64", 8, true;
    UInt2 = "uint2", 1, false;
    UInt4 = "uint4", 1, false;
    UInt8 = "uint8", 1, true;
    UInt16 = "uint16", 2, true;
    UInt32 = "uint32", 4, true;
    UInt64 = "uint64", 8, true;
    Float4E2M1Fn = "float4_e2m1fn", 1, false;
    Float6E2M3Fn = "float6_e2m3fn", 1, false;
    Float6E3M2Fn = "float6_e3m2fn", 1, false;
    Float8E3M4 = "float8_e3m4", 1, false;
    Float8E4M3 = "float8_e4m3", 1, false;
    Float8E4M3B11Fnuz = "float8_e4m3b11fnuz", 1, false;
    Float8E4M3Fn = "float8_e4m3fn", 1, false;
    Float8E4M3Fnuz = "float8_e4m3fnuz", 1, false;
    Float8E5M2 = "float8_e5m2", 1, false;
    Float8E5M2Fnuz = "float8_e5m2fnuz", 1, false;
    Float8E8M0Fnu = "float8_e8m0fnu", 1, false;
    Float16 = "float16", 2, true;
    BFloat16 = "bfloat16", 2, false;
    Float32 = "float32", 4, true;
    Float64 = "float64", 8, true;
    Complex64 = "complex64", 8, true;
    Complex128 = "complex128", 16, true;
}

impl DataType {
    /// Returns the type that stock zarr-python reads in its place (`--portable`).
    ///
    /// Core types are their own; the others become `uint8`, `int8` or `uint16` of equal size.
    #[must_use]
    pub fn portable(self) -> Self {
        match self {
            t if t.is_core() => t,
            Self::Int2 | Self::Int4 => Self::Int8,
            Self::BFloat16 => Self::UInt16,
            Self::Raw(n) => Self::Raw(n),
            _ => Self::UInt8,
        }
    }

    /// Tells whether elements longer than one byte have a byte order.
    ///
    /// Complex numbers have it per component; raw bits have none.
    #[must_use]
    pub fn has_byte_order(self) -> bool {
        self.size_bytes() > 1 && !matches!(self, Self::Raw(_))
    }
}

impl serde::Serialize for DataType {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for DataType {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        Self::from_name(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("unknown data type `{name}`")))
    }
}
