//! Istio's standard metrics: names, labels and buckets, exactly as its dashboards query them.
//!
//! A label set has two halves. The flow (who called whom, how) is known when a request is
//! routed and repeats for thousands of requests; the outcome (code, flags) is known at the end.

use crate::flags::ResponseFlags;
use crate::peer::PeerInfo;
use crate::text::{Text, label};
use std::sync::Arc;
use std::time::Duration;

pub const REQUESTS_TOTAL: &str = "istio_requests_total";
pub const REQUEST_DURATION_MS: &str = "istio_request_duration_milliseconds";
pub const REQUEST_BYTES: &str = "istio_request_bytes";
pub const RESPONSE_BYTES: &str = "istio_response_bytes";
pub const REQUEST_MESSAGES_TOTAL: &str = "istio_request_messages_total";
pub const RESPONSE_MESSAGES_TOTAL: &str = "istio_response_messages_total";
pub const TCP_SENT_BYTES_TOTAL: &str = "istio_tcp_sent_bytes_total";
pub const TCP_RECEIVED_BYTES_TOTAL: &str = "istio_tcp_received_bytes_total";
pub const TCP_OPENED_TOTAL: &str = "istio_tcp_connections_opened_total";
pub const TCP_CLOSED_TOTAL: &str = "istio_tcp_connections_closed_total";

/// Upper bounds in microseconds of `istio_request_duration_milliseconds`: Istio's 0.5 ms to 1 h.
pub(crate) const DURATION_US: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];
/// Upper bounds in bytes of the size histograms.
pub(crate) const SIZE_BYTES: [u64; 9] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// Which side of the call reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The caller's proxy, or a gateway.
    Source,
    /// The called workload's proxy.
    Destination,
}

/// Label `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http,
    Grpc,
    Tcp,
}

/// Label `connection_security_policy`. Istio's source side always says `unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    Unknown,
    MutualTls,
    None,
}

/// The called service. Empty fields are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ServiceInfo {
    /// `destination_service`: the FQDN, or the request's host for an unknown service.
    pub host: String,
    /// `destination_service_name`, for example `servicea`, `PassthroughCluster`, `BlackHoleCluster`.
    pub name: String,
    /// `destination_service_namespace`.
    pub namespace: String,
}

/// The half of an HTTP or gRPC label set that repeats. Pass the same `Arc`s again and again:
/// the shard's lookup compares pointers first.
#[derive(Debug, Clone, Copy)]
pub struct RequestLabels<'a> {
    pub reporter: Reporter,
    pub source: &'a Arc<PeerInfo>,
    pub destination: &'a Arc<PeerInfo>,
    pub service: &'a Arc<ServiceInfo>,
    pub protocol: Protocol,
    pub security: SecurityPolicy,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// HTTP status; 0 when the client left before there was one.
    pub code: u16,
    /// gRPC status number, for gRPC only.
    pub grpc_status: Option<u8>,
    pub flags: ResponseFlags,
}

/// What a request cost. Message counts are for gRPC, else 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Amounts {
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub request_messages: u64,
    pub response_messages: u64,
}

/// A TCP label set. Opened connections are counted with no flags; take a second handle at the
/// end when the connection ended with some.
#[derive(Debug, Clone, Copy)]
pub struct TcpLabels<'a> {
    pub reporter: Reporter,
    pub source: &'a Arc<PeerInfo>,
    pub destination: &'a Arc<PeerInfo>,
    pub service: &'a Arc<ServiceInfo>,
    pub security: SecurityPolicy,
    pub flags: ResponseFlags,
}

/// Owned labels of one flow, shared by all shards.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlowLabels {
    pub(crate) reporter: Reporter,
    pub(crate) source: Arc<PeerInfo>,
    pub(crate) destination: Arc<PeerInfo>,
    pub(crate) service: Arc<ServiceInfo>,
    pub(crate) protocol: Protocol,
    pub(crate) security: SecurityPolicy,
}

impl FlowLabels {
    pub(crate) fn of(labels: &RequestLabels<'_>) -> Self {
        let RequestLabels { reporter, source, destination, service, protocol, security } = *labels;
        Self {
            reporter,
            source: source.clone(),
            destination: destination.clone(),
            service: service.clone(),
            protocol,
            security,
        }
    }

