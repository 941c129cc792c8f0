//! One leaf of a checkpoint, or one array of foreign Zarr, open for reading.

use super::reader::Checkpoint;
use crate::{
    array::{
        Element, check_element, leaf_bytes,
        open::OpenArray,
        read::{Destination, Reads, plan},
    },
    buffer::Buffer,
    chunk::{Selection, Subset},
    codec::{Cast, CastRule},
    dtype::DataType,
    error::{Error, Result},
    io::read::{Context, read_all, read_whole},
    tasks::wait,
};
use milepost_formats::index::LeafKind;

/// An array in memory: little endian, C order.
#[derive(Debug)]
pub struct ArrayData {
    /// What it was in the caller's language.
    pub kind: LeafKind,
    /// The data type of the elements.
    pub data_type: DataType,
    /// The shape in elements.
    pub shape: Vec<u64>,
    /// The elements.
    pub bytes: Buffer,
}

impl ArrayData {
    /// Copies the elements into a vector.
    ///
    /// # Errors
    /// `Invalid` where the data type is not that of `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        check_element::<T>(self.data_type)?;
        Ok(T::from_bytes(&self.bytes))
    }

    /// Converts the elements to `data_type`, where `rule` allows it.
    ///
    /// # Errors
    /// `Invalid` where the rule does not allow the cast or an integer does not fit.
    pub fn cast(&self, data_type: DataType, rule: CastRule) -> Result<Self> {
        let cast = Cast::new(self.data_type, data_type, rule)?;
        let mut bytes = allocate(data_type, &self.shape)?;
        cast.apply(&self.bytes, &mut bytes)?;
        Ok(Self { kind: self.kind.clone(), data_type, shape: self.shape.clone(), bytes })
    }
}

/// An open array; reading it costs its own chunks only.
#[derive(Debug)]
pub struct LeafHandle {
    context: Context,
    array: OpenArray,
    kind: LeafKind,
    data_type: Option<DataType>,
    checkpoint: Option<Checkpoint>,
}

impl LeafHandle {
    /// Opens an array; `data_type` is the logical one where the stored one is another.
    pub(crate) fn new(
        context: Context,
        array: OpenArray,
        kind: LeafKind,
        data_type: Option<DataType>,
    ) -> Self {
        let data_type = data_type.or(array.data_type);
        Self { context, array, kind, data_type, checkpoint: None }
    }

    /// Names the checkpoint that the leaf is of, for errors.
    pub(crate) fn of(mut self, checkpoint: &Checkpoint) -> Self {
        self.checkpoint = Some(checkpoint.clone());
        self
    }

    fn blame(&self, error: Error) -> Error {
        let error = error.with("leaf", self.path());
        match &self.checkpoint {
            Some(checkpoint) => checkpoint.blame(error),
            None => error,
        }
    }

    /// Says of a failure where it was, and that it is no damage where the checkpoint was replaced.
    async fn explained<T>(&self, read: Result<T>) -> Result<T> {
        let error = match read {
            Ok(read) => return Ok(read),
            Err(error) => self.blame(error),
        };
        Err(match &self.checkpoint {
            Some(checkpoint) => checkpoint.explain(error).await,
            None => error,
        })
    }

