//! Saving: items become one plan, the plan is written into an attempt, the record publishes it.
//!
//! The life of a save: planned (documents, chunks, key paths checked; nothing is written where anything is
//! wrong) → attempt begun → data written as one plan → indexes → record → synced →
//! visible. A failure or a drop anywhere before the last step leaves nothing visible; what was written is swept.

use super::{
    capture::{Copies, Service, capture},
    founding::{found_run, run_members},
    handle::SaveHandle,
    items::{Item, ItemPlan},
    layout::{DOCUMENT, INDEXES, index_chunk},
    options::SaveOptions,
    parts::{Rendezvous, Together, save_together},
    publish::{Attempt, Attempts, Wish},
};
use crate::{
    array::Borrowed,
    codec::crc32c,
    error::{Error, Result},
    io::{
        Engine, Progress,
        read::Context,
        write::{Body, ObjectPlan, write_all},
    },
    store::Place,
    tasks::{Cancel, Pool, Priority, wait},
};
use bytes::Bytes;
use futures::future::{Either, select};
use milepost_formats::{
    index::{IndexChunk, Object},
    record::{Item as ItemEntry, Record, RunMembers, Timing, tagged},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use xxhash_rust::xxh3::xxh3_128;

/// A record has at most so many notes: two paths of 900 bytes each fit its limit so often.
pub(super) const NOTES_MAX: usize = 16;
/// Who cancels does not wait longer for a store that does not answer.
const HUNG: Duration = Duration::from_secs(1);

/// A checkpoint to save: items, metadata and metrics, and where they go.
///
/// ```no_run
/// use milepost::{CheckpointWriter, Engine, Item, Leaf, Tree};
/// # fn main() -> milepost::Result<()> {
/// let engine = Engine::shared()?;
/// let run = engine.place("./run", &[])?;
/// let state = Tree::dict([("w", Tree::leaf(Leaf::from_vec(vec![1.0_f32; 12], &[3, 4])?))]);
/// let saved = CheckpointWriter::step(&engine, &run, 100)
///     .item("state", Item::Tree(state))
///     .metric("loss", 0.25)
///     .save_blocking()?;
/// println!("{} bytes at {}", saved.stored_bytes, saved.place);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CheckpointWriter {
    pub(super) engine: Arc<Engine>,
    pub(super) target: Place,
    pub(super) run: Option<Place>,
    pub(super) step: Option<u64>,
    pub(super) named: bool,
    pub(super) founding: RunMembers,
    pub(super) items: BTreeMap<String, Item>,
    duplicate: Option<String>,
    foreign_metadata: BTreeMap<String, Vec<(String, String)>>,
    item_handlers: BTreeMap<String, String>,
    item_metadata: BTreeMap<String, Value>,
    metadata: Map<String, Value>,
    metrics: Map<String, Value>,
    pub(super) options: SaveOptions,
    pub(super) priority: Priority,
    pub(super) progress: Progress,
    pub(super) cancel: Cancel,
    pub(super) attempts: Attempts,
    pub(super) together: Option<Together>,
    /// Which save of the rendezvous this is, once it is asked for.
    pub(super) turn: Option<u64>,
    /// Why this side takes no part: all that it does is to say so.
    declined: Option<Error>,
    pub(super) timeout: Option<Duration>,
}

/// What a save has committed.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Where it is.
    pub place: Place,
    /// The commit record as it was written.
    pub record: Record,
    /// Decoded bytes of all leaves.
    pub data_bytes: u64,
    /// Stored bytes of all objects but the record.
    pub stored_bytes: u64,
    /// The stages with their times, `sync` and `publish` included.
    pub stages: Vec<crate::io::Stage>,
}

impl CheckpointWriter {
    /// Saves a checkpoint that stands alone at `target`.
    pub fn standalone(engine: &Arc<Engine>, target: &Place) -> Self {
        Self::new(engine, target.clone(), None, None)
    }

    /// Saves `step` of the run at `run`, which is created where it is not there.
    ///
    /// The step's name is the one of the run's own format (`Run::create`), plain digits by default.
    pub fn step(engine: &Arc<Engine>, run: &Place, step: u64) -> Self {
        Self::new(engine, run.join(&step.to_string()), Some(run.clone()), Some(step))
    }

