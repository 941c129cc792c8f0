//! Numeric conversion of element buffers: what the target of a restore asks for.
//!
//! Elements go in small blocks through one of three wide forms that hold every value of their kind exactly: `i128`,
//! `f64`, a pair of `f64`. So 30 types need 30 readers and 30 writers, not 900 loops; the conversions that
//! models are full of (float32 with bfloat16 and float16) have their own loops.
//!
//! A same-kind cast never changes a value but by rounding: floats round to nearest even, keep NaN, and become what the
//! format has for values beyond it (infinity, for most); an integer that does not fit is an error that names it,
//! where `NumPy` would wrap. [`CastRule::Unsafe`] saturates integers, truncates floats towards zero (NaN
//! becomes 0), drops imaginary parts and makes a bool of whatever is not zero.

use super::minifloat::{self, Format};
use crate::{
    dtype::DataType,
    error::{Error, Result},
};

/// Elements that are converted at once: their wide forms fit L1.
const BLOCK: usize = 256;

/// Which casts are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CastRule {
    /// Up the order bool, unsigned, signed, float, complex, and within one of them.
    #[default]
    SameKind,
    /// Any but those of raw bytes; asked for by name.
    Unsafe,
}

/// The kinds of numbers, in the order in which casts are safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Bool,
    Unsigned,
    Signed,
    Float,
    Complex,
}

fn kind(data_type: DataType) -> Option<Kind> {
    use DataType as T;
    Some(match data_type {
        T::Bool => Kind::Bool,
        T::UInt2 | T::UInt4 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => Kind::Unsigned,
        T::Int2 | T::Int4 | T::Int8 | T::Int16 | T::Int32 | T::Int64 => Kind::Signed,
        T::Complex64 | T::Complex128 => Kind::Complex,
        T::Raw(_) => return None,
        _ => Kind::Float,
    })
}

/// Tells whether elements of `from` may become `to`.
///
/// # Errors
/// `Invalid` that names both types.
pub(crate) fn check(from: DataType, to: DataType, rule: CastRule) -> Result<()> {
    let refused = |message| Error::invalid(message).with("from", from).with("to", to);
    match (kind(from), kind(to)) {
        _ if from == to => Ok(()),
        (Some(a), Some(b)) if a <= b || rule == CastRule::Unsafe => Ok(()),
        (Some(_), Some(_)) => Err(refused("the cast is not of the same kind")
            .hint("ask for the unsafe cast by name, or restore with the stored data type")),
        _ => Err(refused("raw bytes are cast to nothing else")),
    }
}

/// A conversion that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cast {
    from: DataType,
    to: DataType,
    rule: CastRule,
}

impl Cast {
    /// Prepares the conversion of elements of `from` to `to`.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) fn new(from: DataType, to: DataType, rule: CastRule) -> Result<Self> {
        check(from, to, rule)?;
        Ok(Self { from, to, rule })
    }

    /// Returns the data type it converts from.
    pub(crate) fn from(&self) -> DataType {
        self.from
    }

    /// Returns the data type it converts to.
    pub(crate) fn to(&self) -> DataType {
        self.to
    }

    /// Tells whether the bytes stay as they are.
    pub(crate) fn is_identity(&self) -> bool {
        self.from == self.to
    }

    /// Converts all of `source` into `target`.
    ///
    /// # Errors
    /// `Invalid` where an integer does not fit and the rule is [`CastRule::SameKind`]; `element` is its
    /// position, and `target` then holds anything.
    ///
    /// # Panics
    /// Where the two do not hold equally many elements.
    pub(crate) fn apply(&self, source: &[u8], target: &mut [u8]) -> Result<()> {
        let (a, b) = (self.from.size_bytes(), self.to.size_bytes());
        assert!(
            source.len().is_multiple_of(a) && source.len() / a * b == target.len(),
            "a cast keeps the number of elements"
        );
        if self.is_identity() {
            target.copy_from_slice(source);
            return Ok(());
        }
        if fast(self.from, self.to, source, target) {
            return Ok(());
        }
        let mut wide = Wide::new();
        let blocks = source.chunks(a * BLOCK).zip(target.chunks_mut(b * BLOCK));
        for (number, (source, target)) in blocks.enumerate() {
            wide.load(self.from, source);
            wide.convert(kind(self.to).unwrap_or(Kind::Complex));
            wide.store(self.to, target, self.rule).map_err(|(position, value)| {
                Error::invalid("an integer does not fit the data type")
                    .with("element", number * BLOCK + position)
                    .with("value", value)
                    .with("from", self.from)
                    .with("to", self.to)
            })?;
        }
        Ok(())
    }
}

