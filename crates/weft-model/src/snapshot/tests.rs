use std::collections::BTreeSet;

use super::*;
use crate::{Kind, parse_yaml};

fn changes(yaml: &str) -> Vec<Change> {
    let (objects, diagnostics) = parse_yaml("f.yaml", yaml);
    let errors: Vec<_> = diagnostics.iter().filter(|d| d.is_error()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let change =
        |object: Object| Change { key: object.key().unwrap(), kind: ChangeKind::Upsert(object) };
    objects.into_iter().filter(|object| object.key().is_some()).map(change).collect()
}

fn world(yaml: &str) -> Snapshot {
    Snapshot::default().apply(changes(yaml)).0
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: ns}
spec:
  clusterIP: 10.0.0.10
  selector: {app: a}
  ports: [{name: http, port: 80, targetPort: web}, {name: grpc, port: 90, targetPort: 9090}]
";

fn pod(name: &str, ip: &str, extra: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: ns, labels: {{app: a, version: v1}}}}
spec: {{serviceAccountName: acc, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}
status: {{podIP: {ip}{extra}}}
"
    )
}

/// `address service-port→port healthy` of each endpoint.
fn endpoints(snapshot: &Snapshot, host: &str) -> Vec<String> {
    let show = |e: &Endpoint| {
        let ports: Vec<String> = e.ports.iter().map(|(s, p)| format!("{s}→{p}")).collect();
        let address = match &e.address {
            Address::Ip(ip) => ip.to_string(),
            Address::Host(host) => host.to_string(),
            Address::Unix(path) => format!("unix:{path}"),
        };
        format!("{address} {}{}", ports.join(","), if e.healthy { "" } else { " down" })
    };
    snapshot.service(host).unwrap().endpoints.iter().map(show).collect()
}

const A: &str = "a.ns.svc.cluster.local";

#[test]
fn service_with_pods() {
    let snapshot = world(&format!(
        "{SERVICE}{}{}",
        pod("p1", "10.1.0.1", ""),
        pod("p2", "10.1.0.2", ", conditions: [{type: Ready, status: 'False'}]")
    ));
    assert_eq!(
        endpoints(&snapshot, A),
        ["10.1.0.1 80→8080,90→9090", "10.1.0.2 80→8080,90→9090 down"]
    );
    let service = snapshot.service(A).unwrap();
    assert_eq!(service.port(90).unwrap().protocol, Protocol::Grpc);
    let account = service.service_accounts.first().unwrap();
    assert_eq!(account.spiffe_id("td"), "spiffe://td/ns/ns/sa/acc");
    let workload = snapshot.workload_by_name("ns", "p1").unwrap();
    assert_eq!(snapshot.services_of(workload).len(), 1);
    assert!(snapshot.workload_by_ip("10.1.0.2".parse().unwrap()).is_some());
    assert!(snapshot.has_service_account("ns", "acc"));
    assert!(!snapshot.has_service_account("m", "acc"));
}

#[test]
fn listed_endpoints_are_used_when_no_pod_is_selected() {
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-x, namespace: ns, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints: [{addresses: [10.2.0.1]}, {addresses: [10.2.0.2], conditions: {ready: false}}]
ports: [{name: http, port: 8000}]
";
    let old = "---
apiVersion: v1
kind: Endpoints
metadata: {name: a, namespace: ns}
subsets: [{addresses: [{ip: 10.3.0.1}], ports: [{name: grpc, port: 9}]}]
";
    let snapshot = world(&format!("{SERVICE}{old}"));
    assert_eq!(endpoints(&snapshot, A), ["10.3.0.1 90→9"]);
    let (snapshot, touched) = snapshot.apply(changes(slice));
    assert_eq!(endpoints(&snapshot, A), ["10.2.0.1 80→8000", "10.2.0.2 80→8000 down"]);
    assert!(touched.only_endpoints());
    let (snapshot, _) = snapshot.apply(changes(&pod("p", "10.1.0.1", "")));
    assert_eq!(endpoints(&snapshot, A), ["10.1.0.1 80→8080,90→9090"]);
}

#[test]
fn service_entries() {
    let entry = |name: &str, spec: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: ns}}
spec: {{ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], {spec}}}
"
        )
    };
    let workload = "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: ns}
