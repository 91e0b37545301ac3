//! One connection to one endpoint: TCP within the cluster's connect timeout, then TLS with the
//! identity check if the endpoint's transport says so. Pooling and retries are the callers'.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use weft_traffic::cluster::{ProxyProtocolVersion, TcpKeepalive, Transport};
use weft_traffic::{Cluster, Endpoint, EndpointAddress};

use crate::error::{ErrorKind, ProxyError};
use crate::net::Io;
use crate::net::io::Prefixed;
use crate::tls::{SPELLING_ALPN, TlsError, handshake};
use crate::upstream::endpoints::CxGuard;
use crate::worker::Worker;

/// A new upstream connection.
#[derive(Debug)]
pub struct Connected {
    /// The stream.
    pub io: Io,
    /// What TLS agreed on; all `None` on a plain connection.
    pub session: Negotiated,
    /// Counts the connection as active while it lives.
    pub active: CxGuard,
}

/// What TLS agreed on with the upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Negotiated ALPN.
    pub alpn: Option<Arc<str>>,
    /// SPIFFE id of the upstream's certificate.
    pub peer_spiffe: Option<Arc<str>>,
    /// We showed a client certificate and the upstream's was verified.
    pub mtls: bool,
}

impl Negotiated {
    /// ALPN chose HTTP/2.
    pub fn is_h2(&self) -> bool {
        matches!(self.alpn.as_deref(), Some("h2" | SPELLING_ALPN))
    }

    /// The endpoint is a proxy of ours that lists how names were spelt.
    pub fn carries_spelling(&self) -> bool {
        self.mtls && self.alpn.as_deref() == Some(SPELLING_ALPN)
    }
}

/// Client and destination as a PROXY protocol header should tell them.
pub type Origin = (SocketAddr, SocketAddr);

/// Connects to an endpoint of a cluster.
pub async fn connect(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<Connected, ProxyError> {
    connect_for(worker, cluster, endpoint, None).await
}

/// As [`connect`], on behalf of one client, for clusters that announce it upstream.
pub async fn connect_for(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
    origin: Option<Origin>,
) -> Result<Connected, ProxyError> {
    let address = match &endpoint.address {
        EndpointAddress::Ip(address) => *address,
        // Names are resolved in the background; one here has no address yet.
        EndpointAddress::Name { .. } => return Err(ErrorKind::NoHealthyUpstream.into()),
        EndpointAddress::Pipe(path) => {
            let why = format!("Unix socket endpoint {path} is not supported");
            return Err(ProxyError::new(ErrorKind::ConnectFailed).with_source(why));
        }
    };
    let counters = worker.endpoint_counters(&cluster.name, address);
    counters.cx_total.inc();
    let attempt = establish(worker, cluster, endpoint, address, origin);
    // Boxed: the handshake's state is large and gone once connected.
    let result = match timeout(cluster.config.connect_timeout, Box::pin(attempt)).await {
        Ok(result) => result,
        Err(_) => Err(ErrorKind::ConnectTimeout.into()),
    };
    match result {
        Ok((io, session)) => Ok(Connected { io, session, active: CxGuard::new(counters) }),
        Err(error) => {
            counters.cx_connect_fail.inc();
            Err(error)
        }
    }
}

async fn establish(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
    address: SocketAddr,
    origin: Option<Origin>,
) -> Result<(Io, Negotiated), ProxyError> {
    let failed =
        |error: std::io::Error| ProxyError::new(ErrorKind::ConnectFailed).with_source(error);
    let tcp = open(cluster, address).await.map_err(failed)?;
    if let Some(version) = cluster.config.proxy_protocol {
        let own = (tcp.local_addr().map_err(failed)?, address);
        write_proxy_header(&tcp, version, origin.unwrap_or(own)).await.map_err(failed)?;
    }
    let stream = Prefixed::new(tcp, bytes::BytesMut::new());
    let tls = match cluster.transport(endpoint) {
        Transport::Plain => return Ok((Io::Plain(stream), Negotiated::default())),
        Transport::Tls(tls) => tls,
    };
    let host = match endpoint.hostname.is_empty() {
        true => None,
        false => Some(&*endpoint.hostname),
    };
    match handshake::connect(stream, tls, &worker.tls, host).await {
        Ok((io, session)) => {
            let handshake::UpstreamSession { alpn, peer_spiffe } = session;
            let checked = tls.validation.as_ref().is_some_and(|rules| rules.roots.is_some());
            let mtls = checked && !tls.certificates.is_empty();
            Ok((io, Negotiated { alpn, peer_spiffe, mtls }))
        }
        Err(TlsError::Timeout) => Err(ErrorKind::ConnectTimeout.into()),
        Err(error) => {
            tracing::debug!(cluster = %cluster.name, %address, %error, "upstream TLS failed");
            Err(ProxyError::new(ErrorKind::UpstreamTls).with_source(error))
        }
    }
}

/// Opens the socket with the cluster's options.
async fn open(cluster: &Cluster, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if let Some(keepalive) = cluster.config.tcp_keepalive {
        set_keepalive(&socket, keepalive)?;
    }
    match cluster.config.source_address {
        Some(source) if source.is_ipv4() == address.is_ipv4() => {
            socket.set_reuseaddr(true)?;
            socket.bind(source)?;
        }
        _ => {}
    }
    socket.connect(address).await
}

fn set_keepalive(socket: &TcpSocket, keepalive: TcpKeepalive) -> std::io::Result<()> {
    let TcpKeepalive { probes, time, interval } = keepalive;
    let mut options = socket2::TcpKeepalive::new();
    // The kernel takes whole seconds and no zero.
    let seconds = |duration: Duration| duration.max(Duration::from_secs(1));
    if let Some(probes) = probes {
        options = options.with_retries(probes.max(1));
    }
    if let Some(time) = time {
        options = options.with_time(seconds(time));
    }
    if let Some(interval) = interval {
        options = options.with_interval(seconds(interval));
    }
    socket2::SockRef::from(socket).set_tcp_keepalive(&options)
}

async fn write_proxy_header(
    tcp: &TcpStream,
    version: ProxyProtocolVersion,
    (source, destination): Origin,
) -> std::io::Result<()> {
    let header = match version {
        ProxyProtocolVersion::V1 => crate::listener::proxy_protocol::encode_v1(source, destination),
        ProxyProtocolVersion::V2 => crate::listener::proxy_protocol::encode_v2(source, destination),
    };
    let mut rest = &header[..];
    while !rest.is_empty() {
        tcp.writable().await?;
        match tcp.try_write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
