//! Another authority in the cluster, while two workloads talk with mutual TLS.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weft_testkit::kube::{Server, istio};
use weft_testkit::{backend, client, wait};

use crate::cast::place;
use crate::control_restart::{Load, until_served, world};
use crate::harness::{self, Flavor, Mesh, Place};

const LIMIT: Duration = Duration::from_secs(60);

/// An authority as operators plug it in.
fn cacerts() -> Value {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).expect("a certificate").pem();
    let encoded = |text: &str| STANDARD.encode(text);
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": "istio-system"},
        "data": {
            "ca-cert.pem": encoded(&root), "ca-key.pem": encoded(&key.serialize_pem()),
            "root-cert.pem": encoded(&root), "cert-chain.pem": "",
        },
    })
}

async fn until_step(mesh: &Mesh, step: &str) {
    let line = format!("weft_ca_rotations_total{{step=\"{step}\"}} 1");
    wait::until(&line, LIMIT, || async {
        let reply = client::get(mesh.http, "/metrics", &[]).await.ok()?;
        String::from_utf8_lossy(&reply.body).contains(&line).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_root_is_taken_under_load() {
    let app = backend::http("app", "127.0.0.1:0").await;
    let (gateway_ip, app_ip) = (harness::address(), harness::address());
    let server = Server::start(istio()).await;
    let text = world(gateway_ip, app_ip, app.address.port());
    let objects = text.split("\n---").map(|one| serde_saphyr::from_str(one).expect("YAML"));
    objects.filter(|one: &Value| !one.is_null()).for_each(|object| server.apply(&object));
    server.apply(&cacerts());
    let mesh = Mesh::on(&server, &["--ca-rotation-grace=5s"]).await;
    let _app = mesh.proxy(Flavor::Weft, &place("app", app_ip)).await;
    let _gateway = mesh.proxy(Flavor::Weft, &place("gateway", gateway_ip)).await;
    let to = SocketAddr::new(gateway_ip, 8080);
    until_served(to).await;
    let load = Load::start(to);
    load.more(50).await;
    server.apply(&cacerts());
    until_step(&mesh, "trusted").await;
    load.more(50).await;
    until_step(&mesh, "signs").await;
    // It has a certificate of the new authority, and what it calls one of the old.
    let late_ip = harness::address();
    let late = Place { name: "late", ..place("gateway", late_ip) };
    let _late = mesh.proxy(Flavor::Weft, &late).await;
    until_served(SocketAddr::new(late_ip, 8080)).await;
    load.more(100).await;
    let (served, failed) = load.stop().await;
    assert!(served >= 200, "{served} served");
    assert_eq!(failed, 0, "requests failed");
}
