//! Clusters: one for each port of each visible service, one more for each subset, the workload's
//! own ports, and the fixed ones for traffic nobody declared.

mod inbound;
pub(crate) mod limits;
mod tls;
mod unsupported;

use std::collections::BTreeSet;
use std::time::Duration;

use weft_model::spec::{DestinationRule, OutboundMode, ServerTlsMode, SimpleLb, Subset};
use weft_model::{MeshService, Protocol, Resolution, Resource, ServicePort};
use weft_xds::names::{self, ClusterName};
use weft_xds::pb::envoy::config::cluster::v3 as pb;
use weft_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
    common_lb_config,
};
use weft_xds::pb::envoy::config::core::v3::Metadata;
use weft_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_xds::pb::envoy::r#type::v3::Percent;

use crate::build::dynamic;
use crate::build::{ads, duration, list_value, struct_value, structure, text, with_generation};
use crate::endpoint;
use crate::findings::Findings;
use crate::locality::Preference;
use crate::memo::Memo;
use crate::policy::{self, Policy};
use crate::scope::Scope;
use crate::view::{Flavor, ProxyKind};

/// Istio's default for `connectTimeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a cluster's connections carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upstream {
    Tcp,
    Http1,
    Http2,
    /// The version the client used.
    AsClient,
}

/// Clusters towards services, encoded and ordered by name. Those of one service are a part of
/// `memo`; parts of `before` that still hold are taken over.
pub(crate) fn outbound(
    scope: &Scope<'_>,
    before: &[&Memo],
    memo: &mut Memo,
    findings: &mut Findings,
) -> Vec<weft_xds::Resource> {
    let before: Vec<_> = before.iter().map(|memo| &memo.clusters).collect();
    let mut clusters = encode(&fixed(scope));
    for service in scope.services() {
        let made = memo.clusters.part(scope, service, &before, findings, |findings| {
            encode(&of_service(scope, service, findings)).into()
        });
        clusters.extend_from_slice(made);
    }
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters.dedup_by(|a, b| a.name == b.name);
    clusters
}

/// Those that no service decides.
fn fixed(scope: &Scope<'_>) -> Vec<pb::Cluster> {
    match scope.view.kind {
        ProxyKind::Grpc => Vec::new(),
        ProxyKind::Gateway => vec![black_hole()],
        ProxyKind::Sidecar => {
            let mut fixed = vec![black_hole(), passthrough(scope, names::PASSTHROUGH_CLUSTER)];
            if scope.outbound_mode() == OutboundMode::AllowAnyDynamicDns {
                let mut any = passthrough(scope, names::DYNAMIC_DNS_CLUSTER);
                any.cluster_discovery_type = Some(by_name(scope, false));
                fixed.push(any);
            }
            fixed
        }
    }
}

/// Reads the service, its rule and the base of the world, and of the view all but its namespace.
fn of_service(
    scope: &Scope<'_>,
    service: &MeshService,
    findings: &mut Findings,
) -> Vec<pb::Cluster> {
    let mut clusters = Vec::new();
    if let Some(rule) = scope.rule(&service.host) {
        unsupported::report(scope.view, service, rule, findings);
    }
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
        of_port(scope, service, port, &mut clusters);
    }
    clusters
}

fn encode(clusters: &[pb::Cluster]) -> Vec<weft_xds::Resource> {
    clusters.iter().map(|cluster| weft_xds::Resource::new(cluster.name.as_str(), cluster)).collect()
}

/// Clusters towards the proxy's own application.
pub(crate) fn inbound(scope: &Scope<'_>) -> Vec<pb::Cluster> {
    inbound::clusters(scope)
}

