//! What an HTTP rule does beside choosing destinations: redirect, rewrite, retries, faults,
//! headers, mirrors, CORS.

use super::text::{is_header_name, regex_problem};
use super::virtual_service::{destination, string_match};
use super::{Findings, bounds, entry, port_number};
use crate::diagnostic::code;
use crate::spec::{
    CorsPolicy, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection, HttpRedirect,
    HttpRetry, HttpRewrite, HttpRoute, Percent,
};

/// Envoy's words for `retryOn`, HTTP and gRPC.
const RETRY_ON: [&str; 18] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "unimplemented",
    "unknown",
];
/// Envoy's limit on a direct response's body is 4096 bytes by default; Istio allows 1 MiB.
const DIRECT_BODY_BYTES_MAX: usize = 1 << 20;

pub(super) fn headers(headers: Option<&Headers>, path: &str, findings: &mut Findings<'_>) {
    let Some(headers) = headers else { return };
    let both = [("request", &headers.request), ("response", &headers.response)];
    for (side, operations) in both {
        if let Some(operations) = operations {
            header_operations(operations, &format!("{path}.headers.{side}"), findings);
        }
    }
}

fn header_operations(operations: &HeaderOperations, path: &str, findings: &mut Findings<'_>) {
    let HeaderOperations { set, add, remove } = operations;
    let maps = [("set", set), ("add", add)];
    for (field, map) in maps {
        for (name, value) in map {
            let path = entry(&format!("{path}.{field}"), name);
            // Istio lets these two rename the host; no other pseudo header can be changed.
            if !is_header_name(name) && name != ":authority" {
                findings.error(&*path, format!("{name:?} is not a header name"));
            }
            if value.contains(['\r', '\n', '\0']) {
                findings.error(path, "a header value cannot contain line breaks");
            }
        }
    }
    for (index, name) in remove.iter().enumerate() {
        let path = format!("{path}.remove[{index}]");
        if !is_header_name(name) {
            findings.error(path, format!("{name:?} is not a header name"));
        } else if name.eq_ignore_ascii_case("host") {
            findings.error(path, "the host header cannot be removed");
        }
    }
}

pub(super) fn http_redirect(redirect: &HttpRedirect, path: &str, findings: &mut Findings<'_>) {
    let HttpRedirect { uri, authority, port, derive_port, scheme, redirect_code, prefix_rewrite } =
        redirect;
    let nothing = uri.is_empty()
        && authority.is_empty()
        && scheme.is_empty()
        && prefix_rewrite.is_empty()
        && port.is_none()
        && derive_port.is_none();
    if nothing {
        findings.error(path, "one of uri, authority, scheme or port is required");
    }
    if !uri.is_empty() && !prefix_rewrite.is_empty() {
        findings.error(path, "only one of uri, prefixRewrite is allowed");
    }
    if port.is_some() && derive_port.is_some() {
        findings.error(path, "only one of port, derivePort is allowed");
    }
    if let Some(port) = port {
        port_number(*port, format!("{path}.port"), findings);
    }
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        let message = format!("expected http or https, found {scheme:?}");
        findings.error(format!("{path}.scheme"), message);
    }
    // Those that Envoy can send.
    if !matches!(redirect_code, None | Some(0 | 301 | 302 | 303 | 307 | 308)) {
        let message = "expected one of 301, 302, 303, 307, 308";
        findings.error(format!("{path}.redirectCode"), message);
    }
}

pub(super) fn direct_response(
    response: &HttpDirectResponse,
    path: &str,
    findings: &mut Findings<'_>,
) {
    if !(200..=599).contains(&response.status) {
        let message = format!("expected a status from 200 to 599, found {}", response.status);
        findings.error(format!("{path}.status"), message);
    }
    let Some(body) = &response.body else { return };
    if body.string.is_some() && body.bytes.is_some() {
        findings.error(format!("{path}.body"), "only one of string, bytes is allowed");
    }
    let length = body.string.iter().chain(&body.bytes).map(String::len).sum::<usize>();
    if length > DIRECT_BODY_BYTES_MAX {
        let message = format!("the body has more than {DIRECT_BODY_BYTES_MAX} bytes");
        findings.error(format!("{path}.body"), message);
    }
}

pub(super) fn http_rewrite(rewrite: &HttpRewrite, path: &str, findings: &mut Findings<'_>) {
    let regex = rewrite.uri_regex_rewrite.as_ref();
    if rewrite.uri.is_empty() && rewrite.authority.is_empty() && regex.is_none() {
        findings.error(path, "one of uri, authority, uriRegexRewrite is required");
    }
    if !rewrite.uri.is_empty() && regex.is_some() {
        findings.error(path, "only one of uri, uriRegexRewrite is allowed");
    }
    if let Some(problem) = regex.and_then(|regex| regex_problem(&regex.pattern)) {
        findings.error(format!("{path}.uriRegexRewrite.match"), problem);
    }
}

