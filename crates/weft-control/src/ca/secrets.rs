//! SDS `default` and `ROOTCA` for a proxy that does not ask the CA itself: stock Envoy.
//!
//! One value per authenticated ADS stream: the key lives in memory, belongs to that stream, and
//! is replaced together with its certificate at about half life.

use super::{Authority, CaError, Identity, renew_at};
use std::sync::Arc;
use std::time::SystemTime;
use weft_xds::Resource;
use weft_xds::pb::envoy::config::core::v3::DataSource;
use weft_xds::pb::envoy::config::core::v3::data_source::Specifier;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate,
};

/// SDS name of the workload's certificate and key.
const DEFAULT: &str = "default";
/// SDS name of the roots to trust.
const ROOT: &str = "ROOTCA";

/// The secrets of one stream.
pub struct StreamSecrets {
    authority: Authority,
    identity: Identity,
    current: Option<WorkloadSecrets>,
}

/// What to send now, and until when it is good.
#[derive(Debug, Clone)]
pub struct WorkloadSecrets {
    /// `default`: certificate chain and key.
    pub certificate: Resource,
    /// `ROOTCA`: the roots.
    pub root: Resource,
    /// What that says.
    pem: Arc<str>,
    /// Ask again at this time.
    pub renew_at: SystemTime,
}

impl StreamSecrets {
    /// For an identity that was authenticated and is known.
    pub fn new(authority: Authority, identity: Identity) -> Self {
        Self { authority, identity, current: None }
    }

    /// The secrets to serve at `now`: made at the first call, made anew once `renew_at` passed.
    /// `jitter` in 0..=1 is used when they are made.
    ///
    /// # Errors
    /// The authority's; the caller keeps what it sent before.
    pub fn at(&mut self, now: SystemTime, jitter: f64) -> Result<&WorkloadSecrets, CaError> {
        let current = match self.current.take() {
            Some(current) if now < current.renew_at => current,
            stale => match self.make(now, jitter) {
                Ok(fresh) => fresh,
                Err(error) => {
                    self.current = stale;
                    return Err(error);
                }
            },
        };
        let current = self.current.insert(current);
        let pem = self.authority.root_pem();
        if current.pem != pem {
            (current.root, current.pem) = (roots(&pem), pem);
        }
        Ok(current)
    }

    fn make(&self, now: SystemTime, jitter: f64) -> Result<WorkloadSecrets, CaError> {
        let (key, certificate) = self.authority.generate(&self.identity, now)?;
        let renew_at = renew_at(certificate.issued, certificate.ends, jitter);
        let shown = certificate.chain[..certificate.chain.len() - 1].concat();
        let tls = TlsCertificate {
            // Without the roots, which are last: peers hold them.
            certificate_chain: Some(inline(&shown)),
            private_key: Some(inline(&key.serialize_pem())),
            ..TlsCertificate::default()
        };
        let pem = self.authority.root_pem();
        Ok(WorkloadSecrets {
            certificate: secret(DEFAULT, Type::TlsCertificate(tls)),
            root: roots(&pem),
            pem,
            renew_at,
        })
    }
}

fn roots(pem: &str) -> Resource {
    let roots = CertificateValidationContext {
        trusted_ca: Some(inline(pem)),
        ..CertificateValidationContext::default()
    };
    secret(ROOT, Type::ValidationContext(roots))
}

fn secret(name: &str, content: Type) -> Resource {
    Resource::new(name, &Secret { name: name.into(), r#type: Some(content) })
}

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())),
        ..DataSource::default()
    }
}
