//! Bodies out of the read buffer (RFC 9112 §§6-7). Framing is taken off, content is handed on as
//! slices of the buffer; nothing is tolerated that two decoders could count differently.

use bytes::{Buf, Bytes, BytesMut};

use super::Limits;
use super::error::ParseError;
use super::lines::read_entries;
use crate::headers::{FirstIndex, HeaderList, Known};
use crate::message::{BodyLength as Length, Frame};

/// Takes one body apart.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    chunk_line_bytes_max: usize,
    extension_bytes_left: u64,
    trailer_bytes_max: usize,
    trailers_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of content left.
    Exact(u64),
    UntilClose,
    /// At a chunk-size line.
    ChunkSize,
    /// So many bytes left in the chunk.
    ChunkData(u64),
    /// At the CR LF after the data.
    ChunkEnd,
    /// At the trailer section, after the last chunk.
    Trailers,
    End,
    /// Nothing after the mistake can be told apart from it.
    Failed(ParseError),
}

/// What a decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The next piece.
    Frame(Frame),
    /// Read more and call again.
    NeedMore,
    /// The body is over; what is left in the buffer belongs to the next message.
    End,
}

/// What a decoder found, borrowed.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodedSlice<'b> {
    /// Content; never empty.
    Data(&'b [u8]),
    /// The trailer section.
    Trailers(HeaderList),
    /// Read more and call again.
    NeedMore,
    /// The body is over.
    End,
}

/// Sizes and positions that fit every signed 64-bit counter downstream.
const SIZE_MAX: u64 = i64::MAX as u64;
/// More hexadecimal digits than any size in range needs.
const SIZE_DIGITS_MAX: usize = 16;
/// Upper bound of `Limits::trailers_max`, for the stack.
const TRAILERS_CAP: usize = 128;

/// The next event: skip `skip` bytes of framing, then take `len` bytes of `what`.
struct Step {
    skip: usize,
    len: usize,
    what: What,
}

enum What {
    Data,
    Trailers,
    NeedMore,
    End,
}

impl BodyDecoder {
    /// A decoder with the default limits.
    pub fn new(length: Length) -> Self {
        BodyDecoder::with_limits(length, &Limits::DEFAULT)
    }

    /// A decoder for a body of this length.
    pub fn with_limits(length: Length, limits: &Limits) -> Self {
        let state = match length {
            Length::None | Length::Exact(0) => State::End,
            Length::Exact(length) => State::Exact(length),
            Length::Chunked => State::ChunkSize,
            // HTTP/2 frames its own bodies; bytes that need no decoding end with their source.
            Length::UntilClose | Length::Streamed => State::UntilClose,
        };
        BodyDecoder {
            state,
            chunk_line_bytes_max: limits.chunk_line_bytes_max,
            extension_bytes_left: limits.chunk_extension_bytes_max,
            trailer_bytes_max: limits.trailer_bytes_max,
            trailers_max: limits.trailers_max.min(TRAILERS_CAP),
        }
    }

