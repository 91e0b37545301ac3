use super::*;
use weft_telemetry::load::latency_bucket;

/// What one proxy tells.
struct Told {
    sender: Sender,
    report: report::ReportRequest,
}

fn sender(workload: &str) -> Sender {
    Sender {
        namespace: "shop".into(),
        workload: workload.into(),
        principal: format!("spiffe://mesh/ns/shop/sa/{workload}").into(),
    }
}

fn peer(workload: &str) -> report::Peer {
    let namespace = if workload.is_empty() { "" } else { "shop" };
    report::Peer { workload: workload.into(), namespace: namespace.into(), ..Default::default() }
}

impl Told {
    fn by(workload: &str, instance: u64) -> Self {
        let report = report::ReportRequest {
            node: format!("sidecar~10.0.0.1~{workload}.shop~x"),
            instance,
            ..Default::default()
        };
        Self { sender: sender(workload), report }
    }

    fn load(&mut self, side: Side, other: report::Peer, host: &str, path: &str, code: u32, n: u64) {
        let Told { report, .. } = self;
        report.peers.push(other);
        report.services.push(report::Service { host: host.into(), ..Default::default() });
        let (other, service) = (report.peers.len() as u32 - 1, report.services.len() as u32 - 1);
        let flags = if host.is_empty() { "NR" } else { "" };
        report.loads.push(report::Load {
            side: side.into(),
            source: other,
            destination: other,
            service,
            method: "GET".into(),
            path: path.into(),
            requests: n,
            mtls: side == Side::Destination,
            ends: vec![report::Ends { code, flags: flags.into(), grpc: 0, requests: n }],
            buckets: vec![latency_bucket(2000).into()],
            counts: vec![n as u32],
            duration_us: 2000 * n,
            ..Default::default()
        });
    }

    fn send(mut self, store: &mut Store, sequence: u64) -> bool {
        self.report.sequence = sequence;
        store.take(&self.report, &self.sender, 10).is_some()
    }
}

const REVIEWS: &str = "reviews.shop.svc.cluster.local";

#[test]
fn a_call_that_both_sides_tell_of_counts_once() {
    let mut store = Store::default();
    let mut web = Told::by("web", 1);
    web.load(Side::Source, peer("reviews"), REVIEWS, "/a", 200, 90);
    web.load(Side::Source, peer("reviews"), REVIEWS, "/a", 503, 10);
    assert!(web.send(&mut store, 1));
    let mut reviews = Told::by("reviews", 2);
    reviews.load(Side::Destination, peer("web"), REVIEWS, "/a", 200, 95);
    assert!(reviews.send(&mut store, 1));
    let graph = store.graph(10, 60, None);
    let [edge] = &graph.edges[..] else { panic!("one edge: {graph:?}") };
    assert_eq!((&*edge.source, &*edge.destination), ("shop/web", "shop/reviews"));
    assert_eq!((edge.numbers.requests, edge.numbers.errors), (100, 10));
    assert_eq!((edge.reported.source, edge.reported.destination), (100, 95));
    assert_eq!((&*edge.security, &*edge.reporter), ("mutual_tls", "source"));
    let p99 = edge.numbers.p99_ms.unwrap();
    assert!((1.5..2.6).contains(&p99), "{p99}");
    assert_eq!(store.interfaces(10, 60, Some("reviews")).len(), 1);
}

#[test]
fn one_side_is_enough() {
    let mut store = Store::default();
    let mut reviews = Told::by("reviews", 2);
    reviews.load(Side::Destination, peer("legacy"), REVIEWS, "/a", 200, 7);
    reviews.load(Side::Destination, peer(""), REVIEWS, "/a", 200, 3);
    reviews.send(&mut store, 1);
    let graph = store.graph(10, 60, None);
    let of = |source: &str| graph.edges.iter().find(|edge| edge.source == source).unwrap();
    assert_eq!(of("shop/legacy").numbers.requests, 7);
    assert_eq!(of("unknown").numbers.requests, 3);
    assert!(graph.nodes.iter().any(|node| node.kind == "unknown"));
}

#[test]
fn a_report_that_comes_twice_counts_once() {
    let mut store = Store::default();
    for _ in 0..2 {
        let mut web = Told::by("web", 1);
        web.load(Side::Source, peer("reviews"), REVIEWS, "/a", 200, 5);
        web.send(&mut store, 7);
    }
    assert_eq!(store.graph(10, 60, None).edges[0].total_requests, 5);
}

#[test]
fn a_proxy_speaks_for_itself_only() {
    let mut store = Store::default();
    let mut web = Told::by("web", 1);
    web.load(Side::Destination, peer("reviews"), REVIEWS, "/", 200, 5);
    web.load(Side::Source, peer("reviews"), REVIEWS, "/", 200, 5);
    web.send(&mut store, 1);
    for edge in store.graph(10, 60, None).edges {
        assert!(edge.source == "shop/web" || edge.destination == "shop/web", "{edge:?}");
    }
}

