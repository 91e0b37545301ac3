//! Which worker serves a new connection. The kernel spreads connections over the workers' sockets by
//! a hash of addresses: well in the long run, but of a handful that stay for hours all may meet one
//! worker. So the one that accepts passes a connection on to one that clearly has fewer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::worker::ToWorker;

/// All workers of the process.
#[derive(Clone)]
pub struct Crew(Arc<[Member]>);

struct Member {
    /// Connections it serves.
    open: AtomicUsize,
    orders: mpsc::UnboundedSender<ToWorker>,
}

/// Counts a connection of one worker until dropped.
pub struct CrewGuard {
    crew: Crew,
    worker: usize,
}

impl Crew {
    /// Workers by how they are told what to do.
    pub fn new(orders: impl IntoIterator<Item = mpsc::UnboundedSender<ToWorker>>) -> Crew {
        let member = |orders| Member { open: AtomicUsize::new(0), orders };
        Crew(orders.into_iter().map(member).collect())
    }

    /// Who serves a connection that `own` has accepted: an exact balance while they are few, within
    /// an eighth when there are many, since passing one on costs some microseconds.
    pub fn choose(&self, own: usize) -> usize {
        let mine = self.open(own);
        let least = (0..self.0.len()).min_by_key(|worker| self.open(*worker)).unwrap_or(own);
        match mine > self.open(least) + mine / 8 {
            true => least,
            false => own,
        }
    }

    /// Connections that a worker serves.
    pub fn open(&self, worker: usize) -> usize {
        self.0.get(worker).map_or(0, |member| member.open.load(Ordering::Relaxed))
    }

    /// Counts a connection for a worker; `None` when there is no such worker.
    pub fn admit(&self, worker: usize) -> Option<CrewGuard> {
        self.0.get(worker)?.open.fetch_add(1, Ordering::Relaxed);
        Some(CrewGuard { crew: self.clone(), worker })
    }

    /// Tells a worker something.
    pub fn tell(&self, worker: usize, order: ToWorker) {
        if let Some(member) = self.0.get(worker) {
            // One that has ended has no use for it.
            let _ = member.orders.send(order);
        }
    }
}

impl Drop for CrewGuard {
    fn drop(&mut self) {
        if let Some(member) = self.crew.0.get(self.worker) {
            member.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for CrewGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CrewGuard").field("worker", &self.worker).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_spread_exactly_and_many_nearly() {
        let senders = (0..3).map(|_| mpsc::unbounded_channel().0);
        let crew = Crew::new(senders);
        // The kernel gives everything to the first.
        let mut open = Vec::new();
        for round in 1..=600 {
            open.extend(crew.admit(crew.choose(0)));
            let counts = [0, 1, 2].map(|worker| crew.open(worker));
            let (most, fewest) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            assert!(most - fewest <= 1 + most / 8, "{round}: {counts:?}");
        }
        drop(open);
        assert_eq!(crew.open(0), 0);
    }
}
