//! What one participant does of a plan: its objects, and what it needs to finalise.

use super::{
    plan::{Share, SharePlan},
    record::{Objects, Part},
};
use crate::{
    checkpoint::{
        items::{Cuts, ItemPlan},
        writer::{CheckpointWriter, NOTES_MAX, index_objects},
    },
    chunk::Subset,
    error::{Error, Result},
    io::{
        read::Context,
        write::{Body, ObjectPlan, Written, write_all},
    },
    store::Place,
};
use milepost_formats::{
    index::Index,
    record::{Item as ItemEntry, Record},
};
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The planned items, as one participant sees them.
pub(super) struct Work {
    pub(super) plan: SharePlan,
    shared: BTreeMap<String, ItemPlan>,
    /// Items that this participant writes alone.
    alone: BTreeMap<String, ItemPlan>,
    /// The same for everybody who plans the same.
    pub(super) hash: String,
}

/// What a participant is to write of one item.
struct Mine {
    item: String,
    documents: usize,
    /// Leaf and number of each object.
    objects: Vec<(usize, u64)>,
}

impl Work {
    /// Plans the items of a participant.
    ///
    /// # Errors
    /// `Invalid` names the leaf that cannot be stored, or the option that does not fit.
    pub(super) fn new(plan: SharePlan, index: usize, own: &CheckpointWriter) -> Result<Self> {
        let (target, options) = (&own.target, &own.options);
        let (mut shared, mut alone) = (BTreeMap::new(), BTreeMap::new());
        for (name, share) in &plan.items {
            let Some(item) = own.items.get(name) else { continue };
            let mut planned = match share {
                Share::Sole(writer) if *writer == index => {
                    ItemPlan::new(name, item, target, options)?
                }
                Share::Sole(_) => continue,
                Share::Shared(leaves) => {
                    let cuts: Cuts =
                        leaves.iter().map(|leaf| (leaf.path.clone(), leaf.cuts.clone())).collect();
                    ItemPlan::shared(name, item, target, (options, &cuts))?
                }
            };
            own.describe(name, &mut planned);
            if let Share::Shared(leaves) = share {
                let mine = |leaf: usize| leaves[leaf].boxes.iter().any(|(_, by)| *by == index);
                planned.release(mine);
            }
            let group = if matches!(share, Share::Sole(_)) { &mut alone } else { &mut shared };
            group.insert(name.clone(), planned);
        }
        let hash = hash(&plan, &shared, own)?;
        Ok(Self { plan, shared, alone, hash })
    }

    /// Returns the names of all items, whoever writes them.
    pub(super) fn names(&self) -> Vec<String> {
        self.plan.items.keys().cloned().collect()
    }

    fn boxes(&self, item: &str, index: usize) -> (Vec<usize>, Vec<Vec<Subset>>) {
        let Some(Share::Shared(leaves)) = self.plan.items.get(item) else { return <_>::default() };
        let documents = (0..leaves.len()).filter(|leaf| leaves[*leaf].document == index);
        let boxes = leaves.iter().map(|leaf| {
            let own = leaf.boxes.iter().filter(|(_, writer)| *writer == index);
            own.map(|(place, _)| place.clone()).collect()
        });
        (documents.collect(), boxes.collect())
    }

    /// Plans the objects of a participant below `place`.
    fn objects(&self, place: &Place, index: usize) -> (Vec<ObjectPlan>, Vec<Mine>) {
        let (mut objects, mut mine) = (Vec::new(), Vec::new());
        for (name, planned) in &self.shared {
            let (mut documents, boxes) = self.boxes(name, index);
            if index == 0 {
                // The documents of leaves come first, in the order of the leaves; those of groups are the founder's.
                documents.extend(boxes.len()..planned.documents().len());
            }
            let (own, numbers) = planned.objects_of(place, (&documents, &boxes));
            objects.extend(own);
            let (item, documents) = (name.clone(), documents.len());
            mine.push(Mine { item, documents, objects: numbers });
        }
        (objects, mine)
    }

