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
    /// `max_grpc_timeout`: gRPC requests are limited by what they ask for instead of by `request`.
    pub grpc: Option<GrpcTimeout>,
    /// `max_stream_duration`: replaces both `request` and `grpc`, as in Envoy.
    pub stream: Option<Box<StreamTimeouts>>,
}

/// How far a caller's `grpc-timeout` is honoured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// Zero: without bound.
    pub max: Duration,
    /// Taken off `grpc-timeout` so that we answer before the caller gives up.
    pub offset: Duration,
}

/// `RouteAction.MaxStreamDuration`: limits from the start of the request to the end of the response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamTimeouts {
    /// None: the listener's; `Some(None)`: no limit.
    pub limit: Option<Option<Duration>>,
    /// Counts instead of `limit` for requests with a `grpc-timeout`.
    pub grpc: Option<GrpcTimeout>,
}

/// Limits for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestTimeouts {
    /// From the end of the request to the end of the response.
    pub request: Option<Duration>,
    /// Each attempt; None: no limit of its own.
    pub per_try: Option<Duration>,
    /// From the start of the request to the end of the response.
    pub stream: Option<Duration>,
    /// `request` is the caller's own `grpc-timeout`.
    pub deadline: bool,
    tell: Tell,
}

/// What the upstream reads in `grpc-timeout`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Tell {
    /// What the caller wrote.
    #[default]
    AsCame,
    /// The limit of the stream.
    Stream,
    /// What is left for this attempt.
    Attempt,
}

