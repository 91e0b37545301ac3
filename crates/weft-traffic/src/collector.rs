//! Services that proxies report to: spans and lines of access logs.

use std::sync::Arc;
use std::time::Duration;

/// A service that takes reports, and how it wants them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Collector {
    pub cluster: Arc<str>,
    /// For `Host`.
    pub host: Arc<str>,
    pub path: Arc<str>,
    pub report: Report,
    /// One message of gRPC, else an HTTP request's body.
    pub grpc: bool,
    /// Name of the service or the log in every report; empty: the proxy's own.
    pub name: Arc<str>,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What a report is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Report {
    /// Zipkin's JSON (v2). `shared`: the server's span has the client's id.
    Zipkin {
        shared: bool,
    },
    /// OpenTelemetry spans.
    OtlpSpans,
    /// OpenTelemetry log records.
    OtlpLogs,
    /// Envoy's access log service, with entries of HTTP or of connections.
    HttpEntries,
    TcpEntries,
}

impl Collector {
    /// Where a unary or streaming gRPC call for this report goes.
    pub(crate) const fn grpc_path(report: Report) -> &'static str {
        match report {
            Report::OtlpSpans | Report::Zipkin { .. } => {
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
            }
            Report::OtlpLogs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Report::HttpEntries | Report::TcpEntries => {
                "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
            }
        }
    }
}
