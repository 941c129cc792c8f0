//! How a checkpoint becomes visible: whole, at one instant, with one winner (spec/commit.md).
//!
//! An [`Attempt`] is where one save writes its objects before anybody sees them.
//!
//! - With directory renames (local disks, memory): a directory below `.milepost/tmp` of the run, or a hidden
//!   sibling of a standalone checkpoint, with a mark beside it that says who writes. Committing syncs it, then renames
//!   it to its name; an overwrite exchanges the two and sweeps the old one afterwards. `_milepost/zarr.json` is written
//!   first: a sweeper that took the writer for dead moves the directory away whole, so where that object is
//!   missing at the end, the attempt is lost and must not be committed, whatever was written since.
//! - Without (object stores): a prefix of its own, claimed by a conditional create of `_milepost/zarr.json` and committed
//!   by a conditional create of `zarr.json`. An abandoned attempt is revoked by creating that same object first.
//!
//! **Invariant:** nothing that is visible is deleted or changed before its replacement is committed.

mod adopt;

pub(crate) use adopt::{Ending, Handover, committed, end};

use adopt::directory_of;

use super::layout::{DOCUMENT, INDEXES, MARK, RECORD_BYTES_MAX, revision_name};
use super::{
    lease::{Holder, Lease, StoreTime},
    marks::{Intent, check_unused, is_claim_alive, read_claim},
    writer::Saved,
};
use crate::{
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Listing, Place, RenameMode, Span},
    tasks::{PerProcess, Priority, sleep},
};
use bytes::Bytes;
use milepost_formats::{
    index::index_group_document,
    record::{Claim, Record, Root, claim_document, deleted_document, revoked_document},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// No step was ever overwritten so often; it bounds the search for a free revision.
const REVISIONS_MAX: u64 = 10_000;
/// A failed save is swept this often, with longer and longer pauses: its last jobs may still make files.
const ABANDON_ROUNDS: u32 = 6;

/// When a save counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After a crash of the machine it is there: data, files and directories are synced before it is visible.
    #[default]
    Durable,
    /// Visible whole or not at all, but a crash of the machine may lose it: for scratch.
    Published,
}

/// What the root document of a place says, and its bytes.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing is there, or no document.
    Nothing,
    /// A document that could be read.
    Root(Root),
    /// A document that is damaged or too new.
    Bad(Error),
}

/// Reads the root document of a place.
///
/// # Errors
/// Those of the store; a bad document is no error here.
pub(crate) async fn look(place: &Place) -> Result<Found> {
    let span = Span::Whole { bytes_max: RECORD_BYTES_MAX };
    match place.store().get(&place.key(DOCUMENT), span, Priority::Restore).await {
        Ok(bytes) => Ok(match Root::parse(&bytes) {
            Ok(root) => Found::Root(root),
            Err(error) => {
                let object = place.key(DOCUMENT);
                Found::Bad(Error::from(error).with("object", object).with("checkpoint", place))
            }
        }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(Found::Bad(e)),
        Err(e) => Err(e),
    }
}

/// What a save wants to become.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// Where the checkpoint is to be.
    pub(crate) target: Place,
    /// The run it is a step of.
    pub(crate) run: Option<Place>,
    /// The step, where it is one: others are told.
    pub(crate) step: Option<u64>,
    /// Whether it may replace one that is there.
    pub(crate) overwrite: bool,
    pub(crate) durability: Durability,
    /// The id of this writer.
    pub(crate) writer: String,
}

/// A save on its way: where its objects go until it is committed.
#[derive(Debug)]
pub(crate) struct Attempt {
    engine: Arc<Engine>,
    wish: Wish,
    place: Place,
    means: Means,
    /// The names of the items that are written, so that only these are swept.
    items: Vec<String>,
    /// Whether the names of this attempt and of an old checkpoint may have changed places.
    exchanging: AtomicBool,
}

#[derive(Debug)]
enum Means {
    /// The mark beside the directory, until that is gone.
    Rename { lease: Mutex<Option<Lease>> },
    /// The lower revision that is replaced comes with the names of its items.
    Claim { _lease: Lease, committed: Option<(Place, Vec<String>)>, claim: Bytes },
}

/// Where the attempts of one save were to be, and their ids: what an answer that was lost is made up from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempts(Arc<Mutex<Vec<(Place, String)>>>);

impl Attempts {
    pub(super) fn note(&self, target: &Place, writer: &str) {
        let mut attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.push((target.clone(), writer.to_owned()));
    }

