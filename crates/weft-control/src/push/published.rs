//! A state of the world as proxies are brought to it: its translations, each computed once for all
//! who get it, and out of those of the state before as far as nothing they depend on changed.
//!
//! What clients of one place in the mesh share is keyed by [`ProxyView::shared`], the rest by the
//! view. What different views have in common shares its bytes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use weft_model::Diagnostic;
use weft_translate::{Memo, ProxyView, Resources, Shared};
use weft_xds::session::Set;
use weft_xds::{Resource, ResourceType};

use crate::world::State;

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
    /// The list of a type; endpoints, secrets and name tables have none.
    fn list(&self, ty: ResourceType) -> Option<&Arc<[Resource]>> {
        match ty {
            ResourceType::Cluster => Some(&self.clusters),
            ResourceType::Listener => Some(&self.listeners),
            ResourceType::Route => Some(&self.routes),
            ResourceType::Endpoint | ResourceType::Secret | ResourceType::NameTable => None,
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

/// What the clients of one place share, and what its next translation can keep.
struct Place {
    lists: Arc<Lists>,
    memo: Memo,
}

/// A translation that is made when first asked for.
struct Cell<T> {
    /// Of the state before: what comes out equal again is the same list, so that nobody needs to
    /// look through it.
    before: Mutex<Option<Arc<T>>>,
    now: OnceLock<Arc<T>>,
}

type Cells<T> = HashMap<ProxyView, Arc<Cell<T>>>;

/// A state of the world that was published to proxies, with its translations.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) state: Arc<State>,
    views: Mutex<Views>,
    bodies: Arc<Mutex<Bodies>>,
}

#[derive(Default)]
struct Views {
    /// By [`ProxyView::shared`].
    places: Cells<Place>,
    /// What is a proxy's own, by its view.
    own: Cells<Lists>,
    /// Name tables, by [`ProxyView::shared`]: a list of one, or of none.
    names: Cells<Arc<[Resource]>>,
    /// The newest of the places that are equal but for their namespace: they have parts in common.
    kin: HashMap<ProxyView, Arc<Place>>,
}

impl Published {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { state, ..Self::default() }
    }

    /// A newer state in which, if `everyone`, anything may differ, else only what is a proxy's own
    /// and, if `names`, the addresses that names have.
    /// Of the translations of now those for `live` views are kept, as far as they still hold, or
    /// as what the new ones are compared with and built from.
    pub(super) fn next<'a>(
        &self,
        state: Arc<State>,
        (everyone, names): (bool, bool),
        live: impl Iterator<Item = &'a ProxyView>,
    ) -> Self {
        let (before, now) = (&self.state.snapshot, &state.snapshot);
        let old = lock(&self.views);
        let mut new = Views::default();
        for view in live {
            let place = view.shared(now);
            if let Some(cell) = old.names.get(&place) {
                let cell = if everyone || names { Cell::after(cell) } else { Arc::clone(cell) };
                new.names.insert(place.clone(), cell);
            }
            if let Some(cell) = old.places.get(&place) {
                let cell = || if everyone { Cell::after(cell) } else { Arc::clone(cell) };
                new.places.entry(place).or_insert_with(cell);
            }
            if let Some(cell) = old.own.get(view) {
                let differs = weft_translate::own_differs(before, now, view);
                let cell = if differs { Cell::after(cell) } else { Arc::clone(cell) };
                new.own.insert(view.clone(), cell);
            }
        }
        drop(old);
        lock(&self.bodies).forget_unused();
        Self { state, views: Mutex::new(new), bodies: Arc::clone(&self.bodies) }
    }

    /// What a view runs. The first caller computes, others who need the same wait.
    pub(crate) fn translated(&self, view: &ProxyView) -> Translated {
        let snapshot = &self.state.snapshot;
        let shared = self.shared(&view.shared(snapshot));
        let own = cell(&mut lock(&self.views).own, view);
        let own = own.now.get_or_init(|| {
            let before = lock(&own.before).take();
            let lists = self.lists(weft_translate::translate_own(snapshot, view));
            Arc::new(lists.sharing(before.as_deref()))
        });
        Translated::new(&shared, own)
    }

    /// The name table of a place, if it has one; made when first asked for.
    pub(super) fn names(&self, place: &ProxyView) -> Arc<[Resource]> {
        let names = cell(&mut lock(&self.views).names, place);
        let made = names.now.get_or_init(|| {
            let before = lock(&names.before).take();
            let table = weft_translate::name_table(&self.state.snapshot, place);
            let table = table.map(|table| lock(&self.bodies).share(table));
            Arc::new(chosen(table.into_iter().collect(), before.as_deref()))
        });
        Arc::clone(made)
    }

    /// Makes all that these views run, on as many threads as there are cores.
    pub(super) fn prepare(&self, places: &HashSet<ProxyView>, views: &[&ProxyView]) {
        let place = |place: &&ProxyView| self.shared(place);
        each(&places.iter().collect::<Vec<_>>(), |view| _ = place(view));
        each(views, |view| _ = self.translated(view));
    }

    /// Whether a view runs something else in a newer state. Same lists are the same objects.
    pub(super) fn differs(&self, newer: &Published, view: &ProxyView) -> bool {
        let (before, now) = (self.made(view), newer.made(view));
        before.zip(now).is_none_or(|(before, now)| {
            !(before.shared.is_same(&now.shared) && before.own.is_same(&now.own))
        })
    }

    fn made(&self, view: &ProxyView) -> Option<Translated> {
        let views = lock(&self.views);
        let place = views.places.get(&view.shared(&self.state.snapshot))?.now.get()?;
        let own = views.own.get(view)?.now.get()?;
        Some(Translated { shared: Arc::clone(&place.lists), own: Arc::clone(own) })
    }

    fn shared(&self, place: &ProxyView) -> Arc<Lists> {
        let shared = cell(&mut lock(&self.views).places, place);
        let made = shared.now.get_or_init(|| {
            let before = lock(&shared.before).take();
            self.place(place, before.as_deref())
        });
        Arc::clone(&made.lists)
    }

    fn place(&self, place: &ProxyView, before: Option<&Place>) -> Arc<Place> {
        let kin = ProxyView { namespace: "".into(), ..place.clone() };
        let other = lock(&self.views).kin.get(&kin).cloned();
        let memos: Vec<&Memo> =
            before.into_iter().chain(other.as_deref()).map(|place| &place.memo).collect();
        let Shared { resources, findings, memo } =
            weft_translate::translate_shared(&self.state.snapshot, place, &memos);
        let lists = self.lists((resources, findings)).sharing(before.map(|place| &*place.lists));
        let made = Arc::new(Place { lists: Arc::new(lists), memo });
        lock(&self.views).kin.insert(kin, Arc::clone(&made));
        made
    }

    fn lists(&self, (resources, diagnostics): (Resources, Vec<Diagnostic>)) -> Lists {
        let mut bodies = lock(&self.bodies);
        let mut share = |resources: Vec<Resource>| -> Arc<[Resource]> {
            resources.into_iter().map(|resource| bodies.share(resource)).collect()
        };
        Lists {
            clusters: share(resources.clusters),
            listeners: share(resources.listeners),
            routes: share(resources.routes),
            diagnostics,
        }
    }
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Cell { before: Mutex::default(), now: OnceLock::new() }
    }
}

