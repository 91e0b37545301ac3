//! What a fresh connection is: where it was meant to go, which listener and filter chain that
//! makes, and TLS ended if the chain says so. Runs once per connection, boxed by the caller, so
//! that nothing of it stays in memory while the connection lives.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant as TokioInstant, timeout_at};
use weft_traffic::listener::{ChainMatch, Network};
use weft_traffic::{ConnInfo, ListenerConfig};

use super::proxy_protocol::{self, Parsed};
use super::sniff::{self, Protocol, Want};
use crate::drain::OpenGuard;
use crate::net::Io;
use crate::net::io::Prefixed;
use crate::tls::{TlsError, TlsInfo, handshake};
use crate::worker::{ConnContext, Worker};

/// Why a connection was closed before anything was served.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The listener went away between accept and now.
    #[error("listener removed")]
    NoListener,
    /// No filter chain matches and there is no default: Envoy closes too.
    #[error("no filter chain matches")]
    NoChain,
    /// The client was too slow or sent nothing.
    #[error("nothing recognisable in time")]
    DetectTimeout,
    /// The source has as many connections as it may.
    #[error("too many connections of this source")]
    SourceLimit,
    /// A listener that expects the PROXY protocol got something else.
    #[error("{0}")]
    ProxyProtocol(&'static str),
    /// The client left.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
}

impl Refused {
    /// Metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Refused::NoListener => "no_listener",
            Refused::NoChain => "no_filter_chain",
            Refused::DetectTimeout => "detect_timeout",
            Refused::SourceLimit => "source_limit",
            Refused::ProxyProtocol(_) => "proxy_protocol",
            Refused::Io(_) => "closed",
            Refused::Tls(TlsError::MissingSecret(_)) => "tls_no_secret",
            Refused::Tls(TlsError::Timeout) => "tls_timeout",
            Refused::Tls(_) => "tls_error",
        }
    }
}

/// The addresses of a connection, gathered step by step.
struct Addresses {
    peer: SocketAddr,
    source: SocketAddr,
    local: SocketAddr,
    original_dst: Option<SocketAddr>,
}

/// Takes an accepted socket to the point where a protocol handler can have it.
pub async fn detect(
    tcp: TcpStream,
    peer: SocketAddr,
    accepted_by: &Arc<str>,
    worker: &Rc<Worker>,
    open: OpenGuard,
) -> Result<(Io, Rc<ConnContext>), Refused> {
    let accepted = worker.tick();
    let tables = worker.tables();
    let listener = tables.listener(accepted_by).ok_or(Refused::NoListener)?;
    let local = canonical(tcp.local_addr()?);
    let original_dst = original_dst(&tcp, local, listener);
    let listener = hand_off(worker, listener, original_dst.unwrap_or(local));
    drop(tables);

    let peer = canonical(peer);
    let mut addresses = Addresses { peer, source: peer, local, original_dst };
    let mut stream = Prefixed::new(tcp, BytesMut::new());
    let deadline = deadline(listener.inspect_timeout);
    if listener.inspectors.proxy_protocol {
        read_proxy_header(&mut stream, &mut addresses, deadline).await?;
    }
    let per_source_max = worker.limits.connections_per_source_max;
    let source = worker.sources.admit(addresses.source.ip(), per_source_max);
    let open = open.of_source(source.ok_or(Refused::SourceLimit)?);
    let port = addresses.original_dst.unwrap_or(local).port();
    let want = wanted(&listener, port);
    // Who is to be told from mutual TLS alone speaks first, or waits for a server that does.
    let silence = match want.tls && !want.http && takes_bytes(&listener, &addresses) {
        true => self::deadline(worker.limits.server_first_wait),
        false => None,
    };
    let patience = Patience { silence, deadline, go_on: listener.continue_on_inspect_timeout };
    let protocol = sniff(&mut stream, want, patience).await?;
    let Some(chain) = select(&listener, &addresses, &protocol) else {
        if let Some(logs) = &listener.access_log {
            let local = addresses.original_dst.unwrap_or(addresses.local);
            crate::tcp::log_unrouted(logs, addresses.source, local, worker);
        }
        return Err(Refused::NoChain);
    };
    let sni = match protocol {
        Protocol::Tls(hello) => hello.server_name.map(Into::into),
        _ => None,
    };
    let (io, tls) = end_tls(stream, &listener, chain, worker).await?;
    let Addresses { peer: _, source, local, original_dst } = addresses;
    let sni = sni.or_else(|| tls.as_ref().and_then(|tls| tls.sni.clone()));
    let peer = source;
    let accepted_by = accepted_by.clone();
    let conn = ConnContext {
        accepted_by,
        listener,
        chain,
        peer,
        local,
        original_dst,
        sni,
        tls,
        accepted,
        open,
    };
    Ok((io, Rc::new(conn)))
}

