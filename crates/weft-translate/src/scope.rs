//! What one proxy may see: services and rules after `exportTo`, Sidecar imports and namespaces.
//!
//! Every lookup by host or name goes through here and is recorded for [`crate::memo`], so "does
//! this depend on that resource" has one answer. `snapshot` is for what the whole world shares:
//! what belongs to its [`weft_model::Base`].

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_model::gateway_api::ServedGateway;
use weft_model::spec::{
    CaptureMode, Destination, DestinationRule, EgressListener, MeshTls, OutboundMode, ProxyConfig,
    Sidecar, VirtualService,
};
use weft_model::{
    MESH_GATEWAY, MeshService, Protocol, Resolution, Resource, Snapshot, Workload, host_matches,
};
use weft_xds::names;
use weft_xds::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily;

use crate::build::tls::Suites;
use crate::memo::{self, Read};
use crate::view::{Interception, ProxyKind, ProxyView};

/// Istio's default share of traces started here, in percent.
const SAMPLING: f64 = 1.0;

/// The world as one proxy sees it.
pub(crate) struct Scope<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) view: &'a ProxyView,
    /// The Sidecar resource that applies; never for gateways.
    pub(crate) sidecar: Option<&'a Arc<Resource<Sidecar>>>,
    /// The Pod or WorkloadEntry beside the proxy, if the snapshot knows it.
    pub(crate) workload: Option<&'a Arc<Workload>>,
    /// Where the proxy is; empty when nobody says.
    pub(crate) locality: Arc<str>,
    config: OnceCell<ProxyConfig>,
    /// Made when first asked for: the endpoints of one cluster do not need the whole world.
    services: OnceCell<BTreeMap<&'a str, &'a Arc<MeshService>>>,
    /// See [`Scope::resolves_on_demand`].
    on_demand: OnceCell<bool>,
    /// What was asked while a part of the translation is made.
    reads: RefCell<Option<Vec<Read>>>,
}

/// One outbound listener of a Sidecar resource, or the implicit one that imports everything.
pub(crate) struct Egress<'a> {
    pub(crate) declared: Option<&'a EgressListener>,
    imports: Imports<'a>,
}

