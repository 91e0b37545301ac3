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
    /// The choice without the priorities of the last such wish; made again when `levels` are.
    other_levels: Option<(Vec<u32>, Levels)>,
    /// When the last host that is new will have its full weight.
    warm_at: Option<Instant>,
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
    /// Priorities to leave out as long as others have hosts (`previous_priorities`).
    pub avoid_priorities: &'a [u32],
    /// For clusters without endpoints of their own: the original destination (the header override
    /// already applied), or what the request's host resolved to.
    pub destination: Option<SocketAddr>,
    /// The host the client named, where TLS is to ask for it.
    pub host: Option<&'a Arc<str>>,
    pub now: Instant,
}

impl PickInput<'_> {
    /// No hash, nothing to avoid.
    pub fn plain(now: Instant) -> PickInput<'static> {
        PickInput {
            hash: None,
            avoid: &[],
            avoid_attempts: 0,
            avoid_priorities: &[],
            destination: None,
            host: None,
            now,
        }
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
            other_levels: None,
            warm_at: None,
            outlier: cluster.config.outlier.clone().map(|config| Outlier::new(config, now)),
            seed,
        };
        balancer.follow(cluster, now);
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
        self.follow(cluster, now);
    }

    fn follow(&mut self, cluster: &Cluster, now: Instant) {
        let mut known: HashMap<EndpointAddress, Rc<Host>> =
            self.hosts.drain(..).map(|host| (host.address().clone(), host)).collect();
        let mut taken: HashMap<EndpointAddress, Rc<Host>> = HashMap::with_capacity(known.len());
        let slow_start = cluster.config.lb.slow_start.is_some();
        for (index, endpoint) in cluster.endpoints.endpoints.iter().enumerate() {
            let address = &endpoint.address;
            let host = match taken.get(address) {
                Some(host) => host.clone(),
                None => {
                    let host = known.remove(address).unwrap_or_else(|| Host::new(address.clone()));
                    taken.insert(address.clone(), host.clone());
                    host
                }
            };
            if slow_start {
                host.set_since(cluster.endpoints.since.get(index).copied());
            }
            self.hosts.push(host);
        }
        known.values().for_each(|gone| gone.mark_removed());
        self.endpoints = cluster.endpoints.clone();
        self.rebuild(now);
    }

    fn rebuild(&mut self, now: Instant) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.levels = self.levels_without(&[], now);
        self.other_levels = None;
        let slow_start = self.config.lb.slow_start.as_ref();
        let warm_at =
            |slow_start| self.hosts.iter().filter_map(move |h| h.warm_at(slow_start, now));
        self.warm_at = slow_start.and_then(|slow_start| warm_at(slow_start).max());
    }

    fn levels_without(&self, priorities: &[u32], now: Instant) -> Levels {
        let Balancer { config, endpoints, hosts, seed, .. } = self;
        let world = level::World { lb: &config.lb, set: endpoints, hosts, now, seed: *seed };
        Levels::build(&world, priorities)
    }

    /// Chooses an endpoint. None: there is none to use, or the set asks to drop this request (503, flag
    /// UH).
    pub fn pick(&mut self, input: &PickInput<'_>, rng: &mut impl FnMut() -> u64) -> Option<Picked> {
        let elsewhere = match &self.config.kind {
            ClusterKind::OriginalDst { port, .. } => Some(*port),
            ClusterKind::Dynamic(_) => Some(None),
            ClusterKind::Eds { .. } | ClusterKind::Static | ClusterKind::Dns(_) => None,
        };
        if let Some(port) = elsewhere {
            let mut address = input.destination?;
            address.set_port(port.unwrap_or(address.port()));
            let mut endpoint = Endpoint::at(address);
            if let Some(host) = input.host {
                endpoint.hostname = host.clone();
            }
            let endpoint = Arc::new(endpoint);
            let host = Host::new(endpoint.address.clone());
            return Some(Picked { endpoint, host });
        }
        if self.endpoints.should_drop(rng) {
            return None;
        }
        self.sweep(input.now);
        if !input.avoid_priorities.is_empty() {
            self.leave_out(input);
        }
        let mut draw = level::Draw { hash: input.hash, attempt: 0, now: input.now };
        loop {
            let levels = match &mut self.other_levels {
                Some((_, levels)) if !input.avoid_priorities.is_empty() => levels,
                _ => &mut self.levels,
            };
            let index = levels.pick(&draw, rng, &self.hosts)?;
            let host = &self.hosts[index];
            let avoided = input.avoid.iter().any(|tried| Rc::ptr_eq(tried, host));
            if !avoided || draw.attempt >= input.avoid_attempts {
                return Some(Picked {
                    endpoint: self.endpoints.endpoints[index].clone(),
                    host: host.clone(),
                });
            }
            draw.attempt += 1;
        }
    }

    /// Makes the choice that leaves out these priorities, unless it is there.
    fn leave_out(&mut self, input: &PickInput<'_>) {
        let known = self.other_levels.as_ref();
        if known.is_none_or(|(without, _)| without != input.avoid_priorities) {
            let levels = self.levels_without(input.avoid_priorities, input.now);
            self.other_levels = Some((input.avoid_priorities.to_vec(), levels));
        }
    }

    /// Tells how a request to a host ended; may eject the host.
    pub fn report(&mut self, host: &Host, outcome: HostOutcome, now: Instant, random: u64) {
        let Some(outlier) = &mut self.outlier else { return };
        if outlier.report(host, outcome, &self.hosts, now, random) {
            self.rebuild(now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        let warmed = self.warm_at.is_some_and(|at| now >= at);
        let returned = self.outlier.as_mut().is_some_and(|outlier| outlier.sweep(&self.hosts, now));
        if warmed || returned {
            self.rebuild(now);
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
