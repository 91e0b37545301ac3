//! Several clusters, one control plane: their Services are one, and each vouches for its own Pods.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weft_control::kube::{Install, apply, manifests};
use weft_control::{Handle, run};
use weft_model::{MeshService, Snapshot};
use weft_testkit::wait;
use weft_xds::ResourceType::Secret;
use weft_xds::connect::Target;
use weft_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_xds::session::Mode;

use crate::client::{Behaviour, Seen, TestProxy, carries};
use crate::cluster::{Cluster, rules, until};
use crate::plane::LIMIT;
use crate::trust::known;

const HOST: &str = "web.default.svc.cluster.local";

/// A Service with one Pod `web-0` on node `n1`, in a cluster of its own addresses.
fn web(number: u8) -> String {
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: istio-system, labels: {{topology.istio.io/network: net-{number}}}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: default}}
---
apiVersion: v1
kind: Node
metadata: {{name: n1, labels: {{topology.kubernetes.io/region: r{number}, topology.kubernetes.io/zone: z}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.96.{number}.1, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web-0, namespace: default, labels: {{app: web}}}}
spec: {{serviceAccountName: web, nodeName: n1, containers: [{{name: app}}]}}
status: {{phase: Running, podIP: 10.{number}.0.1}}
"
    )
}

/// The Secret that makes other clusters part of the mesh: names and kubeconfigs.
fn secret(name: &str, clusters: &[(&str, String)]) -> Value {
    let data = clusters.iter().map(|(name, text)| ((*name).to_owned(), STANDARD.encode(text)));
    let data: serde_json::Map<String, Value> =
        data.map(|(name, text)| (name, text.into())).collect();
    json!({
        "apiVersion": "v1", "kind": "Secret", "data": data,
        "metadata": {
            "name": name, "namespace": "istio-system", "labels": {"istio/multiCluster": "true"},
        },
    })
}

fn kubeconfig(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.folder().join("kubeconfig")).expect("it was written")
}

/// Addresses of the service's endpoints and where they are.
fn endpoints(service: &MeshService) -> Vec<String> {
    let all = service.endpoints.iter().map(|endpoint| {
        let address = endpoint.address.ip().expect("an address");
        let workload = endpoint.workload.as_ref().expect("a Pod");
        format!("{address} {} {} {}", workload.cluster, endpoint.network, endpoint.locality)
    });
    let mut all: Vec<String> = all.collect();
    all.sort();
    all
}

async fn has(plane: &Handle, wanted: &[&str]) {
    let what = format!("endpoints {wanted:?}");
    until(&what, plane, |snapshot: &Snapshot| {
        (endpoints(snapshot.service(HOST)?) == wanted).then_some(())
    })
    .await;
}

const OWN: &str = "10.1.0.1 Kubernetes net-1 r1/z";
const SECOND: &str = "10.2.0.1 c2 net-2 r2/z";
const THIRD: &str = "10.3.0.1 c3 net-3 r3/z";

