//! `milepost bench chunks`: single chunks, written and read, by size, concurrency and codec.
//!
//! For each place, chunk size and number of requests at once the raw rates come first (`codec` is `raw`):
//! blocks of the chunk's size, written and made durable, read in order, read in random order. Then for each codec one
//! array is saved as a checkpoint and read four ways:
//!
//! | operation | what one operation is |
//! |---|---|
//! | `write` | a store request of the save; the rate is that of the whole save, durable |
//! | `sequential` | one chunk, in order, so many at once |
//! | `random` | one chunk, each once, in random order |
//! | `sub-chunk` | a quarter of a chunk, each once, in random order; all of it is fetched and verified |
//!
//! On a local disk every read is cold: the page cache is emptied before each row. Percentiles are those of
//! the operations, `requests` counts what the store was asked, CPU seconds are those of the whole process.

use super::{
    ceiling::{self, Load, Raw, Way},
    ground::{Ground, evict},
    metered::MeteredStore,
    report::{Cell, Report},
    sample::{Samples, Watch},
    state::{Numbers, random_floats},
};
use crate::cli::{context::Context, size};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, executor::block_on, stream};
use milepost::{
    Checkpoint, CheckpointWriter, DataType, Engine, EngineOptions, Error, ErrorKind, Item, Leaf,
    LeafHandle, Place, Result, SaveOptions, Store, Subset, formats::zarr3::Compressor,
};
use std::{process::ExitCode, sync::Arc, time::Instant};

const ITEM: &str = "chunks";
const ITEM_BYTES: u64 = 4;

/// Measure chunk throughput and latency by size, concurrency and codec, beside the raw rates of each place.
///
/// Works in a new directory below each URL and removes it at the end, and nothing else.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directories or URLs; they need not exist yet.
    #[arg(required = true)]
    urls: Vec<String>,
    /// Decoded sizes of a chunk, multiples of 16 bytes.
    #[arg(long, value_delimiter = ',', default_value = "256KiB,1MiB,4MiB", value_parser = size::parse)]
    chunk_bytes: Vec<u64>,
    /// Requests under way at once.
    #[arg(long, value_delimiter = ',', default_value = "1,4", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Vec<u16>,
    /// Compressors: none, zstd[:level], gzip[:level], blosc[:cname[:level[:shuffle]]].
    #[arg(long, value_delimiter = ',', default_value = "none,zstd:1")]
    codec: Vec<Compressor>,
    /// Decoded bytes of each array.
    #[arg(long, default_value = "64MiB", value_parser = size::parse)]
    total: u64,
    /// Print comma-separated values.
    #[arg(long)]
    csv: bool,
}

/// What is measured in one round.
struct Round<'a> {
    url: &'a str,
    engine: &'a Arc<Engine>,
    place: Place,
    chunk_bytes: u64,
    chunks: u64,
    at_once: usize,
}

/// One row, measured.
struct Measured {
    codec: String,
    operation: &'static str,
    /// Decoded bytes that were asked for.
    bytes: u64,
    operations: u64,
    seconds: f64,
    latencies: Samples,
    requests: u64,
    cpu_seconds: f64,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    for bytes in &args.chunk_bytes {
        if *bytes == 0 || bytes % (4 * ITEM_BYTES) != 0 || *bytes > args.total {
            return Err(Error::new(ErrorKind::Invalid, "a chunk size that cannot be measured")
                .with("chunk_bytes", bytes)
                .hint("give multiples of 16 bytes, at most --total"));
        }
    }
    let data = random_floats(args.total, 1);
    let mut report = Report::new(&[
        "place",
        "chunk",
        "at_once",
        "codec",
        "operation",
        "MB/s",
        "ratio",
        "chunks/s",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "requests",
        "cpu_s/GB",
    ]);
    for url in &args.urls {
        measure_place(url, args, ctx, &data, &mut report)?;
    }
    super::print(&report, args.csv, ctx)?;
    Ok(ExitCode::SUCCESS)
}

