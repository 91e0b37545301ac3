//! Heads of replies made here, in the client's dialect: plain HTTP or gRPC (trailers-only).

use std::io::Write;

use bytes::Bytes;

use crate::headers::{HeaderList, Known};
use crate::message::ResponseHead;

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

/// Turns a plain reply with `message` for its body into the gRPC reply of the same meaning, which is
/// all in its head: status 200, `grpc-status` (the one that stands for the HTTP status, unless the
/// head has one already), and `message` percent-encoded.
pub fn into_grpc_reply(head: &mut ResponseHead, message: &[u8]) {
    let headers = &mut head.headers;
    headers.remove("content-length");
    headers.set("content-type", "application/grpc");
    if !headers.contains("grpc-status") {
        let status = grpc_status_of(head.status);
        headers.append("grpc-status", itoa::Buffer::new().format(status));
    }
    if !message.is_empty() {
        headers.append("grpc-message", grpc_message(message));
    }
    head.status = 200;
}

/// The gRPC status that stands for an HTTP status without one (Envoy's and gRPC's mapping).
pub fn grpc_status_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The gRPC message encoding: all but printable ASCII, and the percent sign. The tilde as well, as
/// Envoy does.
pub fn grpc_message(message: &[u8]) -> Bytes {
    let mut encoded = Vec::with_capacity(message.len());
    for &byte in message {
        match byte {
            b'%' | 0..=0x1f | 0x7e.. => {
                write!(encoded, "%{byte:02X}").expect("writing to memory cannot fail");
            }
            _ => encoded.push(byte),
        }
    }
    encoded.into()
}
