//! The `transpose` codec: a permutation of axes, in tiles.
//!
//! Axis `i` of the encoded block is axis `order[i]` of the decoded one. Trailing axes that stay where they
//! are move as one unit. Of the rest, the fastest axis of the source and that of the target are walked in
//! tiles of [`TILE`], so that both sides use whole cache lines.

use crate::error::{Error, Result};

/// 32 × 32 elements of 8 bytes are 16 KiB: source and target of a tile stay in L1.
const TILE: usize = 32;

/// A permutation between two blocks of one size, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permutation {
    /// Length and both strides (in bytes) of each axis, in the target's order.
    axes: Vec<Axis>,
    /// What moves as one, in bytes.
    unit_bytes: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    length: usize,
    source: usize,
    target: usize,
}

impl Permutation {
    /// Compiles the way from a block of `shape` to the one whose axis `i` is axis `order[i]` of it.
    ///
    /// # Errors
    /// `Invalid` where `order` is no permutation of the axes.
    pub(super) fn new(shape: &[usize], order: &[usize], item_bytes: usize) -> Result<Self> {
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..shape.len()) {
            return Err(Error::invalid("the transpose order is no permutation of the axes")
                .with("order", format!("{order:?}"))
                .with("rank", shape.len()));
        }
        let fixed = (0..shape.len()).rev().take_while(|axis| order[*axis] == *axis).count();
        let moved = shape.len() - fixed;
        let unit_bytes = shape[moved..].iter().product::<usize>() * item_bytes;
        let strides = |shape: &mut dyn DoubleEndedIterator<Item = usize>| {
            let mut next = unit_bytes;
            let mut strides: Vec<usize> = Vec::with_capacity(moved);
            for length in shape.rev() {
                strides.push(next);
                next *= length;
            }
            strides.reverse();
            strides
        };
        let source = strides(&mut shape[..moved].iter().copied());
        let target = strides(&mut order[..moved].iter().map(|axis| shape[*axis]));
        let axes = order[..moved].iter().zip(target);
        let axes = axes
            .map(|(axis, target)| Axis { length: shape[*axis], source: source[*axis], target })
            .collect();
        Ok(Self { axes, unit_bytes, bytes: shape.iter().product::<usize>() * item_bytes })
    }

    /// Moves every element of `source` to its place in `target`.
    pub(super) fn apply(&self, source: &[u8], target: &mut [u8]) {
        self.walk(source, target, |axis| (axis.source, axis.target));
    }

    /// Moves every element back.
    pub(super) fn revert(&self, source: &[u8], target: &mut [u8]) {
        self.walk(source, target, |axis| (axis.target, axis.source));
    }

    fn walk(&self, source: &[u8], target: &mut [u8], ways: fn(&Axis) -> (usize, usize)) {
        assert!(source.len() == self.bytes && target.len() == self.bytes, "a block has its size");
        let mut axes: Vec<_> = self.axes.iter().map(|a| (a.length, ways(a))).collect();
        if axes.is_empty() {
            return target.copy_from_slice(source);
        }
        // The slowest in the target first; then the fastest in the source is second to last.
        axes.sort_by_key(|(_, (_, to))| std::cmp::Reverse(*to));
        let last = axes.len() - 1;
        let fastest = (0..axes.len()).min_by_key(|i| axes[*i].1.0).unwrap_or(last);
        if fastest < last {
            axes[fastest..last].rotate_left(1);
        }
        match self.unit_bytes {
            1 => Tiles { source, target }.each::<1>(&axes),
            2 => Tiles { source, target }.each::<2>(&axes),
            4 => Tiles { source, target }.each::<4>(&axes),
            8 => Tiles { source, target }.each::<8>(&axes),
            16 => Tiles { source, target }.each::<16>(&axes),
            unit => Tiles { source, target }.each_run(&axes, (0, 0), unit),
        }
    }
}

type Way = (usize, (usize, usize));

struct Tiles<'a> {
    source: &'a [u8],
    target: &'a mut [u8],
}

