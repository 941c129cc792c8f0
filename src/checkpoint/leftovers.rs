//! What is dead at a run, or beside a checkpoint that stands alone: the plan of a sweep, which can be shown.
//!
//! Looking changes nothing, but one probe object may be put and deleted, to learn the store's time.
//!
//! **Invariant:** a live writer's attempt, a final name, a damaged step and whatever is not ours are never listed.

use super::{
    layout::{
        BESIDE, DOCUMENT, INDEXES, LEASES, MARK, PARTS, PARTS_BESIDE, PINS, PROBE, TMP, TRASH,
    },
    layout::{parse_revision, revision_name},
    lease::{LEASE_EXPIRY, Mark, StoreTime},
    marks::{LeaseKind, first_alive, is_claim_alive, last, parse_lease, read_claim},
    publish::{Found, look, mark_of},
};
use crate::{
    error::Result,
    io::Engine,
    store::{ObjectMeta, Place},
};
use futures::{StreamExt, TryStreamExt, stream};
use milepost_formats::record::Root;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// No probe takes so long, and nobody who listed a deleted step before is still on the way to it.
const OLD: Duration = Duration::from_hours(1);

/// What a leftover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeftoverKind {
    /// Objects of a save that was never committed, and whose writer is gone.
    Attempt,
    /// A deleted step whose bytes are not all freed.
    Trash,
    /// Bytes of a revoked or replaced revision (object stores).
    Revision,
    /// The tombstone of a step that was deleted long ago (object stores).
    Tombstone,
    /// The mark of a process that is gone.
    Mark,
    /// An object that was put to find out what the store does.
    Probe,
    /// What several writers of one step told each other.
    Parts,
}

/// Something dead that a sweep frees.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Where it is.
    pub place: Place,
    /// What it is.
    pub kind: LeftoverKind,
    /// How many bytes it has, as far as listings tell.
    pub bytes: u64,
    /// Why it is dead.
    pub why: String,
}

/// Lists what is dead at a run.
///
/// # Errors
/// The store's.
///
/// # Cancel safety
/// Nothing is changed.
pub(crate) async fn leftovers(engine: &Engine, run: &Place) -> Result<Vec<Leftover>> {
    let time = StoreTime::of_run(engine, run);
    let parts = contents(&run.join(PARTS)).await?;
    let mut plan = Plan { place: run, time, parts, found: Vec::new() };
    if run.store().capabilities().rename {
        plan.attempts().await?;
        plan.trash().await?;
    } else {
        plan.revisions().await?;
    }
    plan.parts().await?;
    plan.marks().await?;
    plan.probes().await?;
    Ok(plan.found)
}

/// Lists the dead attempts at a checkpoint that stands alone, and what several writers of it told each other.
///
/// Where there are no renames, attempts lie in the checkpoint's own prefix and are none of this.
///
/// # Errors
/// The store's.
pub async fn leftovers_beside(engine: &Engine, target: &Place) -> Result<Vec<Leftover>> {
    let time = StoreTime::beside(engine, target);
    let parts = BTreeMap::new();
    let mut plan = Plan { place: target, time, parts, found: Vec::new() };
    plan.beside().await?;
    Ok(plan.found)
}

struct Plan<'a> {
    /// The run, or the checkpoint that stands alone.
    place: &'a Place,
    time: StoreTime,
    /// What several writers of one attempt have told each other, by its id.
    parts: BTreeMap<String, Content>,
    found: Vec<Leftover>,
}

/// What is below one name of a listing.
#[derive(Clone, Copy, Default)]
struct Content {
    bytes: u64,
    newest: Option<SystemTime>,
}

impl Content {
    fn of<'a>(objects: impl IntoIterator<Item = &'a ObjectMeta>) -> Self {
        objects.into_iter().fold(Self::default(), |content, object| Self {
            bytes: content.bytes + object.bytes,
            newest: content.newest.max(Some(object.modified)),
        })
    }
}

