//! Passive health: hosts that keep failing are taken out for a while.
//!
//! Counts are per worker, like all balancing state: with several workers a bad host is ejected by each
//! once it has seen enough failures of its own. Success-rate and failure-percentage detection are not
//! implemented; Istio does not use them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::lb::Host;

/// `OutlierDetection`. A consecutive count of zero is off.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierConfig {
    pub consecutive_5xx: Trigger,
    /// 502, 503, 504.
    pub consecutive_gateway: Trigger,
    /// Connect failures, timeouts, resets; only with `split_local`.
    pub consecutive_local: Trigger,
    /// Local failures count apart from responses; otherwise they count as 5xx.
    pub split_local: bool,
    /// Between sweeps that bring hosts back. Envoy: 10 s.
    pub interval: Duration,
    /// × the number of ejections. Envoy: 30 s.
    pub base_ejection: Duration,
    /// Envoy: 300 s.
    pub ejection_max: Duration,
    /// Part of the cluster that may be out. Envoy: 10 %. One host may always be out unless this is 0.
    pub ejection_percent_max: u32,
    /// Statuses that are errors instead of 5xx; empty: 5xx.
    pub error_statuses: Box<[u16]>,
}

impl OutlierConfig {
    /// The status that a response counts as: what is declared an error and is none by itself is a
    /// 500, what is not declared so a 200.
    fn judged(&self, status: u16) -> u16 {
        match self.error_statuses.contains(&status) {
            _ if self.error_statuses.is_empty() => status,
            true => status.max(500),
            false => 200,
        }
    }
}

/// Eject after so many in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    pub count: u32,
    /// Chance in percent that the ejection is carried out.
    pub enforcing: u32,
}

/// How a request to a host ended, for detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostOutcome {
    /// A response with this status (for gRPC the status it maps to).
    Response(u16),
    ConnectFailure,
    /// The stream or connection broke.
    Reset,
    /// No response in time.
    Timeout,
}

/// Detection state of one host.
#[derive(Debug, Default)]
pub struct HostOutlier {
    server_errors: Cell<u32>,
    gateway_errors: Cell<u32>,
    local_errors: Cell<u32>,
    ejected_at: Cell<Option<Instant>>,
    ejections: Cell<u32>,
}

impl HostOutlier {
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected_at.get().is_some()
    }

    pub(crate) fn clear(&self) {
        self.ejected_at.set(None);
        self.server_errors.set(0);
        self.gateway_errors.set(0);
        self.local_errors.set(0);
    }
}

/// Detection for one cluster on one worker.
#[derive(Debug)]
pub(crate) struct Outlier {
    config: OutlierConfig,
    next_sweep: Instant,
}

impl Outlier {
    pub(crate) fn new(config: OutlierConfig, now: Instant) -> Outlier {
        let next_sweep = now + config.interval;
        Outlier { config, next_sweep }
    }

    pub(crate) fn with_config(self, config: OutlierConfig) -> Outlier {
        Outlier { config, next_sweep: self.next_sweep }
    }

    /// Counts an outcome. True: the host was ejected.
    pub(crate) fn report(
        &mut self,
        host: &Host,
        outcome: HostOutcome,
        hosts: &[Rc<Host>],
        now: Instant,
        random: u64,
    ) -> bool {
        let state = &host.outlier;
        let (status, local) = match outcome {
            HostOutcome::Response(status) => (self.config.judged(status), false),
            HostOutcome::ConnectFailure => (503, true),
            HostOutcome::Reset => (500, true),
            HostOutcome::Timeout => (504, true),
        };
        let config = &self.config;
        let tripped = if local && config.split_local {
            count(&state.local_errors, true, config.consecutive_local, random)
        } else {
            if config.split_local {
                state.local_errors.set(0);
            }
            let gateway = matches!(status, 502..=504);
            let by_gateway =
                count(&state.gateway_errors, gateway, config.consecutive_gateway, random);
            let server = (500..600).contains(&status);
            count(&state.server_errors, server, config.consecutive_5xx, random) || by_gateway
        };
        tripped && !state.is_ejected() && self.may_eject(hosts) && {
            state.clear();
            state.ejected_at.set(Some(now));
            state.ejections.set(state.ejections.get().saturating_add(1));
            true
        }
    }

    /// Never the last host, and no more than the configured part, but always one of several.
    fn may_eject(&self, hosts: &[Rc<Host>]) -> bool {
        let out = hosts.iter().filter(|host| host.is_ejected()).count();
        let within = (out + 1) * 100 <= hosts.len() * self.config.ejection_percent_max as usize;
        let first = out == 0 && self.config.ejection_percent_max > 0;
        out + 1 < hosts.len() && (within || first)
    }

    /// Brings hosts back whose time is over, once per interval. True: something changed.
    pub(crate) fn sweep(&mut self, hosts: &[Rc<Host>], now: Instant) -> bool {
        if now < self.next_sweep {
            return false;
        }
        self.next_sweep = now + self.config.interval;
        let mut changed = false;
        for host in hosts {
            let state = &host.outlier;
            match state.ejected_at.get() {
                Some(since) if now >= since + self.ejection_time(state) => {
                    state.clear();
                    changed = true;
                }
                Some(_) => {}
                // Good behaviour shortens the next ejection.
                None => state.ejections.set(state.ejections.get().saturating_sub(1)),
            }
        }
        changed
    }

    fn ejection_time(&self, state: &HostOutlier) -> Duration {
        let max = self.config.ejection_max.max(self.config.base_ejection);
        self.config.base_ejection.saturating_mul(state.ejections.get()).min(max)
    }
}

/// Advances or resets a row of failures. True: the trigger fired and is enforced.
fn count(row: &Cell<u32>, failed: bool, trigger: Trigger, random: u64) -> bool {
    if !failed {
        row.set(0);
        return false;
    }
    row.set(row.get().saturating_add(1));
    let fired = trigger.count > 0 && row.get() >= trigger.count;
    if fired {
        row.set(0);
    }
    fired && random % 100 < u64::from(trigger.enforcing)
}
