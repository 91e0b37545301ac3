//! VirtualService: hosts, gateways, and HTTP, TLS and TCP routes.

use super::http_action::{
    direct_response, headers, http_cors, http_fault, http_mirrors, http_redirect, http_retries,
    http_rewrite,
};
use super::text::{is_dns_name, is_header_name, is_host, is_ip, is_label, is_port, regex_problem};
use super::{Findings, entry, export_to, port_number};
use crate::diagnostic::code;
use crate::names::{MESH_GATEWAY, host_matches};
use crate::snapshot::Cidr;
use crate::spec::{
    Destination, HttpMatchRequest, HttpRoute, StringMatch, TcpRoute, TlsRoute, VirtualService,
};

pub(super) fn check(spec: &VirtualService, findings: &mut Findings<'_>) {
    hosts(spec, findings);
    for (index, gateway) in spec.gateways.iter().enumerate() {
        gateway_name(gateway, format!("spec.gateways[{index}]"), findings);
    }
    export_to(&spec.export_to, findings);
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        findings.error("spec", "at least one of http, tls or tcp is required");
    }
    for (index, route) in spec.http.iter().enumerate() {
        http_route(route, &format!("spec.http[{index}]"), findings);
    }
    for (index, route) in spec.tls.iter().enumerate() {
        tls_route(route, &spec.hosts, &format!("spec.tls[{index}]"), findings);
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        tcp_route(route, &format!("spec.tcp[{index}]"), findings);
    }
}

fn hosts(spec: &VirtualService, findings: &mut Findings<'_>) {
    // Without hosts it can only be what another VirtualService delegates to (Istio's admission);
    // whether one does is looked at across resources.
    let can_be_delegate = spec.gateways.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty();
    if spec.hosts.is_empty() && !can_be_delegate {
        findings.error_with_help(
            "spec.hosts",
            "at least one host is required",
            "Name the service or domain the rules are for; only a delegate, which has no gateways \
             and HTTP rules only, goes without.",
        );
    }
    if spec.hosts.is_empty() {
        for (index, route) in spec.http.iter().enumerate() {
            if route.delegate.is_some() {
                let path = format!("spec.http[{index}].delegate");
                findings.error(path, "a VirtualService without hosts cannot delegate further");
            }
        }
    }
    let on_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == MESH_GATEWAY);
    for (index, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host == "*" && on_mesh {
            findings.error_with_help(
                path,
                "the host \"*\" is not allowed on the mesh gateway",
                "List hosts, or bind the VirtualService to a Gateway.",
            );
        } else if !is_host(host) && !is_ip(host) {
            findings.error(path, format!("{host:?} is not a host"));
        }
        if spec.hosts[..index].iter().any(|other| other.eq_ignore_ascii_case(host)) {
            let path = format!("spec.hosts[{index}]");
            findings.error(path, format!("the host {host:?} is given twice"));
        }
    }
}

fn gateway_name(gateway: &str, path: String, findings: &mut Findings<'_>) {
    let (namespace, name) = gateway.split_once('/').unwrap_or((".", gateway));
    let legal = (namespace == "." || is_label(namespace)) && super::text::is_subdomain(name);
    if !legal {
        findings.error_with_help(
            path,
            format!("{gateway:?} is not a gateway"),
            "Use \"name\", \"namespace/name\" or \"mesh\".",
        );
    }
}

