//! Snapshot and proxy view in, xDS resources and diagnostics out.
//!
//! Owns: what Istio's resources mean in Envoy's words, for sidecars, gateways and proxyless gRPC.
//! Must not know: sockets, clocks, files, other proxies. Never fails and never blocks; what
//! cannot be expressed becomes a [`Diagnostic`] and the rest goes on.
//!
//! Reading order: `view` and `scope` (what a proxy may see), `cluster`, `endpoint`, `route`,
//! `listener`, `gateway`, `grpc`, `name_table`, `filters` (EnvoyFilters patch what the others made); `build`
//! holds constructors for Envoy's messages.

mod build;
mod cluster;
mod endpoint;
mod filters;
mod findings;
mod grpc;
mod listener;
mod locality;
mod memo;
mod metrics;
mod name_table;
mod policy;
mod ports;
mod route;
mod scope;
mod secret;
mod settings;
mod telemetry;
mod view;

use std::sync::Arc;

use prost::{Message, Name};
use weft_model::spec::PatchContext;
use weft_model::{Diagnostic, MeshService, Snapshot};
use weft_xds::{Resource, nds};

use build::hcm::Side;
use findings::Findings;
use scope::Scope;

pub use findings::{FILTER_CONFLICT, LISTENER_CONFLICT, NOT_IMPLEMENTED};
pub use memo::{Assignment, Endpoints, Memo};
pub use view::{Flavor, Interception, ProxyKind, ProxyView};

/// What a proxy subscribes to by type, without endpoints and secrets. Each list is ordered by
/// name and has no name twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub listeners: Vec<Resource>,
    pub routes: Vec<Resource>,
    pub clusters: Vec<Resource>,
}

/// What a client's place in the mesh decides, and what the next translation can keep of it.
pub struct Shared {
    pub resources: Resources,
    pub findings: Vec<Diagnostic>,
    pub memo: Memo,
}

/// What a client's place in the mesh decides, as far as many clients share it: everything a
/// sidecar needs for outbound traffic, a gateway's clusters, all of a proxyless client.
/// `view` is a [`ProxyView::shared`]. Equal arguments give equal bytes.
///
/// `before` are memos of views that are equal but for the namespace, the best one first. They make
/// it faster and change nothing: without any the result is the same.
pub fn translate_shared(snapshot: &Snapshot, view: &ProxyView, before: &[&Memo]) -> Shared {
    let scope = Scope::new(snapshot, view);
    let base = snapshot.base();
    let before: Vec<&Memo> = before.iter().filter(|memo| memo.is_of(&base)).copied().collect();
    let (mut memo, mut findings) = (Memo::of(base), Findings::default());
    let mut built = listener::outbound(&scope, &mut findings);
    settings::apply(&scope, &mut built);
    metrics::apply(&scope, Side::Outbound, &mut built, &mut findings);
    let mut clusters = cluster::outbound(&scope, &before, &mut memo, &mut findings);
    let (context, of_listeners) = match view.kind {
        ProxyKind::Gateway => (PatchContext::Gateway, None),
        ProxyKind::Sidecar | ProxyKind::Grpc => (PatchContext::SidecarOutbound, Some(&mut built)),
    };
    filters::apply(&scope, context, of_listeners, Some(&mut clusters), &mut findings);
    Shared { resources: resources(&built, clusters), findings: findings.into_list(), memo }
}

/// The rest: a sidecar's inbound side, a gateway's listeners and routes. Takes the place of what
/// has the same name in the shared part.
pub fn translate_own(snapshot: &Snapshot, view: &ProxyView) -> (Resources, Vec<Diagnostic>) {
    let scope = Scope::new(snapshot, view);
    let mut findings = Findings::default();
    let (mut built, clusters) = match view.kind {
        ProxyKind::Grpc => Default::default(),
        ProxyKind::Sidecar => (listener::inbound(&scope, &mut findings), cluster::inbound(&scope)),
        ProxyKind::Gateway => {
            (listener::gateway(&scope, &mut findings), cluster::of_gateway(&scope))
        }
    };
    settings::apply(&scope, &mut built);
    let side = match view.kind {
        ProxyKind::Gateway => Side::Gateway,
        ProxyKind::Sidecar | ProxyKind::Grpc => Side::Inbound,
    };
    metrics::apply(&scope, side, &mut built, &mut findings);
    let mut clusters = encode(&clusters, |cluster| &cluster.name);
    let (context, of_clusters) = match view.kind {
        ProxyKind::Gateway => (PatchContext::Gateway, None),
        ProxyKind::Sidecar | ProxyKind::Grpc => (PatchContext::SidecarInbound, Some(&mut clusters)),
    };
    filters::apply(&scope, context, Some(&mut built), of_clusters, &mut findings);
    (resources(&built, clusters), findings.into_list())
}

/// Whether [`translate_own`] may give another result for `now` than for `before`. False is certain.
pub fn own_differs(before: &Snapshot, now: &Snapshot, view: &ProxyView) -> bool {
    match view.kind {
        ProxyKind::Grpc => false,
        // It reads whatever rules are bound to its Gateways.
        ProxyKind::Gateway => true,
        ProxyKind::Sidecar => {
            let (then, now) = (Scope::new(before, view), Scope::new(now, view));
            let same_workload = match (then.workload, now.workload) {
                (Some(then), Some(now)) => Arc::ptr_eq(then, now),
                (None, None) => true,
                _ => false,
            };
            let same_services = || {
                then.snapshot.same_services_in(now.snapshot, &view.namespace) || {
                    let (then, now) = (then.own_services(), now.own_services());
                    let same = |(a, b): (&Arc<MeshService>, &Arc<MeshService>)| Arc::ptr_eq(a, b);
                    then.len() == now.len() && then.into_iter().zip(now).all(same)
                }
            };
            !(same_workload && before.base().is_same(&now.snapshot.base()) && same_services())
        }
    }
}

/// What the workload of a sidecar is answered when it asks for addresses of names, by a proxy that
/// answers DNS; the same for all of a [`ProxyView::shared`]. `None` for other kinds of proxies.
pub fn name_table(snapshot: &Snapshot, view: &ProxyView) -> Option<Resource> {
    match view.kind {
        ProxyKind::Sidecar => {
            let table = name_table::table(&Scope::new(snapshot, view));
            Some(Resource::new(nds::NAME, &table))
        }
        ProxyKind::Gateway | ProxyKind::Grpc => None,
    }
}

/// What is wrong with resources whoever they are for, as far as only Envoy's messages show it, and
/// what our own proxy will not do of them.
pub fn check(snapshot: &Snapshot) -> Vec<Diagnostic> {
    filters::check(snapshot)
}

/// Everything a proxy runs, but endpoints and secrets.
pub fn translate(snapshot: &Snapshot, view: &ProxyView) -> (Resources, Vec<Diagnostic>) {
    let shared = translate_shared(snapshot, &view.shared(snapshot), &[]);
    let Shared { resources: mut all, mut findings, .. } = shared;
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

fn resources(built: &listener::Built, clusters: Vec<Resource>) -> Resources {
    Resources {
        listeners: encode(&built.listeners, |listener| &listener.name),
        routes: encode(&built.routes, |routes| &routes.name),
        clusters,
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
