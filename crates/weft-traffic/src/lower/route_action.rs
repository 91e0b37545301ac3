//! Forwarding, redirects, retries, mirrors and hash policies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Result, Within, decode, error, list, matchers, rate_limit, refuse, route, value};
use crate::matcher::Fraction;
use crate::pb::envoy::config::route::v3 as pb;
use crate::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use crate::pb::google::protobuf::Duration as PbDuration;
use crate::retry::{Backoff, RetryOn, RetryPolicy};
use crate::route::{
    ClusterChoice, HashInput, HashPolicy, HashSource, HostRewrite, Mirror, PathRewrite, Redirect,
    RedirectPath, RouteAction, RouteRateLimits, WeightedCluster, WeightedClusters,
};
use crate::timeout::{GrpcTimeout, RouteTimeouts, StreamTimeouts};

#[allow(deprecated)] // Older fields are destructured.
pub(super) fn lower(
    message: &pb::RouteAction,
    inherited_mirrors: &[Mirror],
) -> Result<RouteAction> {
    let pb::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout: _,
        early_data_policy: _,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        // Lowered with the route.
        cors: _,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects: _,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = message;
    refuse(metadata_match.is_some(), "metadata_match")?;
    refuse(path_rewrite_policy.is_some(), "path_rewrite_policy")?;
    refuse(!path_rewrite.is_empty(), "path_rewrite")?;
    refuse(retry_policy_typed_config.is_some(), "retry_policy_typed_config")?;
    refuse(internal_redirect_policy.is_some(), "internal_redirect_policy")?;
    refuse(*internal_redirect_action != 0, "internal_redirect_action")?;
    refuse(hedge_policy.is_some(), "hedge_policy")?;
    let mirrors = list("request_mirror_policies", request_mirror_policies, mirror)?;
    let retry = retry_policy.as_ref().map(retry).transpose().at("retry_policy")?;
    let websocket =
        upgrade_configs.iter().find(|u| u.upgrade_type.eq_ignore_ascii_case("websocket"));
    Ok(RouteAction {
        clusters: clusters(cluster_specifier)?,
        cluster_not_found_status: match cluster_not_found_response_code {
            1 => 404,
            2 => 500,
            _ => 503,
        },
        timeouts: RouteTimeouts {
            request: value::limit(timeout, Some(Duration::from_secs(15))).at("timeout")?,
            idle: match idle_timeout {
                Some(_) => Some(value::limit(idle_timeout, None).at("idle_timeout")?),
                None => None,
            },
            grpc: grpc_timeout(max_grpc_timeout, grpc_timeout_offset).at("max_grpc_timeout")?,
            stream: max_stream_duration
                .as_ref()
                .map(stream_timeouts)
                .transpose()
                .at("max_stream_duration")?
                .map(Box::new),
        },
        retry: retry.map(Arc::new),
        path_rewrite: match (prefix_rewrite.is_empty(), regex_rewrite) {
            (true, None) => None,
            (false, None) => Some(PathRewrite::Prefix(prefix_rewrite.as_bytes().into())),
            (true, Some(rewrite)) => {
                Some(PathRewrite::Regex(matchers::substitution(rewrite).at("regex_rewrite")?))
            }
            (false, Some(_)) => return error("regex_rewrite", "is set besides prefix_rewrite"),
        },
        host_rewrite: host_rewrite(host_rewrite_specifier)?,
        append_x_forwarded_host: *append_x_forwarded_host,
        mirrors: if mirrors.is_empty() { inherited_mirrors.to_vec() } else { mirrors },
        hash: HashPolicy { sources: list("hash_policy", hash_policy, hash_source)? },
        high_priority: *priority == 1,
        websocket: websocket.map(|upgrade| value::boolean(&upgrade.enabled, true)),
        rate_limits: match rate_limits.is_empty() {
            true => None,
            false => Some(Box::new(RouteRateLimits {
                rules: rate_limit::rules("rate_limits", rate_limits)?,
                host_too: value::boolean(include_vh_rate_limits, false),
            })),
        },
    })
}

fn grpc_timeout(
    max: &Option<PbDuration>,
    offset: &Option<PbDuration>,
) -> Result<Option<GrpcTimeout>> {
    let Some(max) = max else { return Ok(None) };
    let offset = value::duration_opt(offset)?.unwrap_or_default();
    Ok(Some(GrpcTimeout { max: value::duration(max)?, offset }))
}

fn stream_timeouts(message: &pb::route_action::MaxStreamDuration) -> Result<StreamTimeouts> {
    let pb::route_action::MaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset,
    } = message;
    let limit = match max_stream_duration {
        Some(_) => Some(value::limit(max_stream_duration, None)?),
        None => None,
    };
    let grpc = grpc_timeout(grpc_timeout_header_max, grpc_timeout_header_offset)
        .at("grpc_timeout_header_max")?;
    Ok(StreamTimeouts { limit, grpc })
}