/// The port's cluster and those of its subsets.
fn of_port(
    scope: &Scope<'_>,
    service: &MeshService,
    port: &ServicePort,
    clusters: &mut Vec<pb::Cluster>,
) {
    let rule = scope.rule(&service.host);
    clusters.push(to_service(scope, service, port, rule.map(|rule| &**rule), None));
    let Some(rule) = rule else { return };
    let mut seen = BTreeSet::new();
    for subset in &rule.spec.subsets {
        if seen.insert(&subset.name) {
            clusters.push(to_service(scope, service, port, Some(rule), Some(subset)));
        }
    }
}

fn to_service<'a>(
    scope: &Scope<'a>,
    service: &MeshService,
    port: &ServicePort,
    rule: Option<&'a Resource<DestinationRule>>,
    subset: Option<&'a Subset>,
) -> pb::Cluster {
    let subset_name = subset.map_or("", |subset| subset.name.as_str());
    let policy = policy::policy(rule.map(|rule| &rule.spec), subset, port.number);
    let upstream = limits::upstream_of(declared(port.protocol), policy.connection_pool);
    let mut cluster = pb::Cluster {
        name: names::outbound_cluster(port.number, subset_name, &service.host),
        connect_timeout: duration(connect_timeout(scope, &policy)),
        metadata: Some(metadata(service, subset_name, config_path(scope, service, port, rule))),
        ..Default::default()
    };
    if let (Flavor::Weft, Some(rule)) = (scope.view.flavor, rule) {
        with_generation(&mut cluster.metadata, rule.meta.generation);
    }
    let preference = Preference::new(scope, &policy, service);
    let members = Members { service, port, subset, preference: &preference };
    discover(scope, &mut cluster, &members, &policy);
    if scope.view.kind == ProxyKind::Grpc {
        for_grpc(scope, &mut cluster, service, &policy);
        return cluster;
    }
    apply_limits(scope, &mut cluster, &policy, upstream);
    if endpoint::tells_unready(service) {
        // Those that are not ready are never used, however few the others are.
        let config = cluster.common_lb_config.get_or_insert_default();
        config.healthy_panic_threshold = Some(Percent { value: 0.0 });
    }
    if preference.weighs_localities() {
        let weighted = common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(
            common_lb_config::LocalityWeightedLbConfig::default(),
        );
        let config = cluster.common_lb_config.get_or_insert_default();
        config.locality_config_specifier = Some(weighted);
    }
    let selective = rule.is_some_and(|rule| rule.spec.workload_selector.is_some());
    let target =
        tls::Target { service, port: port.number, subset: subset_name, upstream, selective };
    tls::apply(scope, &mut cluster, &target, policy.tls);
    if let Some(settings) = policy.proxy_protocol {
        tls::announce_client(&mut cluster, settings.version);
    }
    cluster
}

fn has_auto_passthrough(scope: &Scope<'_>) -> bool {
    let mut servers =
        scope.snapshot.gateways_for(&scope.view.labels).into_iter().flat_map(|g| &g.spec.servers);
    servers.any(|server| {
        server.tls.as_ref().is_some_and(|tls| tls.mode == ServerTlsMode::AutoPassthrough)
    })
}

/// Names that mutual TLS of the mesh may have in its SNI: one for each port of each service inside
/// the mesh, one more for each subset.
pub(crate) fn sni_dnat_names(scope: &Scope<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for service in scope.services().filter(|service| !service.mesh_external) {
        let rule = scope.rule(&service.host);
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            found.push(names::outbound_sni(port.number, "", &service.host));
            let subsets = rule.iter().flat_map(|rule| &rule.spec.subsets);
            found.extend(
                subsets.map(|one| names::outbound_sni(port.number, &one.name, &service.host)),
            );
        }
    }
    found.sort();
    found.dedup();
    found
}

/// A gateway's clusters that its own Gateways ask for.
pub(crate) fn of_gateway(scope: &Scope<'_>) -> Vec<pb::Cluster> {
    if has_auto_passthrough(scope) { sni_dnat(scope) } else { Vec::new() }
}

