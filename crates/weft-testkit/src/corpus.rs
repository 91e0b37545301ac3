//! The committed fuzzing corpora (`fuzz/corpus/TARGET`), for replay on stable: what a fuzzer once
//! found stays found.

use std::path::Path;

/// Every input of a target, in order of file names. Panics when there is none.
pub fn inputs(target: &str) -> Vec<Vec<u8>> {
    read(target).into_iter().map(|(_, input)| input).collect()
}

/// Runs a target's check over its corpus; the last file named on stderr is the one that failed.
pub fn replay(target: &str, check: fn(&[u8])) {
    for (path, input) in read(target) {
        eprintln!("{path}");
        check(&input);
    }
}

fn read(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut inputs: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("a readable folder").path();
            let input = std::fs::read(&path).expect("a readable input");
            (path.display().to_string(), input)
        })
        .collect();
    assert!(!inputs.is_empty(), "no inputs in {}", folder.display());
    inputs.sort();
    inputs
}
