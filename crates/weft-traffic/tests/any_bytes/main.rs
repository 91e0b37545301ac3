//! Lowering and route lookup never panic, whatever the bytes: random ones, the committed fuzzing
//! corpora, and resources out of them with bytes changed.

mod checks;

use std::sync::LazyLock;

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use weft_testkit::corpus;

#[test]
fn committed_corpora_pass() {
    corpus::replay("lower", checks::lower);
    corpus::replay("route", checks::route);
}

static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| corpus::inputs("lower"));

fn mutate(bytes: &mut Vec<u8>, edits: &[(usize, u8, u8)]) {
    for &(at, value, how) in edits {
        let len = bytes.len().max(1);
        let at = at % len;
        match how % 4 {
            0 if at < bytes.len() => bytes[at] = value,
            1 => bytes.insert(at.min(bytes.len()), value),
            2 if at < bytes.len() => {
                bytes.remove(at);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_never_panic(value in prop::collection::vec(any::<u8>(), 0..300)) {
        checks::lower(&value);
        checks::route(&value);
    }

    #[test]
    fn mutated_messages_never_panic(
        sample in any::<usize>(),
        edits in prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..12),
    ) {
        let mut input = SAMPLES[sample % SAMPLES.len()].clone();
        mutate(&mut input, &edits);
        checks::lower(&input);
    }
}
