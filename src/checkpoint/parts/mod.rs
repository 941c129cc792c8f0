//! Many writers on one step: each writes its own shards, one makes them a checkpoint (spec/commit.md, C26).
//!
//! ```text
//!   everybody    declares what it holds ─► the same plan everywhere ─► its hash is compared
//!   founder (0)  begins an attempt, tells where
//!   everybody    writes its shards ─► makes them durable ─► puts its part record ─► meets the others
//!   finaliser    lists and reads the parts: of one attempt and plan, and covering it exactly
//!                ─► index, record ─► commit
//!   everybody    reads the record: that is the outcome
//! ```
//! The founder finalises. Where it is gone after everybody has met, the others take over, the lowest index first, and as
//! the commit has one winner, two finalisers do no harm. Where somebody is missing before that, whoever notices ends the
//! attempt, which nobody can commit then: so every side has a result or an error in bounded time.
//!
//! - [`declare`], [`plan`]: pure; who holds what, who writes what
//! - [`rendezvous`]: how participants talk, by the launcher or in one process
//! - [`meeting`], [`lobby`]: how they talk where there is nothing but the store
//! - [`record`]: the part records and their check
//! - [`replicas`]: a restore that reads once what several want
//! - [`participant`]: the save, as one of them sees it; [`finish`]: the end of it
//! - [`together`], [`writer`]: how it is asked for

mod declare;
mod finish;
mod lobby;
mod meeting;
mod participant;
mod plan;
mod record;
mod rendezvous;
mod replicas;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod storms;
mod talk;
#[cfg(test)]
mod tests;
mod together;
mod work;
mod writer;

pub use declare::Declaration;
pub use meeting::StoreRendezvous;
pub use plan::SharePlan;
pub use rendezvous::{Callbacks, InProcess, Rendezvous};
pub use together::Together;
pub use writer::ParticipantWriter;

pub(crate) use together::Call;
pub(super) use together::save_together;
