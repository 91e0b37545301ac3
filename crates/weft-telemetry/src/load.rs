//! Load reports: what a worker tells the control plane of its traffic, besides its metrics.
//!
//! A [`LoadTable`] adds up between two takings, so that what is told is bounded by who called what,
//! not by how often. It is independent of the metric registry and of what is pruned there. One
//! worker owns it; a request costs one pass over its path and one lookup. Must not know how reports
//! travel, or when.

mod interface;
mod latency;

pub use interface::template;
pub use latency::{LATENCY_BUCKETS, latency_bound_us, latency_bucket, quantile_us};

use crate::istio::{
    Amounts, Outcome, Protocol, Reporter, RequestLabels, SecurityPolicy, ServiceInfo, TcpLabels,
};
use crate::peer::PeerInfo;
use foldhash::HashMap;
use foldhash::fast::RandomState;
use smallvec::SmallVec;
use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::sync::Arc;

/// Interfaces told apart between two takings; later ones count as [`OTHER`].
const INTERFACES_MAX: usize = 512;
/// Entries between two takings, with those of [`OTHER`]; later requests are lost, and counted.
const ENTRIES_MAX: usize = 1024;
/// Ways to end that one entry tells apart; the rest counts under their code without flags.
const OUTCOMES_MAX: usize = 16;
/// TCP label sets at a time.
const TCP_MAX: usize = 512;
/// The interface of what found no room.
pub const OTHER: &str = "other";

/// What was asked of a service.
#[derive(Debug, Clone, Copy)]
pub struct Interface<'a> {
    /// `GET`; empty for gRPC, whose path says all.
    pub method: &'a str,
    /// Without query; for gRPC `/package.Service/Method`.
    pub path: &'a [u8],
}

/// Who called whom, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadFlow {
    pub reporter: Reporter,
    pub source: Arc<PeerInfo>,
    pub destination: Arc<PeerInfo>,
    pub service: Arc<ServiceInfo>,
    pub protocol: Protocol,
    pub security: SecurityPolicy,
}

/// One line of a report.
#[derive(Debug, Clone)]
pub struct Load {
    pub flow: LoadFlow,
    /// Empty for gRPC and TCP.
    pub method: Box<str>,
    /// Template of the path; empty for TCP.
    pub path: Box<str>,
    pub tally: LoadTally,
}

/// What was counted under one line.
#[derive(Debug, Clone, Default)]
pub struct LoadTally {
    pub requests: u64,
    pub outcomes: SmallVec<[(Outcome, u64); 1]>,
    /// Bucket (see [`latency_bucket`]) and count, ascending.
    pub latency: Vec<(u8, u32)>,
    pub duration_us_sum: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// TCP connections.
    pub opened: u64,
    pub closed: u64,
}

/// What was added up since the last taking.
#[derive(Debug, Default)]
pub struct LoadBatch {
    pub loads: Vec<Load>,
    /// Requests that found no room.
    pub lost: u64,
}

/// One worker's sums.
#[derive(Default)]
pub struct LoadTable {
    /// By a hash with a random seed, of pointers that the entry keeps alive and of the path: two
    /// entries meet in one hash never in practice, and then only their counts would be added up.
    entries: HashMap<u64, Entry>,
    interfaces: usize,
    seed: RandomState,
    path: Vec<u8>,
    tcp: Vec<Rc<TcpState>>,
    lost: u64,
}

struct Entry {
    flow: LoadFlow,
    method: Box<str>,
    path: Box<str>,
    requests: u64,
    outcomes: SmallVec<[(Outcome, u64); 1]>,
    latency: Box<[u32; LATENCY_BUCKETS]>,
    duration_us_sum: u64,
    request_bytes: u64,
    response_bytes: u64,
}

/// Counts connections and bytes of one TCP label set until dropped.
pub struct TcpLoad(Rc<TcpState>);

struct TcpState {
    flow: LoadFlow,
    opened: Cell<u64>,
    closed: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl LoadTable {
    /// True when there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.lost == 0 && self.tcp.iter().all(|tcp| tcp.is_quiet())
    }

