//! Telemetry resources by workload, in the order that Istio applies them in.

use std::sync::Arc;

use super::filters::is_of;
use super::{Snapshot, selects};
use crate::object::{Labels, Resource};
use crate::spec::{ExtensionProvider, FileLogProvider, PrometheusProvider, Telemetry};

impl Snapshot {
    pub fn all_telemetries(&self) -> impl Iterator<Item = &Arc<Resource<Telemetry>>> {
        self.inner.telemetries.iter()
    }

    /// Those for a workload, the one that counts most last: the root namespace's, the namespace's,
    /// and the one that selects the workload. The oldest of each.
    pub fn telemetries_for(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> Vec<&Arc<Resource<Telemetry>>> {
        let root = self.mesh().root_namespace.as_str();
        let oldest = |home: &str, wanted: &dyn Fn(&Telemetry) -> bool| {
            let all = self.inner.telemetries.namespace(home);
            all.filter(|one| wanted(&one.spec)).min_by(|a, b| a.meta.age_order(&b.meta))
        };
        let targets = |one: &Telemetry| one.target_refs.iter().chain(&one.target_ref).count() > 0;
        let selected = |one: &Telemetry| match &one.selector {
            Some(selector) => !selector.match_labels.is_empty(),
            None => false,
        };
        let general = |one: &Telemetry| !selected(one) && !targets(one);
        let picking = |one: &Telemetry| match &one.selector {
            Some(selector) if selected(one) => selects(&selector.match_labels, labels),
            _ => one.target_refs.iter().chain(&one.target_ref).any(|target| is_of(target, labels)),
        };
        let of_namespace = if namespace == root { None } else { oldest(namespace, &general) };
        [oldest(root, &general), of_namespace, oldest(namespace, &picking)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// A telemetry provider by its name: MeshConfig's, or one of those that Istio always has.
    pub fn provider(&self, name: &str) -> Option<ExtensionProvider> {
        let configured = self.mesh().extension_providers.iter().find(|one| one.name == name);
        if let Some(configured) = configured {
            return Some(configured.clone());
        }
        let built_in = ExtensionProvider { name: name.to_owned(), ..Default::default() };
        match name {
            "envoy" => Some(ExtensionProvider {
                envoy_file_access_log: Some(FileLogProvider::default()),
                ..built_in
            }),
            "prometheus" => {
                Some(ExtensionProvider { prometheus: Some(PrometheusProvider {}), ..built_in })
            }
            _ => None,
        }
    }
}
