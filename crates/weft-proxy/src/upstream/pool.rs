//! This worker's connections to endpoints: idle HTTP/1 ones and shared HTTP/2 ones.
//!
//! Connections are keyed by address and TLS identity, not by configuration objects, so a changed
//! table keeps them. A sweep closes what idled too long; an endpoint without connections leaves
//! nothing behind. Must not know requests.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use tokio::sync::{Notify, Semaphore};
use weft_http::Version;
use weft_traffic::circuit::{Circuit, Permit, Resource};
use weft_traffic::cluster::{Transport, UpstreamProtocol};
use weft_traffic::tls::UpstreamTls;
use weft_traffic::{Cluster, Endpoint, EndpointAddress};

use super::Upstream;
use super::connect::{Connected, Negotiated, Origin, connect};
use super::endpoints::CxGuard;
use super::h1::{H1Connection, IdleH1};
use super::h2::H2Connection;
use super::recent::Recent;
use crate::error::{ErrorKind, ProxyError};
use crate::http::peers::Peers;
use crate::worker::Worker;

/// Idle limit towards endpoints that may be applications, which often close after 5 s.
const IDLE_APPLICATION: Duration = Duration::from_secs(3);
/// Idle limit towards sidecars, which keep connections for an hour.
const IDLE_SIDECAR: Duration = Duration::from_secs(60);
/// What Envoy means by an unset idle timeout: not a choice anybody made.
const IDLE_UNSET: Duration = Duration::from_secs(3600);
/// Below this an idle connection is trusted without a look at the socket, which is a system call:
/// a request that may be sent twice is sent again if the trust was misplaced.
const TRUST_FOR: Duration = Duration::from_millis(100);
/// Idle HTTP/1 connections kept per endpoint.
const IDLE_MAX: usize = 1024;
/// How often idle connections are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// All pools of one worker.
#[derive(Default)]
pub struct Pools {
    /// Who is at the other end of them.
    pub(crate) peers: Peers,
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterPool>>>,
    recent: Recent<ClusterPool>,
    sweeping: Cell<bool>,
}

/// The connections to one cluster.
#[derive(Default)]
struct ClusterPool {
    hosts: RefCell<HashMap<HostKey, Rc<HostPool>>>,
    /// The one used last.
    last: RefCell<Option<(HostKey, Rc<HostPool>)>>,
    /// TLS identities seen, by content; an index into it stands for one in keys.
    identities: RefCell<Vec<Identity>>,
    /// Paths of Unix sockets seen.
    paths: RefCell<Vec<Arc<str>>>,
    /// Told whenever a connection came back or went away.
    freed: Rc<Notify>,
}

/// TLS settings, and the endpoint's name where they ask for that.
type Identity = (Arc<UpstreamTls>, Option<Arc<str>>);

/// Where an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Ip(SocketAddr),
    /// A Unix socket, by the index of its path.
    Unix(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct HostKey {
    place: Place,
    /// Clients the endpoint must tell apart do not share connections.
    origin: Origin,
    /// 0: plain; else 1 + index of the identity.
    identity: usize,
}

/// The connections to one endpoint.
pub(crate) struct HostPool {
    idle: RefCell<Vec<IdleH1>>,
    shared: RefCell<Vec<Rc<SharedH2>>>,
    /// Open ones and those that are being opened.
    connections: Rc<Cell<u32>>,
    /// One HTTP/2 connection is opened at a time; others wait to share it.
    opening: Semaphore,
    /// Counts failed openings, so that those who waited for one fail with it.
    failures: Cell<u32>,
    /// What ALPN chose last time.
    speaks_h2: Cell<Option<bool>>,
    idle_limit: Cell<Duration>,
    learned: LearnedLimit,
    requests_max: Cell<Option<u32>>,
    /// A connection this old takes no more requests.
    age_max: Option<Duration>,
    freed: Rc<Notify>,
}

struct SharedH2 {
    connection: H2Connection,
    facts: Rc<ConnectionFacts>,
}

/// What stays known of a connection for as long as it carries requests.
pub(crate) struct ConnectionFacts {
    /// Our own address.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) session: Negotiated,
    pub(crate) active: CxGuard,
    opened: Instant,
}

/// The right to one connection of the cluster; tells those who wait when it ends.
pub(crate) struct ConnectionPermit {
    _permit: Permit,
    freed: Weak<Notify>,
    /// The endpoint's connections, this one too.
    of_host: Rc<Cell<u32>>,
}

impl ConnectionPermit {
    fn new(permit: Permit, pool: &ClusterPool, host: &HostPool) -> Self {
        host.connections.set(host.connections.get() + 1);
        let (freed, of_host) = (Rc::downgrade(&pool.freed), host.connections.clone());
        Self { _permit: permit, freed, of_host }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.of_host.set(self.of_host.get() - 1);
        if let Some(freed) = self.freed.upgrade() {
            freed.notify_one();
        }
    }
}

/// What a connection is wanted for.
#[derive(Clone, Copy)]
pub(crate) struct Purpose {
    /// The version the client speaks.
    pub(crate) downstream: Version,
    /// The connection must be known to be open: the request must not be sent twice, or has lost a
    /// keep-alive race before.
    pub(crate) certain: bool,
    /// 0: the cluster's default limits; 1: those for high priority.
    pub(crate) priority: usize,
    /// What the endpoint must learn of the client.
    pub(crate) origin: Origin,
}

/// Which version to speak to an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    H1,
    H2,
    /// What ALPN chooses.
    Negotiated,
}

