//! Sidecars behind iptables: two ports receive everything.
//!
//! Outbound connections arrive at 15001 and are handed to the listener of their original address
//! (`IP_PORT`, else `0.0.0.0_PORT`), which binds nothing itself. Inbound ones arrive at 15006 and
//! are told apart by port.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_model::spec::OutboundMode;
use weft_model::{MeshService, Protocol, Resolution, ServicePort};
use weft_xds::names;
use weft_xds::pb::envoy::config::core::v3::TrafficDirection;
use weft_xds::pb::envoy::config::listener::v3::{
    AdditionalAddress, FilterChain, FilterChainMatch, Listener,
};

use super::bound::PLAIN_HTTP;
use super::inbound::InboundPort;
use super::{
    Built, Inspection, bytes, default_mode, inbound, inbound_port, listener, outbound_http,
};
use crate::build::hcm::Side;
use crate::build::tcp::tcp_to;
use crate::build::{boolean, cidr, socket_address, uint32};
use crate::findings::Findings;
use crate::ports;
use crate::route::api;
use crate::route::vhost::{self, Reach, Unknown};
use crate::scope::{Egress, Scope};
use crate::telemetry::access_logs;
use crate::view::Interception;

/// Where iptables sends outbound and inbound connections.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

pub(super) fn outbound(scope: &Scope<'_>, built: &mut Built, findings: &mut Findings) {
    built.listeners.push(virtual_outbound(scope));
    if scope.outbound_mode() == OutboundMode::AllowAnyDynamicDns {
        built.routes.push(vhost::dynamic(scope));
    }
    let mut plan = Plan::default();
    for egress in scope.egress() {
        let bound = egress.declared.is_some_and(|declared| scope.binds(declared.capture_mode));
        if !bound {
            plan.add(scope, &egress, built, findings);
        }
    }
    plan.finish(scope, built);
}

fn any_address(scope: &Scope<'_>) -> &'static str {
    if scope.view.primary_address().is_ipv6() { "::" } else { "0.0.0.0" }
}

/// Captured connections of the other IP version come to the same port.
fn other_address(scope: &Scope<'_>, port: u16) -> Vec<AdditionalAddress> {
    if !scope.view.is_dual_stack() {
        return Vec::new();
    }
    let other = if scope.view.primary_address().is_ipv6() { "0.0.0.0" } else { "::" };
    let address = Some(socket_address(other, port));
    vec![AdditionalAddress { address, ..Default::default() }]
}

/// Where connections to addresses nobody declared go.
fn unknown_cluster(scope: &Scope<'_>) -> String {
    match scope.outbound_mode() {
        OutboundMode::RegistryOnly => names::BLACK_HOLE_CLUSTER.to_owned(),
        OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns => scope.way_out(),
    }
}

fn to_cluster(
    (scope, side): (&Scope<'_>, Side),
    name: &str,
    cluster: &str,
    matching: Option<FilterChainMatch>,
) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filter_chain_match: matching,
        filters: vec![tcp_to(cluster, access_logs(scope, side))],
        ..Default::default()
    }
}

