//! The process: worker threads, the control runtime with xDS, certificates and admin, and the
//! orderly way out. `start` may be called several times in one process (the demo does).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use weft_telemetry::Registry;

use crate::config::Config;
use crate::config::subscriber::{self, Source};
use crate::drain::{DrainSignal, DrainState};
use crate::listener::set::ListenerSet;
use crate::logging::LogLevel;
use crate::tls::Secrets;
use crate::tls::identity::{self, IdentityConfig};
use crate::upstream::endpoints::EndpointTable;
use crate::worker::{self, Limits, NodeInfo, ToWorker, WorkerParts};

/// What to start.
pub struct Settings {
    /// Who we are.
    pub node: NodeInfo,
    /// Where configuration comes from.
    pub source: Source,
    /// Our certificate; `None` leaves `default` to SDS.
    pub identity: Option<IdentityConfig>,
    /// Address of the admin server; port 0 takes any.
    pub admin: SocketAddr,
    /// The address bound is written here.
    pub admin_file: Option<PathBuf>,
    /// Worker threads.
    pub workers: usize,
    /// On drain keep accepting at least this long.
    pub drain_time: Duration,
    /// On drain exit after this long whatever is open.
    pub grace: Duration,
    /// Changes the log level; `None` when logging belongs to the host process.
    pub log_level: Option<LogLevel>,
    /// Shown by `/server_info`.
    pub options: serde_json::Value,
}

/// State the control runtime and the admin server share. Nothing here is on the request path.
pub struct Shared {
    /// Who we are.
    pub node: Arc<NodeInfo>,
    /// All metrics.
    pub registry: Registry,
    /// All secrets.
    pub secrets: Arc<Secrets>,
    /// The way out.
    pub drain: DrainSignal,
    /// Changes the log level.
    pub log_level: Option<LogLevel>,
    /// Start of the process.
    pub started: Instant,
    /// Number of workers.
    pub workers: usize,
    /// Shown by `/server_info`.
    pub options: serde_json::Value,
    /// Endpoint counters of every worker.
    pub endpoint_tables: Vec<EndpointTable>,
    /// Listeners wait for something, or could not be bound: timers may have to be set.
    pub listeners_changed: Notify,
    /// The process is to end; draining alone (`/drain_listeners`) only announces.
    leaving: watch::Sender<bool>,
    config: Mutex<Config>,
    listeners: Mutex<ListenerSet>,
    published: Mutex<Published>,
    orders: Vec<mpsc::UnboundedSender<ToWorker>>,
    ready: AtomicBool,
}

/// Versions that workers and sockets are at.
#[derive(Default)]
struct Published {
    tables: u64,
    listeners: u64,
}

impl Shared {
    /// The configuration; hold it briefly.
    pub fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open sockets.
    pub fn listeners(&self) -> MutexGuard<'_, ListenerSet> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives workers the tables of `config` and opens or closes sockets accordingly.
    pub fn publish(&self, config: &Config) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = config.tables();
        if tables.version != published.tables {
            published.tables = tables.version;
            self.order(|| ToWorker::Tables(tables.clone()));
        }
        let mut listeners = self.listeners();
        let failed_before = listeners.failed().next().is_some();
        if config.listeners_version() != published.listeners || failed_before {
            published.listeners = config.listeners_version();
            let changes = listeners.update(tables.listeners().map(|listener| &**listener));
            for key in changes.unlisten {
                self.order(|| ToWorker::Unlisten(key.clone()));
            }
            for (key, sockets) in changes.listen {
                let mut sockets = sockets.into_iter();
                for orders in &self.orders {
                    let Some(socket) = sockets.next() else { break };
                    let _ = orders.send(ToWorker::Listen(key.clone(), socket));
                }
            }
        }
        let bound = listeners.failed().next().is_none();
        if config.is_complete() && bound && !self.ready.swap(true, Ordering::Relaxed) {
            tracing::info!(after = ?self.started.elapsed(), "ready");
            if let Err(error) = crate::memory::release_startup_code() {
                tracing::debug!(%error, "memory of the start not given back");
            }
        }
    }

    /// Tells every worker. One that is gone has ended the process already.
    fn order(&self, order: impl Fn() -> ToWorker) {
        for orders in &self.orders {
            let _ = orders.send(order());
        }
    }

    /// Envoy's server state: `LIVE`, `DRAINING`, `PRE_INITIALIZING`.
    pub fn state(&self) -> &'static str {
        match (self.drain.is_draining(), self.ready.load(Ordering::Relaxed)) {
            (true, _) => "DRAINING",
            (false, true) => "LIVE",
            (false, false) => "PRE_INITIALIZING",
        }
    }
}

/// A running proxy. Dropping it does not stop it; see [`Proxy::shutdown`] and [`Proxy::stop`].
pub struct Proxy {
    shared: Arc<Shared>,
    admin: SocketAddr,
    threads: Vec<JoinHandle<()>>,
    ended: watch::Receiver<bool>,
}

impl Proxy {
    /// Address of the admin server.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// State shared with the admin server.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Begins the orderly way out: announce, keep accepting for the drain time, end with the last
    /// connection or the grace period.
    pub fn shutdown(&self) {
        self.shared.leaving.send_replace(true);
        self.shared.drain.advance(DrainState::Draining);
    }

    /// Whether [`Proxy::shutdown`] was called.
    pub fn is_leaving(&self) -> bool {
        *self.shared.leaving.borrow()
    }

    /// Ends at once, closing what is open.
    pub fn stop(&self) {
        self.shared.drain.advance(DrainState::Closing);
    }

