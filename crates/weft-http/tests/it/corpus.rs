//! Replays the committed fuzzing corpora, so that what a fuzzer once found stays found on stable.

use std::path::Path;

use crate::{checks, h2_both, h2_checks};

#[test]
fn committed_corpora_pass() {
    replay("h1_request", checks::requests);
    replay("h1_response", checks::responses);
    replay("h1_body", checks::body);
    replay("h1_roundtrip", checks::roundtrip);
    replay("h2_frames", h2_checks::frames);
    replay("hpack_decode", h2_checks::hpack_decode);
    replay("hpack_roundtrip", h2_checks::hpack_roundtrip);
    replay("h2_connection", h2_checks::connection);
    replay("h2_differential", h2_both::differential);
}

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
    {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        eprintln!("{}", path.display());
        check(&input);
        inputs += 1;
    }
    assert!(inputs > 0, "no inputs in {}", folder.display());
}
