//! An application that writes down every request and answers it. It reads strictly: whatever a
//! proxy sends that could be read in two ways is written down as such.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Marks answers that came from here.
pub const MARK: &str = "x-app: 1";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nx-app: 1\r\nContent-Length: 2\r\n\r\nok";

/// A request as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `METHOD target`, and the `Host`.
    pub line: String,
    /// `name: value` of every field in lower case and sorted; those of trailers begin with a `+`.
    pub fields: Vec<String>,
    pub body: Vec<u8>,
    /// Its body has ended.
    pub whole: bool,
    /// Why it can be read in two ways.
    pub doubtful: Option<&'static str>,
}

type Log = Arc<Mutex<Vec<Arc<Mutex<Seen>>>>>;

/// A recording application.
pub struct Backend {
    pub address: SocketAddr,
    log: Log,
}

impl Backend {
    pub async fn start() -> Backend {
        let (listener, address) = bind().await;
        let log = Log::default();
        let record = log.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, record.clone()));
            }
        });
        Backend { address, log }
    }

    /// hyper's own server, taken by its word.
    pub async fn start_hyper() -> Backend {
        let (listener, address) = bind().await;
        let log = Log::default();
        let record = log.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_hyper(stream, record.clone()));
            }
        });
        Backend { address, log }
    }

    /// The same for HTTP/2 with prior knowledge.
    pub async fn start_http2() -> Backend {
        let (listener, address) = bind().await;
        let log = Log::default();
        let record = log.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_http2(stream, record.clone()));
            }
        });
        Backend { address, log }
    }

    /// All requests so far, also those whose body goes on.
    pub fn all(&self) -> Vec<Seen> {
        let log = self.log.lock().expect("nobody panics with it");
        log.iter().map(|seen| seen.lock().expect("nobody panics with it").clone()).collect()
    }

    /// What arrived since [`Backend::forget`].
    pub fn take(&self) -> Vec<Seen> {
        let log = std::mem::take(&mut *self.log.lock().expect("nobody panics with it"));
        log.iter().map(|seen| seen.lock().expect("nobody panics with it").clone()).collect()
    }

    pub fn forget(&self) {
        self.log.lock().expect("nobody panics with it").clear();
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}

fn note(log: &Log, seen: Seen) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(seen));
    log.lock().expect("nobody panics with it").push(seen.clone());
    seen
}

