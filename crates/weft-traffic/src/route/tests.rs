use super::*;
use crate::matcher::{
    FullRegex, HeaderPredicate, QueryPredicate, StringMatch, StringPattern, Substitution,
};
use crate::timeout::RouteTimeouts;

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix { prefix: text.as_bytes().into(), ignore_case: false }
}

fn matching(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path,
        headers: Vec::new(),
        query: Vec::new(),
        cookies: Vec::new(),
        grpc: false,
        fraction: None,
    }
}

fn route(name: &str, matches: RouteMatch, action: Action) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches,
        action,
        edits: Edits::default(),
        origin: None,
        rule: None,
        generation: None,
        operation: None,
        tracing: None,
        cors: None,
        fault: None,
        limits: Vec::new(),
        buffer_bytes_max: None,
    })
}

fn forward(clusters: ClusterChoice) -> RouteAction {
    RouteAction {
        clusters,
        cluster_not_found_status: 503,
        timeouts: RouteTimeouts::default(),
        retry: None,
        path_rewrite: None,
        host_rewrite: None,
        append_x_forwarded_host: false,
        mirrors: Vec::new(),
        hash: HashPolicy::default(),
        high_priority: false,
        websocket: None,
        rate_limits: None,
    }
}

fn to(cluster: &str) -> Action {
    Action::Forward(forward(ClusterChoice::One(cluster.into())))
}

fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    let host = VirtualHost {
        name: "all".into(),
        routes,
        edits: Edits::default(),
        require_tls: RequireTls::No,
        cors: None,
        fault: None,
        limits: Vec::new(),
        rate_limits: Vec::new(),
        retry: None,
        attempt_count_upstream: false,
        attempt_count_downstream: false,
    };
    let index = HostIndex::build([("*", 0)].into_iter(), false).unwrap();
    RouteTable::new("t".into(), vec![Arc::new(host)], index)
}

/// The name of the route that takes a request.
fn taken(table: &RouteTable, head: &RequestHead) -> String {
    match table.route(head, 0) {
        RouteResult::Found(found) => found.route.name.to_string(),
        other => format!("{other:?}"),
    }
}

fn get(path: &str) -> RequestHead {
    test_head("GET", "a.com", path, &[])
}

#[test]
fn paths_match_by_kind() {
    let exact =
        |path: &str, ignore_case| PathMatch::Exact { path: path.as_bytes().into(), ignore_case };
    let folder = |text: &str| PathMatch::SeparatedPrefix {
        prefix: text.as_bytes().into(),
        ignore_case: false,
    };
    let regex = |text: &str| PathMatch::Regex(FullRegex::new(text).unwrap());
    let folded = PathMatch::Prefix { prefix: b"/Api"[..].into(), ignore_case: true };
    for (matcher, path, expect) in [
        (prefix("/api"), "/api/v1", true),
        (prefix("/api"), "/apiary", true),
        (prefix("/api"), "/Api", false),
        (folded.clone(), "/aPI/x", true),
        (exact("/a", false), "/a?q=1", true),
        (exact("/a", false), "/a/", false),
        (exact("/A", true), "/a", true),
        (folder("/api"), "/api", true),
        (folder("/api"), "/api/v1?x", true),
        (folder("/api"), "/apiary", false),
        (regex("/b[io]t"), "/bit?x=1", true),
        (regex("/b[io]t"), "/bite", false),
        (PathMatch::Connect, "/", false),
    ] {
        assert_eq!(matcher.is_match(&get(path)), expect, "{matcher:?} on {path}");
    }
}

fn header(name: &str, predicate: HeaderPredicate) -> HeaderMatch {
    HeaderMatch { name: name.into(), predicate, invert: false, missing_is_empty: false }
}

fn value(pattern: StringPattern) -> HeaderPredicate {
    HeaderPredicate::Value(StringMatch { pattern, ignore_case: false })
}

