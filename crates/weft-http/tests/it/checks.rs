//! What must hold for any bytes. Shared with `fuzz/`, so it may use only `weft-http` and `bytes`.

use bytes::{Buf, BytesMut};
use weft_http::h1::{
    BodyDecoder, BodyEncoder, Connection, Decoded, DecodedSlice, Limits, OutBuf, ParseError,
    Parsed, parse_request, parse_response, write_request, write_response,
};
use weft_http::{
    BodyLength, Frame, HeaderList, Method, RequestHead, ResponseHead, Target, Version,
};

/// Small, so that inputs of a few kilobytes reach every limit.
const LIMITS: Limits = Limits {
    head_bytes_max: 700,
    request_line_bytes_max: 300,
    headers_max: 12,
    chunk_line_bytes_max: 64,
    chunk_extension_bytes_max: 100,
    trailer_bytes_max: 200,
    trailers_max: 6,
    tolerate_repeated_chunked: false,
};

/// What a reader of a connection saw.
#[derive(Debug, PartialEq)]
enum Event {
    Request(RequestHead, BodyLength, Connection),
    Response(ResponseHead, BodyLength, Connection),
    /// Content that ended well, with its trailers.
    Body(Vec<u8>, Option<HeaderList>),
    /// Content that had not ended when the bytes did.
    OpenBody(Vec<u8>),
    Refused(ParseError),
}

/// A stream of pipelined requests.
pub fn requests(data: &[u8]) {
    let whole = read(data, &mut |_| data.len(), &mut next_request);
    let bytewise = read(data, &mut |_| 1, &mut next_request);
    assert_eq!(whole, bytewise, "one byte at a time");
    let ragged = read(data, &mut |at| 1 + (at * 7919) % 23, &mut next_request);
    assert_eq!(whole, ragged, "in pieces");
    for event in &whole {
        if let Event::Request(head, body, conn) = event {
            check_lines(&head.headers);
            rewrite_request(head, *body, conn);
        }
    }
}

/// A stream of responses; the first byte picks the request's method and the tolerance.
pub fn responses(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let method = match choice & 3 {
        0 | 1 => Method::Get,
        2 => Method::Head,
        _ => Method::Connect,
    };
    let limits = Limits { tolerate_repeated_chunked: choice & 4 != 0, ..LIMITS };
    let mut next = |buf: &mut BytesMut| {
        Ok(match parse_response(buf, &limits, &method)? {
            Parsed::Partial => None,
            Parsed::Complete((head, body, conn)) => Some((Event::Response(head, body, conn), body)),
        })
    };
    let whole = read(data, &mut |_| data.len(), &mut next);
    let bytewise = read(data, &mut |_| 1, &mut next);
    assert_eq!(whole, bytewise, "one byte at a time");
    for event in &whole {
        if let Event::Response(head, body, conn) = event {
            check_lines(&head.headers);
            rewrite_response(head, *body, conn, &method);
        }
    }
}

/// A body alone; the first byte picks its length.
pub fn body(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let length = match choice & 3 {
        0 | 1 => BodyLength::Chunked,
        2 => BodyLength::Exact(u64::from(choice >> 2)),
        _ => BodyLength::UntilClose,
    };
    let whole = read_body_once(length, data, data.len());
    assert_eq!(whole, read_body_once(length, data, 1), "one byte at a time");
    assert_eq!(whole, read_body_once(length, data, 3), "three bytes at a time");
    assert_eq!(whole, read_body_slices(length, data), "borrowed");
    if let Event::Body(content, trailers) = &whole {
        check_reframing(content, trailers.as_ref());
    }
}

