//! Opaque items, custom handlers, run documents and the names of steps.

use futures::executor::block_on;
use milepost::{
    Checkpoint, CheckpointWriter, Engine, Error, ErrorKind, Found, Handlers, Item, ItemHandler,
    Leaf, MemoryStore, ObjectStoreAdapter, Opaque, Outcome, Place, Remote, Run, RunOptions,
    StepFormat, StepFormats, Tree, find,
    formats::{
        index::{Index, Key, Node},
        record::{ItemKind, Root},
    },
    open,
};
use serde_json::{Map, Value, json};
use std::{
    any::Any,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    sync::Arc,
};
use tempfile::TempDir;

/// What is done to a file.
type Change<'a> = &'a dyn Fn(&Path);

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(16 << 20).build().unwrap()
}

fn noise(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The files of a small source tree; the large one is more than the budget has room for.
const FILES: [(&str, u32); 6] = [
    ("a b/zarr.json", 5),
    ("a b/é %.txt", 11),
    ("empty", 0),
    ("large.bin", 21 << 20),
    ("nested/deep/er/config.json", 300),
    ("tokenizer.model", 5000),
];

fn source() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in FILES {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(bytes)).unwrap();
    }
    fs::create_dir_all(dir.path().join("nested/nothing")).unwrap();
    dir
}

fn local(engine: &Arc<Engine>, dir: &TempDir) -> Place {
    engine.place(dir.path().join("run").to_str().unwrap(), &[]).unwrap()
}

fn buckets(name: &str) -> Place {
    let inner = Arc::new(object_store::memory::InMemory::new());
    Place::new(Arc::new(ObjectStoreAdapter::new(inner, "memory://theirs", Remote::new())), name)
}

fn save(engine: &Arc<Engine>, run: &Place, step: u64, item: Item) -> milepost::Result<Checkpoint> {
    let saved = CheckpointWriter::step(engine, run, step).item("files", item).save_blocking()?;
    Checkpoint::open_blocking(engine, &saved.place)
}

fn opaque(path: &Path) -> Item {
    Item::Opaque(Opaque::from_path(path).unwrap())
}

