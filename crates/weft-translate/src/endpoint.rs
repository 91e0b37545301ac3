//! Endpoint assignments: which addresses serve a port of a service or subset.

use std::collections::BTreeMap;

use weft_model::spec::Subset;
use weft_model::{Address, Endpoint, MeshService, Resolution, TrafficDistribution};
use weft_xds::Resource;
use weft_xds::names::{self, ClusterName};
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::endpoint::v3 as pb;

use crate::build::{pipe_address, socket_address, structure, text, uint32};
use crate::locality::Preference;
use crate::policy;
use crate::scope::Scope;
use crate::view::ProxyKind;

/// Metadata that the choice of a transport socket goes by.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// The assignment of an EDS cluster, by its name. `None`: the proxy has no such cluster.
pub(crate) fn of_cluster(scope: &Scope<'_>, name: &str) -> Option<Resource> {
    let (port, subset, host, mutual_only) =
        match (ClusterName::parse(name), names::parse_outbound_sni(name)) {
            (Some(ClusterName::Outbound { port, subset, host }), _) => (port, subset, host, false),
            // What is passed on by SNI is mutual TLS; who does not take it must not be reached.
            (None, Some((port, subset, host))) if scope.view.kind == ProxyKind::Gateway => {
                (port, subset, host, true)
            }
            _ => return None,
        };
    let service = scope.service(host)?;
    if service.resolution != Resolution::Static {
        return None;
    }
    service.port(port)?;
    let rule = scope.rule(host).map(|rule| &rule.spec);
    let subset = match subset {
        "" => None,
        wanted => Some(policy::subset(rule, wanted)?),
    };
    let preference = Preference::new(scope, &policy::policy(rule, subset, port), service);
    let mut found = assignment(scope, name, service, port, subset, &preference);
    if mutual_only {
        for group in &mut found.endpoints {
            group.lb_endpoints.retain(takes_mutual_tls);
        }
        found.endpoints.retain(|group| !group.lb_endpoints.is_empty());
    }
    Some(Resource::new(name, &found))
}

fn takes_mutual_tls(endpoint: &pb::LbEndpoint) -> bool {
    endpoint.metadata.as_ref().is_some_and(|all| all.filter_metadata.contains_key(SOCKET_MATCH))
}

/// Healthy endpoints (and the others, marked, where their share decides when to leave a zone) by
/// preference and locality, in a fixed order.
pub(crate) fn assignment(
    scope: &Scope<'_>,
    cluster: &str,
    service: &MeshService,
    port: u16,
    subset: Option<&Subset>,
    preference: &Preference<'_>,
) -> pb::ClusterLoadAssignment {
    let mut localities: BTreeMap<(u32, &str), Vec<pb::LbEndpoint>> = BTreeMap::new();
    let unready_too = tells_unready(service);
    for endpoint in service.endpoints.iter().filter(|one| one.healthy || unready_too) {
        let wanted = subset.is_none_or(|subset| {
            subset.labels.iter().all(|(key, value)| endpoint.labels.get(key) == Some(value))
        });
        if !wanted {
            continue;
        }
        if let Some(built) = lb_endpoint(scope, endpoint, port) {
            let place = (preference.rank(endpoint), &*endpoint.locality);
            localities.entry(place).or_default().push(built);
        }
    }
    let weights = {
        let sums: Vec<(&str, u32)> =
            localities.iter().map(|((_, name), members)| (*name, weight(members))).collect();
        preference.weights(&sums).unwrap_or_else(|| sums.iter().map(|(_, sum)| *sum).collect())
    };
    let mut ranks: Vec<u32> = localities.keys().map(|(rank, _)| *rank).collect();
    ranks.dedup();
    let endpoints = localities.into_iter().zip(weights).filter(|(_, weight)| *weight > 0);
    let endpoints = endpoints.map(|(((rank, name), members), weight)| {
        // Envoy wants priorities without gaps.
        let priority = ranks.partition_point(|other| *other < rank);
        locality(name, members, weight, u32::try_from(priority).unwrap_or(u32::MAX))
    });
    pb::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: endpoints.collect(),
        ..Default::default()
    }
}

