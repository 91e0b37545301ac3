//! Folding changes into the next snapshot: resources first, then workloads, then only those
//! services that a change can have touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::service::{self, ServiceKind, table_key};
use super::table::Table;
use super::{Change, ChangeKind, Inner, MeshService, Snapshot, Touched, Workload, selects};
use crate::names::{name_and_cluster, resolve_host};
use crate::object::{Kind, Labels, Object, Resource, ResourceKey};
use crate::spec;

/// Where the Gateway API keeps CA certificates in a ConfigMap or Secret.
const ROOTS_KEY: &str = "ca.crt";

/// A Service or ServiceEntry whose MeshServices must be made anew.
type Dirty = BTreeSet<(ServiceKind, Arc<str>, Arc<str>)>;

impl Snapshot {
    /// The next snapshot and what differs. Changes of one key apply in order. The cost follows
    /// the changes and the sizes of the services they touch, not the world.
    pub fn apply(&self, changes: Vec<Change>) -> (Snapshot, Touched) {
        let mut inner = (*self.inner).clone();
        let mut touched = Touched::default();
        let mut dirty = Dirty::new();
        for Change { key, kind } in changes {
            match kind {
                ChangeKind::Upsert(object) => inner.upsert(object, &mut dirty, &mut touched),
                ChangeKind::Delete => inner.delete(&key, &mut dirty, &mut touched),
            }
        }
        for (kind, namespace, name) in &dirty {
            inner.rebuild_service(*kind, namespace, name, &mut touched);
        }
        touched.endpoints_only.retain(|host| !touched.services.contains(host));
        if !touched.only_endpoints() || !touched.workloads.is_empty() {
            inner.diagnostics = Default::default();
            inner.client_label_keys = Default::default();
            inner.attached = Default::default();
            inner.allocated = Default::default();
            inner.derived = Default::default();
        }
        (Snapshot { inner: Arc::new(inner) }, touched)
    }
}

impl Inner {
    fn upsert(&mut self, object: Object, dirty: &mut Dirty, touched: &mut Touched) {
        let Some(key) = object.key() else { return };
        let changed = match object {
            Object::Service(r) => {
                dirty.insert(kube_service(&key));
                put(&mut self.kube_services, r)
            }
            Object::ServiceEntry(r) => {
                dirty.insert((ServiceKind::ServiceEntry, key.namespace.clone(), key.name.clone()));
                put(&mut self.service_entries, r)
            }
            Object::Pod(r) => {
                let mut workload = Workload::of_pod(&r);
                self.locate(&mut workload);
                return self.put_workload(workload, dirty, touched);
            }
            Object::Node(r) => {
                put(&mut self.nodes, r);
                return self.relocate(&key.name, dirty, touched);
            }
            Object::WorkloadEntry(r) => {
                return self.put_workload(Workload::of_entry(&r), dirty, touched);
            }
            Object::WorkloadGroup(r) => put(&mut self.workload_groups, *r),
            Object::Endpoints(r) => {
                dirty.insert((ServiceKind::Kubernetes, key.namespace, key.name));
                put(&mut self.endpoints, r);
                return;
            }
            Object::EndpointSlice(r) => {
                self.dirty_slice(&r.meta.namespace, &r.meta.labels, dirty);
                if let Some(old) = self.endpoint_slices.get(&key.namespace, &key.name).cloned() {
                    self.dirty_slice(&old.meta.namespace, &old.meta.labels, dirty);
                }
                put(&mut self.endpoint_slices, r);
                return;
            }
            Object::PodTemplate(r) => {
                let name = Arc::from(format!("{}/{}", key.kind.as_str(), key.name));
                self.pod_templates.insert(&key.namespace, &name, Arc::new(r));
                return;
            }
            Object::Ignored { .. } => return,
            // Certificates are all that ConfigMaps are read for here.
            Object::ConfigMap(r) if r.spec.data.contains_key(ROOTS_KEY) => {
                put(&mut self.config_maps, r)
            }
            Object::ConfigMap(_) => self.config_maps.remove(&key.namespace, &key.name).is_some(),
            Object::Namespace(r) => {
                let said = |r: &Resource<spec::Namespace>| {
                    r.meta.annotations.get(service::TRAFFIC_DISTRIBUTION).cloned()
                };
                let before = self.namespaces.get("", &key.name).and_then(|old| said(old));
                if before != said(&r) {
                    self.dirty_namespace(&key.name, dirty);
                }
                put(&mut self.namespaces, r)
            }
            Object::Secret(r) => put(&mut self.secrets, r),
            Object::VirtualService(r) => self.virtual_services.insert(&r),
            Object::DestinationRule(r) => self.destination_rules.insert(&r),
            Object::Gateway(r) => put(&mut self.gateways, normal_gateway(r)),
            Object::Sidecar(r) => put(&mut self.sidecars, normal_sidecar(r)),
            Object::PeerAuthentication(r) => put(&mut self.peer_authentications, r),
            Object::GatewayClass(r) => put(&mut self.gateway_api.classes, r),
            Object::KubeGateway(r) => put(&mut self.gateway_api.gateways, *r),
            Object::ListenerSet(r) => put(&mut self.gateway_api.listener_sets, r),
            Object::HttpRoute(r) => put(&mut self.gateway_api.http_routes, r),
            Object::GrpcRoute(r) => put(&mut self.gateway_api.grpc_routes, r),
            Object::TlsRoute(r) => put(&mut self.gateway_api.tls_routes, r),
            Object::TcpRoute(r) => put(&mut self.gateway_api.tcp_routes, r),
            Object::UdpRoute(r) => put(&mut self.gateway_api.udp_routes, r),
            Object::BackendTlsPolicy(r) => put(&mut self.gateway_api.backend_tls_policies, r),
            Object::ReferenceGrant(r) => put(&mut self.gateway_api.reference_grants, r),
            Object::EnvoyFilter(r) => put(&mut self.envoy_filters, r),
            Object::ProxyConfig(r) => put(&mut self.proxy_configs, *r),
            Object::Telemetry(r) => put(&mut self.telemetries, r),
            Object::MeshConfig(r) => {
                let changed = put(&mut self.mesh_configs, *r);
                self.choose_mesh();
                changed
            }
        };
        if changed {
            touched.config.insert(key);
        }
    }