fn check_files(into: &Path) {
    for (name, bytes) in FILES {
        assert!(fs::read(into.join(name)).unwrap() == noise(bytes), "{name}");
    }
    assert_eq!(fs::read_dir(into.join("nested/nothing")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(into).unwrap().count(), 5, "nothing else is there");
}

#[test]
fn a_tree_of_files_comes_back_from_every_store_within_the_budget() {
    let (dir, files) = (tempfile::tempdir().unwrap(), source());
    for store in ["local", "memory", "buckets"] {
        let engine = engine();
        let run = match store {
            "local" => local(&engine, &dir),
            "memory" => Place::new(MemoryStore::new(), "run"),
            _ => buckets("run"),
        };
        let checkpoint = save(&engine, &run, 1, opaque(files.path())).unwrap();
        let entry = checkpoint.item("files").unwrap();
        assert_eq!((entry.kind, entry.leaves), (ItemKind::Opaque, 6));
        assert_eq!((&entry.handler, &entry.metadata), (&None, &Value::Null));
        let listed = checkpoint.opaque_files_blocking("files").unwrap();
        let wanted = FILES.map(|(name, bytes)| (name.to_owned(), u64::from(bytes)));
        assert_eq!(listed, wanted);
        let into = tempfile::tempdir().unwrap();
        let paths =
            checkpoint.restore_files_blocking("files", into.path().join("new/x"), false).unwrap();
        assert_eq!(paths.len(), 6);
        assert_eq!(paths[0], into.path().join("new/x/a b/zarr.json"));
        check_files(&into.path().join("new/x"));
        for path in ["", "a%20b"] {
            let error = checkpoint.leaf_blocking("files", path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.hint_text().is_some_and(|h| h.contains("%7Aarr.json")), "{error:?}");
        }
        let leaf = checkpoint.leaf_blocking("files", "a%20b/%7Aarr.json").unwrap();
        assert_eq!(leaf.read_blocking().unwrap().bytes[..], noise(5)[..]);
        let saved = engine.budget().high_water();
        assert!(checkpoint.verify_blocking().unwrap().findings.is_empty());
        assert_eq!(engine.budget().used(), 0);
        // An object store gets a shard as one request, which runs alone where it is larger than the budget.
        let bounded = saved <= engine.budget().limit() || store == "buckets";
        assert!(bounded, "{store}: {saved} bytes");
    }
}

#[test]
fn a_single_file_and_an_empty_directory_are_items_too() {
    let (engine, files) = (engine(), source());
    let run = Place::new(MemoryStore::new(), "run");
    let one = save(&engine, &run, 1, opaque(&files.path().join("tokenizer.model"))).unwrap();
    assert_eq!(one.opaque_files_blocking("files").unwrap(), [("tokenizer.model".to_owned(), 5000)]);
    let none = save(&engine, &run, 2, opaque(&files.path().join("nested/nothing"))).unwrap();
    let into = tempfile::tempdir().unwrap();
    let into = into.path().join("there");
    assert!(none.restore_files_blocking("files", &into, false).unwrap().is_empty());
    assert_eq!(fs::read_dir(&into).unwrap().count(), 0);
    let other = CheckpointWriter::step(&engine, &run, 3).item("j", Item::Json(json!(1)));
    let place = other.save_blocking().unwrap().place;
    let other = Checkpoint::open_blocking(&engine, &place).unwrap();
    let error = other.restore_files_blocking("j", &into, false).unwrap_err();
    assert_eq!((error.kind(), error.hint_text()), (ErrorKind::Invalid, Some("it is a json")));
}

#[test]
fn what_is_no_plain_tree_of_files_is_refused_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("sub/file"), b"content").unwrap();
    symlink(path.join("sub/file"), path.join("link")).unwrap();
    assert_eq!(Opaque::from_path(&path).unwrap().data_bytes(), 14, "a link to a file is followed");
    let refuse = |name: &Path, kind: ErrorKind| {
        let error = Opaque::from_path(&path).unwrap_err();
        let file = error.get("file").unwrap().to_owned();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(file, path.join(name).display().to_string(), "{error}");
        fs::remove_file(path.join(name)).unwrap();
    };
    symlink(path.join("sub"), path.join("sub/loop")).unwrap();
    refuse(Path::new("sub/loop"), ErrorKind::Invalid);
    symlink("/nowhere/at/all", path.join("dangling")).unwrap();
    refuse(Path::new("dangling"), ErrorKind::NotFound);
    let socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
    refuse(Path::new("socket"), ErrorKind::Invalid);
    drop(socket);
    for name in [&b"\xff\xfe"[..], b"back\\slash"] {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        fs::write(path.join(name), b"").unwrap();
        refuse(name, ErrorKind::Invalid);
    }
    let missing = Opaque::from_path(dir.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    Opaque::from_path(&path).unwrap();
}

