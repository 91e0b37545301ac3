//! Changes of every kind of resource under load: requests, WebSockets and TCP connections notice
//! nothing of them.
//!
//! `WEFT_CHANGES_FULL=1` runs 100 changes under 1,000 WebSockets and 1,000 TCP connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use weft_testkit::client::{Connection, Wire};
use weft_testkit::wait;
use weft_xds::ResourceType::{self, Cluster, Endpoint, Listener, NameTable, Route, Secret};

use crate::control::Control;
use crate::rig::*;
use crate::{http, tls};

/// Changes, and WebSockets and TCP connections each, of the bounded run.
const BOUNDED: (u32, usize) = (12, 30);
const FULL: (u32, usize) = (100, 1000);

/// Answers requests, and echoes after an upgrade.
pub async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    address
}

async fn serve(mut tcp: TcpStream) -> Option<()> {
    let mut read = Vec::new();
    loop {
        let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") else {
            (tcp.read_buf(&mut read).await.ok()? > 0).then_some(())?;
            continue;
        };
        let head: Vec<u8> = read.drain(..end + 4).collect();
        if String::from_utf8_lossy(&head).to_ascii_lowercase().contains("upgrade: websocket") {
            break;
        }
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.ok()?;
    }
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    tcp.write_all(switch).await.ok()?;
    let (mut input, mut output) = tcp.split();
    tokio::io::copy(&mut input, &mut output).await.ok()?;
    None
}

/// What the proxy is told; each round changes one thing of it.
struct World {
    apps: [SocketAddr; 2],
    echo: SocketAddr,
}

impl World {
    fn resource(&self, ty: ResourceType, round: u32) -> (ResourceType, Value) {
        let odd = !round.is_multiple_of(2);
        let value = match ty {
            Cluster => json!({
                "name": "web",
                "type": "EDS",
                "connect_timeout": format!("{}s", 5 + round),
                "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
                "circuit_breakers": { "thresholds": [
                    { "max_connections": 100_000, "max_requests": 100_000 + round },
                ] },
            }),
            Endpoint => assignment("web", if odd { &self.apps } else { &self.apps[..1] }),
            Route => json!({
                "name": "routes",
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{
                        "match": { "prefix": "/" },
                        "route": { "cluster": "web", "timeout": "0s" },
                        "response_headers_to_add": [
                            { "header": { "key": "x-round", "value": round.to_string() } },
                        ],
                    }],
                }],
            }),
            Listener | Secret | NameTable => unreachable!("they have functions of their own"),
        };
        (ty, value)
    }

    fn web(&self, name: &str, round: u32, encrypted: bool) -> (ResourceType, Value) {
        let mut listener = http::listener(name, "INBOUND", "web", None);
        let hcm = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        hcm.as_object_mut().unwrap().remove("route_config");
        hcm["rds"] = json!({
            "route_config_name": "routes",
            "config_source": { "ads": {}, "resource_api_version": "V3" },
        });
        hcm["upgrade_configs"] = json!([{ "upgrade_type": "websocket" }]);
        hcm["stat_prefix"] = json!(format!("round-{round}"));
        let inspectors = [("tls_inspector", "TlsInspector"), ("http_inspector", "HttpInspector")];
        let with = inspectors.iter().take(round as usize % 3);
        listener["listener_filters"] =
            with.map(|(kind, message)| inspector(kind, message)).collect();
        if encrypted {
            listener["filter_chains"][0]["transport_socket"] = tls::site_tls(&["h2", "http/1.1"]);
        }
        (Listener, listener)
    }

    fn tcp(&self, round: u32) -> (ResourceType, Value) {
        let mut listener = tcp_listener("tcp", "echo");
        let proxy = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        proxy["idle_timeout"] = json!(format!("{}s", 3600 + round));
        (Listener, listener)
    }

    fn secret(&self, control: &Control) -> (ResourceType, Value) {
        (Secret, tls::site_secret(control, &["site.example"]))
    }

    /// The change of this round.
    fn change(&self, control: &Control, round: u32) -> (ResourceType, Value) {
        match round % 6 {
            0 => self.web("web", round / 6, false),
            1 => self.resource(Route, round),
            2 => self.resource(Cluster, round),
            3 => self.resource(Endpoint, round / 6 + 1),
            4 => self.secret(control),
            _ => self.tcp(round),
        }
    }
}

