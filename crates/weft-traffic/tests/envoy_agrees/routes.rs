//! Route choice, redirects and header edits.

use serde_json::{Value, json};
use weft_http::HeaderList;
use weft_traffic::headers::FormatContext;
use weft_traffic::{Action, RouteResult, RouteTable, lower};
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;

use crate::rig::{Ask, Client, Envoy, Reply};

/// A route that answers with its own name.
fn route(name: &str, matching: Value) -> Value {
    json!({
        "name": name,
        "match": matching,
        "direct_response": {"status": 200, "body": {"inline_string": name}},
    })
}

fn redirect(name: &str, path: Value, action: Value) -> Value {
    json!({"name": name, "match": path, "redirect": action})
}

/// `x-test` must match; the path keeps the kinds apart.
fn by_header(name: &str, matcher: Value) -> Value {
    let mut header = json!({"name": "x-test"});
    header.as_object_mut().unwrap().extend(matcher.as_object().unwrap().clone());
    route(name, json!({"path": format!("/{name}"), "headers": [header]}))
}

fn by_query(name: &str, matcher: Value) -> Value {
    let mut query = json!({"name": "q"});
    query.as_object_mut().unwrap().extend(matcher.as_object().unwrap().clone());
    route(name, json!({"path": format!("/{name}"), "query_parameters": [query]}))
}

/// The same routes for every host, with names that tell the hosts apart.
fn routes(host: &str) -> Vec<Value> {
    let string = |kind: &str, text: &str| json!({"string_match": {kind: text}});
    let mut routes = vec![
        by_header("h-exact", string("exact", "abc")),
        by_header("h-prefix", string("prefix", "ab")),
        by_header("h-suffix", string("suffix", "bc")),
        by_header("h-contains", string("contains", "b")),
        by_header("h-regex", json!({"string_match": {"safe_regex": {"regex": "a.c|[0-9]+"}}})),
        by_header("h-fold", json!({"string_match": {"exact": "ABC", "ignore_case": true}})),
        by_header("h-present", json!({"present_match": true})),
        by_header("h-absent", json!({"present_match": false})),
        by_header("h-not-present", json!({"present_match": true, "invert_match": true})),
        by_header("h-not-exact", json!({"string_match": {"exact": "abc"}, "invert_match": true})),
        by_header(
            "h-not-empty",
            json!({"string_match": {"exact": "abc"}, "invert_match": true, "treat_missing_header_as_empty": true}),
        ),
        by_header("h-range", json!({"range_match": {"start": -5, "end": 43}})),
        by_header("h-joined", string("exact", "abc,def")),
        route(
            "h-method",
            json!({"path": "/h-method", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}),
        ),
        route(
            "h-authority",
            json!({"path": "/h-authority", "headers": [{"name": ":authority", "string_match": {"contains": "foo.com"}}]}),
        ),
        route(
            "h-host",
            json!({"path": "/h-host", "headers": [{"name": "host", "string_match": {"prefix": "www"}}]}),
        ),
        by_query("q-exact", string("exact", "1")),
        by_query("q-present", json!({"present_match": true})),
        by_query("q-regex", json!({"string_match": {"safe_regex": {"regex": "[0-9]+"}}})),
        route(
            "cookie",
            json!({"path": "/cookie", "cookies": [{"name": "user", "string_match": {"exact": "kim"}}]}),
        ),
        route(
            "no-cookie",
            json!({"path": "/cookie", "cookies": [{"name": "user", "string_match": {"exact": "jo"}, "invert_match": true}]}),
        ),
        route("grpc", json!({"path": "/grpc", "grpc": {}})),
        route(
            "never",
            json!({"path": "/fraction", "runtime_fraction": {"default_value": {"numerator": 0}}}),
        ),
        route(
            "always",
            json!({"path": "/fraction", "runtime_fraction": {"default_value": {"numerator": 100}}}),
        ),
        route("folded-path", json!({"path": "/Fold", "case_sensitive": false})),
        route("folded-prefix", json!({"prefix": "/FoldPrefix/", "case_sensitive": false})),
        route("folder", json!({"path_separated_prefix": "/folder"})),
        route("regex-path", json!({"safe_regex": {"regex": "/re/[a-z]+(/x)?"}})),
        route("exact-path", json!({"path": "/exact"})),
        route("prefix-path", json!({"prefix": "/pre"})),
        redirect("r-https", json!({"path": "/r-https"}), json!({"https_redirect": true})),
        redirect(
            "r-host",
            json!({"path": "/r-host"}),
            json!({"host_redirect": "new.com", "response_code": "FOUND"}),
        ),
        redirect(
            "r-port",
            json!({"path": "/r-port"}),
            json!({"port_redirect": 8443, "scheme_redirect": "https"}),
        ),
        redirect(
            "r-path",
            json!({"path": "/r-path"}),
            json!({"path_redirect": "/new", "response_code": "SEE_OTHER"}),
        ),
        redirect(
            "r-strip",
            json!({"path": "/r-strip"}),
            json!({"path_redirect": "/new", "strip_query": true}),
        ),
        redirect("r-query", json!({"path": "/r-query"}), json!({"path_redirect": "/new?own=1"})),
        redirect(
            "r-prefix",
            json!({"prefix": "/r-prefix"}),
            json!({"prefix_rewrite": "/swapped", "response_code": "PERMANENT_REDIRECT"}),
        ),
        redirect(
            "r-regex",
            json!({"prefix": "/r-regex/"}),
            json!({"regex_rewrite": {"pattern": {"regex": "^/r-regex/([a-z]+)(/.*)?$"}, "substitution": "\\2/by/\\1"}}),
        ),
        route("rest", json!({"prefix": "/"})),
    ];
    for route in &mut routes {
        let name = format!("{host}:{}", route["name"].as_str().unwrap());
        if let Some(direct) = route.get_mut("direct_response") {
            direct["body"]["inline_string"] = json!(name);
        }
        route["name"] = json!(name);
    }
    routes
}

