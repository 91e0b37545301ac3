//! The process: worker threads, the control runtime with xDS, certificates and admin, and the
//! orderly way out. `start` may be called several times in one process (the demo does).

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use weft_telemetry::{Buckets, Registry, Scrape};
use weft_xds::health::Health;

use crate::access_log::LogSinks;
use crate::cli::LimitArgs;
use crate::config::Config;
use crate::config::subscriber::{self, Source};
use crate::dns::{self, DnsSettings, Names};
use crate::drain::{DrainSignal, DrainState};
use crate::handover::{self, Idle, Passed, Standing, give, take};
use crate::http::policy::HttpPolicy;
use crate::listener::crew::Crew;
use crate::listener::set::{ListenerSet, SocketKey};
use crate::logging::LogLevel;
use crate::reports::{self, Batch, Wanted};
use crate::status::StatusSettings;
use crate::status::health::{self, HealthSettings};
use crate::tls::Secrets;
use crate::tls::identity::{self, IdentityConfig};
use crate::upstream::endpoints::EndpointTable;
use crate::worker::{self, NodeInfo, Sources, ToWorker, WorkerParts};

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
    /// The ports that Kubernetes asks.
    pub status: StatusSettings,
    /// Asks how the workload is and says it here.
    pub health: Option<(HealthSettings, watch::Sender<Option<Health>>)>,
    /// Answers the workload's DNS.
    pub dns: Option<DnsSettings>,
    /// Worker threads.
    pub workers: usize,
    /// On drain keep accepting at least this long.
    pub drain_time: Duration,
    /// On drain exit after this long whatever is open.
    pub grace: Duration,
    /// How a newer proxy takes over from this one, and this one from an older; `None`: not.
    pub handover: Option<handover::Settings>,
    /// Bounds of the process; what is not said has a default.
    pub limits: LimitArgs,
    /// Upper bounds of Istio's histograms.
    pub buckets: Buckets,
    /// What the workload asks for where peers break the rules of HTTP.
    pub policy: HttpPolicy,
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
    /// Where we stand between an older and a newer proxy.
    pub handover: Standing,
    /// The admin server's socket.
    pub admin: AdminSocket,
    /// Targets of access logs.
    pub logs: LogSinks,
    /// The connection to the control plane.
    pub(crate) channels: reports::Channels,
    /// The process is to end; draining alone (`/drain_listeners`) only announces.
    leaving: watch::Sender<Leaving>,
    /// Why the process ends before it was told to.
    failure: OnceLock<String>,
    config: Mutex<Config>,
    /// What the resolver answers with.
    names: Arc<ArcSwap<Names>>,
    listeners: Mutex<ListenerSet>,
    published: Mutex<Published>,
    orders: Vec<mpsc::UnboundedSender<ToWorker>>,
    ready: AtomicBool,
}

/// Metrics in Prometheus text, in pieces of whole lines.
pub enum Exposition {
    /// Written as it is taken.
    Own(Box<Scrape>),
    /// All at once.
    Whole(Option<Vec<u8>>),
}

impl Iterator for Exposition {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        match self {
            Exposition::Own(scrape) => scrape.next(),
            Exposition::Whole(text) => text.take(),
        }
    }
}

/// The admin server's socket; a newer proxy gets it too.
pub struct AdminSocket {
    /// As configured; port 0 takes any.
    pub configured: SocketAddr,
    /// Listening.
    pub socket: TcpListener,
}

