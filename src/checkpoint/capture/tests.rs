use super::*;
use crate::{
    checkpoint::{Checkpoint, CheckpointWriter},
    error::ErrorKind,
    store::{MemoryStore, Place},
    tree::Tree,
};

fn engine() -> Arc<Engine> {
    Engine::builder().budget_bytes(8 << 20).build().unwrap()
}

fn values(n: u32) -> Vec<u32> {
    (0..n).map(|i| i.wrapping_mul(2_654_435_761)).collect()
}

/// Saves leaves of these shapes, the last one in chunks that are no runs, and reads them back.
fn round_trip(shapes: &[[u64; 2]]) -> (Arc<Engine>, bool) {
    let engine = engine();
    let place = Place::new(MemoryStore::new(), "c");
    let data: Vec<Vec<u32>> =
        shapes.iter().map(|s| values(u32::try_from(s[0] * s[1]).unwrap())).collect();
    let mut borrowed = Borrowed::new();
    let mut leaves = Vec::new();
    for (i, (values, shape)) in data.iter().zip(shapes).enumerate() {
        let mut leaf = borrowed.leaf(values, shape).unwrap();
        if i + 1 == shapes.len() {
            leaf = leaf.with_chunk_shape(vec![100, 100]);
        }
        leaves.push((format!("l{i}"), Tree::leaf(leaf)));
    }
    let mut writer =
        CheckpointWriter::standalone(&engine, &place).item("state", Item::Tree(Tree::dict(leaves)));
    let at_once = writer.clone().capture(&borrowed, &Arc::default(), false).unwrap().is_done();
    assert_eq!(engine.budget().used(), 0, "dropped copies give their memory back");
    writer = writer.progress(crate::io::Progress::default());
    let handle = writer.start(&borrowed).unwrap();
    drop(borrowed);
    let expected = data.clone();
    drop(data);
    handle.wait().unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    for (i, values) in expected.iter().enumerate() {
        let read = checkpoint.leaf_blocking("state", &format!("l{i}")).unwrap();
        assert!(read.read_blocking().unwrap().to_vec::<u32>().unwrap() == *values, "leaf {i}");
    }
    assert!(checkpoint.verify_blocking().unwrap().is_good());
    (engine, at_once)
}

#[test]
fn what_fits_half_of_the_budget_is_copied_at_once() {
    let (_, at_once) = round_trip(&[[3, 5], [250, 250], [300, 333]]);
    assert!(at_once);
}

#[test]
fn the_overflow_is_served_whatever_its_chunks_are() {
    // 4 MiB are held: the small one, and the end of the 5 MiB one; the 6 MiB one is served whole.
    let (engine, at_once) = round_trip(&[[100, 100], [1250, 1000], [1500, 1000]]);
    assert!(!at_once);
    // Half of the budget is held, and a memory store takes the largest object whole, alone.
    assert!(engine.budget().high_water() < (4 << 20) + (7 << 20));
    let (_, at_once) = round_trip(&[[100, 100], [1250, 1000]]);
    assert!(!at_once, "a leaf whose end is copied and whose chunks are no runs");
}

#[test]
fn the_memory_of_copies_serves_the_next_save_and_no_longer() {
    let (engine, copies) = (engine(), Arc::<Copies>::default());
    let data = vec![7_u8; 300_000];
    let address = |bytes: &Bytes| bytes.as_ptr();
    let first = copies.copy(&engine, &data, false).unwrap().unwrap();
    let at = address(&first);
    drop(first);
    assert_eq!(engine.budget().used(), 300_000, "idle memory stays reserved");
    let again = copies.copy(&engine, &data[..290_000], false).unwrap().unwrap();
    assert_eq!((address(&again), again.len()), (at, 290_000));
    drop(again);
    // What fits only without what is idle: that is given back first.
    let large = copies.copy(&engine, &vec![1; 4 << 20], false).unwrap().unwrap();
    assert_eq!(engine.budget().used(), 4 << 20);
    assert!(copies.copy(&engine, &data, false).unwrap().is_none(), "half of the budget is held");
    assert_eq!(copies.copy(&engine, &data, true).unwrap().unwrap(), data, "beyond the budget");
    drop(copies);
    drop(large);
    assert_eq!(engine.budget().used(), 0);
}

#[test]
fn memory_that_was_not_lent_is_refused() {
    let engine = engine();
    let place = Place::new(MemoryStore::new(), "c");
    let data = values(4);
    let mut borrowed = Borrowed::new();
    let leaf = borrowed.leaf(&data, &[2, 2]).unwrap();
    let item = || Item::Tree(Tree::dict([("w", Tree::leaf(leaf.clone()))]));
    let writer = || CheckpointWriter::standalone(&engine, &place).item("state", item());
    let error = writer().start(&Borrowed::new()).unwrap_err();
    assert_eq!((error.kind(), error.get("leaf")), (ErrorKind::Invalid, Some("w")));
    let error = writer().save_blocking().unwrap_err();
    assert_eq!((error.kind(), error.get("leaf")), (ErrorKind::Invalid, Some("w")));
    assert_eq!(borrowed.leaf(&data, &[5]).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn runs_cover_a_box_in_order() {
    let whole = Subset::whole(&[4, 6]).unwrap();
    assert_eq!(runs(&[4, 6], &whole).as_slice(), std::slice::from_ref(&(0..24)));
    let part = Subset::new(vec![1, 2], vec![2, 3]).unwrap();
    assert_eq!(runs(&[4, 6], &part), [8..11, 14..17]);
}

#[test]
fn leaves_that_are_held_between_borrowed_ones_do_not_shift_them() {
    let engine = engine();
    let place = Place::new(MemoryStore::new(), "c");
    let (one, two) = (vec![1_u8; 64], vec![2_u8; 64]);
    let mut borrowed = Borrowed::new();
    let held = |value: u8| Leaf::from_vec(vec![value; 64], &[64]).unwrap();
    let tree = Tree::list([
        Tree::leaf(held(10)),
        Tree::leaf(borrowed.leaf(&one, &[64]).unwrap()),
        Tree::leaf(held(20)),
        Tree::leaf(borrowed.leaf(&two, &[64]).unwrap()),
        Tree::leaf(Leaf::bool(true)),
    ]);
    let writer = CheckpointWriter::standalone(&engine, &place).item("state", Item::Tree(tree));
    writer.start(&borrowed).unwrap().wait().unwrap();
    let checkpoint = Checkpoint::open_blocking(&engine, &place).unwrap();
    let first = |path: &str| {
        checkpoint.leaf_blocking("state", path).unwrap().read_blocking().unwrap().bytes[0]
    };
    assert_eq!(["0", "1", "2", "3", "4"].map(first), [10, 1, 20, 2, 1]);
}
