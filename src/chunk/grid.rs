//! The division of an array into chunks.
//!
//! A grid is a product of axes: on each, chunks of one length, or a list of edges (rectilinear grids of other
//! writers). So the chunks cover every element exactly once by construction, which `scatter` relies on
//! when it lets several threads fill one destination.
//!
//! Chunks have an index (a position an axis) and a linear number in C order. A 0-d array has one chunk, an array
//! with an empty axis has none.

use super::subset::{Subset, elements};
use crate::error::{Error, Result};

/// How one axis is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Chunks of equal length, the last one cut by the end of the array.
    Regular {
        /// Length of the axis in elements.
        size: u64,
        /// Length of a chunk, at least 1.
        chunk: u64,
    },
    /// Where each chunk begins, and the end: strictly increasing, from 0.
    Edges(Vec<u64>),
}

impl Axis {
    fn size(&self) -> u64 {
        match self {
            Self::Regular { size, .. } => *size,
            Self::Edges(edges) => edges.last().copied().unwrap_or(0),
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Regular { size, chunk } => size.div_ceil(*chunk),
            Self::Edges(edges) => edges.len().saturating_sub(1) as u64,
        }
    }

    /// Returns first index and length of a chunk.
    fn span(&self, position: u64) -> (u64, u64) {
        match self {
            Self::Regular { size, chunk } => {
                let start = position * chunk;
                (start, (*chunk).min(size - start))
            }
            Self::Edges(edges) => {
                let at = super::scatter::small(position);
                (edges[at], edges[at + 1] - edges[at])
            }
        }
    }

    /// Returns the position of the chunk that holds an element.
    fn position(&self, element: u64) -> u64 {
        match self {
            Self::Regular { chunk, .. } => element / chunk,
            Self::Edges(edges) => edges.partition_point(|edge| *edge <= element) as u64 - 1,
        }
    }
}

/// The division of an array into chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    axes: Vec<Axis>,
    shape: Vec<u64>,
    counts: Vec<u64>,
    total: u64,
}

impl Grid {
    /// Divides an array of `shape` into chunks of `chunk_shape`.
    ///
    /// # Errors
    /// `Invalid` where the ranks differ, a chunk axis is 0, or the elements do not fit a `u64`.
    pub(crate) fn new(shape: &[u64], chunk_shape: &[u64]) -> Result<Self> {
        if shape.len() != chunk_shape.len() {
            return Err(Error::invalid("the chunk shape has another rank than the array")
                .with("shape", format!("{shape:?}"))
                .with("chunk_shape", format!("{chunk_shape:?}")));
        }
        let axes = shape.iter().zip(chunk_shape);
        Self::from_axes(axes.map(|(&size, &chunk)| Axis::Regular { size, chunk }).collect())
    }

    /// Divides an array axis by axis.
    ///
    /// # Errors
    /// `Invalid` where a chunk axis is 0, edges do not increase from 0, or the elements do not fit a `u64`.
    pub(crate) fn from_axes(axes: Vec<Axis>) -> Result<Self> {
        for (number, axis) in axes.iter().enumerate() {
            let good = match axis {
                Axis::Regular { chunk, .. } => *chunk > 0,
                Axis::Edges(edges) => edges.first() == Some(&0) && edges.is_sorted_by(|a, b| a < b),
            };
            if !good {
                return Err(Error::invalid("a chunk has no length").with("axis", number));
            }
        }
        let shape: Vec<u64> = axes.iter().map(Axis::size).collect();
        let counts: Vec<u64> = axes.iter().map(Axis::count).collect();
        // Counts are at most the sizes, so they fit where the elements do.
        let (Some(_), Some(total)) = (elements(&shape), elements(&counts)) else {
            return Err(Error::invalid("an array has more elements than 64 bits count")
                .with("shape", format!("{shape:?}")));
        };
        Ok(Self { axes, shape, counts, total })
    }

