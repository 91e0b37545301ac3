//! Injection against Istio's: who is injected, and that pods come out alike. What differs by intent
//! is named here.

use serde_json::{Value, json};
use weft_capture::inject::{
    self, MeshSettings, NamespaceLabels, Outcome, Reason, Setting, inject_object, is_selected,
    json_patch,
};

/// Variables of Istio's container that have no use in ours: whom to take certificates from (always
/// the control plane), the kind of token (always the projected one), the Go runtime's memory.
const NOT_OURS: [&str; 3] = ["PILOT_CERT_PROVIDER", "JWT_POLICY", "GOMEMLIMIT"];
/// Annotations whose text names what was added.
const STATUS: &str = "sidecar.istio.io/status";

fn yaml(text: &str) -> Vec<Value> {
    weft_model::yaml_documents(text).expect("YAML")
}

/// Settings behind each golden, from the test that wrote them.
fn mesh(name: &str) -> MeshSettings {
    let mut mesh = MeshSettings { image: "proxy:1".into(), ..MeshSettings::default() };
    if name == "format-duration" {
        mesh.proxy_config = json!({"drainDuration": "23s"});
    }
    mesh
}

fn template(object: &Value) -> &Value {
    let at = if object["kind"] == "CronJob" {
        "/spec/jobTemplate/spec/template"
    } else {
        "/spec/template"
    };
    object.pointer(at).expect("a pod template")
}

fn container<'p>(pod: &'p Value, name: &str) -> &'p Value {
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {pod:#}"))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect()
}

/// Without what Go's types add or spell otherwise.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let kept = entries.iter().filter(|(key, value)| {
                (key.as_str() != "resources" || **value != json!({})) && !value.is_null()
            });
            kept.map(|(key, value)| (key.clone(), plain(value))).collect()
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::String(text) if text == "4000m" => json!("4"),
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            // JSON in text: its spacing means nothing.
            Ok(inner @ (Value::Object(_) | Value::Array(_))) => inner,
            _ => json!(text.trim()),
        },
        other => other.clone(),
    }
}

fn without_status(annotations: &Value) -> Value {
    let mut annotations = plain(annotations);
    annotations.as_object_mut().expect("annotations").remove(STATUS);
    annotations
}

fn check_alike(name: &str, ours: &Value, theirs: &Value) {
    let (ours, theirs) = (template(ours), template(theirs));
    assert_eq!(plain(&ours["metadata"]["labels"]), plain(&theirs["metadata"]["labels"]), "{name}");
    let annotations = |pod: &Value| without_status(&pod["metadata"]["annotations"]);
    assert_eq!(annotations(ours), annotations(theirs), "{name}");
    let spec = |pod: &'_ Value, list: &str| pod["spec"][list].clone();
    assert_eq!(plain(&spec(ours, "containers")), plain(&spec(theirs, "containers")), "{name}");
    let lists = |pod: &Value| {
        names(&pod["spec"]["initContainers"]).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lists(ours), lists(theirs), "{name}");

    let args = |pod: &Value| plain(&container(pod, "istio-init")["args"]);
    let (our_args, their_args) = (args(ours), args(theirs));
    let (our_args, their_args) =
        (our_args.as_array().expect("a list"), their_args.as_array().expect("a list"));
    // Programs and logging are each one's own.
    assert_eq!(our_args[1..], their_args[1..their_args.len() - 1], "{name}");
    let security = |pod: &Value, of| container(pod, of)["securityContext"].clone();
    for of in ["istio-init", "istio-proxy"] {
        assert_eq!(security(ours, of), security(theirs, of), "{name} {of}");
        let resources = |pod| plain(&container(pod, of)["resources"]);
        assert_eq!(resources(ours), resources(theirs), "{name} {of}");
    }
    let (our_proxy, their_proxy) =
        (container(ours, "istio-proxy"), container(theirs, "istio-proxy"));
    for key in ["ports", "startupProbe", "restartPolicy"] {
        assert_eq!(our_proxy[key], their_proxy[key], "{name} {key}");
    }
    // What a former injection had there is the author's to Istio, and ours to replace.
    if name != "merge-probers" {
        assert_eq!(our_proxy["readinessProbe"], their_proxy["readinessProbe"], "{name}");
    }
    check_variables(name, &our_proxy["env"], &their_proxy["env"]);
    let volumes = theirs["spec"]["volumes"].as_array().expect("a list");
    for volume in ours["spec"]["volumes"].as_array().expect("a list") {
        let same = volumes.iter().find(|one| one["name"] == volume["name"]);
        assert_eq!(Some(volume), same, "{name}");
    }
}

