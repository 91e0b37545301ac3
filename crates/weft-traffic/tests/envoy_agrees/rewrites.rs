//! What arrives upstream: rewritten paths and hosts, edited request headers.

use serde_json::{Value, json};
use weft_http::Target;
use weft_traffic::headers::FormatContext;
use weft_traffic::route::HostRewrite;
use weft_traffic::{Action, RouteResult, RouteTable};

use crate::hashes::cluster;
use crate::rig::{Answer, Ask, Client, Envoy, backend};
use crate::routes::table;

fn route(matching: Value, action: Value, extra: Value) -> Value {
    let mut forward = json!({"cluster": "echo"});
    forward.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
    let mut route = json!({"match": matching, "route": forward});
    route.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    route
}

fn config() -> Value {
    let rewrite =
        |regex: &str, with: &str| json!({"pattern": {"regex": regex}, "substitution": with});
    let add = |name: &str, value: &str, action: &str| json!({"header": {"key": name, "value": value}, "append_action": action});
    let overwrite = "OVERWRITE_IF_EXISTS_OR_ADD";
    let edits = json!({
        "request_headers_to_add": [
            add("e-new", "%REQ(:path)% for %REQ(e-user)%", "APPEND_IF_EXISTS_OR_ADD"),
            add("e-user", "second", "APPEND_IF_EXISTS_OR_ADD"),
            add("e-kept", "no", "ADD_IF_ABSENT"),
            add("e-set", "was %REQ(e-set)%", overwrite),
            add("e-absent", "no", "OVERWRITE_IF_EXISTS"),
            add("e-empty", "", "APPEND_IF_EXISTS_OR_ADD"),
        ],
        "request_headers_to_remove": ["e-gone"],
    });
    let both = json!({"prefix_rewrite": "/b", "host_rewrite_literal": "x.com"});
    let host_by_path =
        json!({"host_rewrite_path_regex": rewrite("^/host-regex/([^/]+).*$", "\\1.com")});
    let none = || json!({});
    json!({
        "name": "test",
        "request_headers_to_add": [add("e-level", "table", "APPEND_IF_EXISTS_OR_ADD")],
        "virtual_hosts": [{
            "name": "h",
            "domains": ["*"],
            "request_headers_to_add": [add("e-level", "host", "APPEND_IF_EXISTS_OR_ADD")],
            "routes": [
                route(json!({"prefix": "/prefix/"}), json!({"prefix_rewrite": "/"}), none()),
                route(json!({"prefix": "/longer"}), json!({"prefix_rewrite": "/much/longer"}), none()),
                route(json!({"prefix": "/Fold", "case_sensitive": false}), json!({"prefix_rewrite": "/f"}), none()),
                route(json!({"path": "/exact"}), json!({"prefix_rewrite": "/replaced"}), none()),
                route(json!({"path_separated_prefix": "/folder"}), json!({"prefix_rewrite": "/dir"}), none()),
                route(json!({"safe_regex": {"regex": "/matched/.*"}}), json!({"prefix_rewrite": "/whole"}), none()),
                route(json!({"prefix": "/regex"}), json!({"regex_rewrite": rewrite("/([a-z]+)/([0-9]+)", "/\\2/\\1")}), none()),
                route(json!({"prefix": "/many"}), json!({"regex_rewrite": rewrite("a", "$b\\\\")}), none()),
                route(json!({"prefix": "/literal"}), json!({"host_rewrite_literal": "new.com:81"}), none()),
                route(json!({"prefix": "/header"}), json!({"host_rewrite_header": "E-Host"}), none()),
                route(json!({"prefix": "/host-regex"}), host_by_path, none()),
                route(json!({"prefix": "/both"}), both, none()),
                route(json!({"prefix": "/edits"}), none(), edits),
                route(json!({"prefix": "/"}), none(), none()),
            ],
        }],
    })
}

fn asks() -> Vec<Ask> {
    let paths = [
        "/prefix/",
        "/prefix/a?x=1",
        "/longer",
        "/longer/a?x=/longer",
        "/longerer",
        "/FOLD/a",
        "/exact?x=1",
        "/folder",
        "/folder/a?x=1",
        "/folder?x=1",
        "/matched/a/b?x=1",
        "/regex/abc/12?x=/z/9",
        "/regex/abc/12/def/34",
        "/regex",
        "/many/banana?a=a",
        "/literal",
        "/header",
        "/host-regex/a/b",
        "/host-regex/",
        "/both/a",
        "/none?x=1",
        "/edits?x=1",
    ];
    let headers =
        [("e-user", "kim"), ("e-kept", "yes"), ("e-set", "old"), ("e-gone", "1"), ("E-Gone", "2")];
    let mut asks: Vec<Ask> =
        paths.iter().map(|path| Ask::new("a.com:80", path, &headers)).collect();
    asks.push(Ask::new("a.com", "/header", &[("e-host", "from.header")]));
    asks.push(Ask::new("a.com", "/edits", &[]));
    asks
}

/// Edits, then rewrites, as the request path applies them.
fn ours(table: &RouteTable, ask: &Ask) -> String {
    let mut head = ask.head();
    let RouteResult::Found(found) = table.route(&ask.head(), 0) else { panic!("no route") };
    let Action::Forward(action) = &found.route.action else { panic!("not forwarding") };
    for edits in found.request_edits() {
        edits.apply_request(&mut head, &FormatContext::default());
    }
    let host = match &action.host_rewrite {
        Some(HostRewrite::Literal(host)) => Some(host.clone()),
        Some(HostRewrite::Header(name)) => head.headers.get_bytes(&**name),
        Some(HostRewrite::Path(substitution)) => Some(substitution.replace(head.path()).into()),
        Some(HostRewrite::Auto) | None => None,
    };
    head.authority = host.or(head.authority);
    if let Some(rewrite) = &action.path_rewrite {
        head.target = Target::Path(rewrite.apply(found.route, head.path_and_query()));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|header| (text(header.name).to_ascii_lowercase(), text(header.value)))
        .filter(|(name, _)| name.starts_with("e-"))
        .collect();
    lines.push(("host".into(), text(head.authority())));
    lines.sort_by(|(a, _), (b, _)| a.cmp(b));
    let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("{}\n{}", text(head.path_and_query()), lines.join("\n"))
}

#[test]
fn the_same_request_arrives() {
    let Some(binary) = weft_testkit::peer::envoy("the_same_request_arrives") else { return };
    let config = config();
    let echo = cluster("echo", "ROUND_ROBIN", &[(backend(Answer::Request), 1)]);
    let envoy = Envoy::start(&binary, &config, &[echo]);
    let table = table(&config);
    let mut client = Client::connect(envoy.address);
    let mut differences = Vec::new();
    for ask in asks() {
        let (ours, theirs) = (ours(&table, &ask), client.ask(&ask).body);
        if ours != theirs {
            differences.push(format!("{ask:?}\nours:\n{ours}\nEnvoy's:\n{theirs}"));
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n\n"));
}
