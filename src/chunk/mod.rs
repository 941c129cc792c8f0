//! Chunks as geometry: which chunk holds which elements, and how bytes move between a chunk and an array.
//!
//! - [`subset`]: a box of elements, and the selections that the command line and the API speak
//! - [`grid`]: the division of an array into chunks, regular or with an edge list an axis
//! - [`cover`], [`mod@divide`]: the boxes that several hold of one array, and the chunk plan that respects them
//! - [`mod@plan`]: which chunk and shard shapes an array gets when it is written
//! - [`mod@scatter`]: strided copies between C-order blocks; a destination that threads fill together
//!
//! Everything is C order and in elements; bytes appear only where an item size is named.
//!
//! **Invariant:** pure; no files, no clock, no tokio, no codec. Arithmetic on lengths that a document claims
//! is checked once, where a [`Subset`] or a [`Grid`] is made, and cannot overflow afterwards.

mod cover;
mod divide;
mod grid;
mod plan;
mod scatter;
mod subset;

pub(crate) use cover::{Misfit, check_cover, cuts, is_regular, nearest_grid};
pub(crate) use divide::divide;
pub(crate) use grid::{Axis, Grid};
pub(crate) use plan::{ChunkPlan, PlanOptions, plan};
pub(crate) use scatter::{Block, BlockMut, Part, SharedTarget, contiguous_run, copy_box, gather};
pub(crate) use subset::elements;
pub use subset::{Selection, Subset};
