//! Access logs. A log we cannot write is not a reason to refuse traffic: unknown sinks are left out
//! and told by name. An unknown operator or filter in
//! a log that we write is refused: it would write other lines than were asked for.

use std::sync::Arc;

use weft_cel::Program;

use super::{Result, Within, collector, decode, error, list, matchers, value};
use crate::access_log::{AccessLog, AccessLogs, Compare, LineFormat, LogFilter, LogTarget};
use crate::collector::{Collector, Report};
use crate::format::{Format, Json, JsonFormat};
use crate::log_entry::{EntryHeaders, Record};
use crate::matcher::Fraction;
use crate::pb::envoy::config::accesslog::v3 as pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use crate::pb::envoy::extensions::access_loggers::{
    file::v3 as file, grpc::v3 as als, open_telemetry::v3 as otel, stream::v3 as stream,
};
use crate::pb::google::protobuf::{Struct, Value, value::Kind};
use crate::pb::opentelemetry::proto::common::v1 as otlp;

/// Envoy's line where a log says nothing of its format.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

pub(super) fn lower(logs: &[pb::AccessLog]) -> Result<Option<Arc<AccessLogs>>> {
    let (mut lowered, mut unknown) = (Vec::new(), Vec::new());
    for (index, log) in logs.iter().enumerate() {
        match one(log).item("", index)? {
            Ok(log) => lowered.push(log),
            Err(sink) => unknown.push(sink),
        }
    }
    Ok(AccessLogs::new(lowered, unknown))
}

/// The log, or the sink that we do not have.
fn one(log: &pb::AccessLog) -> Result<std::result::Result<AccessLog, Box<str>>> {
    let Some(pb::access_log::ConfigType::TypedConfig(any)) = &log.config_type else {
        return Ok(Err(log.name.as_str().into()));
    };
    let (target, line) = match value::message_name(any) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => file_log(&decode(any)?)?,
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            use stream::stdout_access_log::AccessLogFormat::LogFormat;
            let message: stream::StdoutAccessLog = decode(any)?;
            let format = message.access_log_format.map(|LogFormat(format)| format);
            (LogTarget::Stdout, log_format(&format.unwrap_or_default())?)
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            use stream::stderr_access_log::AccessLogFormat::LogFormat;
            let message: stream::StderrAccessLog = decode(any)?;
            let format = message.access_log_format.map(|LogFormat(format)| format);
            (LogTarget::Stderr, log_format(&format.unwrap_or_default())?)
        }
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
            http_entries(&decode(any)?)?
        }
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
            let message: als::TcpGrpcAccessLogConfig = decode(any)?;
            (service(&message.common_config, Report::TcpEntries)?, LineFormat::TcpEntry)
        }
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
            record(&decode(any)?)?
        }
        other => return Ok(Err(other.into())),
    };
    let filter = log.filter.as_ref().map(|message| filter(message, 0)).transpose().at("filter")?;
    Ok(Ok(AccessLog { target, filter, line }))
}

fn http_entries(message: &als::HttpGrpcAccessLogConfig) -> Result<(LogTarget, LineFormat)> {
    let names = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let headers = EntryHeaders {
        request: names(&message.additional_request_headers_to_log),
        response: names(&message.additional_response_headers_to_log),
        trailers: names(&message.additional_response_trailers_to_log),
    };
    let target = service(&message.common_config, Report::HttpEntries)?;
    Ok((target, LineFormat::HttpEntry(headers)))
}

/// Filter state of other filters and custom tags have nothing to tell here.
fn service(common: &Option<als::CommonGrpcAccessLogConfig>, report: Report) -> Result<LogTarget> {
    let Some(common) = common else { return error("common_config", "is required") };
    let Some(to) = &common.grpc_service else { return error("grpc_service", "is required") };
    let collector = collector::grpc(to, report).at("grpc_service")?;
    let name = Arc::from(&*common.log_name);
    Ok(LogTarget::Service(Arc::new(Collector { name, ..collector })))
}

