//! Saving: when, in which order, and what the loop waits for.

use super::{
    Gate, assert_holds, contents, engine, fresh, keys, memory, open, request, run_in, save, start,
    state, steps, stores,
};
use milepost::{
    Borrowed, Engine, ErrorKind, Event, Item, Leaf, ManagerOptions, Metric, Opaque, Preservation,
    Queue, SaveDecision, SaveOptions, SaveOutcome, SaveRequest, SkipReason, StepFormat,
    StepFormats, Tree, Which,
};
use serde_json::json;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

fn skipped(outcome: SaveOutcome) -> SkipReason {
    match outcome {
        SaveOutcome::Skipped(reason) => reason,
        SaveOutcome::Started(handle) => panic!("started: {handle:?}"),
    }
}

#[test]
fn a_step_in_flight_is_never_listed() {
    let engine = engine();
    for (kind, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, ManagerOptions::default());
        save(&manager, 1);
        let gate = Arc::new(Gate::default());
        let handle = start(&manager, gate.request(2));
        gate.wait_for(1);
        assert!(manager.is_saving() && !handle.is_done(), "{kind}");
        for manager in [&manager, &fresh(&engine, &run)] {
            assert_eq!((steps(manager), manager.latest_step()), (vec![1], Some(1)), "{kind}");
        }
        gate.open();
        assert_eq!(handle.wait().unwrap().record.step, Some(2));
        assert_holds(&engine, &manager, &[(1, 0), (2, 0)]);
        manager.wait().unwrap();
        assert!(!manager.is_saving());
    }
}

#[test]
fn a_reload_forgets_nothing_that_is_saved_or_deleted_meanwhile() {
    let engine = engine();
    for (kind, store) in stores() {
        let options =
            ManagerOptions { preservation: Preservation::Latest(2), ..Default::default() };
        let manager = open(&engine, &run_in(&store), options);
        let newest = |step| {
            save(&manager, step);
            manager.wait().unwrap();
            steps(&manager) == [step - 1, step]
        };
        std::thread::scope(|scope| {
            let saves = scope.spawn(|| {
                save(&manager, 1);
                let lost = (2..=60).find(|step| !newest(*step));
                assert_eq!(lost, None, "{kind}: listed {:?}", steps(&manager));
            });
            while !saves.is_finished() {
                manager.reload().unwrap();
            }
        });
    }
}

#[test]
fn the_policy_decides_and_says_why() {
    let engine = engine();
    let options = ManagerOptions { decision: SaveDecision::Interval(5), ..Default::default() };
    let manager = open(&engine, &memory(), options);
    for step in 0..=11 {
        let decision = manager.should_save(step);
        let outcome = manager.save(request(step)).unwrap();
        assert_eq!(decision.save, outcome.handle().is_some());
        if !decision.save {
            assert_eq!(skipped(outcome), SkipReason::Policy(decision.reason));
        }
    }
    manager.wait().unwrap();
    assert_eq!(steps(&manager), [0, 5, 10]);
    let decision = manager.should_save(5);
    assert_eq!((decision.save, &*decision.reason), (false, "not above step 10, the newest"));
}

#[test]
fn force_skips_the_policy_and_replaces_nothing() {
    let engine = engine();
    for (_, store) in stores() {
        let options = ManagerOptions { decision: SaveDecision::Interval(5), ..Default::default() };
        let manager = open(&engine, &run_in(&store), options);
        save(&manager, 5);
        start(&manager, request(7).force()).wait().unwrap();
        let again = SaveRequest::new(5).item("state", state(5, 1)).force();
        let error = manager.save(again).unwrap_err();
        assert_eq!((error.kind(), error.get("step")), (ErrorKind::AlreadyExists, Some("5")));
        assert!(!manager.is_saving(), "a refused save has no place");
        assert_holds(&engine, &manager, &[(5, 0), (7, 0)]);
    }
}

#[test]
fn overwrite_replaces_a_step_and_does_not_skip_the_policy() {
    let engine = engine();
    for (_, store) in stores() {
        let options = ManagerOptions { decision: SaveDecision::Interval(5), ..Default::default() };
        let manager = open(&engine, &run_in(&store), options);
        save(&manager, 5);
        save(&manager, 10);
        for generation in 1..4 {
            let again = SaveRequest::new(5).item("state", state(5, generation)).overwrite();
            start(&manager, again).wait().unwrap();
            assert_holds(&engine, &manager, &[(5, generation), (10, 0)]);
        }
        let reason = skipped(manager.save(request(12).overwrite()).unwrap());
        assert!(matches!(reason, SkipReason::Policy(_)), "{reason}");
        // An older step that is not there is not replaced: it is late.
        let reason = skipped(manager.save(request(0).overwrite()).unwrap());
        assert_eq!(reason, SkipReason::NotAbove(10));
    }
}

