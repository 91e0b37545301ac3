//! No field of Istio's CRDs is accepted in silence: setting it changes what some proxy is sent, or a
//! finding tells that it does nothing. What is excepted stands here with its reason.

mod common;

use common::view;
use serde_json::{Map, Value, json};
use weft_model::{Change, ChangeKind, Snapshot};
use weft_testkit::peer;
use weft_translate::{Interception, ProxyKind, ProxyView, endpoints, translate};

/// The kinds, with specs into which each field is put in turn; one that shows it suffices.
fn bases(kind: &str) -> Vec<Value> {
    let to = json!({"destination": {"host": "reviews.shop.svc.cluster.local"}});
    let hosts = json!(["reviews.shop.svc.cluster.local"]);
    let both = json!(["mesh", "shop/edge"]);
    match kind {
        "VirtualService" => vec![
            json!({"hosts": hosts, "gateways": both, "http": [{"route": [to]}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"match": [{"uri": {"prefix": "/p"}}],
                "route": [to], "fault": {"abort": {"httpStatus": 500}}}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"match": [{"uri": {"prefix": "/p"}}]}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"route": [to], "fault": {"delay": {"fixedDelay": "9s"}}}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"route": [to], "rewrite": {"uriRegexRewrite": {"match": "a", "rewrite": "b"}}}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"directResponse": {"status": 503}}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"redirect": {"uri": "/x"}}]}),
            json!({"hosts": hosts, "gateways": both, "http": [{"route": [to], "mirror": {"host": "db.shop.svc.cluster.local"}}]}),
            json!({"hosts": ["db.shop.svc.cluster.local"], "tcp": [{"route": [to]}]}),
            json!({"hosts": ["db.shop.svc.cluster.local"], "tcp": [{"route": [to, {"destination": {"host": "db.shop.svc.cluster.local"}, "weight": 50}]}]}),
            json!({"hosts": ["sni.shop.svc.cluster.local"], "tls": [{"match": [
                {"sniHosts": ["sni.shop.svc.cluster.local"]}], "route": [to]}]}),
            json!({"hosts": ["sni.shop.svc.cluster.local"], "tls": [{"match": [
                {"sniHosts": ["sni.shop.svc.cluster.local"]}], "route": [to, {"destination": {"host": "db.shop.svc.cluster.local"}, "weight": 50}]}]}),
        ],
        "DestinationRule" => {
            let tls = json!({"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k", "caCertificates": "/r"});
            let locality = json!({"outlierDetection": {}, "loadBalancer": {"localityLbSetting": {"enabled": true}}});
            let rule = |policy: Value| {
                json!({"host": "reviews.shop.svc.cluster.local", "trafficPolicy": policy,
                    "subsets": [{"name": "v1", "labels": {"version": "v1"}}]})
            };
            vec![
                rule(json!({})),
                rule(json!({"tls": tls})),
                rule(json!({"tls": {"mode": "SIMPLE"}})),
                rule(locality),
                rule(json!({"outlierDetection": {}})),
                rule(json!({"outlierDetection": {"splitExternalLocalOriginErrors": true}})),
                rule(
                    json!({"loadBalancer": {"simple": "ROUND_ROBIN", "warmup": {"duration": "9s"}}}),
                ),
                rule(
                    json!({"loadBalancer": {"consistentHash": {"httpCookie": {"name": "c", "ttl": "3s"}}}}),
                ),
                rule(
                    json!({"loadBalancer": {"consistentHash": {"useSourceIp": true, "maglev": {}}}}),
                ),
                rule(json!({"portLevelSettings": [{"port": {"number": 9080}}]})),
                rule(json!({"portLevelSettings": [{"port": {"number": 9080}, "tls": tls}]})),
                json!({"host": "db.shop.svc.cluster.local", "trafficPolicy": {}}),
                rule(json!({"connectionPool": {"http": {"http2KeepAlive":
                    {"interval": "8s", "timeout": "9s"}}}})),
                rule(json!({"outlierDetection": {}, "loadBalancer": {"localityLbSetting":
                    {"distribute": [{"from": "east/*", "to": {"west": 50}}]}}})),
                rule(json!({"outlierDetection": {}, "loadBalancer": {"localityLbSetting":
                    {"distribute": [{"from": "west/*", "to": {"west": 100}}]}}})),
                json!({"host": "db.shop.svc.cluster.local",
                    "trafficPolicy": {"tunnel": {"targetHost": "out.example", "targetPort": 443}}}),
            ]
        }
        "ServiceEntry" => vec![
            json!({"hosts": ["out.example"], "resolution": "STATIC", "location": "MESH_INTERNAL",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                "endpoints": [{"address": "10.7.0.1"}, {"address": "10.7.0.2"}]}),
            json!({"hosts": ["out.example"], "resolution": "STATIC",
                "ports": [{"number": 80, "name": "k", "protocol": "HTTP"}],
                "endpoints": [{"address": "10.7.0.1"}]}),
            json!({"hosts": ["out.example"], "resolution": "DNS",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}),
            json!({"hosts": ["out.example"], "resolution": "STATIC",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}),
        ],
        "Sidecar" => vec![
            json!({"workloadSelector": {"labels": {"app": "client"}}, "egress": [{"hosts": ["*/*"]}],
                "ingress": [{"port": {"number": 9443, "name": "https", "protocol": "HTTPS"}, "defaultEndpoint": "127.0.0.1:80"}]}),
            json!({"inboundConnectionPool": {"http": {"http2KeepAlive": {"interval": "8s", "timeout": "9s"}}}}),
            json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY", "egressProxy":
                {"host": "reviews.shop.svc.cluster.local", "port": {"number": 9080}}}}),
            json!({"egress": [{"hosts": ["*/*"], "port": {"number": 9080, "name": "http", "protocol": "HTTP"}}]}),
            json!({"workloadSelector": {"labels": {"app": "client"}},
                "ingress": [{"port": {"number": 9443, "name": "https", "protocol": "HTTPS"}, "defaultEndpoint": "127.0.0.1:80",
                    "tls": {"mode": "MUTUAL", "serverCertificate": "/c", "privateKey": "/k", "caCertificates": "/r"}}]}),
        ],
        "Gateway" => {
            let server = |more: Value| {
                let mut server = json!({"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*"]});
                server
                    .as_object_mut()
                    .expect("an object")
                    .extend(more.as_object().expect("an object").clone());
                json!({"selector": {"istio": "edge"}, "servers": [server]})
            };
            vec![
                server(json!({"port": {"number": 80, "name": "http", "protocol": "HTTP"}})),
                server(
                    json!({"tls": {"mode": "MUTUAL", "serverCertificate": "/c", "privateKey": "/k", "caCertificates": "/r"}}),
                ),
                server(json!({"tls": {"mode": "SIMPLE"}})),
                server(json!({"tls": {"mode": "MUTUAL", "credentialName": "own"}})),
            ]
        }
        "WorkloadEntry" => vec![json!({"address": "10.7.0.9", "labels": {"app": "reviews"}})],
        _ => vec![json!({})],
    }
}