#[test]
fn headers_match_by_kind() {
    let text = |t: &str| -> Box<[u8]> { t.as_bytes().into() };
    let exact = |name: &str, t: &str| header(name, HeaderPredicate::Value(StringMatch::exact(t)));
    let inverted = |m: HeaderMatch| HeaderMatch { invert: true, ..m };
    let lenient = |m: HeaderMatch| HeaderMatch { missing_is_empty: true, ..m };
    let head = test_head(
        "POST",
        "a.com:80",
        "/p?q=1",
        &[("End-User", "jason"), ("x-n", "42"), ("x-two", "a"), ("x-two", "b")],
    );
    let present = |name: &str, wanted| header(name, HeaderPredicate::Present(wanted));
    let range = |name: &str, start, end| header(name, HeaderPredicate::Range { start, end });
    for (matcher, expect) in [
        (exact("end-user", "jason"), true),
        (exact("end-user", "jaso"), false),
        (header("end-user", value(StringPattern::Prefix(text("ja")))), true),
        (header("end-user", value(StringPattern::Suffix(text("on")))), true),
        (header("end-user", value(StringPattern::Contains(text("aso")))), true),
        (header("end-user", value(StringPattern::Regex(FullRegex::new("j.*n").unwrap()))), true),
        (present("end-user", true), true),
        (present("end-user", false), false),
        (present("none", false), true),
        (inverted(present("none", true)), true),
        (range("x-n", 42, 43), true),
        (range("x-n", 0, 42), false),
        (range("end-user", 0, 42), false),
        (exact("x-two", "b"), true),
        (exact("x-two", "a,b"), false),
        (inverted(exact("x-two", "b")), false),
        (exact(":method", "POST"), true),
        (exact(":authority", "a.com:80"), true),
        (exact(":path", "/p?q=1"), true),
        (exact(":scheme", "http"), true),
        (inverted(exact("end-user", "jason")), false),
        (inverted(exact("end-user", "x")), true),
        // Envoy: a missing header fails the match even when inverted, unless it counts as empty.
        (inverted(exact("none", "x")), false),
        (lenient(inverted(exact("none", "x"))), true),
        (lenient(exact("none", "")), true),
    ] {
        assert_eq!(matcher.is_match(&head), expect, "{matcher:?}");
    }
}

#[test]
fn queries_cookies_grpc_and_fractions() {
    let query = |name: &str, value| QueryMatch { name: name.as_bytes().into(), value };
    let exact = |t: &str| QueryPredicate::Value(StringMatch::exact(t));
    let request = Some(&b"a=1&b&a=2&c="[..]);
    for (matcher, expect) in [
        (query("a", exact("1")), true),
        (query("a", exact("2")), false),
        (query("b", exact("")), true),
        (query("c", exact("")), true),
        (query("b", QueryPredicate::Present(true)), true),
        (query("d", QueryPredicate::Present(true)), false),
        (query("d", QueryPredicate::Present(false)), true),
        (query("d", exact("")), false),
    ] {
        assert_eq!(matcher.is_match(request), expect, "{matcher:?}");
    }
    let cookie = |value: &str| CookieMatch {
        name: b"user"[..].into(),
        value: StringMatch::exact(value),
        invert: false,
    };
    let head = test_head(
        "GET",
        "a",
        "/",
        &[("cookie", "x=1; user=\"kim\""), ("content-type", "application/grpc+proto")],
    );
    assert!(cookie("kim").is_match(&head) && !cookie("jo").is_match(&head));
    assert!(is_grpc(&head));
    assert!(!is_grpc(&test_head("GET", "a", "/", &[("content-type", "application/grpc-web")])));
    let half = Fraction { numerator: 50, denominator: 100 };
    let matches = RouteMatch { fraction: Some(half), grpc: true, ..matching(prefix("/")) };
    assert!(matches.is_match(&head, 49) && !matches.is_match(&head, 50));
}

#[test]
fn the_first_match_wins() {
    let jason = RouteMatch {
        headers: vec![header("end-user", HeaderPredicate::Value(StringMatch::exact("jason")))],
        ..matching(prefix("/"))
    };
    let table = table(vec![
        route("v2", jason, to("v2")),
        route("v1", matching(prefix("/")), to("v1")),
        route("never", matching(prefix("/")), to("v3")),
    ]);
    assert_eq!(taken(&table, &get("/")), "v1");
    assert_eq!(taken(&table, &test_head("GET", "x", "/", &[("end-user", "jason")])), "v2");
    assert_eq!(table.cluster_names().len(), 3);
}

