//! Signing: what goes into a workload's certificate is decided here and nowhere else.

use super::root::{PluggedIn, Root};
use super::rotation::Trusted;
use super::{CaError, Identity};
use arc_swap::ArcSwap;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};
use x509_parser::public_key::PublicKey;

/// Longest certificate request, PEM; one with a 4096-bit RSA key takes 2 KiB.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
const RSA_BITS_MIN: usize = 2048;
/// Certificates begin this much in the past, for peers whose clock lags.
const BACKDATE_MAX: Duration = Duration::from_secs(120);

/// How long workload certificates live. A wish outside min..max is moved into it.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    pub default: Duration,
    pub min: Duration,
    pub max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { default: day, min: Duration::from_secs(10), max: day }
    }
}

/// The mesh's certificate authority. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    /// What signs.
    pub(super) root: ArcSwap<Root>,
    /// What is trusted: its roots, and those of before it and after it.
    pub(super) trusted: Trusted,
    trust_domain: String,
    pub(super) lifetimes: Lifetimes,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM, leaf, what is between, then roots, as Istio's protocol returns them.
    pub chain: Vec<String>,
    pub der: CertificateDer<'static>,
    pub issued: SystemTime,
    pub ends: SystemTime,
}

impl Authority {
    /// Loads the authority of a folder, making its root first if there is none.
    ///
    /// # Errors
    /// Unreadable, damaged or exposed files; a trust domain that is no DNS name.
    pub fn open(dir: &Path, trust_domain: &str, lifetimes: Lifetimes) -> Result<Self, CaError> {
        if !super::identity::is_name(trust_domain) {
            return Err(CaError::TrustDomain(trust_domain.into()));
        }
        let root = Root::open(dir, trust_domain, SystemTime::now())?;
        Ok(Self::of(root, trust_domain, lifetimes))
    }

    /// The authority that somebody plugged in, instead of one of a folder.
    ///
    /// # Errors
    /// Parts that do not belong together or have expired; a trust domain that is no DNS name.
    pub fn plugged(
        plugged: &PluggedIn,
        trust_domain: &str,
        lifetimes: Lifetimes,
    ) -> Result<Self, CaError> {
        if !super::identity::is_name(trust_domain) {
            return Err(CaError::TrustDomain(trust_domain.into()));
        }
        let root = Root::plugged(plugged, SystemTime::now())?;
        Ok(Self::of(root, trust_domain, lifetimes))
    }

    fn of(root: Root, trust_domain: &str, lifetimes: Lifetimes) -> Self {
        let trusted = Trusted::new(&root);
        let (root, trust_domain) = (ArcSwap::from_pointee(root), trust_domain.to_owned());
        Self { inner: Arc::new(Inner { root, trusted, trust_domain, lifetimes }) }
    }

