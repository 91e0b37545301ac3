//! Real capture: each pod a network namespace with `weft init`'s rules and a proxy of user 1337,
//! and what its applications, its neighbours and the wire see of it. As root.

mod dns;
mod faults;
mod init;
mod pods;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use weft_testkit::backend::{self, Backend};
use weft_testkit::client::{self, Reply};
use weft_testkit::netns;

use pods::{Node, Pod, Wire};

/// How long an exchange may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const PROBE: &str = "ip link add probe type veth peer name other";
const ALL: [&str; 8] = ["-b", "*", "-d", "15020,15021,15090", "-i", "*", "-o", "7777"];
/// What the tests' services declare, and nothing else.
const DECLARED: [&str; 4] = ["-b", "8080,8082,9000", "-i", "*"];

/// Services `name` at 10.96.0.NUMBER and fd96::NUMBER.
fn mesh(pods: &[(&str, u8, bool)]) -> String {
    let mut yaml = String::new();
    for (name, number, in_mesh) in pods {
        let tls = if *in_mesh { ", security.istio.io/tlsMode: istio" } else { "" };
        yaml.push_str(&format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: 10.96.0.{number}
  clusterIPs: [10.96.0.{number}, \"fd96::{number}\"]
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 8080}}
  - {{name: grpc, port: 8082}}
  - {{name: tcp, port: 9000}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}-headless, namespace: default}}
spec:
  clusterIP: None
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 8080}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}{tls}}}}}
spec: {{serviceAccountName: {name}}}
status: {{phase: Running, podIP: 10.20.{number}.2, podIPs: [{{ip: 10.20.{number}.2}}, {{ip: \"fd20:{number}::2\"}}]}}
---
"
        ));
    }
    yaml
}

fn service(number: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, number], port))
}

fn service_v6(number: u8, port: u16) -> SocketAddr {
    SocketAddr::new(format!("fd96::{number}").parse().expect("an address"), port)
}

fn inside(name: &str, test: impl Future<Output = ()>) {
    if netns::inside(name, PROBE) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }
}

/// Servers of a pod: HTTP at 8080 and 8082, a greeting at 9000, and a teller at two ports that
/// nobody declared.
async fn serve(pod: &Pod) -> [Backend; 3] {
    let name = pod.name;
    pod.teller(7777).await;
    pod.teller(54321).await;
    pod.run(async move {
        [
            backend::http(name, "[::]:8080").await,
            backend::http(name, "[::]:8082").await,
            backend::tcp_echo(name, "[::]:9000").await,
        ]
    })
    .await
}

async fn get(from: &Pod, to: SocketAddr, host: &str, mark: &str) -> Reply {
    let (host, mark) = (host.to_owned(), mark.to_owned());
    let headers = async move { client::get(to, "/", &[("host", &host), ("x-mark", &mark)]).await };
    let reply = from.run(headers).await;
    let reply = reply.unwrap_or_else(|error| panic!("{} to {to}: {error:#}", from.name));
    assert_eq!(reply.status, 200, "{} to {to}: {}", from.name, reply.text());
    reply
}

/// The server's name and whether it was reached over mutual TLS.
fn seen(reply: &Reply) -> (String, bool) {
    let body = reply.json();
    let mtls = body["headers"].to_string().contains("x-forwarded-client-cert");
    (body["name"].as_str().unwrap_or_default().to_owned(), mtls)
}

async fn grpc(from: &Pod, to: SocketAddr, host: &str) {
    let host = host.to_owned();
    let call = async move {
        let headers =
            [("host", host.as_str()), ("content-type", "application/grpc"), ("te", "trailers")];
        let message = bytes::Bytes::from_static(b"\0\0\0\0\x02hi");
        client::send(client::Wire::H2, to, Method::POST, "/a.B/C", &headers, message).await
    };
    let reply = from.run(call).await.expect("a gRPC answer");
    assert_eq!(&reply.body[5..], b"hi", "{to}");
    assert_eq!(reply.trailers["grpc-status"], "0", "{to}");
}