/// Connections addressed to the proxy's own port would go round for ever.
fn black_hole(place: (&Scope<'_>, Side), name: &str, port: u16) -> FilterChain {
    let own_port =
        FilterChainMatch { destination_port: uint32(u32::from(port)), ..Default::default() };
    to_cluster(place, name, names::BLACK_HOLE_CLUSTER, Some(own_port))
}

fn virtual_outbound(scope: &Scope<'_>) -> Listener {
    let address = socket_address(any_address(scope), OUTBOUND_PORT);
    let mut outbound =
        listener(names::VIRTUAL_OUTBOUND.to_owned(), address, TrafficDirection::Outbound);
    outbound.additional_addresses = other_address(scope, OUTBOUND_PORT);
    outbound.use_original_dst = boolean(true);
    outbound.transparent =
        (scope.view.interception == Interception::Tproxy).then_some(true).and_then(boolean);
    outbound.filter_chains =
        vec![black_hole((scope, Side::Outbound), "virtualOutbound-blackhole", OUTBOUND_PORT)];
    if scope.outbound_mode() == OutboundMode::AllowAnyDynamicDns {
        outbound.filter_chains.push(by_request(scope));
        Inspection { tls: true, http: true, ..Default::default() }.apply(scope, &mut outbound);
    }
    outbound.default_filter_chain = Some(to_cluster(
        (scope, Side::Outbound),
        "virtualOutbound-catchall-tcp",
        &unknown_cluster(scope),
        None,
    ));
    outbound
}

/// Plaintext HTTP to an address nobody declared goes to the host that it names.
fn by_request(scope: &Scope<'_>) -> FilterChain {
    let name = "virtualOutbound-catchall-http";
    let mut chain = outbound_http(scope, name.to_owned(), vhost::DYNAMIC, false);
    chain.name = name.to_owned();
    chain.filter_chain_match = Some(FilterChainMatch {
        transport_protocol: "raw_buffer".to_owned(),
        application_protocols: PLAIN_HTTP.map(str::to_owned).to_vec(),
        ..Default::default()
    });
    chain
}

pub(super) fn virtual_inbound(scope: &Scope<'_>, findings: &mut Findings) -> Listener {
    let address = socket_address(any_address(scope), INBOUND_PORT);
    let mut all = listener(names::VIRTUAL_INBOUND.to_owned(), address, TrafficDirection::Inbound);
    all.transparent =
        (scope.view.interception == Interception::Tproxy).then_some(true).and_then(boolean);
    all.additional_addresses = other_address(scope, INBOUND_PORT);
    all.filter_chains.push(black_hole(
        (scope, Side::Inbound),
        "virtualInbound-blackhole",
        INBOUND_PORT,
    ));
    let original_src = scope.view.interception == Interception::Tproxy;
    let mut inspection = Inspection { original_dst: true, original_src, ..Default::default() };
    for port in ports::of_workload(scope) {
        let is_bound = port.ingress.is_some_and(|(_, declared)| scope.binds(declared.capture_mode));
        if is_bound {
            continue;
        }
        let inbound = inbound_port(scope, &port, findings);
        inspection.add(Inspection::of_inbound(&inbound));
        all.filter_chains.extend(inbound::chains(scope, &inbound, true));
    }
    let undeclared = InboundPort {
        port: 0,
        service_port: 0,
        protocol: Protocol::Auto,
        mode: default_mode(scope),
        cluster: names::INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
        host: names::INBOUND_PASSTHROUGH_CLUSTER.to_owned(),
        own_tls: inbound::OwnTls::No,
        idle_timeout: None,
        duration_max: None,
    };
    inspection.add(Inspection::of_inbound(&undeclared));
    let mut catch_all = inbound::chains(scope, &undeclared, false);
    for chain in &mut catch_all {
        chain.name = chain.name.replace("0.0.0.0_0", "virtualInbound-catchall");
    }
    all.filter_chains.extend(catch_all);
    inspection.apply(scope, &mut all);
    all
}

/// Outbound listeners while they are put together, by address (`None`: any) and port.
#[derive(Default)]
struct Plan {
    listeners: BTreeMap<(Option<IpAddr>, u16), Planned>,
}

#[derive(Default)]
struct Planned {
    /// Chains told apart by SNI or address range.
    told_apart: Vec<FilterChain>,
    inspection: Inspection,
    /// Plaintext HTTP goes to this route configuration.
    http_routes: Option<String>,
    /// A service on the port speaks gRPC-Web.
    grpc_web: bool,
    /// HTTP is only one of the possibilities.
    sniffed: bool,
    /// Everything else; absent: as traffic for unknown hosts.
    bytes: Option<FilterChain>,
}

impl Plan {
    fn add<'a>(
        &mut self,
        scope: &Scope<'a>,
        egress: &Egress<'a>,
        built: &mut Built,
        findings: &mut Findings,
    ) {
        let unknown = Unknown::of_captured(scope);
        for service in egress.services(scope) {
            let wanted = |port: &&ServicePort| egress.port().is_none_or(|only| only == port.number);
            for port in service.ports.iter().filter(wanted) {
                match port.protocol {
                    Protocol::Udp => {}
                    protocol if protocol.is_http() => {
                        let planned = self.any(port.number);
                        planned.http_routes = Some(names::outbound_route(port.number));
                        planned.grpc_web |= protocol == Protocol::GrpcWeb;
                    }
                    Protocol::Auto => {
                        self.sniffed(scope, egress, service, port.number, built, findings)
                    }
                    protocol if protocol.is_tls() => self.tls(scope, egress, service, port.number),
                    _ => self.tcp(scope, egress, service, port.number),
                }
            }
        }
        for ((_, port), planned) in &self.listeners {
            let Some(name) = &planned.http_routes else { continue };
            // Names with a host were made with their listener.
            if *name == names::outbound_route(*port) && built.routes.iter().all(|r| r.name != *name)
            {
                let reach = Reach::Port(*port);
                built.routes.push(vhost::outbound(scope, egress, name, reach, unknown, findings));
            }
        }
    }

    fn any(&mut self, port: u16) -> &mut Planned {
        self.listeners.entry((None, port)).or_default()
    }

    fn at(&mut self, address: Option<IpAddr>, port: u16) -> &mut Planned {
        self.listeners.entry((address, port)).or_default()
    }

    /// HTTP or bytes, found out per connection. With an address of its own the service gets its
    /// own routes; without one it shares the port's.
    fn sniffed<'a>(
        &mut self,
        scope: &Scope<'a>,
        egress: &Egress<'a>,
        service: &'a MeshService,
        port: u16,
        built: &mut Built,
        findings: &mut Findings,
    ) {
        let addresses = scope.addresses(service);
        if addresses.is_empty() {
            let planned = self.any(port);
            planned.http_routes = Some(names::outbound_route(port));
            planned.sniffed = true;
            return;
        }
        let name = format!("{}:{port}", service.host);
        let reach = Reach::Service(service, port);
        let unknown = Unknown::of_captured(scope);
        if built.routes.iter().all(|routes| routes.name != name) {
            built.routes.push(vhost::outbound(scope, egress, &name, reach, unknown, findings));
        }
        let bytes = tcp_chains(scope, egress, service, port).pop();
        for address in addresses {
            let planned = self.at(Some(address), port);
            planned.http_routes = Some(name.clone());
            planned.sniffed = true;
            planned.bytes = bytes.clone();
        }
    }

    fn tls<'a>(
        &mut self,
        scope: &Scope<'a>,
        egress: &Egress<'a>,
        service: &'a MeshService,
        port: u16,
    ) {
        let mut by_rule = api::mesh_tls(scope, &service.host, port);
        if by_rule.is_empty()
            && let Some(rules) = egress.virtual_service(scope, &service.host)
        {
            by_rule = bytes::tls_rules(scope, rules, &bytes::in_mesh(port));
        }
        let default = bytes::tls_to_service(scope, &service.host, port);
        for address in addresses(scope, service) {
            let planned = self.at(address, port);
            for chain in &by_rule {
                let matching = chain.filter_chain_match.clone().unwrap_or_default();
                bytes::push_all(&mut planned.told_apart, matching, chain.filters.clone());
            }
            planned.inspection.tls |= !by_rule.is_empty() || address.is_none();
            if address.is_some() {
                let chain = FilterChain { filters: default.clone(), ..Default::default() };
                planned.bytes.get_or_insert(chain);
            } else {
                let matching = FilterChainMatch {
                    server_names: vhost::names_of(&service.host, &scope.view.namespace),
                    ..Default::default()
                };
                bytes::push_all(&mut planned.told_apart, matching, default.clone());
            }
        }
    }

    fn tcp<'a>(
        &mut self,
        scope: &Scope<'a>,
        egress: &Egress<'a>,
        service: &'a MeshService,
        port: u16,
    ) {
        let mut chains = tcp_chains(scope, egress, service, port);
        let Some(last) = chains.pop() else { return };
        for address in addresses(scope, service) {
            let planned = self.at(address, port);
            for chain in &chains {
                let matching = chain.filter_chain_match.clone().unwrap_or_default();
                bytes::push_all(&mut planned.told_apart, matching, chain.filters.clone());
            }
            if service.cidrs.is_empty() {
                planned.bytes.get_or_insert(last.clone());
                continue;
            }
            let matching = FilterChainMatch {
                prefix_ranges: service
                    .cidrs
                    .iter()
                    .map(|c| cidr(c.address, c.prefix_len))
                    .collect(),
                ..Default::default()
            };
            bytes::push_all(&mut planned.told_apart, matching, last.filters.clone());
        }
    }

    fn finish(self, scope: &Scope<'_>, built: &mut Built) {
        for ((address, port), planned) in self.listeners {
            let bind = address.map_or_else(|| any_address(scope).to_owned(), |ip| ip.to_string());
            let name = format!("{bind}_{port}");
            let address = socket_address(&bind, port);
            let mut built_listener = listener(name.clone(), address, TrafficDirection::Outbound);
            built_listener.bind_to_port = boolean(false);
            planned.fill(scope, &name, &mut built_listener);
            built.listeners.push(built_listener);
        }
    }
}

