//! Attempts of several writers: handed over, taken over when who finalises is gone, ended by whoever gives up.
//!
//! ```text
//!            renames                                     conditional creates
//! handed     .milepost/tmp/<id>                          <step>.rN, its claim
//! taken over ─► .milepost/tmp/<id>.t<k>-<index>          nothing moves: the record has one winner
//! ended      ─► .milepost/trash/<name>-<unique>          a revoked record
//! committed  ─► <step>                                   the record
//! ```
//! With renames, the directory always has one owner, and each change of owner is a rename: a finaliser that was thought
//! dead finds its directory gone and can neither add to it nor exchange what has come to lie under its name.
//!
//! **Invariant:** an attempt ends once: committed, or so that nobody can commit it any more.

use super::{Attempt, Found, Means, Wish, look, mark_of};
use crate::{
    checkpoint::{
        layout::{BESIDE, DOCUMENT, INDEXES, TMP, TRASH},
        lease::{Holder, Lease},
    },
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, RenameMode},
};
use bytes::Bytes;
use milepost_formats::record::{Record, Root, revoked_document};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, atomic::AtomicBool};

/// A directory that moves while it is looked for is looked for again so often.
const SEARCHES: u32 = 8;

/// What others need to write into an attempt, and to finish it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// Where the objects go, relative to the run, or to what a checkpoint that stands alone lies in.
    place: String,
    claim: Option<String>,
    /// The lower revision that is replaced, relative to the same, with the names of its items.
    replaced: Option<(String, Vec<String>)>,
}

/// How an attempt of several writers has ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Committed(Place, Box<Record>),
    /// Nobody can commit it.
    Revoked,
}

impl Handover {
    /// Returns where the objects of the attempt go.
    pub(crate) fn place(&self, base: &Place) -> Place {
        base.join(&self.place)
    }
}

impl Attempt {
    /// Describes the attempt for those who write into it, too.
    pub(crate) fn handover(&self) -> Result<Handover> {
        let base = base_of(&self.wish);
        let relative = |place: &Place| {
            let below = place.prefix().strip_prefix(base.prefix());
            below.map(|below| below.trim_start_matches('/').to_owned())
        };
        let outside = || Error::internal("an attempt lies outside its run");
        let place = relative(&self.place).ok_or_else(outside)?;
        let Means::Claim { committed, claim, .. } = &self.means else {
            return Ok(Handover { place, claim: None, replaced: None });
        };
        let replaced = match committed {
            None => None,
            Some((old, items)) => Some((relative(old).ok_or_else(outside)?, items.clone())),
        };
        let claim = String::from_utf8(claim.to_vec())
            .map_err(|e| Error::internal("a claim is no text").because(e))?;
        Ok(Handover { place, claim: Some(claim), replaced })
    }

    /// Takes over an attempt of several writers whose finaliser is gone; `index` is the taker's.
    ///
    /// # Errors
    /// `Conflict` where the attempt is not there any more: it was committed, ended, or taken by another.
    pub(crate) async fn adopt(
        engine: &Arc<Engine>,
        wish: Wish,
        handover: &Handover,
        index: usize,
    ) -> Result<Self> {
        let base = base_of(&wish);
        let (place, means) = match &handover.claim {
            None => move_in(engine, (&wish, handover), index).await?,
            Some(claim) => {
                let (place, claim) = (handover.place(&base), Bytes::from(claim.clone()));
                let key = place.key(&format!("{INDEXES}/{DOCUMENT}"));
                let lease = Lease::start(place.store(), &key, &claim, &wish.writer)?;
                let old = handover.replaced.as_ref();
                let committed = old.map(|(old, items)| (base.join(old), items.clone()));
                (place, Means::Claim { _lease: lease, committed, claim })
            }
        };
        let (engine, exchanging) = (Arc::clone(engine), AtomicBool::new(false));
        Ok(Self { engine, wish, place, means, items: Vec::new(), exchanging })
    }

    /// Tells whether the directory of the attempt was taken from it.
    pub(crate) async fn is_lost(&self) -> bool {
        let first = self.place.key(&format!("{INDEXES}/{DOCUMENT}"));
        let renames = matches!(self.means, Means::Rename { .. });
        let gone = |e: &Error| e.kind() == ErrorKind::NotFound;
        renames && self.place.store().head(&first).await.as_ref().is_err_and(gone)
    }

    /// Lets go of an attempt that another has now.
    pub(crate) async fn let_go(self) {
        self.release().await;
    }
}