spec: {address: 10.4.0.1, ports: {http: 81}, labels: {app: vm, security.istio.io/tlsMode: istio}, serviceAccount: vmsa, weight: 5}
";
    let snapshot = world(&format!(
        "{}{}{}{}{workload}",
        entry("dns", "hosts: [A.com, '*.b.com'], resolution: NONE"),
        entry("plain", "hosts: [plain.com], resolution: DNS"),
        entry(
            "static",
            "hosts: [st.com], resolution: STATIC, addresses: [1.2.3.4, 10.0.0.0/8], endpoints: [{address: 9.9.9.9}, {address: 'unix:///s'}]"
        ),
        entry(
            "vm",
            "hosts: [vm.com], location: MESH_INTERNAL, resolution: STATIC, workloadSelector: {labels: {app: vm}}"
        )
    ));
    assert_eq!(snapshot.service("a.com").unwrap().resolution, Resolution::None);
    assert!(snapshot.service("*.b.com").is_some());
    let covering = |host: &str| snapshot.service_covering(host, "ns").map(|s| s.host.to_string());
    assert_eq!(covering("x.y.b.com").as_deref(), Some("*.b.com"));
    assert_eq!(covering("a.com").as_deref(), Some("a.com"));
    assert_eq!(covering("b.com"), None);
    assert_eq!(endpoints(&snapshot, "plain.com"), ["plain.com 80→8080"]);
    assert_eq!(endpoints(&snapshot, "st.com"), ["9.9.9.9 80→8080", "unix:/s 80→8080"]);
    let st = snapshot.service("st.com").unwrap();
    assert_eq!((st.addresses.len(), st.cidrs.len(), st.mesh_external), (1, 1, true));
    assert_eq!(endpoints(&snapshot, "vm.com"), ["10.4.0.1 80→81"]);
    let vm = &snapshot.service("vm.com").unwrap().endpoints[0];
    assert!(vm.tls_mode_istio && snapshot.endpoint_mtls(vm, 80));
    assert_eq!(vm.weight, 5);
}

#[test]
fn workload_names() {
    let name = |meta: &str| {
        let yaml =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {meta}\nstatus: {{podIP: 1.1.1.1}}\n");
        let snapshot = world(&yaml);
        let workload = snapshot.workloads().next().unwrap().clone();
        let Template { canonical_name, canonical_revision, owner_kind, .. } = &*workload.template;
        let workload_name = &workload.workload_name;
        format!("{workload_name} {canonical_name} {canonical_revision} {owner_kind}")
    };
    assert_eq!(
        name("{name: a-7f-xx, labels: {pod-template-hash: 7f, app: b, version: v2}}"),
        "a b v2 deployment"
    );
    let owned = "ownerReferences: [{kind: ReplicaSet, name: a-7f, controller: true}]";
    assert_eq!(
        name(&format!("{{name: zz, labels: {{pod-template-hash: 7f}}, {owned}}}")),
        "a a latest deployment"
    );
    assert_eq!(
        name(
            "{name: db-0, ownerReferences: [{kind: StatefulSet, name: db}], labels: {service.istio.io/canonical-name: x, app: z}}"
        ),
        "db x latest statefulset"
    );
    assert_eq!(name("{name: alone}"), "alone alone latest pod");
}

#[test]
fn touched_tells_endpoints_from_configuration() {
    let snapshot = world(&format!("{SERVICE}{}", pod("p1", "10.1.0.1", "")));
    let only = BTreeSet::from([Arc::from(A)]);

    // The same again: nothing.
    let (_, touched) = snapshot.apply(changes(&format!("{SERVICE}{}", pod("p1", "10.1.0.1", ""))));
    assert!(touched.is_empty(), "{touched:?}");

    // Readiness and address: endpoints; the workload itself only when more than readiness differs.
    let (_, touched) = snapshot.apply(changes(&pod("p1", "10.1.0.1", ", phase: Failed")));
    assert_eq!((&touched.endpoints_only, touched.only_endpoints()), (&only, true));
    assert!(touched.workloads.is_empty());
    let (_, touched) = snapshot.apply(changes(&pod("p1", "10.1.0.9", "")));
    assert_eq!((&touched.endpoints_only, touched.only_endpoints()), (&only, true));
    assert_eq!(touched.workloads.len(), 1);

    // One more under the same account: endpoints. Another account: configuration.
    let (_, touched) = snapshot.apply(changes(&pod("p2", "10.1.0.2", "")));
    assert!(touched.only_endpoints());
    let other = pod("p2", "10.1.0.2", "").replace("acc", "other");
    let (next, touched) = snapshot.apply(changes(&other));
    assert_eq!(touched.services, only);
    assert!(touched.endpoints_only.is_empty());

    // A VirtualService: configuration, no service.
    let vs = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: ns}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}\n";
    let (_, touched) = next.apply(changes(vs));
    assert_eq!(touched.config.len(), 1);
    assert!(touched.services.is_empty() && touched.endpoints_only.is_empty());

    // Deleting the service.
    let key = ResourceKey { kind: Kind::Service, namespace: "ns".into(), name: "a".into() };
    let (next, touched) = next.apply(vec![Change { key, kind: ChangeKind::Delete }]);
    assert_eq!(touched.services, only);
    assert!(next.service(A).is_none());
    assert_eq!(next.services_in("ns").count(), 0);
}

