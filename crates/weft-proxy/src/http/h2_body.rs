//! Bodies on HTTP/2 streams, either side, in the shape the exchange wants: frames in, frames out.
//!
//! Flow control stays honest end to end: received bytes are acknowledged to the peer only when the
//! exchange says they were forwarded, and bytes wait here until the other peer's window takes them.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use weft_http::Frame;

use super::convert;

/// The sending half: holds at most one frame that the peer's window has no room for.
pub(crate) struct SendBody {
    stream: SendStream<Bytes>,
    waiting: Bytes,
    /// The stream ends after `waiting`.
    ending: Option<Ending>,
    ended: bool,
}

enum Ending {
    Plain,
    Trailers(http::HeaderMap),
}

/// The most window asked for at once; more than a peer's default window is never granted anyway.
const RESERVE_BYTES_MAX: usize = 256 * 1024;

impl SendBody {
    /// `ended`: the head already carried END_STREAM.
    pub(crate) fn new(stream: SendStream<Bytes>, ended: bool) -> Self {
        Self { stream, waiting: Bytes::new(), ending: None, ended }
    }

    /// Takes one frame. Call only after [`SendBody::poll_ready`] said so.
    pub(crate) fn send(&mut self, frame: Frame) {
        debug_assert!(self.waiting.is_empty(), "one frame at a time");
        match frame {
            Frame::Data(data) => self.waiting = data,
            Frame::Trailers(trailers) => {
                self.ending = Some(Ending::Trailers(convert::to_map(&trailers)));
            }
        }
    }

    /// Says that nothing follows; may be called while a frame is waiting.
    pub(crate) fn end(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Ending::Plain);
        }
    }

    /// Ready once everything taken has been handed to the connection.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.waiting.is_empty() {
            let room = ready!(self.poll_room(cx))?;
            let part = self.waiting.split_to(room.min(self.waiting.len()));
            let last = self.waiting.is_empty() && matches!(self.ending, Some(Ending::Plain));
            self.stream.send_data(part, last)?;
            self.ended |= last;
        }
        if !self.ended {
            match self.ending.take() {
                None => {}
                Some(Ending::Plain) => {
                    self.stream.send_data(Bytes::new(), true)?;
                    self.ended = true;
                }
                Some(Ending::Trailers(trailers)) => {
                    self.stream.send_trailers(trailers)?;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, h2::Error>> {
        self.stream.reserve_capacity(self.waiting.len().min(RESERVE_BYTES_MAX));
        loop {
            match self.stream.capacity() {
                0 => {}
                room => return Poll::Ready(Ok(room)),
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(room) => {
                    room?;
                }
                // The stream is no longer open for sending: the reason is in its reset.
                None => {
                    let reason = ready!(self.stream.poll_reset(cx))?;
                    return Poll::Ready(Err(reason.into()));
                }
            }
        }
    }

    /// Whether the peer reset the stream.
    pub(crate) fn poll_reset(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<h2::Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }
}

/// The receiving half.
pub(crate) struct RecvBody {
    stream: RecvStream,
    data_ended: bool,
}

impl RecvBody {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, data_ended: false }
    }

    /// The next frame; `None` at the end. Every data byte must be given back with
    /// [`RecvBody::release`] once it was forwarded.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, h2::Error>>> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                // Empty DATA frames mean nothing unless they end the stream, which shows next.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => {
                Poll::Ready(Some(Ok(Frame::Trailers(convert::from_map(&trailers)))))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// Gives `bytes` of window back to the peer.
    pub(crate) fn release(&mut self, bytes: usize) {
        // Fails only when more is released than was received, or on a stream already gone.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    /// Whether nothing more will come; lets the last frame carry the end of the stream.
    pub(crate) fn ended(&self) -> bool {
        self.stream.is_end_stream()
    }
}
