//! Values on screen, as NumPy shows them, and whole as JSON.
//!
//! An array of more than 1,000 elements is shown by the first and last three on each axis, and no more than
//! those is read.

mod window;

use super::context::Context;
use milepost::{DataType, LeafHandle, Result, Selection};
use serde_json::json;
use window::{Window, window};

/// Arrays with more elements are shown by their edges, of this many elements each.
const WHOLE_MAX: u64 = 1_000;
const EDGE: u64 = 3;

/// Prints a selection of a leaf.
pub(crate) fn show(
    leaf: &LeafHandle,
    selection: &Selection,
    data_type: Option<DataType>,
    ctx: &Context,
) -> Result<()> {
    let counts = selection.counts();
    let cut = !ctx.json() && counts.iter().product::<u64>() > WHOLE_MAX;
    let window = window(leaf, selection, data_type, cut)?;
    if ctx.json() {
        let data_type = data_type.or(leaf.data_type());
        let head =
            json!({"key_path": leaf.path(), "data_type": data_type, "shape": selection.shape()});
        let head = head.to_string();
        ctx.print(format_args!("{},\"values\":", head.trim_end_matches('}')))?;
        nested_json(&window, 0, &mut 0, ctx)?;
        return ctx.line(format_args!("}}"));
    }
    let texts: Vec<_> = (0..window.count()).map(|i| window.element(i, false)).collect();
    let width = texts.iter().map(String::len).max().unwrap_or(0);
    let mut padded = texts.into_iter().map(|text| format!("{text:>width$}"));
    let mut text = String::new();
    nested_text(&window, 0, &mut padded, &mut text);
    ctx.line(format_args!("{text}"))
}

/// Prints a text leaf as JSON.
pub(crate) fn show_text(leaf: &LeafHandle, text: &str, ctx: &Context) -> Result<()> {
    ctx.print_json(
        &json!({"key_path": leaf.path(), "data_type": "str", "shape": [], "values": text}),
    )
}

fn nested_json(window: &Window, axis: usize, next: &mut usize, ctx: &Context) -> Result<()> {
    let Some(n) = window.shape.get(axis) else {
        *next += 1;
        return ctx.print(format_args!("{}", window.element(*next - 1, true)));
    };
    ctx.print(format_args!("["))?;
    for i in 0..*n {
        if ctx.is_closed() {
            return Ok(());
        }
        if i > 0 {
            ctx.print(format_args!(","))?;
        }
        nested_json(window, axis + 1, next, ctx)?;
    }
    ctx.print(format_args!("]"))
}

fn nested_text(
    window: &Window,
    axis: usize,
    texts: &mut impl Iterator<Item = String>,
    out: &mut String,
) {
    let Some(n) = window.shape.get(axis) else {
        out.extend(texts.next());
        return;
    };
    // As NumPy: rows end with a line each, blocks of rows with an empty line more.
    let between = match window.shape.len() - 1 - axis {
        0 => " ".to_owned(),
        inner => format!("{}{}", "\n".repeat(inner), " ".repeat(axis + 1)),
    };
    out.push('[');
    for i in 0..*n {
        if i > 0 {
            out.push_str(&between);
        }
        if window.cut[axis] && i == EDGE {
            out.push_str("...");
            out.push_str(&between);
        }
        nested_text(window, axis + 1, texts, out);
    }
    out.push(']');
}