/// Why the process is to end, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// A newer proxy has taken over: nobody is in a hurry for this long.
    HandedOver(Duration),
    /// By a signal.
    Told,
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
        self.names.store(config.names().clone());
        if self.handover.heir.has_taken_over() {
            return;
        }
        let mut listeners = self.listeners();
        let failed_before = listeners.failed().next().is_some();
        if config.listeners_version() != published.listeners || failed_before {
            published.listeners = config.listeners_version();
            let changes = listeners.update(tables.listeners().map(|listener| &**listener));
            for key in changes.unlisten {
                self.handover.drop_held(&key);
                self.order(|| ToWorker::Unlisten(key.clone()));
            }
            for (key, sockets) in self.handover.hold_back(changes.listen) {
                self.listen(&key, sockets);
            }
            self.handover.sockets_changed.notify_one();
        }
        let bound = listeners.failed().next().is_none();
        match config.is_complete() && bound {
            true if self.handover.holds_back() => self.handover.may_serve.notify_one(),
            true => self.become_ready(),
            false => {}
        }
    }

    fn become_ready(&self) {
        if self.ready.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::info!(after = ?self.started.elapsed(), "ready");
        if let Err(error) = crate::memory::release_startup_code() {
            tracing::debug!(%error, "memory of the start not given back");
        }
    }

    /// Shares sockets out: every socket to a worker, and a socket to every worker.
    fn listen(&self, key: &SocketKey, sockets: Vec<TcpListener>) {
        for (socket, orders) in sockets.into_iter().zip(self.orders.iter().cycle()) {
            let _ = orders.send(ToWorker::Listen(key.clone(), socket));
        }
    }

    /// Accepts on the sockets held back until now: we take over.
    pub(crate) fn start_accepting(&self) {
        for (key, sockets) in self.handover.release() {
            self.listen(&key, sockets);
        }
        self.listeners().forget_inherited();
        self.become_ready();
    }

    /// A newer proxy accepts on our sockets: stops accepting and begins to drain. What comes out
    /// of the channel are connections for the newer one.
    pub(crate) fn hand_over(&self, drain_time: Duration) -> mpsc::UnboundedReceiver<Passed> {
        let passed = self.handover.name_heir();
        for key in self.listeners().close_all() {
            self.order(|| ToWorker::Unlisten(key.clone()));
        }
        self.leaving.send_if_modified(|leaving| match leaving {
            Leaving::No => {
                *leaving = Leaving::HandedOver(drain_time);
                true
            }
            _ => false,
        });
        self.drain.advance(DrainState::Draining);
        passed
    }

    /// Serves a connection that an older proxy passed on.
    pub(crate) fn adopt(&self, idle: Idle, socket: TcpStream) {
        let worker = self.handover.next_worker() % self.orders.len().max(1);
        if let Some(orders) = self.orders.get(worker) {
            let _ = orders.send(ToWorker::Adopt(idle, socket));
        }
    }

    /// All metrics, with what older proxies counted, in Prometheus text: whole lines in pieces, so
    /// that nobody needs it all in memory (unless something was inherited).
    pub fn exposition(&self, form: weft_telemetry::Exposition) -> Exposition {
        if !self.handover.has_inherited() {
            return Exposition::Own(Box::new(self.registry.scrape_as(form)));
        }
        let mut own = Vec::new();
        self.registry.render_prometheus(&mut own);
        let all = self.handover.with_inherited(&String::from_utf8_lossy(&own));
        Exposition::Whole(Some(all.into_bytes()))
    }

    /// Whether our metrics come in this form: what was inherited is text.
    pub(crate) fn tells(&self, form: weft_telemetry::Exposition) -> bool {
        form == weft_telemetry::Exposition::Text || !self.handover.has_inherited()
    }

    pub(crate) fn count_handover(&self, result: &str) {
        let help = "Hand-overs between two proxies of this workload, by result.";
        self.registry.counter("weft_proxy_handovers_total", help, &[("result", result)]).inc();
    }

    /// Ends the process with an error.
    pub(crate) fn fail(&self, why: String) {
        tracing::error!(why, "ending");
        let _ = self.failure.set(why);
        self.drain.advance(DrainState::Closing);
    }

    /// Tells every worker. One that is gone has ended the process already.
    fn order(&self, order: impl Fn() -> ToWorker) {
        for orders in &self.orders {
            let _ = orders.send(order());
        }
    }

    /// Envoy's server state: `LIVE`, `DRAINING`, `PRE_INITIALIZING`.
    pub fn state(&self) -> &'static str {
        // After a hand-over the workload is served as before, if not by us.
        let draining = self.drain.is_draining() && !self.handover.heir.has_taken_over();
        match (draining, self.ready.load(Ordering::Relaxed)) {
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
        self.shared.leaving.send_replace(Leaving::Told);
        self.shared.drain.advance(DrainState::Draining);
    }

    /// Whether [`Proxy::shutdown`] was called.
    pub fn is_leaving(&self) -> bool {
        *self.shared.leaving.borrow() == Leaving::Told
    }

    /// Ends at once, closing what is open.
    pub fn stop(&self) {
        self.shared.drain.advance(DrainState::Closing);
    }

    /// Why the proxy ended by itself, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
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
        self.shared.logs.close();
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
        status,
        health,
        dns,
        workers,
        drain_time,
        grace,
        handover,
        limits,
        buckets,
        policy,
        log_level,
        options,
    } = settings;
    let (sockets, taking) = match &handover {
        Some(handover) => take::ask(handover, &node.id)?.unzip(),
        None => (None, None),
    };
    let sockets = sockets.unwrap_or_default();
    let registry = Registry::with_budget_and_buckets(limits.budget(), buckets);
    let limits = limits.resolve(connections_max());
    let (secrets, drain) = (Arc::new(Secrets::new()), DrainSignal::new());
    let node = Arc::new(node);
    let workers = workers.max(1);
    let endpoint_tables: Vec<EndpointTable> =
        (0..workers).map(|_| EndpointTable::default()).collect();
    let heir = handover::Heir::default();
    let (orders, receivers): (Vec<_>, Vec<_>) =
        (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    let crew = Crew::new(orders.iter().cloned());
    let logs = LogSinks::new(&registry);
    let (outlet, batches) = reports::channel();
    let wanted = outlet.wanted.clone();
    let parts = WorkerParts {
        registry: registry.clone(),
        secrets: secrets.clone(),
        drain: drain.clone(),
        node: node.clone(),
        limits,
        policy,
        heir: heir.clone(),
        sources: Sources::default(),
        crew: crew.clone(),
        logs: logs.clone(),
        reports: outlet,
    };
    let mut threads = Vec::new();
    let with_orders = endpoint_tables.iter().cloned().zip(receivers);
    for (id, (endpoints, receiver)) in with_orders.enumerate() {
        let parts = parts.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{id}"));
        threads.push(thread.spawn(move || {
            if let Err(error) = worker::run(id, workers, parts, endpoints, receiver) {
                tracing::error!(worker = id, %error, "worker could not start");
            }
        })?);
    }
    // What is left holds no end of the workers' channels.
    drop(parts);
    let take::Sockets { listening, admin: admin_socket, epoch } = sockets;
    let (admin_socket, admin_is_ours) = bind_admin(admin, admin_socket)?;
    let admin_address = admin_socket.local_addr()?;
    let names: Arc<ArcSwap<Names>> = Arc::default();
    if let Some(dns) = &dns {
        threads.push(dns::start(dns, names.clone(), &registry, drain.clone())?);
    }
    let standing = Standing::new(heir, taking.is_some(), admin_is_ours, epoch);
    let mut listeners = ListenerSet::new(workers, handover.is_some());
    listeners.inherit(listening);
    let shared = Arc::new(Shared {
        handover: standing,
        admin: AdminSocket { configured: admin, socket: admin_socket },
        logs,
        channels: watch::Sender::new(None),
        failure: OnceLock::new(),
        config: Mutex::new(Config::new(secrets.clone(), identity.is_some())),
        names,
        listeners: Mutex::new(listeners),
        published: Mutex::default(),
        started: Instant::now(),
        ready: AtomicBool::new(false),
        listeners_changed: Notify::new(),
        leaving: watch::Sender::new(Leaving::No),
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
    gauges(&shared, &crew);
    if let Some(path) = admin_file {
        std::fs::write(path, format!("{admin_address}\n"))?;
    }
    let (ended_sender, ended) = watch::channel(false);
    let way = Handover { settings: handover, taking };
    let control = Control {
        shared: shared.clone(),
        batches,
        wanted,
        source,
        identity,
        status,
        health,
        drain_time,
        grace,
        handover: way,
    };
    let thread = std::thread::Builder::new().name("control".into());
    threads.push(thread.spawn(move || {
        if let Err(error) = control.run() {
            tracing::error!(%error, "control runtime could not start");
        }
        let _ = ended_sender.send(true);
    })?);
    Ok(Proxy { shared, admin: admin_address, threads, ended })
}

/// The admin socket: the older proxy's if it is that address, and whether we may accept on it now.
fn bind_admin(
    configured: SocketAddr,
    inherited: Option<(SocketAddr, TcpListener)>,
) -> io::Result<(TcpListener, bool)> {
    if let Some((theirs, socket)) = inherited
        && (theirs == configured || socket.local_addr()? == configured)
    {
        return Ok((socket, false));
    }
    let socket = TcpListener::bind(configured)?;
    socket.set_nonblocking(true)?;
    Ok((socket, true))
}

/// Hand-overs to and from this proxy.
struct Handover {
    settings: Option<handover::Settings>,
    taking: Option<take::Taking>,
}

impl Handover {
    /// Takes over if there is somebody to take over from, then offers the same to the next.
    async fn run(self, shared: Arc<Shared>) {
        if let Some(taking) = self.taking
            && let Err(error) = taking.run(shared.clone()).await
        {
            return shared.fail(format!("hand-over: {error}"));
        }
        if let Some(settings) = self.settings {
            give::run(settings, shared).await;
        }
    }
}

/// What the control thread runs.
struct Control {
    shared: Arc<Shared>,
    batches: mpsc::Receiver<Batch>,
    wanted: Arc<Wanted>,
    source: Source,
    identity: Option<IdentityConfig>,
    status: StatusSettings,
    health: Option<(HealthSettings, watch::Sender<Option<Health>>)>,
    drain_time: Duration,
    grace: Duration,
    handover: Handover,
}

impl Control {
    fn run(self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let admin = tokio::net::TcpListener::from_std(self.shared.admin.socket.try_clone()?)?;
            tokio::spawn(crate::admin::serve(admin, self.shared.clone()));
            tokio::spawn(crate::status::serve(self.status, self.shared.clone()));
            let handover = tokio::spawn(self.handover.run(self.shared.clone()));
            if let Some(identity) = self.identity {
                let (secrets, registry) =
                    (self.shared.secrets.clone(), self.shared.registry.clone());
                tokio::spawn(identity::run(identity, secrets, registry));
            }
            if let Some((settings, says)) = self.health {
                tokio::spawn(health::run(settings, says));
            }
            tokio::spawn(reopen_logs(self.shared.logs.clone()));
            let reports = tokio::spawn(reports::run(
                self.batches,
                self.shared.channels.subscribe(),
                self.source.options.clone(),
                self.shared.node.clone(),
                self.wanted,
                self.shared.registry.clone(),
            ));
            tokio::spawn(subscriber::run(self.source, self.shared.clone()));
            leave(&self.shared, self.drain_time, self.grace).await;
            self.shared.handover.end(handover).await;
            self.shared.order(|| ToWorker::End);
            // The workers' last batch; a control plane that does not answer holds nobody up.
            let _ = tokio::time::timeout(LAST_REPORT_WITHIN, reports).await;
            Ok(())
        })
    }
}

