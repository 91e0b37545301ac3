//! Random VirtualServices from everything that decides alike each time: no shares, and faults and
//! mirrors of all requests or none.

use serde_json::{Map, Value, json};

use super::dice::Dice;

/// Names that rules and requests share, so that requests meet rules.
pub const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/bc",
    "/ab",
    "/A/b",
    "/api/v1/items",
    "/api/v1/items/42",
    "/api/v2",
    "/static/app.js",
    "/a//b",
    "/a/./b",
    "/a/../b",
    "/x%2Fy",
    "/a%62",
    "/a;v=1",
    "/q",
];
pub const HEADERS: &[&str] = &["x-a", "x-b", "end-user", "accept-language"];
pub const VALUES: &[&str] = &["1", "42", "abc", "ABC", "a b", "", "abc,1"];
pub const QUERIES: &[&str] = &["q", "r"];
pub const METHODS: &[&str] = &["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"];
pub const ORIGINS: &[&str] = &["https://one.test", "https://two.test", "http://one.test:8080"];

const PREFIXES: &[&str] = &["/", "/a", "/a/", "/api", "/api/v1", "/st", "/A"];
const PATH_PATTERNS: &[&str] = &["/a.*", "/api/v[0-9]+(/.*)?", "/[a-z]+", ".*\\.js", "/(a|q)/?b?"];
const PATTERNS: &[&str] = &["a.c", "[0-9]+", ".*", "(abc|ABC)", "a b?"];

/// A VirtualService for `hosts` on `gateways`; `at_gateway` allows what only gateways know.
pub fn virtual_service(dice: &mut Dice, name: &str, host: &str, at_gateway: bool) -> Vec<Value> {
    let mut documents = Vec::new();
    let mut rules: Vec<Value> = (0..=dice.below(4)).map(|i| rule(dice, host, i)).collect();
    if at_gateway && dice.one_in(4) {
        let delegate = format!("{name}-delegate");
        let inner: Vec<Value> = (0..=dice.below(2)).map(|i| rule(dice, host, 10 + i)).collect();
        documents.push(document(&delegate, &json!({"http": inner})));
        rules.push(json!({
            "name": "delegating",
            "match": [{"uri": {"prefix": dice.pick(PREFIXES)}}],
            "delegate": {"name": delegate},
        }));
    }
    if dice.one_in(2) {
        rules.push(json!({"name": "rest", "route": [destination(dice)]}));
    }
    let gateway = if at_gateway { "front" } else { "mesh" };
    let spec = json!({"hosts": [host], "gateways": [gateway], "http": rules});
    documents.push(document(name, &spec));
    documents
}

fn document(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}

fn rule(dice: &mut Dice, host: &str, index: usize) -> Value {
    let mut rule = Map::new();
    rule.insert("name".into(), json!(format!("rule-{index}")));
    if !dice.one_in(8) {
        let matches: Vec<Value> = (0..=dice.below(2)).map(|_| matching(dice, host)).collect();
        rule.insert("match".into(), json!(matches));
    }
    match dice.below(10) {
        0 => insert(&mut rule, "redirect", redirect(dice)),
        1 => insert(&mut rule, "directResponse", direct_response(dice)),
        _ => routing(dice, &mut rule),
    }
    if dice.one_in(3) {
        insert(&mut rule, "headers", edits(dice));
    }
    Value::Object(rule)
}

fn insert(map: &mut Map<String, Value>, key: &str, value: Value) {
    map.insert(key.to_owned(), value);
}

fn routing(dice: &mut Dice, rule: &mut Map<String, Value>) {
    let mut route = vec![destination(dice)];
    if dice.one_in(5) {
        route[0]["weight"] = json!(100);
        let mut never = destination(dice);
        never["weight"] = json!(0);
        route.push(never);
    }
    insert(rule, "route", json!(route));
    if dice.one_in(4) {
        insert(rule, "rewrite", rewrite(dice));
    }
    if dice.one_in(5) {
        insert(rule, "fault", fault(dice));
    }
    if dice.one_in(4) {
        insert(rule, "retries", retries(dice));
    }
    if dice.one_in(8) {
        insert(rule, "timeout", json!("0.25s"));
    }
    if dice.one_in(6) {
        let mirrors: Vec<Value> = (0..=dice.below(2)).map(|_| mirror(dice)).collect();
        insert(rule, "mirrors", json!(mirrors));
    }
    if dice.one_in(5) {
        insert(rule, "corsPolicy", cors(dice));
    }
}

