//! A translation that takes over parts of the one before, or of a place in another namespace, is
//! the one made from nothing, whatever changed between: random changes of all kinds to a small
//! world, each followed by a comparison for every kind of proxy.

mod common;
#[path = "incremental/more.rs"]
mod more;

use std::collections::HashMap;
use std::sync::Arc;

use common::view;
use proptest::prelude::*;
use weft_model::{Change, ChangeKind, Object, Snapshot, parse_yaml};
use weft_translate::{
    Assignment, Endpoints, Flavor, Interception, Memo, ProxyKind, ProxyView, endpoints,
    own_differs, translate_own, translate_shared,
};

const NAMESPACES: [&str; 3] = ["one", "two", "istio-system"];
const NAMES: [&str; 3] = ["a", "b", "c"];

/// One resource, written or deleted.
#[derive(Debug, Clone)]
struct Step {
    kind: usize,
    namespace: usize,
    name: usize,
    variant: usize,
    delete: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (0..KINDS.len(), 0..NAMESPACES.len(), 0..NAMES.len(), 0..6_usize, prop::bool::weighted(0.2))
        .prop_map(|(kind, namespace, name, variant, delete)| Step {
            kind,
            namespace,
            name,
            variant,
            delete,
        })
}

type Write = fn(namespace: &str, name: &str, variant: usize) -> String;

const KINDS: [Write; 21] = [
    service,
    service,
    pod,
    pod,
    entry,
    virtual_service,
    virtual_service,
    destination_rule,
    destination_rule,
    sidecar,
    peer_authentication,
    mesh_config,
    gateway,
    more::kube_gateway,
    more::http_route,
    more::http_route,
    more::stream_route,
    more::grant_or_policy,
    more::envoy_filter,
    more::envoy_filter,
    more::proxy_config,
];

fn head(api: &str, kind: &str, namespace: &str, name: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n")
}

fn service(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => "clusterIP: 10.9.0.1, ports: [{name: http, port: 80}]",
        1 => "clusterIP: None, ports: [{name: tcp, port: 90, targetPort: 8080}]",
        2 => "ports: [{name: http, port: 80, targetPort: web}, {name: tcp, port: 90}]",
        3 => {
            "clusterIP: 10.9.0.2, ports: [{name: any, port: 81}, {name: udp, port: 53, protocol: UDP}]"
        }
        4 => "ports: [{name: tls, port: 443}, {name: grpc, port: 82}]",
        _ => "ports: [{name: http, port: 8080}]",
    };
    let head = head("v1", "Service", namespace, name);
    let selected = NAMES[variant % NAMES.len()];
    format!("{head}spec: {{selector: {{app: {selected}}}, {spec}}}\n")
}