fn check_variables(name: &str, ours: &Value, theirs: &Value) {
    for variable in theirs.as_array().expect("a list") {
        let known = variable["name"].as_str().expect("a name");
        if NOT_OURS.contains(&known) {
            continue;
        }
        // Istio takes what a former injection wrote there for the author's; ours knows the new container.
        let stale = ["ISTIO_META_POD_PORTS", "ISTIO_META_APP_CONTAINERS"];
        if name == "merge-probers" && stale.contains(&known) {
            continue;
        }
        let same = ours.as_array().expect("a list").iter().find(|one| one["name"] == known);
        let same = same.unwrap_or_else(|| panic!("{name}: no variable {known}"));
        if known != "CA_ADDR" {
            assert_eq!(plain(same), plain(variable), "{name} {known}");
        }
    }
}

#[test]
fn pods_come_out_as_istios() {
    let Some(data) = weft_testkit::peer::data("pods_come_out_as_istios") else { return };
    let mut checked = 0;
    for file in std::fs::read_dir(data.join("inject")).expect("a readable folder") {
        let path = file.expect("a readable folder").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        // This one is of Istio's network plug-in, which we have not: the container `istio-init`
        // writes the rules there too.
        if path.extension().is_some_and(|end| end != "yaml")
            || name == "hello-existing-cncf-networks"
        {
            continue;
        }
        let read = |path: &std::path::Path| yaml(&std::fs::read_to_string(path).expect("readable"));
        let theirs = read(&path.with_extension("yaml.injected"));
        for (mut object, theirs) in read(&path).into_iter().zip(theirs) {
            if name == "status_params" {
                let annotations = json!({
                    "status.sidecar.istio.io/port": "123",
                    "readiness.status.sidecar.istio.io/initialDelaySeconds": "100",
                    "readiness.status.sidecar.istio.io/periodSeconds": "200",
                    "readiness.status.sidecar.istio.io/failureThreshold": "300",
                });
                object["spec"]["template"]["metadata"]["annotations"] = annotations;
            }
            let mut theirs = theirs;
            if theirs["kind"] == "CronJob" {
                // Istio labels the Job, of which its pods know nothing; ours are on the pods.
                let job = theirs["spec"]["jobTemplate"]["metadata"].take();
                theirs["spec"]["jobTemplate"]["spec"]["template"]["metadata"] = job;
            }
            let mesh = mesh(&name);
            assert_eq!(inject_object(&mut object, &mesh), Ok(Some(Outcome::Injected)), "{name}");
            let once = object.clone();
            let mut shown = object.clone();
            if name == "status_params" {
                let annotations = &mut shown["spec"]["template"]["metadata"]["annotations"];
                annotations
                    .as_object_mut()
                    .expect("some")
                    .retain(|key, _| !key.contains("status.sidecar.istio.io/"));
                // Istio's test told its parts different ports.
                annotations["prometheus.io/port"] = json!("15020");
            }
            check_alike(&name, &shown, &theirs);
            // Again: nothing changes, not even an order.
            assert_eq!(inject_object(&mut object, &mesh), Ok(Some(Outcome::Injected)), "{name}");
            assert_eq!(object.to_string(), once.to_string(), "{name}");
            // And what is printed reads back the same.
            assert_eq!(yaml(&weft_model::to_yaml(std::slice::from_ref(&once))), [once], "{name}");
            checked += 1;
        }
    }
    assert!(checked >= 11, "only {checked}");
}