fn age(plane: &Handle, cluster: &str) -> f64 {
    let mut text = Vec::new();
    plane.metrics.render_prometheus(&mut text);
    let text = String::from_utf8(text).expect("text");
    let begin = format!("weft_kubernetes_age_seconds{{cluster=\"{cluster}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&begin)?.parse().ok()).expect("the metric")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_of_several_clusters_are_one() {
    let (own, mut second, third) =
        (Cluster::start().await, Cluster::start().await, Cluster::start().await);
    own.apply(&web(1)).await;
    second.apply(&web(2)).await;
    third.apply(&web(3)).await;
    second.apply(&web(2).replace("name: web, namespace", "name: only, namespace")).await;
    let both = secret("others", &[("c2", kubeconfig(&second)), ("c3", kubeconfig(&third))]);
    own.server().apply(&both);
    let plane = own.plane().await;
    has(&plane, &[OWN, SECOND, THIRD]).await;
    let snapshot = plane.world.snapshot();
    let service = snapshot.service(HOST).expect("it is there");
    let address = |cluster| service.addresses_in(cluster).iter().map(ToString::to_string).collect();
    let addresses: Vec<String> = ["Kubernetes", "c2", "c3"]
        .into_iter()
        .flat_map(|c| -> Vec<String> { address(c) })
        .collect();
    assert_eq!(addresses, ["10.96.1.1", "10.96.2.1", "10.96.3.1"]);
    // What only one cluster has is a service of the whole mesh.
    let only = snapshot.service("only.default.svc.cluster.local").expect("it is there");
    assert_eq!(endpoints(only), [SECOND]);
    assert_eq!(&*only.name, "only");

    // A cluster that is lost keeps what it had; so it does when its kubeconfig becomes unusable.
    second.server_mut().kill();
    wait::until("the outage to be seen", LIMIT, || async {
        (age(&plane, "c2") > 0.0).then_some(())
    })
    .await;
    let exec = kubeconfig(&second).replace("token: test", "exec: {command: /bin/false}");
    own.server().apply(&secret("others", &[("c2", exec), ("c3", kubeconfig(&third))]));
    let more = [("c3", kubeconfig(&third)), ("Kubernetes", kubeconfig(&third)), ("c4", "?".into())];
    own.server().apply(&secret("worse", &more));
    let findings = wait::until("the findings", LIMIT, || async {
        let state = plane.world.current();
        let all = state.diagnostics.iter().filter(|one| one.code == "WEFT0007");
        let all: Vec<String> = all.map(|one| format!("{} {}", one.file, one.message)).collect();
        (all.len() == 4).then_some(all)
    })
    .await;
    for (index, why) in ["user.exec", "own cluster", "another Secret", ""].iter().enumerate() {
        assert!(findings[index].contains(why), "{findings:?}");
    }
    has(&plane, &[OWN, SECOND, THIRD]).await;
    own.server().delete(&secret("worse", &[]));
    wait::until("one finding", LIMIT, || async {
        let state = plane.world.current();
        (state.diagnostics.iter().filter(|one| one.code == "WEFT0007").count() == 1).then_some(())
    })
    .await;

    // It comes back, with one Pod less and one more; then it leaves the mesh.
    let moved = web(2).replace("10.2.0.1", "10.2.0.7");
    second.apply(&moved).await;
    own.server().apply(&both);
    second.server_mut().revive().await;
    has(&plane, &[OWN, "10.2.0.7 c2 net-2 r2/z", THIRD]).await;
    own.server().apply(&secret("others", &[("c3", kubeconfig(&third))]));
    // The Secret's fields are merged by nobody: the key is gone.
    has(&plane, &[OWN, THIRD]).await;
    own.server().delete(&both);
    has(&plane, &[OWN]).await;
    assert!(plane.world.snapshot().service("only.default.svc.cluster.local").is_none());
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_never_answers_holds_nobody_up() {
    let (own, mut second) = (Cluster::start().await, Cluster::start().await);
    own.apply(&web(1)).await;
    second.apply(&web(2)).await;
    second.server_mut().kill();
    own.server().apply(&secret("others", &[("c2", kubeconfig(&second))]));
    let plane = own.plane().await;
    has(&plane, &[OWN]).await;
    second.server_mut().revive().await;
    has(&plane, &[OWN, SECOND]).await;
    plane.stop().await;
}

fn proxy(plane: &Handle, cluster: &'static str, token: &str) -> TestProxy {
    let target = Target::plain(format!("http://{}", plane.xds));
    let behaviour = Behaviour {
        token: Some(token.to_owned()),
        secrets: &["default"],
        cluster,
        ..Behaviour::new(Mode::Delta, "web-0")
    };
    TestProxy::start(target, behaviour)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cluster_vouches_for_its_own_pods() {
    let (own, second) = (Cluster::start().await, Cluster::start().await);
    own.apply(&web(1)).await;
    second.apply(&web(2)).await;
    own.server().apply(&secret("others", &[("c2", kubeconfig(&second))]));
    let plane = own.plane_called(Some("one")).await;
    has(&plane, &[OWN, SECOND]).await;
    let token = known(&second, "web", "web-0");
    let mut remote = proxy(&plane, "c2", &token);
    remote.until(carries(Secret, "default")).await;
    let name = format!("outbound|80||{HOST}");
    // The cluster is called as its endpoints are.
    let body = loop {
        let body = remote.resource(&name).await.decode::<ClusterLoadAssignment>();
        if let Ok(body) = body.map_err(drop).and_then(|body| match body.endpoints.is_empty() {
            true => Err(()),
            false => Ok(body),
        }) {
            break body;
        }
    };
    assert_eq!(body.endpoints.iter().map(|one| one.lb_endpoints.len()).sum::<usize>(), 2);

    // Its token proves nothing elsewhere, and the cluster is not a matter of opinion.
    let refused = |seen: &Seen| matches!(seen, Seen::Disconnected(_));
    let seen = proxy(&plane, "Kubernetes", &token).until(refused).await;
    assert!(format!("{seen:?}").contains("invalid bearer token"), "{seen:?}");
    let target = Target::plain(format!("http://{}", plane.xds));
    let liar = Behaviour { token: Some(token), ..Behaviour::new(Mode::Delta, "web-0") };
    let seen = TestProxy::start_in(target, liar, "c2", "Kubernetes").until(refused).await;
    assert!(format!("{seen:?}").contains("(of cluster c2) it is in cluster"), "{seen:?}");

    // Pods there trust the mesh's roots by the same ConfigMap.
    wait::until("the roots", LIMIT, || async {
        let found = second.server().get("configmaps", "default", "istio-ca-root-cert")?;
        (found["data"]["root-cert.pem"] == *plane.root_pem).then_some(())
    })
    .await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_cluster_is_read_and_injected_with_what_is_installed_there() {
    let (own, second) = (Cluster::start().await, Cluster::start().await);
    own.apply(&web(1)).await;
    second.apply(&web(2)).await;
    let remote = Install { remote: true, ..Install::default() };
    let all = manifests(&remote);
    apply(&second.client, &all, false).await.expect("it is applied");
    let mut rules = rules(&all);
    for rule in rules.iter_mut().filter(|rule| rule.names.contains(&"weft-leader".to_owned())) {
        // The test's Lease has another name.
        rule.names = vec!["weft-test".to_owned()];
    }
    let before = second.server().requests().len();
    second.server().restrict(rules);

    // The injector there: certificates in its webhooks, no proxy is served, nothing is read.
    let mut config = second.config(Some("injector"));
    let cluster = config.kubernetes.as_mut().expect("it has one");
    cluster.inject_only = true;
    (cluster.writes.status, cluster.writes.roots) = (false, false);
    let injector = run(config, CancellationToken::new()).await.expect("it starts");
    tokio::time::timeout(LIMIT, injector.ready()).await.expect("there is nothing to read");
    let bundle = STANDARD.encode(&injector.root_pem);
    wait::until("the certificates", LIMIT, || async {
        let name = "istio-sidecar-injector";
        let hooks = second.server().get("mutatingwebhookconfigurations", "", name)?;
        (hooks["webhooks"][0]["clientConfig"]["caBundle"] == *bundle).then_some(())
    })
    .await;
    assert!(tokio::net::TcpStream::connect(injector.xds).await.is_err(), "no xDS");
    let pods = |one: &&weft_testkit::kube::Request| one.resource == "pods";
    assert_eq!(second.server().requests().iter().filter(pods).count(), 0);

    // The control plane of the first one, with the account that reads.
    own.server().apply(&secret("others", &[("c2", kubeconfig(&second))]));
    let plane = own.plane_called(Some("one")).await;
    has(&plane, &[OWN, SECOND]).await;
    proxy(&plane, "c2", &known(&second, "web", "web-0")).until(carries(Secret, "default")).await;
    wait::until("the roots", LIMIT, || async {
        second.server().get("configmaps", "default", "istio-ca-root-cert").map(drop)
    })
    .await;
    let requests = second.server().requests().split_off(before);
    let forbidden: Vec<String> = requests
        .iter()
        .filter(|one| one.status == 403)
        .map(|one| format!("{} {}?{}", one.verb, one.path, one.query))
        .collect();
    assert_eq!(forbidden, [""; 0]);
    plane.stop().await;
    injector.stop().await;
}
