//! Listeners, filter chains and TCP proxying.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Result, Within, access_log, decode, error, filters, hcm, list, metrics, refuse, tls, value,
};
use crate::listener::{
    ChainMatch, Direction, FilterChain, Inspectors, ListenerConfig, Network, SourceType, TcpConfig,
    Tunneling,
};
use crate::pb::envoy::config::listener::v3 as pb;
use crate::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use crate::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni_pb;
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_pb;
use crate::route::{ClusterChoice, Edits, WeightedCluster, WeightedClusters};

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const SNI_FORWARD: &str =
    "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig";
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";

#[allow(deprecated)] // `use_original_dst` and `deprecated_v1` are what Istio sends.
pub(super) fn lower(message: &pb::Listener) -> Result<ListenerConfig> {
    let pb::Listener {
        name,
        address,
        additional_addresses,
        stat_prefix: _,
        stats_matcher: _,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout: _,
        metadata: _,
        deprecated_v1,
        // Draining follows our own rules.
        drain_type: _,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        // Socket tuning; the sockets are the proxy's.
        freebind: _,
        socket_options: _,
        tcp_fast_open_queue_length: _,
        traffic_direction,
        udp_listener_config,
        api_listener,
        // Connections are spread over workers by SO_REUSEPORT.
        connection_balance_config: _,
        reuse_port: _,
        enable_reuse_port: _,
        access_log,
        tcp_backlog_size: _,
        max_connections_to_accept_per_socket_event: _,
        bind_to_port,
        enable_mptcp: _,
        ignore_global_conn_limit: _,
        bypass_overload_manager: _,
        tcp_keepalive: _,
        listener_specifier,
    } = message;
    refuse(fcds_config.is_some(), "fcds_config")?;
    refuse(filter_chain_matcher.is_some(), "filter_chain_matcher")?;
    refuse(udp_listener_config.is_some(), "udp_listener_config")?;
    refuse(listener_specifier.is_some(), "internal_listener")?;
    if api_listener.is_some() {
        return error("api_listener", "is for proxyless gRPC, not for a proxy");
    }
    let chains = list("filter_chains", filter_chains, chain)?;
    let default_chain =
        default_filter_chain.as_ref().map(chain).transpose().at("default_filter_chain")?;
    if chains.is_empty() && default_chain.is_none() {
        return error("filter_chains", "at least one is required");
    }
    refuse_same_matches(&chains)?;
    let v1_bind = deprecated_v1.as_ref().and_then(|v1| v1.bind_to_port.as_ref());
    let timeout = value::duration_opt(listener_filters_timeout).at("listener_filters_timeout")?;
    Ok(ListenerConfig {
        name: Arc::from(&**name),
        address: value::ip_address(address).at("address")?,
        additional_addresses: list("additional_addresses", additional_addresses, |additional| {
            value::ip_address(&additional.address).at("address")
        })?,
        bind: value::boolean(bind_to_port, v1_bind.is_none_or(|bind| bind.value)),
        direction: match traffic_direction {
            1 => Direction::Inbound,
            2 => Direction::Outbound,
            _ => Direction::Gateway,
        },
        use_original_dst: value::boolean(use_original_dst, false),
        transparent: value::boolean(transparent, false),
        inspectors: inspectors(listener_filters)?,
        chains,
        default_chain,
        inspect_timeout: timeout.unwrap_or(Duration::from_secs(15)),
        continue_on_inspect_timeout: *continue_on_listener_filters_timeout,
        buffer_bytes_max: value::uint(per_connection_buffer_limit_bytes),
        access_log: access_log::lower(access_log).at("access_log")?,
    })
}

/// As Envoy: two chains that ask the same make the listener ambiguous.
fn refuse_same_matches(chains: &[FilterChain]) -> Result<()> {
    let mut seen = HashMap::with_capacity(chains.len());
    for (index, chain) in chains.iter().enumerate() {
        if let Some(earlier) = seen.insert(&chain.matches, index) {
            let reason = format!("matches the same as filter_chains[{earlier}]");
            return error(format!("filter_chains[{index}].filter_chain_match"), reason);
        }
    }
    Ok(())
}

fn inspectors(filters: &[pb::ListenerFilter]) -> Result<Inspectors> {
    let mut inspectors = Inspectors::default();
    for (index, filter) in filters.iter().enumerate() {
        add_inspector(&mut inspectors, filter).item("listener_filters", index)?;
    }
    Ok(inspectors)
}

