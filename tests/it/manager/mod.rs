//! The manager as a training loop sees it: each sentence of issue 3, and each headline of `orbax.md` with the better
//! behaviour. What all of them need is here: a state that tells which save it is from, gates, and both kinds of stores.

mod failures;
mod finding;
mod keeping;
mod saving;

use milepost::{
    Checkpoint, DataType, Engine, Error, ErrorKind, FaultStore, Item, Leaf, Manager,
    ManagerOptions, MemoryStore, ObjectStoreAdapter, Place, Remote, SaveHandle, SaveOutcome,
    SaveRequest, StepState, Store, Subset, Tree,
};
use std::{
    fmt,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

const LEN: u64 = 64;

pub(crate) fn engine() -> Arc<Engine> {
    Engine::builder()
        .options(milepost::EngineOptions {
            budget_bytes: 16 << 20,
            codec_threads: 4,
            disk_threads: 2,
        })
        .build()
        .unwrap()
}

/// An object store: conditional creates and revisions, no renames.
pub(crate) fn buckets() -> Arc<dyn Store> {
    let inner = Arc::new(object_store::memory::InMemory::new());
    Arc::new(ObjectStoreAdapter::new(inner, "memory://theirs", Remote::new()))
}

/// A fresh store of each kind: with renames, and without.
pub(crate) fn stores() -> [(&'static str, Arc<FaultStore>); 2] {
    [
        ("renames", FaultStore::new(MemoryStore::new())),
        ("conditional creates", FaultStore::new(buckets())),
    ]
}

pub(crate) fn run_in(store: &Arc<FaultStore>) -> Place {
    let store: Arc<dyn Store> = Arc::<FaultStore>::clone(store);
    Place::new(store, "run")
}

pub(crate) fn memory() -> Place {
    Place::new(MemoryStore::new(), "run")
}

fn value(step: u64, generation: u64, i: u64) -> u64 {
    (step << 32) ^ (generation << 16) ^ i
}

pub(crate) fn values(step: u64, generation: u64) -> Vec<u64> {
    (0..LEN).map(|i| value(step, generation, i)).collect()
}

fn tree(weights: Leaf, step: u64, generation: u64) -> Item {
    Item::Tree(Tree::dict([
        ("w", Tree::leaf(weights)),
        ("step", Tree::leaf(Leaf::int(step.into()).unwrap())),
        ("generation", Tree::leaf(Leaf::int(generation.into()).unwrap())),
    ]))
}

/// A small state that tells of which step and of which save of it.
pub(crate) fn state(step: u64, generation: u64) -> Item {
    tree(Leaf::from_vec(values(step, generation), &[LEN]).unwrap(), step, generation)
}

pub(crate) fn request(step: u64) -> SaveRequest<'static> {
    SaveRequest::new(step).item("state", state(step, 0))
}

/// Reads a state back and checks every element; returns its step and generation.
pub(crate) fn contents(checkpoint: &Checkpoint) -> milepost::Result<(u64, u64)> {
    let read = |path: &str| checkpoint.leaf_blocking("state", path)?.read_blocking();
    let number =
        |path: &str| Ok::<_, Error>(u64::try_from(read(path)?.to_vec::<i64>()?[0]).unwrap());
    let (step, generation) = (number("step")?, number("generation")?);
    assert_eq!(read("w")?.to_vec::<u64>()?, values(step, generation), "step {step}");
    Ok((step, generation))
}

pub(crate) fn open(engine: &Arc<Engine>, run: &Place, options: ManagerOptions) -> Manager {
    Manager::open(engine, run, options).unwrap()
}

/// What a fresh process sees.
pub(crate) fn fresh(engine: &Arc<Engine>, run: &Place) -> Manager {
    open(engine, run, ManagerOptions { read_only: true, ..ManagerOptions::default() })
}

pub(crate) fn start(manager: &Manager, request: SaveRequest<'_>) -> SaveHandle {
    match manager.save(request).unwrap() {
        SaveOutcome::Started(handle) => handle,
        SaveOutcome::Skipped(reason) => panic!("skipped: {reason}"),
    }
}

pub(crate) fn save(manager: &Manager, step: u64) {
    start(manager, request(step)).wait().unwrap();
}

/// The committed steps; none may be damaged.
pub(crate) fn steps(manager: &Manager) -> Vec<u64> {
    let step = |entry: milepost::StepEntry| match entry.state {
        StepState::Committed(_) => entry.step,
        StepState::Damaged(why) => panic!("step {} is damaged: {why}", entry.step),
    };
    manager.steps().into_iter().map(step).collect()
}

/// Restores every listed step, here and in a fresh process; both must see `wanted`, step and generation.
pub(crate) fn assert_holds(engine: &Arc<Engine>, manager: &Manager, wanted: &[(u64, u64)]) {
    for manager in [manager, &fresh(engine, manager.run().place())] {
        let numbers: Vec<u64> = wanted.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps(manager), numbers);
        assert_eq!(manager.latest_step(), numbers.last().copied());
        for pair in wanted {
            let opened = manager.restore(milepost::Which::Step(pair.0)).unwrap();
            assert_eq!(contents(&opened.checkpoint).unwrap(), *pair);
        }
    }
}

/// The keys below a run without the run's own documents.
pub(crate) fn keys(run: &Place) -> Vec<String> {
    let objects = futures::executor::block_on(run.store().list_all(run.prefix())).unwrap();
    let own = [run.key("zarr.json"), run.key(".milepost/zarr.json")];
    objects.into_iter().map(|o| o.key).filter(|key| !own.contains(key)).collect()
}

/// How many operations that can change something a store was asked for.
pub(crate) fn changes(store: &FaultStore) -> u64 {
    let counts = store.counts();
    counts.iter().filter(|(verb, _)| verb.changes()).map(|(_, count)| count.requests).sum()
}

/// Leaves whose saves wait until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    /// How many wait or waited, and whether it is open.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// Longer than any test waits: a test that fails ends nevertheless.
    const PATIENCE: Duration = Duration::from_secs(20);

    pub(crate) fn item(self: &Arc<Self>, step: u64, generation: u64) -> Item {
        let gate = Arc::clone(self);
        let fill = move |subset: &Subset, out: &mut [u8]| {
            gate.pass()?;
            for (i, item) in (subset.start()[0]..).zip(out.chunks_exact_mut(8)) {
                item.copy_from_slice(&value(step, generation, i).to_le_bytes());
            }
            Ok(())
        };
        let leaf = Leaf::from_provider(DataType::UInt64, vec![LEN], Arc::new(fill)).unwrap();
        tree(leaf, step, generation)
    }

    pub(crate) fn request(self: &Arc<Self>, step: u64) -> SaveRequest<'static> {
        SaveRequest::new(step).item("state", self.item(step, 0))
    }

    /// Waits until it is open.
    pub(crate) fn pass(&self) -> milepost::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let (state, _) =
            self.changed.wait_timeout_while(state, Self::PATIENCE, |(_, open)| !*open).unwrap();
        let shut = || Error::new(ErrorKind::Internal, "nobody opened the gate");
        state.1.then_some(()).ok_or_else(shut)
    }

    /// Waits until so many are at the gate.
    pub(crate) fn wait_for(&self, arrived: usize) {
        let state = self.state.lock().unwrap();
        let (state, _) =
            self.changed.wait_timeout_while(state, Self::PATIENCE, |(n, _)| *n < arrived).unwrap();
        assert!(state.0 >= arrived, "{} of {arrived} came", state.0);
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}
