//! Handshakes of both sides. The caller chooses the settings; this owns doing it in time and what
//! is known afterwards.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{DnsName, IpAddr, ServerName};
use tokio::time::timeout;
use weft_traffic::tls::{DownstreamTls, UpstreamTls};

use super::{TlsConfigs, TlsError, TlsInfo, verify};
use crate::listener::client_hello::{self, ClientHello, Hello};
use crate::net::Io;
use crate::net::io::Prefixed;
use crate::net::tls_stream::TlsStream;

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
    mut stream: Prefixed,
    tls: &Arc<DownstreamTls>,
    configs: &TlsConfigs,
) -> Result<(Io, TlsInfo), TlsError> {
    let hello = read_hello(&mut stream).await?;
    let sni: Option<Arc<str>> = hello.server_name.map(Into::into);
    if tls.require_sni && sni.is_none() {
        return Err(TlsError::Handshake(std::io::Error::other("the client sent no SNI")));
    }
    let offered: Vec<&[u8]> = hello.alpn.iter().map(String::as_bytes).collect();
    let config = configs.server(tls, &offered)?;
    let (tcp, read) = stream.into_parts();
    let stream = TlsStream::accept(tcp, &read, config).await?;
    let session = stream.session();
    let peer = session.peer_certificates().and_then(|chain| chain.first());
    let verified = tls.validation.as_ref().is_some_and(|validation| !validation.accept_untrusted);
    let info = TlsInfo {
        peer_spiffe: peer.filter(|_| verified).and_then(verify::spiffe_id).map(Into::into),
        alpn: alpn_text(session.alpn_protocol()),
        sni,
        mtls: verified && peer.is_some(),
    };
    Ok((Io::Tls(stream), info))
}

/// Reads on until the ClientHello is whole. What is none is left to the handshake, which refuses it
/// and tells the client why.
async fn read_hello(stream: &mut Prefixed) -> Result<ClientHello, TlsError> {
    loop {
        match client_hello::inspect(stream.prefix()) {
            Hello::Found(hello) => return Ok(hello),
            Hello::NotTls => return Ok(ClientHello::default()),
            Hello::NeedMore => {}
        }
        if stream.read_ahead().await? == 0 {
            return Err(TlsError::Handshake(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
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
    // Nothing was read: the client speaks first.
    let (tcp, _) = stream.into_parts();
    let stream = TlsStream::connect(tcp, config, server_name(name)?).await?;
    let session = stream.session();
    let upstream = UpstreamSession {
        alpn: alpn_text(session.alpn_protocol()),
        peer_spiffe: session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(verify::spiffe_id)
            .map(Into::into),
    };
    Ok((Io::Tls(stream), upstream))
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
