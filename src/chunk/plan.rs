//! The chunk plan: which chunk and shard shapes an array is written with.
//!
//! ```text
//! n    = ⌈bytes / chunk_bytes⌉
//! rows = ⌈rows / n⌉   along the first axis longer than 1
//! ```
//! Where one row exceeds `chunk_bytes` the rows become single and the next axis is cut. So a chunk is one
//! contiguous run of the C-order source, and storing it uncompressed is one straight copy. More than one chunk
//! goes into shards of up to `shard_bytes`; a shard is a contiguous run of chunks in C order.
//!
//! The caller may name the chunk shape, the shard shape, or the axes along which the array will be resharded:
//! those are halved, the longest first, until a chunk is small enough.
//!
//! **Invariant:** a plan depends on its arguments alone; the same array always gets the same chunks.

use super::subset::elements;
use crate::error::{Error, Result};

/// A chunk is decoded in one piece and blosc holds no more in one buffer: just under 2 GiB.
pub(super) const CHUNK_BYTES_MAX: u64 = (1 << 31) - 4096;

/// What the caller may say about the chunks of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlanOptions {
    /// The size a chunk should have, decoded; 4 MiB. Smaller for many small partial reads.
    pub(crate) chunk_bytes: u64,
    /// Shards up to this size, decoded; 256 MiB. 0 stores every chunk as its own object.
    pub(crate) shard_bytes: u64,
    /// The chunk shape itself.
    pub(crate) chunk_shape: Option<Vec<u64>>,
    /// The shard shape itself, a multiple of `chunk_shape`, which it needs.
    pub(crate) shard_shape: Option<Vec<u64>>,
    /// The axes that will be resharded: chunks are cut along these.
    pub(crate) reshard_axes: Vec<usize>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: 4 << 20,
            shard_bytes: 256 << 20,
            chunk_shape: None,
            shard_shape: None,
            reshard_axes: Vec::new(),
        }
    }
}

impl PlanOptions {
    /// Checks the options against the array that they are for.
    ///
    /// # Errors
    /// `Invalid` that names the option.
    pub(crate) fn validate(&self, shape: &[u64]) -> Result<()> {
        if self.chunk_bytes == 0 || self.chunk_bytes > CHUNK_BYTES_MAX {
            return Err(Error::invalid(format!("chunk_bytes is not in 1 to {CHUNK_BYTES_MAX}"))
                .with("chunk_bytes", self.chunk_bytes));
        }
        if let Some(chunk) = &self.chunk_shape {
            check_axes("chunk_shape", chunk, shape)?;
        }
        if let Some(shard) = &self.shard_shape {
            check_axes("shard_shape", shard, shape)?;
            let Some(chunk) = &self.chunk_shape else {
                return Err(Error::invalid("a shard shape needs a chunk shape")
                    .with("shard_shape", format!("{shard:?}")));
            };
            if shard.iter().zip(chunk).any(|(s, c)| s % c != 0) {
                return Err(Error::invalid("the shard shape is no multiple of the chunk shape")
                    .with("shard_shape", format!("{shard:?}"))
                    .with("chunk_shape", format!("{chunk:?}")));
            }
        }
        if let Some(axis) = self.reshard_axes.iter().find(|axis| **axis >= shape.len()) {
            return Err(Error::invalid("an axis to reshard does not exist")
                .with("axis", axis)
                .with("shape", format!("{shape:?}")));
        }
        Ok(())
    }
}

fn check_axes(name: &'static str, given: &[u64], shape: &[u64]) -> Result<()> {
    if given.len() != shape.len() || given.contains(&0) {
        return Err(Error::invalid(format!(
            "{name} has another rank than the array, or an axis of 0"
        ))
        .with(name, format!("{given:?}"))
        .with("shape", format!("{shape:?}")));
    }
    Ok(())
}

/// The shapes that an array is written with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkPlan {
    /// The shape of a chunk, the unit that is encoded.
    pub(crate) chunk_shape: Vec<u64>,
    /// The shape of a shard, a multiple of the chunk's; `None` where each chunk is its own object.
    pub(crate) shard_shape: Option<Vec<u64>>,
}

impl ChunkPlan {
    /// Returns the shape of a stored object: the shard where there is one, else the chunk.
    pub(crate) fn stored_shape(&self) -> &[u64] {
        self.shard_shape.as_deref().unwrap_or(&self.chunk_shape)
    }
}

