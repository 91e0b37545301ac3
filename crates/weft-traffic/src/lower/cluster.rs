//! Clusters.

use std::sync::Arc;
use std::time::Duration;

use super::{Result, Within, decode, endpoints, error, filters, hcm, list, refuse, tls, value};
use crate::circuit::{RetryBudget, Thresholds};
use crate::cluster::{
    Cluster, ClusterConfig, ClusterKind, DnsConfig, DnsFamily, DynamicDns, EndpointSet,
    IstioClusterMetadata, IstioService, ProxyProtocolVersion, TcpKeepalive, Transport,
    TransportMatch, UpstreamHttp, UpstreamProtocol,
};
use crate::outlier::{OutlierConfig, Trigger};
use crate::pb::envoy::config::cluster::v3 as pb;
use crate::pb::envoy::config::common::matcher::v3 as matcher_pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::route::v3 as route_pb;
use crate::pb::envoy::extensions::clusters::{
    dns::v3 as dns_pb, dynamic_forward_proxy::v3 as dynamic_pb, original_dst::v3 as original_pb,
};
use crate::pb::envoy::extensions::upstreams::http::v3 as http_pb;
use crate::pb::google::protobuf::{Struct, value::Kind};
use crate::tls::UpstreamTls;

mod lb;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[allow(deprecated)] // Older fields still carry the HTTP and DNS settings of some control planes.
pub(super) fn lower(message: &pb::Cluster) -> Result<Cluster> {
    let pb::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name: _,
        stats_matcher: _,
        // Read with the discovery type.
        eds_cluster_config: _,
        connect_timeout,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout: _,
        lb_policy: _,
        load_assignment,
        health_checks,
        // Read with the HTTP options.
        max_requests_per_connection: _,
        circuit_breakers,
        upstream_http_protocol_options: _,
        common_http_protocol_options: _,
        http_protocol_options: _,
        http2_protocol_options: _,
        typed_extension_protocol_options: _,
        // Read with the DNS settings.
        dns_refresh_rate: _,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl: _,
        dns_lookup_family: _,
        // The proxy has its own resolver.
        dns_resolvers: _,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        wait_for_warm_on_init: _,
        outlier_detection,
        // Unused original destinations are cleaned up by the connection pool.
        cleanup_interval: _,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config: _,
        transport_socket,
        metadata,
        protocol_selection: _,
        upstream_connection_options,
        close_connections_on_host_health_failure: _,
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy: _,
        lrs_server: _,
        lrs_report_endpoint_metrics: _,
        track_timeout_budgets: _,
        upstream_config,
        track_cluster_stats: _,
        preconnect_policy: _,
        connection_pool_per_downstream_connection: _,
        queuing_policies: _,
        cluster_discovery_type: _,
        lb_config: _,
    } = message;
    if name.is_empty() {
        return error("name", "is required");
    }
    refuse(transport_socket_matcher.is_some(), "transport_socket_matcher")?;
    refuse(!health_checks.is_empty(), "health_checks")?;
    refuse(
        lb_subset_config.as_ref().is_some_and(|config| !config.subset_selectors.is_empty()),
        "lb_subset_config",
    )?;
    refuse(upstream_config.is_some(), "upstream_config")?;
    native_filters(filters)?;
    let kind = kind(message)?;
    let (transport, proxy_protocol) = tls::upstream(transport_socket).at("transport_socket")?;
    let proxy_protocol = matched_proxy_protocol(transport_socket_matches, proxy_protocol)?;
    let timeout = value::duration_opt(connect_timeout).at("connect_timeout")?;
    let http = http(message)?;
    let transport = named_by_request(transport, &http);
    let config = ClusterConfig {
        connect_timeout: timeout.filter(|t| !t.is_zero()).unwrap_or(Duration::from_secs(5)),
        transport_matches: list(
            "transport_socket_matches",
            transport_socket_matches,
            transport_match,
        )?,
        transport,
        http,
        lb: lb::lower(message, &kind)?,
        limits: limits(circuit_breakers).at("circuit_breakers")?,
        outlier: match outlier_detection {
            Some(settings) => {
                let error_statuses = error_statuses(message)?;
                Some(outlier(settings, error_statuses).at("outlier_detection")?)
            }
            None => None,
        },
        istio: istio_metadata(value::metadata(metadata, "istio")),
        tcp_keepalive: upstream_connection_options
            .as_ref()
            .and_then(|options| options.tcp_keepalive.as_ref())
            .map(keepalive),
        source_addresses: source_addresses(upstream_bind_config).at("upstream_bind_config")?,
        proxy_protocol,
        close_on_removal: message
            .common_lb_config
            .as_ref()
            .is_some_and(|config| config.close_connections_on_host_set_change),
        kind,
    };
    let endpoints = match (&config.kind, load_assignment) {
        (ClusterKind::Dns(_), Some(load)) => endpoints::lower(load, endpoints::Names::Allow),
        (ClusterKind::Static, Some(load)) => endpoints::lower(load, endpoints::Names::Refuse),
        // As in Envoy: Istio's BlackHoleCluster is a static cluster without endpoints.
        (ClusterKind::Static, None) => Ok(EndpointSet::default()),
        (ClusterKind::Dns(_), None) => {
            return error("load_assignment", "is required for this kind of cluster");
        }
        (
            ClusterKind::Eds { .. } | ClusterKind::Dynamic(_) | ClusterKind::OriginalDst { .. },
            _,
        ) => Ok(EndpointSet::default()),
    };
    let endpoints = Arc::new(endpoints.at("load_assignment")?);
    Ok(Cluster { name: Arc::from(&**name), config: Arc::new(config), endpoints })
}

