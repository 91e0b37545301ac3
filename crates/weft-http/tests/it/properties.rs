//! Generated inputs: sound messages that must survive byte for byte, damaged ones and noise.

use bytes::{Buf, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use weft_http::Method;
use weft_http::h1::{Limits, OutBuf, Parsed, parse_request, parse_response};
use weft_http::h1::{write_request, write_response};

use crate::checks;

fn value() -> impl Strategy<Value = String> {
    "[ \t]{0,2}([!-~\u{80}-\u{ff}]([ -~\u{80}-\u{ff}]{0,20}[!-~\u{80}-\u{ff}])?)?[ \t]{0,2}"
}

/// A line that says nothing about framing, host or connection.
fn line() -> impl Strategy<Value = String> {
    ("[XYxy]-[A-Za-z0-9!#$%&'*+.^_`|~-]{0,12}", value())
        .prop_map(|(name, value)| format!("{name}:{value}\r\n"))
}

fn framing() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        (0_u64..10_000).prop_map(|length| format!("content-Length: {length}\r\n")),
        Just("TRANSFER-encoding: chunked\r\n".to_owned()),
        Just("Transfer-Encoding:CHUNKED \r\n".to_owned()),
    ]
}

fn sound_request() -> impl Strategy<Value = String> {
    let method = "[A-Z_-]{1,10}".prop_filter("own form", |name| name != "CONNECT");
    (method, "/[!-\"$-~]{0,30}", vec(line(), 0..6), framing(), vec(line(), 0..6)).prop_map(
        |(method, path, before, framing, after)| {
            let (before, after) = (before.concat(), after.concat());
            format!("{method} {path} HTTP/1.1\r\n{before}hOst: a.b:80\r\n{framing}{after}\r\n")
        },
    )
}

fn sound_response() -> impl Strategy<Value = String> {
    (200_u16..204, "[ -~]{0,12}", vec(line(), 0..6), framing(), vec(line(), 0..6)).prop_map(
        |(status, reason, before, framing, after)| {
            let (before, after) = (before.concat(), after.concat());
            format!("HTTP/1.1 {status} {reason}\r\n{before}{framing}{after}\r\n")
        },
    )
}

fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let fragment = proptest::sample::select(FRAGMENTS).prop_map(|text| text.as_bytes().to_vec());
    let piece = prop_oneof![8 => fragment, 1 => vec(any::<u8>(), 1..4)];
    vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

/// Text that a generator of bytes would need long to hit on.
pub(crate) const FRAGMENTS: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
    "GET http://a:1/?q HTTP/1.0\r\n",
    "CONNECT a:1 HTTP/1.1\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 304 \r\n",
    "Host: a\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 3, 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip\r\n",
    "Connection: close, x\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Expect: 100-continue\r\n",
    "X: y\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    " ",
    "\0",
    "3\r\nabc\r\n",
    "1;e=f\r\nx\r\n",
    "0\r\n",
    "0\r\n\r\n",
    "abc",
    "ffffffffffffffff\r\n",
];

fn drain(mut out: OutBuf) -> Vec<u8> {
    let mut bytes = vec![0; out.len()];
    out.copy_to_slice(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_sound_request_leaves_byte_for_byte(text in sound_request()) {
        let mut buf = BytesMut::from(text.as_str());
        let Ok(Parsed::Complete((head, body, _))) = parse_request(&mut buf, &Limits::DEFAULT)
        else {
            return Err(TestCaseError::fail("refused"));
        };
        let mut out = OutBuf::new();
        write_request(&head, body, &mut out);
        prop_assert_eq!(drain(out), text.as_bytes());
    }

    #[test]
    fn a_sound_response_leaves_byte_for_byte(text in sound_response()) {
        let mut buf = BytesMut::from(text.as_str());
        let Ok(Parsed::Complete((head, body, _))) =
            parse_response(&mut buf, &Limits::DEFAULT, &Method::Get)
        else {
            return Err(TestCaseError::fail("refused"));
        };
        let mut out = OutBuf::new();
        write_response(&head, body, &mut out);
        prop_assert_eq!(drain(out), text.as_bytes());
    }

    #[test]
    fn requests_read_the_same_however_they_arrive(data in damaged()) {
        checks::requests(&data);
    }

    #[test]
    fn responses_read_the_same_however_they_arrive(choice in any::<u8>(), data in damaged()) {
        checks::responses(&[&[choice], &data[..]].concat());
    }

    #[test]
    fn bodies_read_the_same_however_they_arrive(choice in any::<u8>(), data in damaged()) {
        checks::body(&[&[choice], &data[..]].concat());
    }

    #[test]
    fn noise_never_panics(data in vec(any::<u8>(), 0..300)) {
        checks::requests(&data);
        checks::responses(&data);
        checks::body(&data);
        checks::roundtrip(&data);
    }
}
