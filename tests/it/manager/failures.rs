//! Failures: who is told, what stays, and what is tried instead.

use super::{
    Gate, assert_holds, changes, contents, engine, fresh, keys, memory, open, request, run_in,
    save, start, state, steps, stores,
};
use milepost::{
    Action, Burial, DataType, Error, ErrorKind, Item, Leaf, ManagerOptions, Preservation, Queue,
    SaveDecision, SaveHandle, SaveOutcome, SaveRequest, SkipReason, Subset, Verb, Which,
};
use std::{
    sync::{Arc, Barrier},
    time::Duration,
};

/// An item whose data cannot be had once the gate is open.
fn failing(gate: &Arc<Gate>) -> Item {
    let gate = Arc::clone(gate);
    let fill = move |_: &Subset, _: &mut [u8]| {
        gate.pass()?;
        Err(Error::new(ErrorKind::Unavailable, "the device is gone"))
    };
    Item::Array(Leaf::from_provider(DataType::UInt64, vec![8], Arc::new(fill)).unwrap())
}

/// Fails every change from now on.
fn break_store(store: &milepost::FaultStore) {
    store.set_rule(|operation| {
        operation.verb.changes().then_some(Action::Fail(ErrorKind::Unavailable))
    });
}

#[test]
fn a_failed_save_is_told_by_its_handle_again_and_again() {
    let engine = engine();
    for (_, store) in stores() {
        let manager = open(&engine, &run_in(&store), ManagerOptions::default());
        save(&manager, 1);
        break_store(&store);
        let handle = start(&manager, request(2));
        for _ in 0..3 {
            let error = handle.wait().unwrap_err();
            assert_eq!((error.kind(), error.get("step")), (ErrorKind::Unavailable, Some("2")));
        }
        store.clear_rule();
        // The handle has told: neither the next call nor `wait` does once more.
        save(&manager, 3);
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(1, 0), (3, 0)]);
    }
}

#[test]
fn a_failed_save_that_nobody_asked_about_is_told_by_the_next_call_once() {
    let engine = engine();
    for (_, store) in stores() {
        let manager = open(&engine, &run_in(&store), ManagerOptions::default());
        save(&manager, 1);
        for by_wait in [true, false] {
            break_store(&store);
            let handle = start(&manager, request(2));
            while !handle.is_done() {
                std::thread::yield_now();
            }
            store.clear_rule();
            let error = if by_wait {
                manager.wait().unwrap_err()
            } else {
                manager.save(request(2)).unwrap_err()
            };
            assert_eq!((error.kind(), error.get("step")), (ErrorKind::Unavailable, Some("2")));
            assert_eq!(steps(&manager), [1], "nothing is saved by the call that tells");
            manager.wait().unwrap();
        }
        save(&manager, 2);
        assert_holds(&engine, &manager, &[(1, 0), (2, 0)]);
    }
}

#[test]
fn the_step_of_a_failed_save_can_be_saved_again_at_once() {
    let engine = engine();
    for (kind, store) in stores() {
        let manager = open(&engine, &run_in(&store), ManagerOptions::default());
        for step in 1..=100 {
            let broken = SaveRequest::new(step);
            start(&manager, broken).wait().unwrap_err();
            match manager.save(request(step).queue(Queue::Skip)).unwrap() {
                SaveOutcome::Started(handle) => handle.wait().unwrap(),
                SaveOutcome::Skipped(reason) => panic!("{kind}, step {step}: {reason}"),
            };
        }
        assert_eq!(steps(&manager).len(), 100);
    }
}

#[test]
fn of_two_failed_saves_the_one_that_nobody_asked_about_is_told() {
    let engine = engine();
    let options = ManagerOptions { max_in_flight: 2, ..Default::default() };
    let manager = open(&engine, &memory(), options);
    for asked in [0, 1, 0, 1] {
        let gate = Arc::new(Gate::default());
        let handles =
            [1, 2].map(|step| start(&manager, SaveRequest::new(step).item("late", failing(&gate))));
        gate.wait_for(2);
        gate.open();
        while !handles.iter().all(SaveHandle::is_done) {
            std::thread::yield_now();
        }
        handles[asked].wait().unwrap_err();
        let error = manager.wait().unwrap_err();
        assert_eq!(error.get("step"), Some(if asked == 0 { "2" } else { "1" }));
        manager.wait().unwrap();
    }
}

