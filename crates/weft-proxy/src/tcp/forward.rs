//! One TCP connection: cluster, endpoint, connect (again elsewhere if that fails, since nothing
//! has been sent), then bytes both ways, counted as Istio counts them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use weft_telemetry::load::TcpLoad;
use weft_telemetry::{
    PeerInfo, Reporter, ResponseFlags, SecurityPolicy, ServiceInfo, TcpFlow, TcpLabels,
};
use weft_traffic::circuit::{Permit, Resource};
use weft_traffic::cluster::{ClusterKind, DynamicDns};
use weft_traffic::lb::{ActiveRequest, PickInput, Picked};
use weft_traffic::listener::Direction;
use weft_traffic::metrics::Metrics;
use weft_traffic::outlier::HostOutcome;
use weft_traffic::{Cluster, Endpoint, TcpConfig};

use super::copy::{self, End, Limits, Meter};
use super::log;
use super::tunnel::Tunnel;
use crate::error::{ErrorKind, ProxyError};
use crate::net::Io;
use crate::upstream::connect::{Connected, Negotiated, Origin, connect};
use crate::worker::{ConnContext, Worker};

/// Endpoints tried before giving up, whatever the configuration says less: a refused connect costs
/// the client nothing.
const ATTEMPTS_MIN: u32 = 3;

/// Serves one connection to its end.
pub async fn forward(
    mut io: Io,
    conn: Rc<ConnContext>,
    config: Arc<TcpConfig>,
    worker: Rc<Worker>,
) {
    let tables = worker.tables();
    let name = cluster_name(&conn, &config, &worker);
    let Some(cluster) = tables.cluster(&name).cloned() else {
        let error = ProxyError::new(ErrorKind::NoCluster);
        return refuse(&error, (&name, None), &conn, &config, &worker);
    };
    drop(tables);
    // Boxed: connecting is over soon, the rest of the future stays for the connection's life.
    let mut upstream = match Box::pin(reach(&cluster, &conn, &config, &worker)).await {
        Ok(upstream) => upstream,
        Err(error) => return refuse(&error, (&name, Some(&cluster)), &conn, &config, &worker),
    };
    let relay = Relay::begin(&upstream, &cluster, &conn, &config, &worker);
    let limits = Limits { idle: config.idle_timeout, whole: config.connection_duration_max };
    // By reference: what is moved into an async function stays in its caller's future as well.
    let end = match &mut upstream.way {
        Way::Bytes { connected, .. } => {
            let far = &mut connected.io;
            copy::bidirectional(&mut io, far, &worker.scratch, limits, &relay.meter).await
        }
        Way::Tunnel(tunnel) => match tunnel.take() {
            Some(tunnel) => Box::pin(tunnel.relay(io, limits, &relay.meter)).await,
            None => End::Closed,
        },
    };
    relay.finish(&end);
}

/// An upstream connection with everything that is counted while it lives.
struct Upstream {
    way: Way,
    session: Negotiated,
    local: Option<SocketAddr>,
    picked: Picked,
    _permit: Permit,
}

/// How bytes get to the endpoint.
enum Way {
    Bytes {
        connected: Box<Connected>,
        _active: ActiveRequest,
    },
    /// There until it is used.
    Tunnel(Option<Box<Tunnel>>),
}

fn cluster_name(conn: &ConnContext, config: &TcpConfig, worker: &Worker) -> Arc<str> {
    match &conn.sni {
        // SNI routing: `outbound_.8080_._.host` in the ClientHello names the cluster.
        Some(sni) if config.cluster_from_sni => sni.clone(),
        _ => match config.clusters.draw(worker.random()).name {
            Some(name) => name.clone(),
            None => Arc::from(""),
        },
    }
}

