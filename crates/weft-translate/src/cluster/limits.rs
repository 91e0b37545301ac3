//! Connection pools, circuit breakers, outlier ejection, balancing: DestinationRule fields that
//! become cluster fields one by one.

use std::time::Duration;

use prost::Message as _;

use weft_model::spec::{
    ConnectionPoolSettings, ConsistentHashLb, H2UpgradePolicy, Http2KeepAlive, HttpSettings,
    LoadBalancerSettings, OutlierDetection, RetryBudget, SimpleLb, TcpKeepalive,
};
use weft_xds::pb::envoy::config::cluster::v3 as cluster;
use weft_xds::pb::envoy::config::common::matcher::v3 as matcher;
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::extensions::upstreams::http::v3 as http;

use weft_xds::pb::envoy::r#type::v3::Percent;

use super::Upstream;
use crate::build::hcm::http1_options;
use crate::build::{any, duration, exact, uint32};
use crate::view::Flavor;

/// "No limit" in Envoy's thresholds.
const UNLIMITED: u32 = u32::MAX;
/// Istio's HTTP/2 streams on one connection: practically unlimited, still within the RFC.
const STREAMS_MAX: u32 = 1_073_741_824;
/// `HttpProtocolOptions` in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Zero and negative numbers mean "not set" in Istio's API.
fn positive(value: i32) -> Option<u32> {
    u32::try_from(value).ok().filter(|value| *value > 0)
}

pub(crate) fn breakers(
    pool: Option<&ConnectionPoolSettings>,
    budget: Option<&RetryBudget>,
) -> cluster::CircuitBreakers {
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    let of_http = |read: fn(&HttpSettings) -> i32| {
        uint32(http.and_then(|http| positive(read(http))).unwrap_or(UNLIMITED))
    };
    cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_connections: uint32(
                tcp.and_then(|tcp| positive(tcp.max_connections)).unwrap_or(UNLIMITED),
            ),
            max_pending_requests: of_http(|http| http.http1_max_pending_requests),
            max_requests: of_http(|http| http.http2_max_requests),
            max_retries: of_http(|http| http.max_retries),
            retry_budget: budget.map(|budget| cluster::circuit_breakers::thresholds::RetryBudget {
                budget_percent: budget.percent.map(|value| Percent { value }),
                min_retry_concurrency: budget
                    .min_retry_concurrency
                    .filter(|least| *least > 0)
                    .and_then(uint32),
                budget_interval: budget.budget_interval.and_then(duration),
            }),
            track_remaining: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// TLS asks for the host of the request (`sni`), and the certificate must have it (`checked`).
pub(crate) fn name_by_request(cluster: &mut cluster::Cluster, sni: bool, checked: bool) {
    use http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    let options = &mut cluster.typed_extension_protocol_options;
    let known = options.get(HTTP_OPTIONS);
    let decoded = known.and_then(|any| http::HttpProtocolOptions::decode(&*any.value).ok());
    let mut message = decoded.unwrap_or_else(|| http::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Default::default())),
            },
        )),
        ..Default::default()
    });
    message.upstream_http_protocol_options = Some(core::UpstreamHttpProtocolOptions {
        auto_sni: sni,
        auto_san_validation: checked,
        ..Default::default()
    });
    options.insert(HTTP_OPTIONS.to_owned(), any(&message));
}

/// `None` when neither the rule nor the mesh asks for keepalive.
pub(crate) fn keepalive(
    pool: Option<&ConnectionPoolSettings>,
    mesh: Option<&TcpKeepalive>,
) -> Option<cluster::UpstreamConnectionOptions> {
    let own = pool.and_then(|pool| pool.tcp.as_ref()).and_then(|tcp| tcp.tcp_keepalive.as_ref());
    let settings = own.or(mesh)?;
    let seconds = |time: Option<Duration>| time.and_then(|time| uint32(clamp_seconds(time)));
    Some(cluster::UpstreamConnectionOptions {
        tcp_keepalive: Some(core::TcpKeepalive {
            keepalive_probes: if settings.probes > 0 { uint32(settings.probes) } else { None },
            keepalive_time: seconds(settings.time),
            keepalive_interval: seconds(settings.interval),
        }),
        ..Default::default()
    })
}

fn clamp_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

