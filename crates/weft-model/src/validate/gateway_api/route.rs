//! CEL rules of routes, and patterns that no proxy could run.

use super::{one_of, schema, section_names, structure};
use crate::spec::gateway_api as api;
use crate::spec::gateway_api::{PathMatchType, RouteFilter};
use crate::validate::{Findings, text};

/// Matches of all rules together.
const MATCHES_MAX: usize = 128;

pub(in crate::validate) fn http_route(spec: &api::HttpRoute, findings: &mut Findings<'_>) {
    structure(&schema::HTTP_ROUTE, findings);
    parents(&spec.parent_refs, findings);
    total(spec.rules.iter().map(|rule| rule.matches.len()), findings);
    for (index, rule) in spec.rules.iter().enumerate() {
        http_rule(rule, &format!("spec.rules[{index}]"), findings);
    }
}

fn http_rule(rule: &api::HttpRouteRule, path: &str, findings: &mut Findings<'_>) {
    for (index, matched) in rule.matches.iter().enumerate() {
        let path = format!("{path}.matches[{index}]");
        path_match(&matched.path, &format!("{path}.path"), findings);
        value_matches(&matched.headers, &format!("{path}.headers"), findings);
        value_matches(&matched.query_params, &format!("{path}.queryParams"), findings);
    }
    filters(&rule.filters, &rule.matches, &format!("{path}.filters"), findings);
    let redirects = rule.filters.iter().any(|filter| filter.request_redirect.is_some());
    if redirects && !rule.backend_refs.is_empty() {
        let message = "a redirected request goes to no backend";
        findings.error_with_help(
            format!("{path}.backendRefs"),
            message,
            "Remove backendRefs or the RequestRedirect filter.",
        );
    }
    for (index, backend) in rule.backend_refs.iter().enumerate() {
        let path = format!("{path}.backendRefs[{index}]");
        service_port(&backend.object(), &path, findings);
        filters(&backend.filters, &rule.matches, &format!("{path}.filters"), findings);
    }
    if let Some(timeouts) = &rule.timeouts
        && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
        && !request.is_zero()
        && backend > request
    {
        let message = "must not be longer than timeouts.request";
        findings.error(format!("{path}.timeouts.backendRequest"), message);
    }
}

pub(in crate::validate) fn grpc_route(spec: &api::GrpcRoute, findings: &mut Findings<'_>) {
    structure(&schema::GRPC_ROUTE, findings);
    parents(&spec.parent_refs, findings);
    total(spec.rules.iter().map(|rule| rule.matches.len()), findings);
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        for (index, matched) in rule.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            if let Some(method) = &matched.method {
                grpc_method(method, &format!("{path}.method"), findings);
            }
            value_matches(&matched.headers, &format!("{path}.headers"), findings);
        }
        filters(&rule.filters, &[], &format!("{path}.filters"), findings);
        for (index, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{index}]");
            service_port(&backend.object(), &path, findings);
            filters(&backend.filters, &[], &format!("{path}.filters"), findings);
        }
    }
}

pub(in crate::validate) fn tls_route(spec: &api::TlsRoute, findings: &mut Findings<'_>) {
    structure(&schema::TLS_ROUTE, findings);
    parents(&spec.parent_refs, findings);
    for (index, host) in spec.hostnames.iter().enumerate() {
        if text::is_ip(host) {
            findings.error(format!("spec.hostnames[{index}]"), "must not be an IP address");
        }
    }
    bytes_rules(&spec.rules, findings);
}

pub(in crate::validate) fn tcp_route(spec: &api::TcpRoute, findings: &mut Findings<'_>) {
    structure(&schema::TCP_ROUTE, findings);
    parents(&spec.parent_refs, findings);
    bytes_rules(&spec.rules, findings);
}

/// Valid as the CRD has it, but nothing here carries UDP; Istio does not either.
pub(in crate::validate) fn udp_route(spec: &api::TcpRoute, findings: &mut Findings<'_>) {
    tcp_route(spec, findings);
    findings.error_with_help(
        "kind",
        "UDPRoute is not supported: proxies carry TCP only",
        "Remove the UDPRoute; UDP traffic passes beside the mesh.",
    );
}

