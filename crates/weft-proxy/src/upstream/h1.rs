//! HTTP/1 towards endpoints: one request on one connection, then back to the pool.
//!
//! Owns what makes a connection reusable, and how much of a request is known to have been given
//! away when it breaks, since that decides whether a retry is safe.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use weft_http::h1::{self, Limits, ParseError, Parsed, write_request};
use weft_http::{BodyLength, Frame, Known, Method, RequestHead, ResponseHead};

use super::pool::{ConnectionFacts, ConnectionPermit, HostPool};
use super::{Answer, FinalHead};
use crate::error::{ErrorKind, ProxyError, RetrySafety};
use crate::http::h1_body::{BodyError, H1};
use crate::http::wire::Wire;
use crate::net::Io;
use crate::net::io::IdleState;
use crate::net::pipe::Pipe;

/// Taken off a `Keep-Alive: timeout` so that we close before the endpoint does; half of one that is
/// shorter than twice this.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// A connection to an endpoint, between or during requests.
pub(crate) struct H1Connection {
    h1: H1,
    requests: u32,
    /// The endpoint's own announcement, if it made one.
    keep_alive_timeout: Option<Duration>,
    facts: Rc<ConnectionFacts>,
    _permit: ConnectionPermit,
}

/// A connection that waits for its next request.
pub(crate) struct IdleH1 {
    connection: Box<H1Connection>,
    since: Instant,
}

/// One request on a connection.
pub(crate) struct H1Client {
    // Boxed: it moves between the pool and the state of requests.
    connection: Box<H1Connection>,
    home: Rc<HostPool>,
    method: Method,
    keep_alive: bool,
}

impl H1Connection {
    pub(crate) fn new(
        io: Io,
        limits: Limits,
        facts: Rc<ConnectionFacts>,
        permit: ConnectionPermit,
    ) -> Box<Self> {
        let h1 = H1::new(Wire::new(io), limits);
        Box::new(Self { h1, requests: 0, keep_alive_timeout: None, facts, _permit: permit })
    }

    /// What is known of the connection itself.
    pub(crate) fn facts(&self) -> &Rc<ConnectionFacts> {
        &self.facts
    }

    /// Starts a request; `home` gets the connection back.
    pub(crate) fn start(mut self: Box<Self>, home: Rc<HostPool>) -> H1Client {
        self.requests = self.requests.saturating_add(1);
        self.h1.wire.start_message();
        let keep_alive = home.requests_max().is_none_or(|max| self.requests < max);
        H1Client { connection: self, home, method: Method::Get, keep_alive }
    }
}

impl IdleH1 {
    /// Looks at the socket: closed or unexpectedly readable connections must not be used.
    pub(crate) fn is_good(&mut self) -> bool {
        self.connection.h1.wire.io_mut().idle_state() == IdleState::Quiet
    }

    /// Whether it has waited too long. `limit` is the cluster's idle limit.
    pub(crate) fn is_stale(&self, now: Instant, limit: Duration) -> bool {
        let limit = match self.connection.keep_alive_timeout {
            Some(announced) => limit.min(announced),
            None => limit,
        };
        now.saturating_duration_since(self.since) >= limit
    }

    pub(crate) fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(crate) fn into_connection(self) -> Box<H1Connection> {
        self.connection
    }
}

impl H1Client {
    pub(crate) fn send_request(&mut self, head: &RequestHead, body: BodyLength) {
        self.method = head.method.clone();
        write_request(head, body, &mut self.connection.h1.wire.output);
        self.connection.h1.start_output(body);
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.connection.h1.poll_ready(cx).map_err(|error| self.broken(error))
    }

    pub(crate) fn send(&mut self, frame: Frame) -> Result<(), ProxyError> {
        self.connection.h1.send(frame).map_err(contradicted)
    }

    pub(crate) fn end(&mut self) -> Result<(), ProxyError> {
        self.connection.h1.end().map_err(contradicted)
    }

