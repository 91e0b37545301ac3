//! `HTTPMatchRequest` → `RouteMatch`: what a request must look like.

use weft_model::spec::{HttpMatchRequest, StringMatch};
use weft_xds::pb::envoy::config::route::v3 as route;

use crate::build::{boolean, exact, prefix, regex, regex_string};

/// The match of a rule without conditions: everything.
pub(crate) fn everything() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// Does this match let every request through, so that rules after it are never reached?
pub(crate) fn is_everything(matching: &route::RouteMatch) -> bool {
    let any_path = match &matching.path_specifier {
        Some(route::route_match::PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(route::route_match::PathSpecifier::SafeRegex(regex)) => {
            regex.regex == ".*" || regex.regex == "/.*"
        }
        _ => false,
    };
    any_path && matching.headers.is_empty() && matching.query_parameters.is_empty()
}

/// Conditions on the request. What depends on the proxy (gateways, source labels, port) has been
/// decided before.
pub(crate) fn request(conditions: &HttpMatchRequest) -> route::RouteMatch {
    let mut matching = everything();
    if let Some(uri) = &conditions.uri {
        matching.path_specifier = Some(path(uri));
    }
    if conditions.ignore_uri_case {
        matching.case_sensitive = boolean(false);
    }
    let headers = &mut matching.headers;
    for (name, value) in &conditions.headers {
        headers.push(header(name, value));
    }
    for (name, value) in &conditions.without_headers {
        headers.push(absent_header(name, value));
    }
    for (name, value) in [
        (":method", &conditions.method),
        (":authority", &conditions.authority),
        (":scheme", &conditions.scheme),
    ] {
        headers.extend(value.as_ref().map(|value| header(name, value)));
    }
    for (name, value) in &conditions.query_params {
        matching.query_parameters.push(query_parameter(name, value));
    }
    matching
}

fn path(uri: &StringMatch) -> route::route_match::PathSpecifier {
    use route::route_match::PathSpecifier;
    match uri {
        StringMatch::Exact(value) => PathSpecifier::Path(value.clone()),
        StringMatch::Prefix(value) => PathSpecifier::Prefix(value.clone()),
        StringMatch::Regex(value) => PathSpecifier::SafeRegex(regex(value)),
        StringMatch::Present => PathSpecifier::Prefix("/".to_owned()),
    }
}

/// Envoy's spelling of a header name: lower case, `Host` is `:authority`.
fn header_name(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    if name == "host" { ":authority".to_owned() } else { name }
}

fn header(name: &str, value: &StringMatch) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    let specifier = match value {
        StringMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
        StringMatch::Exact(value) => HeaderMatchSpecifier::StringMatch(exact(value)),
        StringMatch::Prefix(value) => HeaderMatchSpecifier::StringMatch(prefix(value)),
        StringMatch::Regex(value) => HeaderMatchSpecifier::StringMatch(regex_string(value)),
    };
    route::HeaderMatcher {
        name: header_name(name),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

/// Envoy never matches a missing header, inverted or not, unless told to read it as empty.
fn absent_header(name: &str, value: &StringMatch) -> route::HeaderMatcher {
    route::HeaderMatcher {
        invert_match: true,
        treat_missing_header_as_empty: *value != StringMatch::Present,
        ..header(name, value)
    }
}

fn query_parameter(name: &str, value: &StringMatch) -> route::QueryParameterMatcher {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier;
    let specifier = match value {
        StringMatch::Present => QueryParameterMatchSpecifier::PresentMatch(true),
        StringMatch::Exact(value) => QueryParameterMatchSpecifier::StringMatch(exact(value)),
        StringMatch::Prefix(value) => QueryParameterMatchSpecifier::StringMatch(prefix(value)),
        StringMatch::Regex(value) => QueryParameterMatchSpecifier::StringMatch(regex_string(value)),
    };
    route::QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(specifier),
    }
}
