//! `/config_dump`: the configuration as it was received, in Envoy's shape, with private keys
//! blanked in a copy. Rejected resources show with their reason.

use serde_json::{Map, Value, json};
use weft_xds::ResourceType;

use super::certs::rfc3339;
use crate::config::Held;
use crate::runtime::Shared;

/// Envoy's `ConfigDump`. Endpoints only when asked for: they are most of it.
pub fn dump(shared: &Shared, include_eds: bool) -> Value {
    let _descriptors = weft_xds::json::pool();
    let mut configs = vec![
        section(
            shared,
            ResourceType::Cluster,
            "ClustersConfigDump",
            "dynamic_active_clusters",
            "cluster",
        ),
        listeners(shared),
        section(
            shared,
            ResourceType::Route,
            "RoutesConfigDump",
            "dynamic_route_configs",
            "route_config",
        ),
        section(
            shared,
            ResourceType::Secret,
            "SecretsConfigDump",
            "dynamic_active_secrets",
            "secret",
        ),
    ];
    if include_eds {
        configs.push(section(
            shared,
            ResourceType::Endpoint,
            "EndpointsConfigDump",
            "dynamic_endpoint_configs",
            "endpoint_config",
        ));
    }
    json!({ "configs": configs })
}

fn section(shared: &Shared, ty: ResourceType, message: &str, list: &str, field: &str) -> Value {
    let config = shared.config();
    let mut entries: Vec<Value> = config
        .held(ty)
        .map(|held| {
            let mut entry = state(ty, held, field);
            if ty == ResourceType::Secret {
                entry.insert("name".into(), json!(&*held.resource.name));
            }
            if let Some(error) = config.rejection(ty, &held.resource.name) {
                entry.insert("error_state".into(), json!({ "details": error }));
            }
            Value::Object(entry)
        })
        .collect();
    entries.extend(
        config
            .rejected_only(ty)
            .map(|(name, error)| json!({ "name": name, "error_state": { "details": error } })),
    );
    typed(message, &config.version(ty), list, &entries)
}

/// Listeners wrap their state once more, since one may be warming behind an active one.
fn listeners(shared: &Shared) -> Value {
    let config = shared.config();
    let ty = ResourceType::Listener;
    let mut entries: Vec<Value> = config
        .held(ty)
        .map(|held| {
            let name = &held.resource.name;
            let stage = match config.is_warming(name) {
                true => "warming_state",
                false => "active_state",
            };
            let mut entry = Map::new();
            entry.insert("name".into(), json!(&**name));
            entry.insert(stage.into(), Value::Object(state(ty, held, "listener")));
            if let Some(error) = config.rejection(ty, name) {
                entry.insert("error_state".into(), json!({ "details": error }));
            }
            Value::Object(entry)
        })
        .collect();
    entries.extend(
        config
            .rejected_only(ty)
            .map(|(name, error)| json!({ "name": name, "error_state": { "details": error } })),
    );
    typed("ListenersConfigDump", &config.version(ty), "dynamic_listeners", &entries)
}

fn state(ty: ResourceType, held: &Held, field: &str) -> Map<String, Value> {
    let mut body = weft_xds::json::body_to_json(ty.url(), &held.resource.body);
    redact(&mut body);
    let mut entry = Map::new();
    entry.insert("version_info".into(), json!(&*held.resource.version));
    entry.insert(field.into(), body);
    entry.insert("last_updated".into(), json!(rfc3339(held.updated)));
    entry
}

fn typed(message: &str, version: &str, list: &str, entries: &[Value]) -> Value {
    let mut object = Map::new();
    object.insert("@type".into(), json!(format!("type.googleapis.com/envoy.admin.v3.{message}")));
    object.insert("version_info".into(), json!(version));
    object.insert(list.into(), json!(entries));
    Value::Object(object)
}

/// Blanks every private key, wherever it stands, in either spelling of the field.
fn redact(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, field) in object.iter_mut() {
                match name.as_str() {
                    "private_key"
                    | "privateKey"
                    | "password"
                    | "session_ticket_keys"
                    | "sessionTicketKeys"
                    | "generic_secret"
                    | "genericSecret" => blank(field),
                    _ => redact(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

/// A file name may stay; what is inline may not.
fn blank(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, field) in object.iter_mut() {
                if name != "filename" {
                    blank(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank),
        other => *other = json!("[redacted]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_blanked_everywhere() {
        let mut value = json!({
            "a": [{ "private_key": { "inline_bytes": "c2VjcmV0" } }],
            "b": { "privateKey": { "filename": "/etc/key.pem" } },
            "certificate_chain": { "inline_bytes": "cHVibGlj" },
        });
        redact(&mut value);
        let text = value.to_string();
        assert!(!text.contains("c2VjcmV0"), "{text}");
        assert!(text.contains("/etc/key.pem") && text.contains("cHVibGlj"), "{text}");
    }
}
