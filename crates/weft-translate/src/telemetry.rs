//! Access logs and traces as MeshConfig and Telemetry resources ask for them, as Istio builds them.
//!
//! Without Telemetry the mesh's `accessLogFile` counts, else the providers: of the resources that
//! apply (mesh, namespace, workload) the later one decides which providers log and how.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value as Json;
use weft_model::spec::{
    AccessLogging, CustomTag, ExtensionProvider, FileLogProvider, GrpcLogProvider, LogEncoding,
    MeshConfig, OpenTelemetryProvider, OtelLogProvider, WorkloadMode, ZipkinProvider,
};
use weft_xds::names;
use weft_xds::pb::envoy::config::accesslog::v3 as accesslog;
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::trace::v3 as trace;
use weft_xds::pb::envoy::extensions::access_loggers::file::v3 as file;
use weft_xds::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use weft_xds::pb::envoy::extensions::access_loggers::grpc::v3 as als;
use weft_xds::pb::envoy::extensions::access_loggers::open_telemetry::v3 as otel;
use weft_xds::pb::envoy::r#type::tracing::v3 as tags;
use weft_xds::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use weft_xds::pb::opentelemetry::proto::common::v1 as otlp;

use crate::build::any;
use crate::build::hcm::Side;
use crate::scope::Scope;
use crate::view::Flavor;

/// Istio's line where nobody says otherwise.
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
    %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% \
    %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
    \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" \
    %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The same as JSON.
const JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// What a provider is to log: everything, or what an expression admits.
type Wanted<'a> = BTreeMap<&'a str, Option<&'a str>>;

/// The access logs of connection managers and TCP proxies on one side of a workload.
pub(crate) fn access_logs(scope: &Scope<'_>, side: Side) -> Vec<accesslog::AccessLog> {
    let mesh = scope.snapshot.mesh();
    let Some(wanted) = wanted(scope, side) else {
        return match mesh.access_log_file.as_str() {
            "" => Vec::new(),
            path => vec![file_log(path, mesh_format(mesh))],
        };
    };
    let mut logs = Vec::new();
    for (name, expression) in wanted {
        let Some(provider) = scope.snapshot.provider(name) else { continue };
        if let Some(mut log) = of_provider(scope, &provider) {
            log.filter = expression.map(filter);
            logs.push(log);
        }
    }
    logs
}

/// What listeners log of connections that no filter chain takes.
pub(crate) fn listener_logs(scope: &Scope<'_>, side: Side) -> Vec<accesslog::AccessLog> {
    use accesslog::access_log_filter::FilterSpecifier;
    if scope.snapshot.mesh().disable_envoy_listener_log {
        return Vec::new();
    }
    let unrouted = accesslog::AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(
            accesslog::ResponseFlagFilter { flags: vec!["NR".to_owned()] },
        )),
    };
    let mut logs = access_logs(scope, side);
    for log in &mut logs {
        log.filter = Some(match log.filter.take() {
            None => unrouted.clone(),
            Some(own) => accesslog::AccessLogFilter {
                filter_specifier: Some(FilterSpecifier::AndFilter(accesslog::AndFilter {
                    filters: vec![unrouted.clone(), own],
                })),
            },
        });
    }
    logs
}

/// What connection managers do about traces.
pub(crate) struct Tracing {
    /// Percent of traces started here that are sampled, 0 to 100.
    pub(crate) sampling: f64,
    /// Where spans go, if anywhere.
    pub(crate) provider: Option<trace::tracing::Http>,
    pub(crate) custom_tags: Vec<tags::CustomTag>,
    /// Longest `http.url` of a span, in bytes.
    pub(crate) tag_bytes_max: Option<u32>,
}

