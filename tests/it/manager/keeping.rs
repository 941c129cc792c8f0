//! What is kept, what is deleted, and what other processes have a say in.

use super::{
    assert_holds, contents, engine, fresh, keys, memory, open, request, run_in, save, start, state,
    steps, stores,
};
use futures::executor::block_on;
use milepost::{
    Action, BestMode, Burial, ErrorKind, Event, Manager, ManagerOptions, Metric, MissingMetric,
    Preservation, SaveRequest, Verb, WatchOptions, Which,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

fn keep(preservation: Preservation) -> ManagerOptions {
    ManagerOptions { preservation, ..ManagerOptions::default() }
}

fn best(n: usize, missing: MissingMetric) -> Preservation {
    let metric = Metric::Named("loss".to_owned());
    Preservation::Best { metric, mode: BestMode::Min, n: Some(n), missing }
}

fn save_with(manager: &Manager, step: u64, loss: f64) {
    start(manager, request(step).metric("loss", loss)).wait().unwrap();
    manager.wait().unwrap();
}

#[test]
fn the_best_step_survives_a_restart_and_a_worse_one() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let options = || keep(best(1, MissingMetric::Drop));
        let manager = open(&engine, &run, options());
        save_with(&manager, 1, 0.5);
        drop(manager);
        let manager = open(&engine, &run, options());
        assert_eq!(manager.best_step(), Some(1));
        for (step, loss) in [(2, 9.0), (3, 8.0)] {
            save_with(&manager, step, loss);
            assert_holds(&engine, &manager, &[(1, 0), (step, 0)]);
        }
        let opened = manager.restore(Which::Best).unwrap();
        assert_eq!(contents(&opened.checkpoint).unwrap(), (1, 0));
        assert_eq!(contents(&manager.restore(Which::Latest).unwrap().checkpoint).unwrap(), (3, 0));
    }
}

#[test]
fn a_metric_that_is_not_a_number_is_the_worst_and_disturbs_no_order() {
    let engine = engine();
    let manager = open(&engine, &memory(), keep(best(2, MissingMetric::Drop)));
    for (step, loss) in [(1, 5.0), (2, 1.0), (3, f64::NAN), (4, 0.5), (5, 9.0)] {
        save_with(&manager, step, loss);
    }
    assert_holds(&engine, &manager, &[(2, 0), (4, 0), (5, 0)]);
    assert_eq!(manager.best_step(), Some(4));
}

#[test]
fn steps_without_the_metric_follow_the_rule_for_them() {
    let engine = engine();
    for (missing, wanted) in
        [(MissingMetric::Keep, vec![1, 2, 4]), (MissingMetric::Drop, vec![2, 4])]
    {
        let manager = open(&engine, &memory(), keep(best(1, missing)));
        save(&manager, 1);
        save_with(&manager, 2, 1.0);
        save_with(&manager, 3, 2.0);
        save_with(&manager, 4, 3.0);
        assert_eq!(steps(&manager), wanted);
    }
}

#[test]
fn the_newest_step_is_never_deleted_by_a_policy() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, keep(Preservation::Latest(0)));
        for step in 1..=4 {
            save(&manager, step);
            manager.wait().unwrap();
            assert_holds(&engine, &manager, &[(step, 0)]);
        }
    }
}

#[test]
fn every_so_many_steps_are_kept_with_the_latest() {
    let engine = engine();
    let any = Preservation::Any(vec![Preservation::Latest(2), Preservation::EverySteps(5)]);
    let manager = open(&engine, &memory(), keep(any));
    for step in 0..=13 {
        save(&manager, step);
    }
    manager.wait().unwrap();
    assert_eq!(steps(&manager), [0, 5, 10, 12, 13]);
    assert_eq!(manager.stats().deleted, 9);
}

#[test]
fn a_pinned_step_stays_until_it_is_unpinned() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, keep(Preservation::Latest(1)));
        save(&manager, 1);
        block_on(manager.run().pin(1, "a baseline")).unwrap();
        for step in 2..=4 {
            save(&manager, step);
        }
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(1, 0), (4, 0)]);
        let error = manager.delete(1).unwrap_err();
        assert_eq!((error.kind(), error.get("why")), (ErrorKind::Conflict, Some("a baseline")));
        assert!(block_on(manager.run().unpin(1)).unwrap());
        save(&manager, 5);
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(5, 0)]);
    }
}