    /// What a TLS server shows after its leaf.
    pub(super) fn chain_der(&self) -> Vec<CertificateDer<'static>> {
        let root = self.inner.root.load();
        let between: Vec<_> = root.chain.iter().map(|link| link.der.clone()).collect();
        match between.is_empty() {
            true => vec![root.der.clone()],
            false => between,
        }
    }

    /// The root certificates, PEM: one, or all that a plugged-in authority trusts, and while one
    /// replaces another both.
    pub fn root_pem(&self) -> Arc<str> {
        self.inner.trusted.bundle()
    }

    /// [`Self::root_pem`] as it is and as it becomes.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<Arc<str>> {
        self.inner.trusted.changes()
    }

    /// The first of the roots that what signs now leads to.
    pub fn root_der(&self) -> CertificateDer<'static> {
        self.inner.root.load().der.clone()
    }

    pub fn trust_domain(&self) -> &str {
        &self.inner.trust_domain
    }

    /// Signs a workload's request. Only its public key is taken from it, and only after its
    /// signature proved that the asker holds the private key.
    ///
    /// # Errors
    /// [`CaError::Request`] says what is wrong with the request.
    pub fn sign(
        &self,
        identity: &Identity,
        csr_pem: &str,
        wish: Option<Duration>,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let key = public_key(csr_pem)?;
        self.workload(identity, &key, wish, now)
    }

    /// Makes a key and its certificate, for a proxy that cannot make its own. The key is in
    /// memory only.
    pub(super) fn generate(
        &self,
        identity: &Identity,
        now: SystemTime,
    ) -> Result<(KeyPair, Certificate), CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = self.workload(identity, &key, None, now)?;
        Ok((key, certificate))
    }

    /// A certificate for the control plane's own TLS port.
    pub(super) fn server(
        &self,
        identity: &Identity,
        names: &[String],
        addresses: &[IpAddr],
        now: SystemTime,
    ) -> Result<(KeyPair, Certificate), CaError> {
        let mut sans = vec![self.uri(identity)?];
        for name in names {
            sans.push(SanType::DnsName(name.as_str().try_into()?));
        }
        sans.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = self.leaf(sans, &key, self.inner.lifetimes.default, now)?;
        Ok((key, certificate))
    }

    fn workload(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        wish: Option<Duration>,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let Lifetimes { default, min, max } = self.inner.lifetimes;
        let lifetime = wish.unwrap_or(default).clamp(min, max.max(min));
        self.leaf(vec![self.uri(identity)?], key, lifetime, now)
    }

    fn uri(&self, identity: &Identity) -> Result<SanType, CaError> {
        Ok(SanType::URI(identity.spiffe(&self.inner.trust_domain).try_into()?))
    }

    fn leaf(
        &self,
        sans: Vec<SanType>,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let root = self.inner.root.load();
        let ends = (now + lifetime).min(root.ends);
        // A short-lived certificate is backdated less, so that its half life, counted from its
        // beginning, still lies ahead.
        let begins = now - BACKDATE_MAX.min(lifetime / 10);
        let mut params = CertificateParams::default();
        // An empty subject makes the name extension critical (RFC 5280 §4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.not_before = begins.into();
        params.not_after = ends.into();
        params.serial_number = Some(serial()?);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(key, &root.issuer)?;
        let mut chain = vec![signed.pem()];
        chain.extend(root.chain.iter().map(|link| link.pem.clone()));
        chain.push(self.root_pem().to_string());
        Ok(Certificate { chain, der: signed.der().clone(), issued: now, ends })
    }
}

/// When a certificate should be replaced: at half of its life, moved by up to a tenth of it
/// either way (`jitter` in 0..=1), so that a mesh started together does not renew together.
pub fn renew_at(issued: SystemTime, ends: SystemTime, jitter: f64) -> SystemTime {
    let life = ends.duration_since(issued).unwrap_or_default();
    issued + life.mul_f64(0.4 + 0.2 * jitter.clamp(0.0, 1.0))
}

/// The public key of a request whose signature holds.
fn public_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, CaError> {
    if csr_pem.len() > REQUEST_BYTES_MAX {
        return Err(CaError::Request("is longer than 16 KiB"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|_| CaError::Request("is not a PEM block `CERTIFICATE REQUEST`"))?;
    let (rest, request) = X509CertificationRequest::from_der(&der)
        .map_err(|_| CaError::Request("is not a PKCS #10 structure"))?;
    if !rest.is_empty() {
        return Err(CaError::Request("has bytes after its end"));
    }
    request
        .verify_signature()
        .map_err(|_| CaError::Request("is not signed by the key it names"))?;
    let spki = &request.certification_request_info.subject_pki;
    if let Ok(PublicKey::RSA(key)) = spki.parsed()
        && key.key_size() < RSA_BITS_MIN
    {
        return Err(CaError::Request("has an RSA key shorter than 2048 bits"));
    }
    SubjectPublicKeyInfo::from_der(spki.raw)
        .map_err(|_| CaError::Request("has a key that is neither ECDSA, Ed25519 nor RSA"))
}

/// 128 random bits, positive and not zero (RFC 5280 §4.1.2.2).
pub(super) fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CaError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
