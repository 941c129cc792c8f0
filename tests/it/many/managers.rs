//! Managers that save one run together, each on a thread: what a training loop on every host sees.

use crate::manager::{Gate, buckets, contents, engine, memory, open, start, state, steps};
use bytes::Bytes;
use milepost::{
    Borrowed, Checkpoint, CheckpointWriter, Clock, DataType, Engine, Error, ErrorKind, Event,
    FaultStore, InProcess, Item, Leaf, Manager, ManagerOptions, Place, Preservation, Queue,
    Rendezvous, Result, SaveDecision, SaveOutcome, SaveRequest, Saved, SkipReason, Store, Subset,
    SystemClock, Together, Tree, Which,
};
use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

/// Longer than any test: who is waited for so long is a failure.
const DEADLINE: Duration = Duration::from_mins(1);

fn group(count: usize) -> Vec<Arc<dyn Rendezvous>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let group = InProcess::group(count, &clock);
    group.into_iter().map(|member| Arc::new(member) as Arc<dyn Rendezvous>).collect()
}

fn managers(run: &Place, count: usize, options: &ManagerOptions) -> Vec<Manager> {
    let together = |member| Some(Together::new(member, DEADLINE));
    let options = |member| ManagerOptions { together: together(member), ..options.clone() };
    group(count).into_iter().map(|member| open(&engine(), run, options(member))).collect()
}

