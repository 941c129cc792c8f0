//! Finding and restoring: damaged steps are told and passed over, new ones are waited for.

use super::{
    assert_holds, buckets, contents, engine, fresh, memory, open, request, run_in, save, start,
    stores,
};
use bytes::Bytes;
use futures::executor::block_on;
use milepost::{
    ErrorKind, Manager, ManagerOptions, MemoryStore, Place, Preservation, Priority, Span,
    StepState, Store, WatchOptions, Which,
};
use std::{sync::Arc, time::Duration};

fn read(store: &Arc<dyn Store>, key: &str) -> Bytes {
    let span = Span::Whole { bytes_max: 1 << 20 };
    block_on(store.get(key, span, Priority::Foreground)).unwrap()
}

fn write(store: &Arc<dyn Store>, key: &str, bytes: Vec<u8>) {
    block_on(store.put(key, vec![bytes.into()], Priority::Foreground)).unwrap();
}

/// Changes one byte of the data of the leaf `w`.
fn corrupt_data(step: &Place) {
    let store = step.store();
    let objects = block_on(store.list_all(&step.key("state/w"))).unwrap();
    let data = objects.into_iter().find(|o| !o.key.ends_with("zarr.json")).unwrap();
    let mut bytes = read(store, &data.key).to_vec();
    bytes[7] ^= 1;
    write(store, &data.key, bytes);
}

fn garble_record(step: &Place) {
    write(step.store(), &step.key("zarr.json"), b"{\"zarr_format\": 3, ".to_vec());
}

/// Steps 1 to 5 where 4 has a bad byte and 5 a bad record.
fn damaged_run(store: Arc<dyn Store>) -> (Arc<milepost::Engine>, Place) {
    let (engine, run) = (engine(), Place::new(store, "run"));
    let manager = open(&engine, &run, ManagerOptions::default());
    for step in 1..=5 {
        let request = request(step).metric("loss", f64::from(u8::try_from(10 - step).unwrap()));
        start(&manager, request).wait().unwrap();
    }
    corrupt_data(&run.join("4"));
    garble_record(&run.join("5"));
    (engine, run)
}

fn restored(manager: &Manager, which: Which) -> (u64, Vec<u64>) {
    let opened = manager.restore(which).unwrap();
    let step = opened.checkpoint.record().step.unwrap();
    (step, opened.bad.iter().map(|(step, _)| *step).collect())
}