fn clusters(specifier: &Option<pb::route_action::ClusterSpecifier>) -> Result<ClusterChoice> {
    use pb::route_action::ClusterSpecifier;
    match specifier {
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => error("cluster", "is empty"),
        Some(ClusterSpecifier::Cluster(name)) => Ok(ClusterChoice::One(Arc::from(&**name))),
        Some(ClusterSpecifier::ClusterHeader(name)) if name.is_empty() => {
            error("cluster_header", "is empty")
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            Ok(ClusterChoice::Header(Arc::from(name.to_ascii_lowercase())))
        }
        Some(ClusterSpecifier::WeightedClusters(message)) => {
            weighted(message).at("weighted_clusters")
        }
        Some(
            ClusterSpecifier::ClusterSpecifierPlugin(_)
            | ClusterSpecifier::InlineClusterSpecifierPlugin(_),
        ) => error("cluster_specifier_plugin", "is not supported"),
        None => error("cluster_specifier", "is required"),
    }
}

#[allow(deprecated)] // `total_weight` is looked at to be checked.
fn weighted(message: &pb::WeightedCluster) -> Result<ClusterChoice> {
    let pb::WeightedCluster {
        clusters,
        total_weight,
        runtime_key_prefix: _,
        random_value_specifier,
    } = message;
    refuse(random_value_specifier.is_some(), "random_value_specifier")?;
    let clusters = list("clusters", clusters, weighted_cluster)?;
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    match value::uint(total_weight) {
        Some(total) if u64::from(total) != sum => {
            return error("total_weight", format!("is {total}, but the weights add up to {sum}"));
        }
        _ => {}
    }
    match WeightedClusters::new(clusters) {
        Some(weighted) => Ok(ClusterChoice::Weighted(weighted)),
        None => error("clusters", "the weights add up to zero"),
    }
}

fn weighted_cluster(message: &pb::weighted_cluster::ClusterWeight) -> Result<WeightedCluster> {
    let pb::weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = message;
    refuse(metadata_match.is_some(), "metadata_match")?;
    refuse(!typed_per_filter_config.is_empty(), "typed_per_filter_config")?;
    if name.is_empty() == cluster_header.is_empty() {
        return error("name", "exactly one of name and cluster_header is required");
    }
    let host_rewrite = host_rewrite_specifier.as_ref().map(
        |pb::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)| {
            Bytes::copy_from_slice(host.as_bytes())
        },
    );
    Ok(WeightedCluster {
        name: Arc::from(&**name),
        header: (!cluster_header.is_empty())
            .then(|| Arc::from(cluster_header.to_ascii_lowercase())),
        weight: value::uint(weight).unwrap_or(0),
        edits: route::edits(
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        host_rewrite,
    })
}

fn host_rewrite(
    specifier: &Option<pb::route_action::HostRewriteSpecifier>,
) -> Result<Option<HostRewrite>> {
    use pb::route_action::HostRewriteSpecifier as Specifier;
    Ok(match specifier {
        None => None,
        Some(Specifier::HostRewriteLiteral(host)) => {
            Some(HostRewrite::Literal(Bytes::copy_from_slice(host.as_bytes())))
        }
        Some(Specifier::AutoHostRewrite(auto)) => auto.value.then_some(HostRewrite::Auto),
        Some(Specifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(Arc::from(name.to_ascii_lowercase())))
        }
        Some(Specifier::HostRewritePathRegex(rewrite)) => {
            let substitution = matchers::substitution(rewrite).at("host_rewrite_path_regex")?;
            Some(HostRewrite::Path(substitution))
        }
        Some(Specifier::HostRewrite(_)) => {
            return error("host_rewrite", "formatted host rewrites are not supported");
        }
    })
}

pub(super) fn mirror(message: &pb::route_action::RequestMirrorPolicy) -> Result<Mirror> {
    let pb::route_action::RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = message;
    refuse(!request_headers_mutations.is_empty(), "request_headers_mutations")?;
    let cluster = match (cluster.is_empty(), cluster_header.is_empty()) {
        (false, true) => ClusterChoice::One(Arc::from(&**cluster)),
        (true, false) => ClusterChoice::Header(Arc::from(cluster_header.to_ascii_lowercase())),
        _ => return error("cluster", "exactly one of cluster and cluster_header is required"),
    };
    let fraction = match runtime_fraction {
        Some(_) => value::runtime_fraction(runtime_fraction).at("runtime_fraction")?,
        None => Fraction::ALWAYS,
    };
    Ok(Mirror {
        cluster,
        fraction,
        keep_host: *disable_shadow_host_suffix_append,
        host_rewrite: (!host_rewrite_literal.is_empty())
            .then(|| Bytes::copy_from_slice(host_rewrite_literal.as_bytes())),
        traced: trace_sampled.as_ref().map(|traced| traced.value),
    })
}

