//! What HTTP servers of a gateway answer: VirtualServices bound to them, by host.

use std::collections::BTreeMap;

use weft_model::gateway_api::{Route, ServedListener};
use weft_model::spec::VirtualService;
use weft_model::{Resource, host_matches};
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;

use super::gateway::Entry;
use crate::findings::Findings;
use crate::route::{Place, api, matching, of_virtual_service, vhost};
use crate::scope::Scope;

/// One host of a route configuration while it is put together.
#[derive(Debug, Default)]
struct Host {
    routes: Vec<route::Route>,
    https_only: bool,
}

/// The route configuration that all `entries` share.
pub(crate) fn configuration(
    scope: &Scope<'_>,
    name: &str,
    entries: &[Entry<'_>],
    findings: &mut Findings,
) -> route::RouteConfiguration {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for entry in entries {
        match entry.api {
            Some(listener) => add_listener(scope, entry, listener, entries, &mut hosts),
            None => add_server(scope, entry, &mut hosts, findings),
        }
    }
    let port = entries.first().map_or(0, |entry| entry.port);
    let mut virtual_hosts: Vec<_> =
        hosts.into_iter().map(|(name, host)| virtual_host(&name, host, port)).collect();
    if virtual_hosts.is_empty() {
        // Nothing is bound: Envoy answers 404 for a host without routes.
        virtual_hosts.push(route::VirtualHost {
            name: format!("blackhole:{port}"),
            domains: vec!["*".to_owned()],
            ..Default::default()
        });
    }
    route::RouteConfiguration {
        // Clients may address the gateway under a port of a load balancer before it.
        ignore_port_in_host_matching: true,
        ..vhost::configuration(name, virtual_hosts)
    }
}

fn add_server(
    scope: &Scope<'_>,
    entry: &Entry<'_>,
    hosts: &mut BTreeMap<String, Host>,
    findings: &mut Findings,
) {
    let gateway = entry.gateway_name();
    let place = Place { gateway: &gateway, port: entry.port };
    let https_only = entry.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
    for rules in scope.snapshot.virtual_services(&gateway, &scope.view.namespace) {
        let shared = shared_hosts(entry, rules);
        if shared.is_empty() || rules.spec.http.is_empty() {
            continue;
        }
        let routes = of_virtual_service(scope, rules, &place, findings);
        for name in shared {
            let host = hosts.entry(name).or_default();
            host.routes.extend(routes.iter().cloned());
            host.https_only |= https_only;
        }
    }
    // The redirect does not wait for somebody to bind the host.
    if https_only {
        for name in &entry.server.hosts {
            hosts.entry(host_part(name).to_ascii_lowercase()).or_default().https_only = true;
        }
    }
}

/// A listener of the Gateway API: its routes by host. Hosts that another listener of the port
/// names more exactly are that one's alone, even those it has no route for.
fn add_listener(
    scope: &Scope<'_>,
    entry: &Entry<'_>,
    listener: &ServedListener,
    entries: &[Entry<'_>],
    hosts: &mut BTreeMap<String, Host>,
) {
    let own = listener.hostname();
    let is_another = |host: &str| {
        let others = entries.iter().filter_map(|other| other.api).map(ServedListener::hostname);
        others
            .into_iter()
            .any(|other| other != own && host_matches(own, other) && host_matches(other, host))
    };
    let mut by_host: BTreeMap<&str, Vec<&Route>> = BTreeMap::new();
    by_host.insert(own, Vec::new());
    for attached in &listener.routes {
        for host in attached.hostnames.iter().filter(|host| !is_another(host)) {
            by_host.entry(host).or_default().push(&attached.route);
        }
    }
    let gateway = entry.gateway_name();
    let place = Place { gateway: &gateway, port: entry.port };
    for (host, routes) in by_host {
        let built = api::routes(scope, &routes, &place, listener.terminates());
        hosts.entry(host.to_ascii_lowercase()).or_default().routes.extend(built);
    }
}

fn virtual_host(name: &str, host: Host, port: u16) -> route::VirtualHost {
    let tls = if host.https_only { TlsRequirementType::All } else { TlsRequirementType::None };
    route::VirtualHost {
        name: format!("{name}:{port}"),
        domains: vec![name.to_owned()],
        routes: in_order(host.routes),
        require_tls: tls as i32,
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// Several VirtualServices may share a host: their routes follow one another, the oldest first,
/// but a route for everything comes last, and only the first such.
fn in_order(routes: Vec<route::Route>) -> Vec<route::Route> {
    let takes_all =
        |route: &route::Route| route.r#match.as_ref().is_some_and(matching::is_everything);
    let (everything, mut ordered): (Vec<_>, Vec<_>) = routes.into_iter().partition(takes_all);
    ordered.extend(everything.into_iter().next());
    ordered
}

/// `host` of `namespace/host`.
pub(crate) fn host_part(pattern: &str) -> &str {
    pattern.split_once('/').map_or(pattern, |(_, host)| host)
}

/// Hosts that a server serves and a VirtualService speaks for: of each overlapping pair the
/// narrower one; in order, each once.
pub(crate) fn shared_hosts(entry: &Entry<'_>, rules: &Resource<VirtualService>) -> Vec<String> {
    let mut shared = Vec::new();
    for pattern in &entry.server.hosts {
        let (namespace, server_host) = pattern.split_once('/').unwrap_or(("*", pattern));
        let namespace = if namespace == "." { &*entry.gateway.meta.namespace } else { namespace };
        if namespace != "*" && namespace != &*rules.meta.namespace {
            continue;
        }
        let server_host = server_host.to_ascii_lowercase();
        for host in &rules.spec.hosts {
            let narrower = if host_matches(&server_host, host) {
                host.clone()
            } else if host_matches(host, &server_host) {
                server_host.clone()
            } else {
                continue;
            };
            if !shared.contains(&narrower) {
                shared.push(narrower);
            }
        }
    }
    shared
}