/// Connects to some endpoint of the cluster.
async fn reach(
    cluster: &Cluster,
    conn: &ConnContext,
    config: &TcpConfig,
    worker: &Rc<Worker>,
) -> Result<Upstream, ProxyError> {
    let circuit = worker.balancers.circuit(cluster, 0, worker.tick());
    // A tunnel is a request; its connection is counted where it is made.
    let counted = match &config.tunnel {
        None => Resource::Connections,
        Some(_) => Resource::Requests,
    };
    let permit = circuit.acquire(counted).ok_or(ErrorKind::Overflow)?;
    let attempts = config.connect_attempts_max.max(ATTEMPTS_MIN);
    let mut tried = Vec::new();
    let mut last = ProxyError::new(ErrorKind::NoHealthyUpstream);
    let named = match &cluster.config.kind {
        ClusterKind::Dynamic(dns) => Some(named(conn, config, dns, worker).await?),
        _ => None,
    };
    for _ in 0..attempts {
        let Some(picked) = pick(cluster, conn, config, &tried, named, worker)? else { break };
        if tried.iter().any(|host| Rc::ptr_eq(host, &picked.host)) {
            break; // Nobody else to try.
        }
        let active = picked.host.begin();
        let origin = Origin::of(cluster, conn);
        let reached = match &config.tunnel {
            None => connect(worker, cluster, &picked.endpoint, origin).await.map(|connected| {
                let (session, local) = (connected.session.clone(), connected.io.tcp().local_addr());
                (
                    Way::Bytes { connected: Box::new(connected), _active: active },
                    session,
                    local.ok(),
                )
            }),
            Some(wanted) => {
                let to = &picked.endpoint;
                Tunnel::open(worker, cluster, to, active, (origin, wanted)).await.map(|tunnel| {
                    let (session, local) = (tunnel.facts().session.clone(), tunnel.facts().local);
                    (Way::Tunnel(Some(Box::new(tunnel))), session, local)
                })
            }
        };
        match reached {
            Ok((way, session, local)) => {
                return Ok(Upstream { way, session, local, picked, _permit: permit });
            }
            Err(error) => {
                tracing::debug!(cluster = %cluster.name, endpoint = %picked.endpoint.address, %error, "connect failed");
                report(worker, cluster, &picked, HostOutcome::ConnectFailure);
                last = error;
                tried.push(picked.host);
            }
        }
    }
    Err(last)
}

/// What the SNI resolves to.
async fn named(
    conn: &ConnContext,
    config: &TcpConfig,
    dns: &DynamicDns,
    worker: &Worker,
) -> Result<SocketAddr, ProxyError> {
    let (Some(host), Some(port)) = (&conn.sni, config.sni_port) else {
        let why = "the client names no host to resolve";
        return Err(ProxyError::new(ErrorKind::DnsFailed).with_source(why));
    };
    Ok(SocketAddr::new(worker.names.address(host, dns).await?, port))
}

fn pick(
    cluster: &Cluster,
    conn: &ConnContext,
    config: &TcpConfig,
    tried: &[Rc<weft_traffic::lb::Host>],
    named: Option<SocketAddr>,
    worker: &Worker,
) -> Result<Option<Picked>, ProxyError> {
    let original = conn.original_dst.unwrap_or(conn.local);
    let is_own = conn.captured_dst().is_none();
    if matches!(cluster.config.kind, ClusterKind::OriginalDst { .. }) && is_own {
        // Not captured: the destination is this very listener, and connecting would loop.
        let why = format!("{original} is this proxy itself");
        return Err(ProxyError::new(ErrorKind::NoHealthyUpstream).with_source(why));
    }
    let input = PickInput {
        hash: config.hash_source_ip.then(|| weft_traffic::route::hash_ip(conn.peer.ip())),
        avoid: tried,
        avoid_attempts: 5,
        avoid_priorities: &[],
        destination: Some(named.unwrap_or(original)),
        host: None,
        now: worker.tick(),
    };
    Ok(worker.balancers.pick(cluster, &input, &mut || worker.random()))
}

fn report(worker: &Worker, cluster: &Cluster, picked: &Picked, outcome: HostOutcome) {
    worker.balancers.report(cluster, &picked.host, outcome, worker.tick(), worker.random());
}

/// What is told of a connection while and after its bytes pass.
struct Relay<'r> {
    labels: Labels,
    meter: FlowMeter,
    /// What of the upstream the logs tell: endpoint, our own address, its identity.
    endpoint: Arc<Endpoint>,
    local: Option<SocketAddr>,
    identity: Option<Arc<str>>,
    cluster: &'r Cluster,
    conn: &'r ConnContext,
    config: &'r TcpConfig,
    worker: &'r Rc<Worker>,
}

