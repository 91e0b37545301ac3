//! TLS of the Gateway API end to end, on stock Envoy and on our proxy: certificates from Secrets,
//! TLS passed on by SNI, TLS towards backends and what happens when they cannot be trusted.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_testkit::{
    backend,
    client::{Connection, Wire},
    peer, wait,
};

use crate::harness::{self, Flavor, Mesh, Place};

const SETTLE: Duration = Duration::from_secs(20);
/// Pod ports behind the gateway's ports 443 and 8443.
const HTTPS: u16 = 10443;
const PASSED: u16 = 18443;
const SECURE: u16 = 8443;

const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: default}
spec:
  gatewayClassName: istio
  listeners:
  - {name: https, port: 443, protocol: HTTPS, hostname: web.example.com, tls: {certificateRefs: [{name: web, namespace: certs}]}}
  - {name: pass, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: web, namespace: certs}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}]
  to: [{group: '', kind: Secret, name: web}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: web, sectionName: https}]
  rules:
  - {matches: [{path: {value: /trusted}}], backendRefs: [{name: trusted, port: 8443}]}
  - {matches: [{path: {value: /other}}], backendRefs: [{name: distrusted, port: 8443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: pass, namespace: default}
spec:
  parentRefs: [{name: web, sectionName: pass}]
  hostnames: [backend.example.com]
  rules: [{backendRefs: [{name: passed, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: trusted, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: trusted}]
  validation: {hostname: backend.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: backend}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: distrusted, namespace: default}
spec:
  targetRefs: [{group: '', kind: Service, name: distrusted}]
  validation: {hostname: other.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: backend}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn gateway_api_tls_on_weft() {
    run(Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_api_tls_on_envoy() {
    if peer::envoy("gateway_api_tls_on_envoy").is_some() {
        run(Flavor::Envoy).await;
    }
}

async fn run(flavor: Flavor) {
    let (edge, app) = (harness::address(), harness::address());
    let (web, backend) = (Pair::new("web.example.com"), Pair::new("backend.example.com"));
    let plain = backend::http("secure", &format!("{app}:8080")).await;
    tokio::spawn(tls_before(SocketAddr::new(app, SECURE), plain.address, backend.server()));
    let mesh = Mesh::start(&yaml(edge, app, &web, &backend)).await;
    let labels = [("gateway.networking.k8s.io/gateway-name", "web")];
    let place = Place {
        kind: "router",
        name: "web",
        namespace: "default",
        service_account: "default",
        ip: edge,
        labels: &labels,
    };
    let _proxy = mesh.proxy(flavor, &place).await;

    let https = SocketAddr::new(edge, HTTPS);
    let get = |path: &'static str| {
        let web = &web;
        async move {
            let mut connection = web.connect(https, "web.example.com").await.ok()?;
            let reply = connection.get(path, &[("host", "web.example.com")]).await.ok()?;
            Some((reply.status, reply.header("x-backend").to_owned()))
        }
    };
    wait::until("the listener with its certificate", SETTLE, || get("/trusted")).await;
    assert_eq!(get("/trusted").await, Some((200, "secure".to_owned())));
    // The certificate's name is not the one the policy wants: no request in plain, none at all.
    assert_eq!(get("/other").await, Some((503, String::new())));

    // The backend's own certificate comes through, and no other server name is served.
    let passed = SocketAddr::new(edge, PASSED);
    let mut connection = backend.connect(passed, "backend.example.com").await.expect("passed on");
    let reply = connection.get("/", &[("host", "backend.example.com")]).await.expect("answered");
    assert_eq!((reply.status, reply.header("x-backend")), (200, "secure"));
    assert!(backend.connect(passed, "web.example.com").await.is_err());
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

    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key);
        Arc::new(config.expect("a certificate and its key"))
    }

    /// A connection whose server must show this certificate.
    async fn connect(&self, to: SocketAddr, name: &'static str) -> anyhow::Result<Connection> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(to).await?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name.try_into()?, stream).await?;
        Connection::open(Wire::H1, stream).await
    }
}

/// Ends TLS at `at` and hands the bytes to `to`.
async fn tls_before(at: SocketAddr, to: SocketAddr, config: Arc<ServerConfig>) {
    let listener = TcpListener::bind(at).await.expect("the address is free");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let acceptor = TlsAcceptor::from(config.clone());
        tokio::spawn(async move {
            let mut client = acceptor.accept(stream).await?;
            let mut server = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

fn yaml(edge: IpAddr, app: IpAddr, web: &Pair, backend: &Pair) -> String {
    let mut yaml = RULES.to_owned();
    let service = |name: &str, selector: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{selector: {{{selector}}}, ports: [{ports}]}}\n"
        )
    };
    let pod = |name: &str, labels: &str, ip: IpAddr| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}\n\
             spec: {{serviceAccountName: default}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
        )
    };
    let made = "gateway.networking.k8s.io/gateway-name: web";
    let ports = format!(
        "{{name: https, port: 443, targetPort: {HTTPS}}}, {{name: tls, port: 8443, targetPort: {PASSED}}}"
    );
    yaml.push_str(&service("web-istio", made, &ports));
    yaml.push_str(&pod("web", made, edge));
    let port = format!("{{name: http, port: 8443, targetPort: {SECURE}}}");
    for name in ["trusted", "distrusted", "passed"] {
        yaml.push_str(&service(name, "app: secure", &port));
    }
    yaml.push_str(&pod("secure", "app: secure", app));
    let indented =
        |pem: String| -> String { pem.lines().map(|line| format!("    {line}\n")).collect() };
    yaml.push_str(&format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: web, namespace: certs}}\nstringData:\n  \
         tls.crt: |\n{}  tls.key: |\n{}",
        indented(web.certificate.pem()),
        indented(web.key.serialize_pem())
    ));
    yaml.push_str(&format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: backend, namespace: default}}\ndata:\n  \
         ca.crt: |\n{}",
        indented(backend.certificate.pem())
    ));
    yaml
}
