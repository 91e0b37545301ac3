//! The ports that Kubernetes asks: readiness, and the application's probes in the kubelet's place.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Response};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use weft_testkit::client::{self, Wire};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;
use crate::tls_stream::server_config;

/// Answers one request a connection with what `answer` makes of its head.
async fn application(tls: bool, answer: fn(&str) -> &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let config = server_config(&rustls::version::TLS13);
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match tls {
                    true => reply(acceptor.accept(tcp).await.unwrap(), answer).await,
                    false => reply(tcp, answer).await,
                }
            });
        }
    });
    port
}

async fn reply(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: fn(&str) -> &'static str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
            return;
        }
    }
    let status = answer(&String::from_utf8_lossy(&head).to_ascii_lowercase());
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nhi");
    let _ = stream.write_all(text.as_bytes()).await;
}

/// grpc.health.v1, serving `good` alone.
async fn health() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    tokio::spawn(async move {
                        let message = request.into_body().data().await.unwrap().unwrap();
                        let status = if message.ends_with(b"good") { 1 } else { 2 };
                        let mut stream = respond.send_response(Response::new(()), false).unwrap();
                        stream
                            .send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false)
                            .unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_applications_probes_are_answered_in_the_kubelets_place() {
    let http = application(false, |head| match head {
        head if head.starts_with("get /live http/1.1") && head.contains("x-own: 1") => "200 OK",
        head if head.starts_with("get /moved") => "302 Found",
        _ => "500 Oh",
    })
    .await;
    let https = application(true, |_| "204 No Content").await;
    let (grpc, closed) = (health().await, weft_testkit::free_port());
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging_port = hanging.local_addr().unwrap().port();
    let get = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}});
    let header = json!([{"name": "X-Own", "value": "1"}]);
    let probes = json!({
        "/app-health/a/live": {"httpGet": {"path": "/live", "port": http, "httpHeaders": header}},
        "/app-health/a/moved": get("moved", http),
        "/app-health/a/wrong": get("/wrong", http),
        "/app-health/a/https": {"httpGet": {"port": https, "scheme": "HTTPS"}},
        "/app-health/a/closed": get("/", closed),
        "/app-health/a/hanging": get("/", hanging_port),
        "/app-health/a/tcp": {"tcpSocket": {"port": http}},
        "/app-health/a/untcp": {"tcpSocket": {"port": closed}},
        "/app-health/a/grpc": {"grpc": {"port": grpc, "service": "good"}},
        "/app-health/a/ungrpc": {"grpc": {"port": grpc}},
        "/app-lifecycle/a/prestopz": get("/moved", http),
    });
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("c", &[SocketAddr::from(([127, 0, 0, 1], http))]));
    let mut listener = tcp_listener("l", "c");
    listener["address"] = any_port();
    control.set(Listener, listener);
    let (status, ready) = (weft_testkit::free_port(), weft_testkit::free_port());
    let proxy = start(&Wish {
        xds: control.address,
        account: None,
        dir: None,
        extra: &[
            "--interception=none",
            &format!("--status-port={status}"),
            &format!("--readiness-port={ready}"),
            &format!("--app-probers={probes}"),
        ],
    });
    proxy.ready().await;
    let (status, ready) = (([127, 0, 0, 1], status).into(), ([127, 0, 0, 1], ready).into());
    for (probe, expect) in [
        ("live", 200),
        ("moved", 200),
        ("wrong", 500),
        ("https", 204),
        ("closed", 500),
        ("hanging", 500),
        ("tcp", 200),
        ("untcp", 500),
        ("grpc", 200),
        ("ungrpc", 500),
        ("nobody", 404),
    ] {
        let reply = client::get(status, &format!("/app-health/a/{probe}"), &[]).await.unwrap();
        assert_eq!(reply.status, expect, "{probe}: {}", reply.text());
    }
    let hook = client::get(status, "/app-lifecycle/a/prestopz", &[]).await.unwrap();
    assert_eq!(hook.status, 200);
    for port in [status, ready] {
        assert_eq!(client::get(port, "/healthz/ready", &[]).await.unwrap().status, 200);
    }
    // Readiness is all that its port tells, and nothing of the admin server is on either.
    assert_eq!(client::get(ready, "/stats/prometheus", &[]).await.unwrap().status, 404);
    assert_eq!(client::get(status, "/config_dump", &[]).await.unwrap().status, 404);
    let metrics = client::get(status, "/stats/prometheus", &[]).await.unwrap();
    assert!(metrics.text().contains("weft_proxy_ready 1"), "{}", metrics.text());

    assert_eq!(client::get(status, "/quitquitquit", &[]).await.unwrap().status, 405);
    let quit = client::send(Wire::H1, status, Method::POST, "/quitquitquit", &[], Bytes::new());
    assert_eq!(quit.await.unwrap().status, 200);
    tokio::time::timeout(LIMIT, proxy.proxy().ended()).await.expect("the proxy ends");
    tokio::task::block_in_place(|| control.kill());
}

/// Tells metrics in the form that is asked for, or with a path of its own in text alone.
async fn metered() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if !tcp.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                    break;
                }
            }
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let open = head.contains("openmetrics") && head.starts_with("get /both ");
            let (kind, body) = match open {
                true => {
                    ("application/openmetrics-text", "# TYPE app counter\napp_total 1\n# EOF\n")
                }
                false => ("text/plain; version=0.0.4", "# TYPE app_total counter\napp_total 1\n"),
            };
            let length = body.len();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let _ = tcp.write_all(reply.as_bytes()).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_applications_metrics_follow_the_proxys() {
    let (app, closed) = (metered().await, weft_testkit::free_port());
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("c", &[SocketAddr::from(([127, 0, 0, 1], app))]));
    let mut listener = tcp_listener("l", "c");
    listener["address"] = any_port();
    control.set(Listener, listener);
    for (path, port, accept, open, told) in [
        ("/both", app, "application/openmetrics-text", true, true),
        ("/both", app, "text/plain", false, true),
        ("/text", app, "application/openmetrics-text", false, true),
        ("/both", closed, "application/openmetrics-text", true, false),
        ("/both", closed, "text/plain", false, false),
    ] {
        let status = weft_testkit::free_port();
        let asked = json!({"scrape": "true", "port": port.to_string(), "path": path});
        let proxy = start(&Wish {
            xds: control.address,
            account: None,
            dir: None,
            extra: &[
                "--interception=none",
                &format!("--status-port={status}"),
                &format!("--app-metrics={asked}"),
            ],
        });
        proxy.ready().await;
        let status = ([127, 0, 0, 1], status).into();
        let page = client::get(status, "/stats/prometheus", &[("accept", accept)]).await.unwrap();
        let case = format!("{path} {accept}: {}", page.text());
        assert_eq!(page.status, 200, "{case}");
        assert_eq!(page.text().ends_with("# EOF\n"), open, "{case}");
        assert_eq!(page.text().matches("# EOF").count(), usize::from(open), "{case}");
        assert_eq!(page.text().contains("\napp_total 1\n"), told, "{case}");
        assert!(page.text().contains("weft_proxy_ready 1"), "{case}");
        let kind = page.headers["content-type"].to_str().unwrap();
        assert_eq!(kind.starts_with("application/openmetrics-text"), open, "{case}");
        let again = client::get(status, "/stats/prometheus", &[]).await.unwrap();
        let failed = again.text().contains("istio_agent_scrape_failures_total");
        assert_eq!(failed, !told, "{}", again.text());
        tokio::task::block_in_place(|| drop(proxy));
    }
    tokio::task::block_in_place(|| control.kill());
}