impl RouteTimeouts {
    /// The limits for a request. `per_try` is the retry policy's, `stream` the listener's
    /// `max_stream_duration`. `trusted` callers (inside the mesh) may set
    /// `x-envoy-upstream-rq-timeout-ms` and `x-envoy-upstream-rq-per-try-timeout-ms`.
    pub fn for_request(
        &self,
        headers: &HeaderList,
        grpc: bool,
        per_try: Option<Duration>,
        stream: Option<Duration>,
        trusted: bool,
    ) -> RequestTimeouts {
        let mut limits = RequestTimeouts { per_try, stream, ..RequestTimeouts::default() };
        match (&self.stream, &self.grpc) {
            (Some(stream), _) => stream.limit(headers, grpc, &mut limits),
            (None, Some(timeout)) if grpc => timeout.limit(headers, &mut limits),
            (None, _) => limits.request = self.request,
        }
        if trusted {
            if let Some(asked) = header_ms(headers, Known::XEnvoyUpstreamRqTimeoutMs) {
                limits.request = some_unless_zero(asked);
                limits.deadline = false;
            }
            if let Some(asked) = header_ms(headers, Known::XEnvoyUpstreamRqPerTryTimeoutMs) {
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
}

impl GrpcTimeout {
    fn limit(&self, headers: &HeaderList, limits: &mut RequestTimeouts) {
        let asked = grpc_timeout(headers).unwrap_or_default();
        // Nothing left would mean no limit.
        let asked = if asked > self.offset { asked - self.offset } else { asked };
        let capped = match (asked.is_zero(), self.max.is_zero()) {
            (_, true) => asked,
            (true, false) => self.max,
            (false, false) => asked.min(self.max),
        };
        limits.request = some_unless_zero(capped);
        limits.deadline = !asked.is_zero() && capped == asked;
        limits.tell = Tell::Attempt;
    }
}

impl StreamTimeouts {
    fn limit(&self, headers: &HeaderList, grpc: bool, limits: &mut RequestTimeouts) {
        limits.stream = match (self.grpc, grpc_timeout(headers)) {
            (Some(GrpcTimeout { max, offset }), Some(asked)) => {
                let asked = if max.is_zero() { asked } else { asked.min(max) };
                Some(asked.saturating_sub(offset))
            }
            _ => self.limit.unwrap_or(limits.stream),
        };
        if grpc && limits.stream.is_some() {
            limits.tell = Tell::Stream;
        }
    }
}

impl RequestTimeouts {
    /// What an attempt is told in `grpc-timeout`, `elapsed` after the first one began; None: what
    /// the caller wrote.
    pub fn told(&self, elapsed: Duration) -> Option<Duration> {
        match self.tell {
            Tell::AsCame => None,
            Tell::Stream => self.stream,
            Tell::Attempt => {
                let attempt = self.per_try.or(self.request)?;
                Some(match self.request {
                    Some(all) => attempt.min(all.saturating_sub(elapsed)).max(MILLISECOND),
                    None => attempt,
                })
            }
        }
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

fn grpc_timeout(headers: &HeaderList) -> Option<Duration> {
    headers.get_known(Known::GrpcTimeout).and_then(parse_grpc_timeout)
}

/// Largest number in a `grpc-timeout`: eight digits.
const GRPC_TIMEOUT_MAX: u128 = 99_999_999;

/// `grpc-timeout`: at most 8 digits and a unit. In whole milliseconds, rounded up, as Envoy has it.
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
        b'u' => Duration::from_millis(count.div_ceil(1000)),
        b'n' => Duration::from_millis(count.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// A limit as `grpc-timeout` says it, in the finest unit that has room, from milliseconds up.
pub fn format_grpc_timeout(limit: Duration) -> String {
    let milliseconds = limit.as_millis();
    for (unit, length) in [("m", 1), ("S", 1000), ("M", 60_000)] {
        if milliseconds / length <= GRPC_TIMEOUT_MAX {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    format!("{}H", (milliseconds / 3_600_000).min(GRPC_TIMEOUT_MAX))
}

fn header_ms(headers: &HeaderList, name: Known) -> Option<Duration> {
    let text = std::str::from_utf8(headers.get_known(name)?).ok()?;
    text.parse().ok().map(Duration::from_millis)
}

fn some_unless_zero(limit: Duration) -> Option<Duration> {
    (!limit.is_zero()).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn ask(route: &RouteTimeouts, text: Option<&str>) -> RequestTimeouts {
        let headers = text.iter().map(|t| ("grpc-timeout", *t)).collect();
        route.for_request(&headers, true, None, None, false)
    }

    #[test]
    fn grpc_timeout_is_bounded() {
        let grpc = Some(GrpcTimeout { max: S(10), offset: S(0) });
        let route = RouteTimeouts { request: Some(S(15)), grpc, ..Default::default() };
        let check = |text, limit, deadline| {
            let limits = ask(&route, text);
            assert_eq!((limits.request, limits.deadline), (Some(limit), deadline), "{text:?}");
            assert_eq!(limits.told(S(0)), Some(limit));
        };
        check(Some("5S"), S(5), true);
        check(Some("1H"), S(10), false);
        check(None, S(10), false);
        check(Some("bad"), S(10), false);
        let headers = [("grpc-timeout", "5S")].into_iter().collect();
        let plain = route.for_request(&headers, false, None, None, false);
        assert_eq!((plain.request, plain.told(S(0))), (Some(S(15)), None));
    }

    #[test]
    fn a_later_attempt_is_told_what_is_left() {
        let grpc = Some(GrpcTimeout::default());
        let route = RouteTimeouts { grpc, ..Default::default() };
        let headers = [("grpc-timeout", "5S")].into_iter().collect();
        let limits = route.for_request(&headers, true, Some(S(2)), None, false);
        assert_eq!(limits.told(S(0)), Some(S(2)));
        assert_eq!(limits.told(S(4)), Some(S(1)));
        assert_eq!(limits.told(S(6)), Some(MS(1)));
        assert_eq!(
            ask(&route, None),
            RequestTimeouts { tell: Tell::Attempt, ..Default::default() }
        );
    }

    #[test]
    fn the_stream_limit_replaces_the_others() {
        let stream = |limit, max| {
            let grpc = Some(GrpcTimeout { max, offset: MS(100) });
            let stream = Some(Box::new(StreamTimeouts { limit, grpc }));
            RouteTimeouts { request: Some(S(15)), stream, ..Default::default() }
        };
        let open = stream(Some(None), S(0));
        assert_eq!(ask(&open, Some("5S")).stream, Some(MS(4900)));
        assert_eq!(ask(&open, Some("50m")).stream, Some(S(0)));
        assert_eq!(ask(&open, None), RequestTimeouts::default());
        let bounded = stream(Some(Some(S(30))), S(2));
        assert_eq!(ask(&bounded, Some("5S")).told(S(9)), Some(MS(1900)));
        assert_eq!(ask(&bounded, Some("bad")).told(S(0)), Some(S(30)));
        let listener =
            stream(None, S(2)).for_request(&HeaderList::new(), false, None, Some(S(7)), false);
        assert_eq!((listener.request, listener.stream), (None, Some(S(7))));
    }

    #[test]
    fn grpc_timeouts_are_read_and_written() {
        for (text, expect) in [
            ("99999999H", Some(S(99_999_999 * 3600))),
            ("3M", Some(S(180))),
            ("7S", Some(S(7))),
            ("15m", Some(MS(15))),
            ("1u", Some(MS(1))),
            ("1001u", Some(MS(2))),
            ("1n", Some(MS(1))),
            ("0m", Some(S(0))),
            ("999999999n", None),
            ("1s", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1.5S", None),
        ] {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), expect, "{text:?}");
        }
        for (limit, text) in [
            (MS(0), "0m"),
            (S(5), "5000m"),
            (MS(99_999_999), "99999999m"),
            (MS(100_000_000), "100000S"),
            (S(100_000_000), "1666666M"),
            (S(60 * 100_000_000), "1666666H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(format_grpc_timeout(limit), text);
        }
    }

    #[test]
    fn only_trusted_callers_set_limits() {
        let route = RouteTimeouts { request: Some(S(15)), ..Default::default() };
        let headers: HeaderList = [("x-envoy-upstream-rq-timeout-ms", "200")].into_iter().collect();
        assert_eq!(
            route.for_request(&headers, false, Some(S(20)), None, false).request,
            Some(S(15))
        );
        let trusted = route.for_request(&headers, false, Some(S(20)), None, true);
        assert_eq!(trusted, RequestTimeouts { request: Some(MS(200)), ..Default::default() });
    }
}
