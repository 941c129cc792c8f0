//! The chunk I/O scheduler: one plan over all arrays of a tree, one byte budget, slots, priorities.
//!
//! A write is a list of [`write::ObjectPlan`]s: parts that the CPU pool encodes into aligned staging
//! memory and the store writes at their offsets, or as one gather list. A read is a list of
//! [`read::ReadItem`]s: byte ranges with their destinations, merged per object by [`coalesce`], read by the
//! store and finished (verified, decoded) on the CPU pool.
//!
//! Both run as plain futures polled by whoever waits: the scheduler needs no runtime. What bounds them is
//! shared by all plans of an [`Engine`]: the [`Budget`] (bytes), the staging slots and the pools' queues, each
//! served by [`Priority`](crate::tasks::Priority). Dropping a plan's future frees its reservations.
//!
//! **Invariant:** io knows keys and bytes, never Zarr, data types or what a key means.

mod budget;
mod coalesce;
mod engine;
mod pool;
mod progress;
pub(crate) mod read;
pub(crate) mod write;

pub use budget::{Budget, Reservation};
pub use engine::{Engine, EngineBuilder, EngineOptions};
pub use progress::{Progress, ProgressSnapshot, Stage};