fn matching(dice: &mut Dice, host: &str) -> Value {
    let mut one = Map::new();
    if !dice.one_in(3) {
        let uri = match dice.below(3) {
            0 => json!({"exact": dice.pick(PATHS)}),
            1 => json!({"prefix": dice.pick(PREFIXES)}),
            _ => json!({"regex": dice.pick(PATH_PATTERNS)}),
        };
        if uri.get("regex").is_none() && dice.one_in(4) {
            insert(&mut one, "ignoreUriCase", json!(true));
        }
        insert(&mut one, "uri", uri);
    }
    if dice.one_in(4) {
        let method = match dice.below(3) {
            0 => json!({"exact": dice.pick(METHODS)}),
            1 => json!({"regex": "G.*|P.*"}),
            _ => json!({"prefix": "P"}),
        };
        insert(&mut one, "method", method);
    }
    if dice.one_in(3) {
        insert(&mut one, "headers", json!({dice.pick(HEADERS): string_or_present(dice)}));
    }
    if dice.one_in(5) {
        insert(&mut one, "withoutHeaders", json!({dice.pick(HEADERS): string_or_present(dice)}));
    }
    if dice.one_in(4) {
        insert(&mut one, "queryParams", json!({dice.pick(QUERIES): string_or_present(dice)}));
    }
    if dice.one_in(6) {
        let authority = match dice.below(3) {
            0 => json!({"exact": host}),
            1 => json!({"prefix": host[..2]}),
            _ => json!({"regex": format!("{host}(:[0-9]+)?")}),
        };
        insert(&mut one, "authority", authority);
    }
    if dice.one_in(8) {
        insert(&mut one, "scheme", json!({"exact": dice.pick(&["http", "https"])}));
    }
    if dice.one_in(8) {
        insert(&mut one, "port", json!(dice.pick(&[80, 81])));
    }
    if dice.one_in(8) {
        insert(&mut one, "sourceLabels", json!({"team": dice.pick(&["blue", "red"])}));
    }
    if dice.one_in(8) {
        insert(&mut one, "sourceNamespace", json!(dice.pick(&["default", "other"])));
    }
    if one.is_empty() {
        insert(&mut one, "uri", json!({"prefix": "/"}));
    }
    Value::Object(one)
}

fn string(dice: &mut Dice) -> Value {
    match dice.below(3) {
        0 => json!({"exact": dice.pick(&["1", "42", "abc", "a b"])}),
        1 => json!({"prefix": dice.pick(&["a", "4", "AB"])}),
        _ => json!({"regex": dice.pick(PATTERNS)}),
    }
}

fn string_or_present(dice: &mut Dice) -> Value {
    if dice.one_in(4) { json!({}) } else { string(dice) }
}

/// Services with one endpoint behind each name, so that the destination is certain.
fn target(dice: &mut Dice) -> Value {
    match dice.below(5) {
        0 => json!({"host": "app-b"}),
        1 => json!({"host": "app-c.default.svc.cluster.local", "port": {"number": 80}}),
        2 => json!({"host": "app-a", "subset": "v2"}),
        3 if dice.one_in(4) => json!({"host": "app-a", "subset": "nobody"}),
        _ => json!({"host": "app-a.default", "subset": "v1"}),
    }
}

fn destination(dice: &mut Dice) -> Value {
    let mut destination = json!({"destination": target(dice)});
    if dice.one_in(4) {
        destination["headers"] = edits(dice);
    }
    destination
}

fn mirror(dice: &mut Dice) -> Value {
    let percentage = dice.pick(&[100.0, 100.0, 0.0]);
    json!({"destination": target(dice), "percentage": {"value": percentage}})
}

const EDIT_VALUES: &[&str] = &[
    "plain",
    "%REQ(:path)%",
    "%REQ(x-a)%",
    "%PROTOCOL%",
    "%RESPONSE_CODE%",
    "%RESPONSE_FLAGS%",
    "100%%",
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "two words",
];

fn edits(dice: &mut Dice) -> Value {
    let mut both = Map::new();
    for side in ["request", "response"] {
        if dice.one_in(2) {
            continue;
        }
        let mut operations = Map::new();
        if dice.one_in(2) {
            let name = dice.pick(&["x-a", "x-set", "X-Case", "user-agent"]);
            insert(&mut operations, "set", json!({name: dice.pick(EDIT_VALUES)}));
        }
        if dice.one_in(2) {
            let name = dice.pick(&["x-a", "x-add", "x-resp-a"]);
            insert(&mut operations, "add", json!({name: dice.pick(EDIT_VALUES)}));
        }
        if dice.one_in(2) {
            let name = dice.pick(&["x-b", "x-resp-a", "accept-language"]);
            insert(&mut operations, "remove", json!([name]));
        }
        if side == "request" && dice.one_in(6) {
            insert(&mut operations, "set", json!({"Host": "edited.test"}));
        }
        insert(&mut both, side, Value::Object(operations));
    }
    Value::Object(both)
}

