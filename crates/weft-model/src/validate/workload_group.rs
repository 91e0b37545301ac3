//! WorkloadGroup: a template without an address, and a probe of one kind.

use super::service_entry::check_workload;
use super::{Findings, bounds};
use crate::spec::WorkloadGroup;

pub(super) fn check(spec: &WorkloadGroup, findings: &mut Findings<'_>) {
    // The address of each is its own: any that is one will do.
    let mut template = spec.template.clone();
    if template.address.is_empty() {
        template.address = "0.0.0.0".to_owned();
    }
    check_workload(&template, "spec.template", findings);
    bounds::count(spec.metadata.labels.len(), 256, "spec.metadata.labels".to_owned(), findings);
    let Some(probe) = &spec.probe else { return };
    let kinds = [&probe.http_get, &probe.tcp_socket, &probe.exec, &probe.grpc];
    if kinds.iter().filter(|kind| kind.is_some()).count() != 1 {
        findings.error("spec.probe", "exactly one of httpGet, tcpSocket, exec, grpc is required");
    }
    let times = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (field, value) in times {
        if value < 0 {
            findings.error(format!("spec.probe.{field}"), "must not be negative");
        }
    }
}