/// A head put together from arbitrary text must come back as itself: nothing put into a list or a
/// target can add a line or a message.
pub fn roundtrip(data: &[u8]) {
    let mut pieces = data.split(|&byte| byte == 0xff);
    let mut next = || pieces.next().unwrap_or_default();
    let (choice, body) = (next().first().copied().unwrap_or_default(), next());
    let mut headers = HeaderList::new();
    for _ in 0..choice >> 4 {
        headers.append(next(), next());
    }
    for _ in 0..choice & 3 {
        headers.set(next(), next());
    }
    for _ in 0..(choice >> 2) & 1 {
        headers.remove(next());
    }
    headers.retain(|header| !header.name.is_empty());
    let framing = match choice & 3 {
        0 => BodyLength::None,
        1 => BodyLength::Exact(body.len() as u64),
        _ => BodyLength::Chunked,
    };
    let head = ResponseHead { headers: headers.clone(), ..ResponseHead::new(200) };
    let mut out = OutBuf::new();
    write_response(&head, framing, &mut out);
    let mut encoder = BodyEncoder::new(framing);
    if framing != BodyLength::None {
        encoder.encode_slice(body, &mut out).expect("the length is right");
    }
    encoder.finish(&mut out).expect("the length is right");
    let wire = drain(&mut out);
    let method = if framing == BodyLength::None { Method::Head } else { Method::Get };
    let mut buf = BytesMut::from(&wire[..]);
    let limits = Limits { head_bytes_max: 1 << 20, headers_max: 128, ..Limits::DEFAULT };
    match parse_response(&mut buf, &limits, &method) {
        Ok(Parsed::Complete((back, length, _))) => {
            assert_eq!(without_framing(&back.headers), without_framing(&headers));
            assert_eq!(length, framing);
            let expect = if framing == BodyLength::None { &b""[..] } else { body };
            match read_body_once(length, &buf, buf.len()) {
                Event::Body(content, None) => assert_eq!(content, expect),
                other => panic!("{other:?}"),
            }
        }
        // Only an own value that is not one of a line can be the reason, and only with `None`,
        // where framing lines are left as they are.
        Err(
            ParseError::ContentLength
            | ParseError::ContentLengthConflict
            | ParseError::TransferEncoding
            | ParseError::UnknownCoding
            | ParseError::RepeatedChunked
            | ParseError::LengthAndCoding
            | ParseError::HeadTooLarge,
        ) => {}
        other => panic!("{:?}: {other:?}", wire.escape_ascii().to_string()),
    }
}

fn next_request(buf: &mut BytesMut) -> Result<Option<(Event, BodyLength)>, ParseError> {
    Ok(match parse_request(buf, &LIMITS)? {
        Parsed::Partial => None,
        Parsed::Complete((head, body, conn)) => Some((Event::Request(head, body, conn), body)),
    })
}

type NextHead<'a> =
    &'a mut dyn FnMut(&mut BytesMut) -> Result<Option<(Event, BodyLength)>, ParseError>;

/// Reads a connection that delivers `step(at)` bytes at a time.
fn read(data: &[u8], step: &mut dyn FnMut(usize) -> usize, next: NextHead<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut buf = BytesMut::new();
    let mut body: Option<(BodyDecoder, Vec<u8>, Option<HeaderList>)> = None;
    let mut at = 0;
    loop {
        let took = (|| -> Result<bool, ParseError> {
            match body.take() {
                None => match next(&mut buf)? {
                    None => Ok(false),
                    Some((event, length)) => {
                        events.push(event);
                        body = Some((BodyDecoder::with_limits(length, &LIMITS), Vec::new(), None));
                        Ok(true)
                    }
                },
                Some((mut decoder, mut content, mut trailers)) => match decoder.decode(&mut buf)? {
                    Decoded::End => {
                        events.push(Event::Body(content, trailers));
                        Ok(true)
                    }
                    decoded => {
                        let more = decoded != Decoded::NeedMore;
                        match decoded {
                            Decoded::Frame(Frame::Data(data)) => content.extend_from_slice(&data),
                            Decoded::Frame(Frame::Trailers(list)) => trailers = Some(list),
                            Decoded::NeedMore | Decoded::End => {}
                        }
                        body = Some((decoder, content, trailers));
                        Ok(more)
                    }
                },
            }
        })();
        match took {
            Ok(true) => {}
            Err(error) => {
                events.push(Event::Refused(error));
                return events;
            }
            Ok(false) if at == data.len() => {
                if let Some((_, content, _)) = body {
                    events.push(Event::OpenBody(content));
                }
                return events;
            }
            Ok(false) => {
                let end = data.len().min(at + step(at).max(1));
                buf.extend_from_slice(&data[at..end]);
                at = end;
            }
        }
    }
}

fn read_body_once(length: BodyLength, data: &[u8], step: usize) -> Event {
    let mut given = false;
    let mut events = read(data, &mut |_| step, &mut |_| {
        Ok((!std::mem::replace(&mut given, true)).then(|| (Event::OpenBody(Vec::new()), length)))
    });
    events.remove(0);
    events.swap_remove(0)
}