    fn delete(&mut self, key: &ResourceKey, dirty: &mut Dirty, touched: &mut Touched) {
        let ResourceKey { kind, namespace, name } = key;
        let removed = match kind {
            Kind::Service => {
                dirty.insert(kube_service(key));
                self.kube_services.remove(namespace, name).is_some()
            }
            Kind::ServiceEntry => {
                dirty.insert((ServiceKind::ServiceEntry, namespace.clone(), name.clone()));
                self.service_entries.remove(namespace, name).is_some()
            }
            Kind::Pod | Kind::WorkloadEntry => {
                return self.remove_workload(namespace, name, dirty, touched);
            }
            Kind::WorkloadGroup => self.workload_groups.remove(namespace, name).is_some(),
            Kind::Endpoints => {
                dirty.insert((ServiceKind::Kubernetes, namespace.clone(), name.clone()));
                self.endpoints.remove(namespace, name);
                return;
            }
            Kind::EndpointSlice => {
                if let Some(old) = self.endpoint_slices.remove(namespace, name) {
                    self.dirty_slice(namespace, &old.meta.labels, dirty);
                }
                return;
            }
            Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::Job => {
                self.pod_templates.remove(namespace, &format!("{}/{name}", kind.as_str()));
                return;
            }
            Kind::ConfigMap => self.config_maps.remove(namespace, name).is_some(),
            // Where its Pods ran stays true of them.
            Kind::Node => {
                self.nodes.remove(namespace, name);
                return;
            }
            Kind::Namespace => self.namespaces.remove(namespace, name).is_some(),
            Kind::Secret => self.secrets.remove(namespace, name).is_some(),
            Kind::VirtualService => self.virtual_services.remove(namespace, name),
            Kind::DestinationRule => self.destination_rules.remove(namespace, name),
            Kind::Gateway => self.gateways.remove(namespace, name).is_some(),
            Kind::Sidecar => self.sidecars.remove(namespace, name).is_some(),
            Kind::PeerAuthentication => self.peer_authentications.remove(namespace, name).is_some(),
            Kind::GatewayClass => self.gateway_api.classes.remove(namespace, name).is_some(),
            Kind::KubeGateway => self.gateway_api.gateways.remove(namespace, name).is_some(),
            Kind::ListenerSet => self.gateway_api.listener_sets.remove(namespace, name).is_some(),
            Kind::HttpRoute => self.gateway_api.http_routes.remove(namespace, name).is_some(),
            Kind::GrpcRoute => self.gateway_api.grpc_routes.remove(namespace, name).is_some(),
            Kind::TlsRoute => self.gateway_api.tls_routes.remove(namespace, name).is_some(),
            Kind::TcpRoute => self.gateway_api.tcp_routes.remove(namespace, name).is_some(),
            Kind::UdpRoute => self.gateway_api.udp_routes.remove(namespace, name).is_some(),
            Kind::BackendTlsPolicy => {
                self.gateway_api.backend_tls_policies.remove(namespace, name).is_some()
            }
            Kind::ReferenceGrant => {
                self.gateway_api.reference_grants.remove(namespace, name).is_some()
            }
            Kind::EnvoyFilter => self.envoy_filters.remove(namespace, name).is_some(),
            Kind::ProxyConfig => self.proxy_configs.remove(namespace, name).is_some(),
            Kind::Telemetry => self.telemetries.remove(namespace, name).is_some(),
            Kind::MeshConfig => {
                let removed = self.mesh_configs.remove(namespace, name).is_some();
                self.choose_mesh();
                removed
            }
        };
        if removed {
            touched.config.insert(key.clone());
        }
    }

