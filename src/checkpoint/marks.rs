//! Marks of a run: who reads a step, who deletes it, which steps are pinned, and who writes (spec/commit.md).
//!
//! ```text
//! .milepost/leases/<step>.<id>           a reader, renewed while it reads
//! .milepost/leases/<step>.delete-<id>    a remover, between its decision and the burial
//! .milepost/pins/<step>                  never deleted, until it is unpinned
//! .milepost/tmp/<id>.lease               a writer, beside its attempt
//! ```
//!
//! A reader puts its mark, then looks for removers; a remover puts its mark, then looks for readers and pins. So
//! at least one of two sees the other and gives way.
//!
//! **Invariant:** a mark that cannot be read makes nothing deletable.

use super::{
    layout::{DOCUMENT, INDEXES, LEASES, MARK, PINS, TMP, parse_revision},
    lease::{Holder, Holding, LEASE_EXPIRY, Lease, Life, Mark, StoreTime, is_ours},
    publish::{Found, look},
};
use crate::{
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, Span},
    tasks::Priority,
};
use bytes::Bytes;
use milepost_formats::record::{Claim, parse_claim};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::SystemTime};

/// How the id in a remover's mark begins.
const DELETE: &str = "delete-";
/// A sync that meets files which others are deleting is tried this often.
const SYNC_ROUNDS_MAX: u32 = 32;
/// No pin or claim is longer.
const DOCUMENT_BYTES_MAX: u64 = 64 << 10;

/// A step that no policy and no `rm` deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The step.
    pub step: u64,
    /// What the user gave as the reason.
    pub why: String,
    /// When it was pinned, in Unix milliseconds.
    pub since_ms: u64,
}

/// What a lease of a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseKind {
    /// The step is being read.
    Reader,
    /// The step is about to be deleted.
    Deleting,
}

/// A lease of a step, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// The step.
    pub step: u64,
    /// What it is for.
    pub kind: LeaseKind,
    /// Who holds it, for people.
    pub holder: String,
    /// Whether the holder may still live.
    pub alive: bool,
}

/// A save that is on its way, or was left behind.
#[derive(Clone, Debug)]
pub struct WriterInfo {
    /// The step it writes, where that is known.
    pub step: Option<u64>,
    /// The id of the attempt.
    pub id: String,
    /// Where it writes.
    pub place: Place,
    /// Whether the writer may still live.
    pub alive: bool,
    /// When it began, in Unix milliseconds; 0 where that is not known.
    pub since_ms: u64,
}

/// Keeps a step from being deleted while it is read.
///
/// Dropping it removes the mark; where the store hangs, that is given up after a second and the mark expires.
#[derive(Debug)]
pub struct StepLease {
    step: u64,
    lease: Lease,
}

impl StepLease {
    /// Takes a lease of `step`, which need not be there: open it afterwards.
    ///
    /// # Errors
    /// `Conflict` where the step is being deleted, `Unsupported` on a store that cannot be written.
    ///
    /// # Cancel safety
    /// Dropped: no lease is held.
    pub async fn take(engine: &Arc<Engine>, run: &Place, step: u64) -> Result<Self> {
        writable(run)?;
        let id = format!("{:032x}", engine.clock().unique_id());
        let holder = Holder::this(engine, &id, Some(step));
        let key = run.key(&format!("{LEASES}/{step}.{id}"));
        let lease = Lease::take(run.store(), &key, &holder).await?.removed_on_drop();
        let mut time = StoreTime::of_run(engine, run);
        if let Some(remover) = first_alive(run, step, LeaseKind::Deleting, &mut time).await? {
            return Err(Error::conflict("the step is being deleted")
                .with("step", step)
                .with("holder", remover));
        }
        Ok(Self { step, lease })
    }

    /// Returns the step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Ends the lease and waits until its mark is gone; a drop does nearly the same.
    ///
    /// # Errors
    /// The store's; the mark counts as dead all the same.
    pub async fn release(self) -> Result<()> {
        self.lease.release().await
    }
}

fn writable(run: &Place) -> Result<()> {
    if run.store().capabilities().writable {
        return Ok(());
    }
    Err(Error::unsupported("the store is read-only: no mark can be put").with("store", run))
}

/// A remover's announcement; while it is there, no reader gets a lease.
#[derive(Debug)]
pub(super) struct Intent(Lease);

impl Intent {
    /// Announces that `step` is to be deleted.
    ///
    /// # Errors
    /// `Conflict` says who reads the step or why it is pinned; the announcement is withdrawn then.
    pub(super) async fn announce(engine: &Engine, run: &Place, step: u64) -> Result<Self> {
        let id = format!("{:032x}", engine.clock().unique_id());
        let holder = Holder::this(engine, &id, Some(step));
        let key = run.key(&format!("{LEASES}/{step}.{DELETE}{id}"));
        let intent = Self(Lease::take(run.store(), &key, &holder).await?.removed_on_drop());
        match check_unused(engine, run, step).await {
            Ok(()) => Ok(intent),
            Err(error) => {
                intent.withdraw().await;
                Err(error)
            }
        }
    }

