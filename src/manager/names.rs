//! Which names the steps of a run have, and what its document says of it.
//!
//! One format writes; any number are read, for runs whose format was changed. Where two names mean one step, that
//! of the format that writes wins, then the order of the others.

use crate::error::Result;

pub use milepost_formats::record::StepFormat;

/// The format that names new steps, and those in which steps are found. Default: plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepFormats {
    /// Names new steps; its names are always found.
    pub write: StepFormat,
    /// Further formats whose names are found.
    pub read: Vec<StepFormat>,
}

impl StepFormats {
    /// Checks every format.
    ///
    /// # Errors
    /// `Invalid` as [`StepFormat::validate`].
    pub fn validate(&self) -> Result<()> {
        self.all().try_for_each(|format| Ok(format.validate()?))
    }

    /// Returns the step of a name and the rank of the format that gives it; 0 is the one that writes.
    pub(super) fn parse(&self, name: &str) -> Option<(u64, usize)> {
        let mut steps = self.all().enumerate();
        steps.find_map(|(rank, format)| format.parse(name).map(|step| (step, rank)))
    }

    fn all(&self) -> impl Iterator<Item = &StepFormat> {
        std::iter::once(&self.write).chain(&self.read)
    }
}

impl From<StepFormat> for StepFormats {
    fn from(write: StepFormat) -> Self {
        Self { write, read: Vec::new() }
    }
}