/// What a teller says; nothing if the connection leads nowhere.
async fn hears(from: &Pod, to: SocketAddr) -> std::io::Result<String> {
    from.run(async move {
        let read = async {
            let mut stream = TcpStream::connect(to).await?;
            stream.write_all(b"who am I?").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok(text)
        };
        tokio::time::timeout(LIMIT, read).await.expect("an answer or an end in time")
    })
    .await
}

/// A server that speaks first is heard, and hears.
async fn greeting(from: &Pod, to: SocketAddr) -> String {
    exchange(from, to, true).await
}

/// What the server greets with, and its echo, whoever of both speaks first.
async fn exchange(from: &Pod, to: SocketAddr, server_first: bool) -> String {
    from.run(async move {
        let exchange = async {
            let mut stream = TcpStream::connect(to).await.expect("connects");
            let mut text = Vec::new();
            if !server_first {
                stream.write_all(b"ping").await.expect("writes");
            }
            while !text.contains(&b'\n') {
                assert!(stream.read_buf(&mut text).await.expect("reads") > 0, "closed");
            }
            if server_first {
                stream.write_all(b"ping").await.expect("writes");
            }
            let greeting = text.iter().position(|byte| *byte == b'\n').expect("it was read");
            let mut echo = text.split_off(greeting + 1);
            while echo.len() < 4 {
                assert!(stream.read_buf(&mut echo).await.expect("reads") > 0, "closed");
            }
            assert_eq!(echo, b"ping");
            String::from_utf8_lossy(&text).trim_end().to_owned()
        };
        tokio::time::timeout(LIMIT, exchange).await.expect("an exchange in time")
    })
    .await
}

#[test]
fn mesh_and_other_pods_reach_each_other_with_mutual_tls_where_both_have_it() {
    let name = "capture::mesh_and_other_pods_reach_each_other_with_mutual_tls_where_both_have_it";
    inside(name, async {
        let node = Node::start(&mesh(&[("a", 1, true), ("b", 2, true), ("out", 3, false)])).await;
        let wire = Wire::tap();
        let a = node.mesh_pod("a", 1, &ALL).await;
        let b = node.mesh_pod("b", 2, &DECLARED).await;
        let (n, m) = (node.pod("out", 3), node.pod("m", 4));
        let (_b, _n) = (serve(&b).await, serve(&n).await);

        // Mesh to mesh, by either address of the Service and by the pod's own.
        for (number, to) in
            [service(2, 8080), service_v6(2, 8080), (b.v4(), 8080).into()].into_iter().enumerate()
        {
            let host = if number == 2 { "b-headless:8080" } else { "b:8080" };
            let reply = get(&a, to, host, "between-sidecars").await;
            assert_eq!(seen(&reply), ("b".into(), true), "{to}");
        }
        grpc(&a, service(2, 8082), "b:8082").await;
        for to in [service(2, 9000), service_v6(2, 9000)] {
            assert_eq!(greeting(&a, to).await, "b", "{to}");
        }
        // Nobody's address but the pod's: passed on as it is, in plain text.
        for server_first in [false, true] {
            assert_eq!(exchange(&a, (b.v6(), 9000).into(), server_first).await, "b");
        }
        for port in [8080, 8082, 9000] {
            assert!(wire.begins_tls(a.v4(), b.v4(), port), "no TLS to port {port}");
        }
        assert!(!wire.shows("between-sidecars"));

        // Mesh to elsewhere, elsewhere to mesh, elsewhere to elsewhere: in the clear.
        let reply = get(&a, service(3, 8080), "out:8080", "from-sidecar").await;
        assert_eq!(seen(&reply), ("out".into(), false));
        assert!(wire.shows("from-sidecar"));
        grpc(&a, service(3, 8082), "out:8082").await;
        assert_eq!(greeting(&a, service(3, 9000)).await, "out");
        for (from, to, expect) in [(&n, &b, "b"), (&m, &n, "out")] {
            for ip in [to.v4(), to.v6()] {
                let reply = get(from, (ip, 8080).into(), expect, "to-anybody").await;
                assert_eq!(seen(&reply), (expect.into(), false), "{ip}");
                grpc(from, (ip, 8082).into(), expect).await;
                for server_first in [false, true] {
                    let heard = exchange(from, (ip, 9000).into(), server_first).await;
                    assert_eq!(heard, expect, "{ip}, server first: {server_first}");
                }
            }
        }
        assert!(wire.shows("to-anybody"));
    });
}

