//! The control plane's end of one ADS stream.
//!
//! ```text
//! on_request ─► subscriptions, ACK/NACK        mark(type) ◄─ the world changed
//!                      └──────────► poll(source) ─► next response, or nothing to say
//! ```
//! Owns what the client subscribed to, what it was sent, and the order of
//! sending: CDS, EDS, LDS, RDS, SDS, NDS, and only when listeners and routes are
//! acknowledged the removal of clusters they no longer use (make before break).
//! Marks add up until somebody polls, so a slow client gets the newest state
//! once, not every state between. Must not know how resources are made.

mod held;
mod push;
mod requests;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Mode, Resource};
use crate::type_url::ResourceType;
use held::Held;
use status::Answers;

pub use push::Push;
pub use status::{Nack, Stamp, TypeStatus};

/// Bounds on what one client may ask.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most names subscribed to per type. A mesh of 10k services has about 20k clusters.
    pub names_max: usize,
    /// Longest name in bytes.
    pub name_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names_max: 50_000, name_bytes_max: 1024 }
    }
}

/// Why a stream must end.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// More names than [`Limits::names_max`].
    #[error("more than {max} subscriptions to {ty}")]
    TooManyNames { ty: ResourceType, max: usize },
    /// A name longer than [`Limits::name_bytes_max`].
    #[error("a {ty} subscription is longer than {max} bytes")]
    NameTooLong { ty: ResourceType, max: usize },
    /// A request of the other protocol.
    #[error("a request of the other ADS protocol on this stream")]
    WrongMode,
}

/// Which resources of a type are wanted from a [`Source`].
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// Everything the client may have.
    All,
    /// These, as far as they exist.
    Names(&'a BTreeSet<Arc<str>>),
}

/// Where a session takes resources from; what it returns is the truth now.
pub trait Source {
    /// The wanted resources that exist.
    fn resources(&mut self, ty: ResourceType, want: Want<'_>) -> Set;
}

/// Resources of one type: a list that many clients share, and what is a client's own. Each is
/// ordered by name, and no name is in both.
#[derive(Clone, Debug, Default)]
pub struct Set {
    pub shared: Arc<[Resource]>,
    pub own: Arc<[Resource]>,
}

impl Set {
    /// All of them, those shared first.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.shared.iter().chain(self.own.iter())
    }

    /// The one at this place of [`Self::iter`].
    pub fn at(&self, place: usize) -> Option<&Resource> {
        self.shared.get(place).or_else(|| self.own.get(place - self.shared.len()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shared.len() + self.own.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By name.
    pub fn get(&self, name: &str) -> Option<&Resource> {
        let find = |list: &'_ Arc<[Resource]>| list.binary_search_by(|one| (*one.name).cmp(name));
        match (find(&self.own), find(&self.shared)) {
            (Ok(at), _) => Some(&self.own[at]),
            (_, Ok(at)) => Some(&self.shared[at]),
            _ => None,
        }
    }

    /// Whether both are the very same lists, which tells without a look that nothing changed.
    fn is_same(&self, other: &Set) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) && Arc::ptr_eq(&self.own, &other.own)
    }
}

impl FromIterator<Resource> for Set {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        Set { shared: Arc::default(), own: resources.into_iter().collect() }
    }
}

/// What a client subscribed to, per type.
#[derive(Clone, Debug, Default)]
pub struct Subscription {
    /// Everything of the type.
    pub wildcard: bool,
    /// These by name, besides. Clients that asked for the same may share them.
    pub names: Arc<BTreeSet<Arc<str>>>,
}

impl Subscription {
    /// Whether a resource of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

/// What one request meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The type it was about.
    pub ty: ResourceType,
    /// First request of this type on the stream.
    pub first: bool,
    /// Names newly subscribed; `*` for the wildcard.
    pub subscribed: Vec<Arc<str>>,
    /// Names no longer subscribed; `*` for the wildcard.
    pub unsubscribed: Vec<Arc<str>>,
    /// The response it acknowledged.
    pub acked: Option<Stamp>,
    /// The response it rejected, and why.
    pub nacked: Option<Nack>,
    /// It answered a nonce that is not outstanding and was ignored as an answer.
    pub stale: bool,
}

/// What must be looked at for a type on the next poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Dirty {
    #[default]
    No,
    /// Only these names may have changed.
    Names(BTreeSet<Arc<str>>),
    All,
}

/// How much an offered set says about resources that are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Nothing.
    Part,
    /// They are gone, but the client may keep them for now.
    Keep,
    /// They are gone.
    Whole,
}

#[derive(Debug, Default)]
struct TypeState {
    /// The client asked for this type on this stream.
    asked: bool,
    /// SotW: names were given once, so an empty list means none, not all.
    explicit: bool,
    subscription: Subscription,
    held: Held,
    dirty: Dirty,
    /// Names to answer although the client may hold their current version.
    forced: BTreeSet<Arc<str>>,
    /// Answer although nothing changed.
    answer: bool,
    /// The last whole set looked at, with nothing asked since.
    told: Option<(Set, Scope)>,
    answers: Answers,
}

