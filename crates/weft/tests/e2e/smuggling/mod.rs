//! Raw bytes through Weft, stock Envoy, haproxy, nginx and hyper, each in front of a backend that
//! records what arrives. Nothing may reach an application through Weft that two of the others
//! refuse, and never two requests where another sees one.
//!
//! Every input is followed by one more request, the victim of a smuggler: whoever takes the input
//! for longer than Weft does swallows it. The first inputs are chosen (`corpus`), the rest are
//! mutations of them from a printed seed. `WEFT_SMUGGLING_CASES` and `WEFT_SMUGGLING_SEED` choose
//! another number and seed.

pub mod backend;
mod corpus;
mod mutate;
mod verdict;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use weft_testkit::{free_port, peer, process::Process, relay};

use crate::harness::{self, Flavor, Mesh, Place};
use backend::Backend;
use verdict::{Heard, Outcome};

/// Inputs that run side by side, each through its own port of every proxy.
const LANES: usize = 24;
/// Mutations in an ordinary run; with the chosen inputs about 15 s on two cores.
const MUTATIONS: usize = 1500;
/// A proxy that says nothing for so long waits for more.
const QUIET: Duration = Duration::from_millis(120);
/// The same when an input is judged again, alone.
const QUIET_ALONE: Duration = Duration::from_secs(2);
/// The victim.
const VICTIM: &str = "GET /victim HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";

/// One input.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// A proxy with one port and one backend per lane.
struct Target {
    name: &'static str,
    lanes: Vec<(SocketAddr, Backend)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_smuggled() {
    const TEST: &str = "nothing_is_smuggled";
    let (Some(envoy), Some(haproxy), Some(nginx)) =
        (peer::envoy(TEST), peer::haproxy(TEST), peer::nginx(TEST))
    else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (weft, _mesh, _proxy) = weft().await;
    let mut targets = vec![weft];
    let mut running: Vec<Process> = Vec::new();
    for (name, binary) in [("Envoy", envoy), ("haproxy", haproxy), ("nginx", nginx)] {
        let (target, lanes) = other(name).await;
        running.push(match name {
            "Envoy" => relay::envoy(&binary, folder.path(), &lanes),
            "haproxy" => relay::haproxy(&binary, folder.path(), &lanes),
            _ => relay::nginx(&binary, folder.path(), &lanes),
        });
        targets.push(target);
    }
    targets.push(hyper().await);

    let seed = number("WEFT_SMUGGLING_SEED", 0x5eed);
    let mutations = number("WEFT_SMUGGLING_CASES", MUTATIONS as u64) as usize;
    let chosen = corpus::all();
    let mut cases = chosen.clone();
    cases.extend(mutate::all(&chosen, seed, mutations));
    println!("{} inputs, {mutations} of them mutations from seed {seed:#x}", cases.len());
    let suspects = judge_all(Arc::new(targets), Arc::new(cases)).await;
    assert!(suspects.is_empty(), "seed {seed:#x}: {}\n{}", suspects.len(), suspects.join("\n"));
}

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).unwrap_or_default();
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap_or(default),
        None => text.parse().unwrap_or(default),
    }
}

/// Runs every case, then those that look wrong again with patience. What remains is wrong.
async fn judge_all(targets: Arc<Vec<Target>>, cases: Arc<Vec<Case>>) -> Vec<String> {
    let next = Arc::new(AtomicUsize::new(0));
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (targets, cases, next) = (targets.clone(), cases.clone(), next.clone());
            tokio::spawn(async move {
                let mut suspects = Vec::new();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let heard = run(&targets, lane, case, QUIET).await;
                    if !verdict::wrongs(case, &heard).is_empty() {
                        suspects.push(case.clone());
                    }
                }
                suspects
            })
        })
        .collect();
    let mut wrong = Vec::new();
    for lane in lanes {
        for case in lane.await.expect("a lane does not panic") {
            let heard = run(&targets, 0, &case, QUIET_ALONE).await;
            let wrongs = verdict::wrongs(&case, &heard);
            if !wrongs.is_empty() {
                wrong.push(verdict::report(&case, &heard, &wrongs));
            }
        }
    }
    wrong
}

