//! Why a peer's bytes were refused: one table from reason to status and stable text.

/// Why a message was refused. `Display` is the stable reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", self.reason())]
pub enum ParseError {
    /// The first line is not one of HTTP/1.
    StartLine,
    /// A line ends with LF alone, or holds a lone CR.
    LineEnding,
    /// HTTP version other than 1.0 and 1.1.
    Version,
    /// The method is not capital letters, `-` and `_`.
    Method,
    /// The request target has a form or bytes that are not allowed.
    Target,
    /// A field name with bytes that are not of a token, or whitespace before the colon.
    HeaderName,
    /// A field value with control characters.
    HeaderValue,
    /// A line that continues the one before (RFC 9112 §5.2).
    ObsFold,
    /// HTTP/1.1 without `Host`.
    HostMissing,
    /// More than one `Host`.
    HostRepeated,
    /// `Host` is not host and port.
    HostInvalid,
    /// `Content-Length` is not one number.
    ContentLength,
    /// `Content-Length` twice with different numbers.
    ContentLengthConflict,
    /// `Content-Length` together with `Transfer-Encoding`.
    LengthAndCoding,
    /// `chunked` is missing, not last or malformed.
    TransferEncoding,
    /// `chunked` is said more than once.
    RepeatedChunked,
    /// A coding that is not known.
    UnknownCoding,
    /// `Transfer-Encoding` in an HTTP/1.0 message.
    CodingInHttp10,
    /// An `Expect` other than `100-continue`.
    Expectation,
    /// The request line is longer than its limit.
    RequestLineTooLong,
    /// The head is longer than its limit.
    HeadTooLarge,
    /// More lines than the limit.
    TooManyHeaders,
    /// A chunk size that is not a hexadecimal number in range.
    ChunkSize,
    /// A chunk-size line, or the extensions of a body, beyond the limit.
    ChunkLineTooLong,
    /// A chunk extension with control characters.
    ChunkExtension,
    /// The data of a chunk is not followed by CR LF.
    ChunkEnd,
    /// A malformed trailer section.
    Trailer,
    /// A trailer section beyond its limit.
    TrailersTooLarge,
    /// The connection ended inside a message.
    Truncated,
    /// A response status that is not three digits from 100 on.
    Status,
}

impl ParseError {
    /// The status a server answers a client with. Towards an upstream every kind is a 502.
    pub fn status(self) -> u16 {
        match self {
            ParseError::Version => 505,
            ParseError::UnknownCoding => 501,
            ParseError::Expectation => 417,
            ParseError::RequestLineTooLong => 414,
            ParseError::HeadTooLarge
            | ParseError::TooManyHeaders
            | ParseError::TrailersTooLarge => 431,
            ParseError::StartLine
            | ParseError::LineEnding
            | ParseError::Method
            | ParseError::Target
            | ParseError::HeaderName
            | ParseError::HeaderValue
            | ParseError::ObsFold
            | ParseError::HostMissing
            | ParseError::HostRepeated
            | ParseError::HostInvalid
            | ParseError::ContentLength
            | ParseError::ContentLengthConflict
            | ParseError::LengthAndCoding
            | ParseError::TransferEncoding
            | ParseError::RepeatedChunked
            | ParseError::CodingInHttp10
            | ParseError::ChunkSize
            | ParseError::ChunkLineTooLong
            | ParseError::ChunkExtension
            | ParseError::ChunkEnd
            | ParseError::Trailer
            | ParseError::Truncated
            | ParseError::Status => 400,
        }
    }

    /// Stable text for logs, metrics and tests.
    pub fn reason(self) -> &'static str {
        match self {
            ParseError::StartLine => "http1.start_line",
            ParseError::LineEnding => "http1.line_ending",
            ParseError::Version => "http1.version",
            ParseError::Method => "http1.method",
            ParseError::Target => "http1.target",
            ParseError::HeaderName => "http1.header_name",
            ParseError::HeaderValue => "http1.header_value",
            ParseError::ObsFold => "http1.obs_fold",
            ParseError::HostMissing => "http1.host_missing",
            ParseError::HostRepeated => "http1.host_repeated",
            ParseError::HostInvalid => "http1.host_invalid",
            ParseError::ContentLength => "http1.content_length",
            ParseError::ContentLengthConflict => "http1.content_length_conflict",
            ParseError::LengthAndCoding => "http1.content_length_and_transfer_encoding",
            ParseError::TransferEncoding => "http1.transfer_encoding",
            ParseError::RepeatedChunked => "http1.repeated_chunked",
            ParseError::UnknownCoding => "http1.unknown_transfer_coding",
            ParseError::CodingInHttp10 => "http1.transfer_encoding_in_http10",
            ParseError::Expectation => "http1.expectation",
            ParseError::RequestLineTooLong => "http1.request_line_too_long",
            ParseError::HeadTooLarge => "http1.head_too_large",
            ParseError::TooManyHeaders => "http1.too_many_headers",
            ParseError::ChunkSize => "http1.chunk_size",
            ParseError::ChunkLineTooLong => "http1.chunk_line_too_long",
            ParseError::ChunkExtension => "http1.chunk_extension",
            ParseError::ChunkEnd => "http1.chunk_end",
            ParseError::Trailer => "http1.trailer",
            ParseError::TrailersTooLarge => "http1.trailers_too_large",
            ParseError::Truncated => "http1.truncated",
            ParseError::Status => "http1.status",
        }
    }
}
