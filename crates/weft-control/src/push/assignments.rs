//! Endpoint assignments of the newest world, which may be newer than what was published: each
//! computed once for a place in the mesh, and again only when something it depends on changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_model::Snapshot;
use weft_translate::{Assignment, Endpoints, ProxyView};
use weft_xds::Resource;
use weft_xds::names;

/// Assignments kept, for all places together; beyond it they are made each time. 20 namespaces
/// that see 10,000 services each stay below.
const KEPT_MAX: usize = 400_000;

#[derive(Default)]
pub(super) struct EndpointMemo {
    world: Mutex<World>,
    places: Mutex<Places>,
    /// Clusters that exist, by the host of their service.
    clusters: Mutex<HashMap<Arc<str>, BTreeSet<Arc<str>>>>,
    kept: AtomicUsize,
}

/// The newest world, and which worlds it may differ from in what.
#[derive(Clone, Default)]
struct World {
    snapshot: Snapshot,
    /// Counts worlds.
    epoch: u64,
    /// Since when nothing but endpoints changed.
    steady: u64,
    /// When endpoints of a service last changed, for those after `steady`.
    hosts: Arc<HashMap<Arc<str>, u64>>,
}

#[derive(Default)]
struct Places {
    /// By [`ProxyView::shared`].
    places: HashMap<ProxyView, Arc<Mutex<Place>>>,
    /// The newest assignments of places that are equal but for their namespace.
    kin: HashMap<ProxyView, Arc<Mutex<Kin>>>,
}

type Kin = HashMap<Arc<str>, Arc<Assignment>>;

#[derive(Default)]
struct Place {
    clusters: HashMap<Arc<str>, Entry>,
    /// What came out different since [`EndpointMemo::changed`] was last asked.
    changed: BTreeSet<Arc<str>>,
    /// Assignments were made that are not kept: nobody knows what changed.
    overflown: bool,
    /// The newest long list: whoever asks for the same gets the same.
    newest: Arc<[Resource]>,
}

/// Lists of so many are kept, for clients that all ask for them.
const LONG_LIST: usize = 8;

impl Place {
    fn share(&mut self, list: Vec<Resource>) -> Arc<[Resource]> {
        let same = |(a, b): (&Resource, &Resource)| Arc::ptr_eq(&a.version, &b.version);
        if list.len() == self.newest.len() && list.iter().zip(self.newest.iter()).all(same) {
            return Arc::clone(&self.newest);
        }
        let list: Arc<[Resource]> = list.into();
        if list.len() >= LONG_LIST {
            self.newest = Arc::clone(&list);
        }
        list
    }
}

struct Entry {
    /// The newest world in which it is known to hold.
    epoch: u64,
    assignment: Arc<Assignment>,
}

/// What a place must look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    All,
    Clusters(Arc<BTreeSet<Arc<str>>>),
}

impl World {
    /// Whether what held in an older world still must.
    fn holds_since(&self, epoch: u64, host: &str) -> bool {
        epoch >= self.steady && self.hosts.get(host).is_none_or(|changed| epoch >= *changed)
    }
}

impl EndpointMemo {
    /// Takes on a newer world in which only endpoints of these hosts differ. Tells the clusters
    /// that are concerned, as far as somebody asked for them.
    pub(super) fn advance(
        &self,
        snapshot: Snapshot,
        hosts: &BTreeSet<Arc<str>>,
    ) -> BTreeSet<Arc<str>> {
        {
            let mut world = lock(&self.world);
            world.snapshot = snapshot;
            world.epoch += 1;
            let epoch = world.epoch;
            Arc::make_mut(&mut world.hosts).extend(hosts.iter().map(|h| (Arc::clone(h), epoch)));
        }
        let clusters = lock(&self.clusters);
        hosts.iter().filter_map(|host| clusters.get(host)).flatten().cloned().collect()
    }

    /// Takes on a newer world in which anything may differ.
    pub(super) fn reset(&self, snapshot: Snapshot) {
        let mut world = lock(&self.world);
        let epoch = world.epoch + 1;
        *world = World { snapshot, epoch, steady: epoch, hosts: Arc::default() };
    }

