//! Content hashes: the definition of decisions/0003, written out.

use crate::read;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

fn sizes(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

/// Calls `f` with every position of a grid, in C order.
fn each(counts: &[u64], f: &mut dyn FnMut(&[u64])) {
    for n in 0..counts.iter().product() {
        let mut rest = n;
        let mut position = vec![0; counts.len()];
        for axis in (0..counts.len()).rev() {
            position[axis] = rest % counts[axis];
            rest /= counts[axis];
        }
        f(&position);
    }
}

/// Returns the box of cell `position` of a grid of `step` that begins at `origin`, clipped at `end`.
fn cell(position: &[u64], step: &[u64], origin: &[u64], end: &[u64]) -> (Vec<u64>, Vec<u64>) {
    (0..step.len())
        .map(|i| {
            let start = origin[i] + position[i] * step[i];
            (start, (start + step[i]).min(end[i]))
        })
        .unzip()
}

/// Returns the bytes of a box of the array whose element `i` is `3 * i`.
fn bytes(shape: &[u64], start: &[u64], end: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    let counts: Vec<u64> = start.iter().zip(end).map(|(a, b)| b - a).collect();
    each(&counts, &mut |position| {
        let element = (0..shape.len()).fold(0, |n, i| n * shape[i] + start[i] + position[i]);
        out.extend(u16::try_from(3 * element).unwrap().to_le_bytes());
    });
    out
}

fn counts(start: &[u64], end: &[u64], step: &[u64]) -> Vec<u64> {
    (0..step.len()).map(|i| (end[i] - start[i]).div_ceil(step[i])).collect()
}

#[test]
fn content_hashes_cover_the_in_bounds_bytes_of_each_chunk() {
    for entry in read("content_hash.json") {
        let shape = sizes(&entry["shape"]);
        let chunk = sizes(&entry["chunk_shape"]);
        let shard = entry["shard_shape"].as_array().map(|_| sizes(&entry["shard_shape"]));
        let zero = vec![0; shape.len()];
        let grid = shard.as_ref().unwrap_or(&chunk);
        let mut hashes = Vec::new();
        each(&counts(&zero, &shape, grid), &mut |position| {
            let (start, end) = cell(position, grid, &zero, &shape);
            if shard.is_none() {
                hashes.push(xxh3_128(&bytes(&shape, &start, &end)));
                return;
            }
            let mut digests = Vec::new();
            each(&counts(&start, &end, &chunk), &mut |inner| {
                let (start, end) = cell(inner, &chunk, &start, &end);
                digests.extend(xxh3_128(&bytes(&shape, &start, &end)).to_le_bytes());
            });
            hashes.push(xxh3_128(&digests));
        });
        let hex: Vec<Value> = hashes.iter().map(|h| format!("{h:032x}").into()).collect();
        assert_eq!(entry["content"], Value::Array(hex), "{entry}");
    }
}