impl Planned {
    fn fill(mut self, scope: &Scope<'_>, name: &str, listener: &mut Listener) {
        listener.filter_chains = self.told_apart;
        if let Some(routes) = &self.http_routes {
            let mut chain = outbound_http(scope, format!("outbound_{name}"), routes, self.grpc_web);
            // Declared HTTP alone takes all plaintext; beside anything else it must look like it.
            if self.sniffed || self.bytes.is_some() || !listener.filter_chains.is_empty() {
                self.inspection.add(Inspection { tls: true, http: true, ..Default::default() });
                chain.filter_chain_match = Some(FilterChainMatch {
                    transport_protocol: "raw_buffer".to_owned(),
                    application_protocols: PLAIN_HTTP.map(str::to_owned).to_vec(),
                    ..Default::default()
                });
            }
            listener.filter_chains.push(chain);
        }
        let all_http =
            listener.filter_chains.iter().any(|chain| chain.filter_chain_match.is_none());
        if !all_http {
            let unknown = || {
                to_cluster(
                    (scope, Side::Outbound),
                    "PassthroughFilterChain",
                    &unknown_cluster(scope),
                    None,
                )
            };
            listener.default_filter_chain = Some(self.bytes.unwrap_or_else(unknown));
        }
        self.inspection.apply(scope, listener);
    }
}

