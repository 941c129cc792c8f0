//! Plans the reads of one array: which byte ranges of which objects fill which part of the destination.
//!
//! Two modes. *Direct*: nothing is to be transformed and every chunk's wanted elements are one run, so the
//! destination is cut into regions and bytes are read straight into them; only checksums go to scratch.
//! *Scatter*: chunks are read into scratch, decoded, cast and copied to their boxes of a shared destination, or
//! decoded straight into it where a chunk is one run of it.
//!
//! Shard indexes are fetched first, all at once; then every range of every array of a plan is merged and read
//! together. Chunks whose stored size is not known (compressed, no index at hand) and chunks that may be missing
//! are fetched whole.

use super::open::{Format, Missing, OpenArray, Ours};
use crate::{
    buffer::{Buffer, Region},
    chunk::{Block, Part, SharedTarget, Subset, contiguous_run},
    codec::{CRC32C_BYTES, Cast, Chain, ForeignArray, crc32c_append},
    error::{Error, ErrorKind, Result},
    io::read::{Context, Finish, Piece, ReadItem, WholeItem, read_all, read_whole},
    store::Span,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use milepost_formats::zarr3::{IndexLocation, ShardIndex};
use std::{collections::HashMap, sync::Arc};

/// Beyond this a claimed stored size of a chunk is not believed, per decoded byte.
const EXPANSION_MAX: u64 = 2;
const EXPANSION_SLACK_BYTES: u64 = 1 << 20;
/// Foreign shards have indexes of their own, nested ones several.
const FOREIGN_SLACK_BYTES: u64 = 64 << 20;

/// The reads of one array, and how its destination comes back.
pub(crate) struct Reads {
    pub(crate) ranged: Vec<ReadItem>,
    pub(crate) whole: Vec<WholeItem>,
    pub(crate) destination: Destination,
}

/// Holds the destination while its parts are filled.
pub(crate) enum Destination {
    /// An empty region of the buffer whose other regions are being filled.
    Direct(Region),
    Scatter(SharedTarget),
}

impl Destination {
    /// Gives the filled buffer back, once all reads are done and dropped.
    pub(crate) fn into_buffer(self) -> Result<Buffer> {
        let region = match self {
            Self::Direct(region) => Ok(region),
            Self::Scatter(target) => target.into_region().map_err(drop),
        };
        region
            .and_then(|region| region.into_buffer().map_err(drop))
            .map_err(|()| Error::internal("a part of a destination outlives its read"))
    }
}

/// Plans the reads of `subset` of `array` into `buffer`, which is as long as the box (in the type cast to).
pub(crate) async fn plan(
    context: &Context,
    array: &OpenArray,
    subset: &Subset,
    buffer: Buffer,
    cast: Option<Cast>,
) -> Result<Reads> {
    check_sizes(array, subset, &buffer, cast)?;
    let region = Region::from(buffer);
    match &array.format {
        Format::Ours(ours) => {
            let direct = cast.is_none() && ours.chain.is_plain() && all_runs(array, subset);
            let located = locate(context, array, ours, subset).await?;
            if direct {
                read_direct(array, ours, subset, region, located)
            } else {
                read_scattered(array, ours, (subset, region, cast), located)
            }
        }
        Format::Foreign(foreign) => read_foreign(array, foreign, subset, region, cast),
    }
}

/// Refuses a logical type, or a type to cast from, that has another size than the stored one.
fn check_sizes(
    array: &OpenArray,
    subset: &Subset,
    buffer: &Buffer,
    cast: Option<Cast>,
) -> Result<()> {
    let item_bytes = cast.map_or(array.item_bytes, |c| c.to().size_bytes());
    let from_bytes = cast.map_or(array.item_bytes, |c| c.from().size_bytes());
    let wanted = subset.elements().checked_mul(item_bytes as u64);
    if wanted != Some(buffer.len() as u64) || from_bytes != array.item_bytes {
        return Err(Error::corrupt("the stored data type has not the size of the logical one")
            .with("leaf", &array.leaf));
    }
    Ok(())
}

fn all_runs(array: &OpenArray, subset: &Subset) -> bool {
    array.missing == Missing::Corrupt
        && array.grid.intersecting(subset).all(|chunk| {
            let chunk_box = array.grid.chunk_box(&chunk);
            let Some(both) = chunk_box.intersection(subset) else { return true };
            contiguous_run(array.chunk_shape(), &both.relative_to(&chunk_box)).is_some()
                && contiguous_run(subset.shape(), &both.relative_to(subset)).is_some()
        })
}

/// Where the stored bytes of a chunk are.
enum Located {
    Range {
        key: Arc<str>,
        offset: u64,
        len: u64,
    },
    /// The whole object, of unknown size or perhaps not there.
    Object {
        key: Arc<str>,
    },
    Missing,
}

/// Finds the stored bytes of every chunk that intersects `subset`, in C order of the chunks.
async fn locate(
    context: &Context,
    array: &OpenArray,
    ours: &Ours,
    subset: &Subset,
) -> Result<Vec<Located>> {
    let Some(sharding) = &ours.document.codecs.sharding else {
        let chunks = array.grid.intersecting(subset);
        return Ok(chunks.map(|chunk| locate_object(array, ours, &chunk)).collect());
    };
    let counts = ours.document.chunks_per_shard();
    let mut shards: Shards = HashMap::new();
    let mut wanted = Vec::new();
    for chunk in array.grid.intersecting(subset) {
        let shard: Vec<u64> = chunk.iter().zip(&counts).map(|(i, n)| i / n).collect();
        if shards.contains_key(&shard) {
            continue;
        }
        let known = array.known_index(&shard);
        if known.is_none() {
            wanted.push(shard.clone());
        }
        shards.insert(shard, known);
    }
    let fetched: Vec<_> = stream::iter(wanted)
        .map(|shard| async move {
            let index = shard_index(context, array, ours, &shard, sharding.index_location).await?;
            let index = index.map(Arc::new);
            if let Some(index) = &index {
                array.keep_index(&shard, index);
            }
            Ok::<_, Error>((shard, index))
        })
        .buffer_unordered(context.concurrency())
        .try_collect()
        .await?;
    shards.extend(fetched);
    let mut keys = HashMap::new();
    let chunks = array.grid.intersecting(subset);
    chunks
        .map(|chunk| locate_in_shard((array, ours), &shards, &mut keys, &counts, &chunk))
        .collect()
}

/// The indexes of the shards of one read; `None` where a shard is not there.
type Shards = HashMap<Vec<u64>, Option<Arc<ShardIndex>>>;

fn locate_object(array: &OpenArray, ours: &Ours, chunk: &[u64]) -> Located {
    let key: Arc<str> = array.root.key(&ours.document.object_key(chunk)).into();
    let fixed = ours.chain.encoded_bytes_fixed().map(|n| n as u64);
    let most = ours.chain.decoded_bytes() as u64 * EXPANSION_MAX + EXPANSION_SLACK_BYTES;
    let told = array.object_bytes(array.grid.linear(chunk)).filter(|bytes| *bytes <= most);
    let known = fixed.or(told);
    match (array.missing, known) {
        (Missing::Corrupt, Some(len)) => Located::Range { key, offset: 0, len },
        _ => Located::Object { key },
    }
}

async fn shard_index(
    context: &Context,
    array: &OpenArray,
    ours: &Ours,
    shard: &[u64],
    location: IndexLocation,
) -> Result<Option<ShardIndex>> {
    let key: Arc<str> = array.root.key(&ours.document.object_key(shard)).into();
    let crc32c = ours.document.codecs.sharding.as_ref().is_some_and(|s| s.index_crc32c);
    let chunks: u64 = ours.document.chunks_per_shard().iter().product();
    let len = ShardIndex::encoded_bytes(chunks, crc32c)
        .ok_or_else(|| Error::corrupt("a shard has more chunks than can be indexed"))?;
    let span = match location {
        IndexLocation::End => Span::Suffix { len },
        IndexLocation::Start => Span::Range { offset: 0, len },
    };
    let fetched = context.store.get(&key, span, context.priority).await;
    let bytes = match fetched {
        Err(e) if e.kind() == ErrorKind::NotFound && array.missing == Missing::Fill => {
            return Ok(None);
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::corrupt("a shard is missing")
                .with("object", &key)
                .with("leaf", &array.leaf)
                .because(e));
        }
        other => other.map_err(|e| e.with("leaf", &array.leaf))?,
    };
    let linear = ours.stored_grid.linear(shard);
    let index = ShardIndex::parse(&bytes, chunks, crc32c, array.object_bytes(linear))
        .map_err(|e| Error::from(e).with("object", &key).with("leaf", &array.leaf))?;
    Ok(Some(index))
}

