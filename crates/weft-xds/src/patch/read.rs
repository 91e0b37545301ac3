//! JSON to a message. A field that is not Envoy's is left out with a word; a value that does not
//! fit its field, or an extension that nobody knows, makes the patch unusable.

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{Extent, Patch, Problem, rules};
use crate::canonical::canonical_in;
use crate::json;

/// Wrappers for configuration whose type the sender does not know; ours does.
const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

pub(super) fn read(
    type_name: &str,
    value: &Value,
    extent: Extent,
    path: &str,
) -> (Option<Patch>, Vec<Problem>) {
    let mut problems = Vec::new();
    let pool = json::extensions();
    let Some(descriptor) = pool.get_message_by_name(type_name) else {
        problems.push(fatal(path, format!("unknown message type {type_name:?}")));
        return (None, problems);
    };
    let clean = message(&descriptor, value, path, &mut problems);
    if problems.iter().any(|problem| problem.fatal) {
        return (None, problems);
    }
    let made = match DynamicMessage::deserialize(descriptor.clone(), clean) {
        Ok(made) => made,
        Err(error) => {
            problems.push(fatal(path, error.to_string()));
            return (None, problems);
        }
    };
    // Once through bytes in one order, so that equal patches are equal bytes wherever they go.
    let bytes = canonical_in(pool, type_name, made.encode_to_vec());
    let made = DynamicMessage::decode(descriptor, bytes).unwrap_or(made);
    rules::check(&made, extent, path, &mut problems);
    let usable = !problems.iter().any(|problem| problem.fatal);
    (usable.then_some(Patch(made)), problems)
}

fn fatal(path: &str, reason: String) -> Problem {
    Problem { path: path.to_owned(), reason, fatal: true }
}

/// The JSON of one message, without what is not in it.
fn message(
    descriptor: &MessageDescriptor,
    value: &Value,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Value {
    match descriptor.full_name() {
        "google.protobuf.Any" => return any(value, path, problems),
        // These have a JSON of their own; the field that holds them has checked it.
        name if name.starts_with("google.protobuf.") => return value.clone(),
        _ => {}
    }
    let Value::Object(entries) = value else {
        let reason = format!("expected a map, a {}", descriptor.name());
        problems.push(fatal(path, reason));
        return Value::Null;
    };
    let mut clean = Map::new();
    for (key, value) in entries {
        let at = format!("{path}.{key}");
        let found =
            descriptor.get_field_by_json_name(key).or_else(|| descriptor.get_field_by_name(key));
        let Some(field) = found else {
            let reason = format!("{} has no field {key:?}", descriptor.full_name());
            problems.push(Problem { path: at, reason, fatal: false });
            continue;
        };
        if value.is_null() {
            continue;
        }
        let value = self::field(descriptor, &field, value, &at, problems);
        clean.insert(field.json_name().to_owned(), value);
    }
    Value::Object(clean)
}

fn field(
    parent: &MessageDescriptor,
    field: &FieldDescriptor,
    value: &Value,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Value {
    let nested = match field.kind() {
        Kind::Message(nested) => Some(nested),
        _ => None,
    };
    match (nested, value) {
        (Some(entry), Value::Object(items)) if field.is_map() => {
            let Kind::Message(of_values) = entry.map_entry_value_field().kind() else {
                return leaf(parent, field, value, path, problems);
            };
            let item = |(key, item): (&String, &Value)| {
                let at = format!("{path}[{key:?}]");
                (key.clone(), message(&of_values, item, &at, problems))
            };
            Value::Object(items.iter().map(item).collect())
        }
        (Some(of_items), Value::Array(items)) if field.is_list() && is_open(&of_items) => {
            let item = |(index, item): (usize, &Value)| {
                message(&of_items, item, &format!("{path}[{index}]"), problems)
            };
            Value::Array(items.iter().enumerate().map(item).collect())
        }
        (Some(nested), _) if !field.is_list() && !field.is_map() && is_open(&nested) => {
            message(&nested, value, path, problems)
        }
        _ => leaf(parent, field, value, path, problems),
    }
}

/// Is it a message with fields to look into, not a value with a JSON form of its own?
fn is_open(descriptor: &MessageDescriptor) -> bool {
    let name = descriptor.full_name();
    name == "google.protobuf.Any" || !name.starts_with("google.protobuf.")
}

/// A value that is right or wrong as a whole.
fn leaf(
    parent: &MessageDescriptor,
    field: &FieldDescriptor,
    value: &Value,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Value {
    let alone = Value::Object(Map::from_iter([(field.json_name().to_owned(), value.clone())]));
    if let Err(error) = DynamicMessage::deserialize(parent.clone(), alone) {
        problems.push(fatal(path, error.to_string()));
    }
    value.clone()
}

/// `{"@type": …, fields}`.
fn any(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Value {
    let Value::Object(entries) = value else {
        problems.push(fatal(path, "expected a map with \"@type\"".to_owned()));
        return Value::Null;
    };
    let at_type = format!("{path}.@type");
    let Some(url) = entries.get("@type").and_then(Value::as_str) else {
        problems.push(fatal(&at_type, "\"@type\" is missing".to_owned()));
        return Value::Null;
    };
    let name = url.rsplit('/').next().unwrap_or(url);
    let mut fields = entries.clone();
    fields.shift_remove("@type");
    if TYPED_STRUCTS.contains(&name) {
        return typed_struct(&fields, path, problems);
    }
    let Some(descriptor) = json::extensions().get_message_by_name(name) else {
        problems.push(fatal(&at_type, format!("{name:?} is not a message of Envoy's")));
        return Value::Null;
    };
    let clean = match (descriptor.full_name().starts_with("google.protobuf."), fields.get("value"))
    {
        (true, Some(own)) => Map::from_iter([("value".to_owned(), own.clone())]),
        _ => match message(&descriptor, &Value::Object(fields), path, problems) {
            Value::Object(clean) => clean,
            _ => return Value::Null,
        },
    };
    let mut made = Map::from_iter([("@type".to_owned(), Value::String(url.to_owned()))]);
    made.extend(clean);
    Value::Object(made)
}

/// The message inside takes the wrapper's place.
fn typed_struct(fields: &Map<String, Value>, path: &str, problems: &mut Vec<Problem>) -> Value {
    let url = fields.get("type_url").or_else(|| fields.get("typeUrl")).and_then(Value::as_str);
    let Some(url) = url else {
        problems.push(fatal(&format!("{path}.type_url"), "type_url is missing".to_owned()));
        return Value::Null;
    };
    let mut inner = match fields.get("value") {
        Some(Value::Object(inner)) => inner.clone(),
        _ => Map::new(),
    };
    inner.insert("@type".to_owned(), Value::String(url.to_owned()));
    any(&Value::Object(inner), &format!("{path}.value"), problems)
}
