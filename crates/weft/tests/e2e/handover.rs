//! Upgrades of running sidecars: a newer `weft proxy` takes over under load and nobody notices; one
//! that is broken changes nothing.
//!
//! `WEFT_UPGRADE_FULL=1` drives 2,000 requests a second instead of what two busy cores leave.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use weft_testkit::{
    client::{self, Connection, Wire},
    process::Process,
    wait,
};

use crate::{
    harness::{Flavor, Proxy, WEFT},
    pairs::{HTTP_PROXY_PORT, Pair, TCP_PORT, place},
};

/// Hand-overs, of one sidecar and the other in turn.
const UPGRADES: u32 = 10;
/// Messages of one gRPC stream.
const CHAT_ROUNDS: u32 = 10;
/// How long one may take: a debug build on two busy cores.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn ten_upgrades_under_load_fail_no_request() {
    let mut pair = Pair::start(Flavor::Weft, Flavor::Weft).await;
    let load = Load::start(&pair).await;
    let mut older = Vec::new();
    for upgrade in 0..UPGRADES {
        let name = if upgrade % 2 == 0 { "client" } else { "server" };
        load.each_kind_answers().await;
        older.push(upgraded(&mut pair, name, upgrade / 2 + 1).await);
    }
    load.each_kind_answers().await;
    let counts = load.stop().await;
    println!("{UPGRADES} upgrades: {counts}");
    // With the last long connection the last older process has nothing left to do.
    for mut process in older {
        let status = process.wait(LIMIT);
        assert!(status.success(), "an older proxy ended with {status}: {}", process.output());
    }
    // Counters went on: the last process alone has not served nearly as much.
    let metrics = client::get(pair.client.admin(), "/stats/prometheus", &[]).await;
    let metrics = metrics.expect("the newest proxy answers").text();
    let counted = sum(&metrics, "istio_requests_total");
    assert!(counted >= counts.http, "{counted} requests counted, {} answered", counts.http);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_newer_binary_changes_nothing() {
    let pair = Pair::start(Flavor::Weft, Flavor::Weft).await;
    let admin = pair.client.admin();
    let before = info(admin).await;
    let to = SocketAddr::new(pair.client_ip, HTTP_PROXY_PORT);
    let mut kept = Connection::connect(Wire::H1, to).await.expect("the sidecar listens");
    let socket = format!("--handover={}/client/handover.sock", pair.mesh.folder.path().display());
    // Nobody answers there, and nothing was saved: it can never be ready.
    let stranded = ["--xds=127.0.0.1:1", "--state-dir=/nonexistent/weft", socket.as_str()];

    let never_ready = [&stranded[..], &["--handover-timeout=500ms"]].concat();
    let bad_flag = ["--no-such-option"];
    let other_workload = ["--name=somebody-else"];
    for extra in [&never_ready[..], &bad_flag, &other_workload] {
        let mut newer = pair.mesh.start_upgrade(&place("client", pair.client_ip), admin, extra);
        let status = newer.wait(LIMIT);
        assert!(!status.success(), "{extra:?} ended with {status}");
        unchanged(&mut kept, admin, &before).await;
    }

    // It has our sockets already when it is killed.
    let mut newer = pair.mesh.start_upgrade(&place("client", pair.client_ip), admin, &stranded);
    let log = pair.mesh.folder.path().join("client.log");
    let prepares = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("prepares to take over").count()
    };
    wait::until("the newer proxy to hold our sockets", LIMIT, || async {
        (prepares() == 2).then_some(())
    })
    .await;
    newer.kill();
    unchanged(&mut kept, admin, &before).await;
}

async fn unchanged(kept: &mut Connection, admin: SocketAddr, before: &Value) {
    let now = info(admin).await;
    assert_eq!((&now["pid"], &now["restart_epoch"]), (&before["pid"], &before["restart_epoch"]));
    assert_eq!(now["state"], "LIVE");
    let reply = kept.get("/", &[("host", "server:8080")]).await.expect("still served");
    assert_eq!(reply.status, 200);
}

