//! Status of Gateway API resources: what the API's conformance suite looks for.

use weft_model::gateway_api::{Condition, Status};
use weft_model::{Diagnostic, Snapshot, load};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: away}
spec: {clusterIP: 10.0.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: away, labels: {team: a}}
---
apiVersion: v1
kind: Pod
metadata: {name: edge-0, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: edge}}
spec: {}
status: {podIP: 10.9.0.1, phase: Running}
---
apiVersion: v1
kind: Secret
metadata: {name: cert, namespace: shop}
stringData:
  tls.crt: '-----BEGIN CERTIFICATE----- MAA= -----END CERTIFICATE-----'
  tls.key: '-----BEGIN PRIVATE KEY----- MAA= -----END PRIVATE KEY-----'
---
apiVersion: v1
kind: Secret
metadata: {name: malformed, namespace: shop}
stringData: {tls.crt: Hello, tls.key: world}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: roots, namespace: shop}
data: {ca.crt: '-----BEGIN CERTIFICATE----- MAA= -----END CERTIFICATE-----'}
";

fn world(yaml: &str) -> (Snapshot, Vec<Diagnostic>) {
    let (snapshot, found) = load(&[("f.yaml".to_owned(), format!("{SERVICES}---\n{yaml}"))]);
    let refused = |one: &&Diagnostic| one.code == "IST0106";
    assert_eq!(found.iter().find(refused), None);
    (snapshot, found)
}

fn status(snapshot: &Snapshot, name: &str) -> Status {
    let all = snapshot.gateway_api_status();
    let found = all.iter().find(|one| one.resource.to_string() == name);
    found.unwrap_or_else(|| panic!("no {name} in {all:#?}")).clone()
}

/// `+Accepted -ResolvedRefs:RefNotPermitted`: what holds, and what does not and why.
fn said(conditions: &[Condition]) -> String {
    let one = |one: &Condition| match (one.holds, one.reason == one.name) {
        (true, true) => format!("+{}", one.name),
        (true, false) => format!("+{}:{}", one.name, one.reason),
        (false, _) => format!("-{}:{}", one.name, one.reason),
    };
    conditions.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: edge, namespace: shop, generation: 7}}\n\
         spec: {{gatewayClassName: istio, listeners: [{listeners}]}}\n"
    )
}

const GOOD: &str = "+Accepted -Conflicted:NoConflicts +ResolvedRefs +Programmed";

/// Conditions of the listeners of Gateway `edge`, with attached routes, one a line.
fn listeners(snapshot: &Snapshot) -> Vec<String> {
    let status = status(snapshot, "Gateway shop/edge");
    let one = |one: &weft_model::gateway_api::ListenerStatus| {
        format!("{} {} {}", one.name, one.attached_routes, said(&one.conditions))
            .replace(GOOD, "good")
    };
    status.listeners.iter().map(one).collect()
}

fn route(namespace: &str, name: &str, parent: &str, more: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{{parent}}}], {more}}}\n"
    )
}

/// Conditions of a route's first parent.
fn of_route(snapshot: &Snapshot, name: &str) -> String {
    said(&status(snapshot, &format!("HTTPRoute {name}")).parents[0].conditions)
}

#[test]
fn a_good_gateway_and_its_route() {
    let yaml = gateway("{name: http, port: 80, protocol: HTTP}")
        + &route("shop", "r", "name: edge", "rules: [{backendRefs: [{name: web, port: 80}]}]");
    let (snapshot, found) = world(&yaml);
    let gateway = status(&snapshot, "Gateway shop/edge");
    assert_eq!(said(&gateway.conditions), "+Accepted +Programmed");
    assert_eq!(gateway.addresses, ["10.9.0.1"]);
    assert_eq!(gateway.observed, 7);
    assert_eq!(listeners(&snapshot), ["http 1 good"]);
    assert_eq!(of_route(&snapshot, "shop/r"), "+Accepted +ResolvedRefs");
    let json = gateway.to_json();
    assert_eq!(json["status"]["conditions"][0]["observedGeneration"], 7);
    assert_eq!(json["status"]["listeners"][0]["supportedKinds"][0]["kind"], "HTTPRoute");
    let loud: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(!loud.iter().any(|one| one.contains("gateway") || one.contains("Route")), "{loud:#?}");
}

