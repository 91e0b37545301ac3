//! What fails around captured traffic, under load: the control plane cut off, killed or slow, a
//! sidecar killed, two pods cut off from each other. Requests are counted before, meanwhile and after.
//!
//! `WEFT_FAULTS_FULL=1` slows the control plane by 5 s instead of 1 s, and makes ten times the load.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use weft_testkit::backend::{self, Backend};
use weft_testkit::{client, netns, wait};

use super::pods::{Node, Pod};
use super::{ALL, inside, mesh, service};

/// How long a step may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Service `s`: 10.96.0.50, pods b and c.
const S: u8 = 50;
/// An idempotent call has other endpoints and time for them.
const RULES: &str = "apiVersion: v1
kind: Service
metadata: {name: s, namespace: default}
spec:
  clusterIP: 10.96.0.50
  selector: {group: s}
  ports: [{name: http, port: 8080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: s, namespace: default}
spec:
  host: s
  trafficPolicy:
    connectionPool: {tcp: {connectTimeout: 1s}}
    outlierDetection: {consecutiveGatewayErrors: 1, consecutive5xxErrors: 0, interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 50}
---
";

/// `extra` goes in front of the one route.
fn rule(extra: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: s, namespace: default}}
spec:
  hosts: [s]
  http:
{extra}  - timeout: 20s
    retries: {{attempts: 5, perTryTimeout: 2s, retryOn: 'gateway-error,connect-failure,refused-stream,reset'}}
    route: [{{destination: {{host: s}}}}]
"
    )
}

fn is_full() -> bool {
    std::env::var_os("WEFT_FAULTS_FULL").is_some()
}

