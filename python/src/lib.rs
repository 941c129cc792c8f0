//! The extension module `milepost._milepost`: doors to the Rust API for the Python package, one file a noun.
//!
//! Doors hold no logic: they translate values, release the interpreter lock around every wait, listen for Ctrl-C
//! while they wait, and refuse to be used after `fork()`. What a pytree is, how targets meet checkpoints and what
//! users see is Python (`python/milepost`).
//!
//! **Invariant:** no thread waits for a lock or a store of Milepost while it holds the interpreter lock.

#![expect(clippy::needless_pass_by_value, reason = "a door gets its arguments as values")]

mod array;
mod checkpoint;
mod engine;
mod errors;
mod foreign;
mod json;
mod leaf;
mod manager;
mod options;
mod policy;
mod save;
mod structure;
mod together;
mod wait;

use pyo3::pymodule;

/// The native half of the Python package `milepost`.
#[pymodule]
mod _milepost {
    #[pymodule_export]
    use crate::array::Array;
    #[pymodule_export]
    use crate::checkpoint::{Checkpoint, ItemIndex, LeafHandle, find};
    #[pymodule_export]
    use crate::engine::{Engine, Place};
    #[pymodule_export]
    use crate::foreign::{export_safetensors, import_safetensors};
    #[pymodule_export]
    use crate::leaf::{Item, Leaf};
    #[pymodule_export]
    use crate::manager::{Lease, Manager};
    #[pymodule_export]
    use crate::options::SaveOptions;
    #[pymodule_export]
    use crate::policy::{Preservation, SaveDecision};
    #[pymodule_export]
    use crate::save::{SaveHandle, start};
    #[pymodule_export]
    use crate::structure::text;
    #[pymodule_export]
    use crate::together::Together;
    #[pymodule_export]
    use crate::wait::ending;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
