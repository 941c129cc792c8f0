//! Every parser against mutated seeds, on each test run: deterministic, stable Rust, seconds.
//!
//! `MILEPOST_SEED` replays or varies it, `MILEPOST_FUZZ_ITERATIONS` makes it longer. The coverage-guided twin
//! over the same functions and seeds is `tests/fuzz/run`.

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a crate of its own for the libFuzzer binaries")]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const ITERATIONS: u64 = 2_000;
const SEED: u64 = 20_261_122;
/// Inputs grow no further than this, in bytes.
const INPUT_BYTES_MAX: usize = 1 << 16;

/// `SplitMix64`: small, fast, and the same everywhere for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).expect("64 bits hold a usize");
        usize::try_from(self.next() % end).expect("less than a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().expect("a number in the environment") }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{} is not readable: {e}", folder.display()))
        .map(|entry| entry.expect("a seed is listed").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no seeds", folder.display());
    paths.iter().map(|p| std::fs::read(p).expect("a seed is readable")).collect()
}

/// Words that parsers trip over: extremes as text, keys of the formats, depth.
const WORDS: &[&str] = &[
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "1e999",
    "0.1",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"NaN\"",
    "\"shape\":[4294967296,4294967296]",
    "\"\\ud800\"",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"chunk_shape\":[0]",
    "\"data_offsets\":[0,18446744073709551615]",
    "\"../../x\"",
];

fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(input.len() + 1);
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.byte(),
        2 => input.truncate(at),
        3 => input.insert(at, random.byte()),
        4 => {
            let end = (at + random.below(16)).min(input.len());
            input.drain(at..end);
        }
        5 => {
            let end = (at + random.below(64)).min(input.len());
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        6 => {
            let word = WORDS[random.below(WORDS.len())].bytes();
            let end = (at + random.below(8)).min(input.len());
            input.splice(at..end, word);
        }
        7 => {
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let value = [0, 1, u64::MAX, 1 << 63, random.next()][random.below(5)].to_le_bytes();
            let end = (at + 8).min(input.len());
            input.splice(at..end, value);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

#[track_caller]
#[expect(clippy::print_stdout, reason = "the seed of a random test is shown where it fails")]
fn fuzz(name: &str) {
    let (_, target) =
        targets::TARGETS.iter().find(|(n, _)| *n == name).expect("a target of this name");
    let (seed, iterations) =
        (setting("MILEPOST_SEED", SEED), setting("MILEPOST_FUZZ_ITERATIONS", ITERATIONS));
    println!("replay with MILEPOST_SEED={seed} MILEPOST_FUZZ_ITERATIONS={iterations}");
    let seeds = seeds(name);
    for input in &seeds {
        target(input);
    }
    for iteration in 0..iterations {
        let mut random = Random(seed ^ iteration.wrapping_mul(0xd134_2543_de82_ef95));
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(6) {
            let other = random.below(seeds.len());
            mutate(&mut random, &mut input, &seeds[other]);
        }
        let result = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let text = String::from_utf8_lossy(&input);
        assert!(result.is_ok(), "{name} failed at seed {seed}, iteration {iteration}: {text}");
    }
}

#[test]
fn zarr3_documents_never_break_the_parser() {
    fuzz("zarr3_document");
}

#[test]
fn shard_indexes_never_break_the_parser() {
    fuzz("zarr3_shard_index");
}

#[test]
fn records_never_break_the_parser() {
    fuzz("record");
}

#[test]
fn index_chunks_never_break_the_parser() {
    fuzz("index_chunk");
}

#[test]
fn index_json_never_breaks_the_parser() {
    fuzz("index_json");
}

#[test]
fn safetensors_headers_never_break_the_parser() {
    fuzz("safetensors_header");
}

#[test]
fn every_target_has_a_test_here_and_a_binary() {
    let binaries = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/src/bin");
    let text = include_str!("fuzz.rs");
    for (name, _) in targets::TARGETS {
        assert!(text.contains(&format!("fuzz(\"{name}\")")), "{name} has no test");
        assert!(binaries.join(format!("{name}.rs")).exists(), "{name} has no binary");
    }
}