/// Requests one after another until stopped; the first failure ends it.
struct Load {
    what: String,
    done: Arc<AtomicU64>,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn open(wire: Wire, to: SocketAddr, encrypted: bool) -> anyhow::Result<Connection> {
    if !encrypted {
        return Connection::connect(wire, to).await;
    }
    let alpn = if wire == Wire::H2 { "h2" } else { "http/1.1" };
    let connector = TlsConnector::from(tls::any_server_config(&[alpn]));
    let stream = connector.connect("site.example".try_into()?, TcpStream::connect(to).await?);
    Connection::open(wire, stream.await?).await
}

impl Load {
    fn start(wire: Wire, to: SocketAddr, tls: bool, kept: bool, stop: Arc<AtomicBool>) -> Load {
        let done = Arc::new(AtomicU64::new(0));
        let count = done.clone();
        let task = tokio::spawn(async move {
            let mut connection = open(wire, to, tls).await?;
            while !stop.load(Ordering::Relaxed) {
                if !kept {
                    connection = open(wire, to, tls).await?;
                }
                let reply = connection.get("/", &[("host", "app")]).await?;
                anyhow::ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
                count.fetch_add(1, Ordering::Relaxed);
                // Pace, so that this machine has time for the changes.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        });
        Load { what: format!("{wire:?}, TLS {tls}, kept {kept}"), done, task }
    }

    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        wait::until(&format!("an answer: {}", self.what), LIMIT, || async {
            let more = self.done.load(Ordering::Relaxed) > before;
            (more || self.task.is_finished()).then_some(())
        })
        .await;
    }
}

pub async fn web_socket(to: SocketAddr) -> TcpStream {
    let mut stream = connect(to).await;
    let upgrade = "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

pub async fn each_echoes(long: &mut [TcpStream], round: u32) {
    for stream in &mut *long {
        stream.write_all(&round.to_be_bytes()).await.unwrap();
    }
    for (index, stream) in long.iter_mut().enumerate() {
        let mut back = [0; 4];
        let read = tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await;
        read.expect("an echo").unwrap_or_else(|error| panic!("{index} after {round}: {error}"));
        assert_eq!(back, round.to_be_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_under_load_are_noticed_by_no_connection_and_no_request() {
    let (changes, count) = match std::env::var_os("WEFT_CHANGES_FULL") {
        Some(_) => FULL,
        None => BOUNDED,
    };
    let world = World { apps: [app().await, app().await], echo: backend("echo").await };
    let control = tokio::task::block_in_place(|| Control::start(0));
    let mut echo = static_cluster("echo", &[world.echo]);
    echo["circuit_breakers"] = json!({ "thresholds": [{ "max_connections": 100_000 }] });
    control.set_all([
        (Cluster, echo),
        world.resource(Cluster, 0),
        world.resource(Endpoint, 0),
        world.resource(Route, 0),
        world.secret(&control),
        world.web("web", 0, false),
        world.web("tls", 0, true),
        world.tcp(0),
    ]);
    let extra = ["--connections-per-source-max=100000"];
    let proxy = start(&Wish { xds: control.address, account: None, dir: None, extra: &extra });
    proxy.ready().await;
    let (web, https) = (proxy.listener("web").await, proxy.listener("tls").await);
    let tcp = proxy.listener("tcp").await;

    let mut long = Vec::new();
    for _ in 0..count {
        long.push(web_socket(web).await);
        let mut stream = connect(tcp).await;
        assert_eq!(greeting(&mut stream).await.unwrap(), "echo");
        long.push(stream);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut loads = Vec::new();
    for wire in [Wire::H1, Wire::H2] {
        for (to, encrypted) in [(web, false), (https, true)] {
            for kept in [true, false] {
                loads.push(Load::start(wire, to, encrypted, kept, stop.clone()));
            }
        }
    }
    for round in 1..=changes {
        let (ty, value) = world.change(&control, round);
        let accepted = control.accepted(ty);
        control.set(ty, value);
        wait::until(&format!("the proxy to accept {ty:?}, round {round}"), LIMIT, || async {
            (control.accepted(ty) > accepted).then_some(())
        })
        .await;
        each_echoes(&mut long, round).await;
        for load in &loads {
            load.goes_on().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for load in loads {
        let done = load.done.load(Ordering::Relaxed);
        requests += done;
        let result = load.task.await.unwrap();
        result.unwrap_or_else(|error| panic!("{} after {done}: {error:#}", load.what));
    }
    println!("{changes} changes, {} long connections, {requests} requests, no failure", long.len());
    // The changes did arrive.
    let last = (1..=changes).rfind(|round| round % 6 == 1).unwrap().to_string();
    let mut fresh = open(Wire::H1, web, false).await.unwrap();
    let reply = fresh.get("/", &[("host", "app")]).await.unwrap();
    assert_eq!(reply.header("x-round"), last);
    tokio::task::block_in_place(|| control.kill());
}