/// With `auto_sni` TLS asks for the host of the request where the settings have no name, and with
/// `auto_san_validation` the certificate must have it.
fn named_by_request(transport: Transport, http: &UpstreamHttp) -> Transport {
    match transport {
        Transport::Tls(tls) if http.auto_sni && tls.sni.is_none() => {
            let mut named = UpstreamTls::clone(&tls);
            named.auto_host_sni = true;
            named.auto_sni_san_validation |= http.auto_san_validation;
            Transport::Tls(Arc::new(named))
        }
        other => other,
    }
}

/// Upstream network filters: only those whose work the proxy does by itself.
fn native_filters(filters: &[pb::Filter]) -> Result<()> {
    for (index, filter) in filters.iter().enumerate() {
        let native = filter
            .typed_config
            .as_ref()
            .is_some_and(|any| filters::is_native_network(value::message_name(any), any));
        if !native {
            let reason = format!("upstream filter {:?} is not supported", filter.name);
            return error(format!("filters[{index}]"), reason);
        }
    }
    Ok(())
}

fn kind(message: &pb::Cluster) -> Result<ClusterKind> {
    use pb::cluster::ClusterDiscoveryType as Type;
    use pb::cluster::DiscoveryType;
    match &message.cluster_discovery_type {
        Some(Type::ClusterType(custom)) => custom_kind(custom).at("cluster_type"),
        Some(Type::Type(number)) => match DiscoveryType::try_from(*number) {
            Ok(DiscoveryType::Static) => Ok(ClusterKind::Static),
            Ok(DiscoveryType::StrictDns) => dns(message, false),
            Ok(DiscoveryType::LogicalDns) => dns(message, true),
            Ok(DiscoveryType::Eds) => Ok(ClusterKind::Eds { service: eds_service(message) }),
            Ok(DiscoveryType::OriginalDst) => original_dst(message),
            Err(_) => error("type", format!("{number} is not known")),
        },
        None => Ok(ClusterKind::Static),
    }
}

fn eds_service(message: &pb::Cluster) -> Arc<str> {
    let service = message.eds_cluster_config.as_ref().map_or("", |config| &*config.service_name);
    Arc::from(if service.is_empty() { &message.name } else { service })
}

#[allow(deprecated)] // DNS settings on the cluster are what Istio sends.
fn dns(message: &pb::Cluster, logical: bool) -> Result<ClusterKind> {
    let refresh = value::duration_opt(&message.dns_refresh_rate).at("dns_refresh_rate")?;
    Ok(ClusterKind::Dns(DnsConfig {
        logical,
        refresh: refresh.unwrap_or(Duration::from_secs(5)),
        respect_ttl: message.respect_dns_ttl,
        family: family(message.dns_lookup_family),
    }))
}

