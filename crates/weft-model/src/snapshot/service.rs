//! A service as clients see it, from a Kubernetes Service or a ServiceEntry host, with its
//! endpoints resolved to addresses and ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::{entry_endpoints, kube_endpoints, listed};
use super::routing::Visibility;
use super::workload::Workload;
use super::{Inner, Protocol, selects};
use crate::names::{CLUSTER_DOMAIN, in_cluster, name_and_cluster};
use crate::object::{Labels, Meta, Origin, Resource};
use crate::spec::{self, IntOrString, Location, ServiceEntryResolution};

/// One host with ports and endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshService {
    pub kind: ServiceKind,
    /// Full host, lower case.
    pub host: Arc<str>,
    /// Name and namespace of the Service or ServiceEntry.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// Virtual addresses: cluster IPs, or a ServiceEntry's plain addresses.
    pub addresses: Vec<IpAddr>,
    /// Cluster IPs in other clusters than the mesh's own; see [`MeshService::addresses_in`].
    pub cluster_addresses: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// A ServiceEntry's address ranges.
    pub cidrs: Vec<Cidr>,
    pub ports: Vec<ServicePort>,
    pub resolution: Resolution,
    /// Outside the mesh: no mTLS, no peer metadata.
    pub mesh_external: bool,
    /// `clusterIP: None`.
    pub headless: bool,
    /// All endpoints, ready or not; see [`Endpoint::healthy`].
    pub endpoints: Vec<Endpoint>,
    pub labels: Arc<Labels>,
    /// Which endpoints its clients prefer.
    pub distribution: TrafficDistribution,
    /// What picks its endpoints; none when they are listed.
    pub selector: Option<Labels>,
    pub export_to: Visibility,
    /// Accounts that its endpoints run under; mTLS clients expect exactly these.
    pub service_accounts: BTreeSet<ServiceAccount>,
    /// A ServiceEntry's `subjectAltNames`.
    pub subject_alt_names: Vec<String>,
    /// `meta.creation` of the defining resource.
    pub creation: Option<i64>,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    Kubernetes,
    ServiceEntry,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAccount {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceAccount {
    /// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub number: u16,
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub target: TargetPort,
}

/// Which port of an endpoint serves a service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    Number(u16),
    /// A container port's name.
    Name(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Endpoints are known addresses.
    Static,
    /// Endpoints are names, all addresses used.
    Dns,
    /// Endpoints are names, the first address used.
    DnsRoundRobin,
    /// The host that the client names is resolved; the service's own is a wildcard.
    DynamicDns,
    /// Traffic goes to the address the client chose.
    None,
}

/// A Service's `trafficDistribution`, or the annotation of the same meaning on the Service, the
/// ServiceEntry or the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    #[default]
    Any,
    /// `PreferClose`, too.
    PreferSameZone,
    PreferSameNode,
}

/// Istio's annotation for what older Services cannot say.
pub(crate) const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

impl TrafficDistribution {
    /// None: not a known word.
    pub(crate) fn parse(text: &str) -> Option<TrafficDistribution> {
        match text.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Some(TrafficDistribution::PreferSameZone),
            "prefersamenode" => Some(TrafficDistribution::PreferSameNode),
            _ => None,
        }
    }

    /// The first of these that says anything decides: the field, the own annotation, the
    /// namespace's.
    fn choose(world: &Inner, field: Option<&str>, meta: &Meta) -> TrafficDistribution {
        let namespace = || {
            let namespace = world.namespaces.get("", &meta.namespace)?;
            namespace.meta.annotations.get(TRAFFIC_DISTRIBUTION).map(String::as_str)
        };
        let own = || meta.annotations.get(TRAFFIC_DISTRIBUTION).map(String::as_str);
        let said = field.and_then(TrafficDistribution::parse);
        let annotated =
            || own().or_else(namespace).and_then(TrafficDistribution::parse).unwrap_or_default();
        said.unwrap_or_else(annotated)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix_len: u8,
}

