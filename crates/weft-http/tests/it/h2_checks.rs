//! What must hold of HTTP/2's frames and field blocks for any bytes. Shared with `fuzz/`, so it may
//! use only `weft-http`, `bytes` and `loona-hpack`, the other implementation.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use weft_http::h2::conn::{Budgets, Config, Connection, Failure, Role, StreamKey};
use weft_http::h2::hpack::{
    Decoder, Encoder, FieldSink, HeadError, HeadLimits, HpackError, Indexing,
};
use weft_http::h2::{FrameHead, FrameType, Setting, frame, parse_settings, write};
use weft_http::{Frame, HeaderList, Method, RequestHead, ResponseHead, Scheme, Target, Version};

/// Small, so that inputs of a few kilobytes reach them.
const LIMITS: HeadLimits = HeadLimits { list_bytes_max: 2000, fields_max: 30 };
const TABLE_SIZES: [usize; 4] = [4096, 0, 100, 300];

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A run of frames: whatever a reader accepts lies within the payload, and means the same once
/// written again.
pub fn frames(mut data: &[u8]) {
    while let Some(head) = FrameHead::peek(data) {
        let mut again = head.to_bytes();
        again[5] |= data[5] & 0x80;
        assert_eq!(again, data[..frame::HEAD_LEN]);
        let len = head.frame_len().min(data.len());
        let (payload, rest) = (&data[frame::HEAD_LEN..len], &data[len..]);
        let head = FrameHead { length: payload.len() as u32, ..head };
        if head.check(1 << 14).is_ok() {
            payload_of(&head, payload);
        }
        data = rest;
    }
}

fn payload_of(head: &FrameHead, payload: &[u8]) {
    let mut out = Vec::new();
    match head.kind {
        FrameType::Data => {
            if let Ok(range) = frame::data_content(head, payload) {
                assert!(payload.get(range).is_some());
            }
        }
        FrameType::Headers => {
            let Ok(headers) = frame::headers_payload(head, payload) else { return };
            let block = &payload[headers.fragment];
            let frame_max = 1 + block.len() as u32 / 3;
            write::headers(&mut out, head.stream, head.end_stream(), frame_max, |out| {
                out.extend_from_slice(block);
            });
            assert_eq!(joined_block(&out, head, frame_max), block);
        }
        FrameType::Priority => drop(frame::check_priority(head, payload)),
        FrameType::RstStream => {
            let code = frame::rst_stream(payload).expect("the size is right");
            write::rst_stream(&mut out, head.stream, code);
            assert_eq!(&out[frame::HEAD_LEN..], payload);
        }
        FrameType::Settings => {
            let all: Result<Vec<Setting>, _> = parse_settings(payload).collect();
            if let Ok(all) = all {
                write::settings(&mut out, all.into_iter());
                assert_eq!(&out[frame::HEAD_LEN..], payload);
            }
        }
        FrameType::Ping => {
            let opaque = frame::ping(payload).expect("the size is right");
            write::ping(&mut out, head.is_ack(), opaque);
            assert_eq!(&out[frame::HEAD_LEN..], payload);
        }
        FrameType::GoAway => {
            let goaway = frame::goaway(payload).expect("the size is right");
            write::goaway(&mut out, goaway.last_stream, goaway.code, &payload[8..]);
            assert_eq!(frame::goaway(&out[frame::HEAD_LEN..]), Ok(goaway));
        }
        FrameType::WindowUpdate => {
            if let Ok(increment) = frame::window_update(head, payload) {
                write::window_update(&mut out, head.stream, increment);
                assert_eq!(frame::window_update(head, &out[frame::HEAD_LEN..]), Ok(increment));
            }
        }
        FrameType::PushPromise | FrameType::Continuation | FrameType::Unknown(_) => {}
    }
}

