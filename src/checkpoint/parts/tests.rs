//! Saves of several participants in one process, on stores with and without renames.

use super::{Declaration, InProcess, ParticipantWriter, Rendezvous, StoreRendezvous};
use crate::{
    array::Leaf,
    checkpoint::{Checkpoint, Durability, Item, SaveOptions, Saved, WantedBox, layout::PARTS},
    chunk::Subset,
    clock::{Clock, SystemClock},
    codec::CastRule,
    dtype::DataType,
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Action, FaultStore, MemoryStore, ObjectStoreAdapter, Place, Remote, Store, Verb},
    tasks::Priority,
    tree::Tree,
};
use bytes::Bytes;
use futures::{FutureExt, executor::block_on, future::join_all};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// The shape of the array that is shared.
const SHAPE: [u64; 2] = [8, 6];

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(16 << 20).build().unwrap()
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

/// A run on every kind of store; what is returned beside it keeps it there.
fn runs() -> Vec<(&'static str, Place, Option<tempfile::TempDir>)> {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine();
    let local = engine.place(&directory.path().to_string_lossy(), &[]).unwrap();
    let objects = Arc::new(object_store::memory::InMemory::new());
    let objects = ObjectStoreAdapter::new(objects, "memory://objects", Remote::new());
    vec![
        ("local", local, Some(directory)),
        ("memory", Place::new(MemoryStore::new(), "run"), None),
        ("objects", Place::new(Arc::new(objects), "run"), None),
    ]
}

fn members(count: usize) -> Vec<Arc<dyn Rendezvous>> {
    let group = InProcess::group(count, &clock());
    group.into_iter().map(|member| Arc::new(member) as Arc<dyn Rendezvous>).collect()
}

fn value(generation: u64, element: u64) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let value = (generation * 1000 + element) as f32;
    value
}

