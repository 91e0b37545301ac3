//! One connection to one endpoint: TCP (or a Unix socket) within the cluster's connect timeout, then
//! TLS with the identity check if the endpoint's transport says so. Pooling and retries are the
//! callers'.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use weft_traffic::cluster::{ProxyProtocolVersion, TcpKeepalive, Transport};
use weft_traffic::{Cluster, Endpoint, EndpointAddress};

use crate::error::{ErrorKind, ProxyError};
use crate::net::Io;
use crate::net::io::Prefixed;
use crate::tls::{SPELLING_ALPN, TlsError, handshake};
use crate::upstream::endpoints::CxGuard;
use crate::worker::{ConnContext, Worker};

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

/// What the upstream must learn of the client by the connection itself, so that only the same
/// client's requests may share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Origin {
    /// Client and destination, as a PROXY protocol header tells them.
    pub announced: Option<(SocketAddr, SocketAddr)>,
    /// Connect from this address (IP_TRANSPARENT), with this mark (SO_MARK; 0: none). The port is
    /// another one, as in Envoy: with the client's own the two connections would be one to the
    /// kernel's connection tracking, which the capture rules stand on.
    pub from: Option<(IpAddr, u32)>,
}

impl Origin {
    /// For a connection of one client to this cluster.
    pub fn of(cluster: &Cluster, conn: &ConnContext) -> Origin {
        let mark = conn.listener.inspectors.original_src;
        let destination = conn.original_dst.unwrap_or(conn.local);
        Origin {
            announced: cluster.config.proxy_protocol.map(|_| (conn.peer, destination)),
            from: mark.map(|mark| (conn.peer.ip(), mark)),
        }
    }
}

/// Connects to an endpoint of a cluster.
pub async fn connect(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
    origin: Origin,
) -> Result<Connected, ProxyError> {
    // Names are resolved in the background; one here has no address yet.
    if matches!(endpoint.address, EndpointAddress::Name { .. }) {
        return Err(ErrorKind::NoHealthyUpstream.into());
    }
    let counters = worker.endpoint_counters(cluster, &endpoint.address);
    counters.cx_total.inc();
    let attempt = establish(worker, cluster, endpoint, origin);
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
    origin: Origin,
) -> Result<(Io, Negotiated), ProxyError> {
    let failed =
        |error: std::io::Error| ProxyError::new(ErrorKind::ConnectFailed).with_source(error);
    let tcp = match &endpoint.address {
        EndpointAddress::Ip(address) => open(cluster, *address, origin).await,
        EndpointAddress::Pipe(path) => open_unix(path),
        EndpointAddress::Name { .. } => return Err(ErrorKind::NoHealthyUpstream.into()),
    };
    let tcp = tcp.map_err(failed)?;
    if let Some(version) = cluster.config.proxy_protocol {
        let told = match origin.announced {
            Some(announced) => announced,
            None => (tcp.local_addr().map_err(failed)?, tcp.peer_addr().map_err(failed)?),
        };
        write_proxy_header(&tcp, version, told).await.map_err(failed)?;
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
            let address = &endpoint.address;
            tracing::debug!(cluster = %cluster.name, %address, %error, "upstream TLS failed");
            Err(ProxyError::new(ErrorKind::UpstreamTls).with_source(error))
        }
    }
}

/// Opens the socket with the cluster's options, as if it were the client's if it is to look so.
async fn open(
    cluster: &Cluster,
    address: SocketAddr,
    origin: Origin,
) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if let Some(keepalive) = cluster.config.tcp_keepalive {
        set_keepalive(&socket, keepalive)?;
    }
    let same_version = |from: &&SocketAddr| from.is_ipv4() == address.is_ipv4();
    match (origin.from, cluster.config.source_addresses.iter().find(same_version)) {
        // Another family than the endpoint's cannot be kept.
        (Some((from, mark)), _) if from.is_ipv4() == address.is_ipv4() => {
            let options = socket2::SockRef::from(&socket);
            match from {
                IpAddr::V4(_) => options.set_ip_transparent_v4(true)?,
                IpAddr::V6(_) => options.set_ip_transparent_v6(true)?,
            }
            if mark != 0 {
                options.set_mark(mark)?;
            }
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(from, 0))?;
        }
        (_, Some(source)) => {
            socket.set_reuseaddr(true)?;
            socket.bind(*source)?;
        }
        _ => {}
    }
    socket.connect(address).await
}

/// Connects to a Unix socket; `@name` is one of the abstract namespace. Bytes go through the stream
/// type of TCP, since both are stream sockets: what only TCP has (addresses, options) fails with an
/// error where it is asked for, and nobody does.
fn open_unix(path: &str) -> std::io::Result<TcpStream> {
    let address = match path.strip_prefix('@') {
        Some(name) => SockAddr::unix(format!("\0{name}"))?,
        None => SockAddr::unix(path)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Connected at once or not at all: with its queue full the application is too busy.
    socket.connect(&address)?;
    TcpStream::from_std(socket.into())
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
    (source, destination): (SocketAddr, SocketAddr),
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
