//! Policies: when to save and what to keep, as pure questions with printable answers.
//!
//! They stand on the street (spec/decisions/0010): nothing here knows a store, a clock or a checkpoint. The manager
//! tells them what there is and does what they say.

mod decision;
mod options;
mod preservation;

pub use decision::{Callback, Decision, SaveContext, SaveDecision, SkipReason};
pub use options::ClassicOptions;
pub use preservation::{BestMode, Metric, MissingMetric, Plan, Preservation, StepInfo};
