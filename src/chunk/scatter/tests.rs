#![expect(clippy::cast_possible_truncation, reason = "test data is small, or wraps on purpose")]

use super::*;
use crate::buffer::Buffer;
use proptest::prelude::*;

/// Copies element by element with full index arithmetic: what `copy_box` must equal.
fn naive(
    source: &(&[u8], &[u64], &Subset),
    target: &mut (&mut [u8], &[u64], &Subset),
    item: usize,
) {
    let linear = |shape: &[u64], start: &[u64], index: &[u64]| {
        let axes = shape.iter().zip(start).zip(index);
        axes.fold(0, |at, ((n, s), i)| at * n + s + i) as usize * item
    };
    if source.2.is_empty() {
        return;
    }
    let mut index = vec![0; source.1.len()];
    loop {
        let from = linear(source.1, source.2.start(), &index);
        let to = linear(target.1, target.2.start(), &index);
        target.0[to..to + item].copy_from_slice(&source.0[from..from + item]);
        if !super::super::grid::advance(&mut index, source.2.shape()) {
            return;
        }
    }
}

fn counted(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8 + 1).collect()
}

#[test]
fn whole_trailing_axes_are_one_run() {
    let runs = |source: &[u64], target: &[u64], part: &[u64]| {
        let part = Subset::whole(part).unwrap();
        let mut lengths = Vec::new();
        Copy::new((source, &part), (target, &part), 2).each_run(|_, _, run| lengths.push(run));
        lengths
    };
    assert_eq!(runs(&[4, 5, 6], &[3, 5, 6], &[3, 5, 6]), [180]);
    assert_eq!(runs(&[4, 5, 6], &[3, 7, 6], &[3, 5, 6]), [60; 3]);
    assert_eq!(runs(&[4, 5, 6], &[4, 5, 7], &[1, 5, 6]), [12; 5]);
    assert_eq!(runs(&[], &[], &[]), [2]);
    assert_eq!(runs(&[3, 4], &[3, 4], &[0, 4]), [0; 0]);
}

#[test]
fn contiguous_boxes_are_known_as_runs() {
    let run = |shape: &[u64], start: &[u64], part: &[u64]| {
        contiguous_run(shape, &Subset::new(start.to_vec(), part.to_vec()).unwrap())
    };
    assert_eq!(run(&[4, 6], &[1, 0], &[2, 6]), Some(6..18));
    assert_eq!(run(&[4, 6], &[1, 2], &[1, 3]), Some(8..11));
    assert_eq!(run(&[4, 6], &[1, 2], &[2, 3]), None);
    assert_eq!(run(&[2, 3, 4], &[1, 0, 0], &[1, 2, 4]), Some(12..20));
    assert_eq!(run(&[2, 3, 4], &[0, 0, 0], &[2, 1, 4]), None);
    assert_eq!(run(&[], &[], &[]), Some(0..1));
    assert_eq!(run(&[3, 0], &[0, 0], &[3, 0]), Some(0..0));
}

#[test]
fn gathering_leaves_the_padding_alone() {
    let source = counted(6);
    let mut chunk = [9u8; 9];
    let part = Subset::new(vec![1, 1], vec![1, 2]).unwrap();
    gather(Block::new(&source, &[2, 3], 1), &part, &mut BlockMut::new(&mut chunk, &[3, 3], 1));
    assert_eq!(chunk, [5, 6, 9, 9, 9, 9, 9, 9, 9]);
}

#[test]
fn threads_fill_their_parts_of_one_target() {
    let grid = Arc::new(Grid::new(&[7, 9], &[3, 4]).unwrap());
    let array = counted(63);
    let subset = Subset::new(vec![1, 2], vec![5, 6]).unwrap();
    let region = Region::from(Buffer::zeroed(30));
    let (target, parts) = SharedTarget::divide(region, 1, Arc::clone(&grid), subset.clone());
    let target = target.into_region().expect_err("the parts live");
    std::thread::scope(|scope| {
        for mut part in parts {
            let (grid, array) = (Arc::clone(&grid), &array);
            scope.spawn(move || {
                let mut chunk = vec![0; 12];
                let whole = Block::new(array, &[7, 9], 1);
                let chunk_box = grid.chunk_box(part.chunk());
                gather(whole, &chunk_box, &mut BlockMut::new(&mut chunk, &[3, 4], 1));
                part.scatter(Block::new(&chunk, &[3, 4], 1));
            });
        }
    });
    let mut expected = vec![0; 30];
    naive(
        &(&array, &[7, 9], &subset),
        &mut (&mut expected, &[5, 6], &Subset::whole(&[5, 6]).unwrap()),
        1,
    );
    assert_eq!(&*target.into_region().expect("the parts are gone"), expected);
}

