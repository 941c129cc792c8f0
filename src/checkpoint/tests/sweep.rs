use super::*;
use crate::checkpoint::{
    lease::Lease,
    leftovers::leftovers_beside,
    sweep::{sweep, sweep_beside},
};
use milepost_formats::record::{Claim, claim_document};
use std::{
    sync::Mutex,
    time::{Duration, SystemTime},
};

const ID: &str = "0123456789abcdef0123456789abcdef";

/// An attempt as a process left it: some objects, and what its mark says.
fn left_behind(run: &Place, mark: Option<&str>) -> Place {
    let place = run.join(&format!(".milepost/tmp/{ID}"));
    put(&place, "state/w/zarr.json", "{}");
    put(&place, "state/w/c/0", "bytes");
    if let Some(mark) = mark {
        put(run, &format!(".milepost/tmp/{ID}.lease"), mark);
    }
    place
}

fn make_old(path: &std::path::Path, minutes: u64) {
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_mins(minutes)).unwrap();
}

fn is_there(place: &Place) -> bool {
    !block_on(place.store().list_all(place.prefix())).unwrap().is_empty()
}

#[test]
fn a_killed_process_of_this_machine_is_dead_at_once() {
    let engine = engine();
    let (_dir, run) = local(&engine);
    let kept = save(&engine, &run, 1, 1);
    let place = left_behind(&run, Some(&forged(&engine, ID, false)));
    let dead = plan(&engine, &run);
    assert_eq!(kinds(&dead), [LeftoverKind::Attempt]);
    assert!(dead[0].bytes == 7 && dead[0].why.contains("process"), "{dead:?}");
    let report = sweep_all(&engine, &run);
    assert_eq!(report.freed_bytes, 7);
    assert!(!is_there(&place));
    for directory in ["tmp", "trash", "leases"] {
        let path = run.local_path().unwrap().join(".milepost").join(directory);
        assert!(!path.exists() || path.read_dir().unwrap().next().is_none(), "{directory}");
    }
    assert!(is_whole(&engine, &kept));
}

#[test]
fn a_child_process_that_was_killed_is_dead_and_a_living_one_is_not() {
    let engine = engine();
    let (_dir, run) = local(&engine);
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let started = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned();
    let mut mark: serde_json::Value = serde_json::from_str(&forged(&engine, ID, false)).unwrap();
    mark["pid"] = child.id().into();
    mark["started"] = started.parse::<u64>().unwrap().into();
    let place = left_behind(&run, Some(&mark.to_string()));
    let path = run.local_path().unwrap().join(format!(".milepost/tmp/{ID}.lease"));
    make_old(&path, 60);
    assert!(plan(&engine, &run).is_empty(), "it lives, however old its mark is");
    // Its number, but another process.
    mark["started"] = 1.into();
    left_behind(&run, Some(&mark.to_string()));
    assert_eq!(kinds(&plan(&engine, &run)), [LeftoverKind::Attempt]);
    mark["started"] = started.parse::<u64>().unwrap().into();
    left_behind(&run, Some(&mark.to_string()));
    child.kill().unwrap();
    while !std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    assert_eq!(kinds(&plan(&engine, &run)), [LeftoverKind::Attempt], "killed, not waited for");
    child.wait().unwrap();
    sweep_all(&engine, &run);
    assert!(!is_there(&place));
}

#[test]
fn a_process_of_another_machine_is_dead_when_its_mark_has_expired() {
    let engine = engine();
    let (_dir, run) = local(&engine);
    let path = |name: &str| run.local_path().unwrap().join(format!(".milepost/tmp/{ID}{name}"));
    for mark in [Some(forged(&engine, ID, true)), Some("{".to_owned()), None] {
        let place = left_behind(&run, mark.as_deref());
        let files: Vec<_> = if mark.is_some() {
            vec![path(".lease")]
        } else {
            vec![path("/state/w/zarr.json"), path("/state/w/c/0")]
        };
        for minutes in [0] {
            for file in &files {
                make_old(file, minutes);
            }
            assert!(plan(&engine, &run).is_empty(), "{mark:?} {minutes}");
        }
        for file in &files {
            make_old(file, 6);
        }
        assert_eq!(kinds(&plan(&engine, &run)), [LeftoverKind::Attempt], "{mark:?}");
        sweep_all(&engine, &run);
        assert!(!is_there(&place) && !path(".lease").exists());
    }
    let probes = run.local_path().unwrap().join(".milepost/probe");
    assert_eq!(probes.read_dir().unwrap().count(), 0, "who asked the time leaves nothing");
}

