//! The lines of a head, walked once after `httparse` found them: offsets for the list, known names
//! into its index, and what they say about framing, host and connection.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::error::ParseError;
use super::framing::{FramingLines, has_token};
use super::{Connection, Limits, Upgrade};
use crate::headers::{Entry, FirstIndex, Known, Place, is_token_byte, known_byte, offset};
use crate::message::{Method, Version};

/// Lines parsed on the stack; larger limits use the heap.
const STACK_HEADERS: usize = 128;
/// Room for the lines of most heads and those that the request path adds.
const EXPECTED_ENTRIES: usize = 20;
/// Room for lines that the request path adds.
const SPARE_ENTRIES: usize = 8;
/// Offsets are `u32`; nobody means a head of this size.
const HEAD_BYTES_CAP: usize = 16 << 20;

/// The lines of a head, walked once.
pub(super) struct Lines {
    pub(super) entries: Vec<Entry>,
    pub(super) first: FirstIndex,
    pub(super) framing: FramingLines,
    pub(super) host: Option<Range<usize>>,
    close: bool,
    keep_alive: bool,
    upgrade_named: bool,
    upgrade: Option<Upgrade>,
    h2c: bool,
    expect: Expectation,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expectation {
    Absent,
    Continue,
    Other,
}

impl Lines {
    pub(super) fn read(
        window: &[u8],
        head_len: usize,
        headers: &[httparse::Header<'_>],
        response: bool,
    ) -> Result<Lines, ParseError> {
        let entries = read_entries(&window[..head_len], headers)?;
        let mut lines = Lines::of(entries);
        for (index, header) in headers.iter().enumerate() {
            let known = lines.entries[index].known;
            lines.first.note(known, header.name.len(), index);
            if let Some(&known_name) = Known::ALL.get(usize::from(known)) {
                lines.note(window, known_name, header.value, response)?;
            }
        }
        Ok(lines)
    }

    /// None read yet.
    pub(super) fn new() -> Lines {
        Lines::of(Vec::with_capacity(EXPECTED_ENTRIES))
    }

    fn of(entries: Vec<Entry>) -> Lines {
        Lines {
            entries,
            first: FirstIndex::default(),
            framing: FramingLines::default(),
            host: None,
            close: false,
            keep_alive: false,
            upgrade_named: false,
            upgrade: None,
            h2c: false,
            expect: Expectation::Absent,
        }
    }

    /// What a known line says about framing and connection.
    #[inline]
    pub(super) fn note(
        &mut self,
        window: &[u8],
        known: Known,
        value: &[u8],
        response: bool,
    ) -> Result<(), ParseError> {
        match known {
            Known::Host if response => {}
            Known::Host => match self.host {
                None => self.host = Some(range_in(window, value)),
                Some(_) => return Err(ParseError::HostRepeated),
            },
            Known::ContentLength => self.framing.content_length(value, response)?,
            Known::TransferEncoding => self.framing.transfer_encoding(value)?,
            Known::Connection => {
                self.close |= says_close(value);
                self.keep_alive |= has_token(value, b"keep-alive");
                self.upgrade_named |= has_token(value, b"upgrade");
            }
            // Nobody's standard, but Envoy closes for it, and closing is never wrong.
            Known::ProxyConnection => self.close |= says_close(value),
            Known::Upgrade => {
                self.h2c |= has_token(value, b"h2c");
                self.upgrade = match has_token(value, b"websocket") {
                    true => Some(Upgrade::WebSocket),
                    false => self.upgrade.or(Some(Upgrade::Other)),
                }
            }
            Known::Expect => {
                self.expect = match value.eq_ignore_ascii_case(b"100-continue") {
                    true => Expectation::Continue,
                    false => Expectation::Other,
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn connection(
        &self,
        version: Version,
        request: Option<&Method>,
    ) -> Result<Connection, ParseError> {
        let keep_alive = match version {
            Version::H10 => self.keep_alive && !self.close,
            Version::H11 | Version::H2 => !self.close,
        };
        // RFC 9110 §7.8: ignored from HTTP/1.0, and meaningless unless Connection names it.
        let upgrade = match version {
            Version::H11
                if self.upgrade_named && !self.h2c && request != Some(&Method::Connect) =>
            {
                self.upgrade
            }
            _ => None,
        };
        let expect_continue = match (self.expect, request, version) {
            (Expectation::Other, Some(_), Version::H11) => return Err(ParseError::Expectation),
            (Expectation::Continue, Some(_), Version::H11) => true,
            _ => false,
        };
        Ok(Connection { keep_alive, upgrade, expect_continue })
    }
}

/// `close` anywhere in the value: nginx does not look for whole tokens, and whoever keeps a
/// connection that another closes sees a request more than it.
fn says_close(value: &[u8]) -> bool {
    value.windows(5).any(|part| part.eq_ignore_ascii_case(b"close"))
}

/// Offsets of every line; refuses lines that do not end with CR LF.
pub(super) fn read_entries(
    head: &[u8],
    headers: &[httparse::Header<'_>],
) -> Result<Vec<Entry>, ParseError> {
    let mut entries = Vec::with_capacity(headers.len() + SPARE_ENTRIES);
    if !head.ends_with(b"\r\n") {
        return Err(ParseError::LineEnding);
    }
    let fields_end = head.len() - 2;
    let mut start =
        headers.first().map_or(fields_end, |header| range_in(head, header.name.as_bytes()).start);
    if start > 0 && !head[..start].ends_with(b"\r\n") {
        return Err(ParseError::LineEnding);
    }
    for (index, header) in headers.iter().enumerate() {
        let end = match headers.get(index + 1) {
            Some(next) => range_in(head, next.name.as_bytes()).start,
            None => fields_end,
        };
        if !head[start..end].ends_with(b"\r\n") {
            return Err(ParseError::LineEnding);
        }
        let value = match header.value {
            b"" => end - 2..end - 2,
            value => range_in(head, value),
        };
        entries.push(Entry {
            start: offset(start),
            end: offset(end),
            name_len: offset(header.name.len()),
            value_start: offset(value.start),
            value_len: offset(value.len()),
            known: known_byte(header.name.as_bytes()),
            place: Place::Block,
            never_indexed: false,
        });
        start = end;
    }
    Ok(entries)
}

/// Where `part`, a slice of `whole`, is in it.
pub(super) fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    start..start + part.len()
}

pub(super) fn version_of(minor: Option<u8>) -> Version {
    match minor {
        Some(0) => Version::H10,
        _ => Version::H11,
    }
}

pub(super) fn head_max(limits: &Limits) -> usize {
    limits.head_bytes_max.min(HEAD_BYTES_CAP)
}

pub(super) fn with_header_slots<'b, T>(
    headers_max: usize,
    parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> Result<T, ParseError>,
) -> Result<T, ParseError> {
    if headers_max <= STACK_HEADERS {
        let mut slots = [const { MaybeUninit::uninit() }; STACK_HEADERS];
        parse(&mut slots[..headers_max])
    } else {
        let mut slots: Vec<_> = (0..headers_max).map(|_| MaybeUninit::uninit()).collect();
        parse(&mut slots)
    }
}

/// Which rule a refusal of `httparse` stands for.
pub(super) fn refusal(error: httparse::Error, window: &[u8], response: bool) -> ParseError {
    match error {
        httparse::Error::TooManyHeaders => ParseError::TooManyHeaders,
        httparse::Error::HeaderName => bad_line(window),
        httparse::Error::HeaderValue => ParseError::HeaderValue,
        httparse::Error::NewLine => ParseError::LineEnding,
        httparse::Error::Status => ParseError::Status,
        httparse::Error::Version => bad_version(window, response),
        httparse::Error::Token => ParseError::StartLine,
    }
}

/// Another version of HTTP is answered as such, anything else is garbage.
fn bad_version(window: &[u8], response: bool) -> ParseError {
    let version = match response {
        true => Some(window),
        false => window.splitn(3, |&byte| byte == b' ').nth(2),
    };
    match version.is_some_and(|text| text.starts_with(b"HTTP/")) {
        true => ParseError::Version,
        false => ParseError::StartLine,
    }
}

/// Whether the first line with a bad name was meant to continue the one before.
fn bad_line(window: &[u8]) -> ParseError {
    for line in window.split(|&byte| byte == b'\n').skip(1) {
        if let [b' ' | b'\t', ..] = line {
            return ParseError::ObsFold;
        }
        let Some(colon) = memchr::memchr(b':', line) else { break };
        if colon == 0 || !line[..colon].iter().all(|&byte| is_token_byte(byte)) {
            break;
        }
    }
    ParseError::HeaderName
}
