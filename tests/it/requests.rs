//! What an operation costs in requests, counted at the store.

use milepost::{
    Checkpoint, CheckpointWriter, Engine, FaultStore, Item, Leaf, MemoryStore, Place, Run,
    SaveOptions, Tree, Verb,
};
use std::sync::{Arc, Mutex};

const LEAVES: u32 = 20_000;

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(64 << 20).build().unwrap()
}

/// A memory store that tells which keys it was asked for.
struct Watched {
    store: Arc<FaultStore>,
    asked: Arc<Mutex<Vec<(Verb, String)>>>,
}

impl Watched {
    fn new() -> Self {
        let watched = Self { store: FaultStore::new(MemoryStore::new()), asked: Arc::default() };
        let asked = Arc::clone(&watched.asked);
        watched.store.set_rule(move |operation| {
            asked.lock().unwrap().push((operation.verb, operation.key.clone()));
            None
        });
        watched
    }

    fn place(&self, prefix: &str) -> Place {
        let store = Arc::clone(&self.store);
        Place::new(store, prefix)
    }

    /// Returns what was asked for since the last call.
    fn take(&self) -> Vec<(Verb, String)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn tiny(i: u32) -> Tree<Leaf> {
    Tree::leaf(Leaf::from_vec(vec![i, i + 1], &[2]).unwrap())
}

fn small_chunks() -> Leaf {
    Leaf::from_vec((0..1_u32 << 20).collect(), &[1024, 1024])
        .unwrap()
        .with_chunk_shape(vec![1, 1024])
        .with_shard_shape(vec![512, 1024])
}

fn is_index(key: &str) -> bool {
    key.contains("/_milepost/")
}

#[test]
fn one_parameter_of_20000_leaves_costs_three_requests_and_never_the_index() {
    let engine = engine();
    let watched = Watched::new();
    let place = watched.place("one");
    let layers = (0..LEAVES / 100).map(|layer| {
        let leaves = (0..100).map(|i| (format!("w{i}"), tiny(layer * 100 + i)));
        (format!("layer{layer}"), Tree::dict(leaves))
    });
    let tree = Tree::dict(
        layers.chain([("big".to_owned(), Tree::dict([("shard", Tree::leaf(small_chunks()))]))]),
    );
    CheckpointWriter::standalone(&engine, &place)
        .item("state", Item::Tree(tree))
        .save_blocking()
        .unwrap();
    watched.take();

    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    assert_eq!(watched.take(), [(Verb::Get, "one/zarr.json".to_owned())]);

    let leaf = checkpoint.leaf_blocking("state", "layer123/w45").unwrap();
    let data = leaf.read_blocking().unwrap();
    assert_eq!(data.to_vec::<u32>().unwrap(), [12_345, 12_346]);
    let asked = watched.take();
    assert!(asked.len() <= 2, "{asked:?}");
    assert!(asked.iter().all(|(_, key)| !is_index(key)), "{asked:?}");

    let leaf = checkpoint.leaf_blocking("state", "big/shard").unwrap();
    let row = leaf.select("700").unwrap();
    let data = leaf.read_selection_blocking(&row).unwrap();
    assert_eq!(data.to_vec::<u32>().unwrap(), (700 * 1024..701 * 1024).collect::<Vec<u32>>());
    let asked = watched.take();
    assert!(asked.len() <= 3, "{asked:?}");
    assert!(asked.iter().all(|(_, key)| !is_index(key)), "{asked:?}");

    let restored = checkpoint.restore_blocking("state").unwrap();
    assert_eq!(restored.leaf_count(), LEAVES as usize + 1);
    let asked = watched.take();
    let documents = asked.iter().filter(|(_, key)| key.ends_with("zarr.json")).count();
    assert_eq!(
        documents, 1,
        "a whole restore reads no documents, but the record once more at its end"
    );
    assert_eq!(asked.iter().filter(|(_, key)| is_index(key)).count(), 1, "one index");
    // A read a leaf; of the two shards each an index and one read; the index and the record.
    assert_eq!(asked.len(), 2 + LEAVES as usize + 4);
}

#[test]
fn a_shard_of_many_small_chunks_is_read_in_few_requests() {
    let engine = engine();
    let watched = Watched::new();
    let place = watched.place("small");
    CheckpointWriter::standalone(&engine, &place)
        .item("state", Item::Tree(Tree::dict([("w", Tree::leaf(small_chunks()))])))
        .save_blocking()
        .unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    watched.take();
    let leaf = checkpoint.leaf_blocking("state", "w").unwrap();
    let data = leaf.read_blocking().unwrap();
    assert_eq!(data.to_vec::<u32>().unwrap(), (0..1 << 20).collect::<Vec<u32>>());
    let asked = watched.take();
    // The document, two shard indexes, and 512 chunks each as one read.
    assert_eq!(asked.len(), 5, "{asked:?}");

    // A column touches every chunk, and is read in as few.
    let column = leaf.select("256:768,7").unwrap();
    let data = leaf.read_selection_blocking(&column).unwrap();
    let expected: Vec<u32> = (256..768).map(|row| row * 1024 + 7).collect();
    assert_eq!(data.to_vec::<u32>().unwrap(), expected);
    assert_eq!(watched.take().len(), 2, "two reads; the handle knows the shard indexes by now");
}

#[test]
fn listing_1000_steps_is_one_listing_and_a_record_each() {
    let engine = engine();
    let watched = Watched::new();
    let place = watched.place("run");
    for step in 0..1000_u32 {
        let tree = Tree::dict([("a", tiny(step)), ("b", Tree::dict([("c", tiny(step))]))]);
        CheckpointWriter::step(&engine, &place, step.into())
            .item("state", Item::Tree(tree))
            .options(SaveOptions::default())
            .save_blocking()
            .unwrap();
    }
    watched.take();
    watched.store.reset_counts();
    let steps = Run::new(&engine, &place).steps_blocking().unwrap();
    assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    let asked = watched.take();
    let lists = asked.iter().filter(|(verb, _)| *verb == Verb::List).count();
    assert_eq!(lists, 1);
    let mut records: Vec<_> =
        asked.iter().filter(|(verb, _)| *verb == Verb::Get).map(|(_, key)| key.clone()).collect();
    records.sort();
    let mut wanted: Vec<_> = (0..1000).map(|step| format!("run/{step}/zarr.json")).collect();
    wanted.sort();
    assert_eq!(records, wanted);
    assert_eq!(asked.len(), 1001, "nothing else");
    let bytes = watched.store.count(Verb::Get).bytes;
    assert!(bytes < 1000 * 4096, "records are small: {bytes}");
}
