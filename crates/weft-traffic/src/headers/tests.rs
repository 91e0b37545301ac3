use std::time::{Duration, SystemTime};

use super::*;
use crate::route::test_head;

fn render(format: &str) -> String {
    let head =
        test_head("GET", "a.com", "/p?q=1", &[("X-User", "jason"), ("x-two", "1"), ("x-two", "2")]);
    let context = FormatContext {
        downstream_remote: Some("10.0.0.7:1234".parse().unwrap()),
        downstream_local: Some("[::1]:80".parse().unwrap()),
        start_time: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_798_761_599_123)),
        environment: Some(|name| (name == "POD").then(|| "pod-1".to_owned())),
        ..Default::default()
    };
    let bytes = Format::parse(format).unwrap().render(Some(&head), None, &context);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn operators_render() {
    for (format, expect) in [
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%REQ(X-USER)%", "jason"),
        ("<%REQ(x-none)%>", "<>"),
        ("%REQ(x-none?x-user):3%", "jas"),
        ("%REQ(x-two)%", "1"),
        ("%REQ(:path)% %REQ_WITHOUT_QUERY(:path)% %REQ(:method)%", "/p?q=1 /p GET"),
        ("%REQ(:authority)%", "a.com"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.7:1234"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.7"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "[::1]:80 80"),
        ("%PROTOCOL%", "HTTP/1.1"),
        ("%ENVIRONMENT(POD)%%ENVIRONMENT(NONE)%", "pod-1"),
        ("%START_TIME%", "2026-12-31T23:59:59.123Z"),
        ("%START_TIME(%s.%3f)%", "1798761599.123"),
        ("%UPSTREAM_CLUSTER%", ""),
    ] {
        assert_eq!(render(format), expect, "{format}");
    }
}

#[test]
fn bad_formats_are_refused() {
    for format in ["%", "a%b", "%NOPE%", "%REQ()%", "%REQ(x%", "%REQ(x):a%", "%START_TIME(%Q)%"] {
        assert!(Format::parse(format).is_err(), "{format}");
    }
}

#[test]
fn append_actions() {
    let check = |action, keep_empty, value: &str| {
        let mut head = test_head("GET", "a", "/", &[("X-A", "1"), ("x-b", "2")]);
        let edit = |name: &str| HeaderEdit {
            name: name.into(),
            value: Format::literal(value.as_bytes()),
            action,
            keep_empty,
        };
        let edits =
            HeaderEdits { remove: vec!["X-B".into()], edits: vec![edit("x-a"), edit("x-c")] };
        edits.apply_request(&mut head, &FormatContext::default());
        let text = |h: weft_http::Header<'_>| {
            format!("{}={}", String::from_utf8_lossy(h.name), String::from_utf8_lossy(h.value))
        };
        head.headers.iter().map(text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(check(AppendAction::AppendIfExistsOrAdd, false, "9"), "X-A=1 x-a=9 x-c=9");
    assert_eq!(check(AppendAction::AddIfAbsent, false, "9"), "X-A=1 x-c=9");
    assert_eq!(check(AppendAction::OverwriteIfExistsOrAdd, false, "9"), "X-A=9 x-c=9");
    assert_eq!(check(AppendAction::OverwriteIfExists, false, "9"), "X-A=9");
    assert_eq!(check(AppendAction::AppendIfExistsOrAdd, false, ""), "X-A=1");
    assert_eq!(check(AppendAction::OverwriteIfExistsOrAdd, true, ""), "X-A= x-c=");
}
