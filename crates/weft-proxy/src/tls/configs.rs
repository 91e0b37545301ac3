//! rustls configurations made from lowered TLS settings and the secrets of the moment. One cache
//! per worker, keyed by the settings themselves and the version of the secrets, so a rotated
//! certificate serves the next handshake and nothing has to be told about it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ClientConfig, NamedGroup, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion,
};
use weft_traffic::tls::{
    CertSource, CrlSource, DownstreamTls, RootSource, TlsParams, TlsVersions, UpstreamTls,
    Validation,
};

use super::secrets::{Certificate, Roots, SecretMap, Secrets, revocation_lists};
use super::verify::{DownstreamVerifier, Expected, Revoked, UpstreamVerifier};
use super::{SPELLING_ALPN, TlsError};

/// More settings than any configuration has live at once; past it the cache starts afresh.
const CACHED_MAX: usize = 4096;
/// Sessions a client configuration remembers for resumption, over all its upstreams.
const CLIENT_SESSIONS_MAX: usize = 32;

/// One worker's TLS configurations.
pub struct TlsConfigs {
    secrets: Arc<Secrets>,
    server: RefCell<Cache<(Arc<DownstreamTls>, AlpnAnswer), ServerConfig>>,
    client: RefCell<Cache<ClientKey, ClientConfig>>,
}

/// Settings and the name to check, where that is the endpoint's.
type ClientKey = (Arc<UpstreamTls>, Option<Arc<str>>);

/// Built configurations of one secrets version.
struct Cache<K, V> {
    version: u64,
    built: HashMap<K, Arc<V>>,
}

/// Whether a server configuration answers ALPN at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AlpnAnswer {
    Ours,
    /// The client is a proxy of ours, and our list has HTTP/2.
    Spelling,
    /// rustls aborts a handshake whose ALPN lists do not overlap; Istio clients offer `istio` to
    /// servers that want `h2`. Such a client gets no ALPN and is recognised by its first bytes.
    None,
}

/// SDS name under which a certificate pair on disk is kept, as Istio spells it.
pub fn file_certificate_name(chain: &str, key: &str) -> String {
    format!("file-cert:{chain}~{key}")
}

/// SDS name under which a root bundle on disk is kept, as Istio spells it.
pub fn file_roots_name(path: &str) -> String {
    format!("file-root:{path}")
}

/// Name under which lists of revoked certificates on disk are kept.
pub fn file_lists_name(path: &str) -> String {
    format!("file-crl:{path}")
}

/// Name of the machine's own trust roots in [`Secrets`].
pub const SYSTEM_ROOTS: &str = "file-root:system";

impl TlsConfigs {
    /// An empty cache over the process' secrets.
    pub fn new(secrets: Arc<Secrets>) -> TlsConfigs {
        TlsConfigs { secrets, server: RefCell::default(), client: RefCell::default() }
    }

    /// The configuration for a client that offers these ALPN names.
    pub fn server(
        &self,
        tls: &Arc<DownstreamTls>,
        offered: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let overlap = tls.alpn.iter().any(|ours| offered.contains(&&**ours));
        let answer = match overlap {
            true if tls.require_client_cert
                && has(&tls.alpn, "h2")
                && offered.contains(&SPELLING_ALPN.as_bytes()) =>
            {
                AlpnAnswer::Spelling
            }
            true => AlpnAnswer::Ours,
            false => AlpnAnswer::None,
        };
        let secrets = self.secrets.current();
        let key = (tls.clone(), answer);
        self.server.borrow_mut().get(secrets.version, key, || server_config(tls, answer, &secrets))
    }

    /// The configuration towards an upstream. `auto_name` is the endpoint's host name, used where
    /// the settings ask for SNI or name checks after it.
    pub fn client(
        &self,
        tls: &Arc<UpstreamTls>,
        auto_name: Option<&str>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let checked = tls
            .auto_sni_san_validation
            .then(|| auto_name.filter(|_| tls.auto_host_sni).or(tls.sni.as_deref()))
            .flatten()
            .map(Arc::<str>::from);
        let secrets = self.secrets.current();
        let key = (tls.clone(), checked.clone());
        self.client
            .borrow_mut()
            .get(secrets.version, key, || client_config(tls, checked.as_deref(), &secrets))
    }
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache { version: 0, built: HashMap::new() }
    }
}

