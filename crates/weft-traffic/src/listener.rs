//! A lowered listener and the choice of its filter chain.
//!
//! Owns the shape of listeners, chains and TCP proxying, and Envoy's filter chain matching order. Must
//! not know sockets: what was read from the connection arrives as [`ConnInfo`].

mod select;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::access_log::AccessLogs;
use crate::http::HttpConfig;
use crate::metrics::Metrics;
use crate::route::ClusterChoice;
use crate::tls::DownstreamTls;

pub use select::ConnInfo;

/// One listener, as accepted from LDS.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Resource name (`virtualInbound`, `0.0.0.0_8080`).
    pub name: Arc<str>,
    /// Address to bind, or to match by original destination when `bind` is false.
    pub address: SocketAddr,
    /// Further addresses of the same listener.
    pub additional_addresses: Vec<SocketAddr>,
    /// False: no socket; connections are handed over by a listener with `use_original_dst`.
    pub bind: bool,
    pub direction: Direction,
    /// After accept, hand the connection to the listener that matches its original destination.
    pub use_original_dst: bool,
    /// Bind with IP_TRANSPARENT (TPROXY capture).
    pub transparent: bool,
    pub inspectors: Inspectors,
    pub chains: Vec<FilterChain>,
    pub default_chain: Option<FilterChain>,
    /// How long inspectors may wait for the client's first bytes. Zero: no limit. Envoy: 15 s.
    pub inspect_timeout: Duration,
    /// On that timeout go on with what is known, instead of closing.
    pub continue_on_inspect_timeout: bool,
    /// Envoy's `per_connection_buffer_limit_bytes`.
    pub buffer_bytes_max: Option<u32>,
    pub access_log: Option<Arc<AccessLogs>>,
}

/// `traffic_direction`. A listener without one is a gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Inbound,
    Outbound,
    Gateway,
}

/// Listener filters, as facts about what must be read before a chain is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspectors {
    /// `envoy.filters.listener.tls_inspector`
    pub tls: bool,
    /// `envoy.filters.listener.http_inspector`
    pub http: bool,
    /// `envoy.filters.listener.original_dst`
    pub original_dst: bool,
    /// `envoy.filters.listener.original_src`: connect upstream from the client's address, with this
    /// mark (SO_MARK; 0: none).
    pub original_src: Option<u32>,
    /// `envoy.filters.listener.proxy_protocol`
    pub proxy_protocol: bool,
    /// Destination ports on which the HTTP inspector must not wait (server-first protocols).
    pub http_disabled_ports: Vec<(u16, u16)>,
    /// Destination ports on which the TLS inspector must not wait.
    pub tls_disabled_ports: Vec<(u16, u16)>,
}

impl Inspectors {
    /// Whether the TLS inspector runs for a connection to `port`.
    pub fn tls_on(&self, port: u16) -> bool {
        self.tls && !in_ranges(&self.tls_disabled_ports, port)
    }

    /// Whether the HTTP inspector runs for a connection to `port`.
    pub fn http_on(&self, port: u16) -> bool {
        self.http && !in_ranges(&self.http_disabled_ports, port)
    }
}

/// Ranges are half open, as Envoy's `Int32Range`.
fn in_ranges(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges.iter().any(|&(start, end)| (start..end).contains(&port))
}

/// One filter chain: what it matches, how TLS ends, and what serves the bytes.
#[derive(Debug, Clone)]
pub struct FilterChain {
    pub name: Arc<str>,
    pub matches: ChainMatch,
    /// None: plain text.
    pub tls: Option<Arc<DownstreamTls>>,
    /// Limit on the TLS handshake.
    pub handshake_timeout: Option<Duration>,
    pub network: Network,
}

/// What serves the connection after TLS.
#[derive(Debug, Clone)]
pub enum Network {
    Http(Arc<HttpConfig>),
    Tcp(Arc<TcpConfig>),
}

/// `envoy.filters.network.tcp_proxy`.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    pub stat_prefix: Arc<str>,
    pub clusters: ClusterChoice,
    /// `envoy.filters.network.sni_cluster` runs before: the SNI names the cluster.
    pub cluster_from_sni: bool,
    /// `sni_dynamic_forward_proxy` runs before: the SNI names the host, this is its port.
    pub sni_port: Option<u16>,
    /// Envoy: 1 h when unset; None when set to zero.
    pub idle_timeout: Option<Duration>,
    /// At least 1.
    pub connect_attempts_max: u32,
    pub connection_duration_max: Option<Duration>,
    /// Hash by source address, for consistent-hash clusters.
    pub hash_source_ip: bool,
    /// The cluster's endpoints are HTTP proxies on the way.
    pub tunnel: Option<Tunneling>,
    pub access_log: Option<Arc<AccessLogs>>,
    /// None: the standard metrics.
    pub metrics: Option<Arc<Metrics>>,
}

/// `tunneling_config`: what an HTTP proxy is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunneling {
    /// `host:port` beyond the proxy.
    pub authority: Arc<str>,
    /// None: CONNECT. Else the bytes are the content of a POST to this path.
    pub post_path: Option<Arc<str>>,
}

/// `FilterChainMatch`. Empty lists match anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<Cidr>,
    /// Lower case; `*.example.com` is a suffix wildcard.
    pub server_names: Vec<Box<str>>,
    /// `tls` or `raw_buffer`; empty matches both.
    pub transport_protocol: Box<str>,
    pub application_protocols: Vec<Box<[u8]>>,
    pub direct_source_ranges: Vec<Cidr>,
    pub source_type: SourceType,
    pub source_ranges: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

/// `FilterChainMatch.source_type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

/// An address prefix. IPv4-mapped IPv6 addresses match as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Cidr {
    /// None if `bits` is beyond the family's length. Host bits are cleared.
    pub fn new(address: IpAddr, bits: u8) -> Option<Cidr> {
        let address = match address.to_canonical() {
            IpAddr::V4(v4) if bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) if bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
            _ => return None,
        };
        Some(Cidr { address, bits })
    }

    /// Prefix length.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.address.is_ipv4()
            && Cidr::new(ip, self.bits).is_some_and(|c| c.address == self.address)
    }
}

#[cfg(test)]
mod tests;