impl TypeState {
    fn has_work(&self) -> bool {
        self.asked && (self.dirty != Dirty::No || self.answer || !self.forced.is_empty())
    }

    fn mark_all(&mut self) {
        self.dirty = Dirty::All;
    }

    /// Whether the client was told all of this set already, and waits for no answer.
    fn is_told(&self, set: &Set, scope: Scope) -> bool {
        let told = self.told.as_ref();
        !self.answer
            && self.forced.is_empty()
            && told.is_some_and(|(told, as_of)| *as_of == scope && told.is_same(set))
    }
}

/// See the module.
#[derive(Debug)]
pub struct ServerSession {
    mode: Mode,
    limits: Limits,
    nonces: u64,
    types: [TypeState; ResourceType::COUNT],
    /// The client still holds clusters or endpoints that are gone.
    removals: bool,
}

impl ServerSession {
    /// A session for a stream that was just opened.
    pub fn new(mode: Mode, limits: Limits) -> Self {
        Self { mode, limits, nonces: 0, types: Default::default(), removals: false }
    }

    /// The protocol of the stream.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the client subscribed to.
    pub fn subscription(&self, ty: ResourceType) -> &Subscription {
        &self.types[ty.index()].subscription
    }

    /// Replaces the names of a subscription by an equal set that others have, too.
    pub fn share_names(&mut self, ty: ResourceType, names: &Arc<BTreeSet<Arc<str>>>) {
        let own = &mut self.types[ty.index()].subscription.names;
        debug_assert_eq!(own, names);
        *own = Arc::clone(names);
    }

    /// Says that any resource of a type may have changed.
    pub fn mark(&mut self, ty: ResourceType) {
        self.types[ty.index()].mark_all();
    }

    /// Says that these resources may have changed; returns whether the client
    /// is subscribed to one of them. Names it did not ask for are left out.
    pub fn mark_names<'a>(
        &mut self,
        ty: ResourceType,
        names: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> bool {
        let state = &mut self.types[ty.index()];
        let subscription = &state.subscription;
        let touched: BTreeSet<Arc<str>> =
            names.into_iter().filter(|name| subscription.wants(name)).cloned().collect();
        if touched.is_empty() {
            return false;
        }
        match &mut state.dirty {
            Dirty::All => {}
            Dirty::Names(names) => names.extend(touched),
            Dirty::No => state.dirty = Dirty::Names(touched),
        }
        true
    }

    /// Whether [`Self::poll`] has something to look at.
    pub fn has_work(&self) -> bool {
        self.types.iter().any(TypeState::has_work)
    }

    /// The next response to send, if there is something to say. Call until `None`.
    pub fn poll(&mut self, source: &mut impl Source) -> Option<Push> {
        for ty in ResourceType::PUSH_ORDER {
            if let Some(response) = self.poll_type(ty, source) {
                return Some(response);
            }
        }
        None
    }

    /// Whether [`Self::poll_removals`] has something to do and may do it: clusters
    /// are gone, and every listener and route sent since is acknowledged. After a
    /// rejection the client still runs the old ones, so their clusters stay.
    /// Wait a moment between this and the removal: on a new stream the client may
    /// not have said yet which routes it runs.
    pub fn removals_due(&self) -> bool {
        let settled = |ty: ResourceType| {
            let state = &self.types[ty.index()];
            !state.has_work() && state.answers.are_good()
        };
        self.removals && settled(ResourceType::Listener) && settled(ResourceType::Route)
    }

    /// Removes clusters and endpoints that are gone. Call until `None`.
    pub fn poll_removals(&mut self, source: &mut impl Source) -> Option<Push> {
        if !self.removals_due() {
            return None;
        }
        for ty in [ResourceType::Cluster, ResourceType::Endpoint] {
            let set = self.whole_set(ty, source);
            if let Some(response) = self.offer(ty, &set, Scope::Whole) {
                return Some(response);
            }
        }
        self.removals = false;
        None
    }

    fn poll_type(&mut self, ty: ResourceType, source: &mut impl Source) -> Option<Push> {
        let state = &mut self.types[ty.index()];
        if !state.has_work() {
            return None;
        }
        let dirty = std::mem::take(&mut state.dirty);
        if let (Dirty::Names(names), false) = (&dirty, ty.sotw_is_complete()) {
            let mut names: BTreeSet<Arc<str>> = names.clone();
            names.retain(|name| state.subscription.wants(name));
            if state.forced.is_empty() && !state.answer {
                let set = source.resources(ty, Want::Names(&names));
                return self.offer(ty, &set, Scope::Part);
            }
        }
        if dirty == Dirty::No && !state.answer && !ty.sotw_is_complete() {
            // Only new subscriptions to answer: no need to look at the others.
            let forced = std::mem::take(&mut state.forced);
            let set = source.resources(ty, Want::Names(&forced));
            self.types[ty.index()].forced = forced;
            return self.offer(ty, &set, Scope::Part);
        }
        let set = self.whole_set(ty, source);
        let scope = match ty {
            ResourceType::Cluster | ResourceType::Endpoint => Scope::Keep,
            ResourceType::Listener
            | ResourceType::Route
            | ResourceType::Secret
            | ResourceType::NameTable => Scope::Whole,
        };
        self.offer(ty, &set, scope)
    }

