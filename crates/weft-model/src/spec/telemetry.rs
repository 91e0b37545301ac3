//! telemetry.istio.io Telemetry, and what MeshConfig says of telemetry providers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::value::duration;
use super::{LabelSelector, PolicyTargetReference};

/// Annotation of a Telemetry resource: `standard`, `lean` or `minimal`, what its `metrics` begin with.
pub const METRICS_PRESET: &str = "weft/metrics";
/// What it may say.
pub const METRICS_PRESETS: [&str; 3] = ["standard", "lean", "minimal"];

/// What workloads report of their traffic, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Telemetry {
    pub selector: Option<LabelSelector>,
    pub target_ref: Option<PolicyTargetReference>,
    pub target_refs: Vec<PolicyTargetReference>,
    pub tracing: Vec<TelemetryTracing>,
    pub metrics: Vec<TelemetryMetrics>,
    pub access_logging: Vec<AccessLogging>,
}

/// Which side of a call a rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    #[default]
    ClientAndServer,
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ModeSelector {
    pub mode: WorkloadMode,
}

/// A provider by its name in MeshConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProviderRef {
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AccessLogging {
    #[serde(rename = "match")]
    pub matches: Option<ModeSelector>,
    pub providers: Vec<ProviderRef>,
    pub disabled: Option<bool>,
    pub filter: Option<ExpressionFilter>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExpressionFilter {
    /// CEL over Envoy's attributes.
    pub expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TelemetryTracing {
    #[serde(rename = "match")]
    pub matches: Option<ModeSelector>,
    pub providers: Vec<ProviderRef>,
    /// 0 to 100.
    pub random_sampling_percentage: Option<f64>,
    pub disable_span_reporting: Option<bool>,
    pub custom_tags: BTreeMap<String, CustomTag>,
    pub use_request_id_for_trace_sampling: Option<bool>,
    pub enable_istio_tags: Option<bool>,
    pub disable_context_propagation: Option<bool>,
}

/// A tag of spans: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CustomTag {
    pub literal: Option<LiteralTag>,
    pub environment: Option<NamedTag>,
    pub header: Option<NamedTag>,
    pub formatter: Option<LiteralTag>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LiteralTag {
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NamedTag {
    pub name: String,
    pub default_value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TelemetryMetrics {
    pub providers: Vec<ProviderRef>,
    pub overrides: Vec<MetricOverride>,
    #[serde(deserialize_with = "duration")]
    pub reporting_interval: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricOverride {
    #[serde(rename = "match")]
    pub matches: Option<MetricSelector>,
    pub disabled: Option<bool>,
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricSelector {
    /// One of Istio's, by the names of its API (`REQUEST_COUNT`).
    pub metric: Option<String>,
    pub custom_metric: String,
    pub mode: WorkloadMode,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TagOverride {
    pub operation: TagOperation,
    /// CEL over Envoy's attributes; needed for UPSERT.
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagOperation {
    #[default]
    Upsert,
    Remove,
}

/// A named party that telemetry goes to. At most one of the kinds is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExtensionProvider {
    pub name: String,
    pub envoy_file_access_log: Option<FileLogProvider>,
    pub envoy_http_als: Option<GrpcLogProvider>,
    pub envoy_tcp_als: Option<GrpcLogProvider>,
    pub envoy_otel_als: Option<OtelLogProvider>,
    pub zipkin: Option<ZipkinProvider>,
    pub opentelemetry: Option<OpenTelemetryProvider>,
    pub prometheus: Option<PrometheusProvider>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FileLogProvider {
    /// `/dev/stdout` when not set.
    pub path: String,
    pub log_format: Option<LogFormat>,
    pub omit_empty_values: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LogFormat {
    pub text: Option<String>,
    /// JSON object whose leaves are format strings.
    pub labels: Option<serde_json::Value>,
}

/// Envoy's access log service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GrpcLogProvider {
    /// `host` or `namespace/host`.
    pub service: String,
    pub port: u32,
    pub log_name: String,
    pub filter_state_objects_to_log: Vec<String>,
    pub additional_request_headers_to_log: Vec<String>,
    pub additional_response_headers_to_log: Vec<String>,
    pub additional_response_trailers_to_log: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OtelLogProvider {
    pub service: String,
    pub port: u32,
    pub log_name: String,
    pub log_format: Option<OtelLogFormat>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct OtelLogFormat {
    pub text: String,
    pub labels: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ZipkinProvider {
    pub service: String,
    pub port: u32,
    pub max_tag_length: Option<u32>,
    #[serde(rename = "enable64bitTraceId")]
    pub enable_64bit_trace_id: bool,
    /// `/api/v2/spans` when not set.
    pub path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OpenTelemetryProvider {
    pub service: String,
    pub port: u32,
    pub max_tag_length: Option<u32>,
    pub http: Option<OtlpHttp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OtlpHttp {
    pub path: String,
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
}

/// `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PrometheusProvider {}

/// Providers that are used where no Telemetry says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultProviders {
    pub tracing: Vec<String>,
    pub metrics: Vec<String>,
    pub access_logging: Vec<String>,
}
