//! The states that are saved and restored: shapes first, bytes only when a run begins.
//!
//! | name | leaves | bytes | stands for |
//! |---|---|---|---|
//! | `gpt2` | 445 | 1.49 GB | GPT-2 small with Adam: 148 parameters, their `mu` and `nu`, one int step |
//! | `many` | 20,000 | 103 MB | biases, norms, scalars: a state whose cost is its leaves |
//! | `big` | 4 | 2.15 GB | embeddings: a state whose cost is its bytes |
//! | `256MiB` | 1 a 64 MiB | as named | whatever the place should be tried with |
//!
//! The values are what weights look like to a compressor: random signs and mantissas, exponents that crowd
//! below one. They are made once, on all cores, and shared by every repetition.

use super::super::size;
use bytes::Bytes;
use milepost::{DataType, Error, ErrorKind, Leaf, Result, Tree};
use std::{fmt, str::FromStr};

/// Leaves of a state that is named by its size.
const SIZED_LEAF_BYTES: u64 = 64 << 20;
const STEP: i64 = 12_000;

/// Which state is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// GPT-2 small and its Adam moments.
    Gpt2,
    /// 20,000 small leaves.
    Many,
    /// Four leaves of 512 MiB.
    Big,
    /// So many bytes of float32.
    Sized(u64),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpt2 => f.write_str("gpt2"),
            Self::Many => f.write_str("many"),
            Self::Big => f.write_str("big"),
            Self::Sized(bytes) => f.write_str(&super::report::exact(*bytes)),
        }
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gpt2" => Ok(Self::Gpt2),
            "many" => Ok(Self::Many),
            "big" => Ok(Self::Big),
            _ => match size::parse(text) {
                Ok(bytes) if bytes >= 4 => Ok(Self::Sized(bytes)),
                _ => Err(format!(
                    "`{text}` is no state: name gpt2, many, big, or a size such as 256MiB"
                )),
            },
        }
    }
}

/// What one leaf of a state is before it has bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// float32 of this shape.
    Floats(Vec<u64>),
    /// The step counter.
    Step,
}

impl Shape {
    fn bytes(&self) -> u64 {
        match self {
            Self::Floats(shape) => shape.iter().product::<u64>() * 4,
            Self::Step => 8,
        }
    }
}

/// Returns the decoded bytes of a tree of shapes.
pub(crate) fn total_bytes(shapes: &Tree<Shape>) -> u64 {
    shapes.leaves().map(|(_, shape)| shape.bytes()).sum()
}

impl State {
    /// Returns the tree of shapes; nothing large is allocated.
    pub(crate) fn shapes(self) -> Tree<Shape> {
        match self {
            Self::Gpt2 => gpt2(),
            Self::Many => many(),
            Self::Big => Tree::dict((0..4).map(|i| (format!("w{i}"), floats(&[1 << 14, 1 << 13])))),
            Self::Sized(bytes) => sized(bytes),
        }
    }

    /// Returns the key path of the leaf that is restored alone.
    pub(crate) fn one_parameter(self) -> &'static str {
        match self {
            Self::Gpt2 => "params/h/5/mlp/c_fc/kernel",
            Self::Many => "layer_1000/dense",
            Self::Big | Self::Sized(_) => "w0",
        }
    }
}

fn floats(shape: &[u64]) -> Tree<Shape> {
    Tree::leaf(Shape::Floats(shape.to_vec()))
}

/// The parameters of GPT-2 small, and two moments of each.
fn gpt2() -> Tree<Shape> {
    const WIDTH: u64 = 768;
    let norm = || Tree::dict([("scale", floats(&[WIDTH])), ("bias", floats(&[WIDTH]))]);
    let dense = |inputs: u64, outputs: u64| {
        Tree::dict([("kernel", floats(&[inputs, outputs])), ("bias", floats(&[outputs]))])
    };
    let block = || {
        Tree::dict([
            ("ln_1", norm()),
            (
                "attn",
                Tree::dict([("c_attn", dense(WIDTH, 3 * WIDTH)), ("c_proj", dense(WIDTH, WIDTH))]),
            ),
            ("ln_2", norm()),
            (
                "mlp",
                Tree::dict([
                    ("c_fc", dense(WIDTH, 4 * WIDTH)),
                    ("c_proj", dense(4 * WIDTH, WIDTH)),
                ]),
            ),
        ])
    };
    let params = || {
        Tree::dict([
            ("wte", floats(&[50_257, WIDTH])),
            ("wpe", floats(&[1024, WIDTH])),
            ("h", Tree::list((0..12).map(|_| block()))),
            ("ln_f", norm()),
        ])
    };
    let moments = Tree::dict([("mu", params()), ("nu", params())]);
    Tree::dict([("params", params()), ("opt_state", moments), ("step", Tree::leaf(Shape::Step))])
}

/// 2,000 layers of ten leaves, from 4 bytes to 16 KiB.
fn many() -> Tree<Shape> {
    let layer = || {
        Tree::dict([
            ("dense", floats(&[64, 64])),
            ("dense_bias", floats(&[64])),
            ("gate", floats(&[64, 64])),
            ("gate_bias", floats(&[64])),
            ("up", floats(&[32, 64])),
            ("down", floats(&[64, 32])),
            ("scale", floats(&[256])),
            ("shift", floats(&[256])),
            ("temperature", floats(&[])),
            ("count", floats(&[])),
        ])
    };
    Tree::dict((0..2000).map(|i| (format!("layer_{i:04}"), layer())))
}

