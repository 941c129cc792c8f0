//! Deleting a checkpoint: first it is invisible, then its bytes are freed (spec/commit.md).
//!
//! [`bury`] announces the deletion, looks whether somebody reads or has pinned the step, and makes it invisible at one
//! instant: a rename into `.milepost/trash`, or a tombstone in place of the record. What it returns, a [`Grave`], is
//! freed whenever there is time; after a crash `sweep` does that. Instead of the trash, a step can be moved to a
//! directory of the user's, where it stays a checkpoint.
//!
//! **Invariant:** only a checkpoint of ours is removed: nothing else that lies under its name, and nothing through
//! a symbolic link.

use super::{
    layout::{DOCUMENT, INDEXES, TRASH, parse_revision},
    marks::Intent,
    publish::{Found, free_revision, item_names, look, stray},
};
use crate::{
    error::{Error, ErrorKind, Result},
    io::Engine,
    store::{Place, RenameMode},
    tasks::Priority,
};
use milepost_formats::record::{Root, deleted_document};

/// What is to be removed.
#[derive(Clone, Debug)]
pub(crate) struct Doomed {
    /// The run.
    pub(crate) run: Place,
    /// Where its checkpoint is, directly below the run; on object stores its committed revision.
    pub(crate) checkpoint: Place,
    /// The step.
    pub(crate) step: u64,
    /// Whether it may be removed although it is damaged.
    pub(crate) damaged: bool,
    /// Who wrote it, as it was listed: one that replaced it since is another step.
    pub(crate) writer: Option<String>,
}

/// What becomes of a step that is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Burial {
    /// Its bytes are freed.
    Delete,
    /// It is moved to this directory below the run and stays readable there; nothing of ours deletes it again.
    MoveTo(String),
}

/// A step that is not visible any more.
#[derive(Debug)]
#[must_use]
pub(crate) struct Grave {
    /// What is left to be freed: a directory in the trash, or revisions with the names of their items.
    left: Left,
}

#[derive(Debug)]
enum Left {
    Directory(Place),
    Revisions(Vec<(Place, Vec<String>)>),
    /// It was moved.
    Kept(Place),
}

/// Makes a step invisible.
///
/// # Errors
/// `Conflict` where it is pinned or read, by whom; `NotFound` where it is gone; `Invalid` where it is no checkpoint of
/// ours, holds something else, or is damaged and that was not asked for. It is as it was then.
///
/// # Cancel safety
/// Dropped: the step is there or invisible; in the latter case a sweep frees it.
pub(crate) async fn bury(engine: &Engine, doomed: &Doomed, how: &Burial) -> Result<Grave> {
    let blame = |e: Error| e.with("step", doomed.step).with("checkpoint", &doomed.checkpoint);
    let capabilities = doomed.run.store().capabilities();
    if !capabilities.writable {
        return Err(blame(Error::unsupported("the store is read-only")));
    }
    if doomed.checkpoint.parent().prefix() != doomed.run.prefix() {
        return Err(blame(Error::invalid("the checkpoint is not a step of this run")));
    }
    let directory = match how {
        Burial::MoveTo(directory) => Some(check_directory(directory).map_err(blame)?),
        Burial::Delete => None,
    };
    if directory.is_some() && !capabilities.rename {
        return Err(blame(
            Error::unsupported("this store has no rename: a step cannot be moved")
                .hint("delete it, or copy it elsewhere first"),
        ));
    }
    let writer = check_removable(doomed).await.map_err(blame)?;
    let intent = Intent::announce(engine, &doomed.run, doomed.step).await.map_err(blame)?;
    let buried = match directory {
        Some(directory) => move_away(engine, doomed, directory, writer).await,
        None if capabilities.rename => move_to_trash(engine, doomed, writer).await,
        None => entomb(engine, doomed).await,
    };
    intent.withdraw().await;
    buried.map_err(blame)
}

