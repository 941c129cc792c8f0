//! Binary floats of any width as `f64` and back, for fill values.
//!
//! A float type is its exponent and mantissa widths, its bias and what it does with its special codes:
//!
//! ```text
//! ieee    exponent all ones: infinity, NaN         float16 bfloat16 float32 float8_e5m2 e4m3 e3m4
//! fn      only the last code is NaN, no infinity   float8_e4m3fn
//! fnuz    the code of -0 is NaN, no infinity       float8_e4m3fnuz e4m3b11fnuz e5m2fnuz
//! finite  every code is a number                   float4_e2m1fn float6_e2m3fn float6_e3m2fn
//! powers  2^(code - 127), unsigned; 255 is NaN     float8_e8m0fnu
//! ```
//!
//! **Invariant:** `float64` is not here: its codes are `f64`'s own bits.

use crate::DataType;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    Ieee,
    Fn,
    Fnuz,
    Finite,
    Powers,
}

/// The layout of a binary float type narrower than 64 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Float {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    special: Special,
}

/// Returns the layout of a float type, or of a complex type's components.
pub(super) fn layout(data_type: DataType) -> Option<Float> {
    use DataType as T;
    let (exponent_bits, mantissa_bits, bias, special) = match data_type {
        T::Float4E2M1Fn => (2, 1, 1, Special::Finite),
        T::Float6E2M3Fn => (2, 3, 1, Special::Finite),
        T::Float6E3M2Fn => (3, 2, 3, Special::Finite),
        T::Float8E3M4 => (3, 4, 3, Special::Ieee),
        T::Float8E4M3 => (4, 3, 7, Special::Ieee),
        T::Float8E4M3B11Fnuz => (4, 3, 11, Special::Fnuz),
        T::Float8E4M3Fn => (4, 3, 7, Special::Fn),
        T::Float8E4M3Fnuz => (4, 3, 8, Special::Fnuz),
        T::Float8E5M2 => (5, 2, 15, Special::Ieee),
        T::Float8E5M2Fnuz => (5, 2, 16, Special::Fnuz),
        T::Float8E8M0Fnu => (8, 0, 127, Special::Powers),
        T::Float16 => (5, 10, 15, Special::Ieee),
        T::BFloat16 => (8, 7, 127, Special::Ieee),
        T::Float32 | T::Complex64 => (8, 23, 127, Special::Ieee),
        _ => return None,
    };
    Some(Float { exponent_bits, mantissa_bits, bias, special })
}

impl Float {
    /// Returns the number of codes, of which the elements use the low bits.
    pub(super) fn codes(self) -> u64 {
        let sign_bits = u32::from(self.special != Special::Powers);
        1 << (self.exponent_bits + self.mantissa_bits + sign_bits)
    }

    /// Tells whether the values are powers of two alone.
    pub(super) fn is_powers(self) -> bool {
        self.special == Special::Powers
    }

    fn sign(self) -> u64 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The code of positive infinity, where there is one.
    fn infinity(self) -> Option<u64> {
        let exponent = (1_u64 << self.exponent_bits) - 1;
        (self.special == Special::Ieee).then_some(exponent << self.mantissa_bits)
    }

    /// The code that `"NaN"` stands for, where there is one: the quiet one without a payload.
    pub(super) fn nan(self) -> Option<u64> {
        match self.special {
            Special::Ieee => self.infinity().map(|inf| inf | 1 << (self.mantissa_bits - 1)),
            Special::Fn => Some(self.sign() - 1),
            Special::Fnuz => Some(self.sign()),
            Special::Finite => None,
            Special::Powers => Some(0xff),
        }
    }

    /// The largest finite code without a sign.
    fn finite_max(self) -> u64 {
        match self.special {
            Special::Ieee => self.infinity().unwrap_or_default() - 1,
            Special::Fn => self.sign() - 2,
            Special::Fnuz | Special::Finite => self.sign() - 1,
            Special::Powers => 0xfe,
        }
    }

    /// Returns the nearest code, ties to even; `None` where the value is out of range.
    pub(super) fn encode(self, value: f64) -> Option<u64> {
        if value.is_nan() {
            return self.nan();
        }
        if self.special == Special::Powers {
            let code = exponent_of(value)?.checked_add(127)?;
            let exact = f64::powi(2.0, code - 127).to_bits() == value.to_bits();
            return u64::try_from(code).ok().filter(|c| exact && *c <= self.finite_max());
        }
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        if value.is_infinite() {
            return self.infinity().map(|inf| sign | inf);
        }
        let code = self.encode_magnitude(value.abs())?;
        // These types have no negative zero.
        let sign = if self.special == Special::Fnuz && code == 0 { 0 } else { sign };
        Some(sign | code)
    }

