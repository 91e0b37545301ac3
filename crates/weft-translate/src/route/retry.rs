//! `HTTPRetry` → `RetryPolicy`, with Istio's defaults.

use weft_model::spec::HttpRetry;
use weft_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use weft_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use crate::build::{any, duration, uint32};

const RETRIES: u32 = 2;
const RETRY_ON: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
/// How often a host other than the failed one is looked for before any host is taken.
const HOST_PICKS: i64 = 5;
/// Attempts after which `retryRemoteLocalities` looks at what was tried.
const PRIORITY_UPDATE: i32 = 2;
/// Envoy's word that makes it look at the list of status codes.
const STATUS_CODES: &str = "retriable-status-codes";

/// The policy of a route: its own, the mesh's default, or Istio's. `None`: no retries.
pub(crate) fn policy(
    own: Option<&HttpRetry>,
    mesh: Option<&HttpRetry>,
) -> Option<route::RetryPolicy> {
    let Some(retries) = own.or(mesh) else { return Some(istio_default()) };
    // The API's zero value cannot be told from "not set" when other fields are given; Istio
    // reads 0 attempts as "off" in every case.
    let attempts = u32::try_from(retries.attempts).ok().filter(|attempts| *attempts > 0)?;
    let mut policy = istio_default();
    policy.num_retries = uint32(attempts);
    policy.per_try_timeout = retries.per_try_timeout.and_then(duration);
    if !retries.retry_on.is_empty() {
        let (words, codes) = split(&retries.retry_on);
        policy.retry_on = words;
        policy.retriable_status_codes = codes;
    }
    if retries.retry_ignore_previous_hosts == Some(false) {
        policy.retry_host_predicate.clear();
        policy.host_selection_retry_max_attempts = 0;
    }
    policy.retry_priority =
        (retries.retry_remote_localities == Some(true)).then(previous_priorities);
    policy.retry_back_off = retries.backoff.map(|base| route::retry_policy::RetryBackOff {
        base_interval: duration(base),
        max_interval: None,
    });
    Some(policy)
}

fn istio_default() -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: uint32(RETRIES),
        host_selection_retry_max_attempts: HOST_PICKS,
        retry_host_predicate: vec![previous_hosts()],
        ..Default::default()
    }
}

fn previous_hosts() -> route::retry_policy::RetryHostPredicate {
    use route::retry_policy::{RetryHostPredicate, retry_host_predicate::ConfigType};
    let config = TypedExtensionConfig {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        typed_config: Some(any(&PreviousHostsPredicate {})),
    };
    RetryHostPredicate {
        name: config.name,
        config_type: config.typed_config.map(ConfigType::TypedConfig),
    }
}

/// `retryRemoteLocalities`: what was tried so far is left out of the choice after every second
/// attempt, so that a retry leaves the nearest localities while these still look healthy.
fn previous_priorities() -> route::retry_policy::RetryPriority {
    use route::retry_policy::{RetryPriority, retry_priority::ConfigType};
    let config = PreviousPrioritiesConfig { update_frequency: PRIORITY_UPDATE };
    RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&config))),
    }
}

/// Numbers in `retryOn` are status codes.
fn split(retry_on: &str) -> (String, Vec<u32>) {
    let mut words = Vec::new();
    let mut codes = Vec::new();
    for part in retry_on.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse() {
            Ok(code) => codes.push(code),
            Err(_) => words.push(part),
        }
    }
    if !codes.is_empty() && !words.contains(&STATUS_CODES) {
        words.push(STATUS_CODES);
    }
    (words.join(","), codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_are_taken_out_of_retry_on() {
        let (words, codes) = split("gateway-error, 503,connect-failure,409");
        assert_eq!(words, "gateway-error,connect-failure,retriable-status-codes");
        assert_eq!(codes, [503, 409]);
    }

    #[test]
    fn zero_attempts_turn_retries_off() {
        let off = HttpRetry { attempts: 0, ..Default::default() };
        assert_eq!(policy(Some(&off), None), None);
        assert_eq!(policy(None, Some(&off)), None);
        assert_eq!(policy(None, None).and_then(|p| p.num_retries).map(|n| n.value), Some(2));
    }
}
