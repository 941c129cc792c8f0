//! Fill values: JSON as the Zarr v3 specification writes them ⇄ one element's little-endian bytes.
//!
//! ```text
//! bool         true                 (u)int*   -7             r*   [0, 255]
//! float*       1.5 · "NaN" · "Infinity" · "-Infinity" · "0x7fc00001" (all bits, most significant first)
//! complex*     [re, im], each as a float
//! ```
//!
//! Numbers are read to the nearest value of the type; one out of its range is not a fill value. A NaN other
//! than the type's usual one is written in hexadecimal, so every element survives a round trip; so is `float8_e8m0fnu`.

use super::float;
use crate::DataType;
use serde_json::Value;

/// Parses a fill value to one little-endian element; `None` where it is none of this type.
pub(super) fn parse(value: &Value, data_type: DataType) -> Option<Vec<u8>> {
    use DataType as T;
    let bytes = data_type.size_bytes();
    match data_type {
        T::Bool => value.as_bool().map(|b| vec![u8::from(b)]),
        T::Raw(_) => {
            let items = value.as_array().filter(|items| items.len() == bytes)?;
            items.iter().map(|b| u8::try_from(b.as_u64()?).ok()).collect()
        }
        T::Complex64 | T::Complex128 => {
            let [re, im] = value.as_array()?.as_slice() else { return None };
            let mut out = parse_float(re, data_type, bytes / 2)?;
            out.extend(parse_float(im, data_type, bytes / 2)?);
            Some(out)
        }
        _ => match integer_range(data_type) {
            Some((min, max)) => {
                let n = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from))?;
                (min..=max).contains(&n).then(|| low_bytes(n, bytes))
            }
            None => parse_float(value, data_type, bytes),
        },
    }
}

/// Returns the JSON of one little-endian element.
pub(super) fn to_json(element: &[u8], data_type: DataType) -> Value {
    use DataType as T;
    match data_type {
        T::Bool => Value::Bool(element.first().is_some_and(|b| *b != 0)),
        T::Raw(_) => element.iter().copied().map(Value::from).collect(),
        T::Complex64 | T::Complex128 => {
            let (re, im) = element.split_at(element.len() / 2);
            Value::Array(vec![float_to_json(re, data_type), float_to_json(im, data_type)])
        }
        _ => match integer_range(data_type) {
            Some((min, _)) => {
                let unsigned = code(element);
                let unused_bits = 64 - 8 * u32::try_from(element.len().clamp(1, 8)).unwrap_or(8);
                if min == 0 {
                    Value::from(unsigned)
                } else {
                    // Sign extension: shift the sign to the top and arithmetically back.
                    Value::from((unsigned << unused_bits).cast_signed() >> unused_bits)
                }
            }
            None => float_to_json(element, data_type),
        },
    }
}

/// Returns the range of an integer type.
fn integer_range(data_type: DataType) -> Option<(i128, i128)> {
    use DataType as T;
    let signed = |bits: u32| (-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
    let unsigned = |bits: u32| (0, (1 << bits) - 1);
    Some(match data_type {
        T::Int2 => signed(2),
        T::Int4 => signed(4),
        T::Int8 => signed(8),
        T::Int16 => signed(16),
        T::Int32 => signed(32),
        T::Int64 => signed(64),
        T::UInt2 => unsigned(2),
        T::UInt4 => unsigned(4),
        T::UInt8 => unsigned(8),
        T::UInt16 => unsigned(16),
        T::UInt32 => unsigned(32),
        T::UInt64 => unsigned(64),
        _ => return None,
    })
}

fn parse_float(value: &Value, data_type: DataType, bytes: usize) -> Option<Vec<u8>> {
    let number = match value {
        Value::Number(n) => n.as_f64()?,
        Value::String(s) => match s.as_str() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            hex => return parse_hex(hex, data_type, bytes),
        },
        _ => return None,
    };
    let code = match float::layout(data_type) {
        Some(float) => float.encode(number)?,
        None if number.is_nan() => CANONICAL_NAN,
        None => number.to_bits(),
    };
    Some(low_bytes(code.into(), bytes))
}

fn parse_hex(text: &str, data_type: DataType, bytes: usize) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x")?;
    if digits.len() != 2 * bytes || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let code = u64::from_str_radix(digits, 16).ok()?;
    let known = float::layout(data_type).is_none_or(|float| code < float.codes());
    known.then(|| low_bytes(code.into(), bytes))
}

const CANONICAL_NAN: u64 = 0x7ff8_0000_0000_0000;

fn float_to_json(element: &[u8], data_type: DataType) -> Value {
    let code = code(element);
    let (value, nan) = match float::layout(data_type) {
        // TensorStore 0.1.86 reads 1.0 as 2^-64 here, and the digits right.
        Some(float) if float.is_powers() => (None, float.nan()),
        Some(float) => (float.decode(code), float.nan()),
        None => (Some(f64::from_bits(code)).filter(|v| !v.is_nan()), Some(CANONICAL_NAN)),
    };
    match value {
        Some(f64::INFINITY) => "Infinity".into(),
        Some(f64::NEG_INFINITY) => "-Infinity".into(),
        Some(finite) => finite.into(),
        None if Some(code) == nan => "NaN".into(),
        None => format!("0x{code:0width$x}", width = 2 * element.len()).into(),
    }
}

