//! One worker: a thread with its own runtime, connections, pools and counters. This is what code
//! on the request path holds; everything here is used by one thread only, so plain cells suffice.
//! What all workers share is immutable (tables, secrets) or counts rarely (drain).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use weft_telemetry::{PeerInfo, Shard};
use weft_traffic::access_log::LogTarget;
use weft_traffic::cluster::ClusterKind;
use weft_traffic::{Cluster, EndpointAddress, ListenerConfig, Tables};

use crate::access_log::{LogSinks, LogWriter};
use crate::drain::{DrainSignal, OpenGuard};
use crate::handover::{Heir, Idle};
use crate::http::parking::Parking;
use crate::http::policy::HttpPolicy;
use crate::limits::LimitCounters;
pub use crate::limits::{Limits, Sources};
use crate::listener::accept::{accept_loop, serve, serve_adopted};
use crate::listener::crew::Crew;
use crate::listener::set::SocketKey;
use crate::outbox::Outbox;
use crate::reports::{Loads, Outlet};
use crate::tcp::{SCRATCH_BYTES, Scratch};
use crate::tls::{Secrets, TlsConfigs, TlsInfo};
use crate::upstream::Pools;
use crate::upstream::balance::Balancers;
use crate::upstream::dynamic::DynamicNames;
use crate::upstream::endpoints::{EndpointCounters, EndpointTable};

/// A worker's state. Lives in an `Rc`; never crosses threads.
pub struct Worker {
    /// 0-based.
    pub id: usize,
    /// How many workers there are.
    pub count: usize,
    /// All of them.
    pub crew: Crew,
    tables: RefCell<TablesRef>,
    /// Listeners by address, for captured connections.
    captured: RefCell<HashMap<SocketAddr, Arc<ListenerConfig>>>,
    /// This worker's metrics.
    pub metrics: Shard,
    /// Connection-level counters.
    pub counters: Counters,
    /// TLS configurations of both sides.
    pub tls: TlsConfigs,
    /// The way out of the whole process.
    pub drain: DrainSignal,
    /// The newer proxy that takes idle connections, once there is one.
    pub heir: Heir,
    /// What the workload asks for where peers break the rules of HTTP.
    pub policy: HttpPolicy,
    /// Who this proxy is.
    pub node: Arc<NodeInfo>,
    /// Bounds of the process.
    pub limits: Limits,
    /// Where access logs go.
    pub logs: LogWriter,
    /// Downstream connections by source, of all workers.
    pub sources: Sources,
    /// Balancer state by cluster.
    pub balancers: Balancers,
    /// Hosts that only requests name.
    pub names: DynamicNames,
    /// Upstream HTTP connections.
    pub pools: Pools,
    /// Spans and logs on their way to collectors.
    pub(crate) outbox: Outbox,
    /// What the control plane will be told.
    pub(crate) loads: Loads,
    /// Idle client connections.
    pub(crate) parking: Parking,
    /// Read buffer for bodies of TCP connections; borrow it only inside one poll.
    pub scratch: Scratch,
    endpoints: EndpointTable,
    clock: Cell<Instant>,
    report_round: Cell<u32>,
    rng: RefCell<SmallRng>,
}

/// The tables of the moment, counted per worker: cloning touches no other core's cache line.
pub type TablesRef = Rc<Arc<Tables>>;

/// Who this proxy is, for metrics, peer metadata and log lines.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// xDS node id, `sidecar~IP~NAME.NS~NS.svc.cluster.local`.
    pub id: String,
    /// Whether this is a gateway (router) rather than a sidecar.
    pub gateway: bool,
    /// Trust domain of the mesh, `cluster.local`.
    pub trust_domain: String,
    /// This workload as peers and metrics see it.
    pub peer: Arc<PeerInfo>,
    /// Where spans are written to as lines of Zipkin's JSON, beside any collector.
    pub span_log: Option<LogTarget>,
}

/// What is known of a downstream connection when its protocol handler starts.
#[derive(Debug)]
pub struct ConnContext {
    /// Name of the listener that accepted it; of captured traffic another one serves it.
    pub accepted_by: Arc<str>,
    /// The listener that serves it, as it was when the connection came.
    pub listener: Arc<ListenerConfig>,
    /// Its filter chain, for [`ListenerConfig::chain`].
    pub chain: usize,
    /// The client as the socket (or a PROXY protocol header) names it.
    pub peer: SocketAddr,
    /// Local address of the accepted socket.
    pub local: SocketAddr,
    /// Where the client meant to go, when capture rules redirected it to us.
    pub original_dst: Option<SocketAddr>,
    /// Server name the client asked for, whether or not TLS ended here.
    pub sni: Option<Arc<str>>,
    /// Set when TLS ended here.
    pub tls: Option<TlsInfo>,
    /// When the socket was accepted.
    pub accepted: Instant,
    /// Counts the connection as open while the context lives.
    pub open: OpenGuard,
}