impl Pools {
    /// A connection to `endpoint` that takes a request at once, if there is one; else [`open`](Self::open).
    pub(crate) fn reuse(
        &self,
        worker: &Worker,
        cluster: &Cluster,
        endpoint: &Endpoint,
        purpose: Purpose,
    ) -> Result<Option<Opened>, ProxyError> {
        let pool = self.cluster(cluster);
        let host = pool.host(cluster, endpoint, purpose.origin)?;
        let wanted = wanted(cluster.config.http.protocol, purpose.downstream);
        Ok(match host.expects_h2(wanted) {
            true => host.reuse_h2_now(),
            false => host.reuse_h1(purpose.certain, worker.now()),
        })
    }

    /// A connection to `endpoint` for one request, an old one or a new.
    pub(crate) async fn open(
        &self,
        worker: &Rc<Worker>,
        cluster: &Cluster,
        endpoint: &Endpoint,
        purpose: Purpose,
    ) -> Result<Opened, ProxyError> {
        let pool = self.cluster(cluster);
        let host = pool.host(cluster, endpoint, purpose.origin)?;
        let wanted = wanted(cluster.config.http.protocol, purpose.downstream);
        if let Some(ready) = host.reuse(wanted, purpose.certain, worker.now()).await {
            return Ok(ready);
        }
        let circuit = worker.balancers.circuit(cluster, purpose.priority, worker.now());
        let origin = purpose.origin;
        let opening = Opening { worker, cluster, endpoint, origin, wanted, circuit };
        // Boxed: the rare case must not make every request's state as large as a handshake.
        Box::pin(pool.open_new(opening, host)).await
    }

    fn cluster(&self, cluster: &Cluster) -> Rc<ClusterPool> {
        self.recent.get_or(&cluster.name, || {
            self.clusters.borrow_mut().entry(cluster.name.clone()).or_default().clone()
        })
    }

    /// Closes what idled too long and forgets what is empty. False: nothing is left to sweep.
    fn sweep(&self, now: Instant) -> bool {
        self.recent.clear();
        let mut clusters = self.clusters.borrow_mut();
        clusters.retain(|_, pool| {
            pool.last.take();
            let mut hosts = pool.hosts.borrow_mut();
            hosts.retain(|_, host| {
                host.sweep(now);
                Rc::strong_count(host) > 1 || !host.is_empty()
            });
            Rc::strong_count(pool) > 1 || !hosts.is_empty()
        });
        !clusters.is_empty()
    }

    /// Starts the sweep if it is not running; it ends by itself when no connection is left.
    fn ensure_sweep(&self, worker: &Rc<Worker>) {
        if self.sweeping.replace(true) {
            return;
        }
        let worker = Rc::downgrade(worker);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_PERIOD).await;
                let Some(worker) = worker.upgrade() else { return };
                crate::http::wire::trim_spare();
                if !worker.pools.sweep(Instant::now()) {
                    worker.pools.sweeping.set(false);
                    return;
                }
            }
        });
    }
}

