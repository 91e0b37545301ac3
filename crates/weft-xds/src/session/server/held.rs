//! What the client has of one type, as far as we know.
//!
//! Owns names and versions, and a running hash over them that is the version of
//! the whole set. Most clients have exactly the set they were last told, which
//! others have too: kept is that set, and what differs from it. Must not know
//! subscriptions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Set;
use crate::session::Resource;

#[derive(Debug, Default)]
pub(super) struct Held {
    /// The client has these, unless `differs` says otherwise.
    told: Set,
    /// Held in another version or beside; `None`: not held.
    differs: BTreeMap<Arc<str>, Option<Entry>>,
    len: usize,
    /// XOR of the hashes of all entries: order plays no part, and one change costs O(1).
    hash: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    version: Arc<str>,
    /// Kept only where a set must be sent whole (state-of-the-world LDS and CDS):
    /// a resource that waits for its removal is sent once more with the others.
    body: Option<Bytes>,
}

impl Held {
    pub(super) fn has(&self, name: &str) -> bool {
        self.version_of(name).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_current(&self, resource: &Resource) -> bool {
        self.version_of(&resource.name).is_some_and(|version| is_same(version, &resource.version))
    }

    /// What a client says it kept from an earlier stream.
    pub(super) fn insert_claim(&mut self, name: &Arc<str>, version: &str) {
        self.put(name, Entry { version: version.into(), body: None });
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(version) = self.version_of(name) else { return };
        self.hash ^= hash(name, version);
        self.len -= 1;
        match self.told.get(name).map(|told| Arc::clone(&told.name)) {
            Some(name) => _ = self.differs.insert(name, None),
            None => _ = self.differs.remove(name),
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let gone: Vec<Arc<str>> = self.names().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
    }

    /// What of a set the client does not have.
    pub(super) fn changed(&self, part: &Set) -> Set {
        match self.len {
            0 => part.clone(),
            _ => part.iter().filter(|resource| !self.is_current(resource)).cloned().collect(),
        }
    }

    /// What of a set the client does not have, and the names it has that are not in the set. Cheap
    /// for a set that has much in common with the last one.
    pub(super) fn compare(&self, set: &Set) -> (Set, Vec<Arc<str>>) {
        if self.len == 0 {
            return (set.clone(), Vec::new());
        }
        let (mut changed, mut missing) = (Vec::new(), Vec::new());
        let lists = [(&self.told.shared, &set.shared), (&self.told.own, &set.own)];
        for (told, now) in lists {
            if Arc::ptr_eq(told, now) && self.differs.is_empty() {
                continue;
            }
            // Both in order of names.
            let (mut told, mut now) = (told.iter().peekable(), now.iter().peekable());
            loop {
                let order = match (told.peek(), now.peek()) {
                    (Some(told), Some(now)) => compare_names(&told.name, &now.name),
                    (Some(_), None) => std::cmp::Ordering::Less,
                    (None, Some(_)) => std::cmp::Ordering::Greater,
                    (None, None) => break,
                };
                let told = if order.is_le() { told.next() } else { None };
                let now = if order.is_ge() { now.next() } else { None };
                match (told, now) {
                    (Some(told), Some(now))
                        if self.differs.is_empty() && is_same(&told.version, &now.version) => {}
                    (_, Some(now)) => {
                        if !self.is_current(now) {
                            changed.push(now.clone());
                        }
                    }
                    (Some(told), None) => {
                        if set.get(&told.name).is_none() && self.has(&told.name) {
                            missing.push(Arc::clone(&told.name));
                        }
                    }
                    (None, None) => {}
                }
            }
        }
        let beside = self.differs.iter().filter(|(name, entry)| {
            entry.is_some() && self.told.get(name).is_none() && set.get(name).is_none()
        });
        missing.extend(beside.map(|(name, _)| Arc::clone(name)));
        (changed.into_iter().collect(), missing)
    }

    /// The client was sent `changed` and has all of `set` now, and `beside` besides.
    pub(super) fn told(
        &mut self,
        set: &Set,
        changed: &Set,
        beside: &[Arc<str>],
        keep_bodies: bool,
    ) {
        for resource in changed.iter() {
            self.count(&resource.name, &resource.version);
        }
        let beside =
            beside.iter().map(|name| (Arc::clone(name), self.entry(name, keep_bodies))).collect();
        self.differs = beside;
        self.told = set.clone();
    }

    /// As [`Self::told`] for a part of what the client has.
    pub(super) fn told_part(&mut self, part: &Set, changed: &Set, keep_bodies: bool) {
        if part.len() * 2 > self.len + changed.len() {
            let beside: Vec<Arc<str>> =
                self.names().filter(|name| part.get(name).is_none()).cloned().collect();
            return self.told(part, changed, &beside, keep_bodies);
        }
        for resource in changed.iter() {
            let body = keep_bodies.then(|| resource.body.clone());
            self.put(&resource.name, Entry { version: Arc::clone(&resource.version), body });
        }
    }

    /// Held resources with the bodies they were sent with.
    pub(super) fn bodies(&self, names: &[Arc<str>]) -> Vec<Resource> {
        let resource = |name: &Arc<str>| {
            let Entry { version, body } = self.entry(name, true)?;
            Some(Resource { name: Arc::clone(name), version, body: body? })
        };
        names.iter().filter_map(resource).collect()
    }

    /// The version of the whole set.
    pub(super) fn version(&self) -> String {
        format!("{:016x}", self.hash)
    }

    fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let told = self.told.iter().map(|told| &told.name);
        let told = told.filter(|name| self.differs.is_empty() || !self.differs.contains_key(*name));
        let differs = self.differs.iter().filter(|(_, entry)| entry.is_some());
        told.chain(differs.map(|(name, _)| name))
    }

    fn version_of(&self, name: &str) -> Option<&Arc<str>> {
        match self.differs.get(name) {
            Some(entry) => entry.as_ref().map(|entry| &entry.version),
            None => self.told.get(name).map(|told| &told.version),
        }
    }

    fn entry(&self, name: &str, with_body: bool) -> Option<Entry> {
        match self.differs.get(name) {
            Some(entry) => entry.clone(),
            None => self.told.get(name).map(|told| Entry {
                version: Arc::clone(&told.version),
                body: with_body.then(|| told.body.clone()),
            }),
        }
    }

    fn put(&mut self, name: &Arc<str>, entry: Entry) {
        self.count(name, &entry.version);
        self.differs.insert(Arc::clone(name), Some(entry));
    }

    /// Number and hash once the client has this version; what it had must still be known.
    fn count(&mut self, name: &str, version: &str) {
        self.hash ^= hash(name, version);
        match self.version_of(name) {
            Some(old) => self.hash ^= hash(name, old),
            None => self.len += 1,
        }
    }
}

fn is_same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

fn compare_names(a: &Arc<str>, b: &Arc<str>) -> std::cmp::Ordering {
    match Arc::ptr_eq(a, b) {
        true => std::cmp::Ordering::Equal,
        false => a.cmp(b),
    }
}

fn hash(name: &str, version: &str) -> u64 {
    let seed = xxhash_rust::xxh64::xxh64(name.as_bytes(), 0);
    xxhash_rust::xxh64::xxh64(version.as_bytes(), seed)
}
