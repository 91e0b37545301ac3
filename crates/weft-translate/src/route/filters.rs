//! Per-route configuration of Envoy's own filters: fault injection and CORS.

use std::collections::HashMap;

use weft_model::spec::{
    CorsPolicy, FaultAbort, FaultDelay, HttpFaultInjection, HttpRoute, Percent, StringMatch,
    UnmatchedPreflights,
};
use weft_xds::pb::envoy::extensions::filters::common::fault::v3 as common_fault;
use weft_xds::pb::envoy::extensions::filters::http::cors::v3 as cors;
use weft_xds::pb::envoy::extensions::filters::http::fault::v3 as fault;
use weft_xds::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use weft_xds::pb::google::protobuf::Any;

use crate::build::{any, boolean, duration, exact, prefix, regex_string};

pub(crate) fn per_route(rule: &HttpRoute) -> HashMap<String, Any> {
    let mut configs = HashMap::new();
    if let Some(injection) = &rule.fault {
        configs.insert("envoy.filters.http.fault".to_owned(), any(&faults(injection)));
    }
    if let Some(policy) = &rule.cors_policy {
        configs.insert("envoy.filters.http.cors".to_owned(), any(&cross_origin(policy)));
    }
    configs
}

/// Percent (0 to 100) in millionths, Envoy's finest grain.
pub(crate) fn fraction(percent: f64) -> FractionalPercent {
    FractionalPercent {
        numerator: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
        denominator: DenominatorType::Million as i32,
    }
}

/// Istio: no percentage means always; the deprecated whole number only counts without it.
fn share(percentage: Option<Percent>, whole: Option<i32>) -> Option<FractionalPercent> {
    let percent = match (percentage, whole) {
        (Some(percentage), _) => percentage.value,
        (None, Some(whole)) => f64::from(whole),
        (None, None) => 100.0,
    };
    Some(fraction(percent))
}

fn faults(injection: &HttpFaultInjection) -> fault::HttpFault {
    fault::HttpFault {
        delay: injection.delay.as_ref().and_then(delay),
        abort: injection.abort.as_ref().and_then(abort),
        ..Default::default()
    }
}

fn delay(delay: &FaultDelay) -> Option<common_fault::FaultDelay> {
    Some(common_fault::FaultDelay {
        percentage: share(delay.percentage, delay.percent),
        fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(
            duration(delay.fixed_delay?)?,
        )),
    })
}

fn abort(abort: &FaultAbort) -> Option<fault::FaultAbort> {
    use fault::fault_abort::ErrorType;
    let error = match (&abort.http_status, &abort.grpc_status) {
        (Some(status), _) => ErrorType::HttpStatus(u32::try_from(*status).ok()?),
        (None, Some(status)) => ErrorType::GrpcStatus(grpc_code(status)?),
        (None, None) => return None,
    };
    Some(fault::FaultAbort {
        percentage: share(abort.percentage, abort.percent),
        error_type: Some(error),
        ..Default::default()
    })
}

/// gRPC status names in the order of their codes.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn grpc_code(status: &str) -> Option<u32> {
    let by_name = GRPC_CODES.iter().position(|name| name.eq_ignore_ascii_case(status));
    by_name.and_then(|code| u32::try_from(code).ok()).or_else(|| status.parse().ok())
}

fn cross_origin(policy: &CorsPolicy) -> cors::CorsPolicy {
    let old = policy.allow_origin.iter().map(|origin| match origin.as_str() {
        "*" => regex_string(".*"),
        origin => exact(origin),
    });
    let origins = policy.allow_origins.iter().map(|origin| match origin {
        StringMatch::Exact(value) => exact(value),
        StringMatch::Prefix(value) => prefix(value),
        StringMatch::Regex(value) => regex_string(value),
        StringMatch::Present => regex_string(".*"),
    });
    cors::CorsPolicy {
        allow_origin_string_match: old.chain(origins).collect(),
        allow_methods: policy.allow_methods.join(","),
        allow_headers: policy.allow_headers.join(","),
        expose_headers: policy.expose_headers.join(","),
        max_age: policy.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: policy.allow_credentials.and_then(boolean),
        forward_not_matching_preflights: match policy.unmatched_preflights {
            Some(UnmatchedPreflights::Ignore) => boolean(false),
            Some(UnmatchedPreflights::Forward | UnmatchedPreflights::Unspecified) | None => {
                boolean(true)
            }
        },
        ..Default::default()
    }
}
