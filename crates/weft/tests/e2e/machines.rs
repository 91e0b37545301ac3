//! A machine outside Kubernetes joins with the files of `weft vm`: its proxy registers it, it is called
//! over mutual TLS, leaves its services while it is not well, and is gone when its proxy is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use weft_testkit::kube::{Server, istio};
use weft_testkit::process::Process;
use weft_testkit::{backend, client, free_port, wait};

use crate::cast::{self, place, pod};
use crate::harness::{self, Flavor, Mesh, Proxy, WEFT};

/// How long one step may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A gateway before Service `legacy`, whose workloads register themselves.
fn world(gateway: IpAddr, machine: IpAddr, app: u16, probe: u16) -> String {
    let world = format!(
        r#"
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: legacy, namespace: default}}
spec:
  metadata: {{labels: {{app: legacy}}, annotations: {{made-by: us}}}}
  template: {{serviceAccount: legacy, ports: {{http: 8080}}}}
  probe: {{tcpSocket: {{port: {probe}}}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: legacy, namespace: default}}
spec: {{selector: {{app: legacy}}, ports: [{{name: http, port: 80, targetPort: 9999}}]}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: legacy, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: legacy}}}}
  ingress:
  - {{port: {{number: 8080, protocol: HTTP, name: http}}, bind: {machine}, captureMode: NONE, defaultEndpoint: "127.0.0.1:{app}"}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {machine}, port: {{number: 15080, protocol: HTTP, name: http}}}}
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
metadata: {{name: legacy, namespace: default}}
spec:
  hosts: [wallstreetcn.com]
  gateways: [gateway]
  http:
  - route: [{{destination: {{host: legacy, port: {{number: 80}}}}}}]
"#
    );
    [&world, cast::STRICT, &pod("gateway", gateway)].concat()
}

/// The machine: what `weft vm` wrote for it, and the proxy that was started with it.
struct Machine {
    folder: PathBuf,
    ip: IpAddr,
    admin: SocketAddr,
    proxy: Option<Process>,
}

impl Machine {
    fn configured(mesh: &Mesh, group: &str, ip: IpAddr) -> Machine {
        let folder = mesh.folder.path().join("machine");
        let file = mesh.folder.path().join("group.yaml");
        std::fs::write(&file, group).expect("the folder is writable");
        let output = Command::new(WEFT)
            .args(["vm", "--control-address=127.0.0.1", "--no-dns-capture"])
            .arg(format!("--filename={}", file.display()))
            .arg(format!("--state-dir={}", mesh.state().display()))
            .arg(format!("--output={}", folder.display()))
            .arg(format!("--ip={ip}"))
            .output()
            .expect("weft starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let admin = (Ipv4Addr::LOCALHOST, free_port()).into();
        Machine { folder, ip, admin, proxy: None }
    }

    fn written(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).expect(name)
    }

    /// Starts the proxy with the variables of `cluster.env`, but for this test's places and ports.
    fn start(&mut self, mesh: &Mesh) {
        let text = self.written("cluster.env");
        let variables: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.split_once('=')?;
                Some((name, value.trim_matches('\'')))
            })
            .filter(|(name, _)| !name.starts_with("WEFT_") || *name == "WEFT_HEALTH_PROBE")
            .collect();
        let args = [
            "proxy".to_owned(),
            "sidecar".to_owned(),
            format!("--xds={}", mesh.xds),
            "--name=machine".to_owned(),
            "--interception=none".to_owned(),
            format!("--token-file={}", self.folder.join("istio-token").display()),
            format!("--admin-address={}", self.admin),
            "--concurrency=1".to_owned(),
        ];
        let folder = mesh.folder.path();
        self.proxy =
            Some(Process::start_with("machine", folder, Path::new(WEFT), &args, &variables));
    }
}

async fn status(to: SocketAddr) -> u16 {
    let reply = client::get(to, "/", &[("host", "wallstreetcn.com")]).await;
    reply.map(|reply| reply.status).unwrap_or_default()
}

