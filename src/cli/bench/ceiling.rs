//! What a place can do without Milepost: the same bytes, written and read raw.
//!
//! | place | write | read |
//! |---|---|---|
//! | local | a file a thread, preallocated, `O_DIRECT` blocks, one `syncfs` at the end | `O_DIRECT` blocks, each copied to its destination; warm: `pread` straight into it |
//! | other | objects of one block each, put by so many at once | the same objects, read into fresh memory |
//!
//! Where the file system refuses `O_DIRECT` the blocks go through the page cache, and the report says so.
//! Nothing is checked and no name means anything: it is the rate that a save and a restore are held against.
//!
//! The destination of a read is given: memory that was touched before shows the device's rate, fresh memory
//! what any program gets that returns new arrays (the kernel clears pages, a hypervisor may have to find them).

use super::{
    ground::{failed, sync},
    sample::Samples,
    state::{Numbers, random_floats},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, executor::block_on, stream};
use milepost::{Buffer, Error, ErrorKind, Place, Priority, Region, Result};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, fcntl_setfl, openat},
    io::{Errno, pread, pwrite, retry_on_intr},
};
use std::{path::Path, time::Instant};

const PAGE_BYTES: u64 = 4096;

/// How much is moved, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Bytes in all.
    pub(crate) total_bytes: u64,
    /// Bytes of one request.
    pub(crate) block_bytes: u64,
    /// Requests under way at once.
    pub(crate) at_once: usize,
}

/// In which order and from where blocks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the device, one block after the other.
    Cold,
    /// From the device, in random order.
    ColdRandom,
    /// From the page cache.
    Warm,
}

/// One request of a load.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Its number in the load.
    number: u64,
    /// Where it starts in its stream's file.
    at: u64,
    /// Where it starts in its stream's memory.
    skip: usize,
    bytes: usize,
}

impl Block {
    /// Returns its length in whole pages.
    fn padded(&self) -> usize {
        self.bytes.next_multiple_of(small(PAGE_BYTES))
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    /// Wall seconds in all.
    pub(crate) seconds: f64,
    /// Milliseconds of each block.
    pub(crate) latencies: Samples,
    /// Whether a local file system refused direct I/O.
    pub(crate) refused: bool,
}

impl Load {
    /// Returns the blocks that stream `n` moves.
    fn blocks(&self, n: usize) -> Vec<Block> {
        let streams = self.at_once.max(1) as u64;
        let blocks = self.total_bytes.div_ceil(self.block_bytes);
        let (share, more) = (blocks / streams, blocks % streams);
        let first = n as u64 * share + more.min(n as u64);
        let mine = share + u64::from((n as u64) < more);
        let one = |i: u64| {
            let start = (first + i) * self.block_bytes;
            let bytes = small(self.block_bytes.min(self.total_bytes - start));
            // In a file every block starts on a page, whatever its size is.
            let at = i * self.block_bytes.next_multiple_of(PAGE_BYTES);
            Block { number: first + i, at, skip: small(i * self.block_bytes), bytes }
        };
        (0..mine).map(one).collect()
    }
}

/// Writes `load` below `place`, raw and durable.
///
/// # Errors
/// Those of the file system or the store.
pub(crate) fn write(place: &Place, load: Load) -> Result<Raw> {
    match place.local_path() {
        Some(dir) => {
            block_on(place.store().create_dir(place.prefix()))?;
            write_files(&dir, load)
        }
        None => write_objects(place, load),
    }
}

/// Reads what [`write`] wrote into `out`, which is as long as the load; objects come in memory of their own.
///
/// # Errors
/// Those of the file system or the store.
pub(crate) fn read(place: &Place, load: Load, way: Way, out: &mut [u8]) -> Result<Raw> {
    match place.local_path() {
        Some(dir) => read_files(&dir, load, way, out),
        None => read_objects(place, load, way),
    }
}

fn write_files(dir: &Path, load: Load) -> Result<Raw> {
    let block = Buffer::from(&random_floats(load.block_bytes.next_multiple_of(PAGE_BYTES), 1)[..]);
    let started = Instant::now();
    let parts = on_threads(load, |n, blocks| write_file(dir, n, &blocks, &block))?;
    sync(dir)?;
    Ok(joined(started, parts))
}

fn write_file(dir: &Path, n: usize, blocks: &[Block], data: &[u8]) -> Result<(Samples, bool)> {
    let path = dir.join(format!("raw.{n}"));
    let context = |e: Errno| failed("a raw write failed", &path, e.into());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = open(&path, flags).map_err(context)?;
    let Some(last) = blocks.last() else { return Ok((Samples::default(), false)) };
    let bytes = last.at + last.padded() as u64;
    match retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), 0, bytes)) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(errno) => return Err(context(errno)),
    }
    let mut direct = fcntl_setfl(&file, OFlags::DIRECT).is_ok();
    let mut latencies = Samples::default();
    for block in blocks {
        let data = &data[..block.padded()];
        let began = Instant::now();
        match write_all(&file, data, block.at) {
            Err(Errno::INVAL) if direct => {
                direct = false;
                fcntl_setfl(&file, OFlags::empty()).map_err(context)?;
                write_all(&file, data, block.at).map_err(context)?;
            }
            result => result.map_err(context)?,
        }
        latencies.push(ms(began));
    }
    Ok((latencies, !direct))
}

