//! `cargo xtask bench demo`: what starting the demo costs: seconds until its gateway answers, and
//! resident memory of each of its proxies, when ready and after some traffic.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use super::proxy::Folders;

#[derive(Args)]
pub struct DemoArgs {
    /// How often to start it; medians are reported.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// How long its own traffic runs before memory is read again.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Use the release binaries that are there.
    #[arg(long)]
    no_build: bool,
}

/// The demo's claims: a sidecar below 15 MB, the gateway within 10 s.
const SIDECAR_BYTES_MAX: u64 = 15_000_000;
const READY_MAX: Duration = Duration::from_secs(10);

/// One start.
struct Started {
    ready: Duration,
    /// Name, kind, resident bytes when ready and after traffic.
    proxies: Vec<(String, String, u64, u64)>,
}

pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let folders = Folders::find(args.no_build)?;
    let program = folders.release.join("weft");
    let starts = (0..args.repetitions.max(1))
        .map(|_| start(&program, Duration::from_secs(args.seconds)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut times: Vec<Duration> = starts.iter().map(|start| start.ready).collect();
    times.sort_unstable();
    let ready = times[times.len() / 2];
    println!("### The demo\n");
    println!(
        "Its gateway answers {:.2} s after the process was started (goal {} s) {}\n",
        ready.as_secs_f64(),
        READY_MAX.as_secs(),
        mark(ready <= READY_MAX)
    );
    println!(
        "| proxy | resident when ready | after {} s of its traffic | |\n|---|---|---|---|",
        args.seconds
    );
    let first = starts.first().context("no start")?;
    for (name, kind, ..) in &first.proxies {
        let of = |read: fn(&(String, String, u64, u64)) -> u64| {
            let proxies = starts.iter().flat_map(|start| &start.proxies);
            let mut found: Vec<u64> = proxies.filter(|p| p.0 == *name).map(read).collect();
            found.sort_unstable();
            found.get(found.len() / 2).copied().unwrap_or_default()
        };
        let (ready, later) = (of(|p| p.2), of(|p| p.3));
        let verdict = match kind.as_str() {
            "sidecar" => mark(later <= SIDECAR_BYTES_MAX).to_string(),
            _ => String::new(),
        };
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "| {name} ({kind}) | {:.1} MB | {:.1} MB | {verdict} |",
            megabytes(ready),
            megabytes(later)
        );
    }
    Ok(())
}

fn mark(met: bool) -> char {
    if met { '✓' } else { '✗' }
}

/// The demo; stopped when dropped, and its proxies with it.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        // The demo ends its children in order on SIGTERM; killed, it leaves that to their pipes.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn start(program: &std::path::Path, traffic: Duration) -> anyhow::Result<Started> {
    let begun = Instant::now();
    // A demo that never gets ready ends by itself after a minute.
    let child = Command::new(program)
        .args(["demo", "--output=json", "--port-base=free"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut demo = Demo(child);
    let mut line = String::new();
    let stdout = demo.0.stdout.take().context("the demo has no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let ready = begun.elapsed();
    ensure!(!line.is_empty(), "the demo ended before it was ready");
    let described: serde_json::Value = serde_json::from_str(&line)?;
    let Some(list) = described["proxies"].as_array() else { bail!("no proxies in {line}") };
    let mut proxies = Vec::new();
    for proxy in list {
        let text = |key: &str| proxy[key].as_str().unwrap_or_default().to_owned();
        let pid = proxy["pid"].as_u64().context("a proxy without a process")?;
        proxies.push((text("name"), text("kind"), pid, resident(pid)?));
    }
    std::thread::sleep(traffic);
    let proxies = proxies
        .into_iter()
        .map(|(name, kind, pid, at_start)| Ok((name, kind, at_start, resident(pid)?)));
    Ok(Started { ready, proxies: proxies.collect::<anyhow::Result<_>>()? })
}

fn resident(pid: u64) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(kilobytes.context("no VmRSS")? * 1024)
}