fn config() -> Value {
    let host = |name: &str, domains: &[&str]| json!({"name": name, "domains": domains, "routes": routes(name)});
    json!({
        "name": "test",
        "virtual_hosts": [
            host("exact", &["www.foo.com", "www.foo.com:8080", "Upper.com"]),
            host("suffix", &["*.foo.com"]),
            host("longer", &["*-bar.foo.com"]),
            host("tld", &["*.com"]),
            host("prefix", &["foo.*"]),
            host("longer-prefix", &["foo.b*"]),
            host("v6", &["[::1]:80"]),
        ],
    })
}

fn asks() -> Vec<Ask> {
    let hosts = [
        "www.foo.com",
        "WWW.FOO.COM",
        "www.foo.com:8080",
        "www.foo.com:80",
        "upper.com",
        "api.foo.com",
        "x-bar.foo.com",
        "-bar.foo.com",
        "foo.com",
        ".foo.com",
        "foo.net",
        "foo.bar",
        "foo.",
        "[::1]:80",
        "nowhere.org",
        "a.b.c.com",
    ];
    let mut asks: Vec<Ask> = hosts.iter().map(|host| Ask::new(host, "/", &[])).collect();
    let names = [
        "h-exact",
        "h-prefix",
        "h-suffix",
        "h-contains",
        "h-regex",
        "h-fold",
        "h-present",
        "h-absent",
        "h-not-present",
        "h-not-exact",
        "h-not-empty",
        "h-range",
        "h-joined",
    ];
    let values =
        ["abc", "ABC", "ab", "bc", "xabcx", "42", "43", "-5", "-6", "4x", "", "0042", "+1"];
    for name in names {
        let path = format!("/{name}");
        asks.push(Ask::new("www.foo.com", &path, &[]));
        asks.push(Ask::new("www.foo.com", &path, &[("X-Test", "abc"), ("x-test", "def")]));
        asks.extend(
            values.iter().map(|value| Ask::new("www.foo.com", &path, &[("X-Test", value)])),
        );
    }
    for query in [
        "", "?", "?q", "?q=", "?q=1", "?q=12", "?q=1&q=2", "?q=2&q=1", "?a=q&b=1", "?Q=1", "?q=%31",
    ] {
        for name in ["q-exact", "q-present", "q-regex"] {
            asks.push(Ask::new("www.foo.com", &format!("/{name}{query}"), &[]));
        }
    }
    for cookie in [
        "user=kim",
        "a=b; user=kim",
        "user=\"kim\"",
        "user=jo",
        "User=kim",
        "user=",
        "x=user=kim",
        "user=kim;user=jo",
    ] {
        asks.push(Ask::new("www.foo.com", "/cookie", &[("cookie", cookie)]));
    }
    for content in
        ["application/grpc", "application/grpc+proto", "application/grpc-web", "text/plain"]
    {
        asks.push(Ask::new("www.foo.com", "/grpc", &[("content-type", content)]));
    }
    let paths = [
        "/fraction",
        "/h-method",
        "/h-host",
        "/h-authority",
        "/fold",
        "/FOLD",
        "/fold/",
        "/foldprefix/x",
        "/folder",
        "/folder/",
        "/folder/x?y",
        "/folders",
        "/folder?x",
        "/re/abc",
        "/re/abc/x",
        "/re/abc/x/",
        "/re/ABC",
        "/re/abc?x=/y",
        "/exact",
        "/exact?x=1",
        "/exact/",
        "/exact%2F",
        "/Exact",
        "/pre",
        "/prefix",
        "/pr",
        "/pre?x",
        "/r-https?x=1",
        "/r-host?x=1",
        "/r-port",
        "/r-path?x=1",
        "/r-strip?x=1",
        "/r-query?x=1",
        "/r-prefix/a?x=1",
        "/r-prefixes",
        "/r-regex/abc/d?x=1",
        "/r-regex/abc",
        "/r-regex/ABC",
        "/cookie",
    ];
    for host in [
        "www.foo.com",
        "www.foo.com:8080",
        "foo.bar",
        "foo.bar:80",
        "foo.bar:443",
        "x-bar.foo.com:1234",
    ] {
        asks.extend(paths.iter().map(|path| Ask::new(host, path, &[])));
    }
    asks
}

