//! Endpoint assignments: which addresses serve a port of a service or subset.

use std::collections::BTreeMap;

use weft_model::spec::Subset;
use weft_model::{Address, Endpoint, MeshService, Resolution};
use weft_xds::Resource;
use weft_xds::names::ClusterName;
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::endpoint::v3 as pb;

use crate::build::{pipe_address, socket_address, structure, text, uint32};
use crate::policy;
use crate::scope::Scope;

/// The assignment of an EDS cluster, by its name. `None`: the proxy has no such cluster.
pub(crate) fn of_cluster(scope: &Scope<'_>, name: &str) -> Option<Resource> {
    let ClusterName::Outbound { port, subset, host } = ClusterName::parse(name)? else {
        return None;
    };
    let service = scope.service(host)?;
    if service.resolution != Resolution::Static {
        return None;
    }
    service.port(port)?;
    let rule = scope.rule(host);
    let subset = match subset {
        "" => None,
        wanted => Some(policy::subset(rule.map(|rule| &rule.spec), wanted)?),
    };
    Some(Resource::new(name, &assignment(scope, name, service, port, subset)))
}

/// Healthy endpoints by locality, in a fixed order.
pub(crate) fn assignment(
    scope: &Scope<'_>,
    cluster: &str,
    service: &MeshService,
    port: u16,
    subset: Option<&Subset>,
) -> pb::ClusterLoadAssignment {
    let mut localities: BTreeMap<&str, Vec<pb::LbEndpoint>> = BTreeMap::new();
    for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.healthy) {
        let wanted = subset.is_none_or(|subset| {
            subset.labels.iter().all(|(key, value)| endpoint.labels.get(key) == Some(value))
        });
        if !wanted {
            continue;
        }
        if let Some(built) = lb_endpoint(scope, endpoint, port) {
            localities.entry(&endpoint.locality).or_default().push(built);
        }
    }
    let endpoints = localities.into_iter().map(|(name, members)| locality(name, members)).collect();
    pb::ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints, ..Default::default() }
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
        locality.lb_endpoints.truncate(1);
        locality.load_balancing_weight = None;
    }
}

fn locality(name: &str, members: Vec<pb::LbEndpoint>) -> pb::LocalityLbEndpoints {
    let weights = members.iter().filter_map(|member| member.load_balancing_weight);
    let total = weights.fold(0u32, |sum, weight| sum.saturating_add(weight.value));
    let mut parts = name.splitn(3, '/').map(str::to_owned);
    let named = core::Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    };
    pb::LocalityLbEndpoints {
        locality: Some(named),
        lb_endpoints: members,
        load_balancing_weight: uint32(total),
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
        health_status: core::HealthStatus::Healthy as i32,
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
        metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), fields);
    }
    (!metadata.filter_metadata.is_empty()).then_some(metadata)
}
