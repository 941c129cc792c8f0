//! Bad input of every kind: what is refused, with which kind of error, and what the error names.

use futures::executor::block_on;
use milepost::{
    Checkpoint, CheckpointWriter, Engine, Error, ErrorKind, Item, Key, Leaf, Place, Run,
    SaveOptions, StepState, Tree, formats::zarr3::ShardIndex, open, open_zarr_array_blocking,
};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc};

const STEP: u64 = 1200;

/// What is done to a document.
type Change<'a> = &'a dyn Fn(&mut Value);

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(32 << 20).build().unwrap()
}

fn values() -> Vec<u32> {
    (0..64 * 1024).map(|i: u32| i.wrapping_mul(2_654_435_761)).collect()
}

fn state() -> Tree<Leaf> {
    let leaf = Leaf::from_vec(values(), &[64, 1024]).unwrap();
    let chunked = || leaf.clone().with_chunk_shape(vec![16, 1024]);
    let zstd = "zstd:1".parse().unwrap();
    Tree::dict([(
        "params",
        Tree::dict([
            ("sharded", Tree::leaf(chunked().with_shard_shape(vec![64, 1024]))),
            (
                "packed",
                Tree::leaf(chunked().with_shard_shape(vec![64, 1024]).with_compressor(zstd)),
            ),
            ("plain", Tree::leaf(chunked())),
        ]),
    )])
}

/// A run with one good step on disk.
struct Fixture {
    engine: Arc<Engine>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { engine: engine(), dir: tempfile::tempdir().unwrap() };
        CheckpointWriter::step(&fixture.engine, &fixture.run(), STEP)
            .item("state", Item::Tree(state()))
            .options(SaveOptions { shard_bytes: Some(0), ..SaveOptions::default() })
            .save_blocking()
            .unwrap();
        fixture
    }

    fn run(&self) -> Place {
        self.engine.place(self.dir.path().to_str().unwrap(), &[]).unwrap()
    }

    fn step(&self) -> Place {
        self.run().join(&STEP.to_string())
    }

    fn file(&self, path: &str) -> PathBuf {
        self.dir.path().join(STEP.to_string()).join(path)
    }

    fn open(&self) -> milepost::Result<Checkpoint> {
        Checkpoint::open_blocking(&self.engine, &self.step())
    }

    /// Reads one leaf the direct way, without the index.
    fn leaf(&self, path: &str) -> milepost::Result<Vec<u32>> {
        self.open()?.leaf_blocking("state", path)?.read_blocking()?.to_vec()
    }

    /// Reads everything.
    fn whole(&self) -> milepost::Result<usize> {
        Ok(self.open()?.restore_blocking("state")?.leaf_count())
    }

    /// Changes a file, looks, and puts it back.
    fn with_bytes<T>(&self, path: &str, bytes: &[u8], look: impl FnOnce() -> T) -> T {
        let file = self.file(path);
        let good = std::fs::read(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
        let seen = look();
        std::fs::write(&file, good).unwrap();
        seen
    }

    fn with_json<T>(
        &self,
        path: &str,
        change: impl FnOnce(&mut Value),
        look: impl FnOnce() -> T,
    ) -> T {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(path)).unwrap()).unwrap();
        change(&mut value);
        self.with_bytes(path, &serde_json::to_vec(&value).unwrap(), look)
    }
}

fn names(error: &Error, wanted: &[(&str, &str)]) {
    for (key, value) in wanted {
        let got = error.get(key);
        let ends = got.is_some_and(|got| got.ends_with(value));
        assert!(ends, "`{key}` is {got:?}, not `{value}`: {error:?}");
    }
    assert_eq!(error.get("step"), Some("1200"), "{error:?}");
    assert!(error.get("checkpoint").is_some(), "{error:?}");
}

