//! Moves one request and its response between the two sides, both directions in one poll, in the
//! connection's own task: the response may stream while the request still does.
//!
//! Back-pressure is the order of questions: a frame is taken from its source only when the other
//! side has room, and a source's window is given back only when its frame was taken on. Each turn
//! reads what is there, queues it, and flushes once. Must not know routes or retries; it only keeps
//! the start of the request body so that a retry can send it again.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use weft_http::{BodyLength, Frame, ResponseHead, Version, rules};
use weft_traffic::timeout::RequestTimeouts;

use super::attempt::Forward;
use super::downstream::Downstream;
use super::grpc::{self, Messages};
use super::grpc_web::{self, Web};
use super::limits::{Standing, StreamLimits};
use super::log::Notes;
use super::mirror::{self, Copies};
use super::record::Reporting;
use super::request::Request;
use super::spelling::{self, Spelling};
use crate::error::{ErrorKind, ProxyError};
use crate::net::pipe::Pipe;
use crate::upstream::{Answer, FinalHead, Upstream};

/// Request body kept for retries. A longer body makes the request unrepeatable once it is exceeded.
const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A response body of which this much is to come goes through a pipe, where it can. At 64 KiB the
/// further system calls cost more than the copies. Bytes.
const PIPE_BYTES_MIN: u64 = 256 * 1024;

/// One request in flight, over all its attempts.
pub(crate) struct Exchange<'x, 'c> {
    pub(crate) down: &'x mut Downstream<'c>,
    pub(crate) tally: &'x mut Tally,
    replay: Replay,
    copies: Copies,
    limits: Limits,
    stream: StreamLimits,
    request: Progress,
    /// What the client sends is a tunnel's: the request ends with its head.
    tunnel: bool,
    response_ended: bool,
    /// The client does not take what is queued for it.
    client_full: bool,
    /// The next bytes to move are the request's, and the client has not sent them.
    client_owes: bool,
    pub(crate) spelling: Spelling,
    /// A 1xx head is queued for the client.
    informed: bool,
    /// The client speaks gRPC-Web.
    web: Option<Box<grpc_web::Codec>>,
    /// The response body was taken, not to be passed on.
    taken: bool,
    /// What the rest of the response body goes through.
    pipe: Option<Box<Pipe>>,
}

/// What went through.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    /// `grpc-status` of the trailers.
    pub(crate) grpc_status: Option<u8>,
    /// gRPC only: messages each way.
    pub(crate) messages: Option<Messages>,
    /// Of a request that is logged.
    pub(crate) log: Option<Box<Notes>>,
}

/// Whether the request asks for a tunnel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    No,
    /// It does, and has no content.
    Bare,
    /// It has content before.
    AfterContent,
}

/// How far the request body has come in this attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Sending,
    /// Its end is queued.
    Ended,
    /// All of it has left.
    Sent,
    /// The upstream takes no more; its answer may be on its way all the same.
    Refused,
}

impl<'x, 'c> Exchange<'x, 'c> {
    #[inline]
    pub(crate) fn new(
        down: &'x mut Downstream<'c>,
        tally: &'x mut Tally,
        limits: Limits,
        stream: StreamLimits,
        tunnel: Tunnel,
    ) -> Self {
        let mut exchange = Self {
            down,
            tally,
            replay: Replay { kept: Vec::new(), bytes: 0, next: 0, complete: tunnel == Tunnel::No },
            copies: Copies::default(),
            limits,
            stream,
            request: Progress::Sending,
            tunnel: tunnel == Tunnel::Bare,
            response_ended: false,
            client_full: false,
            client_owes: false,
            spelling: Spelling::default(),
            informed: false,
            web: None,
            taken: false,
            pipe: None,
        };
        if exchange.down.input_done() {
            exchange.limits.request_ended();
        }
        exchange
    }

    /// Starts the copies that the route asks for; what comes of the request body goes to them too.
    #[cold]
    pub(crate) fn mirror(&mut self, forward: &Forward<'_>, request: &Request) {
        let told = if request.grpc { self.grpc_timeout(true) } else { None };
        let mut copies = mirror::start(forward, request, told);
        if self.down.input_done() {
            copies.end();
        }
        self.copies = copies;
    }

