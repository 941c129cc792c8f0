//! Milepost stores the state of a training run as plain Zarr v3.

mod buffer;
mod dtype;
mod error;
mod store;
mod tasks;

pub use error::{Error, ErrorKind, Result};
