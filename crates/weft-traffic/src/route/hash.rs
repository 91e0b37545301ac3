//! Request hashes for consistent-hash balancing (`RouteAction.hash_policy`).

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use weft_http::RequestHead;
use xxhash_rust::xxh64::xxh64;

use crate::matcher::{cookie_value, header_value, query_value};

/// Sources in order; their hashes are combined.
#[derive(Debug, Clone, Default)]
pub struct HashPolicy {
    pub sources: Vec<HashSource>,
}

#[derive(Debug, Clone)]
pub struct HashSource {
    pub kind: HashInput,
    /// Stop here once there is a hash.
    pub terminal: bool,
}

#[derive(Debug, Clone)]
pub enum HashInput {
    /// Lower case name.
    Header(Box<str>),
    /// With a `ttl`, a missing cookie is made and sent to the client.
    Cookie {
        name: Box<str>,
        ttl: Option<Duration>,
        path: Box<str>,
    },
    SourceIp,
    Query(Box<[u8]>),
}

/// A cookie that was made for a client: send it in the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetCookie {
    pub value: String,
}

impl HashPolicy {
    /// The request's hash, and a cookie to set if a cookie source made one. `random` makes the cookie.
    pub fn hash(
        &self,
        head: &RequestHead,
        source: IpAddr,
        random: u64,
    ) -> (Option<u64>, Option<SetCookie>) {
        let mut hash: Option<u64> = None;
        let mut made = None;
        for HashSource { kind, terminal } in &self.sources {
            let part = match kind {
                HashInput::Header(name) => hash_header(head, name),
                HashInput::Cookie { name, ttl, path } => {
                    let value = cookie_value(&head.headers, name.as_bytes());
                    // An empty one is none, as in Envoy.
                    match (value.filter(|value| !value.is_empty()), ttl) {
                        (Some(value), _) => Some(xxh64(value, 0)),
                        (None, Some(ttl)) => {
                            let value = format!("{random:016x}");
                            let hash = xxh64(value.as_bytes(), 0);
                            made = Some(set_cookie(name, &value, *ttl, path));
                            Some(hash)
                        }
                        (None, None) => None,
                    }
                }
                HashInput::SourceIp => Some(hash_ip(source)),
                HashInput::Query(name) => {
                    head.query().and_then(|q| query_value(q, name)).map(|value| xxh64(value, 0))
                }
            };
            if let Some(part) = part {
                // Rotated so that equal parts do not cancel out.
                hash = Some(hash.map_or(part, |hash| hash.rotate_left(1) ^ part));
            }
            if *terminal && hash.is_some() {
                break;
            }
        }
        (hash, made)
    }
}

/// All values of a header in sorted order, so that the order of lines does not matter.
fn hash_header(head: &RequestHead, name: &str) -> Option<u64> {
    if head.headers.get_all(name).nth(1).is_none() {
        return header_value(head, name).map(|value| xxh64(value, 0));
    }
    let mut values: Vec<&[u8]> = head.headers.get_all(name).collect();
    values.sort_unstable();
    Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// The hash of a client address alone, as TCP proxying uses it: Envoy's, of the text.
pub fn hash_ip(ip: IpAddr) -> u64 {
    // The longest is an IPv6 address that ends as an IPv4 one.
    let mut text = [0; 45];
    let mut rest = &mut text[..];
    // It cannot fail: the text fits.
    _ = write!(rest, "{}", ip.to_canonical());
    let unused = rest.len();
    xxh64(&text[..text.len() - unused], 0)
}

fn set_cookie(name: &str, value: &str, ttl: Duration, path: &str) -> SetCookie {
    let mut text = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        text.push_str("; Path=");
        text.push_str(path);
    }
    text.push_str("; HttpOnly");
    SetCookie { value: text }
}
