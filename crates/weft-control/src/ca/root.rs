//! The root: made once, kept in `root.pem` and `root.key`.

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

/// The root certificate and the key that signs.
pub(super) struct Root {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
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
        Ok(Self { pem, der, ends, issuer })
    }
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
