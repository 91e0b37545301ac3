//! Bodies on an HTTP/1 connection, either side, in the shape the exchange wants: frames in,
//! frames out. Owns the decoder and encoder of the message under way; heads belong to the sides.

use std::io;
use std::task::{Context, Poll, ready};

use weft_http::h1::{
    self, BodyDecoder, BodyEncoder, Decoded, Limits, ParseError, Parsed, ParsedRequest,
    ParsedResponse,
};
use weft_http::{BodyLength, Frame, Method};

use super::wire::Wire;
use crate::net::pipe::Pipe;

/// A connection with at most one message under way in each direction.
pub(crate) struct H1 {
    pub(crate) wire: Wire,
    decoder: BodyDecoder,
    encoder: BodyEncoder,
    limits: Limits,
    input_done: bool,
    output_done: bool,
}

/// Why a body stopped.
#[derive(Debug)]
pub(crate) enum BodyError {
    Io(io::Error),
    Parse(ParseError),
}

impl From<io::Error> for BodyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ParseError> for BodyError {
    fn from(error: ParseError) -> Self {
        Self::Parse(error)
    }
}

impl H1 {
    #[inline]
    pub(crate) fn new(wire: Wire, limits: Limits) -> Self {
        Self {
            wire,
            decoder: BodyDecoder::with_limits(BodyLength::None, &limits),
            encoder: BodyEncoder::new(BodyLength::None),
            limits,
            input_done: true,
            output_done: true,
        }
    }

    /// Takes a request head off what was read.
    #[inline]
    pub(crate) fn parse_request(&mut self) -> Result<Parsed<ParsedRequest>, ParseError> {
        h1::parse_request(&mut self.wire.input, &self.limits)
    }

    /// Takes the head of a response to `method` off what was read.
    #[inline]
    pub(crate) fn parse_response(
        &mut self,
        method: &Method,
    ) -> Result<Parsed<ParsedResponse>, ParseError> {
        h1::parse_response(&mut self.wire.input, &self.limits, method)
    }

    /// A head was read whose body is this long.
    pub(crate) fn start_input(&mut self, length: BodyLength) {
        self.decoder = BodyDecoder::with_limits(length, &self.limits);
        self.input_done = length.is_empty();
    }

    /// A head was written whose body will be this long.
    pub(crate) fn start_output(&mut self, length: BodyLength) {
        self.encoder = BodyEncoder::new(length);
        self.output_done = false;
    }

    /// The next frame of the body being read; `None` at its end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, BodyError>>> {
        loop {
            if self.input_done {
                return Poll::Ready(None);
            }
            match self.decoder.decode(&mut self.wire.input) {
                Ok(Decoded::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Decoded::End) => self.input_done = true,
                Ok(Decoded::NeedMore) => match ready!(self.wire.poll_fill(cx)) {
                    Ok(true) => {}
                    Ok(false) => match self.decoder.eof() {
                        Ok(()) => self.input_done = true,
                        Err(error) => return Poll::Ready(Some(Err(error.into()))),
                    },
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// What is left of a body of announced length, when all of it is still in the kernel.
    pub(crate) fn unread(&self) -> Option<u64> {
        self.decoder.left().filter(|_| self.wire.input.is_empty() && self.wire.socket().is_some())
    }

    /// Takes content into `pipe`; ask [`unread`](Self::unread) first. `Ok(0)`: nothing more comes.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        let (Some(left), Some(socket)) = (self.unread(), self.wire.socket()) else {
            return Poll::Ready(Ok(0));
        };
        let taken = ready!(pipe.poll_fill(cx, socket, left))?;
        self.decoder.skip(taken as u64);
        self.input_done = taken as u64 == left;
        Poll::Ready(Ok(taken))
    }

    /// Whether content can go to the socket as it is.
    pub(crate) fn takes_pipe(&self) -> bool {
        self.encoder.is_exact() && self.wire.socket().is_some()
    }

    /// Sends what is queued, and then what is in `pipe`.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        ready!(self.wire.poll_flush(cx))?;
        let Some(socket) = self.wire.socket() else { return Poll::Ready(Ok(0)) };
        let sent = ready!(pipe.poll_drain(cx, socket))?;
        self.encoder.skip(sent as u64).map_err(io::Error::other)?;
        Poll::Ready(Ok(sent))
    }

    /// Whether the body being read has been taken whole.
    pub(crate) fn input_done(&self) -> bool {
        self.input_done
    }

    /// Whether the body being written was ended.
    pub(crate) fn output_done(&self) -> bool {
        self.output_done
    }

    /// Ready when another frame may be sent.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.has_room() {
            return Poll::Ready(Ok(()));
        }
        self.wire.poll_flush(cx)
    }

    /// Queues one frame. Fails when the body turns out longer than its head promised.
    pub(crate) fn send(&mut self, frame: Frame) -> io::Result<()> {
        self.encoder.encode(frame, &mut self.wire.output).map_err(io::Error::other)
    }

    /// Queues the end of the body. Fails when it is shorter than its head promised.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if !self.output_done {
            self.encoder.finish(&mut self.wire.output).map_err(io::Error::other)?;
            self.output_done = true;
        }
        Ok(())
    }
}