#[test]
fn an_overwrite_shows_the_old_step_until_the_new_one_is_whole() {
    let engine = engine();
    for (_, store) in stores() {
        let manager = open(&engine, &run_in(&store), ManagerOptions::default());
        save(&manager, 1);
        let gate = Arc::new(Gate::default());
        let again = SaveRequest::new(1).item("state", gate.item(1, 1)).overwrite();
        let handle = start(&manager, again);
        gate.wait_for(1);
        let old = fresh(&engine, manager.run().place()).restore(Which::Latest).unwrap();
        assert_eq!(contents(&old.checkpoint).unwrap(), (1, 0));
        gate.open();
        handle.wait().unwrap();
        assert_holds(&engine, &manager, &[(1, 1)]);
    }
}

#[test]
fn an_overwrite_that_fails_leaves_the_old_step() {
    let engine = engine();
    for (_, store) in stores() {
        let manager = open(&engine, &run_in(&store), ManagerOptions::default());
        save(&manager, 1);
        let fill = |_: &milepost::Subset, _: &mut [u8]| {
            Err(milepost::Error::new(ErrorKind::Unavailable, "the device is gone"))
        };
        let leaf =
            Leaf::from_provider(milepost::DataType::UInt64, vec![64], Arc::new(fill)).unwrap();
        let again = SaveRequest::new(1).item("state", Item::Array(leaf)).overwrite();
        start(&manager, again).wait().unwrap_err();
        assert_holds(&engine, &manager, &[(1, 0)]);
    }
}

#[test]
fn steps_forced_out_of_order_are_listed_in_order_and_the_newest_stays() {
    let engine = engine();
    for (_, store) in stores() {
        let options =
            ManagerOptions { preservation: Preservation::Latest(1), ..Default::default() };
        let manager = open(&engine, &run_in(&store), options);
        save(&manager, 1);
        save(&manager, 3);
        assert_eq!(skipped(manager.save(request(2)).unwrap()), SkipReason::NotAbove(3));
        start(&manager, request(2).force()).wait().unwrap();
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(3, 0)]);
    }
}

#[test]
fn a_save_waits_for_the_one_in_flight() {
    let engine = engine();
    let manager = open(&engine, &memory(), ManagerOptions::default());
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    gate.wait_for(1);
    let began = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            began.store(true, SeqCst);
            let second = start(&manager, request(2));
            assert!(first.is_done(), "the second began before the first had ended");
            second.wait().unwrap();
        });
        while !began.load(SeqCst) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(30));
        assert!(!second.is_finished());
        gate.open();
    });
    assert_holds(&engine, &manager, &[(1, 0), (2, 0)]);
}

#[test]
fn a_save_that_does_not_wait_is_skipped_while_one_is_in_flight() {
    let engine = engine();
    let manager = open(&engine, &memory(), ManagerOptions::default());
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    let busy = manager.save(request(2).queue(Queue::Skip)).unwrap();
    assert_eq!(skipped(busy), SkipReason::Busy);
    gate.open();
    first.wait().unwrap();
    // As soon as the handle tells, there is room.
    start(&manager, request(3).queue(Queue::Skip)).wait().unwrap();
    assert_holds(&engine, &manager, &[(1, 0), (3, 0)]);
}

