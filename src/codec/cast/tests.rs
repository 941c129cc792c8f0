use super::*;
use crate::ErrorKind;

fn bytes<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

fn converted(from: DataType, to: DataType, source: &[u8], rule: CastRule) -> Result<Vec<u8>> {
    let mut target = vec![0; source.len() / from.size_bytes() * to.size_bytes()];
    cast((from, source), (to, &mut target), rule).map(|()| target)
}

#[test]
fn same_kind_is_numpys_order_of_kinds() {
    use DataType as T;
    for (from, to, allowed) in [
        (T::Float64, T::Float32, true),
        (T::Float32, T::Float8E4M3Fn, true),
        (T::Int64, T::Int32, true),
        (T::UInt64, T::Int8, true),
        (T::Int8, T::UInt64, false),
        (T::Int64, T::Float16, true),
        (T::Bool, T::UInt2, true),
        (T::UInt8, T::Bool, false),
        (T::Float32, T::Int64, false),
        (T::Float64, T::Complex64, true),
        (T::Complex64, T::Float64, false),
    ] {
        assert_eq!(check(from, to, CastRule::SameKind).is_ok(), allowed, "{from} to {to}");
        check(from, to, CastRule::Unsafe).unwrap();
    }
    check(T::Raw(4), T::Raw(4), CastRule::SameKind).unwrap();
    let error = check(T::Raw(4), T::Float32, CastRule::Unsafe).unwrap_err();
    assert_eq!((error.get("from"), error.get("to")), (Some("r32"), Some("float32")));
}

#[test]
fn small_integers_go_through_every_type_and_come_back() {
    let source = bytes((0..600).map(|i| [u8::from(i % 2 == 1)]));
    for through in DataType::ALL {
        // The scale format has no zero.
        if *through == DataType::Float8E8M0Fnu {
            continue;
        }
        let there = converted(DataType::Bool, *through, &source, CastRule::Unsafe).unwrap();
        for back in [DataType::Bool, DataType::UInt8, DataType::Int64] {
            let whole = converted(DataType::Bool, back, &source, CastRule::SameKind).unwrap();
            let round = converted(*through, back, &there, CastRule::Unsafe).unwrap();
            assert_eq!(round, whole, "through {through} back to {back}");
        }
    }
}

#[test]
fn an_integer_that_does_not_fit_is_named_or_saturates() {
    let source = bytes((0..300i64).map(|i| if i == 299 { 1i64 << 40 } else { -i }.to_le_bytes()));
    let error =
        converted(DataType::Int64, DataType::Int32, &source, CastRule::SameKind).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(error.get("element"), Some("299"));
    assert_eq!(error.get("value"), Some("1099511627776"));
    let unsafely = converted(DataType::Int64, DataType::Int32, &source, CastRule::Unsafe).unwrap();
    assert_eq!(unsafely[299 * 4..], i32::MAX.to_le_bytes());
    assert_eq!(unsafely[4..8], (-1i32).to_le_bytes());
}

#[test]
fn floats_truncate_and_saturate_when_asked_for_integers() {
    let source = bytes([1.9, -1.9, f64::NAN, 1e300, -1e300, -0.0].map(f64::to_le_bytes));
    let ints = converted(DataType::Float64, DataType::Int8, &source, CastRule::Unsafe).unwrap();
    assert_eq!(ints, [1, 255, 0, 127, 128, 0]);
    let bools = converted(DataType::Float64, DataType::Bool, &source, CastRule::Unsafe).unwrap();
    assert_eq!(bools, [1, 1, 1, 1, 1, 0]);
}

#[test]
fn sub_byte_elements_ignore_their_upper_bits() {
    let source = [0x0f, 0xff, 0x07, 0x18];
    let wide = |t| converted(t, DataType::Int8, &source, CastRule::SameKind).unwrap();
    assert_eq!(wide(DataType::Int4), [255, 255, 7, 248]);
    assert_eq!(wide(DataType::Int2), [255, 255, 255, 0]);
    assert_eq!(wide(DataType::UInt4), [15, 15, 7, 8]);
    let source = bytes([-1i8, 7, -8].map(i8::to_le_bytes));
    let narrow = converted(DataType::Int8, DataType::Int4, &source, CastRule::SameKind);
    assert_eq!(narrow.unwrap(), source);
    converted(DataType::Int8, DataType::Int2, &source, CastRule::SameKind).unwrap_err();
}

#[test]
fn integers_round_once_to_short_floats() {
    // 2^60 + 2^52 is half-way between two bfloat16; one more is beyond half-way, one f64 cannot tell.
    let (tie, above) = ((1i64 << 60) + (1 << 52), (1i64 << 60) + (1 << 52) + 1);
    let source = bytes([tie, above, -above].map(i64::to_le_bytes));
    let short =
        converted(DataType::Int64, DataType::BFloat16, &source, CastRule::SameKind).unwrap();
    let floats = short.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64());
    let (even, next) = (2f64.powi(60), 2f64.powi(60) + 2f64.powi(53));
    assert_eq!(floats.collect::<Vec<_>>(), [even, next, -next]);
    let single =
        converted(DataType::Int64, DataType::Float32, &source, CastRule::SameKind).unwrap();
    assert_eq!(single[..4], 2f32.powi(60).mul_add(1.0, 2f32.powi(52)).to_le_bytes());
}

#[test]
fn fast_loops_equal_the_wide_ones() {
    use DataType as T;
    let mut state = 5u64;
    let source = bytes((0..4096).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u32::try_from(state >> 32).unwrap().to_le_bytes()
    }));
    let not_nan = |b: &[u8; 4]| !f32::from_le_bytes(*b).is_nan();
    let source = bytes(source.as_chunks().0.iter().copied().filter(not_nan));
    for short in [T::BFloat16, T::Float16] {
        let fast = converted(T::Float32, short, &source, CastRule::SameKind).unwrap();
        let double = converted(T::Float32, T::Float64, &source, CastRule::SameKind).unwrap();
        assert_eq!(fast, converted(T::Float64, short, &double, CastRule::SameKind).unwrap());
        let back = converted(short, T::Float32, &fast, CastRule::SameKind).unwrap();
        let wide = converted(short, T::Float64, &fast, CastRule::SameKind).unwrap();
        assert_eq!(back, converted(T::Float64, T::Float32, &wide, CastRule::SameKind).unwrap());
    }
}

#[test]
fn complex_numbers_keep_both_parts() {
    use DataType as T;
    let source = bytes([1.5f32, -2.0, f32::INFINITY, f32::NAN].map(f32::to_le_bytes));
    let wide = converted(T::Complex64, T::Complex128, &source, CastRule::SameKind).unwrap();
    let back = converted(T::Complex128, T::Complex64, &wide, CastRule::SameKind).unwrap();
    assert_eq!(back, source);
    let real = converted(T::Complex64, T::Float32, &source, CastRule::Unsafe).unwrap();
    assert_eq!(real, bytes([1.5f32, f32::INFINITY].map(f32::to_le_bytes)));
    let from_int = converted(T::Int8, T::Complex64, &[254], CastRule::SameKind).unwrap();
    assert_eq!(from_int, bytes([-2f32, 0.0].map(f32::to_le_bytes)));
}
