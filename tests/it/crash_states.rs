//! The crash-state model: whatever a power cut leaves of a simulated disk, the run recovers.
//!
//! A workload goes through the real writer onto a [`SimDisk`]. For each prefix of its system calls the disk is left
//! as it can be: nothing unsynced there, everything there, and samples of subsets and torn files. On each such image
//! every step must be what it was before the action in flight or what it is after it, whole; the newest must be found,
//! and saving must go on.
//!
//! `MILEPOST_SEED` chooses the samples, `MILEPOST_STATES` how many different ones there are at least.

use crate::disk::{Fate, Image, SimDisk};
use futures::executor::block_on;
use milepost::{
    Burial, Checkpoint, CheckpointWriter, Clock, Engine, ErrorKind, Item, Leaf, Place, Run,
    SaveOptions, StepEntry, StepState, Store, Tree,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What the training loop does; each writes other values.
#[derive(Clone, Copy, Debug)]
enum Action {
    Save(u64),
    Overwrite(u64),
    /// A save during which the disk goes away: its files are left to a sweep.
    Fail(u64),
    Remove(u64),
    /// An hour later, when the marks of the dead have run out.
    Sweep,
}

use Action::{Fail, Overwrite, Remove, Save, Sweep};

const WORKLOAD: [Action; 11] = [
    Save(10),
    Save(20),
    Overwrite(20),
    Overwrite(10),
    Fail(25),
    Save(30),
    Remove(20),
    Sweep,
    Overwrite(30),
    Save(40),
    Remove(40),
];

/// Threads that check states, each with an engine of its own.
const THREADS: usize = 2;
/// Samples a prefix at most: where there are no other states left, the test says so.
const ROUNDS_MAX: u64 = 1_000;

impl Action {
    fn perform(
        self,
        engine: &Arc<Engine>,
        disk: &Arc<SimDisk>,
        value: u32,
    ) -> milepost::Result<()> {
        let place = run_on(disk);
        match self {
            Save(step) => writer(engine, &place, step, value, false).save_blocking().map(drop),
            Overwrite(step) => writer(engine, &place, step, value, true).save_blocking().map(drop),
            Fail(step) => {
                disk.fail_after(Some(disk.operations() + 30));
                let failed = writer(engine, &place, step, value, false).save_blocking();
                assert!(failed.is_err(), "the disk was gone");
                disk.fail_after(None);
                Ok(())
            }
            Remove(step) => {
                let run = Run::new(engine, &place);
                block_on(run.remove(step, &Burial::Delete, false)).map(drop)
            }
            Sweep => {
                disk.advance(Duration::from_hours(1));
                let swept = sweep(&Run::new(engine, &place))?;
                assert!(swept > 0, "there was something to sweep");
                Ok(())
            }
        }
    }

    /// The step that it changes, and what is there afterwards.
    fn result(self, value: u32) -> Option<(u64, Option<u32>)> {
        match self {
            Save(step) | Overwrite(step) => Some((step, Some(value))),
            Remove(step) => Some((step, None)),
            Fail(_) | Sweep => None,
        }
    }
}

fn sweep(run: &Run) -> milepost::Result<usize> {
    let dead = block_on(run.leftovers())?;
    let report = block_on(run.sweep(&dead))?;
    match report.failed.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(report.swept.len()),
    }
}

/// A clock that tells every run of the test the same.
#[derive(Debug, Default)]
struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn unix_ms(&self) -> u64 {
        1_800_000_000_000
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn unique_id(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)) << 32 | 0xabcd
    }
}

fn engine() -> Arc<Engine> {
    let options =
        milepost::EngineOptions { budget_bytes: 4 << 20, codec_threads: 1, disk_threads: 1 };
    Engine::builder().options(options).with_clock(Arc::new(Ticks::default())).build().unwrap()
}

/// Three pages and a bit in two chunks, one small array, one scalar.
fn state(value: u32) -> Tree<Leaf> {
    let values: Vec<u32> = (0..3_100).map(|i| i * 7 + value).collect();
    let large = Leaf::from_vec(values, &[31, 100]).unwrap();
    let small = Leaf::from_vec(vec![value; 5], &[5]).unwrap();
    Tree::dict([
        ("w", Tree::leaf(large.with_chunk_shape(vec![20, 100]))),
        ("b", Tree::leaf(small)),
        ("n", Tree::leaf(Leaf::int(value.into()).unwrap())),
    ])
}

