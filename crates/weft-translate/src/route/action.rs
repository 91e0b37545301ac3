//! One `HTTPRoute` rule → what happens to its requests.

use std::time::Duration;

use weft_model::spec::{
    DerivePort, Destination, HttpDirectResponse, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute,
    HttpRouteDestination,
};
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

use super::headers::{self, Edits};
use super::{filters, hash, retry};
use crate::build::{boolean, duration, regex};
use crate::scope::Scope;
use crate::view::ProxyKind;

/// How long a mirror's failure or slowness matters: never; Envoy needs no more than the cluster.
const ALL: f64 = 100.0;

/// Everything of a route but its name, match and metadata. `port` is the port the request came
/// in on, which destinations without a port inherit.
pub(crate) fn of_rule(scope: &Scope<'_>, rule: &HttpRoute, port: u16) -> route::Route {
    let mut edits = headers::edits(rule.headers.as_ref());
    let action = if let Some(redirect) = &rule.redirect {
        route::route::Action::Redirect(redirection(redirect, port))
    } else if let Some(response) = &rule.direct_response {
        route::route::Action::DirectResponse(direct_response(response))
    } else {
        forward(scope, rule, port, &mut edits)
    };
    let mut built = route::Route {
        action: Some(action),
        request_headers_to_add: edits.request_add,
        request_headers_to_remove: edits.request_remove,
        response_headers_to_add: edits.response_add,
        response_headers_to_remove: edits.response_remove,
        ..Default::default()
    };
    if scope.view.kind != ProxyKind::Grpc {
        built.typed_per_filter_config = filters::per_route(rule);
    }
    built
}

/// The route of a service that no VirtualService speaks about.
pub(crate) fn to_cluster(
    scope: &Scope<'_>,
    cluster: String,
    host: &str,
    port: u16,
) -> route::RouteAction {
    let mut action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster)),
        hash_policy: hash::policies(scope, host, "", port),
        ..Default::default()
    };
    timeouts_and_retries(scope, &mut action, None, None);
    action
}

fn timeouts_and_retries(
    scope: &Scope<'_>,
    action: &mut route::RouteAction,
    timeout: Option<Duration>,
    retries: Option<&HttpRetry>,
) {
    timeouts(action, timeout.unwrap_or_default(), scope.view.kind == ProxyKind::Grpc);
    let mesh_default = scope.snapshot.mesh().default_http_retry_policy.as_ref();
    action.retry_policy = retry::policy(retries, mesh_default);
}

/// Istio's timeouts: none unless asked for, and a gRPC caller's `grpc-timeout` holds within them.
/// gRPC clients read another field than Envoy.
#[allow(deprecated)] // As Istio: what replaces `max_grpc_timeout` replaces the route's timeout too.
pub(crate) fn timeouts(action: &mut route::RouteAction, timeout: Duration, grpc_client: bool) {
    action.timeout = duration(timeout);
    if grpc_client {
        action.max_stream_duration = Some(route::route_action::MaxStreamDuration {
            max_stream_duration: duration(timeout),
            ..Default::default()
        });
    } else if timeout.is_zero() {
        action.max_stream_duration = Some(route::route_action::MaxStreamDuration {
            max_stream_duration: duration(timeout),
            grpc_timeout_header_max: duration(timeout),
            ..Default::default()
        });
    } else {
        action.max_grpc_timeout = duration(timeout);
    }
}

fn forward(
    scope: &Scope<'_>,
    rule: &HttpRoute,
    port: u16,
    edits: &mut Edits,
) -> route::route::Action {
    let Some(specifier) = clusters(scope, &rule.route, port, edits) else {
        // All weights are zero: the rule matches and nobody may answer.
        return route::route::Action::DirectResponse(route::DirectResponseAction {
            status: 503,
            ..Default::default()
        });
    };
    let mut action = route::RouteAction {
        cluster_specifier: Some(specifier),
        request_mirror_policies: mirrors(scope, rule, port),
        ..Default::default()
    };
    if let Some(first) = rule.route.first() {
        let target = &first.destination;
        let target_port = scope.destination_port(target, port);
        action.hash_policy = hash::policies(scope, &target.host, &target.subset, target_port);
    }
    timeouts_and_retries(scope, &mut action, rule.timeout, rule.retries.as_ref());
    if let Some(rewrite) = &rule.rewrite {
        apply_rewrite(&mut action, rewrite);
    }
    if let Some(authority) = edits.authority.take() {
        action.host_rewrite_specifier = Some(literal_host(authority));
    }
    route::route::Action::Route(action)
}

/// One destination: its cluster. Several: a split by weight; destinations of weight zero get
/// nothing. Header edits of an only destination are moved to the route.
fn clusters(
    scope: &Scope<'_>,
    destinations: &[HttpRouteDestination],
    port: u16,
    edits: &mut Edits,
) -> Option<route::route_action::ClusterSpecifier> {
    use route::route_action::ClusterSpecifier;
    if let [only] = destinations {
        let own = headers::edits(only.headers.as_ref());
        edits.request_add.extend(own.request_add);
        edits.request_remove.extend(own.request_remove);
        edits.response_add.extend(own.response_add);
        edits.response_remove.extend(own.response_remove);
        edits.authority = own.authority.or(edits.authority.take());
        return Some(ClusterSpecifier::Cluster(scope.destination_cluster(&only.destination, port)));
    }
    let weighted: Vec<_> =
        destinations.iter().filter_map(|destination| weighted(scope, destination, port)).collect();
    if weighted.is_empty() {
        return None;
    }
    Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
        clusters: weighted,
        ..Default::default()
    }))
}

