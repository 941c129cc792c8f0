//! Boxes that several hold of one array: whether they cover it once, and the grid that they all lie on.
//!
//! The *cuts* of an array are, axis by axis, the greatest common divisor of every edge inside it; the end of the array
//! cuts nothing. A grid of that length has an edge wherever a box has one, so each of its cells lies in one box.
//!
//! **Invariant:** a box is never compared with every other where the boxes lie on few edges: a mesh of thousands is
//! checked in time proportional to its cells.

use super::{
    grid::advance,
    subset::{Subset, elements},
};

/// Beyond so many cells a box, boxes are compared with each other instead.
const CELLS_A_BOX_MAX: u64 = 64;
/// Few enough cells for any number of boxes.
const CELLS_FEW: u64 = 4096;
/// A grid with more cells a box than this is not one that the boxes were cut by.
const UNITS_A_BOX_MAX: u64 = 16;
/// Cells of this size are worth a shard each, however many they are.
const UNIT_BYTES_MIN: u64 = 1 << 20;

/// Why boxes do not cover an array exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// That box is not inside the array.
    Outside(usize),
    /// These two share elements.
    Overlap(usize, usize),
    /// Nobody holds these elements (all that are missing, or some of them).
    Gap(Subset),
}

/// Checks that distinct boxes cover an array of `shape` exactly once.
///
/// # Errors
/// The first misfit that was found.
pub(crate) fn check_cover(shape: &[u64], boxes: &[Subset]) -> Result<(), Misfit> {
    if let Some(outside) = boxes.iter().position(|place| !place.fits(shape)) {
        return Err(Misfit::Outside(outside));
    }
    if elements(shape) == Some(0) {
        return Ok(());
    }
    let edges = edges(shape, boxes);
    let counts: Vec<u64> = edges.iter().map(|edges| edges.len() as u64 - 1).collect();
    let few = CELLS_FEW.saturating_add(CELLS_A_BOX_MAX.saturating_mul(boxes.len() as u64));
    match elements(&counts).filter(|cells| *cells <= few) {
        Some(cells) => paint(&edges, &counts, boxes, cells),
        None => compare(shape, boxes),
    }
}

/// Returns every axis's edges in order, those of the array among them.
fn edges(shape: &[u64], boxes: &[Subset]) -> Vec<Vec<u64>> {
    let axis = |axis: usize| {
        let own = boxes.iter().filter(|place| !place.is_empty());
        let both = own.flat_map(|place| [place.start()[axis], place.end(axis)]);
        let mut edges: Vec<u64> = both.chain([0, shape[axis]]).collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    };
    (0..shape.len()).map(axis).collect()
}

/// Paints the cells between the edges, each of which lies wholly in a box or outside it.
fn paint(edges: &[Vec<u64>], counts: &[u64], boxes: &[Subset], cells: u64) -> Result<(), Misfit> {
    let mut painted = vec![usize::MAX; usize::try_from(cells).unwrap_or(0)];
    let linear = |cell: &[u64]| {
        let number = cell.iter().zip(counts).fold(0, |linear, (i, n)| linear * n + i);
        usize::try_from(number).unwrap_or(usize::MAX)
    };
    let position = |axis: usize, edge: u64| edges[axis].partition_point(|e| *e < edge) as u64;
    for (number, place) in boxes.iter().enumerate().filter(|(_, place)| !place.is_empty()) {
        let first: Vec<u64> =
            (0..counts.len()).map(|axis| position(axis, place.start()[axis])).collect();
        let span: Vec<u64> =
            (0..counts.len()).map(|axis| position(axis, place.end(axis)) - first[axis]).collect();
        let mut within = vec![0; span.len()];
        loop {
            let cell: Vec<u64> = first.iter().zip(&within).map(|(f, w)| f + w).collect();
            let owner = &mut painted[linear(&cell)];
            if *owner != usize::MAX {
                return Err(Misfit::Overlap(*owner, number));
            }
            *owner = number;
            if !advance(&mut within, &span) {
                break;
            }
        }
    }
    let Some(gap) = painted.iter().position(|owner| *owner == usize::MAX) else { return Ok(()) };
    let (mut start, mut shape) = (vec![0; counts.len()], vec![0; counts.len()]);
    let mut left = gap as u64;
    for axis in (0..counts.len()).rev() {
        let at = usize::try_from(left % counts[axis]).unwrap_or(0);
        left /= counts[axis];
        (start[axis], shape[axis]) = (edges[axis][at], edges[axis][at + 1] - edges[axis][at]);
    }
    Err(Misfit::Gap(Subset::new(start, shape).expect("a cell lies inside the array")))
}

fn compare(shape: &[u64], boxes: &[Subset]) -> Result<(), Misfit> {
    for (i, one) in boxes.iter().enumerate() {
        if let Some(other) = boxes[..i].iter().position(|b| b.intersection(one).is_some()) {
            return Err(Misfit::Overlap(other, i));
        }
    }
    // Disjoint and inside: they cover all where they are as many elements.
    if elements(shape) == Some(boxes.iter().map(Subset::elements).sum()) {
        return Ok(());
    }
    Err(Misfit::Gap(Subset::whole(shape).expect("its elements were counted")))
}

