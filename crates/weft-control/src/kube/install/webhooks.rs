//! What the API server asks us about, with Istio's selectors: see docs/injection.md. Certificates are
//! put in by the control plane ([`crate::kube::Hooks`]).

use serde_json::{Value, json};

use super::Install;

const REVISION: &str = "istio.io/rev";
const INJECTION: &str = "istio-injection";
const INJECT: &str = "sidecar.istio.io/inject";

pub(super) fn all(install: &Install) -> [Value; 2] {
    let [injector, validator] = install.hooks();
    let meta = |name: String| {
        let labels = json!({"app": "istiod", "istio.io/rev": install.revision});
        json!({"name": name, "labels": labels})
    };
    [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": meta(injector),
            "webhooks": injection(install),
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": meta(validator),
            "webhooks": validation(install),
        }),
    ]
}

fn one_of(key: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": "In", "values": values})
}

fn none_of(key: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": "NotIn", "values": values})
}

fn absent(key: &str) -> Value {
    json!({"key": key, "operator": "DoesNotExist"})
}

/// By the namespace's revision and by the Pod's; for the default one by Istio's older labels too.
fn injection(install: &Install) -> Vec<Value> {
    let hook = |name: &str, namespace: Vec<Value>, pod: Vec<Value>| {
        json!({
            "name": name,
            "clientConfig": {"service": service(install, "/inject")},
            "rules": [{
                "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods"],
            }],
            "namespaceSelector": {"matchExpressions": namespace},
            "objectSelector": {"matchExpressions": pod},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        })
    };
    let own = [install.revision.as_str()];
    let mut hooks = vec![
        hook(
            "rev.namespace.sidecar-injector.istio.io",
            vec![one_of(REVISION, &own), absent(INJECTION)],
            vec![none_of(INJECT, &["false"])],
        ),
        hook(
            "rev.object.sidecar-injector.istio.io",
            vec![absent(REVISION), absent(INJECTION)],
            vec![none_of(INJECT, &["false"]), one_of(REVISION, &own)],
        ),
    ];
    if install.is_default() {
        hooks.push(hook(
            "namespace.sidecar-injector.istio.io",
            vec![one_of(INJECTION, &["enabled"])],
            vec![none_of(INJECT, &["false"])],
        ));
        hooks.push(hook(
            "object.sidecar-injector.istio.io",
            vec![absent(INJECTION), absent(REVISION)],
            vec![one_of(INJECT, &["true"]), absent(REVISION)],
        ));
    }
    hooks
}

fn validation(install: &Install) -> Vec<Value> {
    let hook = |name: &str, object: Value| {
        json!({
            "name": name,
            "clientConfig": {"service": service(install, "/validate")},
            "rules": [{
                "operations": ["CREATE", "UPDATE"],
                "apiGroups": [
                    "security.istio.io", "networking.istio.io", "telemetry.istio.io",
                    "extensions.istio.io",
                ],
                "apiVersions": ["*"],
                "resources": ["*"],
            }],
            "objectSelector": {"matchExpressions": [object]},
            // Until somebody answers; the control plane makes it Fail.
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        })
    };
    let revision = [install.revision.as_str()];
    let mut hooks = vec![hook("rev.validation.istio.io", one_of(REVISION, &revision))];
    if install.is_default() {
        hooks.push(hook("validation.istio.io", absent(REVISION)));
    }
    hooks
}

fn service(install: &Install, path: &str) -> Value {
    json!({"name": install.name(), "namespace": install.namespace, "path": path, "port": 443})
}
