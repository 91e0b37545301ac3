//! Traces of one machine's mesh, in memory, with Zipkin's API: so that traces can be looked at where
//! nothing else is installed. A mesh in earnest sends its spans to Zipkin or Jaeger.
//!
//! Bounded: the oldest traces go. Must not know who makes spans.

mod links;
mod pages;
mod query;
mod span;
mod store;

pub(crate) use pages::router;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_telemetry::{Counter, Registry};

use store::Store;

/// The traces. Cheap to clone.
#[derive(Clone)]
pub struct Traces(Arc<Inner>);

struct Inner {
    store: Mutex<Store>,
    taken: Counter,
    refused: Counter,
}

impl Traces {
    /// Empty.
    pub fn new(metrics: &Registry) -> Self {
        let spans = |result| {
            let help = "Spans sent to the embedded trace store, by what became of them.";
            metrics.counter("weft_traces_spans_total", help, &[("result", result)])
        };
        let traces = Self(Arc::new(Inner {
            store: Mutex::default(),
            taken: spans("taken"),
            refused: spans("refused"),
        }));
        let weak = Arc::downgrade(&traces.0);
        metrics.gauge_fn(
            "weft_traces_bytes",
            "Memory of the embedded trace store, as far as spans tell.",
            &[],
            move || weak.upgrade().map_or(0.0, |inner| lock(&inner.store).bytes() as f64),
        );
        traces
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.0.store)
    }
}

/// The data under the lock is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
