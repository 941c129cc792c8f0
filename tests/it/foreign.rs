//! safetensors through checkpoints and back: every data type, names, several files, hostile input.

use milepost::{
    Checkpoint, Container, Engine, ErrorKind, Export, Import, Item, Leaf, Place, SaveOptions,
    Select, Tree,
    formats::safetensors::{Dtype, Order, ShardIndex, Tensor, encode_header, place},
};
use safetensors::SafeTensors;
use std::{fs, path::Path, sync::Arc};

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(8 << 20).build().expect("a part of the test")
}

fn at(engine: &Arc<Engine>, path: &Path) -> Place {
    engine.place(path.to_str().expect("a part of the test"), &[]).expect("a part of the test")
}

type Named = (String, Dtype, Vec<u64>);

/// A file of these tensors, filled with bytes that differ everywhere.
fn file(tensors: impl IntoIterator<Item = Named>, metadata: &[(&str, &str)]) -> Vec<u8> {
    let tensors: Vec<Tensor> = place(tensors, Order::AsGiven).expect("a part of the test");
    let metadata: Vec<_> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut bytes = encode_header(&tensors, &metadata).expect("a part of the test");
    let data = tensors.last().map_or(0, |t| t.end);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..data {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push(state.to_le_bytes()[3]);
    }
    bytes
}

fn named(name: &str, dtype: Dtype, shape: &[u64]) -> Named {
    (name.to_owned(), dtype, shape.to_vec())
}

/// Every data type in several shapes, in an order that no writer sorts.
fn every_dtype() -> Vec<Named> {
    let shapes: [&[u64]; 6] = [&[64], &[0], &[3, 0, 5], &[7, 4, 4], &[1, 1000, 12], &[]];
    let mut tensors = Vec::new();
    for (n, shape) in shapes.into_iter().enumerate() {
        for dtype in Dtype::ALL {
            if dtype.bytes(shape).is_some() {
                tensors.push(named(&format!("t{n}.{dtype}"), *dtype, shape));
            }
        }
    }
    tensors
}

fn export(checkpoint: &Checkpoint, out: &Place) -> Vec<u8> {
    Export::new(checkpoint, out).overwrite(true).write_blocking().expect("a part of the test");
    fs::read(out.local_path().expect("a part of the test")).expect("a part of the test")
}

fn import(
    engine: &Arc<Engine>,
    source: &Path,
    run: &Place,
    step: u64,
) -> milepost::Result<Checkpoint> {
    let saved = Import::step(engine, &at(engine, source), run, step).split(".").save_blocking()?;
    Checkpoint::open_blocking(engine, &saved.place)
}

fn paths(checkpoint: &Checkpoint) -> Vec<String> {
    let index = checkpoint.item_index_blocking("state").expect("a part of the test");
    index.leaves().iter().map(|leaf| leaf.path.clone()).collect()
}

#[test]
fn every_dtype_and_shape_comes_back_byte_for_byte_with_every_chunking_and_store() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let source = dir.path().join("all.safetensors");
    let bytes = file(every_dtype(), &[("format", "pt"), ("zz", ""), ("a", "ü\n")]);
    fs::write(&source, &bytes).unwrap();
    let local = at(&engine, &dir.path().join("run"));
    let memory = engine.place("memory://foreign/run", &[]).unwrap();
    let out = at(&engine, &dir.path().join("out.safetensors"));
    let mut step = 0;
    for (chunk_bytes, shard_bytes, codec, portable) in [
        (4 << 20, None, "none", false),
        (100, None, "none", false),
        (333, Some(0), "zstd:1", false),
        (1000, Some(5000), "blosc", true),
    ] {
        for run in [&local, &memory] {
            for split in [None, Some(".")] {
                step += 1;
                let compressor = codec.parse().unwrap();
                let options = SaveOptions {
                    chunk_bytes,
                    shard_bytes,
                    compressor,
                    portable,
                    ..Default::default()
                };
                let mut import = Import::step(&engine, &at(&engine, &source), run, step);
                if let Some(separator) = split {
                    import = import.split(separator);
                }
                let saved = import.options(options).save_blocking().unwrap();
                let checkpoint = Checkpoint::open_blocking(&engine, &saved.place).unwrap();
                assert!(export(&checkpoint, &out) == bytes, "{codec} {chunk_bytes} {split:?}");
                let report = checkpoint.verify_blocking().unwrap();
                assert!(report.is_good(), "{:?}", report.findings);
            }
        }
    }
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn packed_elements_are_a_byte_each_in_the_leaf() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let source = dir.path().join("f4.safetensors");
    let tensors = place([named("x", Dtype::F4, &[4])], Order::AsGiven).unwrap();
    let mut bytes = encode_header(&tensors, &[]).unwrap();
    bytes.extend([0x21, 0x43]);
    fs::write(&source, &bytes).unwrap();
    let run = engine.place("memory://foreign/packed", &[]).unwrap();
    let checkpoint = import(&engine, &source, &run, 1).unwrap();
    let leaf = checkpoint.leaf_blocking("state", "x").unwrap().read_blocking().unwrap();
    assert_eq!(leaf.bytes[..], [1, 2, 3, 4]);
}