/// Beginnings of fields that have no effect in the worlds here, and why that is right.
const EXCEPTED: [(&str, &str); 20] = [
    ("Gateway servers[0].tls.tlsCertificates", "told where either of the two is missing"),
    ("Sidecar ingress[0].tls.tlsCertificates", "told where either of the two is missing"),
    ("DestinationRule trafficPolicy.loadBalancer.backendUtilization.", "told once, of the whole"),
    ("DestinationRule trafficPolicy.loadBalancer.zoneAwareLbSetting.", "told once, of the whole"),
    ("DestinationRule trafficPolicy.connectionPool.http.maxConcurrentStreams", "for HTTP/2"),
    ("DestinationRule trafficPolicy.portLevelSettings", "the same code as for all ports"),
    ("Gateway servers[0].name", "a name"),
    ("ServiceEntry endpoints[0].labels", "for subsets"),
    ("Sidecar egress[0].port.name", "a name"),
    ("Sidecar ingress[0].port.name", "a name"),
    ("Sidecar ingress[0].connectionPool", "the same code as inboundConnectionPool"),
    (
        "Sidecar inboundConnectionPool.http.h2UpgradePolicy",
        "the application did not ask for HTTP/2",
    ),
    ("Sidecar inboundConnectionPool.http.useClientProtocol", "as h2UpgradePolicy"),
    ("Sidecar inboundConnectionPool.http.maxConcurrentStreams", "for HTTP/2"),
    ("VirtualService http[0].retries.", "without attempts there are none"),
    ("VirtualService http[0].route[0].weight", "the only destination takes everything"),
    ("ProxyConfig image.", "told once, of the whole"),
    ("ProxyConfig selector.", "nothing that it could choose for reaches proxies over xDS"),
    ("WorkloadEntry labels", "for subsets"),
    ("WorkloadEntry ports", "by the names of a ServiceEntry's ports"),
];

