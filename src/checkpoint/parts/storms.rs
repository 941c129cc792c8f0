//! Random trouble on real threads: pools, lease threads, runtimes and their stores, by a clock that runs faster than the
//! wall's. What the protocol does in trouble is proven by the simulation in [`super::sim`]; this shows that its parts are put
//! together as there: nothing is committed or all of it, who says that it was saved is right, and the next save succeeds.
//!
//! `MILEPOST_SEED` asks for other cases, `MILEPOST_CASES` for more.

use super::{InProcess, ParticipantWriter, Rendezvous};
use crate::{
    array::Leaf,
    checkpoint::{Checkpoint, Item, SaveOptions, Saved, revision_name},
    chunk::Subset,
    clock::{Clock, SystemClock},
    dtype::DataType,
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Action, FaultStore, MemoryStore, ObjectStoreAdapter, Place, Remote},
    tree::Tree,
};
use bytes::Bytes;
use futures::{
    StreamExt,
    channel::mpsc,
    executor::block_on,
    future::{BoxFuture, Either, join_all, select},
    stream,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// So much faster than the wall's is the clock of these saves.
const SPEED: u32 = 20;
/// How long participants wait for each other: half a second of the wall's.
const DEADLINE: Duration = Duration::from_secs(10);
/// A stalled operation goes on when the others have given up.
const STALL: Duration = Duration::from_millis(1200);
/// So many saves run side by side.
const AT_ONCE: usize = 32;

#[derive(Debug, Default)]
struct Fast(SystemClock);

impl Clock for Fast {
    fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed() * SPEED
    }

    fn unique_id(&self) -> u128 {
        self.0.unique_id()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(time / SPEED)
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What happens to a participant.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Dies,
    Stalls,
    Fails,
    LosesAnAnswer,
    LosesItsStore,
}

#[derive(Clone, Copy, Debug)]
struct Fate {
    trouble: Trouble,
    operation: u64,
}

fn fate(random: &mut Random) -> Option<Fate> {
    let trouble = match random.below(8) {
        0 | 1 => Trouble::Dies,
        2 => Trouble::Stalls,
        3 => Trouble::Fails,
        4 => Trouble::LosesAnAnswer,
        5 => Trouble::LosesItsStore,
        _ => return None,
    };
    Some(Fate { trouble, operation: 1 + random.below(40) })
}

fn writer(
    engine: &Arc<Engine>,
    run: &Place,
    member: Arc<dyn Rendezvous>,
    generation: u8,
) -> ParticipantWriter {
    let (index, count) = (member.index() as u64, member.count() as u64);
    let own = Subset::new(vec![index * 2], vec![2]).unwrap();
    let held = vec![(own, Bytes::from(vec![generation; 2]))];
    let leaf = Leaf::from_held_boxes(DataType::UInt8, vec![count * 2], held).unwrap();
    let options = SaveOptions { overwrite: true, ..SaveOptions::default() };
    ParticipantWriter::step(engine, run, 5, member)
        .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf))])))
        .item("whose", Item::Json(generation.into()))
        .options(options)
        .deadline(DEADLINE)
}

/// Saves as one participant; nothing where it dies. Tells whether it was in trouble.
async fn live(
    engine: Arc<Engine>,
    run: Place,
    member: InProcess,
    (generation, fate): (u8, Option<Fate>),
) -> (Option<Result<Saved>>, bool) {
    let store = FaultStore::new(Arc::clone(run.store()));
    let (tell, mut death) = mpsc::unbounded();
    let hit = Arc::new(AtomicBool::new(false));
    if let Some(fate) = fate {
        let hit = Arc::clone(&hit);
        store.set_rule(move |operation| {
            let later = matches!(fate.trouble, Trouble::LosesItsStore);
            let due = operation.nth_of_all == fate.operation
                || later && operation.nth_of_all > fate.operation;
            if !due {
                return None;
            }
            hit.store(true, Ordering::Relaxed);
            Some(match fate.trouble {
                Trouble::Dies => {
                    drop(tell.unbounded_send(()));
                    Action::Delay(Duration::from_hours(1))
                }
                Trouble::Stalls => Action::Delay(STALL),
                Trouble::LosesAnAnswer => Action::Lose(ErrorKind::Unavailable),
                Trouble::Fails | Trouble::LosesItsStore => Action::Fail(ErrorKind::Unavailable),
            })
        });
    }
    let place = Place::new(store, run.prefix());
    let save = Box::pin(writer(&engine, &place, Arc::new(member), generation).save());
    let died = Box::pin(async {
        if death.next().await.is_none() {
            futures::future::pending::<()>().await;
        }
    });
    let saved = match select(save, died).await {
        Either::Left((saved, _)) => Some(saved),
        Either::Right(_) => None,
    };
    (saved, hit.load(Ordering::Relaxed))
}

