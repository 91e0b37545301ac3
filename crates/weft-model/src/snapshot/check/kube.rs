//! Kubernetes' own kinds in the mesh: Pods that lack their sidecar, templates that several Services
//! claim in different ways.

use std::collections::{BTreeMap, BTreeSet};

use super::finding;
use crate::diagnostic::{Diagnostic, code};
use crate::object::{Kind, Labels, Resource};
use crate::snapshot::{MeshService, ServiceKind, Snapshot, WorkloadKind, selects};
use crate::spec::PodTemplate;
use crate::validate::{INJECTION_LABEL, REVISION_LABEL};

pub(super) fn check(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    for mesh in snapshot.mesh_configs() {
        // A file is put into a folder to be read; a cluster's namespaces are chosen by the source.
        let selects = !mesh.spec.discovery_selectors.is_empty();
        if selects && !mesh.meta.origin.file.starts_with(crate::KUBERNETES) {
            let message =
                "discoverySelectors choose among a cluster's namespaces; files are all read";
            let meta = &mesh.meta;
            let path = "discoverySelectors";
            out.push(finding(code::NOT_IMPLEMENTED, Kind::MeshConfig, meta, path, message));
        }
    }
    missing_sidecars(snapshot, out);
    for template in snapshot.pod_templates() {
        if is_in_mesh(snapshot, &template.meta.namespace, &template.spec.labels) {
            claims(snapshot, template, out);
        }
    }
}

/// Does its namespace, or a label of its own, ask for a sidecar?
fn is_in_mesh(snapshot: &Snapshot, namespace: &str, labels: &Labels) -> bool {
    match labels.get("sidecar.istio.io/inject").map(String::as_str) {
        Some("false") => return false,
        Some("true") => return true,
        _ => {}
    }
    let of_namespace = snapshot.namespace_labels(namespace);
    match of_namespace.get(INJECTION_LABEL).map(String::as_str) {
        Some(word) => word == "enabled",
        None => of_namespace.contains_key(REVISION_LABEL),
    }
}

fn missing_sidecars(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    for pod in snapshot.workloads().filter(|one| one.kind == WorkloadKind::Pod) {
        let refuses = pod.annotations.get("sidecar.istio.io/inject").is_some_and(|v| v == "false");
        if pod.proxied || refuses || !is_in_mesh(snapshot, &pod.namespace, &pod.labels) {
            continue;
        }
        let meta = crate::object::Meta {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            origin: pod.origin.clone(),
            ..Default::default()
        };
        let message = format!("the Pod {} has no container istio-proxy", pod.name);
        let kind = crate::object::Kind::Pod;
        let found = finding(code::MISSING_PROXY, kind, &meta, "spec.containers", message);
        out.push(found.with_help("Restart or redeploy it, so that it gets its sidecar."));
    }
}

/// Services of a template's Pods that disagree about a port.
fn claims(snapshot: &Snapshot, template: &Resource<PodTemplate>, out: &mut Vec<Diagnostic>) {
    let services: Vec<_> = snapshot
        .services_in(&template.meta.namespace)
        .filter(|service| service.kind == ServiceKind::Kubernetes)
        .filter(|service| {
            let selector = service.selector.as_ref();
            selector.is_some_and(|s| !s.is_empty() && selects(s, &template.spec.labels))
        })
        .collect();
    if services.len() < 2 {
        return;
    }
    let mut protocols: BTreeMap<u16, BTreeSet<&'static str>> = BTreeMap::new();
    let mut numbers: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    let mut names: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for service in &services {
        for port in &service.ports {
            let transport = match port.protocol {
                crate::Protocol::Udp => "UDP",
                _ => "TCP",
            };
            protocols.entry(port.number).or_default().insert(transport);
            let target = target(service, port.number);
            numbers.entry(target.clone()).or_default().insert(port.number);
            names.entry(target).or_default().insert(&service.name);
        }
    }
    let kind = template.spec.kind;
    let path = "spec.template.metadata.labels";
    for (port, protocols) in protocols.iter().filter(|(_, protocols)| protocols.len() > 1) {
        let message = format!("several Services use port {port}, with protocols {protocols:?}");
        let found = finding(code::SEVERAL_PROTOCOLS, kind, &template.meta, path, message);
        out.push(found.with_help("Give the port one protocol in all of them."));
    }
    for (target, ports) in numbers.iter().filter(|(_, ports)| ports.len() > 1) {
        if names[target].len() < 2 {
            continue;
        }
        let message = format!(
            "the Services {:?} use targetPort {target} as different ports: {ports:?}",
            names[target]
        );
        let found = finding(code::SEVERAL_PORTS, kind, &template.meta, path, message);
        out.push(found.with_help("Give the port one number in all of them."));
    }
}

/// The target port as written.
fn target(service: &MeshService, number: u16) -> String {
    let port = service.ports.iter().find(|port| port.number == number);
    port.map_or_else(String::new, |port| format!("{:?}", port.target))
}
