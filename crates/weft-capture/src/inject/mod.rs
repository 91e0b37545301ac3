//! What injection adds to a pod: capture rules before it starts, a proxy beside it, and what both
//! need. A pure function of the pod and the settings of the mesh, the same for the webhook and the
//! command line; a pod that is injected again comes out the same.
//!
//! ```text
//! pod ─ decide ─ settings (annotations) ─ probes ─ template ─ merge ─ pod
//! ```
//! Must not know Kubernetes' API or who asks.

mod decide;
mod diff;
mod probes;
mod settings;
mod template;

use serde_json::{Map, Value, json};

pub use decide::{NamespaceLabels, Reason, is_selected};
pub use diff::json_patch;
pub use settings::Setting;

/// Name of the proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Says that a pod was injected, and with what.
const STATUS: &str = "sidecar.istio.io/status";
/// What the pod's author wrote into our containers; kept so that a second injection knows.
const OVERRIDES: &str = "proxy.istio.io/overrides";

/// Settings of the mesh that injection follows.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshSettings {
    /// Image with `weft` as its entry point.
    pub image: String,
    /// `imagePullPolicy`; the cluster's own if empty.
    pub image_pull_policy: String,
    /// Of this control plane.
    pub revision: String,
    /// Control plane and certificate authority, over TLS.
    pub discovery_address: String,
    /// First part of SPIFFE ids.
    pub trust_domain: String,
    /// Name of the cluster.
    pub cluster_id: String,
    /// Whether pods that say nothing are injected once they are asked about.
    pub by_default: bool,
    /// Whether the cluster has native sidecars (Kubernetes 1.29) and they are wanted.
    pub native_sidecars: bool,
    /// Whether HTTP, TCP and gRPC probes go through the proxy's status port.
    pub rewrite_probes: bool,
    /// Whether the status port also has the metrics of applications that ask to be scraped.
    pub merge_metrics: bool,
    /// Mesh-wide ProxyConfig, in JSON form.
    pub proxy_config: Value,
    /// Templates by name; `sidecar` is ours unless replaced.
    pub templates: Map<String, Value>,
}

impl Default for MeshSettings {
    fn default() -> MeshSettings {
        let mut templates = Map::new();
        templates.insert("sidecar".into(), template::sidecar());
        MeshSettings {
            image: concat!("weft:", env!("CARGO_PKG_VERSION")).into(),
            image_pull_policy: String::new(),
            revision: "default".into(),
            discovery_address: "istiod.istio-system.svc:15012".into(),
            trust_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            by_default: true,
            native_sidecars: true,
            rewrite_probes: true,
            merge_metrics: true,
            proxy_config: json!({}),
            templates,
        }
    }
}

/// Who made the pod: what telemetry calls the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `Deployment`.
    pub kind: String,
    /// `apps/v1`.
    pub api_version: String,
    /// Its name.
    pub name: String,
}

/// What came of an injection.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The pod was changed (or is as a former injection left it).
    Injected,
    /// It was left alone.
    Skipped(Reason),
}

/// A pod that asks for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// An annotation's value.
    #[error("annotation {name}: {why}")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// What is wrong, with what would be right.
        why: String,
    },
    /// No such template.
    #[error("annotation inject.istio.io/templates: there is no template {0:?}")]
    NoTemplate(String),
    /// A template that says what no pod has.
    #[error("template {name}: {why}")]
    Template {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Not a pod.
    #[error("{0}")]
    Shape(&'static str),
}

/// Injects a pod, or the template of pods (`metadata` and `spec`), in place.
pub fn inject_pod(
    pod: &mut Value,
    namespace: &str,
    owner: Option<&Owner>,
    mesh: &MeshSettings,
) -> Result<Outcome, InjectError> {
    if let Err(reason) = decide::wanted(pod, namespace, mesh) {
        return Ok(Outcome::Skipped(reason));
    }
    let former = Former::take_out(pod);
    let settings = settings::read(pod, namespace, owner, mesh, former.metrics)?;
    let probes = probes::rewrite(pod, &settings, former.probes);
    let mut ours = template::fill(&settings, &probes, mesh)?;
    let overrides = take_overrides(pod, &ours).or(former.overrides);
    let names = Names::of(&ours);
    settings::annotate(pod, &settings);
    if settings.native {
        template::to_native(&mut ours);
    }
    template::merge_pod(pod, ours, settings.hold_application && !settings.native)?;
    if let Some(overrides) = &overrides {
        template::merge_overrides(pod, overrides);
        let text = Value::String(text_of(overrides));
        *entry(pod, &["metadata", "annotations"], OVERRIDES) = text;
    }
    let status = names.status(&settings);
    *entry(pod, &["metadata", "annotations"], STATUS) = Value::String(status.to_string());
    Ok(Outcome::Injected)
}

/// Injects what holds pods: Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController,
/// Job, CronJob, Pod, List. Nothing for other kinds.
pub fn inject_object(
    object: &mut Value,
    mesh: &MeshSettings,
) -> Result<Option<Outcome>, InjectError> {
    let text = |value: &Value, at: &str| {
        value.pointer(at).and_then(Value::as_str).unwrap_or("").to_owned()
    };
    let kind = text(object, "/kind");
    if kind == "List" {
        let mut last = None;
        for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            last = inject_object(item, mesh)?.or(last);
        }
        return Ok(last);
    }
    let owner = Owner {
        api_version: text(object, "/apiVersion"),
        name: text(object, "/metadata/name"),
        kind: kind.clone(),
    };
    let namespace = match text(object, "/metadata/namespace") {
        none if none.is_empty() => "default".to_owned(),
        namespace => namespace,
    };
    let at = match kind.as_str() {
        "Pod" => "",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => "/spec/template",
        _ => return Ok(None),
    };
    let Some(pod) = object.pointer_mut(at) else { return Ok(None) };
    let owner = if kind == "Pod" { pod_owner(pod) } else { Some(owner) };
    inject_pod(pod, &namespace, owner.as_ref(), mesh).map(Some)
}

