use std::net::IpAddr;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::h1::{Connection, Limits, Parsed, Upgrade, parse_request};
use crate::headers::HeaderList;
use crate::message::{BodyLength, Method, RequestHead, ResponseHead, Scheme, Target, Version};

fn list(lines: &[(&str, &str)]) -> HeaderList {
    lines.iter().copied().collect()
}

fn request(lines: &str) -> (RequestHead, Connection) {
    let mut buf = BytesMut::from(format!("GET /p HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_str());
    match parse_request(&mut buf, &Limits::DEFAULT) {
        Ok(Parsed::Complete((head, _, conn))) => (head, conn),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hop_by_hop_fields_stay_on_their_hop() {
    let check = |lines: &str, to: Version, expect: &[(&str, &str)]| {
        let (mut head, conn) = request(lines);
        strip_request(&mut head.headers, &conn, to);
        head.headers.remove("host");
        assert_eq!(head.headers, list(expect), "{lines:?} {to:?}");
    };
    let plain = "Connection: keep-alive\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nA: 1\r\n";
    check(plain, Version::H11, &[("A", "1")]);
    let nominating = "Connection: close, X-Hop, a\r\nX-Hop: 1\r\nA: 1\r\nx-hop: 2\r\nB: 2\r\n";
    check(nominating, Version::H11, &[("B", "2")]);
    let essentials = "Connection: host, content-length, x-forwarded-for, authorization, cookie\r\n\
                      Content-Length: 0\r\nX-Forwarded-For: b\r\nAuthorization: c\r\nCookie: d\r\n";
    check(
        essentials,
        Version::H11,
        &[
            ("Content-Length", "0"),
            ("X-Forwarded-For", "b"),
            ("Authorization", "c"),
            ("Cookie", "d"),
        ],
    );
    let te = "TE: gzip;q=1, trailers\r\nConnection: TE\r\nA: 1\r\n";
    check(te, Version::H11, &[("TE", "trailers"), ("Connection", "TE"), ("A", "1")]);
    check(te, Version::H2, &[("TE", "trailers"), ("A", "1")]);
    check("TE: gzip\r\nConnection: TE\r\n", Version::H11, &[]);
    let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nA: 1\r\n";
    check(
        upgrade,
        Version::H11,
        &[("Connection", "Upgrade"), ("Upgrade", "websocket"), ("A", "1")],
    );
    check(upgrade, Version::H2, &[("A", "1")]);
    check(
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
        Version::H11,
        &[("HTTP2-Settings", "x")],
    );
}

#[test]
fn request_framing_for_the_other_side() {
    use BodyLength::{Chunked, Exact, None, Streamed};
    let check = |method: Method, length, from, to, expect| {
        assert_eq!(
            request_framing(&method, length, from, to),
            expect,
            "{length:?} {from:?} {to:?}"
        );
    };
    check(Method::Post, Chunked, Version::H11, Version::H11, Chunked);
    check(Method::Post, Chunked, Version::H11, Version::H2, Streamed);
    check(Method::Post, Streamed, Version::H2, Version::H11, Chunked);
    check(Method::Post, Exact(3), Version::H11, Version::H2, Exact(3));
    check(Method::Post, None, Version::H2, Version::H11, Exact(0));
    check(Method::Get, None, Version::H2, Version::H11, None);
    check(Method::Post, None, Version::H11, Version::H11, None);
}

#[test]
fn response_framing_for_the_client() {
    use BodyLength::{Chunked, Exact, None, Streamed, UntilClose};
    let check = |method: Method, status, length, to, expect, close| {
        let got = response_framing(&method, status, length, to);
        assert_eq!(got, Framing { length: expect, close }, "{status} {length:?} {to:?}");
    };
    check(Method::Get, 200, Exact(3), Version::H10, Exact(3), false);
    check(Method::Get, 200, Chunked, Version::H10, UntilClose, true);
    check(Method::Get, 200, Streamed, Version::H10, UntilClose, true);
    check(Method::Get, 200, UntilClose, Version::H11, Chunked, false);
    check(Method::Get, 200, UntilClose, Version::H2, Streamed, false);
    check(Method::Get, 200, Streamed, Version::H11, Chunked, false);
    check(Method::Get, 200, None, Version::H11, Exact(0), false);
    check(Method::Head, 200, Exact(3), Version::H11, None, false);
    check(Method::Get, 204, Exact(3), Version::H11, None, false);
    check(Method::Get, 304, Chunked, Version::H10, None, false);
    check(Method::Connect, 200, UntilClose, Version::H11, None, false);
    check(Method::Connect, 503, Exact(3), Version::H11, Exact(3), false);
}

#[test]
fn connection_field_only_where_the_version_does_not_say_it() {
    let check = |version, keep_alive, expect: Option<&str>| {
        let mut headers = HeaderList::new();
        set_connection(&mut headers, version, keep_alive);
        assert_eq!(headers.get("connection"), expect.map(str::as_bytes));
    };
    check(Version::H11, true, None);
    check(Version::H11, false, Some("close"));
    check(Version::H10, true, Some("keep-alive"));
    check(Version::H10, false, None);
    check(Version::H2, false, None);
    let mut coded = list(&[("Transfer-Encoding", "gzip, chunked")]);
    assert!(is_transfer_coded(&coded));
    coded.set("transfer-encoding", "chunked");
    assert!(!is_transfer_coded(&coded));
}

fn pseudo(method: &str, path: &str, authority: Option<&str>) -> RequestPseudo {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    RequestPseudo {
        method: Some(bytes(method)),
        scheme: Some(bytes("https")),
        authority: authority.map(bytes),
        path: Some(bytes(path)),
        protocol: None,
    }
}

#[test]
fn http2_requests_become_messages() {
    let headers = list(&[("cookie", "a=1"), ("x", "1"), ("cookie", "b=2"), ("cookie", "c")]);
    let mut head = request_from_h2(pseudo("GET", "/a?b", Some("h:1")), headers).unwrap();
    assert_eq!((head.scheme, head.authority()), (Scheme::Https, &b"h:1"[..]));
    request_to_h1(&mut head);
    assert_eq!(head.headers, list(&[("cookie", "a=1; b=2; c"), ("x", "1")]));
    let mut out = crate::h1::OutBuf::new();
    crate::h1::write_request(&head, BodyLength::None, &mut out);
    assert_eq!(
        bytes::Buf::chunk(&out),
        b"GET /a?b HTTP/1.1\r\nHost: h:1\r\ncookie: a=1; b=2; c\r\nx: 1\r\n\r\n"
    );
    let host_only =
        request_from_h2(pseudo("GET", "/", None), list(&[("host", "x"), ("a", "b")])).unwrap();
    assert_eq!((host_only.authority(), host_only.headers.len()), (&b"x"[..], 1));
}

#[test]
fn malformed_http2_heads_are_refused() {
    let check = |pseudo: RequestPseudo, lines: &[(&str, &str)], expect: H2Error| {
        assert_eq!(request_from_h2(pseudo, list(lines)).map(|_| ()), Err(expect), "{lines:?}");
    };
    let good = || pseudo("GET", "/", Some("h"));
    check(good(), &[("connection", "close")], H2Error::ConnectionField);
    check(good(), &[("transfer-encoding", "chunked")], H2Error::ConnectionField);
    check(good(), &[("upgrade", "x")], H2Error::ConnectionField);
    check(good(), &[("te", "gzip")], H2Error::ConnectionField);
    check(good(), &[("X-Upper", "1")], H2Error::Field);
    check(good(), &[("content-length", "1"), ("content-length", "2")], H2Error::ContentLength);
    check(good(), &[("content-length", "+1")], H2Error::ContentLength);
    check(good(), &[("host", "other")], H2Error::Authority);
    check(good(), &[("host", "h"), ("host", "h")], H2Error::Authority);
    check(pseudo("GET", "/", Some("u@h")), &[], H2Error::Authority);
    check(pseudo("GET", "", Some("h")), &[], H2Error::Path);
    check(pseudo("GET", "a", Some("h")), &[], H2Error::Path);
    check(pseudo("GET", "*", Some("h")), &[], H2Error::Path);
    check(pseudo("GET", "/a b", Some("h")), &[], H2Error::Path);
    check(pseudo("GET", "/ HTTP/1.1\r\nX: y", Some("h")), &[], H2Error::Path);
    check(pseudo("G T", "/", Some("h")), &[], H2Error::Method);
    check(pseudo("CONNECT", "/", Some("h")), &[], H2Error::Pseudo);
    check(RequestPseudo { path: None, ..good() }, &[], H2Error::Pseudo);
    check(RequestPseudo { method: None, ..good() }, &[], H2Error::Pseudo);
    let protocol = Some(Bytes::from_static(b"websocket"));
    check(RequestPseudo { protocol, ..good() }, &[], H2Error::Pseudo);
    assert_eq!(response_from_h2(101, HeaderList::new()).map(|_| ()), Err(H2Error::Pseudo));
}

#[test]
fn http1_heads_become_http2_ones() {
    let (mut head, conn) =
        request("X-UP: 1\r\nConnection: x-up, close\r\nTE: trailers\r\nCookie: a; b\r\n");
    head.scheme = Scheme::Https;
    request_to_h2(&mut head, &conn);
    assert_eq!(head.headers, list(&[("te", "trailers"), ("cookie", "a; b")]));
    let pseudo: Vec<_> = request_pseudo(&head, None).into_vec();
    let expect: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"https"), (":authority", b"a"), (":path", b"/p")];
    assert_eq!(pseudo, expect);
    let mut response = ResponseHead::new(200);
    response.headers =
        list(&[("Connection", "close"), ("X-A", "B"), ("Transfer-Encoding", "chunked")]);
    let conn = Connection { keep_alive: false, upgrade: None, expect_continue: false };
    response_to_h2(&mut response, &conn);
    assert_eq!(response.headers, list(&[("x-a", "B")]));
}

#[test]
fn websocket_crosses_versions() {
    let (mut head, conn) = request("Connection: Upgrade\r\nUpgrade: websocket\r\nA: 1\r\n");
    request_to_h2(&mut head, &conn);
    assert_eq!(head.headers, list(&[("a", "1")]));
    let extended = request_pseudo(&head, Some(b"websocket"));
    assert_eq!(extended[0], (":method", &b"CONNECT"[..]));
    assert_eq!(extended[4], (":protocol", &b"websocket"[..]));
    let mut answer = ResponseHead::new(200);
    let conn = h2_switch_to_h1(&mut answer, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    strip_response(&mut answer.headers, &conn, Version::H11);
    let switched = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ];
    assert_eq!((answer.status, &answer.headers), (101, &list(&switched)));
    h1_switch_to_h2(&mut answer);
    response_to_h2(&mut answer, &conn);
    assert_eq!((answer.status, answer.headers.len()), (200, 1));

    let protocol = Bytes::from_static(b"websocket");
    let extended =
        RequestPseudo { protocol: Some(protocol.clone()), ..pseudo("CONNECT", "/chat", Some("h")) };
    let mut head = request_from_h2(extended, HeaderList::new()).unwrap();
    let conn = h2_connect_to_h1(&mut head, &protocol);
    strip_request(&mut head.headers, &conn, Version::H11);
    assert_eq!(
        (head.method, head.target),
        (Method::Get, Target::Path(Bytes::from_static(b"/chat")))
    );
    assert_eq!(head.headers.get("upgrade"), Some(&b"websocket"[..]));
    assert_eq!(head.headers.get("connection"), Some(&b"Upgrade"[..]));
}

#[test]
fn forwarded_for_counts_hops_from_the_right() {
    let peer: IpAddr = "10.0.0.9".parse().unwrap();
    let check = |lines: &[&str], hops, edge, expect: &str| {
        let headers: HeaderList = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
        let got = client_address(&headers, peer, hops, edge);
        assert_eq!(got, expect.parse::<IpAddr>().unwrap(), "{lines:?} {hops} {edge}");
    };
    check(&["1.1.1.1, 2.2.2.2"], 0, true, "10.0.0.9");
    check(&["1.1.1.1, 2.2.2.2"], 1, true, "2.2.2.2");
    check(&["1.1.1.1, 2.2.2.2"], 2, true, "1.1.1.1");
    check(&["1.1.1.1", "2.2.2.2"], 2, true, "1.1.1.1");
    check(&["1.1.1.1, 2.2.2.2"], 3, true, "10.0.0.9");
    check(&["1.1.1.1, 2.2.2.2"], 0, false, "2.2.2.2");
    check(&["junk"], 1, true, "10.0.0.9");
    check(&["::1"], 1, true, "::1");
    check(&[], 1, true, "10.0.0.9");

    let mut headers = list(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]);
    append_forwarded_for(&mut headers, peer);
    assert_eq!(headers, list(&[("x-forwarded-for", "1.1.1.1,2.2.2.2,10.0.0.9")]));
    let mut headers = list(&[("x-forwarded-proto", "https")]);
    set_forwarded_proto(&mut headers, Scheme::Http, true);
    assert_eq!(headers.get("x-forwarded-proto"), Some(&b"https"[..]));
    set_forwarded_proto(&mut headers, Scheme::Http, false);
    assert_eq!(headers.get("x-forwarded-proto"), Some(&b"http"[..]));
}

#[test]
fn replies_speak_the_clients_dialect() {
    let grpc = |kind: &str| is_grpc(&list(&[("content-type", kind)]));
    assert!(grpc("application/grpc") && grpc("application/grpc+proto") && grpc("Application/gRPC"));
    assert!(!grpc("application/grpc-web") && !grpc("application/json") && !grpc("application"));
    let mut reply = local_reply(503, 33);
    into_grpc_reply(&mut reply, "no healthy upstream: 100% \u{e9}\n".as_bytes());
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.headers,
        list(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "14"),
            ("grpc-message", "no healthy upstream: 100%25 %C3%A9%0A"),
        ])
    );
    let reply = local_reply(404, 0);
    assert_eq!(reply.headers, list(&[("content-length", "0")]));
}

