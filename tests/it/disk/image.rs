//! Images of the disk, the operations on them, and what a crash leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

const PAGE_BYTES: usize = 4096;

/// The number of a file or directory; those of an image are never used again.
pub(super) type Node = usize;
/// A name in a directory.
pub(super) type Entry = (Node, String);

/// What a file or directory holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Directory(BTreeMap<String, Node>),
    File(Arc<Vec<u8>>),
}

/// One system call that changes the disk or makes a change durable.
#[derive(Clone, Debug, Hash)]
pub(super) enum Op {
    MakeDirectory(Entry),
    MakeFile(Entry),
    Unlink(Entry),
    Rename(Entry, Entry),
    Exchange(Entry, Entry),
    Write(Node, usize, Vec<u8>),
    Resize(Node, usize),
    SyncFile(Node),
    SyncDirectory(Node),
}

impl Op {
    /// The names that it changes.
    fn entries(&self) -> Vec<&Entry> {
        match self {
            Self::MakeDirectory(entry) | Self::MakeFile(entry) | Self::Unlink(entry) => vec![entry],
            Self::Rename(from, to) | Self::Exchange(from, to) => vec![from, to],
            _ => Vec::new(),
        }
    }
}

/// What becomes of that which was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// All of it is lost.
    Lost,
    /// All of it is there.
    Kept,
    /// Some of it is there, chosen by this seed.
    Torn(u64),
}

/// The files and directories of a disk; the root is node 0.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    nodes: Vec<Content>,
}

impl Default for Image {
    fn default() -> Self {
        Self { nodes: vec![Content::Directory(BTreeMap::new())] }
    }
}

