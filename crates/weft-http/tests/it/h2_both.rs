//! The same bytes of a client to this HTTP/2 engine and to the `h2` crate's server, and what each
//! makes of them. [`differential`] takes any bytes, from a fuzzer; `h2_differential` sound
//! connections with one named oddity.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_http::h2::conn::{Budgets, Config, Failure, Incoming, Role};
use weft_http::h2::frame::{Flags, PREFACE};
use weft_http::h2::hpack::HeadLimits;
use weft_http::h2::{Connection, FrameHead, FrameType, write};
use weft_http::{Frame, RequestHead, ResponseHead, Target};

/// Any frames of a client: an even first byte, then kind, flags, stream, length and payload of
/// each, a byte each but for the payload; or an odd one, then bytes as they are sent. This engine
/// may refuse what the other one takes, never the other way round, and what both take reads the
/// same.
pub fn differential(data: &[u8]) {
    let Some((&mode, data)) = data.split_first() else { return };
    let mut bytes = PREFACE.to_vec();
    write::head(&mut bytes, FrameType::Settings, 0, 0, 0);
    write::head(&mut bytes, FrameType::Settings, Flags::ACK, 0, 0);
    let start = bytes.len();
    match mode & 1 == 0 {
        true => frames_from(data, &mut bytes),
        false => bytes.extend_from_slice(data),
    }
    // What has not come whole is read at other moments there; a head that goes on ends here.
    let whole = whole_frames(&bytes[start..]).map(|frame| frame.frame_len()).sum::<usize>();
    bytes.truncate(start + whole);
    write::head(&mut bytes, FrameType::Ping, 0, 0, 8);
    bytes.extend_from_slice(&[0; 8]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let (mut ours, mut theirs) = (ours(&bytes), local.block_on(&runtime, theirs(&bytes)));
    let refused = ours.ended.is_some() || ours.streams.values().any(|o| *o == Outcome::Refused);
    let mut given_up = false;
    for head in whole_frames(&bytes[start..]) {
        match head.kind {
            // How far a stream got before its client reset it is a matter of turns.
            FrameType::RstStream => {
                given_up = true;
                ours.streams.remove(&head.stream);
                theirs.streams.remove(&head.stream);
            }
            // An answer too many harms nobody, nor does a goodbye; h2 gives up.
            FrameType::Settings if head.flags.has(Flags::ACK) && head.length == 0 => return,
            FrameType::GoAway => return,
            _ => {}
        }
    }
    // An empty authority is none, says this engine; h2 refuses it.
    for id in std::mem::take(&mut ours.nameless) {
        ours.streams.remove(&id);
        theirs.streams.remove(&id);
    }
    for (id, outcome) in &theirs.streams {
        match (ours.streams.get(id), outcome) {
            (Some(Outcome::Complete(ours)), Outcome::Complete(theirs)) => {
                assert_eq!(ours, theirs, "stream {id} reads differently");
            }
            (Some(Outcome::Complete(text)), Outcome::Refused) => {
                panic!("stream {id} is taken here and refused there: {text}");
            }
            _ => {}
        }
    }
    // A malformed stream ends here, and the connection there; nobody tells a client that gave the
    // stream up already.
    let refused = refused || given_up && theirs.ended.is_some();
    assert!(refused || ours == theirs, "nothing refused here, but\n{ours:?}\n{theirs:?}");
}

fn whole_frames(mut bytes: &[u8]) -> impl Iterator<Item = FrameHead> {
    std::iter::from_fn(move || {
        let head = FrameHead::peek(bytes)?;
        bytes = bytes.get(head.frame_len()..)?;
        Some(head)
    })
}

fn frames_from(mut data: &[u8], bytes: &mut Vec<u8>) {
    while let Some((&[kind, flags, stream, length], rest)) = data.split_first_chunk() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(length)));
        write::head(bytes, FrameType::from_byte(kind % 12), flags, stream.into(), payload.len());
        bytes.extend_from_slice(payload);
        data = rest;
    }
}

/// Turns of every task after which nothing moves any more.
const TURNS: usize = 100;
const STREAMS_MAX: u32 = 100;
const WINDOW_BYTES: u32 = 65_535;

/// What became of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A whole request: method, path, fields, content and trailers.
    Complete(String),
    /// It was reset, or answered as malformed.
    Refused,
    /// The rest of it did not come.
    Open,
}

/// What one side made of a connection.
#[derive(Debug, Default, PartialEq)]
pub struct Seen {
    pub streams: BTreeMap<u32, Outcome>,
    /// Why the connection ended, if it did.
    pub ended: Option<String>,
    /// Streams whose request names no authority.
    pub nameless: Vec<u32>,
}

pub fn ours(bytes: &[u8]) -> Seen {
    let config = Config {
        streams_max: STREAMS_MAX,
        stream_window_bytes: WINDOW_BYTES,
        connection_window_bytes: WINDOW_BYTES,
        head: HeadLimits { list_bytes_max: 16 << 10, fields_max: 100 },
        connect_protocol: false,
        budgets: Budgets::default(),
    };
    let mut connection = Connection::new(Role::Server, config);
    let (mut seen, mut requests) = (Seen::default(), Vec::new());
    let mut input = BytesMut::from(bytes);
    let result = connection.recv(&mut input);
    while let Some(request) = connection.next_request() {
        requests.push(request);
    }
    for request in requests {
        let id = request.key.id();
        let nameless = |head: &RequestHead| head.authority.as_ref().is_none_or(Bytes::is_empty);
        if request.head.as_ref().is_ok_and(nameless) {
            seen.nameless.push(id);
        }
        seen.streams.insert(id, outcome(&mut connection, request));
    }
    if let Err(Failure::Protocol(error)) = result {
        seen.ended = Some(error.to_string());
    }
    let mut output = Vec::new();
    loop {
        let out = connection.output();
        let mut slices = [std::io::IoSlice::new(&[]); 16];
        let used = out.io_slices(&mut slices);
        let pieces: Vec<u8> = slices[..used].iter().flat_map(|piece| piece.to_vec()).collect();
        if pieces.is_empty() {
            break;
        }
        out.consume(pieces.len());
        output.extend(pieces);
    }
    seen.refused(&output);
    seen
}