fn read_files(dir: &Path, load: Load, way: Way, mut rest: &mut [u8]) -> Result<Raw> {
    let mut slices = Vec::with_capacity(load.at_once);
    for n in 0..load.at_once.max(1) {
        let bytes = load.blocks(n).last().map_or(0, |last| last.skip + last.bytes);
        let (mine, others) = std::mem::take(&mut rest).split_at_mut(bytes);
        slices.push(std::sync::Mutex::new(mine));
        rest = others;
    }
    let started = Instant::now();
    let parts = on_threads(load, |n, blocks| {
        let mut mine = slices[n].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        read_file(dir, n, blocks, &mut mine, way)
    })?;
    Ok(joined(started, parts))
}

fn read_file(
    dir: &Path,
    n: usize,
    mut blocks: Vec<Block>,
    out: &mut [u8],
    way: Way,
) -> Result<(Samples, bool)> {
    let path = dir.join(format!("raw.{n}"));
    let context = |e: Errno| failed("a raw read failed", &path, e.into());
    let Some(first) = blocks.first() else { return Ok((Samples::default(), false)) };
    let mut page_aligned = Buffer::zeroed(first.padded());
    let file = open(&path, OFlags::RDONLY | OFlags::CLOEXEC).map_err(context)?;
    let mut direct = way != Way::Warm && fcntl_setfl(&file, OFlags::DIRECT).is_ok();
    if way == Way::ColdRandom {
        Numbers::new(n as u64 + 1).shuffle(&mut blocks);
    }
    let mut latencies = Samples::default();
    for block in blocks {
        let target = &mut out[block.skip..block.skip + block.bytes];
        let began = Instant::now();
        if direct {
            match read_all(&file, &mut page_aligned[..block.padded()], block.at) {
                Err(Errno::INVAL) => {
                    direct = false;
                    fcntl_setfl(&file, OFlags::empty()).map_err(context)?;
                }
                result => {
                    result.map_err(context)?;
                    target.copy_from_slice(&page_aligned[..block.bytes]);
                }
            }
        }
        if !direct {
            read_all(&file, target, block.at).map_err(context)?;
        }
        latencies.push(ms(began));
    }
    Ok((latencies, way != Way::Warm && !direct))
}

fn write_objects(place: &Place, load: Load) -> Result<Raw> {
    let data = random_floats(load.block_bytes, 1);
    let started = Instant::now();
    let latencies = objects(place, load, false).map(|(key, bytes)| {
        let data = &data[..bytes];
        async move {
            let began = Instant::now();
            // A store may keep what it is given: every object has bytes of its own, as those of a save have.
            let payload = vec![Bytes::copy_from_slice(data)];
            place.store().put(&key, payload, Priority::Foreground).await?;
            Ok::<_, Error>(ms(began))
        }
    });
    let latencies: Vec<f64> =
        block_on(stream::iter(latencies).buffer_unordered(load.at_once.max(1)).try_collect())?;
    let latencies = latencies.into_iter().collect();
    Ok(Raw { seconds: started.elapsed().as_secs_f64(), latencies, refused: false })
}

