//! Where entries of registered workloads are kept: in the cluster, so that every control plane and
//! `kubectl` sees them, or without one in the world itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use weft_model::{Kind, ResourceKey};
use weft_xds::health::Health;

use super::{Place, entry, lock};
use crate::kube::{ApiError, Client, Patch, time};
use crate::world::{Event, ResourceChange};

#[derive(Clone)]
pub(crate) enum Store {
    /// Through the API; `me` is this control plane.
    Cluster { client: Client, me: String },
    /// As a source of the world.
    World { events: mpsc::Sender<Event>, entries: Arc<Mutex<HashMap<Place, Value>>> },
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("a WorkloadEntry of this name is there, and did not register itself")]
    Taken,
    #[error("the WorkloadEntry would not be valid: {0}")]
    Invalid(String),
    #[error("the control plane is shutting down")]
    Closed,
}

impl Store {
    pub(crate) fn cluster(client: Client) -> Store {
        let own = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
        let me = own.unwrap_or_else(|| format!("weft-{:08x}", rand::random::<u32>()));
        Store::Cluster { client, me }
    }

    pub(crate) fn world(events: mpsc::Sender<Event>) -> Store {
        Store::World { events, entries: Arc::default() }
    }

    /// Writes an entry, or takes over the one that is there. Returns when the mesh has it.
    pub(super) async fn put(&self, place: &Place, mut object: Value) -> Result<(), StoreError> {
        let annotations = &mut object["metadata"]["annotations"];
        annotations[entry::CONNECTED] = now().into();
        match self {
            Store::Cluster { client, me } => {
                annotations[entry::CONTROLLER] = me.as_str().into();
                match client.create(&collection(place), &object).await {
                    Err(error) if error.status() == Some(409) => {}
                    created => return Ok(created.map(drop)?),
                }
                let there = client.get(&path(place)).await?;
                let group = &there["metadata"]["annotations"][entry::REGISTERED_FOR];
                if *group != object["metadata"]["annotations"][entry::REGISTERED_FOR] {
                    return Err(StoreError::Taken);
                }
                object["metadata"]["annotations"][entry::DISCONNECTED] = Value::Null;
                client.patch(&path(place), Patch::Merge, &object).await?;
                Ok(())
            }
            Store::World { entries, .. } => {
                // What is known of its health stays.
                if let Some(before) = lock(entries).get(place) {
                    object["status"] = before["status"].clone();
                }
                self.tell(place, object).await
            }
        }
    }

    pub(super) async fn report(&self, place: &Place, health: &Health) -> Result<(), StoreError> {
        let condition = entry::condition(health, &now());
        match self {
            Store::Cluster { client, .. } => {
                let there = client.get(&path(place)).await?;
                let conditions = entry::with_condition(&there, condition);
                let status = json!({"status": {"conditions": conditions}});
                client.patch(&format!("{}/status", path(place)), Patch::Merge, &status).await?;
                Ok(())
            }
            Store::World { entries, .. } => {
                let Some(mut object) = lock(entries).get(place).cloned() else { return Ok(()) };
                object["status"]["conditions"] = entry::with_condition(&object, condition);
                self.tell(place, object).await
            }
        }
    }

    /// Its proxy is no longer connected here.
    pub(super) async fn left(&self, place: &Place) -> Result<(), StoreError> {
        match self {
            Store::Cluster { client, me } => {
                if is_ours(&client.get(&path(place)).await?, me) {
                    let annotations = json!({ entry::DISCONNECTED: now() });
                    let change = json!({"metadata": {"annotations": annotations}});
                    client.patch(&path(place), Patch::Merge, &change).await?;
                }
                Ok(())
            }
            Store::World { .. } => Ok(()),
        }
    }

    /// Takes an entry away; false when it is no longer ours to do so.
    pub(super) async fn remove(&self, place: &Place) -> Result<bool, StoreError> {
        match self {
            Store::Cluster { client, me } => {
                let there = match client.get(&path(place)).await {
                    Err(error) if error.status() == Some(404) => return Ok(false),
                    there => there?,
                };
                // Another control plane has it.
                if !is_ours(&there, me) {
                    return Ok(false);
                }
                match client.delete(&path(place)).await {
                    Err(error) if error.status() != Some(404) => Err(error.into()),
                    _ => Ok(true),
                }
            }
            Store::World { events, entries } => {
                lock(entries).remove(place);
                let gone = ResourceChange::Gone { origin: origin(place), key: Some(key(place)) };
                send(events, gone).await.map(|()| true)
            }
        }
    }

    async fn tell(&self, place: &Place, object: Value) -> Result<(), StoreError> {
        let Store::World { events, entries } = self else { return Ok(()) };
        let origin = origin(place);
        let (objects, findings) = weft_model::parse_json(&origin, object.clone());
        if let Some(error) = findings.iter().find(|finding| finding.is_error()) {
            return Err(StoreError::Invalid(error.to_string()));
        }
        lock(entries).insert(place.clone(), object);
        send(events, ResourceChange::Read { origin, objects, findings }).await
    }
}

async fn send(events: &mpsc::Sender<Event>, change: ResourceChange) -> Result<(), StoreError> {
    let (done, flushed) = oneshot::channel();
    for event in [Event::Resources(vec![change]), Event::Flush(done)] {
        events.send(event).await.map_err(|_| StoreError::Closed)?;
    }
    flushed.await.map_err(|_| StoreError::Closed)
}

fn is_ours(object: &Value, me: &str) -> bool {
    object["metadata"]["annotations"][entry::CONTROLLER] == me
}

fn origin(place: &Place) -> Arc<str> {
    Arc::from(format!("registered/{}/{}", place.namespace, place.name))
}

fn key(place: &Place) -> ResourceKey {
    ResourceKey {
        kind: Kind::WorkloadEntry,
        namespace: Arc::from(place.namespace.as_str()),
        name: Arc::from(place.name.as_str()),
    }
}

fn collection(place: &Place) -> String {
    format!("/apis/networking.istio.io/v1/namespaces/{}/workloadentries", place.namespace)
}

fn path(place: &Place) -> String {
    format!("{}/{}", collection(place), place.name)
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time::second(since.as_secs())
}
