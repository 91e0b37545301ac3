//! Two engines back to back, and one against frames no engine of ours would send.

use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};

use super::super::error::ErrorCode;
use super::super::frame::{self, FrameHead, FrameType, HEAD_LEN, MAX_31, PREFACE};
use super::super::hpack::{Encoder, HeadLimits, Indexing};
use super::super::settings::Setting;
use super::super::write;
use super::*;
use crate::headers::HeaderList;
use crate::message::{Frame, Method, Scheme, Target, Version};

fn config() -> Config {
    Config {
        streams_max: 100,
        stream_window_bytes: 100_000,
        connection_window_bytes: 200_000,
        head: HeadLimits::DEFAULT,
        connect_protocol: false,
        budgets: Budgets::default(),
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

struct Pair {
    client: Connection,
    server: Connection,
}

impl Pair {
    fn new() -> Pair {
        Pair::with(config())
    }

    fn with(config: Config) -> Pair {
        let mut pair = Pair {
            client: Connection::new(Role::Client, config.clone()),
            server: Connection::new(Role::Server, config),
        };
        pair.run();
        pair
    }

    /// Moves bytes until neither side has anything to say.
    fn run(&mut self) {
        loop {
            let moved = carry(&mut self.client, &mut self.server)
                | carry(&mut self.server, &mut self.client);
            if !moved {
                return;
            }
        }
    }

    fn open(&mut self, head: &RequestHead, end: bool) -> StreamKey {
        assert!(matches!(self.client.poll_reserve(&cx()), Poll::Ready(Ok(()))));
        self.client.open(head, None, end).unwrap()
    }

    /// A stream that the server has taken: its keys on both sides.
    fn opened(&mut self, end: bool) -> (StreamKey, StreamKey) {
        let key = self.open(&request(), end);
        self.run();
        (key, self.server.next_request().unwrap().key)
    }
}

fn carry(from: &mut Connection, to: &mut Connection) -> bool {
    let bytes = drain(from);
    if bytes.is_empty() {
        return false;
    }
    let _ = to.recv(&mut BytesMut::from(&bytes[..]));
    true
}

fn drain(from: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let out = from.output();
        if out.is_empty() {
            return bytes;
        }
        let mut part = vec![0; out.remaining()];
        out.copy_to_slice(&mut part);
        bytes.extend_from_slice(&part);
    }
}

fn request() -> RequestHead {
    RequestHead {
        method: Method::Post,
        scheme: Scheme::Http,
        authority: Some(Bytes::from_static(b"app")),
        target: Target::Path(Bytes::from_static(b"/a.B/C")),
        version: Version::H2,
        headers: [("content-type", "application/grpc"), ("te", "trailers")].into_iter().collect(),
    }
}

fn response(status: u16) -> ResponseHead {
    ResponseHead { version: Version::H2, ..ResponseHead::new(status) }
}

fn answer(connection: &mut Connection, key: StreamKey) -> ResponseHead {
    match connection.poll_answer(key, &cx()) {
        Poll::Ready(Ok(Answer::Final { head, .. })) => head,
        other => panic!("{other:?}"),
    }
}

/// Everything that has come, and how it ended.
fn read(connection: &mut Connection, key: StreamKey) -> (Vec<u8>, Poll<Option<StreamError>>) {
    let mut content = Vec::new();
    loop {
        match connection.poll_frame(key, &cx()) {
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                connection.release(key, data.len());
                content.extend_from_slice(&data);
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                content.extend_from_slice(format!("{trailers:?}").as_bytes());
            }
            Poll::Ready(Some(Err(error))) => return (content, Poll::Ready(Some(error))),
            Poll::Ready(None) => return (content, Poll::Ready(None)),
            Poll::Pending => return (content, Poll::Pending),
        }
    }
}

/// A server, and what a client says to it in bytes.
struct Raw {
    server: Connection,
    encoder: Encoder,
    out: Vec<u8>,
}

impl Raw {
    fn new() -> Raw {
        Raw::with(config())
    }

    fn with(config: Config) -> Raw {
        let mut out = PREFACE.to_vec();
        write::settings(&mut out, [].into_iter());
        write::settings_ack(&mut out);
        Raw { server: Connection::new(Role::Server, config), encoder: Encoder::new(4096), out }
    }

    fn request(&mut self, id: u32, end: bool) -> &mut Raw {
        self.head(id, end, &[])
    }

