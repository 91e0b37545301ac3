//! Resources' `status`, written back by the control plane that holds the Lease.
//!
//! What it should say is a pure function of the world ([`wanted`]); how that meets what is there,
//! where others write too, is [`merge`]. Every write is of what differs from what was read a moment
//! before, with that version as precondition, and slower than reading may be.

mod merge;
mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_model::ResourceKey;
use weft_telemetry::Counter;

use super::lease::Term;
use super::limit::{Limit, Rate};
use super::{ApiError, Client, Patch, time};
use crate::source::kube::{Served, WATCHED, Watched};
use crate::world::{State, Subscription, World};
use wanted::Wanted;

/// Statuses are news for people: reading the cluster goes first.
const RATE: Rate = Rate { per_second: 10.0, burst: 20 };
/// Changes that come together are written together.
const QUIET: Duration = Duration::from_secs(1);
/// What could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);

pub(crate) struct Writer {
    client: Client,
    world: World,
    served: watch::Receiver<Served>,
    term: watch::Receiver<Option<Term>>,
    limit: Limit,
    /// What was written last, as a hash; 0 for what somebody before us wrote.
    written: HashMap<ResourceKey, u64>,
    writes: Counter,
}

impl Writer {
    pub(crate) fn new(
        client: Client,
        world: World,
        served: watch::Receiver<Served>,
        term: watch::Receiver<Option<Term>>,
        metrics: &weft_telemetry::Registry,
    ) -> Self {
        let help = "Statuses of resources that were written.";
        let writes = metrics.counter("weft_kubernetes_status_writes_total", help, &[]);
        let (limit, written) = (Limit::new(RATE), HashMap::new());
        Writer { client, world, served, term, limit, written, writes }
    }

    /// Writes while it may, until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        self.world.synced().await;
        let lead = async {
            loop {
                // The election ends only with the control plane.
                let Ok(term) = self.term.wait_for(Option::is_some).await.map(|term| *term) else {
                    return;
                };
                let (state, mut updates) = self.world.subscribe();
                if let Some(term) = term {
                    self.lead(term.number, state, &mut updates).await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = lead => {}
        }
    }

    /// Follows the world for one term.
    async fn lead(&mut self, number: i64, mut state: Arc<State>, updates: &mut Subscription) {
        self.survey().await;
        while self.may(number) {
            let complete = self.round(number, &state).await;
            let news = tokio::select! {
                update = updates.next() => update,
                () = tokio::time::sleep(AGAIN), if !complete => continue,
                lost = self.term.wait_for(|term| term.is_none_or(|one| one.number != number)) => {
                    drop(lost);
                    return;
                }
            };
            let Some(update) = news else { return };
            state = update.state;
            tokio::time::sleep(QUIET).await;
            if let Ok(Some(update)) = tokio::time::timeout(Duration::ZERO, updates.next()).await {
                state = update.state;
            }
        }
    }

    fn may(&self, number: i64) -> bool {
        self.term.borrow().is_some_and(|term| term.number == number && term.holds())
    }

    /// Finds what an earlier leader said, so that what is no longer true is taken back.
    async fn survey(&mut self) {
        self.written.clear();
        let served = self.served.borrow().clone();
        for kind in WATCHED.iter().filter(|kind| kind.status) {
            let Some(version) = served.version(kind.kind) else { continue };
            if let Err(error) = self.survey_kind(kind, version).await {
                tracing::debug!(%error, "statuses that an earlier leader wrote are not known");
            }
        }
    }

    async fn survey_kind(&mut self, kind: &Watched, version: &str) -> Result<(), ApiError> {
        let mut next = String::new();
        loop {
            let page = self.client.get(&kind.page(version, &next)).await?;
            for item in page["items"].as_array().into_iter().flatten() {
                let meta = &item["metadata"];
                let text = |field: &str| Arc::from(meta[field].as_str().unwrap_or_default());
                if merge::is_ours(&item["status"]) {
                    let (namespace, name) = (text("namespace"), text("name"));
                    self.written.insert(ResourceKey { kind: kind.kind, namespace, name }, 0);
                }
            }
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Writes what differs from what was written; false when some of it could not be.
    async fn round(&mut self, number: i64, state: &Arc<State>) -> bool {
        let state = state.clone();
        // It looks at everything.
        let made = tokio::task::spawn_blocking(move || wanted::all(&state)).await;
        let Ok(mut wanted) = made else { return false };
        for key in self.written.keys() {
            if !wanted.contains_key(key) {
                wanted.insert(key.clone(), Wanted::nothing(key.kind));
            }
        }
        let mut complete = true;
        for (key, wanted) in wanted {
            let hash = hash(&wanted);
            if self.written.get(&key) == Some(&hash) {
                continue;
            }
            self.limit.wait().await;
            if !self.may(number) {
                return false;
            }
            match self.write(&key, &wanted).await {
                Ok(()) if wanted.is_nothing() => drop(self.written.remove(&key)),
                Ok(()) => drop(self.written.insert(key, hash)),
                // It is gone, or never had a status.
                Err(error) if error.status() == Some(404) => drop(self.written.remove(&key)),
                Err(error) => {
                    complete = false;
                    tracing::debug!(%key, %error, "its status could not be written");
                }
            }
        }
        complete
    }

    async fn write(&self, key: &ResourceKey, wanted: &Wanted) -> Result<(), ApiError> {
        let watched = WATCHED.iter().find(|one| one.kind == key.kind && one.status);
        let served = self.served.borrow().clone();
        let Some((watched, version)) = watched.zip(served.version(key.kind)) else {
            return Ok(());
        };
        let path = watched.path(version, &key.namespace, &key.name);
        let object = self.client.get(&path).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = &object["status"];
        let status =
            merge::merge(before, wanted, &object["metadata"], &time::second(now.as_secs()));
        if status == *before {
            return Ok(());
        }
        let version = &object["metadata"]["resourceVersion"];
        let body = json!({
            "metadata": { "resourceVersion": version }, "status": merge::patch(before, status),
        });
        self.client.patch(&format!("{path}/status"), Patch::Merge, &body).await?;
        self.writes.inc();
        Ok(())
    }
}

fn hash(wanted: &Wanted) -> u64 {
    let mut hasher = DefaultHasher::new();
    wanted.hash(&mut hasher);
    // 0 is what we did not write.
    hasher.finish().max(1)
}

/// By resource, so that writes come in a stable order.
type All = BTreeMap<ResourceKey, Wanted>;
