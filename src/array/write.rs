//! Turns a leaf into objects: which chunks go where, and what fills each when its turn comes.
//!
//! Uncompressed chunks that are a contiguous run of the source are copied once, into the staging memory they are
//! written from, and checksummed in that pass. Every in-bounds chunk is written, zeros too: in our steps a missing
//! chunk is corruption. Chunks wholly outside the array are absent from the shard index.

use super::source::{Leaf, Source};
use crate::{
    chunk::{Block, BlockMut, ChunkPlan, Grid, Subset, contiguous_run, gather},
    codec::{
        self, CRC32C_BYTES, Chain, content_hash, content_hash_of_chunks, copy_crc32c_xxh3, crc32c,
        crc32c_append, crc32c_combine, crc32c_zeros,
    },
    error::{Error, Result},
    io::write::{Body, Encoded, Extent, ObjectPlan, Part, Tail, Written},
};
use bytes::Bytes;
use milepost_formats::{
    index::Object,
    zarr3::{ArrayDocument, ShardIndex},
};
use std::sync::Arc;

/// In a shard whose decoded chunks have at least this size, every chunk starts on a page.
///
/// A page of padding a chunk is then at most 1.6 %, and direct reads need no bounce copy.
pub(crate) const ALIGNED_CHUNK_BYTES_MIN: u64 = 256 * 1024;

/// What all chunks of one leaf share while it is written.
struct Shared {
    source: Source,
    shape: Vec<u64>,
    item_bytes: usize,
    grid: Grid,
    chunk_shape: Vec<u64>,
    chain: Chain,
    leaf: String,
}

/// A leaf ready to be written.
pub(crate) struct LeafPlan {
    shared: Arc<Shared>,
    stored_grid: Grid,
    shard_counts: Option<Vec<u64>>,
    document: ArrayDocument,
}

impl LeafPlan {
    /// Plans the chunks of `leaf`, whose document is `document`.
    pub(crate) fn new(
        path: &str,
        leaf: &Leaf,
        plan: &ChunkPlan,
        document: ArrayDocument,
    ) -> Result<Self> {
        let item_bytes = leaf.data_type.size_bytes();
        let chain = Chain::new(&document.codecs.chain, document.data_type, &plan.chunk_shape)?;
        let shared = Shared {
            source: leaf.source.clone(),
            shape: leaf.shape.clone(),
            item_bytes,
            grid: Grid::new(&leaf.shape, &plan.chunk_shape)?,
            chunk_shape: plan.chunk_shape.clone(),
            chain,
            leaf: path.to_owned(),
        };
        let stored_grid = Grid::new(&leaf.shape, plan.stored_shape())?;
        let shard_counts = plan
            .shard_shape
            .as_ref()
            .map(|shard| shard.iter().zip(&plan.chunk_shape).map(|(s, c)| s / c).collect());
        Ok(Self { shared: Arc::new(shared), stored_grid, shard_counts, document })
    }

