//! Access log sinks. A log we cannot write is not a reason to refuse traffic: unknown sinks are left
//! out, which is the one place where lowering drops something on purpose.

use std::sync::Arc;

use super::{Result, decode, value};
use crate::http::{AccessLog, AccessLogFormat, AccessLogTarget};
use crate::pb::envoy::config::accesslog::v3 as pb;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::access_loggers::{file::v3 as file, stream::v3 as stream};
use crate::pb::google::protobuf::{Struct, value::Kind};

pub(super) fn lower(logs: &[pb::AccessLog]) -> Result<Vec<AccessLog>> {
    let mut lowered = Vec::new();
    for log in logs {
        let Some(pb::access_log::ConfigType::TypedConfig(any)) = &log.config_type else { continue };
        match value::message_name(any) {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                lowered.push(file_log(&decode(any)?));
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let message: stream::StdoutAccessLog = decode(any)?;
                let stream::stdout_access_log::AccessLogFormat::LogFormat(format) =
                    match &message.access_log_format {
                        Some(format) => format,
                        None => &stream::stdout_access_log::AccessLogFormat::LogFormat(
                            core::SubstitutionFormatString::default(),
                        ),
                    };
                lowered.push(AccessLog {
                    target: AccessLogTarget::Stdout,
                    format: log_format(format),
                });
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let message: stream::StderrAccessLog = decode(any)?;
                let format = match &message.access_log_format {
                    Some(stream::stderr_access_log::AccessLogFormat::LogFormat(format)) => {
                        log_format(format)
                    }
                    None => AccessLogFormat::Default,
                };
                lowered.push(AccessLog { target: AccessLogTarget::Stderr, format });
            }
            _ => {}
        }
    }
    Ok(lowered)
}

#[allow(deprecated)] // Flat formats are still what many configurations use.
fn file_log(message: &file::FileAccessLog) -> AccessLog {
    use file::file_access_log::AccessLogFormat as Format;
    let target = match &*message.path {
        "/dev/stdout" => AccessLogTarget::Stdout,
        "/dev/stderr" => AccessLogTarget::Stderr,
        path => AccessLogTarget::File(Arc::from(path)),
    };
    let format = match &message.access_log_format {
        None => AccessLogFormat::Default,
        Some(Format::Format(text)) => text_format(text),
        Some(Format::JsonFormat(json) | Format::TypedJsonFormat(json)) => json_format(json),
        Some(Format::LogFormat(format)) => log_format(format),
    };
    AccessLog { target, format }
}

#[allow(deprecated)] // `text_format` is deprecated for `text_format_source`.
fn log_format(message: &core::SubstitutionFormatString) -> AccessLogFormat {
    use core::substitution_format_string::Format;
    match &message.format {
        None => AccessLogFormat::Default,
        Some(Format::TextFormat(text)) => text_format(text),
        Some(Format::TextFormatSource(source)) => match value::inline_data(source) {
            Some(bytes) => text_format(&String::from_utf8_lossy(bytes)),
            None => AccessLogFormat::Default,
        },
        Some(Format::JsonFormat(json)) => json_format(json),
    }
}

fn text_format(text: &str) -> AccessLogFormat {
    match text.is_empty() {
        true => AccessLogFormat::Default,
        false => AccessLogFormat::Text(Arc::from(text)),
    }
}

fn json_format(json: &Struct) -> AccessLogFormat {
    let mut fields = Vec::new();
    flatten("", json, &mut fields, 0);
    fields.sort();
    AccessLogFormat::Json(fields)
}

/// Bound on nesting; deeper fields are left out.
const DEPTH_MAX: usize = 8;

fn flatten(prefix: &str, json: &Struct, fields: &mut Vec<(Arc<str>, Arc<str>)>, depth: usize) {
    for (name, value) in &json.fields {
        let name = format!("{prefix}{name}");
        match &value.kind {
            Some(Kind::StringValue(text)) => fields.push((Arc::from(name), Arc::from(&**text))),
            Some(Kind::StructValue(inner)) if depth < DEPTH_MAX => {
                flatten(&format!("{name}."), inner, fields, depth + 1);
            }
            Some(Kind::NumberValue(number)) => {
                fields.push((Arc::from(name), Arc::from(number.to_string())));
            }
            Some(Kind::BoolValue(value)) => {
                fields.push((Arc::from(name), Arc::from(value.to_string())));
            }
            _ => {}
        }
    }
}
