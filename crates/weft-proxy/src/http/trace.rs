//! Request id and trace context on the way through: taken over, begun where there is none, and
//! handed on. Sampling is decided and announced whether or not spans are reported (`span`), so that
//! applications and other proxies agree.

use std::num::NonZeroU64;

use weft_http::{Known, RequestHead};
use weft_telemetry::trace::{Context, Field, NewTrace, Sampling, Side};
use weft_traffic::HttpConfig;
use weft_traffic::http::Tracing;

use super::conn::HttpConn;
use super::span::shares_span;

/// Writes the context that the request goes on with into its head. Gives the caller's span, if there
/// is one.
pub(crate) fn carry_on(
    head: &mut RequestHead,
    http: &HttpConfig,
    side: Side,
    conn: &HttpConn,
) -> Option<NonZeroU64> {
    if let (Some(tracing), false) = (&http.tracing, head.headers.contains_any(&FIELDS)) {
        let new = NewTrace::begin(rate(tracing), || conn.worker.random());
        let lines = NewTrace::LINES.map(|(field, value_len)| (known(field), value_len));
        head.headers.append_written(new.text(), lines);
        return None;
    }
    // A server's span is the client's other half, or its child.
    let collector = http.tracing.as_ref().and_then(|tracing| tracing.collector.as_deref());
    let side = if shares_span(collector) { side } else { Side::Client };
    let incoming = Context::extract(|field| head.headers.get_known(known(field)));
    let caller = incoming.ids.and_then(|ids| NonZeroU64::new(ids.span));
    let Some(tracing) = &http.tracing else {
        if http.request_id.generate && incoming.request_id.is_none() {
            let context = Context::next(incoming, side, Sampling::NEVER, || conn.worker.random());
            head.headers.set_known(Known::XRequestId, &context.request_id);
        }
        return caller;
    };
    let complete = incoming.ids.is_some() && incoming.sampled.is_some();
    let has_id = head.headers.get_known(Known::XRequestId).is_some_and(|id| !id.is_empty());
    if side == Side::Server && complete && has_id {
        // The server shares the client's span: there is nothing to change.
        return caller;
    }
    let context = Context::next(incoming, side, rate(tracing), || conn.worker.random());
    context.inject(|field, value| head.headers.set_known(known(field), value));
    caller
}

/// All that [`Context::extract`] asks for.
const FIELDS: [Known; 9] = [
    Known::XRequestId,
    Known::B3,
    Known::XB3TraceId,
    Known::XB3SpanId,
    Known::XB3ParentSpanId,
    Known::XB3Sampled,
    Known::XB3Flags,
    Known::Traceparent,
    Known::Tracestate,
];

fn rate(tracing: &Tracing) -> Sampling {
    Sampling::percent(tracing.random_sampling.min(tracing.overall_sampling))
}

pub(super) const fn known(field: Field) -> Known {
    match field {
        Field::RequestId => Known::XRequestId,
        Field::B3 => Known::B3,
        Field::B3TraceId => Known::XB3TraceId,
        Field::B3SpanId => Known::XB3SpanId,
        Field::B3ParentSpanId => Known::XB3ParentSpanId,
        Field::B3Sampled => Known::XB3Sampled,
        Field::B3Flags => Known::XB3Flags,
        Field::Traceparent => Known::Traceparent,
        Field::Tracestate => Known::Tracestate,
    }
}