    /// Returns what one of them has committed, if so.
    pub(crate) async fn committed(&self) -> Option<Saved> {
        let attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (place, writer) in attempts.into_iter().rev() {
            if let Ok(Found::Root(Root::Checkpoint { record, .. })) = look(&place).await
                && record.writer == writer
            {
                return Some(Saved::of(place, *record, Vec::new()));
            }
        }
        None
    }
}

impl Attempt {
    /// Returns where the checkpoint will be.
    pub(crate) fn target(&self) -> &Place {
        if matches!(self.means, Means::Claim { .. }) { &self.place } else { &self.wish.target }
    }

    /// Finds a place for the objects of a save, and refuses what could not be committed.
    ///
    /// # Errors
    /// `AlreadyExists` where a checkpoint is there and `overwrite` is not asked for; `Conflict` where another
    /// writer is at it; `Invalid` where something else is there.
    pub(crate) async fn begin(engine: &Arc<Engine>, wish: Wish) -> Result<Self> {
        let capabilities = wish.target.store().capabilities();
        if !capabilities.writable {
            return Err(Error::unsupported("the store is read-only").with("store", &wish.target));
        }
        if let (true, Some(run), Some(step)) = (wish.overwrite, &wish.run, wish.step) {
            // Found out now, not when all of it is written; the commit makes sure.
            check_unused(engine, run, step).await?;
        }
        if capabilities.rename {
            return Self::begin_rename(engine, wish).await;
        }
        if !capabilities.put_new {
            return Err(Error::unsupported("the store has no conditional create")
                .with("store", &wish.target)
                .hint(
                    "two writers could not be told apart; `milepost doctor` shows what it can do",
                ));
        }
        Self::begin_claim(engine, wish).await
    }

    /// Names the items that are written.
    pub(crate) fn with_items(mut self, items: impl IntoIterator<Item = String>) -> Self {
        self.items = items.into_iter().collect();
        self
    }

    /// Returns where the objects of the attempt are written.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Returns the group document of the indexes as this attempt stores it, where it has its own.
    pub(crate) fn claim(&self) -> Option<&Bytes> {
        match &self.means {
            Means::Rename { .. } => None,
            Means::Claim { claim, .. } => Some(claim),
        }
    }

    async fn begin_rename(engine: &Arc<Engine>, wish: Wish) -> Result<Self> {
        refuse_occupied(&wish).await?;
        let (directory, name) = directory_of(&wish);
        let place = directory.join(&name);
        let store = place.store();
        let holder = Holder::this(engine, &wish.writer, wish.step);
        // The mark is there before the directory and goes after it.
        let lease = Lease::take(store, &mark_of(&place), &holder).await?;
        let lease = Mutex::new(Some(lease));
        let (means, exchanging) = (Means::Rename { lease }, AtomicBool::new(false));
        let engine = Arc::clone(engine);
        let attempt = Self { engine, wish, place, means, items: Vec::new(), exchanging };
        match attempt.make_directory().await {
            Ok(()) => Ok(attempt),
            Err(error) => {
                attempt.abandon().await;
                Err(error)
            }
        }
    }

    async fn make_directory(&self) -> Result<()> {
        let store = self.place.store();
        store.create_dir(self.place.prefix()).await?;
        let key = self.place.key(&format!("{INDEXES}/{DOCUMENT}"));
        store.put(&key, vec![index_group_document().into()], Priority::Foreground).await
    }

