//! Tracers, and services that take access logs.

use std::sync::Arc;
use std::time::Duration;

use super::{Result, Within, decode, error, refuse, value};
use crate::collector::{Collector, Report};
use crate::http::{Tag, TagValue, Tracing};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::trace::v3 as trace;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as manager;
use crate::pb::envoy::r#type::tracing::v3::{CustomTag, custom_tag};

/// How long a collector may take where nobody says.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's longest `http.url` in a span.
const TAG_BYTES: usize = 256;
const TAGS_MAX: usize = 64;

pub(super) fn tracing(message: &manager::Tracing) -> Result<Tracing> {
    let (collector, unknown) = provider(message.provider.as_ref()).at("provider")?;
    refuse(message.custom_tags.len() > TAGS_MAX, "custom_tags")?;
    let tags = message.custom_tags.iter().filter_map(tag).collect();
    Ok(Tracing {
        collector,
        unknown,
        tags,
        tag_bytes_max: value::uint(&message.max_path_tag_length)
            .map_or(TAG_BYTES, |max| max as usize),
        client_sampling: value::percent(&message.client_sampling, 100.0).at("client_sampling")?,
        random_sampling: value::percent(&message.random_sampling, 100.0).at("random_sampling")?,
        overall_sampling: value::percent(&message.overall_sampling, 100.0)
            .at("overall_sampling")?,
    })
}

/// Tags of metadata have nothing to tell here: no filter of ours makes any.
fn tag(message: &CustomTag) -> Option<Tag> {
    let value = match message.r#type.as_ref()? {
        custom_tag::Type::Literal(literal) => TagValue::Literal(Arc::from(&*literal.value)),
        custom_tag::Type::Environment(from) => TagValue::Environment {
            name: from.name.as_str().into(),
            default: from.default_value.as_str().into(),
        },
        custom_tag::Type::RequestHeader(from) => TagValue::Header {
            name: from.name.to_ascii_lowercase().into(),
            default: from.default_value.as_str().into(),
        },
        custom_tag::Type::Metadata(_) | custom_tag::Type::Value(_) => return None,
    };
    Some(Tag { name: message.tag.as_str().into(), value })
}

/// Where spans go, else what was asked for and is not there.
type Tracer = (Option<Arc<Collector>>, Option<Box<str>>);

/// A tracer that we do not have is left out, and its name told: spans are no reason to refuse traffic.
fn provider(provider: Option<&trace::tracing::Http>) -> Result<Tracer> {
    let Some(provider) = provider else { return Ok((None, None)) };
    let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = &provider.config_type else {
        return Ok((None, Some(provider.name.as_str().into())));
    };
    let collector = match value::message_name(any) {
        "envoy.config.trace.v3.ZipkinConfig" => zipkin(&decode(any)?),
        "envoy.config.trace.v3.OpenTelemetryConfig" => open_telemetry(&decode(any)?)?,
        other => return Ok((None, Some(other.into()))),
    };
    Ok((Some(Arc::new(collector)), None))
}

fn zipkin(message: &trace::ZipkinConfig) -> Collector {
    let host = match message.collector_hostname.as_str() {
        "" => &message.collector_cluster,
        host => host,
    };
    Collector {
        cluster: Arc::from(&*message.collector_cluster),
        host: Arc::from(host),
        path: Arc::from(&*message.collector_endpoint),
        report: Report::Zipkin { shared: value::boolean(&message.shared_span_context, true) },
        grpc: false,
        name: Arc::from(""),
        timeout: TIMEOUT,
    }
}

#[allow(deprecated)] // `exporter` and samplers are read by nobody here.
fn open_telemetry(message: &trace::OpenTelemetryConfig) -> Result<Collector> {
    let collector = match (&message.grpc_service, &message.http_service) {
        (Some(service), None) => grpc(service, Report::OtlpSpans).at("grpc_service")?,
        (None, Some(service)) => http(service, Report::OtlpSpans).at("http_service")?,
        _ => return error("", "needs either grpc_service or http_service"),
    };
    Ok(Collector { name: Arc::from(&*message.service_name), ..collector })
}

pub(super) fn grpc(service: &core::GrpcService, report: Report) -> Result<Collector> {
    use core::grpc_service::TargetSpecifier;
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = &service.target_specifier else {
        return error("", "only envoy_grpc is supported");
    };
    let host = match envoy.authority.as_str() {
        "" => &envoy.cluster_name,
        authority => authority,
    };
    Ok(Collector {
        cluster: Arc::from(&*envoy.cluster_name),
        host: Arc::from(host),
        path: Arc::from(Collector::grpc_path(report)),
        report,
        grpc: true,
        name: Arc::from(""),
        timeout: value::duration_opt(&service.timeout).at("timeout")?.unwrap_or(TIMEOUT),
    })
}

pub(super) fn http(service: &core::HttpService, report: Report) -> Result<Collector> {
    let Some(uri) = &service.http_uri else { return error("http_uri", "is required") };
    refuse(!service.request_headers_to_add.is_empty(), "request_headers_to_add")?;
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return error("http_uri.cluster", "is required");
    };
    let rest = uri.uri.split_once("://").map_or(uri.uri.as_str(), |(_, rest)| rest);
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    Ok(Collector {
        cluster: Arc::from(&**cluster),
        host: Arc::from(if host.is_empty() { cluster } else { host }),
        path: Arc::from(path),
        report,
        grpc: false,
        name: Arc::from(""),
        timeout: value::duration_opt(&uri.timeout).at("http_uri.timeout")?.unwrap_or(TIMEOUT),
    })
}