/// Refuses what is no checkpoint of ours, or more than one; returns who wrote it, where it says so.
async fn check_removable(doomed: &Doomed) -> Result<Option<String>> {
    let place = &doomed.checkpoint;
    let found = look(place).await?;
    let listing = place.store().list(place.prefix()).await?;
    let has_record = matches!(found, Found::Bad(_));
    let damaged = match found {
        Found::Root(Root::Checkpoint { record, .. }) => {
            if doomed.writer.as_ref().is_some_and(|writer| *writer != record.writer) {
                return Err(Error::conflict("the step was overwritten since it was listed"));
            }
            return match stray(&record, &listing) {
                Some(name) => Err(refused().with("stray", place.join(name))),
                None => Ok(Some(record.writer)),
            };
        }
        Found::Root(Root::Revoked { .. }) => return Err(gone()),
        Found::Root(_) => return Err(refused()),
        Found::Bad(error) if error.kind() == ErrorKind::Corrupt => error,
        // A newer format is no damage.
        Found::Bad(error) => return Err(error),
        Found::Nothing if listing.objects.is_empty() && listing.prefixes.is_empty() => {
            return Err(gone());
        }
        Found::Nothing => Error::corrupt("the commit record is missing"),
    };
    let ours = listing.prefixes.iter().any(|name| name == INDEXES);
    // Without a record, a prefix of an object store is a save in the making.
    if !ours || !(has_record || place.store().capabilities().rename) {
        return Err(refused());
    }
    if doomed.damaged {
        return Ok(None);
    }
    Err(Error::invalid("the step is damaged, and is not removed unless that is asked for")
        .hint("`milepost verify` says what is wrong; remove it as damaged if it is of no use")
        .because(damaged))
}

fn refused() -> Error {
    Error::invalid("this is no checkpoint of ours, or holds what is not: it is not removed")
        .hint("move what is not Milepost's elsewhere")
}

fn gone() -> Error {
    Error::not_found("no such step")
}

/// Checks the name of a directory that steps are moved to.
fn check_directory(name: &str) -> Result<&str> {
    let mut segments = name.split('/');
    let ours = name.starts_with(".milepost") || name.starts_with("_milepost");
    let first = segments.next().unwrap_or_default();
    let is_step = first.parse::<u64>().is_ok();
    let plain = |segment: &str| !segment.is_empty() && segment != "." && segment != "..";
    if ours || is_step || !plain(first) || !segments.all(plain) {
        return Err(Error::invalid("this cannot be the directory of removed steps")
            .with("directory", name)
            .hint("give a relative path that is no step and not below `.milepost`"));
    }
    Ok(name)
}

async fn move_to_trash(engine: &Engine, doomed: &Doomed, writer: Option<String>) -> Result<Grave> {
    let id = engine.clock().unique_id();
    let name = format!("{TRASH}/{}-{id:032x}", doomed.checkpoint.name());
    let to = doomed.run.join(&name);
    rename(&doomed.checkpoint, &to, writer.as_deref()).await?;
    Ok(Grave { left: Left::Directory(to) })
}

async fn move_away(
    engine: &Engine,
    doomed: &Doomed,
    directory: &str,
    writer: Option<String>,
) -> Result<Grave> {
    let name = doomed.checkpoint.name();
    let to = doomed.run.join(&format!("{directory}/{name}"));
    match rename(&doomed.checkpoint, &to, writer.as_deref()).await {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let time = utc(engine.clock().unix_ms());
            let id = engine.clock().unique_id() >> 96;
            let to = doomed.run.join(&format!("{directory}/{name}-{time}-{id:08x}"));
            rename(&doomed.checkpoint, &to, writer.as_deref()).await?;
            Ok(Grave { left: Left::Kept(to) })
        }
        result => result.map(|()| Grave { left: Left::Kept(to) }),
    }
}

/// Moves a checkpoint, but not one that has replaced it since it was looked at: that goes back.
async fn rename(from: &Place, to: &Place, writer: Option<&str>) -> Result<()> {
    let store = from.store();
    match store.rename(from.prefix(), to.prefix(), RenameMode::NoReplace).await {
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(gone().because(e)),
        result => result?,
    }
    let Some(writer) = writer else { return Ok(()) };
    match look(to).await {
        Ok(Found::Root(Root::Checkpoint { record, .. })) if record.writer != writer => {
            store.rename(to.prefix(), from.prefix(), RenameMode::NoReplace).await?;
            Err(Error::conflict("the step was overwritten just now"))
        }
        // It was the one that was looked at, or cannot be read any more.
        _ => Ok(()),
    }
}

