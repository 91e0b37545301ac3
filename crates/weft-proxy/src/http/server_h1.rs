//! HTTP/1 towards clients: one loop per connection, one request at a time.
//!
//! ```text
//! idle ── bytes ──▶ head ── whole ──▶ request path ── done ──▶ idle
//!   │ timeout, drain   │ bad, slow         │ cut, close
//!   ▼                  ▼ 4xx               ▼
//! close ◀───────── lingering close ◀───────┘
//! ```
//! Owns keep-alive, pipelining, response framing for the client and how the connection ends. An
//! idle connection holds no buffer and no request state. Must not know routes or upstreams.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::time::Sleep;
use weft_http::h1::{ParseError, Parsed, write_response};
use weft_http::h2::conn::Connection;
use weft_http::{BodyLength, Frame, Method, ResponseHead, Scheme, Version, rules};

use super::busy;
use super::conn::HttpConn;
use super::downstream::Downstream;
use super::h1_body::{BodyError, H1};
use super::h2c;
use super::local_reply;
use super::parking::{PARK_AFTER, Parked};
use super::request::{self, Incoming};
use super::wire::{self, Wire};
use crate::error::{ErrorKind, ProxyError};
use crate::handover::{Idle, Passed};
use crate::net::Io;
use crate::net::pipe::Pipe;

/// How an HTTP/2 client without ALPN opens (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client must finish its head within this, unless the listener says otherwise.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a closed connection is read so that our last response is not lost to a reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much is read and thrown away meanwhile.
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// A connection that has been idle this long when the process drains is closed at once.
const DRAIN_IDLE: Duration = Duration::from_secs(1);
/// How much of the requests behind the one being served is read before its response is done. Bytes.
const PIPELINED_BYTES_MAX: usize = 16 * 1024;

/// One client connection and the message under way on it.
pub(crate) struct H1Server {
    h1: H1,
    version: Version,
    method: Method,
    /// The client would take another response after this one, and so would we.
    keep_alive: bool,
    head_sent: bool,
    aborted: bool,
    requests: u32,
}

/// A connection that goes on as HTTP/2.
pub(crate) struct H2Start {
    pub(crate) io: Io,
    /// What was read of it.
    pub(crate) read: BytesMut,
    /// The client asked for it with a request, which is in here.
    pub(crate) upgraded: Option<Box<Connection>>,
}

/// Serves the connection until it ends; gives nothing back.
pub(crate) fn serve(io: Io, conn: Rc<HttpConn>) -> impl Future<Output = Option<H2Start>> {
    run(io, conn, false)
}

/// Serves the connection until it ends, unless it opens as HTTP/2 or asks for it: then gives it
/// back.
pub(crate) fn serve_unless_h2(io: Io, conn: Rc<HttpConn>) -> impl Future<Output = Option<H2Start>> {
    run(io, conn, true)
}

/// A connection that no longer idles.
pub(super) struct Job {
    io: Io,
    next: Next,
    conn: Rc<HttpConn>,
    /// Requests so far.
    requests: u32,
    /// These are the first bytes, and may be HTTP/2.
    detect: bool,
}

/// How a stretch of requests ended.
pub(super) enum Rest {
    /// Nothing more is there: the connection idles. With the requests so far.
    Idle(Io, u32),
    H2(H2Start),
    Closed,
}

fn run(io: Io, conn: Rc<HttpConn>, detect: bool) -> impl Future<Output = Option<H2Start>> {
    let since = conn.worker.now();
    go_on(io, conn, 0, detect, since)
}

/// Goes on with a connection that was parked.
pub(super) async fn resume(parked: Parked) {
    let Parked { io, conn, requests, since } = parked;
    match io.resume() {
        Ok(io) => {
            // Past its first request, it is not HTTP/2.
            go_on(io, conn, requests, false, since).await;
        }
        Err(error) => tracing::warn!(%error, "a parked connection is lost"),
    }
}