    /// Returns the shape of the array.
    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Returns the number of chunks on each axis.
    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Returns the number of chunks.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Returns the linear number of a chunk in C order.
    ///
    /// # Panics
    /// Where the index is outside the grid.
    pub(crate) fn linear(&self, index: &[u64]) -> u64 {
        assert_eq!(index.len(), self.counts.len(), "a chunk index has the array's rank");
        index.iter().zip(&self.counts).fold(0, |linear, (i, n)| {
            assert!(i < n, "a chunk index lies inside the grid");
            linear * n + i
        })
    }

    /// Returns the index of a chunk from its linear number.
    ///
    /// # Panics
    /// Where there is no such chunk.
    pub(crate) fn index(&self, mut linear: u64) -> Vec<u64> {
        assert!(linear < self.total, "a chunk number lies inside the grid");
        let mut index = vec![0; self.counts.len()];
        for axis in (0..index.len()).rev() {
            index[axis] = linear % self.counts[axis];
            linear /= self.counts[axis];
        }
        index
    }

    /// Returns the elements of a chunk that exist, cut by the end of the array.
    ///
    /// # Panics
    /// Where the index is outside the grid.
    pub(crate) fn chunk_box(&self, index: &[u64]) -> Subset {
        let _inside = self.linear(index);
        let spans = self.axes.iter().zip(index).map(|(axis, position)| axis.span(*position));
        let (start, shape) = spans.unzip();
        Subset::new(start, shape).expect("a chunk lies inside the array")
    }

    /// Returns an iterator over the indices of the chunks that hold an element of `subset`, in C order.
    ///
    /// # Panics
    /// Where the box is not inside the array.
    pub(crate) fn intersecting(&self, subset: &Subset) -> ChunkIndices {
        assert!(subset.fits(&self.shape), "a box lies inside the array it selects from");
        if subset.is_empty() {
            return ChunkIndices { first: Vec::new(), counts: Vec::new(), next: None };
        }
        let (mut first, mut counts) = (Vec::new(), Vec::new());
        for (number, axis) in self.axes.iter().enumerate() {
            let low = axis.position(subset.start()[number]);
            first.push(low);
            counts.push(axis.position(subset.end(number) - 1) - low + 1);
        }
        let next = Some(vec![0; first.len()]);
        ChunkIndices { first, counts, next }
    }

    /// Counts the chunks that hold an element of `subset`, without visiting them.
    ///
    /// # Panics
    /// Where the box is not inside the array.
    pub(crate) fn intersecting_count(&self, subset: &Subset) -> u64 {
        self.intersecting(subset).count_all()
    }

    /// Returns an iterator over the indices of all chunks in C order.
    pub(crate) fn indices(&self) -> ChunkIndices {
        let whole = Subset::whole(&self.shape).expect("checked when the grid was made");
        self.intersecting(&whole)
    }
}

/// Moves `index` to the next one below `counts` in C order; `false` after the last.
pub(super) fn advance(index: &mut [u64], counts: &[u64]) -> bool {
    for axis in (0..index.len()).rev() {
        index[axis] += 1;
        if index[axis] < counts[axis] {
            return true;
        }
        index[axis] = 0;
    }
    false
}

/// Chunk indices in C order.
#[derive(Clone, Debug)]
pub(crate) struct ChunkIndices {
    first: Vec<u64>,
    counts: Vec<u64>,
    next: Option<Vec<u64>>,
}

impl ChunkIndices {
    /// Counts them all; the product fits where the number of all chunks does.
    fn count_all(&self) -> u64 {
        if self.next.is_some() { self.counts.iter().product() } else { 0 }
    }
}

impl Iterator for ChunkIndices {
    type Item = Vec<u64>;