/// Converts elements in one call: [`Cast::new`] and [`Cast::apply`].
///
/// # Errors
/// As both.
///
/// # Panics
/// As [`Cast::apply`].
#[cfg(test)]
pub(crate) fn cast(
    (from, source): (DataType, &[u8]),
    (to, target): (DataType, &mut [u8]),
    rule: CastRule,
) -> Result<()> {
    Cast::new(from, to, rule)?.apply(source, target)
}

/// Moves each element of `N` bytes through `f` to one of `M`.
fn each<const N: usize, const M: usize>(
    source: &[u8],
    target: &mut [u8],
    f: impl Fn([u8; N]) -> [u8; M],
) {
    let (source, target) = (source.as_chunks().0, target.as_chunks_mut().0);
    for (from, to) in source.iter().zip(target) {
        *to = f(*from);
    }
}

/// The loops that models need; `false` for other pairs.
fn fast(from: DataType, to: DataType, source: &[u8], target: &mut [u8]) -> bool {
    use half::{bf16, f16};
    match (from, to) {
        (DataType::Float32, DataType::BFloat16) => {
            each(source, target, |b| bf16::from_f32(f32::from_le_bytes(b)).to_le_bytes());
        }
        (DataType::BFloat16, DataType::Float32) => {
            each(source, target, |b| bf16::from_le_bytes(b).to_f32().to_le_bytes());
        }
        (DataType::Float32, DataType::Float16) => {
            each(source, target, |b| f16::from_f32(f32::from_le_bytes(b)).to_le_bytes());
        }
        (DataType::Float16, DataType::Float32) => {
            each(source, target, |b| f16::from_le_bytes(b).to_f32().to_le_bytes());
        }
        _ => return false,
    }
    true
}

/// A block of elements in the wide form of their kind.
struct Wide {
    form: Form,
    count: usize,
    integers: [i128; BLOCK],
    floats: [f64; BLOCK],
    imaginary: [f64; BLOCK],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Integer,
    Float,
    Complex,
}

impl Wide {
    fn new() -> Self {
        Self {
            form: Form::Integer,
            count: 0,
            integers: [0; BLOCK],
            floats: [0.0; BLOCK],
            imaginary: [0.0; BLOCK],
        }
    }

    fn integers<const N: usize>(&mut self, source: &[u8], f: impl Fn([u8; N]) -> i128) {
        self.form = Form::Integer;
        for (from, to) in source.as_chunks().0.iter().zip(&mut self.integers) {
            *to = f(*from);
        }
    }

    fn floats<const N: usize>(&mut self, source: &[u8], f: impl Fn([u8; N]) -> f64) {
        self.form = Form::Float;
        for (from, to) in source.as_chunks().0.iter().zip(&mut self.floats) {
            *to = f(*from);
        }
    }

