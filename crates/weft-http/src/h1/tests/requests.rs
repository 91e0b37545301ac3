use bytes::BytesMut;

use super::super::{Connection, Limits, ParseError, Parsed, Upgrade, parse_request};
use super::{request, request_with};
use crate::message::{BodyLength, Method, Scheme, Target, Version};

/// `lines` after a request line and `Host`.
fn with_lines(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

#[test]
fn a_plain_request_is_taken_apart_and_the_rest_stays() {
    let mut buf = BytesMut::from("GET /a?b=c HTTP/1.1\r\nHost: x:80\r\nX-Y:  z \r\n\r\nGET /next");
    let Parsed::Complete((head, body, conn)) = parse_request(&mut buf, &Limits::DEFAULT).unwrap()
    else {
        panic!("incomplete")
    };
    assert_eq!(head.method, Method::Get);
    assert_eq!((head.path(), head.query()), (&b"/a"[..], Some(&b"b=c"[..])));
    assert_eq!(head.authority(), b"x:80");
    assert_eq!(head.scheme, Scheme::Http);
    assert_eq!(head.version, Version::H11);
    assert_eq!(head.headers.get("x-y"), Some(&b"z"[..]));
    assert_eq!(body, BodyLength::None);
    assert_eq!(conn, Connection { keep_alive: true, upgrade: None, expect_continue: false });
    assert_eq!(&buf[..], b"GET /next");
}

#[test]
fn methods() {
    let check = |method: &str, sound: bool| {
        let got = request(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(got.is_ok(), sound, "{method}");
    };
    for sound in ["GET", "M-SEARCH", "VERSION-CONTROL", "FOO_BAR", "PURGE"] {
        check(sound, true);
    }
    for bad in ["get", "Get", "abcGET", "GE#T", "G3T", &"A".repeat(65)] {
        check(bad, false);
    }
}

#[test]
fn targets() {
    let check = |line: &str, expect: Result<(&str, Option<&str>, Scheme), ParseError>| {
        let got = request(format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let got = got.map(|(head, ..)| {
            let path = match &head.target {
                Target::Authority => "(authority)".into(),
                _ => String::from_utf8_lossy(head.path_and_query()).into_owned(),
            };
            (path, String::from_utf8_lossy(head.authority()).into_owned(), head.scheme)
        });
        let expect = expect.map(|(path, authority, scheme)| {
            (path.to_owned(), authority.unwrap_or("h").to_owned(), scheme)
        });
        assert_eq!(got, expect, "{line}");
    };
    let bad = Err(ParseError::Target);
    check("GET /", Ok(("/", None, Scheme::Http)));
    check("GET //x/y", Ok(("//x/y", None, Scheme::Http)));
    check("GET /\u{e9}", bad);
    check("GET http://%61/", bad);
    check("OPTIONS *", Ok(("*", None, Scheme::Http)));
    check("GET *", bad);
    check("GET a", bad);
    check("GET /a#b", bad);
    check("GET http://x/y?z", Ok(("/y?z", Some("x"), Scheme::Http)));
    check("GET HTTPS://x:8443/", Ok(("/", Some("x:8443"), Scheme::Https)));
    check("GET http://x", Ok(("/", Some("x"), Scheme::Http)));
    check("GET http://x?q", bad);
    check("OPTIONS http://x", Ok(("*", Some("x"), Scheme::Http)));
    check("GET http://[::1]:80/", Ok(("/", Some("[::1]:80"), Scheme::Http)));
    check("GET http:///", bad);
    check("GET http://u@x/", bad);
    check("GET http://x:y/", bad);
    check("GET ftp://x/", bad);
    check("CONNECT x:443", Ok(("(authority)", Some("x:443"), Scheme::Http)));
    check("CONNECT x", bad);
    check("CONNECT :443", bad);
    check("CONNECT /", bad);
    check("CONNECT http://x/", bad);
}

#[test]
fn body_lengths() {
    let check = |lines: &str, expect: Result<BodyLength, ParseError>| {
        assert_eq!(request(with_lines(lines)).map(|(_, body, _)| body), expect, "{lines:?}");
    };
    check("", Ok(BodyLength::None));
    check("Content-Length: 0\r\n", Ok(BodyLength::Exact(0)));
    check("Content-Length: 007\r\n", Ok(BodyLength::Exact(7)));
    check("Content-Length: 5\r\ncontent-length: 5\r\n", Ok(BodyLength::Exact(5)));
    check("Content-Length: 5\r\nContent-Length: 6\r\n", Err(ParseError::ContentLengthConflict));
    for bad in ["", "+5", "-5", "5 5", "5,5", "0x5", "5a", "\"5\"", "9223372036854775808", "1e3"] {
        check(&format!("Content-Length: {bad}\r\n"), Err(ParseError::ContentLength));
    }
    check("Content-Length: 9223372036854775807\r\n", Ok(BodyLength::Exact(i64::MAX as u64)));
    check("Transfer-Encoding: chunked\r\n", Ok(BodyLength::Chunked));
    check("Transfer-Encoding: CHUNKED\r\n", Ok(BodyLength::Chunked));
    check("Transfer-Encoding: gzip, chunked\r\n", Err(ParseError::UnknownCoding));
    let lines = "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n";
    check(lines, Err(ParseError::UnknownCoding));
}

#[test]
fn smuggling_is_refused() {
    let check = |lines: &str, expect: ParseError| {
        assert_eq!(request(with_lines(lines)).map(|_| ()), Err(expect), "{lines:?}");
    };
    // CL.TE and TE.CL.
    check("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", ParseError::LengthAndCoding);
    check("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", ParseError::LengthAndCoding);
    check("Content-Length: 6\r\nTransfer-Encoding: gzip\r\n", ParseError::LengthAndCoding);
    // TE.TE.
    let te = |value: &str| format!("Transfer-Encoding: {value}\r\n");
    check(&te("chunked, chunked"), ParseError::RepeatedChunked);
    check(&te("chunked\r\nTransfer-Encoding: chunked"), ParseError::RepeatedChunked);
    check(&te("chunked, identity"), ParseError::TransferEncoding);
    check(&te("chunked\r\nTransfer-Encoding: x"), ParseError::TransferEncoding);
    check(&te("chunked, gzip"), ParseError::TransferEncoding);
    check(&te("gzip"), ParseError::TransferEncoding);
    check(&te("xchunked"), ParseError::UnknownCoding);
    check(&te("identity"), ParseError::UnknownCoding);
    check(&te("x, chunked"), ParseError::UnknownCoding);
    check(&te(""), ParseError::TransferEncoding);
    check(&te(", chunked"), ParseError::TransferEncoding);
    check(&te("chunked,"), ParseError::TransferEncoding);
    check(&te("chunked;q=1"), ParseError::TransferEncoding);
    check(&te("\"chunked\""), ParseError::TransferEncoding);
    check(&te("chun\u{7f}ked"), ParseError::HeaderValue);
    check(&te("\u{b}chunked"), ParseError::HeaderValue);
    check("Transfer-Encoding : chunked\r\n", ParseError::HeaderName);
    check("Transfer\u{a0}Encoding: chunked\r\n", ParseError::HeaderName);
    check("Transfer-Encoding:\r\n chunked\r\n", ParseError::ObsFold);
    check("X: y\r\n\tfolded\r\n", ParseError::ObsFold);
    check(" X: y\r\n", ParseError::ObsFold);
    check("X: y\rTransfer-Encoding: chunked\r\n", ParseError::HeaderValue);
    check("X: y\nTransfer-Encoding: chunked\r\n", ParseError::LineEnding);
    check("X: a\0b\r\n", ParseError::HeaderValue);
    check("X: a\u{1}b\r\n", ParseError::HeaderValue);
    check(": y\r\n", ParseError::HeaderName);
    check("X\r\n", ParseError::HeaderName);
    check("X Y: z\r\n", ParseError::HeaderName);
    check("X\0: z\r\n", ParseError::HeaderName);
    check("host: a\r\n", ParseError::HostRepeated);
    check("Expect: 200-ok\r\n", ParseError::Expectation);
    check("Host : b\r\n", ParseError::HeaderName);
}

#[test]
fn hosts() {
    let check = |host: &str, good: bool| {
        let got = request(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).map(|_| ());
        assert_eq!(got, if good { Ok(()) } else { Err(ParseError::HostInvalid) }, "{host:?}");
    };
    for good in ["a", "a.b-c_d:80", "[::1]", "[::1]:8080", "1.2.3.4", "", "a:", "xn--1"] {
        check(good, true);
    }
    for bad in
        ["a b", "a,b", "a/b", "u@a", "a:b", "a:1:2", "a?b", "a\\b", "[a", "a:123456", "\u{e9}"]
    {
        check(bad, false);
    }
    let none = "GET / HTTP/1.1\r\n\r\n";
    assert_eq!(request(none).map(|_| ()), Err(ParseError::HostMissing));
    let (head, ..) = request("GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(head.authority, None);
    let (head, ..) = request("GET http://x/ HTTP/1.1\r\nHost: y\r\n\r\n").unwrap();
    assert_eq!(head.authority(), b"x");
}

#[test]
fn first_lines() {
    let check = |line: &str, expect: ParseError| {
        let got = request(format!("{line}\r\nHost: a\r\n\r\n")).map(|_| ());
        assert_eq!(got, Err(expect), "{line:?}");
    };
    check("GET /", ParseError::StartLine);
    check("GET  / HTTP/1.1", ParseError::StartLine);
    check("GET / HTTP/1.1 ", ParseError::LineEnding);
    check(" GET / HTTP/1.1", ParseError::StartLine);
    check("GET / HTTP/2.0", ParseError::Version);
    check("GET / HTTP/1.2", ParseError::Version);
    check("GET / HTTP/0.9", ParseError::Version);
    check("GET / http/1.1", ParseError::StartLine);
    check("GET / FOO", ParseError::StartLine);
    check("G{T / HTTP/1.1", ParseError::StartLine);
    check("GET /\0 HTTP/1.1", ParseError::StartLine);
    check("GET\t/ HTTP/1.1", ParseError::StartLine);
    check("\u{16}\u{3}\u{1}", ParseError::StartLine);
    let lf = "GET / HTTP/1.1\nHost: a\n\n";
    assert_eq!(request(lf).map(|_| ()), Err(ParseError::LineEnding));
    let last = "GET / HTTP/1.1\r\nHost: a\r\n\n";
    assert_eq!(request(last).map(|_| ()), Err(ParseError::LineEnding));
    assert_eq!(request("\nGET / HTTP/1.1\r\n\r\n").map(|_| ()), Err(ParseError::LineEnding));
    assert!(request("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
    let many = format!("{}GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(9));
    assert_eq!(request(many).map(|_| ()), Err(ParseError::LineEnding));
    assert_eq!(ParseError::Version.status(), 505);
}

#[test]
fn limits_have_their_statuses() {
    let limits = Limits {
        head_bytes_max: 200,
        request_line_bytes_max: 50,
        headers_max: 3,
        ..Limits::DEFAULT
    };
    let check = |text: String, expect: Result<(), u16>| {
        let got = request_with(&text, &limits).map(|_| ()).map_err(ParseError::status);
        assert_eq!(got, expect, "{text}");
    };
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Ok(()));
    check(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(40)), Err(414));
    check(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(200)), Err(431));
    check("GET / HTTP/1.1\r\nHost: a\r\nB: 1\r\nC: 2\r\nD: 3\r\n\r\n".into(), Err(431));
    let head =
        |fill: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(fill));
    let at_limit = 200 - head(0).len();
    check(head(at_limit), Ok(()));
    check(head(at_limit + 1), Err(431));
    let many: String = (0..300).map(|i| format!("X-{i}: v\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n");
    assert!(request_with(&many, &Limits { headers_max: 301, ..Limits::DEFAULT }).is_ok());
    assert!(request_with(&many, &Limits { headers_max: 300, ..Limits::DEFAULT }).is_err());
    // A head that is too long is refused before it ends.
    let mut endless = BytesMut::from(&b"GET /"[..]);
    endless.extend_from_slice(&[b'x'; 70_000]);
    let got = parse_request(&mut endless, &Limits::DEFAULT);
    assert_eq!(got.map(|_| ()), Err(ParseError::RequestLineTooLong));
}

#[test]
fn connections() {
    let check = |version: &str, lines: &str, keep_alive: bool, upgrade: Option<Upgrade>| {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        let (.., conn) = request(text).unwrap();
        assert_eq!((conn.keep_alive, conn.upgrade), (keep_alive, upgrade), "{version} {lines:?}");
    };
    let websocket = Some(Upgrade::WebSocket);
    check("1.1", "", true, None);
    check("1.1", "Connection: Close\r\n", false, None);
    check("1.1", "Connection: x, close\r\n", false, None);
    check("1.0", "", false, None);
    check("1.0", "Connection: Keep-Alive\r\n", true, None);
    check("1.0", "Connection: keep-alive, close\r\n", false, None);
    check("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", true, websocket);
    check("1.1", "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n", true, websocket);
    check("1.1", "Upgrade: websocket\r\n", true, None);
    check("1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n", false, None);
    check("1.1", "Connection: Upgrade\r\nUpgrade: x\r\n", true, Some(Upgrade::Other));
    check("1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n", true, None);
    check("1.1", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", true, None);
    let (.., conn) = request(with_lines("Expect: 100-Continue\r\n")).unwrap();
    assert!(conn.expect_continue);
}
