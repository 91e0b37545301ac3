//! A scan of junk, and passthrough to many destinations, against a proxy of its own process: its
//! resident memory and its metric series stay bounded, also when they are scraped, and real traffic
//! goes on. Sizes are small. `WEFT_ABUSE_CONNECTIONS` and `WEFT_ABUSE_DESTINATIONS` make them real,
//! `WEFT_ABUSE_PER_SECOND` paces the scan, `WEFT_ABUSE_QUIET` is how many requests of the real traffic
//! go before it, and `WEFT_BINARY` takes another build of `weft`. `WEFT_ABUSE_MEASURED` binds the proxy to
//! core 1 and everything else to core 0, and lets proxy and real traffic go before other work: what
//! the scanners take of their core is not the proxy's doing.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use weft_testkit::process::{self, Process};
use weft_testkit::{client, wait};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;

/// What abuse may add to resident memory, and what may stay of it.
const GROWTH_KIB_MAX: u64 = 20 * 1024;
/// Memory is given back within this.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Connections at once.
const PARALLEL: usize = 64;
/// Real traffic during a scan: connections, and one request on each in this time.
const CLIENTS: usize = 8;
const PACE: Duration = Duration::from_millis(10);
/// Series of one metric that a scan may add.
const SERIES_MAX: usize = 100;

fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

