//! `weft demo` from outside: what it promises to print, to answer, to follow, and to leave behind.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;
use weft_testkit::client::{self, Connection, Reply, Wire};
use weft_testkit::process::{self, Process};
use weft_testkit::wait;

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const HOST: (&str, &str) = ("host", "wallstreetcn.com");
/// A release build takes about a second; a loaded machine with a debug build more.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The promise is a second; the rest is for a loaded test machine, and how long it took is printed.
const SHIFT_LIMIT: Duration = Duration::from_secs(20);

struct Demo {
    process: Process,
    ready: Value,
    _logs: tempfile::TempDir,
}

impl Demo {
    async fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[]).await
    }

    async fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let logs = tempfile::tempdir().expect("a temporary folder");
        let mut all = vec!["demo", "--output=json", "--no-traffic"];
        if !args.iter().any(|arg| arg.starts_with("--port-base")) {
            all.push("--port-base=free");
        }
        all.extend(args);
        let mut process = Process::start_with("demo", logs.path(), Path::new(WEFT), &all, env);
        let ready = wait::until("the demo's JSON line", START_LIMIT, || {
            let ended = process.ended();
            let output = process.output();
            assert!(ended.is_none(), "the demo ended:\n{output}");
            let line = output.lines().find(|line| line.starts_with('{')).map(str::to_owned);
            async move { serde_json::from_str(&line?).ok() }
        })
        .await;
        Self { process, ready, _logs: logs }
    }

    fn address(&self, key: &str) -> SocketAddr {
        socket(&self.ready[key])
    }

    fn gateway(&self) -> SocketAddr {
        self.address("gateway")
    }

    fn config(&self) -> PathBuf {
        self.ready["config_dir"].as_str().expect("config_dir is text").into()
    }

    fn proxy(&self, name: &str) -> &Value {
        let proxies = self.ready["proxies"].as_array().expect("a list of proxies");
        proxies.iter().find(|proxy| proxy["name"] == name).expect("a proxy of that name")
    }

    async fn metrics(&self, name: &str) -> String {
        let address = socket(&self.proxy(name)["metrics"]);
        client::get(address, "/stats/prometheus", &[]).await.expect("metrics").text()
    }

    /// What the client outside the mesh gets from servicea.
    async fn plain_client(&self) -> u16 {
        let apps = self.ready["apps"].as_array().expect("a list of applications");
        let app = apps.iter().find(|app| app["name"] == "plain-client").expect("plain-client");
        client::get(socket(&app["url"]), "/", &[]).await.expect("plain-client answers").status
    }

    fn pids(&self) -> Vec<u32> {
        let proxies = self.ready["proxies"].as_array().expect("a list of proxies");
        proxies.iter().map(|proxy| proxy["pid"].as_u64().expect("a pid") as u32).collect()
    }

    async fn get(&self, path: &str) -> Reply {
        client::get(self.gateway(), path, &[HOST]).await.expect("the gateway answers")
    }

    /// Replaces the routes and subsets of servicea.
    fn route(&self, weights: &[(&str, u32)], subsets: &[&str]) {
        let path = self.config().join("servicea.yaml");
        let text = fs::read_to_string(&path).expect("servicea.yaml");
        let service = text.split("---").find(|part| part.contains("kind: Service\n"));
        let routes: String = weights
            .iter()
            .map(|(subset, weight)| {
                format!("    - destination: {{host: servicea, subset: {subset}}}\n      weight: {weight}\n")
            })
            .collect();
        let subsets: String = subsets
            .iter()
            .map(|v| format!("  - {{name: {v}, labels: {{version: {v}}}}}\n"))
            .collect();
        let text = format!(
            "---{}---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: servicea, namespace: default}}
spec:
  hosts: [servicea]
  http:
  - route:
{routes}---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {{name: servicea, namespace: default}}
spec:
  host: servicea
  subsets:
{subsets}",
            service.expect("the Service stays")
        );
        fs::write(&path, text).expect("the configuration is writable");
    }

    /// Waits until twenty requests in a row were answered by `version`; returns how long it took.
    async fn until_only(&self, version: &str) -> Duration {
        let start = Instant::now();
        let mut in_a_row = 0;
        let mut since = start;
        while in_a_row < 20 {
            assert!(start.elapsed() < SHIFT_LIMIT, "traffic does not shift to {version}");
            if self.get("/").await.header("x-servicea-version") == version {
                in_a_row += 1;
            } else {
                in_a_row = 0;
                since = Instant::now();
            }
        }
        since.duration_since(start)
    }

    async fn share_of_v1(&self, requests: u32) -> f64 {
        let mut v1 = 0;
        for _ in 0..requests {
            v1 += u32::from(self.get("/").await.header("x-servicea-version") == "v1");
        }
        f64::from(v1) / f64::from(requests)
    }
}