    /// Reads a block; sub-byte elements have one byte each, whose upper bits say nothing.
    fn load(&mut self, data_type: DataType, source: &[u8]) {
        use DataType as T;
        self.count = source.len() / data_type.size_bytes();
        match data_type {
            T::Bool => self.integers(source, |[b]| i128::from(b != 0)),
            T::Int2 => self.integers(source, |[b]| i128::from((b << 6).cast_signed() >> 6)),
            T::Int4 => self.integers(source, |[b]| i128::from((b << 4).cast_signed() >> 4)),
            T::Int8 => self.integers(source, |b| i8::from_le_bytes(b).into()),
            T::Int16 => self.integers(source, |b| i16::from_le_bytes(b).into()),
            T::Int32 => self.integers(source, |b| i32::from_le_bytes(b).into()),
            T::Int64 => self.integers(source, |b| i64::from_le_bytes(b).into()),
            T::UInt2 => self.integers(source, |[b]| (b & 3).into()),
            T::UInt4 => self.integers(source, |[b]| (b & 15).into()),
            T::UInt8 => self.integers(source, |[b]| b.into()),
            T::UInt16 => self.integers(source, |b| u16::from_le_bytes(b).into()),
            T::UInt32 => self.integers(source, |b| u32::from_le_bytes(b).into()),
            T::UInt64 => self.integers(source, |b| u64::from_le_bytes(b).into()),
            T::Float16 => self.floats(source, |b| half::f16::from_le_bytes(b).to_f64()),
            T::BFloat16 => self.floats(source, |b| half::bf16::from_le_bytes(b).to_f64()),
            T::Float32 => self.floats(source, |b| f32::from_le_bytes(b).into()),
            T::Float64 => self.floats(source, f64::from_le_bytes),
            T::Complex64 => self.complex(source, |b| f32::from_le_bytes(b).into()),
            T::Complex128 => self.complex(source, f64::from_le_bytes),
            _ => {
                let (_, values) = minifloat::of(data_type).expect("`check` let numbers through");
                self.floats(source, |[b]| values[usize::from(b)].into());
            }
        }
    }

    fn complex<const N: usize>(&mut self, source: &[u8], f: impl Fn([u8; N]) -> f64) {
        self.form = Form::Complex;
        let pairs = source.as_chunks::<N>().0.as_chunks::<2>().0.iter();
        for ([re, im], i) in pairs.zip(0..) {
            (self.floats[i], self.imaginary[i]) = (f(*re), f(*im));
        }
    }

    /// Changes the form to that of the target's kind.
    #[expect(clippy::cast_possible_truncation, reason = "a float becomes the nearest integer")]
    fn convert(&mut self, kind: Kind) {
        let form = match kind {
            // Integers stay: the writers of floats round them once.
            Kind::Float if self.form == Form::Integer => Form::Integer,
            Kind::Float => Form::Float,
            Kind::Complex => Form::Complex,
            Kind::Bool => {
                let imaginary = self.form == Form::Complex;
                if self.form != Form::Integer {
                    for i in 0..self.count {
                        let set = self.floats[i] != 0.0 || imaginary && self.imaginary[i] != 0.0;
                        self.integers[i] = i128::from(set);
                    }
                }
                Form::Integer
            }
            Kind::Unsigned | Kind::Signed => {
                if self.form != Form::Integer {
                    for i in 0..self.count {
                        self.integers[i] = self.floats[i] as i128; // saturates; NaN is 0
                    }
                }
                Form::Integer
            }
        };
        if form == Form::Complex && self.form != Form::Complex {
            self.imaginary = [0.0; BLOCK];
            if self.form == Form::Integer {
                for i in 0..self.count {
                    self.floats[i] = sticky(self.integers[i]);
                }
            }
        }
        self.form = form;
    }

    /// Writes the block; an integer that does not fit comes back with its position.
    fn store(
        &self,
        data_type: DataType,
        target: &mut [u8],
        rule: CastRule,
    ) -> Result<(), (usize, i128)> {
        use DataType as T;
        match data_type {
            T::Bool => self.fit(target, (0, i128::MAX), rule, |v| [u8::from(v != 0)]),
            T::Int2 => self.fit(target, (-2, 1), rule, low_bytes::<1>),
            T::Int4 => self.fit(target, (-8, 7), rule, low_bytes::<1>),
            T::Int8 => self.fit(target, range(i8::MIN, i8::MAX), rule, low_bytes::<1>),
            T::Int16 => self.fit(target, range(i16::MIN, i16::MAX), rule, low_bytes::<2>),
            T::Int32 => self.fit(target, range(i32::MIN, i32::MAX), rule, low_bytes::<4>),
            T::Int64 => self.fit(target, range(i64::MIN, i64::MAX), rule, low_bytes::<8>),
            T::UInt2 => self.fit(target, (0, 3), rule, low_bytes::<1>),
            T::UInt4 => self.fit(target, (0, 15), rule, low_bytes::<1>),
            T::UInt8 => self.fit(target, range(0, u8::MAX), rule, low_bytes::<1>),
            T::UInt16 => self.fit(target, range(0, u16::MAX), rule, low_bytes::<2>),
            T::UInt32 => self.fit(target, range(0, u32::MAX), rule, low_bytes::<4>),
            T::UInt64 => self.fit(target, range(0, u64::MAX), rule, low_bytes::<8>),
            _ => {
                self.store_floats(data_type, target);
                Ok(())
            }
        }
    }

