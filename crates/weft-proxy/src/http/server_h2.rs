//! HTTP/2 towards clients: one task per connection takes streams, one task per stream runs the
//! request path.
//!
//! Owns connection settings, what ends a connection (idle, drain, a listener that is gone), and one
//! stream as the client's side of a request. Must not know routes or upstreams.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::time::Sleep;
use weft_http::h2::ErrorCode;
use weft_http::h2::conn::{self, Config, Connection, Failure, Role, StreamError, StreamKey};
use weft_http::h2::hpack::{HeadError, HeadLimits};
use weft_http::{BodyLength, Frame, Known, Method, RequestHead, ResponseHead, Scheme, rules};

use super::conn::HttpConn;
use super::downstream::Downstream;
use super::h2_link::{CONNECTION, Late, Link, PING_TIMEOUT, Turn, Watch, Wire};
use super::local_reply;
use super::request::{Incoming, Served};
use super::server_h1::HEAD_TIMEOUT;
use crate::drain::DrainState;
use crate::error::{ErrorKind, ProxyError};
use crate::net::Io;

/// Streams a client may have open at once, unless the listener says otherwise; HTTP/2
/// recommends at least 100 (RFC 9113 §6.5.2).
const STREAMS_MAX: u32 = 1000;
/// Bytes a client may send on one stream before we have forwarded any.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same over all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// One stream: the client's side of one request. Dropped unfinished, it is reset.
pub(crate) struct H2Server {
    link: Rc<Link>,
    key: StreamKey,
    method: Method,
    head_sent: bool,
    /// The head was malformed: the stream ends with a reset whatever was answered.
    malformed: bool,
}

/// Serves the connection until it ends.
/// `read` is what was read of it to find out that it is HTTP/2.
/// `upgraded`: HTTP/1 was upgraded to this connection, which has its first request already.
pub(crate) async fn serve(
    io: Io,
    read: BytesMut,
    conn: Rc<HttpConn>,
    upgraded: Option<Box<Connection>>,
) {
    let link = Rc::new(Link::new(match upgraded {
        Some(connection) => *connection,
        None => Connection::new(Role::Server, config(&conn)),
    }));
    take_requests(&link, &conn);
    let mut wire = Wire::new(&link, io, read);
    {
        let now = Instant::now();
        let mut timer = pin!(tokio::time::sleep(super::h2_link::TICK));
        let mut way_out = pin!(WayOut::new(&conn));
        let mut watch = watch(&conn, now);
        let mut round = conn.worker.report_round();
        poll_fn(|cx| {
            wire.poll_read(cx, || take_requests(&link, &conn));
            link.with(|connection| way_out.as_mut().poll(connection, cx));
            if std::mem::replace(&mut round, conn.worker.report_round()) != round {
                link.with(Connection::wake_moved);
            }
            match poll_rest(&link, &mut wire, &mut watch, timer.as_mut(), cx) {
                Turn::Wait => Poll::Pending,
                Turn::Close => Poll::Ready(()),
            }
        })
        .await;
        match watch.ended() {
            Some(Late::Head) => conn.worker.counters.limits.request_head.inc(),
            Some(Late::Handshake) => conn.worker.counters.h2_ended("handshake_timeout"),
            Some(Late::Stalled) => conn.worker.counters.h2_ended("stalled"),
            None => {}
        }
    }
    if let Some(failure) = link.with(|connection| connection.failure()) {
        ended(&conn, failure);
    }
    Box::pin(wire.close()).await;
}