/// Virtual addresses; a headless service is met at its endpoints' addresses. `None`: any.
fn addresses<'a>(scope: &Scope<'a>, service: &'a MeshService) -> Vec<Option<IpAddr>> {
    let own: Vec<_> = scope.addresses(service).into_iter().map(Some).collect();
    if !own.is_empty() {
        return own;
    }
    let endpoints: Vec<_> = match (service.headless, service.resolution) {
        (true, Resolution::Static) => {
            let ips = service.endpoints.iter().filter(|endpoint| endpoint.healthy);
            ips.filter_map(|endpoint| endpoint.address.ip()).map(Some).collect()
        }
        _ => Vec::new(),
    };
    if endpoints.is_empty() { vec![None] } else { endpoints }
}

/// VirtualService rules by address, and last the chain for everything.
fn tcp_chains<'a>(
    scope: &Scope<'a>,
    egress: &Egress<'a>,
    service: &MeshService,
    port: u16,
) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    if let Some(filter) = api::mesh_bytes(scope, &service.host, port) {
        bytes::push(&mut chains, FilterChainMatch::default(), filter);
        return chains;
    }
    if let Some(rules) = egress.virtual_service(scope, &service.host) {
        chains = bytes::tcp_rules(scope, rules, &bytes::in_mesh(port));
    }
    let default = bytes::to_service(scope, &service.host, port);
    bytes::push(&mut chains, FilterChainMatch::default(), default);
    chains
}
