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
mod metrics;
mod policy;
mod store;
mod tasks;
mod tree;

pub use array::{Borrowed, Element, Leaf, Provider};
pub use buffer::{Buffer, Region};
pub use checkpoint::{
    ArrayData, Burial, Callbacks, Checkpoint, CheckpointWriter, Consolidate, Declaration,
    Durability, Finding, Handlers, InProcess, Item, ItemHandler, ItemIndex, LeafHandle, LeaseInfo,
    LeaseKind, Leftover, LeftoverKind, Opaque, Outcome, ParticipantWriter, Pin, Queue, Rendezvous,
    RunOptions, SaveHandle, SaveOptions, SaveOutcome, SaveRequest, Saved, SharePlan, StepLease,
    StoreRendezvous, SweepReport, Together, VerifyReport, WantedBox, WriterInfo, ZarrNode,
    leftovers_beside, open_zarr_array, open_zarr_array_blocking, sweep_beside, walk_zarr,
    walk_zarr_blocking,
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
pub use manager::{
    Found, Manager, ManagerOptions, NewStep, NewSteps, Opened, Run, StepEntry, StepFormat,
    StepFormats, StepState, WatchOptions, Which, find, open,
};
pub use metrics::{Event, Stats};
pub use milepost_formats as formats;
pub use policy::{
    BestMode, Callback, ClassicOptions, Decision, Metric, MissingMetric, Plan, Preservation,
    SaveContext, SaveDecision, SkipReason, StepInfo,
};
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
