//! A Kubernetes cluster, listed and watched, and other clusters beside it ([`remote`]).
//!
//! Every kind has its own list and watch ([`reflector`]); they share the client and its limit of
//! requests. What cannot be reached, listed whole or understood deletes nothing: the world keeps
//! what was there, and how old that is can be read from a metric. Objects are stripped to what is
//! used ([`lean`]) and parsed by the same parser as files.

mod health;
mod kinds;
mod lean;
mod place;
mod reflector;
mod remote;
mod selection;
mod served;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use weft_telemetry::Registry as Metrics;

use crate::kube::Client;
use crate::world::{Event, World};

pub(crate) use kinds::escaped;
pub use kinds::{WATCHED, Watched};
pub(crate) use remote::{Remotes, Roots};
pub(crate) use selection::discovered;
pub(crate) use served::Served;

use health::Health;
use place::Place;
use reflector::Reflector;
use selection::Selection;

/// What is read of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where the mesh's own configuration is: ConfigMap `istio`.
    pub root_namespace: String,
    /// How often the server is asked which kinds it has.
    pub probe: Duration,
    /// What the cluster is called in the mesh.
    pub cluster_id: String,
    /// How long proxies wait at start for other clusters to be read.
    pub remote_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let probe = Duration::from_secs(30);
        Options {
            root_namespace: weft_model::ROOT_NAMESPACE.to_owned(),
            probe,
            cluster_id: weft_model::DEFAULT_CLUSTER.to_owned(),
            remote_patience: Duration::from_secs(30),
        }
    }
}

/// What the readers of all kinds share.
struct Cluster {
    client: Client,
    events: mpsc::Sender<Event>,
    health: Health,
    options: Options,
    place: Place,
    /// The cluster is no more part of the mesh: what was read of it is forgotten.
    stop: CancellationToken,
}

impl Cluster {
    /// Nobody listens any more, or to this cluster.
    async fn closed(&self) {
        tokio::select! {
            () = self.events.closed() => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// Starts reading on the current runtime, until the world is gone. Says [`Event::Synced`] when
/// every kind that the server has was listed once. Returns which kinds the server has, and in
/// which version they are read.
pub(crate) fn watch(
    client: Client,
    options: Options,
    world: World,
    events: mpsc::Sender<Event>,
    metrics: &Metrics,
) -> watch::Receiver<Served> {
    let health = Health::new(metrics, None);
    let place = Place::new(Arc::from(options.cluster_id.as_str()), false);
    let stop = CancellationToken::new();
    let cluster = Arc::new(Cluster { client, events, health, options, place, stop });
    let (served_sender, served) = watch::channel(Served::default());
    tokio::spawn(served::follow(cluster.clone(), served_sender));
    tokio::spawn(start(cluster, world, served.clone()));
    served
}

/// Namespaces and the mesh's configuration first: they say which namespaces count.
async fn start(cluster: Arc<Cluster>, world: World, served: watch::Receiver<Served>) {
    let (selected, selection) = watch::channel(Selection::default());
    for first in [true, false] {
        let kinds: Vec<&'static Watched> =
            WATCHED.iter().filter(|kind| kind.first == first).collect();
        let listed = Arc::new(Listed::of(kinds.len()));
        for kind in kinds {
            let (listed, cluster) = (listed.clone(), cluster.clone());
            let reader = Reflector::new(kind, cluster, served.clone(), selection.clone(), listed);
            tokio::spawn(reader.run());
        }
        listed.all().await;
        let (done, flushed) = oneshot::channel();
        if cluster.events.send(Event::Flush(done)).await.is_err() || flushed.await.is_err() {
            return;
        }
        if first {
            let root = world.snapshot();
            let root = root.namespace(&cluster.options.root_namespace);
            let network = root.and_then(|root| root.meta.labels.get(place::NETWORK));
            // It is set here and nowhere else.
            let _ = cluster.place.network.set(network.cloned().unwrap_or_default());
            tokio::spawn(selection::follow(world.clone(), selected.clone()));
            selection::choose(&world.snapshot(), &selected);
        }
    }
    if cluster.events.send(Event::Synced).await.is_ok() {
        tracing::info!("the cluster was read");
    }
}

/// Counts kinds that were listed once.
struct Listed {
    missing: AtomicUsize,
    none_missing: Notify,
}

impl Listed {
    fn of(kinds: usize) -> Self {
        Listed { missing: AtomicUsize::new(kinds), none_missing: Notify::new() }
    }

    fn one(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none_missing.notify_one();
        }
    }

    async fn all(&self) {
        if self.missing.load(Ordering::Acquire) > 0 {
            self.none_missing.notified().await;
        }
    }
}