#[test]
fn a_newer_save_takes_the_pending_place() {
    let engine = engine();
    let options = ManagerOptions { queue: Queue::ReplacePending, ..Default::default() };
    let manager = open(&engine, &memory(), options);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    manager.on_event(move |event| tell.lock().unwrap().push(event.to_json()));
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    gate.wait_for(1);
    let second = start(&manager, request(2));
    assert!(!second.is_done() && !first.is_done());
    let third = start(&manager, request(3));
    assert_eq!(second.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    gate.open();
    first.wait().unwrap();
    third.wait().unwrap();
    manager.wait().unwrap();
    assert_holds(&engine, &manager, &[(1, 0), (3, 0)]);
    let reason = SkipReason::Replaced.to_string();
    let skip = json!({"event": "skipped", "step": 2, "reason": reason});
    assert!(told.lock().unwrap().contains(&skip));
    let stats = manager.stats();
    assert_eq!((stats.saved, stats.skipped, stats.failed), (2, 1, 0));
}

#[test]
fn a_pending_save_keeps_what_was_borrowed_although_it_begins_later() {
    let engine = engine();
    let options = ManagerOptions { queue: Queue::ReplacePending, ..Default::default() };
    let manager = open(&engine, &memory(), options);
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    gate.wait_for(1);
    let mut weights = vec![7_u32; 1000];
    let mut borrowed = Borrowed::new();
    let leaf = borrowed.leaf(&weights, &[1000]).unwrap();
    let second = SaveRequest::new(2).item("state", Item::Array(leaf)).borrowing(borrowed);
    let second = start(&manager, second);
    weights.fill(8);
    gate.open();
    first.wait().unwrap();
    second.wait().unwrap();
    let restored = manager.restore(Which::Step(2)).unwrap().checkpoint;
    let array = futures::executor::block_on(restored.restore_array("state")).unwrap();
    assert_eq!(array.to_vec::<u32>().unwrap(), [7; 1000]);
}

#[test]
fn so_many_saves_as_are_allowed_are_in_flight_at_once() {
    let engine = engine();
    let options = ManagerOptions { max_in_flight: 2, ..Default::default() };
    let manager = open(&engine, &memory(), options);
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    let second = start(&manager, gate.request(2));
    gate.wait_for(2);
    assert_eq!(skipped(manager.save(request(3).queue(Queue::Skip)).unwrap()), SkipReason::Busy);
    assert!(steps(&manager).is_empty() && !first.is_done() && !second.is_done());
    gate.open();
    start(&manager, request(3)).wait().unwrap();
    manager.wait().unwrap();
    assert_holds(&engine, &manager, &[(1, 0), (2, 0), (3, 0)]);
}

#[test]
fn one_step_is_never_saved_twice_at_once() {
    let engine = engine();
    let options = ManagerOptions { max_in_flight: 2, ..Default::default() };
    let manager = open(&engine, &memory(), options);
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    let again = || SaveRequest::new(1).item("state", state(1, 1)).overwrite();
    let busy = manager.save(again().queue(Queue::Skip)).unwrap();
    assert_eq!(skipped(busy), SkipReason::Busy);
    gate.open();
    start(&manager, again()).wait().unwrap();
    first.wait().unwrap();
    assert_holds(&engine, &manager, &[(1, 1)]);
}

#[test]
fn a_cancelled_save_leaves_nothing_and_is_nobodys_failure() {
    let engine = engine();
    for (kind, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, ManagerOptions::default());
        let gate = Arc::new(Gate::default());
        let handle = start(&manager, gate.request(1));
        gate.wait_for(1);
        handle.cancel();
        gate.open();
        assert_eq!(handle.wait().unwrap_err().kind(), ErrorKind::Cancelled);
        manager.wait().unwrap();
        assert!(steps(&manager).is_empty());
        assert_eq!(engine.budget().used(), 0);
        // Where there are no renames, a tombstone and the claim below it keep the place.
        let left = keys(&run);
        assert!(left.iter().all(|key| kind != "renames" && key.ends_with("zarr.json")), "{left:?}");
        save(&manager, 1);
        assert_holds(&engine, &manager, &[(1, 0)]);
    }
}