#[test]
fn a_dropped_save_is_dead_at_once_and_swept() {
    let engine = engine();
    let (_dir, local) = local(&engine);
    for run in [local, at(&Aged::new(true))] {
        let kept = save(&engine, &run, 1, 1);
        for objects in 1..=3 {
            drop_a_save(&engine, &run, 2, objects);
            let dead = plan(&engine, &run);
            assert_eq!(dead.len(), 1, "{dead:?}");
            assert!(dead[0].why.contains("gone"), "by its mark, not by its age: {dead:?}");
            sweep_all(&engine, &run);
            assert!(plan(&engine, &run).is_empty() && !is_there(&run.join(".milepost/tmp")));
        }
        assert!(is_whole(&engine, &kept));
        save(&engine, &run, 2, 2);
    }
}

#[test]
fn what_has_come_to_life_or_was_made_up_is_passed_over() {
    let engine = engine();
    let (_dir, run) = local(&engine);
    let kept = save(&engine, &run, 1, 1);
    let place = left_behind(&run, Some(&forged(&engine, ID, false)));
    let mut dead = plan(&engine, &run);
    dead.push(Leftover { place: kept.clone(), ..dead[0].clone() });
    left_behind(&run, Some(&forged(&engine, ID, true)));
    let report = block_on(sweep(&engine, &run, &dead)).unwrap();
    assert!(report.swept.is_empty() && report.failed.is_empty() && report.freed_bytes == 0);
    assert_eq!(report.passed_over.len(), 2);
    assert!(is_there(&place) && is_whole(&engine, &kept));
}

#[test]
fn a_writer_that_was_swept_does_not_commit_what_is_left() {
    let (engine, store) = (engine(), FaultStore::new(Aged::new(true)));
    let inner = Arc::clone(&store);
    let run = Place::new(inner, "run");
    save(&engine, &run, 1, 1);
    // Another machine sweeps in the midst of it: the directory goes, the writer writes on.
    let thief = Arc::clone(&store);
    let pool = Pool::new("test", 1).unwrap();
    let stolen = std::sync::atomic::AtomicBool::new(false);
    store.set_rule(move |operation| {
        let late = operation.key.ends_with("/c.0") && operation.key.contains("_milepost");
        if late && !stolen.swap(true, std::sync::atomic::Ordering::Relaxed) {
            let tmp = operation.key.split("/_milepost").next().unwrap().to_owned();
            let thief = Arc::clone(&thief);
            pool.launch(Priority::Foreground, move || {
                block_on(thief.delete_all(&tmp)).unwrap();
            });
            return Some(Action::Delay(Duration::from_millis(200)));
        }
        None
    });
    let error = writer(&engine, &run, 2, 2).save_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    store.clear_rule();
    assert!(!is_visible(&run.join("2")));
    assert!(plan(&engine, &run).is_empty());
}

#[test]
fn links_in_the_trash_and_among_attempts_are_not_followed() {
    let engine = engine();
    let (dir, run) = local(&engine);
    save(&engine, &run, 1, 1);
    let precious = dir.path().join("precious");
    std::fs::create_dir_all(precious.join("deep")).unwrap();
    std::fs::write(precious.join("deep/file"), "precious").unwrap();
    let transient = run.local_path().unwrap().join(".milepost");
    std::fs::create_dir_all(transient.join("trash/9-x")).unwrap();
    for link in ["trash/1-x", "trash/9-x/link", &format!("tmp/{ID}")] {
        std::os::unix::fs::symlink(&precious, transient.join(link)).unwrap();
    }
    let dead = plan(&engine, &run);
    assert_eq!(kinds(&dead).len(), 3, "{dead:?}");
    assert!(dead.iter().all(|leftover| leftover.bytes == 0));
    sweep_all(&engine, &run);
    assert!(plan(&engine, &run).is_empty());
    assert_eq!(std::fs::read_to_string(precious.join("deep/file")).unwrap(), "precious");
}

