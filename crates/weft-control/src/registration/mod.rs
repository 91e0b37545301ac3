//! Workloads outside Kubernetes that register themselves, as Istio's WorkloadGroups let them: a proxy
//! that names its group and proves that it runs as the group's service account gets a WorkloadEntry,
//! which lives as long as the proxy is connected somewhere and a grace period more, and is as healthy
//! as the proxy says.
//!
//! ```text
//! stream ─► Registrar::register ─► entry ─► (API server, or the world itself)
//!    └─ HealthInformation ─► Registration::report ─► status.conditions
//!    └─ end ─► grace period ─► gone, unless it came back
//! ```
//! Must not know what a WorkloadEntry does in the mesh.

mod entry;
mod store;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;
use weft_model::Snapshot;
use weft_telemetry::{Counter, Registry as Metrics};
use weft_xds::NodeView;
use weft_xds::health::Health;

use crate::ca::Identity;

pub(crate) use store::Store;

/// Node metadata that names the group (Istio's `ISTIO_META_AUTO_REGISTER_GROUP`).
const GROUP: &str = "AUTO_REGISTER_GROUP";
/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Registers, and takes away again.
#[derive(Clone)]
pub(crate) struct Registrar {
    store: Store,
    grace: Duration,
    /// How often each entry was registered here: whoever comes back is not taken away by who left.
    turns: Arc<Mutex<HashMap<Place, u64>>>,
    counters: Counters,
}

#[derive(Clone)]
struct Counters {
    registered: Counter,
    removed: Counter,
    failed: Counter,
}

/// Namespace and name of a WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A registered workload; taken away a grace period after this is dropped.
pub(crate) struct Registration {
    health: watch::Sender<Option<Health>>,
}

impl Registration {
    /// Writes down how the workload is.
    pub(crate) fn report(&self, health: Health) {
        self.health.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&health);
            if differs {
                *known = Some(health);
            }
            differs
        });
    }
}

impl Registrar {
    pub(crate) fn new(store: Store, grace: Duration, metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help, &[]);
        let counters = Counters {
            registered: counter("auto_registration_success_total", "Workloads registered."),
            removed: counter("auto_registration_deletes_total", "Workloads taken away."),
            failed: counter(
                "auto_registration_errors_total",
                "Workloads that could not be registered, and writes that failed.",
            ),
        };
        Registrar { store, grace, turns: Arc::default(), counters }
    }

    /// Registers the workload beside a proxy that asks for it; `None` for all others.
    ///
    /// # Errors
    /// No such group, no proof of its service account, or it could not be written.
    pub(crate) async fn register(
        &self,
        snapshot: &Snapshot,
        node: &NodeView,
        identity: Option<&Identity>,
    ) -> Result<Option<Registration>, Status> {
        let Some(group) = node.metadata.get(GROUP).filter(|group| !group.is_empty()) else {
            return Ok(None);
        };
        let Some(found) = snapshot.workload_group(&node.namespace, group) else {
            self.counters.failed.inc();
            let what = format!("no WorkloadGroup {}/{group}", node.namespace);
            return Err(Status::not_found(what));
        };
        let account = found.spec.service_account();
        let proven = identity.is_some_and(|identity| {
            identity.namespace() == node.namespace && identity.service_account() == account
        });
        if !proven {
            self.counters.failed.inc();
            return Err(Status::permission_denied(format!(
                "workloads of WorkloadGroup {}/{group} must prove that they run as {account}",
                node.namespace
            )));
        }
        let Some((place, object)) = entry::of_group(found, node) else {
            self.counters.failed.inc();
            return Err(Status::invalid_argument("a workload without an address cannot register"));
        };
        let turn = {
            let mut turns = lock(&self.turns);
            let turn = turns.entry(place.clone()).or_default();
            *turn += 1;
            *turn
        };
        if let Err(error) = self.store.put(&place, object).await {
            self.counters.failed.inc();
            tracing::error!(name = place.name, %error, "workload not registered");
            return Err(Status::unavailable(format!("not registered: {error}")));
        }
        self.counters.registered.inc();
        tracing::info!(
            namespace = place.namespace,
            name = place.name,
            group,
            "workload registered"
        );
        let (health, reports) = watch::channel(None);
        tokio::spawn(self.clone().look_after(place, turn, reports));
        Ok(Some(Registration { health }))
    }

    /// Writes reports until the stream is gone, and takes the entry away if nobody came back.
    async fn look_after(
        self,
        place: Place,
        turn: u64,
        mut reports: watch::Receiver<Option<Health>>,
    ) {
        while reports.changed().await.is_ok() {
            let report = reports.borrow_and_update().clone();
            let Some(report) = report else { continue };
            while let Err(error) = self.store.report(&place, &report).await {
                self.counters.failed.inc();
                tracing::warn!(name = place.name, %error, "health not written");
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    // Newer, or the end.
                    changed = reports.changed() => {
                        if changed.is_ok() { reports.mark_changed() }
                        break;
                    }
                }
            }
        }
        if let Err(error) = self.store.left(&place).await {
            tracing::debug!(name = place.name, %error, "leaving not written");
        }
        tokio::time::sleep(self.grace).await;
        while lock(&self.turns).get(&place) == Some(&turn) {
            match self.store.remove(&place).await {
                Ok(removed) => {
                    if removed {
                        self.counters.removed.inc();
                        tracing::info!(name = place.name, "workload taken away");
                    }
                    let mut turns = lock(&self.turns);
                    if turns.get(&place) == Some(&turn) {
                        turns.remove(&place);
                    }
                }
                Err(error) => {
                    self.counters.failed.inc();
                    tracing::warn!(name = place.name, %error, "workload not taken away");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Nothing under this lock can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
