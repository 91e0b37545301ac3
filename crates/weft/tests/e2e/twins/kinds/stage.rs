//! The world of this test: five pods that are HTTP and stream applications, and the four proxies.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use weft_testkit::{client, wait};

use super::super::app::Apps;
use super::super::world::{TWINS, pod_yaml};
use super::{At, HTTP, behind};
use crate::harness::{self, Flavor, Mesh, Place, Proxy};

const PATIENCE: Duration = Duration::from_secs(30);
pub const PODS: [&str; 5] = ["d1", "d2", "d3", "d4", "d5"];
/// Services over all pods, for DestinationRules.
pub const SERVICES: usize = 6;
/// Where applications take streams.
pub const STREAMS: u16 = 7000;

pub struct Stage {
    pub apps: Apps,
    pub sidecars: [IpAddr; 2],
    pub gateways: [IpAddr; 2],
    pods: Vec<IpAddr>,
    mesh: Mesh,
    _proxies: Vec<Proxy>,
}

impl Stage {
    pub async fn start() -> Stage {
        let mut apps = Apps::default();
        let mut yaml = BASE.to_owned();
        let mut pods = Vec::new();
        for (number, pod) in PODS.iter().enumerate() {
            let ip = harness::address();
            apps.start(pod, &format!("{ip}:8080")).await;
            serve_streams(pod, ip, STREAMS).await;
            let parity = if number % 2 == 0 { "odd" } else { "even" };
            let labels = format!("{{app: app-d, version: v{}, parity: {parity}}}", number + 1);
            pod_yaml(&mut yaml, pod, &labels, &ip.to_string());
            pods.push(ip);
        }
        for number in 0..SERVICES {
            let _ = write!(
                yaml,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: default}}\n\
                 spec: {{selector: {{app: app-d}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
            );
        }
        let sidecars = TWINS.map(|_| harness::address());
        let gateways = TWINS.map(|_| harness::address());
        for (twin, name) in TWINS.iter().enumerate() {
            let ip = sidecars[twin];
            apps.start("own", &format!("{ip}:8081")).await;
            serve_streams("own", ip, 7001).await;
            let labels = |app: &str| format!("{{app: {app}, twin: {name}, team: blue}}");
            pod_yaml(&mut yaml, &format!("sidecar-{name}"), &labels("sidecar"), &ip.to_string());
            let gateway = gateways[twin].to_string();
            pod_yaml(&mut yaml, &format!("router-{name}"), &labels("router"), &gateway);
            let _ = write!(yaml, "---\n{:#}\n", sidecar(name, ip));
        }
        let mesh = Mesh::start(&yaml).await;
        let mut proxies = Vec::new();
        for (twin, name) in TWINS.iter().enumerate() {
            let flavor = if *name == "weft" { Flavor::Weft } else { Flavor::Envoy };
            for (kind, ip) in [("sidecar", sidecars[twin]), ("router", gateways[twin])] {
                let place = Place {
                    kind,
                    name: &format!("{kind}-{name}"),
                    namespace: "default",
                    service_account: "default",
                    ip,
                    labels: &[("app", kind), ("twin", name), ("team", "blue")],
                };
                proxies.push(mesh.proxy(flavor, &place).await);
            }
        }
        Stage { apps, sidecars, gateways, pods, mesh, _proxies: proxies }
    }

    /// Replaces the resources under test and waits until every proxy routes by them; tells which
    /// of them refused something. A text `POD:d1` in them becomes the pod's address.
    pub async fn apply(&self, round: u64, resources: &[Value]) -> Vec<String> {
        let marker = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "marker", "namespace": "default"},
            "spec": {
                "hosts": ["marker.test"],
                "gateways": ["marker", "mesh"],
                "http": [{"directResponse": {"status": 200, "body": {"string": format!("{round}")}}}],
            },
        });
        let mut text = String::new();
        for resource in resources.iter().chain([&marker]) {
            let _ = write!(text, "---\n{resource:#}\n");
        }
        for (pod, ip) in PODS.iter().zip(&self.pods) {
            text = text.replace(&format!("POD:{pod}"), &ip.to_string());
        }
        self.mesh.write("generated.yaml", &text);
        for (twin, at) in (0..2).flat_map(|twin| [HTTP, behind(80)].map(|at: At| (twin, at))) {
            let to = at.twin(self, twin);
            let what = format!("round {round} at {} {at:?}", TWINS[twin]);
            wait::until(&what, PATIENCE, || async {
                let reply = client::get(to, "/", &[("host", "marker.test")]).await.ok()?;
                (reply.text() == round.to_string()).then_some(())
            })
            .await;
        }
        let syncz = self.mesh.syncz().await;
        let mut refused = Vec::new();
        for proxy in syncz.as_array().into_iter().flatten() {
            for (ty, status) in proxy["types"].as_object().into_iter().flatten() {
                if status["status"] == "ERROR" {
                    refused.push(format!("{} {ty}: {}", proxy["proxy"], status["error"]));
                }
            }
        }
        refused
    }
}

/// Says who it is to whatever it hears first.
async fn serve_streams(name: &'static str, ip: IpAddr, port: u16) {
    let listener = TcpListener::bind((ip, port)).await.expect("the application's port is free");
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let mut first = [0; 2048];
                if matches!(stream.read(&mut first).await, Ok(1..)) {
                    // A client that is gone need not know.
                    let _ = stream.write_all(format!("app {name}").as_bytes()).await;
                }
            });
        }
    });
}

fn sidecar(twin: &str, ip: IpAddr) -> Value {
    let egress = |port: u16, protocol: &str| {
        json!({
            "hosts": ["./*"], "captureMode": "NONE", "bind": ip,
            "port": {"number": port, "protocol": protocol, "name": protocol.to_lowercase()},
        })
    };
    let ingress = |port: u16, protocol: &str, to: u16| {
        json!({
            "captureMode": "NONE", "bind": ip, "defaultEndpoint": format!("0.0.0.0:{to}"),
            "port": {"number": port, "protocol": protocol, "name": protocol.to_lowercase()},
        })
    };
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": twin, "namespace": "default"},
        "spec": {
            "workloadSelector": {"labels": {"app": "sidecar", "twin": twin}},
            "ingress": [ingress(15090, "HTTP", 8081), ingress(15091, "TCP", 7001)],
            "egress": [egress(15080, "HTTP"), egress(15443, "TLS"), egress(15700, "TCP")],
        },
    })
}

const BASE: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: marker, namespace: default}
spec: {selector: {app: router}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [marker.test]}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: default}
spec:
  selector: {app: router}
  ports:
  - {name: http, port: 80, targetPort: 10080}
  - {name: http-more, port: 8080, targetPort: 10081}
  - {name: tcp, port: 31400, targetPort: 10090}
  - {name: tcp-more, port: 31401, targetPort: 10091}
  - {name: tls, port: 8443, targetPort: 10443}
---
apiVersion: v1
kind: Service
metadata: {name: bytes, namespace: default}
spec: {selector: {app: app-d}, ports: [{name: tcp, port: 15700, targetPort: 7000}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bytes, namespace: default}
spec:
  host: bytes
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
  - {name: nobody, labels: {version: v9}}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: default}
spec: {selector: {app: app-d, version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: default}
spec: {selector: {app: app-d, version: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}
";
