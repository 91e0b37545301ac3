//! Counters per endpoint, for `/clusters`. Cells are shared with the admin server but written by
//! one worker each; a scrape adds the workers up. Cells of endpoints that left are dropped with the
//! next table; those of passthrough's destinations, which no table bounds, when there are many and
//! nothing uses them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_traffic::EndpointAddress;

/// A number only one thread writes.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn inc(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.store(self.get().wrapping_sub(1), Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's counters for one endpoint, with Envoy's names.
#[derive(Debug, Default)]
pub struct EndpointCounters {
    /// Connections open now.
    pub cx_active: Count,
    /// Connections tried.
    pub cx_total: Count,
    /// Connections that could not be made.
    pub cx_connect_fail: Count,
    /// Requests under way.
    pub rq_active: Count,
    /// Requests sent.
    pub rq_total: Count,
    /// Responses other than 5xx.
    pub rq_success: Count,
    /// 5xx and failures.
    pub rq_error: Count,
    /// Failures by timeout.
    pub rq_timeout: Count,
}

/// Counts one open connection until dropped.
#[derive(Debug)]
pub struct CxGuard(Arc<EndpointCounters>);

impl CxGuard {
    /// Counts from now.
    pub fn new(counters: Arc<EndpointCounters>) -> CxGuard {
        counters.cx_active.inc();
        CxGuard(counters)
    }

    /// The endpoint's other counters.
    pub fn counters(&self) -> &Arc<EndpointCounters> {
        &self.0
    }
}

impl Drop for CxGuard {
    fn drop(&mut self) {
        self.0.cx_active.dec();
    }
}

/// Cluster name and address.
pub type EndpointKey = (Arc<str>, EndpointAddress);

/// Destinations of passthrough that are remembered though nothing uses them.
const UNUSED_MAX: usize = 1024;

/// One worker's cells; the admin server holds a clone of the `Arc`. The lock is taken when an
/// endpoint is first used and by the admin server.
#[derive(Debug, Default, Clone)]
pub struct EndpointTable(Arc<Mutex<Cells>>);

#[derive(Debug, Default)]
struct Cells {
    /// Of endpoints that configuration names.
    named: HashMap<EndpointKey, Arc<EndpointCounters>>,
    /// Of destinations that clients name.
    passing: HashMap<EndpointKey, Arc<EndpointCounters>>,
    /// How many of these were in use when they were looked through last.
    passing_used: usize,
}

impl EndpointTable {
    /// The cells of an endpoint that configuration names, made when missing.
    pub fn get(&self, cluster: &Arc<str>, address: &EndpointAddress) -> Arc<EndpointCounters> {
        self.lock().named.entry((cluster.clone(), address.clone())).or_default().clone()
    }

    /// The cells of a destination that a client named.
    pub fn get_passing(
        &self,
        cluster: &Arc<str>,
        address: &EndpointAddress,
    ) -> Arc<EndpointCounters> {
        let mut cells = self.lock();
        // Twice what was in use: looking through them costs each new one little.
        if cells.passing.len() >= UNUSED_MAX + 2 * cells.passing_used {
            cells.passing.retain(|_, counters| Arc::strong_count(counters) > 1);
            cells.passing_used = cells.passing.len();
            cells.passing.shrink_to(UNUSED_MAX);
        }
        cells.passing.entry((cluster.clone(), address.clone())).or_default().clone()
    }

    /// Adds this worker's numbers to `totals`.
    pub fn add_to(&self, totals: &mut HashMap<EndpointKey, [u64; 8]>) {
        let cells = self.lock();
        for (key, counters) in cells.named.iter().chain(&cells.passing) {
            let EndpointCounters {
                cx_active,
                cx_total,
                cx_connect_fail,
                rq_active,
                rq_total,
                rq_success,
                rq_error,
                rq_timeout,
            } = &**counters;
            let cells = [
                cx_active,
                cx_total,
                cx_connect_fail,
                rq_active,
                rq_total,
                rq_success,
                rq_error,
                rq_timeout,
            ];
            let sums = totals.entry(key.clone()).or_default();
            for (sum, cell) in sums.iter_mut().zip(cells) {
                *sum += cell.get();
            }
        }
    }

    /// Forgets endpoints that `keep` refuses, unless they are in use.
    pub fn retain(&self, keep: impl Fn(&EndpointKey) -> bool) {
        let mut cells = self.lock();
        let used = |counters: &Arc<_>| Arc::strong_count(counters) > 1;
        cells.named.retain(|key, counters| used(counters) || keep(key));
        cells.passing.retain(|key, counters| used(counters) || keep(key));
    }

    fn lock(&self) -> MutexGuard<'_, Cells> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names of the numbers [`EndpointTable::add_to`] sums, in its order, as Envoy's `/clusters` has
/// them.
pub const COUNTER_NAMES: [&str; 8] = [
    "cx_active",
    "cx_total",
    "cx_connect_fail",
    "rq_active",
    "rq_total",
    "rq_success",
    "rq_error",
    "rq_timeout",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_that_nothing_uses_are_forgotten() {
        let table = EndpointTable::default();
        let cluster: Arc<str> = Arc::from("PassthroughCluster");
        let address = |n: u32| EndpointAddress::Ip((std::net::Ipv4Addr::from(n), 80).into());
        let used: Vec<_> = (0..100).map(|n| table.get_passing(&cluster, &address(n))).collect();
        for n in 0..50_000 {
            table.get_passing(&cluster, &address(n)).cx_total.inc();
            assert!(table.lock().passing.len() <= UNUSED_MAX + 2 * used.len());
        }
        assert!(used.iter().all(|counters| counters.cx_total.get() == 1), "the same cells");
        drop(used);
        for n in 0..5_000 {
            table.get_passing(&cluster, &address(n));
        }
        assert!(table.lock().passing.len() <= UNUSED_MAX);
    }
}
