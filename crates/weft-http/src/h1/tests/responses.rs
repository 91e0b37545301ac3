use super::super::{Limits, ParseError, Upgrade};
use super::{response, response_with};
use crate::message::{BodyLength, Method, Version};

#[test]
fn body_lengths() {
    let check = |text: &str, method: Method, expect: Result<(BodyLength, bool), ParseError>| {
        let text = format!("HTTP/{text}\r\n\r\n");
        let got = response_with(&text, &method, &Limits::DEFAULT);
        let got = got.map(|(_, body, conn)| (body, conn.keep_alive));
        assert_eq!(got, expect, "{text:?}");
    };
    use BodyLength::{Chunked, Exact, None, UntilClose};
    check("1.1 200 OK\r\nContent-Length: 5", Method::Get, Ok((Exact(5), true)));
    check("1.1 200 OK\r\nContent-Length: 5, 5", Method::Get, Ok((Exact(5), true)));
    check(
        "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
        Method::Get,
        Ok((Exact(5), true)),
    );
    let conflict = Err(ParseError::ContentLengthConflict);
    check("1.1 200 OK\r\nContent-Length: 5, 6", Method::Get, conflict);
    check("1.1 200 OK", Method::Get, Ok((UntilClose, false)));
    check("1.1 200 OK\r\nTransfer-Encoding: chunked", Method::Get, Ok((Chunked, true)));
    check("1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", Method::Get, Ok((Chunked, true)));
    let te = Err(ParseError::TransferEncoding);
    check("1.1 200 OK\r\nTransfer-Encoding: gzip", Method::Get, te);
    let repeated = Err(ParseError::RepeatedChunked);
    check("1.1 200 OK\r\nTransfer-Encoding: chunked, chunked", Method::Get, repeated);
    let both = "1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5";
    check(both, Method::Get, Err(ParseError::LengthAndCoding));
    check(both, Method::Head, Err(ParseError::LengthAndCoding));
    check("1.1 200 OK\r\nContent-Length: 5", Method::Head, Ok((None, true)));
    check("1.1 204 No Content", Method::Get, Ok((None, true)));
    check("1.1 304 Not Modified\r\nContent-Length: 5", Method::Get, Ok((None, true)));
    check("1.1 100 Continue", Method::Get, Ok((None, true)));
    check("1.1 200 OK\r\nContent-Length: 5", Method::Connect, Ok((None, true)));
    check("1.1 407 No\r\nContent-Length: 5", Method::Connect, Ok((Exact(5), true)));
    check("1.0 200 OK\r\nContent-Length: 5", Method::Get, Ok((Exact(5), false)));
    check(
        "1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5",
        Method::Get,
        Ok((Exact(5), true)),
    );
    check("1.0 200 OK\r\nConnection: keep-alive", Method::Get, Ok((UntilClose, false)));
    let old = Err(ParseError::CodingInHttp10);
    check("1.0 200 OK\r\nTransfer-Encoding: chunked", Method::Get, old);
}

#[test]
fn repeated_chunked_is_read_once_where_told_so() {
    let limits = Limits { tolerate_repeated_chunked: true, ..Limits::DEFAULT };
    let twice =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (_, body, _) = response_with(twice, &Method::Get, &limits).unwrap();
    assert_eq!(body, BodyLength::Chunked);
    let other = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n";
    assert!(response_with(other, &Method::Get, &limits).is_err());
}

#[test]
fn status_lines() {
    let check = |line: &str, expect: Result<(u16, &str), ParseError>| {
        let got = response(format!("{line}\r\nContent-Length: 0\r\n\r\n"));
        let got = got.map(|(head, ..)| {
            (head.status, String::from_utf8_lossy(&head.reason.unwrap()).into_owned())
        });
        let expect = expect.map(|(status, reason)| (status, reason.to_owned()));
        assert_eq!(got, expect, "{line:?}");
    };
    check("HTTP/1.1 200 OK", Ok((200, "OK")));
    check("HTTP/1.1 200 ", Ok((200, "")));
    check("HTTP/1.1 200", Ok((200, "")));
    check("HTTP/1.1 299 D\u{e9}j\u{e0} vu ", Ok((299, "D\u{e9}j\u{e0} vu ")));
    check("HTTP/1.1 999 x", Ok((999, "x")));
    check("HTTP/1.1 099 x", Err(ParseError::Status));
    check("HTTP/1.1 20 x", Err(ParseError::Status));
    check("HTTP/1.1 2000 x", Err(ParseError::Status));
    check("HTTP/1.1 200 a\0b", Err(ParseError::Status));
    check("HTTP/1.1  200 x", Err(ParseError::Status));
    check("HTTP/2 200 x", Err(ParseError::Version));
    check("ICY 200 OK", Err(ParseError::StartLine));
    check("\r\nHTTP/1.1 200 OK", Err(ParseError::StartLine));
    let lf = "HTTP/1.1 200 OK\nContent-Length: 0\n\n";
    assert_eq!(response(lf).map(|_| ()), Err(ParseError::LineEnding));
}

#[test]
fn switching_protocols() {
    let text =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (head, body, conn) = response(text).unwrap();
    assert_eq!((head.version, body), (Version::H11, BodyLength::None));
    assert_eq!(conn.upgrade, Some(Upgrade::WebSocket));
    let offered = text.replace("101", "426");
    assert_eq!(response(offered).unwrap().2.upgrade, None);
}
