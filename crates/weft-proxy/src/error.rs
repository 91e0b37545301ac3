//! What can go wrong with a request, and what each failure means to the outside.
//!
//! One error type for the whole data path. The kind alone decides status code, Envoy
//! response flag, gRPC status and local reply text, all in one table ([`ErrorKind::facts`]);
//! nobody else maps failures to codes. `side` says whose fault it was and `retry` what an
//! attempt that ended so has already given away.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// A failed request, attempt or connection.
pub struct ProxyError {
    pub kind: ErrorKind,
    pub side: Side,
    pub retry: RetrySafety,
    /// The code of the peer's RST_STREAM (RFC 9113 §7): passed on if the stream has to be cut.
    pub reset_code: Option<u32>,
    /// It ended the last of several attempts, which the reply says.
    pub retried: bool,
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// Whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
    Local,
}

/// What repeating the attempt may do to the application behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetrySafety {
    /// Repeating makes no sense or could execute the request twice in a visible way.
    Never,
    /// The upstream may have seen the request: repeat only what the policy allows.
    MaybeProcessed,
    /// The upstream said that it has not processed the request (REFUSED_STREAM): repeating is safe
    /// for every method, but it may have had a reason.
    NotProcessed,
    /// The request did not reach anything that acts on it: repeating is safe for every method.
    NotSent,
}

/// Every way a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No virtual host or route matches.
    NoRoute,
    /// The route names a cluster that is not known.
    NoCluster,
    /// The same, where the route asks for a status of its own.
    NoClusterWith(u16),
    /// The cluster has no endpoint that may be used.
    NoHealthyUpstream,
    /// The host that the request names could not be resolved.
    DnsFailed,
    /// TCP connect was refused or failed.
    ConnectFailed,
    /// TCP connect or TLS handshake did not finish within the connect timeout.
    ConnectTimeout,
    /// TLS handshake or identity check with the upstream failed.
    UpstreamTls,
    /// The upstream closed or reset the connection before the response was complete.
    UpstreamReset,
    /// The upstream reset the HTTP/2 stream.
    UpstreamStreamReset,
    /// The upstream refused the HTTP/2 stream before processing it (REFUSED_STREAM, GOAWAY).
    UpstreamRefused,
    /// A circuit breaker is open.
    Overflow,
    /// The route's timeout, or the last per-try timeout, passed.
    UpstreamTimeout,
    /// The caller's own `grpc-timeout` passed.
    DeadlineExceeded,
    /// The whole stream took longer than `max_stream_duration`.
    StreamDuration,
    /// The upstream sent something that is not HTTP.
    UpstreamProtocol,
    /// The downstream sent something that is not HTTP, or that we refuse; with the status.
    DownstreamProtocol(u16),
    /// The downstream did not finish its request head in time.
    DownstreamTimeout,
    /// The downstream did not finish its whole request in time (`request_timeout`).
    RequestTimeout,
    /// Nothing moved on the stream for its limit; with the status.
    StreamIdle(u16),
    /// The downstream went away before the response was complete.
    DownstreamDisconnect,
    /// A gRPC-Web request in text is not base64.
    GrpcWebText,
    /// CONNECT or an upgrade that the route does not allow.
    UpgradeRefused,
    /// Policy refused the request.
    Denied,
    /// A defect of ours or of the machine (no sockets left, ...).
    Internal,
}

/// What one kind of failure looks like from outside.
pub struct Facts {
    /// Status of the local reply; 0 when nobody is left to reply to.
    pub status: u16,
    /// Envoy's response flag; `-` when it has none.
    pub flag: &'static str,
    /// Body of the local reply.
    pub text: &'static str,
}

const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";
/// Where `reset reason` begins.
const RESET_REASON_AT: usize = RESET.len() - "reset reason: ".len();

macro_rules! reset_text {
    ($reason:literal) => {
        concat!(
            "upstream connect error or disconnect/reset before headers. reset reason: ",
            $reason
        )
    };
}

