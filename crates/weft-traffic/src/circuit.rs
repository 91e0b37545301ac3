//! Circuit breakers: how much may be under way towards one cluster.
//!
//! Each worker enforces its share of a limit, so that nothing is shared on the request path. The shares
//! add up to the limit, except that every worker may always do one thing: with a limit below the number
//! of workers the sum is the number of workers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One `CircuitBreakers.Thresholds`. `u32::MAX` (Istio's default) never trips.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    pub connections_max: u32,
    /// Requests waiting for a connection.
    pub pending_max: u32,
    pub requests_max: u32,
    /// Retries under way; unused when there is a budget.
    pub retries_max: u32,
    pub retry_budget: Option<RetryBudget>,
}

/// Retries allowed as a part of the requests under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// 0..=100. Envoy: 20.
    pub percent: f64,
    /// Always allowed. Envoy: 3.
    pub retries_min: u32,
    /// Count the requests begun within this time, ended or not, instead of those under way; zero:
    /// those under way.
    pub interval: Duration,
}

impl Default for Thresholds {
    /// Envoy's defaults for a cluster that says nothing.
    fn default() -> Self {
        Thresholds {
            connections_max: 1024,
            pending_max: 1024,
            requests_max: 1024,
            retries_max: 3,
            retry_budget: None,
        }
    }
}

impl Thresholds {
    /// This worker's part (`worker` counts from 0).
    pub fn share(&self, worker: u32, workers: u32) -> Thresholds {
        let part = |limit| share(limit, worker, workers);
        Thresholds {
            connections_max: part(self.connections_max),
            pending_max: part(self.pending_max),
            requests_max: part(self.requests_max),
            retries_max: part(self.retries_max),
            retry_budget: self.retry_budget.map(|budget| RetryBudget {
                percent: budget.percent,
                retries_min: part(budget.retries_min),
                interval: budget.interval,
            }),
        }
    }
}

fn share(limit: u32, worker: u32, workers: u32) -> u32 {
    match (limit, workers) {
        // Zero is a way to close a cluster for good.
        (0, _) => 0,
        (u32::MAX, _) => u32::MAX,
        (limit, workers) => {
            let workers = workers.max(1);
            (limit / workers + u32::from(worker < limit % workers)).max(1)
        }
    }
}

/// What a breaker counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Connections,
    Pending,
    Requests,
    Retries,
}

/// The counters of one cluster and priority on one worker. Survives configuration changes.
#[derive(Debug, Default)]
pub struct Circuit {
    limits: Cell<Thresholds>,
    active: [Cell<u32>; 4],
    overflows: [Cell<u64>; 4],
    /// Requests begun, for a budget over an interval; the time is the last that was told.
    begun: RefCell<Option<Box<Window>>>,
    now: Cell<Option<Instant>>,
}

/// How many requests began within the last interval, to a tenth of it.
#[derive(Debug)]
struct Window {
    interval: Duration,
    slots: [u32; SLOTS],
    current: usize,
    /// When the current slot began.
    since: Instant,
}

const SLOTS: usize = 10;

impl Window {
    fn new(interval: Duration, now: Instant) -> Window {
        Window { interval, slots: [0; SLOTS], current: 0, since: now }
    }

    /// Forgets what is older than the interval.
    fn advance(&mut self, now: Instant) {
        let slot = (self.interval / SLOTS as u32).max(Duration::from_nanos(1));
        let passed = now.saturating_duration_since(self.since).as_nanos() / slot.as_nanos();
        if passed >= SLOTS as u128 {
            *self = Window::new(self.interval, now);
            return;
        }
        for _ in 0..passed {
            self.current = (self.current + 1) % SLOTS;
            self.slots[self.current] = 0;
            self.since += slot;
        }
    }

    fn count(&self) -> u32 {
        self.slots.iter().fold(0, |sum, slot| sum.saturating_add(*slot))
    }
}

impl Circuit {
    pub fn new(limits: Thresholds) -> Rc<Circuit> {
        Rc::new(Circuit { limits: Cell::new(limits), ..Circuit::default() })
    }

    /// Changes the limits; what is under way stays under way.
    pub fn set_limits(&self, limits: Thresholds) {
        self.limits.set(limits);
    }

    /// Takes one of `resource`, given back when the permit is dropped. None: the breaker is open; answer
    /// 503 with flag UO and `x-envoy-overloaded`.
    pub fn acquire(self: &Rc<Self>, resource: Resource) -> Option<Permit> {
        let at = resource as usize;
        if self.active[at].get() >= self.limit(resource) {
            self.overflows[at].set(self.overflows[at].get() + 1);
            return None;
        }
        self.active[at].set(self.active[at].get() + 1);
        if resource == Resource::Requests {
            self.note_begun();
        }
        Some(Permit { circuit: self.clone(), resource })
    }

