//! Istio's CRDs as the oracle of validation: from every constraint of their schemas (types, enums,
//! ranges, patterns, required fields, exclusive fields, CEL rules) a resource is made that breaks
//! it and nothing else, and one that keeps it. The first must be refused with a path to the place,
//! the second must not be refused there.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weft_model::{Diagnostic, parse_yaml};

/// Kinds that Weft reads.
const KINDS: [&str; 9] = [
    "VirtualService",
    "DestinationRule",
    "Gateway",
    "ServiceEntry",
    "WorkloadEntry",
    "Sidecar",
    "EnvoyFilter",
    "ProxyConfig",
    "PeerAuthentication",
];

/// Sane resources in which places for the constraints are made.
fn base(kind: &str) -> Value {
    match kind {
        "VirtualService" => json!({"hosts": ["a.example"]}),
        "DestinationRule" => json!({"host": "a.example"}),
        "Gateway" => json!({"selector": {"app": "edge"}, "servers": [
            {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["a.example"]}]}),
        // Entries of maps are named like this port.
        "ServiceEntry" => json!({"hosts": ["a.example"], "resolution": "STATIC",
            "ports": [{"number": 80, "name": ENTRY, "protocol": "HTTP"}]}),
        "WorkloadEntry" => json!({"address": "10.0.0.1"}),
        "Sidecar" => json!({"egress": [{"hosts": ["./*"]}]}),
        "EnvoyFilter" => json!({"configPatches": [
            {"applyTo": "CLUSTER", "patch": {"operation": "REMOVE"}}]}),
        "ProxyConfig" => json!({"concurrency": 1}),
        "PeerAuthentication" => json!({"selector": {"matchLabels": {"app": "a"}}}),
        _ => json!({}),
    }
}

/// Rules that are broken by what is not there.
const LACKING: [&str; 2] = ["Address is required", "portLevelMtls requires selector"];

/// Places whose smallest value by the CRD is refused by Istio's webhook for another reason.
const ASKED_BY_THE_WEBHOOK: [&str; 1] = ["spec.outboundTrafficPolicy.egressProxy"];

#[derive(Clone)]
enum Step {
    Field(String),
    Item,
    /// Of a map.
    Entry,
}

/// Name of the entry that is made in maps.
const ENTRY: &str = "80";

fn shown(path: &[Step]) -> String {
    let mut out = "spec".to_owned();
    for step in path {
        match step {
            Step::Field(name) => out.push_str(&format!(".{name}")),
            Step::Item => out.push_str("[0]"),
            Step::Entry => out.push_str(&format!(".{ENTRY}")),
        }
    }
    out
}

/// A constraint: where it is, a value that breaks it, and one that keeps it.
struct Case {
    path: Vec<Step>,
    what: String,
    wrong: Value,
    right: Value,
    /// The error may also be at the object that has the field.
    at_parent: bool,
}

/// The smallest value that a schema takes.
fn minimal(schema: &Value) -> Value {
    named_minimal("", schema)
}