#[test]
fn singletons() {
    let twice = [("Content-Type", "a"), ("x", "1"), ("content-type", "b")];
    let check = |policy, expect: &[(&str, &str)]| {
        let mut headers = list(&twice);
        apply_singleton(&mut headers, "content-type", policy).unwrap();
        assert_eq!(headers, list(expect), "{policy:?}");
    };
    check(Singleton::First, &[("Content-Type", "a"), ("x", "1")]);
    check(Singleton::Last, &[("Content-Type", "b"), ("x", "1")]);
    check(Singleton::Join, &[("Content-Type", "a, b"), ("x", "1")]);
    let mut headers = list(&twice);
    assert!(apply_singleton(&mut headers, "content-type", Singleton::Reject).is_err());
    assert!(apply_singleton(&mut headers, "x", Singleton::Reject).is_ok());
}

/// What an HTTP/2 hop makes of a head, and what the far side makes of it again.
fn across(lines: &[(&str, &str)], authority: &str, length: BodyLength) -> Vec<(String, String)> {
    let sent = list(lines);
    let noted = note_spelling(&sent);
    // The hop groups names in an order of its own, and has no Host and no Transfer-Encoding.
    let mut names: Vec<String> = Vec::new();
    for header in &sent {
        names.insert(0, String::from_utf8_lossy(header.name).to_lowercase());
    }
    names.sort();
    names.dedup();
    names.retain(|name| name != "host" && name != "transfer-encoding");
    let mut arrived = HeaderList::new();
    for name in &names {
        for value in sent.get_all(name) {
            arrived.append(name, value);
        }
    }
    if let Some(noted) = &noted {
        arrived.append("x-weft-spelling", noted);
    }
    let noted = take_spelling(&mut arrived);
    if let Some(noted) = noted {
        respell(&mut arrived, &noted, Some(authority.as_bytes()), length);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    arrived.iter().map(|header| (text(header.name), text(header.value))).collect()
}

#[test]
fn spelling_order_and_duplicates_come_back_across_http2() {
    let lines = [
        ("X-CustomID", "1"),
        ("SOAPAction", "\"x\""),
        ("HOST", "app"),
        ("x-customid", "2"),
        ("Accept", "*/*"),
        ("X-CustomID", "3"),
        ("TRANSFER-encoding", "chunked"),
        ("z", "last"),
    ];
    let back = across(&lines, "app", BodyLength::Streamed);
    let back: Vec<_> = back.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(back, lines);
}

#[test]
fn lower_case_needs_no_list_and_a_long_one_is_not_sent() {
    assert_eq!(note_spelling(&list(&[("accept", "*/*"), ("x-y", "z")])), None);
    let long = format!("X-{}", "y".repeat(SPELLING_BYTES_MAX));
    assert_eq!(note_spelling(&list(&[(&long, "1")])), None);
}

#[test]
fn a_list_can_neither_add_nor_change_fields() {
    let check = |noted: &str, expect: &[(&str, &str)]| {
        let mut headers = list(&[("a", "1"), ("b", "2"), ("content-length", "3"), ("a", "4")]);
        headers.append("x-weft-spelling", noted);
        let taken = take_spelling(&mut headers).unwrap_or_default();
        respell(&mut headers, &taken, Some(b"app"), BodyLength::Exact(3));
        assert_eq!(headers, list(expect), "{noted}");
    };
    let plain = [("a", "1"), ("b", "2"), ("content-length", "3"), ("a", "4")];
    check("", &plain);
    check("X,Y,,Z", &plain);
    check("a,a,a,a", &[("a", "1"), ("a", "4"), ("b", "2"), ("content-length", "3")]);
    check("Transfer-Encoding,Connection,Authorization", &plain);
    check("B: 9,a b,\u{e9}", &plain);
    check(
        "Content-Length,Content-Length",
        &[("Content-Length", "3"), ("a", "1"), ("b", "2"), ("a", "4")],
    );
    let host_first = [("hOST", "app"), ("a", "1"), ("b", "2"), ("content-length", "3"), ("a", "4")];
    check("hOST,Host,host", &host_first);
    // Two lists are none.
    let mut headers = list(&[("a", "1"), ("x-weft-spelling", "A"), ("X-Weft-Spelling", "A")]);
    assert_eq!(take_spelling(&mut headers), None);
    assert_eq!(headers, list(&[("a", "1")]));
}

#[test]
fn what_stays_of_hop_by_hop_fields_stays_where_it_was() {
    let upgrade =
        Connection { keep_alive: true, upgrade: Some(Upgrade::WebSocket), expect_continue: false };
    let mut headers = list(&[
        ("Connection", "keep-alive, Upgrade"),
        ("UPGRADE", "websocket"),
        ("X", "y"),
        ("Te", "gzip, trailers"),
    ]);
    strip_request(&mut headers, &upgrade, Version::H11);
    let expect =
        [("Connection", "Upgrade, TE"), ("UPGRADE", "websocket"), ("X", "y"), ("Te", "trailers")];
    assert_eq!(headers, list(&expect));
}
