//! One route lookup over a thousand virtual hosts does not touch the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use weft_http::{Method, RequestHead, Scheme, Target, Version};
use weft_traffic::RouteResult;
use weft_xds::pb::envoy::config::route::v3 as pb;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system allocator unchanged; the counter is a plain thread-local cell
// without a destructor, so it is usable at any time.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn route(header: &str, cluster: &str) -> pb::Route {
    let regex = weft_xds::pb::envoy::r#type::matcher::v3::RegexMatcher {
        regex: "/api/v[0-9]+/.*".into(),
        ..Default::default()
    };
    pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(pb::route_match::PathSpecifier::SafeRegex(regex)),
            headers: vec![pb::HeaderMatcher { name: header.into(), ..Default::default() }],
            ..Default::default()
        }),
        action: Some(pb::route::Action::Route(pb::RouteAction {
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster(cluster.into())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

#[test]
fn a_lookup_allocates_nothing() {
    let host = |name: String| pb::VirtualHost {
        domains: vec![name.clone(), format!("{name}:9080")],
        name,
        routes: vec![route("x-absent", "no"), route("x-user", "yes")],
        ..Default::default()
    };
    let mut hosts: Vec<_> =
        (0..1000).map(|i| host(format!("service-{i}.default.svc.cluster.local"))).collect();
    hosts.push(host("*.example.com".into()));
    let config = pb::RouteConfiguration { virtual_hosts: hosts, ..Default::default() };
    let table = weft_traffic::lower::route_config(&config).unwrap();
    for authority in ["Service-777.default.svc.cluster.local:9080", "a.b.example.com"] {
        let head = RequestHead {
            method: Method::Get,
            scheme: Scheme::Http,
            authority: Some(Bytes::from_static(authority.as_bytes())),
            target: Target::Path(Bytes::from_static(b"/api/v1/reviews?x=1")),
            version: Version::H11,
            headers: [("X-User", "kim"), ("accept", "*/*")].into_iter().collect(),
        };
        // The regex engine builds its scratch space on first use.
        let find = || match table.route(&head, 12345) {
            RouteResult::Found(found) => found.cluster.unwrap().name.unwrap().len(),
            other => panic!("{authority}: {other:?}"),
        };
        find();
        let before = COUNT.get();
        for _ in 0..1000 {
            assert_eq!(std::hint::black_box(find()), 3);
        }
        assert_eq!(COUNT.get() - before, 0, "{authority}");
    }
}
