//! The edge: `Gateway` servers → listeners, one for each address and workload port.
//!
//! A server names a port of the gateway's own Service; the listener is on that port's target.
//! `gateway_tls` terminates TLS, `gateway_routes` builds what HTTP servers answer.

use std::collections::BTreeMap;

use weft_model::gateway_api::ServedListener;
use weft_model::spec::{Gateway, Server, ServerTlsMode};
use weft_model::{Kind, Protocol, Resource, host_matches};
use weft_xds::names;
use weft_xds::pb::envoy::config::core::v3::TrafficDirection;
use weft_xds::pb::envoy::config::core::v3::TransportSocket;
use weft_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};

use super::inbound::ISTIO_ANY;
use super::{Built, Inspection, bytes, gateway_routes, gateway_tls, listener};
use crate::build::hcm::{Http, Routes, Side, http};
use crate::build::socket_address;
use crate::build::tcp::tcp_to;
use crate::cluster;
use crate::findings::{Findings, LISTENER_CONFLICT, NOT_IMPLEMENTED};
use crate::ports;
use crate::route::{Place, api};
use crate::scope::Scope;
use crate::settings::HttpSettings;
use crate::telemetry::{access_logs, tracing};
use crate::view::Interception;

/// One server of a Gateway resource.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) gateway: &'a Resource<Gateway>,
    pub(crate) index: usize,
    pub(crate) server: &'a Server,
    /// The Service's port, as clients see it.
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// The Gateway API's listener that the server stands for.
    pub(crate) api: Option<&'a ServedListener>,
}

impl Entry<'_> {
    /// `namespace/name`, as VirtualServices refer to the Gateway.
    pub(crate) fn gateway_name(&self) -> String {
        format!("{}/{}", self.gateway.meta.namespace, self.gateway.meta.name)
    }

    pub(crate) fn path(&self, field: &str) -> String {
        format!("spec.servers[{}]{field}", self.index)
    }

    pub(crate) fn report(
        &self,
        findings: &mut Findings,
        code: &'static str,
        field: &str,
        message: &str,
    ) {
        match self.api {
            None => {
                findings.add(Kind::Gateway, &self.gateway.meta, code, &self.path(field), message)
            }
            Some(api) => {
                let path = format!("spec.listeners[{}]", api.index);
                findings.add_to(api.owner.clone(), &self.gateway.meta.origin, code, &path, message);
            }
        }
    }

    fn class(&self) -> Class {
        let mode = self.server.tls.as_ref().map(|tls| tls.mode);
        match (self.protocol, mode) {
            (protocol, _) if protocol.is_http() => Class::PlainHttp,
            (protocol, Some(ServerTlsMode::AutoPassthrough)) if protocol.is_tls() => {
                Class::AutoPassthrough
            }
            (protocol, Some(ServerTlsMode::Passthrough) | None) if protocol.is_tls() => {
                Class::Passthrough
            }
            (Protocol::Https, Some(_)) => Class::Https,
            (
                _,
                Some(
                    ServerTlsMode::Simple
                    | ServerTlsMode::Mutual
                    | ServerTlsMode::OptionalMutual
                    | ServerTlsMode::IstioMutual,
                ),
            ) => Class::TlsBytes,
            (_, _) => Class::Bytes,
        }
    }
}

/// What a server does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    PlainHttp,
    /// TLS ends here, HTTP inside.
    Https,
    /// TLS ends here, bytes inside.
    TlsBytes,
    /// TLS goes on to the service, chosen by SNI.
    Passthrough,
    /// TLS goes on to the cluster that its SNI names.
    AutoPassthrough,
    Bytes,
}

impl Class {
    /// Classes that one port can serve together: all that are told apart by SNI.
    fn is_tls(self) -> bool {
        match self {
            Class::Https | Class::TlsBytes | Class::Passthrough | Class::AutoPassthrough => true,
            Class::PlainHttp | Class::Bytes => false,
        }
    }
}