/// Ends TLS if the chain asks for it.
async fn end_tls(
    stream: Prefixed,
    listener: &ListenerConfig,
    chain: usize,
    worker: &Worker,
) -> Result<(Io, Option<TlsInfo>), Refused> {
    let settings = listener.chain(chain).ok_or(Refused::NoChain)?;
    let Some(tls) = &settings.tls else { return Ok((Io::Plain(stream), None)) };
    let limit = settings.handshake_timeout.unwrap_or(handshake::HANDSHAKE_TIMEOUT);
    let (io, info) = handshake::accept(stream, tls, &worker.tls, limit).await?;
    Ok((io, Some(info)))
}

/// Where the client meant to go before capture rules redirected it; `None` when it came straight.
fn original_dst(
    tcp: &TcpStream,
    local: SocketAddr,
    listener: &ListenerConfig,
) -> Option<SocketAddr> {
    if !listener.inspectors.original_dst && !listener.use_original_dst {
        return None;
    }
    // With TPROXY the socket itself carries the original address. What was redirected to the same
    // listener, as outbound traffic always is, comes to its own port.
    if listener.transparent && local.port() != listener.address.port() {
        return Some(local);
    }
    let socket = socket2::SockRef::from(tcp);
    let found = match local.is_ipv4() {
        true => socket.original_dst_v4(),
        false => socket.original_dst_v6(),
    };
    let found = canonical(found.ok()?.as_socket()?);
    (found != local).then_some(found)
}

/// The listener that serves a captured destination: its exact address, else the wildcard of its
/// port, else the capturing listener itself.
fn hand_off(
    worker: &Worker,
    listener: &Arc<ListenerConfig>,
    destination: SocketAddr,
) -> Arc<ListenerConfig> {
    match listener.use_original_dst {
        false => listener.clone(),
        true => match worker.captured(destination) {
            // Another capturing listener on that very port would loop.
            Some(target) if !target.use_original_dst => target,
            _ => listener.clone(),
        },
    }
}

async fn read_proxy_header(
    stream: &mut Prefixed,
    addresses: &mut Addresses,
    deadline: Option<TokioInstant>,
) -> Result<(), Refused> {
    loop {
        match proxy_protocol::parse(stream.prefix()) {
            Parsed::Complete(header) => {
                stream.skip(header.length);
                if let Some((source, destination)) = header.addresses {
                    addresses.source = canonical(source);
                    addresses.original_dst = Some(canonical(destination));
                }
                return Ok(());
            }
            Parsed::Invalid(why) => return Err(Refused::ProxyProtocol(why)),
            Parsed::NeedMore => {}
        }
        match read_ahead(stream, deadline).await? {
            Ahead::Bytes => {}
            Ahead::End => return Err(Refused::ProxyProtocol("closed before the PROXY header")),
            Ahead::Late => return Err(Refused::DetectTimeout),
        }
    }
}

/// How long the first bytes are waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// A client silent until then waits for the server.
    silence: Option<TokioInstant>,
    deadline: Option<TokioInstant>,
    /// Past the deadline it is none of the protocols looked for; else it is refused.
    go_on: bool,
}

