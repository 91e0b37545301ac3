//! Start and stop.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_testkit::client::Wire;
use weft_testkit::{client, wait};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;
use crate::{changes, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_comes_with_the_first_configuration_and_goes_with_the_drain() {
    let one = backend("one").await;
    // Even an empty configuration would be one.
    let xds = std::net::SocketAddr::from(([127, 0, 0, 1], weft_testkit::free_port()));
    let proxy = start(&Wish { xds, account: None, dir: None, extra: &[] });
    let reply = client::get(proxy.admin(), "/ready", &[]).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (503, "PRE_INITIALIZING\n"));
    let control = tokio::task::block_in_place(|| Control::start(xds.port()));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("l", "one"));
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let mut open = connect(address).await;
    assert_eq!(greeting(&mut open).await.unwrap(), "one");

    let drain = async |path| {
        let body = bytes::Bytes::new();
        client::send(client::Wire::H1, proxy.admin(), ::http::Method::POST, path, &[], body).await
    };
    assert_eq!(drain("/drain_listeners").await.unwrap().status, 200);
    let reply = client::get(proxy.admin(), "/healthz/ready", &[]).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (503, "DRAINING\n"));
    // Callers that have not heard yet are still served.
    let mut late = connect(address).await;
    assert_eq!(greeting(&mut late).await.unwrap(), "one");
    drop(late);
    open.write_all(b"q").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'q');
    // That only announced; a signal makes the process leave.
    proxy.proxy().shutdown();
    drop(open);
    tokio::time::timeout(LIMIT, proxy.proxy().ended())
        .await
        .expect("ends with the last connection");
    wait::until("the socket to close", LIMIT, || async {
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_ready_it_stays_ready_without_the_control_plane() {
    let one = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("l", "one"));
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    proxy.shows("/stats", "weft_proxy_control_plane_connected: 1").await;
    tokio::task::block_in_place(|| control.kill());
    proxy.shows("/stats", "weft_proxy_control_plane_connected: 0").await;
    let reply = client::get(proxy.admin(), "/ready", &[]).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "LIVE\n"));
    assert_eq!(greeting(&mut connect(address).await).await.unwrap(), "one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_leaves_ends_each_kind_of_connection_in_its_own_way() {
    let (app, one) = (changes::app().await, backend("one").await);
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set_all([
        (Cluster, static_cluster("web", &[app])),
        (Cluster, static_cluster("one", &[one])),
    ]);
    let mut web = http::listener("web", "INBOUND", "web", None);
    web["filter_chains"][0]["filters"][0]["typed_config"]["upgrade_configs"] =
        json!([{ "upgrade_type": "websocket" }]);
    control.set_all([(Listener, web), (Listener, tcp_listener("tcp", "one"))]);
    let proxy = plain(&control);
    proxy.ready().await;
    let to = proxy.listener("web").await;
    let mut h1 = client::Connection::connect(Wire::H1, to).await.unwrap();
    let mut h2 = client::Connection::connect(Wire::H2, to).await.unwrap();
    for kept in [&mut h1, &mut h2] {
        assert_eq!(kept.get("/", &[("host", "app")]).await.unwrap().status, 200);
    }
    let mut tcp = connect(proxy.listener("tcp").await).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), "one");
    let mut long = [changes::web_socket(to).await, tcp];

    // As SIGTERM does.
    proxy.proxy().shutdown();
    let last =
        h1.get("/", &[("host", "app")]).await.expect("a kept connection is served once more");
    assert_eq!((last.status, last.header("connection")), (200, "close"));
    let told = async {
        while h2.is_ready().await {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.expect("GOAWAY");
    for round in 0..3 {
        changes::each_echoes(&mut long, round).await;
    }
    drop(long);
    tokio::time::timeout(LIMIT, proxy.proxy().ended()).await.expect("nothing is left");
    tokio::task::block_in_place(|| control.kill());
}

/// The kernel's choice by hash would leave one of two workers with most of a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_connections_are_spread_over_all_workers() {
    let one = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("l", "one"));
    // It has two workers.
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let mut open = Vec::new();
    for each in 1..=3 {
        for _ in 0..2 {
            let mut tcp = connect(address).await;
            assert_eq!(greeting(&mut tcp).await.unwrap(), "one");
            open.push(tcp);
        }
        for worker in 0..2 {
            let line =
                format!("weft_proxy_worker_connections_active{{worker=\"{worker}\"}} {each}");
            proxy.shows("/stats/prometheus", &line).await;
        }
    }
    tokio::task::block_in_place(|| control.kill());
}

/// Idle connections give up their tasks after two seconds, which nobody can see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_connections_are_served_again_and_end_as_all_do() {
    let app = changes::app().await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("web", &[app]));
    control.set(Listener, http::listener("web", "INBOUND", "web", None));
    let mut short = http::listener("short", "INBOUND", "web", None);
    short["filter_chains"][0]["filters"][0]["typed_config"]["common_http_protocol_options"] =
        json!({ "idle_timeout": "3s" });
    control.set(Listener, short);
    let proxy = plain(&control);
    proxy.ready().await;
    let mut kept = Vec::new();
    for name in ["web", "web", "short"] {
        let to = proxy.listener(name).await;
        let mut one = client::Connection::connect(Wire::H1, to).await.unwrap();
        assert_eq!(one.get("/", &[("host", "app")]).await.unwrap().status, 200);
        kept.push(one);
    }
    proxy.shows("/stats", "weft_proxy_downstream_connections_parked_total: 3").await;
    assert_eq!(kept[0].get("/", &[("host", "app")]).await.unwrap().status, 200);
    // Its limit ends one, and the other is parked anew.
    proxy.shows("/stats", "weft_proxy_downstream_connections_active: 2").await;
    assert!(kept[2].get("/", &[("host", "app")]).await.is_err());
    proxy.shows("/stats", "weft_proxy_downstream_connections_parked_total: 4").await;
    proxy.proxy().shutdown();
    tokio::time::timeout(LIMIT, proxy.proxy().ended()).await.expect("idle ones are closed");
    for mut one in kept {
        assert!(one.get("/", &[("host", "app")]).await.is_err());
    }
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grace_period_ends_connections_that_stay() {
    let one = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("l", "one"));
    let extra = ["--termination-grace=300ms"];
    let proxy = start(&Wish { xds: control.address, account: None, dir: None, extra: &extra });
    proxy.ready().await;
    let mut open = connect(proxy.listener("l").await).await;
    assert_eq!(greeting(&mut open).await.unwrap(), "one");
    proxy.proxy().shutdown();
    tokio::time::timeout(LIMIT, proxy.proxy().ended()).await.expect("ends with the grace period");
    assert!(open.read_u8().await.is_err());
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_pages_answer() {
    let control = tokio::task::block_in_place(|| Control::start(0));
    let proxy = plain(&control);
    for path in [
        "/",
        "/stats",
        "/stats/prometheus",
        "/config_dump",
        "/config_dump?include_eds",
        "/clusters",
        "/clusters?format=json",
        "/listeners",
        "/listeners?format=json",
        "/certs",
        "/server_info",
    ] {
        let reply = client::get(proxy.admin(), path, &[]).await.unwrap();
        assert_eq!(reply.status, 200, "{path}");
    }
    for (path, status) in [("/nothing", 404), ("/quitquitquit", 405), ("/logging?level=info", 405)]
    {
        let reply = client::get(proxy.admin(), path, &[]).await.unwrap();
        assert_eq!(reply.status, status, "{path}");
    }
    tokio::task::block_in_place(|| control.kill());
}
