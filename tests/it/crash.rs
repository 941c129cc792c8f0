//! The crash harness: a process that trains and saves is killed, again and again, and nothing is ever lost.
//!
//! The child (this binary again, at the ignored test `child`) opens a manager on a run, goes on after the newest step,
//! saves and overwrites in the background with retention, and says on its standard output what is committed. It is
//! killed with SIGKILL at a random instant, or kills itself at the n-th change of the store: so every point of the
//! commit protocol comes up. After each kill a look from outside: the newest step is at least the newest that was said
//! to be committed, every listed step verifies and is bit-exact, nothing is damaged.
//!
//! `MILEPOST_KILLS` asks for more kills at random instants, `MILEPOST_SEED` for others.

use milepost::{
    Engine, FaultStore, Item, Leaf, Manager, ManagerOptions, ObjectStoreAdapter, Place,
    Preservation, Queue, Remote, SaveRequest, StepState, Tree, Verb,
};
use object_store::local::LocalFileSystem;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// So many kills happen to one run.
const KILLS_A_RUN: u64 = 60;

const RUN: &str = "MILEPOST_CRASH_RUN";
const KIND: &str = "MILEPOST_CRASH_KIND";
const POINT: &str = "MILEPOST_CRASH_POINT";
const STEPS: &str = "MILEPOST_CRASH_STEPS";

/// Every kind of place that outlives a process and has a commit of its own.
const KINDS: [&str; 2] = ["renames", "conditional creates"];

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(16 << 20).build().unwrap()
}

fn place(engine: &Engine, kind: &str, run: &Path) -> Place {
    std::fs::create_dir_all(run).unwrap();
    if kind == KINDS[0] {
        return engine.place(&run.to_string_lossy(), &[]).unwrap();
    }
    let files = LocalFileSystem::new_with_prefix(run).unwrap();
    let store = ObjectStoreAdapter::new(Arc::new(files), "file://objects", Remote::new());
    Place::new(Arc::new(store), "run")
}

fn options() -> ManagerOptions {
    ManagerOptions {
        preservation: Preservation::Any(vec![
            Preservation::Latest(2),
            Preservation::EverySteps(10),
        ]),
        queue: Queue::Wait,
        sweep_at_start: true,
        ..ManagerOptions::default()
    }
}

fn values(step: u64, generation: u64) -> Vec<u64> {
    let mut x = step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ generation.wrapping_add(1);
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        x ^ (x >> 29)
    };
    (0..40_000).map(|_| next()).collect()
}

/// A sharded leaf, a plain one, and whose they are.
fn state(step: u64, generation: u64) -> Item {
    let large = Leaf::from_vec(values(step, generation), &[200, 200]).unwrap();
    let sharded = large.clone().with_chunk_shape(vec![40, 200]).with_shard_shape(vec![120, 200]);
    Item::Tree(Tree::dict([
        ("params", Tree::dict([("plain", Tree::leaf(large)), ("sharded", Tree::leaf(sharded))])),
        ("generation", Tree::leaf(Leaf::int(generation.into()).unwrap())),
    ]))
}

#[test]
#[ignore = "the child of the crash harness"]
fn child() {
    let Ok(run) = std::env::var(RUN) else { return };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let engine = engine();
    let mut place = place(&engine, &std::env::var(KIND).unwrap(), Path::new(&run));
    if let Some(point) = number(POINT) {
        place = dies_at(&place, point);
    }
    let manager = Manager::open(&engine, &place, options()).unwrap();
    let first = manager.latest_step().map_or(1, |latest| latest + 1);
    println!("alive");
    for step in first..first + number(STEPS).unwrap_or(u64::MAX / 2) {
        for generation in 0..=(step % 2) {
            let mut request = SaveRequest::new(step).item("state", state(step, generation));
            if generation > 0 {
                request = request.overwrite();
            }
            let outcome = manager.save(request).unwrap();
            let handle = outcome.handle().unwrap().clone();
            if generation > 0 || step % 3 == 0 {
                handle.wait().unwrap();
                println!("committed {step} {generation}");
            }
        }
    }
    manager.close().unwrap();
    println!("done");
}

/// Kills this process at the n-th change of the store, before it is made.
fn dies_at(place: &Place, point: u64) -> Place {
    let store = FaultStore::new(Arc::clone(place.store()));
    let changes = AtomicU64::new(0);
    store.set_rule(move |operation| {
        let reads = matches!(
            operation.verb,
            Verb::Get | Verb::Read | Verb::Head | Verb::List | Verb::ListAll | Verb::Inspect
        );
        if !reads && changes.fetch_add(1, Relaxed) + 1 == point {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .unwrap();
            std::thread::sleep(Duration::from_mins(1));
        }
        None
    });
    Place::new(store, place.prefix())
}

