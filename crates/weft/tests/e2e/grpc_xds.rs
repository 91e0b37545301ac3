//! grpc's own xDS client (Python) resolves `xds:///…` through our control plane and balances.

use std::{
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use weft_testkit::{backend, peer};

use crate::harness::{self, Mesh};

/// Calls the echo method and prints which backend answered, one line per call.
const CLIENT: &str = r#"
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/echo.Echo/Unary", request_serializer=lambda b: b, response_deserializer=lambda b: b)
for _ in range(int(sys.argv[2])):
    reply, rpc = call.with_call(b"hello", timeout=20, wait_for_ready=True)
    assert reply == b"hello", reply
    print(dict(rpc.trailing_metadata())["x-backend"], flush=True)
"#;

const CALLS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn grpc_client_resolves_and_balances() {
    let Some(python) = peer::python("grpc_client_resolves_and_balances") else { return };
    let (one, two) = (harness::address(), harness::address());
    // Both endpoints stand on one port, as pods of a service do.
    let first = backend::http("one", &format!("{one}:0")).await;
    let port = first.address.port();
    let _second = backend::http("two", &format!("{two}:{port}")).await;
    let mesh = Mesh::start(&world(one, two, port)).await;
    let bootstrap = mesh.folder.path().join("grpc-bootstrap.json");
    std::fs::write(&bootstrap, grpc_bootstrap(&mesh).to_string()).expect("writable");

    let output = tokio::task::spawn_blocking(move || {
        let mut child = Command::new(python)
            .args(["-", "xds:///serviceb.default.svc.cluster.local:10088", &CALLS.to_string()])
            .env("GRPC_XDS_BOOTSTRAP", &bootstrap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(CLIENT.as_bytes()).expect("python reads its program");
        drop(stdin);
        child.wait_with_output().expect("python ends")
    })
    .await
    .expect("no panic");

    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", mesh.control_output());
    let count = |name: &str| text.lines().filter(|line| *line == name).count();
    assert_eq!(count("one") + count("two"), CALLS, "{text}");
    assert!(
        count("one").abs_diff(count("two")) <= 4,
        "uneven: {} / {}",
        count("one"),
        count("two")
    );
}

fn grpc_bootstrap(mesh: &Mesh) -> Value {
    json!({
        "xds_servers": [{
            "server_uri": mesh.xds.to_string(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": "sidecar~127.0.0.1~client.default~default.svc.cluster.local",
            "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default", "CLUSTER_ID": "Kubernetes"},
        },
    })
}

fn world(one: IpAddr, two: IpAddr, port: u16) -> String {
    let pod = |name: &str, ip: IpAddr| {
        format!(
            r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: serviceb, version: v1}}}}
spec: {{serviceAccountName: serviceb}}
status: {{phase: Running, podIP: {ip}}}
"#
        )
    };
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: serviceb, namespace: default}}
spec:
  selector: {{app: serviceb}}
  ports:
  - {{name: grpc, port: 10088, targetPort: {port}}}
{}{}"#,
        pod("one", one),
        pod("two", two)
    )
}