/// Puts a newer process in a sidecar's place; returns the older one.
async fn upgraded(pair: &mut Pair, name: &'static str, epoch: u32) -> Process {
    let ip = if name == "client" { pair.client_ip } else { pair.server_ip };
    let proxy = if name == "client" { &mut pair.client } else { &mut pair.server };
    let Proxy::Weft { process, admin } = proxy else { panic!("not ours") };
    let newer = pair.mesh.start_upgrade(&place(name, ip), *admin, &[]);
    let older = std::mem::replace(process, newer);
    let (admin, pid) = (*admin, process.pid());
    wait::until("the newer proxy to take over", LIMIT, || {
        assert!(process.ended().is_none(), "the newer proxy ended: {}", process.output());
        async move {
            let info = info(admin).await;
            let there = info["restart_epoch"] == epoch && info["pid"] == pid;
            (there && info["state"] == "LIVE").then_some(())
        }
    })
    .await;
    older
}

async fn info(admin: SocketAddr) -> Value {
    let reply = client::get(admin, "/server_info", &[]).await;
    reply.expect("some proxy answers on the admin address at any time").json()
}

fn sum(metrics: &str, family: &str) -> u64 {
    let samples = metrics.lines().filter(|line| line.starts_with(family));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// Clients of every kind that go on until told to stop; each notes its first failure.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(Kind, Arc<AtomicU64>, JoinHandle<anyhow::Result<()>>)>,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTTP/1.1 on a kept connection.
    Kept,
    /// HTTP/1.1 on a connection that idles between requests.
    Idle,
    /// The same, for so long that the proxy parks it.
    Parked,
    /// HTTP/1.1 on a new connection each.
    New,
    H2,
    Grpc,
    /// Bidirectional streams of gRPC, one after the other, on a kept connection.
    GrpcStream,
    /// One of them through all upgrades.
    LongGrpc,
    /// One TCP connection through all upgrades.
    LongTcp,
    NewTcp,
}

/// Successes.
struct Counts {
    http: u64,
    tcp: u64,
    /// Messages of gRPC streams.
    messages: u64,
    lasted: Duration,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { http, tcp, messages, lasted } = self;
        let rate = (http + tcp + messages) as f64 / lasted.as_secs_f64();
        write!(
            f,
            "{http} HTTP requests, {messages} messages of gRPC streams and {tcp} TCP exchanges, \
             {rate:.0} a second, no failure"
        )
    }
}

impl Load {
    async fn start(pair: &Pair) -> Load {
        use Kind::{Grpc, GrpcStream, H2, Idle, Kept, LongGrpc, LongTcp, New, NewTcp, Parked};
        let stop = Arc::new(AtomicBool::new(false));
        let full = std::env::var_os("WEFT_UPGRADE_FULL").is_some();
        let kinds = [
            (Kept, 4),
            (Idle, 4),
            (Parked, 4),
            (New, 2),
            (H2, 2),
            (Grpc, 2),
            (GrpcStream, 2),
            (LongGrpc, 2),
            (LongTcp, 4),
            (NewTcp, 2),
        ];
        let mut clients = Vec::new();
        for (kind, count) in kinds {
            for _ in 0..count {
                let done = Arc::new(AtomicU64::new(0));
                let client = Client {
                    kind,
                    http: SocketAddr::new(pair.client_ip, HTTP_PROXY_PORT),
                    tcp: SocketAddr::new(pair.client_ip, TCP_PORT),
                    pause: match (kind, full) {
                        (Idle, _) => Duration::from_millis(1100),
                        (Parked, _) => Duration::from_millis(2600),
                        (_, true) => Duration::from_millis(5),
                        (_, false) => Duration::from_millis(20),
                    },
                    stop: stop.clone(),
                    done: done.clone(),
                };
                clients.push((kind, done, tokio::spawn(client.run())));
            }
        }
        Load { stop, clients, since: Instant::now() }
    }