pub(super) fn http_retries(retries: &HttpRetry, path: &str, findings: &mut Findings<'_>) {
    let per_try = format!("{path}.perTryTimeout");
    bounds::duration(retries.per_try_timeout, per_try, findings);
    bounds::duration(retries.backoff, format!("{path}.backoff"), findings);
    if retries.attempts < 0 {
        let message = format!("expected an integer of 0 or more, found {}", retries.attempts);
        findings.error(format!("{path}.attempts"), message);
    }
    let configured = retries.per_try_timeout.is_some()
        || !retries.retry_on.is_empty()
        || retries.retry_remote_localities.is_some();
    if retries.attempts == 0 && configured {
        findings.error_with_help(
            format!("{path}.attempts"),
            "retries are configured while 0 attempts turn them off",
            "Set attempts, or remove the rest.",
        );
    }
    for word in retries.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let status = word.parse::<u32>().is_ok_and(|code| (100..=599).contains(&code));
        if !status && !RETRY_ON.contains(&word) {
            let message = format!("{word:?} is neither a retry condition nor a status code");
            findings.error(format!("{path}.retryOn"), message);
        }
    }
}

pub(super) fn http_fault(fault: &HttpFaultInjection, path: &str, findings: &mut Findings<'_>) {
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(path, "one of delay, abort is required");
    }
    if let Some(delay) = &fault.delay {
        let path = format!("{path}.delay");
        let (fixed, exponential) = (delay.fixed_delay, delay.exponential_delay);
        bounds::duration(fixed, format!("{path}.fixedDelay"), findings);
        bounds::duration(exponential, format!("{path}.exponentialDelay"), findings);
        if fixed.is_some() && exponential.is_some() {
            findings.error(&*path, "only one of fixedDelay, exponentialDelay is allowed");
        }
        if delay.fixed_delay.is_none() && delay.exponential_delay.is_none() {
            findings.error(format!("{path}.fixedDelay"), "a delay is required");
        }
        percentages(delay.percent, delay.percentage, &path, findings);
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        match (abort.http_status, &abort.grpc_status, &abort.http2_error) {
            (Some(status), None, None) if !(200..=599).contains(&status) => {
                let message = format!("expected a status from 200 to 599, found {status}");
                findings.error(format!("{path}.httpStatus"), message);
            }
            (Some(_), None, None) | (None, Some(_), None) | (None, None, Some(_)) => {}
            (None, None, None) => findings.error(path.as_str(), "a status is required"),
            _ => findings.error(path.as_str(), "only one status is allowed"),
        }
        percentages(abort.percent, abort.percentage, &path, findings);
    }
}

/// The old whole-number form and the new one.
fn percentages(
    whole: Option<i32>,
    percentage: Option<Percent>,
    path: &str,
    findings: &mut Findings<'_>,
) {
    if let Some(whole) = whole {
        let field = format!("{path}.percent");
        if !(0..=100).contains(&whole) {
            findings.error(field, format!("expected 0 to 100, found {whole}"));
        } else {
            findings.warn(
                code::DEPRECATED,
                field,
                "percent is deprecated",
                "Use percentage.value.",
            );
        }
    }
    percentage_value(percentage, format!("{path}.percentage.value"), findings);
}

fn percentage_value(percentage: Option<Percent>, path: String, findings: &mut Findings<'_>) {
    if let Some(Percent { value }) = percentage
        && !(0.0..=100.0).contains(&value)
    {
        findings.error(path, format!("expected 0 to 100, found {value}"));
    }
}

pub(super) fn http_cors(cors: &CorsPolicy, path: &str, findings: &mut Findings<'_>) {
    bounds::duration(cors.max_age, format!("{path}.maxAge"), findings);
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        string_match(origin, &format!("{path}.allowOrigins[{index}]"), findings);
    }
    for (index, method) in cors.allow_methods.iter().enumerate() {
        if !is_header_name(method) {
            let path = format!("{path}.allowMethods[{index}]");
            findings.error(path, format!("{method:?} is not a method"));
        }
    }
    if !cors.allow_origin.is_empty() {
        findings.warn(
            code::DEPRECATED,
            format!("{path}.allowOrigin"),
            "allowOrigin is deprecated",
            "Use allowOrigins.",
        );
    }
}

pub(super) fn http_mirrors(route: &HttpRoute, path: &str, findings: &mut Findings<'_>) {
    if let Some(mirror) = &route.mirror {
        destination(mirror, &format!("{path}.mirror"), findings);
        if !route.mirrors.is_empty() {
            findings.error(path, "only one of mirror, mirrors is allowed");
        }
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{index}]");
        destination(&mirror.destination, &format!("{path}.destination"), findings);
        percentage_value(mirror.percentage, format!("{path}.percentage.value"), findings);
    }
    if let Some(percent) = route.mirror_percent.filter(|percent| *percent > 100) {
        let message = format!("expected 0 to 100, found {percent}");
        findings.error(format!("{path}.mirrorPercent"), message);
    }
    percentage_value(route.mirror_percentage, format!("{path}.mirrorPercentage.value"), findings);
}
