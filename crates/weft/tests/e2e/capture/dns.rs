//! DNS of a pod, captured: the C library asks its name server and hears from the sidecar where the
//! hosts of the mesh are, and from the name server where all others are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;
use weft_testkit::netns;

use super::pods::{Node, Pod};
use super::{ALL, exchange, get, inside, mesh, seen, serve};

/// Hosts that no name server knows, at addresses that only the control plane allocates.
const ENTRIES: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: default}
spec:
  hosts: [db.nowhere.test]
  resolution: STATIC
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  endpoints: [{address: 10.20.3.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other, namespace: default}
spec:
  hosts: [other.nowhere.test]
  resolution: STATIC
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  endpoints: [{address: 10.20.2.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: default}
spec:
  hosts: ['*.wild.test']
  addresses: [10.99.0.1]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.20.3.2, ports: {http: 8080}}]
---
";

/// What the C library finds: addresses of one family, each once.
fn found(pod: &Pod, database: &str, name: &str) -> Vec<IpAddr> {
    let output = pod.program(&["getent", database, name]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut ips: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .collect();
    // Where there is no IPv6 address the library makes one of IPv4's.
    ips.retain(|ip| ip.to_canonical() == *ip);
    ips.sort();
    ips.dedup();
    ips
}

/// Knows the address of `elsewhere.test`, and that nothing else exists.
async fn name_server(pod: &Pod) {
    pod.run(async {
        let socket = UdpSocket::bind(("0.0.0.0", 53)).await.expect("the port is free");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let question = &buffer[..length];
                let _ = socket.send_to(&answer(question), client).await;
            }
        });
    })
    .await;
}

/// RFC 1035 4.1: the question again, and one address where there is one.
fn answer(question: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"\x09elsewhere\x04test\0\0\x01\0\x01";
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
    let known = question[12..end].eq_ignore_ascii_case(NAME);
    let exists = question[12..end - 4].eq_ignore_ascii_case(&NAME[..NAME.len() - 4]);
    let mut answer = question[..end].to_vec();
    answer[2] = 0x81;
    answer[3] = if exists { 0x80 } else { 0x83 };
    answer[6..12].copy_from_slice(&[0, u8::from(known), 0, 0, 0, 0]);
    if known {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
    }
    answer
}

#[test]
fn a_host_that_no_name_server_knows_is_found_and_reached() {
    inside("capture::dns::a_host_that_no_name_server_knows_is_found_and_reached", async {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text = "nameserver 10.20.9.2\nsearch default.svc.cluster.local svc.cluster.local\n\
                    options ndots:5 timeout:20\n";
        std::fs::write(file.path(), text).expect("the file is writable");
        super::pods::readable(file.path());
        let mount = format!("mount --bind {} /etc/resolv.conf", file.path().display());
        netns::commands(&[&mount]);

        let yaml = mesh(&[("a", 1, true), ("b", 2, true), ("out", 3, false)]);
        let node = Node::start(&format!("{yaml}{ENTRIES}")).await;
        let ns = node.pod("ns", 9);
        name_server(&ns).await;
        let a = node.mesh_pod("a", 1, &[&ALL[..], &["--redirect-dns"]].concat()).await;
        let (b, out) = (node.mesh_pod("b", 2, &ALL).await, node.pod("out", 3));
        let (_b, _out) = (serve(&b).await, serve(&out).await);
        let v4 = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 96, 0, last));

        // Services by all their names, in both families; headless ones by their pods.
        for name in ["b", "b.default", "b.default.svc", "b.default.svc.cluster.local"] {
            assert_eq!(found(&a, "ahostsv4", name), [v4(2)], "{name}");
        }
        assert_eq!(found(&a, "ahostsv6", "b"), ["fd96::2".parse::<IpAddr>().expect("one")]);
        assert_eq!(found(&a, "ahostsv4", "b-headless"), [b.v4()]);
        let at = SocketAddr::new(found(&a, "ahostsv4", "b")[0], 8080);
        assert_eq!(seen(&get(&a, at, "b:8080", "").await), ("b".into(), true));

        // Entries without addresses: each its own, and bytes to each reach its endpoint.
        let [db, other] = ["db.nowhere.test", "other.nowhere.test"].map(|name| {
            let ips = found(&a, "ahostsv4", name);
            assert_eq!(ips.len(), 1, "{name}: {ips:?}");
            assert!(ips[0].to_string().starts_with("240.240."), "{name}: {ips:?}");
            ips[0]
        });
        assert_eq!(exchange(&a, (db, 9000).into(), true).await, "out");
        assert_eq!(exchange(&a, (other, 9000).into(), true).await, "b");
        let wild = found(&a, "ahostsv4", "any.wild.test");
        assert_eq!(wild, [IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1))]);
        assert_eq!(found(&a, "ahostsv6", "any.wild.test"), [] as [IpAddr; 0], "it has none");

        // All others are the name server's, over UDP; who has no capture hears from it alone.
        assert_eq!(found(&a, "ahostsv4", "elsewhere.test"), [IpAddr::from([192, 0, 2, 7])]);
        assert_eq!(found(&a, "ahostsv4", "missing.test"), [] as [IpAddr; 0]);
        assert_eq!(found(&b, "ahostsv4", "db.nowhere.test"), [] as [IpAddr; 0]);
        assert_eq!(found(&b, "ahostsv4", "elsewhere.test"), [IpAddr::from([192, 0, 2, 7])]);
        // Over TCP, which the name server does not even speak.
        let words = ["env", "RES_OPTIONS=use-vc", "getent", "ahostsv4", "db.nowhere.test"];
        let output = a.program(&words);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with(&db.to_string()), "{text}");

        let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
        let metrics = weft_testkit::client::get(admin, "/stats/prometheus", &[]);
        let metrics = a.run(metrics).await.expect("metrics").text();
        let count = |result: &str| {
            let start = format!("weft_proxy_dns_queries_total{{result=\"{result}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(start.as_str()));
            line.and_then(|number| number.parse::<u64>().ok())
                .unwrap_or_else(|| panic!("{metrics}"))
        };
        assert!(count("mesh") >= 10 && count("forwarded") > 0, "{metrics}");
        assert_eq!((count("failed"), count("overflow")), (0, 0));
    });
}