    /// Every kind of client that is not slow by intention has had answers since now.
    async fn each_kind_answers(&self) {
        let now: Vec<u64> =
            self.clients.iter().map(|(_, done, _)| done.load(Ordering::Relaxed)).collect();
        for ((kind, done, task), before) in self.clients.iter().zip(now) {
            if *kind == Kind::Parked {
                continue;
            }
            wait::until(&format!("an answer to {kind:?}"), LIMIT, || async {
                (task.is_finished() || done.load(Ordering::Relaxed) > before).then_some(())
            })
            .await;
        }
    }

    async fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Counts { http: 0, tcp: 0, messages: 0, lasted: self.since.elapsed() };
        for (kind, done, task) in self.clients {
            let done = done.load(Ordering::Relaxed);
            if let Err(error) = task.await.expect("a client does not panic") {
                panic!("{kind:?} failed after {done} exchanges: {error:#}");
            }
            match kind {
                Kind::LongTcp | Kind::NewTcp => counts.tcp += done,
                Kind::GrpcStream | Kind::LongGrpc => counts.messages += done,
                _ => counts.http += done,
            }
        }
        counts
    }
}

struct Client {
    kind: Kind,
    http: SocketAddr,
    tcp: SocketAddr,
    pause: Duration,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Client {
    async fn run(self) -> anyhow::Result<()> {
        let mut tcp = match self.kind {
            Kind::LongTcp => Some(self.greeted().await?),
            _ => None,
        };
        let mut kept = None;
        let mut kept_h2 = None;
        let mut chat = None;
        while !self.stop.load(Ordering::Relaxed) {
            match self.kind {
                Kind::Kept | Kind::Idle | Kind::Parked => self.on_kept(&mut kept).await?,
                Kind::H2 => while !self.on_kept_h2(&mut kept_h2).await? {},
                Kind::New => {
                    let reply = client::get(self.http, "/", &[("host", "server:8080")]).await?;
                    ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
                }
                Kind::Grpc => self.grpc().await?,
                Kind::GrpcStream | Kind::LongGrpc => self.chat(&mut kept_h2, &mut chat).await?,
                Kind::LongTcp => echo(tcp.as_mut().context("connected above")?).await?,
                Kind::NewTcp => echo(&mut self.greeted().await?).await?,
            }
            self.done.fetch_add(1, Ordering::Relaxed);
            // Pace, not synchronisation: the rate is part of what is tested.
            tokio::time::sleep(self.pause).await;
        }
        match chat {
            Some(chat) => chat.end().await,
            None => Ok(()),
        }
    }

    /// A connection that said it ends is replaced, as every client does; a request that was sent
    /// must be answered.
    async fn on_kept(&self, kept: &mut Option<Connection>) -> anyhow::Result<()> {
        if let Some(connection) = kept
            && !connection.is_ready().await
        {
            *kept = None;
        }
        if kept.is_none() {
            *kept = Some(Connection::connect(Wire::H1, self.http).await?);
        }
        let connection = kept.as_mut().context("connected above")?;
        let reply = connection.get("/", &[("host", "server:8080")]).await?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
        Ok(())
    }

    /// The same over HTTP/2, by the library that knows what has left: false when the connection had
    /// said that it ends before the request was sent.
    async fn on_kept_h2(&self, kept: &mut Option<SendRequest<Bytes>>) -> anyhow::Result<bool> {
        let sender = self.sender(kept.take()).await?;
        let Ok(mut sender) = sender.ready().await else { return Ok(false) };
        let request = http::Request::get("http://server:8081/").body(())?;
        let Ok((response, _)) = sender.send_request(request, true) else { return Ok(false) };
        let response = response.await.context("a request that was sent")?;
        ensure!(response.status() == 200, "{}", response.status());
        let mut body = response.into_body();
        while let Some(part) = body.data().await {
            body.flow_control().release_capacity(part?.len())?;
        }
        *kept = Some(sender);
        Ok(true)
    }

    async fn sender(&self, kept: Option<SendRequest<Bytes>>) -> anyhow::Result<SendRequest<Bytes>> {
        if let Some(sender) = kept {
            return Ok(sender);
        }
        let stream = TcpStream::connect(self.http).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One message there and back, on the stream that is open or on a new one.
    async fn chat(
        &self,
        kept: &mut Option<SendRequest<Bytes>>,
        open: &mut Option<Chat>,
    ) -> anyhow::Result<()> {
        let mut chat = match open.take() {
            Some(chat) => chat,
            None => loop {
                let sender = self.sender(kept.take()).await?;
                let Ok(mut sender) = sender.ready().await else { continue };
                let request = http::Request::post("http://server:8082/e.E/Chat")
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(())?;
                let Ok((response, say)) = sender.send_request(request, false) else { continue };
                let response = response.await.context("a stream that was opened")?;
                *kept = Some(sender);
                break Chat { say, hear: response.into_body(), rounds: 0 };
            },
        };
        tokio::time::timeout(LIMIT, chat.say_and_hear()).await.context("nothing came back")??;
        match self.kind == Kind::GrpcStream && chat.rounds == CHAT_ROUNDS {
            true => chat.end().await?,
            false => *open = Some(chat),
        }
        Ok(())
    }

    async fn grpc(&self) -> anyhow::Result<()> {
        let headers =
            [("host", "server:8082"), ("content-type", "application/grpc"), ("te", "trailers")];
        let message = Bytes::from_static(b"\0\0\0\0\x05hello");
        let sent = client::send(Wire::H2, self.http, Method::POST, "/e.E/U", &headers, message);
        let reply = sent.await?;
        let status = reply.trailers.get("grpc-status").map(|value| value.as_bytes());
        ensure!(status == Some(b"0"), "grpc-status {status:?}");
        Ok(())
    }

    async fn greeted(&self) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.tcp).await?;
        let mut greeting = [0; 7];
        stream.read_exact(&mut greeting).await.context("no greeting")?;
        ensure!(&greeting == b"server\n");
        Ok(stream)
    }
}

