//! Snapshot and proxy view in, xDS resources and diagnostics out.
//!
//! Owns: what Istio's resources mean in Envoy's words, for sidecars, gateways and proxyless gRPC.
//! Must not know: sockets, clocks, files, other proxies. Never fails and never blocks; what
//! cannot be expressed becomes a [`Diagnostic`] and the rest goes on.
//!
//! Reading order: `view` and `scope` (what a proxy may see), `cluster`, `endpoint`, `route`,
//! `listener`, `gateway`, `grpc`; `build` holds constructors for Envoy's messages.

mod build;
mod cluster;
mod endpoint;
mod findings;
mod grpc;
mod listener;
mod policy;
mod ports;
mod route;
mod scope;
mod secret;
mod view;

use prost::{Message, Name};
use weft_model::{Diagnostic, Snapshot};
use weft_xds::Resource;

use findings::Findings;
use scope::Scope;

pub use findings::{LISTENER_CONFLICT, NOT_IMPLEMENTED};
pub use view::{Flavor, Interception, ProxyKind, ProxyView};

/// What a proxy subscribes to by type, without endpoints and secrets. Each list is ordered by
/// name and has no name twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub listeners: Vec<Resource>,
    pub routes: Vec<Resource>,
    pub clusters: Vec<Resource>,
}

/// Everything a proxy runs, but endpoints and secrets. Equal arguments give equal bytes.
pub fn translate(snapshot: &Snapshot, view: &ProxyView) -> (Resources, Vec<Diagnostic>) {
    let scope = Scope::new(snapshot, view);
    let mut findings = Findings::default();
    let built = listener::all(&scope, &mut findings);
    let clusters = cluster::all(&scope, &mut findings);
    let resources = Resources {
        listeners: encode(&built.listeners, |listener| &listener.name),
        routes: encode(&built.routes, |routes| &routes.name),
        clusters: encode(&clusters, |cluster| &cluster.name),
    };
    (resources, findings.into_list())
}

/// The endpoints of one EDS cluster; `None` when the proxy has no such cluster. Apart from
/// [`translate`] so that a change of endpoints costs endpoints only.
pub fn endpoints(snapshot: &Snapshot, view: &ProxyView, cluster_name: &str) -> Option<Resource> {
    endpoint::of_cluster(&Scope::new(snapshot, view), cluster_name)
}

/// A credential that a gateway refers to (`kubernetes://NAME`, `kubernetes://NAME-cacert`), from
/// the gateway's own namespace. Never `default` and `ROOTCA`: those are the CA's.
pub fn secret(snapshot: &Snapshot, view: &ProxyView, name: &str) -> Option<Resource> {
    secret::of_name(&Scope::new(snapshot, view), name)
}

fn encode<M: Message + Name>(messages: &[M], name: fn(&M) -> &String) -> Vec<Resource> {
    let mut resources: Vec<Resource> =
        messages.iter().map(|message| Resource::new(name(message).as_str(), message)).collect();
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    resources.dedup_by(|a, b| a.name == b.name);
    resources
}
