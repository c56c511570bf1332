//! Any bytes as a stream of frames, whole and in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| remuda::fuzzing::frames(bytes));
