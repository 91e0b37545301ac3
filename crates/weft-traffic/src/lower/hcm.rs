//! HttpConnectionManager.

use std::sync::Arc;
use std::time::Duration;

use super::{Result, Within, access_log, collector, error, filters, refuse, route, value};
use crate::http::{
    ClientAddress, ClientCert, Codec, ConnectionTimeouts, EscapedSlashes, ForwardClientCert,
    HostRules, Http1Rules, Http2Rules, HttpConfig, HttpLimits, PathRules, RequestIdRules,
    RouteSource, ServerHeader, StripPort, Underscores,
};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;

#[allow(deprecated)] // Older access log timing fields are destructured to be ignored.
pub(super) fn lower(message: &pb::HttpConnectionManager) -> Result<HttpConfig> {
    let pb::HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent: _,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration: _,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options: _,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout: _,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter: _,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval: _,
        flush_access_log_on_new_request: _,
        access_log_options: _,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        // Which peers count as internal: only changes trust in x-envoy headers.
        internal_address_config: _,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        // We always relay the upstream's 100 (Continue).
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6: _,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        // The id is a UUID with the trace reason, as the default extension makes it.
        request_id_extension: _,
        local_reply_config,
        strip_matching_host_port,
        // We are always strict on the message.
        stream_error_on_invalid_http_message: _,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config: _,
        typed_header_validation_config: _,
        append_x_forwarded_port,
        append_local_overload: _,
        add_proxy_protocol_connection_state: _,
        forward_proto_config: _,
        route_specifier,
        strip_port_mode,
    } = message;
    refuse(scheme_header_transformation.is_some(), "scheme_header_transformation")?;
    refuse(!original_ip_detection_extensions.is_empty(), "original_ip_detection_extensions")?;
    refuse(!early_header_mutation_extensions.is_empty(), "early_header_mutation_extensions")?;
    refuse(forward_client_cert_matcher.is_some(), "forward_client_cert_matcher")?;
    refuse(
        local_reply_config
            .as_ref()
            .is_some_and(|c| !c.mappers.is_empty() || c.body_format.is_some()),
        "local_reply_config",
    )?;
    refuse(path_normalization_options.is_some(), "path_normalization_options")?;
    let default_common = core::HttpProtocolOptions::default();
    let common = common_http_protocol_options.as_ref().unwrap_or(&default_common);
    let upgrade = |name: &str| {
        let found = upgrade_configs.iter().find(|u| u.upgrade_type.eq_ignore_ascii_case(name));
        found.is_some_and(|found| value::boolean(&found.enabled, true))
    };
    let (filters, metrics) = filters::http_filters(http_filters)?;
    Ok(HttpConfig {
        stat_prefix: Arc::from(&**stat_prefix),
        codec: match codec_type {
            0 => Codec::Auto,
            1 => Codec::H1,
            2 => Codec::H2,
            _ => return error("codec_type", "HTTP/3 is not supported"),
        },
        routes: routes(route_specifier)?,
        filters,
        metrics,
        tracing: tracing.as_ref().map(collector::tracing).transpose().at("tracing")?,
        access_log: access_log::lower(access_log).at("access_log")?,
        websocket: upgrade("websocket"),
        connect: upgrade("connect"),
        server_header: server_header(*server_header_transformation, server_name)?,
        client_address: ClientAddress {
            use_remote_address: value::boolean(use_remote_address, false),
            xff_trusted_hops: *xff_num_trusted_hops,
            skip_xff_append: *skip_xff_append,
            append_x_forwarded_port: *append_x_forwarded_port,
        },
        client_cert: client_cert(*forward_client_cert_details, set_current_client_cert_details)?,
        path: PathRules {
            normalize: value::boolean(normalize_path, false),
            merge_slashes: *merge_slashes,
            escaped_slashes: match path_with_escaped_slashes_action {
                2 => EscapedSlashes::Reject,
                3 => EscapedSlashes::UnescapeAndRedirect,
                4 => EscapedSlashes::UnescapeAndForward,
                _ => EscapedSlashes::Keep,
            },
        },
        host: HostRules {
            strip_port: match (strip_port_mode, strip_matching_host_port) {
                (Some(pb::http_connection_manager::StripPortMode::StripAnyHostPort(true)), _) => {
                    StripPort::Any
                }
                (_, true) => StripPort::Matching,
                (_, false) => StripPort::Keep,
            },
            strip_trailing_dot: *strip_trailing_host_dot,
        },
        http1: http1(http_protocol_options).at("http_protocol_options")?,
        http2: http2(http2_protocol_options).at("http2_protocol_options")?,
        timeouts: ConnectionTimeouts {
            idle: value::limit(&common.idle_timeout, Some(Duration::from_secs(3600)))
                .at("common_http_protocol_options.idle_timeout")?,
            stream_idle: value::limit(stream_idle_timeout, Some(Duration::from_secs(300)))
                .at("stream_idle_timeout")?,
            request: value::limit(request_timeout, None).at("request_timeout")?,
            request_headers: value::limit(request_headers_timeout, None)
                .at("request_headers_timeout")?,
            drain: value::duration_opt(drain_timeout)
                .at("drain_timeout")?
                .unwrap_or(Duration::from_secs(5)),
            delayed_close: value::limit(delayed_close_timeout, Some(Duration::from_secs(1)))
                .at("delayed_close_timeout")?,
            connection_duration: value::limit(&common.max_connection_duration, None)
                .at("common_http_protocol_options.max_connection_duration")?,
            stream_duration: value::limit(&common.max_stream_duration, None)
                .at("common_http_protocol_options.max_stream_duration")?,
        },
        limits: limits(max_request_headers_kb, common)?,
        request_id: RequestIdRules {
            generate: value::boolean(generate_request_id, true),
            preserve_external: *preserve_external_request_id,
            always_in_response: *always_set_request_id_in_response,
        },
        underscores: match common.headers_with_underscores_action {
            1 => Underscores::Reject,
            2 => Underscores::Drop,
            _ => Underscores::Allow,
        },
        via: Arc::from(&**via),
    })
}

