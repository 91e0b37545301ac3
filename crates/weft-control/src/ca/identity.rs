//! A workload's name: namespace and service account, printed as a SPIFFE id.

use super::CaError;
use std::sync::Arc;

/// Longest Kubernetes name (RFC 1123 subdomain).
const NAME_BYTES_MAX: usize = 253;

/// Who a workload is. Both parts are Kubernetes names, so the SPIFFE id needs no escaping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// # Errors
    /// [`CaError::Identity`] when a part is no Kubernetes name.
    pub fn new(namespace: &str, service_account: &str) -> Result<Self, CaError> {
        if is_name(namespace) && is_name(service_account) {
            Ok(Self { namespace: namespace.into(), service_account: service_account.into() })
        } else {
            Err(CaError::Identity(format!("{namespace}/{service_account}")))
        }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`
    pub fn spiffe(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.service_account)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

/// RFC 1123 subdomain: what Kubernetes accepts, and nothing that means anything in a URI.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && bytes.iter().all(|b| allowed(*b))
        && edge(bytes.first())
        && edge(bytes.last())
        && !text.contains("..")
}