    /// Ends it; what fails is a dead mark, which a sweep takes.
    pub(super) async fn withdraw(self) {
        if let Err(error) = self.0.release().await {
            tracing::warn!(%error, "a deletion's mark could not be removed");
        }
    }
}

/// Refuses to touch a step that is pinned or read.
///
/// # Errors
/// `Conflict` says who reads the step or why it is pinned.
pub(super) async fn check_unused(engine: &Engine, run: &Place, step: u64) -> Result<()> {
    if let Some(pin) = read_pin(run, step).await? {
        return Err(Error::conflict("the step is pinned")
            .with("step", step)
            .with("why", pin.why)
            .hint("`unpin` it first"));
    }
    let mut time = StoreTime::of_run(engine, run);
    match first_alive(run, step, LeaseKind::Reader, &mut time).await? {
        None => Ok(()),
        Some(reader) => Err(Error::conflict("the step is being read")
            .with("step", step)
            .with("holder", reader)
            .hint("wait for the reader; its lease ends with its process")),
    }
}

/// Splits the name of a lease.
pub(super) fn parse_lease(name: &str) -> Option<(u64, LeaseKind)> {
    let (step, id) = name.split_once('.')?;
    let kind = if id.starts_with(DELETE) { LeaseKind::Deleting } else { LeaseKind::Reader };
    Some((parse_step(step)?, kind))
}

fn parse_step(text: &str) -> Option<u64> {
    text.parse().ok().filter(|step: &u64| step.to_string() == text)
}

/// Returns the last segment of a key.
pub(super) fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// Returns the first holder of a live lease of that kind.
pub(super) async fn first_alive(
    run: &Place,
    step: u64,
    kind: LeaseKind,
    time: &mut StoreTime,
) -> Result<Option<String>> {
    for object in run.store().list(&run.key(LEASES)).await?.objects {
        if parse_lease(last(&object.key)) != Some((step, kind)) {
            continue;
        }
        if let Some(mark) = Mark::read(run.store(), &object.key).await?
            && mark.is_alive(time).await
        {
            return Ok(Some(mark.holder()));
        }
    }
    Ok(None)
}

/// Lists the leases of all steps, dead ones too; nothing is written, so the engine's clock has to do.
///
/// # Errors
/// The store's.
pub(crate) async fn leases(engine: &Engine, run: &Place) -> Result<Vec<LeaseInfo>> {
    let mut time = StoreTime::of_clock(engine);
    let mut found = Vec::new();
    for object in run.store().list(&run.key(LEASES)).await?.objects {
        let Some((step, kind)) = parse_lease(last(&object.key)) else { continue };
        if let Some(mark) = Mark::read(run.store(), &object.key).await? {
            let alive = mark.is_alive(&mut time).await;
            found.push(LeaseInfo { step, kind, holder: mark.holder(), alive });
        }
    }
    found.sort_by_key(|lease| lease.step);
    Ok(found)
}

#[derive(Serialize, Deserialize)]
struct PinDocument {
    why: String,
    since_ms: u64,
}

/// Pins a step, durably; a pin that is there gets the new reason.
///
/// # Errors
/// `Conflict` where the step is being deleted; then it is not pinned. The store's.
pub(crate) async fn pin(engine: &Engine, run: &Place, step: u64, why: &str) -> Result<()> {
    writable(run)?;
    let document = PinDocument { why: why.to_owned(), since_ms: engine.clock().unix_ms() };
    let failed = |e| Error::internal("a pin cannot be written as JSON").because(e);
    let bytes = Bytes::from(serde_json::to_vec(&document).map_err(failed)?);
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::invalid("the reason of a pin is too long").with("step", step));
    }
    let key = run.key(&format!("{PINS}/{step}"));
    let earlier = match run.store().put_new(&key, bytes.clone()).await {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            run.store().put(&key, vec![bytes], Priority::Foreground).await?;
            sync_busy(&run.join(PINS)).await?;
            true
        }
        result => result.map(|()| false)?,
    };
    let mut time = StoreTime::of_run(engine, run);
    match first_alive(run, step, LeaseKind::Deleting, &mut time).await? {
        Some(remover) if !earlier => {
            run.store().delete(vec![key]).await?;
            Err(Error::conflict("the step is being deleted")
                .with("step", step)
                .with("holder", remover))
        }
        _ => Ok(()),
    }
}

/// Makes what is below a place durable while others delete there: a file that vanishes is no failed sync.
pub(super) async fn sync_busy(place: &Place) -> Result<()> {
    for _ in 1..SYNC_ROUNDS_MAX {
        match place.store().sync(place.prefix()).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            result => return result,
        }
    }
    place.store().sync(place.prefix()).await
}

