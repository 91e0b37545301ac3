//! The part of the world that any piece of a translation may ask about, told apart by identity.

use std::sync::Arc;

use super::gateway_api;
use super::table::Table;
use super::{Inner, Snapshot};
use crate::object::Resource;
use crate::spec;

/// Everything but what is looked up by host (services with their endpoints, VirtualServices,
/// DestinationRules) and what only a proxy's own side or gateways read (workloads, Secrets).
/// Two worlds with the same base differ in those at most.
#[derive(Clone)]
pub struct Base {
    mesh: Arc<spec::MeshConfig>,
    namespaces: Table<Resource<spec::Namespace>>,
    gateways: Table<Resource<spec::Gateway>>,
    sidecars: Table<Resource<spec::Sidecar>>,
    peer_authentications: Table<Resource<spec::PeerAuthentication>>,
    config_maps: Table<Resource<spec::ConfigMap>>,
    gateway_api: gateway_api::Tables,
    envoy_filters: Table<Resource<spec::EnvoyFilter>>,
    proxy_configs: Table<Resource<spec::ProxyConfigResource>>,
    telemetries: Table<Resource<spec::Telemetry>>,
}

impl Snapshot {
    /// The base of this world; costs a few reference counts.
    pub fn base(&self) -> Base {
        // A table that is added must be named here: it belongs to the base unless translation
        // asks for its content in ways that parts record.
        let Inner {
            mesh,
            mesh_configs: _,
            namespaces,
            // Workloads carry what is asked of them.
            nodes: _,
            secrets: _,
            kube_services: _,
            service_entries: _,
            // What registers itself becomes a workload.
            workload_groups: _,
            endpoints: _,
            endpoint_slices: _,
            pod_templates: _,
            gateways,
            sidecars,
            peer_authentications,
            config_maps,
            gateway_api,
            envoy_filters,
            proxy_configs,
            telemetries,
            virtual_services: _,
            destination_rules: _,
            workloads: _,
            workloads_by_ip: _,
            services: _,
            services_by_namespace: _,
            diagnostics: _,
            client_label_keys: _,
            // Made from the tables; whoever asks it for services must ask for them by host, too.
            attached: _,
            // Read where listeners and routes are made, which are no parts.
            allocated: _,
            derived: _,
        } = &*self.inner;
        Base {
            mesh: Arc::clone(mesh),
            namespaces: namespaces.clone(),
            gateways: gateways.clone(),
            sidecars: sidecars.clone(),
            peer_authentications: peer_authentications.clone(),
            config_maps: config_maps.clone(),
            gateway_api: gateway_api.clone(),
            envoy_filters: envoy_filters.clone(),
            proxy_configs: proxy_configs.clone(),
            telemetries: telemetries.clone(),
        }
    }
}

impl Base {
    /// Whether both are the very same, which tells without a look that they are equal.
    pub fn is_same(&self, other: &Base) -> bool {
        let Base {
            mesh,
            namespaces,
            gateways,
            sidecars,
            peer_authentications,
            config_maps,
            gateway_api,
            envoy_filters,
            proxy_configs,
            telemetries,
        } = self;
        Arc::ptr_eq(mesh, &other.mesh)
            && namespaces.is_same(&other.namespaces)
            && gateways.is_same(&other.gateways)
            && sidecars.is_same(&other.sidecars)
            && peer_authentications.is_same(&other.peer_authentications)
            && config_maps.is_same(&other.config_maps)
            && gateway_api.is_same(&other.gateway_api)
            && envoy_filters.is_same(&other.envoy_filters)
            && proxy_configs.is_same(&other.proxy_configs)
            && telemetries.is_same(&other.telemetries)
    }
}