    fn new(engine: &Arc<Engine>, target: Place, run: Option<Place>, step: Option<u64>) -> Self {
        Self {
            engine: Arc::clone(engine),
            target,
            run,
            step,
            named: false,
            founding: RunMembers::default(),
            items: BTreeMap::new(),
            duplicate: None,
            foreign_metadata: BTreeMap::new(),
            item_handlers: BTreeMap::new(),
            item_metadata: BTreeMap::new(),
            metadata: Map::new(),
            metrics: Map::new(),
            options: SaveOptions::default(),
            priority: Priority::Foreground,
            progress: Progress::default(),
            cancel: Cancel::default(),
            attempts: Attempts::default(),
            together: None,
            turn: None,
            declined: None,
            timeout: None,
        }
    }

    /// Names the node of the step, whatever format the run's document says.
    pub(crate) fn named(mut self, name: &str) -> Self {
        if let Some(run) = &self.run {
            (self.target, self.named) = (run.join(name), true);
        }
        self
    }

    /// Sets what the run's document says, where this save creates it.
    pub(crate) fn founding(mut self, members: RunMembers) -> Self {
        self.founding = members;
        self
    }

    /// Adds an item; two of one name are an error of the save.
    pub fn item(mut self, name: impl Into<String>, item: Item) -> Self {
        let name = name.into();
        if self.items.insert(name.clone(), item).is_some() {
            self.duplicate = Some(name);
        }
        self
    }

    /// Carries free-form strings of a foreign format in the index of a tree item.
    pub fn foreign_metadata(mut self, item: &str, metadata: Vec<(String, String)>) -> Self {
        self.foreign_metadata.insert(item.to_owned(), metadata);
        self
    }

    /// Names what made an item and makes its value again, for whoever restores it; at most 200 bytes.
    ///
    /// It replaces the name that an opaque item has of its own.
    pub fn item_handler(mut self, item: impl Into<String>, handler: impl Into<String>) -> Self {
        self.item_handlers.insert(item.into(), handler.into());
        self
    }

    /// Sets the user's metadata of an item: readable from the record, without reading data.
    ///
    /// It replaces what a custom handler gives, and counts within the 1 MiB of all metadata.
    pub fn item_metadata(mut self, item: impl Into<String>, metadata: Value) -> Self {
        self.item_metadata.insert(item.into(), metadata);
        self
    }

    /// Sets the user's metadata: at most 1 MiB as JSON.
    pub fn metadata(mut self, metadata: Map<String, Value>) -> Self {
        self.metadata = metadata;
        self
    }

    /// Adds a metric; NaN and infinities are kept.
    pub fn metric(mut self, name: impl Into<String>, value: f64) -> Self {
        self.metrics.insert(name.into(), tagged::float(value));
        self
    }

