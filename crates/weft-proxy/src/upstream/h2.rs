//! HTTP/2 towards endpoints: connections shared by many requests, and one request's stream.
//!
//! Owns settings, the task of each connection, and what a reset or GOAWAY means for a retry.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use weft_http::h2::ErrorCode;
use weft_http::h2::conn::{self, Config, Connection, Failure, Role, StreamError, StreamKey};
use weft_http::h2::hpack::HeadLimits;
use weft_http::{BodyLength, Frame, Known, RequestHead};
use weft_traffic::cluster::UpstreamHttp;

use super::pool::ConnectionPermit;
use super::{Answer, FinalHead};
use crate::error::{ErrorKind, ProxyError, RetrySafety};
use crate::http::h2_link::{CONNECTION, Link, PING_TIMEOUT, TICK, Turn, Watch, Wire};
use crate::http::server_h2::length_or_streamed;
use crate::limits::Limits;
use crate::net::Io;
use crate::worker::Worker;

/// Bytes an endpoint may send on one stream before we have forwarded any.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same over all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// One connection, shared by the requests of this worker. Dropped, it takes no more requests and
/// ends after those under way.
pub(crate) struct H2Connection {
    state: Rc<State>,
}

struct State {
    link: Link,
    active: Cell<u32>,
    requests: Cell<u32>,
    /// It carries no more requests than this.
    requests_max: Option<u32>,
    /// The connection's task has ended.
    ended: Cell<bool>,
    idle_since: Cell<Instant>,
}

/// One request's stream.
pub(crate) struct H2Client {
    state: Rc<State>,
    stream: Stage,
    /// Its connection has carried requests before.
    reused: bool,
    /// The request asks for a tunnel: it has no content, and does not end with its head.
    tunnel: bool,
}

enum Stage {
    /// Waits for its turn.
    Waiting,
    /// The connection has promised to take it.
    Reserved,
    Open(StreamKey),
}

impl H2Connection {
    /// Opens HTTP/2 on a fresh connection and starts its task.
    pub(crate) fn open(
        io: Io,
        http: &UpstreamHttp,
        permit: ConnectionPermit,
        worker: &Rc<Worker>,
    ) -> Self {
        let limits = &worker.limits;
        let now = Instant::now();
        let state = Rc::new(State {
            link: Link::new(Connection::new(Role::Client, config(http, limits))),
            active: Cell::new(0),
            requests: Cell::new(0),
            requests_max: http.requests_per_connection_max,
            ended: Cell::new(false),
            idle_since: Cell::new(now),
        });
        let mut watch = Watch::new(now, limits.h2_handshake);
        watch.ping_interval = http.http2.keepalive_interval;
        watch.ping_timeout = http.http2.keepalive_timeout.unwrap_or(PING_TIMEOUT);
        tokio::task::spawn_local(drive(state.clone(), io, watch, permit, worker.clone()));
        Self { state }
    }

    /// Whether it can never carry another request.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.ended.get() || !self.state.link.with(|connection| connection.accepts_streams())
    }

    /// Whether nobody has used it for `limit`.
    pub(crate) fn is_stale(&self, now: Instant, limit: Duration) -> bool {
        self.state.active.get() == 0
            && now.saturating_duration_since(self.state.idle_since.get()) >= limit
    }

    /// Whether another request fits; `requests_max` is the cluster's limit over its lifetime.
    pub(crate) fn has_room(&self, requests_max: Option<u32>) -> bool {
        let limit = self.state.link.with(|connection| connection.streams_limit());
        self.state.active.get() < limit
            && requests_max.is_none_or(|max| self.state.requests.get() < max)
    }

    /// Starts a request. The stream exists once its head is sent.
    pub(crate) fn start(&self) -> H2Client {
        let state = self.state.clone();
        state.active.set(state.active.get() + 1);
        state.requests.set(state.requests.get().saturating_add(1));
        let reused = state.requests.get() > 1;
        H2Client { state, stream: Stage::Waiting, reused, tunnel: false }
    }

    /// Starts a request that the connection takes at once, if it does.
    pub(crate) fn start_now(&self) -> Option<H2Client> {
        if !self.state.link.with(Connection::try_reserve) {
            return None;
        }
        let mut client = self.start();
        client.stream = Stage::Reserved;
        Some(client)
    }
}

