//! Data types of leaves: Zarr v3 names, sizes, and which readers know them.

pub use milepost_formats::DataType;