fn weighted(
    scope: &Scope<'_>,
    destination: &HttpRouteDestination,
    port: u16,
) -> Option<route::weighted_cluster::ClusterWeight> {
    use route::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let weight = u32::try_from(destination.weight).ok().filter(|weight| *weight > 0)?;
    let edits = headers::edits(destination.headers.as_ref());
    Some(route::weighted_cluster::ClusterWeight {
        name: scope.destination_cluster(&destination.destination, port),
        weight: crate::build::uint32(weight),
        request_headers_to_add: edits.request_add,
        request_headers_to_remove: edits.request_remove,
        response_headers_to_add: edits.response_add,
        response_headers_to_remove: edits.response_remove,
        host_rewrite_specifier: edits.authority.map(HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    })
}

fn mirrors(
    scope: &Scope<'_>,
    rule: &HttpRoute,
    port: u16,
) -> Vec<route::route_action::RequestMirrorPolicy> {
    if scope.view.kind == ProxyKind::Grpc {
        return Vec::new();
    }
    let old_percent = rule.mirror_percent.map(f64::from);
    let percent = rule.mirror_percentage.map(|p| p.value).or(old_percent).unwrap_or(ALL);
    let single = rule.mirror.iter().map(|destination| (destination, percent));
    let several = rule
        .mirrors
        .iter()
        .map(|mirror| (&mirror.destination, mirror.percentage.map_or(ALL, |p| p.value)));
    let policy =
        |(destination, percent): (&Destination, f64)| route::route_action::RequestMirrorPolicy {
            cluster: scope.destination_cluster(destination, port),
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: Some(filters::fraction(percent)),
                runtime_key: String::new(),
            }),
            trace_sampled: boolean(false),
            ..Default::default()
        };
    single.chain(several).filter(|(_, percent)| *percent > 0.0).map(policy).collect()
}

fn apply_rewrite(action: &mut route::RouteAction, rewrite: &HttpRewrite) {
    match &rewrite.uri_regex_rewrite {
        Some(rule) => {
            action.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(regex(&rule.pattern)),
                substitution: rule.rewrite.clone(),
            });
        }
        // On an exact or regex match Envoy's prefix rewrite replaces the whole path, as Istio
        // documents it.
        None => action.prefix_rewrite = rewrite.uri.clone(),
    }
    if !rewrite.authority.is_empty() {
        action.host_rewrite_specifier = Some(literal_host(rewrite.authority.clone()));
    }
}

fn literal_host(host: String) -> route::route_action::HostRewriteSpecifier {
    route::route_action::HostRewriteSpecifier::HostRewriteLiteral(host)
}

fn redirection(redirect: &HttpRedirect, port: u16) -> route::RedirectAction {
    use route::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
    // `%PREFIX()%` at the start is Istio's way to say "replace the matched prefix".
    let path = match redirect.uri.strip_prefix("%PREFIX()%") {
        _ if !redirect.prefix_rewrite.is_empty() => {
            Some(PathRewriteSpecifier::PrefixRewrite(redirect.prefix_rewrite.clone()))
        }
        Some(rest) => Some(PathRewriteSpecifier::PrefixRewrite(rest.to_owned())),
        None if redirect.uri.is_empty() => None,
        None => Some(PathRewriteSpecifier::PathRedirect(redirect.uri.clone())),
    };
    let scheme = (!redirect.scheme.is_empty())
        .then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone()));
    let port_redirect = match (redirect.port, redirect.derive_port) {
        (Some(fixed), _) => fixed,
        // The route exists once per port, so the request's port is known here.
        (None, Some(DerivePort::FromRequestPort)) => u32::from(port),
        (None, Some(DerivePort::FromProtocolDefault) | None) => 0,
    };
    route::RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect,
        response_code: redirect_code(redirect.redirect_code) as i32,
        path_rewrite_specifier: path,
        scheme_rewrite_specifier: scheme,
        ..Default::default()
    }
}

fn redirect_code(code: Option<u32>) -> route::redirect_action::RedirectResponseCode {
    use route::redirect_action::RedirectResponseCode;
    match code {
        Some(302) => RedirectResponseCode::Found,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    }
}

fn direct_response(response: &HttpDirectResponse) -> route::DirectResponseAction {
    let body = response.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(text), _) => Some(crate::build::inline_string(text)),
        (None, Some(encoded)) => decode_base64(encoded).map(crate::build::inline_bytes),
        (None, None) => None,
    });
    route::DirectResponseAction { status: response.status, body, ..Default::default() }
}

/// Standard alphabet, padding optional; `None` on anything else. (Too little code for a
/// dependency.)
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let mut bits: u32 = 0;
    let mut count = 0;
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'\n' | b'\r' => continue,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_bodies() {
        assert_eq!(decode_base64("aGVsbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(decode_base64("aGk").as_deref(), Some(&b"hi"[..]));
        assert_eq!(decode_base64("a b"), None);
    }
}