fn read_body_slices(length: BodyLength, data: &[u8]) -> Event {
    let mut decoder = BodyDecoder::with_limits(length, &LIMITS);
    let (mut rest, mut content, mut trailers) = (data, Vec::new(), None);
    loop {
        let (used, what) = match decoder.decode_slice(rest) {
            Ok(step) => step,
            Err(error) => return Event::Refused(error),
        };
        match what {
            DecodedSlice::Data(data) => content.extend_from_slice(data),
            DecodedSlice::Trailers(list) => trailers = Some(list),
            DecodedSlice::NeedMore => return Event::OpenBody(content),
            DecodedSlice::End => return Event::Body(content, trailers),
        }
        rest = &rest[used..];
    }
}

/// What was decoded must come out the same through our own framing.
fn check_reframing(content: &[u8], trailers: Option<&HeaderList>) {
    let mut out = OutBuf::new();
    let mut encoder = BodyEncoder::new(BodyLength::Chunked);
    for piece in content.chunks(100) {
        encoder.encode_slice(piece, &mut out).expect("chunked takes any length");
    }
    if let Some(trailers) = trailers {
        let frame = Frame::Trailers(trailers.clone());
        encoder.encode(frame, &mut out).expect("chunked takes trailers");
    }
    encoder.finish(&mut out).expect("chunked may end anywhere");
    let wire = drain(&mut out);
    let trailers = trailers.filter(|list| !list.is_empty()).cloned();
    match read_body_once(BodyLength::Chunked, &wire, wire.len()) {
        Event::Body(back, back_trailers) => {
            assert_eq!(back, content);
            assert_eq!(back_trailers.filter(|list| !list.is_empty()), trailers);
        }
        other => panic!("{other:?}"),
    }
}

/// Lines that passed can be neither split nor hidden.
fn check_lines(headers: &HeaderList) {
    assert!(headers.len() <= LIMITS.headers_max);
    for header in headers {
        assert!(!header.name.is_empty() && header.name.iter().all(u8::is_ascii_graphic));
        assert!(!header.value.iter().any(|&byte| matches!(byte, b'\r' | b'\n' | 0)));
        assert!(headers.get_all(header.name).any(|value| value == header.value));
        assert_eq!(headers.get(header.name), headers.get_all(header.name).next());
    }
}

/// Written again, a request reads as the same request.
fn rewrite_request(head: &RequestHead, body: BodyLength, conn: &Connection) {
    let mut out = OutBuf::new();
    write_request(head, body, &mut out);
    let mut buf = BytesMut::from(&drain(&mut out)[..]);
    let (back, back_body, back_conn) = match parse_request(&mut buf, &Limits::DEFAULT) {
        Ok(Parsed::Complete(parsed)) => parsed,
        other => panic!("{head:?}: {other:?}"),
    };
    assert!(buf.is_empty());
    assert_eq!((back_body, &back_conn), (body, conn));
    assert_eq!(back.method, head.method);
    assert_eq!(back.target, head.target);
    assert_eq!(back.version, head.version);
    // The scheme and authority of an absolute target are written as `Host`.
    if head.version == Version::H11 || head.target == Target::Authority {
        assert_eq!(back.authority, head.authority);
    }
    let (mut lines, mut back_lines) =
        (without_framing(&head.headers), without_framing(&back.headers));
    lines.remove("host");
    back_lines.remove("host");
    assert_eq!(lines, back_lines);
}

/// Written again, a response reads as the same response.
fn rewrite_response(head: &ResponseHead, body: BodyLength, conn: &Connection, method: &Method) {
    let mut out = OutBuf::new();
    write_response(head, body, &mut out);
    let mut buf = BytesMut::from(&drain(&mut out)[..]);
    let limits = Limits { tolerate_repeated_chunked: true, ..Limits::DEFAULT };
    let (back, back_body, back_conn) = match parse_response(&mut buf, &limits, method) {
        Ok(Parsed::Complete(parsed)) => parsed,
        other => panic!("{head:?}: {other:?}"),
    };
    assert_eq!((back_body, &back_conn), (body, conn));
    assert_eq!((back.status, &back.reason), (head.status, &head.reason));
    assert_eq!(without_framing(&head.headers), without_framing(&back.headers));
}

fn without_framing(headers: &HeaderList) -> HeaderList {
    let mut headers = headers.clone();
    headers.remove("content-length");
    headers.remove("transfer-encoding");
    headers
}

fn drain(out: &mut OutBuf) -> Vec<u8> {
    let mut bytes = vec![0; out.len()];
    out.copy_to_slice(&mut bytes);
    bytes
}