/// Puts tombstones in place of the records of all revisions, lower ones first: none of them may come back.
///
/// A higher one has replaced the step since it was looked at: it stays.
async fn entomb(engine: &Engine, doomed: &Doomed) -> Result<Grave> {
    let (base, highest) = parse_revision(doomed.checkpoint.name());
    let listing = doomed.run.store().list(doomed.run.prefix()).await?;
    let mut revisions: Vec<(u64, &String)> = listing
        .prefixes
        .iter()
        .map(|name| (parse_revision(name), name))
        .filter(|((step, revision), _)| *step == base && *revision <= highest)
        .map(|((_, revision), name)| (revision, name))
        .collect();
    revisions.sort_unstable();
    let id = engine.clock().unique_id();
    let mut left = Vec::new();
    for (_, name) in revisions {
        let place = doomed.run.join(name);
        let items = match look(&place).await? {
            Found::Root(Root::Checkpoint { record, .. }) => item_names(&record),
            // Below the one that was asked for it would be the step again.
            Found::Bad(e) if e.kind() == ErrorKind::Corrupt => damaged_items(&place).await?,
            Found::Bad(error) => return Err(error),
            _ => continue,
        };
        let tombstone = deleted_document(&format!("{id:032x}"));
        let key = place.key(DOCUMENT);
        place.store().put(&key, vec![tombstone.into()], Priority::Foreground).await?;
        left.push((place, items));
    }
    Ok(Grave { left: Left::Revisions(left) })
}

/// The items of a damaged checkpoint are those with an index.
async fn damaged_items(place: &Place) -> Result<Vec<String>> {
    Ok(place.store().list(&place.key(INDEXES)).await?.prefixes)
}

impl Grave {
    /// Returns where a step was moved to, where it was.
    pub(crate) fn kept(&self) -> Option<&Place> {
        match &self.left {
            Left::Kept(place) => Some(place),
            _ => None,
        }
    }

    /// Frees the bytes and returns how many; what a crash or an error leaves is taken by a sweep.
    ///
    /// # Errors
    /// The store's. The step is invisible all the same.
    ///
    /// # Cancel safety
    /// Dropped: some is freed, and the rest is left to a sweep.
    pub(crate) async fn free(self) -> Result<u64> {
        match self.left {
            Left::Kept(_) => Ok(0),
            Left::Directory(place) => {
                let bytes = bytes_below(&place).await?;
                place.store().delete_all(place.prefix()).await?;
                Ok(bytes)
            }
            Left::Revisions(revisions) => {
                let mut bytes = 0;
                for (place, items) in revisions {
                    for name in items.iter().map(String::as_str).chain([INDEXES]) {
                        bytes += free_revision(&place, name).await?;
                    }
                }
                Ok(bytes)
            }
        }
    }
}

/// Sums up what is below a directory, which may be a link: listed from above, nothing is followed.
async fn bytes_below(place: &Place) -> Result<u64> {
    let prefix = format!("{}/", place.prefix());
    let listing = place.store().list_all(place.parent().prefix()).await?;
    Ok(listing.iter().filter(|o| o.key.starts_with(&prefix)).map(|o| o.bytes).sum())
}

/// Writes a time as `yyyymmdd-hhmmss` (UTC), by the civil calendar of 400-year eras.
fn utc(unix_ms: u64) -> String {
    let (days, seconds) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Days since 0000-03-01, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_by_the_civil_calendar() {
        for (seconds, text) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (1_709_251_199, "20240229-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(utc(seconds * 1000), text);
        }
    }

    #[test]
    fn steps_are_moved_to_plain_directories_only() {
        for bad in ["", "12", "12/x", "/a", "a//b", "a/..", ".", ".milepost/tmp", "_milepost", "a/"]
        {
            assert!(check_directory(bad).is_err(), "{bad}");
        }
        for good in [".deleted", "old", "old/2024", "v12"] {
            assert_eq!(check_directory(good).unwrap(), good);
        }
    }
}
