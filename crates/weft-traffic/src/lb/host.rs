//! The state of one endpoint on one worker.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use crate::cluster::{Endpoint, EndpointAddress, Health, SlowStart};
use crate::outlier::HostOutlier;

/// Kept as long as the address stays in the cluster, whatever else changes.
#[derive(Debug)]
pub struct Host {
    address: EndpointAddress,
    active: Cell<u32>,
    total: Cell<u64>,
    removed: Cell<bool>,
    /// Known as healthy from then on; None: for long.
    since: Cell<Option<Instant>>,
    pub(crate) outlier: HostOutlier,
}

impl Host {
    pub(crate) fn new(address: EndpointAddress) -> Rc<Host> {
        Rc::new(Host {
            address,
            active: Cell::new(0),
            total: Cell::new(0),
            removed: Cell::new(false),
            since: Cell::new(None),
            outlier: HostOutlier::default(),
        })
    }

    pub fn address(&self) -> &EndpointAddress {
        &self.address
    }

    /// Counts a request (or TCP connection) as under way until the guard is dropped.
    pub fn begin(self: &Rc<Self>) -> ActiveRequest {
        self.active.set(self.active.get() + 1);
        self.total.set(self.total.get() + 1);
        ActiveRequest { host: self.clone() }
    }

    /// Requests under way from this worker.
    pub fn active(&self) -> u32 {
        self.active.get()
    }

    /// Requests ever begun from this worker.
    pub fn total(&self) -> u64 {
        self.total.get()
    }

    /// The endpoint left the cluster: close its idle connections.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Outlier detection took the host out for now.
    pub fn is_ejected(&self) -> bool {
        self.outlier.is_ejected()
    }

    pub(crate) fn set_since(&self, since: Option<Instant>) {
        self.since.set(since);
    }

    /// The part of its weight that the host has now.
    pub(crate) fn warmth(&self, slow_start: &SlowStart, now: Instant) -> f64 {
        match self.since.get() {
            Some(since) => slow_start.factor(now.saturating_duration_since(since)),
            None => 1.0,
        }
    }

    /// When the host will have its full weight; None: it has it.
    pub(crate) fn warm_at(&self, slow_start: &SlowStart, now: Instant) -> Option<Instant> {
        self.since.get().map(|since| since + slow_start.window).filter(|warm| *warm > now)
    }

    pub(crate) fn mark_removed(&self) {
        self.removed.set(true);
    }

    pub(crate) fn clear_ejection(&self) {
        self.outlier.clear();
    }

    pub(crate) fn is_usable(&self, endpoint: &Endpoint) -> bool {
        endpoint.health == Health::Healthy && !self.is_ejected()
    }
}

/// A request under way; dropping it ends it.
#[derive(Debug)]
pub struct ActiveRequest {
    host: Rc<Host>,
}

impl ActiveRequest {
    pub fn host(&self) -> &Rc<Host> {
        &self.host
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.host.active.set(self.host.active.get() - 1);
    }
}