#[test]
fn tensors_larger_than_the_window_stream_in_slabs() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let source = dir.path().join("large.safetensors");
    let tensors = [
        named("a", Dtype::F32, &[3_000_001]),
        named("b", Dtype::F6E2M3, &[5001, 1004]),
        named("c", Dtype::BF16, &[3, 700, 1000]),
    ];
    let bytes = file(tensors, &[]);
    fs::write(&source, &bytes).unwrap();
    let run = at(&engine, &dir.path().join("run"));
    let checkpoint = import(&engine, &source, &run, 1).unwrap();
    assert!(export(&checkpoint, &at(&engine, &dir.path().join("out.safetensors"))) == bytes);
    assert!(engine.budget().high_water() <= engine.budget().limit());
}

#[test]
fn dotted_names_become_a_tree_and_names_and_order_come_back() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let source = dir.path().join("names.safetensors");
    // Interleaved, prefixes of each other, empty parts, characters that are escaped on disk.
    let names = [
        "h.1.w",
        "x",
        "h.0.w",
        "h.1.b",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "s..t",
        ".u",
        "é/ö.w",
        "zarr.json",
        "",
    ];
    let tensors = names.iter().map(|name| named(name, Dtype::U16, &[3]));
    let bytes = file(tensors, &[]);
    fs::write(&source, &bytes).unwrap();
    let run = engine.place("memory://foreign/names", &[]).unwrap();
    let checkpoint = import(&engine, &source, &run, 1).unwrap();
    let found = paths(&checkpoint);
    assert_eq!(found[..5], ["h/1/w", "h/1/b", "h/0/w", "x", "a/b"]);
    let index = checkpoint.item_index_blocking("state").unwrap();
    let kept: Vec<_> = index.leaves().iter().filter_map(|leaf| leaf.name.as_deref()).collect();
    assert_eq!(kept, ["a.b.c", "a.b.c.d", "s..t", ".u", "é/ö.w", ""]);
    let out = at(&engine, &dir.path().join("out.safetensors"));
    assert!(export(&checkpoint, &out) == bytes);

    let select = Select::new(["h", "x"]).unwrap();
    Export::new(&checkpoint, &out).select(select).overwrite(true).write_blocking().unwrap();
    let part = fs::read(out.local_path().unwrap()).unwrap();
    let part = SafeTensors::deserialize(&part).unwrap();
    let mut names = part.names();
    names.sort_unstable();
    assert_eq!(names, ["h.0.w", "h.1.b", "h.1.w", "x"]);

    Export::new(&checkpoint, &out).separator("/").overwrite(true).write_blocking().unwrap();
    let other = fs::read(out.local_path().unwrap()).unwrap();
    assert!(SafeTensors::deserialize(&other).unwrap().tensor("h/0/w").is_ok());
}