    /// Completes when the proxy has ended.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the control thread is gone: ended too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Waits for the end and for all threads.
    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Starts workers, admin server, certificates and xDS.
pub fn start(settings: Settings) -> io::Result<Proxy> {
    let Settings {
        node,
        source,
        identity,
        admin,
        admin_file,
        workers,
        drain_time,
        grace,
        log_level,
        options,
    } = settings;
    let limits = Limits { connections_max: connections_max() };
    let (registry, secrets, drain) =
        (Registry::new(), Arc::new(Secrets::new()), DrainSignal::new());
    let node = Arc::new(node);
    let workers = workers.max(1);
    let endpoint_tables: Vec<EndpointTable> =
        (0..workers).map(|_| EndpointTable::default()).collect();
    let parts = WorkerParts {
        registry: registry.clone(),
        secrets: secrets.clone(),
        drain: drain.clone(),
        node: node.clone(),
        limits,
    };
    let mut threads = Vec::new();
    let mut orders = Vec::new();
    for (id, endpoints) in endpoint_tables.iter().cloned().enumerate() {
        let (sender, receiver) = mpsc::unbounded_channel();
        orders.push(sender);
        let parts = parts.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{id}"));
        threads.push(thread.spawn(move || {
            if let Err(error) = worker::run(id, workers, parts, endpoints, receiver) {
                tracing::error!(worker = id, %error, "worker could not start");
            }
        })?);
    }
    let shared = Arc::new(Shared {
        config: Mutex::new(Config::new(secrets.clone(), identity.is_some())),
        listeners: Mutex::new(ListenerSet::new(workers)),
        published: Mutex::default(),
        started: Instant::now(),
        ready: AtomicBool::new(false),
        listeners_changed: Notify::new(),
        leaving: watch::Sender::new(false),
        node,
        registry,
        secrets,
        drain,
        log_level,
        workers,
        options,
        endpoint_tables,
        orders,
    });
    gauges(&shared);
    let admin_socket = std::net::TcpListener::bind(admin)?;
    admin_socket.set_nonblocking(true)?;
    let admin = admin_socket.local_addr()?;
    if let Some(path) = admin_file {
        std::fs::write(path, format!("{admin}\n"))?;
    }
    let (ended_sender, ended) = watch::channel(false);
    let control = Control { shared: shared.clone(), source, identity, drain_time, grace };
    let thread = std::thread::Builder::new().name("control".into());
    threads.push(thread.spawn(move || {
        if let Err(error) = control.run(admin_socket) {
            tracing::error!(%error, "control runtime could not start");
        }
        let _ = ended_sender.send(true);
    })?);
    Ok(Proxy { shared, admin, threads, ended })
}

/// What the control thread runs.
struct Control {
    shared: Arc<Shared>,
    source: Source,
    identity: Option<IdentityConfig>,
    drain_time: Duration,
    grace: Duration,
}

impl Control {
    fn run(self, admin: std::net::TcpListener) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let admin = tokio::net::TcpListener::from_std(admin)?;
            tokio::spawn(crate::admin::serve(admin, self.shared.clone()));
            if let Some(identity) = self.identity {
                let (secrets, registry) =
                    (self.shared.secrets.clone(), self.shared.registry.clone());
                tokio::spawn(identity::run(identity, secrets, registry));
            }
            tokio::spawn(subscriber::run(self.source, self.shared.clone()));
            leave(&self.shared, self.drain_time, self.grace).await;
            self.shared.order(|| ToWorker::End);
            Ok(())
        })
    }
}

/// Completes when the process may end: some time after it was told to leave, with the last
/// connection; or at the end of the grace period; or at once when told to close.
async fn leave(shared: &Shared, drain_time: Duration, grace: Duration) {
    let drain = &shared.drain;
    let mut leaving = shared.leaving.subscribe();
    tokio::select! {
        // The sender lives in `shared`, so this cannot fail.
        _ = leaving.wait_for(|leaving| *leaving) => {}
        () = drain.closing() => {}
    }
    tracing::info!(connections = drain.open_connections(), "draining");
    let emptied = async {
        tokio::time::sleep(drain_time.min(grace)).await;
        while drain.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = emptied => tracing::info!("drained"),
        () = tokio::time::sleep(grace) => {
            tracing::warn!(connections = drain.open_connections(), "grace period over");
        }
        () = drain.closing() => tracing::info!("told to close"),
    }
    drain.advance(DrainState::Closing);
}

fn gauges(shared: &Arc<Shared>) {
    let drain = shared.drain.clone();
    shared.registry.gauge_fn(
        "weft_proxy_downstream_connections_active",
        "Downstream connections open now.",
        &[],
        move || drain.open_connections() as f64,
    );
    let weak = Arc::downgrade(shared);
    shared.registry.gauge_fn(
        "weft_proxy_ready",
        "1 when this proxy serves, as /ready says.",
        &[],
        move || f64::from(u8::from(weak.upgrade().is_some_and(|shared| shared.state() == "LIVE"))),
    );
}

/// Connections we can carry: each may need a second socket upstream, and some are for ourselves.
/// Raises the process' limit on open files as far as it may.
fn connections_max() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Where the hard limit is absurdly high the kernel's own table would cost memory first.
    let wanted = maximum.unwrap_or(OPEN_FILES_MAX).min(OPEN_FILES_MAX);
    let now = current.unwrap_or(OPEN_FILES_MAX);
    let raised = Rlimit { current: Some(wanted), maximum };
    let open_files = match now < wanted && setrlimit(Resource::Nofile, raised).is_ok() {
        true => wanted,
        false => now,
    };
    let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
    (open_files.saturating_sub(OPEN_FILES_OWN) / 2).max(100)
}

/// Open files we raise the limit to.
const OPEN_FILES_MAX: u64 = 1 << 20;
/// Files that are no proxied connection: admin, xDS, logs, libraries.
const OPEN_FILES_OWN: usize = 200;