fn original_dst(message: &pb::Cluster) -> Result<ClusterKind> {
    let config = match &message.lb_config {
        Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)) => config.clone(),
        _ => pb::cluster::OriginalDstLbConfig::default(),
    };
    refuse(config.metadata_key.is_some(), "original_dst_lb_config.metadata_key")?;
    original_dst_kind(
        config.use_http_header,
        &config.http_header_name,
        value::uint(&config.upstream_port_override),
    )
    .at("original_dst_lb_config")
}

fn original_dst_kind(use_header: bool, header: &str, port: Option<u32>) -> Result<ClusterKind> {
    let name = if header.is_empty() { "x-envoy-original-dst-host" } else { header };
    Ok(ClusterKind::OriginalDst {
        header: use_header.then(|| Arc::from(name.to_ascii_lowercase())),
        port: port.map(value::port_number).transpose().at("upstream_port_override")?,
    })
}

fn custom_kind(custom: &pb::cluster::CustomClusterType) -> Result<ClusterKind> {
    let Some(any) = &custom.typed_config else { return error("typed_config", "is required") };
    match value::message_name(any) {
        "envoy.extensions.clusters.dns.v3.DnsCluster" => {
            let message: dns_pb::DnsCluster = decode(any)?;
            let refresh = value::duration_opt(&message.dns_refresh_rate).at("dns_refresh_rate")?;
            Ok(ClusterKind::Dns(DnsConfig {
                logical: message.all_addresses_in_single_endpoint,
                refresh: refresh.unwrap_or(Duration::from_secs(5)),
                respect_ttl: message.respect_dns_ttl,
                // This enum counts from UNSPECIFIED.
                family: match message.dns_lookup_family {
                    2 => DnsFamily::V4Only,
                    3 => DnsFamily::V6Only,
                    4 => DnsFamily::V4Preferred,
                    5 => DnsFamily::All,
                    _ => DnsFamily::Auto,
                },
            }))
        }
        "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" => {
            let message: original_pb::OriginalDstCluster = decode(any)?;
            refuse(message.metadata_key.is_some(), "metadata_key")?;
            original_dst_kind(
                message.use_http_header,
                &message.http_header_name,
                value::uint(&message.upstream_port_override),
            )
        }
        "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig" => {
            dynamic(&decode(any)?).map(ClusterKind::Dynamic)
        }
        other => error("typed_config", format!("cluster type {other:?} is not supported")),
    }
}

fn dynamic(message: &dynamic_pb::ClusterConfig) -> Result<DynamicDns> {
    use dynamic_pb::cluster_config::ClusterImplementationSpecifier as Specifier;
    let Some(Specifier::DnsCacheConfig(cache)) = &message.cluster_implementation_specifier else {
        return error("dns_cache_config", "is required");
    };
    let refresh = value::duration_opt(&cache.dns_refresh_rate).at("dns_refresh_rate")?;
    Ok(DynamicDns {
        family: family(cache.dns_lookup_family),
        refresh: refresh.unwrap_or(Duration::from_secs(60)).max(Duration::from_secs(1)),
        names_max: value::uint(&cache.max_hosts).unwrap_or(1024),
    })
}

/// `Cluster.DnsLookupFamily`.
fn family(number: i32) -> DnsFamily {
    match number {
        1 => DnsFamily::V4Only,
        2 => DnsFamily::V6Only,
        3 => DnsFamily::V4Preferred,
        4 => DnsFamily::All,
        _ => DnsFamily::Auto,
    }
}

/// The PROXY protocol is one for the whole cluster here: all sockets must agree on it, as those of
/// one DestinationRule do.
fn matched_proxy_protocol(
    matches: &[pb::cluster::TransportSocketMatch],
    own: Option<ProxyProtocolVersion>,
) -> Result<Option<ProxyProtocolVersion>> {
    let mut agreed = None;
    for (index, one) in matches.iter().enumerate() {
        let (_, version) =
            tls::upstream(&one.transport_socket).item("transport_socket_matches", index)?;
        refuse(
            agreed.is_some_and(|agreed| agreed != version),
            "transport_socket_matches.proxy_protocol",
        )?;
        agreed = Some(version);
    }
    Ok(agreed.flatten().or(own))
}

