//! The chunk plan of an array that several write: no shard crosses an edge of a box.
//!
//! On an axis that is cut (`cover`), shards divide the length of the cut and chunks divide the shards; on the others
//! everything is as in `plan`. An array that nobody cuts gets the very plan of a single writer.
//!
//! A length with no good divisor gives chunks up to eight times larger or smaller than asked for; where there is none
//! in that range, one chunk takes it whole if that is at most 64 MiB.

use super::plan::{CHUNK_BYTES_MAX, ChunkPlan, PlanOptions, plan};
use super::subset::elements;
use crate::error::{Error, Result};

/// How far a chunk may be from the size that was asked for.
const FACTOR: u64 = 8;
/// A run that has no divisor near the target stays whole up to this size.
const WHOLE_BYTES_MAX: u64 = 64 << 20;
/// So many quotients are tried for a divisor; what has none by then is divided to single rows.
const QUOTIENTS_MAX: u64 = 1 << 16;

/// Plans the chunks of an array whose shards must not cross multiples of `cuts`.
///
/// # Errors
/// `Invalid` where an option does not fit the array or its cuts, or the array does not fit 64 bits.
pub(crate) fn divide(
    shape: &[u64],
    cuts: &[Option<u64>],
    item_bytes: usize,
    options: &PlanOptions,
) -> Result<ChunkPlan> {
    if cuts.iter().all(Option::is_none) {
        return plan(shape, item_bytes, options);
    }
    options.validate(shape)?;
    let unit = Unit {
        lengths: shape.iter().zip(cuts).map(|(n, cut)| cut.unwrap_or(*n).max(1)).collect(),
        cut: cuts.iter().map(Option::is_some).collect(),
        item_bytes: item_bytes as u64,
    };
    let chunk_shape = match &options.chunk_shape {
        Some(chunk) => unit.checked("chunk_shape", chunk)?,
        None if options.reshard_axes.is_empty() => unit.runs(&unit.lengths, options.chunk_bytes),
        None => unit.halved(options),
    };
    let chunk_bytes = elements(&chunk_shape).and_then(|n| n.checked_mul(unit.item_bytes));
    let Some(chunk_bytes) = chunk_bytes.filter(|bytes| *bytes <= CHUNK_BYTES_MAX) else {
        return Err(Error::invalid(format!("a chunk is larger than {CHUNK_BYTES_MAX} bytes"))
            .with("chunk_shape", format!("{chunk_shape:?}")));
    };
    let shard_shape = match &options.shard_shape {
        Some(shard) => Some(unit.checked("shard_shape", shard)?),
        None => unit.shards(&chunk_shape, options.shard_bytes / chunk_bytes.max(1)),
    };
    Ok(ChunkPlan { chunk_shape, shard_shape })
}

/// What lies between two cuts on every axis.
struct Unit {
    lengths: Vec<u64>,
    /// Whether other units follow, so that chunks must divide the length.
    cut: Vec<bool>,
    item_bytes: u64,
}

impl Unit {
    fn checked(&self, name: &'static str, given: &[u64]) -> Result<Vec<u64>> {
        let mut all = self.lengths.iter().zip(&self.cut).zip(given).enumerate();
        match all.find(|(_, ((length, cut), given))| **cut && *length % *given != 0) {
            None => Ok(given.to_vec()),
            Some((axis, ((length, _), _))) => {
                Err(Error::invalid(format!("{name} does not divide the boxes of the writers"))
                    .with(name, format!("{given:?}"))
                    .with("axis", axis)
                    .with("boxes_every", length)
                    .hint("leave the shape out, or give one that divides the boxes"))
            }
        }
    }

    fn bytes(&self, lengths: &[u64]) -> u128 {
        let start = u128::from(self.item_bytes);
        lengths.iter().fold(start, |product, n| product.saturating_mul(u128::from(*n)))
    }

    /// Cuts `whole` into contiguous runs of about `target` bytes.
    fn runs(&self, whole: &[u64], target: u64) -> Vec<u64> {
        let mut chunk = whole.to_vec();
        for axis in 0..chunk.len() {
            let rows = chunk[axis];
            if rows == 1 {
                continue;
            }
            let row = self.bytes(&chunk[axis + 1..]);
            let all = row.saturating_mul(u128::from(rows));
            let parts = all.div_ceil(u128::from(target)).max(1);
            let wanted = u64::try_from(u128::from(rows).div_ceil(parts)).unwrap_or(rows);
            chunk[axis] = match near_divisor(rows, wanted) {
                _ if !self.cut[axis] => wanted,
                Some(divisor) => divisor,
                None if all <= u128::from(WHOLE_BYTES_MAX.max(target)) => rows,
                None => divisor_at_most(rows, wanted),
            };
            if row <= u128::from(target) {
                break;
            }
        }
        chunk
    }

    /// Halves the axes to reshard, the longest first, until a chunk has about the target's size.
    fn halved(&self, options: &PlanOptions) -> Vec<u64> {
        let mut chunk = self.lengths.clone();
        while self.bytes(&chunk) > u128::from(options.chunk_bytes) {
            let asked = options.reshard_axes.iter().copied().rev();
            match asked.max_by_key(|axis| chunk[*axis]) {
                Some(axis) if chunk[axis] > 1 => {
                    let half = chunk[axis].div_ceil(2);
                    let cut = self.cut[axis];
                    chunk[axis] = if cut { divisor_at_most(chunk[axis], half) } else { half };
                }
                _ => return self.runs(&chunk, options.chunk_bytes),
            }
        }
        chunk
    }