    /// Ends the lease and removes the mark; what fails is a dead mark, which a sweep takes.
    async fn release(&self) {
        let Means::Rename { lease } = &self.means else { return };
        let lease = lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lease) = lease
            && let Err(error) = lease.release().await
        {
            tracing::debug!(%error, "the mark of an attempt could not be removed");
        }
    }

    async fn begin_claim(engine: &Arc<Engine>, wish: Wish) -> Result<Self> {
        let heartbeat_ms = engine.clock().unix_ms();
        let holder = Some(Holder::this(engine, &wish.writer, wish.step).to_json()?);
        let claim = Claim { writer: wish.writer.clone(), heartbeat_ms, holder };
        let claim = Bytes::from(claim_document(&claim));
        let mut committed = None;
        try_conditional_create(&wish).await?;
        for revision in 0..REVISIONS_MAX {
            if committed.is_some() && !wish.overwrite && wish.run.is_none() {
                return Err(exists(&wish.target));
            }
            if revision > 0 && wish.run.is_none() {
                return Err(Error::unsupported(
                    "a standalone checkpoint cannot be overwritten here",
                )
                .with("checkpoint", &wish.target)
                .hint("object stores have no rename: save it as a step of a run, or elsewhere"));
            }
            let name = revision_name(wish.target.name(), revision);
            let place = wish.target.parent().join(&name);
            match look(&place).await? {
                Found::Root(Root::Checkpoint { record, .. }) => {
                    committed = Some((place, item_names(&record)));
                    continue;
                }
                Found::Bad(_) => {
                    committed = Some((place, Vec::new()));
                    continue;
                }
                Found::Root(Root::Revoked { .. }) => continue,
                Found::Root(_) => return Err(occupied(&place)),
                Found::Nothing => {}
            }
            if committed.is_some() && !wish.overwrite {
                return Err(exists(&wish.target));
            }
            let key = place.key(&format!("{INDEXES}/{DOCUMENT}"));
            match place.store().put_new(&key, claim.clone()).await {
                Ok(()) => {
                    let lease = Lease::start(place.store(), &key, &claim, &wish.writer)?;
                    if is_claimed(&wish, revision + 1).await? {
                        // A sweeper freed this prefix while others went on above it: it is below them.
                        let revoked = revoked_document(&wish.writer).into();
                        place.store().put_new(&place.key(DOCUMENT), revoked).await?;
                        continue;
                    }
                    let exchanging = AtomicBool::new(false);
                    let means = Means::Claim { _lease: lease, committed, claim };
                    let engine = Arc::clone(engine);
                    return Ok(Self { engine, wish, place, means, items: Vec::new(), exchanging });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    revoke_if_abandoned(engine, &place, &wish).await?;
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::internal("no free revision of a step").with("step", wish.target.name()))
    }

    /// Makes the checkpoint visible: its record is the last object written.
    ///
    /// # Errors
    /// `AlreadyExists` or `Conflict` where another writer was first; a failed sync is final for the attempt.
    ///
    /// # Cancel safety
    /// Dropped before the rename or the conditional create: nothing is visible. Dropped after: it is committed.
    pub(crate) async fn commit(&self, record: Vec<u8>) -> Result<Place> {
        let store = self.place.store();
        let key = self.place.key(DOCUMENT);
        if let Means::Claim { committed, .. } = &self.means {
            let intent = if committed.is_some() { self.announce().await? } else { None };
            let put = store.put_new(&key, record.into()).await;
            if let Some(intent) = intent {
                intent.withdraw().await;
            }
            match put {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    return Err(Error::conflict("another writer revoked this attempt").because(e));
                }
                // The answer was lost: what is there decides.
                Err(e) if !is_committed(&self.place, &self.wish.writer).await => return Err(e),
                Ok(()) | Err(_) => {}
            }
            if let Some((old, items)) = committed {
                sweep_revision(old, items, deleted_document(&self.wish.writer)).await;
            }
            return Ok(self.place.clone());
        }
        store.put(&key, vec![record.into()], Priority::Foreground).await?;
        if self.wish.durability == Durability::Durable {
            store.sync(self.place.prefix()).await?;
        }
        let (from, to) = (self.place.prefix(), self.wish.target.prefix());
        let first = self.place.key(&format!("{INDEXES}/{DOCUMENT}"));
        store.head(&first).await.map_err(|e| self.lost(e))?;
        match store.rename(from, to, RenameMode::NoReplace).await {
            Ok(()) => self.release().await,
            // An existing checkpoint that may be replaced, or an empty directory; it refuses anything else.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => self.exchange().await?,
            Err(e) => return Err(self.lost(e)),
        }
        Ok(self.wish.target.clone())
    }

    /// Explains that the attempt's directory is not there any more.
    fn lost(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        Error::conflict("the attempt was swept: another process took this writer for dead")
            .with("attempt", &self.place)
            .hint("save again; a writer counts as dead after a minute without a heartbeat")
            .because(error)
    }

    /// Announces that a step is to be replaced: nobody may read it or have it pinned.
    async fn announce(&self) -> Result<Option<Intent>> {
        let (Some(run), Some(step)) = (&self.wish.run, self.wish.step) else { return Ok(None) };
        Intent::announce(&self.engine, run, step).await.map(Some)
    }

    /// Puts the new checkpoint in the place of the old one, then sweeps the old one.
    async fn exchange(&self) -> Result<()> {
        refuse_occupied(&self.wish).await?;
        let store = self.place.store();
        let (from, to) = (self.place.prefix(), self.wish.target.prefix());
        if !store.capabilities().exchange {
            return Err(Error::unsupported("the file system cannot exchange two directories")
                .with("checkpoint", &self.wish.target)
                .hint("remove the old checkpoint first, or save elsewhere"));
        }
        let intent = self.announce().await?;
        self.exchanging.store(true, Ordering::Relaxed);
        let exchanged = store.rename(from, to, RenameMode::Exchange).await;
        if let Some(intent) = intent {
            intent.withdraw().await;
        }
        exchanged.map_err(|e| self.lost(e))?;
        if self.wish.durability == Durability::Published {
            // What replaces a durable checkpoint is to be durable before that one is freed.
            store.sync(to).await?;
        }
        // The old checkpoint is under the attempt's name now and nobody's: what fails here is swept later.
        match store.delete_all(from).await {
            Ok(()) => self.release().await,
            Err(error) => tracing::warn!(%error, "the replaced checkpoint could not be swept"),
        }
        Ok(())
    }

    /// Sweeps what a failed save has written; what cannot be swept is left to `sweep`.
    pub(crate) async fn abandon(self) {
        let store = self.place.store();
        if matches!(self.means, Means::Claim { .. }) {
            let record = revoked_document(&self.wish.writer);
            match store.put_new(&self.place.key(DOCUMENT), record.into()).await {
                Ok(()) => {
                    let record = revoked_document(&self.wish.writer);
                    sweep_revision(&self.place, &self.items, record).await;
                }
                Err(error) => tracing::debug!(%error, "a failed attempt could not be revoked"),
            }
            return;
        }
        // After an exchange whose last step failed, the attempt's name holds the old checkpoint: it stays.
        let exchanged = self.exchanging.load(Ordering::Relaxed)
            && !is_committed(&self.place, &self.wish.writer).await;
        if exchanged {
            tracing::warn!(place = %self.place, "an overwrite failed late; the old checkpoint is here");
            return;
        }
        match delete_stubborn(&self.place).await {
            Ok(()) => self.release().await,
            Err(error) => {
                tracing::warn!(%error, place = %self.place, "a failed save could not be swept");
            }
        }
    }
}