#[test]
fn unchanged_services_are_shared() {
    let other = SERVICE.replace("name: a,", "name: b,").replace("app: a", "app: b");
    let before = world(&format!("{SERVICE}---{other}{}", pod("p1", "10.1.0.1", "")));
    let (after, _) = before.apply(changes(&pod("p1", "10.1.0.7", "")));
    let b = "b.ns.svc.cluster.local";
    assert!(Arc::ptr_eq(before.service(b).unwrap(), after.service(b).unwrap()));
    assert!(!Arc::ptr_eq(before.service(A).unwrap(), after.service(A).unwrap()));
    assert_eq!(endpoints(&before, A), ["10.1.0.1 80→8080,90→9090"]);
}

/// A VirtualService, DestinationRule, … in namespace/name with a spec in flow style.
fn networking(kind: &str, key: &str, spec: &str) -> String {
    let (namespace, name) = key.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn virtual_service_lookup() {
    let route = "http: [{route: [{destination: {host: a}}]}]";
    let vs = |key: &str, spec: &str| networking("VirtualService", key, &format!("{spec}, {route}"));
    let snapshot = world(&format!(
        "{}{}{}{}{}",
        vs("ns/exact", "hosts: [A]"),
        vs("ns/wild", "hosts: ['*.ns.svc.cluster.local']"),
        vs("ns/wilder", "hosts: ['*.cluster.local']"),
        vs("m/private", "hosts: [a.ns.svc.cluster.local], exportTo: [.]"),
        vs("ns/edge", "hosts: [Shop.example], gateways: [gw, other/gw]"),
    ));
    let names = |host: &str, from: &str, gateway: &str| -> Vec<String> {
        let found = snapshot.virtual_services_for(host, from, gateway);
        found.iter().map(|vs| vs.meta.name.to_string()).collect()
    };
    assert_eq!(names(A, "ns", "mesh"), ["exact", "wild", "wilder"]);
    assert_eq!(names(A, "m", "mesh"), ["exact", "private", "wild", "wilder"]);
    assert_eq!(names("x.m.svc.cluster.local", "ns", "mesh"), ["wilder"]);
    assert_eq!(names("shop.example", "ns", "ns/gw"), ["edge"]);
    assert_eq!(names("shop.example", "ns", "other/gw"), ["edge"]);
    assert!(names("shop.example", "ns", "mesh").is_empty());
    assert_eq!(snapshot.virtual_services("mesh", "ns").len(), 3);
    let exact = snapshot.virtual_service("ns", "exact").unwrap();
    assert_eq!(exact.spec.http[0].route[0].destination.host, A);

    let delete = |name: &str| Change {
        key: ResourceKey { kind: Kind::VirtualService, namespace: "ns".into(), name: name.into() },
        kind: ChangeKind::Delete,
    };
    let (next, _) = snapshot.apply(vec![delete("exact"), delete("wild"), delete("edge")]);
    assert_eq!(next.virtual_services_for(A, "ns", "mesh").len(), 1);
    assert!(next.virtual_services("ns/gw", "ns").is_empty());
}

#[test]
fn destination_rule_lookup() {
    let dr = |key: &str, spec: &str| networking("DestinationRule", key, spec);
    let subsets = |name: &str| format!("subsets: [{{name: {name}, labels: {{version: {name}}}}}]");
    let snapshot = world(&format!(
        "{SERVICE}{}{}{}{}{}{}",
        dr("ns/one", &format!("host: a, {}", subsets("v1"))),
        dr("ns/two", &format!("host: a, {}", subsets("v2"))),
        dr("client/local", "host: a.ns.svc.cluster.local"),
        dr("istio-system/all", "host: '*.local'"),
        dr("other/hidden", "host: a.ns.svc.cluster.local, exportTo: [.]"),
        dr("client/some", "host: a.ns.svc.cluster.local, workloadSelector: {matchLabels: {x: z}}"),
    ));
    let rule = |host: &str, from: &str| {
        snapshot.destination_rule_for(host, from).map(|rule| rule.meta.name.to_string())
    };
    assert_eq!(rule(A, "ns").as_deref(), Some("one"));
    assert_eq!(rule(A, "client").as_deref(), Some("local"));
    assert_eq!(rule(A, "other").as_deref(), Some("hidden"));
    assert_eq!(rule(A, "elsewhere").as_deref(), Some("one"));
    assert_eq!(rule("b.ns.svc.cluster.local", "elsewhere").as_deref(), Some("all"));
    assert_eq!(rule("b.com", "ns"), None);
    // Rules of one host in one namespace are merged.
    let merged = snapshot.destination_rule_for(A, "ns").unwrap();
    let names: Vec<&str> = merged.spec.subsets.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["v1", "v2"]);
    let selected = snapshot.destination_rule_for_workload(A, "client", &labels(&[("x", "z")]));
    assert_eq!(&*selected.unwrap().meta.name, "some");
}

