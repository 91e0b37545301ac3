//! The Gateway API's admission: what its CRDs refuse, Weft refuses.
//!
//! The CRDs themselves say what to try: every constraint that a valid resource meets is broken,
//! one at a time. CEL rules are tried by hand. Place of the CRDs: `WEFT_DATA`, or `../shared/data`
//! beside the workspace; without them that part is skipped, loudly.

use serde_json::{Value, json};
use weft_model::parse_yaml;

const ALL: &str = include_str!("fixtures/gateway-api.yaml");

fn documents() -> Vec<Value> {
    ALL.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("YAML")).collect()
}

/// Paths of the errors in a resource.
fn errors(document: &Value) -> Vec<String> {
    let (_, found) = parse_yaml("f.yaml", &document.to_string());
    found.iter().filter(|one| one.is_error()).map(|one| one.path.clone()).collect()
}

#[test]
fn every_field_of_every_kind_is_taken() {
    let (objects, found) = parse_yaml("f.yaml", ALL);
    let loud: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(loud.is_empty(), "{}", loud.join("\n"));
    assert_eq!(objects.len(), documents().len());
}

/// A way to break a constraint, and the value that does.
struct Mutant {
    what: String,
    document: Value,
}

struct Breaker<'a> {
    document: &'a Value,
    mutants: Vec<Mutant>,
}

impl Breaker<'_> {
    fn put(&mut self, pointer: &str, rule: &str, value: Value) {
        let mut document = self.document.clone();
        *document.pointer_mut(pointer).expect("what was walked over") = value;
        self.mutants.push(Mutant { what: format!("{pointer} {rule}"), document });
    }

    fn walk(&mut self, schema: &Value, value: &Value, at: &str) {
        match schema["type"].as_str() {
            Some("object") => self.object(schema, value, at),
            Some("array") => self.array(schema, value, at),
            Some("string") => self.string(schema, value, at),
            Some("integer") => self.integer(schema, value, at),
            Some("boolean") => self.put(at, "type", json!("perhaps")),
            other => panic!("{at}: type {other:?}"),
        }
    }

    fn object(&mut self, schema: &Value, value: &Value, at: &str) {
        self.put(at, "type", json!("text"));
        for name in schema["required"].as_array().into_iter().flatten() {
            let mut without = value.as_object().expect("a map").clone();
            if without.remove(name.as_str().expect("a name")).is_some() {
                self.put(at, &format!("required {name}"), without.into());
            }
        }
        if let Some(max) = schema["maxProperties"].as_u64() {
            let many: serde_json::Map<String, Value> =
                (0..=max).map(|index| (format!("k{index}"), json!("v"))).collect();
            self.put(at, "maxProperties", many.into());
        }
        for (name, child) in value.as_object().expect("a map") {
            let escaped = name.replace('/', "~1");
            let properties = &schema["properties"][name];
            let schema =
                if properties.is_null() { &schema["additionalProperties"] } else { properties };
            assert!(schema.is_object(), "{at}/{name} is not in the schema");
            self.walk(schema, child, &format!("{at}/{escaped}"));
        }
    }

    fn array(&mut self, schema: &Value, value: &Value, at: &str) {
        let items = value.as_array().expect("a list");
        self.put(at, "type", json!({"a": "map"}));
        if schema["minItems"].as_u64().is_some_and(|min| min > 0) {
            self.put(at, "minItems", json!([]));
        }
        if let (Some(max), Some(first)) = (schema["maxItems"].as_u64(), items.first()) {
            self.put(at, "maxItems", vec![first.clone(); max as usize + 1].into());
        }
        if matches!(schema["x-kubernetes-list-type"].as_str(), Some("map" | "set")) {
            let mut twice = items.clone();
            twice.push(items[0].clone());
            self.put(at, "unique", twice.into());
        }
        for (index, item) in items.iter().enumerate() {
            self.walk(&schema["items"], item, &format!("{at}/{index}"));
        }
    }

    fn string(&mut self, schema: &Value, value: &Value, at: &str) {
        self.put(at, "type", json!(["a list"]));
        self.put(at, "type", json!({"a": "map"}));
        let text = value.as_str().expect("a string");
        if schema["enum"].is_array() {
            self.put(at, "enum", json!("Bogus"));
        }
        if schema["minLength"].as_u64().is_some_and(|min| min > 0) {
            self.put(at, "minLength", json!(""));
        }
        if let Some(max) = schema["maxLength"].as_u64() {
            self.put(at, "maxLength", json!("a".repeat(max as usize + 1)));
        }
        if let Some(pattern) = schema["pattern"].as_str() {
            let pattern = regex::Regex::new(pattern).expect("a pattern of the CRD");
            let tries = [" ", "-", "é", "/", ".", "!", "A"].into_iter();
            let tries = tries.flat_map(|end| [format!("{text}{end}"), format!("{end}{text}")]);
            // A few suffice: what counts is that the constraint is known at all.
            for broken in tries.filter(|broken| !pattern.is_match(broken)).take(4) {
                self.put(at, &format!("pattern, {broken:?}"), json!(broken));
            }
        }
    }

    fn integer(&mut self, schema: &Value, _: &Value, at: &str) {
        self.put(at, "type", json!("many"));
        self.put(at, "type", json!(1.5));
        if let Some(min) = schema["minimum"].as_i64() {
            self.put(at, "minimum", json!(min - 1));
        }
        if let Some(max) = schema["maximum"].as_i64() {
            self.put(at, "maximum", json!(max + 1));
        }
        if schema["enum"].is_array() {
            self.put(at, "enum", json!(7));
        }
    }
}