#[allow(deprecated)] // `common_config` is what Istio sends.
fn record(message: &otel::OpenTelemetryAccessLogConfig) -> Result<(LogTarget, LineFormat)> {
    let target = match (&message.common_config, &message.grpc_service, &message.http_service) {
        (Some(_), None, None) => service(&message.common_config, Report::OtlpLogs)?,
        (_, Some(to), None) => {
            let collector = collector::grpc(to, Report::OtlpLogs).at("grpc_service")?;
            let name = Arc::from(&*message.log_name);
            LogTarget::Service(Arc::new(Collector { name, ..collector }))
        }
        (_, None, Some(to)) => {
            let collector = collector::http(to, Report::OtlpLogs).at("http_service")?;
            let name = Arc::from(&*message.log_name);
            LogTarget::Service(Arc::new(Collector { name, ..collector }))
        }
        _ => return error("", "needs one of common_config, grpc_service, http_service"),
    };
    let format = |value: &Option<otlp::AnyValue>| -> Result<Option<Format>> {
        match value.as_ref().and_then(|value| value.value.as_ref()) {
            None => Ok(None),
            Some(otlp::any_value::Value::StringValue(text)) => {
                match Format::parse_line(text, false) {
                    Ok(format) => Ok(Some(format)),
                    Err(bad) => error("", bad.to_string()),
                }
            }
            Some(_) => error("", "only text is supported"),
        }
    };
    let body = format(&message.body).at("body")?;
    let mut attributes = Vec::new();
    for pair in message.attributes.iter().flat_map(|list| &list.values) {
        if let Some(value) = format(&pair.value).at("attributes")? {
            attributes.push((pair.key.clone(), value));
        }
    }
    Ok((target, LineFormat::Record(Record { body, attributes })))
}

#[allow(deprecated)] // Flat formats are still what many configurations use.
fn file_log(message: &file::FileAccessLog) -> Result<(LogTarget, LineFormat)> {
    use file::file_access_log::AccessLogFormat as Form;
    let target = match &*message.path {
        "" => return error("path", "a file is required"),
        "/dev/stdout" => LogTarget::Stdout,
        "/dev/stderr" => LogTarget::Stderr,
        path => LogTarget::File(Arc::from(path)),
    };
    let line = match &message.access_log_format {
        None => text("", false)?,
        Some(Form::Format(format)) => text(format, false)?,
        Some(Form::JsonFormat(format) | Form::TypedJsonFormat(format)) => json(format, false)?,
        Some(Form::LogFormat(format)) => log_format(format)?,
    };
    Ok((target, line))
}

#[allow(deprecated)] // `text_format` is deprecated for `text_format_source`.
fn log_format(message: &core::SubstitutionFormatString) -> Result<LineFormat> {
    use core::substitution_format_string::Format as Form;
    let omit_empty = message.omit_empty_values;
    match &message.format {
        None => text("", omit_empty),
        Some(Form::TextFormat(format)) => text(format, omit_empty),
        Some(Form::TextFormatSource(source)) => match value::inline_data(source) {
            Some(bytes) => text(&String::from_utf8_lossy(bytes), omit_empty),
            None => error("text_format_source", "only inline text is supported"),
        },
        Some(Form::JsonFormat(format)) => json(format, omit_empty),
    }
}

fn text(format: &str, omit_empty: bool) -> Result<LineFormat> {
    let format = if format.is_empty() { DEFAULT } else { format };
    match Format::parse_line(format, omit_empty) {
        Ok(format) => Ok(LineFormat::Text(format)),
        Err(bad) => error("format", bad.to_string()),
    }
}

fn json(format: &Struct, omit_empty: bool) -> Result<LineFormat> {
    match JsonFormat::parse(object(format, 0)?, omit_empty) {
        Ok(format) => Ok(LineFormat::Json(format)),
        Err(bad) => error("json_format", bad.to_string()),
    }
}

/// Bound on nesting, of JSON and of filters.
const DEPTH_MAX: usize = 16;

fn object(message: &Struct, depth: usize) -> Result<Json> {
    if depth > DEPTH_MAX {
        return error("json_format", format!("is nested deeper than {DEPTH_MAX}"));
    }
    let fields = message.fields.iter().map(|(name, value)| Ok((name.clone(), leaf(value, depth)?)));
    Ok(Json::Object(fields.collect::<Result<_>>()?))
}

