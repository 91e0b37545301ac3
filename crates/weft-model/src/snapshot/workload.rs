//! Pods and WorkloadEntries as one thing: a workload instance with an identity and addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::service::Address;
use crate::names::{DEFAULT_CLUSTER, name_and_cluster};
use crate::object::{Labels, Meta, Origin, Resource};
use crate::spec;

/// Where a Pod stands, when its node does not say it.
const LOCALITY_LABEL: &str = "istio-locality";

/// Istio's annotation on WorkloadEntries of groups with a probe.
const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";

/// One instance: a Pod or a WorkloadEntry.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The Pod's or WorkloadEntry's own name; what a proxy's node id carries.
    pub name: Arc<str>,
    /// Name of what owns it (Deployment, StatefulSet, …), else its own: Istio's workload name.
    pub workload_name: Arc<str>,
    /// The rest of what it is.
    pub template: Arc<Template>,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: Arc<str>,
    /// The Kubernetes node it runs on; empty when unknown.
    pub node: Arc<str>,
    /// None when it has no address yet.
    pub address: Option<Address>,
    /// All IP addresses, the primary first.
    pub ips: Box<[IpAddr]>,
    /// A Pod's `HOSTNAME.SUBDOMAIN`; empty without a subdomain.
    pub pod_host: Arc<str>,
    pub ready: bool,
    pub origin: Origin,
}

/// What the instances of one owner have in common, as a rule. A world holds 100,000 instances, and
/// each would weigh three times as much with its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub kind: WorkloadKind,
    pub namespace: Arc<str>,
    /// Kind of what owns it, in lower case: `deployment`, `statefulset`, `pod`, `workloadentry`.
    pub owner_kind: &'static str,
    pub canonical_name: Arc<str>,
    /// `latest` when no label says otherwise.
    pub canonical_revision: Arc<str>,
    /// `default` when not set.
    pub service_account: Arc<str>,
    pub cluster: Arc<str>,
    pub network: Arc<str>,
    /// Load-balancing weight; 1 when not set.
    pub weight: u32,
    pub labels: Arc<Labels>,
    pub annotations: Arc<Labels>,
    /// Container or WorkloadEntry ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Container ports, named or not.
    pub container_ports: Vec<u16>,
    /// It has a sidecar that accepts mesh mTLS (label or injection annotation).
    pub sidecar: bool,
    /// A container of it is called `istio-proxy`.
    pub proxied: bool,
}

impl std::ops::Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    Pod,
    WorkloadEntry,
}