    /// Bodies are gRPC-Web on the client's side.
    pub(crate) fn translate(&mut self, web: Web) {
        self.web = Some(Box::new(grpc_web::Codec::new(web)));
    }

    /// How the client speaks gRPC-Web, if it does.
    pub(crate) fn web(&self) -> Option<Web> {
        self.web.as_ref().map(|codec| codec.web())
    }

    /// Takes the whole response body and keeps its first `bytes_max` bytes.
    pub(crate) async fn take_text(
        &mut self,
        up: &mut Upstream,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ProxyError> {
        self.limits.answered();
        self.taken = true;
        let mut text = Vec::new();
        poll_fn(|cx| {
            self.poll_request(up, cx)?;
            while let Poll::Ready(frame) = up.poll_frame(cx) {
                match frame.transpose()? {
                    Some(Frame::Data(data)) => {
                        let room = bytes_max - text.len();
                        text.extend_from_slice(&data[..room.min(data.len())]);
                        up.release(data.len());
                    }
                    Some(Frame::Trailers(_)) => {}
                    None => return Poll::Ready(Ok(())),
                }
                if up.input_done() {
                    return Poll::Ready(Ok(()));
                }
            }
            self.poll_interrupt(cx).map(Err)
        })
        .await?;
        Ok(text)
    }

    /// Gets ready for one more attempt.
    pub(crate) fn start_attempt(&mut self) {
        self.replay.next = 0;
        self.request = Progress::Sending;
        self.limits.start_attempt();
    }

    /// What this attempt is told in `grpc-timeout`; None: what the caller wrote.
    /// `first`: no attempt came before it.
    pub(crate) fn grpc_timeout(&self, first: bool) -> Option<Duration> {
        self.limits.grpc_timeout(first)
    }

    /// The attempt failed: its own time limit no longer runs.
    pub(crate) fn end_attempt(&mut self) {
        self.limits.answered();
    }

    /// Whether the request could be sent again from its beginning.
    pub(crate) fn repeatable(&self) -> bool {
        self.replay.complete && !self.down.head_sent()
    }

    /// No more attempts will follow: nothing need be kept.
    pub(crate) fn settle(&mut self) {
        self.replay.complete = false;
        self.replay.kept.drain(..self.replay.next);
        self.replay.next = 0;
    }

    /// Whether the limit over all attempts has passed.
    pub(crate) fn timed_out(&self) -> bool {
        self.limits.expired(Instant::now())
    }

    /// Runs `work` unless the client leaves or time runs out first.
    pub(crate) async fn unless_interrupted<T>(
        &mut self,
        mut work: impl Future<Output = Result<T, ProxyError>> + Unpin,
    ) -> Result<T, ProxyError> {
        poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => self.poll_interrupt(cx).map(Err),
        })
        .await
    }

    /// Sends the request body and waits for the final head of the response, which is put into
    /// `place`.
    pub(crate) async fn await_answer(
        &mut self,
        up: &mut Upstream,
        place: &mut Option<FinalHead>,
    ) -> Result<(), ProxyError> {
        let answered = poll_fn(|cx| {
            self.poll_request(up, cx)?;
            loop {
                match up.poll_answer(cx, place) {
                    Poll::Ready(Ok(Answer::Final)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(Answer::Informational(head))) => self.inform(*head),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            if self.informed && self.down.poll_flush(cx)?.is_ready() {
                self.informed = false;
            }
            self.poll_interrupt(cx).map(Err)
        });
        answered.await.inspect_err(|error| up.cancel(error))
    }

    /// Passes a 1xx head on.
    fn inform(&mut self, mut head: ResponseHead) {
        let hop =
            weft_http::h1::Connection { keep_alive: true, upgrade: None, expect_continue: false };
        let Spelling { down, up, lower } = self.spelling;
        spelling::received(&mut head.headers, (up, lower), None, BodyLength::None);
        rules::strip_response(&mut head.headers, &hop, self.down.version());
        spelling::sending(&mut head.headers, down);
        self.down.send_informational(&mut head);
        self.informed = true;
    }

    /// Sends the response body, and what is left of the request's, until the response is complete
    /// and flushed. The response head has been queued.
    pub(crate) async fn relay(
        &mut self,
        up: &mut Upstream,
        reporting: Option<Reporting<'_>>,
    ) -> Result<(), ProxyError> {
        self.limits.answered();
        poll_fn(|cx| {
            self.poll_request(up, cx)?;
            if let Poll::Ready(result) = self.poll_response(up, cx) {
                return Poll::Ready(result);
            }
            if let (Some(reporting), Some(messages)) = (&reporting, &mut self.tally.messages) {
                reporting.report(messages);
            }
            self.poll_interrupt(cx).map(Err)
        })
        .await
        .inspect_err(|error| up.cancel(error))
    }

    fn poll_interrupt(&mut self, cx: &mut Context<'_>) -> Poll<ProxyError> {
        if let Poll::Ready(gone) = self.down.poll_gone(cx) {
            return Poll::Ready(gone);
        }
        let tally = &*self.tally;
        let passed = tally.request_bytes.wrapping_add(tally.response_bytes);
        let standing = Standing {
            moved_bytes: passed.wrapping_sub(self.down.unsent_bytes() as u64),
            request_ended: self.down.input_done(),
            on_client: self.client_full || self.client_owes,
        };
        if let Poll::Ready(error) = self.stream.poll(cx, standing) {
            return Poll::Ready(error);
        }
        self.limits.poll(cx).map(ProxyError::new)
    }

    /// Moves request frames while there are any and room for them. An error is the client's.
    fn poll_request(&mut self, up: &mut Upstream, cx: &mut Context<'_>) -> Result<(), ProxyError> {
        self.client_owes = false;
        if self.request == Progress::Sent {
            return Ok(());
        }
        if self.tunnel && self.request == Progress::Sending {
            self.end_request(up)?;
        }
        while self.request == Progress::Sending {
            match up.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.request = Progress::Refused;
                    break;
                }
                Poll::Pending => return Ok(()),
            }
            match self.poll_request_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let mut frame = frame?;
                    let bytes = frame_bytes(&frame);
                    if let Frame::Trailers(trailers) = &mut frame {
                        spelling::sending(trailers, self.spelling.up);
                    }
                    up.send(frame)?;
                    // What was encoded was given back as it was decoded.
                    if self.web.is_none() {
                        self.down.release(bytes);
                    }
                    if self.replay.is_drained() && self.down.input_done() {
                        self.end_request(up)?;
                    }
                }
                Poll::Ready(None) => self.end_request(up)?,
                Poll::Pending => {
                    // A stream of HTTP/2 may rest as long as it likes unless configured otherwise.
                    self.client_owes = self.down.version() != Version::H2;
                    break;
                }
            }
        }
        if self.request != Progress::Refused {
            match up.poll_flush(cx) {
                // What the upstream makes of a failed write shows on its answer.
                Poll::Ready(Err(_)) => self.request = Progress::Refused,
                Poll::Ready(Ok(())) if self.request == Progress::Ended => {
                    self.request = Progress::Sent;
                    up.request_sent();
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        Ok(())
    }

    fn end_request(&mut self, up: &mut Upstream) -> Result<(), ProxyError> {
        if let Some(web) = &self.web {
            web.request_ended()?;
        }
        self.request = Progress::Ended;
        if let Some(log) = &mut self.tally.log {
            log.request_ended();
        }
        self.limits.request_ended();
        self.copies.end();
        up.end()
    }

    /// The next frame: first what an earlier attempt has sent already.
    fn poll_request_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        if let Some(frame) = self.replay.next_kept() {
            // Its window was given back the first time.
            return Poll::Ready(Some(Ok(frame)));
        }
        match ready!(self.poll_received(cx)) {
            Some(Ok(mut frame)) => {
                if let Frame::Trailers(trailers) = &mut frame {
                    let how = (self.spelling.down, self.spelling.lower);
                    spelling::received(trailers, how, None, BodyLength::None);
                }
                self.tally.request_bytes += frame_bytes(&frame) as u64;
                if let (Some(messages), Frame::Data(data)) = (&mut self.tally.messages, &frame) {
                    messages.request.see(data);
                }
                self.replay.keep(&frame);
                self.copies.frame(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            other => Poll::Ready(other),
        }
    }

    /// The next frame from the client, as the application is to get it.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ProxyError>>> {
        loop {
            let frame = ready!(self.down.poll_frame(cx));
            let (Some(web), Some(Ok(Frame::Data(data)))) = (&mut self.web, &frame) else {
                return Poll::Ready(frame);
            };
            self.down.release(data.len());
            let data = web.request(data.clone())?;
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::Data(data))));
            }
        }
    }

    fn poll_response(
        &mut self,
        up: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ProxyError>> {
        self.client_full = true;
        loop {
            if self.response_ended {
                return self.down.poll_flush(cx);
            }
            if self.taken {
                self.end_response()?;
                continue;
            }
            ready!(self.down.poll_ready(cx))?;
            if self.goes_through_pipe(up) {
                ready!(self.poll_pipe(up, cx))?;
                if up.input_done() {
                    self.end_response()?;
                    continue;
                }
            }
            match up.poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let mut frame = frame?;
                    let bytes = frame_bytes(&frame);
                    self.tally.response_bytes += bytes as u64;
                    match (&mut frame, &mut self.tally.messages) {
                        (Frame::Trailers(trailers), _) => {
                            let Spelling { down, up, lower } = self.spelling;
                            spelling::received(trailers, (up, lower), None, BodyLength::None);
                            spelling::sending(trailers, down);
                            self.tally.grpc_status = grpc::status(trailers);
                            if let Some(log) = &mut self.tally.log {
                                log.trailers(trailers);
                            }
                        }
                        (Frame::Data(data), Some(messages)) => messages.response.see(data),
                        (Frame::Data(_), None) => {}
                    }
                    let frame = match &mut self.web {
                        Some(web) => web.response(frame),
                        None => Some(frame),
                    };
                    if let Some(frame) = frame {
                        self.down.send(frame)?;
                    }
                    up.release(bytes);
                    if up.input_done() {
                        self.end_response()?;
                    }
                }
                Poll::Ready(None) => self.end_response()?,
                Poll::Pending => {
                    ready!(self.down.poll_flush(cx))?;
                    self.client_full = false;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Whether the rest of the response body is much, and nobody here has to see it.
    fn goes_through_pipe(&mut self, up: &Upstream) -> bool {
        if self.pipe.is_some() {
            return true;
        }
        let much = up.unread().is_some_and(|left| left >= PIPE_BYTES_MIN);
        let unseen = self.tally.messages.is_none() && self.web.is_none();
        if much && unseen && self.down.takes_pipe() {
            self.pipe = Pipe::take();
        }
        self.pipe.is_some()
    }

    /// Moves the response body from socket to socket; ready when no more goes this way.
    fn poll_pipe(
        &mut self,
        up: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ProxyError>> {
        while let Some(pipe) = &mut self.pipe {
            if !pipe.is_empty() {
                self.tally.response_bytes += ready!(self.down.poll_drain(cx, pipe))? as u64;
                continue;
            }
            match up.poll_fill(cx, pipe) {
                Poll::Ready(Ok(0)) => self.pipe = None,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(self.down.poll_flush(cx))?;
                    self.client_full = false;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end_response(&mut self) -> Result<(), ProxyError> {
        self.response_ended = true;
        self.down.end()
    }
}

/// Content bytes of a frame.
pub(crate) fn frame_bytes(frame: &Frame) -> usize {
    match frame {
        Frame::Data(data) => data.len(),
        Frame::Trailers(_) => 0,
    }
}

/// The start of the request body.
struct Replay {
    kept: Vec<Frame>,
    bytes: usize,
    /// The next kept frame to send.
    next: usize,
    /// Everything that was taken from the client is in `kept`.
    complete: bool,
}

impl Replay {
    fn next_kept(&mut self) -> Option<Frame> {
        let frame = self.kept.get(self.next)?.clone();
        self.next += 1;
        Some(frame)
    }

    fn is_drained(&self) -> bool {
        self.next >= self.kept.len()
    }

    fn keep(&mut self, frame: &Frame) {
        if !self.complete {
            return;
        }
        self.bytes += frame_bytes(frame);
        if self.bytes > REPLAY_BYTES_MAX {
            self.complete = false;
            self.kept = Vec::new();
            self.next = 0;
        } else {
            self.kept.push(frame.clone());
            self.next = self.kept.len();
        }
    }
}

/// The time limits of a request, if it has any. All but the stream's run from the end of the request,
/// as Envoy's do, so that a slow upload is not the upstream's fault.
pub(crate) struct Limits(Option<Box<Running>>);

struct Running {
    timeouts: RequestTimeouts,
    request_ended: bool,
    stream_due: Option<Instant>,
    route_due: Option<Instant>,
    try_due: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Limits {
    /// For a request whose head came at `received`.
    pub(crate) fn new(timeouts: RequestTimeouts, received: Instant) -> Self {
        if timeouts == RequestTimeouts::default() {
            return Self(None);
        }
        let stream_due = timeouts.stream.and_then(|limit| received.checked_add(limit));
        let mut running = Box::new(Running {
            timeouts,
            request_ended: false,
            stream_due,
            route_due: None,
            try_due: None,
            timer: None,
        });
        if stream_due.is_some() {
            running.set_timer();
        }
        Self(Some(running))
    }

    fn start_attempt(&mut self) {
        if let Some(running) = &mut self.0 {
            running.try_due = None;
            if running.request_ended {
                running.arm();
            }
        }
    }

    fn request_ended(&mut self) {
        if let Some(running) = &mut self.0 {
            running.request_ended = true;
            running.arm();
        }
    }

    fn grpc_timeout(&self, first: bool) -> Option<Duration> {
        let running = self.0.as_ref()?;
        let elapsed = match (running.route_due, running.timeouts.request) {
            (Some(due), Some(limit)) if !first => {
                limit.saturating_sub(due.saturating_duration_since(Instant::now()))
            }
            _ => Duration::ZERO,
        };
        running.timeouts.told(elapsed)
    }

    /// The head is here: an attempt that answers is not cut short by its own limit.
    fn answered(&mut self) {
        if let Some(running) = &mut self.0
            && running.try_due.take().is_some()
        {
            running.set_timer();
        }
    }

    /// Whether a limit over all attempts has passed.
    fn expired(&self, now: Instant) -> bool {
        let Some(running) = &self.0 else { return false };
        [running.stream_due, running.route_due].into_iter().flatten().any(|due| due <= now)
    }

    /// Ready with the limit that has passed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        match &mut self.0 {
            Some(running) => running.poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Running {
    fn arm(&mut self) {
        let RequestTimeouts { request, per_try, .. } = self.timeouts;
        if request.is_none() && per_try.is_none() {
            return;
        }
        let now = Instant::now();
        let due = |limit: Option<Duration>| limit.and_then(|limit| now.checked_add(limit));
        self.route_due = self.route_due.or(due(request));
        self.try_due = self.try_due.or(due(per_try));
        self.set_timer();
    }

    fn set_timer(&mut self) {
        let due = [self.stream_due, self.route_due, self.try_due].into_iter().flatten().min();
        match (due, &mut self.timer) {
            (None, _) => self.timer = None,
            (Some(due), Some(timer)) => timer.as_mut().reset(due.into()),
            (Some(due), None) => {
                self.timer = Some(Box::pin(tokio::time::sleep_until(due.into())));
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ErrorKind> {
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        let due = timer.deadline().into_std();
        let passed = |limit: Option<Instant>| limit.is_some_and(|limit| limit <= due);
        Poll::Ready(match () {
            () if passed(self.stream_due) => ErrorKind::StreamDuration,
            () if passed(self.route_due) && self.timeouts.deadline => ErrorKind::DeadlineExceeded,
            () => ErrorKind::UpstreamTimeout,
        })
    }
}
