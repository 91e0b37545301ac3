//! Names that only requests know (Envoy's dynamic forward proxy): the cluster that resolves them,
//! and the filters that tell it which.
//!
//! One cache for the whole proxy: Envoy wants all who share a cache to describe it alike.

use weft_xds::pb::envoy::config::cluster::v3::cluster::CustomClusterType;
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as cluster;
use weft_xds::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use weft_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http;
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use weft_xds::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;

use super::{any, filter, hcm, uint32};

const CACHE: &str = "dynamic_dns";
/// Names kept at once; Envoy's and Istio's default.
const NAMES_MAX: u32 = 1024;

/// `family`: a `Cluster.DnsLookupFamily`.
fn cache(family: i32) -> DnsCacheConfig {
    DnsCacheConfig {
        name: CACHE.to_owned(),
        dns_lookup_family: family,
        max_hosts: uint32(NAMES_MAX),
        ..Default::default()
    }
}

/// `checked`: TLS asks for the name and checks it, as Envoy demands of such a cluster by default.
pub(crate) fn cluster_type(family: i32, checked: bool) -> CustomClusterType {
    use cluster::cluster_config::ClusterImplementationSpecifier as Specifier;
    CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
        typed_config: Some(any(&cluster::ClusterConfig {
            allow_insecure_cluster_options: !checked,
            cluster_implementation_specifier: Some(Specifier::DnsCacheConfig(cache(family))),
            ..Default::default()
        })),
    }
}

/// Resolves the host of requests to such a cluster before they go there; others it lets pass.
pub(crate) fn http_filter(family: i32) -> HttpFilter {
    use http::filter_config::ImplementationSpecifier as Specifier;
    let config = http::FilterConfig {
        implementation_specifier: Some(Specifier::DnsCacheConfig(cache(family))),
        ..Default::default()
    };
    hcm::http_filter("envoy.filters.http.dynamic_forward_proxy", any(&config))
}

/// Resolves what the SNI names, for the TCP proxy after it.
pub(crate) fn sni_filter(family: i32, port: u16) -> listener::Filter {
    let config = sni::FilterConfig {
        dns_cache_config: Some(cache(family)),
        port_specifier: Some(sni::filter_config::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    };
    filter("envoy.filters.network.sni_dynamic_forward_proxy", &config)
}