/// A bidirectional stream.
struct Chat {
    say: h2::SendStream<Bytes>,
    hear: h2::RecvStream,
    rounds: u32,
}

impl Chat {
    async fn say_and_hear(&mut self) -> anyhow::Result<()> {
        let message = Bytes::from([&[0, 0, 0, 0, 4][..], &self.rounds.to_be_bytes()].concat());
        self.say.send_data(message.clone(), false)?;
        let mut heard = Vec::new();
        while heard.len() < message.len() {
            let data = self.hear.data().await.context("it ended")??;
            self.hear.flow_control().release_capacity(data.len())?;
            heard.extend_from_slice(&data);
        }
        ensure!(heard == message, "another message came back");
        self.rounds += 1;
        Ok(())
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.say.send_data(Bytes::new(), true)?;
        while let Some(data) = self.hear.data().await {
            ensure!(data?.is_empty(), "more came than was sent");
        }
        let trailers = self.hear.trailers().await?.context("no trailers")?;
        let status = trailers.get("grpc-status").map(|value| value.as_bytes());
        ensure!(status == Some(b"0"), "grpc-status {status:?}");
        Ok(())
    }
}

async fn echo(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"ping").await?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.context("no echo")?;
    ensure!(&back == b"ping");
    Ok(())
}

/// The upgrade needs the program itself, not only its library.
#[test]
fn the_program_says_how_it_is_upgraded() {
    let help = std::process::Command::new(Path::new(WEFT))
        .args(["proxy", "--help"])
        .output()
        .expect("weft starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for option in ["--handover <PATH>", "--handover-timeout", "--handover-drain-time"] {
        assert!(help.contains(option), "{option} is missing in: {help}");
    }
}
