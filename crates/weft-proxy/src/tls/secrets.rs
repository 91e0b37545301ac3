//! The certificates, keys and trust roots this process has now, by SDS name, wherever they came
//! from: our own CA, the control plane, or files. One immutable map swapped whole; a handshake
//! reads it once. A secret that does not parse is refused here and the old one stays.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::sync::watch;

use super::TlsError;

/// Shared by all workers and the control runtime.
pub struct Secrets {
    current: ArcSwap<SecretMap>,
    write: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// One immutable state of all secrets.
#[derive(Default, Clone)]
pub struct SecretMap {
    /// Grows with every change; caches of TLS configurations compare it.
    pub version: u64,
    certificates: HashMap<Arc<str>, Arc<Certificate>>,
    /// What verifiers use: the union of the parts.
    roots: HashMap<Arc<str>, Arc<Roots>>,
    parts: HashMap<(Arc<str>, RootsFrom), Arc<Roots>>,
    lists: HashMap<Arc<str>, RevocationLists>,
}

/// Lists of revoked certificates, as webpki takes them.
pub type RevocationLists = Arc<[CertificateRevocationListDer<'static>]>;

/// Where trust roots were learned. All sources of one name are trusted together, so that a root
/// rotation which reaches them at different times refuses nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RootsFrom {
    /// The answer of the CA that issued our certificate.
    Authority,
    /// Pushed by SDS.
    Sds,
    /// A file.
    File,
}

/// A certificate chain with its key, ready for handshakes.
pub struct Certificate {
    /// What rustls signs with.
    pub key: Arc<CertifiedKey>,
    /// What `/certs` shows.
    pub info: CertificateInfo,
}

/// Trust roots.
pub struct Roots {
    /// For the verifiers.
    pub store: Arc<RootCertStore>,
    /// What `/certs` shows, one for each root.
    pub info: Vec<CertificateInfo>,
    /// Certificates that these roots, or others under them, took back.
    pub revoked: RevocationLists,
}

/// The public facts of a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Subject alternative names, URIs first.
    pub sans: Vec<String>,
    /// Upper-case hex.
    pub serial: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
}

impl Default for Secrets {
    fn default() -> Self {
        Secrets::new()
    }
}

impl Secrets {
    /// No secrets yet.
    pub fn new() -> Secrets {
        Secrets {
            current: ArcSwap::from_pointee(SecretMap::default()),
            write: Mutex::new(()),
            changed: watch::Sender::new(0),
        }
    }

    /// The state now.
    pub fn current(&self) -> Arc<SecretMap> {
        self.current.load_full()
    }

    /// Announces the version of every new state.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Sets or replaces a certificate with its key.
    pub fn set_certificate(&self, name: &str, certificate: Certificate) {
        self.update(|map| {
            map.certificates.insert(name.into(), Arc::new(certificate));
        });
    }

    /// Sets or replaces the trust roots one source knows under a name.
    pub fn set_roots(&self, name: &str, from: RootsFrom, roots: Roots) {
        self.update(|map| {
            map.parts.insert((name.into(), from), Arc::new(roots));
            map.join_roots(name);
        });
    }

    /// Sets or replaces lists of revoked certificates that are no secret's.
    pub fn set_lists(&self, name: &str, lists: RevocationLists) {
        self.update(|map| {
            map.lists.insert(name.into(), lists);
        });
    }

    /// Forgets what SDS said under this name.
    pub fn remove(&self, name: &str) {
        self.update(|map| {
            map.certificates.remove(name);
            map.parts.remove(&(name.into(), RootsFrom::Sds));
            map.join_roots(name);
        });
    }

    fn update(&self, change: impl FnOnce(&mut SecretMap)) {
        let _one_writer = self.write.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut next = SecretMap::clone(&self.current.load());
        change(&mut next);
        next.version += 1;
        let version = next.version;
        self.current.store(Arc::new(next));
        self.changed.send_replace(version);
    }
}