/// Does the same as every participant, at once.
fn each<P: Sync, T: Send>(all: &[P], act: impl Fn(usize, &P) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let act = &act;
        let threads: Vec<_> =
            all.iter().enumerate().map(|(i, one)| scope.spawn(move || act(i, one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A vector of which each participant has its own two elements, and a number that all have.
fn shard(index: usize, count: usize, step: u64) -> Item {
    let own = Subset::new(vec![index as u64 * 2], vec![2]).unwrap();
    let bytes = Bytes::from(vec![u8::try_from(step).unwrap(); 2]);
    let held = vec![(own, bytes)];
    let w = Leaf::from_held_boxes(DataType::UInt8, vec![count as u64 * 2], held).unwrap();
    let step = Leaf::int(step.into()).unwrap();
    Item::Tree(Tree::dict([("w", Tree::leaf(w)), ("step", Tree::leaf(step))]))
}

fn shards(index: usize, count: usize, step: u64) -> SaveRequest<'static> {
    SaveRequest::new(step).item("state", shard(index, count, step))
}

fn read(checkpoint: &Checkpoint) -> Vec<u8> {
    assert!(checkpoint.verify_blocking().unwrap().is_good());
    checkpoint.leaf_blocking("state", "w").unwrap().read_blocking().unwrap().to_vec().unwrap()
}

fn saved(managers: &[Manager], step: u64) -> Vec<Result<Arc<Saved>>> {
    each(managers, |i, manager| start(manager, shards(i, managers.len(), step)).wait())
}

#[test]
fn every_participant_lists_and_restores_what_all_have_saved() {
    for store in [FaultStore::new(milepost::MemoryStore::new()), FaultStore::new(buckets())] {
        let run = Place::new(store as Arc<dyn Store>, "run");
        let managers = managers(&run, 3, &ManagerOptions::default());
        for step in [1, 2] {
            for saved in saved(&managers, step) {
                saved.unwrap();
            }
        }
        for manager in &managers {
            assert_eq!(steps(manager), [1, 2]);
            let opened = manager.restore(Which::Latest).unwrap();
            assert_eq!(read(&opened.checkpoint), [2; 6]);
            assert_eq!(manager.stats().saved, 2);
        }
    }
}

#[test]
fn participant_0_alone_deletes_and_the_others_see_what_is_left() {
    let run = memory();
    let options = ManagerOptions {
        preservation: Preservation::Latest(1),
        sweep_at_start: true,
        ..ManagerOptions::default()
    };
    let managers = managers(&run, 2, &options);
    let deleted: Vec<Arc<Mutex<Vec<u64>>>> = managers
        .iter()
        .map(|manager| {
            let seen = Arc::<Mutex<Vec<u64>>>::default();
            let tell = Arc::clone(&seen);
            manager.on_event(move |event| {
                if let Event::Deleted { step } = event {
                    tell.lock().unwrap().push(*step);
                }
            });
            seen
        })
        .collect();
    for step in [1, 2, 3] {
        for saved in saved(&managers, step) {
            saved.unwrap();
        }
        managers[0].wait().unwrap();
    }
    assert_eq!(*deleted[0].lock().unwrap(), [1, 2]);
    assert!(deleted[1].lock().unwrap().is_empty());
    assert_eq!(managers[1].delete(3).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(read(&managers[1].restore(Which::Latest).unwrap().checkpoint), [3; 4]);
    assert_eq!(steps(&managers[1]), [3]);
}

#[test]
fn a_failure_on_one_side_is_told_to_all_and_the_next_save_works() {
    let run = memory();
    let managers = managers(&run, 2, &ManagerOptions::default());
    // Refused by one before it begins: an item's name twice, memory that was not lent, an item that is none.
    let not_lent = || Borrowed::new().leaf(&[1_u8; 4], &[4]).unwrap();
    let bad: [&(dyn Fn() -> SaveRequest<'static> + Sync); 3] = [
        &|| shards(1, 2, 1).item("state", Item::Json(1.into())),
        &|| SaveRequest::new(1).item("state", Item::Array(not_lent())),
        &|| shards(1, 2, 1).queue(Queue::Skip),
    ];
    for bad in bad {
        let errors = each(&managers, |i, manager| {
            let request = if i == 0 { shards(0, 2, 1) } else { bad() };
            match manager.save(request) {
                Ok(SaveOutcome::Started(handle)) => handle.wait().unwrap_err(),
                Ok(SaveOutcome::Skipped(reason)) => panic!("{reason}"),
                Err(error) => error,
            }
        });
        assert_eq!(errors[0].get("failed"), Some("1"), "{:?}", errors[0]);
        assert_eq!(errors[1].kind(), ErrorKind::Invalid);
        assert_eq!(errors[1].get("failed"), None);
    }
    for saved in saved(&managers, 1) {
        saved.unwrap();
    }
}

#[test]
fn an_old_failure_is_reported_once_on_each_side_and_not_back_and_forth() {
    let run = memory();
    let managers = managers(&run, 2, &ManagerOptions::default());
    // A leaf that fails while it is written; nobody waits for the handles.
    let fail = || {
        let fill = |_: &Subset, _: &mut [u8]| Err(Error::new(ErrorKind::Unavailable, "no data"));
        let w = Leaf::from_provider(DataType::UInt8, vec![4], Arc::new(fill)).unwrap();
        SaveRequest::new(1).item("state", Item::Tree(Tree::dict([("w", Tree::leaf(w))])))
    };
    each(&managers, |_, manager| {
        let handle = start(manager, fail());
        while !handle.is_done() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    // One is told by waiting, the other by its next call: the save of the first ends with that.
    managers[0].wait().unwrap_err();
    let ends = each(&managers, |i, manager| match manager.save(shards(i, 2, 2)) {
        Ok(outcome) => outcome.handle().unwrap().wait().unwrap_err().kind(),
        Err(error) => error.kind(),
    });
    assert_eq!(ends, [ErrorKind::Cancelled, ErrorKind::Unavailable]);
    for saved in saved(&managers, 3) {
        saved.unwrap();
    }
}

#[test]
fn a_cancelled_save_ends_for_all_and_leaves_nothing() {
    let run = memory();
    let managers = managers(&run, 2, &ManagerOptions::default());
    let gate = Arc::new(Gate::default());
    let handles = each(&managers, |i, manager| {
        let mine = if i == 1 { gate.request(1) } else { SaveRequest::new(1) };
        start(manager, mine.item("mine", shard(i, 2, 1)))
    });
    gate.wait_for(1);
    handles[1].cancel();
    assert_eq!(handles[1].wait().unwrap_err().kind(), ErrorKind::Cancelled);
    let told = handles[0].wait().unwrap_err();
    assert_eq!((told.kind(), told.get("failed")), (ErrorKind::Cancelled, Some("1")));
    gate.open();
    for saved in saved(&managers, 1) {
        saved.unwrap();
    }
    let left = crate::manager::keys(&run);
    assert!(left.iter().all(|key| key.starts_with("run/1/")), "{left:?}");
}

#[test]
fn a_save_that_takes_too_long_on_one_side_ends_for_all() {
    let run = memory();
    let gate = Arc::new(Gate::default());
    let options = |i: usize| ManagerOptions {
        timeout: (i == 1).then_some(Duration::from_millis(50)),
        ..ManagerOptions::default()
    };
    let managers: Vec<Manager> = group(2)
        .into_iter()
        .enumerate()
        .map(|(i, member)| {
            let together = Some(Together::new(member, DEADLINE));
            open(&engine(), &run, ManagerOptions { together, ..options(i) })
        })
        .collect();
    let ends = each(&managers, |i, manager| {
        let mine = if i == 1 { gate.request(1) } else { SaveRequest::new(1) };
        start(manager, mine.item("mine", shard(i, 2, 1))).wait().unwrap_err()
    });
    gate.open();
    assert_eq!(ends[1].kind(), ErrorKind::Timeout);
    assert_eq!((ends[0].kind(), ends[0].get("failed")), (ErrorKind::Timeout, Some("1")));
}

#[test]
fn policies_that_know_more_than_the_step_are_decided_by_participant_0_for_all() {
    let run = memory();
    let decision = SaveDecision::when(|context| context.step == 3);
    let others = SaveDecision::when(|_| true);
    let managers: Vec<Manager> = group(2)
        .into_iter()
        .enumerate()
        .map(|(i, member)| {
            let decision = if i == 0 { decision.clone() } else { others.clone() };
            let together = Some(Together::new(member, DEADLINE));
            open(&engine(), &run, ManagerOptions { decision, together, ..<_>::default() })
        })
        .collect();
    for step in 1..=4 {
        let due = each(&managers, |i, manager| match manager.save(shards(i, 2, step)).unwrap() {
            SaveOutcome::Started(handle) => handle.wait().map(|_| true).unwrap(),
            SaveOutcome::Skipped(reason) => {
                assert_eq!(reason.to_string(), "the caller's function does not want it");
                false
            }
        });
        assert_eq!(due, [step == 3; 2]);
    }
    let skipped = each(&managers, |i, manager| match manager.save(shards(i, 2, 2)).unwrap() {
        SaveOutcome::Started(_) => panic!("an old step"),
        SaveOutcome::Skipped(reason) => reason,
    });
    assert_eq!(skipped, [SkipReason::NotAbove(3), SkipReason::NotAbove(3)]);
}

#[test]
fn one_participants_preemption_saves_at_all() {
    let options =
        ManagerOptions { decision: SaveDecision::Preemption, ..ManagerOptions::default() };
    let managers = managers(&memory(), 3, &options);
    let due = |step| each(&managers, |_, manager| manager.skip(step).unwrap().is_none());
    assert_eq!(due(1), [false; 3]);
    managers[2].preemption().store(true, Ordering::Relaxed);
    assert_eq!(due(2), [true; 3]);
    assert!(managers.iter().all(|manager| manager.preemption().load(Ordering::Relaxed)));
    let forced =
        each(&managers, |i, manager| start(manager, shards(i, 3, 2).force()).wait().is_ok());
    assert_eq!(forced, [true; 3]);
}

#[test]
fn steps_that_are_not_due_cost_no_meeting_and_old_ones_are_declined_by_all() {
    let options =
        ManagerOptions { decision: SaveDecision::Interval(2), ..ManagerOptions::default() };
    let managers = managers(&memory(), 2, &options);
    // One asks more often than the other: what is not due needs nobody.
    for _ in 0..3 {
        assert!(matches!(managers[0].save(shards(0, 2, 1)), Ok(SaveOutcome::Skipped(_))));
    }
    for saved in saved(&managers, 4) {
        saved.unwrap();
    }
    let skip = |step| each(&managers, |_, manager| manager.skip(step).unwrap());
    assert_eq!(skip(2), [Some(SkipReason::NotAbove(4)), Some(SkipReason::NotAbove(4))]);
    assert_eq!(skip(6), [None, None]);
    for saved in saved(&managers, 6) {
        saved.unwrap();
    }
    // One that has the step already refuses it, and the other hears of it.
    let ends = each(&managers, |i, manager| match manager.save(shards(i, 2, 6).force()) {
        Ok(outcome) => outcome.handle().unwrap().wait().unwrap_err().kind(),
        Err(error) => error.kind(),
    });
    assert_eq!(ends, [ErrorKind::AlreadyExists; 2]);
    let ends =
        each(&managers, |i, manager| start(manager, shards(i, 2, 6).overwrite()).wait().is_ok());
    assert_eq!(ends, [true; 2]);
}

#[test]
fn options_that_participants_could_disagree_on_are_refused() {
    let run = memory();
    let odd: [ManagerOptions; 5] = [
        ManagerOptions { read_only: true, ..<_>::default() },
        ManagerOptions { max_in_flight: 2, ..<_>::default() },
        ManagerOptions { queue: Queue::Skip, ..<_>::default() },
        ManagerOptions { retries: 1, ..<_>::default() },
        ManagerOptions { backup: Some(memory()), ..<_>::default() },
    ];
    for options in odd {
        let together = Some(Together::new(group(1).remove(0), DEADLINE));
        let refused = Manager::open(&engine(), &run, ManagerOptions { together, ..options });
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.get("option").is_some(), "{error:?}");
    }
}

fn together(
    engine: &Arc<Engine>,
    target: &Place,
    member: &Arc<dyn Rendezvous>,
) -> CheckpointWriter {
    CheckpointWriter::standalone(engine, target).together(Arc::clone(member), DEADLINE)
}

#[test]
fn checkpoints_that_stand_alone_are_saved_by_many_too() {
    for (renames, store) in
        [(true, milepost::MemoryStore::new() as Arc<dyn Store>), (false, buckets())]
    {
        let target = Place::new(Arc::clone(&store), "here/final.model");
        let members = group(2);
        let save = |generation: u64, overwrite: bool| {
            let options = milepost::SaveOptions { overwrite, ..<_>::default() };
            each(&members, |i, member| {
                together(&engine(), &target, member)
                    .item("state", shard(i, 2, generation))
                    .options(options.clone())
                    .save_blocking()
            })
        };
        for saved in save(1, false) {
            assert_eq!(saved.unwrap().place.prefix(), target.prefix());
        }
        let kinds: Vec<_> = save(2, false).into_iter().map(|s| s.unwrap_err().kind()).collect();
        assert_eq!(kinds, [ErrorKind::AlreadyExists; 2]);
        assert_eq!(save(3, true).iter().all(Result::is_ok), renames);
        let checkpoint = Checkpoint::open_blocking(&engine(), &target).unwrap();
        assert_eq!(read(&checkpoint), [if renames { 3 } else { 1 }; 4]);
        let objects = futures::executor::block_on(store.list_all("here")).unwrap();
        let inside = |key: &String| key.starts_with("here/final.model/");
        let left: Vec<_> = objects.into_iter().map(|o| o.key).filter(|k| !inside(k)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn what_is_borrowed_or_wrapped_is_saved_once_and_read_back() {
    let run = memory();
    let managers = managers(&run, 2, &ManagerOptions::default());
    let scalar = [7.5_f32];
    let big = vec![3_u8; 100];
    each(&managers, |i, manager| {
        let mut borrowed = Borrowed::new();
        let own = Subset::new(vec![i as u64 * 50], vec![50]).unwrap();
        // Foreign memory, kept by its owner.
        let held = vec![(own, Bytes::from_owner(vec![u8::try_from(i).unwrap(); 50]))];
        let wrapped = Leaf::from_held_boxes(DataType::UInt8, vec![100], held).unwrap();
        let tree = Tree::dict([
            ("scalar", Tree::leaf(borrowed.leaf(&scalar, &[]).unwrap())),
            ("big", Tree::leaf(borrowed.leaf(&big, &[100]).unwrap())),
            ("w", Tree::leaf(wrapped)),
        ]);
        let request = SaveRequest::new(1).item("state", Item::Tree(tree)).borrowing(borrowed);
        let saved = start(manager, request).wait().unwrap();
        assert_eq!(saved.data_bytes, 4 + 100 + 100);
    });
    let checkpoint = managers[1].restore(Which::Latest).unwrap().checkpoint;
    let leaf =
        |path: &str| checkpoint.leaf_blocking("state", path).unwrap().read_blocking().unwrap();
    assert_eq!(leaf("scalar").to_vec::<f32>().unwrap(), scalar);
    assert_eq!(leaf("big").to_vec::<u8>().unwrap(), big);
    assert_eq!(read(&checkpoint), [vec![0; 50], vec![1; 50]].concat());
}

#[test]
fn what_exceeds_the_budget_is_served_by_who_writes_it_and_nobody_else_is_held_up() {
    // Nothing can be held: every borrowed leaf is served while `start` is in progress.
    let run = memory();
    let members = group(2);
    let big = vec![9_u8; 3 << 20];
    each(&members, |_, member| {
        let engine = Engine::builder().budget_bytes(2 << 20).build().unwrap();
        let mut borrowed = Borrowed::new();
        let leaf = borrowed.leaf(&big, &[3 << 20]).unwrap();
        let handle = CheckpointWriter::step(&engine, &run, 1)
            .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf))])))
            .together(Arc::clone(member), DEADLINE)
            .start(&borrowed)
            .unwrap();
        handle.wait().unwrap();
    });
    let checkpoint = Checkpoint::open_blocking(&engine(), &run.join("1")).unwrap();
    assert_eq!(read(&checkpoint), big);
}

#[test]
fn handlers_and_metadata_arrive_in_the_record_and_differing_ones_are_refused() {
    let run = memory();
    let members = group(3);
    let save = |step, foreign: fn(usize) -> String| {
        each(&members, |i, member| {
            let saved = CheckpointWriter::step(&engine(), &run, step)
                .item("state", shard(i, 3, 1))
                .item_handler("state", "mine")
                .item_metadata("state", serde_json::json!({"kind": "weights"}))
                .foreign_metadata("state", vec![("format".to_owned(), foreign(i))])
                .metadata(serde_json::Map::from_iter([("by".to_owned(), i.into())]))
                .metric("loss", 0.5)
                .together(Arc::clone(member), DEADLINE);
            saved.save_blocking()
        })
    };
    for saved in save(1, |_| "pt".to_owned()) {
        let record = saved.unwrap().record;
        assert_eq!(record.items[0].handler.as_deref(), Some("mine"));
        assert_eq!(record.items[0].metadata["kind"], "weights");
        assert_eq!((&record.metadata["by"], &record.metrics["loss"]), (&0.into(), &0.5.into()));
        assert!(record.timings.iter().any(|timing| timing.stage == "write"));
    }
    for saved in save(2, |i| format!("{i}")) {
        assert_eq!(saved.unwrap_err().get("participants"), Some("1, 2"));
    }
}

#[test]
fn a_participant_without_anything_to_write_takes_part() {
    let run = memory();
    let managers = managers(&run, 3, &ManagerOptions::default());
    let ends = each(&managers, |i, manager| {
        let item = if i == 2 {
            let none = |shape: &[u64]| {
                Leaf::from_held_boxes(DataType::UInt8, shape.to_vec(), vec![]).unwrap()
            };
            let step = Leaf::int(1).unwrap();
            Item::Tree(Tree::dict([("w", Tree::leaf(none(&[4]))), ("step", Tree::leaf(step))]))
        } else {
            shard(i, 2, 1)
        };
        let handle = start(manager, SaveRequest::new(1).item("state", item));
        let saved = handle.wait().unwrap();
        (saved.data_bytes, handle.progress().bytes_done)
    });
    assert_eq!(ends.iter().map(|(bytes, _)| *bytes).collect::<Vec<_>>(), [12; 3]);
    assert_eq!(ends.iter().map(|(_, done)| *done).sum::<u64>(), 12, "{ends:?}");
    let opened = managers[2].restore(Which::Latest).unwrap();
    assert_eq!(read(&opened.checkpoint), [1; 4]);
}

#[test]
fn participants_that_hold_everything_write_it_once() {
    let managers = managers(&memory(), 2, &ManagerOptions::default());
    let ends = each(&managers, |_, manager| {
        start(manager, SaveRequest::new(1).item("state", state(1, 0))).wait().unwrap().data_bytes
    });
    assert_eq!(ends[0], ends[1]);
    for manager in &managers {
        let opened = manager.restore(Which::Latest).unwrap();
        assert_eq!(contents(&opened.checkpoint).unwrap(), (1, 0));
    }
}