#[test]
fn listeners_that_cannot_be_served_say_why() {
    let tls = |name: &str| format!("tls: {{certificateRefs: [{{{name}}}]}}");
    let (snapshot, found) = world(&gateway(&format!(
        "{{name: good, port: 443, protocol: HTTPS, hostname: a.io, {}}}, \
         {{name: nosuch, port: 443, protocol: HTTPS, hostname: b.io, {}}}, \
         {{name: malformed, port: 443, protocol: HTTPS, hostname: c.io, {}}}, \
         {{name: kind, port: 443, protocol: HTTPS, hostname: d.io, {}}}, \
         {{name: away, port: 443, protocol: HTTPS, hostname: e.io, {}}}, \
         {{name: plain, port: 443, protocol: HTTP, hostname: f.io}}, \
         {{name: udp, port: 53, protocol: UDP}}, \
         {{name: kinds, port: 80, protocol: HTTP, allowedRoutes: {{kinds: [{{kind: TCPRoute}}, {{kind: HTTPRoute}}]}}}}, \
         {{name: own, port: 81, protocol: example.com/own}}",
        tls("name: cert"),
        tls("name: nosuch"),
        tls("name: malformed"),
        tls("group: example.com, kind: Cert, name: cert"),
        tls("name: cert, namespace: away"),
    )));
    let bad = |reason: &str| {
        format!("0 +Accepted -Conflicted:NoConflicts -ResolvedRefs:{reason} -Programmed:Invalid")
    };
    let unsupported =
        "0 -Accepted:UnsupportedProtocol -Conflicted:NoConflicts +ResolvedRefs -Programmed:Invalid";
    assert_eq!(
        listeners(&snapshot),
        [
            "good 0 good".to_owned(),
            format!("nosuch {}", bad("InvalidCertificateRef")),
            format!("malformed {}", bad("InvalidCertificateRef")),
            format!("kind {}", bad("InvalidCertificateRef")),
            format!("away {}", bad("RefNotPermitted")),
            "plain 0 -Accepted:ProtocolConflict +Conflicted:ProtocolConflict +ResolvedRefs \
             -Programmed:Invalid"
                .to_owned(),
            format!("udp {unsupported}"),
            "kinds 0 +Accepted -Conflicted:NoConflicts -ResolvedRefs:InvalidRouteKinds +Programmed"
                .to_owned(),
            format!("own {unsupported}"),
        ]
    );
    let gateway = status(&snapshot, "Gateway shop/edge");
    assert_eq!(said(&gateway.conditions), "+Accepted:ListenersNotValid +Programmed");
    assert_eq!(gateway.listeners[7].supported_kinds.len(), 1);
    // Each problem is one finding at its listener.
    let findings: Vec<&Diagnostic> = found.iter().filter(|one| one.code == "WEFT0006").collect();
    let paths: Vec<&str> = findings.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, (1..9).map(|i| format!("spec.listeners[{i}]")).collect::<Vec<_>>());
    assert!(findings[3].help.contains("ReferenceGrant"), "{}", findings[3]);
}

