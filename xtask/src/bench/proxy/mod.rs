//! `cargo xtask bench proxy`: Weft beside its peers, in one run on one machine.
//!
//! Core 0 carries the load generator and the backend, core 1 the proxy with one worker. What is
//! compared is the proxy's CPU time per request: core 0 saturates first with the fast ones, and on
//! a shared machine ratios within a run hold while absolute figures do not.

mod config;
mod kind;
mod load;
mod memory;
mod open_loop;
mod report;
mod row;
mod start;
mod tables;
mod telemetry;
mod weft;
mod workers;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::pinned::Pinned;
use crate::peers;
use kind::Kind;
use load::Measured;
use memory::Held;
use report::Report;
use row::{Door, Row};
use start::{Backend, Tools, Wanted};

pub use start::Folders;
pub use telemetry::{TelemetryArgs, run as run_telemetry};

/// What to measure.
#[derive(Args)]
pub struct ProxyArgs {
    /// Repetitions; medians are reported.
    #[arg(long, visible_alias = "runs", default_value_t = 3)]
    repetitions: usize,
    /// Length of one measurement in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Only these proxies.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only loads whose name contains this text (see the headings of docs/performance.md).
    #[arg(long, value_delimiter = ',')]
    load: Vec<String>,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    part: Vec<Part>,
    /// Idle connections (and streams) to open for the memory figures; fewer where the limit of open
    /// files allows no more.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Only memory of these.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Held::ALL)]
    held: Vec<Held>,
    /// Fixed rates for the latency figures, in requests per second.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    rates: Vec<u32>,
    /// Also write the tables to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Use the release binaries that are there.
    #[arg(long)]
    no_build: bool,
}

/// The parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// CPU per request and throughput under full load.
    Load,
    /// Latency at fixed rates, through one proxy and through two in a row.
    Latency,
    /// Small calls beside a download on one HTTP/2 connection.
    Fairness,
    /// Memory at start, per idle connection and stream, and given back.
    Memory,
    /// Two workers beside one.
    Workers,
}

