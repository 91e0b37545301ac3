//! The control plane itself: Service, PodDisruptionBudget, Deployment.

use serde_json::{Value, json};

use super::Install;

pub(super) fn all(install: &Install) -> Vec<Value> {
    vec![
        service(install),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta(install),
            "spec": {"minAvailable": 1, "selector": {"matchLabels": labels(install)}},
        }),
        deployment(install),
    ]
}

/// Of everything of the control plane in its namespace.
pub(super) fn meta(install: &Install) -> Value {
    json!({"name": install.name(), "namespace": install.namespace, "labels": labels(install)})
}

fn labels(install: &Install) -> Value {
    let app = if install.remote { "istiod-injector" } else { "istiod" };
    json!({"app": app, "istio.io/rev": install.revision})
}

fn service(install: &Install) -> Value {
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "protocol": "TCP"});
    let mut ports = match install.remote {
        true => Vec::new(),
        false => vec![port("grpc-xds", 15010), port("https-dns", 15012)],
    };
    ports.push(port("http-monitoring", 15014));
    if install.webhooks {
        let mut webhook = port("https-webhook", 443);
        webhook["targetPort"] = 15017.into();
        ports.push(webhook);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(install),
        "spec": {"selector": labels(install), "ports": ports},
    })
}

fn arguments(install: &Install) -> Vec<String> {
    let mut args = vec!["control".to_owned(), "--kubernetes".to_owned()];
    // One revision speaks for all in status.
    let writes_status = install.is_default() && !install.remote;
    args.extend(writes_status.then(|| "--write-status".to_owned()));
    args.push(if install.remote { "--inject-only" } else { "--write-roots" }.to_owned());
    args.extend([
        format!("--lease={}", install.lease()),
        format!("--root-namespace={}", install.namespace),
        format!("--revision={}", install.revision),
        format!("--cluster-id={}", install.cluster_id),
        format!("--trust-domain={}", install.trust_domain),
        "--state-dir=/var/lib/weft".to_owned(),
        "--xds-address=0.0.0.0:15010".to_owned(),
        "--xds-tls-address=0.0.0.0:15012".to_owned(),
        "--http-address=0.0.0.0:15014".to_owned(),
    ]);
    if install.webhooks {
        args.extend([
            "--webhook-address=0.0.0.0:15017".to_owned(),
            "--write-webhooks".to_owned(),
            format!("--image={}", install.image),
            format!("--discovery-address={}", install.discovery_address()),
        ]);
    }
    args
}

fn deployment(install: &Install) -> Value {
    let probe = json!({
        "httpGet": {"path": "/ready", "port": 15014}, "periodSeconds": 5, "timeoutSeconds": 5,
    });
    let mut ports = if install.remote { vec![15014] } else { vec![15010, 15012, 15014] };
    ports.extend(install.webhooks.then_some(15017));
    let ports: Vec<Value> = ports.iter().map(|port| json!({"containerPort": port})).collect();
    let container = json!({
        "name": "discovery",
        "image": install.image,
        "args": arguments(install),
        "env": [{
            "name": "POD_NAME",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        }],
        "ports": ports,
        "readinessProbe": probe,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "securityContext": unprivileged(),
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/weft"}],
    });
    let mut pod_labels = labels(install);
    pod_labels["sidecar.istio.io/inject"] = "false".into();
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(install),
        "spec": {
            "replicas": install.replicas,
            "selector": {"matchLabels": labels(install)},
            "template": {
                "metadata": {"labels": pod_labels},
                "spec": {
                    "serviceAccountName": install.name(),
                    "securityContext": {"fsGroup": 1337},
                    "containers": [pulled(install, container)],
                    "volumes": [{"name": "state", "emptyDir": {}}],
                },
            },
        },
    })
}

/// A container with the policy of pulling its image, where one was chosen.
pub(super) fn pulled(install: &Install, mut container: Value) -> Value {
    if !install.image_pull_policy.is_empty() {
        container["imagePullPolicy"] = install.image_pull_policy.as_str().into();
    }
    container
}

pub(super) fn unprivileged() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 1337,
    })
}
