//! Templates: what is added to a pod, as a piece of a pod with places to fill in, and how the piece
//! is laid over the pod. `sidecar.yaml` beside this file is ours; users may replace it or add others.
//!
//! `${name}` stands for a setting: alone in its scalar it may be any value, and nothing (then its
//! key or item is left out); inside other text it is text.

use serde_json::{Map, Value, json};

use super::settings::Settings;
use super::{InjectError, MeshSettings, PROXY_CONTAINER, probes, text_of};

const SIDECAR: &str = include_str!("sidecar.yaml");

/// Lists of a pod whose items are one thing by this key; other lists are replaced as a whole.
const MERGED: [(&str, &str); 10] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("ports", "containerPort"),
    ("imagePullSecrets", "name"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
];

/// The template we bring.
pub(super) fn sidecar() -> Value {
    let documents = weft_model::yaml_documents(SIDECAR).expect("our own template is YAML");
    documents.into_iter().next().expect("our own template is not empty")
}

/// All of a pod's templates, filled in and laid over each other.
pub(super) fn fill(
    settings: &Settings,
    probes: &Map<String, Value>,
    mesh: &MeshSettings,
) -> Result<Value, InjectError> {
    let values = values(settings, probes, mesh);
    let mut all = Value::Object(Map::new());
    for name in &settings.templates {
        let template = mesh.templates.get(name);
        let mut piece = template.ok_or_else(|| InjectError::NoTemplate(name.clone()))?.clone();
        let wrong = |why: String| InjectError::Template { name: name.clone(), why };
        fill_in(&mut piece, &values).map_err(wrong)?;
        if !piece.is_object() {
            return Err(wrong("is no object with metadata or spec".into()));
        }
        merge(&mut all, &piece);
    }
    Ok(all)
}

/// What `${…}` may name.
fn values(
    settings: &Settings,
    probes: &Map<String, Value>,
    mesh: &MeshSettings,
) -> Map<String, Value> {
    let tproxy = settings.interception == Some("TPROXY");
    let mut values = Map::new();
    let mut set = |name: &str, value: Value| values.insert(name.to_owned(), value);
    let some = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    set("image", json!(settings.image));
    set("imagePullPolicy", some(&mesh.image_pull_policy));
    set("initArgs", json!([&["init".to_owned()], &settings.init_flags[..]].concat()));
    set(
        "initContainer",
        if settings.interception.is_some() { json!("istio-init") } else { Value::Null },
    );
    set("interceptionMode", json!(settings.interception.unwrap_or("NONE")));
    set("resources", settings.resources.clone());
    set("logLevel", json!(settings.log_level));
    set("statusPort", json!(settings.status_port));
    set("discoveryAddress", {
        let own = settings.proxy_config["discoveryAddress"].as_str();
        json!(own.unwrap_or(&mesh.discovery_address))
    });
    set("caAddress", json!(mesh.discovery_address));
    set("trustDomain", json!(mesh.trust_domain));
    set("clusterId", json!(mesh.cluster_id));
    set("namespace", json!(settings.namespace));
    set("workload", some(&settings.workload));
    set(
        "owner",
        settings.owner.as_ref().map_or(Value::Null, |owner| json!(owner_uri(settings, owner))),
    );
    set("appContainers", some(&settings.containers.join(",")));
    set("podPorts", json!(text_of(&Value::Array(settings.pod_ports.clone()))));
    set("proxyConfig", json!(text_of(&settings.proxy_config)));
    set("revision", json!(settings.revision));
    let [delay, period, failures] = settings.readiness;
    set("readinessInitialDelaySeconds", if delay == 0 { Value::Null } else { json!(delay) });
    set("readinessPeriodSeconds", json!(period));
    set("readinessFailureThreshold", json!(failures));
    let probes = if probes.is_empty() { Value::Null } else { json!(text_of(&json!(probes))) };
    set("appProbersVariable", if probes.is_null() { Value::Null } else { json!(probes::VARIABLE) });
    set("appProbers", probes);
    // TPROXY: the proxy speaks from its clients' addresses.
    set("addCapabilities", if tproxy { json!(["NET_ADMIN"]) } else { Value::Null });
    set("allowPrivilegeEscalation", json!(tproxy));
    set("runAsNonRoot", json!(!tproxy));
    set("runAsUser", json!(if tproxy { 0 } else { 1337 }));
    set(
        "postStart",
        match settings.hold_application && !settings.native {
            true => json!({"exec": {"command": ["weft", "wait"]}}),
            false => Value::Null,
        },
    );
    // Kubernetes starts the application when this has passed.
    set(
        "startupProbe",
        match settings.native {
            true => json!({
                "failureThreshold": 600,
                "httpGet": {"path": "/healthz/ready", "port": 15021},
                "periodSeconds": 1,
                "timeoutSeconds": 3,
            }),
            false => Value::Null,
        },
    );
    let metrics = [
        (probes::METRICS, &settings.application_metrics),
        ("ISTIO_STATS_HISTOGRAM_BUCKETS", &settings.histogram_buckets),
    ];
    let said = metrics.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    set("metrics", said.map(|(name, value)| json!({"name": name, "value": value})).collect());
    let variables = variables(&settings.proxy_config);
    let has_variables = variables.as_array().is_some_and(|list| !list.is_empty());
    // `weft init` reads some of them, too.
    set("initEnv", if has_variables { variables.clone() } else { Value::Null });
    set("proxyMetadata", variables);
    set(
        "concurrency",
        settings.proxy_config["concurrency"]
            .as_u64()
            .filter(|n| *n > 0)
            .map_or(Value::Null, |number| json!(format!("--concurrency={number}"))),
    );
    set("userVolumes", named(&settings.user_volumes));
    set("userVolumeMounts", named(&settings.user_mounts));
    values
}

