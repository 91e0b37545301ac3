//! Whether and when to try again.
//!
//! Decides on the outcome of one attempt; counting attempts, holding bodies and the retry breaker are
//! the caller's.

use std::time::Duration;

use weft_http::{HeaderList, RequestHead};

use crate::matcher::HeaderMatch;

/// `RetryPolicy`.
#[derive(Debug, Clone, Default)]
pub struct RetryPolicy {
    pub on: RetryOn,
    /// Retries after the first attempt. Envoy: 1; Istio: 2.
    pub retries_max: u32,
    /// Limit of each attempt; None: only the request's limit.
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub backoff: Backoff,
    /// For `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// For `retriable-headers`: any of these on the response.
    pub response_headers: Vec<HeaderMatch>,
    /// Only requests with all of these are retried.
    pub request_headers: Vec<HeaderMatch>,
    /// A retry avoids the endpoints tried before (`previous_hosts`).
    pub avoid_previous: bool,
    /// How many draws to spend on avoiding them. Envoy: 1; Istio: 5.
    pub host_selection_attempts: u32,
    /// After so many attempts the next one leaves their priorities out (`previous_priorities`).
    pub priority_update: Option<u32>,
}

/// `retry_on` as a set of flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetryOn(u32);

macro_rules! retry_on {
    ($($constant:ident = $bit:literal, $name:literal;)+) => {
        impl RetryOn {
            $(#[doc = $name] pub const $constant: RetryOn = RetryOn(1 << $bit);)+

            fn named(name: &str) -> Option<RetryOn> {
                match name { $($name => Some(Self::$constant),)+ _ => None }
            }
        }
    };
}

retry_on! {
    SERVER_ERROR = 0, "5xx";
    GATEWAY_ERROR = 1, "gateway-error";
    RESET = 2, "reset";
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    CONNECT_FAILURE = 4, "connect-failure";
    RATELIMITED = 5, "envoy-ratelimited";
    RETRIABLE_4XX = 6, "retriable-4xx";
    REFUSED_STREAM = 7, "refused-stream";
    STATUS_CODES = 8, "retriable-status-codes";
    HEADERS = 9, "retriable-headers";
    CANCELLED = 10, "cancelled";
    DEADLINE_EXCEEDED = 11, "deadline-exceeded";
    INTERNAL = 12, "internal";
    RESOURCE_EXHAUSTED = 13, "resource-exhausted";
    UNAVAILABLE = 14, "unavailable";
}

impl RetryOn {
    pub const NONE: RetryOn = RetryOn(0);

    /// Parses a comma-separated list. A number is a status code, which Istio allows in `retryOn`; the
    /// second part lists those. Unknown conditions are skipped, as Envoy does.
    pub fn parse(text: &str) -> (RetryOn, Vec<u16>) {
        let mut on = RetryOn::NONE;
        let mut codes = Vec::new();
        for name in text.split(',').map(str::trim) {
            match (RetryOn::named(name), name.parse::<u16>()) {
                (Some(flag), _) => on.0 |= flag.0,
                (None, Ok(code)) => {
                    on.0 |= RetryOn::STATUS_CODES.0;
                    codes.push(code);
                }
                (None, Err(_)) => {}
            }
        }
        (on, codes)
    }

    pub fn has(self, flag: RetryOn) -> bool {
        self.0 & flag.0 != 0
    }

    fn any(self, flags: &[RetryOn]) -> bool {
        flags.iter().any(|flag| self.has(*flag))
    }
}

/// How one attempt ended.
#[derive(Debug, Clone, Copy)]
pub enum AttemptOutcome<'a> {
    /// A response head, before any of it went to the client.
    Response { status: u16, headers: &'a HeaderList },
    /// No connection: refused, timed out, handshake failed.
    ConnectFailure,
    /// The stream or connection broke before the response head.
    Reset {
        /// Something of the request was already sent.
        request_started: bool,
        /// The endpoint said it did not process the request (REFUSED_STREAM, GOAWAY below the id).
        refused: bool,
    },
    /// The attempt's own limit ran out.
    PerTryTimeout,
    /// A circuit breaker refused the attempt.
    Overflow,
}

impl RetryPolicy {
    /// Whether this outcome is one to retry. Not whether a retry is left.
    pub fn should_retry(&self, outcome: &AttemptOutcome<'_>) -> bool {
        let on = self.on;
        match outcome {
            AttemptOutcome::Response { status, headers } => self.retries_response(*status, headers),
            AttemptOutcome::Overflow => false,
            AttemptOutcome::ConnectFailure => on.any(&[
                RetryOn::CONNECT_FAILURE,
                RetryOn::RESET,
                RetryOn::RESET_BEFORE_REQUEST,
                RetryOn::SERVER_ERROR,
                RetryOn::GATEWAY_ERROR,
            ]),
            AttemptOutcome::Reset { request_started, refused } => {
                on.any(&[RetryOn::RESET, RetryOn::SERVER_ERROR, RetryOn::GATEWAY_ERROR])
                    || (*refused && on.has(RetryOn::REFUSED_STREAM))
                    || (!request_started && on.has(RetryOn::RESET_BEFORE_REQUEST))
            }
            AttemptOutcome::PerTryTimeout => {
                on.any(&[RetryOn::RESET, RetryOn::SERVER_ERROR, RetryOn::GATEWAY_ERROR])
            }
        }
    }

    /// Whether this request may be retried at all.
    pub fn applies_to(&self, head: &RequestHead) -> bool {
        self.on != RetryOn::NONE
            && self.retries_max > 0
            && (self.request_headers.is_empty()
                || self.request_headers.iter().any(|matcher| matcher.is_match(head)))
    }

    fn retries_response(&self, status: u16, headers: &HeaderList) -> bool {
        let on = self.on;
        if headers.contains_known(weft_http::Known::XEnvoyRatelimited) {
            return on.has(RetryOn::RATELIMITED);
        }
        let by_status = match status {
            502..=504 => on.any(&[RetryOn::SERVER_ERROR, RetryOn::GATEWAY_ERROR]),
            500..=599 => on.has(RetryOn::SERVER_ERROR),
            409 => on.has(RetryOn::RETRIABLE_4XX),
            _ => false,
        };
        by_status
            || (on.has(RetryOn::STATUS_CODES) && self.status_codes.contains(&status))
            || (on.has(RetryOn::HEADERS)
                && self.response_headers.iter().any(|matcher| matcher.is_match_list(headers)))
            || self.retries_grpc(headers)
    }

    /// A gRPC status counts when it comes with the head (a trailers-only response).
    fn retries_grpc(&self, headers: &HeaderList) -> bool {
        let flag = match headers.get_known(weft_http::Known::GrpcStatus) {
            Some(b"1") => RetryOn::CANCELLED,
            Some(b"4") => RetryOn::DEADLINE_EXCEEDED,
            Some(b"8") => RetryOn::RESOURCE_EXHAUSTED,
            Some(b"13") => RetryOn::INTERNAL,
            Some(b"14") => RetryOn::UNAVAILABLE,
            _ => return false,
        };
        self.on.has(flag)
    }
}

/// Exponential back-off with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    /// Envoy: 25 ms, at most ten times that.
    fn default() -> Self {
        Backoff::new(Duration::from_millis(25), None)
    }
}

