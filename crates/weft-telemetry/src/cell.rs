//! The cells that values are counted in: written by one worker, read by scrapes.

use crate::buckets::Buckets;
use crate::istio::{Amounts, Exemplar};
use crate::registry::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What a scrape reads of a shard: cells by series id.
#[derive(Default)]
pub(crate) struct ShardCells {
    list: Mutex<Vec<Entry>>,
}

struct Entry {
    id: u32,
    cell: Cell,
    /// The overflow of the budget: never evicted.
    stays: bool,
    /// What had been counted when somebody looked last, and how often that was the same.
    seen: u64,
    idle: u8,
}

#[derive(Clone)]
pub(crate) enum Cell {
    Request(Arc<RequestCell>),
    Messages(Arc<MessagesCell>),
    Tcp(Arc<TcpCell>),
}

pub(crate) struct RequestCell {
    buckets: Arc<Buckets>,
    pub(crate) duration_us: Distribution,
    pub(crate) request_bytes: Distribution,
    pub(crate) response_bytes: Distribution,
    /// The latest, with its duration in microseconds.
    pub(crate) exemplar: Mutex<Option<(Exemplar, u64)>>,
}

/// A histogram's counts. One more than its bounds: the last is +Inf.
pub(crate) struct Distribution {
    pub(crate) counts: Box<[AtomicU64]>,
    pub(crate) sum: AtomicU64,
}

#[derive(Default)]
pub(crate) struct MessagesCell {
    pub(crate) request: AtomicU64,
    pub(crate) response: AtomicU64,
}

#[derive(Default)]
pub(crate) struct TcpCell {
    pub(crate) opened: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
}

impl ShardCells {
    pub(crate) fn add(&self, id: u32, cell: &Cell, stays: bool) {
        let entry = Entry { id, cell: cell.clone(), stays, seen: 0, idle: 0 };
        lock(&self.list).push(entry);
    }

    pub(crate) fn each(&self, mut see: impl FnMut(u32, &Cell)) {
        lock(&self.list).iter().for_each(|entry| see(entry.id, &entry.cell));
    }

    /// Takes out what has not been counted in since this many calls.
    pub(crate) fn take_idle(&self, calls_max: u8) -> Vec<(u32, Cell)> {
        let mut gone = Vec::new();
        lock(&self.list).retain_mut(|entry| {
            let now = entry.cell.activity();
            if entry.stays || now != entry.seen || entry.cell.is_in_use() {
                (entry.seen, entry.idle) = (now, 0);
                return true;
            }
            entry.idle = entry.idle.saturating_add(1);
            let stays = entry.idle < calls_max;
            if !stays {
                gone.push((entry.id, entry.cell.clone()));
            }
            stays
        });
        gone
    }
}

impl Cell {
    /// What tells two cells apart.
    pub(crate) fn address(&self) -> usize {
        match self {
            Cell::Request(cell) => Arc::as_ptr(cell).addr(),
            Cell::Messages(cell) => Arc::as_ptr(cell).addr(),
            Cell::Tcp(cell) => Arc::as_ptr(cell).addr(),
        }
    }

    /// Changes with everything that is counted.
    fn activity(&self) -> u64 {
        match self {
            Cell::Request(cell) => cell.duration_us.counts.iter().map(read).sum(),
            Cell::Messages(cell) => read(&cell.request).wrapping_add(read(&cell.response)),
            Cell::Tcp(cell) => {
                let TcpCell { opened, closed, sent_bytes, received_bytes } = &**cell;
                let all = [opened, closed, sent_bytes, received_bytes];
                all.into_iter().map(read).fold(0, u64::wrapping_add)
            }
        }
    }

    /// Somebody beside the shard holds it and may count any time: an open connection.
    fn is_in_use(&self) -> bool {
        matches!(self, Cell::Tcp(cell) if Arc::strong_count(cell) > 2)
    }

    /// Adds what another cell of the same series counted. Neither has a writer any more.
    pub(crate) fn absorb(&self, other: &Cell) {
        match (self, other) {
            (Cell::Request(own), Cell::Request(other)) => {
                own.duration_us.absorb(&other.duration_us);
                own.request_bytes.absorb(&other.request_bytes);
                own.response_bytes.absorb(&other.response_bytes);
            }
            (Cell::Messages(own), Cell::Messages(other)) => {
                bump(&own.request, read(&other.request));
                bump(&own.response, read(&other.response));
            }
            (Cell::Tcp(own), Cell::Tcp(other)) => {
                bump(&own.opened, read(&other.opened));
                bump(&own.closed, read(&other.closed));
                bump(&own.sent_bytes, read(&other.sent_bytes));
                bump(&own.received_bytes, read(&other.received_bytes));
            }
            _ => debug_assert!(false, "one series id has two kinds of cells"),
        }
    }
}

impl RequestCell {
    pub(crate) fn new(buckets: Arc<Buckets>) -> Self {
        let Buckets { duration_us, request_bytes, response_bytes } = &*buckets;
        Self {
            duration_us: Distribution::new(duration_us),
            request_bytes: Distribution::new(request_bytes),
            response_bytes: Distribution::new(response_bytes),
            exemplar: Mutex::default(),
            buckets,
        }
    }

    pub(crate) fn record(&self, amounts: &Amounts) {
        let us = u64::try_from(amounts.duration.as_micros()).unwrap_or(u64::MAX);
        self.duration_us.observe(&self.buckets.duration_us, us);
        self.request_bytes.observe(&self.buckets.request_bytes, amounts.request_bytes);
        self.response_bytes.observe(&self.buckets.response_bytes, amounts.response_bytes);
        if let Some(exemplar) = amounts.exemplar {
            *lock(&self.exemplar) = Some((exemplar, us));
        }
    }
}

impl Distribution {
    fn new(bounds: &[u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { counts, sum: AtomicU64::new(0) }
    }

    fn observe(&self, bounds: &[u64], value: u64) {
        bump(&self.counts[bounds.partition_point(|bound| *bound < value)], 1);
        bump(&self.sum, value);
    }

    fn absorb(&self, other: &Distribution) {
        for (own, other) in self.counts.iter().zip(&other.counts) {
            bump(own, read(other));
        }
        bump(&self.sum, read(&other.sum));
    }
}

/// Adds to a cell that only this thread writes: a plain load and store, no locked instruction.
pub(crate) fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

pub(crate) fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}