    fn whole_set(&self, ty: ResourceType, source: &mut impl Source) -> Set {
        let subscription = &self.types[ty.index()].subscription;
        match subscription.wildcard {
            true => source.resources(ty, Want::All),
            false => source.resources(ty, Want::Names(&subscription.names)),
        }
    }

    /// Compares a set with what the client holds and makes the response, if one is due.
    fn offer(&mut self, ty: ResourceType, set: &Set, scope: Scope) -> Option<Push> {
        let state = &mut self.types[ty.index()];
        if scope != Scope::Part && state.is_told(set, scope) {
            return None;
        }
        debug_assert!(set.iter().all(|resource| state.subscription.wants(&resource.name)));
        let (changed, missing) = match scope {
            Scope::Part => (state.held.changed(set), Vec::new()),
            Scope::Keep | Scope::Whole => state.held.compare(set),
        };
        let again = state.forced.iter().filter_map(|name| set.get(name));
        let again: Vec<Resource> =
            again.filter(|resource| state.held.is_current(resource)).cloned().collect();
        let told: Set = match again.is_empty() {
            true => changed.clone(),
            false => {
                let mut all: Vec<Resource> = changed.iter().cloned().chain(again).collect();
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all.into_iter().collect()
            }
        };
        let removed: Vec<Arc<str>> = match scope {
            Scope::Part | Scope::Keep => Vec::new(),
            Scope::Whole => missing.clone(),
        };
        let complete = self.mode == Mode::Sotw && ty.sotw_is_complete();
        // State-of-the-world has no word for the removal of an endpoint, route or secret.
        let tells_removal = !removed.is_empty() && (complete || self.mode == Mode::Delta);
        // A new subscription to nothing is answered too, or the client waits in vain.
        let absent: Vec<Arc<str>> = match (self.mode, scope) {
            (Mode::Sotw, _) => Vec::new(),
            (Mode::Delta, _) => {
                let absent = |name: &&Arc<str>| {
                    set.get(name).is_none() && !removed.contains(name) && !state.held.has(name)
                };
                state.forced.iter().filter(absent).cloned().collect()
            }
        };
        let silent = told.is_empty() && !tells_removal && absent.is_empty() && !state.answer;
        let kept: Vec<Resource> = match (self.mode, scope) {
            (Mode::Sotw, Scope::Keep) if ty.sotw_is_complete() => state.held.bodies(&missing),
            _ => Vec::new(),
        };
        let carried = match (complete, kept.is_empty()) {
            (true, true) => set.clone(),
            (true, false) => set.iter().cloned().chain(kept).collect(),
            (false, _) => told.clone(),
        };
        state.forced.clear();
        state.answer = false;
        state.told = (scope != Scope::Part).then(|| (set.clone(), scope));
        if scope == Scope::Keep && !missing.is_empty() {
            self.removals = true;
        }
        for name in &removed {
            state.held.remove(name);
            state.answers.forget(name);
        }
        match scope {
            Scope::Part => state.held.told_part(set, &changed, complete),
            Scope::Keep => state.held.told(set, &changed, &missing, complete),
            Scope::Whole => state.held.told(set, &changed, &[], complete),
        }
        if silent {
            return None;
        }
        if ty == ResourceType::Cluster {
            self.warm_endpoints(&told);
        }
        Some(self.respond(ty, carried, removed.into_iter().chain(absent).collect()))
    }

    /// A cluster that changed warms in Envoy until its endpoints come again,
    /// although they are the same and still subscribed to.
    fn warm_endpoints(&mut self, clusters: &Set) {
        let mode = self.mode;
        let state = &mut self.types[ResourceType::Endpoint.index()];
        for cluster in clusters.iter() {
            if state.subscription.wants(&cluster.name) {
                state.forced.insert(Arc::clone(&cluster.name));
                state.answer |= mode == Mode::Sotw;
            }
        }
    }

    fn respond(&mut self, ty: ResourceType, resources: Set, removed: Vec<Arc<str>>) -> Push {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let state = &mut self.types[ty.index()];
        let version = state.held.version();
        let stamp = Stamp { version: version.as_str().into(), nonce: nonce.as_str().into() };
        let names = resources.iter().map(|resource| Arc::clone(&resource.name)).collect();
        state.answers.note_sent(stamp, names);
        Push { mode: self.mode, ty, version, nonce, resources, removed }
    }
}
