//! The shape of a state: key paths, containers and leaves, without their values.
//!
//! A [`Tree`] is what the caller saves and gets back: containers with typed keys around leaves of any type.
//! Saving lays it out ([`lay_out`]: key path → node path, siblings that would be one node refused) and turns
//! it into the index; restoring reads the index as a [`TreeIndex`], which finds leaves by their text form,
//! selects some by glob and matches them against a target before a byte is read.
//!
//! ```text
//!   Tree<L> ──lay_out──▶ node paths ──▶ zarr.json of each         (save)
//!      │ to_node
//!      ▼                                                          
//!    Index ──TreeIndex::new──▶ find · below · select · match      (restore)
//! ```
//!
//! **Invariant:** nothing here does I/O, reads a clock or knows tokio.

mod diff;
mod index;
mod layout;
mod leaf;
mod nearest;
mod path;
mod select;
mod target;
#[expect(
    clippy::module_inception,
    reason = "the room is named for its main noun, as in the drawing"
)]
mod tree;

pub use diff::{Mismatch, Mismatches, What};
pub use leaf::LeafSpec;
pub use milepost_formats::index::{Container, Key, LeafKind};
pub use path::{IntoKey, KeyPath};
pub use select::Select;
pub use target::{ContainerPolicy, MatchOptions, MissingPolicy, TargetLeaf, UnexpectedPolicy};
pub use tree::{Leaves, Tree};

pub(crate) use index::{TreeIndex, to_node};
pub(crate) use layout::{Layout, LeafNode, lay_out};
pub(crate) use target::{Matched, match_target};
