//! Finding the steps of a run, and telling what a place is.
//!
//! A step is a directory whose name is a number, or one in a format of the run's (`step_00000012`); on object stores it
//! may have revisions (`12.r1`), of which the highest committed one is the step. Other files and directories are left alone and never listed. A step whose
//! record is missing (on disks) or bad is *damaged*: listed as such, skipped by `newest`.

use super::names::StepFormats;
use crate::{
    checkpoint::{
        Checkpoint, CheckpointWriter, Engine, Peek, Place, RunOptions, found, parse_revision, peek,
        revision_name,
    },
    error::{Error, ErrorKind, Result},
    tasks::wait,
};
use futures::{StreamExt, TryStreamExt, stream};
use milepost_formats::record::RunMembers;
use serde_json::{Map, Value};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// The names that mean one step: the rank of their format, the name without revision, and the revision.
pub(super) type Names = VecDeque<(usize, String, u64)>;

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

impl StepEntry {
    pub(super) fn is_committed(&self) -> bool {
        self.writer().is_some()
    }

    /// Returns who wrote it, where it can be restored.
    pub(super) fn writer(&self) -> Option<&str> {
        match &self.state {
            StepState::Committed(checkpoint) => Some(&checkpoint.record().writer),
            StepState::Damaged(_) => None,
        }
    }

    /// Tells whether the other one is the same attempt at the step.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.place.name() == other.place.name() && self.writer() == other.writer()
    }
}

/// A run: the place below which steps are saved.
#[derive(Clone, Debug)]
pub struct Run {
    engine: Arc<Engine>,
    place: Place,
    formats: Arc<StepFormats>,
    metadata: Arc<Map<String, Value>>,
}

impl Run {
    /// Names the run at `place`; nothing is read, so its steps are taken for plain numbers.
    #[must_use]
    pub fn new(engine: &Arc<Engine>, place: &Place) -> Self {
        Self::of(engine, place, RunMembers::default())
    }

    fn of(engine: &Arc<Engine>, place: &Place, members: RunMembers) -> Self {
        let formats = Arc::new(StepFormats::from(members.step_format));
        let metadata = Arc::new(members.metadata);
        Self { engine: Arc::clone(engine), place: place.clone(), formats, metadata }
    }

    /// Makes the run whose document has these members.
    pub(super) fn said(
        engine: &Arc<Engine>,
        place: &Place,
        members: &Map<String, Value>,
    ) -> Result<Self> {
        let members = RunMembers::from_members(members);
        let members = members.map_err(|e| Error::from(e).with("run", place))?;
        Ok(Self::of(engine, place, members))
    }

    /// Opens the run at `place`: its document says how steps are named; without one they are plain numbers.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` where the document cannot be read; the store's errors.
    pub async fn open(engine: &Arc<Engine>, place: &Place) -> Result<Self> {
        match peek(engine, place).await? {
            Peek::Run(members) => Self::said(engine, place, &members),
            Peek::Bad(error) => Err(error.with("run", place)),
            _ => Ok(Self::new(engine, place)),
        }
    }

    /// Creates the run at `place`, or opens the one that is there.
    ///
    /// # Errors
    /// `Invalid` where the format is; `AlreadyExists` where the run that is there names its steps otherwise; the
    /// store's errors.
    pub async fn create(engine: &Arc<Engine>, place: &Place, options: &RunOptions) -> Result<Self> {
        Ok(Self::of(engine, place, found(place, options).await?))
    }

    /// Finds and names steps by these formats, whatever the run's document says.
    ///
    /// # Errors
    /// `Invalid` where a format is.
    pub fn with_formats(mut self, formats: impl Into<StepFormats>) -> Result<Self> {
        self.formats = Arc::new(formats.into());
        self.formats.validate()?;
        Ok(self)
    }

    /// Returns how steps are named.
    #[must_use]
    pub fn formats(&self) -> &StepFormats {
        &self.formats
    }

    /// Returns the user's metadata as it was written when the run was created; nothing where it was not read.
    #[must_use]
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// Starts to save a step under its name in this run.
    pub fn writer(&self, step: u64) -> CheckpointWriter {
        let step_format = self.formats.write.clone();
        let name = step_format.name(step);
        let metadata = Map::clone(&self.metadata);
        CheckpointWriter::step(&self.engine, &self.place, step)
            .named(&name)
            .founding(RunMembers { step_format, metadata })
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
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
        self.steps_above(None).await
    }