#[test]
fn a_leaf_document_that_is_cut_or_flipped_is_named() {
    let fixture = Fixture::new();
    let path = "state/params/plain/zarr.json";
    let good = std::fs::read(fixture.file(path)).unwrap();
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        let error =
            fixture.with_bytes(path, &good[..cut], || fixture.leaf("params/plain")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        names(&error, &[("leaf", "params/plain"), ("object", path)]);
    }
    let mut errors = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        // A flip in a name or attribute may change nothing that a read uses; data is never made up.
        match fixture.with_bytes(path, &bad, || fixture.leaf("params/plain")) {
            Ok(_) => {}
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Internal, "{error:?}");
                names(&error, &[("leaf", "params/plain")]);
                errors += 1;
            }
        }
    }
    assert!(errors > good.len() / 2, "{errors} of {}", good.len());
    assert_eq!(fixture.leaf("params/plain").unwrap(), values());
}

/// Peak resident memory of this process so far.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn sizes_that_lie_are_an_error_and_cost_no_memory() {
    let fixture = Fixture::new();
    let grid = |v: &mut Value, shape: Value| {
        v["chunk_grid"]["configuration"]["chunk_shape"] = shape;
    };
    let inner = |v: &mut Value, shape: Value| {
        v["codecs"][0]["configuration"]["chunk_shape"] = shape;
    };
    let lies: [(&str, &str, Change<'_>); 15] = [
        ("plain", "a long axis", &|v| v["shape"] = json!([1_u64 << 40, 1024])),
        ("plain", "a longer array", &|v| v["shape"] = json!([1 << 20, 1024])),
        ("plain", "the longest axis", &|v| v["shape"] = json!([u64::MAX, 1024])),
        ("plain", "2^64 elements", &|v| v["shape"] = json!([1_u64 << 33, 1_u64 << 33])),
        ("plain", "many chunks", &|v| {
            v["shape"] = json!([1 << 20, 1 << 11]);
            grid(v, json!([1, 1]));
        }),
        ("plain", "a huge chunk", &|v| grid(v, json!([1_u64 << 40, 1024]))),
        ("plain", "the largest chunk", &|v| grid(v, json!([u64::MAX, u64::MAX]))),
        ("plain", "an 8 GiB chunk", &|v| grid(v, json!([1 << 21, 1024]))),
        ("plain", "no chunk", &|v| grid(v, json!([0, 1024]))),
        ("plain", "another rank", &|v| grid(v, json!([16]))),
        ("sharded", "a huge shard", &|v| grid(v, json!([1_u64 << 40, 1024]))),
        ("sharded", "tiny chunks in a huge shard", &|v| {
            v["shape"] = json!([1 << 20, 1 << 11]);
            grid(v, json!([1 << 20, 1 << 11]));
            inner(v, json!([1, 1]));
        }),
        ("sharded", "tiny chunks", &|v| inner(v, json!([1, 1]))),
        ("packed", "a huge chunk in a huge shard", &|v| {
            v["shape"] = json!([1 << 21, 1024]);
            grid(v, json!([1 << 21, 1024]));
            inner(v, json!([1 << 21, 1024]));
        }),
        ("packed", "a chunk that does not divide its shard", &|v| inner(v, json!([7, 1000]))),
    ];
    let before = peak_bytes();
    for (leaf, what, change) in lies {
        let document = format!("state/params/{leaf}/zarr.json");
        let path = format!("params/{leaf}");
        let error = fixture.with_json(&document, change, || fixture.leaf(&path)).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::Internal, "{what}: {error:?}");
        names(&error, &[("leaf", &path)]);
        // A whole restore goes by the index, which is hashed: it reads what was saved.
        assert_eq!(fixture.with_json(&document, change, || fixture.whole()).unwrap(), 3, "{what}");
        let report =
            fixture.with_json(&document, change, || fixture.open().unwrap().verify_blocking());
        assert!(!report.unwrap().is_good(), "{what}");
        assert_eq!(fixture.engine.budget().used(), 0);
    }
    let grown = peak_bytes() - before;
    assert!(grown < 2 << 30, "claims of 8 GiB and more took {grown} bytes");
}

