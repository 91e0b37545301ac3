//! Which sockets are open, and the least change to get from one configuration to the next. An
//! address that stays keeps its socket and every connection; a listener that changed is looked up
//! by name at the next accept. Owned by the control runtime; workers get their share of sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use weft_traffic::ListenerConfig;

use super::bind::{self, BindAddress};

/// Sockets of all listeners that bind.
pub struct ListenerSet {
    /// Sockets to make per address.
    workers: usize,
    open: BTreeMap<SocketKey, Open>,
    failed: BTreeMap<SocketKey, String>,
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
#[derive(Debug, Clone)]
pub struct Open {
    /// Differs from the configured address when that asks for port 0.
    pub bound: SocketAddr,
}

/// What workers must do.
#[derive(Debug, Default)]
pub struct Changes {
    /// New sockets, one per worker each.
    pub listen: Vec<(SocketKey, Vec<TcpListener>)>,
    /// Sockets to close; their connections go on.
    pub unlisten: Vec<SocketKey>,
}

impl ListenerSet {
    /// Nothing open yet.
    pub fn new(workers: usize) -> ListenerSet {
        ListenerSet { workers, open: BTreeMap::new(), failed: BTreeMap::new() }
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
            match self.bind(&key, &changes.unlisten) {
                Ok((bound, sockets)) => {
                    tracing::info!(listener = %key.name, %bound, "listening");
                    self.open.insert(key.clone(), Open { bound });
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