impl SecretMap {
    fn join_roots(&mut self, name: &str) {
        let parts = || self.parts.iter().filter(|((part, _), _)| **part == *name);
        let joined = match (parts().count(), parts().next()) {
            (0, _) | (_, None) => {
                self.roots.remove(name);
                return;
            }
            (1, Some((_, only))) => only.clone(),
            _ => Arc::new(Roots::union(parts().map(|(_, roots)| &**roots))),
        };
        self.roots.insert(name.into(), joined);
    }

    /// A certificate by SDS name.
    pub fn certificate(&self, name: &str) -> Option<&Arc<Certificate>> {
        self.certificates.get(name)
    }

    /// Trust roots by SDS name.
    pub fn roots(&self, name: &str) -> Option<&Arc<Roots>> {
        self.roots.get(name)
    }

    /// Lists of revoked certificates by name.
    pub fn lists(&self, name: &str) -> Option<&RevocationLists> {
        self.lists.get(name)
    }

    /// All certificates, for `/certs`.
    pub fn certificates(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Certificate>)> {
        self.certificates.iter()
    }

    /// All trust roots, for `/certs`.
    pub fn all_roots(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Roots>)> {
        self.roots.iter()
    }
}

impl Certificate {
    /// From PEM: a chain, leaf first, and its private key (PKCS #8, PKCS #1 or SEC 1).
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Certificate, TlsError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| TlsError::BadSecret(format!("private key: {error}")))?;
        Certificate::from_der(chain, key)
    }

    /// From DER; checks that the key belongs to the leaf.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Certificate, TlsError> {
        let Some(leaf) = chain.first() else {
            return Err(TlsError::BadSecret("the chain holds no certificate".into()));
        };
        let info = CertificateInfo::read(leaf)?;
        let key = CertifiedKey::from_der(chain, key, &super::provider())
            .map_err(|error| TlsError::BadSecret(format!("certificate and key: {error}")))?;
        Ok(Certificate { key: Arc::new(key), info })
    }
}

impl Roots {
    /// From a PEM bundle of at least one certificate.
    pub fn from_pem(bundle: &[u8]) -> Result<Roots, TlsError> {
        let mut store = RootCertStore::empty();
        let mut info = Vec::new();
        for root in certificates(bundle)? {
            info.push(CertificateInfo::read(&root)?);
            store.add(root).map_err(|error| TlsError::BadSecret(format!("trust root: {error}")))?;
        }
        Ok(Roots { store: Arc::new(store), info, revoked: Arc::default() })
    }

    fn union<'a>(parts: impl Iterator<Item = &'a Roots>) -> Roots {
        let mut store = RootCertStore::empty();
        let mut info: Vec<CertificateInfo> = Vec::new();
        let mut revoked = Vec::new();
        for part in parts {
            revoked.extend(part.revoked.iter().cloned());
            for anchor in &part.store.roots {
                if !store.roots.contains(anchor) {
                    store.roots.push(anchor.clone());
                }
            }
            for root in &part.info {
                if !info.contains(root) {
                    info.push(root.clone());
                }
            }
        }
        Roots { store: Arc::new(store), info, revoked: revoked.into() }
    }
}

/// From PEM text of at least one list.
pub fn revocation_lists(pem: &[u8]) -> Result<RevocationLists, TlsError> {
    let lists: RevocationLists = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::BadSecret(format!("revocation list: {error}")))?;
    match lists.is_empty() {
        true => Err(TlsError::BadSecret("no revocation list in the PEM text".into())),
        false => Ok(lists),
    }
}

impl CertificateInfo {
    /// Reads the facts out of a DER certificate.
    pub fn read(der: &CertificateDer<'_>) -> Result<CertificateInfo, TlsError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| TlsError::BadSecret(format!("certificate: {error}")))?;
        let validity = certificate.validity();
        Ok(CertificateInfo {
            sans: super::verify::subject_alt_names(&certificate)
                .into_iter()
                .map(|san| san.value)
                .collect(),
            serial: format!("{:X}", certificate.tbs_certificate.serial),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::BadSecret(format!("certificate chain: {error}")))?;
    match certificates.is_empty() {
        true => Err(TlsError::BadSecret("no certificate in the PEM text".into())),
        false => Ok(certificates),
    }
}