fn locate_in_shard(
    (array, ours): (&OpenArray, &Ours),
    shards: &Shards,
    keys: &mut HashMap<Vec<u64>, Arc<str>>,
    counts: &[u64],
    chunk: &[u64],
) -> Result<Located> {
    let shard: Vec<u64> = chunk.iter().zip(counts).map(|(i, n)| i / n).collect();
    let Some(Some(index)) = shards.get(&shard) else { return Ok(Located::Missing) };
    let name = ours.document.object_key(&shard);
    let key = &*keys.entry(shard).or_insert_with(|| array.root.key(&name).into());
    let linear = chunk.iter().zip(counts).fold(0, |linear, (i, n)| linear * n + i % n);
    let entry = usize::try_from(linear).ok().and_then(|i| index.entries.get(i).copied()).flatten();
    let context = |e: Error| {
        e.with("leaf", &array.leaf).with("chunk", super::chunk_name(chunk)).with("object", key)
    };
    match entry {
        Some((offset, len)) => {
            let decoded = ours.chain.decoded_bytes() as u64;
            if len > decoded * EXPANSION_MAX + EXPANSION_SLACK_BYTES {
                let error = Error::corrupt("a shard index claims too large a chunk");
                return Err(context(error).with("bytes", len));
            }
            Ok(Located::Range { key: Arc::clone(key), offset, len })
        }
        None if array.missing == Missing::Fill => Ok(Located::Missing),
        None => Err(context(Error::corrupt("a chunk is missing from its shard"))),
    }
}

