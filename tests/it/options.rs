//! Every way to store an array, and what the documents say about it.

use futures::executor::block_on;
use half::bf16;
use milepost::{
    ArrayData, CastRule, Checkpoint, CheckpointWriter, DataType, Engine, ErrorKind, Item, Leaf,
    MatchOptions, MemoryStore, Place, Priority, SaveOptions, Select, Span, Subset, TargetLeaf,
    Tree, formats::zarr3::Compressor,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc};

const CODECS: [&str; 6] =
    ["none", "zstd:3", "gzip:1", "blosc", "blosc:zstd:3:bitshuffle", "blosc:lz4:5:noshuffle"];

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(32 << 20).build().unwrap()
}

fn memory() -> Place {
    Place::new(MemoryStore::new(), "ckpt")
}

fn save_item(engine: &Arc<Engine>, item: Item, options: SaveOptions) -> Checkpoint {
    let place = memory();
    CheckpointWriter::standalone(engine, &place)
        .item("state", item)
        .options(options)
        .save_blocking()
        .unwrap();
    let checkpoint = Checkpoint::open_blocking(engine, &place).unwrap();
    let report = checkpoint.verify_blocking().unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
    checkpoint
}

fn save(engine: &Arc<Engine>, tree: Tree<Leaf>, options: SaveOptions) -> Checkpoint {
    save_item(engine, Item::Tree(tree), options)
}