fn redirect(dice: &mut Dice) -> Value {
    let mut redirect = Map::new();
    match dice.below(3) {
        0 => insert(&mut redirect, "uri", json!(dice.pick(&["/new", "/new?own=1"]))),
        1 => insert(&mut redirect, "authority", json!("elsewhere.test")),
        _ => insert(&mut redirect, "scheme", json!("https")),
    }
    match dice.below(5) {
        0 => insert(&mut redirect, "port", json!(8443)),
        1 => insert(&mut redirect, "derivePort", json!("FROM_PROTOCOL_DEFAULT")),
        2 => insert(&mut redirect, "derivePort", json!("FROM_REQUEST_PORT")),
        _ => {}
    }
    if dice.one_in(2) {
        insert(&mut redirect, "redirectCode", json!(dice.pick(&[301, 302, 303, 307, 308])));
    }
    Value::Object(redirect)
}

fn direct_response(dice: &mut Dice) -> Value {
    let status = dice.pick(&[200, 204, 404, 503]);
    // Envoy sends a 204's body, which has none (RFC 9110 §15.3.5).
    if status == 204 || dice.one_in(3) {
        json!({"status": status})
    } else {
        json!({"status": status, "body": {"string": "said at once"}})
    }
}

fn rewrite(dice: &mut Dice) -> Value {
    match dice.below(4) {
        0 => json!({"authority": "rewritten.test"}),
        1 => json!({"uriRegexRewrite": {"match": "^/([a-z]+)(/.*)?$", "rewrite": "/got/\\1\\2"}}),
        2 => json!({"uri": "/swapped", "authority": "rewritten.test"}),
        _ => json!({"uri": dice.pick(&["/", "/swapped", "/swapped/"])}),
    }
}

fn fault(dice: &mut Dice) -> Value {
    let percentage = json!({"value": dice.pick(&[100.0, 100.0, 0.0])});
    match dice.below(4) {
        0 => json!({"delay": {"fixedDelay": "0.02s", "percentage": percentage}}),
        1 => json!({"abort": {"grpcStatus": "UNAVAILABLE", "percentage": percentage}}),
        2 => json!({
            "delay": {"fixedDelay": "0.01s", "percentage": {"value": 100.0}},
            "abort": {"httpStatus": 503, "percentage": percentage},
        }),
        _ => {
            json!({"abort": {"httpStatus": dice.pick(&[400, 418, 500]), "percentage": percentage}})
        }
    }
}

fn retries(dice: &mut Dice) -> Value {
    let mut retries = json!({"attempts": dice.below(4)});
    if retries["attempts"] != json!(0) {
        if dice.one_in(4) {
            retries["perTryTimeout"] = json!("0.25s");
        }
        if !dice.one_in(3) {
            let on = [
                "5xx",
                "gateway-error",
                "reset",
                "retriable-4xx",
                "503,409",
                "connect-failure,503",
                "reset-before-request",
                "retriable-status-codes",
            ];
            retries["retryOn"] = json!(dice.pick(&on));
        }
    }
    retries
}

fn cors(dice: &mut Dice) -> Value {
    let origin = match dice.below(3) {
        0 => json!({"exact": dice.pick(ORIGINS)}),
        1 => json!({"prefix": "https://"}),
        _ => json!({"regex": "https?://(one|two)\\.test"}),
    };
    let mut cors = json!({"allowOrigins": [origin]});
    if dice.one_in(2) {
        cors["allowMethods"] = json!(["GET", "PUT"]);
    }
    if dice.one_in(2) {
        cors["allowHeaders"] = json!(["x-a", "x-b"]);
        cors["exposeHeaders"] = json!(["x-resp-a"]);
    }
    if dice.one_in(2) {
        cors["maxAge"] = json!("60s");
        cors["allowCredentials"] = json!(dice.one_in(2));
    }
    match dice.below(3) {
        0 => cors["unmatchedPreflights"] = json!("FORWARD"),
        1 => cors["unmatchedPreflights"] = json!("IGNORE"),
        _ => {}
    }
    cors
}
