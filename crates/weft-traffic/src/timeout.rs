//! Which time limits hold for one request: the route's, bent by what the caller asks in headers.

use std::time::Duration;

use weft_http::{HeaderList, Known};

/// Limits of a route. None: no limit from the route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the end of the request to the end of the response, all attempts. Envoy's 15 s default and
    /// "0 means none" are already applied.
    pub request: Option<Duration>,
    /// Overrides the listener's stream idle limit; `Some(None)` switches it off.
    pub idle: Option<Option<Duration>>,
    /// Whole stream, both directions.
    pub stream_duration: Option<Duration>,
    /// Honour `grpc-timeout` up to this; zero: without bound.
    pub grpc_max: Option<Duration>,
    /// Taken off `grpc-timeout` so that we answer before the caller gives up.
    pub grpc_offset: Duration,
}

/// Limits for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestTimeouts {
    pub request: Option<Duration>,
    /// Each attempt; None: no limit of its own.
    pub per_try: Option<Duration>,
}

impl RouteTimeouts {
    /// The limits for a request. `per_try` is the retry policy's. `trusted` callers (inside the mesh) may
    /// set `x-envoy-upstream-rq-timeout-ms` and `x-envoy-upstream-rq-per-try-timeout-ms`.
    pub fn for_request(
        &self,
        headers: &HeaderList,
        grpc: bool,
        per_try: Option<Duration>,
        trusted: bool,
    ) -> RequestTimeouts {
        let mut limits = RequestTimeouts { request: self.request, per_try };
        if let (true, Some(max)) = (grpc, self.grpc_max) {
            limits.request = self.grpc_limit(headers, max);
        }
        if trusted {
            if let Some(asked) = header_ms(headers, "x-envoy-upstream-rq-timeout-ms") {
                limits.request = some_unless_zero(asked);
            }
            if let Some(asked) = header_ms(headers, "x-envoy-upstream-rq-per-try-timeout-ms") {
                limits.per_try = some_unless_zero(asked);
            }
        }
        // A try as long as the request needs no timer of its own.
        if let (Some(request), Some(per_try)) = (limits.request, limits.per_try)
            && per_try >= request
        {
            limits.per_try = None;
        }
        limits
    }

    fn grpc_limit(&self, headers: &HeaderList, max: Duration) -> Option<Duration> {
        let asked = headers.get_known(Known::GrpcTimeout).and_then(parse_grpc_timeout);
        let asked = asked.map(|asked| match asked > self.grpc_offset {
            true => asked - self.grpc_offset,
            false => asked,
        });
        match (asked, max.is_zero()) {
            (Some(asked), true) => Some(asked),
            (Some(asked), false) => Some(asked.min(max)),
            (None, true) => None,
            (None, false) => Some(max),
        }
    }
}

/// `grpc-timeout`: at most 8 digits and a unit.
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

fn header_ms(headers: &HeaderList, name: &str) -> Option<Duration> {
    let text = std::str::from_utf8(headers.get(name)?).ok()?;
    text.parse().ok().map(Duration::from_millis)
}

fn some_unless_zero(limit: Duration) -> Option<Duration> {
    (!limit.is_zero()).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn grpc_timeout_is_bounded() {
        let route =
            RouteTimeouts { request: Some(S(15)), grpc_max: Some(S(10)), ..Default::default() };
        let check = |text: Option<&str>| {
            let headers = text.iter().map(|t| ("grpc-timeout", *t)).collect();
            route.for_request(&headers, true, None, false).request
        };
        assert_eq!(check(Some("5S")), Some(S(5)));
        assert_eq!(check(Some("1H")), Some(S(10)));
        assert_eq!(check(None), Some(S(10)));
        assert_eq!(check(Some("bad")), Some(S(10)));
        let headers = [("grpc-timeout", "5S")].into_iter().collect();
        assert_eq!(route.for_request(&headers, false, None, false).request, Some(S(15)));
        assert_eq!(parse_grpc_timeout(b"99999999H"), Some(S(99_999_999 * 3600)));
        assert_eq!(parse_grpc_timeout(b"999999999n"), None);
    }

    #[test]
    fn only_trusted_callers_set_limits() {
        let route = RouteTimeouts { request: Some(S(15)), ..Default::default() };
        let headers: HeaderList = [("x-envoy-upstream-rq-timeout-ms", "200")].into_iter().collect();
        assert_eq!(route.for_request(&headers, false, Some(S(20)), false).request, Some(S(15)));
        let trusted = route.for_request(&headers, false, Some(S(20)), true);
        assert_eq!(
            trusted,
            RequestTimeouts { request: Some(Duration::from_millis(200)), per_try: None }
        );
    }
}
