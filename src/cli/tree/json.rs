//! A checkpoint's items, and foreign Zarr, as JSON.

use super::rows::{container_name, kind_name, stored};
use milepost::{
    ItemIndex, KeyPath, LeafSpec, Tree, ZarrNode,
    formats::record::{Item, ItemKind},
};
use serde_json::{Value, json};

/// Describes an item: its containers and leaves in tree order.
pub(super) fn item(item: &Item, index: &ItemIndex) -> Value {
    let leaves = index.leaves().iter().map(|leaf| {
        json!({
            "key_path": leaf.path,
            "kind": kind_name(&leaf.kind),
            "data_type": leaf.data_type,
            "stored_as": leaf.stored_as,
            "shape": leaf.shape,
            "chunk_shape": leaf.chunk_shape,
            "shard_shape": leaf.shard_shape,
            "codec": leaf.codec,
            "stored_bytes": stored(leaf),
            "objects": leaf.objects.len(),
            "foreign_name": leaf.name,
        })
    });
    let mut containers = Vec::new();
    // JSON and bytes have an index, too, but its tree is no structure of the user's.
    if item.kind == ItemKind::Tree {
        walk_containers(&index.specs(), &mut KeyPath::root(), &mut containers);
    }
    json!({
        "name": item.name,
        "kind": item.kind.as_str(),
        "data_bytes": item.data_bytes,
        "stored_bytes": item.stored_bytes,
        "containers": containers,
        "leaves": leaves.collect::<Vec<_>>(),
    })
}

fn walk_containers(tree: &Tree<LeafSpec>, path: &mut KeyPath, out: &mut Vec<Value>) {
    match tree {
        Tree::Leaf(_) => {}
        Tree::None => out.push(json!({"key_path": path.to_string(), "container": "None"})),
        Tree::Branch { container, children } => {
            let name = container_name(container);
            out.push(
                json!({"key_path": path.to_string(), "container": name, "keys": children.len()}),
            );
            for (key, child) in children {
                path.push(key);
                walk_containers(child, path, out);
                path.pop();
            }
        }
    }
}

/// Describes a node of foreign Zarr.
pub(super) fn node(node: &ZarrNode) -> Value {
    match node {
        ZarrNode::Group { path } => json!({"key_path": path, "node": "group"}),
        ZarrNode::Bad { path, message } => {
            json!({"key_path": path, "node": "bad", "message": message})
        }
        ZarrNode::Array {
            path, data_type_name, shape, chunk_shape, shard_shape, codec, ..
        } => {
            json!({"key_path": path, "node": "array", "data_type": data_type_name, "shape": shape,
                "chunk_shape": chunk_shape, "shard_shape": shard_shape, "codec": codec})
        }
    }
}