fn document(checkpoint: &Checkpoint, path: &str) -> Value {
    let key = checkpoint.place().key(path);
    let span = Span::Whole { bytes_max: 64 << 20 };
    let store = checkpoint.place().store();
    let bytes = block_on(store.get(&key, span, Priority::Restore)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn read(checkpoint: &Checkpoint, path: &str) -> ArrayData {
    checkpoint.leaf_blocking("state", path).unwrap().read_blocking().unwrap()
}

/// Bytes that are elements of the type.
fn elements(data_type: DataType, n: usize) -> Vec<u8> {
    let modulus = match data_type {
        DataType::Bool | DataType::Int2 => 2,
        DataType::UInt2 => 4,
        DataType::Int4 => 8,
        DataType::UInt4 | DataType::Float4E2M1Fn => 16,
        DataType::Float6E2M3Fn | DataType::Float6E3M2Fn => 64,
        _ => 251,
    };
    (0..n * data_type.size_bytes()).map(|i| u8::try_from(i * 7 % modulus).unwrap()).collect()
}

fn every_type() -> Vec<DataType> {
    let mut all = DataType::ALL.to_vec();
    all.extend([DataType::Raw(1), DataType::Raw(3), DataType::Raw(16)]);
    all
}

fn leaf_of(data_type: DataType, shape: &[u64]) -> Leaf {
    let n = usize::try_from(shape.iter().product::<u64>()).unwrap();
    Leaf::from_bytes(data_type, shape.to_vec(), elements(data_type, n).into()).unwrap()
}

#[test]
fn every_data_type_comes_back_whole_and_sliced_with_every_codec() {
    let engine = engine();
    for codec in CODECS {
        let leaves = every_type().into_iter().map(|data_type| {
            let chunked = leaf_of(data_type, &[13, 10]).with_chunk_shape(vec![4, 10]);
            let sharded = leaf_of(data_type, &[13, 10])
                .with_chunk_shape(vec![2, 5])
                .with_shard_shape(vec![4, 10]);
            let kinds = [
                ("chunked", Tree::leaf(chunked)),
                ("sharded", Tree::leaf(sharded)),
                ("scalar", Tree::leaf(leaf_of(data_type, &[]))),
                ("empty", Tree::leaf(leaf_of(data_type, &[0, 3]))),
                ("none", Tree::leaf(leaf_of(data_type, &[5, 0, 2]))),
            ];
            (data_type.to_string(), Tree::dict(kinds))
        });
        let compressor = codec.parse().unwrap();
        let options = SaveOptions { compressor, ..SaveOptions::default() };
        let checkpoint = save(&engine, Tree::dict(leaves), options);
        let restored = checkpoint.restore_blocking("state").unwrap();
        assert_eq!(restored.leaf_count(), every_type().len() * 5);
        for (path, data) in restored.leaves() {
            let n = data.shape.iter().product::<u64>();
            let wanted = elements(data.data_type, usize::try_from(n).unwrap());
            assert!(path.to_string().starts_with(&format!("{}/", data.data_type)), "{path}");
            assert!(*data.bytes == wanted[..], "{codec}: {path}");
        }
        for data_type in every_type() {
            let size = data_type.size_bytes();
            let all = elements(data_type, 130);
            let wanted: Vec<u8> = (3..11)
                .step_by(3)
                .flat_map(|row| all[(row * 10 + 6) * size..(row * 10 + 9) * size].to_vec())
                .collect();
            for kind in ["chunked", "sharded"] {
                let path = format!("{data_type}/{kind}");
                let leaf = checkpoint.leaf_blocking("state", &path).unwrap();
                assert_eq!(leaf.data_type(), Some(data_type));
                let selection = leaf.select("3:11:3,6:9").unwrap();
                let data = leaf.read_selection_blocking(&selection).unwrap();
                assert_eq!(data.shape, [3, 3]);
                assert!(*data.bytes == wanted[..], "{codec}: {path}");
            }
        }
    }
}

fn brain_floats() -> Vec<bf16> {
    (0..600_u16).map(|i| bf16::from_bits(i.wrapping_mul(109))).collect()
}

#[test]
fn portable_stores_integers_and_restores_what_was_saved() {
    let engine = engine();
    let tree = Tree::dict([
        ("bf", Tree::leaf(Leaf::from_vec(brain_floats(), &[20, 30]).unwrap())),
        ("f8", Tree::leaf(leaf_of(DataType::Float8E4M3Fn, &[7]))),
        ("i4", Tree::leaf(leaf_of(DataType::Int4, &[7]))),
        ("f32", Tree::leaf(leaf_of(DataType::Float32, &[7]))),
    ]);
    let options = SaveOptions { portable: true, ..SaveOptions::default() };
    let checkpoint = save(&engine, tree.clone(), options);
    for (path, stored) in [("bf", "uint16"), ("f8", "uint8"), ("i4", "int8"), ("f32", "float32")] {
        assert_eq!(document(&checkpoint, &format!("state/{path}/zarr.json"))["data_type"], stored);
    }
    assert!(document(&checkpoint, "state/zarr.json").get("consolidated_metadata").is_some());
    let restored = checkpoint.restore_blocking("state").unwrap();
    for ((path, data), (_, leaf)) in restored.leaves().zip(tree.leaves()) {
        assert_eq!(data.data_type, leaf.data_type(), "{path}");
        assert_eq!(read(&checkpoint, &path.to_string()).data_type, leaf.data_type());
    }
    let data = read(&checkpoint, "bf");
    let bits = |values: Vec<bf16>| values.into_iter().map(bf16::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(data.to_vec::<bf16>().unwrap()), bits(brain_floats()));
    // The cast starts from what was saved, not from the integers.
    let leaf = checkpoint.leaf_blocking("state", "bf").unwrap();
    let whole = Subset::whole(leaf.shape()).unwrap();
    let cast = block_on(leaf.read_as(&whole, Some(DataType::Float32), CastRule::SameKind)).unwrap();
    let wanted: Vec<u32> = brain_floats().iter().map(|x| x.to_f32().to_bits()).collect();
    let got: Vec<u32> = cast.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    assert_eq!(got, wanted);
}

#[test]
fn a_leaf_names_its_chunks_shards_order_and_codec() {
    let engine = engine();
    let values: Vec<u32> = (0..24 * 36).collect();
    let leaf = || Leaf::from_vec(values.clone(), &[24, 36]).unwrap();
    let zstd: Compressor = "zstd:2".parse().unwrap();
    let tree = Tree::dict([
        ("chunks", Tree::leaf(leaf().with_chunk_shape(vec![5, 36]))),
        ("shards", Tree::leaf(leaf().with_chunk_shape(vec![5, 9]).with_shard_shape(vec![10, 36]))),
        ("codec", Tree::leaf(leaf().with_compressor(zstd))),
        (
            "order",
            Tree::leaf(leaf().with_chunk_shape(vec![7, 5]).with_transpose(vec![1, 0]).unwrap()),
        ),
        (
            "all",
            Tree::leaf(
                leaf()
                    .with_chunk_shape(vec![4, 6])
                    .with_shard_shape(vec![12, 12])
                    .with_transpose(vec![1, 0])
                    .unwrap()
                    .with_compressor(zstd),
            ),
        ),
    ]);
    let options = SaveOptions { shard_bytes: Some(0), ..SaveOptions::default() };
    let checkpoint = save(&engine, tree, options);
    let grid = |path: &str| {
        document(&checkpoint, &format!("state/{path}/zarr.json"))["chunk_grid"]["configuration"]
            ["chunk_shape"]
            .clone()
    };
    assert_eq!(grid("chunks"), json!([5, 36]));
    assert_eq!(grid("shards"), json!([10, 36]));
    assert_eq!(grid("all"), json!([12, 12]));
    let names = |path: &str| {
        let text = document(&checkpoint, &format!("state/{path}/zarr.json"))["codecs"].to_string();
        ["sharding_indexed", "transpose", "zstd", "crc32c"].map(|name| text.contains(name))
    };
    assert_eq!(names("chunks"), [false, false, false, true]);
    assert_eq!(names("shards"), [true, false, false, true]);
    assert_eq!(names("codec"), [false, false, true, true]);
    assert_eq!(names("order"), [false, true, false, true]);
    assert_eq!(names("all"), [true, true, true, true]);
    for (path, data) in checkpoint.restore_blocking("state").unwrap().leaves() {
        assert_eq!(data.to_vec::<u32>().unwrap(), values, "{path}");
        let leaf = checkpoint.leaf_blocking("state", &path.to_string()).unwrap();
        let column = leaf.read_selection_blocking(&leaf.select("::5,17").unwrap()).unwrap();
        let wanted: Vec<u32> = (0..24).step_by(5).map(|row| row * 36 + 17).collect();
        assert_eq!(column.to_vec::<u32>().unwrap(), wanted, "{path}");
    }
}

#[test]
fn chunks_are_cut_along_the_axes_that_will_be_resharded() {
    let engine = engine();
    let leaf = Leaf::from_vec(vec![1_u32; 512 * 512], &[512, 512]).unwrap();
    let tree = Tree::dict([
        ("rows", Tree::leaf(leaf.clone())),
        ("columns", Tree::leaf(leaf.with_reshard_axes(vec![1]))),
    ]);
    let options = SaveOptions { chunk_bytes: 64 << 10, shard_bytes: Some(0), ..Default::default() };
    let checkpoint = save(&engine, tree, options);
    let index = checkpoint.item_index_blocking("state").unwrap();
    let shapes: BTreeMap<_, _> =
        index.leaves().iter().map(|l| (l.path.as_str(), l.chunk_shape.clone())).collect();
    assert!(shapes["rows"][0] < 512, "{shapes:?}");
    assert!(shapes["columns"][1] < 512 && shapes["columns"][0] >= shapes["rows"][0], "{shapes:?}");
}

#[test]
fn options_that_cannot_be_kept_are_refused_before_anything_is_written() {
    let engine = engine();
    let leaf = || Leaf::from_vec(vec![0_u32; 12], &[3, 4]).unwrap();
    assert_eq!(leaf().with_transpose(vec![0, 0]).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(leaf().with_dimension_names(vec![None]).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(Leaf::from_vec(vec![0_u32; 5], &[3, 4]).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(Leaf::int(i128::MAX).unwrap_err().kind(), ErrorKind::Invalid);
    let bad = [
        leaf().with_chunk_shape(vec![3]),
        leaf().with_chunk_shape(vec![0, 4]),
        leaf().with_shard_shape(vec![3, 4]),
        leaf().with_chunk_shape(vec![2, 2]).with_shard_shape(vec![3, 4]),
        leaf().with_reshard_axes(vec![2]),
    ];
    for leaf in bad {
        let place = memory();
        let error = CheckpointWriter::standalone(&engine, &place)
            .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(leaf.clone()))])))
            .save_blocking()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{leaf:?}: {error}");
        assert_eq!((error.get("leaf"), error.get("item")), (Some("w"), Some("state")), "{error}");
        assert!(block_on(place.store().list_all("")).unwrap().is_empty());
    }
}