/// What a new connection is for.
struct Opening<'o> {
    worker: &'o Rc<Worker>,
    cluster: &'o Cluster,
    endpoint: &'o Endpoint,
    origin: Origin,
    wanted: Wanted,
    circuit: Rc<Circuit>,
}

impl ClusterPool {
    async fn open_new(
        &self,
        opening: Opening<'_>,
        host: Rc<HostPool>,
    ) -> Result<Opened, ProxyError> {
        let Opening { worker, wanted, circuit, .. } = &opening;
        let _pending = circuit.acquire(Resource::Pending).ok_or(ErrorKind::Overflow)?;
        let mut turn = None;
        if host.expects_h2(*wanted) {
            let failures = host.failures.get();
            turn = host.opening.acquire().await.ok();
            if let Some(ready) = host.reuse(*wanted, true, Instant::now()).await {
                return Ok(ready);
            }
            if host.failures.get() != failures {
                return Err(ErrorKind::ConnectFailed.into());
            }
        }
        let permit = loop {
            // Armed before looking, so that no notification is missed.
            let freed = self.freed.notified();
            match circuit.acquire(Resource::Connections) {
                Some(permit) => break permit,
                None if self.close_one_idle() => continue,
                None if host.connections.get() == 0 => {
                    break circuit.acquire_first_connection().ok_or(ErrorKind::Overflow)?;
                }
                None => freed.await,
            }
            if let Some(ready) = host.reuse(*wanted, true, Instant::now()).await {
                return Ok(ready);
            }
        };
        let permit = ConnectionPermit::new(permit, self, &host);
        let opened = host.connect(&opening, permit).await;
        if opened.is_err() {
            host.failures.set(host.failures.get().wrapping_add(1));
        }
        drop(turn);
        worker.pools.ensure_sweep(worker);
        opened
    }

    /// Makes room below the connection limit when another endpoint's connection lies idle.
    fn close_one_idle(&self) -> bool {
        self.hosts.borrow().values().any(|host| host.idle.borrow_mut().pop().is_some())
    }

    fn host(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        origin: Origin,
    ) -> Result<Rc<HostPool>, ProxyError> {
        let place = match &endpoint.address {
            EndpointAddress::Ip(address) => Place::Ip(*address),
            EndpointAddress::Pipe(path) => Place::Unix(self.path(path)),
            EndpointAddress::Name { .. } => return Err(ErrorKind::NoHealthyUpstream.into()),
        };
        let identity = match cluster.transport(endpoint) {
            Transport::Plain => 0,
            Transport::Tls(tls) => 1 + self.identity(tls, &endpoint.hostname),
        };
        let key = HostKey { place, origin, identity };
        if let Some((_, host)) = self.last.borrow().as_ref().filter(|(last, _)| *last == key) {
            return Ok(host.clone());
        }
        let known = self.hosts.borrow().get(&key).cloned();
        let host = known.unwrap_or_else(|| self.add_host(key, cluster, endpoint));
        self.last.replace(Some((key, host.clone())));
        Ok(host)
    }

    fn add_host(&self, key: HostKey, cluster: &Cluster, endpoint: &Endpoint) -> Rc<HostPool> {
        let http = &cluster.config.http;
        let default = if endpoint.istio_mtls() { IDLE_SIDECAR } else { IDLE_APPLICATION };
        let host = Rc::new(HostPool {
            idle: RefCell::default(),
            shared: RefCell::default(),
            connections: Rc::default(),
            opening: Semaphore::new(1),
            failures: Cell::new(0),
            speaks_h2: Cell::new(None),
            idle_limit: Cell::new(match http.idle_timeout {
                Some(limit) if limit != IDLE_UNSET => limit,
                _ => default,
            }),
            learned: LearnedLimit::default(),
            requests_max: Cell::new(http.requests_per_connection_max),
            age_max: http.connection_duration,
            freed: self.freed.clone(),
        });
        self.hosts.borrow_mut().insert(key, host.clone());
        host
    }