/// The block of a HEADERS frame and its CONTINUATION frames.
fn joined_block(mut bytes: &[u8], head: &FrameHead, frame_max: u32) -> Vec<u8> {
    let mut block = Vec::new();
    loop {
        let piece = FrameHead::peek(bytes).expect("a whole frame");
        assert_eq!(piece.check(frame_max), Ok(()));
        assert_eq!(piece.stream, head.stream);
        assert_eq!(piece.kind == FrameType::Headers, block.is_empty());
        block.extend_from_slice(&bytes[frame::HEAD_LEN..piece.frame_len()]);
        bytes = &bytes[piece.frame_len()..];
        if piece.end_headers() {
            assert!(bytes.is_empty());
            return block;
        }
    }
}

/// Blocks, each after its length, as they could come over one connection: the other implementation
/// accepts the same ones with the same fields, and what we read we can write.
///
/// It differs, rightly or not, in two points: it takes table size updates within a block (RFC 7541
/// §4.2: only at the start), and it refuses blocks of nothing else.
pub fn hpack_decode(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let table_size = TABLE_SIZES[usize::from(choice) % TABLE_SIZES.len()];
    let (mut ours, mut theirs) = (Decoder::new(table_size), loona_hpack::Decoder::new());
    theirs.set_max_table_size(table_size);
    theirs.set_max_allowed_table_size(table_size);
    let (mut encoder, mut back) = (Encoder::new(300), Decoder::new(4096));
    let mut sink = FieldSink::new();
    for block in blocks(data) {
        let expect = theirs.decode(block);
        match ours.decode(block, &LIMITS, &mut sink) {
            Err(HpackError::SizeUpdate) => return,
            Err(error) => {
                assert!(expect.is_err(), "{error}: {block:x?} is {expect:?}");
                return;
            }
            Ok(()) => {}
        }
        if expect == Err(loona_hpack::decoder::DecoderError::SizeUpdateAtEnd) {
            return;
        }
        let expect = expect.expect("ours took the block");
        check_head(&mut sink, &expect, &mut encoder, &mut back);
    }
}

fn blocks(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&len, rest) = data.split_first()?;
        let (block, rest) = rest.split_at(usize::from(len).min(rest.len()));
        data = rest;
        Some(block)
    })
}

/// The head in `sink` is `expect`, as whatever kind of head it will do for; written again, it reads
/// the same.
fn check_head(sink: &mut FieldSink, expect: &Fields, encoder: &mut Encoder, back: &mut Decoder) {
    let size: usize = expect.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
    let too_large = size > LIMITS.list_bytes_max || expect.len() > LIMITS.fields_max;
    let mut block = Vec::new();
    let mut again = FieldSink::new();
    match sink.take_trailers() {
        Err(error) => assert_eq!(error == HeadError::TooLarge, too_large),
        Ok(trailers) => {
            assert!(!too_large);
            assert_eq!(&fields_of(&trailers), expect);
            encoder.encode_trailers(&trailers, &mut block);
            back.decode(&block, &LIMITS, &mut again).expect("own block");
            assert_eq!(again.take_trailers(), Ok(trailers));
            return;
        }
    }
    if let Ok(head) = sink.take_response() {
        assert_eq!(expect[0].0, b":status");
        assert_eq!(expect[0].1, head.status.to_string().as_bytes());
        assert_eq!(fields_of(&head.headers), expect[1..]);
        encoder.encode_response(&head, &mut block);
        back.decode(&block, &LIMITS, &mut again).expect("own block");
        assert_eq!(again.take_response(), Ok(head));
    } else if let Ok((head, protocol)) = sink.take_request() {
        let pseudo = |name: &[u8]| {
            expect.iter().find(|(found, _)| found == name).map(|(_, value)| &value[..])
        };
        assert_eq!(pseudo(b":method"), Some(head.method.as_bytes()));
        assert_eq!(pseudo(b":path").unwrap_or_default(), head.path_and_query());
        assert_eq!(pseudo(b":protocol"), protocol.as_deref());
        let authority = pseudo(b":authority").or_else(|| pseudo(b"host"));
        assert_eq!(authority, head.authority.as_deref());
        let regular: Fields = expect
            .iter()
            .filter(|(name, _)| !name.starts_with(b":") && name != b"host")
            .cloned()
            .collect();
        assert_eq!(fields_of(&head.headers), regular);
        encoder.encode_request(&head, protocol.as_deref(), &mut block);
        back.decode(&block, &LIMITS, &mut again).expect("own block");
        assert_eq!(again.take_request(), Ok((head, protocol)));
    }
}

