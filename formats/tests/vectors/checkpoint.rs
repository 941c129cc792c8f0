//! `spec/vectors/checkpoint`: a whole checkpoint, made here once, readable for ever.
//!
//! It has every layout of a leaf: rank 0, no elements, one chunk, many, packed and aligned shards with
//! missing chunks, a transpose, bfloat16, text; None and empty containers; a JSON and a bytes item.
//! `spec/reader.py` reads it with nothing of ours.

use crate::{is_writing, path};
use milepost_formats::{
    DataType,
    index::{
        ChildMark, Container, Group, Index, Key, Leaf, LeafKind, Node, Object, group_attributes,
        index_document, index_group_document, leaf_attributes, parse_group_attributes,
        parse_leaf_attributes,
    },
    record::{Item, ItemKind, Record, Root, Timing, json_document, tagged},
    zarr3::{
        ArrayDocument, Chain, Codecs, Compressor, Document, GroupDocument, IndexLocation,
        ShardIndex, Sharding,
    },
};
use serde_json::{Map, json};
use std::{collections::BTreeMap, path::Path};
use xxhash_rust::xxh3::xxh3_128;

type Files = BTreeMap<String, Vec<u8>>;

const ALIGNED_BYTES_MIN: u64 = 256 << 10;
const PAGE_BYTES: usize = 4096;

fn object(bytes: &[u8], content: Option<u128>) -> Object {
    Object { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(bytes), content }
}

/// One leaf to be written.
struct Plan {
    keys: Vec<Key>,
    kind: LeafKind,
    data_type: DataType,
    shape: Vec<u64>,
    chunk: Vec<u64>,
    shard: Option<Vec<u64>>,
    codec: &'static str,
    transpose: Option<Vec<usize>>,
}

impl Plan {
    fn new(keys: Vec<Key>, data_type: DataType, shape: &[u64]) -> Self {
        let chunk = shape.iter().map(|n| (*n).max(1)).collect();
        let kind = LeafKind::Array;
        let shape = shape.to_vec();
        Self { keys, kind, data_type, shape, chunk, shard: None, codec: "none", transpose: None }
    }

    fn path(&self) -> String {
        let segment = |key: &Key| match key {
            Key::Name(name) | Key::Attr(name) => name.replace(' ', "%20"),
            Key::Int(n) => n.to_string(),
            Key::Index(n) => n.to_string(),
        };
        self.keys.iter().map(segment).collect::<Vec<_>>().join("/")
    }

    fn document(&self, item: &str) -> ArrayDocument {
        let name = self.path().replace('/', ".");
        let names = (0..self.shape.len()).map(|axis| Some(format!("{item}{name}_{axis}")));
        ArrayDocument {
            shape: self.shape.clone(),
            data_type: self.data_type,
            grid_shape: self.shard.clone().unwrap_or_else(|| self.chunk.clone()),
            separator: '.',
            codecs: Codecs {
                sharding: self.shard.as_ref().map(|_| Sharding {
                    chunk_shape: self.chunk.clone(),
                    index_location: IndexLocation::End,
                    index_crc32c: true,
                }),
                chain: Chain {
                    transpose: self.transpose.clone(),
                    compressor: self.codec.parse().unwrap(),
                    crc32c: true,
                },
            },
            fill_value: vec![0; self.data_type.size_bytes()],
            dimension_names: Some(names.collect()),
            attributes: leaf_attributes(&self.keys, &self.kind, self.data_type, None),
        }
    }

    /// Returns the bytes of the element at a position: its C-order number, or a letter for text.
    fn element(&self, position: &[u64]) -> Vec<u8> {
        let number = position.iter().zip(&self.shape).fold(0, |n, (p, size)| n * size + p);
        match self.data_type {
            DataType::Bool => vec![u8::from(number % 2 == 1)],
            DataType::UInt8 => vec![b'a' + u8::try_from(number % 26).unwrap()],
            DataType::BFloat16 => (0x3f80 + u16::try_from(number).unwrap()).to_le_bytes().to_vec(),
            DataType::Float32 => (f32::from(u16::try_from(number).unwrap())).to_le_bytes().to_vec(),
            DataType::UInt16 => u16::try_from(number % 997).unwrap().to_le_bytes().to_vec(),
            _ => number.to_le_bytes()[..self.data_type.size_bytes()].to_vec(),
        }
    }

