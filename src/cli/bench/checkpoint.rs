//! `milepost bench checkpoint`: durable save, cold and warm restore, one parameter; beside the raw rates.
//!
//! One repetition of one setting, each step held against the raw one before it:
//!
//! ```text
//! raw write │ save │ evict │ raw read, cold │ evict │ restore, cold │ evict │ raw read, one │ one parameter
//!           │ fill the page cache │ raw read, warm │ restore, warm
//! ```
//!
//! Repetitions of all settings take turns, so that a disk that slows down slows all of them. A timed save
//! begins with leaves that are handed over as shared bytes and ends when the checkpoint is committed and durable; a
//! timed restore begins with nothing open and ends with all arrays in memory. The first restore is compared
//! with the state byte by byte, outside the measured time.

use super::{
    ceiling::{self, Load, Way},
    ground::{Ground, evict, warm},
    report::{Cell, Report},
    sample::Samples,
    state::{Filled, State, fill, total_bytes},
};
use crate::cli::{context::Context, size};
use futures::executor::block_on;
use milepost::{
    ArrayData, Checkpoint, CheckpointWriter, Engine, Error, ErrorKind, Item, Leaf, Place, Progress,
    Result, SaveOptions, Select, Tree, formats::zarr3::Compressor,
};
use std::{process::ExitCode, sync::Arc, time::Instant};

const ITEM: &str = "state";
/// The raw load of a local disk: as much as two threads ask for at once keeps one busy.
const LOCAL_STREAMS: usize = 2;
const LOCAL_BLOCK_BYTES: u64 = 8 << 20;

/// Measure durable save, cold and warm restore and one parameter, beside the raw rates of the place.
///
/// Works in a new directory below URL and removes it at the end, and nothing else. Several values of --codec,
/// --chunk-bytes and --budget (comma lists) are measured in turns.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory or URL; it need not exist yet.
    url: String,
    /// The state to save: gpt2 (1.49 GB, 445 leaves), many (20,000 leaves), big (4 leaves of 512 MiB) or a size.
    #[arg(long, default_value = "gpt2")]
    state: State,
    /// Compressors: none, zstd[:level], gzip[:level], blosc[:cname[:level[:shuffle]]].
    #[arg(long, value_delimiter = ',', default_value = "none")]
    codec: Vec<Compressor>,
    /// Decoded sizes of a chunk.
    #[arg(long, value_delimiter = ',', default_value = "4MiB", value_parser = size::parse)]
    chunk_bytes: Vec<u64>,
    /// Byte budgets of staging and requests in flight [default: 1GiB or a quarter of the memory].
    #[arg(long, value_delimiter = ',', value_name = "SIZE", value_parser = size::parse)]
    budget: Vec<u64>,
    /// Repetitions of everything; the table shows medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Print comma-separated values.
    #[arg(long)]
    csv: bool,
}

/// One combination of what is swept.
struct Setting {
    engine: Arc<Engine>,
    options: SaveOptions,
    rows: [Row; 4],
}

/// What is measured of one operation.
struct Row {
    operation: &'static str,
    bytes: u64,
    seconds: Samples,
    ceiling: Samples,
    /// The raw read into memory that was not touched before.
    fresh: Samples,
    stages: Vec<(&'static str, Samples)>,
}

impl Row {
    fn new(operation: &'static str, bytes: u64) -> Self {
        let (seconds, ceiling, fresh) = Default::default();
        Self { operation, bytes, seconds, ceiling, fresh, stages: Vec::new() }
    }

    fn stage(&mut self, name: &'static str, seconds: f64) {
        match self.stages.iter_mut().find(|(n, _)| *n == name) {
            Some((_, samples)) => samples.push(seconds * 1e3),
            None => self.stages.push((name, [seconds * 1e3].into_iter().collect())),
        }
    }
}

/// What all settings share.
struct Bench<'a> {
    args: &'a Args,
    ctx: &'a Context,
    ground: Ground,
    state: Filled,
    total_bytes: u64,
    one_bytes: u64,
    /// Memory that raw reads fill, touched before.
    touched: Vec<u8>,
    refused: bool,
}

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let shapes = args.state.shapes();
    let total_bytes = total_bytes(&shapes);
    let mut settings = settings(args, ctx)?;
    let base = ctx.place(&args.url)?;
    let ground = Ground::new(&base)?;
    // Each repetition of each setting leaves a raw copy and a checkpoint until the end.
    let copies = 2 * settings.len() as u64 * u64::from(args.repeat);
    ground.expect_room(total_bytes.saturating_mul(copies))?;
    ctx.note(format_args!("making the state `{}`: {}", args.state, size::show(total_bytes)));
    let state = fill(&shapes)?;
    let one_bytes = leaf(&state.leaves, args.state)?.data_bytes();
    let mut bench = Bench {
        args,
        ctx,
        ground,
        state,
        total_bytes,
        one_bytes,
        touched: Vec::new(),
        refused: false,
    };
    for setting in &mut settings {
        setting.rows = [
            Row::new("save", total_bytes),
            Row::new("restore cold", total_bytes),
            Row::new("restore warm", total_bytes),
            Row::new("one parameter", one_bytes),
        ];
    }
    for repetition in 0..args.repeat {
        for (n, setting) in settings.iter_mut().enumerate() {
            bench.repetition(repetition, n, setting)?;
        }
    }
    let report = bench.report(&settings);
    let Bench { ground, .. } = bench;
    ctx.note(format_args!("removing {}", ground.place()));
    ground.clear()?;
    super::print(&report, args.csv, ctx)?;
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Args, ctx: &Context) -> Result<Vec<Setting>> {
    let mut engines = Vec::new();
    for bytes in &args.budget {
        engines.push(Engine::builder().budget_bytes(*bytes).build()?);
    }
    if engines.is_empty() {
        engines.push(Arc::clone(ctx.engine()));
    }
    let mut settings = Vec::new();
    for engine in &engines {
        for compressor in &args.codec {
            for chunk_bytes in &args.chunk_bytes {
                let options = SaveOptions {
                    compressor: *compressor,
                    chunk_bytes: *chunk_bytes,
                    ..SaveOptions::default()
                };
                options.validate()?;
                let rows = [(); 4].map(|()| Row::new("", 0));
                settings.push(Setting { engine: Arc::clone(engine), options, rows });
            }
        }
    }
    Ok(settings)
}