impl Backoff {
    /// Without `max`: ten times the base.
    pub fn new(base: Duration, max: Option<Duration>) -> Backoff {
        let max = max.unwrap_or_else(|| base.saturating_mul(10)).max(base);
        Backoff { base, max }
    }

    /// The wait before retry number `retry` (from 1): anywhere from zero to `base × (2^retry − 1)`.
    pub fn delay(&self, retry: u32, random: u64) -> Duration {
        let factor = 2u32.saturating_pow(retry.min(31)).saturating_sub(1);
        let ceiling = self.base.saturating_mul(factor).min(self.max);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random % nanos.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: &str) -> RetryPolicy {
        let (on, status_codes) = RetryOn::parse(on);
        RetryPolicy { on, status_codes, retries_max: 2, ..Default::default() }
    }

    #[test]
    fn istio_default_policy() {
        let policy =
            policy("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes");
        let reset = |request_started, refused| AttemptOutcome::Reset { request_started, refused };
        assert!(policy.should_retry(&AttemptOutcome::ConnectFailure));
        assert!(policy.should_retry(&reset(true, true)));
        assert!(!policy.should_retry(&reset(true, false)));
        assert!(!policy.should_retry(&reset(false, false)));
        assert!(!policy.should_retry(&AttemptOutcome::PerTryTimeout));
        assert!(!policy.should_retry(&AttemptOutcome::Overflow));
        let headers = |text: &str| -> HeaderList { [("grpc-status", text)].into_iter().collect() };
        let grpc = |text| {
            policy.should_retry(&AttemptOutcome::Response { status: 200, headers: &headers(text) })
        };
        assert!(grpc("14") && grpc("1") && !grpc("13") && !grpc("0"));
    }

    #[test]
    fn statuses() {
        let none = HeaderList::new();
        for (on, status, expect) in [
            ("5xx", 500, true),
            ("5xx", 404, false),
            ("gateway-error", 500, false),
            ("gateway-error", 503, true),
            ("retriable-4xx", 409, true),
            ("503,nonsense", 503, true),
            ("503", 502, false),
            ("", 500, false),
        ] {
            let outcome = AttemptOutcome::Response { status, headers: &none };
            assert_eq!(policy(on).should_retry(&outcome), expect, "{on} {status}");
        }
        let limited: HeaderList = [("x-envoy-ratelimited", "true")].into_iter().collect();
        let outcome = AttemptOutcome::Response { status: 503, headers: &limited };
        assert!(!policy("5xx").should_retry(&outcome));
        assert!(policy("envoy-ratelimited").should_retry(&outcome));
    }

    #[test]
    fn reset_before_request_is_safe_for_posts() {
        let policy = policy("reset-before-request");
        let reset = |request_started| AttemptOutcome::Reset { request_started, refused: false };
        assert!(policy.should_retry(&reset(false)));
        assert!(!policy.should_retry(&reset(true)));
    }

    #[test]
    fn backoff_grows_within_bounds() {
        let backoff = Backoff::default();
        for (retry, ceiling_ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (40, 250)] {
            let mut rng = crate::lb::test_rng(retry.into());
            let longest = (0..1000).map(|_| backoff.delay(retry, rng())).max().unwrap();
            assert!(longest <= Duration::from_millis(ceiling_ms), "{retry}: {longest:?}");
            assert!(longest > Duration::from_millis(ceiling_ms * 9 / 10), "{retry}: {longest:?}");
        }
        assert_eq!(Backoff::new(Duration::ZERO, None).delay(1, 9), Duration::ZERO);
    }
}