/// Sampling and the collector: the mesh's settings, then Telemetry, the narrower scope last.
pub(crate) fn tracing(scope: &Scope<'_>, side: Side) -> Tracing {
    let mesh = scope.snapshot.mesh();
    let mut sampling = scope.sampling();
    let mut off = mesh.enable_tracing == Some(false);
    let default = mesh.default_providers.as_ref().and_then(|default| default.tracing.first());
    let mut provider = default.map(String::as_str);
    let mut custom_tags = BTreeMap::new();
    let view = scope.view;
    for resource in scope.snapshot.telemetries_for(&view.namespace, &view.labels) {
        for rule in &resource.spec.tracing {
            if !is_for(rule.matches.map(|matches| matches.mode).unwrap_or_default(), side) {
                continue;
            }
            sampling = rule.random_sampling_percentage.unwrap_or(sampling);
            off = rule.disable_span_reporting.unwrap_or(off);
            // The narrower scope's take the place of the wider one's, as in Istio.
            if !rule.custom_tags.is_empty() {
                custom_tags.clone_from(&rule.custom_tags);
            }
            provider = rule.providers.first().map(|named| named.name.as_str()).or(provider);
        }
    }
    let settings = scope.config().tracing.as_ref();
    let mut tag_bytes_max = settings.and_then(|settings| settings.max_path_tag_length);
    let provider = match provider {
        _ if off => None,
        Some(name) => match scope.snapshot.provider(name) {
            Some(ExtensionProvider { zipkin: Some(to), .. }) => {
                tag_bytes_max = to.max_tag_length.or(tag_bytes_max);
                zipkin_tracer(scope, &to)
            }
            Some(ExtensionProvider { opentelemetry: Some(to), .. }) => {
                tag_bytes_max = to.max_tag_length.or(tag_bytes_max);
                otlp_tracer(scope, &to)
            }
            _ => None,
        },
        None => {
            let address = settings.and_then(|settings| settings.zipkin.as_ref());
            address.and_then(|zipkin| zipkin_at(scope, &zipkin.address))
        }
    };
    let custom_tags = custom_tags.iter().filter_map(|(name, tag)| custom_tag(name, tag)).collect();
    Tracing { sampling, provider, custom_tags, tag_bytes_max }
}

fn custom_tag(name: &str, tag: &CustomTag) -> Option<tags::CustomTag> {
    use tags::custom_tag::{Environment, Header, Literal, Type};
    let CustomTag { literal, environment, header, formatter } = tag;
    let kind = match (literal, environment, header, formatter) {
        (Some(literal), ..) => Type::Literal(Literal { value: literal.value.clone() }),
        (_, Some(from), ..) => Type::Environment(Environment {
            name: from.name.clone(),
            default_value: from.default_value.clone(),
        }),
        (_, _, Some(from), _) => Type::RequestHeader(Header {
            name: from.name.clone(),
            default_value: from.default_value.clone(),
        }),
        (.., Some(format)) => Type::Value(format.value.clone()),
        (None, None, None, None) => return None,
    };
    Some(tags::CustomTag { tag: name.to_owned(), r#type: Some(kind) })
}

/// None: there is no such service.
fn otlp_tracer(scope: &Scope<'_>, to: &OpenTelemetryProvider) -> Option<trace::tracing::Http> {
    let (host, cluster) = provider_cluster(scope, &to.service, to.port)?;
    // Our own proxy knows its name.
    let app = scope.view.labels.get("app").filter(|_| scope.view.flavor == Flavor::Envoy);
    let mut config = trace::OpenTelemetryConfig {
        service_name: app.map(|app| format!("{app}.{}", scope.view.namespace)).unwrap_or_default(),
        ..Default::default()
    };
    match &to.http {
        None => config.grpc_service = Some(grpc_service(scope, &to.service, to.port)?),
        Some(http) => {
            let timeout = http.timeout.unwrap_or(Duration::from_secs(10));
            config.http_service = Some(core::HttpService {
                http_uri: Some(core::HttpUri {
                    uri: format!("http://{host}:{}{}", to.port, http.path),
                    timeout: crate::build::duration(timeout),
                    http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster)),
                }),
                ..Default::default()
            });
        }
    }
    Some(trace::tracing::Http {
        name: "envoy.tracers.opentelemetry".to_owned(),
        config_type: Some(trace::tracing::http::ConfigType::TypedConfig(any(&config))),
    })
}