fn bytes_rules(rules: &[api::BytesRule], findings: &mut Findings<'_>) {
    for (index, rule) in rules.iter().enumerate() {
        for (at, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("spec.rules[{index}].backendRefs[{at}]");
            service_port(&backend.object(), &path, findings);
        }
    }
}

fn total(matches: impl Iterator<Item = usize>, findings: &mut Findings<'_>) {
    let total: usize = matches.sum();
    if total > MATCHES_MAX {
        let message = format!("{total} matches in all rules, more than {MATCHES_MAX}");
        findings.error("spec.rules", message);
    }
}

fn parents(parents: &[api::ParentRef], findings: &mut Findings<'_>) {
    for (index, parent) in parents.iter().enumerate() {
        let same = |other: &&api::ParentRef| {
            let key = |one: &api::ParentRef| {
                let namespace = one.namespace.clone().unwrap_or_default();
                (one.group.clone(), one.kind.clone(), one.name.clone(), namespace)
            };
            key(other) == key(parent)
        };
        let path = format!("spec.parentRefs[{index}].sectionName");
        for other in parents[..index].iter().filter(same) {
            section_names(&other.section_name, &parent.section_name, &path, findings);
        }
    }
}

fn path_match(path_match: &api::PathMatch, path: &str, findings: &mut Findings<'_>) {
    let value = path_match.value.as_str();
    let at = format!("{path}.value");
    if path_match.match_type == PathMatchType::RegularExpression {
        return pattern(value, at, findings);
    }
    if !value.starts_with('/') {
        findings.error(&*at, "must start with /");
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if value.contains(part) {
            findings.error(&*at, format!("must not contain {part}"));
        }
    }
    for end in ["/..", "/."] {
        if value.ends_with(end) {
            findings.error(&*at, format!("must not end with {end}"));
        }
    }
    if !is_path(value) {
        let message = "holds characters that no path has; write them as %XX";
        findings.error(at, message);
    }
}

/// RFC 3986 path characters, and percent with two hexadecimal digits.
fn is_path(value: &str) -> bool {
    let bytes = value.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_hexdigit);
        at += match byte {
            b'%' if hex(at + 1) && hex(at + 2) => 3,
            b if b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(b) => 1,
            _ => return false,
        };
    }
    !bytes.is_empty()
}

fn value_matches(matches: &[api::ValueMatch], path: &str, findings: &mut Findings<'_>) {
    for (index, one) in matches.iter().enumerate() {
        if one.match_type == api::MatchType::RegularExpression {
            pattern(&one.value, format!("{path}[{index}].value"), findings);
        }
    }
}

/// Envoy would refuse the whole listener's routes for it.
fn pattern(value: &str, path: String, findings: &mut Findings<'_>) {
    if let Some(problem) = text::regex_problem(value) {
        findings.error(path, problem);
    }
}