#[test]
fn dimension_names_are_the_callers_where_xarray_takes_them() {
    let engine = engine();
    let leaf = |shape: &[u64], names: &[&str]| {
        let n = usize::try_from(shape.iter().product::<u64>()).unwrap();
        let names = names.iter().map(|name| Some((*name).to_owned())).collect();
        let leaf = Leaf::from_vec(vec![0_u8; n], shape).unwrap();
        Tree::leaf(leaf.with_dimension_names(names).unwrap())
    };
    let tree = Tree::dict([
        ("good", leaf(&[4, 3], &["row", "column"])),
        ("same", leaf(&[4], &["row"])),
        ("twice", leaf(&[4, 4], &["row", "row"])),
        ("size", leaf(&[5], &["row"])),
        ("sibling", leaf(&[5], &["good"])),
        ("none", Tree::leaf(Leaf::from_vec(vec![0_u8; 6], &[2, 3]).unwrap())),
        ("deep", Tree::dict([("other", leaf(&[5], &["row"]))])),
    ]);
    let checkpoint = save(&engine, tree, SaveOptions::default());
    for (path, names) in [
        ("good", json!(["row", "column"])),
        ("same", json!(["row"])),
        ("twice", json!(["twice_0", "twice_1"])),
        ("size", json!(["size_0"])),
        ("sibling", json!(["sibling_0"])),
        ("none", json!(["none_0", "none_1"])),
        ("deep/other", json!(["row"])),
    ] {
        let document = document(&checkpoint, &format!("state/{path}/zarr.json"));
        assert_eq!(document["dimension_names"], names, "{path}");
    }
}

