//! Foreign formats, both ways: safetensors files become checkpoints and checkpoints become safetensors files.
//!
//! ```text
//!   file · directory · index ──detect──▶ headers ──import──▶ Tree<Leaf> of providers ──▶ CheckpointWriter
//!   Checkpoint ──export──▶ names, order, files ──read slab by slab──▶ checkpoint::Files
//! ```
//!
//! - `detect`: what a place holds, by bytes and names; other formats are named and refused
//! - `source`: an open file of tensors, read by ranges when a chunk asks for its box
//! - `origin`: what the index keeps of a foreign file so that it can be made again: order, separator, metadata
//! - `import`, `export`: the two operations; `plan`: which leaf goes into which file (`checkpoint` writes and
//!   publishes them); `packing`: elements smaller than a byte
//!
//! **Invariant:** data is never held whole: an import holds a chunk a thread, an export a window of slabs.
//! **Invariant:** nothing is committed but through `checkpoint`, and no file is under its final name in part.

mod detect;
mod export;
mod import;
mod origin;
mod packing;
mod plan;
mod source;

pub use export::{Export, ExportReport, ExportedFile};
pub use import::Import;
pub use plan::Skipped;
