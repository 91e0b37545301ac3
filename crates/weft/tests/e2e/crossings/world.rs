//! The mesh of the crossings: a gateway and a client's sidecar in front, a server's sidecar behind,
//! and connections of a client to either of the first two.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_testkit::wait;

use super::{FLOOD, ROUNDS, app::App};
use crate::{
    cast::{place, pod},
    harness::{self, Flavor, Mesh, Proxy},
};

/// How the client reaches the first proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Sidecar,
    GatewayPlain,
    GatewayTls,
    GatewayMtls,
}

/// How the first proxy reaches the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    Plain,
    Mtls,
}

/// Nothing on loopback takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
const NAMES: [&str; 3] = ["mtls.example", "plain.example", "tcp.example"];

pub struct World {
    pub app: App,
    _mesh: Mesh,
    fronts: [(&'static str, Proxy); 2],
    server: Proxy,
    gateway_ip: IpAddr,
    client_ip: IpAddr,
    keys: Keys,
    envoy: bool,
}

/// A client's end of a connection.
pub struct Client {
    stream: Box<dyn Stream>,
    read: Vec<u8>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The gateway's certificate, and the one its clients show.
pub struct Keys {
    server: CertificateDer<'static>,
    client: CertificateDer<'static>,
    client_key: PrivateKeyDer<'static>,
}

impl World {
    /// `front` is the kind of gateway and client's sidecar, `back` that of the server's sidecar.
    pub async fn start(front: Flavor, back: Flavor) -> World {
        let app = App::start().await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = Keys::write(folder.path(), &NAMES);
        let ips = [harness::address(), harness::address(), harness::address()];
        let config = folder.path().join("config");
        std::fs::create_dir(&config).expect("a fresh folder");
        let yaml = yaml(ips, &app, folder.path());
        std::fs::write(config.join("mesh.yaml"), yaml).expect("the folder is writable");
        let mesh = Mesh::over(folder, config).await;
        let [gateway_ip, client_ip, server_ip] = ips;
        let server = mesh.proxy(back, &place("server", server_ip)).await;
        let gateway = mesh.proxy(front, &place("gateway", gateway_ip)).await;
        let client = mesh.proxy(front, &place("client", client_ip)).await;
        let envoy = [front, back].contains(&Flavor::Envoy);
        let fronts = [("gateway", gateway), ("client", client)];
        World { app, _mesh: mesh, fronts, server, gateway_ip, client_ip, keys, envoy }
    }

    pub fn has_envoy(&self) -> bool {
        self.envoy
    }

    /// Waits until requests get through: a proxy is ready before all its certificates need be.
    pub async fn is_ready(&self, edge: Edge, hop: Hop) {
        let host = self.host(edge, hop);
        wait::until("requests to get through", PATIENCE, || async {
            let mut client = self.try_client(edge, hop).await?;
            client.send(&format!("HEAD /ok HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let head = client.try_until("\r\n\r\n").await?;
            head.starts_with("HTTP/1.1 200 ").then_some(())
        })
        .await;
    }

    pub fn host(&self, edge: Edge, hop: Hop) -> String {
        match (edge, hop) {
            (Edge::Sidecar, Hop::Mtls) => "server:8080",
            (Edge::Sidecar, Hop::Plain) => "server:8090",
            (_, Hop::Mtls) => "mtls.example",
            (_, Hop::Plain) => "plain.example",
        }
        .to_owned()
    }

    pub async fn client(&self, edge: Edge, hop: Hop) -> Client {
        self.try_client(edge, hop).await.expect("the first proxy listens")
    }

    async fn try_client(&self, edge: Edge, hop: Hop) -> Option<Client> {
        let port = match edge {
            Edge::Sidecar => 15080,
            Edge::GatewayPlain => 10080,
            Edge::GatewayTls => 10443,
            Edge::GatewayMtls => 10444,
        };
        let host = self.host(edge, hop);
        self.connect(edge, port, &host).await
    }

    pub async fn tcp_client(&self, edge: Edge, hop: Hop) -> Client {
        let port = match edge {
            Edge::Sidecar => 9000,
            Edge::GatewayPlain => 10900,
            Edge::GatewayTls => 10901,
            Edge::GatewayMtls => 10902,
        } + match hop {
            Hop::Mtls => 0,
            Hop::Plain => 10,
        };
        self.connect(edge, port, "tcp.example").await.expect("the first proxy listens")
    }

    async fn connect(&self, edge: Edge, port: u16, name: &str) -> Option<Client> {
        let ip = if edge == Edge::Sidecar { self.client_ip } else { self.gateway_ip };
        let stream = TcpStream::connect(SocketAddr::new(ip, port)).await.ok()?;
        let stream: Box<dyn Stream> = match edge {
            Edge::Sidecar | Edge::GatewayPlain => Box::new(stream),
            Edge::GatewayTls | Edge::GatewayMtls => {
                let name = ServerName::try_from(name.to_owned()).expect("a name");
                let config = Arc::new(self.keys.client_config(edge == Edge::GatewayMtls));
                Box::new(TlsConnector::from(config).connect(name, stream).await.ok()?)
            }
        };
        Some(Client { stream, read: Vec::new() })
    }

    /// Memory of each proxy, by name.
    pub fn resident_bytes(&self) -> Vec<(&'static str, u64)> {
        let server = ("server", &self.server);
        let fronts = self.fronts.iter().map(|(name, proxy)| (*name, proxy));
        let bytes = |proxy: &Proxy| match proxy {
            Proxy::Weft { process, .. } => process.resident_bytes(),
            Proxy::Envoy(envoy) => envoy.process.resident_bytes(),
        };
        fronts.chain([server]).map(|(name, proxy)| (name, bytes(proxy))).collect()
    }

    /// The same beside what it was.
    pub fn resident_since(&self, base: &[(&'static str, u64)]) -> Vec<(&'static str, u64, u64)> {
        let now = self.resident_bytes();
        base.iter().zip(now).map(|((name, before), (_, now))| (*name, *before, now)).collect()
    }
}

impl Client {
    pub async fn send(&mut self, text: &str) {
        // A proxy that has refused may have closed already; what it said is read all the same.
        let _ = self.stream.write_all(text.as_bytes()).await;
        let _ = self.stream.flush().await;
    }

    pub async fn shutdown(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Writes until nothing more is taken, though every proxy on the way had its turns: `round` is a
    /// request through all of them. How much was taken.
    pub async fn flood(&mut self, round: impl AsyncFn()) -> u64 {
        let piece = vec![b'x'; 64 * 1024];
        let (mut sent, mut rounds) = (0, 0);
        while sent < FLOOD && rounds < ROUNDS {
            let room = piece.len().min((FLOOD - sent) as usize);
            tokio::select! {
                biased;
                count = self.stream.write(&piece[..room]) => {
                    sent += count.expect("nobody closes") as u64;
                    rounds = 0;
                }
                () = round() => rounds += 1,
            }
        }
        sent
    }

    /// Everything up to and including `end`.
    pub async fn until(&mut self, end: &str) -> String {
        match self.try_until(end).await {
            Some(text) => text,
            None => panic!("it ended before {end:?}: {}", String::from_utf8_lossy(&self.read)),
        }
    }

    async fn try_until(&mut self, end: &str) -> Option<String> {
        loop {
            let at = self.read.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = at {
                let text = self.read.drain(..at + end.len()).collect::<Vec<_>>();
                return Some(String::from_utf8_lossy(&text).into_owned());
            }
            if !self.more(end).await {
                return None;
            }
        }
    }

    /// Everything until the connection ends.
    pub async fn rest(&mut self) -> String {
        while self.more("the end").await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    async fn more(&mut self, end: &str) -> bool {
        match timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await {
            Ok(count) => count.is_ok_and(|count| count > 0),
            Err(_) => {
                panic!("no {end:?} came: {}", String::from_utf8_lossy(&self.read));
            }
        }
    }
}

impl Keys {
    /// Writes `server.crt`, which holds for `names`, `server.key` and, as the authority of clients,
    /// `client.crt` with its `client.key`.
    pub fn write(folder: &Path, names: &[&str]) -> Keys {
        let certificate = |names: &[&str]| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let params = rcgen::CertificateParams::new(names).expect("names");
            (params.self_signed(&key).expect("signed"), key)
        };
        let (server, server_key) = certificate(names);
        let (client, client_key) = certificate(&["client.example"]);
        for (name, text) in [
            ("server.crt", server.pem()),
            ("server.key", server_key.serialize_pem()),
            ("client.crt", client.pem()),
            ("client.key", client_key.serialize_pem()),
        ] {
            std::fs::write(folder.join(name), text).expect("written");
        }
        Keys {
            server: server.der().clone(),
            client: client.der().clone(),
            client_key: PrivateKeyDer::try_from(client_key.serialize_der()).expect("a key"),
        }
    }

    fn client_config(&self, mutual: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.server.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        match mutual {
            false => builder.with_no_client_auth(),
            true => builder
                .with_client_auth_cert(vec![self.client.clone()], self.client_key.clone_key())
                .expect("a certificate and its key"),
        }
    }
}

fn yaml([gateway, client, server]: [IpAddr; 3], app: &App, keys: &Path) -> String {
    let keys = keys.display();
    let simple = format!(
        "mode: SIMPLE, serverCertificate: {keys}/server.crt, privateKey: {keys}/server.key"
    );
    let mutual =
        simple.replace("SIMPLE", "MUTUAL") + &format!(", caCertificates: {keys}/client.crt");
    let mut servers = String::new();
    let mut tcp = String::new();
    for (port, to) in
        [(10900, 9000), (10901, 9000), (10902, 9000), (10910, 9010), (10911, 9010), (10912, 9010)]
    {
        let (protocol, tls) = match port % 10 {
            0 => ("TCP", String::new()),
            1 => ("TLS", format!(", tls: {{{simple}}}")),
            _ => ("TLS", format!(", tls: {{{mutual}}}")),
        };
        servers += &format!(
            "  - {{port: {{number: {port}, name: t{port}, protocol: {protocol}}}, hosts: [\"*\"]{tls}}}\n"
        );
        tcp += &format!(
            "  - match: [{{port: {port}}}]\n    \
             route: [{{destination: {{host: server, port: {{number: {to}}}}}}}]\n"
        );
    }
    let (http, tcp_app) = (app.http, app.tcp);
    let world = format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: server, namespace: default}}
spec:
  selector: {{app: server}}
  ports:
  - {{name: http, port: 8080, targetPort: 8080}}
  - {{name: http-plain, port: 8090, targetPort: 8090}}
  - {{name: tcp, port: 9000, targetPort: 9000}}
  - {{name: tcp-plain, port: 9010, targetPort: 9010}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server, namespace: default}}
spec:
  host: server
  trafficPolicy:
    portLevelSettings:
    - {{port: {{number: 8090}}, tls: {{mode: DISABLE}}}}
    - {{port: {{number: 9010}}, tls: {{mode: DISABLE}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: PERMISSIVE}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: 10080, name: http, protocol: HTTP}}, hosts: [mtls.example, plain.example]}}
  - {{port: {{number: 10443, name: https, protocol: HTTPS}}, hosts: [mtls.example, plain.example], tls: {{{simple}}}}}
  - {{port: {{number: 10444, name: mutual, protocol: HTTPS}}, hosts: [mtls.example, plain.example], tls: {{{mutual}}}}}
{servers}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: mtls, namespace: default}}
spec:
  hosts: [mtls.example]
  gateways: [gateway]
  http:
  - route: [{{destination: {{host: server, port: {{number: 8080}}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: plain, namespace: default}}
spec:
  hosts: [plain.example]
  gateways: [gateway]
  http:
  - route: [{{destination: {{host: server, port: {{number: 8090}}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: tcp, namespace: default}}
spec:
  hosts: ["*"]
  gateways: [gateway]
  tcp:
{tcp}---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: server, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: server}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{http}"}}
  - {{port: {{number: 8090, protocol: HTTP, name: http-plain}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{http}"}}
  - {{port: {{number: 9000, protocol: TCP, name: tcp}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{tcp_app}"}}
  - {{port: {{number: 9010, protocol: TCP, name: tcp-plain}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{tcp_app}"}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {server}, port: {{number: 15080, protocol: HTTP, name: http-proxy}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {client}, port: {{number: 15080, protocol: HTTP, name: http-proxy}}}}
  - {{hosts: ["./server.default.svc.cluster.local"], captureMode: NONE, bind: {client}, port: {{number: 9000, protocol: TCP, name: tcp}}}}
  - {{hosts: ["./server.default.svc.cluster.local"], captureMode: NONE, bind: {client}, port: {{number: 9010, protocol: TCP, name: tcp-plain}}}}
"#
    );
    [world, pod("server", server), pod("client", client), pod("gateway", gateway)].concat()
}
