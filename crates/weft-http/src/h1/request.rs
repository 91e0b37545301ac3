//! Request heads out of the read buffer. `httparse` finds the lines; the rules of RFC 9112 that it
//! leaves open are added here and in `lines`.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use super::error::ParseError;
use super::framing::{Coding, FramingLines};
use super::lines::{Lines, head_max, range_in, refusal, version_of, with_header_slots};
use super::scan::{self, RequestScan};
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
    let read = match read_ordinary(window, limits) {
        Some(read) => read,
        None => match read_thoroughly(window, limits)? {
            Some(read) => read,
            None => return check_partial(window, limits).map(|()| Parsed::Partial),
        },
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

/// A head with nothing unusual about it and nothing wrong.
fn read_ordinary(window: &[u8], limits: &Limits) -> Option<RequestRead> {
    let RequestScan { head_len, method, target, version, lines } = scan::request(window, limits)?;
    let form = match window[target.start] {
        b'/' if method != Method::Connect => TargetForm::Origin,
        _ => parse_target(&method, &window[target.clone()]).ok()?,
    };
    check_host(window, &lines, version).ok()?;
    let body = request_body(&lines.framing, version).ok()?;
    let connection = lines.connection(version, Some(&method)).ok()?;
    Some(RequestRead {
        head_len,
        method,
        // Of a registered one nobody asks.
        method_range: 0..0,
        version,
        target_range: target,
        form,
        lines,
        body,
        connection,
    })
}

fn read_thoroughly(window: &[u8], limits: &Limits) -> Result<Option<RequestRead>, ParseError> {
    with_header_slots(limits.headers_max, |slots| read_request(window, limits, slots))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h1::tests::odd_head;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn both_readers_read_the_same(head in odd_head(REQUEST)) {
            let limits = Limits { headers_max: 6, head_bytes_max: 300, ..Limits::DEFAULT };
            if let Some(read) = read_ordinary(&head, &limits) {
                let thorough = read_thoroughly(&head, &limits).unwrap().unwrap();
                let block = Bytes::from(head.clone());
                let entries = format!("{:?}", thorough.lines.entries);
                prop_assert_eq!(format!("{:?}", read.lines.entries), entries);
                prop_assert_eq!(format!("{:?}", read.lines.first), format!("{:?}", thorough.lines.first));
                prop_assert_eq!(read.head_len, thorough.head_len);
                prop_assert_eq!(read.into_message(block.clone()), thorough.into_message(block));
            }
        }
    }

    const REQUEST: &str = "POST /a?b=c HTTP/1.1\r\nHOST: a.b:80\r\nX-Request-Id:\r\n\
        content-Length: 4\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nbody";

    #[test]
    fn most_heads_are_ordinary() {
        assert!(read_ordinary(REQUEST.as_bytes(), &Limits::DEFAULT).is_some());
    }
}