/// Whether clients are told of endpoints that are not ready: a preference that no outlier
/// detection goes with needs them to know what part of a zone is left.
pub(crate) fn tells_unready(service: &MeshService) -> bool {
    service.distribution != TrafficDistribution::Any
}

fn weight(members: &[pb::LbEndpoint]) -> u32 {
    let weights = members.iter().filter_map(|member| member.load_balancing_weight);
    weights.fold(0, |sum, weight| sum.saturating_add(weight.value))
}

/// An assignment of one fixed address.
pub(crate) fn single(cluster: &str, address: core::Address) -> pb::ClusterLoadAssignment {
    let endpoint = pb::LbEndpoint {
        host_identifier: Some(host(address, "")),
        load_balancing_weight: uint32(1),
        ..Default::default()
    };
    pb::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![pb::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Logical DNS takes exactly one name.
pub(crate) fn keep_one(assignment: &mut pb::ClusterLoadAssignment) {
    assignment.endpoints.truncate(1);
    for locality in &mut assignment.endpoints {
        locality.priority = 0;
        locality.lb_endpoints.truncate(1);
        locality.load_balancing_weight = None;
    }
}

fn locality(
    name: &str,
    members: Vec<pb::LbEndpoint>,
    weight: u32,
    priority: u32,
) -> pb::LocalityLbEndpoints {
    let mut parts = name.splitn(3, '/').map(str::to_owned);
    let named = core::Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    };
    pb::LocalityLbEndpoints {
        locality: Some(named),
        lb_endpoints: members,
        load_balancing_weight: uint32(weight),
        priority,
        ..Default::default()
    }
}

fn lb_endpoint(
    scope: &Scope<'_>,
    endpoint: &Endpoint,
    service_port: u16,
) -> Option<pb::LbEndpoint> {
    let address = match &endpoint.address {
        Address::Ip(ip) => socket_address(&ip.to_string(), endpoint.port(service_port)?),
        Address::Host(name) => socket_address(name, endpoint.port(service_port)?),
        Address::Unix(path) => pipe_address(path),
    };
    let hostname = match &endpoint.address {
        Address::Host(name) => name,
        Address::Ip(_) | Address::Unix(_) => "",
    };
    Some(pb::LbEndpoint {
        health_status: match endpoint.healthy {
            true => core::HealthStatus::Healthy,
            false => core::HealthStatus::Unhealthy,
        } as i32,
        host_identifier: Some(host(address, hostname)),
        load_balancing_weight: uint32(endpoint.weight.max(1)),
        metadata: metadata(scope, endpoint, service_port),
    })
}

fn host(address: core::Address, hostname: &str) -> pb::lb_endpoint::HostIdentifier {
    pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
        address: Some(address),
        hostname: hostname.to_owned(),
        ..Default::default()
    })
}

/// Who the endpoint is, for metrics, and whether it takes mutual TLS, for the socket choice.
fn metadata(scope: &Scope<'_>, endpoint: &Endpoint, service_port: u16) -> Option<core::Metadata> {
    let mut metadata = core::Metadata::default();
    if let Some(workload) = &endpoint.workload {
        let identity = format!(
            "{};{};{};{};{}",
            workload.workload_name,
            workload.namespace,
            workload.canonical_name,
            workload.canonical_revision,
            workload.cluster,
        );
        let fields = structure([("workload", text(&identity))]);
        metadata.filter_metadata.insert("istio".to_owned(), fields);
    }
    if scope.snapshot.endpoint_mtls(endpoint, service_port) {
        let fields = structure([("tlsMode", text("istio"))]);
        metadata.filter_metadata.insert(SOCKET_MATCH.to_owned(), fields);
    }
    (!metadata.filter_metadata.is_empty()).then_some(metadata)
}
