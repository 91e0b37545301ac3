use bytes::{Buf, Bytes};

use super::super::{OutBuf, write_request, write_response};
use super::{request, response_with};
use crate::h1::Limits;
use crate::message::{BodyLength, Method, RequestHead, ResponseHead, Version};

pub(super) fn drain(out: &mut OutBuf) -> Vec<u8> {
    let mut bytes = vec![0; out.len()];
    out.copy_to_slice(&mut bytes);
    bytes
}

fn written(head: &RequestHead, framing: BodyLength) -> String {
    let mut out = OutBuf::new();
    write_request(head, framing, &mut out);
    String::from_utf8_lossy(&drain(&mut out)).into_owned()
}

fn written_response(head: &ResponseHead, framing: BodyLength) -> String {
    let mut out = OutBuf::new();
    write_response(head, framing, &mut out);
    String::from_utf8_lossy(&drain(&mut out)).into_owned()
}

#[test]
fn an_untouched_request_leaves_byte_for_byte() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /x?y HTTP/1.0\r\nX-CustomID:1\r\nhOsT:\t a \r\nSOAPAction: \"x\"\r\nx-customid: 2\r\n\r\n",
        "PUT /x HTTP/1.1\r\ncontent-LENGTH: 5\r\nHost: a\r\nEmpty:\r\n\r\n",
        "PUT /x HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "FANCY / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let (head, body, _) = request(text).unwrap();
        assert_eq!(written(&head, body), text);
    }
}

#[test]
fn the_authority_decides_the_host_line() {
    let (mut head, body, _) = request("GET / HTTP/1.1\r\nA: 1\r\nhOST: a\r\nB: 2\r\n\r\n").unwrap();
    head.authority = Some(Bytes::from_static(b"b:80"));
    assert_eq!(written(&head, body), "GET / HTTP/1.1\r\nA: 1\r\nhOST: b:80\r\nB: 2\r\n\r\n");
    head.headers.remove("host");
    assert_eq!(written(&head, body), "GET / HTTP/1.1\r\nHost: b:80\r\nA: 1\r\nB: 2\r\n\r\n");
    let (head, body, _) = request("GET http://x/y HTTP/1.1\r\nHost: z\r\n\r\n").unwrap();
    assert_eq!(written(&head, body), "GET /y HTTP/1.1\r\nHost: x\r\n\r\n");
}

#[test]
fn edits_keep_their_place() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nX-Id: old\r\nB: 2\r\nGone: x\r\nC: 3\r\n\r\n";
    let (mut head, body, _) = request(text).unwrap();
    head.headers.set("x-id", "new");
    head.headers.remove("gone");
    head.headers.append("x-added", "y");
    let expect =
        "GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nX-Id: new\r\nB: 2\r\nC: 3\r\nx-added: y\r\n\r\n";
    assert_eq!(written(&head, body), expect);
}

#[test]
fn framing_lines_say_what_was_decided() {
    let head =
        |lines: &str| request(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")).unwrap().0;
    let check = |lines: &str, framing, expect: &str| {
        let expect = format!("POST / HTTP/1.1\r\nHost: a\r\n{expect}\r\n");
        assert_eq!(written(&head(lines), framing), expect, "{lines:?} {framing:?}");
    };
    check("Content-Length: 5\r\nX: 1\r\n", BodyLength::Exact(5), "Content-Length: 5\r\nX: 1\r\n");
    check(
        "Content-Length: 5\r\nX: 1\r\nContent-Length: 5\r\n",
        BodyLength::Exact(5),
        "Content-Length: 5\r\nX: 1\r\n",
    );
    check("Content-Length: 05\r\n", BodyLength::Exact(5), "Content-Length: 5\r\n");
    check("", BodyLength::Exact(0), "Content-Length: 0\r\n");
    check("Content-Length: 5\r\n", BodyLength::Chunked, "Transfer-Encoding: chunked\r\n");
    check("Content-Length: 5\r\n", BodyLength::None, "");
    check("Transfer-Encoding: chunked\r\n", BodyLength::Exact(5), "Content-Length: 5\r\n");
    check("Transfer-Encoding: chunked\r\n", BodyLength::None, "");
    check("", BodyLength::Streamed, "Transfer-Encoding: chunked\r\n");
}

#[test]
fn responses_keep_reason_and_lines() {
    let limits = Limits { tolerate_repeated_chunked: true, ..Limits::DEFAULT };
    let check = |text: &str, method: Method, expect: &str| {
        let (head, body, _) = response_with(text, &method, &limits).unwrap();
        assert_eq!(written_response(&head, body), expect);
    };
    let same = |text: &str, method: Method| check(text, method, text);
    same("HTTP/1.1 299 Fancy\r\nServer: x\r\nContent-Length: 3\r\n\r\n", Method::Get);
    same(
        "HTTP/1.1 200 \r\nSet-Cookie: a\r\nX: y\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n",
        Method::Get,
    );
    same("HTTP/1.0 200 OK\r\nX: y\r\n\r\n", Method::Get);
    same("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Head);
    same("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Method::Head);
    same("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", Method::Get);
    check(
        "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
        Method::Get,
        "HTTP/1.1 204 No Content\r\n\r\n",
    );
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        Method::Get,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    check("HTTP/1.1 200\r\nX: y\r\n\r\n", Method::Get, "HTTP/1.1 200 \r\nX: y\r\n\r\n");
}

#[test]
fn heads_made_here_get_the_registered_reason() {
    let mut head = ResponseHead::new(503);
    assert_eq!(
        written_response(&head, BodyLength::Exact(0)),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    );
    head.version = Version::H10;
    assert_eq!(
        written_response(&head, BodyLength::UntilClose),
        "HTTP/1.0 503 Service Unavailable\r\n\r\n"
    );
}