    fn head(&mut self, id: u32, end: bool, fields: &[(&str, &str)]) -> &mut Raw {
        let encoder = &mut self.encoder;
        write::headers(&mut self.out, id, end, 1 << 14, |out| {
            encoder.start(out);
            let pseudo =
                [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
            for (name, value) in pseudo.iter().chain(fields) {
                encoder.encode(name.as_bytes(), value.as_bytes(), Indexing::Auto, out);
            }
        });
        self
    }

    fn frame(&mut self, kind: FrameType, flags: u8, id: u32, payload: &[u8]) -> &mut Raw {
        write::head(&mut self.out, kind, flags, id, payload.len());
        self.out.extend_from_slice(payload);
        self
    }

    fn data(&mut self, id: u32, content: &[u8], end: bool) -> &mut Raw {
        self.frame(FrameType::Data, u8::from(end), id, content)
    }

    fn send(&mut self) -> Result<(), Failure> {
        let mut input = BytesMut::from(&std::mem::take(&mut self.out)[..]);
        self.server.recv(&mut input)
    }

    /// What the server says to that, as (type, stream, code or increment).
    fn said(&mut self) -> Vec<(FrameType, u32, u32)> {
        let bytes = drain(&mut self.server);
        let mut at = 0;
        let mut said = Vec::new();
        while let Some(head) = FrameHead::peek(&bytes[at..]) {
            let payload = &bytes[at + HEAD_LEN..at + head.frame_len()];
            let number = match head.kind {
                FrameType::GoAway => frame::goaway(payload).unwrap().code.0,
                FrameType::RstStream => frame::rst_stream(payload).unwrap().0,
                FrameType::WindowUpdate => frame::window_update(&head, payload).unwrap(),
                _ => head.length,
            };
            said.push((head.kind, head.stream, number));
            at += head.frame_len();
        }
        said
    }

    /// Sends, and expects the connection to end with `code`.
    fn expect_end(&mut self, code: ErrorCode) {
        assert!(self.send().is_err());
        let said = self.said();
        let last = said.last().unwrap();
        assert_eq!((last.0, last.2), (FrameType::GoAway, code.0), "{said:?}");
    }

    /// Sends, and expects stream `id` alone to be reset with `code`.
    fn expect_reset(&mut self, id: u32, code: ErrorCode) {
        self.send().unwrap();
        let said = self.said();
        assert!(said.contains(&(FrameType::RstStream, id, code.0)), "{said:?}");
        assert!(!said.iter().any(|frame| frame.0 == FrameType::GoAway), "{said:?}");
    }
}

#[test]
fn a_call_goes_there_and_back_with_trailers() {
    let mut pair = Pair::new();
    let key = pair.open(&request(), false);
    pair.client.send(key, Frame::Data(Bytes::from_static(b"ping")));
    pair.client.end(key);
    pair.run();
    let incoming = pair.server.next_request().unwrap();
    assert_eq!(incoming.head.unwrap(), request());
    let there = incoming.key;
    assert_eq!(read(&mut pair.server, there), (b"ping".to_vec(), Poll::Ready(None)));
    pair.server.send_informational(there, &response(103));
    pair.server.send_head(there, &response(200), false).unwrap();
    pair.server.send(there, Frame::Data(Bytes::from_static(b"pong")));
    let trailers: HeaderList = [("grpc-status", "0")].into_iter().collect();
    pair.server.send(there, Frame::Trailers(trailers));
    pair.server.end(there);
    pair.server.close(there);
    pair.run();
    assert!(matches!(
        pair.client.poll_answer(key, &cx()),
        Poll::Ready(Ok(Answer::Informational(head))) if head.status == 103
    ));
    assert_eq!(answer(&mut pair.client, key).status, 200);
    let (content, end) = read(&mut pair.client, key);
    assert_eq!(content, b"pong[\"grpc-status: 0\"]");
    assert_eq!(end, Poll::Ready(None));
    pair.client.close(key);
    assert_eq!((pair.client.open_streams(), pair.server.open_streams()), (0, 0));
}

#[test]
fn a_slow_reader_stops_the_writer_and_content_is_whole() {
    let mut pair = Pair::new();
    let (key, there) = pair.opened(true);
    pair.server.send_head(there, &response(200), false).unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|at| (at / 7) as u8).collect();
    let mut rest = Bytes::from(sent.clone());
    let mut received = Vec::new();
    let mut most = 0;
    while received.len() < sent.len() {
        // Unread content never exceeds the window, however long nobody reads.
        for _ in 0..3 {
            while !rest.is_empty() && pair.server.poll_ready(there, &cx()).is_ready() {
                let part = rest.split_to(rest.len().min(30_000));
                pair.server.send(there, Frame::Data(part));
            }
            pair.run();
        }
        let waiting: usize = {
            let stream = pair.client.streams.get(key).unwrap();
            stream.waiting_bytes()
        };
        most = most.max(waiting);
        assert!(waiting <= 100_000);
        received.extend_from_slice(&read(&mut pair.client, key).0);
    }
    assert_eq!(most, 100_000, "the whole window is used");
    assert!(received == sent);
    pair.server.end(there);
    pair.run();
    assert_eq!(read(&mut pair.client, key).1, Poll::Ready(None));
}