#[test]
fn parts_that_are_runs_are_written_in_place_and_others_filled() {
    let grid = Arc::new(Grid::new(&[4, 6], &[2, 6]).unwrap());
    let region = Region::from(Buffer::zeroed(48));
    let (target, parts) = SharedTarget::divide(region, 2, grid, Subset::whole(&[4, 6]).unwrap());
    for (number, mut part) in parts.enumerate() {
        let run = part.as_run().expect("rows are a run");
        assert_eq!(run.len(), 24);
        run.fill(number as u8 + 1);
    }
    let region = target.into_region().unwrap();
    assert!(region[..24].iter().all(|b| *b == 1) && region[24..].iter().all(|b| *b == 2));
    let grid = Arc::new(Grid::new(&[4, 6], &[4, 3]).unwrap());
    let (target, mut parts) =
        SharedTarget::divide(region, 2, grid, Subset::whole(&[4, 6]).unwrap());
    let mut left = parts.next().unwrap();
    assert!(left.as_run().is_none());
    left.fill(&[7, 8]);
    drop((left, parts));
    let region = target.into_region().unwrap();
    assert_eq!(&region[..12], [7, 8, 7, 8, 7, 8, 1, 1, 1, 1, 1, 1]);
}

#[test]
#[should_panic(expected = "as long as its shape")]
fn a_block_of_another_length_is_a_bug() {
    let _block = Block::new(&[0; 5], &[2, 3], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]

    #[test]
    fn copies_equal_the_naive_loop(
        // Per axis: length of the part, room before and after it in source and in target.
        axes in proptest::collection::vec((0u64..5, 0u64..3, 0u64..3, 0u64..3, 0u64..3), 0..5),
        item in 1usize..5,
    ) {
        let part: Vec<u64> = axes.iter().map(|a| a.0).collect();
        let place = |room: Vec<(u64, u64)>| {
            let shape = part.iter().zip(&room).map(|(n, (before, after))| before + n + after);
            let start = room.iter().map(|(before, _)| *before).collect();
            (shape.collect::<Vec<u64>>(), Subset::new(start, part.clone()).unwrap())
        };
        let (source_shape, source_part) = place(axes.iter().map(|a| (a.1, a.2)).collect());
        let (target_shape, target_part) = place(axes.iter().map(|a| (a.3, a.4)).collect());
        let source = counted(block_bytes(&source_shape, item));
        let mut expected = vec![0; block_bytes(&target_shape, item)];
        let mut actual = expected.clone();
        naive(
            &(&source, &source_shape, &source_part),
            &mut (&mut expected, &target_shape, &target_part),
            item,
        );
        copy_box(
            Block::new(&source, &source_shape, item),
            &source_part,
            &mut BlockMut::new(&mut actual, &target_shape, item),
            &target_part,
        );
        prop_assert_eq!(actual, expected);
    }

    #[test]
    fn parts_cover_every_byte_of_the_target_once(
        axes in proptest::collection::vec((1u64..7, 1u64..4, 0u64..7, 0u64..7), 0..4),
    ) {
        let shape: Vec<u64> = axes.iter().map(|a| a.0).collect();
        let chunk: Vec<u64> = axes.iter().map(|a| a.1).collect();
        let start: Vec<u64> = axes.iter().map(|a| a.2.min(a.0)).collect();
        let length = axes.iter().zip(&start).map(|(a, s)| a.3.min(a.0 - s)).collect();
        let subset = Subset::new(start, length).unwrap();
        let bytes = block_bytes(subset.shape(), 1);
        let region = Region::from(Buffer::zeroed(bytes));
        let grid = Arc::new(Grid::new(&shape, &chunk).unwrap());
        let (target, parts) = SharedTarget::divide(region, 1, grid, subset);
        let mut covered = 0;
        for mut part in parts {
            covered += part.in_target().elements();
            prop_assert_eq!(part.in_target().shape(), part.in_chunk().shape());
            part.fill(&[1]);
        }
        prop_assert_eq!(covered, bytes as u64);
        prop_assert!(target.into_region().unwrap().iter().all(|b| *b == 1));
    }
}
