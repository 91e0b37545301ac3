//! Sidecars without capture: every listener of the Sidecar resource binds its own port.
//!
//! `ingress` listeners are where peers reach the workload, `egress` listeners where the
//! application reaches others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::spec::{EgressListener, Sidecar};
use weft_model::{Kind, MeshService, Protocol, Resource};
use weft_xds::names;
use weft_xds::pb::envoy::config::core::v3::{Address, TrafficDirection};
use weft_xds::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};

use super::{Built, Inspection, bytes, inbound, inbound_port, listener, outbound_http};
use crate::build::{pipe_address, socket_address};
use crate::findings::{Findings, LISTENER_CONFLICT};
use crate::ports;
use crate::route::api;
use crate::route::vhost::{self, Reach, Unknown};
use crate::scope::{Egress, Scope};
use crate::view::{Flavor, Interception};

/// What Envoy's HTTP inspector reports for plaintext HTTP.
pub(super) const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

pub(super) fn ingress(scope: &Scope<'_>, built: &mut Built, findings: &mut Findings) {
    let Some(sidecar) = scope.sidecar else { return };
    let hidden = egress_paths(scope);
    for port in ports::of_workload(scope) {
        let Some((index, declared)) = port.ingress else { continue };
        let inbound = inbound_port(scope, &port, findings);
        if !scope.binds(declared.capture_mode) {
            continue;
        }
        let own_address = scope.view.primary_address().to_string();
        let bind = if declared.bind.is_empty() { &own_address } else { &declared.bind };
        let (name, address) = address(bind, port.port);
        let mut built_listener = listener(name, address, TrafficDirection::Inbound);
        built_listener.filter_chains = inbound::chains(scope, &inbound, false);
        Inspection::of_inbound(&inbound).apply(scope, &mut built_listener);
        let path = format!("spec.ingress[{index}]");
        if let Some(egress) = hidden.get(&built_listener.name) {
            conflict(sidecar, egress, findings);
        }
        add(scope, sidecar, built, built_listener, &path, findings);
    }
}

/// Names of the listeners that [`egress`] makes, with their fields. An ingress listener of the same
/// address takes their place.
fn egress_paths(scope: &Scope<'_>) -> BTreeMap<String, String> {
    let listeners = scope.egress();
    let bound = listeners.iter().enumerate().filter_map(|(index, egress)| {
        let declared = egress.declared.filter(|declared| scope.binds(declared.capture_mode))?;
        let name = address(egress_bind(declared), egress.port()?).0;
        Some((name, format!("spec.egress[{index}]")))
    });
    bound.collect()
}

fn egress_bind(declared: &EgressListener) -> &str {
    match declared.bind.as_str() {
        "" => "127.0.0.1",
        bind => bind,
    }
}

pub(super) fn egress(scope: &Scope<'_>, built: &mut Built, findings: &mut Findings) {
    let Some(sidecar) = scope.sidecar else { return };
    let mut route_names = BTreeSet::new();
    for (index, egress) in scope.egress().iter().enumerate() {
        let Some(declared) = egress.declared else { continue };
        let path = format!("spec.egress[{index}]");
        if !scope.binds(declared.capture_mode) {
            continue;
        }
        let Some(port) = egress.port() else {
            if scope.view.interception == Interception::None {
                let message = "an egress listener without a port needs captured traffic";
                let code = crate::findings::NOT_IMPLEMENTED;
                findings.add(Kind::Sidecar, &sidecar.meta, code, &format!("{path}.port"), message);
            }
            continue;
        };
        let (name, address) = address(egress_bind(declared), port);
        // One port may be bound at several addresses, each importing other hosts.
        let mut routes = names::outbound_route(port);
        if !route_names.insert(routes.clone()) {
            routes = name.clone();
        }
        let mut built_listener = listener(name, address, TrafficDirection::Outbound);
        fill(scope, egress, port, &routes, &mut built_listener, built, findings);
        if built_listener.filter_chains.is_empty() && built_listener.default_filter_chain.is_none()
        {
            let message = "no imported service fits this listener; it is left out";
            findings.add(Kind::Sidecar, &sidecar.meta, LISTENER_CONFLICT, &path, message);
            continue;
        }
        add(scope, sidecar, built, built_listener, &path, findings);
    }
}

fn fill<'a>(
    scope: &Scope<'a>,
    egress: &Egress<'a>,
    port: u16,
    routes: &str,
    listener: &mut Listener,
    built: &mut Built,
    findings: &mut Findings,
) {
    let protocol = egress.protocol();
    let http = protocol.is_http() || protocol == Protocol::Auto;
    if http {
        let reach = reach(scope, egress, port);
        let unknown = Unknown::of_bound(scope);
        built.routes.push(vhost::outbound(scope, egress, routes, reach, unknown, findings));
    }
    let grpc_web = protocol == Protocol::GrpcWeb;
    let http_chain =
        || outbound_http(scope, format!("outbound_{}", listener.name), routes, grpc_web);
    match protocol {
        Protocol::Auto => {
            let mut chain = http_chain();
            chain.filter_chain_match = Some(FilterChainMatch {
                application_protocols: PLAIN_HTTP.map(str::to_owned).to_vec(),
                ..Default::default()
            });
            let bytes = tcp_chains(scope, egress, port);
            listener.default_filter_chain = bytes.into_iter().last();
            listener.filter_chains = vec![chain];
            Inspection { http: true, tls: true, ..Default::default() }.apply(scope, listener);
        }
        protocol if protocol.is_http() => listener.filter_chains = vec![http_chain()],
        protocol if protocol.is_tls() => {
            listener.filter_chains = sni_chains(scope, egress, port);
            Inspection { tls: true, ..Default::default() }.apply(scope, listener);
        }
        _ => listener.filter_chains = tcp_chains(scope, egress, port),
    }
}

