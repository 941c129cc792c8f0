//! Sweeping what crashed, cancelled and deleted saves have left: a plan of dead things first, then the deed.
//!
//! [`leftovers`] only looks, and what it returns can be shown. [`sweep`] plans anew and frees what is in both plans, so that nothing which has come to life
//! meanwhile, and nothing that a caller made up, is touched. Several may sweep at once: what is gone is no error.
//!
//! ```text
//! .milepost/tmp/<id>      no live mark ─► renamed into the trash, freed: a writer that wakes up finds its
//! <name>.milepost-tmp-<id>                first object missing and does not commit
//! .milepost/trash/*       freed, after one sync: the rename that brought it there must not be undone by a crash
//! .milepost/parts/<id>    no live mark, and nothing was put for a minute ─► freed
//! <step>.rN (no renames)  claim expired ─► revoked by a conditional create, freed
//!                         revoked, or below a higher committed one ─► freed, the tombstone stays
//!                         deleted for an hour and the highest ─► the tombstone goes, too
//! ```

use super::{
    layout::{
        BESIDE, DOCUMENT, INDEXES, PARTS, PARTS_BESIDE, TRASH, parse_revision, revision_name,
    },
    leftovers::{Leftover, LeftoverKind, claim_key, leftovers, leftovers_beside},
    marks::sync_busy,
    publish::{Found, free_revision, item_names, look, mark_of},
};
use crate::{
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, RenameMode},
    tasks::Priority,
};
use milepost_formats::record::{Root, deleted_document, revoked_document};

/// What a sweep has done.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// What was freed.
    pub swept: Vec<Leftover>,
    /// The bytes of it.
    pub freed_bytes: u64,
    /// What is not dead any more, or gone.
    pub passed_over: Vec<Leftover>,
    /// What could not be freed, and why; another sweep tries again.
    pub failed: Vec<(Leftover, Error)>,
}

/// Frees those of `dead` that still are at the run.
///
/// # Errors
/// Those of planning; what cannot be freed is in the report.
///
/// # Cancel safety
/// Dropped: some is freed, the rest is a leftover again.
pub(crate) async fn sweep(engine: &Engine, run: &Place, dead: &[Leftover]) -> Result<SweepReport> {
    let plan = leftovers(engine, run).await?;
    let trash = run.join(TRASH);
    Ok(Sweeper { engine, root: run, trash: Some(trash), synced: false }.sweep(plan, dead).await)
}

/// Frees those of `dead` that still are beside the checkpoint: what has come to life meanwhile is left alone.
///
/// # Errors
/// Those of the planning; what cannot be freed is in the report.
pub async fn sweep_beside(
    engine: &Engine,
    target: &Place,
    dead: &[Leftover],
) -> Result<SweepReport> {
    let plan = leftovers_beside(engine, target).await?;
    Ok(Sweeper { engine, root: target, trash: None, synced: false }.sweep(plan, dead).await)
}

struct Sweeper<'a> {
    engine: &'a Engine,
    root: &'a Place,
    /// Where attempts go first; beside a checkpoint that stands alone, another name like theirs.
    trash: Option<Place>,
    synced: bool,
}