#[test]
fn consolidated_metadata_is_there_only_where_it_helps() {
    let engine = engine();
    let leaves = |n: u32| {
        Tree::dict((0..n).map(|i| (format!("w{i}"), Tree::leaf(Leaf::int(i.into()).unwrap()))))
    };
    let brain = Tree::leaf(Leaf::from_vec(brain_floats(), &[600]).unwrap());
    let with_brain = Tree::dict([("a", Tree::leaf(Leaf::float(1.0))), ("b", brain)]);
    let never = SaveOptions { consolidate: milepost::Consolidate::Never, ..SaveOptions::default() };
    for (what, tree, options, wanted) in [
        ("few", leaves(3), SaveOptions::default(), true),
        ("1000 leaves", leaves(1000), SaveOptions::default(), true),
        ("1001 leaves", leaves(1001), SaveOptions::default(), false),
        ("bfloat16", with_brain, SaveOptions::default(), false),
        ("never", leaves(3), never, false),
    ] {
        let checkpoint = save(&engine, tree, options);
        let document = document(&checkpoint, "state/zarr.json");
        let consolidated = document.get("consolidated_metadata");
        assert_eq!(consolidated.is_some(), wanted, "{what}");
        if let Some(consolidated) = consolidated {
            let members = consolidated["metadata"].as_object().unwrap().len();
            assert_eq!(members, checkpoint.restore_blocking("state").unwrap().leaf_count());
        }
    }
}

