//! The control plane dies and comes back under load, or what it reads does; a proxy starts while it is
//! away.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use weft_testkit::kube::{Server, istio};
use weft_testkit::{backend, client};

use crate::{
    cast::{self, place, pod},
    harness::{self, Flavor, Mesh, Place},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_data_plane_does_not_notice() {
    let app = backend::http("app", "127.0.0.1:0").await;
    let (gateway_ip, app_ip) = (harness::address(), harness::address());
    let mut mesh = Mesh::start(&world(gateway_ip, app_ip, app.address.port())).await;
    let _sidecar = mesh.proxy(Flavor::Weft, &place("app", app_ip)).await;
    let gateway_place = place("gateway", gateway_ip);
    let mut gateway = mesh.proxy(Flavor::Weft, &gateway_place).await;
    let to = SocketAddr::new(gateway_ip, 8080);
    until_served(to).await;

    let load = Load::start(to);
    load.more(50).await;
    mesh.kill_control();
    load.more(200).await;
    mesh.start_control().await;
    load.more(200).await;
    let (served, failed) = load.stop().await;
    assert!(served >= 450, "{served} served");
    assert_eq!(failed, 0, "requests failed while the control plane was restarted");

    // A proxy that starts while the control plane is away serves from what it saved.
    mesh.kill_control();
    gateway.process().kill();
    drop(gateway);
    let gateway = mesh.start_restarted(&gateway_place);
    gateway.ready().await;
    until_served(to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_dies_is_not_noticed_either() {
    let app = backend::http("app", "127.0.0.1:0").await;
    let (gateway_ip, app_ip) = (harness::address(), harness::address());
    let world = world(gateway_ip, app_ip, app.address.port());
    let objects: Vec<Value> =
        world.split("\n---").map(|one| serde_saphyr::from_str(one).expect("YAML")).collect();
    let objects: Vec<Value> = objects.into_iter().filter(|one: &Value| !one.is_null()).collect();
    let mut server = Server::start(istio()).await;
    objects.iter().for_each(|object| server.apply(object));
    let mesh = Mesh::on(&server, &[]).await;
    let _sidecar = mesh.proxy(Flavor::Weft, &place("app", app_ip)).await;
    let _gateway = mesh.proxy(Flavor::Weft, &place("gateway", gateway_ip)).await;
    let to = SocketAddr::new(gateway_ip, 8080);
    until_served(to).await;

    let load = Load::start(to);
    load.more(50).await;
    server.kill();
    load.more(200).await;
    // A proxy that starts meanwhile gets the last snapshot.
    let late_ip = harness::address();
    let late = Place { name: "late", ..place("gateway", late_ip) };
    let _late = mesh.proxy(Flavor::Weft, &late).await;
    until_served(SocketAddr::new(late_ip, 8080)).await;

    // What changes with its return reaches proxies.
    let rule = objects.iter().find(|one| one["kind"] == "VirtualService");
    let mut rule = rule.expect("the rule").clone();
    let teapot = json!({"match": [{"uri": {"prefix": "/new"}}], "directResponse": {"status": 418}});
    rule["spec"]["http"].as_array_mut().expect("a list").insert(0, teapot);
    server.apply(&rule);
    server.compact();
    server.revive().await;
    weft_testkit::wait::until("the change", Duration::from_secs(60), || async move {
        let reply = client::get(to, "/new", &[("host", "wallstreetcn.com")]).await.ok()?;
        (reply.status == 418).then_some(())
    })
    .await;
    let (served, failed) = load.stop().await;
    assert!(served >= 250, "{served} served");
    assert_eq!(failed, 0, "requests failed while the API server was away");
}

pub async fn until_served(to: SocketAddr) {
    weft_testkit::wait::until(
        "the gateway to serve the app",
        Duration::from_secs(20),
        || async move {
            let reply = client::get(to, "/", &[("host", "wallstreetcn.com")]).await.ok()?;
            (reply.status == 200 && reply.json()["name"] == "app").then_some(())
        },
    )
    .await;
}

/// Requests one after another until stopped; failures are counted.
pub struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    pub fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (served, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ended, ok, bad) = (stop.clone(), served.clone(), failed.clone());
        let task = tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                let reply = client::get(to, "/", &[("host", "wallstreetcn.com")]).await;
                if reply.is_ok_and(|reply| reply.status == 200) {
                    ok.fetch_add(1, Ordering::Relaxed);
                } else {
                    bad.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, served, failed, task }
    }

    /// Waits for `count` further requests.
    pub async fn more(&self, count: u64) {
        let from = self.done();
        weft_testkit::wait::until("load to go on", Duration::from_secs(30), || async {
            (self.done() >= from + count).then_some(())
        })
        .await;
    }

    fn done(&self) -> u64 {
        self.served.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed)
    }

    pub async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load does not panic");
        (self.served.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

pub fn world(gateway: IpAddr, app: IpAddr, port: u16) -> String {
    let world = format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: default}}
spec: {{selector: {{app: app}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: app, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: app}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {app}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{port}"}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {app}, port: {{number: 15080, protocol: HTTP, name: http}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: 8080, name: http, protocol: HTTP}}, hosts: [wallstreetcn.com]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: app, namespace: default}}
spec:
  hosts: [wallstreetcn.com]
  gateways: [gateway]
  http:
  - route: [{{destination: {{host: app, port: {{number: 80}}}}}}]
"#
    );
    [&world, cast::STRICT, &pod("app", app), &pod("gateway", gateway)].concat()
}
