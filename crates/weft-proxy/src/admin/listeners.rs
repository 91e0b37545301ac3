//! `/listeners`: bound addresses, as Envoy lists them, and those that could not be bound.

use serde_json::{Value, json};

use crate::runtime::Shared;

/// `NAME::ADDRESS` lines.
pub fn text(shared: &Shared) -> String {
    let set = shared.listeners();
    let mut out = String::new();
    for (key, open) in set.open() {
        out.push_str(&format!("{}::{}\n", key.name, open.bound));
    }
    for (key, error) in set.failed() {
        out.push_str(&format!("{}::{} FAILED: {error}\n", key.name, key.address));
    }
    out
}

/// Envoy's `listener_statuses`.
pub fn json(shared: &Shared) -> Value {
    let set = shared.listeners();
    let address = |address: std::net::SocketAddr| json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } });
    let mut statuses: Vec<Value> = set
        .open()
        .map(|(key, open)| json!({ "name": &*key.name, "local_address": address(open.bound) }))
        .collect();
    statuses.extend(set.failed().map(|(key, error)| {
        json!({ "name": &*key.name, "local_address": address(key.address), "error": error })
    }));
    json!({ "listener_statuses": statuses })
}
