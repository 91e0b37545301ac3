//! The lowered HttpConnectionManager: what one HTTP filter chain does, apart from routing.

use std::sync::Arc;
use std::time::Duration;

use crate::access_log::AccessLogs;
use crate::collector::Collector;
use crate::cors::CorsFilter;
use crate::fault::FaultPolicy;
use crate::metrics::Metrics;
use crate::rate_limit::LocalRateLimit;
use crate::route::RouteTable;

/// `envoy.filters.network.http_connection_manager`.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub stat_prefix: Arc<str>,
    pub codec: Codec,
    pub routes: RouteSource,
    /// In the order of the message, without the router, which is always last.
    pub filters: Vec<HttpFilter>,
    pub tracing: Option<Tracing>,
    /// None: nothing is logged.
    pub access_log: Option<Arc<AccessLogs>>,
    /// None: the standard metrics.
    pub metrics: Option<Arc<Metrics>>,
    /// `Upgrade: websocket` is allowed unless a route says otherwise.
    pub websocket: bool,
    /// CONNECT is allowed.
    pub connect: bool,
    pub server_header: ServerHeader,
    pub client_address: ClientAddress,
    pub client_cert: ClientCert,
    pub path: PathRules,
    pub host: HostRules,
    pub http1: Http1Rules,
    pub http2: Http2Rules,
    pub timeouts: ConnectionTimeouts,
    pub limits: HttpLimits,
    pub request_id: RequestIdRules,
    /// What to do with header names that contain `_`.
    pub underscores: Underscores,
    /// Value to append to `via`; empty: none.
    pub via: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Auto,
    H1,
    H2,
}

#[derive(Debug, Clone)]
pub enum RouteSource {
    /// RDS by route configuration name; look it up in the tables per request.
    Rds(Arc<str>),
    Inline(Arc<RouteTable>),
}

/// HTTP filters we run. A closed set: an unknown required filter is rejected in lowering.
#[derive(Debug, Clone)]
pub enum HttpFilter {
    Cors(Arc<CorsFilter>),
    Fault(Arc<FaultPolicy>),
    /// gRPC-Web from clients becomes gRPC.
    GrpcWeb,
    /// By the filter's name, which routes refer to.
    LocalRateLimit(Box<str>, Arc<LocalRateLimit>),
}

/// Percentages 0..=100.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Where spans go; None: they are not reported.
    pub collector: Option<Arc<Collector>>,
    /// A tracer that was asked for and that we do not have.
    pub unknown: Option<Box<str>>,
    /// What spans tell beside what they always do.
    pub tags: Vec<Tag>,
    /// Longest value of a tag that requests bring (`max_path_tag_length`), in bytes.
    pub tag_bytes_max: usize,
    /// Honour `x-client-trace-id` forced tracing.
    pub client_sampling: f64,
    pub random_sampling: f64,
    pub overall_sampling: f64,
}

/// A tag of spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub name: Box<str>,
    pub value: TagValue,
}

/// What a tag says. An empty default: without a value there is no tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagValue {
    Literal(Arc<str>),
    Environment {
        name: Box<str>,
        default: Box<str>,
    },
    /// Of the request, in lower case.
    Header {
        name: Box<str>,
        default: Box<str>,
    },
}

/// `server_header_transformation` with `server_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite(Arc<str>),
    AppendIfAbsent(Arc<str>),
    /// Responses keep what they say. Replies made here say this, if a name is configured; Envoy's
    /// would say nothing.
    PassThrough(Option<Arc<str>>),
}

/// How the client's address is found, and what is said of it upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAddress {
    /// True at the edge: the TCP peer is the client and `x-forwarded-for` is appended.
    pub use_remote_address: bool,
    pub xff_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub append_x_forwarded_port: bool,
}

/// `forward_client_cert_details` (`x-forwarded-client-cert`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCert {
    pub forward: ForwardClientCert,
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRules {
    /// RFC 3986 normalisation (dot segments, unreserved escapes).
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRules {
    pub strip_port: StripPort,
    pub strip_trailing_dot: bool,
}

/// Whether the port is removed from `:authority` before matching and forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    Keep,
    /// Only when it is the listener's port.
    Matching,
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Rules {
    /// False only where the listener's `http_protocol_options` stand without `accept_http_10`.
    pub accept_http10: bool,
    /// Host for HTTP/1.0 requests without one; empty: reject them.
    pub default_host: Arc<str>,
    /// Keep header case towards HTTP/1 peers (`preserve_case` formatter). We keep it always; this says
    /// the configuration asked.
    pub preserve_case: bool,
    pub proper_case: bool,
    pub trailers: bool,
}

/// None: the implementation's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http2Rules {
    pub concurrent_streams_max: Option<u32>,
    pub stream_window_bytes: Option<u32>,
    pub connection_window_bytes: Option<u32>,
    pub allow_connect: bool,
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Option<Duration>,
}

/// None: no limit. Envoy's defaults are filled in by lowering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionTimeouts {
    /// A connection without streams. Envoy: 1 h.
    pub idle: Option<Duration>,
    /// A stream without activity. Envoy: 5 min; Istio sends 0 (none).
    pub stream_idle: Option<Duration>,
    /// The whole request must arrive. Envoy: none.
    pub request: Option<Duration>,
    /// The request head must arrive. Envoy: none.
    pub request_headers: Option<Duration>,
    /// Between the GOAWAY warning and the close. Envoy: 5 s.
    pub drain: Duration,
    /// Between our last write and the hard close. Envoy: 1 s.
    pub delayed_close: Option<Duration>,
    pub connection_duration: Option<Duration>,
    pub stream_duration: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Request head. Envoy: 60 KiB.
    pub head_bytes_max: u32,
    /// Request header count. Envoy: 100.
    pub headers_max: u32,
    /// None: unlimited.
    pub requests_per_connection_max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestIdRules {
    pub generate: bool,
    /// Keep the id that a client outside sent.
    pub preserve_external: bool,
    pub always_in_response: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underscores {
    Allow,
    Reject,
    Drop,
}
