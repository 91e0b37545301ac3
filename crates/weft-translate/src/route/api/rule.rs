//! What rules do with their requests: filters and backends in the words of VirtualService rules,
//! and what those have no word for.

use std::time::Duration;

use weft_model::gateway_api::Route;
use weft_model::spec::gateway_api::{
    BackendRef, Cors, GrpcRouteRule, HeaderModifier, HttpRouteRetry, HttpRouteRule,
    HttpRouteTimeouts, ObjectRef, PathModifier, RequestMirror, RequestRedirect, RouteFilter,
    UrlRewrite,
};
use weft_model::spec::{
    CorsPolicy, Destination, HeaderOperations, Headers, HttpMirrorPolicy, HttpRedirect, HttpRetry,
    HttpRewrite, HttpRoute, HttpRouteDestination, Percent, PortSelector, RegexRewrite,
    RouteDestination, StringMatch, UnmatchedPreflights,
};
use weft_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use weft_xds::pb::envoy::config::route::v3::route_action::ClusterNotFoundResponseCode;
use weft_xds::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

use crate::build::regex;
use crate::listener::bytes;
use crate::route::{Place, action};
use crate::scope::Scope;

/// Where the share of a backend that does not exist goes: a cluster that does not exist either.
const NOWHERE: &str = "invalid-backend.gateway-api.invalid";
/// What a retry stanza without codes retries on.
const RETRY_ON: &str = "connect-failure,refused-stream,reset,unavailable,cancelled";
/// Istio's number of retries.
const ATTEMPTS: i32 = 2;

/// Everything of a route but its name, match and metadata. `prefix` is the rule's path prefix when
/// it has exactly one match; `https` says how clients reach the place.
pub(super) fn http(
    scope: &Scope<'_>,
    route: &Route,
    rule: &HttpRouteRule,
    prefix: Option<&str>,
    place: &Place<'_>,
    https: bool,
) -> route::Route {
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let mut common = common(scope, route, &rule.filters, &rule.backend_refs);
    (common.retries, common.timeout) = retries(scope, rule.retry.as_ref(), &timeouts);
    let mut regex_path = None;
    for filter in &rule.filters {
        if let Some(redirect) = &filter.request_redirect {
            let (redirect, pattern) = redirection(redirect, prefix, place.port, https);
            common.redirect = Some(redirect);
            regex_path = pattern;
        }
        if let Some(rewrite) = &filter.url_rewrite {
            common.rewrite = Some(rewriting(rewrite, prefix));
        }
        if let Some(cors) = &filter.cors {
            common.cors_policy = Some(cross_origin(cors));
        }
    }
    let filters = rule.backend_refs.iter().flat_map(|backend| &backend.filters);
    if unsupported(&rule.filters) || filters.into_iter().any(unsupported_on_backend) {
        return answer(500);
    }
    let mut built = finished(scope, &common, place);
    if let (Some(pattern), Some(route::route::Action::Redirect(redirect))) =
        (regex_path, &mut built.action)
    {
        redirect.path_rewrite_specifier = Some(PathRewriteSpecifier::RegexRewrite(pattern));
    }
    built
}

/// As [`http`], for GRPCRoute.
pub(super) fn grpc(
    scope: &Scope<'_>,
    route: &Route,
    rule: &GrpcRouteRule,
    place: &Place<'_>,
) -> route::Route {
    let filters = rule.backend_refs.iter().flat_map(|backend| &backend.filters);
    if unsupported(&rule.filters) || filters.into_iter().any(unsupported_on_backend) {
        return answer(500);
    }
    finished(scope, &common(scope, route, &rule.filters, &rule.backend_refs), place)
}

fn finished(scope: &Scope<'_>, rule: &HttpRoute, place: &Place<'_>) -> route::Route {
    let is_nowhere = |to: &HttpRouteDestination| to.destination.host == NOWHERE || to.weight == 0;
    if rule.redirect.is_none() && rule.route.iter().all(is_nowhere) {
        return answer(500);
    }
    let mut built = action::of_rule(scope, rule, place.port);
    if let Some(route::route::Action::Route(action)) = &mut built.action {
        action.cluster_not_found_response_code =
            ClusterNotFoundResponseCode::InternalServerError as i32;
    }
    built
}

