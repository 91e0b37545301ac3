//! Results of translation, computed once for equal arguments.
//!
//! The memo keys are the arguments themselves. What proxies with different views
//! have in common shares its bytes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use weft_model::{Diagnostic, Snapshot};
use weft_translate::{ProxyView, Resources};
use weft_xds::names::ClusterName;
use weft_xds::session::Set;
use weft_xds::{Resource, ResourceType};

use crate::world::State;

/// Endpoint assignments kept; Istio's cache has the same bound.
const ENDPOINTS_MAX: usize = 60_000;
/// Views whose translation is kept; more than streams may be open.
const VIEWS_MAX: usize = 20_000;

/// What one translation gave. Lists are ordered by name.
#[derive(Clone, Default)]
pub(crate) struct Lists {
    clusters: Arc<[Resource]>,
    listeners: Arc<[Resource]>,
    routes: Arc<[Resource]>,
    diagnostics: Vec<Diagnostic>,
}

impl Lists {
    /// The list of a type; endpoints and secrets have none.
    fn list(&self, ty: ResourceType) -> Option<&Arc<[Resource]>> {
        match ty {
            ResourceType::Cluster => Some(&self.clusters),
            ResourceType::Listener => Some(&self.listeners),
            ResourceType::Route => Some(&self.routes),
            ResourceType::Endpoint | ResourceType::Secret => None,
        }
    }
}

/// Everything one view runs, but endpoints and secrets.
pub(crate) struct Translated {
    shared: Arc<Lists>,
    own: Arc<Lists>,
}

impl Translated {
    /// The resources of a type; endpoints and secrets have none.
    pub(crate) fn set(&self, ty: ResourceType) -> Option<Set> {
        let (shared, own) = (self.shared.list(ty)?, self.own.list(ty)?);
        Some(Set { shared: Arc::clone(shared), own: Arc::clone(own) })
    }

    /// What is a proxy's own takes the place of what has its name in the shared part, which
    /// happens when a Sidecar resource declares an address twice.
    fn new(shared: &Arc<Lists>, own: &Arc<Lists>) -> Translated {
        let hidden = |list: &Arc<[Resource]>, own: &[Resource]| {
            let is_hidden = |one: &Resource| own.iter().any(|own| own.name == one.name);
            let has = |own: &Resource| list.binary_search_by(|one| one.name.cmp(&own.name)).is_ok();
            match own.iter().any(has) {
                true => list.iter().filter(|one| !is_hidden(one)).cloned().collect(),
                false => Arc::clone(list),
            }
        };
        let listeners = hidden(&shared.listeners, &own.listeners);
        let shared = match Arc::ptr_eq(&listeners, &shared.listeners) {
            true => Arc::clone(shared),
            false => Arc::new(Lists { listeners, ..Lists::clone(shared) }),
        };
        Translated { shared, own: Arc::clone(own) }
    }

    pub(crate) fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.shared.diagnostics.iter().chain(&self.own.diagnostics)
    }
}

/// A state of the world that was published to proxies, with its translations.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) state: Arc<State>,
    views: Mutex<Views>,
    /// Translations of the state before, as far as somebody used them: a list that comes out
    /// equal again is the same list, so that nobody needs to look through it.
    before: Mutex<Cells>,
}

type Cells = HashMap<ProxyView, Arc<OnceLock<Arc<Lists>>>>;

#[derive(Default)]
struct Views {
    /// Outbound sides, by [`ProxyView::shared`].
    shared: Cells,
    /// What is a proxy's own, by its view.
    own: Cells,
    /// One body per content, for all views.
    bodies: HashMap<Arc<str>, Bytes>,
}

impl Published {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { state, views: Mutex::default(), before: Mutex::default() }
    }

    /// A newer state in which anything may differ.
    pub(super) fn with_config(&self, state: Arc<State>) -> Self {
        let mut views = lock(&self.views);
        // Whoever was not asked for since keeps its older one.
        let mut before = lock(&self.before).clone();
        let made = views.shared.iter().filter(|(_, cell)| cell.get().is_some());
        before.extend(made.map(|(view, cell)| (view.clone(), Arc::clone(cell))));
        let views = Views { bodies: views.used_bodies(), ..Views::default() };
        Self { state, views: Mutex::new(views), before: Mutex::new(before) }
    }

    /// A newer state that differs, for translation, only to the views `touched` picks, and there
    /// not in what is shared.
    pub(super) fn with_workloads(
        &self,
        state: Arc<State>,
        touched: impl Fn(&ProxyView) -> bool,
    ) -> Self {
        let mut views = lock(&self.views);
        let kept = views.own.iter().filter(|(view, _)| !touched(view));
        let own = kept.map(|(view, cell)| (view.clone(), Arc::clone(cell))).collect();
        let bodies = views.used_bodies();
        let views = Views { shared: views.shared.clone(), own, bodies };
        Self { state, views: Mutex::new(views), before: Mutex::default() }
    }

    /// What a view runs. The first caller computes, others who need the same wait.
    pub(crate) fn translated(&self, view: &ProxyView) -> Translated {
        let snapshot = &self.state.snapshot;
        let place = view.shared(snapshot);
        let (shared, own) = {
            let mut views = lock(&self.views);
            (cell(&mut views.shared, &place), cell(&mut views.own, view))
        };
        let shared = shared.get_or_init(|| {
            let made = self.lists(weft_translate::translate_shared(snapshot, &place));
            let before = lock(&self.before).remove(&place);
            match before.as_ref().and_then(|cell| cell.get()) {
                Some(before) => Arc::new(made.sharing(before)),
                None => Arc::new(made),
            }
        });
        let own =
            own.get_or_init(|| Arc::new(self.lists(weft_translate::translate_own(snapshot, view))));
        Translated::new(shared, own)
    }

    fn lists(&self, (resources, diagnostics): (Resources, Vec<Diagnostic>)) -> Lists {
        let mut views = lock(&self.views);
        let mut share = |resources: Vec<Resource>| -> Arc<[Resource]> {
            resources.into_iter().map(|resource| views.share(resource)).collect()
        };
        Lists {
            clusters: share(resources.clusters),
            listeners: share(resources.listeners),
            routes: share(resources.routes),
            diagnostics,
        }
    }
}