/// `hosts` of an egress listener, as `(namespace, host)` patterns.
#[derive(Debug, Clone)]
struct Imports<'a> {
    /// Empty list: everything.
    all: bool,
    wanted: Vec<(&'a str, &'a str)>,
    excluded: Vec<(&'a str, &'a str)>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, view: &'a ProxyView) -> Self {
        let sidecar = match view.kind {
            ProxyKind::Gateway => None,
            ProxyKind::Sidecar | ProxyKind::Grpc => {
                snapshot.sidecar_for(&view.namespace, &view.labels)
            }
        };
        let workload = view.workload(snapshot);
        let locality = view.place(snapshot);
        let (services, reads) = (OnceCell::new(), RefCell::default());
        let (config, on_demand) = (OnceCell::new(), OnceCell::new());
        Scope { snapshot, view, sidecar, workload, locality, config, services, on_demand, reads }
    }

    /// Runs `make` and tells what it asked about services and rules.
    pub(crate) fn recorded<T>(&self, make: impl FnOnce() -> T) -> (T, Box<[Read]>) {
        let outer = self.reads.replace(Some(Vec::new()));
        debug_assert!(outer.is_none(), "parts have no parts");
        let made = make();
        (made, self.reads.take().unwrap_or_default().into())
    }

    fn note(&self, read: impl FnOnce() -> Read) {
        if let Some(reads) = self.reads.borrow_mut().as_mut() {
            memo::note(reads, read());
        }
    }

    /// Services by host: exported to the proxy's namespace and imported by its Sidecar, or needed
    /// by a VirtualService that is.
    fn visible_services(&self) -> BTreeMap<&'a str, &'a Arc<MeshService>> {
        let mut exported: BTreeMap<&'a str, &'a Arc<MeshService>> = BTreeMap::new();
        for service in self.snapshot.services() {
            let host: &'a str = &service.host;
            if exported.contains_key(host) {
                continue;
            }
            if let Some(service) = self.snapshot.service_from(host, &self.view.namespace) {
                exported.insert(host, service);
            }
        }
        if self.sidecar.is_none() {
            return exported;
        }
        let egress = self.egress();
        let imported = |namespace: &str, host: &str| {
            egress.iter().any(|listener| listener.imports.cover(namespace, host))
        };
        let mut services: BTreeMap<_, _> = exported
            .iter()
            .filter(|(host, service)| imported(&service.namespace, host))
            .map(|(host, service)| (*host, *service))
            .collect();
        if let Some(proxy) = self.egress_proxy() {
            let found = exported.get_key_value(proxy.host.as_str());
            services.extend(found.map(|(host, service)| (*host, *service)));
        }
        for rules in self.snapshot.virtual_services(MESH_GATEWAY, &self.view.namespace) {
            let namespace = &rules.meta.namespace;
            if rules.spec.hosts.iter().any(|host| imported(namespace, host)) {
                for host in destinations(&rules.spec) {
                    services.extend(
                        exported.get_key_value(host).map(|(host, service)| (*host, *service)),
                    );
                }
            }
        }
        // Where Gateway API routes of imported services lead, too.
        let routed: Vec<String> = services
            .keys()
            .flat_map(|host| self.snapshot.mesh_route_targets(host, &self.view.namespace))
            .collect();
        for host in &routed {
            let target = exported.get_key_value(host.as_str());
            services.extend(target.map(|(host, service)| (*host, *service)));
        }
        services
    }

    /// Gateways of the Gateway API that this proxy serves, the oldest first.
    pub(crate) fn served_gateways(&self) -> Vec<&'a ServedGateway> {
        if self.view.kind != ProxyKind::Gateway {
            return Vec::new();
        }
        let own: Vec<&str> = self.own_services().iter().map(|service| &*service.host).collect();
        self.snapshot.served_gateways(&self.view.namespace, &self.view.labels, &own)
    }

    /// Visible services, ordered by host.
    pub(crate) fn services(&self) -> impl Iterator<Item = &'a Arc<MeshService>> {
        self.map().values().copied()
    }

    pub(crate) fn service(&self, host: &str) -> Option<&'a Arc<MeshService>> {
        let found = self.find_service(host);
        self.note(|| Read::Service(host.into(), found.cloned()));
        found
    }

    fn find_service(&self, host: &str) -> Option<&'a Arc<MeshService>> {
        let service = self.snapshot.service_from(host, &self.view.namespace)?;
        let listeners = self.egress();
        let imported =
            listeners.iter().any(|listener| listener.imports.cover(&service.namespace, host));
        if imported { Some(service) } else { self.map().get(host).copied() }
    }

    fn map(&self) -> &BTreeMap<&'a str, &'a Arc<MeshService>> {
        self.services.get_or_init(|| self.visible_services())
    }

    /// Virtual addresses of a service: its own; else the allocated ones, of the proxy's families,
    /// where the proxy answers its workload's DNS. Nobody else's workload would go there.
    pub(crate) fn addresses(&self, service: &'a MeshService) -> Vec<IpAddr> {
        let own = service.addresses_in(&self.view.cluster_id);
        if !own.is_empty() || !self.view.answers_dns() {
            return own.to_vec();
        }
        let has_family =
            |ip: &&IpAddr| self.view.addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
        self.snapshot.allocated_addresses(service).iter().filter(has_family).copied().collect()
    }

    /// Services that the proxy's own workload serves. A proxy whose workload is not known (yet)
    /// is judged by its labels.
    pub(crate) fn own_services(&self) -> Vec<&'a Arc<MeshService>> {
        if let Some(workload) = self.workload {
            return self.snapshot.services_of(workload);
        }
        let selects_us = |service: &&Arc<MeshService>| match &service.selector {
            Some(selector) => {
                selector.iter().all(|(key, value)| self.view.labels.get(key) == Some(value))
            }
            None => false,
        };
        self.snapshot.services_in(&self.view.namespace).filter(selects_us).collect()
    }

    pub(crate) fn rule(&self, host: &str) -> Option<&'a Arc<Resource<DestinationRule>>> {
        let ProxyView { namespace, labels, .. } = self.view;
        let found = self.snapshot.destination_rule_for_workload(host, namespace, labels);
        self.note(|| Read::Rule(host.into(), found.cloned()));
        found
    }

    /// What a gateway shows to backends that a BackendTLSPolicy speaks about: namespace and name of
    /// a Secret.
    pub(crate) fn client_certificate(&self) -> Option<(String, String)> {
        let served = self.served_gateways();
        let found = served.iter().find_map(|gateway| gateway.client_certificate(self.snapshot));
        self.note(|| Read::ClientCertificate(found.clone()));
        found
    }

    /// A VirtualService by its own name.
    pub(crate) fn virtual_service(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<&'a Arc<Resource<VirtualService>>> {
        let found = self.snapshot.virtual_service(namespace, name);
        self.note(|| Read::VirtualService {
            namespace: namespace.into(),
            name: name.into(),
            found: found.cloned(),
        });
        found
    }

    /// Outbound listeners as declared; without a Sidecar resource (or without `egress` in it) the
    /// implicit one.
    pub(crate) fn egress(&self) -> Vec<Egress<'a>> {
        let declared = self.sidecar.map_or(&[][..], |sidecar| &sidecar.spec.egress);
        if declared.is_empty() {
            return vec![Egress { declared: None, imports: Imports::everything() }];
        }
        declared
            .iter()
            .map(|listener| Egress {
                declared: Some(listener),
                imports: Imports::parse(&listener.hosts),
            })
            .collect()
    }

    /// What happens to traffic for hosts nobody declared.
    pub(crate) fn outbound_mode(&self) -> OutboundMode {
        let own = self.sidecar.and_then(|sidecar| sidecar.spec.outbound_traffic_policy.as_ref());
        let mesh = self.snapshot.mesh().outbound_traffic_policy.as_ref();
        own.or(mesh).map_or(OutboundMode::AllowAny, |policy| policy.mode)
    }

    /// Where traffic for hosts nobody declared goes when it may leave: to the Sidecar's egress
    /// proxy, else wherever the client wanted.
    pub(crate) fn way_out(&self) -> String {
        match self.egress_proxy() {
            Some(proxy) => self.destination_cluster(proxy, 0),
            None => names::PASSTHROUGH_CLUSTER.to_owned(),
        }
    }

    fn egress_proxy(&self) -> Option<&'a Destination> {
        self.sidecar?.spec.outbound_traffic_policy.as_ref()?.egress_proxy.as_ref()
    }

    /// Whether requests may go to hosts that only they name.
    pub(crate) fn resolves_on_demand(&self) -> bool {
        *self.on_demand.get_or_init(|| {
            let mode = self.outbound_mode() == OutboundMode::AllowAnyDynamicDns;
            let mut services = self.services();
            (mode && self.view.kind == ProxyKind::Sidecar)
                || services.any(|service| service.resolution == Resolution::DynamicDns)
        })
    }

    /// `Cluster.DnsLookupFamily`: addresses of a family the proxy itself has.
    pub(crate) fn lookup_family(&self) -> DnsLookupFamily {
        let addresses = &self.view.addresses;
        match (addresses.iter().any(|ip| ip.is_ipv4()), addresses.iter().any(|ip| ip.is_ipv6())) {
            (true, true) => DnsLookupFamily::All,
            (false, true) => DnsLookupFamily::V6Only,
            (true, false) | (false, false) => DnsLookupFamily::V4Only,
        }
    }

    /// The port a destination means: its own, the service's only one, else the port the request
    /// came in on.
    pub(crate) fn destination_port(&self, destination: &Destination, listen_port: u16) -> u16 {
        if let Some(port) = destination.port
            && let Ok(number) = u16::try_from(port.number)
            && number != 0
        {
            return number;
        }
        match self.service(&destination.host).map(|service| service.ports.as_slice()) {
            Some([only]) => only.number,
            Some(_) | None => listen_port,
        }
    }

    pub(crate) fn destination_cluster(
        &self,
        destination: &Destination,
        listen_port: u16,
    ) -> String {
        let port = self.destination_port(destination, listen_port);
        names::outbound_cluster(port, &destination.subset, &destination.host)
    }

    /// SPIFFE ids that servers of a service may have; sorted.
    pub(crate) fn identities(&self, service: &MeshService) -> Vec<String> {
        let trust_domain = &self.snapshot.mesh().trust_domain;
        let accounts =
            service.service_accounts.iter().map(|account| account.spiffe_id(trust_domain));
        let mut ids: Vec<String> =
            accounts.chain(service.subject_alt_names.iter().cloned()).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Prefixes of SPIFFE ids that clients may have: those of our trust domains.
    pub(crate) fn trusted_clients(&self) -> Vec<String> {
        let mesh = self.snapshot.mesh();
        std::iter::once(&mesh.trust_domain)
            .chain(&mesh.trust_domain_aliases)
            .map(|domain| format!("spiffe://{domain}/*"))
            .collect()
    }

    /// What the mesh's own mutual TLS is encrypted with.
    pub(crate) fn mesh_suites(&self) -> Suites {
        self.snapshot.mesh().mesh_mtls.as_ref().map(suites).unwrap_or_default()
    }

    /// What all other TLS is encrypted with, where nothing more special says so.
    pub(crate) fn default_suites(&self) -> Suites {
        self.snapshot.mesh().tls_defaults.as_ref().map(suites).unwrap_or_default()
    }

    /// The proxy's settings: the mesh's, then of ProxyConfig resources the root namespace's and the
    /// namespace's, then the workload's annotation, then the resource that selects it.
    pub(crate) fn config(&self) -> &ProxyConfig {
        self.config.get_or_init(|| {
            let mut config = self.snapshot.mesh().default_config.clone();
            let view = self.view;
            let [root, namespace, selecting] =
                self.snapshot.proxy_configs_for(&view.namespace, &view.labels);
            for resource in [root, namespace].into_iter().flatten() {
                config.overlay(&resource.spec.settings());
            }
            // What does not read was told when the workload was.
            if let Some(own) = view.annotated_config(self.snapshot)
                && let Ok(own) = ProxyConfig::parse(own)
            {
                config.overlay(&own);
            }
            if let Some(resource) = selecting {
                config.overlay(&resource.spec.settings());
            }
            config
        })
    }

    /// Percent of traces started here.
    pub(crate) fn sampling(&self) -> f64 {
        let tracing = self.config().tracing.as_ref();
        tracing.and_then(|tracing| tracing.sampling).unwrap_or(SAMPLING)
    }

    /// Is the traffic of this listener not captured, so that it must bind its port?
    pub(crate) fn binds(&self, mode: CaptureMode) -> bool {
        match mode {
            CaptureMode::None => true,
            CaptureMode::Iptables => false,
            CaptureMode::Default => self.view.interception == Interception::None,
        }
    }
}

