//! Random meshes, shardings and replica counts are saved by several and restored into other ones, bit-exact.

use super::job::engine;
use futures::executor::block_on;
use milepost::{
    CastRule, Checkpoint, Clock, DataType, InProcess, Item, Leaf, MemoryStore, ParticipantWriter,
    Place, SaveOptions, Subset, SystemClock, Tree, WantedBox,
};
use std::sync::Arc;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A leaf and the box that each participant holds of it.
struct Sharded {
    shape: Vec<u64>,
    held: Vec<Subset>,
}

/// Divides some axes of a leaf over some axes of a mesh; over the others it is replicated.
fn sharded(random: &mut Random, mesh: &[u64]) -> Sharded {
    let rank = usize::try_from(1 + random.below(3)).unwrap();
    let mut parts = vec![1; rank];
    // Which axis of the leaf each axis of the mesh divides, if any.
    let divides: Vec<Option<usize>> = mesh
        .iter()
        .map(|n| {
            let axis = usize::try_from(random.below(rank as u64 + 1)).unwrap();
            (axis < rank).then(|| parts[axis] *= n).map(|()| axis)
        })
        .collect();
    let lengths: Vec<u64> = parts.iter().map(|_| 1 + random.below(7)).collect();
    // Often the last part is shorter.
    let cut = |(n, length): (&u64, &u64), random: &mut Random| {
        n * length - if *n > 1 { random.below(*length) } else { 0 }
    };
    let shape: Vec<u64> = parts.iter().zip(&lengths).map(|both| cut(both, random)).collect();
    let count: u64 = mesh.iter().product();
    let held = (0..count).map(|participant| {
        let (mut rest, mut position) = (participant, vec![0; rank]);
        for (n, axis) in mesh.iter().zip(&divides) {
            if let Some(axis) = axis {
                position[*axis] = position[*axis] * n + rest % n;
            }
            rest /= n;
        }
        let start: Vec<u64> = position.iter().zip(&lengths).map(|(p, length)| p * length).collect();
        let end = start.iter().zip(&lengths).zip(&shape).map(|((s, l), n)| (s + l).min(*n));
        let extent = end.zip(&start).map(|(end, start)| end - start).collect();
        Subset::new(start, extent).unwrap()
    });
    Sharded { held: held.collect(), shape }
}

fn values(place: &Subset, shape: &[u64]) -> Vec<u32> {
    let mut out = Vec::new();
    for element in 0..place.elements() {
        let (mut rest, mut linear, mut stride) = (element, 0, 1);
        for axis in (0..shape.len()).rev() {
            linear += (place.start()[axis] + rest % place.shape()[axis]) * stride;
            rest /= place.shape()[axis];
            stride *= shape[axis];
        }
        out.push(u32::try_from(linear).unwrap().wrapping_mul(0x9E37_79B9));
    }
    out
}

#[test]
fn any_mesh_is_restored_into_any_other() {
    let seed = std::env::var("MILEPOST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(20_261_122);
    println!("MILEPOST_SEED={seed}");
    let engine = engine();
    for case in 0..60 {
        let mut random = Random(seed + case);
        let mesh = [1 + random.below(3), 1 + random.below(4)];
        let leaves: Vec<Sharded> = (0..4).map(|_| sharded(&mut random, &mesh)).collect();
        let run = Place::new(MemoryStore::new(), "run");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let count = usize::try_from(mesh[0] * mesh[1]).unwrap();
        let chunk_bytes = 16 + random.below(200);
        let saves =
            InProcess::group(count, &clock).into_iter().enumerate().map(|(index, member)| {
                let leaf = |leaf: &Sharded| {
                    let own = leaf.held[index].clone();
                    let block = values(&own, &leaf.shape).into_iter().flat_map(u32::to_le_bytes);
                    let block: Vec<u8> = block.collect();
                    let held = vec![(own, block.into())];
                    Leaf::from_held_boxes(DataType::UInt32, leaf.shape.clone(), held).unwrap()
                };
                let named =
                    leaves.iter().enumerate().map(|(i, l)| (format!("l{i}"), Tree::leaf(leaf(l))));
                let options = SaveOptions { chunk_bytes, ..SaveOptions::default() };
                ParticipantWriter::step(&engine, &run, 1, Arc::new(member))
                    .item("state", Item::Tree(Tree::dict(named)))
                    .options(options)
                    .save()
            });
        for saved in block_on(futures::future::join_all(saves)) {
            saved.unwrap();
        }
        let checkpoint = Checkpoint::open_blocking(&engine, &run.join("1")).unwrap();
        assert!(checkpoint.verify_blocking().unwrap().is_good(), "case {case}");
        let index = block_on(checkpoint.item_index("state")).unwrap();
        for (i, leaf) in leaves.iter().enumerate() {
            // Boxes that have nothing to do with those of the writers.
            let start: Vec<u64> = leaf.shape.iter().map(|n| random.below(*n)).collect();
            let extent = leaf.shape.iter().zip(&start).map(|(n, s)| 1 + random.below(n - s));
            let wanted = Subset::new(start.clone(), extent.collect()).unwrap();
            let part = Some(wanted.clone());
            let boxes = [WantedBox { position: i, part, data_type: None }];
            let read = block_on(index.read_boxes(&boxes, CastRule::SameKind)).unwrap();
            let read = read[0].to_vec::<u32>().unwrap();
            assert_eq!(read, values(&wanted, &leaf.shape), "case {case}, leaf {i}");
        }
    }
}
