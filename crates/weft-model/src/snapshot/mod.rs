//! The immutable, indexed world. Cheap to clone; the next one comes from [`Snapshot::apply`] and
//! shares everything that did not change. Resources inside are normalised: hosts and gateways are
//! resolved, lower case.
//!
//! `table` stores resources, `workload` and `service` derive what proxies talk to, `routing` and
//! `policy` answer lookups, `apply` folds changes in, `check` finds cross-resource mistakes.

mod allocate;
mod apply;
mod base;
mod check;
mod endpoints;
mod filters;
pub mod gateway_api;
mod index;
mod policy;
mod protocol;
mod routing;
mod service;
mod suppress;
mod table;
mod telemetry;
mod workload;

use std::any::Any;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use crate::diagnostic::Diagnostic;
use crate::names::in_cluster;
use crate::object::{Labels, Object, Resource, ResourceKey};
use crate::spec;

pub use base::Base;
pub use policy::MtlsMode;
pub use protocol::Protocol;
pub use routing::Visibility;
pub use service::{
    Address, Cidr, Endpoint, MeshService, Resolution, ServiceAccount, ServiceKind, ServicePort,
    TargetPort, TrafficDistribution,
};
pub use workload::{Template, Workload, WorkloadKind};

use index::{Addresses, Hosts};
use routing::{DestinationRules, VirtualServices};
use table::Table;

/// One upsert or delete from a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub key: ResourceKey,
    pub kind: ChangeKind,
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "upserts are the rule, and are moved, not kept")]
pub enum ChangeKind {
    Upsert(Object),
    Delete,
}

/// What a batch of changes touched. Equal content touches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Hosts of services of which only endpoints changed (address, port, label, readiness,
    /// weight), not the set of service accounts: EDS alone.
    pub endpoints_only: BTreeSet<Arc<str>>,
    /// Hosts of services whose definition or set of service accounts changed, came or went.
    pub services: BTreeSet<Arc<str>>,
    /// Changed resources of configuration kinds: Service, ServiceEntry, VirtualService,
    /// DestinationRule, Gateway, Sidecar, PeerAuthentication, MeshConfig, Secret, ConfigMap,
    /// Namespace, and the Gateway API's kinds.
    /// Also set for the resource behind an entry of `services`.
    pub config: BTreeSet<ResourceKey>,
    /// `(namespace, name)` of Pods and WorkloadEntries that came, went, or changed in anything
    /// but readiness: what a proxy of that name gets may differ.
    pub workloads: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        let Touched { endpoints_only, services, config, workloads } = self;
        endpoints_only.is_empty()
            && services.is_empty()
            && config.is_empty()
            && workloads.is_empty()
    }

    /// Nothing but endpoints changed.
    pub fn only_endpoints(&self) -> bool {
        self.services.is_empty() && self.config.is_empty()
    }

    /// Folds a later batch into this one.
    pub fn merge(&mut self, later: Touched) {
        let Touched { endpoints_only, services, config, workloads } = later;
        self.endpoints_only.extend(endpoints_only);
        self.services.extend(services);
        self.config.extend(config);
        self.workloads.extend(workloads);
        self.endpoints_only.retain(|host| !self.services.contains(host));
    }
}

/// The world at one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

