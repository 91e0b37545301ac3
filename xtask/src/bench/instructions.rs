//! `cargo xtask bench instructions`: instructions of one operation of the request path, counted by
//! callgrind, beside the recorded ones. Time differs from run to run on a shared machine;
//! instructions do not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::{peers, process};

#[derive(Args)]
pub struct InstructionsArgs {
    /// Only operations whose name contains this text.
    #[arg(long)]
    only: Option<String>,
    /// Fail when an operation has grown by more than `--allow` percent.
    #[arg(long)]
    check: bool,
    /// Growth that is no regression, in percent.
    #[arg(long, default_value_t = 5.0)]
    allow: f64,
    /// Record what was counted as the new baseline.
    #[arg(long, conflicts_with = "only")]
    update: bool,
}

const BASELINE: &str = "bench/instructions.json";
/// What the start costs is the same in both counts and falls out of the difference.
const COUNTS: [u32; 2] = [1000, 3000];

/// Instructions by operation.
type Counted = BTreeMap<String, f64>;

pub fn run(args: &InstructionsArgs) -> anyhow::Result<()> {
    peers::debian(&[("valgrind", "valgrind")])?;
    let program = build("weft-proxy", "instructions")?;
    let baseline = baseline()?;
    let mut counted = Counted::new();
    let mut grown = Vec::new();
    println!("| operation | instructions | recorded | change |\n|---|---|---|---|");
    for name in operations(&program)? {
        if args.only.as_ref().is_some_and(|text| !name.contains(text.as_str())) {
            continue;
        }
        let found = count(&program, &name)?;
        let recorded = baseline.get(&name).copied();
        let change = recorded.map(|recorded| (found / recorded - 1.0) * 100.0);
        let shown = recorded.map_or("–".into(), |recorded| format!("{recorded:.0}"));
        let change_shown = change.map_or("–".into(), |change| format!("{change:+.1} %"));
        println!("| {name} | {found:.0} | {shown} | {change_shown} |");
        if change.is_some_and(|change| change > args.allow) {
            grown.push(name.clone());
        }
        counted.insert(name, found.round());
    }
    ensure!(!counted.is_empty(), "no operation has this name");
    if args.update {
        let text = serde_json::to_string_pretty(&counted)?;
        std::fs::write(process::root().join(BASELINE), text + "\n")?;
    }
    if args.check && !grown.is_empty() {
        bail!(
            "more instructions than {BASELINE} allows: {}; if that is worth it, \
             `cargo xtask bench instructions --update` and say why in the commit",
            grown.join(", ")
        );
    }
    Ok(())
}

fn baseline() -> anyhow::Result<Counted> {
    let path = process::root().join(BASELINE);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".into());
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// Builds a benchmark of a crate and asks cargo where its program is.
pub fn build(package: &str, bench: &str) -> anyhow::Result<PathBuf> {
    let mut command = process::cargo();
    command.args(["build", "--release", "--package", package, "--bench", bench]);
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut program = None;
    for line in BufReader::new(stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line?) else { continue };
        if message["target"]["name"] == bench {
            program = message["executable"].as_str().map(PathBuf::from).or(program);
        }
    }
    ensure!(child.wait()?.success(), "cargo build failed");
    program.context("cargo named no program")
}

fn operations(program: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(program).output()?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Instructions of one operation.
fn count(program: &Path, name: &str) -> anyhow::Result<f64> {
    let [few, many] = COUNTS;
    let difference = collected(program, name, many)? - collected(program, name, few)?;
    Ok(difference / f64::from(many - few))
}

fn collected(program: &Path, name: &str, count: u32) -> anyhow::Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([name, &count.to_string()])
        .output()
        .context("cannot start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .and_then(|(_, number)| number.trim().parse().ok());
    match collected.filter(|_| output.status.success()) {
        Some(collected) => Ok(collected),
        None => bail!("valgrind: {text}"),
    }
}
