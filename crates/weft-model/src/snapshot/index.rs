//! Indexes across namespaces, cut into pieces so that a change copies one piece's pointers.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::{MeshService, Workload};

type ByHost = BTreeMap<Arc<str>, Vec<Arc<MeshService>>>;

/// Services by host, in groups of one parent domain: for Kubernetes that is a namespace.
#[derive(Clone, Default)]
pub(crate) struct Hosts {
    groups: Arc<BTreeMap<Arc<str>, Arc<ByHost>>>,
}

impl Hosts {
    /// Services of exactly this host, the one that wins first.
    pub(crate) fn get(&self, host: &str) -> &[Arc<MeshService>] {
        let group = self.groups.get(parent(host));
        group.and_then(|group| group.get(host)).map_or(&[], Vec::as_slice)
    }

    /// Services whose wildcard host covers `host`, from the longest wildcard.
    pub(crate) fn covering<'a, 'h>(
        &'a self,
        host: &'h str,
    ) -> impl Iterator<Item = &'a Arc<MeshService>> + use<'a, 'h> {
        let parents =
            std::iter::successors(Some(host), |host| host.split_once('.').map(|(_, p)| p));
        let groups = parents.filter_map(|parent| self.groups.get(parent));
        // In a group wildcards come first, as '*' sorts before letters and digits.
        let wildcards =
            groups.flat_map(|group| group.iter().take_while(|(h, _)| h.starts_with('*')));
        wildcards
            .filter(move |(pattern, _)| crate::host_matches(pattern, host))
            .flat_map(|(_, s)| s)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<MeshService>> {
        self.groups.values().flat_map(|group| group.values()).flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.values().map(|group| group.len()).sum()
    }

    pub(crate) fn insert(&mut self, service: Arc<MeshService>) {
        let groups = Arc::make_mut(&mut self.groups);
        let group = groups.entry(Arc::from(parent(&service.host))).or_default();
        let list = Arc::make_mut(group).entry(service.host.clone()).or_default();
        let order = |s: &MeshService| {
            (s.kind, s.creation.unwrap_or(i64::MAX), s.namespace.clone(), s.name.clone())
        };
        let at = list.partition_point(|other| order(other) < order(&service));
        list.insert(at, service);
    }

    pub(crate) fn remove(&mut self, service: &Arc<MeshService>) {
        let parent = parent(&service.host);
        let groups = Arc::make_mut(&mut self.groups);
        let Some(group) = groups.get_mut(parent) else { return };
        let hosts = Arc::make_mut(group);
        if let Some(list) = hosts.get_mut(&service.host) {
            list.retain(|other| !Arc::ptr_eq(other, service));
            if list.is_empty() {
                hosts.remove(&service.host);
            }
        }
        if hosts.is_empty() {
            groups.remove(parent);
        }
    }
}

/// What follows the first dot; empty for a name without one.
fn parent(host: &str) -> &str {
    host.split_once('.').map_or("", |(_, parent)| parent)
}

/// How many pieces the address index has: 100,000 workloads make about 400 in each.
const SHARDS: usize = 256;

type ByIp = HashMap<IpAddr, Vec<Arc<Workload>>>;

/// Workloads by address.
#[derive(Clone)]
pub(crate) struct Addresses {
    shards: Arc<Vec<Arc<ByIp>>>,
}

impl Default for Addresses {
    fn default() -> Self {
        Addresses { shards: Arc::new(vec![Arc::default(); SHARDS]) }
    }
}

impl Addresses {
    /// Ordered by namespace and name.
    pub(crate) fn get(&self, ip: IpAddr) -> &[Arc<Workload>] {
        self.shards[shard(ip)].get(&ip).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn insert(&mut self, workload: &Arc<Workload>) {
        for ip in &workload.ips {
            let shards = Arc::make_mut(&mut self.shards);
            let list = Arc::make_mut(&mut shards[shard(*ip)]).entry(*ip).or_default();
            let before = |other: &Arc<Workload>| {
                (&other.namespace, &other.name) < (&workload.namespace, &workload.name)
            };
            let at = list.partition_point(before);
            list.insert(at, workload.clone());
        }
    }

    pub(crate) fn remove(&mut self, workload: &Arc<Workload>) {
        for ip in &workload.ips {
            let shards = Arc::make_mut(&mut self.shards);
            let by_ip = Arc::make_mut(&mut shards[shard(*ip)]);
            if let Some(list) = by_ip.get_mut(ip) {
                list.retain(|other| !Arc::ptr_eq(other, workload));
                if list.is_empty() {
                    by_ip.remove(ip);
                }
            }
        }
    }
}

/// The last bytes of an address vary the most.
fn shard(ip: IpAddr) -> usize {
    let last = match ip {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    usize::from(last) % SHARDS
}
