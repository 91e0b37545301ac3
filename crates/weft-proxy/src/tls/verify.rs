//! Who the peer is: certificate chain against our trust roots, then its subject alternative names
//! against what the configuration expects. For mesh peers that is a SPIFFE URI and never a DNS
//! name, so rustls' own verifiers, which insist on the server name, are not enough.

use std::sync::Arc;

use base64::Engine as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use weft_traffic::tls::{SanKind, SanMatch, Validation};
use x509_parser::prelude::{GeneralName, X509Certificate};

use super::secrets::Roots;

/// One subject alternative name as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct San {
    /// Which kind it is.
    pub kind: SanKind,
    /// The name; IP addresses in their usual spelling.
    pub value: String,
}

/// Verifies an upstream's certificate.
#[derive(Debug)]
pub struct UpstreamVerifier {
    chain: Chain,
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

/// How an upstream's chain is verified.
#[derive(Debug)]
enum Chain {
    /// Not at all, as in Envoy without a trusted CA.
    Unverified,
    Roots(Arc<rustls::RootCertStore>),
    /// The roots, and lists of revoked certificates.
    Lists(Arc<WebPkiServerVerifier>),
}

/// Lists of revoked certificates. As soon as there is one, every certificate of a chain (or the
/// peer's alone) must be covered by a list that has not expired, as in Envoy.
#[derive(Debug, Default, Clone)]
pub struct Revoked {
    /// DER, as webpki takes them.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// Only the peer's own certificate is looked up.
    pub leaf_only: bool,
}

/// Verifies a downstream's certificate: chain by webpki, then the names.
#[derive(Debug)]
pub struct DownstreamVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    expected: Expected,
    /// A certificate that fails is taken all the same (`ACCEPT_UNTRUSTED`).
    accept_untrusted: bool,
}

/// What the leaf certificate must be, apart from being under our roots.
#[derive(Debug, Default)]
pub struct Expected {
    /// Any one suffices; empty: any.
    sans: Vec<SanMatch>,
    /// Lower-case hex SHA-256 of the certificate; empty: not pinned.
    certificate_hashes: Vec<Box<str>>,
    /// Base64 SHA-256 of the public key; empty: not pinned.
    spki_hashes: Vec<Box<str>>,
}

impl Expected {
    /// The name and pin rules of a validation context. `dns_name` is one more acceptable name, for
    /// `auto_sni_san_validation`.
    pub fn new(validation: &Validation, dns_name: Option<&str>) -> Expected {
        let mut sans = validation.sans.clone();
        sans.extend(dns_name.map(|name| SanMatch {
            kind: SanKind::Dns,
            name: weft_traffic::tls::SanName::Exact(name.into()),
        }));
        Expected {
            sans,
            certificate_hashes: validation.certificate_hashes.clone(),
            spki_hashes: validation.spki_hashes.clone(),
        }
    }

    fn check(&self, der: &CertificateDer<'_>) -> Result<(), Error> {
        let Expected { sans, certificate_hashes, spki_hashes } = self;
        if sans.is_empty() && certificate_hashes.is_empty() && spki_hashes.is_empty() {
            return Ok(());
        }
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if !sans.is_empty() {
            let names = subject_alt_names(&certificate);
            let wanted = |name: &San| sans.iter().any(|san| san.matches(name.kind, &name.value));
            if !names.iter().any(wanted) {
                return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
            }
        }
        let pinned = certificate_hashes.is_empty() && spki_hashes.is_empty()
            || certificate_hashes.iter().any(|hash| **hash == *hex_sha256(der))
            || spki_hashes
                .iter()
                .any(|hash| **hash == *base64_sha256(certificate.public_key().raw));
        match pinned {
            true => Ok(()),
            false => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }
}

impl UpstreamVerifier {
    /// Without `roots` only names and pins are checked.
    pub fn new(roots: Option<&Roots>, expected: Expected) -> UpstreamVerifier {
        let chain = match roots {
            Some(roots) => Chain::Roots(roots.store.clone()),
            None => Chain::Unverified,
        };
        UpstreamVerifier { chain, expected, provider: super::provider() }
    }

