//! Finding the steps of a run, and telling what a place is.
//!
//! A step is a directory whose name is a number; on object stores it may have revisions (`12.r1`), of which the
//! highest committed one is the step. Other files and directories are left alone and never listed. A step whose
//! record is missing (on disks) or bad is *damaged*: listed as such, skipped by `newest`.

use crate::{
    checkpoint::{Checkpoint, Engine, Peek, Place, parse_revision, peek, revision_name},
    error::{Error, ErrorKind, Result},
    tasks::wait,
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Whether a step can be restored.
#[derive(Clone, Debug)]
pub enum StepState {
    /// It is committed.
    Committed(Box<Checkpoint>),
    /// Its record is missing or bad; why.
    Damaged(String),
}

/// One step of a run.
#[derive(Clone, Debug)]
pub struct StepEntry {
    /// The step.
    pub step: u64,
    /// Where it is.
    pub place: Place,
    /// Whether it can be restored.
    pub state: StepState,
}

/// A run: the place below which steps are saved.
#[derive(Clone, Debug)]
pub struct Run {
    engine: Arc<Engine>,
    place: Place,
}

impl Run {
    /// Names the run at `place`; nothing is read.
    #[must_use]
    pub fn new(engine: &Arc<Engine>, place: &Place) -> Self {
        Self { engine: Arc::clone(engine), place: place.clone() }
    }

    /// Returns where the run is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Lists all steps in order: one listing, then the small record of each.
    ///
    /// # Errors
    /// `NotFound` where there is no run; the store's errors.
    pub async fn steps(&self) -> Result<Vec<StepEntry>> {
        let names = self.names().await?;
        let listed: Vec<_> = stream::iter(names)
            .map(|(step, revisions)| self.entry(step, revisions))
            .buffered(self.place.store().capabilities().concurrency.max(1) * 4)
            .try_collect()
            .await?;
        Ok(listed.into_iter().flatten().collect())
    }

    /// Lists all steps on the calling thread; as [`Run::steps`].
    ///
    /// # Errors
    /// As [`Run::steps`].
    pub fn steps_blocking(&self) -> Result<Vec<StepEntry>> {
        wait(self.steps())
    }

    /// Opens the newest committed step; damaged ones are passed over with a warning.
    ///
    /// # Errors
    /// `NotFound` where no step is committed.
    pub async fn newest(&self) -> Result<Checkpoint> {
        let names = self.names().await?;
        for (step, revisions) in names.into_iter().rev() {
            match self.entry(step, revisions).await? {
                Some(StepEntry { state: StepState::Committed(checkpoint), .. }) => {
                    return Ok(*checkpoint);
                }
                Some(StepEntry { state: StepState::Damaged(why), place, .. }) => {
                    tracing::warn!(step, %place, why, "a damaged step was passed over");
                }
                None => {}
            }
        }
        Err(Error::not_found("the run has no committed step").with("run", &self.place))
    }

    /// Opens one step.
    ///
    /// # Errors
    /// `NotFound` where it is not committed, `Corrupt` where it is damaged.
    pub async fn step(&self, step: u64) -> Result<Checkpoint> {
        let mut names = self.names().await?;
        let missing =
            || Error::not_found("no such step").with("step", step).with("run", &self.place);
        let revisions = names.remove(&step).ok_or_else(missing)?;
        let entry = self.entry(step, revisions).await?.ok_or_else(missing)?;
        let why = match entry.state {
            StepState::Committed(checkpoint) => return Ok(*checkpoint),
            StepState::Damaged(why) => why,
        };
        let error = match Checkpoint::open(&self.engine, &entry.place).await {
            // A newer format is no damage.
            Err(e) if e.kind() == ErrorKind::Unsupported => e,
            _ => Error::corrupt(why).hint("restore another step; `milepost verify` says more"),
        };
        Err(error.with("step", step).with("checkpoint", &entry.place))
    }

    /// Returns the steps with the names of their revisions, highest first.
    async fn names(&self) -> Result<BTreeMap<u64, Vec<String>>> {
        let listing = self.place.store().list(self.place.prefix()).await?;
        if listing.prefixes.is_empty() && listing.objects.is_empty() {
            return Err(Error::not_found("no run here").with("run", &self.place));
        }
        let mut names: BTreeMap<u64, Vec<(u64, String)>> = BTreeMap::new();
        for name in listing.prefixes {
            let (step, revision) = parse_revision(&name);
            // One name a number: `0012` is somebody else's, and revisions exist on object stores only.
            let canonical = step.bytes().all(|b| b.is_ascii_digit())
                && (step == "0" || !step.starts_with('0'))
                && (revision == 0 || !self.place.store().capabilities().rename);
            if let (true, Ok(step)) = (canonical, step.parse()) {
                names.entry(step).or_default().push((revision, name));
            }
        }
        let sorted = |mut revisions: Vec<(u64, String)>| {
            revisions.sort_unstable_by_key(|(revision, _)| std::cmp::Reverse(*revision));
            revisions.into_iter().map(|(_, name)| name).collect()
        };
        Ok(names.into_iter().map(|(step, revisions)| (step, sorted(revisions))).collect())
    }

    async fn entry(&self, step: u64, revisions: Vec<String>) -> Result<Option<StepEntry>> {
        let has_directories = self.place.store().capabilities().rename;
        let mut revisions = VecDeque::from(revisions);
        let highest = revisions.front().map_or(0, |name| parse_revision(name).1);
        let mut next = highest;
        while let Some(name) = revisions.pop_front() {
            let place = self.place.join(&name);
            let state = match peek(&self.engine, &place).await? {
                Peek::Checkpoint(checkpoint) => StepState::Committed(checkpoint),
                Peek::Bad(error) => StepState::Damaged(error.to_string()),
                Peek::Nothing if has_directories => {
                    StepState::Damaged("the commit record is missing".to_owned())
                }
                // A tombstone where the listing ended: an overwrite was committed after it was made.
                Peek::Revoked if !has_directories && parse_revision(&name).1 == next => {
                    next += 1;
                    revisions.push_front(revision_name(&step.to_string(), next));
                    continue;
                }
                // On object stores a prefix without a record was never committed.
                Peek::Nothing | Peek::Revoked | Peek::Run | Peek::Foreign => continue,
            };
            return Ok(Some(StepEntry { step, place, state }));
        }
        Ok(None)
    }
}

/// Opens a checkpoint by its own place, or the newest step of the run there.
///
/// # Errors
/// `NotFound` where neither is there.
pub async fn open(engine: &Arc<Engine>, place: &Place) -> Result<Checkpoint> {
    match peek(engine, place).await? {
        Peek::Checkpoint(checkpoint) => Ok(*checkpoint),
        Peek::Run => Run::new(engine, place).newest().await,
        Peek::Nothing => match Run::new(engine, place).newest().await {
            Err(e) if e.kind() == ErrorKind::NotFound => Checkpoint::open(engine, place).await,
            other => other,
        },
        Peek::Bad(error) => Err(error),
        Peek::Revoked | Peek::Foreign => Checkpoint::open(engine, place).await,
    }
}
