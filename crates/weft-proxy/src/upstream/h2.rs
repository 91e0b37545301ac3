//! HTTP/2 towards endpoints, on the `h2` crate: connections shared by many requests, and one
//! request's stream.
//!
//! Owns settings, the driver task of each connection, and what a reset or GOAWAY means for a retry.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use weft_http::h1::Connection;
use weft_http::{BodyLength, Frame, Known, RequestHead, ResponseHead};
use weft_traffic::cluster::UpstreamHttp;

use super::pool::ConnectionPermit;
use super::{Answer, FinalHead};
use crate::error::{ErrorKind, ProxyError};
use crate::http::convert;
use crate::http::h2_body::{RecvBody, SendBody};
use crate::net::Io;

/// Bytes an endpoint may send on one stream before we have forwarded any.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same over all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes the `h2` crate may hold for an endpoint that reads slowly, per stream.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Largest response head. Bytes.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Streams per connection before the endpoint has said how many it takes.
const STREAMS_BEFORE_SETTINGS: usize = 100;

/// One connection, shared by the requests of this worker.
pub(crate) struct H2Connection {
    send: SendRequest<Bytes>,
    state: Rc<State>,
}

struct State {
    active: Cell<usize>,
    requests: Cell<u32>,
    closed: Cell<bool>,
    idle_since: Cell<Instant>,
}

/// One request's stream.
pub(crate) struct H2Client {
    sender: SendRequest<Bytes>,
    answer: Option<ResponseFuture>,
    send: Option<SendBody>,
    recv: Option<RecvBody>,
    lease: Lease,
}

/// Counts one stream until dropped.
struct Lease(Rc<State>);

impl Drop for Lease {
    fn drop(&mut self) {
        let state = &self.0;
        state.active.set(state.active.get() - 1);
        if state.active.get() == 0 {
            state.idle_since.set(Instant::now());
        }
    }
}

impl H2Connection {
    /// Opens HTTP/2 on a fresh connection and starts its driver.
    pub(crate) async fn open(
        io: Io,
        http: &UpstreamHttp,
        permit: ConnectionPermit,
    ) -> Result<Self, ProxyError> {
        let rules = &http.http2;
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(rules.stream_window_bytes.unwrap_or(STREAM_WINDOW_BYTES))
            .initial_connection_window_size(
                rules.connection_window_bytes.unwrap_or(CONNECTION_WINDOW_BYTES),
            )
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX);
        let (send, connection) = builder
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|error| ProxyError::new(ErrorKind::ConnectFailed).with_source(error))?;
        let state = Rc::new(State {
            active: Cell::new(0),
            requests: Cell::new(0),
            closed: Cell::new(false),
            idle_since: Cell::new(Instant::now()),
        });
        let driver = state.clone();
        tokio::task::spawn_local(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream HTTP/2 connection ended");
            }
            driver.closed.set(true);
        });
        Ok(Self { send, state })
    }

    /// Whether it can never carry another request.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    /// Whether nobody has used it for `limit`.
    pub(crate) fn is_stale(&self, now: Instant, limit: Duration) -> bool {
        self.state.active.get() == 0
            && now.saturating_duration_since(self.state.idle_since.get()) >= limit
    }

    /// Whether another request fits; `requests_max` is the cluster's limit over its lifetime.
    pub(crate) fn has_room(&self, requests_max: Option<u32>) -> bool {
        let fits = self.state.active.get() < self.send.current_max_send_streams();
        fits && requests_max.is_none_or(|max| self.state.requests.get() < max)
    }

    /// Starts a request. The stream exists once its head is sent.
    pub(crate) fn start(&self) -> H2Client {
        self.state.active.set(self.state.active.get() + 1);
        self.state.requests.set(self.state.requests.get().saturating_add(1));
        H2Client {
            sender: self.send.clone(),
            answer: None,
            send: None,
            recv: None,
            lease: Lease(self.state.clone()),
        }
    }
}

impl H2Client {
    /// Ready when the connection takes one more stream.
    pub(crate) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.sender.poll_ready(cx).map_err(|error| {
            // It was going away already, and nothing of ours has left: the next one will do.
            self.lease.0.closed.set(true);
            ProxyError::new(ErrorKind::UpstreamRefused).with_source(error)
        })
    }

    pub(crate) fn send_request(
        &mut self,
        head: &RequestHead,
        body: BodyLength,
    ) -> Result<(), ProxyError> {
        let request = convert::request(head).map_err(|error| {
            ProxyError::new(ErrorKind::DownstreamProtocol(400)).with_source(error)
        })?;
        let empty = body.is_empty();
        let (answer, stream) = self.sender.send_request(request, empty).map_err(stream_error)?;
        self.answer = Some(answer);
        self.send = Some(SendBody::new(stream, empty));
        Ok(())
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match &mut self.send {
            Some(send) => send.poll_ready(cx).map_err(stream_error),
            None => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn send(&mut self, frame: Frame) {
        if let Some(send) = &mut self.send {
            send.send(frame);
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(send) = &mut self.send {
            send.end();
        }
    }

    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, ProxyError>> {
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        match answer.poll_informational(cx) {
            Poll::Ready(Some(Ok(response))) => {
                return Poll::Ready(response_head(&response).map(Answer::Informational));
            }
            // The reason shows on the final head, and so does the end of the 1xx.
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
        }
        let response = ready!(Pin::new(answer).poll(cx)).map_err(stream_error)?;
        self.answer = None;
        let head = response_head(&response)?;
        let recv = RecvBody::new(response.into_body());
        let body = body_length(&head, &recv);
        self.recv = Some(recv);
        Poll::Ready(Ok(Answer::Final(FinalHead { head, body, connection: CONNECTION })))
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        match &mut self.recv {
            Some(recv) => {
                recv.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(stream_error)))
            }
            None => Poll::Ready(None),
        }
    }

    pub(crate) fn input_done(&self) -> bool {
        self.recv.as_ref().is_some_and(RecvBody::ended)
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        if let Some(recv) = &mut self.recv {
            recv.release(bytes);
        }
    }
}

/// HTTP/2 messages say nothing about their connection.
const CONNECTION: Connection =
    Connection { keep_alive: true, upgrade: None, expect_continue: false };

fn response_head<B>(response: &http::Response<B>) -> Result<ResponseHead, ProxyError> {
    convert::response_head(response)
        .map_err(|error| ProxyError::new(ErrorKind::UpstreamProtocol).with_source(error))
}

fn body_length(head: &ResponseHead, recv: &RecvBody) -> BodyLength {
    let length = head.headers.get_known(Known::ContentLength);
    match length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()) {
        _ if recv.ended() => BodyLength::None,
        Some(length) => BodyLength::Exact(length),
        None => BodyLength::Streamed,
    }
}

/// What a failed stream means: refused before processing, reset by the endpoint, its connection
/// lost, or not HTTP/2 at all.
fn stream_error(error: h2::Error) -> ProxyError {
    let kind = if error.reason() == Some(Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote())
    {
        ErrorKind::UpstreamRefused
    } else if error.is_remote() {
        ErrorKind::UpstreamStreamReset
    } else if error.is_library() {
        ErrorKind::UpstreamProtocol
    } else {
        ErrorKind::UpstreamReset
    };
    let code = error.reason().filter(|_| error.is_reset() && error.is_remote()).map(u32::from);
    let failure = ProxyError::new(kind).with_source(error);
    match code {
        Some(code) => failure.with_reset_code(code),
        None => failure,
    }
}