    fn next(&mut self) -> Option<Vec<u64>> {
        let mut offset = self.next.take()?;
        let index = offset.iter().zip(&self.first).map(|(a, b)| a + b).collect();
        if advance(&mut offset, &self.counts) {
            self.next = Some(offset);
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edge_chunks_are_cut_and_numbers_come_back() {
        let grid = Grid::new(&[5, 7], &[2, 3]).unwrap();
        assert_eq!((grid.counts(), grid.total()), ([3, 3].as_slice(), 9));
        assert_eq!(grid.chunk_box(&[2, 2]).to_string(), "[4:5,6:7]");
        for (number, index) in grid.indices().enumerate() {
            assert_eq!(grid.linear(&index), number as u64);
            assert_eq!(grid.index(number as u64), index);
        }
    }

    #[test]
    fn a_scalar_has_one_chunk_and_an_empty_array_none() {
        let scalar = Grid::new(&[], &[]).unwrap();
        assert_eq!(scalar.total(), 1);
        assert_eq!(scalar.indices().collect::<Vec<_>>(), [Vec::<u64>::new()]);
        assert_eq!(scalar.chunk_box(&[]).elements(), 1);
        let empty = Grid::new(&[u64::MAX, 0, u64::MAX], &[1, 1, 1]).unwrap();
        assert_eq!((empty.total(), empty.indices().count()), (0, 0));
    }

    #[test]
    fn bad_grids_are_refused() {
        for (shape, chunk) in [
            (vec![4], vec![0]),
            (vec![4], vec![2, 2]),
            (vec![0], vec![0]),
            (vec![1 << 33, 1 << 33], vec![1, 1]),
        ] {
            let error = Grid::new(&shape, &chunk).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{shape:?} {chunk:?}");
        }
        for edges in [vec![], vec![1, 2], vec![0, 2, 2]] {
            Grid::from_axes(vec![Axis::Edges(edges)]).unwrap_err();
        }
    }

    #[test]
    fn the_longest_axis_does_not_overflow() {
        let grid = Grid::new(&[u64::MAX], &[u64::MAX - 1]).unwrap();
        assert_eq!(grid.total(), 2);
        assert_eq!(grid.chunk_box(&[1]).start(), [u64::MAX - 1]);
        let all = Subset::whole(&[u64::MAX]).unwrap();
        assert_eq!(grid.intersecting(&all).count(), 2);
    }

    #[test]
    fn edge_lists_divide_like_their_edges() {
        let axes = vec![Axis::Edges(vec![0, 1, 4, 9]), Axis::Regular { size: 4, chunk: 3 }];
        let grid = Grid::from_axes(axes).unwrap();
        assert_eq!((grid.shape(), grid.counts()), ([9, 4].as_slice(), [3, 2].as_slice()));
        assert_eq!(grid.chunk_box(&[1, 1]).to_string(), "[1:4,3:4]");
        let part = Subset::new(vec![3, 0], vec![2, 1]).unwrap();
        assert_eq!(grid.intersecting(&part).collect::<Vec<_>>(), [[1, 0], [2, 0]]);
    }

    proptest::proptest! {
        #[test]
        fn the_chunks_of_a_box_are_those_that_intersect_it(
            axes in proptest::collection::vec((1u64..9, 1u64..5, 0u64..9, 0u64..9), 0..4),
        ) {
            let shape: Vec<u64> = axes.iter().map(|a| a.0).collect();
            let chunk: Vec<u64> = axes.iter().map(|a| a.1).collect();
            let start: Vec<u64> = axes.iter().map(|a| a.2.min(a.0)).collect();
            let length = axes.iter().zip(&start).map(|(a, s)| a.3.min(a.0 - s)).collect();
            let part = Subset::new(start, length).unwrap();
            let grid = Grid::new(&shape, &chunk).unwrap();
            let naive: Vec<_> = grid
                .indices()
                .filter(|i| !part.is_empty() && grid.chunk_box(i).intersection(&part).is_some())
                .collect();
            proptest::prop_assert_eq!(grid.intersecting(&part).collect::<Vec<_>>(), naive);
            let covered: u64 = grid.indices().map(|i| grid.chunk_box(&i).elements()).sum();
            proptest::prop_assert_eq!(covered, elements(&shape).unwrap());
        }
    }
}
