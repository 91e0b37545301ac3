//! What one workload asks for where its peers break the rules of HTTP or speak an outdated one. Set
//! on its own proxy, since xDS has no words for it: by option, or in the environment
//! (`proxyMetadata` of Istio's `ProxyConfig`, mesh-wide or by the annotation
//! `proxy.istio.io/config`). Shown by `/server_info`; what is met is counted by
//! `weft_proxy_http_quirks_total`.

use clap::{Args, ValueEnum};
use weft_http::h1::{Limits, ParseError};
use weft_http::rules::Singleton;
use weft_http::{HeaderList, Known};

use crate::error::ProxyError;
use crate::worker::Counters;

/// Tolerance towards clients and applications; `docs/http1.md`.
#[derive(Debug, Clone, Copy, Args)]
pub struct HttpPolicy {
    /// Which of several Content-Type lines of a request the application gets.
    #[arg(long, env = "WEFT_SINGLETON_HEADERS", value_enum, ignore_case = true)]
    #[arg(default_value = "first", value_name = "POLICY")]
    pub singleton_headers: SingletonHeaders,
    /// Read a response's repeated `Transfer-Encoding: chunked` as said once; else it is a 502.
    #[arg(long, env = "WEFT_TOLERATE_REPEATED_CHUNKED")]
    pub tolerate_repeated_chunked: bool,
    /// Answer HTTP/1.0 requests with 426, whatever the listener says (`accept_http_10`).
    #[arg(long, env = "WEFT_REFUSE_HTTP10")]
    pub refuse_http10: bool,
    /// Send the names of HTTP/1 header lines in lower case, as Envoy does unless told to preserve
    /// their case.
    #[arg(long, env = "WEFT_LOWERCASE_HEADER_NAMES")]
    pub lowercase_header_names: bool,
    /// Who may ask with `x-weft-why: 1` which listener, route, cluster, endpoint and resources
    /// decided on a request.
    #[arg(long, env = "WEFT_WHY", value_enum, ignore_case = true)]
    #[arg(default_value = "never", value_name = "WHO")]
    pub why: Why,
}

/// Who is told how a request was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Why {
    /// Nobody.
    Never,
    /// The workload's own application.
    Outbound,
    /// Peers and clients of a gateway, too.
    Everywhere,
}

/// What to do with repetitions of a field that should stand once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SingletonHeaders {
    /// Keep the first.
    First,
    /// Keep the last.
    Last,
    /// Answer 400.
    Reject,
    /// Join the values with a comma, as Envoy does.
    Join,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        HttpPolicy {
            singleton_headers: SingletonHeaders::First,
            tolerate_repeated_chunked: false,
            refuse_http10: false,
            lowercase_header_names: false,
            why: Why::Never,
        }
    }
}

impl HttpPolicy {
    pub(crate) fn singleton(self) -> Singleton {
        match self.singleton_headers {
            SingletonHeaders::First => Singleton::First,
            SingletonHeaders::Last => Singleton::Last,
            SingletonHeaders::Reject => Singleton::Reject,
            SingletonHeaders::Join => Singleton::Join,
        }
    }

    /// Bounds and tolerances for responses.
    pub(crate) fn response_limits(self) -> Limits {
        Limits { tolerate_repeated_chunked: self.tolerate_repeated_chunked, ..Limits::DEFAULT }
    }

    /// Counts a response that was only taken because this policy is tolerant.
    pub(crate) fn note_response(self, headers: &HeaderList, counters: &Counters) {
        if !self.tolerate_repeated_chunked || !headers.contains_known(Known::TransferEncoding) {
            return;
        }
        let codings = headers.get_all(Known::TransferEncoding.name());
        let chunked = codings.flat_map(|value| value.split(|&byte| byte == b','));
        if chunked.filter(|name| name.trim_ascii().eq_ignore_ascii_case(b"chunked")).count() > 1 {
            counters.http_quirk("chunked_repeated");
        }
    }

    /// Counts a response that was refused because this policy is not.
    pub(crate) fn note_failure(self, error: &ProxyError, counters: &Counters) {
        let source = error.source.as_deref().and_then(|source| source.downcast_ref());
        if let Some(ParseError::RepeatedChunked) = source
            && error.side == crate::error::Side::Upstream
        {
            counters.http_quirk("chunked_repeated");
        }
    }

    /// For `/server_info`.
    pub(crate) fn describe(self) -> serde_json::Value {
        serde_json::json!({
            "singleton_headers": format!("{:?}", self.singleton_headers).to_lowercase(),
            "tolerate_repeated_chunked": self.tolerate_repeated_chunked,
            "refuse_http10": self.refuse_http10,
            "lowercase_header_names": self.lowercase_header_names,
        })
    }
}
