use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::*;
use crate::format::json::Json;
use crate::route::test_head;

/// A line for one request, which `%TRAILER%` and the like know the end of.
fn line(format: &str) -> String {
    with_subject(|subject| {
        let mut out = Vec::new();
        Format::parse_line(format, false).unwrap().render_into(&mut out, subject);
        String::from_utf8(out).unwrap()
    })
}

fn with_subject<T>(with: impl FnOnce(Subject<'_>) -> T) -> T {
    let head = test_head(
        "GET",
        "a.com",
        "/p?q=1",
        &[("x-user", "ja\"son"), ("x-empty", ""), ("x-request-id", "11-22")],
    );
    let mut response = HeaderList::new();
    response.append("content-type", "text/plain");
    let mut trailers = HeaderList::new();
    trailers.append("grpc-message", "no");
    let upstream_local: SocketAddr = "10.0.0.1:9".parse().unwrap();
    let ended = Ended {
        trailers: Some(&trailers),
        received_bytes: 5,
        sent_bytes: 7,
        duration: Duration::from_millis(30),
        request_duration: Some(Duration::from_millis(10)),
        response_duration: Some(Duration::from_millis(25)),
        code_details: "via_upstream",
        attempts: 2,
        grpc_status: Some(5),
        upstream_local: Some(upstream_local),
        mtls: true,
        upstream_peer: PeerFacts {
            workload: "reviews-v2",
            namespace: "shop",
            ..Default::default()
        },
        ..Ended::default()
    };
    let context = FormatContext {
        downstream_remote: Some("10.0.0.7:1234".parse().unwrap()),
        upstream_remote: Some("10.0.0.9:80".parse().unwrap()),
        upstream_cluster: Some("outbound|80||a"),
        start_time: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_798_761_599_123)),
        response_code: Some(503),
        response_flags: Some("UF,URX"),
        ended: Some(&ended),
        ..Default::default()
    };
    with(Subject { request: Some(&head), response: Some(&response), context: &context })
}

#[test]
fn lines_show_what_the_end_tells() {
    for (format, expect) in [
        (
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
            "503 UF,URX UpstreamConnectionFailure",
        ),
        ("%BYTES_RECEIVED% %BYTES_SENT% %DURATION%", "5 7 30"),
        ("%REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "10 25 5"),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%", "25000"),
        ("%RESP(CONTENT-TYPE)% %RESP(x)% %TRAILER(grpc-message)%", "text/plain - no"),
        ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "15"),
        ("%REQ(X-NONE)% <%REQ(X-EMPTY)%> %REQ(x-user)%", "- <> ja\"son"),
        ("%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%", "via_upstream -"),
        (
            "%UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_CLUSTER_RAW%",
            "10.0.0.9:80 10.0.0.1:9 outbound|80||a",
        ),
        ("%UPSTREAM_REMOTE_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "80 10.0.0.7"),
        ("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", "NotFound NOT_FOUND 5"),
        ("%ROUTE_NAME% %REQUESTED_SERVER_NAME% %STREAM_ID%", "- - 11-22"),
        (
            "%FILTER_STATE(upstream_peer:FIELD:workload)% %FILTER_STATE(upstream_peer)%",
            "reviews-v2 namespace=shop,workload=reviews-v2",
        ),
        ("%CEL(response.code >= 500 && connection.mtls)%", "true"),
        ("%CEL(upstream_peer.workload)% %CEL(request.headers['x-none'])%", "reviews-v2 -"),
        ("%DYNAMIC_METADATA(a:b)% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "- 2"),
        ("%PATH(NQ)% %PATH(WQ:PATH)%", "/p /p?q=1"),
        (
            "%START_TIME(%Y/%m/%dT%H:%M:%S%z %s %3f %E6S)%",
            "2026/12/31T23:59:59+0000 1798761599 123 59.123000",
        ),
        ("%START_TIME(%a %b %e %j %I%p)%", "Thu Dec 31 365 11PM"),
    ] {
        assert_eq!(line(format), expect, "{format}");
    }
}

#[test]
fn unknown_operators_are_refused_by_name() {
    for (format, named) in [
        ("%NOPE%", "NOPE"),
        ("%UPSTREAM_REMOTE%", "UPSTREAM_REMOTE"),
        ("%GRPC_STATUS(ODD)%", "ODD"),
        ("%CEL(a ==)%", "ends too early"),
        ("%CEL((a)%", "not closed"),
        ("%COMMON_DURATION(A:B:ms)%", "\"A\""),
        ("%PATH(XX)%", "XX"),
    ] {
        let error = Format::parse_line(format, false).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn json_keeps_types_and_escapes() {
    let text = |text: &str| Json::Text(text.into());
    let json = || {
        Json::Object(vec![
            ("user".into(), text("%REQ(x-user)%")),
            ("code".into(), text("%RESPONSE_CODE%")),
            ("both".into(), text("%RESPONSE_CODE% %ROUTE_NAME%")),
            ("none".into(), text("%ROUTE_NAME%")),
            ("nested".into(), Json::Object(vec![("n".into(), Json::Number(1.0))])),
            ("list".into(), Json::List(vec![Json::Bool(true), Json::Null])),
        ])
    };
    let render = |omit_empty| {
        with_subject(|subject| {
            let mut out = Vec::new();
            JsonFormat::parse(json(), omit_empty).unwrap().render_into(&mut out, subject);
            String::from_utf8(out).unwrap()
        })
    };
    let rest = r#""user":"ja\"son"}"#;
    assert_eq!(
        render(false),
        format!(
            "{{\"both\":\"503 -\",\"code\":503,\"list\":[true,null],\"nested\":{{\"n\":1}},\"none\":null,{rest}\n"
        )
    );
    assert_eq!(
        render(true),
        format!(
            "{{\"both\":\"503 \",\"code\":503,\"list\":[true,null],\"nested\":{{\"n\":1}},{rest}\n"
        )
    );
}