    /// Groups chunks into shards of at most `chunks_max` inside the unit; `None` where one chunk is a shard.
    fn shards(&self, chunk: &[u64], chunks_max: u64) -> Option<Vec<u64>> {
        let mut shard = chunk.to_vec();
        let mut left = chunks_max.max(1);
        for axis in (0..chunk.len()).rev() {
            let count = self.lengths[axis].div_ceil(chunk[axis]).max(1);
            if count <= left {
                shard[axis] *= count;
                left /= count;
                continue;
            }
            shard[axis] *= if self.cut[axis] {
                divisor_at_most(count, left)
            } else {
                count.div_ceil(count.div_ceil(left))
            };
            break; // everything before has one chunk, else a shard would not be a run of chunks
        }
        (shard != chunk).then_some(shard)
    }
}

/// Returns the divisor of `n` that is closest below `wanted`, else above it, within [`FACTOR`].
fn near_divisor(n: u64, wanted: u64) -> Option<u64> {
    let quotient = n.div_ceil(wanted.max(1));
    let last = quotient.saturating_mul(FACTOR).min(quotient.saturating_add(QUOTIENTS_MAX)).min(n);
    let below = (quotient..=last).find(|q| n.is_multiple_of(*q));
    let first = (quotient / FACTOR).max(1).max(quotient.saturating_sub(QUOTIENTS_MAX));
    let above = || (first..quotient).rev().find(|q| *q > 1 && n.is_multiple_of(*q));
    below.or_else(above).map(|q| n / q)
}

/// Returns a divisor of `n` of at most `limit`: the largest, if it is found soon.
fn divisor_at_most(n: u64, limit: u64) -> u64 {
    let quotient = n.div_ceil(limit.max(1));
    let mut tried = quotient..=n.min(quotient.saturating_add(QUOTIENTS_MAX));
    tried.find(|q| n.is_multiple_of(*q)).map_or(1, |q| n / q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{Grid, Subset, cover};

    fn sized(chunk_bytes: u64, shard_bytes: u64) -> PlanOptions {
        PlanOptions { chunk_bytes, shard_bytes, ..PlanOptions::default() }
    }

    #[test]
    fn an_array_that_nobody_cuts_gets_the_plan_of_a_single_writer() {
        let options = PlanOptions::default();
        let shape = [50257, 768];
        assert_eq!(
            divide(&shape, &[None, None], 4, &options).unwrap(),
            plan(&shape, 4, &options).unwrap()
        );
    }

    #[test]
    fn shards_end_where_boxes_do() {
        let plan = divide(&[4096, 768], &[Some(1024), None], 4, &PlanOptions::default()).unwrap();
        assert_eq!((plan.chunk_shape, plan.shard_shape), (vec![1024, 768], None));
        let plan =
            divide(&[4096, 7680], &[Some(1024), None], 4, &sized(4 << 20, 64 << 20)).unwrap();
        assert_eq!((plan.chunk_shape, plan.shard_shape), (vec![128, 7680], Some(vec![1024, 7680])));
        // A unit larger than a shard is divided evenly.
        let plan =
            divide(&[4096, 7680], &[Some(1024), None], 4, &sized(4 << 20, 16 << 20)).unwrap();
        assert_eq!(plan.shard_shape, Some(vec![512, 7680]));
        // A prime number of rows stays whole rather than being written row by row.
        let plan = divide(&[30026, 768], &[Some(15013), None], 4, &PlanOptions::default()).unwrap();
        assert_eq!(plan.chunk_shape, [15013, 768]);
    }

    #[test]
    fn shapes_of_the_caller_are_kept_where_they_divide_the_boxes() {
        let shaped = |chunk: Vec<u64>| PlanOptions { chunk_shape: Some(chunk), ..sized(1, 0) };
        let cuts = [Some(6), None];
        let plan = divide(&[12, 10], &cuts, 4, &shaped(vec![3, 7])).unwrap();
        assert_eq!((plan.chunk_shape, plan.shard_shape), (vec![3, 7], None));
        let error = divide(&[12, 10], &cuts, 4, &shaped(vec![4, 10])).unwrap_err();
        assert_eq!(error.get("chunk_shape"), Some("[4, 10]"));
        assert_eq!(error.get("boxes_every"), Some("6"));
    }

    proptest::proptest! {
        #[test]
        fn every_shard_lies_in_one_box(
            lengths in proptest::collection::vec((1u64..30, 1u64..5, 0u64..30), 1..4),
            item_bytes in 1usize..9,
            chunk_bytes in 1u64..2000,
            shard_bytes in 0u64..20_000,
            reshard in proptest::bool::ANY,
        ) {
            // On each axis boxes of one length, the last shorter.
            let shape: Vec<u64> =
                lengths.iter().map(|(n, count, last)| n * count + last % n).collect();
            let every: Vec<u64> = lengths.iter().map(|(n, _, _)| *n).collect();
            let mesh = Grid::new(&shape, &every).unwrap();
            let boxes: Vec<Subset> = mesh.indices().map(|index| mesh.chunk_box(&index)).collect();
            proptest::prop_assert_eq!(cover::check_cover(&shape, &boxes), Ok(()));
            let cuts = cover::cuts(&shape, &boxes);
            let mut options = sized(chunk_bytes, shard_bytes);
            if reshard {
                options.reshard_axes = vec![0];
            }
            let plan = divide(&shape, &cuts, item_bytes, &options).unwrap();
            if let Some(shard) = &plan.shard_shape {
                proptest::prop_assert!(shard.iter().zip(&plan.chunk_shape).all(|(s, c)| s % c == 0));
            }
            let grid = Grid::new(&shape, plan.stored_shape()).unwrap();
            let whole: u64 = boxes.iter().map(|place| grid.intersecting_count(place)).sum();
            proptest::prop_assert_eq!(whole, grid.total());
        }
    }
}
