//! Heads out of the read buffer. `httparse` finds the lines; this adds what it lets pass (bare LF,
//! framing, host and target rules) and notes known names while walking the lines once.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use super::error::ParseError;
use super::framing::{Coding, FramingLines, has_token};
use super::target::{AbsolutePath, TargetForm, is_authority, parse_target};
use super::{Connection, Limits, Parsed, Upgrade};
use crate::headers::{
    Entry, FirstIndex, HeaderList, Known, Place, is_token_byte, known_byte, offset,
};
use crate::message::{BodyLength, Method, RequestHead, ResponseHead, Scheme, Target, Version};

/// What a request head says.
pub type ParsedRequest = (RequestHead, BodyLength, Connection);
/// What a response head says.
pub type ParsedResponse = (ResponseHead, BodyLength, Connection);

/// Lines parsed on the stack; larger limits use the heap.
const STACK_HEADERS: usize = 128;
/// Room for lines that the request path adds.
const SPARE_ENTRIES: usize = 8;
/// Empty lines skipped before a request line (RFC 9112 §2.2), in bytes.
const LEADING_EMPTY_MAX: usize = 16;
/// Offsets are `u32`; nobody means a head of this size.
const HEAD_BYTES_CAP: usize = 16 << 20;

/// Takes one request head off the front of `buf`; what follows it stays.
///
/// # Errors
/// [`ParseError`]; its status is what to answer before closing.
pub fn parse_request(
    buf: &mut BytesMut,
    limits: &Limits,
) -> Result<Parsed<ParsedRequest>, ParseError> {
    let skip = empty_lines(buf)?;
    let window = request_window(&buf[skip..], limits);
    let read = with_header_slots(limits.headers_max, |slots| read_request(window, limits, slots))?;
    let Some(read) = read else {
        return check_partial(window, limits).map(|()| Parsed::Partial);
    };
    buf.advance(skip);
    let block = buf.split_to(read.head_len).freeze();
    Ok(Parsed::Complete(read.into_message(block)))
}

/// Takes one response head off the front of `buf`; what follows it stays. `method` is that of the
/// request it answers, which decides whether there is a body.
///
/// # Errors
/// [`ParseError`]; the upstream connection cannot be used any further.
pub fn parse_response(
    buf: &mut BytesMut,
    limits: &Limits,
    method: &Method,
) -> Result<Parsed<ParsedResponse>, ParseError> {
    let window = &buf[..buf.len().min(head_max(limits) + 1)];
    let read = with_header_slots(limits.headers_max, |slots| {
        read_response(window, limits, method, slots)
    })?;
    let Some(read) = read else {
        return match window.len() > head_max(limits) {
            true => Err(ParseError::HeadTooLarge),
            false => Ok(Parsed::Partial),
        };
    };
    let block = buf.split_to(read.head_len).freeze();
    Ok(Parsed::Complete(read.into_message(block)))
}

fn head_max(limits: &Limits) -> usize {
    limits.head_bytes_max.min(HEAD_BYTES_CAP)
}

/// The part of the buffer that a head within the limits can be in, and one byte more. Cutting here
/// makes the outcome independent of how the bytes arrived.
fn request_window<'b>(buf: &'b [u8], limits: &Limits) -> &'b [u8] {
    let window = &buf[..buf.len().min(head_max(limits) + 1)];
    let line_max = limits.request_line_bytes_max;
    match window.len() > line_max && memchr::memchr(b'\n', &window[..line_max]).is_none() {
        true => &window[..=line_max],
        false => window,
    }
}

/// An incomplete head that is already too long never becomes a good one.
fn check_partial(window: &[u8], limits: &Limits) -> Result<(), ParseError> {
    let line_max = limits.request_line_bytes_max;
    if window.len() > line_max && memchr::memchr(b'\n', &window[..line_max]).is_none() {
        return Err(ParseError::RequestLineTooLong);
    }
    match window.len() > head_max(limits) {
        true => Err(ParseError::HeadTooLarge),
        false => Ok(()),
    }
}

/// Length of the empty lines before a request line, of which RFC 9112 §2.2 wants some ignored.
fn empty_lines(buf: &[u8]) -> Result<usize, ParseError> {
    let mut skip = 0;
    while buf[skip..].starts_with(b"\r\n") {
        skip += 2;
        if skip > LEADING_EMPTY_MAX {
            return Err(ParseError::LineEnding);
        }
    }
    match buf.get(skip) {
        Some(b'\n') => Err(ParseError::LineEnding),
        _ => Ok(skip),
    }
}

fn with_header_slots<'b, T>(
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

/// A request head as ranges of the window, before the block is split off.
struct RequestRead {
    head_len: usize,
    method: Method,
    method_range: Range<usize>,
    version: Version,
    target_range: Range<usize>,
    form: TargetForm,
    lines: Lines,
    body: BodyLength,
    connection: Connection,
}

