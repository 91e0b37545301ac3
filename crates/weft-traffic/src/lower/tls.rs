//! Transport sockets: plain, TLS, and PROXY protocol around either.

use std::sync::Arc;

use super::{Result, Within, decode, error, list, refuse, value};
use crate::cluster::{ProxyProtocolVersion, Transport};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy_protocol;
use crate::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use crate::pb::envoy::r#type::matcher::v3 as matcher_pb;
use crate::tls::{
    CertSource, CrlSource, DownstreamTls, RootSource, SanKind, SanMatch, SanName, TlsParams,
    TlsVersions, UpstreamTls, Validation,
};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// A listener's socket. None: plain.
pub(super) fn downstream(
    socket: &Option<core::TransportSocket>,
) -> Result<Option<Arc<DownstreamTls>>> {
    let Some(socket) = socket else { return Ok(None) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return by_name_only(socket).map(|()| None);
    };
    match value::message_name(any) {
        RAW_BUFFER => Ok(None),
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
            downstream_tls(&decode(any)?).map(|tls| Some(Arc::new(tls)))
        }
        other => error("typed_config", format!("{other:?} is not supported on a listener")),
    }
}

/// A cluster's socket, and the PROXY protocol version to send first.
pub(super) fn upstream(
    socket: &Option<core::TransportSocket>,
) -> Result<(Transport, Option<ProxyProtocolVersion>)> {
    let Some(socket) = socket else { return Ok((Transport::Plain, None)) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return by_name_only(socket).map(|()| (Transport::Plain, None));
    };
    match value::message_name(any) {
        RAW_BUFFER => Ok((Transport::Plain, None)),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            upstream_tls(&decode(any)?).map(|tls| (Transport::Tls(Arc::new(tls)), None))
        }
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            let message: proxy_protocol::ProxyProtocolUpstreamTransport = decode(any)?;
            let version = match message.config.as_ref().map_or(0, |config| config.version) {
                0 => ProxyProtocolVersion::V1,
                _ => ProxyProtocolVersion::V2,
            };
            match upstream(&message.transport_socket).at("transport_socket")? {
                (_, Some(_)) => error("transport_socket", "PROXY protocol is nested"),
                (inner, None) => Ok((inner, Some(version))),
            }
        }
        other => error("typed_config", format!("{other:?} is not supported on a cluster")),
    }
}

fn by_name_only(socket: &core::TransportSocket) -> Result<()> {
    match &*socket.name {
        "envoy.transport_sockets.raw_buffer" | "raw_buffer" => Ok(()),
        name => error("typed_config", format!("{name:?} needs a typed configuration")),
    }
}

fn downstream_tls(message: &pb::DownstreamTlsContext) -> Result<DownstreamTls> {
    let pb::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        // Session resumption and stapling are left to the TLS library.
        disable_stateful_session_resumption: _,
        session_timeout: _,
        ocsp_staple_policy: _,
        full_scan_certs_on_sni_mismatch: _,
        prefer_client_ciphers: _,
        session_ticket_keys_type: _,
    } = message;
    let common = common(common_tls_context).at("common_tls_context")?;
    if common.certificates.is_empty() {
        return error("common_tls_context.tls_certificates", "a certificate is required");
    }
    let require_client_cert = value::boolean(require_client_certificate, false);
    if require_client_cert && common.validation.is_none() {
        return error("require_client_certificate", "needs a validation context to check against");
    }
    Ok(DownstreamTls {
        certificates: common.certificates,
        require_client_cert,
        validation: common.validation,
        alpn: common.alpn,
        require_sni: value::boolean(require_sni, false),
        params: common.params,
    })
}

#[allow(deprecated)] // `enforce_rsa_key_usage` is destructured to be ignored.
fn upstream_tls(message: &pb::UpstreamTlsContext) -> Result<UpstreamTls> {
    let pb::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        // Renegotiation does not exist in rustls; the others tune BoringSSL.
        allow_renegotiation: _,
        max_session_keys: _,
        enforce_rsa_key_usage: _,
    } = message;
    let common = common(common_tls_context).at("common_tls_context")?;
    Ok(UpstreamTls {
        certificates: common.certificates,
        validation: common.validation,
        alpn: common.alpn,
        sni: (!sni.is_empty()).then(|| Arc::from(&**sni)),
        auto_host_sni: *auto_host_sni,
        auto_sni_san_validation: *auto_sni_san_validation,
        params: common.params,
    })
}

struct Common {
    certificates: Vec<CertSource>,
    validation: Option<Validation>,
    alpn: Vec<Box<[u8]>>,
    params: TlsParams,
}

