//! Matches of HTTPRoute and GRPCRoute rules → `RouteMatch`, with their rank.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use weft_model::spec::gateway_api::{
    GrpcMethodMatch, GrpcRouteMatch, GrpcRouteRule, HttpRouteMatch, HttpRouteRule, MatchType,
    PathMatch, PathMatchType, ValueMatch,
};
use weft_model::spec::{HttpMatchRequest, StringMatch};
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;

use super::{PathKind, Rank};
use crate::build::regex;
use crate::route::matching as conditions;

/// The rule's matches, each with its rank and, for a prefix, that prefix (without a final slash).
pub(super) fn of_http(rule: &HttpRouteRule) -> Vec<(Rank, route::RouteMatch, Option<&str>)> {
    let any = [HttpRouteMatch::default()];
    let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
    let mut found: Vec<(Rank, route::RouteMatch, Option<&str>)> = Vec::new();
    for one in matches {
        let (kind, path) = path(&one.path);
        let request = HttpMatchRequest {
            method: one.method.clone().map(StringMatch::Exact),
            headers: values(&one.headers, true),
            query_params: values(&one.query_params, false),
            ..Default::default()
        };
        let rank = Rank {
            path: kind,
            path_bytes: Reverse(one.path.value.trim_end_matches('/').len()),
            any_method: one.method.is_none(),
            headers: Reverse(request.headers.len()),
            queries: Reverse(request.query_params.len()),
        };
        let matched =
            route::RouteMatch { path_specifier: Some(path), ..conditions::request(&request) };
        found.push((rank, matched, None));
    }
    // Only a rule with one match may need its prefix, which is then the rule's own.
    if let [(_, _, prefix)] = &mut found[..] {
        *prefix = match rule.matches.first() {
            None => Some(""),
            Some(one) if one.path.match_type == PathMatchType::PathPrefix => {
                Some(one.path.value.trim_end_matches('/'))
            }
            Some(_) => None,
        };
    }
    found
}

fn path(path: &PathMatch) -> (PathKind, PathSpecifier) {
    let value = path.value.as_str();
    match path.match_type {
        PathMatchType::Exact => (PathKind::Exact, PathSpecifier::Path(value.to_owned())),
        PathMatchType::PathPrefix => (PathKind::Prefix, prefix(value)),
        PathMatchType::RegularExpression => {
            (PathKind::Pattern, PathSpecifier::SafeRegex(regex(value)))
        }
    }
}

/// Whole path elements: `/a` and `/a/` both take `/a`, `/a/` and `/a/b`, not `/ab`.
fn prefix(value: &str) -> PathSpecifier {
    match value.trim_end_matches('/') {
        "" => PathSpecifier::Prefix("/".to_owned()),
        elements => PathSpecifier::PathSeparatedPrefix(elements.to_owned()),
    }
}

/// The first entry of a name counts; names of headers have no case.
fn values(matches: &[ValueMatch], any_case: bool) -> BTreeMap<String, StringMatch> {
    let mut found = BTreeMap::new();
    for one in matches {
        let name = if any_case { one.name.to_ascii_lowercase() } else { one.name.clone() };
        let value = match one.match_type {
            MatchType::Exact => StringMatch::Exact(one.value.clone()),
            MatchType::RegularExpression => StringMatch::Regex(one.value.clone()),
        };
        found.entry(name).or_insert(value);
    }
    found
}

/// The rule's matches, each with its rank.
pub(super) fn of_grpc(rule: &GrpcRouteRule) -> Vec<(Rank, route::RouteMatch)> {
    let any = [GrpcRouteMatch::default()];
    let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
    let one = |one: &GrpcRouteMatch| {
        let anything = GrpcMethodMatch::default();
        let (kind, bytes, path) = method(one.method.as_ref().unwrap_or(&anything));
        let request =
            HttpMatchRequest { headers: values(&one.headers, true), ..Default::default() };
        let rank = Rank {
            path: kind,
            path_bytes: Reverse(bytes),
            any_method: true,
            headers: Reverse(request.headers.len()),
            queries: Reverse(0),
        };
        let matched =
            route::RouteMatch { path_specifier: Some(path), ..conditions::request(&request) };
        (rank, matched)
    };
    matches.iter().map(one).collect()
}

/// `/SERVICE/METHOD`; how many characters of it are said.
fn method(method: &GrpcMethodMatch) -> (PathKind, usize, PathSpecifier) {
    let service = method.service.as_deref().filter(|name| !name.is_empty());
    let name = method.method.as_deref().filter(|name| !name.is_empty());
    let bytes = service.map_or(0, str::len) + name.map_or(0, str::len);
    let exact = method.match_type == MatchType::Exact;
    match (service, name) {
        (None, None) => (PathKind::Prefix, 0, PathSpecifier::Prefix("/".to_owned())),
        (Some(service), Some(name)) if exact => {
            (PathKind::Exact, bytes, PathSpecifier::Path(format!("/{service}/{name}")))
        }
        (Some(service), None) if exact => {
            (PathKind::Prefix, bytes, PathSpecifier::Prefix(format!("/{service}/")))
        }
        (service, name) => {
            let part = |text: Option<&str>| match text {
                None => "[^/]+".to_owned(),
                Some(text) if exact => text.replace('.', "\\."),
                Some(pattern) => format!("(?:{pattern})"),
            };
            let pattern = format!("/{}/{}", part(service), part(name));
            (PathKind::Pattern, bytes, PathSpecifier::SafeRegex(regex(&pattern)))
        }
    }
}