impl ConnContext {
    /// Where the client meant to go, if that is not this very proxy: connecting there would loop.
    pub fn captured_dst(&self) -> Option<SocketAddr> {
        match self.original_dst {
            // With TPROXY the socket's own address is the destination.
            Some(original) if original != self.local || self.listener.transparent => Some(original),
            _ => None,
        }
    }
}

/// Connection-level counters of one worker.
pub struct Counters {
    /// Accepted connections.
    pub connections: weft_telemetry::LocalCounter,
    /// Accepted connections that another worker serves.
    pub moved: weft_telemetry::LocalCounter,
    /// Idle connections that gave up their tasks.
    pub parked: weft_telemetry::LocalCounter,
    /// Limits that were reached.
    pub limits: LimitCounters,
    /// `accept` calls that failed for want of a resource.
    pub accept_errors: weft_telemetry::LocalCounter,
    metrics: Shard,
    refused: RefCell<HashMap<&'static str, weft_telemetry::LocalCounter>>,
    rate_limits: RefCell<HashMap<(Arc<str>, &'static str), weft_telemetry::LocalCounter>>,
    h2_ended: RefCell<HashMap<&'static str, weft_telemetry::LocalCounter>>,
    h2_upstream_ended: RefCell<HashMap<&'static str, weft_telemetry::LocalCounter>>,
}

/// What the control runtime tells a worker.
pub enum ToWorker {
    /// Use these tables from now on.
    Tables(Arc<Tables>),
    /// Accept on this socket.
    Listen(SocketKey, TcpListener),
    /// Stop accepting; connections go on.
    Unlisten(SocketKey),
    /// Serve a connection that another worker accepted on this listener.
    Serve { socket: TcpStream, peer: SocketAddr, listener: Arc<str>, open: OpenGuard },
    /// Serve a connection that an older proxy passed on.
    Adopt(Idle, TcpStream),
    /// Close everything and end.
    End,
}

/// What a worker is made of.
#[derive(Clone)]
pub struct WorkerParts {
    /// Shared metrics.
    pub registry: weft_telemetry::Registry,
    /// Shared secrets.
    pub secrets: Arc<Secrets>,
    /// Shared drain state.
    pub drain: DrainSignal,
    /// Who this proxy is.
    pub node: Arc<NodeInfo>,
    /// Bounds of the process.
    pub limits: Limits,
    /// What the workload asks for where peers break the rules of HTTP.
    pub policy: HttpPolicy,
    /// The newer proxy that takes idle connections, once there is one.
    pub heir: Heir,
    /// Downstream connections by source.
    pub sources: Sources,
    /// All workers.
    pub crew: Crew,
    /// Targets of access logs.
    pub logs: LogSinks,
    /// Where reports for the control plane go.
    pub(crate) reports: Outlet,
}

impl Worker {
    /// A worker with empty tables. Call it on the worker's own thread.
    pub fn new(id: usize, count: usize, parts: WorkerParts, endpoints: EndpointTable) -> Worker {
        let WorkerParts {
            registry,
            secrets,
            drain,
            node,
            limits,
            policy,
            sources,
            heir,
            crew,
            logs,
            reports,
        } = parts;
        let metrics = registry.shard();
        Worker {
            id,
            count,
            crew,
            tables: RefCell::default(),
            captured: RefCell::default(),
            counters: Counters::new(&metrics),
            outbox: Outbox::new(&metrics),
            loads: Loads::new(reports),
            metrics,
            tls: TlsConfigs::new(secrets),
            drain: drain.for_worker(),
            heir,
            policy,
            node,
            limits,
            logs: logs.writer(),
            sources,
            balancers: Balancers::new(id, count),
            names: DynamicNames::default(),
            pools: Pools::default(),
            parking: Parking::default(),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
            endpoints,
            clock: Cell::new(Instant::now()),
            report_round: Cell::new(0),
            rng: RefCell::new(SmallRng::from_os_rng()),
        }
    }

    /// The tables of the moment. Ask once per request, so that one request sees one configuration.
    pub fn tables(&self) -> TablesRef {
        self.tables.borrow().clone()
    }

    /// Swaps the tables.
    pub fn set_tables(&self, tables: Arc<Tables>) {
        self.balancers.retain(|cluster| tables.cluster(cluster).is_some());
        self.endpoints.retain(|(cluster, _)| tables.cluster(cluster).is_some());
        let mut captured = self.captured.borrow_mut();
        captured.clear();
        for listener in tables.listeners() {
            captured.insert(listener.address, listener.clone());
            for address in &listener.additional_addresses {
                captured.insert(*address, listener.clone());
            }
        }
        *self.tables.borrow_mut() = Rc::new(tables);
    }