fn transport_match(message: &pb::cluster::TransportSocketMatch) -> Result<TransportMatch> {
    let (transport, _) = tls::upstream(&message.transport_socket).at("transport_socket")?;
    Ok(TransportMatch {
        name: Arc::from(&*message.name),
        labels: message.r#match.as_ref().map(value::labels).unwrap_or_default(),
        transport,
    })
}

#[allow(deprecated)] // Settings outside the typed extension are what older control planes send.
fn http(message: &pb::Cluster) -> Result<UpstreamHttp> {
    let options = match message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
        Some(any) => decode(any)?,
        None => http_pb::HttpProtocolOptions {
            common_http_protocol_options: message.common_http_protocol_options,
            upstream_http_protocol_options: message.upstream_http_protocol_options.clone(),
            upstream_protocol_options: Some(old_protocol(message)),
            ..Default::default()
        },
    };
    let old_max = value::uint(&message.max_requests_per_connection);
    http_options(&options, old_max).at("typed_extension_protocol_options")
}

#[allow(deprecated)] // See `http`.
fn old_protocol(message: &pb::Cluster) -> http_pb::http_protocol_options::UpstreamProtocolOptions {
    use http_pb::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http_pb::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    };
    if message.protocol_selection == 1 {
        return UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: message.http_protocol_options.clone(),
            http2_protocol_options: message.http2_protocol_options.clone(),
            http3_protocol_options: None,
        });
    }
    let protocol_config = match &message.http2_protocol_options {
        Some(http2) => ProtocolConfig::Http2ProtocolOptions(http2.clone()),
        None => ProtocolConfig::HttpProtocolOptions(
            message.http_protocol_options.clone().unwrap_or_default(),
        ),
    };
    let protocol_config = Some(protocol_config);
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })
}

fn http_options(
    message: &http_pb::HttpProtocolOptions,
    old_max: Option<u32>,
) -> Result<UpstreamHttp> {
    use http_pb::http_protocol_options::UpstreamProtocolOptions as Options;
    use http_pb::http_protocol_options::explicit_http_config::ProtocolConfig;
    let http_pb::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config: _,
        // Read with the cluster's own outlier detection.
        outlier_detection: _,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = message;
    upstream_filters(http_filters)?;
    refuse(!request_mirror_policies.is_empty(), "request_mirror_policies")?;
    refuse(!hash_policy.is_empty(), "hash_policy")?;
    refuse(retry_policy.is_some(), "retry_policy")?;
    let (protocol, http1, http2) = match upstream_protocol_options {
        Some(Options::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                (UpstreamProtocol::H2, None, Some(http2.clone()))
            }
            Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                (UpstreamProtocol::H1, Some(http1.clone()), None)
            }
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return error("explicit_http_config", "HTTP/3 is not supported");
            }
            None => (UpstreamProtocol::H1, None, None),
        },
        Some(Options::UseDownstreamProtocolConfig(config)) => (
            UpstreamProtocol::UseDownstream,
            config.http_protocol_options.clone(),
            config.http2_protocol_options.clone(),
        ),
        Some(Options::AutoConfig(config)) => (
            UpstreamProtocol::Auto,
            config.http_protocol_options.clone(),
            config.http2_protocol_options.clone(),
        ),
        None => (UpstreamProtocol::H1, None, None),
    };
    let common = (*common_http_protocol_options).unwrap_or_default();
    let names = upstream_http_protocol_options.clone().unwrap_or_default();
    refuse(!names.override_auto_sni_header.is_empty(), "override_auto_sni_header")?;
    let max = value::uint(&common.max_requests_per_connection).or(old_max);
    Ok(UpstreamHttp {
        protocol,
        idle_timeout: value::limit(&common.idle_timeout, Some(Duration::from_secs(3600)))
            .at("common_http_protocol_options.idle_timeout")?,
        connection_duration: value::limit(&common.max_connection_duration, None)
            .at("common_http_protocol_options.max_connection_duration")?,
        requests_per_connection_max: max.filter(|max| *max > 0),
        http2: hcm::http2(&http2).at("http2_protocol_options")?,
        http1_preserve_case: hcm::http1(&http1).at("http_protocol_options")?.preserve_case,
        auto_sni: names.auto_sni,
        auto_san_validation: names.auto_san_validation,
    })
}