#[test]
fn a_file_that_changes_fails_the_save_unless_it_was_captured() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let run = Place::new(MemoryStore::new(), "run");
    let file = dir.path().join("file");
    let changes: [(&str, Change<'_>); 5] = [
        ("shrank", &|f| fs::write(f, noise(10)).unwrap()),
        ("grew", &|f| fs::write(f, noise(2000)).unwrap()),
        ("is gone", &|f| fs::remove_file(f).unwrap()),
        ("was replaced", &|f| {
            fs::write(f.with_extension("new"), noise(1000)).unwrap();
            fs::rename(f.with_extension("new"), f).unwrap();
        }),
        ("was rewritten", &|f| {
            let file = fs::File::options().write(true).open(f).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
    ];
    for (step, (what, change)) in (1..).zip(changes) {
        fs::write(&file, noise(1000)).unwrap();
        let opaque = Opaque::from_path(&file).unwrap();
        let scratch = dir.path().join("scratch");
        let captured = opaque.clone().captured(&scratch).unwrap();
        change(&file);
        let error = save(&engine, &run, step, Item::Opaque(opaque.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error}");
        let named = std::error::Error::source(&error).is_some() || error.get("file").is_some();
        assert!(named && format!("{error:?}").contains("file"), "{what}: {error:?}");
        assert_eq!(error.get("item"), Some("files"), "{what}: {error:?}");
        assert_eq!(opaque.captured(&scratch).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 1, "a failed copy is removed");
        let twin = captured.clone().captured(Path::new("/nowhere")).unwrap();
        drop(captured);
        let checkpoint = save(&engine, &run, step, Item::Opaque(twin)).unwrap();
        let data = checkpoint.leaf_blocking("files", "file").unwrap().read_blocking().unwrap();
        assert_eq!(data.bytes[..], noise(1000)[..], "{what}");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "gone with the last clone");
    }
}

#[test]
fn files_that_are_there_are_replaced_only_on_purpose_and_damage_leaves_none() {
    let (engine, dir, files) = (engine(), tempfile::tempdir().unwrap(), source());
    let checkpoint = save(&engine, &local(&engine, &dir), 1, opaque(files.path())).unwrap();
    let into = dir.path().join("into");
    fs::create_dir_all(&into).unwrap();
    fs::write(into.join("tokenizer.model"), b"mine").unwrap();
    fs::write(into.join("other"), b"mine").unwrap();
    let error = checkpoint.restore_files_blocking("files", &into, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.get("file").unwrap().ends_with("into/tokenizer.model"), "{error}");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 2, "nothing was written");
    assert_eq!(fs::read(into.join("tokenizer.model")).unwrap(), b"mine");

    let chunk = dir.path().join("run/1/files/tokenizer.model/c.0");
    let good = fs::read(&chunk).unwrap();
    let mut bad = good.clone();
    bad[1234] ^= 4;
    fs::write(&chunk, bad).unwrap();
    let report = checkpoint.verify_blocking().unwrap();
    let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
    assert_eq!(finding.outcome, Outcome::Corrupt);
    assert_eq!(
        (finding.item.as_deref(), finding.leaf.as_deref()),
        (Some("files"), Some("tokenizer.model"))
    );
    let error = checkpoint.restore_files_blocking("files", &into, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 2, "no file in part");

    fs::write(&chunk, good).unwrap();
    checkpoint.restore_files_blocking("files", &into, true).unwrap();
    fs::remove_file(into.join("other")).unwrap();
    check_files(&into);
}

/// Changes the index of a step's only item, with every hash as it should be.
fn forge(step: &Path, change: impl FnOnce(&mut Index)) {
    let Root::Checkpoint { record, .. } =
        Root::parse(&fs::read(step.join("zarr.json")).unwrap()).unwrap()
    else {
        panic!("no checkpoint")
    };
    let mut record = *record;
    let entry = &mut record.items[0];
    let chunk = step.join("_milepost/files/c.0");
    let mut index = Index::parse_chunk(&fs::read(&chunk).unwrap(), entry.index_json_bytes).unwrap();
    change(&mut index);
    let stored = index.to_chunk().unwrap();
    fs::write(&chunk, &stored.chunk).unwrap();
    fs::write(step.join("_milepost/files/zarr.json"), &stored.document).unwrap();
    entry.index_bytes = stored.chunk.len() as u64;
    entry.index_json_bytes = stored.json_bytes;
    entry.index_hash = xxhash_rust::xxh3::xxh3_128(&stored.chunk);
    fs::write(step.join("zarr.json"), record.to_document().unwrap()).unwrap();
}

#[test]
fn a_hostile_name_writes_nothing_anywhere() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let run = local(&engine, &dir);
    fs::write(dir.path().join("plain"), b"content").unwrap();
    let name = |text: &str| Key::Name(text.to_owned());
    let long = "n".repeat(256);
    let hashed = milepost::KeyPath::from([long.as_str()]).to_string();
    for (step, (key, node)) in (1..).zip([
        (name(".."), "%2E%2E"),
        (name("."), "%2E"),
        (name(""), "%"),
        (name("../../outside"), "..%2F..%2Foutside"),
        (name("/etc/outside"), "%2Fetc%2Foutside"),
        (name("sub/outside"), "sub%2Foutside"),
        (name("back\\slash"), "back%5Cslash"),
        (name("nul\0"), "nul%00"),
        (name(&long), hashed.as_str()),
        (Key::Int(7), "7"),
    ]) {
        save(&engine, &run, step, opaque(&dir.path().join("plain"))).unwrap();
        forge(&dir.path().join(format!("run/{step}")), |index| {
            let Node::Branch { children, .. } = &mut index.root else { panic!("no dict") };
            children[0].0 = key.clone();
            let files = dir.path().join(format!("run/{step}/files"));
            fs::rename(files.join("plain"), files.join(node)).unwrap();
            node.clone_into(&mut index.leaves[0].path);
        });
        let checkpoint = Checkpoint::open_blocking(&engine, &run.join(&step.to_string())).unwrap();
        let data = checkpoint.leaf_blocking("files", node).unwrap().read_blocking().unwrap();
        assert_eq!(data.bytes[..], *b"content", "the forgery is else good");
        let into = dir.path().join("a/b/into");
        let error = checkpoint.restore_files_blocking("files", &into, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{key:?}: {error}");
        let error = checkpoint.opaque_files_blocking("files").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{key:?}: {error}");
        assert!(!dir.path().join("a").exists(), "{key:?}: nothing was written");
    }
}

#[test]
fn a_size_that_an_index_only_claims_takes_no_memory_and_leaves_no_file() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let run = local(&engine, &dir);
    fs::write(dir.path().join("plain"), b"content").unwrap();
    for (step, bytes) in [(1, 1 << 30), (2, 1 << 60), (3, 8)] {
        save(&engine, &run, step, opaque(&dir.path().join("plain"))).unwrap();
        forge(&dir.path().join(format!("run/{step}")), |index| {
            index.leaves[0].shape = vec![bytes];
            index.leaves[0].chunk_shape = vec![bytes];
        });
        let checkpoint = Checkpoint::open_blocking(&engine, &run.join(&step.to_string())).unwrap();
        let into = dir.path().join("into");
        let error = checkpoint.restore_files_blocking("files", &into, false).unwrap_err();
        println!("{bytes}: {error:?}");
        let left = fs::read_dir(&into).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{bytes}");
        assert!(!checkpoint.verify_blocking().unwrap().is_good());
    }
}