impl<'a> Egress<'a> {
    /// The listener's own port, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        let port = self.declared?.port.as_ref()?;
        u16::try_from(port.number).ok().filter(|number| *number != 0)
    }

    /// `HTTP_PROXY`: the listener is a forward proxy for every host and port.
    pub(crate) fn is_forward_proxy(&self) -> bool {
        let port = self.declared.and_then(|listener| listener.port.as_ref());
        port.is_some_and(|port| port.protocol.eq_ignore_ascii_case("http_proxy"))
    }

    pub(crate) fn protocol(&self) -> Protocol {
        let port = self.declared.and_then(|listener| listener.port.as_ref());
        port.and_then(|port| Protocol::parse(&port.protocol)).unwrap_or(Protocol::Auto)
    }

    /// Visible services that this listener imports, ordered by host.
    pub(crate) fn services(&self, scope: &Scope<'a>) -> Vec<&'a Arc<MeshService>> {
        let imported =
            |service: &&Arc<MeshService>| self.imports.cover(&service.namespace, &service.host);
        scope.services().filter(imported).collect()
    }

    /// The VirtualService that speaks for a host here: the most specific, oldest one.
    pub(crate) fn virtual_service(
        &self,
        scope: &Scope<'a>,
        host: &str,
    ) -> Option<&'a Arc<Resource<VirtualService>>> {
        let candidates =
            scope.snapshot.virtual_services_for(host, &scope.view.namespace, MESH_GATEWAY);
        candidates.into_iter().find(|rules| self.imports.cover(&rules.meta.namespace, host))
    }

    /// VirtualServices with hosts that are no service's; (host, rules), ordered by host.
    pub(crate) fn virtual_hosts(
        &self,
        scope: &Scope<'a>,
    ) -> BTreeMap<&'a str, &'a Arc<Resource<VirtualService>>> {
        let mut hosts = BTreeMap::new();
        for rules in scope.snapshot.virtual_services(MESH_GATEWAY, &scope.view.namespace) {
            for host in &rules.spec.hosts {
                let known = match host.starts_with('*') {
                    true => scope.map().keys().any(|service| host_matches(host, service)),
                    false => scope.map().contains_key(host.as_str()),
                };
                if !known && self.imports.cover(&rules.meta.namespace, host) {
                    hosts.entry(host.as_str()).or_insert(rules);
                }
            }
        }
        hosts
    }
}

