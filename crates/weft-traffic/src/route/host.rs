//! Virtual host lookup: exact by hash, then wildcards by decreasing length, then `*`.

use std::collections::HashMap;

use smallvec::SmallVec;
use xxhash_rust::xxh64::Xxh64Builder;

/// Lower-cased names to host numbers. The table is fixed by configuration, so a fast unkeyed hash is
/// safe: a client chooses what is looked up, never what collides.
type Names = HashMap<Box<[u8]>, u32, Xxh64Builder>;

/// Domains of a route table.
#[derive(Debug, Clone, Default)]
pub struct HostIndex {
    exact: Names,
    /// `*suffix` by suffix length, longest first.
    suffixes: Vec<(usize, Names)>,
    /// `prefix*` by prefix length, longest first.
    prefixes: Vec<(usize, Names)>,
    any: Option<u32>,
    ignore_port: bool,
}

impl HostIndex {
    /// Indexes `(domain, host number)` pairs. Errors name a domain that is malformed or comes twice.
    pub fn build<'d>(
        domains: impl Iterator<Item = (&'d str, usize)>,
        ignore_port: bool,
    ) -> Result<HostIndex, String> {
        let mut index = HostIndex { ignore_port, ..HostIndex::default() };
        for (domain, host) in domains {
            let host = u32::try_from(host).map_err(|_| "too many virtual hosts".to_owned())?;
            if index.add(domain, host)?.is_some() {
                return Err(format!("domain {domain:?} appears twice"));
            }
        }
        index.suffixes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        index.prefixes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        Ok(index)
    }

    fn add(&mut self, domain: &str, host: u32) -> Result<Option<u32>, String> {
        let lower = domain.to_ascii_lowercase();
        let name = lower.as_bytes();
        let inner_star = name.iter().skip(1).rev().skip(1).any(|&byte| byte == b'*');
        let stars = name.iter().filter(|&&byte| byte == b'*').count();
        if name.is_empty() || inner_star || stars > 1 {
            return Err(format!("domain {domain:?} is empty or has a misplaced `*`"));
        }
        Ok(match (name.strip_prefix(b"*"), name.strip_suffix(b"*")) {
            (Some(b""), _) => self.any.replace(host),
            (Some(suffix), _) => {
                by_length(&mut self.suffixes, suffix.len()).insert(suffix.into(), host)
            }
            (None, Some(prefix)) => {
                by_length(&mut self.prefixes, prefix.len()).insert(prefix.into(), host)
            }
            (None, None) => self.exact.insert(name.into(), host),
        })
    }

    /// The host number for an authority.
    pub fn find(&self, authority: &[u8]) -> Option<usize> {
        let authority = if self.ignore_port { without_port(authority) } else { authority };
        // A table with one host for everything needs no lower case copy.
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any.map(|host| host as usize);
        }
        // DNS names have at most 253 bytes, so only nonsense spills to the heap.
        let mut lower: SmallVec<[u8; 264]> = SmallVec::from_slice(authority);
        lower.make_ascii_lowercase();
        self.find_lower(&lower).map(|host| host as usize)
    }

    fn find_lower(&self, name: &[u8]) -> Option<u32> {
        if let Some(host) = self.exact.get(name) {
            return Some(*host);
        }
        // A wildcard stands for at least one character.
        for (len, names) in &self.suffixes {
            if name.len() > *len
                && let Some(host) = names.get(&name[name.len() - len..])
            {
                return Some(*host);
            }
        }
        for (len, names) in &self.prefixes {
            if name.len() > *len
                && let Some(host) = names.get(&name[..*len])
            {
                return Some(*host);
            }
        }
        self.any
    }
}

fn by_length(lists: &mut Vec<(usize, Names)>, len: usize) -> &mut Names {
    let at = match lists.iter().position(|(have, _)| *have == len) {
        Some(at) => at,
        None => {
            lists.push((len, Names::default()));
            lists.len() - 1
        }
    };
    &mut lists[at].1
}

