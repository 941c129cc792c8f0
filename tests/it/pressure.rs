//! Budget, slots, failures and cancellation, judged by the real gauges and by what is left behind.

use futures::{FutureExt, task::noop_waker_ref};
use milepost::{
    Action, Checkpoint, CheckpointWriter, DataType, Engine, Error, ErrorKind, FaultStore, Item,
    Leaf, MemoryStore, ObjectStoreAdapter, Place, Remote, Run, SaveOptions, Subset, Tree, Verb,
    formats::zarr3::Compressor,
};
use std::{sync::Arc, task::Context, time::Duration};

const MIB: u64 = 1 << 20;
const BUDGET: u64 = 8 * MIB;

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(BUDGET).build().unwrap()
}

fn values(mib: u64) -> Vec<u32> {
    (0..u32::try_from(mib * MIB / 4).unwrap()).map(|i| i.wrapping_mul(2_654_435_761)).collect()
}

fn large() -> Tree<Leaf> {
    Tree::dict([
        ("flat", Tree::leaf(Leaf::from_vec(values(32), &[8 << 20]).unwrap())),
        ("wide", Tree::leaf(Leaf::from_vec(values(32), &[2048, 4096]).unwrap())),
    ])
}

/// 2 MiB in shards, in objects of their own and in documents.
fn mixed() -> Tree<Leaf> {
    let leaf = |chunk| {
        Leaf::from_vec(values(1), &[256, 1024]).unwrap().with_chunk_shape(vec![chunk, 1024])
    };
    Tree::dict([
        ("aligned", Tree::leaf(leaf(64).with_shard_shape(vec![128, 1024]))),
        ("packed", Tree::leaf(leaf(4).with_shard_shape(vec![128, 1024]))),
        ("plain", Tree::leaf(leaf(256))),
        ("scalar", Tree::leaf(Leaf::int(7).unwrap())),
    ])
}

fn check(engine: &Arc<Engine>, place: &Place, tree: &Tree<Leaf>, wanted: &[u32]) {
    let checkpoint = Checkpoint::open_blocking(engine, place).unwrap();
    let restored = checkpoint.restore_blocking("state").unwrap();
    assert_eq!(restored.leaf_count(), tree.leaf_count());
    for (path, data) in restored.leaves().filter(|(_, data)| data.data_type == DataType::UInt32) {
        assert!(data.to_vec::<u32>().unwrap() == wanted, "{path}");
    }
}

#[test]
fn a_save_and_a_restore_of_64_mib_stay_within_a_budget_of_8() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = values(32);
    for codec in ["none", "zstd:1"] {
        let compressor: Compressor = codec.parse().unwrap();
        let engine = engine();
        let local = engine.place(dir.path().join(codec).to_str().unwrap(), &[]).unwrap();
        let memory = Place::new(MemoryStore::new(), "ckpt");
        for place in [local, memory] {
            CheckpointWriter::standalone(&engine, &place)
                .item("state", Item::Tree(large()))
                .options(SaveOptions { compressor, chunk_bytes: MIB, ..SaveOptions::default() })
                .save_blocking()
                .unwrap();
            assert_eq!(engine.budget().used(), 0);
            assert!(engine.budget().high_water() > MIB, "the gauge sees the save");
            check(&engine, &place, &large(), &wanted);
            assert_eq!(engine.budget().used(), 0);
            let high = engine.budget().high_water();
            assert!(high <= BUDGET, "{codec}: {high} of {BUDGET}");
        }
    }
}

