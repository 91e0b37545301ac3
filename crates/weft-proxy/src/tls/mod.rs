//! TLS on both sides: handshakes, SPIFFE verification, certificates.

use std::sync::Arc;

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
