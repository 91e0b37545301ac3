//! Lowered clusters and endpoints: where requests can go, and how to get there.
//!
//! Immutable. Active counts, ejections and balancer cursors live in [`crate::lb`], per worker, and are
//! carried over when a set changes (endpoints are told apart by [`EndpointAddress`]).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::circuit::Thresholds;
use crate::lb::LbPolicy;
use crate::outlier::OutlierConfig;
use crate::tls::UpstreamTls;

/// A cluster with its endpoints. A new endpoint set shares the configuration.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub name: Arc<str>,
    pub config: Arc<ClusterConfig>,
    pub endpoints: Arc<EndpointSet>,
}

/// `envoy.config.cluster.v3.Cluster` without its endpoints.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    pub kind: ClusterKind,
    /// Envoy: 5 s; Istio sends 10 s.
    pub connect_timeout: Duration,
    /// By endpoint metadata; the first that matches wins.
    pub transport_matches: Vec<TransportMatch>,
    /// Without a match.
    pub transport: Transport,
    pub http: UpstreamHttp,
    pub lb: LbConfig,
    /// Default priority, then high priority.
    pub limits: [Thresholds; 2],
    pub outlier: Option<OutlierConfig>,
    /// `metadata.filter_metadata["istio"]`.
    pub istio: IstioClusterMetadata,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Bind the one of these source addresses that is of the endpoint's IP version
    /// (`upstream_bind_config`; Istio uses 127.0.0.6 and ::6 inbound).
    pub source_addresses: Vec<SocketAddr>,
    /// Send PROXY protocol to the endpoint, by version.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// Close connections to endpoints that left the set.
    pub close_on_removal: bool,
}

/// How endpoints are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterKind {
    /// EDS under this name (the cluster's own unless `service_name` differs).
    Eds { service: Arc<str> },
    /// In the cluster itself.
    Static,
    /// The names in the set are resolved by the proxy.
    Dns(DnsConfig),
    /// The host that the request names, resolved by the proxy when it is asked for.
    Dynamic(DynamicDns),
    /// The connection's original destination.
    OriginalDst {
        /// `x-envoy-original-dst-host` (or another header, lower case) overrides the destination.
        header: Option<Arc<str>>,
        port: Option<u16>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// LOGICAL_DNS: only the first address, and connections to older ones stay.
    pub logical: bool,
    /// Envoy: 5 s.
    pub refresh: Duration,
    pub respect_ttl: bool,
    pub family: DnsFamily,
}

/// A dynamic forward proxy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicDns {
    pub family: DnsFamily,
    /// Envoy: 60 s.
    pub refresh: Duration,
    /// Names remembered at once. Envoy: 1024.
    pub names_max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFamily {
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

/// One entry of `transport_socket_matches`.
#[derive(Debug, Clone)]
pub struct TransportMatch {
    pub name: Arc<str>,
    /// All must equal the endpoint's `envoy.transport_socket_match` metadata; empty matches all.
    pub labels: Vec<(Box<str>, Box<str>)>,
    pub transport: Transport,
}

#[derive(Debug, Clone)]
pub enum Transport {
    Plain,
    Tls(Arc<UpstreamTls>),
}

/// `HttpProtocolOptions` of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamHttp {
    pub protocol: UpstreamProtocol,
    /// None: no limit. Envoy: 1 h.
    pub idle_timeout: Option<Duration>,
    pub connection_duration: Option<Duration>,
    /// None: unlimited.
    pub requests_per_connection_max: Option<u32>,
    pub http2: crate::http::Http2Rules,
    /// HTTP/1 header case and trailers as configured.
    pub http1_preserve_case: bool,
    /// SNI from the request's host.
    pub auto_sni: bool,
    pub auto_san_validation: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    H1,
    H2,
    /// As the client's request.
    UseDownstream,
    /// By ALPN; HTTP/1 without.
    Auto,
}