    /// Encodes the chunk at an origin; the hash is of its in-bounds bytes.
    fn encode(&self, origin: &[u64]) -> (Vec<u8>, u128) {
        let rank = self.shape.len();
        let order = self.transpose.clone().unwrap_or_else(|| (0..rank).collect());
        let stored: Vec<u64> = order.iter().map(|axis| self.chunk[*axis]).collect();
        let at = |inner: &[u64]| -> Vec<u64> { (0..rank).map(|i| origin[i] + inner[i]).collect() };
        let is_inside = |p: &[u64]| p.iter().zip(&self.shape).all(|(p, n)| p < n);
        let (mut raw, mut inside) = (Vec::new(), Vec::new());
        for cell in cells(&stored) {
            let mut inner = vec![0; rank];
            order.iter().zip(&cell).for_each(|(axis, n)| inner[*axis] = *n);
            let position = at(&inner);
            let fill = || vec![0; self.data_type.size_bytes()];
            raw.extend(if is_inside(&position) { self.element(&position) } else { fill() });
        }
        for inner in cells(&self.chunk) {
            let position = at(&inner);
            if is_inside(&position) {
                inside.extend(self.element(&position));
            }
        }
        let mut bytes = match self.codec.parse().unwrap() {
            Compressor::Zstd { level, .. } => zstd::bulk::compress(&raw, level).unwrap(),
            _ => raw,
        };
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        (bytes, xxh3_128(&inside))
    }

    /// Encodes the stored object at a position of the grid.
    fn encode_object(&self, document: &ArrayDocument, position: &[u64]) -> (Vec<u8>, u128) {
        let scaled = |p: &[u64], step: &[u64]| -> Vec<u64> {
            p.iter().zip(step).map(|(p, s)| p * s).collect()
        };
        let origin = scaled(position, &document.grid_shape);
        if self.shard.is_none() {
            return self.encode(&origin);
        }
        let decoded: u64 = self.chunk.iter().product::<u64>() * self.data_type.size_bytes() as u64;
        let (mut shard, mut digests) = (Vec::new(), Vec::new());
        let mut index = ShardIndex::default();
        for inner in cells(&document.chunks_per_shard()) {
            let start: Vec<u64> =
                origin.iter().zip(scaled(&inner, &self.chunk)).map(|(a, b)| a + b).collect();
            if start.iter().zip(&self.shape).any(|(s, n)| s >= n) {
                index.entries.push(None);
                continue;
            }
            if decoded >= ALIGNED_BYTES_MIN {
                shard.resize(shard.len().next_multiple_of(PAGE_BYTES), 0);
            }
            let (bytes, hash) = self.encode(&start);
            index.entries.push(Some((shard.len() as u64, bytes.len() as u64)));
            shard.extend(bytes);
            digests.extend(hash.to_le_bytes());
        }
        shard.extend(index.to_bytes(true));
        (shard, xxh3_128(&digests))
    }

    fn write(&self, item: &str, files: &mut Files) -> Leaf {
        let node =
            if self.keys.is_empty() { item.to_owned() } else { format!("{item}/{}", self.path()) };
        let document = self.document(item);
        let bytes = document.to_bytes();
        let mut leaf = Leaf {
            path: self.path(),
            kind: self.kind.clone(),
            data_type: self.data_type,
            stored_as: None,
            shape: self.shape.clone(),
            chunk_shape: self.chunk.clone(),
            shard_shape: self.shard.clone(),
            codec: document.codecs.chain.compressor.to_string(),
            name: None,
            document: object(&bytes, None),
            objects: vec![],
        };
        files.insert(format!("{node}/zarr.json"), bytes);
        for position in cells(&document.grid_counts()) {
            let (bytes, hash) = self.encode_object(&document, &position);
            leaf.objects.push(object(&bytes, Some(hash)));
            files.insert(format!("{node}/{}", document.object_key(&position)), bytes);
        }
        leaf
    }
}

/// Every position of a grid, in C order.
fn cells(counts: &[u64]) -> Vec<Vec<u64>> {
    counts.iter().fold(vec![vec![]], |cells, n| {
        let longer = |cell: &Vec<u64>, i| cell.iter().copied().chain([i]).collect();
        cells.iter().flat_map(|cell| (0..*n).map(move |i| longer(cell, i))).collect()
    })
}

fn name(text: &str) -> Key {
    Key::Name(text.into())
}

