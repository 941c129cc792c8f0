//! Seeds, played on two threads, each simulation on one.

use super::world::{Outcome, simulate};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64;

const SEED: u64 = 20_261_122;
const SEEDS: u64 = 10_000;
const THREADS: usize = 2;

#[derive(Default)]
struct Sum {
    hash: u64,
    counts: BTreeMap<&'static str, u64>,
    time: Duration,
    seeds: u64,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        // The order does not matter: threads end as they like.
        let both = [seed.to_le_bytes(), outcome.hash.to_le_bytes()].concat();
        self.hash ^= xxh3_64(&both);
        for (name, n) in &outcome.counts {
            *self.counts.entry(name).or_default() += n;
        }
        self.time += outcome.time;
        self.seeds += 1;
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Plays a seed; of one that fails it shows the end of its trace.
fn play(seed: u64) -> Option<Outcome> {
    let played = catch_unwind(AssertUnwindSafe(|| simulate(seed, None)));
    if let Ok(outcome) = played {
        return Some(outcome);
    }
    let mut tail = Vec::new();
    drop(catch_unwind(AssertUnwindSafe(|| simulate(seed, Some(&mut tail)))));
    println!("{}", tail.join("\n"));
    println!(
        "seed {seed} failed; again: MILEPOST_SEED={seed} MILEPOST_SEEDS=1 cargo nextest run -p milepost -E 'test(parts::sim::seeds::whatever)'"
    );
    None
}

fn play_all(first: u64, seeds: u64) -> Sum {
    let (next, failed, sum) =
        (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= seeds {
                        break;
                    }
                    let seed = first.wrapping_add(n);
                    match play(seed) {
                        Some(outcome) => sum.lock().unwrap().add(seed, &outcome),
                        None => failed.store(true, Ordering::Relaxed),
                    }
                }
            });
        }
    });
    assert!(!failed.into_inner(), "a seed failed: see above");
    sum.into_inner().unwrap()
}

#[test]
fn whatever_happens_there_is_no_commit_or_a_whole_one_and_all_learn_which() {
    let first = number("MILEPOST_SEED").unwrap_or(SEED);
    let seeds = number("MILEPOST_SEEDS").unwrap_or(SEEDS);
    println!("MILEPOST_SEED={first} MILEPOST_SEEDS={seeds}");
    let sum = play_all(first, seeds);
    println!("{} seeds, {} simulated", sum.seeds, humantime::format_duration(sum.time));
    for (name, n) in &sum.counts {
        println!("{n:>9} {name}");
    }
    println!("combined hash {:016x}", sum.hash);
}

#[test]
fn the_same_seed_has_the_same_end() {
    let first = number("MILEPOST_SEED").unwrap_or(SEED);
    for seed in first..first + 100 {
        let ends = [simulate(seed, None), simulate(seed, None)];
        assert_eq!(ends[0].hash, ends[1].hash, "of seed {seed}");
    }
}
