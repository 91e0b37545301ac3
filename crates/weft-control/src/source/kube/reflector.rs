//! One kind, listed and then watched.
//!
//! ```text
//!  served? ──▶ list, page by page ──▶ watch ──▶ watch again from the last version …
//!     ▲             ▲  410 Gone, other namespaces   │
//!     └── 404 ──────┴───────────────────────────────┘
//! ```
//! Upserts go out as they are read; deletes only by a watch's word or after a whole list.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use weft_model::ResourceKey;

use super::kinds::escaped;
use super::selection::Selection;
use super::{Cluster, Listed, Served, Watched, lean};
use crate::kube::{ApiError, Lines, back_off};
use crate::world::{Event, ResourceChange};

/// How long a watch is asked to last, in seconds: somewhere in here, so that they do not all end
/// together.
const WATCH_SECONDS: std::ops::Range<u64> = 290..590;
/// A watch that says nothing this long after its time is dead.
const OVERTIME: Duration = Duration::from_secs(30);
/// A watch that lasted this long was none that fails at once.
const LASTED: Duration = Duration::from_secs(5);

pub(super) struct Reflector {
    kind: &'static Watched,
    cluster: Arc<Cluster>,
    served: watch::Receiver<Served>,
    selection: watch::Receiver<Selection>,
    /// Told once, when the first list is complete or there is nothing to list.
    listed: Option<Arc<Listed>>,
    known: BTreeMap<Name, Known>,
    failures: u32,
}

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

struct Known {
    /// Of what was read of it.
    hash: u64,
    /// When it was valid, as what.
    key: Option<ResourceKey>,
}

/// Why reading does not go on where it is.
enum Stop {
    /// Nobody listens any more.
    Closed,
    /// What is known must be compared with a new list.
    Relist,
    Failed(ApiError),
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        match error.status() {
            Some(410) => Stop::Relist,
            _ => Stop::Failed(error),
        }
    }
}

impl Reflector {
    pub(super) fn new(
        kind: &'static Watched,
        cluster: Arc<Cluster>,
        served: watch::Receiver<Served>,
        selection: watch::Receiver<Selection>,
        listed: Arc<Listed>,
    ) -> Self {
        cluster.health.behind(kind);
        let (listed, known) = (Some(listed), BTreeMap::new());
        Reflector { kind, cluster, served, selection, listed, known, failures: 0 }
    }

    pub(super) async fn run(mut self) {
        loop {
            match self.list_and_watch().await {
                Stop::Closed => return self.forget_all().await,
                Stop::Relist => {}
                Stop::Failed(error) => {
                    if self.failed(&error).await.is_err() {
                        return self.forget_all().await;
                    }
                }
            }
        }
    }

    /// When its cluster is no more part of the mesh.
    async fn forget_all(&mut self) {
        self.cluster.health.live(self.kind);
        // Otherwise it is the world that is gone.
        let _ = self.delete_where(|_| true).await;
    }

    /// What a request answers, unless nobody wants to know any more.
    async fn asked<T>(
        &self,
        request: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, Stop> {
        tokio::select! {
            () = self.cluster.closed() => Err(Stop::Closed),
            answer = request => Ok(answer?),
        }
    }

    async fn list_and_watch(&mut self) -> Stop {
        let listed = async {
            let version = self.version().await?;
            let from = self.list(version).await?;
            Ok((version, from))
        };
        match listed.await {
            Ok((version, from)) => {
                self.cluster.health.listed(self.kind);
                self.first_listed();
                self.follow(version, from).await
            }
            Err(stop) => stop,
        }
    }

    /// The version to read, once the server has the kind.
    async fn version(&mut self) -> Result<&'static str, Stop> {
        loop {
            let served = self.served.borrow_and_update().clone();
            if let Some(version) = served.version(self.kind.kind) {
                return Ok(version);
            }
            if !self.kind.optional {
                return Ok(self.kind.versions[0]);
            }
            if served.is_known() {
                self.cluster.health.live(self.kind);
                self.first_listed();
            }
            tokio::select! {
                () = self.cluster.closed() => return Err(Stop::Closed),
                changed = self.served.changed() => changed.map_err(|_| Stop::Closed)?,
            }
        }
    }

    fn first_listed(&mut self) {
        if let Some(listed) = self.listed.take() {
            listed.one();
        }
    }