#[test]
fn routes_attach_only_where_they_may() {
    let yaml = gateway(
        "{name: same, port: 80, protocol: HTTP, hostname: '*.same.io'}, \
         {name: team, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}, \
         {name: named, port: 82, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [shop]}]}}}}, \
         {name: calls, port: 83, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}",
    );
    let rules = "rules: [{backendRefs: [{name: web, port: 80}]}]";
    for (namespace, parent, more, expect) in [
        ("shop", "name: edge", "", "+Accepted"),
        ("shop", "name: edge, sectionName: same", "hostnames: [x.same.io], ", "+Accepted"),
        (
            "shop",
            "name: edge, sectionName: same",
            "hostnames: [other.io], ",
            "-Accepted:NoMatchingListenerHostname",
        ),
        ("shop", "name: edge, sectionName: nosuch", "", "-Accepted:NoMatchingParent"),
        ("shop", "name: edge, port: 99", "", "-Accepted:NoMatchingParent"),
        ("shop", "name: edge, port: 82", "", "+Accepted"),
        ("shop", "name: edge, sectionName: team", "", "-Accepted:NotAllowedByListeners"),
        ("shop", "name: edge, sectionName: named", "", "+Accepted"),
        ("shop", "name: edge, sectionName: calls", "", "-Accepted:NotAllowedByListeners"),
        ("away", "name: edge, namespace: shop, sectionName: team", "", "+Accepted"),
        (
            "away",
            "name: edge, namespace: shop, sectionName: same",
            "",
            "-Accepted:NotAllowedByListeners",
        ),
    ] {
        let route = route(namespace, "r", parent, &format!("{more}{rules}"));
        let (snapshot, _) = world(&(yaml.clone() + &route));
        let got = of_route(&snapshot, &format!("{namespace}/r"));
        assert_eq!(got, format!("{expect} +ResolvedRefs"), "{namespace} {parent} {more}");
    }
}

#[test]
fn references_that_do_not_hold() {
    let yaml = gateway("{name: http, port: 80, protocol: HTTP}");
    let mirror = |to: &str| {
        format!("filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{{to}}}}}}}]")
    };
    for (rule, expect, path) in [
        ("backendRefs: [{name: nosuch, port: 80}]", "BackendNotFound", "backendRefs[0]"),
        ("backendRefs: [{name: web, port: 81}]", "BackendNotFound", "backendRefs[0]"),
        (
            "backendRefs: [{name: web, port: 80}, {name: web, namespace: away, port: 80}]",
            "RefNotPermitted",
            "backendRefs[1]",
        ),
        (
            "backendRefs: [{group: example.com, kind: Bucket, name: web}]",
            "InvalidKind",
            "backendRefs[0]",
        ),
        (
            &mirror("name: nosuch, port: 80"),
            "BackendNotFound",
            "filters[0].requestMirror.backendRef",
        ),
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: F, name: f}}]",
            "InvalidKind",
            "filters[0].extensionRef",
        ),
    ] {
        let route = route("shop", "r", "name: edge", &format!("rules: [{{{rule}}}]"));
        let (snapshot, found) = world(&(yaml.clone() + &route));
        let got = of_route(&snapshot, "shop/r");
        assert_eq!(got, format!("+Accepted -ResolvedRefs:{expect}"), "{rule}");
        let paths: Vec<&str> =
            found.iter().filter(|one| one.code == "WEFT0006").map(|one| &*one.path).collect();
        assert_eq!(paths, [format!("spec.rules[0].{path}")], "{rule}");
        // It is attached all the same, and counts.
        assert_eq!(listeners(&snapshot), ["http 1 good"]);
    }
    let on_backend = "backendRefs: [{name: web, port: 80, filters: [{type: RequestRedirect, requestRedirect: {}}]}]";
    let route = route("shop", "r", "name: edge", &format!("rules: [{{{on_backend}}}]"));
    let (snapshot, _) = world(&(yaml + &route));
    let expect = "+Accepted +ResolvedRefs +PartiallyInvalid:UnsupportedValue";
    assert_eq!(of_route(&snapshot, "shop/r"), expect);
}

#[test]
fn grants_are_for_kind_namespace_and_name() {
    let yaml = gateway("{name: http, port: 80, protocol: HTTP}")
        + &route(
            "shop",
            "r",
            "name: edge",
            "rules: [{backendRefs: [{name: web, namespace: away, port: 80}]}]",
        );
    let grant = |namespace: &str, from: &str, to: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
             metadata: {{name: g, namespace: {namespace}}}\nspec: {{from: [{{group: \
             gateway.networking.k8s.io, {from}}}], to: [{{{to}}}]}}\n"
        )
    };
    let from = "kind: HTTPRoute, namespace: shop";
    let to = "group: '', kind: Service";
    for (namespace, from, to, held) in [
        ("away", from, to, true),
        ("away", from, "group: '', kind: Service, name: web", true),
        ("away", from, "group: '', kind: Service, name: other", false),
        ("away", from, "group: '', kind: Secret", false),
        ("away", "kind: GRPCRoute, namespace: shop", to, false),
        ("away", "kind: HTTPRoute, namespace: other", to, false),
        ("shop", from, to, false),
    ] {
        let (snapshot, _) = world(&(yaml.clone() + &grant(namespace, from, to)));
        let expect = if held {
            "+Accepted +ResolvedRefs"
        } else {
            "+Accepted -ResolvedRefs:RefNotPermitted"
        };
        assert_eq!(of_route(&snapshot, "shop/r"), expect, "{namespace} {from} {to}");
    }
}

