//! Istio's annotations: which there are, what they may stand on, and which are on their way out.

use super::{Findings, entry};
use crate::diagnostic::code;
use crate::object::{Kind, Labels, Object};

/// How far an annotation may be trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Stable,
    Alpha,
    Deprecated,
}

/// What an annotation may stand on.
#[derive(Clone, Copy)]
enum On {
    Any,
    Pod,
    Only(&'static [&'static str]),
}

use On::{Any, Only, Pod};
use Stage::{Alpha, Deprecated, Stable};

/// Istio's annotations, as its API defines them.
const KNOWN: &[(&str, Stage, On)] = &[
    ("alpha.istio.io/canonical-serviceaccounts", Deprecated, Only(&["Service"])),
    ("alpha.istio.io/kubernetes-serviceaccounts", Deprecated, Only(&["Service"])),
    ("ambient.istio.io/bypass-inbound-capture", Alpha, Pod),
    ("ambient.istio.io/dns-capture", Alpha, Pod),
    ("ambient.istio.io/redirection", Stable, Pod),
    ("ambient.istio.io/waypoint-inbound-binding", Alpha, Only(&["GatewayClass", "Gateway"])),
    ("galley.istio.io/analyze-suppress", Stable, Any),
    ("gateway.istio.io/controller-version", Alpha, Any),
    ("gateway.istio.io/name-override", Alpha, Only(&["Gateway"])),
    ("gateway.istio.io/service-account", Alpha, Only(&["Gateway"])),
    ("inject.istio.io/templates", Alpha, Pod),
    ("istio.io/autoRegistrationGroup", Alpha, Only(&["WorkloadEntry"])),
    ("istio.io/connectedAt", Alpha, Only(&["WorkloadEntry"])),
    ("istio.io/disconnectedAt", Alpha, Only(&["WorkloadEntry"])),
    ("istio.io/dry-run", Alpha, Only(&["AuthorizationPolicy"])),
    ("istio.io/reroute-virtual-interfaces", Alpha, Pod),
    ("istio.io/rev", Alpha, Pod),
    ("istio.io/use-waypoint-canary-weight", Alpha, Only(&["Service", "ServiceEntry", "Namespace"])),
    ("istio.io/workloadController", Alpha, Only(&["WorkloadEntry"])),
    ("kubernetes.io/ingress.class", Stable, Only(&["Ingress"])),
    ("networking.istio.io/exportTo", Alpha, Only(&["Service"])),
    ("networking.istio.io/service-type", Alpha, Only(&["Gateway"])),
    (
        "networking.istio.io/traffic-distribution",
        Alpha,
        Only(&["Namespace", "Service", "ServiceEntry"]),
    ),
    ("prometheus.istio.io/merge-metrics", Alpha, Pod),
    ("proxy.istio.io/config", Stable, Pod),
    ("proxy.istio.io/overrides", Alpha, Pod),
    ("readiness.status.sidecar.istio.io/applicationPorts", Alpha, Pod),
    ("readiness.status.sidecar.istio.io/failureThreshold", Alpha, Pod),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", Alpha, Pod),
    ("readiness.status.sidecar.istio.io/periodSeconds", Alpha, Pod),
    ("sidecar.istio.io/agentLogLevel", Alpha, Pod),
    ("sidecar.istio.io/bootstrapOverride", Alpha, Pod),
    ("sidecar.istio.io/componentLogLevel", Alpha, Pod),
    ("sidecar.istio.io/discoveryAddress", Deprecated, Pod),
    ("sidecar.istio.io/extraStatTags", Deprecated, Pod),
    ("sidecar.istio.io/inject", Deprecated, Pod),
    ("sidecar.istio.io/interceptionMode", Alpha, Pod),
    ("sidecar.istio.io/logLevel", Alpha, Pod),
    ("sidecar.istio.io/nativeSidecar", Alpha, Pod),
    ("sidecar.istio.io/proxyCPU", Alpha, Pod),
    ("sidecar.istio.io/proxyCPULimit", Alpha, Pod),
    ("sidecar.istio.io/proxyImage", Alpha, Pod),
    ("sidecar.istio.io/proxyImageType", Alpha, Pod),
    ("sidecar.istio.io/proxyMemory", Alpha, Pod),
    ("sidecar.istio.io/proxyMemoryLimit", Stable, Pod),
    ("sidecar.istio.io/rewriteAppHTTPProbers", Alpha, Pod),
    ("sidecar.istio.io/statsCompression", Deprecated, Pod),
    ("sidecar.istio.io/statsEvictionInterval", Alpha, Pod),
    ("sidecar.istio.io/statsFlushInterval", Alpha, Pod),
    ("sidecar.istio.io/statsHistogramBins", Alpha, Pod),
    ("sidecar.istio.io/statsHistogramBuckets", Alpha, Pod),
    ("sidecar.istio.io/statsInclusionPrefixes", Deprecated, Pod),
    ("sidecar.istio.io/statsInclusionRegexps", Deprecated, Pod),
    ("sidecar.istio.io/statsInclusionSuffixes", Deprecated, Pod),
    ("sidecar.istio.io/status", Alpha, Pod),
    ("sidecar.istio.io/userVolume", Alpha, Pod),
    ("sidecar.istio.io/userVolumeMount", Stable, Pod),
    ("status.sidecar.istio.io/port", Alpha, Pod),
    ("topology.istio.io/controlPlaneClusters", Alpha, Only(&["Namespace"])),
    ("traffic.istio.io/nodeSelector", Stable, Only(&["Service"])),
    ("traffic.sidecar.istio.io/excludeInboundPorts", Alpha, Pod),
    ("traffic.sidecar.istio.io/excludeInterfaces", Alpha, Pod),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", Alpha, Pod),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", Alpha, Pod),
    ("traffic.sidecar.istio.io/includeInboundPorts", Stable, Pod),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", Alpha, Pod),
    ("traffic.sidecar.istio.io/includeOutboundPorts", Alpha, Pod),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", Deprecated, Pod),
];