#[derive(Clone, Default)]
struct Inner {
    mesh: Arc<spec::MeshConfig>,
    mesh_configs: Table<Resource<spec::MeshConfig>>,
    namespaces: Table<Resource<spec::Namespace>>,
    nodes: Table<Resource<spec::Node>>,
    secrets: Table<Resource<spec::Secret>>,
    kube_services: Table<Resource<spec::Service>>,
    service_entries: Table<Resource<spec::ServiceEntry>>,
    workload_groups: Table<Resource<spec::WorkloadGroup>>,
    endpoints: Table<Resource<spec::Endpoints>>,
    endpoint_slices: Table<Resource<spec::EndpointSlice>>,
    pod_templates: Table<Resource<spec::PodTemplate>>,
    gateways: Table<Resource<spec::Gateway>>,
    sidecars: Table<Resource<spec::Sidecar>>,
    peer_authentications: Table<Resource<spec::PeerAuthentication>>,
    config_maps: Table<Resource<spec::ConfigMap>>,
    gateway_api: gateway_api::Tables,
    envoy_filters: Table<Resource<spec::EnvoyFilter>>,
    proxy_configs: Table<Resource<spec::ProxyConfigResource>>,
    telemetries: Table<Resource<spec::Telemetry>>,
    virtual_services: VirtualServices,
    destination_rules: DestinationRules,
    /// Pods and WorkloadEntries by namespace and resource name.
    workloads: Table<Workload>,
    workloads_by_ip: Addresses,
    /// By host; several when namespaces define the same host, the first being the winner.
    services: Hosts,
    /// By namespace and `kind/name/host`.
    services_by_namespace: Table<MeshService>,
    /// Cross-resource findings, made when first asked for.
    diagnostics: OnceLock<Arc<[Diagnostic]>>,
    /// See [`Snapshot::client_label_keys`].
    client_label_keys: OnceLock<Arc<BTreeSet<String>>>,
    /// See [`Snapshot::gateway_api`].
    attached: OnceLock<Arc<gateway_api::GatewayApi>>,
    /// See [`Snapshot::allocated_addresses`].
    allocated: OnceLock<Arc<allocate::Allocated>>,
    /// See [`Snapshot::derived`].
    derived: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Snapshot {
    /// The mesh's configuration; Istio's defaults when there is none.
    pub fn mesh(&self) -> &spec::MeshConfig {
        &self.inner.mesh
    }

    /// All that say something of the mesh; the first is in force.
    pub(crate) fn mesh_configs(&self) -> impl Iterator<Item = &Arc<Resource<spec::MeshConfig>>> {
        self.inner.mesh_configs.iter()
    }

    /// All services, ordered by parent domain, host, then precedence.
    pub fn services(&self) -> impl Iterator<Item = &Arc<MeshService>> {
        self.inner.services.iter()
    }

    /// By full host: `name.ns.svc.cluster.local` or a ServiceEntry's host. When several
    /// namespaces define it: Kubernetes first, then the oldest.
    pub fn service(&self, host: &str) -> Option<&Arc<MeshService>> {
        self.inner.services.get(host).first()
    }

    /// As [`Self::service`], as seen from a namespace: its own definition first, then the first
    /// one exported to it.
    pub fn service_from(&self, host: &str, from_namespace: &str) -> Option<&Arc<MeshService>> {
        let all = self.inner.services.get(host);
        let own = all.iter().find(|service| &*service.namespace == from_namespace);
        own.or_else(|| all.iter().find(|s| self.service_visible(s, from_namespace)))
    }

    /// As [`Self::service_from`]; else a ServiceEntry whose wildcard host covers `host`, the
    /// longest wildcard first.
    pub fn service_covering(&self, host: &str, from_namespace: &str) -> Option<&Arc<MeshService>> {
        let visible = |service: &&Arc<MeshService>| self.service_visible(service, from_namespace);
        let exact = self.service_from(host, from_namespace);
        exact.or_else(|| self.inner.services.covering(host).find(visible))
    }

    /// Is the service exported to the namespace?
    pub fn service_visible(&self, service: &MeshService, from_namespace: &str) -> bool {
        let default = &self.mesh().default_service_export_to;
        service.export_to.visible(default, &service.namespace, from_namespace)
    }

    /// Services defined in a namespace.
    pub fn services_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<MeshService>> {
        self.inner.services_by_namespace.namespace(namespace)
    }

    /// Whether the services of a namespace are the very same in both worlds.
    pub fn same_services_in(&self, other: &Snapshot, namespace: &str) -> bool {
        let (own, other) = (&self.inner.services_by_namespace, &other.inner.services_by_namespace);
        own.has_same_namespace(other, namespace)
    }

    /// Services that this workload serves: what its inbound side needs.
    pub fn services_of(&self, workload: &Workload) -> Vec<&Arc<MeshService>> {
        let serves = |service: &&Arc<MeshService>| service.selects(workload);
        self.services_in(&workload.namespace).filter(serves).collect()
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.inner.workloads.iter()
    }

    /// By the Pod's or WorkloadEntry's own name (not the Deployment's).
    pub fn workload_by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.inner.workloads.get(namespace, name)
    }