/// The clusters of these names: as those to the services, without TLS of our own.
fn sni_dnat(scope: &Scope<'_>) -> Vec<pb::Cluster> {
    let inside = scope.services().filter(|service| !service.mesh_external);
    let plain = inside.flat_map(|service| of_service(scope, service, &mut Findings::default()));
    plain
        .filter_map(|mut cluster| {
            let ClusterName::Outbound { port, subset, host } = ClusterName::parse(&cluster.name)?
            else {
                return None;
            };
            let name = names::outbound_sni(port, subset, host);
            cluster.transport_socket = None;
            cluster.transport_socket_matches.clear();
            cluster.typed_extension_protocol_options.clear();
            if let Some(eds) = &mut cluster.eds_cluster_config {
                eds.service_name.clone_from(&name);
            }
            if let Some(assignment) = &mut cluster.load_assignment {
                assignment.cluster_name.clone_from(&name);
            }
            cluster.name = name;
            Some(cluster)
        })
        .collect()
}

fn declared(protocol: Protocol) -> Upstream {
    match protocol {
        Protocol::Auto => Upstream::AsClient,
        protocol if protocol.is_http2() => Upstream::Http2,
        protocol if protocol.is_http() => Upstream::Http1,
        _ => Upstream::Tcp,
    }
}

fn connect_timeout(scope: &Scope<'_>, policy: &Policy<'_>) -> Duration {
    let tcp = policy.connection_pool.and_then(|pool| pool.tcp.as_ref());
    tcp.and_then(|tcp| tcp.connect_timeout)
        .or(scope.snapshot.mesh().connect_timeout)
        .unwrap_or(CONNECT_TIMEOUT)
}

/// What a cluster's endpoints are chosen from.
struct Members<'a> {
    service: &'a MeshService,
    port: &'a ServicePort,
    subset: Option<&'a Subset>,
    preference: &'a Preference<'a>,
}

/// Where endpoints come from.
fn discover(
    scope: &Scope<'_>,
    cluster: &mut pb::Cluster,
    members: &Members<'_>,
    policy: &Policy<'_>,
) {
    let Members { service, port, subset, preference } = *members;
    let (balancing, ring) = limits::balancing(policy.load_balancer);
    cluster.lb_policy = balancing as i32;
    cluster.lb_config = ring;
    let is_passthrough =
        policy.load_balancer.and_then(|lb| lb.simple) == Some(SimpleLb::Passthrough);
    let kind = match service.resolution {
        Resolution::DynamicDns => {
            let checked = policy.tls.is_some_and(tls::names_by_request);
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            cluster.lb_config = None;
            cluster.cluster_discovery_type = Some(by_name(scope, checked));
            return;
        }
        Resolution::None => DiscoveryType::OriginalDst,
        Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin if is_passthrough => {
            DiscoveryType::OriginalDst
        }
        Resolution::Static => DiscoveryType::Eds,
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
    };
    match kind {
        DiscoveryType::OriginalDst => {
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            cluster.lb_config = None;
        }
        DiscoveryType::Eds => {
            cluster.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: cluster.name.clone(),
            });
        }
        _ => {
            cluster.dns_lookup_family = scope.lookup_family() as i32;
            let name = &cluster.name;
            let mut assignment =
                endpoint::assignment(scope, name, service, port.number, subset, preference);
            if kind == DiscoveryType::LogicalDns {
                endpoint::keep_one(&mut assignment);
            }
            cluster.load_assignment = Some(assignment);
        }
    }
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
}

/// The host that a request names decides.
fn by_name(scope: &Scope<'_>, checked: bool) -> ClusterDiscoveryType {
    let family = scope.lookup_family() as i32;
    ClusterDiscoveryType::ClusterType(dynamic::cluster_type(family, checked))
}