#[test]
fn weights_hold_within_a_fifth_of_a_percent() {
    let cluster = |name: &str, weight| WeightedCluster {
        name: name.into(),
        header: None,
        weight,
        edits: Edits::default(),
        host_rewrite: None,
    };
    let clusters = vec![cluster("v1", 1), cluster("zero", 0), cluster("v2", 99)];
    let choice = ClusterChoice::Weighted(WeightedClusters::new(clusters).unwrap());
    let table = table(vec![route("r", matching(prefix("/")), Action::Forward(forward(choice)))]);
    let head = get("/");
    let mut rng = crate::lb::test_rng(2026);
    let mut first = 0;
    for _ in 0..100_000 {
        let RouteResult::Found(found) = table.route(&head, rng()) else { panic!("no route") };
        let name = found.cluster.unwrap().resolve(&head).unwrap();
        assert_ne!(name, "zero");
        first += u32::from(name == "v1");
    }
    assert!((800..=1200).contains(&first), "{first} of 100000 went to the 1 % cluster");
    assert!(WeightedClusters::new(vec![cluster("a", 0)]).is_none());
}

#[test]
fn clusters_by_header() {
    let table = table(vec![route(
        "r",
        matching(prefix("/")),
        Action::Forward(forward(ClusterChoice::Header("x-cluster".into()))),
    )]);
    let head = test_head("GET", "a", "/", &[("X-Cluster", "c1")]);
    let RouteResult::Found(found) = table.route(&head, 0) else { panic!("no route") };
    assert_eq!(found.cluster.unwrap().resolve(&head), Some("c1"));
    assert_eq!(found.cluster.unwrap().resolve(&get("/")), None);
}

#[test]
fn paths_are_rewritten() {
    let rewritten = |matches: PathMatch, rewrite: PathRewrite, path: &str| {
        let route = route("r", matching(matches), to("c"));
        String::from_utf8(rewrite.apply(&route, path.as_bytes()).to_vec()).unwrap()
    };
    let to_prefix = |text: &str| PathRewrite::Prefix(text.as_bytes().into());
    let exact = PathMatch::Exact { path: b"/old"[..].into(), ignore_case: false };
    assert_eq!(rewritten(prefix("/api"), to_prefix("/v2"), "/api/x?q=1"), "/v2/x?q=1");
    assert_eq!(rewritten(prefix("/api/"), to_prefix("/"), "/api/x"), "/x");
    assert_eq!(rewritten(exact, to_prefix("/new"), "/old?q"), "/new?q");
    let regex =
        PathRewrite::Regex(Substitution::new("^/service/([^/]+)(/.*)$", r"\2/x/\1").unwrap());
    assert_eq!(
        rewritten(prefix("/"), regex, "/service/foo/v1?q=/service/"),
        "/v1/x/foo?q=/service/"
    );
    let nothing = PathRewrite::Regex(Substitution::new(".*", "").unwrap());
    assert_eq!(rewritten(prefix("/"), nothing, "/a"), "/");
}

#[test]
fn redirects() {
    let plain = Redirect {
        status: 301,
        scheme: None,
        host: None,
        port: None,
        path: None,
        strip_query: false,
    };
    let location = |redirect: Redirect, authority: &str, path: &str| {
        let route = route("r", matching(prefix("/a")), Action::Redirect(redirect.clone()));
        let head = test_head("GET", authority, path, &[]);
        String::from_utf8(redirect.location(&route, &head)).unwrap()
    };
    let https = Redirect { scheme: Some("https".into()), ..plain.clone() };
    assert_eq!(location(https.clone(), "h:80", "/a?q"), "https://h/a?q");
    assert_eq!(location(https.clone(), "h:8080", "/a"), "https://h:8080/a");
    let port = Redirect { port: Some(8443), ..https };
    assert_eq!(location(port, "h:80", "/a"), "https://h:8443/a");
    let host = Redirect { host: Some("n".into()), ..plain.clone() };
    assert_eq!(location(host, "h:8080", "/a"), "http://n/a");
    let full = Redirect { path: Some(RedirectPath::Full(b"/z"[..].into())), ..plain.clone() };
    assert_eq!(location(full.clone(), "h", "/a?q"), "http://h/z?q");
    assert_eq!(location(Redirect { strip_query: true, ..full }, "h", "/a?q"), "http://h/z");
    let own_query =
        Redirect { path: Some(RedirectPath::Full(b"/z?y"[..].into())), ..plain.clone() };
    assert_eq!(location(own_query, "h", "/a?q"), "http://h/z?y");
    let swapped = Redirect { path: Some(RedirectPath::Prefix(b"/b"[..].into())), ..plain };
    assert_eq!(location(swapped, "h", "/a/x?q"), "http://h/b/x?q");
    assert_eq!(to_https(&test_head("GET", "h:80", "/a?q", &[])), b"https://h/a?q");
}