/// Returns the run, or what a checkpoint that stands alone lies in.
fn base_of(wish: &Wish) -> Place {
    wish.run.clone().unwrap_or_else(|| wish.target.parent())
}

/// Returns where the directories of an attempt lie, and how their names begin.
pub(super) fn directory_of(wish: &Wish) -> (Place, String) {
    match &wish.run {
        Some(run) => (run.join(TMP), wish.writer.clone()),
        None => (base_of(wish), format!("{}{BESIDE}{}", wish.target.name(), wish.writer)),
    }
}

/// Finds the directory of an attempt under whatever name its owner has given it; with the number of owners so far.
async fn find(wish: &Wish) -> Result<Option<(Place, u64)>> {
    match find_once(wish).await? {
        // A listing may miss a name that changes meanwhile.
        None => find_once(wish).await,
        found => Ok(found),
    }
}

async fn find_once(wish: &Wish) -> Result<Option<(Place, u64)>> {
    let (directory, start) = directory_of(wish);
    let names = directory.store().list(directory.prefix()).await?.prefixes;
    let owners = names.iter().filter_map(|name| {
        let rest = name.strip_prefix(&start)?;
        let number = match rest.strip_prefix(".t") {
            None if rest.is_empty() => 0,
            None => return None,
            Some(taken) => taken.split_once('-')?.0.parse().ok()?,
        };
        Some((directory.join(name), number))
    });
    Ok(owners.max_by_key(|(_, number)| *number))
}

fn lost(wish: &Wish) -> Error {
    Error::conflict("the attempt is not there any more").with("attempt", &wish.writer)
}

/// Renames the directory of an attempt to one that only the taker knows.
async fn move_in(
    engine: &Arc<Engine>,
    (wish, handover): (&Wish, &Handover),
    index: usize,
) -> Result<(Place, Means)> {
    let (directory, start) = directory_of(wish);
    let store = directory.store();
    for _ in 0..SEARCHES {
        let Some((from, owners)) = find(wish).await? else { break };
        let taken = format!(".t{}-{index}", owners + 1);
        let place = directory.join(&format!("{start}{taken}"));
        let holder = Holder::this(engine, &format!("{}{taken}", wish.writer), wish.step);
        let lease = Lease::take(store, &mark_of(&place), &holder).await?;
        match store.rename(from.prefix(), place.prefix(), RenameMode::NoReplace).await {
            Ok(()) => {
                drop(store.delete(vec![mark_of(&from)]).await);
                // A request that came late may have made a directory of this name after the commit.
                let is_over = committed(wish, handover).await?.is_some();
                if is_over || is_replaced(&place, &wish.writer).await? {
                    drop(lease.release().await);
                    return Err(lost(wish));
                }
                return Ok((place, Means::Rename { lease: Mutex::new(Some(lease)) }));
            }
            Err(error) => {
                drop(lease.release().await);
                if error.kind() != ErrorKind::NotFound {
                    return Err(error);
                }
            }
        }
    }
    Err(lost(wish))
}

/// Tells whether a directory is the checkpoint that the attempt has replaced: an exchange leaves it under the attempt's name.
///
/// To go on with it would bring the old bytes back under a new record. It is left to a sweep.
async fn is_replaced(place: &Place, writer: &str) -> Result<bool> {
    Ok(match look(place).await? {
        Found::Nothing => false,
        Found::Root(Root::Checkpoint { record, .. }) => record.writer != writer,
        Found::Root(_) | Found::Bad(_) => true,
    })
}

/// Returns what the attempt has become, where it is committed.
///
/// # Errors
/// The store's: nothing is known then.
pub(crate) async fn committed(
    wish: &Wish,
    handover: &Handover,
) -> Result<Option<(Place, Box<Record>)>> {
    let place = match &handover.claim {
        None => wish.target.clone(),
        Some(_) => handover.place(&base_of(wish)),
    };
    Ok(match look(&place).await? {
        Found::Root(Root::Checkpoint { record, .. }) if record.writer == wish.writer => {
            Some((place, record))
        }
        _ => None,
    })
}