#[test]
fn a_failed_save_with_one_step_to_keep_leaves_that_step_listed_and_restorable() {
    let engine = engine();
    for (_, store) in stores() {
        let options =
            ManagerOptions { preservation: Preservation::Latest(1), ..Default::default() };
        let manager = open(&engine, &run_in(&store), options);
        save(&manager, 1);
        break_store(&store);
        start(&manager, request(2)).wait().unwrap_err();
        assert_eq!(manager.latest_step(), Some(1));
        manager.wait().unwrap();
        assert!(!manager.is_saving(), "a failed save is over");
        store.clear_rule();
        assert_holds(&engine, &manager, &[(1, 0)]);
        save(&manager, 2);
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(2, 0)]);
    }
}

#[test]
fn a_save_to_a_store_that_hangs_ends_in_time_and_gives_everything_back() {
    let engine = engine();
    for (kind, store) in stores() {
        let run = run_in(&store);
        let options =
            ManagerOptions { timeout: Some(Duration::from_millis(100)), ..Default::default() };
        let manager = open(&engine, &run, options);
        // The first save waits for no clock: a slow machine is not a store that hangs.
        let patient = open(&engine, &run, ManagerOptions::default());
        save(&patient, 1);
        manager.reload().unwrap();
        let hanging =
            if kind == "renames" { [Verb::Sync, Verb::Rename] } else { [Verb::Put, Verb::PutNew] };
        for verb in hanging {
            store.spoil_all(verb, Action::Delay(Duration::from_hours(1)));
            let handle = start(&manager, request(2).force());
            let error = handle.wait().unwrap_err();
            store.clear_rule();
            assert_eq!((error.kind(), error.get("step")), (ErrorKind::Timeout, Some("2")));
            assert_eq!(engine.budget().used(), 0);
            assert_holds(&engine, &manager, &[(1, 0)]);
        }
        save(&patient, 2);
        patient.wait().unwrap();
        assert_holds(&engine, &patient, &[(1, 0), (2, 0)]);
        let sweeper = ManagerOptions { sweep_at_start: true, ..Default::default() };
        open(&engine, &run, sweeper).wait().unwrap();
        assert!(keys(&run).iter().all(|key| !key.contains("/tmp/")), "{:?}", keys(&run));
    }
}

#[test]
fn a_save_is_tried_again_as_often_as_allowed_and_that_is_counted() {
    let engine = engine();
    for (kind, store) in stores() {
        let options = ManagerOptions { retries: 3, ..Default::default() };
        let manager = open(&engine, &run_in(&store), options);
        save(&manager, 1);
        let mut left = 2;
        store.set_rule(move |operation| {
            let hit = operation.verb.changes() && operation.key.contains("/state") && left > 0;
            left -= u32::from(hit);
            hit.then_some(Action::Fail(ErrorKind::Unavailable))
        });
        save(&manager, 2);
        let stats = manager.stats();
        assert!((1..=2).contains(&stats.retries), "{kind}: {}", stats.retries);
        assert_eq!(stats.failed, 0);
        assert_holds(&engine, &manager, &[(1, 0), (2, 0)]);
        break_store(&store);
        let before = manager.stats().retries;
        start(&manager, request(3)).wait().unwrap_err();
        assert_eq!(manager.stats().retries - before, 3);
        // What no other try can mend is not tried again.
        start(&manager, SaveRequest::new(4)).wait().unwrap_err();
        assert_eq!(manager.stats().retries - before, 3);
    }
}