/// Upstream HTTP filters: only the codec that Envoy wants at the end, and what we do natively.
fn upstream_filters(
    http_filters: &[crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter],
) -> Result<()> {
    use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    const CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
    for (index, filter) in http_filters.iter().enumerate() {
        let known = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => {
                let kind = value::message_name(any);
                kind == CODEC || filters::is_native_http(kind, any)
            }
            _ => false,
        };
        if !known && !filter.is_optional && !filter.disabled {
            let reason = format!("upstream HTTP filter {:?} is not supported", filter.name);
            return error(format!("http_filters[{index}]"), reason);
        }
    }
    Ok(())
}

fn limits(message: &Option<pb::CircuitBreakers>) -> Result<[Thresholds; 2]> {
    let mut limits = [Thresholds::default(); 2];
    let Some(message) = message else { return Ok(limits) };
    // Per-host thresholds only bound connections to one endpoint; Istio does not send them.
    refuse(!message.per_host_thresholds.is_empty(), "per_host_thresholds")?;
    for (index, thresholds) in message.thresholds.iter().enumerate() {
        let lowered = lower_thresholds(thresholds).item("thresholds", index)?;
        match thresholds.priority {
            0 => limits[0] = lowered,
            1 => limits[1] = lowered,
            other => {
                let reason = format!("{other} is not known");
                return error(format!("thresholds[{index}].priority"), reason);
            }
        }
    }
    Ok(limits)
}

fn lower_thresholds(message: &pb::circuit_breakers::Thresholds) -> Result<Thresholds> {
    let default = Thresholds::default();
    let retry_budget = match &message.retry_budget {
        None => None,
        Some(budget) => Some(RetryBudget {
            percent: value::percent(&budget.budget_percent, 20.0).at("retry_budget")?,
            retries_min: value::uint(&budget.min_retry_concurrency).unwrap_or(3),
            interval: value::duration_opt(&budget.budget_interval)
                .at("retry_budget.budget_interval")?
                .unwrap_or_default(),
        }),
    };
    Ok(Thresholds {
        connections_max: value::uint(&message.max_connections).unwrap_or(default.connections_max),
        pending_max: value::uint(&message.max_pending_requests).unwrap_or(default.pending_max),
        requests_max: value::uint(&message.max_requests).unwrap_or(default.requests_max),
        retries_max: value::uint(&message.max_retries).unwrap_or(default.retries_max),
        retry_budget,
    })
}

/// Success-rate and failure-percentage settings are ignored; see [`crate::outlier`].
fn outlier(message: &pb::OutlierDetection, error_statuses: Box<[u16]>) -> Result<OutlierConfig> {
    let trigger = |count, enforcing, default_enforcing| Trigger {
        count: value::uint(count).unwrap_or(5),
        enforcing: value::uint(enforcing).unwrap_or(default_enforcing).min(100),
    };
    let time = |message, default| {
        value::duration_opt(message).map(|time| time.unwrap_or(Duration::from_secs(default)))
    };
    let interval = time(&message.interval, 10).at("interval")?;
    Ok(OutlierConfig {
        consecutive_5xx: trigger(&message.consecutive_5xx, &message.enforcing_consecutive_5xx, 100),
        consecutive_gateway: trigger(
            &message.consecutive_gateway_failure,
            &message.enforcing_consecutive_gateway_failure,
            0,
        ),
        consecutive_local: trigger(
            &message.consecutive_local_origin_failure,
            &message.enforcing_consecutive_local_origin_failure,
            100,
        ),
        split_local: message.split_external_local_origin_errors,
        interval: interval.max(Duration::from_millis(1)),
        base_ejection: time(&message.base_ejection_time, 30).at("base_ejection_time")?,
        ejection_max: time(&message.max_ejection_time, 300).at("max_ejection_time")?,
        ejection_percent_max: value::uint(&message.max_ejection_percent).unwrap_or(10).min(100),
        error_statuses,
    })
}

