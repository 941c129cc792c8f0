//! The seam to object stores on a real one (`MILEPOST_TEST_S3`), and the commit race on every kind of store.

use futures::executor::block_on;
use milepost::{
    CheckpointWriter, Engine, ErrorKind, Found, Item, Leaf, MemoryStore, Place, Run, SaveOptions,
    StepState, Tree, find, open,
};
use std::sync::{Arc, Barrier};

const WRITERS: u32 = 8;

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(32 << 20).build().unwrap()
}

/// The options and URL of the emulator's bucket; `None` where there is no emulator.
pub(crate) fn emulator() -> Option<(String, Vec<(String, String)>)> {
    let Ok(url) = std::env::var("MILEPOST_TEST_S3") else {
        println!("SKIPPED: MILEPOST_TEST_S3 is not set");
        return None;
    };
    let (endpoint, bucket) = url.rsplit_once('/').unwrap();
    assert!(endpoint.starts_with("http://127.0.0.1:"), "the emulator is on loopback: {endpoint}");
    let options = [
        ("endpoint", endpoint),
        ("allow_http", "true"),
        ("region", "us-east-1"),
        ("access_key_id", "testing"),
        ("secret_access_key", "testing"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    Some((format!("s3://{bucket}"), options.to_vec()))
}

/// A prefix of its own, so that tests and runs do not see each other.
fn fresh(name: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("itests-{name}-{}-{}", std::process::id(), now.as_nanos())
}

fn values(seed: u32) -> Vec<u32> {
    (0..96 * 1024).map(|i: u32| i.wrapping_mul(2_654_435_761) ^ seed).collect()
}

fn state(seed: u32) -> Item {
    let shape = [96, 1024];
    let sharded = Leaf::from_vec(values(seed), &shape)
        .unwrap()
        .with_chunk_shape(vec![16, 1024])
        .with_shard_shape(vec![48, 1024]);
    let plain = Leaf::from_vec(values(seed), &shape).unwrap().with_chunk_shape(vec![48, 1024]);
    Item::Tree(Tree::dict([
        ("params", Tree::dict([("sharded", Tree::leaf(sharded)), ("plain", Tree::leaf(plain))])),
        ("writer", Tree::leaf(Leaf::int(seed.into()).unwrap())),
    ]))
}

fn save(
    engine: &Arc<Engine>,
    run: &Place,
    (step, seed): (u64, u32),
    overwrite: bool,
) -> milepost::Result<milepost::Saved> {
    CheckpointWriter::step(engine, run, step)
        .item("state", state(seed))
        .metric("loss", 0.5)
        .options(SaveOptions { overwrite, ..SaveOptions::default() })
        .save_blocking()
}

/// Restores step 1 whole and tells whose it is; all of it must be by one writer.
fn whose(engine: &Arc<Engine>, run: &Place) -> u32 {
    let checkpoint = block_on(Run::new(engine, run).step(1)).unwrap();
    let report = checkpoint.verify_blocking().unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
    let writer = checkpoint.leaf_blocking("state", "writer").unwrap().read_blocking().unwrap();
    let writer = u32::try_from(writer.to_vec::<i64>().unwrap()[0]).unwrap();
    for path in ["params/sharded", "params/plain"] {
        let data = checkpoint.leaf_blocking("state", path).unwrap().read_blocking().unwrap();
        assert!(data.to_vec::<u32>().unwrap() == values(writer), "{path} is by another writer");
    }
    assert_eq!(checkpoint.restore_blocking("state").unwrap().leaf_count(), 3);
    writer
}

/// Eight writers, each with an engine of its own, save one step at once.
fn race(place: impl Fn(&Arc<Engine>) -> Place + Sync, overwrite: bool) {
    let start = Barrier::new(WRITERS as usize);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|seed| {
                let (place, start) = (&place, &start);
                scope.spawn(move || {
                    let engine = engine();
                    let run = place(&engine);
                    start.wait();
                    let outcome = save(&engine, &run, (1, seed), overwrite);
                    assert_eq!(engine.budget().used(), 0);
                    outcome.map_err(|e| {
                        assert_eq!(e.get("step"), Some("1"), "{e}");
                        (e.kind(), e.to_string())
                    })
                })
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    let engine = engine();
    let run = place(&engine);
    let writer = whose(&engine, &run);
    assert!(outcomes[writer as usize].is_ok(), "the step is by a writer that was told so");
    let mut won = 0;
    for outcome in &outcomes {
        match outcome {
            Ok(_) => won += 1,
            Err((kind, message)) => assert!(
                matches!(kind, ErrorKind::AlreadyExists | ErrorKind::Conflict),
                "{kind:?}: {message}"
            ),
        }
    }
    if overwrite {
        assert!(won >= 1);
    } else {
        assert_eq!(won, 1, "exactly one winner: {outcomes:?}");
    }
    let steps = Run::new(&engine, &run).steps_blocking().unwrap();
    assert_eq!(steps.len(), 1);
    assert!(matches!(steps[0].state, StepState::Committed(_)));
}

#[test]
fn a_race_for_a_step_has_one_winner_on_a_local_directory() {
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        race(|engine| engine.place(path.to_str().unwrap(), &[]).unwrap(), false);
        let left = std::fs::read_dir(path.join(".milepost/tmp")).unwrap().count();
        assert_eq!(left, 0, "the losers swept");
    }
}

#[test]
fn a_race_for_a_step_has_one_winner_in_memory() {
    for _ in 0..3 {
        let store = MemoryStore::new();
        race(
            |_| {
                let store = Arc::clone(&store);
                Place::new(store, "run")
            },
            false,
        );
    }
}

#[test]
fn a_race_to_overwrite_leaves_one_whole_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let place = |engine: &Arc<Engine>| engine.place(path.to_str().unwrap(), &[]).unwrap();
    let first = engine();
    save(&first, &place(&first), (1, 100), false).unwrap();
    race(place, true);
    let left = std::fs::read_dir(path.join(".milepost/tmp")).unwrap().count();
    assert_eq!(left, 0, "replaced and refused ones are swept");
}

#[test]
fn a_race_for_a_step_has_one_winner_on_s3() {
    let Some((bucket, options)) = emulator() else { return };
    let url = format!("{bucket}/{}", fresh("race"));
    race(|engine| engine.place(&url, &options).unwrap(), false);
}

#[test]
fn a_run_lives_on_s3() {
    let Some((bucket, options)) = emulator() else { return };
    let engine = engine();
    let run = engine.place(&format!("{bucket}/{}", fresh("run")), &options).unwrap();
    save(&engine, &run, (1, 1), false).unwrap();
    save(&engine, &run, (2, 2), false).unwrap();

    let steps = Run::new(&engine, &run).steps_blocking().unwrap();
    assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2]);
    for step in &steps {
        let StepState::Committed(checkpoint) = &step.state else { panic!("{step:?}") };
        assert_eq!(checkpoint.record().metrics["loss"], 0.5);
    }
    assert_eq!(whose(&engine, &run), 1);

    let newest = block_on(open(&engine, &run)).unwrap();
    assert_eq!(newest.record().step, Some(2));
    for path in ["params/sharded", "params/plain"] {
        let leaf = newest.leaf_blocking("state", path).unwrap();
        let slice = leaf.select("10:90:9,1000").unwrap();
        let got = leaf.read_selection_blocking(&slice).unwrap().to_vec::<u32>().unwrap();
        let all = values(2);
        let expected: Vec<u32> = (10..90).step_by(9).map(|i| all[i * 1024 + 1000]).collect();
        assert_eq!(got, expected, "{path}");
    }

    let refused = save(&engine, &run, (1, 3), false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{refused}");
    let saved = save(&engine, &run, (1, 4), true).unwrap();
    assert!(saved.place.name().starts_with("1.r"), "a revision: {}", saved.place);
    assert_eq!(whose(&engine, &run), 4, "readers of the run see the new revision");
    match block_on(find(&engine, &run.join("1"))).unwrap() {
        Found::Checkpoint(checkpoint) => assert_eq!(checkpoint.place().name(), saved.place.name()),
        other => panic!("the plain name means the newest revision: {other:?}"),
    }
    assert_eq!(Run::new(&engine, &run).steps_blocking().unwrap().len(), 2, "still two steps");
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn a_checkpoint_stands_alone_on_s3() {
    let Some((bucket, options)) = emulator() else { return };
    let engine = engine();
    let place = engine.place(&format!("{bucket}/{}", fresh("alone")), &options).unwrap();
    let writer = || CheckpointWriter::standalone(&engine, &place).item("state", state(9));
    writer().save_blocking().unwrap();
    let checkpoint = block_on(open(&engine, &place)).unwrap();
    assert!(checkpoint.verify_blocking().unwrap().is_good());
    let data = checkpoint.leaf_blocking("state", "params/plain").unwrap().read_blocking().unwrap();
    assert!(data.to_vec::<u32>().unwrap() == values(9));
    assert_eq!(writer().save_blocking().unwrap_err().kind(), ErrorKind::AlreadyExists);
    let missing = place.parent().join(&fresh("nothing"));
    assert_eq!(block_on(open(&engine, &missing)).unwrap_err().kind(), ErrorKind::NotFound);
}