    /// Returns the key path in its text form.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.array.leaf
    }

    /// Returns the shape in elements.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.array.shape
    }

    /// Returns what the leaf was in the caller's language.
    #[must_use]
    pub fn kind(&self) -> &LeafKind {
        &self.kind
    }

    /// Returns the logical data type; `None` where it is none of ours.
    #[must_use]
    pub fn data_type(&self) -> Option<DataType> {
        self.data_type
    }

    /// Parses numpy-like slice text (`0:10,:,::2,-1,...`) against the shape.
    ///
    /// # Errors
    /// `Invalid` names the axis and its size.
    pub fn select(&self, text: &str) -> Result<Selection> {
        Selection::parse(text, self.shape()).map_err(|e| e.with("leaf", self.path()))
    }

    /// Reads the whole array.
    ///
    /// # Errors
    /// `Corrupt` names leaf, chunk and object, `Conflict` where that is of another checkpoint by now; the store's errors.
    pub async fn read(&self) -> Result<ArrayData> {
        self.read_box(&Subset::whole(self.shape())?).await
    }

    /// Reads a box; only the chunks that hold an element of it.
    ///
    /// # Errors
    /// `Invalid` where the box is not inside the array; else as [`LeafHandle::read`].
    pub async fn read_box(&self, subset: &Subset) -> Result<ArrayData> {
        self.read_as(subset, None, CastRule::SameKind).await
    }

    /// Reads a box and converts it to `data_type` (`None`: as stored), where `rule` allows it.
    ///
    /// # Errors
    /// `Invalid` where the rule does not allow the cast; else as [`LeafHandle::read_box`].
    pub async fn read_as(
        &self,
        subset: &Subset,
        data_type: Option<DataType>,
        rule: CastRule,
    ) -> Result<ArrayData> {
        self.explained(self.read_cast(subset, data_type, rule).await).await
    }

    async fn read_cast(
        &self,
        subset: &Subset,
        data_type: Option<DataType>,
        rule: CastRule,
    ) -> Result<ArrayData> {
        let stored = self.data_type().ok_or_else(|| {
            Error::unsupported("the data type has no counterpart here").with("leaf", self.path())
        })?;
        let wanted = data_type.unwrap_or(stored);
        let cast = if wanted == stored {
            None
        } else {
            Some(Cast::new(stored, wanted, rule).map_err(|e| e.with("leaf", self.path()))?)
        };
        if !subset.fits(self.shape()) {
            return Err(Error::invalid("the box is not inside the array")
                .with("leaf", self.path())
                .with("box", subset)
                .with("shape", format!("{:?}", self.shape())));
        }
        let chunks = self.array.count_chunks(subset)?;
        let buffer = allocate(wanted, subset.shape())?;
        let bytes = subset.elements() * self.array.item_bytes as u64;
        self.context.progress.plan(1, chunks, bytes);
        let reads = plan(&self.context, &self.array, subset, buffer, cast).await?;
        let bytes = run(&self.context, vec![reads]).await?.remove(0);
        let shape = subset.shape().to_vec();
        Ok(ArrayData { kind: self.kind.clone(), data_type: wanted, shape, bytes })
    }

    /// Reads a box into memory that the caller hands over and gets back: `buffer` is reused, not allocated.
    ///
    /// # Errors
    /// `Invalid` where the buffer is not as long as the box; else as [`LeafHandle::read_box`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the buffer up; it is freed when the last read into it returns.
    pub async fn read_into(&self, subset: &Subset, buffer: Buffer) -> Result<Buffer> {
        let wanted = subset.elements().saturating_mul(self.array.item_bytes as u64);
        if !subset.fits(self.shape()) || buffer.len() as u64 != wanted {
            return Err(self.blame(
                Error::invalid("the box is not inside the array, or the buffer not as long as it")
                    .with("leaf", self.path())
                    .with("box", subset)
                    .with("shape", format!("{:?}", self.shape()))
                    .with("bytes", buffer.len())
                    .with("wanted", wanted),
            ));
        }
        self.explained(self.fill(subset, buffer).await).await
    }

    async fn fill(&self, subset: &Subset, buffer: Buffer) -> Result<Buffer> {
        self.array.count_chunks(subset)?;
        let reads = plan(&self.context, &self.array, subset, buffer, None).await?;
        Ok(run(&self.context, vec![reads]).await?.remove(0))
    }

    /// Reads a box as stored; the caller has told the progress what is to come.
    pub(crate) async fn read_planned(&self, subset: &Subset) -> Result<Buffer> {
        self.explained(self.read_stored(subset).await).await
    }

    async fn read_stored(&self, subset: &Subset) -> Result<Buffer> {
        let stored = self.data_type().ok_or_else(|| {
            Error::unsupported("the data type has no counterpart here").with("leaf", self.path())
        })?;
        self.array.count_chunks(subset)?;
        let buffer = allocate(stored, subset.shape())?;
        self.fill(subset, buffer).await
    }

    /// Reads a selection: its box, of which steps are picked and single indices drop their axis.
    ///
    /// # Errors
    /// As [`LeafHandle::read_box`].
    pub async fn read_selection(&self, selection: &Selection) -> Result<ArrayData> {
        let mut data = self.read_box(&selection.subset).await?;
        data.shape = selection.shape();
        if !selection.is_whole_box() {
            let picked = selection.pick(&data.bytes, data.data_type.size_bytes());
            data.bytes = Buffer::from(&picked[..]);
        }
        Ok(data)
    }

    /// Reads the whole array on the calling thread; as [`LeafHandle::read`].
    ///
    /// # Errors
    /// As [`LeafHandle::read`].
    pub fn read_blocking(&self) -> Result<ArrayData> {
        wait(self.read())
    }

    /// Reads a selection on the calling thread; as [`LeafHandle::read_selection`].
    ///
    /// # Errors
    /// As [`LeafHandle::read_selection`].
    pub fn read_selection_blocking(&self, selection: &Selection) -> Result<ArrayData> {
        wait(self.read_selection(selection))
    }

    /// Divides the array into boxes of at most `bytes_max` decoded bytes, in C order.
    ///
    /// Each is one contiguous run of the array, so writing one after the other writes the array. Boxes end on
    /// chunk boundaries where a chunk fits, so that no chunk is read twice.
    #[must_use]
    pub fn slabs(&self, bytes_max: u64) -> Vec<Subset> {
        let chunk = self.array.chunk_shape();
        let chunk = if chunk.is_empty() { vec![1; self.shape().len()] } else { chunk.to_vec() };
        slabs(self.shape(), &chunk, (bytes_max / self.array.item_bytes.max(1) as u64).max(1))
    }
}