impl Drop for H2Connection {
    fn drop(&mut self) {
        self.state.link.with(Connection::shutdown);
    }
}

async fn drive(
    state: Rc<State>,
    io: Io,
    mut watch: Watch,
    permit: ConnectionPermit,
    worker: Rc<Worker>,
) {
    let _permit = permit;
    let mut wire = Wire::new(&state.link, io, BytesMut::new());
    {
        let mut timer = pin!(tokio::time::sleep(TICK));
        poll_fn(|cx| {
            wire.poll_read(cx, || {});
            state.link.with(|connection| watch.poll(connection, false, timer.as_mut(), cx));
            let turn = wire.poll_write(cx);
            watch.written(&state.link);
            match turn {
                Turn::Wait => Poll::Pending,
                Turn::Close => Poll::Ready(()),
            }
        })
        .await;
    }
    state.ended.set(true);
    if let Some(failure) = state.link.with(|connection| connection.failure()) {
        tracing::debug!(%failure, "upstream HTTP/2 connection ended");
        match (failure, watch.ended()) {
            (Failure::Abuse(abuse), _) => worker.counters.h2_upstream_ended(abuse.name()),
            (Failure::Protocol(_), _) => worker.counters.h2_upstream_ended("protocol_error"),
            (Failure::Lost, Some(_)) => worker.counters.h2_upstream_ended("handshake_timeout"),
            (Failure::Lost | Failure::Closed, _) => {}
        }
    }
    Box::pin(wire.close()).await;
}

fn config(http: &UpstreamHttp, limits: &Limits) -> Config {
    let rules = &http.http2;
    Config {
        streams_max: 0,
        stream_window_bytes: rules.stream_window_bytes.unwrap_or(STREAM_WINDOW_BYTES),
        connection_window_bytes: rules.connection_window_bytes.unwrap_or(CONNECTION_WINDOW_BYTES),
        head: HeadLimits::DEFAULT,
        connect_protocol: false,
        budgets: limits.h2_budgets,
    }
}

impl H2Client {
    /// Ready when the connection takes one more stream.
    pub(crate) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match self.state.link.with(|connection| connection.poll_reserve(cx)) {
            Poll::Ready(Ok(())) => {
                self.stream = Stage::Reserved;
                Poll::Ready(Ok(()))
            }
            // It is going away, and nothing of ours has left: the next one will do.
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.state.failed(error))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the endpoint opens tunnels (RFC 8441), once it has said so or not.
    pub(crate) fn poll_opens_tunnels(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.state.link.with(|connection| connection.poll_connect_protocol(cx))
    }