#[test]
fn what_is_not_dead_is_not_listed() {
    for rename in [true, false] {
        let (engine, store) = (engine(), Aged::new(rename));
        let run = at(&store);
        let one = save(&engine, &run, 1, 1);
        let damaged = save(&engine, &run, 2, 1);
        put(&damaged, "zarr.json", "{ torn");
        put(&run.join("notes"), "zarr.json", r#"{"zarr_format":3,"node_type":"group"}"#);
        put(&run.join("3"), "a/b", "no claim");
        put(&run, "README.md", "x");
        put(&run, ".milepost/mine/file", "x");
        put(&run, ".milepost/leases/readme", "x");
        let before = store.keys();
        store.age("run/", 600);
        // Of another run's time: the probe is as old as all else, so nothing is.
        assert!(plan(&engine, &run).is_empty(), "{rename}");
        store.age("run/.milepost/probe/now", 0);
        let dead = plan(&engine, &run);
        assert!(dead.is_empty(), "{rename}: {dead:?}");
        sweep_all(&engine, &run);
        assert_eq!(store.keys(), before);
        assert!(is_whole(&engine, &one));
    }
}

#[test]
fn probes_and_torn_marks_go_after_an_hour() {
    let (engine, store) = (engine(), Aged::new(true));
    let run = at(&store);
    save(&engine, &run, 1, 1);
    let before = store.keys();
    put(&run, ".milepost/probe/old", "x");
    put(&run, ".milepost/probe/dir/object", "x");
    put(&run, ".milepost/leases/.milepost-tmp-0011", "x");
    put(&run, ".milepost/pins/.milepost-tmp-0011", "x");
    put(&run, ".milepost/tmp/.milepost-tmp-0011", "x");
    assert!(plan(&engine, &run).is_empty());
    for start in ["probe/old", "probe/dir", "leases", "pins", "tmp"] {
        store.age(&format!("run/.milepost/{start}"), 61);
    }
    assert_eq!(plan(&engine, &run).len(), 5);
    sweep_all(&engine, &run);
    assert_eq!(store.keys(), before);
}

#[test]
fn an_expired_claim_is_revoked_and_freed_and_its_tombstone_stays() {
    let (engine, store) = (engine(), Aged::new(false));
    let run = at(&store);
    save(&engine, &run, 1, 1);
    let claim =
        milepost_formats::record::Claim { writer: "zombie".into(), heartbeat_ms: 1, holder: None };
    let claim = milepost_formats::record::claim_document(&claim);
    let place = run.join("2");
    put(&place, "_milepost/zarr.json", std::str::from_utf8(&claim).unwrap());
    put(&place, "state/w/c/0", "bytes");
    assert!(plan(&engine, &run).is_empty());
    store.age("run/2/_milepost", 6);
    let lease = Lease::start(
        place.store(),
        &place.key("_milepost/zarr.json"),
        &bytes::Bytes::from(claim.clone()),
        "zombie",
    );
    assert!(plan(&engine, &run).is_empty(), "its writer is in this process");
    drop(lease);
    assert_eq!(kinds(&plan(&engine, &run)), [LeftoverKind::Attempt]);
    sweep_all(&engine, &run);
    assert!(matches!(
        block_on(look(&place)).unwrap(),
        Found::Root(Root::Revoked { deleted: false, .. })
    ));
    let left: Vec<_> = store.keys().into_iter().filter(|key| key.starts_with("run/2/")).collect();
    assert_eq!(left, ["run/2/_milepost/zarr.json", "run/2/zarr.json"]);
    store.age("run/2", 600);
    assert!(plan(&engine, &run).is_empty(), "the zombie may wake up");
    // And writes on.
    put(&place, "state/w/c/1", "bytes");
    assert_eq!(kinds(&plan(&engine, &run)), [LeftoverKind::Revision]);
    sweep_all(&engine, &run);
    assert_eq!(save(&engine, &run, 2, 2).name(), "2.r1");
}

#[test]
fn only_what_was_asked_for_is_swept() {
    let (engine, store) = (engine(), Aged::new(true));
    let run = at(&store);
    put(&run, ".milepost/trash/1-x/zarr.json", "{}");
    put(&run, ".milepost/trash/2-x/zarr.json", "{}");
    let dead = plan(&engine, &run);
    assert_eq!(kinds(&dead), [LeftoverKind::Trash; 2]);
    let report = block_on(sweep(&engine, &run, &dead[..1])).unwrap();
    assert_eq!(report.swept.len(), 1);
    let left = plan(&engine, &run);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].place.prefix(), dead[1].place.prefix());
}