fn plans() -> Vec<Plan> {
    use DataType as T;
    let params = |key: &str| vec![name("params"), name(key)];
    let opt = |n, key: &str| vec![name("opt"), Key::Index(n), Key::Attr(key.into())];
    let mut plans = vec![
        Plan { chunk: vec![4, 5], ..Plan::new(params("w"), T::Float32, &[6, 5]) },
        Plan { codec: "zstd:3", ..Plan::new(params("b"), T::BFloat16, &[7]) },
        Plan {
            chunk: vec![256, 512],
            shard: Some(vec![512, 512]),
            codec: "zstd:3",
            ..Plan::new(params("aligned"), T::UInt16, &[600, 512])
        },
        Plan {
            chunk: vec![2, 2],
            shard: Some(vec![4, 2]),
            ..Plan::new(params("packed h"), T::Int16, &[5, 3])
        },
        Plan { transpose: Some(vec![1, 0]), ..Plan::new(params("t"), T::Float32, &[2, 3]) },
        Plan::new(opt(2, "mask"), T::Bool, &[3]),
        Plan::new(vec![name("empty")], T::Float64, &[0, 3]),
        Plan::new(vec![name("note")], T::UInt8, &[5]),
        Plan::new(vec![name("step")], T::Int64, &[]),
    ];
    plans[7].kind = LeafKind::Str;
    plans[8].kind = LeafKind::Int;
    plans
}

fn branch(container: Container, children: Vec<(Key, Node)>) -> Node {
    Node::Branch { container, children }
}

fn tree() -> Node {
    let params = ["w", "b", "aligned", "packed h", "t"];
    let params = params.iter().zip(0..).map(|(key, n)| (name(key), Node::Leaf(n))).collect();
    let state = Container::NamedTuple { type_name: "optax.State".into() };
    let opt = vec![
        (Key::Index(0), branch(Container::Dict, vec![])),
        (Key::Index(1), Node::None),
        (Key::Index(2), branch(state, vec![(Key::Attr("mask".into()), Node::Leaf(5))])),
    ];
    branch(
        Container::Dict,
        vec![
            (name("params"), branch(Container::Dict, params)),
            (name("opt"), branch(Container::Tuple, opt)),
            (name("empty"), Node::Leaf(6)),
            (name("note"), Node::Leaf(7)),
            (name("step"), Node::Leaf(8)),
        ],
    )
}

/// Writes the group documents of a tree.
fn write_groups(node: &Node, keys: &mut Vec<Key>, files: &mut Files, groups: &mut Vec<Group>) {
    let Node::Branch { container, children } = node else { return };
    if children.is_empty() && !keys.is_empty() {
        return;
    }
    let mark = |child: &Node| match child {
        Node::None => ChildMark::None,
        Node::Branch { container, children } if children.is_empty() => {
            ChildMark::Empty(container.clone())
        }
        _ => ChildMark::Node,
    };
    let marks: Vec<_> = children.iter().map(|(key, child)| (key.clone(), mark(child))).collect();
    let attributes = group_attributes(keys, container, &marks);
    let bytes = GroupDocument { attributes, consolidated: None }.to_bytes();
    let path = Plan::new(keys.clone(), DataType::Bool, &[]).path();
    let at = if path.is_empty() { "state".to_owned() } else { format!("state/{path}") };
    groups.push(Group { path, document: object(&bytes, None) });
    files.insert(format!("{at}/zarr.json"), bytes);
    for (key, child) in children {
        keys.push(key.clone());
        write_groups(child, keys, files, groups);
        keys.pop();
    }
}

fn write_index(item: &str, kind: ItemKind, index: &Index, files: &mut Files) -> Item {
    let stored = index.to_chunk().unwrap();
    let hash = xxh3_128(&stored.chunk);
    let objects = index.leaves.iter().flat_map(|leaf| &leaf.objects);
    let bytes =
        |leaf: &Leaf| leaf.shape.iter().product::<u64>() * leaf.data_type.size_bytes() as u64;
    let made = Item {
        name: item.into(),
        kind,
        leaves: index.leaves.len() as u64,
        data_bytes: index.leaves.iter().map(bytes).sum(),
        stored_bytes: objects.clone().map(|o| o.bytes).sum(),
        objects: objects.count() as u64,
        index_bytes: stored.chunk.len() as u64,
        index_json_bytes: stored.json_bytes,
        index_hash: hash,
        handler: None,
        metadata: serde_json::Value::Null,
    };
    files.insert(format!("_milepost/{item}/zarr.json"), stored.document);
    files.insert(format!("_milepost/{item}/c.0"), stored.chunk);
    made
}

