//! What must hold for any bytes. Shared with `fuzz/`, so it may use only `weft-traffic`, `weft-http`,
//! `weft-xds`, `bytes` and `prost`.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use prost::Message;
use weft_http::h1::{Limits, Parsed, parse_request};
use weft_http::{HeaderList, RequestHead};
use weft_traffic::headers::FormatContext;
use weft_traffic::lb::{Balancer, LbPolicy, PickInput};
use weft_traffic::lower::{self, Lowered};
use weft_traffic::route::Found;
use weft_traffic::tables::Change;
use weft_traffic::{
    Action, Cluster, ConnInfo, ListenerConfig, RouteAction, RouteResult, RouteTable, Tables,
};
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;
use weft_xds::pb::google::protobuf::Any;

/// Types of the xDS resources that are lowered; an input's first byte picks one.
pub const KINDS: [&str; 4] = [
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
];

/// Requests looked up in one table.
const REQUESTS_MAX: usize = 16;

/// An encoded xDS resource after one byte for its type. Lowering gives the same answer twice, and
/// what can be asked of the result without sockets answers.
pub fn lower(data: &[u8]) {
    let Some((&kind, value)) = data.split_first() else { return };
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    let any = Any { type_url: format!("type.googleapis.com/{kind}"), value: value.to_vec() };
    let lowered = match (lower::any(&any), lower::any(&any)) {
        (Ok(lowered), Ok(_)) => lowered,
        (Err(first), Err(second)) => return assert_eq!(first.path, second.path),
        (first, second) => panic!("{first:?} and then {second:?}"),
    };
    match lowered {
        Lowered::Listener(listener) => {
            select(&listener);
            let name = listener.name.clone();
            collect(&Tables::default().with([Change::Listener(name, Some(listener))]));
        }
        Lowered::Route(table) => {
            for path in ["/", "/a/b?c=d", ""] {
                let text = format!("GET {path} HTTP/1.1\r\nhost: reviews:9080\r\na: b\r\n\r\n");
                requests(&table, text.as_bytes());
            }
            let name = table.name.clone();
            collect(&Tables::default().with([Change::Route(name, Some(table))]));
        }
        Lowered::Cluster(cluster) => balance(&cluster),
        Lowered::Endpoints(name, set) => {
            let tables = Tables::default().with([Change::Endpoints(name, Some(set))]);
            collect(&tables);
        }
    }
}

/// A route configuration (two bytes of length, then the message) and pipelined requests after it.
pub fn route(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (message, text) = rest.split_at(length);
    let Ok(message) = RouteConfiguration::decode(message) else { return };
    let Ok(table) = lower::route_config(&message) else { return };
    requests(&table, text);
}

fn select(listener: &ListenerConfig) {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    for (dst, sni, tls) in [
        (address("10.0.0.1:80"), Some("a.example.com"), true),
        (address("10.0.0.1:9000"), None, false),
        (address("[2001:db8::1]:443"), Some(""), true),
        (listener.address, Some("example.com"), true),
    ] {
        let src = address("192.0.2.7:4000");
        let conn = ConnInfo { dst, src, direct_src: src, sni, alpn: &[b"h2", b"istio"], tls };
        let index = listener.select_index(&conn);
        assert_eq!(index, listener.select_index(&conn), "the same connection");
        if let Some(index) = index {
            listener.chain(index).expect("a chosen chain exists");
        }
    }
}

fn collect(tables: &Tables) {
    tables.missing_routes();
    tables.missing_clusters();
    tables.eds_names();
}

fn requests(table: &RouteTable, text: &[u8]) {
    let mut buf = BytesMut::from(text);
    for random in 0..REQUESTS_MAX as u64 {
        let Ok(Parsed::Complete((head, _, _))) = parse_request(&mut buf, &Limits::DEFAULT) else {
            return;
        };
        // Large, so that every weight and fraction is reached.
        let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        look_up(table, &head, random);
    }
}

fn look_up(table: &RouteTable, head: &RequestHead, random: u64) {
    let found = match (table.route(head, random), table.route(head, random)) {
        (RouteResult::Found(first), RouteResult::Found(second)) => {
            assert!(std::ptr::eq(&**first.route, &**second.route), "the same request");
            assert_eq!(
                first.cluster.map(|cluster| cluster.name),
                second.cluster.map(|cluster| cluster.name)
            );
            first
        }
        (RouteResult::NoHost, RouteResult::NoHost)
        | (RouteResult::NoRoute(_), RouteResult::NoRoute(_))
        | (RouteResult::RedirectToTls(_), RouteResult::RedirectToTls(_)) => return,
        (first, second) => panic!("{first:?} and then {second:?}"),
    };
    assert!(found.host.routes.iter().any(|route| std::ptr::eq(&**route, &**found.route)));
    match &found.route.action {
        Action::Forward(action) => forward(&found, action, head, random),
        Action::Redirect(redirect) => check_line(&redirect.location(found.route, head)),
        Action::Direct { status, .. } => assert!((200..600).contains(status)),
        Action::NonForwarding => {}
    }
    edit(&found, head);
    if let Some(cors) = found.cors() {
        cors.on_request(head, random);
    }
    if let Some(fault) = found.fault() {
        fault.decide(head, "a", &mut || random);
    }
}

fn forward(found: &Found<'_>, action: &RouteAction, head: &RequestHead, random: u64) {
    if let Some(rewrite) = &action.path_rewrite {
        let path = rewrite.apply(found.route, head.path_and_query());
        check_line(&path);
        assert_eq!(path, rewrite.apply(found.route, head.path_and_query()), "the same path");
    }
    let (hash, source) = (&action.hash, IpAddr::from([192, 0, 2, 7]));
    assert_eq!(hash.hash(head, source, random), hash.hash(head, source, random), "the same hash");
    let retry = found.retry();
    let per_try = retry.and_then(|retry| retry.per_try_timeout);
    action.timeouts.for_request(&head.headers, true, per_try, None, true);
    if let Some(retry) = retry {
        retry.applies_to(head);
    }
}

fn edit(found: &Found<'_>, head: &RequestHead) {
    let context = FormatContext { route_name: Some(&found.route.name), ..Default::default() };
    let mut request = head.clone();
    for edits in found.request_edits() {
        edits.apply_request(&mut request, &context);
    }
    let mut response = HeaderList::new();
    for edits in found.response_edits() {
        edits.apply_response(&mut response, Some(head), &context);
    }
    for headers in [&request.headers, &response] {
        for header in headers.iter() {
            check_line(header.name);
            check_line(header.value);
        }
    }
}

/// Whatever configuration makes of a request may not end a line.
fn check_line(text: &[u8]) {
    let bad = text.iter().find(|byte| matches!(byte, b'\r' | b'\n' | 0));
    assert_eq!(bad, None, "{:?}", Bytes::copy_from_slice(text));
}

fn balance(cluster: &Cluster) {
    // A table of millions of points is legal, but not for a fuzz run.
    match cluster.config.lb.policy {
        LbPolicy::RingHash { ring_min: 10_000.., .. } => return,
        LbPolicy::Maglev { table_size: 70_000.. } => return,
        _ => {}
    }
    let now = Instant::now();
    let mut state = 1_u64;
    let mut rng = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state
    };
    let mut balancer = Balancer::new(cluster, 1, now);
    for _ in 0..3 {
        let Some(picked) = balancer.pick(&PickInput::plain(now), &mut rng) else { return };
        cluster.transport(&picked.endpoint);
    }
}