fn outcome(connection: &mut Connection, request: Incoming) -> Outcome {
    let Incoming { key, head, .. } = request;
    let Ok(head) = head else {
        connection.reject(key);
        return Outcome::Refused;
    };
    let Target::Path(path) = &head.target else { return Outcome::Refused };
    let mut text = format!("{} {} ", head.method.as_bytes().escape_ascii(), path.escape_ascii());
    text.push_str(&head.authority.map_or(String::new(), |name| name.escape_ascii().to_string()));
    fields(
        &mut text,
        head.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value)),
    );
    loop {
        match connection.poll_frame(key, &Context::from_waker(Waker::noop())) {
            Poll::Pending => return Outcome::Open,
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                connection.release(key, data.len());
                text.push_str(&data.escape_ascii().to_string());
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                fields(
                    &mut text,
                    trailers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value)),
                );
            }
            Poll::Ready(Some(Err(_))) => return Outcome::Refused,
            Poll::Ready(None) => {
                let _ = connection.send_head(key, &ResponseHead::new(200), true);
                connection.close(key);
                return Outcome::Complete(text);
            }
        }
    }
}

/// As text, in an order that does not depend on how fields are kept.
fn fields<'a>(text: &mut String, fields: impl Iterator<Item = (Vec<u8>, &'a [u8])>) {
    let mut lines: Vec<String> = fields
        .map(|(name, value)| format!("\n{}: {}", name.escape_ascii(), value.escape_ascii()))
        .collect();
    lines.sort();
    text.push_str(&lines.concat());
    // An end of lines only after some: empty trailers are none.
    if !lines.is_empty() {
        text.push('\n');
    }
}

impl Seen {
    /// Takes resets, and how the connection ended, from what a server wrote.
    fn refused(&mut self, mut output: &[u8]) {
        while let Some(head) = FrameHead::peek(output) {
            let payload = &output[9..9 + head.length as usize];
            match head.kind {
                FrameType::RstStream if payload != [0; 4] => {
                    self.streams.insert(head.stream, Outcome::Refused);
                }
                FrameType::GoAway if payload[4..8] != [0; 4] => {
                    self.ended.get_or_insert_with(|| format!("GOAWAY {payload:?}"));
                }
                _ => {}
            }
            output = &output[head.frame_len()..];
        }
    }
}

pub async fn theirs(bytes: &[u8]) -> Seen {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let serve = async {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(STREAMS_MAX).max_header_list_size(16 << 10);
        let mut connection = match builder.handshake::<_, Bytes>(server).await {
            Ok(connection) => connection,
            Err(error) => return seen.borrow_mut().ended = Some(error.to_string()),
        };
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(accepted) = connection.accept().await {
            match accepted {
                Ok((request, respond)) => {
                    tasks.spawn_local(their_outcome(request, respond, seen.clone()));
                }
                Err(error) => {
                    seen.borrow_mut().ended.get_or_insert(error.to_string());
                    break;
                }
            }
        }
        while tasks.join_next().await.is_some() {}
    };
    client.write_all(bytes).await.unwrap();
    let mut serve = Box::pin(serve);
    let mut done = false;
    // Not to its end: the end of the bytes would take back what was not seen yet.
    for _ in 0..TURNS {
        done = done || poll_fn(|cx| Poll::Ready(serve.as_mut().poll(cx).is_ready())).await;
        tokio::task::yield_now().await;
    }
    drop(serve);
    let mut output = Vec::new();
    client.read_to_end(&mut output).await.unwrap();
    let mut seen = seen.take();
    seen.refused(&output);
    seen
}

async fn their_outcome(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: Rc<RefCell<Seen>>,
) {
    let id = respond.stream_id().as_u32();
    seen.borrow_mut().streams.insert(id, Outcome::Open);
    let (head, mut body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    let (path, authority) = (path.as_bytes().escape_ascii(), authority.as_bytes().escape_ascii());
    let mut text = format!("{} {path} {authority}", head.method);
    let named = |(name, value)| pair(name, value);
    // Here it became the authority.
    let headers = head.headers.iter().filter(|(name, _)| *name != http::header::HOST);
    fields(&mut text, headers.map(named));
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        let _ = body.flow_control().release_capacity(data.len());
        text.push_str(&data.escape_ascii().to_string());
    }
    match body.trailers().await {
        Ok(Some(trailers)) => fields(&mut text, trailers.iter().map(named)),
        Ok(None) => {}
        Err(_) => return,
    }
    seen.borrow_mut().streams.insert(id, Outcome::Complete(text));
    let response = http::Response::builder().status(200).body(()).unwrap();
    let _ = respond.send_response(response, true);
}

fn pair<'a>(name: &'a http::HeaderName, value: &'a http::HeaderValue) -> (Vec<u8>, &'a [u8]) {
    (name.as_str().as_bytes().to_vec(), value.as_bytes())
}
