#![no_main]

#[allow(dead_code, reason = "each target runs one of the shared checks")]
#[path = "../../crates/weft-traffic/tests/any_bytes/checks.rs"]
mod checks;
#[path = "../src/protobuf.rs"]
mod protobuf;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::route(data));

// Two bytes of length, the configuration, then requests: the one or the other is changed.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = protobuf::Random::new(seed);
    let choice = random.below(8);
    let whole = &data[..size];
    let Some((length, rest)) = whole.split_first_chunk::<2>().filter(|_| choice > 0) else {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    };
    let (message, text) =
        rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let (mut message, mut text) = (message.to_vec(), text.to_vec());
    if choice < 4 {
        let before = text.len();
        text.resize(before + 64, 0);
        let after = libfuzzer_sys::fuzzer_mutate(&mut text, before, before + 64);
        text.truncate(after);
    } else {
        message = protobuf::mutate(&message, &mut random);
    }
    let Ok(length) = u16::try_from(message.len()) else { return size };
    let whole = [&length.to_be_bytes()[..], &message, &text].concat();
    let taken = whole.len().min(max_size);
    data[..taken].copy_from_slice(&whole[..taken]);
    taken
});