fn sized(bytes: u64) -> Tree<Shape> {
    let leaves = bytes.div_ceil(SIZED_LEAF_BYTES);
    let leaf = |i: u64| {
        let leaf_bytes = SIZED_LEAF_BYTES.min(bytes - i * SIZED_LEAF_BYTES);
        let elements = leaf_bytes / 4;
        // Rows, so that a large leaf has an axis to be cut along as weights have.
        let shape = if elements.is_multiple_of(1024) {
            vec![elements / 1024, 1024]
        } else {
            vec![elements]
        };
        (format!("w{i}"), floats(&shape))
    };
    Tree::dict((0..leaves).map(leaf))
}

/// A state with its bytes.
#[derive(Debug)]
pub(crate) struct Filled {
    /// What is saved.
    pub(crate) leaves: Tree<Leaf>,
    /// The bytes of each leaf, in tree order; the leaves share them.
    pub(crate) bytes: Vec<Bytes>,
}

/// Gives every leaf its bytes.
///
/// # Errors
/// Those of the leaves; a shape of ours is always valid.
pub(crate) fn fill(shapes: &Tree<Shape>) -> Result<Filled> {
    let list: Vec<&Shape> = shapes.leaves().map(|(_, shape)| shape).collect();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let filled: Vec<Vec<(usize, Bytes)>> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let mine = list.iter().enumerate().skip(part).step_by(threads);
                let make = |(i, shape): (usize, &&Shape)| match shape {
                    Shape::Floats(_) => (i, random_floats(shape.bytes(), i as u64 + 1)),
                    Shape::Step => (i, Bytes::copy_from_slice(&STEP.to_le_bytes())),
                };
                scope.spawn(move || mine.map(make).collect())
            })
            .collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, _>| {
            part.join().map_err(|_| internal("making the state panicked"))
        };
        parts.into_iter().map(join).collect::<Result<_>>()
    })?;
    let mut filled: Vec<(usize, Bytes)> = filled.into_iter().flatten().collect();
    filled.sort_by_key(|(i, _)| *i);
    let bytes: Vec<Bytes> = filled.into_iter().map(|(_, bytes)| bytes).collect();
    let mut each = bytes.iter();
    let leaves = shapes.as_ref().try_map(|_, shape| match (shape, each.next()) {
        (Shape::Floats(shape), Some(bytes)) => {
            Leaf::from_bytes(DataType::Float32, shape.clone(), bytes.clone())
        }
        (Shape::Step, Some(_)) => Leaf::int(STEP.into()),
        (_, None) => Err(internal("a leaf has no bytes")),
    })?;
    Ok(Filled { leaves, bytes })
}

fn internal(what: &str) -> Error {
    Error::new(ErrorKind::Internal, what)
}

/// Makes `bytes` of float32 in (−1, 1), the same for the same seed.
pub(crate) fn random_floats(bytes: u64, seed: u64) -> Bytes {
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut out = vec![0_u8; len];
    let mut numbers = Numbers::new(seed);
    let mut pairs = out.chunks_exact_mut(8);
    for pair in &mut pairs {
        let bits = numbers.next();
        pair.copy_from_slice(&(float(bits >> 32) << 32 | float(bits)).to_le_bytes());
    }
    let rest = pairs.into_remainder();
    let last = float(numbers.next()).to_le_bytes();
    let n = rest.len();
    rest.copy_from_slice(&last[..n]);
    Bytes::from(out)
}

/// Turns 32 random bits into a float32 whose exponent falls by one with every halving of chance.
fn float(bits: u64) -> u64 {
    let exponent = 126 - u64::from((bits >> 23 & 0xff | 0x100).trailing_zeros());
    bits & 0x8000_0000 | exponent << 23 | bits & 0x007f_ffff
}

/// A small generator of numbers (xorshift64*): fast, repeatable, not for secrets.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Starts at a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Puts a list into another order.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            let j = usize::try_from(self.next() % (i as u64 + 1)).unwrap_or(0);
            list.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_has_its_445_leaves_and_1_49_gigabytes() {
        let shapes = State::Gpt2.shapes();
        assert_eq!(shapes.leaf_count(), 445);
        assert_eq!(total_bytes(&shapes), 3 * 4 * 124_439_808 + 8);
    }

    #[test]
    fn the_other_states_have_the_sizes_they_are_described_with() {
        let many = State::Many.shapes();
        assert_eq!(many.leaf_count(), 20_000);
        assert_eq!(total_bytes(&many), 2000 * 51_720);
        let big = State::Big.shapes();
        assert_eq!((big.leaf_count(), total_bytes(&big)), (4, 4 * (512 << 20)));
        for bytes in [4, 1 << 20, (64 << 20) + 4, 1000 << 20] {
            assert_eq!(total_bytes(&State::Sized(bytes).shapes()), bytes);
        }
    }

    #[test]
    fn the_leaf_that_is_restored_alone_is_in_its_state() {
        for state in [State::Gpt2, State::Many, State::Big, State::Sized(1 << 20)] {
            let shapes = state.shapes();
            let found = shapes.leaves().any(|(path, _)| path.to_string() == state.one_parameter());
            assert!(found, "{state} has no {}", state.one_parameter());
        }
    }

    #[test]
    fn random_floats_are_finite_repeatable_and_not_alike() {
        let bytes = random_floats(4 * 1001, 7);
        assert_eq!(bytes, random_floats(4 * 1001, 7));
        assert_ne!(bytes, random_floats(4 * 1001, 8));
        let mut floats: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert!(floats.iter().all(|x| x.is_finite() && x.abs() < 1.0 && *x != 0.0));
        floats.sort_by(f32::total_cmp);
        floats.dedup();
        assert!(floats.len() > 990, "{}", floats.len());
    }

    #[test]
    fn a_shuffle_keeps_every_element() {
        let mut list: Vec<u32> = (0..1000).collect();
        Numbers::new(3).shuffle(&mut list);
        assert_ne!(list[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        list.sort_unstable();
        assert!(list.iter().copied().eq(0..1000));
    }
}
