mod bodies;
mod requests;
mod responses;
mod writing;

use bytes::BytesMut;
use proptest::prelude::*;

use super::{Limits, ParseError, Parsed, ParsedRequest, ParsedResponse};
use crate::message::Method;

fn request_with(text: impl AsRef<[u8]>, limits: &Limits) -> Result<ParsedRequest, ParseError> {
    let mut buf = BytesMut::from(text.as_ref());
    match super::parse_request(&mut buf, limits)? {
        Parsed::Complete(parsed) => Ok(parsed),
        Parsed::Partial => panic!("incomplete: {:?}", text.as_ref().escape_ascii().to_string()),
    }
}

fn request(text: impl AsRef<[u8]>) -> Result<ParsedRequest, ParseError> {
    request_with(text, &Limits::DEFAULT)
}

fn response_with(
    text: impl AsRef<[u8]>,
    method: &Method,
    limits: &Limits,
) -> Result<ParsedResponse, ParseError> {
    let mut buf = BytesMut::from(text.as_ref());
    match super::parse_response(&mut buf, limits, method)? {
        Parsed::Complete(parsed) => Ok(parsed),
        Parsed::Partial => panic!("incomplete: {:?}", text.as_ref().escape_ascii().to_string()),
    }
}

fn response(text: impl AsRef<[u8]>) -> Result<ParsedResponse, ParseError> {
    response_with(text, &Method::Get, &Limits::DEFAULT)
}

/// Heads like `good` with a few bytes put in, left out or changed: mostly still heads, and not always
/// good ones.
pub(super) fn odd_head(good: &'static str) -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&[u8]; 24] = [
        b"",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"\r\n",
        b":",
        b"a",
        b"-",
        b"_",
        b"#",
        b"%",
        b"/",
        b"*",
        b"\x7f",
        b"\0",
        b"\xff",
        b"0",
        b"9",
        b", ",
        b"X: y\r\n",
        b"Host: c\r\n",
        b"content-length: 12\r\n",
        b"transfer-encoding: chunked\r\n",
    ];
    let edit = (0..good.len(), 0..3_usize, 0..PIECES.len());
    proptest::collection::vec(edit, 0..4).prop_map(|edits| {
        let mut head = good.as_bytes().to_vec();
        for (at, taken, piece) in edits {
            let at = at.min(head.len());
            let end = (at + taken).min(head.len());
            // Lines are only worth putting in between lines.
            let at = match PIECES[piece].len() > 3 {
                true => head[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1),
                false => at,
            };
            let end = if PIECES[piece].len() > 3 { at } else { end };
            head.splice(at..end, PIECES[piece].iter().copied());
        }
        head
    })
}