fn writer(
    engine: &Arc<Engine>,
    run: &Place,
    step: u64,
    value: u32,
    overwrite: bool,
) -> CheckpointWriter {
    CheckpointWriter::step(engine, run, step)
        .item("state", Item::Tree(state(value)))
        .item("config", Item::Json(serde_json::json!({ "value": value })))
        .options(SaveOptions { overwrite, ..SaveOptions::default() })
}

fn run_on(disk: &Arc<SimDisk>) -> Place {
    Place::new(Arc::clone(disk) as Arc<dyn Store>, "run")
}

/// Returns the value with which a step was saved, if it is all there and nothing else.
fn value_of(checkpoint: &Checkpoint) -> Result<u32, String> {
    let report = checkpoint.verify_blocking().map_err(|e| format!("verify: {e}"))?;
    if !report.is_good() || !report.findings.is_empty() {
        return Err(format!("verify: {:?}", report.findings));
    }
    let restored = checkpoint.restore_blocking("state").map_err(|e| format!("restore: {e}"))?;
    let leaves: BTreeMap<String, Vec<u8>> =
        restored.leaves().map(|(path, data)| (path.to_string(), data.bytes.to_vec())).collect();
    let small = leaves.get("b").and_then(|bytes| bytes.get(..4)).ok_or("no leaf `b`")?;
    let value = u32::from_le_bytes(small.try_into().unwrap());
    let wanted = (0..3_100).flat_map(|i| (i * 7 + value).to_le_bytes());
    if !leaves["w"].iter().copied().eq(wanted) || leaves["n"] != i64::from(value).to_le_bytes() {
        return Err(format!("the leaves are not those of {value}"));
    }
    Ok(value)
}

/// What each step may be; `None`: not there.
type Allowed = BTreeMap<u64, BTreeSet<Option<u32>>>;

/// Returns the steps that are there with their values; each must be whole.
fn list(run: &Run) -> Result<BTreeMap<u64, u32>, String> {
    let entries = match run.steps_blocking() {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(format!("list: {e}")),
    };
    let value = |entry: &StepEntry| match &entry.state {
        StepState::Committed(checkpoint) => value_of(checkpoint),
        StepState::Damaged(why) => Err(format!("damaged: {why}")),
    };
    let named = |entry: &StepEntry| match value(entry) {
        Ok(value) => Ok((entry.step, value)),
        Err(what) => Err(format!("step {}: {what}", entry.step)),
    };
    entries.iter().map(named).collect()
}

/// Checks one image and goes on: a sweep, the next step or the newest once more; the error says what is wrong.
fn recover(
    engine: &Arc<Engine>,
    image: Image,
    allowed: &Allowed,
    digest: u64,
) -> Result<(), String> {
    let disk = SimDisk::new(image);
    let place = run_on(&disk);
    let run = Run::new(engine, &place);
    let found = list(&run)?;
    for (step, values) in allowed {
        let value = found.get(step).copied();
        if !values.contains(&value) {
            return Err(format!("step {step} is {value:?}, but may be {values:?}"));
        }
    }
    if let Some(step) = found.keys().find(|step| !allowed.contains_key(step)) {
        return Err(format!("step {step} was never saved"));
    }
    let newest = match block_on(run.newest()) {
        Ok(checkpoint) => checkpoint.place().name().parse().ok(),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(format!("newest: {e}")),
    };
    let highest = found.keys().last().copied();
    if newest != highest {
        return Err(format!("the newest is {newest:?}, not {highest:?}"));
    }
    if digest.is_multiple_of(2) {
        sweep(&run).map_err(|e| format!("sweep: {e:?}"))?;
        if list(&run)? != found {
            return Err("the sweep changed the steps".to_owned());
        }
    }
    let overwrite = digest.is_multiple_of(3) && highest.is_some();
    let step = highest.map_or(10, |step| step + u64::from(!overwrite));
    let again = writer(engine, &place, step, 999, overwrite);
    again.save_blocking().map_err(|e| format!("saving {step}: {e:?}"))?;
    let saved = block_on(run.step(step)).map_err(|e| format!("opening {step}: {e}"))?;
    match value_of(&saved)? {
        999 => Ok(()),
        value => Err(format!("step {step} has {value} after 999 was saved")),
    }
}