#[test]
fn hashes_come_from_the_configured_sources() {
    let policy = |kinds: Vec<(HashInput, bool)>| HashPolicy {
        sources: kinds.into_iter().map(|(kind, terminal)| HashSource { kind, terminal }).collect(),
    };
    let ip = "10.0.0.1".parse().unwrap();
    let head = test_head("GET", "a", "/?u=7", &[("x-user", "kim"), ("cookie", "s=1")]);
    let hash = |policy: &HashPolicy, head: &RequestHead| policy.hash(head, ip, 9).0;
    let by_header =
        policy(vec![(HashInput::Header("x-user".into()), true), (HashInput::SourceIp, false)]);
    let other_ip = by_header.hash(&head, "10.0.0.2".parse().unwrap(), 9).0;
    assert_eq!(hash(&by_header, &head), other_ip);
    assert_eq!(hash(&by_header, &get("/")), Some(hash_ip(ip)));
    assert!(hash(&policy(vec![(HashInput::Query(b"u"[..].into()), false)]), &head).is_some());
    assert!(hash(&policy(vec![]), &head).is_none());
    let cookie = |name: &str, ttl| {
        policy(vec![(HashInput::Cookie { name: name.into(), ttl, path: "/".into() }, false)])
    };
    assert!(hash(&cookie("s", None), &head).is_some());
    assert!(hash(&cookie("none", None), &head).is_none());
    let (made, set) = cookie("none", Some(std::time::Duration::from_secs(60))).hash(&head, ip, 9);
    let set = set.unwrap().value;
    assert_eq!(set, "none=\"0000000000000009\"; Max-Age=60; Path=/; HttpOnly");
    let sent_back = test_head("GET", "a", "/", &[("cookie", "none=\"0000000000000009\"")]);
    assert_eq!(hash(&cookie("none", None), &sent_back), made);
}

#[test]
fn edits_apply_from_the_inside_out() {
    use crate::headers::{AppendAction, Format, HeaderEdit};
    let edits = |value: &str| {
        let edit = HeaderEdit {
            name: "x".into(),
            value: Format::literal(value.as_bytes()),
            action: AppendAction::AppendIfExistsOrAdd,
            keep_empty: false,
        };
        let one = HeaderEdits { remove: Vec::new(), edits: vec![edit] };
        Edits { request: one, response: HeaderEdits::default() }
    };
    let cluster = WeightedCluster {
        name: "c".into(),
        header: None,
        weight: 1,
        edits: edits("cluster"),
        host_rewrite: None,
    };
    let choice = ClusterChoice::Weighted(WeightedClusters::new(vec![cluster]).unwrap());
    let inner = route("r", matching(prefix("/")), Action::Forward(forward(choice)));
    let mut table = table(vec![Arc::new(Route { edits: edits("route"), ..Route::clone(&inner) })]);
    table.edits = edits("table");
    let order = |table: &RouteTable| {
        let mut head = get("/");
        let RouteResult::Found(found) = table.route(&head.clone(), 0) else { panic!("no route") };
        found.request_edits().for_each(|e| e.apply_request(&mut head, &Default::default()));
        let values = head.headers.get_all("x").map(|v| String::from_utf8_lossy(v).into_owned());
        values.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(order(&table), "cluster route table");
    table.most_specific_edits_last = true;
    assert_eq!(order(&table), "table route cluster");
}
