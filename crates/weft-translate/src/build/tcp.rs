//! The TCP proxy filter: bytes to one cluster, or split over several by weight.

use std::time::Duration;

use weft_xds::pb::envoy::config::accesslog::v3::AccessLog;
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;

use weft_xds::pb::envoy::r#type::v3::{HashPolicy, hash_policy};

use super::{duration, filter};

/// What differs between one TCP proxy and the next.
#[derive(Debug, Default)]
pub(crate) struct Tcp {
    pub(crate) stat_prefix: String,
    /// Cluster names and relative weights; one entry means no split. Never empty.
    pub(crate) clusters: Vec<(String, u32)>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) duration_max: Option<Duration>,
    /// Balance by the client's address.
    pub(crate) hash_source_ip: bool,
    pub(crate) tunnel: Option<tcp::tcp_proxy::TunnelingConfig>,
    pub(crate) access_log: Vec<AccessLog>,
}

pub(crate) fn tcp(options: Tcp) -> listener::Filter {
    use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight};
    let specifier = match options.clusters.as_slice() {
        [(only, _)] => ClusterSpecifier::Cluster(only.clone()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    let config = tcp::TcpProxy {
        stat_prefix: options.stat_prefix,
        cluster_specifier: Some(specifier),
        idle_timeout: options.idle_timeout.and_then(duration),
        max_downstream_connection_duration: options.duration_max.and_then(duration),
        hash_policy: options.hash_source_ip.then(source_ip).into_iter().collect(),
        tunneling_config: options.tunnel,
        access_log: options.access_log,
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", &config)
}

fn source_ip() -> HashPolicy {
    let source = hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {});
    HashPolicy { policy_specifier: Some(source) }
}

/// A TCP proxy to one cluster, named after it.
pub(crate) fn tcp_to(cluster: &str, access_log: Vec<AccessLog>) -> listener::Filter {
    tcp(Tcp {
        stat_prefix: cluster.to_owned(),
        clusters: vec![(cluster.to_owned(), 1)],
        access_log,
        ..Default::default()
    })
}
