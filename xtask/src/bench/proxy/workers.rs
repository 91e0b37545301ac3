//! Two workers beside one: throughput, and whether a few long HTTP/2 connections use both.

use std::time::Duration;

use anyhow::Context as _;

use super::kind::Kind;
use super::load;
use super::row::{Door, Load, Row};
use super::start::{Backend, PROXY_CORE, Tools, Wanted};

/// What one number of workers gave on one row.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    pub row: Row,
    pub workers: u32,
    pub per_second: f64,
    pub cpu_us_per_request: f64,
    /// CPU time of the second busiest thread as a share of the busiest's.
    pub second_share: f64,
}

const ROWS: [Row; 2] = [
    Row { door: Door::Http1, load: Load::Http1 { connections: 64, bytes: 2 } },
    Row { door: Door::Http2, load: Load::Http2 { connections: 4, streams: 100 } },
];

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether two workers can have two cores that carry no load.
pub fn cores_allow() -> bool {
    cores() >= 4
}

pub fn measure(
    tools: &Tools,
    backend: &Backend,
    seconds: u32,
    mut found: impl FnMut(Workers),
) -> anyhow::Result<()> {
    let two = if cores_allow() { "1,2" } else { "0,1" };
    for (workers, cores) in [(1, PROXY_CORE), (2, two)] {
        let doors = &[Door::Http1, Door::Http2];
        let wanted = Wanted { doors, workers, cores, telemetry: None };
        let proxy = tools.start(Kind::Weft, backend.ports, wanted)?;
        for row in ROWS {
            let (port, processes) = proxy.serving(row.door).context("not served")?;
            let process = processes.first().context("no process")?;
            load::run(tools, row, port, 1)?;
            let before = (process.cpu()?, process.thread_cpu()?);
            let measured = load::run(tools, row, port, seconds)?;
            let spent = process.cpu()?.saturating_sub(before.0);
            found(Workers {
                row,
                workers,
                per_second: measured.per_second,
                cpu_us_per_request: spent.as_secs_f64() * 1e6 / measured.requests.max(1) as f64,
                second_share: second_share(&before.1, &process.thread_cpu()?),
            });
        }
    }
    Ok(())
}

/// The lists are sorted, most first; order among the busy does not change within a measurement
/// by more than the figure's own noise.
fn second_share(before: &[Duration], after: &[Duration]) -> f64 {
    let spent = |index: usize| {
        let at = |list: &[Duration]| list.get(index).copied().unwrap_or_default();
        at(after).saturating_sub(at(before)).as_secs_f64()
    };
    spent(1) / spent(0).max(f64::EPSILON)
}