#[test]
fn a_step_that_cannot_be_saved_here_goes_to_the_backup_run() {
    let engine = engine();
    for (_, store) in stores() {
        let backup = memory();
        let options =
            ManagerOptions { retries: 1, backup: Some(backup.clone()), ..Default::default() };
        let run = run_in(&store);
        let manager = open(&engine, &run, options);
        save(&manager, 1);
        break_store(&store);
        let saved = start(&manager, request(2)).wait().unwrap();
        assert_eq!(saved.place.to_string(), backup.join("2").to_string());
        assert_eq!((manager.stats().saved, manager.stats().retries), (2, 1));
        store.clear_rule();
        assert_holds(&engine, &manager, &[(1, 0)]);
        let other = fresh(&engine, &backup);
        assert_eq!(contents(&other.restore(Which::Latest).unwrap().checkpoint).unwrap(), (2, 0));
        // Where both are broken, the error tells of the second and, as its cause, of the first.
        break_store(&store);
        let exists = start(&manager, request(2).force()).wait().unwrap_err();
        assert_eq!(exists.kind(), ErrorKind::AlreadyExists);
        let first = std::error::Error::source(&exists).unwrap();
        assert!(std::iter::successors(Some(first), |e| e.source()).count() >= 1);
    }
}

#[test]
fn a_read_only_manager_never_writes_whatever_is_asked() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, ManagerOptions::default());
        for step in 1..=3 {
            save(&manager, step);
        }
        drop(manager);
        let before = (changes(&store), keys(&run));
        let options = ManagerOptions {
            read_only: true,
            sweep_at_start: true,
            preservation: Preservation::Latest(1),
            decision: SaveDecision::Interval(1),
            metadata: serde_json::json!({"a": 1}).as_object().unwrap().clone(),
            formats: Some(milepost::StepFormats::default()),
            burial: Burial::MoveTo("old".to_owned()),
            backup: Some(run.join("backup")),
            ..Default::default()
        };
        let manager = open(&engine, &run, options);
        for request in
            [request(4), request(4).force(), request(2).overwrite(), request(2).force().overwrite()]
        {
            let outcome = manager.save(request).unwrap();
            assert!(matches!(outcome, SaveOutcome::Skipped(SkipReason::ReadOnly)));
        }
        assert_eq!(manager.delete(1).unwrap_err().kind(), ErrorKind::Invalid);
        manager.reload().unwrap();
        assert_eq!(manager.plan().unwrap().delete, [1, 2], "a plan is shown, not performed");
        manager.restore(Which::LatestGood).unwrap();
        assert_eq!(manager.stats().skipped, 4);
        manager.close().unwrap();
        drop(manager);
        assert_eq!((changes(&store), keys(&run)), before);
    }
}

#[test]
fn a_read_only_manager_does_not_found_a_run() {
    let engine = engine();
    let [(_, store), _] = stores();
    let run = run_in(&store);
    let manager = fresh(&engine, &run);
    assert_eq!((manager.latest_step(), manager.best_step()), (None, None));
    assert_eq!(manager.restore(Which::Latest).unwrap_err().kind(), ErrorKind::NotFound);
    drop(manager);
    assert_eq!(changes(&store), 0);
}

#[test]
fn of_two_writers_of_one_step_exactly_one_wins() {
    let engine = engine();
    let mut rounds = 0;
    for (kind, store) in stores() {
        let run = run_in(&store);
        let managers = [1, 2].map(|_| open(&engine, &run, ManagerOptions::default()));
        for step in 1..=40 {
            let barrier = Barrier::new(2);
            let outcomes = std::thread::scope(|scope| {
                let save = |writer: u64| {
                    let (manager, barrier) =
                        (&managers[usize::try_from(writer).unwrap()], &barrier);
                    scope.spawn(move || {
                        let request = SaveRequest::new(step).item("state", state(step, writer));
                        barrier.wait();
                        start(manager, request).wait()
                    })
                };
                [save(0), save(1)].map(|thread| thread.join().unwrap())
            });
            let winners: Vec<u64> =
                (0..2).filter(|i| outcomes[usize::try_from(*i).unwrap()].is_ok()).collect();
            let [winner] = winners[..] else { panic!("{kind} {step}: {outcomes:?}") };
            let loser = outcomes[usize::try_from(1 - winner).unwrap()].as_ref().unwrap_err();
            let kinds = [ErrorKind::AlreadyExists, ErrorKind::Conflict];
            assert!(kinds.contains(&loser.kind()), "{kind} {step}: {loser}");
            let found = fresh(&engine, &run).restore(Which::Latest).unwrap().checkpoint;
            assert_eq!(contents(&found).unwrap(), (step, winner), "{kind}");
            for manager in &managers {
                manager.reload().unwrap();
            }
            rounds += 1;
        }
    }
    println!("{rounds} races of two writers, one winner each");
}