/// Plans the chunks of an array of `shape` whose elements take `item_bytes`.
///
/// # Errors
/// `Invalid` where an option does not fit the array, or the array does not fit 64 bits.
pub(crate) fn plan(shape: &[u64], item_bytes: usize, options: &PlanOptions) -> Result<ChunkPlan> {
    options.validate(shape)?;
    let item_bytes = item_bytes as u64;
    if elements(shape).and_then(|n| n.checked_mul(item_bytes)).is_none() {
        return Err(Error::invalid("an array has more bytes than 64 bits count")
            .with("shape", format!("{shape:?}")));
    }
    let chunk_shape = match &options.chunk_shape {
        Some(chunk) => chunk.clone(),
        None if options.reshard_axes.is_empty() => runs(shape, item_bytes, options.chunk_bytes),
        None => halved(shape, item_bytes, options),
    };
    let chunk_bytes = elements(&chunk_shape).and_then(|n| n.checked_mul(item_bytes));
    let Some(chunk_bytes) = chunk_bytes.filter(|bytes| *bytes <= CHUNK_BYTES_MAX) else {
        return Err(Error::invalid(format!("a chunk is larger than {CHUNK_BYTES_MAX} bytes"))
            .with("chunk_shape", format!("{chunk_shape:?}")));
    };
    let shard_shape = match &options.shard_shape {
        Some(shard) => Some(shard.clone()),
        None => shards(shape, &chunk_shape, options.shard_bytes / chunk_bytes.max(1)),
    };
    Ok(ChunkPlan { chunk_shape, shard_shape })
}

/// Cuts the array into contiguous runs of about `target` bytes.
fn runs(shape: &[u64], item_bytes: u64, target: u64) -> Vec<u64> {
    let mut chunk: Vec<u64> = shape.iter().map(|n| (*n).max(1)).collect();
    for axis in 0..chunk.len() {
        let rows = chunk[axis];
        if rows == 1 {
            continue;
        }
        let row = chunk[axis + 1..].iter().fold(u128::from(item_bytes), |product, n| {
            product.saturating_mul(u128::from(*n)) // an empty array's other axes may be of any length
        });
        let parts = row.saturating_mul(u128::from(rows)).div_ceil(u128::from(target));
        chunk[axis] = u64::try_from(u128::from(rows).div_ceil(parts.max(1))).unwrap_or(rows);
        if row <= u128::from(target) {
            break;
        }
    }
    chunk
}

/// Halves the axes to reshard, the longest first, until a chunk has about the target's size.
fn halved(shape: &[u64], item_bytes: u64, options: &PlanOptions) -> Vec<u64> {
    let mut chunk: Vec<u64> = shape.iter().map(|n| (*n).max(1)).collect();
    let bytes = |chunk: &[u64]| {
        let lengths = chunk.iter().map(|n| u128::from(*n));
        lengths.fold(u128::from(item_bytes), u128::saturating_mul)
    };
    while bytes(&chunk) > u128::from(options.chunk_bytes) {
        // Of equal lengths the first axis: it costs the runs least.
        let longest = options.reshard_axes.iter().copied().rev().max_by_key(|axis| chunk[*axis]);
        match longest {
            Some(axis) if chunk[axis] > 1 => chunk[axis] = chunk[axis].div_ceil(2),
            _ => return runs(&chunk, item_bytes, options.chunk_bytes),
        }
    }
    chunk
}

