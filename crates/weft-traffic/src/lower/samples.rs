//! Messages as a control plane sends them.

use prost::{Message, Name};

use super::{Any, cluster_pb, endpoint_pb, listener_pb, route_pb};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::filters::http::cors::v3 as cors_pb;
use crate::pb::envoy::extensions::filters::http::fault::v3 as fault_pb;
use crate::pb::envoy::extensions::filters::http::router::v3 as router_pb;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_pb;
use crate::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use crate::pb::google::protobuf;

pub(crate) fn pack<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

pub(crate) fn address(ip: &str, port: u32) -> Option<core::Address> {
    let socket = core::SocketAddress {
        address: ip.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
}

pub(crate) fn seconds(seconds: i64) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds, nanos: 0 })
}

pub(crate) fn text(value: &str) -> protobuf::Value {
    protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(value.into())) }
}

pub(crate) fn structure(fields: &[(&str, &str)]) -> protobuf::Struct {
    protobuf::Struct { fields: fields.iter().map(|(k, v)| ((*k).into(), text(v))).collect() }
}

pub(crate) fn metadata(namespace: &str, fields: &[(&str, &str)]) -> Option<core::Metadata> {
    let filter_metadata = [(namespace.to_owned(), structure(fields))].into();
    Some(core::Metadata { filter_metadata, ..Default::default() })
}

pub(crate) fn http_filter<T: Message + Name>(name: &str, message: &T) -> hcm_pb::HttpFilter {
    hcm_pb::HttpFilter {
        name: name.into(),
        config_type: Some(hcm_pb::http_filter::ConfigType::TypedConfig(pack(message))),
        ..Default::default()
    }
}

