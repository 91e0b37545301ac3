//! HTTP/2 towards clients, on the `h2` crate: one task per connection accepts streams, one task
//! per stream runs the request path.
//!
//! Owns connection settings, idle close and GOAWAY on drain. Must not know routes or upstreams.

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use h2::server::SendResponse;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_http::h1::Connection;
use weft_http::{BodyLength, Frame, Method, ResponseHead, rules};

use super::conn::HttpConn;
use super::convert;
use super::downstream::Downstream;
use super::h2_body::{RecvBody, SendBody};
use super::local_reply;
use super::request::{self, Incoming};
use crate::error::{ErrorKind, ProxyError};
use crate::net::Io;

/// Streams a client may have open at once, unless the listener says otherwise; HTTP/2
/// recommends at least 100 (RFC 9113 §6.5.2).
const STREAMS_MAX: u32 = 1000;
/// Bytes a client may send on one stream before we have forwarded any.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same over all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Bytes the `h2` crate may hold for a client that reads slowly, per stream.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// The preface and settings must arrive within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// One stream: the client's side of one request.
pub(crate) struct H2Server {
    respond: SendResponse<Bytes>,
    recv: RecvBody,
    send: Option<SendBody>,
    method: Method,
    /// The response has no body, so its end goes out with the head.
    head_ended: bool,
}

/// Serves the connection until it ends.
/// `read` is what was read of it to find out that it is HTTP/2.
pub(crate) async fn serve(io: Io, read: BytesMut, conn: Rc<HttpConn>) {
    let rules = &conn.http.http2;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(rules.concurrent_streams_max.unwrap_or(STREAMS_MAX))
        .initial_window_size(rules.stream_window_bytes.unwrap_or(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(
            rules.connection_window_bytes.unwrap_or(CONNECTION_WINDOW_BYTES),
        )
        .max_header_list_size(conn.http.limits.head_bytes_max)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX);
    let handshake = builder.handshake::<_, Bytes>(Replayed { read, io });
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => accept_streams(connection, conn).await,
        Ok(Err(error)) => tracing::debug!(%error, "HTTP/2 handshake failed"),
        Err(_) => tracing::debug!("HTTP/2 handshake timed out"),
    }
}

