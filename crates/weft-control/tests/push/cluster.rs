//! The control plane on a Kubernetes API: what it reads, and what it does while that is away.
//!
//! Tests named `either_…` also run on a real API server, one on which CRDs of Istio and the Gateway
//! API are installed: `WEFT_TEST_KUBECONFIG=FILE cargo test -p weft-control --test push either_`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weft_control::kube::{
    Access, Candidate, Client, Hooks, Install, Patch, Rate, apply, manifests,
};
use weft_control::{Config, Handle, Kubernetes, Writes, run, source};
use weft_model::Snapshot;
use weft_testkit::kube::{Fault, Rule, Server, gateway_api, istio};
use weft_testkit::wait;
use weft_translate::{Flavor, Interception, ProxyKind, ProxyView};

use weft_xds::ResourceType;
use weft_xds::connect::Target;
use weft_xds::session::Mode;

use crate::client::{Behaviour, TestProxy, carries};
use crate::plane::LIMIT;

/// An API server, and a control plane on it.
pub struct Cluster {
    /// `None` when it is a real one.
    server: Option<Server>,
    pub client: Client,
    access: Access,
    folder: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let mut kinds = istio();
        kinds.extend(gateway_api());
        Self::of(Server::start(kinds).await).await
    }

    async fn of(server: Server) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = server.kubeconfig(folder.path());
        Self::with(Some(server), kubeconfig, folder).await
    }

    /// The real one that was named, else ours.
    async fn either() -> Self {
        match std::env::var_os("WEFT_TEST_KUBECONFIG") {
            Some(path) => {
                let folder = tempfile::tempdir().expect("a temporary folder");
                Self::with(None, PathBuf::from(path), folder).await
            }
            None => Self::start().await,
        }
    }

    async fn with(server: Option<Server>, path: PathBuf, folder: tempfile::TempDir) -> Self {
        let rate = Rate { per_second: 1000.0, burst: 1000 };
        let access = Access { kubeconfig: Some(path), context: None, rate };
        let client = Client::new(&access).await.expect("a client");
        Cluster { server, client, access, folder }
    }

    /// Where its kubeconfig is, too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn server_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect("ours")
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("ours")
    }

    /// Starts a control plane that has read the cluster.
    pub async fn plane(&self) -> Handle {
        let plane = self.unread_plane().await;
        tokio::time::timeout(LIMIT, plane.ready()).await.expect("the cluster is read");
        plane
    }

    pub async fn unread_plane(&self) -> Handle {
        self.plane_called(None).await
    }

    /// With a name it takes part in writing status.
    pub async fn plane_called(&self, name: Option<&str>) -> Handle {
        run(self.config(name), CancellationToken::new()).await.expect("the plane starts")
    }

    /// Why no control plane starts.
    pub async fn failing_plane(&self) -> String {
        let started = run(self.config(None), CancellationToken::new()).await;
        started.err().expect("it does not start").to_string()
    }

    pub fn config(&self, name: Option<&str>) -> Config {
        let mut config = Config::new(Vec::new(), self.folder.path().join("state"));
        let candidate = name.map(|name| Candidate {
            namespace: "istio-system".to_owned(),
            lease: "weft-test".to_owned(),
            duration: Duration::from_secs(15),
            identity: name.to_owned(),
        });
        let source = source::kube::Options {
            probe: Duration::from_millis(50),
            remote_patience: Duration::from_secs(1),
            ..Default::default()
        };
        config.kubernetes = Some(Kubernetes {
            access: self.access.clone(),
            source,
            shared_root: name.is_some(),
            inject_only: false,
            token_audience: "istio-ca".to_owned(),
            rotation_grace: Duration::from_millis(200),
            candidate,
            writes: Writes {
                status: true,
                roots: true,
                hooks: Some(Hooks {
                    mutating: "istio-sidecar-injector".to_owned(),
                    validating: "istio-validator".to_owned(),
                }),
            },
        });
        config.xds_address.set_port(0);
        config.xds_tls_address = None;
        config.http_address.set_port(0);
        config
    }

    /// Applies every document of a YAML text, status too.
    pub async fn apply(&self, yaml: &str) {
        for object in documents(yaml) {
            match &self.server {
                Some(server) => server.apply(&object),
                None => self.apply_really(&object).await,
            }
        }
    }

    async fn apply_really(&self, object: &Value) {
        let path = path_of(object);
        let apply = format!("{path}?fieldManager=weft-test&force=true");
        self.client.patch(&apply, Patch::Apply, object).await.expect("it is applied");
        if object.get("status").is_some() {
            let status = json!({ "status": object["status"] });
            let path = format!("{path}/status");
            self.client.patch(&path, Patch::Merge, &status).await.expect("it is written");
        }
    }

    async fn delete(&self, yaml: &str) {
        for object in documents(yaml) {
            self.client.delete(&path_of(&object)).await.expect("it is deleted");
        }
    }
}