pub(crate) fn all(scope: &Scope<'_>, built: &mut Built, findings: &mut Findings) {
    for ((bind, port), entries) in by_listener(scope) {
        let name = format!("{bind}_{port}");
        let address = socket_address(&bind, port);
        let mut on_port = listener(name, address, TrafficDirection::Outbound);
        let mut chains = Chains { list: Vec::new(), routes: BTreeMap::new() };
        let first = entries.first().map(Entry::class);
        for entry in &entries {
            let compatible = first.is_some_and(|first| {
                first == entry.class() || (first.is_tls() && entry.class().is_tls())
            });
            if !entry.server.default_endpoint.is_empty() {
                let message = "not implemented, in Istio neither; the field has no effect";
                entry.report(findings, NOT_IMPLEMENTED, ".defaultEndpoint", message);
            }
            if compatible {
                chains.add(scope, entry, (&bind, port), findings);
            } else {
                let message =
                    "another server has this port with another protocol; this one is left out";
                entry.report(findings, LISTENER_CONFLICT, ".port.protocol", message);
            }
        }
        for (name, entries) in chains.routes {
            built.routes.push(gateway_routes::configuration(scope, &name, &entries, findings));
        }
        if chains.list.is_empty() {
            continue;
        }
        on_port.filter_chains = chains.list;
        let tls = first.is_some_and(Class::is_tls);
        Inspection { tls, ..Default::default() }.apply(scope, &mut on_port);
        built.listeners.push(on_port);
    }
}

/// Servers by the address and port they are served on, the oldest Gateway first.
fn by_listener<'a>(scope: &Scope<'a>) -> BTreeMap<(String, u16), Vec<Entry<'a>>> {
    let mut listeners: BTreeMap<(String, u16), Vec<Entry<'a>>> = BTreeMap::new();
    for gateway in scope.snapshot.gateways_for(&scope.view.labels) {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(declared) = &server.port else { continue };
            let Some(port) = u16::try_from(declared.number).ok().filter(|port| *port != 0) else {
                continue;
            };
            let protocol = Protocol::parse(&declared.protocol).unwrap_or(Protocol::Tcp);
            let entry = Entry { gateway, index, server, port, protocol, api: None };
            let bind = bind(scope, server);
            for target in targets(scope, port) {
                listeners.entry((bind.clone(), target)).or_default().push(entry);
            }
        }
    }
    for (entry, server) in api_entries(scope) {
        let bind = bind(scope, server);
        for target in targets(scope, entry.port) {
            listeners.entry((bind.clone(), target)).or_default().push(entry);
        }
    }
    listeners
}

/// Listeners of the Gateway API, as servers.
fn api_entries<'a>(scope: &Scope<'a>) -> Vec<(Entry<'a>, &'a Server)> {
    let mut entries = Vec::new();
    for gateway in scope.served_gateways() {
        for listener in gateway.listeners.iter().filter(|listener| listener.is_usable()) {
            let as_istio = &listener.as_istio;
            let Some(server) = as_istio.spec.servers.first() else { continue };
            let protocol = Protocol::parse(&listener.spec.protocol).unwrap_or(Protocol::Tcp);
            let port = listener.spec.port;
            let api = Some(listener);
            entries
                .push((Entry { gateway: as_istio, index: 0, server, port, protocol, api }, server));
        }
    }
    entries
}

fn bind(scope: &Scope<'_>, server: &Server) -> String {
    let own = scope.view.primary_address();
    match (server.bind.as_str(), scope.view.interception) {
        ("", Interception::None) => own.to_string(),
        ("", Interception::Redirect | Interception::Tproxy) if own.is_ipv6() => "::".to_owned(),
        ("", Interception::Redirect | Interception::Tproxy) => "0.0.0.0".to_owned(),
        (given, _) => given.to_owned(),
    }
}

/// Workload ports behind a port of the gateway's Services; the port itself when none has it.
fn targets(scope: &Scope<'_>, port: u16) -> Vec<u16> {
    let services = scope.own_services();
    let mut targets: Vec<u16> =
        services.iter().filter_map(|service| ports::target(scope, service, port)).collect();
    if targets.is_empty() {
        targets.push(port);
    }
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// Chains of one listener, and the route configurations they refer to.
struct Chains<'a> {
    list: Vec<FilterChain>,
    routes: BTreeMap<String, Vec<Entry<'a>>>,
}

impl<'a> Chains<'a> {
    fn add(
        &mut self,
        scope: &Scope<'_>,
        entry: &Entry<'a>,
        place: (&str, u16),
        findings: &mut Findings,
    ) {
        match entry.class() {
            Class::PlainHttp => self.plain_http(scope, entry, place),
            Class::Https => self.https(scope, entry, findings),
            Class::TlsBytes => self.tls_bytes(scope, entry, findings),
            Class::Passthrough => self.passthrough(scope, entry),
            Class::AutoPassthrough => self.auto_passthrough(scope, entry),
            Class::Bytes => self.bytes(scope, entry),
        }
    }

