//! Four pairings of sidecars, plain and over STRICT mTLS: Weft and stock Envoy on either side, for
//! HTTP/1.1, HTTP/2, gRPC and TCP.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use weft_testkit::{
    backend::{self, Backend},
    client::{self, Wire},
    peer,
};

use crate::harness::{self, Flavor, Mesh, Place, Proxy};

/// The client's sidecar listens for its application on these ports of the workload's address.
pub const HTTP_PROXY_PORT: u16 = 15080;
pub const TCP_PORT: u16 = 9000;

#[tokio::test(flavor = "multi_thread")]
async fn weft_to_weft() {
    everything(Flavor::Weft, Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weft_to_envoy() {
    if peer::envoy("weft_to_envoy").is_some() {
        everything(Flavor::Weft, Flavor::Envoy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_to_weft() {
    if peer::envoy("envoy_to_weft").is_some() {
        everything(Flavor::Envoy, Flavor::Weft).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_to_envoy() {
    if peer::envoy("envoy_to_envoy").is_some() {
        everything(Flavor::Envoy, Flavor::Envoy).await;
    }
}

/// What passes between the two sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    Plain,
    Mtls,
}

async fn everything(client: Flavor, server: Flavor) {
    for hop in [Hop::Plain, Hop::Mtls] {
        let http = backend::http("server", "127.0.0.1:0").await;
        let tcp = backend::tcp_echo("server", "127.0.0.1:0").await;
        let ports = [http.address.port(), tcp.address.port()];
        let pair = Pair::between(client, server, hop, ports, None).await;
        // {HTTP/1, HTTP/2} from the client x {HTTP/1, HTTP/2} on the hop and to the application.
        for wire in [Wire::H1, Wire::H2] {
            for (authority, arrives_as) in
                [("server:8080", "HTTP/1.1"), ("server:8081", "HTTP/2.0")]
            {
                pair.http_is_carried(hop, wire, authority, arrives_as).await;
                pair.answers_keep_their_kind(wire, authority).await;
            }
        }
        pair.grpc_is_carried().await;
        pair.tcp_is_carried().await;
        if hop == Hop::Mtls {
            pair.plaintext_is_refused(&http).await;
        }
        pair.nothing_was_rejected().await;
    }
}

/// A client's sidecar and a server's sidecar.
pub struct Pair {
    pub mesh: Mesh,
    pub client_ip: IpAddr,
    pub server_ip: IpAddr,
    pub client: Proxy,
    pub server: Proxy,
    /// The server's applications, if they are ours.
    _apps: Vec<Backend>,
}

impl Pair {
    /// Over mTLS, with applications that echo.
    pub async fn start(client: Flavor, server: Flavor) -> Self {
        let http = backend::http("server", "127.0.0.1:0").await;
        let tcp = backend::tcp_echo("server", "127.0.0.1:0").await;
        let ports = [http.address.port(), tcp.address.port()];
        let mut pair = Self::between(client, server, Hop::Mtls, ports, None).await;
        pair._apps = vec![http, tcp];
        pair
    }

    /// `apps`: loopback ports of the server's applications, HTTP and TCP. `traffic_policy`: what
    /// the server's DestinationRule says besides, in YAML's flow style.
    pub async fn between(
        client: Flavor,
        server: Flavor,
        hop: Hop,
        apps: [u16; 2],
        traffic_policy: Option<&str>,
    ) -> Self {
        let (client_ip, server_ip) = (harness::address(), harness::address());
        let mesh = Mesh::start(&world(client_ip, server_ip, hop, apps, traffic_policy)).await;
        let server = mesh.proxy(server, &place("server", server_ip)).await;
        let client = mesh.proxy(client, &place("client", client_ip)).await;
        Self { mesh, client_ip, server_ip, client, server, _apps: Vec::new() }
    }

    async fn http_is_carried(&self, hop: Hop, wire: Wire, authority: &str, arrives_as: &str) {
        let to = SocketAddr::new(self.client_ip, HTTP_PROXY_PORT);
        let body = Bytes::from(vec![b'x'; 100_000]);
        let headers =
            [("host", authority), ("x-kept", "as it was"), ("cookie", "a=1"), ("cookie", "b=2")];
        let reply = client::send(wire, to, Method::POST, "/path?q=1", &headers, body)
            .await
            .unwrap_or_else(|error| panic!("{wire:?} to {authority}: {error}"));
        assert_eq!(reply.status, 200, "{wire:?} to {authority}: {}", reply.text());
        let seen = reply.json();
        assert_eq!(seen["name"], "server");
        assert_eq!(seen["path"], "/path?q=1");
        assert_eq!(seen["bodyBytes"], 100_000);
        assert_eq!(seen["version"], arrives_as, "{wire:?} to {authority}");
        let headers = seen["headers"].to_string();
        assert!(headers.contains(r#"["x-kept","as it was"]"#), "{headers}");
        assert!(headers.contains("x-request-id"), "{headers}");
        // HTTP/2 may bring cookies in one line or in several (RFC 9113 §8.2.3), HTTP/1 may not.
        assert!(headers.contains("a=1") && headers.contains("b=2"), "{headers}");
        let certified = headers.contains("x-forwarded-client-cert");
        assert_eq!(certified, hop == Hop::Mtls, "{wire:?} to {authority}: {headers}");
    }

    /// What has no content has none, and a status of the application is its own.
    async fn answers_keep_their_kind(&self, wire: Wire, authority: &str) {
        let to = SocketAddr::new(self.client_ip, HTTP_PROXY_PORT);
        for (method, path, status) in [
            (Method::HEAD, "/", 200),
            (Method::GET, "/status/204", 204),
            (Method::GET, "/status/304", 304),
            (Method::GET, "/status/418", 418),
            (Method::DELETE, "/status/503", 503),
        ] {
            let what = format!("{wire:?} {method} {path} to {authority}");
            let headers = [("host", authority)];
            let reply = client::send(wire, to, method.clone(), path, &headers, Bytes::new())
                .await
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(reply.status, status, "{what}: {}", reply.text());
            let bodiless = method == Method::HEAD || matches!(status, 204 | 304);
            assert_eq!(reply.body.is_empty(), bodiless, "{what}: {}", reply.text());
        }
    }

    async fn grpc_is_carried(&self) {
        let to = SocketAddr::new(self.client_ip, HTTP_PROXY_PORT);
        let headers =
            [("host", "server:8082"), ("content-type", "application/grpc"), ("te", "trailers")];
        let message = Bytes::from_static(b"\0\0\0\0\x05hello");
        let reply =
            client::send(Wire::H2, to, Method::POST, "/echo.Echo/Unary", &headers, message.clone())
                .await
                .expect("gRPC is answered");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.body, message);
        assert_eq!(reply.trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));
        assert_eq!(reply.trailers.get("x-backend").map(|v| v.as_bytes()), Some(&b"server"[..]));
    }

    async fn tcp_is_carried(&self) {
        let to = SocketAddr::new(self.client_ip, TCP_PORT);
        let mut stream = TcpStream::connect(to).await.expect("the sidecar listens");
        let mut greeting = [0; 7];
        stream.read_exact(&mut greeting).await.expect("the server speaks first");
        assert_eq!(&greeting, b"server\n");
        stream.write_all(b"back and forth").await.expect("written");
        stream.shutdown().await.expect("half closed");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("echoed after the half close");
        assert_eq!(rest, b"back and forth");
    }

    /// STRICT: a client without a certificate gets no answer from the server's sidecar.
    async fn plaintext_is_refused(&self, app: &Backend) {
        let before = app.served();
        let to = SocketAddr::new(self.server_ip, 8080);
        let reply = client::get(to, "/", &[("host", "server:8080")]).await;
        assert!(reply.is_err(), "plaintext got {reply:?}");
        assert_eq!(app.served(), before);
    }

    async fn nothing_was_rejected(&self) {
        let syncz = self.mesh.syncz().await.to_string();
        assert!(!syncz.contains("ERROR"), "{syncz}\n{}", self.mesh.control_output());
        for proxy in [&self.client, &self.server] {
            if let Proxy::Envoy(envoy) = proxy {
                assert_eq!(envoy.rejected().await, 0, "{}", envoy.process.output());
            }
        }
    }
}

/// The place of `client` or `server`.
pub fn place(name: &'static str, ip: IpAddr) -> Place<'static> {
    let labels: &[_] = match name {
        "server" => &[("app", "server"), ("version", "v1")],
        _ => &[("app", "client"), ("version", "v1")],
    };
    Place { kind: "sidecar", name, namespace: "default", service_account: name, ip, labels }
}

fn world(
    client: IpAddr,
    server: IpAddr,
    hop: Hop,
    [http, tcp]: [u16; 2],
    traffic_policy: Option<&str>,
) -> String {
    let (accepts, sends) = match hop {
        Hop::Plain => ("DISABLE", Some("tls: {mode: DISABLE}")),
        // Unasked: both have certificates.
        Hop::Mtls => ("STRICT", None),
    };
    let policy: Vec<&str> = sends.into_iter().chain(traffic_policy).collect();
    let policy = policy.join(", ");
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: default}}
spec:
  selector: {{app: server}}
  ports:
  - {{name: http, port: 8080, targetPort: 8080}}
  - {{name: http2, port: 8081, targetPort: 8081}}
  - {{name: grpc, port: 8082, targetPort: 8082}}
  - {{name: tcp, port: 9000, targetPort: 9000}}
---
apiVersion: v1
kind: Pod
metadata:
  name: server
  namespace: default
  labels: {{app: server, version: v1, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: server}}
status: {{phase: Running, podIP: {server}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: client
  namespace: default
  labels: {{app: client, version: v1, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: client}}
status: {{phase: Running, podIP: {client}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: {accepts}}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server, namespace: default}}
spec: {{host: server, trafficPolicy: {{{policy}}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: server, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: server}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{http}"}}
  - {{port: {{number: 8081, protocol: HTTP2, name: http2}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{http}"}}
  - {{port: {{number: 8082, protocol: GRPC, name: grpc}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{http}"}}
  - {{port: {{number: 9000, protocol: TCP, name: tcp}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{tcp}"}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {server}, port: {{number: 15080, protocol: HTTP, name: http-proxy}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {client}, port: {{number: {HTTP_PROXY_PORT}, protocol: HTTP, name: http-proxy}}}}
  - {{hosts: ["./server.default.svc.cluster.local"], captureMode: NONE, bind: {client}, port: {{number: {TCP_PORT}, protocol: TCP, name: tcp}}}}
"#
    )
}
