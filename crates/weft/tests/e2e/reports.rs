//! What proxies tell the control plane of their traffic: the call graph, interfaces, failures and
//! single requests agree with the load to the request.

use std::{net::SocketAddr, process::Command, time::Duration};

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use weft_testkit::{
    client::{self, Wire},
    peer, wait,
};

use crate::{
    cast,
    harness::{self, Flavor, Mesh, WEFT},
    pairs::{HTTP_PROXY_PORT, Pair, TCP_PORT, place},
};

/// Reports come each second; the rest is for a loaded machine.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_counts_what_the_load_sent() {
    let mut pair = Pair::start(Flavor::Weft, Flavor::Weft).await;
    let gateway_ip = harness::address();
    pair.mesh.write("gateway.yaml", &gateway(gateway_ip));
    let gateway = pair.mesh.proxy(Flavor::Weft, &cast::place("gateway", gateway_ip)).await;
    let at_gateway = SocketAddr::new(gateway_ip, 8080);
    let at_client = SocketAddr::new(pair.client_ip, HTTP_PROXY_PORT);

    for number in 0..60 {
        assert_eq!(get(at_client, &format!("/users/{number}"), "server:8080").await, 200);
    }
    for _ in 0..7 {
        assert_eq!(get(at_client, "/status/503", "server:8080").await, 503);
    }
    for _ in 0..5 {
        assert_eq!(get(at_client, "/status/404", "server:8080").await, 404);
    }
    for _ in 0..4 {
        grpc(at_client).await;
    }
    for _ in 0..3 {
        tcp(SocketAddr::new(pair.client_ip, TCP_PORT)).await;
    }
    until_served(at_gateway).await;
    let before = total(&pair.mesh, "outside", "default/gateway", "http").await;
    for _ in 0..20 {
        assert_eq!(get(at_gateway, "/", "shop.example").await, 200);
    }
    for _ in 0..6 {
        assert_eq!(get(at_gateway, "/nowhere", "stranger.example").await, 404);
    }

    let mesh = &pair.mesh;
    let (client, server) = ("default/client", "default/server");
    until_told(mesh, CALLS, "source", 72).await;
    until_told(mesh, CALLS, "destination", 72).await;
    until_told(mesh, (client, server, "grpc"), "source", 4).await;
    until_told(mesh, ("default/gateway", "no_route", "http"), "source", 6).await;
    wait::until("the TCP connections", TOLD_WITHIN, || async {
        let edge = edge(&page(mesh, "/telemetry/graph?window=900").await, client, server, "tcp")?;
        (edge["connections_closed"] == 3 && edge["request_bytes"] == 12).then_some(())
    })
    .await;
    // The gateway was polled before; what the load sent is on top of it.
    wait::until("what the gateway served", TOLD_WITHIN, || async {
        let served = total(mesh, "outside", "default/gateway", "http").await;
        let passed = total(mesh, "default/gateway", server, "http").await;
        (served >= before + 26 && served == passed + 6).then_some(())
    })
    .await;

    let calls = edge(&page(mesh, "/telemetry/graph?window=900").await, client, server, "http");
    let calls = calls.expect("it was there");
    assert_eq!(calls["requests"], 72, "{calls}");
    assert_eq!(calls["errors"], 7, "{calls}");
    assert_eq!(calls["client_errors"], 5, "{calls}");
    assert_eq!(calls["security"], "mutual_tls", "{calls}");
    assert!(calls["p99_ms"].as_f64() > calls["p50_ms"].as_f64(), "{calls}");

    let interfaces = page(mesh, "/telemetry/interfaces?service=server&window=900").await;
    let of = |path: &str| {
        let rows = interfaces.as_array().expect("a list");
        let row = rows.iter().find(|row| row["path"] == path);
        row.unwrap_or_else(|| panic!("{path}: {interfaces:#}"))["total_requests"].clone()
    };
    assert_eq!(of("/users/{id}"), 60);
    assert_eq!(of("/echo.Echo/Unary"), 4);

    let failures = page(mesh, "/telemetry/failures?window=900").await;
    let failed = |code: u64, by: &str| -> u64 {
        let rows = failures.as_array().expect("a list").iter();
        let rows = rows.filter(|row| row["code"] == code && row["by"] == by);
        rows.map(|row| row["requests"].as_u64().expect("a number")).sum()
    };
    assert_eq!(failed(503, "application"), 7, "{failures:#}");
    assert_eq!(failed(404, "application"), 5, "{failures:#}");
    assert_eq!(failed(404, "mesh"), 6, "{failures:#}");

    the_command_line_shows_it(mesh, &pair).await;
    drop(gateway);
    the_control_plane_and_a_proxy_may_come_and_go(&mut pair, at_client).await;
}