/// Only every so many fields are tried, unless `WEFT_FIELDS=all` asks for the minutes that all take.
const STEP: usize = 12;

fn world() -> &'static Snapshot {
    static WORLD: std::sync::OnceLock<Snapshot> = std::sync::OnceLock::new();
    WORLD.get_or_init(|| common::snapshot(include_str!("data/fields.yaml")))
}

/// Values worth a try for a field.
fn candidates(name: &str, schema: &Value) -> Vec<Value> {
    let rules = schema["x-kubernetes-validations"].to_string();
    if let Some(names) = schema["enum"].as_array() {
        return names.clone();
    }
    match schema["type"].as_str() {
        Some("boolean") => vec![json!(true), json!(false)],
        Some("integer") => {
            [2, 7, 80, 443, 503, 9080, 50, 100, 308, 1024].map(|n| json!(n)).to_vec()
        }
        Some("number") => vec![json!(7), json!(50)],
        _ if schema["x-kubernetes-int-or-string"] == true => vec![json!(7)],
        Some("string") if rules.contains("duration(") => vec![json!("7s")],
        Some("string") => {
            let by_name: &[&str] = match name {
                "retryOn" => &["5xx"],
                "value" => &["x"],
                "uri" => &["/new"],
                "defaultEndpoint" => &["127.0.0.1:81"],
                "sniHosts" => &["sni.shop.svc.cluster.local"],
                "protocol" => &["POST"],
                _ => &[],
            };
            let all = [
                "reviews",
                "v1",
                "/x",
                "a",
                "10.9.0.0/16",
                "10.7.0.8",
                "shop",
                "east/a/1",
                "127.0.0.3",
                "reviews.shop.svc.cluster.local",
                "db",
                "HTTP",
                "TCP",
                "GRPC",
                "./reviews",
                "UNAVAILABLE",
                "ECDHE-RSA-AES128-GCM-SHA256",
                "topology.kubernetes.io/region",
                "spiffe://a",
                "X25519",
                "7s",
                "shop/edge",
                "edge",
                "own",
                "*.example",
                "b2s=",
                "~",
                "https",
                "east",
                "west",
            ];
            by_name.iter().chain(&all).map(|text| json!(text)).collect()
        }
        _ => Vec::new(),
    }
}

/// The smallest value of a schema, for what a field needs beside it.
fn filler(name: &str, schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("object") => {
            let mut made = Map::new();
            for field in schema["required"].as_array().into_iter().flatten() {
                let field = field.as_str().expect("a name");
                made.insert(field.to_owned(), filler(field, &schema["properties"][field]));
            }
            Value::Object(made)
        }
        Some("array") => json!([filler(name, &schema["items"])]),
        Some("integer" | "number") => json!(if name == "number" { 9080 } else { 7 }),
        Some("boolean") => json!(true),
        _ => match name {
            "host" => json!("reviews.shop.svc.cluster.local"),
            "protocol" => json!("HTTP"),
            "hosts" => json!("*/*"),
            _ => candidates(name, schema).into_iter().next().unwrap_or(json!("a")),
        },
    }
}

