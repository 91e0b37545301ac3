//! Start and stop.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_testkit::{client, wait};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_comes_with_the_first_configuration_and_goes_with_the_drain() {
    let one = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    let proxy = plain(&control);
    let reply = client::get(proxy.admin(), "/ready", &[]).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (503, "PRE_INITIALIZING\n"));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("l", "one"));
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let mut open = connect(address).await;
    assert_eq!(greeting(&mut open).await.unwrap(), "one");

    let drain = async |path| {
        let body = bytes::Bytes::new();
        client::send(client::Wire::H1, proxy.admin(), http::Method::POST, path, &[], body).await
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
