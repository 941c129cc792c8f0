//! libFuzzer on `targets::safetensors_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::safetensors_header(bytes));