impl Drop for Demo {
    /// Ends it in order, so that it removes its files.
    fn drop(&mut self) {
        self.process.terminate();
        let start = Instant::now();
        while self.process.ended().is_none() && start.elapsed() < STOP_LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn socket(url: &Value) -> SocketAddr {
    let url = url.as_str().unwrap_or_default();
    let address = url.split_once("://").map_or(url, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or_default();
    address.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn lives(pid: u32) -> bool {
    // A zombie has ended; its parent, our own child, will be waited for.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn until_gone(pids: &[u32]) {
    wait::until("all proxies to end", STOP_LIMIT, || async {
        (!pids.iter().any(|pid| lives(*pid))).then_some(())
    })
    .await;
}

/// Two clients that never pause, one with kept connections; counts what is not a whole answer.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            failed: Arc::default(),
            tasks: vec![],
        };
        for kept in [true, false] {
            let (stop, sent, failed) = (load.stop.clone(), load.sent.clone(), load.failed.clone());
            load.tasks.push(tokio::spawn(async move {
                let mut connection = Connection::connect(Wire::H1, to).await.expect("connects");
                while !stop.load(Ordering::Relaxed) {
                    let reply = match kept {
                        true => connection.get("/", &[HOST]).await,
                        false => client::get(to, "/", &[HOST]).await,
                    };
                    sent.fetch_add(1, Ordering::Relaxed);
                    match reply {
                        Ok(reply) if reply.status == 200 => {}
                        Ok(other) => {
                            eprintln!("failed: {other:?}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        // Going on would fail again at once, and for ever when the test is over.
                        Err(error) => {
                            eprintln!("failed: {error:#}");
                            failed.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            }));
        }
        load
    }

    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("the load does not panic");
        }
        (self.sent.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_works_and_nothing_is_left() {
    let mut demo = Demo::start(&[]).await;
    let reply = demo.get("/").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(body["servicea"]["version"], reply.header("x-servicea-version"));
    assert_eq!(body["serviceb"]["service"], "serviceb");
    let trace = |of: &str| body[of]["headers"]["x-b3-traceid"].clone();
    assert!(trace("servicea").is_string());
    assert_eq!(trace("servicea"), trace("serviceb"), "one trace");

    let elsewhere = client::get(demo.gateway(), "/", &[("host", "elsewhere.example")]).await;
    assert_eq!(elsewhere.expect("an answer").status, 404);
    for path in ["/stream?n=3", "/tcp", "/plain", "/deeper/path"] {
        let reply = demo.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    assert_eq!(demo.plain_client().await, 200);

    let share = demo.share_of_v1(200).await;
    assert!((0.35..0.65).contains(&share), "v1 got {share}");
    metrics_agree(&demo).await;

    let (pids, config) = (demo.pids(), demo.config());
    assert_eq!(pids.len(), 7);
    for pid in &pids {
        println!("proxy {pid}: {} KiB resident", process::resident_bytes(*pid) / 1024);
    }
    demo.process.terminate();
    let status = demo.process.wait(STOP_LIMIT);
    assert!(status.success(), "{status}: {}", demo.process.output());
    until_gone(&pids).await;
    assert!(!config.exists(), "{} is left behind", config.display());
}

/// Both ends of servicea's calls count, with Istio's labels; TCP has its own families.
async fn metrics_agree(demo: &Demo) {
    for (name, reporter) in [("gateway-v1-0", "source"), ("servicea-v1-0", "destination")] {
        let text = demo.metrics(name).await;
        let wanted = [
            format!("reporter=\"{reporter}\""),
            "source_workload=\"gateway-v1\"".into(),
            "destination_workload=\"servicea-v1\"".into(),
            "destination_service=\"servicea.default.svc.cluster.local\"".into(),
            "destination_principal=\"spiffe://cluster.local/ns/default/sa/servicea\"".into(),
            "response_code=\"200\"".into(),
        ];
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        let found = lines.iter().any(|line| wanted.iter().all(|label| line.contains(label)));
        assert!(found, "{name}: none of {lines:#?} has all of {wanted:?}");
    }
    let text = demo.metrics("tcp-echo-v1-0").await;
    for family in ["connections_opened", "connections_closed", "sent_bytes", "received_bytes"] {
        let start = format!("istio_tcp_{family}_total{{reporter=\"destination\"");
        let line = text.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
        assert!(!line.ends_with(" 0"), "{line}");
        assert!(line.contains("connection_security_policy=\"mutual_tls\""), "{line}");
    }
}

/// STRICT refuses who has no certificate, and only them.
/// A trace through gateway and sidecars, where nothing else is installed.
#[tokio::test(flavor = "multi_thread")]
async fn traces_are_kept_and_found() {
    let demo = Demo::start(&[]).await;
    let id = "463ac35c9f6413ad";
    let headers =
        [HOST, ("x-b3-traceid", id), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-sampled", "1")];
    let reply = client::get(demo.gateway(), "/", &headers).await.expect("the gateway answers");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let store = socket(&demo.ready["traces"]);
    let page = |path: String| async move {
        let reply = client::get(store, &path, &[]).await.expect("the store answers");
        (reply.status, reply.json())
    };
    // Proxies send spans after five seconds, if there are not five before.
    let spans: Vec<Value> = wait::until("all six spans", Duration::from_secs(60), || async {
        let (_, trace) = page(format!("/api/v2/trace/{id}")).await;
        trace.as_array().filter(|spans| spans.len() >= 6).cloned()
    })
    .await;
    let by = |kind: &str| spans.iter().filter(|span| span["kind"] == kind).count();
    assert_eq!((by("CLIENT"), by("SERVER")), (3, 3), "{spans:#?}");
    let (_, services) = page("/api/v2/services".to_owned()).await;
    for service in ["gateway", "servicea", "serviceb"] {
        assert!(services.to_string().contains(service), "{services}");
    }
    let (_, found) = page("/api/v2/traces?annotationQuery=http.status_code%3D200".to_owned()).await;
    assert!(found.to_string().contains(id), "{found}");
    let (_, links) = page(format!("/api/v2/dependencies?endTs={}", i64::MAX / 2_000_000)).await;
    assert!(links.is_array(), "{links}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_refuses_the_client_outside_the_mesh() {
    let demo = Demo::start(&[]).await;
    assert_eq!(demo.plain_client().await, 200);
    let load = Load::start(demo.gateway());
    let path = demo.config().join("mtls.yaml");
    let text = fs::read_to_string(&path).expect("mtls.yaml").replace("PERMISSIVE", "STRICT");
    fs::write(&path, text).expect("the configuration is writable");
    wait::until("plain-client to be refused", SHIFT_LIMIT, || async {
        (demo.plain_client().await != 200).then_some(())
    })
    .await;
    let (sent, failed) = load.stop().await;
    assert_eq!(failed, 0, "of {sent} requests inside the mesh");
}

/// Certificates of 10 s, renewed about every 5 s, under load on kept and on new connections.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotate_without_a_failed_request() {
    let demo = Demo::start_with(&[], &[("DEFAULT_WORKLOAD_CERT_TTL", "10s")]).await;
    let load = Load::start(demo.gateway());
    for name in ["gateway-v1-0", "servicea-v1-0"] {
        wait::until("three certificates", Duration::from_secs(40), || async {
            let text = demo.metrics(name).await;
            let line = "weft_proxy_certificate_renewals_total{result=\"success\"} ";
            let count = text.lines().find_map(|l| l.strip_prefix(line))?.parse::<u64>().ok()?;
            (count >= 4).then_some(())
        })
        .await;
    }
    let (sent, failed) = load.stop().await;
    assert!(sent > 100, "{sent}");
    assert_eq!(failed, 0, "of {sent} requests");
}

/// A proxy that is killed comes back by itself, and the mesh with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_proxy_is_started_again() {
    let demo = Demo::start(&[]).await;
    let pid = demo.proxy("serviceb-v1-0")["pid"].to_string();
    let status = Command::new("kill").args(["-KILL", &pid]).status().expect("kill runs");
    assert!(status.success());
    wait::until("the proxy to be ready again", START_LIMIT, || async {
        let admin = socket(&demo.proxy("serviceb-v1-0")["admin"]);
        let reply = client::get(admin, "/ready", &[]).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
    wait::until("its copy of serviceb to answer", SHIFT_LIMIT, || async {
        let reply = demo.get("/").await;
        (reply.json()["serviceb"]["instance"] == "serviceb-v1-0").then_some(())
    })
    .await;
}

/// The article's release, step by step, with requests all the while.
#[tokio::test(flavor = "multi_thread")]
async fn the_articles_release_fails_no_request() {
    let demo = Demo::start(&[]).await;
    let load = Load::start(demo.gateway());

    demo.route(&[("v1", 100)], &["v1"]);
    let shifted = demo.until_only("v1").await;
    println!("all to v1 after {shifted:?}");
    demo.route(&[("v1", 100)], &["v1", "v2"]);
    demo.route(&[("v1", 90), ("v2", 10)], &["v1", "v2"]);
    demo.route(&[("v1", 0), ("v2", 100)], &["v1", "v2"]);
    let shifted = demo.until_only("v2").await;
    println!("all to v2 after {shifted:?}");
    demo.route(&[("v2", 100)], &["v1", "v2"]);
    demo.route(&[("v2", 100)], &["v2"]);
    fs::remove_file(demo.config().join("servicea-v1.yaml")).expect("v1's Deployment goes");
    demo.until_only("v2").await;
    let share = demo.share_of_v1(50).await;
    assert!(share == 0.0, "v1 still gets {share}");

    let (sent, failed) = load.stop().await;
    assert!(sent > 100, "{sent}");
    assert_eq!(failed, 0, "of {sent} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_demo_takes_its_proxies_with_it() {
    let mut demo = Demo::start(&[]).await;
    let pids = demo.pids();
    assert!(pids.iter().all(|pid| lives(*pid)));
    demo.process.kill();
    until_gone(&pids).await;
    // Nobody was left to remove it.
    let config = demo.config();
    let place = config.parent().expect("the demo's own folder");
    fs::remove_dir_all(place).expect("the folder of a killed demo");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_and_a_kept_directory_stays() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("mesh");
    let keep = format!("--config-dir={}", config.display());
    let mut demo = Demo::start(&[&keep]).await;
    let base = demo.gateway().port() - 80;
    let second = Command::new(WEFT).args(["demo", &format!("--port-base={base}")]).output();
    let second = second.expect("weft starts");
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(error.contains("is taken") && error.contains("--port-base"), "{error}");

    demo.process.terminate();
    assert!(demo.process.wait(STOP_LIMIT).success());
    assert!(config.join("servicea.yaml").exists());
}