/// `defaultConfig.tracing.zipkin.address`: `zipkin.istio-system:9411`.
fn zipkin_at(scope: &Scope<'_>, address: &str) -> Option<trace::tracing::Http> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let full = format!("{host}.svc.{}", weft_model::CLUSTER_DOMAIN);
    let service = [host.to_owned(), full].into_iter().find(|host| scope.service(host).is_some())?;
    zipkin_tracer(scope, &ZipkinProvider { service, port, ..Default::default() })
}

/// None: there is no such service.
fn zipkin_tracer(scope: &Scope<'_>, to: &ZipkinProvider) -> Option<trace::tracing::Http> {
    let (host, cluster) = provider_cluster(scope, &to.service, to.port)?;
    let path = if to.path.is_empty() { "/api/v2/spans" } else { &to.path };
    let config = trace::ZipkinConfig {
        collector_cluster: cluster,
        collector_endpoint: path.to_owned(),
        collector_endpoint_version: trace::zipkin_config::CollectorEndpointVersion::HttpJson as i32,
        collector_hostname: host,
        trace_id_128bit: !to.enable_64bit_trace_id,
        // The server's span is the other half of the client's, as our own proxy has it.
        shared_span_context: crate::build::boolean(true),
        ..Default::default()
    };
    Some(trace::tracing::Http {
        name: "envoy.tracers.zipkin".to_owned(),
        config_type: Some(trace::tracing::http::ConfigType::TypedConfig(any(&config))),
    })
}

/// None: neither Telemetry nor default providers have a say.
fn wanted<'a>(scope: &Scope<'a>, side: Side) -> Option<Wanted<'a>> {
    let view = scope.view;
    let resources = scope.snapshot.telemetries_for(&view.namespace, &view.labels);
    let rules: Vec<&AccessLogging> =
        resources.iter().flat_map(|resource| &resource.spec.access_logging).collect();
    let default = scope.snapshot.mesh().default_providers.as_ref();
    let default: Vec<&str> = default
        .map(|default| default.access_logging.iter().map(String::as_str).collect())
        .unwrap_or_default();
    if rules.is_empty() && default.is_empty() {
        return None;
    }
    let mut wanted: Wanted<'a> = Wanted::new();
    let mut providers = default;
    if rules.is_empty() {
        wanted.extend(providers.iter().map(|name| (*name, None)));
    }
    // A narrower scope inherits the providers of the wider one, unless it names its own.
    for resource in &resources {
        let mut named = Vec::new();
        for rule in &resource.spec.access_logging {
            let of_rule: Vec<&str> = match rule.providers.is_empty() {
                true => providers.clone(),
                false => rule.providers.iter().map(|provider| provider.name.as_str()).collect(),
            };
            named.extend(of_rule.iter().copied());
            let mode = rule.matches.map(|matches| matches.mode).unwrap_or_default();
            if !is_for(mode, side) {
                continue;
            }
            for name in of_rule {
                if rule.disabled == Some(true) {
                    wanted.remove(name);
                } else {
                    let expression = rule.filter.as_ref().map(|filter| filter.expression.as_str());
                    wanted.insert(name, expression.filter(|text| !text.is_empty()));
                }
            }
        }
        if !named.is_empty() {
            providers = named;
        }
    }
    Some(wanted)
}

/// Is a rule for this mode about this side? Gateways are clients.
pub(crate) fn is_for(mode: WorkloadMode, side: Side) -> bool {
    match (mode, side) {
        (WorkloadMode::ClientAndServer, _)
        | (WorkloadMode::Server, Side::Inbound)
        | (WorkloadMode::Client, Side::Outbound | Side::Gateway) => true,
        (WorkloadMode::Server, Side::Outbound | Side::Gateway)
        | (WorkloadMode::Client, Side::Inbound) => false,
    }
}