impl Workload {
    /// The primary IP address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ips.first().copied()
    }

    /// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.service_account)
    }

    /// What a Pod is called below the host of a headless Service, if it says so.
    pub fn hostname_in(&self, service: &str) -> Option<&str> {
        let (hostname, subdomain) = self.pod_host.rsplit_once('.')?;
        (subdomain == service).then_some(hostname)
    }

    /// Its own label says where it stands.
    pub(crate) fn has_own_locality(&self) -> bool {
        !label(&self.labels, LOCALITY_LABEL).is_empty()
    }

    /// Equal in all but readiness and origin: what its own proxy gets cannot differ.
    pub(crate) fn same_but_readiness(&self, other: &Workload) -> bool {
        let mut probe = other.clone();
        probe.ready = self.ready;
        probe.origin = self.origin.clone();
        *self == probe
    }

    /// The same, with what it has in common with another one as the very same object.
    pub(crate) fn sharing(self, other: &Workload) -> Workload {
        Workload {
            template: match self.template == other.template {
                true => Arc::clone(&other.template),
                false => Arc::new(Arc::unwrap_or_clone(self.template).sharing(&other.template)),
            },
            workload_name: share(self.workload_name, &other.workload_name),
            locality: share(self.locality, &other.locality),
            node: share(self.node, &other.node),
            pod_host: share(self.pod_host, &other.pod_host),
            ..self
        }
    }

    pub(crate) fn of_pod(pod: &Resource<spec::Pod>) -> Workload {
        let Resource { meta, spec: spec::Pod { spec, status } } = pod;
        let mut ips: Vec<IpAddr> = Vec::new();
        let texts = std::iter::once(&status.pod_ip).chain(status.pod_ips.iter().map(|p| &p.ip));
        for ip in texts.filter_map(|text| text.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let mut ports = BTreeMap::new();
        let mut container_ports = Vec::new();
        for port in spec.containers.iter().chain(&spec.init_containers).flat_map(|c| &c.ports) {
            let Ok(number) = u16::try_from(port.container_port) else { continue };
            container_ports.push(number);
            if !port.name.is_empty() {
                ports.entry(port.name.clone()).or_insert(number);
            }
        }
        let account = match (&*spec.service_account_name, &*spec.service_account) {
            ("", "") => "default",
            ("", old) => old,
            (name, _) => name,
        };
        let (workload_name, owner_kind) = pod_owner(meta);
        let (canonical_name, canonical_revision) = canonical(&meta.labels, &workload_name);
        let template = Template {
            kind: WorkloadKind::Pod,
            namespace: meta.namespace.clone(),
            owner_kind,
            canonical_name,
            canonical_revision,
            service_account: Arc::from(account),
            cluster: Arc::from(cluster(&meta.labels)),
            network: Arc::from(label(&meta.labels, "topology.istio.io/network")),
            weight: 1,
            labels: meta.labels.clone(),
            annotations: meta.annotations.clone(),
            ports,
            container_ports,
            proxied: spec
                .containers
                .iter()
                .chain(&spec.init_containers)
                .any(|container| container.name == "istio-proxy"),
            sidecar: tls_mode_label(&meta.labels)
                .unwrap_or_else(|| meta.annotations.contains_key("sidecar.istio.io/status")),
        };
        Workload {
            name: meta.name.clone(),
            workload_name,
            template: Arc::new(template),
            // Kubernetes label values cannot hold a slash; Istio writes dots instead.
            locality: Arc::from(label(&meta.labels, LOCALITY_LABEL).replace('.', "/")),
            node: Arc::from(spec.node_name.as_str()),
            address: ips.first().copied().map(Address::Ip),
            ips: ips.into(),
            pod_host: pod_host(meta, spec),
            ready: pod_ready(meta, status),
            origin: meta.origin.clone(),
        }
    }

    pub(crate) fn of_entry(entry: &Resource<spec::WorkloadEntry>) -> Workload {
        let Resource { meta, spec } = entry;
        let mut labels = (*meta.labels).clone();
        labels.extend(spec.labels.clone());
        let group = meta.owners.iter().find(|owner| owner.kind == "WorkloadGroup");
        let workload_name = match label(&labels, "service.istio.io/workload-name") {
            "" => Arc::from(group.map_or(&*meta.name, |owner| owner.name.as_str())),
            name => Arc::from(name),
        };
        let (canonical_name, canonical_revision) = canonical(&labels, &workload_name);
        let account =
            if spec.service_account.is_empty() { "default" } else { &spec.service_account };
        let address = Address::parse(&spec.address);
        let template = Template {
            kind: WorkloadKind::WorkloadEntry,
            namespace: meta.namespace.clone(),
            owner_kind: "workloadentry",
            canonical_name,
            canonical_revision,
            service_account: Arc::from(account),
            cluster: Arc::from(cluster(&labels)),
            network: Arc::from(spec.network.as_str()),
            weight: spec.weight.unwrap_or(1).max(1),
            ports: numbered(&spec.ports),
            container_ports: Vec::new(),
            proxied: false,
            sidecar: tls_mode_label(&labels).unwrap_or(false),
            labels: Arc::new(labels),
            annotations: meta.annotations.clone(),
        };
        Workload {
            name: meta.name.clone(),
            workload_name,
            template: Arc::new(template),
            locality: Arc::from(spec.locality.as_str()),
            node: Arc::from(""),
            pod_host: Arc::from(""),
            ips: address.iter().filter_map(Address::ip).collect(),
            address,
            ready: !meta.deleting && entry_healthy(meta, spec),
            origin: meta.origin.clone(),
        }
    }
}

impl Template {
    fn sharing(self, other: &Template) -> Template {
        Template {
            namespace: share(self.namespace, &other.namespace),
            canonical_name: share(self.canonical_name, &other.canonical_name),
            canonical_revision: share(self.canonical_revision, &other.canonical_revision),
            service_account: share(self.service_account, &other.service_account),
            cluster: share(self.cluster, &other.cluster),
            network: share(self.network, &other.network),
            labels: share(self.labels, &other.labels),
            annotations: share(self.annotations, &other.annotations),
            ..self
        }
    }
}