/// Documents as an API server takes them.
pub fn documents(yaml: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let parse = |text: &str| -> Value {
        serde_saphyr::from_str_with_options(text, options.clone()).expect("YAML")
    };
    yaml.split("\n---").map(parse).filter(|one| !one.is_null()).collect()
}

fn path_of(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let api_version = text("/apiVersion").expect("apiVersion");
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    let kind = text("/kind").expect("a kind").to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) if !kind.ends_with("ay") => format!("{stem}ies"),
        _ => format!("{kind}s").replace("sss", "sses"),
    };
    let name = text("/metadata/name").expect("a name");
    match text("/metadata/namespace") {
        None => format!("{root}/{api_version}/{plural}/{name}"),
        Some(namespace) => format!("{root}/{api_version}/namespaces/{namespace}/{plural}/{name}"),
    }
}

pub async fn until<T>(
    what: &str,
    plane: &Handle,
    mut found: impl FnMut(&Snapshot) -> Option<T>,
) -> T {
    let (state, mut updates) = plane.world.subscribe();
    let mut snapshot = state.snapshot.clone();
    let search = async {
        loop {
            if let Some(found) = found(&snapshot) {
                return found;
            }
            let update = updates.next().await.expect("the world goes on");
            snapshot = update.state.snapshot.clone();
        }
    };
    tokio::time::timeout(LIMIT, search).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: weft-test-shop, labels: {team: shop}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: weft-test-shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: weft-test-shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.8.0.1], conditions: {ready: true}}
- {addresses: [10.8.0.2], conditions: {ready: true}}
"#;
const HOST: &str = "web.weft-test-shop.svc.cluster.local";

fn rule(name: &str, hosts: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: weft-test-shop}}\n\
         spec: {{hosts: [{hosts}], http: [{{route: [{{destination: {{host: web}}}}]}}]}}\n"
    )
}