fn add_inspector(inspectors: &mut Inspectors, filter: &pb::ListenerFilter) -> Result<()> {
    use pb::listener_filter::ConfigType;
    let kind = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => value::message_name(any),
        Some(ConfigType::ConfigDiscovery(_)) => {
            return error("config_discovery", "is not supported");
        }
        None => &filter.name,
    };
    let disabled = disabled_ports(&filter.filter_disabled).at("filter_disabled")?;
    match kind {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
        | "envoy.filters.listener.tls_inspector" => {
            inspectors.tls = true;
            inspectors.tls_disabled_ports = disabled;
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
        | "envoy.filters.listener.http_inspector" => {
            inspectors.http = true;
            inspectors.http_disabled_ports = disabled;
        }
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
        | "envoy.filters.listener.original_dst" => inspectors.original_dst = true,
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc"
        | "envoy.filters.listener.original_src" => {
            inspectors.original_src = Some(original_src_mark(filter)?);
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
        | "envoy.filters.listener.proxy_protocol" => inspectors.proxy_protocol = true,
        other => return error("", format!("listener filter {other:?} is not supported")),
    }
    Ok(())
}

/// `OriginalSrc.mark`. `bind_port` is not acted on, as in Envoy.
fn original_src_mark(filter: &pb::ListenerFilter) -> Result<u32> {
    match &filter.config_type {
        Some(pb::listener_filter::ConfigType::TypedConfig(any)) => {
            let message: OriginalSrc = decode(any)?;
            Ok(message.mark)
        }
        _ => Ok(0),
    }
}

/// Only port ranges, alone or joined by "or", as Istio makes them.
fn disabled_ports(
    predicate: &Option<pb::ListenerFilterChainMatchPredicate>,
) -> Result<Vec<(u16, u16)>> {
    let mut ranges = Vec::new();
    if let Some(predicate) = predicate {
        add_ports(predicate, &mut ranges, 0)?;
    }
    Ok(ranges)
}

/// Bound on the nesting of predicates.
const PREDICATE_DEPTH_MAX: usize = 16;

fn add_ports(
    predicate: &pb::ListenerFilterChainMatchPredicate,
    ranges: &mut Vec<(u16, u16)>,
    depth: usize,
) -> Result<()> {
    use pb::listener_filter_chain_match_predicate::Rule;
    match &predicate.rule {
        Some(Rule::DestinationPortRange(range)) => {
            let port = |value: i32| value.clamp(0, i32::from(u16::MAX)) as u16;
            ranges.push((port(range.start), port(range.end)));
            Ok(())
        }
        Some(Rule::OrMatch(set)) if depth < PREDICATE_DEPTH_MAX => {
            set.rules.iter().try_for_each(|rule| add_ports(rule, ranges, depth + 1))
        }
        Some(Rule::AnyMatch(any)) => {
            ranges.extend(any.then_some((0, u16::MAX)));
            Ok(())
        }
        _ => error("", "only destination port ranges are supported"),
    }
}

#[allow(deprecated)] // `use_proxy_proto` is looked at to be refused.
fn chain(message: &pb::FilterChain) -> Result<FilterChain> {
    let pb::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = message;
    refuse(value::boolean(use_proxy_proto, false), "use_proxy_proto")?;
    let matches = match filter_chain_match {
        Some(message) => chain_match(message).at("filter_chain_match")?,
        None => ChainMatch::default(),
    };
    Ok(FilterChain {
        name: Arc::from(&**name),
        matches,
        tls: tls::downstream(transport_socket).at("transport_socket")?,
        handshake_timeout: value::limit(transport_socket_connect_timeout, None)
            .at("transport_socket_connect_timeout")?,
        network: network(filters)?,
    })
}

fn chain_match(message: &pb::FilterChainMatch) -> Result<ChainMatch> {
    let pb::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = message;
    refuse(!address_suffix.is_empty(), "address_suffix")?;
    refuse(suffix_len.is_some(), "suffix_len")?;
    let destination_port = value::uint(destination_port).map(value::port_number).transpose();
    Ok(ChainMatch {
        destination_port: destination_port.at("destination_port")?,
        prefix_ranges: list("prefix_ranges", prefix_ranges, value::cidr)?,
        server_names: list("server_names", server_names, server_name)?,
        transport_protocol: transport_protocol.as_str().into(),
        application_protocols: application_protocols.iter().map(|p| p.as_bytes().into()).collect(),
        direct_source_ranges: list(
            "direct_source_prefix_ranges",
            direct_source_prefix_ranges,
            value::cidr,
        )?,
        source_type: match source_type {
            1 => SourceType::SameIpOrLoopback,
            2 => SourceType::External,
            _ => SourceType::Any,
        },
        source_ranges: list("source_prefix_ranges", source_prefix_ranges, value::cidr)?,
        source_ports: list("source_ports", source_ports, |port| value::port_number(*port))?,
    })
}

fn server_name(name: &String) -> Result<Box<str>> {
    let inner = name.strip_prefix("*.").unwrap_or(name);
    match inner.is_empty() || inner.contains('*') {
        true => error("", format!("{name:?} is not a server name; use a name or *.suffix")),
        false => Ok(name.to_ascii_lowercase().into()),
    }
}

/// The filters of a chain: anything known to be done elsewhere, then one that serves the connection.
/// The port of what the SNI names.
fn sni_forward(any: &crate::pb::google::protobuf::Any) -> Result<u16> {
    let config: sni_pb::FilterConfig = decode(any)?;
    match config.port_specifier {
        Some(sni_pb::filter_config::PortSpecifier::PortValue(port)) if port > 0 => {
            value::port_number(port).at("port_value")
        }
        _ => Ok(443),
    }
}

fn network(filters: &[pb::Filter]) -> Result<Network> {
    let mut cluster_from_sni = false;
    let mut sni_port = None;
    let mut stats = None;
    for (index, filter) in filters.iter().enumerate() {
        let Some(pb::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
            return error(format!("filters[{index}]"), "needs a typed configuration");
        };
        match value::message_name(any) {
            HCM => {
                let http = decode(any).and_then(|message| hcm::lower(&message));
                return Ok(Network::Http(Arc::new(http.item("filters", index)?)));
            }
            TCP_PROXY => {
                let tcp = decode(any).and_then(|message| tcp_proxy(&message, cluster_from_sni));
                let tcp = TcpConfig { sni_port, metrics: stats, ..tcp.item("filters", index)? };
                return Ok(Network::Tcp(Arc::new(tcp)));
            }
            SNI_CLUSTER => cluster_from_sni = true,
            SNI_FORWARD => sni_port = Some(sni_forward(any).item("filters", index)?),
            metrics::STATS => stats = metrics::lower(any).item("filters", index)?,
            kind if filters::is_native_network(kind, any) => {}
            kind => {
                let reason = format!("network filter {:?} ({kind}) is not supported", filter.name);
                return error(format!("filters[{index}]"), reason);
            }
        }
    }
    error("filters", "must end with http_connection_manager or tcp_proxy")
}

#[allow(deprecated)] // Older access log timing fields are destructured to be ignored.
fn tcp_proxy(message: &tcp_pb::TcpProxy, cluster_from_sni: bool) -> Result<TcpConfig> {
    let tcp_pb::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        // Directional idle limits refine `idle_timeout`.
        downstream_idle_timeout: _,
        upstream_idle_timeout: _,
        access_log,
        max_connect_attempts,
        backoff_options: _,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage: _,
        access_log_flush_interval: _,
        flush_access_log_on_connected: _,
        access_log_options: _,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode: _,
        max_early_data_bytes: _,
        check_drain_close: _,
        cluster_specifier,
    } = message;
    refuse(on_demand.is_some(), "on_demand")?;
    refuse(metadata_match.is_some(), "metadata_match")?;
    refuse(!proxy_protocol_tlvs.is_empty(), "proxy_protocol_tlvs")?;
    let clusters = match cluster_specifier {
        Some(tcp_pb::tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            ClusterChoice::One(Arc::from(&**name))
        }
        Some(tcp_pb::tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            tcp_weighted(weighted).at("weighted_clusters")?
        }
        None => return error("cluster_specifier", "is required"),
    };
    let hour = Some(Duration::from_secs(3600));
    Ok(TcpConfig {
        stat_prefix: Arc::from(&**stat_prefix),
        clusters,
        cluster_from_sni,
        sni_port: None,
        idle_timeout: value::limit(idle_timeout, hour).at("idle_timeout")?,
        connect_attempts_max: value::uint(max_connect_attempts).unwrap_or(1).max(1),
        connection_duration_max: value::limit(max_downstream_connection_duration, None)
            .at("max_downstream_connection_duration")?,
        hash_source_ip: !hash_policy.is_empty(),
        metrics: None,
        tunnel: tunneling_config.as_ref().map(tunneling).transpose().at("tunneling_config")?,
        access_log: access_log::lower(access_log).at("access_log")?,
    })
}

