//! What is at a place: a checkpoint, a run, or Zarr of others; told by its root document, never by its name.

use super::steps::Run;
use crate::{
    checkpoint::{Checkpoint, Engine, Peek, Place, peek},
    error::{Error, ErrorKind, Result},
};
use std::sync::Arc;

/// What [`find`] found.
#[derive(Clone, Debug)]
pub enum Found {
    /// A committed checkpoint, standing alone or a step of a run.
    Checkpoint(Box<Checkpoint>),
    /// A run.
    Run(Run),
    /// A Zarr group or array that is none of ours.
    Foreign(Place),
}

/// Finds out what is at `place`; the name of a step on an object store means its newest revision.
///
/// A place without a root document is a run where at least one committed step is below it.
///
/// # Errors
/// `NotFound` where nothing is there, `Corrupt` where the root document is bad, the store's errors.
pub async fn find(engine: &Arc<Engine>, place: &Place) -> Result<Found> {
    if let Some(checkpoint) = revision(engine, place).await? {
        return Ok(Found::Checkpoint(checkpoint));
    }
    match peek(engine, place).await? {
        Peek::Checkpoint(checkpoint) => Ok(Found::Checkpoint(checkpoint)),
        Peek::Run(members) => Ok(Found::Run(Run::said(engine, place, &members)?)),
        Peek::Foreign => Ok(Found::Foreign(place.clone())),
        Peek::Bad(error) => Err(error.with("checkpoint", place)),
        Peek::Revoked => {
            Err(Error::not_found("the checkpoint was deleted").with("checkpoint", place))
        }
        Peek::Nothing => {
            let run = Run::new(engine, place);
            match run.newest().await {
                Ok(_) => Ok(Found::Run(run)),
                // Nothing, or a store that cannot list.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                    Err(Error::not_found("no checkpoint and no run here")
                        .with("place", place)
                        .hint("check the path; a save in the making is not visible"))
                }
                Err(e) => Err(e),
            }
        }
    }
}

/// Opens a step by its plain name where stores keep revisions of it; others go the direct way.
async fn revision(engine: &Arc<Engine>, place: &Place) -> Result<Option<Box<Checkpoint>>> {
    // Every format ends in digits: other names need no look at the run.
    let may_be = place.name().ends_with(|c: char| c.is_ascii_digit());
    if place.store().capabilities().rename || !may_be || place.parent().prefix() == place.prefix() {
        return Ok(None);
    }
    let run = match Run::open(engine, &place.parent()).await {
        Ok(run) => run,
        Err(e) if e.kind() == ErrorKind::Unavailable => return Err(e),
        // A parent that is none of ours, or damaged, says nothing: plain numbers have revisions all the same.
        Err(_) => Run::new(engine, &place.parent()),
    };
    let Some((step, _)) = run.formats().parse(place.name()) else { return Ok(None) };
    match run.step(step).await {
        Ok(checkpoint) => Ok(Some(Box::new(checkpoint))),
        // No such step, or a store that cannot list: what is there tells.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(None),
        Err(e) => Err(e),
    }
}
