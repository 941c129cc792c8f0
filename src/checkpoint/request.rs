//! What a managed save is asked to do, and what comes of asking.

use super::{
    handle::SaveHandle, items::Item, options::SaveOptions, saver::Queue, writer::CheckpointWriter,
};
use crate::{
    array::Borrowed,
    error::{Error, Result},
    policy::SkipReason,
    tasks::Priority,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One step to save: items, metrics, metadata, and how.
#[derive(Debug)]
#[must_use]
pub struct SaveRequest<'a> {
    pub(crate) step: u64,
    pub(crate) items: BTreeMap<String, Item>,
    pub(crate) duplicate: Option<String>,
    pub(crate) item_handlers: BTreeMap<String, String>,
    pub(crate) item_metadata: BTreeMap<String, Value>,
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) priority: Priority,
    pub(crate) queue: Option<Queue>,
    pub(crate) force: bool,
    pub(crate) overwrite: bool,
    pub(crate) options: Option<SaveOptions>,
    pub(crate) borrowed: Borrowed<'a>,
    started: Started<'a>,
}

/// Whom to tell of the handle before the call that made it returns.
struct Started<'a>(Option<Told<'a>>);

type Told<'a> = Box<dyn FnOnce(&SaveHandle) + Send + 'a>;

impl std::fmt::Debug for Started<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "told" } else { "not told" })
    }
}

impl<'a> SaveRequest<'a> {
    /// Asks to save `step`.
    pub fn new(step: u64) -> Self {
        Self {
            step,
            items: BTreeMap::new(),
            duplicate: None,
            item_handlers: BTreeMap::new(),
            item_metadata: BTreeMap::new(),
            metrics: BTreeMap::new(),
            metadata: Map::new(),
            priority: Priority::Background,
            queue: None,
            force: false,
            overwrite: false,
            options: None,
            borrowed: Borrowed::new(),
            started: Started(None),
        }
    }

    /// Gives the handle away as soon as the save has begun: `save` itself may still serve what exceeds the budget.
    pub fn on_start(mut self, told: impl FnOnce(&SaveHandle) + Send + 'a) -> Self {
        self.started = Started(Some(Box::new(told)));
        self
    }

    pub(crate) fn tell_started(&mut self, handle: &SaveHandle) {
        if let Some(told) = self.started.0.take() {
            told(handle);
        }
    }

    /// Gives everything but what is borrowed to a writer; `options` are for a request without its own.
    ///
    /// # Errors
    /// `Invalid` where two items have one name, or the queue cannot be had in a save with others.
    pub(crate) fn write(
        &mut self,
        mut writer: CheckpointWriter,
        options: &SaveOptions,
    ) -> Result<CheckpointWriter> {
        if let Some(name) = &self.duplicate {
            return Err(Error::invalid("two items have one name").with("item", name));
        }
        if writer.is_joint() && self.queue.is_some_and(|queue| queue != Queue::Wait) {
            return Err(Error::invalid("a save with others waits for the one before it")
                .hint("participants could disagree on what another queue would skip"));
        }
        let mut options = self.options.take().unwrap_or_else(|| options.clone());
        options.overwrite = self.overwrite;
        writer = writer
            .metadata(std::mem::take(&mut self.metadata))
            .options(options)
            .priority(self.priority);
        for (name, item) in std::mem::take(&mut self.items) {
            writer = writer.item(name, item);
        }
        for (name, handler) in std::mem::take(&mut self.item_handlers) {
            writer = writer.item_handler(name, handler);
        }
        for (name, value) in std::mem::take(&mut self.item_metadata) {
            writer = writer.item_metadata(name, value);
        }
        for (name, value) in &self.metrics {
            writer = writer.metric(name, *value);
        }
        Ok(writer)
    }

    /// Adds an item; two of one name are an error of the save.
    pub fn item(mut self, name: impl Into<String>, item: Item) -> Self {
        let name = name.into();
        if self.items.insert(name.clone(), item).is_some() {
            self.duplicate = Some(name);
        }
        self
    }

    /// Names what made an item and makes its value again, for whoever restores it; at most 200 bytes.
    pub fn item_handler(mut self, item: impl Into<String>, handler: impl Into<String>) -> Self {
        self.item_handlers.insert(item.into(), handler.into());
        self
    }

    /// Attaches a JSON value to an item, which is read without its data.
    pub fn item_metadata(mut self, item: impl Into<String>, value: Value) -> Self {
        self.item_metadata.insert(item.into(), value);
        self
    }

    /// Adds a metric; NaN and infinities are kept.
    pub fn metric(mut self, name: impl Into<String>, value: f64) -> Self {
        self.metrics.insert(name.into(), value);
        self
    }

    /// Sets the step's metadata: at most 1 MiB as JSON, with the metrics.
    pub fn metadata(mut self, metadata: Map<String, Value>) -> Self {
        self.metadata = metadata;
        self
    }

    /// Sets who goes first where saves and restores share the engine. Default: background.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets what happens where another save is in flight. Default: the manager's.
    pub fn queue(mut self, queue: Queue) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Saves whatever the policy says, an older step than the latest too. It replaces nothing.
    pub fn force(mut self) -> Self {
        self.force = true;
        self
    }

    /// Replaces the step where it is there: old or new, at every instant. It does not skip the policy.
    pub fn overwrite(mut self) -> Self {
        self.overwrite = true;
        self
    }

    /// Stores this step with other options than the manager's.
    pub fn options(mut self, options: SaveOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Lends the memory of the leaves that were made with `borrowed`; it is copied before the save returns.
    pub fn borrowing(mut self, borrowed: Borrowed<'a>) -> Self {
        self.borrowed = borrowed;
        self
    }
}

/// What came of a request.
#[derive(Clone, Debug)]
#[must_use]
pub enum SaveOutcome {
    /// The state is captured and is being saved.
    Started(SaveHandle),
    /// Nothing is saved; why.
    Skipped(SkipReason),
}

impl SaveOutcome {
    /// Returns the handle of a save that was started.
    #[must_use]
    pub fn handle(&self) -> Option<&SaveHandle> {
        match self {
            Self::Started(handle) => Some(handle),
            Self::Skipped(_) => None,
        }
    }
}
