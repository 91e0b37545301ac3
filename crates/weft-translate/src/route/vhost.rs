//! Route configurations of sidecars: one virtual host for each service, by all its names.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use weft_model::spec::{OutboundMode, VirtualService};
use weft_model::{CLUSTER_DOMAIN, MESH_GATEWAY, MeshService, Protocol, Resource, ServicePort};
use weft_xds::names;
use weft_xds::pb::envoy::config::route::v3 as route;

use super::{Place, api, default_route, matching, of_virtual_service};
use crate::build::{boolean, duration, uint32};
use crate::findings::Findings;
use crate::scope::{Egress, Scope};

/// Largest body of a direct response; Envoy's own limit is 4 KiB, Istio's 1 MiB.
const DIRECT_BODY_BYTES_MAX: u32 = 1024 * 1024;

/// Which services an HTTP listener leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reach<'a> {
    /// Those that have this port.
    Port(u16),
    /// All, on all their HTTP ports: `host:port` says which.
    EveryPort,
    /// One service's one port.
    Service(&'a MeshService, u16),
}

/// What happens to requests for hosts nobody declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// To the address the client wanted, or to the egress proxy.
    PassThrough,
    /// To the host that the request names.
    Resolve,
    /// 502.
    Block,
}

/// Istio's name for the way to hosts that only requests name: of the route configuration, the
/// virtual host and the route.
pub(crate) const DYNAMIC: &str = "allow_any_dynamic_dns";

impl Unknown {
    /// Of captured traffic. Without capture there is no address to pass on to.
    pub(crate) fn of_captured(scope: &Scope<'_>) -> Self {
        match scope.outbound_mode() {
            OutboundMode::RegistryOnly => Unknown::Block,
            OutboundMode::AllowAnyDynamicDns => Unknown::Resolve,
            OutboundMode::AllowAny => Unknown::PassThrough,
        }
    }

    /// Of listeners that the application addresses itself.
    pub(crate) fn of_bound(scope: &Scope<'_>) -> Self {
        match scope.outbound_mode() {
            OutboundMode::AllowAnyDynamicDns => Unknown::Resolve,
            OutboundMode::RegistryOnly | OutboundMode::AllowAny => Unknown::Block,
        }
    }
}

/// The route configuration of an outbound listener.
pub(crate) fn outbound<'a>(
    scope: &Scope<'a>,
    egress: &Egress<'a>,
    name: &str,
    reach: Reach<'a>,
    unknown: Unknown,
    findings: &mut Findings,
) -> route::RouteConfiguration {
    let mut hosts = Hosts { taken: HashSet::new(), built: Vec::new() };
    match reach {
        Reach::Service(service, port) => {
            hosts.service(scope, egress, service, port, Spelling::Both, findings);
        }
        Reach::Port(port) => {
            for service in egress.services(scope) {
                if service.port(port).is_some_and(speaks_http) {
                    hosts.service(scope, egress, service, port, Spelling::Both, findings);
                }
            }
            hosts.without_service(scope, egress, port, Spelling::Both, findings);
        }
        Reach::EveryPort => {
            for service in egress.services(scope) {
                let default_port = port_without_number(service);
                for port in service.ports.iter().filter(|port| speaks_http(port)) {
                    let spelling = match default_port == Some(port.number) {
                        true => Spelling::Both,
                        false => Spelling::WithPort,
                    };
                    hosts.service(scope, egress, service, port.number, spelling, findings);
                }
            }
            hosts.without_service(scope, egress, 80, Spelling::Both, findings);
        }
    }
    hosts.built.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.built.push(everybody_else(scope, unknown));
    configuration(name, hosts.built)
}

/// Routes of traffic to addresses nobody declared, where requests say which host they mean.
pub(crate) fn dynamic(scope: &Scope<'_>) -> route::RouteConfiguration {
    configuration(DYNAMIC, vec![everybody_else(scope, Unknown::Resolve)])
}

/// Istio's settings of every route configuration.
pub(crate) fn configuration(
    name: &str,
    virtual_hosts: Vec<route::VirtualHost>,
) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        // A route may come before its cluster, or name a subset that does not exist.
        validate_clusters: boolean(false),
        max_direct_response_body_size_bytes: uint32(DIRECT_BODY_BYTES_MAX),
        ..Default::default()
    }
}

/// HTTP, or perhaps HTTP.
pub(crate) fn speaks_http(port: &ServicePort) -> bool {
    port.protocol.is_http() || port.protocol == Protocol::Auto
}

/// The port a name without one means: 80, else the only HTTP port.
fn port_without_number(service: &MeshService) -> Option<u16> {
    let http: Vec<_> = service.ports.iter().filter(|port| speaks_http(port)).collect();
    match http.as_slice() {
        [only] => Some(only.number),
        several => several.iter().map(|port| port.number).find(|number| *number == 80),
    }
}

/// Under which spellings of `:authority` a virtual host is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// `host` and `host:port`
    Both,
    WithPort,
}

