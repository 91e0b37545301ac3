//! TLS that ends at a gateway, or at a sidecar's ingress: certificates from credentials or files,
//! client checks, versions.

use weft_model::spec::{
    OWN_CIPHERS, OWN_CURVES, ServerTlsMode, ServerTlsSettings, Sidecar, TlsProtocol,
};
use weft_model::{Kind, Resource};
use weft_xds::names::{SECRET_CACERT_SUFFIX, SecretName};
use weft_xds::pb::envoy::config::core::v3::TransportSocket;

use super::gateway::Entry;
use super::inbound::mutual_tls;
use crate::build::tls::{Certificate, ClientCheck, ServerParams, Suites, Trust, downstream};
use crate::findings::{Findings, NOT_IMPLEMENTED};
use crate::scope::Scope;
use crate::secret;
use crate::view::Flavor;

/// Istio: ReferencedResourceNotFound.
const NOT_FOUND: &str = "IST0101";
/// Istio: SchemaValidationError.
const SCHEMA: &str = "IST0106";

/// Whose TLS it is.
#[derive(Clone, Copy)]
pub(super) enum Owner<'a> {
    Server(&'a Entry<'a>),
    Ingress { sidecar: &'a Resource<Sidecar>, index: usize },
}

impl Owner<'_> {
    /// `field` begins with `.tls`.
    fn report(self, findings: &mut Findings, code: &'static str, field: &str, message: &str) {
        match self {
            Owner::Server(entry) => entry.report(findings, code, field, message),
            Owner::Ingress { sidecar, index } => {
                let path = format!("spec.ingress[{index}]{field}");
                findings.add(Kind::Sidecar, &sidecar.meta, code, &path, message);
            }
        }
    }

    fn is_api(self) -> bool {
        matches!(self, Owner::Server(entry) if entry.api.is_some())
    }
}

/// The server's TLS socket; `None` (and a finding) when there is nothing to serve with. Leaving
/// one server out keeps the listener, and all other hosts on it, alive.
pub(super) fn socket(
    scope: &Scope<'_>,
    owner: Owner<'_>,
    tls: &ServerTlsSettings,
    alpn: &[&str],
    findings: &mut Findings,
) -> Option<TransportSocket> {
    if tls.mode == ServerTlsMode::IstioMutual {
        return Some(mutual_tls(scope));
    }
    report_unsupported(scope, owner, tls, findings);
    let certificates = certificates(scope, owner, tls, findings);
    if certificates.is_empty() {
        return None;
    }
    let trust = match tls.mode {
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => client_trust(scope, tls),
        _ => Trust::None,
    };
    let defaults = scope.snapshot.mesh().tls_defaults.as_ref();
    let default_minimum = || version(defaults?.min_protocol_version);
    let params = ServerParams {
        minimum: version(tls.min_protocol_version).or_else(default_minimum),
        maximum: version(tls.max_protocol_version).filter(|_| !is_outdated(scope, tls)),
        suites: suites(scope, tls),
        spki: tls.verify_certificate_spki.clone(),
        hashes: tls.verify_certificate_hash.clone(),
    };
    let check = match tls.mode {
        // The Gateway API's fallback lets bad certificates in; Istio's optional mode does not.
        ServerTlsMode::OptionalMutual if owner.is_api() => ClientCheck::Ignored,
        ServerTlsMode::OptionalMutual => ClientCheck::Optional,
        _ => ClientCheck::Required,
    };
    Some(downstream(&certificates, &trust, check, alpn, &params))
}

/// The server's own, else the mesh's.
fn suites(scope: &Scope<'_>, tls: &ServerTlsSettings) -> Suites {
    let own = Suites::known(&tls.cipher_suites, &tls.ecdh_curves);
    let mut suites = scope.default_suites();
    if !own.ciphers.is_empty() {
        suites.ciphers = own.ciphers;
    }
    if !own.curves.is_empty() {
        suites.curves = own.curves;
    }
    suites
}

/// Fields that our own proxy does not act on: it speaks TLS 1.2 and 1.3 with safe ciphers only.
fn report_unsupported(
    scope: &Scope<'_>,
    owner: Owner<'_>,
    tls: &ServerTlsSettings,
    findings: &mut Findings,
) {
    let unread = "not implemented yet by this proxy; the field has no effect";
    if tls.insecure_skip_verify == Some(true) {
        owner.report(findings, NOT_IMPLEMENTED, ".tls.insecureSkipVerify", unread);
    }
    if tls.https_redirect && matches!(owner, Owner::Ingress { .. }) {
        owner.report(findings, NOT_IMPLEMENTED, ".tls.httpsRedirect", unread);
    }
    for (index, pair) in tls.tls_certificates.iter().enumerate() {
        let field = format!(".tls.tlsCertificates[{index}]");
        if !pair.ca_certificates.is_empty() {
            let field = format!("{field}.caCertificates");
            owner.report(findings, NOT_IMPLEMENTED, &field, unread);
        }
        if pair.server_certificate.is_empty() || pair.private_key.is_empty() {
            let message = "a certificate needs serverCertificate and privateKey; it is left out";
            owner.report(findings, SCHEMA, &field, message);
        }
    }
    if scope.view.flavor != Flavor::Weft {
        return;
    }
    let message = "our own proxy speaks TLS 1.2 and 1.3 only";
    let low = |version: TlsProtocol| matches!(version, TlsProtocol::V1_0 | TlsProtocol::V1_1);
    if low(tls.min_protocol_version) {
        owner.report(findings, NOT_IMPLEMENTED, ".tls.minProtocolVersion", message);
    }
    if is_outdated(scope, tls) {
        owner.report(findings, NOT_IMPLEMENTED, ".tls.maxProtocolVersion", message);
    }
    let lists = [
        (".tls.cipherSuites", &tls.cipher_suites, &OWN_CIPHERS[..]),
        (".tls.ecdhCurves", &tls.ecdh_curves, &OWN_CURVES[..]),
    ];
    for (field, listed, own) in lists {
        let missing: Vec<&str> =
            listed.iter().map(String::as_str).filter(|one| !own.contains(one)).collect();
        if !missing.is_empty() {
            let message = format!("our own proxy does not speak {}", missing.join(", "));
            owner.report(findings, NOT_IMPLEMENTED, field, &message);
        }
    }
}

