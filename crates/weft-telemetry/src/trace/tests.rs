use super::*;

const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SPAN: &str = "a2fb4a1d1a96d312";

fn extract(headers: &[(&str, &str)]) -> Incoming {
    Context::extract(|name| {
        headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_bytes())
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

fn headers(context: &Context) -> Vec<(String, String)> {
    let mut list = Vec::new();
    context.inject(|name, value| {
        list.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
    });
    list
}

fn header(context: &Context, name: &str) -> Option<String> {
    headers(context).into_iter().find(|(n, _)| n == name).map(|(_, value)| value)
}

#[test]
fn every_format_is_read() {
    let cases: [&[(&str, &str)]; 4] = [
        &[(B3_TRACE_ID, TRACE), (B3_SPAN_ID, SPAN), (B3_SAMPLED, "1")],
        &[(B3, "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1")],
        &[(TRACEPARENT, "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
        &[
            (B3, "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-d-05e3ac9a4f6e3b90"),
            (B3_TRACE_ID, ""),
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
    let cases: [&[(&str, &str)]; 9] = [
        &[(B3_TRACE_ID, ""), (B3_SPAN_ID, ""), (B3_SAMPLED, ""), (REQUEST_ID, "")],
        &[(B3_TRACE_ID, "xyz"), (B3_SPAN_ID, SPAN)],
        &[(B3_TRACE_ID, "00000000000000000000000000000000"), (B3_SPAN_ID, SPAN)],
        &[(B3_TRACE_ID, TRACE)],
        &[(B3, "463ac35c-1")],
        &[(TRACEPARENT, "00-463AC35C9F6413AD48485A3953BB6124-a2fb4a1d1a96d312-01")],
        &[(TRACEPARENT, "ff-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01")],
        &[(TRACEPARENT, "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01-more")],
        &[(TRACEPARENT, "00-463ac35c9f6413ad48485a3953bb6124-0000000000000000-01")],
    ];
    for case in cases {
        let incoming = extract(case);
        assert_eq!(incoming, Incoming::default(), "{case:?}");
        let context = Context::next(incoming, Side::Client, Sampling::ALWAYS, random());
        assert!(context.sampled && context.parent.is_none());
        assert_eq!(header(&context, B3_TRACE_ID).unwrap().len(), 32);
    }
}

#[test]
fn a_client_makes_a_child_and_a_server_shares_the_span() {
    let incoming = extract(&[(B3_TRACE_ID, TRACE), (B3_SPAN_ID, SPAN), (B3_SAMPLED, "0")]);
    let client = Context::next(incoming.clone(), Side::Client, Sampling::ALWAYS, random());
    assert_eq!(header(&client, B3_PARENT_SPAN_ID).as_deref(), Some(SPAN));
    assert_ne!(header(&client, B3_SPAN_ID).as_deref(), Some(SPAN));
    assert_eq!(header(&client, B3_SAMPLED).as_deref(), Some("0"), "the caller's decision wins");
    assert_eq!(header(&client, TRACEPARENT), None, "only the caller's formats are rewritten");
    let server = Context::next(incoming, Side::Server, Sampling::ALWAYS, random());
    assert_eq!(header(&server, B3_SPAN_ID).as_deref(), Some(SPAN));
    assert_eq!(header(&server, B3_PARENT_SPAN_ID), None);
}

#[test]
fn a_64_bit_id_stays_64_bits_in_b3() {
    let incoming = extract(&[(B3_TRACE_ID, SPAN), (B3_SPAN_ID, SPAN)]);
    let context = Context::next(incoming, Side::Client, Sampling::NEVER, random());
    assert_eq!(header(&context, B3_TRACE_ID).as_deref(), Some(SPAN));
}

#[test]
fn formats_of_another_trace_are_left_alone() {
    let incoming = extract(&[
        (B3_TRACE_ID, TRACE),
        (B3_SPAN_ID, SPAN),
        (TRACEPARENT, "00-11111111111111111111111111111111-2222222222222222-01"),
        (TRACESTATE, "a=b"),
    ]);
    let context = Context::next(incoming, Side::Client, Sampling::NEVER, random());
    assert_eq!(header(&context, TRACEPARENT), None);
    assert_eq!(header(&context, TRACESTATE), None);
    assert_eq!(header(&context, B3_TRACE_ID).as_deref(), Some(TRACE));
}

#[test]
fn tracestate_travels_with_its_parent() {
    let incoming = extract(&[
        (TRACEPARENT, "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-00"),
        (TRACESTATE, "vendor=1"),
    ]);
    let context = Context::next(incoming, Side::Client, Sampling::ALWAYS, random());
    assert_eq!(header(&context, TRACESTATE).as_deref(), Some("vendor=1"));
    assert!(header(&context, TRACEPARENT).unwrap().ends_with("-00"));
}

#[test]
fn request_ids_are_kept_or_made() {
    let context =
        Context::next(extract(&[(REQUEST_ID, "mine")]), Side::Client, Sampling::NEVER, random());
    assert_eq!(header(&context, REQUEST_ID).as_deref(), Some("mine"));
    let made = Context::next(Incoming::default(), Side::Client, Sampling::ALWAYS, random());
    let id = header(&made, REQUEST_ID).unwrap();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'9'));
    let again = extract(&[(REQUEST_ID, id.as_str())]);
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