pub(crate) fn outliers(settings: &OutlierDetection) -> cluster::OutlierDetection {
    // Istio never ejects by success rate, and ejects by gateway errors only when asked.
    let mut out = cluster::OutlierDetection {
        enforcing_success_rate: uint32(0),
        interval: settings.interval.and_then(duration),
        base_ejection_time: settings.base_ejection_time.and_then(duration),
        max_ejection_percent: positive(settings.max_ejection_percent).and_then(uint32),
        split_external_local_origin_errors: settings.split_external_local_origin_errors,
        consecutive_local_origin_failure: settings
            .consecutive_local_origin_failures
            .filter(|_| settings.split_external_local_origin_errors)
            .and_then(uint32),
        ..Default::default()
    };
    let deprecated = settings.consecutive_errors.and_then(positive);
    if let Some(errors) = settings.consecutive_5xx_errors {
        out.consecutive_5xx = uint32(errors);
        out.enforcing_consecutive_5xx = uint32(if errors > 0 { 100 } else { 0 });
    }
    if let Some(errors) = settings.consecutive_gateway_errors.or(deprecated) {
        out.consecutive_gateway_failure = uint32(errors);
        out.enforcing_consecutive_gateway_failure = uint32(if errors > 0 { 100 } else { 0 });
    }
    out
}

/// How long hosts may be unhealthy before all are used: Istio's default is never.
pub(crate) fn panic_threshold(settings: Option<&OutlierDetection>) -> f64 {
    settings.map_or(0.0, |settings| f64::from(settings.min_health_percent.clamp(0, 100)))
}

/// Policy and, for hashing, its ring.
pub(crate) fn balancing(
    settings: Option<&LoadBalancerSettings>,
) -> (cluster::cluster::LbPolicy, Option<cluster::cluster::LbConfig>) {
    use cluster::cluster::{LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig};
    let Some(settings) = settings else { return (LbPolicy::LeastRequest, None) };
    if let Some(hash) = &settings.consistent_hash {
        return hashing(hash);
    }
    let warmup = warmup(settings);
    match settings.simple {
        Some(SimpleLb::RoundRobin) => {
            let config = warmup.map(|slow_start| {
                let slow_start_config = Some(slow_start);
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })
            });
            (LbPolicy::RoundRobin, config)
        }
        Some(SimpleLb::Random) => (LbPolicy::Random, None),
        Some(SimpleLb::Passthrough) => (LbPolicy::ClusterProvided, None),
        Some(SimpleLb::LeastRequest | SimpleLb::LeastConn | SimpleLb::Unspecified) | None => {
            let config = warmup.map(|slow_start| {
                let slow_start_config = Some(slow_start);
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config,
                    ..Default::default()
                })
            });
            (LbPolicy::LeastRequest, config)
        }
    }
}

/// `warmup`, or its deprecated form, which leaves the shape to Envoy's defaults (the same).
fn warmup(settings: &LoadBalancerSettings) -> Option<cluster::cluster::SlowStartConfig> {
    let mut slow_start = cluster::cluster::SlowStartConfig::default();
    match (&settings.warmup, settings.warmup_duration_secs) {
        (Some(warmup), _) => {
            slow_start.slow_start_window = duration(warmup.duration?);
            slow_start.min_weight_percent = warmup.minimum_percent.map(|value| Percent { value });
            slow_start.aggression = warmup.aggression.map(|default_value| core::RuntimeDouble {
                default_value,
                // Required, and read by nobody.
                runtime_key: "warmup.aggression".to_owned(),
            });
        }
        (None, Some(window)) => slow_start.slow_start_window = duration(window),
        (None, None) => return None,
    }
    Some(slow_start)
}

fn hashing(
    hash: &ConsistentHashLb,
) -> (cluster::cluster::LbPolicy, Option<cluster::cluster::LbConfig>) {
    use cluster::cluster::{LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig};
    use weft_xds::pb::google::protobuf::UInt64Value;
    if let Some(maglev) = hash.maglev {
        let table_size = maglev.table_size.map(|value| UInt64Value { value });
        let config = MaglevLbConfig { table_size };
        return (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config)));
    }
    let minimum = hash.ring_hash.and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
    let config = RingHashLbConfig {
        minimum_ring_size: Some(UInt64Value { value: minimum.unwrap_or(1024) }),
        ..Default::default()
    };
    (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config)))
}

