//! VirtualService: hosts, gateways, and HTTP, TLS and TCP routes.

use super::text::{is_dns_name, is_header_name, is_host, is_ip, is_label, is_port, regex_problem};
use super::{Findings, entry, export_to, port_number};
use crate::diagnostic::code;
use crate::names::{MESH_GATEWAY, host_matches};
use crate::snapshot::Cidr;
use crate::spec::{
    CorsPolicy, Destination, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection,
    HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, Percent, StringMatch,
    TcpRoute, TlsRoute, VirtualService,
};

/// Envoy's words for `retryOn`, HTTP and gRPC.
const RETRY_ON: [&str; 18] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "unimplemented",
    "unknown",
];
/// Envoy's limit on a direct response's body is 4096 bytes by default; Istio allows 1 MiB.
const DIRECT_BODY_BYTES_MAX: usize = 1 << 20;

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
    if spec.hosts.is_empty() {
        findings.error_with_help(
            "spec.hosts",
            "at least one host is required",
            "Name the service or domain the rules are for.",
        );
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

fn string_match(value: &StringMatch, path: &str, findings: &mut Findings<'_>) {
    match value {
        StringMatch::Regex(pattern) => {
            if let Some(problem) = regex_problem(pattern) {
                findings.error(format!("{path}.regex"), problem);
            }
        }
        StringMatch::Prefix(prefix) if prefix.is_empty() => {
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

fn destination(to: &Destination, path: &str, findings: &mut Findings<'_>) {
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

fn headers(headers: Option<&Headers>, path: &str, findings: &mut Findings<'_>) {
    let Some(headers) = headers else { return };
    let both = [("request", &headers.request), ("response", &headers.response)];
    for (side, operations) in both {
        if let Some(operations) = operations {
            header_operations(operations, &format!("{path}.headers.{side}"), findings);
        }
    }
}

fn header_operations(operations: &HeaderOperations, path: &str, findings: &mut Findings<'_>) {
    let HeaderOperations { set, add, remove } = operations;
    let maps = [("set", set), ("add", add)];
    for (field, map) in maps {
        for (name, value) in map {
            let path = entry(&format!("{path}.{field}"), name);
            // Istio lets these two rename the host; no other pseudo header can be changed.
            if !is_header_name(name) && name != ":authority" {
                findings.error(&*path, format!("{name:?} is not a header name"));
            }
            if value.contains(['\r', '\n', '\0']) {
                findings.error(path, "a header value cannot contain line breaks");
            }
        }
    }
    for (index, name) in remove.iter().enumerate() {
        let path = format!("{path}.remove[{index}]");
        if !is_header_name(name) {
            findings.error(path, format!("{name:?} is not a header name"));
        } else if name.eq_ignore_ascii_case("host") {
            findings.error(path, "the host header cannot be removed");
        }
    }
}

fn http_redirect(redirect: &HttpRedirect, path: &str, findings: &mut Findings<'_>) {
    let HttpRedirect { uri, authority, port, derive_port, scheme, redirect_code, prefix_rewrite } =
        redirect;
    let nothing = uri.is_empty()
        && authority.is_empty()
        && scheme.is_empty()
        && prefix_rewrite.is_empty()
        && port.is_none()
        && derive_port.is_none();
    if nothing {
        findings.error(path, "one of uri, authority, scheme or port is required");
    }
    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        findings.error(path, "only one of uri, prefixRewrite is allowed");
    }
    if port.is_some() && derive_port.is_some() {
        findings.error(path, "only one of port, derivePort is allowed");
    }
    if let Some(port) = port {
        port_number(*port, format!("{path}.port"), findings);
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        let message = format!("expected http or https, found {scheme:?}");
        findings.error(format!("{path}.scheme"), message);
    }
    // Those that Envoy can send.
    if !matches!(redirect_code, None | Some(0 | 301 | 302 | 303 | 307 | 308)) {
        let message = "expected one of 301, 302, 303, 307, 308";
        findings.error(format!("{path}.redirectCode"), message);
    }
}

fn direct_response(response: &HttpDirectResponse, path: &str, findings: &mut Findings<'_>) {
    if !(200..=599).contains(&response.status) {
        let message = format!("expected a status from 200 to 599, found {}", response.status);
        findings.error(format!("{path}.status"), message);
    }
    let Some(body) = &response.body else { return };
    if body.string.is_some() && body.bytes.is_some() {
        findings.error(format!("{path}.body"), "only one of string, bytes is allowed");
    }
    let length = body.string.iter().chain(&body.bytes).map(String::len).sum::<usize>();
    if length > DIRECT_BODY_BYTES_MAX {
        let message = format!("the body has more than {DIRECT_BODY_BYTES_MAX} bytes");
        findings.error(format!("{path}.body"), message);
    }
}

fn http_rewrite(rewrite: &HttpRewrite, path: &str, findings: &mut Findings<'_>) {
    let regex = rewrite.uri_regex_rewrite.as_ref();
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && regex.is_none() {
        findings.error(path, "one of uri, authority, uriRegexRewrite is required");
    }
    if !rewrite.uri.is_empty() && regex.is_some() {
        findings.error(path, "only one of uri, uriRegexRewrite is allowed");
    }
    if let Some(problem) = regex.and_then(|regex| regex_problem(&regex.pattern)) {
        findings.error(format!("{path}.uriRegexRewrite.match"), problem);
    }
}

fn http_retries(retries: &HttpRetry, path: &str, findings: &mut Findings<'_>) {
    if retries.attempts < 0 {
        let message = format!("expected an integer of 0 or more, found {}", retries.attempts);
        findings.error(format!("{path}.attempts"), message);
    }
    let configured = retries.per_try_timeout.is_some()
        || !retries.retry_on.is_empty()
        || retries.retry_remote_localities.is_some();
    if retries.attempts == 0 && configured {
        findings.error_with_help(
            format!("{path}.attempts"),
            "retries are configured while 0 attempts turn them off",
            "Set attempts, or remove the rest.",
        );
    }
    for word in retries.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let status = word.parse::<u32>().is_ok_and(|code| (100..=599).contains(&code));
        if !status && !RETRY_ON.contains(&word) {
            let message = format!("{word:?} is neither a retry condition nor a status code");
            findings.error(format!("{path}.retryOn"), message);
        }
    }
}

fn http_fault(fault: &HttpFaultInjection, path: &str, findings: &mut Findings<'_>) {
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(path, "one of delay, abort is required");
    }
    if let Some(delay) = &fault.delay {
        let path = format!("{path}.delay");
        if delay.fixed_delay.is_none() && delay.exponential_delay.is_none() {
            findings.error(format!("{path}.fixedDelay"), "a delay is required");
        }
        percentages(delay.percent, delay.percentage, &path, findings);
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        match (abort.http_status, &abort.grpc_status, &abort.http2_error) {
            (Some(status), None, None) if !(200..=599).contains(&status) => {
                let message = format!("expected a status from 200 to 599, found {status}");
                findings.error(format!("{path}.httpStatus"), message);
            }
            (Some(_), None, None) | (None, Some(_), None) | (None, None, Some(_)) => {}
            (None, None, None) => findings.error(path.as_str(), "a status is required"),
            _ => findings.error(path.as_str(), "only one status is allowed"),
        }
        percentages(abort.percent, abort.percentage, &path, findings);
    }
}

/// The old whole-number form and the new one.
fn percentages(
    whole: Option<i32>,
    percentage: Option<Percent>,
    path: &str,
    findings: &mut Findings<'_>,
) {
    if let Some(whole) = whole {
        let field = format!("{path}.percent");
        if !(0..=100).contains(&whole) {
            findings.error(field, format!("expected 0 to 100, found {whole}"));
        } else {
            findings.warn(
                code::DEPRECATED,
                field,
                "percent is deprecated",
                "Use percentage.value.",
            );
        }
    }
    percentage_value(percentage, format!("{path}.percentage.value"), findings);
}

fn percentage_value(percentage: Option<Percent>, path: String, findings: &mut Findings<'_>) {
    if let Some(Percent { value }) = percentage
        && !(0.0..=100.0).contains(&value)
    {
        findings.error(path, format!("expected 0 to 100, found {value}"));
    }
}

fn http_cors(cors: &CorsPolicy, path: &str, findings: &mut Findings<'_>) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        string_match(origin, &format!("{path}.allowOrigins[{index}]"), findings);
    }
    for (index, method) in cors.allow_methods.iter().enumerate() {
        if !is_header_name(method) {
            let path = format!("{path}.allowMethods[{index}]");
            findings.error(path, format!("{method:?} is not a method"));
        }
    }
    if !cors.allow_origin.is_empty() {
        findings.warn(
            code::DEPRECATED,
            format!("{path}.allowOrigin"),
            "allowOrigin is deprecated",
            "Use allowOrigins.",
        );
    }
}

fn http_mirrors(route: &HttpRoute, path: &str, findings: &mut Findings<'_>) {
    if let Some(mirror) = &route.mirror {
        destination(mirror, &format!("{path}.mirror"), findings);
        if !route.mirrors.is_empty() {
            findings.error(path, "only one of mirror, mirrors is allowed");
        }
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{index}]");
        destination(&mirror.destination, &format!("{path}.destination"), findings);
        percentage_value(mirror.percentage, format!("{path}.percentage.value"), findings);
    }
    if let Some(percent) = route.mirror_percent.filter(|percent| *percent > 100) {
        let message = format!("expected 0 to 100, found {percent}");
        findings.error(format!("{path}.mirrorPercent"), message);
    }
    percentage_value(route.mirror_percentage, format!("{path}.mirrorPercentage.value"), findings);
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