/// Returns the generation that is there, and checks that it is whole.
async fn look(engine: &Arc<Engine>, run: &Place, count: usize) -> Option<u8> {
    let mut found = None;
    for revision in 0..12 {
        match Checkpoint::open(engine, &run.join(&revision_name("5", revision))).await {
            Ok(checkpoint) => found = Some(checkpoint),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => panic!("{e:?}"),
        }
    }
    let checkpoint = found?;
    let report = checkpoint.verify().await.unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
    let leaf = checkpoint.leaf("state", "w").await.unwrap();
    let values = leaf.read().await.unwrap().to_vec::<u8>().unwrap();
    assert_eq!(values, vec![values[0]; count * 2], "of one save");
    Some(values[0])
}

async fn case(engine: &Arc<Engine>, run: Place, seed: u64) -> (bool, bool) {
    let mut random = Random(seed);
    let count = usize::try_from(2 + random.below(3)).unwrap();
    let clock = engine.clock();
    let mut before = None;
    let (mut committed, mut troubled) = (false, false);
    for generation in [1, 3] {
        let fates: Vec<Option<Fate>> = (0..count).map(|_| fate(&mut random)).collect();
        let lives = InProcess::group(count, clock).into_iter().zip(&fates).map(|(member, fate)| {
            live(Arc::clone(engine), run.clone(), member, (generation, *fate))
        });
        let ends = join_all(lives).await;
        let found = look(engine, &run, count).await;
        let what = format!("seed {seed}, generation {generation}, {fates:?}: {ends:?}");
        assert!(found == before || found == Some(generation), "{found:?} after {before:?}. {what}");
        for (saved, hit) in &ends {
            match saved {
                Some(Ok(_)) => assert_eq!(found, Some(generation), "{what}"),
                Some(Err(error)) if !hit => assert_right(error, found != Some(generation), &what),
                _ => {}
            }
            troubled |= hit;
        }
        committed |= found == Some(generation);
        // The step can be saved again at once.
        let members = InProcess::group(count, clock).into_iter();
        let again = members.map(|member| {
            let writer = writer(engine, &run, Arc::new(member), generation + 1);
            writer.deadline(DEADLINE * 100).save()
        });
        for saved in join_all(again).await {
            assert!(saved.is_ok(), "{saved:?} after {what}");
        }
        before = look(engine, &run, count).await;
        assert_eq!(before, Some(generation + 1), "{what}");
    }
    (committed, troubled)
}

fn assert_right(error: &Error, uncommitted: bool, what: &str) {
    assert!(uncommitted, "{error:?}, but it was committed. {what}");
}

#[test]
fn in_any_storm_there_is_no_commit_or_a_whole_one_and_the_next_save_succeeds() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("MILEPOST_SEED").unwrap_or(20_261_122);
    let cases = number("MILEPOST_CASES").unwrap_or(64);
    println!("MILEPOST_SEED={seed} MILEPOST_CASES={cases}");
    let clock = Arc::new(Fast::default());
    let engine = Engine::builder().budget_bytes(64 << 20).with_clock(clock).build().unwrap();
    let remote = Remote::new();
    let run = |number: u64| {
        if number.is_multiple_of(2) {
            return Place::new(MemoryStore::new(), "run");
        }
        let objects = Arc::new(object_store::memory::InMemory::new());
        let url = format!("memory://storm-{number}");
        let objects = ObjectStoreAdapter::new(objects, url, Arc::clone(&remote));
        Place::new(Arc::new(objects), "run")
    };
    let all = stream::iter(0..cases).map(|n| case(&engine, run(n), seed.wrapping_add(n)));
    let ends: Vec<(bool, bool)> = block_on(all.buffer_unordered(AT_ONCE).collect());
    let committed = ends.iter().filter(|(committed, _)| *committed).count();
    let troubled = ends.iter().filter(|(_, troubled)| *troubled).count();
    println!(
        "{cases} cases: trouble in {troubled}, a commit in spite of it or without in {committed}"
    );
    assert!(troubled * 2 > ends.len(), "hardly any trouble");
}
