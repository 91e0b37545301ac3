//! What a pod's annotations, its ProxyConfig and the mesh say together. Owns names and bounds of
//! annotations; must not know the template.

use serde_json::{Map, Value, json};

use super::{InjectError, MeshSettings, Owner, entry};
use crate::spec::{PortSet, RangeSet, interfaces, ports, ranges};

/// An annotation that injection reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What it says, in a line.
    pub help: &'static str,
}

macro_rules! settings {
    ($($constant:ident = $name:literal, $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        impl Setting {
            /// Every annotation that injection reads; docs/injection.md has them all.
            pub const ALL: &'static [Setting] = &[$(Setting { name: $name, help: $help }),*];
        }
    };
}

settings! {
    PROXY_CONFIG = "proxy.istio.io/config", "ProxyConfig of this workload, YAML";
    TEMPLATES = "inject.istio.io/templates", "templates to apply, in order";
    PROXY_IMAGE = "sidecar.istio.io/proxyImage", "image of the proxy";
    CPU = "sidecar.istio.io/proxyCPU", "requested CPU of the proxy";
    CPU_LIMIT = "sidecar.istio.io/proxyCPULimit", "its CPU limit";
    MEMORY = "sidecar.istio.io/proxyMemory", "its requested memory";
    MEMORY_LIMIT = "sidecar.istio.io/proxyMemoryLimit", "its memory limit";
    LOG_LEVEL = "sidecar.istio.io/logLevel", "log level of the proxy";
    AGENT_LOG_LEVEL = "sidecar.istio.io/agentLogLevel", "the same, where that is not given";
    INTERCEPTION = "sidecar.istio.io/interceptionMode", "REDIRECT, TPROXY or NONE";
    NATIVE = "sidecar.istio.io/nativeSidecar", "whether the proxy is a native sidecar";
    REWRITE = "sidecar.istio.io/rewriteAppHTTPProbers", "whether probes go through the proxy";
    BUCKETS = "sidecar.istio.io/statsHistogramBuckets", "upper bounds of Istio's histograms, JSON";
    MERGE = "prometheus.istio.io/merge-metrics", "whether the status port has the application's metrics, too";
    USER_VOLUME = "sidecar.istio.io/userVolume", "volumes to add, JSON";
    USER_VOLUME_MOUNT = "sidecar.istio.io/userVolumeMount", "mounts of the proxy to add, JSON";
    STATUS_PORT = "status.sidecar.istio.io/port", "port of probes and merged metrics";
    READY_DELAY = "readiness.status.sidecar.istio.io/initialDelaySeconds", "of the proxy's readiness probe";
    READY_PERIOD = "readiness.status.sidecar.istio.io/periodSeconds", "of the proxy's readiness probe";
    READY_FAILURES = "readiness.status.sidecar.istio.io/failureThreshold", "of the proxy's readiness probe";
    IN_PORTS = "traffic.sidecar.istio.io/includeInboundPorts", "inbound ports to capture";
    NOT_IN_PORTS = "traffic.sidecar.istio.io/excludeInboundPorts", "inbound ports to leave alone";
    OUT_PORTS = "traffic.sidecar.istio.io/includeOutboundPorts", "outbound ports to capture whatever the destination";
    NOT_OUT_PORTS = "traffic.sidecar.istio.io/excludeOutboundPorts", "outbound ports to leave alone";
    OUT_RANGES = "traffic.sidecar.istio.io/includeOutboundIPRanges", "outbound destinations to capture";
    NOT_OUT_RANGES = "traffic.sidecar.istio.io/excludeOutboundIPRanges", "outbound destinations to leave alone";
    NOT_INTERFACES = "traffic.sidecar.istio.io/excludeInterfaces", "interfaces to leave alone";
    KUBEVIRT = "traffic.sidecar.istio.io/kubevirtInterfaces", "former name of the next";
    REROUTE = "istio.io/reroute-virtual-interfaces", "interfaces whose traffic counts as outbound";
}

/// Everything a template may ask.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub namespace: String,
    pub workload: String,
    pub owner: Option<Owner>,
    pub revision: String,
    pub image: String,
    pub templates: Vec<String>,
    pub interception: Option<&'static str>,
    pub native: bool,
    pub hold_application: bool,
    pub rewrite_probes: bool,
    pub status_port: u16,
    pub log_level: String,
    pub resources: Value,
    pub readiness: [u64; 3],
    pub proxy_config: Value,
    pub init_flags: Vec<String>,
    pub pod_ports: Vec<Value>,
    pub containers: Vec<String>,
    pub user_volumes: Map<String, Value>,
    pub user_mounts: Map<String, Value>,
    pub first_container: String,
    /// The author's `prometheus.io` annotations, JSON, where the status port takes their place.
    pub application_metrics: Option<String>,
    pub histogram_buckets: Option<String>,
    pub canonical: [String; 2],
}

