//! The far side: connections to endpoints, their pools, and one request's use of one of them.

pub mod balance;
pub mod connect;
pub mod dns;
pub mod dynamic;
pub mod endpoints;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod pool;
mod recent;

use std::task::{Context, Poll};
use std::time::Instant;

use weft_http::h1::Connection;
use weft_http::{BodyLength, Frame, RequestHead, ResponseHead, Version};

use crate::error::ProxyError;
use crate::net::pipe::Pipe;

pub use pool::Pools;

/// One request's use of one upstream connection.
pub(crate) enum Upstream {
    H1(h1::H1Client),
    H2(h2::H2Client),
}

/// What came back so far.
pub(crate) enum Answer {
    /// 1xx; more follows.
    Informational(Box<ResponseHead>),
    /// It is in the place made for it.
    Final,
}

/// The final head, with what it says about body and connection.
pub(crate) struct FinalHead {
    pub(crate) head: ResponseHead,
    pub(crate) body: BodyLength,
    pub(crate) connection: Connection,
}

impl Upstream {
    pub(crate) fn version(&self) -> Version {
        match self {
            Self::H1(_) => Version::H11,
            Self::H2(_) => Version::H2,
        }
    }

    /// Queues the request head. `body` is the framing chosen for this version, `tunnel` the protocol
    /// that the head asks to switch to.
    pub(crate) fn send_request(
        &mut self,
        head: &RequestHead,
        body: BodyLength,
        tunnel: Option<&[u8]>,
    ) -> Result<(), ProxyError> {
        match self {
            Self::H1(side) => {
                side.send_request(head, body);
                Ok(())
            }
            Self::H2(side) => side.send_request(head, body, tunnel),
        }
    }

    /// Ready when another frame may be sent.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match self {
            Self::H1(side) => side.poll_ready(cx),
            Self::H2(side) => side.poll_ready(cx),
        }
    }

    /// Queues one frame of the request body.
    pub(crate) fn send(&mut self, frame: Frame) -> Result<(), ProxyError> {
        match self {
            Self::H1(side) => side.send(frame),
            Self::H2(side) => {
                side.send(frame);
                Ok(())
            }
        }
    }

    /// Queues the end of the request body.
    pub(crate) fn end(&mut self) -> Result<(), ProxyError> {
        match self {
            Self::H1(side) => side.end(),
            Self::H2(side) => {
                side.end();
                Ok(())
            }
        }
    }

    /// Ready when everything queued was handed to the kernel (HTTP/2: to the connection).
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match self {
            Self::H1(side) => side.poll_flush(cx),
            Self::H2(side) => side.poll_ready(cx),
        }
    }

    /// The whole request has left: what it needed goes to others while its answer is waited for.
    pub(crate) fn request_sent(&mut self) {
        match self {
            Self::H1(side) => side.request_sent(),
            Self::H2(_) => {}
        }
    }

    /// The next head of the response; the final one is put into `place`, since it is large.
    pub(crate) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        place: &mut Option<FinalHead>,
    ) -> Poll<Result<Answer, ProxyError>> {
        match self {
            Self::H1(side) => side.poll_answer(cx, place),
            Self::H2(side) => side.poll_answer(cx, place),
        }
    }

    /// What is left of the response body, when it could go through a pipe. Bytes.
    pub(crate) fn unread(&self) -> Option<u64> {
        match self {
            Self::H1(side) => side.unread(),
            Self::H2(_) => None,
        }
    }

    /// Takes response body into `pipe`. `Ok(0)`: nothing more comes this way.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, ProxyError>> {
        match self {
            Self::H1(side) => side.poll_fill(cx, pipe),
            Self::H2(_) => Poll::Ready(Ok(0)),
        }
    }

    /// The next frame of the response body; `None` at its end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        match self {
            Self::H1(side) => side.poll_frame(cx),
            Self::H2(side) => side.poll_frame(cx),
        }
    }

    /// Whether the response body has been taken whole.
    pub(crate) fn input_done(&self) -> bool {
        match self {
            Self::H1(side) => side.input_done(),
            Self::H2(side) => side.input_done(),
        }
    }

    /// `bytes` of the response body were forwarded.
    pub(crate) fn release(&mut self, bytes: usize) {
        match self {
            Self::H1(_) => {}
            Self::H2(side) => side.release(bytes),
        }
    }

    /// Whether the connection had carried requests before this one: then an early end is the
    /// ordinary race with the endpoint's keep-alive timeout.
    pub(crate) fn reused(&self) -> bool {
        match self {
            Self::H1(side) => side.reused(),
            Self::H2(side) => side.reused(),
        }
    }

    /// The request is given up because of `cause`, before its end.
    pub(crate) fn cancel(&mut self, cause: &ProxyError) {
        match self {
            // Its connection is closed: HTTP/1 has no other way to say so.
            Self::H1(_) => {}
            Self::H2(side) => side.cancel(cause),
        }
    }

    /// The exchange is over: gives the connection back if it can carry another request.
    pub(crate) fn finish(self, now: Instant) {
        match self {
            Self::H1(side) => side.finish(now),
            // Dropping the stream's halves is all HTTP/2 needs; an unfinished one is reset.
            Self::H2(_) => {}
        }
    }
}