/// A value that only its handler knows.
#[derive(Debug, PartialEq)]
struct Vocabulary(Vec<String>);

struct VocabularyHandler(&'static str);

impl ItemHandler for VocabularyHandler {
    fn name(&self) -> &str {
        self.0
    }
    fn handles(&self, value: &dyn Any) -> bool {
        value.is::<Vocabulary>()
    }
    fn save(&self, value: &dyn Any, directory: &Path) -> milepost::Result<()> {
        let Vocabulary(words) = value.downcast_ref().unwrap();
        if words.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "no words"));
        }
        fs::create_dir(directory.join("parts")).unwrap();
        for (i, word) in words.iter().enumerate() {
            fs::write(directory.join(format!("parts/{i}")), word).unwrap();
        }
        Ok(())
    }
    fn restore(&self, directory: &Path) -> milepost::Result<Box<dyn Any + Send>> {
        let count = fs::read_dir(directory.join("parts")).unwrap().count();
        let word = |i| fs::read_to_string(directory.join(format!("parts/{i}"))).unwrap();
        Ok(Box::new(Vocabulary((0..count).map(word).collect())))
    }
    fn metadata(&self, value: &dyn Any) -> milepost::Result<Value> {
        let Vocabulary(words) = value.downcast_ref().unwrap();
        Ok(json!({"words": words.len()}))
    }
}

