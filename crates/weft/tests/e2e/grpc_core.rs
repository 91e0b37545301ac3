//! grpc's own core (Python) as client and as server: every mode of call, cancelled, late, large,
//! with binary metadata and with every status, through two sidecars (mTLS), through one (plain) and
//! through a gateway, with stock Envoy as either proxy. gRPC messages are counted as Istio does.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use weft_testkit::{client, peer, process::Process, wait};

use crate::{
    cast::{self, place, pod},
    harness::{self, Flavor, Mesh, Place, Proxy},
};

pub const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/grpc_core.py");
pub const SIDECAR_PORT: u16 = 15080;
pub const GATEWAY_PORT: u16 = 8443;
/// Python starts slowly on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn every_call_passes_weft_and_weft() {
    let Some(python) = peer::python("every_call_passes_weft_and_weft") else { return };
    let ways = Ways::start(python, Flavor::Weft, Flavor::Weft).await;
    ways.run(&["call", &ways.mtls(), &ways.plain(), &ways.gateway()]).await;
    ways.messages_are_counted().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_passes_weft_and_envoy() {
    let name = "every_call_passes_weft_and_envoy";
    let (Some(python), Some(_)) = (peer::python(name), peer::envoy(name)) else { return };
    let ways = Ways::start(python, Flavor::Weft, Flavor::Envoy).await;
    ways.run(&["call-beside-envoy", &ways.mtls(), &ways.gateway()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_passes_envoy_and_weft() {
    let name = "every_call_passes_envoy_and_weft";
    let (Some(python), Some(_)) = (peer::python(name), peer::envoy(name)) else { return };
    let ways = Ways::start(python, Flavor::Envoy, Flavor::Weft).await;
    ways.run(&["call-beside-envoy", &ways.mtls(), &ways.gateway()]).await;
}

/// A proxy that may not wait any longer cuts off what still runs: what grpc's client makes of it.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_cut_off_have_a_status() {
    let Some(python) = peer::python("calls_that_are_cut_off_have_a_status") else { return };
    let leaving = ["--drain-time=100ms", "--termination-grace=300ms"];
    let mut ways = Ways::start_with(python.clone(), Flavor::Weft, Flavor::Weft, &leaving).await;
    let [gateway, mtls] = [ways.gateway(), ways.mtls()];
    // The connection ends under it: another one may do.
    let lost = ["chat UNAVAILABLE", "feed UNAVAILABLE", "collect UNAVAILABLE"];
    assert_eq!(ways.cut(&gateway, |ways| &mut ways.gateway).await, lost);
    // The proxy before it lives and answers; a response that has begun can only be reset.
    let reset = ["chat INTERNAL", "feed INTERNAL", "collect UNAVAILABLE"];
    assert_eq!(ways.cut(&mtls, |ways| &mut ways.server).await, reset);
    ways.server = ways.mesh.proxy_with(&place("server", ways.server_ip), &leaving).await;
    assert_eq!(ways.cut(&mtls, |ways| &mut ways.client).await, lost);

    if peer::envoy("calls_that_are_cut_off_have_a_status").is_some() {
        let mut ways = Ways::start_with(python, Flavor::Envoy, Flavor::Weft, &leaving).await;
        let mtls = ways.mtls();
        assert_eq!(ways.cut(&mtls, |ways| &mut ways.server).await, reset);
    }
}

/// The ways from one client to one server.
struct Ways {
    mesh: Mesh,
    python: PathBuf,
    client_ip: IpAddr,
    server_ip: IpAddr,
    gateway_ip: IpAddr,
    client: Proxy,
    server: Proxy,
    gateway: Proxy,
    _app: Process,
}

impl Ways {
    /// `near` are the client's sidecar and the gateway, `far` is the server's sidecar.
    async fn start(python: PathBuf, near: Flavor, far: Flavor) -> Ways {
        Self::start_with(python, near, far, &[]).await
    }

    /// `extra`: further options of those that are ours.
    async fn start_with(python: PathBuf, near: Flavor, far: Flavor, extra: &[&str]) -> Ways {
        let [client_ip, server_ip, bare_ip, gateway_ip] = [(); 4].map(|()| harness::address());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port_file = folder.path().join("port");
        let args = ["serve", &port_file.display().to_string(), "127.0.0.1", &bare_ip.to_string()];
        let args: Vec<&str> = [PEER].into_iter().chain(args).collect();
        let app = Process::start("app", folder.path(), &python, &args);
        let port = wait::until("grpc's server to listen", START_LIMIT, || async {
            std::fs::read_to_string(&port_file).ok()?.parse().ok()
        })
        .await;
        let config = folder.path().join("config");
        std::fs::create_dir(&config).expect("a fresh folder");
        let yaml = world(client_ip, server_ip, bare_ip, gateway_ip, port);
        std::fs::write(config.join("mesh.yaml"), yaml).expect("the folder is writable");
        let mesh = Mesh::over(folder, config).await;
        let proxy = async |flavor, place: &Place<'_>| match flavor {
            Flavor::Weft => mesh.proxy_with(place, extra).await,
            Flavor::Envoy => mesh.proxy(flavor, place).await,
        };
        let server = proxy(far, &place("server", server_ip)).await;
        let client = proxy(near, &place("client", client_ip)).await;
        let gateway = proxy(near, &place("gateway", gateway_ip)).await;
        Ways { mesh, python, client_ip, server_ip, gateway_ip, client, server, gateway, _app: app }
    }

    fn mtls(&self) -> String {
        format!("{}=server:8082", SocketAddr::new(self.client_ip, SIDECAR_PORT))
    }

    fn plain(&self) -> String {
        format!("{}=bare:8083", SocketAddr::new(self.client_ip, SIDECAR_PORT))
    }

    fn gateway(&self) -> String {
        format!("{}=core.example", SocketAddr::new(self.gateway_ip, GATEWAY_PORT))
    }

    /// Runs grpc's client; it ends with an error at the first answer that is not as expected.
    async fn run(&self, args: &[&str]) {
        let mut command = Command::new(&self.python);
        command.arg(PEER).args(args);
        let output = tokio::task::spawn_blocking(move || command.output().expect("python starts"))
            .await
            .expect("no panic");
        assert!(
            output.status.success(),
            "{}\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.mesh.control_output()
        );
    }

    /// The status of calls of several modes that were open as a proxy ended.
    async fn cut(&mut self, target: &str, proxy: impl Fn(&mut Ways) -> &mut Proxy) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args = [PEER, "cut", target, folder.path().to_str().expect("UTF-8")];
        let mut calls = Process::start("calls", folder.path(), &self.python, &args);
        wait::until("the calls to be open", START_LIMIT, || {
            assert!(calls.ended().is_none(), "it ended: {}", calls.output());
            let open = folder.path().join("open").exists();
            async move { open.then_some(()) }
        })
        .await;
        let leaving = proxy(self).process();
        leaving.terminate();
        let status = leaving.wait(START_LIMIT);
        assert!(status.success(), "the proxy ended with {status}: {}", leaving.output());
        let status = calls.wait(START_LIMIT);
        assert!(status.success(), "{}", calls.output());
        let two_words = |line: &str| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
        println!("{}", calls.output());
        calls.output().lines().map(two_words).collect()
    }

    /// A stream of 7 messages one way and 8 the other adds just that, on both sides of the hop.
    async fn messages_are_counted(&self) {
        let sides = [(&self.client, "source"), (&self.server, "destination")];
        let mut before = Vec::new();
        for (proxy, reporter) in sides {
            before.push(messages(proxy, reporter).await);
        }
        self.run(&["chat", &self.mtls(), "7"]).await;
        for ((proxy, reporter), (sent, received)) in sides.into_iter().zip(before) {
            wait::until("the messages to be counted", START_LIMIT, || async {
                (messages(proxy, reporter).await == (sent + 7, received + 8)).then_some(())
            })
            .await;
        }
    }
}