fn hash_source(message: &pb::route_action::HashPolicy) -> Result<HashSource> {
    use pb::route_action::hash_policy::PolicySpecifier;
    let kind = match &message.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            refuse(header.regex_rewrite.is_some(), "header.regex_rewrite")?;
            HashInput::Header(header.header_name.to_ascii_lowercase().into())
        }
        Some(PolicySpecifier::Cookie(cookie)) => HashInput::Cookie {
            name: cookie.name.as_str().into(),
            ttl: value::duration_opt(&cookie.ttl).at("cookie.ttl")?,
            path: cookie.path.as_str().into(),
        },
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            HashInput::SourceIp
        }
        Some(PolicySpecifier::QueryParameter(query)) => {
            HashInput::Query(query.name.as_bytes().into())
        }
        Some(PolicySpecifier::ConnectionProperties(_)) => {
            return error("connection_properties", "source_ip is required");
        }
        Some(PolicySpecifier::FilterState(_)) => return error("filter_state", "is not supported"),
        None => return error("policy_specifier", "is required"),
    };
    Ok(HashSource { kind, terminal: message.terminal })
}

pub(super) fn redirect(message: &pb::RedirectAction) -> Result<Redirect> {
    use pb::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
    let pb::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = message;
    let status = match response_code {
        0 => 301,
        1 => 302,
        2 => 303,
        3 => 307,
        4 => 308,
        other => return error("response_code", format!("{other} is not known")),
    };
    let scheme: Option<Box<str>> = match scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.as_str().into()),
        Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
    };
    let path = match path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            Some(RedirectPath::Full(path.as_bytes().into()))
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            Some(RedirectPath::Prefix(prefix.as_bytes().into()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            Some(RedirectPath::Regex(matchers::substitution(rewrite).at("regex_rewrite")?))
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return error("path_rewrite", "formatted path rewrites are not supported");
        }
    };
    let port = match port_redirect {
        0 => None,
        port => Some(value::port_number(*port).at("port_redirect")?),
    };
    let host = (!host_redirect.is_empty()).then(|| host_redirect.as_str().into());
    Ok(Redirect { status, scheme, host, port, path, strip_query: *strip_query })
}

/// Bounds the work that one request can cause.
const RETRIES_MAX: u32 = 100;
const HOST_SELECTION_MAX: i64 = 100;

pub(super) fn retry(message: &pb::RetryPolicy) -> Result<RetryPolicy> {
    let pb::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = message;
    refuse(!retry_options_predicates.is_empty(), "retry_options_predicates")?;
    refuse(rate_limited_retry_back_off.is_some(), "rate_limited_retry_back_off")?;
    refuse(*refresh_cluster_on_retry, "refresh_cluster_on_retry")?;
    let (on, mut status_codes) = RetryOn::parse(retry_on);
    status_codes.extend(list("retriable_status_codes", retriable_status_codes, |code| {
        u16::try_from(*code).or_else(|_| error("", format!("{code} is not a status code")))
    })?);
    let predicates =
        list("retry_host_predicate", retry_host_predicate, |predicate| {
            match predicate.name.ends_with("previous_hosts") {
                true => Ok(()),
                false => error("name", format!("predicate {:?} is not supported", predicate.name)),
            }
        })?;
    let priority_update =
        retry_priority.as_ref().map(previous_priorities).transpose().at("retry_priority")?;
    let backoff = match retry_back_off {
        None => Backoff::default(),
        Some(back_off) => {
            let Some(base) = value::duration_opt(&back_off.base_interval).at("retry_back_off")?
            else {
                return error("retry_back_off.base_interval", "is required");
            };
            let max = value::duration_opt(&back_off.max_interval).at("retry_back_off")?;
            Backoff::new(base, max)
        }
    };
    Ok(RetryPolicy {
        on,
        retries_max: value::uint(num_retries).unwrap_or(1).min(RETRIES_MAX),
        per_try_timeout: value::limit(per_try_timeout, None).at("per_try_timeout")?,
        per_try_idle_timeout: value::limit(per_try_idle_timeout, None)
            .at("per_try_idle_timeout")?,
        backoff,
        status_codes,
        response_headers: list("retriable_headers", retriable_headers, matchers::header)?,
        request_headers: list(
            "retriable_request_headers",
            retriable_request_headers,
            matchers::header,
        )?,
        avoid_previous: !predicates.is_empty(),
        host_selection_attempts: match host_selection_retry_max_attempts {
            // Envoy: zero means the default of one.
            ..=0 => 1,
            attempts => (*attempts).min(HOST_SELECTION_MAX) as u32,
        },
        priority_update,
    })
}

fn previous_priorities(message: &pb::retry_policy::RetryPriority) -> Result<u32> {
    use pb::retry_policy::retry_priority::ConfigType;
    let Some(ConfigType::TypedConfig(any)) = &message.config_type else {
        return error("typed_config", "is required");
    };
    match value::message_name(any) {
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig" => {
            let config: PreviousPrioritiesConfig = decode(any)?;
            match u32::try_from(config.update_frequency) {
                Ok(frequency @ 1..) => Ok(frequency),
                _ => error("update_frequency", "must be above 0"),
            }
        }
        other => error("typed_config", format!("{other:?} is not supported")),
    }
}
