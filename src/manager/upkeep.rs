//! Looking after a run without saving to it: pins, leases, deletion, and what dead writers left.

use super::steps::{Run, StepEntry, StepState};
use crate::{
    checkpoint::{
        Burial, Doomed, LeaseInfo, Leftover, Pin, Place, StepLease, SweepReport, WriterInfo, bury,
        leases, leftovers, pin, pins, sweep, unpin, writers,
    },
    error::{Error, Result},
};

impl Run {
    /// Keeps a step from being deleted, by policies and on purpose, until it is unpinned.
    ///
    /// # Errors
    /// `NotFound` where it is not there; the store's errors.
    pub async fn pin(&self, step: u64, why: &str) -> Result<()> {
        self.step(step).await?;
        pin(self.engine(), self.place(), step, why).await
    }

    /// Ends a pin; tells whether there was one.
    ///
    /// # Errors
    /// The store's.
    pub async fn unpin(&self, step: u64) -> Result<bool> {
        unpin(self.place(), step).await
    }

    /// Lists the pins.
    ///
    /// # Errors
    /// The store's.
    pub async fn pins(&self) -> Result<Vec<Pin>> {
        pins(self.place()).await
    }

    /// Keeps a step from being deleted while it is read.
    ///
    /// # Errors
    /// `NotFound` where it is not there, `Conflict` where it is being deleted.
    pub async fn lease(&self, step: u64) -> Result<StepLease> {
        let lease = StepLease::take(self.engine(), self.place(), step).await?;
        self.step(step).await?;
        Ok(lease)
    }

    /// Lists the leases of readers and of who deletes.
    ///
    /// # Errors
    /// The store's.
    pub async fn leases(&self) -> Result<Vec<LeaseInfo>> {
        leases(self.engine(), self.place()).await
    }

    /// Lists who is saving now, dead writers too.
    ///
    /// # Errors
    /// The store's.
    pub async fn writers(&self) -> Result<Vec<WriterInfo>> {
        writers(self.engine(), self.place()).await
    }

    /// Deletes a step: it is invisible first, then its bytes are freed. Returns where it was moved to, where it was.
    ///
    /// # Errors
    /// `NotFound` where it is not there, `Conflict` where it is pinned or read, `Corrupt` where it is damaged and
    /// `damaged` does not allow that.
    pub async fn remove(&self, step: u64, how: &Burial, damaged: bool) -> Result<Option<Place>> {
        let missing =
            || Error::not_found("no such step").with("step", step).with("run", self.place());
        let names = self.names().await?.remove(&step).ok_or_else(missing)?;
        let entry = self.entry(step, names).await?.ok_or_else(missing)?;
        if let (StepState::Damaged(why), false) = (&entry.state, damaged) {
            return Err(Error::corrupt(why)
                .with("step", step)
                .with("checkpoint", &entry.place)
                .hint("a damaged step is deleted only where that is asked for (`--damaged`)"));
        }
        let grave = bury(self.engine(), &self.doomed(&entry, damaged), how).await?;
        let moved_to = grave.kept().cloned();
        grave.free().await?;
        Ok(moved_to)
    }

    pub(super) fn doomed(&self, entry: &StepEntry, damaged: bool) -> Doomed {
        Doomed {
            run: self.place().clone(),
            checkpoint: entry.place.clone(),
            step: entry.step,
            damaged,
            writer: entry.writer().map(ToOwned::to_owned),
        }
    }

    /// Lists what dead writers and interrupted deletions left, and nothing else.
    ///
    /// # Errors
    /// The store's.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>> {
        leftovers(self.engine(), self.place()).await
    }

    /// Frees leftovers; one that has come to life meanwhile is left alone.
    ///
    /// # Errors
    /// The store's.
    pub async fn sweep(&self, leftovers: &[Leftover]) -> Result<SweepReport> {
        sweep(self.engine(), self.place(), leftovers).await
    }
}
