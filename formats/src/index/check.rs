//! What an index must be to be written and to be believed.

use super::{Container, Index, Key, Leaf, Node};
use std::collections::HashSet;

/// How many keys a key path may have.
pub const DEPTH_MAX: usize = 512;
/// The longest node name.
pub const NODE_NAME_BYTES_MAX: usize = 200;
/// The longest node path relative to its item.
pub const NODE_PATH_BYTES_MAX: usize = 900;
/// The highest rank, as of array documents.
const RANK_MAX: usize = 64;

/// Tells whether a name may be a node's: what escaping a key gives, and nothing that leaves its directory.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NODE_NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-%".contains(&b))
        && !name.starts_with("__")
        && !name.ends_with('.')
        && name != "zarr.json"
        && name != "_milepost"
}

/// Tells whether a path may be a node's, relative to its item; the item's own is empty.
#[must_use]
pub fn is_node_path(path: &str) -> bool {
    path.is_empty() || (path.len() <= NODE_PATH_BYTES_MAX && path.split('/').all(is_node_name))
}

/// Says what is wrong with an index, if something is.
pub(super) fn check(index: &Index) -> Result<(), String> {
    check_tree(index)?;
    let mut paths = HashSet::with_capacity(index.leaves.len() + index.groups.len());
    let leaves = index.leaves.iter().map(|leaf| &leaf.path);
    for path in leaves.chain(index.groups.iter().map(|group| &group.path)) {
        if !is_node_path(path) {
            return Err(format!("not a node path. path=`{}`", crate::json::shorten(path)));
        }
        if !paths.insert(path.as_str()) {
            return Err(format!("two nodes have one path. path=`{path}`"));
        }
    }
    for leaf in &index.leaves {
        check_leaf(leaf).map_err(|what| format!("{what}. leaf=`{}`", leaf.path))?;
    }
    Ok(())
}

/// Checks depth, keys and that the tree holds every leaf once; with its own stack, as trees may be deep.
fn check_tree(index: &Index) -> Result<(), String> {
    let mut seen = vec![false; index.leaves.len()];
    let mut stack = vec![(&index.root, 0)];
    while let Some((node, depth)) = stack.pop() {
        if depth > DEPTH_MAX {
            return Err(format!("the tree is deeper than {DEPTH_MAX} keys"));
        }
        match node {
            Node::None => {}
            Node::Leaf(n) => match seen.get_mut(*n as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(format!("a leaf is in the tree twice. leaf=`{n}`")),
                None => return Err(format!("the tree names a leaf that is not there. leaf=`{n}`")),
            },
            Node::Branch { container, children } => {
                check_keys(container, children.iter().map(|(key, _)| key))?;
                stack.extend(children.iter().map(|(_, child)| (child, depth + 1)));
            }
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(n) => Err(format!("a leaf is not in the tree. leaf=`{n}`")),
        None => Ok(()),
    }
}

/// Checks that the keys are of the container's kind and distinct.
pub(super) fn check_keys<'a>(
    container: &Container,
    keys: impl Iterator<Item = &'a Key>,
) -> Result<(), String> {
    let mut seen = HashSet::new();
    for (i, key) in keys.enumerate() {
        let fits = match (container, key) {
            (Container::Dict, Key::Name(_) | Key::Int(_))
            | (Container::NamedTuple { .. }, Key::Attr(_))
            | (Container::Object { .. }, _) => true,
            (Container::List | Container::Tuple, Key::Index(n)) => *n == i as u64,
            _ => false,
        };
        if !fits {
            return Err(format!("a {} does not have such a key. key=`{key:?}`", container.kind()));
        }
        if !seen.insert(key) {
            return Err(format!("a container has one key twice. key=`{key:?}`"));
        }
    }
    Ok(())
}

fn check_leaf(leaf: &Leaf) -> Result<(), String> {
    let rank = leaf.shape.len();
    if rank > RANK_MAX {
        return Err(format!("a leaf has more than {RANK_MAX} dimensions"));
    }
    let sane = |shape: &[u64]| shape.len() == rank && shape.iter().all(|n| *n > 0);
    if !sane(&leaf.chunk_shape) {
        return Err(format!("not a chunk shape. chunk_shape=`{:?}`", leaf.chunk_shape));
    }
    let grid = leaf.shard_shape.as_ref().unwrap_or(&leaf.chunk_shape);
    if !sane(grid) || grid.iter().zip(&leaf.chunk_shape).any(|(g, c)| g % c != 0) {
        return Err(format!("the chunk does not divide the shard. shard_shape=`{grid:?}`"));
    }
    let item_bytes = leaf.data_type.size_bytes().max(1) as u64;
    let padded = leaf.shape.iter().zip(grid).try_fold(item_bytes, |bytes, (n, g)| {
        bytes.checked_mul(n.div_ceil(*g).checked_mul(*g)?.max(1))
    });
    if padded.is_none() {
        return Err("a leaf claims more bytes than can be counted".to_owned());
    }
    // Each count is at most its dimension, and their padded product fits.
    let cells: u64 = leaf.shape.iter().zip(grid).map(|(n, g)| n.div_ceil(*g)).product();
    if cells != leaf.objects.len() as u64 {
        let objects = leaf.objects.len();
        return Err(format!(
            "the objects do not fill the grid. objects=`{objects}`, grid=`{cells}`"
        ));
    }
    Ok(())
}