    /// Returns the number of chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.shared.grid.total()
    }

    /// Returns the number of stored objects.
    pub(crate) fn stored_objects(&self) -> usize {
        small(self.stored_grid.total())
    }

    /// Lets go of the data: nothing of it is written from here any more.
    pub(crate) fn release(&mut self) {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.source = Source::Memory(Bytes::new());
        }
    }

    /// Returns one plan a stored object, in C order; `key` gives an object's full key.
    pub(crate) fn objects(&self, key: impl Fn(&str) -> String) -> Vec<ObjectPlan> {
        self.stored_grid.indices().map(|index| self.object(index, &key)).collect()
    }

    /// Returns the plans of the objects in `boxes`, none of which shares one, with their numbers in C order.
    pub(crate) fn objects_in(
        &self,
        boxes: &[Subset],
        key: impl Fn(&str) -> String,
    ) -> Vec<(u64, ObjectPlan)> {
        let indices = boxes.iter().flat_map(|place| self.stored_grid.intersecting(place));
        indices.map(|index| (self.stored_grid.linear(&index), self.object(index, &key))).collect()
    }

    fn object(&self, index: Vec<u64>, key: impl Fn(&str) -> String) -> ObjectPlan {
        let aligned = self.shared.chain.decoded_bytes() as u64 >= ALIGNED_CHUNK_BYTES_MIN;
        let key = key(&self.document.object_key(&index));
        let (parts, tail) = match &self.shard_counts {
            None => (vec![self.part(index)], no_tail()),
            Some(counts) => self.shard(&index, counts),
        };
        ObjectPlan { key, body: Body::Parts { parts, aligned, tail } }
    }

    fn shard(&self, shard: &[u64], counts: &[u64]) -> (Vec<Part>, Tail) {
        let chunk_counts = self.shared.grid.counts();
        let mut present = Vec::new();
        let mut parts = Vec::new();
        let local = Grid::new(counts, &vec![1; counts.len()]).expect("counts of a valid shard");
        for inner in local.indices() {
            let chunk: Vec<u64> =
                shard.iter().zip(counts).zip(&inner).map(|((s, n), i)| s * n + i).collect();
            let inside = chunk.iter().zip(chunk_counts).all(|(i, n)| i < n);
            present.push(inside);
            if inside {
                parts.push(self.part(chunk));
            }
        }
        let crc32c = self.document.codecs.sharding.as_ref().is_some_and(|s| s.index_crc32c);
        let tail = move |extents: &[Extent]| {
            let mut extents = extents.iter();
            let entry = |inside: bool| {
                let extent = if inside { extents.next() } else { None };
                extent.map(|e| (e.offset, e.encoded.bytes as u64))
            };
            let entries = present.into_iter().map(entry).collect();
            Bytes::from(ShardIndex { entries }.to_bytes(crc32c))
        };
        (parts, Box::new(tail))
    }

    fn part(&self, chunk: Vec<u64>) -> Part {
        let shared = Arc::clone(&self.shared);
        let subset = shared.grid.chunk_box(&chunk);
        let raw_bytes = subset.elements() * shared.item_bytes as u64;
        let scratch_bytes = shared.scratch_bytes(&subset);
        let produce = move |out: &mut [u8]| {
            shared
                .encode(&subset, out)
                .map_err(|e| e.with("leaf", &shared.leaf).with("chunk", super::chunk_name(&chunk)))
        };
        Part {
            bytes_max: self.shared.chain.encoded_bytes_max(),
            scratch_bytes,
            raw_bytes,
            produce: Box::new(produce),
        }
    }

    /// Returns size and checksums of the stored objects, in C order.
    pub(crate) fn stored(&self, written: &[Written]) -> Vec<Object> {
        let sharded = self.shard_counts.is_some();
        written.iter().map(|written| stored_object(written, sharded)).collect()
    }
}

fn no_tail() -> Tail {
    Box::new(|_| Bytes::new())
}

/// Returns the content hash of an object from those of its chunks.
pub(crate) fn object_hash(digests: &[u128], sharded: bool) -> u128 {
    match digests {
        [only] if !sharded => *only,
        _ => content_hash_of_chunks(digests),
    }
}

/// Combines the checksums of an object's parts, the gaps and its tail without a second pass.
fn stored_object(written: &Written, sharded: bool) -> Object {
    let mut crc = 0;
    let mut end = 0;
    for extent in &written.extents {
        crc = crc32c_zeros(crc, extent.offset - end);
        let bytes = extent.encoded.bytes as u64;
        crc = crc32c_combine(crc, extent.encoded.crc32c, bytes);
        end = extent.offset + bytes;
    }
    crc = crc32c_zeros(crc, written.bytes - written.tail.len() as u64 - end);
    crc = crc32c_append(crc, &written.tail);
    let digests: Vec<u128> = written.extents.iter().map(|e| e.encoded.content).collect();
    let content = object_hash(&digests, sharded);
    Object { bytes: written.bytes, crc32c: crc, content: Some(content) }
}