#[derive(Clone)]
enum Step {
    Field(String),
    Item,
    Entry,
}

fn leaves(schema: &Value, path: &[Step], out: &mut Vec<(Vec<Step>, Value)>) {
    let with = |step: Step| [path, &[step]].concat();
    match schema["type"].as_str() {
        Some("object") if schema["properties"].is_object() => {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                leaves(field, &with(Step::Field(name.clone())), out);
            }
        }
        Some("object") if schema["additionalProperties"].is_object() => {
            leaves(&schema["additionalProperties"], &with(Step::Entry), out);
        }
        Some("array") => leaves(&schema["items"], &with(Step::Item), out),
        _ => out.push((path.to_vec(), schema.clone())),
    }
}

fn shown(path: &[Step]) -> String {
    let parts = path.iter().map(|step| match step {
        Step::Field(name) => format!(".{name}"),
        Step::Item => "[0]".to_owned(),
        Step::Entry => ".k".to_owned(),
    });
    parts.collect::<String>().trim_start_matches('.').to_owned()
}

/// Sets (or with `None` removes) what is at the path, making the way to it.
fn put(root: &mut Value, schema: &Value, path: &[Step], value: Option<&Value>) {
    let Some((step, rest)) = path.split_first() else {
        if let Some(value) = value {
            *root = value.clone();
        }
        return;
    };
    match step {
        Step::Field(name) => {
            let schema = &schema["properties"][name];
            if !root.is_object() {
                *root = json!({});
            }
            let fields = root.as_object_mut().expect("an object");
            if rest.is_empty() && value.is_none() {
                fields.remove(name);
                return;
            }
            let next = fields.entry(name.clone()).or_insert_with(|| filler(name, schema));
            put(next, schema, rest, value);
        }
        Step::Item => {
            let schema = &schema["items"];
            if root.as_array().is_none_or(Vec::is_empty) {
                *root = json!([filler("", schema)]);
            }
            let list = root.as_array_mut().expect("an array");
            if rest.is_empty() && value.is_none() {
                list.remove(0);
                return;
            }
            put(&mut list[0], schema, rest, value);
        }
        Step::Entry => {
            if !root.is_object() {
                *root = json!({});
            }
            let fields = root.as_object_mut().expect("an object");
            if rest.is_empty() && value.is_none() {
                fields.remove("k");
                return;
            }
            put(
                fields.entry("k").or_insert(json!({})),
                &schema["additionalProperties"],
                rest,
                value,
            );
        }
    }
}

fn views() -> Vec<ProxyView> {
    let client = view(ProxyKind::Sidecar, "shop", "client-0", &[("app", "client")]);
    let bound = ProxyView { interception: Interception::None, ..client.clone() };
    let edge = view(ProxyKind::Gateway, "shop", "edge-0", &[("istio", "edge")]);
    let far = view(ProxyKind::Sidecar, "far", "other-0", &[("app", "other")]);
    vec![client, bound, edge, far]
}

