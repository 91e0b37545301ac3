//! What is kept of an object: only what some part of the mesh reads. Heartbeats and other people's
//! bookkeeping must neither take memory nor look like changes.

use serde_json::{Map, Value};
use weft_model::Kind;

use super::{Options, Watched};

/// Fields of `metadata` that are read.
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "ownerReferences",
];
/// Keys of Secrets under which certificates, keys and revocation lists are looked for. A Secret
/// without any is none of ours; the authority's own keys must not come near the snapshot.
const SECRET_KEYS: &[&str] =
    &["tls.crt", "tls.key", "ca.crt", "ca.crl", "cert", "key", "cacert", "crl"];
/// Keys of ConfigMaps that are read: certificates, and the mesh's own configuration.
const ROOTS_KEY: &str = "ca.crt";
const MESH_KEY: &str = "mesh";
const MESH_CONFIG: &str = "istio";
/// Annotations that are large, or that only their writer understands.
const FOREIGN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "k8s.v1.cni.cncf.io/",
    "cni.projectcalico.org/",
    "deployment.kubernetes.io/",
    "endpoints.kubernetes.io/",
    "control-plane.alpha.kubernetes.io/",
];

/// Strips an object; false when nothing of it is read.
pub(super) fn strip(kind: &Watched, version: &str, options: &Options, object: &mut Value) -> bool {
    let Some(fields) = object.as_object_mut() else { return false };
    fields.insert("apiVersion".to_owned(), kind.api_version(version).into());
    fields.insert("kind".to_owned(), kind.kind.as_str().into());
    if let Some(meta) = fields.get_mut("metadata") {
        metadata(kind.kind, meta);
    }
    match kind.kind {
        Kind::Pod => pod(object),
        Kind::EndpointSlice => slice(object),
        Kind::Secret => {
            // Kubeconfigs of other clusters, whatever they are called.
            if object.pointer("/metadata/labels/istio~1multiCluster").is_some() {
                return false;
            }
            let Some(fields) = object.as_object_mut() else { return false };
            only(fields, &["apiVersion", "kind", "metadata", "type", "data"]);
            let Some(Value::Object(data)) = fields.get_mut("data") else { return false };
            only(data, SECRET_KEYS);
            return !data.is_empty();
        }
        Kind::ConfigMap => return config_map(options, object),
        Kind::WorkloadEntry => {
            if let Some(status) = object.get_mut("status") {
                keep(status, &["conditions"]);
                if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
                    conditions.retain(|one| one["type"] == "Healthy");
                }
                items(status, "conditions").for_each(|one| keep(one, &["type", "status"]));
            }
        }
        Kind::Namespace | Kind::Node => only(fields, &["apiVersion", "kind", "metadata"]),
        // Its status is written by the mesh; whether it changed is no news.
        _ => drop(fields.shift_remove("status")),
    }
    true
}

fn metadata(kind: Kind, metadata: &mut Value) {
    for owner in items(metadata, "ownerReferences") {
        keep(owner, &["kind", "name", "controller"]);
    }
    let Some(fields) = metadata.as_object_mut() else { return };
    only(fields, METADATA);
    match kind {
        // The generation of what the cluster itself makes means nothing to us.
        Kind::Node | Kind::EndpointSlice => {
            fields.retain(|name, _| !matches!(name.as_str(), "annotations" | "generation"));
        }
        Kind::Pod => drop(fields.shift_remove("generation")),
        _ => {}
    }
    if let Some(Value::Object(annotations)) = fields.get_mut("annotations") {
        annotations.retain(|name, _| !FOREIGN.iter().any(|foreign| name.starts_with(foreign)));
    }
}

fn pod(pod: &mut Value) {
    keep(pod, &["apiVersion", "kind", "metadata", "spec", "status"]);
    if let Some(spec) = pod.get_mut("spec") {
        keep(
            spec,
            &[
                "serviceAccountName",
                "serviceAccount",
                "nodeName",
                "hostname",
                "subdomain",
                "hostNetwork",
                "containers",
                "initContainers",
                "securityContext",
            ],
        );
        keep_in(spec, "securityContext", &["runAsUser"]);
        for list in ["containers", "initContainers"] {
            for container in items(spec, list) {
                keep(container, &["name", "securityContext", "ports"]);
                keep_in(container, "securityContext", &["runAsUser"]);
            }
        }
    }
    if let Some(status) = pod.get_mut("status") {
        keep(status, &["phase", "podIP", "podIPs", "conditions"]);
        if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
            conditions.retain(|one| one["type"] == "Ready");
        }
        items(status, "conditions").for_each(|one| keep(one, &["type", "status"]));
    }
}

