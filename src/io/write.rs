//! Writing: parts are encoded on the CPU pool into aligned staging memory and written by the store.
//!
//! An object is either ready bytes (a document) or parts with a tail that depends on where the parts
//! came to lie (a shard index). Parts (and tail) of an *aligned* object start at multiples of a page, the gaps are zeros; on
//! a store with positional writes they go out one by one, as soon as all earlier ones have a length. Everything
//! else is gathered in memory and put whole; the stored bytes are the same either way.
//!
//! The life of a part: slot and bytes reserved (in order, so that no later part can starve an earlier
//! one) → encoded → offset assigned (in order) → written (in any order) → buffer back in the pool.

use super::read::Context;
use crate::{
    buffer::{Buffer, PAGE_BYTES, page_ceil},
    error::Result,
    io::Reservation,
    store::ObjectWriter,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future, stream};
use std::sync::Arc;

/// Objects below this size are put whole even where positional writes work: one call instead of three.
const POSITIONAL_BYTES_MIN: u64 = 256 * 1024;

/// Objects from this size are bytes for the disk, smaller ones work for the file system.
const LARGE_BYTES_MIN: u64 = 1024 * 1024;

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// What encoding a part gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoded {
    /// The stored length in bytes.
    pub(crate) bytes: usize,
    /// crc32c of the stored bytes.
    pub(crate) crc32c: u32,
    /// Content hash of the decoded bytes.
    pub(crate) content: u128,
}

/// Fills the staging memory it is given, on the CPU pool.
pub(crate) type Produce = Box<dyn FnOnce(&mut [u8]) -> Result<Encoded> + Send>;

/// One encoded chunk of an object.
pub(crate) struct Part {
    /// The most bytes it may need.
    pub(crate) bytes_max: usize,
    /// What encoding it takes beside that: reserved until it is encoded.
    pub(crate) scratch_bytes: usize,
    /// Decoded bytes, for progress.
    pub(crate) raw_bytes: u64,
    pub(crate) produce: Produce,
}

/// Where a part came to lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) encoded: Encoded,
}

/// Makes the bytes that follow the parts.
pub(crate) type Tail = Box<dyn FnOnce(&[Extent]) -> Bytes + Send>;

/// What an object consists of.
pub(crate) enum Body {
    /// Bytes that are there already.
    Ready(Bytes),
    /// Parts in order, then a tail.
    Parts { parts: Vec<Part>, aligned: bool, tail: Tail },
}

/// One object to write.
pub(crate) struct ObjectPlan {
    pub(crate) key: String,
    pub(crate) body: Body,
}

/// An object that was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// Its position in the plan.
    pub(crate) position: usize,
    /// Its size.
    pub(crate) bytes: u64,
    /// Where its parts lie.
    pub(crate) extents: Vec<Extent>,
    /// What follows them.
    pub(crate) tail: Bytes,
}

impl ObjectPlan {
    fn bytes_max(&self) -> u64 {
        match &self.body {
            Body::Ready(bytes) => bytes.len() as u64,
            Body::Parts { parts, .. } => parts.iter().map(|p| p.bytes_max as u64).sum(),
        }
    }
}

/// Writes all objects; the result is in the order of the plan.
///
/// Large ones go largest first, so that the tail is short. Small ones have a lane of their own from the start: they
/// are all names and no bytes, and after the large ones they would leave the disk idle for a quarter of a save.
///
/// # Cancel safety
/// Dropping the future stops what has not begun; what was written so far stays under its keys.
pub(crate) async fn write_all(context: &Context, objects: Vec<ObjectPlan>) -> Result<Vec<Written>> {
    let mut order: Vec<_> = objects.into_iter().enumerate().collect();
    order.sort_by_key(|(position, object)| (std::cmp::Reverse(object.bytes_max()), *position));
    let large = order.partition_point(|(_, object)| object.bytes_max() >= LARGE_BYTES_MIN);
    let small = order.split_off(large);
    let lane = |objects: Vec<_>| {
        stream::iter(objects)
            .map(|(position, object)| write_object(context, position, object))
            .buffer_unordered(context.concurrency())
            .try_collect::<Vec<Written>>()
    };
    let (mut written, small) = future::try_join(lane(order), lane(small)).await?;
    written.extend(small);
    written.sort_by_key(|w| w.position);
    Ok(written)
}

async fn write_object(context: &Context, position: usize, object: ObjectPlan) -> Result<Written> {
    let bytes_max = object.bytes_max();
    let positional = context.store.capabilities().positional_writes;
    match object.body {
        Body::Ready(bytes) => {
            let len = bytes.len() as u64;
            context.store.put(&object.key, vec![bytes.clone()], context.priority).await?;
            Ok(Written { position, bytes: len, extents: Vec::new(), tail: bytes })
        }
        Body::Parts { parts, aligned: true, tail }
            if positional && bytes_max >= POSITIONAL_BYTES_MIN =>
        {
            write_parts(context, position, &object.key, (parts, tail)).await
        }
        Body::Parts { parts, aligned, tail } => {
            put_parts(context, position, &object.key, (parts, aligned, tail)).await
        }
    }
}

