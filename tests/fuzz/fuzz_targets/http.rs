//! Any bytes as the head of an HTTP request.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| remuda::fuzzing::http(bytes));