fn measure_place(
    url: &str,
    args: &Args,
    ctx: &Context,
    data: &Bytes,
    report: &mut Report,
) -> Result<()> {
    let ground = Ground::new(&ctx.place(url)?)?;
    let rounds = args.chunk_bytes.len() * args.concurrency.len();
    let copies = (rounds * (1 + args.codec.len())) as u64;
    ground.expect_room(args.total.saturating_mul(copies))?;
    for chunk_bytes in &args.chunk_bytes {
        for at_once in &args.concurrency {
            let options = EngineOptions {
                disk_threads: usize::from(*at_once),
                ..ctx.engine().options().clone()
            };
            let engine = Engine::builder().options(options).build()?;
            let base = ground.below(&ctx.place_through(&engine, url)?);
            let round = Round {
                url,
                engine: &engine,
                place: base.join(&format!("{chunk_bytes}.{at_once}")),
                chunk_bytes: *chunk_bytes,
                chunks: args.total / chunk_bytes,
                at_once: usize::from(*at_once),
            };
            let chunk = size::show(*chunk_bytes);
            ctx.note(format_args!("{url}: chunks of {chunk}, {at_once} at once"));
            round.measure(&args.codec, data, report)?;
        }
    }
    ground.clear()
}

impl Round<'_> {
    fn measure(&self, codecs: &[Compressor], data: &Bytes, report: &mut Report) -> Result<()> {
        let raw = self.raw(report)?;
        for measured in &raw {
            report.row(self.cells(measured, None));
        }
        for codec in codecs {
            for measured in self.codec(*codec, data)? {
                let ceiling = match measured.operation {
                    "write" => &raw[0],
                    "sequential" => &raw[1],
                    _ => &raw[2],
                };
                report.row(self.cells(&measured, Some(ceiling)));
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.chunks * self.chunk_bytes
    }

    /// Measures what the place does without Milepost.
    fn raw(&self, report: &mut Report) -> Result<[Measured; 3]> {
        let place = self.place.join("raw");
        let load = Load {
            total_bytes: self.bytes(),
            block_bytes: self.chunk_bytes,
            at_once: self.at_once,
        };
        let mut out = vec![1; usize::try_from(self.bytes()).unwrap_or(0)];
        let mut measure = |operation, job: &mut dyn FnMut() -> Result<Raw>| {
            evict_if_there(&place)?;
            let watch = Watch::start();
            let raw = job()?;
            let cpu_seconds = watch.cpu_seconds();
            if raw.refused {
                report.note(format!(
                    "{}: O_DIRECT is refused, the raw rates went through the page cache",
                    self.url
                ));
            }
            Ok::<_, Error>(Measured {
                codec: "raw".to_owned(),
                operation,
                bytes: self.bytes(),
                operations: self.chunks,
                seconds: raw.seconds,
                latencies: raw.latencies,
                requests: self.chunks,
                cpu_seconds,
            })
        };
        Ok([
            measure("write", &mut || ceiling::write(&place, load))?,
            measure("sequential", &mut || ceiling::read(&place, load, Way::Cold, &mut out))?,
            measure("random", &mut || ceiling::read(&place, load, Way::ColdRandom, &mut out))?,
        ])
    }

    /// Measures one codec: a save, then three ways to read it.
    fn codec(&self, codec: Compressor, data: &Bytes) -> Result<[Measured; 4]> {
        let target = self.place.join(&codec.to_string().replace(':', "-"));
        let store = MeteredStore::new(Arc::clone(target.store()), self.at_once);
        let inner: Arc<dyn Store> = Arc::<MeteredStore>::clone(&store);
        let metered = Place::new(inner, target.prefix());
        let measured = |operation, bytes, watch: Watch, latencies: Option<Samples>| {
            let (seconds, cpu_seconds) = (watch.seconds(), watch.cpu_seconds());
            let (requests, data) = store.take();
            let latencies = latencies.unwrap_or(data);
            let (codec, operations) = (codec.to_string(), self.chunks);
            Measured {
                codec,
                operation,
                bytes,
                operations,
                seconds,
                latencies,
                requests,
                cpu_seconds,
            }
        };
        let watch = Watch::start();
        self.save(&metered, codec, data)?;
        let write = measured("write", self.bytes(), watch, None);

        let checkpoint = Checkpoint::open_blocking(self.engine, &metered)?;
        let leaf = checkpoint.leaf_blocking(ITEM, "")?;
        let elements = self.chunk_bytes / ITEM_BYTES;
        let mut order: Vec<(u64, u64)> =
            (0..self.chunks).map(|n| (n * elements, elements)).collect();
        let read = |operation, boxes: &[(u64, u64)]| {
            evict_if_there(&target)?;
            store.take();
            let watch = Watch::start();
            let latencies = self.read(&leaf, boxes)?;
            let bytes = boxes.iter().map(|(_, len)| len * ITEM_BYTES).sum();
            Ok::<_, Error>(measured(operation, bytes, watch, Some(latencies)))
        };
        let sequential = read("sequential", &order)?;
        Numbers::new(2).shuffle(&mut order);
        let random = read("random", &order)?;
        for (n, (start, len)) in order.iter_mut().enumerate() {
            *len = elements / 4;
            *start += (n as u64 % 4) * *len;
        }
        let sub = read("sub-chunk", &order)?;
        Ok([write, sequential, random, sub])
    }

    fn save(&self, place: &Place, compressor: Compressor, data: &Bytes) -> Result<()> {
        let bytes = usize::try_from(self.bytes()).unwrap_or(data.len());
        let shape = vec![self.bytes() / ITEM_BYTES];
        let leaf = Leaf::from_bytes(DataType::Float32, shape, data.slice(..bytes))?
            .with_chunk_shape(vec![self.chunk_bytes / ITEM_BYTES]);
        let options = SaveOptions { compressor, ..SaveOptions::default() };
        CheckpointWriter::standalone(self.engine, place)
            .item(ITEM, Item::Array(leaf))
            .options(options)
            .save_blocking()
            .map(drop)
    }

    /// Reads boxes of a 1-d array, so many at once; returns the milliseconds of each.
    fn read(&self, leaf: &LeafHandle, boxes: &[(u64, u64)]) -> Result<Samples> {
        let reads = stream::iter(boxes).map(|(start, len)| async move {
            let subset = Subset::new(vec![*start], vec![*len])?;
            let started = Instant::now();
            let data = leaf.read_box(&subset).await?;
            let ms = started.elapsed().as_secs_f64() * 1e3;
            drop(data);
            Ok::<_, Error>(ms)
        });
        let ms: Vec<f64> = block_on(reads.buffer_unordered(self.at_once).try_collect())?;
        Ok(ms.into_iter().collect())
    }

    fn cells(&self, measured: &Measured, ceiling: Option<&Measured>) -> Vec<Cell> {
        let rate = |m: &Measured| gigabytes(m.bytes) * 1e3 / m.seconds;
        let ratio = ceiling.map_or(Cell::Empty, |raw| Cell::Number(rate(measured) / rate(raw), 2));
        let percentile = |percent| Cell::Number(measured.latencies.percentile(percent), 2);
        let per_second = gigabytes(measured.operations) * 1e9 / measured.seconds;
        vec![
            Cell::text(&self.url),
            Cell::Bytes(self.chunk_bytes),
            Cell::Count(self.at_once as u64),
            Cell::text(&measured.codec),
            Cell::text(&measured.operation),
            Cell::Number(rate(measured), 0),
            ratio,
            Cell::Number(per_second, 0),
            percentile(50),
            percentile(95),
            percentile(99),
            Cell::Count(measured.requests),
            Cell::Number(measured.cpu_seconds / gigabytes(measured.bytes), 2),
        ]
    }
}

/// Empties the page cache of a place that may not have been written yet.
fn evict_if_there(place: &Place) -> Result<()> {
    match place.local_path() {
        Some(path) if !path.exists() => Ok(()),
        _ => evict(place),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
