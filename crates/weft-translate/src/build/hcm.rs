//! The HTTP connection manager as Istio sets it up, minus what stock Envoy does not have.

use std::time::Duration;

use weft_xds::pb::envoy::config::accesslog::v3::AccessLog;
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;
use weft_xds::pb::envoy::extensions::filters::http::cors::v3::Cors;
use weft_xds::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use weft_xds::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use weft_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use weft_xds::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use weft_xds::pb::envoy::r#type::v3::Percent;

use super::{ads, any, boolean, duration, filter};
use crate::settings::HttpSettings;
use crate::telemetry::Tracing;
use crate::view::Flavor;

/// Where the routes of a connection manager come from.
pub(crate) enum Routes {
    /// A route configuration of this name, over ADS.
    Rds(String),
    Inline(Box<RouteConfiguration>),
}

/// Which way the traffic goes, seen from the workload or the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Inbound,
    Outbound,
    Gateway,
}

/// What differs between one connection manager and the next.
pub(crate) struct Http {
    pub(crate) stat_prefix: String,
    pub(crate) routes: Routes,
    pub(crate) side: Side,
    pub(crate) flavor: Flavor,
    pub(crate) tracing: Tracing,
    pub(crate) access_log: Vec<AccessLog>,
    /// What becomes of the metrics.
    pub(crate) stats: Option<hcm::HttpFilter>,
    pub(crate) settings: HttpSettings,
    /// The port's protocol is gRPC-Web: browsers speak it, applications gRPC.
    pub(crate) grpc_web: bool,
    /// Some of its requests go to hosts that only they name: the family to resolve them for.
    pub(crate) names: Option<i32>,
}

pub(crate) fn http(options: Http) -> listener::Filter {
    use hcm::http_connection_manager as manager;
    let percent = |value| Some(Percent { value });
    let (forward, details) = client_certificate(options.side);
    let http_filters = http_filters(&options);
    let mut config = hcm::HttpConnectionManager {
        codec_type: manager::CodecType::Auto as i32,
        stat_prefix: options.stat_prefix,
        http_filters,
        tracing: Some(manager::Tracing {
            client_sampling: percent(100.0),
            random_sampling: percent(options.tracing.sampling),
            provider: options.tracing.provider,
            custom_tags: options.tracing.custom_tags,
            max_path_tag_length: options.tracing.tag_bytes_max.and_then(super::uint32),
            overall_sampling: percent(100.0),
            ..Default::default()
        }),
        server_name: "istio-envoy".to_owned(),
        server_header_transformation: manager::ServerHeaderTransformation::PassThrough as i32,
        // Istio's choice: streams may idle for ever, timeouts are the routes' business.
        stream_idle_timeout: duration(Duration::ZERO),
        access_log: options.access_log,
        use_remote_address: boolean(options.side == Side::Gateway),
        forward_client_cert_details: forward as i32,
        set_current_client_cert_details: details,
        upgrade_configs: vec![manager::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        // WebSocket over HTTP/2 (RFC 8441): browsers use it where it is offered, and a mesh hop
        // over HTTP/2 has no other way. Istio leaves it out.
        http2_protocol_options: Some(core::Http2ProtocolOptions {
            allow_connect: true,
            ..Default::default()
        }),
        normalize_path: boolean(true),
        http_protocol_options: http1_options(options.flavor),
        route_specifier: Some(match options.routes {
            Routes::Rds(name) => manager::RouteSpecifier::Rds(hcm::Rds {
                config_source: Some(ads()),
                route_config_name: name,
            }),
            Routes::Inline(routes) => manager::RouteSpecifier::RouteConfig(*routes),
        }),
        ..Default::default()
    };
    options.settings.apply(options.side, options.flavor, &mut config);
    filter("envoy.filters.network.http_connection_manager", &config)
}

/// What our own proxy does with HTTP/1 unasked, stock Envoy only when told: HTTP/1.0 is served, the
/// spelling of names is kept, trailers pass.
pub(crate) fn http1_options(flavor: Flavor) -> Option<core::Http1ProtocolOptions> {
    use core::http1_protocol_options::{HeaderKeyFormat, header_key_format::HeaderFormat};
    let formatter = core::TypedExtensionConfig {
        name: "preserve_case".to_owned(),
        typed_config: Some(any(&PreserveCaseFormatterConfig {
            forward_reason_phrase: true,
            ..Default::default()
        })),
    };
    match flavor {
        Flavor::Weft | Flavor::Grpc => None,
        Flavor::Envoy => Some(core::Http1ProtocolOptions {
            accept_http_10: true,
            header_key_format: Some(HeaderKeyFormat {
                header_format: Some(HeaderFormat::StatefulFormatter(formatter)),
            }),
            enable_trailers: true,
            ..Default::default()
        }),
    }
}

fn client_certificate(
    side: Side,
) -> (
    hcm::http_connection_manager::ForwardClientCertDetails,
    Option<hcm::http_connection_manager::SetCurrentClientCertDetails>,
) {
    use hcm::http_connection_manager::{ForwardClientCertDetails, SetCurrentClientCertDetails};
    let details = SetCurrentClientCertDetails {
        subject: boolean(true),
        dns: true,
        uri: true,
        ..Default::default()
    };
    match side {
        Side::Inbound => (ForwardClientCertDetails::AppendForward, Some(details)),
        Side::Gateway => (ForwardClientCertDetails::SanitizeSet, Some(details)),
        Side::Outbound => (ForwardClientCertDetails::Sanitize, None),
    }
}

/// The filters are the same whether or not a route uses them: adding a fault to a route must not
/// change the listener, which would drain its connections.
///
/// Our own proxy needs no list of these, it goes by the routes; and no route on the way in has any.
/// gRPC-Web is the port's.
fn http_filters(options: &Http) -> Vec<hcm::HttpFilter> {
    let mut filters = Vec::new();
    if options.grpc_web {
        filters.push(http_filter("envoy.filters.http.grpc_web", any(&GrpcWeb {})));
    }
    if options.side != Side::Inbound && options.flavor == Flavor::Envoy {
        filters.push(http_filter("envoy.filters.http.fault", any(&HttpFault::default())));
        filters.push(http_filter("envoy.filters.http.cors", any(&Cors {})));
    }
    filters.extend(options.stats.clone());
    filters.extend(options.names.map(super::dynamic::http_filter));
    filters.push(router());
    filters
}

pub(crate) fn router() -> hcm::HttpFilter {
    router_with(&Router::default())
}

pub(crate) fn router_with(config: &Router) -> hcm::HttpFilter {
    http_filter("envoy.filters.http.router", any(config))
}

pub(crate) fn http_filter(
    name: &str,
    config: weft_xds::pb::google::protobuf::Any,
) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}