fn poll_rest(
    link: &Link,
    wire: &mut Wire<'_>,
    watch: &mut Watch,
    timer: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Turn {
    let in_head = wire.in_head();
    link.with(|connection| watch.poll(connection, in_head, timer, cx));
    let turn = wire.poll_write(cx);
    watch.written(link);
    turn
}

fn ended(conn: &HttpConn, failure: Failure) {
    tracing::debug!(%failure, "HTTP/2 connection ended");
    match failure {
        Failure::Abuse(abuse) => conn.worker.counters.h2_ended(abuse.name()),
        Failure::Protocol(_) => conn.worker.counters.h2_ended("protocol_error"),
        Failure::Lost | Failure::Closed => {}
    }
}

pub(crate) fn config(conn: &HttpConn) -> Config {
    let rules = &conn.http.http2;
    let limits = &conn.http.limits;
    let fields_max = limits.headers_max as usize + PSEUDO_FIELDS;
    Config {
        streams_max: rules.concurrent_streams_max.unwrap_or(STREAMS_MAX),
        stream_window_bytes: rules.stream_window_bytes.unwrap_or(STREAM_WINDOW_BYTES),
        connection_window_bytes: rules.connection_window_bytes.unwrap_or(CONNECTION_WINDOW_BYTES),
        head: HeadLimits {
            list_bytes_max: limits.head_bytes_max as usize + fields_max * FIELD_OVERHEAD_BYTES,
            fields_max,
        },
        connect_protocol: rules.allow_connect,
        budgets: conn.worker.limits.h2_budgets,
    }
}

/// Pseudo fields of a request at most.
const PSEUDO_FIELDS: usize = 5;
/// What HTTP/2 counts for each field beside name and value (RFC 9113 §6.5.2).
const FIELD_OVERHEAD_BYTES: usize = 32;

fn watch(conn: &HttpConn, now: Instant) -> Watch {
    let rules = &conn.http.http2;
    let mut watch = Watch::new(now, conn.worker.limits.h2_handshake);
    watch.idle_limit = conn.http.timeouts.idle;
    watch.head_limit = Some(conn.http.timeouts.request_headers.unwrap_or(HEAD_TIMEOUT));
    watch.expires = conn.expires();
    let stall = conn.worker.limits.client_stall;
    watch.stall_limit = (!stall.is_zero()).then_some(stall);
    watch.ping_interval = rules.keepalive_interval;
    watch.ping_timeout = rules.keepalive_timeout.unwrap_or(PING_TIMEOUT);
    watch
}

/// Starts what has come in one read.
fn take_requests(link: &Rc<Link>, conn: &Rc<HttpConn>) {
    let mut received = None;
    while let Some(incoming) = link.with(Connection::next_request) {
        // One look at the clock and the configuration per read: they came together.
        let received = *received.get_or_insert_with(|| {
            if conn.is_orphaned() || conn.is_expired() {
                link.with(Connection::shutdown);
            }
            conn.worker.tick()
        });
        start(incoming, link.clone(), conn.clone(), received);
    }
}

fn start(incoming: conn::Incoming, link: Rc<Link>, conn: Rc<HttpConn>, received: Instant) {
    let conn::Incoming { key, head, protocol, ended } = incoming;
    let head = match (&head, &protocol) {
        (Ok(_), Some(_)) if !conn.http.http2.allow_connect => {
            Err(HeadError::Malformed(rules::H2Error::Pseudo))
        }
        _ => head,
    };
    let method = match &head {
        Ok(head) => head.method.clone(),
        Err(_) => Method::Get,
    };
    let malformed = head.is_err();
    let side = H2Server { link, key, method, head_sent: false, malformed };
    // Boxed: a task moves its future several times between cells of the future's size. What is made
    // of the head is made before, so that the future does not hold the head as well.
    match head {
        Ok(head) => {
            let incoming = incoming_of(head, protocol, ended, &conn);
            let served = Served::new(incoming, received, &conn);
            tokio::task::spawn_local(Box::pin(serve_stream(served, side, conn)));
        }
        Err(error) => {
            let status = match error {
                HeadError::TooLarge => 431,
                HeadError::Malformed(_) => 400,
            };
            let error = ProxyError::new(ErrorKind::DownstreamProtocol(status)).with_source(error);
            let mut side = side;
            tokio::task::spawn_local(Box::pin(async move {
                local_reply::refuse(&mut Downstream::H2(&mut side), error, received, &conn).await;
            }));
        }
    }
}

/// The task of one request: what an open stream costs while nothing happens on it.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps what it is given twice")]
fn serve_stream(
    mut served: Served,
    mut side: H2Server,
    conn: Rc<HttpConn>,
) -> impl Future<Output = ()> {
    async move {
        served.run(&mut Downstream::H2(&mut side), &conn).await;
        served.finish(&conn);
    }
}

fn incoming_of(
    mut head: RequestHead,
    protocol: Option<Bytes>,
    ended: bool,
    conn: &HttpConn,
) -> Incoming {
    if conn.is_tls() {
        head.scheme = Scheme::Https;
    }
    let (body, connection) = match protocol {
        // What follows is the tunnel's, and nothing of it leaves before there is one.
        Some(protocol) => (BodyLength::None, rules::h2_connect_to_h1(&mut head, &protocol)),
        None if ended => (BodyLength::None, CONNECTION),
        None => {
            let length = head.headers.get_known(Known::ContentLength);
            (length_or_streamed(length), CONNECTION)
        }
    };
    Incoming { head, body, connection }
}

/// The framing of a message with content.
pub(crate) fn length_or_streamed(content_length: Option<&[u8]>) -> BodyLength {
    match content_length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()) {
        Some(length) => BodyLength::Exact(length),
        None => BodyLength::Streamed,
    }
}