fn of_provider(scope: &Scope<'_>, provider: &ExtensionProvider) -> Option<accesslog::AccessLog> {
    let mesh = scope.snapshot.mesh();
    if let Some(file) = &provider.envoy_file_access_log {
        let path = if file.path.is_empty() { "/dev/stdout" } else { &file.path };
        let plain = file.log_format.is_none() && !file.omit_empty_values;
        let format = match provider.name == "envoy" && plain {
            true => mesh_format(mesh),
            false => provider_format(file),
        };
        return Some(file_log(path, format));
    }
    if let Some(http) = &provider.envoy_http_als {
        let config = als::HttpGrpcAccessLogConfig {
            common_config: Some(als_common(scope, http, "http_envoy_accesslog")?),
            additional_request_headers_to_log: http.additional_request_headers_to_log.clone(),
            additional_response_headers_to_log: http.additional_response_headers_to_log.clone(),
            additional_response_trailers_to_log: http.additional_response_trailers_to_log.clone(),
        };
        return Some(log("envoy.access_loggers.http_grpc", any(&config)));
    }
    if let Some(tcp) = &provider.envoy_tcp_als {
        let common = als_common(scope, tcp, "tcp_envoy_accesslog")?;
        let config = als::TcpGrpcAccessLogConfig { common_config: Some(common) };
        return Some(log("envoy.tcp_grpc_access_log", any(&config)));
    }
    let otel = provider.envoy_otel_als.as_ref()?;
    Some(log("envoy.access_loggers.open_telemetry", any(&otel_config(scope, otel)?)))
}

/// What MeshConfig says of lines.
fn mesh_format(mesh: &MeshConfig) -> core::SubstitutionFormatString {
    match mesh.access_log_encoding {
        LogEncoding::Text => text_format(&mesh.access_log_format, false),
        LogEncoding::Json => json_format(mesh.json_access_log_format().as_ref(), false),
    }
}

fn provider_format(provider: &FileLogProvider) -> core::SubstitutionFormatString {
    let omit_empty = provider.omit_empty_values;
    match &provider.log_format {
        Some(format) if format.labels.is_some() => json_format(format.labels.as_ref(), omit_empty),
        Some(format) => text_format(format.text.as_deref().unwrap_or_default(), omit_empty),
        None => text_format("", omit_empty),
    }
}

fn text_format(text: &str, omit_empty: bool) -> core::SubstitutionFormatString {
    use core::data_source::Specifier;
    let text = match text {
        "" => TEXT.to_owned(),
        text if text.ends_with('\n') => text.to_owned(),
        text => format!("{text}\n"),
    };
    let source =
        core::DataSource { specifier: Some(Specifier::InlineString(text)), ..Default::default() };
    core::SubstitutionFormatString {
        omit_empty_values: omit_empty,
        format: Some(core::substitution_format_string::Format::TextFormatSource(source)),
        ..Default::default()
    }
}