fn tunneling(message: &tcp_pb::tcp_proxy::TunnelingConfig) -> Result<Tunneling> {
    let tcp_pb::tcp_proxy::TunnelingConfig {
        hostname,
        use_post,
        headers_to_add,
        // They go to other filters, of which there are none.
        propagate_response_headers: _,
        post_path,
        propagate_response_trailers: _,
        ..
    } = message;
    refuse(!headers_to_add.is_empty(), "headers_to_add")?;
    // Envoy takes these for access log operators.
    refuse(hostname.contains('%'), "hostname")?;
    if hostname.is_empty() || hostname.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        return error("hostname", format!("{hostname:?} is not a host and port"));
    }
    let path = if post_path.is_empty() { "/" } else { &**post_path };
    if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        return error("post_path", format!("{path:?} is not a path"));
    }
    Ok(Tunneling {
        authority: Arc::from(&**hostname),
        post_path: use_post.then(|| Arc::from(path)),
    })
}

fn tcp_weighted(message: &tcp_pb::tcp_proxy::WeightedCluster) -> Result<ClusterChoice> {
    let clusters = list("clusters", &message.clusters, |cluster| {
        refuse(cluster.metadata_match.is_some(), "metadata_match")?;
        Ok(WeightedCluster {
            name: Arc::from(&*cluster.name),
            header: None,
            weight: cluster.weight,
            edits: Edits::default(),
            host_rewrite: None,
        })
    })?;
    match WeightedClusters::new(clusters) {
        Some(weighted) => Ok(ClusterChoice::Weighted(weighted)),
        None => error("clusters", "the weights add up to zero"),
    }
}
