//! Other clusters of the mesh: a Secret labelled `istio/multiCluster: "true"` in the root namespace
//! holds a kubeconfig for each, under the cluster's name. Their Services, Pods and nodes are read
//! beside the mesh's own; configuration is not.
//!
//! A cluster that cannot be reached keeps what was read of it; one whose Secret is gone is forgotten.
//! A Secret that cannot be used is a finding, and touches no other cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use weft_model::{Diagnostic, Kind, Labels, ResourceKey, Severity};
use weft_telemetry::{Counter, Registry as Metrics};

use super::health::Health;
use super::place::{NETWORK, Place};
use super::reflector::Reflector;
use super::selection::{SYSTEM, Selection};
use super::{Cluster, Listed, Options, Served, WATCHED, Watched};
use crate::ca::Authority;
use crate::kube::{
    Client, Name, Namespaces, Objects, Query, Rate, Reviewers, RootsKeeper, Term, follow,
};
use crate::world::{Event, ResourceChange, World};

/// Weft's code for a Secret that names a cluster and cannot be used.
const UNUSABLE: &str = "WEFT0007";
/// Clusters at most; each costs connections and memory.
const CLUSTERS_MAX: usize = 64;
const LABEL: &str = "labelSelector=istio%2FmultiCluster%3Dtrue";
/// What is read of another cluster.
const KINDS: [Kind; 4] = [Kind::Node, Kind::Service, Kind::Pod, Kind::EndpointSlice];

/// What other clusters are read with.
pub(crate) struct Remotes {
    /// Of the mesh's own cluster, where the Secrets are.
    pub(crate) client: Client,
    pub(crate) rate: Rate,
    pub(crate) options: Options,
    pub(crate) world: World,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) metrics: Metrics,
    pub(crate) reviewers: Reviewers,
    /// Who writes the mesh's roots there, when somebody does.
    pub(crate) roots: Option<Roots>,
    pub(crate) shutdown: CancellationToken,
}

/// What writing the mesh's roots takes.
#[derive(Clone)]
pub(crate) struct Roots {
    pub(crate) term: watch::Receiver<Option<Term>>,
    pub(crate) authority: Authority,
    pub(crate) writes: Counter,
}

struct Running {
    client: Client,
    kubeconfig: String,
    stop: CancellationToken,
    listed: watch::Receiver<bool>,
}

/// One key of one Secret.
struct Wanted {
    /// Of findings about it.
    origin: Arc<str>,
    secret: Name,
    kubeconfig: Result<String, String>,
}

