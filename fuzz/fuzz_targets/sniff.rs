#![no_main]

#[allow(dead_code, reason = "each target runs one of the shared checks")]
#[path = "../../crates/weft-proxy/tests/any_bytes/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::sniff(data));
