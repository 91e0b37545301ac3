//! The WorkloadEntry of a workload that registers itself: its group's template, and what it says of
//! itself.

use serde_json::{Map, Value, json};
use weft_model::spec::WorkloadGroup;
use weft_model::{Labels, Resource};
use weft_xds::NodeView;
use weft_xds::health::{CONDITION, Health};

use super::Place;

/// Istio's annotations on entries that came about so.
pub(super) const REGISTERED_FOR: &str = "istio.io/autoRegistrationGroup";
pub(super) const CONTROLLER: &str = "istio.io/workloadController";
pub(super) const CONNECTED: &str = "istio.io/connectedAt";
pub(super) const DISCONNECTED: &str = "istio.io/disconnectedAt";
/// Its proxy reports how it is; until then it is not healthy.
const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";
/// Longest name of a resource.
const NAME_MAX: usize = 253;

/// Where it stands and what it is; `None` without an address. Times and controller are the store's.
pub(super) fn of_group(group: &Resource<WorkloadGroup>, node: &NodeView) -> Option<(Place, Value)> {
    let address = node.instance_ips.first().copied().or(node.ip)?;
    let text = |key: &str| node.metadata.get(key).map(String::as_str).unwrap_or_default();
    let (spec, meta) = (&group.spec, &group.meta);
    let own_network = text("NETWORK");
    let network = if own_network.is_empty() { &*spec.template.network } else { own_network };
    let locality =
        if node.locality.is_empty() { &*spec.template.locality } else { &*node.locality };
    let mut labels: Labels = spec.template.labels.clone();
    labels.extend(spec.metadata.labels.clone());
    labels.extend(node.labels.clone());
    // Whoever registers itself has a proxy.
    labels.entry("security.istio.io/tlsMode".into()).or_insert_with(|| "istio".into());
    let mut annotations = spec.metadata.annotations.clone();
    annotations.insert(REGISTERED_FOR.into(), meta.name.to_string());
    if spec.probe.is_some() {
        annotations.insert(HEALTH_CHECKS.into(), "true".into());
    }
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        if !matches!(&value, Value::String(text) if text.is_empty()) {
            fields.insert(name.to_owned(), value);
        }
    };
    set("address", address.to_string().into());
    set("network", network.into());
    set("locality", locality.into());
    set("serviceAccount", spec.template.service_account.as_str().into());
    if !spec.template.ports.is_empty() {
        set("ports", json!(spec.template.ports));
    }
    if let Some(weight) = spec.template.weight {
        set("weight", weight.into());
    }
    set("labels", json!(labels));
    let name = name(&meta.name, &address.to_string(), network);
    let object = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": name,
            "namespace": &*meta.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": fields,
    });
    Some((Place { namespace: meta.namespace.to_string(), name }, object))
}

/// `GROUP-ADDRESS[-NETWORK]`; what is too long loses its beginning, as in Istio.
fn name(group: &str, address: &str, network: &str) -> String {
    let mut name = format!("{group}-{}", address.replace(':', "-"));
    if !network.is_empty() {
        name = format!("{name}-{network}");
    }
    let name = name.to_ascii_lowercase();
    let start = name.ceil_char_boundary(name.len().saturating_sub(NAME_MAX));
    name[start..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// The condition that a report makes, `now` as Kubernetes writes it.
pub(super) fn condition(health: &Health, now: &str) -> Value {
    let status = if health.healthy { "True" } else { "False" };
    json!({
        "type": CONDITION,
        "status": status,
        "message": health.message,
        "lastProbeTime": now,
        "lastTransitionTime": now,
    })
}

/// Conditions with one of them new.
pub(super) fn with_condition(object: &Value, condition: Value) -> Value {
    let old = object["status"]["conditions"].as_array().into_iter().flatten();
    let others = old.filter(|one| one["type"] != CONDITION).cloned();
    others.chain([condition]).collect()
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_can_be_names() {
        assert_eq!(name("vms", "10.0.0.1", ""), "vms-10.0.0.1");
        assert_eq!(name("vms", "fd00::1", "Net-1"), "vms-fd00--1-net-1");
        let long = name(&"x".repeat(300), "10.0.0.1", "");
        assert!(long.len() <= 253 && long.ends_with("x-10.0.0.1"), "{long}");
    }
}
