//! libFuzzer on `targets::zarr3_shard_index`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::zarr3_shard_index(bytes));
