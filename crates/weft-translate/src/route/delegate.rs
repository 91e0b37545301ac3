//! `delegate`: a rule whose details another VirtualService has.
//!
//! Istio's merge: the delegate's rules stand in for the rule, each with the conditions of both;
//! what the delegate leaves open comes from the rule. One level only.

use std::borrow::Cow;

use weft_model::spec::{HttpMatchRequest, HttpRoute, StringMatch, VirtualService};
use weft_model::{Kind, Resource};

use crate::findings::Findings;
use crate::scope::Scope;

/// Istio: ReferencedResourceNotFound.
const NOT_FOUND: &str = "IST0101";

/// A rule ready to be translated, and where it was written.
pub(crate) struct Rule<'a> {
    pub(crate) spec: Cow<'a, HttpRoute>,
    pub(crate) written_in: &'a Resource<VirtualService>,
    pub(crate) index: usize,
}

/// The rules of a VirtualService with delegates filled in, in order.
pub(crate) fn expand<'a>(
    scope: &Scope<'a>,
    rules: &'a Resource<VirtualService>,
    findings: &mut Findings,
) -> Vec<Rule<'a>> {
    let mut expanded = Vec::new();
    for (index, rule) in rules.spec.http.iter().enumerate() {
        let Some(delegate) = &rule.delegate else {
            expanded.push(Rule { spec: Cow::Borrowed(rule), written_in: rules, index });
            continue;
        };
        let namespace = match delegate.namespace.as_str() {
            "" => &*rules.meta.namespace,
            given => given,
        };
        let Some(other) = scope.virtual_service(namespace, &delegate.name) else {
            let path = format!("spec.http[{index}].delegate");
            let message = format!("no VirtualService {namespace}/{}", delegate.name);
            findings.add(Kind::VirtualService, &rules.meta, NOT_FOUND, &path, &message);
            continue;
        };
        for (index, detail) in other.spec.http.iter().enumerate() {
            if let Some(merged) = merge(rule, detail) {
                expanded.push(Rule { spec: Cow::Owned(merged), written_in: other, index });
            }
        }
    }
    expanded
}

/// `None`: no request can meet both rules' conditions, or the delegate delegates again.
fn merge(rule: &HttpRoute, detail: &HttpRoute) -> Option<HttpRoute> {
    if detail.delegate.is_some() {
        return None;
    }
    let matches = merge_matches(&rule.matches, &detail.matches)?;
    let own = detail.clone();
    Some(HttpRoute {
        name: join(&rule.name, &detail.name),
        matches,
        rewrite: own.rewrite.or_else(|| rule.rewrite.clone()),
        timeout: own.timeout.or(rule.timeout),
        retries: own.retries.or_else(|| rule.retries.clone()),
        fault: own.fault.or_else(|| rule.fault.clone()),
        mirror: own.mirror.or_else(|| rule.mirror.clone()),
        mirror_percent: own.mirror_percent.or(rule.mirror_percent),
        mirror_percentage: own.mirror_percentage.or(rule.mirror_percentage),
        mirrors: if own.mirrors.is_empty() { rule.mirrors.clone() } else { own.mirrors },
        cors_policy: own.cors_policy.or_else(|| rule.cors_policy.clone()),
        headers: own.headers.or_else(|| rule.headers.clone()),
        ..own
    })
}

fn join(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        (outer, "") => outer.to_owned(),
        ("", inner) => inner.to_owned(),
        (outer, inner) => format!("{outer}-{inner}"),
    }
}

/// Alternatives of both: every pair. `None` when there were some and none is possible.
fn merge_matches(
    outer: &[HttpMatchRequest],
    inner: &[HttpMatchRequest],
) -> Option<Vec<HttpMatchRequest>> {
    match (outer, inner) {
        ([], only) | (only, []) => Some(only.to_vec()),
        (outer, inner) => {
            let pairs = outer.iter().flat_map(|a| inner.iter().map(move |b| (a, b)));
            let merged: Vec<_> = pairs.filter_map(|(a, b)| merge_match(a, b)).collect();
            (!merged.is_empty()).then_some(merged)
        }
    }
}

fn merge_match(outer: &HttpMatchRequest, inner: &HttpMatchRequest) -> Option<HttpMatchRequest> {
    if let (Some(outer), Some(inner)) = (&outer.uri, &inner.uri)
        && !is_narrower(outer, inner)
    {
        return None;
    }
    let mut merged = inner.clone();
    merged.name = join(&outer.name, &inner.name);
    merged.uri = inner.uri.clone().or_else(|| outer.uri.clone());
    merged.ignore_uri_case |= outer.ignore_uri_case;
    merged.scheme = inner.scheme.clone().or_else(|| outer.scheme.clone());
    merged.method = inner.method.clone().or_else(|| outer.method.clone());
    merged.authority = inner.authority.clone().or_else(|| outer.authority.clone());
    merged.port = inner.port.or(outer.port);
    for (ours, theirs) in [
        (&mut merged.headers, &outer.headers),
        (&mut merged.without_headers, &outer.without_headers),
        (&mut merged.query_params, &outer.query_params),
    ] {
        for (name, value) in theirs {
            ours.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    for (name, value) in &outer.source_labels {
        merged.source_labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    if merged.gateways.is_empty() {
        merged.gateways = outer.gateways.clone();
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace = outer.source_namespace.clone();
    }
    Some(merged)
}

/// Only a prefix can be narrowed, by paths that start with it.
fn is_narrower(outer: &StringMatch, inner: &StringMatch) -> bool {
    match (outer, inner) {
        (StringMatch::Prefix(start), StringMatch::Prefix(path) | StringMatch::Exact(path)) => {
            path.starts_with(start)
        }
        (StringMatch::Present, _) => true,
        (outer, inner) => outer == inner,
    }
}