/// What the HTTP options declare as errors; empty: nothing, so 5xx.
fn error_statuses(message: &pb::Cluster) -> Result<Box<[u16]>> {
    let Some(any) = message.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        return Ok(Box::default());
    };
    let options: http_pb::HttpProtocolOptions = decode(any)?;
    let matcher = options.outlier_detection.and_then(|detection| detection.error_matcher);
    let Some(matcher) = matcher else { return Ok(Box::default()) };
    let mut statuses = Vec::new();
    add_statuses(&matcher, &mut statuses, 0)
        .at("typed_extension_protocol_options.outlier_detection.error_matcher")?;
    Ok(statuses.into())
}

/// Only exact statuses, alone or as alternatives: what Istio makes.
fn add_statuses(
    matcher: &matcher_pb::MatchPredicate,
    statuses: &mut Vec<u16>,
    depth: usize,
) -> Result<()> {
    use matcher_pb::match_predicate::Rule;
    match &matcher.rule {
        Some(Rule::OrMatch(set)) if depth == 0 => {
            set.rules.iter().try_for_each(|rule| add_statuses(rule, statuses, depth + 1))
        }
        Some(Rule::HttpResponseHeadersMatch(headers)) => match headers.headers.as_slice() {
            [only] => match exact_status(only) {
                Some(status) => {
                    statuses.push(status);
                    Ok(())
                }
                None => error("http_response_headers_match", "only exact statuses are supported"),
            },
            _ => error("http_response_headers_match", "only one header is supported"),
        },
        _ => error("", "only alternatives of response statuses are supported"),
    }
}

#[allow(deprecated)] // The older exact match is as good.
fn exact_status(header: &route_pb::HeaderMatcher) -> Option<u16> {
    use crate::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    use route_pb::header_matcher::HeaderMatchSpecifier as Specifier;
    if header.name != ":status" || header.invert_match {
        return None;
    }
    match header.header_match_specifier.as_ref()? {
        Specifier::ExactMatch(text) => text.parse().ok(),
        Specifier::StringMatch(matcher) => match matcher.match_pattern.as_ref()? {
            MatchPattern::Exact(text) => text.parse().ok(),
            _ => None,
        },
        _ => None,
    }
}

fn istio_metadata(message: Option<&Struct>) -> IstioClusterMetadata {
    let Some(message) = message else { return IstioClusterMetadata::default() };
    let text = |of: &Struct, name| Arc::from(value::text_field(of, name).unwrap_or_default());
    let services = match message.fields.get("services").and_then(|v| v.kind.as_ref()) {
        Some(Kind::ListValue(list)) => list
            .values
            .iter()
            .filter_map(|value| match &value.kind {
                Some(Kind::StructValue(service)) => Some(IstioService {
                    host: text(service, "host"),
                    name: text(service, "name"),
                    namespace: text(service, "namespace"),
                }),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    IstioClusterMetadata {
        services,
        subset: value::text_field(message, "subset").map(Arc::from),
        config: value::text_field(message, "config").map(Arc::from),
        generation: value::text_field(message, "generation").map(Arc::from),
    }
}

fn keepalive(message: &core::TcpKeepalive) -> TcpKeepalive {
    let seconds = |value| value::uint(value).map(|s| Duration::from_secs(s.into()));
    TcpKeepalive {
        probes: value::uint(&message.keepalive_probes),
        time: seconds(&message.keepalive_time),
        interval: seconds(&message.keepalive_interval),
    }
}

fn source_addresses(message: &Option<core::BindConfig>) -> Result<Vec<std::net::SocketAddr>> {
    let Some(message) = message else { return Ok(Vec::new()) };
    let extra = message.extra_source_addresses.iter().filter_map(|extra| extra.address.as_ref());
    let address = |source: &core::SocketAddress| {
        let address = core::address::Address::SocketAddress(source.clone());
        value::ip_address(&Some(core::Address { address: Some(address) })).at("source_address")
    };
    message.source_address.iter().chain(extra).map(address).collect()
}
