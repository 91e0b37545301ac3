//! TCP and TLS routes: VirtualService `tcp` and `tls` rules → filter chains and TCP proxies.

use weft_model::spec::{
    L4MatchAttributes, RouteDestination, TlsMatchAttributes, TunnelSettings, VirtualService,
};
use weft_model::{Cidr, MESH_GATEWAY, Resolution, Resource};
use weft_xds::names;
use weft_xds::pb::envoy::config::core::v3::CidrRange;
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::TunnelingConfig;

use crate::build::cidr;
use crate::build::dynamic::sni_filter;
use crate::build::hcm::Side;
use crate::build::tcp::{Tcp, tcp};
use crate::policy;
use crate::route::{Place, source_matches};
use crate::scope::Scope;
use crate::telemetry::access_logs;

/// Chains for the TCP rules that apply here, in order. A rule without destination conditions
/// ends them: it takes everything.
pub(crate) fn tcp_rules(
    scope: &Scope<'_>,
    rules: &Resource<VirtualService>,
    place: &Place<'_>,
) -> Vec<listener::FilterChain> {
    let mut chains = Vec::new();
    for rule in &rules.spec.tcp {
        let always = [L4MatchAttributes::default()];
        let alternatives = if rule.matches.is_empty() { &always[..] } else { &rule.matches };
        for conditions in alternatives {
            let applies = at(place, &conditions.gateways, conditions.port)
                && source_matches(
                    scope,
                    place,
                    &conditions.source_labels,
                    &conditions.source_namespace,
                );
            if !applies {
                continue;
            }
            let prefix_ranges = ranges(&conditions.destination_subnets);
            let everything = prefix_ranges.is_empty();
            let matching = listener::FilterChainMatch { prefix_ranges, ..Default::default() };
            if let Some(filter) = split(scope, &rule.route, place.port) {
                push(&mut chains, matching, filter);
            }
            if everything {
                return chains;
            }
        }
    }
    chains
}

/// Chains for the TLS rules that apply here: by SNI, bytes passed on untouched.
pub(crate) fn tls_rules(
    scope: &Scope<'_>,
    rules: &Resource<VirtualService>,
    place: &Place<'_>,
) -> Vec<listener::FilterChain> {
    let mut chains = Vec::new();
    for rule in &rules.spec.tls {
        for conditions in &rule.matches {
            let TlsMatchAttributes { sni_hosts, destination_subnets, .. } = conditions;
            let applies = at(place, &conditions.gateways, conditions.port)
                && source_matches(
                    scope,
                    place,
                    &conditions.source_labels,
                    &conditions.source_namespace,
                );
            if !applies {
                continue;
            }
            let matching = listener::FilterChainMatch {
                prefix_ranges: ranges(destination_subnets),
                server_names: server_names(sni_hosts),
                ..Default::default()
            };
            if let Some(filter) = split(scope, &rule.route, place.port) {
                let first = rule.route.first().map(|route| &route.destination);
                let resolved = first.and_then(|to| {
                    sni_lookup(scope, &to.host, scope.destination_port(to, place.port))
                });
                push_all(&mut chains, matching, resolved.into_iter().chain([filter]).collect());
            }
        }
    }
    chains
}

/// What resolves the name in the SNI, for a service that leaves it to that.
fn sni_lookup(scope: &Scope<'_>, host: &str, port: u16) -> Option<listener::Filter> {
    let service = scope.service(host)?;
    (service.resolution == Resolution::DynamicDns)
        .then(|| sni_filter(scope.lookup_family() as i32, port))
}

/// TLS passed on to one port of a service.
pub(crate) fn tls_to_service(scope: &Scope<'_>, host: &str, port: u16) -> Vec<listener::Filter> {
    sni_lookup(scope, host, port).into_iter().chain([to_service(scope, host, port)]).collect()
}