impl Image {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, node: Node) -> &Content {
        &self.nodes[node]
    }

    /// Returns the names in a directory; a file has none.
    pub(super) fn names(&self, node: Node) -> Vec<(String, Node)> {
        match &self.nodes[node] {
            Content::Directory(names) => names.iter().map(|(n, i)| (n.clone(), *i)).collect(),
            Content::File(_) => Vec::new(),
        }
    }

    pub(super) fn child(&self, directory: Node, name: &str) -> Option<Node> {
        match &self.nodes[directory] {
            Content::Directory(names) => names.get(name).copied(),
            Content::File(_) => None,
        }
    }

    pub(super) fn find(&self, path: &str) -> Option<Node> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(0, |at, name| self.child(at, name))
    }

    fn set(&mut self, (directory, name): &Entry, node: Option<Node>) -> Option<Node> {
        let Content::Directory(names) = &mut self.nodes[*directory] else {
            panic!("node {directory} is no directory");
        };
        match node {
            Some(node) => names.insert(name.clone(), node),
            None => names.remove(name),
        }
    }

    fn file(&mut self, node: Node) -> &mut Arc<Vec<u8>> {
        match &mut self.nodes[node] {
            Content::File(bytes) => bytes,
            Content::Directory(_) => panic!("node {node} is no file"),
        }
    }

    /// Carries an operation out; the one who logs it has checked that it can be.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::MakeDirectory(_) | Op::MakeFile(_) => {
                let node = self.make(op);
                self.link(op, node);
            }
            _ => self.change(op),
        }
    }

    /// Makes the node of an operation, without a name.
    fn make(&mut self, op: &Op) -> Node {
        self.nodes.push(match op {
            Op::MakeDirectory(_) => Content::Directory(BTreeMap::new()),
            _ => Content::File(Arc::default()),
        });
        self.nodes.len() - 1
    }

    fn link(&mut self, op: &Op, node: Node) {
        let (Op::MakeDirectory(entry) | Op::MakeFile(entry)) = op else { return };
        self.set(entry, Some(node));
    }

    fn change(&mut self, op: &Op) {
        match op {
            Op::Unlink(entry) => {
                self.set(entry, None);
            }
            Op::Rename(from, to) => {
                let node = self.set(from, None);
                self.set(to, node);
            }
            Op::Exchange(a, b) => {
                let (at_a, at_b) = (self.set(a, None), self.set(b, None));
                self.set(a, at_b);
                self.set(b, at_a);
            }
            Op::Write(node, offset, data) => {
                let bytes = Arc::make_mut(self.file(*node));
                bytes.resize(bytes.len().max(offset + data.len()), 0);
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }
            Op::Resize(node, bytes) => Arc::make_mut(self.file(*node)).resize(*bytes, 0),
            Op::MakeDirectory(_) | Op::MakeFile(_) | Op::SyncFile(_) | Op::SyncDirectory(_) => {}
        }
    }

    /// Returns what a crash after `log` leaves of this image, on which all of it was done.
    pub(super) fn crash(&self, log: &[Op], fate: Fate) -> Self {
        let mut random = Random(if let Fate::Torn(seed) = fate { seed } else { 0 });
        let likely = 1 + random.below(7);
        let synced = synced(log);
        let mut image = self.clone();
        // Names of which a change was lost: what came later of the same name is lost, too.
        let mut lost: BTreeSet<&Entry> = BTreeSet::new();
        let mut unsynced: BTreeMap<Node, Arc<Vec<u8>>> = BTreeMap::new();
        for (op, synced) in log.iter().zip(synced) {
            match op {
                Op::Write(node, ..) | Op::Resize(node, _) => {
                    let before = Arc::clone(image.file(*node));
                    unsynced.entry(*node).or_insert(before);
                    image.change(op);
                }
                Op::SyncFile(node) => drop(unsynced.remove(node)),
                Op::SyncDirectory(_) => {}
                _ => {
                    let made = matches!(op, Op::MakeDirectory(_) | Op::MakeFile(_));
                    let node = if made { image.make(op) } else { 0 };
                    let chosen = match fate {
                        Fate::Lost => false,
                        Fate::Kept => true,
                        Fate::Torn(_) => random.below(8) < likely,
                    };
                    let entries = op.entries();
                    if synced || (chosen && !entries.iter().any(|e| lost.contains(e))) {
                        if made { image.link(op, node) } else { image.change(op) }
                    } else {
                        lost.extend(entries);
                    }
                }
            }
        }
        for (node, before) in unsynced {
            let file = image.file(node);
            *file = match fate {
                Fate::Lost => before,
                Fate::Kept => Arc::clone(file),
                Fate::Torn(_) => torn(&before, file, &mut random),
            };
        }
        image
    }

    /// Returns a digest of all names and bytes, so that equal images are told.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_node(0, &mut hasher);
        hasher.finish()
    }

    fn hash_node(&self, node: Node, hasher: &mut DefaultHasher) {
        match &self.nodes[node] {
            Content::File(bytes) => bytes.hash(hasher),
            Content::Directory(names) => {
                names.len().hash(hasher);
                for (name, node) in names {
                    name.hash(hasher);
                    self.hash_node(*node, hasher);
                }
            }
        }
    }

    /// Returns the paths of all files with their sizes, for the message of a failure.
    pub(crate) fn tree(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(0, "", &mut found);
        found
    }

    fn walk(&self, node: Node, path: &str, found: &mut Vec<String>) {
        match &self.nodes[node] {
            Content::File(bytes) => found.push(format!("{path} {}", bytes.len())),
            Content::Directory(names) => {
                found.push(format!("{path}/"));
                for (name, node) in names {
                    self.walk(*node, &format!("{path}/{name}"), found);
                }
            }
        }
    }
}

/// Tells of each operation on names whether it is durable: its directory was synced later, or the same is true
/// of a later change of one of its names.
fn synced(log: &[Op]) -> Vec<bool> {
    let mut directories = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut synced = vec![false; log.len()];
    for (op, synced) in log.iter().zip(&mut synced).rev() {
        if let Op::SyncDirectory(node) = op {
            directories.insert(*node);
        }
        let entries = op.entries();
        *synced = entries.iter().any(|e| directories.contains(&e.0) || names.contains(*e));
        if *synced {
            names.extend(entries);
        }
    }
    synced
}

fn torn(before: &Arc<Vec<u8>>, after: &Arc<Vec<u8>>, random: &mut Random) -> Arc<Vec<u8>> {
    match random.below(4) {
        0 => Arc::clone(before),
        1 => Arc::clone(after),
        2 => Arc::new(after[..random.below(after.len() + 1)].to_vec()),
        _ => {
            let mut bytes = before.as_ref().clone();
            bytes.resize(after.len(), 0);
            for (page, new) in bytes.chunks_mut(PAGE_BYTES).zip(after.chunks(PAGE_BYTES)) {
                if random.below(2) == 0 {
                    page.copy_from_slice(new);
                }
            }
            Arc::new(bytes)
        }
    }
}

/// A small generator, so that a seed replays a crash.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }
}