impl<'r> Relay<'r> {
    fn begin(
        upstream: &Upstream,
        cluster: &'r Cluster,
        conn: &'r ConnContext,
        config: &'r TcpConfig,
        worker: &'r Rc<Worker>,
    ) -> Self {
        let labels = Labels::new(Some(cluster), Some(upstream), config, conn, worker);
        let flow = labels.flow(ResponseFlags::NONE, worker);
        flow.opened();
        let load = labels.load(worker);
        if let Some(load) = &load {
            load.opened();
        }
        let meter = FlowMeter { flow, load, bytes: Cell::default() };
        let Upstream { session, local, picked, .. } = upstream;
        let (endpoint, identity) = (picked.endpoint.clone(), session.peer_spiffe.clone());
        Relay { labels, meter, endpoint, local: *local, identity, cluster, conn, config, worker }
    }

    fn finish(self, end: &End) {
        let Relay { labels, meter, endpoint, local, identity, cluster, conn, config, worker } =
            self;
        match end {
            End::Idle => worker.counters.limits.tcp_idle.inc(),
            End::Expired => worker.counters.limits.tcp_duration.inc(),
            End::Closed | End::Downstream(_) | End::Upstream(_) => {}
        }
        let flags = match end {
            End::Closed | End::Downstream(_) => ResponseFlags::NONE,
            End::Idle => ResponseFlags::STREAM_IDLE,
            End::Expired => ResponseFlags::DURATION_TIMEOUT,
            End::Upstream(_) => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        };
        match flags == ResponseFlags::NONE {
            true => meter.flow.closed(),
            false => labels.flow(flags, worker).closed(),
        }
        if let Some(load) = &meter.load {
            load.closed();
        }
        let error = match end {
            End::Downstream(error) | End::Upstream(error) => Some(error),
            End::Closed | End::Idle | End::Expired => None,
        };
        tracing::trace!(cluster = %cluster.name, ?error, "TCP connection ended");
        let Some(logs) = &config.access_log else { return };
        let outcome = log::Outcome {
            cluster: &cluster.name,
            flags,
            endpoint: Some(&endpoint),
            upstream_local: local,
            upstream_identity: identity.as_deref().unwrap_or_default(),
            bytes: meter.bytes.get(),
            source: Some(&labels.source),
            destination: Some(&labels.destination),
            ..log::Outcome::default()
        };
        log::write(logs, &outcome, conn, worker);
    }
}

/// Closes a connection nothing was forwarded for, and counts it with the reason.
fn refuse(
    error: &ProxyError,
    (name, cluster): (&str, Option<&Arc<Cluster>>),
    conn: &ConnContext,
    config: &TcpConfig,
    worker: &Rc<Worker>,
) {
    tracing::debug!(cluster = name, peer = %conn.peer, %error, "TCP connection refused");
    if error.kind == ErrorKind::Overflow {
        worker.counters.limits.tcp_overflow.inc();
    }
    let labels = Labels::new(cluster.map(|cluster| &**cluster), None, config, conn, worker);
    let flags = ResponseFlags::from_name(error.flag()).unwrap_or(ResponseFlags::NONE);
    let flow = labels.flow(flags, worker);
    flow.opened();
    flow.closed();
    if let Some(load) = labels.load(worker) {
        load.opened();
        load.closed();
    }
    if let Some(logs) = &config.access_log {
        let failure = match (error.is_connect_failure(), &error.source) {
            (true, Some(source)) => source.to_string().replace(' ', "_"),
            _ => String::new(),
        };
        let outcome = log::Outcome {
            cluster: name,
            flags,
            failure: &failure,
            source: Some(&labels.source),
            destination: Some(&labels.destination),
            ..log::Outcome::default()
        };
        log::write(logs, &outcome, conn, worker);
    }
}

struct FlowMeter {
    flow: TcpFlow,
    load: Option<TcpLoad>,
    /// Received and sent by this connection.
    bytes: Cell<(u64, u64)>,
}

impl Meter for FlowMeter {
    fn received(&self, bytes: u64) {
        let (received, sent) = self.bytes.get();
        self.bytes.set((received + bytes, sent));
        self.flow.received(bytes);
        if let Some(load) = &self.load {
            load.received(bytes);
        }
    }

    fn sent(&self, bytes: u64) {
        let (received, sent) = self.bytes.get();
        self.bytes.set((received, sent + bytes));
        self.flow.sent(bytes);
        if let Some(load) = &self.load {
            load.sent(bytes);
        }
    }
}

/// Istio's labels of one connection.
struct Labels {
    reporter: Reporter,
    source: Arc<PeerInfo>,
    destination: Arc<PeerInfo>,
    service: Arc<ServiceInfo>,
    security: SecurityPolicy,
    metrics: Option<Arc<Metrics>>,
    values: Vec<Box<str>>,
}

