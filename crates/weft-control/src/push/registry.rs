//! Connected proxies and what waits for each of them.
//!
//! A proxy's queue is one slot: changes merge in it until its task takes them, so a
//! slow proxy costs no memory and gets the newest state once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;
use weft_translate::ProxyView;
use weft_xds::session::{Mode, TypeStatus};
use weft_xds::{NodeView, ResourceType};

use super::published::Published;
use crate::ca::Identity;

/// What the registry knows of one stream.
pub(crate) struct Proxy {
    pub(crate) node: NodeView,
    pub(crate) view: ProxyView,
    pub(crate) identity: Option<Identity>,
    pub(crate) mode: Mode,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) connected: SystemTime,
    /// Written by the stream's task after each event.
    status: Mutex<Option<[TypeStatus; ResourceType::COUNT]>>,
    /// Clusters whose endpoints it subscribed to.
    clusters: Mutex<Arc<BTreeSet<Arc<str>>>>,
    pending: Mutex<Option<Pending>>,
    wake: Notify,
}

/// Changes a proxy's task has not looked at yet.
pub(super) struct Pending {
    /// The configuration to go on with.
    pub(super) published: Option<Arc<Published>>,
    pub(super) touch: Touch,
    /// When the oldest of the changes happened, and when it was queued.
    pub(super) changed: Instant,
    pub(super) queued: Instant,
}

/// What a proxy must look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touch {
    /// Clusters, listeners, routes.
    pub(super) config: bool,
    pub(super) secrets: bool,
    /// The endpoints of all its clusters.
    pub(super) all_endpoints: bool,
    /// The endpoints of these clusters.
    pub(super) endpoints: BTreeSet<Arc<str>>,
    /// The name table. Few proxies have one; those that have none have nothing to look at.
    pub(super) names: bool,
}

impl Touch {
    pub(super) fn everything() -> Self {
        let endpoints = BTreeSet::new();
        Touch { config: true, secrets: true, all_endpoints: true, endpoints, names: true }
    }

    pub(super) fn is_nothing(&self) -> bool {
        let Touch { config, secrets, all_endpoints, endpoints, names: _ } = self;
        !(*config || *secrets || *all_endpoints) && endpoints.is_empty()
    }

    fn merge(&mut self, other: Touch) {
        let Touch { config, secrets, all_endpoints, endpoints, names } = other;
        self.names |= names;
        self.config |= config;
        self.secrets |= secrets;
        self.all_endpoints |= all_endpoints;
        self.endpoints.extend(endpoints);
    }
}

impl Proxy {
    pub(super) fn new(
        (node, view): (NodeView, ProxyView),
        identity: Option<Identity>,
        mode: Mode,
        address: Option<SocketAddr>,
    ) -> Self {
        Self {
            node,
            view,
            identity,
            mode,
            address,
            connected: SystemTime::now(),
            status: Mutex::default(),
            clusters: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// What was sent and acknowledged, by [`ResourceType::index`]; `None` before the first request
    /// was looked at.
    pub(crate) fn status(&self) -> Option<[TypeStatus; ResourceType::COUNT]> {
        lock(&self.status).clone()
    }

    pub(super) fn set_status(&self, status: [TypeStatus; ResourceType::COUNT]) {
        *lock(&self.status) = Some(status);
    }

    pub(super) fn set_clusters(&self, clusters: Arc<BTreeSet<Arc<str>>>) {
        *lock(&self.clusters) = clusters;
    }

    /// Those of `clusters` whose endpoints it subscribed to.
    pub(super) fn used(&self, clusters: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let subscribed = Arc::clone(&lock(&self.clusters));
        match subscribed.len() < clusters.len() {
            true => subscribed.iter().filter(|one| clusters.contains(*one)).cloned().collect(),
            false => clusters.iter().filter(|one| subscribed.contains(*one)).cloned().collect(),
        }
    }

    /// Waits for changes and takes them. Cancel-safe.
    pub(super) async fn pending(&self) -> Pending {
        loop {
            if let Some(pending) = lock(&self.pending).take() {
                return pending;
            }
            self.wake.notified().await;
        }
    }

    fn queue(&self, change: impl FnOnce(&mut Pending), changed: Instant) {
        let mut slot = lock(&self.pending);
        let pending = slot.get_or_insert_with(|| Pending {
            published: None,
            touch: Touch::default(),
            changed,
            queued: Instant::now(),
        });
        change(pending);
        drop(slot);
        self.wake.notify_one();
    }
}

#[derive(Default)]
pub(super) struct Registry(Mutex<Inner>, Mutex<NameSets>);

/// What proxies subscribed to, once for all who subscribed to the same; by hash.
type NameSets = HashMap<u64, Weak<BTreeSet<Arc<str>>>>;

/// Sets of fewer names are not worth the search.
const SHARED_NAMES_MIN: usize = 8;
/// Sets remembered; those nobody has are forgotten when there are so many.
const NAME_SETS_MAX: usize = 20_000;

#[derive(Default)]
struct Inner {
    published: Arc<Published>,
    next: u64,
    proxies: BTreeMap<u64, Arc<Proxy>>,
}

/// A registered proxy; taken out when dropped.
pub(super) struct Registered<'a> {
    registry: &'a Registry,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.registry.0).proxies.remove(&self.id);
    }
}