pub(crate) fn table(config: &Value) -> RouteTable {
    let message: RouteConfiguration = weft_xds::json::message_from_json(config).unwrap();
    lower::route_config(&message).unwrap()
}

/// What we would answer: status, body and `location`.
fn ours(table: &RouteTable, ask: &Ask) -> (u16, String, Option<String>) {
    let head = ask.head();
    match table.route(&head, 0) {
        RouteResult::Found(found) => match &found.route.action {
            Action::Direct { status, body } => {
                (*status, String::from_utf8(body.to_vec()).unwrap(), None)
            }
            Action::Redirect(redirect) => {
                let location = redirect.location(found.route, &head);
                (redirect.status, String::new(), Some(String::from_utf8(location).unwrap()))
            }
            other => panic!("unexpected action {other:?}"),
        },
        RouteResult::NoHost | RouteResult::NoRoute(_) => (404, String::new(), None),
        RouteResult::RedirectToTls(_) => panic!("no host requires TLS"),
    }
}

fn theirs(reply: &Reply) -> (u16, String, Option<String>) {
    // To a gRPC request a direct response says its text in `grpc-message`.
    let body = reply.header("grpc-message").unwrap_or(&reply.body).to_owned();
    (reply.status, body, reply.header("location").map(str::to_owned))
}

#[test]
fn routes_and_redirects() {
    let Some(binary) = weft_testkit::peer::envoy("routes_and_redirects") else { return };
    let config = config();
    let envoy = Envoy::start(&binary, &config, &[]);
    let table = table(&config);
    let mut client = Client::connect(envoy.address);
    let mut differences = Vec::new();
    let asks = asks();
    for ask in &asks {
        let (ours, theirs) = (ours(&table, ask), theirs(&client.ask(ask)));
        if ours != theirs {
            differences.push(format!("{ask:?}\n  ours   {ours:?}\n  Envoy's {theirs:?}"));
        }
    }
    let count = differences.len();
    assert!(count == 0, "{count} of {} differ:\n{}", asks.len(), differences.join("\n"));
}

