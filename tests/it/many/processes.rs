//! 2 to 8 processes (`milepost participate`) save random meshes, shapes, types and codecs, with replicas, on a shared
//! directory and on S3; random boxes that have nothing to do with theirs are restored, bit-exact.

use super::job::{engine, kinds, place};
use crate::cli::{command, text};
use futures::executor::block_on;
use milepost::{CastRule, Checkpoint, DataType, Subset};
use std::{
    path::Path,
    process::{Child, Output, Stdio},
};

const TYPES: [&str; 9] =
    ["float32", "bfloat16", "int8", "uint64", "bool", "complex64", "float16", "int16", "float64"];
const CODECS: [&str; 3] = ["none", "zstd:1", "blosc:lz4:5:shuffle"];

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    /// Numbers whose product divides `count`.
    fn mesh(&mut self, count: u64) -> Vec<u64> {
        let divisor = |n: u64, random: &mut Self| {
            let all: Vec<u64> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
            all[usize::try_from(random.below(all.len() as u64)).unwrap()]
        };
        let first = divisor(count, self);
        vec![first, divisor(count / first, self)]
    }
}

/// The bytes of a box, as `milepost participate --help` does not say but its module does.
fn values(place: &Subset, shape: &[u64], (step, data_type): (u64, DataType)) -> Vec<u8> {
    let mut out = Vec::new();
    for element in 0..place.elements() {
        let (mut rest, mut linear, mut stride) = (element, 0, 1);
        for axis in (0..shape.len()).rev() {
            linear += (place.start()[axis] + rest % place.shape()[axis]) * stride;
            rest /= place.shape()[axis];
            stride *= shape[axis];
        }
        let value = (linear + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ step;
        if data_type == DataType::Bool {
            out.push(u8::from(value % 2 == 1));
        } else {
            let size = data_type.size_bytes();
            out.extend_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    out
}

fn joined(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// Starts all participants and waits for them.
fn participate(count: u64, options: &[String]) -> Vec<Output> {
    let start = |index: u64| -> Child {
        let own = [format!("--index={index}"), format!("--count={count}")];
        let all: Vec<&str> = ["participate"]
            .into_iter()
            .chain(options.iter().chain(&own).map(String::as_str))
            .collect();
        command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = (0..count).map(start).collect();
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

/// The place as the command line names it.
fn target(kind: &str, run: &Path) -> Vec<String> {
    if kind != "S3" {
        return vec![run.to_str().unwrap().to_owned()];
    }
    let (bucket, options) = crate::remote::emulator().unwrap();
    let own = run.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let url = format!("{bucket}/many-{}", own.trim_start_matches('.'));
    let options = options.iter().map(|(key, value)| format!("--store-option={key}={value}"));
    [url].into_iter().chain(options).collect()
}

fn save_and_restore(kind: &str, (count, step): (u64, u64), run: &Path, random: &mut Random) {
    let mesh = random.mesh(count);
    let shape: Vec<u64> = (0..2 + random.below(2)).map(|_| 1 + random.below(40)).collect();
    let (name, codec) = (random.of(&TYPES), random.of(&CODECS));
    let options = [
        format!("--shape={}", joined(&shape)),
        format!("--mesh={}", joined(&mesh)),
        format!("--dtype={name}"),
        format!("--codec={codec}"),
        format!("--step={step}"),
        format!("--session=step-{step}"),
    ];
    let outputs = participate(count, &[target(kind, run), options.to_vec()].concat());
    let what = format!("{kind}: {count} processes, {options:?}");
    for output in &outputs {
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
    }
    let committed = outputs.iter().filter(|o| text(&o.stdout).contains("it committed")).count();
    assert_eq!(committed, 1, "{what}");
    let engine = engine();
    let run = place(&engine, kind, run);
    let checkpoint = Checkpoint::open_blocking(&engine, &run.join(&step.to_string())).unwrap();
    assert!(checkpoint.verify_blocking().unwrap().is_good(), "{what}");
    let leaf = checkpoint.leaf_blocking("state", name).unwrap();
    let data_type = DataType::from_name(name).unwrap();
    for _ in 0..8 {
        let start: Vec<u64> = shape.iter().map(|n| random.below(*n)).collect();
        let extent = shape.iter().zip(&start).map(|(n, start)| 1 + random.below(n - start));
        let wanted = Subset::new(start.clone(), extent.collect()).unwrap();
        let read = block_on(leaf.read_as(&wanted, None, CastRule::SameKind)).unwrap();
        assert!(
            read.bytes[..] == values(&wanted, &shape, (step, data_type))[..],
            "{wanted} {what}"
        );
    }
}

#[test]
fn processes_of_every_count_save_what_is_restored_bit_exact_into_other_boxes() {
    let seed = std::env::var("MILEPOST_SEED").ok().and_then(|text| text.parse().ok());
    let mut random = Random(seed.unwrap_or(20_261_122));
    let rounds = std::env::var("MILEPOST_MANY_MESHES").ok().and_then(|text| text.parse().ok());
    println!("MILEPOST_SEED={} MILEPOST_MANY_MESHES={rounds:?}", random.0);
    let kinds = kinds().into_iter().filter(|kind| *kind != "conditional creates");
    for kind in kinds {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        let rounds: u64 = rounds.unwrap_or(if kind == "S3" { 1 } else { 3 });
        for round in 0..rounds {
            for count in 2..=8 {
                save_and_restore(kind, (count, round * 10 + count), &run, &mut random);
            }
        }
        println!("{kind}: {} saves by 2 to 8 processes", rounds * 7);
    }
}

#[test]
fn a_step_that_is_there_is_replaced_only_where_all_ask_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run").to_str().unwrap().to_owned();
    let options = |dtype: &str, more: &[&str]| -> Vec<String> {
        let common = [&run, "--step=4", "--shape=6,5", "--json"].map(str::to_owned);
        let more = more.iter().map(|option| (*option).to_owned());
        common.into_iter().chain([format!("--dtype={dtype}")]).chain(more).collect()
    };
    let said = |outputs: Vec<Output>| -> Vec<serde_json::Value> {
        let parse = |output: &Output| {
            assert!(output.status.success(), "{}", text(&output.stderr));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        outputs.iter().map(parse).collect()
    };
    let first = said(participate(3, &options("int8", &[])));
    let committed = first.iter().filter(|said| said["committed_here"] == true).count();
    assert_eq!(committed, 1, "{first:?}");
    for (index, said) in first.iter().enumerate() {
        assert_eq!((&said["participant"], &said["count"]), (&index.into(), &3.into()), "{said}");
        assert_eq!((&said["step"], &said["read_back_bytes"]), (&4.into(), &10.into()), "{said}");
        assert!(said["written_bytes"].as_u64().unwrap() >= 10, "{said}");
    }
    for output in participate(3, &options("int16", &[])) {
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("is there") || error.contains("exists"), "{error}");
    }
    let leaves = || crate::cli::stdout(&["tree", &run]);
    assert!(leaves().contains("int8"), "{}", leaves());
    said(participate(3, &options("int16", &["--overwrite"])));
    assert!(leaves().contains("int16") && !leaves().contains("int8"), "{}", leaves());
}

#[test]
fn who_participates_without_the_others_gets_an_error_that_names_them() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run").to_str().unwrap().to_owned();
    let options = ["--step=1", "--shape=8,8", "--deadline=300ms"].map(str::to_owned);
    // Participant 0 of two, and 1 of two: each alone, with a session and without.
    for index in [0, 1] {
        for session in [vec![], vec![format!("--session=alone-{index}")]] {
            let all = [vec![run.clone()], options.to_vec(), session].concat();
            let own = [format!("--index={index}"), "--count=2".to_owned()];
            let all: Vec<&str> = ["participate"]
                .into_iter()
                .chain(all.iter().chain(&own).map(String::as_str))
                .collect();
            let error = crate::cli::stderr(&all, 1);
            let missing = format!("missing=`{}`", 1 - index);
            assert!(error.contains(&missing), "{all:?}: {error}");
            assert!(error.contains("hint: "), "{error}");
        }
    }
    assert!(!Path::new(&run).join("1").exists(), "nothing is committed");
}

#[test]
fn a_participant_that_cannot_be_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run").to_str().unwrap().to_owned();
    let refused = |own: &[&str], code| {
        let all = [&["participate", &run, "--step=1"], own].concat();
        crate::cli::stderr(&all, code)
    };
    let error = refused(&["--index=4", "--count=4"], 1);
    assert!(error.contains("there is no such participant. index=`4`, count=`4`"), "{error}");
    let error = refused(&["--index=0", "--count=0"], 1);
    assert!(error.contains("there is no such participant"), "{error}");
    let error = refused(&["--index=0", "--count=4", "--mesh=3"], 1);
    assert!(error.contains("the mesh does not divide the participants"), "{error}");
    let error = refused(&["--index=0", "--count=4", "--mesh=2,0"], 1);
    assert!(error.contains("the mesh does not fit the shape"), "{error}");
    let error = refused(&["--index=0", "--count=1", "--shape=9223372036854775807,3"], 1);
    assert!(error.contains("more elements than 64 bits count"), "{error}");
    let error = refused(&["--index=0", "--count=1", "--shape=4294967296,1024"], 1);
    assert!(error.contains("too large"), "{error}");
    let error = refused(&["--index=0", "--count=1", "--dtype=float31"], 2);
    assert!(error.contains("`float31` is no data type"), "{error}");
    assert!(!Path::new(&run).exists(), "nothing is made");
}