    fn encode_magnitude(self, value: f64) -> Option<u64> {
        let lowest = 1 - self.bias;
        let exponent = exponent_of(value).map_or(lowest, |e| e.max(lowest));
        let steps_bits = i32::try_from(self.mantissa_bits).ok()? - exponent;
        // Powers of two are exact; a value this small or large is rounded away or refused below.
        let steps = (value * f64::powi(2.0, steps_bits)).round_ties_even();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an integer of at most 2^24, as the exponent is the value's own"
        )]
        let steps = steps as u64;
        // A carry out of the mantissa goes into the exponent, which is what rounding up means.
        let base = u64::try_from(exponent - lowest).ok()? << self.mantissa_bits;
        Some(base + steps).filter(|code| *code <= self.finite_max())
    }

    /// Returns the value of a code; `None` where it is a NaN or has bits that the type does not.
    pub(super) fn decode(self, code: u64) -> Option<f64> {
        if code >= self.codes() {
            return None;
        }
        if self.special == Special::Powers {
            return (code != 0xff).then(|| f64::powi(2.0, i32::try_from(code).unwrap_or(0) - 127));
        }
        if self.special == Special::Fnuz && code == self.sign() {
            return None;
        }
        let sign = if code & self.sign() == 0 { 1.0 } else { -1.0 };
        let magnitude = code & (self.sign() - 1);
        if magnitude > self.finite_max() {
            return (Some(magnitude) == self.infinity()).then_some(sign * f64::INFINITY);
        }
        let exponent = i32::try_from(magnitude >> self.mantissa_bits).ok()?;
        let mantissa = magnitude & ((1 << self.mantissa_bits) - 1);
        let implicit = if exponent == 0 { 0 } else { 1 << self.mantissa_bits };
        let mantissa_bits = i32::try_from(self.mantissa_bits).ok()?;
        #[expect(clippy::cast_precision_loss, reason = "at most 24 bits")]
        let steps = (implicit + mantissa) as f64;
        Some(sign * steps * f64::powi(2.0, exponent.max(1) - self.bias - mantissa_bits))
    }
}

/// Returns ⌊log2 |value|⌋ of a normal number.
fn exponent_of(value: f64) -> Option<i32> {
    let exponent = i32::try_from(value.to_bits() >> 52 & 0x7ff).ok()?;
    (exponent > 0 && exponent < 0x7ff).then_some(exponent - 1023)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_every_small_float_decodes_and_encodes_back() {
        for data_type in DataType::ALL {
            let Some(float) = layout(*data_type) else { continue };
            for code in 0..float.codes().min(1 << 16) {
                let Some(value) = float.decode(code) else { continue };
                assert_eq!(float.encode(value), Some(code), "{data_type} {code:#x} {value}");
            }
        }
    }

    #[test]
    fn known_values_have_their_known_codes() {
        use DataType as T;
        for (data_type, value, code) in [
            (T::Float16, 1.0, 0x3c00),
            (T::Float16, 65504.0, 0x7bff),
            (T::Float16, f64::INFINITY, 0x7c00),
            (T::Float16, 5.960_464_477_539_063e-8, 1),
            (T::BFloat16, 1.0, 0x3f80),
            (T::BFloat16, std::f64::consts::PI, 0x4049),
            (T::Float32, -0.1, 0xbdcc_cccd),
            (T::Float8E4M3Fn, 448.0, 0x7e),
            (T::Float8E4M3Fn, f64::NAN, 0x7f),
            (T::Float8E4M3, 240.0, 0x77),
            (T::Float8E5M2, 57344.0, 0x7b),
            (T::Float8E5M2, f64::NAN, 0x7e),
            (T::Float8E5M2Fnuz, 57344.0, 0x7f),
            (T::Float8E4M3Fnuz, 240.0, 0x7f),
            (T::Float8E4M3B11Fnuz, 30.0, 0x7f),
            (T::Float8E3M4, 15.5, 0x6f),
            (T::Float8E8M0Fnu, 1.0, 127),
            (T::Float4E2M1Fn, 6.0, 7),
            (T::Float6E2M3Fn, 7.5, 0x1f),
            (T::Float6E3M2Fn, -28.0, 0x3f),
        ] {
            assert_eq!(layout(data_type).unwrap().encode(value), Some(code), "{data_type} {value}");
        }
    }

    #[test]
    fn rounding_is_to_even_and_what_is_out_of_range_is_refused() {
        let half = layout(DataType::Float16).unwrap();
        assert_eq!(half.encode(2049.0), Some(0x6800));
        assert_eq!(half.encode(2051.0), Some(0x6802));
        assert_eq!(half.encode(65520.0), None);
        assert_eq!(half.encode(1e300), None);
        assert_eq!(half.encode(5e-324), Some(0));
        assert_eq!(layout(DataType::Float8E4M3Fn).unwrap().encode(f64::INFINITY), None);
        assert_eq!(layout(DataType::Float4E2M1Fn).unwrap().encode(f64::NAN), None);
        assert_eq!(layout(DataType::Float8E8M0Fnu).unwrap().encode(0.0), None);
        assert_eq!(layout(DataType::Float8E8M0Fnu).unwrap().encode(3.0), None);
        assert_eq!(layout(DataType::Float8E5M2Fnuz).unwrap().encode(-0.0), Some(0));
    }

    #[test]
    fn single_floats_agree_with_the_language() {
        let single = layout(DataType::Float32).unwrap();
        for i in 0..100_000_u32 {
            let bits = i.wrapping_mul(0x9e37_79b1);
            let value = f32::from_bits(bits);
            if value.is_nan() {
                continue;
            }
            assert_eq!(single.decode(bits.into()), Some(f64::from(value)));
            assert_eq!(single.encode(f64::from(value)), Some(bits.into()));
        }
    }
}