#[test]
fn several_files_become_one_item_and_several_files_again_with_their_metadata() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let first = file(
        [named("a.w", Dtype::F32, &[100]), named("b.w", Dtype::F32, &[50])],
        &[("format", "pt"), ("part", "1")],
    );
    let second = file([named("a.b", Dtype::F32, &[100])], &[("format", "pt")]);
    let source = dir.path().join("model");
    fs::create_dir(&source).unwrap();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    fs::write(source.join(names[0]), &first).unwrap();
    fs::write(source.join(names[1]), &second).unwrap();
    let map = [("a.b", names[1]), ("a.w", names[0]), ("b.w", names[0])];
    let index = ShardIndex {
        weight_map: map.map(|(tensor, file)| (tensor.to_owned(), file.to_owned())).to_vec(),
        metadata: serde_json::from_str(r#"{"quant":{"bits":4}}"#).unwrap(),
        total_size: Some(1000),
    };
    let index = index.encode().unwrap();
    fs::write(source.join("model.safetensors.index.json"), &index).unwrap();

    let run = engine.place("memory://foreign/shards", &[]).unwrap();
    let checkpoint = import(&engine, &source, &run, 1).unwrap();
    assert_eq!(paths(&checkpoint), ["a/w", "a/b", "b/w"]);
    let out = dir.path().join("out/model.safetensors");
    let export = Export::new(&checkpoint, &at(&engine, &out)).shard_bytes(700);
    let report = export.write_blocking().unwrap();
    assert_eq!((report.files.len(), report.tensors, report.data_bytes), (3, 3, 1000));
    for (name, wanted) in
        [(names[0], &first), (names[1], &second), ("model.safetensors.index.json", &index)]
    {
        assert!(fs::read(out.with_file_name(name)).unwrap() == *wanted, "{name}");
    }
    let names = fs::read_dir(out.parent().unwrap()).unwrap().count();
    assert_eq!(names, 3, "nothing temporary is left");

    let single = dir.path().join("single.safetensors");
    Export::new(&checkpoint, &at(&engine, &single)).write_blocking().unwrap();
    let bytes = fs::read(&single).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["part"], "1");
    assert_eq!(header.offset_keys(), ["a.w", "b.w", "a.b"], "the order of the files");
}

fn mixed() -> Tree<Leaf> {
    Tree::dict([
        ("w", Tree::leaf(Leaf::from_vec(vec![1.0_f32, 2.0], &[2]).expect("a part of the test"))),
        ("n", Tree::leaf(Leaf::int(7).expect("a part of the test"))),
        (
            "layers",
            Tree::list([
                Tree::leaf(Leaf::from_vec(vec![1_u8], &[1]).expect("a part of the test")),
                Tree::None,
            ]),
        ),
        ("z", Tree::leaf(Leaf::complex(1.0, 2.0))),
        ("name", Tree::leaf(Leaf::text("adam"))),
        ("raw", Tree::leaf(Leaf::bytes(vec![1, 2]))),
        (
            "key",
            Tree::leaf(
                Leaf::from_vec(vec![1_u32, 2], &[2])
                    .expect("a part of the test")
                    .prng_key("threefry2x32"),
            ),
        ),
        ("empty", Tree::tuple([])),
    ])
}

fn save(engine: &Arc<Engine>, place: &str, tree: Tree<Leaf>) -> Checkpoint {
    let place = engine.place(place, &[]).expect("a part of the test");
    let writer = milepost::CheckpointWriter::standalone(engine, &place);
    let saved = writer.item("state", Item::Tree(tree)).save_blocking().expect("a part of the test");
    Checkpoint::open_blocking(engine, &saved.place).expect("a part of the test")
}

