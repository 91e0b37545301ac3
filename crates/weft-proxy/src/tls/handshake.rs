//! Handshakes of both sides. The caller chooses the settings; this owns doing it in time and what
//! is known afterwards.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{DnsName, IpAddr, ServerName};
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use weft_traffic::tls::{DownstreamTls, UpstreamTls};

use super::{TlsConfigs, TlsError, TlsInfo, verify};
use crate::net::Io;
use crate::net::io::Prefixed;

/// Handshake limit where the configuration sets none; Envoy has 15 s for the whole of detection.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Ends TLS for a client. The configuration is chosen after the ClientHello was read.
pub async fn accept(
    stream: Prefixed,
    tls: &Arc<DownstreamTls>,
    configs: &TlsConfigs,
    limit: Duration,
) -> Result<(Io, TlsInfo), TlsError> {
    match timeout(limit, accept_untimed(stream, tls, configs)).await {
        Ok(result) => result,
        Err(_) => Err(TlsError::Timeout),
    }
}

async fn accept_untimed(
    stream: Prefixed,
    tls: &Arc<DownstreamTls>,
    configs: &TlsConfigs,
) -> Result<(Io, TlsInfo), TlsError> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let (config, sni) = {
        let hello = start.client_hello();
        let offered: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
        let sni: Option<Arc<str>> =
            hello.server_name().map(|name| name.to_ascii_lowercase().into());
        if tls.require_sni && sni.is_none() {
            return Err(TlsError::Handshake(std::io::Error::other("the client sent no SNI")));
        }
        (configs.server(tls, &offered)?, sni)
    };
    let stream = start.into_stream(config).await?;
    let session = stream.get_ref().1;
    let peer = session.peer_certificates().and_then(|chain| chain.first());
    let verified = tls.validation.as_ref().is_some_and(|validation| !validation.accept_untrusted);
    let info = TlsInfo {
        peer_spiffe: peer.filter(|_| verified).and_then(verify::spiffe_id).map(Into::into),
        alpn: alpn_text(session.alpn_protocol()),
        sni,
        mtls: verified && peer.is_some(),
    };
    Ok((Io::tls(stream), info))
}

/// Starts TLS towards an upstream. `host` is the endpoint's host name or address, used for SNI
/// where the settings say so. Returns the negotiated ALPN.
pub async fn connect(
    stream: Prefixed,
    tls: &Arc<UpstreamTls>,
    configs: &TlsConfigs,
    host: Option<&str>,
) -> Result<(Io, UpstreamSession), TlsError> {
    let config = configs.client(tls, host)?;
    let name = match &tls.sni {
        _ if tls.auto_host_sni => host,
        Some(sni) => Some(&**sni),
        None => None,
    };
    let stream = TlsConnector::from(config).connect(server_name(name)?, stream).await?;
    let session = stream.get_ref().1;
    let upstream = UpstreamSession {
        alpn: alpn_text(session.alpn_protocol()),
        peer_spiffe: session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(verify::spiffe_id)
            .map(Into::into),
    };
    Ok((Io::tls(stream), upstream))
}

/// What a finished client-side handshake told about the upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamSession {
    /// Negotiated ALPN.
    pub alpn: Option<Arc<str>>,
    /// URI SAN of the upstream's certificate.
    pub peer_spiffe: Option<Arc<str>>,
}

fn alpn_text(alpn: Option<&[u8]>) -> Option<Arc<str>> {
    alpn.and_then(|name| std::str::from_utf8(name).ok()).map(Into::into)
}

/// rustls wants a name even when none is sent (SNI is switched off then): any will do.
fn server_name(name: Option<&str>) -> Result<ServerName<'static>, TlsError> {
    let Some(name) = name else {
        return Ok(ServerName::IpAddress(IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED)));
    };
    match name.parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(ServerName::IpAddress(ip.into())),
        Err(_) => match DnsName::try_from(name.to_owned()) {
            Ok(name) => Ok(ServerName::DnsName(name)),
            Err(_) => Err(TlsError::BadSecret(format!("{name} cannot be a server name"))),
        },
    }
}
