//! What runs when the mesh's resources are a Kubernetes cluster's: its reader, and what is written
//! there by the one control plane that is elected.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_telemetry::Registry as Metrics;

use crate::ca::{Authority, PluggedIn};
use crate::kube::{self, HooksKeeper, Reviewers, RootsKeeper, Rotation};
use crate::source;
use crate::source::kube::{Remotes, Roots};
use crate::world::{Event, World};

/// The cluster whose resources are the mesh's.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    pub access: kube::Access,
    pub source: source::kube::Options,
    /// Keep our own root in the cluster, for all control planes there, and not in our folder.
    pub shared_root: bool,
    /// Another cluster's control plane serves the proxies of this one: it is not read, and no proxy
    /// is served.
    pub inject_only: bool,
    /// Whom service account tokens must be meant for.
    pub token_audience: String,
    /// How long another authority in Secret `cacerts` is trusted before it signs.
    pub rotation_grace: Duration,
    /// Take part in electing the one that writes; `None` writes nothing.
    pub candidate: Option<kube::Candidate>,
    /// What it writes.
    pub writes: Writes,
}

/// What an elected control plane writes into its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Resources' status.
    pub status: bool,
    /// ConfigMap `istio-ca-root-cert` in every namespace.
    pub roots: bool,
    /// Certificates of these webhooks.
    pub hooks: Option<kube::Hooks>,
}

/// Reads the cluster and, when elected, writes into it, until `shutdown`.
pub(crate) fn start(
    cluster: &Kubernetes,
    client: &kube::Client,
    (authority, plugged): (&Authority, Option<PluggedIn>),
    reviewers: Reviewers,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> (World, mpsc::Sender<Event>) {
    let candidate = cluster.candidate.clone();
    let term = candidate.map(|one| kube::elect(client.clone(), one, shutdown.clone()));
    follow_authority(cluster, client, (authority, plugged), metrics, shutdown);
    if let (Some(hooks), Some(term)) = (cluster.writes.hooks.clone(), term.clone()) {
        let help = "Webhook configurations whose certificates were written.";
        let writes = metrics.counter("weft_kubernetes_webhook_writes_total", help, &[]);
        let (client, authority) = (client.clone(), authority.clone());
        tokio::spawn(HooksKeeper { client, term, authority, hooks, writes }.run(shutdown.clone()));
    }
    if cluster.inject_only {
        return World::start(0);
    }
    // The cluster itself, and all others.
    let (world, events) = World::start(2);
    let options = cluster.source.clone();
    let served = {
        let (client, world, events) = (client.clone(), world.clone(), events.clone());
        source::kube::watch(client, options.clone(), world, events, metrics)
    };
    let help = "ConfigMaps with the mesh's roots that were written.";
    let writes = metrics.counter("weft_kubernetes_roots_writes_total", help, &[]);
    let roots = term.clone().filter(|_| cluster.writes.roots);
    let roots = roots.map(|term| Roots { term, authority: authority.clone(), writes });
    let remotes = Remotes {
        client: client.clone(),
        rate: cluster.access.rate,
        options,
        world: world.clone(),
        events: events.clone(),
        metrics: metrics.clone(),
        reviewers,
        roots: roots.clone(),
        shutdown: shutdown.clone(),
    };
    tokio::spawn(remotes.run());
    if let Some(term) = term.filter(|_| cluster.writes.status) {
        let writer = kube::Writer::new(client.clone(), world.clone(), served, term, metrics);
        tokio::spawn(writer.run(shutdown.clone()));
    }
    if let Some(Roots { term, authority, writes }) = roots {
        let namespaces = source::kube::discovered(world.clone());
        let client = client.clone();
        let keeper = RootsKeeper { client, term, authority, namespaces, writes };
        tokio::spawn(keeper.run(shutdown.clone()));
    }
    (world, events)
}

fn follow_authority(
    cluster: &Kubernetes,
    client: &kube::Client,
    (authority, plugged): (&Authority, Option<PluggedIn>),
    metrics: &Metrics,
    shutdown: &CancellationToken,
) {
    let rotation = Rotation {
        client: client.clone(),
        namespace: cluster.source.root_namespace.clone(),
        authority: authority.clone(),
        current: plugged,
        grace: cluster.rotation_grace,
        metrics: metrics.clone(),
    };
    tokio::spawn(rotation.run(shutdown.clone()));
}
