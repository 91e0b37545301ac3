//! Balancer and circuit breaker state of the clusters this worker has used. Follows the tables:
//! every use brings the state up to the cluster it is asked with.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;
use weft_traffic::Cluster;
use weft_traffic::circuit::Circuit;
use weft_traffic::lb::{Balancer, Host, PickInput, Picked};
use weft_traffic::outlier::HostOutcome;

use super::recent::Recent;

/// One worker's state by cluster name.
#[derive(Default)]
pub struct Balancers {
    clusters: RefCell<HashMap<Arc<str>, Rc<RefCell<State>>>>,
    recent: Recent<RefCell<State>>,
    worker: u32,
    workers: u32,
}

struct State {
    balancer: Balancer,
    /// Default and high priority.
    circuits: [Rc<Circuit>; 2],
    /// Whose limits the circuits have.
    config: Arc<weft_traffic::ClusterConfig>,
}

impl Balancers {
    /// State for worker `worker` of `workers`, which get equal shares of circuit breaker limits.
    pub fn new(worker: usize, workers: usize) -> Balancers {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Balancers {
            clusters: RefCell::default(),
            recent: Recent::default(),
            worker: number(worker),
            workers: number(workers.max(1)),
        }
    }

    /// Chooses an endpoint. None: there is none to use (503, flag UH).
    pub fn pick(
        &self,
        cluster: &Cluster,
        input: &PickInput<'_>,
        rng: &mut impl FnMut() -> u64,
    ) -> Option<Picked> {
        let state = self.state(cluster, input.now, &mut *rng);
        state.borrow_mut().balancer.pick(input, rng)
    }

    /// Tells how a request to a host ended; may eject the host.
    pub fn report(
        &self,
        cluster: &Cluster,
        host: &Host,
        outcome: HostOutcome,
        now: Instant,
        random: u64,
    ) {
        let state = self.state(cluster, now, || random);
        state.borrow_mut().balancer.report(host, outcome, now, random);
    }

    /// The circuit breaker of a cluster; priority 0 is the default, 1 high.
    pub fn circuit(&self, cluster: &Cluster, priority: usize, now: Instant) -> Rc<Circuit> {
        let state = self.state(cluster, now, || 0);
        let state = state.borrow();
        let circuit = &state.circuits[priority.min(1)];
        circuit.tick(now);
        circuit.clone()
    }

    /// Forgets clusters that are gone.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.recent.clear();
        self.clusters.borrow_mut().retain(|name, _| keep(name));
    }

    /// The state of a cluster, brought up to it.
    fn state(
        &self,
        cluster: &Cluster,
        now: Instant,
        seed: impl FnOnce() -> u64,
    ) -> Rc<RefCell<State>> {
        let state = self.recent.get_or(&cluster.name, || self.find(cluster, now, seed));
        let State { balancer, circuits, config } = &mut *state.borrow_mut();
        balancer.update(cluster, now);
        if !Arc::ptr_eq(config, &cluster.config) {
            *config = cluster.config.clone();
            for (circuit, limits) in circuits.iter().zip(&cluster.config.limits) {
                circuit.set_limits(limits.share(self.worker, self.workers));
            }
        }
        state.clone()
    }

    fn find(
        &self,
        cluster: &Cluster,
        now: Instant,
        seed: impl FnOnce() -> u64,
    ) -> Rc<RefCell<State>> {
        let mut clusters = self.clusters.borrow_mut();
        let new = || Rc::new(RefCell::new(self.fresh(cluster, seed(), now)));
        clusters.entry(cluster.name.clone()).or_insert_with(new).clone()
    }

    fn fresh(&self, cluster: &Cluster, seed: u64, now: Instant) -> State {
        let circuit = |limits: &weft_traffic::circuit::Thresholds| {
            Circuit::new(limits.share(self.worker, self.workers))
        };
        let [default, high] = &cluster.config.limits;
        State {
            balancer: Balancer::new(cluster, seed, now),
            circuits: [circuit(default), circuit(high)],
            config: cluster.config.clone(),
        }
    }
}