fn handlers(names: &[&'static str]) -> Handlers {
    let mut handlers = Handlers::default();
    for name in names {
        handlers.register(Arc::new(VocabularyHandler(name))).unwrap();
    }
    handlers
}

#[test]
fn a_custom_item_is_restored_by_the_handler_that_the_record_names() {
    let (engine, scratch) = (engine(), tempfile::tempdir().unwrap());
    let run = Place::new(MemoryStore::new(), "run");
    let words = || Vocabulary(["one", "two", ""].map(str::to_owned).to_vec());
    let known = handlers(&["old", "vocabulary"]);
    let item = known.item(&words(), scratch.path()).unwrap();
    let saved = CheckpointWriter::step(&engine, &run, 1)
        .item("vocabulary", item)
        .item("files", opaque(Path::new(file!())))
        .item("w", Item::Array(Leaf::from_vec(vec![1.0_f32], &[1]).unwrap()))
        .item_metadata("w", json!({"unit": "m"}))
        .save_blocking()
        .unwrap();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "the scratch is removed");

    let checkpoint = Checkpoint::open_blocking(&engine, &saved.place).unwrap();
    let entry = checkpoint.item("vocabulary").unwrap();
    assert_eq!(entry.handler.as_deref(), Some("vocabulary"), "the last one registered");
    assert_eq!(entry.metadata, json!({"words": 3}), "read with the record");
    assert_eq!(checkpoint.item("w").unwrap().metadata, json!({"unit": "m"}));
    let fresh = handlers(&["vocabulary"]);
    let restored = checkpoint.restore_custom_blocking("vocabulary", &fresh).unwrap();
    assert_eq!(*restored.downcast::<Vocabulary>().unwrap(), words());

    let error = checkpoint.restore_custom_blocking("vocabulary", &handlers(&["old"])).unwrap_err();
    assert_eq!((error.kind(), error.get("handler")), (ErrorKind::Unsupported, Some("vocabulary")));
    assert!(error.hint_text().unwrap().contains("restore_files"));
    let error = checkpoint.restore_custom_blocking("files", &fresh).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint_text().unwrap().contains("restore_files"));
}

#[test]
fn a_registry_refuses_two_of_a_name_and_values_that_nobody_handles() {
    let scratch = tempfile::tempdir().unwrap();
    let mut known = handlers(&["a", "b"]);
    let twice = known.register(Arc::new(VocabularyHandler("a"))).unwrap_err();
    assert_eq!((twice.kind(), twice.get("handler")), (ErrorKind::AlreadyExists, Some("a")));
    let empty = known.register(Arc::new(VocabularyHandler(""))).unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::Invalid);
    let error = known.item(&7_u8, scratch.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = known.item(&Vocabulary(vec![]), scratch.path()).unwrap_err();
    assert_eq!((error.message(), error.get("handler")), ("no words", Some("b")));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

fn value(n: u32) -> Item {
    Item::Tree(Tree::dict([("n", Tree::leaf(Leaf::from_vec(vec![n], &[1]).unwrap()))]))
}

#[test]
fn metadata_that_cannot_be_recorded_fails_before_a_byte_is_written() {
    let engine = engine();
    let run = Place::new(MemoryStore::new(), "run");
    let writer = || CheckpointWriter::step(&engine, &run, 1).item("state", value(1));
    let large = writer().item_metadata("state", json!("x".repeat(2 << 20))).save_blocking();
    assert_eq!(large.unwrap_err().kind(), ErrorKind::Invalid);
    let astray = writer().item_metadata("other", json!(1)).save_blocking().unwrap_err();
    assert_eq!(astray.get("item"), Some("other"));
    assert!(block_on(run.store().list_all("run")).unwrap().is_empty());
}

fn options(prefix: &str, width: usize, model: &str) -> RunOptions {
    let metadata = Map::from_iter([("model".to_owned(), json!(model))]);
    RunOptions { format: Some(StepFormat::new(prefix, width).unwrap()), metadata }
}

#[test]
fn a_run_keeps_the_format_and_metadata_it_was_created_with() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    for place in [local(&engine, &dir), buckets("run")] {
        let create = |options: &RunOptions| block_on(Run::create(&engine, &place, options));
        let run = create(&options("step_", 6, "first")).unwrap();
        for step in [7, 1_000_000, 30] {
            run.writer(step).item("state", value(1)).save_blocking().unwrap();
        }
        // Who knows the place only uses the run's format, too.
        save(&engine, &place, 12, value(1)).unwrap();
        let names = block_on(place.store().list(place.prefix())).unwrap().prefixes;
        let wanted = ["step_000007", "step_000012", "step_000030", "step_1000000"];
        let steps: Vec<_> = names.iter().filter(|name| !name.starts_with('.')).collect();
        assert_eq!(steps, wanted);

        let opened = block_on(Run::open(&engine, &place)).unwrap();
        assert_eq!(opened.metadata()["model"], json!("first"));
        let steps = opened.steps_blocking().unwrap();
        assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), [7, 12, 30, 1_000_000]);
        assert_eq!(block_on(open(&engine, &place)).unwrap().record().step, Some(1_000_000));
        let Found::Run(found) = block_on(find(&engine, &place)).unwrap() else { panic!("a run") };
        assert_eq!(block_on(found.step(30)).unwrap().record().step, Some(30));
        let error = block_on(found.step(13)).unwrap_err();
        assert_eq!(error.hint_text(), Some("the nearest are 12 and 30"), "{error}");
        assert!(Run::new(&engine, &place).steps_blocking().unwrap().is_empty(), "plain numbers");

        let again = create(&options("step_", 6, "second")).unwrap();
        assert_eq!(again.metadata()["model"], json!("first"), "written once");
        assert_eq!(create(&RunOptions::default()).unwrap().formats(), run.formats());
        let other = create(&options("s", 0, "first")).unwrap_err();
        assert_eq!(other.kind(), ErrorKind::AlreadyExists, "{other}");
        assert_eq!((other.get("format"), other.get("asked")), (Some("step_000000"), Some("s")));
    }
}