/// Returns the key of the mark of the attempt at `place`.
pub(super) fn mark_of(place: &Place) -> String {
    format!("{}{MARK}", place.prefix())
}

/// Deletes a directory in which jobs of a failed save may still make files.
async fn delete_stubborn(place: &Place) -> Result<()> {
    let store = place.store();
    let mut result = Ok(());
    for round in 0..ABANDON_ROUNDS {
        result = store.delete_all(place.prefix()).await;
        if place.local_path().is_some() {
            sleep(Duration::from_millis(10 << round)).await;
        }
        let empty =
            store.list(place.prefix()).await.map(|l| l.objects.is_empty() && l.prefixes.is_empty());
        if result.is_ok() && matches!(empty, Ok(true)) {
            return Ok(());
        }
    }
    // The last round may have left what came during its pause.
    result.and(store.delete_all(place.prefix()).await)
}

/// Tells whether a revision of the step has a claim.
async fn is_claimed(wish: &Wish, revision: u64) -> Result<bool> {
    let place = wish.target.parent().join(&revision_name(wish.target.name(), revision));
    match place.store().head(&place.key(&format!("{INDEXES}/{DOCUMENT}"))).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Refuses a target that holds a checkpoint which may not be replaced, or anything else.
async fn refuse_occupied(wish: &Wish) -> Result<()> {
    let store = wish.target.store();
    let found = look(&wish.target).await?;
    let listing = store.list(wish.target.prefix()).await?;
    let empty = listing.objects.is_empty() && listing.prefixes.is_empty();
    let replaceable = match found {
        Found::Root(Root::Checkpoint { record, .. }) => {
            // Whatever else lies in it (another run, notes) would be freed with it.
            if let Some(stray) = stray(&record, &listing) {
                return Err(occupied(&wish.target.join(stray)));
            }
            true
        }
        Found::Root(_) => false,
        Found::Nothing if empty => match store.head(wish.target.prefix()).await {
            Ok(_) => false, // a file
            Err(_) => return Ok(()),
        },
        // A damaged checkpoint of ours still has its indexes.
        _ => listing.prefixes.iter().any(|name| name == INDEXES),
    };
    match (replaceable, wish.overwrite) {
        (true, true) => Ok(()),
        (true, false) => Err(exists(&wish.target)),
        (false, _) => Err(occupied(&wish.target)),
    }
}

/// Returns what is below a checkpoint and no part of it.
pub(super) fn stray<'a>(record: &Record, listing: &'a Listing) -> Option<&'a str> {
    let ours = |name: &str| name == INDEXES || record.items.iter().any(|item| item.name == name);
    listing.prefixes.iter().map(String::as_str).find(|name| !ours(name))
}