/// As [`minimal`], for a field whose sane values the CRD does not tell.
fn named_minimal(field: &str, schema: &Value) -> Value {
    match field {
        "redirectCode" => return json!(301),
        "status" | "httpStatus" => return json!(503),
        "protocol" if !schema["enum"].is_array() => return json!("HTTP"),
        "address" => return json!("10.0.0.1"),
        "addresses" => return json!(["10.0.0.1"]),
        _ => {}
    }
    let rules = schema["x-kubernetes-validations"].to_string();
    match schema["type"].as_str() {
        Some("object") => {
            let mut made = Map::new();
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().expect("a name");
                made.insert(name.to_owned(), named_minimal(name, &schema["properties"][name]));
            }
            // The first of exclusive fields, where one is a must.
            for (name, field) in first_choice(schema) {
                made.entry(name.clone()).or_insert_with(|| named_minimal(&name, &field));
            }
            if schema["additionalProperties"].is_object() && made.is_empty() {
                made.insert(ENTRY.to_owned(), minimal(&schema["additionalProperties"]));
            }
            Value::Object(made)
        }
        Some("array") => json!([minimal(&schema["items"])]),
        Some("integer") => json!(schema["minimum"].as_f64().unwrap_or(0.0).max(1.0) as i64),
        Some("number") => json!(1),
        Some("boolean") => json!(true),
        Some("string") if rules.contains("duration(") => json!("1s"),
        Some("string") => {
            let mut names = schema["enum"].as_array().into_iter().flatten();
            let sane = |name: &&Value| {
                !["INVALID", "UNDEFINED", "UNSPECIFIED", "LEAST_CONN"]
                    .contains(&name.as_str().unwrap_or(""))
            };
            names.rfind(sane).cloned().unwrap_or(json!("a"))
        }
        _ => json!({}),
    }
}

/// Alternatives of `oneOf` as lists of names.
fn alternatives(schema: &Value) -> Vec<Vec<String>> {
    let sets = schema["oneOf"].as_array().into_iter().flatten();
    sets.filter_map(|one| one["required"].as_array())
        .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .collect()
}

fn must_choose(schema: &Value) -> bool {
    let all = schema["oneOf"].as_array();
    all.is_some_and(|all| all.iter().all(|one| one.get("not").is_none()))
}

fn first_choice(schema: &Value) -> Vec<(String, Value)> {
    let names = alternatives(schema);
    match names.first() {
        Some(first) if must_choose(schema) => {
            first.iter().map(|name| (name.clone(), schema["properties"][name].clone())).collect()
        }
        _ => Vec::new(),
    }
}

fn cases(schema: &Value, path: &[Step], out: &mut Vec<Case>) {
    let field = path.iter().rev().find_map(|step| match step {
        Step::Field(name) => Some(name.as_str()),
        _ => None,
    });
    let right = match path.last() {
        Some(Step::Item) if field == Some("addresses") => json!("10.0.0.1"),
        Some(Step::Field(name)) => named_minimal(name, schema),
        _ => minimal(schema),
    };
    let mut case = |what: &str, wrong: Value, at_parent: bool| {
        let what = what.to_owned();
        out.push(Case { path: path.to_vec(), what, wrong, right: right.clone(), at_parent });
    };
    if schema["x-kubernetes-int-or-string"] == true {
        return;
    }
    let kind = schema["type"].as_str().unwrap_or("");
    let wrong_type = match kind {
        "integer" | "number" => Some(json!("x")),
        "boolean" => Some(json!("maybe")),
        "string" | "array" => Some(json!({"not": "this"})),
        "object" => Some(json!(["not this"])),
        _ => None,
    };
    if let Some(wrong) = wrong_type {
        case("type", wrong, false);
    }
    if schema["enum"].is_array() {
        case("enum", json!("NO_SUCH_VALUE"), false);
    }
    if let Some(min) = schema["minimum"].as_f64() {
        case("minimum", json!(min as i64 - 1), false);
    }
    if let Some(max) = schema["maximum"].as_f64() {
        case("maximum", json!(max as i64 + 1), false);
    }
    if schema["minLength"].as_u64().is_some_and(|min| min > 0) {
        case("minLength", json!(""), false);
    }
    if let Some(max) = schema["maxLength"].as_u64() {
        case("maxLength", json!("a".repeat(max as usize + 1)), false);
    }
    if schema["pattern"].is_string() {
        case("pattern", json!("!? no"), false);
    }
    if schema["minItems"].as_u64().is_some_and(|min| min > 0) {
        case("minItems", json!([]), false);
    }
    if let Some(max) = schema["maxItems"].as_u64() {
        let item = minimal(&schema["items"]);
        case("maxItems", Value::Array(vec![item; max as usize + 1]), false);
    }
    if let Some(max) = schema["maxProperties"].as_u64() {
        let item = minimal(&schema["additionalProperties"]);
        let entries = (0..=max).map(|index| (format!("k{index}"), item.clone()));
        case("maxProperties", Value::Object(entries.collect()), false);
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let mut wrong = right.clone();
        let name = name.as_str().expect("a name");
        wrong.as_object_mut().expect("an object").remove(name);
        case(&format!("required {name}"), wrong, true);
    }
    let names = alternatives(schema);
    if let [first, second, ..] = &names[..] {
        let mut wrong = right.clone();
        let fields = wrong.as_object_mut().expect("an object");
        for name in first.iter().chain(second) {
            fields.insert(name.clone(), minimal(&schema["properties"][name]));
        }
        case(&format!("only one of {} and {}", first[0], second[0]), wrong, true);
    }
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().unwrap_or("").split_whitespace().collect::<Vec<_>>();
        let (wrong, right) = by_rule(&text.join(" "), &right);
        let what = rule["message"].as_str().unwrap_or("a rule").to_owned();
        out.push(Case { path: path.to_vec(), what, wrong, right, at_parent: true });
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        cases(field, &[path, &[Step::Field(name.clone())]].concat(), out);
    }
    if schema["items"].is_object() {
        cases(&schema["items"], &[path, &[Step::Item]].concat(), out);
    }
    if schema["additionalProperties"].is_object() {
        cases(&schema["additionalProperties"], &[path, &[Step::Entry]].concat(), out);
    }
}

