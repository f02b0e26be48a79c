//! `wscast::fuzzing::request` of any bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wscast::fuzzing::request(input));