fn pod(text: &str) -> Value {
    let mut pod = yaml(text).remove(0);
    pod["kind"] = json!("Pod");
    if pod["spec"].is_null() {
        pod["spec"] = json!({"containers": [{"name": "app", "image": "app:1"}]});
    }
    pod
}

#[test]
fn namespace_and_pod_decide_together() {
    let namespaces = [
        ("none", None, None),
        ("enabled", Some("enabled"), None),
        ("disabled", Some("disabled"), None),
        ("rev", None, Some("canary")),
        ("both", Some("enabled"), Some("canary")),
    ];
    let pods = [
        ("silent", json!({})),
        ("yes", json!({"sidecar.istio.io/inject": "true"})),
        ("no", json!({"sidecar.istio.io/inject": "false"})),
        ("canary", json!({"istio.io/rev": "canary"})),
    ];
    let selected = |revision: &str| {
        let mut all = Vec::new();
        for (namespace, injection, rev) in &namespaces {
            let labels = NamespaceLabels {
                injection: injection.map(str::to_owned),
                revision: rev.map(str::to_owned),
            };
            for (pod, pod_labels) in &pods {
                if is_selected(&labels, pod_labels, revision) {
                    all.push(format!("{namespace}/{pod}"));
                }
            }
        }
        all.join(" ")
    };
    assert_eq!(
        selected("default"),
        "none/yes enabled/silent enabled/yes enabled/canary both/silent both/yes both/canary"
    );
    assert_eq!(selected("canary"), "none/canary rev/silent rev/yes rev/canary");
}

#[test]
fn the_pod_has_the_last_word() {
    let outcome = |text: &str, by_default: bool| {
        let mesh = MeshSettings { by_default, ..MeshSettings::default() };
        let (mut pod, before) = (pod(text), pod(text));
        let outcome = inject_object(&mut pod, &mesh).expect("a good pod").expect("a pod");
        assert_eq!(outcome == Outcome::Injected, pod != before, "{text}");
        outcome
    };
    let says = |what: &str, value: &str| {
        format!("metadata: {{name: a, {what}: {{sidecar.istio.io/inject: \"{value}\"}}}}")
    };
    for (text, by_default, expect) in [
        ("metadata: {name: a}".to_owned(), true, Outcome::Injected),
        ("metadata: {name: a}".to_owned(), false, Outcome::Skipped(Reason::NotByDefault)),
        (says("labels", "true"), false, Outcome::Injected),
        (says("annotations", "true"), false, Outcome::Injected),
        (says("labels", "false"), true, Outcome::Skipped(Reason::PodSaysNo)),
        (says("annotations", "false"), true, Outcome::Skipped(Reason::PodSaysNo)),
        (says("labels", "maybe"), true, Outcome::Skipped(Reason::PodSaysNo)),
        ("metadata: {name: a, namespace: kube-system}".to_owned(), true,
         Outcome::Skipped(Reason::SystemNamespace)),
        ("metadata: {name: a, labels: {sidecar.istio.io/inject: \"true\"}}\nspec: {hostNetwork: true, containers: []}".to_owned(), true,
         Outcome::Skipped(Reason::HostNetwork)),
    ] {
        assert_eq!(outcome(&text, by_default), expect, "{text} {by_default}");
    }
}

fn injected(text: &str, mesh: &MeshSettings) -> Value {
    let mut pod = pod(text);
    assert_eq!(inject_object(&mut pod, mesh), Ok(Some(Outcome::Injected)));
    let mut again = pod.clone();
    assert_eq!(inject_object(&mut again, mesh), Ok(Some(Outcome::Injected)));
    assert_eq!(again.to_string(), pod.to_string(), "a second injection changes nothing");
    pod
}

fn annotated(annotations: &str) -> String {
    format!("metadata: {{name: a, annotations: {{{annotations}}}}}")
}