    /// A bare document before the ConfigMap; the first by name when there are several.
    fn choose_mesh(&mut self) {
        self.mesh = match self.mesh_configs.iter().next() {
            Some(resource) => Arc::new(resource.spec.clone()),
            None => Arc::default(),
        };
    }

    /// A Pod stands where its node does, unless its own label says otherwise.
    fn locate(&self, workload: &mut Workload) {
        let node = self.nodes.get("", &workload.node);
        if let Some(node) = node.filter(|_| !workload.has_own_locality()) {
            workload.locality = Arc::from(locality(&node.meta.labels));
        }
    }

    /// What runs on a node whose labels may have changed.
    fn relocate(&mut self, node: &str, dirty: &mut Dirty, touched: &mut Touched) {
        let on_it = |workload: &&Arc<Workload>| &*workload.node == node;
        let moved: Vec<Workload> =
            self.workloads.iter().filter(on_it).map(|one| Workload::clone(one)).collect();
        for mut workload in moved {
            self.locate(&mut workload);
            self.put_workload(workload, dirty, touched);
        }
    }

    fn put_workload(&mut self, workload: Workload, dirty: &mut Dirty, touched: &mut Touched) {
        let old = self.workloads.get(&workload.namespace, &workload.name).cloned();
        if old.as_deref() == Some(&workload) {
            return;
        }
        let same = old.as_ref().is_some_and(|old| old.same_but_readiness(&workload));
        if let Some(old) = old {
            self.workloads_by_ip.remove(&old);
            self.dirty_selecting(&old, dirty);
        }
        // Pods of one owner stand beside each other: their names begin with its name.
        let workload = Arc::new(match self.workloads.before(&workload.namespace, &workload.name) {
            Some(neighbour) => workload.sharing(neighbour),
            None => workload,
        });
        if !same {
            touched.workloads.insert((workload.namespace.clone(), workload.name.clone()));
        }
        self.workloads.insert(&workload.namespace, &workload.name, workload.clone());
        self.workloads_by_ip.insert(&workload);
        self.dirty_selecting(&workload, dirty);
    }

    fn remove_workload(
        &mut self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        dirty: &mut Dirty,
        touched: &mut Touched,
    ) {
        let Some(old) = self.workloads.remove(namespace, name) else { return };
        self.workloads_by_ip.remove(&old);
        self.dirty_selecting(&old, dirty);
        touched.workloads.insert((namespace.clone(), name.clone()));
    }

    /// Services of the workload's namespace that select it, or list its address.
    fn dirty_selecting(&self, workload: &Workload, dirty: &mut Dirty) {
        for service in self.services_by_namespace.namespace(&workload.namespace) {
            let lists = || {
                service.endpoints.iter().any(|endpoint| {
                    endpoint.address.ip().is_some_and(|ip| workload.ips.contains(&ip))
                })
            };
            let touches = match &service.selector {
                Some(selector) if selects(selector, &workload.labels) => true,
                Some(selector) => !has_selected(service, selector) && lists(),
                None => lists(),
            };
            if touches {
                dirty.insert((service.kind, service.namespace.clone(), service.name.clone()));
            }
        }
    }

    /// All services of a namespace.
    fn dirty_namespace(&self, namespace: &Arc<str>, dirty: &mut Dirty) {
        for service in self.services_by_namespace.namespace(namespace) {
            dirty.insert((service.kind, service.namespace.clone(), service.name.clone()));
        }
    }

    fn dirty_slice(&self, namespace: &Arc<str>, labels: &Labels, dirty: &mut Dirty) {
        if let Some(name) = labels.get("kubernetes.io/service-name") {
            dirty.insert((ServiceKind::Kubernetes, namespace.clone(), Arc::from(name.as_str())));
        }
    }

