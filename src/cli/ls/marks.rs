//! What the run says of its steps besides their records: pins, leases, saves in the making.

use futures::executor::block_on;
use milepost::{
    LeaseInfo, LeaseKind, Pin, Result, Run, StepEntry, StepState, WriterInfo,
    formats::record::ItemKind,
};

/// The marks of a run as they were found.
#[derive(Debug)]
pub(crate) struct Marks {
    pins: Vec<Pin>,
    leases: Vec<LeaseInfo>,
    writers: Vec<WriterInfo>,
}

impl Marks {
    /// Reads the marks; writers on object stores only where `all`, for they cost requests for every step.
    pub(crate) fn of(run: &Run, all: bool) -> Result<Self> {
        let cheap = run.place().store().capabilities().rename;
        let writers = if cheap || all { block_on(run.writers())? } else { Vec::new() };
        Ok(Self { pins: block_on(run.pins())?, leases: block_on(run.leases())?, writers })
    }

    pub(super) fn writers(&self) -> &[WriterInfo] {
        &self.writers
    }

    /// Returns the pin of a step.
    pub(crate) fn pin(&self, step: u64) -> Option<&Pin> {
        self.pins.iter().find(|pin| pin.step == step)
    }

    /// Returns the leases of a step, dead ones too.
    pub(crate) fn leases(&self, step: u64) -> impl Iterator<Item = &LeaseInfo> {
        self.leases.iter().filter(move |lease| lease.step == step)
    }

    /// Returns a word for each mark of a step that holds now.
    pub(super) fn words(&self, step: u64) -> Vec<&'static str> {
        let has = |kind| self.leases(step).any(|lease| lease.alive && lease.kind == kind);
        let words = [
            ("pinned", self.pin(step).is_some()),
            ("leased", has(LeaseKind::Reader)),
            ("deleting", has(LeaseKind::Deleting)),
        ];
        words.into_iter().filter(|(_, there)| *there).map(|(word, _)| word).collect()
    }
}

/// Shows the marks of a step; `-` where it has none.
pub(super) fn words(entry: &StepEntry, marks: Option<&Marks>) -> String {
    let mut words = marks.map(|marks| marks.words(entry.step)).unwrap_or_default();
    if let StepState::Committed(checkpoint) = &entry.state
        && checkpoint.record().items.iter().any(|item| item.kind == ItemKind::Opaque)
    {
        words.push("opaque");
    }
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}
