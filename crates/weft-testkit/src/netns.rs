//! Tests in a network and mount namespace of their own, so that routes, capture rules and named
//! namespaces touch nothing else and vanish with the test's process. Needs root.

use std::process::Command;

use crate::peer;

/// Set in the process that runs inside.
const INSIDE: &str = "WEFT_TEST_INSIDE_NAMESPACE";

/// Runs the test `name` (its full path) again inside fresh namespaces. True: we are inside, go on.
/// False: it ran there and passed, or was skipped because `probe` (words of one command) does not
/// work there. Panics with its output when it failed.
pub fn inside(name: &str, probe: &str) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["-n", "-m"]);
        command
    };
    match unshare().args(probe.split(' ')).output() {
        Ok(output) if output.status.success() => {}
        _ => {
            peer::skip(name, &format!("needs root, unshare and a working `{probe}`"));
            return false;
        }
    }
    let itself = std::env::current_exe().expect("a test knows its own program");
    let output = unshare()
        .arg(itself)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .output()
        .expect("unshare starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    false
}

/// Runs commands, words separated by single blanks; panics at the first that fails.
pub fn commands(all: &[&str]) {
    for command in all {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        let output = Command::new(program).args(words).output();
        let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