pub(super) fn item_names(record: &Record) -> Vec<String> {
    record.items.iter().map(|item| item.name.clone()).collect()
}

/// Tells whether the record at `place` is of this writer.
async fn is_committed(place: &Place, writer: &str) -> bool {
    match look(place).await {
        Ok(Found::Root(Root::Checkpoint { record, .. })) => record.writer == writer,
        _ => false,
    }
}

/// Refuses shared writing on a store that ignores the condition of a create; found out by trying, once a store.
async fn try_conditional_create(wish: &Wish) -> Result<()> {
    static TRIED: PerProcess<BTreeSet<String>> = PerProcess::new();
    let tried = || TRIED.lock();
    let store = wish.target.store();
    if tried().contains(store.url()) {
        return Ok(());
    }
    let key = wish.target.parent().key(&format!(".milepost/probe/create-{}", wish.writer));
    store.put_new(&key, Bytes::from(format!("first {}", wish.writer))).await?;
    let second = store.put_new(&key, Bytes::from(format!("second {}", wish.writer))).await;
    store.delete(vec![key]).await?;
    match second {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            tried().insert(store.url().to_owned());
            Ok(())
        }
        Err(e) => Err(e),
        Ok(()) => Err(Error::unsupported("the store ignores the condition of a create")
            .with("store", store.url())
            .hint("two writers of a step could destroy each other: use another store")),
    }
}

fn exists(target: &Place) -> Error {
    Error::exists("the checkpoint exists already")
        .with("checkpoint", target)
        .hint("choose another step, or overwrite it on purpose")
}

fn occupied(target: &Place) -> Error {
    Error::invalid("something that is no checkpoint is in the way")
        .with("checkpoint", target)
        .hint("choose another place, or move what is there")
}

/// Revokes the claimed attempt at `place` where its lease has run out.
async fn revoke_if_abandoned(engine: &Engine, place: &Place, wish: &Wish) -> Result<()> {
    let store = place.store();
    let mut time = StoreTime::of_run(engine, &wish.target.parent());
    let alive = match read_claim(place).await? {
        Some((claim, modified)) => is_claim_alive(&claim, modified, &mut time).await,
        None => false,
    };
    if alive {
        return Err(Error::conflict("another writer is saving this step")
            .with("checkpoint", place)
            .hint("wait for it to end; an abandoned attempt can be taken over after a minute"));
    }
    match store.put_new(&place.key(DOCUMENT), revoked_document(&wish.writer).into()).await {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            Err(Error::conflict("another writer committed this step just now")
                .with("checkpoint", place)
                .because(e))
        }
        Err(e) => Err(e),
    }
}

/// Makes a replaced revision invisible, then frees its bytes; its record stays as a tombstone.
async fn sweep_revision(old: &Place, items: &[String], tombstone: Vec<u8>) {
    let sweep = async {
        let record = old.key(DOCUMENT);
        old.store().put(&record, vec![tombstone.into()], Priority::Sweep).await?;
        for name in items.iter().map(String::as_str).chain([INDEXES]) {
            free_revision(old, name).await?;
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = sweep.await {
        tracing::warn!(%error, place = %old, "a replaced revision could not be swept");
    }
}

/// Frees what is below `name` of a revoked revision but its claim and its tombstone; returns the bytes.
pub(super) async fn free_revision(old: &Place, name: &str) -> Result<u64> {
    let kept = [old.key(DOCUMENT), old.key(&format!("{INDEXES}/{DOCUMENT}"))];
    let mut objects = old.store().list_all(&old.key(name)).await?;
    objects.retain(|object| !kept.contains(&object.key));
    let bytes = objects.iter().map(|object| object.bytes).sum();
    old.store().delete(objects.into_iter().map(|object| object.key).collect()).await?;
    Ok(bytes)
}
