//! `cargo xtask test`: everything that must hold before a change lands.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    peers,
    process::{self, cargo, root},
    tidy,
};

#[derive(Args)]
pub struct TestArgs {
    /// Only the tests whose name contains this text; format, tidy and clippy are left out.
    filter: Option<String>,
}

/// What the test runners reported, summed.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    let peers = peers::provision()?;
    if args.filter.is_none() {
        static_checks()?;
    }
    // The end-to-end tests start the programs themselves.
    run_cargo(&["build", "--workspace", "--bins"])?;
    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("WEFT_REQUIRE_PEERS", "1")
        // The same generated cases in every run, unless the caller asks for others: a change is judged
        // by what it changed.
        .env("PROPTEST_RNG_SEED", std::env::var_os("PROPTEST_RNG_SEED").unwrap_or("1".into()))
        .env("WEFT_ENVOY", &peers.envoy)
        .env("WEFT_PYTHON", &peers.python);
    if let Some(filter) = &args.filter {
        tests.arg(filter);
    }
    let (totals, ok) = run_tests(&mut tests)?;
    println!("\nweft: every check ran");
    println!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.ignored);
    if !ok || totals.failed > 0 {
        bail!("tests failed");
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

fn static_checks() -> anyhow::Result<()> {
    run_cargo(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    run_cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn run_cargo(args: &[&str]) -> anyhow::Result<()> {
    process::run(cargo().args(args))
}

/// Runs the test command, shows its output, and sums its `test result:` lines.
fn run_tests(command: &mut Command) -> anyhow::Result<(Totals, bool)> {
    let mut child = command
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut totals = Totals::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the test output")?;
        println!("{line}");
        totals.add(&line);
    }
    Ok((totals, child.wait()?.success()))
}

impl Totals {
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        for part in rest.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(count) = count.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_sum_the_result_lines() {
        let mut totals = Totals::default();
        totals.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        totals.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        totals.add("running 5 tests");
        assert_eq!((totals.passed, totals.failed, totals.ignored), (15, 2, 1));
    }
}