#[test]
fn annotations_change_what_is_added() {
    let mesh = MeshSettings { native_sidecars: false, ..MeshSettings::default() };
    let proxy = |annotations: &str| {
        container(&injected(&annotated(annotations), &mesh), "istio-proxy").clone()
    };
    assert_eq!(proxy("sidecar.istio.io/proxyImage: own:2")["image"], "own:2");
    let resources = proxy("sidecar.istio.io/proxyMemoryLimit: 64Mi")["resources"].clone();
    assert_eq!(resources, json!({"limits": {"memory": "64Mi"}}));
    let args = proxy("sidecar.istio.io/logLevel: debug")["args"].to_string();
    assert!(args.contains("--log-level=debug"), "{args}");
    let tproxy = proxy("sidecar.istio.io/interceptionMode: TPROXY");
    assert_eq!(tproxy["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    assert!(tproxy["env"].to_string().contains("TPROXY"));
    let native = injected(&annotated("sidecar.istio.io/nativeSidecar: \"true\""), &mesh);
    assert_eq!(names(&native["spec"]["initContainers"]), ["istio-init", "istio-proxy"]);
    assert_eq!(names(&native["spec"]["containers"]), ["app"]);
    // No capture, no rules.
    let none = injected(&annotated("sidecar.istio.io/interceptionMode: NONE"), &mesh);
    assert_eq!(none["spec"]["initContainers"], Value::Null);
    // The application waits: the proxy is first and Kubernetes waits for its hook.
    let config =
        "proxy.istio.io/config: \"holdApplicationUntilProxyStarts: true\\nconcurrency: 3\"";
    let held = injected(&annotated(config), &mesh);
    assert_eq!(names(&held["spec"]["containers"]), ["istio-proxy", "app"]);
    let proxy = container(&held, "istio-proxy");
    assert_eq!(proxy["lifecycle"]["postStart"]["exec"]["command"], json!(["weft", "wait"]));
    assert!(proxy["args"].to_string().contains("--concurrency=3"));
    let volumes = injected(
        &annotated(
            "sidecar.istio.io/userVolume: '{\"x\": {\"emptyDir\": {}}}', \
             sidecar.istio.io/userVolumeMount: '{\"x\": {\"mountPath\": \"/x\"}}'",
        ),
        &mesh,
    );
    assert!(names(&volumes["spec"]["volumes"]).contains(&"x"));
    let mounts = &container(&volumes, "istio-proxy")["volumeMounts"];
    assert!(mounts.to_string().contains(r#"{"mountPath":"/x","name":"x"}"#), "{mounts}");
}

#[test]
fn wrong_annotations_are_refused_with_their_name() {
    for (annotation, why) in [
        ("traffic.sidecar.istio.io/includeInboundPorts: http", "is no port"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0/8", "is no address range"),
        ("traffic.sidecar.istio.io/excludeInterfaces: a/b", "is no name of a network interface"),
        ("sidecar.istio.io/interceptionMode: MIRROR", "is none of REDIRECT"),
        ("sidecar.istio.io/nativeSidecar: maybe", "neither true nor false"),
        ("status.sidecar.istio.io/port: \"70000\"", "is no port"),
        ("proxy.istio.io/config: \"a: [\"", "line 1"),
        ("sidecar.istio.io/userVolume: '[]'", "no JSON object"),
        ("inject.istio.io/templates: other", "there is no template \"other\""),
    ] {
        let mut pod = pod(&annotated(annotation));
        let before = pod.clone();
        let error = inject_object(&mut pod, &MeshSettings::default()).expect_err(annotation);
        let text = error.to_string();
        assert!(text.contains(why), "{annotation}: {text}");
        assert!(text.contains(annotation.split(':').next().expect("a name")), "{text}");
        assert_eq!(pod, before, "a refused pod is as it was");
    }
}

#[test]
fn the_authors_own_container_wins() {
    let text = "
metadata: {name: a}
spec:
  containers:
  - {name: app, image: app:1}
  - name: istio-proxy
    image: auto
    resources: {requests: {cpu: 7}}
    env: [{name: OWN, value: x}]
";
    for native_sidecars in [false, true] {
        let mesh = MeshSettings { native_sidecars, ..MeshSettings::default() };
        let pod = injected(text, &mesh);
        let proxy = container(&pod, "istio-proxy");
        assert_eq!(proxy["image"], json!(mesh.image));
        assert_eq!(proxy["resources"]["requests"], json!({"cpu": 7, "memory": "128Mi"}));
        assert!(
            names(&proxy["env"]).contains(&"OWN") && names(&proxy["env"]).contains(&"POD_NAME")
        );
        assert_eq!(names(&pod["spec"]["containers"]).len(), if native_sidecars { 1 } else { 2 });
    }
}

#[test]
fn templates_are_added_and_replaced() {
    let mut mesh = MeshSettings::default();
    let own = yaml("metadata: {annotations: {own/of: \"${workload}\"}}\nspec: {containers: [{name: istio-proxy, env: [{name: OWN, value: \"ns ${namespace}\"}]}]}").remove(0);
    mesh.templates.insert("own".into(), own);
    let pod = injected(&annotated("inject.istio.io/templates: \"sidecar,own\""), &mesh);
    assert_eq!(pod["metadata"]["annotations"]["own/of"], "a");
    assert!(container(&pod, "istio-proxy")["env"].to_string().contains("ns default"));
    mesh.templates
        .insert("sidecar".into(), json!({"spec": {"containers": [{"name": "${nothing}"}]}}));
    let error = inject_object(&mut simple(), &mesh).expect_err("an unknown name").to_string();
    assert!(error.contains("template sidecar: ${nothing} is unknown; known are image"), "{error}");
}

fn simple() -> Value {
    pod("metadata: {name: a}")
}

#[test]
fn probes_of_every_kind_are_turned() {
    let text = "
metadata: {name: a}
spec:
  containers:
  - name: app
    ports: [{name: web, containerPort: 8080}]
    livenessProbe: {httpGet: {path: /live, port: web, scheme: HTTPS}, timeoutSeconds: 7, periodSeconds: 3}
    readinessProbe: {tcpSocket: {port: 9}}
    startupProbe: {grpc: {port: 5, service: s}}
  - name: other
    livenessProbe: {exec: {command: [\"true\"]}}
    readinessProbe: {httpGet: {host: example.com, port: 80}}
    startupProbe: {httpGet: {port: unknown}}
";
    let mesh = MeshSettings::default();
    let pod = injected(text, &mesh);
    let app = container(&pod, "app");
    let turned = json!({"timeoutSeconds": 7, "periodSeconds": 3, "httpGet": {"path": "/app-health/app/livez", "port": 15020}});
    assert_eq!(app["livenessProbe"], turned);
    let other = container(&pod, "other");
    assert_eq!(other, &yaml(text)[0]["spec"]["containers"][1], "not ours to turn");
    let variables = container(&pod, "istio-proxy")["env"].as_array().expect("a list");
    let probers = variables.iter().find(|one| one["name"] == "ISTIO_KUBE_APP_PROBERS");
    let probers = probers.and_then(|one| one["value"].as_str()).expect("text");
    assert_eq!(
        serde_json::from_str::<Value>(probers).expect("JSON"),
        json!({
            "/app-health/app/livez": {"httpGet": {"path": "/live", "port": 8080, "scheme": "HTTPS"}, "timeoutSeconds": 7},
            "/app-health/app/readyz": {"tcpSocket": {"port": 9}},
            "/app-health/app/startupz": {"grpc": {"port": 5, "service": "s"}},
        })
    );
    let mut untouched = unturned(text);
    inject_object(&mut untouched, &mesh).expect("a good pod");
    assert_eq!(container(&untouched, "app")["readinessProbe"], json!({"tcpSocket": {"port": 9}}));
}

fn unturned(text: &str) -> Value {
    let mut pod = pod(text);
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/rewriteAppHTTPProbers": "false"});
    pod
}

#[test]
fn owners_are_found_behind_what_made_the_pod() {
    let owner = |owner: &str, hash: &str| {
        let text = format!(
            "metadata: {{name: p, labels: {{pod-template-hash: \"{hash}\"}}, ownerReferences: [{{controller: true, {owner}}}]}}"
        );
        let owner = inject::pod_owner(&pod(&text)).expect("an owner");
        format!("{} {} {}", owner.api_version, owner.kind, owner.name)
    };
    let set = "apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4";
    assert_eq!(owner(set, "5d4"), "apps/v1 Deployment web");
    assert_eq!(owner(set, "other"), "apps/v1 ReplicaSet web-5d4");
    let job = "apiVersion: batch/v1, kind: Job, name: tidy-29012345";
    assert_eq!(owner(job, ""), "batch/v1 CronJob tidy");
    let alone = inject::pod_owner(&pod("metadata: {name: p}")).expect("itself");
    assert_eq!((alone.kind.as_str(), alone.name.as_str()), ("Pod", "p"));
}

/// RFC 6902, as far as our patches use it.
fn apply(patch: &Value, to: &mut Value) {
    for operation in patch.as_array().expect("a list") {
        let path = operation["path"].as_str().expect("a path");
        let Some((parent, key)) = path.rsplit_once('/') else {
            *to = operation["value"].clone();
            continue;
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        let parent = to.pointer_mut(parent).expect("a place").as_object_mut().expect("an object");
        match operation["op"].as_str() {
            Some("remove") => drop(parent.remove(&key).expect("it was there")),
            Some("add") => assert_eq!(parent.insert(key, operation["value"].clone()), None),
            Some("replace") => assert!(parent.insert(key, operation["value"].clone()).is_some()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_patch_makes_the_pod() {
    let (mut before, mut after) = (simple(), simple());
    inject_object(&mut after, &MeshSettings::default()).expect("a good pod");
    let patch = json_patch(&before, &after);
    apply(&patch, &mut before);
    assert_eq!(before, after);
    assert_eq!(json_patch(&after, &after), json!([]));
    let patch = json_patch(&json!({"a/b": 1, "c~d": {"e": 1}}), &json!({"c~d": {"e": 2}}));
    assert_eq!(
        patch,
        json!([{"op": "remove", "path": "/a~1b"}, {"op": "replace", "path": "/c~0d/e", "value": 2}])
    );
}

/// docs/injection.md names every annotation.
#[test]
fn annotations_are_documented() {
    let page = include_str!("../../../docs/injection.md");
    for setting in Setting::ALL {
        assert!(
            page.contains(&format!("`{}`", setting.name)),
            "{} ({})",
            setting.name,
            setting.help
        );
    }
}

#[test]
fn metrics_of_the_application_come_through_the_status_port() {
    let text = "
metadata:
  annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '8080', prometheus.io/path: /stats, sidecar.istio.io/statsHistogramBuckets: '{\"istiocustom\": [1, 5]}'}
";
    let mesh = MeshSettings::default();
    let pod = injected(text, &mesh);
    let variable = |pod: &Value, name: &str| {
        let variables = container(pod, "istio-proxy")["env"].as_array().expect("a list").clone();
        variables.into_iter().find(|one| one["name"] == name).map(|one| one["value"].clone())
    };
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], "15020");
    assert_eq!(annotations["prometheus.io/path"], "/stats/prometheus");
    let told = variable(&pod, "ISTIO_PROMETHEUS_ANNOTATIONS").expect("the variable");
    assert_eq!(told, r#"{"path":"/stats","port":"8080","scrape":"true"}"#);
    let buckets = variable(&pod, "ISTIO_STATS_HISTOGRAM_BUCKETS");
    assert_eq!(buckets, Some(json!("{\"istiocustom\": [1, 5]}")));
    // Again: what the author said is not forgotten.
    let mut again = pod.clone();
    inject_object(&mut again, &mesh).expect("a good pod");
    assert_eq!(again, pod);

    let off = text.replace(
        "{prometheus.io/scrape",
        "{prometheus.istio.io/merge-metrics: 'false', prometheus.io/scrape",
    );
    let pod = injected(&off, &mesh);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], "8080");
    assert_eq!(variable(&pod, "ISTIO_PROMETHEUS_ANNOTATIONS"), None);
    let silent = injected("metadata: {}", &mesh);
    assert_eq!(variable(&silent, "ISTIO_PROMETHEUS_ANNOTATIONS"), None);
    assert_eq!(silent["metadata"]["annotations"]["prometheus.io/port"], "15020");
}