impl<T> Cell<T> {
    /// To be made anew.
    fn after(old: &Cell<T>) -> Arc<Self> {
        let before = old.now.get().cloned().or_else(|| lock(&old.before).clone());
        Arc::new(Cell { before: Mutex::new(before), now: OnceLock::new() })
    }
}

/// Runs `work` on every item, on several threads.
fn each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

fn cell<T>(cells: &mut Cells<T>, view: &ProxyView) -> Arc<Cell<T>> {
    if let Some(cell) = cells.get(view) {
        return Arc::clone(cell);
    }
    if cells.len() >= VIEWS_MAX {
        cells.clear();
    }
    Arc::clone(cells.entry(view.clone()).or_default())
}

impl Lists {
    fn is_same(&self, other: &Lists) -> bool {
        Arc::ptr_eq(&self.clusters, &other.clusters)
            && Arc::ptr_eq(&self.listeners, &other.listeners)
            && Arc::ptr_eq(&self.routes, &other.routes)
    }

    /// With the lists of `before` where they are equal.
    fn sharing(self, before: Option<&Lists>) -> Lists {
        let Some(before) = before else { return self };
        Lists {
            clusters: chosen(self.clusters, Some(&before.clusters)),
            listeners: chosen(self.listeners, Some(&before.listeners)),
            routes: chosen(self.routes, Some(&before.routes)),
            diagnostics: self.diagnostics,
        }
    }
}

/// The list of before where it is equal.
fn chosen(now: Arc<[Resource]>, before: Option<&Arc<[Resource]>>) -> Arc<[Resource]> {
    let same = |(a, b): (&Resource, &Resource)| {
        a.name == b.name && (Arc::ptr_eq(&a.version, &b.version) || a.version == b.version)
    };
    match before {
        Some(before) if now.len() == before.len() && now.iter().zip(&**before).all(same) => {
            Arc::clone(before)
        }
        _ => now,
    }
}

/// One body per content, for all views.
#[derive(Default)]
struct Bodies(HashMap<Arc<str>, Bytes>);

impl Bodies {
    /// Keeps the bodies that somebody still runs.
    fn forget_unused(&mut self) {
        self.0.retain(|_, body| !body.is_unique());
    }

    fn share(&mut self, mut resource: Resource) -> Resource {
        match self.0.get_key_value(&resource.version) {
            Some((version, body)) => {
                let same = body.as_ptr() == resource.body.as_ptr() || *body == resource.body;
                if same && !Arc::ptr_eq(version, &resource.version) {
                    resource.version = Arc::clone(version);
                    resource.body = body.clone();
                }
            }
            None => {
                self.0.insert(Arc::clone(&resource.version), resource.body.clone());
            }
        }
        resource
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

    use weft_model::{Change, ChangeKind, Snapshot};
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
            metadata: Default::default(),
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
        let second =
            first.next(with(&first.state.snapshot, OTHER), (true, true), [&view].into_iter());
        let third =
            second.next(with(&second.state.snapshot, OTHER), (true, true), [&view].into_iter());
        assert!(Arc::ptr_eq(&before, &shared(&third, &view, ResourceType::Cluster)));
    }
}