#[test]
fn sidecar_precedence() {
    let sidecar = |key: &str, extra: &str| {
        networking("Sidecar", key, &format!("egress: [{{hosts: [./*, ns/B]}}]{extra}"))
    };
    let snapshot = world(&format!(
        "{}{}{}",
        sidecar("ns/general", ""),
        sidecar("ns/special", ", workloadSelector: {labels: {app: a}}"),
        sidecar("istio-system/root", ""),
    ));
    let name = |namespace: &str, app: &str| {
        let labels = labels(&[("app", app)]);
        snapshot.sidecar_for(namespace, &labels).map(|s| s.meta.name.to_string()).unwrap()
    };
    assert_eq!(name("ns", "a"), "special");
    assert_eq!(name("ns", "b"), "general");
    assert_eq!(name("m", "a"), "root");
    let hosts = &snapshot.sidecar_for("ns", &Labels::new()).unwrap().spec.egress[0].hosts;
    assert_eq!(hosts, &["ns/*", "ns/b.ns.svc.cluster.local"]);
}

#[test]
fn peer_authentication_precedence() {
    let peer = |key: &str, spec: &str| {
        networking("PeerAuthentication", key, spec)
            .replace("networking.istio.io", "security.istio.io")
    };
    let snapshot = world(&format!(
        "{}{}{}{}",
        peer("istio-system/root", "mtls: {mode: STRICT}"),
        peer("ns/general", "mtls: {mode: DISABLE}"),
        peer(
            "ns/a",
            "selector: {matchLabels: {app: a}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}, 81: {mode: UNSET}}"
        ),
        peer("ns/b", "selector: {matchLabels: {app: b}}, mtls: {mode: UNSET}"),
    ));
    let mode = |namespace: &str, app: &str, port: u16| {
        snapshot.peer_mode_for(namespace, &labels(&[("app", app)]), port)
    };
    assert_eq!(mode("ns", "a", 8080), MtlsMode::Strict);
    assert_eq!(mode("ns", "a", 80), MtlsMode::Permissive);
    assert_eq!(mode("ns", "a", 81), MtlsMode::Permissive);
    assert_eq!(mode("ns", "b", 80), MtlsMode::Disable);
    assert_eq!(mode("ns", "c", 80), MtlsMode::Disable);
    assert_eq!(mode("m", "a", 8080), MtlsMode::Strict);
    assert_eq!(Snapshot::default().peer_mode_for("ns", &Labels::new(), 1), MtlsMode::Permissive);
}