impl Remotes {
    /// Follows the Secrets until `shutdown`. Says [`Event::Synced`] when what they name at first was
    /// read once, or did not let itself be read within [`Options::remote_patience`].
    pub(crate) async fn run(self) {
        let query = Query {
            collection: format!("/api/v1/namespaces/{}/secrets", self.options.root_namespace),
            select: LABEL.to_owned(),
        };
        let mut secrets = follow(self.client.clone(), query);
        let (first, named) = oneshot::channel();
        tokio::spawn(synced(named, self.events.clone(), self.options.remote_patience));
        let mut first = Some(first);
        let mut running = BTreeMap::new();
        let mut told = BTreeSet::new();
        loop {
            let found = secrets.borrow_and_update().clone();
            if let Some(found) = found {
                self.reconcile(&found, &mut running, &mut told).await;
                if let Some(first) = first.take() {
                    // Who waits may have lost patience.
                    let _ = first.send(running.values().map(|one| one.listed.clone()).collect());
                }
            }
            tokio::select! {
                changed = secrets.changed() => if changed.is_err() { return },
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    async fn reconcile(
        &self,
        secrets: &Objects,
        running: &mut BTreeMap<Arc<str>, Running>,
        told: &mut BTreeSet<Arc<str>>,
    ) {
        let mut changes = Vec::new();
        let mut origins = BTreeSet::new();
        let mut named: BTreeSet<Arc<str>> = BTreeSet::new();
        for (cluster, wanted) in all(secrets) {
            let result = match (&wanted.kubeconfig, named.contains(&cluster)) {
                (_, true) => {
                    Err("another Secret names the same cluster; it is read with that".into())
                }
                (Err(why), _) => Err(why.clone()),
                (Ok(_), _) if *cluster == *self.options.cluster_id => {
                    Err("this is what the mesh's own cluster is called".into())
                }
                (Ok(_), _) if named.len() >= CLUSTERS_MAX => {
                    Err(format!("there are more than {CLUSTERS_MAX} clusters"))
                }
                (Ok(kubeconfig), _) => self.keep(&cluster, kubeconfig, running).await,
            };
            // What cannot be used any more is kept as it was.
            named.insert(cluster);
            if let Err(why) = result {
                origins.insert(wanted.origin.clone());
                changes.push(finding(&wanted, &why));
            }
        }
        let gone: Vec<Arc<str>> =
            running.keys().filter(|cluster| !named.contains(*cluster)).cloned().collect();
        for cluster in gone {
            tracing::info!(%cluster, "a cluster is no more part of the mesh");
            self.reviewers.remove(&cluster);
            if let Some(running) = running.remove(&cluster) {
                running.stop.cancel();
            }
        }
        for origin in told.difference(&origins) {
            changes.push(ResourceChange::Gone { origin: origin.clone(), key: None });
        }
        *told = origins;
        let help = "Other clusters that are part of the mesh.";
        self.metrics.gauge("weft_kubernetes_remote_clusters", help, &[]).set(running.len() as i64);
        // The world ends with the control plane.
        let _ = self.events.send(Event::Resources(changes)).await;
    }

    /// Starts to read a cluster, or goes on with another kubeconfig.
    async fn keep(
        &self,
        cluster: &Arc<str>,
        kubeconfig: &str,
        all: &mut BTreeMap<Arc<str>, Running>,
    ) -> Result<(), String> {
        if all.get(cluster).is_some_and(|one| one.kubeconfig == kubeconfig) {
            return Ok(());
        }
        let client = Client::of_text(kubeconfig, self.rate).await.map_err(|e| e.to_string())?;
        if let Some(running) = all.get_mut(cluster) {
            running.client.become_like(&client);
            running.kubeconfig = kubeconfig.to_owned();
            return Ok(());
        }
        tracing::info!(%cluster, "a cluster is part of the mesh");
        self.reviewers.add(cluster, &client);
        let stop = CancellationToken::new();
        let (listed_sender, listed) = watch::channel(false);
        let reader = Reader {
            cluster: Cluster {
                client: client.clone(),
                events: self.events.clone(),
                health: Health::new(&self.metrics, Some(cluster)),
                options: self.options.clone(),
                place: Place::new(cluster.clone(), true),
                stop: stop.clone(),
            },
            world: self.world.clone(),
            roots: self.roots.clone(),
            listed: listed_sender,
        };
        tokio::spawn(reader.run());
        let kubeconfig = kubeconfig.to_owned();
        all.insert(cluster.clone(), Running { client, kubeconfig, stop, listed });
        Ok(())
    }
}

async fn synced(
    named: oneshot::Receiver<Vec<watch::Receiver<bool>>>,
    events: mpsc::Sender<Event>,
    patience: Duration,
) {
    let all = async {
        for mut listed in named.await.unwrap_or_default() {
            // One that stopped is not waited for.
            let _ = listed.wait_for(|listed| *listed).await;
        }
    };
    if tokio::time::timeout(patience, all).await.is_err() {
        tracing::warn!("other clusters could not be read yet; proxies are served without them");
    }
    // The world ends with the control plane.
    let _ = events.send(Event::Synced).await;
}

/// Reads one cluster.
struct Reader {
    cluster: Cluster,
    world: World,
    roots: Option<Roots>,
    listed: watch::Sender<bool>,
}

impl Reader {
    async fn run(self) {
        let Reader { cluster, world, roots, listed } = self;
        let query = Query { collection: "/api/v1/namespaces".to_owned(), select: String::new() };
        let mut namespaces = follow(cluster.client.clone(), query);
        let stop = cluster.stop.clone();
        let known = tokio::select! {
            known = namespaces.wait_for(Option::is_some) => known.ok().and_then(|one| one.clone()),
            () = stop.cancelled() => return,
        };
        let Some(known) = known else { return };
        let root = known.get(&(String::new(), cluster.options.root_namespace.clone()));
        let network = root.and_then(|one| one["metadata"]["labels"][NETWORK].as_str());
        // It is set here and nowhere else.
        let _ = cluster.place.network.set(network.unwrap_or_default().to_owned());
        let (selected, selection) = watch::channel(select(&world, &known));
        let (kept, discovered) = watch::channel(staying(&world, &known));
        tokio::spawn(follow_namespaces(stop.clone(), world, namespaces, selected, kept));
        if let Some(Roots { term, authority, writes }) = roots {
            let client = cluster.client.clone();
            let keeper = RootsKeeper { client, term, authority, namespaces: discovered, writes };
            tokio::spawn(keeper.run(stop.clone()));
        }
        let kinds: Vec<&'static Watched> =
            WATCHED.iter().filter(|kind| KINDS.contains(&kind.kind)).collect();
        let (cluster, all) = (Arc::new(cluster), Arc::new(Listed::of(kinds.len())));
        let (_core, served) = watch::channel(Served::default());
        for kind in kinds {
            let (cluster, served, selection) = (cluster.clone(), served.clone(), selection.clone());
            tokio::spawn(Reflector::new(kind, cluster, served, selection, all.clone()).run());
        }
        tokio::select! {
            () = all.all() => drop(listed.send_replace(true)),
            () = stop.cancelled() => {}
        }
    }
}

/// Which of its namespaces are read, as they and the mesh's configuration change.
async fn follow_namespaces(
    stop: CancellationToken,
    world: World,
    mut namespaces: watch::Receiver<Option<Objects>>,
    selected: watch::Sender<Selection>,
    kept: watch::Sender<Namespaces>,
) {
    let (_, mut updates) = world.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = namespaces.changed() => if changed.is_err() { return },
            update = updates.next() => match update {
                Some(update) => {
                    let keys = &update.touched.config;
                    if !keys.iter().any(|key| key.kind == Kind::MeshConfig) {
                        continue;
                    }
                }
                None => return,
            },
        }
        let Some(now) = namespaces.borrow_and_update().clone() else { continue };
        replace(&selected, select(&world, &now));
        replace(&kept, staying(&world, &now));
    }
}

fn replace<T: PartialEq>(sender: &watch::Sender<T>, now: T) {
    sender.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    });
}

