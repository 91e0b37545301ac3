#![no_main]

#[allow(dead_code, reason = "the tests call its parts")]
#[path = "../../crates/weft-http/tests/it/h2_both.rs"]
mod h2_both;

libfuzzer_sys::fuzz_target!(|data: &[u8]| h2_both::differential(data));
