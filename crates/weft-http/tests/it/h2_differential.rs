//! The same bytes of a client to this HTTP/2 engine and to the `h2` crate's server. Both must take
//! the same requests with the same content, refuse the same streams and give up the same
//! connections. Where they differ on purpose, [`DIFFERENT`] says why.
//!
//! `WEFT_H2_DIFFERENTIAL=1000000` makes it longer, `WEFT_H2_DIFFERENTIAL_SEED` repeats one
//! connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_http::h2::conn::{Budgets, Config, Failure, Incoming, Role};
use weft_http::h2::hpack::HeadLimits;
use weft_http::h2::{Connection, FrameHead, FrameType};
use weft_http::{Frame, ResponseHead, Target};

use crate::h2_client_frames::connection;

/// How the two may differ on one kind of connection.
#[derive(Clone, Copy)]
enum Difference {
    /// Here one stream is refused; there the connection ends.
    StreamHere,
    /// Refused here, taken there.
    Stricter,
    /// Taken here, refused there or the end of the connection.
    Laxer,
}

/// Where they differ on purpose, and why.
const DIFFERENT: &[(&str, Difference, &[&str])] = &[
    (
        "a malformed head ends its stream (RFC 9113 §8.1.1); h2 takes it for a decoding error",
        Difference::StreamHere,
        &[
            "blank in a name",
            "colon in a name",
            "empty name",
            "capital letter in a name",
            "line end in a value",
            "NUL in a value",
            "control character in a value",
            "blank in a method",
            "empty method",
            "unknown pseudo field",
        ],
    ),
    (
        "errors of a stream by RFC 9113 §§5.1, 6.3, 6.9; h2 makes them errors of the connection",
        Difference::StreamHere,
        &[
            "DATA after the end",
            "HEADERS after the end",
            "PRIORITY too short",
            "WINDOW_UPDATE of 0 on a stream",
        ],
    ),
    (
        "no HTTP/1 message could say this, or it would say something else",
        Difference::Stricter,
        &[
            "blanks around a value",
            "asterisk with GET",
            "authority with user",
            "host says otherwise",
            "neither authority nor path",
            "pseudo field in trailers",
        ],
    ),
    ("an empty authority is none", Difference::Laxer, &["empty authority"]),
    ("an answer too many harms nobody", Difference::Laxer, &["acknowledgement of nothing"]),
];

/// Connections of a run that is not told otherwise.
const CONNECTIONS: u64 = 3_000;
/// Turns of every task after which nothing moves any more.
const TURNS: usize = 100;
const STREAMS_MAX: u32 = 100;
const WINDOW_BYTES: u32 = 65_535;

/// What became of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// A whole request: method, path, fields, content and trailers.
    Complete(String),
    /// It was reset, or answered as malformed.
    Refused,
    /// The rest of it did not come.
    Open,
}

/// What one side made of a connection.
#[derive(Debug, Default)]
struct Seen {
    streams: BTreeMap<u32, Outcome>,
    /// Why the connection ended, if it did.
    ended: Option<String>,
}

#[test]
fn both_engines_take_and_refuse_the_same() {
    let env = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let run = |seed| local.block_on(&runtime, compare(seed));
    let seeds = match env("WEFT_H2_DIFFERENTIAL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env("WEFT_H2_DIFFERENTIAL").unwrap_or(CONNECTIONS),
    };
    let mut differences = BTreeMap::new();
    for seed in seeds {
        if let Err((what, difference)) = run(seed) {
            differences.entry(what).or_insert(difference);
        }
    }
    let all: Vec<String> = differences.into_values().collect();
    assert!(all.is_empty(), "{}", all.join("\n\n"));
}

/// The kind of connection it was, and how the two differ, if they do.
async fn compare(seed: u64) -> Result<(), (&'static str, String)> {
    let sent = connection(seed);
    let (mut ours, mut theirs) = (ours(&sent.bytes), theirs(&sent.bytes).await);
    let what = sent.oddity.unwrap_or("sound");
    for reset in &sent.reset {
        ours.streams.remove(reset);
        theirs.streams.remove(reset);
    }
    let because = |why: &str| {
        let log = sent.log.join("\n");
        let text = format!(
            "{what}: {why}; repeat with WEFT_H2_DIFFERENTIAL_SEED={seed}\n{log}\n\
             ours {ours:?}\nh2 {theirs:?}"
        );
        Err((what, text))
    };
    // What one of them gave up too early to see says nothing; what both read must be the same.
    for (id, outcome) in &ours.streams {
        match (outcome, theirs.streams.get(id)) {
            (Outcome::Complete(ours), Some(Outcome::Complete(theirs))) if ours != theirs => {
                return because("a request reads differently");
            }
            _ => {}
        }
    }
    let allowed = DIFFERENT.iter().find(|(_, _, names)| names.contains(&what));
    match (
        allowed.map(|(_, difference, _)| difference),
        ours.ended.is_some(),
        theirs.ended.is_some(),
    ) {
        (None, true, true) => return Ok(()),
        (None | Some(Difference::Stricter | Difference::Laxer), false, false) => {}
        (Some(Difference::StreamHere | Difference::Laxer), false, true) => return Ok(()),
        _ => return because("not the same gives up the connection"),
    }
    for id in ours.streams.keys().chain(theirs.streams.keys()) {
        match (ours.streams.get(id), theirs.streams.get(id), allowed) {
            (ours, theirs, _) if ours == theirs => {}
            (Some(Outcome::Refused), _, Some((_, Difference::Stricter, _))) => {}
            (_, Some(Outcome::Refused), Some((_, Difference::Laxer, _))) => {}
            _ => return because("a stream ends differently"),
        }
    }
    Ok(())
}

fn ours(bytes: &[u8]) -> Seen {
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
    let mut text = format!("{} {}", head.method.as_bytes().escape_ascii(), path.escape_ascii());
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
    text.push('\n');
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

async fn theirs(bytes: &[u8]) -> Seen {
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
    let mut text = format!("{} {path}{authority}", head.method);
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
