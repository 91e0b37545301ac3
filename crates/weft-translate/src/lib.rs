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
mod locality;
mod policy;
mod ports;
mod route;
mod scope;
mod secret;
mod view;

use prost::{Message, Name};
use weft_model::{Diagnostic, Snapshot};
use weft_xds::Resource;
use weft_xds::pb::envoy::config::cluster::v3::Cluster;

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

/// What a client's place in the mesh decides, as far as many clients share it: everything a
/// sidecar needs for outbound traffic, all of a proxyless client. Empty for gateways.
/// `view` is a [`ProxyView::shared`]. Equal arguments give equal bytes.
pub fn translate_shared(snapshot: &Snapshot, view: &ProxyView) -> (Resources, Vec<Diagnostic>) {
    let scope = Scope::new(snapshot, view);
    let mut findings = Findings::default();
    let (built, clusters) = match view.kind {
        ProxyKind::Gateway => Default::default(),
        ProxyKind::Sidecar | ProxyKind::Grpc => {
            (listener::outbound(&scope, &mut findings), cluster::outbound(&scope, &mut findings))
        }
    };
    (resources(&built, &clusters), findings.into_list())
}

/// The rest: a sidecar's inbound side, all of a gateway. Takes the place of what has the same name
/// in the shared part.
pub fn translate_own(snapshot: &Snapshot, view: &ProxyView) -> (Resources, Vec<Diagnostic>) {
    let scope = Scope::new(snapshot, view);
    let mut findings = Findings::default();
    let (built, clusters) = match view.kind {
        ProxyKind::Grpc => Default::default(),
        ProxyKind::Sidecar => (listener::inbound(&scope, &mut findings), cluster::inbound(&scope)),
        ProxyKind::Gateway => {
            (listener::gateway(&scope, &mut findings), cluster::outbound(&scope, &mut findings))
        }
    };
    (resources(&built, &clusters), findings.into_list())
}

/// Everything a proxy runs, but endpoints and secrets.
pub fn translate(snapshot: &Snapshot, view: &ProxyView) -> (Resources, Vec<Diagnostic>) {
    let (mut all, mut findings) = translate_shared(snapshot, &view.shared(snapshot));
    let (own, own_findings) = translate_own(snapshot, view);
    let merge = |all: &mut Vec<Resource>, own: Vec<Resource>| {
        all.retain(|shared| own.iter().all(|own| own.name != shared.name));
        all.extend(own);
        all.sort_by(|a, b| a.name.cmp(&b.name));
    };
    merge(&mut all.listeners, own.listeners);
    merge(&mut all.routes, own.routes);
    merge(&mut all.clusters, own.clusters);
    findings.extend(own_findings);
    (all, findings)
}

fn resources(built: &listener::Built, clusters: &[Cluster]) -> Resources {
    Resources {
        listeners: encode(&built.listeners, |listener| &listener.name),
        routes: encode(&built.routes, |routes| &routes.name),
        clusters: encode(clusters, |cluster| &cluster.name),
    }
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