#[test]
fn a_pod_reaches_itself_and_nothing_goes_round() {
    inside("capture::a_pod_reaches_itself_and_nothing_goes_round", async {
        let node = Node::start(&mesh(&[("a", 1, true)])).await;
        let (a, n) = (node.mesh_pod("a", 1, &ALL).await, node.pod("out", 3));
        let servers = serve(&a).await;

        // By its Service it goes through both sides of the proxy, as any caller's request.
        for to in [service(1, 8080), service_v6(1, 8080)] {
            assert_eq!(seen(&get(&a, to, "a:8080", "").await), ("a".into(), true), "{to}");
        }
        assert_eq!(servers[0].served(), 2);
        // By its own address or loopback it does not leave the pod, and meets no proxy.
        for ip in [a.v4(), a.v6(), "127.0.0.1".parse().expect("an address")] {
            let reply = get(&a, (ip, 8080).into(), "a:8080", "").await;
            assert_eq!(seen(&reply), ("a".into(), false), "{ip}");
            assert!(!reply.text().contains("x-request-id"), "{ip}");
        }
        assert_eq!(greeting(&a, service(1, 9000)).await, "a");

        // The proxy's own ports lead nowhere, from inside and from outside.
        for from in [&a, &n] {
            for ip in [a.v4(), a.v6()] {
                for port in [15001, 15006] {
                    let heard = hears(from, (ip, port).into()).await.unwrap_or_default();
                    assert_eq!(heard, "", "{} to {ip}:{port}", from.name);
                }
            }
        }
        let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
        let info = a.run(client::get(admin, "/server_info", &[])).await.expect("an answer").json();
        let open = info["open_connections"].as_u64().expect("a number");
        assert!(open < 10, "{open} connections are open");
    });
}

#[test]
fn a_kubelet_is_answered_and_hooks_run() {
    inside("capture::a_kubelet_is_answered_and_hooks_run", async {
        // Nobody without a certificate gets through to the application.
        let strict = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
";
        let node = Node::start(&format!("{}{strict}", mesh(&[("a", 1, true)]))).await;
        let (a, kubelet) = (node.mesh_pod("a", 1, &ALL).await, node.pod("kubelet", 3));
        let ask = async |ip: IpAddr, port: u16, path: &'static str| {
            let to = SocketAddr::new(ip, port);
            kubelet.run(async move { client::get(to, path, &[]).await }).await
        };
        let probe =
            async |ip| ask(ip, 15020, "/app-health/app/livez").await.expect("an answer").status;
        assert_eq!(probe(a.v4()).await, 500, "nobody listens yet");
        let servers = serve(&a).await;
        for ip in [a.v4(), a.v6()] {
            assert_eq!(probe(ip).await, 200, "{ip}");
            assert!(ask(ip, 8080, "/").await.is_err(), "{ip}: plain text is refused");
            let ready = ask(ip, 15021, "/healthz/ready").await.expect("an answer");
            assert_eq!(ready.status, 200, "{ip}");
        }
        assert_eq!(servers[0].served(), 2);

        let wait = a.command(&["wait"]);
        assert!(wait.status.success(), "{}", String::from_utf8_lossy(&wait.stderr));
        let drain = a.command(&["drain"]);
        assert!(drain.status.success(), "{}", String::from_utf8_lossy(&drain.stderr));
        let leaving = ask(a.v4(), 15021, "/healthz/ready").await.expect("an answer");
        assert_eq!(leaving.status, 503);
        let wait = a.command(&["wait", "--timeout-seconds=0"]);
        let said = String::from_utf8_lossy(&wait.stderr).into_owned();
        assert!(
            !wait.status.success() && said.contains("not ready after 0ns: HTTP/1.1 503"),
            "{said}"
        );
    });
}