impl ErrorKind {
    /// The table. Flags and texts are Envoy's, so that dashboards and runbooks keep working.
    pub fn facts(self) -> Facts {
        let (status, flag, text) = match self {
            Self::NoRoute => (404, "NR", ""),
            Self::NoCluster => (503, "NC", ""),
            Self::NoClusterWith(status) => (status, "NC", ""),
            Self::NoHealthyUpstream => (503, "UH", "no healthy upstream"),
            Self::DnsFailed => (503, "DF", "DNS resolution failure"),
            Self::ConnectFailed => (503, "UF", reset_text!("remote connection failure")),
            Self::ConnectTimeout => (503, "UF", reset_text!("connection timeout")),
            Self::UpstreamTls => (503, "UF", reset_text!("connection failure, TLS error")),
            Self::UpstreamReset => (503, "UC", reset_text!("connection termination")),
            Self::UpstreamStreamReset => (503, "UR", reset_text!("remote reset")),
            Self::UpstreamRefused => (503, "UR", reset_text!("remote refused stream reset")),
            Self::Overflow => (503, "UO", reset_text!("overflow")),
            Self::UpstreamTimeout => (504, "UT", "upstream request timeout"),
            Self::DeadlineExceeded => (504, "UT", "upstream request timeout"),
            Self::StreamDuration => (504, "DT", "downstream duration timeout"),
            Self::UpstreamProtocol => (502, "UPE", reset_text!("protocol error")),
            Self::DownstreamProtocol(status) => (status, "DPE", ""),
            Self::DownstreamTimeout => (408, "DPE", "request headers timed out"),
            Self::RequestTimeout => (408, "DPE", "request timeout"),
            Self::StreamIdle(status) => (status, "SI", "stream timeout"),
            Self::DownstreamDisconnect => (0, "DC", ""),
            Self::GrpcWebText => (400, "-", "Bad gRPC-web request, invalid base64 data."),
            Self::UpgradeRefused => (403, "-", ""),
            Self::Denied => (403, "-", "RBAC: access denied"),
            Self::Internal => (500, "-", "internal error"),
        };
        Facts { status, flag, text }
    }

    /// The `grpc-status` of the local reply.
    pub fn grpc_status(self) -> u8 {
        match self {
            Self::DeadlineExceeded | Self::StreamDuration => 4,
            _ => weft_http::rules::grpc_status_of(self.facts().status),
        }
    }

    fn side(self) -> Side {
        match self {
            Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamTls
            | Self::UpstreamReset
            | Self::UpstreamStreamReset
            | Self::UpstreamRefused
            | Self::UpstreamTimeout
            | Self::DeadlineExceeded
            | Self::UpstreamProtocol => Side::Upstream,
            Self::DownstreamProtocol(_)
            | Self::DownstreamTimeout
            | Self::RequestTimeout
            | Self::StreamIdle(_)
            | Self::DownstreamDisconnect
            | Self::GrpcWebText
            | Self::UpgradeRefused => Side::Downstream,
            Self::NoRoute
            | Self::NoCluster
            | Self::NoClusterWith(_)
            | Self::NoHealthyUpstream
            | Self::DnsFailed
            | Self::Overflow
            | Self::StreamDuration
            | Self::Denied
            | Self::Internal => Side::Local,
        }
    }

    fn retry(self) -> RetrySafety {
        match self {
            Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamTls
            | Self::NoHealthyUpstream => RetrySafety::NotSent,
            Self::UpstreamRefused => RetrySafety::NotProcessed,
            Self::UpstreamReset | Self::UpstreamStreamReset | Self::UpstreamTimeout => {
                RetrySafety::MaybeProcessed
            }
            _ => RetrySafety::Never,
        }
    }
}

