//! TLS that ends at a gateway: certificates from credentials or files, client checks, versions.

use weft_model::Kind;
use weft_model::spec::{ServerTlsMode, ServerTlsSettings, TlsProtocol};
use weft_xds::names::{SECRET_CACERT_SUFFIX, SecretName};
use weft_xds::pb::envoy::config::core::v3::TransportSocket;

use super::gateway::Entry;
use super::inbound::mutual_tls;
use crate::build::tls::{Certificate, ClientCheck, ServerParams, Trust, downstream};
use crate::findings::Findings;
use crate::scope::Scope;
use crate::secret;
use crate::view::Flavor;

/// Istio: ReferencedResourceNotFound.
const NOT_FOUND: &str = "IST0101";
/// Istio: SchemaValidationError.
const SCHEMA: &str = "IST0106";

/// The server's TLS socket; `None` (and a finding) when there is nothing to serve with. Leaving
/// one server out keeps the listener, and all other hosts on it, alive.
pub(crate) fn socket(
    scope: &Scope<'_>,
    entry: &Entry<'_>,
    alpn: &[&str],
    findings: &mut Findings,
) -> Option<TransportSocket> {
    let tls = entry.server.tls.as_ref()?;
    if tls.mode == ServerTlsMode::IstioMutual {
        return Some(mutual_tls(scope));
    }
    report_unsupported(scope, entry, tls, findings);
    let certificates = certificates(scope, entry, tls, findings);
    if certificates.is_empty() {
        return None;
    }
    let trust = match tls.mode {
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => client_trust(scope, tls),
        _ => Trust::None,
    };
    let params = ServerParams {
        minimum: version(tls.min_protocol_version),
        maximum: version(tls.max_protocol_version).filter(|_| !is_outdated(scope, tls)),
        ciphers: tls.cipher_suites.clone(),
        spki: tls.verify_certificate_spki.clone(),
        hashes: tls.verify_certificate_hash.clone(),
    };
    let check = match tls.mode {
        // The Gateway API's fallback lets bad certificates in; Istio's optional mode does not.
        ServerTlsMode::OptionalMutual if entry.api.is_some() => ClientCheck::Ignored,
        ServerTlsMode::OptionalMutual => ClientCheck::Optional,
        _ => ClientCheck::Required,
    };
    Some(downstream(&certificates, &trust, check, alpn, &params))
}

/// Fields that our own proxy does not act on: it speaks TLS 1.2 and 1.3 with safe ciphers only, and
/// reads no lists of revoked certificates.
fn report_unsupported(
    scope: &Scope<'_>,
    entry: &Entry<'_>,
    tls: &ServerTlsSettings,
    findings: &mut Findings,
) {
    let own = scope.view.flavor == Flavor::Weft;
    let fields = [
        (own && !tls.cipher_suites.is_empty(), "cipherSuites"),
        (own && !tls.ca_crl.is_empty(), "caCrl"),
        (is_outdated(scope, tls), "maxProtocolVersion"),
        (!tls.ecdh_curves.is_empty(), "ecdhCurves"),
    ];
    for (_, field) in fields.into_iter().filter(|(given, _)| *given) {
        let path = entry.path(&format!(".tls.{field}"));
        findings.not_implemented(Kind::Gateway, &entry.gateway.meta, &path);
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
    entry: &Entry<'_>,
    tls: &ServerTlsSettings,
    findings: &mut Findings,
) -> Vec<Certificate> {
    let single = std::iter::once(&tls.credential_name).filter(|name| !name.is_empty());
    let names: Vec<&String> = single.chain(&tls.credential_names).collect();
    if !names.is_empty() {
        return names
            .into_iter()
            .filter_map(|credential| from_secret(scope, entry, credential, findings))
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
        entry.report(findings, SCHEMA, ".tls", message);
    }
    files
}

fn from_secret(
    scope: &Scope<'_>,
    entry: &Entry<'_>,
    credential: &str,
    findings: &mut Findings,
) -> Option<Certificate> {
    let name = SecretName::Kubernetes { credential }.to_string();
    if secret::of_name(scope, &name).is_none() {
        let namespace = &scope.view.namespace;
        let message = format!(
            "no usable secret {credential} in the gateway's namespace {namespace}; the server is left out"
        );
        entry.report(findings, NOT_FOUND, ".tls.credentialName", &message);
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
        Flavor::Weft => {
            let certificate = tls.ca_certificates.as_str();
            Trust::Sds { roots: SecretName::FileRoot { certificate }.to_string(), names }
        }
        Flavor::Envoy | Flavor::Grpc => Trust::File {
            roots: tls.ca_certificates.clone(),
            names,
            crl: (!tls.ca_crl.is_empty()).then(|| tls.ca_crl.clone()),
        },
    }
}

/// `None`: Istio's default.
fn version(protocol: TlsProtocol) -> Option<i32> {
    use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol as Pb;
    match protocol {
        TlsProtocol::Auto => None,
        TlsProtocol::V1_0 => Some(Pb::TlSv10 as i32),
        TlsProtocol::V1_1 => Some(Pb::TlSv11 as i32),
        TlsProtocol::V1_2 => Some(Pb::TlSv12 as i32),
        TlsProtocol::V1_3 => Some(Pb::TlSv13 as i32),
    }
}