/// Groups chunks into shards of at most `chunks_max`, as even as they come; `None` where one chunk is a shard.
fn shards(shape: &[u64], chunk_shape: &[u64], chunks_max: u64) -> Option<Vec<u64>> {
    let mut shard = chunk_shape.to_vec();
    let mut left = chunks_max;
    for axis in (0..shape.len()).rev() {
        let count = shape[axis].div_ceil(chunk_shape[axis]).max(1);
        if count <= left {
            shard[axis] *= count;
            left /= count;
            continue;
        }
        let shards = count.div_ceil(left.max(1));
        shard[axis] *= count.div_ceil(shards);
        break; // everything before has one chunk, else a shard would not be a run of chunks
    }
    (shard != chunk_shape).then_some(shard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{Grid, contiguous_run};

    fn sized(chunk_bytes: u64, shard_bytes: u64) -> PlanOptions {
        PlanOptions { chunk_bytes, shard_bytes, ..PlanOptions::default() }
    }

    fn shapes(
        shape: &[u64],
        item_bytes: usize,
        options: &PlanOptions,
    ) -> (Vec<u64>, Option<Vec<u64>>) {
        let plan = plan(shape, item_bytes, options).unwrap();
        (plan.chunk_shape, plan.shard_shape)
    }

    #[test]
    fn a_small_array_is_one_chunk_without_a_shard() {
        for shape in [vec![], vec![1], vec![768], vec![1024, 1024], vec![1, 1, 7]] {
            assert_eq!(shapes(&shape, 4, &PlanOptions::default()), (shape.clone(), None));
        }
        assert_eq!(shapes(&[3, 0], 4, &PlanOptions::default()), (vec![3, 1], None));
    }

    #[test]
    fn rows_are_cut_evenly_and_chunks_go_into_shards() {
        // GPT-2's embedding: 154 MB, 37 chunks of 1359 rows, one shard.
        let plan = shapes(&[50257, 768], 4, &PlanOptions::default());
        assert_eq!(plan, (vec![1359, 768], Some(vec![1359 * 37, 768])));
        // 100 chunks of which 64 would fit: two shards of 50.
        let plan = shapes(&[100, 1024], 1, &sized(1024, 65_536));
        assert_eq!(plan, (vec![1, 1024], Some(vec![50, 1024])));
        // 1 GiB in 256 chunks: shards of 64.
        let plan = shapes(&[1 << 18, 1024], 4, &PlanOptions::default());
        assert_eq!(plan, (vec![1024, 1024], Some(vec![65536, 1024])));
    }

    #[test]
    fn a_row_beyond_the_target_is_cut_itself() {
        let plan = shapes(&[1, 3, 1000, 10], 1, &sized(2500, 6000));
        assert_eq!(plan, (vec![1, 1, 250, 10], Some(vec![1, 1, 500, 10])));
        assert_eq!(shapes(&[4], 100, &sized(10, 0)), (vec![1], None));
    }

    #[test]
    fn an_empty_array_gets_a_bounded_chunk() {
        let plan = plan(&[0, 1 << 40, 1 << 40], 8, &PlanOptions::default()).unwrap();
        assert!(elements(&plan.chunk_shape).unwrap() * 8 <= 4 << 20);
    }

    #[test]
    fn the_callers_shapes_are_kept() {
        let mut options = PlanOptions { chunk_shape: Some(vec![3, 100]), ..sized(1, 0) };
        assert_eq!(shapes(&[7, 10], 4, &options), (vec![3, 100], None));
        options.shard_shape = Some(vec![9, 200]);
        assert_eq!(shapes(&[7, 10], 4, &options), (vec![3, 100], Some(vec![9, 200])));
        let options = PlanOptions { reshard_axes: vec![1, 2], ..sized(4000, 0) };
        assert_eq!(shapes(&[10, 100, 40], 1, &options), (vec![10, 13, 20], None));
        let options = PlanOptions { reshard_axes: vec![1], ..sized(10, 0) };
        assert_eq!(shapes(&[100, 4], 1, &options), (vec![10, 1], None));
    }

    #[test]
    fn options_that_do_not_fit_are_refused_by_name() {
        let plain = PlanOptions::default;
        for (options, name) in [
            (PlanOptions { chunk_bytes: 0, ..plain() }, "chunk_bytes"),
            (PlanOptions { chunk_bytes: u64::MAX, ..plain() }, "chunk_bytes"),
            (PlanOptions { chunk_shape: Some(vec![1]), ..plain() }, "chunk_shape"),
            (PlanOptions { chunk_shape: Some(vec![1, 0]), ..plain() }, "chunk_shape"),
            (PlanOptions { chunk_shape: Some(vec![1 << 31, 1]), ..plain() }, "chunk_shape"),
            (PlanOptions { shard_shape: Some(vec![1, 1]), ..plain() }, "shard_shape"),
            (
                PlanOptions {
                    chunk_shape: Some(vec![2, 2]),
                    shard_shape: Some(vec![4, 3]),
                    ..plain()
                },
                "shard_shape",
            ),
            (PlanOptions { reshard_axes: vec![2], ..plain() }, "axis"),
        ] {
            let error = plan(&[8, 8], 4, &options).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid);
            assert!(error.get(name).is_some(), "{error} names {name}");
        }
        plan(&[1 << 62], 8, &plain()).unwrap_err();
    }

    proptest::proptest! {
        #[test]
        fn chunks_and_shards_are_small_runs_that_cover_the_array_once(
            shape in proptest::collection::vec(1u64..40, 0..5),
            item_bytes in 1usize..9,
            chunk_bytes in 1u64..2000,
            shard_bytes in 0u64..20_000,
        ) {
            let plan = plan(&shape, item_bytes, &sized(chunk_bytes, shard_bytes)).unwrap();
            let bytes = |shape: &[u64]| elements(shape).unwrap() * item_bytes as u64;
            let cut = plan.chunk_shape.iter().position(|n| *n > 1).unwrap_or(shape.len());
            let row = bytes(plan.chunk_shape.get(cut + 1..).unwrap_or(&[]));
            proptest::prop_assert!(bytes(&plan.chunk_shape) < chunk_bytes + row.max(item_bytes as u64));
            if let Some(shard) = &plan.shard_shape {
                proptest::prop_assert!(bytes(shard) <= shard_bytes);
                proptest::prop_assert!(shard.iter().zip(&plan.chunk_shape).all(|(s, c)| s % c == 0));
            }
            for unit in [plan.chunk_shape.as_slice(), plan.stored_shape()] {
                let grid = Grid::new(&shape, unit).unwrap();
                let mut next = 0;
                for index in grid.indices() {
                    let run = contiguous_run(&shape, &grid.chunk_box(&index)).unwrap();
                    proptest::prop_assert_eq!(run.start, next);
                    next = run.end;
                }
                proptest::prop_assert_eq!(next, elements(&shape).unwrap());
            }
        }
    }
}
