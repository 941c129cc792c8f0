//! What is shown of an array: the whole of it, or its edges, in types that Rust can show.

use super::EDGE;
use crate::cli::cat::read;
use milepost::{CastRule, DataType, Error, ErrorKind, LeafHandle, Result, Selection, Subset};
use serde_json::Value;

/// A dense array of native elements, and after which index of each axis some were left out.
#[derive(Debug)]
pub(super) struct Window {
    data_type: DataType,
    pub(super) shape: Vec<u64>,
    pub(super) cut: Vec<bool>,
    bytes: Vec<u8>,
}

/// Reads what is shown, in a type that Rust can show.
pub(super) fn window(
    leaf: &LeafHandle,
    selection: &Selection,
    data_type: Option<DataType>,
    cut: bool,
) -> Result<Window> {
    let counts = selection.counts();
    let cut: Vec<bool> = counts.iter().map(|n| cut && *n > 2 * EDGE).collect();
    let kept = |(n, cut): (&u64, &bool)| if *cut { 2 * EDGE } else { *n };
    let shape: Vec<u64> = counts.iter().zip(&cut).map(kept).collect();
    let target = native(data_type.or(leaf.data_type()).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "the data type has no counterpart here")
            .with("leaf", leaf.path())
    })?);
    let size = target.size_bytes();
    let mut bytes = Vec::new();
    let corners = 1_usize << cut.iter().filter(|c| **c).count();
    for corner in 0..corners {
        let (part, at) = part(selection, &counts, &cut, corner)?;
        let data = read(leaf, &part, data_type)?.cast(target, CastRule::Unsafe)?;
        if corners == 1 {
            bytes = data.bytes.to_vec();
        } else {
            bytes.resize(usize::try_from(shape.iter().product::<u64>()).unwrap_or(0) * size, 0);
            place(&mut bytes, &shape, &data.bytes, &part.counts(), &at, size);
        }
    }
    let keep = |values: &[bool]| -> Vec<bool> {
        values.iter().zip(&selection.dropped).filter(|(_, d)| !**d).map(|(v, _)| *v).collect()
    };
    let shape =
        shape.iter().zip(&selection.dropped).filter(|(_, d)| !**d).map(|(n, _)| *n).collect();
    Ok(Window { data_type: target, shape, cut: keep(&cut), bytes })
}

/// Returns one corner of a cut selection, and where it goes in the window.
fn part(
    selection: &Selection,
    counts: &[u64],
    cut: &[bool],
    corner: usize,
) -> Result<(Selection, Vec<u64>)> {
    let (mut start, mut lengths, mut at, mut bit) = (vec![], vec![], vec![], 0);
    for (axis, (n, is_cut)) in counts.iter().zip(cut).enumerate() {
        let mut first = 0;
        if *is_cut {
            first = if corner >> bit & 1 == 1 { n - EDGE } else { 0 };
            bit += 1;
        }
        let step = selection.step[axis];
        let count = if *is_cut { EDGE } else { *n };
        start.push(selection.subset.start()[axis] + first * step);
        lengths.push(if count == 0 { 0 } else { (count - 1) * step + 1 });
        at.push(if first == 0 { 0 } else { EDGE });
    }
    Ok((Selection { subset: Subset::new(start, lengths)?, ..selection.clone() }, at))
}

/// Copies the rows of a box to their place in the window.
fn place(window: &mut [u8], shape: &[u64], part: &[u8], counts: &[u64], at: &[u64], size: usize) {
    let row = usize::try_from(counts.last().copied().unwrap_or(1)).unwrap_or(0) * size;
    for (number, source) in part.chunks_exact(row.max(1)).enumerate() {
        let (mut rest, mut offset, mut stride) =
            (number as u64, at.last().copied().unwrap_or(0), 1);
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            stride *= shape[axis + 1];
            offset += (at[axis] + rest % counts[axis]) * stride;
            rest /= counts[axis];
        }
        let offset = usize::try_from(offset).unwrap_or(0) * size;
        window[offset..offset + row].copy_from_slice(source);
    }
}

/// Returns the type in which elements are shown: one that holds every value exactly.
fn native(data_type: DataType) -> DataType {
    use DataType as T;
    match data_type {
        T::Bool | T::Float64 | T::Complex64 | T::Complex128 | T::Raw(_) => data_type,
        T::Int2 | T::Int4 | T::Int8 | T::Int16 | T::Int32 | T::Int64 => T::Int64,
        T::UInt2 | T::UInt4 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => T::UInt64,
        _ => T::Float32,
    }
}

impl Window {
    pub(super) fn count(&self) -> usize {
        self.bytes.len() / self.data_type.size_bytes()
    }

    /// Shows one element; floats by the shortest digits that give them back.
    pub(super) fn element(&self, index: usize, json: bool) -> String {
        let size = self.data_type.size_bytes();
        let bytes = &self.bytes[index * size..(index + 1) * size];
        let float = |text: String| match (json, text.as_str()) {
            (true, "NaN") => "\"NaN\"".to_owned(),
            (true, "inf") => "\"Infinity\"".to_owned(),
            (true, "-inf") => "\"-Infinity\"".to_owned(),
            (false, "NaN") => "nan".to_owned(),
            _ => text,
        };
        let single = |at: usize| bytes[at..].first_chunk().map(|b| f32::from_le_bytes(*b));
        let double = |at: usize| bytes[at..].first_chunk().map(|b| f64::from_le_bytes(*b));
        let pair = |re: String, im: String| {
            let plus = if im.starts_with('-') { "" } else { "+" };
            if json { format!("[{},{}]", float(re), float(im)) } else { format!("{re}{plus}{im}j") }
        };
        let eight = bytes.first_chunk().copied().unwrap_or_default();
        match self.data_type {
            DataType::Bool => (bytes[0] != 0).to_string(),
            DataType::Int64 => i64::from_le_bytes(eight).to_string(),
            DataType::UInt64 => u64::from_le_bytes(eight).to_string(),
            DataType::Float32 => float(format!("{:?}", single(0).unwrap_or_default())),
            DataType::Float64 => float(format!("{:?}", double(0).unwrap_or_default())),
            DataType::Complex64 => pair(
                format!("{:?}", single(0).unwrap_or_default()),
                format!("{:?}", single(4).unwrap_or_default()),
            ),
            DataType::Complex128 => pair(
                format!("{:?}", double(0).unwrap_or_default()),
                format!("{:?}", double(8).unwrap_or_default()),
            ),
            _ => {
                let hex = bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat();
                if json { Value::from(hex).to_string() } else { hex }
            }
        }
    }
}