    fn rebuild_service(
        &mut self,
        kind: ServiceKind,
        namespace: &Arc<str>,
        name: &Arc<str>,
        touched: &mut Touched,
    ) {
        let built: Vec<MeshService> = match kind {
            ServiceKind::Kubernetes => {
                service::of_clusters(self, namespace, name).into_iter().collect()
            }
            ServiceKind::ServiceEntry => {
                let entry = self.service_entries.get(namespace, name);
                entry.map(|r| service::of_entry(self, r)).unwrap_or_default()
            }
        };
        let prefix = table_key(kind, name, "");
        let is_ours = |service: &&Arc<MeshService>| service.kind == kind && service.name == *name;
        let old: Vec<Arc<MeshService>> =
            self.services_by_namespace.namespace(namespace).filter(is_ours).cloned().collect();
        let config_kind = match kind {
            ServiceKind::Kubernetes => Kind::Service,
            ServiceKind::ServiceEntry => Kind::ServiceEntry,
        };
        let key =
            ResourceKey { kind: config_kind, namespace: namespace.clone(), name: name.clone() };
        for gone in old.iter().filter(|old| !built.iter().any(|new| new.host == old.host)) {
            self.services_by_namespace.remove(namespace, &gone.table_key());
            self.services.remove(gone);
            touched.services.insert(gone.host.clone());
            touched.config.insert(key.clone());
        }
        debug_assert!(old.iter().all(|service| service.table_key().starts_with(&*prefix)));
        for new in built {
            let before = old.iter().find(|old| old.host == new.host);
            match before {
                Some(before) if before.same_definition(&new) => {
                    if before.endpoints == new.endpoints {
                        continue;
                    }
                    touched.endpoints_only.insert(new.host.clone());
                }
                _ => {
                    touched.services.insert(new.host.clone());
                    touched.config.insert(key.clone());
                }
            }
            if let Some(before) = before {
                self.services.remove(before);
            }
            let new = Arc::new(new);
            self.services_by_namespace.insert(namespace, &new.table_key(), new.clone());
            self.services.insert(new);
        }
    }
}

/// The Services of one name in all clusters are one.
fn kube_service(key: &ResourceKey) -> (ServiceKind, Arc<str>, Arc<str>) {
    let name = match name_and_cluster(&key.name) {
        (_, None) => key.name.clone(),
        (name, Some(_)) => Arc::from(name),
    };
    (ServiceKind::Kubernetes, key.namespace.clone(), name)
}

/// `region/zone/subzone` of a node, as far as its labels say; older labels where the new are not.
fn locality(labels: &Labels) -> String {
    let first = |keys: &[&str]| {
        keys.iter().find_map(|key| labels.get(*key)).map_or("", String::as_str).to_owned()
    };
    let region =
        first(&["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = first(&["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    let subzone = first(&["topology.istio.io/subzone"]);
    format!("{region}/{zone}/{subzone}").trim_end_matches('/').to_owned()
}

/// Are its endpoints selected workloads, not listed addresses? They are never mixed.
fn has_selected(service: &MeshService, selector: &Labels) -> bool {
    let first = service.endpoints.first().and_then(|endpoint| endpoint.workload.as_ref());
    first.is_some_and(|workload| selects(selector, &workload.labels))
}

/// Stores; true when the content differs from what was there.
fn put<T>(table: &mut Table<Resource<T>>, resource: Resource<T>) -> bool {
    let generation = resource.meta.generation;
    let (namespace, name) = (resource.meta.namespace.clone(), resource.meta.name.clone());
    let old = table.insert(&namespace, &name, Arc::new(resource));
    // 0 means the source gave no content hash: then any upsert counts as a change.
    old.is_none_or(|old| generation == 0 || old.meta.generation != generation)
}

/// Server hosts in lower case.
fn normal_gateway(mut gateway: Resource<spec::Gateway>) -> Resource<spec::Gateway> {
    for server in &mut gateway.spec.servers {
        for host in &mut server.hosts {
            // The namespace part is case-sensitive, but Kubernetes names are lower case anyway.
            host.make_ascii_lowercase();
        }
    }
    gateway
}

/// Egress hosts as `namespace/host`, `.` replaced, short hosts resolved; the egress proxy's too.
fn normal_sidecar(mut sidecar: Resource<spec::Sidecar>) -> Resource<spec::Sidecar> {
    let own = sidecar.meta.namespace.clone();
    let policy = sidecar.spec.outbound_traffic_policy.as_mut();
    if let Some(proxy) = policy.and_then(|policy| policy.egress_proxy.as_mut()) {
        proxy.host = resolve_host(&proxy.host, &own);
    }
    for host in sidecar.spec.egress.iter_mut().flat_map(|egress| &mut egress.hosts) {
        let Some((namespace, name)) = host.split_once('/') else { continue };
        let namespace = if namespace == "." { &own } else { namespace };
        let home = match namespace.trim_start_matches('~') {
            "" | "*" => &own,
            named => named,
        };
        *host = format!("{namespace}/{}", resolve_host(name, home));
    }
    sidecar
}
