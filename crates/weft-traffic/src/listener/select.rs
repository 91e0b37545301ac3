//! Envoy's filter chain matching: the criteria are tried in a fixed order, each keeps only the chains
//! with the most specific match, and there is no way back once a criterion has narrowed the set. So a
//! chain that names the right port but the wrong server name hides every chain without a port.

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use super::{ChainMatch, Cidr, FilterChain, ListenerConfig, SourceType};

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ConnInfo<'a> {
    /// Original destination where the connection was captured, else the local address.
    pub dst: SocketAddr,
    /// The client, after PROXY protocol.
    pub src: SocketAddr,
    /// The TCP peer; the same as `src` unless PROXY protocol changed it.
    pub direct_src: SocketAddr,
    /// Server name of the ClientHello.
    pub sni: Option<&'a str>,
    /// ALPN of the ClientHello, or what the HTTP inspector found (`http/1.1`, `h2c`).
    pub alpn: &'a [&'a [u8]],
    /// The first bytes are a TLS ClientHello.
    pub tls: bool,
}

impl ListenerConfig {
    /// The chain for a connection, or None: Envoy closes such a connection.
    pub fn select_chain(&self, conn: &ConnInfo<'_>) -> Option<&FilterChain> {
        self.select_index(conn).and_then(|index| self.chain(index))
    }

    /// As `select_chain`, by index: `chains.len()` is the default chain.
    pub fn select_index(&self, conn: &ConnInfo<'_>) -> Option<usize> {
        let mut left: SmallVec<[u32; 32]> = (0..self.chains.len() as u32).collect();
        for criterion in CRITERIA {
            narrow(&mut left, |index| criterion(&self.chains[index as usize].matches, conn));
        }
        match left.first() {
            Some(index) => Some(*index as usize),
            None => self.default_chain.as_ref().map(|_| self.chains.len()),
        }
    }

    /// The chain at an index from [`Self::select_index`].
    pub fn chain(&self, index: usize) -> Option<&FilterChain> {
        match self.chains.get(index) {
            Some(chain) => Some(chain),
            None => self.default_chain.as_ref().filter(|_| index == self.chains.len()),
        }
    }
}

/// How specifically a chain meets one criterion: None does not match, 0 does not ask, higher is more
/// specific.
type Criterion = fn(&ChainMatch, &ConnInfo<'_>) -> Option<u16>;

/// In Envoy's order (`FilterChainMatch`'s documentation).
const CRITERIA: [Criterion; 9] = [
    |m, conn| port_score(m.destination_port.as_slice(), conn.dst.port()),
    |m, conn| range_score(&m.prefix_ranges, conn.dst.ip()),
    |m, conn| server_name_score(&m.server_names, conn.sni),
    |m, conn| transport_score(&m.transport_protocol, conn.tls),
    |m, conn| alpn_score(&m.application_protocols, conn.alpn),
    |m, conn| range_score(&m.direct_source_ranges, conn.direct_src.ip()),
    |m, conn| source_type_score(m.source_type, conn),
    |m, conn| range_score(&m.source_ranges, conn.src.ip()),
    |m, conn| port_score(&m.source_ports, conn.src.port()),
];

/// Keeps the candidates with the greatest score, in order.
fn narrow(left: &mut SmallVec<[u32; 32]>, score: impl Fn(u32) -> Option<u16>) {
    let mut best = None;
    let mut kept = 0;
    for at in 0..left.len() {
        let index = left[at];
        let found = score(index);
        // None is less than any score.
        if found > best {
            (best, kept) = (found, 0);
        }
        if found.is_some() && found == best {
            left[kept] = index;
            kept += 1;
        }
    }
    left.truncate(kept);
}

fn port_score(ports: &[u16], port: u16) -> Option<u16> {
    match ports {
        [] => Some(0),
        ports => ports.contains(&port).then_some(1),
    }
}

fn range_score(ranges: &[Cidr], ip: IpAddr) -> Option<u16> {
    match ranges {
        [] => Some(0),
        // A /0 range is still more specific than no range.
        ranges => ranges.iter().filter(|r| r.contains(ip)).map(|r| u16::from(r.bits()) + 1).max(),
    }
}

fn server_name_score(names: &[Box<str>], sni: Option<&str>) -> Option<u16> {
    let (names, sni) = match (names, sni) {
        ([], _) => return Some(0),
        (_, None) => return None,
        (names, Some(sni)) => (names, sni.as_bytes()),
    };
    names.iter().filter_map(|name| one_server_name_score(name.as_bytes(), sni)).max()
}

/// `*.example.com` matches any name below `example.com`, not itself.
fn one_server_name_score(name: &[u8], sni: &[u8]) -> Option<u16> {
    match name.strip_prefix(b"*") {
        None => name.eq_ignore_ascii_case(sni).then_some(u16::MAX),
        Some(suffix) => {
            let tail = sni.get(sni.len().checked_sub(suffix.len())?..)?;
            let matched = sni.len() > suffix.len() && tail.eq_ignore_ascii_case(suffix);
            // Server names have at most 255 bytes on the wire, so the length fits.
            matched.then_some(name.len().min(usize::from(u16::MAX) - 1) as u16)
        }
    }
}

fn transport_score(wanted: &str, tls: bool) -> Option<u16> {
    match (wanted, tls) {
        ("", _) => Some(0),
        ("tls", true) | ("raw_buffer", false) => Some(1),
        _ => None,
    }
}

/// The client's first offer that some chain names wins.
fn alpn_score(wanted: &[Box<[u8]>], offered: &[&[u8]]) -> Option<u16> {
    if wanted.is_empty() {
        return Some(0);
    }
    let first = offered.iter().position(|offer| wanted.iter().any(|name| **name == **offer))?;
    Some(u16::MAX - first.min(usize::from(u16::MAX) - 1) as u16)
}

fn source_type_score(wanted: SourceType, conn: &ConnInfo<'_>) -> Option<u16> {
    let local = conn.src.ip().is_loopback() || conn.src.ip() == conn.dst.ip();
    match (wanted, local) {
        (SourceType::Any, _) => Some(0),
        (SourceType::SameIpOrLoopback, true) | (SourceType::External, false) => Some(1),
        _ => None,
    }
}
