//! Access logs as messages: records of OpenTelemetry, and entries of Envoy's access log service.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use prost::Message as _;
use weft_http::{Method, Version};

use crate::format::{Format, Subject, Wants};
use crate::matcher::header_value;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::data::accesslog::v3 as data;
use crate::pb::google::protobuf as wkt;
use crate::pb::opentelemetry::proto::common::v1 as otlp;

/// What a record of OpenTelemetry says.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) body: Option<Format>,
    pub(crate) attributes: Vec<(String, Format)>,
}

/// What an entry has beside what all have. Names in lower case.
#[derive(Debug, Default)]
pub(crate) struct EntryHeaders {
    pub(crate) request: Vec<String>,
    pub(crate) response: Vec<String>,
    pub(crate) trailers: Vec<String>,
}

/// `opentelemetry.proto.logs.v1.LogRecord`
#[derive(Clone, PartialEq, prost::Message)]
struct LogRecord {
    #[prost(fixed64, tag = "1")]
    time_unix_nano: u64,
    #[prost(message, optional, tag = "5")]
    body: Option<otlp::AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<otlp::KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    trace_id: Vec<u8>,
    #[prost(fixed64, tag = "11")]
    observed_time_unix_nano: u64,
}

impl Record {
    pub(crate) fn wants(&self, wants: &mut Wants) {
        self.body.iter().for_each(|body| body.wants(wants));
        self.attributes.iter().for_each(|(_, value)| value.wants(wants));
    }

    pub(crate) fn render_into(&self, out: &mut Vec<u8>, subject: Subject<'_>) {
        let text = |format: &Format| {
            let mut text = Vec::new();
            format.render_into(&mut text, subject);
            let text = String::from_utf8_lossy(&text).into_owned();
            Some(otlp::AnyValue { value: Some(otlp::any_value::Value::StringValue(text)) })
        };
        let started = subject.context.start_time.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let nanos = started.map_or(0, |since| since.as_nanos() as u64);
        let trace = subject.context.ended.map(|ended| ended.trace_id).unwrap_or_default();
        let attributes = self.attributes.iter().map(|(key, format)| otlp::KeyValue {
            key: key.clone(),
            value: text(format),
            ..Default::default()
        });
        let record = LogRecord {
            time_unix_nano: nanos,
            observed_time_unix_nano: nanos,
            body: self.body.as_ref().and_then(text),
            attributes: attributes.collect(),
            trace_id: hex(trace).unwrap_or_default(),
        };
        out.extend_from_slice(&record.encode_to_vec());
    }
}

/// 16 bytes of 32 digits; a shorter id is no OpenTelemetry one.
fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    bytes.collect::<Option<Vec<u8>>>().filter(|bytes| bytes.len() == 16)
}

impl EntryHeaders {
    pub(crate) fn wants(&self, wants: &mut Wants) {
        wants.response.extend(self.response.iter().map(|name| name.as_str().into()));
        wants.trailers.extend(self.trailers.iter().map(|name| name.as_str().into()));
    }

