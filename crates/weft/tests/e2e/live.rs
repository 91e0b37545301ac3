//! A running gateway: changes under load, refused mistakes, certificates, and its end.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;
use weft_testkit::{
    backend::{self, Backend},
    client::{self, Connection, Wire},
    wait,
};

use crate::{
    cast::{place, pod},
    harness::{self, Flavor, Mesh, Proxy},
};

const HTTP: u16 = 10080;
const HTTPS: u16 = 10443;
const HOST: (&str, &str) = ("host", "wallstreetcn.com");
const SETTLE: Duration = Duration::from_secs(10);

/// A gateway in front of two versions without sidecars.
struct Edge {
    mesh: Mesh,
    gateway: Proxy,
    ip: IpAddr,
    _backends: [Backend; 2],
}

impl Edge {
    async fn start(extra: &str) -> Self {
        let (ip, one, two) = (harness::address(), harness::address(), harness::address());
        let backends = [
            backend::http("v1", &format!("{one}:8080")).await,
            backend::http("v2", &format!("{two}:8080")).await,
        ];
        let mesh = Mesh::start(&(world(ip, one, two) + extra)).await;
        mesh.write("route.yaml", &route(100, 0));
        let gateway = mesh.proxy(Flavor::Weft, &place("gateway", ip)).await;
        let edge = Self { mesh, gateway, ip, _backends: backends };
        edge.until_answers("v1").await;
        edge
    }

    fn http(&self) -> SocketAddr {
        SocketAddr::new(self.ip, HTTP)
    }

