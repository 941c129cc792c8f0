//! Chunk grids as other writers state them, expanded within bounds.
//!
//! A rectilinear axis may be run-length encoded: `[[1, 9000000000]]` is 20 bytes that zarrs would turn into 144 GB. So
//! the runs are counted first, and a grid with more than [`EDGES_MAX`] edges an axis is refused.

use crate::{
    chunk::Axis,
    error::{Error, Result},
};
use serde_json::Value;

/// A million chunks an axis, 8 MB of edges.
const EDGES_MAX: u64 = 1 << 20;

/// Reads the axes of a chunk grid document.
///
/// # Errors
/// `Unsupported` for another kind of grid or one with too many edges, `Corrupt` where it does not fit the shape.
pub(super) fn axes(grid: &Value, shape: &[u64]) -> Result<Vec<Axis>> {
    let name = grid.get("name").and_then(Value::as_str).unwrap_or_default();
    let member = match name {
        "regular" | "zarrs.regular_bounded" | "rectangular" => "chunk_shape",
        "rectilinear" => "chunk_shapes",
        _ => return Err(Error::unsupported("an unknown chunk grid").with("grid", name)),
    };
    let lengths = grid.get("configuration").and_then(|c| c.get(member)).and_then(Value::as_array);
    let lengths = lengths.filter(|lengths| lengths.len() == shape.len()).ok_or_else(|| {
        Error::corrupt("the chunk grid has another rank than the array").with("grid", name)
    })?;
    let axes = lengths.iter().zip(shape).enumerate().map(|(number, (lengths, size))| {
        axis(lengths, *size).map_err(|e| e.with("axis", number).with("grid", name))
    });
    axes.collect()
}

fn axis(lengths: &Value, size: u64) -> Result<Axis> {
    if let Some(chunk) = length(lengths)? {
        return Ok(Axis::Regular { size, chunk });
    }
    let runs: Vec<(u64, u64)> = match lengths {
        Value::Array(runs) => runs.iter().map(run).collect::<Result<_>>()?,
        _ => return Err(no_length()),
    };
    let count = runs.iter().try_fold(0u64, |sum, (_, count)| sum.checked_add(*count));
    if count.is_none_or(|count| count > EDGES_MAX) {
        return Err(Error::unsupported("an axis has more chunks than this build expands")
            .with("chunks_max", EDGES_MAX));
    }
    let mut edges = vec![0];
    let mut end = 0u64;
    for chunk in runs.into_iter().flat_map(|(chunk, count)| (0..count).map(move |_| chunk)) {
        if end >= size {
            break; // chunks wholly beyond the array hold nothing
        }
        end = end.saturating_add(chunk).min(size);
        edges.push(end);
    }
    if end < size {
        return Err(Error::corrupt("the chunks end before the array").with("size", size));
    }
    Ok(Axis::Edges(edges))
}

/// Reads one length, or a length and how often it repeats.
fn run(value: &Value) -> Result<(u64, u64)> {
    match value {
        Value::Array(pair) => match pair.as_slice() {
            [chunk, count] => {
                Ok((length(chunk)?.ok_or_else(no_length)?, length(count)?.ok_or_else(no_length)?))
            }
            _ => Err(no_length()),
        },
        _ => Ok((length(value)?.ok_or_else(no_length)?, 1)),
    }
}

/// Reads a positive number; `None` where the value is no number.
fn length(value: &Value) -> Result<Option<u64>> {
    match value {
        Value::Number(n) => n.as_u64().filter(|n| *n > 0).ok_or_else(no_length).map(Some),
        _ => Ok(None),
    }
}

fn no_length() -> Error {
    Error::corrupt("a chunk length is no positive number")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use serde_json::json;

    fn rectilinear(lengths: &Value, size: u64) -> Result<Vec<Axis>> {
        axes(&json!({"name": "rectilinear", "configuration": {"chunk_shapes": [lengths]}}), &[size])
    }

    #[test]
    fn runs_expand_and_are_cut_at_the_end_of_the_array() {
        let edges = |edges: &[u64]| vec![Axis::Edges(edges.to_vec())];
        assert_eq!(rectilinear(&json!([[2, 3], 5, 9]), 12).unwrap(), edges(&[0, 2, 4, 6, 11, 12]));
        assert_eq!(rectilinear(&json!([4, 4, 4]), 4).unwrap(), edges(&[0, 4]));
        assert_eq!(rectilinear(&json!([4]), 0).unwrap(), edges(&[0]));
        let regular = vec![Axis::Regular { size: 7, chunk: 4 }];
        assert_eq!(rectilinear(&json!(4), 7).unwrap(), regular);
        let grid = json!({"name": "regular", "configuration": {"chunk_shape": [4]}});
        assert_eq!(axes(&grid, &[7]).unwrap(), regular);
    }

    #[test]
    fn hostile_runs_are_refused_before_they_are_expanded() {
        for lengths in [json!([[1, 9_000_000_000u64]]), json!([[1, u64::MAX], [1, u64::MAX]])] {
            let error = rectilinear(&lengths, 9_000_000_000).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
        for lengths in [
            json!([0]),
            json!([[0, 3]]),
            json!([[3, 0]]),
            json!([-1]),
            json!(0),
            json!("4"),
            json!([[1, 2, 3]]),
            json!([3]),
        ] {
            assert_eq!(rectilinear(&lengths, 4).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let unknown = axes(&json!({"name": "hexagonal"}), &[4]).unwrap_err();
        assert_eq!(unknown.get("grid"), Some("hexagonal"));
        axes(&json!({"name": "regular", "configuration": {"chunk_shape": [4, 4]}}), &[4])
            .unwrap_err();
        axes(&json!("regular"), &[4]).unwrap_err();
    }
}
