//! The lines of `milepost tree`.

use crate::cli::{context::Context, size};
use milepost::{
    Container, KeyPath, LeafKind, LeafSpec, Result, Tree, ZarrNode, formats::index::Leaf,
};
use std::fmt::Write;

/// A line: the key path and its columns; containers have one column.
pub(super) type Row = (String, Vec<String>);

/// Collects the lines of a tree; containers `depth` keys deep are folded.
pub(super) fn collect<'a>(
    tree: &Tree<LeafSpec>,
    path: &mut KeyPath,
    depth: usize,
    leaves: &mut impl Iterator<Item = &'a Leaf>,
    rows: &mut Vec<Row>,
) {
    match tree {
        Tree::Leaf(_) => rows.extend(leaves.next().map(leaf_row)),
        Tree::None => rows.push((path.to_string(), vec!["None".to_owned()])),
        Tree::Branch { container, children } if path.depth() >= depth && !children.is_empty() => {
            let count = tree.leaf_count();
            let bytes = leaves.take(count).map(stored).sum();
            let (name, count) = (container_name(container), size::count(count, "leaf", "leaves"));
            let text = format!("{name}, {count}, {}", size::show(bytes));
            rows.push((path.to_string(), vec![text]));
        }
        Tree::Branch { container, children } => {
            if !path.is_root() || children.is_empty() {
                let empty = if children.is_empty() { "empty " } else { "" };
                rows.push((
                    path.to_string(),
                    vec![format!("{empty}{}", container_name(container))],
                ));
            }
            for (key, child) in children {
                path.push(key);
                collect(child, path, depth, leaves, rows);
                path.pop();
            }
        }
    }
}

fn leaf_row(leaf: &Leaf) -> Row {
    let kind = match &leaf.kind {
        LeafKind::Array => leaf.data_type.to_string(),
        kind => format!("{} ({})", leaf.data_type, kind_name(kind)),
    };
    let stored_as = leaf.stored_as.map(|t| format!(" as {t}")).unwrap_or_default();
    let columns = vec![
        format!("{kind}{stored_as}"),
        shape_text(&leaf.shape),
        chunks(&leaf.chunk_shape, leaf.shard_shape.as_deref()),
        leaf.codec.clone(),
        size::show(stored(leaf)),
    ];
    (leaf.path.clone(), columns)
}

/// Prints lines in columns.
pub(super) fn print(rows: &[Row], ctx: &Context) -> Result<()> {
    let chars = |text: &String| text.chars().count();
    let path_width = rows.iter().map(|(path, _)| chars(path)).max().unwrap_or(0).max(2);
    let leaves = || rows.iter().filter(|(_, columns)| columns.len() > 1);
    let width = |i: usize| leaves().map(|(_, columns)| chars(&columns[i])).max().unwrap_or(0);
    let widths: Vec<_> = (0..4).map(width).collect();
    for (path, columns) in rows {
        // The item itself: what a shell takes for it.
        let path = if path.is_empty() { "''" } else { path };
        let mut text = format!("  {path:path_width$}");
        for (i, column) in columns.iter().enumerate() {
            let width = if columns.len() > 1 { widths.get(i).copied().unwrap_or(0) } else { 0 };
            let _ = write!(text, "  {column:width$}");
        }
        ctx.line(format_args!("{}", text.trim_end()))?;
    }
    Ok(())
}

/// Returns the stored size of a leaf's data.
pub(super) fn stored(leaf: &Leaf) -> u64 {
    leaf.objects.iter().map(|object| object.bytes).sum()
}

/// Names a container as people write it.
pub(super) fn container_name(container: &Container) -> String {
    match container {
        Container::Dict => "dict".to_owned(),
        Container::List => "list".to_owned(),
        Container::Tuple => "tuple".to_owned(),
        Container::NamedTuple { type_name } => format!("named tuple {type_name}"),
        Container::Object { type_name } => format!("object {type_name}"),
    }
}

/// Names a leaf's kind.
pub(super) fn kind_name(kind: &LeafKind) -> String {
    match kind {
        LeafKind::Array => "array".to_owned(),
        LeafKind::Int => "int".to_owned(),
        LeafKind::Float => "float".to_owned(),
        LeafKind::Bool => "bool".to_owned(),
        LeafKind::Complex => "complex".to_owned(),
        LeafKind::Str => "str".to_owned(),
        LeafKind::Bytes => "bytes".to_owned(),
        LeafKind::PrngKey { implementation } => format!("prng key {implementation}"),
    }
}

/// Collects the lines of foreign Zarr; groups `depth` deep are folded. Stored sizes would cost a listing of all
/// chunks: the decoded ones are told.
pub(super) fn collect_nodes(nodes: &[ZarrNode], depth: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut folded: Option<(String, usize)> = None;
    for node in nodes {
        let (ZarrNode::Group { path } | ZarrNode::Array { path, .. } | ZarrNode::Bad { path, .. }) =
            node;
        let level = if path.is_empty() { 0 } else { path.split('/').count() };
        if level > depth {
            if let Some((_, count)) = &mut folded {
                *count += usize::from(matches!(node, ZarrNode::Array { .. }));
            }
            continue;
        }
        close(&mut rows, folded.take());
        match node {
            ZarrNode::Group { .. } if level == depth => folded = Some((path.clone(), 0)),
            ZarrNode::Group { .. } => rows.push((path.clone(), vec!["group".to_owned()])),
            ZarrNode::Bad { message, .. } => {
                rows.push((path.clone(), vec![format!("bad: {message}")]));
            }
            ZarrNode::Array { .. } => rows.extend(array_row(node)),
        }
    }
    close(&mut rows, folded);
    rows
}

fn close(rows: &mut Vec<Row>, folded: Option<(String, usize)>) {
    rows.extend(folded.map(|(path, count)| {
        (path, vec![format!("group, {}", size::count(count, "array", "arrays"))])
    }));
}

fn array_row(node: &ZarrNode) -> Option<Row> {
    let ZarrNode::Array { path, data_type, data_type_name, shape, chunk_shape, shard_shape, codec } =
        node
    else {
        return None;
    };
    let chunks = chunk_shape
        .as_ref()
        .map_or_else(|| "chunks ?".to_owned(), |c| chunks(c, shard_shape.as_deref()));
    let bytes = data_type.and_then(|t| LeafSpec::array(t, shape.clone()).bytes().ok());
    let bytes = bytes.map_or_else(String::new, |b| format!("{} decoded", size::show(b)));
    Some((
        path.clone(),
        vec![data_type_name.clone(), shape_text(shape), chunks, codec.clone(), bytes],
    ))
}

fn shape_text(shape: &[u64]) -> String {
    format!("{shape:?}").replace(' ', "")
}

fn chunks(chunk: &[u64], shard: Option<&[u64]>) -> String {
    let shards = shard.map(|s| format!(" shards {}", shape_text(s))).unwrap_or_default();
    format!("chunks {}{shards}", shape_text(chunk))
}