#[test]
fn the_meshs_own_404_is_told_apart() {
    let mut store = Store::default();
    let mut web = Told::by("web", 1);
    web.load(Side::Source, peer("reviews"), REVIEWS, "/missing", 404, 2);
    web.load(Side::Source, peer(""), "", "/nowhere", 404, 3);
    web.send(&mut store, 1);
    let failures = store.failures(10, 60, None);
    let of = |path: &str| failures.iter().find(|row| row.path == path).unwrap();
    assert_eq!((of("/missing").requests, &*of("/missing").by), (2, "application"));
    assert_eq!((of("/nowhere").requests, &*of("/nowhere").by), (3, "mesh"));
    assert!(of("/nowhere").no_route && !of("/missing").no_route);
    let graph = store.graph(10, 60, None);
    assert!(
        graph.edges.iter().any(|edge| edge.destination == "no_route" && edge.numbers.no_route == 3)
    );
}

#[test]
fn hosts_outside_and_gateways_have_their_ends() {
    let mut store = Store::default();
    let mut gateway = Told::by("gateway", 1);
    gateway.report.gateway = true;
    gateway.load(Side::Source, peer("reviews"), REVIEWS, "/", 200, 4);
    gateway.load(Side::Source, peer(""), "example.com", "/", 200, 1);
    gateway.report.services[1].name = "PassthroughCluster".into();
    gateway.send(&mut store, 1);
    let graph = store.graph(10, 60, None);
    let find = |source: &str, destination: &str| {
        graph.edges.iter().find(|edge| edge.source == source && edge.destination == destination)
    };
    assert_eq!(find("outside", "shop/gateway").unwrap().numbers.requests, 5);
    assert_eq!(find("shop/gateway", "shop/reviews").unwrap().numbers.requests, 4);
    assert_eq!(find("shop/gateway", "passthrough:example.com").unwrap().numbers.requests, 1);
}

#[test]
fn a_certificate_names_the_one_workload_it_can_be() {
    let mut store = Store::default();
    let mut database = Told::by("database", 2);
    let client = report::Peer { principal: sender("web").principal.to_string(), ..peer("") };
    database.load(Side::Destination, client.clone(), "db", "", 0, 0);
    let load = &mut database.report.loads[0];
    (load.protocol, load.opened, load.ends) = (Protocol::Tcp.into(), 3, Vec::new());
    let whose = |id: &str| id.ends_with("/web").then(|| ("shop".into(), "web".into()));
    store.learn_principals(&database.report, 10, whose);
    database.send(&mut store, 1);
    let graph = store.graph(10, 60, None);
    assert_eq!((&*graph.edges[0].source, &*graph.edges[0].protocol), ("shop/web", "tcp"));
    assert_eq!(graph.edges[0].numbers.connections_opened, 3);
}

#[test]
fn everything_is_bounded() {
    let mut store = Store::default();
    for round in 0..40u64 {
        let mut web = Told::by("web", round);
        for number in 0..300 {
            let number = round * 300 + number;
            let path = format!("/{}", "x".repeat(1 + number as usize % 300));
            web.load(
                Side::Source,
                peer(&format!("w{number}")),
                &format!("s{number}"),
                &path,
                500,
                1,
            );
        }
        web.send(&mut store, 1);
    }
    assert!(store.edges.len() <= EDGES_MAX, "{}", store.edges.len());
    assert!(store.interfaces.len() <= INTERFACES_MAX);
    assert!(store.failures.len() <= FAILURES_MAX);
    assert!(store.templates.len() <= SERVICES_MAX);
}

#[test]
fn malformed_reports_do_no_harm() {
    let mut store = Store::default();
    let mut web = Told::by("web", 1);
    web.load(Side::Source, peer("reviews"), REVIEWS, "/", 200, 1);
    let sound = web.report.loads[0].clone();
    web.report.loads = vec![
        report::Load { side: 9, ..sound.clone() },
        report::Load { destination: 900, ..sound.clone() },
        report::Load { service: 900, ..sound.clone() },
        report::Load { buckets: vec![5, 4], counts: vec![1, 1], ..sound.clone() },
        report::Load { buckets: vec![5000], ..sound.clone() },
        report::Load {
            ends: vec![report::Ends { code: 70_000, ..Default::default() }],
            ..sound.clone()
        },
        report::Load { requests: u64::MAX, ..sound },
    ];
    web.send(&mut store, 1);
    assert_eq!(store.graph(10, 60, None).edges.len(), 1);
}
