//! Which endpoints a proxy prefers, by where both are.

mod common;

use common::{snapshot, view};
use weft_translate::{ProxyKind, ProxyView, endpoints, translate};
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

const NAME: &str = "outbound|80||far.example";
const WORLD: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, locality: eu/a/1}
  - {address: 10.0.0.2, locality: eu/b, labels: {tier: gold}}
  - {address: 10.0.0.3, locality: us/a, labels: {tier: gold}}
  - {address: 10.0.0.4, locality: asia/a}
---
apiVersion: v1
kind: Pod
metadata: {name: client-0, namespace: shop, labels: {app: client, tier: gold, istio-locality: eu.a.1}}
spec: {containers: [{name: app}]}
status: {podIP: 10.9.0.1, phase: Running}
";

fn client() -> ProxyView {
    view(ProxyKind::Sidecar, "shop", "client-0", &[("app", "client"), ("tier", "gold")])
}

fn rule(policy: &str) -> String {
    format!(
        "{WORLD}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: far, namespace: shop}}\n\
         spec: {{host: far.example, trafficPolicy: {{{policy}}}}}\n"
    )
}

/// `priority locality weight`, in order; and whether the cluster weighs localities.
fn preferred(yaml: &str, view: &ProxyView) -> (Vec<String>, bool) {
    let world = snapshot(yaml);
    let shared = view.shared(&world);
    let found = endpoints(&world, &shared, NAME).expect("an assignment");
    let assignment: ClusterLoadAssignment = found.decode().expect("an assignment");
    let lines = assignment.endpoints.iter().map(|group| {
        let at = group.locality.clone().unwrap_or_default();
        let weight = group.load_balancing_weight.map_or(0, |weight| weight.value);
        format!("{} {}/{} {weight}", group.priority, at.region, at.zone)
    });
    let (resources, _) = translate(&world, view);
    let cluster = resources.clusters.iter().find(|cluster| &*cluster.name == NAME);
    let cluster: Cluster = cluster.expect("the cluster").decode().expect("a cluster");
    let weighted =
        cluster.common_lb_config.is_some_and(|config| config.locality_config_specifier.is_some());
    (lines.collect(), weighted)
}

#[test]
fn without_outlier_detection_all_are_alike() {
    let all = ["0 asia/a 1", "0 eu/a 1", "0 eu/b 1", "0 us/a 1"];
    assert_eq!(preferred(WORLD, &client()), (all.map(str::to_owned).to_vec(), false));
    let failover = rule("loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}");
    assert_eq!(preferred(&failover, &client()).0, all);
}

#[test]
fn the_nearest_come_first_once_hosts_can_be_ejected() {
    let (lines, weighted) = preferred(&rule("outlierDetection: {}"), &client());
    assert_eq!(lines, ["0 eu/a 1", "1 eu/b 1", "2 asia/a 1", "2 us/a 1"]);
    assert!(weighted);
    let failover = "outlierDetection: {}, \
         loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}";
    let (lines, _) = preferred(&rule(failover), &client());
    assert_eq!(lines, ["0 eu/a 1", "1 eu/b 1", "2 us/a 1", "3 asia/a 1"]);
    let off = "outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: false}}";
    assert!(!preferred(&rule(off), &client()).1);
    // Nobody says where this one is.
    let stranger = view(ProxyKind::Sidecar, "shop", "other-0", &[]);
    assert!(!preferred(&rule("outlierDetection: {}"), &stranger).1);
}

#[test]
fn labels_agree_in_their_order() {
    let priority = |keys: &str| {
        let policy = format!(
            "outlierDetection: {{}}, \
             loadBalancer: {{localityLbSetting: {{failoverPriority: [{keys}]}}}}"
        );
        preferred(&rule(&policy), &client()).0
    };
    assert_eq!(
        priority("tier, topology.kubernetes.io/region"),
        ["0 eu/b 1", "1 us/a 1", "2 asia/a 1", "2 eu/a 1"]
    );
    assert_eq!(
        priority("\"topology.kubernetes.io/region=us\""),
        ["0 us/a 1", "1 asia/a 1", "1 eu/a 1", "1 eu/b 1"]
    );
}