#[test]
fn a_claim_that_was_committed_meanwhile_lives() {
    let (engine, store) = (engine(), FaultStore::new(Aged::new(false)));
    let inner = Arc::clone(&store);
    let run = Place::new(inner, "run");
    let place = save(&engine, &run, 1, 1);
    let record = block_on(store.get(
        &place.key("zarr.json"),
        crate::store::Span::Whole { bytes_max: 1 << 20 },
        Priority::Foreground,
    ))
    .unwrap();
    block_on(store.delete(vec![place.key("zarr.json")])).unwrap();
    // Of a process that nothing is known of: the age tells.
    let claim = Claim { writer: "other".into(), heartbeat_ms: 1, holder: None };
    let (key, claim) = (place.key("_milepost/zarr.json"), claim_document(&claim));
    block_on(store.put(&key, vec![claim.into()], Priority::Foreground)).unwrap();
    let mut leftover = Leftover {
        place: place.clone(),
        kind: LeftoverKind::Attempt,
        bytes: 0,
        why: String::new(),
    };
    let report = block_on(sweep(&engine, &run, std::slice::from_ref(&leftover))).unwrap();
    assert_eq!(report.passed_over.len(), 1, "it is not expired");
    leftover.kind = LeftoverKind::Revision;
    block_on(store.put(&place.key("zarr.json"), vec![record], Priority::Foreground)).unwrap();
    let report = block_on(sweep(&engine, &run, &[leftover])).unwrap();
    assert_eq!(report.passed_over.len(), 1);
    assert!(block_on(crate::checkpoint::Checkpoint::open(&engine, &place)).is_ok());
}

#[test]
fn tombstones_of_deleted_steps_go_from_the_top_after_an_hour() {
    let (engine, store) = (engine(), Aged::new(false));
    let run = at(&store);
    save(&engine, &run, 2, 0);
    let before: Vec<_> = store.keys();
    save(&engine, &run, 1, 1);
    save(&engine, &run, 1, 2);
    let high = save(&engine, &run, 1, 3);
    assert_eq!(high.name(), "1.r2");
    store.age("run/1", 61);
    assert!(plan(&engine, &run).is_empty(), "below a committed one, tombstones stay");
    delete(&engine, &run, &high, 1).unwrap();
    let dead = plan(&engine, &run);
    assert_eq!(kinds(&dead), [LeftoverKind::Tombstone; 3]);
    let report = block_on(sweep(&engine, &run, &dead[1..])).unwrap();
    assert_eq!(report.passed_over.len(), 2, "not below one that is there: {report:?}");
    sweep_all(&engine, &run);
    assert_eq!(store.keys(), before, "nothing is left of the step");
    assert_eq!(save(&engine, &run, 1, 4).name(), "1");
}

#[test]
fn a_writer_below_a_claimed_revision_goes_above_it() {
    let (engine, store) = (engine(), Aged::new(false));
    let run = at(&store);
    save(&engine, &run, 1, 1);
    let high = save(&engine, &run, 1, 2);
    // As if a sweep had freed the lower place after a writer had gone past it.
    block_on(store.delete_all("run/1")).unwrap();
    let place = save(&engine, &run, 1, 3);
    assert_eq!((high.name(), place.name()), ("1.r1", "1.r2"));
}

#[test]
fn leftovers_beside_a_checkpoint_that_stands_alone_are_found_and_swept() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let target = engine.place(dir.path().join("best").to_str().unwrap(), &[]).unwrap();
    CheckpointWriter::standalone(&engine, &target).item("state", state(1)).save_blocking().unwrap();
    let before = || {
        let mut names: Vec<_> =
            dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(before(), ["best"]);
    let start = dir.path().join(format!("best.milepost-tmp-{ID}"));
    std::fs::create_dir(&start).unwrap();
    std::fs::write(start.join("file"), "x").unwrap();
    std::fs::write(start.with_added_extension("lease"), forged(&engine, ID, true)).unwrap();
    std::fs::write(dir.path().join("best.milepost-tmp-mine"), "x").unwrap();
    std::fs::create_dir(dir.path().join("best2.milepost-tmp-x")).unwrap();
    let plan = || block_on(leftovers_beside(&engine, &target)).unwrap();
    assert!(plan().is_empty());
    std::fs::write(start.with_added_extension("lease"), forged(&engine, ID, false)).unwrap();
    let dead = plan();
    assert_eq!(kinds(&dead), [LeftoverKind::Attempt]);
    let report = block_on(sweep_beside(&engine, &target, &dead)).unwrap();
    assert!(report.swept.len() == 1 && report.failed.is_empty(), "{report:?}");
    assert_eq!(before(), ["best", "best.milepost-tmp-mine", "best2.milepost-tmp-x"]);
    assert!(is_whole(&engine, &target));
}