/// Serves a connection, idle since `since`, until it ends or is parked.
#[allow(
    clippy::manual_async_fn,
    reason = "an async function keeps its arguments beside what it makes of them, and an idle \
              connection is little more than this state"
)]
fn go_on(
    mut io: Io,
    conn: Rc<HttpConn>,
    mut requests: u32,
    mut detect: bool,
    mut since: Instant,
) -> impl Future<Output = Option<H2Start>> {
    async move {
        {
            let timer = conn.idle_due(since).min(Instant::now() + PARK_AFTER);
            let mut watch = IdleWatch {
                draining: pin!(conn.worker.drain.draining()),
                drained: false,
                timer: pin!(tokio::time::sleep_until(timer.into())),
                registered: false,
                conn: &conn,
                park_at: io.can_park().then(|| Instant::now() + PARK_AFTER),
            };
            loop {
                let read = poll_fn(|cx| match wire::poll_first(&mut io, cx) {
                    Poll::Ready(read) => Poll::Ready(Next::Read(read.unwrap_or_default())),
                    Poll::Pending => watch.poll_next(cx, since),
                });
                let serving = match read.await {
                    Next::Park => break,
                    next => {
                        let conn = conn.clone();
                        busy::serve(Job { io, next, conn, requests, detect })
                    }
                };
                detect = false;
                (io, requests) = match serving.await {
                    Rest::Idle(io, requests) => (io, requests),
                    Rest::H2(start) => return Some(start),
                    Rest::Closed => return None,
                };
                since = conn.worker.now();
                watch.park_at = io.can_park().then_some(since + PARK_AFTER);
            }
        }
        let worker = conn.worker.clone();
        match io.park() {
            Ok(io) => worker.parking.park(Parked { io, conn, requests, since }),
            Err(error) => tracing::warn!(%error, "an idle connection is lost"),
        }
        None
    }
}

/// What an idle connection does next.
pub(super) enum Next {
    /// It serves what was read; nothing: the client has closed.
    Read(BytesMut),
    /// Its time is over, or the process leaves.
    Leave,
    Park,
}

/// Serves requests for as long as their bytes are there already, or ends the connection.
pub(super) async fn serve_while_busy(job: Job) -> Rest {
    let Job { io, next, conn, requests, detect } = job;
    let (input, ended) = match next {
        Next::Read(input) => (input, true),
        Next::Leave | Next::Park => (BytesMut::new(), false),
    };
    let idle = input.is_empty();
    let mut server = H1Server::new(Wire::with_input(io, input, ended && idle), &conn);
    server.requests = requests;
    let mut first = detect;
    if first && !idle && Box::pin(server.opens_h2()).await {
        return Rest::H2(server.into_h2(None));
    }
    while !server.h1.wire.input.is_empty() {
        match server.serve_one(&conn, first).await {
            Served::Next if server.h1.wire.is_quiet() => {
                return Rest::Idle(server.h1.wire.into_idle(), server.requests);
            }
            Served::Next => first = false,
            Served::Last => break,
            Served::Upgraded(connection) => return Rest::H2(server.into_h2(Some(connection))),
        }
    }
    Box::pin(server.leave(&conn)).await;
    Rest::Closed
}

/// What follows a request.
enum Served {
    Next,
    /// The connection is to be closed.
    Last,
    /// HTTP/2, and the request in it.
    Upgraded(Box<Connection>),
}

/// What comes before a request.
enum Ahead {
    /// The rest of its head. `first`: it may ask for HTTP/2.
    Rest { first: bool },
    /// It asks for HTTP/2, and is the first on this connection.
    Switch(Box<Connection>),
    /// It is none.
    Refuse(ProxyError),
}

#[inline]
fn place_request(
    incoming: Incoming,
    conn: &HttpConn,
    first: bool,
    received: Instant,
    place: &mut Option<request::Served>,
) -> Option<Ahead> {
    if first && let Some(connection) = h2c::asked(&incoming, conn) {
        return Some(Ahead::Switch(connection));
    }
    *place = Some(request::Served::new(incoming, received, conn));
    None
}

impl H1Server {
    #[inline]
    fn new(mut wire: Wire, conn: &HttpConn) -> Self {
        if let Some(bytes) = conn.context.listener.buffer_bytes_max {
            wire.limit_buffers(bytes);
        }
        Self {
            h1: H1::new(wire, conn.h1_limits()),
            version: Version::H11,
            method: Method::Get,
            keep_alive: true,
            head_sent: false,
            aborted: false,
            requests: 0,
        }
    }

    /// Whether the client opens with the HTTP/2 preface; reads on while that is undecided.
    async fn opens_h2(&mut self) -> bool {
        let wire = &mut self.h1.wire;
        let decide = poll_fn(|cx| {
            loop {
                let seen = wire.input.len().min(H2_PREFACE.len());
                if wire.input[..seen] != H2_PREFACE[..seen] {
                    return Poll::Ready(false);
                }
                if seen == H2_PREFACE.len() {
                    return Poll::Ready(true);
                }
                if !matches!(ready!(wire.poll_fill(cx)), Ok(true)) {
                    return Poll::Ready(false);
                }
            }
        });
        tokio::time::timeout(HEAD_TIMEOUT, decide).await.unwrap_or(false)
    }