/// Balancing settings.
#[derive(Debug, Clone, PartialEq)]
pub struct LbConfig {
    pub policy: LbPolicy,
    /// Below this percentage of healthy endpoints all are used. Envoy: 50; 0 switches it off.
    pub panic_threshold: f64,
    /// Choose the locality by its weight first.
    pub locality_weighted: bool,
    /// Hash the host name instead of the address.
    pub hash_by_hostname: bool,
    /// New endpoints get their full share only after a while; round robin and least request only.
    pub slow_start: Option<SlowStart>,
}

/// `SlowStartConfig`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// After it an endpoint has its full weight.
    pub window: Duration,
    /// Above 0; 1 is linear.
    pub aggression: f64,
    /// Least part of the weight, 0 to 1. Envoy: 0.1.
    pub weight_min: f64,
}

impl SlowStart {
    /// The part of its weight that an endpoint of this age has: `max(least, (age ÷ window)^(1 ÷
    /// aggression))` within the window, as Envoy has it.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        // Envoy counts whole milliseconds, from one.
        let millis = |time: Duration| time.as_millis().max(1) as f64;
        let part = millis(age) / millis(self.window);
        part.powf(1.0 / self.aggression).max(self.weight_min)
    }
}

/// What Istio says of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IstioClusterMetadata {
    pub services: Vec<IstioService>,
    pub subset: Option<Arc<str>>,
    /// Resource that shaped the cluster (a DestinationRule), if any.
    pub config: Option<Arc<str>>,
    /// Its generation, as the control plane counts.
    pub generation: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IstioService {
    pub host: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    V1,
    V2,
}

impl Cluster {
    /// How to connect to an endpoint.
    pub fn transport(&self, endpoint: &Endpoint) -> &Transport {
        let matched = self.config.transport_matches.iter().find(|entry| {
            entry.labels.iter().all(|label| endpoint.transport_labels.contains(label))
        });
        matched.map_or(&self.config.transport, |entry| &entry.transport)
    }

    /// The name to ask EDS for.
    pub fn eds_service(&self) -> Option<&Arc<str>> {
        match &self.config.kind {
            ClusterKind::Eds { service } => Some(service),
            ClusterKind::Static
            | ClusterKind::Dns(_)
            | ClusterKind::Dynamic(_)
            | ClusterKind::OriginalDst { .. } => None,
        }
    }

    /// The same cluster with other endpoints.
    pub fn with_endpoints(&self, endpoints: Arc<EndpointSet>) -> Cluster {
        Cluster { name: self.name.clone(), config: self.config.clone(), endpoints }
    }
}

/// `ClusterLoadAssignment`, flattened.
#[derive(Debug, Clone)]
pub struct EndpointSet {
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Share of healthy endpoints above which a priority takes all traffic, as a factor ×100.
    /// Envoy: 140.
    pub overprovisioning: u32,
    /// Requests to drop before balancing.
    pub drops: Vec<crate::matcher::Fraction>,
    /// When each endpoint became known as healthy, in the order of `endpoints`; empty where nobody
    /// asks (see [`SlowStart`]).
    pub since: Vec<Instant>,
}

impl Default for EndpointSet {
    fn default() -> Self {
        EndpointSet {
            endpoints: Vec::new(),
            overprovisioning: 140,
            drops: Vec::new(),
            since: Vec::new(),
        }
    }
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub address: EndpointAddress,
    /// For host rewrites and hashing; empty if unknown.
    pub hostname: Arc<str>,
    pub health: Health,
    /// At least 1.
    pub weight: u32,
    pub priority: u32,
    pub locality: Arc<Locality>,
    /// `filter_metadata["envoy.transport_socket_match"]`.
    pub transport_labels: Vec<(Box<str>, Box<str>)>,
    /// `filter_metadata["istio"].workload`.
    pub workload: Option<Arc<IstioWorkload>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    Ip(SocketAddr),
    /// To be resolved by the proxy (DNS clusters).
    Name {
        host: Arc<str>,
        port: u16,
    },
    /// Unix domain socket.
    Pipe(Arc<str>),
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EndpointAddress::Ip(address) => address.fmt(f),
            EndpointAddress::Name { host, port } => write!(f, "{host}:{port}"),
            EndpointAddress::Pipe(path) => f.write_str(path),
        }
    }
}

