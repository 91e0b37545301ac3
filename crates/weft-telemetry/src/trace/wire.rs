//! The header forms of a trace context: parsing and printing, no decisions.

use super::{
    Context, Field, Formats, Ids, Incoming, REQUEST_ID_BYTES_MAX, TRACESTATE_BYTES_MAX, TraceId,
};

pub(super) fn extract<'a>(get: impl Fn(Field) -> Option<&'a [u8]>) -> Incoming {
    let get = |field: Field| match get(field).map(<[u8]>::trim_ascii) {
        Some(value) if !value.is_empty() => Some(value),
        _ => None,
    };
    let mut incoming = Incoming::default();
    if let Some(id) = get(Field::RequestId)
        && id.len() <= REQUEST_ID_BYTES_MAX
    {
        incoming.request_id = Some(id.to_vec());
    }
    if let Some(single) = get(Field::B3).and_then(b3_single) {
        incoming.formats.b3_single = true;
        merge(&mut incoming, single);
    }
    if let Some(multi) = b3_multi(&get) {
        incoming.formats.b3_multi = merge(&mut incoming, multi);
    }
    if let Some(w3c) = get(Field::Traceparent).and_then(traceparent)
        && merge(&mut incoming, w3c)
    {
        incoming.formats.w3c = true;
        incoming.tracestate =
            get(Field::Tracestate).filter(|s| s.len() <= TRACESTATE_BYTES_MAX).map(<[u8]>::to_vec);
    }
    incoming
}

/// One format's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Read {
    ids: Option<Ids>,
    sampled: Option<bool>,
    debug: bool,
}