    /// True when nothing is there and nothing can come without a call.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.tcp.is_empty()
    }

    /// Counts one finished HTTP or gRPC request.
    pub fn request(
        &mut self,
        labels: &RequestLabels<'_>,
        interface: Interface<'_>,
        outcome: Outcome,
        amounts: &Amounts,
    ) {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        match labels.protocol {
            Protocol::Grpc => interface::plain(interface.path, &mut path),
            Protocol::Http | Protocol::Tcp => template(interface.path, &mut path),
        }
        let method = if labels.protocol == Protocol::Grpc { "" } else { interface.method };
        match self.entry(labels, method, &path) {
            Some(entry) => entry.record(outcome, amounts),
            None => self.lost += 1,
        }
        self.path = path;
    }

    fn entry(
        &mut self,
        labels: &RequestLabels<'_>,
        method: &str,
        path: &[u8],
    ) -> Option<&mut Entry> {
        let key = self.key(labels, method, path);
        let known = self.entries.contains_key(&key);
        let (key, method, path) = match known || self.interfaces < INTERFACES_MAX {
            true => (key, method, path),
            false => (self.key(labels, "", OTHER.as_bytes()), "", OTHER.as_bytes()),
        };
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= ENTRIES_MAX {
                return None;
            }
            self.interfaces += 1;
            self.entries.insert(key, Entry::new(labels, method, path));
        }
        self.entries.get_mut(&key)
    }

    fn key(&self, labels: &RequestLabels<'_>, method: &str, path: &[u8]) -> u64 {
        let mut hasher = self.seed.build_hasher();
        hasher.write_usize(Arc::as_ptr(labels.source).addr());
        hasher.write_usize(Arc::as_ptr(labels.destination).addr());
        hasher.write_usize(Arc::as_ptr(labels.service).addr());
        let how = [labels.reporter as u8, labels.protocol as u8, labels.security as u8];
        hasher.write(&how);
        hasher.write(method.as_bytes());
        hasher.write_u8(0);
        hasher.write(path);
        hasher.finish()
    }

    /// The handle for a connection of a TCP label set; `None` when there are too many of them.
    pub fn tcp(&mut self, labels: &TcpLabels<'_>) -> Option<TcpLoad> {
        let TcpLabels { reporter, source, destination, service, security, .. } = *labels;
        let flow = LoadFlow {
            reporter,
            source: source.clone(),
            destination: destination.clone(),
            service: service.clone(),
            protocol: Protocol::Tcp,
            security,
        };
        if let Some(known) = self.tcp.iter().find(|known| known.flow == flow) {
            return Some(TcpLoad(known.clone()));
        }
        if self.tcp.len() >= TCP_MAX {
            self.tcp.retain(|known| Rc::strong_count(known) > 1 || !known.is_quiet());
        }
        if self.tcp.len() >= TCP_MAX {
            return None;
        }
        let state = Rc::new(TcpState {
            flow,
            opened: Cell::new(0),
            closed: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
        });
        self.tcp.push(state.clone());
        Some(TcpLoad(state))
    }

    /// What was added up since the last taking.
    pub fn take(&mut self) -> LoadBatch {
        self.interfaces = 0;
        let mut loads: Vec<Load> =
            std::mem::take(&mut self.entries).into_values().map(Entry::into_load).collect();
        loads.extend(self.tcp.iter().filter(|tcp| !tcp.is_quiet()).map(|tcp| tcp.take()));
        self.tcp.retain(|known| Rc::strong_count(known) > 1);
        LoadBatch { loads, lost: std::mem::take(&mut self.lost) }
    }
}

impl Entry {
    fn new(labels: &RequestLabels<'_>, method: &str, path: &[u8]) -> Self {
        Self {
            flow: LoadFlow::of(labels),
            method: method.into(),
            path: String::from_utf8_lossy(path).into(),
            requests: 0,
            outcomes: SmallVec::new(),
            latency: Box::new([0; LATENCY_BUCKETS]),
            duration_us_sum: 0,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    fn record(&mut self, outcome: Outcome, amounts: &Amounts) {
        self.requests += 1;
        // Codes come from applications, too: the list must end somewhere.
        let bare = Outcome { flags: Default::default(), grpc_status: None, ..outcome };
        let room = self.outcomes.len();
        if !self.count(outcome, room < OUTCOMES_MAX) {
            self.count(bare, room < 2 * OUTCOMES_MAX);
        }
        let us = u64::try_from(amounts.duration.as_micros()).unwrap_or(u64::MAX);
        self.latency[usize::from(latency_bucket(us))] += 1;
        self.duration_us_sum = self.duration_us_sum.saturating_add(us);
        self.request_bytes += amounts.request_bytes;
        self.response_bytes += amounts.response_bytes;
    }

    /// Whether the outcome is known, or there is room for it.
    fn count(&mut self, outcome: Outcome, room: bool) -> bool {
        match self.outcomes.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, count)) => *count += 1,
            None if room => self.outcomes.push((outcome, 1)),
            None => return false,
        }
        true
    }

    fn into_load(self) -> Load {
        let latency = self.latency.iter().enumerate().filter(|(_, count)| **count > 0);
        Load {
            flow: self.flow,
            method: self.method,
            path: self.path,
            tally: LoadTally {
                requests: self.requests,
                outcomes: self.outcomes,
                latency: latency.map(|(bucket, count)| (bucket as u8, *count)).collect(),
                duration_us_sum: self.duration_us_sum,
                request_bytes: self.request_bytes,
                response_bytes: self.response_bytes,
                opened: 0,
                closed: 0,
            },
        }
    }
}

impl LoadFlow {
    /// What configuration makes of metrics does not matter here.
    fn of(labels: &RequestLabels<'_>) -> Self {
        let RequestLabels { reporter, source, destination, service, protocol, security, .. } =
            *labels;
        Self {
            reporter,
            source: source.clone(),
            destination: destination.clone(),
            service: service.clone(),
            protocol,
            security,
        }
    }
}

impl TcpLoad {
    pub fn opened(&self) {
        self.0.opened.set(self.0.opened.get() + 1);
    }

    pub fn closed(&self) {
        self.0.closed.set(self.0.closed.get() + 1);
    }

    /// Bytes from the client.
    pub fn received(&self, bytes: u64) {
        self.0.received.set(self.0.received.get() + bytes);
    }

    /// Bytes to the client.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.set(self.0.sent.get() + bytes);
    }
}

impl TcpState {
    fn is_quiet(&self) -> bool {
        [&self.opened, &self.closed, &self.received, &self.sent].iter().all(|cell| cell.get() == 0)
    }

    fn take(&self) -> Load {
        Load {
            flow: self.flow.clone(),
            method: "".into(),
            path: "".into(),
            tally: LoadTally {
                opened: self.opened.take(),
                closed: self.closed.take(),
                request_bytes: self.received.take(),
                response_bytes: self.sent.take(),
                ..LoadTally::default()
            },
        }
    }
}

#[cfg(test)]
mod tests;
