//! EnvoyFilter: that target, match and patch fit together, as Istio's admission asks. Whether the
//! value is one of Envoy's messages is translation's to say.

use super::{Findings, bounds, text};
use crate::diagnostic::code;
use crate::spec::{
    ApplyTo, ConfigPatch, EnvoyFilter, FilterMatch, ObjectMatch, Operation, PatchContext,
    PolicyTargetReference,
};

/// The network filter that HTTP filters are inside of; the second name is Envoy's old one.
const HTTP_MANAGERS: [&str; 2] =
    ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];

pub(super) fn check(spec: &EnvoyFilter, findings: &mut Findings<'_>) {
    if spec.workload_selector.is_some() && !spec.target_refs.is_empty() {
        findings.error_with_help(
            "spec",
            "only one of targetRefs or workloadSelector can be set",
            "Remove one of the two.",
        );
    }
    if let Some(selector) = &spec.workload_selector {
        bounds::selector(&selector.labels, 256, "spec.workloadSelector.labels", findings);
    }
    target_refs(&spec.target_refs, findings);
    for (index, patch) in spec.config_patches.iter().enumerate() {
        let path = format!("spec.configPatches[{index}]");
        check_patch(patch, &path, findings);
        relative(spec, patch, &path, findings);
    }
}

/// `targetRefs` of any policy.
pub(super) fn target_refs(refs: &[PolicyTargetReference], findings: &mut Findings<'_>) {
    if refs.len() > 16 {
        findings.error("spec.targetRefs", "at most 16 targets can be named");
    }
    for (index, target) in refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{index}]");
        let group = &target.group;
        if !group.is_empty() && !text::is_subdomain(group) {
            findings.error(format!("{path}.group"), format!("{group:?} is not an API group"));
        }
        if !text::is_kind(&target.kind) {
            findings.error(format!("{path}.kind"), format!("{:?} is not a kind", target.kind));
        }
        if !matches!(target.name.len(), 1..=253) {
            findings.error(format!("{path}.name"), "a name of 1 to 253 characters is required");
        }
        if !target.namespace.is_empty() {
            let message = "cross namespace referencing is not currently supported";
            findings.error(format!("{path}.namespace"), message);
        }
    }
}

fn check_patch(patch: &ConfigPatch, path: &str, findings: &mut Findings<'_>) {
    if patch.apply_to == ApplyTo::Invalid {
        findings.error_with_help(
            format!("{path}.applyTo"),
            "applyTo is missing",
            "Name the part of the configuration, such as HTTP_FILTER or CLUSTER.",
        );
    }
    let (operation, value) = match &patch.patch {
        Some(what) => (what.operation, what.value.as_ref()),
        None => {
            let help = "Add patch.operation and, but for REMOVE, patch.value.";
            return findings.error_with_help(format!("{path}.patch"), "patch is missing", help);
        }
    };
    if operation == Operation::Invalid {
        findings.error(format!("{path}.patch.operation"), "the operation is missing");
    } else if operation != Operation::Remove && value.is_none() {
        let message = format!("{} needs a value", operation.as_str());
        findings.error(format!("{path}.patch.value"), message);
    }
    if value.is_some_and(|value| !value.is_object()) {
        findings.error(format!("{path}.patch.value"), "expected a map");
    }
    operation_fits(patch.apply_to, operation, path, findings);
    if let Some(wanted) = &patch.matches {
        check_match(patch.apply_to, wanted, &format!("{path}.match"), findings);
    }
}

/// Istio's analyzers of operations.
fn operation_fits(to: ApplyTo, operation: Operation, path: &str, findings: &mut Findings<'_>) {
    let path = format!("{path}.patch.operation");
    let (code, help) = match (operation, to) {
        (Operation::Replace, ApplyTo::HttpFilter | ApplyTo::NetworkFilter) => return,
        // Istio applies it to these two as well.
        (Operation::Replace, ApplyTo::ListenerFilter | ApplyTo::VirtualHost) => return,
        (Operation::Replace, _) => (code::REPLACE, "Use MERGE, or REMOVE and ADD."),
        (Operation::Add, ApplyTo::RouteConfiguration) => {
            (code::ADD, "Use MERGE, or ADD a VIRTUAL_HOST.")
        }
        (Operation::Remove, ApplyTo::RouteConfiguration) => {
            (code::REMOVE, "REMOVE the VIRTUAL_HOST or the HTTP_ROUTE.")
        }
        _ => return,
    };
    let message = format!("{} has no effect on {}", operation.as_str(), to.as_str());
    findings.report(code, path, message, help);
}