    async fn until_answers(&self, version: &str) {
        let to = self.http();
        wait::until(&format!("{version} to answer"), SETTLE, || async move {
            let reply = client::get(to, "/", &[HOST]).await.ok()?;
            (reply.header("x-backend") == version).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_under_load_close_no_connection_and_fail_no_request() {
    let edge = Edge::start("").await;
    let h1 = Kept::start(Wire::H1, edge.http()).await;
    let h2 = Kept::start(Wire::H2, edge.http()).await;
    for round in 0..6 {
        let (weights, version) = if round % 2 == 0 { ((0, 100), "v2") } else { ((100, 0), "v1") };
        edge.mesh.write("route.yaml", &route(weights.0, weights.1));
        edge.until_answers(version).await;
    }
    for kept in [h1, h2] {
        let (served, failure) = kept.stop().await;
        assert_eq!(failure, None, "the kept connection failed after {served} requests");
        assert!(served > 100, "only {served} requests on a kept connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_is_named_and_hurts_nothing() {
    let edge = Edge::start("").await;
    let broken = route(0, 100).replace("weight: 100", "weight: ten");
    edge.mesh.write("route.yaml", &broken);
    let output = || async {
        let output = edge.mesh.control_output();
        (output.contains("route.yaml") && output.contains("weight")).then_some(())
    };
    wait::until("the control plane to name the mistake", SETTLE, output).await;
    // The last good route stays, and another resource still changes.
    edge.mesh.write("second.yaml", &second_host());
    let to = edge.http();
    wait::until("the second host", SETTLE, || async move {
        let reply = client::get(to, "/", &[("host", "second.example")]).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
    let reply = client::get(to, "/", &[HOST]).await.expect("answered");
    assert_eq!(reply.header("x-backend"), "v1");
    edge.mesh.write("route.yaml", &route(0, 100));
    edge.until_answers("v2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unbound_host_is_not_found() {
    let edge = Edge::start("").await;
    let reply = client::get(edge.http(), "/", &[("host", "elsewhere.example")]).await;
    assert_eq!(reply.expect("answered").status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_serves_new_handshakes_and_keeps_old_connections() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = write_certificate(folder.path());
    let edge = Edge::start(&https_server(folder.path())).await;
    let to = SocketAddr::new(edge.ip, HTTPS);
    let mut kept =
        wait::until("the first certificate", SETTLE, || async { tls(to, &first).await.ok() }).await;
    assert_eq!(kept.get("/", &[HOST]).await.expect("served over TLS").status, 200);

    let second = write_certificate(folder.path());
    wait::until("the second certificate", SETTLE, || async { tls(to, &second).await.ok() }).await;
    assert!(tls(to, &first).await.is_err(), "the first certificate is still served");
    assert_eq!(kept.get("/", &[HOST]).await.expect("the connection stays").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight() {
    let mut edge = Edge::start("").await;
    let to = edge.http();
    let mut kept = Connection::connect(Wire::H1, to).await.expect("connected");
    assert_eq!(kept.get("/", &[HOST]).await.expect("answered").status, 200);
    edge.gateway.process().terminate();
    // Draining: the open connection still gets its answer, and is told that it is the last.
    let admin = edge.gateway.admin();
    wait::until("the gateway to announce its end", SETTLE, || async move {
        let ready = client::get(admin, "/ready", &[]).await;
        ready.map_or(Some(()), |reply| (reply.status == 503).then_some(()))
    })
    .await;
    let last = kept.get("/", &[HOST]).await.expect("a draining gateway answers");
    assert_eq!((last.status, last.header("connection")), (200, "close"));
    let status = edge.gateway.process().wait(Duration::from_secs(30));
    assert!(status.success(), "{status}");
}

/// Requests one after another on one connection, until stopped or broken.
struct Kept {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    task: JoinHandle<Option<String>>,
}

impl Kept {
    async fn start(wire: Wire, to: SocketAddr) -> Self {
        let mut connection = Connection::connect(wire, to).await.expect("connected");
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, count) = (stop.clone(), served.clone());
        let task = tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                match connection.get("/", &[HOST]).await {
                    Ok(reply) if reply.status == 200 => count.fetch_add(1, Ordering::Relaxed),
                    Ok(reply) => return Some(format!("status {}: {}", reply.status, reply.text())),
                    Err(error) => return Some(format!("{error:#}")),
                };
            }
            None
        });
        Self { stop, served, task }
    }

    async fn stop(self) -> (u64, Option<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failure = self.task.await.expect("the load does not panic");
        (self.served.load(Ordering::Relaxed), failure)
    }
}

/// A TLS connection whose server must show exactly `certificate` (its own root).
async fn tls(to: SocketAddr, certificate: &rcgen::Certificate) -> anyhow::Result<Connection> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("wallstreetcn.com")?;
    let stream = TcpStream::connect(to).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Connection::open(Wire::H1, stream).await
}

/// Writes a fresh self-signed certificate as `tls.crt` and `tls.key`, each replaced whole.
fn write_certificate(folder: &std::path::Path) -> rcgen::Certificate {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(["wallstreetcn.com".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("signed");
    for (name, text) in [("tls.key", key.serialize_pem()), ("tls.crt", certificate.pem())] {
        let next = folder.join(format!("{name}.next"));
        std::fs::write(&next, text).expect("written");
        std::fs::rename(next, folder.join(name)).expect("renamed");
    }
    certificate
}

fn route(v1: u32, v2: u32) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: app, namespace: default}}
spec:
  hosts: [wallstreetcn.com]
  gateways: [gateway]
  http:
  - route:
    - {{destination: {{host: app, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: app, subset: v2}}, weight: {v2}}}
"#
    )
}

fn second_host() -> String {
    route(100, 0)
        .replace("name: app,", "name: second,")
        .replace("wallstreetcn.com", "second.example")
}

fn https_server(folder: &std::path::Path) -> String {
    let folder = folder.display();
    format!(
        r#"
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {{name: secure, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 443, name: https, protocol: HTTPS}}
    hosts: [wallstreetcn.com]
    tls: {{mode: SIMPLE, serverCertificate: {folder}/tls.crt, privateKey: {folder}/tls.key}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: secure, namespace: default}}
spec:
  hosts: [wallstreetcn.com]
  gateways: [secure]
  http:
  - route: [{{destination: {{host: app, subset: v1}}}}]
"#
    )
}

fn world(gateway: IpAddr, one: IpAddr, two: IpAddr) -> String {
    let world = format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: default}}
spec: {{selector: {{app: app}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: app-v1, namespace: default, labels: {{app: app, version: v1}}}}
spec: {{serviceAccountName: app}}
status: {{phase: Running, podIP: {one}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: app-v2, namespace: default, labels: {{app: app, version: v2}}}}
spec: {{serviceAccountName: app}}
status: {{phase: Running, podIP: {two}}}
---
apiVersion: v1
kind: Service
metadata: {{name: istio-ingressgateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  ports:
  - {{name: http, port: 80, targetPort: {HTTP}}}
  - {{name: https, port: 443, targetPort: {HTTPS}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: app, namespace: default}}
spec:
  host: app
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*"]}}
"#
    );
    world + &pod("gateway", gateway)
}