fn json_format(format: Option<&Json>, omit_empty: bool) -> core::SubstitutionFormatString {
    let own = format.and_then(Json::as_object).filter(|fields| !fields.is_empty());
    let fields = match own {
        Some(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), value_of(value))).collect()
        }
        None => JSON.iter().map(|(name, text)| ((*name).to_owned(), string(text))).collect(),
    };
    core::SubstitutionFormatString {
        omit_empty_values: omit_empty,
        format: Some(core::substitution_format_string::Format::JsonFormat(Struct { fields })),
        ..Default::default()
    }
}

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn value_of(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(value_of).collect() })
        }
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(name, value)| (name.clone(), value_of(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

fn file_log(path: &str, format: core::SubstitutionFormatString) -> accesslog::AccessLog {
    let config = file::FileAccessLog {
        path: path.to_owned(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    log("envoy.access_loggers.file", any(&config))
}

fn log(name: &str, config: weft_xds::pb::google::protobuf::Any) -> accesslog::AccessLog {
    accesslog::AccessLog {
        name: name.to_owned(),
        filter: None,
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(config)),
    }
}

fn filter(expression: &str) -> accesslog::AccessLogFilter {
    let config = ExpressionFilter { expression: expression.to_owned(), ..Default::default() };
    let extension = accesslog::ExtensionFilter {
        name: "envoy.access_loggers.extension_filters.cel".to_owned(),
        config_type: Some(accesslog::extension_filter::ConfigType::TypedConfig(any(&config))),
    };
    accesslog::AccessLogFilter {
        filter_specifier: Some(accesslog::access_log_filter::FilterSpecifier::ExtensionFilter(
            extension,
        )),
    }
}

/// None: there is no such service.
fn als_common(
    scope: &Scope<'_>,
    provider: &GrpcLogProvider,
    default_name: &str,
) -> Option<als::CommonGrpcAccessLogConfig> {
    let states = match provider.filter_state_objects_to_log.is_empty() {
        true => vec!["upstream_peer".to_owned(), "downstream_peer".to_owned()],
        false => provider.filter_state_objects_to_log.clone(),
    };
    let name = if provider.log_name.is_empty() { default_name } else { &provider.log_name };
    Some(als::CommonGrpcAccessLogConfig {
        log_name: name.to_owned(),
        grpc_service: Some(grpc_service(scope, &provider.service, provider.port)?),
        transport_api_version: core::ApiVersion::V3 as i32,
        filter_state_objects_to_log: states,
        ..Default::default()
    })
}

fn otel_config(
    scope: &Scope<'_>,
    provider: &OtelLogProvider,
) -> Option<otel::OpenTelemetryAccessLogConfig> {
    let text = |text: &str| otlp::AnyValue {
        value: Some(otlp::any_value::Value::StringValue(text.to_owned())),
    };
    let format = provider.log_format.as_ref();
    let body = format.map(|format| format.text.as_str()).filter(|text| !text.is_empty());
    let labels = format.and_then(|format| format.labels.as_ref()?.as_object());
    let name = match provider.log_name.as_str() {
        "" => "otel_envoy_accesslog",
        name => name,
    };
    #[allow(deprecated)] // As Istio sends it.
    Some(otel::OpenTelemetryAccessLogConfig {
        common_config: Some(als::CommonGrpcAccessLogConfig {
            log_name: name.to_owned(),
            grpc_service: Some(grpc_service(scope, &provider.service, provider.port)?),
            transport_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
        disable_builtin_labels: true,
        body: Some(text(body.unwrap_or(TEXT))),
        attributes: labels.map(|labels| otlp::KeyValueList {
            values: labels
                .iter()
                .map(|(key, value)| otlp::KeyValue {
                    key: key.clone(),
                    value: Some(text(value.as_str().unwrap_or_default())),
                    ..Default::default()
                })
                .collect(),
        }),
        ..Default::default()
    })
}

/// A provider's service, as `host` or `namespace/host`: its host and its cluster.
pub(crate) fn provider_cluster(
    scope: &Scope<'_>,
    service: &str,
    port: u32,
) -> Option<(String, String)> {
    let host = service.rsplit('/').next().unwrap_or(service);
    let port = u16::try_from(port).ok()?;
    scope.service(host)?;
    Some((host.to_owned(), names::outbound_cluster(port, "", host)))
}

fn grpc_service(scope: &Scope<'_>, service: &str, port: u32) -> Option<core::GrpcService> {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let (authority, cluster_name) = provider_cluster(scope, service, port)?;
    let envoy = EnvoyGrpc { cluster_name, authority, ..Default::default() };
    Some(core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)),
        ..Default::default()
    })
}