impl Part {
    const ALL: [Part; 5] = [Part::Load, Part::Latency, Part::Fairness, Part::Memory, Part::Workers];
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

/// Runs the measurements and prints Markdown tables.
pub fn run(args: &ProxyArgs) -> anyhow::Result<()> {
    peers::debian(&[
        ("wrk", "wrk"),
        ("nghttp2-client", "h2load"),
        ("util-linux", "taskset"),
        ("openssl", "openssl"),
        ("haproxy", "haproxy"),
        ("nginx", "nginx"),
        ("libnginx-mod-stream", "/usr/lib/nginx/modules/ngx_stream_module.so"),
    ])?;
    let tools = Tools::find(args.no_build)?;
    let backend = tools.backend()?;
    let kinds = selected(args, &tools);
    let wants = |part| args.part.contains(&part);
    let mut report = Report::default();
    if wants(Part::Load) || wants(Part::Latency) || wants(Part::Fairness) {
        for round in 1..=args.repetitions {
            eprintln!("repetition {round} of {}", args.repetitions);
            measure_all(args, &tools, &kinds, &backend, &mut report);
        }
    }
    if wants(Part::Memory) {
        measure_memory(args, &tools, &kinds, &backend, &mut report);
    }
    if wants(Part::Workers) && kinds.contains(&Kind::Weft) {
        let measured = workers::measure(&tools, &backend, args.seconds, |w| report.workers(w));
        if let Err(error) = measured {
            eprintln!("FAILED: workers: {error:#}");
        }
    }
    let text = tables::markdown(&report);
    println!("{text}");
    if let Some(out) = &args.out {
        std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    Ok(())
}

fn selected(args: &ProxyArgs, tools: &Tools) -> Vec<Kind> {
    Kind::ALL
        .into_iter()
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

/// All loads and rates on freshly started proxies. They take turns at each load, so that what the
/// machine does meanwhile falls on all of them; those that wait cost nothing.
fn measure_all(
    args: &ProxyArgs,
    tools: &Tools,
    kinds: &[Kind],
    backend: &Backend,
    report: &mut Report,
) {
    let wants = |part| args.part.contains(&part);
    let asked = |row: &Row| {
        args.load.is_empty() || args.load.iter().any(|text| row.name().contains(text.as_str()))
    };
    let rows: Vec<Row> = match wants(Part::Load) {
        true => row::ALL.iter().copied().filter(asked).collect(),
        false => Vec::new(),
    };
    let mut doors: Vec<Door> = rows.iter().map(|row| row.door).collect();
    if wants(Part::Latency) {
        doors.extend(open_loop::DOORS);
    }
    let mut proxies = Vec::new();
    for &kind in kinds {
        match tools.start(kind, backend.ports, Wanted::doors(&doors)) {
            Ok(proxy) => proxies.push((kind, proxy)),
            // One peer that fails must not cost the figures of the others.
            Err(error) => eprintln!("FAILED: {kind}: {error:#}"),
        }
    }
    for row in rows {
        for (kind, proxy) in &proxies {
            let Some((port, processes)) = proxy.serving(row.door) else { continue };
            match measure(tools, &processes, row, port, args.seconds) {
                Ok(measured) => report.load(*kind, row, measured),
                Err(error) => eprintln!("  FAILED: {kind}, {}: {error:#}", row.name()),
            }
        }
    }
    if wants(Part::Latency) {
        for (door, &rate) in open_loop::DOORS
            .iter()
            .flat_map(|door| args.rates.iter().map(move |rate| (*door, rate)))
        {
            for (kind, proxy) in proxies.iter().filter(|(_, proxy)| proxy.serving(door).is_some()) {
                match open_loop::measure(tools, proxy, door, rate, args.seconds) {
                    Ok(latency) => report.latency(*kind, door, rate, latency),
                    Err(error) => eprintln!("  FAILED: {kind}, {door:?} at {rate}/s: {error:#}"),
                }
            }
        }
    }
    if wants(Part::Fairness) {
        for (kind, proxy) in &proxies {
            match open_loop::fairness(tools, proxy, args.seconds) {
                Ok(fairness) => report.fairness(*kind, fairness),
                Err(error) => eprintln!("  FAILED: {kind}, fairness: {error:#}"),
            }
        }
    }
}

/// A short warm-up, then one measurement.
fn measure(
    tools: &Tools,
    processes: &[&Pinned],
    row: Row,
    port: u16,
    seconds: u32,
) -> anyhow::Result<Measured> {
    let cpu = || -> anyhow::Result<f64> {
        processes.iter().try_fold(0.0, |sum, process| Ok(sum + process.cpu()?.as_secs_f64()))
    };
    load::run(tools, row, port, 1)?;
    let before = cpu()?;
    let mut measured = load::run(tools, row, port, seconds)?;
    measured.cpu_us_per_request = (cpu()? - before) * 1e6 / measured.requests.max(1) as f64;
    Ok(measured)
}

/// A fresh proxy for each figure: what the one before left in the heap is not the next one's.
fn measure_memory(
    args: &ProxyArgs,
    tools: &Tools,
    kinds: &[Kind],
    backend: &Backend,
    report: &mut Report,
) {
    let count = args.idle.min(memory::connections_max());
    // The relay's buffers are 128 KiB by construction and say nothing.
    let proxies = kinds.iter().filter(|kind| !matches!(kind, Kind::Direct | Kind::Relay));
    for &kind in proxies {
        for &what in &args.held {
            let measured = tools
                .start(kind, backend.ports, Wanted::doors(&[what.door()]))
                .and_then(|proxy| memory::measure(tools, &proxy, what, count));
            match measured {
                Ok(memory) => report.memory(kind, what, count, memory),
                Err(error) => eprintln!("FAILED: memory of {kind}, {}: {error:#}", what.name()),
            }
        }
    }
}
