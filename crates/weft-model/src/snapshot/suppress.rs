//! Findings that their resource asks not to be told of.

use std::sync::Arc;

use super::Snapshot;
use super::table::Table;
use crate::diagnostic::{Diagnostic, suppresses};
use crate::object::{Kind, Labels, Resource, ResourceKey};

impl Snapshot {
    /// Whether the finding's resource carries `galley.istio.io/analyze-suppress` with its code. What is
    /// in force is not changed by it.
    pub fn suppresses(&self, found: &Diagnostic) -> bool {
        let annotations = found.resource.as_ref().and_then(|key| self.annotations(key));
        found.suppressed || annotations.is_some_and(|all| suppresses(all, found.code))
    }

    fn annotations(&self, key: &ResourceKey) -> Option<&Labels> {
        let ResourceKey { kind, namespace, name } = key;
        let of = Of { namespace, name };
        let (inner, api) = (&*self.inner, &self.inner.gateway_api);
        match kind {
            Kind::Namespace => of.find(&inner.namespaces),
            Kind::Node => of.find(&inner.nodes),
            Kind::Service => of.find(&inner.kube_services),
            Kind::Pod | Kind::WorkloadEntry => {
                inner.workloads.get(namespace, name).map(|workload| &*workload.annotations)
            }
            Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::Job => {
                let name = format!("{}/{name}", kind.as_str());
                Of { namespace, name: &name }.find(&inner.pod_templates)
            }
            Kind::Endpoints => of.find(&inner.endpoints),
            Kind::EndpointSlice => of.find(&inner.endpoint_slices),
            Kind::Secret => of.find(&inner.secrets),
            Kind::ConfigMap => of.find(&inner.config_maps),
            Kind::MeshConfig => of.find(&inner.mesh_configs),
            Kind::ServiceEntry => of.find(&inner.service_entries),
            Kind::WorkloadGroup => of.find(&inner.workload_groups),
            Kind::VirtualService => {
                self.virtual_service(namespace, name).map(|rules| &*rules.meta.annotations)
            }
            Kind::DestinationRule => {
                self.destination_rule_named(namespace, name).map(|rule| &*rule.meta.annotations)
            }
            Kind::Gateway => of.find(&inner.gateways),
            Kind::Sidecar => of.find(&inner.sidecars),
            Kind::PeerAuthentication => of.find(&inner.peer_authentications),
            Kind::GatewayClass => of.find(&api.classes),
            Kind::KubeGateway => of.find(&api.gateways),
            Kind::ListenerSet => of.find(&api.listener_sets),
            Kind::HttpRoute => of.find(&api.http_routes),
            Kind::GrpcRoute => of.find(&api.grpc_routes),
            Kind::TlsRoute => of.find(&api.tls_routes),
            Kind::TcpRoute => of.find(&api.tcp_routes),
            Kind::UdpRoute => of.find(&api.udp_routes),
            Kind::BackendTlsPolicy => of.find(&api.backend_tls_policies),
            Kind::ReferenceGrant => of.find(&api.reference_grants),
            Kind::EnvoyFilter => of.find(&inner.envoy_filters),
            Kind::ProxyConfig => of.find(&inner.proxy_configs),
            Kind::Telemetry => of.find(&inner.telemetries),
        }
    }
}

struct Of<'k> {
    namespace: &'k str,
    name: &'k str,
}

impl Of<'_> {
    fn find<'t, T>(&self, table: &'t Table<Resource<T>>) -> Option<&'t Labels> {
        let found: Option<&'t Arc<Resource<T>>> = table.get(self.namespace, self.name);
        found.map(|resource| &*resource.meta.annotations)
    }
}