fn block(place: &Subset, generation: u64) -> Bytes {
    let rows = place.start()[0]..place.end(0);
    let values = rows.flat_map(|row| {
        (place.start()[1]..place.end(1)).map(move |column| row * SHAPE[1] + column)
    });
    values.flat_map(|element| value(generation, element).to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Rows are divided among participants; every other leaf is held by all, or by nobody but one.
fn state(index: usize, count: usize, generation: u64) -> Item {
    let rows = SHAPE[0] / count as u64;
    let place = Subset::new(vec![index as u64 * rows, 0], vec![rows, SHAPE[1]]).unwrap();
    let blocks = vec![(place.clone(), block(&place, generation))];
    let sharded = Leaf::from_held_boxes(DataType::Float32, SHAPE.to_vec(), blocks).unwrap();
    let whole = Subset::whole(&SHAPE).unwrap();
    let blocks = if index == 0 { vec![(whole.clone(), block(&whole, generation))] } else { vec![] };
    let founders = Leaf::from_held_boxes(DataType::Float32, SHAPE.to_vec(), blocks).unwrap();
    let replicated = Leaf::from_vec(vec![value(generation, 7); 5], &[5]).unwrap();
    Item::Tree(Tree::dict([
        ("sharded", Tree::leaf(sharded)),
        ("founders", Tree::leaf(founders)),
        ("replicated", Tree::leaf(replicated)),
        ("empty", Tree::leaf(Leaf::from_vec(Vec::<f32>::new(), &[0, 3]).unwrap())),
        ("step", Tree::leaf(Leaf::int(generation.into()).unwrap())),
    ]))
}

fn writer(run: &Place, member: &Arc<dyn Rendezvous>, generation: u64) -> ParticipantWriter {
    let (index, count) = (member.index(), member.count());
    ParticipantWriter::step(&engine(), run, 5, Arc::clone(member))
        .item("state", state(index, count, generation))
        .item("notes", Item::Json(serde_json::json!({"generation": generation})))
        .item(format!("iterator-{index}"), Item::Bytes(Bytes::from(format!("at {index}"))))
        .metric("loss", 0.5)
        .deadline(Duration::from_secs(20))
}

fn save_all(writers: Vec<ParticipantWriter>) -> Vec<Result<Saved>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            writers.into_iter().map(|writer| scope.spawn(move || writer.save_blocking())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn check(place: &Place, generation: u64, count: usize) {
    let checkpoint = Checkpoint::open_blocking(&engine(), place).unwrap();
    let report = checkpoint.verify_blocking().unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
    let read =
        |leaf: &str| checkpoint.leaf_blocking("state", leaf).unwrap().read_blocking().unwrap();
    let expected: Vec<f32> = (0..SHAPE[0] * SHAPE[1]).map(|e| value(generation, e)).collect();
    assert_eq!(read("sharded").to_vec::<f32>().unwrap(), expected);
    assert_eq!(read("founders").to_vec::<f32>().unwrap(), expected);
    assert_eq!(read("replicated").to_vec::<f32>().unwrap(), [value(generation, 7); 5]);
    assert_eq!(checkpoint.record().items.len(), 2 + count);
    assert_eq!(checkpoint.record().metrics["loss"], 0.5);
}

/// Nothing is left of a save but the step and the run's documents.
fn assert_clean(run: &Place) {
    for below in [PARTS, ".milepost/tmp", ".milepost/trash"] {
        let left = block_on(run.store().list_all(&run.key(below))).unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn two_save_one_step_together_and_overwrite_it() {
    for (kind, run, _directory) in runs() {
        println!("{kind}");
        let members = members(2);
        let saved = save_all(members.iter().map(|m| writer(&run, m, 1)).collect());
        let saved: Vec<Saved> = saved.into_iter().map(Result::unwrap).collect();
        assert_eq!(saved[0].record, saved[1].record);
        check(&saved[1].place, 1, 2);
        assert_clean(&run);
        let again = save_all(members.iter().map(|m| writer(&run, m, 2)).collect());
        let kinds = again.into_iter().map(|saved| saved.unwrap_err().kind());
        assert_eq!(kinds.collect::<Vec<_>>(), [ErrorKind::AlreadyExists; 2]);
        let options = SaveOptions { overwrite: true, ..SaveOptions::default() };
        let overwriting = members.iter().map(|m| writer(&run, m, 3).options(options.clone()));
        let saved = save_all(overwriting.collect());
        check(&saved[0].as_ref().unwrap().place, 3, 2);
        assert_clean(&run);
    }
}

#[test]
fn every_object_has_one_writer_and_a_single_writer_lays_it_out_likewise() {
    let run = Place::new(MemoryStore::new(), "run");
    let stores: Vec<_> = (0..4).map(|_| FaultStore::new(Arc::clone(run.store()))).collect();
    let members = members(4);
    let writers = members.iter().zip(&stores).map(|(member, store)| {
        writer(&Place::new(Arc::clone(store) as Arc<dyn Store>, "run"), member, 1)
    });
    let saved = save_all(writers.collect());
    check(&saved[3].as_ref().unwrap().place, 1, 4);
    let listed = block_on(run.store().list_all("run/5/state/sharded")).unwrap();
    let names: Vec<&str> = listed.iter().filter_map(|o| o.key.rsplit('/').next()).collect();
    assert_eq!(names, ["c.0.0", "c.1.0", "c.2.0", "c.3.0", "zarr.json"]);
    // A part record, and what the launcher does not do: nothing is listed but by the finaliser.
    for store in &stores[1..] {
        let lists = store.counts().get(&Verb::List).copied().unwrap_or_default();
        assert_eq!(lists.requests, 0);
    }
}

#[test]
fn a_participant_that_fails_fails_everybody_and_the_step_can_be_saved_again() {
    for (kind, run, _directory) in runs() {
        println!("{kind}");
        let members = members(3);
        let faulty = FaultStore::new(Arc::clone(run.store()));
        faulty.set_rule(|operation| {
            let shard = operation.key.contains("/sharded/c.");
            (operation.verb.changes() && shard).then_some(Action::Fail(ErrorKind::Unavailable))
        });
        let place = |index| {
            let store = if index == 2 { Arc::clone(&faulty) as _ } else { Arc::clone(run.store()) };
            Place::new(store, run.prefix())
        };
        let failing = members.iter().map(|m| writer_of_four(&place(m.index()), m, 1));
        let errors: Vec<Error> =
            save_all(failing.collect()).into_iter().map(Result::unwrap_err).collect();
        assert_eq!(errors[0].get("failed"), Some("2"), "{:?}", errors[0]);
        assert_eq!(errors[1].get("failed"), Some("2"));
        assert_eq!(errors[2].kind(), ErrorKind::Unavailable);
        assert_clean(&run);
        let saved = save_all(members.iter().map(|m| writer_of_four(&run, m, 2)).collect());
        assert!(saved.iter().all(Result::is_ok), "{saved:?}");
    }
}

/// Eight rows go evenly into four only: of three participants, the last holds two boxes.
fn writer_of_four(run: &Place, member: &Arc<dyn Rendezvous>, generation: u64) -> ParticipantWriter {
    let index = member.index();
    let boxes = if index == 2 { vec![2, 3] } else { vec![index as u64] };
    let blocks = boxes.into_iter().map(|quarter| {
        let place = Subset::new(vec![quarter * 2, 0], vec![2, SHAPE[1]]).unwrap();
        let bytes = block(&place, generation);
        (place, bytes)
    });
    let leaf = Leaf::from_held_boxes(DataType::Float32, SHAPE.to_vec(), blocks.collect()).unwrap();
    ParticipantWriter::step(&engine(), run, 5, Arc::clone(member))
        .item("state", Item::Tree(Tree::dict([("sharded", Tree::leaf(leaf))])))
        .deadline(Duration::from_secs(20))
}

#[test]
fn different_trees_options_and_participants_that_are_gone_are_errors_everywhere() {
    let run = Place::new(MemoryStore::new(), "run");
    let group = members(2);
    let published = SaveOptions { durability: Durability::Published, ..SaveOptions::default() };
    let writers = vec![writer(&run, &group[0], 1), writer(&run, &group[1], 1).options(published)];
    for saved in save_all(writers) {
        let error = saved.unwrap_err();
        assert_eq!((error.kind(), error.get("participants")), (ErrorKind::Invalid, Some("1")));
    }
    let mut group = members(2);
    drop(group.pop());
    let error = writer(&run, &group[0], 1).save_blocking().unwrap_err();
    assert_eq!(error.get("missing"), Some("1"));
    assert!(block_on(run.store().list_all("run")).unwrap().is_empty(), "before a byte moves");
}

#[test]
fn declarations_that_are_not_what_is_held_are_an_error_everywhere() {
    let run = Place::new(MemoryStore::new(), "run");
    let group = members(2);
    let declared = [1, 0].map(|index| writer(&run, &group[index], 1).declaration().unwrap());
    let swapped = Arc::new(declared.to_vec());
    let writers = group.iter().map(|m| writer(&run, m, 1).declarations(Arc::clone(&swapped)));
    for saved in save_all(writers.collect()) {
        let error = saved.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("not what is held"), "{error}");
    }
    assert!(block_on(run.store().list_all("run")).unwrap().is_empty(), "before a byte moves");
}

#[test]
fn a_part_of_another_process_with_the_same_index_is_not_replaced() {
    let run = Place::new(MemoryStore::new(), "run");
    let members = members(2);
    let (store, inner) = (FaultStore::new(Arc::clone(run.store())), Arc::clone(run.store()));
    store.set_rule(move |operation| {
        let puts = matches!(operation.verb, Verb::Put | Verb::PutNew);
        if puts && operation.key.contains(PARTS) && operation.key.ends_with("/1") {
            let other = vec![Bytes::from_static(b"a part")];
            let put = inner.put(&operation.key, other, Priority::Foreground);
            put.now_or_never().unwrap().unwrap();
        }
        None
    });
    let second = writer(&Place::new(store, "run"), &members[1], 1);
    for saved in save_all(vec![writer(&run, &members[0], 1), second]) {
        let error = saved.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    }
    assert!(Checkpoint::open_blocking(&engine(), &run.join("5")).is_err());
}

#[test]
fn what_a_participant_has_written_is_durable_before_its_part_says_so() {
    let run = Place::new(MemoryStore::new(), "run");
    let members = members(2);
    let store = FaultStore::new(Arc::clone(run.store()));
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    store.set_rule(move |operation| {
        seen.lock().unwrap().push((operation.verb, operation.key.clone()));
        None
    });
    let second = writer(&Place::new(store, "run"), &members[1], 1);
    for saved in save_all(vec![writer(&run, &members[0], 1), second]) {
        saved.unwrap();
    }
    let log = log.lock().unwrap();
    let last = |verbs: &[Verb], below: &str| {
        let is = |(verb, key): &(Verb, String)| verbs.contains(verb) && key.contains(below);
        log.iter().rposition(is).unwrap()
    };
    let written = last(&[Verb::Put, Verb::PutNew, Verb::Finish], ".milepost/tmp/");
    let (synced, told) = (last(&[Verb::Sync], ".milepost/tmp/"), last(&[Verb::PutNew], PARTS));
    assert!(written < synced && synced < told, "{log:?}");
}

/// Runs a save of three whose founder dies at an operation of its store, and returns what the others have.
fn founder_dies(run: &Place, dies: fn(Verb, &str) -> bool) -> Vec<Result<Saved>> {
    let members = members(3);
    let store = FaultStore::new(Arc::clone(run.store()));
    let (tell, mut told) = futures::channel::mpsc::unbounded();
    store.set_rule(move |operation| {
        dies(operation.verb, &operation.key).then(|| {
            drop(tell.unbounded_send(()));
            Action::Delay(Duration::from_hours(1))
        })
    });
    let place = Place::new(store, run.prefix());
    let mut members = members.into_iter();
    let founder = members.next().unwrap();
    let others: Vec<_> = members.map(|member| writer_of_four(run, &member, 1).save()).collect();
    let writer = writer_of_four(&place, &founder, 1);
    let dying = async move {
        let save = Box::pin(writer.save());
        let death = Box::pin(futures::StreamExt::next(&mut told));
        drop(futures::future::select(save, death).await);
        drop(founder);
    };
    block_on(futures::future::join(dying, join_all(others))).1
}

#[test]
fn another_takes_over_when_the_founder_dies_after_all_is_written() {
    for (kind, run, _directory) in runs() {
        println!("{kind}");
        let listing = |verb: Verb, key: &str| verb == Verb::List && key.contains("/parts/");
        let saved = founder_dies(&run, listing);
        let records: Vec<_> = saved.into_iter().map(|saved| saved.unwrap().record).collect();
        assert_eq!(records[0], records[1]);
        let checkpoint = Checkpoint::open_blocking(&engine(), &run.join("5")).unwrap();
        assert!(checkpoint.verify_blocking().unwrap().is_good());
        assert_clean(&run);
    }
}

#[test]
fn a_founder_that_dies_before_all_is_written_is_an_error_everywhere() {
    for (kind, run, _directory) in runs() {
        println!("{kind}");
        let own_shard = |verb: Verb, key: &str| verb.changes() && key.ends_with("/sharded/c.0.0");
        for saved in founder_dies(&run, own_shard) {
            assert_eq!(saved.unwrap_err().get("missing"), Some("0"));
        }
        let saved = save_all(members(3).iter().map(|m| writer_of_four(&run, m, 2)).collect());
        assert!(saved.iter().all(Result::is_ok), "{saved:?}");
    }
}

/// Joins `count` participants through the lobby of the run.
fn join(run: &Place, count: usize) -> Vec<Arc<dyn Rendezvous>> {
    let engine = engine();
    let deadline = Duration::from_secs(20);
    let joins = (0..count).map(|i| StoreRendezvous::join(&engine, run, (i, count), deadline));
    let joined = block_on(join_all(joins)).into_iter();
    joined.map(|member| Arc::new(member.unwrap()) as Arc<dyn Rendezvous>).collect()
}

#[test]
fn participants_meet_and_save_through_nothing_but_the_store() {
    for (kind, run, _directory) in runs() {
        println!("{kind}");
        // The second job finds what the first has left in the lobby.
        for generation in 1..=2 {
            let members = join(&run, 4);
            for step in 0..2 {
                let options = SaveOptions { overwrite: step + generation > 1, ..<_>::default() };
                let generation = generation * 10 + step;
                let writers =
                    members.iter().map(|m| writer(&run, m, generation).options(options.clone()));
                let saved = save_all(writers.collect());
                check(&saved[1].as_ref().unwrap().place, generation, 4);
            }
        }
    }
}

#[test]
fn an_entry_that_a_dead_process_left_in_the_lobby_costs_another_call_only() {
    let run = Place::new(MemoryStore::new(), "run");
    // A process of another machine, which may have died a second ago.
    let left =
        r#"{"id":"0f","host":"elsewhere","boot":"b","pid_namespace":"n","pid":7,"started":7}"#;
    let lobby = run.join(&format!("{PARTS}/lobby"));
    let entry = vec![Bytes::from_static(left.as_bytes())];
    block_on(run.store().put(&lobby.key("1"), entry, Priority::Foreground)).unwrap();
    let (engine, deadline) = (engine(), Duration::from_secs(20));
    let join = |index| StoreRendezvous::join(&engine, &run, (index, 3), deadline);
    let late = async {
        // Participant 2 has gone to the session to which the dead one was called.
        let came = |key: &str| key.ends_with("/2.id");
        loop {
            let listed = run.store().list_all(&run.key(PARTS)).await.unwrap();
            if listed.iter().any(|object| came(&object.key)) {
                break;
            }
            engine.clock().sleep(Duration::from_millis(5)).await;
        }
        join(1).await
    };
    let (founder, second, late) = block_on(futures::future::join3(join(0), join(2), late));
    let members = [founder.unwrap(), late.unwrap(), second.unwrap()];
    let barriers = members.iter().map(|member| member.barrier("all", deadline));
    for met in block_on(join_all(barriers)) {
        met.unwrap();
    }
}

#[test]
fn who_leaves_a_session_is_missed_at_once_and_nobody_comes_twice() {
    let run = Place::new(MemoryStore::new(), "run");
    let engine = engine();
    let session = |index| StoreRendezvous::with_session(&engine, &run, "job-7", (index, 3));
    let members: Vec<_> = (0..3).map(|index| block_on(session(index)).unwrap()).collect();
    assert_eq!(block_on(session(1)).unwrap_err().kind(), ErrorKind::Conflict);
    let long = Duration::from_mins(10);
    let gathered = members
        .iter()
        .map(|m| m.all_gather("all", Bytes::from(format!("I am {}", m.index())), long));
    for values in block_on(join_all(gathered)) {
        assert_eq!(values.unwrap(), ["I am 0", "I am 1", "I am 2"]);
    }
    let mut members = members.into_iter();
    let (founder, leaving) = (members.next().unwrap(), members.next().unwrap());
    let last = members.next().unwrap();
    drop(leaving);
    let rounds = futures::future::join(
        founder.barrier("without one", long),
        last.barrier("without one", long),
    );
    let (a, b) = block_on(rounds);
    assert_eq!(a.unwrap_err().get("missing"), Some("1"));
    assert_eq!(b.unwrap_err().get("missing"), Some("1"));
    drop(founder);
    let alone = block_on(last.broadcast("outcome", 0, None, long)).unwrap_err();
    assert_eq!(alone.get("missing"), Some("0"));
    let short = block_on(StoreRendezvous::join(&engine, &run, (0, 2), Duration::from_millis(30)));
    assert_eq!(short.unwrap_err().get("missing"), Some("1"));
}

#[test]
fn four_thousand_participants_cost_three_requests_each_and_one_listing() {
    const COUNT: usize = 4096;
    /// The claim, documents, indexes, record, marks, and looks at what is there.
    const SAVE_MAX: u64 = 32;
    let objects = Arc::new(object_store::memory::InMemory::new());
    let objects = ObjectStoreAdapter::new(objects, "memory://objects", Remote::new());
    let store = FaultStore::new(Arc::new(objects));
    let run = Place::new(Arc::clone(&store) as Arc<dyn Store>, "run");
    let shape = [COUNT as u64, 3];
    let row = |index: usize| Subset::new(vec![index as u64, 0], vec![1, 3]).unwrap();
    let declare =
        |index| Declaration::new().leaf(("state", "w"), DataType::UInt8, &shape, &[row(index)]);
    let declarations: Arc<Vec<Declaration>> = Arc::new((0..COUNT).map(declare).collect());
    let engine = engine();
    let saves = InProcess::group(COUNT, &clock()).into_iter().enumerate().map(|(index, member)| {
        let held = vec![(row(index), Bytes::from(vec![7; 3]))];
        let leaf = Leaf::from_held_boxes(DataType::UInt8, shape.to_vec(), held).unwrap();
        ParticipantWriter::step(&engine, &run, 1, Arc::new(member))
            .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf))])))
            .declarations(Arc::clone(&declarations))
            .save()
    });
    for saved in block_on(join_all(saves)) {
        saved.unwrap();
    }
    let counts = store.counts();
    let lists = [Verb::List, Verb::ListAll].map(|verb| counts.get(&verb).map_or(0, |c| c.requests));
    // Nothing is asked of an object store for these.
    let silent = |verb: &Verb| matches!(verb, Verb::Sync | Verb::CreateDir);
    let asked = counts.iter().filter(|(verb, _)| !silent(verb));
    let all: u64 = asked.map(|(_, count)| count.requests).sum();
    // The data of each is its shard of 3 bytes. Beyond it: its part is put and read, and it reads the outcome.
    let count = COUNT as u64;
    let beyond = all - count - lists[0] - lists[1];
    println!("{count} participants: {counts:?}");
    println!("{} requests a participant beyond its data", beyond / count);
    println!("{} more by the save as a whole, {} listing", beyond % count, lists[0] + lists[1]);
    assert!(beyond / count <= 3 && beyond % count < SAVE_MAX, "{beyond}");
    assert_eq!(lists, [1, 0]);
}

