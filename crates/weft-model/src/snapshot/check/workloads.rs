//! What selects workloads: selectors that pick nothing, and Sidecars that pick the same.
//!
//! Nothing is said of a namespace without any Pod, WorkloadEntry or pod template: the files are then
//! a part of the configuration only.

use std::collections::BTreeMap;

use super::finding;
use crate::diagnostic::{Diagnostic, code};
use crate::object::{Kind, Labels, Meta, Resource};
use crate::snapshot::{Snapshot, selects};
use crate::spec::{DestinationRule, Sidecar};

/// Labels of everything that runs or may run, by namespace.
type Running<'a> = BTreeMap<&'a str, Vec<&'a Labels>>;

pub(super) fn check(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut running: Running<'_> = BTreeMap::new();
    for workload in snapshot.workloads() {
        running.entry(&workload.namespace).or_default().push(&workload.labels);
    }
    for template in snapshot.pod_templates() {
        running.entry(&template.meta.namespace).or_default().push(&template.spec.labels);
    }
    let root = &*snapshot.mesh().root_namespace;
    let mut selector = |kind: Kind, meta: &Meta, labels: &Labels, path: &str| {
        picks_something(&running, root, labels, &Place { kind, meta, path }, out);
    };
    for sidecar in snapshot.all_sidecars() {
        if let Some(wanted) = &sidecar.spec.workload_selector {
            let path = "spec.workloadSelector.labels";
            selector(Kind::Sidecar, &sidecar.meta, &wanted.labels, path);
        }
    }
    for policy in snapshot.all_peer_authentications() {
        if let Some(wanted) = &policy.spec.selector {
            let path = "spec.selector.matchLabels";
            selector(Kind::PeerAuthentication, &policy.meta, &wanted.match_labels, path);
        }
    }
    for rule in snapshot.all_destination_rules() {
        subsets(snapshot, &running, rule, out);
    }
    general_sidecars(snapshot, out);
    sidecars_for_the_same(snapshot, &running, out);
}

/// Where a selector is written.
struct Place<'a> {
    kind: Kind,
    meta: &'a Meta,
    path: &'a str,
}

fn picks_something(
    running: &Running<'_>,
    root: &str,
    wanted: &Labels,
    at: &Place<'_>,
    out: &mut Vec<Diagnostic>,
) {
    let namespace = &*at.meta.namespace;
    // In the root namespace a selector is for the whole mesh.
    let here = running.iter().filter(|(name, _)| **name == namespace || namespace == root);
    let mut labels = here.flat_map(|(_, labels)| labels).peekable();
    if wanted.is_empty() || labels.peek().is_none() {
        return;
    }
    if !labels.any(|labels| selects(wanted, labels)) {
        let message = "no Pod or WorkloadEntry has these labels";
        let code = code::NO_WORKLOAD;
        let found = finding(code, at.kind, at.meta, at.path, message);
        out.push(found.with_help("Correct the labels, or remove the resource."));
    }
}

/// Subsets none of the service's workloads belongs to.
fn subsets(
    snapshot: &Snapshot,
    running: &Running<'_>,
    rule: &Resource<DestinationRule>,
    out: &mut Vec<Diagnostic>,
) {
    let Some(service) = snapshot.service_from(&rule.spec.host, &rule.meta.namespace) else {
        return;
    };
    // Without a selector endpoints come from elsewhere.
    let Some(selector) = &service.selector else { return };
    let Some(labels) = running.get(&*service.namespace) else { return };
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        let member =
            |labels: &&&Labels| selects(selector, labels) && selects(&subset.labels, labels);
        if subset.labels.is_empty() || labels.iter().any(|labels| member(&labels)) {
            continue;
        }
        let message = format!("the subset {:?} has no Pod of {}", subset.name, service.host);
        let path = format!("spec.subsets[{index}].labels");
        let kind = Kind::DestinationRule;
        let found = finding(code::EMPTY_SUBSET, kind, &rule.meta, path, message);
        let help = "Requests for it get 503: label the Pods, or route elsewhere.";
        out.push(found.with_help(help));
    }
}

/// Several Sidecars of one namespace without a selector: the oldest wins.
fn general_sidecars(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let general = |sidecar: &Sidecar| {
        sidecar.workload_selector.as_ref().is_none_or(|selector| selector.labels.is_empty())
    };
    let mut by_namespace: BTreeMap<&str, Vec<&Resource<Sidecar>>> = BTreeMap::new();
    for sidecar in snapshot.all_sidecars().filter(|sidecar| general(&sidecar.spec)) {
        by_namespace.entry(&sidecar.meta.namespace).or_default().push(sidecar);
    }
    for (namespace, mut all) in by_namespace.into_iter().filter(|(_, all)| all.len() > 1) {
        all.sort_by(|a, b| a.meta.age_order(&b.meta));
        let names: Vec<&str> = all.iter().map(|sidecar| &*sidecar.meta.name).collect();
        for sidecar in &all {
            let message = format!(
                "several Sidecars of {namespace} have no selector ({}); the oldest, {}, wins",
                names.join(", "),
                names[0]
            );
            let kind = Kind::Sidecar;
            let (code, path) = (code::SIDECARS_WITHOUT_SELECTOR, "spec.workloadSelector");
            let found = finding(code, kind, &sidecar.meta, path, message);
            out.push(found.with_help("Keep one, or give the others a selector."));
        }
    }
}

/// Several Sidecars whose selectors pick one workload.
fn sidecars_for_the_same(snapshot: &Snapshot, running: &Running<'_>, out: &mut Vec<Diagnostic>) {
    let mut by_namespace: BTreeMap<&str, Vec<(&Resource<Sidecar>, &Labels)>> = BTreeMap::new();
    for sidecar in snapshot.all_sidecars() {
        let labels = sidecar.spec.workload_selector.as_ref().map(|selector| &selector.labels);
        if let Some(labels) = labels.filter(|labels| !labels.is_empty()) {
            by_namespace.entry(&sidecar.meta.namespace).or_default().push((sidecar, labels));
        }
    }
    for (namespace, sidecars) in by_namespace {
        let Some(running) = running.get(namespace) else { continue };
        for (sidecar, wanted) in &sidecars {
            let rival = sidecars.iter().find(|(other, others)| {
                !std::ptr::eq(*other, *sidecar)
                    && running.iter().any(|one| selects(wanted, one) && selects(others, one))
            });
            let Some((rival, _)) = rival else { continue };
            let message = format!(
                "Sidecar {}/{} selects some of the same workloads",
                rival.meta.namespace, rival.meta.name
            );
            let kind = Kind::Sidecar;
            let (code, path) = (code::CONFLICTING_SIDECARS, "spec.workloadSelector");
            let found = finding(code, kind, &sidecar.meta, path, message);
            out.push(found.with_help("Only one applies: make the selectors disjoint."));
        }
    }
}