struct Annotations<'p>(Option<&'p Map<String, Value>>);

impl<'p> Annotations<'p> {
    fn get(&self, name: &str) -> Option<&'p str> {
        self.0?.get(name)?.as_str()
    }

    fn checked<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, InjectError> {
        let wrong = |why: E| InjectError::Annotation { name, why: why.to_string() };
        self.get(name).map(parse).transpose().map_err(wrong)
    }

    fn flag(&self, name: &'static str) -> Result<Option<bool>, InjectError> {
        self.checked(name, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("{other:?} is neither true nor false")),
        })
    }

    fn number(&self, name: &'static str) -> Result<Option<u64>, InjectError> {
        self.checked(name, |text| text.parse().map_err(|_| format!("{text:?} is no number")))
    }
}

/// Istio's agent and proxy are one program here. The agent's scopes (`ads:debug,ca:info`) are not
/// ours; a level alone is.
fn log_level(annotations: &Annotations<'_>) -> String {
    let agent = || {
        let level = annotations.get(AGENT_LOG_LEVEL)?;
        let level = level.strip_prefix("default:").unwrap_or(level);
        ["error", "warn", "info", "debug"].into_iter().find(|known| *known == level)
    };
    let level = annotations.get(LOG_LEVEL).or_else(agent).unwrap_or("warn");
    level.replace("warning", "warn")
}

/// Reads a pod's settings.
pub(super) fn read(
    pod: &Value,
    namespace: &str,
    owner: Option<&Owner>,
    mesh: &MeshSettings,
    former_metrics: Option<String>,
) -> Result<Settings, InjectError> {
    if !pod.get("spec").is_some_and(Value::is_object) {
        return Err(InjectError::Shape("no pod: it has no spec"));
    }
    let of = |at: &str| pod.pointer(at).and_then(Value::as_object);
    let annotations = Annotations(of("/metadata/annotations"));
    let labels = of("/metadata/labels");
    let proxy_config = proxy_config(&annotations, mesh)?;
    let status_port = match annotations.number(STATUS_PORT)? {
        None => {
            u16::try_from(proxy_config["statusPort"].as_u64().unwrap_or(15020)).unwrap_or(15020)
        }
        Some(port) => u16::try_from(port).map_err(|_| InjectError::Annotation {
            name: STATUS_PORT,
            why: format!("{port} is no port"),
        })?,
    };
    let containers = application_containers(pod);
    let names = |one: &&Value| one["name"].as_str().map(str::to_owned);
    let names: Vec<String> = containers.iter().filter_map(names).collect();
    let label = |name: &str| labels.and_then(|all| all.get(name)).and_then(Value::as_str);
    let workload = owner.map(|owner| owner.name.clone()).unwrap_or_default();
    let name = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    let first = |keys: [&str; 3], default: &str| {
        keys.into_iter().find_map(label).unwrap_or(default).to_owned()
    };
    let interception = interception(&annotations, &proxy_config)?;
    let split = |text: &str| text.split(',').map(|name| name.trim().to_owned()).collect();
    Ok(Settings {
        namespace: namespace.to_owned(),
        canonical: [first(name, &workload), first(revision, "latest")],
        workload,
        owner: owner.cloned(),
        revision: mesh.revision.clone(),
        image: annotations.get(PROXY_IMAGE).unwrap_or(&mesh.image).to_owned(),
        templates: annotations.get(TEMPLATES).map_or_else(|| vec!["sidecar".into()], split),
        interception,
        native: annotations.flag(NATIVE)?.unwrap_or(mesh.native_sidecars),
        hold_application: proxy_config["holdApplicationUntilProxyStarts"] == true,
        rewrite_probes: status_port != 0
            && annotations.flag(REWRITE)?.unwrap_or(mesh.rewrite_probes),
        status_port,
        log_level: log_level(&annotations),
        resources: resources(&annotations),
        readiness: [
            annotations.number(READY_DELAY)?.unwrap_or(0),
            annotations.number(READY_PERIOD)?.unwrap_or(15),
            annotations.number(READY_FAILURES)?.unwrap_or(4),
        ],
        init_flags: init_flags(&annotations, interception.unwrap_or("REDIRECT"), status_port)?,
        pod_ports: containers.iter().flat_map(|one| ports_of(one)).collect(),
        first_container: names.first().cloned().unwrap_or_default(),
        application_metrics: match annotations.flag(MERGE)?.unwrap_or(mesh.merge_metrics) {
            true if status_port != 0 => {
                former_metrics.or_else(|| scraped(&annotations, status_port))
            }
            _ => None,
        },
        histogram_buckets: annotations.checked(BUCKETS, buckets)?,
        containers: names,
        user_volumes: annotations.checked(USER_VOLUME, json_object)?.unwrap_or_default(),
        user_mounts: annotations.checked(USER_VOLUME_MOUNT, json_object)?.unwrap_or_default(),
        proxy_config,
    })
}