    /// All plaintext servers of a port share one chain and one route configuration.
    fn plain_http(&mut self, scope: &Scope<'_>, entry: &Entry<'a>, (bind, port): (&str, u16)) {
        let name = match entry.server.bind.as_str() {
            "" => names::gateway_http_route(port),
            bind => format!("{}.{bind}", names::gateway_http_route(port)),
        };
        let grpc_web = entry.protocol == Protocol::GrpcWeb;
        if grpc_web || self.list.is_empty() {
            let prefix = format!("outbound_{bind}_{port}");
            let filter = connection_manager(scope, prefix, &name, grpc_web);
            // A later server may be the first that speaks gRPC-Web.
            self.list = vec![FilterChain { filters: vec![filter], ..Default::default() }];
        }
        self.routes.entry(name).or_default().push(*entry);
    }

    fn https(&mut self, scope: &Scope<'_>, entry: &Entry<'a>, findings: &mut Findings) {
        let Some(socket) = server_tls(scope, entry, &["h2", "http/1.1"], findings) else { return };
        let port_name = entry.server.port.as_ref().map_or("", |port| port.name.as_str());
        let meta = &entry.gateway.meta;
        let name = names::gateway_https_route(entry.port, port_name, &meta.name, &meta.namespace);
        let filter = connection_manager(
            scope,
            format!("outbound_0.0.0.0_{}", entry.port),
            &name,
            entry.protocol == Protocol::GrpcWeb,
        );
        if self.push(entry, sni(entry), vec![filter], Some(socket), findings) {
            self.routes.entry(name).or_default().push(*entry);
        }
    }

    fn tls_bytes(&mut self, scope: &Scope<'_>, entry: &Entry<'a>, findings: &mut Findings) {
        let Some(socket) = server_tls(scope, entry, &[], findings) else { return };
        if let Some(listener) = entry.api {
            for (matching, filter) in api_tls(scope, listener) {
                self.push(entry, matching, vec![filter], Some(socket.clone()), findings);
            }
            return;
        }
        for chain in tcp_rules(scope, entry) {
            let matching = FilterChainMatch {
                prefix_ranges: chain.filter_chain_match.unwrap_or_default().prefix_ranges,
                ..sni(entry)
            };
            self.push(entry, matching, chain.filters, Some(socket.clone()), findings);
        }
    }

    fn passthrough(&mut self, scope: &Scope<'_>, entry: &Entry<'a>) {
        if let Some(listener) = entry.api {
            for (matching, filter) in api_tls(scope, listener) {
                bytes::push(&mut self.list, matching, filter);
            }
            return;
        }
        let gateway = entry.gateway_name();
        let place = Place { gateway: &gateway, port: entry.port };
        for rules in scope.snapshot.virtual_services(&gateway, &scope.view.namespace) {
            if gateway_routes::shared_hosts(entry, rules).is_empty() {
                continue;
            }
            for chain in bytes::tls_rules(scope, rules, &place) {
                let matching = chain.filter_chain_match.unwrap_or_default();
                bytes::push_all(&mut self.list, matching, chain.filters);
            }
        }
    }

    /// Whatever mutual TLS of the mesh names one of our clusters in its SNI. With the clusters'
    /// endpoints limited to those that take mutual TLS, nobody gets in without a certificate.
    fn auto_passthrough(&mut self, scope: &Scope<'_>, entry: &Entry<'a>) {
        for name in cluster::sni_dnat_names(scope) {
            let Some((_, _, host)) = names::parse_outbound_sni(&name) else { continue };
            let serves = |pattern: &String| {
                let (namespace, wanted) = pattern.split_once('/').unwrap_or(("*", pattern));
                let own = || scope.service(host).map(|service| &*service.namespace);
                let namespace = match namespace {
                    "." => &*entry.gateway.meta.namespace,
                    given => given,
                };
                host_matches(wanted, host) && (namespace == "*" || own() == Some(namespace))
            };
            if !entry.server.hosts.iter().any(serves) {
                continue;
            }
            let matching = FilterChainMatch {
                server_names: vec![name.clone()],
                application_protocols: ISTIO_ANY.map(str::to_owned).to_vec(),
                ..Default::default()
            };
            let logs = access_logs(scope, Side::Gateway);
            bytes::push(&mut self.list, matching, tcp_to(&name, logs));
        }
    }