/// For a CEL rule, a value that breaks it and one that keeps it.
fn by_rule(rule: &str, right: &Value) -> (Value, Value) {
    let with = |fields: Value| {
        let mut all = right.as_object().cloned().unwrap_or_default();
        all.extend(fields.as_object().expect("fields").clone());
        Value::Object(all)
    };
    let label = json!({"app": "a"});
    match rule {
        _ if rule.starts_with("duration(self)") => (json!("0.5ms"), json!("1s")),
        "0 < self && self <= 65535" => (json!(0), json!(80)),
        "self.all(key, !key.contains(\"*\"))" => (json!({"a*": "b"}), label),
        "self.all(key, key.size() != 0)" => (json!({"": "b"}), label),
        "!self.contains(\"*\")" => (json!("a*"), json!("a")),
        _ if rule.contains("startsWith(\"unix://\") ? !has(self.ports)") => (
            json!({"address": "unix:///a", "ports": {"http": 80}}),
            json!({"address": "unix:///a"}),
        ),
        _ if rule.contains("substring(7, 8)") => (json!("unix://a"), json!("unix:///a")),
        _ if rule.contains("!self.endsWith(\"/\")") => (json!("unix:///a/"), json!("unix:///a")),
        _ if rule.starts_with("self.all(key, size(key) < 63") => {
            (json!({"not valid": 80}), json!({"http": 80}))
        }
        _ if rule.contains("self.tlsCertificates") && rule.contains("self.credentialNames") => (
            with(json!({"mode": "SIMPLE", "credentialNames": ["a"], "tlsCertificates": [
                {"serverCertificate": "/a", "privateKey": "/b"}]})),
            with(json!({"mode": "SIMPLE", "credentialNames": ["a"]})),
        ),
        _ if rule.contains("self.credentialName)") => (
            with(json!({"mode": "SIMPLE", "credentialName": "a", "credentialNames": ["a"]})),
            with(json!({"mode": "SIMPLE", "credentialName": "a"})),
        ),
        "has(self.address) || has(self.network)" => {
            (json!({"labels": {"a": "b"}}), json!({"address": "10.0.0.1"}))
        }
        _ if rule.contains("has(self.targetRefs)") => (
            with(
                json!({"workloadSelector": {"labels": {"a": "b"}}, "targetRefs": [{"kind": "Gateway", "name": "a"}]}),
            ),
            with(json!({"workloadSelector": {"labels": {"a": "b"}}})),
        ),
        _ if rule.contains("self.context == \"WAYPOINT\"") => {
            (json!({"context": "WAYPOINT"}), json!({"context": "GATEWAY"}))
        }
        "self.size() == 0" => (json!("elsewhere"), json!("")),
        _ if rule.contains("has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints)") => (
            with(
                json!({"workloadSelector": {"labels": {"a": "b"}}, "endpoints": [{"address": "10.0.0.1"}]}),
            ),
            with(json!({"endpoints": [{"address": "10.0.0.1"}]})),
        ),
        _ if rule.contains("k.contains(\"/\")") => (
            with(json!({"addresses": ["10.0.0.0/8"], "resolution": "DNS"})),
            with(json!({"addresses": ["10.0.0.0/8"], "resolution": "STATIC"})),
        ),
        _ if rule.contains("\"NONE\") == \"NONE\")") => (
            with(json!({"resolution": "NONE", "endpoints": [{"address": "10.0.0.1"}]})),
            with(json!({"resolution": "STATIC", "endpoints": [{"address": "10.0.0.1"}]})),
        ),
        _ if rule.contains("DNS_ROUND_ROBIN") => (
            with(
                json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.example"}, {"address": "b.example"}]}),
            ),
            with(json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.example"}]})),
        ),
        "self != \"*\"" => (json!("*"), json!("a.example")),
        _ if rule.contains("exists_one") => {
            let port = |name: &str| json!({"number": 80, "name": name, "protocol": "HTTP"});
            (json!([port("a"), port("b")]), json!([port("a")]))
        }
        _ if rule.contains("has(self.portLevelMtls)") => (
            json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}),
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"80": {"mode": "STRICT"}}}),
        ),
        _ if rule.contains("int(key)") => {
            (json!({"0": {"mode": "STRICT"}}), json!({"80": {"mode": "STRICT"}}))
        }
        _ => panic!("no example for the rule {rule}"),
    }
}

