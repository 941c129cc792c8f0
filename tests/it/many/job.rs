//! What one participant does, and what the others see of the end.

use milepost::{
    Checkpoint, DataType, Engine, Error, FaultStore, InProcess, Item, Leaf, Manager,
    ManagerOptions, ObjectStoreAdapter, Operation, ParticipantWriter, Place, Remote, Rendezvous,
    SaveOptions, Saved, StepState, StoreRendezvous, Subset, SystemClock, Tree,
};
use object_store::local::LocalFileSystem;
use std::{path::Path, sync::Arc, time::Duration};

pub(crate) const STEP: u64 = 5;
/// Rows and columns of the shared array; the rows are divided among the participants.
const ROWS: u64 = 24;
const COLUMNS: u64 = 1000;

pub(crate) const RENAMES: &str = "renames";
pub(crate) const S3: &str = "S3";

/// Every kind of place that outlives a process and has a commit of its own; S3 where there is an emulator.
pub(crate) fn kinds() -> Vec<&'static str> {
    let s3 = crate::remote::emulator().map(|_| S3);
    [RENAMES, "conditional creates"].into_iter().chain(s3).collect()
}

pub(crate) fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(16 << 20).build().unwrap()
}

pub(crate) fn place(engine: &Engine, kind: &str, run: &Path) -> Place {
    if kind == S3 {
        let (bucket, options) = crate::remote::emulator().unwrap();
        // The directory's name is nobody else's.
        let own = run.parent().unwrap().file_name().unwrap().to_string_lossy();
        let url = format!("{bucket}/many-{}", own.trim_start_matches('.'));
        return engine.place(&url, &options).unwrap();
    }
    std::fs::create_dir_all(run).unwrap();
    if kind == RENAMES {
        return engine.place(&run.to_string_lossy(), &[]).unwrap();
    }
    let files = LocalFileSystem::new_with_prefix(run).unwrap();
    let store = ObjectStoreAdapter::new(Arc::new(files), "file://objects", Remote::new());
    Place::new(Arc::new(store), "run")
}

fn values(elements: impl Iterator<Item = u64>, generation: u64) -> Vec<u64> {
    elements.map(|e| (e + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ generation).collect()
}

/// Rows that one holds, a leaf that all hold, and one that says whose they are.
fn state(index: usize, count: usize, generation: u64) -> Item {
    let rows = ROWS / count as u64;
    let start = index as u64 * rows;
    let own = Subset::new(vec![start, 0], vec![rows, COLUMNS]).unwrap();
    let block = values(start * COLUMNS..(start + rows) * COLUMNS, generation);
    let bytes: Vec<u8> = block.into_iter().flat_map(u64::to_le_bytes).collect();
    let blocks = vec![(own, bytes.into())];
    let rows = Leaf::from_held_boxes(DataType::UInt64, vec![ROWS, COLUMNS], blocks).unwrap();
    let all = Leaf::from_vec(values(0..100, generation), &[100]).unwrap();
    Item::Tree(Tree::dict([
        ("rows", Tree::leaf(rows)),
        ("all", Tree::leaf(all)),
        ("generation", Tree::leaf(Leaf::int(generation.into()).unwrap())),
    ]))
}

/// Saves one generation of the step as one participant; the generation before is replaced.
pub(crate) fn save(
    engine: &Arc<Engine>,
    run: &Place,
    member: Arc<dyn Rendezvous>,
    (generation, deadline): (u64, Duration),
) -> Result<Saved, Error> {
    let (index, count) = (member.index(), member.count());
    let options = SaveOptions { overwrite: generation > 0, ..SaveOptions::default() };
    ParticipantWriter::step(engine, run, STEP, member)
        .item("state", state(index, count, generation))
        .item(format!("iterator-{index}"), Item::Bytes(format!("{generation}").into()))
        .options(options)
        .deadline(deadline)
        .save_blocking()
}

/// Saves a generation by threads of this process.
pub(crate) fn save_here(run: &Place, count: usize, generation: u64) {
    let clock: Arc<dyn milepost::Clock> = Arc::new(SystemClock::default());
    let members = InProcess::group(count, &clock);
    std::thread::scope(|scope| {
        for member in members {
            let save = move || {
                let deadline = Duration::from_secs(20);
                save(&engine(), run, Arc::new(member), (generation, deadline)).unwrap();
            };
            std::thread::Builder::new().spawn_scoped(scope, save).unwrap();
        }
    });
}

/// Looks at the run as a fresh process would: the generation that is there, whole and bit-exact.
pub(crate) fn look(run: &Place) -> u64 {
    let options = ManagerOptions { read_only: true, ..ManagerOptions::default() };
    let manager = Manager::open(&engine(), run, options).unwrap();
    let steps = manager.steps();
    assert_eq!(steps.len(), 1, "one step, and nothing else");
    let StepState::Committed(checkpoint) = &steps[0].state else {
        panic!("the step is damaged: {:?}", steps[0].state);
    };
    check(checkpoint)
}

fn check(checkpoint: &Checkpoint) -> u64 {
    let report = checkpoint.verify_blocking().unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
    let read =
        |leaf: &str| checkpoint.leaf_blocking("state", leaf).unwrap().read_blocking().unwrap();
    let generation = u64::try_from(read("generation").to_vec::<i64>().unwrap()[0]).unwrap();
    assert_eq!(read("rows").to_vec::<u64>().unwrap(), values(0..ROWS * COLUMNS, generation));
    assert_eq!(read("all").to_vec::<u64>().unwrap(), values(0..100, generation));
    generation
}

/// Joins the session that the parent named, through a store that shows each operation before it is done.
pub(crate) fn participate(
    (kind, run): (&str, &Path),
    (session, member): (&str, (usize, usize)),
    (generation, deadline): (u64, Duration),
    mut at: impl FnMut(&Operation) + Send + 'static,
) -> Result<Saved, Error> {
    let engine = engine();
    let place = place(&engine, kind, run);
    let store = FaultStore::new(Arc::clone(place.store()));
    store.set_rule(move |operation| {
        at(operation);
        None
    });
    let place = Place::new(store, place.prefix());
    let joined = StoreRendezvous::with_session(&engine, &place, session, member);
    let joined = futures::executor::block_on(joined)?;
    save(&engine, &place, Arc::new(joined), (generation, deadline))
}
