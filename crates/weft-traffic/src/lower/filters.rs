//! HTTP filters, per-route filter settings, and the filters whose work the proxy does by itself.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Result, Within, decode, error, list, matchers, metrics, rate_limit, refuse, value};
use crate::cors::{CorsFilter, CorsPolicy};
use crate::fault::{AbortKind, FaultAbort, FaultDelay, FaultPolicy};
use crate::http::HttpFilter;
use crate::matcher::Fraction;
use crate::metrics::Metrics;
use crate::pb::envoy::config::route::v3 as route_pb;
use crate::pb::envoy::extensions::filters::common::fault::v3 as fault_common;
use crate::pb::envoy::extensions::filters::http::{cors::v3 as cors_pb, fault::v3 as fault_pb};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;
use crate::pb::google::protobuf::Any;
use crate::rate_limit::LocalRateLimit;

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const GRPC_WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";
const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

/// HTTP filters that Istio adds and whose work we do natively: peer metadata, ALPN by
/// destination, gRPC statistics, names resolved on demand.
const NATIVE_HTTP: [&str; 5] = [
    "io.istio.http.peer_metadata.Config",
    "stats.PluginConfig",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    // Clusters that need names resolved see to it themselves.
    "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
];

/// The same for network filters.
const NATIVE_NETWORK: [&str; 2] =
    ["envoy.tcp.metadataexchange.config.MetadataExchange", "stats.PluginConfig"];

/// Whether a network filter's work is done by the proxy itself.
pub(super) fn is_native_network(kind: &str, any: &Any) -> bool {
    NATIVE_NETWORK.contains(&kind) || wraps(kind, any, &NATIVE_NETWORK)
}

/// Whether an HTTP filter's work is done by the proxy itself.
pub(super) fn is_native_http(kind: &str, any: &Any) -> bool {
    NATIVE_HTTP.contains(&kind) || wraps(kind, any, &NATIVE_HTTP)
}

/// A TypedStruct (`type_url` is field 1) around one of `kinds`.
fn wraps(kind: &str, any: &Any, kinds: &[&str]) -> bool {
    if !TYPED_STRUCTS.contains(&kind) {
        return false;
    }
    let inner = <TypedStruct as prost::Message>::decode(&any.value[..]);
    inner.is_ok_and(|inner| kinds.contains(&inner.type_url.rsplit('/').next().unwrap_or_default()))
}

/// The part of `xds.type.v3.TypedStruct` (and `udpa.type.v1`) that tells what it stands for.
#[derive(Clone, PartialEq, prost::Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
}

/// Filters in order, and what becomes of the metrics.
type HttpFilters = (Vec<HttpFilter>, Option<Arc<Metrics>>);

/// The filters of an HTTP connection manager, which must end with the router.
pub(super) fn http_filters(filters: &[hcm_pb::HttpFilter]) -> Result<HttpFilters> {
    let (mut lowered, mut stats) = (Vec::new(), None);
    let mut routed = false;
    for (index, filter) in filters.iter().enumerate() {
        if routed {
            return error("http_filters", "the router must be the last filter");
        }
        match http_filter(filter).item("http_filters", index)? {
            Found::Router => routed = true,
            Found::Filter(filter) => lowered.push(filter),
            Found::Metrics(metrics) => stats = Some(metrics),
            Found::Nothing => {}
        }
    }
    match routed {
        true => Ok((lowered, stats)),
        false => error("http_filters", "must end with envoy.filters.http.router"),
    }
}

enum Found {
    Router,
    Filter(HttpFilter),
    Metrics(Arc<Metrics>),
    Nothing,
}

