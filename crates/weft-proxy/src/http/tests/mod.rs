//! The request path against scripted peers on loopback sockets: the test is client and
//! application at once, byte by byte where it matters, and the proxy between them is real.

mod counts;
mod dynamic;
mod flow;
mod forwarded;
mod grpc;
mod grpc_web;
mod headers;
mod http1;
mod http2;
mod limits;
mod logs;
mod matrix;
mod mesh;
mod metrics;
mod mirror;
mod rate_limit;
mod reports;
mod retry;
mod retry_h2;
mod spans;
mod stock;
mod upgrade;
mod versions;

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use weft_telemetry::{PeerInfo, Registry};
use weft_traffic::{Tables, lower};

use super::policy::HttpPolicy;
use super::serve_connection;
use crate::access_log::LogSinks;
use crate::drain::DrainSignal;
use crate::listener::crew::Crew;
use crate::net::Io;
use crate::tls::Secrets;
use crate::upstream::endpoints::EndpointTable;
use crate::worker::{ConnContext, Limits, NodeInfo, Sources, Worker, WorkerParts};

/// Nothing on loopback takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy with one listener and one cluster `app`, and the sockets behind that cluster.
struct Mesh {
    worker: Rc<Worker>,
    registry: Registry,
    address: SocketAddr,
    apps: Vec<TcpListener>,
    /// What the cluster knows of them.
    addresses: RefCell<Vec<SocketAddr>>,
    setup: RefCell<Setup>,
    /// A client has received the half that is all an application will send.
    half_arrived: tokio::sync::Notify,
}

/// What differs from the plainest configuration. JSON as Envoy has it.
#[derive(Clone)]
struct Setup {
    direction: &'static str,
    /// Merged into the connection manager.
    hcm: Value,
    /// Merged into the virtual host.
    host: Value,
    /// Merged into the route action.
    action: Value,
    /// Merged into the cluster.
    cluster: Value,
    /// Further clusters.
    clusters: Vec<Value>,
    apps: usize,
    /// Of the process.
    limits: Limits,
    policy: HttpPolicy,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            direction: "INBOUND",
            hcm: json!({"generateRequestId": false}),
            host: json!({}),
            action: json!({"timeout": "0s"}),
            cluster: json!({}),
            clusters: Vec::new(),
            apps: 1,
            limits: Limits::of(1000),
            policy: HttpPolicy::default(),
        }
    }
}

/// The largest sizes are asked for by name, and may take as long as they need.
fn limit() -> Duration {
    match std::env::var_os("WEFT_CALLS") {
        Some(_) => Duration::from_secs(3600),
        None => PATIENCE * 3,
    }
}

/// Runs a test on one thread, as a worker runs.
fn run<F: Future<Output = ()>>(setup: Setup, test: impl FnOnce(Rc<Mesh>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mesh = Mesh::start(setup).await;
        tokio::time::timeout(limit(), test(mesh)).await.expect("the test hangs");
    });
}

impl Mesh {
    async fn start(setup: Setup) -> Rc<Mesh> {
        let registry = Registry::new();
        let node = NodeInfo {
            id: "sidecar~127.0.0.1~test.default~default.svc.cluster.local".into(),
            peer: Arc::new(PeerInfo {
                workload: "test-v1".into(),
                namespace: "default".into(),
                app: "test".into(),
                ..PeerInfo::default()
            }),
            ..NodeInfo::default()
        };
        let parts = WorkerParts {
            crew: Crew::new([]),
            heir: crate::handover::Heir::default(),
            policy: setup.policy,
            registry: registry.clone(),
            secrets: Arc::new(Secrets::default()),
            drain: DrainSignal::new(),
            node: Arc::new(node),
            limits: setup.limits,
            sources: Sources::default(),
            logs: LogSinks::new(&registry),
            reports: crate::reports::channel().0,
        };
        let worker = Rc::new(Worker::new(0, 1, parts, EndpointTable::default()));
        let mut apps = Vec::new();
        for _ in 0..setup.apps {
            apps.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (setup, half_arrived) = (RefCell::new(setup), tokio::sync::Notify::new());
        let addresses = apps.iter().map(|app| app.local_addr().unwrap()).collect();
        let addresses = RefCell::new(addresses);
        let mesh = Mesh { worker, registry, address, apps, addresses, setup, half_arrived };
        let mesh = Rc::new(mesh);
        mesh.configure(|_| {});
        tokio::task::spawn_local(accept(listener, mesh.worker.clone()));
        mesh
    }

    /// Changes the configuration while everything runs.
    fn configure(&self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup.borrow_mut());
        let setup = self.setup.borrow().clone();
        let addresses = self.addresses.borrow().clone();
        self.worker.set_tables(Arc::new(tables(&setup, &addresses, self.worker.tables().version)));
    }

    /// A client has this much of a body.
    fn note_half(&self, body: &[u8]) {
        if body == b"half" {
            self.half_arrived.notify_one();
        }
    }

    /// A client's connection to the proxy.
    async fn client(&self) -> Raw {
        Raw::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// The next connection the proxy makes to the first application.
    async fn app(&self) -> Raw {
        self.app_at(0).await
    }

    async fn app_at(&self, index: usize) -> Raw {
        let accepted = tokio::time::timeout(PATIENCE, self.apps[index].accept()).await;
        Raw::new(accepted.expect("the proxy never connected").unwrap().0)
    }

    /// Fails if the proxy has connected to the application.
    async fn expect_no_app(&self) {
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            _ = self.apps[0].accept() => panic!("the proxy connected to the application"),
            () = tokio::task::yield_now() => {}
        }
    }

