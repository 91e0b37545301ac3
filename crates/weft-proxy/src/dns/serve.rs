//! The sockets: datagrams and connections of the workload, each bounded in number, size and time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_telemetry::{Counter, Registry};

use super::answer::{self, Asked, UDP_MAX};
use super::forward::Forwarder;
use super::names::{Names, Place};
use crate::drain::DrainSignal;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be silent.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Datagrams answered at once, those that wait for name servers among them; more are dropped.
const DATAGRAMS_MAX: usize = 2048;

pub(super) struct Server {
    pub(super) names: Arc<ArcSwap<Names>>,
    pub(super) place: Place,
    pub(super) forwarder: Forwarder,
    pub(super) counters: Counters,
}

/// What became of questions.
#[derive(Clone)]
pub(super) struct Counters {
    mesh: Counter,
    refused: Counter,
    dropped: Counter,
    pub(super) kept: Counter,
    pub(super) forwarded: Counter,
    pub(super) failed: Counter,
    pub(super) overflow: Counter,
}

impl Counters {
    pub(super) fn new(registry: &Registry) -> Counters {
        let of = |result| {
            let help = "DNS questions of the workload by what became of them.";
            registry.counter("weft_proxy_dns_queries_total", help, &[("result", result)])
        };
        Counters {
            mesh: of("mesh"),
            refused: of("refused"),
            dropped: of("dropped"),
            kept: of("cached"),
            forwarded: of("forwarded"),
            failed: of("failed"),
            overflow: of("overflow"),
        }
    }
}

/// One address.
pub(super) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// The first address must be free; others may not exist here (IPv6 may be off).
pub(super) fn bind(addresses: &[SocketAddr]) -> io::Result<Vec<Sockets>> {
    let mut all = Vec::new();
    for address in addresses {
        match bind_to(*address) {
            Ok(sockets) => all.push(sockets),
            Err(error) if all.is_empty() => {
                return Err(io::Error::new(error.kind(), format!("DNS on {address}: {error}")));
            }
            Err(error) => tracing::info!(%address, %error, "no DNS there"),
        }
    }
    Ok(all)
}

fn bind_to(address: SocketAddr) -> io::Result<Sockets> {
    let socket = |ty, protocol| {
        let socket = Socket::new(Domain::for_address(address), ty, Some(protocol))?;
        // An older proxy of this workload may still answer.
        socket.set_reuse_port(true)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok::<Socket, io::Error>(socket)
    };
    let (udp, tcp) = (socket(Type::DGRAM, Protocol::UDP)?, socket(Type::STREAM, Protocol::TCP)?);
    tcp.listen(128)?;
    Ok(Sockets { udp: udp.into(), tcp: tcp.into() })
}

/// Answers until the proxy ends, draining or not: what drains may still have to find somebody.
pub(super) async fn run(server: Arc<Server>, sockets: Vec<Sockets>, drain: DrainSignal) {
    for Sockets { udp, tcp } in sockets {
        match (UdpSocket::from_std(udp), TcpListener::from_std(tcp)) {
            (Ok(udp), Ok(tcp)) => {
                tokio::spawn(datagrams(server.clone(), Arc::new(udp)));
                tokio::spawn(connections(server.clone(), tcp));
            }
            (udp, tcp) => {
                let error = udp.err().or(tcp.err()).map(|error| error.to_string());
                tracing::error!(error, "DNS socket");
            }
        }
    }
    drain.closing().await;
}

impl Server {
    /// The answer to one message, if it is to have one. What the mesh knows is there at once.
    fn at_once(&self, bytes: &[u8], udp: bool) -> Reply {
        static TURN: AtomicUsize = AtomicUsize::new(0);
        match answer::read(bytes, udp) {
            Asked::Nothing => {
                self.counters.dropped.inc();
                Reply::None
            }
            Asked::Refused(bytes) => {
                self.counters.refused.inc();
                Reply::Now(bytes)
            }
            Asked::Question(question) => {
                let turn = TURN.fetch_add(1, Ordering::Relaxed);
                match question.of_mesh(&self.names.load(), &self.place, turn) {
                    Some(answer) => {
                        self.counters.mesh.inc();
                        question.encode(answer).map_or(Reply::None, Reply::Now)
                    }
                    None => Reply::Ask(question),
                }
            }
        }
    }
}

enum Reply {
    None,
    Now(Vec<u8>),
    /// Name servers.
    Ask(Box<answer::Question>),
}

async fn datagrams(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let slots = Arc::new(Semaphore::new(DATAGRAMS_MAX));
    let mut buffer = [0; UDP_MAX];
    loop {
        // An error is that of an earlier answer whose client is gone.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let bytes = &buffer[..length];
        match server.at_once(bytes, true) {
            Reply::None => {}
            Reply::Now(answer) => {
                let _ = socket.send_to(&answer, client).await;
            }
            Reply::Ask(question) => {
                let Ok(slot) = slots.clone().try_acquire_owned() else {
                    server.counters.dropped.inc();
                    continue;
                };
                let (server, socket, bytes) = (server.clone(), socket.clone(), bytes.to_vec());
                tokio::spawn(async move {
                    if let Some(answer) = server.forwarder.answer(&question, &bytes, true).await {
                        let _ = socket.send_to(&answer, client).await;
                    }
                    drop(slot);
                });
            }
        }
    }
}

async fn connections(server: Arc<Server>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            if let Err(error) = connection(&server, stream).await {
                tracing::debug!(%error, "DNS connection");
            }
            drop(slot);
        });
    }
}

/// One question after the other, each with its length in front. RFC 1035 4.2.2.
async fn connection(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let read = async {
            let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut bytes).await?;
            Ok::<Vec<u8>, io::Error>(bytes)
        };
        let bytes = match tokio::time::timeout(IDLE_MAX, read).await.map_err(silent)? {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let answer = match server.at_once(&bytes, false) {
            Reply::None => return Ok(()),
            Reply::Now(answer) => Some(answer),
            Reply::Ask(question) => server.forwarder.answer(&question, &bytes, false).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(IDLE_MAX, stream.write_all(&framed)).await.map_err(silent)??;
    }
}