    /// Reads one request and answers it. `first`: it may ask for HTTP/2.
    async fn serve_one(&mut self, conn: &HttpConn, first: bool) -> Served {
        let received = conn.worker.tick();
        self.head_sent = false;
        self.requests = self.requests.saturating_add(1);
        // It goes to its place at once: every request under way holds this state, and whatever it
        // passed through on the way would be part of it.
        let mut place = None;
        let ahead = self.take_request(conn, first, received, &mut place);
        if let Some(ahead) = ahead
            && let Some(end) =
                Box::pin(self.without_request(ahead, conn, received, &mut place)).await
        {
            return end;
        }
        if let Some(served) = &mut place {
            served.run(&mut Downstream::H1(self), conn).await;
        }
        if let Some(served) = place {
            served.finish(conn);
        }
        match self.keep_alive && !self.aborted && self.h1.input_done() && self.h1.output_done() {
            true => Served::Next,
            false => Served::Last,
        }
    }

    /// Puts the request into `place`, if its head is here, as nearly always; else says what comes
    /// first.
    #[inline]
    fn take_request(
        &mut self,
        conn: &HttpConn,
        first: bool,
        received: Instant,
        place: &mut Option<request::Served>,
    ) -> Option<Ahead> {
        match self.parse_head(conn) {
            Ok(Some(incoming)) => place_request(incoming, conn, first, received, place),
            Ok(None) => Some(Ahead::Rest { first }),
            Err(error) => Some(Ahead::Refuse(error)),
        }
    }

    /// Does what comes before a request; `None` when it is in its place.
    async fn without_request(
        &mut self,
        ahead: Ahead,
        conn: &HttpConn,
        received: Instant,
        place: &mut Option<request::Served>,
    ) -> Option<Served> {
        let ahead = match ahead {
            // Only a slow head costs a timer.
            Ahead::Rest { first } => match self.read_head(conn).await {
                Ok(Some(incoming)) => place_request(incoming, conn, first, received, place)?,
                Ok(None) => return Some(Served::Last),
                Err(error) => Ahead::Refuse(error),
            },
            ahead => ahead,
        };
        match ahead {
            Ahead::Switch(connection) if self.switch().await => {
                return Some(Served::Upgraded(connection));
            }
            Ahead::Switch(_) | Ahead::Rest { .. } => {}
            Ahead::Refuse(error) => {
                self.keep_alive = false;
                local_reply::refuse(&mut Downstream::H1(self), error, received, conn).await;
            }
        }
        Some(Served::Last)
    }

    /// Tells the client that HTTP/2 begins; false when it does not take it.
    async fn switch(&mut self) -> bool {
        self.h1.wire.output.push(Bytes::from_static(h2c::SWITCHING));
        let sent = poll_fn(|cx| self.h1.wire.poll_flush(cx));
        matches!(tokio::time::timeout(HEAD_TIMEOUT, sent).await, Ok(Ok(())))
    }

    fn into_h2(self, upgraded: Option<Box<Connection>>) -> H2Start {
        let (io, read) = self.h1.wire.into_parts();
        H2Start { io, read, upgraded }
    }

    /// Reads on until the head is whole; `None`: the client left.
    async fn read_head(&mut self, conn: &HttpConn) -> Result<Option<Incoming>, ProxyError> {
        let timeout = conn.http.timeouts.request_headers.unwrap_or(HEAD_TIMEOUT);
        let read = poll_fn(|cx| {
            loop {
                match ready!(self.h1.wire.poll_fill(cx)) {
                    Ok(true) => {}
                    // Leaving between requests, or in the middle of a head, is nobody's error.
                    Ok(false) | Err(_) => return Poll::Ready(Ok(None)),
                }
                if let Some(incoming) = self.parse_head(conn)? {
                    return Poll::Ready(Ok(Some(incoming)));
                }
            }
        });
        match tokio::time::timeout(timeout, read).await {
            Ok(read) => {
                conn.worker.tick();
                read
            }
            Err(_) => Err(ErrorKind::DownstreamTimeout.into()),
        }
    }