#[test]
fn the_connection_window_holds_all_streams_and_comes_back_when_they_end() {
    let mut pair = Pair::new();
    for _ in 0..20 {
        let streams: Vec<_> = (0..5).map(|_| pair.opened(true)).collect();
        for &(_, there) in &streams {
            pair.server.send_head(there, &response(200), false).unwrap();
            pair.server.send(there, Frame::Data(Bytes::from(vec![1; 60_000])));
        }
        pair.run();
        // 300,000 bytes do not fit; those who gave up free the window for the others.
        for &(key, _) in &streams[..2] {
            pair.client.close(key);
        }
        pair.run();
        for &(key, there) in &streams[2..] {
            pair.server.end(there);
            let mut length = 0;
            loop {
                pair.run();
                let (content, end) = read(&mut pair.client, key);
                length += content.len();
                if end == Poll::Ready(None) {
                    break;
                }
                assert!(!content.is_empty(), "stuck after {length}");
            }
            assert_eq!(length, 60_000);
            pair.client.close(key);
        }
        streams.iter().for_each(|&(_, there)| pair.server.close(there));
        pair.run();
        assert_eq!((pair.client.open_streams(), pair.server.open_streams()), (0, 0));
    }
}

#[test]
fn a_download_takes_turns_with_small_answers() {
    let mut pair = Pair::new();
    let (_, large) = pair.opened(true);
    let (small_key, small) = pair.opened(true);
    pair.server.send_head(large, &response(200), false).unwrap();
    pair.server.send(large, Frame::Data(Bytes::from(vec![1; 90_000])));
    pair.server.send_head(small, &response(200), false).unwrap();
    pair.server.send(small, Frame::Data(Bytes::from_static(b"small")));
    pair.server.end(small);
    let bytes = drain(&mut pair.server);
    let (mut at, mut before) = (0, 0);
    while let Some(head) = FrameHead::peek(&bytes[at..]) {
        if head.kind == FrameType::Data && head.stream == small_key.id() {
            break;
        }
        before += if head.kind == FrameType::Data { head.length } else { 0 };
        at += head.frame_len();
    }
    assert!(before <= 16 * 1024, "{before} bytes before the small answer");
}

#[test]
fn resets_carry_their_code_both_ways() {
    let mut pair = Pair::new();
    let (key, there) = pair.opened(false);
    pair.server.reset(there, ErrorCode(0x77));
    pair.run();
    assert!(matches!(
        pair.client.poll_answer(key, &cx()),
        Poll::Ready(Err(StreamError::Reset(ErrorCode(0x77))))
    ));
    let (key, there) = pair.opened(false);
    pair.client.reset(key, ErrorCode(0x78));
    pair.run();
    let reset = StreamError::Reset(ErrorCode(0x78));
    assert_eq!(pair.server.poll_failed(there, &cx()), Poll::Ready(reset));
    assert_eq!(read(&mut pair.server, there).1, Poll::Ready(Some(reset)));
    // Refused means that it may be sent again.
    let (key, there) = pair.opened(false);
    pair.server.reset(there, ErrorCode::REFUSED_STREAM);
    pair.run();
    assert!(matches!(pair.client.poll_answer(key, &cx()), Poll::Ready(Err(StreamError::Refused))));
}