fn read_direct(
    array: &OpenArray,
    ours: &Ours,
    subset: &Subset,
    region: Region,
    located: Vec<Located>,
) -> Result<Reads> {
    let (keep, mut rest) = region.split_at(0);
    let mut ranged = Vec::with_capacity(located.len());
    let item_bytes = array.item_bytes as u64;
    let stored = ours.chain.encoded_bytes_fixed().unwrap_or(0);
    for (chunk, at) in array.grid.intersecting(subset).zip(located) {
        let Located::Range { key, offset, len } = at else {
            return Err(Error::internal("a direct read of a chunk without a place"));
        };
        let name = super::chunk_name(&chunk);
        let chunk_box = array.grid.chunk_box(&chunk);
        let both = chunk_box.intersection(subset).expect("the chunk intersects the box");
        let run = contiguous_run(array.chunk_shape(), &both.relative_to(&chunk_box))
            .expect("checked for direct reads");
        if len != stored as u64 {
            return Err(Error::corrupt("a chunk has the wrong stored size")
                .with("leaf", &array.leaf)
                .with("chunk", name)
                .with("object", key)
                .with("bytes", len)
                .with("wanted", stored));
        }
        let before = memory(run.start * item_bytes);
        let wanted = memory((run.end - run.start) * item_bytes);
        let (mine, others) = rest.split_at(wanted);
        rest = others;
        let mut pieces = Vec::with_capacity(3);
        if before > 0 {
            pieces.push(Piece::Scratch(before));
        }
        pieces.push(Piece::Into(mine));
        if stored > before + wanted {
            pieces.push(Piece::Scratch(stored - before - wanted));
        }
        ranged.push(ReadItem {
            finish: verify_pieces(&ours.chain, &array.leaf, name, &key),
            key,
            offset,
            pieces,
            raw_bytes: wanted as u64,
            leaf: Arc::clone(&array.leaf),
        });
    }
    Ok(Reads { ranged, whole: Vec::new(), destination: Destination::Direct(keep) })
}

/// Checks the crc32c that ends a plain chunk whose bytes lie in several regions.
fn verify_pieces(chain: &Arc<Chain>, leaf: &Arc<str>, chunk: String, key: &Arc<str>) -> Finish {
    let (has_crc32c, decoded) = (chain.has_crc32c(), chain.decoded_bytes());
    let (leaf, key) = (Arc::clone(leaf), Arc::clone(key));
    Box::new(move |regions| {
        if !has_crc32c {
            return Ok(());
        }
        let mut left = decoded;
        let mut crc = 0;
        let mut stored = Vec::with_capacity(CRC32C_BYTES);
        for region in regions {
            let data = left.min(region.len());
            crc = crc32c_append(crc, &region[..data]);
            left -= data;
            stored.extend_from_slice(&region[data..]);
        }
        if stored == crc.to_le_bytes() {
            return Ok(());
        }
        Err(Error::corrupt("checksum mismatch")
            .with("leaf", leaf)
            .with("chunk", chunk)
            .with("object", key)
            .hint("run `milepost verify` on the checkpoint, or restore another step"))
    })
}