    /// How much content is to come of a body whose length was announced.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Exact(left) => Some(left),
            _ => None,
        }
    }

    /// So much of it has gone another way than through [`decode`](Self::decode).
    ///
    /// # Panics
    /// When it is more than is [`left`](Self::left).
    pub fn skip(&mut self, bytes: u64) {
        let left = self.left().and_then(|left| left.checked_sub(bytes));
        self.state = match left.expect("nobody takes more than was announced") {
            0 => State::End,
            left => State::Exact(left),
        };
    }

    /// Takes the next piece off the front of `buf`, sharing its memory.
    ///
    /// # Errors
    /// [`ParseError`]; the connection cannot be used any further.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, ParseError> {
        let step = self.step(buf).map_err(|error| self.fail(error))?;
        buf.advance(step.skip);
        Ok(match step.what {
            What::NeedMore => Decoded::NeedMore,
            What::End => Decoded::End,
            What::Data => Decoded::Frame(Frame::Data(buf.split_to(step.len).freeze())),
            What::Trailers => {
                let section = buf.split_to(step.len).freeze();
                let trailers = self.read_trailers(section).map_err(|error| self.fail(error))?;
                Decoded::Frame(Frame::Trailers(trailers))
            }
        })
    }

    /// The same without taking: returns how many bytes of `buf` are done with, content included.
    ///
    /// # Errors
    /// [`ParseError`]; the connection cannot be used any further.
    pub fn decode_slice<'b>(
        &mut self,
        buf: &'b [u8],
    ) -> Result<(usize, DecodedSlice<'b>), ParseError> {
        let step = self.step(buf).map_err(|error| self.fail(error))?;
        let part = &buf[step.skip..step.skip + step.len];
        let what = match step.what {
            What::NeedMore => DecodedSlice::NeedMore,
            What::End => DecodedSlice::End,
            What::Data => DecodedSlice::Data(part),
            What::Trailers => {
                let section = Bytes::copy_from_slice(part);
                DecodedSlice::Trailers(self.read_trailers(section).map_err(|e| self.fail(e))?)
            }
        };
        Ok((step.skip + step.len, what))
    }

    /// The peer closed.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] unless the body was over or ends with its connection.
    pub fn eof(&mut self) -> Result<(), ParseError> {
        match self.state {
            State::UntilClose | State::End => {
                self.state = State::End;
                Ok(())
            }
            State::Failed(error) => Err(error),
            _ => Err(ParseError::Truncated),
        }
    }

    /// Whether the body is over.
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    fn fail(&mut self, error: ParseError) -> ParseError {
        self.state = State::Failed(error);
        error
    }

    /// Content bytes certain to follow: what is worth a large read.
    pub fn expected(&self) -> u64 {
        match self.state {
            State::Exact(left) | State::ChunkData(left) => left,
            _ => 0,
        }
    }

    fn step(&mut self, buf: &[u8]) -> Result<Step, ParseError> {
        let mut skip = 0;
        loop {
            let rest = &buf[skip..];
            let done = |len, what| Ok(Step { skip, len, what });
            match self.state {
                State::End => return done(0, What::End),
                State::Failed(error) => return Err(error),
                _ if rest.is_empty() => return done(0, What::NeedMore),
                State::UntilClose => return done(rest.len(), What::Data),
                State::Exact(left) => {
                    let take = take(left, rest);
                    self.state = match left - take as u64 {
                        0 => State::End,
                        left => State::Exact(left),
                    };
                    return done(take, What::Data);
                }
                State::ChunkData(left) => {
                    let take = take(left, rest);
                    self.state = match left - take as u64 {
                        0 => State::ChunkEnd,
                        left => State::ChunkData(left),
                    };
                    return done(take, What::Data);
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        skip += 2;
                        self.state = State::ChunkSize;
                    }
                    [b'\r'] => return done(0, What::NeedMore),
                    _ => return Err(ParseError::ChunkEnd),
                },
                State::ChunkSize => match self.chunk_size(rest)? {
                    None => return done(0, What::NeedMore),
                    Some((line, size)) => {
                        skip += line;
                        self.state = match size {
                            0 => State::Trailers,
                            size => State::ChunkData(size),
                        };
                    }
                },
                State::Trailers => {
                    if rest.starts_with(b"\r\n") {
                        skip += 2;
                        self.state = State::End;
                        continue;
                    }
                    return match self.trailer_section(rest)? {
                        None => done(0, What::NeedMore),
                        Some(len) => {
                            self.state = State::End;
                            done(len, What::Trailers)
                        }
                    };
                }
            }
        }
    }

    /// Length of the chunk-size line and the size it says. Extensions are counted and dropped.
    fn chunk_size(&mut self, rest: &[u8]) -> Result<Option<(usize, u64)>, ParseError> {
        if !rest[0].is_ascii_hexdigit() {
            return Err(ParseError::ChunkSize);
        }
        let window = &rest[..rest.len().min(self.chunk_line_bytes_max)];
        let Some(end) = memchr::memchr(b'\n', window) else {
            return match rest.len() >= self.chunk_line_bytes_max {
                true => Err(ParseError::ChunkLineTooLong),
                false => Ok(None),
            };
        };
        let line = window[..end].strip_suffix(b"\r").ok_or(ParseError::LineEnding)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = parse_hex(&line[..digits])?;
        let extension = &line[digits..];
        if !extension.is_empty() {
            check_extension(extension)?;
            self.extension_bytes_left = self
                .extension_bytes_left
                .checked_sub(extension.len() as u64)
                .ok_or(ParseError::ChunkLineTooLong)?;
        }
        Ok(Some((end + 1, size)))
    }

    /// Length of the trailer section, once it is whole.
    fn trailer_section(&self, rest: &[u8]) -> Result<Option<usize>, ParseError> {
        let window = &rest[..rest.len().min(self.trailer_bytes_max.saturating_add(1))];
        let mut slots = [httparse::EMPTY_HEADER; TRAILERS_CAP];
        let parsed = httparse::parse_headers(window, &mut slots[..self.trailers_max]);
        match parsed.map_err(trailer_error)? {
            httparse::Status::Complete((len, _)) if len <= self.trailer_bytes_max => Ok(Some(len)),
            httparse::Status::Partial if window.len() <= self.trailer_bytes_max => Ok(None),
            _ => Err(ParseError::TrailersTooLarge),
        }
    }

    fn read_trailers(&self, section: Bytes) -> Result<HeaderList, ParseError> {
        let mut slots = [httparse::EMPTY_HEADER; TRAILERS_CAP];
        let parsed = httparse::parse_headers(&section, &mut slots[..self.trailers_max]);
        let httparse::Status::Complete((_, headers)) = parsed.map_err(trailer_error)? else {
            return Err(ParseError::Trailer);
        };
        let entries = read_entries(&section, headers)?;
        let mut first = FirstIndex::default();
        for (index, entry) in entries.iter().enumerate() {
            first.note(entry.known, entry.name_len as usize, index);
        }
        let mut trailers = HeaderList::from_block(section, entries, first);
        trailers.retain(|header| !header.known.is_some_and(is_forbidden_trailer));
        Ok(trailers)
    }
}