impl RequestRead {
    fn into_message(self, block: Bytes) -> ParsedRequest {
        let start = self.target_range.start;
        let host = self.lines.host.clone().map(|range| block.slice(range));
        let (scheme, authority, target) = match self.form {
            TargetForm::Origin => {
                (Scheme::Http, host, Target::Path(block.slice(self.target_range.clone())))
            }
            TargetForm::Asterisk => (Scheme::Http, host, Target::Asterisk),
            // RFC 9112 §3.2.2: the target's authority replaces a Host that says otherwise.
            TargetForm::Authority => {
                (Scheme::Http, Some(block.slice(self.target_range.clone())), Target::Authority)
            }
            TargetForm::Absolute { scheme, authority, path } => {
                let end = self.target_range.end;
                let target = match path {
                    AbsolutePath::From(at) => Target::Path(block.slice(start + at..end)),
                    AbsolutePath::RootWithQuery(at) => {
                        Target::Path([b"/", &block[start + at..end]].concat().into())
                    }
                    AbsolutePath::Empty if self.method == Method::Options => Target::Asterisk,
                    AbsolutePath::Empty => Target::Path(Bytes::from_static(b"/")),
                };
                let authority = start + authority.start..start + authority.end;
                (scheme, Some(block.slice(authority)), target)
            }
        };
        let method = match self.method {
            Method::Other(_) => Method::Other(block.slice(self.method_range)),
            common => common,
        };
        let headers = HeaderList::from_block(block, self.lines.entries, self.lines.first);
        let head =
            RequestHead { method, scheme, authority, target, version: self.version, headers };
        (head, self.body, self.connection)
    }
}

fn read_request<'b>(
    window: &'b [u8],
    limits: &Limits,
    slots: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<RequestRead>, ParseError> {
    let mut request = httparse::Request::new(&mut []);
    let status = request.parse_with_uninit_headers(window, slots);
    let head_len = match status.map_err(|error| refusal(error, window, false))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(head_len) => head_len,
    };
    if head_len > head_max(limits) {
        return Err(ParseError::HeadTooLarge);
    }
    let (method, target) =
        (request.method.unwrap_or_default(), request.path.unwrap_or_default().as_bytes());
    let version = version_of(request.version);
    let method_name = method.as_bytes();
    let method = Method::common(method_name).unwrap_or(Method::Other(Bytes::new()));
    let form = parse_target(&method, target)?;
    let lines = Lines::read(window, head_len, request.headers, false)?;
    check_host(window, &lines, version)?;
    let body = request_body(&lines.framing, version)?;
    let connection = lines.connection(version, Some(&method))?;
    Ok(Some(RequestRead {
        head_len,
        method,
        version,
        method_range: range_in(window, method_name),
        target_range: range_in(window, target),
        form,
        lines,
        body,
        connection,
    }))
}

/// RFC 9112 §3.2: exactly one `Host` from HTTP/1.1 on.
fn check_host(window: &[u8], lines: &Lines, version: Version) -> Result<(), ParseError> {
    match &lines.host {
        None if version == Version::H11 => Err(ParseError::HostMissing),
        None => Ok(()),
        Some(range) => match is_authority(&window[range.clone()]) {
            true => Ok(()),
            false => Err(ParseError::HostInvalid),
        },
    }
}

/// RFC 9112 §6.3, where it says a server may refuse, this one does.
fn request_body(framing: &FramingLines, version: Version) -> Result<BodyLength, ParseError> {
    match (framing.coding, framing.length) {
        (Coding::Absent, None) => Ok(BodyLength::None),
        (Coding::Absent, Some(length)) => Ok(BodyLength::Exact(length)),
        (Coding::Open | Coding::Chunked, Some(_)) => Err(ParseError::LengthAndCoding),
        (Coding::Open | Coding::Chunked, None) if version == Version::H10 => {
            Err(ParseError::CodingInHttp10)
        }
        (Coding::Open, None) => Err(ParseError::TransferEncoding),
        (Coding::Chunked, None) if framing.repeated_chunked => Err(ParseError::RepeatedChunked),
        (Coding::Chunked, None) => Ok(BodyLength::Chunked),
    }
}

/// A response head as ranges of the window, before the block is split off.
struct ResponseRead {
    head_len: usize,
    status: u16,
    reason_range: Range<usize>,
    version: Version,
    lines: Lines,
    body: BodyLength,
    connection: Connection,
}

impl ResponseRead {
    fn into_message(self, block: Bytes) -> ParsedResponse {
        let reason = Some(block.slice(self.reason_range));
        let headers = HeaderList::from_block(block, self.lines.entries, self.lines.first);
        let head = ResponseHead { status: self.status, reason, version: self.version, headers };
        (head, self.body, self.connection)
    }
}