/// The schema of a kind's `spec`, from its CRD.
fn schema(crds: &std::path::Path, kind: &str) -> Value {
    let plural = match kind {
        "GatewayClass" => "gatewayclasses".to_owned(),
        "BackendTLSPolicy" => "backendtlspolicies".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    };
    let path = crds.join(format!("gateway.networking.k8s.io_{plural}.yaml"));
    let text = std::fs::read_to_string(&path).expect("a CRD");
    // Thousands of nodes are the rule in CRDs.
    let crd: Value = serde_saphyr::from_str(&text).expect("YAML");
    let versions = crd["spec"]["versions"].as_array().expect("versions");
    let served = versions.iter().find(|version| version["served"] == true).expect("a version");
    served["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

#[test]
fn what_the_crds_refuse_is_refused() {
    let Some(data) = weft_testkit::peer::data("what_the_crds_refuse_is_refused") else { return };
    let mut tried = 0;
    let mut accepted = Vec::new();
    for document in documents() {
        let kind = document["kind"].as_str().expect("a kind");
        let schema = schema(&data.join("gateway-api"), kind);
        let mut breaker = Breaker { document: &document, mutants: Vec::new() };
        breaker.walk(&schema, &document["spec"], "/spec");
        tried += breaker.mutants.len();
        for mutant in breaker.mutants {
            if errors(&mutant.document).is_empty() {
                accepted.push(format!("{kind} {}", mutant.what));
            }
        }
    }
    assert!(tried > 1000, "only {tried} tried");
    assert!(accepted.is_empty(), "{} of {tried}:\n{}", accepted.len(), accepted.join("\n"));
}

/// `kind`, its spec, the path that is to blame.
fn refused(kind: &str, spec: &str, path: &str) {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}"
    );
    let (_, found) = parse_yaml("f.yaml", &text);
    let paths: Vec<String> =
        found.iter().filter(|one| one.is_error()).map(|one| one.path.clone()).collect();
    assert!(paths.iter().any(|one| one == path), "{text}\nexpected {path}, found {paths:?}");
}

#[test]
fn rules_between_fields_of_gateways() {
    for (listeners, path) in [
        ("{name: a, port: 80, protocol: HTTP, tls: {mode: Passthrough}}", "spec.listeners[0].tls"),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}",
            "spec.listeners[0].tls.mode",
        ),
        ("{name: a, port: 443, protocol: TLS}", "spec.listeners[0].tls.mode"),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {mode: Terminate}}",
            "spec.listeners[0].tls.certificateRefs",
        ),
        ("{name: a, port: 9, protocol: TCP, hostname: a.b}", "spec.listeners[0].hostname"),
        (
            "{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}",
            "spec.listeners[1]",
        ),
        (
            "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}",
            "spec.listeners[1]",
        ),
    ] {
        refused("Gateway", &format!("{{gatewayClassName: istio, listeners: [{listeners}]}}"), path);
        let parent = "parentRef: {name: web}";
        refused("ListenerSet", &format!("{{{parent}, listeners: [{listeners}]}}"), path);
    }
    let with = |more: &str| {
        format!(
            "{{gatewayClassName: istio, listeners: [{{name: a, port: 80, protocol: HTTP}}], {more}}}"
        )
    };
    refused(
        "Gateway",
        &with("addresses: [{value: 10.0.0.1}, {value: 10.0.0.1}]"),
        "spec.addresses[1]",
    );
    refused(
        "Gateway",
        &with("addresses: [{type: Hostname, value: 'a_b'}]"),
        "spec.addresses[0].value",
    );
    refused(
        "Gateway",
        &with("infrastructure: {labels: {'a b': c}}"),
        "spec.infrastructure.labels.a b",
    );
}

