//! EnvoyFilters and ProxyConfigs by workload, in the order that Istio applies them in.

use std::sync::Arc;

use super::{Snapshot, selects};
use crate::object::{Labels, Meta, Resource};
use crate::spec::{EnvoyFilter, PolicyTargetReference, ProxyConfigResource};

/// Labels by which the proxies of a Gateway API Gateway are known.
pub(super) const GATEWAY_NAME: [&str; 2] =
    ["gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name"];

impl Snapshot {
    pub fn all_envoy_filters(&self) -> impl Iterator<Item = &Arc<Resource<EnvoyFilter>>> {
        self.inner.envoy_filters.iter()
    }

    /// Those that pick a proxy: the root namespace's, then its own; in each by priority, then age.
    pub fn envoy_filters_for(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> Vec<&Arc<Resource<EnvoyFilter>>> {
        let root = self.mesh().root_namespace.as_str();
        let mut found = Vec::new();
        for (index, home) in [root, namespace].into_iter().enumerate() {
            if index == 1 && home == root {
                break;
            }
            let picks = |filter: &&Arc<Resource<EnvoyFilter>>| {
                let EnvoyFilter { workload_selector, target_refs, .. } = &filter.spec;
                let by_labels =
                    workload_selector.as_ref().is_none_or(|wanted| selects(&wanted.labels, labels));
                let by_target = target_refs.is_empty()
                    || (home == namespace
                        && target_refs.iter().any(|target| is_of(target, labels)));
                by_labels && by_target
            };
            let mut here: Vec<_> = self.inner.envoy_filters.namespace(home).filter(picks).collect();
            here.sort_by(|a, b| {
                a.spec.priority.cmp(&b.spec.priority).then_with(|| a.meta.age_order(&b.meta))
            });
            found.extend(here);
        }
        found
    }

    pub fn all_proxy_configs(&self) -> impl Iterator<Item = &Arc<Resource<ProxyConfigResource>>> {
        self.inner.proxy_configs.iter()
    }

    /// Those for a proxy, the one that counts most last: the root namespace's, the namespace's,
    /// and the one that selects the workload. The oldest of each.
    pub fn proxy_configs_for(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> [Option<&Arc<Resource<ProxyConfigResource>>>; 3] {
        let root = self.mesh().root_namespace.as_str();
        let oldest = |home: &str, wanted: &dyn Fn(&ProxyConfigResource) -> bool| {
            let configs = self.inner.proxy_configs.namespace(home);
            configs.filter(|c| wanted(&c.spec)).min_by(|a, b| by_age(&a.meta, &b.meta))
        };
        let labels_of = |config: &ProxyConfigResource| {
            config.selector.as_ref().map(|selector| selector.match_labels.clone())
        };
        let general =
            |config: &ProxyConfigResource| labels_of(config).is_none_or(|wanted| wanted.is_empty());
        let selecting = |config: &ProxyConfigResource| {
            labels_of(config).is_some_and(|wanted| !wanted.is_empty() && selects(&wanted, labels))
        };
        let of_namespace = if namespace == root { None } else { oldest(namespace, &general) };
        [oldest(root, &general), of_namespace, oldest(namespace, &selecting)]
    }
}

fn by_age(a: &Meta, b: &Meta) -> std::cmp::Ordering {
    a.age_order(b)
}

/// Do these labels belong to a proxy of the target?
pub(super) fn is_of(target: &PolicyTargetReference, labels: &Labels) -> bool {
    let gateway = target.kind == "Gateway" && target.group == "gateway.networking.k8s.io";
    gateway && GATEWAY_NAME.iter().any(|key| labels.get(*key) == Some(&target.name))
}
