//! Transport sockets: who proves what to whom.
//!
//! The workload certificate and the mesh roots are always the SDS names `default` and `ROOTCA`;
//! this module never sees key material.

use weft_model::spec::{CURVES, is_cipher};
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_xds::pb::envoy::r#type::matcher::v3::StringMatcher;

use super::{ads, any, boolean, exact, file, inline_bytes, prefix};

/// SDS name of the workload's own certificate.
pub(crate) const WORKLOAD_CERT: &str = "default";
/// SDS name of the mesh's trust roots.
pub(crate) const MESH_ROOTS: &str = "ROOTCA";

/// The certificate a server or client presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// Fetched over SDS by this name.
    Sds(String),
    /// Read from files by the proxy itself (paths on the proxy's disk).
    Files { chain: String, key: String },
}

/// How the peer's certificate is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The peer is not asked for, or not checked.
    None,
    /// Roots (and lists of revoked certificates) over SDS; `names` are the exact or prefix subject
    /// names accepted (empty: any).
    Sds { roots: String, names: Vec<String> },
    /// Roots from a file on the proxy's disk.
    File { roots: String, names: Vec<String>, crl: Option<String> },
    /// The operating system's roots; `names` as above; `crl` from a file.
    System { names: Vec<String>, crl: Option<String> },
    /// These roots (PEM); `names` as above.
    Inline { roots: Vec<u8>, names: Vec<String> },
}

pub(crate) fn sds(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(ads()) }
}

fn common(
    certificate: Option<&Certificate>,
    trust: &Trust,
    alpn: &[&str],
) -> tls::CommonTlsContext {
    let mut context = tls::CommonTlsContext {
        alpn_protocols: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
        validation_context_type: validation(trust),
        ..Default::default()
    };
    match certificate {
        None => {}
        Some(Certificate::Sds(name)) => {
            context.tls_certificate_sds_secret_configs = vec![sds(name)];
        }
        Some(Certificate::Files { chain, key }) => {
            context.tls_certificates = vec![tls::TlsCertificate {
                certificate_chain: Some(file(chain)),
                private_key: Some(file(key)),
                ..Default::default()
            }];
        }
    }
    context
}

fn validation(trust: &Trust) -> Option<tls::common_tls_context::ValidationContextType> {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    match trust {
        Trust::None => None,
        Trust::Sds { roots, names } => Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(names_only(names)),
                validation_context_sds_secret_config: Some(sds(roots)),
                ..Default::default()
            },
        )),
        Trust::File { roots, names, crl } => {
            Some(ValidationContextType::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: Some(file(roots)),
                crl: crl.as_deref().map(file),
                ..names_only(names)
            }))
        }
        Trust::Inline { roots, names } => {
            Some(ValidationContextType::ValidationContext(tls::CertificateValidationContext {
                trusted_ca: Some(inline_bytes(roots.clone())),
                ..names_only(names)
            }))
        }
        Trust::System { names, crl } => {
            Some(ValidationContextType::ValidationContext(tls::CertificateValidationContext {
                system_root_certs: Some(Default::default()),
                crl: crl.as_deref().map(file),
                ..names_only(names)
            }))
        }
    }
}

fn names_only(names: &[String]) -> tls::CertificateValidationContext {
    tls::CertificateValidationContext {
        match_typed_subject_alt_names: names.iter().map(|name| subject_name(name)).collect(),
        ..Default::default()
    }
}

/// A name with `://` is a URI (SPIFFE), anything else a DNS name; a trailing `*` is a prefix.
fn subject_name(name: &str) -> tls::SubjectAltNameMatcher {
    use tls::subject_alt_name_matcher::SanType;
    let matcher: StringMatcher = match name.strip_suffix('*') {
        Some(start) => prefix(start),
        None => exact(name),
    };
    let san_type = if name.contains("://") { SanType::Uri } else { SanType::Dns };
    tls::SubjectAltNameMatcher {
        san_type: san_type as i32,
        matcher: Some(matcher),
        ..Default::default()
    }
}

/// What a connection is encrypted with, where somebody narrows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Suites {
    /// TLS 1.2 cipher suites in OpenSSL's spelling; empty: Envoy's own choice.
    pub(crate) ciphers: Vec<String>,
    /// Key exchange groups in BoringSSL's spelling; empty: Envoy's own choice.
    pub(crate) curves: Vec<String>,
}

impl Suites {
    /// Without names that nobody knows, for which Envoy would refuse the whole.
    pub(crate) fn known(ciphers: &[String], curves: &[String]) -> Suites {
        Suites {
            ciphers: ciphers.iter().filter(|name| is_cipher(name)).cloned().collect(),
            curves: curves.iter().filter(|name| CURVES.contains(&name.as_str())).cloned().collect(),
        }
    }

    fn params(&self) -> tls::TlsParameters {
        tls::TlsParameters {
            cipher_suites: self.ciphers.clone(),
            ecdh_curves: self.curves.clone(),
            ..Default::default()
        }
    }
}