#[test]
fn what_is_not_asked_for_is_not_touched() {
    inside("capture::what_is_not_asked_for_is_not_touched", async {
        let node = Node::start(&mesh(&[("a", 1, true), ("b", 2, true)])).await;
        let a = node.mesh_pod("a", 1, &ALL).await;
        let b = node.mesh_pod("b", 2, &DECLARED).await;
        let n = node.pod("out", 3);
        let _b = serve(&b).await;
        let sees = async |from: &Pod, ip: IpAddr, port: u16| {
            hears(from, (ip, port).into()).await.expect("an answer")
        };

        // A port nobody declared, and one excluded by the caller: the other side is the client.
        for (client, port) in [(&n, 54321), (&n, 7777), (&a, 7777)] {
            assert_eq!(sees(client, b.v4(), port).await, client.v4().to_string(), "{port}");
            assert_eq!(sees(client, b.v6(), port).await, client.v6().to_string(), "{port}");
        }
        // A declared one comes through the proxy.
        let reply = get(&n, (b.v4(), 8080).into(), "b", "").await;
        assert!(reply.text().contains("x-request-id"), "{}", reply.text());

        // UDP keeps its addresses in both directions.
        let at: SocketAddr = (b.v4(), 5353).into();
        b.run(async move {
            let socket = UdpSocket::bind(at).await.expect("the port is free");
            tokio::spawn(async move {
                let mut buffer = [0; 16];
                while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(peer.to_string().as_bytes(), peer).await;
                }
            });
        })
        .await;
        let ip = a.v4();
        a.run(async move {
            let socket = UdpSocket::bind((ip, 0)).await.expect("a port is free");
            socket.connect(at).await.expect("a route");
            socket.send(b"who am I").await.expect("sends");
            let mut buffer = [0; 64];
            let read = tokio::time::timeout(LIMIT, socket.recv(&mut buffer)).await;
            let read = read.expect("an answer in time").expect("an answer");
            let own = socket.local_addr().expect("it is bound").to_string();
            assert_eq!(String::from_utf8_lossy(&buffer[..read]), own);
        })
        .await;
    });
}

#[test]
fn with_tproxy_the_application_sees_its_client() {
    inside("capture::with_tproxy_the_application_sees_its_client", async {
        let node = Node::start(&mesh(&[("a", 1, true), ("t", 5, true)])).await;
        let a = node.mesh_pod("a", 1, &ALL).await;
        let t = node.mesh_pod("t", 5, &[&["-m", "TPROXY"], &ALL[..]].concat()).await;
        let n = node.pod("out", 3);
        t.teller(9000).await;
        let _http = t.run(async { backend::http("t", "[::]:8080").await }).await;

        for (client, to) in [(&n, (t.v4(), 9000).into()), (&a, service(5, 9000))] {
            let heard = hears(client, to).await.expect("an answer");
            assert_eq!(heard, client.v4().to_string(), "{} to {to}", client.name);
        }
        let heard = hears(&n, (t.v6(), 9000).into()).await.expect("an answer");
        assert_eq!(heard, n.v6().to_string());
        // Itself: by its Service through the proxy, by its own address without.
        assert_eq!(seen(&get(&t, service(5, 8080), "t:8080", "").await), ("t".into(), true));
        assert_eq!(hears(&t, service(5, 9000)).await.expect("an answer"), t.v4().to_string());
        assert_eq!(hears(&t, (t.v4(), 9000).into()).await.expect("an answer"), t.v4().to_string());
    });
}
