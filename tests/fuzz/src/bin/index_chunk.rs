//! libFuzzer on `targets::index_chunk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::index_chunk(bytes));