/// Nothing newer than TLS 1.1 is allowed, which our own proxy does not speak.
fn is_outdated(scope: &Scope<'_>, tls: &ServerTlsSettings) -> bool {
    let max = tls.max_protocol_version;
    let old = max != TlsProtocol::Auto && max < TlsProtocol::V1_2;
    old && scope.view.flavor == Flavor::Weft
}

fn certificates(
    scope: &Scope<'_>,
    owner: Owner<'_>,
    tls: &ServerTlsSettings,
    findings: &mut Findings,
) -> Vec<Certificate> {
    let single = std::iter::once(&tls.credential_name).filter(|name| !name.is_empty());
    let names: Vec<&String> = single.chain(&tls.credential_names).collect();
    if !names.is_empty() {
        return names
            .into_iter()
            .filter_map(|credential| from_secret(scope, owner, credential, findings))
            .collect();
    }
    let own = std::iter::once((&tls.server_certificate, &tls.private_key));
    let more =
        tls.tls_certificates.iter().map(|pair| (&pair.server_certificate, &pair.private_key));
    let files: Vec<Certificate> = own
        .chain(more)
        .filter(|(chain, key)| !chain.is_empty() && !key.is_empty())
        .map(|(chain, key)| from_files(scope, chain, key))
        .collect();
    if files.is_empty() {
        let message = "no certificate: give credentialName, or serverCertificate and privateKey";
        owner.report(findings, SCHEMA, ".tls", message);
    }
    files
}

fn from_secret(
    scope: &Scope<'_>,
    owner: Owner<'_>,
    credential: &str,
    findings: &mut Findings,
) -> Option<Certificate> {
    let name = SecretName::Kubernetes { credential }.to_string();
    let is_server = matches!(owner, Owner::Server(_));
    // A sidecar's inbound side is not made anew when a secret comes: it waits for it by name.
    if is_server && secret::of_name(scope, &name).is_none() {
        let namespace = &scope.view.namespace;
        let message = format!(
            "no usable secret {credential} in the gateway's namespace {namespace}; the server is left out"
        );
        owner.report(findings, NOT_FOUND, ".tls.credentialName", &message);
        return None;
    }
    Some(Certificate::Sds(name))
}

/// Our proxy reads and watches files itself, under an SDS name; Envoy reads them once.
fn from_files(scope: &Scope<'_>, chain: &str, key: &str) -> Certificate {
    match scope.view.flavor {
        Flavor::Weft => Certificate::Sds(SecretName::File { certificate: chain, key }.to_string()),
        Flavor::Envoy | Flavor::Grpc => {
            Certificate::Files { chain: chain.to_owned(), key: key.to_owned() }
        }
    }
}

fn client_trust(scope: &Scope<'_>, tls: &ServerTlsSettings) -> Trust {
    let names = tls.subject_alt_names.clone();
    if !tls.ca_cert_credential_name.is_empty() {
        let credential = &format!("{}{SECRET_CACERT_SUFFIX}", tls.ca_cert_credential_name);
        return Trust::Sds { roots: SecretName::Kubernetes { credential }.to_string(), names };
    }
    if !tls.credential_name.is_empty() {
        let credential = &format!("{}{SECRET_CACERT_SUFFIX}", tls.credential_name);
        return Trust::Sds { roots: SecretName::Kubernetes { credential }.to_string(), names };
    }
    match scope.view.flavor {
        Flavor::Weft if tls.ca_crl.is_empty() => {
            let certificate = tls.ca_certificates.as_str();
            Trust::Sds { roots: SecretName::FileRoot { certificate }.to_string(), names }
        }
        Flavor::Weft | Flavor::Envoy | Flavor::Grpc => Trust::File {
            roots: tls.ca_certificates.clone(),
            names,
            crl: (!tls.ca_crl.is_empty()).then(|| tls.ca_crl.clone()),
        },
    }
}

/// `None`: Istio's default.
pub(super) fn version(protocol: TlsProtocol) -> Option<i32> {
    use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol as Pb;
    match protocol {
        TlsProtocol::Auto => None,
        TlsProtocol::V1_0 => Some(Pb::TlSv10 as i32),
        TlsProtocol::V1_1 => Some(Pb::TlSv11 as i32),
        TlsProtocol::V1_2 => Some(Pb::TlSv12 as i32),
        TlsProtocol::V1_3 => Some(Pb::TlSv13 as i32),
    }
}