#[test]
fn unknown_codecs_and_data_types_are_unsupported_and_named() {
    let fixture = Fixture::new();
    let document = "state/params/plain/zarr.json";
    let changes: [(&str, Change<'_>); 5] = [
        ("float1024", &|v| v["data_type"] = json!("float1024")),
        ("lzma9", &|v| v["codecs"] = json!([{"name": "bytes"}, {"name": "lzma9"}])),
        ("hexagonal", &|v| v["chunk_grid"]["name"] = json!("hexagonal")),
        ("zarr_format", &|v| v["zarr_format"] = json!(4)),
        ("surprise", &|v| v["surprise"] = json!({"must_understand": true})),
    ];
    for (word, change) in changes {
        let error =
            fixture.with_json(document, change, || fixture.leaf("params/plain")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{word}: {error:?}");
        names(&error, &[("leaf", "params/plain"), ("object", document)]);
        assert!(format!("{error:?}").contains(word), "{word}: {error:?}");
        let foreign = fixture.with_json(document, change, || {
            let place = fixture.step().join("state/params/plain");
            open_zarr_array_blocking(&fixture.engine, &place, "").map(drop)
        });
        assert_eq!(foreign.unwrap_err().kind(), ErrorKind::Unsupported, "{word}");
    }
}

#[test]
fn a_bad_index_is_corrupt_and_names_item_and_object() {
    let fixture = Fixture::new();
    let path = "_milepost/state/c.0";
    let good = std::fs::read(fixture.file(path)).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    let longer = [&good[..], b"more"].concat();
    for bad in [&good[..0], &good[..good.len() / 2], &good[..good.len() - 1], &flipped, &longer] {
        let error = fixture.with_bytes(path, bad, || fixture.whole()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        names(&error, &[("item", "state"), ("object", path)]);
        // The index is not needed for a leaf by name.
        let leaf = fixture.with_bytes(path, bad, || fixture.leaf("params/plain"));
        assert_eq!(leaf.unwrap(), values());
    }
    std::fs::remove_file(fixture.file(path)).unwrap();
    let error = fixture.whole().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    names(&error, &[("item", "state"), ("object", path)]);
}

#[test]
fn a_bad_chunk_is_named_by_leaf_chunk_and_object_on_every_path() {
    let fixture = Fixture::new();
    for (leaf, object, at) in [
        ("params/plain", "state/params/plain/c.2.0", 5000),
        ("params/sharded", "state/params/sharded/c.0.0", 5000),
        ("params/packed", "state/params/packed/c.0.0", 5000),
    ] {
        let good = std::fs::read(fixture.file(object)).unwrap();
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        for whole in [false, true] {
            let look =
                || if whole { fixture.whole().map(drop) } else { fixture.leaf(leaf).map(drop) };
            let error = fixture.with_bytes(object, &flipped, look).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            let chunk = if leaf.ends_with("plain") { "2.0" } else { "0.0" };
            names(&error, &[("leaf", leaf), ("object", object), ("chunk", chunk)]);
            for cut in [0, 4, good.len() / 2, good.len() - 1] {
                let error = fixture.with_bytes(object, &good[..cut], look).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{cut}: {error:?}");
                names(&error, &[("leaf", leaf), ("object", object)]);
            }
        }
        std::fs::remove_file(fixture.file(object)).unwrap();
        for error in [fixture.whole().unwrap_err(), fixture.leaf(leaf).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            names(&error, &[("leaf", leaf), ("object", object)]);
        }
        std::fs::write(fixture.file(object), good).unwrap();
    }
}

#[test]
fn a_shard_index_that_lies_is_found_out_though_its_checksum_is_right() {
    let fixture = Fixture::new();
    for leaf in ["sharded", "packed"] {
        let object = format!("state/params/{leaf}/c.0.0");
        let path = format!("params/{leaf}");
        let bytes = std::fs::read(fixture.file(&object)).unwrap();
        let tail = usize::try_from(ShardIndex::encoded_bytes(4, true).unwrap()).unwrap();
        let data = &bytes[..bytes.len() - tail];
        let index = ShardIndex::parse(&bytes[data.len()..], 4, true, None).unwrap();
        let first = index.entries[0].unwrap();
        let end = bytes.len() as u64;
        for (what, entry) in [
            ("beyond the object", Some((end + 1, first.1))),
            ("across the end", Some((end - 10, first.1))),
            ("far away", Some((1 << 60, first.1))),
            ("overflow", Some((u64::MAX - 5, first.1))),
            ("all there is", Some((0, u64::MAX - 1))),
            ("huge", Some((0, 1 << 50))),
            ("overlapping", Some((first.0 + 100, first.1))),
            ("empty", Some((first.0, 0))),
            ("too short", Some((first.0, first.1 - 1))),
            ("missing", None),
        ] {
            let mut lie = index.clone();
            lie.entries[1] = entry;
            let bad = [data, &lie.to_bytes(true)].concat();
            for whole in [false, true] {
                let look = || {
                    if whole { fixture.whole().map(drop) } else { fixture.leaf(&path).map(drop) }
                };
                let error = fixture.with_bytes(&object, &bad, look).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{leaf}, {what}: {error:?}");
                names(&error, &[("leaf", &path), ("object", &object)]);
            }
        }
        // A chunk in the place of another has a good checksum; verify knows better.
        let mut swapped = index.clone();
        swapped.entries.swap(0, 1);
        let bad = [data, &swapped.to_bytes(true)].concat();
        let report = fixture
            .with_bytes(&object, &bad, || fixture.open().unwrap().verify_blocking().unwrap());
        assert!(!report.is_good(), "{leaf}: swapped chunks");
    }
}

#[test]
fn a_good_chunk_in_the_place_of_another_is_found() {
    let fixture = Fixture::new();
    let [first, second] = ["c.0.0", "c.1.0"].map(|c| format!("state/params/plain/{c}"));
    let other = std::fs::read(fixture.file(&second)).unwrap();
    let report =
        fixture.with_bytes(&first, &other, || fixture.open().unwrap().verify_blocking().unwrap());
    assert!(!report.is_good(), "a chunk was replaced by another of its size");
    let finding = &report.findings[0];
    assert_eq!(finding.outcome, milepost::Outcome::Corrupt);
    assert_eq!((&*finding.object, finding.leaf.as_deref()), (&*first, Some("params/plain")));
    assert!(fixture.open().unwrap().verify_blocking().unwrap().findings.is_empty());
}

#[test]
fn a_record_that_is_damaged_or_too_new_is_told_apart() {
    let fixture = Fixture::new();
    let good = std::fs::read(fixture.file("zarr.json")).unwrap();
    let newer: [Change<'_>; 3] = [
        &|v| v["attributes"]["milepost"]["version"] = json!([2, 0]),
        &|v| v["attributes"]["milepost"]["requires"] = json!(["telepathy"]),
        &|v| v["attributes"]["milepost"]["kind"] = json!("galaxy"),
    ];
    let step = || block_on(Run::new(&fixture.engine, &fixture.run()).step(STEP)).map(drop);
    for change in newer {
        for look in [&|| fixture.open().map(drop), &step as &dyn Fn() -> milepost::Result<()>] {
            let error = fixture.with_json("zarr.json", change, look).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            assert!(error.get("checkpoint").is_some_and(|c| c.ends_with("1200")), "{error:?}");
        }
    }
    let mut flipped = good.clone();
    let at = good.windows(8).position(|w| w == b"\"writer\"").unwrap();
    flipped[at + 15] ^= 1;
    for bad in [&good[..0], &good[..good.len() - 3], &flipped, b"[]", b"{}"] {
        for look in [&|| fixture.open().map(drop), &step as &dyn Fn() -> milepost::Result<()>] {
            let error = fixture.with_bytes("zarr.json", bad, look).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            assert!(error.get("checkpoint").is_some_and(|c| c.ends_with("1200")), "{error:?}");
        }
        let steps = fixture.with_bytes("zarr.json", bad, || {
            Run::new(&fixture.engine, &fixture.run()).steps_blocking().unwrap()
        });
        assert!(matches!(&steps[..], [s] if matches!(s.state, StepState::Damaged(_))), "{steps:?}");
        let newest = fixture
            .with_bytes("zarr.json", bad, || block_on(open(&fixture.engine, &fixture.run())));
        assert_eq!(newest.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn what_is_not_there_is_not_found_with_the_nearest_name() {
    let fixture = Fixture::new();
    let engine = &fixture.engine;
    let nowhere = fixture.run().join("no/such/run");
    for error in [
        block_on(open(engine, &nowhere)).unwrap_err(),
        Run::new(engine, &nowhere).steps_blocking().unwrap_err(),
        Checkpoint::open_blocking(engine, &nowhere).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert!(error.to_string().contains("no/such/run"), "{error}");
    }
    assert!(!fixture.dir.path().join("no").exists(), "looking creates nothing");
    let error = block_on(Run::new(engine, &fixture.run()).step(7)).unwrap_err();
    assert_eq!((error.kind(), error.get("step")), (ErrorKind::NotFound, Some("7")), "{error:?}");
    let error = fixture.leaf("params/plan").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(format!("{error:?}").contains("params/plain"), "the nearest name: {error:?}");
    names(&error, &[]);
    for bad in ["../1200", "params//plain", "/etc/passwd", "params/plain/c.0.0", ".."] {
        let error = fixture.leaf(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{bad}: {error:?}");
    }
    let error = fixture.leaf("params").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "a container: {error:?}");
    let error = fixture.open().unwrap().item_index_blocking("stat").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    names(&error, &[("item", "stat")]);
}

#[test]
fn a_place_of_others_is_refused_and_left_alone() {
    let fixture = Fixture::new();
    let engine = &fixture.engine;
    let array = fixture.step().join("state/params/plain");
    let error = Checkpoint::open_blocking(engine, &array).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(error.hint_text().is_some());
    let error = Checkpoint::open_blocking(engine, &fixture.run()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "a run: {error:?}");

    let others = fixture.dir.path().join("others");
    std::fs::create_dir(&others).unwrap();
    let group = br#"{"zarr_format":3,"node_type":"group","attributes":{"by":"others"}}"#;
    std::fs::write(others.join("zarr.json"), group).unwrap();
    let files = fixture.dir.path().join("files");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("thesis.tex"), b"do not lose").unwrap();
    for name in ["others", "files"] {
        for overwrite in [false, true] {
            let error = CheckpointWriter::standalone(engine, &fixture.run().join(name))
                .item("state", Item::Tree(state()))
                .options(SaveOptions { overwrite, ..SaveOptions::default() })
                .save_blocking()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error:?}");
            assert!(error.get("checkpoint").is_some_and(|c| c.ends_with(name)), "{error:?}");
        }
    }
    assert_eq!(std::fs::read(others.join("zarr.json")).unwrap(), group);
    assert_eq!(std::fs::read(files.join("thesis.tex")).unwrap(), b"do not lose");
}

fn save_tree(
    engine: &Arc<Engine>,
    place: &Place,
    tree: Tree<Leaf>,
) -> milepost::Result<milepost::Saved> {
    CheckpointWriter::standalone(engine, place).item("state", Item::Tree(tree)).save_blocking()
}

fn scalar(value: i64) -> Tree<Leaf> {
    Tree::leaf(Leaf::int(value.into()).unwrap())
}

#[test]
fn keys_that_cannot_be_stored_are_refused_before_anything_is_written() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let place = engine.place(dir.path().join("ckpt").to_str().unwrap(), &[]).unwrap();
    let clash = Tree::dict([(Key::Int(1), scalar(1)), (Key::Name("1".into()), scalar(2))]);
    let error = save_tree(&engine, &place, Tree::dict([("at", clash)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!((error.get("item"), error.get("node")), (Some("state"), Some("at/1")), "{error:?}");
    assert!(error.get("key").is_some() && error.get("other").is_some(), "{error:?}");
    assert!(error.get("checkpoint").is_some(), "{error:?}");

    let twice = Tree::dict([("a", scalar(1)), ("a", scalar(2))]);
    assert_eq!(save_tree(&engine, &place, twice).unwrap_err().kind(), ErrorKind::Invalid);
    let long = (0..20).fold(scalar(1), |tree, i| Tree::dict([(format!("{i:0>60}"), tree)]));
    let error = save_tree(&engine, &place, long).unwrap_err();
    assert_eq!((error.kind(), error.get("item")), (ErrorKind::Invalid, Some("state")), "{error:?}");
    let deep = (0..5000).fold(scalar(1), |tree, _| Tree::list([tree]));
    let error = save_tree(&engine, &place, deep).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    for name in ["", "..", "a/b", "_milepost", "zarr.json", "__x", "é"] {
        let error = CheckpointWriter::standalone(&engine, &place)
            .item(name, Item::Json(json!(1)))
            .save_blocking()
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.get("item")),
            (ErrorKind::Invalid, Some(name)),
            "{error:?}"
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn odd_keys_come_back_and_case_is_noted() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let place = engine.place(dir.path().join("ckpt").to_str().unwrap(), &[]).unwrap();
    let long = "x".repeat(500);
    let odd = ["", ".", "..", "a/b", "zarr.json", "c.0", "__x", "%41", "é\u{1F600}", "\n\0", &long];
    let keys = odd.iter().zip(0..).map(|(key, i)| ((*key).to_owned(), scalar(i)));
    let tree = Tree::dict([
        ("odd", Tree::dict(keys)),
        ("case", Tree::dict([("Weight", scalar(1)), ("weight", scalar(2))])),
        ("numbers", Tree::dict([(-3, scalar(1)), (7, scalar(2))])),
    ]);
    let saved = save_tree(&engine, &place, tree.clone()).unwrap();
    let notes = &saved.record.notes;
    assert!(
        notes.iter().any(|n| n.contains("case/Weight") && n.contains("case/weight")),
        "{notes:?}"
    );
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    assert_eq!(&checkpoint.record().notes, notes);
    let restored = checkpoint.restore_blocking("state").unwrap();
    assert_eq!(restored.leaf_count(), tree.leaf_count());
    for ((path, data), (wanted, leaf)) in restored.leaves().zip(tree.leaves()) {
        assert_eq!(path, wanted);
        assert_eq!(data.shape, leaf.shape());
        let alone = checkpoint.leaf_blocking("state", &path.to_string()).unwrap();
        assert_eq!(*alone.read_blocking().unwrap().bytes, *data.bytes, "{path}");
    }
    assert!(checkpoint.verify_blocking().unwrap().findings.is_empty());
}

#[test]
fn trees_without_leaves_and_bare_leaves_come_back() {
    let engine = engine();
    let empty = || Tree::dict(Vec::<(String, Tree<Leaf>)>::new());
    let trees = [
        empty(),
        Tree::list([]),
        Tree::None,
        Tree::tuple([Tree::None, empty(), Tree::list([Tree::list([])])]),
        scalar(5),
        Tree::leaf(Leaf::from_vec(Vec::<f32>::new(), &[0]).unwrap()),
    ];
    for (i, tree) in trees.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let place = engine.place(dir.path().join("ckpt").to_str().unwrap(), &[]).unwrap();
        save_tree(&engine, &place, tree.clone()).unwrap();
        let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
        let restored = checkpoint.restore_blocking("state").unwrap();
        let shape = |tree: Tree<()>| tree;
        assert_eq!(shape(restored.map(drop)), shape(tree.map(drop)), "tree {i}");
        let report = checkpoint.verify_blocking().unwrap();
        assert!(report.findings.is_empty(), "tree {i}: {:?}", report.findings);
    }
}