fn pod(namespace: &str, name: &str, variant: usize) -> String {
    let app = NAMES[variant % NAMES.len()];
    let (ready, version) = (if variant == 5 { "False" } else { "True" }, variant / 3);
    let octet = namespace.len() * 8 + usize::from(name.as_bytes()[0]);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: \
         {{app: {app}, version: v{version}, security.istio.io/tlsMode: istio}}}}\n\
         spec: {{serviceAccountName: {app}, containers: [{{name: app, ports: [{{name: web, containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIP: 10.1.{variant}.{octet}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n"
    )
}

fn entry(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => {
            "hosts: [x.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS"
        }
        1 => {
            "hosts: ['*.example.com'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE"
        }
        2 => {
            "hosts: [x.example.com], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.2.0.1}]"
        }
        3 => {
            "hosts: [a.one.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.2.0.2}]"
        }
        4 => {
            "hosts: [y.example.com], addresses: [10.8.0.0/16], ports: [{number: 90, name: tcp, protocol: TCP}], resolution: NONE"
        }
        _ => {
            "hosts: [y.example.com], ports: [{number: 90, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 10.2.0.3, locality: r/z}]"
        }
    };
    head("networking.istio.io/v1", "ServiceEntry", namespace, name) + &format!("spec: {{{spec}}}\n")
}

fn virtual_service(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => "hosts: [a], http: [{timeout: 1s, route: [{destination: {host: b, subset: v1}}]}]",
        1 => {
            "hosts: [a, x.example.com], http: [{match: [{sourceLabels: {app: a}}, {sourceNamespace: one}], route: [{destination: {host: c.two.svc.cluster.local}}]}, {route: [{destination: {host: a}}]}]"
        }
        2 => {
            "hosts: ['*.svc.cluster.local'], exportTo: ['.'], http: [{retries: {attempts: 3}, route: [{destination: {host: b}}]}]"
        }
        3 => {
            "hosts: [a.one.svc.cluster.local], http: [{match: [{uri: {prefix: /}}], delegate: {name: c, namespace: two}}]"
        }
        4 => {
            "http: [{name: inner, match: [{uri: {prefix: /x}}], route: [{destination: {host: y.example.com}}]}]"
        }
        _ => {
            "hosts: [b], tcp: [{match: [{port: 90}], route: [{destination: {host: c, port: {number: 90}}}]}], gateways: [mesh, one/a], http: [{route: [{destination: {host: b}}]}]"
        }
    };
    head("networking.istio.io/v1", "VirtualService", namespace, name)
        + &format!("spec: {{{spec}}}\n")
}

fn destination_rule(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => "host: a, subsets: [{name: v1, labels: {version: v1}}]",
        1 => {
            "host: b.one.svc.cluster.local, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}, tls: {mode: ISTIO_MUTUAL}}, subsets: [{name: v1, labels: {version: v1}}]"
        }
        2 => {
            "host: '*.two.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}"
        }
        3 => {
            "host: a.one.svc.cluster.local, workloadSelector: {matchLabels: {app: a}}, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}"
        }
        4 => "host: x.example.com, exportTo: ['.'], trafficPolicy: {tls: {mode: SIMPLE}}",
        _ => {
            "host: '*.local', trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2}, loadBalancer: {localityLbSetting: {failoverPriority: [version]}, warmup: {duration: 3s}}}"
        }
    };
    head("networking.istio.io/v1", "DestinationRule", namespace, name)
        + &format!("spec: {{{spec}}}\n")
}

fn sidecar(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => "egress: [{hosts: ['./*']}]",
        1 => "workloadSelector: {labels: {app: a}}, egress: [{hosts: ['two/*', '~/*']}]",
        2 => "egress: [{hosts: ['*/a.one.svc.cluster.local', 'istio-system/*']}]",
        3 => "outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['*/*']}]",
        4 => {
            "egress: [{port: {number: 9000, protocol: HTTP, name: http}, bind: 127.0.0.1, captureMode: NONE, hosts: ['./*']}, {hosts: ['*/*']}]"
        }
        _ => {
            "ingress: [{port: {number: 7000, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:8080'}], egress: [{hosts: ['*/*']}]"
        }
    };
    head("networking.istio.io/v1", "Sidecar", namespace, name) + &format!("spec: {{{spec}}}\n")
}

fn peer_authentication(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant % 3 {
        0 => "mtls: {mode: STRICT}",
        1 => "mtls: {mode: DISABLE}",
        _ => "selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}",
    };
    head("security.istio.io/v1", "PeerAuthentication", namespace, name)
        + &format!("spec: {{{spec}}}\n")
}

fn mesh_config(_: &str, _: &str, variant: usize) -> String {
    let mesh = match variant {
        0 => "{}",
        1 => "{enableAutoMtls: false}",
        2 => "{connectTimeout: 3s, defaultDestinationRuleExportTo: ['.']}",
        3 => "{defaultServiceExportTo: ['.'], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
        4 => "{localityLbSetting: {failoverPriority: [version]}}",
        _ => "{accessLogFile: /dev/stdout, defaultVirtualServiceExportTo: ['.']}",
    };
    head("v1", "ConfigMap", "istio-system", "istio") + &format!("data: {{mesh: \"{mesh}\"}}\n")
}

fn gateway(namespace: &str, name: &str, variant: usize) -> String {
    let host = if variant.is_multiple_of(2) { "*" } else { "b.example.com" };
    head("networking.istio.io/v1", "Gateway", namespace, name)
        + &format!(
            "spec: {{selector: {{app: edge}}, servers: [{{port: {{number: 8{variant}, name: http, \
             protocol: HTTP}}, hosts: ['{host}']}}]}}\n"
        )
}

fn change(step: &Step) -> Change {
    let write = KINDS[step.kind];
    let yaml = write(NAMESPACES[step.namespace], NAMES[step.name], step.variant);
    let (objects, findings) = parse_yaml("random.yaml", &yaml);
    let of_mesh = |object: &&Object| !matches!(object, Object::ConfigMap(_));
    let object = objects.iter().find(of_mesh).unwrap_or_else(|| panic!("{yaml}{findings:?}"));
    let key = object.key().unwrap_or_else(|| panic!("{yaml}"));
    let kind = match step.delete {
        true => ChangeKind::Delete,
        false => ChangeKind::Upsert(object.clone()),
    };
    Change { key, kind }
}

fn proxies() -> Vec<ProxyView> {
    let sidecar = |namespace, name, labels: &[_]| view(ProxyKind::Sidecar, namespace, name, labels);
    let bound = ProxyView {
        interception: Interception::None,
        ..sidecar("two", "b", &[("app", "b"), ("version", "v1")])
    };
    vec![
        sidecar("one", "a", &[("app", "a"), ("version", "v0")]),
        sidecar("one", "c", &[("app", "c"), ("version", "v1")]),
        sidecar("two", "a", &[("app", "a"), ("version", "v0")]),
        sidecar("two", "c", &[("app", "c"), ("version", "v1")]),
        bound,
        view(ProxyKind::Gateway, "one", "edge", &[("app", "edge")]),
        view(ProxyKind::Gateway, "istio-system", "edge", &[("app", "edge")]),
        view(ProxyKind::Gateway, "one", "made", &[(more::GATEWAY_NAME, "a")]),
        view(ProxyKind::Gateway, "two", "made", &[(more::GATEWAY_NAME, "a")]),
        ProxyView {
            flavor: Flavor::Weft,
            ..sidecar("two", "a", &[("app", "a"), ("version", "v0")])
        },
        view(ProxyKind::Grpc, "one", "b", &[("app", "b")]),
        view(ProxyKind::Grpc, "two", "b", &[("app", "b")]),
    ]
}

/// What was kept so far, by place.
#[derive(Default)]
struct Kept {
    memos: HashMap<ProxyView, Memo>,
    assignments: HashMap<(ProxyView, Arc<str>), Arc<Assignment>>,
}

/// The world before and after a step.
fn check(before: &Snapshot, now: &Snapshot, kept: &mut Kept) {
    let Kept { memos, assignments } = kept;
    let mut kin: HashMap<ProxyView, ProxyView> = HashMap::new();
    for proxy in proxies() {
        let place = proxy.shared(now);
        let family = ProxyView { namespace: "".into(), ..place.clone() };
        let others = [memos.get(&place), kin.get(&family).and_then(|other| memos.get(other))];
        let given: Vec<&Memo> = others.into_iter().flatten().collect();
        let kept = translate_shared(now, &place, &given);
        let made = translate_shared(now, &place, &[]);
        assert_eq!(kept.resources, made.resources, "{place:?}");
        assert_eq!(kept.findings, made.findings, "{place:?}");
        let at_place = Endpoints::new(now, &place);
        for name in made.resources.clusters.iter().map(|cluster| &cluster.name) {
            let of = |place: &ProxyView| assignments.get(&(place.clone(), Arc::clone(name)));
            let others = [of(&place), kin.get(&family).and_then(of)];
            let given: Vec<&Arc<Assignment>> = others.into_iter().flatten().collect();
            let kept = at_place.of(name, &given);
            assert_eq!(kept.resource(), endpoints(now, &proxy, name).as_ref(), "{place:?} {name}");
            assignments.insert((place.clone(), Arc::clone(name)), kept);
        }
        kin.insert(family, place.clone());
        memos.insert(place, kept.memo);
        if !own_differs(before, now, &proxy) {
            assert_eq!(translate_own(before, &proxy), translate_own(now, &proxy), "{proxy:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_would_be_made(
        start in prop::collection::vec(step(), 30),
        steps in prop::collection::vec(prop::collection::vec(step(), 1..3), 8),
    ) {
        let apply = |world: &Snapshot, steps: &[Step]| {
            world.apply(steps.iter().map(change).collect()).0
        };
        let mut kept = Kept::default();
        let mut world = apply(&Snapshot::default(), &start);
        check(&world, &world, &mut kept);
        for steps in &steps {
            let next = apply(&world, steps);
            check(&world, &next, &mut kept);
            world = next;
        }
    }
}