    /// The request, if its head is here.
    #[inline]
    fn parse_head(&mut self, conn: &HttpConn) -> Result<Option<Incoming>, ProxyError> {
        let (mut head, body, connection) = match self.h1.parse_request() {
            Ok(Parsed::Complete(parsed)) => parsed,
            Ok(Parsed::Partial) => return Ok(None),
            Err(error) => return Err(refused(error)),
        };
        let accepts = conn.http.http1.accept_http10 && !conn.worker.policy.refuse_http10;
        if head.version == Version::H10 && !accepts {
            conn.worker.counters.http_quirk("http10_refused");
            return Err(ErrorKind::DownstreamProtocol(426).into());
        }
        if conn.is_tls() {
            head.scheme = Scheme::Https;
        }
        self.version = head.version;
        self.method = head.method.clone();
        self.keep_alive = connection.keep_alive && conn.keep_alive(self.requests);
        self.h1.start_input(body);
        Ok(Some(Incoming { head, body, connection }))
    }

    /// Passes the connection on, or ends it.
    async fn leave(self, conn: &HttpConn) {
        if conn.is_expired() {
            conn.worker.counters.limits.connection_duration.inc();
        }
        if let Some(server) = self.pass_on(conn) {
            server.close().await;
        }
    }

    /// Gives a connection between two requests to the newer proxy that has taken over; gives it
    /// back when it is none, or nobody takes it.
    fn pass_on(self, conn: &HttpConn) -> Option<Self> {
        let between = self.keep_alive
            && !self.aborted
            && self.h1.input_done()
            && self.h1.output_done()
            && self.h1.wire.is_quiet();
        if !between || !conn.can_pass() {
            return Some(self);
        }
        let (io, _) = self.h1.wire.into_parts();
        let socket = io.into_plain_socket()?;
        let listener = conn.context.accepted_by.clone();
        let idle_ms = u64::try_from(conn.idle_limit().as_millis()).unwrap_or(u64::MAX);
        let open = conn.worker.drain.open();
        // An heir that went away at this very moment leaves nobody to serve it.
        let _ = conn.worker.heir.pass(Passed { socket, idle: Idle { listener, idle_ms }, open });
        None
    }

    /// Ends the connection. When the client may still be sending, reads on for a moment: closing
    /// a socket with unread bytes resets it, and the reset can overtake our last response.
    async fn close(mut self) {
        let unread = !self.h1.input_done() || !self.h1.wire.input.is_empty();
        let closing = async {
            let _ = poll_fn(|cx| self.h1.wire.poll_flush(cx)).await;
            let _ = poll_fn(|cx| self.h1.wire.poll_shutdown(cx)).await;
            let mut left = LINGER_BYTES_MAX;
            while unread && !self.aborted && left > 0 {
                left = left.saturating_sub(self.h1.wire.input.len());
                self.h1.wire.input.clear();
                match poll_fn(|cx| self.h1.wire.poll_fill(cx)).await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER_TIMEOUT, closing).await;
    }

    /// Takes the connection's bytes for a tunnel; nothing else may use it afterwards.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        self.keep_alive = false;
        &mut self.h1.wire
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        self.h1.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(body_error)))
    }

    pub(crate) fn input_done(&self) -> bool {
        self.h1.input_done()
    }

    pub(crate) fn send_informational(&mut self, head: &mut ResponseHead) {
        if self.version == Version::H11 {
            head.version = Version::H11;
            write_response(head, BodyLength::None, &mut self.h1.wire.output);
        }
    }

    /// The response is framed for this client whatever framing it came with (RFC 9112 §6).
    pub(crate) fn send_head(&mut self, head: &mut ResponseHead, body: BodyLength) {
        let framing = rules::response_framing(&self.method, head.status, body, self.version);
        head.version = self.version;
        self.keep_alive &= !framing.close;
        if head.status != 101 {
            rules::set_connection(&mut head.headers, self.version, self.keep_alive);
        }
        self.h1.wire.warm_output();
        write_response(head, framing.length, &mut self.h1.wire.output);
        self.h1.start_output(framing.length);
        self.head_sent = true;
    }

    pub(crate) fn head_sent(&self) -> bool {
        self.head_sent
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.h1.poll_ready(cx).map_err(ProxyError::disconnect)
    }

    pub(crate) fn send(&mut self, frame: Frame) -> Result<(), ProxyError> {
        // Only an upstream whose body contradicts its own head gets here.
        self.h1.send(frame).map_err(|e| ProxyError::new(ErrorKind::UpstreamProtocol).with_source(e))
    }

    pub(crate) fn end(&mut self) -> Result<(), ProxyError> {
        self.h1.end().map_err(|e| ProxyError::new(ErrorKind::UpstreamProtocol).with_source(e))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.h1.wire.poll_flush(cx).map_err(ProxyError::disconnect)
    }

    pub(crate) fn takes_pipe(&self) -> bool {
        self.h1.takes_pipe()
    }

    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, ProxyError>> {
        self.h1.poll_drain(cx, pipe).map_err(ProxyError::disconnect)
    }

    /// Ready when the client has closed or reset its connection while its response is under way. A
    /// half-closed client counts as gone, as in Envoy: nobody can tell it from one that closed.
    /// While the request body is still being read, its reader notices.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ProxyError> {
        if !self.h1.input_done() {
            return Poll::Pending;
        }
        // Pipelined requests wait in the buffer; behind that many a close is seen later.
        while self.h1.wire.input.len() < PIPELINED_BYTES_MAX {
            match ready!(self.h1.wire.poll_ahead(cx)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(ProxyError::disconnect("the client closed")),
                Err(error) => return Poll::Ready(ProxyError::disconnect(error)),
            }
        }
        Poll::Pending
    }

    pub(crate) fn unsent_bytes(&self) -> usize {
        self.h1.wire.output.len()
    }

    pub(crate) fn close_after(&mut self) {
        self.keep_alive = false;
    }

    pub(crate) fn abort(&mut self) {
        self.aborted = true;
    }

    /// The request body will not be read: what of it has arrived is thrown away, and if that was
    /// not all the connection cannot carry another request.
    pub(crate) fn give_up_input(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(Ok(_))) = self.h1.poll_frame(cx) {}
        self.keep_alive &= self.h1.input_done();
    }
}

