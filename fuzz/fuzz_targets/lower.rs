#![no_main]

#[allow(dead_code, reason = "each target runs one of the shared checks")]
#[path = "../../crates/weft-traffic/tests/any_bytes/checks.rs"]
mod checks;
#[path = "../src/protobuf.rs"]
mod protobuf;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::lower(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = protobuf::Random::new(seed);
    if size == 0 || random.below(8) == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let message = protobuf::mutate(&data[1..size], &mut random);
    let taken = message.len().min(max_size.saturating_sub(1));
    data[1..1 + taken].copy_from_slice(&message[..taken]);
    1 + taken
});