/// Tells the connection when the process leaves. The wait registers once for each stage; asking in
/// between is one load.
struct WayOut<'c, D, C> {
    conn: &'c HttpConn,
    started: Instant,
    seen: Option<DrainState>,
    draining: D,
    closing: C,
}

impl<'c> WayOut<'c, crate::drain::Reached<'c>, crate::drain::Reached<'c>> {
    fn new(conn: &'c HttpConn) -> Self {
        let drain = &conn.worker.drain;
        let started = Instant::now();
        Self { conn, started, seen: None, draining: drain.draining(), closing: drain.closing() }
    }

    fn poll(mut self: Pin<&mut Self>, connection: &mut Connection, cx: &mut Context<'_>) {
        let state = self.conn.worker.drain.state();
        if self.seen.replace(state) == Some(state) {
            return;
        }
        if Pin::new(&mut self.draining).poll(cx).is_ready() {
            // A young connection's first request may be on its way; the first tick ends the wait.
            match self.started.elapsed() < super::h2_link::TICK {
                true => connection.shutdown_after_first(),
                false => connection.shutdown(),
            }
        }
        if Pin::new(&mut self.closing).poll(cx).is_ready() {
            connection.shutdown_now(ErrorCode::NO_ERROR);
        }
    }
}

impl H2Server {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        let frame = self.link.with(|connection| connection.poll_frame(self.key, cx));
        frame.map(|frame| frame.map(|frame| frame.map_err(client_error)))
    }

    pub(crate) fn input_done(&self) -> bool {
        self.link.with(|connection| connection.input_done(self.key))
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            self.link.with(|connection| connection.release(self.key, bytes));
        }
    }

    pub(crate) fn send_informational(&mut self, head: &mut ResponseHead) {
        rules::response_to_h2(head, &CONNECTION);
        // A client that is gone shows on the final head.
        self.link.with(|connection| connection.send_informational(self.key, head));
    }

    pub(crate) fn send_head(
        &mut self,
        head: &mut ResponseHead,
        body: BodyLength,
    ) -> Result<(), ProxyError> {
        let tunnel = head.status == 101;
        if tunnel {
            rules::h1_switch_to_h2(head);
        }
        let framing =
            rules::response_framing(&self.method, head.status, body, weft_http::Version::H2);
        let empty = !tunnel && (body.is_empty() || framing.length.is_empty());
        rules::response_to_h2(head, &CONNECTION);
        self.head_sent = true;
        self.link
            .with(|connection| connection.send_head(self.key, head, empty))
            .map_err(client_error)
    }

    pub(crate) fn head_sent(&self) -> bool {
        self.head_sent
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.link.with(|connection| connection.poll_ready(self.key, cx)).map_err(client_error)
    }

    pub(crate) fn send(&mut self, frame: Frame) {
        self.link.with(|connection| connection.send(self.key, frame));
    }

    pub(crate) fn end(&mut self) {
        self.link.with(|connection| connection.end(self.key));
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ProxyError> {
        self.link.with(|connection| {
            // After the end of the response a reset no longer concerns us.
            match connection.output_done(self.key) {
                true => Poll::Pending,
                false => connection.poll_failed(self.key, cx).map(client_error),
            }
        })
    }

    /// Cuts the response; `code` is with what an endpoint reset its stream.
    pub(crate) fn abort(&mut self, code: Option<u32>) {
        let code = code.map_or(ErrorCode::INTERNAL_ERROR, ErrorCode);
        self.link.with(|connection| connection.cut(self.key, code));
    }
}

impl Drop for H2Server {
    fn drop(&mut self) {
        self.link.with(|connection| match self.malformed {
            true => connection.reject(self.key),
            false => connection.close(self.key),
        });
    }
}

/// The client's stream or connection failed: whatever the reason, it is not there any more, unless
/// it broke the protocol.
fn client_error(error: StreamError) -> ProxyError {
    match error {
        StreamError::Protocol { .. } => {
            ProxyError::new(ErrorKind::DownstreamProtocol(400)).with_source(error)
        }
        // The endpoint is told the same.
        StreamError::Reset(code) => ProxyError::disconnect(error).with_reset_code(code.0),
        StreamError::Refused | StreamError::Lost | StreamError::Closed => {
            ProxyError::disconnect(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_open_stream_keeps_little() {
        let size = size_of_future(serve_stream);
        // The allocator's sizes are 1536, 1792 and 2048.
        assert!(size <= 2048, "{size} bytes");
    }
}