async fn serve(mut stream: TcpStream, log: Log) {
    let mut wire = Wire { read: Vec::new() };
    while let Some(head) = wire.until(&mut stream, b"\r\n\r\n").await {
        let (seen, framing) = read_head(&head);
        let doubtful = seen.doubtful.is_some();
        let seen = note(&log, seen);
        if doubtful {
            return;
        }
        let whole = match framing {
            Framing::Length(length) => wire.bytes(&mut stream, length, &seen).await,
            Framing::Chunked => wire.chunks(&mut stream, &seen).await,
        };
        if whole.is_none() {
            return;
        }
        seen.lock().expect("nobody panics with it").whole = true;
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
    if !wire.read.is_empty() {
        note(&log, Seen { doubtful: Some("bytes that are no head"), ..Seen::default() });
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

/// A head, read so that any second reading is noticed.
fn read_head(head: &[u8]) -> (Seen, Framing) {
    let mut seen = Seen::default();
    let mut doubt = |why: &'static str| seen.doubtful = seen.doubtful.or(Some(why));
    let text = &head[..head.len() - 4];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    if lines.iter().any(|line| line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))) {
        doubt("a bare CR, LF or NUL");
    }
    let (mut host, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    seen.fields = lines[1..].iter().map(|line| field_text(line)).collect();
    for line in &lines[1..] {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            doubt("a line without a colon");
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(|byte| *byte <= b' ' || *byte >= 0x7f) {
            doubt("a bad field name");
        }
        match name.to_ascii_lowercase().as_slice() {
            b"host" => host.push(value),
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    if host.len() > 1 {
        doubt("two hosts");
    }
    if lengths.len() > 1 || codings.len() > 1 || (!lengths.is_empty() && !codings.is_empty()) {
        doubt("framed twice");
    }
    let mut framing = Framing::Length(0);
    if let Some(length) = lengths.first() {
        let digits = length.iter().all(u8::is_ascii_digit);
        match std::str::from_utf8(length).ok().filter(|_| digits).and_then(|n| n.parse().ok()) {
            Some(length) => framing = Framing::Length(length),
            None => doubt("a bad length"),
        }
    }
    if let Some(coding) = codings.first() {
        match coding.eq_ignore_ascii_case(b"chunked") {
            true => framing = Framing::Chunked,
            false => doubt("a bad transfer coding"),
        }
    }
    let line = String::from_utf8_lossy(lines[0]);
    let host = String::from_utf8_lossy(host.first().copied().unwrap_or_default());
    seen.line = format!("{} [{host}]", line.rsplit_once(' ').map_or(&*line, |(start, _)| start));
    (seen, framing)
}

/// A line with its name in lower case and no blanks around its value.
fn field_text(line: &[u8]) -> String {
    let text = line.escape_ascii().to_string();
    match text.split_once(':') {
        Some((name, value)) => format!("{}: {}", name.to_ascii_lowercase(), value.trim()),
        None => text,
    }
}

/// What was read and not yet taken.
struct Wire {
    read: Vec<u8>,
}

impl Wire {
    async fn more(&mut self, stream: &mut TcpStream) -> Option<()> {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(count @ 1..) => {
                self.read.extend_from_slice(&part[..count]);
                Some(())
            }
            _ => None,
        }
    }

    async fn until(&mut self, stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return Some(self.read.drain(..at + end.len()).collect());
            }
            self.more(stream).await?;
        }
    }

    async fn bytes(
        &mut self,
        stream: &mut TcpStream,
        length: usize,
        seen: &Mutex<Seen>,
    ) -> Option<()> {
        let mut left = length;
        loop {
            let part: Vec<u8> = self.read.drain(..left.min(self.read.len())).collect();
            left -= part.len();
            seen.lock().expect("nobody panics with it").body.extend_from_slice(&part);
            if left == 0 {
                return Some(());
            }
            self.more(stream).await?;
        }
    }

    async fn chunks(&mut self, stream: &mut TcpStream, seen: &Mutex<Seen>) -> Option<()> {
        let doubt = |why| seen.lock().expect("nobody panics with it").doubtful = Some(why);
        loop {
            let line = self.until(stream, b"\r\n").await?;
            let text = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
            let Ok(size) = usize::from_str_radix(&text, 16) else {
                doubt("a chunk size that is more than digits");
                return None;
            };
            if size == 0 {
                loop {
                    let line = self.until(stream, b"\r\n").await?;
                    if line.len() == 2 {
                        return Some(());
                    }
                    let text = format!("+{}", field_text(&line[..line.len() - 2]));
                    seen.lock().expect("nobody panics with it").fields.push(text);
                }
            }
            self.bytes(stream, size, seen).await?;
            if self.until(stream, b"\r\n").await?.len() != 2 {
                doubt("a chunk longer than its size");
                return None;
            }
        }
    }
}

async fn serve_hyper(stream: TcpStream, log: Log) {
    let service = service_fn(move |request| record(request, log.clone()));
    let server = hyper::server::conn::http1::Builder::new();
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn serve_http2(stream: TcpStream, log: Log) {
    let service = service_fn(move |request| record(request, log.clone()));
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn record(
    request: hyper::Request<Incoming>,
    log: Log,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let host = head.headers.get("host").map(|host| host.as_bytes()).unwrap_or_default();
    let line = format!("{} {} [{}]", head.method, head.uri, String::from_utf8_lossy(host));
    let text = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        format!("{name}: {}", value.as_bytes().escape_ascii())
    };
    let fields = head.headers.iter().map(text).collect();
    let seen = note(&log, Seen { line, fields, ..Seen::default() });
    loop {
        let Some(frame) = body.frame().await else { break };
        let Ok(frame) = frame else { return Ok(Response::default()) };
        let mut seen = seen.lock().expect("nobody panics with it");
        if let Some(trailers) = frame.trailers_ref() {
            seen.fields.extend(trailers.iter().map(|field| format!("+{}", text(field))));
        } else if let Some(data) = frame.data_ref() {
            seen.body.extend_from_slice(data);
        }
    }
    seen.lock().expect("nobody panics with it").whole = true;
    let answer = Response::builder().header("x-app", "1");
    Ok(answer.body(Full::new(Bytes::from_static(b"ok"))).expect("a valid response"))
}
