//! Medians and ratios of a run as Markdown tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::load::{Load, Measured};
use super::memory::Memory;
use super::open_loop::Latency;
use super::proxies::Kind;

/// Everything measured, repetition by repetition.
#[derive(Default)]
pub struct Report {
    loads: BTreeMap<(Load, Kind), Vec<Measured>>,
    latencies: BTreeMap<(u32, Kind), Vec<Latency>>,
    memory: BTreeMap<Kind, Memory>,
}

impl Report {
    pub fn load(&mut self, kind: Kind, load: Load, measured: Measured) {
        eprintln!(
            "  {}: {:.1} µs CPU per request, {:.0}/s",
            load.name(),
            measured.cpu_us_per_request,
            measured.per_second
        );
        self.loads.entry((load, kind)).or_default().push(measured);
    }

    pub fn latency(&mut self, kind: Kind, rate: u32, latency: Latency) {
        eprintln!("  {rate}/s: p50 {:.0} µs, p99 {:.0} µs", latency.p50, latency.p99);
        self.latencies.entry((rate, kind)).or_default().push(latency);
    }

    pub fn memory(&mut self, kind: Kind, memory: Memory) {
        self.memory.insert(kind, memory);
    }

    /// All tables.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        self.load_tables(&mut text).expect("writing to memory cannot fail");
        self.latency_table(&mut text).expect("writing to memory cannot fail");
        self.memory_table(&mut text).expect("writing to memory cannot fail");
        text
    }

    fn load_tables(&self, text: &mut String) -> std::fmt::Result {
        let mut loads: Vec<Load> = self.loads.keys().map(|(load, _)| *load).collect();
        loads.dedup();
        for load in loads {
            writeln!(text, "### {}\n", load.name())?;
            writeln!(
                text,
                "| proxy | CPU µs/request | requests/s | p50 µs | p99 µs | CPU ÷ relay | CPU ÷ Envoy |"
            )?;
            writeln!(text, "|---|---|---|---|---|---|---|")?;
            for (&(_, kind), runs) in self.loads.range((load, Kind::Direct)..=(load, Kind::LAST)) {
                let cpu = match kind {
                    Kind::Direct => "–".into(),
                    _ => format!("{:.1}", median(runs.iter().map(|run| run.cpu_us_per_request))),
                };
                let p99: Vec<f64> = runs.iter().filter_map(|run| run.p99_us).collect();
                let p99 = match p99.is_empty() {
                    true => "–".into(),
                    false => format!("{:.0}", median(p99.into_iter())),
                };
                writeln!(
                    text,
                    "| {kind} | {cpu} | {:.0} | {:.0} | {p99} | {} | {} |",
                    median(runs.iter().map(|run| run.per_second)),
                    median(runs.iter().map(|run| run.p50_us)),
                    self.ratio(load, kind, Kind::Relay),
                    self.ratio(load, kind, Kind::Envoy),
                )?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    /// Median of the ratios repetition by repetition: noise that both share cancels.
    fn ratio(&self, load: Load, kind: Kind, base: Kind) -> String {
        let (Some(runs), Some(bases)) =
            (self.loads.get(&(load, kind)), self.loads.get(&(load, base)))
        else {
            return "–".into();
        };
        if kind == Kind::Direct || kind == base {
            return "–".into();
        }
        let ratios = runs.iter().zip(bases);
        format!("{:.2}", median(ratios.map(|(a, b)| a.cpu_us_per_request / b.cpu_us_per_request)))
    }

    fn latency_table(&self, text: &mut String) -> std::fmt::Result {
        let mut rates: Vec<u32> = self.latencies.keys().map(|(rate, _)| *rate).collect();
        rates.dedup();
        if rates.is_empty() {
            return Ok(());
        }
        writeln!(text, "### Latency at a fixed rate (64 connections, open loop; µs, p50 / p99)\n")?;
        writeln!(
            text,
            "| proxy |{}",
            rates.iter().fold(String::new(), |t, r| t + &format!(" {r}/s |"))
        )?;
        writeln!(text, "|---|{}", "---|".repeat(rates.len()))?;
        let mut kinds: Vec<Kind> = self.latencies.keys().map(|(_, kind)| *kind).collect();
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            write!(text, "| {kind} |")?;
            for &rate in &rates {
                match self.latencies.get(&(rate, kind)) {
                    Some(runs) => write!(
                        text,
                        " {:.0} / {:.0} |",
                        median(runs.iter().map(|run| run.p50)),
                        median(runs.iter().map(|run| run.p99))
                    )?,
                    None => write!(text, " – |")?,
                }
            }
            writeln!(text)?;
        }
        writeln!(text)
    }

    fn memory_table(&self, text: &mut String) -> std::fmt::Result {
        if self.memory.is_empty() {
            return Ok(());
        }
        writeln!(text, "### Memory (resident, one worker)\n")?;
        writeln!(text, "| proxy | at start | per idle connection | after closing |")?;
        writeln!(text, "|---|---|---|---|")?;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for (kind, memory) in &self.memory {
            writeln!(
                text,
                "| {kind} | {:.1} MiB | {:.2} KiB | {:.1} MiB |",
                mebibytes(memory.at_start),
                memory.per_connection / 1024.0,
                mebibytes(memory.after_close)
            )?;
        }
        Ok(())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
