//! References from one resource to another: does it exist, is it of a kind we know, may it be
//! referred to from another namespace.

use std::sync::Arc;

use base64::Engine as _;

use super::{Route, api};
use crate::names::CLUSTER_DOMAIN;
use crate::object::{Kind, Resource};
use crate::snapshot::Snapshot;

/// Where a backend reference leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub host: String,
    pub port: u16,
}

/// Why a reference does not hold: the API's reason, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefProblem {
    pub reason: &'static str,
    pub message: String,
}

impl RefProblem {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        RefProblem { reason, message: message.into() }
    }
}

/// Who refers, for ReferenceGrants.
#[derive(Debug, Clone, Copy)]
pub(super) struct From<'a> {
    pub(super) kind: Kind,
    pub(super) namespace: &'a str,
}

/// Keys of a certificate and its key in Secrets, in Kubernetes' and Istio's older spelling.
const PAIRS: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert", "key")];

impl Snapshot {
    /// The service and port that a route's backend reference names.
    pub fn backend(&self, route: &Route, to: &api::ObjectRef) -> Result<Backend, RefProblem> {
        let own = &*route.meta().namespace;
        let namespace = to.namespace.as_deref().unwrap_or(own);
        let host = match (to.group.as_str(), to.kind.as_str()) {
            ("", "Service") => format!("{}.{namespace}.svc.{CLUSTER_DOMAIN}", to.name),
            // Istio's own: a host as it stands in the registry.
            ("networking.istio.io", "Hostname") => to.name.to_ascii_lowercase(),
            ("networking.istio.io", "ServiceEntry") => {
                let entry = self.inner.service_entries.get(namespace, &to.name);
                let host = entry.and_then(|entry| entry.spec.hosts.first());
                host.map(|host| host.to_ascii_lowercase()).unwrap_or_default()
            }
            (group, kind) => {
                let message = format!("a backend cannot be a {}", qualified(group, kind));
                return Err(RefProblem::new("InvalidKind", message));
            }
        };
        let from = From { kind: route.kind(), namespace: own };
        if to.kind != "Hostname" && !self.permitted(from, &to.group, &to.kind, namespace, &to.name)
        {
            return Err(not_permitted(&to.kind, namespace, &to.name));
        }
        let not_found =
            || RefProblem::new("BackendNotFound", format!("{} {host:?} is not defined", to.kind));
        let service = self.service_from(&host, own).ok_or_else(not_found)?;
        let Some(port) = to.port else {
            let message = format!("a port of {host} must be named");
            return Err(RefProblem::new("UnsupportedValue", message));
        };
        if service.port(port).is_none() {
            let message = format!("{host} has no port {port}");
            return Err(RefProblem::new("BackendNotFound", message));
        }
        Ok(Backend { host, port })
    }