/// Reads until the first bytes tell the protocol.
async fn sniff(stream: &mut Prefixed, want: Want, patience: Patience) -> Result<Protocol, Refused> {
    let Patience { silence, deadline, go_on } = patience;
    loop {
        if let Some(protocol) = sniff::inspect(stream.prefix(), want) {
            return Ok(protocol);
        }
        let silent = stream.prefix().is_empty();
        let until = match silence.filter(|_| silent) {
            Some(silence) => Some(deadline.map_or(silence, |deadline| deadline.min(silence))),
            None => deadline,
        };
        match read_ahead(stream, until).await? {
            Ahead::Bytes => {}
            // A short message of an unknown protocol, then half-close: still to be forwarded.
            Ahead::End if !silent => return Ok(Protocol::Other),
            Ahead::End => return Err(Refused::Io(io::ErrorKind::UnexpectedEof.into())),
            Ahead::Late if go_on || (silent && silence.is_some()) => return Ok(Protocol::Other),
            Ahead::Late => return Err(Refused::DetectTimeout),
        }
    }
}

/// What is to be found out of a connection to `port`. Chains of a port go before all others, and
/// what none of them asks for need not be waited for: one listener captures all ports.
fn wanted(listener: &ListenerConfig, port: u16) -> Want {
    let inspectors = &listener.inspectors;
    let (mut tls, mut http) = (inspectors.tls_on(port), inspectors.http_on(port));
    let matches = || {
        let all = listener.chains.iter().map(|chain| &chain.matches);
        all.filter(|matches| matches.destination_port == Some(port))
    };
    if matches().next().is_some() {
        let asks_tls = |one: &ChainMatch| {
            let ChainMatch { transport_protocol, server_names, application_protocols, .. } = one;
            !(transport_protocol.is_empty()
                && server_names.is_empty()
                && application_protocols.is_empty())
        };
        let asks_http = |one: &ChainMatch| {
            &*one.transport_protocol != "tls" && !one.application_protocols.is_empty()
        };
        tls &= matches().any(asks_tls);
        http &= matches().any(asks_http);
    }
    Want { tls, http }
}

/// Whether plain text to this destination is passed on as it is, whatever it is.
fn takes_bytes(listener: &ListenerConfig, addresses: &Addresses) -> bool {
    let plain = select(listener, addresses, &Protocol::Other);
    let chain = plain.and_then(|chain| listener.chain(chain));
    chain.is_some_and(|chain| chain.tls.is_none() && matches!(chain.network, Network::Tcp(_)))
}

enum Ahead {
    Bytes,
    End,
    Late,
}

async fn read_ahead(
    stream: &mut Prefixed,
    deadline: Option<TokioInstant>,
) -> Result<Ahead, io::Error> {
    let read = match deadline {
        None => stream.read_ahead().await,
        Some(deadline) => match timeout_at(deadline, stream.read_ahead()).await {
            Ok(read) => read,
            Err(_) => {
                // The read that was given up left room for bytes, which none came to fill.
                stream.skip(0);
                return Ok(Ahead::Late);
            }
        },
    };
    Ok(match read? {
        0 => Ahead::End,
        _ => Ahead::Bytes,
    })
}

/// Zero means no limit, as in Envoy.
fn deadline(limit: Duration) -> Option<TokioInstant> {
    (!limit.is_zero()).then(|| TokioInstant::now() + limit)
}

fn select(listener: &ListenerConfig, addresses: &Addresses, protocol: &Protocol) -> Option<usize> {
    let alpn: Vec<&[u8]> = match protocol {
        Protocol::Tls(hello) => hello.alpn.iter().map(String::as_bytes).collect(),
        Protocol::Http1(name) => vec![name.as_bytes()],
        Protocol::H2c => vec![b"h2c"],
        Protocol::Other => Vec::new(),
    };
    let sni = match protocol {
        Protocol::Tls(hello) => hello.server_name.as_deref(),
        _ => None,
    };
    listener.select_index(&ConnInfo {
        dst: addresses.original_dst.unwrap_or(addresses.local),
        src: addresses.source,
        direct_src: addresses.peer,
        sni,
        alpn: &alpn,
        tls: matches!(protocol, Protocol::Tls(_)),
    })
}

/// IPv4-mapped IPv6 addresses are IPv4 to configuration.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
