//! Gateways: proxies at the edge, called and labelled as Istio's.

use serde_json::{Value, json};

use super::control::{pulled, unprivileged};
use super::{GatewayValues, Install};

pub(super) fn all(install: &Install) -> Vec<Value> {
    let gateways = [
        ("ingressgateway", "LoadBalancer", &install.ingress_gateway),
        ("egressgateway", "ClusterIP", &install.egress_gateway),
    ];
    let wanted = gateways.iter().filter(|(_, _, values)| values.enabled);
    wanted.flat_map(|(name, kind, values)| one(install, name, kind, values)).collect()
}

fn one(install: &Install, short: &str, service_type: &str, values: &GatewayValues) -> Vec<Value> {
    let name = format!("istio-{short}");
    let labels = json!({"app": name, "istio": short});
    let meta = json!({"name": name, "namespace": install.namespace, "labels": labels});
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "protocol": "TCP"});
    let mut pod_labels = labels.clone();
    pod_labels["sidecar.istio.io/inject"] = "false".into();
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {
                "type": service_type,
                "selector": labels,
                "ports": [port("status-port", 15021), port("http2", 80), port("https", 443)],
            },
        }),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta,
            "spec": {"minAvailable": 1, "selector": {"matchLabels": labels}},
        }),
        json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": meta,
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": values.min_replicas,
                "maxReplicas": values.max_replicas,
                "metrics": [{
                    "type": "Resource",
                    "resource": {
                        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
                    },
                }],
            },
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                // How many is the autoscaler's to say.
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
                "template": {
                    "metadata": {"labels": pod_labels},
                    "spec": pod(install, &name),
                },
            },
        }),
    ]
}

/// A Pod with nothing but a gateway's proxy.
fn pod(install: &Install, name: &str) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let value = |name: &str, value: &str| json!({"name": name, "value": value});
    let container = json!({
        "name": "istio-proxy",
        "image": install.image,
        "args": [
            "proxy",
            "gateway",
            format!("--xds={}", install.discovery_address()),
            "--xds-tls-root=/var/run/secrets/istio/root-cert.pem",
            "--token-file=/var/run/secrets/tokens/istio-token",
            "--ip=$(INSTANCE_IPS)",
            "--labels-file=/etc/istio/pod/labels",
            "--state-dir=/var/lib/istio/data",
            "--readiness-port=15021",
            "--status-port=15020,15090",
        ],
        "env": [
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("INSTANCE_IPS", "status.podIPs"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            value("ISTIO_META_CLUSTER_ID", &install.cluster_id),
            value("ISTIO_META_WORKLOAD_NAME", name),
            value("TRUST_DOMAIN", &install.trust_domain),
        ],
        "ports": [
            {"containerPort": 15021}, {"containerPort": 80}, {"containerPort": 443},
            {"containerPort": 15090, "name": "http-envoy-prom"},
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["weft", "drain"]}}},
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 15,
            "failureThreshold": 4,
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"},
        },
        "securityContext": unprivileged(),
        "volumeMounts": [
            {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
            {"name": "istio-podinfo", "mountPath": "/etc/istio/pod"},
            {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
        ],
    });
    json!({
        "serviceAccountName": name,
        "securityContext": {
            "fsGroup": 1337,
            // It listens on 80 and 443 without a privilege.
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
        },
        "containers": [pulled(install, container)],
        "volumes": [
            {"name": "istiod-ca-cert", "configMap": {"name": super::super::roots::NAME}},
            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token",
            }}]}},
            {"name": "istio-podinfo", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            ]}},
            {"name": "istio-data", "emptyDir": {}},
        ],
    })
}