    /// The listener for a destination that capture rules brought here: of that address, else of
    /// its port on any address.
    pub fn captured(&self, destination: SocketAddr) -> Option<Arc<ListenerConfig>> {
        let captured = self.captured.borrow();
        let any_v4 = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, destination.port()));
        let any_v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, destination.port()));
        let wildcards = match destination.is_ipv4() {
            true => [any_v4, any_v6],
            false => [any_v6, any_v4],
        };
        let found = captured.get(&destination);
        found.or_else(|| wildcards.iter().find_map(|any| captured.get(any))).cloned()
    }

    /// This worker's counters for an endpoint. A lookup under a lock: keep the result.
    pub fn endpoint_counters(
        &self,
        cluster: &Cluster,
        address: &EndpointAddress,
    ) -> Arc<EndpointCounters> {
        match cluster.config.kind {
            ClusterKind::OriginalDst { .. } | ClusterKind::Dynamic(_) => {
                self.endpoints.get_passing(&cluster.name, address)
            }
            _ => self.endpoints.get(&cluster.name, address),
        }
    }

    /// Which round of reports on open streams it is: each counts what it has not once a round.
    pub fn report_round(&self) -> u32 {
        self.report_round.get()
    }

    /// Begins the next round.
    pub fn next_report_round(&self) {
        self.report_round.set(self.report_round.get().wrapping_add(1));
    }

    /// A random number, for balancing, sampling and jitter. Not for secrets.
    pub fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    /// The clock of the request path: the time of the last [`Worker::tick`]. Within one turn that is
    /// now, as long as everybody who has waited ticks before going on.
    pub fn now(&self) -> Instant {
        self.clock.get()
    }

    /// Reads the clock; call it when something that was waited for has come.
    pub fn tick(&self) -> Instant {
        let now = Instant::now();
        self.clock.set(now);
        now
    }
}

impl Counters {
    fn new(metrics: &Shard) -> Counters {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Counters {
            connections: counter(
                "weft_proxy_downstream_connections_total",
                "Connections accepted.",
            ),
            moved: counter(
                "weft_proxy_downstream_connections_moved_total",
                "Accepted connections that were passed on to a worker with fewer.",
            ),
            parked: counter(
                "weft_proxy_downstream_connections_parked_total",
                "Times that an idle connection gave up its task.",
            ),
            limits: LimitCounters::new(metrics),
            accept_errors: counter(
                "weft_proxy_accept_errors_total",
                "Failed accept calls, such as for want of file descriptors.",
            ),
            metrics: metrics.clone(),
            refused: RefCell::default(),
            rate_limits: RefCell::default(),
            h2_ended: RefCell::default(),
            h2_upstream_ended: RefCell::default(),
        }
    }

    /// Counts an HTTP/2 connection that was ended because its client broke the protocol or
    /// exceeded a budget.
    pub fn h2_ended(&self, reason: &'static str) {
        let counter = || {
            self.metrics.counter(
                "weft_proxy_downstream_http2_ended_total",
                "HTTP/2 connections ended for what the client did or did not do, by reason.",
                &[("reason", reason)],
            )
        };
        self.h2_ended.borrow_mut().entry(reason).or_insert_with(counter).inc();
    }

    /// Counts an HTTP/2 connection to an endpoint that was ended for what the endpoint did.
    pub fn h2_upstream_ended(&self, reason: &'static str) {
        let counter = || {
            self.metrics.counter(
                "weft_proxy_upstream_http2_ended_total",
                "HTTP/2 connections ended for what the endpoint did, by reason.",
                &[("reason", reason)],
            )
        };
        self.h2_upstream_ended.borrow_mut().entry(reason).or_insert_with(counter).inc();
    }

    /// Counts a message that was dealt with as the workload's [`HttpPolicy`] says.
    pub fn http_quirk(&self, quirk: &'static str) {
        let help = "HTTP messages that break a rule or are outdated, by what was odd about them.";
        self.metrics.counter("weft_proxy_http_quirks_total", help, &[("quirk", quirk)]).inc();
    }

    /// Counts what a local rate limit made of a request: `enabled`, `ok`, `rate_limited`, `enforced`.
    pub fn rate_limit(&self, stat_prefix: &Arc<str>, result: &'static str) {
        let counter = || {
            self.metrics.counter(
                "weft_proxy_local_rate_limit_total",
                "Requests that local rate limits looked at, and what came of it, as Envoy counts.",
                &[("stat_prefix", stat_prefix), ("result", result)],
            )
        };
        let key = (stat_prefix.clone(), result);
        self.rate_limits.borrow_mut().entry(key).or_insert_with(counter).inc();
    }