/// EDS health. Unknown counts as healthy; draining and timeout as unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
    Draining,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Box<str>,
    pub zone: Box<str>,
    pub sub_zone: Box<str>,
    /// Zero without locality weights.
    pub weight: u32,
}

/// `workload;namespace;canonical-name;canonical-revision;cluster-id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IstioWorkload {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub cluster: Arc<str>,
}

impl IstioWorkload {
    /// Missing fields are empty.
    pub fn parse(text: &str) -> IstioWorkload {
        let mut parts = text.split(';');
        let mut next = || Arc::from(parts.next().unwrap_or_default());
        IstioWorkload {
            name: next(),
            namespace: next(),
            canonical_name: next(),
            canonical_revision: next(),
            cluster: next(),
        }
    }
}

impl Endpoint {
    /// A healthy endpoint that only has an address: an original destination.
    pub fn at(address: SocketAddr) -> Endpoint {
        Endpoint {
            address: EndpointAddress::Ip(address),
            hostname: Arc::from(""),
            health: Health::Healthy,
            weight: 1,
            priority: 0,
            locality: Arc::default(),
            transport_labels: Vec::new(),
            workload: None,
        }
    }

    /// The address, if it needs no resolution.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match &self.address {
            EndpointAddress::Ip(address) => Some(*address),
            EndpointAddress::Name { .. } | EndpointAddress::Pipe(_) => None,
        }
    }

    /// The sidecar speaks Istio mTLS (`tlsMode: istio`).
    pub fn istio_mtls(&self) -> bool {
        self.transport_labels.iter().any(|(key, value)| &**key == "tlsMode" && &**value == "istio")
    }
}

impl EndpointSet {
    /// Host names that still have to be resolved, each once.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for endpoint in &self.endpoints {
            if let EndpointAddress::Name { host, .. } = &endpoint.address
                && !names.contains(host)
            {
                names.push(host.clone());
            }
        }
        names
    }

    /// The set with names replaced by what `lookup` found: one endpoint for each address, or only the
    /// first if `logical`. Names without addresses vanish.
    pub fn resolved(&self, logical: bool, lookup: impl Fn(&str) -> Vec<IpAddr>) -> EndpointSet {
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let EndpointAddress::Name { host, port } = &endpoint.address else {
                endpoints.push(endpoint.clone());
                continue;
            };
            let found = lookup(host);
            let take = if logical { 1 } else { found.len() };
            for ip in found.into_iter().take(take) {
                let mut one = Endpoint::clone(endpoint);
                if one.hostname.is_empty() {
                    one.hostname = host.clone();
                }
                one.address = EndpointAddress::Ip(SocketAddr::new(ip, *port));
                endpoints.push(Arc::new(one));
            }
        }
        EndpointSet {
            endpoints,
            overprovisioning: self.overprovisioning,
            drops: self.drops.clone(),
            since: Vec::new(),
        }
    }

    /// Notes since when each endpoint is known as healthy: what was so in the set before keeps its
    /// time, the others begin `now`.
    #[must_use]
    pub fn dated(mut self, before: &EndpointSet, now: Instant) -> EndpointSet {
        let healthy = |endpoint: &Endpoint| endpoint.health == Health::Healthy;
        let dates: HashMap<&EndpointAddress, Instant> = before
            .endpoints
            .iter()
            .zip(&before.since)
            .filter(|(endpoint, _)| healthy(endpoint))
            .map(|(endpoint, since)| (&endpoint.address, *since))
            .collect();
        let since = |endpoint: &Arc<Endpoint>| *dates.get(&endpoint.address).unwrap_or(&now);
        self.since = self.endpoints.iter().map(since).collect();
        self
    }
}
