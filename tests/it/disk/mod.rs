//! A simulated disk: a local file system in memory that remembers what was synced, and can lose the rest.
//!
//! [`SimDisk`] is a `Store` that does what the local store does, down to the system calls in their order
//! ([`Op`]). [`SimDisk::crash`] makes of each prefix of these an [`Image`] that a power cut could have left:
//!
//! - what `SyncFile` and `SyncDir` covered is there;
//! - the rest of a file's data is lost, there, cut short, or there in some pages of 4 KiB only;
//! - the rest of the directory entries is there in any subset, in which the changes of one name keep their order. That is
//!   weaker than ext4, XFS and btrfs promise. A rename or an exchange is one change of two names.

mod image;
mod store;

pub(crate) use image::{Fate, Image};
pub(crate) use store::SimDisk;