/// The workload as it was done: where in the log each action began and ended.
struct Done {
    disk: Arc<SimDisk>,
    actions: Vec<(Action, u32, usize, usize)>,
}

fn perform(engine: &Arc<Engine>) -> Done {
    let disk = SimDisk::new(Image::default());
    let mut actions = Vec::new();
    for (value, action) in (1..).zip(WORKLOAD) {
        let begin = disk.operations();
        action.perform(engine, &disk, value).unwrap();
        actions.push((action, value, begin, disk.operations()));
    }
    Done { disk, actions }
}

impl Done {
    /// What may be there after the first `count` operations.
    fn allowed(&self, count: usize) -> Allowed {
        let mut allowed = Allowed::new();
        for (action, value, begin, end) in &self.actions {
            let Some((step, after)) = action.result(*value) else { continue };
            let values = allowed.entry(step).or_insert_with(|| BTreeSet::from([None]));
            if count >= *end {
                values.clear();
            }
            if count > *begin {
                values.insert(after);
            }
        }
        allowed
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The states that were checked; the same image with the same claims is one state.
#[derive(Default)]
struct Seen {
    states: Mutex<BTreeSet<(u64, Allowed)>>,
    images: AtomicU64,
}

impl Done {
    /// Makes the image of one crash and checks it, unless that was done.
    fn check(&self, engine: &Arc<Engine>, checked: &Seen, count: usize, fate: Fate) {
        let (image, allowed) = (self.disk.crash(count, fate), self.allowed(count));
        checked.images.fetch_add(1, Ordering::Relaxed);
        let digest = image.digest();
        if !checked.states.lock().unwrap().insert((digest, allowed.clone())) {
            return;
        }
        let tree = image.tree();
        if let Err(what) = recover(engine, image, &allowed, digest) {
            let last = count.checked_sub(1).map(|last| self.disk.operation(last));
            panic!("after {count} operations, {fate:?}: {what}\nlast: {last:?}\nimage: {tree:#?}");
        }
    }

    /// Checks the share of one thread: all prefixes in rounds, until there are enough states.
    fn check_share(&self, share: usize, seed: u64, wanted: u64, checked: &Seen) {
        let engine = engine();
        for round in 0..ROUNDS_MAX {
            for count in (share..=self.disk.operations()).step_by(THREADS) {
                let fate = match round {
                    0 => Fate::Lost,
                    1 => Fate::Kept,
                    _ => Fate::Torn(seed ^ (count as u64) << 32 ^ round),
                };
                self.check(&engine, checked, count, fate);
            }
            if round > 1 && checked.states.lock().unwrap().len() as u64 >= wanted {
                break;
            }
        }
        assert_eq!(engine.budget().used(), 0);
    }
}

#[test]
fn every_crash_leaves_each_step_old_or_new_and_whole() {
    let first = number("MILEPOST_SEED", 0x5eed_2026);
    let wanted = number("MILEPOST_STATES", 10_000);
    let started = Instant::now();
    let done = perform(&engine());
    println!("MILEPOST_SEED={first} MILEPOST_STATES={wanted} log={:016x}", done.disk.digest());
    let seen = Seen::default();
    std::thread::scope(|scope| {
        for share in 0..THREADS {
            let (workload, shared) = (&done, &seen);
            scope.spawn(move || workload.check_share(share, first, wanted, shared));
        }
    });
    let (images, states) = (seen.images.into_inner(), seen.states.into_inner().unwrap().len());
    println!(
        "{states} different crash states ({images} images) after {} operations of {} actions, \
         all recovered in {:.1} s",
        done.disk.operations(),
        done.actions.len(),
        started.elapsed().as_secs_f64(),
    );
    assert!(states as u64 >= wanted, "{states} states are not {wanted}");
}
