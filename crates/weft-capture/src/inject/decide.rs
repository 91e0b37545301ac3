//! Whether a pod is injected. The namespace's labels choose what the webhook is asked about; the
//! pod has the last word.

use serde_json::Value;

use super::MeshSettings;

const INJECT: &str = "sidecar.istio.io/inject";
const REVISION: &str = "istio.io/rev";
/// Kubernetes' own namespaces: without them no cluster comes up.
const SYSTEM: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Why a pod was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It uses its node's network: rules would capture the node's traffic.
    HostNetwork,
    /// Kubernetes' own namespace.
    SystemNamespace,
    /// Its label or annotation says so.
    PodSaysNo,
    /// It says nothing, and injection is not the default.
    NotByDefault,
}

impl Reason {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::HostNetwork => "it uses the node's network (hostNetwork)",
            Reason::SystemNamespace => "it is in a namespace of Kubernetes itself",
            Reason::PodSaysNo => "sidecar.istio.io/inject says no",
            Reason::NotByDefault => "it does not ask for it, and injection is off by default",
        }
    }
}

/// What a namespace says about injection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceLabels {
    /// `istio-injection`.
    pub injection: Option<String>,
    /// `istio.io/rev`.
    pub revision: Option<String>,
}

/// Whether the webhook of `revision` is asked about a pod with these labels: Istio's four
/// selectors. An explicit no of either side wins; the namespace's revision is not the pod's to
/// change.
pub fn is_selected(namespace: &NamespaceLabels, pod_labels: &Value, revision: &str) -> bool {
    let pod_inject = pod_labels.get(INJECT).and_then(Value::as_str);
    let pod_revision = pod_labels.get(REVISION).and_then(Value::as_str);
    if pod_inject == Some("false") {
        return false;
    }
    let is_default = revision == "default";
    match (namespace.injection.as_deref(), namespace.revision.as_deref()) {
        (Some("enabled"), _) => is_default,
        (Some(_), _) => false,
        (None, Some(wanted)) => wanted == revision,
        (None, None) => match pod_revision {
            Some(wanted) => wanted == revision,
            None => is_default && pod_inject == Some("true"),
        },
    }
}

/// Whether a pod that came here is injected.
pub(super) fn wanted(pod: &Value, namespace: &str, mesh: &MeshSettings) -> Result<(), Reason> {
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Err(Reason::HostNetwork);
    }
    if SYSTEM.contains(&namespace) {
        return Err(Reason::SystemNamespace);
    }
    let said = |what: &str| {
        let all = pod.pointer(&format!("/metadata/{what}"))?;
        all.get(INJECT)?.as_str().map(str::to_ascii_lowercase)
    };
    // The label is the newer of the two.
    match said("labels").or_else(|| said("annotations")).as_deref() {
        None | Some("") if mesh.by_default => Ok(()),
        None | Some("") => Err(Reason::NotByDefault),
        Some("true" | "yes" | "y" | "on") => Ok(()),
        Some(_) => Err(Reason::PodSaysNo),
    }
}
