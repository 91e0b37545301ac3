//! Endpoint assignments, computed once for equal arguments.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_model::Snapshot;
use weft_translate::ProxyView;
use weft_xds::Resource;
use weft_xds::names::ClusterName;

/// Endpoint assignments kept; Istio's cache has the same bound.
const ENDPOINTS_MAX: usize = 60_000;

/// Endpoint assignments of the newest world, which may be newer than what was published.
#[derive(Default)]
pub(super) struct EndpointMemo(Mutex<Assignments>);

/// By who asks and the cluster's name; `None` where there is no such cluster.
type OfHost = HashMap<(ProxyView, Arc<str>), Option<Resource>>;

#[derive(Default)]
struct Assignments {
    snapshot: Snapshot,
    /// By service host, so that a change of its endpoints forgets only it.
    hosts: HashMap<Arc<str>, OfHost>,
    count: usize,
}

impl EndpointMemo {
    /// Takes on a newer world in which only endpoints of these hosts differ.
    pub(super) fn advance(&self, snapshot: Snapshot, hosts: &BTreeSet<Arc<str>>) {
        let mut memo = lock(&self.0);
        memo.snapshot = snapshot;
        for host in hosts {
            if let Some(gone) = memo.hosts.remove(host) {
                memo.count -= gone.len();
            }
        }
    }

    /// Takes on a newer world in which anything may differ.
    pub(super) fn reset(&self, snapshot: Snapshot) {
        *lock(&self.0) = Assignments { snapshot, ..Assignments::default() };
    }

    /// The endpoints of one cluster. Computed under the lock, so that no result of an
    /// older world can be remembered for a newer one.
    pub(super) fn endpoints(&self, view: &ProxyView, cluster: &Arc<str>) -> Option<Resource> {
        let Some(ClusterName::Outbound { host, .. }) = ClusterName::parse(cluster) else {
            return None;
        };
        let mut memo = lock(&self.0);
        if memo.count >= ENDPOINTS_MAX {
            memo.hosts.clear();
            memo.count = 0;
        }
        let Assignments { snapshot, hosts, count } = &mut *memo;
        let of_host = match hosts.get_mut(host) {
            Some(of_host) => of_host,
            None => hosts.entry(host.into()).or_default(),
        };
        let entry = of_host.entry((view.clone(), Arc::clone(cluster)));
        let computed = entry.or_insert_with(|| {
            *count += 1;
            weft_translate::endpoints(snapshot, view, cluster)
        });
        computed.clone()
    }
}

/// Nothing under these locks can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