impl<K: std::hash::Hash + Eq, V> Cache<K, V> {
    fn get(
        &mut self,
        version: u64,
        key: K,
        build: impl FnOnce() -> Result<V, TlsError>,
    ) -> Result<Arc<V>, TlsError> {
        if self.version != version || self.built.len() >= CACHED_MAX {
            self.built.clear();
            self.version = version;
        }
        if let Some(config) = self.built.get(&key) {
            return Ok(config.clone());
        }
        let config = Arc::new(build()?);
        self.built.insert(key, config.clone());
        Ok(config)
    }
}

fn server_config(
    tls: &DownstreamTls,
    answer: AlpnAnswer,
    secrets: &SecretMap,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider(&tls.params))
        .with_protocol_versions(versions(tls.params.versions))
        .map_err(|error| TlsError::BadSecret(format!("protocol versions: {error}")))?;
    let verifier = match &tls.validation {
        Some(validation) if tls.require_client_cert || validation.roots.is_some() => {
            client_verifier(tls, validation, secrets)?
        }
        _ => WebPkiClientVerifier::no_client_auth(),
    };
    let certificates = certificates(&tls.certificates, secrets)?;
    if certificates.is_empty() {
        return Err(TlsError::MissingSecret("of a listener without any certificate".into()));
    }
    let picker = Arc::new(CertificatePicker { certificates });
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(picker);
    config.alpn_protocols = match answer {
        AlpnAnswer::Ours => protocols(&tls.alpn),
        AlpnAnswer::Spelling => vec![SPELLING_ALPN.into()],
        AlpnAnswer::None => Vec::new(),
    };
    // One ticket: every ticket is a signature's worth of CPU, and clients here keep connections.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn client_verifier(
    tls: &DownstreamTls,
    validation: &Validation,
    secrets: &SecretMap,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let Some(source) = &validation.roots else {
        return Err(TlsError::BadSecret(
            "client certificates are required but no trusted CA is configured".into(),
        ));
    };
    let roots = roots(source, secrets)?;
    let revoked = revoked(validation, &roots, secrets)?;
    let expected = Expected::new(validation, None);
    let (required, untrusted) = (tls.require_client_cert, validation.accept_untrusted);
    let verifier = DownstreamVerifier::new(&roots, revoked, expected, required, untrusted)?;
    Ok(Arc::new(verifier))
}

fn client_config(
    tls: &UpstreamTls,
    checked_name: Option<&str>,
    secrets: &SecretMap,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider(&tls.params))
        .with_protocol_versions(versions(tls.params.versions))
        .map_err(|error| TlsError::BadSecret(format!("protocol versions: {error}")))?;
    let verifier = match &tls.validation {
        None => UpstreamVerifier::new(None, Expected::default()),
        Some(validation) => upstream_verifier(validation, checked_name, secrets)?,
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match certificates(&tls.certificates, secrets)?.first() {
        Some(key) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(key)))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(&tls.alpn);
    if has(&tls.alpn, "istio") && has(&tls.alpn, "h2") {
        config.alpn_protocols.insert(0, SPELLING_ALPN.into());
    }
    config.enable_sni = tls.sni.is_some() || tls.auto_host_sni;
    config.resumption = rustls::client::Resumption::in_memory_sessions(CLIENT_SESSIONS_MAX);
    Ok(config)
}

fn upstream_verifier(
    validation: &Validation,
    checked_name: Option<&str>,
    secrets: &SecretMap,
) -> Result<UpstreamVerifier, TlsError> {
    let expected = Expected::new(validation, checked_name);
    let Some(source) = &validation.roots else { return Ok(UpstreamVerifier::new(None, expected)) };
    let roots = roots(source, secrets)?;
    let revoked = revoked(validation, &roots, secrets)?;
    match revoked.lists.is_empty() {
        true => Ok(UpstreamVerifier::new(Some(&roots), expected)),
        false => UpstreamVerifier::with_lists(&roots, revoked, expected),
    }
}

