//! A Kubernetes API server for tests: real HTTP on loopback, honest about what clients get wrong.
//!
//! One counter of versions, paged lists of one version, watches that can be cut, bookmarks, 410
//! after compaction, 409 for conflicts, merge patches and server-side apply (without field
//! ownership), `/status` subresources, TokenReview, rules of what may be done. Not here: schemas
//! and admission (objects are taken as they are), finalizers, set-based selectors, protobuf.
//!
//! [`Server::kill`] and [`Server::revive`] are an outage; [`Server::fail`] is anything smaller.

mod kinds;
mod rest;
mod select;
mod store;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

pub use kinds::{Kind, gateway_api, istio};
use store::{PatchStyle, Refusal, Store, Target};

/// A running API server. Dropping it ends it.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Version of the store, and how many bookmarks were asked for.
    changed: tokio::sync::watch::Sender<(u64, u64)>,
}

struct State {
    store: Store,
    faults: Vec<Planned>,
    requests: Vec<Request>,
    tokens: Vec<Token>,
    /// What may be done; everything when `None`.
    rules: Option<Vec<Rule>>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is closed instead of an answer.
    Refuse,
    /// This status, and after how many seconds to try again.
    Status(u16, Option<u32>),
    /// The answer's body ends in the middle: a list without its end, a watch's next event half
    /// told.
    Cut,
    /// The answer comes this much later.
    Slow(Duration),
}

struct Planned {
    /// Part of `METHOD /path?query`.
    matching: String,
    fault: Fault,
    times: usize,
}

/// A request as it was received.
#[derive(Debug, Clone)]
pub struct Request {
    /// `list`, `watch`, `get`, `create`, `update`, `patch`, `delete`; the method for what is no
    /// resource.
    pub verb: &'static str,
    pub group: String,
    /// With its subresource: `gateways/status`. Empty for what is no resource.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub path: String,
    pub query: String,
    /// Status of the answer.
    pub status: u16,
    pub at: Instant,
}

/// What may be done, as in a Role.
#[derive(Debug, Clone)]
pub struct Rule {
    /// All namespaces when empty.
    pub namespace: String,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub verbs: Vec<String>,
}

/// A token that TokenReview knows.
#[derive(Debug, Clone)]
pub struct Token {
    pub token: String,
    pub audiences: Vec<String>,
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub username: String,
    /// `authentication.kubernetes.io/pod-name` and the like.
    pub extra: Vec<(String, String)>,
}

impl Server {
    /// Serves the kinds every cluster has, and these.
    pub async fn start(kinds: Vec<Kind>) -> Self {
        let mut all = kinds::built_in();
        all.extend(kinds);
        let state = State {
            store: Store::new(all),
            faults: Vec::new(),
            requests: Vec::new(),
            tokens: Vec::new(),
            rules: None,
        };
        let (changed, _) = tokio::sync::watch::channel((state.store.version, 0));
        let shared = Arc::new(Shared { state: Mutex::new(state), changed });
        // It must come back on its port after an outage.
        let address = SocketAddr::from(([127, 0, 0, 1], crate::free_port()));
        let mut server = Server { address, shared, running: None };
        server.revive().await;
        server
    }

    /// Ends all connections and listens no more. Objects stay.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    /// Listens again.
    pub async fn revive(&mut self) {
        // The task that was aborted may hold the port for a moment longer.
        let listener = crate::wait::until("the port to be free", LIMIT, || async {
            TcpListener::bind(self.address).await.ok()
        });
        self.running = Some(tokio::spawn(accept(listener.await, self.shared.clone())));
    }

    /// Writes a kubeconfig for this server, and returns its path.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: test, user: {{token: test}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.address
        );
        std::fs::write(&path, text).expect("the folder is writable");
        path
    }

    /// From now on this kind is served: its CRD was installed.
    pub fn install(&self, kind: Kind) {
        self.state().store.kinds.push(kind);
    }

    /// Whether a kind is served.
    pub fn serves(&self, group: &str, plural: &str) -> bool {
        let state = self.state();
        state.store.kinds.iter().any(|kind| kind.group == group && kind.plural == plural)
    }

    /// Creates an object, or replaces it (status too).
    ///
    /// # Panics
    /// When the object's kind is not served, or it is refused.
    pub fn apply(&self, object: &Value) {
        let mut state = self.state();
        let mut target = state.target_of(object);
        match state.store.get(&target) {
            Err(_) => drop(state.store.create(&target, object.clone(), EPOCH).expect("created")),
            Ok(_) => drop(state.store.replace(&target, object.clone()).expect("replaced")),
        }
        if object.get("status").is_some() {
            target.status = true;
            if state.store.kinds[target.kind].status {
                state.store.replace(&target, object.clone()).expect("its status is written");
            }
        }
        self.shared.publish(&state.store);
    }

    /// Deletes an object, given by `apiVersion`, `kind` and metadata.
    ///
    /// # Panics
    /// When it is not there.
    pub fn delete(&self, object: &Value) {
        let mut state = self.state();
        let target = state.target_of(object);
        state.store.delete(&target).expect("it is there");
        self.shared.publish(&state.store);
    }

    /// An object as it is stored; `None` when it is not there.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.state();
        let kind = state.store.kinds.iter().position(|kind| kind.plural == plural)?;
        let target = Target {
            kind,
            version: state.store.kinds[kind].versions.first()?.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            status: false,
        };
        state.store.get(&target).ok()
    }

    /// Forgets the history: who asks for an older version is answered 410 Gone.
    pub fn compact(&self) {
        self.state().store.compact();
    }

    /// Sends a bookmark to every watch that takes them.
    pub fn bookmark(&self) {
        self.shared.changed.send_modify(|(_, bookmarks)| *bookmarks += 1);
    }

    /// The next `times` requests whose `METHOD /path?query` contains `matching` go wrong.
    pub fn fail(&self, matching: &str, fault: Fault, times: usize) {
        self.state().faults.push(Planned { matching: matching.to_owned(), fault, times });
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Only this may be done from now on; anything else is forbidden.
    pub fn restrict(&self, rules: Vec<Rule>) {
        self.state().rules = Some(rules);
    }

    /// TokenReview knows this token from now on.
    pub fn know(&self, token: Token) {
        self.state().tokens.push(token);
    }

    /// All requests so far that were answered, in order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How long a port may take to be free again.
const LIMIT: Duration = Duration::from_secs(20);
/// When objects were created that do not say so: tests need no clock.
const EPOCH: &str = "2020-01-01T00:00:00Z";

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes watches.
    fn publish(&self, store: &Store) {
        self.changed.send_modify(|(version, _)| *version = store.version);
    }
}

impl State {
    fn target_of(&self, object: &Value) -> Target {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let api_version = text("/apiVersion").expect("apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let named = |kind: &Kind| kind.group == group && Some(&*kind.kind) == text("/kind");
        let kind = self.store.kinds.iter().position(named);
        let kind = kind.unwrap_or_else(|| panic!("{api_version} {:?} is served", text("/kind")));
        let namespace = match self.store.kinds[kind].namespaced {
            true => text("/metadata/namespace").unwrap_or("default").to_owned(),
            false => String::new(),
        };
        let name = text("/metadata/name").expect("a name").to_owned();
        Target { kind, version: version.to_owned(), namespace, name, status: false }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| rest::answer(shared.clone(), request));
            // A refusal on purpose ends it with an error.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests;