/// The API's answer where nobody can answer: no backend, no valid one, or an unknown filter.
fn answer(status: u32) -> route::Route {
    let answer = route::DirectResponseAction { status, ..Default::default() };
    route::Route {
        action: Some(route::route::Action::DirectResponse(answer)),
        ..Default::default()
    }
}

fn unsupported(filters: &[RouteFilter]) -> bool {
    filters.iter().any(|filter| filter.extension_ref.is_some())
}

/// What a cluster's share of a route can carry: header edits and another host.
fn unsupported_on_backend(filter: &RouteFilter) -> bool {
    !filter.is_supported_on_backend()
}

/// What HTTP and gRPC rules have in common.
fn common(
    scope: &Scope<'_>,
    route: &Route,
    filters: &[RouteFilter],
    backends: &[BackendRef],
) -> HttpRoute {
    let mirrors = filters.iter().filter_map(|filter| filter.request_mirror.as_ref());
    HttpRoute {
        route: backends.iter().map(|backend| destination(scope, route, backend)).collect(),
        mirrors: mirrors.filter_map(|one| mirror(scope, route, one)).collect(),
        headers: headers(filters),
        ..Default::default()
    }
}

fn destination(scope: &Scope<'_>, route: &Route, backend: &BackendRef) -> HttpRouteDestination {
    let mut headers = headers(&backend.filters);
    let host = backend.filters.iter().find_map(|filter| {
        filter.url_rewrite.as_ref().and_then(|rewrite| rewrite.hostname.clone())
    });
    if let Some(host) = host {
        let request = headers.get_or_insert_default().request.get_or_insert_default();
        request.set.insert("host".to_owned(), host);
    }
    HttpRouteDestination {
        destination: target(scope, route, &backend.object())
            .unwrap_or_else(|| Destination { host: NOWHERE.to_owned(), ..of_port(1) }),
        weight: i32::try_from(backend.weight).unwrap_or(i32::MAX),
        headers,
    }
}

fn of_port(port: u16) -> Destination {
    let port = Some(PortSelector { number: u32::from(port) });
    Destination { port, ..Default::default() }
}

fn target(scope: &Scope<'_>, route: &Route, to: &ObjectRef) -> Option<Destination> {
    let backend = scope.snapshot.backend(route, to).ok()?;
    Some(Destination { host: backend.host, ..of_port(backend.port) })
}

/// A mirror to nowhere is none; the route's status tells.
fn mirror(scope: &Scope<'_>, route: &Route, mirror: &RequestMirror) -> Option<HttpMirrorPolicy> {
    let value = match (mirror.percent, mirror.fraction) {
        (Some(percent), _) => f64::from(percent),
        (None, Some(share)) => {
            f64::from(share.numerator) * 100.0 / f64::from(share.denominator.max(1))
        }
        (None, None) => 100.0,
    };
    let destination = target(scope, route, &mirror.backend_ref)?;
    Some(HttpMirrorPolicy { destination, percentage: Some(Percent { value }) })
}

fn headers(filters: &[RouteFilter]) -> Option<Headers> {
    let request = filters.iter().find_map(|filter| filter.request_header_modifier.as_ref());
    let response = filters.iter().find_map(|filter| filter.response_header_modifier.as_ref());
    (request.is_some() || response.is_some())
        .then(|| Headers { request: request.map(operations), response: response.map(operations) })
}

/// Values are plain text here, not Envoy's format strings.
fn operations(modifier: &HeaderModifier) -> HeaderOperations {
    let values = |list: &[weft_model::spec::gateway_api::HeaderValue]| {
        list.iter().map(|one| (one.name.clone(), one.value.replace('%', "%%"))).collect()
    };
    HeaderOperations {
        set: values(&modifier.set),
        add: values(&modifier.add),
        remove: modifier.remove.clone(),
    }
}

