//! Trace context: read from request headers, continued or created, written to the next hop.
//!
//! Understands B3 (several headers, and the single `b3`), W3C `traceparent`/`tracestate` and
//! `x-request-id`. Headers come from strangers: an empty or malformed one counts as absent, as
//! in applications that copy headers they never received. Randomness is an argument.

pub mod otlp;
mod wire;
pub mod zipkin;

#[cfg(test)]
mod tests;

/// Largest `tracestate` forwarded; W3C asks for at least 512 characters.
const TRACESTATE_BYTES_MAX: usize = 2048;
/// Longest `x-request-id` taken over from a caller.
const REQUEST_ID_BYTES_MAX: usize = 256;

/// The headers that carry a trace. Their own type, so that a field list with slots for them needs no
/// search by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    RequestId,
    B3,
    B3TraceId,
    B3SpanId,
    B3ParentSpanId,
    B3Sampled,
    B3Flags,
    Traceparent,
    Tracestate,
}

impl Field {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Field::RequestId => "x-request-id",
            Field::B3 => "b3",
            Field::B3TraceId => "x-b3-traceid",
            Field::B3SpanId => "x-b3-spanid",
            Field::B3ParentSpanId => "x-b3-parentspanid",
            Field::B3Sampled => "x-b3-sampled",
            Field::B3Flags => "x-b3-flags",
            Field::Traceparent => "traceparent",
            Field::Tracestate => "tracestate",
        }
    }
}

/// A trace id of 64 or 128 bits. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId {
    pub high: u64,
    pub low: u64,
    /// A 64-bit id is written back with 16 digits where the format allows it.
    pub is_128: bool,
}

impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is_128 {
            true => write!(f, "{:016x}{:016x}", self.high, self.low),
            false => write!(f, "{:016x}", self.low),
        }
    }
}

/// Which header formats a context came in, and so leaves in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats {
    pub b3_multi: bool,
    pub b3_single: bool,
    pub w3c: bool,
}

impl Formats {
    /// What a new trace is announced in: Istio's B3 headers, and W3C for newer libraries.
    pub const NEW: Self = Self { b3_multi: true, b3_single: false, w3c: true };
}

/// What the caller sent. Everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Incoming {
    pub ids: Option<Ids>,
    /// The caller's decision; it wins over our sampling rate.
    pub sampled: Option<bool>,
    /// B3's debug flag: sampled, and collectors must keep it.
    pub debug: bool,
    pub formats: Formats,
    pub tracestate: Option<Vec<u8>>,
    pub request_id: Option<Vec<u8>>,
}

/// The caller's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub trace: TraceId,
    pub span: u64,
    pub parent: Option<u64>,
}

/// Share of new traces that are sampled, in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    per_million: u32,
}

impl Sampling {
    /// Istio's default, 1 %.
    pub const DEFAULT: Self = Self { per_million: 10_000 };
    pub const NEVER: Self = Self { per_million: 0 };
    pub const ALWAYS: Self = Self { per_million: 1_000_000 };

    /// From a percentage as Istio configures it, 0 to 100; what is outside is clamped.
    pub fn percent(percent: f64) -> Self {
        let per_million = (percent.clamp(0.0, 100.0) * 10_000.0).round();
        // NaN casts to 0: never.
        Self { per_million: per_million as u32 }
    }

    /// The decision for a new trace, given 64 uniformly random bits.
    pub fn decide(self, random: u64) -> bool {
        random % 1_000_000 < u64::from(self.per_million)
    }
}

/// Which end of a call the proxy is for this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Outbound and gateways: a new span, child of the caller's.
    Client,
    /// Inbound: shares the client's span, as Zipkin does (`shared_span_context`).
    Server,
}

/// The context a request goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    pub span: u64,
    pub parent: Option<u64>,
    pub sampled: bool,
    pub debug: bool,
    pub formats: Formats,
    pub tracestate: Option<Vec<u8>>,
    pub request_id: Vec<u8>,
}

impl Context {
    /// Reads what the caller sent. `get` returns a header's first value.
    pub fn extract<'a>(get: impl Fn(Field) -> Option<&'a [u8]>) -> Incoming {
        wire::extract(get)
    }

    /// Continues the caller's trace, or begins one. `random` yields uniform 64-bit words.
    pub fn next(
        incoming: Incoming,
        side: Side,
        sampling: Sampling,
        mut random: impl FnMut() -> u64,
    ) -> Self {
        let Incoming { ids, sampled, debug, formats, tracestate, request_id } = incoming;
        let by_request_id = match &request_id {
            Some(id) => wire::request_id_decision(id),
            None => None,
        };
        let sampled = match sampled.or(by_request_id) {
            Some(decided) => decided,
            None => debug || sampling.decide(random()),
        };
        let (trace, span, parent) = match (ids, side) {
            (Some(ids), Side::Server) => (ids.trace, ids.span, ids.parent),
            (Some(ids), Side::Client) => (ids.trace, nonzero(&mut random), Some(ids.span)),
            (None, _) => {
                let low = nonzero(&mut random);
                // Zipkin's habit: the root span carries the low half of its trace's id.
                (TraceId { high: random(), low, is_128: true }, low, None)
            }
        };
        let formats = if ids.is_some() { formats } else { Formats::NEW };
        let request_id = match request_id {
            Some(id) => id,
            None => wire::new_request_id(sampled, &mut random),
        };
        let tracestate = if ids.is_some() { tracestate } else { None };
        Self { trace, span, parent, sampled, debug, formats, tracestate, request_id }
    }

    /// Hands each header to set to `set`. The caller replaces
    /// headers of the same name and leaves all others alone.
    pub fn inject(&self, set: impl FnMut(Field, &[u8])) {
        wire::inject(self, set);
    }
}

/// The header lines of a new trace, for a caller that sent nothing: what [`Context::next`] and
/// [`Context::inject`] come to, written at once.
pub struct NewTrace([u8; wire::NEW_TRACE.len()]);

impl NewTrace {
    /// The lines, in order, and how long their values are.
    pub const LINES: [(Field, usize); 5] = [
        (Field::RequestId, 36),
        (Field::B3TraceId, 32),
        (Field::B3SpanId, 16),
        (Field::B3Sampled, 1),
        (Field::Traceparent, 55),
    ];

    /// Begins a trace. `random` yields uniform 64-bit words.
    pub fn begin(sampling: Sampling, mut random: impl FnMut() -> u64) -> Self {
        let sampled = sampling.decide(random());
        let low = nonzero(&mut random);
        let ids = TraceId { high: random(), low, is_128: true };
        Self(wire::new_trace(ids, sampled, &mut random))
    }

    /// The lines, each `name: value CR LF`.
    pub fn text(&self) -> &[u8] {
        &self.0
    }
}

fn nonzero(random: &mut impl FnMut() -> u64) -> u64 {
    // Zero means "no id" in every format; one draw in 2^64 needs the substitute.
    random().max(1)
}