/// An operation that looks for another filter's work, without a priority to come after it.
fn relative(spec: &EnvoyFilter, patch: &ConfigPatch, path: &str, findings: &mut Findings<'_>) {
    let operation = patch.patch.as_ref().map_or(Operation::Invalid, |patch| patch.operation);
    if spec.priority != 0 {
        return;
    }
    let proxy = patch.matches.as_ref().and_then(|wanted| wanted.proxy.as_ref());
    let versioned = proxy.is_some_and(|proxy| !proxy.proxy_version.is_empty());
    let inserts = matches!(operation, Operation::InsertBefore | Operation::InsertAfter);
    let changes = matches!(
        operation,
        Operation::Replace | Operation::Remove | Operation::Merge | Operation::MergeAndReplaceList
    );
    // Without a name to look for these are the same as first and last.
    let looks = patch.matches.as_ref().is_some_and(names_a_filter);
    let code = match (inserts, changes, versioned) {
        (true, _, true) | (_, true, true) => code::RELATIVE_WITH_VERSION,
        (true, _, false) if looks => code::RELATIVE,
        _ => return,
    };
    let message = format!(
        "{} depends on what other EnvoyFilters did before, and this one has no priority",
        operation.as_str()
    );
    let help = "Set spec.priority, or use INSERT_FIRST or ADD.";
    findings.report(code, format!("{path}.patch.operation"), message, help);
}

/// A filter that the proxy has anyway is always found.
fn names_a_filter(wanted: &ObjectMatch) -> bool {
    const STANDING: [&str; 4] =
        ["envoy.filters.http.router", "envoy.router", HTTP_MANAGERS[0], HTTP_MANAGERS[1]];
    let listener = wanted.listener.as_ref();
    let chain = listener.and_then(|listener| listener.filter_chain.as_ref());
    let filter = chain.and_then(|chain| chain.filter.as_ref());
    let name = filter.map(|filter| filter.sub_filter.as_ref().map_or(&filter.name, |s| &s.name));
    name.is_some_and(|name| !STANDING.contains(&name.as_str()))
}

fn check_match(to: ApplyTo, wanted: &ObjectMatch, path: &str, findings: &mut Findings<'_>) {
    let ObjectMatch { context, proxy, listener, route_configuration, cluster, waypoint } = wanted;
    let objects =
        [listener.is_some(), route_configuration.is_some(), cluster.is_some(), waypoint.is_some()];
    if objects.iter().filter(|set| **set).count() > 1 {
        let message = "only one of listener, routeConfiguration, cluster, waypoint can be set";
        return findings.error(path, message);
    }
    if (*context == PatchContext::Waypoint) != waypoint.is_some() {
        findings.error(path, "only support waypointMatch when context is WAYPOINT");
    }
    if let Some(port) = waypoint.as_ref().and_then(|waypoint| waypoint.port_number) {
        super::port_number(port, format!("{path}.waypoint.portNumber"), findings);
    }
    if let Some(proxy) = proxy
        && !proxy.proxy_version.is_empty()
        && let Some(why) = text::regex_problem(&proxy.proxy_version)
    {
        findings.error(format!("{path}.proxy.proxyVersion"), why);
    }
    let (fits, class) = match to {
        ApplyTo::Listener
        | ApplyTo::FilterChain
        | ApplyTo::NetworkFilter
        | ApplyTo::HttpFilter
        | ApplyTo::ListenerFilter => (objects[0] || objects[3], "listener"),
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
            (objects[1] || objects[3], "routeConfiguration")
        }
        ApplyTo::Cluster => (objects[2], "cluster"),
        ApplyTo::ExtensionConfig | ApplyTo::Bootstrap | ApplyTo::Invalid => (true, ""),
    };
    if objects.contains(&true) && !fits {
        let message = format!("{} can only be matched by {class}", to.as_str());
        findings.error(path, message);
    }
    let chain = listener.as_ref().and_then(|listener| listener.filter_chain.as_ref());
    if let Some(filter) = chain.and_then(|chain| chain.filter.as_ref()) {
        check_filter(to, filter, &format!("{path}.listener.filterChain.filter"), findings);
    }
}

fn check_filter(to: ApplyTo, filter: &FilterMatch, path: &str, findings: &mut Findings<'_>) {
    if matches!(to, ApplyTo::Listener | ApplyTo::FilterChain) {
        let message = format!("a filter match has no effect when used with {}", to.as_str());
        findings.warn(code::SCHEMA_WARNING, path, message, "Remove it.");
    }
    if filter.name.is_empty() {
        findings.error(format!("{path}.name"), "the filter match has no name to match on");
    }
    let Some(sub_filter) = &filter.sub_filter else { return };
    let path = format!("{path}.subFilter");
    if to != ApplyTo::HttpFilter {
        findings.error(path, "a subFilter can be used with applyTo HTTP_FILTER only");
    } else if !HTTP_MANAGERS.contains(&filter.name.as_str()) {
        let message = format!("a subFilter needs a filter match with {}", HTTP_MANAGERS[0]);
        findings.error(path, message);
    } else if sub_filter.name.is_empty() {
        findings.error(format!("{path}.name"), "the subFilter match has no name to match on");
    }
}
