//! What has been measured, repetition by repetition, and medians and ratios of it.

use std::collections::BTreeMap;

use super::kind::Kind;
use super::load::Measured;
use super::memory::{Held, Memory};
use super::open_loop::{Fairness, Latency};
use super::row::{Door, Goal, Row};
use super::workers::Workers;

#[derive(Default)]
pub struct Report {
    pub loads: BTreeMap<(Row, Kind), Vec<Measured>>,
    pub latencies: BTreeMap<(Door, u32, Kind), Vec<Latency>>,
    pub fairness: BTreeMap<Kind, Vec<Fairness>>,
    pub memory: BTreeMap<(Held, Kind), (usize, Memory)>,
    pub workers: Vec<Workers>,
}

/// A goal and what came out.
pub struct Verdict {
    pub what: String,
    pub goal: String,
    pub found: f64,
    pub met: bool,
}

impl Report {
    pub fn load(&mut self, kind: Kind, row: Row, measured: Measured) {
        eprintln!(
            "  {}, {kind}: {:.1} µs CPU per request, {:.0}/s",
            row.name(),
            measured.cpu_us_per_request,
            measured.per_second
        );
        self.loads.entry((row, kind)).or_default().push(measured);
    }

    pub fn latency(&mut self, kind: Kind, door: Door, rate: u32, latency: Latency) {
        eprintln!(
            "  {door:?} {rate}/s, {kind}: p50 {:.0} µs, p99 {:.0} µs",
            latency.p50, latency.p99
        );
        self.latencies.entry((door, rate, kind)).or_default().push(latency);
    }

    pub fn fairness(&mut self, kind: Kind, fairness: Fairness) {
        let (alone, beside) = (fairness.alone.p99, fairness.beside.p99);
        eprintln!("  fairness, {kind}: p99 {alone:.0} µs alone, {beside:.0} µs beside a download");
        self.fairness.entry(kind).or_default().push(fairness);
    }

    pub fn memory(&mut self, kind: Kind, what: Held, count: usize, memory: Memory) {
        eprintln!(
            "memory of {kind}, {}: {:.0} bytes each ({:.0} anonymous)",
            what.name(),
            memory.per_item,
            memory.per_item_anonymous
        );
        self.memory.insert((what, kind), (count, memory));
    }

    pub fn workers(&mut self, workers: Workers) {
        let name = workers.row.name();
        eprintln!("{} workers, {name}: {:.0}/s", workers.workers, workers.per_second);
        self.workers.push(workers);
    }

    /// Median of the ratios repetition by repetition: noise that both share cancels.
    pub fn ratio(
        &self,
        row: Row,
        kind: Kind,
        base: Kind,
        figure: impl Fn(&Measured) -> f64,
    ) -> Option<f64> {
        let (runs, bases) = (self.loads.get(&(row, kind))?, self.loads.get(&(row, base))?);
        Some(median(runs.iter().zip(bases).map(|(run, base)| figure(run) / figure(base))))
    }

    /// Weft's figures on a row against the goals.
    pub fn verdicts(&self, row: Row) -> Vec<Verdict> {
        let cpu = |base| self.ratio(row, Kind::Weft, base, |run| run.cpu_us_per_request);
        let judge = |goal: Goal| {
            let (found, met, goal) = match goal {
                Goal::Cpu(base, share) => {
                    let found = cpu(base)?;
                    (found, found <= share, format!("CPU ≤ {share} × {base}"))
                }
                Goal::Below(base) => {
                    let found = cpu(base)?;
                    (found, found < 1.0, format!("CPU below {base}"))
                }
                Goal::Rate(base, times) => {
                    let found = self.ratio(row, Kind::Weft, base, |run| run.per_second)?;
                    (found, found >= times, format!("requests/s ≥ {times} × {base}"))
                }
            };
            Some(Verdict { what: row.name(), goal, found, met })
        };
        row.goals().into_iter().filter_map(judge).collect()
    }

    pub fn latency_median(&self, door: Door, rate: u32, kind: Kind) -> Option<Latency> {
        let runs = self.latencies.get(&(door, rate, kind))?;
        Some(Latency {
            p50: median(runs.iter().map(|run| run.p50)),
            p99: median(runs.iter().map(|run| run.p99)),
        })
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