async fn accept_streams(
    mut connection: h2::server::Connection<Replayed, Bytes>,
    conn: Rc<HttpConn>,
) {
    let streams = Rc::new(Streams::default());
    let mut draining = pin!(conn.worker.drain.draining());
    let mut closing = pin!(conn.worker.drain.closing());
    let idle_limit = conn.http.timeouts.idle;
    let (mut leaving, mut cut) = (false, false);
    loop {
        let due = streams.idle_due(idle_limit);
        tokio::select! {
            biased;
            stream = connection.accept() => match stream {
                Some(Ok((request, respond))) => {
                    serve_stream(request, respond, &conn, &streams);
                    if !leaving && conn.is_orphaned() {
                        leaving = true;
                        connection.graceful_shutdown();
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "HTTP/2 connection failed");
                    return;
                }
                None => return,
            },
            () = &mut draining, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = &mut closing, if !cut => {
                cut = true;
                connection.abrupt_shutdown(Reason::NO_ERROR);
            }
            () = sleep_until(due), if !leaving && due.is_some() => {
                if streams.is_idle(idle_limit) {
                    leaving = true;
                    connection.graceful_shutdown();
                }
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn serve_stream(
    request: http::Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
    conn: &Rc<HttpConn>,
    streams: &Rc<Streams>,
) {
    let received = Instant::now();
    let head = convert::request_head(&request);
    let recv = RecvBody::new(request.into_body());
    let open = streams.open();
    let conn = conn.clone();
    tokio::task::spawn_local(async move {
        let _open = open;
        let method = match &head {
            Ok(head) => head.method.clone(),
            Err(_) => Method::Get,
        };
        let mut side = H2Server { respond, recv, send: None, method, head_ended: false };
        match head {
            Ok(head) => {
                let incoming =
                    Incoming { body: side.body_length(&head), connection: CONNECTION, head };
                request::serve(&mut Downstream::H2(&mut side), incoming, received, &conn).await;
            }
            Err(error) => {
                let error = ProxyError::new(ErrorKind::DownstreamProtocol(400)).with_source(error);
                local_reply::refuse(&mut Downstream::H2(&mut side), error, received, &conn).await;
            }
        }
    });
}

/// HTTP/2 messages say nothing about their connection.
const CONNECTION: Connection =
    Connection { keep_alive: true, upgrade: None, expect_continue: false };

/// Counts open streams and remembers when the last one ended.
#[derive(Default)]
struct Streams {
    open: Cell<usize>,
    idle_since: Cell<Option<Instant>>,
}

struct OpenStream(Rc<Streams>);

impl Streams {
    fn open(self: &Rc<Self>) -> OpenStream {
        self.open.set(self.open.get() + 1);
        OpenStream(self.clone())
    }

    fn is_idle(&self, limit: Option<Duration>) -> bool {
        let since = self.idle_since.get();
        self.open.get() == 0
            && matches!((since, limit), (Some(since), Some(limit)) if since.elapsed() >= limit)
    }

    /// When the connection is worth looking at again.
    fn idle_due(&self, limit: Option<Duration>) -> Option<Instant> {
        let since = match self.open.get() {
            0 => match self.idle_since.get() {
                Some(since) => since,
                None => {
                    let now = Instant::now();
                    self.idle_since.set(Some(now));
                    now
                }
            },
            _ => Instant::now(),
        };
        limit.map(|limit| since + limit)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let left = self.0.open.get() - 1;
        self.0.open.set(left);
        if left == 0 {
            self.0.idle_since.set(Some(Instant::now()));
        }
    }
}

impl H2Server {
    fn body_length(&self, head: &weft_http::RequestHead) -> BodyLength {
        let length = head.headers.get_known(weft_http::Known::ContentLength);
        match length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()) {
            _ if self.recv.ended() => BodyLength::None,
            Some(length) => BodyLength::Exact(length),
            None => BodyLength::Streamed,
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        self.recv.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(client_error)))
    }

    pub(crate) fn input_done(&self) -> bool {
        self.recv.ended()
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        self.recv.release(bytes);
    }

    pub(crate) fn send_informational(&mut self, head: &mut ResponseHead) {
        rules::response_to_h2(head, &CONNECTION);
        if let Some(response) = convert::response(head) {
            // A client that is gone shows on the final head.
            let _ = self.respond.send_informational(response);
        }
    }

    pub(crate) fn send_head(
        &mut self,
        head: &mut ResponseHead,
        body: BodyLength,
    ) -> Result<(), ProxyError> {
        let empty = body.is_empty()
            || rules::response_framing(&self.method, head.status, body, weft_http::Version::H2)
                .length
                .is_empty();
        rules::response_to_h2(head, &CONNECTION);
        let response = convert::response(head).ok_or(ErrorKind::UpstreamProtocol)?;
        let stream = self.respond.send_response(response, empty).map_err(client_error)?;
        self.head_ended = empty;
        self.send = Some(SendBody::new(stream, empty));
        Ok(())
    }

    pub(crate) fn head_sent(&self) -> bool {
        self.send.is_some()
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match &mut self.send {
            Some(send) => send.poll_ready(cx).map_err(client_error),
            None => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn send(&mut self, frame: Frame) {
        if let (Some(send), false) = (&mut self.send, self.head_ended) {
            send.send(frame);
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(send) = &mut self.send {
            send.end();
        }
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ProxyError> {
        let reset = match &mut self.send {
            // After END_STREAM a reset no longer concerns us.
            Some(send) if send.ended() => return Poll::Pending,
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|reset| match reset {
            Ok(reason) => ProxyError::disconnect(reason.description()),
            Err(error) => client_error(error),
        })
    }

    pub(crate) fn abort(&mut self, code: Option<u32>) {
        let reason = code.map_or(Reason::INTERNAL_ERROR, Reason::from);
        match &mut self.send {
            Some(send) => send.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

/// The client's stream or connection failed: whatever the reason, it is not there any more, unless
/// it broke the protocol.
fn client_error(error: h2::Error) -> ProxyError {
    if error.is_library() && error.reason() == Some(Reason::PROTOCOL_ERROR) {
        return ProxyError::new(ErrorKind::DownstreamProtocol(400)).with_source(error);
    }
    ProxyError::disconnect(error)
}

/// A stream with what detection read of it put back in front.
struct Replayed {
    read: BytesMut,
    io: Io,
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read.split_to(count));
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