/// Adds what a further format says. Formats that name another trace are left alone (false):
/// rewriting them would tear that trace apart.
fn merge(incoming: &mut Incoming, read: Read) -> bool {
    match (&mut incoming.ids, read.ids) {
        (Some(known), Some(more)) if known.trace.low != more.trace.low => return false,
        (Some(known), Some(more)) if more.trace.is_128 && !known.trace.is_128 => {
            known.trace = more.trace;
        }
        (Some(_), _) => {}
        (None, ids) => incoming.ids = ids,
    }
    incoming.sampled = incoming.sampled.or(read.sampled);
    incoming.debug |= read.debug;
    true
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`, or a lone decision.
fn b3_single(value: &[u8]) -> Option<Read> {
    let mut parts = value.split(|b| *b == b'-');
    let first = parts.next()?;
    if value.len() == 1 {
        let (sampled, debug) = b3_decision(first)?;
        return Some(Read { ids: None, sampled: Some(sampled), debug });
    }
    let trace = trace_id(first)?;
    let span = span_id(parts.next()?)?;
    let decision = match parts.next() {
        Some(text) => Some(b3_decision(text)?),
        None => None,
    };
    let parent = match parts.next() {
        Some(text) => Some(span_id(text)?),
        None => None,
    };
    if parts.next().is_some() {
        return None;
    }
    let debug = matches!(decision, Some((_, true)));
    let sampled = decision.map(|(sampled, _)| sampled);
    Some(Read { ids: Some(Ids { trace, span, parent }), sampled, debug })
}

/// The `x-b3-*` headers. A decision without ids stands; ids need both trace and span.
fn b3_multi<'a>(get: &impl Fn(Field) -> Option<&'a [u8]>) -> Option<Read> {
    let debug = get(Field::B3Flags) == Some(b"1");
    let sampled = match get(Field::B3Sampled) {
        _ if debug => Some(true),
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        _ => None,
    };
    let trace = get(Field::B3TraceId).and_then(trace_id);
    let span = get(Field::B3SpanId).and_then(span_id);
    let parent = get(Field::B3ParentSpanId).and_then(span_id);
    let ids = match (trace, span) {
        (Some(trace), Some(span)) => Some(Ids { trace, span, parent }),
        _ => None,
    };
    (ids.is_some() || sampled.is_some()).then_some(Read { ids, sampled, debug })
}

/// Sampled, debug.
fn b3_decision(text: &[u8]) -> Option<(bool, bool)> {
    match text {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

/// W3C Trace Context §3.2: `version-trace-parent-flags`. Later versions may append fields.
fn traceparent(value: &[u8]) -> Option<Read> {
    let lower = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = value.splitn(5, |b| *b == b'-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let shape = [version, trace, parent, flags].map(<[u8]>::len) == [2, 32, 16, 2];
    let rest_is_allowed = version != b"00" || parts.next().is_none();
    if !shape || !rest_is_allowed || version == b"ff" {
        return None;
    }
    if ![version, trace, parent, flags].into_iter().all(lower) {
        return None;
    }
    let ids = Ids { trace: trace_id(trace)?, span: span_id(parent)?, parent: None };
    let sampled = hex(flags)? & 1 == 1;
    Some(Read { ids: Some(ids), sampled: Some(sampled), debug: false })
}

fn trace_id(text: &[u8]) -> Option<TraceId> {
    let (high, low, is_128) = match text.len() {
        16 => (0, hex(text)?, false),
        32 => (hex(&text[..16])?, hex(&text[16..])?, true),
        _ => return None,
    };
    (high != 0 || low != 0).then_some(TraceId { high, low, is_128 })
}

fn span_id(text: &[u8]) -> Option<u64> {
    match text.len() {
        16 => hex(text).filter(|id| *id != 0),
        _ => None,
    }
}

/// Up to 16 hex digits of either case; signs and spaces are refused.
fn hex(text: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for byte in text {
        let digit = (*byte as char).to_digit(16)?;
        value = value << 4 | u64::from(digit);
    }
    Some(value)
}

pub(super) fn inject(context: &Context, mut set: impl FnMut(Field, &[u8])) {
    let Context { trace, span, parent, sampled, debug, formats, tracestate, request_id } = context;
    let Formats { b3_multi, b3_single, w3c } = *formats;
    set(Field::RequestId, request_id);
    let mut digits = [0; 32];
    let trace_digits = trace_digits(trace, &mut digits);
    let span_digits = digits_16(*span);
    if b3_multi {
        set(Field::B3TraceId, trace_digits);
        set(Field::B3SpanId, &span_digits);
        if let Some(parent) = parent {
            set(Field::B3ParentSpanId, &digits_16(*parent));
        }
        set(Field::B3Sampled, if *sampled { b"1" } else { b"0" });
        if *debug {
            set(Field::B3Flags, b"1");
        }
    }
    if b3_single {
        let mut value = Vec::with_capacity(70);
        value.extend_from_slice(trace_digits);
        value.push(b'-');
        value.extend_from_slice(&span_digits);
        value.extend_from_slice(match (debug, sampled) {
            (true, _) => b"-d",
            (false, true) => b"-1",
            (false, false) => b"-0",
        });
        if let Some(parent) = parent {
            value.push(b'-');
            value.extend_from_slice(&digits_16(*parent));
        }
        set(Field::B3, &value);
    }
    if w3c {
        // A 64-bit id is padded on the left, as the W3C text asks.
        let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
        value[3..19].copy_from_slice(&digits_16(trace.high));
        value[19..35].copy_from_slice(&digits_16(trace.low));
        value[36..52].copy_from_slice(&span_digits);
        value[54] = if *sampled { b'1' } else { b'0' };
        set(Field::Traceparent, &value);
        if let Some(tracestate) = tracestate {
            set(Field::Tracestate, tracestate);
        }
    }
}

fn trace_digits<'a>(trace: &TraceId, out: &'a mut [u8; 32]) -> &'a [u8] {
    out[..16].copy_from_slice(&digits_16(trace.high));
    out[16..].copy_from_slice(&digits_16(trace.low));
    if trace.is_128 { &out[..] } else { &out[16..] }
}

fn digits_16(value: u64) -> [u8; 16] {
    let mut out = [0; 16];
    for (pair, byte) in out.chunks_exact_mut(2).zip(value.to_be_bytes()) {
        pair.copy_from_slice(&HEX_PAIRS[usize::from(byte)]);
    }
    out
}

/// Both digits of every byte.
static HEX_PAIRS: [[u8; 2]; 256] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [HEX[byte >> 4], HEX[byte & 0xf]];
        byte += 1;
    }
    pairs
};

/// Where Envoy keeps the trace decision in a UUID: the version digit.
const DECISION_DIGIT: usize = 14;

/// Envoy packs the decision into the request id it made: 9 sampled, a forced by a client,
/// b forced by the server. Plain UUIDs (4) say nothing.
pub(super) fn request_id_decision(id: &[u8]) -> Option<bool> {
    match (id.len(), id.get(DECISION_DIGIT)) {
        (36, Some(b'9' | b'a' | b'b')) => Some(true),
        _ => None,
    }
}

/// A random UUID, its version digit 4, or 9 when the request is sampled (as Envoy does).
pub(super) fn new_request_id(sampled: bool, random: &mut impl FnMut() -> u64) -> Vec<u8> {
    let mut id = *b"00000000-0000-0000-0000-000000000000";
    write_request_id(&mut id, sampled, random);
    id.to_vec()
}

fn write_request_id(id: &mut [u8; 36], sampled: bool, random: &mut impl FnMut() -> u64) {
    let (high, low) = (digits_16(random()), digits_16(random()));
    id[..8].copy_from_slice(&high[..8]);
    id[9..13].copy_from_slice(&high[8..12]);
    id[14..18].copy_from_slice(&high[12..]);
    id[19..23].copy_from_slice(&low[..4]);
    id[24..].copy_from_slice(&low[4..]);
    id[DECISION_DIGIT] = if sampled { b'9' } else { b'4' };
    // RFC 9562 variant 10xx.
    id[19] = match id[19] {
        b'0'..=b'3' => b'8',
        b'4'..=b'7' => b'9',
        b'8' | b'9' | b'a' | b'b' => id[19],
        _ => b'a',
    };
}

/// What a new trace is announced in, its ids still to be filled in.
pub(super) const NEW_TRACE: [u8; 218] = *b"\
    x-request-id: 00000000-0000-0000-0000-000000000000\r\n\
    x-b3-traceid: 00000000000000000000000000000000\r\n\
    x-b3-spanid: 0000000000000000\r\n\
    x-b3-sampled: 0\r\n\
    traceparent: 00-00000000000000000000000000000000-0000000000000000-00\r\n";

/// Where the values are in [`NEW_TRACE`].
const AT: [usize; 5] = {
    let mut at = [0; 5];
    let mut start = 0;
    let mut index = 0;
    while index < at.len() {
        let (field, value) = super::NewTrace::LINES[index];
        at[index] = start + field.name().len() + 2;
        start = at[index] + value + 2;
        index += 1;
    }
    assert!(start == NEW_TRACE.len(), "the lines are those of the text");
    at
};

/// The lines of a new trace whose root span carries the low half of its id.
pub(super) fn new_trace(
    trace: TraceId,
    sampled: bool,
    random: &mut impl FnMut() -> u64,
) -> [u8; NEW_TRACE.len()] {
    let [id_at, trace_at, span_at, sampled_at, parent_at] = AT;
    let mut text = NEW_TRACE;
    let (high, low) = (digits_16(trace.high), digits_16(trace.low));
    let decision = if sampled { b'1' } else { b'0' };
    let id = text[id_at..].first_chunk_mut().expect("the request id's value is 36 bytes");
    write_request_id(id, sampled, random);
    text[trace_at..trace_at + 16].copy_from_slice(&high);
    text[trace_at + 16..trace_at + 32].copy_from_slice(&low);
    text[span_at..span_at + 16].copy_from_slice(&low);
    text[sampled_at] = decision;
    text[parent_at + 3..parent_at + 19].copy_from_slice(&high);
    text[parent_at + 19..parent_at + 35].copy_from_slice(&low);
    text[parent_at + 36..parent_at + 52].copy_from_slice(&low);
    text[parent_at + 54] = decision;
    text
}