#[test]
fn what_the_format_cannot_hold_is_named_at_once_and_skipped_only_on_request() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let checkpoint = save(&engine, "memory://foreign/mixed", mixed());
    let out = dir.path().join("out.safetensors");
    let error = Export::new(&checkpoint, &at(&engine, &out)).write_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let wanted =
        ["layers/1 (None)", "z (complex128)", "name (text)", "raw (bytes)", "threefry2x32"];
    for leaf in wanted.into_iter().chain(["empty (an empty container)"]) {
        assert!(error.get("leaves").unwrap().contains(leaf), "{leaf}: {error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let export = Export::new(&checkpoint, &at(&engine, &out)).skip_unsupported(true);
    let report = export.write_blocking().unwrap();
    assert_eq!((report.tensors, report.skipped.len()), (3, 6));
    let bytes = fs::read(&out).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.offset_keys(), ["n", "w", "layers.0"], "the reference order: aligned");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("n").unwrap().data(), 7_i64.to_le_bytes());
    assert!(file.tensor("n").unwrap().shape().is_empty());
}

#[test]
fn two_leaves_of_one_name_are_an_error_that_names_both() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let leaf = || Tree::leaf(Leaf::from_vec(vec![1_u8], &[1]).unwrap());
    let tree = Tree::dict([("a.b", leaf()), ("a", Tree::dict([("b", leaf())]))]);
    let checkpoint = save(&engine, "memory://foreign/same", tree);
    let out = at(&engine, &dir.path().join("out.safetensors"));
    let error = Export::new(&checkpoint, &out).write_blocking().unwrap_err();
    assert_eq!((error.get("leaf"), error.get("other")), (Some("a.b"), Some("a/b")));
    Export::new(&checkpoint, &out).separator("/").write_blocking().unwrap();
}

#[test]
fn an_existing_output_is_refused_and_a_failed_export_leaves_it_as_it_was() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let root = dir.path().join("ckpt");
    let leaf = Leaf::from_vec((0..3_000_000_u32).collect(), &[3_000_000]).unwrap();
    let checkpoint = save(&engine, root.to_str().unwrap(), Tree::dict([("w", Tree::leaf(leaf))]));
    let out = dir.path().join("out.safetensors");
    fs::write(&out, "mine").unwrap();
    let refused = Export::new(&checkpoint, &at(&engine, &out)).write_blocking().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);

    let chunk = root.join("state/w/c.0");
    let mut bytes = fs::read(&chunk).unwrap();
    bytes[5_000_000] ^= 1;
    fs::write(&chunk, &bytes).unwrap();
    let export = Export::new(&checkpoint, &at(&engine, &out)).overwrite(true);
    let error = export.write_blocking().unwrap_err();
    assert_eq!((error.kind(), error.get("leaf")), (ErrorKind::Corrupt, Some("w")));
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    bytes[5_000_000] ^= 1;
    fs::write(&chunk, &bytes).unwrap();
    Export::new(&checkpoint, &at(&engine, &out)).overwrite(true).write_blocking().unwrap();
    assert_eq!(fs::metadata(&out).unwrap().len() % 12_000_000 / 1000, 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");

    let shards = Export::new(&checkpoint, &at(&engine, &dir.path().join("ckpt.safetensors")));
    shards.shard_bytes(1).write_blocking().unwrap();
    fs::create_dir(dir.path().join("folder.safetensors")).unwrap();
    let folder = at(&engine, &dir.path().join("folder.safetensors"));
    let error = Export::new(&checkpoint, &folder).overwrite(true).write_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "a directory is never replaced: {error}");
}

#[test]
fn a_store_of_whole_objects_takes_files_that_fit_and_names_the_way_out_for_others() {
    let engine = engine();
    let leaf = |n: u32| Tree::leaf(Leaf::from_vec((0..n).collect(), &[n.into()]).unwrap());
    let tree = Tree::dict([("a", leaf(700_000)), ("b", leaf(700_000))]);
    let checkpoint = save(&engine, "memory://foreign/whole", tree);
    let out = engine.place("memory://foreign/whole-out/x.safetensors", &[]).unwrap();
    let error = Export::new(&checkpoint, &out).write_blocking().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.hint_text().unwrap().contains("--shard-bytes"));
    let report = Export::new(&checkpoint, &out).shard_bytes(3 << 20).write_blocking().unwrap();
    assert_eq!(report.files.len(), 3);
    let target = engine.place("memory://foreign/whole-back", &[]).unwrap();
    let saved = Import::standalone(&engine, &out.parent(), &target).save_blocking().unwrap();
    assert_eq!(saved.data_bytes, 5_600_000);
}

