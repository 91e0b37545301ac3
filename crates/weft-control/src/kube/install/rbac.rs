//! Who may do what: reading of all that is read, writing of what is written, and no more.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Install;
use super::control::meta;
use crate::kube::roots;
use crate::source::kube::WATCHED;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Account, roles and their bindings.
pub(super) fn all(install: &Install) -> Vec<Value> {
    let name = install.named("weft-control");
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(install)}),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": everywhere(install),
        }),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
            "subjects": [subject(install)],
        }),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "Role",
            "metadata": meta(install),
            "rules": [
                rule("", &["secrets"], &["get"], &["cacerts", "istio-ca-secret"]),
                rule("", &["secrets"], &["list", "watch"], &["cacerts"]),
                rule("", &["secrets"], &["create"], &[]),
                rule("coordination.k8s.io", &["leases"], &["create"], &[]),
                rule("coordination.k8s.io", &["leases"], &["get", "update"], &[&install.lease()]),
            ],
        }),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "RoleBinding",
            "metadata": meta(install),
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": install.name()},
            "subjects": [subject(install)],
        }),
    ];
    if install.remote {
        all.extend(reader(install));
    }
    all
}

/// The account whose kubeconfig another cluster's control plane reads this one with.
fn reader(install: &Install) -> [Value; 3] {
    let (name, role) = ("istio-reader-service-account", "weft-reader");
    [
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": install.namespace},
        }),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [
                rule("", &["namespaces", "nodes", "services", "pods"], &["list", "watch"], &[]),
                rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"], &[]),
                rule("authentication.k8s.io", &["tokenreviews"], &["create"], &[]),
                rule("", &["configmaps"], &["list", "watch", "create", "patch"], &[roots::NAME]),
            ],
        }),
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": install.namespace}],
        }),
    ]
}

fn subject(install: &Install) -> Value {
    json!({"kind": "ServiceAccount", "name": install.name(), "namespace": install.namespace})
}

fn rule(group: &str, resources: &[&str], verbs: &[&str], names: &[&str]) -> Value {
    let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}

fn everywhere(install: &Install) -> Vec<Value> {
    let mut read: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut written: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut status: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for kind in WATCHED.iter().filter(|_| !install.remote) {
        match kind.status && install.is_default() {
            true => {
                written.entry(kind.group).or_default().push(kind.plural);
                status.entry(kind.group).or_default().push(format!("{}/status", kind.plural));
            }
            false => read.entry(kind.group).or_default().push(kind.plural),
        }
    }
    let mut rules = Vec::new();
    for (group, plurals) in &read {
        rules.push(rule(group, plurals, &["list", "watch"], &[]));
    }
    for (group, plurals) in &written {
        rules.push(rule(group, plurals, &["get", "list", "watch"], &[]));
    }
    for (group, plurals) in &status {
        let plurals: Vec<&str> = plurals.iter().map(String::as_str).collect();
        rules.push(rule(group, &plurals, &["patch"], &[]));
    }
    if !install.remote {
        // Workloads that register themselves, and leave.
        let verbs = ["create", "get", "patch", "delete"];
        rules.push(rule("networking.istio.io", &["workloadentries"], &verbs, &[]));
        rules.push(rule("authentication.k8s.io", &["tokenreviews"], &["create"], &[]));
        // Server-side apply of one that is not there asks for both.
        rules.push(rule("", &["configmaps"], &["create", "patch"], &[roots::NAME]));
    }
    if install.webhooks {
        let kinds = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
        for (kind, name) in kinds.iter().zip(install.hooks()) {
            let verbs = ["list", "watch", "patch"];
            rules.push(rule("admissionregistration.k8s.io", &[kind], &verbs, &[&name]));
        }
    }
    rules
}
