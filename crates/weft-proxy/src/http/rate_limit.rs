//! Local rate limits: the answer to a request that is one too many, and what responses tell of a
//! bucket. The buckets themselves are `weft-traffic`'s.

use bytes::Bytes;
use weft_http::{HeaderList, rules};
use weft_traffic::rate_limit::{Left, LocalRateLimit};
use weft_traffic::route::Found;

use super::conn::HttpConn;
use super::filter::Verdict;
use super::record::Record;
use super::request::{self, Request};

/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: &str = "8";
const TEXT: &str = "local_rate_limited";

/// The answer, when the request is one too many and that is enforced.
pub(crate) fn check(
    limit: &LocalRateLimit,
    found: &Found<'_>,
    request: &mut Request,
    record: &mut Record,
    conn: &HttpConn,
) -> Option<Verdict> {
    let worker = &conn.worker;
    if !limit.enabled.hit(worker.random()) {
        return None;
    }
    let count = |result| worker.counters.rate_limit(&limit.stat_prefix, result);
    count("enabled");
    let cluster = found.cluster.and_then(|cluster| cluster.resolve(&request.head));
    let (client, now) = (request.client, worker.tick());
    let rules = found.rate_limits();
    let verdict = limit.decide(rules, &request.head, client, cluster.unwrap_or_default(), now);
    if limit.tells {
        record.left = verdict.left.map(Box::new);
    }
    if verdict.allowed {
        count("ok");
        return None;
    }
    count("rate_limited");
    if !limit.enforced.hit(worker.random()) {
        if !limit.request_edits.is_empty() {
            let context = request::format_context(found, request, conn);
            limit.request_edits.apply_request(&mut request.head, &context);
        }
        return None;
    }
    count("enforced");
    record.flagged("RL");
    if let Some(log) = &mut record.tally.log {
        log.because("local_rate_limited");
    }
    let mut head = rules::local_reply(limit.status, TEXT.len());
    if request.grpc && limit.exhausted {
        head.headers.append("grpc-status", RESOURCE_EXHAUSTED);
    }
    if !limit.response_edits.is_empty() {
        let context = request::format_context(found, request, conn);
        limit.response_edits.apply_response(&mut head.headers, Some(&request.head), &context);
    }
    let body = Bytes::from_static(TEXT.as_bytes());
    Some(Verdict::Reply { head: Box::new(head), body, flags: Some("RL") })
}

/// Tells a client what is left for it (draft-ietf-httpapi-ratelimit-headers-03, as Envoy has it).
#[cold]
pub(crate) fn tell(left: Left, headers: &mut HeaderList) {
    let reset = left.reset.as_secs() + u64::from(left.reset.subsec_nanos() > 0);
    headers.set("x-ratelimit-limit", left.limit.to_string());
    headers.set("x-ratelimit-remaining", left.remaining.to_string());
    headers.set("x-ratelimit-reset", reset.to_string());
}
