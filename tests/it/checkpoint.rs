//! Whole checkpoints through the public API: saved, found, restored, verified.

use milepost::{
    CastRule, Checkpoint, CheckpointWriter, Engine, ErrorKind, Item, Leaf, MatchOptions, Place,
    SaveOptions, Select, Tree, formats::zarr3::Compressor, open,
};
use std::sync::Arc;

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(64 << 20).build().unwrap()
}

fn floats(n: u32, seed: u32) -> Vec<f32> {
    (0..n)
        .map(|i| f32::from_bits(0x3f00_0000 | (i.wrapping_mul(2_654_435_761) ^ seed) >> 10))
        .collect()
}

fn state() -> Tree<Leaf> {
    Tree::dict([
        (
            "params",
            Tree::dict([
                ("w", Tree::leaf(Leaf::from_vec(floats(3000 * 1000, 1), &[3000, 1000]).unwrap())),
                ("b", Tree::leaf(Leaf::from_vec(floats(1000, 2), &[1000]).unwrap())),
                ("empty", Tree::leaf(Leaf::from_vec(Vec::<f32>::new(), &[0, 7]).unwrap())),
                ("cube", Tree::leaf(Leaf::from_vec(floats(7 * 11 * 13, 3), &[7, 11, 13]).unwrap())),
            ]),
        ),
        (
            "opt",
            Tree::tuple([
                Tree::leaf(Leaf::int(7).unwrap()),
                Tree::None,
                Tree::dict(Vec::<(String, Tree<Leaf>)>::new()),
                Tree::leaf(Leaf::text("adam")),
            ]),
        ),
    ])
}

fn save(engine: &Arc<Engine>, run: &Place, step: u64, options: SaveOptions) -> milepost::Saved {
    CheckpointWriter::step(engine, run, step)
        .item("state", Item::Tree(state()))
        .item("config", Item::Json(serde_json::json!({"lr": 0.1})))
        .metric("loss", f64::NAN)
        .options(options)
        .save_blocking()
        .unwrap()
}

fn check(checkpoint: &Checkpoint) {
    let tree = checkpoint.restore_blocking("state").unwrap();
    let wanted = state();
    let mut count = 0;
    for ((path, data), (wanted_path, leaf)) in tree.leaves().zip(wanted.leaves()) {
        assert_eq!(path, wanted_path);
        assert_eq!(data.shape, leaf.shape());
        assert_eq!(data.data_type, leaf.data_type());
        count += 1;
    }
    assert_eq!(count, 6);
    let w = checkpoint.leaf_blocking("state", "params/w").unwrap();
    assert_eq!(w.read_blocking().unwrap().to_vec::<f32>().unwrap(), floats(3_000_000, 1));
    let slice = w.select("10:2000:7, 5").unwrap();
    let got = w.read_selection_blocking(&slice).unwrap();
    let all = floats(3_000_000, 1);
    let expected: Vec<f32> = (10..2000).step_by(7).map(|i| all[i * 1000 + 5]).collect();
    assert_eq!(got.shape, [expected.len() as u64]);
    assert_eq!(got.to_vec::<f32>().unwrap(), expected);
    let box_of_rows = milepost::Subset::new(vec![100, 0], vec![50, 1000]).unwrap();
    let reused = futures::executor::block_on(
        w.read_into(&box_of_rows, milepost::Buffer::zeroed(50 * 1000 * 4)),
    );
    assert_eq!(reused.unwrap()[..4], all[100_000].to_le_bytes());
    let short = futures::executor::block_on(w.read_into(&box_of_rows, milepost::Buffer::zeroed(8)));
    assert_eq!(short.unwrap_err().kind(), ErrorKind::Invalid);
    let report = checkpoint.verify_blocking().unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn a_step_is_saved_found_restored_and_verified_with_every_codec_and_store() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let local = engine.place(dir.path().to_str().unwrap(), &[]).unwrap();
    let memory = engine.place("memory://it/run", &[]).unwrap();
    for (n, codec) in
        ["none", "zstd:1", "gzip:1", "blosc", "blosc:zstd:3:bitshuffle"].into_iter().enumerate()
    {
        let compressor: Compressor = codec.parse().unwrap();
        for run in [&local, &memory] {
            for (m, shard_bytes) in [None, Some(0)].into_iter().enumerate() {
                let options = SaveOptions { compressor, shard_bytes, ..SaveOptions::default() };
                save(&engine, run, (10 * n + m) as u64, options);
                check(&open_newest(&engine, run));
            }
        }
    }
    assert_eq!(engine.budget().used(), 0);
    assert!(engine.budget().high_water() <= engine.budget().limit());
}

fn open_newest(engine: &Arc<Engine>, run: &Place) -> Checkpoint {
    futures::executor::block_on(open(engine, run)).unwrap()
}

#[test]
fn an_existing_step_is_refused_and_overwritten_only_on_purpose() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let run = engine.place(dir.path().to_str().unwrap(), &[]).unwrap();
    save(&engine, &run, 1, SaveOptions::default());
    let again = CheckpointWriter::step(&engine, &run, 1)
        .item("state", Item::Tree(state()))
        .save_blocking()
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let options = SaveOptions { overwrite: true, ..SaveOptions::default() };
    save(&engine, &run, 1, options);
    check(&open_newest(&engine, &run));
    let left = std::fs::read_dir(dir.path().join(".milepost/tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of the attempts");
}

#[test]
fn a_selection_keeps_the_containers_and_a_target_is_checked_before_reading() {
    let engine = engine();
    let run = engine.place("memory://select/run", &[]).unwrap();
    save(&engine, &run, 3, SaveOptions::default());
    let checkpoint = open_newest(&engine, &run);
    let index = checkpoint.item_index_blocking("state").unwrap();
    let select = Select::new(["params/*", "!params/w"]).unwrap();
    let tree = futures::executor::block_on(index.restore(&select)).unwrap();
    let paths: Vec<_> = tree.leaves().map(|(path, _)| path.to_string()).collect();
    assert_eq!(paths, ["params/b", "params/empty", "params/cube"]);

    let mut target = index.specs().map(milepost::TargetLeaf::from);
    let restored = futures::executor::block_on(index.restore_into(
        &target,
        &MatchOptions::default(),
        CastRule::SameKind,
    ));
    assert_eq!(restored.unwrap().leaf_count(), 6);
    let bad = milepost::TargetLeaf { shape: Some(vec![5]), ..Default::default() };
    let path = milepost::KeyPath::from(vec![
        milepost::Key::Name("params".into()),
        milepost::Key::Name("bias".into()),
    ]);
    target.insert_path(&path, Tree::leaf(bad)).unwrap();
    let error = futures::executor::block_on(index.restore_into(
        &target,
        &MatchOptions::default(),
        CastRule::SameKind,
    ))
    .unwrap_err();
    assert!(error.to_string().contains("params/bias"), "{error}");
}
