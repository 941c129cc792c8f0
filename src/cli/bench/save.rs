//! `milepost bench save`: how long a training loop is blocked by a save in the background.
//!
//! One repetition: a plain copy of the state into fresh memory, one into memory that was touched before, a managed save
//! of leaves that are handed over, one of leaves that are borrowed. Only the call of `save` is timed; before the
//! next row the save is waited for, so that no row competes with another one's disk work.

use super::{
    ground::Ground,
    report::{Cell, Report},
    sample::Samples,
};
use crate::cli::{context::Context, size};
use bytes::Bytes;
use milepost::{
    Borrowed, DataType, Engine, Error, ErrorKind, Item, Leaf, Manager, ManagerOptions, Place,
    Preservation, Result, SaveRequest, Tree,
};
use std::{process::ExitCode, sync::Arc, time::Instant};

/// Measure how long `save` blocks its caller: leaves handed over, and leaves borrowed beside a plain copy.
///
/// Works in a new directory below URL and removes it at the end, and nothing else.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory or URL; it need not exist yet.
    url: String,
    /// The number of leaves, all of one size.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    leaves: u64,
    /// The bytes of all leaves.
    #[arg(long, default_value = "1GiB", value_parser = size::parse)]
    bytes: u64,
    /// Repetitions of everything; the table shows medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Print comma-separated values.
    #[arg(long)]
    csv: bool,
}

const ROWS: [&str; 4] = ["copy, fresh", "copy, touched", "save, handed over", "save, borrowed"];

pub(crate) fn run(args: &Args, ctx: &Context) -> Result<ExitCode> {
    let each = usize::try_from(args.bytes / args.leaves).unwrap_or(usize::MAX);
    if each == 0 {
        return Err(Error::new(ErrorKind::Invalid, "a leaf has less than a byte")
            .hint("give fewer --leaves or more --bytes"));
    }
    // Half of the budget is for copies; they are to fit, or the disk would be measured.
    let engine =
        Engine::builder().budget_bytes((args.bytes * 2 + (64 << 20)).max(1 << 30)).build()?;
    let base = ctx.place_through(&engine, &args.url)?;
    let ground = Ground::new(&base)?;
    ground.expect_room(args.bytes * u64::from(args.repeat + 1) * 2)?;
    let bench = Bench { place: ground.below(&base), engine, state: fill(args.leaves, each) };
    let samples = bench.run(args.repeat, ctx)?;
    let report = report(&samples, args, &bench.engine);
    ground.clear()?;
    super::print(&report, args.csv, ctx)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes leaves of different bytes.
fn fill(leaves: u64, each: usize) -> Vec<Vec<u8>> {
    let mut word = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.to_le_bytes()
    };
    (0..leaves).map(|_| (0..each.div_ceil(8)).flat_map(|_| next()).take(each).collect()).collect()
}

struct Bench {
    engine: Arc<Engine>,
    place: Place,
    state: Vec<Vec<u8>>,
}

impl Bench {
    fn run(&self, repeat: u32, ctx: &Context) -> Result<[Samples; 4]> {
        let mut touched: Vec<Vec<u8>> = self.state.clone();
        let shared: Vec<Bytes> = self.state.iter().map(|leaf| Bytes::from(leaf.clone())).collect();
        let options =
            ManagerOptions { preservation: Preservation::Latest(1), ..ManagerOptions::default() };
        let manager = Manager::open(&self.engine, &self.place, options)?;
        let mut samples: [Samples; 4] = std::array::from_fn(|_| Samples::default());
        let mut step = 0;
        for turn in 0..=repeat {
            ctx.note(format_args!("turn {turn} of {repeat}"));
            let row = [
                timed(|| Ok(self.state.clone()))?,
                timed(|| {
                    touched
                        .iter_mut()
                        .zip(&self.state)
                        .for_each(|(to, from)| to.copy_from_slice(from));
                    Ok(())
                })?,
                save(&manager, step, |_| {
                    shared.iter().map(|leaf| of_bytes(leaf.clone())).collect()
                })?,
                save(&manager, step + 1, |borrowed| {
                    let mut leaves = Vec::with_capacity(self.state.len());
                    for leaf in &self.state {
                        let shape = vec![leaf.len() as u64];
                        leaves.push(borrowed.leaf_of_bytes(DataType::UInt8, shape, leaf)?);
                    }
                    Ok(leaves)
                })?,
            ];
            step += 2;
            // The first turn starts threads, makes the run and warms what can be warmed.
            if turn > 0 {
                samples.iter_mut().zip(row).for_each(|(samples, seconds)| samples.push(seconds));
            }
        }
        manager.close()?;
        Ok(samples)
    }
}

/// Times the call of one save, from named leaves to its return, then waits for its end.
fn save<'a>(
    manager: &Manager,
    step: u64,
    leaves: impl FnOnce(&mut Borrowed<'a>) -> Result<Vec<Leaf>>,
) -> Result<f64> {
    let mut borrowed = Borrowed::new();
    let leaves = leaves(&mut borrowed)?;
    let named = leaves.into_iter().enumerate().map(|(i, leaf)| (format!("w{i}"), Tree::leaf(leaf)));
    let request =
        SaveRequest::new(step).item("state", Item::Tree(Tree::dict(named))).borrowing(borrowed);
    let seconds = timed(|| manager.save(request).map(drop))?;
    manager.wait()?;
    Ok(seconds)
}

fn of_bytes(bytes: Bytes) -> Result<Leaf> {
    Leaf::from_bytes(DataType::UInt8, vec![bytes.len() as u64], bytes)
}

/// Returns the seconds until `f` returns; what it made is dropped afterwards.
fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    let made = f()?;
    let seconds = start.elapsed().as_secs_f64();
    drop(made);
    Ok(seconds)
}

fn report(samples: &[Samples; 4], args: &Args, engine: &Engine) -> Report {
    let mut report = Report::new(&["row", "ms", "min", "max", "of a fresh copy"]);
    let fresh = samples[0].median();
    for (name, samples) in ROWS.iter().zip(samples) {
        report.row(vec![
            Cell::text(name),
            Cell::Number(samples.median() * 1e3, 2),
            Cell::Number(samples.min() * 1e3, 2),
            Cell::Number(samples.max() * 1e3, 2),
            Cell::Number(samples.median() / fresh, 3),
        ]);
    }
    report.note(format!(
        "{} leaves, {} in all, medians of {}; budget {}",
        args.leaves,
        super::report::exact(args.bytes),
        args.repeat,
        super::report::exact(engine.options().budget_bytes),
    ));
    report
}
