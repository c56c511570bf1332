//! Any bytes as the body of every kind of frame that a worker sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| remuda::fuzzing::bodies(bytes));