impl Cidr {
    /// `10.0.0.0/8`, or a plain address as a full-length prefix.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = len.unwrap_or(full);
        (prefix_len <= full).then_some(Cidr { address, prefix_len })
    }

    /// Covers one address only.
    pub fn is_host(&self) -> bool {
        self.prefix_len == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(IpAddr),
    /// DNS name.
    Host(Arc<str>),
    /// Path of a Unix socket.
    Unix(Arc<str>),
}

impl Address {
    /// An IP address, `unix://PATH`, or a name; none when empty.
    pub fn parse(text: &str) -> Option<Address> {
        if text.is_empty() {
            return None;
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return Some(Address::Unix(Arc::from(path)));
        }
        Some(match text.parse() {
            Ok(ip) => Address::Ip(ip),
            Err(_) => Address::Host(Arc::from(text.to_ascii_lowercase())),
        })
    }

    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Address::Ip(ip) => Some(*ip),
            Address::Host(_) | Address::Unix(_) => None,
        }
    }
}

/// One backend of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: Address,
    /// Service port number → port at this address. A missing port is not served here.
    pub ports: BTreeMap<u16, u16>,
    pub labels: Arc<Labels>,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: Arc<str>,
    pub network: Arc<str>,
    pub weight: u32,
    pub service_account: Option<ServiceAccount>,
    /// Accepts mesh mTLS (Istio's `tlsMode: istio`), before PeerAuthentication; see
    /// [`crate::Snapshot::endpoint_mtls`].
    pub tls_mode_istio: bool,
    /// Not ready ones are false; Istio leaves them out of EDS.
    pub healthy: bool,
    /// The Pod or WorkloadEntry behind it; none for listed endpoints.
    pub workload: Option<Arc<Workload>>,
}

impl Endpoint {
    /// The endpoint's port for a service port number.
    pub fn port(&self, service_port: u16) -> Option<u16> {
        self.ports.get(&service_port).copied()
    }
}

impl MeshService {
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Virtual addresses for clients of a cluster; those of the definition where it has none.
    pub fn addresses_in(&self, cluster: &str) -> &[IpAddr] {
        self.cluster_addresses.get(cluster).unwrap_or(&self.addresses)
    }

    /// Endpoints with all of the labels (a subset's).
    pub fn endpoints_with<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Endpoint> {
        self.endpoints.iter().filter(move |endpoint| selects(labels, &endpoint.labels))
    }

    /// Is the workload one of its endpoints?
    pub fn selects(&self, workload: &Workload) -> bool {
        if self.namespace != workload.namespace {
            return false;
        }
        if let Some(selector) = &self.selector {
            return selects(selector, &workload.labels);
        }
        let is_it = |endpoint: &Endpoint| match &endpoint.workload {
            Some(other) => other.name == workload.name,
            None => false,
        };
        self.endpoints.iter().any(is_it)
    }

    /// Key in its namespace's table.
    pub(crate) fn table_key(&self) -> Arc<str> {
        table_key(self.kind, &self.name, &self.host)
    }

    /// Equal but for endpoints (and where it was read).
    pub(crate) fn same_definition(&self, other: &MeshService) -> bool {
        let MeshService {
            kind,
            host,
            name,
            namespace,
            addresses,
            cluster_addresses,
            cidrs,
            ports,
            resolution,
            mesh_external,
            headless,
            endpoints: _,
            labels,
            distribution,
            selector,
            export_to,
            service_accounts,
            subject_alt_names,
            creation,
            origin: _,
        } = self;
        *kind == other.kind
            && *host == other.host
            && *name == other.name
            && *namespace == other.namespace
            && *addresses == other.addresses
            && *cluster_addresses == other.cluster_addresses
            && *cidrs == other.cidrs
            && *ports == other.ports
            && *resolution == other.resolution
            && *mesh_external == other.mesh_external
            && *headless == other.headless
            && *labels == other.labels
            && *distribution == other.distribution
            && *selector == other.selector
            && *export_to == other.export_to
            && *service_accounts == other.service_accounts
            && *subject_alt_names == other.subject_alt_names
            && *creation == other.creation
    }
}