#[test]
fn header_edits() {
    let Some(binary) = weft_testkit::peer::envoy("header_edits") else { return };
    let add = |name: &str, value: &str, action: &str| json!({"header": {"key": name, "value": value}, "append_action": action});
    let append = "APPEND_IF_EXISTS_OR_ADD";
    let formats = [
        ("x-req", "%REQ(X-User)%"),
        ("x-or", "%REQ(x-none?x-user):3%"),
        ("x-none-there", "<%REQ(x-none)%>"),
        ("x-empty", "%REQ(x-none)%"),
        ("x-percent", "100%%"),
        ("x-path", "%REQ(:path)%"),
        ("x-authority", "%REQ(:authority)%"),
        ("x-method", "%REQ(:method)%"),
        ("x-protocol", "%PROTOCOL%"),
        ("x-client", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("x-client-ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("x-local", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("x-local-port", "%DOWNSTREAM_LOCAL_PORT%"),
        ("x-twice", "%REQ(x-two)%"),
        ("x-route", "%ROUTE_NAME%"),
        ("x-earlier", "%RESP(x-level)%"),
    ];
    let mut of_table: Vec<Value> = formats.iter().map(|(n, v)| add(n, v, append)).collect();
    of_table.push(add("x-level", "table", append));
    of_table.push(add("x-over", "table", "OVERWRITE_IF_EXISTS_OR_ADD"));
    of_table.push(add("x-if", "table", "ADD_IF_ABSENT"));
    of_table.push(add("x-exists", "table", "OVERWRITE_IF_EXISTS"));
    let levels = |name: &str| {
        json!([
            add("x-level", name, append),
            add("x-over", name, "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("x-if", name, "ADD_IF_ABSENT"),
            add("x-gone", name, append),
        ])
    };
    for last in [false, true] {
        let config = json!({
            "name": "test",
            "most_specific_header_mutations_wins": last,
            "response_headers_to_add": of_table,
            "response_headers_to_remove": ["x-gone"],
            "virtual_hosts": [{
                "name": "h",
                "domains": ["*"],
                "response_headers_to_add": levels("host"),
                "routes": [{
                    "name": "the-route",
                    "match": {"prefix": "/"},
                    "response_headers_to_add": levels("route"),
                    "direct_response": {"status": 201},
                }],
            }],
        });
        let envoy = Envoy::start(&binary, &config, &[]);
        let mut client = Client::connect(envoy.address);
        let headers = [("x-user", "jason"), ("x-two", "1"), ("x-two", "2")];
        let ask = Ask::new("a.com", "/p?q=1", &headers);
        let reply = client.ask(&ask);
        let mut theirs: Vec<(String, String)> =
            reply.headers.into_iter().filter(|(name, _)| name.starts_with("x-")).collect();
        // We overwrite in place, Envoy removes and adds; only the order within a name has a meaning.
        theirs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let ours = edited(&table(&config), &ask, client.local(), envoy.address);
        assert_eq!(ours, theirs, "most_specific_header_mutations_wins {last}");
    }
}

fn edited(
    table: &RouteTable,
    ask: &Ask,
    client: std::net::SocketAddr,
    local: std::net::SocketAddr,
) -> Vec<(String, String)> {
    let head = ask.head();
    let RouteResult::Found(found) = table.route(&head, 0) else { panic!("no route") };
    let context = FormatContext {
        downstream_remote: Some(client),
        downstream_local: Some(local),
        route_name: Some(&found.route.name),
        ..Default::default()
    };
    let mut headers = HeaderList::new();
    for edits in found.response_edits() {
        edits.apply_response(&mut headers, Some(&head), &context);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut edited: Vec<(String, String)> =
        headers.iter().map(|header| (text(header.name), text(header.value))).collect();
    edited.sort_by(|(a, _), (b, _)| a.cmp(b));
    edited
}