    /// Appends `name="value"` pairs in Istio's order, without braces.
    pub(crate) fn write(&self, out: &mut Text) {
        label(out, "reporter", self.reporter.as_str());
        write_peer(out, &SOURCE, &self.source);
        write_peer(out, &DESTINATION, &self.destination);
        let ServiceInfo { host, name, namespace } = &*self.service;
        label(out, "destination_service", or_unknown(host));
        label(out, "destination_service_name", or_unknown(name));
        label(out, "destination_service_namespace", or_unknown(namespace));
        label(out, "request_protocol", self.protocol.as_str());
        label(out, "connection_security_policy", self.security.as_str());
    }
}

/// What one series is about: a flow and an outcome, or the overflow of the series budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum SeriesLabels {
    Request(Arc<FlowLabels>, Outcome),
    /// gRPC message counts have no outcome: they are counted while a stream runs.
    Messages(Arc<FlowLabels>),
    Tcp(Arc<FlowLabels>, ResponseFlags),
    /// Past the budget. The code's class is kept so that success rates stay right.
    Other(Reporter, Protocol, CodeClass),
    OtherMessages(Reporter),
    OtherTcp(Reporter),
}

/// `2xx` and so on; `0` when there was no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CodeClass(u8);

impl CodeClass {
    pub(crate) fn of(code: u16) -> Self {
        Self(u8::try_from(code / 100).unwrap_or(u8::MAX).min(6))
    }

    fn as_str(self) -> &'static str {
        match self.0 {
            0 => "0",
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        }
    }
}

impl SeriesLabels {
    pub(crate) fn write(&self, out: &mut Text) {
        match self {
            Self::Request(flow, outcome) => {
                flow.write(out);
                out.label_number("response_code", u64::from(outcome.code));
                if let Some(status) = outcome.grpc_status {
                    out.label_number("grpc_response_status", u64::from(status));
                }
                out.label_display("response_flags", &outcome.flags);
            }
            Self::Messages(flow) => flow.write(out),
            Self::Tcp(flow, flags) => {
                flow.write(out);
                out.label_display("response_flags", flags);
            }
            Self::Other(reporter, protocol, class) => {
                write_other(out, *reporter, *protocol);
                label(out, "response_code", class.as_str());
                label(out, "response_flags", "other");
            }
            Self::OtherMessages(reporter) => write_other(out, *reporter, Protocol::Grpc),
            Self::OtherTcp(reporter) => {
                write_other(out, *reporter, Protocol::Tcp);
                label(out, "response_flags", "other");
            }
        }
    }
}

fn write_other(out: &mut Text, reporter: Reporter, protocol: Protocol) {
    label(out, "reporter", reporter.as_str());
    let service =
        ["destination_service", "destination_service_name", "destination_service_namespace"];
    for name in SOURCE.iter().chain(&DESTINATION).chain(&service) {
        label(out, name, "other");
    }
    label(out, "request_protocol", protocol.as_str());
    label(out, "connection_security_policy", "other");
}

/// Label names of one peer, in the order of [`write_peer`].
type PeerNames = [&'static str; 8];
const SOURCE: PeerNames = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
];
const DESTINATION: PeerNames = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
];

fn write_peer(out: &mut Text, names: &PeerNames, peer: &PeerInfo) {
    let PeerInfo {
        name: _,
        workload,
        namespace,
        app,
        version,
        principal,
        cluster,
        canonical_service,
        canonical_revision,
    } = peer;
    // Istio: a workload known by a canonical service but no revision is at revision `latest`.
    let revision = match canonical_revision.as_str() {
        "" if !canonical_service.is_empty() => "latest",
        "" => "unknown",
        revision => revision,
    };
    let values = [
        or_unknown(workload),
        or_unknown(namespace),
        or_unknown(principal),
        or_unknown(app),
        or_unknown(version),
        or_unknown(canonical_service),
        revision,
        or_unknown(cluster),
    ];
    for (name, value) in names.iter().zip(values) {
        label(out, name, value);
    }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

impl Reporter {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl SecurityPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
        }
    }
}
