//! What DestinationRules, VirtualServices and Sidecars promise of destinations, through the control plane
//! on our proxy and on stock Envoy: ejection, spill-over between localities, weights, tunnels through
//! an egress proxy, and TLS that ends at a sidecar.
//!
//! `WEFT_SPLIT_REQUESTS` sets how many requests are split (100,000 must come within 0.2 points).

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use rustls::{ClientConfig, RootCertStore, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsConnector;
use weft_testkit::{
    backend,
    client::{self, Connection, Wire},
    peer, wait,
};

use crate::harness::{self, Flavor, Mesh, Place, Proxy};

const FRONT: u16 = 15080;
const SETTLE: Duration = Duration::from_secs(20);
/// Requests that show who is asked.
const ROUND: usize = 20;
/// Requests split 1 to 99.
const SPLIT: usize = 3_000;
/// Clients that split them.
const CLIENTS: usize = 4;

/// One service for each test; nothing is tried again, so that every failure shows.
const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pool, namespace: default}
spec:
  host: pool
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 1000s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: default}
spec:
  host: shop
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: true}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1000s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: once, namespace: default}
spec: {hosts: [pool], http: [{retries: {attempts: 0}, route: [{destination: {host: pool}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec: {hosts: [shop], http: [{retries: {attempts: 0}, route: [{destination: {host: shop}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: split, namespace: default}
spec:
  hosts: [split]
  http: [{route: [{destination: {host: most}, weight: 99}, {destination: {host: rare}, weight: 1}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-connect, namespace: default}
spec: {host: by-connect, trafficPolicy: {tunnel: {targetHost: far.example, targetPort: 443}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-post, namespace: default}
spec: {host: by-post, trafficPolicy: {tunnel: {protocol: POST, targetHost: far.example, targetPort: 443}}}
";

struct World {
    _mesh: Mesh,
    _proxy: Proxy,
    client: IpAddr,
    /// By name: whether the application fails.
    apps: Vec<(&'static str, Arc<AtomicBool>)>,
    /// What the egress proxy was asked for.
    asked: mpsc::UnboundedReceiver<String>,
}

impl World {
    async fn start(flavor: Flavor) -> Self {
        let mut yaml = RULES.to_owned();
        let mut apps = Vec::new();
        for (name, service, locality) in [
            ("pool-1", "pool", ""),
            ("pool-2", "pool", ""),
            ("pool-3", "pool", ""),
            ("near", "shop", "east.a"),
            ("beside", "shop", "east.b"),
            ("far", "shop", "west.a"),
            ("most", "most", ""),
            ("rare", "rare", ""),
        ] {
            let ip = harness::address();
            apps.push((name, app(name, ip).await));
            let locality = if locality.is_empty() { "east.a" } else { locality };
            pod(&mut yaml, name, &format!("app: {service}, istio-locality: {locality}"), ip);
        }
        for (name, port) in ["pool", "shop", "most", "rare", "split"]
            .map(|name| (name, "{name: http, port: 80, targetPort: 8080}"))
        {
            service(&mut yaml, name, port);
        }
        let (tell, asked) = mpsc::unbounded_channel();
        let egress = harness::address();
        egress_proxy(egress, tell).await;
        pod(&mut yaml, "egress", "app: egress", egress);
        for (name, port) in [("by-connect", 15700), ("by-post", 15701)] {
            let port = format!("{{name: tcp, port: {port}, targetPort: 3128}}");
            service(&mut yaml, name, &port);
            yaml = yaml.replace(&format!("{{app: {name}}}"), "{app: egress}");
        }
        let client = harness::address();
        pod(&mut yaml, "client", "app: client, istio-locality: east.a", client);
        let _ = write!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: client, namespace: default}}\n\
             spec:\n  workloadSelector: {{labels: {{app: client}}}}\n  egress:\n"
        );
        for (port, protocol) in [(FRONT, "HTTP"), (15700, "TCP"), (15701, "TCP")] {
            let _ = writeln!(
                yaml,
                "  - {{hosts: ['./*'], captureMode: NONE, bind: {client}, port: {{number: {port}, protocol: {protocol}, name: p}}}}"
            );
        }
        let mesh = Mesh::start(&yaml).await;
        let place = Place {
            kind: "sidecar",
            name: "client",
            namespace: "default",
            service_account: "default",
            ip: client,
            labels: &[("app", "client")],
        };
        let proxy = mesh.proxy(flavor, &place).await;
        Self { _mesh: mesh, _proxy: proxy, client, apps, asked }
    }

    fn fail(&self, name: &str) {
        let app = self.apps.iter().find(|(other, _)| *other == name);
        app.expect("one of the applications").1.store(true, Ordering::Relaxed);
    }

    /// Status and name of who answered.
    async fn ask(&self, host: &str) -> (u16, String) {
        let to = SocketAddr::new(self.client, FRONT);
        let reply = client::get(to, "/", &[("host", host)]).await.expect("an answer");
        (reply.status, reply.text())
    }

    /// Who answers a round of requests, each once; none may fail.
    async fn round(&self, host: &str) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..ROUND {
            let (status, name) = self.ask(host).await;
            assert_eq!(status, 200, "{name}");
            names.push(name);
        }
        names.sort();
        names.dedup();
        names
    }

    /// Asks until that many answers in a row are good; gives how many were not.
    async fn until_good(&self, host: &str) -> usize {
        let (mut bad, mut good) = (0, 0);
        let done = async {
            while good < ROUND {
                match self.ask(host).await {
                    (200, _) => good += 1,
                    _ => (bad, good) = (bad + 1, 0),
                }
            }
        };
        tokio::time::timeout(SETTLE, done).await.expect("failing ones are still asked");
        bad
    }
}

async fn ejects(flavor: Flavor) {
    let world = World::start(flavor).await;
    assert_eq!(world.round("pool").await, ["pool-1", "pool-2", "pool-3"]);
    world.fail("pool-2");
    let bad = world.until_good("pool").await;
    // Envoy ejects on another thread than it answers on.
    assert!(bad == 3 || (bad > 3 && flavor == Flavor::Envoy), "{bad} failures before it was out");
    assert_eq!(world.round("pool").await, ["pool-1", "pool-3"]);
    world.fail("pool-1");
    world.until_good("pool").await;
    assert_eq!(world.round("pool").await, ["pool-3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_pod_is_ejected_by_weft() {
    ejects(Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_pod_is_ejected_by_envoy() {
    if peer::envoy("a_failing_pod_is_ejected_by_envoy").is_some() {
        ejects(Flavor::Envoy).await;
    }
}

async fn spills(flavor: Flavor) {
    let world = World::start(flavor).await;
    for (now, _) in [("near", "beside"), ("beside", "far")] {
        assert_eq!(world.round("shop").await, [now], "{flavor:?}");
        world.fail(now);
        let bad = world.until_good("shop").await;
        assert!(bad == 1 || (bad > 1 && flavor == Flavor::Envoy), "{bad} failures");
    }
    assert_eq!(world.round("shop").await, ["far"], "{flavor:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_spill_over_to_the_next_locality_on_weft() {
    spills(Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_spill_over_to_the_next_locality_on_envoy() {
    if peer::envoy("requests_spill_over_to_the_next_locality_on_envoy").is_some() {
        spills(Flavor::Envoy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_a_hundred_is_one_in_a_hundred() {
    let world = World::start(Flavor::Weft).await;
    let wanted = std::env::var("WEFT_SPLIT_REQUESTS").ok().and_then(|text| text.parse().ok());
    let count: usize = wanted.unwrap_or(SPLIT);
    let to = SocketAddr::new(world.client, FRONT);
    let one = async || {
        let mut connection =
            Connection::connect(Wire::H1, to).await.expect("the listener is there");
        let mut rare = 0;
        for _ in 0..count / CLIENTS {
            let reply = connection.get("/", &[("host", "split")]).await.expect("an answer");
            assert_eq!(reply.status, 200);
            rare += usize::from(reply.text() == "rare");
        }
        rare
    };
    let rare: usize = join_all((0..CLIENTS).map(|_| one())).await.into_iter().sum();
    let asked = count / CLIENTS * CLIENTS;
    let percent = 100.0 * rare as f64 / asked as f64;
    // Five standard deviations; of 100,000 requests they are 0.16 points.
    let points = 500.0 * (0.01 * 0.99 / asked as f64).sqrt();
    println!("{rare} of {asked}: {percent:.3} %, allowed is 1 ± {points:.3}");
    assert!((percent - 1.0).abs() <= points, "{rare} of {asked}: {percent:.3} %");
}

/// What the egress proxy is asked for, and what comes back through it.
async fn tunnels(flavor: Flavor) -> Vec<String> {
    let mut world = World::start(flavor).await;
    let mut seen = Vec::new();
    for port in [15700, 15701] {
        let to = SocketAddr::new(world.client, port);
        let mut stream = TcpStream::connect(to).await.expect("the listener is there");
        stream.write_all(b"hello").await.expect("the proxy reads");
        seen.push(world.asked.recv().await.expect("the egress proxy is asked"));
        let mut heard = [0; 7];
        stream.read_exact(&mut heard).await.expect("the far side's word");
        seen.push(String::from_utf8_lossy(&heard).into_owned());
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_tunnelled_through_an_egress_proxy() {
    let weft = tunnels(Flavor::Weft).await;
    let expected = [
        "CONNECT far.example:443 HTTP/1.1 host: far.example:443",
        "welcome",
        "POST / HTTP/1.1 host: far.example:443",
        "welcome",
    ];
    assert_eq!(weft, expected);
    if peer::envoy("bytes_are_tunnelled_through_an_egress_proxy").is_some() {
        assert_eq!(tunnels(Flavor::Envoy).await, weft);
    }
}

/// A proxy for CONNECT and POST whose far side says one word.
async fn egress_proxy(ip: IpAddr, tell: mpsc::UnboundedSender<String>) {
    let listener = TcpListener::bind((ip, 3128)).await.expect("the address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await?;
                    match line.trim_end() {
                        "" => break,
                        line => lines.push(line.to_owned()),
                    }
                }
                let host = lines.iter().map(|line| line.to_lowercase());
                let host = host.clone().find(|line| line.starts_with("host:")).unwrap_or_default();
                let line = lines.first().cloned().unwrap_or_default();
                let answer: &[u8] = match line.starts_with("CONNECT") {
                    true => b"HTTP/1.1 200 OK\r\n\r\nwelcome",
                    false => {
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nwelcome\r\n"
                    }
                };
                // The test may have ended.
                let _ = tell.send(format!("{line} {host}"));
                stream.write_all(answer).await?;
                // Held open until the client leaves.
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            });
        }
    });
}

/// What clients outside the mesh see of TLS that a Sidecar's `ingress` ends.
async fn own_tls(flavor: Flavor) -> Vec<String> {
    let ip = harness::address();
    let _app = backend::http("app", &format!("{ip}:8080")).await;
    let (server, friend, stranger) =
        (Pair::new("app.example"), Pair::new("friend"), Pair::new("stranger"));
    let files = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: String| {
        let path = files.path().join(name);
        std::fs::write(&path, text).expect("the folder is writable");
        path.display().to_string()
    };
    let certificate = write("cert.pem", server.certificate.pem());
    let key = write("key.pem", server.key.serialize_pem());
    let roots = write("roots.pem", friend.certificate.pem());
    let mut yaml = String::new();
    pod(&mut yaml, "app", "app: app", ip);
    service(&mut yaml, "app", "{name: https, port: 443, targetPort: 9443}");
    let _ = write!(
        yaml,
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: app, namespace: default}}\n\
         spec: {{selector: {{matchLabels: {{app: app}}}}, mtls: {{mode: DISABLE}}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: app, namespace: default}}\n\
         spec:\n  workloadSelector: {{labels: {{app: app}}}}\n  ingress:\n"
    );
    for (port, more) in [
        (9443, "mode: SIMPLE".to_owned()),
        (9444, format!("mode: MUTUAL, caCertificates: {roots}")),
    ] {
        let _ = writeln!(
            yaml,
            "  - {{captureMode: NONE, bind: {ip}, port: {{number: {port}, protocol: HTTPS, name: p{port}}}, defaultEndpoint: '0.0.0.0:8080', \
             tls: {{{more}, serverCertificate: {certificate}, privateKey: {key}}}}}"
        );
    }
    let mesh = Mesh::start(&yaml).await;
    let place = Place {
        kind: "sidecar",
        name: "app",
        namespace: "default",
        service_account: "default",
        ip,
        labels: &[("app", "app")],
    };
    let _proxy = mesh.proxy(flavor, &place).await;
    let simple = SocketAddr::new(ip, 9443);
    wait::until("the listener with its certificate", SETTLE, || async {
        server.ask(simple, None, &[]).await.ok()
    })
    .await;
    let mut seen = Vec::new();
    for (port, client) in [
        (9443, None),
        (9443, Some(&stranger)),
        (9444, None),
        (9444, Some(&stranger)),
        (9444, Some(&friend)),
    ] {
        for alpn in [&[][..], &["h2", "http/1.1"], &["http/1.1"]] {
            let answer = server.ask(SocketAddr::new(ip, port), client, alpn).await;
            seen.push(format!(
                "{port} {alpn:?}: {}",
                answer.unwrap_or_else(|_| "refused".to_owned())
            ));
        }
    }
    let plain = client::get(simple, "/", &[("host", "app")]).await.map(|reply| reply.status);
    seen.push(format!("plain: {:?}", plain.ok()));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecars_own_tls_serves_clients_outside_the_mesh() {
    let weft = own_tls(Flavor::Weft).await;
    let count = |text: &str| weft.iter().filter(|line| line.contains(text)).count();
    // With any certificate or none where none is asked for, and the right one where it is.
    assert_eq!((count("200"), count("refused"), count("plain: None")), (9, 6, 1), "{weft:#?}");
    if peer::envoy("a_sidecars_own_tls_serves_clients_outside_the_mesh").is_some() {
        assert_eq!(own_tls(Flavor::Envoy).await, weft);
    }
}

/// A certificate for one name, its own root.
struct Pair {
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Pair {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("signed");
        Self { certificate, key }
    }

    /// Status and protocol of an answer from a server that must show this certificate.
    async fn ask(
        &self,
        to: SocketAddr,
        own: Option<&Pair>,
        alpn: &[&str],
    ) -> anyhow::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::try_from(own.key.serialize_der()).expect("a key");
                config.with_client_auth_cert(vec![own.certificate.der().clone()], key)?
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(to).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect("app.example".try_into()?, stream).await?;
        let chosen = stream.get_ref().1.alpn_protocol().map(String::from_utf8_lossy);
        let chosen = chosen.unwrap_or_default().into_owned();
        let wire = if chosen == "h2" { Wire::H2 } else { Wire::H1 };
        let mut connection = Connection::open(wire, stream).await?;
        let reply = connection.get("/", &[("host", "app.example")]).await?;
        Ok(format!("{} over {chosen:?}", reply.status))
    }
}

/// An application that says its name, with 503 while it fails.
async fn app(name: &'static str, ip: IpAddr) -> Arc<AtomicBool> {
    let failing = Arc::<AtomicBool>::default();
    let listener = TcpListener::bind((ip, 8080)).await.expect("the application's address is free");
    let fails = failing.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(name, stream, fails.clone()));
        }
    });
    failing
}

async fn answer(name: &str, stream: TcpStream, fails: Arc<AtomicBool>) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        match stream.read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) if line != "\r\n" => continue,
            Ok(_) => {}
        }
        let status = if fails.load(Ordering::Relaxed) { "503 Failing" } else { "200 OK" };
        let length = name.len();
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{name}");
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn pod(yaml: &mut String, name: &str, labels: &str, ip: IpAddr) {
    let _ = write!(
        yaml,
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}\n\
         spec: {{serviceAccountName: default}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    );
}

fn service(yaml: &mut String, name: &str, port: &str) {
    let _ = write!(
        yaml,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{port}]}}\n"
    );
}
