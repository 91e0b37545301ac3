//! Istio's, Kubernetes' and Weft's own kinds: parsing, defaulting, validation, and the
//! [`Snapshot`], the immutable, indexed world that everything else reads.
//!
//! Pure: no sockets, no files, no clock. Must not know xDS, proxies or where resources come from.
//! The way through: text → [`parse_yaml`] → [`Object`]s and [`Diagnostic`]s →
//! [`Snapshot::apply`] → the next snapshot and what it [`Touched`].

mod diagnostic;
mod names;
mod object;
mod parse;
mod protojson;
mod snapshot;
pub mod spec;
mod validate;
mod yaml;

pub use diagnostic::{Diagnostic, Severity, render_human, render_json, render_yaml};
pub use names::{
    CLUSTER_DOMAIN, DEFAULT_CLUSTER, HOSTNAME, KUBERNETES, MESH_GATEWAY, ROOT_NAMESPACE,
    host_matches, hosts_overlap, in_cluster, name_and_cluster, resolve_gateway, resolve_host,
};
pub use object::{Kind, Labels, Meta, Object, Origin, OwnerReference, Resource, ResourceKey};
pub use parse::{Analysis, FILE_BYTES_MAX, analyze, load, parse_json, parse_yaml};
pub use snapshot::gateway_api;
pub use snapshot::{
    Address, Base, Change, ChangeKind, Cidr, Endpoint, MeshService, MtlsMode, Protocol, Resolution,
    ServiceAccount, ServiceKind, ServicePort, Snapshot, TargetPort, Template, Touched,
    TrafficDistribution, Visibility, Workload, WorkloadKind,
};
pub use yaml::{to_yaml, yaml_documents};
