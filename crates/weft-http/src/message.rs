//! The version-neutral message: what the request path, routing and filters work on.
//!
//! Owns heads, frames and body lengths. Must not know how a version puts them on the wire.

use bytes::Bytes;

use crate::headers::HeaderList;

/// The head of a request, from either version.
///
/// `authority` is the truth about the host: writing an HTTP/1 head gives the `Host` line this value
/// (keeping its place and spelling when there was one), and HTTP/2 sends it as `:authority`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The request method, spelled as received.
    pub method: Method,
    /// `http` unless the target or the connection says otherwise; the connection's owner sets it.
    pub scheme: Scheme,
    /// Host with optional port; `None` only for an HTTP/1.0 request without `Host`.
    pub authority: Option<Bytes>,
    /// What is asked for.
    pub target: Target,
    /// The version the message arrived with, or is to be written in.
    pub version: Version,
    /// The fields in order.
    pub headers: HeaderList,
}

impl RequestHead {
    /// Path and query as sent (`*` and the empty text for the other two forms).
    pub fn path_and_query(&self) -> &[u8] {
        match &self.target {
            Target::Path(path) => path,
            Target::Asterisk => b"*",
            Target::Authority => b"",
        }
    }

    /// The path without its query.
    pub fn path(&self) -> &[u8] {
        let whole = self.path_and_query();
        &whole[..memchr::memchr(b'?', whole).unwrap_or(whole.len())]
    }

    /// The query without its question mark, if there is one.
    pub fn query(&self) -> Option<&[u8]> {
        let whole = self.path_and_query();
        memchr::memchr(b'?', whole).map(|at| &whole[at + 1..])
    }

    /// The authority, or the empty text.
    pub fn authority(&self) -> &[u8] {
        self.authority.as_deref().unwrap_or_default()
    }
}

/// The head of a response, from either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 999.
    pub status: u16,
    /// The HTTP/1 reason phrase; `None` lets the writer use the registered one.
    pub reason: Option<Bytes>,
    /// The version the message arrived with, or is to be written in.
    pub version: Version,
    /// The fields in order.
    pub headers: HeaderList,
}

impl ResponseHead {
    /// An HTTP/1.1 head with no fields.
    pub fn new(status: u16) -> Self {
        ResponseHead { status, reason: None, version: Version::H11, headers: HeaderList::new() }
    }

    /// 1xx: more heads follow for the same request (101 excepted).
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// What a request asks for (RFC 9112 §3.2). Absolute form is split into scheme, authority and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Path with optional query; starts with `/`.
    Path(Bytes),
    /// `OPTIONS *`.
    Asterisk,
    /// `CONNECT`: the authority is in the head.
    Authority,
}

/// A request method. Comparison is case-sensitive (RFC 9110 §9.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    /// Any other token, as sent.
    Other(Bytes),
}

impl Method {
    /// The registered method with this exact spelling.
    pub fn common(name: &[u8]) -> Option<Method> {
        Some(match name {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"CONNECT" => Method::Connect,
            b"OPTIONS" => Method::Options,
            b"TRACE" => Method::Trace,
            b"PATCH" => Method::Patch,
            _ => return None,
        })
    }

    /// Whether a method may be passed on: capital letters, `-` and `_`, at most 64 of them. RFC 9110
    /// §9.1 allows any token, but no method in use is another, and servers that find one refuse it
    /// or take it for the rest of an earlier message.
    pub fn is_sound(name: &[u8]) -> bool {
        const BYTES_MAX: usize = 64;
        !name.is_empty()
            && name.len() <= BYTES_MAX
            && name.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
    }

    /// The method with this spelling. The caller vouches for it being a token.
    pub fn from_bytes(name: &[u8]) -> Method {
        Method::common(name).unwrap_or_else(|| Method::Other(Bytes::copy_from_slice(name)))
    }

    /// The spelling on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Method::Get => b"GET",
            Method::Head => b"HEAD",
            Method::Post => b"POST",
            Method::Put => b"PUT",
            Method::Delete => b"DELETE",
            Method::Connect => b"CONNECT",
            Method::Options => b"OPTIONS",
            Method::Trace => b"TRACE",
            Method::Patch => b"PATCH",
            Method::Other(name) => name,
        }
    }

    /// Whether repeating it has the same intended effect (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        match self {
            Method::Get
            | Method::Head
            | Method::Put
            | Method::Delete
            | Method::Options
            | Method::Trace => true,
            Method::Post | Method::Connect | Method::Patch | Method::Other(_) => false,
        }
    }
}

/// The URI scheme of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// The protocol version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    H10,
    H11,
    H2,
}

impl Version {
    /// As access logs spell it: `HTTP/1.1`, `HTTP/2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::H10 => "HTTP/1.0",
            Version::H11 => "HTTP/1.1",
            Version::H2 => "HTTP/2",
        }
    }
}

/// One piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Content; never empty when it comes from a decoder.
    Data(Bytes),
    /// The trailer section; nothing follows it.
    Trailers(HeaderList),
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body and no `Content-Length` of its own.
    None,
    /// `Content-Length`, in bytes. Zero is said on the wire, unlike `None`.
    Exact(u64),
    /// HTTP/1 chunked coding.
    Chunked,
    /// HTTP/1 response that ends with its connection.
    UntilClose,
    /// HTTP/2 body without `content-length`.
    Streamed,
}

impl BodyLength {
    /// Whether no byte of content can come.
    pub fn is_empty(self) -> bool {
        match self {
            BodyLength::None | BodyLength::Exact(0) => true,
            BodyLength::Exact(_)
            | BodyLength::Chunked
            | BodyLength::UntilClose
            | BodyLength::Streamed => false,
        }
    }
}

/// The registered reason phrase of a status code, or the empty text.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}
