//! Clusters from the proxy to its own application.

use weft_xds::names;
use weft_xds::pb::envoy::config::cluster::v3 as pb;
use weft_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use weft_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_xds::pb::envoy::config::core::v3::{
    Address, BindConfig, ExtraSourceAddress, SocketAddress,
};

use super::{CONNECT_TIMEOUT, declared, limits, metadata, passthrough};
use crate::build::{duration, pipe_address, socket_address};
use crate::endpoint;
use crate::ports::{self, Application, WorkloadPort};
use crate::scope::Scope;
use crate::view::Interception;

/// Source addresses of connections to the application: capture rules let them through untouched.
const LOOP_GUARD_V4: &str = "127.0.0.6";
const LOOP_GUARD_V6: &str = "::6";

pub(crate) fn clusters(scope: &Scope<'_>) -> Vec<pb::Cluster> {
    let mut clusters: Vec<_> =
        ports::of_workload(scope).iter().map(|port| to_application(scope, port)).collect();
    if scope.view.interception != Interception::None {
        let mut undeclared = passthrough(scope, names::INBOUND_PASSTHROUGH_CLUSTER);
        undeclared.upstream_bind_config = loop_guard(scope);
        clusters.push(undeclared);
    }
    clusters
}

fn to_application(scope: &Scope<'_>, port: &WorkloadPort<'_>) -> pb::Cluster {
    // `h2UpgradePolicy` lets a client speak HTTP/2 to a plain HTTP port; the application did not
    // agree to that, so its version is the port's own.
    let upstream = declared(port.protocol);
    let tcp = port.pool.and_then(|pool| pool.tcp.as_ref());
    let mut cluster = pb::Cluster {
        name: names::inbound_cluster(port.port),
        connect_timeout: duration(
            tcp.and_then(|tcp| tcp.connect_timeout).unwrap_or(CONNECT_TIMEOUT),
        ),
        circuit_breakers: Some(limits::breakers(port.pool, None)),
        upstream_connection_options: limits::keepalive(port.pool, None),
        metadata: port.service.map(|service| metadata(service, "", None)),
        ..Default::default()
    };
    cluster.typed_extension_protocol_options =
        limits::protocol_options(upstream, port.pool, None, scope.view.flavor)
            .into_iter()
            .collect();
    let kind = match &port.application {
        Application::Captured => {
            cluster.lb_policy = LbPolicy::ClusterProvided as i32;
            cluster.upstream_bind_config = loop_guard(scope);
            DiscoveryType::OriginalDst
        }
        Application::Socket(address) => {
            let address = socket_address(&address.ip().to_string(), address.port());
            set_endpoint(&mut cluster, address);
            DiscoveryType::Static
        }
        Application::Unix(path) => {
            set_endpoint(&mut cluster, pipe_address(path));
            DiscoveryType::Static
        }
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
    cluster
}

fn set_endpoint(cluster: &mut pb::Cluster, address: Address) {
    cluster.load_assignment = Some(endpoint::single(&cluster.name, address));
}

/// What the capture rules know our own connections to the application by. With TPROXY these come
/// from the client's address, and are known by their mark.
fn loop_guard(scope: &Scope<'_>) -> Option<BindConfig> {
    if scope.view.interception == Interception::Tproxy {
        return None;
    }
    let source = |address: &str| SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..Default::default()
    };
    let (first, second) = match scope.view.primary_address().is_ipv6() {
        true => (LOOP_GUARD_V6, LOOP_GUARD_V4),
        false => (LOOP_GUARD_V4, LOOP_GUARD_V6),
    };
    let second = ExtraSourceAddress { address: Some(source(second)), ..Default::default() };
    let extra_source_addresses = if scope.view.is_dual_stack() { vec![second] } else { vec![] };
    let source_address = Some(source(first));
    Some(BindConfig { source_address, extra_source_addresses, ..Default::default() })
}