#[test]
fn names() {
    use crate::{host_matches, resolve_gateway, resolve_host};
    assert_eq!(resolve_host("A", "ns"), A);
    assert_eq!(resolve_host("a.Com", "ns"), "a.com");
    assert_eq!(resolve_host("*", "ns"), "*");
    assert_eq!(resolve_gateway("mesh", "ns"), "mesh");
    assert_eq!(resolve_gateway("g", "ns"), "ns/g");
    assert_eq!(resolve_gateway("m/g", "ns"), "m/g");
    assert_eq!(resolve_gateway("g.m.svc.cluster.local", "ns"), "m/g");
    assert!(
        host_matches("*.com", "A.COM")
            && host_matches("*", "x")
            && host_matches("*.com", "*.a.com")
    );
    assert!(
        !host_matches("*.a.com", "*.com")
            && !host_matches("*.com", "com")
            && !host_matches("é", "*")
    );
}

#[test]
fn protocols() {
    let of = |port, name, app| Protocol::of_service_port(port, name, "TCP", app);
    assert_eq!(of(80, "http-a", None), Protocol::Http);
    assert_eq!(of(80, "grpc-web-x", None), Protocol::GrpcWeb);
    assert_eq!(of(80, "GRPC", None), Protocol::Grpc);
    assert_eq!(of(80, "httpx", None), Protocol::Auto);
    assert_eq!(of(3306, "", None), Protocol::Tcp);
    assert_eq!(of(80, "tcp", Some("kubernetes.io/h2c")), Protocol::Http2);
    assert_eq!(of(80, "tcp-x", Some("example.com/own")), Protocol::Tcp);
    assert_eq!(Protocol::of_service_port(53, "http", "UDP", None), Protocol::Udp);
}

/// `severity path: message` of the cross-resource findings.
#[track_caller]
fn check(yaml: &str, expect: &[&str]) {
    let snapshot = world(yaml);
    let show = |d: &Diagnostic| format!("{:?} {} {}: {}", d.severity, d.code, d.path, d.message);
    let found: Vec<String> = snapshot.diagnostics().iter().map(show).collect();
    assert_eq!(found, expect);
}

#[test]
fn the_seed_articles_two_rules_send_all_to_the_first() {
    let yaml = format!(
        "{SERVICE}{}{}",
        networking(
            "VirtualService",
            "ns/a",
            "hosts: [a], http: [{route: [{destination: {host: a, subset: v1}}]}, {route: [{destination: {host: a, subset: v2}}]}]"
        ),
        networking(
            "DestinationRule",
            "ns/a",
            "host: a, subsets: [{labels: {version: v1}, name: v1}, {labels: {version: v2}, name: v2}]"
        ),
    );
    check(
        &yaml,
        &[
            "Warning IST0130 spec.http[1]: http rule 1 is never used: http rule 0 has no match, so 100 % of the traffic goes to it",
        ],
    );
}

#[test]
fn references_to_nothing() {
    check(
        &format!(
            "{SERVICE}{}{}",
            networking(
                "VirtualService",
                "ns/v",
                "hosts: [shop.example], gateways: [none, gw], http: [{route: [{destination: {host: a, subset: v9}, weight: 1}, {destination: {host: ghost}, weight: 1}, {destination: {host: a, port: {number: 1}}, weight: 1}]}]"
            ),
            networking(
                "Gateway",
                "ns/gw",
                "selector: {x: z}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['m/*', other.example]}]"
            ),
        ),
        &[
            "Error IST0101 spec.gateways[0]: Gateway ns/none is not defined; nothing serves these routes",
            "Warning IST0132 spec.hosts[0]: no server of Gateway ns/gw has the host \"shop.example\"",
            "Error IST0112 spec.http[0].route[0].destination: \"a.ns.svc.cluster.local\" has the ports [80, 90], and none is chosen",
            "Error IST0101 spec.http[0].route[0].destination.subset: no DestinationRule for \"a.ns.svc.cluster.local\" has the subset \"v9\"; requests fail with 503",
            "Error IST0101 spec.http[0].route[1].destination.host: the host \"ghost.ns.svc.cluster.local\" is no known service; requests fail with 503",
            "Error IST0101 spec.http[0].route[2].destination.port.number: \"a.ns.svc.cluster.local\" has no port 1; it has [80, 90]",
        ],
    );
}