impl ProxyError {
    pub fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            side: kind.side(),
            retry: kind.retry(),
            reset_code: None,
            retried: false,
            source: None,
        }
    }

    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure, with better knowledge of what was given away.
    pub fn with_retry(mut self, retry: RetrySafety) -> Self {
        self.retry = retry;
        self
    }

    /// The same failure, for a stream that the peer reset with `code`.
    pub fn with_reset_code(mut self, code: u32) -> Self {
        self.reset_code = Some(code);
        self
    }

    /// The client is gone (its connection failed while we read or wrote).
    pub fn disconnect(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::DownstreamDisconnect).with_source(source)
    }

    /// The upstream connection ended in the middle of an exchange.
    pub fn upstream_reset(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::UpstreamReset).with_source(source)
    }

    /// Status of the local reply; 0 when there is nobody to reply to.
    pub fn status(&self) -> u16 {
        self.kind.facts().status
    }

    /// Body of the local reply, in Envoy's words.
    pub fn text(&self) -> Cow<'static, str> {
        let text = self.kind.facts().text;
        match text.strip_prefix(RESET) {
            Some(reason) if self.retried => {
                let (begin, end) = RESET.split_at(RESET_REASON_AT);
                Cow::Owned(format!("{begin}retried and the latest {end}{reason}"))
            }
            _ => Cow::Borrowed(text),
        }
    }

    /// Envoy's response flag.
    pub fn flag(&self) -> &'static str {
        self.kind.facts().flag
    }

    /// Whether this was the upstream's connection failing before it could see the request.
    pub fn is_connect_failure(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::ConnectFailed | ErrorKind::ConnectTimeout | ErrorKind::UpstreamTls
        )
    }
}

impl From<ErrorKind> for ProxyError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.kind.facts();
        let text = facts.text.strip_prefix(RESET).unwrap_or(facts.text);
        write!(f, "{:?} ({})", self.kind, facts.flag)?;
        if !text.is_empty() {
            write!(f, ": {text}")?;
        }
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyError({self}, {:?}, {:?})", self.side, self.retry)
    }
}

impl Error for ProxyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_flags_are_envoys() {
        let check = |kind: ErrorKind, status, flag| {
            let error = ProxyError::new(kind);
            assert_eq!((error.status(), error.flag()), (status, flag), "{kind:?}");
        };
        check(ErrorKind::NoRoute, 404, "NR");
        check(ErrorKind::NoCluster, 503, "NC");
        check(ErrorKind::NoHealthyUpstream, 503, "UH");
        check(ErrorKind::ConnectFailed, 503, "UF");
        check(ErrorKind::UpstreamReset, 503, "UC");
        check(ErrorKind::Overflow, 503, "UO");
        check(ErrorKind::UpstreamTimeout, 504, "UT");
        check(ErrorKind::UpstreamProtocol, 502, "UPE");
        check(ErrorKind::DownstreamProtocol(431), 431, "DPE");
        check(ErrorKind::DownstreamDisconnect, 0, "DC");
    }

    #[test]
    fn the_reply_says_that_it_was_tried_again() {
        let text = |kind, retried| ProxyError { retried, ..ProxyError::new(kind) }.text();
        let begin = "upstream connect error or disconnect/reset before headers. ";
        let failed = ErrorKind::ConnectFailed;
        let reason = "reset reason: remote connection failure";
        assert_eq!(text(failed, false), format!("{begin}{reason}"));
        assert_eq!(text(failed, true), format!("{begin}retried and the latest {reason}"));
        assert_eq!(text(ErrorKind::UpstreamTimeout, true), "upstream request timeout");
    }

    #[test]
    fn only_what_reached_nobody_is_safe_for_every_method() {
        assert_eq!(ProxyError::new(ErrorKind::ConnectFailed).retry, RetrySafety::NotSent);
        assert_eq!(ProxyError::new(ErrorKind::UpstreamReset).retry, RetrySafety::MaybeProcessed);
        assert_eq!(ProxyError::new(ErrorKind::UpstreamProtocol).retry, RetrySafety::Never);
    }
}