/// Returns the leaf that is restored alone.
fn leaf(leaves: &Tree<Leaf>, state: State) -> Result<&Leaf> {
    let path = state.one_parameter();
    let found = leaves.leaves().find(|(p, _)| p.to_string() == path);
    found.map(|(_, leaf)| leaf).ok_or_else(|| {
        Error::new(ErrorKind::Internal, "the state lacks its one parameter").with("leaf", path)
    })
}

impl Bench<'_> {
    fn repetition(&mut self, repetition: u32, n: usize, setting: &mut Setting) -> Result<()> {
        let base = self.ctx.place_through(&setting.engine, &self.args.url)?;
        let fresh = self.ground.below(&base).join(&format!("{repetition}.{n}"));
        let (raw, target) = (fresh.join("raw"), fresh.join("checkpoint"));
        let (whole, one) = (raw_load(&raw, self.total_bytes), raw_load(&raw, self.one_bytes));
        let [save, cold, warm_row, parameter] = &mut setting.rows;

        let written = ceiling::write(&raw, whole)?;
        self.refused |= written.refused;
        save.ceiling.push(written.seconds);
        self.save(save, &setting.engine, &target, &setting.options)?;
        evict(&fresh)?;
        self.raw_reads(cold, &raw, whole, Way::Cold)?;
        evict(&fresh)?;
        let restored = restore(cold, &setting.engine, &target)?;
        if repetition == 0 {
            self.compare(&restored)?;
        }
        drop(restored);
        let small = fresh.join("one");
        ceiling::write(&small, one)?;
        evict(&fresh)?;
        self.raw_reads(parameter, &small, one, Way::Cold)?;
        evict(&fresh)?;
        one_parameter(parameter, &setting.engine, &target, self.args.state)?;
        warm(&fresh)?;
        self.raw_reads(warm_row, &raw, whole, Way::Warm)?;
        drop(restore(warm_row, &setting.engine, &target)?);
        self.say(repetition, setting);
        Ok(())
    }

    /// Reads a raw load into touched memory, then, cold again, into fresh memory.
    fn raw_reads(&mut self, row: &mut Row, place: &Place, load: Load, way: Way) -> Result<()> {
        let bytes = usize::try_from(load.total_bytes).unwrap_or(usize::MAX);
        if self.touched.len() < bytes {
            self.touched = vec![1; bytes];
        }
        let raw = ceiling::read(place, load, way, &mut self.touched[..bytes])?;
        self.refused |= raw.refused;
        row.ceiling.push(raw.seconds);
        if way == Way::Cold {
            evict(place)?;
        }
        let raw = ceiling::read(place, load, way, &mut vec![0; bytes])?;
        row.fresh.push(raw.seconds);
        Ok(())
    }

    fn save(
        &self,
        row: &mut Row,
        engine: &Arc<Engine>,
        target: &Place,
        options: &SaveOptions,
    ) -> Result<()> {
        let leaves = self.state.leaves.clone();
        let progress = Progress::default();
        let started = Instant::now();
        let saved = CheckpointWriter::standalone(engine, target)
            .item(ITEM, Item::Tree(leaves))
            .options(options.clone())
            .progress(progress)
            .save_blocking()?;
        row.seconds.push(started.elapsed().as_secs_f64());
        for stage in &saved.stages {
            row.stage(stage.name, stage.time.as_secs_f64());
        }
        Ok(())
    }

    /// Makes sure that what is measured is a restore: the arrays are those that were saved.
    fn compare(&self, restored: &Tree<ArrayData>) -> Result<()> {
        let error = || Error::new(ErrorKind::Corrupt, "the restored state is not the saved one");
        if restored.leaf_count() != self.state.bytes.len() {
            return Err(error().with("leaves", restored.leaf_count()));
        }
        let saved = self.state.leaves.leaves().zip(&self.state.bytes);
        for (((path, _), bytes), (restored, data)) in saved.zip(restored.leaves()) {
            if path != restored || bytes[..] != data.bytes[..] {
                return Err(error().with("leaf", path));
            }
        }
        Ok(())
    }

    fn say(&self, repetition: u32, setting: &Setting) {
        let last = |row: &Row| format!("{} {:.3} s", row.operation, row.seconds.last());
        let rows: Vec<_> = setting.rows.iter().map(last).collect();
        let (n, of) = (repetition + 1, self.args.repeat);
        let (codec, chunk) = (setting.options.compressor, size::show(setting.options.chunk_bytes));
        self.ctx.note(format_args!("{n}/{of} {codec} {chunk}: {}", rows.join(", ")));
    }

    fn report(&self, settings: &[Setting]) -> Report {
        let mut report = Report::new(&[
            "state",
            "codec",
            "chunk",
            "budget",
            "operation",
            "bytes",
            "median_ms",
            "min_ms",
            "max_ms",
            "MB/s",
            "ceiling_MB/s",
            "fresh_MB/s",
            "ratio",
            "stages_ms",
        ]);
        for setting in settings {
            for row in &setting.rows {
                report.row(self.cells(setting, row));
            }
        }
        if self.refused {
            report.note(
                "the file system refuses O_DIRECT: the raw rates went through the page cache",
            );
        }
        if self.ground.place().local_path().is_none() {
            report.note("no local files: cold and warm are the same here; the raw rates are those of PUT and GET");
        }
        report
    }

    fn cells(&self, setting: &Setting, row: &Row) -> Vec<Cell> {
        let (seconds, ceiling) = (row.seconds.median(), row.ceiling.median());
        let rate = |seconds: f64| Cell::Number(megabytes(row.bytes) / seconds, 0);
        let stages = row.stages.iter().map(|(name, ms)| ((*name).to_owned(), ms.median()));
        vec![
            Cell::text(&self.args.state),
            Cell::text(&setting.options.compressor),
            Cell::Bytes(setting.options.chunk_bytes),
            Cell::Bytes(setting.engine.options().budget_bytes),
            Cell::text(&row.operation),
            Cell::Count(row.bytes),
            Cell::Number(seconds * 1e3, 1),
            Cell::Number(row.seconds.min() * 1e3, 1),
            Cell::Number(row.seconds.max() * 1e3, 1),
            rate(seconds),
            rate(ceiling),
            rate(row.fresh.median()),
            Cell::Number(ceiling / seconds, 2),
            Cell::Stages(stages.collect()),
        ]
    }
}