fn owner_uri(settings: &Settings, owner: &super::Owner) -> String {
    let (api, namespace) = (&owner.api_version, &settings.namespace);
    let kind = owner.kind.to_lowercase();
    format!("kubernetes://apis/{api}/namespaces/{namespace}/{kind}s/{}", owner.name)
}

/// `proxyMetadata`, as Istio has it: environment variables of the proxy.
fn variables(proxy_config: &Value) -> Value {
    let all = proxy_config["proxyMetadata"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    all.map(|(name, value)| json!({"name": name, "value": text(value)})).collect()
}

/// `{"name": {…}}` as items with a name.
fn named(items: &Map<String, Value>) -> Value {
    let item = |(name, item): (&String, &Value)| {
        let mut item = item.as_object().cloned().unwrap_or_default();
        item.insert("name".into(), json!(name));
        Value::Object(item)
    };
    items.iter().map(item).collect()
}

fn fill_in(value: &mut Value, values: &Map<String, Value>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            if let Some(filled) = filled(text, values)? {
                *value = filled;
            }
        }
        Value::Array(items) => {
            let mut kept = Vec::with_capacity(items.len());
            for mut item in items.drain(..) {
                let was_text = item.is_string();
                let had = |item: &Value| ["name", "value"].map(|key| item.get(key).is_some());
                let before = had(&item);
                fill_in(&mut item, values)?;
                match item {
                    // A list in the place of an item: its items.
                    Value::Array(many) if was_text => kept.extend(many),
                    Value::Null => {}
                    // What has lost its name, or a variable its value, is not there.
                    item if had(&item) != before => {}
                    item => kept.push(item),
                }
            }
            *items = kept;
        }
        Value::Object(entries) => {
            for entry in entries.values_mut() {
                fill_in(entry, values)?;
            }
            entries.retain(|_, entry| !entry.is_null());
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// The text with its places filled; nothing if it has none.
fn filled(text: &str, values: &Map<String, Value>) -> Result<Option<Value>, String> {
    let Some(start) = text.find("${") else { return Ok(None) };
    let find = |name: &str| {
        values
            .get(name)
            .ok_or_else(|| format!("${{{name}}} is unknown; known are {}", known(values)))
    };
    if start == 0
        && let Some(name) = text[2..].strip_suffix('}')
        && !name.contains('}')
    {
        return find(name).cloned().map(Some);
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) =
            after.split_once('}').ok_or_else(|| format!("{text:?} lacks a `}}`"))?;
        out.push_str(before);
        match find(name)? {
            Value::String(value) => out.push_str(value),
            Value::Null => {}
            other => out.push_str(&other.to_string()),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(Some(Value::String(out)))
}

fn known(values: &Map<String, Value>) -> String {
    values.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Makes the proxy a native sidecar: an init container that keeps running, after our own.
pub(super) fn to_native(ours: &mut Value) {
    let Some(spec) = ours.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let Some(Value::Array(containers)) = spec.get_mut("containers") else { return };
    let Some(at) = containers.iter().position(|one| one["name"] == PROXY_CONTAINER) else { return };
    let mut proxy = containers.remove(at);
    if containers.is_empty() {
        spec.shift_remove("containers");
    }
    proxy["restartPolicy"] = json!("Always");
    match spec.entry("initContainers").or_insert_with(|| json!([])) {
        Value::Array(list) => list.push(proxy),
        other => *other = json!([proxy]),
    }
}

/// Lays `ours` over the pod. Our init containers run first; the proxy's container stands first if
/// applications must wait for it: Kubernetes starts them in order.
pub(super) fn merge_pod(pod: &mut Value, mut ours: Value, first: bool) -> Result<(), InjectError> {
    let mut initial = Vec::new();
    if let Some(spec) = ours.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(Value::Array(containers)) = spec.shift_remove("initContainers")
    {
        initial = containers;
    }
    merge(pod, &ours);
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.ok_or(InjectError::Shape("no pod: it has no spec"))?;
    if !initial.is_empty() {
        match spec.entry("initContainers").or_insert_with(|| json!([])) {
            Value::Array(list) => drop(list.splice(0..0, initial)),
            other => *other = Value::Array(initial),
        }
    }
    if let (true, Some(Value::Array(containers))) = (first, spec.get_mut("containers"))
        && let Some(at) = containers.iter().position(|one| one["name"] == PROXY_CONTAINER)
    {
        containers[..=at].rotate_right(1);
    }
    Ok(())
}

/// What the pod's author said of our containers, wherever they stand now.
pub(super) fn merge_overrides(pod: &mut Value, overrides: &Value) {
    let own = |list: &str| overrides[list].as_array().cloned().unwrap_or_default();
    for container in own("containers").into_iter().chain(own("initContainers")) {
        for list in ["/spec/containers", "/spec/initContainers"] {
            let Some(items) = pod.pointer_mut(list).and_then(Value::as_array_mut) else { continue };
            let Some(ours) = items.iter_mut().find(|ours| ours["name"] == container["name"]) else {
                continue;
            };
            let image = ours["image"].clone();
            merge(ours, &container);
            // Kubernetes wants an image; `auto` is Istio's word for ours.
            if container["image"] == "auto" {
                ours["image"] = image;
            }
        }
    }
}

/// Lays one value over another: objects key by key, lists by [`MERGED`]; else what is above wins.
fn merge(below: &mut Value, above: &Value) {
    let (Some(below), Some(above)) = (below.as_object_mut(), above.as_object()) else {
        *below = above.clone();
        return;
    };
    for (key, value) in above {
        let identity = MERGED.iter().find(|(list, _)| list == key).map(|(_, identity)| *identity);
        match (below.get_mut(key), value, identity) {
            (Some(here @ Value::Object(_)), Value::Object(_), _) => merge(here, value),
            (Some(Value::Array(here)), Value::Array(items), Some(identity)) => {
                merge_list(here, items, identity);
            }
            _ => drop(below.insert(key.clone(), value.clone())),
        }
    }
}

fn merge_list(below: &mut Vec<Value>, above: &[Value], identity: &str) {
    for item in above {
        let same =
            |other: &&mut Value| !item[identity].is_null() && other[identity] == item[identity];
        match below.iter_mut().find(same) {
            Some(here) => merge(here, item),
            None => below.push(item.clone()),
        }
    }
}
