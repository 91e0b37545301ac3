//! Probes of the kubelet against captured ports: with mutual TLS only, the kubelet could not pass
//! them. They go to the proxy's status port instead, which asks the application itself.

use serde_json::{Map, Value, json};

use super::PROXY_CONTAINER;
use super::settings::Settings;

/// Variable in which the proxy finds what to ask: paths of the status port to original probes.
pub(super) const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
/// Variable in which it finds where the application tells its metrics.
pub(super) const METRICS: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
const HOOKS: [(&str, &str); 2] = [("preStop", "prestopz"), ("postStart", "poststartz")];

/// Turns every HTTP, TCP and gRPC probe of the pod's containers to the status port; what they were,
/// by path, with those a former injection turned.
pub(super) fn rewrite(
    pod: &mut Value,
    settings: &Settings,
    former: Map<String, Value>,
) -> Map<String, Value> {
    let mut found = former;
    if !settings.rewrite_probes {
        return found;
    }
    for list in ["/spec/containers", "/spec/initContainers"] {
        let Some(containers) = pod.pointer_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers {
            if container["name"] != PROXY_CONTAINER {
                of_container(container, settings.status_port, &mut found);
            }
        }
    }
    found.sort_keys();
    found
}

/// The probes that a former injection wrote into the proxy's container.
pub(super) fn former(pod: &Value) -> Map<String, Value> {
    let text = variable(pod, VARIABLE);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// What a former injection wrote into this variable of the proxy's container.
pub(super) fn variable<'p>(pod: &'p Value, name: &str) -> Option<&'p str> {
    let containers = ["/spec/containers", "/spec/initContainers"]
        .into_iter()
        .filter_map(|at| pod.pointer(at)?.as_array())
        .flatten();
    let proxy = containers.into_iter().find(|container| container["name"] == PROXY_CONTAINER);
    let variables = proxy.and_then(|proxy| proxy["env"].as_array()).into_iter().flatten();
    let mut of_name = variables.filter(|one| one["name"] == name);
    of_name.find_map(|one| one["value"].as_str())
}

fn of_container(container: &mut Value, status_port: u16, found: &mut Map<String, Value>) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let ports = container["ports"].clone();
    for (key, word) in PROBES {
        if let Some(probe) = container.get_mut(key) {
            turn(probe, &format!("/app-health/{name}/{word}"), status_port, &ports, found);
        }
    }
    for (key, word) in HOOKS {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|hooks| hooks.get_mut(key)) {
            turn(hook, &format!("/app-lifecycle/{name}/{word}"), status_port, &ports, found);
        }
    }
}

fn turn(
    probe: &mut Value,
    path: &str,
    status_port: u16,
    ports: &Value,
    found: &mut Map<String, Value>,
) {
    let Some(probe) = probe.as_object_mut() else { return };
    let Some(kind) =
        ["httpGet", "tcpSocket", "grpc"].into_iter().find(|kind| probe.contains_key(*kind))
    else {
        return;
    };
    let Some(Value::Object(mut action)) = probe.get(kind).cloned() else { return };
    if let Some(port) = action.get("port").and_then(|port| number(port, ports)) {
        // Turned by a former injection.
        let own = action.get("path").and_then(Value::as_str) == Some(path);
        if own && port == u64::from(status_port) {
            return;
        }
        action.insert("port".into(), json!(port));
    } else {
        // A name no port has: the kubelet would fail it, and so shall it.
        return;
    }
    // A probe of another host is not this pod's traffic.
    if action.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
        return;
    }
    // The proxy is asked in plain text, and asks with the application's scheme and headers.
    let mut entry = Map::new();
    entry.insert(kind.into(), Value::Object(action));
    if let Some(seconds) = probe.get("timeoutSeconds") {
        entry.insert("timeoutSeconds".into(), seconds.clone());
    }
    found.insert(path.into(), Value::Object(entry));
    probe.shift_remove(kind);
    probe.insert("httpGet".into(), json!({"path": path, "port": status_port}));
}

/// A port by number, or by the name that the container gives it.
fn number(port: &Value, ports: &Value) -> Option<u64> {
    if let Some(number) = port.as_u64() {
        return Some(number);
    }
    let name = port.as_str()?;
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let named = ports.as_array()?.iter().find(|port| port["name"] == name)?;
    named["containerPort"].as_u64()
}