fn read_objects(place: &Place, load: Load, way: Way) -> Result<Raw> {
    let started = Instant::now();
    let latencies = objects(place, load, way == Way::ColdRandom).map(|(key, bytes)| {
        let region = Region::from(Buffer::zeroed(bytes));
        async move {
            let began = Instant::now();
            place.store().read(&key, 0, vec![region], Priority::Restore).await?;
            Ok::<_, Error>(ms(began))
        }
    });
    let latencies: Vec<f64> =
        block_on(stream::iter(latencies).buffer_unordered(load.at_once.max(1)).try_collect())?;
    let latencies = latencies.into_iter().collect();
    Ok(Raw { seconds: started.elapsed().as_secs_f64(), latencies, refused: false })
}

/// Returns key and size of every object.
fn objects(
    place: &Place,
    load: Load,
    shuffled: bool,
) -> impl Iterator<Item = (String, usize)> + use<'_> {
    let mut all = Load { at_once: 1, ..load }.blocks(0);
    if shuffled {
        Numbers::new(1).shuffle(&mut all);
    }
    all.into_iter().map(|block| (place.key(&format!("raw.{}", block.number)), block.bytes))
}

/// Runs one job a stream and joins them.
fn on_threads<T: Send>(
    load: Load,
    job: impl Fn(usize, Vec<Block>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> =
            (0..load.at_once.max(1)).map(|n| scope.spawn(move || job(n, load.blocks(n)))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a raw thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

fn joined(started: Instant, parts: Vec<(Samples, bool)>) -> Raw {
    let seconds = started.elapsed().as_secs_f64();
    let refused = parts.iter().any(|(_, refused)| *refused);
    let latencies = parts.into_iter().flat_map(|(samples, _)| samples).collect();
    Raw { seconds, latencies, refused }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| openat(CWD, path, flags, Mode::from_raw_mode(0o666)))
}

fn write_all(file: &OwnedFd, mut data: &[u8], mut at: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let n = retry_on_intr(|| pwrite(file, data, at))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        data = &data[n..];
        at += n as u64;
    }
    Ok(())
}

fn read_all(file: &OwnedFd, mut out: &mut [u8], mut at: u64) -> Result<(), Errno> {
    while !out.is_empty() {
        let n = retry_on_intr(|| pread(file, &mut *out, at))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        out = &mut out[n..];
        at += n as u64;
    }
    Ok(())
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// A count of what is in memory.
fn small(n: u64) -> usize {
    usize::try_from(n).expect("a benchmark's load fits the address space")
}

#[cfg(test)]
mod tests {
    use super::*;
    use milepost::Engine;

    #[test]
    fn the_blocks_of_all_streams_are_the_load() {
        for (total_bytes, block_bytes, at_once) in
            [(100, 10, 3), (101, 10, 4), (5, 10, 2), (64, 8, 1)]
        {
            let load = Load { total_bytes, block_bytes, at_once };
            let blocks: Vec<_> = (0..at_once).flat_map(|n| load.blocks(n)).collect();
            assert!(blocks.iter().map(|b| b.number).eq(0..blocks.len() as u64));
            assert_eq!(blocks.iter().map(|b| b.bytes as u64).sum::<u64>(), total_bytes);
        }
    }

    #[test]
    fn a_raw_load_is_written_and_read_on_files_and_in_a_store() {
        let engine = Engine::builder().budget_bytes(1 << 20).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let load = Load { total_bytes: 1_000_003, block_bytes: 100_000, at_once: 2 };
        for url in [dir.path().to_str().unwrap(), "memory://bench-ceiling/x"] {
            let place = engine.place(url, &[]).unwrap();
            assert_eq!(write(&place, load).unwrap().latencies.len(), 11);
            for way in [Way::Cold, Way::ColdRandom, Way::Warm] {
                let mut out = vec![0; 1_000_003];
                assert_eq!(read(&place, load, way, &mut out).unwrap().latencies.len(), 11);
                let written = random_floats(100_000, 1);
                let same = out.chunks(100_000).all(|block| *block == written[..block.len()]);
                assert!(same || url.starts_with("memory"), "{way:?}");
            }
        }
    }
}