    /// Takes one connection whatever the limit, unless that is zero: as in Envoy an endpoint without
    /// any gets one, since nobody else's end would help those who wait for it.
    pub fn acquire_first_connection(self: &Rc<Self>) -> Option<Permit> {
        let at = Resource::Connections as usize;
        if self.limit(Resource::Connections) == 0 {
            return None;
        }
        self.active[at].set(self.active[at].get() + 1);
        Some(Permit { circuit: self.clone(), resource: Resource::Connections })
    }

    /// Tells the time, which only a budget over an interval asks for.
    pub fn tick(&self, now: Instant) {
        self.now.set(Some(now));
    }

    fn note_begun(&self) {
        let interval = match self.limits.get().retry_budget {
            Some(budget) if !budget.interval.is_zero() => budget.interval,
            _ => return,
        };
        let Some(now) = self.now.get() else { return };
        let mut begun = self.begun.borrow_mut();
        let window = match &mut *begun {
            Some(window) if window.interval == interval => window,
            other => other.insert(Box::new(Window::new(interval, now))),
        };
        window.advance(now);
        let slot = &mut window.slots[window.current];
        *slot = slot.saturating_add(1);
    }

    /// The requests that a retry budget is a part of.
    fn considered(&self, budget: &RetryBudget) -> u32 {
        if budget.interval.is_zero() {
            return self.active(Resource::Requests) + self.active(Resource::Pending);
        }
        match (&mut *self.begun.borrow_mut(), self.now.get()) {
            (Some(window), Some(now)) => {
                window.advance(now);
                window.count()
            }
            _ => 0,
        }
    }

    fn limit(&self, resource: Resource) -> u32 {
        let limits = self.limits.get();
        match resource {
            Resource::Connections => limits.connections_max,
            Resource::Pending => limits.pending_max,
            Resource::Requests => limits.requests_max,
            Resource::Retries => match limits.retry_budget {
                None => limits.retries_max,
                Some(budget) => {
                    let allowed = f64::from(self.considered(&budget)) * budget.percent / 100.0;
                    (allowed as u32).max(budget.retries_min)
                }
            },
        }
    }

    /// How many are under way.
    pub fn active(&self, resource: Resource) -> u32 {
        self.active[resource as usize].get()
    }

    /// How often the breaker was open.
    pub fn overflows(&self, resource: Resource) -> u64 {
        self.overflows[resource as usize].get()
    }
}

/// One thing under way.
#[derive(Debug)]
pub struct Permit {
    circuit: Rc<Circuit>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let active = &self.circuit.active[self.resource as usize];
        active.set(active.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_opens_and_closes() {
        let limits = Thresholds { requests_max: 2, ..Default::default() };
        let circuit = Circuit::new(limits);
        let first = circuit.acquire(Resource::Requests).unwrap();
        let _second = circuit.acquire(Resource::Requests).unwrap();
        assert!(circuit.acquire(Resource::Requests).is_none());
        assert!(circuit.acquire(Resource::Pending).is_some());
        assert_eq!(circuit.overflows(Resource::Requests), 1);
        drop(first);
        assert!(circuit.acquire(Resource::Requests).is_some());
        assert_eq!(circuit.active(Resource::Requests), 1);
    }

    #[test]
    fn shares_add_up() {
        for (limit, workers, expect) in [(10, 4, 10), (1024, 3, 1024), (1, 4, 4), (0, 4, 0)] {
            let sum: u32 = (0..workers).map(|worker| share(limit, worker, workers)).sum();
            assert_eq!(sum, expect, "{limit} over {workers}");
        }
        assert_eq!(share(u32::MAX, 0, 4), u32::MAX);
    }

    #[test]
    fn a_retry_budget_follows_the_load() {
        let budget = RetryBudget { percent: 20.0, retries_min: 1, interval: Duration::ZERO };
        let budget = Some(budget);
        let circuit = Circuit::new(Thresholds { retry_budget: budget, ..Default::default() });
        let _requests: Vec<_> =
            (0..10).map(|_| circuit.acquire(Resource::Requests).unwrap()).collect();
        let _one = circuit.acquire(Resource::Retries).unwrap();
        let _two = circuit.acquire(Resource::Retries).unwrap();
        assert!(circuit.acquire(Resource::Retries).is_none());
    }

    #[test]
    fn a_budget_over_an_interval_counts_what_began_in_it() {
        let interval = Duration::from_secs(1);
        let budget = Some(RetryBudget { percent: 20.0, retries_min: 1, interval });
        let circuit = Circuit::new(Thresholds { retry_budget: budget, ..Default::default() });
        let start = Instant::now();
        circuit.tick(start);
        for _ in 0..10 {
            drop(circuit.acquire(Resource::Requests).unwrap());
        }
        let two = || [circuit.acquire(Resource::Retries), circuit.acquire(Resource::Retries)];
        assert!(two().iter().all(Option::is_some), "20 % of the ten that began");
        circuit.tick(start + interval / 2);
        drop(circuit.acquire(Resource::Requests).unwrap());
        assert!(two().iter().all(Option::is_some), "still within the interval");
        circuit.tick(start + interval * 3 / 2);
        assert!(two()[1].is_none(), "one of the eleven is left, which is the least allowed");
    }
}