impl Sweeper<'_> {
    async fn sweep(mut self, plan: Vec<Leftover>, dead: &[Leftover]) -> SweepReport {
        let mut report = SweepReport::default();
        let same =
            |a: &Leftover, b: &Leftover| a.kind == b.kind && a.place.prefix() == b.place.prefix();
        let listed = |a: &&Leftover| !plan.iter().any(|b| same(a, b));
        report.passed_over = dead.iter().filter(listed).cloned().collect();
        for leftover in plan {
            if !dead.iter().any(|other| same(&leftover, other)) {
                continue;
            }
            match self.free(&leftover).await {
                Ok(true) => {
                    report.freed_bytes += leftover.bytes;
                    report.swept.push(leftover);
                }
                Ok(false) => report.passed_over.push(leftover),
                Err(error) => {
                    tracing::warn!(%error, place = %leftover.place, "a leftover could not be freed");
                    report.failed.push((leftover, error));
                }
            }
        }
        report
    }

    /// Frees one leftover; tells whether it was still to be freed.
    async fn free(&mut self, leftover: &Leftover) -> Result<bool> {
        let place = &leftover.place;
        let store = place.store();
        match leftover.kind {
            LeftoverKind::Attempt if store.capabilities().rename => self.attempt(place).await,
            LeftoverKind::Attempt => self.revoke(place).await,
            LeftoverKind::Trash => {
                self.sync().await?;
                store.delete_all(place.prefix()).await.map(|()| true)
            }
            LeftoverKind::Revision => self.revision(place).await,
            LeftoverKind::Tombstone => self.tombstone(place).await,
            LeftoverKind::Parts => {
                store.delete_all(place.prefix()).await?;
                delete(place, &mark_of(place)).await.map(|()| true)
            }
            LeftoverKind::Mark => delete(place, place.prefix()).await.map(|()| true),
            LeftoverKind::Probe => {
                match store.head(place.prefix()).await {
                    Ok(_) => delete(place, place.prefix()).await?,
                    Err(e) if e.kind() == ErrorKind::NotFound => {
                        store.delete_all(place.prefix()).await?;
                    }
                    Err(e) => return Err(e),
                }
                Ok(true)
            }
        }
    }

    /// Makes the names in the run durable once: what a rename moved here must not be needed any more.
    async fn sync(&mut self) -> Result<()> {
        if !self.synced {
            let place = if self.trash.is_some() { self.root.clone() } else { self.root.parent() };
            sync_busy(&place).await?;
            self.synced = true;
        }
        Ok(())
    }

    /// Takes the directory away whole, so that its writer, if it wakes up, cannot commit what is left of it.
    async fn attempt(&mut self, place: &Place) -> Result<bool> {
        let store = place.store();
        match store.head(&place.key(DOCUMENT)).await {
            // A replaced checkpoint may be in it, and the exchange be not durable yet.
            Ok(_) => self.sync().await?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        // Without parts nobody takes over what a late request may bring back under the attempt's name.
        store.delete_all(self.parts_of(place).prefix()).await?;
        let id = self.engine.clock().unique_id();
        let to = match &self.trash {
            Some(trash) => trash.join(&format!("{}-{id:032x}", place.name())),
            None => self.root.parent().join(&format!("{}{BESIDE}{id:032x}", self.root.name())),
        };
        let there = match store.rename(place.prefix(), to.prefix(), RenameMode::NoReplace).await {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        store.delete_all(to.prefix()).await?;
        delete(place, &mark_of(place)).await?;
        Ok(there)
    }

    /// Returns where the writers of an attempt put their parts, under whatever name its owner has given it.
    fn parts_of(&self, place: &Place) -> Place {
        let start = format!("{}{BESIDE}", self.root.name());
        let own = place.name().strip_prefix(&start).unwrap_or(place.name());
        let id = own.split_once(".t").map_or(own, |(id, _)| id);
        match &self.trash {
            Some(_) => self.root.join(&format!("{PARTS}/{id}")),
            None => self.root.parent().join(&format!("{start}{id}{PARTS_BESIDE}")),
        }
    }

    /// Makes an attempt impossible to commit, then frees it.
    async fn revoke(&self, place: &Place) -> Result<bool> {
        let id = format!("{:032x}", self.engine.clock().unique_id());
        match place.store().put_new(&place.key(DOCUMENT), revoked_document(&id).into()).await {
            Ok(()) => free_revision(place, "").await.map(|_| true),
            // It was committed, or another sweeps it.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn revision(&self, place: &Place) -> Result<bool> {
        match look(place).await? {
            Found::Root(Root::Checkpoint { record, .. }) => {
                let id = format!("{:032x}", self.engine.clock().unique_id());
                let tombstone = deleted_document(&id).into();
                let key = place.key(DOCUMENT);
                place.store().put(&key, vec![tombstone], Priority::Sweep).await?;
                for name in item_names(&record).iter().map(String::as_str).chain([INDEXES]) {
                    free_revision(place, name).await?;
                }
            }
            Found::Root(Root::Revoked { .. }) => {
                free_revision(place, "").await?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Removes what is left of a deleted revision, unless another has come above it.
    async fn tombstone(&self, place: &Place) -> Result<bool> {
        let (step, revision) = parse_revision(place.name());
        let above = place.parent().join(&revision_name(step, revision + 1));
        if is_taken(&above).await? {
            return Ok(false);
        }
        let record = place.key(DOCUMENT);
        // The claim first: without a record, it would be an attempt again.
        delete(place, &claim_key(place)).await?;
        delete(place, &record).await?;
        if is_taken(&above).await? {
            // A writer went past it just before: nobody may take the place below it.
            let id = format!("{:032x}", self.engine.clock().unique_id());
            match place.store().put_new(&record, deleted_document(&id).into()).await {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

async fn delete(place: &Place, key: &str) -> Result<()> {
    place.store().delete(vec![key.to_owned()]).await
}

async fn is_taken(place: &Place) -> Result<bool> {
    for key in [claim_key(place), place.key(DOCUMENT)] {
        match place.store().head(&key).await {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