fn read_response<'b>(
    window: &'b [u8],
    limits: &Limits,
    method: &Method,
    slots: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<ResponseRead>, ParseError> {
    // httparse would skip empty lines here; a response has no business starting with them.
    if let [b'\r' | b'\n', ..] = window {
        return Err(ParseError::StartLine);
    }
    let mut response = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        window,
        slots,
    );
    let head_len = match status.map_err(|error| refusal(error, window, true))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(head_len) => head_len,
    };
    if head_len > head_max(limits) {
        return Err(ParseError::HeadTooLarge);
    }
    let version = version_of(response.version);
    let status = response.code.filter(|&code| code >= 100).ok_or(ParseError::Status)?;
    let reason_range = reason_range(window)?;
    let lines = Lines::read(window, head_len, response.headers, true)?;
    let body = response_body(&lines.framing, version, status, method, limits)?;
    let mut connection = lines.connection(version, None)?;
    if body == BodyLength::UntilClose {
        connection.keep_alive = false;
    }
    if status != 101 {
        connection.upgrade = None;
    }
    Ok(Some(ResponseRead { head_len, status, reason_range, version, lines, body, connection }))
}

/// The reason phrase: `httparse` hides one with obs-text, so it is found in the line itself.
/// `HTTP/1.1 200` is 12 bytes; then a space and the phrase, or the end of the line.
fn reason_range(window: &[u8]) -> Result<Range<usize>, ParseError> {
    let end = memchr::memchr(b'\n', window).ok_or(ParseError::StartLine)?;
    match window[..end].strip_suffix(b"\r") {
        Some(line) => Ok(line.len().min(13)..line.len()),
        None => Err(ParseError::LineEnding),
    }
}

/// RFC 9112 §6.3 for responses.
fn response_body(
    framing: &FramingLines,
    version: Version,
    status: u16,
    method: &Method,
    limits: &Limits,
) -> Result<BodyLength, ParseError> {
    let bodiless = matches!(
        (method, status),
        (Method::Head, _) | (_, 100..=199 | 204 | 304) | (Method::Connect, 200..=299)
    );
    if framing.coding != Coding::Absent && framing.length.is_some() {
        return Err(ParseError::LengthAndCoding);
    }
    if framing.repeated_chunked && !limits.tolerate_repeated_chunked {
        return Err(ParseError::RepeatedChunked);
    }
    if bodiless {
        return Ok(BodyLength::None);
    }
    match (framing.coding, framing.length) {
        (Coding::Absent, Some(length)) => Ok(BodyLength::Exact(length)),
        (Coding::Absent, None) => Ok(BodyLength::UntilClose),
        (Coding::Open | Coding::Chunked, _) if version == Version::H10 => {
            Err(ParseError::CodingInHttp10)
        }
        (Coding::Chunked, _) => Ok(BodyLength::Chunked),
        // Legal until the close, but then the coding could not be re-framed for anyone.
        (Coding::Open, _) => Err(ParseError::TransferEncoding),
    }
}

/// The lines of a head, walked once.
struct Lines {
    entries: Vec<Entry>,
    first: FirstIndex,
    framing: FramingLines,
    host: Option<Range<usize>>,
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
    fn read(
        window: &[u8],
        head_len: usize,
        headers: &[httparse::Header<'_>],
        response: bool,
    ) -> Result<Lines, ParseError> {
        let mut lines = Lines {
            entries: read_entries(&window[..head_len], headers)?,
            first: FirstIndex::default(),
            framing: FramingLines::default(),
            host: None,
            close: false,
            keep_alive: false,
            upgrade_named: false,
            upgrade: None,
            h2c: false,
            expect: Expectation::Absent,
        };
        for (index, header) in headers.iter().enumerate() {
            let known = lines.entries[index].known;
            if let Some(&known_name) = Known::ALL.get(usize::from(known)) {
                lines.first.note(known, index);
                lines.note(window, known_name, header.value, response)?;
            }
        }
        Ok(lines)
    }

    /// What a known line says about framing and connection.
    fn note(
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
                self.close |= has_token(value, b"close");
                self.keep_alive |= has_token(value, b"keep-alive");
                self.upgrade_named |= has_token(value, b"upgrade");
            }
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

    fn connection(
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
        });
        start = end;
    }
    Ok(entries)
}

/// Where `part`, a slice of `whole`, is in it.
fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    start..start + part.len()
}

fn version_of(minor: Option<u8>) -> Version {
    match minor {
        Some(0) => Version::H10,
        _ => Version::H11,
    }
}

/// Which rule a refusal of `httparse` stands for.
fn refusal(error: httparse::Error, window: &[u8], response: bool) -> ParseError {
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
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        match name {
            [b' ' | b'\t', ..] => return ParseError::ObsFold,
            name if name.iter().any(|&byte| !is_token_byte(byte)) => break,
            _ => {}
        }
    }
    ParseError::HeaderName
}
