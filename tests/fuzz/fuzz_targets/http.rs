//! Any bytes as what a client of the tracker sends: requests with their bodies, whole and in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| remuda::fuzzing::http(bytes));