/// Whose health is reported is not healthy before the first report.
fn entry_healthy(meta: &Meta, spec: &spec::WorkloadEntry) -> bool {
    let reported = meta.annotations.get(HEALTH_CHECKS).is_some_and(|value| value == "true");
    spec.healthy.unwrap_or(!reported)
}

fn share<T: PartialEq + ?Sized>(own: Arc<T>, other: &Arc<T>) -> Arc<T> {
    if own == *other { Arc::clone(other) } else { own }
}

/// Ports that fit; the others were reported by validation.
pub(crate) fn numbered(ports: &BTreeMap<String, u32>) -> BTreeMap<String, u16> {
    let fits = |(name, number): (&String, &u32)| Some((name.clone(), u16::try_from(*number).ok()?));
    ports.iter().filter_map(fits).collect()
}

/// `Some(true)` for `istio`, `Some(false)` for any other value.
pub(crate) fn tls_mode_label(labels: &Labels) -> Option<bool> {
    labels.get("security.istio.io/tlsMode").map(|mode| mode == "istio")
}

/// Istio's canonical service name and revision.
pub(crate) fn canonical(labels: &Labels, fallback: &str) -> (Arc<str>, Arc<str>) {
    let first = |keys: [&str; 3], fallback: &str| -> Arc<str> {
        let found = keys.into_iter().map(|key| label(labels, key)).find(|value| !value.is_empty());
        Arc::from(found.unwrap_or(fallback))
    };
    let name = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    (first(name, fallback), first(revision, "latest"))
}

fn label<'a>(labels: &'a Labels, key: &str) -> &'a str {
    labels.get(key).map_or("", String::as_str)
}

fn cluster(labels: &Labels) -> &str {
    match label(labels, "topology.istio.io/cluster") {
        "" => DEFAULT_CLUSTER,
        cluster => cluster,
    }
}

/// Name and kind of what made a Pod: its controller, with a ReplicaSet's template hash taken
/// off; without owners the hash in its name; else the Pod itself.
fn pod_owner(meta: &Meta) -> (Arc<str>, &'static str) {
    if let Some(name) = meta.labels.get("service.istio.io/workload-name") {
        return (Arc::from(name.as_str()), "deployment");
    }
    let hash = label(&meta.labels, "pod-template-hash");
    let owner = meta.owners.iter().find(|o| o.controller).or_else(|| meta.owners.first());
    match owner {
        Some(owner) => {
            let name = owner.name.as_str();
            match owner.kind.as_str() {
                "ReplicaSet" => {
                    let stripped = name.strip_suffix(hash).and_then(|rest| rest.strip_suffix('-'));
                    match stripped.filter(|_| !hash.is_empty()) {
                        Some(deployment) => (Arc::from(deployment), "deployment"),
                        None => (Arc::from(name), "replicaset"),
                    }
                }
                "StatefulSet" => (Arc::from(name), "statefulset"),
                "DaemonSet" => (Arc::from(name), "daemonset"),
                "Job" => (Arc::from(name), "job"),
                "ReplicationController" => (Arc::from(name), "replicationcontroller"),
                _ => (Arc::from(name), "unknown"),
            }
        }
        None => {
            let middle = format!("-{hash}-");
            match meta.name.rfind(&middle).filter(|_| !hash.is_empty()) {
                Some(end) => (Arc::from(&meta.name[..end]), "deployment"),
                None => (Arc::from(name_and_cluster(&meta.name).0), "pod"),
            }
        }
    }
}

/// A Pod of a StatefulSet has its name as hostname; the cluster writes it down.
fn pod_host(meta: &Meta, spec: &spec::PodSpec) -> Arc<str> {
    let hostname = if spec.hostname.is_empty() { &*meta.name } else { &spec.hostname };
    match &*spec.subdomain {
        "" => Arc::from(""),
        subdomain => Arc::from(format!("{hostname}.{subdomain}").to_ascii_lowercase()),
    }
}

/// The Ready condition when there is one; otherwise a phase that is absent or Running.
fn pod_ready(meta: &Meta, status: &spec::PodStatus) -> bool {
    if meta.deleting || matches!(status.phase.as_str(), "Succeeded" | "Failed" | "Pending") {
        return false;
    }
    match status.conditions.iter().find(|c| c.condition_type == "Ready") {
        Some(condition) => condition.status == "True",
        None => true,
    }
}
