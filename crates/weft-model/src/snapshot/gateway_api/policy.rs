//! BackendTLSPolicy, and the certificate that a Gateway shows its backends.

use std::sync::Arc;

use super::reference::From;
use super::status::service_host;
use super::{Condition, ParentStatus, RefProblem, Status, api, seniority};
use crate::object::{Kind, Resource};
use crate::snapshot::{MeshService, Snapshot};

/// TLS towards one port of a service, as a BackendTLSPolicy wants it.
#[derive(Debug, Clone)]
pub struct BackendTls<'a> {
    pub policy: &'a Arc<Resource<api::BackendTlsPolicy>>,
    /// PEM; none: the system's.
    pub roots: Option<Vec<u8>>,
    /// The policy's CA certificates cannot be used: nobody may be trusted.
    pub broken: bool,
}

impl Snapshot {
    /// The policy for a port of a service: one for the port before one for the service, the oldest
    /// first.
    pub fn backend_tls(&self, service: &MeshService, port: u16) -> Option<BackendTls<'_>> {
        let policies = self.inner.gateway_api.backend_tls_policies.namespace(&service.namespace);
        let port_name = service.port(port).map(|port| &*port.name)?;
        let mut best: Option<(bool, &Arc<Resource<api::BackendTlsPolicy>>)> = None;
        for policy in policies {
            for target in &policy.spec.target_refs {
                if !is_service(target)
                    || service_host(&policy.meta.namespace, &target.name) != *service.host
                {
                    continue;
                }
                let section = target.section_name.as_deref().filter(|name| !name.is_empty());
                if section.is_some_and(|name| name != port_name) {
                    continue;
                }
                let exact = section.is_some();
                let better = best.is_none_or(|(other_exact, other)| {
                    exact.cmp(&other_exact).is_gt()
                        || (exact == other_exact && seniority(&policy.meta, &other.meta).is_lt())
                });
                if better {
                    best = Some((exact, policy));
                }
            }
        }
        let policy = best?.1;
        match trusted(self, policy) {
            Ok(roots) => Some(BackendTls { policy, roots, broken: false }),
            Err(_) => Some(BackendTls { policy, roots: None, broken: true }),
        }
    }
}

fn is_service(target: &api::PolicyTarget) -> bool {
    (target.group.as_str(), target.kind.as_str()) == ("", "Service")
}

/// The certificates the policy trusts; `None`: the system's.
fn trusted(
    snapshot: &Snapshot,
    policy: &Resource<api::BackendTlsPolicy>,
) -> Result<Option<Vec<u8>>, RefProblem> {
    let validation = &policy.spec.validation;
    if validation.ca_certificate_refs.is_empty() {
        return match validation.well_known_ca_certificates.as_str() {
            "System" => Ok(None),
            other => {
                let message = format!("no well-known CA certificates {other:?}; \"System\" is");
                Err(RefProblem::new("Invalid", message))
            }
        };
    }
    let from = From { kind: Kind::BackendTlsPolicy, namespace: &policy.meta.namespace };
    let mut all = Vec::new();
    let mut problem = None;
    for to in &validation.ca_certificate_refs {
        match snapshot.roots(from, &to.group, &to.kind, from.namespace, &to.name) {
            Ok((kind, namespace, name)) => {
                let roots = snapshot.root_certificates(kind, &namespace, &name);
                all.extend(roots.unwrap_or_default());
                all.push(b'\n');
            }
            Err(one) => problem = Some(one),
        }
    }
    match problem {
        Some(problem) if all.is_empty() => Err(problem),
        _ => Ok(Some(all)),
    }
}

/// The certificate a Gateway shows its backends, as `(namespace, name)` of its Secret.
pub(super) fn client_certificate(
    snapshot: &Snapshot,
    gateway: &Resource<api::Gateway>,
) -> Result<Option<(String, String)>, RefProblem> {
    let backend = gateway.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
    let Some(reference) = backend.and_then(|backend| backend.client_certificate_ref.as_ref())
    else {
        return Ok(None);
    };
    let from = From { kind: Kind::KubeGateway, namespace: &gateway.meta.namespace };
    snapshot.certificate(from, reference).map(Some)
}

