#![no_main]

#[allow(dead_code, reason = "each target runs one of the shared checks")]
#[path = "../../crates/weft-http/tests/it/h2_checks.rs"]
mod h2_checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| h2_checks::connection(data));
