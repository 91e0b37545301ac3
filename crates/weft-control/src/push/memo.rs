//! Results of translation, computed once for equal arguments.
//!
//! The memo keys are the arguments themselves. What proxies with different views
//! have in common shares its bytes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use weft_model::{Diagnostic, Snapshot};
use weft_translate::ProxyView;
use weft_xds::names::ClusterName;
use weft_xds::{Resource, ResourceType};

use crate::world::State;

/// Endpoint assignments kept; Istio's cache has the same bound.
const ENDPOINTS_MAX: usize = 60_000;
/// Views whose translation is kept; more than streams may be open.
const VIEWS_MAX: usize = 20_000;

/// Everything one view runs, but endpoints and secrets. Lists are ordered by name.
pub(crate) struct Translated {
    pub(crate) clusters: Arc<[Resource]>,
    pub(crate) listeners: Arc<[Resource]>,
    pub(crate) routes: Arc<[Resource]>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Translated {
    /// The list of a type; endpoints and secrets have none.
    pub(crate) fn list(&self, ty: ResourceType) -> Option<&Arc<[Resource]>> {
        match ty {
            ResourceType::Cluster => Some(&self.clusters),
            ResourceType::Listener => Some(&self.listeners),
            ResourceType::Route => Some(&self.routes),
            ResourceType::Endpoint | ResourceType::Secret => None,
        }
    }
}

/// A state of the world that was published to proxies, with its translations.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) state: Arc<State>,
    views: Mutex<Views>,
}

#[derive(Default)]
struct Views {
    translated: HashMap<ProxyView, Arc<OnceLock<Arc<Translated>>>>,
    /// One body per content, for all views.
    bodies: HashMap<Arc<str>, Bytes>,
}

impl Published {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { state, views: Mutex::default() }
    }

    /// A newer state that differs, for translation, only to the views `touched` picks.
    pub(super) fn with_workloads(
        &self,
        state: Arc<State>,
        touched: impl Fn(&ProxyView) -> bool,
    ) -> Self {
        let mut views = lock(&self.views);
        // Content that nobody runs any more.
        views.bodies.retain(|_, body| !body.is_unique());
        let kept = views.translated.iter().filter(|(view, _)| !touched(view));
        let translated = kept.map(|(view, cell)| (view.clone(), Arc::clone(cell))).collect();
        let views = Views { translated, bodies: views.bodies.clone() };
        Self { state, views: Mutex::new(views) }
    }

    /// What a view runs. The first caller computes, others with the same view wait.
    pub(crate) fn translated(&self, view: &ProxyView) -> Arc<Translated> {
        let cell = {
            let mut views = lock(&self.views);
            if views.translated.len() >= VIEWS_MAX {
                views.translated.clear();
            }
            Arc::clone(views.translated.entry(view.clone()).or_default())
        };
        Arc::clone(cell.get_or_init(|| {
            let (resources, diagnostics) = weft_translate::translate(&self.state.snapshot, view);
            let mut views = lock(&self.views);
            let mut share = |resources: Vec<Resource>| -> Arc<[Resource]> {
                resources.into_iter().map(|resource| views.share(resource)).collect()
            };
            let clusters = share(resources.clusters);
            let listeners = share(resources.listeners);
            let routes = share(resources.routes);
            Arc::new(Translated { clusters, listeners, routes, diagnostics })
        }))
    }
}

impl Views {
    fn share(&mut self, mut resource: Resource) -> Resource {
        match self.bodies.get_key_value(&resource.version) {
            Some((version, body)) if *body == resource.body => {
                resource.version = Arc::clone(version);
                resource.body = body.clone();
            }
            _ => {
                self.bodies.insert(Arc::clone(&resource.version), resource.body.clone());
            }
        }
        resource
    }
}

/// Endpoint assignments of the newest world, which may be newer than what was published.
#[derive(Default)]
pub(super) struct EndpointMemo(Mutex<Assignments>);

/// By who asks and the cluster's name; `None` where there is no such cluster.
type OfHost = HashMap<(ProxyView, Arc<str>), Option<Resource>>;

#[derive(Default)]
struct Assignments {
    snapshot: Snapshot,
    /// By service host, so that a change of its endpoints forgets only it.
    hosts: HashMap<Arc<str>, OfHost>,
    count: usize,
}

impl EndpointMemo {
    /// Takes on a newer world in which only endpoints of these hosts differ.
    pub(super) fn advance(&self, snapshot: Snapshot, hosts: &BTreeSet<Arc<str>>) {
        let mut memo = lock(&self.0);
        memo.snapshot = snapshot;
        for host in hosts {
            if let Some(gone) = memo.hosts.remove(host) {
                memo.count -= gone.len();
            }
        }
    }

    /// Takes on a newer world in which anything may differ.
    pub(super) fn reset(&self, snapshot: Snapshot) {
        *lock(&self.0) = Assignments { snapshot, ..Assignments::default() };
    }

    /// The endpoints of one cluster. Computed under the lock, so that no result of an
    /// older world can be remembered for a newer one.
    pub(super) fn endpoints(&self, view: &ProxyView, cluster: &Arc<str>) -> Option<Resource> {
        let Some(ClusterName::Outbound { host, .. }) = ClusterName::parse(cluster) else {
            return None;
        };
        let mut memo = lock(&self.0);
        if memo.count >= ENDPOINTS_MAX {
            memo.hosts.clear();
            memo.count = 0;
        }
        let Assignments { snapshot, hosts, count } = &mut *memo;
        let of_host = match hosts.get_mut(host) {
            Some(of_host) => of_host,
            None => hosts.entry(host.into()).or_default(),
        };
        let entry = of_host.entry((view.clone(), Arc::clone(cluster)));
        let computed = entry.or_insert_with(|| {
            *count += 1;
            weft_translate::endpoints(snapshot, view, cluster)
        });
        computed.clone()
    }
}

/// The view that endpoints are asked with: they are the same for all instances of a
/// workload, so what tells instances apart is left out and the memo key is shared.
pub(super) fn endpoint_view(view: &ProxyView) -> ProxyView {
    ProxyView { name: "".into(), addresses: Vec::new(), ..view.clone() }
}

/// Nothing under these locks can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