impl super::ServedGateway {
    /// The Secret (`namespace`, `name`) whose certificate the Gateway shows its backends.
    pub fn client_certificate(&self, snapshot: &Snapshot) -> Option<(String, String)> {
        client_certificate(snapshot, &self.resource).ok().flatten()
    }
}

/// One ancestor for each Gateway that leads to a targeted service, else the service itself.
pub(super) fn status(snapshot: &Snapshot) -> Vec<Status> {
    let policies = snapshot.inner.gateway_api.backend_tls_policies.iter();
    policies.map(|policy| of_policy(snapshot, policy)).collect()
}

fn of_policy(snapshot: &Snapshot, policy: &Arc<Resource<api::BackendTlsPolicy>>) -> Status {
    let mut status = Status::new(Kind::BackendTlsPolicy, &policy.meta);
    let resolved = trusted(snapshot, policy).err();
    for (index, target) in policy.spec.target_refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{index}]");
        let refused = target_problem(snapshot, policy, target).or_else(|| {
            let message = "none of the CA certificates can be used".to_owned();
            resolved.as_ref().map(|_| ("NoValidCACertificate", message))
        });
        let references = resolved.as_ref().map(|one| (one.reason, one.message.clone()));
        let conditions = vec![
            Condition::new("Accepted", refused.as_ref(), &path),
            Condition::new("ResolvedRefs", references.as_ref(), "spec.validation"),
        ];
        for parent in ancestors(snapshot, policy, target) {
            if !status.parents.iter().any(|other| other.parent == parent) {
                status.parents.push(ParentStatus { parent, conditions: conditions.clone() });
            }
        }
    }
    status
}

fn target_problem(
    snapshot: &Snapshot,
    policy: &Arc<Resource<api::BackendTlsPolicy>>,
    target: &api::PolicyTarget,
) -> Option<(&'static str, String)> {
    if !is_service(target) {
        return Some(("TargetNotFound", format!("a {} cannot be a target", target.kind)));
    }
    let host = service_host(&policy.meta.namespace, &target.name);
    let Some(service) = snapshot.service_from(&host, &policy.meta.namespace) else {
        return Some(("TargetNotFound", format!("Service {} is not defined", target.name)));
    };
    let section = target.section_name.as_deref().filter(|name| !name.is_empty());
    let mut ports =
        service.ports.iter().filter(|port| section.is_none_or(|name| name == &*port.name));
    let Some(port) = ports.next() else {
        let message = format!("Service {} has no such port", target.name);
        return Some(("TargetNotFound", message));
    };
    let winner = snapshot.backend_tls(service, port.number)?.policy;
    // A policy for one port stands above one for the service, which still holds for the others.
    let beaten = !Arc::ptr_eq(winner, policy)
        && (section.is_some() || !ports.any(|port| wins(snapshot, policy, service, port.number)));
    beaten.then(|| ("Conflicted", format!("policy {} came first", winner.meta.name)))
}

fn wins(
    snapshot: &Snapshot,
    policy: &Arc<Resource<api::BackendTlsPolicy>>,
    service: &MeshService,
    port: u16,
) -> bool {
    snapshot.backend_tls(service, port).is_some_and(|tls| Arc::ptr_eq(tls.policy, policy))
}

fn ancestors(
    snapshot: &Snapshot,
    policy: &Resource<api::BackendTlsPolicy>,
    target: &api::PolicyTarget,
) -> Vec<api::ParentRef> {
    let host = service_host(&policy.meta.namespace, &target.name);
    let mut found = Vec::new();
    for gateway in &snapshot.gateway_api().gateways {
        let mut routes = gateway.listeners.iter().flat_map(|listener| &listener.routes);
        let leads = routes.any(|attached| {
            attached.route.backends().iter().any(|(_, to)| {
                snapshot.backend(&attached.route, to).is_ok_and(|backend| backend.host == host)
            })
        });
        if leads {
            let meta = &gateway.resource.meta;
            found.push(api::ParentRef {
                namespace: Some(meta.namespace.to_string()),
                name: meta.name.to_string(),
                ..api::ParentRef::default()
            });
        }
    }
    if found.is_empty() {
        found.push(api::ParentRef {
            group: target.group.clone(),
            kind: target.kind.clone(),
            name: target.name.clone(),
            ..api::ParentRef::default()
        });
    }
    found
}