pub(crate) fn table_key(kind: ServiceKind, name: &str, host: &str) -> Arc<str> {
    let kind = match kind {
        ServiceKind::Kubernetes => "s",
        ServiceKind::ServiceEntry => "e",
    };
    Arc::from(format!("{kind}/{name}/{host}"))
}

/// The full host of a Kubernetes Service.
pub(crate) fn kube_host(meta: &Meta) -> Arc<str> {
    let (name, namespace) = (meta.name.to_ascii_lowercase(), &meta.namespace);
    Arc::from(format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"))
}

/// The Service of a name with its endpoints in `world`, in whichever clusters it is: the definition
/// of the mesh's own cluster counts, else that of the first other one by name.
pub(crate) fn of_clusters(world: &Inner, namespace: &str, name: &str) -> Option<MeshService> {
    let own = world.kube_services.get(namespace, name);
    let mark = in_cluster(name, "");
    let others = world.kube_services.beginning(namespace, &mark);
    let others: Vec<(&str, &Arc<Resource<spec::Service>>)> =
        others.map(|(key, service)| (&key[mark.len()..], service)).collect();
    let clusters: Vec<&str> = others.iter().map(|(cluster, _)| *cluster).collect();
    let mut built = match (own, others.first()) {
        (Some(own), _) => of_kube(world, own, &Places { own: true, others: &clusters }),
        (None, Some((_, first))) => {
            let mut definition = Resource::clone(first);
            definition.meta.name = Arc::from(name);
            of_kube(world, &definition, &Places { own: false, others: &clusters })
        }
        (None, None) => return None,
    };
    let addresses = |service: &Resource<spec::Service>| cluster_ips(&service.spec);
    let by_cluster = others.iter().map(|(cluster, one)| (Arc::from(*cluster), addresses(one)));
    built.cluster_addresses = by_cluster.collect();
    Some(built)
}

/// The clusters that have a Service.
pub(super) struct Places<'a> {
    /// The mesh's own does.
    pub(super) own: bool,
    pub(super) others: &'a [&'a str],
}

impl Places<'_> {
    /// Whether a resource's cluster is one of them.
    pub(super) fn include(&self, name: &str) -> bool {
        match name_and_cluster(name) {
            (_, None) => self.own,
            (_, Some(cluster)) => self.others.contains(&cluster),
        }
    }
}

fn cluster_ips(spec: &spec::Service) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
        match text.parse() {
            Ok(ip) if !found.contains(&ip) => found.push(ip),
            _ => {}
        }
    }
    found
}

fn of_kube(world: &Inner, service: &Resource<spec::Service>, places: &Places<'_>) -> MeshService {
    let Resource { meta, spec } = service;
    let host = kube_host(meta);
    let export = meta.annotations.get("networking.istio.io/exportTo");
    let export: Vec<String> =
        export.iter().flat_map(|v| v.split(',')).map(|v| v.trim().to_string()).collect();
    let external = spec.service_type == "ExternalName";
    let mut built = MeshService {
        kind: ServiceKind::Kubernetes,
        host,
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        addresses: cluster_ips(spec),
        cluster_addresses: BTreeMap::new(),
        cidrs: Vec::new(),
        ports: spec.ports.iter().filter_map(kube_port).collect(),
        resolution: if external { Resolution::Dns } else { Resolution::Static },
        mesh_external: external,
        headless: spec.cluster_ip == "None",
        endpoints: Vec::new(),
        labels: meta.labels.clone(),
        distribution: TrafficDistribution::choose(
            world,
            spec.traffic_distribution.as_deref(),
            meta,
        ),
        selector: (!external && !spec.selector.is_empty()).then(|| spec.selector.clone()),
        export_to: Visibility::parse(&export),
        service_accounts: BTreeSet::new(),
        subject_alt_names: Vec::new(),
        creation: meta.creation,
        origin: meta.origin.clone(),
    };
    built.endpoints = if external {
        let ports = built.ports.iter().map(|port| (port.number, port.number)).collect();
        Address::parse(&spec.external_name).map(|a| listed(a, ports)).into_iter().collect()
    } else {
        kube_endpoints(world, &built, places, spec.publish_not_ready_addresses)
    };
    with_accounts(built)
}