#[test]
fn a_file_without_tensors_and_an_array_item_have_their_place() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let source = dir.path().join("empty.safetensors");
    let bytes = file([], &[("a", "b")]);
    fs::write(&source, &bytes).unwrap();
    let run = engine.place("memory://foreign/empty", &[]).unwrap();
    let checkpoint = import(&engine, &source, &run, 1).unwrap();
    let specs = checkpoint.item_index_blocking("state").unwrap().specs();
    assert!(matches!(specs, Tree::Branch { container: Container::Dict, .. }));
    let out = at(&engine, &dir.path().join("out.safetensors"));
    assert!(export(&checkpoint, &out) == bytes);

    let place = engine.place("memory://foreign/array", &[]).unwrap();
    let writer = milepost::CheckpointWriter::standalone(&engine, &place);
    let leaf = Leaf::from_vec(vec![1_i16, 2], &[2]).unwrap();
    let saved = writer.item("weights", Item::Array(leaf)).save_blocking().unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &saved.place).unwrap();
    let bytes = export(&checkpoint, &out);
    assert!(SafeTensors::deserialize(&bytes).unwrap().tensor("weights").is_ok());
}

#[test]
fn hostile_files_are_refused_by_name_and_nothing_is_visible() {
    use ErrorKind::{Corrupt, Invalid, NotFound, Unsupported};
    let engine = engine();
    let hostile = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let cases = [
        ("short.safetensors", Corrupt, "8 bytes"),
        ("header_beyond_file.safetensors", Corrupt, "beyond the file"),
        ("header_huge.safetensors", Corrupt, "limit"),
        ("header_not_json.safetensors", Corrupt, "not a safetensors header"),
        ("header_not_utf8.safetensors", Corrupt, "UTF-8"),
        ("name_twice.safetensors", Corrupt, "twice"),
        ("hole.safetensors", Corrupt, "\"b\""),
        ("overlap.safetensors", Corrupt, "\"b\""),
        ("ends_before_it_begins.safetensors", Corrupt, "\"a\""),
        ("wrong_size.safetensors", Corrupt, "takes 8 bytes"),
        ("shape_overflows.safetensors", Corrupt, "overflows"),
        ("offsets_overflow.safetensors", Corrupt, "\"a\""),
        ("data_missing.safetensors", Corrupt, "file has"),
        ("data_left_over.safetensors", Corrupt, "file has"),
        ("unknown_dtype.safetensors", Unsupported, "Q4_K"),
        ("half_a_byte.safetensors", Corrupt, "end at a byte"),
        ("rank_65.safetensors", Corrupt, "64 dimensions"),
        ("negative_shape.safetensors", Corrupt, "not a safetensors header"),
        ("metadata_not_text.safetensors", Corrupt, "not a safetensors header"),
        ("index_leaves_directory", Corrupt, "not a file name"),
        ("index_without_file", NotFound, "gone.safetensors"),
        ("index_names_absent_tensor", Corrupt, "tensor=`b`"),
        ("index_lacks_tensor", Corrupt, "tensor=`a`"),
        ("index_names_other_file", Corrupt, "tensor=`b`"),
        (".", Invalid, "name the one"),
        ("make.py", Unsupported, "22 22 22"),
        ("nothing", NotFound, "nothing"),
    ];
    let run = engine.place("memory://foreign/hostile", &[]).unwrap();
    for (case, kind, wanted) in cases {
        let error = import(&engine, &hostile.join(case), &run, 1).map(drop).expect_err(case);
        assert_eq!(error.kind(), kind, "{case}: {error}");
        let text = format!("{error:?}");
        assert!(text.contains(wanted), "{case}: {text}");
        assert!(error.get("source").is_some(), "{case}: {text}");
    }
    let listing = futures::executor::block_on(run.store().list_all(run.prefix())).unwrap();
    assert!(listing.is_empty(), "{listing:?}");
    let files = fs::read_dir(&hostile).unwrap().count();
    assert_eq!(files, cases.len() - 2, "every fixture is a case");
}