/// Fields that frame or route; RFC 9110 §6.5.1 forbids them here, and they are dropped.
fn is_forbidden_trailer(known: Known) -> bool {
    matches!(
        known,
        Known::ContentLength
            | Known::TransferEncoding
            | Known::Host
            | Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::Te
            | Known::Trailer
            | Known::Upgrade
            | Known::Expect
    )
}

fn trailer_error(error: httparse::Error) -> ParseError {
    match error {
        httparse::Error::TooManyHeaders => ParseError::TrailersTooLarge,
        _ => ParseError::Trailer,
    }
}

fn take(left: u64, rest: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(rest.len())
}

fn parse_hex(digits: &[u8]) -> Result<u64, ParseError> {
    if digits.is_empty() || digits.len() > SIZE_DIGITS_MAX {
        return Err(ParseError::ChunkSize);
    }
    let size = digits.iter().fold(0_u64, |size, &byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        size << 4 | u64::from(digit)
    });
    match size <= SIZE_MAX {
        true => Ok(size),
        false => Err(ParseError::ChunkSize),
    }
}

/// `BWS ";" …` without control characters. Blanks alone after the size are refused.
fn check_extension(extension: &[u8]) -> Result<(), ParseError> {
    if extension.trim_ascii_start().first() != Some(&b';') {
        return Err(ParseError::ChunkSize);
    }
    match extension.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)) {
        true => Ok(()),
        false => Err(ParseError::ChunkExtension),
    }
}
