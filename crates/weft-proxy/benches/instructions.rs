//! The request path's own computations, one operation at a time, for counting instructions: a
//! regression shows on a noisy machine too. Started by `cargo xtask bench instructions` under
//! callgrind with an operation's name and how often to do it; without arguments prints the names.
//! Inputs are fixed. Must not need sockets or a runtime.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use weft_http::h1::{self, Limits, OutBuf, Parsed, parse_request, parse_response};
use weft_http::h2::hpack::{Decoder, Encoder, FieldSink, HeadLimits};
use weft_http::{Method, RequestHead};
use weft_telemetry::{
    Amounts, Outcome, PeerInfo, Protocol, Registry, Reporter, RequestLabels, ResponseFlags,
    SecurityPolicy, ServiceInfo,
};
use weft_traffic::lb::{Balancer, PickInput};
use weft_traffic::{Cluster, RouteResult};
use weft_xds::pb::envoy::config::cluster::v3 as cluster_pb;
use weft_xds::pb::envoy::config::core::v3 as core_pb;
use weft_xds::pb::envoy::config::endpoint::v3 as endpoint_pb;
use weft_xds::pb::envoy::config::route::v3 as route_pb;

type Operation = (&'static str, fn(u32));

const OPERATIONS: &[Operation] = &[
    ("http1 request head, parsed", http1_request),
    ("http1 response head, parsed", http1_response),
    ("http1 request head, written", http1_write),
    ("hpack request, decoded", hpack_decode),
    ("hpack request, encoded", hpack_encode),
    ("route of 1000 hosts, fourth rule", route),
    ("round robin over 10 endpoints", round_robin),
    ("least request over 10 endpoints", least_request),
    ("metrics of a request", metrics),
];

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(name) = args.next() else {
        for (name, _) in OPERATIONS {
            println!("{name}");
        }
        return;
    };
    let count = args.next().and_then(|text| text.parse().ok()).expect("OPERATION COUNT");
    let (_, operation) = OPERATIONS.iter().find(|(known, _)| *known == name).expect("a known name");
    operation(count);
}

const REQUEST: &[u8] = b"GET /api/v1/reviews/42?page=3 HTTP/1.1\r\n\
    Host: reviews.default.svc.cluster.local\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n\
    Accept: application/json, text/plain, */*\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n\
    X-Request-Id: 5f3c1a80-93a1-4a0e-8f1e-7a4bb3f5a111\r\n\
    X-B3-TraceId: 463ac35c9f6413ad48485a3953bb6124\r\n\
    X-B3-SpanId: a2fb4a1d1a96d312\r\n\
    X-B3-Sampled: 0\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Content-Length: 358\r\n\
    Date: Thu, 19 Nov 2026 10:00:00 GMT\r\n\
    Server: reviews\r\n\
    Cache-Control: no-cache\r\n\
    Vary: Accept-Encoding\r\n\r\n";

fn http1_request(count: u32) {
    let mut buf = BytesMut::new();
    for _ in 0..count {
        buf.extend_from_slice(REQUEST);
        let parsed = parse_request(&mut buf, &Limits::DEFAULT);
        assert!(matches!(black_box(parsed), Ok(Parsed::Complete(_))));
    }
}

fn http1_response(count: u32) {
    let mut buf = BytesMut::new();
    for _ in 0..count {
        buf.extend_from_slice(RESPONSE);
        let parsed = parse_response(&mut buf, &Limits::DEFAULT, &Method::Get);
        assert!(matches!(black_box(parsed), Ok(Parsed::Complete(_))));
    }
}

/// The parsed request of all that follows.
fn head() -> RequestHead {
    match parse_request(&mut BytesMut::from(REQUEST), &Limits::DEFAULT) {
        Ok(Parsed::Complete((head, _, _))) => head,
        other => panic!("{other:?}"),
    }
}

fn http1_write(count: u32) {
    let head = head();
    let mut out = OutBuf::new();
    for _ in 0..count {
        h1::write_request(black_box(&head), weft_http::BodyLength::None, &mut out);
        let len = out.len();
        out.consume(len);
    }
}

fn hpack_decode(count: u32) {
    let head = head();
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let mut sink = FieldSink::new();
    let mut block = Vec::new();
    // The first block fills the dynamic tables; the second is what a connection repeats.
    for _ in 0..2 {
        block.clear();
        encoder.encode_request(&head, None, &mut block);
        decoder.decode(&block, &HeadLimits::DEFAULT, &mut sink).expect("our own block");
    }
    for _ in 0..count {
        decoder.decode(&block, &HeadLimits::DEFAULT, &mut sink).expect("our own block");
        black_box(sink.take_request().expect("our own head"));
    }
}

fn hpack_encode(count: u32) {
    let head = head();
    let mut encoder = Encoder::new(4096);
    let mut block = Vec::new();
    for _ in 0..count {
        block.clear();
        encoder.encode_request(black_box(&head), None, &mut block);
        black_box(&block);
    }
}

