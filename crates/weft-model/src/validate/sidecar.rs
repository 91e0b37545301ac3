//! Sidecar: egress hosts and the listeners of both directions.

use super::Findings;
use super::bounds;
use super::destination_rule::connection_pool;
use super::gateway::{check_port, one_certificate, server_tls};
use super::text::{is_dns_name, is_host, is_ip, is_label, is_port};
use crate::spec::{CaptureMode, EgressListener, IngressListener, OutboundMode, Sidecar};

pub(super) fn check(spec: &Sidecar, findings: &mut Findings<'_>) {
    let empty = spec.egress.is_empty()
        && spec.ingress.is_empty()
        && spec.outbound_traffic_policy.is_none()
        && spec.inbound_connection_pool.is_none();
    if empty {
        findings.error("spec", "the Sidecar configures nothing");
    }
    if let Some(wanted) = &spec.workload_selector {
        bounds::selector(&wanted.labels, 256, "spec.workloadSelector.labels", findings);
    }
    connection_pool(spec.inbound_connection_pool.as_ref(), "spec.inboundConnectionPool", findings);
    for (index, ingress) in spec.ingress.iter().enumerate() {
        let path = format!("spec.ingress[{index}]");
        check_ingress(ingress, &path, findings);
        let number = |listener: &IngressListener| listener.port.as_ref().map(|port| port.number);
        let mine = number(ingress);
        if mine.is_some() && spec.ingress[..index].iter().any(|other| number(other) == mine) {
            findings.error(format!("{path}.port.number"), "two listeners have the same port");
        }
    }
    for (index, egress) in spec.egress.iter().enumerate() {
        check_egress(egress, &format!("spec.egress[{index}]"), findings);
        if egress.port.is_none() && index + 1 != spec.egress.len() {
            let message = "only the last listener may go without a port";
            findings.error(format!("spec.egress[{index}].port"), message);
        }
    }
    if let Some(policy) = &spec.outbound_traffic_policy
        && policy.egress_proxy.is_some()
        && policy.mode != OutboundMode::AllowAny
    {
        let path = "spec.outboundTrafficPolicy.egressProxy";
        findings.error(path, "an egress proxy needs mode ALLOW_ANY");
    }
}

fn check_ingress(ingress: &IngressListener, path: &str, findings: &mut Findings<'_>) {
    bind(&ingress.bind, path, findings);
    match &ingress.port {
        Some(port) => {
            check_port(port, &format!("{path}.port"), false, findings);
        }
        None => findings.error(format!("{path}.port"), "a port is required"),
    }
    if !ingress.default_endpoint.is_empty() && !is_endpoint(&ingress.default_endpoint) {
        findings.error_with_help(
            format!("{path}.defaultEndpoint"),
            format!("{:?} is not an endpoint", ingress.default_endpoint),
            "Use 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:///path.",
        );
    }
    connection_pool(ingress.connection_pool.as_ref(), &format!("{path}.connectionPool"), findings);
    if let Some(tls) = &ingress.tls {
        one_certificate(tls, &format!("{path}.tls"), findings);
        server_tls(tls, &format!("{path}.tls"), findings);
    }
}

/// Istio allows only the workload itself: loopback, or its own address by the wildcard.
fn is_endpoint(endpoint: &str) -> bool {
    if let Some(socket) = endpoint.strip_prefix("unix://") {
        return !socket.is_empty();
    }
    let Some((host, port)) = endpoint.rsplit_once(':') else { return false };
    let local = matches!(host, "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]");
    local && port.parse().is_ok_and(is_port)
}

fn check_egress(egress: &EgressListener, path: &str, findings: &mut Findings<'_>) {
    bind(&egress.bind, path, findings);
    match &egress.port {
        // A Unix socket takes port 0.
        Some(port) if egress.bind.starts_with("unix://") => {
            if port.number != 0 {
                findings.error(format!("{path}.port.number"), "a Unix socket has port 0");
            }
        }
        Some(port) => {
            check_port(port, &format!("{path}.port"), false, findings);
        }
        None => {
            if !egress.bind.is_empty() {
                findings.error(format!("{path}.port"), "a bind address needs a port");
            }
            if egress.capture_mode == CaptureMode::None {
                findings.error_with_help(
                    format!("{path}.port"),
                    "captureMode NONE needs a port to listen on",
                    "Set port.number and port.protocol.",
                );
            }
        }
    }
    if egress.hosts.is_empty() {
        findings.error(format!("{path}.hosts"), "at least one host is required");
    }
    for (index, host) in egress.hosts.iter().enumerate() {
        egress_host(host, format!("{path}.hosts[{index}]"), findings);
    }
}

fn bind(bind: &str, path: &str, findings: &mut Findings<'_>) {
    if !bind.is_empty() && !bind.starts_with("unix://") && !is_ip(bind) {
        findings.error(format!("{path}.bind"), format!("{bind:?} is not an address"));
    }
}

/// `namespace/host`.
fn egress_host(host: &str, path: String, findings: &mut Findings<'_>) {
    let Some((namespace, name)) = host.split_once('/') else {
        findings.error_with_help(
            path,
            format!("{host:?} has no namespace"),
            "Use namespace/host, ./host for this namespace, */host for all.",
        );
        return;
    };
    let bare = namespace.strip_prefix('~').filter(|rest| !rest.is_empty()).unwrap_or(namespace);
    if !matches!(bare, "*" | "." | "~") && !is_label(bare) {
        findings.error(path, format!("{namespace:?} is not a namespace"));
    } else if !is_host(name) && !is_dns_name(name) {
        findings.error(path, format!("{name:?} is not a host"));
    }
}