#[test]
fn rules_between_fields_of_routes() {
    let parents = "{name: web}, {name: web}";
    for kind in ["HTTPRoute", "GRPCRoute"] {
        refused(kind, &format!("{{parentRefs: [{parents}]}}"), "spec.parentRefs[1].sectionName");
        let one = "{name: web, sectionName: a}, {name: web}";
        refused(kind, &format!("{{parentRefs: [{one}]}}"), "spec.parentRefs[1].sectionName");
        let same = "{name: web, sectionName: a}, {name: web, sectionName: a}";
        refused(kind, &format!("{{parentRefs: [{same}]}}"), "spec.parentRefs[1].sectionName");
        let backend = "{rules: [{backendRefs: [{name: a}]}]}";
        refused(kind, backend, "spec.rules[0].backendRefs[0].port");
        let filters = "{type: RequestHeaderModifier, requestHeaderModifier: {}}, \
                       {type: RequestHeaderModifier, requestHeaderModifier: {}}";
        let filters = format!("{{rules: [{{filters: [{filters}]}}]}}");
        refused(kind, &filters, "spec.rules[0].filters[1]");
        let missing = "{rules: [{filters: [{type: RequestMirror}]}]}";
        refused(kind, missing, "spec.rules[0].filters[0].requestMirror");
        let wrong = "{rules: [{filters: [{type: ExtensionRef, requestHeaderModifier: {}}]}]}";
        refused(kind, wrong, "spec.rules[0].filters[0].requestHeaderModifier");
    }
    for (rule, path) in [
        ("matches: [{path: {value: a}}]", "matches[0].path.value"),
        ("matches: [{path: {value: /a//b}}]", "matches[0].path.value"),
        ("matches: [{path: {value: /a/../b}}]", "matches[0].path.value"),
        ("matches: [{path: {value: /a/..}}]", "matches[0].path.value"),
        ("matches: [{path: {value: /a%2Fb}}]", "matches[0].path.value"),
        ("matches: [{path: {value: '/a#b'}}]", "matches[0].path.value"),
        ("matches: [{path: {type: Exact, value: '/a b'}}]", "matches[0].path.value"),
        ("matches: [{path: {type: RegularExpression, value: '/a('}}]", "matches[0].path.value"),
        (
            "matches: [{headers: [{name: a, type: RegularExpression, value: '('}]}]",
            "matches[0].headers[0].value",
        ),
        (
            "backendRefs: [{name: a, port: 80}], filters: [{type: RequestRedirect, requestRedirect: {}}]",
            "backendRefs",
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}]",
            "filters",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath}}}]",
            "filters[0].urlRewrite.path.replaceFullPath",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, \
             replaceFullPath: /a, replacePrefixMatch: /b}}}]",
            "filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        (
            "matches: [{path: {type: Exact, value: /a}}], filters: [{type: RequestRedirect, \
             requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
            "filters[0].requestRedirect.path.replacePrefixMatch",
        ),
        (
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, \
             percent: 1, fraction: {numerator: 1}}}]",
            "filters[0].requestMirror",
        ),
        (
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, \
             fraction: {numerator: 101}}}]",
            "filters[0].requestMirror.fraction",
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['*', 'https://a.b']}}]",
            "filters[0].cors.allowOrigins",
        ),
        ("timeouts: {request: 1s, backendRequest: 2s}", "timeouts.backendRequest"),
    ] {
        let spec = format!("{{rules: [{{{rule}}}]}}");
        refused("HTTPRoute", &spec, &format!("spec.rules[0].{path}"));
    }
    for (method, path) in [
        ("{}", "method"),
        ("{service: 'a-b'}", "method.service"),
        ("{method: 'a/b'}", "method.method"),
        ("{type: RegularExpression, method: '('}", "method.method"),
    ] {
        let spec = format!("{{rules: [{{matches: [{{method: {method}}}]}}]}}");
        refused("GRPCRoute", &spec, &format!("spec.rules[0].matches[0].{path}"));
    }
    let matches = vec!["{method: GET}"; 64].join(", ");
    let rules = vec![format!("{{matches: [{matches}]}}"); 3].join(", ");
    refused("HTTPRoute", &format!("{{rules: [{rules}]}}"), "spec.rules");
    let backend = "rules: [{backendRefs: [{name: a, port: 1}]}]";
    refused("TLSRoute", &format!("{{hostnames: [10.0.0.1], {backend}}}"), "spec.hostnames[0]");
    refused("UDPRoute", &format!("{{{backend}}}"), "kind");
}

#[test]
fn rules_between_fields_of_policies() {
    let target = "targetRefs: [{group: '', kind: Service, name: a}]";
    for (validation, path) in [
        ("{hostname: a.b}", "spec.validation"),
        (
            "{hostname: a.b, wellKnownCACertificates: System, \
             caCertificateRefs: [{group: '', kind: ConfigMap, name: a}]}",
            "spec.validation",
        ),
        (
            "{hostname: a.b, wellKnownCACertificates: System, subjectAltNames: [{type: URI, hostname: a.b}]}",
            "spec.validation.subjectAltNames[0].uri",
        ),
        (
            "{hostname: a.b, wellKnownCACertificates: System, \
             subjectAltNames: [{type: Hostname, hostname: a.b, uri: 'a://b'}]}",
            "spec.validation.subjectAltNames[0].uri",
        ),
    ] {
        refused("BackendTLSPolicy", &format!("{{{target}, validation: {validation}}}"), path);
    }
    let twice =
        "targetRefs: [{group: '', kind: Service, name: a}, {group: '', kind: Service, name: a}]";
    refused(
        "BackendTLSPolicy",
        &format!("{{{twice}, validation: {{hostname: a.b, wellKnownCACertificates: System}}}}"),
        "spec.targetRefs[1].sectionName",
    );
}