    /// `tunnel`: the protocol to switch to.
    pub(crate) fn send_request(
        &mut self,
        head: &RequestHead,
        body: BodyLength,
        tunnel: Option<&[u8]>,
    ) -> Result<(), ProxyError> {
        debug_assert!(matches!(self.stream, Stage::Reserved), "open before sending");
        self.stream = Stage::Waiting;
        self.tunnel = tunnel.is_some();
        let end = body.is_empty() && !self.tunnel;
        let opened = self.state.link.with(|connection| connection.open(head, tunnel, end));
        self.stream = Stage::Open(opened.map_err(|error| self.state.failed(error))?);
        Ok(())
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match self.stream {
            Stage::Open(key) => {
                let ready = self.state.link.with(|connection| connection.poll_ready(key, cx));
                ready.map_err(|error| self.state.failed(error))
            }
            Stage::Waiting | Stage::Reserved => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn send(&mut self, frame: Frame) {
        if let Stage::Open(key) = self.stream {
            self.state.link.with(|connection| connection.send(key, frame));
        }
    }

    /// Ends the content; that of a tunnel is ended by [`end_tunnel`](Self::end_tunnel).
    pub(crate) fn end(&mut self) {
        if !self.tunnel {
            self.end_tunnel();
        }
    }

    pub(crate) fn end_tunnel(&mut self) {
        if let Stage::Open(key) = self.stream {
            self.state.link.with(|connection| connection.end(key));
        }
    }

    /// As [`Upstream::poll_answer`](super::Upstream::poll_answer).
    pub(crate) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        place: &mut Option<FinalHead>,
    ) -> Poll<Result<Answer, ProxyError>> {
        let Stage::Open(key) = self.stream else { return Poll::Pending };
        let answer = self.state.link.with(|connection| connection.poll_answer(key, cx));
        answer.map_ok(|answer| answered(answer, place)).map_err(|error| self.state.failed(error))
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        let Stage::Open(key) = self.stream else { return Poll::Ready(None) };
        let frame = self.state.link.with(|connection| connection.poll_frame(key, cx));
        frame.map(|frame| frame.map(|frame| frame.map_err(|error| self.state.failed(error))))
    }

    pub(crate) fn reused(&self) -> bool {
        self.reused
    }

    pub(crate) fn input_done(&self) -> bool {
        match self.stream {
            Stage::Open(key) => self.state.link.with(|connection| connection.input_done(key)),
            Stage::Waiting | Stage::Reserved => false,
        }
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        if let (Stage::Open(key), 1..) = (&self.stream, bytes) {
            self.state.link.with(|connection| connection.release(*key, bytes));
        }
    }

    /// The request is given up because of `cause`; if the client reset its stream, the endpoint is
    /// told the same.
    pub(crate) fn cancel(&mut self, cause: &ProxyError) {
        if let Stage::Open(key) = self.stream {
            let code = cause.reset_code.map_or(ErrorCode::CANCEL, ErrorCode);
            self.state.link.with(|connection| connection.reset(key, code));
        }
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        let state = &self.state;
        match self.stream {
            Stage::Waiting => {}
            Stage::Reserved => state.link.with(Connection::unreserve),
            Stage::Open(key) => state.link.with(|connection| connection.close(key)),
        }
        state.active.set(state.active.get() - 1);
        if state.active.get() == 0 {
            state.idle_since.set(Instant::now());
            // Others may wait for its place.
            if state.requests_max.is_some_and(|max| state.requests.get() >= max) {
                state.link.with(Connection::shutdown);
            }
        }
    }
}

fn answered(answer: conn::Answer, place: &mut Option<FinalHead>) -> Answer {
    match answer {
        conn::Answer::Informational(head) => Answer::Informational(Box::new(head)),
        conn::Answer::Final { head, ended } => {
            let body = match ended {
                true => BodyLength::None,
                false => length_or_streamed(head.headers.get_known(Known::ContentLength)),
            };
            *place = Some(FinalHead { head, body, connection: CONNECTION });
            Answer::Final
        }
    }
}

impl State {
    /// What a failed stream means: refused before processing, reset by the endpoint, its connection
    /// lost, or not HTTP/2 at all.
    fn failed(&self, error: StreamError) -> ProxyError {
        let kind = match error {
            StreamError::Refused => ErrorKind::UpstreamRefused,
            StreamError::Reset(_) => ErrorKind::UpstreamStreamReset,
            StreamError::Protocol { .. } => ErrorKind::UpstreamProtocol,
            StreamError::Lost | StreamError::Closed => ErrorKind::UpstreamReset,
        };
        let failure = ProxyError::new(kind).with_source(error);
        match error {
            // The client is told the same.
            StreamError::Reset(code) => failure.with_reset_code(code.0),
            // Not this request but the connection was refused.
            StreamError::Refused if !self.link.with(|connection| connection.accepts_streams()) => {
                failure.with_retry(RetrySafety::NotSent)
            }
            _ => failure,
        }
    }
}
