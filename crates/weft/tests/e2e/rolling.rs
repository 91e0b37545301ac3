//! Restarts under load, one workload after the other: in order, with SIGTERM, nothing is lost; killed
//! at once, a sidecar or an application loses what was in flight and may not be repeated.
//!
//! `WEFT_ROLLING_FULL=1` restarts ten workloads instead of three, under about a thousand requests a
//! second; `WEFT_BINARY` takes a release build of `weft`, which that rate needs.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use weft_testkit::client::{self, Wire};
use weft_testkit::wait;

use crate::harness::{self, Flavor, Mesh, Place, Proxy};
use crate::pairs::{HTTP_PROXY_PORT, place};

/// How long one step may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Callers hear of a leaving endpoint meanwhile; Kubernetes gives five seconds.
const LEAVING: [&str; 2] = ["--drain-time=1s", "--termination-grace=20s"];

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_no_request() {
    let mut world = World::start().await;
    let load = Load::start(&world);
    for pod in 0..world.pods.len() {
        load.each_pod_answers(&world).await;
        world.restart(pod).await;
    }
    load.each_pod_answers(&world).await;
    let counts = load.stop().await;
    println!("{} restarts, {} requests/s: {counts:?}", world.pods.len(), counts.per_second);
    assert!(counts.answered.iter().all(|count| *count > 20), "{counts:?}");
    assert_eq!(counts.failed, [0, 0], "{counts:?}");
    world.nothing_ran_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_or_application_loses_at_most_what_was_in_flight() {
    let mut world = World::start().await;
    let load = Load::start(&world);
    let mut kills = 0;
    for pod in 0..world.pods.len() {
        load.each_pod_answers(&world).await;
        world.pods[pod].proxy.process().kill();
        world.pods[pod].proxy = world.proxy(pod).await;
        load.each_pod_answers(&world).await;
        let port = world.pods[pod].app.port;
        world.pods[pod].app.kill().await;
        load.goes_on().await;
        world.pods[pod].app = App::start(port, world.executed.clone()).await;
        kills += 2;
    }
    load.each_pod_answers(&world).await;
    let counts = load.stop().await;
    println!("{kills} kills, {} requests/s: {counts:?}", counts.per_second);
    assert!(counts.answered.iter().all(|count| *count > 20), "{counts:?}");
    let [idempotent, others] = counts.failed;
    assert_eq!(idempotent, 0, "{counts:?}");
    // Each client has one request under way.
    assert!(others <= kills * clients(), "{counts:?}");
    world.nothing_ran_twice();
}

/// GETs, then POSTs.
#[derive(Debug, Default)]
struct Counts {
    answered: [u64; 2],
    failed: [u64; 2],
    per_second: u64,
}

fn is_full() -> bool {
    std::env::var_os("WEFT_ROLLING_FULL").is_some()
}

/// Clients of each version of HTTP: one in two sends GETs, the others POSTs.
fn clients() -> u64 {
    if is_full() { 8 } else { 4 }
}

struct World {
    mesh: Mesh,
    client_ip: IpAddr,
    pods: Vec<Pod>,
    executed: Arc<Mutex<HashMap<String, u32>>>,
    _client: Proxy,
}

struct Pod {
    ip: IpAddr,
    name: &'static str,
    proxy: Proxy,
    app: App,
}

const NAMES: [&str; 10] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"];

impl World {
    async fn start() -> World {
        let count = if is_full() { NAMES.len() } else { 3 };
        let client_ip = harness::address();
        let mesh = Mesh::start(&common(client_ip)).await;
        let executed = Arc::new(Mutex::new(HashMap::new()));
        let client = mesh.proxy(Flavor::Weft, &place("client", client_ip)).await;
        let mut world = World { mesh, client_ip, pods: Vec::new(), executed, _client: client };
        for name in &NAMES[..count] {
            let ip = harness::address();
            let app = App::start(0, world.executed.clone()).await;
            world.mesh.write(&format!("{name}-sidecar.yaml"), &sidecar(name, ip, app.port));
            world.mesh.write(&format!("{name}.yaml"), &pod(name, ip));
            let proxy = world.mesh.start_with(&pod_place(name, ip), &LEAVING);
            world.pods.push(Pod { ip, name, proxy, app });
        }
        for pod in &world.pods {
            pod.proxy.ready().await;
        }
        // The client's sidecar was ready before the pods were known, and a pod's may have been before
        // its own Sidecar was.
        let to = SocketAddr::new(world.client_ip, HTTP_PROXY_PORT);
        for pod in &world.pods {
            wait::until(&format!("requests to get through to {}", pod.name), LIMIT, || async {
                let _ = ask(Wire::H1, to, Method::GET, "/first").await;
                (pod.app.served.load(Ordering::Relaxed) > 0).then_some(())
            })
            .await;
        }
        world
    }

    /// As Kubernetes does: the endpoint goes as the pod is told to end, and comes back when the next
    /// one is ready.
    async fn restart(&mut self, index: usize) {
        let Pod { ip, name, proxy, .. } = &mut self.pods[index];
        let file = self.mesh.folder.path().join("config").join(format!("{name}.yaml"));
        std::fs::remove_file(&file).expect("the pod's file");
        let process = proxy.process();
        process.terminate();
        let status = process.wait(LIMIT);
        assert!(status.success(), "{name} ended with {status}: {}", process.output());
        let text = pod(name, *ip);
        self.pods[index].proxy = self.proxy(index).await;
        std::fs::write(file, text).expect("the folder is writable");
    }

    /// A new sidecar for the pod, ready.
    async fn proxy(&self, index: usize) -> Proxy {
        let Pod { ip, name, .. } = &self.pods[index];
        let proxy = self.mesh.start_with(&pod_place(name, *ip), &LEAVING);
        proxy.ready().await;
        proxy
    }

    fn nothing_ran_twice(&self) {
        let executed = self.executed.lock().expect("no panic");
        let twice: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "executed twice: {twice:?}");
    }
}