fn fields_of(headers: &HeaderList) -> Fields {
    headers.iter().map(|header| (header.name.to_vec(), header.value.to_vec())).collect()
}

/// Fields made of the bytes, through our encoder into both decoders and through theirs into ours,
/// with table sizes changing between blocks.
pub fn hpack_roundtrip(data: &[u8]) {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let mut their_decoder = loona_hpack::Decoder::new();
    let (mut their_encoder, mut ours) = (loona_hpack::Encoder::new(), Decoder::new(4096));
    let mut sink = FieldSink::new();
    for section in data.split(|&byte| byte == b'\n') {
        let (&[resize, size, never], text) = match section.split_first_chunk() {
            Some(split) => split,
            None => return,
        };
        if resize & 3 == 0 {
            let size = u32::from(size) * 20;
            encoder.peer_table_max(size);
            decoder.set_table_max(size as usize);
            their_decoder.set_max_allowed_table_size(size as usize);
        }
        let fields = fields_from(text);
        if fields.is_empty() {
            continue;
        }
        let mut block = Vec::new();
        encoder.start(&mut block);
        for (index, (name, value)) in fields.iter().enumerate() {
            let indexing = match index < 8 && never & 1 << index != 0 {
                true => Indexing::Never,
                false => Indexing::Auto,
            };
            encoder.encode(name, value, indexing, &mut block);
        }
        assert_eq!(their_decoder.decode(&block).as_ref(), Ok(&fields), "{block:x?}");
        check_trailers(&mut decoder, &block, &mut sink, &fields);
        let pairs = fields.iter().map(|(name, value)| (&name[..], &value[..]));
        check_trailers(&mut ours, &their_encoder.encode(pairs), &mut sink, &fields);
    }
}

fn check_trailers(decoder: &mut Decoder, block: &[u8], sink: &mut FieldSink, fields: &Fields) {
    decoder.decode(block, &HeadLimits::DEFAULT, sink).expect("a block just made");
    if let Ok(trailers) = sink.take_trailers() {
        assert_eq!(&fields_of(&trailers), fields);
    }
}

/// Names and values by turns, each after its length; an odd byte picks a name from a list.
fn fields_from(text: &[u8]) -> Fields {
    const NAMES: [&str; 8] =
        ["x-a", "content-type", "date", "cookie", "x-request-id", "te", "grpc-status", "accept"];
    let mut pieces = blocks(text);
    let mut fields = Vec::new();
    while let (Some(name), Some(value)) = (pieces.next(), pieces.next()) {
        let name = match name {
            [pick] => NAMES[usize::from(*pick) % NAMES.len()].as_bytes().to_vec(),
            name => name.to_ascii_lowercase(),
        };
        fields.push((name, value.to_vec()));
    }
    fields
}

/// Bytes of a peer into a connection, whose owner serves what comes: the first byte chooses the
/// role and the limits. Cut anywhere, the bytes mean the same; open streams, answers and what is
/// kept stay within their limits; a connection that fails says why and stays failed.
pub fn connection(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let whole = connection_run(choice, data, Owner::Late, &mut |_| data.len());
    let bytewise = connection_run(choice, data, Owner::Late, &mut |_| 1);
    assert_eq!(whole, bytewise, "one byte at a time");
    let ragged = connection_run(choice, data, Owner::Late, &mut |at| 1 + (at * 7919) % 37);
    assert_eq!(whole, ragged, "in pieces");
    connection_run(choice, data, Owner::Eager, &mut |at| 1 + (at * 7919) % 37);
}

/// When a connection's owner does its part: what streams come to depends on that.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// After every piece.
    Eager,
    /// When everything has come.
    Late,
}

/// Streams a connection under test takes.
const STREAMS_MAX: u32 = 5;

/// What the owner of a connection saw, in the order of each stream.
#[derive(Debug, Default, PartialEq)]
struct Log {
    failure: Option<Failure>,
    streams: BTreeMap<u32, Vec<String>>,
}