#[allow(deprecated)] // Older certificate provider fields are looked at to be refused.
fn common(message: &Option<pb::CommonTlsContext>) -> Result<Common> {
    let default = pb::CommonTlsContext::default();
    let pb::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        // Debugging aid.
        key_log: _,
        validation_context_type,
    } = message.as_ref().unwrap_or(&default);
    refuse(tls_certificate_provider_instance.is_some(), "tls_certificate_provider_instance")?;
    refuse(custom_tls_certificate_selector.is_some(), "custom_tls_certificate_selector")?;
    refuse(tls_certificate_certificate_provider.is_some(), "tls_certificate_certificate_provider")?;
    refuse(
        tls_certificate_certificate_provider_instance.is_some(),
        "tls_certificate_certificate_provider_instance",
    )?;
    refuse(custom_handshaker.is_some(), "custom_handshaker")?;
    let mut certificates = list("tls_certificates", tls_certificates, certificate)?;
    certificates.extend(list(
        "tls_certificate_sds_secret_configs",
        tls_certificate_sds_secret_configs,
        |config| sds_name(config).map(CertSource::Sds),
    )?);
    Ok(Common {
        certificates,
        validation: validation_type(validation_context_type)?,
        alpn: alpn_protocols.iter().map(|name| name.as_bytes().into()).collect(),
        params: params(tls_params).at("tls_params")?,
    })
}

fn sds_name(config: &pb::SdsSecretConfig) -> Result<Arc<str>> {
    match config.name.is_empty() {
        true => error("name", "a secret name is required"),
        false => Ok(Arc::from(&*config.name)),
    }
}

fn certificate(message: &pb::TlsCertificate) -> Result<CertSource> {
    use core::data_source::Specifier::Filename;
    refuse(message.pkcs12.is_some(), "pkcs12")?;
    refuse(message.private_key_provider.is_some(), "private_key_provider")?;
    refuse(message.password.is_some(), "password")?;
    let (Some(chain), Some(key)) = (&message.certificate_chain, &message.private_key) else {
        return error("", "both certificate_chain and private_key are required");
    };
    if let (Some(Filename(chain)), Some(Filename(key))) = (&chain.specifier, &key.specifier) {
        return Ok(CertSource::Files { chain: Arc::from(&**chain), key: Arc::from(&**key) });
    }
    match (value::inline_data(chain), value::inline_data(key)) {
        (Some(chain), Some(key)) => Ok(CertSource::Inline { chain: chain.into(), key: key.into() }),
        _ => error("", "chain and key must both be files or both be inline"),
    }
}

#[allow(deprecated)] // Certificate providers are looked at to be refused.
fn validation_type(
    message: &Option<pb::common_tls_context::ValidationContextType>,
) -> Result<Option<Validation>> {
    use pb::common_tls_context::ValidationContextType as Type;
    match message {
        None => Ok(None),
        Some(Type::ValidationContext(context)) => {
            validation(context).at("validation_context").map(Some)
        }
        Some(Type::ValidationContextSdsSecretConfig(config)) => {
            let name = sds_name(config).at("validation_context_sds_secret_config")?;
            Ok(Some(Validation { roots: Some(RootSource::Sds(name)), ..no_validation() }))
        }
        Some(Type::CombinedValidationContext(combined)) => {
            combined_validation(combined).at("combined_validation_context").map(Some)
        }
        Some(
            Type::ValidationContextCertificateProvider(_)
            | Type::ValidationContextCertificateProviderInstance(_),
        ) => error("validation_context_type", "certificate providers are not supported"),
    }
}

/// The secret brings the roots, the default context the names.
#[allow(deprecated)] // Older certificate provider fields are looked at to be refused.
fn combined_validation(
    combined: &pb::common_tls_context::CombinedCertificateValidationContext,
) -> Result<Validation> {
    refuse(
        combined.validation_context_certificate_provider.is_some()
            || combined.validation_context_certificate_provider_instance.is_some(),
        "validation_context_certificate_provider",
    )?;
    let mut lowered = match &combined.default_validation_context {
        Some(context) => validation(context).at("default_validation_context")?,
        None => no_validation(),
    };
    if let Some(config) = &combined.validation_context_sds_secret_config {
        let name = sds_name(config).at("validation_context_sds_secret_config")?;
        lowered.roots = Some(RootSource::Sds(name));
    }
    Ok(lowered)
}

fn no_validation() -> Validation {
    Validation {
        roots: None,
        sans: Vec::new(),
        certificate_hashes: Vec::new(),
        spki_hashes: Vec::new(),
        accept_untrusted: false,
        revoked: None,
        revoked_leaf_only: false,
    }
}

