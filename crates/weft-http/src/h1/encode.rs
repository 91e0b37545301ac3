//! Bodies into the output queue, framed as decided, whatever framing they came with.

use bytes::Bytes;

use super::OutBuf;
use crate::headers::HeaderList;
use crate::message::{BodyLength, Frame};

/// Frames one body.
#[derive(Clone, Debug)]
pub struct BodyEncoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Exact(u64),
    Chunked,
    UntilClose,
    End,
}

/// The body does not have the length its head announced; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More content than announced.
    #[error("body longer than its announced length")]
    TooLong,
    /// The body ended early.
    #[error("body shorter than its announced length")]
    TooShort,
}

impl BodyEncoder {
    /// An encoder for the framing that the head was written with.
    pub fn new(framing: BodyLength) -> Self {
        let state = match framing {
            BodyLength::None | BodyLength::Exact(0) => State::End,
            BodyLength::Exact(length) => State::Exact(length),
            BodyLength::Chunked | BodyLength::Streamed => State::Chunked,
            BodyLength::UntilClose => State::UntilClose,
        };
        BodyEncoder { state }
    }

    /// Queues a frame. Trailers end the body; where the framing has no place for them they are
    /// dropped.
    ///
    /// # Errors
    /// [`EncodeError`] when the content does not fit the announced length.
    pub fn encode(&mut self, frame: Frame, out: &mut OutBuf) -> Result<(), EncodeError> {
        match frame {
            Frame::Data(data) => self.encode_data(data, out),
            Frame::Trailers(trailers) => self.encode_trailers(&trailers, out),
        }
    }

    /// Queues content by reference when it is large.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_data(&mut self, data: Bytes, out: &mut OutBuf) -> Result<(), EncodeError> {
        if self.open(data.len(), out)? {
            out.push(data);
            self.close_chunk(out);
        }
        Ok(())
    }

    /// Queues a copy of content; for pieces that are small or borrowed.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_slice(&mut self, data: &[u8], out: &mut OutBuf) -> Result<(), EncodeError> {
        if self.open(data.len(), out)? {
            out.extend(data);
            self.close_chunk(out);
        }
        Ok(())
    }

    /// The body is over; idempotent.
    ///
    /// # Errors
    /// [`EncodeError::TooShort`] when content is missing.
    pub fn finish(&mut self, out: &mut OutBuf) -> Result<(), EncodeError> {
        match std::mem::replace(&mut self.state, State::End) {
            State::End | State::UntilClose => Ok(()),
            State::Exact(_) => Err(EncodeError::TooShort),
            State::Chunked => {
                out.extend(b"0\r\n\r\n");
                Ok(())
            }
        }
    }

    /// Whether content goes as it is, up to a length that was announced.
    pub fn is_exact(&self) -> bool {
        matches!(self.state, State::Exact(_))
    }

    /// Accounts for content that has gone another way than through here; nothing may be queued before
    /// it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn skip(&mut self, bytes: u64) -> Result<(), EncodeError> {
        match self.state {
            State::Exact(left) if bytes <= left => {
                self.state = if bytes == left { State::End } else { State::Exact(left - bytes) };
                Ok(())
            }
            _ => Err(EncodeError::TooLong),
        }
    }

    /// Whether nothing more may be queued.
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    fn encode_trailers(
        &mut self,
        trailers: &HeaderList,
        out: &mut OutBuf,
    ) -> Result<(), EncodeError> {
        if self.state != State::Chunked {
            return self.finish(out);
        }
        self.state = State::End;
        out.stage_with(|staging| {
            staging.extend_from_slice(b"0\r\n");
            super::write::write_lines(trailers, staging);
            staging.extend_from_slice(b"\r\n");
        });
        Ok(())
    }

    /// Accounts for `len` bytes and writes what stands before them; whether there is any to write.
    fn open(&mut self, len: usize, out: &mut OutBuf) -> Result<bool, EncodeError> {
        if len == 0 {
            // An empty chunk would end the body.
            return Ok(false);
        }
        match self.state {
            State::End => return Err(EncodeError::TooLong),
            State::UntilClose => {}
            State::Chunked => out.stage_with(|staging| write_chunk_size(staging, len)),
            State::Exact(left) => {
                let left = left.checked_sub(len as u64).ok_or(EncodeError::TooLong)?;
                self.state = match left {
                    0 => State::End,
                    left => State::Exact(left),
                };
            }
        }
        Ok(true)
    }

    fn close_chunk(&self, out: &mut OutBuf) {
        if self.state == State::Chunked {
            out.extend(b"\r\n");
        }
    }
}

fn write_chunk_size(staging: &mut Vec<u8>, size: usize) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4);
    for at in (0..digits).rev() {
        let digit = (size >> (at * 4)) & 0xf;
        staging.push(b"0123456789abcdef"[digit]);
    }
    staging.extend_from_slice(b"\r\n");
}
