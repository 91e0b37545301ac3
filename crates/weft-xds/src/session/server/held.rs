//! What the client has of one type, as far as we know.
//!
//! Owns names and versions, and a running hash over them that is the version of
//! the whole set. Must not know subscriptions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::session::Resource;

#[derive(Debug, Default)]
pub(super) struct Held {
    entries: BTreeMap<Arc<str>, Entry>,
    /// XOR of the hashes of all entries: order plays no part, and one change costs O(1).
    hash: u64,
}

#[derive(Debug)]
struct Entry {
    version: Arc<str>,
    /// Kept only where a set must be sent whole (state-of-the-world LDS and CDS):
    /// a resource that waits for its removal is sent once more with the others.
    body: Option<Bytes>,
}

impl Held {
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_current(&self, resource: &Resource) -> bool {
        self.entries.get(&resource.name).is_some_and(|entry| entry.version == resource.version)
    }

    pub(super) fn insert(&mut self, resource: &Resource, keep_body: bool) {
        let body = keep_body.then(|| resource.body.clone());
        self.put(&resource.name, Entry { version: Arc::clone(&resource.version), body });
    }

    /// What a client says it kept from an earlier stream.
    pub(super) fn insert_claim(&mut self, name: &Arc<str>, version: &str) {
        self.put(name, Entry { version: version.into(), body: None });
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(old) = self.entries.remove(name) {
            self.hash ^= hash(name, &old.version);
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let gone: Vec<Arc<str>> = self.entries.keys().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
    }

    /// Names held that are not in a set.
    pub(super) fn missing_from<'a>(
        &self,
        set: impl Iterator<Item = &'a Resource>,
    ) -> Vec<Arc<str>> {
        let present: BTreeSet<&str> = set.map(|resource| &*resource.name).collect();
        self.entries.keys().filter(|name| !present.contains(&***name)).cloned().collect()
    }

    /// Held resources with the bodies they were sent with.
    pub(super) fn bodies(&self, names: &[Arc<str>]) -> Vec<Resource> {
        let resource = |name: &Arc<str>| {
            let entry = self.entries.get(name)?;
            let body = entry.body.clone()?;
            Some(Resource { name: Arc::clone(name), version: Arc::clone(&entry.version), body })
        };
        names.iter().filter_map(resource).collect()
    }

    /// The version of the whole set.
    pub(super) fn version(&self) -> String {
        format!("{:016x}", self.hash)
    }

    fn put(&mut self, name: &Arc<str>, entry: Entry) {
        self.hash ^= hash(name, &entry.version);
        if let Some(old) = self.entries.insert(Arc::clone(name), entry) {
            self.hash ^= hash(name, &old.version);
        }
    }
}

fn hash(name: &str, version: &str) -> u64 {
    let seed = xxhash_rust::xxh64::xxh64(name.as_bytes(), 0);
    xxhash_rust::xxh64::xxh64(version.as_bytes(), seed)
}
