//! PROXY protocol v1 and v2 headers in front of a connection, after haproxy's
//! `proxy-protocol.txt`. Sans-io. TLVs of v2 are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A parsed header and how many bytes it takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes to drop in front of the payload.
    pub length: usize,
    /// Client and destination; `None` for LOCAL, UNKNOWN and Unix addresses (use the socket's own).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Outcome of looking at the first bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not complete yet.
    NeedMore,
    /// No header here: the connection is refused, as the protocol demands.
    Invalid(&'static str),
    /// A whole header.
    Complete(Header),
}

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_SIGNATURE: &[u8] = b"PROXY ";
/// Longest v1 line with its CRLF, from the specification. Bytes.
const V1_BYTES_MAX: usize = 107;
/// Longest v2 address block with TLVs we take. Bytes.
const V2_BODY_BYTES_MAX: usize = 4096;
/// Longest header of either version. Bytes.
pub const HEADER_BYTES_MAX: usize = V2_SIGNATURE.len() + 4 + V2_BODY_BYTES_MAX;

/// Reads a header of either version.
pub fn parse(bytes: &[u8]) -> Parsed {
    if starts(bytes, V2_SIGNATURE) {
        return v2(bytes);
    }
    match starts(bytes, V1_SIGNATURE) {
        true => v1(bytes),
        false => Parsed::Invalid("no PROXY protocol header"),
    }
}

/// Whether the bytes, as far as there are any, agree with the signature.
fn starts(bytes: &[u8], signature: &[u8]) -> bool {
    let n = bytes.len().min(signature.len());
    bytes[..n] == signature[..n]
}

fn v1(bytes: &[u8]) -> Parsed {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return match bytes.len() >= V1_BYTES_MAX {
            true => Parsed::Invalid("PROXY v1 line too long"),
            false => Parsed::NeedMore,
        };
    };
    let Some(line) = window[..end].strip_suffix(b"\r") else {
        return Parsed::Invalid("PROXY v1 line without CRLF");
    };
    let length = end + 1;
    let Ok(line) = std::str::from_utf8(line) else {
        return Parsed::Invalid("PROXY v1 line not ASCII");
    };
    let parts: Vec<&str> = line.split(' ').collect();
    match parts[..] {
        ["PROXY", "UNKNOWN", ..] => Parsed::Complete(Header { length, addresses: None }),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, sport, dport] => {
            let pair =
                v1_address(family, source, sport).zip(v1_address(family, destination, dport));
            match pair {
                Some(pair) => Parsed::Complete(Header { length, addresses: Some(pair) }),
                None => Parsed::Invalid("PROXY v1 address"),
            }
        }
        _ => Parsed::Invalid("PROXY v1 line"),
    }
}

fn v1_address(family: &str, ip: &str, port: &str) -> Option<SocketAddr> {
    let ip = match family {
        "TCP4" => IpAddr::V4(ip.parse().ok()?),
        _ => IpAddr::V6(ip.parse().ok()?),
    };
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

fn v2(bytes: &[u8]) -> Parsed {
    let Some((header, rest)) = bytes.split_at_checked(16) else { return Parsed::NeedMore };
    let (version_command, family) = (header[12], header[13]);
    if version_command >> 4 != 2 {
        return Parsed::Invalid("PROXY v2 version");
    }
    let body_length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if body_length > V2_BODY_BYTES_MAX {
        return Parsed::Invalid("PROXY v2 header too long");
    }
    let Some(body) = rest.get(..body_length) else { return Parsed::NeedMore };
    let length = 16 + body_length;
    let addresses = match (version_command & 0xf, family) {
        (0, _) => None, // LOCAL: a health check of the balancer itself.
        (1, 0x11) => match v2_addresses::<4>(body) {
            Some(pair) => Some(pair),
            None => return Parsed::Invalid("PROXY v2 IPv4 block too short"),
        },
        (1, 0x21) => match v2_addresses::<16>(body) {
            Some(pair) => Some(pair),
            None => return Parsed::Invalid("PROXY v2 IPv6 block too short"),
        },
        (1, _) => None,
        _ => return Parsed::Invalid("PROXY v2 command"),
    };
    Parsed::Complete(Header { length, addresses })
}

/// `N` bytes of source, `N` of destination, two ports.
fn v2_addresses<const N: usize>(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let source = SocketAddr::new(ip(body.get(..N)?)?, port(2 * N)?);
    let destination = SocketAddr::new(ip(body.get(N..2 * N)?)?, port(2 * N + 2)?);
    Some((source, destination))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        _ => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
    }
}