/// Who made a pod that exists: its controller, and of a Deployment's ReplicaSet the Deployment,
/// of a CronJob's Job the CronJob.
pub fn pod_owner(pod: &Value) -> Option<Owner> {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let controller = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
    let Some(controller) = controller else {
        let name = pod.pointer("/metadata/name").and_then(Value::as_str)?;
        return Some(Owner { kind: "Pod".into(), api_version: "v1".into(), name: name.into() });
    };
    let text = |key: &str| controller[key].as_str().unwrap_or_default().to_owned();
    let (mut kind, api_version, mut name) = (text("kind"), text("apiVersion"), text("name"));
    let hash = pod.pointer("/metadata/labels/pod-template-hash").and_then(Value::as_str);
    if let (Some(hash), "ReplicaSet") = (hash, kind.as_str())
        && let Some(of) = name.strip_suffix(&format!("-{hash}"))
    {
        (kind, name) = ("Deployment".into(), of.into());
    } else if kind == "Job"
        && let Some((of, minutes)) = name.rsplit_once('-')
        && minutes.len() >= 8
        && minutes.bytes().all(|byte| byte.is_ascii_digit())
    {
        // As CronJobs name them: the time in minutes.
        (kind, name) = ("CronJob".into(), of.into());
    }
    Some(Owner { kind, api_version, name })
}

/// What a former injection left, taken out of the pod again.
#[derive(Default)]
struct Former {
    probes: Map<String, Value>,
    metrics: Option<String>,
    overrides: Option<Value>,
}

impl Former {
    fn take_out(pod: &mut Value) -> Former {
        let annotation = |pod: &Value, name: &str| {
            let value = pod.pointer("/metadata/annotations").and_then(|all| all.get(name));
            value.and_then(Value::as_str).and_then(|text| serde_json::from_str::<Value>(text).ok())
        };
        let Some(status) = annotation(pod, STATUS) else { return Former::default() };
        let overrides = annotation(pod, OVERRIDES);
        let metrics = probes::variable(pod, probes::METRICS).map(str::to_owned);
        let former = Former { probes: probes::former(pod), metrics, overrides };
        for (list, at) in [
            ("initContainers", "/spec/initContainers"),
            ("containers", "/spec/containers"),
            ("volumes", "/spec/volumes"),
            ("imagePullSecrets", "/spec/imagePullSecrets"),
        ] {
            let names = status[list].as_array().cloned().unwrap_or_default();
            let Some(items) = pod.pointer_mut(at).and_then(Value::as_array_mut) else { continue };
            items.retain(|item| !names.contains(&item["name"]));
            if items.is_empty()
                && list != "containers"
                && let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut)
            {
                spec.shift_remove(list);
            }
        }
        former
    }
}

/// The pod's own say on our containers, cut out of it: what it names there wins.
fn take_overrides(pod: &mut Value, ours: &Value) -> Option<Value> {
    let mut taken = Map::new();
    for list in ["containers", "initContainers"] {
        let names: Vec<Value> = names_in(ours, "containers")
            .chain(names_in(ours, "initContainers"))
            .map(Value::String)
            .collect();
        let at = format!("/spec/{list}");
        let Some(items) = pod.pointer_mut(&at).and_then(Value::as_array_mut) else { continue };
        let (own, rest): (Vec<Value>, Vec<Value>) =
            items.drain(..).partition(|item| names.contains(&item["name"]));
        *items = rest;
        if !own.is_empty() {
            taken.insert(list.into(), Value::Array(own));
        }
    }
    (!taken.is_empty()).then_some(Value::Object(taken))
}

fn names_in<'v>(pod: &'v Value, list: &str) -> impl Iterator<Item = String> + use<'v> {
    let items = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
    let name = |item: &Value| item["name"].as_str().map(str::to_owned);
    items.into_iter().flatten().filter_map(name)
}

/// What we add, by name.
struct Names {
    init_containers: Vec<String>,
    containers: Vec<String>,
    volumes: Vec<String>,
    pull_secrets: Vec<String>,
}

impl Names {
    fn of(ours: &Value) -> Names {
        Names {
            init_containers: names_in(ours, "initContainers").collect(),
            containers: names_in(ours, "containers").collect(),
            volumes: names_in(ours, "volumes").collect(),
            pull_secrets: names_in(ours, "imagePullSecrets").collect(),
        }
    }

    fn status(mut self, settings: &settings::Settings) -> Value {
        if settings.native {
            self.init_containers.append(&mut self.containers);
        }
        let list = |names: Vec<String>| if names.is_empty() { Value::Null } else { json!(names) };
        json!({
            "initContainers": list(self.init_containers),
            "containers": list(self.containers),
            "volumes": list(self.volumes),
            "imagePullSecrets": list(self.pull_secrets),
            "revision": settings.revision,
        })
    }
}

/// A value as text that does not depend on the order in which somebody wrote it.
fn text_of(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

/// A place in a tree of objects, made if it is not there.
fn entry<'v>(value: &'v mut Value, path: &[&str], key: &str) -> &'v mut Value {
    let mut here = value;
    for step in path.iter().chain([&key]) {
        if !here.is_object() {
            *here = Value::Object(Map::new());
        }
        let object = here.as_object_mut().expect("it was just made one");
        here = object.entry(*step).or_insert(Value::Null);
    }
    here
}
