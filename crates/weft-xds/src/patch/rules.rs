//! Envoy's own constraints on fields (`validate.rules` of its protos), as far as a control plane
//! must keep them: a message that breaks one is refused whole by the proxy.

use prost_reflect::{DynamicMessage, ExtensionDescriptor, Kind, ReflectMessage as _, Value};

use super::{Extent, Problem};
use crate::json;
use crate::pb::google::protobuf::Any;

pub(super) fn check(
    message: &DynamicMessage,
    extent: Extent,
    path: &str,
    problems: &mut Vec<Problem>,
) {
    let pool = json::extensions();
    let extension = |name| pool.get_extension_by_name(name);
    let (Some(of_field), Some(of_oneof)) =
        (extension("validate.rules"), extension("validate.required"))
    else {
        return;
    };
    Rules { of_field, of_oneof, problems }.message(message, extent, path);
}

struct Rules<'a> {
    of_field: ExtensionDescriptor,
    of_oneof: ExtensionDescriptor,
    problems: &'a mut Vec<Problem>,
}

impl Rules<'_> {
    fn broken(&mut self, path: &str, reason: impl Into<String>) {
        let (path, reason) = (path.to_owned(), reason.into());
        self.problems.push(Problem { path, reason, fatal: true });
    }

    fn message(&mut self, message: &DynamicMessage, extent: Extent, path: &str) {
        let descriptor = message.descriptor();
        if descriptor.full_name() == "google.protobuf.Any" {
            return self.any(message, extent, path);
        }
        if descriptor.full_name().starts_with("google.protobuf.") {
            return;
        }
        for oneof in descriptor.oneofs() {
            let required = oneof.options().get_extension(&self.of_oneof).as_bool() == Some(true);
            if required && extent == Extent::Whole && !oneof.fields().any(|f| message.has_field(&f))
            {
                let names: Vec<String> = oneof.fields().map(|f| f.name().to_owned()).collect();
                self.broken(path, format!("one of {} is required", names.join(", ")));
            }
        }
        for field in descriptor.fields() {
            let at = format!("{path}.{}", field.name());
            let options = field.options();
            let rules = options
                .has_extension(&self.of_field)
                .then(|| options.get_extension(&self.of_field).into_owned());
            let has = message.has_field(&field);
            if let Some(Value::Message(rules)) = &rules {
                if !has {
                    if extent == Extent::Whole && field.containing_oneof().is_none() {
                        self.absent(rules, &at);
                    }
                    continue;
                }
                self.value(rules, &message.get_field(&field), &at);
            }
            if has && matches!(field.kind(), Kind::Message(_)) {
                self.inside(&message.get_field(&field), extent, &at);
            }
        }
    }

    /// Messages below: an item of a list or map is a message of its own.
    fn inside(&mut self, value: &Value, extent: Extent, path: &str) {
        match value {
            Value::Message(inner) => self.message(inner, extent, path),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Message(inner) = item {
                        self.message(inner, Extent::Whole, &format!("{path}[{index}]"));
                    }
                }
            }
            Value::Map(entries) => {
                for (key, item) in entries {
                    if let (Some(key), Value::Message(inner)) = (key.as_str(), item) {
                        self.message(inner, Extent::Whole, &format!("{path}[{key:?}]"));
                    }
                }
            }
            _ => {}
        }
    }

    fn any(&mut self, message: &DynamicMessage, extent: Extent, path: &str) {
        let Ok(any) = message.transcode_to::<Any>() else { return };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let Some(descriptor) = json::extensions().get_message_by_name(name) else { return };
        if let Ok(inner) = DynamicMessage::decode(descriptor, &any.value[..]) {
            self.message(&inner, extent, path);
        }
    }

    /// A field that is not there, though it must be.
    fn absent(&mut self, rules: &DynamicMessage, path: &str) {
        let required =
            |kind: &str| of_kind(rules, kind).is_some_and(|rules| flag(&rules, "required"));
        let least = |kind: &str, name: &str| {
            of_kind(rules, kind).and_then(|rules| number(&rules, name)).is_some_and(|n| n > 0.0)
        };
        let empty_allowed =
            |kind: &str| of_kind(rules, kind).is_some_and(|rules| flag(&rules, "ignore_empty"));
        let text = (least("string", "min_len") || least("string", "min_bytes"))
            && !empty_allowed("string");
        let list = least("repeated", "min_items") && !empty_allowed("repeated");
        if required("message") || required("duration") || required("any") || text || list {
            self.broken(path, "is required");
        }
    }

    /// A value that is out of its range.
    fn value(&mut self, rules: &DynamicMessage, value: &Value, path: &str) {
        let number_of = |value: &Value| match value {
            Value::U32(n) => Some((f64::from(*n), "uint32")),
            Value::I32(n) => Some((f64::from(*n), "int32")),
            Value::U64(n) => Some((*n as f64, "uint64")),
            Value::I64(n) => Some((*n as f64, "int64")),
            Value::F64(n) => Some((*n, "double")),
            Value::F32(n) => Some((f64::from(*n), "float")),
            _ => None,
        };
        match value {
            Value::EnumNumber(n) => self.enumeration(rules, *n, path),
            Value::String(text) => {
                let max = of_kind(rules, "string").and_then(|rules| {
                    number(&rules, "max_len").or_else(|| number(&rules, "max_bytes"))
                });
                if max.is_some_and(|max| text.len() as f64 > max) {
                    self.broken(path, "is too long");
                }
            }
            Value::Message(inner) => match inner.descriptor().full_name() {
                "google.protobuf.Duration" => self.duration(rules, inner, path),
                name if name.starts_with("google.protobuf.") && name.ends_with("Value") => {
                    let wrapped = inner.get_field_by_name("value");
                    if let Some((n, kind)) = wrapped.as_deref().and_then(number_of) {
                        self.range(rules, kind, n, path);
                    }
                }
                _ => {}
            },
            other => {
                if let Some((n, kind)) = number_of(other) {
                    self.range(rules, kind, n, path);
                }
            }
        }
    }

    fn enumeration(&mut self, rules: &DynamicMessage, n: i32, path: &str) {
        let Some(rules) = of_kind(rules, "enum") else { return };
        let banned = rules.get_field_by_name("not_in");
        let is = |value: &Value| value.as_i32() == Some(n);
        if banned.as_deref().and_then(Value::as_list).is_some_and(|list| list.iter().any(is)) {
            self.broken(path, "this value is not allowed");
        }
    }

    fn duration(&mut self, rules: &DynamicMessage, value: &DynamicMessage, path: &str) {
        let seconds = |message: &DynamicMessage| {
            let part = |name| message.get_field_by_name(name).map(|v| v.into_owned());
            let whole = part("seconds").and_then(|v| v.as_i64()).unwrap_or(0) as f64;
            whole + f64::from(part("nanos").and_then(|v| v.as_i32()).unwrap_or(0)) / 1e9
        };
        let Some(rules) = of_kind(rules, "duration") else { return };
        let bound = |name: &str| {
            rules.has_field_by_name(name).then(|| {
                let bound = rules.get_field_by_name(name).map(|v| v.into_owned());
                bound.as_ref().and_then(Value::as_message).map_or(0.0, &seconds)
            })
        };
        let value = seconds(value);
        if bound("gt").is_some_and(|b| value <= b)
            || bound("gte").is_some_and(|b| value < b)
            || bound("lt").is_some_and(|b| value >= b)
            || bound("lte").is_some_and(|b| value > b)
        {
            self.broken(path, "is out of range");
        }
    }

    fn range(&mut self, rules: &DynamicMessage, kind: &str, value: f64, path: &str) {
        let Some(rules) = of_kind(rules, kind) else { return };
        let bound = |name: &str| number(&rules, name);
        let (gt, gte, lt, lte) = (bound("gt"), bound("gte"), bound("lt"), bound("lte"));
        if gt.is_some_and(|b| value <= b)
            || gte.is_some_and(|b| value < b)
            || lt.is_some_and(|b| value >= b)
            || lte.is_some_and(|b| value > b)
        {
            let range: Vec<String> = [(">", gt), (">=", gte), ("<", lt), ("<=", lte)]
                .iter()
                .filter_map(|(sign, bound)| bound.map(|bound| format!("{sign} {bound}")))
                .collect();
            self.broken(path, format!("{value} is out of range: {}", range.join(" and ")));
        }
    }
}

/// The rules for one kind of value (`FieldRules.uint32`, …).
fn of_kind(rules: &DynamicMessage, kind: &str) -> Option<DynamicMessage> {
    if !rules.has_field_by_name(kind) {
        return None;
    }
    rules.get_field_by_name(kind)?.as_message().cloned()
}

fn flag(rules: &DynamicMessage, name: &str) -> bool {
    rules.get_field_by_name(name).is_some_and(|value| value.as_bool() == Some(true))
}

/// A bound, when it is set.
fn number(rules: &DynamicMessage, name: &str) -> Option<f64> {
    if !rules.has_field_by_name(name) {
        return None;
    }
    match &*rules.get_field_by_name(name)? {
        Value::U32(n) => Some(f64::from(*n)),
        Value::I32(n) => Some(f64::from(*n)),
        Value::U64(n) => Some(*n as f64),
        Value::I64(n) => Some(*n as f64),
        Value::F64(n) => Some(*n),
        Value::F32(n) => Some(f64::from(*n)),
        _ => None,
    }
}