/// Makes the checkpoint in memory.
fn make() -> Files {
    let mut files = Files::new();
    let index = |root, leaves, groups| Index { root, leaves, groups, foreign_metadata: vec![] };
    let mut groups = Vec::new();
    write_groups(&tree(), &mut vec![], &mut files, &mut groups);
    let leaves = plans().iter().map(|plan| plan.write("state", &mut files)).collect();
    let state = write_index("state", ItemKind::Tree, &index(tree(), leaves, groups), &mut files);

    let blob = Plan { kind: LeafKind::Bytes, ..Plan::new(vec![], DataType::UInt8, &[100]) };
    let leaves = vec![blob.write("blob", &mut files)];
    let blob =
        write_index("blob", ItemKind::Bytes, &index(Node::Leaf(0), leaves, vec![]), &mut files);

    let bytes = json_document(&json!({"lr": 0.1, "layers": [1, 2]})).unwrap();
    let groups = vec![Group { path: String::new(), document: object(&bytes, None) }];
    files.insert("config/zarr.json".into(), bytes);
    let config =
        write_index("config", ItemKind::Json, &index(Node::None, vec![], groups), &mut files);

    files.insert("_milepost/zarr.json".into(), index_group_document());
    let record = Record {
        step: Some(1200),
        writer: "vectors".into(),
        created_ms: 1_700_000_000_000,
        committed_ms: 1_700_000_000_500,
        items: vec![blob, config, state],
        claim: None,
        metadata: Map::from_iter([("author".to_owned(), json!("spec"))]),
        metrics: Map::from_iter([("loss".to_owned(), tagged::float(f64::NAN))]),
        timings: vec![Timing { stage: "write".into(), ms: 0.5 }],
        notes: vec![],
    };
    files.insert("zarr.json".into(), record.to_document().unwrap());
    files
}

/// Reads a checkpoint as `verify` does: every file is accounted for, by size, checksum and content.
fn verify(mut files: Files) {
    let mut take = |path: &str| files.remove(path).unwrap_or_else(|| panic!("{path} is not there"));
    let Root::Checkpoint { record, rewritten } = Root::parse(&take("zarr.json")).unwrap() else {
        panic!("not a checkpoint");
    };
    assert!(!rewritten);
    assert_eq!(take("_milepost/zarr.json"), index_group_document());
    for item in &record.items {
        let document = take(&format!("_milepost/{}/zarr.json", item.name));
        assert_eq!(document, index_document(item.index_json_bytes));
        let chunk = take(&format!("_milepost/{}/c.0", item.name));
        assert_eq!((xxh3_128(&chunk), chunk.len() as u64), (item.index_hash, item.index_bytes));
        let index = Index::parse_chunk(&chunk, item.index_json_bytes).unwrap();
        let at = |path: &str, file: &str| {
            [&item.name, path, file]
                .into_iter()
                .filter(|s| !s.is_empty())
                .collect::<Vec<_>>()
                .join("/")
        };
        for group in &index.groups {
            let bytes = take(&at(&group.path, "zarr.json"));
            assert_eq!(object(&bytes, None), group.document);
            let Document::Group(document) = Document::parse(&bytes).unwrap() else { panic!() };
            assert_eq!(document.to_bytes(), bytes);
            parse_group_attributes(&document.attributes).unwrap();
        }
        for leaf in &index.leaves {
            let bytes = take(&at(&leaf.path, "zarr.json"));
            assert_eq!(object(&bytes, None), leaf.document);
            let Document::Array(array) = Document::parse(&bytes).unwrap() else { panic!() };
            assert_eq!(array.to_bytes(), bytes);
            assert_eq!((&array.shape, array.chunk_shape()), (&leaf.shape, &*leaf.chunk_shape));
            let attributes = parse_leaf_attributes(&array.attributes).unwrap().unwrap();
            assert_eq!(attributes.kind, leaf.kind);
            for (position, want) in cells(&array.grid_counts()).iter().zip(&leaf.objects) {
                let bytes = take(&at(&leaf.path, &array.object_key(position)));
                assert_eq!(object(&bytes, want.content), *want);
            }
        }
    }
    assert_eq!(files.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "not in the index");
}

fn load(directory: &Path, prefix: &str, files: &mut Files) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            load(&entry.path(), &format!("{path}/"), files);
        } else {
            files.insert(path, std::fs::read(entry.path()).unwrap());
        }
    }
}

#[test]
fn the_golden_checkpoint_stays_readable() {
    let root = path("checkpoint");
    if is_writing() {
        for (path, bytes) in make() {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let mut files = Files::new();
    load(&root, "", &mut files);
    verify(files);
}

#[test]
fn what_is_written_today_reads_as_the_golden_checkpoint_does() {
    verify(make());
}
