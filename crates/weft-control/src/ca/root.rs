//! The root: made once, kept in `root.pem` and `root.key`; or an authority that was plugged in.

use super::{CaError, files};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

const CERTIFICATE: &str = "root.pem";
const KEY: &str = "root.key";
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A root must hold on machines whose clock lags.
const BACKDATE: Duration = Duration::from_secs(24 * 3600);

/// A certificate in both its forms.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
}

/// An authority that somebody else made: Istio's Secret `cacerts`. All PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PluggedIn {
    /// `ca-cert.pem`: signs.
    pub certificate: String,
    /// `ca-key.pem`
    pub key: String,
    /// `cert-chain.pem`: what leads from it to a root; may begin with it, or be empty.
    pub chain: String,
    /// `root-cert.pem`: all of them are trusted, so that a root can be replaced by another.
    pub roots: String,
}

/// The key stays out of logs.
impl std::fmt::Debug for PluggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluggedIn").field("roots", &self.roots).finish_non_exhaustive()
    }
}

/// The certificates to trust and the key that signs.
pub(super) struct Root {
    /// Everything that it leads to is trusted, the first root among them.
    pub(super) trusted: Vec<Link>,
    pub(super) der: CertificateDer<'static>,
    /// Between a leaf and a root, the signing certificate first; empty when the root itself signs.
    pub(super) chain: Vec<Link>,
    pub(super) ends: SystemTime,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl Root {
    /// Loads the root of `dir`, or makes one.
    pub(super) fn open(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        files::private_dir(dir)?;
        let key_path = dir.join(KEY);
        let key = match files::read_private(&key_path)? {
            Some(pem) => read_key(&key_path, &pem)?,
            None => create_key(&key_path)?,
        };
        let path = dir.join(CERTIFICATE);
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                files::create(&path, certificate(&key, trust_domain, now)?.as_bytes(), 0o644)?;
                files::read(&path)?.unwrap_or_default()
            }
        };
        Self::new(&path, pem, key, now)
    }

    fn new(path: &Path, pem: Vec<u8>, key: KeyPair, now: SystemTime) -> Result<Self, CaError> {
        let damaged = |reason: &str| CaError::Damaged { path: path.into(), reason: reason.into() };
        let pem = String::from_utf8(pem).map_err(|_| damaged("is not text"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| damaged("is not a PEM certificate"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|_| damaged("is not a certificate"))?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(damaged("does not belong to root.key beside it"));
        }
        if !parsed.is_ca() {
            return Err(damaged("is not a CA certificate"));
        }
        let not_after = parsed.validity().not_after;
        let seconds = u64::try_from(not_after.timestamp()).unwrap_or(0);
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        if ends <= now {
            return Err(CaError::RootExpired(not_after.to_string()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let trusted = vec![Link { pem, der: der.clone() }];
        Ok(Self { trusted, der, chain: Vec::new(), ends, issuer })
    }

    /// Takes an authority that was plugged in, when it holds together.
    pub(super) fn plugged(plugged: &PluggedIn, now: SystemTime) -> Result<Self, CaError> {
        let PluggedIn { certificate, key, chain, roots } = plugged;
        let wrong = |what: &str| CaError::PluggedIn(what.to_owned());
        let read = |name: &str, text: &str| -> Result<Vec<Link>, CaError> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            let all = all.map_err(|_| CaError::PluggedIn(format!("{name} is not PEM")))?;
            Ok(all.into_iter().map(|der| Link { pem: pem(&der), der }).collect())
        };
        let mut signing = read("ca-cert.pem", certificate)?;
        signing.truncate(1);
        let signing = signing.pop().ok_or_else(|| wrong("ca-cert.pem has no certificate"))?;
        let trusted = read("root-cert.pem", roots)?;
        let key = KeyPair::from_pem(key)
            .map_err(|error| CaError::PluggedIn(format!("ca-key.pem: {error}")))?;
        let parsed = parse(&signing)?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(wrong("ca-key.pem does not belong to ca-cert.pem"));
        }
        let mut between = vec![signing];
        between.extend(read("cert-chain.pem", chain)?);
        // The chain may repeat the signing certificate, or end with a root.
        let first = between[0].der.clone();
        let mut nth = 0;
        between.retain(|link| {
            nth += 1;
            let is_root = trusted.iter().any(|root| root.der == link.der);
            !is_root && (nth == 1 || link.der != first)
        });
        let ends = leads_to_a_root(&between, &first, &trusted, now)?;
        let issuer = Issuer::from_ca_cert_der(&first, key)?;
        let der = trusted.first().map(|root| root.der.clone());
        let der = der.ok_or_else(|| wrong("root-cert.pem has no certificate"))?;
        Ok(Self { trusted, der, chain: between, ends, issuer })
    }
}

/// A root of our own, for several control planes to share.
///
/// # Errors
/// When no key or certificate can be made.
pub(crate) fn make(trust_domain: &str) -> Result<PluggedIn, CaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = certificate(&key, trust_domain, SystemTime::now())?;
    let (key, chain) = (key.serialize_pem(), String::new());
    Ok(PluggedIn { roots: certificate.clone(), certificate, key, chain })
}

/// Every link is a CA of now that the next one signed; when the first of them ends.
fn leads_to_a_root(
    chain: &[Link],
    signing: &CertificateDer<'static>,
    roots: &[Link],
    now: SystemTime,
) -> Result<SystemTime, CaError> {
    let wrong = |what: String| Err(CaError::PluggedIn(what));
    let signing = Link { pem: String::new(), der: signing.clone() };
    let links = if chain.is_empty() { std::slice::from_ref(&signing) } else { chain };
    let mut ends: Option<SystemTime> = None;
    for (index, link) in links.iter().enumerate() {
        let parsed = parse(link)?;
        let subject = parsed.subject();
        if !parsed.is_ca() {
            return wrong(format!("{subject} is not a CA certificate"));
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
        if end <= now {
            return wrong(format!("{subject} has expired"));
        }
        ends = Some(ends.map_or(end, |before| before.min(end)));
        let above = links.get(index + 1).into_iter().chain(roots);
        let mut signed = false;
        for above in above {
            signed |= parsed.verify_signature(Some(parse(above)?.public_key())).is_ok();
        }
        if !signed {
            return wrong(format!("nothing that is trusted signed {subject}"));
        }
    }
    Ok(ends.unwrap_or(now))
}

fn parse(link: &Link) -> Result<x509_parser::certificate::X509Certificate<'_>, CaError> {
    let parsed = x509_parser::parse_x509_certificate(&link.der);
    parsed
        .map(|(_, certificate)| certificate)
        .map_err(|_| CaError::PluggedIn("a certificate cannot be read".to_owned()))
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

fn create_key(path: &Path) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    if files::create(path, key.serialize_pem().as_bytes(), 0o600)? {
        return Ok(key);
    }
    let pem = files::read_private(path)?.unwrap_or_default();
    read_key(path, &pem)
}

fn read_key(path: &Path, pem: &[u8]) -> Result<KeyPair, CaError> {
    let text = std::str::from_utf8(pem).unwrap_or_default();
    KeyPair::from_pem(text)
        .map_err(|error| CaError::Damaged { path: path.into(), reason: error.to_string() })
}

fn certificate(key: &KeyPair, trust_domain: &str, now: SystemTime) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // A SPIFFE signing certificate names its trust domain.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LIFETIME).into();
    params.serial_number = Some(super::issue::serial()?);
    Ok(params.self_signed(key)?.pem())
}
