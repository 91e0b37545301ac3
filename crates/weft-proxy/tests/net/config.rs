//! Configuration changes: what stays open, what is refused, what survives a restart.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_testkit::client::{Connection, Wire};
use weft_testkit::wait;
use weft_xds::ResourceType::{Cluster, Endpoint, Listener, Route};

use crate::control::Control;
use crate::rig::*;
use crate::{changes, http};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_listener_keeps_its_socket_and_its_connections() {
    let (one, two) = (backend("one").await, backend("two").await);
    let control = tokio::task::block_in_place(|| Control::start(weft_testkit::free_port()));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Cluster, static_cluster("two", &[two]));
    control.set(Listener, tcp_listener("l", "one"));
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let mut old = connect(address).await;
    assert_eq!(greeting(&mut old).await.unwrap(), "one");

    control.set(Listener, tcp_listener("l", "two"));
    wait::until("the change", LIMIT, || async {
        (greeting(&mut connect(address).await).await.unwrap() == "two").then_some(())
    })
    .await;
    assert_eq!(proxy.listener("l").await, address, "port 0 was not bound again");

    control.remove(Listener, "l");
    wait::until("the listener to go", LIMIT, || async {
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    old.write_all(b"z").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'z', "its connections go on");
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_resource_is_refused_by_path_and_the_others_are_used() {
    let one = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(weft_testkit::free_port()));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("l", "one"));
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;

    let mut bad = tcp_listener("l", "one");
    bad["filter_chains"][0]["filters"][0] = json!({
        "name": "envoy.filters.network.echo",
        "typed_config": { "@type": "type.googleapis.com/google.protobuf.Struct", "value": {} },
    });
    control.set_all([(Listener, bad), (Listener, tcp_listener("m", "one"))]);
    let reason = control.refusal(Listener).await;
    assert!(reason.contains("listener \"l\".filter_chains[0].filters[0]"), "{reason}");
    assert_eq!(greeting(&mut connect(address).await).await.unwrap(), "one", "last good stays");
    let other = proxy.listener("m").await;
    assert_eq!(greeting(&mut connect(other).await).await.unwrap(), "one");
    let dump = proxy.page("/config_dump").await;
    assert!(dump.contains("error_state") && dump.contains("filter_chains[0].filters[0]"), "{dump}");
    assert!(proxy.page("/stats").await.contains("type=\"lds\",result=\"rejected\"}: 1"));
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_resource_in_the_first_answer_does_not_keep_the_good_ones_from_serving() {
    let one = backend("one").await;
    let control = tokio::task::block_in_place(|| Control::start(weft_testkit::free_port()));
    let mut bad_cluster = static_cluster("bad", &[one]);
    bad_cluster["health_checks"] = json!([{ "timeout": "1s", "interval": "1s", "unhealthy_threshold": 1,
                 "healthy_threshold": 1, "tcp_health_check": {} }]);
    let mut bad_listener = tcp_listener("bad", "one");
    bad_listener["filter_chains"][0]["filters"] = json!([]);
    control.set_all([
        (Cluster, static_cluster("one", &[one])),
        (Cluster, bad_cluster),
        (Listener, tcp_listener("l", "one")),
        (Listener, bad_listener),
    ]);
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    assert_eq!(greeting(&mut connect(address).await).await.unwrap(), "one");
    assert!(control.refusal(Cluster).await.contains("health_checks"));
    assert!(control.refusal(Listener).await.contains("\"bad\""));
    assert!(proxy.page("/config_dump").await.contains("error_state"));
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_the_control_plane_serves_what_was_accepted_last() {
    let dir = tempfile::tempdir().unwrap();
    let one = backend("one").await;
    let port = weft_testkit::free_port();
    let mut listener = tcp_listener("l", "one");
    listener["address"]["socket_address"]["port_value"] = json!(port);
    let control = tokio::task::block_in_place(|| Control::start(weft_testkit::free_port()));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, listener);
    let wish =
        Wish { xds: control.address, account: Some("app"), dir: Some(dir.path()), extra: &[] };
    let first = start(&wish);
    first.ready().await;
    let saved = dir.path().join("state/config.saved");
    wait::until("the saved copy", LIMIT, || async { saved.exists().then_some(()) }).await;
    wait::until("the identity", LIMIT, || async {
        dir.path().join("state/identity.pem").exists().then_some(())
    })
    .await;
    tokio::task::block_in_place(|| drop(first));
    let xds = control.address;
    tokio::task::block_in_place(|| control.kill());

    let second = start(&wish);
    second.ready().await;
    let address = second.listener("l").await;
    assert_eq!(address.port(), port);
    assert_eq!(greeting(&mut connect(address).await).await.unwrap(), "one");
    assert!(second.page("/certs").await.contains("spiffe://cluster.local/ns/default/sa/app"));

    // Back again, with another world: what is gone there goes here too.
    let control = tokio::task::block_in_place(|| Control::start(xds.port()));
    control.set(Cluster, static_cluster("one", &[one]));
    control.set(Listener, tcp_listener("m", "one"));
    let other = second.listener("m").await;
    assert_eq!(greeting(&mut connect(other).await).await.unwrap(), "one");
    wait::until("the old listener to go", LIMIT, || async {
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    tokio::task::block_in_place(|| control.kill());
}

/// Requests move from cluster to cluster, each new, with endpoints that are asked for only when the
/// cluster is known and come behind the route.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_to_a_new_cluster_waits_for_its_endpoints() {
    const ROUNDS: u32 = 20;
    let app = changes::app().await;
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let control = tokio::task::block_in_place(|| Control::start(0));
    let lead_to = |round: u32| {
        let name = format!("c{round}");
        control.set_all([
            (Cluster, json!({
                "name": name, "type": "EDS", "connect_timeout": "5s",
                "eds_cluster_config": { "eds_config": ads },
            })),
            (Endpoint, assignment(&name, &[app])),
            (Route, json!({ "name": "routes", "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{
                    "match": { "prefix": "/" },
                    "route": { "cluster": name },
                    "response_headers_to_add": [{ "header": { "key": "x-round", "value": name } }],
                }],
            }]})),
        ]);
        name
    };
    lead_to(0);
    let mut listener = http::listener("web", "INBOUND", "", None);
    let hcm = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    hcm.as_object_mut().unwrap().remove("route_config");
    hcm["rds"] = json!({ "route_config_name": "routes", "config_source": ads });
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let mut client = Connection::connect(Wire::H1, proxy.listener("web").await).await.unwrap();
    for round in 1..=ROUNDS {
        let name = lead_to(round);
        if round > 1 {
            control.remove(Cluster, &format!("c{}", round - 2));
        }
        let start = std::time::Instant::now();
        loop {
            let reply = client.get("/", &[("host", "app")]).await.unwrap();
            assert_eq!(reply.status, 200, "round {round}: {reply:?}");
            if reply.header("x-round") == name {
                break;
            }
            assert!(start.elapsed() < LIMIT, "round {round} is never reached");
        }
    }
    tokio::task::block_in_place(|| control.kill());
}