/// `host:80` → `host`, `[::1]:80` → `[::1]`; anything else as it is.
pub(crate) fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|&byte| byte == b':') {
        Some(colon) => {
            let (host, port) = (&authority[..colon], &authority[colon + 1..]);
            let is_port = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
            // A bare IPv6 address has colons and no brackets.
            let bare_v6 = host.contains(&b':') && !host.ends_with(b"]");
            if is_port && !bare_v6 { host } else { authority }
        }
        None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(domains: &[&str], authority: &str, ignore_port: bool) -> Option<usize> {
        let pairs = domains.iter().enumerate().map(|(i, d)| (*d, i));
        HostIndex::build(pairs, ignore_port).unwrap().find(authority.as_bytes())
    }

    #[test]
    fn most_specific_domain_wins() {
        let domains =
            ["*", "www.foo.com", "*.foo.com", "*-bar.foo.com", "*.com", "foo.*", "foo.b*"];
        for (authority, expect) in [
            ("www.foo.com", 1),
            ("WWW.Foo.COM", 1),
            ("api.foo.com", 2),
            ("baz-bar.foo.com", 3),
            ("-bar.foo.com", 2),
            ("foo.com", 4),
            (".foo.com", 4),
            ("foo.net", 5),
            ("foo.bar", 6),
            ("foo.", 0),
            ("other", 0),
            ("", 0),
            ("www.foo.com:80", 0),
        ] {
            assert_eq!(find(&domains, authority, false), Some(expect), "{authority}");
        }
        assert_eq!(find(&["a.com"], "b.com", false), None);
        assert_eq!(find(&["a.com", "a.com:80"], "a.com:80", false), Some(1));
    }

    #[test]
    fn port_can_be_ignored() {
        assert_eq!(find(&["a.com"], "a.com:8080", true), Some(0));
        assert_eq!(find(&["[::1]"], "[::1]:8080", true), Some(0));
        assert_eq!(without_port(b"::1"), b"::1");
        assert_eq!(without_port(b"a:"), b"a:");
    }

    #[test]
    fn bad_domains_are_refused() {
        for domains in [&["a.com", "A.com"][..], &[""], &["a*b"], &["**"], &["*a*"], &["*", "*"]] {
            let pairs = domains.iter().enumerate().map(|(i, d)| (*d, i));
            assert!(HostIndex::build(pairs, false).is_err(), "{domains:?}");
        }
    }

    /// What the documentation of `VirtualHost.domains` says, word for word.
    fn by_the_book(domains: &[String], authority: &str) -> Option<usize> {
        let longest = |wild: &dyn Fn(&str) -> Option<usize>| {
            let scored = domains.iter().enumerate().filter_map(|(i, d)| Some((wild(d)?, i)));
            scored.max_by_key(|(len, _)| *len).map(|(_, index)| index)
        };
        let long_enough = |len: usize| (authority.len() > len).then_some(len);
        let exact = domains.iter().position(|domain| domain == authority);
        let suffix = |d: &str| {
            let rest = d.strip_prefix('*').filter(|rest| !rest.is_empty())?;
            authority.ends_with(rest).then(|| long_enough(rest.len()))?
        };
        let prefix = |d: &str| {
            let rest = d.strip_suffix('*').filter(|rest| !rest.is_empty())?;
            authority.starts_with(rest).then(|| long_enough(rest.len()))?
        };
        let any = || domains.iter().position(|domain| domain == "*");
        exact.or_else(|| longest(&suffix)).or_else(|| longest(&prefix)).or_else(any)
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_the_documentation(
            domains in proptest::collection::btree_set("[ab.]{1,3}|\\*[ab.]{0,3}|[ab.]{1,3}\\*", 0..12),
            authority in "[ab.]{0,5}",
        ) {
            let domains: Vec<String> = domains.into_iter().collect();
            let borrowed: Vec<&str> = domains.iter().map(String::as_str).collect();
            let expect = by_the_book(&domains, &authority);
            proptest::prop_assert_eq!(find(&borrowed, &authority, false), expect);
        }
    }
}
