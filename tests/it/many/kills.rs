//! Processes that save one step together; one is killed, or stopped and continued as a zombie, anywhere.
//!
//! After each case the parent reads what everybody said, looks at the run as a fresh process would, and saves again: the
//! step is the generation before or the one that was being saved, whole, whatever was hit; who said that it was saved was
//! right; whoever was not hit said something; and the next save succeeds.
//!
//! `MILEPOST_MANY_KILLS` is the number of cases (CI: 240), `MILEPOST_SEED` chooses those that are random, and
//! `MILEPOST_MANY_PARALLEL` how many run at once: most of a case is waiting for deadlines.

use super::{
    job::{S3, engine, kinds, look, place, save_here},
    stages::{Point, STAGES},
    victims::{Case, End, Hit, Said},
};
use milepost::Place;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const CASES: usize = 240;
const PARALLEL: usize = 8;
/// No participant changes the store more often than this in the step of the job.
const CHANGES: u64 = 32;
/// By the number of a case; two is the least and the cheapest.
const COUNTS: [usize; 8] = [2, 3, 4, 2, 8, 3, 2, 4];
/// A case whose victim came too late for the others, as the machine is busy, is tried so often, each time with more time.
const TRIES: u32 = 3;
/// How the rows begin of those who are hit after the founder.
const HEIR: &str = "founder gone, heir ";

/// What is to be done, whoever does it where.
#[derive(Clone, Debug)]
struct Plan {
    kind: &'static str,
    count: usize,
    victims: Vec<(usize, Hit)>,
}

impl Plan {
    /// Tells whether all victims come to their points, given time: not to so many changes, nor to a commit after another's.
    fn is_sure(&self) -> bool {
        let stages = self.victims.iter().map(|(_, hit)| match hit.point() {
            Some(Point::Stage(stage)) => Some(STAGES[stage].name),
            _ => None,
        });
        let stages: Option<Vec<&str>> = stages.collect();
        stages.is_some_and(|stages| stages.len() == 1 || stages[0] != "has committed")
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

/// Every stage, of the founder and of another, killed and stopped, on every kind; and founders that die with their heir.
fn named(kinds: &[&'static str]) -> Vec<(&'static str, bool, Vec<Hit>)> {
    let mut out = Vec::new();
    for (number, stage) in STAGES.iter().enumerate() {
        let point = Point::Stage(number);
        for founder in [true, false] {
            if !stage.is_of(usize::from(!founder)) {
                continue;
            }
            for kind in kinds.iter().filter(|kind| stage.is_at(kind)) {
                out.push((*kind, founder, vec![Hit::KilledAt(point)]));
                out.push((*kind, founder, vec![Hit::StoppedAt(point)]));
            }
        }
    }
    let stage = |name: &str| Point::Stage(STAGES.iter().position(|s| s.name == name).unwrap());
    for kind in kinds {
        for founder in ["has met", "writes the index", "commits", "has committed"] {
            for heir in ["writes the index", "commits", "has committed"] {
                let hits = vec![Hit::KilledAt(stage(founder)), Hit::KilledAt(stage(heir))];
                out.push((*kind, true, hits));
            }
        }
    }
    out
}

fn plans(cases: usize, random: &mut Random) -> Vec<Plan> {
    let kinds = kinds();
    let all = named(&kinds);
    // An emulator of S3 is slow: in a short run, it has every fifth of the named cases.
    let first: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(i, (kind, ..))| *kind != S3 || cases > 1000 || i % 5 == 0)
        .map(|(_, named)| named.clone())
        .collect();
    let (mut plans, mut change) = (Vec::with_capacity(cases), 0);
    for i in 0..cases {
        let count = COUNTS[(i + i / COUNTS.len() + i / first.len()) % COUNTS.len()];
        if let Some((kind, founder, hits)) = first.get(i).or_else(|| {
            // Then half of them are named, with other counts.
            (i % 2 == 0).then(|| &all[(i / 2) % all.len()])
        }) {
            let victim = if *founder { 0 } else { 1 + random.index(count - 1) };
            let heir = hits.get(1).map(|hit| (1, *hit));
            let victims = [(victim, hits[0])].into_iter().chain(heir).collect();
            plans.push(Plan { kind, count, victims });
            continue;
        }
        let kind = kinds[random.index(kinds.len())];
        let victim = random.index(count);
        let hit = match random.below(4) {
            0 => Hit::KilledAfter(Duration::from_micros(random.below(300_000))),
            what => {
                change += 1;
                let point = Point::Change(1 + change % CHANGES);
                if what == 1 { Hit::StoppedAt(point) } else { Hit::KilledAt(point) }
            }
        };
        plans.push(Plan { kind, count, victims: vec![(victim, hit)] });
    }
    plans
}

impl Random {
    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }
}

/// A run of one worker.
struct Ground {
    _directory: tempfile::TempDir,
    run: PathBuf,
    place: Place,
    generation: u64,
    /// What the step holds.
    before: u64,
}

impl Ground {
    fn new(kind: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        std::fs::create_dir_all(&run).unwrap();
        let place = place(&engine(), kind, &run);
        save_here(&place, 2, 0);
        Self { _directory: directory, run, place, generation: 0, before: 0 }
    }