    fn path(&self, path: &Arc<str>) -> usize {
        let mut known = self.paths.borrow_mut();
        known.iter().position(|one| one == path).unwrap_or_else(|| {
            known.push(path.clone());
            known.len() - 1
        })
    }

    fn identity(&self, tls: &Arc<UpstreamTls>, hostname: &Arc<str>) -> usize {
        // Where TLS asks for the endpoint's own name, one address may stand for several.
        let host = tls.auto_host_sni.then_some(hostname);
        let mut known = self.identities.borrow_mut();
        let same =
            known.iter().position(|(one, name)| Arc::ptr_eq(one, tls) && name.as_ref() == host);
        let equal = || known.iter().position(|(one, name)| **one == **tls && name.as_ref() == host);
        if let Some(index) = same.or_else(equal) {
            // The newest object is compared by pointer next time.
            known[index].0 = tls.clone();
            return index;
        }
        known.push((tls.clone(), host.cloned()));
        known.len() - 1
    }
}

/// A connection ready for one request.
pub(crate) struct Opened {
    pub(crate) upstream: Upstream,
    pub(crate) facts: Rc<ConnectionFacts>,
}

impl HostPool {
    pub(crate) fn requests_max(&self) -> Option<u32> {
        self.requests_max.get()
    }

    /// Takes a connection back after a request.
    pub(crate) fn put_back(&self, connection: IdleH1) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        drop(idle);
        self.freed.notify_one();
    }

    /// A connection that is there already.
    async fn reuse(self: &Rc<Self>, wanted: Wanted, certain: bool, now: Instant) -> Option<Opened> {
        match self.expects_h2(wanted) {
            true => self.reuse_h2().await,
            false => self.reuse_h1(certain, now),
        }
    }

    fn reuse_h1(self: &Rc<Self>, certain: bool, now: Instant) -> Option<Opened> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            let fresh = !certain && idle.idle_for(now) < TRUST_FOR;
            if idle.is_stale(now, self.limit(now)) {
                continue;
            }
            if !(fresh || idle.is_good()) {
                self.learned.closed_after(idle.idle_for(now), now);
                continue;
            }
            let connection = idle.into_connection();
            if self.is_aged(connection.facts()) {
                continue;
            }
            let facts = connection.facts().clone();
            return Some(Opened { upstream: Upstream::H1(connection.start(self.clone())), facts });
        }
    }

    async fn reuse_h2(&self) -> Option<Opened> {
        loop {
            let shared = self.shared_h2()?;
            let mut client = shared.connection.start();
            // A connection that is going away says so here; then the next one is tried.
            if poll_fn(|cx| client.poll_open(cx)).await.is_ok() {
                let facts = shared.facts.clone();
                return Some(Opened { upstream: Upstream::H2(client), facts });
            }
        }
    }

    /// As `reuse_h2`, unless the connection has to be waited for.
    fn reuse_h2_now(&self) -> Option<Opened> {
        let shared = self.shared_h2()?;
        let client = shared.connection.start_now()?;
        Some(Opened { upstream: Upstream::H2(client), facts: shared.facts.clone() })
    }

    /// The first shared connection that may take another request.
    fn shared_h2(&self) -> Option<Rc<SharedH2>> {
        let mut all = self.shared.borrow_mut();
        all.retain(|shared| !shared.connection.is_closed());
        let requests_max = self.requests_max.get();
        let fits = |shared: &&Rc<SharedH2>| {
            shared.connection.has_room(requests_max) && !self.is_aged(&shared.facts)
        };
        all.iter().find(fits).cloned()
    }

    /// Whether the endpoint's connections are shared.
    fn expects_h2(&self, wanted: Wanted) -> bool {
        match wanted {
            Wanted::H1 => false,
            Wanted::H2 => true,
            Wanted::Negotiated => self.speaks_h2.get() == Some(true),
        }
    }

    async fn connect(
        self: &Rc<Self>,
        opening: &Opening<'_>,
        permit: ConnectionPermit,
    ) -> Result<Opened, ProxyError> {
        let Opening { worker, cluster, endpoint, origin, wanted, .. } = opening;
        let Connected { io, session, active } = connect(worker, cluster, endpoint, *origin).await?;
        let h2 = match wanted {
            Wanted::H1 => false,
            Wanted::H2 => true,
            Wanted::Negotiated => session.is_h2(),
        };
        self.speaks_h2.set(Some(h2));
        let local = io.tcp().local_addr().ok();
        let facts = Rc::new(ConnectionFacts { local, session, active, opened: Instant::now() });
        if !h2 {
            let connection =
                H1Connection::new(io, worker.policy.response_limits(), facts.clone(), permit);
            return Ok(Opened { upstream: Upstream::H1(connection.start(self.clone())), facts });
        }
        let connection = H2Connection::open(io, &cluster.config.http, permit, worker);
        let mut client = connection.start();
        self.shared.borrow_mut().push(Rc::new(SharedH2 { connection, facts: facts.clone() }));
        poll_fn(|cx| client.poll_open(cx)).await?;
        Ok(Opened { upstream: Upstream::H2(client), facts })
    }

    fn sweep(&self, now: Instant) {
        let limit = self.limit(now);
        self.idle.borrow_mut().retain_mut(|idle| {
            if idle.is_stale(now, limit) {
                return false;
            }
            let good = idle.is_good();
            if !good {
                self.learned.closed_after(idle.idle_for(now), now);
            }
            good
        });
        self.shared.borrow_mut().retain(|shared| {
            let limit = if self.is_aged(&shared.facts) { Duration::ZERO } else { limit };
            !shared.connection.is_closed() && !shared.connection.is_stale(now, limit)
        });
    }

    fn is_aged(&self, facts: &ConnectionFacts) -> bool {
        self.age_max.is_some_and(|max| facts.opened.elapsed() >= max)
    }

    /// The configured limit, or what the endpoint's own closes have taught.
    fn limit(&self, now: Instant) -> Duration {
        match self.learned.get(now) {
            Some(learned) => learned.min(self.idle_limit.get()),
            None => self.idle_limit.get(),
        }
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }
}

