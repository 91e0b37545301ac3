//! TLS as the tables describe it: which secrets, which names to accept, which protocols to offer.
//!
//! Holds names and rules only, never key material in use: the proxy resolves [`CertSource`] to
//! certificates and builds rustls configurations, and keeps them keyed by these values (all are `Hash`).

use std::sync::Arc;

/// `DownstreamTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DownstreamTls {
    pub certificates: Vec<CertSource>,
    pub require_client_cert: bool,
    /// How client certificates are checked. None: they are neither asked for nor checked.
    pub validation: Option<Validation>,
    /// What we accept, most preferred first. When the client offers none of these the handshake goes
    /// on without ALPN, as BoringSSL does.
    pub alpn: Vec<Box<[u8]>>,
    pub require_sni: bool,
    pub params: TlsParams,
}

/// `UpstreamTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Client certificate; empty for one-way TLS.
    pub certificates: Vec<CertSource>,
    /// None: the peer's certificate is not checked, as in Envoy without a validation context.
    pub validation: Option<Validation>,
    pub alpn: Vec<Box<[u8]>>,
    /// Server name to send. None: no SNI, unless `auto_host_sni`.
    pub sni: Option<Arc<str>>,
    /// SNI is the endpoint's host name.
    pub auto_host_sni: bool,
    /// The certificate must carry the SNI as a DNS name.
    pub auto_sni_san_validation: bool,
    pub params: TlsParams,
}

/// Where a certificate with its key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertSource {
    /// SDS by name (`default`, `kubernetes://…`, `file-cert:CERT~KEY`).
    Sds(Arc<str>),
    /// Files, re-read when they change.
    Files { chain: Arc<str>, key: Arc<str> },
    /// PEM in the message.
    Inline { chain: Arc<[u8]>, key: Arc<[u8]> },
}

/// Where trusted roots come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RootSource {
    /// SDS by name (`ROOTCA`, `file-root:PATH`).
    Sds(Arc<str>),
    File(Arc<str>),
    Inline(Arc<[u8]>),
    /// The system's root store (`system_root_certs`).
    System,
}

/// How the peer's certificate is checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Validation {
    /// None: the chain is not verified.
    pub roots: Option<RootSource>,
    /// Any one suffices. Empty: any name.
    pub sans: Vec<SanMatch>,
    /// Lower-case hex SHA-256 of the certificate; empty: not pinned.
    pub certificate_hashes: Vec<Box<str>>,
    /// Base64 SHA-256 of the public key; empty: not pinned.
    pub spki_hashes: Vec<Box<str>>,
    /// A presented certificate that fails verification is still accepted (`ACCEPT_UNTRUSTED`).
    pub accept_untrusted: bool,
    /// Revoked certificates, besides those that the secret with the roots lists.
    pub revoked: Option<CrlSource>,
    /// Only the peer's own certificate is looked up (`only_verify_leaf_cert_crl`).
    pub revoked_leaf_only: bool,
}

/// Where a list of revoked certificates comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CrlSource {
    /// A PEM file, re-read when it changes.
    File(Arc<str>),
    /// PEM in the message.
    Inline(Arc<[u8]>),
}

/// One acceptable subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SanMatch {
    pub kind: SanKind,
    pub name: SanName,
}

impl SanMatch {
    /// Whether a name of this kind from the certificate is acceptable.
    pub fn matches(&self, kind: SanKind, name: &str) -> bool {
        (self.kind == SanKind::Any || self.kind == kind)
            && match &self.name {
                SanName::Exact(wanted) if kind == SanKind::Dns => covers(name, wanted),
                other => other.matches(name),
            }
    }
}

/// Whether a certificate's DNS name, perhaps `*.` and a domain, stands for a host (RFC 6125 §6.4):
/// the star is one label.
fn covers(name: &str, host: &str) -> bool {
    let by_star = || {
        let domain = name.strip_prefix("*.")?;
        let (label, rest) = host.split_once('.')?;
        Some(!label.is_empty() && rest.eq_ignore_ascii_case(domain))
    };
    name.eq_ignore_ascii_case(host) || by_star() == Some(true)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SanKind {
    /// From the older, untyped field: URI, DNS or IP.
    Any,
    Uri,
    Dns,
    Ip,
    Email,
}

/// Names are compared as Envoy does: exact (a DNS certificate name may be a wildcard), prefix, suffix or
/// contained.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SanName {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Contains(Arc<str>),
}

impl SanName {
    fn matches(&self, name: &str) -> bool {
        match self {
            SanName::Exact(wanted) => **wanted == *name,
            SanName::Prefix(wanted) => name.starts_with(&**wanted),
            SanName::Suffix(wanted) => name.ends_with(&**wanted),
            SanName::Contains(wanted) => name.contains(&**wanted),
        }
    }
}

/// `TlsParameters`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TlsParams {
    pub versions: TlsVersions,
    /// TLS 1.2 suites in OpenSSL's spelling; empty: all that are safe. Those of TLS 1.3 are fixed.
    pub ciphers: Vec<Box<str>>,
    /// Key exchange groups in BoringSSL's spelling; empty: all that are safe.
    pub curves: Vec<Box<str>>,
}

/// Allowed protocol versions; both may be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TlsVersions {
    pub v12: bool,
    pub v13: bool,
}

impl Default for TlsVersions {
    fn default() -> Self {
        TlsVersions { v12: true, v13: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificates_star_is_one_label() {
        let wanted =
            |host: &str| SanMatch { kind: SanKind::Dns, name: SanName::Exact(host.into()) };
        for (host, name, expect) in [
            ("www.example.com", "www.example.com", true),
            ("www.example.com", "WWW.example.com", true),
            ("www.example.com", "*.example.com", true),
            ("a.www.example.com", "*.example.com", false),
            ("example.com", "*.example.com", false),
            (".example.com", "*.example.com", false),
            ("*.example.com", "www.example.com", false),
        ] {
            assert_eq!(wanted(host).matches(SanKind::Dns, name), expect, "{host} {name}");
        }
        assert!(!wanted("www.example.com").matches(SanKind::Uri, "*.example.com"));
    }
}
