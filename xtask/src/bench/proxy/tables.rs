//! The report as Markdown: the goals with what came out, then one table after the other.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::kind::Kind;
use super::memory::{GIVEN_BACK_BYTES, Held};
use super::open_loop;
use super::report::{Report, Verdict, median};
use super::row::{Door, Load, Row};
use super::workers;

const GIB: f64 = (1_u64 << 30) as f64;

/// All tables.
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    let written = goals(report, &mut text)
        .and_then(|()| loads(report, &mut text))
        .and_then(|()| latencies(report, &mut text))
        .and_then(|()| fairness(report, &mut text))
        .and_then(|()| memory(report, &mut text))
        .and_then(|()| workers_table(report, &mut text));
    written.expect("writing to memory cannot fail");
    text
}

fn goals(report: &Report, text: &mut String) -> std::fmt::Result {
    let rows: BTreeSet<Row> = report.loads.keys().map(|(row, _)| *row).collect();
    let mut verdicts: Vec<Verdict> = rows.iter().flat_map(|&row| report.verdicts(row)).collect();
    verdicts.extend(latency_verdicts(report));
    verdicts.extend(fairness_verdict(report));
    verdicts.extend(memory_verdicts(report));
    verdicts.extend(worker_verdicts(report));
    if verdicts.is_empty() {
        return Ok(());
    }
    let met = verdicts.iter().filter(|verdict| verdict.met).count();
    writeln!(text, "### Goals: {met} of {} met\n", verdicts.len())?;
    writeln!(text, "| work | goal | found | |\n|---|---|---|---|")?;
    for Verdict { what, goal, found, met } in verdicts {
        writeln!(text, "| {what} | {goal} | {found:.2} | {} |", mark(met))?;
    }
    writeln!(text)
}

fn mark(met: bool) -> char {
    if met { '✓' } else { '✗' }
}

fn loads(report: &Report, text: &mut String) -> std::fmt::Result {
    let rows: BTreeSet<Row> = report.loads.keys().map(|(row, _)| *row).collect();
    for row in rows {
        let per = match row.load {
            Load::Streaming { .. } => "message",
            Load::Unary { .. } => "call",
            Load::Http1 { .. } | Load::Http2 { .. } => "request",
        };
        writeln!(text, "### {}\n", row.name())?;
        let gib = if row.bytes() > 1024 { " CPU s/GiB |" } else { "" };
        writeln!(
            text,
            "| proxy | CPU µs/{per} |{gib} {per}s/s | p50 µs | p99 µs | ÷ relay | ÷ Envoy | \
             ÷ Envoy, sidecar work | ÷ haproxy | ÷ nginx |"
        )?;
        let columns = if gib.is_empty() { 10 } else { 11 };
        writeln!(text, "|{}", "---|".repeat(columns))?;
        for kind in Kind::ALL {
            let Some(runs) = report.loads.get(&(row, kind)) else { continue };
            let cpu = median(runs.iter().map(|run| run.cpu_us_per_request));
            let is_proxy = kind != Kind::Direct;
            let shown = |value: f64| if is_proxy { format!("{value:.1}") } else { "–".into() };
            write!(text, "| {kind} | {} |", shown(cpu))?;
            if !gib.is_empty() {
                let per_gib = cpu * 1e-6 * GIB / f64::from(row.bytes());
                let per_gib = if is_proxy { format!("{per_gib:.3}") } else { "–".into() };
                write!(text, " {per_gib} |")?;
            }
            write!(
                text,
                " {:.0} | {:.0} | {:.0} |",
                median(runs.iter().map(|run| run.per_second)),
                median(runs.iter().map(|run| run.p50_us)),
                median(runs.iter().map(|run| run.p99_us)),
            )?;
            for base in [Kind::Relay, Kind::Envoy, Kind::EnvoyMesh, Kind::Haproxy, Kind::Nginx] {
                let ratio = report.ratio(row, kind, base, |run| run.cpu_us_per_request);
                match ratio.filter(|_| is_proxy && kind != base) {
                    Some(ratio) => write!(text, " {ratio:.2} |")?,
                    None => write!(text, " – |")?,
                }
            }
            writeln!(text)?;
        }
        for Verdict { goal, found, met, .. } in report.verdicts(row) {
            write!(text, "\n{} {goal}: {found:.2}", mark(met))?;
        }
        writeln!(text, "\n")?;
    }
    Ok(())
}

