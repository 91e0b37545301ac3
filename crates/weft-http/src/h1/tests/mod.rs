mod bodies;
mod requests;
mod responses;
mod writing;

use bytes::BytesMut;

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
