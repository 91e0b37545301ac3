//! One control plane and two of each proxy: a sidecar and a gateway of ours, and the same of stock
//! Envoy, in front of the same applications.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use weft_testkit::{client, wait};

use super::app::Apps;
use crate::harness::{self, Flavor, Mesh, Place, Proxy};

const SIDECAR_PORT: u16 = 15080;
const GATEWAY_PORT: u16 = 10080;
const PATIENCE: Duration = Duration::from_secs(30);

/// Where requests enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Sidecar,
    Gateway,
}

/// The proxies compared.
pub const TWINS: [&str; 2] = ["weft", "envoy"];

pub struct World {
    pub apps: Apps,
    mesh: Mesh,
    /// By [`TWINS`]: the sidecar's address and the gateway's.
    fronts: [(SocketAddr, SocketAddr); 2],
    proxies: Vec<Proxy>,
}

impl World {
    /// `services` are names that VirtualServices for sidecars may be written for.
    pub async fn start(services: &[String]) -> Self {
        let mut apps = Apps::default();
        let mut yaml = base(services);
        for (pod, app, version) in [
            ("a1", "app-a", "v1"),
            ("a2", "app-a", "v2"),
            ("b", "app-b", "v1"),
            ("c", "app-c", "v1"),
        ] {
            let ip = harness::address();
            apps.start(pod, &format!("{ip}:8080")).await;
            pod_yaml(
                &mut yaml,
                pod,
                &format!("{{app: {app}, version: {version}}}"),
                &ip.to_string(),
            );
        }
        let places = TWINS.map(|twin| [("sidecar", twin), ("router", twin)]).concat();
        let ips: Vec<_> = places.iter().map(|_| harness::address()).collect();
        for ((kind, twin), ip) in places.iter().zip(&ips) {
            let labels = format!("{{app: {kind}, twin: {twin}, team: blue}}");
            pod_yaml(&mut yaml, &format!("{kind}-{twin}"), &labels, &ip.to_string());
            if *kind == "sidecar" {
                sidecar_yaml(&mut yaml, twin, &ip.to_string());
            }
        }
        let mesh = Mesh::start(&yaml).await;
        let mut proxies = Vec::new();
        for ((kind, twin), ip) in places.iter().zip(&ips) {
            let flavor = if *twin == "weft" { Flavor::Weft } else { Flavor::Envoy };
            let place = Place {
                kind,
                name: &format!("{kind}-{twin}"),
                namespace: "default",
                service_account: "default",
                ip: *ip,
                labels: &[("app", kind), ("twin", twin), ("team", "blue")],
            };
            proxies.push(mesh.proxy(flavor, &place).await);
        }
        let front = |i: usize| {
            (SocketAddr::new(ips[i], SIDECAR_PORT), SocketAddr::new(ips[i + 1], GATEWAY_PORT))
        };
        Self { apps, mesh, fronts: [front(0), front(2)], proxies }
    }

    pub fn front(&self, twin: usize, edge: Edge) -> SocketAddr {
        let (sidecar, gateway) = self.fronts[twin];
        if edge == Edge::Sidecar { sidecar } else { gateway }
    }

    /// Replaces the resources under test and waits until every proxy routes by them.
    pub async fn apply(&self, round: u64, resources: &[Value]) {
        let mut text = String::new();
        let marker = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "marker", "namespace": "default"},
            "spec": {
                "hosts": ["marker", "marker.test"],
                "gateways": ["front", "mesh"],
                "http": [{"directResponse": {"status": 200, "body": {"string": format!("{round}")}}}],
            },
        });
        for resource in resources.iter().chain([&marker]) {
            let _ = write!(text, "---\n{resource:#}\n");
        }
        self.mesh.write("generated.yaml", &text);
        for (twin, edge) in
            (0..2).flat_map(|twin| [Edge::Sidecar, Edge::Gateway].map(|edge| (twin, edge)))
        {
            let to = self.front(twin, edge);
            let host = if edge == Edge::Sidecar { "marker" } else { "marker.test" };
            wait::until(
                &format!("round {round} at {} {edge:?}", TWINS[twin]),
                PATIENCE,
                || async {
                    let reply = client::get(to, "/", &[("host", host)]).await.ok()?;
                    (reply.text() == round.to_string()).then_some(())
                },
            )
            .await;
        }
        let syncz = self.mesh.syncz().await.to_string();
        assert!(!syncz.contains("ERROR"), "round {round}: a proxy refused: {syncz}");
        for proxy in &self.proxies {
            if let Proxy::Envoy(envoy) = proxy {
                assert_eq!(envoy.rejected().await, 0, "round {round}: {}", envoy.process.output());
            }
        }
    }
}

fn base(services: &[String]) -> String {
    let mut yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {{name: front, namespace: default}}\n\
         spec: {{selector: {{app: router}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: front, namespace: default}}\n\
         spec: {{selector: {{app: router}}, ports: [{{name: http, port: 80, targetPort: {GATEWAY_PORT}}}]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: app-a, namespace: default}}\n\
         spec: {{host: app-a, subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}, \
         {{name: nobody, labels: {{version: v9}}}}]}}\n"
    );
    for (app, port_name) in [("app-a", "http"), ("app-b", "http"), ("app-c", "http2")] {
        service(&mut yaml, app, app, port_name);
    }
    for name in services.iter().map(String::as_str).chain(["marker"]) {
        service(&mut yaml, name, "app-b", "http");
    }
    yaml
}

fn service(yaml: &mut String, name: &str, app: &str, port_name: &str) {
    let _ = write!(
        yaml,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{app: {app}}}, ports: [{{name: {port_name}, port: 80, targetPort: 8080}}]}}\n"
    );
}

pub fn pod_yaml(yaml: &mut String, name: &str, labels: &str, ip: &str) {
    let _ = write!(
        yaml,
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {labels}}}\n\
         spec: {{serviceAccountName: default}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    );
}

fn sidecar_yaml(yaml: &mut String, twin: &str, ip: &str) {
    let _ = write!(
        yaml,
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {twin}, namespace: default}}\n\
         spec: {{workloadSelector: {{labels: {{app: sidecar, twin: {twin}}}}}, egress: [{{hosts: ['./*'], \
         captureMode: NONE, bind: {ip}, port: {{number: {SIDECAR_PORT}, protocol: HTTP, name: http}}}}]}}\n"
    );
}