/// An HTTP listener leads to the services with its port; when there are none, or when it is
/// declared as a forward proxy, to all.
fn reach<'a>(scope: &Scope<'a>, egress: &Egress<'a>, port: u16) -> Reach<'a> {
    let has_port = |service: &&Arc<MeshService>| service.port(port).is_some_and(vhost::speaks_http);
    if egress.is_forward_proxy() || !egress.services(scope).iter().any(has_port) {
        Reach::EveryPort
    } else {
        Reach::Port(port)
    }
}

/// The service's port that a listener on `port` means: the same, else its only one.
fn service_port(service: &MeshService, port: u16) -> Option<u16> {
    match service.ports.as_slice() {
        _ if service.port(port).is_some() => Some(port),
        [only] => Some(only.number),
        _ => None,
    }
}

/// Bytes: VirtualService rules of the first imported service that has the port, else of the first
/// whose only port it can mean; and that service.
fn tcp_chains<'a>(scope: &Scope<'a>, egress: &Egress<'a>, port: u16) -> Vec<FilterChain> {
    let imported = egress.services(scope);
    let fits = |service: &Arc<MeshService>, target: u16| {
        service.port(target).is_some_and(|port| port.protocol != Protocol::Udp)
    };
    let exact = imported.iter().find(|service| fits(service, port)).map(|service| (service, port));
    let fitting = exact.or_else(|| {
        imported.iter().find_map(|service| {
            let target = service_port(service, port)?;
            fits(service, target).then_some((service, target))
        })
    });
    let Some((service, target)) = fitting else { return Vec::new() };
    let mut chains = Vec::new();
    if let Some(filter) = api::mesh_bytes(scope, &service.host, target) {
        bytes::push(&mut chains, FilterChainMatch::default(), filter);
        return chains;
    }
    let rules = egress.virtual_service(scope, &service.host);
    chains.extend(
        rules
            .map(|rules| bytes::tcp_rules(scope, rules, &bytes::in_mesh(port)))
            .unwrap_or_default(),
    );
    let filter = bytes::to_service(scope, &service.host, target);
    bytes::push(&mut chains, FilterChainMatch::default(), filter);
    chains
}

/// TLS passed on by SNI: VirtualService rules first, then each imported service by its host.
fn sni_chains<'a>(scope: &Scope<'a>, egress: &Egress<'a>, port: u16) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for service in egress.services(scope) {
        let Some(target) = service_port(service, port) else { continue };
        if !service.port(target).is_some_and(|port| port.protocol.is_tcp()) {
            continue;
        }
        let mut by_rule = api::mesh_tls(scope, &service.host, target);
        if by_rule.is_empty()
            && let Some(rules) = egress.virtual_service(scope, &service.host)
        {
            by_rule = bytes::tls_rules(scope, rules, &bytes::in_mesh(port));
        }
        for chain in by_rule {
            let matching = chain.filter_chain_match.unwrap_or_default();
            bytes::push_all(&mut chains, matching, chain.filters);
        }
        let matching = FilterChainMatch {
            server_names: vhost::names_of(&service.host, &scope.view.namespace),
            ..Default::default()
        };
        let filters = bytes::tls_to_service(scope, &service.host, target);
        bytes::push_all(&mut chains, matching, filters);
    }
    chains
}

/// Listener name and address of a `bind` (an IP or `unix://PATH`).
fn address(bind: &str, port: u16) -> (String, Address) {
    match bind.strip_prefix("unix://") {
        Some(path) => (bind.to_owned(), pipe_address(path)),
        None => (format!("{bind}_{port}"), socket_address(bind, port)),
    }
}

/// Two listeners cannot share an address: the first one stays.
fn add(
    scope: &Scope<'_>,
    sidecar: &Resource<Sidecar>,
    built: &mut Built,
    listener: Listener,
    path: &str,
    findings: &mut Findings,
) {
    let is_pipe = listener.name.starts_with("unix://");
    if is_pipe && scope.view.flavor == Flavor::Weft {
        findings.not_implemented(Kind::Sidecar, &sidecar.meta, &format!("{path}.bind"));
        return;
    }
    if built.listeners.iter().any(|other| other.address == listener.address) {
        return conflict(sidecar, path, findings);
    }
    built.listeners.push(listener);
}

fn conflict(sidecar: &Resource<Sidecar>, path: &str, findings: &mut Findings) {
    let message = "another listener has this address and port; this one is left out";
    findings.add(Kind::Sidecar, &sidecar.meta, LISTENER_CONFLICT, path, message);
}