/// Retries and the timeout of the whole request. `backendRequest` is one attempt's.
fn retries(
    scope: &Scope<'_>,
    own: Option<&HttpRouteRetry>,
    timeouts: &HttpRouteTimeouts,
) -> (Option<HttpRetry>, Option<Duration>) {
    let some = |limit: Option<Duration>| limit.filter(|limit| !limit.is_zero());
    let (request, attempt) = (some(timeouts.request), some(timeouts.backend_request));
    let retry = own.map(|own| {
        let codes = own.codes.iter().map(|code| format!(",{code}"));
        HttpRetry {
            attempts: own.attempts.map_or(ATTEMPTS, |n| i32::try_from(n).unwrap_or(i32::MAX)),
            retry_on: std::iter::once(RETRY_ON.to_owned()).chain(codes).collect(),
            backoff: own.backoff,
            ..Default::default()
        }
    });
    let Some(limit) = attempt else { return (retry, request) };
    let mesh = || scope.snapshot.mesh().default_http_retry_policy.clone();
    let mut retry =
        retry.or_else(mesh).unwrap_or(HttpRetry { attempts: ATTEMPTS, ..Default::default() });
    if retry.attempts <= 0 {
        // One attempt: its limit is the request's.
        return (Some(retry), Some(request.map_or(limit, |request| request.min(limit))));
    }
    retry.per_try_timeout = Some(limit);
    (Some(retry), request)
}

/// How a path is replaced.
enum PathChange {
    Whole(String),
    /// The matched prefix.
    Prefix(String),
    /// The matched prefix and the slashes after it.
    Pattern {
        pattern: String,
        replacement: String,
    },
    Nothing,
}

/// `/foo` → `/xyz`: `/foo/bar` becomes `/xyz/bar`; with `/` for `/xyz` it becomes `/bar`.
fn path_change(modifier: &PathModifier, prefix: Option<&str>) -> PathChange {
    if let Some(whole) = &modifier.replace_full_path {
        let whole = if whole.starts_with('/') { whole.clone() } else { format!("/{whole}") };
        return PathChange::Whole(whole);
    }
    let Some(replacement) = &modifier.replace_prefix_match else { return PathChange::Nothing };
    let replacement = replacement.trim_matches('/');
    match (prefix.unwrap_or_default(), replacement) {
        ("", "") => PathChange::Nothing,
        // What is matched is the first slash alone.
        ("", replacement) => PathChange::Prefix(format!("/{replacement}/")),
        (prefix, "") => PathChange::Pattern {
            pattern: format!("^{}/*", quoted(prefix)),
            replacement: "/".to_owned(),
        },
        (_, replacement) => PathChange::Prefix(format!("/{replacement}")),
    }
}

/// The text as a pattern for itself. Paths hold no other special characters.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn rewriting(rewrite: &UrlRewrite, prefix: Option<&str>) -> HttpRewrite {
    let mut built = HttpRewrite {
        authority: rewrite.hostname.clone().unwrap_or_default(),
        ..Default::default()
    };
    let change = rewrite.path.as_ref().map(|modifier| path_change(modifier, prefix));
    match change {
        None | Some(PathChange::Nothing) => {}
        Some(PathChange::Prefix(text)) => built.uri = text,
        Some(PathChange::Whole(text)) => {
            // The path is replaced, the query stays.
            let rewrite = text.replace('\\', "\\\\");
            let pattern = "^/.*$".to_owned();
            built.uri_regex_rewrite = Some(RegexRewrite { pattern, rewrite });
        }
        Some(PathChange::Pattern { pattern, replacement }) => {
            built.uri_regex_rewrite = Some(RegexRewrite { pattern, rewrite: replacement });
        }
    }
    built
}