fn kube_port(port: &spec::KubeServicePort) -> Option<ServicePort> {
    let number = u16::try_from(port.port).ok()?;
    Some(ServicePort {
        number,
        name: Arc::from(port.name.as_str()),
        protocol: Protocol::of_service_port(
            port.port,
            &port.name,
            &port.protocol,
            port.app_protocol.as_deref(),
        ),
        target: match &port.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(n)) => TargetPort::Number(u16::try_from(*n).ok()?),
            Some(IntOrString::String(name)) => match name.parse() {
                Ok(n) => TargetPort::Number(n),
                Err(_) => TargetPort::Name(Arc::from(name.as_str())),
            },
        },
    })
}

/// A ServiceEntry: one service for each host.
pub(crate) fn of_entry(world: &Inner, entry: &Resource<spec::ServiceEntry>) -> Vec<MeshService> {
    let Resource { meta, spec } = entry;
    let cidrs: Vec<Cidr> = spec.addresses.iter().filter_map(|text| Cidr::parse(text)).collect();
    let (hosts, ranges): (Vec<Cidr>, Vec<Cidr>) = cidrs.into_iter().partition(Cidr::is_host);
    let mut services = Vec::new();
    for host in &spec.hosts {
        let mut built = MeshService {
            kind: ServiceKind::ServiceEntry,
            host: Arc::from(host.to_ascii_lowercase()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            addresses: hosts.iter().map(|cidr| cidr.address).collect(),
            cluster_addresses: BTreeMap::new(),
            cidrs: ranges.clone(),
            ports: spec.ports.iter().filter_map(entry_port).collect(),
            resolution: match spec.resolution {
                // A host without a wildcard can be resolved as any other.
                ServiceEntryResolution::DynamicDns if !host.starts_with('*') => Resolution::Dns,
                ServiceEntryResolution::DynamicDns => Resolution::DynamicDns,
                ServiceEntryResolution::None => Resolution::None,
                ServiceEntryResolution::Static => Resolution::Static,
                ServiceEntryResolution::Dns => Resolution::Dns,
                ServiceEntryResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            },
            mesh_external: spec.location == Location::MeshExternal,
            headless: false,
            endpoints: Vec::new(),
            labels: meta.labels.clone(),
            distribution: TrafficDistribution::choose(world, None, meta),
            selector: spec.workload_selector.as_ref().map(|selector| selector.labels.clone()),
            export_to: Visibility::parse(&spec.export_to),
            service_accounts: BTreeSet::new(),
            subject_alt_names: spec.subject_alt_names.clone(),
            creation: meta.creation,
            origin: meta.origin.clone(),
        };
        built.endpoints = entry_endpoints(world, &built, spec);
        services.push(with_accounts(built));
    }
    services
}

fn entry_port(port: &spec::ServiceEntryPort) -> Option<ServicePort> {
    let number = u16::try_from(port.number).ok()?;
    let target = port.target_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let declared = Protocol::parse(&port.protocol);
    Some(ServicePort {
        number,
        name: Arc::from(port.name.as_str()),
        protocol: declared
            .unwrap_or_else(|| Protocol::of_service_port(port.number, &port.name, "", None)),
        target: TargetPort::Number(target.unwrap_or(number)),
    })
}

fn with_accounts(mut service: MeshService) -> MeshService {
    let accounts = service.endpoints.iter().filter_map(|e| e.service_account.clone());
    service.service_accounts = accounts.collect();
    // They are most of a world.
    service.endpoints.shrink_to_fit();
    service
}