/// An application that counts what was asked of it.
struct App {
    port: u16,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl App {
    async fn start(port: u16, executed: Arc<Mutex<HashMap<String, u32>>>) -> App {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is ours");
        let port = listener.local_addr().expect("bound").port();
        let served = Arc::new(AtomicU64::new(0));
        let count = served.clone();
        let task = tokio::spawn(async move {
            // Aborted with the task.
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(answer(tcp, executed.clone(), count.clone()));
            }
        });
        App { port, served, task }
    }

    /// Ends with all connections, as a killed process does.
    async fn kill(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut tcp: TcpStream,
    executed: Arc<Mutex<HashMap<String, u32>>>,
    served: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if tcp.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        read.drain(..end);
        if let Some(id) = head.strip_prefix("POST /").and_then(|rest| rest.split(' ').next()) {
            *executed.lock().expect("no panic").entry(id.to_owned()).or_default() += 1;
        }
        served.fetch_add(1, Ordering::Relaxed);
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
    }
}

/// Clients that go on until told to stop, and count what fails.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<[AtomicU64; 2]>,
    failed: Arc<[AtomicU64; 2]>,
    clients: Vec<JoinHandle<()>>,
    since: Instant,
}

impl Load {
    fn start(world: &World) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            answered: Arc::default(),
            failed: Arc::default(),
            clients: Vec::new(),
            since: Instant::now(),
        };
        let to = SocketAddr::new(world.client_ip, HTTP_PROXY_PORT);
        for number in 0..2 * clients() {
            let (stop, answered, failed) =
                (load.stop.clone(), load.answered.clone(), load.failed.clone());
            load.clients.push(tokio::spawn(async move {
                let kind = (number % 2) as usize;
                let wire = if number < clients() { Wire::H1 } else { Wire::H2 };
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let method = [Method::GET, Method::POST][kind].clone();
                    match ask(wire, to, method, &format!("/{number}-{round}")).await {
                        Ok(()) => answered[kind].fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            println!("{number}-{round} failed: {error:#}");
                            failed[kind].fetch_add(1, Ordering::Relaxed)
                        }
                    };
                    // Pace, not synchronisation.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }));
        }
        load
    }

    /// Every pod has had requests since now.
    async fn each_pod_answers(&self, world: &World) {
        for pod in &world.pods {
            let before = pod.app.served.load(Ordering::Relaxed);
            wait::until(&format!("a request to {}", pod.name), LIMIT, || async {
                (pod.app.served.load(Ordering::Relaxed) > before).then_some(())
            })
            .await;
        }
    }

    /// Some requests more were answered.
    async fn goes_on(&self) {
        let sum = || self.answered.iter().map(|one| one.load(Ordering::Relaxed)).sum::<u64>();
        let enough = sum() + 40;
        wait::until("answers", LIMIT, || async { (sum() >= enough).then_some(()) }).await;
    }

    async fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
        let read =
            |counts: &[AtomicU64; 2]| [0, 1].map(|kind| counts[kind].load(Ordering::Relaxed));
        let (answered, failed) = (read(&self.answered), read(&self.failed));
        let per_second = answered.iter().sum::<u64>() / self.since.elapsed().as_secs().max(1);
        Counts { answered, failed, per_second }
    }
}

async fn ask(wire: Wire, to: SocketAddr, method: Method, path: &str) -> anyhow::Result<()> {
    let headers = [("host", "server:8080")];
    let reply = client::send(wire, to, method, path, &headers, Bytes::new()).await?;
    ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
    Ok(())
}

fn pod_place(name: &'static str, ip: IpAddr) -> Place<'static> {
    // The label by which its Sidecar is found.
    let labels = Box::leak(Box::new([("app", "server"), ("pod", name)]));
    Place { kind: "sidecar", name, namespace: "default", service_account: "server", ip, labels }
}

fn pod(name: &str, ip: IpAddr) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: default
  labels: {{app: server, pod: {name}, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: server}}
status: {{phase: Running, podIP: {ip}}}
"
    )
}

fn sidecar(name: &str, ip: IpAddr, app: u16) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: {name}, namespace: default}}
spec:
  workloadSelector: {{labels: {{pod: {name}}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {ip}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{app}"}}
"#
    )
}

fn common(client: IpAddr) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: default}}
spec:
  selector: {{app: server}}
  ports: [{{name: http, port: 8080, targetPort: 8080}}]
---
# A dead application behind a sidecar that lives answers 503: only repeated where asked for, and
# taken out at its first.
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: server, namespace: default}}
spec:
  hosts: [server]
  http:
  - match: [{{method: {{exact: GET}}}}]
    route: [{{destination: {{host: server}}}}]
    retries: {{attempts: 3, retryOn: "connect-failure,refused-stream,gateway-error"}}
  - route: [{{destination: {{host: server}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server, namespace: default}}
spec:
  host: server
  trafficPolicy:
    outlierDetection: {{consecutiveGatewayErrors: 1, interval: 500ms, baseEjectionTime: 500ms, maxEjectionPercent: 50}}
---
apiVersion: v1
kind: Pod
metadata:
  name: client
  namespace: default
  labels: {{app: client, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: client}}
status: {{phase: Running, podIP: {client}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {client}, port: {{number: {HTTP_PROXY_PORT}, protocol: HTTP, name: http-proxy}}}}
"#
    )
}
