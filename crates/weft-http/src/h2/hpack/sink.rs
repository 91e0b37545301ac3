//! Where a decoded block goes: all lines in one run of bytes with their offsets, pseudo fields
//! apart, faults and limits noted. Taking the head out slices that run.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::class::{Class, Kind, PSEUDO_COUNT, Pseudo};
use super::table::{LINE_OVERHEAD, field_size};
use crate::headers::{Entry, FirstIndex, HeaderList, Known, Place, offset};
use crate::message::{RequestHead, ResponseHead};
use crate::rules::{H2Error, RequestParts, assemble_request, assemble_response};

/// Bounds on a decoded head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// As SETTINGS_MAX_HEADER_LIST_SIZE counts: names, values and 32 bytes for each field.
    pub list_bytes_max: usize,
    /// Fields, the pseudo ones among them.
    pub fields_max: usize,
}

impl HeadLimits {
    /// Those of HTTP/1 ([`h1::Limits`](crate::h1::Limits)): Envoy's 60 KiB and 100 fields, with room
    /// for what counting 32 bytes for each and the pseudo fields add.
    pub const DEFAULT: HeadLimits =
        HeadLimits { list_bytes_max: 60 * 1024 + 105 * 32, fields_max: 105 };
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits::DEFAULT
    }
}

/// Why a decoded head cannot be used. The connection and its tables are fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is over the limits: answer 431 or reset the stream.
    #[error("http2.head_too_large")]
    TooLarge,
    /// RFC 9113 §8.1.1: reset the stream with PROTOCOL_ERROR.
    #[error(transparent)]
    Malformed(#[from] H2Error),
}

/// Collects one head at a time. Many heads share the memory it reads into, so keep one per
/// connection or worker.
#[derive(Debug, Default)]
pub struct FieldSink {
    pub(super) block: BytesMut,
    entries: Vec<Entry>,
    first: FirstIndex,
    /// Values of pseudo fields.
    pseudo: [Option<(u32, u32)>; PSEUDO_COUNT],
    content_length: Option<(u32, u32)>,
    fault: Option<H2Error>,
    list_bytes: usize,
    fields: usize,
    too_large: bool,
}

/// Room for lines that the request path adds.
const SPARE_ENTRIES: usize = 8;
/// Memory heads share, in bytes. A stream that stays open for long may hold one such piece.
const CHUNK: usize = 2048;
/// Less left than this, and the next head starts a new piece.
const CHUNK_LEFT_MIN: usize = 384;

impl FieldSink {
    /// An empty sink without memory.
    pub fn new() -> Self {
        FieldSink::default()
    }

    /// Gives all memory back; for connections that go idle.
    pub fn release(&mut self) {
        *self = FieldSink::default();
    }

    /// The head as a request, and the protocol of an extended CONNECT (RFC 8441).
    ///
    /// # Errors
    /// When it is over the limits or malformed as a request.
    pub fn take_request(&mut self) -> Result<(RequestHead, Option<Bytes>), HeadError> {
        self.check(|pseudo| pseudo != Pseudo::Status)?;
        let (block, headers) = self.take();
        let range = |pseudo| self.pseudo_range(pseudo);
        let shared = |pseudo| range(pseudo).map(|range| block.slice(range));
        let protocol = shared(Pseudo::Protocol);
        let parts = RequestParts {
            method: range(Pseudo::Method).map(|range| &block[range]),
            scheme: range(Pseudo::Scheme).map(|range| &block[range]),
            authority: shared(Pseudo::Authority),
            path: shared(Pseudo::Path),
            extended: protocol.is_some(),
        };
        Ok((assemble_request(parts, headers)?, protocol))
    }