/// GETs from a pod, one after the other in two tasks, until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    /// By who answered.
    answers: Arc<Mutex<BTreeMap<String, u64>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(from: &Pod) -> Load {
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let answers = Arc::<Mutex<BTreeMap<String, u64>>>::default();
        let mut tasks = Vec::new();
        for _ in 0..2 {
            let (stop, failed, answers) = (stop.clone(), failed.clone(), answers.clone());
            let calls = async move {
                while !stop.load(Ordering::Relaxed) {
                    match call().await {
                        Ok(name) => {
                            *answers.lock().expect("nobody panics").entry(name).or_default() += 1;
                        }
                        Err(why) => {
                            println!("failed: {why}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            };
            tasks.push(from.start(calls));
        }
        Load { stop, failed, answers, tasks }
    }

    fn answers(&self, name: &str) -> u64 {
        self.answers.lock().expect("nobody panics").get(name).copied().unwrap_or_default()
    }

    fn done(&self) -> u64 {
        let answered: u64 = self.answers.lock().expect("nobody panics").values().sum();
        answered + self.failed.load(Ordering::Relaxed)
    }

    /// Waits for further requests, and says how many there were and how many of all failed.
    async fn more(&self, phase: &str) {
        let count = if is_full() { 1000 } else { 100 };
        let from = self.done();
        wait::until("load to go on", LIMIT, || async {
            (self.done() >= from + count).then_some(())
        })
        .await;
        let failed = self.failed.load(Ordering::Relaxed);
        println!("{phase}: {} requests, {failed} failed", self.done());
    }

    /// Waits until this one answers.
    async fn reaches(&self, name: &str) {
        let from = self.answers(name);
        wait::until("an endpoint to be used again", LIMIT, || async {
            (self.answers(name) > from + 5).then_some(())
        })
        .await;
    }

    /// How many failed.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("the load does not panic");
        }
        self.failed.load(Ordering::Relaxed)
    }
}

/// Who answers one call to `s`.
async fn call() -> Result<String, String> {
    let reply = client::get(service(S, 8080), "/", &[("host", "s:8080")]).await;
    let reply = reply.map_err(|error| format!("{error:#}"))?;
    match reply.status {
        200 => Ok(reply.json()["name"].as_str().unwrap_or_default().to_owned()),
        status => Err(format!("{status} {}", reply.text())),
    }
}

/// Drops all packets that fit, until it goes.
struct Cut(Vec<String>);

impl Cut {
    fn packets(rules: &[&str]) -> Cut {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        for rule in &rules {
            netns::commands(&[&format!("iptables -w -I {rule} -j DROP")]);
        }
        Cut(rules)
    }

    fn heal(self) {
        for rule in &self.0 {
            netns::commands(&[&format!("iptables -w -D {rule} -j DROP")]);
        }
    }
}

async fn http(pod: &Pod) -> Backend {
    let name = pod.name;
    pod.run(async move { backend::http(name, "[::]:8080").await }).await
}

#[test]
fn no_fault_fails_a_call_that_has_somewhere_else_to_go() {
    inside("capture::faults::no_fault_fails_a_call_that_has_somewhere_else_to_go", async {
        let yaml = mesh(&[("a", 1, true), ("b", 2, true), ("c", 3, true)])
            .replace("{app: b,", "{app: b, group: s,")
            .replace("{app: c,", "{app: c, group: s,");
        let mut node = Node::start(&format!("{yaml}{RULES}")).await;
        node.write("rule.yaml", &rule(""));
        let a = node.mesh_pod("a", 1, &ALL).await;
        let mut b = node.mesh_pod("b", 2, &ALL).await;
        let c = node.mesh_pod("c", 3, &ALL).await;
        let _servers = (http(&b).await, http(&c).await);
        a.run(async { wait::until("the service", LIMIT, || async { call().await.ok() }).await })
            .await;
        let load = Load::start(&a);
        load.reaches("b").await;
        load.reaches("c").await;
        load.more("before").await;

        // The control plane cannot be heard; what changes meanwhile comes when it can.
        let cut = Cut::packets(&["INPUT -p tcp --dport 15010", "OUTPUT -p tcp --sport 15010"]);
        let teapot = "  - match: [{uri: {prefix: /new}}]\n    directResponse: {status: 418}\n";
        node.write("rule.yaml", &rule(teapot));
        load.more("control plane cut off").await;
        assert_ne!(a.run(new_rule()).await, 418, "it was cut off");
        cut.heal();
        a.run(async {
            wait::until("the change", LIMIT, || async { (new_rule().await == 418).then_some(()) })
                .await;
        })
        .await;
        load.more("control plane heard again").await;

        node.kill_control();
        load.more("control plane killed").await;
        node.start_control().await;
        load.more("control plane started").await;

        node.replace_proxy(&mut b).await;
        load.reaches("b").await;
        load.more("sidecar of b killed and started").await;

        // a and b cannot hear each other: connections are open and nothing comes.
        let cut = Cut::packets(&[
            "FORWARD -s 10.20.1.2 -d 10.20.2.2",
            "FORWARD -s 10.20.2.2 -d 10.20.1.2",
        ]);
        load.reaches("c").await;
        load.more("a and b cut off").await;
        cut.heal();
        load.reaches("b").await;
        load.more("a and b hear each other").await;
        assert_eq!(load.stop().await, 0, "calls failed");
    });
}

async fn new_rule() -> u16 {
    let reply = client::get(service(S, 8080), "/new", &[("host", "s:8080")]).await;
    reply.map(|reply| reply.status).unwrap_or_default()
}

/// Passes bytes between `port` and the control plane; those to the proxy are late.
async fn late(port: u16, delay: Duration) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.expect("a free port");
    tokio::spawn(async move {
        while let Ok((proxy, _)) = listener.accept().await {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 15010));
            let Ok(control) = TcpStream::connect(to).await else { continue };
            let (mut from_proxy, mut to_proxy) = proxy.into_split();
            let (mut from_control, mut to_control) = control.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_proxy, &mut to_control).await });
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(length @ 1..) = from_control.read(&mut buffer).await {
                    let due = tokio::time::Instant::now() + delay;
                    let _ = sender.send((due, buffer[..length].to_vec()));
                }
            });
            tokio::spawn(async move {
                while let Some((due, bytes)) = receiver.recv().await {
                    tokio::time::sleep_until(due).await;
                    if to_proxy.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

#[test]
fn behind_a_slow_control_plane_nothing_begins_too_early() {
    inside("capture::faults::behind_a_slow_control_plane_nothing_begins_too_early", async {
        let yaml =
            mesh(&[("a", 1, true), ("b", 2, true)]).replace("{app: b,", "{app: b, group: s,");
        let node = Node::start(&format!("{yaml}{RULES}")).await;
        late(15011, Duration::from_secs(if is_full() { 5 } else { 1 })).await;
        let b = node.mesh_pod("b", 2, &ALL).await;
        let server = http(&b).await;
        let mut a = node.starting_pod("a", 1, &ALL, 15011);

        // Not waited for, the application's calls fail; nobody is told that it is ready.
        assert!(a.run(call()).await.is_err(), "an application that does not wait");
        let status = SocketAddr::new(a.v4(), 15021);
        let ready = async || {
            let reply =
                a.run(async move { client::get(status, "/healthz/ready", &[]).await }).await;
            reply.is_ok_and(|reply| reply.status == 200)
        };
        let inbound = http(&a).await;
        let own = SocketAddr::new(a.v4(), 8080);
        let mut early = 0;
        while !ready().await {
            let reply = b.run(async move { client::get(own, "/", &[]).await }).await;
            // What gets through in the moment between is not early.
            if reply.is_ok_and(|reply| reply.status == 200) && !ready().await {
                early += 1;
            }
        }
        assert_eq!(early, 0, "requests reached a pod that was not ready");
        drop(inbound);

        // One that waits, as the hook of holdApplicationUntilProxyStarts does, calls at once.
        a.stop_proxy();
        node.start_proxy_at(&mut a, 15011);
        let waited = a.command(&["wait"]);
        assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
        let before = server.served();
        for _ in 0..100 {
            assert_eq!(a.run(call()).await, Ok("b".to_owned()));
        }
        assert_eq!(server.served() - before, 100);
    });
}