/// Unpins a step; tells whether it was pinned.
///
/// # Errors
/// The store's.
pub(crate) async fn unpin(run: &Place, step: u64) -> Result<bool> {
    writable(run)?;
    let key = run.key(&format!("{PINS}/{step}"));
    match run.store().head(&key).await {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    }
    run.store().delete(vec![key]).await?;
    Ok(true)
}

/// Lists the pinned steps in order.
///
/// # Errors
/// The store's.
pub(crate) async fn pins(run: &Place) -> Result<Vec<Pin>> {
    let mut found = Vec::new();
    for object in run.store().list(&run.key(PINS)).await?.objects {
        if let Some(step) = parse_step(last(&object.key)) {
            found.extend(read_pin(run, step).await?);
        }
    }
    found.sort_by_key(|pin| pin.step);
    Ok(found)
}

/// Reads a pin; one that is garbled or cannot be read pins all the same.
async fn read_pin(run: &Place, step: u64) -> Result<Option<Pin>> {
    let key = run.key(&format!("{PINS}/{step}"));
    let span = Span::Whole { bytes_max: DOCUMENT_BYTES_MAX };
    let parsed = match run.store().get(&key, span, Priority::Foreground).await {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == ErrorKind::Corrupt => None,
        Err(e) => return Err(e),
    };
    let PinDocument { why, since_ms } = parsed.unwrap_or_else(|| {
        tracing::warn!(step, "a pin cannot be read: the step counts as pinned");
        PinDocument { why: "unknown: the pin cannot be read".to_owned(), since_ms: 0 }
    });
    Ok(Some(Pin { step, why, since_ms }))
}

/// Lists the attempts at a run, dead ones too; nothing is written, so the engine's clock has to do.
///
/// # Errors
/// The store's.
pub(crate) async fn writers(engine: &Engine, run: &Place) -> Result<Vec<WriterInfo>> {
    let mut time = StoreTime::of_clock(engine);
    if !run.store().capabilities().rename {
        return claimed_writers(run, &mut time).await;
    }
    let mut found = Vec::new();
    let listing = run.store().list(&run.key(TMP)).await?;
    for object in listing.objects {
        let Some(id) = last(&object.key).strip_suffix(MARK) else { continue };
        let Some(mark) = Mark::read(run.store(), &object.key).await? else { continue };
        let (step, since_ms) = match &mark.holding {
            Holding::Known(holder) => (holder.step, holder.since_ms),
            _ => (None, 0),
        };
        let alive = mark.is_alive(&mut time).await;
        let (id, place) = (id.to_owned(), run.join(&format!("{TMP}/{id}")));
        found.push(WriterInfo { step, id, place, alive, since_ms });
    }
    for id in listing.prefixes {
        if !found.iter().any(|writer| writer.id == id) {
            let place = run.join(&format!("{TMP}/{id}"));
            found.push(WriterInfo { step: None, id, place, alive: false, since_ms: 0 });
        }
    }
    Ok(found)
}

async fn claimed_writers(run: &Place, time: &mut StoreTime) -> Result<Vec<WriterInfo>> {
    let mut found = Vec::new();
    for name in run.store().list(run.prefix()).await?.prefixes {
        let (plain, _) = parse_revision(&name);
        // The run's format is not known here: whatever its prefix, a name ends with the number.
        let digits = plain.len() - plain.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let Ok(step) = plain[plain.len() - digits..].parse() else { continue };
        let place = run.join(&name);
        if !matches!(look(&place).await?, Found::Nothing) {
            continue;
        }
        if let Some((claim, modified)) = read_claim(&place).await? {
            let (step, since_ms) = (Some(step), claim.heartbeat_ms);
            let alive = is_claim_alive(&claim, modified, time).await;
            found.push(WriterInfo { step, id: claim.writer, place, alive, since_ms });
        }
    }
    Ok(found)
}

/// Reads the claim of a prefix with its time; nothing where there is none that we could have written.
pub(super) async fn read_claim(place: &Place) -> Result<Option<(Claim, SystemTime)>> {
    let key = place.key(&format!("{INDEXES}/{DOCUMENT}"));
    let span = Span::Whole { bytes_max: DOCUMENT_BYTES_MAX };
    let bytes = match place.store().get(&key, span, Priority::Sweep).await {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Ok(Some(claim)) = parse_claim(&bytes) else { return Ok(None) };
    match place.store().head(&key).await {
        Ok(meta) => Ok(Some((claim, meta.modified))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Tells whether the writer of a claim may still be at work.
pub(super) async fn is_claim_alive(
    claim: &Claim,
    modified: SystemTime,
    time: &mut StoreTime,
) -> bool {
    let holder = claim.holder.as_ref().and_then(Holder::from_json);
    match holder.map_or(Life::Unknown, |holder| holder.life()) {
        Life::Alive => true,
        Life::Dead => false,
        Life::Unknown => is_ours(&claim.writer) || !time.is_older(modified, LEASE_EXPIRY).await,
    }
}