/// Adds a chain, as far as no earlier one takes what it matches: the first rule wins, and Envoy
/// refuses a listener with overlapping matches.
pub(crate) fn push(
    chains: &mut Vec<listener::FilterChain>,
    matching: listener::FilterChainMatch,
    filter: listener::Filter,
) {
    push_all(chains, matching, vec![filter]);
}

/// As [`push`], of a chain with several filters.
pub(crate) fn push_all(
    chains: &mut Vec<listener::FilterChain>,
    matching: listener::FilterChainMatch,
    filters: Vec<listener::Filter>,
) {
    if is_free(chains, &matching) {
        return chains.push(chain(matching, filters));
    }
    // What is left of it, by single names and ranges.
    for server_names in singles(&matching.server_names) {
        for prefix_ranges in singles(&matching.prefix_ranges) {
            let server_names = server_names.clone();
            let one =
                listener::FilterChainMatch { server_names, prefix_ranges, ..matching.clone() };
            if is_free(chains, &one) {
                chains.push(chain(one, filters.clone()));
            }
        }
    }
}

fn chain(
    matching: listener::FilterChainMatch,
    filters: Vec<listener::Filter>,
) -> listener::FilterChain {
    let filter_chain_match = (matching != Default::default()).then_some(matching);
    listener::FilterChain { filter_chain_match, filters, ..Default::default() }
}

fn is_free(chains: &[listener::FilterChain], matching: &listener::FilterChainMatch) -> bool {
    let default = listener::FilterChainMatch::default();
    chains.iter().all(|chain| {
        let taken = chain.filter_chain_match.as_ref().unwrap_or(&default);
        !overlap(taken, matching)
    })
}

/// As Envoy sees it: an entry in common in each list, or none in both, and the rest equal.
fn overlap(a: &listener::FilterChainMatch, b: &listener::FilterChainMatch) -> bool {
    let rest = |one: &listener::FilterChainMatch| listener::FilterChainMatch {
        server_names: Vec::new(),
        prefix_ranges: Vec::new(),
        application_protocols: Vec::new(),
        ..one.clone()
    };
    meet(&a.server_names, &b.server_names)
        && meet(&a.prefix_ranges, &b.prefix_ranges)
        && meet(&a.application_protocols, &b.application_protocols)
        && rest(a) == rest(b)
}

fn meet<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    (a.is_empty() && b.is_empty()) || a.iter().any(|one| b.contains(one))
}

/// Lists of one each; of an empty list itself.
fn singles<T: Clone>(all: &[T]) -> Vec<Vec<T>> {
    match all {
        [] => vec![Vec::new()],
        all => all.iter().map(|one| vec![one.clone()]).collect(),
    }
}

/// SNI names in Envoy's spelling; empty: any.
pub(crate) fn server_names(hosts: &[String]) -> Vec<String> {
    if hosts.iter().any(|host| host == "*") {
        return Vec::new();
    }
    hosts.iter().map(|host| host.to_ascii_lowercase()).collect()
}

fn at(place: &Place<'_>, gateways: &[String], port: Option<u32>) -> bool {
    let gateway = gateways.is_empty() || gateways.iter().any(|name| name == place.gateway);
    gateway && port.is_none_or(|port| port == u32::from(place.port))
}

fn ranges(subnets: &[String]) -> Vec<CidrRange> {
    let parsed = subnets.iter().filter_map(|subnet| Cidr::parse(subnet));
    parsed.map(|range| cidr(range.address, range.prefix_len)).collect()
}

/// A TCP proxy over weighted destinations; `None` when all weights are zero.
pub(crate) fn split(
    scope: &Scope<'_>,
    destinations: &[RouteDestination],
    port: u16,
) -> Option<listener::Filter> {
    let only = destinations.len() == 1;
    let clusters: Vec<(String, u32)> = destinations
        .iter()
        .filter_map(|target| {
            let weight = if only { 1 } else { u32::try_from(target.weight).unwrap_or(0) };
            (weight > 0).then(|| (scope.destination_cluster(&target.destination, port), weight))
        })
        .collect();
    let first = &destinations.first()?.destination;
    let target_port = scope.destination_port(first, port);
    // Of several destinations no subset's tunnel counts, as in Istio: it is the listener's.
    let subset = if only { first.subset.as_str() } else { "" };
    (!clusters.is_empty()).then(|| {
        let policy = (first.host.as_str(), first.subset.as_str(), target_port);
        proxy(scope, clusters, policy, subset)
    })
}

