//! Bad bytes on disk: every flip, cut and loss is found, named, and never given out as data.

use milepost::{
    Checkpoint, CheckpointWriter, Engine, ErrorKind, Item, Leaf, Outcome, Place, SaveOptions, Tree,
    formats::zarr3::Compressor,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A small generator, so that a seed replays a run.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("MILEPOST_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or(0x5eed_2026);
        println!("MILEPOST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

fn place(engine: &Arc<Engine>, dir: &Path) -> Place {
    engine.place(dir.to_str().unwrap(), &[]).unwrap()
}

/// A step with every kind of object: sharded, unsharded, packed small chunks, compressed, JSON, bytes.
fn save(engine: &Arc<Engine>, target: &Place) {
    let values = |n: u32| (0..n).map(|i| i.wrapping_mul(2_654_435_761)).collect::<Vec<u32>>();
    let sharded = Leaf::from_vec(values(300_000), &[300, 1000]).unwrap();
    let zstd: Compressor = "zstd:1".parse().unwrap();
    let tree = Tree::dict([
        (
            "sharded",
            Tree::leaf(
                sharded.clone().with_chunk_shape(vec![100, 1000]).with_shard_shape(vec![200, 1000]),
            ),
        ),
        (
            "packed",
            Tree::leaf(
                sharded
                    .with_chunk_shape(vec![9, 1000])
                    .with_shard_shape(vec![90, 1000])
                    .with_compressor(zstd),
            ),
        ),
        ("plain", Tree::leaf(Leaf::from_vec(values(5000), &[5000]).unwrap())),
        ("steps", Tree::list([Tree::leaf(Leaf::int(3).unwrap()), Tree::None])),
    ]);
    CheckpointWriter::standalone(engine, target)
        .item("state", Item::Tree(tree))
        .item("config", Item::Json(serde_json::json!({"layers": [1, 2, 3]})))
        .item("blob", Item::Bytes(vec![7; 3000].into()))
        .options(SaveOptions::default())
        .save_blocking()
        .unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn found(engine: &Arc<Engine>, target: &Place) -> Result<Vec<Outcome>, ErrorKind> {
    let checkpoint = Checkpoint::open_blocking(engine, target).map_err(|e| e.kind())?;
    let report = checkpoint.verify_blocking().unwrap();
    Ok(report.findings.into_iter().map(|f| f.outcome).collect())
}

/// Reads everything; the decoded bytes by leaf, or the error.
fn restore(engine: &Arc<Engine>, target: &Place) -> milepost::Result<BTreeMap<String, Vec<u8>>> {
    let checkpoint = Checkpoint::open_blocking(engine, target)?;
    let tree = checkpoint.restore_blocking("state")?;
    Ok(tree.leaves().map(|(path, data)| (path.to_string(), data.bytes.to_vec())).collect())
}

#[test]
fn verify_finds_each_of_1000_random_flips_and_cuts_and_no_reader_lies() {
    let engine = Engine::builder().budget_bytes(64 << 20).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = place(&engine, &dir.path().join("step"));
    save(&engine, &target);
    assert_eq!(found(&engine, &target), Ok(vec![]), "no false alarm");
    let good = restore(&engine, &target).unwrap();
    let files = files(&dir.path().join("step"));
    let mut random = Random::new();
    let (mut unused, mut lied) = (0, 0);
    for round in 0..1000 {
        let file = &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
        let bytes = std::fs::read(file).unwrap();
        let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
        let mut bad = bytes.clone();
        if round % 4 == 3 {
            bad.truncate(at);
        } else {
            bad[at] ^= 1 << random.below(8);
        }
        std::fs::write(file, &bad).unwrap();
        match found(&engine, &target) {
            Err(_) => {}
            Ok(outcomes) => {
                let corrupt = outcomes.contains(&Outcome::Corrupt);
                assert!(!outcomes.is_empty(), "missed: {} at {at}", file.display());
                // Not corrupt means: proven to be in bytes that change nothing any reader gets.
                unused += usize::from(!corrupt);
            }
        }
        if let Ok(read) = restore(&engine, &target) {
            lied += usize::from(read != good);
        }
        std::fs::write(file, &bytes).unwrap();
    }
    assert_eq!(lied, 0, "a damaged step was restored as if it were whole");
    assert!(unused < 100, "{unused} flips were said to change nothing");
    println!("1000 flips and cuts: all found, {unused} of them in bytes that no reader uses");
    assert_eq!(found(&engine, &target), Ok(vec![]), "and intact again");
}

#[test]
fn every_lost_object_is_named() {
    let engine = Engine::builder().budget_bytes(64 << 20).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("step");
    let target = place(&engine, &root);
    save(&engine, &target);
    for file in files(&root) {
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        match Checkpoint::open_blocking(&engine, &target) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            Ok(checkpoint) => {
                let key = file.strip_prefix(&root).unwrap().to_str().unwrap();
                let report = checkpoint.verify_blocking().unwrap();
                assert!(
                    report
                        .findings
                        .iter()
                        .any(|f| f.object == key && f.outcome == Outcome::Corrupt),
                    "{key}: {:?}",
                    report.findings
                );
            }
        }
        std::fs::write(&file, bytes).unwrap();
    }
}

#[test]
fn a_flipped_byte_is_named_by_leaf_chunk_and_range() {
    let engine = Engine::builder().budget_bytes(64 << 20).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("step");
    let target = place(&engine, &root);
    save(&engine, &target);
    let file = root.join("state/sharded/c.0.0");
    let mut bytes = std::fs::read(&file).unwrap();
    let second = 400_000_usize.next_multiple_of(4096) + 4096 - 400_000 % 4096;
    let at = second + 5;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &target).unwrap();
    let finding = checkpoint.verify_blocking().unwrap().findings.remove(0);
    assert_eq!(finding.outcome, Outcome::Corrupt);
    assert_eq!(finding.leaf.as_deref(), Some("sharded"));
    let (offset, len) = finding.range.unwrap();
    assert!((offset..offset + len).contains(&(at as u64)), "{finding:?}");
    let error = checkpoint.leaf_blocking("state", "sharded").unwrap().read_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.get("leaf"), Some("sharded"));
    assert!(error.get("chunk").is_some() && error.get("object").is_some(), "{error}");
}

#[test]
fn a_key_path_that_is_not_there_gets_the_nearest_names() {
    let engine = Engine::builder().budget_bytes(64 << 20).build().unwrap();
    let target = engine.place("memory://damage/near", &[]).unwrap();
    save(&engine, &target);
    let checkpoint = Checkpoint::open_blocking(&engine, &target).unwrap();
    let error = checkpoint.leaf_blocking("state", "shardet").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.hint_text().unwrap().contains("sharded"), "{error:?}");
    let error = checkpoint.leaf_blocking("stat", "x").unwrap_err();
    assert!(error.hint_text().unwrap().contains("state"), "{error:?}");
}
