//! An open safetensors file, and its tensors as providers of boxes.
//!
//! A provider is asked for one box a chunk, on a codec thread. In the default chunk plan a box is one run of the
//! file: one request of up to 4 MiB after the other, through a pooled buffer. A chunk shape of the user's own makes
//! many runs of a box; neighbours whose gap is smaller than what the store says is worth a request are read as
//! one range. Blocking on the store here is safe: its work runs on disk threads or the remote runtime, which
//! never wait for a codec thread.
//!
//! **Invariant:** the header was checked against the size of the file, so every range is inside it; a file that
//! shrinks meanwhile is an error of the store, never zeros.

use crate::{
    array::Provider,
    buffer::Region,
    chunk::Subset,
    error::{Error, Result},
    io::Engine,
    store::{Place, Priority, Span},
    tasks::wait,
};
use milepost_formats::safetensors::{Dtype, Header, Tensor, header_bytes, unpack};
use std::{ops::Range, sync::Arc};

/// The most bytes of one request: what a codec thread holds beside its chunk.
const REQUEST_BYTES_MAX: u64 = 4 << 20;

/// A safetensors file whose header was read and checked.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) place: Place,
    pub(super) header: Header,
}

impl SourceFile {
    /// Reads and checks the header: one question for the size, two requests.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` or `Unsupported`, naming the file.
    pub(super) async fn open(place: &Place) -> Result<Self> {
        Self::read(place).await.map_err(|e| e.with("file", place))
    }

    async fn read(place: &Place) -> Result<Self> {
        let (store, key) = (place.store(), place.prefix());
        let bytes = store.head(key).await?.bytes;
        let prefix = Span::Range { offset: 0, len: bytes.min(8) };
        let prefix = store.get(key, prefix, Priority::Foreground).await?;
        let len = header_bytes(&prefix)?;
        if len > bytes - 8 {
            return Err(Error::corrupt("the header ends beyond the file")
                .with("header_bytes", len)
                .with("file_bytes", bytes));
        }
        let json = store.get(key, Span::Range { offset: 8, len }, Priority::Foreground).await?;
        Ok(Self { place: place.clone(), header: Header::parse(&json, bytes)? })
    }

    /// Returns the file's name in its directory.
    pub(super) fn name(&self) -> &str {
        self.place.name()
    }
}

/// One tensor of an open file, as the source of a leaf.
pub(super) struct TensorSource {
    engine: Arc<Engine>,
    file: Arc<SourceFile>,
    /// Its position in the header.
    position: usize,
}

/// Elements of the tensor that are neighbours, and where they go.
struct Run {
    elements: Range<u64>,
    /// The first element in the box.
    to: u64,
}

impl TensorSource {
    pub(super) fn new(engine: &Arc<Engine>, file: &Arc<SourceFile>, position: usize) -> Self {
        Self { engine: Arc::clone(engine), file: Arc::clone(file), position }
    }

    fn tensor(&self) -> &Tensor {
        &self.file.header.tensors[self.position]
    }

    fn read_box(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        let capabilities = self.file.place.store().capabilities();
        let unit = Unit::of(self.tensor().dtype);
        let bytes_max = REQUEST_BYTES_MAX.min(capabilities.part_bytes as u64).max(4096);
        let elements_max = (bytes_max / unit.bytes).max(1) * unit.elements;
        let gap_max = capabilities.coalesce_gap_bytes / unit.bytes * unit.elements;
        let mut batch: Vec<Run> = Vec::new();
        for run in runs(&self.tensor().shape, subset, elements_max) {
            let joins = match (batch.first(), batch.last()) {
                (Some(first), Some(last)) => {
                    run.elements.start - last.elements.end <= gap_max
                        && run.elements.end - first.elements.start <= elements_max
                }
                _ => true,
            };
            if !joins {
                self.read_runs(&batch, unit, out)?;
                batch.clear();
            }
            batch.push(run);
        }
        self.read_runs(&batch, unit, out)
    }

    /// Reads runs that lie close to each other as one range.
    fn read_runs(&self, runs: &[Run], unit: Unit, out: &mut [u8]) -> Result<()> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        let range = unit.bytes_of(&(first.elements.start..last.elements.end));
        let offset = self.file.header.data_start + self.tensor().begin + range.start;
        let buffer = self.engine.buffers().take(small(range.end - range.start)?)?;
        let parts = vec![Region::from(buffer)];
        let store = self.file.place.store();
        let read = store.read(self.file.place.prefix(), offset, parts, Priority::Foreground);
        let region = wait(read)?.pop().ok_or_else(|| Error::internal("a read lost its region"))?;
        let item_bytes = self.tensor().dtype.data_type().size_bytes();
        for run in runs {
            let mine = unit.bytes_of(&run.elements);
            let from = small(mine.start - range.start)?..small(mine.end - range.start)?;
            let to = small(run.to)? * item_bytes;
            let count = small(run.elements.end - run.elements.start)?;
            unit.copy(&region[from], run, &mut out[to..to + count * item_bytes])?;
        }
        if let Ok(buffer) = region.into_buffer() {
            self.engine.buffers().give(buffer);
        }
        Ok(())
    }
}

impl Provider for TensorSource {
    fn fill(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        self.read_box(subset, out)
            .map_err(|e| e.with("tensor", &self.tensor().name).with("file", &self.file.place))
    }
}

