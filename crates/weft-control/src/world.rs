//! The one writer of the world: folds what sources say into the next [`Snapshot`] and publishes
//! it with what it touched.
//!
//! Sources send [`Event`]s; the writer takes all that wait as one batch. Readers take the
//! [`State`] of now, or a [`Subscription`] that never loses a touched key: updates not yet taken
//! are merged. Must not know proxies or xDS.

mod fold;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use weft_model::{Change, Diagnostic, Object, ResourceKey, Snapshot, Touched};

use fold::Fold;

/// Events that wait for the writer before a source is held back.
const EVENTS_MAX: usize = 4096;
/// Events folded into one snapshot; bounds how long readers wait during a long initial list.
const BATCH_MAX: usize = 1024;

/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// Files that differ, seen in one look and applied in one step, so that a resource that
    /// moves from file to file is never missing.
    Files(Vec<FileChange>),
    /// What differs in a source that has its own keys (not files).
    Resources(Vec<ResourceChange>),
    /// Answered when everything said before is in the world.
    Flush(oneshot::Sender<()>),
    /// A source has said everything it had at start.
    Synced,
}

/// All of one file as it is now.
#[derive(Debug)]
pub struct FileChange {
    pub file: Arc<str>,
    /// What was parsed; `None` when the file is gone. A resource that was valid before and has
    /// an error now keeps its last good version.
    pub content: Option<(Vec<Object>, Vec<Diagnostic>)>,
}

/// One resource of a source that has its own keys. Unlike files, no two say the same key.
#[derive(Debug)]
pub enum ResourceChange {
    /// As it is now. With an error it has no object, and its last good version stays.
    Read { origin: Arc<str>, objects: Vec<Object>, findings: Vec<Diagnostic> },
    /// It is there no more; `key` when it ever was valid.
    Gone { origin: Arc<str>, key: Option<ResourceKey> },
}

/// The world at one version.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Counts published snapshots, from 0 for the empty one.
    pub version: u64,
    pub snapshot: Snapshot,
    /// Findings on single files and resources; see [`State::all_diagnostics`].
    pub diagnostics: Arc<[Diagnostic]>,
}

impl State {
    /// Findings on single resources, then those across resources.
    pub fn all_diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().chain(self.snapshot.diagnostics())
    }
}

/// A new state and everything touched since the subscriber last looked.
#[derive(Clone, Debug)]
pub struct Update {
    pub state: Arc<State>,
    pub touched: Touched,
}

/// Handle to read the world; cheap to clone.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

struct Shared {
    state: ArcSwap<State>,
    subscribers: Mutex<Subscribers>,
    synced: watch::Sender<bool>,
}

#[derive(Default)]
struct Subscribers {
    slots: Vec<Weak<Slot>>,
    closed: bool,
}

#[derive(Default)]
struct Slot {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Default)]
struct Pending {
    update: Option<Update>,
    closed: bool,
}

impl World {
    /// Starts the writer on the current runtime. It counts as synced when `sources` of them
    /// said [`Event::Synced`] (at once when 0), and ends when all senders are dropped.
    pub fn start(sources: usize) -> (World, mpsc::Sender<Event>) {
        let world = World::fixed(Snapshot::default());
        world.shared.synced.send_replace(sources == 0);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(write(world.clone(), events, sources));
        (world, sender)
    }

    /// A world that never changes; for tests and offline tools.
    pub fn fixed(snapshot: Snapshot) -> World {
        let state = State { snapshot, ..State::default() };
        World {
            shared: Arc::new(Shared {
                state: ArcSwap::from_pointee(state),
                subscribers: Mutex::default(),
                synced: watch::Sender::new(true),
            }),
        }
    }

    /// The world as it is now.
    pub fn current(&self) -> Arc<State> {
        self.shared.state.load_full()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.shared.state.load().snapshot.clone()
    }