fn connection_run(
    choice: u8,
    data: &[u8],
    owner: Owner,
    cut: &mut dyn FnMut(usize) -> usize,
) -> Log {
    let role = if choice & 1 == 0 { Role::Server } else { Role::Client };
    let config = Config {
        streams_max: STREAMS_MAX,
        stream_window_bytes: [100, 65_535][usize::from(choice >> 1) & 1],
        connection_window_bytes: 65_535,
        head: LIMITS,
        connect_protocol: choice & 4 != 0,
        budgets: Budgets {
            resets_max: 10,
            errors_max: 10,
            control_max: 50,
            empty_max: 5,
            ..Budgets::default()
        },
    };
    let mut connection = Connection::new(role, config);
    let mut log = Log::default();
    let mut keys = Vec::new();
    if role == Role::Client {
        for _ in 0..3 {
            assert!(connection.poll_reserve(&context()).is_ready());
            keys.push(connection.open(&some_request(), None, true).expect("just reserved"));
        }
    }
    let mut opening = Vec::new();
    if role == Role::Server {
        opening.extend_from_slice(frame::PREFACE);
    }
    write::settings(&mut opening, std::iter::empty());
    let bytes = [&opening[..], data].concat();
    let (mut at, mut input) = (0, BytesMut::new());
    let mut written = 0;
    while at < bytes.len() {
        let next = (at + cut(at).max(1)).min(bytes.len());
        input.extend_from_slice(&bytes[at..next]);
        at = next;
        let result = connection.recv(&mut input);
        assert_eq!(result.err(), connection.failure());
        if owner == Owner::Late && at < bytes.len() && result.is_ok() {
            continue;
        }
        while let Some(incoming) = connection.next_request() {
            let entry = log.streams.entry(incoming.key.id()).or_default();
            entry.push(format!("{:?} {:?}", incoming.head, incoming.protocol));
            keys.push(incoming.key);
        }
        keys.retain(|&key| attend(&mut connection, role, key, &mut log));
        assert!(connection.open_streams() <= STREAMS_MAX as usize, "limits hold");
        written += drain(&mut connection);
        if result.is_err() {
            break;
        }
    }
    log.failure = connection.failure();
    assert!(written < 4_000 + 30 * bytes.len(), "{written} bytes for {}", bytes.len());
    if log.failure.is_some() {
        assert_eq!(connection.recv(&mut BytesMut::from(&b"more"[..])).err(), log.failure);
    }
    log
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn drain(connection: &mut Connection) -> usize {
    let mut written = 0;
    loop {
        let out = connection.output();
        if out.is_empty() {
            return written;
        }
        written += out.len();
        out.consume(out.len());
    }
}

/// Reads everything there is of a stream; false when it is over.
fn attend(connection: &mut Connection, role: Role, key: StreamKey, log: &mut Log) -> bool {
    let entry = log.streams.entry(key.id()).or_default();
    if role == Role::Client {
        while !entry.iter().any(|line| line.starts_with("Final")) {
            match connection.poll_answer(key, &context()) {
                Poll::Pending => return true,
                Poll::Ready(Ok(answer)) => entry.push(format!("{answer:?}")),
                Poll::Ready(Err(error)) => {
                    entry.push(format!("{error:?}"));
                    connection.close(key);
                    return false;
                }
            }
        }
    }
    loop {
        match connection.poll_frame(key, &context()) {
            Poll::Pending => return true,
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                connection.release(key, data.len());
                entry.extend(data.iter().map(|byte| format!("{byte:x}")));
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                entry.push(format!("{trailers:?}"));
            }
            Poll::Ready(Some(Err(error))) => {
                entry.push(format!("{error:?}"));
                connection.close(key);
                return false;
            }
            Poll::Ready(None) => {
                if role == Role::Server {
                    let _ = connection.send_head(key, &ResponseHead::new(200), true);
                }
                connection.close(key);
                return false;
            }
        }
    }
}

fn some_request() -> RequestHead {
    RequestHead {
        method: Method::Get,
        scheme: Scheme::Http,
        authority: Some(Bytes::from_static(b"a")),
        target: Target::Path(Bytes::from_static(b"/")),
        version: Version::H2,
        headers: HeaderList::new(),
    }
}