/// Sums up what is below each name of a directory; listed from above, no link is followed.
async fn contents(directory: &Place) -> Result<BTreeMap<String, Content>> {
    let mut groups: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
    for object in directory.store().list_all(directory.prefix()).await? {
        let below = object.key.get(directory.prefix().len() + 1..).unwrap_or_default();
        if let Some((name, _)) = below.split_once('/') {
            groups.entry(name.to_owned()).or_default().push(object);
        }
    }
    Ok(groups.into_iter().map(|(name, objects)| (name, Content::of(&objects))).collect())
}

impl Plan<'_> {
    fn add(&mut self, place: Place, kind: LeftoverKind, bytes: u64, why: impl Into<String>) {
        self.found.push(Leftover { place, kind, bytes, why: why.into() });
    }

    fn at(&self, key: &str) -> Place {
        Place::new(Arc::clone(self.place.store()), key)
    }

    async fn attempts(&mut self) -> Result<()> {
        let directory = self.place.join(TMP);
        let listing = directory.store().list(directory.prefix()).await?;
        if listing.prefixes.is_empty() && listing.objects.is_empty() {
            return Ok(());
        }
        let contents = contents(&directory).await?;
        for name in &listing.prefixes {
            let content = contents.get(name).copied().unwrap_or_default();
            self.attempt(directory.join(name), name, content).await?;
        }
        for object in &listing.objects {
            let name = last(&object.key);
            match name.strip_suffix(MARK) {
                Some(id) if listing.prefixes.iter().any(|prefix| prefix == id) => {}
                Some(_) => self.mark(object).await?,
                None => self.temporary(object).await,
            }
        }
        Ok(())
    }

    /// Tells whether one of several writers of an attempt was heard lately: it may take over from one that is gone.
    async fn is_shared(&mut self, writer: &str) -> bool {
        // Who takes over goes on under a name that begins with the attempt's.
        let id = writer.split_once(".t").map_or(writer, |(id, _)| id);
        match self.parts.get(id).and_then(|content| content.newest) {
            Some(newest) => !self.time.is_older(newest, LEASE_EXPIRY).await,
            None => false,
        }
    }

    /// Judges what several writers told each other: by the mark, and then by the newest object.
    async fn parts(&mut self) -> Result<()> {
        let directory = self.place.join(PARTS);
        let named: Vec<(String, Content)> =
            self.parts.iter().map(|(name, content)| (name.clone(), *content)).collect();
        for (name, content) in named {
            self.part(directory.join(&name), &name, content).await?;
        }
        for object in directory.store().list(directory.prefix()).await?.objects {
            match last(&object.key).strip_suffix(MARK) {
                Some(id) if self.parts.contains_key(id) => {}
                Some(_) => self.mark(&object).await?,
                None => self.temporary(&object).await,
            }
        }
        Ok(())
    }

    /// Judges what the writers of attempt `id` told each other.
    async fn part(&mut self, place: Place, id: &str, content: Content) -> Result<()> {
        let alive = match Mark::read(place.store(), &mark_of(&place)).await? {
            Some(mark) => mark.is_alive(&mut self.time).await,
            None => false,
        };
        if !alive && !self.is_shared(id).await {
            let why = "none of its writers was heard lately";
            self.add(place, LeftoverKind::Parts, content.bytes, why);
        }
        Ok(())
    }

    /// Judges a directory by its mark; without one, by its newest object.
    async fn attempt(&mut self, place: Place, id: &str, content: Content) -> Result<()> {
        if self.is_shared(id).await {
            return Ok(());
        }
        let why = match (Mark::read(place.store(), &mark_of(&place)).await?, content.newest) {
            (Some(mark), _) if mark.is_alive(&mut self.time).await => return Ok(()),
            (Some(mark), _) => format!("its writer is gone: {}", mark.holder()),
            (None, Some(newest)) if !self.time.is_older(newest, LEASE_EXPIRY).await => {
                return Ok(());
            }
            (None, _) => "it has no writer and nothing was written lately".to_owned(),
        };
        self.add(place, LeftoverKind::Attempt, content.bytes, why);
        Ok(())
    }

    /// Judges the mark of a reader, a remover, or an attempt without a directory.
    async fn mark(&mut self, object: &ObjectMeta) -> Result<()> {
        let store = self.place.store();
        if let Some(mark) = Mark::read(store, &object.key).await?
            && !mark.is_alive(&mut self.time).await
        {
            let why = format!("its holder is gone: {}", mark.holder());
            self.add(self.at(&mark.key), LeftoverKind::Mark, mark.bytes, why);
        }
        Ok(())
    }

    /// Judges what a `put` of a mark may have left when the machine stopped.
    async fn temporary(&mut self, object: &ObjectMeta) {
        if last(&object.key).starts_with(BESIDE) && self.time.is_older(object.modified, OLD).await {
            let why = "an object that was being written long ago";
            self.add(self.at(&object.key), LeftoverKind::Mark, object.bytes, why);
        }
    }

    async fn trash(&mut self) -> Result<()> {
        let directory = self.place.join(TRASH);
        let names = directory.store().list(directory.prefix()).await?.prefixes;
        if names.is_empty() {
            return Ok(());
        }
        let contents = contents(&directory).await?;
        for name in names {
            let bytes = contents.get(&name).copied().unwrap_or_default().bytes;
            self.add(directory.join(&name), LeftoverKind::Trash, bytes, "it was deleted");
        }
        Ok(())
    }

    async fn marks(&mut self) -> Result<()> {
        let store = Arc::clone(self.place.store());
        for object in store.list(&self.place.key(LEASES)).await?.objects {
            if parse_lease(last(&object.key)).is_some() {
                self.mark(&object).await?;
            } else {
                self.temporary(&object).await;
            }
        }
        for object in store.list(&self.place.key(PINS)).await?.objects {
            self.temporary(&object).await;
        }
        Ok(())
    }

    async fn probes(&mut self) -> Result<()> {
        let directory = self.place.join(PROBE);
        let listing = directory.store().list(directory.prefix()).await?;
        let why = "a probe of long ago";
        for object in listing.objects {
            if self.time.is_older(object.modified, OLD).await {
                self.add(self.at(&object.key), LeftoverKind::Probe, object.bytes, why);
            }
        }
        if listing.prefixes.is_empty() {
            return Ok(());
        }
        for (name, content) in contents(&directory).await? {
            if let Some(newest) = content.newest
                && self.time.is_older(newest, OLD).await
            {
                self.add(directory.join(&name), LeftoverKind::Probe, content.bytes, why);
            }
        }
        Ok(())
    }

    async fn beside(&mut self) -> Result<()> {
        let parent = self.place.parent();
        let start = format!("{}{BESIDE}", self.place.name());
        let is_hex = |id: &str| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        // An attempt that was taken over has the number and the index of its owner in its name.
        let is_id = |id: &str| {
            let (id, owner) = id.split_once(".t").unwrap_or((id, ""));
            is_hex(id) && owner.bytes().all(|b| b.is_ascii_digit() || b == b'-')
        };
        let part_of =
            |name: &str| name.strip_suffix(PARTS_BESIDE).filter(|id| is_hex(id)).map(str::to_owned);
        let renames = parent.store().capabilities().rename;
        let listing = parent.store().list(parent.prefix()).await?;
        let mut directories = Vec::new();
        for name in &listing.prefixes {
            let Some(rest) = name.strip_prefix(&start) else { continue };
            if part_of(rest).is_some() || renames && is_id(rest) {
                let place = parent.join(name);
                let content = Content::of(&place.store().list_all(place.prefix()).await?);
                self.parts.extend(part_of(rest).map(|id| (id, content)));
                directories.push((place, rest, content));
            }
        }
        for (place, rest, content) in directories {
            match part_of(rest) {
                Some(id) => self.part(place, &id, content).await?,
                None => self.attempt(place, rest, content).await?,
            }
        }
        for object in &listing.objects {
            let Some(rest) = last(&object.key).strip_prefix(&start) else { continue };
            let marked = rest.strip_suffix(MARK);
            if let Some(id) = marked.filter(|id| part_of(id).is_some() || is_id(id)) {
                let directory = format!("{start}{id}");
                if !listing.prefixes.contains(&directory) {
                    self.mark(object).await?;
                }
            } else if rest.strip_prefix("probe-").is_some_and(is_hex)
                && self.time.is_older(object.modified, OLD).await
            {
                let why = "a probe of long ago";
                self.add(self.at(&object.key), LeftoverKind::Probe, object.bytes, why);
            }
        }
        Ok(())
    }

    /// Judges the prefixes of a store without renames, those of one step together, highest first.
    async fn revisions(&mut self) -> Result<()> {
        let store = self.place.store();
        let names = store.list(self.place.prefix()).await?.prefixes;
        let looks = names.into_iter().filter(|name| !name.starts_with(".milepost")).map(|name| {
            let place = self.place.join(&name);
            async move { look(&place).await.map(|found| (name, found)) }
        });
        let concurrency = store.capabilities().concurrency.max(1) * 4;
        let found: Vec<(String, Found)> =
            stream::iter(looks).buffer_unordered(concurrency).try_collect().await?;
        let mut steps: BTreeMap<String, Vec<(u64, Found)>> = BTreeMap::new();
        for (name, found) in found {
            let (step, revision) = parse_revision(&name);
            steps.entry(step.to_owned()).or_default().push((revision, found));
        }
        for (step, mut revisions) in steps {
            revisions.sort_unstable_by_key(|(revision, _)| std::cmp::Reverse(*revision));
            self.step(&step, revisions).await?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &str, revisions: Vec<(u64, Found)>) -> Result<()> {
        let mut committed = None;
        // Tombstones go from the top only: a writer takes the first free revision, which must be the highest.
        let mut top = true;
        for (revision, found) in revisions {
            let place = self.place.join(&revision_name(step, revision));
            let tombstone = matches!(found, Found::Root(Root::Revoked { deleted: true, .. }));
            match found {
                Found::Root(Root::Checkpoint { record, .. }) => {
                    if let Some(higher) = committed {
                        self.superseded(place, higher, record.step).await?;
                    } else {
                        committed = Some(revision);
                    }
                }
                Found::Root(Root::Revoked { .. }) => {
                    let swept = self.revoked(place, tombstone && top).await?;
                    top = top && tombstone && swept;
                    continue;
                }
                Found::Nothing => self.claimed(place).await?,
                // Damaged, or not ours.
                Found::Bad(_) | Found::Root(_) => {}
            }
            top = false;
        }
        Ok(())
    }

    async fn superseded(&mut self, place: Place, higher: u64, step: Option<u64>) -> Result<()> {
        if let Some(step) = step
            && first_alive(self.place, step, LeaseKind::Reader, &mut self.time).await?.is_some()
        {
            return Ok(());
        }
        let content = Content::of(&place.store().list_all(place.prefix()).await?);
        let why = format!("revision {higher} of the step was committed after it");
        self.add(place, LeftoverKind::Revision, content.bytes, why);
        Ok(())
    }

    /// Judges a tombstone; tells whether it can go, or rather would if it were the highest.
    async fn revoked(&mut self, place: Place, removable: bool) -> Result<bool> {
        let (record, claim) = (place.key(DOCUMENT), claim_key(&place));
        let mut objects = place.store().list_all(place.prefix()).await?;
        let tombstone = objects.iter().find(|object| object.key == record).cloned();
        objects.retain(|object| object.key != record && object.key != claim);
        if !objects.is_empty() {
            if read_claim(&place).await?.is_some() {
                let why = "it was revoked, and its bytes were not all freed";
                self.add(place, LeftoverKind::Revision, Content::of(&objects).bytes, why);
            }
            return Ok(false);
        }
        match tombstone {
            Some(object) if removable && self.time.is_older(object.modified, OLD).await => {
                let why = "its step was deleted long ago";
                self.add(place, LeftoverKind::Tombstone, object.bytes, why);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn claimed(&mut self, place: Place) -> Result<()> {
        let Some((claim, modified)) = read_claim(&place).await? else { return Ok(()) };
        if !is_claim_alive(&claim, modified, &mut self.time).await
            && !self.is_shared(&claim.writer).await
        {
            let content = Content::of(&place.store().list_all(place.prefix()).await?);
            let why = format!("its writer is gone: {}", claim.writer);
            self.add(place, LeftoverKind::Attempt, content.bytes, why);
        }
        Ok(())
    }
}

/// Returns the key of the claim of a prefix.
pub(super) fn claim_key(place: &Place) -> String {
    place.key(&format!("{INDEXES}/{DOCUMENT}"))
}