/// Puts a value at a path of a resource, making what the way needs.
fn put(root: &mut Value, schema: &Value, path: &[Step], value: &Value) {
    let Some((step, rest)) = path.split_first() else {
        // A whole spec keeps what the base has.
        match (root, value) {
            (Value::Object(there), Value::Object(new)) if !there.is_empty() => {
                for (name, value) in new {
                    there.insert(name.clone(), value.clone());
                }
            }
            (there, new) => *there = new.clone(),
        }
        return;
    };
    let (child, inner) = match step {
        Step::Field(name) => {
            let inner = &schema["properties"][name];
            // Of exclusive fields the one on the way stays.
            let rivals = alternatives(schema);
            let fields = root.as_object_mut().expect("an object on the way");
            if rivals.iter().flatten().any(|rival| rival == name) {
                for rival in rivals.iter().filter(|set| !set.contains(name)).flatten() {
                    fields.remove(rival);
                }
            }
            (fields.entry(name.clone()).or_insert_with(|| named_minimal(name, inner)), inner)
        }
        Step::Item => {
            let items = root.as_array_mut().expect("a list on the way");
            if items.is_empty() {
                items.push(minimal(&schema["items"]));
            }
            (&mut items[0], &schema["items"])
        }
        Step::Entry => {
            let inner = &schema["additionalProperties"];
            let fields = root.as_object_mut().expect("a map on the way");
            (fields.entry(ENTRY.to_owned()).or_insert_with(|| minimal(inner)), inner)
        }
    };
    match rest.is_empty() {
        true => *child = value.clone(),
        false => put(child, inner, rest, value),
    }
}