    /// Lists the steps again; records are read of names that are not known only.
    pub(super) async fn refresh(
        &self,
        known: &BTreeMap<u64, StepEntry>,
    ) -> Result<BTreeMap<u64, StepEntry>> {
        let mut fresh = BTreeMap::new();
        for (step, names) in self.names().await? {
            let first = names.front().map(|(_, plain, revision)| revision_name(plain, *revision));
            let entry = match known.get(&step) {
                Some(entry) if first.as_deref() == Some(entry.place.name()) => Some(entry.clone()),
                _ => self.entry(step, names).await?,
            };
            fresh.extend(entry.map(|entry| (step, entry)));
        }
        Ok(fresh)
    }

    /// Lists the steps above one, as [`Run::steps`].
    pub(super) async fn steps_above(&self, above: Option<u64>) -> Result<Vec<StepEntry>> {
        let mut names = self.names().await?;
        names.retain(|step, _| above.is_none_or(|above| *step > above));
        let listed: Vec<_> = stream::iter(names)
            .map(|(step, names)| self.entry(step, names))
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
        for (step, names) in names.into_iter().rev() {
            let Some(entry) = self.entry(step, names).await? else { continue };
            match (entry.state, entry.place) {
                (StepState::Committed(checkpoint), _) => return Ok(*checkpoint),
                (StepState::Damaged(why), place) => {
                    tracing::warn!(step, %place, why, "a damaged step was passed over");
                }
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
        let revisions = names.remove(&step);
        let missing = || {
            let error =
                Error::not_found("no such step").with("step", step).with("run", &self.place);
            let below = names.range(..step).next_back().map(|(step, _)| step.to_string());
            let above = names.range(step..).next().map(|(step, _)| step.to_string());
            match [below, above].into_iter().flatten().collect::<Vec<_>>().join(" and ") {
                near if near.is_empty() => error,
                near => error.hint(format!("the nearest are {near}")),
            }
        };
        let entry = self.entry(step, revisions.ok_or_else(missing)?).await?.ok_or_else(missing)?;
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

    /// Returns the steps with their names: those of the format that writes first, the highest revision first.
    pub(super) async fn names(&self) -> Result<BTreeMap<u64, Names>> {
        let listing = self.place.store().list(self.place.prefix()).await?;
        if listing.prefixes.is_empty() && listing.objects.is_empty() {
            return Err(Error::not_found("no run here").with("run", &self.place));
        }
        let has_directories = self.place.store().capabilities().rename;
        let mut names: BTreeMap<u64, Names> = BTreeMap::new();
        for name in listing.prefixes {
            let (plain, revision) = parse_revision(&name);
            let Some((step, rank)) = self.formats.parse(plain) else { continue };
            // Revisions exist on object stores only.
            if revision == 0 || !has_directories {
                names.entry(step).or_default().push_back((rank, plain.to_owned(), revision));
            }
        }
        for names in names.values_mut() {
            let order = |(rank, _, revision): &(usize, _, u64)| (*rank, Reverse(*revision));
            names.make_contiguous().sort_unstable_by_key(order);
        }
        Ok(names)
    }

    pub(super) async fn entry(&self, step: u64, mut names: Names) -> Result<Option<StepEntry>> {
        let has_directories = self.place.store().capabilities().rename;
        // The format that is looked at, and where its revisions end.
        let mut last = None;
        let mut looked_again = false;
        while let Some((rank, plain, revision)) = names.pop_front() {
            if last.is_none_or(|(of, _)| of != rank) {
                last = Some((rank, revision));
            }
            let place = self.place.join(&revision_name(&plain, revision));
            let state = match peek(&self.engine, &place).await? {
                Peek::Checkpoint(checkpoint) => StepState::Committed(checkpoint),
                Peek::Bad(error) => StepState::Damaged(error.to_string()),
                // Deleted since it was listed, perhaps saved again: what is listed now decides.
                Peek::Nothing if has_directories && !looked_again => {
                    looked_again = true;
                    names = self.names().await?.remove(&step).unwrap_or_default();
                    continue;
                }
                Peek::Nothing if has_directories => {
                    StepState::Damaged("the commit record is missing".to_owned())
                }
                // A tombstone where the listing ended: an overwrite was committed after it was made.
                Peek::Revoked if !has_directories && last == Some((rank, revision)) => {
                    last = Some((rank, revision + 1));
                    names.push_front((rank, plain, revision + 1));
                    continue;
                }
                // On object stores a prefix without a record was never committed.
                Peek::Nothing | Peek::Revoked | Peek::Run(_) | Peek::Foreign => continue,
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
        Peek::Run(members) => Run::said(engine, place, &members)?.newest().await,
        Peek::Nothing => match Run::new(engine, place).newest().await {
            Err(e) if e.kind() == ErrorKind::NotFound => Checkpoint::open(engine, place).await,
            other => other,
        },
        Peek::Bad(error) => Err(error),
        Peek::Revoked | Peek::Foreign => Checkpoint::open(engine, place).await,
    }
}