#[test]
fn shares_are_fixed_whatever_the_health() {
    let distribute = "loadBalancer: {localityLbSetting: {distribute: [\
         {from: us/*, to: {us/*: 100}}, {from: eu/a/*, to: {eu/a/*: 70, eu/*: 20, us/*: 10}}]}}";
    let (lines, weighted) = preferred(&rule(distribute), &client());
    assert_eq!(lines, ["0 eu/a 70", "0 eu/b 20", "0 us/a 10"]);
    assert!(weighted);
}

/// A Service whose clients keep to their zone or node, with one endpoint that is not ready.
fn distributed(field: &str, annotation: &str) -> String {
    let pod = |name: &str, ip: &str, zone: &str, node: &str, ready: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: {name}, namespace: shop, labels: {{app: near, istio-locality: eu.{zone}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: app}}]}}\n\
             status: {{podIP: {ip}, phase: Running, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: near, namespace: shop, annotations: {{{annotation}}}}}\n\
         spec: {{clusterIP: 10.1.0.9, selector: {{app: near}}, ports: [{{name: http, port: 80}}], {field}}}\n\
         {}{}{}{}---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: client-0, namespace: shop, labels: {{app: client, istio-locality: eu.a}}}}\n\
         spec: {{nodeName: n1, containers: [{{name: app}}]}}\nstatus: {{podIP: 10.9.0.1, phase: Running}}\n",
        pod("near-0", "10.2.0.1", "a", "n1", "True"),
        pod("near-1", "10.2.0.2", "a", "n2", "True"),
        pod("near-2", "10.2.0.3", "b", "n3", "True"),
        pod("near-3", "10.2.0.4", "a", "n2", "False"),
    )
}

/// `priority address`, `!` before those that are not ready.
fn by_address(yaml: &str) -> Vec<String> {
    use weft_xds::pb::envoy::config::core::v3::address::Address;
    use weft_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let world = snapshot(yaml);
    let client = view(ProxyKind::Sidecar, "shop", "client-0", &[("app", "client")]);
    let name = "outbound|80||near.shop.svc.cluster.local";
    let found = endpoints(&world, &client.shared(&world), name).expect("an assignment");
    let assignment: ClusterLoadAssignment = found.decode().expect("an assignment");
    let mut lines: Vec<String> = Vec::new();
    for group in &assignment.endpoints {
        for endpoint in &group.lb_endpoints {
            let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { continue };
            let address = host.address.as_ref().and_then(|address| address.address.as_ref());
            let Some(Address::SocketAddress(socket)) = address else { continue };
            let mark = if endpoint.health_status == 2 { "!" } else { "" };
            lines.push(format!("{} {mark}{}", group.priority, socket.address));
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_service_may_ask_its_clients_to_stay_near() {
    let alike = ["0 10.2.0.1", "0 10.2.0.2", "0 10.2.0.3"];
    assert_eq!(by_address(&distributed("", "")), alike);
    let zone = ["0 !10.2.0.4", "0 10.2.0.1", "0 10.2.0.2", "1 10.2.0.3"];
    for word in ["PreferClose", "PreferSameZone"] {
        assert_eq!(by_address(&distributed(&format!("trafficDistribution: {word}"), "")), zone);
    }
    let annotation = "networking.istio.io/traffic-distribution: prefersamezone";
    assert_eq!(by_address(&distributed("", annotation)), zone);
    let node = ["0 10.2.0.1", "1 !10.2.0.4", "1 10.2.0.2", "2 10.2.0.3"];
    assert_eq!(by_address(&distributed("trafficDistribution: PreferSameNode", annotation)), node);
    let of_namespace = format!(
        "{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotation}}}}}\n",
        distributed("", "")
    );
    assert_eq!(by_address(&of_namespace), zone);
}