/// A v1 header. Mixed families become UNKNOWN.
pub fn encode_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = (source.ip(), destination.ip());
    let family = match (source, destination) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => "TCP4",
        (SocketAddr::V6(_), SocketAddr::V6(_)) => "TCP6",
        _ => return b"PROXY UNKNOWN\r\n".to_vec(),
    };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// A v2 header. Mixed families become LOCAL.
pub fn encode_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let (command, family) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses.extend_from_slice(&from.octets());
            addresses.extend_from_slice(&to.octets());
            (0x21, 0x11)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            addresses.extend_from_slice(&from.octets());
            addresses.extend_from_slice(&to.octets());
            (0x21, 0x21)
        }
        _ => (0x20, 0),
    };
    if !addresses.is_empty() {
        addresses.extend_from_slice(&source.port().to_be_bytes());
        addresses.extend_from_slice(&destination.port().to_be_bytes());
    }
    let mut header = V2_SIGNATURE.to_vec();
    header.extend_from_slice(&[command, family, 0, addresses.len() as u8]);
    header.extend_from_slice(&addresses);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: &str, b: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((a.parse().unwrap(), b.parse().unwrap()))
    }

    #[test]
    fn version_1() {
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\nGET";
        let addresses = pair("192.0.2.1:4000", "192.0.2.2:80");
        assert_eq!(parse(line), Parsed::Complete(Header { length: 40, addresses }));
        for cut in 0..40 {
            assert_eq!(parse(&line[..cut]), Parsed::NeedMore, "cut at {cut}");
        }
        assert_eq!(
            parse(b"PROXY UNKNOWN\r\n"),
            Parsed::Complete(Header { length: 15, addresses: None })
        );
        assert!(matches!(parse(b"PROXY TCP4 ::1 ::1 1 2\r\n"), Parsed::Invalid(_)));
        assert!(matches!(parse(b"GET / HTTP/1.1\r\n"), Parsed::Invalid(_)));
        assert!(matches!(parse(&[b"PROXY ", &[b'x'; 120][..]].concat()), Parsed::Invalid(_)));
    }

    #[test]
    fn version_2() {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0x21, 0x11, 0, 15, 192, 0, 2, 1, 192, 0, 2, 2]);
        bytes.extend_from_slice(&[0x0f, 0xa0, 0, 80, 4, 0, 0]);
        let addresses = pair("192.0.2.1:4000", "192.0.2.2:80");
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Parsed::NeedMore, "cut at {cut}");
        }
        assert_eq!(parse(&bytes), Parsed::Complete(Header { length: 31, addresses }));
        bytes[12] = 0x20;
        assert_eq!(parse(&bytes), Parsed::Complete(Header { length: 31, addresses: None }));
        bytes[12] = 0x31;
        assert!(matches!(parse(&bytes), Parsed::Invalid(_)));
    }

    #[test]
    fn what_is_written_is_read() {
        for (from, to) in [("192.0.2.1:4000", "192.0.2.2:80"), ("[2001:db8::1]:1", "[::1]:2")] {
            let addresses = pair(from, to);
            let (from, to) = addresses.unwrap();
            for header in [encode_v1(from, to), encode_v2(from, to)] {
                let expect = Header { length: header.len(), addresses };
                assert_eq!(parse(&header), Parsed::Complete(expect));
            }
        }
    }
}
