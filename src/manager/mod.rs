//! The step manager: which steps are saved, kept, found and swept. Policy, names and order only, no bytes.

mod find;
#[expect(clippy::module_inception, reason = "the manager of the room")]
mod manager;
mod names;
mod state;
mod steps;
mod upkeep;
mod watch;

pub use find::{Found, find};
pub use manager::{Manager, ManagerOptions, Opened, Which};
pub use names::{StepFormat, StepFormats};
pub use steps::{Run, StepEntry, StepState, open};
pub use watch::{NewStep, NewSteps, WatchOptions};