/// How long the last report may take.
const LAST_REPORT_WITHIN: Duration = Duration::from_millis(500);

/// SIGUSR1 is how log rotation says that files were moved, as to Envoy.
async fn reopen_logs(logs: LogSinks) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut rotated) = signal(SignalKind::user_defined1()) else { return };
    while rotated.recv().await.is_some() {
        logs.reopen();
    }
}

/// Completes when the process may end: some time after it was told to leave, with the last
/// connection; or at the end of the grace period; or at once when told to close.
async fn leave(shared: &Shared, drain_time: Duration, grace: Duration) {
    let drain = &shared.drain;
    let mut leaving = shared.leaving.subscribe();
    tokio::select! {
        // The sender lives in `shared`, so this cannot fail.
        _ = leaving.wait_for(|leaving| *leaving != Leaving::No) => {}
        () = drain.closing() => {}
    }
    tracing::info!(connections = drain.open_connections(), "draining");
    let handed_over = *leaving.borrow();
    if let Leaving::HandedOver(drain_time) = handed_over {
        tokio::select! {
            () = drained(shared) => tracing::info!("drained"),
            () = tokio::time::sleep(drain_time) => {
                tracing::warn!(connections = drain.open_connections(), "drain time over");
            }
            () = drain.closing() => tracing::info!("told to close"),
            // The same as for any proxy; only it does not wait for callers to notice.
            _ = leaving.wait_for(|leaving| *leaving == Leaving::Told) => {
                let _ = tokio::time::timeout(grace, empty(drain)).await;
            }
        }
        return drain.advance(DrainState::Closing);
    }
    let emptied = async {
        tokio::time::sleep(drain_time.min(grace)).await;
        empty(drain).await;
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

/// Completes with the last connection here and the older proxy, whose heritage goes through us.
async fn drained(shared: &Shared) {
    while shared.drain.open_connections() > 0 || shared.handover.has_older() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Completes with the last connection.
async fn empty(drain: &DrainSignal) {
    while drain.open_connections() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn gauges(shared: &Arc<Shared>, crew: &Crew) {
    for worker in 0..shared.workers {
        let crew = crew.clone();
        shared.registry.gauge_fn(
            "weft_proxy_worker_connections_active",
            "Downstream connections that each worker serves now.",
            &[("worker", &worker.to_string())],
            move || crew.open(worker) as f64,
        );
    }
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
