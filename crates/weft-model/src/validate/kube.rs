//! Kubernetes' Service and Pod: what the API server would refuse, and Istio's port naming.

use super::text::{is_ip, is_port};
use super::{Findings, port_number};
use crate::diagnostic::code;
use crate::snapshot::{Protocol, TrafficDistribution};
use crate::spec::{IntOrString, KubeServicePort, Pod, PodSpec, Service};

pub(super) fn service(spec: &Service, findings: &mut Findings<'_>) {
    let external = spec.service_type == "ExternalName";
    if external && spec.external_name.is_empty() {
        findings.error("spec.externalName", "required by type ExternalName");
    }
    if !matches!(spec.cluster_ip.as_str(), "" | "None") && !is_ip(&spec.cluster_ip) {
        let message = format!("{:?} is neither an address nor None", spec.cluster_ip);
        findings.error("spec.clusterIP", message);
    }
    if let Some(word) = &spec.traffic_distribution
        && TrafficDistribution::parse(word).is_none()
    {
        findings.warn(
            code::SCHEMA_WARNING,
            "spec.trafficDistribution",
            format!("{word:?} is not known and has no effect"),
            "Use PreferSameZone, PreferSameNode or PreferClose.",
        );
    }
    for (index, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        service_port(port, &path, findings);
        if external && (port.name.is_empty() || port.name.starts_with("tcp")) {
            let message =
                "a TCP or unnamed port of an ExternalName service takes all traffic of its port";
            let help = "Name it by its protocol, such as http or https.";
            findings.report(code::EXTERNAL_NAME_PORT, format!("{path}.name"), message, help);
        }
        if spec.ports.len() > 1 && port.name.is_empty() {
            findings.error(format!("{path}.name"), "required when there are several ports");
        }
        let twice = |other: &KubeServicePort| other.name == port.name && !port.name.is_empty();
        if spec.ports[..index].iter().any(twice) {
            let message = format!("the port name {:?} is given twice", port.name);
            findings.error(format!("{path}.name"), message);
        }
    }
}

fn service_port(port: &KubeServicePort, path: &str, findings: &mut Findings<'_>) {
    port_number(port.port, format!("{path}.port"), findings);
    if !matches!(port.protocol.as_str(), "" | "TCP" | "UDP" | "SCTP") {
        let message = format!("expected TCP, UDP or SCTP, found {:?}", port.protocol);
        findings.error(format!("{path}.protocol"), message);
    }
    if let Some(IntOrString::Int(target)) = port.target_port
        && target != 0
        && !u32::try_from(target).is_ok_and(is_port)
    {
        let message = format!("{target} is not a port number from 1 to 65535");
        findings.error(format!("{path}.targetPort"), message);
    }
    let app = port.app_protocol.as_deref();
    let protocol = Protocol::of_service_port(port.port, &port.name, &port.protocol, app);
    if protocol.is_auto() {
        findings.info(
            code::PORT_NAME,
            format!("{path}.name"),
            format!("the name of port {} says no protocol, so it is sniffed", port.port),
            "Name it PROTOCOL[-SUFFIX], for example http-web, or set appProtocol.",
        );
    }
}

/// The sidecar's own user: what runs as it is not captured.
const PROXY_USER: i64 = 1337;

/// Applications that run as the sidecar's user.
pub(super) fn runs_as_proxy(spec: &PodSpec, path: &str, findings: &mut Findings<'_>) {
    let mut report = |path: String| {
        let message = format!("user {PROXY_USER} is reserved for the sidecar proxy");
        let help = "Run the application as another user; its traffic is not captured.";
        findings.report(code::PROXY_USER, path, message, help);
    };
    if spec.security_context.run_as_user == Some(PROXY_USER) {
        report(format!("{path}.securityContext.runAsUser"));
    }
    for (index, container) in spec.containers.iter().enumerate() {
        if container.name != "istio-proxy"
            && container.security_context.run_as_user == Some(PROXY_USER)
        {
            report(format!("{path}.containers[{index}].securityContext.runAsUser"));
        }
    }
}

pub(super) fn pod(pod: &Pod, findings: &mut Findings<'_>) {
    runs_as_proxy(&pod.spec, "spec", findings);
    if !pod.status.pod_ip.is_empty() && !is_ip(&pod.status.pod_ip) {
        let message = format!("{:?} is not an address", pod.status.pod_ip);
        findings.error("status.podIP", message);
    }
    if pod.status.pod_ip.is_empty() && pod.status.pod_ips.is_empty() {
        findings.info(
            code::SCHEMA_WARNING,
            "status.podIP",
            "without an address the Pod is nobody's endpoint",
            "",
        );
    }
    for (index, ip) in pod.status.pod_ips.iter().enumerate().filter(|(_, ip)| !is_ip(&ip.ip)) {
        let message = format!("{:?} is not an address", ip.ip);
        findings.error(format!("status.podIPs[{index}].ip"), message);
    }
}