fn http_route(route: &HttpRoute, path: &str, findings: &mut Findings<'_>) {
    http_action(route, path, findings);
    for (index, matcher) in route.matches.iter().enumerate() {
        http_match(matcher, &format!("{path}.match[{index}]"), findings);
    }
    let weights: Vec<i32> = route.route.iter().map(|route| route.weight).collect();
    check_weights(&weights, path, findings);
    for (index, to) in route.route.iter().enumerate() {
        let path = format!("{path}.route[{index}]");
        destination(&to.destination, &format!("{path}.destination"), findings);
        headers(to.headers.as_ref(), &path, findings);
    }
    headers(route.headers.as_ref(), path, findings);
    if let Some(redirect) = &route.redirect {
        http_redirect(redirect, &format!("{path}.redirect"), findings);
    }
    if let Some(response) = &route.direct_response {
        direct_response(response, &format!("{path}.directResponse"), findings);
    }
    if let Some(rewrite) = &route.rewrite {
        http_rewrite(rewrite, &format!("{path}.rewrite"), findings);
    }
    if let Some(retries) = &route.retries {
        http_retries(retries, &format!("{path}.retries"), findings);
    }
    if let Some(fault) = &route.fault {
        http_fault(fault, &format!("{path}.fault"), findings);
    }
    if let Some(cors) = &route.cors_policy {
        http_cors(cors, &format!("{path}.corsPolicy"), findings);
    }
    http_mirrors(route, path, findings);
}

/// Exactly one of route, redirect, directResponse, delegate.
fn http_action(route: &HttpRoute, path: &str, findings: &mut Findings<'_>) {
    let actions = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let set: Vec<&str> = actions.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    match set.as_slice() {
        [] => findings.error(path, "one of route, redirect or directResponse is required"),
        [_] => {}
        several => findings.error(path, format!("only one of {} is allowed", several.join(", "))),
    }
    let forwards = !route.route.is_empty() || route.delegate.is_some();
    if !forwards && route.rewrite.is_some() {
        findings.error(format!("{path}.rewrite"), "a rewrite needs a route");
    }
    if route.redirect.is_some() && route.fault.is_some() {
        findings.error(format!("{path}.fault"), "a redirect cannot have a fault");
    }
}

fn http_match(matcher: &HttpMatchRequest, path: &str, findings: &mut Findings<'_>) {
    let single = [
        ("uri", &matcher.uri),
        ("scheme", &matcher.scheme),
        ("method", &matcher.method),
        ("authority", &matcher.authority),
    ];
    for (name, value) in single {
        match value {
            None => {}
            Some(StringMatch::Present) => {
                let message = "one of exact, prefix, regex is required";
                findings.error(format!("{path}.{name}"), message);
            }
            Some(value) => string_match(value, &format!("{path}.{name}"), findings),
        }
    }
    let maps = [
        ("headers", &matcher.headers),
        ("withoutHeaders", &matcher.without_headers),
        ("queryParams", &matcher.query_params),
    ];
    for (field, map) in maps {
        for (name, value) in map {
            let path = entry(&format!("{path}.{field}"), name);
            if field != "queryParams" && !is_match_header(name) {
                findings.error(&*path, format!("{name:?} is not a header name"));
            }
            string_match(value, &path, findings);
        }
    }
    if let Some(port) = matcher.port {
        port_number(port, format!("{path}.port"), findings);
    }
    for (index, gateway) in matcher.gateways.iter().enumerate() {
        gateway_name(gateway, format!("{path}.gateways[{index}]"), findings);
    }
}

/// Pseudo headers may be matched; `@request.auth…` is Istio's JWT claim form.
fn is_match_header(name: &str) -> bool {
    name.starts_with("@request.auth") || is_header_name(name.strip_prefix(':').unwrap_or(name))
}

pub(super) fn string_match(value: &StringMatch, path: &str, findings: &mut Findings<'_>) {
    match value {
        StringMatch::Regex(pattern) => {
            if let Some(problem) = regex_problem(pattern) {
                findings.error(format!("{path}.regex"), problem);
            }
        }
        // As a path prefix "" matches all; Envoy takes no empty prefix elsewhere.
        StringMatch::Prefix(prefix) if prefix.is_empty() && !path.ends_with(".uri") => {
            findings.error(format!("{path}.prefix"), "the prefix is empty");
        }
        StringMatch::Exact(_) | StringMatch::Prefix(_) | StringMatch::Present => {}
    }
}

/// Negative weights never; of several destinations some weight must be above 0.
fn check_weights(weights: &[i32], path: &str, findings: &mut Findings<'_>) {
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight < 0) {
        let path = format!("{path}.route[{index}].weight");
        findings.error(path, format!("expected an integer of 0 or more, found {weight}"));
    }
    let total: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
    if weights.len() > 1 && total == 0 {
        findings.error_with_help(
            format!("{path}.route"),
            "the weights of several destinations add up to 0",
            "Give every destination a weight, for example 50 and 50.",
        );
    }
    if total > i64::from(u32::MAX) {
        findings.error(format!("{path}.route"), "the weights add up to more than 4294967295");
    }
}