/// Messages to the server and back that this proxy has counted, with the labels of both workloads.
async fn messages(proxy: &Proxy, reporter: &str) -> (u64, u64) {
    let text = client::get(proxy.admin(), "/stats/prometheus", &[]).await.expect("metrics").text();
    let labels = [
        format!("reporter=\"{reporter}\""),
        "source_workload=\"client\"".to_owned(),
        "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"".to_owned(),
        "destination_workload=\"server\"".to_owned(),
        "destination_service=\"server.default.svc.cluster.local\"".to_owned(),
        "request_protocol=\"grpc\"".to_owned(),
    ];
    let sum = |name: &str| {
        text.lines()
            .filter(|line| line.starts_with(name))
            .filter(|line| labels.iter().all(|label| line.contains(label.as_str())))
            .map(|line| line.rsplit(' ').next().map_or(0, |n| n.parse::<u64>().expect("a count")))
            .sum()
    };
    (sum("istio_request_messages_total{"), sum("istio_response_messages_total{"))
}

pub fn world(client: IpAddr, server: IpAddr, bare: IpAddr, gateway: IpAddr, port: u16) -> String {
    let world = format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: default}}
spec: {{selector: {{app: server}}, ports: [{{name: grpc, port: 8082, targetPort: 8082}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: bare, namespace: default}}
spec: {{selector: {{app: bare}}, ports: [{{name: grpc, port: 8083, targetPort: {port}}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: server, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: server}}}}
  ingress:
  - {{port: {{number: 8082, protocol: GRPC, name: grpc}}, bind: {server}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{port}"}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {server}, port: {{number: 15080, protocol: HTTP, name: http}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {client}, port: {{number: {SIDECAR_PORT}, protocol: HTTP, name: http}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: {GATEWAY_PORT}, name: grpc, protocol: GRPC}}, hosts: [core.example]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: core, namespace: default}}
spec:
  hosts: [core.example]
  gateways: [gateway]
  http:
  - route: [{{destination: {{host: server, port: {{number: 8082}}}}}}]
"#
    );
    let pods = [
        pod("server", server),
        cast::bare("bare", bare),
        pod("client", client),
        pod("gateway", gateway),
    ];
    [world, cast::STRICT.to_owned(), pods.concat()].concat()
}