    /// Ends content, unless that was done.
    pub(crate) fn end_content(&mut self) -> Result<(), ProxyError> {
        match self.connection.h1.output_done() {
            true => Ok(()),
            false => self.end(),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.connection.h1.wire.poll_flush(cx).map_err(|error| self.broken(error))
    }

    pub(crate) fn request_sent(&mut self) {
        self.connection.h1.wire.release_output();
    }

    /// As [`Upstream::poll_answer`](super::Upstream::poll_answer).
    pub(crate) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        place: &mut Option<FinalHead>,
    ) -> Poll<Result<Answer, ProxyError>> {
        loop {
            let h1 = &mut self.connection.h1;
            // Asked as the request leaves, nothing is here yet.
            if !h1.wire.input.is_empty() {
                match h1.parse_response(&self.method) {
                    Ok(Parsed::Complete((head, ..))) if is_interim(&head) => {
                        return Poll::Ready(Ok(Answer::Informational(Box::new(head))));
                    }
                    Ok(Parsed::Complete((head, body, connection))) => {
                        self.answered(&head, body, connection);
                        *place = Some(FinalHead { head, body, connection });
                        return Poll::Ready(Ok(Answer::Final));
                    }
                    Ok(Parsed::Partial) => {}
                    Err(error) => return Poll::Ready(Err(malformed(error))),
                }
            }
            match ready!(self.connection.h1.wire.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) => {
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Poll::Ready(Err(self.broken(error)));
                }
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    fn answered(&mut self, head: &ResponseHead, body: BodyLength, connection: h1::Connection) {
        self.keep_alive &= connection.keep_alive && head.status != 101;
        if let Some(timeout) = head.headers.get_known(Known::KeepAlive).and_then(timeout_of) {
            self.connection.keep_alive_timeout =
                Some((timeout / 2).max(timeout.saturating_sub(KEEP_ALIVE_MARGIN)));
        }
        self.connection.h1.start_input(body);
    }

    pub(crate) fn unread(&self) -> Option<u64> {
        self.connection.h1.unread()
    }

    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, ProxyError>> {
        self.connection.h1.poll_fill(cx, pipe).map_err(ProxyError::upstream_reset)
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        self.connection.h1.poll_frame(cx).map(|frame| {
            frame.map(|frame| {
                frame.map_err(|error| match error {
                    BodyError::Io(error) => ProxyError::upstream_reset(error),
                    BodyError::Parse(ParseError::Truncated) => {
                        ProxyError::upstream_reset(ParseError::Truncated)
                    }
                    BodyError::Parse(error) => malformed(error),
                })
            })
        })
    }

    pub(crate) fn input_done(&self) -> bool {
        self.connection.h1.input_done()
    }

    pub(crate) fn request_started(&self) -> bool {
        self.connection.h1.wire.sent_bytes() > 0
    }

    pub(crate) fn reused(&self) -> bool {
        self.connection.requests > 1
    }

    /// For a tunnel after 101.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        self.keep_alive = false;
        &mut self.connection.h1.wire
    }

    /// Gives the connection back if request and response are both complete and nothing is left
    /// over; otherwise closes it.
    pub(crate) fn finish(self, now: Instant) {
        let Self { mut connection, home, keep_alive, .. } = self;
        let h1 = &mut connection.h1;
        let complete = h1.input_done()
            && h1.output_done()
            && h1.wire.output.is_empty()
            && h1.wire.input.is_empty()
            && !h1.wire.input_ended();
        if keep_alive && complete {
            h1.wire.release_buffers();
            home.put_back(IdleH1 { connection, since: now });
        }
    }

    fn broken(&self, error: io::Error) -> ProxyError {
        let retry = match self.request_started() {
            true => RetrySafety::MaybeProcessed,
            false => RetrySafety::NotSent,
        };
        ProxyError::upstream_reset(error).with_retry(retry)
    }
}

/// Another head follows.
fn is_interim(head: &ResponseHead) -> bool {
    head.is_informational() && head.status != 101
}

/// `timeout=N` of a `Keep-Alive` field.
fn timeout_of(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    text.split(',').find_map(|parameter| {
        let seconds = parameter.trim().strip_prefix("timeout=")?;
        seconds.parse().ok().map(Duration::from_secs)
    })
}

fn malformed(error: ParseError) -> ProxyError {
    ProxyError::new(ErrorKind::UpstreamProtocol).with_source(error)
}

/// The client's body was not as long as its head said; its decoder should have noticed first.
fn contradicted(error: io::Error) -> ProxyError {
    ProxyError::new(ErrorKind::DownstreamProtocol(400)).with_source(error)
}
