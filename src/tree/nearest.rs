//! Finds the paths that somebody may have meant.

/// Below this a path is not near.
const SCORE_MIN: f64 = 0.55;
/// Only this much of a path is compared: edit distance is quadratic, and input may be hostile.
const COMPARED_BYTES_MAX: usize = 128;

/// Returns up to `n` of `candidates` that are near `wanted`, the nearest first.
///
/// Near is a small edit distance, of the whole path or, where `wanted` is a tail like `dense/kernel`, of the
/// same number of last segments.
pub(crate) fn nearest<'a>(
    wanted: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    n: usize,
) -> Vec<&'a str> {
    let wanted = &wanted[..wanted.floor_char_boundary(COMPARED_BYTES_MAX)];
    if wanted.is_empty() || n == 0 {
        return Vec::new();
    }
    let segments = wanted.split('/').count();
    let mut best: Vec<(f64, &str)> = Vec::with_capacity(n + 1);
    for candidate in candidates {
        let tail = last_segments(candidate, segments);
        let whole = score(wanted, candidate);
        // A tail that fits is worth a little less than a whole path that fits as well.
        let score = if tail.len() == candidate.len() {
            whole
        } else {
            whole.max(score(wanted, tail) * 0.9)
        };
        if score < SCORE_MIN || best.len() == n && best[n - 1].0 >= score {
            continue;
        }
        let at = best.partition_point(|(other, _)| *other >= score);
        best.insert(at, (score, candidate));
        best.truncate(n);
    }
    best.into_iter().map(|(_, path)| path).collect()
}

/// Returns the hint for what [`nearest`] found.
pub(crate) fn hint(nearest: &[&str]) -> Option<String> {
    let quoted: Vec<_> = nearest.iter().map(|path| format!("`{path}`")).collect();
    (!quoted.is_empty()).then(|| format!("nearest: {}", quoted.join(", ")))
}

fn last_segments(path: &str, count: usize) -> &str {
    path.rmatch_indices('/').nth(count.saturating_sub(1)).map_or(path, |(i, _)| &path[i + 1..])
}

fn score(wanted: &str, candidate: &str) -> f64 {
    let candidate = &candidate[..candidate.floor_char_boundary(COMPARED_BYTES_MAX)];
    let (short, long) = (wanted.len().min(candidate.len()), wanted.len().max(candidate.len()));
    // The similarity cannot be above short/long; most candidates end here, unread.
    if short * 20 < long * 11 {
        return 0.0;
    }
    // Optimal string alignment: `bais` is one edit from `bias`.
    let (a, b) = differing(wanted, candidate);
    let edits = strsim::osa_distance(a, b);
    let chars = wanted.chars().count().max(candidate.chars().count()).max(1);
    1.0 - f64::from(u32::try_from(edits).unwrap_or(u32::MAX))
        / f64::from(u32::try_from(chars).unwrap_or(u32::MAX))
}

/// Drops what both begin and end with, which costs no edit: paths share most of themselves.
fn differing<'a>(mut a: &'a str, mut b: &'a str) -> (&'a str, &'a str) {
    while let (Some(x), Some(y)) = (a.chars().next(), b.chars().next())
        && x == y
    {
        (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]);
    }
    while let (Some(x), Some(y)) = (a.chars().next_back(), b.chars().next_back())
        && x == y
    {
        (a, b) = (&a[..a.len() - x.len_utf8()], &b[..b.len() - y.len_utf8()]);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 5] = [
        "params/h_0/attn/kernel",
        "params/h_0/attn/bias",
        "params/h_1/attn/kernel",
        "params/wte",
        "opt/mu/wte",
    ];

    #[test]
    fn a_typo_finds_the_path_that_was_meant_first() {
        assert_eq!(nearest("params/h_1/atn/kernel", PATHS, 1), ["params/h_1/attn/kernel"]);
        assert_eq!(nearest("param/wte", PATHS, 1), ["params/wte"]);
        assert_eq!(nearest("params/h_0/attn/kernle", PATHS, 2)[0], "params/h_0/attn/kernel");
    }

    #[test]
    fn a_tail_finds_the_paths_that_end_like_it() {
        assert_eq!(nearest("wte", PATHS, 3), ["params/wte", "opt/mu/wte"]);
        assert_eq!(nearest("attn/bais", PATHS, 1), ["params/h_0/attn/bias"]);
    }

    #[test]
    fn nothing_near_is_nothing_said() {
        assert!(nearest("zzzzzz", PATHS, 3).is_empty());
        assert!(nearest("", PATHS, 3).is_empty());
        assert_eq!(hint(&[]), None);
        assert_eq!(hint(&["a", "b"]).unwrap(), "nearest: `a`, `b`");
    }

    proptest::proptest! {
        #[test]
        fn what_both_share_at_the_ends_costs_no_edit(a in "[abé]{0,6}", b in "[abé]{0,6}") {
            let (x, y) = differing(&a, &b);
            proptest::prop_assert_eq!(strsim::osa_distance(x, y), strsim::osa_distance(&a, &b));
        }
    }

    #[test]
    fn hostile_lengths_and_characters_are_cut_not_compared_whole() {
        let long = "é".repeat(100_000);
        assert_eq!(nearest(&long, [long.as_str()], 1), [long.as_str()]);
    }
}
