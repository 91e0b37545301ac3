//! HTTP/2 conformance, case by case as the public suites list them and by section of RFC 9113 (the
//! numbers) and RFC 7541 (`H`): raw frames to Weft and to stock Envoy, each on a connection of its
//! own. Prints a table; Weft must pass every case that Envoy passes.

mod abuse;
mod cases;
mod peer;

use std::{net::SocketAddr, time::Duration};

use weft_testkit::{backend, free_port, peer as peers, relay};

use crate::harness::{self, Flavor, Mesh, Place, Proxy};
use cases::{Case, Expect};

/// A case is over when what it waits for has come; one that fails takes as long.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a case is given that only Weft has failed: the machine may have been busy.
const MORE_PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_conformance() {
    const TEST: &str = "http2_conformance";
    let Some(envoy) = peers::envoy(TEST) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let app = backend::http("app", "127.0.0.1:0").await;
    let (weft, _mesh, _proxy) = weft(app.address).await;
    let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let _envoy = relay::envoy_http2(&envoy, folder.path(), &[(listen, app.address)]);

    let cases = cases::all();
    let (mut ours, theirs) = tokio::join!(run(weft, &cases), run(listen, &cases));
    for ((case, ours), theirs) in cases.iter().zip(&mut ours).zip(&theirs) {
        if ours.is_err() && theirs.is_ok() {
            *ours = peer::run(weft, case, MORE_PATIENCE).await;
        }
    }
    let mut worse = Vec::new();
    println!("{:5} {:8} {:8} case", "", "Weft", "Envoy");
    for ((case, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        let word = |verdict: &Verdict| if verdict.is_ok() { "pass" } else { "FAIL" };
        println!("{:5} {:8} {:8} {}", case.section, word(ours), word(theirs), case.name);
        for (who, verdict) in [("Weft", ours), ("Envoy", theirs)] {
            if let Err(got) = verdict {
                println!("      {who}: expected {:?}, got {got}", case.expect);
            }
        }
        if ours.is_err() && theirs.is_ok() {
            worse.push(case.name);
        }
    }
    let passed = |verdicts: &[Verdict]| verdicts.iter().filter(|verdict| verdict.is_ok()).count();
    println!("{} cases: Weft {}, Envoy {}", cases.len(), passed(&ours), passed(&theirs));
    assert!(worse.is_empty(), "worse than Envoy: {worse:#?}");
}

/// What a case came to: as expected, or what came instead.
type Verdict = Result<(), String>;

/// All at once: those that fail take their time together.
async fn run(address: SocketAddr, cases: &[Case]) -> Vec<Verdict> {
    let each = cases.iter().map(|case| peer::run(address, case, PATIENCE));
    futures_util::future::join_all(each).await
}

/// Weft as a sidecar before the application.
async fn weft(app: SocketAddr) -> (SocketAddr, Mesh, Proxy) {
    let ip = harness::address();
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: app, namespace: default, labels: {{app: app}}}}\n\
         spec: {{serviceAccountName: app}}\nstatus: {{phase: Running, podIP: {ip}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: default}}\nspec: {{mtls: {{mode: DISABLE}}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: app, namespace: default}}\n\
         spec:\n  workloadSelector: {{labels: {{app: app}}}}\n  ingress:\n  \
         - {{port: {{number: 8100, protocol: HTTP2, name: http2}}, bind: {ip}, \
             captureMode: NONE, defaultEndpoint: \"{app}\"}}\n  egress:\n  \
         - {{hosts: [\"./*\"], captureMode: NONE, bind: {ip}, port: {{number: 15080, protocol: HTTP, name: http-proxy}}}}\n"
    );
    let mesh = Mesh::start(&yaml).await;
    let place = Place {
        kind: "sidecar",
        name: "app",
        namespace: "default",
        service_account: "app",
        ip,
        labels: &[("app", "app")],
    };
    let proxy = mesh.proxy(Flavor::Weft, &place).await;
    (SocketAddr::new(ip, 8100), mesh, proxy)
}