/// Writes parts at their offsets as they become ready.
async fn write_parts(
    context: &Context,
    position: usize,
    key: &str,
    (parts, tail): (Vec<Part>, Tail),
) -> Result<Written> {
    let expected: u64 = parts.iter().map(|p| page_ceil(p.bytes_max) as u64).sum();
    let writer = context.store.create(key, expected, context.priority).await?;
    let mut end = 0_u64;
    let in_order = stream::iter(parts)
        .then(|part| acquire(context, part))
        .map(|(part, hold)| encode(context, part, hold))
        .buffered(parts_at_once(context));
    let mut extents: Vec<Extent> = in_order
        .map_ok(|(buffer, encoded, raw_bytes, hold)| {
            let offset = end.next_multiple_of(PAGE_BYTES as u64);
            end = offset + encoded.bytes as u64;
            let extent = Extent { offset, encoded };
            write_part(context, Arc::clone(&writer), buffer, (extent, raw_bytes, hold))
        })
        .try_buffer_unordered(parts_at_once(context))
        .try_collect()
        .await?;
    extents.sort_by_key(|e| e.offset);
    let tail = tail(&extents);
    if !tail.is_empty() {
        end = end.next_multiple_of(PAGE_BYTES as u64);
        let mut buffer = Buffer::zeroed(page_ceil(tail.len()));
        buffer[..tail.len()].copy_from_slice(&tail);
        context.engine.buffers().give(writer.write_at(end, buffer).await?);
        end += tail.len() as u64;
    }
    writer.finish(end).await?;
    Ok(Written { position, bytes: end, extents, tail })
}

fn parts_at_once(context: &Context) -> usize {
    context.engine.cpu().threads() + context.concurrency()
}

/// What a part holds while it is in staging memory.
struct Hold {
    _slot: Reservation,
    bytes: Reservation,
}

async fn acquire(context: &Context, part: Part) -> (Part, Hold) {
    let engine = &context.engine;
    let slot = engine.staging_slots().reserve(context.priority, 1).await;
    let bytes = (page_ceil(part.bytes_max) + part.scratch_bytes) as u64;
    let bytes = engine.budget().reserve(context.priority, bytes).await;
    (part, Hold { _slot: slot, bytes })
}

async fn encode(
    context: &Context,
    part: Part,
    mut hold: Hold,
) -> Result<(Buffer, Encoded, u64, Hold)> {
    let mut buffer = context.engine.buffers().take(page_ceil(part.bytes_max))?;
    let produce = part.produce;
    let job = move || {
        let encoded = produce(&mut buffer[..part.bytes_max])?;
        // The buffer is reused: what follows the part up to the page's end is to be zeros.
        let padded = page_ceil(encoded.bytes);
        buffer[encoded.bytes..padded].fill(0);
        buffer.set_len(padded);
        Ok((buffer, encoded))
    };
    let (buffer, encoded) = context.engine.cpu().run(context.priority, job).await?;
    hold.bytes.shrink_to(page_ceil(encoded.bytes) as u64);
    Ok((buffer, encoded, part.raw_bytes, hold))
}

async fn write_part(
    context: &Context,
    writer: Arc<dyn ObjectWriter>,
    buffer: Buffer,
    (extent, raw_bytes, hold): (Extent, u64, Hold),
) -> Result<Extent> {
    let buffer = writer.write_at(extent.offset, buffer).await?;
    context.engine.buffers().give(buffer);
    drop(hold);
    context.progress.chunk_done(raw_bytes);
    Ok(extent)
}

/// Encodes all parts, then puts them and the tail as one gather list.
async fn put_parts(
    context: &Context,
    position: usize,
    key: &str,
    (parts, aligned, tail): (Vec<Part>, bool, Tail),
) -> Result<Written> {
    let engine = &context.engine;
    let raw_bytes: Vec<u64> = parts.iter().map(|p| p.raw_bytes).collect();
    // As many parts are encoded at once as there are threads.
    let scratch = parts.iter().map(|p| p.scratch_bytes as u64).max().unwrap_or(0);
    let scratch = scratch * parts.len().min(engine.cpu().threads()) as u64;
    let needed = scratch + parts.iter().map(|p| p.bytes_max as u64).sum::<u64>();
    let reservation = engine.budget().reserve(context.priority, needed).await;
    let jobs = parts.into_iter().map(|part| {
        let pool = Arc::clone(engine.buffers());
        engine.cpu().run(context.priority, move || {
            let mut buffer = pool.take(part.bytes_max)?;
            let encoded = (part.produce)(&mut buffer)?;
            buffer.set_len(encoded.bytes);
            Ok((Bytes::from(buffer), encoded))
        })
    });
    let encoded = future::try_join_all(jobs).await?;
    let mut payload = Vec::with_capacity(encoded.len() * 2 + 1);
    let mut extents = Vec::with_capacity(encoded.len());
    let mut end = 0_u64;
    for (bytes, encoded) in encoded {
        end = pad(&mut payload, end, aligned);
        extents.push(Extent { offset: end, encoded });
        end += bytes.len() as u64;
        payload.push(bytes);
    }
    let tail = tail(&extents);
    if !tail.is_empty() {
        end = pad(&mut payload, end, aligned) + tail.len() as u64;
        payload.push(tail.clone());
    }
    context.store.put(key, payload, context.priority).await?;
    drop(reservation);
    for bytes in raw_bytes {
        context.progress.chunk_done(bytes);
    }
    Ok(Written { position, bytes: end, extents, tail })
}

/// Brings `end` to the next page where the object is aligned.
fn pad(payload: &mut Vec<Bytes>, end: u64, aligned: bool) -> u64 {
    let page = PAGE_BYTES as u64;
    let gap = if aligned { end.next_multiple_of(page) - end } else { 0 };
    if gap > 0 {
        payload.push(Bytes::from_static(&ZERO_PAGE).slice(..usize::try_from(gap).unwrap_or(0)));
    }
    end + gap
}
