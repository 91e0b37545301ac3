//! Who the endpoint takes the client for: PROXY protocol towards it, and the client's own address
//! with TPROXY capture (in network namespaces, as root).

use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weft_testkit::netns;
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::http;
use crate::rig::*;

/// An HTTP server that answers each request with what its connection began with before the first
/// request (a PROXY header), the connection's number, and its peer address.
async fn telling(at: &str) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((tcp, peer)) = listener.accept().await else { return };
            tokio::spawn(tell(tcp, peer, number));
        }
    });
    address
}

async fn tell(mut tcp: TcpStream, peer: SocketAddr, number: u32) {
    let (mut read, mut header) = (Vec::new(), None);
    while tcp.read_buf(&mut read).await.is_ok_and(|n| n > 0) {
        // Version 2 of the header has blank lines of its own.
        let Some(start) = find(&read, b"GET /") else { continue };
        let Some(end) = find(&read[start..], b"\r\n\r\n").map(|end| start + end) else { continue };
        let header = header.get_or_insert_with(|| hex(&read[..start]));
        let body = format!("{header} #{number} {peer}\n");
        read.drain(..end + 4);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if tcp.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn announcing(name: &str, to: SocketAddr, version: &str) -> Value {
    let mut cluster = static_cluster(name, &[to]);
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.upstream_proxy_protocol",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            "config": { "version": version },
            "transport_socket": {
                "name": "envoy.transport_sockets.raw_buffer",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
                },
            },
        },
    });
    cluster
}

struct Client(TcpStream);

impl Client {
    async fn from(from: &str, to: SocketAddr) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        Client(socket.connect(to).await.unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// What the server says of our connection: header, number.
    async fn ask(&mut self) -> (String, String) {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\n") || find(&read, b" #").is_none() {
            let more = tokio::time::timeout(LIMIT, self.0.read_buf(&mut read)).await;
            assert!(more.expect("an answer in time").unwrap() > 0, "closed");
        }
        let text = String::from_utf8(read).unwrap();
        let body = text.rsplit_once("\r\n\r\n").unwrap().1;
        let mut words = body.split(' ');
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    }
}

fn header_v1(from: SocketAddr, to: SocketAddr) -> String {
    let line = format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
    hex(line.as_bytes())
}

fn header_v2(from: SocketAddr, to: SocketAddr) -> String {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4 here") };
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    hex(&bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_is_announced_on_connections_of_its_own() {
    let server = telling("127.0.0.1:0").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    for version in ["V1", "V2"] {
        control.set(Cluster, announcing(version, server, version));
        control.set(Listener, http::listener(&format!("http{version}"), "OUTBOUND", version, None));
        control.set(Listener, tcp_listener(&format!("tcp{version}"), version));
    }
    let proxy = start(&Wish {
        xds: control.address,
        account: None,
        dir: None,
        extra: &["--termination-grace=1s"],
    });
    proxy.ready().await;
    for (version, expect) in [("V1", header_v1 as fn(_, _) -> _), ("V2", header_v2)] {
        for kind in ["http", "tcp"] {
            let to = proxy.listener(&format!("{kind}{version}")).await;
            let mut one = Client::from("127.0.0.1:0", to).await;
            let mut two = Client::from("127.0.0.2:0", to).await;
            let first = one.ask().await;
            let second = two.ask().await;
            assert_eq!(first.0, expect(one.address(), to), "{kind} {version}");
            assert_eq!(second.0, expect(two.address(), to), "{kind} {version}");
            assert_ne!(first.1, second.1, "two clients shared a connection");
            // The same client's connection is kept.
            assert_eq!(one.ask().await, first, "{kind} {version}");
        }
    }
    tokio::task::block_in_place(|| control.kill());
}

const TPROXY: &str = "source::with_tproxy_the_application_sees_the_client";

/// Istio's rules for TPROXY, and a client behind a cable.
const RULES: &[&str] = &[
    "mount -t tmpfs tmpfs /run/netns",
    "ip link set lo up",
    "ip netns add client",
    "ip link add cable type veth peer name eth0 netns client",
    "ip address add 10.9.0.2/24 dev cable",
    "ip link set cable up",
    "ip netns exec client ip address add 10.9.0.1/24 dev eth0",
    "ip netns exec client ip link set eth0 up",
    "ip rule add fwmark 1337 lookup 133",
    "ip route add local default dev lo table 133",
    "iptables -t mangle -N DIVERT",
    "iptables -t mangle -A DIVERT -j MARK --set-mark 1337",
    "iptables -t mangle -A DIVERT -j ACCEPT",
    "iptables -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
    "iptables -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j RETURN",
    "iptables -t mangle -A PREROUTING -i cable -p tcp -m conntrack --ctstate ESTABLISHED -j DIVERT",
    "iptables -t mangle -A PREROUTING -i cable -p tcp -j TPROXY --tproxy-mark 1337 --on-port 15006",
    "iptables -t mangle -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
];

#[test]
fn with_tproxy_the_application_sees_the_client() {
    if !netns::inside(TPROXY, "iptables -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 1") {
        return;
    }
    std::fs::create_dir_all("/run/netns").unwrap();
    netns::commands(RULES);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::spawn(tproxy()).await.unwrap() });
}

async fn tproxy() {
    for port in [8080, 9090] {
        telling(&format!("10.9.0.2:{port}")).await;
    }
    let control = tokio::task::block_in_place(|| Control::start(0));
    let mut passthrough = static_cluster("passthrough", &[]);
    passthrough.as_object_mut().unwrap().remove("load_assignment");
    passthrough["type"] = json!("ORIGINAL_DST");
    passthrough["lb_policy"] = json!("CLUSTER_PROVIDED");
    control.set(Cluster, passthrough);
    control.set(
        Listener,
        json!({
            "name": "virtualInbound",
            "address": socket_address("0.0.0.0:15006".parse().unwrap()),
            "traffic_direction": "INBOUND",
            "transparent": true,
            "listener_filters": [
                inspector("original_dst", "OriginalDst"),
                {
                    "name": "envoy.filters.listener.original_src",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc",
                        "mark": 1337,
                    },
                },
            ],
            "filter_chains": [
                {
                    "filter_chain_match": { "destination_port": 8080 },
                    "filters": [http::hcm("passthrough")],
                },
                { "filters": [tcp_proxy("passthrough")] },
            ],
        }),
    );
    let proxy = plain(&control);
    proxy.ready().await;
    for (port, from) in [(9090, 41_001), (8080, 41_002)] {
        let told = curl(port, from).await;
        assert!(told.contains(" 10.9.0.1:"), "port {port}: {told}");
    }
    tokio::task::block_in_place(|| control.kill());
}

/// A request from the client's namespace and a port of its own choice.
async fn curl(port: u16, from: u16) -> String {
    let output = tokio::task::spawn_blocking(move || {
        Command::new("ip")
            .args(["netns", "exec", "client", "curl", "-sS", "--max-time", "5", "--local-port"])
            .args([from.to_string(), format!("http://10.9.0.2:{port}/")])
            .output()
            .unwrap()
    });
    let output = output.await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "port {port}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