/// What proxies get, and what is told; `None`: the resource is refused.
fn outcome(api: &str, kind: &str, spec: &Value) -> Option<(Vec<u8>, Vec<String>)> {
    let resource = json!({"apiVersion": api, "kind": kind,
        "metadata": {"name": "tested", "namespace": "shop"}, "spec": spec});
    let (objects, mut findings) = weft_model::parse_yaml("tested.yaml", &resource.to_string());
    let upsert = |object: weft_model::Object| {
        Some(Change { key: object.key()?, kind: ChangeKind::Upsert(object) })
    };
    let (snapshot, _) = world().apply(objects.into_iter().filter_map(upsert).collect());
    findings.extend_from_slice(snapshot.diagnostics());
    if findings.iter().any(|found| found.code == "IST0106" && found.is_error()) {
        return None;
    }
    let mut sent = Vec::new();
    for view in views() {
        let (resources, told) = translate(&snapshot, &view);
        findings.extend(told);
        for resource in
            resources.listeners.iter().chain(&resources.routes).chain(&resources.clusters)
        {
            sent.extend_from_slice(&resource.body);
        }
        for cluster in &resources.clusters {
            if let Some(assignment) = endpoints(&snapshot, &view, &cluster.name) {
                sent.extend_from_slice(&assignment.body);
            }
        }
    }
    let mut told: Vec<String> =
        findings.iter().map(|one| format!("{} {}", one.path, one.message)).collect();
    told.sort();
    Some((sent, told))
}

enum Seen {
    Yes,
    Nothing,
    /// No value was accepted.
    Refused,
}

fn seen(api: &str, kind: &str, schema: &Value, path: &[Step], leaf: &Value) -> Seen {
    let name = path.iter().rev().find_map(|step| match step {
        Step::Field(name) => Some(name.as_str()),
        _ => None,
    });
    let mut accepted = false;
    for base in bases(kind) {
        let mut without = base.clone();
        put(&mut without, schema, path, None);
        let before = outcome(api, kind, &without);
        for value in candidates(name.unwrap_or(""), leaf) {
            let mut with = base.clone();
            put(&mut with, schema, path, Some(&value));
            let Some(after) = outcome(api, kind, &with) else { continue };
            accepted = true;
            // A field that makes the resource acceptable is read.
            if before.as_ref() != Some(&after) {
                return Seen::Yes;
            }
        }
    }
    if accepted { Seen::Nothing } else { Seen::Refused }
}

#[test]
fn no_field_is_accepted_in_silence() {
    let Some(data) = peer::data("no_field_is_accepted_in_silence") else { return };
    let crds = std::fs::read_to_string(data.join("crds/istio-crds.yaml")).expect("the CRDs");
    let step = if std::env::var("WEFT_FIELDS").is_ok_and(|size| size == "all") { 1 } else { STEP };
    let mut silent = Vec::new();
    let mut refused = Vec::new();
    for document in crds.split("\n---\n") {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_depth: 500, max_events: 5_000_000 },
        };
        let crd: Value = serde_saphyr::from_str_with_options(document, options).expect("a CRD");
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or("").to_owned();
        let kinds = [
            "VirtualService",
            "DestinationRule",
            "ServiceEntry",
            "Sidecar",
            "Gateway",
            "WorkloadEntry",
            "ProxyConfig",
        ];
        if !kinds.contains(&kind.as_str()) {
            continue;
        }
        let versions = crd["spec"]["versions"].as_array().expect("versions");
        let named = |name| versions.iter().find(move |one| one["name"] == name);
        let version = named("v1").or_else(|| named("v1beta1")).expect("v1 or v1beta1");
        let api = format!("networking.istio.io/{}", version["name"].as_str().expect("a name"));
        let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut all = Vec::new();
        leaves(schema, &[], &mut all);
        for (path, leaf) in all.into_iter().step_by(step) {
            let place = format!("{kind} {}", shown(&path));
            // The same code as the rule's own policy.
            if place.contains("subsets[0].trafficPolicy")
                || EXCEPTED.iter().any(|(at, _)| place.starts_with(at))
            {
                continue;
            }
            match seen(&api, &kind, schema, &path, &leaf) {
                Seen::Yes => {}
                Seen::Nothing => silent.push(place),
                Seen::Refused => refused.push(place),
            }
        }
    }
    assert!(silent.is_empty(), "without effect and not told:\n{}", silent.join("\n"));
    assert!(refused.is_empty(), "no value here fits:\n{}", refused.join("\n"));
}