/// The author's wish to be scraped, as the proxy reads it; what names the status port is ours.
fn scraped(annotations: &Annotations<'_>, status_port: u16) -> Option<String> {
    let of = |name: &str| annotations.get(&format!("prometheus.io/{name}")).unwrap_or_default();
    (of("scrape") == "true" && of("port") != status_port.to_string()).then(|| {
        json!({"path": of("path"), "port": of("port"), "scrape": of("scrape")}).to_string()
    })
}

/// Bounds by prefix of metric names.
fn buckets(text: &str) -> Result<String, String> {
    let bounds = serde_json::from_str::<std::collections::BTreeMap<String, Vec<f64>>>(text);
    match bounds {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("expected lists of numbers by prefix: {error}")),
    }
}

fn application_containers(pod: &Value) -> Vec<&Value> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let others = |one: &&Value| one["name"] != super::PROXY_CONTAINER;
    containers.into_iter().flatten().filter(others).collect()
}

fn ports_of(container: &Value) -> Vec<Value> {
    container["ports"].as_array().cloned().unwrap_or_default()
}

fn json_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("no JSON object: {error}"))
}

/// The mesh's ProxyConfig with the pod's laid over it, one level deep as Istio does, maps merged.
fn proxy_config(annotations: &Annotations<'_>, mesh: &MeshSettings) -> Result<Value, InjectError> {
    let own = annotations.checked(PROXY_CONFIG, |text| {
        let mut documents = weft_model::yaml_documents(text)?;
        match (documents.pop(), documents.is_empty()) {
            (Some(Value::Object(own)), true) => Ok(own),
            (None, true) => Ok(Map::new()),
            _ => Err("is not one YAML object".to_owned()),
        }
    })?;
    let mut config = mesh.proxy_config.clone();
    for (key, value) in own.into_iter().flatten() {
        match (config.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => below.extend(above),
            (_, value) => config[&key] = value,
        }
    }
    Ok(config)
}

fn interception(
    annotations: &Annotations<'_>,
    proxy_config: &Value,
) -> Result<Option<&'static str>, InjectError> {
    let by_mesh = proxy_config["interceptionMode"].as_str();
    let mode = annotations.get(INTERCEPTION).or(by_mesh).unwrap_or("REDIRECT");
    match mode {
        "REDIRECT" => Ok(Some("REDIRECT")),
        "TPROXY" => Ok(Some("TPROXY")),
        "NONE" => Ok(None),
        other => Err(InjectError::Annotation {
            name: INTERCEPTION,
            why: format!("{other:?} is none of REDIRECT, TPROXY and NONE"),
        }),
    }
}

