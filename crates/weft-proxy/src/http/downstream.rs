//! The client's side of one request, whatever version it speaks. The request path and the exchange
//! know only this; heads arrive separately, because reading them is the connection's business.

use std::task::{Context, Poll};

use weft_http::{BodyLength, Frame, ResponseHead, Version};

use super::server_h1::H1Server;
use super::server_h2::H2Server;
use crate::error::ProxyError;
use crate::net::pipe::Pipe;

/// Where the request body comes from and the response goes to. A closed set: HTTP/3 will be the
/// third arm.
pub(crate) enum Downstream<'c> {
    H1(&'c mut H1Server),
    H2(&'c mut H2Server),
}

impl Downstream<'_> {
    /// The next frame of the request body; `None` at its end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ProxyError>>> {
        match self {
            Self::H1(side) => side.poll_frame(cx),
            Self::H2(side) => side.poll_frame(cx),
        }
    }

    /// Whether the request body has been taken whole.
    pub(crate) fn input_done(&self) -> bool {
        match self {
            Self::H1(side) => side.input_done(),
            Self::H2(side) => side.input_done(),
        }
    }

    /// `bytes` of the request body were forwarded.
    pub(crate) fn release(&mut self, bytes: usize) {
        match self {
            Self::H1(_) => {}
            Self::H2(side) => side.release(bytes),
        }
    }

    /// Queues a 1xx head. Never fails the request: a 1.0 client simply does not get it.
    pub(crate) fn send_informational(&mut self, head: &mut ResponseHead) {
        match self {
            Self::H1(side) => side.send_informational(head),
            Self::H2(side) => side.send_informational(head),
        }
    }

    /// Queues the final head; the framing for this client is chosen here.
    pub(crate) fn send_head(
        &mut self,
        head: &mut ResponseHead,
        body: BodyLength,
    ) -> Result<(), ProxyError> {
        match self {
            Self::H1(side) => {
                side.send_head(head, body);
                Ok(())
            }
            Self::H2(side) => side.send_head(head, body),
        }
    }

    /// Whether a final head was queued: from then on an error can only cut the response.
    pub(crate) fn head_sent(&self) -> bool {
        match self {
            Self::H1(side) => side.head_sent(),
            Self::H2(side) => side.head_sent(),
        }
    }

    /// Ready when another frame may be sent.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        match self {
            Self::H1(side) => side.poll_ready(cx),
            Self::H2(side) => side.poll_ready(cx),
        }
    }

    /// Queues one frame of the response body.
    pub(crate) fn send(&mut self, frame: Frame) -> Result<(), ProxyError> {
        match self {
            Self::H1(side) => side.send(frame),
            Self::H2(side) => {
                side.send(frame);
                Ok(())
            }
        }
    }

    /// Whether the response body can come to it through a pipe.
    pub(crate) fn takes_pipe(&self) -> bool {
        match self {
            Self::H1(side) => side.takes_pipe(),
            Self::H2(_) => false,
        }
    }

    /// Sends what is queued, and then what is in `pipe`.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, ProxyError>> {
        match self {
            Self::H1(side) => side.poll_drain(cx, pipe),
            Self::H2(_) => Poll::Ready(Ok(0)),
        }
    }

    /// Queues the end of the response body.
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

    /// Ready when the client is known to have given the request up.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ProxyError> {
        match self {
            Self::H1(side) => side.poll_gone(cx),
            Self::H2(side) => side.poll_gone(cx),
        }
    }

    /// Bytes queued that the kernel has not taken. HTTP/2 queues nothing without a window.
    pub(crate) fn unsent_bytes(&self) -> usize {
        match self {
            Self::H1(side) => side.unsent_bytes(),
            Self::H2(_) => 0,
        }
    }

    /// The connection ends after this response, and its head says so. HTTP/2 says it by GOAWAY.
    pub(crate) fn close_after(&mut self) {
        match self {
            Self::H1(side) => side.close_after(),
            Self::H2(_) => {}
        }
    }

    /// Cuts the response: the client must not take what it has for a whole message. `code` says
    /// why in HTTP/2's words (RFC 9113 §7), if the upstream did.
    pub(crate) fn abort(&mut self, code: Option<u32>) {
        match self {
            Self::H1(side) => side.abort(),
            Self::H2(side) => side.abort(code),
        }
    }

    /// The version the client speaks.
    pub(crate) fn version(&self) -> Version {
        match self {
            Self::H1(side) => side.version(),
            Self::H2(_) => Version::H2,
        }
    }
}
