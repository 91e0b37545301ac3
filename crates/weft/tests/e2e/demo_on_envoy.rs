//! The demo's configuration, as `weft demo` writes it, on stock Envoy: one as gateway, one beside
//! every workload that has a sidecar, over the demo's own mTLS.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use http::Method;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use weft_testkit::{
    backend::{self, Backend},
    client::{self, Wire},
    peer,
};

use crate::harness::{Flavor, Mesh, Place, Proxy, WEFT};

/// (workload, service account, speaks HTTP)
const SIDECARS: &[(&str, &str, bool)] = &[
    ("gateway-v1-0", "gateway", true),
    ("servicea-v1-0", "servicea", true),
    ("servicea-v2-0", "servicea", true),
    ("serviceb-v1-0", "serviceb", true),
    ("serviceb-v1-1", "serviceb", true),
    ("tcp-echo-v1-0", "tcp-echo", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_runs_on_envoy() {
    if peer::envoy("the_demo_runs_on_envoy").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("config");
    let gateway = written_by_the_demo(&config);
    let mesh = Mesh::over(folder, config).await;

    let mut apps = Vec::new();
    let mut proxies = Vec::new();
    for (name, account, http) in SIDECARS {
        let written = of_workload(&mesh, name);
        apps.push(app(name, &value(&written, "defaultEndpoint:"), *http).await);
        let labels = [("apps.kubernetes.io/pod-name", *name)];
        let place = Place {
            kind: "sidecar",
            name,
            namespace: "default",
            service_account: account,
            ip: address(&written),
            labels: &labels,
        };
        proxies.push(mesh.start_proxy(Flavor::Envoy, &place));
    }
    let edge = Place {
        kind: "router",
        name: "istio-ingressgateway-0",
        namespace: "istio-system",
        service_account: "istio-ingressgateway",
        ip: address(&of_workload(&mesh, "istio-ingressgateway-0")),
        labels: &[("istio", "ingressgateway"), ("app", "istio-ingressgateway")],
    };
    proxies.push(mesh.start_proxy(Flavor::Envoy, &edge));
    for proxy in &proxies {
        proxy.ready().await;
    }

    requests_land(gateway, address(&of_workload(&mesh, "gateway-v1-0"))).await;
    let syncz = mesh.syncz().await.to_string();
    assert!(!syncz.contains("ERROR"), "{syncz}");
    for proxy in &proxies {
        let Proxy::Envoy(envoy) = proxy else { continue };
        assert_eq!(envoy.rejected().await, 0, "{}", envoy.process.output());
    }
}

/// Through the gateway to `gateway`, and from there to every service it calls.
async fn requests_land(gateway: SocketAddr, caller: IpAddr) {
    let reply = client::get(gateway, "/", &[("host", "wallstreetcn.com")]).await.expect("answered");
    assert_eq!((reply.status, reply.header("x-backend")), (200, "gateway-v1-0"));
    let reply = client::get(gateway, "/", &[("host", "elsewhere.example")]).await;
    assert_eq!(reply.expect("answered").status, 404);

    let out = SocketAddr::new(caller, 15080);
    let mut versions = BTreeSet::new();
    for _ in 0..40 {
        let reply = client::get(out, "/", &[("host", "servicea:8080")]).await.expect("answered");
        assert_eq!(reply.status, 200);
        versions.insert(reply.header("x-backend").to_owned());
    }
    assert_eq!(versions.into_iter().collect::<Vec<_>>(), ["servicea-v1-0", "servicea-v2-0"]);

    let headers = [("host", "serviceb:10088"), ("content-type", "application/grpc")];
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    let reply = client::send(Wire::H2, out, Method::POST, "/echo.Echo/Unary", &headers, message);
    let reply = reply.await.expect("answered");
    assert_eq!(reply.trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));

    let mut stream = TcpStream::connect((caller, 9000)).await.expect("the sidecar listens");
    let mut greeting = [0; 14];
    stream.read_exact(&mut greeting).await.expect("the server speaks first");
    assert_eq!(&greeting, b"tcp-echo-v1-0\n");
}

async fn app(name: &str, address: &str, http: bool) -> Backend {
    if http { backend::http(name, address).await } else { backend::tcp_echo(name, address).await }
}

/// Runs the demo until it is ready, for its configuration alone; gives the gateway's address.
fn written_by_the_demo(config: &Path) -> SocketAddr {
    let mut demo = Command::new(WEFT)
        .args(["demo", "--no-traffic", "--output", "json", "--port-base", "free"])
        .arg("--config-dir")
        .arg(config)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("weft starts");
    let mut line = String::new();
    let stdout = demo.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("the demo prints a line");
    let pid = demo.id().to_string();
    let _ = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(demo.wait().expect("our own child").success());
    let ready: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
    let url = ready["gateway"].as_str().expect("the gateway's address");
    url.trim_start_matches("http://").parse().expect("an address and port")
}

/// The documents about one workload, in the file of its deployment.
fn of_workload(mesh: &Mesh, name: &str) -> String {
    let (deployment, _) = name.rsplit_once('-').expect("workloads are numbered");
    let (file, named) = (mesh.written(deployment), format!("  name: {name}"));
    let about = |document: &&str| document.lines().any(|line| line == named);
    file.split("\n---").filter(about).collect::<Vec<_>>().join("\n---")
}

fn address(written: &str) -> IpAddr {
    value(written, "podIP:").parse().expect("the demo's workloads have addresses")
}

/// The first value of `key` in a file that the demo wrote.
fn value(written: &str, key: &str) -> String {
    let line = written.lines().find_map(|line| line.trim_start().strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key} in {written}")).trim().to_owned()
}