#[test]
fn a_step_under_evaluation_stays_until_its_lease_ends() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, keep(Preservation::Latest(1)));
        save(&manager, 1);
        let evaluator = fresh(&engine, &run);
        let watched = WatchOptions { timeout: Some(Duration::ZERO), ..WatchOptions::default() };
        let first = evaluator.run().new_steps(watched).next().unwrap().unwrap();
        let lease = block_on(manager.run().lease(1)).unwrap();
        for step in 2..=3 {
            save(&manager, step);
            manager.wait().unwrap();
            assert_holds(&engine, &manager, &[(1, 0), (step, 0)]);
        }
        assert_eq!(manager.stats().failed, 0);
        assert_eq!(manager.delete(1).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(contents(&first.checkpoint).unwrap(), (1, 0));
        drop(first);
        save(&manager, 4);
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(1, 0), (4, 0)]);
        drop(lease);
        save(&manager, 5);
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(5, 0)]);
    }
}

#[test]
fn old_steps_are_moved_to_a_directory_where_that_is_asked_for() {
    let engine = engine();
    let run = memory();
    let options = ManagerOptions {
        burial: Burial::MoveTo("old".to_owned()),
        ..keep(Preservation::Latest(1))
    };
    let manager = open(&engine, &run, options);
    for step in 1..=3 {
        save(&manager, step);
    }
    manager.wait().unwrap();
    assert_holds(&engine, &manager, &[(3, 0)]);
    // What was moved is still a step, of another run.
    let old = fresh(&engine, &run.join("old"));
    assert_eq!(steps(&old), [1, 2]);
    assert_eq!(contents(&old.restore(Which::Step(1)).unwrap().checkpoint).unwrap(), (1, 0));
}

#[test]
fn a_step_deleted_on_purpose_is_gone_and_can_be_saved_again() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, ManagerOptions::default());
        for step in 1..=3 {
            save(&manager, step);
        }
        manager.delete(2).unwrap();
        assert_eq!(manager.delete(2).unwrap_err().kind(), ErrorKind::NotFound);
        manager.wait().unwrap();
        assert_holds(&engine, &manager, &[(1, 0), (3, 0)]);
        start(&manager, SaveRequest::new(2).item("state", state(2, 7)).force()).wait().unwrap();
        assert_holds(&engine, &manager, &[(1, 0), (2, 7), (3, 0)]);
        manager.delete(3).unwrap();
        assert_eq!(manager.latest_step(), Some(2));
        save(&manager, 3);
    }
}

#[test]
fn a_half_deleted_step_is_never_listed_again_and_a_sweep_frees_it() {
    let engine = engine();
    for (kind, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, keep(Preservation::Latest(1)));
        save(&manager, 1);
        store.set_rule(|operation| {
            let frees = matches!(operation.verb, Verb::Delete | Verb::DeleteAll);
            let ours = operation.key.contains("/state") || operation.key.contains("trash");
            (frees && ours).then_some(Action::Fail(ErrorKind::Unavailable))
        });
        save(&manager, 2);
        manager.wait().unwrap();
        let data = |run: &milepost::Place| {
            let state = keys(run).into_iter().filter(|key| key.contains("/state/"));
            state.filter(|key| !key.contains("/2")).count()
        };
        assert!(data(&run) > 0, "{kind}: the bytes could not be freed");
        assert_eq!(steps(&manager), [2]);
        manager.reload().unwrap();
        assert_eq!(steps(&manager), [2]);
        store.clear_rule();
        assert_holds(&engine, &manager, &[(2, 0)]);
        let sweeper = ManagerOptions { sweep_at_start: true, ..ManagerOptions::default() };
        let manager = open(&engine, &run, sweeper);
        manager.wait().unwrap();
        assert_eq!(data(&run), 0, "{kind}: {:?}", keys(&run));
        assert_holds(&engine, &manager, &[(2, 0)]);
    }
}