    /// Writes what a participant is to write, and describes it.
    pub(super) async fn write(
        &mut self,
        context: &Context,
        place: &Place,
        mut part: Part,
    ) -> Result<Part> {
        let (mut objects, mine) = self.objects(place, part.index);
        let alone = std::mem::take(&mut self.alone);
        let mut counts = Vec::with_capacity(alone.len());
        for planned in alone.values() {
            let own = planned.objects(place);
            counts.push(own.len());
            objects.extend(own);
        }
        tell_plan(context, &objects, &mine, alone.values());
        let written = write_all(context, objects).await?;
        for planned in self.shared.values_mut() {
            planned.release(|_| false);
        }
        let mut written = written.as_slice();
        for mine in mine {
            let (own, rest) = written.split_at(mine.documents + mine.objects.len());
            written = rest;
            let planned = &self.shared[&mine.item];
            describe(&mut part, planned, &mine, &own[mine.documents..]);
        }
        let (mut indexes, mut entries) = (Vec::new(), Vec::new());
        for ((_, planned), count) in alone.into_iter().zip(counts) {
            let (own, rest) = written.split_at(count);
            written = rest;
            let (index, entry) = planned.complete(own);
            entries.push(indexed(place, &index, entry, &mut indexes)?);
        }
        write_all(context, indexes).await?;
        part.set_alone(entries)?;
        Ok(part)
    }

    /// Returns how many objects each leaf of each shared item has.
    pub(super) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.shared.iter().map(|(name, item)| (name.clone(), item.stored_objects())).collect()
    }

    /// Plans the indexes of the shared items and completes the record's items and notes.
    pub(super) fn finish(
        self,
        place: &Place,
        mut objects: BTreeMap<String, Objects>,
        record: &mut Record,
    ) -> Result<Vec<ObjectPlan>> {
        let mut indexes = Vec::new();
        for (name, planned) in self.shared {
            record.notes.extend(planned.notes.iter().cloned());
            let objects = objects.remove(&name).unwrap_or_default();
            let (index, entry) = planned.complete_shared(objects);
            record.items.push(indexed(place, &index, entry, &mut indexes)?);
        }
        record.notes.truncate(NOTES_MAX);
        record.items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(indexes)
    }
}

/// Tells the progress what this participant is to write.
fn tell_plan<'a>(
    context: &Context,
    objects: &[ObjectPlan],
    mine: &[Mine],
    alone: impl Iterator<Item = &'a ItemPlan>,
) {
    let distinct = |mine: &Mine| {
        let leaves: BTreeSet<usize> = mine.objects.iter().map(|(leaf, _)| *leaf).collect();
        leaves.len() as u64
    };
    let leaves: u64 = mine.iter().map(distinct).chain(alone.map(|item| item.totals().0)).sum();
    let parts = objects.iter().flat_map(|object| match &object.body {
        Body::Parts { parts, .. } => parts.as_slice(),
        Body::Ready(_) => &[],
    });
    let (chunks, bytes) =
        parts.fold((0, 0), |(chunks, bytes), part| (chunks + 1, bytes + part.raw_bytes));
    context.progress.plan(leaves, chunks, bytes);
}

fn describe(part: &mut Part, planned: &ItemPlan, mine: &Mine, written: &[Written]) {
    for ((leaf, number), written) in mine.objects.iter().zip(written) {
        for object in planned.stored(*leaf, std::slice::from_ref(written)) {
            part.add(&mine.item, *leaf, *number, &object);
        }
    }
}

/// Plans the index of an item and says in its entry what it is.
fn indexed(
    place: &Place,
    index: &Index,
    mut entry: ItemEntry,
    indexes: &mut Vec<ObjectPlan>,
) -> Result<ItemEntry> {
    let chunk = index.to_chunk()?;
    entry.index_bytes = chunk.chunk.len() as u64;
    entry.index_json_bytes = chunk.json_bytes;
    entry.index_hash = xxh3_128(&chunk.chunk);
    indexes.extend(index_objects(place, &entry, chunk));
    Ok(entry)
}

/// Hashes what everybody must have the same: step, plan, every document, the items' entries, the options of the commit.
fn hash(
    plan: &SharePlan,
    shared: &BTreeMap<String, ItemPlan>,
    own: &CheckpointWriter,
) -> Result<String> {
    let mut hash = Xxh3::new();
    hash.update(&plan.hash().to_le_bytes());
    // Else who is a step behind would commit its state with that of the others. A run names its steps by itself.
    let name = own.run.is_none().then(|| own.target.name());
    hash.update(format!("{:?} {name:?}\n", own.step).as_bytes());
    let options = &own.options;
    hash.update(format!("{:?} {}\n", options.durability, options.overwrite).as_bytes());
    for (name, planned) in shared {
        hash.update(format!("{:?}\n", planned.foreign_metadata()).as_bytes());
        let record = Record { items: vec![planned.entry()], ..Record::default() };
        hash.update(&record.to_document().map_err(|e| Error::from(e).with("item", name))?);
        for (key, bytes) in planned.documents() {
            hash.update(format!("\n{key} {}\n", bytes.len()).as_bytes());
            hash.update(bytes);
        }
    }
    Ok(format!("{:032x}", hash.digest128()))
}
