//! Heads of replies made here, in the client's dialect: plain HTTP or gRPC (trailers-only).

use std::io::Write;

use bytes::Bytes;

use crate::headers::{HeaderList, Known};
use crate::message::{ResponseHead, Version};

/// Whether a request or response is gRPC (not gRPC-Web).
pub fn is_grpc(headers: &HeaderList) -> bool {
    let kind = headers.get_known(Known::ContentType).unwrap_or_default();
    match kind.split_at_checked(16) {
        Some((start, rest)) => {
            start.eq_ignore_ascii_case(b"application/grpc")
                && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        }
        None => false,
    }
}

/// A plain-text reply; the body is the caller's to send with `Exact(body_len)`.
pub fn local_reply(status: u16, body_len: usize) -> ResponseHead {
    let mut head = ResponseHead::new(status);
    let mut digits = itoa::Buffer::new();
    head.headers.append("content-length", digits.format(body_len));
    if body_len > 0 {
        head.headers.append("content-type", "text/plain");
    }
    head
}

/// A gRPC reply that is all in its head: status 200, `grpc-status` for the HTTP `status` that a
/// plain client would get, `message` percent-encoded. It has no body.
pub fn grpc_reply(status: u16, message: &str, version: Version) -> ResponseHead {
    let mut head = ResponseHead::new(200);
    head.version = version;
    head.headers.append("content-type", "application/grpc");
    head.headers.append("grpc-status", itoa::Buffer::new().format(grpc_status_of(status)));
    if !message.is_empty() {
        head.headers.append("grpc-message", percent_encode(message));
    }
    head
}

/// The gRPC status that stands for an HTTP status without one (Envoy's and gRPC's mapping).
pub fn grpc_status_of(status: u16) -> u8 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The gRPC message encoding: all but printable ASCII, and the percent sign.
fn percent_encode(message: &str) -> Bytes {
    let mut encoded = Vec::with_capacity(message.len());
    for &byte in message.as_bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => {
                write!(encoded, "%{byte:02X}").expect("writing to memory cannot fail");
            }
            _ => encoded.push(byte),
        }
    }
    encoded.into()
}