fn select(world: &World, namespaces: &Objects) -> Selection {
    let labelled = namespaces.iter().map(|((_, name), object)| {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let labels: Labels = labels.map(|(key, value)| (key.clone(), text(value))).collect();
        (Arc::from(name.as_str()), labels)
    });
    Selection::choose(world.snapshot().mesh(), labelled)
}

fn staying(world: &World, namespaces: &Objects) -> Namespaces {
    let selection = select(world, namespaces);
    let stays = namespaces.iter().filter(|((_, name), object)| {
        let leaves = !object["metadata"]["deletionTimestamp"].is_null();
        !leaves && selection.includes(name) && !SYSTEM.contains(&name.as_str())
    });
    Arc::new(stays.map(|((_, name), _)| Arc::from(name.as_str())).collect())
}

/// Every key of every Secret: clusters in the order of their Secrets.
fn all(secrets: &Objects) -> Vec<(Arc<str>, Wanted)> {
    let mut all = Vec::new();
    for (secret, object) in secrets.iter() {
        for (cluster, value) in object["data"].as_object().into_iter().flatten() {
            let (namespace, name) = secret;
            let origin = format!("{}secrets/{namespace}/{name}#{cluster}", weft_model::KUBERNETES);
            let kubeconfig = kubeconfig(cluster, value);
            let (origin, secret) = (Arc::from(origin), secret.clone());
            all.push((Arc::from(cluster.as_str()), Wanted { origin, secret, kubeconfig }));
        }
    }
    all
}

fn kubeconfig(cluster: &str, value: &Value) -> Result<String, String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if cluster.is_empty() || cluster.len() > 128 || !cluster.bytes().all(valid) {
        return Err("the key is no name of a cluster".to_owned());
    }
    let bytes = STANDARD.decode(value.as_str().unwrap_or_default());
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| "the value is not text".to_owned())
}

fn finding(wanted: &Wanted, why: &str) -> ResourceChange {
    let Wanted { origin, secret: (namespace, name), .. } = wanted;
    let key = ResourceKey {
        kind: Kind::Secret,
        namespace: namespace.as_str().into(),
        name: name.as_str().into(),
    };
    let finding = Diagnostic {
        severity: Severity::Error,
        code: UNUSABLE,
        file: origin.to_string(),
        document: 0,
        line: 0,
        resource: Some(key),
        path: "data".to_owned(),
        message: format!("the cluster is not read: {why}"),
        suppressed: false,
        help: "Give a kubeconfig with a server, its certificates and a token, all inline."
            .to_owned(),
    };
    ResourceChange::Read { origin: origin.clone(), objects: Vec::new(), findings: vec![finding] }
}