    /// As [`Self::new`]; refuses what is revoked.
    pub fn with_lists(
        roots: &Roots,
        revoked: Revoked,
        expected: Expected,
    ) -> Result<UpstreamVerifier, super::TlsError> {
        let provider = super::provider();
        let builder =
            WebPkiServerVerifier::builder_with_provider(roots.store.clone(), provider.clone())
                .with_crls(revoked.lists)
                .enforce_revocation_expiration();
        let builder = match revoked.leaf_only {
            true => builder.only_check_end_entity_revocation(),
            false => builder,
        };
        let chain = builder.build().map_err(|error| bad_lists(&error))?;
        Ok(UpstreamVerifier { chain: Chain::Lists(chain), expected, provider })
    }
}

impl DownstreamVerifier {
    /// `required`: refuse clients without a certificate; otherwise one that is shown must be good.
    pub fn new(
        roots: &Roots,
        revoked: Revoked,
        expected: Expected,
        required: bool,
        accept_untrusted: bool,
    ) -> Result<DownstreamVerifier, super::TlsError> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(roots.store.clone(), super::provider())
                .with_crls(revoked.lists)
                .enforce_revocation_expiration();
        let builder = match revoked.leaf_only {
            true => builder.only_check_end_entity_revocation(),
            false => builder,
        };
        let builder = match required {
            true => builder,
            false => builder.allow_unauthenticated(),
        };
        let chain = builder.build().map_err(|error| bad_lists(&error))?;
        Ok(DownstreamVerifier { chain, expected, accept_untrusted })
    }
}

fn bad_lists(error: &rustls::server::VerifierBuilderError) -> super::TlsError {
    super::TlsError::BadSecret(format!("trust roots or revocation lists: {error}"))
}

fn sha256(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
}

/// Lower-case hex.
pub fn hex_sha256(bytes: &[u8]) -> String {
    sha256(bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base64_sha256(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(sha256(bytes))
}

/// The SPIFFE id of a certificate: its only URI SAN. X.509-SVID §2 forbids a second one.
pub fn spiffe_id(der: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let mut uris =
        subject_alt_names(&certificate).into_iter().filter(|san| san.kind == SanKind::Uri);
    let id = uris.next()?.value;
    (uris.next().is_none() && id.starts_with("spiffe://")).then_some(id)
}

/// All subject alternative names of the kinds configuration can match, URIs first.
pub fn subject_alt_names(certificate: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let mut sans: Vec<San> = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(San { kind: SanKind::Uri, value: (*uri).to_owned() }),
            GeneralName::DNSName(name) => {
                Some(San { kind: SanKind::Dns, value: name.to_ascii_lowercase() })
            }
            GeneralName::RFC822Name(name) => {
                Some(San { kind: SanKind::Email, value: (*name).to_owned() })
            }
            GeneralName::IPAddress(bytes) => ip_text(bytes),
            _ => None,
        })
        .collect();
    sans.sort_by_key(|san| san.kind != SanKind::Uri);
    sans
}

fn ip_text(bytes: &[u8]) -> Option<San> {
    let value = match bytes.len() {
        4 => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string(),
        16 => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
        _ => return None,
    };
    Some(San { kind: SanKind::Ip, value })
}

impl ServerCertVerifier for UpstreamVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.chain {
            Chain::Unverified => {}
            Chain::Roots(roots) => {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    roots,
                    intermediates,
                    now,
                    algorithms,
                )?;
            }
            Chain::Lists(verifier) => {
                let checked = verifier.verify_server_cert(
                    end_entity,
                    intermediates,
                    server_name,
                    ocsp_response,
                    now,
                );
                // It looks at the name last, after the chain was found good; names are ours.
                match checked {
                    Ok(_)
                    | Err(Error::InvalidCertificate(
                        CertificateError::NotValidForName
                        | CertificateError::NotValidForNameContext { .. },
                    )) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.expected.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for DownstreamVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    /// No hints: mesh peers have one certificate, and the list would only grow the handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let checked = match self.chain.verify_client_cert(end_entity, intermediates, now) {
            Ok(_) => self.expected.check(end_entity),
            Err(error) => Err(error),
        };
        match checked {
            Err(error) if !self.accept_untrusted => Err(error),
            _ => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