#[test]
fn several_formats_are_read_and_the_one_that_writes_wins() {
    let engine = engine();
    let place = Place::new(MemoryStore::new(), "run");
    let run = block_on(Run::create(&engine, &place, &RunOptions::default())).unwrap();
    for step in [5, 10] {
        run.writer(step).item("state", value(1)).save_blocking().unwrap();
    }
    let format = |prefix: &str, width| StepFormat::new(prefix, width).unwrap();
    let formats = StepFormats { write: format("s-", 4), read: vec![format("", 0)] };
    let run = run.with_formats(formats).unwrap();
    for step in [10, 20] {
        run.writer(step).item("state", value(2)).save_blocking().unwrap();
    }
    let steps = run.steps_blocking().unwrap();
    let names: Vec<_> = steps.iter().map(|s| (s.step, s.place.name())).collect();
    assert_eq!(names, [(5, "5"), (10, "s-0010"), (20, "s-0020")]);
    let bad = StepFormat { prefix: "x1".into(), width: 0 };
    assert_eq!(run.with_formats(bad).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn revisions_of_a_named_step_are_found_by_its_plain_name() {
    let engine = engine();
    let place = buckets("run");
    let run = block_on(Run::create(&engine, &place, &options("step-", 3, "m"))).unwrap();
    let save = |n, overwrite| {
        let options = milepost::SaveOptions { overwrite, ..Default::default() };
        run.writer(9).item("state", value(n)).options(options).save_blocking().unwrap().place
    };
    assert_eq!(save(1, false).name(), "step-009");
    assert_eq!(save(2, true).name(), "step-009.r1");
    let steps = run.steps_blocking().unwrap();
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].place.name(), "step-009.r1");
    match block_on(find(&engine, &place.join("step-009"))).unwrap() {
        Found::Checkpoint(checkpoint) => assert_eq!(checkpoint.place().name(), "step-009.r1"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_whose_format_is_unknown_is_not_guessed_at() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let place = local(&engine, &dir);
    save(&engine, &place, 1, value(1)).unwrap();
    let file = dir.path().join("run/zarr.json");
    let mut document: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    document["attributes"]["milepost"]["step_format"] = json!({"template": "%d"});
    fs::write(&file, document.to_string()).unwrap();
    for error in [
        block_on(Run::open(&engine, &place)).unwrap_err(),
        block_on(find(&engine, &place)).unwrap_err(),
        block_on(open(&engine, &place)).unwrap_err(),
        save(&engine, &place, 2, value(1)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.get("run").is_some(), "{error}");
    }
    let known = Run::new(&engine, &place);
    known.writer(2).item("state", value(1)).save_blocking().unwrap();
    assert_eq!(known.steps_blocking().unwrap().len(), 2, "who knows better may say so");
}