    /// Have all sources said everything they had at start? Proxies must not be served before.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits until [`Self::is_synced`].
    pub async fn synced(&self) {
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Updates after the state returned.
    pub fn subscribe(&self) -> (Arc<State>, Subscription) {
        let mut subscribers = lock(&self.shared.subscribers);
        let slot = Arc::new(Slot::default());
        lock(&slot.pending).closed = subscribers.closed;
        subscribers.slots.push(Arc::downgrade(&slot));
        // Published under the same lock, so nothing falls between state and slot.
        (self.current(), Subscription { slot })
    }

    fn publish(&self, state: State, touched: &Touched) {
        let state = Arc::new(state);
        let mut subscribers = lock(&self.shared.subscribers);
        self.shared.state.store(state.clone());
        subscribers.slots.retain(|slot| {
            let Some(slot) = slot.upgrade() else { return false };
            let mut pending = lock(&slot.pending);
            let mut merged = pending.update.take().map(|update| update.touched).unwrap_or_default();
            merged.merge(touched.clone());
            pending.update = Some(Update { state: state.clone(), touched: merged });
            slot.changed.notify_one();
            true
        });
    }

    fn close(&self) {
        let mut subscribers = lock(&self.shared.subscribers);
        subscribers.closed = true;
        for slot in subscribers.slots.drain(..).filter_map(|slot| slot.upgrade()) {
            lock(&slot.pending).closed = true;
            slot.changed.notify_one();
        }
    }
}

/// One reader's updates.
pub struct Subscription {
    slot: Arc<Slot>,
}

impl Subscription {
    /// The next update, merged from all not yet taken; `None` when the writer has ended.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            {
                let mut pending = lock(&self.slot.pending);
                if let Some(update) = pending.update.take() {
                    return Some(update);
                }
                if pending.closed {
                    return None;
                }
            }
            self.slot.changed.notified().await;
        }
    }
}

/// Nothing under these locks can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(world: World, mut events: mpsc::Receiver<Event>, sources: usize) {
    let mut fold = Fold::default();
    let mut unsynced = sources;
    // What touches nothing yet is not published, and must not be lost: endpoints may come before
    // their service.
    let mut newest = world.snapshot();
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut changes = Vec::new();
        let mut flushed = Vec::new();
        for event in batch.drain(..) {
            match event {
                Event::Synced => unsynced = unsynced.saturating_sub(1),
                Event::Files(files) => changes.extend(fold.files(files)),
                Event::Resources(more) => changes.extend(fold.resources(more)),
                Event::Flush(done) => flushed.push(done),
            }
        }
        let before = world.current();
        let (snapshot, touched) = newest.apply(last_of_each(changes));
        newest = snapshot.clone();
        let diagnostics = fold.diagnostics();
        if !touched.is_empty() || *diagnostics != *before.diagnostics {
            let version = before.version + 1;
            report(&before.diagnostics, &diagnostics);
            world.publish(State { version, snapshot, diagnostics: diagnostics.into() }, &touched);
        }
        for done in flushed {
            // Who asked may have gone meanwhile.
            let _ = done.send(());
        }
        if unsynced == 0 {
            world.shared.synced.send_replace(true);
        }
    }
    world.close();
}

/// The last change of each key, so that a key that only moved counts as unchanged.
fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    let last: BTreeMap<_, _> = changes.into_iter().map(|c| (c.key, c.kind)).collect();
    last.into_iter().map(|(key, kind)| Change { key, kind }).collect()
}

/// Logs errors and warnings that are new.
fn report(before: &[Diagnostic], now: &[Diagnostic]) {
    for found in now.iter().filter(|found| !before.contains(found)) {
        match found.severity {
            weft_model::Severity::Error => tracing::error!("{found}"),
            weft_model::Severity::Warning => tracing::warn!("{found}"),
            weft_model::Severity::Info => tracing::debug!("{found}"),
        }
    }
}

#[cfg(test)]
mod tests;
