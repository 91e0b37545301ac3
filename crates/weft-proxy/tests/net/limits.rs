//! Limits of connections before anything is served: how many, and how long they may take to say
//! what they are.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;

fn with(control: &Control, extra: &[&str]) -> Running {
    start(&Wish { xds: control.address, account: None, dir: None, extra })
}

/// Whether the proxy closes the connection without a byte.
async fn is_closed(mut stream: tokio::net::TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(LIMIT, stream.read(&mut byte)).await;
    matches!(read.expect("closed in time"), Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_cannot_keep_others_out() {
    let backend = backend("b").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("b", &[backend]));
    control.set(Listener, tcp_listener("l", "b"));
    let proxy = with(&control, &["--connections-max=4", "--connections-per-source-max=2"]);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let from = async |source: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let mut open = Vec::new();
    for source in [[127, 0, 0, 2], [127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4]] {
        if open.len() == 2 {
            assert!(is_closed(from([127, 0, 0, 2]).await).await, "the source's third");
        }
        let mut stream = from(source).await;
        assert_eq!(greeting(&mut stream).await.unwrap(), "b");
        open.push(stream);
    }
    let metrics = proxy.page("/stats/prometheus").await;
    assert!(metrics.contains("connections_refused_total{reason=\"source_limit\"} 1"), "{metrics}");
    // Now the process itself is full.
    assert!(is_closed(from([127, 0, 0, 5]).await).await, "the fifth in all");
    proxy.shows("/stats/prometheus", "envoy_listener_downstream_cx_overload_reject 1\n").await;
    // Whoever leaves makes room.
    open.clear();
    proxy.shows("/stats/prometheus", "weft_proxy_downstream_connections_active 0\n").await;
    assert_eq!(greeting(&mut from([127, 0, 0, 2]).await).await.unwrap(), "b");
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_must_say_what_it_is_in_time() {
    let backend = backend("b").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("b", &[backend]));
    for (name, kind, message) in
        [("proxy", "proxy_protocol", "ProxyProtocol"), ("sniff", "tls_inspector", "TlsInspector")]
    {
        let mut listener = tcp_listener(name, "b");
        listener["listener_filters"] = json!([inspector(kind, message)]);
        listener["listener_filters_timeout"] = json!("0.1s");
        control.set(Listener, listener);
    }
    let proxy = plain(&control);
    proxy.ready().await;
    let mut slow = connect(proxy.listener("proxy").await).await;
    slow.write_all(b"PROXY TCP4 192.0.2.1 192.").await.unwrap();
    assert!(is_closed(slow).await);
    let mut slow = connect(proxy.listener("sniff").await).await;
    slow.write_all(b"\x16\x03\x01\x02").await.unwrap();
    assert!(is_closed(slow).await);
    proxy.shows("/stats/prometheus", "envoy_listener_downstream_pre_cx_timeout 2\n").await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_handshake_must_end_in_time() {
    let backend = backend("b").await;
    let dir = tempfile::tempdir().unwrap();
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("b", &[backend]));
    let mut listener = tcp_listener("l", "b");
    listener["filter_chains"][0]["transport_socket"] = mtls_server(&["istio"]);
    listener["filter_chains"][0]["transport_socket_connect_timeout"] = json!("0.1s");
    control.set(Listener, listener);
    let wish =
        Wish { xds: control.address, account: Some("server"), dir: Some(dir.path()), extra: &[] };
    let proxy = start(&wish);
    proxy.ready().await;
    let mut slow = connect(proxy.listener("l").await).await;
    slow.write_all(b"\x16\x03\x01\x02").await.unwrap();
    assert!(is_closed(slow).await);
    proxy.shows("/stats/prometheus", "refused_total{reason=\"tls_timeout\"} 1\n").await;
    tokio::task::block_in_place(|| control.kill());
}