#[test]
fn an_answer_before_the_end_of_the_request_stops_the_upload() {
    let mut pair = Pair::new();
    let (key, there) = pair.opened(false);
    pair.server.send_head(there, &response(413), true).unwrap();
    pair.server.close(there);
    pair.run();
    assert_eq!(answer(&mut pair.client, key).status, 413);
    assert_eq!(read(&mut pair.client, key).1, Poll::Ready(None));
    pair.client.send(key, Frame::Data(Bytes::from_static(b"late")));
    pair.client.close(key);
    pair.run();
    assert_eq!((pair.client.open_streams(), pair.server.open_streams()), (0, 0));
    assert_eq!(pair.server.failure(), None);
}

#[test]
fn leaving_serves_what_was_sent_before_the_client_heard() {
    let mut pair = Pair::new();
    let (first, first_there) = pair.opened(true);
    pair.server.shutdown();
    let announcement = drain(&mut pair.server);
    // Sent while the announcement is under way.
    let second = pair.open(&request(), true);
    carry(&mut pair.client, &mut pair.server);
    let second_there = pair.server.next_request().unwrap().key;
    pair.client.recv(&mut BytesMut::from(&announcement[..])).unwrap();
    assert!(!pair.client.accepts_streams());
    pair.run();
    assert!(!pair.server.is_drained());
    for (key, there) in [(first, first_there), (second, second_there)] {
        pair.server.send_head(there, &response(200), true).unwrap();
        pair.server.close(there);
        pair.run();
        assert_eq!(answer(&mut pair.client, key).status, 200);
        pair.client.close(key);
    }
    assert!(pair.server.is_drained() && pair.client.is_drained());
}

#[test]
fn a_connection_that_has_asked_nothing_may_ask_once_before_it_hears_of_the_leave() {
    let mut pair = Pair::new();
    pair.server.shutdown_after_first();
    assert!(pair.server.is_leaving());
    pair.run();
    assert!(pair.client.accepts_streams());
    let (key, there) = pair.opened(true);
    pair.run();
    assert!(!pair.client.accepts_streams());
    pair.server.send_head(there, &response(200), true).unwrap();
    pair.server.close(there);
    pair.run();
    assert_eq!(answer(&mut pair.client, key).status, 200);
    pair.client.close(key);
    assert!(pair.server.is_drained() && pair.client.is_drained());
}

#[test]
fn a_request_queued_behind_the_first_answer_to_a_ping_is_served() {
    let mut raw = Raw::new();
    raw.send().unwrap();
    raw.server.shutdown();
    write::ping(&mut raw.out, true, [0xff; 8]);
    raw.request(1, true).send().unwrap();
    let key = raw.server.next_request().expect("it was under way").key;
    write::ping(&mut raw.out, true, [0xff; 8]);
    raw.send().unwrap();
    raw.request(3, true).send().unwrap();
    assert!(raw.server.next_request().is_none(), "it was told that 1 is the last");
    raw.server.send_head(key, &response(200), true).unwrap();
    raw.server.close(key);
    raw.said();
    assert!(raw.server.is_drained());
}

#[test]
fn requests_beyond_an_abrupt_goaway_were_not_processed() {
    let mut pair = Pair::new();
    let (first, _) = pair.opened(true);
    pair.server.shutdown_now(ErrorCode::NO_ERROR);
    let second = pair.open(&request(), true);
    pair.run();
    assert!(matches!(
        pair.client.poll_answer(second, &cx()),
        Poll::Ready(Err(StreamError::Refused))
    ));
    assert!(pair.client.poll_answer(first, &cx()).is_pending());
    pair.client.lost();
    assert!(matches!(pair.client.poll_answer(first, &cx()), Poll::Ready(Err(StreamError::Lost))));
}

#[test]
fn what_never_left_a_lost_connection_was_not_processed() {
    let mut pair = Pair::new();
    let (sent, _) = pair.opened(true);
    // Of the first of three a byte has left when writing fails.
    let unsent = [(); 3].map(|()| pair.open(&request(), true));
    pair.client.output().advance(1);
    pair.client.lost();
    let [begun, unsent @ ..] = unsent;
    for lost in [sent, begun] {
        let lost = pair.client.poll_answer(lost, &cx());
        assert!(matches!(lost, Poll::Ready(Err(StreamError::Lost))));
    }
    for refused in unsent {
        let refused = pair.client.poll_answer(refused, &cx());
        assert!(matches!(refused, Poll::Ready(Err(StreamError::Refused))));
    }
    assert!(pair.client.output().is_empty(), "it must not leave later");
}

