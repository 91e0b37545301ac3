//! `cargo xtask bench telemetry`: what metrics, traces and access logs cost a request, in Weft and in a
//! stock Envoy with a sidecar's work.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::kind::Kind;
use super::row::{Door, Load, Row};
use super::start::{Tools, Wanted};
use super::{measure, peers};

/// What to measure.
#[derive(Args)]
pub struct TelemetryArgs {
    /// Repetitions; medians are reported.
    #[arg(long, visible_alias = "runs", default_value_t = 5)]
    repetitions: usize,
    /// Length of one measurement in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Also write the table to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Use the release binaries that are there.
    #[arg(long)]
    no_build: bool,
}

/// What is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telemetry {
    Off,
    Metrics,
    /// And one trace in a hundred, reported to a collector.
    Traces,
    /// Metrics, and a line of every request to a file.
    Log,
}

impl Telemetry {
    const ALL: [Telemetry; 4] =
        [Telemetry::Off, Telemetry::Metrics, Telemetry::Traces, Telemetry::Log];

    fn name(self) -> &'static str {
        match self {
            Telemetry::Off => "all off",
            Telemetry::Metrics => "metrics",
            Telemetry::Traces => "metrics, 1 % of traces",
            Telemetry::Log => "metrics, access log to a file",
        }
    }

    /// What is added to Weft's world.
    pub fn weft(self) -> String {
        let (mesh, rules) = match self {
            Telemetry::Off => (
                "",
                "metrics: [{overrides: [{disabled: true}]}], tracing: [{randomSamplingPercentage: 0}]",
            ),
            Telemetry::Metrics => ("", "tracing: [{randomSamplingPercentage: 0}]"),
            Telemetry::Traces => (
                "extensionProviders: [{name: bench, zipkin: {service: bench.local, port: @HTTP1@}}]\n",
                "tracing: [{providers: [{name: bench}], randomSamplingPercentage: 1}]",
            ),
            Telemetry::Log => (
                "accessLogFile: \"@DIR@/weft-access.log\"\n",
                "tracing: [{randomSamplingPercentage: 0}]",
            ),
        };
        let mesh = if mesh.is_empty() { String::new() } else { format!("---\n{mesh}") };
        format!(
            "{mesh}---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
             metadata: {{name: bench, namespace: istio-system}}\nspec: {{{rules}}}\n"
        )
    }

    /// Envoy's connection manager with a sidecar's work, changed accordingly.
    pub fn envoy(self, router: &str) -> String {
        const TRACING: &str = "tracing: { random_sampling: { value: 1.0 } },";
        let tracing = match self {
            Telemetry::Off | Telemetry::Metrics => String::new(),
            Telemetry::Traces => "tracing: { random_sampling: { value: 1.0 }, provider: { \
                name: envoy.tracers.zipkin, typed_config: { \
                \"@type\": type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, \
                collector_cluster: http1, collector_endpoint: /api/v2/spans, \
                collector_endpoint_version: HTTP_JSON } } },"
                .to_owned(),
            Telemetry::Log => "access_log: [ { name: envoy.access_loggers.file, typed_config: { \
                \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
                path: \"@DIR@/envoy-access.log\" } } ],"
                .to_owned(),
        };
        let changed = router.replace(TRACING, &tracing);
        match self {
            Telemetry::Off => changed.replace("dynamic_stats: true", "dynamic_stats: false"),
            _ => changed,
        }
    }
}

/// CPU per request in microseconds, by proxy and what is on.
type Found = [[Vec<f64>; Telemetry::ALL.len()]; KINDS.len()];

const KINDS: [Kind; 2] = [Kind::Weft, Kind::EnvoyMesh];
const ROW: Row = Row { door: Door::Http1, load: Load::Http1 { connections: 32, bytes: 1024 } };

/// Runs the measurements and prints a Markdown table.
pub fn run(args: &TelemetryArgs) -> anyhow::Result<()> {
    peers::debian(&[("wrk", "wrk"), ("util-linux", "taskset"), ("openssl", "openssl")])?;
    let tools = Tools::find(args.no_build)?;
    let backend = tools.backend()?;
    let mut found: Found = Default::default();
    for round in 1..=args.repetitions {
        eprintln!("repetition {round} of {}", args.repetitions);
        // The variants take turns, so that what the machine does meanwhile falls on all of them.
        for (at, telemetry) in Telemetry::ALL.into_iter().enumerate() {
            for (of, kind) in KINDS.into_iter().enumerate() {
                if let Some(why) = tools.missing(kind) {
                    eprintln!("SKIPPED: {kind}: {why}");
                    continue;
                }
                let wanted = Wanted { telemetry: Some(telemetry), ..Wanted::doors(&[ROW.door]) };
                let proxy = tools.start(kind, backend.ports, wanted)?;
                let (port, processes) = proxy.serving(ROW.door).context("HTTP/1 is served")?;
                let measured = measure(&tools, &processes, ROW, port, args.seconds)?;
                found[of][at].push(measured.cpu_us_per_request);
            }
        }
    }
    let text = table(&found);
    println!("{text}");
    if let Some(out) = &args.out {
        std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    Ok(())
}

fn table(found: &Found) -> String {
    let mut text = format!("HTTP/1, {}: CPU per request and requests/s a core\n\n", ROW.name());
    text.push_str("| proxy | what is on | µs/request | requests/s | throughput of all off |\n");
    text.push_str("|---|---|---:|---:|---:|\n");
    for (kind, variants) in KINDS.iter().zip(found) {
        let off = median(&variants[0]);
        for (telemetry, runs) in Telemetry::ALL.iter().zip(variants) {
            let Some(cost) = median(runs) else { continue };
            let share =
                off.map_or_else(|| "-".into(), |off| format!("{:.1} %", 100.0 * off / cost));
            text.push_str(&format!(
                "| {kind} | {} | {cost:.2} | {:.0} | {share} |\n",
                telemetry.name(),
                1e6 / cost,
            ));
        }
    }
    text
}

fn median(runs: &[f64]) -> Option<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
