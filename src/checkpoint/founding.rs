//! The documents of a run: written once, when its first step is saved or it is created on purpose.

use super::{
    layout::{DOCUMENT, TRANSIENT},
    publish::{Found, look},
};
use crate::{
    error::{Error, ErrorKind, Result},
    store::Place,
};
use milepost_formats::{
    record::{Root, RunMembers, StepFormat, run_document, tagged},
    zarr3::GroupDocument,
};
use serde_json::{Map, Value};

/// What a new run is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunOptions {
    /// How steps are named. Default: as the run that is there, plain numbers in a new one.
    pub format: Option<StepFormat>,
    /// The user's metadata, written once: a run that is there keeps its own, with a warning.
    pub metadata: Map<String, Value>,
}

/// Writes a run's document where there is none, and returns what it says by then.
///
/// # Errors
/// `AlreadyExists` where the run that is there names its steps otherwise, `Invalid` where the document there is no run's.
pub(crate) async fn found(place: &Place, options: &RunOptions) -> Result<RunMembers> {
    let wish = RunMembers {
        step_format: options.format.clone().unwrap_or_default(),
        metadata: tagged::object(options.metadata.clone()),
    };
    wish.step_format.validate()?;
    let blame = |e: Error| e.with("run", place);
    let said = found_run(place, &wish).await.and_then(run_members).map_err(blame)?;
    let named = |format: &StepFormat| format!("{}{}", format.prefix, "0".repeat(format.width));
    if options.format.as_ref().is_some_and(|format| *format != said.step_format) {
        return Err(blame(Error::exists("the run names its steps otherwise"))
            .with("format", named(&said.step_format))
            .with("asked", named(&wish.step_format))
            .hint("leave the format out, or read other names too: `Run::with_formats`"));
    }
    if !wish.metadata.is_empty() && wish.metadata != said.metadata {
        tracing::warn!(run = %place, "the run that is there has other metadata, which stays");
    }
    Ok(said)
}

/// Writes the documents of a run where there are none, never replaces one, and returns what is there by then.
pub(super) async fn found_run(run: &Place, members: &RunMembers) -> Result<Found> {
    let mut found = look(run).await?;
    if matches!(found, Found::Nothing) {
        let members = members.to_members()?;
        let document = run_document(members.clone())?;
        found = match run.store().put_new(&run.key(DOCUMENT), document.into()).await {
            Ok(()) => Found::Root(Root::Run(members)),
            // Another writer was faster, and what it says holds.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => look(run).await?,
            Err(e) => return Err(e),
        };
    }
    let key = run.key(&format!("{TRANSIENT}/{DOCUMENT}"));
    match run.store().head(&key).await {
        Ok(_) => return Ok(found),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    match run.store().put_new(&key, GroupDocument::default().to_bytes().into()).await {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(found),
    }
}

/// Returns what the root document of a run says of it; where another document is there, nothing.
///
/// # Errors
/// `Corrupt`, `Unsupported` where it cannot be read: the names of the steps are unknown then.
pub(super) fn run_members(found: Found) -> Result<RunMembers> {
    match found {
        Found::Root(Root::Run(members)) => Ok(RunMembers::from_members(&members)?),
        Found::Root(_) | Found::Nothing => Ok(RunMembers::default()),
        Found::Bad(error) => Err(error),
    }
}