impl Shared {
    /// Encodes one chunk into `out`.
    fn encode(&self, subset: &Subset, out: &mut [u8]) -> Result<Encoded> {
        let chunk_bytes = self.chain.decoded_bytes();
        let inside = small(subset.elements()) * self.item_bytes;
        if let Some(run) = self.run(subset) {
            if inside == chunk_bytes {
                return Ok(summed(self.chain.encode_summed(run, out)?));
            }
            if self.chain.is_plain() {
                // One pass: copied, checksummed and hashed while it is in cache.
                let (crc, content) = copy_crc32c_xxh3(run, &mut out[..inside]);
                return Ok(self.seal(inside, (crc, content), out));
            }
        }
        if self.chain.is_plain() && self.starts_chunk(subset) {
            self.gather(subset, &mut out[..inside])?;
            let sums = (crc32c(&out[..inside]), content_hash(&out[..inside]));
            return Ok(self.seal(inside, sums, out));
        }
        let mut inner = vec![0; inside];
        self.gather(subset, &mut inner)?;
        if inside == chunk_bytes {
            return Ok(summed(self.chain.encode_summed(&inner, out)?));
        }
        let mut chunk = vec![0; chunk_bytes];
        let whole = Subset::whole(subset.shape())?;
        let mut target = BlockMut::new(&mut chunk, &self.chunk_shape, self.item_bytes);
        gather(Block::new(&inner, subset.shape(), self.item_bytes), &whole, &mut target);
        let bytes = self.chain.encode_into(&chunk, out)?;
        Ok(Encoded { bytes, crc32c: crc32c(&out[..bytes]), content: content_hash(&inner) })
    }

    /// Returns how much memory [`Shared::encode`] takes for a chunk beside its output.
    fn scratch_bytes(&self, subset: &Subset) -> usize {
        let chunk_bytes = self.chain.decoded_bytes();
        let inside = small(subset.elements()) * self.item_bytes;
        let in_place = self.chain.is_plain() && self.starts_chunk(subset);
        let whole_run = inside == chunk_bytes && self.run(subset).is_some();
        match (in_place || whole_run, inside == chunk_bytes) {
            (true, _) => 0,
            (false, true) => inside,
            (false, false) => inside + chunk_bytes,
        }
    }

    /// Tells whether the elements of the chunk that exist are a run at its start.
    fn starts_chunk(&self, subset: &Subset) -> bool {
        Subset::whole(subset.shape())
            .is_ok_and(|origin| contiguous_run(&self.chunk_shape, &origin).is_some())
    }

    /// Returns the source bytes of the chunk where they are one run that also starts the chunk.
    fn run(&self, subset: &Subset) -> Option<&[u8]> {
        let Source::Memory(bytes) = &self.source else { return None };
        let run = contiguous_run(&self.shape, subset).filter(|_| self.starts_chunk(subset))?;
        bytes.get(small(run.start) * self.item_bytes..small(run.end) * self.item_bytes)
    }

    fn gather(&self, subset: &Subset, out: &mut [u8]) -> Result<()> {
        match &self.source {
            Source::Memory(bytes) => {
                let source = Block::new(bytes, &self.shape, self.item_bytes);
                gather(source, subset, &mut BlockMut::new(out, subset.shape(), self.item_bytes));
                Ok(())
            }
            Source::Provider(provider) => provider.fill(subset, out),
            Source::Borrowed(_) => {
                Err(Error::invalid("a leaf borrows memory that was not lent to this save")
                    .hint("start the save with the `Borrowed` that the leaf was made with"))
            }
        }
    }

    /// Ends a plain chunk, of which `inside` bytes lie in `out`, with zeros and its checksum.
    fn seal(&self, inside: usize, (crc, content): (u32, u128), out: &mut [u8]) -> Encoded {
        let chunk_bytes = self.chain.decoded_bytes();
        out[inside..chunk_bytes].fill(0);
        let crc = crc32c_zeros(crc, (chunk_bytes - inside) as u64);
        if !self.chain.has_crc32c() {
            return Encoded { bytes: chunk_bytes, crc32c: crc, content };
        }
        let end = chunk_bytes + CRC32C_BYTES;
        out[chunk_bytes..end].copy_from_slice(&crc.to_le_bytes());
        let crc32c = crc32c_append(crc, &out[chunk_bytes..end]);
        Encoded { bytes: end, crc32c, content }
    }
}

/// `io` knows no codecs, so it has its own word for what one gave.
fn summed(encoded: codec::Encoded) -> Encoded {
    let codec::Encoded { bytes, crc32c, content } = encoded;
    Encoded { bytes, crc32c, content }
}

/// A count of what is in memory.
fn small(n: u64) -> usize {
    usize::try_from(n).expect("the bytes of a leaf fit the address space (leaf_bytes)")
}
