//! The byte formats of Milepost, pure and sans-I/O.
//!
//! Parsers take `&[u8]` and return what they need next; the caller fetches. Nothing here panics, allocates
//! by a length that a file merely claims, or knows tokio, files or the clock.
//!
//! - [`zarr3`]: array and group documents in our profile, shard index, consolidated metadata
//! - [`record`]: the commit record of a checkpoint
//! - [`index`]: the pytree metadata index of an item
//! - [`npy`]: the header of a `.npy` file
//! - [`safetensors`]: header, shard index and writer of safetensors files

mod dtype;
mod error;
mod hex;
pub mod index;
mod json;
pub mod npy;
pub mod record;
pub mod safetensors;
mod version;
pub mod zarr3;

pub use dtype::DataType;
pub use error::{FormatError, FormatErrorKind};

/// A `Result` whose error is [`FormatError`].
pub type Result<T, E = FormatError> = std::result::Result<T, E>;
