//! Resources as they come from a source: kind, key, metadata, origin and typed spec.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::spec;

/// Labels, selectors and annotations.
pub type Labels = BTreeMap<String, String>;

/// A parsed resource of any kind that Weft reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Service(Resource<spec::Service>),
    Pod(Resource<spec::Pod>),
    /// A workload's template (Deployment, StatefulSet, DaemonSet, ReplicaSet, Job): known, but
    /// without endpoints of its own.
    PodTemplate(Resource<spec::PodTemplate>),
    Endpoints(Resource<spec::Endpoints>),
    EndpointSlice(Resource<spec::EndpointSlice>),
    Namespace(Resource<spec::Namespace>),
    /// A cluster's machine; its labels say where it stands.
    Node(Resource<spec::Node>),
    Secret(Resource<spec::Secret>),
    /// A ConfigMap; only `istio` in the root namespace is looked at (for its `mesh` key).
    ConfigMap(Resource<spec::ConfigMap>),
    ServiceEntry(Resource<spec::ServiceEntry>),
    WorkloadEntry(Resource<spec::WorkloadEntry>),
    WorkloadGroup(Box<Resource<spec::WorkloadGroup>>),
    VirtualService(Resource<spec::VirtualService>),
    DestinationRule(Box<Resource<spec::DestinationRule>>),
    Gateway(Resource<spec::Gateway>),
    Sidecar(Resource<spec::Sidecar>),
    PeerAuthentication(Resource<spec::PeerAuthentication>),
    GatewayClass(Resource<spec::gateway_api::GatewayClass>),
    /// The Gateway API's Gateway, not Istio's.
    KubeGateway(Box<Resource<spec::gateway_api::Gateway>>),
    ListenerSet(Resource<spec::gateway_api::ListenerSet>),
    HttpRoute(Resource<spec::gateway_api::HttpRoute>),
    GrpcRoute(Resource<spec::gateway_api::GrpcRoute>),
    TlsRoute(Resource<spec::gateway_api::TlsRoute>),
    TcpRoute(Resource<spec::gateway_api::TcpRoute>),
    /// Read only to be refused.
    UdpRoute(Resource<spec::gateway_api::TcpRoute>),
    BackendTlsPolicy(Resource<spec::gateway_api::BackendTlsPolicy>),
    ReferenceGrant(Resource<spec::gateway_api::ReferenceGrant>),
    EnvoyFilter(Resource<spec::EnvoyFilter>),
    ProxyConfig(Box<Resource<spec::ProxyConfigResource>>),
    Telemetry(Resource<spec::Telemetry>),
    /// A bare MeshConfig document, or the one inside ConfigMap `istio`.
    MeshConfig(Box<Resource<spec::MeshConfig>>),
    /// A kind that Weft does not read: `apiVersion` and `kind` as written.
    Ignored {
        api_version: String,
        kind: String,
        meta: Meta,
    },
}

/// The kinds Weft reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Node,
    Service,
    Pod,
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    Endpoints,
    EndpointSlice,
    Secret,
    ConfigMap,
    MeshConfig,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
    VirtualService,
    DestinationRule,
    Gateway,
    Sidecar,
    PeerAuthentication,
    GatewayClass,
    /// The Gateway API's, not Istio's.
    KubeGateway,
    ListenerSet,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    BackendTlsPolicy,
    ReferenceGrant,
    EnvoyFilter,
    ProxyConfig,
    Telemetry,
}

impl Kind {
    /// The kind's name as in YAML.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Service => "Service",
            Kind::Pod => "Pod",
            Kind::Deployment => "Deployment",
            Kind::StatefulSet => "StatefulSet",
            Kind::DaemonSet => "DaemonSet",
            Kind::ReplicaSet => "ReplicaSet",
            Kind::Job => "Job",
            Kind::Endpoints => "Endpoints",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Secret => "Secret",
            Kind::ConfigMap => "ConfigMap",
            Kind::MeshConfig => "MeshConfig",
            Kind::ServiceEntry => "ServiceEntry",
            Kind::WorkloadEntry => "WorkloadEntry",
            Kind::WorkloadGroup => "WorkloadGroup",
            Kind::VirtualService => "VirtualService",
            Kind::DestinationRule => "DestinationRule",
            Kind::Gateway | Kind::KubeGateway => "Gateway",
            Kind::Sidecar => "Sidecar",
            Kind::PeerAuthentication => "PeerAuthentication",
            Kind::GatewayClass => "GatewayClass",
            Kind::ListenerSet => "ListenerSet",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::TlsRoute => "TLSRoute",
            Kind::TcpRoute => "TCPRoute",
            Kind::UdpRoute => "UDPRoute",
            Kind::BackendTlsPolicy => "BackendTLSPolicy",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::EnvoyFilter => "EnvoyFilter",
            Kind::ProxyConfig => "ProxyConfig",
            Kind::Telemetry => "Telemetry",
        }
    }
}

/// Identity of a resource. `Namespace`, `Node` and bare `MeshConfig` have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.as_str(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
        }
    }
}

/// Where a resource was read: file as the source names it, document index from 0, line from 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub file: Arc<str>,
    pub document: u32,
    pub line: u32,
}

