//! Floating-point formats of eight bits and fewer, and how any value is rounded to a short format.
//!
//! A [`Format`] is four numbers; encoding is one rounding from `f64`, to nearest, ties to even, so nothing is rounded
//! twice. Values beyond a format become what `ml_dtypes` makes of them, which JAX users see:
//!
//! | special values | beyond the largest | NaN |
//! |---|---|---|
//! | IEEE | infinity | NaN |
//! | NaN only (`fn`) | NaN | NaN |
//! | one NaN, no −0 (`fnuz`) | NaN | NaN |
//! | finite (4 and 6 bits) | the largest | zero, its sign turned |
//! | scale (`e8m0fnu`) | NaN, as 0 and negatives | NaN |

use crate::dtype::DataType;

/// Which codes are no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    /// All-ones exponents are infinity and NaN.
    Ieee,
    /// All ones is NaN.
    NanOnly,
    /// The sign bit alone is NaN.
    Fnuz,
    /// Every code is a number.
    Finite,
    /// Unsigned powers of two; all ones is NaN.
    Scale,
}

/// A short floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    special: Special,
}

const fn format(exponent_bits: u32, mantissa_bits: u32, bias: i32, special: Special) -> Format {
    Format { exponent_bits, mantissa_bits, bias, special }
}

/// IEEE half precision.
pub(super) const FLOAT16: Format = format(5, 10, 15, Special::Ieee);
/// The upper half of a single.
pub(super) const BFLOAT16: Format = format(8, 7, 127, Special::Ieee);

macro_rules! minifloats {
    ($($variant:ident = ($($field:expr),*);)*) => {
        /// Returns the format of a data type of at most eight bits, and the value of each of its codes.
        pub(super) fn of(data_type: DataType) -> Option<(Format, &'static [f32; 256])> {
            match data_type {
                $(DataType::$variant => {
                    const FORMAT: Format = format($($field),*);
                    static VALUES: [f32; 256] = FORMAT.values();
                    Some((FORMAT, &VALUES))
                })*
                _ => None,
            }
        }
    };
}

minifloats! {
    Float4E2M1Fn = (2, 1, 1, Special::Finite);
    Float6E2M3Fn = (2, 3, 1, Special::Finite);
    Float6E3M2Fn = (3, 2, 3, Special::Finite);
    Float8E3M4 = (3, 4, 3, Special::Ieee);
    Float8E4M3 = (4, 3, 7, Special::Ieee);
    Float8E4M3B11Fnuz = (4, 3, 11, Special::Fnuz);
    Float8E4M3Fn = (4, 3, 7, Special::NanOnly);
    Float8E4M3Fnuz = (4, 3, 8, Special::Fnuz);
    Float8E5M2 = (5, 2, 15, Special::Ieee);
    Float8E5M2Fnuz = (5, 2, 16, Special::Fnuz);
    Float8E8M0Fnu = (8, 0, 127, Special::Scale);
}

/// `2^exponent`, for normal numbers.
const fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023).cast_unsigned() as u64) << 52)
}

impl Format {
    /// The bit that is set in negative numbers.
    const fn sign_bit(self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The code of infinity in an IEEE format.
    const fn infinity(self) -> u32 {
        self.sign_bit() - (1 << self.mantissa_bits)
    }

    /// The least exponent of a normal number.
    const fn exponent_min(self) -> i32 {
        1 - self.bias
    }

    const fn values(self) -> [f32; 256] {
        let mut values = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            values[code as usize] = self.decode(code);
            code += 1;
        }
        values
    }