struct Abused {
    process: Process,
    admin: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Abused {
    async fn start(control: &Control) -> Abused {
        Self::start_with(control, None, &[]).await
    }

    /// `open_files`: so many descriptors and no more.
    async fn start_with(control: &Control, open_files: Option<u32>, extra: &[&str]) -> Abused {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admin");
        // Another build is of the whole program, which has the proxy as a command.
        let (binary, command) = match std::env::var("WEFT_BINARY") {
            Ok(binary) => (binary, Some("proxy".to_owned())),
            Err(_) => (env!("CARGO_BIN_EXE_weft-proxy").to_owned(), None),
        };
        let args = [
            "sidecar".to_owned(),
            format!("--xds={}", control.address),
            "--name=app-1".to_owned(),
            "--concurrency=1".to_owned(),
            "--log-level=error".to_owned(),
            "--admin-address=127.0.0.1:0".to_owned(),
            format!("--admin-address-file={}", file.display()),
        ];
        let limit = open_files.map(|files| [format!("--nofile={files}"), binary.clone()]);
        let program = if limit.is_some() { "prlimit".to_owned() } else { binary };
        let args: Vec<String> = limit
            .into_iter()
            .flatten()
            .chain(command)
            .chain(args)
            .chain(extra.iter().map(|&more| more.to_owned()))
            .collect();
        let process = Process::start("weft-proxy", dir.path(), Path::new(&program), &args);
        let admin = wait::until("the admin address", LIMIT, || async {
            std::fs::read_to_string(&file).ok()?.trim().parse().ok()
        })
        .await;
        let abused = Abused { process, admin, _dir: dir };
        wait::until("the proxy to be ready", LIMIT, || async {
            let reply = client::get(admin, "/ready", &[]).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await;
        abused
    }

    async fn page(&self, path: &str) -> String {
        client::get(self.admin, path, &[]).await.unwrap().text()
    }

    async fn listener(&self, name: &str) -> SocketAddr {
        wait::until("the listener", LIMIT, || async {
            let page = self.page("/listeners").await;
            let line = page.lines().find(|line| line.starts_with(&format!("{name}::")))?;
            line.rsplit_once("::")?.1.parse().ok()
        })
        .await
    }

    fn resident_kib(&self) -> u64 {
        self.process.resident_bytes() / 1024
    }

    /// Runs `one` for each number below `count`, `PARALLEL` at a time; gives the peak of memory.
    async fn peak_during<F>(&self, count: usize, one: impl Fn(usize) -> F) -> u64
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (mut tasks, mut peak) = (JoinSet::new(), self.resident_kib());
        let per_second = size("WEFT_ABUSE_PER_SECOND", 0) as u32;
        let mut due =
            (per_second > 0).then(|| tokio::time::interval(Duration::from_secs(1) / per_second));
        for number in 0..count {
            if tasks.len() == PARALLEL {
                tasks.join_next().await.unwrap().unwrap();
            }
            tasks.spawn(one(number));
            if let Some(due) = &mut due {
                due.tick().await;
            }
            if number % 64 == 0 {
                peak = peak.max(self.resident_kib());
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        peak.max(self.resident_kib())
    }

    async fn settles(&self, base: u64, peak: u64, what: &str) {
        let since = Instant::now();
        wait::until("memory to be given back", BACK_WITHIN, || async {
            (self.resident_kib() <= base + GROWTH_KIB_MAX / 4).then_some(())
        })
        .await;
        let (after, seconds) = (self.resident_kib(), since.elapsed().as_secs());
        let metrics = self.page("/stats/prometheus").await;
        let peak = peak.max(self.resident_kib());
        let (lines, series) = (metrics.lines().count(), largest_family(&metrics));
        eprintln!(
            "{what}: resident {base} KiB before, {peak} at most, {after} after {seconds} s; \
             {lines} metric lines, {series} series of one metric"
        );
        assert!(peak <= base + GROWTH_KIB_MAX, "{what}: {base} KiB grew to {peak}");
        assert!(series <= SERIES_MAX, "{what}: {series} series of one metric");
    }
}

/// The most series that any counter or gauge has.
fn largest_family(metrics: &str) -> usize {
    let mut families = BTreeMap::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.contains("le=\"")) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        *families.entry(name).or_insert(0) += 1;
    }
    families.into_values().max().unwrap_or(0)
}

/// Requests at a fixed rate on a few kept connections until told to stop; how long each took,
/// counted from when it was due.
async fn real_traffic(
    address: SocketAddr,
    taken: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
) {
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let (taken, stop) = (taken.clone(), stop.clone());
        tasks.spawn(async move {
            let mut stream = connect_from(client, address).await;
            let mut due = tokio::time::interval(PACE);
            while !stop.load(Ordering::Relaxed) {
                let since = due.tick().await;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: real\r\n\r\n").await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"real traffic") {
                    assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"));
                taken.lock().unwrap().push(since.elapsed());
            }
        });
    }
    // None of them ends by itself.
    if let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// Median and 99th percentile of what was taken, which starts anew.
fn percentiles(taken: &Mutex<Vec<Duration>>) -> String {
    let mut taken = std::mem::take(&mut *taken.lock().unwrap());
    if taken.is_empty() {
        return "nothing".to_owned();
    }
    taken.sort();
    let at = |part: f64| taken[((taken.len() - 1) as f64 * part) as usize].as_micros();
    format!("{} requests, p50 {} µs, p99 {} µs", taken.len(), at(0.5), at(0.99))
}

/// From one of many loopback addresses, closed by a reset, so that no port is kept for long.
async fn connect_from(number: usize, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let [.., high, low] = (number as u32).to_be_bytes();
    socket.bind((Ipv4Addr::new(127, 64, high, low), 0).into()).unwrap();
    let stream = socket.connect(to).await.unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    stream
}

fn http(cluster: &str) -> Value {
    let type_of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": type_of("network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "scan",
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": type_of("http.router.v3.Router") },
            }],
            "route_config": { "name": "inline", "virtual_hosts": [{
                "name": "real",
                "domains": ["real"],
                "routes": [{
                    "match": { "prefix": "/" },
                    "direct_response": { "status": 200, "body": { "inline_string": "real traffic" } },
                }],
            }, {
                "name": "allow_any",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
            }] },
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_of_junk_costs_no_memory() {
    // Nobody listens there: every request that gets as far is a 503 of its own host.
    let nobody = SocketAddr::from(([127, 0, 0, 1], weft_testkit::free_port()));
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("any", &[nobody]));
    for direction in ["INBOUND", "OUTBOUND"] {
        let listener = json!({
            "name": direction,
            "address": any_port(),
            "traffic_direction": direction,
            "listener_filters": [
                inspector("tls_inspector", "TlsInspector"),
                inspector("http_inspector", "HttpInspector"),
            ],
            "filter_chains": [
                {
                    "filter_chain_match": { "application_protocols": ["http/1.1", "h2c"] },
                    "filters": [http("any")],
                },
            ],
            "default_filter_chain": { "filters": [tcp_proxy("any")] },
        });
        control.set(Listener, listener);
    }
    let proxy = Abused::start(&control).await;
    let addresses = [proxy.listener("INBOUND").await, proxy.listener("OUTBOUND").await];
    let probe = move |number: usize| async move {
        let mut stream = connect_from(number, addresses[number % 2]).await;
        let name = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let junk = match number / 2 % 8 {
            0 => name.to_be_bytes().repeat(50),
            1 => [&b"\x16\x03\x01\x02\x00\x01"[..], &name.to_be_bytes().repeat(200)].concat(),
            2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            3 => format!("GET /{name:x} HTTP/1.1\r\n{name:x}\r\n\r\n").into_bytes(),
            _ => format!("GET /{name:x} HTTP/1.1\r\nHost: {name:x}.example\r\n\r\n").into_bytes(),
        };
        let _ = stream.write_all(&junk).await;
        let _ = stream.shutdown().await;
        let mut answer = [0; 512];
        let _ = tokio::time::timeout(LIMIT, stream.read(&mut answer)).await;
    };
    // What is made once is no growth: code, buffers of the worker, the first series.
    proxy.peak_during(64, probe).await;
    let measured = std::env::var_os("WEFT_ABUSE_MEASURED").is_some();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = {
        let (taken, stop) = (taken.clone(), stop.clone());
        std::thread::spawn(move || {
            if measured {
                process::before_others();
            }
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(real_traffic(addresses[1], taken, stop));
        })
    };
    if measured {
        process::bind(std::process::id(), "0");
        process::measured_on(proxy.process.pid(), "1");
    }
    let quiet = size("WEFT_ABUSE_QUIET", 20);
    wait::until("real traffic before the scan", LIMIT, || async {
        (taken.lock().unwrap().len() >= quiet).then_some(())
    })
    .await;
    let before = percentiles(&taken);
    let base = proxy.resident_kib();
    let peak = proxy.peak_during(size("WEFT_ABUSE_CONNECTIONS", 4000), probe).await;
    eprintln!("real traffic before: {before}; during the scan: {}", percentiles(&taken));
    stop.store(true, Ordering::Relaxed);
    let ended = tokio::task::spawn_blocking(|| traffic.join()).await.unwrap();
    assert!(ended.is_ok(), "a request of the real traffic failed");
    proxy.settles(base, peak, "scan").await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passthrough_to_many_destinations_costs_no_memory() {
    let backend = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = backend.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = backend.accept().await else { continue };
            tokio::spawn(async move {
                let _ = stream.write_all(b"x").await;
                let _ = stream.read(&mut [0; 8]).await;
            });
        }
    });
    let control = tokio::task::block_in_place(|| Control::start(0));
    let cluster = json!({
        "name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
    });
    control.set(Cluster, cluster);
    let mut listener = tcp_listener("l", "PassthroughCluster");
    // The header names the destination, as a captured socket would.
    listener["listener_filters"] = json!([inspector("proxy_protocol", "ProxyProtocol")]);
    control.set(Listener, listener);
    let proxy = Abused::start(&control).await;
    let address = proxy.listener("l").await;
    let destinations = size("WEFT_ABUSE_DESTINATIONS", 1000);
    let pass = move |number: usize| async move {
        let mut stream = connect_from(number, address).await;
        let [.., high, low] = ((number % destinations) as u32).to_be_bytes();
        let header = format!("PROXY TCP4 192.0.2.1 127.1.{high}.{low} 4000 {port}\r\n");
        stream.write_all(header.as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(LIMIT, stream.read_u8()).await;
        assert_eq!(answer.expect("an answer in time").unwrap(), b'x', "127.1.{high}.{low}");
    };
    proxy.peak_during(64, pass).await;
    let base = proxy.resident_kib();
    let peak = proxy.peak_during(size("WEFT_ABUSE_CONNECTIONS", 4000), pass).await;
    proxy.settles(base, peak, "passthrough").await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_goes_on_after_descriptors_ran_out() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], weft_testkit::free_port()));
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("any", &[nobody]));
    let mut listener = tcp_listener("l", "any");
    listener["filter_chains"] = json!([{ "filters": [http("any")] }]);
    control.set(Listener, listener);
    let proxy = Abused::start_with(&control, Some(100), &["--connections-max=1000"]).await;
    let address = proxy.listener("l").await;
    let mut open = Vec::new();
    for number in 0..200 {
        open.push(connect_from(number, address).await);
    }
    // The last ones wait in the kernel until there is room; the admin server is in the same need.
    drop(open);
    let errors = wait::until("the errors to be counted", LIMIT, || async {
        let reply = client::get(proxy.admin, "/stats/prometheus", &[]).await.ok()?.text();
        let line =
            reply.lines().find(|line| line.starts_with("weft_proxy_accept_errors_total "))?;
        let count: u64 = line.rsplit_once(' ')?.1.parse().ok()?;
        (count > 0).then_some(count)
    })
    .await;
    assert!(errors < 1000, "{errors} errors: it does not wait in between");
    let mut stream = connect_from(1, address).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
    tokio::task::block_in_place(|| control.kill());
}