/// What the roots' own secret lists, and what the settings name.
fn revoked(
    validation: &Validation,
    roots: &Roots,
    secrets: &SecretMap,
) -> Result<Revoked, TlsError> {
    let mut lists = roots.revoked.to_vec();
    match &validation.revoked {
        None => {}
        Some(CrlSource::Inline(pem)) => lists.extend(revocation_lists(pem)?.iter().cloned()),
        Some(CrlSource::File(path)) => {
            let name: Arc<str> = file_lists_name(path).into();
            let found = secrets.lists(&name).ok_or(TlsError::MissingSecret(name))?;
            lists.extend(found.iter().cloned());
        }
    }
    Ok(Revoked { lists, leaf_only: validation.revoked_leaf_only })
}

fn protocols(alpn: &[Box<[u8]>]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}

fn has(alpn: &[Box<[u8]>], name: &str) -> bool {
    alpn.iter().any(|one| **one == *name.as_bytes())
}

/// Our cryptography, less what the settings leave out.
fn provider(params: &TlsParams) -> Arc<CryptoProvider> {
    let all = super::provider();
    let TlsParams { versions: _, ciphers, curves } = params;
    if ciphers.is_empty() && curves.is_empty() {
        return all;
    }
    let mut fewer = CryptoProvider::clone(&all);
    let is_listed = |list: &[Box<str>], name: Option<&str>| {
        list.is_empty() || name.is_some_and(|name| list.iter().any(|one| **one == *name))
    };
    fewer.cipher_suites.retain(|suite| match suite {
        SupportedCipherSuite::Tls13(_) => true,
        SupportedCipherSuite::Tls12(suite) => is_listed(ciphers, openssl_name(suite.common.suite)),
    });
    fewer.kx_groups.retain(|group| is_listed(curves, boringssl_name(group.name())));
    Arc::new(fewer)
}

fn openssl_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "ECDHE-ECDSA-CHACHA20-POLY1305"
        }
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

fn boringssl_name(group: NamedGroup) -> Option<&'static str> {
    Some(match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => return None,
    })
}

fn versions(versions: TlsVersions) -> &'static [&'static SupportedProtocolVersion] {
    static V12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    static V13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match versions {
        TlsVersions { v12: true, v13: true } => rustls::ALL_VERSIONS,
        TlsVersions { v12: true, v13: false } => &V12,
        TlsVersions { v12: false, .. } => &V13,
    }
}

fn certificates(
    sources: &[CertSource],
    secrets: &SecretMap,
) -> Result<Vec<Arc<CertifiedKey>>, TlsError> {
    let one = |source: &CertSource| {
        let name = match source {
            CertSource::Sds(name) => name.clone(),
            CertSource::Files { chain, key } => file_certificate_name(chain, key).into(),
            CertSource::Inline { chain, key } => {
                return Certificate::from_pem(chain, key).map(|certificate| certificate.key);
            }
        };
        match secrets.certificate(&name) {
            Some(certificate) => Ok(certificate.key.clone()),
            None => Err(TlsError::MissingSecret(name)),
        }
    };
    sources.iter().map(one).collect()
}

fn roots(source: &RootSource, secrets: &SecretMap) -> Result<Arc<Roots>, TlsError> {
    let name: Arc<str> = match source {
        RootSource::Sds(name) => name.clone(),
        RootSource::File(path) => file_roots_name(path).into(),
        RootSource::System => SYSTEM_ROOTS.into(),
        RootSource::Inline(bundle) => return Roots::from_pem(bundle).map(Arc::new),
    };
    secrets.roots(&name).cloned().ok_or(TlsError::MissingSecret(name))
}

/// Chooses among several certificates: one for the name the client asked and with a key the client
/// can verify, else the first the client can verify.
#[derive(Debug)]
struct CertificatePicker {
    certificates: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for CertificatePicker {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable: Vec<&Arc<CertifiedKey>> = self
            .certificates
            .iter()
            .filter(|key| key.key.choose_scheme(hello.signature_schemes()).is_some())
            .collect();
        let named = match (usable.len(), hello.server_name()) {
            (2.., Some(name)) => usable.iter().find(|key| covers(key, name)),
            _ => None,
        };
        named.or(usable.first()).map(|key| (*key).clone())
    }
}

fn covers(key: &CertifiedKey, name: &str) -> bool {
    let Some(leaf) = key.cert.first() else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    super::verify::subject_alt_names(&certificate).iter().any(|san| {
        san.value == name
            || san.value.strip_prefix("*.").is_some_and(|suffix| {
                name.split_once('.').is_some_and(|(_, parent)| parent == suffix)
            })
    })
}