/// Runs the child until it ends or `kill_after` its first word; returns what it said last and whether it ended itself.
fn run_child(
    kind: &str,
    run: &Path,
    (point, steps): (Option<u64>, Option<u64>),
    kill_after: Option<Duration>,
) -> (Option<(u64, u64)>, bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--ignored", "--nocapture"]);
    command.env(RUN, run).env(KIND, kind).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in [(POINT, point), (STEPS, steps)] {
        match value {
            Some(value) => command.env(name, value.to_string()),
            None => command.env_remove(name),
        };
    }
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut committed, mut done) = (None, false);
    let mut killer = None;
    for line in lines.map_while(Result::ok) {
        if line.ends_with("alive")
            && let Some(delay) = kill_after
        {
            let pid = rustix::process::Pid::from_child(&child);
            killer = Some(std::thread::scope(|_| {
                std::thread::Builder::new()
                    .spawn(move || {
                        std::thread::sleep(delay);
                        // The child is not waited for before this thread ends: the id is still its own.
                        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                    })
                    .unwrap()
            }));
        }
        if let Some(numbers) = line.strip_prefix("committed ") {
            let (step, generation) = numbers.split_once(' ').unwrap();
            committed = Some((step.parse().unwrap(), generation.parse().unwrap()));
        }
        done |= line == "done";
    }
    if let Some(killer) = killer {
        killer.join().unwrap();
    }
    let status = child.wait().unwrap();
    if status.code().is_some_and(|code| code != 0) {
        let mut errors = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut errors).unwrap();
        panic!("the child failed by itself:\n{errors}");
    }
    (committed, done)
}

/// Looks at the run as a fresh process would; returns its newest step.
fn look(kind: &str, run: &Path, committed: Option<(u64, u64)>) -> Option<u64> {
    let engine = engine();
    let options = ManagerOptions { read_only: true, ..options() };
    let manager = Manager::open(&engine, &place(&engine, kind, run), options).unwrap();
    let mut newest = None;
    for entry in manager.steps() {
        let StepState::Committed(checkpoint) = &entry.state else {
            panic!("step {} is damaged: {:?}", entry.step, entry.state);
        };
        let report = checkpoint.verify_blocking().unwrap();
        assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
        let read =
            |path: &str| checkpoint.leaf_blocking("state", path).unwrap().read_blocking().unwrap();
        let generation = read("generation").to_vec::<i64>().unwrap()[0];
        let generation = u64::try_from(generation).unwrap();
        for path in ["params/plain", "params/sharded"] {
            let stored = read(path).to_vec::<u64>().unwrap();
            assert!(stored == values(entry.step, generation), "step {} {path}", entry.step);
        }
        newest = Some((entry.step, generation));
    }
    assert!(newest >= committed, "{committed:?} was committed, but the newest is {newest:?}");
    newest.map(|(step, _)| step)
}

fn seed() -> u64 {
    let seed = std::env::var("MILEPOST_SEED").ok().and_then(|text| text.parse().ok());
    seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_secs()
    })
}

#[test]
fn a_kill_at_a_random_instant_loses_nothing() {
    let kills = std::env::var("MILEPOST_KILLS").ok().and_then(|text| text.parse().ok());
    let (kills, mut random) = (kills.unwrap_or(120_u64), seed());
    println!("MILEPOST_SEED={random} MILEPOST_KILLS={kills}");
    for kind in KINDS {
        let (mut done, mut advanced) = (0, 0_u64);
        while done < kills / 2 {
            // A run of its own now and then: each look verifies all of it.
            let directory = tempfile::tempdir().unwrap();
            let run = directory.path().join("run");
            let mut newest = None;
            for _ in 0..KILLS_A_RUN.min(kills / 2 - done) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let delay = Duration::from_micros((random >> 33) % 60_000);
                let (committed, _) = run_child(kind, &run, (None, None), Some(delay));
                let found = look(kind, &run, committed);
                assert!(
                    found >= newest,
                    "{newest:?} was there before, now the newest is {found:?}"
                );
                advanced += u64::from(found > newest);
                newest = found;
                done += 1;
            }
        }
        assert!(kills < 20 || advanced > kills / 20, "the runs hardly went on: {advanced}");
        println!("{kind}: {done} kills at random instants, {advanced} of them after progress");
    }
}

#[test]
fn a_kill_at_every_point_of_the_protocol_loses_nothing() {
    for kind in KINDS {
        let mut point = 1;
        loop {
            let directory = tempfile::tempdir().unwrap();
            let run = directory.path().join("run");
            // Something to overwrite, to delete and to sweep is there already.
            let (committed, done) = run_child(kind, &run, (None, Some(3)), None);
            assert!(done && committed.is_some());
            let before = look(kind, &run, committed);
            let (committed, done) = run_child(kind, &run, (Some(point), Some(2)), None);
            let found = look(kind, &run, committed);
            assert!(found >= before);
            if done {
                break;
            }
            // The next one sweeps, saves, overwrites and deletes as if nothing had been.
            let (committed, done) = run_child(kind, &run, (None, Some(2)), None);
            assert!(done, "the run does not go on after a kill at change {point}");
            look(kind, &run, committed);
            point += 1;
        }
        println!("{kind}: killed at each of {} changes", point - 1);
        assert!(point > 20, "{point} points only");
    }
}
