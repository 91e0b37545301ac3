//! Istio's standard metrics: names, labels and buckets, exactly as its dashboards query them.
//!
//! A label set has two halves. The flow (who called whom, how) is known when a request is
//! routed and repeats for thousands of requests; the outcome (code, flags) is known at the end.

use crate::flags::ResponseFlags;
use crate::peer::PeerInfo;
use crate::text::{Text, label};
use crate::trace::TraceId;
use crate::view::{LabelSet, Metric, View};
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
    /// What configuration makes of the metrics; `None`: nothing. The same `Arc` again and again.
    pub view: Option<&'a Arc<View>>,
    /// What the view's own labels show, in its order.
    pub values: &'a [Box<str>],
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
    /// Of a request whose trace is kept.
    pub exemplar: Option<Exemplar>,
}

/// A request to show for its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar {
    pub trace: TraceId,
    /// When it ended, since 1970 in milliseconds.
    pub at_ms: u64,
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
    /// As in [`RequestLabels`].
    pub view: Option<&'a Arc<View>>,
    pub values: &'a [Box<str>],
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
    pub(crate) view: Option<Arc<View>>,
    pub(crate) values: Option<Arc<[Box<str>]>>,
}

impl FlowLabels {
    /// Without the values of the view's own labels.
    pub(crate) fn of(labels: &RequestLabels<'_>) -> Self {
        let RequestLabels { reporter, source, destination, service, protocol, security, .. } =
            *labels;
        Self {
            reporter,
            source: source.clone(),
            destination: destination.clone(),
            service: service.clone(),
            protocol,
            security,
            view: labels.view.cloned(),
            values: None,
        }
    }

    /// Appends `name="value"` pairs in Istio's order, without braces.
    fn write(&self, out: &mut Labels<'_>) {
        out.put(REPORTER_AT, self.reporter.as_str());
        write_peer(out, SOURCE_AT, &self.source);
        write_peer(out, DESTINATION_AT, &self.destination);
        let ServiceInfo { host, name, namespace } = &*self.service;
        for (index, value) in [host, name, namespace].into_iter().enumerate() {
            out.put(SERVICE_AT + index, or_unknown(value));
        }
        out.put(PROTOCOL_AT, self.protocol.as_str());
        out.put(SECURITY_AT, self.security.as_str());
    }

    /// The view's own labels.
    fn write_added(&self, metric: Metric, out: &mut Text) {
        let Some(view) = &self.view else { return };
        let values = self.values.as_deref().unwrap_or_default();
        for (name, at) in view.added(metric) {
            let value = values.get(*at).map_or("", |value| value);
            label(out, name, or_unknown(value));
        }
    }
}

/// Labels being written, without those that a view hides.
struct Labels<'o> {
    out: &'o mut Text,
    hidden: LabelSet,
}

impl Labels<'_> {
    fn put(&mut self, at: usize, value: &str) {
        if !self.hidden.has(at) {
            label(self.out, LABELS[at], value);
        }
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
    /// The flow, where there is one.
    pub(crate) fn flow(&self) -> Option<&Arc<FlowLabels>> {
        match self {
            Self::Request(flow, _) | Self::Messages(flow) | Self::Tcp(flow, _) => Some(flow),
            Self::Other(..) | Self::OtherMessages(_) | Self::OtherTcp(_) => None,
        }
    }

    /// Appends the labels as `metric` shows them.
    pub(crate) fn write(&self, metric: Metric, text: &mut Text) {
        let view = self.flow().and_then(|flow| flow.view.as_deref());
        let hidden = view.map(|view| view.hidden(metric)).unwrap_or_default();
        let mut out = Labels { out: text, hidden };
        match self {
            Self::Request(flow, outcome) => {
                flow.write(&mut out);
                out.put(CODE_AT, itoa::Buffer::new().format(outcome.code));
                if let Some(status) = outcome.grpc_status {
                    out.put(GRPC_STATUS_AT, itoa::Buffer::new().format(status));
                }
                out.put(FLAGS_AT, &outcome.flags.to_string());
            }
            Self::Messages(flow) => flow.write(&mut out),
            Self::Tcp(flow, flags) => {
                flow.write(&mut out);
                out.put(FLAGS_AT, &flags.to_string());
            }
            Self::Other(reporter, protocol, class) => {
                write_other(&mut out, *reporter, *protocol);
                out.put(CODE_AT, class.as_str());
                out.put(FLAGS_AT, "other");
            }
            Self::OtherMessages(reporter) => write_other(&mut out, *reporter, Protocol::Grpc),
            Self::OtherTcp(reporter) => {
                write_other(&mut out, *reporter, Protocol::Tcp);
                out.put(FLAGS_AT, "other");
            }
        }
        if let Some(flow) = self.flow() {
            flow.write_added(metric, text);
        }
    }
}

fn write_other(out: &mut Labels<'_>, reporter: Reporter, protocol: Protocol) {
    out.put(REPORTER_AT, reporter.as_str());
    for at in SOURCE_AT..PROTOCOL_AT {
        out.put(at, "other");
    }
    out.put(PROTOCOL_AT, protocol.as_str());
    out.put(SECURITY_AT, "other");
}

/// The standard labels, in Istio's order.
pub(crate) const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
    "response_code",
    "grpc_response_status",
    "response_flags",
];

/// Where the labels of one peer begin, and how many they are.
const REPORTER_AT: usize = 0;
pub(crate) const SOURCE_AT: usize = 1;
pub(crate) const PEER_LABELS: usize = 8;
pub(crate) const DESTINATION_AT: usize = SOURCE_AT + PEER_LABELS;
pub(crate) const SERVICE_AT: usize = DESTINATION_AT + PEER_LABELS;
pub(crate) const PROTOCOL_AT: usize = SERVICE_AT + 3;
const SECURITY_AT: usize = PROTOCOL_AT + 1;
pub(crate) const CODE_AT: usize = SECURITY_AT + 1;
pub(crate) const GRPC_STATUS_AT: usize = CODE_AT + 1;
pub(crate) const FLAGS_AT: usize = GRPC_STATUS_AT + 1;

/// Istio: a workload known by a canonical service but no revision is at this one.
pub(crate) const LATEST: &str = "latest";

fn write_peer(out: &mut Labels<'_>, first: usize, peer: &PeerInfo) {
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
    let facts = [
        workload,
        namespace,
        principal,
        app,
        version,
        canonical_service,
        canonical_revision,
        cluster,
    ];
    for (index, fact) in facts.into_iter().enumerate() {
        out.put(first + index, or_unknown(fact));
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