fn apply_limits(
    scope: &Scope<'_>,
    cluster: &mut pb::Cluster,
    policy: &Policy<'_>,
    upstream: Upstream,
) {
    let pool = policy.connection_pool;
    cluster.circuit_breakers = Some(limits::breakers(pool, policy.retry_budget));
    cluster.upstream_connection_options =
        limits::keepalive(pool, scope.snapshot.mesh().tcp_keepalive.as_ref());
    cluster.outlier_detection = policy.outlier_detection.map(limits::outliers);
    if policy.outlier_detection.is_some() {
        cluster.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent {
                value: limits::panic_threshold(policy.outlier_detection),
            }),
            ..Default::default()
        });
    }
    let errors =
        policy.outlier_detection.map(|outliers| &*outliers.outlier_detection_http_error_codes);
    cluster.typed_extension_protocol_options =
        limits::protocol_options(upstream, pool, errors, scope.view.flavor).into_iter().collect();
}

/// grpc's client knows round robin and ring hash, breakers of requests, and TLS in the cluster's
/// own socket only (no choice by endpoint).
fn for_grpc(
    scope: &Scope<'_>,
    cluster: &mut pb::Cluster,
    service: &MeshService,
    policy: &Policy<'_>,
) {
    if cluster.lb_policy != LbPolicy::RingHash as i32 {
        cluster.lb_policy = LbPolicy::RoundRobin as i32;
        cluster.lb_config = None;
    }
    cluster.circuit_breakers =
        policy.connection_pool.map(|pool| limits::breakers(Some(pool), None));
    cluster.outlier_detection = policy.outlier_detection.map(limits::outliers);
    cluster.transport_socket = tls::for_grpc(scope, service, policy.tls);
}

/// The resource that shaped the cluster: its DestinationRule, else its BackendTLSPolicy.
fn config_path(
    scope: &Scope<'_>,
    service: &MeshService,
    port: &ServicePort,
    rule: Option<&Resource<DestinationRule>>,
) -> Option<String> {
    if let Some(Resource { meta, .. }) = rule {
        return Some(format!(
            "/apis/networking.istio.io/v1/namespaces/{}/destination-rule/{}",
            meta.namespace, meta.name
        ));
    }
    let meta = &scope.snapshot.backend_tls(service, port.number)?.policy.meta;
    Some(format!(
        "/apis/gateway.networking.k8s.io/v1/namespaces/{}/backendtlspolicy/{}",
        meta.namespace, meta.name
    ))
}

/// `istio.services` (and `subset`): what metrics and access logs call the destination; `config`: what shaped
/// the cluster.
fn metadata(service: &MeshService, subset: &str, config: Option<String>) -> Metadata {
    let named = structure([
        ("host", text(&service.host)),
        ("name", text(&service.name)),
        ("namespace", text(&service.namespace)),
    ]);
    let mut fields = structure([("services", list_value(vec![struct_value(named)]))]);
    if !subset.is_empty() {
        fields.fields.insert("subset".to_owned(), text(subset));
    }
    if let Some(path) = config {
        fields.fields.insert("config".to_owned(), text(&path));
    }
    Metadata {
        filter_metadata: [("istio".to_owned(), fields)].into_iter().collect(),
        ..Default::default()
    }
}

fn black_hole() -> pb::Cluster {
    pb::Cluster {
        name: names::BLACK_HOLE_CLUSTER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        connect_timeout: duration(CONNECT_TIMEOUT),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: names::BLACK_HOLE_CLUSTER.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// To wherever the client wanted to go.
fn passthrough(scope: &Scope<'_>, name: &str) -> pb::Cluster {
    let mut cluster = pb::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
        connect_timeout: duration(CONNECT_TIMEOUT),
        lb_policy: LbPolicy::ClusterProvided as i32,
        circuit_breakers: Some(limits::breakers(None, None)),
        ..Default::default()
    };
    cluster.typed_extension_protocol_options =
        limits::protocol_options(Upstream::AsClient, None, None, scope.view.flavor)
            .into_iter()
            .collect();
    cluster
}