/// Which HTTP version the requests take upstream.
pub(crate) fn upstream_of(declared: Upstream, pool: Option<&ConnectionPoolSettings>) -> Upstream {
    let Some(http) = pool.and_then(|pool| pool.http.as_ref()) else { return declared };
    match (declared, http.h2_upgrade_policy) {
        (Upstream::Http1, _) if http.use_client_protocol => Upstream::AsClient,
        (Upstream::Http1, Some(H2UpgradePolicy::Upgrade)) => Upstream::Http2,
        _ => declared,
    }
}

/// Protocol options (`errors`: the statuses that outlier detection counts instead of 5xx), or
/// nothing where the reader's default (HTTP/1.1, no limits) is meant.
pub(crate) fn protocol_options(
    upstream: Upstream,
    pool: Option<&ConnectionPoolSettings>,
    errors: Option<&[u32]>,
    flavor: Flavor,
) -> Option<(String, weft_xds::pb::google::protobuf::Any)> {
    use http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let settings = pool.and_then(|pool| pool.http.as_ref());
    let common = pool.and_then(common_options);
    let http1 = http1_options(flavor);
    let errors = errors.filter(|codes| !codes.is_empty()).map(error_matcher);
    match upstream {
        Upstream::Tcp => return None,
        Upstream::Http1 if common.is_none() && http1.is_none() && errors.is_none() => return None,
        Upstream::Http1 | Upstream::Http2 | Upstream::AsClient => {}
    }
    let http1 = http1.unwrap_or_default();
    let streams = settings.and_then(|http| positive(http.max_concurrent_streams));
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: uint32(streams.unwrap_or(STREAMS_MAX)),
        connection_keepalive: settings
            .and_then(|http| http.http2_keep_alive.as_ref())
            .map(keepalive_pings),
        ..Default::default()
    };
    let choice = match upstream {
        Upstream::Http2 => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
        }),
        Upstream::AsClient => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(http1),
                http2_protocol_options: Some(http2),
                ..Default::default()
            })
        }
        Upstream::Http1 | Upstream::Tcp => {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(http1)),
            })
        }
    };
    let options = http::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_protocol_options: Some(choice),
        outlier_detection: errors,
        ..Default::default()
    };
    Some((HTTP_OPTIONS.to_owned(), any(&options)))
}

fn keepalive_pings(settings: &Http2KeepAlive) -> core::KeepaliveSettings {
    core::KeepaliveSettings {
        interval: settings.interval.and_then(duration),
        timeout: settings.timeout.and_then(duration),
        ..Default::default()
    }
}

/// `outlierDetectionHttpErrorCodes`.
fn error_matcher(codes: &[u32]) -> http::http_protocol_options::OutlierDetection {
    use matcher::match_predicate::{MatchSet, Rule};
    let one = |code: &u32| matcher::MatchPredicate {
        rule: Some(Rule::HttpResponseHeadersMatch(matcher::HttpHeadersMatch {
            headers: vec![status_is(*code)],
        })),
    };
    let error_matcher = match codes {
        [only] => one(only),
        several => matcher::MatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules: several.iter().map(one).collect() })),
        },
    };
    http::http_protocol_options::OutlierDetection { error_matcher: Some(error_matcher) }
}

fn status_is(code: u32) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier;
    route::HeaderMatcher {
        name: ":status".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(&code.to_string()))),
        ..Default::default()
    }
}

fn common_options(pool: &ConnectionPoolSettings) -> Option<core::HttpProtocolOptions> {
    let http = pool.http.as_ref();
    // As Istio: the TCP limit holds where HTTP has none.
    let of_tcp = pool.tcp.as_ref().and_then(|tcp| tcp.idle_timeout);
    let options = core::HttpProtocolOptions {
        idle_timeout: http.and_then(|http| http.idle_timeout).or(of_tcp).and_then(duration),
        max_requests_per_connection: http
            .and_then(|http| positive(http.max_requests_per_connection))
            .and_then(uint32),
        max_connection_duration: pool
            .tcp
            .as_ref()
            .and_then(|tcp| tcp.max_connection_duration)
            .and_then(duration),
        ..Default::default()
    };
    (options != Default::default()).then_some(options)
}