#[test]
fn streams_wait_for_the_peers_limit() {
    let mut pair = Pair::with(Config { streams_max: 2, ..config() });
    let (first, there) = pair.opened(true);
    pair.opened(true);
    assert!(pair.client.poll_reserve(&cx()).is_pending());
    pair.server.send_head(there, &response(204), true).unwrap();
    pair.run();
    assert!(pair.client.poll_reserve(&cx()).is_ready());
    pair.client.unreserve();
    pair.client.close(first);
}

#[test]
fn a_connection_without_stream_identifiers_takes_no_more_requests() {
    let mut pair = Pair::new();
    // RFC 9113 §5.1.1: identifiers are 31 bits, and a client's are odd.
    pair.client.last_stream = (1 << 31) - 3;
    let (last, there) = pair.opened(true);
    assert_eq!(last.id(), (1 << 31) - 1);
    assert!(!pair.client.accepts_streams());
    assert_eq!(pair.client.poll_reserve(&cx()), Poll::Ready(Err(StreamError::Refused)));
    // What is open goes on to its end.
    pair.server.send_head(there, &response(204), true).unwrap();
    pair.run();
    assert_eq!(answer(&mut pair.client, last).status, 204);
}

#[test]
fn windows_change_while_streams_are_open() {
    let mut raw = Raw::new();
    write::settings(&mut raw.out, [Setting::InitialWindowSize(10)].into_iter());
    raw.request(1, true).send().unwrap();
    let key = raw.server.next_request().unwrap().key;
    raw.server.send_head(key, &response(200), false).unwrap();
    raw.server.send(key, Frame::Data(Bytes::from(vec![0; 100])));
    let sizes = |raw: &mut Raw| -> Vec<u32> {
        raw.said().iter().filter(|f| f.0 == FrameType::Data).map(|f| f.2).collect()
    };
    assert_eq!(sizes(&mut raw), [10]);
    // Below zero: nothing may leave until it is above again.
    write::settings(&mut raw.out, [Setting::InitialWindowSize(4)].into_iter());
    write::window_update(&mut raw.out, 1, 5);
    raw.send().unwrap();
    assert_eq!(sizes(&mut raw), [0_u32; 0]);
    write::window_update(&mut raw.out, 1, 3);
    raw.send().unwrap();
    assert_eq!(sizes(&mut raw), [2]);
    write::settings(&mut raw.out, [Setting::InitialWindowSize(1000)].into_iter());
    raw.send().unwrap();
    assert_eq!(sizes(&mut raw), [88]);
}

#[test]
fn a_frame_at_a_time_or_a_byte_at_a_time_is_the_same() {
    let mut raw = Raw::new();
    raw.request(1, false).data(1, b"abc", false).data(1, b"def", true);
    let bytes = std::mem::take(&mut raw.out);
    let mut input = BytesMut::new();
    for byte in bytes {
        input.extend_from_slice(&[byte]);
        raw.server.recv(&mut input).unwrap();
    }
    let key = raw.server.next_request().unwrap().key;
    assert_eq!(read(&mut raw.server, key), (b"abcdef".to_vec(), Poll::Ready(None)));
}

#[test]
fn large_content_is_not_copied_and_keeps_its_order() {
    let mut raw = Raw::new();
    raw.request(1, false);
    for byte in 0..5 {
        raw.data(1, &vec![byte; 5000], false).data(1, &[byte; 3], byte == 4);
    }
    raw.send().unwrap();
    let key = raw.server.next_request().unwrap().key;
    let expect: Vec<u8> = (0..5_u8).flat_map(|byte| vec![byte; 5003]).collect();
    assert_eq!(read(&mut raw.server, key), (expect, Poll::Ready(None)));
}

#[test]
fn padding_counts_against_windows_and_comes_back() {
    let mut raw = Raw::new();
    raw.request(1, false);
    let mut padded = vec![200];
    padded.extend_from_slice(b"x");
    padded.extend_from_slice(&[0; 200]);
    for _ in 0..2000 {
        raw.frame(FrameType::Data, frame::Flags::PADDED, 1, &padded);
        raw.send().unwrap();
        if let Some(incoming) = raw.server.next_request() {
            assert_eq!(incoming.key.id(), 1);
        }
        let key = raw.server.streams.key_of(1).unwrap();
        let _ = read(&mut raw.server, key);
    }
    // 2,000 frames of 202 bytes are more than either window.
    assert_eq!(raw.server.failure(), None);
    let granted: u32 =
        raw.said().iter().filter(|f| f.0 == FrameType::WindowUpdate && f.1 == 1).map(|f| f.2).sum();
    assert!(granted > 300_000, "{granted}");
}

