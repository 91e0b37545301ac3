//! Lookups by workload: Sidecar and PeerAuthentication, by Istio's precedence.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Endpoint, Snapshot, TrafficDistribution, Workload, selects};
use crate::names::HOSTNAME;
use crate::object::{Labels, Resource};
use crate::spec::{
    DestinationRule, LocalityLbSetting, MutualTlsMode, PeerAuthentication, Sidecar, Telemetry,
    VirtualService,
};

/// What a workload's port accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl Snapshot {
    /// The Sidecar for a workload: one that selects it, else its namespace's without a selector,
    /// else the root namespace's without one. The oldest wins.
    pub fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Resource<Sidecar>>> {
        let oldest = |namespace: &str, wanted: &dyn Fn(&Sidecar) -> bool| {
            let sidecars = self.inner.sidecars.namespace(namespace);
            sidecars.filter(|s| wanted(&s.spec)).min_by(|a, b| a.meta.age_order(&b.meta))
        };
        let selecting = |sidecar: &Sidecar| match &sidecar.workload_selector {
            Some(selector) => !selector.labels.is_empty() && selects(&selector.labels, labels),
            None => false,
        };
        let general = |sidecar: &Sidecar| match &sidecar.workload_selector {
            Some(selector) => selector.labels.is_empty(),
            None => true,
        };
        oldest(namespace, &selecting)
            .or_else(|| oldest(namespace, &general))
            .or_else(|| oldest(&self.mesh().root_namespace, &general))
    }

    pub fn all_sidecars(&self) -> impl Iterator<Item = &Arc<Resource<Sidecar>>> {
        self.inner.sidecars.iter()
    }

    /// What a workload accepts on one of its own (not a Service's) ports.
    pub fn peer_mode(&self, workload: &Workload, port: u16) -> MtlsMode {
        self.peer_mode_for(&workload.namespace, &workload.labels, port)
    }

    /// As [`Self::peer_mode`], by namespace and labels. Precedence: the port of a policy that
    /// selects the workload, that policy, the namespace's, the root namespace's; UNSET inherits,
    /// in the end PERMISSIVE.
    pub fn peer_mode_for(&self, namespace: &str, labels: &Labels, port: u16) -> MtlsMode {
        let root = self.mesh().root_namespace.as_str();
        let selecting = self.policies(namespace, |policy| match &policy.selector {
            Some(selector) if !selector.match_labels.is_empty() => {
                selects(&selector.match_labels, labels)
            }
            _ => false,
        });
        let mut modes: Vec<Option<MutualTlsMode>> = Vec::new();
        if let Some(policy) = selecting {
            let of_port = policy.spec.port_level_mtls.get(&port.to_string());
            modes.push(of_port.map(|mtls| mtls.mode));
            modes.push(policy.spec.mtls.map(|mtls| mtls.mode));
        }
        for namespace in [namespace, root] {
            let general = self.policies(namespace, |policy| match &policy.selector {
                Some(selector) => selector.match_labels.is_empty(),
                None => true,
            });
            modes.push(general.and_then(|policy| policy.spec.mtls).map(|mtls| mtls.mode));
        }
        for mode in modes.into_iter().flatten() {
            match mode {
                MutualTlsMode::Unset => {}
                MutualTlsMode::Disable => return MtlsMode::Disable,
                MutualTlsMode::Permissive => return MtlsMode::Permissive,
                MutualTlsMode::Strict => return MtlsMode::Strict,
            }
        }
        MtlsMode::Permissive
    }

    fn policies(
        &self,
        namespace: &str,
        wanted: impl Fn(&PeerAuthentication) -> bool,
    ) -> Option<&Arc<Resource<PeerAuthentication>>> {
        let policies = self.inner.peer_authentications.namespace(namespace);
        policies.filter(|p| wanted(&p.spec)).min_by(|a, b| a.meta.age_order(&b.meta))
    }

    pub fn all_peer_authentications(
        &self,
    ) -> impl Iterator<Item = &Arc<Resource<PeerAuthentication>>> {
        self.inner.peer_authentications.iter()
    }

    /// Should a mesh client use mTLS to this endpoint for a service port (auto-mTLS)? The
    /// endpoint has a sidecar and its policy is not DISABLE.
    pub fn endpoint_mtls(&self, endpoint: &Endpoint, service_port: u16) -> bool {
        if !endpoint.tls_mode_istio {
            return false;
        }
        let Some(port) = endpoint.port(service_port) else { return false };
        match &endpoint.workload {
            Some(workload) => self.peer_mode(workload, port) != MtlsMode::Disable,
            None => true,
        }
    }
}

pub(super) fn client_label_keys(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut add = |labels: &Labels| keys.extend(labels.keys().cloned());
    for sidecar in snapshot.all_sidecars() {
        sidecar.spec.workload_selector.iter().for_each(|selector| add(&selector.labels));
    }
    for rule in snapshot.all_destination_rules() {
        rule.spec.workload_selector.iter().for_each(|selector| add(&selector.match_labels));
    }
    for filter in snapshot.all_envoy_filters() {
        filter.spec.workload_selector.iter().for_each(|selector| add(&selector.labels));
    }
    for config in snapshot.all_proxy_configs() {
        config.spec.selector.iter().for_each(|selector| add(&selector.match_labels));
    }
    for telemetry in snapshot.all_telemetries() {
        telemetry.spec.selector.iter().for_each(|selector| add(&selector.match_labels));
    }
    for rules in snapshot.all_virtual_services() {
        let VirtualService { http, tls, tcp, .. } = &rules.spec;
        http.iter().flat_map(|rule| &rule.matches).for_each(|one| add(&one.source_labels));
        tls.iter().flat_map(|rule| &rule.matches).for_each(|one| add(&one.source_labels));
        tcp.iter().flat_map(|rule| &rule.matches).for_each(|one| add(&one.source_labels));
    }
    if snapshot.services().any(|one| one.distribution == TrafficDistribution::PreferSameNode) {
        keys.insert(HOSTNAME.to_owned());
    }
    let targets = |one: &Telemetry| one.target_ref.is_some() || !one.target_refs.is_empty();
    if snapshot.all_envoy_filters().any(|filter| !filter.spec.target_refs.is_empty())
        || snapshot.all_telemetries().any(|one| targets(&one.spec))
    {
        keys.extend(super::filters::GATEWAY_NAME.map(str::to_owned));
    }
    let of_mesh = snapshot.mesh().locality_lb_setting.iter();
    for setting in
        snapshot.all_destination_rules().flat_map(|rule| localities(&rule.spec)).chain(of_mesh)
    {
        keys.extend(setting.failover_priority.iter().filter(|key| !key.contains('=')).cloned());
    }
    keys
}

/// Every `localityLbSetting` of a rule.
fn localities(rule: &DestinationRule) -> impl Iterator<Item = &LocalityLbSetting> {
    let of_subsets = rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    let policies = rule.traffic_policy.iter().chain(of_subsets);
    let balancers = policies.flat_map(|policy| {
        let of_ports =
            policy.port_level_settings.iter().filter_map(|port| port.load_balancer.as_ref());
        policy.load_balancer.iter().chain(of_ports)
    });
    balancers.filter_map(|balancer| balancer.locality_lb_setting.as_ref())
}