/// Ends an attempt for everybody, unless it is committed.
///
/// # Errors
/// The store's: whether it is committed is not known then.
pub(crate) async fn end(engine: &Engine, wish: &Wish, handover: &Handover) -> Result<Ending> {
    let base = base_of(wish);
    if handover.claim.is_some() {
        let key = handover.place(&base).key(DOCUMENT);
        match base.store().put_new(&key, revoked_document(&wish.writer).into()).await {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let committed = committed(wish, handover).await?;
        return Ok(committed.map_or(Ending::Revoked, |(at, record)| Ending::Committed(at, record)));
    }
    let moved = move_out(engine, wish).await?;
    if let Some((place, record)) = committed(wish, handover).await? {
        // What was moved is the checkpoint that it has replaced: a sweep frees it when that is safe.
        return Ok(Ending::Committed(place, record));
    }
    if let Some((from, to)) = moved {
        base.store().delete_all(to.prefix()).await?;
        base.store().delete(vec![mark_of(&from)]).await?;
    }
    Ok(Ending::Revoked)
}

/// Takes the directory of an attempt away from whoever owns it.
async fn move_out(engine: &Engine, wish: &Wish) -> Result<Option<(Place, Place)>> {
    for _ in 0..SEARCHES {
        let Some((from, _)) = find(wish).await? else { return Ok(None) };
        let id = engine.clock().unique_id();
        let to = match &wish.run {
            Some(run) => run.join(&format!("{TRASH}/{}-{id:032x}", from.name())),
            // Nobody knows this name, as with a sweep; an attempt without a mark is swept some day.
            None => base_of(wish).join(&format!("{}{BESIDE}{id:032x}", wish.target.name())),
        };
        match to.store().rename(from.prefix(), to.prefix(), RenameMode::NoReplace).await {
            Ok(()) => return Ok(Some((from, to))),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{CheckpointWriter, Durability, Item},
        store::MemoryStore,
        tasks::Priority,
    };
    use futures::executor::block_on;

    fn wish(run: &Place, writer: &str) -> Wish {
        Wish {
            target: run.join("5"),
            run: Some(run.clone()),
            step: Some(5),
            overwrite: true,
            durability: Durability::Durable,
            writer: writer.to_owned(),
        }
    }

    fn handover(writer: &str) -> Handover {
        Handover { place: format!("{TMP}/{writer}"), claim: None, replaced: None }
    }

    #[test]
    fn what_an_exchange_has_left_is_not_finalised() {
        let engine = Engine::builder().budget_bytes(1 << 20).build().unwrap();
        let run = Place::new(MemoryStore::new(), "run");
        let save = CheckpointWriter::step(&engine, &run, 5).item("x", Item::Json(1.into()));
        save.save_blocking().unwrap();
        let old = run.key(&format!("{TMP}/id"));
        block_on(run.store().rename("run/5", &old, RenameMode::NoReplace)).unwrap();
        let taken = block_on(Attempt::adopt(&engine, wish(&run, "id"), &handover("id"), 1));
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn what_comes_late_to_a_committed_attempt_is_not_finalised() {
        let engine = Engine::builder().budget_bytes(1 << 20).build().unwrap();
        let run = Place::new(MemoryStore::new(), "run");
        let save = CheckpointWriter::step(&engine, &run, 5).item("x", Item::Json(1.into()));
        let writer = save.save_blocking().unwrap().record.writer;
        let first = run.key(&format!("{TMP}/{writer}/{INDEXES}/{DOCUMENT}"));
        let put = run.store().put(&first, vec![Bytes::from_static(b"{}")], Priority::Foreground);
        block_on(put).unwrap();
        let taken = block_on(Attempt::adopt(&engine, wish(&run, &writer), &handover(&writer), 1));
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn a_directory_has_one_owner_and_ends_once() {
        let engine = Engine::builder().budget_bytes(1 << 20).build().unwrap();
        let run = Place::new(MemoryStore::new(), "run");
        let (wish, handover) = (wish(&run, "id"), handover("id"));
        let first = handover.place(&run).key(&format!("{INDEXES}/{DOCUMENT}"));
        let put = run.store().put(&first, vec![Bytes::from_static(b"{}")], Priority::Foreground);
        block_on(put).unwrap();
        let adopt = |index| block_on(Attempt::adopt(&engine, wish.clone(), &handover, index));
        let one = adopt(1).unwrap();
        assert!(!block_on(one.is_lost()));
        let two = adopt(2).unwrap();
        assert!(block_on(one.is_lost()) && !block_on(two.is_lost()));
        assert_eq!(two.place().name(), "id.t2-2");
        let ended = block_on(end(&engine, &wish, &handover)).unwrap();
        assert!(matches!(ended, Ending::Revoked) && block_on(two.is_lost()));
        assert_eq!(adopt(3).unwrap_err().kind(), ErrorKind::Conflict);
        block_on(async {
            one.let_go().await;
            two.let_go().await;
        });
        assert!(block_on(run.store().list_all("run")).unwrap().is_empty());
    }
}