    /// Returns the value of a code; bits above the format's width are ignored.
    #[expect(clippy::cast_possible_truncation, reason = "every value of eight bits is an f32")]
    const fn decode(self, code: u32) -> f32 {
        if let Special::Scale = self.special {
            return if code == 255 {
                f32::NAN
            } else {
                power(code.cast_signed() - self.bias) as f32
            };
        }
        let magnitude = code & (self.sign_bit() - 1);
        let negative = code & self.sign_bit() != 0;
        match self.special {
            Special::Ieee if magnitude > self.infinity() => return f32::NAN,
            Special::Ieee if magnitude == self.infinity() => {
                return if negative { f32::NEG_INFINITY } else { f32::INFINITY };
            }
            Special::NanOnly if magnitude == self.sign_bit() - 1 => return f32::NAN,
            Special::Fnuz if magnitude == 0 && negative => return f32::NAN,
            _ => {}
        }
        let exponent = (magnitude >> self.mantissa_bits).cast_signed();
        let mantissa = magnitude & ((1 << self.mantissa_bits) - 1);
        let unit = self.exponent_min() - self.mantissa_bits.cast_signed();
        let value = if exponent == 0 {
            mantissa as f64 * power(unit)
        } else {
            (mantissa + (1 << self.mantissa_bits)) as f64 * power(unit + exponent - 1)
        };
        if negative { -value as f32 } else { value as f32 }
    }

    /// Returns the code nearest to `value`, of two equally near the even one.
    pub(super) fn encode(self, value: f64) -> u16 {
        let code = if self.special == Special::Scale {
            self.encode_scale(value)
        } else {
            self.encode_signed(value)
        };
        u16::try_from(code).expect("no format here has more than 16 bits")
    }

    fn encode_signed(self, value: f64) -> u32 {
        let sign = if value.is_sign_negative() { self.sign_bit() } else { 0 };
        if value.is_nan() {
            return match self.special {
                Special::Ieee => sign | self.infinity() | 1 << (self.mantissa_bits - 1),
                Special::NanOnly => sign | (self.sign_bit() - 1),
                Special::Fnuz => self.sign_bit(),
                Special::Finite | Special::Scale => sign ^ self.sign_bit(),
            };
        }
        let (last, beyond) = match self.special {
            Special::Ieee => (self.infinity() - 1, sign | self.infinity()),
            Special::NanOnly => (self.sign_bit() - 2, sign | (self.sign_bit() - 1)),
            Special::Fnuz => (self.sign_bit() - 1, self.sign_bit()),
            Special::Finite | Special::Scale => (self.sign_bit() - 1, sign | (self.sign_bit() - 1)),
        };
        match self.magnitude(value.abs()) {
            Some(0) if self.special == Special::Fnuz => 0,
            Some(code) if code <= last => sign | code,
            _ => beyond,
        }
    }

    /// Rounds a number that is not negative; codes go on counting beyond the format's last.
    fn magnitude(self, value: f64) -> Option<u32> {
        if value.is_infinite() {
            return None;
        }
        let exponent = exponent(value).max(self.exponent_min());
        let digits = value * power(self.mantissa_bits.cast_signed() - exponent);
        let binade = (exponent - self.exponent_min()).cast_unsigned() << self.mantissa_bits;
        Some(binade + whole(digits.round_ties_even()))
    }

    /// Rounds to a power of two; what is not positive has none.
    fn encode_scale(self, value: f64) -> u32 {
        const NAN: u32 = 255;
        if !value.is_finite() || value <= 0.0 {
            return NAN;
        }
        let exponent = exponent(value).max(-self.bias);
        let digits = (value * power(-exponent)).round_ties_even();
        let code = (exponent + self.bias).cast_unsigned() + whole(digits).saturating_sub(1);
        code.min(NAN)
    }
}

