//! HTTP filters: a closed set, in the order of the configuration, on both ways through.

use bytes::Bytes;
use weft_http::{ResponseHead, rules};
use weft_traffic::HttpConfig;
use weft_traffic::cors::{CorsDecision, CorsPolicy};
use weft_traffic::fault::{AbortKind, FaultPolicy};
use weft_traffic::http::HttpFilter;
use weft_traffic::route::Found;

use super::conn::HttpConn;
use super::rate_limit;
use super::record::Record;
use super::request::Request;

/// What the filters made of a request.
pub(crate) enum Verdict {
    Go,
    /// Answer this instead of forwarding.
    Reply {
        head: Box<ResponseHead>,
        body: Bytes,
        /// Of a fault, whose reply the route's rules change like any other.
        flags: Option<&'static str>,
    },
}

/// Runs the filters on a request. Routes carry the policies of fault and CORS, so the connection
/// manager need not list the filters; its list can only give faults a default, and says which rate
/// limits come before them.
pub(crate) async fn on_request(
    http: &HttpConfig,
    found: &Found<'_>,
    request: &mut Request,
    record: &mut Record,
    conn: &HttpConn,
) -> Verdict {
    let others = http.filters.iter().position(|one| !matches!(one, HttpFilter::LocalRateLimit(..)));
    let (first, last) = http.filters.split_at(others.unwrap_or(http.filters.len()));
    if let Some(verdict) = limits(first, found, request, record, conn) {
        return verdict;
    }
    let default = last.iter().find_map(|filter| match filter {
        HttpFilter::Fault(policy) => Some(policy),
        HttpFilter::Cors(_) | HttpFilter::GrpcWeb | HttpFilter::LocalRateLimit(..) => None,
    });
    if let Some(policy) = found.fault().or(default) {
        // Boxed: a delay's timer is large and rare.
        let verdict = Box::pin(fault(policy, found, request, record, conn)).await;
        if let Verdict::Reply { .. } = verdict {
            return verdict;
        }
    }
    if let Some(policy) = found.cors() {
        let verdict = cors(policy, request, conn);
        if let Verdict::Reply { .. } = verdict {
            return verdict;
        }
    }
    limits(last, found, request, record, conn).unwrap_or(Verdict::Go)
}

/// The answer of the first limit that refuses the request.
fn limits(
    filters: &[HttpFilter],
    found: &Found<'_>,
    request: &mut Request,
    record: &mut Record,
    conn: &HttpConn,
) -> Option<Verdict> {
    for filter in filters {
        let HttpFilter::LocalRateLimit(name, own) = filter else { continue };
        let Some(limit) = found.limit(name).unwrap_or(Some(own)) else { continue };
        if let Some(refused) = rate_limit::check(limit, found, request, record, conn) {
            return Some(refused);
        }
    }
    None
}

/// Runs the filters on a response.
pub(crate) fn on_response(found: &Found<'_>, request: &Request, head: &mut ResponseHead) {
    if let Some(policy) = found.cors()
        && let CorsDecision::Allowed { origin } = policy.on_request(&request.head, 0)
    {
        policy.on_response(origin, &mut head.headers);
    }
}

fn cors(policy: &CorsPolicy, request: &Request, conn: &HttpConn) -> Verdict {
    let mut head = rules::local_reply(200, 0);
    let headers = match policy.on_request(&request.head, conn.worker.random()) {
        CorsDecision::Pass | CorsDecision::Allowed { .. } => return Verdict::Go,
        CorsDecision::PreflightRefused => policy.refusal_headers(),
        CorsDecision::Preflight { origin, private_network } => {
            policy.preflight_headers(origin, private_network)
        }
    };
    for header in headers.iter() {
        head.headers.append(header.name, header.value);
    }
    Verdict::Reply { head: Box::new(head), body: Bytes::new(), flags: None }
}

async fn fault(
    policy: &FaultPolicy,
    found: &Found<'_>,
    request: &Request,
    record: &mut Record,
    conn: &HttpConn,
) -> Verdict {
    let cluster = found.cluster.and_then(|cluster| cluster.resolve(&request.head));
    let mut random = || conn.worker.random();
    let decision = policy.decide(&request.head, cluster.unwrap_or_default(), &mut random);
    if let Some(delay) = decision.delay {
        tokio::time::sleep(delay).await;
        conn.worker.tick();
        record.flagged("DI");
    }
    let Some(kind) = decision.abort else { return Verdict::Go };
    record.flagged("FI");
    if let Some(log) = &mut record.tally.log {
        log.because("fault_filter_abort");
    }
    let text = match &policy.abort {
        Some(abort) if !abort.body.is_empty() => &*abort.body,
        _ => "fault filter abort",
    };
    let (status, grpc_status) = match kind {
        AbortKind::Http(status) => (status, None),
        AbortKind::Grpc(status) => (200, Some(status)),
    };
    let body = Bytes::copy_from_slice(text.as_bytes());
    let mut head = rules::local_reply(status, body.len());
    if let (Some(status), true) = (grpc_status, request.grpc) {
        head.headers.append("grpc-status", status.to_string());
    }
    Verdict::Reply { head: Box::new(head), body, flags: Some("FI") }
}
