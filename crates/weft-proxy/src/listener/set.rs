//! Which sockets are open, and the least change to get from one configuration to the next. An
//! address that stays keeps its socket and every connection; a listener that changed is looked up
//! by name at the next accept. Sockets of an older proxy are used instead of binding. Owned by the
//! control runtime; workers get their share of sockets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use weft_traffic::ListenerConfig;

use super::bind::{self, BindAddress};
use crate::handover::take::ListeningKey;

/// Sockets of all listeners that bind.
pub struct ListenerSet {
    /// Sockets to make per address.
    workers: usize,
    /// Keep a second handle on every socket, for a newer proxy.
    keep: bool,
    open: BTreeMap<SocketKey, Open>,
    failed: BTreeMap<SocketKey, String>,
    /// An older proxy's, not used yet.
    inherited: HashMap<ListeningKey, Vec<TcpListener>>,
}

/// A listener's name and one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey {
    /// Listener name.
    pub name: Arc<str>,
    /// As configured.
    pub address: SocketAddr,
    /// IP_TRANSPARENT.
    pub transparent: bool,
}

/// A bound address.
#[derive(Debug)]
pub struct Open {
    /// Differs from the configured address when that asks for port 0.
    pub bound: SocketAddr,
    /// Second handles, one per kernel socket; the workers have the first.
    sockets: Vec<TcpListener>,
}

/// What workers must do.
#[derive(Debug, Default)]
pub struct Changes {
    /// New sockets, at least one per worker each.
    pub listen: Vec<(SocketKey, Vec<TcpListener>)>,
    /// Sockets to close; their connections go on.
    pub unlisten: Vec<SocketKey>,
}

impl ListenerSet {
    /// Nothing open yet. `keep`: a newer proxy may want the sockets one day.
    pub fn new(workers: usize, keep: bool) -> ListenerSet {
        ListenerSet {
            workers,
            keep,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            inherited: HashMap::new(),
        }
    }

    /// Uses these sockets of an older proxy where they fit, and none given before.
    pub fn inherit(&mut self, sockets: HashMap<ListeningKey, Vec<TcpListener>>) {
        self.inherited = sockets;
    }

    /// Closes what an older proxy had and we do not need.
    pub fn forget_inherited(&mut self) {
        self.inherited = HashMap::new();
    }

    /// Every kernel socket, for a newer proxy. Empty unless they are kept.
    pub fn sockets(&self) -> impl Iterator<Item = (&SocketKey, &TcpListener)> {
        self.open.iter().flat_map(|(key, open)| open.sockets.iter().map(move |one| (key, one)))
    }

    /// Lets go of everything; the workers must too.
    pub fn close_all(&mut self) -> Vec<SocketKey> {
        std::mem::take(&mut self.open).into_keys().collect()
    }

    /// Moves to these listeners. An address that cannot be bound is reported by [`Self::failed`]
    /// and tried again at the next call.
    pub fn update<'l>(&mut self, listeners: impl Iterator<Item = &'l ListenerConfig>) -> Changes {
        let wanted: BTreeSet<SocketKey> = listeners.flat_map(keys).collect();
        let mut changes = Changes::default();
        // Closed first: the address may move to another listener.
        let gone: Vec<SocketKey> =
            self.open.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in gone {
            self.open.remove(&key);
            changes.unlisten.push(key);
        }
        self.failed.clear();
        for key in wanted {
            if self.open.contains_key(&key) {
                continue;
            }
            match self.obtain(&key, &changes.unlisten) {
                Ok((open, sockets)) => {
                    tracing::info!(listener = %key.name, bound = %open.bound, "listening");
                    self.open.insert(key.clone(), open);
                    changes.listen.push((key, sockets));
                }
                Err(error) => {
                    let address = key.address;
                    tracing::error!(listener = %key.name, %address, %error, "cannot listen");
                    self.failed.insert(key, error.to_string());
                }
            }
        }
        changes
    }

    /// Inherited or new sockets, at least one for each worker.
    fn obtain(
        &mut self,
        key: &SocketKey,
        closing: &[SocketKey],
    ) -> io::Result<(Open, Vec<TcpListener>)> {
        let (bound, mut sockets) = match self.take_inherited(key) {
            Some(sockets) => {
                let bound = sockets.first().map_or(Ok(key.address), TcpListener::local_addr)?;
                (bound, sockets)
            }
            None => self.bind(key, closing)?,
        };
        let kept = match self.keep {
            true => sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
            false => Vec::new(),
        };
        // More workers than the older proxy had share its sockets: a further socket would get its
        // own queue at once, while the older proxy still answers for all of them.
        let had = sockets.len();
        for index in had..self.workers {
            let shared = sockets[index % had].try_clone()?;
            sockets.push(shared);
        }
        Ok((Open { bound, sockets: kept }, sockets))
    }

    /// The older proxy's sockets for this listener, else for its address under another name.
    fn take_inherited(&mut self, key: &SocketKey) -> Option<Vec<TcpListener>> {
        let same = (key.name.clone(), key.address, key.transparent);
        let found = match self.inherited.contains_key(&same) {
            true => same,
            false => self
                .inherited
                .keys()
                .find(|(_, address, transparent)| {
                    address.port() != 0
                        && (*address, *transparent) == (key.address, key.transparent)
                })?
                .clone(),
        };
        self.inherited.remove(&found).filter(|sockets| !sockets.is_empty())
    }

    fn bind(
        &self,
        key: &SocketKey,
        closing: &[SocketKey],
    ) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
        let wanted = BindAddress { address: key.address, transparent: key.transparent };
        // Workers close the old sockets a moment later; until then the port is ours twice.
        match closing.iter().any(|old| old.address.port() == key.address.port()) {
            true => bind::bind_shared(wanted, self.workers),
            false => bind::bind(wanted, self.workers),
        }
    }

    /// Open sockets.
    pub fn open(&self) -> impl Iterator<Item = (&SocketKey, &Open)> {
        self.open.iter()
    }

    /// Addresses that could not be bound, and why.
    pub fn failed(&self) -> impl Iterator<Item = (&SocketKey, &String)> {
        self.failed.iter()
    }
}

fn keys(listener: &ListenerConfig) -> Vec<SocketKey> {
    if !listener.bind {
        return Vec::new();
    }
    let addresses = std::iter::once(&listener.address).chain(&listener.additional_addresses);
    addresses
        .map(|address| SocketKey {
            name: listener.name.clone(),
            address: *address,
            transparent: listener.transparent,
        })
        .collect()
}