    /// Sets how arrays are stored and when the save counts as done.
    pub fn options(mut self, options: SaveOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets who goes first where saves and restores share the engine. Default: foreground.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the progress that is told about every chunk.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Sets what cancels the save: nothing is visible then, and what was written is swept.
    pub(crate) fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Saves together with the other participants of a rendezvous: each gives the same trees, of whose leaves it holds some
    /// boxes ([`crate::Leaf::from_held_boxes`]), all, or nothing. What several hold is written once.
    ///
    /// Items of JSON, bytes and files, and trees that one participant alone has, are written by one of those who have them.
    /// Leaf settings, handlers, metadata of items and options must be the same for everybody; metadata and metrics of the
    /// checkpoint are those of participant 0. It is waited for the others for `deadline` at each meeting: longer than what the
    /// slowest takes longer to write than the fastest. Participants save in the same order; whoever fails or cancels says
    /// so, and the save fails for all.
    pub fn together(self, rendezvous: Arc<dyn Rendezvous>, deadline: Duration) -> Self {
        self.joined(Some(Together::new(rendezvous, deadline)))
    }

    pub(crate) fn joined(mut self, together: Option<Together>) -> Self {
        self.together = together;
        self
    }

    pub(crate) fn is_joint(&self) -> bool {
        self.together.is_some()
    }

    /// Returns what saves once. With others there is no second try, so the data goes as soon as it is not needed: who has
    /// lent it is not asked for what others write.
    pub(crate) fn for_a_try(&mut self) -> Self {
        let writer = self.clone();
        if self.is_joint() {
            self.items.clear();
        }
        writer
    }

    /// Takes the turn of this save among those of the rendezvous: when it is asked for, not when its thread begins.
    pub(crate) fn take_turn(&mut self) {
        if let (None, Some(together)) = (self.turn, &self.together) {
            self.turn = Some(together.rendezvous.sequence());
        }
    }

    /// Makes this the save of one who takes no part: it tells the others why, and fails.
    pub fn decline(mut self, why: Error) -> Self {
        self.take_turn();
        self.items.clear();
        self.declined = Some(why);
        self
    }

    /// Lets a save with others end after `timeout`; they are told.
    pub(crate) fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Saves the step into another run, under the same name.
    pub(crate) fn in_run(mut self, run: &Place) -> Self {
        self.target = run.join(self.target.name());
        self.run = Some(run.clone());
        self
    }

    /// Returns the attempts of this writer and its clones.
    pub(crate) fn attempts(&self) -> Attempts {
        self.attempts.clone()
    }

    /// Takes over what the caller keeps, files too; the save begins when the rest can be served.
    ///
    /// # Errors
    /// `Invalid` where a leaf borrows memory that `borrowed` does not lend.
    pub(crate) fn capture<'a>(
        &mut self,
        borrowed: &Borrowed<'a>,
        copies: &Arc<Copies>,
        beyond: bool,
    ) -> Result<Service<'a>> {
        for item in self.items.values_mut() {
            if let Item::Opaque(files) = item {
                *files = files.clone().captured(&std::env::temp_dir())?;
            }
        }
        capture(&self.engine, &mut self.items, borrowed, (copies, beyond))
    }

    /// Saves in the background, on a thread of its own; returns when the state is captured.
    ///
    /// Data that was handed over is captured at once; what `borrowed` lends is copied within the budget, and the call
    /// blocks for what exceeds it only. Dropping the handle does not cancel the save.
    ///
    /// # Errors
    /// `Invalid` where a leaf borrows memory that `borrowed` does not lend; `Unavailable` where the system refuses a
    /// thread. What goes wrong later is the handle's.
    pub fn start(self, borrowed: &Borrowed<'_>) -> Result<SaveHandle> {
        self.start_telling(borrowed, |_| ())
    }

    /// Saves as [`CheckpointWriter::start`] does, and gives the handle away as soon as the save has begun: the call itself
    /// may still serve what exceeds the budget.
    ///
    /// # Errors
    /// As [`CheckpointWriter::start`].
    pub fn start_telling(
        mut self,
        borrowed: &Borrowed<'_>,
        told: impl FnOnce(&SaveHandle),
    ) -> Result<SaveHandle> {
        self.take_turn();
        let captured = self.capture(borrowed, &Arc::default(), false);
        let (handle, completion) = SaveHandle::new(self.step);
        let thread = match Pool::new("milepost-save", 1) {
            Ok(thread) => Arc::new(thread),
            Err(error) => {
                // The others hear of it all the same.
                drop(self.decline(error.clone()).save_blocking());
                return Err(error);
            }
        };
        let writer = match &captured {
            Ok(_) => self.progress(handle.progress_handle()).cancel(handle.canceller()),
            Err(error) if self.together.is_some() => self.decline(error.clone()),
            Err(_) => return captured.map(|_| handle),
        };
        let own = Arc::clone(&thread);
        thread.launch(Priority::Foreground, move || {
            let _thread = own; // a pool ends with its last owner, and that is its own job
            completion.complete(writer.save_blocking());
        });
        drop(thread);
        let service = captured?;
        told(&handle);
        service.serve(false);
        Ok(handle)
    }

    /// Saves on the calling thread; as [`CheckpointWriter::save`].
    ///
    /// # Errors
    /// As [`CheckpointWriter::save`].
    pub fn save_blocking(self) -> Result<Saved> {
        wait(self.save())
    }

    /// Saves and commits.
    ///
    /// # Errors
    /// `Invalid` where a tree, a name or an option cannot be stored; `AlreadyExists`, `Conflict` by other writers;
    /// the store's errors. Nothing is visible then, and what was written is swept.
    ///
    /// # Cancel safety
    /// Dropping the future before the commit leaves nothing visible; its files are left to `sweep`.
    ///
    /// With others, it is as if this participant had died: they find out, and end or finish without it.
    pub fn save(mut self) -> impl Future<Output = Result<Saved>> {
        self.take_turn();
        async move {
            let (step, target) = (self.step, self.target.clone());
            let saved = match self.together.take() {
                Some(together) => save_together(self, together).await,
                None => self.run_save().await,
            };
            saved.map_err(|e: Error| {
                let e = if let Some(step) = step { e.with("step", step) } else { e };
                e.with("checkpoint", target)
            })
        }
    }

    async fn run_save(mut self) -> Result<Saved> {
        let created_ms = self.engine.clock().unix_ms();
        let started = Instant::now();
        let plans = self.plan()?;
        // What cannot be recorded is refused before the first byte is written.
        let items = plans.iter().map(ItemPlan::entry).collect();
        self.complete(Record { step: self.step, items, ..Record::default() }).to_document()?;
        self.progress.stage_done("plan", started);
        if let Some(run) = &self.run {
            let found = self.cancel.guard(found_run(run, &self.founding)).await?;
            if let (false, Some(step)) = (self.named, self.step) {
                let format = run_members(found).map_err(|e| e.with("run", run))?.step_format;
                self.target = run.join(&format.name(step));
            }
        }
        let writer = format!("{:032x}", self.engine.clock().unique_id());
        let wish = Wish {
            target: self.target.clone(),
            run: self.run.clone(),
            step: self.step,
            overwrite: self.options.overwrite,
            durability: self.options.durability,
            writer: writer.clone(),
        };
        let names = self.items.keys().cloned();
        let attempt = self.begin(wish).await?.with_items(names);
        self.attempts.note(attempt.target(), &writer);
        let record = Record { step: self.step, writer, created_ms, ..Record::default() };
        let saved = async {
            // Up to here it can be cancelled; what is being published ends one way or the other.
            let record = self.cancel.guard(self.write(&attempt, plans, record)).await?;
            self.publish(&attempt, record).await
        };
        match saved.await {
            Ok(saved) => Ok(saved),
            Err(error) => {
                attempt.abandon().await;
                Err(error)
            }
        }
    }

    /// Begins the attempt; a cancellation takes away what it has made by then.
    async fn begin(&self, wish: Wish) -> Result<Attempt> {
        let cancelled = self.cancel.guard(pending::<Result<Attempt>>());
        match select(pin!(cancelled), pin!(Attempt::begin(&self.engine, wish))).await {
            Either::Left((cancelled, begun)) => {
                let hung = self.engine.clock().sleep(HUNG);
                if let Either::Left((Ok(attempt), _)) = select(begun, hung).await {
                    attempt.abandon().await;
                }
                cancelled
            }
            Either::Right((begun, _)) => begun,
        }
    }

    /// Checks what can be checked before anything is planned.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(why) = &self.declined {
            return Err(why.clone());
        }
        self.options.validate()?;
        if let Some(name) = &self.duplicate {
            return Err(Error::invalid("two items have one name").with("item", name));
        }
        let mut told = self.item_metadata.keys().chain(self.item_handlers.keys());
        match told.find(|name| !self.items.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(Error::invalid("metadata or handler of an item that is not there")
                .with("item", name)),
        }
    }

    fn plan(&self) -> Result<Vec<ItemPlan>> {
        self.check()?;
        if self.items.is_empty() {
            return Err(no_items());
        }
        let mut plans = Vec::with_capacity(self.items.len());
        for (name, item) in &self.items {
            let mut plan = ItemPlan::new(name, item, &self.target, &self.options)?;
            self.describe(name, &mut plan);
            let (leaves, chunks, bytes) = plan.totals();
            self.progress.plan(leaves, chunks, bytes);
            plans.push(plan);
        }
        Ok(plans)
    }

    /// Adds what the caller gave to the plan of an item.
    pub(super) fn describe(&self, name: &str, plan: &mut ItemPlan) {
        if let Some(metadata) = self.foreign_metadata.get(name) {
            plan.set_foreign_metadata(metadata.clone());
        }
        if let Some(handler) = self.item_handlers.get(name) {
            plan.set_handler(handler);
        }
        if let Some(metadata) = self.item_metadata.get(name) {
            plan.set_metadata(metadata.clone());
        }
    }

    /// Writes everything but the record.
    async fn write(
        &self,
        attempt: &Attempt,
        plans: Vec<ItemPlan>,
        mut record: Record,
    ) -> Result<Record> {
        let place = attempt.place();
        let context = Context {
            engine: Arc::clone(&self.engine),
            store: Arc::clone(place.store()),
            priority: self.priority,
            progress: self.progress.clone(),
        };
        let started = Instant::now();
        let mut objects = Vec::new();
        let mut counts = Vec::with_capacity(plans.len());
        for plan in &plans {
            let planned = plan.objects(place);
            counts.push(planned.len());
            objects.extend(planned);
        }
        let written = write_all(&context, objects).await?;
        self.progress.stage_done("write", started);

        let started = Instant::now();
        let mut written = written.as_slice();
        let mut indexes = Vec::new();
        for (plan, count) in plans.into_iter().zip(counts) {
            record.notes.extend(plan.notes.iter().cloned());
            record.notes.truncate(NOTES_MAX);
            let (mine, rest) = written.split_at(count);
            written = rest;
            let (index, mut entry) = plan.complete(mine);
            let chunk = index.to_chunk()?;
            entry.index_bytes = chunk.chunk.len() as u64;
            entry.index_json_bytes = chunk.json_bytes;
            entry.index_hash = xxh3_128(&chunk.chunk);
            indexes.extend(index_objects(place, &entry, chunk));
            record.items.push(entry);
        }
        if let Some(claim) = attempt.claim() {
            let (bytes, crc32c) = (claim.len() as u64, crc32c(claim));
            record.claim = Some(Object { bytes, crc32c, content: None });
        }
        write_all(&context, indexes).await?;
        self.progress.stage_done("index", started);
        Ok(record)
    }

    /// Adds what the caller gave to a record.
    pub(super) fn complete(&self, mut record: Record) -> Record {
        record.metadata = tagged::object(self.metadata.clone());
        record.metrics.clone_from(&self.metrics);
        record
    }

    async fn publish(&self, attempt: &Attempt, record: Record) -> Result<Saved> {
        let mut record = self.complete(record);
        let timing = |s: &crate::io::Stage| Timing {
            stage: s.name.to_owned(),
            ms: (s.time.as_secs_f64() * 1e6).round() / 1e3,
        };
        record.timings = self.progress.stages().iter().map(timing).collect();
        record.committed_ms = self.engine.clock().unix_ms();
        let started = Instant::now();
        let place = attempt.commit(record.to_document()?).await?;
        self.progress.stage_done("publish", started);
        Ok(Saved::of(place, record, self.progress.stages()))
    }
}

impl Saved {
    pub(super) fn of(place: Place, record: Record, stages: Vec<crate::io::Stage>) -> Self {
        let total = |f: fn(&ItemEntry) -> u64| record.items.iter().map(f).sum();
        Self {
            place,
            data_bytes: total(|i| i.data_bytes),
            stored_bytes: total(|i| i.stored_bytes + i.index_bytes),
            stages,
            record,
        }
    }
}

pub(super) fn no_items() -> Error {
    Error::invalid("a checkpoint without items").hint("add at least one item")
}

fn ready(key: String, bytes: Vec<u8>) -> ObjectPlan {
    ObjectPlan { key, body: Body::Ready(Bytes::from(bytes)) }
}

pub(super) fn index_objects(
    place: &Place,
    entry: &ItemEntry,
    chunk: IndexChunk,
) -> [ObjectPlan; 2] {
    let document = place.key(&format!("{INDEXES}/{}/{DOCUMENT}", entry.name));
    let key = place.key(&index_chunk(&entry.name));
    [ready(key, chunk.chunk), ready(document, chunk.document)]
}