#[test]
fn services_as_parents() {
    let rules = "rules: [{backendRefs: [{name: web, port: 80}]}]";
    for (parent, expect) in [
        ("group: '', kind: Service, name: web", "+Accepted"),
        ("group: '', kind: Service, name: web, port: 443", "+Accepted"),
        ("group: '', kind: Service, name: web, sectionName: https", "+Accepted"),
        ("group: '', kind: Service, name: web, port: 9", "-Accepted:NoMatchingParent"),
        ("group: '', kind: Service, name: nosuch", "-Accepted:NoMatchingParent"),
    ] {
        let (snapshot, _) = world(&route("shop", "r", parent, rules));
        assert_eq!(of_route(&snapshot, "shop/r"), format!("{expect} +ResolvedRefs"), "{parent}");
    }
}

#[test]
fn listener_sets() {
    let set = |namespace: &str, name: &str, host: &str, created: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\n\
             metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}'}}\n\
             spec: {{parentRef: {{name: edge, namespace: shop}}, listeners: \
             [{{name: more, port: 80, protocol: HTTP, hostname: {host}}}]}}\n"
        )
    };
    let own = gateway("{name: http, port: 80, protocol: HTTP, hostname: own.io}")
        .replace("listeners:", "allowedListeners: {namespaces: {from: Same}}, listeners:");
    let yaml = own
        + &set("shop", "young", "new.io", "2022-01-01T00:00:00Z")
        + &set("shop", "old", "new.io", "2021-01-01T00:00:00Z")
        + &set("shop", "taken", "own.io", "2020-01-01T00:00:00Z")
        + &set("away", "stranger", "strange.io", "2020-01-01T00:00:00Z")
        + &route("shop", "r", "kind: ListenerSet, name: old", "rules: [{}]");
    let (snapshot, _) = world(&yaml);
    let of = |name: &str| said(&status(&snapshot, &format!("ListenerSet {name}")).conditions);
    assert_eq!(of("shop/old"), "+Accepted +Programmed");
    assert_eq!(of("shop/young"), "-Accepted:ListenersNotValid -Programmed:Invalid");
    assert_eq!(of("shop/taken"), "-Accepted:ListenersNotValid -Programmed:Invalid");
    assert_eq!(of("away/stranger"), "-Accepted:NotAllowed -Programmed:Invalid");
    let old = status(&snapshot, "ListenerSet shop/old");
    assert_eq!(old.listeners[0].attached_routes, 1);
    let young = status(&snapshot, "ListenerSet shop/young");
    assert!(said(&young.listeners[0].conditions).contains("+Conflicted:HostnameConflict"));
    assert_eq!(of_route(&snapshot, "shop/r"), "+Accepted +ResolvedRefs");
}