#[test]
fn collisions() {
    let route = "http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: a}}]}, {match: [{uri: {prefix: /a}}], route: [{destination: {host: a}}]}]";
    let plain = "http: [{route: [{destination: {host: a}}]}]";
    check(
        &format!(
            "{SERVICE}{}{}{}{}",
            networking("VirtualService", "ns/v", &format!("hosts: [a], {route}")),
            networking("VirtualService", "ns/w", &format!("hosts: [a], {plain}")),
            networking(
                "DestinationRule",
                "ns/d",
                "host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: v1}}]"
            ),
            networking(
                "DestinationRule",
                "ns/e",
                "host: a, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: v2}}]"
            ),
        ),
        &[
            "Info IST0131 spec.http[1].match[0]: the match is never used: http rule 0 has the same one",
            "Error IST0109 spec.hosts: the host \"a.ns.svc.cluster.local\" is in several VirtualServices on the mesh (ns/v, ns/w); the oldest, ns/v, wins",
            "Error IST0109 spec.hosts: the host \"a.ns.svc.cluster.local\" is in several VirtualServices on the mesh (ns/v, ns/w); the oldest, ns/v, wins",
            "Warning WEFT0004 spec.trafficPolicy: DestinationRule ns/d has a traffic policy for the same host and wins",
            "Warning WEFT0004 spec.subsets[0]: DestinationRule ns/d defines the subset \"v1\" otherwise and wins",
        ],
    );
}

#[test]
fn rules_without_hosts_are_for_delegation() {
    let plain = "http: [{route: [{destination: {host: a}}]}]";
    let caller = "hosts: [a], http: [{match: [{uri: {prefix: /a}}], delegate: {name: team}}]";
    check(
        &format!(
            "{SERVICE}{}{}{}",
            networking("VirtualService", "ns/caller", caller),
            networking("VirtualService", "ns/team", plain),
            networking("VirtualService", "ns/alone", plain),
        ),
        &[
            "Error IST0106 spec.hosts: at least one host is required: no VirtualService delegates to this one, so its rules apply to nothing",
        ],
    );
}

#[test]
fn selectors_and_subsets_that_pick_nothing() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: ns, labels: {app: a}}\n\
               spec: {containers: [{name: app}]}\nstatus: {podIP: 10.0.0.1, phase: Running}\n";
    let selector = |app: &str| {
        format!("workloadSelector: {{labels: {{app: {app}}}}}, egress: [{{hosts: ['./*']}}]")
    };
    let rule = "host: a, subsets: [{name: v1, labels: {version: v1}}]";
    let policy = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: p, namespace: ns}\n\
                  spec: {selector: {matchLabels: {app: ghost}}, mtls: {mode: STRICT}}\n";
    let all = format!(
        "{}{}{}{policy}",
        networking("Sidecar", "ns/one", &selector("a")),
        networking("Sidecar", "ns/two", &selector("a")),
        networking("DestinationRule", "ns/d", rule),
    );
    check(
        &format!("{SERVICE}{pod}{all}"),
        &[
            "Warning IST0127 spec.selector.matchLabels: no Pod or WorkloadEntry has these labels",
            "Error IST0173 spec.subsets[0].labels: the subset \"v1\" has no Pod of a.ns.svc.cluster.local",
            "Error IST0110 spec.workloadSelector: Sidecar ns/two selects some of the same workloads",
            "Error IST0110 spec.workloadSelector: Sidecar ns/one selects some of the same workloads",
        ],
    );
    // Without anything that runs, the files are a part only.
    check(&format!("{SERVICE}{all}"), &[]);
}

#[test]
fn gateways_and_entries_that_disagree() {
    let gateway = |host: &str| {
        let tls = "tls: {mode: SIMPLE, credentialName: cert}";
        let port = "port: {number: 443, name: https, protocol: HTTPS}";
        format!("selector: {{x: z}}, servers: [{{{port}, hosts: ['{host}'], {tls}}}]")
    };
    let entry = |protocol: &str| {
        format!(
            "hosts: [far.example], location: MESH_EXTERNAL, resolution: DNS, \
             ports: [{{number: 80, name: p, protocol: {protocol}}}]"
        )
    };
    check(
        &format!(
            "{}{}{}{}",
            networking("Gateway", "ns/one", &gateway("*.example")),
            networking("Gateway", "ns/two", &gateway("shop.example")),
            networking("ServiceEntry", "ns/far", &entry("HTTP")),
            networking("ServiceEntry", "m/far", &entry("TLS")),
        ),
        &[
            "Error IST0145 spec.servers[0]: Gateway ns/two has the same selector, port 443 and an overlapping host",
            "Error IST0145 spec.servers[0]: Gateway ns/one has the same selector, port 443 and an overlapping host",
            "Warning IST0138 spec.servers: the certificate \"cert\" is also that of ns/two; clients that reuse HTTP/2 connections may get 404",
            "Warning IST0138 spec.servers: the certificate \"cert\" is also that of ns/one; clients that reuse HTTP/2 connections may get 404",
            "Warning IST0177 spec.ports[0].protocol: far.example:80 is TLS here and HTTP in ServiceEntry ns/far",
            "Warning IST0177 spec.ports[0].protocol: far.example:80 is HTTP here and TLS in ServiceEntry m/far",
        ],
    );
}