fn leaf(value: &Value, depth: usize) -> Result<Json> {
    Ok(match &value.kind {
        Some(Kind::StringValue(text)) => Json::Text(text.clone()),
        Some(Kind::NumberValue(number)) => Json::Number(*number),
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::NullValue(_)) | None => Json::Null,
        Some(Kind::StructValue(inner)) => object(inner, depth + 1)?,
        Some(Kind::ListValue(items)) => {
            let items = items.values.iter().map(|item| match depth < DEPTH_MAX {
                true => leaf(item, depth + 1),
                false => error("json_format", format!("is nested deeper than {DEPTH_MAX}")),
            });
            Json::List(items.collect::<Result<_>>()?)
        }
    })
}

fn filter(message: &pb::AccessLogFilter, depth: usize) -> Result<LogFilter> {
    use pb::access_log_filter::FilterSpecifier as Specifier;
    if depth > DEPTH_MAX {
        return error("", format!("is nested deeper than {DEPTH_MAX}"));
    }
    let inner = |filters: &[pb::AccessLogFilter]| {
        list("filters", filters, |message| filter(message, depth + 1))
    };
    Ok(match &message.filter_specifier {
        None => return error("", "a filter is required"),
        Some(Specifier::StatusCodeFilter(status)) => {
            let (compare, value) = comparison(&status.comparison)?;
            LogFilter::Status(compare, value)
        }
        Some(Specifier::DurationFilter(duration)) => {
            let (compare, value) = comparison(&duration.comparison)?;
            LogFilter::DurationMillis(compare, value)
        }
        // Health checks are answered before there is anything to log.
        Some(Specifier::NotHealthCheckFilter(_)) => LogFilter::Always,
        Some(Specifier::RuntimeFilter(share)) => LogFilter::Share {
            fraction: match &share.percent_sampled {
                Some(percent) => value::fraction(percent).at("percent_sampled")?,
                // Without a percentage and a runtime, Envoy logs nothing.
                None => Fraction::NEVER,
            },
            independent: share.use_independent_randomness,
        },
        Some(Specifier::AndFilter(and)) => LogFilter::All(inner(&and.filters)?),
        Some(Specifier::OrFilter(or)) => LogFilter::Any(inner(&or.filters)?),
        Some(Specifier::HeaderFilter(header)) => match &header.header {
            Some(header) => LogFilter::Header(matchers::header(header).at("header_filter")?),
            None => return error("header_filter", "a header is required"),
        },
        Some(Specifier::ResponseFlagFilter(flags)) => {
            LogFilter::Flags(flags.flags.iter().map(|flag| flag.as_str().into()).collect())
        }
        Some(Specifier::GrpcStatusFilter(grpc)) => LogFilter::Grpc {
            statuses: grpc.statuses.iter().map(|&status| status as u8).collect(),
            exclude: grpc.exclude,
        },
        Some(Specifier::ExtensionFilter(extension)) => expression(extension)?,
        Some(
            Specifier::TraceableFilter(_)
            | Specifier::MetadataFilter(_)
            | Specifier::LogTypeFilter(_),
        ) => return error("", "this kind of filter is not supported"),
    })
}

fn comparison(message: &Option<pb::ComparisonFilter>) -> Result<(Compare, u64)> {
    let Some(message) = message else { return error("comparison", "is required") };
    let compare = match message.op {
        0 => Compare::Equal,
        1 => Compare::AtLeast,
        2 => Compare::AtMost,
        3 => Compare::NotEqual,
        other => return error("comparison.op", format!("{other} is not known")),
    };
    Ok((compare, message.value.as_ref().map_or(0, |value| value.default_value.into())))
}

fn expression(extension: &pb::ExtensionFilter) -> Result<LogFilter> {
    let Some(pb::extension_filter::ConfigType::TypedConfig(any)) = &extension.config_type else {
        return error("extension_filter", "has no configuration");
    };
    let message: ExpressionFilter = decode(any).at("extension_filter")?;
    match Program::compile(&message.expression) {
        Ok(program) => Ok(LogFilter::Cel(program)),
        Err(bad) => error("extension_filter.expression", bad.to_string()),
    }
}
