//! Several control planes on one cluster, one of which writes: it dies, or is thought dead, under load.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use weft_testkit::kube::{Server, gateway_api, istio};
use weft_testkit::process::Process;
use weft_testkit::{backend, client, free_port, wait};

use crate::cast::place;
use crate::control_restart::{Load, until_served, world};
use crate::harness::{self, Flavor, Mesh, WEFT};

/// As long as another one may take to lead, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const WRITES: &str = "weft_kubernetes_status_writes_total ";
const RULES: &str = "weft_kubernetes_resources{resource=\"virtualservices.networking.istio.io\"} ";

/// A control plane, as one of several.
struct Replica {
    process: Process,
    xds: SocketAddr,
    http: SocketAddr,
}

impl Replica {
    async fn start(name: &str, folder: &Path, server: &Server, root: &Path) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("a fresh folder");
        let kubeconfig = server.kubeconfig(&folder);
        let loopback = Ipv4Addr::LOCALHOST;
        let (xds, http) =
            (SocketAddr::from((loopback, free_port())), SocketAddr::from((loopback, free_port())));
        let args = [
            "control".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--state-dir={}", root.display()),
            format!("--xds-address={xds}"),
            "--xds-tls-address=127.0.0.1:0".to_owned(),
            format!("--http-address={http}"),
            "--write-status".to_owned(),
            "--write-roots".to_owned(),
            "--lease-duration=3s".to_owned(),
            // Proxies that come back together are taken one after another.
            "--xds-streams-per-second=1".to_owned(),
            format!("--pod-name={name}"),
        ];
        let mut process = Process::start(name, &folder, Path::new(WEFT), &args);
        wait::until("a replica to be ready", LIMIT, || {
            assert!(process.ended().is_none(), "weft control ended: {}", process.output());
            async move {
                let reply = client::get(http, "/ready", &[]).await.ok()?;
                (reply.status == 200).then_some(())
            }
        })
        .await;
        Replica { process, xds, http }
    }

    async fn connected(&self) -> f64 {
        self.metric("pilot_xds ").await
    }

    async fn metric(&self, begin: &str) -> f64 {
        let reply = client::get(self.http, "/metrics", &[]).await.expect("the replica answers");
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(begin)?.trim().parse().ok());
        line.unwrap_or(0.0)
    }
}

/// What a Service is: connections to whoever of these answers, in turn.
async fn service(address: SocketAddr, replicas: Vec<SocketAddr>) {
    let listener = TcpListener::bind(address).await.expect("the port is free");
    let turn = Arc::new(Mutex::new(0));
    loop {
        let Ok((mut near, _)) = listener.accept().await else { continue };
        let (replicas, turn) = (replicas.clone(), turn.clone());
        tokio::spawn(async move {
            for _ in 0..replicas.len() {
                let next = {
                    let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    *turn += 1;
                    replicas[*turn % replicas.len()]
                };
                if let Ok(mut far) = TcpStream::connect(next).await {
                    // Whichever side ends it.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    return;
                }
            }
        });
    }
}

fn objects(yaml: &str) -> Vec<Value> {
    let all = yaml.split("\n---").map(|one| serde_saphyr::from_str(one).expect("YAML"));
    all.filter(|one: &Value| !one.is_null()).collect()
}

fn holder(server: &Server) -> String {
    let lease = server.get("leases", "istio-system", "weft-leader").unwrap_or_default();
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// Grows with every new leader.
fn term(server: &Server) -> i64 {
    let lease = server.get("leases", "istio-system", "weft-leader").unwrap_or_default();
    lease["spec"]["leaseTransitions"].as_i64().unwrap_or_default()
}

async fn until_leads(server: &Server, wanted: &str) {
    wait::until("another leader", LIMIT, || async { (holder(server) == wanted).then_some(()) })
        .await;
}

/// A rule that says something wrong of itself, so that there is a status to write.
fn wrong(name: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"hosts": [name], "gateways": ["none"], "http": [{"route": [{"destination": {"host": "app"}}]}]},
    })
}

async fn until_said(server: &Server, name: &str) {
    wait::until("a status", LIMIT, || async {
        let found = server.get("virtualservices", "default", name)?;
        found["status"]["validationMessages"].is_array().then_some(())
    })
    .await;
}

/// Writes of one resource's status that were taken.
fn writes(server: &Server, name: &str) -> usize {
    let all = server.requests();
    let of_it = |one: &&weft_testkit::kube::Request| {
        one.resource == "virtualservices/status" && one.name == name && one.status == 200
    };
    all.iter().filter(of_it).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_control_plane_that_writes_is_invisible() {
    let app = backend::http("app", "127.0.0.1:0").await;
    let (gateway_ip, app_ip) = (harness::address(), harness::address());
    let mut kinds = istio();
    kinds.extend(gateway_api());
    let server = Server::start(kinds).await;
    for object in objects(&world(gateway_ip, app_ip, app.address.port())) {
        server.apply(&object);
    }
    let mesh = Mesh::alone(&server, &[]);
    let (folder, root) = (mesh.folder.path(), mesh.state());
    let mut first = Replica::start("first", folder, &server, &root).await;
    until_leads(&server, "first").await;
    let second = Replica::start("second", folder, &server, &root).await;
    tokio::spawn(service(mesh.xds, vec![first.xds, second.xds]));

    let _sidecar = mesh.proxy(Flavor::Weft, &place("app", app_ip)).await;
    let _gateway = mesh.proxy(Flavor::Weft, &place("gateway", gateway_ip)).await;
    let to = SocketAddr::new(gateway_ip, 8080);
    until_served(to).await;
    let load = Load::start(to);
    load.more(50).await;

    // The leader dies: proxies go to the other one, which writes from then on.
    server.apply(&wrong("one"));
    until_said(&server, "one").await;
    first.process.kill();
    load.more(50).await;
    server.apply(&wrong("two"));
    wait::until("both proxies at the second", LIMIT, || async {
        (second.connected().await >= 2.0).then_some(())
    })
    .await;
    until_leads(&server, "second").await;
    until_said(&server, "two").await;
    assert_eq!((writes(&server, "one"), writes(&server, "two")), (1, 1), "each is written once");

    // One that is thought dead and wakes up writes nothing.
    let _third = Replica::start("third", folder, &server, &root).await;
    let written = second.metric(WRITES).await;
    signal(&second.process, "STOP");
    until_leads(&server, "third").await;
    let term = term(&server);
    server.apply(&wrong("three"));
    until_said(&server, "three").await;
    signal(&second.process, "CONT");
    load.more(100).await;
    server.apply(&wrong("four"));
    until_said(&server, "four").await;
    wait::until("the second to see it", LIMIT, || async {
        (second.metric(RULES).await >= 5.0).then_some(())
    })
    .await;
    assert_eq!((writes(&server, "three"), writes(&server, "four")), (1, 1), "each is written once");
    // On a machine that is too busy it may have been elected again.
    if self::term(&server) == term {
        assert_eq!(second.metric(WRITES).await, written, "it does not lead");
    }
    wait::until("both proxies at the second", LIMIT, || async {
        (second.connected().await >= 2.0).then_some(())
    })
    .await;
    let (served, failed) = load.stop().await;
    assert!(served >= 200, "{served} served");
    assert_eq!(failed, 0, "requests failed");
}

fn signal(process: &Process, name: &str) {
    let pid = process.pid().to_string();
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status();
    assert!(status.expect("kill runs").success());
}