/// When an idle connection should go: idle timeout, drain, or to be parked. One timer serves all and
/// is moved only when it fires, so a request costs no timer operation.
struct IdleWatch<'p, D> {
    conn: &'p HttpConn,
    draining: Pin<&'p mut D>,
    drained: bool,
    timer: Pin<&'p mut Sleep>,
    /// Drain and timer wake this task when they come.
    registered: bool,
    /// `None`: it cannot be.
    park_at: Option<Instant>,
}

impl<D: Future<Output = ()>> IdleWatch<'_, D> {
    /// Ready when a connection idle since `since` should be closed or parked.
    fn poll_next(&mut self, cx: &mut Context<'_>, since: Instant) -> Poll<Next> {
        // The task's waker stays the same, so it need not be left again.
        let news = self.conn.worker.drain.is_draining() || self.timer.is_elapsed();
        if self.registered && !news {
            return Poll::Pending;
        }
        self.registered = true;
        if !self.drained && self.draining.as_mut().poll(cx).is_ready() {
            self.drained = true;
            self.park_at = None;
            let due = self.due(since);
            self.timer.as_mut().reset(due.into());
        }
        if self.drained && self.conn.can_pass() {
            return Poll::Ready(Next::Leave);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let (due, now) = (self.due(since), Instant::now());
            if now >= due {
                if !self.drained && !self.conn.is_expired() {
                    self.conn.worker.counters.limits.connection_idle.inc();
                }
                return Poll::Ready(Next::Leave);
            }
            match self.park_at.filter(|_| !self.drained) {
                Some(park_at) if now >= park_at => return Poll::Ready(Next::Park),
                Some(park_at) => self.timer.as_mut().reset(due.min(park_at).into()),
                None => self.timer.as_mut().reset(due.into()),
            }
        }
    }

    fn due(&self, since: Instant) -> Instant {
        let due = self.conn.idle_due(since);
        // After a hand-over nobody is in a hurry: the next request hears that it is the last, and
        // none is lost to a close that crosses it.
        match self.drained && !self.conn.worker.heir.has_taken_over() {
            true => due.min(since + DRAIN_IDLE),
            false => due,
        }
    }
}

fn refused(error: ParseError) -> ProxyError {
    ProxyError::new(ErrorKind::DownstreamProtocol(error.status())).with_source(error)
}

fn body_error(error: BodyError) -> ProxyError {
    match error {
        BodyError::Io(error) => ProxyError::disconnect(error),
        BodyError::Parse(ParseError::Truncated) => ProxyError::disconnect(ParseError::Truncated),
        BodyError::Parse(error) => refused(error),
    }
}