/// Returns the length of the cells that all boxes lie on; `None` for an axis that no box cuts.
pub(crate) fn cuts(shape: &[u64], boxes: &[Subset]) -> Vec<Option<u64>> {
    let axis = |axis: usize| {
        let all = boxes.iter().filter(|place| !place.is_empty());
        let edges = all.flat_map(|place| [place.start()[axis], place.end(axis)]);
        let inside = edges.filter(|edge| *edge > 0 && *edge < shape[axis]);
        inside.reduce(gcd)
    };
    (0..shape.len()).map(axis).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Tells whether cells of these lengths are shards that somebody wants.
pub(crate) fn is_regular(
    shape: &[u64],
    cuts: &[Option<u64>],
    boxes: usize,
    item_bytes: usize,
) -> bool {
    let unit = shape.iter().zip(cuts).map(|(n, cut)| cut.unwrap_or(*n));
    let counts: Vec<u64> =
        shape.iter().zip(cuts).map(|(n, cut)| cut.map_or(1, |cut| n.div_ceil(cut))).collect();
    let cells = elements(&counts).unwrap_or(u64::MAX);
    let bytes = elements(&unit.collect::<Vec<_>>()).unwrap_or(u64::MAX);
    cells <= UNITS_A_BOX_MAX.saturating_mul(boxes.max(1) as u64)
        || bytes.saturating_mul(item_bytes as u64) >= UNIT_BYTES_MIN
}

/// Returns the shape of the boxes that would lie on a regular grid and are about as many on each axis.
pub(crate) fn nearest_grid(shape: &[u64], boxes: &[Subset]) -> Vec<u64> {
    let parts = edges(shape, boxes).into_iter().map(|edges| (edges.len() as u64 - 1).max(1));
    shape.iter().zip(parts).map(|(n, parts)| n.div_ceil(parts).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place<const N: usize>(start: [u64; N], shape: [u64; N]) -> Subset {
        Subset::new(start.to_vec(), shape.to_vec()).unwrap()
    }

    #[test]
    fn a_mesh_covers_and_its_cuts_are_its_boxes() {
        let mesh: Vec<_> =
            (0..4).flat_map(|i| (0..2).map(move |j| place([i * 3, j * 5], [3, 5]))).collect();
        assert_eq!(check_cover(&[12, 10], &mesh), Ok(()));
        assert_eq!(cuts(&[12, 10], &mesh), [Some(3), Some(5)]);
        assert_eq!(cuts(&[12, 10], &[place([0, 0], [12, 10])]), [None, None]);
        // The last box of an uneven division is cut by the end of the array.
        assert_eq!(cuts(&[10], &[place([0], [4]), place([4], [4]), place([8], [2])]), [Some(4)]);
        assert_eq!(check_cover(&[], &[place([], [])]), Ok(()));
        assert_eq!(check_cover(&[0, 3], &[]), Ok(()));
    }

    #[test]
    fn overlaps_gaps_and_boxes_outside_are_found() {
        let two = |a: Subset, b: Subset| check_cover(&[4, 4], &[a, b]);
        assert_eq!(two(place([0, 0], [3, 4]), place([2, 0], [2, 4])), Err(Misfit::Overlap(0, 1)));
        assert_eq!(
            two(place([0, 0], [2, 4]), place([2, 0], [2, 3])),
            Err(Misfit::Gap(place([2, 3], [2, 1])))
        );
        assert_eq!(two(place([0, 0], [2, 4]), place([2, 0], [3, 4])), Err(Misfit::Outside(1)));
        assert_eq!(check_cover(&[], &[]), Err(Misfit::Gap(place([], []))));
    }

    #[test]
    fn boxes_on_many_edges_are_compared_with_each_other() {
        // A staircase: every box has edges of its own, so there are as many cells as boxes squared.
        let stairs = |n: u64, last: u64| -> Vec<Subset> {
            let steps = (0..n).map(|i| place([i, 0], [1, i + 1]));
            let rest = (0..n).filter(|i| i + 1 < n).map(|i| place([i, i + 1], [1, last - i - 1]));
            steps.chain(rest).collect()
        };
        assert_eq!(check_cover(&[300, 300], &stairs(300, 300)), Ok(()));
        assert!(matches!(check_cover(&[300, 301], &stairs(300, 300)), Err(Misfit::Gap(_))));
        let mut twice = stairs(300, 300);
        twice.push(place([7, 7], [1, 1]));
        assert!(matches!(check_cover(&[300, 300], &twice), Err(Misfit::Overlap(..))));
    }

    #[test]
    fn a_grid_of_crumbs_is_refused_and_the_nearest_is_even() {
        let odd = [place([0], [333_331]), place([333_331], [666_669])];
        assert_eq!(cuts(&[1_000_000], &odd), [Some(333_331)]);
        let crumbs = [place([0], [333_331]), place([333_331], [333_333]), place([666_664], [9])];
        assert_eq!(cuts(&[666_673], &crumbs), [Some(1)]);
        assert!(!is_regular(&[666_673], &[Some(1)], 3, 4));
        assert!(is_regular(&[666_673], &[Some(1)], 3, 1 << 20));
        assert!(is_regular(&[12], &[Some(3)], 4, 4));
        assert!(is_regular(&[0, 3], &[None, None], 0, 4), "nobody holds an empty array");
        assert_eq!(nearest_grid(&[666_673], &crumbs), [222_225]);
    }
}