/// Allocates the destination of a box; a size that only a hostile document claims costs address space alone.
pub(crate) fn allocate(data_type: DataType, shape: &[u64]) -> Result<Buffer> {
    let bytes = leaf_bytes(data_type, shape)?;
    usize::try_from(bytes)
        .ok()
        .and_then(Buffer::try_zeroed)
        .ok_or_else(|| Error::unavailable("no memory for an array").with("bytes", bytes))
}

/// Runs the reads of several arrays as one plan and returns their destinations, in order.
pub(crate) async fn run(context: &Context, reads: Vec<Reads>) -> Result<Vec<Buffer>> {
    let (mut ranged, mut whole, mut destinations) = (Vec::new(), Vec::new(), Vec::new());
    for mut reads in reads {
        ranged.append(&mut reads.ranged);
        whole.append(&mut reads.whole);
        destinations.push(reads.destination);
    }
    futures::future::try_join(read_all(context, ranged), read_whole(context, whole)).await?;
    destinations.into_iter().map(Destination::into_buffer).collect()
}

fn slabs(shape: &[u64], chunk: &[u64], elements_max: u64) -> Vec<Subset> {
    let total: u64 = shape.iter().product();
    if total <= elements_max || shape.is_empty() {
        return Subset::whole(shape).into_iter().filter(|s| !s.is_empty()).collect();
    }
    // The first axis whose single step fits is divided; all before it are walked one by one.
    let below = |axis: usize| shape[axis + 1..].iter().product::<u64>();
    let axis =
        (0..shape.len()).find(|axis| below(*axis) <= elements_max).unwrap_or(shape.len() - 1);
    let fits = (elements_max / below(axis).max(1)).max(1);
    let step = if fits >= chunk[axis] { fits - fits % chunk[axis] } else { fits };
    let mut slabs = Vec::new();
    let mut outer = vec![0; axis];
    loop {
        let mut at = 0;
        while at < shape[axis] {
            let mut start = outer.clone();
            start.push(at);
            start.resize(shape.len(), 0);
            let mut size = vec![1; axis];
            size.push(step.min(shape[axis] - at));
            size.extend_from_slice(&shape[axis + 1..]);
            slabs.extend(Subset::new(start, size));
            at += step;
        }
        let Some(next) = (0..axis).rev().find(|i| outer[*i] + 1 < shape[*i]) else { return slabs };
        outer[next] += 1;
        outer[next + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::slabs;

    #[test]
    fn slabs_cover_the_array_once_in_c_order_within_their_limit() {
        for (shape, chunk, max) in [
            (vec![10, 4], vec![3, 4], 13),
            (vec![10, 4], vec![3, 4], 3),
            (vec![2, 3, 5], vec![1, 1, 2], 4),
            (vec![7], vec![2], 100),
            (vec![], vec![], 1),
            (vec![0, 3], vec![1, 3], 1),
        ] {
            let slabs = slabs(&shape, &chunk, max);
            let mut next = 0;
            for slab in &slabs {
                assert!(slab.elements() <= max || shape.is_empty(), "{slab:?} of {shape:?}");
                let run = crate::chunk::contiguous_run(&shape, slab).expect("a run");
                assert_eq!(run.start, next);
                next = run.end;
            }
            assert_eq!(next, shape.iter().product::<u64>());
        }
    }
}