fn read_scattered(
    array: &OpenArray,
    ours: &Ours,
    (subset, region, cast): (&Subset, Region, Option<Cast>),
    located: Vec<Located>,
) -> Result<Reads> {
    let item_bytes = cast.map_or(array.item_bytes, |c| c.to().size_bytes());
    let grid = Arc::clone(&array.grid);
    let (target, parts) = SharedTarget::divide(region, item_bytes, grid, subset.clone());
    let (mut ranged, mut whole) = (Vec::new(), Vec::new());
    for (mut part, at) in parts.zip(located) {
        let raw_bytes = part.in_chunk().elements() * array.item_bytes as u64;
        let sink = Sink::new(array, &part, cast)?;
        match at {
            Located::Missing => part.fill(&cast_item(&ours.document.fill_value, cast)?),
            Located::Range { key, offset, len } => {
                let chain = Arc::clone(&ours.chain);
                let object = Arc::clone(&key);
                let finish: Finish = Box::new(move |regions| {
                    sink.decode(&chain, &regions[0], &mut part)
                        .map_err(|e| e.with("object", &object))
                });
                let pieces = vec![Piece::Scratch(memory(len))];
                let leaf = Arc::clone(&array.leaf);
                ranged.push(ReadItem { key, offset, pieces, raw_bytes, leaf, finish });
            }
            Located::Object { key } => {
                let chain = Arc::clone(&ours.chain);
                let fill = cast_item(&ours.document.fill_value, cast)?;
                let (missing, object) = (array.missing, Arc::clone(&key));
                let decoded = chain.decoded_bytes() as u64;
                let finish = Box::new(move |bytes: Option<Bytes>| match bytes {
                    Some(bytes) => sink
                        .decode(&chain, &bytes, &mut part)
                        .map_err(|e| e.with("object", &object)),
                    None if missing == Missing::Fill => {
                        part.fill(&fill);
                        Ok(())
                    }
                    None => Err(sink
                        .place(Error::corrupt("a chunk is missing"))
                        .with("object", &object)),
                });
                let bytes_max = decoded * EXPANSION_MAX + EXPANSION_SLACK_BYTES;
                let leaf = Arc::clone(&array.leaf);
                let reserve_bytes = decoded * 2;
                whole.push(WholeItem { key, bytes_max, reserve_bytes, raw_bytes, leaf, finish });
            }
        }
    }
    Ok(Reads { ranged, whole, destination: Destination::Scatter(target) })
}

fn read_foreign(
    array: &OpenArray,
    foreign: &Arc<ForeignArray>,
    subset: &Subset,
    region: Region,
    cast: Option<Cast>,
) -> Result<Reads> {
    let item_bytes = cast.map_or(array.item_bytes, |c| c.to().size_bytes());
    let grid = Arc::clone(&array.grid);
    let (target, parts) = SharedTarget::divide(region, item_bytes, grid, subset.clone());
    let fill = cast_item(foreign.fill_value(), cast)?;
    let mut whole = Vec::new();
    for mut part in parts {
        let key: Arc<str> = array.root.key(&foreign.chunk_key(part.chunk())).into();
        let sink = Sink::new(array, &part, cast)?;
        let (foreign, object, fill) = (Arc::clone(foreign), Arc::clone(&key), fill.clone());
        let raw_bytes = part.in_chunk().elements() * array.item_bytes as u64;
        let decoded = sink.chunk_shape.iter().product::<u64>() * array.item_bytes as u64;
        let finish = Box::new(move |bytes: Option<Bytes>| {
            let Some(bytes) = bytes else {
                part.fill(&fill);
                return Ok(());
            };
            foreign
                .decode(part.chunk(), &bytes)
                .and_then(|chunk| sink.deliver(&chunk, &mut part))
                .map_err(|e| sink.place(e).with("object", &object))
        });
        let bytes_max = decoded * EXPANSION_MAX + FOREIGN_SLACK_BYTES;
        let leaf = Arc::clone(&array.leaf);
        whole.push(WholeItem {
            key,
            bytes_max,
            reserve_bytes: decoded * 2,
            raw_bytes,
            leaf,
            finish,
        });
    }
    Ok(Reads { ranged: Vec::new(), whole, destination: Destination::Scatter(target) })
}