    /// As its proxy names it: by the Pod's or WorkloadEntry's name in the proxy's own cluster.
    pub fn workload_of(
        &self,
        cluster: &str,
        namespace: &str,
        name: &str,
    ) -> Option<&Arc<Workload>> {
        let remote = self.workload_by_name(namespace, &in_cluster(name, cluster));
        // A Pod of that name in the mesh's own cluster is another one; machines call their cluster
        // as they like.
        let is_it = |found: &&Arc<Workload>| {
            found.kind != WorkloadKind::Pod || cluster.is_empty() || *cluster == *found.cluster
        };
        remote.or_else(|| self.workload_by_name(namespace, name).filter(is_it))
    }

    /// The first workload (by namespace and name) with that address.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_ip(ip).first()
    }

    /// All workloads with that address; several on host networks and loopback.
    pub fn workloads_by_ip(&self, ip: IpAddr) -> &[Arc<Workload>] {
        self.inner.workloads_by_ip.get(ip)
    }

    /// Does any workload run under this service account, or may one of a group register itself?
    pub fn has_service_account(&self, namespace: &str, account: &str) -> bool {
        self.inner.workloads.namespace(namespace).any(|w| &*w.service_account == account)
            || self.has_group_account(namespace, account)
    }

    /// May workloads under this service account register themselves?
    pub fn has_group_account(&self, namespace: &str, account: &str) -> bool {
        let mut groups = self.inner.workload_groups.namespace(namespace);
        groups.any(|group| group.spec.service_account() == account)
    }

    /// What workloads that register themselves have in common.
    pub fn workload_group(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<&Arc<Resource<spec::WorkloadGroup>>> {
        self.inner.workload_groups.get(namespace, name)
    }

    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Resource<spec::Secret>>> {
        self.inner.secrets.get(namespace, name)
    }

    pub fn namespace(&self, name: &str) -> Option<&Arc<Resource<spec::Namespace>>> {
        self.inner.namespaces.get("", name)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Resource<spec::Namespace>>> {
        self.inner.namespaces.iter()
    }

    /// Labels of a namespace; none when it is not defined.
    pub fn namespace_labels(&self, name: &str) -> Arc<Labels> {
        self.namespace(name).map(|ns| ns.meta.labels.clone()).unwrap_or_default()
    }

    pub fn pod_templates(&self) -> impl Iterator<Item = &Arc<Resource<spec::PodTemplate>>> {
        self.inner.pod_templates.iter()
    }

    /// Cross-resource findings; made when first asked for.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        self.inner.diagnostics.get_or_init(|| check::all(self).into())
    }

    /// Keys of client labels that what a client gets for its outbound traffic may depend on:
    /// selectors of Sidecars and DestinationRules, `sourceLabels` of VirtualServices. Clients of
    /// one namespace that agree on these get the same.
    pub fn client_label_keys(&self) -> &BTreeSet<String> {
        self.inner.client_label_keys.get_or_init(|| policy::client_label_keys(self).into())
    }

    /// What the reader of this configuration makes of it once for everybody (one reader, one
    /// type): made when first asked for, forgotten when configuration changes.
    ///
    /// # Panics
    /// When asked for two types.
    pub fn derived<T: Send + Sync + 'static>(&self, make: impl FnOnce(&Snapshot) -> T) -> Arc<T> {
        let derived = self.inner.derived.get_or_init(|| Arc::new(make(self)));
        Arc::clone(derived).downcast().expect("a snapshot has one reader that derives")
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("services", &self.inner.services.len())
            .field("workloads", &self.workloads().count())
            .finish()
    }
}

/// Do `labels` have all of the selector's? An empty selector matches all.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests;