#[test]
fn a_chunk_larger_than_the_budget_runs_alone() {
    let engine = engine();
    let place = Place::new(MemoryStore::new(), "ckpt");
    CheckpointWriter::standalone(&engine, &place)
        .item("state", Item::Tree(large()))
        .options(SaveOptions { chunk_bytes: 16 * MIB, ..SaveOptions::default() })
        .save_blocking()
        .unwrap();
    let high = engine.budget().high_water();
    let alone = 16 * MIB..=16 * MIB + 8192;
    assert!(alone.contains(&high), "one part of 16 MiB and its checksum, not two: {high}");
    check(&engine, &place, &large(), &values(32));
    assert!(engine.budget().high_water() <= high);
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn a_provider_larger_than_the_budget_is_saved_within_it() {
    let engine = engine();
    let place = Place::new(MemoryStore::new(), "ckpt");
    let fill = |subset: &Subset, out: &mut [u8]| {
        let width = subset.shape()[1];
        for (i, item) in (0_u64..).zip(out.chunks_exact_mut(8)) {
            let row = subset.start()[0] + i / width;
            let column = subset.start()[1] + i % width;
            item.copy_from_slice(&(row * 2048 + column).to_le_bytes());
        }
        Ok(())
    };
    let leaf = Leaf::from_provider(DataType::UInt64, vec![4096, 2048], Arc::new(fill)).unwrap();
    CheckpointWriter::standalone(&engine, &place)
        .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf))])))
        .options(SaveOptions { chunk_bytes: MIB, ..SaveOptions::default() })
        .save_blocking()
        .unwrap();
    assert!(engine.budget().high_water() <= BUDGET);
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    let data = checkpoint.leaf_blocking("state", "w").unwrap().read_blocking().unwrap();
    assert!(data.to_vec::<u64>().unwrap().into_iter().eq(0..4096 * 2048));
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn a_provider_that_fails_fails_the_save_and_is_named() {
    let engine = engine();
    let run = Place::new(MemoryStore::new(), "run");
    let fill = |subset: &Subset, _: &mut [u8]| match subset.start()[0] {
        512.. => Err(Error::new(ErrorKind::Unavailable, "the device is gone")),
        _ => Ok(()),
    };
    let leaf = Leaf::from_provider(DataType::UInt64, vec![1024, 2048], Arc::new(fill)).unwrap();
    let error = CheckpointWriter::step(&engine, &run, 4)
        .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf))])))
        .options(SaveOptions { chunk_bytes: MIB, ..SaveOptions::default() })
        .save_blocking()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!((error.get("step"), error.get("leaf")), (Some("4"), Some("w")), "{error}");
    assert!(error.get("chunk").is_some(), "{error}");
    assert_nothing_left(&engine, &run);
}

fn save_mixed(engine: &Arc<Engine>, run: &Place) -> milepost::Result<milepost::Saved> {
    CheckpointWriter::step(engine, run, 1)
        .item("state", Item::Tree(mixed()))
        .item("config", Item::Json(serde_json::json!([1, 2])))
        .save_blocking()
}