#[allow(deprecated)] // `match_subject_alt_names` is what older control planes send.
pub(super) fn validation(message: &pb::CertificateValidationContext) -> Result<Validation> {
    let pb::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        // Files are watched anyway.
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp: _,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth: _,
        suppress_client_ca_list: _,
    } = message;
    refuse(ca_certificate_provider_instance.is_some(), "ca_certificate_provider_instance")?;
    refuse(*allow_expired_certificate, "allow_expired_certificate")?;
    refuse(custom_validator_config.is_some(), "custom_validator_config")?;
    let roots = match (trusted_ca, system_root_certs) {
        (Some(source), _) => Some(roots(source).at("trusted_ca")?),
        (None, Some(_)) => Some(RootSource::System),
        (None, None) => None,
    };
    let revoked = match crl {
        Some(source) => Some(revoked(source).at("crl")?),
        None => None,
    };
    let mut sans = list("match_typed_subject_alt_names", match_typed_subject_alt_names, typed_san)?;
    sans.extend(list("match_subject_alt_names", match_subject_alt_names, |matcher| {
        Ok(SanMatch { kind: SanKind::Any, name: san_name(matcher)? })
    })?);
    let hash = |text: &String| text.replace(':', "").to_ascii_lowercase().into();
    Ok(Validation {
        roots,
        sans,
        certificate_hashes: verify_certificate_hash.iter().map(hash).collect(),
        spki_hashes: verify_certificate_spki.iter().map(|text| text.as_str().into()).collect(),
        accept_untrusted: *trust_chain_verification == 1,
        revoked,
        revoked_leaf_only: *only_verify_leaf_cert_crl,
    })
}

fn roots(source: &core::DataSource) -> Result<RootSource> {
    match (&source.specifier, value::inline_data(source)) {
        (Some(core::data_source::Specifier::Filename(path)), _) => {
            Ok(RootSource::File(Arc::from(&**path)))
        }
        (_, Some(pem)) => Ok(RootSource::Inline(pem.into())),
        _ => error("", "only files and inline data are supported"),
    }
}

fn revoked(source: &core::DataSource) -> Result<CrlSource> {
    match (&source.specifier, value::inline_data(source)) {
        (Some(core::data_source::Specifier::Filename(path)), _) => {
            Ok(CrlSource::File(Arc::from(&**path)))
        }
        (_, Some(pem)) => Ok(CrlSource::Inline(pem.into())),
        _ => error("", "only files and inline data are supported"),
    }
}

fn typed_san(message: &pb::SubjectAltNameMatcher) -> Result<SanMatch> {
    let kind = match message.san_type {
        1 => SanKind::Email,
        2 => SanKind::Dns,
        3 => SanKind::Uri,
        4 => SanKind::Ip,
        other => return error("san_type", format!("{other} is not supported")),
    };
    match &message.matcher {
        Some(matcher) => Ok(SanMatch { kind, name: san_name(matcher).at("matcher")? }),
        None => error("matcher", "is required"),
    }
}

fn san_name(matcher: &matcher_pb::StringMatcher) -> Result<SanName> {
    use matcher_pb::string_matcher::MatchPattern;
    refuse(matcher.ignore_case, "ignore_case")?;
    Ok(match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => SanName::Exact(Arc::from(&**text)),
        Some(MatchPattern::Prefix(text)) => SanName::Prefix(Arc::from(&**text)),
        Some(MatchPattern::Suffix(text)) => SanName::Suffix(Arc::from(&**text)),
        Some(MatchPattern::Contains(text)) => SanName::Contains(Arc::from(&**text)),
        Some(MatchPattern::SafeRegex(_) | MatchPattern::Custom(_)) => {
            return error("", "only exact, prefix, suffix and contains are supported for names");
        }
        None => return error("", "a match pattern is required"),
    })
}

/// Suites and groups that rustls does not have are as good as not listed; signature algorithms are
/// BoringSSL's and ignored.
fn params(message: &Option<pb::TlsParameters>) -> Result<TlsParams> {
    let Some(message) = message else { return Ok(TlsParams::default()) };
    // 0 automatic, 1 TLS 1.0 … 4 TLS 1.3.
    let min = message.tls_minimum_protocol_version;
    let max = match message.tls_maximum_protocol_version {
        0 => 4,
        max => max,
    };
    let versions = TlsVersions { v12: min <= 3 && max >= 3, v13: max >= 4 };
    if !versions.v12 && !versions.v13 {
        return error("tls_maximum_protocol_version", "TLS 1.2 or 1.3 is required");
    }
    // `[A|B]`: of equal preference.
    let split = |text: &String| -> Vec<Box<str>> {
        text.trim_matches(['[', ']']).split('|').map(Box::from).collect()
    };
    Ok(TlsParams {
        versions,
        ciphers: message.cipher_suites.iter().flat_map(split).collect(),
        curves: message.ecdh_curves.iter().map(|name| name.as_str().into()).collect(),
    })
}