async fn the_command_line_shows_it(mesh: &Mesh, pair: &Pair) {
    let graph = weft(mesh, &["graph", "--window=15m"]);
    let line =
        graph.lines().find(|line| line.starts_with("default/client") && line.contains("http"));
    assert!(line.is_some_and(|line| line.contains("mTLS")), "{graph}");
    assert!(
        weft(mesh, &["graph", "--window=15m", "-o", "dot"])
            .contains(r#""default/client" -> "default/server""#)
    );
    assert!(weft(mesh, &["top", "--window=15m"]).contains("/users/{id}"));
    assert!(weft(mesh, &["top", "--window=15m", "--failures"]).contains("NR"));

    // Who called what: by both sides' word.
    let rows: Vec<Value> = wait::until("both sides' records", TOLD_WITHIN, || async {
        let text =
            weft(mesh, &["logs", "--path=/status/", "--status=5xx", "--since=1h", "-o", "json"]);
        let rows: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let whole = rows.len() == 7 && rows.iter().all(|row| row["reporter"] == "both");
        whole.then_some(rows)
    })
    .await;
    let row = &rows[0];
    assert_eq!(row["source"], "default/client", "{row}");
    assert_eq!(row["destination"], "default/server", "{row}");
    assert_eq!(row["destination_address"], format!("{}:8080", pair.server_ip), "{row}");
    assert!(!row["source_address"].as_str().unwrap_or_default().is_empty(), "{row}");
    assert!(!row["request_id"].as_str().unwrap_or_default().is_empty(), "{row}");
    let nr = weft(mesh, &["logs", "--status=NR", "--since=1h"]);
    assert_eq!(nr.lines().count(), 7, "{nr}");
}

async fn the_control_plane_and_a_proxy_may_come_and_go(pair: &mut Pair, at_client: SocketAddr) {
    // What is not known to have arrived is told again: so nothing may be on its way now.
    let reports = "weft_proxy_load_reports_total{result=\"sent\"}";
    let sent = metric(pair.client.admin(), reports).await;
    assert!(sent > 0.0);
    pair.mesh.kill_control();
    for _ in 0..15 {
        assert_eq!(get(at_client, "/", "server:8080").await, 200);
    }
    pair.mesh.start_control().await;
    for _ in 0..10 {
        assert_eq!(get(at_client, "/", "server:8080").await, 200);
    }
    until_told(&pair.mesh, CALLS, "source", 25).await;
    assert_eq!(metric(pair.client.admin(), "weft_proxy_load_lost_requests_total").await, 0.0);

    pair.client.process().kill();
    pair.client = pair.mesh.start_restarted(&place("client", pair.client_ip));
    pair.client.ready().await;
    for _ in 0..5 {
        assert_eq!(get(at_client, "/", "server:8080").await, 200);
    }
    until_told(&pair.mesh, CALLS, "source", 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_tells_where_the_other_is_an_envoy() {
    if peer::envoy("one_side_tells_where_the_other_is_an_envoy").is_none() {
        return;
    }
    for (client, server, reporter) in
        [(Flavor::Weft, Flavor::Envoy, "source"), (Flavor::Envoy, Flavor::Weft, "destination")]
    {
        let pair = Pair::start(client, server).await;
        let at_client = SocketAddr::new(pair.client_ip, HTTP_PROXY_PORT);
        for _ in 0..12 {
            assert_eq!(get(at_client, "/", "server:8080").await, 200);
        }
        until_told(&pair.mesh, CALLS, reporter, 12).await;
        let graph = page(&pair.mesh, "/telemetry/graph?window=900").await;
        let edge = edge(&graph, "default/client", "default/server", "http").expect("it was there");
        assert_eq!(edge["reporter"], reporter, "{edge}");
        assert_eq!(edge["security"], "mutual_tls", "{edge}");
    }
}

async fn get(to: SocketAddr, path: &str, host: &str) -> u16 {
    client::get(to, path, &[("host", host)]).await.expect("an answer").status
}

async fn grpc(to: SocketAddr) {
    let headers =
        [("host", "server:8082"), ("content-type", "application/grpc"), ("te", "trailers")];
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    let reply = client::send(Wire::H2, to, Method::POST, "/echo.Echo/Unary", &headers, message);
    assert_eq!(reply.await.expect("gRPC is answered").status, 200);
}

async fn tcp(to: SocketAddr) {
    let mut stream = TcpStream::connect(to).await.expect("the sidecar listens");
    stream.write_all(b"ping").await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("echoed");
}

async fn until_served(gateway: SocketAddr) {
    wait::until("the gateway to serve", TOLD_WITHIN, || async move {
        let reply = client::get(gateway, "/", &[("host", "shop.example")]).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
}

async fn page(mesh: &Mesh, path: &str) -> Value {
    let reply = client::get(mesh.http, path, &[]).await.expect("the status port answers");
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    reply.json()
}

fn edge(graph: &Value, source: &str, destination: &str, protocol: &str) -> Option<Value> {
    let edges = graph["edges"].as_array().expect("a list of edges");
    let is = |edge: &&Value| {
        edge["source"] == source
            && edge["destination"] == destination
            && edge["protocol"] == protocol
    };
    edges.iter().find(is).cloned()
}

async fn total(mesh: &Mesh, source: &str, destination: &str, protocol: &str) -> u64 {
    let graph = page(mesh, "/telemetry/graph?window=900").await;
    let edge = edge(&graph, source, destination, protocol);
    edge.and_then(|edge| edge["total_requests"].as_u64()).unwrap_or(0)
}

/// Waits until one side has told of exactly so many requests.
async fn until_told(
    mesh: &Mesh,
    (source, destination, protocol): Ends<'_>,
    side: &str,
    count: u64,
) {
    wait::until(&format!("{source} -> {destination}: {count}"), TOLD_WITHIN, || async {
        let graph = page(mesh, "/telemetry/graph?window=900").await;
        let now = edge(&graph, source, destination, protocol)?["reported"][side].as_u64()?;
        assert!(now <= count, "{now} requests of {count} from {source} to {destination}");
        (now == count).then_some(())
    })
    .await;
}

type Ends<'e> = (&'e str, &'e str, &'e str);

/// What most requests of these tests are.
const CALLS: Ends<'static> = ("default/client", "default/server", "http");

async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let text = client::get(admin, "/stats/prometheus", &[]).await.expect("metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0)
}

fn weft(mesh: &Mesh, args: &[&str]) -> String {
    let output = Command::new(WEFT)
        .args(args)
        .arg(format!("--api=http://{}", mesh.http))
        .output()
        .expect("weft starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn gateway(ip: std::net::IpAddr) -> String {
    let rules = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: [shop.example]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.example]
  gateways: [gateway]
  http:
  - route: [{destination: {host: server, port: {number: 8080}}}]
";
    format!("{rules}{}", cast::pod("gateway", ip))
}