impl<'a> Imports<'a> {
    fn everything() -> Self {
        Imports { all: true, wanted: Vec::new(), excluded: Vec::new() }
    }

    fn parse(hosts: &'a [String]) -> Self {
        let mut imports = Imports { all: false, wanted: Vec::new(), excluded: Vec::new() };
        for pattern in hosts {
            let (namespace, host) = pattern.split_once('/').unwrap_or(("*", pattern));
            match namespace.strip_prefix('~') {
                // `~/*`: nothing at all.
                Some("") => {}
                Some(excluded) => imports.excluded.push((excluded, host)),
                None => imports.wanted.push((namespace, host)),
            }
        }
        imports
    }

    fn cover(&self, namespace: &str, host: &str) -> bool {
        let one = |(wanted_namespace, pattern): &(&str, &str)| {
            (*wanted_namespace == "*" || *wanted_namespace == namespace)
                && host_matches(pattern, host)
        };
        self.all || (self.wanted.iter().any(one) && !self.excluded.iter().any(one))
    }
}

fn suites(settings: &MeshTls) -> Suites {
    Suites::known(&settings.cipher_suites, &settings.ecdh_curves)
}

/// Hosts a VirtualService sends traffic to.
fn destinations(rules: &VirtualService) -> impl Iterator<Item = &str> {
    let http = rules.http.iter().flat_map(|rule| {
        let routes = rule.route.iter().map(|route| &route.destination);
        let mirrors = rule.mirrors.iter().map(|mirror| &mirror.destination);
        routes.chain(&rule.mirror).chain(mirrors)
    });
    let tcp = rules.tcp.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
    let tls = rules.tls.iter().flat_map(|rule| &rule.route).map(|route| &route.destination);
    http.chain(tcp).chain(tls).map(|destination| destination.host.as_str())
}
