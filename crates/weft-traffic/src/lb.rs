//! Load balancing: which endpoint takes the next request or connection.
//!
//! A [`Balancer`] is the mutable state of one cluster on one worker: cursors, active counts, ejections.
//! It follows the immutable [`EndpointSet`]; the state of an endpoint whose address stays is kept.
//!
//! ```text
//! pick: priority (by health) → locality (by weight, if asked) → policy → host ─ avoided? draw again
//! ```

mod host;
mod level;
mod maglev;
mod picker;
mod ring;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::cluster::{Cluster, ClusterConfig, ClusterKind, Endpoint, EndpointAddress, EndpointSet};
use crate::outlier::{HostOutcome, Outlier};

use level::Levels;

pub use host::{ActiveRequest, Host};

/// `lb_policy` with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest {
        /// How many hosts to draw and compare. Envoy: 2.
        choices: u32,
        /// Compare all hosts instead.
        full_scan: bool,
        /// With unequal weights: weight ÷ (active + 1)^bias. Envoy: 1.0.
        active_bias: f64,
    },
    /// Ignores weights, as Envoy's.
    Random,
    RingHash {
        ring_min: u64,
        ring_max: u64,
    },
    /// A prime table size.
    Maglev {
        table_size: u64,
    },
    /// The cluster chooses (ORIGINAL_DST).
    ClusterProvided,
}

/// Balancer of one cluster on one worker.
#[derive(Debug)]
pub struct Balancer {
    config: Arc<ClusterConfig>,
    endpoints: Arc<EndpointSet>,
    /// Parallel to `endpoints.endpoints`.
    hosts: Vec<Rc<Host>>,
    levels: Levels,
    outlier: Option<Outlier>,
    seed: u64,
}

/// What one pick depends on.
#[derive(Debug, Clone, Copy)]
pub struct PickInput<'a> {
    /// For consistent-hash policies; None draws at random.
    pub hash: Option<u64>,
    /// Hosts tried before, to be avoided.
    pub avoid: &'a [Rc<Host>],
    /// Draws to spend on avoiding them (`host_selection_retry_max_attempts`).
    pub avoid_attempts: u32,
    /// Destination for ORIGINAL_DST clusters (the header override already applied).
    pub original_dst: Option<SocketAddr>,
    pub now: Instant,
}

impl PickInput<'_> {
    /// No hash, nothing to avoid.
    pub fn plain(now: Instant) -> PickInput<'static> {
        PickInput { hash: None, avoid: &[], avoid_attempts: 0, original_dst: None, now }
    }
}

/// A chosen endpoint with its state on this worker.
#[derive(Debug, Clone)]
pub struct Picked {
    pub endpoint: Arc<Endpoint>,
    pub host: Rc<Host>,
}

impl Balancer {
    /// `seed` decides where rotations start, so that workers do not move in step.
    pub fn new(cluster: &Cluster, seed: u64, now: Instant) -> Balancer {
        let mut balancer = Balancer {
            config: cluster.config.clone(),
            endpoints: Arc::new(EndpointSet::default()),
            hosts: Vec::new(),
            levels: Levels::default(),
            outlier: cluster.config.outlier.clone().map(|config| Outlier::new(config, now)),
            seed,
        };
        balancer.follow(cluster);
        balancer
    }

    /// Takes over a new version of the cluster. Cheap when nothing changed: call it before every pick.
    pub fn update(&mut self, cluster: &Cluster, now: Instant) {
        let same_config = Arc::ptr_eq(&self.config, &cluster.config);
        if same_config && Arc::ptr_eq(&self.endpoints, &cluster.endpoints) {
            return;
        }
        if !same_config {
            self.config = cluster.config.clone();
            self.outlier = match (self.outlier.take(), &self.config.outlier) {
                (Some(old), Some(config)) => Some(old.with_config(config.clone())),
                (None, Some(config)) => Some(Outlier::new(config.clone(), now)),
                (_, None) => {
                    self.hosts.iter().for_each(|host| host.clear_ejection());
                    None
                }
            };
        }
        self.follow(cluster);
    }

    fn follow(&mut self, cluster: &Cluster) {
        let mut known: HashMap<EndpointAddress, Rc<Host>> =
            self.hosts.drain(..).map(|host| (host.address().clone(), host)).collect();
        let mut taken: HashMap<EndpointAddress, Rc<Host>> = HashMap::with_capacity(known.len());
        for endpoint in &cluster.endpoints.endpoints {
            let address = &endpoint.address;
            let host = match taken.get(address) {
                Some(host) => host.clone(),
                None => {
                    let host = known.remove(address).unwrap_or_else(|| Host::new(address.clone()));
                    taken.insert(address.clone(), host.clone());
                    host
                }
            };
            self.hosts.push(host);
        }
        known.values().for_each(|gone| gone.mark_removed());
        self.endpoints = cluster.endpoints.clone();
        self.rebuild();
    }

    fn rebuild(&mut self) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.levels = Levels::build(&self.config.lb, &self.endpoints, &self.hosts, self.seed);
    }

    /// Chooses an endpoint. None: there is none to use, or the set asks to drop this request (503, flag
    /// UH).
    pub fn pick(&mut self, input: &PickInput<'_>, rng: &mut impl FnMut() -> u64) -> Option<Picked> {
        if let ClusterKind::OriginalDst { port, .. } = &self.config.kind {
            let mut address = input.original_dst?;
            address.set_port(port.unwrap_or(address.port()));
            let endpoint = Arc::new(Endpoint::at(address));
            let host = Host::new(endpoint.address.clone());
            return Some(Picked { endpoint, host });
        }
        if self.endpoints.should_drop(rng) {
            return None;
        }
        self.sweep(input.now);
        let mut attempt = 0;
        loop {
            let index = self.levels.pick(input.hash, attempt, rng, &self.hosts)?;
            let host = &self.hosts[index];
            let avoided = input.avoid.iter().any(|tried| Rc::ptr_eq(tried, host));
            if !avoided || attempt >= input.avoid_attempts {
                return Some(Picked {
                    endpoint: self.endpoints.endpoints[index].clone(),
                    host: host.clone(),
                });
            }
            attempt += 1;
        }
    }

    /// Tells how a request to a host ended; may eject the host.
    pub fn report(&mut self, host: &Host, outcome: HostOutcome, now: Instant, random: u64) {
        let Some(outlier) = &mut self.outlier else { return };
        if outlier.report(host, outcome, &self.hosts, now, random) {
            self.rebuild();
        }
    }

    fn sweep(&mut self, now: Instant) {
        let Some(outlier) = &mut self.outlier else { return };
        if outlier.sweep(&self.hosts, now) {
            self.rebuild();
        }
    }

    /// All hosts with their endpoints, in the order of the set.
    pub fn hosts(&self) -> impl Iterator<Item = (&Arc<Endpoint>, &Rc<Host>)> {
        self.endpoints.endpoints.iter().zip(&self.hosts)
    }

    /// Hosts that are healthy and not ejected.
    pub fn healthy_count(&self) -> usize {
        self.hosts().filter(|(endpoint, host)| host.is_usable(endpoint)).count()
    }
}

impl EndpointSet {
    /// Whether to drop a request before balancing (`drop_overloads`).
    fn should_drop(&self, rng: &mut impl FnMut() -> u64) -> bool {
        self.drops.iter().any(|fraction| fraction.hit(rng()))
    }
}

/// Small deterministic generator (splitmix64) for tests.
#[cfg(test)]
pub(crate) fn test_rng(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests;
