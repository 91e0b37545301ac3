//! What has to be in a cluster for the control plane to run there: the role is made from the table
//! of what is read ([`crate::source::kube::WATCHED`]), so that it cannot allow more or less.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ApiError, Client, Patch};
use crate::source::kube::WATCHED;

/// Who we are to the API server's field ownership.
const MANAGER: &str = "weft-install";
/// What everything in the cluster is called; proxies know the control plane by this name.
const NAME: &str = "istiod";

/// How to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Of the control plane; also the mesh's root namespace.
    pub namespace: String,
    pub image: String,
    pub replicas: u32,
}

/// All resources, in the order in which they can be applied.
pub fn manifests(install: &Install) -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": install.namespace}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(install)}),
        cluster_role(),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "weft-control"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "weft-control",
            },
            "subjects": [subject(install)],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": meta(install),
            "rules": [
                rule("", &["secrets"], &["get"], &["cacerts", "istio-ca-secret"]),
                rule("", &["secrets"], &["create"], &[]),
                rule("coordination.k8s.io", &["leases"], &["create"], &[]),
                rule("coordination.k8s.io", &["leases"], &["get", "update"], &["weft-leader"]),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta(install),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
            "subjects": [subject(install)],
        }),
        service(install),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta(install),
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": NAME}}},
        }),
        deployment(install),
    ]
}

/// The same as YAML documents, for `kubectl apply -f -`.
pub fn yaml(manifests: &[Value]) -> String {
    let document = |one: &Value| {
        let text = serde_saphyr::to_string(one).expect("JSON has a YAML form");
        format!("---\n{}\n", text.trim_end())
    };
    manifests.iter().map(document).collect()
}

/// Applies them one by one.
///
/// # Errors
/// The first that is refused.
pub async fn apply(client: &Client, manifests: &[Value]) -> Result<(), ApiError> {
    for manifest in manifests {
        let path = format!("{}?fieldManager={MANAGER}&force=true", path(manifest));
        client.patch(&path, Patch::Apply, manifest).await?;
    }
    Ok(())
}

fn path(manifest: &Value) -> String {
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
    let version = text("/apiVersion").unwrap_or_default();
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = text("/kind").unwrap_or_default().to_lowercase() + "s";
    let name = text("/metadata/name").unwrap_or_default();
    match text("/metadata/namespace") {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("/{root}/{version}/{plural}/{name}"),
    }
}

fn meta(install: &Install) -> Value {
    json!({"name": NAME, "namespace": install.namespace, "labels": {"app": NAME}})
}

fn subject(install: &Install) -> Value {
    json!({"kind": "ServiceAccount", "name": NAME, "namespace": install.namespace})
}

fn rule(group: &str, resources: &[&str], verbs: &[&str], names: &[&str]) -> Value {
    let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    if !names.is_empty() {
        rule["resourceNames"] = json!(names);
    }
    rule
}

/// Reading of all that is read, writing of status where it is written, and token reviews.
fn cluster_role() -> Value {
    let mut read: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut written: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut status: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for kind in WATCHED {
        match kind.status {
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
    rules.push(rule("authentication.k8s.io", &["tokenreviews"], &["create"], &[]));
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "weft-control"},
        "rules": rules,
    })
}

fn service(install: &Install) -> Value {
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "protocol": "TCP"});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(install),
        "spec": {
            "selector": {"app": NAME},
            "ports": [port("grpc-xds", 15010), port("https-dns", 15012), port("http-monitoring", 15014)],
        },
    })
}

fn deployment(install: &Install) -> Value {
    let probe = json!({
        "httpGet": {"path": "/ready", "port": 15014}, "periodSeconds": 5, "timeoutSeconds": 5,
    });
    let container = json!({
        "name": "discovery",
        "image": install.image,
        "args": [
            "control",
            "--kubernetes",
            "--write-status",
            format!("--root-namespace={}", install.namespace),
            "--state-dir=/var/lib/weft",
            "--xds-address=0.0.0.0:15010",
            "--xds-tls-address=0.0.0.0:15012",
            "--http-address=0.0.0.0:15014",
        ],
        "env": [{
            "name": "POD_NAME",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        }],
        "ports": [{"containerPort": 15010}, {"containerPort": 15012}, {"containerPort": 15014}],
        "readinessProbe": probe,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 1337,
        },
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/weft"}],
    });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(install),
        "spec": {
            "replicas": install.replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "template": {
                "metadata": {"labels": {"app": NAME, "sidecar.istio.io/inject": "false"}},
                "spec": {
                    "serviceAccountName": NAME,
                    "securityContext": {"fsGroup": 1337},
                    "containers": [container],
                    "volumes": [{"name": "state", "emptyDir": {}}],
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manifests in `deploy/` are those that are printed; `UPDATE=1` rewrites them.
    #[test]
    fn what_is_committed_is_what_is_printed() {
        let install = Install {
            namespace: "istio-system".to_owned(),
            image: "weft:latest".to_owned(),
            replicas: 2,
        };
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/weft.yaml");
        let now = yaml(&manifests(&install));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &now).expect("deploy/ is writable");
        }
        let committed = std::fs::read_to_string(path).expect("deploy/weft.yaml");
        assert!(committed == now, "run with UPDATE=1");
    }
}