/// Envoy's own bound on the request head.
const HEAD_KB_MAX: u32 = 8192;

fn limits(
    head_kb: &Option<crate::pb::google::protobuf::UInt32Value>,
    common: &core::HttpProtocolOptions,
) -> Result<HttpLimits> {
    let head_kb = value::uint(head_kb).unwrap_or(60);
    if head_kb == 0 || head_kb > HEAD_KB_MAX {
        return error("max_request_headers_kb", format!("must be 1 to {HEAD_KB_MAX}"));
    }
    Ok(HttpLimits {
        head_bytes_max: head_kb * 1024,
        headers_max: value::uint(&common.max_headers_count).unwrap_or(100),
        requests_per_connection_max: value::uint(&common.max_requests_per_connection)
            .filter(|max| *max > 0),
    })
}

fn routes(specifier: &Option<pb::http_connection_manager::RouteSpecifier>) -> Result<RouteSource> {
    use pb::http_connection_manager::RouteSpecifier;
    match specifier {
        Some(RouteSpecifier::Rds(rds)) if rds.route_config_name.is_empty() => {
            error("rds.route_config_name", "is required")
        }
        Some(RouteSpecifier::Rds(rds)) => Ok(RouteSource::Rds(Arc::from(&*rds.route_config_name))),
        Some(RouteSpecifier::RouteConfig(config)) => {
            let table = route::lower(config).at("route_config")?;
            Ok(RouteSource::Inline(Arc::new(table)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => error("scoped_routes", "is not supported"),
        None => error("route_specifier", "is required"),
    }
}

fn server_header(transformation: i32, name: &str) -> Result<ServerHeader> {
    let configured = || (!name.is_empty()).then(|| Arc::from(name));
    let name = || configured().unwrap_or_else(|| Arc::from("envoy"));
    match transformation {
        0 => Ok(ServerHeader::Overwrite(name())),
        1 => Ok(ServerHeader::AppendIfAbsent(name())),
        2 => Ok(ServerHeader::PassThrough(configured())),
        other => error("server_header_transformation", format!("{other} is not known")),
    }
}

fn client_cert(
    forward: i32,
    set: &Option<pb::http_connection_manager::SetCurrentClientCertDetails>,
) -> Result<ClientCert> {
    let forward = match forward {
        0 => ForwardClientCert::Sanitize,
        1 => ForwardClientCert::ForwardOnly,
        2 => ForwardClientCert::AppendForward,
        3 => ForwardClientCert::SanitizeSet,
        4 => ForwardClientCert::AlwaysForwardOnly,
        other => return error("forward_client_cert_details", format!("{other} is not known")),
    };
    let flags = set.unwrap_or_default();
    Ok(ClientCert {
        forward,
        subject: value::boolean(&flags.subject, false),
        cert: flags.cert,
        chain: flags.chain,
        dns: flags.dns,
        uri: flags.uri,
    })
}

pub(super) fn http1(message: &Option<core::Http1ProtocolOptions>) -> Result<Http1Rules> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    // Who says nothing about HTTP/1 gets everything of it.
    let accept_http10 = message.as_ref().is_none_or(|message| message.accept_http_10);
    let default = core::Http1ProtocolOptions::default();
    let message = message.as_ref().unwrap_or(&default);
    let format = message.header_key_format.as_ref().and_then(|f| f.header_format.as_ref());
    let (preserve_case, proper_case) = match format {
        None => (false, false),
        Some(HeaderFormat::ProperCaseWords(_)) => (false, true),
        Some(HeaderFormat::StatefulFormatter(formatter))
            if formatter.name.ends_with("preserve_case") =>
        {
            (true, false)
        }
        Some(HeaderFormat::StatefulFormatter(formatter)) => {
            return error("header_key_format", format!("{:?} is not supported", formatter.name));
        }
    };
    Ok(Http1Rules {
        accept_http10,
        default_host: Arc::from(&*message.default_host_for_http_10),
        preserve_case,
        proper_case,
        trailers: message.enable_trailers,
    })
}

pub(super) fn http2(message: &Option<core::Http2ProtocolOptions>) -> Result<Http2Rules> {
    let Some(message) = message else { return Ok(Http2Rules::default()) };
    let keepalive = message.connection_keepalive.unwrap_or_default();
    Ok(Http2Rules {
        concurrent_streams_max: value::uint(&message.max_concurrent_streams),
        stream_window_bytes: value::uint(&message.initial_stream_window_size),
        connection_window_bytes: value::uint(&message.initial_connection_window_size),
        allow_connect: message.allow_connect,
        keepalive_interval: value::duration_opt(&keepalive.interval)
            .at("connection_keepalive.interval")?,
        keepalive_timeout: value::duration_opt(&keepalive.timeout)
            .at("connection_keepalive.timeout")?,
    })
}