pub(crate) fn sample_hcm() -> hcm_pb::HttpConnectionManager {
    hcm_pb::HttpConnectionManager {
        stat_prefix: "outbound_0.0.0.0_8080".into(),
        http_filters: vec![
            http_filter("envoy.filters.http.cors", &cors_pb::Cors {}),
            http_filter("envoy.filters.http.fault", &fault_pb::HttpFault::default()),
            http_filter("envoy.filters.http.router", &router_pb::Router::default()),
        ],
        stream_idle_timeout: seconds(0),
        upgrade_configs: vec![hcm_pb::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..Default::default()
        }],
        route_specifier: Some(hcm_pb::http_connection_manager::RouteSpecifier::Rds(hcm_pb::Rds {
            route_config_name: "8080".into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(crate) fn network<T: Message + Name>(message: &T) -> listener_pb::Filter {
    listener_pb::Filter {
        name: "f".into(),
        config_type: Some(listener_pb::filter::ConfigType::TypedConfig(pack(message))),
    }
}

pub(crate) fn sample_listener() -> listener_pb::Listener {
    let sds = |name: &str| tls_pb::SdsSecretConfig { name: name.into(), ..Default::default() };
    let tls = tls_pb::DownstreamTlsContext {
        common_tls_context: Some(tls_pb::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![sds("default")],
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            validation_context_type: Some(
                tls_pb::common_tls_context::ValidationContextType::CombinedValidationContext(
                    tls_pb::common_tls_context::CombinedCertificateValidationContext {
                        default_validation_context: Some(Default::default()),
                        validation_context_sds_secret_config: Some(sds("ROOTCA")),
                        ..Default::default()
                    },
                ),
            ),
            ..Default::default()
        }),
        require_client_certificate: Some(protobuf::BoolValue { value: true }),
        ..Default::default()
    };
    let tcp = tcp_pb::TcpProxy {
        stat_prefix: "inbound".into(),
        cluster_specifier: Some(tcp_pb::tcp_proxy::ClusterSpecifier::Cluster(
            "inbound|9000||".into(),
        )),
        ..Default::default()
    };
    listener_pb::Listener {
        name: "virtualInbound".into(),
        address: address("0.0.0.0", 15006),
        traffic_direction: 1,
        filter_chains: vec![
            listener_pb::FilterChain {
                name: "mtls".into(),
                filter_chain_match: Some(listener_pb::FilterChainMatch {
                    transport_protocol: "tls".into(),
                    application_protocols: vec!["istio".into()],
                    ..Default::default()
                }),
                transport_socket: Some(core::TransportSocket {
                    name: "envoy.transport_sockets.tls".into(),
                    config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&tls))),
                }),
                filters: vec![network(&sample_hcm())],
                ..Default::default()
            },
            listener_pb::FilterChain {
                name: "tcp".into(),
                filter_chain_match: Some(listener_pb::FilterChainMatch {
                    destination_port: Some(protobuf::UInt32Value { value: 9000 }),
                    prefix_ranges: vec![core::CidrRange {
                        address_prefix: "10.0.0.0".into(),
                        prefix_len: Some(protobuf::UInt32Value { value: 8 }),
                    }],
                    ..Default::default()
                }),
                filters: vec![network(&tcp)],
                ..Default::default()
            },
        ],
        listener_filters: vec![listener_pb::ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(crate) fn sample_cluster() -> cluster_pb::Cluster {
    let tls = tls_pb::UpstreamTlsContext {
        common_tls_context: Some(tls_pb::CommonTlsContext {
            alpn_protocols: vec!["istio".into()],
            ..Default::default()
        }),
        sni: "outbound_.9080_._.reviews".into(),
        ..Default::default()
    };
    cluster_pb::Cluster {
        name: "outbound|9080|v1|reviews".into(),
        cluster_discovery_type: Some(cluster_pb::cluster::ClusterDiscoveryType::Type(3)),
        connect_timeout: seconds(10),
        metadata: metadata("istio", &[("subset", "v1")]),
        transport_socket_matches: vec![
            cluster_pb::cluster::TransportSocketMatch {
                name: "tlsMode-istio".into(),
                r#match: Some(structure(&[("tlsMode", "istio")])),
                transport_socket: Some(core::TransportSocket {
                    name: "envoy.transport_sockets.tls".into(),
                    config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&tls))),
                }),
            },
            cluster_pb::cluster::TransportSocketMatch {
                name: "tlsMode-disabled".into(),
                r#match: Some(protobuf::Struct::default()),
                transport_socket: Some(core::TransportSocket {
                    name: "envoy.transport_sockets.raw_buffer".into(),
                    config_type: None,
                }),
            },
        ],
        outlier_detection: Some(Default::default()),
        circuit_breakers: Some(cluster_pb::CircuitBreakers {
            thresholds: vec![cluster_pb::circuit_breakers::Thresholds {
                max_connections: Some(protobuf::UInt32Value { value: 1 }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn sample_endpoints() -> endpoint_pb::ClusterLoadAssignment {
    let endpoint = |ip: &str, mode: &str| endpoint_pb::LbEndpoint {
        metadata: {
            let mut both =
                metadata("istio", &[("workload", "reviews-v1;default;reviews;v1;c1")]).unwrap();
            let labels = structure(&[("tlsMode", mode)]);
            both.filter_metadata.insert("envoy.transport_socket_match".into(), labels);
            Some(both)
        },
        host_identifier: Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(
            endpoint_pb::Endpoint { address: address(ip, 9080), ..Default::default() },
        )),
        ..Default::default()
    };
    endpoint_pb::ClusterLoadAssignment {
        cluster_name: "outbound|9080|v1|reviews".into(),
        endpoints: vec![endpoint_pb::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint("10.0.0.1", "istio"), endpoint("10.0.0.2", "disabled")],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(crate) fn sample_routes() -> route_pb::RouteConfiguration {
    let weight = |name: &str, weight| route_pb::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(protobuf::UInt32Value { value: weight }),
        ..Default::default()
    };
    let action = route_pb::RouteAction {
        cluster_specifier: Some(route_pb::route_action::ClusterSpecifier::WeightedClusters(
            route_pb::WeightedCluster {
                clusters: vec![weight("v1", 1), weight("v2", 99)],
                ..Default::default()
            },
        )),
        timeout: seconds(0),
        retry_policy: Some(route_pb::RetryPolicy {
            retry_on: "connect-failure,refused-stream,unavailable,cancelled,503".into(),
            num_retries: Some(protobuf::UInt32Value { value: 2 }),
            retry_host_predicate: vec![route_pb::retry_policy::RetryHostPredicate {
                name: "envoy.retry_host_predicates.previous_hosts".into(),
                ..Default::default()
            }],
            host_selection_retry_max_attempts: 5,
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = route_pb::Route {
        r#match: Some(route_pb::RouteMatch {
            path_specifier: Some(route_pb::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        metadata: metadata(
            "istio",
            &[("config", "/apis/networking.istio.io/v1/namespaces/d/virtual-service/r")],
        ),
        action: Some(route_pb::route::Action::Route(action)),
        ..Default::default()
    };
    route_pb::RouteConfiguration {
        name: "9080".into(),
        virtual_hosts: vec![route_pb::VirtualHost {
            name: "reviews:9080".into(),
            domains: vec!["reviews".into(), "reviews:9080".into()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    }
}
