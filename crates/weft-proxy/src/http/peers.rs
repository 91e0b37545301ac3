//! Who is at the other end, decoded once and shared: metrics find a label set by the pointers of
//! its parts, so equal peers should be the same object. Bounded; emptied when full.

use std::cell::{Cell, OnceCell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::HashMap;
use weft_telemetry::{PeerInfo, ServiceInfo, Shard};
use weft_traffic::cluster::IstioWorkload;
use weft_traffic::{Cluster, ClusterConfig, Endpoint};

use crate::worker::NodeInfo;

/// Peers remembered per worker. Beyond it the memory starts over, which only costs decoding.
const PEERS_MAX: usize = 4096;
/// Text that peers said of themselves, and what it decodes to, remembered per worker. What one of
/// them says is a few hundred bytes.
const TOLD_BYTES_MAX: usize = 4 << 20;

/// One worker's memory of peers and services.
#[derive(Default)]
pub(crate) struct Peers {
    /// By hash of header value and principal.
    told: RefCell<HashMap<u64, Told>>,
    /// Text kept in `told`.
    told_bytes: Cell<usize>,
    /// By the address of the endpoint's workload object, which the entry keeps alive.
    configured: RefCell<HashMap<(usize, Principal), Configured>>,
    /// By the address of the cluster's configuration.
    services: RefCell<HashMap<usize, Known>>,
    /// Of clusters without a service, by hash of the cluster's and the host's name.
    hosts: RefCell<HashMap<u64, Arc<ServiceInfo>>>,
    own_metadata: OnceCell<String>,
    own_plain: OnceCell<Arc<PeerInfo>>,
    unknown: RefCell<HashMap<Principal, Arc<PeerInfo>>>,
}

type Principal = Option<Arc<str>>;

struct Told {
    value: Box<[u8]>,
    principal: Principal,
    peer: Arc<PeerInfo>,
}

struct Known {
    _config: Arc<ClusterConfig>,
    service: Arc<ServiceInfo>,
}

struct Configured {
    _workload: Arc<IstioWorkload>,
    peer: Arc<PeerInfo>,
}

impl Peers {
    /// The peer that says of itself `value`, proved by TLS to be `principal`.
    pub(crate) fn told_by(&self, value: &[u8], principal: Option<&Arc<str>>) -> Arc<PeerInfo> {
        let mut hasher = DefaultHasher::new();
        (value, principal).hash(&mut hasher);
        let key = hasher.finish();
        let mut told = self.told.borrow_mut();
        match told.get(&key) {
            Some(known) if *known.value == *value && known.principal.as_ref() == principal => {
                return known.peer.clone();
            }
            _ => {}
        }
        let mut peer = PeerInfo::decode(value).unwrap_or_default();
        peer.principal = principal.map(|id| id.to_string()).unwrap_or_default();
        let peer = Arc::new(peer);
        make_room(&mut told);
        // As said, and as decoded.
        let bytes = 2 * value.len();
        if told.is_empty() || self.told_bytes.get() + bytes > TOLD_BYTES_MAX {
            told.clear();
            self.told_bytes.set(0);
        }
        self.told_bytes.set(self.told_bytes.get() + bytes);
        let (value, principal) = (value.into(), principal.cloned());
        told.insert(key, Told { value, principal, peer: peer.clone() });
        peer
    }

    /// What configuration says of an endpoint's workload.
    pub(crate) fn of_endpoint(
        &self,
        endpoint: &Endpoint,
        principal: Option<&Arc<str>>,
    ) -> Option<Arc<PeerInfo>> {
        let workload = endpoint.workload.as_ref()?;
        let key = (Arc::as_ptr(workload).addr(), principal.cloned());
        let mut configured = self.configured.borrow_mut();
        if let Some(known) = configured.get(&key) {
            return Some(known.peer.clone());
        }
        let peer = Arc::new(PeerInfo {
            workload: workload.name.to_string(),
            namespace: workload.namespace.to_string(),
            app: workload.canonical_name.to_string(),
            version: workload.canonical_revision.to_string(),
            canonical_service: workload.canonical_name.to_string(),
            canonical_revision: workload.canonical_revision.to_string(),
            cluster: workload.cluster.to_string(),
            principal: principal.map(|id| id.to_string()).unwrap_or_default(),
            ..PeerInfo::default()
        });
        make_room(&mut configured);
        configured.insert(key, Configured { _workload: workload.clone(), peer: peer.clone() });
        Some(peer)
    }

    /// A peer of which at most the principal is known.
    pub(crate) fn unknown(&self, principal: Option<&Arc<str>>) -> Arc<PeerInfo> {
        if principal.is_none() {
            return PeerInfo::unknown();
        }
        let mut unknown = self.unknown.borrow_mut();
        make_room(&mut unknown);
        let entry = unknown.entry(principal.cloned()).or_insert_with(|| {
            let principal = principal.map(|id| id.to_string()).unwrap_or_default();
            Arc::new(PeerInfo { principal, ..PeerInfo::default() })
        });
        entry.clone()
    }

    /// This workload; with its principal only where mTLS proved it to the other side.
    pub(crate) fn own(&self, node: &NodeInfo, mtls: bool) -> Arc<PeerInfo> {
        if mtls {
            return node.peer.clone();
        }
        let plain = || Arc::new(PeerInfo { principal: String::new(), ..(*node.peer).clone() });
        self.own_plain.get_or_init(plain).clone()
    }

    /// What this proxy says of its workload.
    pub(crate) fn own_metadata(&self, node: &NodeInfo) -> &str {
        self.own_metadata.get_or_init(|| node.peer.encode())
    }

    /// The service a cluster stands for. Passthrough and black hole stand for none: there, as in
    /// Istio, the application's requests name it (`authority`), and clients of an inbound listener
    /// or a gateway, who may be anybody, name nothing.
    pub(crate) fn service(
        &self,
        cluster: &Cluster,
        authority: Option<&[u8]>,
        metrics: &Shard,
    ) -> Arc<ServiceInfo> {
        let key = Arc::as_ptr(&cluster.config).addr();
        let known = self.services.borrow().get(&key).map(|known| known.service.clone());
        match (known, cluster.config.istio.services.first(), authority) {
            (Some(known), Some(_), _) | (Some(known), None, None) => known,
            (_, None, Some(authority)) => {
                self.of_host(cluster, &String::from_utf8_lossy(authority), metrics)
            }
            (None, service, _) => {
                let service = Arc::new(match service {
                    Some(service) => ServiceInfo {
                        host: service.host.to_string(),
                        name: service.name.to_string(),
                        namespace: service.namespace.to_string(),
                    },
                    None => {
                        ServiceInfo { name: cluster.name.to_string(), ..ServiceInfo::default() }
                    }
                });
                let config = cluster.config.clone();
                let mut services = self.services.borrow_mut();
                make_room(&mut services);
                services.insert(key, Known { _config: config, service: service.clone() });
                service
            }
        }
    }

    /// A host outside the mesh; `other` once there are too many.
    fn of_host(&self, cluster: &Cluster, host: &str, metrics: &Shard) -> Arc<ServiceInfo> {
        if let Some(known) = self.known_host(cluster, host) {
            return known;
        }
        let host = if metrics.admits_host(host) { host } else { "other" };
        if let Some(known) = self.known_host(cluster, host) {
            return known;
        }
        let name = cluster.name.to_string();
        let service =
            Arc::new(ServiceInfo { host: host.to_owned(), name, namespace: String::new() });
        let mut hosts = self.hosts.borrow_mut();
        make_room(&mut hosts);
        hosts.insert(host_key(cluster, host), service.clone());
        service
    }

    fn known_host(&self, cluster: &Cluster, host: &str) -> Option<Arc<ServiceInfo>> {
        let hosts = self.hosts.borrow();
        let known = hosts.get(&host_key(cluster, host))?;
        (known.host == host && known.name == *cluster.name).then(|| known.clone())
    }
}

fn host_key(cluster: &Cluster, host: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&*cluster.name, host).hash(&mut hasher);
    hasher.finish()
}

fn make_room<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= PEERS_MAX {
        map.clear();
    }
}