impl Labels {
    fn new(
        cluster: Option<&Cluster>,
        upstream: Option<&Upstream>,
        config: &TcpConfig,
        conn: &ConnContext,
        worker: &Worker,
    ) -> Labels {
        let mut labels = Labels::standard(cluster, upstream, conn, worker);
        labels.metrics.clone_from(&config.metrics);
        if let Some(metrics) = config.metrics.as_ref().filter(|metrics| metrics.has_values()) {
            let outcome = log::Outcome {
                cluster: cluster.map(|cluster| &*cluster.name).unwrap_or_default(),
                endpoint: upstream.map(|upstream| &*upstream.picked.endpoint),
                source: Some(&labels.source),
                destination: Some(&labels.destination),
                ..log::Outcome::default()
            };
            labels.values = log::values(metrics, &outcome, conn, worker);
        }
        labels
    }

    fn standard(
        cluster: Option<&Cluster>,
        upstream: Option<&Upstream>,
        conn: &ConnContext,
        worker: &Worker,
    ) -> Labels {
        let own = worker.node.peer.clone();
        let service = Arc::new(service(cluster));
        match conn.listener.direction {
            Direction::Inbound => Labels {
                reporter: Reporter::Destination,
                source: Arc::new(downstream_peer(conn)),
                destination: own,
                service,
                security: match &conn.tls {
                    Some(tls) if tls.mtls => SecurityPolicy::MutualTls,
                    _ => SecurityPolicy::None,
                },
                metrics: None,
                values: Vec::new(),
            },
            Direction::Outbound | Direction::Gateway => Labels {
                reporter: Reporter::Source,
                source: own,
                destination: match upstream {
                    Some(upstream) => Arc::new(upstream_peer(upstream)),
                    None => PeerInfo::unknown(),
                },
                service,
                security: SecurityPolicy::Unknown,
                metrics: None,
                values: Vec::new(),
            },
        }
    }

    fn flow(&self, flags: ResponseFlags, worker: &Worker) -> TcpFlow {
        worker.metrics.tcp(&self.with(flags))
    }

    fn load(&self, worker: &Worker) -> Option<TcpLoad> {
        worker.loads.tcp(&self.with(ResponseFlags::NONE))
    }

    fn with(&self, flags: ResponseFlags) -> TcpLabels<'_> {
        TcpLabels {
            reporter: self.reporter,
            source: &self.source,
            destination: &self.destination,
            service: &self.service,
            security: self.security,
            flags,
            view: self.metrics.as_ref().map(|metrics| &metrics.view),
            values: &self.values,
        }
    }
}

/// TCP carries no peer metadata: all that is known of a client is what its certificate says.
fn downstream_peer(conn: &ConnContext) -> PeerInfo {
    let mut peer = PeerInfo::default();
    let spiffe = conn.tls.as_ref().and_then(|tls| tls.peer_spiffe.as_deref());
    if let Some(spiffe) = spiffe {
        peer.principal = spiffe.to_owned();
        let mut parts = spiffe.split('/').skip_while(|part| *part != "ns");
        peer.namespace = parts.nth(1).unwrap_or_default().to_owned();
    }
    peer
}

fn upstream_peer(upstream: &Upstream) -> PeerInfo {
    let mut peer = PeerInfo::default();
    if let Some(workload) = &upstream.picked.endpoint.workload {
        peer.workload = workload.name.to_string();
        peer.namespace = workload.namespace.to_string();
        peer.canonical_service = workload.canonical_name.to_string();
        peer.canonical_revision = workload.canonical_revision.to_string();
        peer.app.clone_from(&peer.canonical_service);
        peer.version.clone_from(&peer.canonical_revision);
        peer.cluster = workload.cluster.to_string();
    }
    if let Some(spiffe) = &upstream.session.peer_spiffe {
        peer.principal = spiffe.to_string();
    }
    peer
}

fn service(cluster: Option<&Cluster>) -> ServiceInfo {
    let Some(cluster) = cluster else { return ServiceInfo::default() };
    match cluster.config.istio.services.first() {
        Some(service) => ServiceInfo {
            host: service.host.to_string(),
            name: service.name.to_string(),
            namespace: service.namespace.to_string(),
        },
        None => ServiceInfo { name: cluster.name.to_string(), ..ServiceInfo::default() },
    }
}