#[test]
fn a_pending_save_can_be_cancelled() {
    let engine = engine();
    let options = ManagerOptions { queue: Queue::ReplacePending, ..Default::default() };
    let manager = open(&engine, &memory(), options);
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    let second = start(&manager, request(2));
    second.cancel();
    gate.open();
    first.wait().unwrap();
    assert_eq!(second.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_holds(&engine, &manager, &[(1, 0)]);
}

#[test]
fn a_wait_that_takes_too_long_ends_and_the_save_goes_on() {
    let engine = engine();
    let manager = open(&engine, &memory(), ManagerOptions::default());
    let gate = Arc::new(Gate::default());
    let handle = start(&manager, gate.request(1));
    let error = handle.wait_timeout(Duration::from_millis(5)).unwrap_err();
    assert_eq!((error.kind(), error.get("step")), (ErrorKind::Timeout, Some("1")));
    gate.open();
    handle.wait_timeout(Duration::from_mins(1)).unwrap();
    assert_holds(&engine, &manager, &[(1, 0)]);
}

/// Saves 8 MiB that are lent, changes them at once, and reads them back.
fn borrow(engine: &Arc<Engine>) {
    // What is held takes half of the budget; a larger chunk than the rest would go beyond it, alone.
    let save = SaveOptions { chunk_bytes: 1 << 20, ..SaveOptions::default() };
    let manager = open(engine, &memory(), ManagerOptions { save, ..Default::default() });
    let mut weights: Vec<u32> = (0..2 << 20).collect();
    let mut small = vec![1_u8; 100];
    for step in 1..=3 {
        let mut borrowed = Borrowed::new();
        let tree = Tree::dict([
            ("w", Tree::leaf(borrowed.leaf(&weights, &[2048, 1024]).unwrap())),
            ("b", Tree::leaf(borrowed.leaf(&small, &[100]).unwrap())),
        ]);
        let wanted = (weights.clone(), small.clone());
        let request = SaveRequest::new(step).item("state", Item::Tree(tree)).borrowing(borrowed);
        let handle = start(&manager, request);
        for w in &mut weights {
            *w = !*w;
        }
        small.fill(u8::try_from(step).unwrap() + 1);
        handle.wait().unwrap();
        // The memory of the copies waits for the next save.
        assert!(engine.budget().used() <= engine.options().budget_bytes / 2);
        let restored = manager.restore(Which::Step(step)).unwrap().checkpoint;
        let read = |path: &str| restored.leaf_blocking("state", path).unwrap().read_blocking();
        assert!(read("w").unwrap().to_vec::<u32>().unwrap() == wanted.0, "step {step}");
        assert!(read("b").unwrap().to_vec::<u8>().unwrap() == wanted.1, "step {step}");
    }
    let high = engine.budget().high_water();
    assert!(high <= engine.options().budget_bytes, "{high}");
    drop(manager);
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn borrowed_leaves_are_saved_as_they_were_when_save_returned() {
    borrow(&Engine::builder().budget_bytes(64 << 20).build().unwrap());
}

#[test]
fn borrowed_leaves_beyond_the_budget_are_saved_as_they_were_and_within_it() {
    borrow(&Engine::builder().budget_bytes(6 << 20).build().unwrap());
}

#[test]
fn files_are_captured_before_save_returns() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tokenizer");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("vocab"), b"as it was").unwrap();
    let manager = open(&engine, &memory(), ManagerOptions::default());
    let gate = Arc::new(Gate::default());
    let files = Item::Opaque(Opaque::from_path(&source).unwrap());
    let handle = start(&manager, gate.request(1).item("tokenizer", files));
    std::fs::write(source.join("vocab"), b"changed").unwrap();
    std::fs::remove_dir_all(&source).unwrap();
    gate.open();
    handle.wait().unwrap();
    let restored = manager.restore(Which::Latest).unwrap().checkpoint;
    let into = dir.path().join("restored");
    restored.restore_files_blocking("tokenizer", &into, false).unwrap();
    assert_eq!(std::fs::read(into.join("vocab")).unwrap(), b"as it was");
}

#[test]
fn metrics_and_metadata_are_kept_without_a_policy_that_asks_for_them() {
    let engine = engine();
    let run = memory();
    let metadata = json!({"host": "a"}).as_object().unwrap().clone();
    let manager = open(&engine, &run, ManagerOptions::default());
    let request = request(1)
        .metric("loss", f64::NAN)
        .metric("accuracy", 0.5)
        .metadata(metadata.clone())
        .item_metadata("state", json!({"tokens": 9}));
    start(&manager, request).wait().unwrap();
    drop(manager);
    let record = fresh(&engine, &run).restore(Which::Latest).unwrap().checkpoint.record().clone();
    assert_eq!(record.metadata, metadata);
    let info = milepost::StepInfo { metrics: record.metrics.clone(), ..Default::default() };
    let metric = |name: &str| Metric::Named(name.to_owned()).of(&info).unwrap();
    assert!(metric("loss").is_nan());
    assert_eq!(metric("accuracy").to_bits(), 0.5_f64.to_bits());
    assert_eq!(record.items[0].metadata, json!({"tokens": 9}));
}

#[test]
fn the_run_is_founded_with_metadata_and_names_which_later_managers_find() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let metadata = json!({"model": "m"}).as_object().unwrap().clone();
        let format = StepFormat { prefix: "step_".to_owned(), width: 4 };
        let options = ManagerOptions {
            formats: Some(StepFormats::from(format)),
            metadata: metadata.clone(),
            ..Default::default()
        };
        let manager = open(&engine, &run, options);
        save(&manager, 12);
        assert!(manager.steps()[0].place.name().starts_with("step_0012"));
        drop(manager);
        let other = json!({"model": "other"}).as_object().unwrap().clone();
        let options = ManagerOptions { metadata: other, ..Default::default() };
        let manager = open(&engine, &run, options);
        assert_eq!(manager.run().metadata(), &metadata, "written once");
        save(&manager, 13);
        assert!(manager.steps()[1].place.name().starts_with("step_0013"));
        assert_holds(&engine, &manager, &[(12, 0), (13, 0)]);
    }
}