    /// The endpoints of clusters as a place sees them; without those it does not have.
    pub(super) fn endpoints<'n>(
        &self,
        view: &ProxyView,
        clusters: impl Iterator<Item = &'n Arc<str>>,
    ) -> Arc<[Resource]> {
        let world = lock(&self.world).clone();
        let (place, kin) = self.place(view);
        let at = Endpoints::new(&world.snapshot, view);
        let mut place = lock(&place);
        let found = clusters.filter_map(|cluster| {
            let assignment = self.look(&world, &at, &mut place, &kin, cluster)?;
            assignment.resource().cloned()
        });
        let all: Vec<Resource> = found.collect();
        place.share(all)
    }

    /// Forgets other places than these.
    pub(super) fn retain(&self, live: &HashSet<ProxyView>) {
        let snapshot = lock(&self.world).snapshot.clone();
        lock(&self.clusters).retain(|host, _| snapshot.service(host).is_some());
        let mut places = lock(&self.places);
        places.places.retain(|place, _| live.contains(place));
        let families: HashSet<ProxyView> = live.iter().map(family).collect();
        places.kin.retain(|family, _| families.contains(family));
        let kept = places.places.values().map(|place| lock(place).clusters.len()).sum();
        self.kept.store(kept, Ordering::Relaxed);
    }

    /// What came out different at a place since this was last asked.
    pub(super) fn changed(&self, view: &ProxyView) -> Changed {
        let world = lock(&self.world).clone();
        let (place, kin) = self.place(view);
        let at = Endpoints::new(&world.snapshot, view);
        let mut place = lock(&place);
        let names: Vec<Arc<str>> = place.clusters.keys().cloned().collect();
        for name in &names {
            _ = self.look(&world, &at, &mut place, &kin, name);
        }
        let changed = std::mem::take(&mut place.changed);
        match std::mem::take(&mut place.overflown) {
            true => Changed::All,
            false => Changed::Clusters(Arc::new(changed)),
        }
    }

    fn place(&self, view: &ProxyView) -> (Arc<Mutex<Place>>, Arc<Mutex<Kin>>) {
        let mut places = lock(&self.places);
        let place = match places.places.get(view) {
            Some(place) => Arc::clone(place),
            None => Arc::clone(places.places.entry(view.clone()).or_default()),
        };
        let kin = Arc::clone(places.kin.entry(family(view)).or_default());
        (place, kin)
    }

    fn look(
        &self,
        world: &World,
        at: &Endpoints<'_>,
        place: &mut Place,
        kin: &Mutex<Kin>,
        cluster: &Arc<str>,
    ) -> Option<Arc<Assignment>> {
        let host = names::cluster_host(cluster)?;
        let before = place.clusters.get(cluster);
        if let Some(entry) = before {
            // A task that is behind the world of another takes what the other made.
            if entry.epoch >= world.epoch || world.holds_since(entry.epoch, host) {
                return Some(Arc::clone(&entry.assignment));
            }
        }
        let other = lock(kin).get(cluster).cloned();
        let own = before.map(|entry| &entry.assignment);
        let assignment = at.of(cluster, &own.into_iter().chain(&other).collect::<Vec<_>>());
        let version = |one: &Assignment| one.resource().map(|one| Arc::clone(&one.version));
        match before {
            Some(entry) if version(&entry.assignment) == version(&assignment) => {}
            // Who uses the service was told of its endpoints.
            Some(entry) if entry.epoch >= world.steady => {}
            Some(_) => _ = place.changed.insert(Arc::clone(cluster)),
            None if self.kept.fetch_add(1, Ordering::Relaxed) < KEPT_MAX => {}
            None => {
                self.kept.fetch_sub(1, Ordering::Relaxed);
                place.overflown = true;
                return Some(assignment);
            }
        }
        if assignment.resource().is_some() {
            let mut clusters = lock(&self.clusters);
            match clusters.get_mut(host) {
                Some(known) if known.contains(cluster) => {}
                Some(known) => _ = known.insert(Arc::clone(cluster)),
                None => _ = clusters.insert(host.into(), BTreeSet::from([Arc::clone(cluster)])),
            }
        }
        let entry = Entry { epoch: world.epoch, assignment: Arc::clone(&assignment) };
        place.clusters.insert(Arc::clone(cluster), entry);
        lock(kin).insert(Arc::clone(cluster), Arc::clone(&assignment));
        Some(assignment)
    }
}

/// The view without its namespace.
fn family(view: &ProxyView) -> ProxyView {
    ProxyView { namespace: "".into(), ..view.clone() }
}

/// Nothing under these locks can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