/// What every proxy made of one case.
async fn run(targets: &[Target], lane: usize, case: &Case, quiet: Duration) -> Vec<Heard> {
    let each = targets.iter().map(|target| async move {
        let (address, backend) = &target.lanes[lane];
        backend.forget();
        let outcome = talk(*address, &case.bytes, quiet).await;
        Heard { proxy: target.name, requests: backend.take(), outcome }
    });
    futures_util::future::join_all(each).await
}

/// Sends the case and the victim, and reads until the proxy closes or waits.
async fn talk(address: SocketAddr, case: &[u8], quiet: Duration) -> Outcome {
    let mut stream = TcpStream::connect(address).await.expect("the proxy listens");
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.split();
    let bytes = [case, VICTIM.as_bytes()].concat();
    // A proxy that has refused may have closed already.
    let send = async {
        let _ = write.write_all(&bytes).await;
    };
    let receive = async {
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            match tokio::time::timeout(quiet, read.read(&mut part)).await {
                Ok(Ok(0) | Err(_)) => return Outcome { answer, closed: true },
                Ok(Ok(count)) => answer.extend_from_slice(&part[..count]),
                Err(_) => return Outcome { answer, closed: false },
            }
        }
    };
    tokio::join!(send, receive).1
}

/// Weft before backends of its own.
async fn weft() -> (Target, Mesh, harness::Proxy) {
    let mut backends = Vec::new();
    for _ in 0..LANES {
        backends.push(Backend::start().await);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let (listen, mesh, proxy) = sidecar("HTTP", &addresses).await;
    (Target { name: "Weft", lanes: listen.into_iter().zip(backends).collect() }, mesh, proxy)
}

/// Weft as a sidecar, with one ingress port for each backend, which speaks `protocol`.
pub async fn sidecar(
    protocol: &str,
    backends: &[SocketAddr],
) -> (Vec<SocketAddr>, Mesh, harness::Proxy) {
    let ip = harness::address();
    let mut listen = Vec::new();
    let mut ingress = String::new();
    for (port, backend) in (8100..).zip(backends) {
        ingress += &format!(
            "  - {{port: {{number: {port}, protocol: {protocol}, name: p-{port}}}, bind: {ip}, \
             captureMode: NONE, defaultEndpoint: \"{backend}\"}}\n",
        );
        listen.push(SocketAddr::new(ip, port));
    }
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: app, namespace: default, labels: {{app: app}}}}\n\
         spec: {{serviceAccountName: app}}\nstatus: {{phase: Running, podIP: {ip}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: default}}\nspec: {{mtls: {{mode: DISABLE}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: app, namespace: default}}\n\
         spec:\n  workloadSelector: {{labels: {{app: app}}}}\n  ingress:\n{ingress}  egress:\n  \
         - {{hosts: [\"./*\"], captureMode: NONE, bind: {ip}, port: {{number: 15080, protocol: HTTP, name: http-proxy}}}}\n"
    );
    let mesh = Mesh::start(&yaml).await;
    let place = Place {
        kind: "sidecar",
        name: "app",
        namespace: "default",
        service_account: "app",
        ip,
        labels: &[("app", "app")],
    };
    let proxy = mesh.proxy(Flavor::Weft, &place).await;
    (listen, mesh, proxy)
}

/// Backends and free ports for a peer.
async fn other(name: &'static str) -> (Target, Vec<relay::Lane>) {
    let mut target = Target { name, lanes: Vec::new() };
    let mut lanes = Vec::new();
    for _ in 0..LANES {
        let backend = Backend::start().await;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        lanes.push((listen, backend.address));
        target.lanes.push((listen, backend));
    }
    (target, lanes)
}

/// hyper's server is its own recorder: what it hands to its service has arrived.
async fn hyper() -> Target {
    let mut target = Target { name: "hyper", lanes: Vec::new() };
    for _ in 0..LANES {
        let backend = Backend::start_hyper().await;
        target.lanes.push((backend.address, backend));
    }
    target
}
