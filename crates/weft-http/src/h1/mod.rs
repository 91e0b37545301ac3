//! The HTTP/1 codec, sans-io: heads out of and into buffers, bodies as frames.
//!
//! Strict on framing (RFC 9112 §§2-7, 11): what two implementations could read differently is
//! refused, and what is sent is always framed anew from [`BodyLength`](crate::BodyLength), never
//! from received lines. Must not know which fields a proxy forwards: that is `rules`.

mod decode;
mod encode;
mod error;
mod framing;
mod lines;
mod outbuf;
mod request;
mod response;
mod scan;
mod target;
mod write;

pub(crate) use framing::has_token;
pub(crate) use target::is_authority;

pub use decode::{BodyDecoder, Decoded, DecodedSlice};
pub use encode::{BodyEncoder, EncodeError};
pub use error::ParseError;
pub use outbuf::OutBuf;
pub use request::{ParsedRequest, parse_request};
pub use response::{ParsedResponse, parse_response};
pub use write::{write_request, write_response};

/// Bounds on what a peer may send, and the named tolerances. `Default` is Envoy's where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// First line and fields together, in bytes (Envoy `max_request_headers_kb`: 60 KiB).
    pub head_bytes_max: usize,
    /// The request line alone, in bytes; beyond it the answer is 414.
    pub request_line_bytes_max: usize,
    /// Lines in a head (Envoy `max_headers_count`: 100).
    pub headers_max: usize,
    /// One chunk-size line with its extensions, in bytes.
    pub chunk_line_bytes_max: usize,
    /// Chunk extensions of one body together, in bytes. They are dropped, so a peer could
    /// otherwise make us read for ever without content.
    pub chunk_extension_bytes_max: u64,
    /// The trailer section, in bytes.
    pub trailer_bytes_max: usize,
    /// Lines in a trailer section.
    pub trailers_max: usize,
    /// Responses only: read `Transfer-Encoding: chunked` sent twice as sent once.
    pub tolerate_repeated_chunked: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

impl Limits {
    /// The defaults, as a constant.
    pub const DEFAULT: Limits = Limits {
        head_bytes_max: 60 * 1024,
        request_line_bytes_max: 60 * 1024,
        headers_max: 100,
        chunk_line_bytes_max: 4 * 1024,
        chunk_extension_bytes_max: 16 * 1024,
        trailer_bytes_max: 16 * 1024,
        trailers_max: 100,
        tolerate_repeated_chunked: false,
    };
}

/// A head, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The head was taken off the front of the buffer.
    Complete(T),
    /// Read more and call again; nothing of the head was taken.
    Partial,
}

/// What a head says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Whether the peer lets the connection carry another message after this one.
    pub keep_alive: bool,
    /// The protocol asked for (request) or switched to (101 response).
    pub upgrade: Option<Upgrade>,
    /// `Expect: 100-continue` on an HTTP/1.1 request.
    pub expect_continue: bool,
}

/// The protocols of `Upgrade` that are let through. `h2c` is not among them: passing it on would
/// open a tunnel around every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    WebSocket,
    /// Anything else named in the field.
    Other,
}

#[cfg(test)]
mod tests;