/// The fewest elements that end at a byte, and how many bytes they take in the file.
#[derive(Clone, Copy)]
struct Unit {
    bits: u32,
    elements: u64,
    bytes: u64,
}

impl Unit {
    fn of(dtype: Dtype) -> Self {
        let bits = dtype.bits();
        // F4: 2 elements a byte; F6: 4 in 3 bytes; a whole number of bytes: one element.
        let elements: u32 = if bits.is_multiple_of(8) {
            1
        } else if bits.is_multiple_of(4) {
            2
        } else {
            4
        };
        Self { bits, elements: elements.into(), bytes: (bits * elements / 8).into() }
    }

    /// Returns the bytes of the tensor that hold `elements`.
    fn bytes_of(self, elements: &Range<u64>) -> Range<u64> {
        let first = elements.start / self.elements;
        let last = elements.end.div_ceil(self.elements);
        first * self.bytes..last * self.bytes
    }

    /// Copies a run out of the bytes that hold it, a byte an element where it was packed.
    fn copy(self, bytes: &[u8], run: &Run, out: &mut [u8]) -> Result<()> {
        if self.bits >= 8 {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        let skip = small(run.elements.start % self.elements)?;
        let held = bytes.len() * 8 / self.bits as usize;
        if skip == 0 && held == out.len() {
            unpack(self.bits, bytes, out)?;
            return Ok(());
        }
        let mut whole = vec![0; held];
        unpack(self.bits, bytes, &mut whole)?;
        out.copy_from_slice(&whole[skip..skip + out.len()]);
        Ok(())
    }
}

/// Iterates over the runs of a box in C order, each of at most `elements_max` elements.
fn runs<'a>(
    shape: &'a [u64],
    subset: &'a Subset,
    elements_max: u64,
) -> impl Iterator<Item = Run> + 'a {
    let full = |axis: usize| subset.start()[axis] == 0 && subset.shape()[axis] == shape[axis];
    // The axes from `inner` on are one run: all after it are taken whole.
    let inner = (0..shape.len()).rev().find(|axis| !full(*axis)).unwrap_or(0);
    let run_elements: u64 = subset.shape()[inner.min(shape.len())..].iter().product();
    let outer = &subset.shape()[..inner.min(shape.len())];
    let count: u64 = if subset.is_empty() { 0 } else { outer.iter().product() };
    (0..count).flat_map(move |number| {
        let mut rest = number;
        let mut start = 0;
        let mut stride: u64 = 1;
        for axis in (0..shape.len()).rev() {
            let mut index = subset.start()[axis];
            if axis < inner {
                index += rest % subset.shape()[axis];
                rest /= subset.shape()[axis];
            }
            start += index * stride;
            stride *= shape[axis];
        }
        let cuts = run_elements.div_ceil(elements_max);
        (0..cuts).map(move |cut| {
            let from = cut * elements_max;
            let to = (from + elements_max).min(run_elements);
            Run { elements: start + from..start + to, to: number * run_elements + from }
        })
    })
}

fn small(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::internal("a range exceeds the address space"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_visit_the_elements_of_a_box_in_order_and_none_is_longer_than_asked() {
        let shape = [3, 4, 5];
        for (start, size, max) in [
            (vec![0, 0, 0], vec![3, 4, 5], 7),
            (vec![1, 1, 0], vec![2, 2, 5], 100),
            (vec![1, 0, 0], vec![1, 4, 5], 20),
            (vec![0, 1, 2], vec![3, 2, 2], 1),
            (vec![0, 0, 1], vec![3, 4, 0], 9),
        ] {
            let subset = Subset::new(start.clone(), size.clone()).unwrap();
            let mut wanted = Vec::new();
            for a in 0..size[0] {
                for b in 0..size[1] {
                    for c in 0..size[2] {
                        wanted.push(((start[0] + a) * 4 + start[1] + b) * 5 + start[2] + c);
                    }
                }
            }
            let mut seen = Vec::new();
            for run in runs(&shape, &subset, max) {
                assert_eq!(run.to, seen.len() as u64);
                assert!(run.elements.end - run.elements.start <= max);
                seen.extend(run.elements);
            }
            assert_eq!(seen, wanted, "{subset}");
        }
        let scalar = Subset::whole(&[]).unwrap();
        let all: Vec<u64> = runs(&[], &scalar, 10).flat_map(|run| run.elements).collect();
        assert_eq!(all, [0]);
    }

    #[test]
    fn a_run_inside_packed_elements_takes_the_bytes_around_it() {
        for (bits, dtype) in [(4, Dtype::F4), (6, Dtype::F6E2M3)] {
            let elements: Vec<u8> = (0..16).map(|i| i * 5 % (1 << bits)).collect();
            let mut packed = vec![0; 16 * bits as usize / 8];
            milepost_formats::safetensors::pack(bits, &elements, &mut packed).unwrap();
            let unit = Unit::of(dtype);
            for start in 0..16 {
                for end in start + 1..=16 {
                    let run = Run { elements: start..end, to: 0 };
                    let range = unit.bytes_of(&run.elements);
                    let (from, to) = (small(range.start).unwrap(), small(range.end).unwrap());
                    let mut out = vec![0; small(end - start).unwrap()];
                    unit.copy(&packed[from..to], &run, &mut out).unwrap();
                    assert_eq!(out, elements[small(start).unwrap()..small(end).unwrap()]);
                }
            }
        }
    }
}