/// A TCP proxy to one port of a service.
pub(crate) fn to_service(scope: &Scope<'_>, host: &str, port: u16) -> listener::Filter {
    let cluster = names::outbound_cluster(port, "", host);
    proxy(scope, vec![(cluster, 1)], (host, "", port), "")
}

/// The connection's own settings are those of the (first) destination's rule: its host, subset and
/// port; `tunnel_of` is the subset whose tunnel is taken.
fn proxy(
    scope: &Scope<'_>,
    clusters: Vec<(String, u32)>,
    (host, subset, port): (&str, &str, u16),
    tunnel_of: &str,
) -> listener::Filter {
    let rule = scope.rule(host).map(|rule| &rule.spec);
    let policy = policy::policy(rule, policy::subset(rule, subset), port);
    let pool = policy.connection_pool.and_then(|pool| pool.tcp.as_ref());
    let hash = policy.load_balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
    tcp(Tcp {
        stat_prefix: clusters.first().map(|(name, _)| name.clone()).unwrap_or_default(),
        clusters,
        idle_timeout: pool.and_then(|pool| pool.idle_timeout),
        duration_max: pool.and_then(|pool| pool.max_connection_duration),
        hash_source_ip: hash.is_some_and(|hash| hash.use_source_ip == Some(true)),
        tunnel: policy::tunnel(rule, tunnel_of).map(tunnel),
        access_log: access_logs(scope, Side::Outbound),
    })
}

/// The destination is an HTTP proxy on the way to the target.
fn tunnel(settings: &TunnelSettings) -> TunnelingConfig {
    let TunnelSettings { protocol, target_host, target_port } = settings;
    let hostname = match target_host.contains(':') {
        true => format!("[{target_host}]:{target_port}"),
        false => format!("{target_host}:{target_port}"),
    };
    TunnelingConfig { hostname, use_post: protocol == "POST", ..Default::default() }
}

/// The mesh's place on a port.
pub(crate) fn in_mesh(port: u16) -> Place<'static> {
    Place { gateway: MESH_GATEWAY, port }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(names: &[&str], ranges: &[(u8, u8)]) -> listener::FilterChainMatch {
        listener::FilterChainMatch {
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            prefix_ranges: ranges
                .iter()
                .map(|(net, len)| cidr([*net, 0, 0, 0].into(), *len))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_first_chain_keeps_what_it_matches() {
        let mut chains = Vec::new();
        push_all(&mut chains, matching(&["a", "b"], &[]), Vec::new());
        push_all(&mut chains, matching(&["b", "c"], &[]), Vec::new());
        push_all(&mut chains, matching(&["a", "c"], &[]), Vec::new());
        push_all(&mut chains, matching(&["a", "c"], &[(10, 8)]), Vec::new());
        push_all(&mut chains, matching(&["a"], &[(10, 8), (11, 8)]), Vec::new());
        push_all(&mut chains, matching(&[], &[]), Vec::new());
        push_all(&mut chains, matching(&[], &[]), Vec::new());
        let left: Vec<_> =
            chains.into_iter().map(|chain| chain.filter_chain_match.unwrap_or_default()).collect();
        let expect = [
            matching(&["a", "b"], &[]),
            matching(&["c"], &[]),
            matching(&["a", "c"], &[(10, 8)]),
            matching(&["a"], &[(11, 8)]),
            matching(&[], &[]),
        ];
        assert_eq!(left, expect);
    }
}
