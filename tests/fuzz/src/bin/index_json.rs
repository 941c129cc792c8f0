//! libFuzzer on `targets::index_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::index_json(bytes));