#[test]
fn more_than_the_window_is_an_error() {
    let mut raw = Raw::new();
    raw.request(1, false);
    for _ in 0..7 {
        raw.data(1, &[0; 16_000], false);
    }
    raw.expect_reset(1, ErrorCode::FLOW_CONTROL_ERROR);
    let mut raw = Raw::new();
    for id in [1, 3, 5] {
        raw.request(id, false);
        for _ in 0..6 {
            raw.data(id, &[0; 16_000], false);
        }
    }
    raw.expect_end(ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn content_length_must_be_true() {
    let length = [("content-length", "5")];
    let mut raw = Raw::new();
    raw.head(1, false, &length).data(1, b"123456", false);
    raw.expect_reset(1, ErrorCode::PROTOCOL_ERROR);
    raw.head(3, false, &length).data(3, b"1234", true);
    raw.expect_reset(3, ErrorCode::PROTOCOL_ERROR);
    raw.head(5, false, &length).data(5, b"12345", true).send().unwrap();
    raw.head(7, true, &length).send().unwrap();
    let incoming: Vec<_> = std::iter::from_fn(|| raw.server.next_request()).collect();
    assert!(incoming[0].head.is_ok());
    assert!(matches!(incoming[1].head, Err(HeadError::Malformed(_))));
}

#[test]
fn frames_where_they_do_not_belong_end_the_connection() {
    let update = 5_u32.to_be_bytes();
    let check = |code: ErrorCode, build: &dyn Fn(&mut Raw)| {
        let mut raw = Raw::new();
        build(&mut raw);
        raw.expect_end(code);
    };
    use FrameType::{Continuation, Data, Headers, PushPromise, RstStream, WindowUpdate};
    let protocol = ErrorCode::PROTOCOL_ERROR;
    check(protocol, &|raw| {
        raw.frame(Data, 0, 1, b"x");
    });
    check(protocol, &|raw| {
        raw.frame(RstStream, 0, 1, &update);
    });
    check(protocol, &|raw| {
        raw.frame(WindowUpdate, 0, 1, &update);
    });
    check(protocol, &|raw| {
        raw.frame(WindowUpdate, 0, 0, &[0; 4]);
    });
    check(protocol, &|raw| {
        raw.frame(Continuation, 4, 1, b"");
    });
    check(protocol, &|raw| {
        raw.frame(PushPromise, 4, 1, &[0; 8]);
    });
    check(protocol, &|raw| {
        raw.request(2, true);
    });
    // Another frame inside a block.
    check(protocol, &|raw| {
        raw.frame(Headers, 0, 1, b"").frame(Data, 0, 1, b"");
    });
    check(ErrorCode::COMPRESSION_ERROR, &|raw| {
        raw.frame(Headers, 4, 1, &[0xff; 9]);
    });
    check(ErrorCode::STREAM_CLOSED, &|raw| {
        raw.request(5, true).request(3, true);
    });
    check(ErrorCode::FRAME_SIZE_ERROR, &|raw| {
        raw.data(1, &[0; 16_385], false);
    });
    let flow = ErrorCode::FLOW_CONTROL_ERROR;
    check(flow, &|raw| {
        raw.frame(WindowUpdate, 0, 0, &MAX_31.to_be_bytes());
    });
    let mut raw = Raw { out: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), ..Raw::new() };
    raw.expect_end(protocol);
}

#[test]
fn errors_of_one_stream_leave_the_others_alone() {
    let mut raw = Raw::new();
    raw.request(1, true).data(1, b"x", false);
    raw.expect_reset(1, ErrorCode::STREAM_CLOSED);
    raw.request(3, false).request(3, false);
    raw.expect_reset(3, ErrorCode::PROTOCOL_ERROR);
    raw.request(5, false).frame(FrameType::WindowUpdate, 0, 5, &[0; 4]);
    raw.expect_reset(5, ErrorCode::PROTOCOL_ERROR);
    raw.request(7, false).frame(FrameType::WindowUpdate, 0, 7, &MAX_31.to_be_bytes());
    raw.expect_reset(7, ErrorCode::FLOW_CONTROL_ERROR);
    // Late frames of streams that we reset mean nothing.
    raw.data(5, b"late", false).frame(FrameType::RstStream, 0, 3, &[0; 4]).send().unwrap();
    raw.head(7, true, &[("x", "late trailers")]).send().unwrap();
    assert_eq!(raw.said(), []);
    raw.request(9, true).send().unwrap();
    assert_eq!(std::iter::from_fn(|| raw.server.next_request()).last().unwrap().key.id(), 9);
}

#[test]
fn floods_end_with_enhance_your_calm() {
    let check = |name: &str, most: usize, build: &dyn Fn(&mut Raw, usize)| {
        let mut raw = Raw::new();
        for round in 0..=most {
            build(&mut raw, round);
            if raw.send().is_err() {
                let failure = raw.server.failure().unwrap();
                assert_eq!(failure.to_string(), format!("http2.{name}"), "after {round}");
                let said = raw.said();
                assert_eq!(said.last().unwrap().2, ErrorCode::ENHANCE_YOUR_CALM.0);
                assert!(round > most / 2, "{name}: after {round} already");
                return;
            }
            if name != "never_reads" {
                raw.said();
            }
            while let Some(incoming) = raw.server.next_request() {
                raw.server.close(incoming.key);
            }
        }
        panic!("{name}: still served after {most}");
    };
    let cancel = ErrorCode::CANCEL.0.to_be_bytes();
    check("rapid_reset", 510, &|raw, round| {
        let id = round as u32 * 2 + 1;
        raw.request(id, false).frame(FrameType::RstStream, 0, id, &cancel);
    });
    check("stream_errors", 210, &|raw, round| {
        let id = round as u32 * 2 + 1;
        raw.request(id, false).frame(FrameType::WindowUpdate, 0, id, &[0; 4]);
    });
    check("control_flood", 4010, &|raw, _| {
        raw.frame(FrameType::Ping, 0, 0, &[0; 8]);
    });
    check("control_flood", 4010, &|raw, _| {
        raw.frame(FrameType::Settings, 0, 0, &[]);
    });
    check("control_flood", 4010, &|raw, _| {
        raw.frame(FrameType::Priority, 0, 1, &[0; 5]);
    });
    check("empty_frames", 210, &|raw, round| {
        if round == 0 {
            raw.request(1, false);
        }
        raw.data(1, b"", false);
    });
    check("continuation_flood", 70, &|raw, round| {
        let kind = if round == 0 { FrameType::Headers } else { FrameType::Continuation };
        raw.frame(kind, 0, 1, b"");
    });
}

#[test]
fn a_head_over_the_limit_is_told_and_the_table_stays_right() {
    let mut raw = Raw::new();
    let long = "x".repeat(9000);
    let fields: Vec<_> = (0..8).map(|_| ("x-long", &*long)).collect();
    raw.head(1, true, &fields).head(3, true, &[("x-after", "1")]).send().unwrap();
    let first = raw.server.next_request().unwrap();
    assert_eq!(first.head.unwrap_err(), HeadError::TooLarge);
    let second = raw.server.next_request().unwrap().head.unwrap();
    assert_eq!(second.headers.get("x-after"), Some(&b"1"[..]));
}

#[test]
fn a_request_reset_before_it_was_taken_is_never_begun() {
    let mut raw = Raw::new();
    raw.request(1, true).frame(FrameType::RstStream, 0, 1, &[0, 0, 0, 8]);
    raw.request(3, true).send().unwrap();
    assert_eq!(raw.server.next_request().unwrap().key.id(), 3);
    assert!(raw.server.next_request().is_none());
    assert_eq!(raw.server.open_streams(), 1);
}

#[test]
fn a_malformed_request_is_answered_and_reset() {
    let mut raw = Raw::new();
    raw.head(1, true, &[("connection", "close")]).send().unwrap();
    let incoming = raw.server.next_request().unwrap();
    assert!(matches!(incoming.head, Err(HeadError::Malformed(_))));
    raw.server.send_head(incoming.key, &response(400), false).unwrap();
    raw.server.reject(incoming.key);
    let said = raw.said();
    assert_eq!(said.last(), Some(&(FrameType::RstStream, 1, ErrorCode::PROTOCOL_ERROR.0)));
    assert_eq!(raw.server.open_streams(), 0);
}

#[test]
fn an_idle_connection_holds_little() {
    let mut pair = Pair::new();
    for _ in 0..50 {
        let (key, there) = pair.opened(true);
        pair.server.send_head(there, &response(200), true).unwrap();
        pair.server.close(there);
        pair.run();
        answer(&mut pair.client, key);
        pair.client.close(key);
    }
    pair.server.release_buffers();
    let slots = pair.server.streams.keys().capacity();
    assert_eq!((pair.server.open_streams(), slots), (0, 0));
    assert!(size_of::<Connection>() <= 1096, "{}", size_of::<Connection>());
    assert!(size_of::<stream::Stream>() <= 112, "{}", size_of::<stream::Stream>());
}

#[test]
fn a_block_that_comes_again_says_the_same_until_the_table_changes() {
    let mut pair = Pair::new();
    let head = |round: usize| {
        let mut head = request();
        // Runs of the same request, and one that the table takes in between.
        head.headers.append("x-part", (round / 7).to_string());
        if round.is_multiple_of(11) {
            head.headers.append(format!("x-new-{round}"), "value");
        }
        head
    };
    let trailers = |round: usize| -> HeaderList {
        [("grpc-status", if round.is_multiple_of(5) { "3" } else { "0" })].into_iter().collect()
    };
    for round in 0..100 {
        let key = pair.open(&head(round), true);
        pair.run();
        let there = pair.server.next_request().unwrap();
        assert_eq!(there.head.unwrap(), head(round), "round {round}");
        let mut says = response(200);
        says.headers.append("content-type", "application/grpc");
        pair.server.send_head(there.key, &says, false).unwrap();
        pair.server.send(there.key, Frame::Trailers(trailers(round)));
        pair.server.close(there.key);
        pair.run();
        assert_eq!(answer(&mut pair.client, key), says, "round {round}");
        let got = match pair.client.poll_frame(key, &cx()) {
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => trailers,
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(got, trailers(round), "round {round}");
        pair.client.close(key);
    }
}

#[test]
fn a_connection_goes_on_after_its_memory_was_given_back() {
    let mut pair = Pair::new();
    let head = |round: usize| {
        let mut head = request();
        head.headers.append("x-seen-again", "the same");
        head.headers.append("x-round", round.to_string());
        head
    };
    for round in 0..20 {
        let key = pair.open(&head(round), true);
        pair.run();
        let there = pair.server.next_request().unwrap();
        assert_eq!(there.head.unwrap(), head(round), "round {round}");
        // Half the time a stream is open meanwhile.
        let quiet = round.is_multiple_of(2).then(|| pair.opened(false));
        pair.server.send_head(there.key, &response(200), true).unwrap();
        pair.server.close(there.key);
        pair.run();
        answer(&mut pair.client, key);
        pair.client.close(key);
        if round.is_multiple_of(3) {
            pair.client.release_buffers();
        }
        if !round.is_multiple_of(4) {
            pair.server.release_buffers();
        }
        if let Some((key, there)) = quiet {
            pair.client.send(key, Frame::Data(Bytes::from_static(b"content")));
            pair.client.end(key);
            pair.run();
            assert_eq!(read(&mut pair.server, there).0, b"content");
            pair.server.send_head(there, &response(204), true).unwrap();
            pair.server.close(there);
            pair.run();
            answer(&mut pair.client, key);
            pair.client.close(key);
        }
    }
    assert_eq!((pair.client.open_streams(), pair.server.open_streams()), (0, 0));
}

#[test]
fn what_a_client_does_not_take_of_a_complete_answer_is_left_over() {
    let mut pair = Pair::new();
    let (key, there) = pair.opened(true);
    pair.server.send_head(there, &response(200), false).unwrap();
    for _ in 0..2 {
        pair.server.send(there, Frame::Data(Bytes::from(vec![1; 60_000])));
    }
    pair.server.end(there);
    pair.run();
    assert_eq!(pair.server.leftovers(), None, "the answer may go on");
    pair.server.close(there);
    assert!(pair.server.leftovers().is_some_and(|left| left > 0));
    let _ = read(&mut pair.client, key);
    pair.run();
    assert_eq!(pair.server.leftovers(), None, "all is taken");
    assert_eq!(pair.server.open_streams(), 0);
}
