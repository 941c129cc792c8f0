use super::*;

fn everywhere(test: impl Fn(&Arc<Engine>, &Place)) {
    let engine = engine();
    let (_dir, run) = local(&engine);
    test(&engine, &run);
    for rename in [true, false] {
        test(&engine, &at(&Aged::new(rename)));
    }
}

#[test]
fn a_deleted_step_is_invisible_before_its_bytes_are_freed() {
    everywhere(|engine, run| {
        let (one, two) = (save(engine, run, 1, 1), save(engine, run, 2, 2));
        let grave = block_on(bury(engine, &doomed(run, &one, 1), &Burial::Delete)).unwrap();
        assert!(!is_visible(&one) && grave.kept().is_none());
        let left = kinds(&plan(engine, run));
        let rename = run.store().capabilities().rename;
        let kind = if rename { LeftoverKind::Trash } else { LeftoverKind::Revision };
        assert_eq!(left, [kind], "a crash here leaves it to a sweep");
        assert!(block_on(grave.free()).unwrap() > 8000);
        assert!(plan(engine, run).is_empty());
        assert!(is_whole(engine, &two));
        let error = delete(engine, run, &one, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert_eq!(error.get("step"), Some("1"));
        let again = save(engine, run, 1, 3);
        assert!(is_whole(engine, &again), "it can be saved again");
    });
}

#[test]
fn no_lower_revision_comes_back_when_a_step_is_deleted() {
    let (engine, store) = (engine(), Aged::new(false));
    let run = at(&store);
    let low = save(&engine, &run, 1, 1);
    let record = block_on(store.get(
        &low.key("zarr.json"),
        crate::store::Span::Whole { bytes_max: 1 << 20 },
        Priority::Foreground,
    ));
    let high = save(&engine, &run, 1, 2);
    assert_eq!(high.name(), "1.r1");
    // As if the overwrite had crashed before it replaced the record of the lower one.
    let payload = vec![record.unwrap()];
    block_on(store.put(&low.key("zarr.json"), payload, Priority::Foreground)).unwrap();
    assert!(is_visible(&low) && is_visible(&high));
    delete(&engine, &run, &high, 1).unwrap();
    assert!(!is_visible(&low) && !is_visible(&high));
    let third = save(&engine, &run, 1, 3);
    assert_eq!(third.name(), "1.r2", "no prefix is used twice");
}

#[test]
fn only_a_checkpoint_of_ours_is_deleted() {
    everywhere(|engine, run| {
        let place = save(engine, run, 1, 1);
        let refused = |what: &str| {
            let error = delete(engine, run, &place, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error}");
            assert!(error.hint_text().is_some(), "{what}");
        };
        put(&place, "notes/today.txt", "precious");
        refused("a directory of the user's");
        assert!(is_visible(&place));
        block_on(place.store().delete_all(&place.key("notes"))).unwrap();
        put(&run.join("3"), "zarr.json", r#"{"zarr_format":3,"node_type":"group"}"#);
        let foreign = run.join("3");
        assert_eq!(delete(engine, run, &foreign, 3).unwrap_err().kind(), ErrorKind::Invalid);
        let other = run.join("x/1");
        assert_eq!(delete(engine, run, &other, 1).unwrap_err().kind(), ErrorKind::Invalid);
        let none = run.join("9");
        assert_eq!(delete(engine, run, &none, 9).unwrap_err().kind(), ErrorKind::NotFound);
        put(&place, "zarr.json", "{ torn");
        refused("a damaged step");
        let damaged = Doomed { damaged: true, ..doomed(run, &place, 1) };
        let grave = block_on(bury(engine, &damaged, &Burial::Delete)).unwrap();
        assert!(block_on(grave.free()).unwrap() > 8000);
        assert!(matches!(
            block_on(look(&place)).unwrap(),
            Found::Nothing | Found::Root(Root::Revoked { deleted: true, .. })
        ));
        block_on(place.store().delete_all(&foreign.key(""))).unwrap();
        assert!(plan(engine, run).is_empty());
    });
}

#[test]
fn a_step_that_is_moved_stays_a_checkpoint() {
    let engine = engine();
    let (_dir, run) = local(&engine);
    let away = Burial::MoveTo("old/steps".to_owned());
    let mut places = Vec::new();
    for value in 1..=2 {
        let place = save(&engine, &run, 1, value);
        let grave = block_on(bury(&engine, &doomed(&run, &place, 1), &away)).unwrap();
        places.push(grave.kept().unwrap().clone());
        assert_eq!(block_on(grave.free()).unwrap(), 0);
        assert!(!is_visible(&place));
    }
    assert_eq!(places[0].prefix(), run.key("old/steps/1"));
    let second = places[1].name();
    assert!(second.starts_with("1-2") && second.len() == "1-yyyymmdd-hhmmss-12345678".len());
    sweep_all(&engine, &run);
    assert!(places.iter().all(|place| is_whole(&engine, place)));

    let run = at(&Aged::new(false));
    let place = save(&engine, &run, 1, 1);
    let error = block_on(bury(&engine, &doomed(&run, &place, 1), &away)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.hint_text().is_some() && is_whole(&engine, &place));
}

#[test]
fn a_step_that_is_overwritten_while_it_is_deleted_stays() {
    for rename in [true, false] {
        let (engine, store) = (engine(), FaultStore::new(Aged::new(rename)));
        let inner = Arc::clone(&store);
        let run = Place::new(inner, "run");
        let old = save(&engine, &run, 1, 1);
        // The announcement comes after the step was looked at: then another overwrites it.
        let (other, place) = (Arc::clone(&engine), run.clone());
        let done = Arc::new(std::sync::OnceLock::new());
        let overwritten = Arc::clone(&done);
        let pool = Pool::new("test", 1).unwrap();
        store.set_rule(move |operation| {
            if operation.key.contains("/1.delete-") && overwritten.get().is_none() {
                overwritten.set(()).unwrap();
                let (engine, run) = (Arc::clone(&other), place.clone());
                pool.launch(Priority::Foreground, move || drop(save(&engine, &run, 1, 2)));
                return Some(Action::Delay(std::time::Duration::from_millis(300)));
            }
            None
        });
        let result = delete(&engine, &run, &old, 1);
        store.clear_rule();
        let newest = if rename { old } else { run.join("1.r1") };
        assert!(is_whole(&engine, &newest), "{rename}: {result:?}");
        if rename {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Conflict);
        }
        sweep_all(&engine, &run);
        assert!(is_whole(&engine, &newest));
    }
}

/// Fails every change of a deletion and of the sweep after it, in each way.
#[test]
fn a_deletion_that_fails_anywhere_is_finished_by_a_sweep() {
    let engine = engine();
    let mut failures = 0;
    for rename in [true, false] {
        for action in [Action::Fail(ErrorKind::Unavailable), Action::Lose(ErrorKind::Unavailable)] {
            for crash in [false, true] {
                for nth in 1.. {
                    let store = FaultStore::new(Aged::new(rename));
                    let inner = Arc::clone(&store);
                    let run = Place::new(inner, "run");
                    let one = save(&engine, &run, 1, 1);
                    let two = save(&engine, &run, 2, 2);
                    if crash {
                        store.crash_at(nth, action);
                    } else {
                        let mut left = nth;
                        store.set_rule(move |operation| {
                            left -= u64::from(operation.verb.changes() && left > 0);
                            let hit = operation.verb.changes() && left == 0;
                            left = if hit { u64::MAX } else { left };
                            hit.then_some(action)
                        });
                    }
                    let deleted = delete(&engine, &run, &one, 1);
                    let swept = block_on(async {
                        let plan = leftovers(&engine, &run).await?;
                        crate::checkpoint::sweep::sweep(&engine, &run, &plan).await
                    });
                    store.clear_rule();
                    assert!(is_whole(&engine, &two), "{rename} {action:?} {nth}");
                    assert!(is_whole(&engine, &one) || !is_visible(&one), "{rename} {nth}");
                    sweep_all(&engine, &run);
                    assert!(plan(&engine, &run).is_empty(), "{rename} {action:?} {nth}");
                    if is_visible(&one) {
                        assert!(deleted.is_err());
                        delete(&engine, &run, &one, 1).unwrap();
                    }
                    save(&engine, &run, 1, 3);
                    assert!(is_whole(&engine, &two));
                    let untouched = deleted.is_ok() && swept.is_ok_and(|s| s.failed.is_empty());
                    if untouched && nth > 6 {
                        break;
                    }
                    failures += 1;
                }
            }
        }
    }
    assert!(failures >= 30, "{failures}");
}

#[test]
fn a_link_among_the_steps_is_deleted_itself() {
    let engine = engine();
    let (dir, run) = local(&engine);
    save(&engine, &run, 1, 1);
    let elsewhere = engine.place(dir.path().join("disk2").to_str().unwrap(), &[]).unwrap();
    let target = save(&engine, &elsewhere, 2, 2);
    let link = dir.path().join("run/2");
    std::os::unix::fs::symlink(target.local_path().unwrap(), link).unwrap();
    let place = run.join("2");
    assert!(is_whole(&engine, &place));
    assert_eq!(delete(&engine, &run, &place, 2).unwrap(), 0);
    assert!(!is_visible(&place));
    assert!(is_whole(&engine, &target), "what it led to is there");
    sweep_all(&engine, &run);
    assert!(is_whole(&engine, &target));
}