fn http_filter(filter: &hcm_pb::HttpFilter) -> Result<Found> {
    use hcm_pb::http_filter::ConfigType;
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any,
        Some(ConfigType::ConfigDiscovery(_)) | None => {
            return match (&*filter.name, filter.is_optional || filter.disabled) {
                ("envoy.filters.http.router", _) => Ok(Found::Router),
                (_, true) => Ok(Found::Nothing),
                (name, false) => {
                    error("", format!("HTTP filter {name:?} needs a typed configuration"))
                }
            };
        }
    };
    match value::message_name(any) {
        ROUTER => Ok(Found::Router),
        CORS => Ok(Found::Filter(HttpFilter::Cors(Arc::new(CorsFilter::default())))),
        FAULT => {
            let policy = fault(&decode(any)?)?;
            Ok(Found::Filter(HttpFilter::Fault(Arc::new(policy))))
        }
        GRPC_WEB => Ok(Found::Filter(HttpFilter::GrpcWeb)),
        LOCAL_RATE_LIMIT => {
            let limit = Arc::new(rate_limit::local(&decode(any)?)?);
            Ok(Found::Filter(HttpFilter::LocalRateLimit(filter.name.as_str().into(), limit)))
        }
        metrics::STATS => Ok(metrics::lower(any)?.map_or(Found::Nothing, Found::Metrics)),
        kind if is_native_http(kind, any) => Ok(Found::Nothing),
        _ if filter.is_optional || filter.disabled => Ok(Found::Nothing),
        kind => error("", format!("HTTP filter {:?} ({kind}) is not supported", filter.name)),
    }
}

/// What `typed_per_filter_config` sets for the filters we run.
#[derive(Debug, Default)]
pub(super) struct PerRoute {
    pub(super) cors: Option<Arc<CorsPolicy>>,
    pub(super) fault: Option<Arc<FaultPolicy>>,
    pub(super) limits: Vec<(Box<str>, Option<Arc<LocalRateLimit>>)>,
}

pub(super) fn per_route(configs: &HashMap<String, Any>) -> Result<PerRoute> {
    let mut lowered = PerRoute::default();
    // In name order, so that the first error is the same every time.
    let mut names: Vec<&String> = configs.keys().collect();
    names.sort();
    for name in names {
        add_per_route(&mut lowered, name, &configs[name], false)
            .within(|| format!("typed_per_filter_config[{name:?}]"))?;
    }
    Ok(lowered)
}

fn add_per_route(lowered: &mut PerRoute, filter: &str, any: &Any, optional: bool) -> Result<()> {
    match value::message_name(any) {
        CORS_POLICY => lowered.cors = Some(Arc::new(cors(&decode(any)?)?)),
        FAULT => lowered.fault = Some(Arc::new(fault(&decode(any)?)?)),
        LOCAL_RATE_LIMIT => {
            let limit = rate_limit::local(&decode(any)?)?;
            lowered.limits.push((filter.into(), Some(Arc::new(limit))));
        }
        FILTER_CONFIG if !optional => {
            let wrapper: route_pb::FilterConfig = decode(any)?;
            match &wrapper.config {
                // Switched off for this route.
                _ if wrapper.disabled => lowered.limits.push((filter.into(), None)),
                Some(inner) => add_per_route(lowered, filter, inner, wrapper.is_optional)?,
                None => {}
            }
        }
        _ if optional => {}
        kind if is_native_http(kind, any) => {}
        kind => return error("", format!("settings of type {kind:?} are not supported")),
    }
    Ok(())
}

pub(super) fn cors(message: &cors_pb::CorsPolicy) -> Result<CorsPolicy> {
    let cors_pb::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        // Only counts what would have been done.
        shadow_enabled: _,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = message;
    Ok(CorsPolicy {
        allow_origins: list(
            "allow_origin_string_match",
            allow_origin_string_match,
            matchers::string,
        )?,
        allow_methods: allow_methods.as_str().into(),
        allow_headers: allow_headers.as_str().into(),
        expose_headers: expose_headers.as_str().into(),
        max_age: max_age.as_str().into(),
        allow_credentials: value::boolean(allow_credentials, false),
        allow_private_network: value::boolean(allow_private_network_access, false),
        forward_not_matching: value::boolean(forward_not_matching_preflights, true),
        enabled: value::runtime_fraction(filter_enabled).at("filter_enabled")?,
    })
}

