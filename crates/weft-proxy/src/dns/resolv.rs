//! What we read of resolv.conf(5).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Name servers we ask, as many as the C library does.
const SERVERS_MAX: usize = 3;

/// The file's content as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolv {
    pub(super) servers: Vec<SocketAddr>,
    /// The first search domain, lower case, without a last dot.
    pub(super) search: Option<String>,
}

/// A file that cannot be read says nothing.
pub(super) fn read(path: &Path) -> Resolv {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> Resolv {
    let mut resolv = Resolv::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                let server = server.map(|ip| SocketAddr::new(ip, 53));
                if resolv.servers.len() < SERVERS_MAX {
                    resolv.servers.extend(server);
                }
            }
            // The last of these lines counts.
            Some("search" | "domain") => {
                let first = words.next().map(|word| word.trim_end_matches('.'));
                resolv.search = first.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase);
            }
            _ => {}
        }
    }
    resolv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_writes() {
        let resolv = parse(
            "# comment\nsearch Shop.svc.cluster.local. svc.cluster.local\nnameserver 10.96.0.10\n\
             nameserver fd00::a\nnameserver nonsense\noptions ndots:5\n",
        );
        let servers: Vec<String> = resolv.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10:53", "[fd00::a]:53"]);
        assert_eq!(resolv.search.as_deref(), Some("shop.svc.cluster.local"));
        assert_eq!(parse(""), Resolv::default());
    }
}
