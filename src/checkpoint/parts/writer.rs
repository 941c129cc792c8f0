//! The save of one participant, asked for in one place: a [`CheckpointWriter`] with its rendezvous, and what is known of the
//! others beforehand.

use super::{declare::Declaration, rendezvous::Rendezvous, together::Together};
use crate::{
    checkpoint::{
        items::Item,
        options::SaveOptions,
        writer::{CheckpointWriter, Saved},
    },
    error::Result,
    io::{Engine, Progress},
    store::Place,
    tasks::{Priority, wait},
};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};

/// How long a participant waits for the others, unless it is told otherwise.
const DEADLINE: Duration = Duration::from_mins(10);

/// One participant's side of a step that several processes save together: [`CheckpointWriter::together`] with less to choose,
/// and with [`ParticipantWriter::declarations`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ParticipantWriter {
    writer: CheckpointWriter,
    together: Together,
}

impl ParticipantWriter {
    /// Saves `step` of the run at `run` together with the others of the rendezvous.
    pub fn step(
        engine: &Arc<Engine>,
        run: &Place,
        step: u64,
        rendezvous: Arc<dyn Rendezvous>,
    ) -> Self {
        let writer = CheckpointWriter::step(engine, run, step);
        Self { writer, together: Together::new(rendezvous, DEADLINE) }
    }

    fn map(mut self, change: impl FnOnce(CheckpointWriter) -> CheckpointWriter) -> Self {
        self.writer = change(self.writer);
        self
    }

    /// Adds an item; two of one name are an error of the save.
    pub fn item(self, name: impl Into<String>, item: Item) -> Self {
        self.map(|writer| writer.item(name, item))
    }

    /// Sets the user's metadata of an item: the same for everybody who has it.
    pub fn item_metadata(self, item: impl Into<String>, metadata: Value) -> Self {
        self.map(|writer| writer.item_metadata(item, metadata))
    }

    /// Sets the user's metadata; that of participant 0 is stored.
    pub fn metadata(self, metadata: Map<String, Value>) -> Self {
        self.map(|writer| writer.metadata(metadata))
    }

    /// Adds a metric; those of participant 0 are stored.
    pub fn metric(self, name: impl Into<String>, value: f64) -> Self {
        self.map(|writer| writer.metric(name, value))
    }

    /// Sets how arrays are stored and when the save counts as done: the same for everybody.
    pub fn options(self, options: SaveOptions) -> Self {
        self.map(|writer| writer.options(options))
    }

    /// Sets who goes first where saves and restores share the engine. Default: foreground.
    pub fn priority(self, priority: Priority) -> Self {
        self.map(|writer| writer.priority(priority))
    }

    /// Sets the progress that is told about this participant's chunks.
    pub fn progress(self, progress: Progress) -> Self {
        self.map(|writer| writer.progress(progress))
    }

    /// Gives what everybody holds, by index, where it is known: then it need not be exchanged.
    pub fn declarations(mut self, declarations: Arc<Vec<Declaration>>) -> Self {
        self.together.declarations = Some(declarations);
        self
    }

    /// Sets how long this participant waits for the others at each meeting. Default: ten minutes.
    ///
    /// It has to be longer than what the slowest takes longer to write than the fastest.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.together.deadline = deadline;
        self
    }

    /// Declares what this participant holds.
    ///
    /// # Errors
    /// `Invalid` where a tree cannot be laid out.
    pub fn declaration(&self) -> Result<Declaration> {
        Declaration::of(&self.writer.items)
    }

    /// Saves on the calling thread; as [`ParticipantWriter::save`].
    ///
    /// # Errors
    /// As [`ParticipantWriter::save`].
    pub fn save_blocking(self) -> Result<Saved> {
        wait(self.save())
    }

    /// Saves together with the others; returns when the step is committed, or nobody can commit it any more.
    ///
    /// # Errors
    /// As [`CheckpointWriter::save`], and what another participant failed at, or who was missing. The step can be saved
    /// again at once. Where the store stops answering while others commit, the error says that the outcome is not known.
    ///
    /// # Cancel safety
    /// As [`CheckpointWriter::save`].
    pub fn save(self) -> impl Future<Output = Result<Saved>> {
        self.writer.joined(Some(self.together)).save()
    }
}