    /// `HTTPAccessLogEntry`
    pub(crate) fn http(&self, out: &mut Vec<u8>, subject: Subject<'_>) {
        let Subject { request, response, context } = subject;
        let ended = context.ended.copied().unwrap_or_default();
        let text = |name: &str| {
            let value = request.and_then(|head| header_value(head, name));
            value.map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let of = |name: &str| text(name).unwrap_or_default();
        let pick = |names: &[String], get: &dyn Fn(&str) -> Option<String>| {
            names.iter().filter_map(|name| Some((name.clone(), get(name)?))).collect()
        };
        let from = |list: Option<&weft_http::HeaderList>, name: &str| {
            list?.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let version = context.protocol.or(request.map(|head| head.version));
        let entry = data::HttpAccessLogEntry {
            common_properties: Some(common(subject)),
            protocol_version: version.map_or(0, |version| match version {
                Version::H10 => 1,
                Version::H11 => 2,
                Version::H2 => 3,
            }),
            request: Some(data::HttpRequestProperties {
                request_method: request.map_or(0, |head| method(&head.method)),
                scheme: request.map(|head| head.scheme.as_str().to_owned()).unwrap_or_default(),
                authority: of(":authority"),
                path: of(":path"),
                user_agent: of("user-agent"),
                referer: of("referer"),
                forwarded_for: of("x-forwarded-for"),
                request_id: of("x-request-id"),
                original_path: of("x-envoy-original-path"),
                request_body_bytes: ended.received_bytes,
                request_headers: pick(&self.request, &text),
                ..Default::default()
            }),
            response: Some(data::HttpResponseProperties {
                response_code: context
                    .response_code
                    .filter(|code| *code > 0)
                    .map(|code| wkt::UInt32Value { value: code.into() }),
                response_body_bytes: ended.sent_bytes,
                response_headers: pick(&self.response, &|name| from(response, name)),
                response_trailers: pick(&self.trailers, &|name| from(ended.trailers, name)),
                response_code_details: ended.code_details.to_owned(),
                ..Default::default()
            }),
        };
        out.extend_from_slice(&entry.encode_to_vec());
    }

    /// `TCPAccessLogEntry`
    pub(crate) fn tcp(out: &mut Vec<u8>, subject: Subject<'_>) {
        let ended = subject.context.ended.copied().unwrap_or_default();
        let entry = data::TcpAccessLogEntry {
            common_properties: Some(common(subject)),
            connection_properties: Some(data::ConnectionProperties {
                received_bytes: ended.received_bytes,
                sent_bytes: ended.sent_bytes,
            }),
        };
        out.extend_from_slice(&entry.encode_to_vec());
    }
}

/// By Envoy's numbers of `RequestMethod`.
fn method(method: &Method) -> i32 {
    match method.as_bytes() {
        b"GET" => 1,
        b"HEAD" => 2,
        b"POST" => 3,
        b"PUT" => 4,
        b"DELETE" => 5,
        b"CONNECT" => 6,
        b"OPTIONS" => 7,
        b"TRACE" => 8,
        b"PATCH" => 9,
        _ => 0,
    }
}

fn common(subject: Subject<'_>) -> data::AccessLogCommon {
    let context = subject.context;
    let ended = context.ended.copied().unwrap_or_default();
    let custom_tags = [
        ("source_workload", ended.downstream_peer.workload),
        ("destination_workload", ended.upstream_peer.workload),
    ];
    let told = custom_tags.into_iter().filter(|(_, value)| !value.is_empty());
    data::AccessLogCommon {
        downstream_remote_address: context.downstream_remote.map(address),
        downstream_direct_remote_address: context.downstream_direct_remote.map(address),
        downstream_local_address: context.downstream_local.map(address),
        upstream_remote_address: context.upstream_remote.map(address),
        upstream_local_address: ended.upstream_local.map(address),
        start_time: context.start_time.and_then(|at| {
            let since = at.duration_since(UNIX_EPOCH).ok()?;
            let (seconds, nanos) = (since.as_secs() as i64, since.subsec_nanos() as i32);
            Some(wkt::Timestamp { seconds, nanos })
        }),
        time_to_last_rx_byte: ended.request_duration.map(duration),
        time_to_first_upstream_rx_byte: ended.response_duration.map(duration),
        time_to_last_downstream_tx_byte: Some(duration(ended.duration)),
        duration: Some(duration(ended.duration)),
        upstream_cluster: context.upstream_cluster.unwrap_or_default().to_owned(),
        route_name: context.route_name.unwrap_or_default().to_owned(),
        response_flags: flags(context.response_flags.unwrap_or_default()),
        upstream_transport_failure_reason: ended.upstream_failure.to_owned(),
        upstream_request_attempt_count: ended.attempts,
        connection_termination_details: ended.termination_details.to_owned(),
        custom_tags: told
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect::<HashMap<_, _>>(),
        ..Default::default()
    }
}

fn address(address: SocketAddr) -> core::Address {
    use core::socket_address::PortSpecifier;
    let socket = core::SocketAddress {
        address: address.ip().to_canonical().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn duration(duration: Duration) -> wkt::Duration {
    wkt::Duration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 }
}

/// None: there are none.
fn flags(names: &str) -> Option<data::ResponseFlags> {
    let mut flags = data::ResponseFlags::default();
    for name in names.split(',') {
        let flag = match name {
            "LH" => &mut flags.failed_local_healthcheck,
            "UH" => &mut flags.no_healthy_upstream,
            "UT" => &mut flags.upstream_request_timeout,
            "LR" => &mut flags.local_reset,
            "UR" => &mut flags.upstream_remote_reset,
            "UF" => &mut flags.upstream_connection_failure,
            "UC" => &mut flags.upstream_connection_termination,
            "UO" => &mut flags.upstream_overflow,
            "NR" => &mut flags.no_route_found,
            "DI" => &mut flags.delay_injected,
            "FI" => &mut flags.fault_injected,
            "RL" => &mut flags.rate_limited,
            "RLSE" => &mut flags.rate_limit_service_error,
            "DC" => &mut flags.downstream_connection_termination,
            "URX" => &mut flags.upstream_retry_limit_exceeded,
            "SI" => &mut flags.stream_idle_timeout,
            "IH" => &mut flags.invalid_envoy_request_headers,
            "DPE" => &mut flags.downstream_protocol_error,
            "UMSDR" => &mut flags.upstream_max_stream_duration_reached,
            "RFCF" => &mut flags.response_from_cache_filter,
            "NFCF" => &mut flags.no_filter_config_found,
            "DT" => &mut flags.duration_timeout,
            "UPE" => &mut flags.upstream_protocol_error,
            "NC" => &mut flags.no_cluster_found,
            "OM" => &mut flags.overload_manager,
            "DF" => &mut flags.dns_resolution_failure,
            _ => continue,
        };
        *flag = true;
    }
    (flags != data::ResponseFlags::default()).then_some(flags)
}
