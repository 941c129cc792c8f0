//! What came of asking for a save.

use crate::{checkpoint::SaveHandle, policy::SkipReason};

/// What came of a request.
#[derive(Clone, Debug)]
#[must_use]
pub enum SaveOutcome {
    /// The state is captured and is being saved.
    Started(SaveHandle),
    /// Nothing is saved; why.
    Skipped(SkipReason),
}

impl SaveOutcome {
    /// Returns the handle of a save that was started.
    #[must_use]
    pub fn handle(&self) -> Option<&SaveHandle> {
        match self {
            Self::Started(handle) => Some(handle),
            Self::Skipped(_) => None,
        }
    }
}