#[test]
fn the_parts_of_an_attempt_go_before_its_directory_does() {
    // Else an heir would take over what a late request brings back under the name of a swept attempt.
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let root = engine.place(dir.path().to_str().unwrap(), &[]).unwrap();
    let beside = format!("best.milepost-tmp-{ID}");
    let cases = [
        (format!("run/.milepost/tmp/{ID}"), format!("run/.milepost/parts/{ID}")),
        (beside.clone(), format!("{beside}.parts")),
    ];
    for ((attempt, parts), owner) in cases.iter().flat_map(|case| [(case, ""), (case, ".t2-1")]) {
        let attempt = format!("{attempt}{owner}");
        put(&root.join(&attempt), "zarr.json.new", "{}");
        put(&root, &format!("{attempt}.lease"), &forged(&engine, ID, false));
        put(&root.join(parts), "1", "a part");
        make_old(&dir.path().join(parts).join("1"), 6);
        let store = FaultStore::new(Arc::clone(root.store()));
        let (seen, there) = (Arc::new(Mutex::new(Vec::new())), dir.path().join(parts));
        let log = Arc::clone(&seen);
        store.set_rule(move |operation| {
            if operation.verb == Verb::Rename {
                log.lock().unwrap().push((operation.key.clone(), there.exists()));
            }
            None
        });
        let root = Place::new(store, root.prefix());
        let report = if attempt.starts_with("run") {
            let run = root.join("run");
            block_on(sweep(&engine, &run, &plan(&engine, &run))).unwrap()
        } else {
            let target = root.join("best");
            let dead = block_on(leftovers_beside(&engine, &target)).unwrap();
            block_on(sweep_beside(&engine, &target, &dead)).unwrap()
        };
        assert!(report.failed.is_empty() && !report.swept.is_empty(), "{report:?}");
        assert_eq!(*seen.lock().unwrap(), [(root.key(&attempt), false)]);
        assert!(!dir.path().join(&attempt).exists());
    }
}

#[test]
fn two_may_sweep_at_once() {
    let engine = engine();
    let (_dir, run) = local(&engine);
    let kept = save(&engine, &run, 1, 1);
    for round in 0..20 {
        for step in 2..5 {
            let place = save(&engine, &run, step, round);
            drop(block_on(bury(&engine, &doomed(&run, &place, step), &Burial::Delete)).unwrap());
        }
        left_behind(&run, Some(&forged(&engine, ID, false)));
        let dead = plan(&engine, &run);
        assert_eq!(dead.len(), 4);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let report = block_on(sweep(&engine, &run, &dead)).unwrap();
                    assert!(report.failed.is_empty(), "{report:?}");
                });
            }
        });
        assert!(plan(&engine, &run).is_empty());
    }
    assert!(is_whole(&engine, &kept));
}

#[test]
fn parts_are_dead_when_their_mark_is_and_nothing_was_put_for_a_minute() {
    for rename in [true, false] {
        let engine = engine();
        let store = Aged::new(rename);
        let run = Place::new(Arc::clone(&store) as _, "run");
        let parts = run.join(&format!(".milepost/parts/{ID}"));
        put(&parts, "3", "a part");
        put(&run, &format!(".milepost/parts/{ID}.lease"), &forged(&engine, ID, false));
        if rename {
            left_behind(&run, Some(&forged(&engine, ID, false)));
        } else {
            let claim = Claim { writer: ID.to_owned(), heartbeat_ms: 1, holder: None };
            let claim = String::from_utf8(claim_document(&claim)).unwrap();
            put(&run.join("7"), "_milepost/zarr.json", &claim);
            store.age("run/7/", 5);
        }
        assert!(plan(&engine, &run).is_empty(), "another of its writers may take over");
        store.age(&format!("run/.milepost/parts/{ID}/"), 2);
        assert_eq!(kinds(&plan(&engine, &run)), [LeftoverKind::Attempt, LeftoverKind::Parts]);
        sweep_all(&engine, &run);
        assert!(!store.keys().iter().any(|key| key.contains("/parts/")), "{:?}", store.keys());
    }
}
