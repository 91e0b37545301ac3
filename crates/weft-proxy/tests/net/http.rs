//! HTTP through two proxies and mutual TLS between them, in every combination of versions:
//! client, between the proxies, and application.

use ::http::Method;
use serde_json::{Value, json};
use weft_testkit::backend;
use weft_testkit::client::{Wire, send};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

pub fn hcm(cluster: &str) -> Value {
    let type_of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": type_of("network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": cluster,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": type_of("http.router.v3.Router") },
            }],
            "route_config": {
                "name": "inline",
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{
                        "match": { "prefix": "/" },
                        "route": { "cluster": cluster, "timeout": "0s" },
                    }],
                }],
            },
        },
    })
}

pub fn listener(name: &str, direction: &str, cluster: &str, tls: Option<Value>) -> Value {
    let mut chain = json!({ "filters": [hcm(cluster)] });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        "address": any_port(),
        "traffic_direction": direction,
        "filter_chains": [chain],
    })
}

fn cluster(name: &str, to: std::net::SocketAddr, wire: Wire, tls: Option<Value>) -> Value {
    let mut cluster = static_cluster(name, &[to]);
    if wire == Wire::H2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
    }
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

/// The client's transport, offering HTTP/2 where it is spoken between the proxies.
fn client_tls(wire: Wire) -> Value {
    let mut tls = mtls_client(SERVER);
    if wire == Wire::H2 {
        tls["typed_config"]["common_tls_context"]["alpn_protocols"] = json!(["istio", "h2"]);
    }
    tls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_versions_crosses_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let app = backend::http("app", "127.0.0.1:0").await;
    let wires = [("h1", Wire::H1), ("h2", Wire::H2)];

    let inbound = tokio::task::block_in_place(|| Control::start(0));
    for (name, wire) in wires {
        inbound.set(Cluster, cluster(name, app.address, wire, None));
        let tls = mtls_server(&["h2", "http/1.1"]);
        inbound.set(Listener, listener(name, "INBOUND", name, Some(tls)));
    }
    let server_dir = dir.path().join("server");
    let server = start(&Wish {
        xds: inbound.address,
        account: Some("server"),
        dir: Some(&server_dir),
        extra: &[],
    });
    server.ready().await;

    let outbound = tokio::task::block_in_place(|| Control::with_ca(0, inbound.ca.clone()));
    for (app_wire, _) in wires {
        let address = server.listener(app_wire).await;
        for (between, wire) in wires {
            let name = format!("{between}-{app_wire}");
            outbound.set(Cluster, cluster(&name, address, wire, Some(client_tls(wire))));
            outbound.set(Listener, listener(&name, "OUTBOUND", &name, None));
        }
    }
    let client_dir = dir.path().join("client");
    let client = start(&Wish {
        xds: outbound.address,
        account: Some("client"),
        dir: Some(&client_dir),
        extra: &[],
    });
    client.ready().await;

    for (app_wire, _) in wires {
        for (between, _) in wires {
            let to = client.listener(&format!("{between}-{app_wire}")).await;
            for (spoken, wire) in wires {
                let combination = format!("{spoken} client, {between} between, {app_wire} app");
                plain_call(wire, to, app_wire, &combination).await;
                if app_wire == "h2" && between == "h2" {
                    grpc_call(wire, to, &combination).await;
                }
            }
        }
    }
    let metrics = server.page("/stats/prometheus").await;
    let mutual = metrics.lines().any(|line| {
        line.starts_with("istio_requests_total{")
            && line.contains("connection_security_policy=\"mutual_tls\"")
            && line.contains("source_principal=\"spiffe://cluster.local/ns/default/sa/client\"")
            && line
                .contains("destination_principal=\"spiffe://cluster.local/ns/default/sa/server\"")
    });
    assert!(mutual, "{metrics}");
    for control in [inbound, outbound] {
        tokio::task::block_in_place(|| control.kill());
    }
}

async fn plain_call(wire: Wire, to: std::net::SocketAddr, app_wire: &str, combination: &str) {
    for size in [0, 10, 500_000] {
        let body = vec![b'x'; size].into();
        let reply = send(wire, to, Method::POST, "/a?b", &[("host", "app")], body).await;
        let reply = reply.unwrap_or_else(|error| panic!("{combination}, {size} bytes: {error:#}"));
        assert_eq!(reply.status, 200, "{combination}: {}", reply.text());
        let seen = reply.json();
        assert_eq!(seen["bodyBytes"], size, "{combination}");
        assert_eq!(seen["path"].as_str().unwrap().rsplit_once('/').unwrap().1, "a?b");
        let version = if app_wire == "h1" { "HTTP/1.1" } else { "HTTP/2.0" };
        assert_eq!(seen["version"], version, "{combination}");
    }
}

async fn grpc_call(wire: Wire, to: std::net::SocketAddr, combination: &str) {
    let headers = [("host", "app"), ("content-type", "application/grpc"), ("te", "trailers")];
    let message = vec![0, 0, 0, 0, 2, b'h', b'i'];
    let reply = send(wire, to, Method::POST, "/a.B/C", &headers, message.clone().into()).await;
    let reply = reply.unwrap_or_else(|error| panic!("{combination}, gRPC: {error:#}"));
    assert_eq!(reply.status, 200, "{combination}");
    assert_eq!(&reply.body[..], &message[..], "{combination}");
    assert_eq!(reply.trailers["grpc-status"], "0", "{combination}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_behind_a_unix_socket_is_reached_in_both_versions_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let app = backend::http("app", "127.0.0.1:0").await;
    let socket = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = socket.accept().await {
            let mut to = connect(app.address).await;
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    let control = tokio::task::block_in_place(|| Control::start(0));
    for (name, wire) in [("h1", Wire::H1), ("h2", Wire::H2)] {
        let mut cluster = cluster(name, app.address, wire, None);
        let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
        endpoint["endpoint"]["address"] = json!({ "pipe": { "path": path } });
        control.set(Cluster, cluster);
        control.set(Listener, listener(name, "INBOUND", name, None));
    }
    control.set(Listener, tcp_listener("bytes", "h1"));
    let proxy = plain(&control);
    proxy.ready().await;
    for name in ["h1", "h2"] {
        let to = proxy.listener(name).await;
        for (spoken, wire) in [("h1", Wire::H1), ("h2", Wire::H2)] {
            plain_call(wire, to, name, &format!("{spoken} client, {name} app")).await;
        }
    }
    plain_call(Wire::H1, proxy.listener("bytes").await, "h1", "bytes").await;
    let at = path.display();
    proxy.shows("/clusters", &format!("h2::{at}::rq_total::6\n")).await;
    std::fs::remove_file(&path).unwrap();
    let reply = send(Wire::H1, proxy.listener("bytes").await, Method::GET, "/", &[], "".into());
    assert!(reply.await.is_err(), "nobody is there");
    tokio::task::block_in_place(|| control.kill());
}
