//! Dimension names: xarray wants one on every axis, alike in size among the arrays of a group.

use crate::{array::Leaf, tree::LeafNode};
use std::collections::{HashMap, HashSet};

/// Returns the dimension names of every leaf, in order.
///
/// The caller's where they are complete, distinct in the leaf, no sibling's name and of one size among the siblings;
/// else `<leaf>_<axis>`.
pub(crate) fn dimension_names(
    item: &str,
    leaves: &[LeafNode<'_, Leaf>],
) -> Vec<Vec<Option<String>>> {
    let mut sizes: HashMap<(&str, String), u64> = HashMap::new();
    let mut siblings: HashSet<(&str, &str)> = HashSet::new();
    for node in leaves {
        let (group, name) = place(item, &node.path);
        siblings.insert((group, name));
        for (axis, size) in node.leaf.shape.iter().enumerate() {
            sizes.insert((group, format!("{name}_{axis}")), *size);
        }
    }
    let mut result = Vec::with_capacity(leaves.len());
    for node in leaves {
        let (group, name) = place(item, &node.path);
        let wanted = node.leaf.dimension_names.as_ref().filter(|names| {
            let mut seen = HashSet::new();
            names.iter().zip(&node.leaf.shape).all(|(dimension, size)| {
                dimension.as_deref().is_some_and(|dimension| {
                    let known = sizes.get(&(group, dimension.to_owned()));
                    !dimension.is_empty()
                        && seen.insert(dimension)
                        && !siblings.contains(&(group, dimension))
                        && known.is_none_or(|known| known == size)
                })
            })
        });
        let names = match wanted {
            Some(names) => {
                for (dimension, size) in names.iter().flatten().zip(&node.leaf.shape) {
                    sizes.insert((group, dimension.clone()), *size);
                }
                names.clone()
            }
            None => (0..node.leaf.shape.len()).map(|axis| Some(format!("{name}_{axis}"))).collect(),
        };
        result.push(names);
    }
    result
}

fn place<'a>(item: &'a str, path: &'a str) -> (&'a str, &'a str) {
    match path.rsplit_once('/') {
        Some((group, name)) => (group, name),
        None if path.is_empty() => ("", item),
        None => ("", path),
    }
}