fn grpc_method(method: &api::GrpcMethodMatch, path: &str, findings: &mut Findings<'_>) {
    let (service, name) = (method.service.as_deref(), method.method.as_deref());
    if service.is_none() && name.is_none() {
        findings.error(path, "one or both of service and method must be set");
    }
    let word = |text: &str| {
        let first = text.bytes().next();
        first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let parts = [
        (service, "service", {
            let name = service.unwrap_or_default();
            name.strip_prefix('.').unwrap_or(name).split('.').all(word)
        }),
        (name, "method", word(name.unwrap_or_default())),
    ];
    for (value, field, is_name) in parts {
        let Some(value) = value else { continue };
        let path = format!("{path}.{field}");
        match method.match_type {
            api::MatchType::Exact if is_name => {}
            api::MatchType::Exact => findings.error(path, format!("{value:?} is not a name")),
            api::MatchType::RegularExpression => pattern(value, path, findings),
        }
    }
}

fn service_port(to: &api::ObjectRef, path: &str, findings: &mut Findings<'_>) {
    if to.group.is_empty() && to.kind == "Service" && to.port.is_none() {
        findings.error(format!("{path}.port"), "required for a Service");
    }
}

fn filters(
    filters: &[RouteFilter],
    matches: &[api::HttpRouteMatch],
    path: &str,
    findings: &mut Findings<'_>,
) {
    for (index, filter) in filters.iter().enumerate() {
        let at = format!("{path}[{index}]");
        one_filter(filter, matches, &at, findings);
        let kind = filter.filter_type.as_str();
        let repeatable = matches!(kind, "RequestMirror" | "ExtensionRef");
        if !repeatable && filters[..index].iter().any(|other| other.filter_type == kind) {
            findings.error(&*at, format!("the filter {kind} must not be repeated"));
        }
    }
    let has = |kind: &str| filters.iter().any(|filter| filter.filter_type == kind);
    if has("RequestRedirect") && has("URLRewrite") {
        findings.error(path, "RequestRedirect and URLRewrite exclude each other");
    }
}

fn one_filter(
    filter: &RouteFilter,
    matches: &[api::HttpRouteMatch],
    path: &str,
    findings: &mut Findings<'_>,
) {
    let RouteFilter {
        filter_type,
        request_header_modifier,
        response_header_modifier,
        request_mirror,
        request_redirect,
        url_rewrite,
        cors,
        extension_ref,
    } = filter;
    for (kind, given, field) in [
        ("RequestHeaderModifier", request_header_modifier.is_some(), "requestHeaderModifier"),
        ("ResponseHeaderModifier", response_header_modifier.is_some(), "responseHeaderModifier"),
        ("RequestMirror", request_mirror.is_some(), "requestMirror"),
        ("RequestRedirect", request_redirect.is_some(), "requestRedirect"),
        ("URLRewrite", url_rewrite.is_some(), "urlRewrite"),
        ("CORS", cors.is_some(), "cors"),
        ("ExtensionRef", extension_ref.is_some(), "extensionRef"),
    ] {
        one_of(filter_type == kind, given, kind, path, field, findings);
    }
    if let Some(mirror) = request_mirror {
        let path = format!("{path}.requestMirror");
        service_port(&mirror.backend_ref, &format!("{path}.backendRef"), findings);
        if mirror.percent.is_some() && mirror.fraction.is_some() {
            findings.error(&*path, "only one of percent and fraction may be set");
        }
        if mirror.fraction.is_some_and(|share| share.numerator > share.denominator) {
            findings.error(format!("{path}.fraction"), "numerator is greater than denominator");
        }
    }
    if let Some(cors) = cors {
        for (list, field) in [
            (&cors.allow_headers, "allowHeaders"),
            (&cors.allow_methods, "allowMethods"),
            (&cors.allow_origins, "allowOrigins"),
        ] {
            if list.len() > 1 && list.iter().any(|one| one == "*") {
                findings.error(format!("{path}.cors.{field}"), "\"*\" must stand alone");
            }
        }
    }
    let redirect = request_redirect.iter().filter_map(|redirect| redirect.path.as_ref());
    let rewrite = url_rewrite.iter().filter_map(|rewrite| rewrite.path.as_ref());
    let redirect = redirect.map(|modifier| (modifier, "requestRedirect"));
    for (modifier, field) in redirect.chain(rewrite.map(|modifier| (modifier, "urlRewrite"))) {
        path_modifier(modifier, matches, &format!("{path}.{field}.path"), findings);
    }
}

fn path_modifier(
    modifier: &api::PathModifier,
    matches: &[api::HttpRouteMatch],
    path: &str,
    findings: &mut Findings<'_>,
) {
    let kind = modifier.modifier_type.as_str();
    for (wanted, given, field) in [
        ("ReplaceFullPath", modifier.replace_full_path.is_some(), "replaceFullPath"),
        ("ReplacePrefixMatch", modifier.replace_prefix_match.is_some(), "replacePrefixMatch"),
    ] {
        one_of(kind == wanted, given, wanted, path, field, findings);
    }
    // Without matches there is one by default: the prefix "/".
    let one_prefix = match matches {
        [] => true,
        [only] => only.path.match_type == PathMatchType::PathPrefix,
        _ => false,
    };
    if modifier.replace_prefix_match.is_some() && !one_prefix {
        let message = "the rule must have exactly one match, of type PathPrefix";
        findings.error(format!("{path}.replacePrefixMatch"), message);
    }
}
