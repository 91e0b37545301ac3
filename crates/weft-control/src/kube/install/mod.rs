//! What has to be in a cluster for the control plane to run there, and the gateways beside it. The
//! roles are made from the table of what is read ([`crate::source::kube::WATCHED`]) and from what is
//! switched on, so that they cannot allow more or less.

#[cfg(test)]
mod chart;
mod control;
mod gateway;
mod rbac;
mod values;
mod webhooks;

use serde_json::{Value, json};

use super::{ApiError, Client, Patch};

pub use values::{GatewayValues, Install, ValuesError};

/// Who we are to the API server's field ownership.
const MANAGER: &str = "weft-install";

/// All resources, in the order in which they can be applied.
pub fn manifests(install: &Install) -> Vec<Value> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": install.namespace},
    });
    let mut all = vec![namespace];
    all.extend(rbac::all(install));
    all.extend(control::all(install));
    if install.webhooks {
        all.extend(webhooks::all(install));
    }
    all.extend(gateway::all(install));
    all
}

/// The same as YAML documents, for `kubectl apply -f -`.
pub fn yaml(manifests: &[Value]) -> String {
    let document = |one: &Value| {
        let text = serde_saphyr::to_string(one).expect("JSON has a YAML form");
        format!("---\n{}\n", text.trim_end())
    };
    manifests.iter().map(document).collect()
}

/// Applies them one by one; with `dry_run` the API server only checks them.
///
/// # Errors
/// The first that is refused.
pub async fn apply(client: &Client, manifests: &[Value], dry_run: bool) -> Result<(), ApiError> {
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    for manifest in manifests {
        let path = format!("{}?fieldManager={MANAGER}&force=true{dry_run}", path(manifest));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The manifests in `deploy/` are those that are printed; `UPDATE=1` rewrites them.
    #[test]
    fn what_is_committed_is_what_is_printed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/weft.yaml");
        let now = yaml(&manifests(&Install::default()));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &now).expect("deploy/ is writable");
        }
        let committed = std::fs::read_to_string(path).expect("deploy/weft.yaml");
        assert!(committed == now, "run with UPDATE=1");
    }

    #[test]
    fn revisions_stand_beside_each_other() {
        let names = |revision: &str| {
            let revision = revision.to_owned();
            let all = manifests(&Install { revision, ..Install::default() });
            let names = all.iter().map(path).collect::<std::collections::BTreeSet<_>>();
            assert_eq!(names.len(), all.len(), "no name twice");
            names
        };
        let (one, other) = (names("default"), names("next"));
        let shared: Vec<&String> = one.intersection(&other).collect();
        // The namespace, and the gateways, which follow the revision they were made for.
        assert!(
            shared.iter().all(|path| path.contains("gateway")
                || path.contains("/v1/namespaces/istio-system") && !path.contains("istiod")),
            "{shared:?}"
        );
    }
}