    fn bytes(&mut self, scope: &Scope<'_>, entry: &Entry<'a>) {
        if let Some(listener) = entry.api {
            // One route has all the bytes; the oldest.
            let first = listener.routes.first();
            let filter = first.and_then(|attached| {
                bytes::split(scope, &api::destinations(scope, &attached.route), entry.port)
            });
            if let Some(filter) = filter {
                bytes::push(&mut self.list, FilterChainMatch::default(), filter);
            }
            return;
        }
        for chain in tcp_rules(scope, entry) {
            let matching = chain.filter_chain_match.unwrap_or_default();
            bytes::push_all(&mut self.list, matching, chain.filters);
        }
    }

    /// Envoy refuses a listener with two equal matches; the first server keeps its hosts.
    fn push(
        &mut self,
        entry: &Entry<'_>,
        matching: FilterChainMatch,
        filters: Vec<Filter>,
        socket: Option<TransportSocket>,
        findings: &mut Findings,
    ) -> bool {
        let matching = (matching != Default::default()).then_some(matching);
        if self.list.iter().any(|chain| chain.filter_chain_match == matching) {
            let message = "another server has the same port and hosts; this one is left out";
            entry.report(findings, LISTENER_CONFLICT, ".hosts", message);
            return false;
        }
        self.list.push(FilterChain {
            filter_chain_match: matching,
            filters,
            transport_socket: socket,
            ..Default::default()
        });
        true
    }
}

/// TLSRoutes of a listener: each SNI name is the oldest route's that has it.
fn api_tls(scope: &Scope<'_>, listener: &ServedListener) -> Vec<(FilterChainMatch, Filter)> {
    let mut taken: Vec<&String> = Vec::new();
    let mut chains = Vec::new();
    for attached in &listener.routes {
        let names: Vec<String> =
            attached.hostnames.iter().filter(|name| !taken.contains(name)).cloned().collect();
        if names.is_empty() {
            continue;
        }
        taken.extend(&attached.hostnames);
        let matching =
            FilterChainMatch { server_names: bytes::server_names(&names), ..Default::default() };
        let to = api::destinations(scope, &attached.route);
        if let Some(filter) = bytes::split(scope, &to, listener.spec.port) {
            chains.push((matching, filter));
        }
    }
    chains
}

/// The server's hosts as SNI names.
fn sni(entry: &Entry<'_>) -> FilterChainMatch {
    let hosts: Vec<String> =
        entry.server.hosts.iter().map(|host| gateway_routes::host_part(host).to_owned()).collect();
    FilterChainMatch { server_names: bytes::server_names(&hosts), ..Default::default() }
}

fn tcp_rules(scope: &Scope<'_>, entry: &Entry<'_>) -> Vec<FilterChain> {
    let gateway = entry.gateway_name();
    let place = Place { gateway: &gateway, port: entry.port };
    let mut chains = Vec::new();
    for rules in scope.snapshot.virtual_services(&gateway, &scope.view.namespace) {
        if !gateway_routes::shared_hosts(entry, rules).is_empty() {
            chains.extend(bytes::tcp_rules(scope, rules, &place));
        }
    }
    chains
}

fn server_tls(
    scope: &Scope<'_>,
    entry: &Entry<'_>,
    alpn: &[&str],
    findings: &mut Findings,
) -> Option<TransportSocket> {
    let tls = entry.server.tls.as_ref()?;
    gateway_tls::socket(scope, gateway_tls::Owner::Server(entry), tls, alpn, findings)
}

fn connection_manager(
    scope: &Scope<'_>,
    stat_prefix: String,
    routes: &str,
    grpc_web: bool,
) -> Filter {
    http(Http {
        stat_prefix,
        routes: Routes::Rds(routes.to_owned()),
        side: Side::Gateway,
        flavor: scope.view.flavor,
        tracing: tracing(scope, Side::Gateway),
        stats: crate::metrics::of_http(scope, Side::Gateway),
        access_log: access_logs(scope, Side::Gateway),
        settings: HttpSettings::of(scope),
        grpc_web,
        names: scope.resolves_on_demand().then(|| scope.lookup_family() as i32),
    })
}
