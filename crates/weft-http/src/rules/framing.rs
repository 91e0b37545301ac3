//! How the body of a forwarded message is framed on the other side (RFC 9112 §6).

use crate::h1::has_token;
use crate::headers::{HeaderList, Known};
use crate::message::{BodyLength, Method, Version};

/// How to send a response body, and whether its connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// What to write the head and encode the body with.
    pub length: BodyLength,
    /// The client can only see the end of the body from the end of the connection.
    pub close: bool,
}

/// Framing of a request towards a peer of version `to`. A body of unknown length is chunked on
/// HTTP/1; methods that normally have content say so when it is empty (RFC 9110 §8.6), unless the
/// client spoke HTTP/1 itself and chose not to.
pub fn request_framing(
    method: &Method,
    length: BodyLength,
    from: Version,
    to: Version,
) -> BodyLength {
    match (length, to) {
        (BodyLength::None, Version::H10 | Version::H11) if from == Version::H2 => match method {
            Method::Post | Method::Put | Method::Patch => BodyLength::Exact(0),
            _ => BodyLength::None,
        },
        (BodyLength::None | BodyLength::Exact(_), _) => length,
        (_, Version::H2) => BodyLength::Streamed,
        (_, Version::H10 | Version::H11) => BodyLength::Chunked,
    }
}

/// Framing of a response with `status` to a request with `method` from a client of version `to`;
/// `length` is what the upstream or the reply made here has.
pub fn response_framing(method: &Method, status: u16, length: BodyLength, to: Version) -> Framing {
    let bodiless = matches!(status, 100..=199 | 204 | 304)
        || *method == Method::Head
        || (*method == Method::Connect && (200..300).contains(&status));
    let open = |length| Framing { length, close: false };
    if bodiless {
        return open(BodyLength::None);
    }
    match (length, to) {
        (BodyLength::None, _) => open(BodyLength::Exact(0)),
        (BodyLength::Exact(_), _) => open(length),
        (_, Version::H2) => open(BodyLength::Streamed),
        (_, Version::H11) => open(BodyLength::Chunked),
        // Chunked is never sent to HTTP/1.0 (RFC 9112 §7.1).
        (_, Version::H10) => Framing { length: BodyLength::UntilClose, close: true },
    }
}

/// Says in the head whether an HTTP/1 connection stays open: nothing where the version's default
/// says it. Call after stripping; keeps an upgrade's `Connection`.
pub fn set_connection(headers: &mut HeaderList, version: Version, keep_alive: bool) {
    match (version, keep_alive) {
        (Version::H11, false) => headers.set("Connection", "close"),
        (Version::H10, true) => headers.set("Connection", "keep-alive"),
        (Version::H11, true) | (Version::H10, false) | (Version::H2, _) => {}
    }
}

/// Whether the body carries a transfer coding besides `chunked`. It is passed on undecoded, so it
/// can only go where a `Transfer-Encoding` line can: chunked HTTP/1.1.
pub fn is_transfer_coded(headers: &HeaderList) -> bool {
    // Nearly every message answers here, without a walk over its lines.
    if headers.get_known(Known::TransferEncoding).is_none() {
        return false;
    }
    headers.get_all(Known::TransferEncoding.name()).any(|value| {
        [&b"gzip"[..], b"x-gzip", b"compress", b"x-compress", b"deflate"]
            .iter()
            .any(|coding| has_token(value, coding))
    })
}
