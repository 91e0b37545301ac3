//! What translation knows of the proxy it writes for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weft_model::{HOSTNAME, Snapshot, Workload};
use weft_xds::NodeView;
use weft_xds::node::NodeKind;

/// Istio's annotation with settings of one workload's proxy.
const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// The proxy's place in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKind {
    /// Beside one workload, inbound and outbound.
    Sidecar,
    /// At the edge, configured by `Gateway` resources.
    Gateway,
    /// No proxy: an application's gRPC library that speaks xDS.
    Grpc,
}

/// Node metadata of a proxy that answers its workload's DNS (Istio's `ISTIO_META_DNS_CAPTURE`).
const DNS_CAPTURE: &str = "DNS_CAPTURE";

/// Who will read the configuration. Only used where readers differ in what they accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavor {
    /// `weft-proxy`.
    Weft,
    /// Stock Envoy without Istio's own filters.
    Envoy,
    /// A gRPC library.
    Grpc,
}

/// How the workload's traffic gets to the proxy (`INTERCEPTION_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interception {
    /// Not at all: applications address the listeners of their `Sidecar` resource.
    None,
    /// iptables REDIRECT.
    Redirect,
    /// iptables TPROXY, keeps the source address.
    Tproxy,
}

/// Everything about one proxy that its configuration depends on. Proxies with equal views share
/// configuration, so nothing else (connection ids, versions) may enter here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProxyView {
    pub kind: ProxyKind,
    pub flavor: Flavor,
    /// Pod or WorkloadEntry name.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    /// The workload's own addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub cluster_id: Arc<str>,
    /// `region/zone/subzone` as the proxy says it; empty: that of its workload, if it has one.
    pub locality: Arc<str>,
    pub interception: Interception,
    /// Node metadata that is text, by key: what EnvoyFilters may match.
    pub metadata: Arc<BTreeMap<String, String>>,
}

impl ProxyView {
    /// The address that listeners bind to when traffic is not captured.
    pub(crate) fn primary_address(&self) -> IpAddr {
        self.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// Whether the workload hears from its proxy which addresses names have, allocated ones too.
    #[must_use]
    pub fn answers_dns(&self) -> bool {
        self.metadata.get(DNS_CAPTURE).is_some_and(|value| value == "true")
    }

    /// Whether the workload has addresses of both IP versions.
    pub(crate) fn is_dual_stack(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv4) && self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// The view without what tells a client from others in its place: those with equal shared
    /// views get the same outbound clusters and endpoints, and but for gateways the same listeners
    /// and routes.
    #[must_use]
    pub fn shared(&self, snapshot: &Snapshot) -> ProxyView {
        let keys = snapshot.client_label_keys();
        // A Gateway of the Gateway API finds its proxies by labels, its own or those of Services.
        let is_found =
            self.kind == ProxyKind::Gateway && !snapshot.gateway_api().gateways.is_empty();
        let labels = self.labels.iter().filter(|(key, _)| is_found || keys.contains(*key));
        let mut labels: BTreeMap<String, String> =
            labels.map(|(key, value)| (key.clone(), value.clone())).collect();
        if keys.contains(HOSTNAME)
            && let Some(workload) = self.workload(snapshot)
            && !workload.node.is_empty()
        {
            labels.entry(HOSTNAME.to_owned()).or_insert_with(|| workload.node.to_string());
        }
        let mut families: Vec<IpAddr> = Vec::new();
        for address in &self.addresses {
            let family = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            if !families.contains(&family) {
                families.push(family);
            }
        }
        ProxyView {
            name: "".into(),
            service_account: "".into(),
            addresses: families,
            labels,
            locality: self.place(snapshot),
            metadata: self.matched_metadata(snapshot),
            ..self.clone()
        }
    }

    /// The workload's annotation `proxy.istio.io/config`, as the proxy tells it or its resource has.
    pub(crate) fn annotated_config<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a str> {
        let own = self.metadata.get(PROXY_CONFIG);
        let of_workload =
            || self.workload(snapshot).and_then(|workload| workload.annotations.get(PROXY_CONFIG));
        own.or_else(of_workload).map(String::as_str)
    }

    /// The metadata that some EnvoyFilter asks for, who answers DNS, and the annotation.
    fn matched_metadata(&self, snapshot: &Snapshot) -> Arc<BTreeMap<String, String>> {
        let patches = snapshot.all_envoy_filters().flat_map(|filter| &filter.spec.config_patches);
        let wanted = patches.filter_map(|patch| patch.matches.as_ref()?.proxy.as_ref());
        let mut asked = BTreeMap::new();
        if let Some(config) = self.annotated_config(snapshot) {
            asked.insert(PROXY_CONFIG.to_owned(), config.to_owned());
        }
        if let Some(answers) = self.metadata.get(DNS_CAPTURE) {
            asked.insert(DNS_CAPTURE.to_owned(), answers.clone());
        }
        for proxy in wanted {
            let version = (!proxy.proxy_version.is_empty()).then_some("ISTIO_VERSION");
            for key in proxy.metadata.keys().map(String::as_str).chain(version) {
                if let Some(value) = self.metadata.get(key) {
                    asked.insert(key.to_owned(), value.clone());
                }
            }
        }
        Arc::new(asked)
    }

    /// Where the proxy is: as it says, else as its workload's resource says.
    pub(crate) fn place(&self, snapshot: &Snapshot) -> Arc<str> {
        match self.workload(snapshot) {
            Some(workload) if self.locality.is_empty() => Arc::clone(&workload.locality),
            _ => Arc::clone(&self.locality),
        }
    }

    /// The Pod or WorkloadEntry beside the proxy, if the snapshot knows it.
    pub(crate) fn workload<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Arc<Workload>> {
        snapshot.workload_of(&self.cluster_id, &self.namespace, &self.name).or_else(|| {
            let own = |workload: &&Arc<Workload>| workload.namespace == self.namespace;
            self.addresses.iter().find_map(|ip| snapshot.workloads_by_ip(*ip).iter().find(own))
        })
    }

    /// What a client claims in its first request. The caller has checked name, namespace and
    /// service account against the client's credential, where it has one.
    pub fn from_node(node: &NodeView) -> Self {
        let (kind, flavor) = match (node.kind, node.generator.as_str()) {
            (_, "grpc") => (ProxyKind::Grpc, Flavor::Grpc),
            (NodeKind::Sidecar, _) => (ProxyKind::Sidecar, flavor(node)),
            (NodeKind::Router, _) => (ProxyKind::Gateway, flavor(node)),
        };
        let mut addresses = node.instance_ips.clone();
        if addresses.is_empty() {
            addresses.extend(node.ip);
        }
        ProxyView {
            kind,
            flavor,
            name: node.name.as_str().into(),
            namespace: node.namespace.as_str().into(),
            service_account: node.service_account.as_str().into(),
            addresses,
            labels: node.labels.clone(),
            cluster_id: node.cluster_id.as_str().into(),
            locality: node.locality.as_str().into(),
            interception: match node.interception_mode.as_str() {
                "NONE" => Interception::None,
                "TPROXY" => Interception::Tproxy,
                _ => Interception::Redirect,
            },
            metadata: Arc::new(node.metadata.clone()),
        }
    }
}

fn flavor(node: &NodeView) -> Flavor {
    if node.weft_version.is_some() { Flavor::Weft } else { Flavor::Envoy }
}