fn endpoints(snapshot: &Snapshot) -> Option<usize> {
    Some(snapshot.service(HOST)?.endpoints.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn either_changes_through_the_api_reach_the_world() {
    let cluster = Cluster::either().await;
    cluster.apply(SHOP).await;
    let plane = cluster.plane().await;
    assert_eq!(endpoints(&plane.world.snapshot()), Some(2));

    let rule = rule("rule", "web");
    cluster.apply(&rule).await;
    let has_rule = |snapshot: &Snapshot| {
        let mut rules = snapshot.all_virtual_services();
        rules.any(|one| &*one.meta.namespace == "weft-test-shop")
    };
    until("the rule", &plane, |snapshot| has_rule(snapshot).then_some(())).await;
    cluster.delete(&rule).await;
    until("no rule", &plane, |snapshot| (!has_rule(snapshot)).then_some(())).await;
    cluster.delete(SHOP.split("\n---").nth(1).expect("the service")).await;
    until("no service", &plane, |snapshot| endpoints(snapshot).is_none().then_some(())).await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_says_what_a_folder_says() {
    let cluster = Cluster::start().await;
    let mut files = vec![("shop.yaml".to_owned(), SHOP.to_owned())];
    files.push(("mesh.yaml".to_owned(), MESH.to_owned()));
    let Some(data) = weft_testkit::peer::data("a_cluster_says_what_a_folder_says") else { return };
    for folder in ["bookinfo/kube", "bookinfo/networking", "httpbin", "helloworld"] {
        files.extend(samples(&data.join("samples").join(folder)));
    }
    let mut known = 0;
    for (_, text) in &files {
        for object in documents(text) {
            known += usize::from(try_apply(cluster.server(), object));
        }
    }
    assert!(known > 60, "{known} resources of the samples are known");
    let plane = cluster.plane().await;
    let (folder, _) = weft_model::load(&files);
    let mut compared = 0;
    for view in views() {
        let (of_folder, of_cluster) =
            (resources(&folder, &view), resources(&plane.world.snapshot(), &view));
        for (name, body) in &of_folder {
            assert!(of_cluster.get(name) == Some(body), "{name} of {} differs", view.name);
            compared += 1;
        }
        assert_eq!(of_cluster.len(), of_folder.len(), "{}", view.name);
    }
    assert!(compared > 50, "{compared} resources compared");
    plane.stop().await;
}

const MESH: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "accessLogFile: /dev/stdout\nenableAutoMtls: true"}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1}}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, namespace: default, labels: {app: reviews, version: v1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: bookinfo-reviews, nodeName: n1, containers: [{name: app, ports: [{containerPort: 9080}]}]}
status: {phase: Running, podIP: 10.9.0.1, podIPs: [{ip: 10.9.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: gateway, namespace: default, labels: {istio: ingressgateway}}
spec: {serviceAccountName: gateway, nodeName: n1}
status: {phase: Running, podIP: 10.9.0.2}
"#;

/// The first file by name defines what several do; kinds that are not served are left out.
fn try_apply(server: &Server, mut object: Value) -> bool {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let api_version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
    let groups = [
        "v1",
        "discovery.k8s.io",
        "networking.istio.io",
        "security.istio.io",
        "gateway.networking.k8s.io",
    ];
    let group = api_version.split('/').next().unwrap_or_default();
    if !groups.contains(&group) || matches!(kind.as_str(), "PersistentVolumeClaim") {
        return false;
    }
    let cluster_wide = matches!(kind.as_str(), "Namespace" | "Node" | "GatewayClass");
    if !cluster_wide && object["metadata"].get("namespace").is_none() {
        object["metadata"]["namespace"] = "default".into();
    }
    let plural = path_of(&object);
    let plural = plural.rsplit('/').nth(1).expect("a plural");
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    if server.get(plural, &text("namespace"), &text("name")).is_none() {
        server.apply(&object);
    }
    true
}

fn samples(folder: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(folder);
    let entries = entries.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|one| one.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|one| one == "yaml"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a readable file");
        (path.display().to_string(), text)
    };
    paths.into_iter().map(read).collect()
}

fn views() -> [ProxyView; 3] {
    let view = |kind, flavor, name: &str, labels: &[(&str, &str)]| ProxyView {
        kind,
        flavor,
        name: name.into(),
        namespace: "default".into(),
        service_account: "default".into(),
        addresses: vec!["10.9.0.1".parse().expect("an address")],
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        cluster_id: "Kubernetes".into(),
        locality: "".into(),
        interception: Interception::Redirect,
        metadata: Default::default(),
    };
    let reviews = [("app", "reviews"), ("version", "v1")];
    [
        view(ProxyKind::Sidecar, Flavor::Weft, "reviews-1", &reviews),
        view(ProxyKind::Sidecar, Flavor::Envoy, "reviews-1", &reviews),
        view(ProxyKind::Gateway, Flavor::Weft, "gateway", &[("istio", "ingressgateway")]),
    ]
}

/// All a proxy is sent, by type and name.
fn resources(snapshot: &Snapshot, view: &ProxyView) -> BTreeMap<String, Vec<u8>> {
    let (all, _) = weft_translate::translate(snapshot, view);
    let mut found = BTreeMap::new();
    for cluster in &all.clusters {
        if let Some(assignment) = weft_translate::endpoints(snapshot, view, &cluster.name) {
            found.insert(format!("endpoints {}", cluster.name), assignment.body.to_vec());
        }
    }
    let listeners = all.listeners.iter().map(|one| ("listener", one));
    let routes = all.routes.iter().map(|one| ("route", one));
    let clusters = all.clusters.iter().map(|one| ("cluster", one));
    for (kind, one) in listeners.chain(routes).chain(clusters) {
        found.insert(format!("{kind} {}", one.name), without_generations(&one.body));
    }
    found
}

/// A generation is a hash of the text as it was written; an API server writes its own fields in.
fn without_generations(body: &[u8]) -> Vec<u8> {
    const FIELD: &[u8] = b"generation\x12\x12\x1a\x10";
    let mut body = body.to_vec();
    for at in 0..(body.len() + 1).saturating_sub(FIELD.len() + 16) {
        if body[at..].starts_with(FIELD) {
            body[at + FIELD.len()..at + FIELD.len() + 16].fill(b'-');
        }
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_takes_nothing_away() {
    let mut cluster = Cluster::start().await;
    cluster.apply(SHOP).await;
    let plane = cluster.plane().await;
    let age = || {
        let mut text = Vec::new();
        plane.metrics.render_prometheus(&mut text);
        let text = String::from_utf8(text).expect("text");
        let line = text.lines().find(|line| line.starts_with("weft_kubernetes_age_seconds "));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok()).expect("the metric")
    };
    wait::until("all to be watched", LIMIT, || async { (age() == 0.0).then_some(()) }).await;

    // Endpoints are watched from here on: none may be missing, whatever happens.
    let (_, mut updates) = plane.world.subscribe();
    cluster.server.as_mut().expect("ours").kill();
    wait::until("the outage to be seen", LIMIT, || async { (age() > 0.0).then_some(()) }).await;
    assert_eq!(endpoints(&plane.world.snapshot()), Some(2));
    let target = Target::plain(format!("http://{}", plane.xds));
    let mut late = TestProxy::start(target, Behaviour::new(Mode::Delta, "late-1"));
    late.until(carries(ResourceType::Endpoint, &format!("outbound|80||{HOST}"))).await;

    // Meanwhile one endpoint goes, a service comes, and history is forgotten.
    let mut slice = documents(SHOP).remove(2);
    slice["endpoints"].as_array_mut().expect("a list").remove(0);
    let server = cluster.server.as_mut().expect("ours");
    server.apply(&slice);
    server.apply(&documents(&rule("later", "web"))[0]);
    server.compact();
    // The first lists that come back are cut in the middle.
    server.fail("/endpointslices?limit", Fault::Cut, 1);
    server.fail("/services?limit", Fault::Status(503, None), 1);
    server.revive().await;
    until("one endpoint", &plane, |snapshot| (endpoints(snapshot) == Some(1)).then_some(())).await;
    until("the rule", &plane, |snapshot| snapshot.all_virtual_services().next().map(drop)).await;
    wait::until("all to be watched", LIMIT, || async { (age() == 0.0).then_some(()) }).await;
    while let Ok(Some(update)) = tokio::time::timeout(Duration::ZERO, updates.next()).await {
        let found = endpoints(&update.state.snapshot);
        assert!(found.is_some_and(|found| found >= 1), "{found:?} endpoints");
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let cluster = Cluster::start().await;
    cluster.apply(SHOP).await;
    let server = cluster.server();
    // Every watch of slices breaks in the middle of its first event, twice.
    server.fail("/endpointslices?watch", Fault::Cut, 2);
    server.fail("/endpointslices?limit", Fault::Status(429, Some(1)), 1);
    let plane = cluster.plane().await;
    let mut slice = documents(SHOP).remove(2);
    slice["endpoints"][0]["conditions"]["ready"] = false.into();
    server.apply(&slice);
    until("an endpoint to be unready", &plane, |snapshot| {
        let mut endpoints = snapshot.service(HOST)?.endpoints.iter();
        endpoints.any(|endpoint| !endpoint.healthy).then_some(())
    })
    .await;
    let requests = server.requests();
    let of = |verb: &str, status: u16| {
        let all = requests.iter().filter(|one| one.resource == "endpointslices");
        all.filter(|one| one.verb == verb && one.status == status).count()
    };
    assert_eq!((of("list", 429), of("list", 200)), (1, 1), "no list but the first");
    assert_eq!(of("watch", 200), 3);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_come_in_pages() {
    let cluster = Cluster::start().await;
    cluster.apply(SHOP).await;
    for index in 0..1201 {
        let mut slice = documents(SHOP).remove(2);
        slice["metadata"]["name"] = format!("more-{index:04}").into();
        slice["endpoints"] =
            json!([{"addresses": [format!("10.7.{}.{}", index / 200, index % 200)]}]);
        cluster.server().apply(&slice);
    }
    let plane = cluster.plane().await;
    assert_eq!(endpoints(&plane.world.snapshot()), Some(1203));
    let requests = cluster.server().requests();
    let slices = requests.iter().filter(|one| one.resource == "endpointslices");
    assert_eq!(slices.filter(|one| one.verb == "list").count(), 3);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_may_be_installed_later() {
    let cluster = Cluster::of(Server::start(Vec::new()).await).await;
    cluster.apply(SHOP).await;
    let plane = cluster.plane().await;
    for kind in istio() {
        cluster.server().install(kind);
    }
    cluster.apply(&rule("rule", "web")).await;
    until("the rule", &plane, |snapshot| snapshot.all_virtual_services().next().map(drop)).await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_said_and_its_last_version_stays() {
    let cluster = Cluster::start().await;
    cluster.apply(SHOP).await;
    cluster.apply(&rule("rule", "web")).await;
    let plane = cluster.plane().await;
    cluster.apply(&rule("rule", "'not a host'")).await;
    let found = |plane: &Handle| {
        let state = plane.world.current();
        let mut all = state.diagnostics.iter();
        all.find(|one| one.file.contains("virtualservices")).cloned()
    };
    let finding = wait::until("a finding", LIMIT, || std::future::ready(found(&plane))).await;
    let resource = finding.resource.as_ref().expect("it says of what").to_string();
    assert_eq!(resource, "VirtualService weft-test-shop/rule");
    assert!(finding.help.contains("stays in force"), "{finding}");
    assert_eq!(finding.file, "kubernetes:virtualservices.networking.istio.io/weft-test-shop/rule");
    assert!(plane.world.snapshot().all_virtual_services().next().is_some());
    cluster.apply(&rule("rule", "web, other")).await;
    wait::until("no finding", LIMIT, || std::future::ready(found(&plane).is_none().then_some(())))
        .await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_selectors_choose_namespaces() {
    let cluster = Cluster::start().await;
    cluster.apply(SHOP).await;
    let mesh = |team: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data: {{mesh: 'discoverySelectors: [{{matchLabels: {{team: {team}}}}}]'}}\n"
        )
    };
    cluster.apply(&mesh("other")).await;
    let plane = cluster.plane().await;
    assert_eq!(endpoints(&plane.world.snapshot()), None);
    cluster.apply(&mesh("shop")).await;
    until("its endpoints", &plane, |s| (endpoints(s) == Some(2)).then_some(())).await;
    let mut namespace = documents(SHOP).remove(0);
    namespace["metadata"]["labels"]["team"] = "left".into();
    cluster.server().apply(&namespace);
    until("no service", &plane, |snapshot| endpoints(snapshot).is_none().then_some(())).await;
    plane.stop().await;
}

const GATEWAY: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio}
spec: {controllerName: istio.io/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: weft-test-shop}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: weft-test-shop}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lost, namespace: weft-test-shop}
spec: {hosts: [web], gateways: [none], http: [{route: [{destination: {host: web}}]}]}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_control_planes_writes_status() {
    let cluster = Cluster::start().await;
    cluster.apply(SHOP).await;
    cluster.apply(GATEWAY).await;
    let server = cluster.server();
    let status = |plural: &str, name: &str| {
        server.get(plural, "weft-test-shop", name).expect("it is there")["status"].clone()
    };
    let holder = || {
        let lease = server.get("leases", "istio-system", "weft-test");
        lease.map_or(Value::Null, |lease| lease["spec"].clone())
    };
    // Somebody else's word about the route stays.
    let other = json!({"parentRef": {"name": "edge"}, "controllerName": "other", "conditions": []});
    let mut route = documents(GATEWAY).remove(2);
    route["status"] = json!({"parents": [other]});
    server.apply(&route);

    let first = cluster.plane_called(Some("first")).await;
    let parents = wait::until("the route's status", LIMIT, || async {
        let status = status("httproutes", "web");
        (status["parents"].as_array()?.len() == 2).then(|| status["parents"].clone())
    })
    .await;
    assert_eq!(parents[0], other);
    let conditions = parents[1]["conditions"].as_array().expect("conditions");
    let accepted = conditions.iter().find(|one| one["type"] == "Accepted").expect("Accepted");
    assert_eq!((&accepted["status"], &accepted["observedGeneration"]), (&json!("True"), &json!(1)));
    assert!(accepted["lastTransitionTime"].is_string());
    let lost = wait::until("what is wrong with the rule", LIMIT, || async {
        let status = status("virtualservices", "lost");
        status["validationMessages"].is_array().then_some(status)
    })
    .await;
    assert_eq!(lost["validationMessages"][0]["type"]["code"], "IST0101");
    assert_eq!(holder()["holderIdentity"], "first");

    // The second one has the same root. It does not write; both see what the first wrote, and it is no news.
    let second = cluster.plane_called(Some("second")).await;
    tokio::time::timeout(LIMIT, second.ready()).await.expect("the cluster is read");
    assert_eq!(first.root_pem, second.root_pem);
    let writes =
        || server.requests().iter().filter(|one| one.resource.ends_with("/status")).count();
    let before = writes();
    let patch = documents(GATEWAY).remove(0);
    server.apply(&patch);
    first.stop().await;
    wait::until("the second to lead", LIMIT, || async {
        (holder()["holderIdentity"] == "second").then_some(())
    })
    .await;
    assert_eq!(holder()["leaseTransitions"], 2);
    assert_eq!(writes(), before, "nothing to say that was not said");

    // The rule is mended: what was said of it is taken back by who did not say it.
    let mut mended = documents(GATEWAY).remove(3);
    mended["spec"]["gateways"] = json!(["mesh"]);
    server.apply(&mended);
    wait::until("the finding to be taken back", LIMIT, || async {
        status("virtualservices", "lost")["validationMessages"].is_null().then_some(())
    })
    .await;
    second.stop().await;
}

/// Roles as the API server is told them, from manifests.
pub fn rules(manifests: &[Value]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for role in manifests.iter().filter(|one| one.get("rules").is_some()) {
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
        for rule in role["rules"].as_array().expect("a list") {
            let texts = |field: &str| -> Vec<String> {
                let all = rule[field].as_array().into_iter().flatten();
                all.map(|one| one.as_str().expect("text").to_owned()).collect()
            };
            rules.push(Rule {
                namespace: namespace.to_owned(),
                groups: texts("apiGroups"),
                resources: texts("resources"),
                names: texts("resourceNames"),
                verbs: texts("verbs"),
            });
        }
    }
    rules
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_installed_allows_what_is_done_and_no_more() {
    let cluster = Cluster::start().await;
    let all = manifests(&Install::default());
    apply(&cluster.client, &all, true).await.expect("it could be applied");
    assert!(cluster.server().get("deployments", "istio-system", "istiod").is_none());
    apply(&cluster.client, &all, false).await.expect("it is applied");
    apply(&cluster.client, &all, false).await.expect("it is applied again");
    let deployment = cluster.server().get("deployments", "istio-system", "istiod");
    assert_eq!(deployment.expect("it is there")["spec"]["replicas"], 2);
    cluster.apply(SHOP).await;
    cluster.apply(GATEWAY).await;

    let before = cluster.server().requests().len();
    let mut rules = rules(&all);
    for rule in rules.iter_mut().filter(|rule| rule.names.contains(&"weft-leader".to_owned())) {
        // The test's Lease has another name.
        rule.names = vec!["weft-test".to_owned()];
    }
    cluster.server().restrict(rules.clone());
    let plane = cluster.plane_called(Some("one")).await;
    tokio::time::timeout(LIMIT, plane.ready()).await.expect("the cluster is read");
    wait::until("a renewed lease and statuses", LIMIT, || async {
        let requests = cluster.server().requests();
        let has = |verb: &str, resource: &str| {
            requests[before..].iter().any(|one| one.verb == verb && one.resource == resource)
        };
        let done = has("update", "leases")
            && has("patch", "httproutes/status")
            && has("patch", "virtualservices/status")
            && has("patch", "configmaps")
            && has("patch", "mutatingwebhookconfigurations")
            && has("patch", "validatingwebhookconfigurations");
        done.then_some(())
    })
    .await;
    let requests = cluster.server().requests().split_off(before);
    let forbidden: Vec<String> = requests
        .iter()
        .filter(|one| one.status == 403)
        .map(|one| format!("{} {}", one.verb, one.path))
        .collect();
    assert_eq!(forbidden, [""; 0]);
    // Every permission to read is used.
    for rule in rules.iter().filter(|rule| rule.verbs.contains(&"watch".to_owned())) {
        for resource in &rule.resources {
            let served = cluster.server().serves(&rule.groups[0], resource);
            for verb in ["list", "watch"].iter().filter(|_| served) {
                let used = requests.iter().any(|one| {
                    one.verb == *verb && one.resource == *resource && one.group == rule.groups[0]
                });
                assert!(used, "{verb} {resource} is allowed and not done");
            }
        }
    }
    plane.stop().await;
}