fn latencies(report: &Report, text: &mut String) -> std::fmt::Result {
    let rates: BTreeSet<u32> = report.latencies.keys().map(|&(_, rate, _)| rate).collect();
    for door in open_loop::DOORS {
        if !report.latencies.keys().any(|&(measured, ..)| measured == door) {
            continue;
        }
        let name = if door == Door::Pair { "two in a row" } else { "one proxy" };
        writeln!(
            text,
            "### Latency at a fixed rate, {name} (64 connections, open loop; µs, p50 / p99)\n"
        )?;
        write!(text, "| proxy |")?;
        for rate in &rates {
            write!(text, " {rate}/s | added |")?;
        }
        writeln!(text, "\n|---|{}", "---|---|".repeat(rates.len()))?;
        for kind in Kind::ALL {
            // Direct stands in every table: what is added is over it.
            let door = if kind == Kind::Direct { Door::Http1 } else { door };
            if !rates.iter().any(|&rate| report.latencies.contains_key(&(door, rate, kind))) {
                continue;
            }
            write!(text, "| {kind} |")?;
            for &rate in &rates {
                match report.latency_median(door, rate, kind) {
                    Some(found) => write!(text, " {:.0} / {:.0} |", found.p50, found.p99)?,
                    None => write!(text, " – |")?,
                }
                match added(report, door, rate, kind).filter(|_| kind != Kind::Direct) {
                    Some((p50, p99)) => write!(text, " {p50:.0} / {p99:.0} |")?,
                    None => write!(text, " – |")?,
                }
            }
            writeln!(text)?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// Over direct, in µs.
fn added(report: &Report, door: Door, rate: u32, kind: Kind) -> Option<(f64, f64)> {
    let direct = report.latency_median(Door::Http1, rate, Kind::Direct)?;
    let found = report.latency_median(door, rate, kind)?;
    Some((found.p50 - direct.p50, found.p99 - direct.p99))
}

/// Two sidecars in a row may add a quarter of what two Envoys add.
fn latency_verdicts(report: &Report) -> Vec<Verdict> {
    const SHARE: f64 = 0.25;
    let rates: BTreeSet<u32> = report.latencies.keys().map(|&(_, rate, _)| rate).collect();
    let mut verdicts = Vec::new();
    for rate in rates {
        let of = |kind| added(report, Door::Pair, rate, kind);
        let (Some(weft), Some(envoy)) = (of(Kind::Weft), of(Kind::EnvoyMesh)) else { continue };
        for (name, found) in [("p50", weft.0 / envoy.0), ("p99", weft.1 / envoy.1)] {
            verdicts.push(Verdict {
                what: format!("two in a row at {rate}/s"),
                goal: format!("added {name} ≤ {SHARE} × {}", Kind::EnvoyMesh),
                found,
                met: found <= SHARE,
            });
        }
    }
    verdicts
}

fn fairness(report: &Report, text: &mut String) -> std::fmt::Result {
    if report.fairness.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "### Fairness: 500 small gRPC calls/s beside a download of 100 MB/s on the same HTTP/2 \
         connection (µs, p50 / p99)\n"
    )?;
    writeln!(text, "| proxy | alone | beside | p99 ratio |\n|---|---|---|---|")?;
    for (kind, runs) in &report.fairness {
        writeln!(
            text,
            "| {kind} | {:.0} / {:.0} | {:.0} / {:.0} | {:.2} |",
            median(runs.iter().map(|run| run.alone.p50)),
            median(runs.iter().map(|run| run.alone.p99)),
            median(runs.iter().map(|run| run.beside.p50)),
            median(runs.iter().map(|run| run.beside.p99)),
            median(runs.iter().map(|run| run.beside.p99 / run.alone.p99)),
        )?;
    }
    writeln!(text)
}

fn fairness_verdict(report: &Report) -> Option<Verdict> {
    let runs = report.fairness.get(&Kind::Weft)?;
    let found = median(runs.iter().map(|run| run.beside.p99 / run.alone.p99));
    Some(Verdict {
        what: "small calls beside a download".into(),
        goal: "p99 ≤ 2 × alone".into(),
        found,
        met: found <= 2.0,
    })
}

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;
const START_MIB_MAX: f64 = 8.0;

fn memory(report: &Report, text: &mut String) -> std::fmt::Result {
    let held: BTreeSet<Held> = report.memory.keys().map(|(what, _)| *what).collect();
    for what in held {
        let count = report.memory.iter().find(|((of, _), _)| *of == what).map(|(_, (n, _))| *n);
        writeln!(text, "### Memory: {} {}\n", count.unwrap_or_default(), what.name())?;
        writeln!(
            text,
            "| proxy | resident at start | resident each | anonymous each | after closing | \
             read after |\n|---|---|---|---|---|---|"
        )?;
        for kind in Kind::ALL {
            let Some((_, memory)) = report.memory.get(&(what, kind)) else { continue };
            writeln!(
                text,
                "| {kind} | {:.1} MiB | {:.2} KiB | {:.2} KiB | {:.1} MiB | {:.0} s |",
                memory.at_start as f64 / MIB,
                memory.per_item / KIB,
                memory.per_item_anonymous / KIB,
                memory.after_close as f64 / MIB,
                memory.given_back_s,
            )?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn memory_verdicts(report: &Report) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for ((what, kind), (_, memory)) in &report.memory {
        if *kind != Kind::Weft {
            continue;
        }
        if *what == Held::Plain {
            let found = memory.at_start as f64 / MIB;
            verdicts.push(Verdict {
                what: "memory at start".into(),
                goal: format!("≤ {START_MIB_MAX} MiB resident"),
                found,
                met: found <= START_MIB_MAX,
            });
        }
        let found = memory.per_item_anonymous / KIB;
        verdicts.push(Verdict {
            what: what.name().into(),
            goal: format!("≤ {} KiB of user memory each", what.goal() / KIB),
            found,
            met: memory.per_item_anonymous <= what.goal(),
        });
        let left = memory.after_close as f64 - memory.at_start as f64;
        verdicts.push(Verdict {
            what: what.name().into(),
            goal: "within 1 MiB of the start 60 s after closing".into(),
            found: left / MIB,
            met: left <= GIVEN_BACK_BYTES as f64,
        });
    }
    verdicts
}

fn workers_table(report: &Report, text: &mut String) -> std::fmt::Result {
    if report.workers.is_empty() {
        return Ok(());
    }
    writeln!(text, "### Weft with one and two workers\n")?;
    if !workers::cores_allow() {
        writeln!(
            text,
            "This machine has {} cores: with two workers the second shares its core with load \
             generator and backend, so throughput cannot double here.\n",
            workers::cores()
        )?;
    }
    writeln!(
        text,
        "| load | workers | requests/s | CPU µs/request | second worker's share of the first's \
         CPU |\n|---|---|---|---|---|"
    )?;
    for run in &report.workers {
        writeln!(
            text,
            "| {} | {} | {:.0} | {:.1} | {:.2} |",
            run.row.name(),
            run.workers,
            run.per_second,
            run.cpu_us_per_request,
            run.second_share
        )?;
    }
    writeln!(text)
}

fn worker_verdicts(report: &Report) -> Vec<Verdict> {
    const TIMES: f64 = 1.8;
    /// Below this one worker does nearly all the work.
    const SHARE_MIN: f64 = 0.2;
    let mut verdicts = Vec::new();
    for two in report.workers.iter().filter(|run| run.workers == 2) {
        let one = report.workers.iter().find(|run| run.workers == 1 && run.row == two.row);
        let what = format!("two workers, {}", two.row.name());
        if let Some(one) = one.filter(|_| workers::cores_allow()) {
            let found = two.per_second / one.per_second;
            let goal = format!("requests/s ≥ {TIMES} × one worker");
            verdicts.push(Verdict { what: what.clone(), goal, found, met: found >= TIMES });
        }
        verdicts.push(Verdict {
            what,
            goal: format!("second worker's CPU ≥ {SHARE_MIN} × the first's"),
            found: two.second_share,
            met: two.second_share >= SHARE_MIN,
        });
    }
    verdicts
}