/// Returns up to eight little-endian bytes as an integer.
fn code(element: &[u8]) -> u64 {
    element.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn low_bytes(n: i128, bytes: usize) -> Vec<u8> {
    n.to_le_bytes().into_iter().take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn fill_values_parse_as_the_specification_says() {
        use DataType as T;
        for (data_type, json, want) in [
            (T::Bool, json!(true), vec![1]),
            (T::Int2, json!(-2), vec![0xfe]),
            (T::UInt4, json!(15), vec![15]),
            (T::Int16, json!(-2), vec![0xfe, 0xff]),
            (T::UInt64, json!(u64::MAX), vec![0xff; 8]),
            (T::Int64, json!(i64::MIN), vec![0, 0, 0, 0, 0, 0, 0, 0x80]),
            (T::Float32, json!(0), vec![0; 4]),
            (T::Float32, json!(1.5), vec![0, 0, 0xc0, 0x3f]),
            (T::Float32, json!("NaN"), vec![0, 0, 0xc0, 0x7f]),
            (T::Float32, json!("0x7fc00001"), vec![1, 0, 0xc0, 0x7f]),
            (T::Float64, json!("-Infinity"), vec![0, 0, 0, 0, 0, 0, 0xf0, 0xff]),
            (T::Float64, json!("NaN"), vec![0, 0, 0, 0, 0, 0, 0xf8, 0x7f]),
            (T::BFloat16, json!("0x7fc0"), vec![0xc0, 0x7f]),
            (T::BFloat16, json!(1), vec![0x80, 0x3f]),
            (T::Float8E4M3Fn, json!("NaN"), vec![0x7f]),
            (T::Float4E2M1Fn, json!("0x07"), vec![7]),
            (T::Complex64, json!([1, "NaN"]), vec![0, 0, 0x80, 0x3f, 0, 0, 0xc0, 0x7f]),
            (T::Raw(3), json!([1, 2, 255]), vec![1, 2, 255]),
        ] {
            assert_eq!(parse(&json, data_type), Some(want), "{data_type} {json}");
        }
    }

    #[test]
    fn values_outside_the_type_are_none() {
        use DataType as T;
        for (data_type, json) in [
            (T::Bool, json!(0)),
            (T::Int8, json!(128)),
            (T::UInt8, json!(-1)),
            (T::UInt2, json!(4)),
            (T::Int32, json!(1.0)),
            (T::UInt64, json!(1.844_674_407_370_955_2e19)),
            (T::Float16, json!(1e9)),
            (T::Float32, json!("nan")),
            (T::Float32, json!("0x7fc0000")),
            (T::Float32, json!("0x+fc00001")),
            (T::Float32, json!(null)),
            (T::Float4E2M1Fn, json!("0x10")),
            (T::Complex64, json!([1])),
            (T::Complex128, json!(1)),
            (T::Raw(2), json!([1])),
            (T::Raw(1), json!([256])),
        ] {
            assert_eq!(parse(&json, data_type), None, "{data_type} {json}");
        }
    }

    #[test]
    fn zeros_are_written_with_the_type_s_own_zero() {
        use DataType as T;
        for (data_type, want) in [
            (T::Bool, "false"),
            (T::Int4, "0"),
            (T::UInt64, "0"),
            (T::Float16, "0.0"),
            (T::BFloat16, "0.0"),
            (T::Float8E4M3Fn, "0.0"),
            (T::Complex64, "[0.0,0.0]"),
            (T::Raw(2), "[0,0]"),
        ] {
            let json = to_json(&vec![0; data_type.size_bytes()], data_type);
            assert_eq!(json.to_string(), want, "{data_type}");
        }
    }

    #[test]
    fn every_small_element_survives_as_json() {
        for data_type in DataType::ALL {
            let bytes = data_type.size_bytes();
            for n in 0..1_u64 << (8 * bytes.min(2)) {
                let element = low_bytes(n.into(), bytes);
                let json = to_json(&element, *data_type);
                match parse(&json, *data_type) {
                    Some(back) if *data_type == DataType::Bool => {
                        assert_eq!(back, [u8::from(n > 0)]);
                    }
                    Some(back) => assert_eq!(back, element, "{data_type} {json}"),
                    // Bits that a sub-byte type does not have.
                    None => assert!(
                        data_type.to_string().contains(['2', '4', '6']),
                        "{data_type} {json}"
                    ),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_wide_element_survives_as_json(n in any::<u128>()) {
            for data_type in DataType::ALL.iter().filter(|t| t.size_bytes() > 2) {
                let element: Vec<u8> =
                    n.to_le_bytes().into_iter().take(data_type.size_bytes()).collect();
                let text = to_json(&element, *data_type).to_string();
                let json = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(parse(&json, *data_type), Some(element), "{} {}", data_type, text);
            }
        }
    }
}
