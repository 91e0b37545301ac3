//! Response heads out of the read buffer, with body lengths as RFC 9112 §6.3 gives them.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::error::ParseError;
use super::framing::{Coding, FramingLines};
use super::lines::{Lines, head_max, refusal, version_of, with_header_slots};
use super::scan::{self, ResponseScan};
use super::{Connection, Limits, Parsed};
use crate::headers::HeaderList;
use crate::message::{BodyLength, Method, ResponseHead, Version};

/// What a response head says.
pub type ParsedResponse = (ResponseHead, BodyLength, Connection);

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
    let read = match read_ordinary(window, limits, method) {
        Some(read) => read,
        None => match read_thoroughly(window, limits, method)? {
            Some(read) => read,
            None if window.len() > head_max(limits) => return Err(ParseError::HeadTooLarge),
            None => return Ok(Parsed::Partial),
        },
    };
    let block = buf.split_to(read.head_len).freeze();
    Ok(Parsed::Complete(read.into_message(block)))
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

/// A head with nothing unusual about it and nothing wrong.
fn read_ordinary(window: &[u8], limits: &Limits, method: &Method) -> Option<ResponseRead> {
    let ResponseScan { head_len, status, reason, version, lines } = scan::response(window, limits)?;
    let body = response_body(&lines.framing, version, status, method, limits).ok()?;
    let connection = lines.connection(version, None).ok()?;
    let connection = of_response(connection, body, status);
    Some(ResponseRead { head_len, status, reason_range: reason, version, lines, body, connection })
}

fn read_thoroughly(
    window: &[u8],
    limits: &Limits,
    method: &Method,
) -> Result<Option<ResponseRead>, ParseError> {
    with_header_slots(limits.headers_max, |slots| read_response(window, limits, method, slots))
}

fn of_response(connection: Connection, body: BodyLength, status: u16) -> Connection {
    Connection {
        keep_alive: connection.keep_alive && body != BodyLength::UntilClose,
        upgrade: connection.upgrade.filter(|_| status == 101),
        ..connection
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
    let connection = of_response(lines.connection(version, None)?, body, status);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h1::tests::odd_head;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn both_readers_read_the_same(head in odd_head(RESPONSE)) {
            let limits = Limits { headers_max: 6, head_bytes_max: 300, ..Limits::DEFAULT };
            for method in [Method::Get, Method::Head] {
                let Some(read) = read_ordinary(&head, &limits, &method) else { continue };
                let thorough = read_thoroughly(&head, &limits, &method).unwrap().unwrap();
                let block = Bytes::from(head.clone());
                let entries = format!("{:?}", thorough.lines.entries);
                prop_assert_eq!(format!("{:?}", read.lines.entries), entries);
                prop_assert_eq!(format!("{:?}", read.lines.first), format!("{:?}", thorough.lines.first));
                prop_assert_eq!(read.head_len, thorough.head_len);
                prop_assert_eq!(read.into_message(block.clone()), thorough.into_message(block));
            }
        }
    }

    const RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: a b\r\ncontent-length: 12\r\nKeep-Alive: \r\n\
        Connection: close\r\nX-a: \u{e9}  \r\n\r\nbody";

    #[test]
    fn most_heads_are_ordinary() {
        assert!(read_ordinary(RESPONSE.as_bytes(), &Limits::DEFAULT, &Method::Get).is_some());
    }
}