async fn until_status(to: SocketAddr, wanted: u16, why: &str) {
    wait::until(why, LIMIT, || async move { (status(to).await == wanted).then_some(()) }).await;
}

async fn joins_is_well_or_not_and_leaves(
    mesh: &Mesh,
    (gateway, machine, app, probe): (IpAddr, IpAddr, u16, u16),
    entry: impl Fn() -> Option<Value>,
) {
    let _gateway: Proxy = mesh.proxy(Flavor::Weft, &place("gateway", gateway)).await;
    let to = SocketAddr::new(gateway, 8080);
    until_status(to, 503, "the gateway to know of nobody").await;

    let group = world(gateway, machine, app, probe);
    let mut machine = Machine::configured(mesh, &group, machine);
    for file in ["mesh.yaml", "root-cert.pem", "hosts", "weft-proxy.service"] {
        assert!(!machine.written(file).is_empty(), "{file}");
    }
    // Registered, but nobody knows whether it is well.
    machine.start(mesh);
    let admin = machine.admin;
    wait::until("the machine's proxy to be ready", LIMIT, || async move {
        let reply = client::get(admin, "/ready", &[]).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
    assert_eq!(status(to).await, 503, "its probe has not succeeded");
    let probed = TcpListener::bind((Ipv4Addr::LOCALHOST, probe)).await.expect("the port is free");
    until_status(to, 200, "the machine to be called").await;
    let reply = client::get(to, "/", &[("host", "wallstreetcn.com")]).await.expect("an answer");
    let caller = "URI=spiffe://cluster.local/ns/default/sa/gateway";
    assert!(reply.text().contains(caller), "mutual TLS: {}", reply.text());
    if let Some(entry) = entry() {
        let annotations = &entry["metadata"]["annotations"];
        assert_eq!(annotations["istio.io/autoRegistrationGroup"], "legacy", "{entry}");
        assert_eq!(annotations["made-by"], "us", "{entry}");
        assert_eq!(entry["spec"]["address"], machine.ip.to_string(), "{entry}");
        assert_eq!(entry["status"]["conditions"][0]["status"], "True", "{entry}");
    }

    drop(probed);
    until_status(to, 503, "the unwell machine to be left out").await;
    let probed = TcpListener::bind((Ipv4Addr::LOCALHOST, probe)).await.expect("the port is free");
    until_status(to, 200, "the machine to be called again").await;

    // Back within the grace period it is as it was; gone for longer it is no more.
    machine.proxy.take();
    machine.start(mesh);
    until_status(to, 200, "the machine to be back").await;
    machine.proxy.take();
    until_status(to, 503, "the machine to be gone").await;
    wait::until("its entry to be gone", LIMIT, || async { entry().is_none().then_some(()) }).await;
    drop(probed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_is_well_or_not_and_leaves() {
    let app = backend::http("legacy", "127.0.0.1:0").await;
    let (gateway, machine) = (harness::address(), harness::address());
    let (port, probe) = (app.address.port(), free_port());
    let mesh = Mesh::start(&world(gateway, machine, port, probe)).await;
    joins_is_well_or_not_and_leaves(&mesh, (gateway, machine, port, probe), || None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_entry_is_written_into_the_cluster_and_taken_away() {
    let app = backend::http("legacy", "127.0.0.1:0").await;
    let (gateway, machine) = (harness::address(), harness::address());
    let (port, probe) = (app.address.port(), free_port());
    let world = world(gateway, machine, port, probe);
    let server = Server::start(istio()).await;
    for one in world.split("\n---") {
        let object: Value = serde_saphyr::from_str(one).expect("YAML");
        if !object.is_null() {
            server.apply(&object);
        }
    }
    let mesh = Mesh::on(&server, &[]).await;
    let entry = || server.get("workloadentries", "default", &format!("legacy-{machine}"));
    joins_is_well_or_not_and_leaves(&mesh, (gateway, machine, port, probe), entry).await;
}
