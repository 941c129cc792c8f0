//! The steps of a run: which there are, and where. Policy and names only, no bytes.

mod find;
mod steps;

pub use find::{Found, find};
pub use steps::{Run, StepEntry, StepState, open};