fn cell(cells: &mut Cells, view: &ProxyView) -> Arc<OnceLock<Arc<Lists>>> {
    if let Some(cell) = cells.get(view) {
        return Arc::clone(cell);
    }
    if cells.len() >= VIEWS_MAX {
        cells.clear();
    }
    Arc::clone(cells.entry(view.clone()).or_default())
}

impl Lists {
    /// With the lists of `before` where they are equal.
    fn sharing(self, before: &Lists) -> Lists {
        let choose = |now: Arc<[Resource]>, before: &Arc<[Resource]>| {
            let same = |(a, b): (&Resource, &Resource)| a.name == b.name && a.version == b.version;
            let equal = now.len() == before.len() && now.iter().zip(before.iter()).all(same);
            if equal { Arc::clone(before) } else { now }
        };
        Lists {
            clusters: choose(self.clusters, &before.clusters),
            listeners: choose(self.listeners, &before.listeners),
            routes: choose(self.routes, &before.routes),
            diagnostics: self.diagnostics,
        }
    }
}

impl Views {
    /// Bodies that somebody still runs.
    fn used_bodies(&mut self) -> HashMap<Arc<str>, Bytes> {
        self.bodies.retain(|_, body| !body.is_unique());
        self.bodies.clone()
    }

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

/// Nothing under these locks can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use weft_model::{Change, ChangeKind};
    use weft_translate::{Flavor, Interception, ProxyKind};

    use super::*;

    const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceLabels: {version: v2}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 100}}}
    route: [{destination: {host: reviews}}]
  - route: [{destination: {host: reviews}}]
";
    const OTHER: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {app: edge}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]
";

    fn with(snapshot: &Snapshot, yaml: &str) -> Arc<State> {
        let (objects, found) = weft_model::parse_yaml("test.yaml", yaml);
        assert_eq!(found, []);
        let change = |object: weft_model::Object| {
            let key = object.key().unwrap();
            Change { key, kind: ChangeKind::Upsert(object) }
        };
        let (snapshot, _) = snapshot.apply(objects.into_iter().map(change).collect());
        Arc::new(State { version: 1, snapshot, ..State::default() })
    }

    fn client(name: &str, last: u8, version: &str) -> ProxyView {
        ProxyView {
            kind: ProxyKind::Sidecar,
            flavor: Flavor::Weft,
            name: name.into(),
            namespace: "shop".into(),
            service_account: name.into(),
            addresses: vec![IpAddr::from([10, 0, 0, last])],
            labels: BTreeMap::from([
                ("app".to_owned(), name.to_owned()),
                ("version".to_owned(), version.to_owned()),
            ]),
            cluster_id: "one".into(),
            locality: "".into(),
            interception: Interception::Redirect,
        }
    }

    fn shared(published: &Published, view: &ProxyView, ty: ResourceType) -> Arc<[Resource]> {
        published.translated(view).set(ty).unwrap().shared
    }

    #[test]
    fn clients_of_one_place_share_their_outbound_side() {
        let published = Published::new(with(&Snapshot::default(), SERVICES));
        let route = |view: ProxyView| shared(&published, &view, ResourceType::Route);
        let (a, b) = (route(client("a", 1, "v1")), route(client("b", 2, "v1")));
        assert!(Arc::ptr_eq(&a, &b));
        let other = route(client("a", 1, "v2"));
        assert!(!Arc::ptr_eq(&a, &other), "a label that a rule asks for makes another place");
        assert_ne!(*a, *other);
    }

    #[test]
    fn what_comes_out_equal_is_the_same_list() {
        let view = client("a", 1, "v1");
        let first = Published::new(with(&Snapshot::default(), SERVICES));
        let before = shared(&first, &view, ResourceType::Cluster);
        let second = first.with_config(with(&first.state.snapshot, OTHER));
        let third = second.with_config(with(&second.state.snapshot, OTHER));
        assert!(Arc::ptr_eq(&before, &shared(&third, &view, ResourceType::Cluster)));
    }
}
