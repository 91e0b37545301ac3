use super::*;

const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SPAN: &str = "a2fb4a1d1a96d312";

fn extract(headers: &[(Field, &str)]) -> Incoming {
    Context::extract(|field| {
        headers.iter().find(|(known, _)| *known == field).map(|(_, value)| value.as_bytes())
    })
}

fn random() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn headers(context: &Context) -> Vec<(Field, String)> {
    let mut list = Vec::new();
    context.inject(|field, value| {
        list.push((field, String::from_utf8(value.to_vec()).unwrap()));
    });
    list
}

fn header(context: &Context, field: Field) -> Option<String> {
    headers(context).into_iter().find(|(known, _)| *known == field).map(|(_, value)| value)
}

#[test]
fn every_format_is_read() {
    let cases: [&[(Field, &str)]; 4] = [
        &[(Field::B3TraceId, TRACE), (Field::B3SpanId, SPAN), (Field::B3Sampled, "1")],
        &[(Field::B3, "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")],
        &[(Field::Traceparent, "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
        &[
            (Field::B3, "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-d-05e3ac9a4f6e3b90"),
            (Field::B3TraceId, ""),
        ],
    ];
    for case in cases {
        let incoming = extract(case);
        let ids = incoming.ids.expect("ids");
        assert_eq!(format!("{:016x}{:016x}", ids.trace.high, ids.trace.low), TRACE);
        assert_eq!(format!("{:016x}", ids.span), SPAN);
        assert_eq!(incoming.sampled, Some(true), "{case:?}");
    }
}

#[test]
fn empty_or_malformed_is_absent() {
    let cases: [&[(Field, &str)]; 9] = [
        &[
            (Field::B3TraceId, ""),
            (Field::B3SpanId, ""),
            (Field::B3Sampled, ""),
            (Field::RequestId, ""),
        ],
        &[(Field::B3TraceId, "xyz"), (Field::B3SpanId, SPAN)],
        &[(Field::B3TraceId, "00000000000000000000000000000000"), (Field::B3SpanId, SPAN)],
        &[(Field::B3TraceId, TRACE)],
        &[(Field::B3, "463ac35c-1")],
        &[(Field::Traceparent, "00-463AC35C9F6413AD48485A3953BB6124-a2fb4a1d1a96d312-01")],
        &[(Field::Traceparent, "ff-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
        &[(Field::Traceparent, "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01-more")],
        &[(Field::Traceparent, "00-463ac35c9f6413ad48485a3953bb6124-0000000000000000-01")],
    ];
    for case in cases {
        let incoming = extract(case);
        assert_eq!(incoming, Incoming::default(), "{case:?}");
        let context = Context::next(incoming, Side::Client, Sampling::ALWAYS, random());
        assert!(context.sampled && context.parent.is_none());
        assert_eq!(header(&context, Field::B3TraceId).unwrap().len(), 32);
    }
}

#[test]
fn a_client_makes_a_child_and_a_server_shares_the_span() {
    let incoming =
        extract(&[(Field::B3TraceId, TRACE), (Field::B3SpanId, SPAN), (Field::B3Sampled, "0")]);
    let client = Context::next(incoming.clone(), Side::Client, Sampling::ALWAYS, random());
    assert_eq!(header(&client, Field::B3ParentSpanId).as_deref(), Some(SPAN));
    assert_ne!(header(&client, Field::B3SpanId).as_deref(), Some(SPAN));
    assert_eq!(
        header(&client, Field::B3Sampled).as_deref(),
        Some("0"),
        "the caller's decision wins"
    );
    assert_eq!(
        header(&client, Field::Traceparent),
        None,
        "only the caller's formats are rewritten"
    );
    let server = Context::next(incoming, Side::Server, Sampling::ALWAYS, random());
    assert_eq!(header(&server, Field::B3SpanId).as_deref(), Some(SPAN));
    assert_eq!(header(&server, Field::B3ParentSpanId), None);
}

#[test]
fn a_64_bit_id_stays_64_bits_in_b3() {
    let incoming = extract(&[(Field::B3TraceId, SPAN), (Field::B3SpanId, SPAN)]);
    let context = Context::next(incoming, Side::Client, Sampling::NEVER, random());
    assert_eq!(header(&context, Field::B3TraceId).as_deref(), Some(SPAN));
}

#[test]
fn formats_of_another_trace_are_left_alone() {
    let incoming = extract(&[
        (Field::B3TraceId, TRACE),
        (Field::B3SpanId, SPAN),
        (Field::Traceparent, "00-11111111111111111111111111111111-2222222222222222-01"),
        (Field::Tracestate, "a=b"),
    ]);
    let context = Context::next(incoming, Side::Client, Sampling::NEVER, random());
    assert_eq!(header(&context, Field::Traceparent), None);
    assert_eq!(header(&context, Field::Tracestate), None);
    assert_eq!(header(&context, Field::B3TraceId).as_deref(), Some(TRACE));
}

#[test]
fn tracestate_travels_with_its_parent() {
    let incoming = extract(&[
        (Field::Traceparent, "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-00"),
        (Field::Tracestate, "vendor=1"),
    ]);
    let context = Context::next(incoming, Side::Client, Sampling::ALWAYS, random());
    assert_eq!(header(&context, Field::Tracestate).as_deref(), Some("vendor=1"));
    assert!(header(&context, Field::Traceparent).unwrap().ends_with("-00"));
}

#[test]
fn request_ids_are_kept_or_made() {
    let context = Context::next(
        extract(&[(Field::RequestId, "mine")]),
        Side::Client,
        Sampling::NEVER,
        random(),
    );
    assert_eq!(header(&context, Field::RequestId).as_deref(), Some("mine"));
    let made = Context::next(Incoming::default(), Side::Client, Sampling::ALWAYS, random());
    let id = header(&made, Field::RequestId).unwrap();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'9'));
    let again = extract(&[(Field::RequestId, id.as_str())]);
    assert!(Context::next(again, Side::Server, Sampling::NEVER, random()).sampled);
}

#[test]
fn sampling_follows_its_rate() {
    let mut random = random();
    let hits = (0..100_000).filter(|_| Sampling::DEFAULT.decide(random())).count();
    assert!((900..1100).contains(&hits), "{hits}");
    assert!(!Sampling::percent(f64::NAN).decide(0));
    assert!(Sampling::percent(100.0).decide(u64::MAX));
}

#[test]
fn a_new_trace_is_written_as_any_other() {
    for sampling in [Sampling::NEVER, Sampling::ALWAYS] {
        let context = Context::next(Incoming::default(), Side::Client, sampling, random());
        let new = NewTrace::begin(sampling, random());
        let mut text = Vec::new();
        context.inject(|field, value| {
            text.extend_from_slice(field.name().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value);
            text.extend_from_slice(b"\r\n");
        });
        assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(new.text()));
        let lines: Vec<_> =
            headers(&context).iter().map(|(field, value)| (*field, value.len())).collect();
        assert_eq!(lines, NewTrace::LINES);
    }
}