    /// Is it of the referrer's namespace, or does a ReferenceGrant there allow it?
    pub(super) fn permitted(
        &self,
        from: From<'_>,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        if from.namespace == namespace {
            return true;
        }
        let grants = self.inner.gateway_api.reference_grants.namespace(namespace);
        grants.into_iter().any(|grant: &Arc<Resource<api::ReferenceGrant>>| {
            let source = grant.spec.from.iter().any(|one| {
                one.group == api::GROUP
                    && one.kind == from.kind.as_str()
                    && one.namespace == from.namespace
            });
            let target = grant.spec.to.iter().any(|one| {
                let named = one.name.as_deref().filter(|name| !name.is_empty());
                one.group == group && one.kind == kind && named.is_none_or(|one| one == name)
            });
            source && target
        })
    }

    /// The Secret of a certificate reference, as `(namespace, name)`.
    pub(super) fn certificate(
        &self,
        from: From<'_>,
        to: &api::SecretRef,
    ) -> Result<(String, String), RefProblem> {
        const REASON: &str = "InvalidCertificateRef";
        if !to.group.is_empty() || to.kind != "Secret" {
            let message = format!("a certificate cannot be a {}", qualified(&to.group, &to.kind));
            return Err(RefProblem::new(REASON, message));
        }
        let namespace = to.namespace.as_deref().unwrap_or(from.namespace);
        if !self.permitted(from, &to.group, &to.kind, namespace, &to.name) {
            return Err(not_permitted(&to.kind, namespace, &to.name));
        }
        let Some(secret) = self.secret(namespace, &to.name) else {
            let message = format!("Secret {namespace}/{} is not defined", to.name);
            return Err(RefProblem::new(REASON, message));
        };
        let holds = |key: &str, label: &str| {
            secret.spec.data.get(key).is_some_and(|value| is_pem(value, label))
        };
        if !PAIRS.iter().any(|(cert, key)| holds(cert, "CERTIFICATE") && holds(key, "PRIVATE KEY"))
        {
            let message = format!("Secret {namespace}/{} has no certificate with its key", to.name);
            return Err(RefProblem::new(REASON, message));
        }
        Ok((namespace.to_owned(), to.name.clone()))
    }

    /// The ConfigMap or Secret with CA certificates that a reference names.
    pub(super) fn roots(
        &self,
        from: From<'_>,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(Kind, String, String), RefProblem> {
        let found = match (group, kind) {
            ("", "ConfigMap") => Kind::ConfigMap,
            ("", "Secret") => Kind::Secret,
            _ => {
                let message = format!("CA certificates cannot be a {}", qualified(group, kind));
                return Err(RefProblem::new("InvalidKind", message));
            }
        };
        if !self.permitted(from, group, kind, namespace, name) {
            return Err(not_permitted(kind, namespace, name));
        }
        match self.root_certificates(found, namespace, name) {
            Some(_) => Ok((found, namespace.to_owned(), name.to_owned())),
            None => {
                let message = format!("{kind} {namespace}/{name} has no certificate in ca.crt");
                Err(RefProblem::new("InvalidCACertificateRef", message))
            }
        }
    }

    /// `ca.crt` of a ConfigMap or Secret, when it holds certificates (PEM).
    pub fn root_certificates(&self, kind: Kind, namespace: &str, name: &str) -> Option<Vec<u8>> {
        const KEY: &str = "ca.crt";
        let text = match kind {
            Kind::ConfigMap => {
                let map = self.inner.config_maps.get(namespace, name)?;
                map.spec.data.get(KEY)?.clone().into_bytes()
            }
            Kind::Secret => self.secret(namespace, name)?.spec.data.get(KEY)?.clone(),
            _ => return None,
        };
        is_pem(&text, "CERTIFICATE").then_some(text)
    }
}

pub(super) fn not_permitted(kind: &str, namespace: &str, name: &str) -> RefProblem {
    let message = format!("no ReferenceGrant in {namespace} allows {kind} {namespace}/{name}");
    RefProblem::new("RefNotPermitted", message)
}

fn qualified(group: &str, kind: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind} of {group}") }
}

/// Is it PEM blocks, all whose label ends so holding DER, and at least one does? Stock Envoy refuses
/// a whole cluster or secret for less; what the DER means, TLS will say.
fn is_pem(text: &[u8], label: &str) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let mut found = false;
    for block in text.split("-----BEGIN ").skip(1) {
        let Some((name, rest)) = block.split_once("-----") else { return false };
        if !name.ends_with(label) {
            continue;
        }
        let Some((body, _)) = rest.split_once("-----END ") else { return false };
        let body: String = body.split_ascii_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body);
        if !der.is_ok_and(|der| is_sequence(&der)) {
            return false;
        }
        found = true;
    }
    found
}

/// One DER SEQUENCE, no more and no less.
fn is_sequence(der: &[u8]) -> bool {
    let (length, rest) = match der {
        [0x30, short @ 0..=0x7f, rest @ ..] => (usize::from(*short), rest),
        [0x30, long @ 0x81..=0x84, rest @ ..] => {
            let bytes = usize::from(long & 0x7f);
            let Some((length, rest)) = rest.split_at_checked(bytes) else { return false };
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return false,
    };
    rest.len() == length
}