    /// The head as a response, final or informational.
    ///
    /// # Errors
    /// When it is over the limits or malformed as a response.
    pub fn take_response(&mut self) -> Result<ResponseHead, HeadError> {
        self.check(|pseudo| pseudo == Pseudo::Status)?;
        let status = match self.pseudo_range(Pseudo::Status).map(|range| &self.block[range]) {
            Some(&[hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9']) => {
                u16::from(hundreds - b'0') * 100
                    + u16::from(tens - b'0') * 10
                    + u16::from(ones - b'0')
            }
            _ => return Err(H2Error::Pseudo.into()),
        };
        let (_, headers) = self.take();
        Ok(assemble_response(status, headers)?)
    }

    /// The head as trailers.
    ///
    /// # Errors
    /// When they are over the limits or malformed; pseudo fields have no place in them.
    pub fn take_trailers(&mut self) -> Result<HeaderList, HeadError> {
        self.check(|_| false)?;
        Ok(self.take().1)
    }

    /// Forgets what was read so far.
    pub(super) fn start(&mut self) {
        self.block.clear();
        self.entries.clear();
        self.first = FirstIndex::default();
        self.pseudo = [None; PSEUDO_COUNT];
        self.content_length = None;
        self.fault = None;
        self.list_bytes = 0;
        self.fields = 0;
        self.too_large = false;
        if self.block.capacity() < CHUNK_LEFT_MIN {
            self.block.reserve(CHUNK);
        }
    }

    /// A field known to a table, with its line.
    #[inline]
    pub(super) fn push_line(
        &mut self,
        line: &[u8],
        name_len: usize,
        class: Class,
        limits: &HeadLimits,
    ) {
        if self.admit(name_len, line.len() - name_len - LINE_OVERHEAD, limits) {
            let start = self.block.len();
            self.block.extend_from_slice(line);
            self.note(start, name_len, class, false);
        }
    }

    /// A field whose line stands at the end of the block, from `start`.
    pub(super) fn close_line(
        &mut self,
        start: usize,
        name_len: usize,
        class: Class,
        never_indexed: bool,
        limits: &HeadLimits,
    ) {
        let value_len = self.block.len() - start - name_len - LINE_OVERHEAD;
        match self.admit(name_len, value_len, limits) {
            true => self.note(start, name_len, class, never_indexed),
            false => self.block.truncate(start),
        }
    }

    /// Counts a field; whether the limits still let it in. What comes after the first that they do
    /// not is dropped, so that a small block cannot grow into a large one.
    #[inline]
    fn admit(&mut self, name_len: usize, value_len: usize, limits: &HeadLimits) -> bool {
        self.list_bytes += field_size(name_len, value_len);
        self.fields += 1;
        self.too_large |=
            self.list_bytes > limits.list_bytes_max || self.fields > limits.fields_max;
        !self.too_large
    }

    #[inline]
    fn note(&mut self, start: usize, name_len: usize, class: Class, never_indexed: bool) {
        let end = self.block.len();
        let value_start = start + name_len + 2;
        let value = (offset(value_start), offset(end - 2));
        if class.value_fault.is_some() {
            self.fault = self.fault.or(class.value_fault);
        }
        match class.name.kind {
            Kind::Regular => {
                self.first.note(class.name.known, name_len, self.entries.len());
                if class.name.known == Known::ContentLength as u8 {
                    self.note_content_length(value);
                }
                self.entries.push(Entry {
                    start: offset(start),
                    end: offset(end),
                    name_len: offset(name_len),
                    value_start: value.0,
                    value_len: value.1 - value.0,
                    known: class.name.known,
                    place: Place::Block,
                    never_indexed,
                });
            }
            Kind::Pseudo(pseudo) => {
                // RFC 9113 §8.3: once, and before the others.
                if !self.entries.is_empty() || self.pseudo[pseudo as usize].is_some() {
                    self.fault = self.fault.or(Some(H2Error::Pseudo));
                }
                self.pseudo[pseudo as usize] = Some(value);
            }
            Kind::Faulty(fault) => self.fault = self.fault.or(Some(fault)),
        }
    }

    /// RFC 9110 §8.6: several only if they say the same.
    fn note_content_length(&mut self, value: (u32, u32)) {
        let text = |(start, end): (u32, u32)| &self.block[start as usize..end as usize];
        match self.content_length {
            Some(earlier) if text(earlier) != text(value) => {
                self.fault = self.fault.or(Some(H2Error::ContentLength));
            }
            Some(_) => {}
            None => self.content_length = Some(value),
        }
    }

    fn check(&self, allowed: impl Fn(Pseudo) -> bool) -> Result<(), HeadError> {
        if self.too_large {
            return Err(HeadError::TooLarge);
        }
        if let Some(fault) = self.fault {
            return Err(fault.into());
        }
        let all = [
            Pseudo::Method,
            Pseudo::Scheme,
            Pseudo::Authority,
            Pseudo::Path,
            Pseudo::Protocol,
            Pseudo::Status,
        ];
        match all.iter().any(|&pseudo| self.pseudo[pseudo as usize].is_some() && !allowed(pseudo)) {
            true => Err(H2Error::Pseudo.into()),
            false => Ok(()),
        }
    }

    fn pseudo_range(&self, pseudo: Pseudo) -> Option<Range<usize>> {
        self.pseudo[pseudo as usize].map(|(start, end)| start as usize..end as usize)
    }

    fn take(&mut self) -> (Bytes, HeaderList) {
        let block = self.block.split().freeze();
        let mut entries = Vec::with_capacity(self.entries.len() + SPARE_ENTRIES);
        entries.extend_from_slice(&self.entries);
        let first = std::mem::take(&mut self.first);
        (block.clone(), HeaderList::from_lower_block(block, entries, first))
    }
}
