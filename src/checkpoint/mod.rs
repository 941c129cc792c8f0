//! One committed checkpoint: where names (tree) meet values (array).
//!
//! A [`CheckpointWriter`] plans its items, writes them into an attempt and publishes the record; a
//! [`Checkpoint`] is a record that was read, from which indexes, leaves and whole trees are restored or
//! verified. Several processes save one step together: [`CheckpointWriter::together`]. The layout on disk is spec/layout.md, the commit spec/commit.md.

mod capture;
mod files;
mod founding;
mod handle;
mod handlers;
mod items;
mod judge;
mod layout;
mod leaf;
mod lease;
mod leftovers;
mod marks;
mod names;
mod opaque;
mod options;
mod parts;
mod publish;
mod reader;
mod remove;
mod request;
mod restore;
mod saver;
mod scratch;
mod sweep;
#[cfg(test)]
mod tests;
mod unpack;
mod verify;
mod writer;
mod zarr;

// What names a checkpoint, for the rooms above, which open no other room.
pub(crate) use crate::{io::Engine, store::Place};

pub(crate) use files::{Files, Sink};
pub(crate) use founding::found;
pub(crate) use layout::{parse_revision, revision_name};
pub(crate) use leftovers::leftovers;
pub(crate) use marks::{leases, pin, pins, unpin, writers};
pub(crate) use parts::Call;
pub(crate) use reader::{Peek, peek};
pub(crate) use remove::{Doomed, Grave, bury};
pub(crate) use saver::{Admission, Ended, Job, Persistence, Saver};
pub(crate) use sweep::sweep;

pub use founding::RunOptions;
pub use handle::SaveHandle;
pub use marks::{LeaseInfo, LeaseKind, Pin, StepLease, WriterInfo};

pub use handlers::{Handlers, ItemHandler};
pub use items::Item;
pub use leaf::{ArrayData, LeafHandle};
pub use leftovers::{Leftover, LeftoverKind, leftovers_beside};
pub use opaque::Opaque;
pub use options::{Consolidate, SaveOptions};
pub use parts::{
    Callbacks, Declaration, InProcess, ParticipantWriter, Rendezvous, SharePlan, StoreRendezvous,
    Together,
};
pub use publish::Durability;
pub use reader::Checkpoint;
pub use remove::Burial;
pub use request::{SaveOutcome, SaveRequest};
pub use restore::{ItemIndex, WantedBox};
pub use saver::Queue;
pub use sweep::{SweepReport, sweep_beside};
pub use verify::{Finding, Outcome, VerifyReport};
pub use writer::{CheckpointWriter, Saved};
pub use zarr::{
    ZarrNode, open_zarr_array, open_zarr_array_blocking, walk_zarr, walk_zarr_blocking,
};