impl Default for Origin {
    fn default() -> Self {
        Origin { file: Arc::from(""), document: 0, line: 0 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerReference {
    pub kind: String,
    pub name: String,
    pub controller: bool,
}

/// Metadata common to all kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub labels: Arc<Labels>,
    pub annotations: Arc<Labels>,
    /// `metadata.creationTimestamp` as seconds since the Unix epoch; orders "oldest wins".
    pub creation: Option<i64>,
    /// Hash of the resource's content; equal content, equal generation.
    pub generation: u64,
    /// `metadata.generation`, as the API server counts; 0 when the source has none.
    pub observed: i64,
    pub owners: Vec<OwnerReference>,
    /// `metadata.deletionTimestamp` is set: the resource is going away.
    pub deleting: bool,
    pub origin: Origin,
}

impl Default for Meta {
    fn default() -> Self {
        Meta {
            name: Arc::from(""),
            namespace: Arc::from("default"),
            labels: Arc::default(),
            annotations: Arc::default(),
            creation: None,
            generation: 0,
            observed: 0,
            owners: Vec::new(),
            deleting: false,
            origin: Origin::default(),
        }
    }
}

impl Meta {
    /// Istio's order for "the oldest wins": creation time, then name, then namespace.
    pub fn age_order(&self, other: &Meta) -> std::cmp::Ordering {
        let age = |meta: &Meta| meta.creation.unwrap_or(i64::MAX);
        age(self)
            .cmp(&age(other))
            .then_with(|| self.name.cmp(&other.name))
            .then_with(|| self.namespace.cmp(&other.namespace))
    }
}

/// One resource: metadata and typed spec (for Pod and Endpoints also what is beside `spec`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource<T> {
    pub meta: Meta,
    pub spec: T,
}

impl Object {
    pub fn meta(&self) -> &Meta {
        match self {
            Object::Service(r) => &r.meta,
            Object::Pod(r) => &r.meta,
            Object::PodTemplate(r) => &r.meta,
            Object::Endpoints(r) => &r.meta,
            Object::EndpointSlice(r) => &r.meta,
            Object::Namespace(r) => &r.meta,
            Object::Node(r) => &r.meta,
            Object::Secret(r) => &r.meta,
            Object::ConfigMap(r) => &r.meta,
            Object::ServiceEntry(r) => &r.meta,
            Object::WorkloadEntry(r) => &r.meta,
            Object::WorkloadGroup(r) => &r.meta,
            Object::VirtualService(r) => &r.meta,
            Object::DestinationRule(r) => &r.meta,
            Object::Gateway(r) => &r.meta,
            Object::Sidecar(r) => &r.meta,
            Object::PeerAuthentication(r) => &r.meta,
            Object::GatewayClass(r) => &r.meta,
            Object::KubeGateway(r) => &r.meta,
            Object::ListenerSet(r) => &r.meta,
            Object::HttpRoute(r) => &r.meta,
            Object::GrpcRoute(r) => &r.meta,
            Object::TlsRoute(r) => &r.meta,
            Object::TcpRoute(r) => &r.meta,
            Object::UdpRoute(r) => &r.meta,
            Object::BackendTlsPolicy(r) => &r.meta,
            Object::ReferenceGrant(r) => &r.meta,
            Object::EnvoyFilter(r) => &r.meta,
            Object::ProxyConfig(r) => &r.meta,
            Object::Telemetry(r) => &r.meta,
            Object::MeshConfig(r) => &r.meta,
            Object::Ignored { meta, .. } => meta,
        }
    }

    /// `None` for kinds that Weft does not read.
    pub fn kind(&self) -> Option<Kind> {
        Some(match self {
            Object::Service(_) => Kind::Service,
            Object::Pod(_) => Kind::Pod,
            Object::PodTemplate(r) => r.spec.kind,
            Object::Endpoints(_) => Kind::Endpoints,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::Secret(_) => Kind::Secret,
            Object::ConfigMap(_) => Kind::ConfigMap,
            Object::ServiceEntry(_) => Kind::ServiceEntry,
            Object::WorkloadEntry(_) => Kind::WorkloadEntry,
            Object::WorkloadGroup(_) => Kind::WorkloadGroup,
            Object::VirtualService(_) => Kind::VirtualService,
            Object::DestinationRule(_) => Kind::DestinationRule,
            Object::Gateway(_) => Kind::Gateway,
            Object::Sidecar(_) => Kind::Sidecar,
            Object::PeerAuthentication(_) => Kind::PeerAuthentication,
            Object::GatewayClass(_) => Kind::GatewayClass,
            Object::KubeGateway(_) => Kind::KubeGateway,
            Object::ListenerSet(_) => Kind::ListenerSet,
            Object::HttpRoute(_) => Kind::HttpRoute,
            Object::GrpcRoute(_) => Kind::GrpcRoute,
            Object::TlsRoute(_) => Kind::TlsRoute,
            Object::TcpRoute(_) => Kind::TcpRoute,
            Object::UdpRoute(_) => Kind::UdpRoute,
            Object::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Object::ReferenceGrant(_) => Kind::ReferenceGrant,
            Object::EnvoyFilter(_) => Kind::EnvoyFilter,
            Object::ProxyConfig(_) => Kind::ProxyConfig,
            Object::Telemetry(_) => Kind::Telemetry,
            Object::MeshConfig(_) => Kind::MeshConfig,
            Object::Ignored { .. } => return None,
        })
    }

    /// `None` for kinds that Weft does not read.
    pub fn key(&self) -> Option<ResourceKey> {
        let meta = self.meta();
        Some(ResourceKey {
            kind: self.kind()?,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        })
    }
}
