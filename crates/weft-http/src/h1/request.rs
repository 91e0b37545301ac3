//! Request heads out of the read buffer. `httparse` finds the lines; the rules of RFC 9112 that it
//! leaves open are added here and in `lines`.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use super::error::ParseError;
use super::framing::{Coding, FramingLines};
use super::lines::{Lines, head_max, range_in, refusal, version_of, with_header_slots};
use super::target::{AbsolutePath, TargetForm, is_authority, parse_target};
use super::{Connection, Limits, Parsed};
use crate::headers::HeaderList;
use crate::message::{BodyLength, Method, RequestHead, Scheme, Target, Version};

/// What a request head says.
pub type ParsedRequest = (RequestHead, BodyLength, Connection);

/// Empty lines skipped before a request line (RFC 9112 §2.2), in bytes.
const LEADING_EMPTY_MAX: usize = 16;
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
    let method = match Method::common(method_name) {
        Some(common) => common,
        None if Method::is_sound(method_name) => Method::Other(Bytes::new()),
        None => return Err(ParseError::Method),
    };
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
        // RFC 9112 §6.1: a coding that is not understood is a 501. We could pass compression on to
        // HTTP/1.1, but servers differ on it, and one that ignores it reads another body.
        (Coding::Chunked, None) if framing.compressed => Err(ParseError::UnknownCoding),
        (Coding::Chunked, None) if framing.repeated_chunked => Err(ParseError::RepeatedChunked),
        (Coding::Chunked, None) => Ok(BodyLength::Chunked),
    }
}
