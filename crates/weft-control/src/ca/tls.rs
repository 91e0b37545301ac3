//! TLS of the control plane's own port, with a certificate that renews itself.

use super::{Authority, CaError, Identity, renew_at};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Names a proxy may know the control plane by, besides those given.
const NAMES: [&str; 4] = [
    "localhost",
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "weft-control",
];

/// TLS for the xDS port (15012): HTTP/2, server certificate from the mesh's own root for
/// `names` and `addresses`. Callers authenticate by join token.
///
/// # Errors
/// The authority's, if it cannot make the first certificate.
pub fn server_config(
    authority: Authority,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<Arc<ServerConfig>, CaError> {
    let all_names = NAMES.iter().map(ToString::to_string).chain(names.iter().cloned()).collect();
    let renewing = Renewing {
        authority,
        identity: Identity::new("istio-system", "weft-control")?,
        names: all_names,
        addresses: addresses.to_vec(),
        current: Mutex::new(None),
    };
    renewing.current(SystemTime::now())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(renewing));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Makes a new certificate when a handshake finds the old one past half of its life.
struct Renewing {
    authority: Authority,
    identity: Identity,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    current: Mutex<Option<(SystemTime, Arc<CertifiedKey>)>>,
}

impl Renewing {
    fn current(&self, now: SystemTime) -> Result<Arc<CertifiedKey>, CaError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((renew_at, key)) if now < *renew_at => Ok(key.clone()),
            _ => {
                let (renew_at, key) = self.make(now)?;
                *current = Some((renew_at, key.clone()));
                Ok(key)
            }
        }
    }

    fn make(&self, now: SystemTime) -> Result<(SystemTime, Arc<CertifiedKey>), CaError> {
        let Self { authority, identity, names, addresses, .. } = self;
        let (key, certificate) = authority.server(identity, names, addresses, now)?;
        let mut chain = vec![certificate.der.clone()];
        chain.extend(authority.chain_der());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)?;
        Ok((renew_at(certificate.issued, certificate.ends, 0.5), Arc::new(key)))
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.current(SystemTime::now()) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "the control plane's own certificate could not be renewed");
                let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                current.as_ref().map(|(_, key)| key.clone())
            }
        }
    }
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").field("names", &self.names).finish_non_exhaustive()
    }
}