    /// Counts a connection that was closed before it was served.
    pub fn refused(&self, reason: &'static str) {
        let counter = || {
            self.metrics.counter(
                "weft_proxy_downstream_connections_refused_total",
                "Connections closed before they were served, by reason.",
                &[("reason", reason)],
            )
        };
        self.refused.borrow_mut().entry(reason).or_insert_with(counter).inc();
    }
}

/// Runs a worker on this thread until it is told to end.
pub fn run(
    id: usize,
    count: usize,
    parts: WorkerParts,
    endpoints: EndpointTable,
    orders: mpsc::UnboundedReceiver<ToWorker>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let worker = Rc::new(Worker::new(id, count, parts, endpoints));
    local.spawn_local(give_back_memory(worker.clone()));
    local.spawn_local(begin_rounds(worker.clone()));
    if !worker.limits.metrics_idle.is_zero() {
        local.spawn_local(sweep_metrics(worker.clone()));
    }
    local.block_on(&runtime, obey(worker, orders));
    Ok(())
}

async fn begin_rounds(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(REPORT_PERIOD).await;
        worker.next_report_round();
    }
}

/// Forgets the series of those who call no more.
async fn sweep_metrics(worker: Rc<Worker>) {
    let help = "Istio's metric series that were forgotten because nobody counted in them.";
    let evicted = worker.metrics.counter("weft_proxy_metric_series_evicted_total", help, &[]);
    loop {
        tokio::time::sleep(worker.limits.metrics_idle / IDLE_SWEEPS).await;
        evicted.add(worker.metrics.sweep(IDLE_SWEEPS as u8));
    }
}

/// How often a series is looked at in the time after which it is forgotten.
const IDLE_SWEEPS: u32 = 4;

/// How often messages of an open gRPC stream are counted, as Istio's `tcp_reporting_duration`.
const REPORT_PERIOD: Duration = Duration::from_secs(5);

/// Returns what a crowd of connections needed once half of them have gone.
async fn give_back_memory(worker: Rc<Worker>) {
    let mut most = 0;
    loop {
        tokio::time::sleep(GIVE_BACK_PERIOD).await;
        let open = worker.drain.open_connections();
        most = open.max(most);
        if most > GIVE_BACK_MIN && open <= most / 2 {
            most = open;
            crate::http::wire::trim_spare();
            crate::memory::release_all_freed();
            // Handshakes and closes run code that requests do not. On a thread of its own: finding
            // the mappings takes milliseconds.
            let release = std::thread::Builder::new().name("give-back".into());
            let spawned = release.spawn(crate::memory::release_startup_code);
            if let Err(error) = spawned {
                tracing::debug!(%error, "code pages stay");
            }
        }
    }
}

/// How often a worker looks whether it has memory to give back.
const GIVE_BACK_PERIOD: Duration = Duration::from_secs(10);
/// Fewer connections than this leave nothing worth the work.
const GIVE_BACK_MIN: usize = 64;

/// Carries out orders, in order: tables always come before the sockets that need them.
async fn obey(worker: Rc<Worker>, mut orders: mpsc::UnboundedReceiver<ToWorker>) {
    // Several sockets of one address where an older proxy had more workers than we have.
    let mut accepting: HashMap<SocketKey, Vec<JoinHandle<()>>> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            ToWorker::Tables(tables) => worker.set_tables(tables),
            ToWorker::End => return worker.loads.flush(),
            ToWorker::Unlisten(key) => {
                for task in accepting.remove(&key).unwrap_or_default() {
                    task.abort();
                }
            }
            ToWorker::Serve { socket, peer, listener, open } => {
                match tokio::net::TcpStream::from_std(socket) {
                    Ok(socket) => {
                        let serve = serve(socket, peer, listener, worker.clone(), open);
                        tokio::task::spawn_local(serve);
                    }
                    Err(error) => tracing::warn!(%error, "an accepted connection is lost"),
                }
            }
            ToWorker::Adopt(idle, socket) => match tokio::net::TcpStream::from_std(socket) {
                Ok(socket) => {
                    tokio::task::spawn_local(serve_adopted(socket, idle, worker.clone()));
                }
                Err(error) => tracing::warn!(%error, "a passed connection is lost"),
            },
            ToWorker::Listen(key, socket) => match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => {
                    let accept = accept_loop(socket, key.name.clone(), worker.clone());
                    let task = tokio::task::spawn_local(accept);
                    accepting.entry(key).or_default().push(task);
                }
                Err(error) => tracing::error!(listener = %key.name, %error, "cannot listen"),
            },
        }
    }
}
