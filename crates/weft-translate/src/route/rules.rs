//! The rules of one VirtualService, in order, for one place (a gateway or the mesh, and a port).

use weft_model::spec::{HttpMatchRequest, HttpRoute, VirtualService};
use weft_model::{Kind, MESH_GATEWAY, Resource};
use weft_xds::pb::envoy::config::route::v3 as route;

use super::{action, delegate, matching};
use crate::build::{istio_config, with_generation};
use crate::findings::Findings;
use crate::scope::Scope;
use crate::view::{Flavor, ProxyKind};

/// Where requests are when the rules are asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// `mesh` or the Gateway's `namespace/name`.
    pub(crate) gateway: &'a str,
    /// The port that clients address; rules may be for one port only.
    pub(crate) port: u16,
}

/// Routes of the rules that apply here. Ends early at a rule that takes everything: what follows
/// could never match (Istio's own cut, which its analysis reports as unreachable).
pub(crate) fn of_virtual_service<'a>(
    scope: &Scope<'a>,
    rules: &'a Resource<VirtualService>,
    place: &Place<'_>,
    findings: &mut Findings,
) -> Vec<route::Route> {
    let mut routes = Vec::new();
    for delegate::Rule { spec: rule, written_in, index } in delegate::expand(scope, rules, findings)
    {
        report_unsupported(scope, written_in, &rule, index, findings);
        let action = action::of_rule(scope, &rule, place.port);
        let mut origin = istio_config(&config_path(written_in), &format!("http[{index}]"));
        if scope.view.flavor == Flavor::Weft {
            with_generation(&mut origin, written_in.meta.generation);
        }
        for (name, stat_prefix, matched) in matches(scope, &rule, place) {
            let everything = matching::is_everything(&matched);
            let mut built = action.clone();
            built.name = name;
            built.stat_prefix = stat_prefix;
            built.r#match = Some(matched);
            built.metadata = origin.clone();
            built.decorator = decorator(scope, &built, place);
            routes.push(built);
            if everything {
                return routes;
            }
        }
    }
    routes
}

/// The route of a service without rules: everything, to its cluster.
pub(crate) fn default_route(
    scope: &Scope<'_>,
    cluster: String,
    host: &str,
    port: u16,
) -> route::Route {
    let action = action::to_cluster(scope, cluster, host, port);
    let mut built = route::Route {
        name: "default".to_owned(),
        r#match: Some(matching::everything()),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    };
    built.decorator = match scope.view.kind {
        ProxyKind::Grpc => None,
        ProxyKind::Sidecar | ProxyKind::Gateway => Some(operation(host, port)),
    };
    built
}

/// `/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME`
fn config_path(rules: &Resource<VirtualService>) -> String {
    format!(
        "/apis/networking.istio.io/v1/namespaces/{}/virtual-service/{}",
        rules.meta.namespace, rules.meta.name
    )
}

/// Route names, statistics' prefixes (Envoy's only) and matches of a rule; a rule's `match` entries
/// are alternatives.
fn matches(
    scope: &Scope<'_>,
    rule: &HttpRoute,
    place: &Place<'_>,
) -> Vec<(String, String, route::RouteMatch)> {
    if rule.matches.is_empty() {
        return vec![(rule.name.clone(), String::new(), matching::everything())];
    }
    let here = rule.matches.iter().filter(|conditions| applies(scope, conditions, place));
    here.map(|conditions| {
        let name = match (rule.name.as_str(), conditions.name.as_str()) {
            (rule, "") => rule.to_owned(),
            ("", own) => own.to_owned(),
            (rule, own) => format!("{rule}.{own}"),
        };
        (name, conditions.stat_prefix.clone(), matching::request(conditions))
    })
    .collect()
}

/// Conditions on where the request is, not on what it is.
fn applies(scope: &Scope<'_>, conditions: &HttpMatchRequest, place: &Place<'_>) -> bool {
    let gateway = conditions.gateways.is_empty()
        || conditions.gateways.iter().any(|gateway| gateway == place.gateway);
    let port = conditions.port.is_none_or(|port| port == u32::from(place.port));
    gateway
        && port
        && source_matches(scope, place, &conditions.source_labels, &conditions.source_namespace)
}

/// Source conditions hold for a sidecar by its own labels; at a gateway the source is outside, so
/// Istio ignores labels there but keeps the namespace.
pub(crate) fn source_matches(
    scope: &Scope<'_>,
    place: &Place<'_>,
    labels: &weft_model::Labels,
    namespace: &str,
) -> bool {
    let own_labels = labels.iter().all(|(key, value)| scope.view.labels.get(key) == Some(value));
    (own_labels || place.gateway != MESH_GATEWAY)
        && (namespace.is_empty() || namespace == &*scope.view.namespace)
}

/// Trace operation of the route's (first) destination: `host:port/*`.
pub(super) fn decorator(
    scope: &Scope<'_>,
    built: &route::Route,
    place: &Place<'_>,
) -> Option<route::Decorator> {
    use weft_xds::names::ClusterName;
    if scope.view.kind == ProxyKind::Grpc {
        return None;
    }
    let Some(route::route::Action::Route(forward)) = &built.action else { return None };
    let cluster = match forward.cluster_specifier.as_ref()? {
        route::route_action::ClusterSpecifier::Cluster(name) => name,
        route::route_action::ClusterSpecifier::WeightedClusters(split) => {
            &split.clusters.first()?.name
        }
        _ => return None,
    };
    match ClusterName::parse(cluster)? {
        ClusterName::Outbound { port, host, .. } => Some(operation(host, port)),
        _ => Some(operation("unknown", place.port)),
    }
}

fn operation(host: &str, port: u16) -> route::Decorator {
    route::Decorator { operation: format!("{host}:{port}/*"), ..Default::default() }
}

/// Fields that proxies act on and gRPC's own clients do not.
fn report_unsupported(
    scope: &Scope<'_>,
    rules: &Resource<VirtualService>,
    rule: &HttpRoute,
    index: usize,
    findings: &mut Findings,
) {
    if scope.view.kind != ProxyKind::Grpc {
        return;
    }
    let unread = [
        (rule.fault.is_some(), "fault"),
        (rule.cors_policy.is_some(), "corsPolicy"),
        (rule.mirror.is_some(), "mirror"),
        (!rule.mirrors.is_empty(), "mirrors"),
    ];
    for (_, field) in unread.into_iter().filter(|(set, _)| *set) {
        let path = format!("spec.http[{index}].{field}");
        findings.not_implemented(Kind::VirtualService, &rules.meta, &path);
    }
}
