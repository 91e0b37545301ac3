//! `X-Forwarded-For` and `X-Forwarded-Proto`, with Envoy's meaning of trusted hops.

use std::io::Write;
use std::net::IpAddr;

use crate::headers::{HeaderList, Known};
use crate::message::Scheme;

/// Appends the peer's address to the last `X-Forwarded-For` line.
pub fn append_forwarded_for(headers: &mut HeaderList, peer: IpAddr) {
    let mut value = Vec::with_capacity(64);
    for line in headers.get_all("x-forwarded-for").filter(|line| !line.is_empty()) {
        value.extend_from_slice(line);
        value.push(b',');
    }
    write!(value, "{}", peer.to_canonical()).expect("writing to memory cannot fail");
    headers.set("x-forwarded-for", value);
}

/// The client's address as far as it can be trusted. `hops` proxies in front of this one are
/// trusted to have appended what they saw; `use_remote_address` is Envoy's: true at an edge, where
/// the peer itself is the last hop. Call before [`append_forwarded_for`].
pub fn client_address(
    headers: &HeaderList,
    peer: IpAddr,
    hops: u32,
    use_remote_address: bool,
) -> IpAddr {
    let from_right = match (use_remote_address, hops) {
        (true, 0) => return peer,
        (true, hops) => hops - 1,
        (false, hops) => hops,
    };
    if headers.get_known(Known::XForwardedFor).is_none() {
        return peer;
    }
    let lines: Vec<&[u8]> = headers.get_all("x-forwarded-for").collect();
    let mut addresses = lines.iter().rev().flat_map(|line| line.rsplit(|&byte| byte == b','));
    addresses
        .nth(usize::try_from(from_right).unwrap_or(usize::MAX))
        .and_then(|text| std::str::from_utf8(text.trim_ascii()).ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or(peer)
}

/// Says the scheme the client used. `trusted` keeps what an earlier proxy said, whatever it said.
/// The scheme that `x-forwarded-proto` gives a request of HTTP/1, which has none of its own: a proxy
/// before this one ended its TLS.
pub fn forwarded_scheme(headers: &HeaderList) -> Option<Scheme> {
    match headers.get_known(Known::XForwardedProto)? {
        said if said.eq_ignore_ascii_case(b"https") => Some(Scheme::Https),
        said if said.eq_ignore_ascii_case(b"http") => Some(Scheme::Http),
        _ => None,
    }
}

pub fn set_forwarded_proto(headers: &mut HeaderList, scheme: Scheme, trusted: bool) {
    let said = headers.get_known(Known::XForwardedProto);
    if !(trusted && said.is_some_and(|said| !said.is_empty())) {
        headers.set("x-forwarded-proto", scheme.as_str());
    }
}
