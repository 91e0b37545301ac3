//! The same bytes to this codec and to hyper's. Whatever is accepted here must be accepted there,
//! as the same messages with the same bodies: a disagreement in that direction is a smuggling hole.
//! The other direction is where this codec is stricter on purpose; `STRICTER` names every reason.

use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_http::Frame;
use weft_http::h1::{BodyDecoder, Decoded, Limits, ParseError, Parsed, parse_request};

use crate::properties::FRAGMENTS;

/// Refused here, accepted by hyper 1.12, each with what hyper does.
const STRICTER: &[ParseError] = &[
    // Takes any token for a method, and bytes beyond ASCII and a query without a path in targets.
    ParseError::Method,
    ParseError::Target,
    // Takes LF for CR LF in heads, and any number of empty lines before them.
    ParseError::LineEnding,
    // Leaves Host to the application.
    ParseError::HostMissing,
    ParseError::HostRepeated,
    ParseError::HostInvalid,
    // Drops Content-Length and closes afterwards.
    ParseError::LengthAndCoding,
    // Takes `x, chunked` with any x, and `chunked, chunked` over two lines.
    ParseError::UnknownCoding,
    ParseError::TransferEncoding,
    ParseError::RepeatedChunked,
    // Takes `+5` no more, but lengths up to 2^64 - 2.
    ParseError::ContentLength,
    // Takes blanks after a chunk size, any number of leading zeros, and sizes up to 2^64 - 1.
    ParseError::ChunkSize,
    ParseError::ChunkExtension,
    ParseError::ChunkLineTooLong,
    // Ignores Expect values it does not know.
    ParseError::Expectation,
    // Takes targets that are authorities or asterisks with any method, and cuts fragments off.
    ParseError::Target,
];

/// One request: method and body, or why the body broke off.
type Seen = (String, Result<Vec<u8>, Option<ParseError>>);

/// The requests seen, and what ended the reading before the end of the bytes.
fn ours(wire: &[u8]) -> (Vec<Seen>, Option<ParseError>) {
    let (mut seen, mut buf) = (Vec::new(), BytesMut::from(wire));
    loop {
        let (head, length, conn) = match parse_request(&mut buf, &Limits::DEFAULT) {
            Ok(Parsed::Complete(parsed)) => parsed,
            Ok(Parsed::Partial) => return (seen, None),
            Err(error) => return (seen, Some(error)),
        };
        let method = String::from_utf8_lossy(head.method.as_bytes()).into_owned();
        let (mut decoder, mut content) = (BodyDecoder::new(length), Vec::new());
        let body = loop {
            match decoder.decode(&mut buf) {
                Ok(Decoded::Frame(Frame::Data(data))) => content.extend_from_slice(&data),
                Ok(Decoded::Frame(Frame::Trailers(_))) => {}
                Ok(Decoded::End) => break Ok(content),
                Ok(Decoded::NeedMore) => break Err(None),
                Err(error) => break Err(Some(error)),
            }
        };
        let last = body.is_err() || !conn.keep_alive;
        seen.push((method, body));
        if last {
            return (seen, None);
        }
    }
}

async fn hypers(wire: &[u8]) -> Vec<(String, Result<Vec<u8>, ()>)> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let method = request.method().to_string();
            let body = request.into_body().collect().await;
            let body = body.map(|body| body.to_bytes().to_vec()).map_err(|_| ());
            seen.lock().unwrap().push((method, body));
            Ok::<_, std::convert::Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let io = hyper_util::rt::TokioIo::new(server);
    let serve =
        hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(io, service);
    let drive = async {
        client.write_all(wire).await.unwrap();
        client.shutdown().await.unwrap();
        let mut replies = Vec::new();
        // The server may close with an error; only what it saw counts.
        let _ = client.read_to_end(&mut replies).await;
    };
    let (_, ()) = tokio::join!(
        async {
            let _ = serve.await;
        },
        drive
    );
    seen.lock().unwrap().clone()
}

fn compare(wire: &[u8]) {
    let (ours, end) = ours(wire);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let theirs = runtime.block_on(hypers(wire));
    let context = || format!("{}\nours {ours:?} {end:?}\nhyper {theirs:?}", wire.escape_ascii());
    for (index, (method, body)) in ours.iter().enumerate() {
        let Some((their_method, their_body)) = theirs.get(index) else {
            panic!("hyper refused request {index}: {}", context());
        };
        assert_eq!(method, their_method, "{}", context());
        match body {
            Ok(body) => assert_eq!(Ok(body), their_body.as_ref(), "{}", context()),
            Err(None) => assert_eq!(their_body, &Err(()), "{}", context()),
            Err(Some(reason)) => {
                assert!(their_body.is_err() || STRICTER.contains(reason), "{}", context());
                return;
            }
        }
    }
    if theirs.len() > ours.len() {
        let stricter = end.is_some_and(|reason| STRICTER.contains(&reason));
        assert!(stricter, "hyper accepted more: {}", context());
    }
}

#[test]
fn chosen_messages() {
    let with_lines = |lines: &str, body: &str| {
        compare(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n{body}").as_bytes());
    };
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    with_lines("", next);
    with_lines("Content-Length: 3\r\n", &format!("abc{next}"));
    with_lines("Content-Length: 3\r\nContent-Length: 3\r\n", &format!("abc{next}"));
    with_lines("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd");
    with_lines("Content-Length: 9\r\n", "abc");
    for coding in ["chunked", "Chunked", "gzip, chunked", "chunked, gzip", "xchunked", "gzip"] {
        let lines = format!("Transfer-Encoding: {coding}\r\n");
        for body in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "3;x=\"y\"\r\nabc\r\n0\r\nA: b\r\n\r\n",
            "3 \r\nabc\r\n0\r\n\r\n",
            "3\nabc\n0\n\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "3;\nx\r\nabc\r\n0\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "-1\r\n",
            "ffffffffffffffff\r\nabc",
            "3\r\nab",
        ] {
            with_lines(&lines, &format!("{body}{next}"));
        }
    }
    with_lines("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nabc");
    with_lines("Connection: close\r\n", next);
    with_lines("X: y\r\n z\r\n", next);
    with_lines("X : y\r\n", next);
}

/// Sound messages, so that generated streams get past their first head.
const SOUND: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "PUT /x HTTP/1.1\r\nHost: a\r\nX: y\r\n",
    "HEAD /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn generated_messages(
        pieces in vec(
            prop_oneof![
                proptest::sample::select(FRAGMENTS),
                proptest::sample::select(SOUND),
            ],
            0..8,
        ),
        cut in any::<proptest::sample::Index>(),
        damage in proptest::option::weighted(0.3, any::<u8>()),
    ) {
        // hyper refuses these in a target; Envoy, haproxy and nginx pass them on, and so do we.
        prop_assume!(!matches!(damage, Some(b'<' | b'>' | b'`')));
        // hyper treats what follows an upgrade or CONNECT as opaque, which is not compared.
        let wire = pieces.concat();
        prop_assume!(!wire.contains("pgrade") && !wire.contains("CONNECT"));
        let mut wire = wire.into_bytes();
        if let (Some(byte), false) = (damage, wire.is_empty()) {
            let at = cut.index(wire.len());
            wire[at] = byte;
        }
        compare(&wire);
    }
}