impl Registry {
    pub(super) fn published(&self) -> Arc<Published> {
        Arc::clone(&lock(&self.0).published)
    }

    pub(super) fn proxies(&self) -> Vec<Arc<Proxy>> {
        lock(&self.0).proxies.values().cloned().collect()
    }

    /// Adds a proxy; returns the configuration to start with. Everything published
    /// later is queued for it.
    pub(super) fn register(&self, proxy: &Arc<Proxy>) -> (Arc<Published>, Registered<'_>) {
        let mut inner = lock(&self.0);
        let id = inner.next;
        inner.next += 1;
        inner.proxies.insert(id, Arc::clone(proxy));
        (Arc::clone(&inner.published), Registered { registry: self, id })
    }

    /// The set that others have who subscribed to the same, if there is one.
    pub(super) fn share_names(&self, names: &Arc<BTreeSet<Arc<str>>>) -> Arc<BTreeSet<Arc<str>>> {
        if names.len() < SHARED_NAMES_MIN {
            return Arc::clone(names);
        }
        let mut sets = lock(&self.1);
        let mut hasher = DefaultHasher::new();
        names.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(known) = sets.get(&hash).and_then(Weak::upgrade)
            && known == *names
        {
            return known;
        }
        if sets.len() >= NAME_SETS_MAX {
            sets.retain(|_, set| set.strong_count() > 0);
        }
        if sets.len() < NAME_SETS_MAX {
            sets.insert(hash, Arc::downgrade(names));
        }
        Arc::clone(names)
    }

    /// Connected proxies with their numbers.
    pub(super) fn live(&self) -> Vec<(u64, Arc<Proxy>)> {
        lock(&self.0).proxies.iter().map(|(id, proxy)| (*id, Arc::clone(proxy))).collect()
    }

    /// Publishes a configuration; each proxy looks at what `touched` says of its number, and at
    /// everything if it says nothing. Those with nothing to look at only take it on, so that no
    /// old world is kept alive by a proxy nothing happens to.
    pub(super) fn publish(
        &self,
        published: &Arc<Published>,
        changed: Instant,
        touched: &mut HashMap<u64, Touch>,
    ) {
        let mut inner = lock(&self.0);
        inner.published = Arc::clone(published);
        for (id, proxy) in &inner.proxies {
            let touch = touched.remove(id).unwrap_or_else(Touch::everything);
            let change = |pending: &mut Pending| {
                pending.published = Some(Arc::clone(published));
                pending.touch.merge(touch);
            };
            proxy.queue(change, changed);
        }
    }

    /// Tells the proxies that use one of these clusters to look at its endpoints.
    pub(super) fn endpoints_changed(&self, clusters: &BTreeSet<Arc<str>>, changed: Instant) {
        for proxy in lock(&self.0).proxies.values() {
            let used = proxy.used(clusters);
            if !used.is_empty() {
                proxy.queue(|pending| pending.touch.endpoints.extend(used), changed);
            }
        }
    }
}

/// Nothing under these locks can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