/// What a decoded chunk goes through before it reaches its part of the destination.
struct Sink {
    leaf: Arc<str>,
    chunk_shape: Vec<u64>,
    item_bytes: usize,
    chunk: Vec<u64>,
    cast: Option<Cast>,
}

impl Sink {
    fn new(array: &OpenArray, part: &Part, cast: Option<Cast>) -> Result<Self> {
        Ok(Self {
            leaf: Arc::clone(&array.leaf),
            chunk_shape: array.full_chunk_shape(part.chunk())?,
            item_bytes: array.item_bytes,
            chunk: part.chunk().to_vec(),
            cast,
        })
    }

    fn place(&self, error: Error) -> Error {
        error.with("leaf", &self.leaf).with("chunk", super::chunk_name(&self.chunk))
    }

    fn decode(&self, chain: &Chain, encoded: &[u8], part: &mut Part) -> Result<()> {
        let whole = part.in_chunk().shape() == self.chunk_shape;
        if self.cast.is_none()
            && whole
            && let Some(run) = part.as_run()
        {
            return chain.decode_into(encoded, run).map_err(|e| self.place(e));
        }
        let mut chunk = scratch(chain.decoded_bytes())?;
        chain
            .decode_into(encoded, &mut chunk)
            .and_then(|()| self.deliver(&chunk, part))
            .map_err(|e| self.place(e))
    }

    fn deliver(&self, chunk: &[u8], part: &mut Part) -> Result<()> {
        let Some(to) = self.cast else {
            part.scatter(Block::new(chunk, &self.chunk_shape, self.item_bytes));
            return Ok(());
        };
        let elements = chunk.len() / self.item_bytes.max(1);
        let mut converted = scratch(elements * to.to().size_bytes())?;
        to.apply(chunk, &mut converted)?;
        part.scatter(Block::new(&converted, &self.chunk_shape, to.to().size_bytes()));
        Ok(())
    }
}

fn cast_item(item: &[u8], to: Option<Cast>) -> Result<Vec<u8>> {
    let Some(to) = to else { return Ok(item.to_vec()) };
    let mut converted = vec![0; to.to().size_bytes()];
    to.apply(item, &mut converted)?;
    Ok(converted)
}

/// A count of what is in memory.
fn memory(n: u64) -> usize {
    usize::try_from(n).expect("a chunk fits the address space (Chain::new)")
}

/// Memory for a decoded chunk; what a hostile document claims costs an error, not an abort.
fn scratch(bytes: usize) -> Result<Buffer> {
    Buffer::try_zeroed(bytes)
        .ok_or_else(|| Error::unavailable("no memory for a chunk").with("bytes", bytes))
}

/// Reads and decodes the elements of one chunk that exist, for a closer look at it.
pub(crate) async fn read_chunk(
    context: &Context,
    array: &OpenArray,
    chunk: &[u64],
) -> Result<Buffer> {
    let subset = array.grid.chunk_box(chunk);
    let buffer = scratch(memory(subset.elements()) * array.item_bytes)?;
    let reads = plan(context, array, &subset, buffer, None).await?;
    let quiet = Context { progress: crate::io::Progress::default(), ..context.clone() };
    futures::future::try_join(read_all(&quiet, reads.ranged), read_whole(&quiet, reads.whole))
        .await?;
    reads.destination.into_buffer()
}

impl OpenArray {
    /// Returns the chunks that lie in a stored object, by its linear number.
    pub(crate) fn chunks_of_object(&self, linear: u64) -> Vec<Vec<u64>> {
        match &self.format {
            Format::Ours(ours) => {
                let stored = ours.stored_grid.chunk_box(&ours.stored_grid.index(linear));
                self.grid.intersecting(&stored).collect()
            }
            Format::Foreign(_) => vec![self.grid.index(linear)],
        }
    }

    /// Returns first byte and length of a chunk in its object, where that can be found out.
    pub(crate) async fn stored_range(
        &self,
        context: &Context,
        chunk: &[u64],
    ) -> Result<Option<(u64, u64)>> {
        let Format::Ours(ours) = &self.format else { return Ok(None) };
        let located = locate(context, self, ours, &self.grid.chunk_box(chunk)).await?;
        Ok(match located.into_iter().next() {
            Some(Located::Range { offset, len, .. }) => Some((offset, len)),
            _ => None,
        })
    }
}
