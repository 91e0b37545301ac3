//! `local_ratelimit` and the routes' `rate_limits`.

use super::{Result, Within, error, list, matchers, refuse, value};
use crate::headers::HeaderEdits;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::route::v3 as route_pb;
use crate::pb::envoy::extensions::common::ratelimit::v3 as common;
use crate::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use crate::pb::envoy::r#type::v3::TokenBucket;
use crate::rate_limit::{Bucket, DescriptorLimit, LimitAction, LocalRateLimit, RateLimitRule};

/// Envoy's shortest interval.
const INTERVAL_MIN: std::time::Duration = std::time::Duration::from_millis(50);

pub(super) fn local(message: &pb::LocalRateLimit) -> Result<LocalRateLimit> {
    let pb::LocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        // A route that sets its own limits has them alone, unless it includes the host's.
        vh_rate_limits: _,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        // For entries without a value, which are refused.
        max_dynamic_descriptors: _,
        enable_retry_after_header,
    } = message;
    refuse(
        *local_rate_limit_per_downstream_connection,
        "local_rate_limit_per_downstream_connection",
    )?;
    refuse(local_cluster_rate_limit.is_some(), "local_cluster_rate_limit")?;
    refuse(*enable_retry_after_header, "enable_retry_after_header")?;
    let mut descriptors = list("descriptors", descriptors, descriptor)?;
    descriptors.sort_by_key(|limit| std::cmp::Reverse(limit.bucket.per_token()));
    let code = status.as_ref().map_or(0, |status| status.code);
    Ok(LocalRateLimit {
        stat_prefix: stat_prefix.as_str().into(),
        // As in Envoy, what is no error is the default.
        status: u16::try_from(code).ok().filter(|code| (400..600).contains(code)).unwrap_or(429),
        enabled: fraction(filter_enabled).at("filter_enabled")?,
        enforced: fraction(filter_enforced).at("filter_enforced")?,
        bucket: token_bucket.as_ref().map(bucket).transpose().at("token_bucket")?,
        descriptors,
        always_default: value::boolean(always_consume_default_token_bucket, true),
        tells: *enable_x_ratelimit_headers == 1,
        exhausted: *rate_limited_as_resource_exhausted,
        response_edits: edits(matchers::Direction::Response, response_headers_to_add)?,
        request_edits: edits(
            matchers::Direction::Request,
            request_headers_to_add_when_not_enforced,
        )?,
        stage: *stage,
        rules: rules("rate_limits", rate_limits)?,
    })
}

fn edits(direction: matchers::Direction, add: &[core::HeaderValueOption]) -> Result<HeaderEdits> {
    matchers::edits(direction, add, &[])
}

/// Absent means never: so Envoy's filter reads it.
fn fraction(message: &Option<core::RuntimeFractionalPercent>) -> Result<crate::matcher::Fraction> {
    match message {
        Some(_) => value::runtime_fraction(message),
        None => Ok(crate::matcher::Fraction::NEVER),
    }
}

fn bucket(message: &TokenBucket) -> Result<Bucket> {
    let TokenBucket { max_tokens, tokens_per_fill, fill_interval } = message;
    if *max_tokens == 0 {
        return error("max_tokens", "must be at least 1");
    }
    let interval = value::duration_opt(fill_interval).at("fill_interval")?;
    match interval {
        Some(interval) if interval >= INTERVAL_MIN => {
            Ok(Bucket::new(*max_tokens, value::uint(tokens_per_fill).unwrap_or(1), interval))
        }
        _ => error("fill_interval", "must be at least 50 ms"),
    }
}

fn descriptor(message: &common::LocalRateLimitDescriptor) -> Result<DescriptorLimit> {
    let common::LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = message;
    refuse(*shadow_mode, "shadow_mode")?;
    let Some(token_bucket) = token_bucket else { return error("token_bucket", "is required") };
    let entries = list("entries", entries, |entry| match entry.value.is_empty() {
        // Envoy makes buckets for the values that come.
        true => error("value", "is required by this proxy"),
        false => Ok((entry.key.as_str().into(), entry.value.as_str().into())),
    })?;
    Ok(DescriptorLimit { entries, bucket: bucket(token_bucket).at("token_bucket")? })
}

/// A rule with an action that we do not know makes no descriptors.
pub(super) fn rules(
    field: &'static str,
    messages: &[route_pb::RateLimit],
) -> Result<Vec<RateLimitRule>> {
    let rules = list(field, messages, |message| {
        let known = message.actions.iter().all(is_known);
        let actions = list("actions", &message.actions, action)?;
        Ok(known
            .then_some(RateLimitRule { stage: value::uint(&message.stage).unwrap_or(0), actions }))
    })?;
    Ok(rules.into_iter().flatten().collect())
}

fn is_known(message: &route_pb::rate_limit::Action) -> bool {
    use route_pb::rate_limit::action::ActionSpecifier as Specifier;
    matches!(
        message.action_specifier,
        Some(
            Specifier::RemoteAddress(_)
                | Specifier::DestinationCluster(_)
                | Specifier::GenericKey(_)
                | Specifier::RequestHeaders(_)
                | Specifier::HeaderValueMatch(_)
                | Specifier::QueryParameterValueMatch(_)
        )
    )
}

fn action(message: &route_pb::rate_limit::Action) -> Result<LimitAction> {
    use route_pb::rate_limit::action::ActionSpecifier as Specifier;
    let named = |given: &str, default: &str| -> Box<str> {
        if given.is_empty() { default.into() } else { given.into() }
    };
    Ok(match &message.action_specifier {
        Some(Specifier::DestinationCluster(_)) => LimitAction::DestinationCluster,
        Some(Specifier::GenericKey(fixed)) => LimitAction::Fixed {
            key: named(&fixed.descriptor_key, "generic_key"),
            value: fixed.descriptor_value.as_str().into(),
        },
        Some(Specifier::RequestHeaders(header)) => LimitAction::Header {
            name: header.header_name.to_ascii_lowercase().into(),
            key: header.descriptor_key.as_str().into(),
            optional: header.skip_if_absent,
        },
        Some(Specifier::HeaderValueMatch(matching)) => LimitAction::HeaderMatch {
            key: named(&matching.descriptor_key, "header_match"),
            value: matching.descriptor_value.as_str().into(),
            expect: value::boolean(&matching.expect_match, true),
            headers: list("headers", &matching.headers, matchers::header)?,
        },
        Some(Specifier::QueryParameterValueMatch(matching)) => LimitAction::QueryMatch {
            key: named(&matching.descriptor_key, "query_match"),
            value: matching.descriptor_value.as_str().into(),
            expect: value::boolean(&matching.expect_match, true),
            query: list("query_parameters", &matching.query_parameters, matchers::query)?,
        },
        // What is not known was seen by the caller.
        _ => LimitAction::RemoteAddress,
    })
}
