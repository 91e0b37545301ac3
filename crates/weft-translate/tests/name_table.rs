//! Which names a sidecar's workload is answered, and with which addresses.

mod common;

use std::collections::BTreeMap;

use common::{snapshot, view};
use weft_translate::{ProxyKind, ProxyView};
use weft_xds::nds::NameTable;

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1, 'fd00::1'], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {hostname: db-0, subdomain: db}
status: {phase: Running, podIP: 10.2.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: shop, labels: {app: db}}
spec: {hostname: db-1, subdomain: db}
status: {phase: Pending, podIP: 10.2.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec: {hosts: [api.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ['*.example.org']
  addresses: [10.3.0.1, 10.4.0.0/16]
  resolution: NONE
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: range, namespace: shop}
spec:
  hosts: [range.example.org]
  addresses: [10.5.0.0/16]
  resolution: NONE
  ports: [{number: 443, name: tls, protocol: TLS}]
";

fn sidecar(answers: bool) -> ProxyView {
    let mut view = view(ProxyKind::Sidecar, "shop", "client-0", &[("app", "client")]);
    view.metadata =
        std::sync::Arc::new(BTreeMap::from([("DNS_CAPTURE".into(), answers.to_string())]));
    view
}

/// Host → addresses, without those that are allocated beyond their first bytes.
fn names(yaml: &str, view: &ProxyView) -> BTreeMap<String, Vec<String>> {
    let world = snapshot(yaml);
    let table = weft_translate::name_table(&world, &view.shared(&world)).expect("a table");
    let table: NameTable = table.decode().expect("a name table");
    table.table.into_iter().map(|(host, info)| (host, info.ips)).collect()
}

#[test]
fn hosts_with_the_addresses_they_have() {
    let names = names(WORLD, &sidecar(true));
    let of = |host: &str| names.get(host).map(|ips| ips.join(" ")).unwrap_or_default();
    assert_eq!(of("web.shop.svc.cluster.local"), "10.1.0.1 fd00::1");
    assert_eq!(of("db.shop.svc.cluster.local"), "10.2.0.1", "ready pods only");
    assert_eq!(of("db-0.db.shop.svc.cluster.local"), "10.2.0.1");
    assert_eq!(of("db-1.db.shop.svc.cluster.local"), "");
    assert_eq!(of("far.other.svc.cluster.local"), "10.1.0.2");
    assert!(of("api.example.com").starts_with("240.240."), "{}", of("api.example.com"));
    assert_eq!(of("*.example.org"), "10.3.0.1");
    assert_eq!(of("range.example.org"), "");
    assert_eq!(names.len(), 6, "{names:?}");
}

#[test]
fn only_what_the_workload_sees_and_could_reach() {
    let imports = "---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec: {egress: [{hosts: ['./*']}]}
";
    let own = names(&format!("{WORLD}{imports}"), &sidecar(true));
    assert!(!own.contains_key("far.other.svc.cluster.local"), "{own:?}");
    assert!(own.contains_key("web.shop.svc.cluster.local"), "{own:?}");
    // Allocated addresses lead nowhere for who does not hear of them from its proxy.
    let silent = names(WORLD, &sidecar(false));
    assert!(!silent.contains_key("api.example.com"), "{silent:?}");

    let world = snapshot(WORLD);
    let gateway = view(ProxyKind::Gateway, "shop", "edge-0", &[]);
    assert!(weft_translate::name_table(&world, &gateway).is_none());
}
