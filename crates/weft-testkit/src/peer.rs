//! Where the real peers are, and what a test does when one is missing.
//!
//! `cargo xtask test` sets `WEFT_ENVOY`, `WEFT_PYTHON` and `WEFT_REQUIRE_PEERS=1`. Without them a
//! test says loudly that it was skipped; with the last one a missing peer is a failure.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

/// Stock Envoy's binary, or `None` after saying that the test is skipped.
pub fn envoy(test: &str) -> Option<PathBuf> {
    find("WEFT_ENVOY", "python/bin/envoy", test)
}

/// A Python with `grpc` installed, or `None` after saying that the test is skipped.
pub fn python(test: &str) -> Option<PathBuf> {
    find("WEFT_PYTHON", "python/bin/python", test)
}

/// haproxy's binary, or `None` after saying that the test is skipped.
pub fn haproxy(test: &str) -> Option<PathBuf> {
    on_path("haproxy", test)
}

/// nginx's binary, or `None` after saying that the test is skipped.
pub fn nginx(test: &str) -> Option<PathBuf> {
    on_path("nginx", test)
}

/// curl's binary, or `None` after saying that the test is skipped.
pub fn curl(test: &str) -> Option<PathBuf> {
    on_path("curl", test)
}

/// h2load's binary, or `None` after saying that the test is skipped.
pub fn h2load(test: &str) -> Option<PathBuf> {
    on_path("h2load", test)
}

/// Prometheus' binary, or `None` after saying that the test is skipped.
pub fn prometheus(test: &str) -> Option<PathBuf> {
    on_path("prometheus", test)
}

/// The checker of Prometheus' rules, or `None` after saying that the test is skipped.
pub fn promtool(test: &str) -> Option<PathBuf> {
    on_path("promtool", test)
}

/// The folder with Istio's own samples: `WEFT_DATA`, or `shared/data` beside the workspace.
pub fn data(test: &str) -> Option<PathBuf> {
    let beside = workspace().parent().map(|parent| parent.join("shared/data"));
    let folder = std::env::var_os("WEFT_DATA").map(PathBuf::from).or(beside)?;
    if folder.is_dir() {
        return Some(folder);
    }
    let why = format!("no Istio samples at {} (set WEFT_DATA)", folder.display());
    note_skip(test, &why);
    // The samples are no package: a plain clone has none, the project's CI always has.
    assert!(std::env::var_os("CI").is_none(), "{test} could not run: {why}");
    None
}

/// Says that `test` did not run, past the test runner's capture. Fails when peers are required.
pub fn skip(test: &str, why: &str) {
    note_skip(test, why);
    assert!(
        std::env::var_os("WEFT_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{test} could not run: {why}"
    );
}

fn note_skip(test: &str, why: &str) {
    let line = format!("\nSKIPPED {test}: {why}\n");
    // Not eprintln!: its output is captured for tests that pass.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn find(variable: &str, in_cache: &str, test: &str) -> Option<PathBuf> {
    let cached = workspace().join("target/peers").join(in_cache);
    let path = std::env::var_os(variable).map_or(cached, PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    skip(test, &format!("{} is missing: `cargo xtask peers` installs it", path.display()));
    None
}

/// A program of the distribution. Daemons lie in `sbin`, which an ordinary user's path leaves out.
fn on_path(program: &str, test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(test, &format!("{program} is missing: `cargo xtask test` installs it"));
    }
    found
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/x is two levels deep")
}