pub(super) fn destination(to: &Destination, path: &str, findings: &mut Findings<'_>) {
    if to.host.is_empty() {
        findings.error(format!("{path}.host"), "a destination host is required");
    } else if to.host.contains('*') {
        findings.error(format!("{path}.host"), "a destination host cannot be a wildcard");
    } else if !is_dns_name(&to.host) && !is_ip(&to.host) {
        findings.error(format!("{path}.host"), format!("{:?} is not a host", to.host));
    }
    if !to.subset.is_empty() && !is_label(&to.subset) {
        let message = format!("{:?} is not a subset name", to.subset);
        findings.error(format!("{path}.subset"), message);
    }
    if let Some(port) = to.port {
        port_number(port.number, format!("{path}.port.number"), findings);
    }
}

fn tls_route(route: &TlsRoute, hosts: &[String], path: &str, findings: &mut Findings<'_>) {
    if route.matches.is_empty() {
        findings.error(format!("{path}.match"), "a TLS route needs a match with sniHosts");
    }
    for (index, matcher) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        if matcher.sni_hosts.is_empty() {
            findings.error(format!("{path}.sniHosts"), "at least one SNI host is required");
        }
        for (index, sni) in matcher.sni_hosts.iter().enumerate() {
            let path = format!("{path}.sniHosts[{index}]");
            if !is_host(sni) {
                findings.error(path, format!("{sni:?} is not a host"));
            } else if !hosts.iter().any(|host| host_matches(host, sni)) {
                findings.error(path, format!("{sni:?} is not covered by spec.hosts"));
            }
        }
        subnets(&matcher.destination_subnets, &path, findings);
        l4_port(matcher.port, &path, findings);
    }
    l4_destinations(&route.route, path, findings);
}

fn tcp_route(route: &TcpRoute, path: &str, findings: &mut Findings<'_>) {
    for (index, matcher) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{index}]");
        subnets(&matcher.destination_subnets, &path, findings);
        if !matcher.source_subnet.is_empty() && Cidr::parse(&matcher.source_subnet).is_none() {
            let message = format!("{:?} is not a subnet", matcher.source_subnet);
            findings.error(format!("{path}.sourceSubnet"), message);
        } else if !matcher.source_subnet.is_empty() {
            findings.info(
                code::NOT_IMPLEMENTED,
                format!("{path}.sourceSubnet"),
                "sourceSubnet has no effect, as in Istio",
                "Use sourceLabels or sourceNamespace.",
            );
        }
        l4_port(matcher.port, &path, findings);
    }
    l4_destinations(&route.route, path, findings);
}

fn l4_port(port: Option<u32>, path: &str, findings: &mut Findings<'_>) {
    // 0 is the API's "not set" for these.
    if let Some(port) = port.filter(|port| *port != 0 && !is_port(*port)) {
        findings.error(format!("{path}.port"), format!("{port} is not a port number"));
    }
}

fn subnets(subnets: &[String], path: &str, findings: &mut Findings<'_>) {
    for (index, subnet) in subnets.iter().enumerate() {
        if Cidr::parse(subnet).is_none() {
            let path = format!("{path}.destinationSubnets[{index}]");
            findings.error(path, format!("{subnet:?} is not a subnet"));
        }
    }
}

fn l4_destinations(
    routes: &[crate::spec::RouteDestination],
    path: &str,
    findings: &mut Findings<'_>,
) {
    if routes.is_empty() {
        findings.error(format!("{path}.route"), "at least one destination is required");
    }
    let weights: Vec<i32> = routes.iter().map(|route| route.weight).collect();
    check_weights(&weights, path, findings);
    for (index, to) in routes.iter().enumerate() {
        destination(&to.destination, &format!("{path}.route[{index}].destination"), findings);
    }
}
