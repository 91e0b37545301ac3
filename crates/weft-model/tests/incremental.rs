//! Changes folded in one after another lead to the same world as building it at once, and what
//! is not reported as touched did not change.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_model::{Change, ChangeKind, Object, ResourceKey, Snapshot, parse_yaml};

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: NAME, namespace: shop}\nspec: SPEC\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME, namespace: shop, labels: {app: APP}}\nspec: {serviceAccountName: ACCOUNT, containers: [{ports: [{name: web, containerPort: 8080}]}]}\nstatus: {podIP: ADDRESS}\n";

fn istio(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// Several versions of a few resources, so that random ones meet often.
fn universe() -> Vec<Object> {
    let mut texts = Vec::new();
    for name in ["a", "b"] {
        for spec in [
            "{selector: {app: a}, ports: [{name: http, port: 80, targetPort: web}]}",
            "{selector: {app: b}, ports: [{name: http, port: 80}, {name: tcp, port: 90}]}",
            "{ports: [{name: http, port: 80}]}",
        ] {
            texts.push(SERVICE.replace("NAME", name).replace("SPEC", spec));
        }
        let address = "subsets: [{addresses: [{ip: 10.0.0.1}, {ip: 10.9.9.9}], ports: [{name: http, port: 7}]}]";
        texts.push(format!("apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}, namespace: shop}}\n{address}\n"));
        texts.push(format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: slice, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\nendpoints: [{{addresses: [10.0.0.2]}}]\nports: [{{name: http, port: 8}}]\n"));
    }
    for name in ["p", "q"] {
        for (app, account, ip) in
            [("a", "one", "10.0.0.1"), ("b", "one", "10.0.0.2"), ("a", "two", "10.0.0.2")]
        {
            let pod = POD.replace("NAME", name).replace("APP", app);
            texts.push(pod.replace("ACCOUNT", account).replace("ADDRESS", ip));
        }
    }
    for (name, spec) in [
        (
            "e",
            "hosts: [x.com, y.com], ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {app: a}}",
        ),
        ("e", "hosts: [y.com], ports: [{number: 80, name: http}], resolution: DNS"),
        (
            "f",
            "hosts: [y.com, a.shop.svc.cluster.local], ports: [{number: 80, name: http}], resolution: DNS",
        ),
    ] {
        texts.push(istio("ServiceEntry", name, spec));
    }
    let rule = "http: [{route: [{destination: {host: a}}]}]";
    for (name, spec) in [
        ("v", "hosts: [a], gateways: [mesh, g]"),
        ("v", "hosts: ['*.com', x.com], gateways: [g]"),
        ("w", "hosts: [a, '*.shop.svc.cluster.local']"),
    ] {
        texts.push(istio("VirtualService", name, &format!("{spec}, {rule}")));
    }
    for (name, spec) in [
        ("d", "host: a, subsets: [{name: v1}]"),
        ("d", "host: '*.com'"),
        ("c", "host: a, subsets: [{name: v2}], trafficPolicy: {loadBalancer: {simple: RANDOM}}"),
    ] {
        texts.push(istio("DestinationRule", name, spec));
    }
    let parse = |text: &String| {
        let (objects, diagnostics) = parse_yaml("f.yaml", text);
        assert!(!diagnostics.iter().any(|found| found.is_error()), "{diagnostics:?}");
        objects
    };
    texts.iter().flat_map(parse).collect()
}

const HOSTS: [&str; 4] = ["a.shop.svc.cluster.local", "b.shop.svc.cluster.local", "x.com", "y.com"];

/// Everything lookups can say, per host where a host is asked for.
fn view(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let mut view = BTreeMap::new();
    for service in snapshot.services() {
        let all: &mut String = view.entry(format!("service {}", service.host)).or_default();
        all.push_str(&format!("{service:?}\n"));
    }
    for workload in snapshot.workloads() {
        view.insert(format!("workload {}", workload.name), format!("{workload:?}"));
        let ip = workload.ip().expect("pods here have addresses");
        let names: Vec<_> = snapshot.workloads_by_ip(ip).iter().map(|w| w.name.clone()).collect();
        view.insert(format!("at {ip}"), format!("{names:?}"));
        let served: Vec<_> =
            snapshot.services_of(workload).iter().map(|s| s.host.clone()).collect();
        view.insert(format!("served by {}", workload.name), format!("{served:?}"));
    }
    for host in HOSTS {
        for gateway in ["mesh", "shop/g"] {
            let found = snapshot.virtual_services_for(host, "shop", gateway);
            view.insert(format!("routes {host} {gateway}"), format!("{found:?}"));
        }
        let rule = snapshot.destination_rule_for(host, "client");
        view.insert(format!("rule {host}"), format!("{rule:?}"));
    }
    view.insert("findings".into(), format!("{:?}", snapshot.diagnostics()));
    view
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_and_batches_do_not_matter(
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 1..40)
    ) {
        let universe = universe();
        let mut world = Snapshot::default();
        let mut live: BTreeMap<ResourceKey, Object> = BTreeMap::new();
        let mut batch = Vec::new();
        for (index, delete, flush) in steps {
            let object = index.get(&universe).clone();
            let key = object.key().expect("only known kinds here");
            if delete {
                live.remove(&key);
                batch.push(Change { key, kind: ChangeKind::Delete });
            } else {
                live.insert(key.clone(), object.clone());
                batch.push(Change { key, kind: ChangeKind::Upsert(object) });
            }
            if !flush {
                continue;
            }
            let before = view(&world);
            let (next, touched) = world.apply(std::mem::take(&mut batch));
            for (what, text) in view(&next) {
                let Some(host) = what.strip_prefix("service ") else { continue };
                let told = touched.services.contains(host) || touched.endpoints_only.contains(host);
                prop_assert!(told || before.get(&what) == Some(&text), "{what} changed untold");
            }
            world = next;
        }
        let (world, _) = world.apply(batch);
        let upsert = |(key, object)| Change { key, kind: ChangeKind::Upsert(object) };
        let (fresh, _) = Snapshot::default().apply(live.into_iter().map(upsert).collect());
        prop_assert_eq!(view(&world), view(&fresh));
    }
}
