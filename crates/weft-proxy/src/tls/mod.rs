//! TLS on both sides: handshakes, peer verification, certificates and where they come from.
//! Must not know HTTP or routing; names of secrets and rules about peers arrive lowered.

pub mod handshake;

pub mod configs;
pub mod files;
pub mod identity;
pub mod secrets;
pub mod verify;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

pub use configs::TlsConfigs;
pub use secrets::Secrets;

/// ALPN of HTTP/2 between two proxies of ours that list the spelling of names for each other. Only
/// mesh mTLS offers it; a stock Envoy does not know it and takes `h2`, which is offered as well.
pub const SPELLING_ALPN: &str = "weft-h2";

/// What a finished server-side handshake told about the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// URI SAN of a verified client certificate, `spiffe://…`.
    pub peer_spiffe: Option<Arc<str>>,
    /// Negotiated ALPN; `None` when nothing was agreed.
    pub alpn: Option<Arc<str>>,
    /// Server name of the ClientHello, lower case.
    pub sni: Option<Arc<str>>,
    /// Whether the client showed a certificate we verified.
    pub mtls: bool,
}

/// Why TLS could not be set up or failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The secret is not there yet: the certificate authority or SDS has not answered.
    #[error("secret {0} has not arrived; see /certs and the control plane's CA")]
    MissingSecret(Arc<str>),
    /// A secret does not parse or does not fit together; the one before stays in use.
    #[error("{0}")]
    BadSecret(String),
    /// The handshake failed: wrong peer, no common version, not TLS at all.
    #[error("handshake: {0}")]
    Handshake(#[from] std::io::Error),
    /// The handshake was not finished in time.
    #[error("handshake timed out")]
    Timeout,
}

/// The one place that chooses the cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
