//! A proxy that only listens: it follows references and reports every update.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weft_xds::client::{self, Command, Connection, Options, Subscriber, Wants};
use weft_xds::connect::Target;
use weft_xds::node::NodeKind;
use weft_xds::session::{ClientSession, Mode, Rejection, Resource, Update, Wanted};
use weft_xds::{NodeView, ResourceType};

use crate::plane::LIMIT;

/// What the proxy saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Connected,
    Disconnected(String),
    Update { ty: ResourceType, upserts: Vec<String>, removes: Vec<String> },
}

/// What a test proxy does.
#[derive(Clone)]
pub struct Behaviour {
    pub mode: Mode,
    pub name: &'static str,
    pub token: Option<String>,
    /// Cluster id.
    pub cluster: &'static str,
    /// Endpoints are asked for clusters that contain this.
    pub uses: &'static str,
    /// Secrets asked for.
    pub secrets: &'static [&'static str],
    /// Clusters whose encoding contains this are rejected.
    pub rejects: &'static str,
}

impl Behaviour {
    pub fn new(mode: Mode, name: &'static str) -> Self {
        Self {
            mode,
            name,
            token: None,
            cluster: "Kubernetes",
            uses: "outbound|",
            secrets: &[],
            rejects: "\0none",
        }
    }
}

pub struct TestProxy {
    seen: mpsc::UnboundedReceiver<Seen>,
    commands: mpsc::Sender<Command>,
    resources: mpsc::UnboundedReceiver<Resource>,
    task: JoinHandle<()>,
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Recorder {
    behaviour: Behaviour,
    clusters: BTreeSet<Arc<str>>,
    seen: mpsc::UnboundedSender<Seen>,
    resources: mpsc::UnboundedSender<Resource>,
}

impl Subscriber for Recorder {
    fn on_update(&mut self, update: &Update, wants: &mut Wants) -> Result<(), Rejection> {
        let bad: Vec<Arc<str>> = update
            .upserts
            .iter()
            .filter(|resource| contains(&resource.body, self.behaviour.rejects))
            .map(|resource| Arc::clone(&resource.name))
            .collect();
        if update.ty == ResourceType::Cluster {
            self.clusters.retain(|name| !update.removes.contains(name));
            let names = update.upserts.iter().map(|resource| &resource.name);
            self.clusters.extend(names.filter(|name| !bad.contains(name)).cloned());
            let uses = |name: &&Arc<str>| {
                name.starts_with("outbound|") && name.contains(self.behaviour.uses)
            };
            let used = self.clusters.iter().filter(uses).cloned().collect();
            wants.set(ResourceType::Endpoint, Wanted::Names(used));
        }
        let seen = Seen::Update {
            ty: update.ty,
            upserts: update.upserts.iter().map(|resource| resource.name.to_string()).collect(),
            removes: update.removes.iter().map(ToString::to_string).collect(),
        };
        _ = self.seen.send(seen);
        for resource in &update.upserts {
            _ = self.resources.send(resource.clone());
        }
        match bad.is_empty() {
            true => Ok(()),
            false => {
                Err(Rejection { reason: "this cluster is not to my taste".into(), names: bad })
            }
        }
    }

    fn on_connection(&mut self, connection: &Connection) {
        _ = self.seen.send(match connection {
            Connection::Connected { .. } => Seen::Connected,
            Connection::Disconnected { reason, .. } => Seen::Disconnected(reason.clone()),
        });
    }
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

impl TestProxy {
    pub fn start(target: Target, behaviour: Behaviour) -> Self {
        let cluster = behaviour.cluster;
        Self::start_in(target, behaviour, cluster, cluster)
    }

    /// With one cluster's token, and another one as its own.
    pub fn start_in(target: Target, behaviour: Behaviour, token_of: &str, own: &str) -> Self {
        let ip = "10.9.9.9".parse().ok();
        let mut node = NodeView::new(NodeKind::Sidecar, ip, behaviour.name, "default");
        node.weft_version = Some("test".into());
        node.cluster_id = own.to_owned();
        let target = target.with_cluster(token_of);
        let mut session = ClientSession::new(behaviour.mode, node.to_node());
        session.subscribe(ResourceType::Cluster, Wanted::All);
        session.subscribe(ResourceType::Listener, Wanted::All);
        let secrets = behaviour.secrets.iter().map(|name| Arc::from(*name)).collect();
        session.subscribe(ResourceType::Secret, Wanted::Names(secrets));
        let mut options = Options::new(target);
        options.backoff_base = Duration::from_millis(10);
        options.backoff_max = Duration::from_millis(50);
        options.token = behaviour
            .token
            .clone()
            .map(|token| -> client::TokenSource { Arc::new(move || Some(token.clone())) });
        let (seen_sender, seen) = mpsc::unbounded_channel();
        let (resource_sender, resources) = mpsc::unbounded_channel();
        let (commands, receiver) = mpsc::channel(8);
        let recorder = Recorder {
            behaviour,
            clusters: BTreeSet::new(),
            seen: seen_sender,
            resources: resource_sender,
        };
        let task = tokio::spawn(client::run(options, session, recorder, receiver));
        Self { seen, commands, resources, task }
    }

    pub async fn next(&mut self) -> Seen {
        let next = tokio::time::timeout(LIMIT, self.seen.recv()).await;
        next.expect("nothing more was seen in time").expect("the proxy runs")
    }

    /// Everything seen up to the first that fits, that included.
    pub async fn until(&mut self, fits: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let seen = self.next().await;
            let done = fits(&seen);
            all.push(seen);
            if done {
                return all;
            }
        }
    }

    /// The next body of a resource.
    pub async fn resource(&mut self, name: &str) -> Resource {
        let find = async {
            loop {
                let resource = self.resources.recv().await.expect("the proxy runs");
                if &*resource.name == name {
                    return resource;
                }
            }
        };
        tokio::time::timeout(LIMIT, find).await.unwrap_or_else(|_| panic!("{name} never came"))
    }

    pub async fn subscribe(&self, ty: ResourceType, wanted: Wanted) {
        self.commands.send(Command { ty, wanted }).await.expect("the proxy runs");
    }
}

/// An update that carries this resource.
pub fn carries(ty: ResourceType, name: &str) -> impl Fn(&Seen) -> bool {
    move |seen| match seen {
        Seen::Update { ty: seen, upserts, .. } => *seen == ty && upserts.iter().any(|n| n == name),
        Seen::Connected | Seen::Disconnected(_) => false,
    }
}

/// An update that removes this resource.
pub fn removes(ty: ResourceType, name: &str) -> impl Fn(&Seen) -> bool {
    move |seen| match seen {
        Seen::Update { ty: seen, removes, .. } => *seen == ty && removes.iter().any(|n| n == name),
        Seen::Connected | Seen::Disconnected(_) => false,
    }
}