#[test]
fn preemption_saves_a_step_that_the_interval_would_not() {
    let engine = engine();
    let any = SaveDecision::Any(vec![SaveDecision::Interval(100), SaveDecision::Preemption]);
    let manager = open(&engine, &memory(), ManagerOptions { decision: any, ..Default::default() });
    let reason = skipped(manager.save(request(7)).unwrap());
    assert!(matches!(reason, SkipReason::Policy(_)), "{reason}");
    manager.preemption().store(true, SeqCst);
    assert!(manager.should_save(7).save);
    save(&manager, 7);
    assert_eq!(steps(&manager), [7]);
}

#[test]
fn a_request_that_cannot_be_meant_is_refused_and_takes_no_place() {
    let engine = engine();
    let manager = open(&engine, &memory(), ManagerOptions::default());
    let twice = request(1).item("state", Item::Json(json!(1)));
    assert_eq!(manager.save(twice).unwrap_err().kind(), ErrorKind::Invalid);
    let mut borrowed = Borrowed::new();
    let leaf = borrowed.leaf(&[1_u8], &[1]).unwrap();
    let unlent = SaveRequest::new(1).item("state", Item::Array(leaf));
    assert_eq!(manager.save(unlent).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!manager.is_saving());
    save(&manager, 1);
    assert_eq!(steps(&manager), [1]);
}

#[test]
fn a_closed_manager_has_saved_everything_and_refuses_more() {
    let engine = engine();
    let run = memory();
    let manager = open(&engine, &run, ManagerOptions::default());
    let handle = start(&manager, request(1));
    manager.close().unwrap();
    assert!(handle.is_done());
    assert_eq!(manager.save(request(2)).unwrap_err().kind(), ErrorKind::Invalid);
    assert_holds(&engine, &manager, &[(1, 0)]);
}

#[test]
fn dropping_a_manager_waits_for_what_is_in_flight() {
    let engine = engine();
    let run = memory();
    let options = ManagerOptions { queue: Queue::ReplacePending, ..Default::default() };
    let manager = open(&engine, &run, options);
    let gate = Arc::new(Gate::default());
    let first = start(&manager, gate.request(1));
    let second = start(&manager, request(2));
    gate.wait_for(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            gate.open();
        });
        drop(manager);
    });
    assert!(first.is_done() && second.is_done());
    assert_eq!(steps(&fresh(&engine, &run)), [1, 2]);
}

#[test]
fn the_callback_and_the_log_tell_the_same_and_stats_add_up() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("events.jsonl");
    let options = ManagerOptions {
        preservation: Preservation::Latest(1),
        decision: SaveDecision::Interval(2),
        log: Some(log.clone()),
        ..Default::default()
    };
    let manager = open(&engine, &memory(), options);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    manager.on_event(move |event| {
        assert!(!matches!(event, Event::Skipped { step: 3, .. }), "a panic here harms nobody");
        tell.lock().unwrap().push(event.to_json());
    });
    for step in 1..=4 {
        drop(manager.save(request(step)).unwrap());
    }
    manager.wait().unwrap();
    manager.restore(Which::LatestGood).unwrap();
    let empty = SaveRequest::new(6);
    start(&manager, empty).wait().unwrap_err();
    manager.wait().unwrap();
    let stats = manager.stats();
    assert_eq!((stats.saved, stats.skipped, stats.failed, stats.deleted), (2, 2, 1, 1));
    assert!(stats.bytes > 0 && stats.saving > Duration::ZERO && stats.budget_high_water > 0);
    assert!(stats.gigabytes_per_second() > 0.0);
    let text = std::fs::read_to_string(log).unwrap();
    let mut lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        let time = line.as_object_mut().unwrap().remove("unix_ms");
        assert!(time.unwrap().as_u64().unwrap() > 1_600_000_000_000);
    }
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    for (event, count) in
        [("saved", 2), ("skipped", 2), ("deleted", 1), ("verified", 1), ("failed", 1)]
    {
        assert_eq!(events.iter().filter(|e| **e == event).count(), count, "{event}");
    }
    lines.retain(|line| line["event"] != "skipped" || line["step"] != 3);
    assert_eq!(lines, *told.lock().unwrap());
}