/// The redirect, and a path pattern that VirtualServices have no word for.
fn redirection(
    redirect: &RequestRedirect,
    prefix: Option<&str>,
    port: u16,
    https: bool,
) -> (HttpRedirect, Option<RegexMatchAndSubstitute>) {
    let scheme = redirect.scheme.as_deref();
    let tls = scheme.map_or(https, |scheme| scheme == "https");
    // Without a port: the scheme's when there is a scheme, else the listener's.
    let wanted = redirect.port.or(if scheme.is_some() { None } else { Some(port) });
    let usual = if tls { 443 } else { 80 };
    let mut built = HttpRedirect {
        authority: redirect.hostname.clone().unwrap_or_default(),
        scheme: scheme.unwrap_or_default().to_owned(),
        port: wanted.filter(|wanted| *wanted != usual).map(u32::from),
        redirect_code: Some(redirect.status_code),
        ..Default::default()
    };
    let mut pattern = None;
    match redirect.path.as_ref().map(|modifier| path_change(modifier, prefix)) {
        None | Some(PathChange::Nothing) => {}
        Some(PathChange::Whole(text)) => built.uri = text,
        Some(PathChange::Prefix(text)) => built.prefix_rewrite = text,
        Some(PathChange::Pattern { pattern: text, replacement }) => {
            pattern = Some(RegexMatchAndSubstitute {
                pattern: Some(regex(&text)),
                substitution: replacement,
            });
        }
    }
    (built, pattern)
}

fn cross_origin(cors: &Cors) -> CorsPolicy {
    let origin = |text: &String| match text.as_str() {
        "*" => StringMatch::Regex(".*".to_owned()),
        text if text.contains('*') => StringMatch::Regex(quoted(text).replace("\\*", ".*")),
        text => StringMatch::Exact(text.to_owned()),
    };
    CorsPolicy {
        allow_origins: cors.allow_origins.iter().map(origin).collect(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: Some(Duration::from_secs(u64::from(cors.max_age))),
        allow_credentials: Some(cors.allow_credentials),
        unmatched_preflights: Some(UnmatchedPreflights::Ignore),
        ..Default::default()
    }
}

/// Where the bytes of a TLSRoute or TCPRoute go; the share of invalid backends goes nowhere.
pub(crate) fn destinations(scope: &Scope<'_>, route: &Route) -> Vec<RouteDestination> {
    let rules = match route {
        Route::Tls(route) => &route.spec.rules,
        Route::Tcp(route) => &route.spec.rules,
        Route::Http(_) | Route::Grpc(_) => return Vec::new(),
    };
    let backends = rules.iter().flat_map(|rule| &rule.backend_refs);
    let one = |backend: &BackendRef| RouteDestination {
        destination: target(scope, route, &backend.object())
            .unwrap_or_else(|| Destination { host: NOWHERE.to_owned(), ..of_port(1) }),
        weight: i32::try_from(backend.weight).unwrap_or(i32::MAX),
    };
    let mut all: Vec<RouteDestination> = backends.map(one).collect();
    all.retain(|to| to.weight > 0);
    all
}

/// Where connections to a port of a service go when a TCPRoute says so (GAMMA).
pub(crate) fn mesh_bytes(scope: &Scope<'_>, host: &str, port: u16) -> Option<Filter> {
    let routes = scope.snapshot.mesh_routes(host, port, &scope.view.namespace, false);
    let route = routes.into_iter().find(|route| matches!(route, Route::Tcp(_)))?;
    bytes::split(scope, &destinations(scope, route), port)
}

/// Chains by SNI for a port of a service, when TLSRoutes say so (GAMMA).
pub(crate) fn mesh_tls(scope: &Scope<'_>, host: &str, port: u16) -> Vec<FilterChain> {
    let mut chains = Vec::new();
    for route in scope.snapshot.mesh_routes(host, port, &scope.view.namespace, false) {
        let Route::Tls(resource) = route else { continue };
        let matching = FilterChainMatch {
            server_names: bytes::server_names(&resource.spec.hostnames),
            ..Default::default()
        };
        if let Some(filter) = bytes::split(scope, &destinations(scope, route), port) {
            bytes::push(&mut chains, matching, filter);
        }
    }
    chains
}