#[test]
fn items_of_every_kind_come_back() {
    let engine = engine();
    let place = memory();
    let small = json!({"lr": 0.1, "n": [1, null, true], "text": "é", "big": u64::MAX});
    let large = json!({"vocabulary": vec!["token"; 20_000], "x": 1.5});
    let mut metadata = serde_json::Map::new();
    metadata.insert("commit".into(), json!({"id": "abc", "nested": [1, 2.5, "NaN"]}));
    CheckpointWriter::standalone(&engine, &place)
        .item("small", Item::Json(small.clone()))
        .item("large", Item::Json(large.clone()))
        .item("blob", Item::Bytes(vec![7; 100_000].into()))
        .item("nothing", Item::Bytes(Vec::new().into()))
        .item("array", Item::Array(Leaf::from_vec(vec![1.5_f32, 2.5], &[2]).unwrap()))
        .item("tree", Item::Tree(Tree::list([Tree::leaf(Leaf::text("x")), Tree::None])))
        .metadata(metadata.clone())
        .metric("loss", f64::NAN)
        .metric("best", f64::NEG_INFINITY)
        .metric("accuracy", 0.1)
        .save_blocking()
        .unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    assert!(checkpoint.verify_blocking().unwrap().findings.is_empty());
    assert_eq!(block_on(checkpoint.restore_json("small")).unwrap(), small);
    assert_eq!(block_on(checkpoint.restore_json("large")).unwrap(), large);
    assert!(block_on(checkpoint.restore_bytes("blob")).unwrap() == vec![7; 100_000]);
    assert!(block_on(checkpoint.restore_bytes("nothing")).unwrap().is_empty());
    let array = block_on(checkpoint.restore_array("array")).unwrap();
    assert_eq!(array.to_vec::<f32>().unwrap(), [1.5, 2.5]);
    assert_eq!(checkpoint.restore_blocking("tree").unwrap().leaf_count(), 1);
    let wrong = block_on(checkpoint.restore_json("blob")).unwrap_err();
    assert_eq!((wrong.kind(), wrong.get("item")), (ErrorKind::Invalid, Some("blob")));
    assert_eq!(checkpoint.item("bolb").unwrap_err().kind(), ErrorKind::NotFound);

    let record = checkpoint.record();
    assert_eq!(record.metadata["commit"], metadata["commit"]);
    let metric = |name: &str| milepost::formats::record::tagged::plain(&record.metrics[name]);
    assert_eq!(metric("accuracy"), 0.1);
    assert_eq!(metric("loss"), "NaN", "kept, not null");
    assert_eq!(metric("best"), "-Infinity");
}

#[test]
fn a_stream_gives_every_leaf_once_and_in_order_within_half_of_the_budget() {
    let engine = Engine::builder().budget_bytes(4 << 20).build().unwrap();
    let leaf = |n: u32| Leaf::from_vec(vec![n; 100_000], &[100, 1000]).unwrap();
    let tree = Tree::dict((0..40).map(|i| (format!("w{i:02}"), Tree::leaf(leaf(i)))));
    let options = SaveOptions { chunk_bytes: 100_000, ..SaveOptions::default() };
    let checkpoint = save(&engine, tree, options);
    let index = checkpoint.item_index_blocking("state").unwrap();
    let select = Select::new(["w*", "!w07"]).unwrap();
    let mut seen = Vec::new();
    block_on(index.stream(&select, |leaf, data| {
        seen.push((leaf.path.clone(), data.to_vec::<u32>()?[99_999]));
        Ok(())
    }))
    .unwrap();
    let wanted: Vec<_> = (0..40).filter(|i| *i != 7).map(|i| (format!("w{i:02}"), i)).collect();
    assert_eq!(seen, wanted);
    assert!(engine.budget().high_water() <= engine.budget().limit());
    let mut calls = 0;
    let stopped = block_on(index.stream(&Select::all(), |_, data| {
        calls += 1;
        data.to_vec::<f32>().map(drop)
    }));
    assert_eq!((stopped.unwrap_err().kind(), calls), (ErrorKind::Invalid, 1));
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn a_target_casts_within_a_kind_and_refuses_beyond_unless_asked() {
    let engine = engine();
    let doubles: Vec<f64> = (0..1000).map(|i| f64::from(i) / 7.0).collect();
    let longs: Vec<i64> = (-500..500).collect();
    let tree = Tree::dict([
        ("f", Tree::leaf(Leaf::from_vec(doubles.clone(), &[10, 100]).unwrap())),
        ("i", Tree::leaf(Leaf::from_vec(longs.clone(), &[1000]).unwrap())),
    ]);
    let checkpoint = save(&engine, tree, SaveOptions { chunk_bytes: 999, ..Default::default() });
    let index = checkpoint.item_index_blocking("state").unwrap();
    let target = |f, i| {
        let leaf = |data_type| TargetLeaf { data_type: Some(data_type), ..Default::default() };
        Tree::dict([("f", Tree::leaf(leaf(f))), ("i", Tree::leaf(leaf(i)))])
    };
    let restore = |f, i, rule| {
        block_on(index.restore_into(&target(f, i), &MatchOptions::default(), rule))
            .map(|tree| tree.into_leaves().into_iter().map(Option::unwrap).collect::<Vec<_>>())
    };
    let cast = restore(DataType::Float32, DataType::Int32, CastRule::SameKind).unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "what a cast is")]
    let singles: Vec<f32> = doubles.iter().map(|x| *x as f32).collect();
    assert_eq!(cast[0].to_vec::<f32>().unwrap(), singles);
    assert!(cast[1].to_vec::<i32>().unwrap().into_iter().map(i64::from).eq(longs.clone()));
    let half = restore(DataType::BFloat16, DataType::Float64, CastRule::SameKind).unwrap();
    let wanted: Vec<bf16> = doubles.iter().map(|x| bf16::from_f64(*x)).collect();
    assert_eq!(half[0].to_vec::<bf16>().unwrap(), wanted);
    assert!(half[1].to_vec::<f64>().unwrap().into_iter().eq((-500..500).map(f64::from)));
    let refused = restore(DataType::Int64, DataType::Int64, CastRule::SameKind).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains('f'), "{refused}");
    let asked = restore(DataType::Int64, DataType::Int64, CastRule::Unsafe).unwrap();
    assert_eq!(asked[0].to_vec::<i64>().unwrap()[999], 142);
    let overflow = restore(DataType::Float32, DataType::Int8, CastRule::SameKind).unwrap_err();
    assert_eq!(overflow.kind(), ErrorKind::Invalid, "{overflow}");
    assert_eq!(
        overflow.get("leaf"),
        Some("i"),
        "an integer that does not fit is named: {overflow}"
    );
}

fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn two_saves_of_one_tree_differ_in_the_record_alone() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<u32> = (0..1 << 19).map(|i: u32| i.wrapping_mul(2_654_435_761) >> 7).collect();
    let leaf = Leaf::from_vec(values, &[512, 1024]).unwrap();
    let codecs = CODECS.iter().map(|codec| {
        let leaf = leaf.clone().with_compressor(codec.parse().unwrap());
        let packed = leaf.clone().with_chunk_shape(vec![8, 1024]).with_shard_shape(vec![64, 1024]);
        let plain = leaf.with_chunk_shape(vec![300, 1024]);
        ((*codec).to_owned(), Tree::list([Tree::leaf(packed), Tree::leaf(plain)]))
    });
    let tree = Tree::dict(codecs);
    let saves: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|name| {
            // An engine of its own each: buffers that were used before must not show.
            let engine = engine();
            let path = dir.path().join(name);
            let place = engine.place(path.to_str().unwrap(), &[]).unwrap();
            for _ in 0..2 {
                CheckpointWriter::standalone(&engine, &place)
                    .item("state", Item::Tree(tree.clone()))
                    .item("config", Item::Json(json!({"b": 1, "a": 2})))
                    .options(SaveOptions { overwrite: true, ..SaveOptions::default() })
                    .save_blocking()
                    .unwrap();
            }
            files(&path)
        })
        .collect();
    assert_eq!(saves[0].keys().collect::<Vec<_>>(), saves[1].keys().collect::<Vec<_>>());
    let differ: Vec<_> = saves[0]
        .iter()
        .filter(|(name, bytes)| saves[1][*name] != **bytes)
        .map(|(n, _)| n)
        .collect();
    assert_eq!(differ, ["zarr.json"], "the record has times and an id");
}

#[test]
fn every_node_says_its_whole_key_path() {
    let engine = Engine::builder().budget_bytes(64 << 20).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = engine.place(dir.path().join("c").to_str().unwrap(), &[]).unwrap();
    let leaf = Tree::leaf(Leaf::int(1).unwrap());
    let tree = Tree::dict([("a", Tree::list([Tree::None, Tree::dict([("b.c/d", leaf)])]))]);
    milepost::CheckpointWriter::standalone(&engine, &target)
        .item("state", Item::Tree(tree))
        .save_blocking()
        .unwrap();
    let key = |path: &str| {
        let file = dir.path().join("c/state").join(path).join("zarr.json");
        let text = std::fs::read(file).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        document["attributes"]["milepost"]["key"].clone()
    };
    assert_eq!(key(""), serde_json::json!([]));
    assert_eq!(key("a/1"), serde_json::json!(["a", {"index": 1}]));
    assert_eq!(key("a/1/b.c%2Fd"), serde_json::json!(["a", {"index": 1}, "b.c/d"]));
}