/// No step is visible, and no object but those of the run itself is there.
fn assert_nothing_left(engine: &Arc<Engine>, run: &Place) {
    assert_eq!(engine.budget().used(), 0);
    assert_nothing_visible(engine, run);
    let objects = futures::executor::block_on(run.store().list_all(run.prefix())).unwrap();
    let keys: Vec<_> = objects.into_iter().map(|o| o.key).collect();
    let left: Vec<_> = keys
        .iter()
        .filter(|k| !["run/zarr.json", "run/.milepost/zarr.json"].contains(&&***k))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn assert_nothing_visible(engine: &Arc<Engine>, run: &Place) {
    match Run::new(engine, run).steps_blocking() {
        Ok(steps) => assert!(steps.is_empty(), "{steps:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}

#[test]
fn every_failure_of_a_save_leaves_nothing_and_the_next_save_succeeds() {
    let engine = engine();
    let writing = [
        Verb::Put,
        Verb::PutNew,
        Verb::Create,
        Verb::WriteAt,
        Verb::Finish,
        Verb::Sync,
        Verb::Rename,
        Verb::CreateDir,
    ];
    // How many of each a good save makes.
    let probe = FaultStore::new(MemoryStore::new());
    let inner = Arc::clone(&probe);
    save_mixed(&engine, &Place::new(inner, "run")).unwrap();
    let mut failures = 0;
    for verb in writing {
        let total = probe.requests(verb);
        assert!(total > 0, "{verb:?} is part of a save");
        for nth in [1, 2, total / 2, total - 1, total] {
            if nth == 0 || nth > total {
                continue;
            }
            for action in [Action::Fail(ErrorKind::Unavailable), Action::Tear] {
                for once in [true, false] {
                    let store = FaultStore::new(MemoryStore::new());
                    let inner = Arc::clone(&store);
                    let run = Place::new(inner, "run");
                    let mut seen = 0;
                    store.set_rule(move |operation| {
                        seen += u64::from(operation.verb == verb);
                        let hit = seen == nth || (!once && seen > nth);
                        (operation.verb == verb && hit).then_some(action)
                    });
                    let error = save_mixed(&engine, &run).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{verb:?} {nth}: {error}");
                    assert_eq!(error.get("step"), Some("1"), "{verb:?} {nth}: {error}");
                    assert!(error.get("object").is_some(), "{verb:?} {nth}: {error}");
                    store.clear_rule();
                    assert_nothing_left(&engine, &run);
                    save_mixed(&engine, &run).unwrap();
                    check(&engine, &run.join("1"), &mixed(), &values(1));
                    failures += 1;
                }
            }
        }
    }
    println!("{failures} failures, none of them visible");
}

#[test]
fn every_failure_of_a_save_on_an_object_store_leaves_nothing_visible() {
    let engine = engine();
    let fresh = || {
        let inner = Arc::new(object_store::memory::InMemory::new());
        let store = ObjectStoreAdapter::new(inner, "memory://theirs", Remote::new());
        FaultStore::new(Arc::new(store))
    };
    // The first save on a store also tries its conditional create; those requests are not counted.
    save_mixed(&engine, &Place::new(fresh(), "run")).unwrap();
    let probe = fresh();
    let inner = Arc::clone(&probe);
    save_mixed(&engine, &Place::new(inner, "run")).unwrap();
    assert_eq!(probe.requests(Verb::Rename), 0, "no renames there");
    for verb in [Verb::Put, Verb::PutNew, Verb::Get] {
        let total = probe.requests(verb);
        for nth in 1..=total {
            let store = fresh();
            let inner = Arc::clone(&store);
            let run = Place::new(inner, "run");
            store.spoil(verb, nth, Action::Fail(ErrorKind::Unavailable));
            let error = save_mixed(&engine, &run).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{verb:?} {nth}: {error}");
            assert_eq!(error.get("step"), Some("1"), "{verb:?} {nth}: {error}");
            assert_eq!(engine.budget().used(), 0);
            store.clear_rule();
            assert_nothing_visible(&engine, &run);
            let saved = save_mixed(&engine, &run).unwrap();
            check(&engine, &saved.place, &mixed(), &values(1));
            let steps = Run::new(&engine, &run).steps_blocking().unwrap();
            assert_eq!(steps.len(), 1, "{verb:?} {nth}");
        }
    }
}

#[test]
fn a_failed_sync_is_final_for_the_attempt() {
    let engine = engine();
    let store = FaultStore::new(MemoryStore::new());
    let inner = Arc::clone(&store);
    let run = Place::new(inner, "run");
    store.spoil(Verb::Sync, 1, Action::Fail(ErrorKind::Unavailable));
    save_mixed(&engine, &run).unwrap_err();
    assert_eq!(store.requests(Verb::Sync), 1, "not tried again");
    assert_eq!(store.requests(Verb::Rename), 0, "not published");
    assert_nothing_left(&engine, &run);
}

#[test]
fn every_failure_of_a_restore_is_an_error_and_gives_the_budget_back() {
    let engine = engine();
    let store = FaultStore::new(MemoryStore::new());
    let inner = Arc::clone(&store);
    let run = Place::new(inner, "run");
    save_mixed(&engine, &run).unwrap();
    let restore = || {
        let checkpoint = Checkpoint::open_blocking(&engine, &run.join("1"))?;
        checkpoint.restore_blocking("state")
    };
    store.reset_counts();
    restore().unwrap();
    let totals = [Verb::Get, Verb::Read].map(|verb| (verb, store.requests(verb)));
    for (verb, total) in totals {
        assert!(total > 0);
        for nth in 1..=total {
            for (action, kind) in [
                (Action::Fail(ErrorKind::Unavailable), ErrorKind::Unavailable),
                (Action::Fail(ErrorKind::NotFound), ErrorKind::Corrupt),
                (Action::Flip, ErrorKind::Corrupt),
                (Action::Truncate, ErrorKind::Corrupt),
            ] {
                store.spoil(verb, nth, action);
                let error = restore().unwrap_err();
                // The record itself: not there is not found.
                let record =
                    (verb, nth, action) == (Verb::Get, 1, Action::Fail(ErrorKind::NotFound));
                let kind = if record { ErrorKind::NotFound } else { kind };
                // And once more at the end: gone by then means replaced.
                let last = (Verb::Get, total, Action::Fail(ErrorKind::NotFound));
                let kind = if (verb, nth, action) == last { ErrorKind::Conflict } else { kind };
                assert_eq!(error.kind(), kind, "{verb:?} {nth} {action:?}: {error}");
                assert!(error.get("checkpoint").is_some(), "{verb:?} {nth} {action:?}: {error}");
                if (verb, nth) != (Verb::Get, 1) {
                    assert!(error.get("object").is_some(), "{verb:?} {nth} {action:?}: {error}");
                }
                if verb == Verb::Read {
                    assert!(error.get("leaf").is_some(), "{nth} {action:?}: {error}");
                }
                assert_eq!(engine.budget().used(), 0);
            }
        }
    }
    store.clear_rule();
    restore().unwrap();
}

/// Polls up to `polls` times and drops; tells whether it was done before.
fn give_up<T>(future: impl Future<Output = T>, polls: u32) -> bool {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        if future.poll_unpin(&mut Context::from_waker(noop_waker_ref())).is_ready() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    false
}

#[test]
fn a_save_that_is_dropped_halfway_leaves_nothing_visible_and_no_reservation() {
    let engine = engine();
    for polls in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
        let store = FaultStore::new(MemoryStore::new());
        let inner = Arc::clone(&store);
        let run = Place::new(inner, "run");
        store.spoil_all(Verb::WriteAt, Action::Delay(Duration::from_millis(20)));
        let writer = CheckpointWriter::step(&engine, &run, 1).item("state", Item::Tree(mixed()));
        let done = give_up(writer.save(), polls);
        assert_eq!(engine.budget().used(), 0, "after {polls} polls");
        store.clear_rule();
        if !done {
            assert_nothing_visible(&engine, &run);
            save_mixed(&engine, &run).unwrap();
        }
        check(&engine, &run.join("1"), &mixed(), &values(1));
    }
}

#[test]
fn a_restore_that_is_dropped_halfway_gives_the_budget_back() {
    let engine = engine();
    let store = FaultStore::new(MemoryStore::new());
    let inner = Arc::clone(&store);
    let place = Place::new(inner, "ckpt");
    CheckpointWriter::standalone(&engine, &place)
        .item("state", Item::Tree(mixed()))
        .options(SaveOptions { compressor: "zstd:1".parse().unwrap(), ..SaveOptions::default() })
        .save_blocking()
        .unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    for verb in [Verb::Get, Verb::Read] {
        for polls in [0, 1, 2, 3, 5, 8, 13, 21] {
            store.spoil_all(verb, Action::Delay(Duration::from_millis(5)));
            give_up(checkpoint.restore("state"), polls);
            assert_eq!(engine.budget().used(), 0, "{verb:?} after {polls} polls");
        }
    }
    store.clear_rule();
    check(&engine, &place, &mixed(), &values(1));
    assert_eq!(engine.budget().used(), 0);
}