    /// Sum of the request counter over the series whose text holds all of `parts`.
    fn requests(&self, parts: &[&str]) -> u64 {
        let mut text = Vec::new();
        self.registry.render_prometheus(&mut text);
        let text = String::from_utf8(text).unwrap();
        text.lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Waits for a count: a request is recorded just after its last byte was sent.
    async fn expect_requests(&self, parts: &[&str], count: u64) {
        let since = Instant::now();
        while self.requests(parts) != count {
            assert!(since.elapsed() < PATIENCE, "{parts:?}: {} requests", self.requests(parts));
            tokio::task::yield_now().await;
        }
    }
}

async fn accept(listener: TcpListener, worker: Rc<Worker>) {
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        let context = ConnContext {
            accepted_by: "test".into(),
            listener: worker.tables().listener("test").unwrap().clone(),
            chain: 0,
            peer,
            local: stream.local_addr().unwrap(),
            original_dst: None,
            sni: None,
            tls: None,
            accepted: Instant::now(),
            open: worker.drain.open(),
        };
        stream.set_nodelay(true).unwrap();
        let serve = serve_connection(Io::plain(stream), Rc::new(context), worker.clone());
        tokio::task::spawn_local(serve);
    }
}

fn tables(setup: &Setup, apps: &[SocketAddr], version: u64) -> Tables {
    let mut hcm = manager(setup);
    merge(
        &mut hcm,
        &json!({"rds": {
            "routeConfigName": "routes",
            "configSource": {"ads": {}, "resourceApiVersion": "V3"},
        }}),
    );
    let mut tables = Tables::default()
        .with_listener(lower::listener(&message(&listener(setup, 80, &hcm))).unwrap())
        .with_route(lower::route_config(&message(&routes(setup))).unwrap());
    for cluster in clusters(setup, apps) {
        tables = tables.with_cluster(lower::cluster(&message(&cluster)).unwrap());
    }
    tables.version += version;
    tables
}

fn routes(setup: &Setup) -> Value {
    let mut action = json!({"cluster": "app"});
    merge(&mut action, &setup.action);
    let mut host = json!({
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": action}],
    });
    merge(&mut host, &setup.host);
    json!({"name": "routes", "virtualHosts": [host]})
}

/// The connection manager, without its routes.
fn manager(setup: &Setup) -> Value {
    let type_of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let mut hcm = json!({
        "@type": type_of("network.http_connection_manager.v3.HttpConnectionManager"),
        "statPrefix": "test",
        "serverName": "istio-envoy",
        "serverHeaderTransformation": "PASS_THROUGH",
        "httpFilters": [{
            "name": "envoy.filters.http.router",
            "typedConfig": {"@type": type_of("http.router.v3.Router")},
        }],
        "upgradeConfigs": [{"upgradeType": "websocket"}],
        "streamIdleTimeout": "0s",
    });
    merge(&mut hcm, &setup.hcm);
    hcm
}

fn listener(setup: &Setup, port: u16, hcm: &Value) -> Value {
    json!({
        "name": "test",
        "address": {"socketAddress": {"address": "127.0.0.1", "portValue": port}},
        "trafficDirection": setup.direction,
        "filterChains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typedConfig": hcm,
        }]}],
    })
}

fn clusters(setup: &Setup, apps: &[SocketAddr]) -> Vec<Value> {
    let mut cluster = cluster("app", apps);
    merge(&mut cluster, &setup.cluster);
    [cluster].into_iter().chain(setup.clusters.iter().cloned()).collect()
}

/// A cluster of fixed endpoints.
fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| {
            let socket =
                json!({"address": endpoint.ip().to_string(), "portValue": endpoint.port()});
            json!({"endpoint": {"address": {"socketAddress": socket}}})
        })
        .collect();
    let host = format!("{name}.default.svc.cluster.local");
    json!({
        "name": name,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": {"clusterName": name, "endpoints": [{"lbEndpoints": endpoints}]},
        "metadata": {"filterMetadata": {"istio": {"services": [
            {"host": host, "name": name, "namespace": "default"},
        ]}}},
    })
}

fn message<M: prost::Message + prost::Name + Default>(json: &Value) -> M {
    weft_xds::json::message_from_json(json).unwrap()
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// The cluster speaks HTTP/2.
fn h2_cluster() -> Value {
    json!({"typedExtensionProtocolOptions": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicitHttpConfig": {"http2ProtocolOptions": {}},
        },
    }})
}

/// A peer that says exactly what the test says.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    fn new(stream: TcpStream) -> Raw {
        stream.set_nodelay(true).unwrap();
        Raw { stream, read: Vec::new() }
    }

    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }

    /// One message head, with its empty line.
    async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Everything up to and including `end`.
    async fn until(&mut self, end: &str) -> String {
        loop {
            let at = self.read.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = at {
                return self.take(at + end.len());
            }
            assert!(self.more().await, "ended before {end:?}: {:?}", self.seen());
        }
    }

    async fn bytes(&mut self, count: usize) -> String {
        while self.read.len() < count {
            assert!(self.more().await, "ended after {} of {count} bytes", self.read.len());
        }
        self.take(count)
    }

    /// Everything until the peer closes; a reset counts as closing.
    async fn rest(&mut self) -> String {
        while self.more().await {}
        self.take(self.read.len())
    }

    async fn more(&mut self) -> bool {
        let mut part = vec![0; 64 * 1024];
        match tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await {
            Ok(Ok(count)) => {
                self.read.extend_from_slice(&part[..count]);
                count > 0
            }
            Ok(Err(_)) => false,
            Err(_) => panic!("nothing came; seen so far: {:?}", self.seen()),
        }
    }

    fn take(&mut self, count: usize) -> String {
        String::from_utf8_lossy(&self.read.drain(..count).collect::<Vec<_>>()).into_owned()
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
