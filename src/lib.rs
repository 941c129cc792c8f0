//! Milepost stores the state of a training run as plain Zarr v3.

mod array;
mod buffer;
mod checkpoint;
mod chunk;
mod clock;
mod codec;
mod dtype;
mod error;
mod foreign;
mod io;
mod manager;
mod store;
mod tasks;
mod tree;

pub use array::{Element, Leaf, Provider};
pub use buffer::{Buffer, Region};
pub use checkpoint::{
    ArrayData, Checkpoint, CheckpointWriter, Consolidate, Durability, Finding, Item, ItemIndex,
    LeafHandle, Outcome, SaveOptions, Saved, VerifyReport, ZarrNode, open_zarr_array,
    open_zarr_array_blocking, walk_zarr, walk_zarr_blocking,
};
pub use chunk::{Selection, Subset};
pub use clock::{Clock, SystemClock};
pub use codec::CastRule;
pub use dtype::DataType;
pub use error::{Error, ErrorKind, Result};
pub use foreign::{Export, ExportReport, ExportedFile, Import, Skipped};
pub use io::{
    Budget, Engine, EngineBuilder, EngineOptions, Progress, ProgressSnapshot, Reservation, Stage,
};
pub use manager::{Found, Run, StepEntry, StepState, find, open};
pub use milepost_formats as formats;
pub use store::{
    Action, Capabilities, Count, FaultStore, Finding as ProbeFinding, Listing, MemoryStore,
    ObjectMeta, ObjectStoreAdapter, ObjectWriter, Operation, Outcome as ProbeOutcome, Place,
    Remote, RenameMode, Span, Store, Verb, probe,
};
pub use tasks::Priority;
pub use tree::{
    Container, ContainerPolicy, IntoKey, Key, KeyPath, LeafKind, LeafSpec, Leaves, MatchOptions,
    Mismatch, Mismatches, MissingPolicy, Select, TargetLeaf, Tree, UnexpectedPolicy, What,
};