/// Any of the four annotations replaces all defaults, as in Istio.
fn resources(annotations: &Annotations<'_>) -> Value {
    let four = [CPU, MEMORY, CPU_LIMIT, MEMORY_LIMIT].map(|name| annotations.get(name));
    let [cpu, memory, cpu_limit, memory_limit] = match four {
        [None, None, None, None] => [Some("100m"), Some("128Mi"), Some("2"), Some("1Gi")],
        some => some,
    };
    let part = |cpu: Option<&str>, memory: Option<&str>| {
        let mut part = Map::new();
        part.extend(cpu.map(|cpu| ("cpu".to_owned(), json!(cpu))));
        part.extend(memory.map(|memory| ("memory".to_owned(), json!(memory))));
        (!part.is_empty()).then_some(Value::Object(part))
    };
    let mut all = Map::new();
    all.extend(part(cpu_limit, memory_limit).map(|limits| ("limits".to_owned(), limits)));
    all.extend(part(cpu, memory).map(|requests| ("requests".to_owned(), requests)));
    Value::Object(all)
}

/// Arguments of `weft init`, checked as it will check them: the pod's author hears of a mistake
/// now, not from a container that fails.
fn init_flags(
    annotations: &Annotations<'_>,
    mode: &str,
    status_port: u16,
) -> Result<Vec<String>, InjectError> {
    annotations.checked(IN_PORTS, str::parse::<PortSet>)?;
    annotations.checked(OUT_RANGES, str::parse::<RangeSet>)?;
    annotations.checked(NOT_OUT_RANGES, ranges)?;
    for name in [NOT_IN_PORTS, OUT_PORTS, NOT_OUT_PORTS] {
        annotations.checked(name, ports)?;
    }
    for name in [NOT_INTERFACES, KUBEVIRT, REROUTE] {
        annotations.checked(name, interfaces)?;
    }
    let text = |name: &str, default: &str| annotations.get(name).unwrap_or(default).to_owned();
    let own_ports = ["15090".to_owned(), "15021".to_owned(), text(NOT_IN_PORTS, "")];
    let status = if status_port == 0 { String::new() } else { status_port.to_string() };
    let own_ports: Vec<String> =
        own_ports.into_iter().chain([status]).filter(|port| !port.is_empty()).collect();
    let always = [
        ("-p", "15001".to_owned()),
        ("-z", "15006".to_owned()),
        ("-u", "1337".to_owned()),
        ("-m", mode.to_owned()),
        ("-i", text(OUT_RANGES, "*")),
        ("-x", text(NOT_OUT_RANGES, "")),
        ("-b", text(IN_PORTS, "*")),
        ("-d", own_ports.join(",")),
    ];
    let reroute = annotations.get(REROUTE).or_else(|| annotations.get(KUBEVIRT));
    let if_said = [
        ("-q", annotations.get(OUT_PORTS)),
        ("-o", annotations.get(NOT_OUT_PORTS)),
        ("-k", reroute),
        ("-c", annotations.get(NOT_INTERFACES)),
    ];
    let if_said = if_said.into_iter().filter_map(|(flag, value)| {
        value.filter(|value| !value.is_empty()).map(|value| (flag, value.to_owned()))
    });
    let all = always.into_iter().chain(if_said);
    Ok(all.flat_map(|(flag, value)| [flag.to_owned(), value]).collect())
}

/// Labels and annotations that an injected pod has.
pub(super) fn annotate(pod: &mut Value, settings: &Settings) {
    let [name, revision] = &settings.canonical;
    let labels = [
        ("security.istio.io/tlsMode", "istio".to_owned()),
        ("service.istio.io/canonical-name", name.clone()),
        ("service.istio.io/canonical-revision", revision.clone()),
    ];
    let container = &settings.first_container;
    let mut annotations = vec![
        ("istio.io/rev", settings.revision.clone()),
        ("kubectl.kubernetes.io/default-container", container.clone()),
        ("kubectl.kubernetes.io/default-logs-container", container.clone()),
    ];
    let scraped = [
        ("prometheus.io/path", "/stats/prometheus".to_owned()),
        ("prometheus.io/port", settings.status_port.to_string()),
        ("prometheus.io/scrape", "true".to_owned()),
    ];
    if settings.application_metrics.is_some() {
        // The status port has the author's metrics, too.
        for (key, value) in scraped {
            *entry(pod, &["metadata", "annotations"], key) = Value::String(value);
        }
    } else if settings.status_port != 0 {
        annotations.extend(scraped);
    }
    for (map, all) in [("labels", labels.to_vec()), ("annotations", annotations)] {
        for (key, value) in all {
            let here = entry(pod, &["metadata", map], key);
            if here.is_null() {
                *here = Value::String(value);
            }
        }
    }
}