#[test]
fn policies() {
    let policy = |name: &str, target: &str, validation: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, {target}}}], validation: {{hostname: a.b, {validation}}}}}\n"
        )
    };
    let system = "wellKnownCACertificates: System";
    let map =
        |name: &str| format!("caCertificateRefs: [{{group: '', kind: ConfigMap, name: {name}}}]");
    for (target, validation, expect) in [
        ("name: web", system, "+Accepted +ResolvedRefs"),
        ("name: web, sectionName: https", &*map("roots"), "+Accepted +ResolvedRefs"),
        ("name: nosuch", system, "-Accepted:TargetNotFound +ResolvedRefs"),
        ("name: web, sectionName: nosuch", system, "-Accepted:TargetNotFound +ResolvedRefs"),
        (
            "name: web",
            &*map("nosuch"),
            "-Accepted:NoValidCACertificate -ResolvedRefs:InvalidCACertificateRef",
        ),
        (
            "name: web",
            "caCertificateRefs: [{group: a.b, kind: Cert, name: roots}]",
            "-Accepted:NoValidCACertificate -ResolvedRefs:InvalidKind",
        ),
    ] {
        let yaml = gateway("{name: http, port: 80, protocol: HTTP}")
            + &route("shop", "r", "name: edge", "rules: [{backendRefs: [{name: web, port: 80}]}]")
            + &policy("p", target, validation);
        let (snapshot, _) = world(&yaml);
        let status = status(&snapshot, "BackendTLSPolicy shop/p");
        assert_eq!(said(&status.parents[0].conditions), expect, "{target} {validation}");
        // Its ancestor is the Gateway that leads to the service.
        let led = target.starts_with("name: web");
        assert_eq!(status.parents[0].parent.name == "edge", led, "{target}");
    }
    let both = policy("a", "name: web", system) + &policy("b", "name: web", system);
    let (snapshot, _) = world(&both);
    let of = |name: &str| said(&status(&snapshot, name).parents[0].conditions);
    assert_eq!(of("BackendTLSPolicy shop/a"), "+Accepted +ResolvedRefs");
    assert_eq!(of("BackendTLSPolicy shop/b"), "-Accepted:Conflicted +ResolvedRefs");
}

#[test]
fn what_nobody_serves_is_found() {
    let listener = "{name: http, port: 80, protocol: HTTP}";
    let found = |yaml: &str, text: &str| {
        let (_, found) = world(yaml);
        let all: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(all.iter().any(|one| one.contains(text)), "{text} in {all:#?}");
    };
    found(
        &gateway(listener).replace("istio,", "nosuch,"),
        "GatewayClass \"nosuch\" is not defined",
    );
    found(&gateway(listener).replace("name: edge", "name: lonely"), "gateway-name=lonely");
    found(&route("shop", "r", "name: nosuch", "rules: [{}]"), "Gateway shop/nosuch is not defined");
    let tls = "{name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}], \
               options: {example.com/a: b}}}";
    found(&gateway(tls), "spec.listeners[0].tls.options: no option is known");
    let addresses = gateway(listener)
        .replace("listeners:", "addresses: [{value: 10.0.0.9}], infrastructure: {}, listeners:");
    found(&addresses, "spec.addresses[0]: addresses are the proxies' own");
    found(&addresses, "spec.infrastructure: proxies are not made");
    let sticky = "rules: [{sessionPersistence: {type: Cookie}}]";
    found(&route("shop", "r", "name: edge", sticky), "sessionPersistence is not acted on");
    let udp = "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {name: u}\n\
               spec: {rules: [{backendRefs: [{name: a, port: 1}]}]}\n";
    let (_, all) = load(&[("f.yaml".to_owned(), udp.to_owned())]);
    assert!(all.iter().any(|one| one.is_error() && one.message.contains("UDPRoute")), "{all:?}");
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
                 metadata: {name: own}\nspec: {controllerName: istio.io/gateway-controller}\n";
    let (snapshot, _) = world(&(gateway(listener).replace("istio,", "own,") + class));
    assert_eq!(said(&status(&snapshot, "GatewayClass own").conditions), "+Accepted");
    assert_eq!(said(&status(&snapshot, "Gateway shop/edge").conditions), "+Accepted +Programmed");
    // Another implementation's Gateways and routes are none of our business.
    let other = class.replace("istio.io/gateway-controller", "example.com/other");
    let yaml = gateway(listener).replace("istio,", "own,")
        + &other
        + &route("shop", "r", "name: edge", "rules: [{}]");
    let (snapshot, found) = world(&yaml);
    assert!(snapshot.gateway_api_status().is_empty());
    assert!(!found.iter().any(|one| one.code == "WEFT0006"));
}