/// The schema of a kind's spec, and its API version.
fn schemas(text: &str) -> BTreeMap<String, (String, Value)> {
    let options = || {
        serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_depth: 500, max_events: 5_000_000 },
        }
    };
    let mut found = BTreeMap::new();
    for document in text.split("\n---\n") {
        let crd: Value = serde_saphyr::from_str_with_options(document, options()).expect("a CRD");
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
        let versions = crd["spec"]["versions"].as_array().cloned().unwrap_or_default();
        let v1 = versions.iter().find(|version| version["name"] == "v1");
        let Some(version) = v1.or(versions.first()) else { continue };
        let group = crd["spec"]["group"].as_str().unwrap_or_default();
        let api_version = format!("{group}/{}", version["name"].as_str().unwrap_or_default());
        let spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
        found.insert(kind, (api_version, spec));
    }
    found
}

fn findings(kind: &str, api_version: &str, spec: &Value) -> Vec<Diagnostic> {
    let document = json!({"apiVersion": api_version, "kind": kind,
        "metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
    parse_yaml("generated.yaml", &document.to_string()).1
}

/// Says whether an error is about the place.
fn is_about(error: &Diagnostic, path: &str, at_parent: bool) -> bool {
    let below = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let parent = path.rsplit_once('.').map_or(path, |(parent, _)| parent);
    below(path, &error.path) || (at_parent && error.path == parent)
}

#[test]
fn what_the_crds_refuse_is_refused() {
    let Some(data) = weft_testkit::peer::data("what_the_crds_refuse_is_refused") else { return };
    let text = std::fs::read_to_string(data.join("crds/istio-crds.yaml")).expect("the CRDs");
    let schemas = schemas(&text);
    let (mut checked, mut unread) = (0, 0);
    let mut failures = Vec::new();
    for kind in KINDS {
        let (api_version, schema) = &schemas[kind];
        let mut all = Vec::new();
        cases(schema, &[], &mut all);
        for Case { path, what, wrong, right, at_parent } in all {
            let place = shown(&path);
            let with = |value: &Value| {
                let mut spec = base(kind);
                match (path.is_empty(), what.strip_prefix("required ")) {
                    // What breaks a rule by lacking something does not get it from the base.
                    (true, Some(name)) if value == &wrong => {
                        spec.as_object_mut().expect("a spec").remove(name);
                    }
                    (true, None) if LACKING.contains(&&*what) => spec = value.clone(),
                    _ => put(&mut spec, schema, &path, value),
                }
                findings(kind, api_version, &spec)
            };
            let found = with(&wrong);
            // What Weft does not act on it says so of, and does not look into.
            let skipped =
                found.iter().any(|one| one.code == "WEFT0005" && place.starts_with(&*one.path));
            if skipped {
                unread += 1;
                continue;
            }
            checked += 1;
            let refused = |found: &[Diagnostic]| {
                found.iter().any(|one| one.is_error() && is_about(one, &place, at_parent))
            };
            if !refused(&found) {
                let errors: Vec<String> =
                    found.iter().filter(|one| one.is_error()).map(|one| one.path.clone()).collect();
                failures
                    .push(format!("{kind} {place}: {what} is not refused; errors at {errors:?}"));
                continue;
            }
            // Whether the whole is sane is another question; the place is.
            let kept = with(&right);
            let same = |one: &&Diagnostic| one.is_error() && one.path == place;
            // An empty map keeps the CRD, and Istio's webhook asks for more.
            let whole = right.as_object().is_none_or(|fields| !fields.is_empty());
            let more = ASKED_BY_THE_WEBHOOK.contains(&&*place.replace("[0]", ""));
            if what != "type"
                && whole
                && !more
                && let Some(error) = kept.iter().find(same)
            {
                failures.push(format!("{kind} {place}: {right} is right by the CRD: {error}"));
            }
        }
    }
    println!("{checked} constraints, {unread} of fields that are reported as not built yet");
    failures.dedup();
    assert!(failures.is_empty(), "{} of {checked}:\n{}", failures.len(), failures.join("\n"));
    assert!(checked > 1_000, "only {checked} constraints");
}