fn slice(slice: &mut Value) {
    keep(slice, &["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"]);
    for endpoint in items(slice, "endpoints") {
        keep(endpoint, &["addresses", "conditions", "targetRef", "zone", "nodeName"]);
        keep_in(endpoint, "targetRef", &["kind", "name", "namespace"]);
    }
}

/// The mesh's configuration is read in one namespace, and called by one name whichever that is.
fn config_map(options: &Options, object: &mut Value) -> bool {
    let is =
        |field: &str, value: &str| object.pointer(field).and_then(Value::as_str) == Some(value);
    let own =
        is("/metadata/name", MESH_CONFIG) && is("/metadata/namespace", &options.root_namespace);
    keep(object, &["apiVersion", "kind", "metadata", "data"]);
    let Some(Value::Object(data)) = object.get_mut("data") else { return false };
    only(data, if own { &[ROOTS_KEY, MESH_KEY] } else { &[ROOTS_KEY] });
    let read = !data.is_empty();
    if own && let Some(namespace) = object.pointer_mut("/metadata/namespace") {
        *namespace = weft_model::ROOT_NAMESPACE.into();
    }
    read
}

fn items<'a>(value: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

fn keep_in(value: &mut Value, field: &str, names: &[&str]) {
    if let Some(value) = value.get_mut(field) {
        keep(value, names);
    }
}

fn keep(value: &mut Value, names: &[&str]) {
    if let Some(fields) = value.as_object_mut() {
        only(fields, names);
    }
}

fn only(fields: &mut Map<String, Value>, names: &[&str]) {
    fields.retain(|name, _| names.contains(&name.as_str()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::kube::WATCHED;

    fn stripped(kind: Kind, mut object: Value) -> Option<Value> {
        let kind = WATCHED.iter().find(|one| one.kind == kind).expect("it is read");
        let options = Options { root_namespace: "mesh".to_owned(), ..Options::default() };
        strip(kind, "v1", &options, &mut object).then_some(object)
    }

    #[test]
    fn a_pod_is_what_the_mesh_reads_of_it() {
        let object = json!({
            "metadata": {
                "name": "a", "namespace": "n", "resourceVersion": "7", "uid": "u", "managedFields": [1],
                "annotations": {"sidecar.istio.io/inject": "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "uid": "x", "controller": true}],
            },
            "spec": {
                "nodeName": "n1", "volumes": [1], "containers": [
                    {"name": "app", "image": "i", "env": [1], "ports": [{"containerPort": 80}]},
                ],
            },
            "status": {"podIP": "10.0.0.1", "hostIP": "1.1.1.1", "conditions": [
                {"type": "Ready", "status": "True", "lastProbeTime": null},
                {"type": "Initialized", "status": "True"},
            ]},
        });
        let expect = json!({
            "metadata": {
                "name": "a", "namespace": "n",
                "annotations": {"sidecar.istio.io/inject": "true"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "app", "ports": [{"containerPort": 80}]}]},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
            "apiVersion": "v1", "kind": "Pod",
        });
        assert_eq!(stripped(Kind::Pod, object), Some(expect));
    }

    #[test]
    fn secrets_and_config_maps_that_nobody_reads_are_left_out() {
        let secret =
            |data: Value| json!({"metadata": {"name": "s", "namespace": "n"}, "data": data});
        assert_eq!(stripped(Kind::Secret, secret(json!({"ca-key.pem": "eA=="}))), None);
        let kept = stripped(Kind::Secret, secret(json!({"tls.key": "eA==", "password": "eA=="})));
        assert_eq!(kept.expect("it is read")["data"], json!({"tls.key": "eA=="}));

        let map = |namespace: &str| {
            let metadata = json!({"name": "istio", "namespace": namespace});
            json!({"metadata": metadata, "data": {"mesh": "{}", "meshNetworks": "{}"}})
        };
        assert_eq!(stripped(Kind::ConfigMap, map("other")), None);
        let kept = stripped(Kind::ConfigMap, map("mesh")).expect("it is read");
        assert_eq!(kept["data"], json!({"mesh": "{}"}));
        assert_eq!(kept["metadata"]["namespace"], "istio-system");
    }
}