    fn fit<const N: usize>(
        &self,
        target: &mut [u8],
        (least, most): (i128, i128),
        rule: CastRule,
        f: impl Fn(i128) -> [u8; N],
    ) -> Result<(), (usize, i128)> {
        for ((position, value), to) in
            self.integers.iter().enumerate().zip(target.as_chunks_mut().0)
        {
            let fitting = (*value).clamp(least, most);
            if fitting != *value && rule == CastRule::SameKind {
                return Err((position, *value));
            }
            *to = f(fitting);
        }
        Ok(())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "rounding to nearest even is the conversion"
    )]
    fn store_floats(&self, data_type: DataType, target: &mut [u8]) {
        use DataType as T;
        let whole = self.form == Form::Integer;
        let short = |format: Format, target: &mut [u8], bytes: usize| {
            for (i, to) in target.chunks_exact_mut(bytes).enumerate() {
                let value = if whole { sticky(self.integers[i]) } else { self.floats[i] };
                to.copy_from_slice(&format.encode(value).to_le_bytes()[..bytes]);
            }
        };
        let (integers, floats) = (self.integers.iter(), self.floats.iter());
        match data_type {
            T::Float32 if whole => {
                put(target, integers.map(|v| (*v as f32).to_le_bytes()));
            }
            T::Float32 => put(target, floats.map(|v| (*v as f32).to_le_bytes())),
            T::Float64 if whole => put(target, integers.map(|v| (*v as f64).to_le_bytes())),
            T::Float64 => put(target, floats.map(|v| v.to_le_bytes())),
            T::Float16 => short(minifloat::FLOAT16, target, 2),
            T::BFloat16 => short(minifloat::BFLOAT16, target, 2),
            T::Complex64 => {
                let pairs = floats.zip(&self.imaginary).flat_map(|(re, im)| [*re, *im]);
                put(target, pairs.map(|v| (v as f32).to_le_bytes()));
            }
            T::Complex128 => {
                let pairs = floats.zip(&self.imaginary).flat_map(|(re, im)| [*re, *im]);
                put(target, pairs.map(f64::to_le_bytes));
            }
            _ => {
                let (format, _) = minifloat::of(data_type).expect("`check` let numbers through");
                short(format, target, 1);
            }
        }
    }
}

fn put<const N: usize>(target: &mut [u8], values: impl Iterator<Item = [u8; N]>) {
    for (to, value) in target.as_chunks_mut().0.iter_mut().zip(values) {
        *to = value;
    }
}

fn range<T: Into<i128>>(least: T, most: T) -> (i128, i128) {
    (least.into(), most.into())
}

/// The low bytes of a number that fits them.
fn low_bytes<const N: usize>(value: i128) -> [u8; N] {
    *value.to_le_bytes().first_chunk().expect("no integer is longer than 16 bytes")
}

/// Converts an integer to `f64`, what is cut off leaving its trace in the last bit.
///
/// Rounding the result to fewer than 53 bits then is rounding the integer: nothing is rounded twice.
#[expect(clippy::cast_precision_loss, reason = "54 bits at most are left, the last one sticky")]
fn sticky(value: i128) -> f64 {
    let magnitude = value.unsigned_abs();
    let excess = (128 - magnitude.leading_zeros()).saturating_sub(53);
    let kept = magnitude >> excess;
    let lost = kept << excess != magnitude;
    let float = (kept | u128::from(lost)) as f64 * 2f64.powi(excess.cast_signed());
    if value < 0 { -float } else { float }
}

#[cfg(test)]
mod tests;