/// A client's TLS socket.
pub(crate) fn upstream(
    certificate: Option<&Certificate>,
    trust: &Trust,
    sni: &str,
    alpn: &[&str],
    suites: &Suites,
) -> core::TransportSocket {
    let mut context = common(certificate, trust, alpn);
    context.tls_params = Some(tls::TlsParameters {
        tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv12 as i32,
        // Envoy's clients would stop at TLS 1.2 by themselves.
        tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
        ..suites.params()
    });
    socket(any(&tls::UpstreamTlsContext {
        common_tls_context: Some(context),
        sni: sni.to_owned(),
        ..Default::default()
    }))
}

/// A client's TLS socket that accepts any certificate (`insecureSkipVerify`).
pub(crate) fn upstream_unverified(
    certificate: Option<&Certificate>,
    sni: &str,
    alpn: &[&str],
    suites: &Suites,
) -> core::TransportSocket {
    upstream(certificate, &Trust::None, sni, alpn, suites)
}

/// Mutual TLS for gRPC's client, which takes certificates from a provider of its bootstrap named
/// `default`, not over SDS.
pub(crate) fn upstream_of_provider(names: &[String]) -> core::TransportSocket {
    let provider = |certificate_name: &str| {
        Some(tls::CertificateProviderPluginInstance {
            instance_name: "default".to_owned(),
            certificate_name: certificate_name.to_owned(),
        })
    };
    #[allow(deprecated, reason = "the only form that all gRPC clients read")]
    let validation = tls::CertificateValidationContext {
        ca_certificate_provider_instance: provider(MESH_ROOTS),
        match_subject_alt_names: names.iter().map(|name| exact(name)).collect(),
        ..Default::default()
    };
    let context = tls::CommonTlsContext {
        tls_certificate_provider_instance: provider(WORKLOAD_CERT),
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::ValidationContext(validation),
        ),
        ..Default::default()
    };
    socket(any(&tls::UpstreamTlsContext {
        common_tls_context: Some(context),
        ..Default::default()
    }))
}

/// Protocol floor and ceiling and ciphers of a server, as Istio's Gateway spells them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerParams {
    /// `TLSV1_2` and so on; `None` is Istio's default floor of 1.2.
    pub(crate) minimum: Option<i32>,
    pub(crate) maximum: Option<i32>,
    pub(crate) suites: Suites,
    /// Base64 SHA-256 of public keys, and hex SHA-256 of certificates: a client shows one of them.
    pub(crate) spki: Vec<String>,
    pub(crate) hashes: Vec<String>,
}

/// Whether clients must show a certificate, where there is a [`Trust`] to judge it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCheck {
    Required,
    /// They need not, but what they show must be good.
    Optional,
    /// They need not, and what they show may be bad.
    Ignored,
}

/// A server's TLS socket. A client certificate is asked for exactly when there is `trust`.
pub(crate) fn downstream(
    certificates: &[Certificate],
    trust: &Trust,
    check: ClientCheck,
    alpn: &[&str],
    params: &ServerParams,
) -> core::TransportSocket {
    let mut context = common(None, trust, alpn);
    for certificate in certificates {
        let one = common(Some(certificate), &Trust::None, &[]);
        context.tls_certificates.extend(one.tls_certificates);
        context.tls_certificate_sds_secret_configs.extend(one.tls_certificate_sds_secret_configs);
    }
    context.tls_params = Some(tls::TlsParameters {
        tls_minimum_protocol_version: params
            .minimum
            .unwrap_or(tls::tls_parameters::TlsProtocol::TlSv12 as i32),
        tls_maximum_protocol_version: params
            .maximum
            .unwrap_or(tls::tls_parameters::TlsProtocol::TlsAuto as i32),
        ..params.suites.params()
    });
    if let Some(own) = validation_of(&mut context) {
        own.verify_certificate_spki.clone_from(&params.spki);
        own.verify_certificate_hash.clone_from(&params.hashes);
    }
    let require = *trust != Trust::None && check == ClientCheck::Required;
    if check == ClientCheck::Ignored {
        accept_untrusted(&mut context);
    }
    socket(any(&tls::DownstreamTlsContext {
        common_tls_context: Some(context),
        require_client_certificate: boolean(require),
        ..Default::default()
    }))
}

fn accept_untrusted(context: &mut tls::CommonTlsContext) {
    use tls::certificate_validation_context::TrustChainVerification;
    if let Some(own) = validation_of(context) {
        own.trust_chain_verification = TrustChainVerification::AcceptUntrusted as i32;
    }
}

/// The part of a context's checks that is not a secret's.
fn validation_of(
    context: &mut tls::CommonTlsContext,
) -> Option<&mut tls::CertificateValidationContext> {
    use tls::common_tls_context::ValidationContextType;
    match &mut context.validation_context_type {
        Some(ValidationContextType::ValidationContext(own)) => Some(own),
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            Some(combined.default_validation_context.get_or_insert_default())
        }
        _ => None,
    }
}

fn socket(config: weft_xds::pb::google::protobuf::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

pub(crate) fn raw_buffer() -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&RawBuffer {}))),
    }
}