#[test]
fn restoring_passes_over_damaged_steps_and_says_which_and_why() {
    for store in [MemoryStore::new() as Arc<dyn Store>, buckets()] {
        let (engine, run) = damaged_run(store);
        let best = Preservation::Best {
            metric: milepost::Metric::Named("loss".to_owned()),
            mode: milepost::BestMode::Min,
            n: None,
            missing: milepost::MissingMetric::Keep,
        };
        let options = ManagerOptions { read_only: true, preservation: best, ..Default::default() };
        let manager = open(&engine, &run, options);
        let states: Vec<_> = manager.steps().into_iter().map(|entry| entry.state).collect();
        assert!(
            matches!(&states[..], [.., StepState::Committed(_), StepState::Damaged(_)]),
            "{states:?}"
        );
        assert_eq!(manager.latest_step(), Some(4), "a damaged step is no step");
        assert_eq!(restored(&manager, Which::Latest), (4, vec![5]));
        assert_eq!(restored(&manager, Which::LatestGood), (3, vec![5, 4]));
        assert_eq!(restored(&manager, Which::Best), (4, vec![]));
        assert_eq!(restored(&manager, Which::Step(2)), (2, vec![]));
        let bad = manager.restore(Which::LatestGood).unwrap().bad;
        for (step, error) in &bad {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{step}: {error}");
        }
        assert!(bad[1].1.to_string().contains("state/w"), "{}", bad[1].1);
        let error = manager.restore(Which::Step(5)).unwrap_err();
        assert_eq!((error.kind(), error.get("step")), (ErrorKind::Corrupt, Some("5")));
        let error = manager.restore(Which::Step(9)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.hint_text().unwrap().contains('5'), "the nearest are named: {error:?}");
        // A flipped bit is never returned as good data.
        let four = manager.restore(Which::Step(4)).unwrap().checkpoint;
        assert_eq!(contents(&four).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn a_run_without_a_good_step_says_what_is_wrong_with_the_newest() {
    let (engine, run) = (engine(), memory());
    let manager = open(&engine, &run, ManagerOptions::default());
    save(&manager, 1);
    garble_record(&run.join("1"));
    let error = fresh(&engine, &run).restore(Which::LatestGood).unwrap_err();
    assert_eq!((error.kind(), error.get("step")), (ErrorKind::NotFound, Some("1")));
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_directory_without_a_record_is_listed_as_damaged_and_replaced_on_purpose_only() {
    let (engine, run) = (engine(), memory());
    let manager = open(&engine, &run, ManagerOptions::default());
    save(&manager, 1);
    save(&manager, 2);
    block_on(run.store().delete(vec![run.key("2/zarr.json")])).unwrap();
    let manager = open(&engine, &run, ManagerOptions::default());
    assert_eq!(manager.latest_step(), Some(1));
    assert!(matches!(manager.steps()[1].state, StepState::Damaged(_)));
    let error = manager.save(request(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    start(&manager, request(2).overwrite()).wait().unwrap();
    assert_holds(&engine, &manager, &[(1, 0), (2, 0)]);
}

#[test]
fn an_evaluator_is_given_the_newest_step_and_then_newer_ones() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let options = WatchOptions {
            timeout: Some(Duration::from_millis(1)),
            interval: Duration::from_millis(1),
            ..WatchOptions::default()
        };
        let watching = fresh(&engine, &run);
        assert!(watching.run().new_steps(options.clone()).next().is_none(), "no run yet");
        let manager = open(&engine, &run, ManagerOptions::default());
        for step in 1..=3 {
            save(&manager, step);
        }
        let mut new = watching.run().new_steps(options.clone());
        let mut next = || new.next().map(|new| new.unwrap().checkpoint.record().step.unwrap());
        assert_eq!((next(), next()), (Some(3), None), "1 and 2 are passed over");
        start(
            &manager,
            milepost::SaveRequest::new(2).item("state", super::state(2, 1)).overwrite(),
        )
        .wait()
        .unwrap();
        assert_eq!(next(), None, "an older step is not new");
        save(&manager, 4);
        assert_eq!((next(), next()), (Some(4), None));
        let above = WatchOptions { above: Some(4), ..options };
        assert!(watching.run().wait_for_step(&above).unwrap().is_none());
        // One that waits is given the step when it comes.
        let above = WatchOptions { timeout: None, ..above };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| watching.run().wait_for_step(&above).unwrap().unwrap());
            save(&manager, 5);
            assert_eq!(contents(&waiter.join().unwrap().checkpoint).unwrap(), (5, 0));
        });
    }
}

#[test]
fn an_evaluator_is_not_given_a_step_that_is_being_deleted() {
    let engine = engine();
    for (_, store) in stores() {
        let run = run_in(&store);
        let manager = open(&engine, &run, ManagerOptions::default());
        save(&manager, 1);
        save(&manager, 2);
        let options = WatchOptions {
            timeout: Some(Duration::from_millis(1)),
            interval: Duration::from_millis(1),
            ..WatchOptions::default()
        };
        // A remover on another machine has announced itself.
        let mark = run.key(".milepost/leases/2.delete-somebody");
        let holder = br#"{"id":"somebody","host":"elsewhere","boot":"another","pid":1}"#;
        write(run.store(), &mark, holder.to_vec());
        let mut new = fresh(&engine, &run).run().new_steps(options.clone());
        let first = new.next().unwrap().unwrap();
        assert_eq!(first.checkpoint.record().step, Some(1));
        drop(first);
        block_on(run.store().delete(vec![mark])).unwrap();
        assert_eq!(new.next().unwrap().unwrap().checkpoint.record().step, Some(2));
    }
}