/// Returns the raw load of `bytes`: as the place wants to be asked.
fn raw_load(place: &Place, bytes: u64) -> Load {
    let (block_bytes, at_once) = if place.local_path().is_some() {
        (LOCAL_BLOCK_BYTES, LOCAL_STREAMS)
    } else {
        let capabilities = place.store().capabilities();
        (capabilities.part_bytes as u64, capabilities.concurrency.max(1))
    };
    // A load of a few blocks is divided so that every stream has its share.
    let share = bytes.div_ceil(at_once as u64).max(1);
    Load { total_bytes: bytes, block_bytes: block_bytes.min(share), at_once }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Times the stages of one operation, one after the other.
struct Laps<'a> {
    row: &'a mut Row,
    started: Instant,
    last: Instant,
}

impl<'a> Laps<'a> {
    fn start(row: &'a mut Row) -> Self {
        let started = Instant::now();
        Self { row, started, last: started }
    }

    fn end(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.row.stage(stage, now.duration_since(self.last).as_secs_f64());
        self.last = now;
    }

    fn finish(self) {
        let seconds = self.last.duration_since(self.started).as_secs_f64();
        self.row.seconds.push(seconds);
    }
}

fn restore(row: &mut Row, engine: &Arc<Engine>, target: &Place) -> Result<Tree<ArrayData>> {
    let mut laps = Laps::start(row);
    let checkpoint = Checkpoint::open_blocking(engine, target)?;
    laps.end("open");
    let index = checkpoint.item_index_blocking(ITEM)?;
    laps.end("index");
    let tree = block_on(index.restore(&Select::all()))?;
    laps.end("read");
    laps.finish();
    Ok(tree)
}

fn one_parameter(row: &mut Row, engine: &Arc<Engine>, target: &Place, state: State) -> Result<()> {
    let mut laps = Laps::start(row);
    let checkpoint = Checkpoint::open_blocking(engine, target)?;
    laps.end("open");
    let leaf = checkpoint.leaf_blocking(ITEM, state.one_parameter())?;
    laps.end("leaf");
    let data = leaf.read_blocking()?;
    laps.end("read");
    laps.finish();
    drop(data);
    Ok(())
}
