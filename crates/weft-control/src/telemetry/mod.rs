//! What the mesh does now: load reports of proxies, kept for some minutes, and what is asked of them.
//!
//! ```text
//! proxies ═reports═► intake ┬► store (edges, interfaces, failures) ─► pages
//! old ones ═Mixer══► mixer ─┴► records (single requests) ───────────►
//! ```
//! A picture of now, in memory, bounded in everything; the past is Prometheus' business. Must not
//! know configuration beyond who a workload is.

pub mod dot;
mod intake;
mod mixer;
mod pages;
mod records;
mod store;
mod templates;
mod view;
mod window;

pub use intake::Intake;
pub use mixer::Mixer;
pub(crate) use pages::router;
pub use records::{Filter, RequestRow};
pub use view::{
    FailureRow, Graph, GraphEdge, GraphNode, InterfaceRow, Numbers, Reported, ReporterRow,
};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use records::Records;
use store::Store;
use weft_telemetry::{Counter, Registry};

/// The recent past of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    begun: Instant,
    store: Mutex<Store>,
    records: Mutex<Records>,
    reports: Counter,
    repeated: Counter,
    refused: Counter,
}

impl Telemetry {
    /// Empty.
    pub fn new(metrics: &Registry) -> Self {
        let reports = |result| {
            let help = "Load reports of proxies, by what became of them.";
            metrics.counter("weft_telemetry_reports_total", help, &[("result", result)])
        };
        let telemetry = Self(Arc::new(Inner {
            begun: Instant::now(),
            store: Mutex::default(),
            records: Mutex::default(),
            reports: reports("taken"),
            repeated: reports("repeated"),
            refused: reports("refused"),
        }));
        for kind in ["edges", "interfaces", "failures", "reporters"] {
            let weak = Arc::downgrade(&telemetry.0);
            metrics.gauge_fn(
                "weft_telemetry_series",
                "What is kept of the mesh's recent past, by kind.",
                &[("kind", kind)],
                move || weak.upgrade().map_or(0.0, |inner| lock(&inner.store).len(kind) as f64),
            );
        }
        telemetry
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.0.store)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        lock(&self.0.records)
    }

    /// Seconds since the beginning.
    fn now(&self) -> u64 {
        self.0.begun.elapsed().as_secs()
    }

    fn now_us() -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The data under these locks is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