/// What says something of Envoy or of Istio's images, and what to use instead.
const NOT_READ: &[(&str, &str)] = &[
    (
        "sidecar.istio.io/bootstrapOverride",
        "There is no Envoy with a bootstrap; see docs/limits.md.",
    ),
    ("sidecar.istio.io/componentLogLevel", "Use sidecar.istio.io/logLevel."),
    ("sidecar.istio.io/proxyImageType", "Name the whole image in sidecar.istio.io/proxyImage."),
];

/// Annotations of the kinds that Istio looks at: Namespaces, Services, workloads, and its own kinds
/// that have some.
pub(super) fn check(object: &Object, findings: &mut Findings<'_>) {
    let meta = object.meta();
    // What the mesh itself is installed with is not the user's.
    if &*meta.namespace == crate::ROOT_NAMESPACE {
        return;
    }
    let kind = match object.kind() {
        Some(
            kind @ (Kind::Namespace
            | Kind::Service
            | Kind::Pod
            | Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::Job
            | Kind::ServiceEntry
            | Kind::WorkloadEntry
            | Kind::WorkloadGroup
            | Kind::Gateway
            | Kind::KubeGateway
            | Kind::GatewayClass),
        ) => kind.as_str(),
        _ => return,
    };
    of_kind(&meta.annotations, kind, "metadata.annotations", findings);
    if let Object::PodTemplate(template) = object {
        let path = "spec.template.metadata.annotations";
        of_kind(&template.spec.annotations, "Pod", path, findings);
    }
}