fn route(count: u32) {
    let table = weft_traffic::lower::route_config(&route_config()).expect("a good table");
    let head = head();
    for _ in 0..count {
        match table.route(black_box(&head), 12345) {
            RouteResult::Found(found) => black_box(found.cluster.and_then(|cluster| cluster.name)),
            other => panic!("{other:?}"),
        };
    }
}

/// A mesh of 1,000 services; three rules decided by a header, one for the rest.
fn route_config() -> route_pb::RouteConfiguration {
    let rule = |header: Option<&str>, cluster: &str| route_pb::Route {
        r#match: Some(route_pb::RouteMatch {
            path_specifier: Some(route_pb::route_match::PathSpecifier::Prefix("/".into())),
            headers: header
                .map(|name| route_pb::HeaderMatcher { name: name.into(), ..Default::default() })
                .into_iter()
                .collect(),
            ..Default::default()
        }),
        action: Some(route_pb::route::Action::Route(route_pb::RouteAction {
            cluster_specifier: Some(route_pb::route_action::ClusterSpecifier::Cluster(
                cluster.into(),
            )),
            ..Default::default()
        })),
        ..Default::default()
    };
    let host = |name: String| route_pb::VirtualHost {
        domains: vec![name.clone(), format!("{name}:9080")],
        routes: vec![
            rule(Some("x-version"), "v1"),
            rule(Some("x-user"), "v2"),
            rule(Some("x-canary"), "v3"),
            rule(None, "rest"),
        ],
        name,
        ..Default::default()
    };
    let names = (0..999).map(|i| format!("service-{i}.default.svc.cluster.local"));
    let names = names.chain(["reviews.default.svc.cluster.local".into()]);
    route_pb::RouteConfiguration { virtual_hosts: names.map(host).collect(), ..Default::default() }
}

fn round_robin(count: u32) {
    pick(count, cluster_pb::cluster::LbPolicy::RoundRobin);
}

fn least_request(count: u32) {
    pick(count, cluster_pb::cluster::LbPolicy::LeastRequest);
}

/// Picks an endpoint, counts the request as active, and ends it.
fn pick(count: u32, policy: cluster_pb::cluster::LbPolicy) {
    let cluster = cluster(policy);
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 3, now);
    let mut state = 1_u64;
    let mut random = || {
        // Marsaglia's xorshift: the same numbers every time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..count {
        let picked = balancer.pick(&PickInput::plain(now), &mut random).expect("ten endpoints");
        drop(black_box(picked.host.begin()));
    }
}

fn cluster(policy: cluster_pb::cluster::LbPolicy) -> Cluster {
    let endpoint = |number: u32| {
        let address = core_pb::SocketAddress {
            address: format!("10.0.0.{number}"),
            port_specifier: Some(core_pb::socket_address::PortSpecifier::PortValue(80)),
            ..Default::default()
        };
        let address =
            core_pb::Address { address: Some(core_pb::address::Address::SocketAddress(address)) };
        endpoint_pb::LbEndpoint {
            host_identifier: Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(
                endpoint_pb::Endpoint { address: Some(address), ..Default::default() },
            )),
            ..Default::default()
        }
    };
    let locality = endpoint_pb::LocalityLbEndpoints {
        lb_endpoints: (1..=10).map(endpoint).collect(),
        ..Default::default()
    };
    let assignment = endpoint_pb::ClusterLoadAssignment {
        cluster_name: "reviews".into(),
        endpoints: vec![locality],
        ..Default::default()
    };
    let message = cluster_pb::Cluster {
        name: "reviews".into(),
        lb_policy: policy.into(),
        load_assignment: Some(assignment),
        ..Default::default()
    };
    weft_traffic::lower::cluster(&message).expect("a good cluster")
}

fn metrics(count: u32) {
    let peer = |name: &str| {
        Arc::new(PeerInfo {
            workload: name.into(),
            namespace: "default".into(),
            ..PeerInfo::default()
        })
    };
    let (source, destination) = (peer("web"), peer("reviews-v1"));
    let service = Arc::new(ServiceInfo {
        host: "reviews.default.svc.cluster.local".into(),
        name: "reviews".into(),
        namespace: "default".into(),
    });
    let shard = Registry::new().shard();
    for number in 0..count {
        let labels = RequestLabels {
            reporter: Reporter::Source,
            source: &source,
            destination: &destination,
            service: &service,
            protocol: Protocol::Http,
            security: SecurityPolicy::MutualTls,
            view: None,
            values: &[],
        };
        let outcome = Outcome { code: 200, grpc_status: None, flags: ResponseFlags::NONE };
        let amounts = Amounts {
            duration: Duration::from_micros(500 + u64::from(number % 64)),
            request_bytes: 100,
            response_bytes: 358,
            ..Amounts::default()
        };
        shard.request(black_box(&labels), outcome, &amounts);
    }
}