/// The older policy inside a virtual host or route action.
pub(super) fn old_cors(message: &route_pb::CorsPolicy) -> Result<CorsPolicy> {
    let enabled = message.enabled_specifier.as_ref();
    let enabled =
        enabled.map(|route_pb::cors_policy::EnabledSpecifier::FilterEnabled(f)| f.clone());
    cors(&cors_pb::CorsPolicy {
        allow_origin_string_match: message.allow_origin_string_match.clone(),
        allow_methods: message.allow_methods.clone(),
        allow_headers: message.allow_headers.clone(),
        expose_headers: message.expose_headers.clone(),
        max_age: message.max_age.clone(),
        allow_credentials: message.allow_credentials,
        filter_enabled: enabled,
        shadow_enabled: None,
        allow_private_network_access: message.allow_private_network_access,
        forward_not_matching_preflights: message.forward_not_matching_preflights,
    })
}

pub(super) fn fault(message: &fault_pb::HttpFault) -> Result<FaultPolicy> {
    let fault_pb::HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        // There is no runtime to override the values.
        delay_percent_runtime: _,
        abort_percent_runtime: _,
        delay_duration_runtime: _,
        abort_http_status_runtime: _,
        max_active_faults_runtime: _,
        response_rate_limit_percent_runtime: _,
        abort_grpc_status_runtime: _,
        disable_downstream_cluster_stats: _,
        filter_metadata: _,
    } = message;
    refuse(!downstream_nodes.is_empty(), "downstream_nodes")?;
    refuse(max_active_faults.is_some(), "max_active_faults")?;
    refuse(response_rate_limit.is_some(), "response_rate_limit")?;
    Ok(FaultPolicy {
        delay: delay.as_ref().map(fault_delay).transpose().at("delay")?,
        abort: abort.as_ref().map(fault_abort).transpose().at("abort")?,
        headers: list("headers", headers, matchers::header)?,
        upstream_cluster: (!upstream_cluster.is_empty()).then(|| upstream_cluster.as_str().into()),
    })
}

fn fault_delay(message: &fault_common::FaultDelay) -> Result<FaultDelay> {
    use fault_common::fault_delay::FaultDelaySecifier as Specifier;
    let duration = match &message.fault_delay_secifier {
        Some(Specifier::FixedDelay(delay)) => value::duration(delay).at("fixed_delay")?,
        Some(Specifier::HeaderDelay(_)) => return error("header_delay", "is not supported"),
        None => return error("fixed_delay", "is required"),
    };
    let fraction = fault_fraction(&message.percentage)?;
    Ok(FaultDelay { fraction, duration })
}

fn fault_abort(message: &fault_pb::FaultAbort) -> Result<FaultAbort> {
    use fault_pb::fault_abort::ErrorType;
    let kind = match &message.error_type {
        Some(ErrorType::HttpStatus(status @ 200..=599)) => AbortKind::Http(*status as u16),
        Some(ErrorType::HttpStatus(status)) => {
            return error("http_status", format!("{status} is not between 200 and 599"));
        }
        Some(ErrorType::GrpcStatus(status)) => AbortKind::Grpc(*status),
        Some(ErrorType::HeaderAbort(_)) => return error("header_abort", "is not supported"),
        None => return error("error_type", "is required"),
    };
    let fraction = fault_fraction(&message.percentage)?;
    Ok(FaultAbort { fraction, kind, body: message.response_body.as_str().into() })
}

/// Absent means never, unlike elsewhere: so Envoy's filter reads it.
fn fault_fraction(
    message: &Option<crate::pb::envoy::r#type::v3::FractionalPercent>,
) -> Result<Fraction> {
    match message {
        Some(message) => value::fraction(message).at("percentage"),
        None => Ok(Fraction::NEVER),
    }
}