#[test]
fn a_step_that_another_process_deleted_is_not_listed_for_ever() {
    let engine = engine();
    for (kind, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, keep(Preservation::Latest(1)));
        save(&manager, 1);
        let other = open(&engine, &run, ManagerOptions::default());
        other.delete(1).unwrap();
        other.wait().unwrap();
        let failures = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&failures);
        manager.on_event(move |event| {
            if let Event::Failed { error, .. } = event {
                tell.lock().unwrap().push(error.to_string());
            }
        });
        save(&manager, 2);
        manager.wait().unwrap();
        assert_eq!(steps(&manager), [2], "{kind}");
        assert!(failures.lock().unwrap().is_empty(), "{kind}: {failures:?}");
    }
}

#[test]
fn leftovers_are_swept_at_start_but_not_those_of_a_live_writer() {
    let engine = engine();
    for (kind, store) in stores() {
        let run = run_in(&store);
        let writer = open(&engine, &run, ManagerOptions::default());
        save(&writer, 1);
        // A save that was given up leaves its objects.
        let hasty = ManagerOptions {
            timeout: Some(Duration::from_millis(50)),
            ..ManagerOptions::default()
        };
        let hasty = open(&engine, &run, hasty);
        store.set_rule(|operation| {
            operation.key.contains("/state").then_some(Action::Delay(Duration::from_hours(1)))
        });
        start(&hasty, request(2)).wait().unwrap_err();
        drop(hasty);
        store.clear_rule();
        let gate = Arc::new(super::Gate::default());
        let handle = start(&writer, gate.request(3));
        gate.wait_for(1);
        let reader = fresh(&engine, &run);
        let dead = block_on(reader.run().leftovers()).unwrap();
        assert!(!dead.is_empty(), "{kind}: the dead attempt is a leftover");
        let sweeper = ManagerOptions { sweep_at_start: true, ..ManagerOptions::default() };
        open(&engine, &run, sweeper).wait().unwrap();
        let left = block_on(reader.run().leftovers()).unwrap();
        assert!(left.is_empty(), "{kind}: {left:?}");
        assert_eq!(block_on(reader.run().writers()).unwrap().len(), 1, "{kind}: the live one");
        gate.open();
        handle.wait().unwrap();
        assert_holds(&engine, &writer, &[(1, 0), (3, 0)]);
    }
}

#[test]
fn a_trainer_and_an_evaluator_share_a_run() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let evaluator = fresh(&engine, &run);
        assert!(steps(&evaluator).is_empty());
        let trainer = open(&engine, &run, keep(Preservation::Latest(2)));
        for step in 1..=5 {
            save(&trainer, step);
        }
        trainer.wait().unwrap();
        evaluator.reload().unwrap();
        assert_eq!(steps(&evaluator), steps(&trainer));
        assert_eq!(steps(&evaluator), [4, 5]);
    }
}

#[test]
fn other_files_in_the_run_are_left_alone_and_never_listed() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let run = engine.place(path.to_str().unwrap(), &[]).unwrap();
    let manager = open(&engine, &run, keep(Preservation::Latest(1)));
    save(&manager, 1);
    std::fs::create_dir(path.join("tensorboard")).unwrap();
    std::fs::write(path.join("tensorboard/events"), b"mine").unwrap();
    std::fs::write(path.join("7"), b"a file that is named like a step").unwrap();
    std::fs::write(path.join("notes.txt"), b"mine").unwrap();
    manager.reload().unwrap();
    assert_eq!(steps(&manager), [1]);
    for step in 2..=4 {
        save(&manager, step);
    }
    manager.wait().unwrap();
    let sweeper = ManagerOptions { sweep_at_start: true, ..ManagerOptions::default() };
    let manager = open(&engine, &run, sweeper);
    manager.wait().unwrap();
    assert_holds(&engine, &manager, &[(4, 0)]);
    assert_eq!(std::fs::read(path.join("tensorboard/events")).unwrap(), b"mine");
    assert_eq!(std::fs::read(path.join("notes.txt")).unwrap(), b"mine");
    let error = start(&manager, request(7)).wait().unwrap_err();
    assert!(path.join("7").is_file(), "{error}");
}
