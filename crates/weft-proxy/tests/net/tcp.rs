//! Plain TCP: bytes, half-close, balancing, protocol detection, PROXY protocol.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_xds::ResourceType::{Cluster, Endpoint, Listener};

use crate::control::Control;
use crate::rig::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_flow_both_ways_and_each_side_closes_on_its_own() {
    let backend = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("outbound|80||one.default.svc.cluster.local", &[backend]));
    control.set(Listener, tcp_listener("l", "outbound|80||one.default.svc.cluster.local"));
    let proxy = plain(&control);
    proxy.ready().await;

    let sent = vec![7u8; 3_000_000];
    let stream = connect(proxy.listener("l").await).await;
    let (mut from, mut to) = stream.into_split();
    let expected = sent.len();
    let writer = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    });
    assert_eq!(greeting(&mut from).await.unwrap(), "one");
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).await.unwrap();
    writer.await.unwrap();
    let tail = format!("end {expected}\n");
    assert_eq!(rest.len(), expected + tail.len());
    assert!(rest.ends_with(tail.as_bytes()));

    let received = format!("}} {expected}");
    proxy.shows("/stats/prometheus", &received).await;
    let metrics = proxy.page("/stats/prometheus").await;
    let closed =
        metrics.lines().find(|line| line.starts_with("istio_tcp_connections_closed_total"));
    let closed = closed.unwrap_or_else(|| panic!("no closed connection in {metrics}"));
    assert!(closed.contains("reporter=\"source\"") && closed.ends_with(" 1"), "{closed}");
    let sent_to_client = format!("}} {}", "one\n".len() + expected + tail.len());
    assert!(metrics.contains(&sent_to_client), "{metrics}");
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_is_passed_over_and_new_endpoints_are_used() {
    let alive = backend("alive").await;
    let dead = {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(
        Cluster,
        json!({
            "name": "c", "type": "EDS", "connect_timeout": "2s",
            "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
        }),
    );
    control.set(Endpoint, assignment("c", &[dead, alive]));
    control.set(Listener, tcp_listener("l", "c"));
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    for _ in 0..6 {
        assert_eq!(greeting(&mut connect(address).await).await.unwrap(), "alive");
    }
    let other = backend("other").await;
    control.set(Endpoint, assignment("c", &[other]));
    proxy.shows("/clusters", &format!("c::{other}::")).await;
    assert_eq!(greeting(&mut connect(address).await).await.unwrap(), "other");
    let clusters = proxy.page("/clusters").await;
    assert!(clusters.contains(&format!("c::{other}::cx_total::1\n")), "{clusters}");
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_bytes_choose_the_chain() {
    let (tls, http, other) = (backend("tls").await, backend("http").await, backend("other").await);
    let control = tokio::task::block_in_place(|| Control::start(0));
    for (name, address) in [("tls", tls), ("http", http), ("other", other)] {
        control.set(Cluster, static_cluster(name, &[address]));
    }
    control.set(
        Listener,
        json!({
            "name": "l",
            "address": any_port(),
            "traffic_direction": "OUTBOUND",
            "listener_filters": [
                inspector("tls_inspector", "TlsInspector"),
                inspector("http_inspector", "HttpInspector"),
            ],
            "listener_filters_timeout": "0.2s",
            "continue_on_listener_filters_timeout": true,
            "filter_chains": [
                {
                    "filter_chain_match": { "transport_protocol": "tls", "server_names": ["a.example"] },
                    "filters": [tcp_proxy("tls")],
                },
                {
                    "filter_chain_match": { "application_protocols": ["http/1.1", "h2c"] },
                    "filters": [tcp_proxy("http")],
                },
            ],
            "default_filter_chain": { "filters": [tcp_proxy("other")] },
        }),
    );
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let served_by = async |first: Vec<u8>| {
        let mut stream = connect(address).await;
        stream.write_all(&first).await.unwrap();
        let name = greeting(&mut stream).await.unwrap();
        let mut echoed = vec![0; first.len()];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, first, "detection must give back what it read");
        name
    };
    assert_eq!(served_by(hello("a.example")).await, "tls");
    assert_eq!(served_by(hello("b.example")).await, "other");
    assert_eq!(served_by(b"GET / HTTP/1.1\r\n\r\n".to_vec()).await, "http");
    assert_eq!(served_by(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()).await, "http");
    assert_eq!(served_by(b"*1\r\n$4\r\nPING\r\n".to_vec()).await, "other");
    assert_eq!(served_by(b"".to_vec()).await, "other", "server-first protocols say nothing");
    tokio::task::block_in_place(|| control.kill());
}

fn hello(name: &str) -> Vec<u8> {
    let config = crate::tls::any_server_config(&[]);
    let name = name.to_owned().try_into().unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_protocol_header_is_taken_off_and_required() {
    let backend = backend("b").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("b", &[backend]));
    let mut listener = tcp_listener("l", "b");
    listener["listener_filters"] = json!([inspector("proxy_protocol", "ProxyProtocol")]);
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let mut stream = connect(address).await;
    stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\nhi").await.unwrap();
    assert_eq!(greeting(&mut stream).await.unwrap(), "b");
    let mut echoed = [0; 2];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hi");
    let mut stream = connect(address).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(greeting(&mut stream).await.is_err(), "closed without a header");
    proxy.shows("/stats", "reason=\"proxy_protocol\"").await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let backend = backend("b").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("b", &[backend]));
    let mut listener = tcp_listener("l", "b");
    listener["filter_chains"][0]["filters"][0]["typed_config"]["idle_timeout"] = json!("0.3s");
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let mut stream = connect(proxy.listener("l").await).await;
    assert_eq!(greeting(&mut stream).await.unwrap(), "b");
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await.unwrap();
    assert!(end.is_err());
    proxy.shows("/stats", "response_flags=\"SI\"").await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_dns_clusters_are_resolved() {
    let backend = backend("named").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    let mut cluster = static_cluster("c", &[backend]);
    cluster["type"] = json!("STRICT_DNS");
    cluster["dns_lookup_family"] = json!("V4_ONLY");
    let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
    endpoint["address"]["socket_address"]["address"] = json!("localhost");
    control.set(Cluster, cluster);
    control.set(Listener, tcp_listener("l", "c"));
    let proxy = plain(&control);
    proxy.ready().await;
    proxy.shows("/clusters", &format!("c::{backend}::hostname::localhost")).await;
    let mut stream = connect(proxy.listener("l").await).await;
    assert_eq!(greeting(&mut stream).await.unwrap(), "named");
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_not_captured_does_not_loop() {
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(
        Cluster,
        json!({
            "name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "2s",
        }),
    );
    let mut listener = tcp_listener("virtualOutbound", "PassthroughCluster");
    listener["use_original_dst"] = json!(true);
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let mut stream = connect(proxy.listener("virtualOutbound").await).await;
    assert!(greeting(&mut stream).await.is_err());
    proxy.shows("/stats", "weft_proxy_downstream_connections_total: 1").await;
    tokio::task::block_in_place(|| control.kill());
}

/// A listener whose bytes go through the proxy behind cluster `c`.
fn tunnel_listener(name: &str, post: bool) -> serde_json::Value {
    let mut listener = tcp_listener(name, "c");
    listener["filter_chains"][0]["filters"][0]["typed_config"]["tunneling_config"] =
        json!({ "hostname": "far.example:443", "use_post": post });
    listener
}

/// What a peer sends until the text.
async fn read_until(stream: &mut tokio::net::TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(tokio::time::timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_through_an_http1_proxy_by_connect_and_by_post() {
    let egress = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("c", &[egress.local_addr().unwrap()]));
    control.set(Listener, tunnel_listener("connect", false));
    control.set(Listener, tunnel_listener("post", true));
    let proxy = plain(&control);
    proxy.ready().await;

    // What the client says early waits for the answer.
    let mut client = connect(proxy.listener("connect").await).await;
    client.write_all(b"hello").await.unwrap();
    let (mut far, _) = egress.accept().await.unwrap();
    let head = read_until(&mut far, "\r\n\r\n").await;
    assert!(head.starts_with("CONNECT far.example:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\nhost: far.example:443\r\n"), "{head}");
    far.write_all(b"HTTP/1.1 200 Connection established\r\n\r\nwelcome").await.unwrap();
    assert_eq!(read_until(&mut client, "welcome").await, "welcome");
    assert_eq!(read_until(&mut far, "hello").await, "hello");
    client.shutdown().await.unwrap();
    assert!(far.read_u8().await.is_err(), "the client's end is passed on");
    far.write_all(b"bye").await.unwrap();
    drop(far);
    assert_eq!(read_until(&mut client, "bye").await, "bye");
    assert!(client.read_u8().await.is_err());

    let mut client = connect(proxy.listener("post").await).await;
    client.write_all(b"hello").await.unwrap();
    let (mut far, _) = egress.accept().await.unwrap();
    let head = read_until(&mut far, "\r\n\r\n").await;
    assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    far.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut far, "5\r\nhello\r\n").await, "5\r\nhello\r\n");
    far.write_all(b"7\r\nwelcome\r\n").await.unwrap();
    assert_eq!(read_until(&mut client, "welcome").await, "welcome");
    client.shutdown().await.unwrap();
    assert_eq!(read_until(&mut far, "0\r\n\r\n").await, "0\r\n\r\n");
    far.write_all(b"3\r\nbye\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut client, "bye").await, "bye");
    assert!(client.read_u8().await.is_err());

    // A proxy that refuses.
    let mut client = connect(proxy.listener("connect").await).await;
    let (mut far, _) = egress.accept().await.unwrap();
    read_until(&mut far, "\r\n\r\n").await;
    far.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(client.read_u8().await.is_err());
    proxy.shows("/stats", "response_flags=\"UF\"").await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_through_an_http2_proxy_as_streams_of_one_connection() {
    let egress = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = tokio::task::block_in_place(|| Control::start(0));
    let mut cluster = static_cluster("c", &[egress.local_addr().unwrap()]);
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    control.set(Cluster, cluster);
    control.set(Listener, tunnel_listener("connect", false));
    control.set(Listener, tunnel_listener("post", true));
    tokio::spawn(async move {
        loop {
            let (far, _) = egress.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(far).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(echo_stream(request, respond));
                }
            });
        }
    });
    let proxy = plain(&control);
    proxy.ready().await;
    for (name, method) in [("connect", "CONNECT"), ("post", "POST"), ("connect", "CONNECT")] {
        let mut client = connect(proxy.listener(name).await).await;
        let greeting = format!("{method} far.example:443\n");
        assert_eq!(read_until(&mut client, "\n").await, greeting);
        let sent = vec![b'x'; 1_000_000];
        let (mut from, mut to) = client.into_split();
        let writer = tokio::spawn(async move {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        });
        let mut rest = Vec::new();
        from.read_to_end(&mut rest).await.unwrap();
        writer.await.unwrap();
        assert_eq!(rest.len(), 1_000_000, "{method}");
    }
    tokio::task::block_in_place(|| control.kill());
}

/// Says what was asked for, then what it hears, until that ends.
async fn echo_stream(
    request: ::http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
) {
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let greeting = format!("{} {authority}\n", request.method());
    let mut to = respond.send_response(::http::Response::new(()), false).unwrap();
    to.send_data(greeting.into(), false).unwrap();
    let mut from = request.into_body();
    while let Some(data) = from.data().await {
        let data = data.unwrap();
        from.flow_control().release_capacity(data.len()).unwrap();
        to.send_data(data, false).unwrap();
    }
    to.send_data(bytes::Bytes::new(), true).unwrap();
}
