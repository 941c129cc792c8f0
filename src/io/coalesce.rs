//! Merges byte ranges of one object into requests. Pure.
//!
//! Ranges that follow each other within the store's gap become one request, up to the store's part size; a
//! single range larger than that stays whole, because its destination is one piece. Ranges that overlap (a
//! hostile shard index may say so) are never merged.

use std::ops::Range;

/// How far merging goes for one store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoalesceOptions {
    /// The widest gap that is read and thrown away, in bytes.
    pub(crate) gap_bytes_max: u64,
    /// The longest merged request, in bytes.
    pub(crate) request_bytes_max: u64,
}

/// Groups sorted positions of `ranges` (all of one object) into requests.
///
/// `order` lists positions sorted by start. Each returned slice of it is one request.
pub(crate) fn coalesce(
    ranges: &[Range<u64>],
    order: &[usize],
    options: CoalesceOptions,
) -> Vec<Range<usize>> {
    let mut requests = Vec::new();
    let mut first = 0;
    for i in 1..=order.len() {
        let joins = i < order.len() && {
            let (start, end) = (ranges[order[first]].start, ranges[order[i - 1]].end);
            let next = &ranges[order[i]];
            next.start >= end
                && next.start - end <= options.gap_bytes_max
                && next.end - start <= options.request_bytes_max
        };
        if !joins {
            requests.push(first..i);
            first = i;
        }
    }
    if order.is_empty() { Vec::new() } else { requests }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ranges: &[Range<u64>], gap: u64, max: u64) -> Vec<Range<usize>> {
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_by_key(|i| (ranges[*i].start, ranges[*i].end));
        coalesce(ranges, &order, CoalesceOptions { gap_bytes_max: gap, request_bytes_max: max })
    }

    #[test]
    fn neighbours_join_within_the_gap_and_the_part_size() {
        assert_eq!(run(&[0..10, 10..20, 25..30, 100..110], 5, 1000), [0..3, 3..4]);
        assert_eq!(run(&[0..10, 10..20, 20..30], 5, 20), [0..2, 2..3]);
        assert_eq!(run(&[0..10, 16..20], 5, 1000), [0..1, 1..2]);
        assert_eq!(run(&[0..5000, 9000..9001], 5, 20), [0..1, 1..2]);
        assert!(run(&[], 5, 20).is_empty());
    }

    #[test]
    fn overlapping_ranges_are_separate_requests() {
        assert_eq!(run(&[0..10, 5..15, 15..20], 0, 1000), [0..1, 1..3]);
    }
}