struct Hosts {
    /// A domain may appear once in a route configuration; the first host keeps it.
    taken: HashSet<String>,
    built: Vec<route::VirtualHost>,
}

impl Hosts {
    fn service<'a>(
        &mut self,
        scope: &Scope<'a>,
        egress: &Egress<'a>,
        service: &'a MeshService,
        port: u16,
        spelling: Spelling,
        findings: &mut Findings,
    ) {
        let place = Place { gateway: MESH_GATEWAY, port };
        let attached = scope.snapshot.mesh_routes(&service.host, port, &scope.view.namespace, true);
        let rules = egress.virtual_service(scope, &service.host);
        let mut routes = match (rules, attached.is_empty()) {
            // Gateway API routes speak for the service alone; what they leave is nobody's.
            (_, false) => api::routes(scope, &attached, &place, false),
            (Some(rules), true) => of_virtual_service(scope, rules, &place, findings),
            (None, true) => Vec::new(),
        };
        if routes.is_empty() && attached.is_empty() {
            let cluster = names::outbound_cluster(port, "", &service.host);
            routes = vec![default_route(scope, cluster, &service.host, port)];
        }
        let mut hosts = names_of(&service.host, &scope.view.namespace);
        hosts.extend(scope.addresses(service).into_iter().map(bracketed));
        self.add(&service.host, &hosts, port, spelling, routes);
    }

    /// VirtualServices may name hosts that no service has.
    fn without_service<'a>(
        &mut self,
        scope: &Scope<'a>,
        egress: &Egress<'a>,
        port: u16,
        spelling: Spelling,
        findings: &mut Findings,
    ) {
        let place = Place { gateway: MESH_GATEWAY, port };
        for (host, rules) in egress.virtual_hosts(scope) {
            let rules: &Resource<VirtualService> = rules;
            let routes = of_virtual_service(scope, rules, &place, findings);
            if !routes.is_empty() {
                let names = names_of(host, &scope.view.namespace);
                self.add(host, &names, port, spelling, routes);
            }
        }
    }

    fn add(
        &mut self,
        host: &str,
        hosts: &[String],
        port: u16,
        spelling: Spelling,
        routes: Vec<route::Route>,
    ) {
        let mut domains = Vec::new();
        for name in hosts {
            if spelling == Spelling::Both {
                domains.push(name.clone());
            }
            if name != "*" {
                domains.push(format!("{name}:{port}"));
            }
        }
        domains.retain(|domain| self.taken.insert(domain.clone()));
        if domains.is_empty() {
            return;
        }
        self.built.push(route::VirtualHost {
            name: format!("{host}:{port}"),
            domains,
            routes,
            include_request_attempt_count: true,
            ..Default::default()
        });
    }
}

/// The names a client in `namespace` may use for a host: a Kubernetes service's shorter ones too.
pub(crate) fn names_of(host: &str, namespace: &str) -> Vec<String> {
    let mut all = vec![host.to_owned()];
    let suffix = format!(".svc.{CLUSTER_DOMAIN}");
    if let Some((name, own)) = host.strip_suffix(&suffix).and_then(|start| start.split_once('.')) {
        if own == namespace {
            all.push(name.to_owned());
        }
        all.push(format!("{name}.{own}"));
        all.push(format!("{name}.{own}.svc"));
    }
    all
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The virtual host for everything that has none.
fn everybody_else(scope: &Scope<'_>, unknown: Unknown) -> route::VirtualHost {
    let (name, action) = match unknown {
        Unknown::PassThrough | Unknown::Resolve => {
            let (name, cluster) = match unknown {
                Unknown::Resolve => (DYNAMIC, names::DYNAMIC_DNS_CLUSTER.to_owned()),
                _ => ("allow_any", scope.way_out()),
            };
            let specifier = route::route_action::ClusterSpecifier::Cluster(cluster);
            let forward = route::RouteAction {
                cluster_specifier: Some(specifier),
                timeout: duration(Duration::ZERO),
                ..Default::default()
            };
            (name, route::route::Action::Route(forward))
        }
        Unknown::Block => {
            let answer = route::DirectResponseAction { status: 502, ..Default::default() };
            ("block_all", route::route::Action::DirectResponse(answer))
        }
    };
    let only = route::Route {
        name: name.to_owned(),
        r#match: Some(matching::everything()),
        action: Some(action),
        ..Default::default()
    };
    route::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![only],
        include_request_attempt_count: true,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::names_of;

    #[test]
    fn kubernetes_services_have_short_names() {
        let host = "reviews.shop.svc.cluster.local";
        assert_eq!(
            names_of(host, "shop"),
            [host, "reviews", "reviews.shop", "reviews.shop.svc"].map(str::to_owned)
        );
        assert_eq!(
            names_of(host, "other"),
            [host, "reviews.shop", "reviews.shop.svc"].map(str::to_owned)
        );
        assert_eq!(names_of("*.example.com", "shop"), ["*.example.com".to_owned()]);
    }
}
