//! Where a proxy stands between an older one that it takes over from and a newer one that takes
//! over from it. Must not know sockets of listeners beyond holding them.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::counters::Inherited;
use super::{Heir, Passed};
use crate::listener::set::SocketKey;

/// How long the last counters may take to be sent.
const END_MAX: Duration = Duration::from_secs(2);

/// Sockets by what they are for.
type Sockets = Vec<(SocketKey, Vec<TcpListener>)>;

/// State of both hand-overs.
pub struct Standing {
    /// Where idle connections go.
    pub heir: Heir,
    /// Hand-overs that led to this proxy: Envoy's restart epoch.
    taken: watch::Sender<Option<u32>>,
    older: u32,
    /// Sockets of ours change: a newer proxy that prepares must hear of it.
    pub(crate) sockets_changed: Notify,
    /// We are ready, and an older proxy still accepts.
    pub(crate) may_serve: Notify,
    /// The process is about to end.
    pub(super) ending: watch::Sender<bool>,
    /// Who answers on the admin socket.
    admin: watch::Sender<Admin>,
    /// Sockets we will accept on once we take over; `None`: there is nobody to wait for.
    held_back: Mutex<Option<Sockets>>,
    inherited: Mutex<Inherited>,
    adopted: AtomicUsize,
    /// The older proxy has ended, or there was none.
    alone: AtomicBool,
}

/// Who answers on the admin socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admin {
    Older,
    Ours,
    Newer,
}

impl Standing {
    /// `takes_over`: an older proxy runs, of this epoch.
    pub fn new(heir: Heir, takes_over: bool, admin_is_ours: bool, epoch: u32) -> Standing {
        let admin = if admin_is_ours { Admin::Ours } else { Admin::Older };
        Standing {
            heir,
            taken: watch::Sender::new(None),
            older: epoch,
            sockets_changed: Notify::new(),
            may_serve: Notify::new(),
            ending: watch::Sender::new(false),
            admin: watch::Sender::new(admin),
            held_back: Mutex::new(takes_over.then(Vec::new)),
            inherited: Mutex::default(),
            adopted: AtomicUsize::new(0),
            alone: AtomicBool::new(!takes_over),
        }
    }

    /// Hand-overs that led to this proxy; the first one is 0.
    pub fn epoch(&self) -> u32 {
        self.taken.borrow().unwrap_or(0)
    }

    /// We have taken over.
    pub(super) fn take(&self) {
        self.taken.send_replace(Some(self.older.saturating_add(1)));
        self.admin.send_replace(Admin::Ours);
    }

    /// Keeps the sockets while an older proxy accepts; gives them back when none does.
    pub(crate) fn hold_back(&self, sockets: Sockets) -> Sockets {
        match &mut *lock(&self.held_back) {
            Some(held) => {
                held.extend(sockets);
                Vec::new()
            }
            None => sockets,
        }
    }

    /// Forgets a socket that is no longer wanted.
    pub(crate) fn drop_held(&self, key: &SocketKey) {
        if let Some(held) = &mut *lock(&self.held_back) {
            held.retain(|(one, _)| one != key);
        }
    }

    /// Whether an older proxy still accepts in our place.
    pub(crate) fn holds_back(&self) -> bool {
        lock(&self.held_back).is_some()
    }

    /// Nobody accepts in our place any more.
    pub(crate) fn release(&self) -> Sockets {
        lock(&self.held_back).take().unwrap_or_default()
    }

    /// A newer proxy has taken over.
    pub(crate) fn name_heir(&self) -> mpsc::UnboundedReceiver<Passed> {
        let (heir, passed) = mpsc::unbounded_channel();
        self.heir.name(heir);
        self.admin.send_replace(Admin::Newer);
        passed
    }

    /// Completes when we are to answer on the admin socket.
    pub(crate) async fn admin_begins(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.admin.subscribe().wait_for(|admin| *admin != Admin::Older).await;
    }

    /// Completes when a newer proxy answers on the admin socket.
    pub(crate) async fn admin_ends(&self) {
        let _ = self.admin.subscribe().wait_for(|admin| *admin == Admin::Newer).await;
    }

    /// Whether the older proxy may still send connections and counters, which a newer one must
    /// get through us.
    pub(crate) fn has_older(&self) -> bool {
        !self.alone.load(Ordering::Relaxed)
    }

    /// The older proxy has ended.
    pub(super) fn older_ended(&self) {
        self.alone.store(true, Ordering::Relaxed);
    }

    /// Counts adopted connections, to share them out.
    pub(crate) fn next_worker(&self) -> usize {
        self.adopted.fetch_add(1, Ordering::Relaxed)
    }

    /// What older proxies have counted so far, all of it.
    pub(super) fn inherit(&self, counters: Inherited) {
        *lock(&self.inherited) = counters;
    }

    /// Whether an older proxy counted anything.
    pub(crate) fn has_inherited(&self) -> bool {
        !lock(&self.inherited).is_empty()
    }

    /// Our exposition with what was inherited added.
    pub(crate) fn with_inherited(&self, own: &str) -> String {
        lock(&self.inherited).add_to(own)
    }

    /// Lets the newer proxy have the last counters. `task` runs [`super::give::run`].
    pub(crate) async fn end(&self, task: JoinHandle<()>) {
        self.ending.send_replace(true);
        match self.heir.is_there() {
            true => drop(tokio::time::timeout(END_MAX, task).await),
            false => task.abort(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
