//! Real traffic capture: iptables REDIRECT in a network namespace of its own, so that the rules
//! touch nothing else. The test runs itself again inside the namespace. Needs root.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::rig::*;

const INSIDE: &str = "WEFT_TEST_INSIDE_NAMESPACE";
const NAME: &str = "capture::captured_connections_reach_the_listener_of_their_destination";
/// Where virtualOutbound is bound.
const PORT: u16 = 15001;

#[test]
fn captured_connections_reach_the_listener_of_their_destination() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let itself = std::env::current_exe().unwrap();
    let probe = Command::new("unshare").args(["-n", "iptables", "-t", "nat", "-L"]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        _ => return weft_testkit::peer::skip(NAME, "needs root, unshare and iptables"),
    }
    let output = Command::new("unshare")
        .arg("-n")
        .arg(itself)
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
}

fn inside() {
    let commands = [
        "ip link set lo up".to_owned(),
        "ip address add 10.9.255.1/16 dev lo".to_owned(),
        format!("iptables -t nat -A OUTPUT -p tcp -d 10.9.0.0/16 -j REDIRECT --to-ports {PORT}"),
    ];
    for command in commands {
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{command}");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::spawn(captured()).await.unwrap() });
}

async fn captured() {
    let (exact, wildcard, rest) =
        (backend("exact").await, backend("wildcard").await, backend("rest").await);
    let control = tokio::task::block_in_place(|| Control::start(0));
    for (name, address) in [("exact", exact), ("wildcard", wildcard), ("rest", rest)] {
        control.set(Cluster, static_cluster(name, &[address]));
    }
    let at = |address: &str| socket_address(address.parse::<SocketAddr>().unwrap());
    for (name, address, cluster) in [
        ("10.9.0.1_80", "10.9.0.1:80", "exact"),
        ("0.0.0.0_80", "0.0.0.0:80", "wildcard"),
        ("virtualOutbound", "0.0.0.0:15001", "rest"),
    ] {
        let mut listener = tcp_listener(name, cluster);
        listener["address"] = at(address);
        match name == "virtualOutbound" {
            true => listener["use_original_dst"] = json!(true),
            false => listener["bind_to_port"] = json!(false),
        }
        control.set(Listener, listener);
    }
    let proxy = plain(&control);
    proxy.ready().await;
    for (to, expect) in
        [("10.9.0.1:80", "exact"), ("10.9.0.2:80", "wildcard"), ("10.9.0.1:443", "rest")]
    {
        let mut stream = connect(to.parse().unwrap()).await;
        assert_eq!(greeting(&mut stream).await.unwrap(), expect, "{to}");
        stream.write_all(b"v").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'v');
    }
    tokio::task::block_in_place(|| control.kill());
}