/// An idle limit learned from an endpoint that closed idle connections itself. It is found closed
/// some time after the fact, so half of the time is what was seen; and since a restart looks the
/// same, what was learned is forgotten after a while.
#[derive(Default)]
struct LearnedLimit(Cell<Option<(Duration, Instant)>>);

/// Below this a limit would only undo keep-alive; such a close is a restart more than a timeout.
const LEARNED_MIN: Duration = Duration::from_millis(500);
/// What was learned holds this long.
const LEARNED_FOR: Duration = Duration::from_secs(60);

impl LearnedLimit {
    fn get(&self, now: Instant) -> Option<Duration> {
        let (limit, since) = self.0.get()?;
        if now.saturating_duration_since(since) >= LEARNED_FOR {
            self.0.set(None);
            return None;
        }
        Some(limit)
    }

    fn closed_after(&self, idle: Duration, now: Instant) {
        if idle < LEARNED_MIN {
            return;
        }
        let seen = (idle / 2).max(LEARNED_MIN);
        let limit = self.get(now).map_or(seen, |known| known.min(seen));
        self.0.set(Some((limit, now)));
    }
}

fn wanted(protocol: UpstreamProtocol, downstream: Version) -> Wanted {
    match (protocol, downstream) {
        (UpstreamProtocol::H1, _) => Wanted::H1,
        (UpstreamProtocol::H2, _) => Wanted::H2,
        (UpstreamProtocol::UseDownstream, Version::H2) => Wanted::H2,
        (UpstreamProtocol::UseDownstream, Version::H10 | Version::H11) => Wanted::H1,
        (UpstreamProtocol::Auto, _) => Wanted::Negotiated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_of_the_endpoint_shorten_the_limit_for_a_while() {
        let learned = LearnedLimit::default();
        let start = Instant::now();
        learned.closed_after(Duration::from_millis(20), start);
        assert_eq!(learned.get(start), None, "a restart is no idle timeout");
        learned.closed_after(Duration::from_secs(2), start);
        assert_eq!(learned.get(start), Some(Duration::from_secs(1)));
        learned.closed_after(Duration::from_secs(4), start);
        assert_eq!(learned.get(start), Some(Duration::from_secs(1)));
        assert_eq!(learned.get(start + LEARNED_FOR), None);
    }
}