#[test]
fn what_a_group_wants_is_read_once() {
    let run = Place::new(MemoryStore::new(), "run");
    save_all(members(2).iter().map(|m| writer(&run, m, 1)).collect());
    let store = FaultStore::new(Arc::clone(run.store()));
    let place = Place::new(Arc::clone(&store) as Arc<dyn Store>, "run/5");
    let checkpoint = Checkpoint::open_blocking(&engine(), &place).unwrap();
    let index = block_on(checkpoint.item_index("state")).unwrap();
    let rows = |start| Subset::new(vec![start, 1], vec![3, 4]).unwrap();
    let position =
        |name: &str| index.tree.leaves().iter().position(|leaf| leaf.path == name).unwrap();
    let sharded = position("sharded");
    let want = |part| WantedBox { position: sharded, part: Some(part), data_type: None };
    let wanted = [want(rows(0)), want(rows(2)), want(rows(5))];
    let expected = block_on(index.read_boxes(&wanted, CastRule::SameKind)).unwrap();
    let before = store.counts();
    let members = members(3);
    let deadline = Duration::from_secs(20);
    let reads = members
        .iter()
        .map(|member| index.read_boxes_once((&wanted, CastRule::SameKind), &**member, deadline));
    for read in block_on(join_all(reads)) {
        for (read, expected) in read.unwrap().iter().zip(&expected) {
            assert_eq!((&read.bytes[..], &read.shape), (&expected.bytes[..], &expected.shape));
        }
    }
    // Four chunks hold the rows of the three boxes, one of them for two boxes with different readers.
    let requests = store.counts()[&Verb::Read].requests - before[&Verb::Read].requests;
    assert!(requests <= 5, "{requests}");
    let others = [want(rows(1))];
    let reads = members.iter().map(|member| {
        let wanted: &[WantedBox] = if member.index() == 1 { &others } else { &wanted };
        index.read_boxes_once((wanted, CastRule::SameKind), &**member, deadline)
    });
    for read in block_on(join_all(reads)) {
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Invalid);
    }
}
