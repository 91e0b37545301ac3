//! Telemetry that names providers nobody defined, or none where there is no other; several for the same
//! workloads.

use std::collections::BTreeMap;

use super::finding;
use crate::diagnostic::{Diagnostic, code};
use crate::object::{Kind, Labels, Resource};
use crate::snapshot::{Snapshot, selects};
use crate::spec::{ProviderRef, Telemetry};

pub(super) fn check(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    providers(snapshot, out);
    without_providers(snapshot, out);
    rivals(snapshot, out);
}

/// Access logs to nobody.
fn without_providers(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let default = snapshot.mesh().default_providers.as_ref();
    if default.is_some_and(|default| !default.access_logging.is_empty()) {
        return;
    }
    for resource in snapshot.all_telemetries() {
        let none = |index: &usize| resource.spec.access_logging[*index].providers.is_empty();
        if let Some(index) = (0..resource.spec.access_logging.len()).find(none) {
            let path = format!("spec.accessLogging[{index}].providers");
            let message = "no provider is named, and the mesh has no default; it has no effect";
            let help = "Name a provider, or set MeshConfig's defaultProviders.accessLogging.";
            let (kind, code) = (Kind::Telemetry, code::NO_TELEMETRY_PROVIDER);
            out.push(finding(code, kind, &resource.meta, path, message).with_help(help));
        }
    }
}

/// Several resources of one namespace without a selector, or whose selectors pick one workload.
fn rivals(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut by_namespace: BTreeMap<&str, Vec<&Resource<Telemetry>>> = BTreeMap::new();
    for resource in snapshot.all_telemetries() {
        let Telemetry { target_ref, target_refs, .. } = &resource.spec;
        if target_ref.is_none() && target_refs.is_empty() {
            by_namespace.entry(&resource.meta.namespace).or_default().push(resource);
        }
    }
    for (namespace, all) in by_namespace {
        for resource in &all {
            let own = labels(resource);
            let rival = all.iter().find(|other| {
                !std::ptr::eq(**other, *resource)
                    && match (own, labels(other)) {
                        (None, None) => true,
                        (Some(own), Some(others)) => snapshot
                            .workloads()
                            .filter(|workload| &*workload.namespace == namespace)
                            .any(|one| selects(own, &one.labels) && selects(others, &one.labels)),
                        (None, Some(_)) | (Some(_), None) => false,
                    }
            });
            let Some(rival) = rival else { continue };
            let other = format!("Telemetry {namespace}/{}", rival.meta.name);
            let (code, path, message) = match own {
                Some(_) => (
                    code::CONFLICTING_TELEMETRIES,
                    "spec.selector",
                    format!("{other} selects some of the same workloads"),
                ),
                None => (
                    code::TELEMETRIES_WITHOUT_SELECTOR,
                    "spec.selector",
                    format!("{other} has no selector either"),
                ),
            };
            let found = finding(code, Kind::Telemetry, &resource.meta, path, message);
            out.push(found.with_help("Merge them, or make their selectors disjoint."));
        }
    }
}

/// Of the workloads that it is for; none: the whole namespace's.
fn labels(resource: &Resource<Telemetry>) -> Option<&Labels> {
    let selector = resource.spec.selector.as_ref().map(|selector| &selector.match_labels);
    selector.filter(|labels| !labels.is_empty())
}

fn providers(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    for resource in snapshot.all_telemetries() {
        let spec = &resource.spec;
        let lists = [
            ("tracing", spec.tracing.iter().map(|one| &one.providers).collect::<Vec<_>>()),
            ("metrics", spec.metrics.iter().map(|one| &one.providers).collect()),
            ("accessLogging", spec.access_logging.iter().map(|one| &one.providers).collect()),
        ];
        for (field, list) in lists {
            for (index, providers) in list.into_iter().enumerate() {
                for (at, ProviderRef { name }) in providers.iter().enumerate() {
                    if snapshot.provider(name).is_some() {
                        continue;
                    }
                    let path = format!("spec.{field}[{index}].providers[{at}].name");
                    let message = format!("the provider {name:?} is not defined");
                    let help = "Define it in MeshConfig's extensionProviders.";
                    let kind = Kind::Telemetry;
                    let found = finding(code::NOT_FOUND, kind, &resource.meta, path, message);
                    out.push(found.with_help(help));
                }
            }
        }
    }
}
