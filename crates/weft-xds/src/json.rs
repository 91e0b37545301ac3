//! xDS messages as JSON, in Envoy's own form: `Any`s carry `@type`.
//!
//! Owns the descriptor set (`data/envoy.fds`, see the README beside it).
//! Must not know what is converted: it serves config dumps, patches, tests.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::pb::google::protobuf::Any;

/// Why a conversion failed.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The type is not in the descriptor set.
    #[error("unknown message type `{0}`; add it to data/roots.txt")]
    UnknownType(String),
    /// The bytes are not a message of the named type.
    #[error("malformed {type_name}: {source}")]
    Malformed { type_name: String, source: prost::DecodeError },
    /// The JSON is not a message of the named type.
    #[error("{type_name}: {source}")]
    Json { type_name: String, source: serde_json::Error },
    /// `@type` is missing where an `Any` was expected.
    #[error("an object with \"@type\" was expected")]
    NoType,
}

/// The descriptors of all messages we can convert: 8 MB, in memory only while somebody holds them.
/// Hold them around a batch of conversions, which otherwise read them anew each time.
pub fn pool() -> Arc<DescriptorPool> {
    static HELD: Mutex<Weak<DescriptorPool>> = Mutex::new(Weak::new());
    static BYTES: &[u8] = include_bytes!("../data/envoy.fds");
    static STATS: &[u8] = include_bytes!("../data/stats.fds");
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = held.upgrade() {
        return pool;
    }
    let mut pool = DescriptorPool::decode(BYTES).expect("the committed descriptor set is valid");
    pool.decode_file_descriptor_set(STATS).expect("the committed descriptor set is valid");
    let pool = Arc::new(pool);
    *held = Arc::downgrade(&pool);
    pool
}

static EXTENSIONS: OnceLock<DescriptorPool> = OnceLock::new();

/// The descriptors of [`pool`] and of every other extension of Envoy: what a user's patch may name.
/// Kept once made; only a control plane with EnvoyFilters asks.
pub(crate) fn extensions() -> &'static DescriptorPool {
    static BYTES: &[u8] = include_bytes!("../data/extensions.fds");
    EXTENSIONS.get_or_init(|| {
        let mut all = DescriptorPool::clone(&pool());
        all.decode_file_descriptor_set(BYTES).expect("the committed descriptor set is valid");
        all
    })
}

/// An `Any` as JSON with `@type`. A type we have no descriptor for, or malformed
/// bytes, give `{"@type": …, "error": …}`, so that a dump always shows the rest.
pub fn to_json(any: &Any) -> Value {
    body_to_json(&any.type_url, &any.value)
}

/// As [`to_json`], for a body kept apart from its type URL.
pub fn body_to_json(type_url: &str, body: &[u8]) -> Value {
    let mut json = match decode(type_url, body) {
        Ok(value) => value,
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    };
    match &mut json {
        Value::Object(fields) => {
            fields.shift_insert(0, "@type".to_owned(), Value::String(type_url.to_owned()));
            json
        }
        // Well-known types with a JSON form of their own (Duration, wrappers, …).
        _ => serde_json::json!({ "@type": type_url, "value": json }),
    }
}

/// A typed message as JSON, without `@type`.
///
/// # Errors
/// The type is not in the descriptor set.
pub fn message_to_json<M: Message + prost::Name>(message: &M) -> Result<Value, JsonError> {
    decode(&M::full_name(), &message.encode_to_vec())
}

/// Reads an `Any` from JSON with `@type`.
///
/// # Errors
/// No `@type`, an unknown type, or fields that do not fit it.
pub fn from_json(json: &Value) -> Result<Any, JsonError> {
    let type_url = json.get("@type").and_then(Value::as_str).ok_or(JsonError::NoType)?;
    let mut fields = json.clone();
    let Value::Object(map) = &mut fields else { return Err(JsonError::NoType) };
    map.shift_remove("@type");
    let message = parse(descriptor(type_url)?, fields)?;
    Ok(Any { type_url: type_url.to_owned(), value: message.encode_to_vec() })
}

/// Reads a typed message from JSON (with or without `@type`).
///
/// # Errors
/// An unknown type, or fields that do not fit it.
pub fn message_from_json<M: Message + prost::Name + Default>(json: &Value) -> Result<M, JsonError> {
    let mut fields = json.clone();
    if let Value::Object(map) = &mut fields {
        map.shift_remove("@type");
    }
    let message = parse(descriptor(&M::full_name())?, fields)?;
    M::decode(message.encode_to_vec().as_slice())
        .map_err(|source| JsonError::Malformed { type_name: M::full_name(), source })
}

fn descriptor(type_url: &str) -> Result<MessageDescriptor, JsonError> {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    // Whoever writes other extensions shows them, too.
    let found = match EXTENSIONS.get() {
        Some(all) => all.get_message_by_name(name),
        None => pool().get_message_by_name(name),
    };
    found.ok_or_else(|| JsonError::UnknownType(name.to_owned()))
}

fn decode(type_url: &str, body: &[u8]) -> Result<Value, JsonError> {
    let descriptor = descriptor(type_url)?;
    let type_name = descriptor.full_name().to_owned();
    let message = DynamicMessage::decode(descriptor, body)
        .map_err(|source| JsonError::Malformed { type_name: type_name.clone(), source })?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|source| JsonError::Json { type_name, source })
}

fn parse(descriptor: MessageDescriptor, json: Value) -> Result<DynamicMessage, JsonError> {
    let type_name = descriptor.full_name().to_owned();
    DynamicMessage::deserialize(descriptor, json)
        .map_err(|source| JsonError::Json { type_name, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::listener::v3::Listener;
    use prost::Name;

    #[test]
    fn listener_with_nested_any_round_trips() {
        let json = serde_json::json!({
            "@type": Listener::type_url(),
            "name": "0.0.0.0_8080",
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 8080}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "x", "cluster": "c", "idle_timeout": "3600s"
                }
            }]}],
            "traffic_direction": "OUTBOUND"
        });
        let any = from_json(&json).unwrap();
        let listener = Listener::decode(any.value.as_slice()).unwrap();
        assert_eq!(listener.name, "0.0.0.0_8080");
        assert_eq!(to_json(&any), json);
        assert_eq!(message_from_json::<Listener>(&json).unwrap(), listener);
    }

    #[test]
    fn unknown_and_malformed_are_values() {
        let unknown = Any { type_url: "type.googleapis.com/no.Such".into(), value: vec![1] };
        assert!(to_json(&unknown)["error"].as_str().unwrap().contains("no.Such"));
        let malformed = Any { type_url: Listener::type_url(), value: vec![0xff] };
        assert!(to_json(&malformed)["error"].as_str().unwrap().contains("malformed"));
        assert!(matches!(from_json(&Value::Null), Err(JsonError::NoType)));
    }

    #[test]
    fn types_of_a_config_dump_are_known() {
        for name in [
            "envoy.admin.v3.ListenersConfigDump",
            "envoy.admin.v3.RoutesConfigDump",
            "envoy.admin.v3.ClustersConfigDump",
            "envoy.admin.v3.EndpointsConfigDump",
            "envoy.admin.v3.SecretsConfigDump",
            "envoy.admin.v3.BootstrapConfigDump",
            "envoy.admin.v3.Clusters",
            "envoy.admin.v3.ServerInfo",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "envoy.extensions.filters.http.router.v3.Router",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        ] {
            assert!(pool().get_message_by_name(name).is_some(), "{name}");
        }
    }
}