fn of_kind(annotations: &Labels, kind: &str, path: &str, findings: &mut Findings<'_>) {
    for name in annotations.keys().filter(|name| is_istios(name)) {
        let at = entry(path, name);
        let Some((_, stage, on)) = KNOWN.iter().find(|(known, ..)| known == name) else {
            let help = "Check its spelling; it has no effect.";
            findings.report(code::UNKNOWN_ANNOTATION, at, format!("{name} is unknown"), help);
            continue;
        };
        if let Some((_, help)) = NOT_READ.iter().find(|(known, _)| known == name) {
            findings.info(code::NOT_IMPLEMENTED, at.clone(), format!("{name} is not read"), help);
        }
        let places: &[&str] = match on {
            Any => &[],
            Pod => &["Pod"],
            Only(kinds) => kinds,
        };
        if !places.is_empty() && !places.contains(&kind) {
            let message = format!("{name} can only be applied to {}", places.join(", "));
            let help = match kind {
                "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" => {
                    "Move it to spec.template.metadata.annotations."
                }
                _ => "Move it there; here it has no effect.",
            };
            findings.report(code::MISPLACED_ANNOTATION, at, message, help);
            continue;
        }
        if name == "proxy.istio.io/config" {
            proxy_config(&annotations[name], &at, findings);
        }
        match stage {
            Stable => {}
            Alpha => {
                let message = format!("{name} is part of an alpha-phase feature");
                let help = "It may be supported in part only.";
                findings.report(code::ALPHA_ANNOTATION, at, message, help);
            }
            Deprecated => {
                let message = format!("{name} has been deprecated");
                let help = match name.as_str() {
                    "sidecar.istio.io/inject" => "Use the label of the same name.",
                    _ => "It may not work in future versions.",
                };
                findings.report(code::DEPRECATED_ANNOTATION, at, message, help);
            }
        }
    }
}

/// The settings of a workload's proxy, which are YAML themselves.
fn proxy_config(text: &str, path: &str, findings: &mut Findings<'_>) {
    match crate::parse::proxy_config(text) {
        Err(why) => {
            let message = format!("proxy.istio.io/config is no ProxyConfig: {why}");
            let help = "It is left out; the mesh's settings apply.";
            findings.report(code::INVALID_ANNOTATION, path, message, help);
        }
        Ok((config, skipped)) => {
            for field in skipped {
                let name = &field.path;
                match field.known {
                    true => {
                        let message = format!("{name} is not acted on by this version of Weft");
                        findings.info(code::NOT_IMPLEMENTED, path, message, "");
                    }
                    false => {
                        let message = format!("{name} is unknown");
                        findings.warn(code::INVALID_ANNOTATION, path, message, "");
                    }
                }
            }
            super::proxy_settings(&config, path, findings);
        }
    }
}

/// A name under istio.io, or the one of Kubernetes' that Istio reads.
fn is_istios(name: &str) -> bool {
    let domain = name.split('/').next().unwrap_or_default();
    domain == "istio.io" || domain.ends_with(".istio.io") || name == "kubernetes.io/ingress.class"
}

/// Labels that ask for injection.
pub(crate) const INJECTION_LABEL: &str = "istio-injection";
pub(crate) const REVISION_LABEL: &str = "istio.io/rev";

/// Namespaces that no sidecar belongs into.
const SYSTEM: [&str; 5] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage", crate::ROOT_NAMESPACE];

/// The labels of a Namespace.
pub(super) fn namespace(name: &str, labels: &Labels, findings: &mut Findings<'_>) {
    let (injection, revision) = (labels.get(INJECTION_LABEL), labels.get(REVISION_LABEL));
    if injection.is_some() && revision.is_some() {
        let message = format!("has both {INJECTION_LABEL} and {REVISION_LABEL}; the first wins");
        let help = "Keep one of the two.";
        findings.report(code::INJECTION_LABELS, "metadata.labels", message, help);
    }
    let ambient = labels.get("istio.io/dataplane-mode").is_some_and(|mode| mode == "ambient");
    if injection.is_none() && revision.is_none() && !ambient && !SYSTEM.contains(&name) {
        let message = "the namespace is not enabled for injection";
        let help =
            "Set the label istio-injection to enabled, or to disabled to say that it is meant.";
        findings.report(code::NOT_INJECTED, "metadata.labels", message, help);
    }
}