    /// Runs a case; tells how many of the victims were hit, and whether the step was committed in spite of it.
    fn run(&mut self, plan: &Plan, deadline: Duration) -> (usize, bool) {
        self.generation += 1;
        let generation = self.generation;
        let victims = plan.victims.clone();
        let (kind, run, count) = (plan.kind, &self.run, plan.count);
        let ends = Case { kind, run, count, generation, victims, deadline }.run();
        let found = look(&self.place);
        let what = format!("{plan:?}: {ends:?}");
        assert!(
            found == self.before || found == generation,
            "{found} after {}. {what}",
            self.before
        );
        let saved = ends.iter().any(|end| end.said == Said::Saved);
        assert!(!saved || found == generation, "{found} is there. {what}");
        for (index, end) in ends.iter().enumerate() {
            let is_sure = matches!(&end.said, Said::Failed(why) if !why.contains("outcome=`"));
            assert!(!is_sure || found != generation, "{index} was told that it failed. {what}");
            let struck = plan.victims.iter().any(|(victim, hit)| {
                *victim == index && (end.hit || matches!(hit, Hit::KilledAfter(_)))
            });
            assert!(struck || end.said != Said::Nothing, "{index} said nothing. {what}");
        }
        self.before = found;
        (hits(plan, &ends), found == generation)
    }

    fn next_save(&mut self, plan: &Plan) {
        self.generation += 1;
        save_here(&self.place, 2, self.generation);
        self.before = look(&self.place);
        assert_eq!(self.before, self.generation, "the next save. {plan:?}");
    }
}

fn hits(plan: &Plan, ends: &[End]) -> usize {
    let hit = |(victim, hit): &&(usize, Hit)| hit.point().is_none() || ends[*victim].hit;
    plan.victims.iter().filter(hit).count()
}

/// What came of the cases of a row: how many, hit, and committed in spite of it; by what was done.
type Table = BTreeMap<(&'static str, String), [u64; 4]>;

fn work(plans: &[Plan], next: &AtomicUsize, table: &Mutex<Table>) {
    let mut grounds: BTreeMap<&str, Ground> = BTreeMap::new();
    while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
        let ground = grounds.entry(plan.kind).or_insert_with(|| Ground::new(plan.kind));
        let (mut hit, mut committed) = (0, false);
        for attempt in 0..if plan.is_sure() { TRIES } else { 1 } {
            // An emulator of S3 is slow: who gives up puts the record's name, too, and that is no commit.
            let least = if plan.kind == S3 { 6000 } else { 1500 };
            let deadline = Duration::from_millis(least) * 2_u32.pow(attempt);
            (hit, committed) = ground.run(plan, deadline);
            if hit == plan.victims.len() {
                break;
            }
        }
        ground.next_save(plan);
        let last = plan.victims[plan.victims.len() - 1].1;
        let heir = if plan.victims.len() > 1 { HEIR } else { "" };
        let row = (plan.kind, format!("{heir}{}", last.name()));
        let mut table = table.lock().unwrap();
        let row = table.entry(row).or_default();
        row[0] += u64::from(!matches!(last, Hit::StoppedAt(_)));
        row[1] += u64::from(matches!(last, Hit::StoppedAt(_)));
        row[2] += u64::from(hit == plan.victims.len());
        row[3] += u64::from(committed);
    }
}

#[test]
fn who_is_killed_or_stopped_anywhere_leaves_no_commit_or_a_whole_one() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let seed = number("MILEPOST_SEED").unwrap_or(20_261_122);
    let cases = number("MILEPOST_MANY_KILLS").unwrap_or(CASES);
    println!("MILEPOST_SEED={seed} MILEPOST_MANY_KILLS={cases}");
    let plans = plans(cases, &mut Random(seed as u64));
    let (next, table) = (AtomicUsize::new(0), Mutex::new(Table::new()));
    std::thread::scope(|scope| {
        for _ in 0..number("MILEPOST_MANY_PARALLEL").unwrap_or(PARALLEL) {
            let work = || work(&plans, &next, &table);
            std::thread::Builder::new().spawn_scoped(scope, work).unwrap();
        }
    });
    let table = table.into_inner().unwrap();
    println!("{:20} {:40} killed stopped  hit  committed all the same", "", "");
    let mut sum = [0; 4];
    for ((kind, name), row) in &table {
        println!("{kind:20} {name:40} {:6} {:7} {:4} {:4}", row[0], row[1], row[2], row[3]);
        sum = std::array::from_fn(|i| sum[i] + row[i]);
        // A short run has few founders that die with their heir.
        let named =
            STAGES.iter().any(|stage| stage.name == name) || cases > 1000 && name.starts_with(HEIR);
        assert!(!named || row[2] > 0, "nobody ever came to: {kind}, {name}");
    }
    println!("{:61} {:6} {:7} {:4} {:4}", "all", sum[0], sum[1], sum[2], sum[3]);
    assert_eq!(sum[0] + sum[1], cases as u64);
}