/// Returns the exponent of the leading bit; that of subnormal numbers is less than any format's.
fn exponent(value: f64) -> i32 {
    i32::try_from(value.to_bits() >> 52 & 0x7ff).unwrap_or(0) - 1023
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a mantissa with its leading bit: at most 2^11"
)]
fn whole(digits: f64) -> u32 {
    digits as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minifloats() -> impl Iterator<Item = (DataType, Format, &'static [f32; 256])> {
        DataType::ALL.iter().filter_map(|t| of(*t).map(|(format, values)| (*t, format, values)))
    }

    #[test]
    fn every_code_comes_back() {
        assert_eq!(minifloats().count(), 11);
        for (data_type, format, values) in minifloats() {
            let codes = if format.special == Special::Scale { 256 } else { 2 * format.sign_bit() };
            for code in 0..codes {
                let value = values[code as usize];
                let back = u32::from(format.encode(f64::from(value)));
                if value.is_nan() {
                    assert!(values[back as usize].is_nan(), "{data_type} {code:#x}");
                } else {
                    assert_eq!(back, code, "{data_type} {code:#x}");
                }
            }
        }
    }

    #[test]
    fn rounding_finds_the_nearest_code() {
        for (data_type, format, values) in minifloats() {
            let numbers: Vec<f64> =
                values.iter().filter(|v| v.is_finite()).map(|v| f64::from(*v)).collect();
            let largest = numbers.iter().copied().fold(0.0, f64::max);
            for i in 1..4000 {
                let value = largest * f64::from(i) / 4000.0;
                let found = f64::from(values[usize::from(format.encode(value))]);
                let nearest =
                    numbers.iter().map(|v| (v - value).abs()).fold(f64::INFINITY, f64::min);
                assert!((found - value).abs() <= nearest, "{data_type}: {value} became {found}");
            }
        }
    }

    /// What `ml_dtypes` 0.6.0 makes of the same numbers (`array(VALUES).astype(t).view('u1')`).
    #[test]
    fn special_values_are_those_of_ml_dtypes() {
        let values = [
            0.0,
            -0.0,
            0.1,
            3.3,
            448.0,
            464.0,
            465.0,
            61440.0,
            -1e30,
            f64::INFINITY,
            f64::NAN,
            -2.5,
            0.001_953_125,
            0.000_97,
            1.25,
            1.75,
        ];
        for (data_type, codes) in [
            (DataType::Float4E2M1Fn, [0, 8, 0, 5, 7, 7, 7, 7, 15, 7, 8, 12, 0, 0, 2, 4]),
            (DataType::Float6E2M3Fn, [0, 32, 1, 21, 31, 31, 31, 31, 63, 31, 32, 50, 0, 0, 10, 14]),
            (DataType::Float6E3M2Fn, [0, 32, 2, 19, 31, 31, 31, 31, 63, 31, 32, 49, 0, 0, 13, 15]),
            (
                DataType::Float8E3M4,
                [0, 128, 6, 74, 112, 112, 112, 112, 240, 112, 120, 196, 0, 0, 52, 60],
            ),
            (
                DataType::Float8E4M3,
                [0, 128, 29, 69, 120, 120, 120, 120, 248, 120, 124, 194, 1, 0, 58, 62],
            ),
            (
                DataType::Float8E4M3B11Fnuz,
                [0, 0, 61, 101, 128, 128, 128, 128, 128, 128, 128, 226, 16, 8, 90, 94],
            ),
            (
                DataType::Float8E4M3Fn,
                [0, 128, 29, 69, 126, 126, 127, 127, 255, 127, 127, 194, 1, 0, 58, 62],
            ),
            (
                DataType::Float8E4M3Fnuz,
                [0, 0, 37, 77, 128, 128, 128, 128, 128, 128, 128, 202, 2, 1, 66, 70],
            ),
            (
                DataType::Float8E5M2,
                [0, 128, 46, 67, 95, 95, 95, 124, 252, 124, 126, 193, 24, 20, 61, 63],
            ),
            (
                DataType::Float8E5M2Fnuz,
                [0, 0, 50, 71, 99, 99, 99, 128, 128, 128, 128, 197, 28, 24, 65, 67],
            ),
            (
                DataType::Float8E8M0Fnu,
                [255, 255, 124, 129, 136, 136, 136, 143, 255, 255, 255, 255, 118, 117, 127, 128],
            ),
        ] {
            let (format, _) = of(data_type).unwrap();
            let found: Vec<u16> = values.iter().map(|v| format.encode(*v)).collect();
            assert_eq!(found, codes, "{data_type}");
        }
    }

    #[test]
    fn the_sixteen_bit_formats_agree_with_half() {
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let value = f32::from_bits(u32::try_from(state >> 32).unwrap());
            if value.is_nan() {
                continue;
            }
            assert_eq!(BFLOAT16.encode(f64::from(value)), half::bf16::from_f32(value).to_bits());
            let scaled = value.abs().log2(); // in the range of a half
            assert_eq!(FLOAT16.encode(f64::from(scaled)), half::f16::from_f32(scaled).to_bits());
            assert_eq!(FLOAT16.encode(f64::from(value)), half::f16::from_f32(value).to_bits());
        }
    }
}