impl Tiles<'_> {
    /// Moves units whose size the compiler knows.
    fn each<const N: usize>(&mut self, axes: &[Way]) {
        match axes {
            [outer @ .., rows, columns] => self.outer::<N>(outer, (*rows, *columns), (0, 0)),
            _ => self.each_run(axes, (0, 0), N),
        }
    }

    fn outer<const N: usize>(&mut self, outer: &[Way], plane: (Way, Way), at: (usize, usize)) {
        let Some(((length, (from, to)), inner)) = outer.split_first() else {
            return self.plane::<N>(plane, at);
        };
        for i in 0..*length {
            self.outer::<N>(inner, plane, (at.0 + i * from, at.1 + i * to));
        }
    }

    fn plane<const N: usize>(&mut self, (rows, columns): (Way, Way), at: (usize, usize)) {
        for row in (0..rows.0).step_by(TILE) {
            for column in (0..columns.0).step_by(TILE) {
                for r in row..rows.0.min(row + TILE) {
                    let (mut from, mut to) = (at.0 + r * rows.1.0, at.1 + r * rows.1.1);
                    from += column * columns.1.0;
                    to += column * columns.1.1;
                    for _ in column..columns.0.min(column + TILE) {
                        self.target[to..to + N].copy_from_slice(&self.source[from..from + N]);
                        from += columns.1.0;
                        to += columns.1.1;
                    }
                }
            }
        }
    }

    /// Moves units of any size, axis by axis.
    fn each_run(&mut self, axes: &[Way], (from, to): (usize, usize), unit: usize) {
        let Some(((length, (a, b)), inner)) = axes.split_first() else {
            return self.target[to..to + unit].copy_from_slice(&self.source[from..from + unit]);
        };
        for i in 0..*length {
            self.each_run(inner, (from + i * a, to + i * b), unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn permutations_equal_the_naive_loop_and_come_back(
            (shape, order) in proptest::collection::vec(1usize..6, 0..5).prop_flat_map(|shape| {
                let axes: Vec<usize> = (0..shape.len()).collect();
                (proptest::strategy::Just(shape), proptest::strategy::Just(axes).prop_shuffle())
            }),
            item in proptest::sample::select(vec![1usize, 2, 3, 4, 8, 16]),
        ) {
            let count: usize = shape.iter().product();
            let source: Vec<u8> = (0..count * item).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut expected = Vec::new();
            for linear in 0..count {
                // The target's index, and from it the source's.
                let (mut rest, mut index) = (linear, vec![0; shape.len()]);
                for axis in (0..shape.len()).rev() {
                    index[order[axis]] = rest % shape[order[axis]];
                    rest /= shape[order[axis]];
                }
                let from = index.iter().zip(&shape).fold(0, |at, (i, n)| at * n + i) * item;
                expected.extend_from_slice(&source[from..from + item]);
            }
            let permutation = Permutation::new(&shape, &order, item).unwrap();
            let mut encoded = vec![0; source.len()];
            permutation.apply(&source, &mut encoded);
            proptest::prop_assert_eq!(&encoded, &expected);
            let mut back = vec![0; source.len()];
            permutation.revert(&encoded, &mut back);
            proptest::prop_assert_eq!(back, source);
        }
    }
    use proptest::strategy::Strategy;

    #[test]
    fn tiles_cover_blocks_larger_than_one() {
        let permutation = Permutation::new(&[70, 33], &[1, 0], 1).unwrap();
        let source: Vec<u8> = (0..70 * 33).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let mut encoded = vec![0; source.len()];
        permutation.apply(&source, &mut encoded);
        for (row, column) in [(0, 0), (69, 32), (31, 32), (64, 1)] {
            assert_eq!(encoded[column * 70 + row], source[row * 33 + column]);
        }
    }

    #[test]
    fn an_order_that_is_no_permutation_is_refused() {
        for order in [vec![0], vec![0, 0], vec![1, 2], vec![0, 1, 2]] {
            let error = Permutation::new(&[2, 3], &order, 1).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid);
        }
    }
}
