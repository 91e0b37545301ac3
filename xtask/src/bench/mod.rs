//! `cargo xtask bench`: Weft beside its peers, in one run on one machine.
//!
//! Core 0 carries the load generator and the backend, core 1 the proxy with one worker. What is
//! compared is the proxy's CPU time per request: core 0 saturates first with the fast ones, and on
//! a shared machine ratios within a run hold while absolute figures do not.

mod helper;
mod load;
mod memory;
mod open_loop;
mod pinned;
mod proxies;
mod report;
mod weft;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

pub use helper::HelperArgs;

use crate::peers;
use load::{Load, Measured};
use pinned::Pinned;
use proxies::{Backend, Kind, Tools};
use report::Report;

/// What to measure.
#[derive(Args)]
pub struct BenchArgs {
    /// Repetitions; the median is reported.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Length of one measurement in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Only these proxies.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only loads whose name contains this text.
    #[arg(long)]
    load: Option<String>,
    /// Idle connections to open for the memory figures; 0 leaves them out.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Fixed rates for the latency figures, in requests per second; 0 leaves them out.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    rates: Vec<u32>,
    /// Also write the tables to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Use the release binaries that are there.
    #[arg(long)]
    no_build: bool,
}

/// Runs the measurements and prints Markdown tables.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    peers::debian(&[("wrk", "wrk"), ("nghttp2-client", "h2load"), ("util-linux", "taskset")])?;
    let tools = Tools::find(args.no_build)?;
    let backend = tools.backend()?;
    let kinds = selected(args, &tools);
    let loads: Vec<Load> = load::ALL
        .iter()
        .copied()
        .filter(|load| args.load.as_ref().is_none_or(|text| load.name().contains(text.as_str())))
        .collect();
    let mut report = Report::default();
    for round in 1..=args.runs {
        for &kind in &kinds {
            eprintln!("run {round} of {}: {kind}", args.runs);
            // One peer that fails must not cost the figures of the others.
            if let Err(error) = measure_all(args, &tools, kind, &backend, &loads, &mut report) {
                eprintln!("FAILED: {kind}: {error:#}");
            }
        }
    }
    for &kind in kinds.iter().filter(|&&kind| args.idle > 0 && kind != Kind::Direct) {
        eprintln!("memory: {kind}");
        let measured = tools
            .start(kind, backend.port)
            .and_then(|proxy| memory::measure(&tools, &proxy, args.idle));
        match measured {
            Ok(memory) => report.memory(kind, memory),
            Err(error) => eprintln!("FAILED: {kind}: {error:#}"),
        }
    }
    let text = report.markdown();
    println!("{text}");
    if let Some(out) = &args.out {
        std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    Ok(())
}

/// Runs one of the small programs of the benchmark; started by [`run`].
pub fn run_helper(args: &HelperArgs) -> anyhow::Result<()> {
    helper::run(args)
}

fn selected(args: &BenchArgs, tools: &Tools) -> Vec<Kind> {
    let all = [Kind::Direct, Kind::Relay, Kind::Weft, Kind::Envoy, Kind::EnvoyMesh, Kind::Haproxy];
    all.into_iter()
        .filter(|kind| args.only.is_empty() || args.only.contains(kind))
        .filter(|&kind| match tools.missing(kind) {
            None => true,
            Some(why) => {
                eprintln!("SKIPPED: {kind}: {why}");
                false
            }
        })
        .collect()
}

/// All loads and rates on one freshly started proxy.
fn measure_all(
    args: &BenchArgs,
    tools: &Tools,
    kind: Kind,
    backend: &Backend,
    loads: &[Load],
    report: &mut Report,
) -> anyhow::Result<()> {
    let proxy = tools.start(kind, backend.port)?;
    for &load in loads {
        let Some((port, process)) = proxy.serving(load) else { continue };
        match measure(process, load, port, args.seconds) {
            Ok(measured) => report.load(kind, load, measured),
            Err(error) => eprintln!("  FAILED: {}: {error:#}", load.name()),
        }
    }
    for &rate in args.rates.iter().filter(|&&rate| rate > 0) {
        let latency = open_loop::measure(tools, proxy.http1().0, rate)
            .with_context(|| format!("at {rate}/s"))?;
        report.latency(kind, rate, latency);
    }
    Ok(())
}

/// A short warm-up, then one measurement.
fn measure(process: &Pinned, load: Load, port: u16, seconds: u32) -> anyhow::Result<Measured> {
    load.run(port, 1)?;
    let before = process.cpu()?;
    let mut measured = load.run(port, seconds)?;
    let spent = process.cpu()?.saturating_sub(before);
    measured.cpu_us_per_request = spent.as_secs_f64() * 1e6 / measured.requests.max(1) as f64;
    Ok(measured)
}