    /// Reads all pages; the version to watch from.
    async fn list(&mut self, version: &'static str) -> Result<String, Stop> {
        let selection = self.selection.borrow_and_update().clone();
        let mut seen = BTreeSet::new();
        let mut next = String::new();
        loop {
            let url = self.kind.page(version, &next);
            let mut page = self.asked(self.cluster.client.get(&url)).await?;
            let from = page.pointer("/metadata/resourceVersion").and_then(Value::as_str);
            let from = from.unwrap_or_default().to_owned();
            let items = page.get_mut("items").map(Value::take);
            let Some(Value::Array(items)) = items.filter(|_| !from.is_empty()) else {
                return Err(ApiError::Malformed("the answer is no list".to_owned()).into());
            };
            let mut changes = Vec::new();
            for item in items {
                let Some(name) = name_of(&item) else {
                    return Err(ApiError::Malformed("an item has no name".to_owned()).into());
                };
                self.read(version, &selection, &name, item, &mut changes);
                seen.insert(name);
            }
            self.send(changes).await?;
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => {
                    next = token.to_owned();
                }
                _ => {
                    self.delete_where(|name| !seen.contains(name)).await?;
                    return Ok(from);
                }
            }
        }
    }

    /// Watches, and watches again from where it was, until a list is needed.
    async fn follow(&mut self, version: &'static str, mut from: String) -> Stop {
        loop {
            let began = Instant::now();
            let ended = self.watch(version, &mut from).await;
            if began.elapsed() >= LASTED {
                self.failures = 0;
            }
            match ended {
                // At its time's end. One that ends at once is not asked for again at once.
                Ok(()) if began.elapsed() >= LASTED => {}
                Ok(()) => {
                    self.failures += 1;
                    if self.pause(back_off(self.failures, None)).await.is_err() {
                        return Stop::Closed;
                    }
                }
                // The kind may be gone.
                Err(Stop::Failed(error)) if error.status() == Some(404) => {
                    return Stop::Failed(error);
                }
                Err(Stop::Failed(error)) => {
                    if self.failed(&error).await.is_err() {
                        return Stop::Closed;
                    }
                }
                Err(stop) => return stop,
            }
        }
    }

    /// One watch, to its end; `from` is moved along.
    async fn watch(&mut self, version: &'static str, from: &mut String) -> Result<(), Stop> {
        let seconds = rand::rng().random_range(WATCH_SECONDS);
        let path = format!(
            "{}watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.kind.collection(version),
            escaped(from)
        );
        let mut lines = self.asked(self.cluster.client.watch(&path)).await?;
        self.cluster.health.live(self.kind);
        let dead = Instant::now() + Duration::from_secs(seconds) + OVERTIME;
        let selection = self.selection.borrow_and_update().clone();
        // It may have changed since the list.
        self.deselect(&selection).await?;
        loop {
            tokio::select! {
                () = self.cluster.closed() => return Err(Stop::Closed),
                changed = self.selection.changed() => {
                    changed.map_err(|_| Stop::Closed)?;
                    let now = self.selection.borrow_and_update().clone();
                    self.deselect(&now).await?;
                    // What is selected now was not kept before.
                    return Err(Stop::Relist);
                }
                line = next(&mut lines, dead) => {
                    let Some(line) = line? else { return Ok(()) };
                    self.event(version, &selection, &line, from).await?;
                }
            }
        }
    }

    /// One event of a watch.
    async fn event(
        &mut self,
        version: &'static str,
        selection: &Selection,
        line: &[u8],
        from: &mut String,
    ) -> Result<(), Stop> {
        let malformed = |why: &str| ApiError::Malformed(format!("an event {why}"));
        let mut event: Value = serde_json::from_slice(line).map_err(|_| malformed("is no JSON"))?;
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            return Err(ApiError::told(&object).into());
        }
        let at = object.pointer("/metadata/resourceVersion").and_then(Value::as_str);
        let at = at.filter(|at| !at.is_empty()).ok_or_else(|| malformed("has no version"))?;
        let at = at.to_owned();
        let mut changes = Vec::new();
        match kind {
            "BOOKMARK" => {}
            "ADDED" | "MODIFIED" | "DELETED" => {
                let name = name_of(&object).ok_or_else(|| malformed("has no name"))?;
                match kind {
                    "DELETED" => changes.extend(self.forget(&name)),
                    _ => self.read(version, selection, &name, object, &mut changes),
                }
            }
            _ => return Err(malformed("is of an unknown type").into()),
        }
        self.send(changes).await?;
        self.failures = 0;
        *from = at;
        Ok(())
    }

    /// What an object as it is now changes.
    fn read(
        &mut self,
        version: &str,
        selection: &Selection,
        name: &Name,
        mut object: Value,
        changes: &mut Vec<ResourceChange>,
    ) {
        let kept = selection.includes(&name.0)
            && lean::strip(self.kind, version, &self.cluster.options, &mut object);
        if !kept {
            changes.extend(self.forget(name));
            return;
        }
        let hash = hash(&object);
        if self.known.get(name).is_some_and(|known| known.hash == hash) {
            return;
        }
        let origin = self.origin(name);
        let (mut objects, mut findings) = weft_model::parse_json(&origin, object);
        self.cluster.place.mark(&mut objects, &mut findings);
        let before = self.known.remove(name).and_then(|known| known.key);
        let key = objects.first().and_then(weft_model::Object::key);
        if let (Some(before), Some(key)) = (&before, &key)
            && before != key
        {
            // ConfigMap `istio` is the mesh's configuration only while it has one.
            let (origin, key) = (origin.clone(), Some(before.clone()));
            changes.push(ResourceChange::Gone { origin, key });
        }
        self.known.insert(name.clone(), Known { hash, key: key.or(before) });
        changes.push(ResourceChange::Read { origin, objects, findings });
    }

    fn forget(&mut self, name: &Name) -> Option<ResourceChange> {
        let known = self.known.remove(name)?;
        Some(ResourceChange::Gone { origin: self.origin(name), key: known.key })
    }

    async fn deselect(&mut self, selection: &Selection) -> Result<(), Stop> {
        self.delete_where(|(namespace, _)| !selection.includes(namespace)).await
    }

    async fn delete_where(&mut self, gone: impl Fn(&Name) -> bool) -> Result<(), Stop> {
        let names: Vec<Name> = self.known.keys().filter(|name| gone(name)).cloned().collect();
        let changes = names.iter().filter_map(|name| self.forget(name)).collect();
        self.send(changes).await
    }

    async fn send(&self, changes: Vec<ResourceChange>) -> Result<(), Stop> {
        if changes.is_empty() {
            return Ok(());
        }
        self.cluster.health.holds(self.kind, self.known.len());
        self.cluster.events.send(Event::Resources(changes)).await.map_err(|_| Stop::Closed)
    }

    /// Says so, and waits.
    async fn failed(&mut self, error: &ApiError) -> Result<(), Stop> {
        self.failures += 1;
        self.cluster.health.failed(self.kind, error);
        let resource = self.kind.full_name();
        // Once is not worth a word: watches break.
        match self.failures {
            1 => tracing::debug!(resource, %error, "reading the cluster"),
            _ => tracing::warn!(resource, %error, "reading the cluster; what is known stays"),
        }
        self.pause(back_off(self.failures, error.retry_after())).await
    }

    async fn pause(&self, time: Duration) -> Result<(), Stop> {
        tokio::select! {
            () = self.cluster.closed() => Err(Stop::Closed),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    fn origin(&self, (namespace, name): &Name) -> Arc<str> {
        let place = &self.cluster.place;
        let kind = match place.remote {
            true => weft_model::in_cluster(&self.kind.full_name(), &place.cluster),
            false => self.kind.full_name(),
        };
        Arc::from(match namespace.is_empty() {
            true => format!("{}{kind}/{name}", weft_model::KUBERNETES),
            false => format!("{}{kind}/{namespace}/{name}", weft_model::KUBERNETES),
        })
    }
}

async fn next(lines: &mut Lines, dead: Instant) -> Result<Option<bytes::Bytes>, ApiError> {
    let silent = || ApiError::Unreachable("a watch outlived its time".to_owned());
    tokio::time::timeout_at(dead, lines.next()).await.map_err(|_| silent())?
}

fn name_of(object: &Value) -> Option<Name> {
    let text = |field: &str| object.get("metadata")?.get(field)?.as_str();
    let name = text("name").filter(|name| !name.is_empty())?;
    Some((Arc::from(text("namespace").unwrap_or_default()), Arc::from(name)))
}

fn hash(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}
