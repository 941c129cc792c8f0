use super::*;
use crate::checkpoint::marks::{
    LeaseKind, StepLease, leases, parse_lease, pin, pins, unpin, writers,
};

fn everywhere(test: impl Fn(&Arc<Engine>, &Place)) {
    let engine = engine();
    let (_dir, run) = local(&engine);
    test(&engine, &run);
    for rename in [true, false] {
        test(&engine, &at(&Aged::new(rename)));
    }
}

#[test]
fn a_step_that_is_read_is_not_deleted_until_its_reader_is_gone() {
    everywhere(|engine, run| {
        let place = save(engine, run, 7, 1);
        let lease = block_on(StepLease::take(engine, run, 7)).unwrap();
        assert_eq!(lease.step(), 7);
        let error = delete(engine, run, &place, 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let me = format!("process {} on", std::process::id());
        assert!(error.get("holder").unwrap().starts_with(&me), "{error}");
        assert!(is_whole(engine, &place));
        let listed = block_on(leases(engine, run)).unwrap();
        assert_eq!(listed.len(), 1, "the deletion was withdrawn: {listed:?}");
        assert!(listed[0].step == 7 && listed[0].kind == LeaseKind::Reader && listed[0].alive);
        assert!(plan(engine, run).is_empty(), "a live lease is nothing to sweep");
        drop(lease);
        assert!(block_on(leases(engine, run)).unwrap().is_empty(), "a drop removes the mark");
        assert!(delete(engine, run, &place, 7).unwrap() > 8000);
        assert!(!is_visible(&place));
        assert!(block_on(leases(engine, run)).unwrap().is_empty());
    });
}

#[test]
fn a_step_that_is_being_deleted_gives_no_lease() {
    everywhere(|engine, run| {
        save(engine, run, 7, 1);
        // The remover of another machine, between its announcement and the burial.
        put(run, ".milepost/leases/7.delete-x", &forged(engine, "x", true));
        let error = block_on(StepLease::take(engine, run, 7)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let listed = block_on(leases(engine, run)).unwrap();
        assert_eq!(listed.len(), 1, "the reader has given way");
        assert_eq!(listed[0].kind, LeaseKind::Deleting);
        block_on(StepLease::take(engine, run, 8)).unwrap();
        let error = block_on(pin(engine, run, 7, "mine")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(block_on(pins(run)).unwrap().is_empty());
        // Of this machine, and gone.
        put(run, ".milepost/leases/7.delete-x", &forged(engine, "x", false));
        let lease = block_on(StepLease::take(engine, run, 7)).unwrap();
        assert_eq!(kinds(&plan(engine, run)), [LeftoverKind::Mark]);
        sweep_all(engine, run);
        let listed = block_on(leases(engine, run)).unwrap();
        assert!(listed.len() == 1 && listed[0].kind == LeaseKind::Reader, "{listed:?}");
        block_on(lease.release()).unwrap();
        assert!(block_on(leases(engine, run)).unwrap().is_empty());
    });
}

#[test]
fn a_pinned_step_stays_until_it_is_unpinned() {
    everywhere(|engine, run| {
        let place = save(engine, run, 7, 1);
        block_on(pin(engine, run, 7, "paper, table 3")).unwrap();
        block_on(pin(engine, run, 7, "paper, table 4")).unwrap();
        let pinned = block_on(pins(run)).unwrap();
        assert!(pinned.len() == 1 && pinned[0].step == 7 && pinned[0].why == "paper, table 4");
        let error = delete(engine, run, &place, 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert_eq!(error.get("why"), Some("paper, table 4"));
        assert!(block_on(unpin(run, 7)).unwrap());
        assert!(!block_on(unpin(run, 7)).unwrap());
        // A torn pin pins.
        put(run, ".milepost/pins/7", "{\"wh");
        assert_eq!(block_on(pins(run)).unwrap()[0].step, 7);
        assert_eq!(delete(engine, run, &place, 7).unwrap_err().kind(), ErrorKind::Conflict);
        assert!(plan(engine, run).is_empty());
        assert!(is_whole(engine, &place));
        assert!(block_on(unpin(run, 7)).unwrap());
        delete(engine, run, &place, 7).unwrap();
    });
}

#[test]
fn a_garbled_lease_holds_until_it_has_expired() {
    let (engine, store) = (engine(), Aged::new(false));
    let run = at(&store);
    let place = save(&engine, &run, 7, 1);
    put(&run, ".milepost/leases/7.x", "{");
    assert_eq!(delete(&engine, &run, &place, 7).unwrap_err().kind(), ErrorKind::Conflict);
    assert!(plan(&engine, &run).is_empty());
    store.age("run/.milepost/leases/7.x", 0);
    assert_eq!(delete(&engine, &run, &place, 7).unwrap_err().kind(), ErrorKind::Conflict);
    store.age("run/.milepost/leases/7.x", 6);
    delete(&engine, &run, &place, 7).unwrap();
}

#[test]
fn the_names_of_leases_are_those_of_steps() {
    assert_eq!(parse_lease("7.abc"), Some((7, LeaseKind::Reader)));
    assert_eq!(parse_lease("7.delete-abc"), Some((7, LeaseKind::Deleting)));
    for bad in ["7", "07.abc", "x.abc", ".milepost-tmp-1", "-7.a", "+7.a"] {
        assert_eq!(parse_lease(bad), None, "{bad}");
    }
}

#[test]
fn writers_are_told_with_their_step() {
    everywhere(|engine, run| {
        save(engine, run, 6, 1);
        assert!(block_on(writers(engine, run)).unwrap().is_empty());
        let mut saving = Box::pin(writer(engine, &slow(run), 7, 0).save());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        // For an instant the mark is a file without its bytes: of somebody alive, whose step is not known.
        while block_on(writers(engine, run)).unwrap().iter().all(|writer| writer.step.is_none()) {
            assert!(saving.as_mut().poll(&mut context).is_pending());
        }
        let listed = block_on(writers(engine, run)).unwrap();
        assert!(listed.len() == 1 && listed[0].step == Some(7) && listed[0].alive, "{listed:?}");
        assert!(listed[0].since_ms > 0);
        assert!(plan(engine, run).is_empty(), "a live writer's attempt is nothing to sweep");
        block_on(saving).unwrap();
        assert!(block_on(writers(engine, run)).unwrap().is_empty());
    });
}

#[test]
fn a_save_that_is_cancelled_at_any_change_leaves_nothing() {
    let engine = engine();
    let (_dir, local) = local(&engine);
    for run in [local, at(&Aged::new(true))] {
        save(&engine, &run, 1, 1);
        let before = block_on(run.store().list_all(run.prefix())).unwrap().len();
        for nth in 1.. {
            let (store, cancel) = (FaultStore::new(Arc::clone(run.store())), Cancel::default());
            let canceller = cancel.clone();
            store.set_rule(move |operation| {
                (operation.verb.changes() && operation.nth_change == nth).then(|| {
                    canceller.cancel();
                    Action::Delay(std::time::Duration::from_millis(20))
                })
            });
            let place = Place::new(store, run.prefix());
            let saved = block_on(writer(&engine, &place, 2, 2).cancel(cancel).save());
            if saved.is_ok() {
                assert!(nth > 5, "{nth}");
                break;
            }
            assert_eq!(saved.unwrap_err().kind(), ErrorKind::Cancelled);
            let after = block_on(run.store().list_all(run.prefix())).unwrap();
            assert_eq!(after.len(), before, "{nth}: {after:?}");
        }
    }
}