fn entry(name: &str, host: &str, more: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: ns{more}}}
spec: {{hosts: ['{host}'], resolution: DNS, ports: [{{number: 5432, name: tcp, protocol: TCP}}]}}
"
    )
}

fn allocated(snapshot: &Snapshot, host: &str) -> Vec<String> {
    let service = snapshot.service(host).unwrap();
    snapshot.allocated_addresses(service).iter().map(ToString::to_string).collect()
}

#[test]
fn hosts_without_addresses_get_some_that_depend_on_nothing_else() {
    let one = world(&entry("a", "a.example", ""));
    let own = allocated(&one, "a.example");
    assert!(own[0].starts_with("240.240.") && own[1].starts_with("2001:2::"), "{own:?}");
    let more = entry("a", "a.example", "") + &entry("b", "b.example", "");
    let two = world(&more);
    assert_eq!(allocated(&two, "a.example"), own, "others change nothing");
    assert_ne!(allocated(&two, "b.example"), own);
    let (changed, _) = one.apply(changes(&entry("b", "b.example", "")));
    assert_eq!(allocated(&changed, "b.example"), allocated(&two, "b.example"));
}

#[test]
fn who_gets_no_address_of_its_own() {
    let label = ", labels: {networking.istio.io/enable-autoallocate-ip: 'false'}";
    let off = world(&entry("a", "a.example", label));
    assert!(allocated(&off, "a.example").is_empty());
    let none = entry("a", "a.example", "").replace("DNS", "NONE");
    assert!(allocated(&world(&none), "a.example").is_empty());
    let wildcard = entry("a", "*.example", "").replace("DNS", "STATIC");
    assert!(allocated(&world(&wildcard), "*.example").is_empty());
    let given = entry("a", "a.example", "").replace("hosts:", "addresses: [10.9.9.9], hosts:");
    assert!(allocated(&world(&given), "a.example").is_empty());
    assert!(allocated(&world(SERVICE), A).is_empty());
}

#[test]
fn of_two_that_want_one_address_the_older_has_it() {
    let world = world(
        &(0..2000)
            .map(|n| entry(&format!("e{n}"), &format!("h{n}.example"), ""))
            .collect::<String>(),
    );
    let mut seen = BTreeSet::new();
    for n in 0..2000 {
        assert!(seen.insert(allocated(&world, &format!("h{n}.example"))), "twice");
    }
}

#[test]
fn pods_stand_where_their_nodes_do() {
    const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: a}}
spec: {nodeName: n1}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {app: a, istio-locality: own.place}}
spec: {nodeName: n1}
status: {podIP: 10.0.0.2}
";
    let node = |labels: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{{labels}}}}}\n")
    };
    let locality = |snapshot: &Snapshot, name: &str| {
        snapshot.workload_by_name("shop", name).expect("a workload").locality.to_string()
    };
    let (before, _) = Snapshot::default().apply(changes(PODS));
    assert_eq!(locality(&before, "a"), "");
    let labels = "topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1";
    let (with_node, touched) = before.apply(changes(&node(labels)));
    assert_eq!((locality(&with_node, "a").as_str(), touched.workloads.len()), ("eu/eu-1", 1));
    assert_eq!(locality(&with_node, "b"), "own/place");
    let (same, touched) = with_node.apply(changes(&node(&format!("{labels}, other: x"))));
    assert_eq!((locality(&same, "a").as_str(), touched.workloads.len()), ("eu/eu-1", 0));
    let (fresh, _) = Snapshot::default().apply(changes(&node(labels)));
    assert_eq!(locality(&fresh.apply(changes(PODS)).0, "a"), "eu/eu-1");
}
