//! The hosts of the mesh by the names a workload may use for them: in full, a Kubernetes service
//! also in short (`name`, `name.namespace`, `name.namespace.svc`), any with the first search domain
//! behind it, and what a wildcard covers. Must not know DNS messages.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_xds::nds::{self, NameTable};

/// All hosts with addresses. The same for every workload that got the table.
#[derive(Debug, Default)]
pub struct Names(HashMap<Box<str>, Host>);

/// One host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) v4: Box<[Ipv4Addr]>,
    pub(super) v6: Box<[Ipv6Addr]>,
    /// It has short names.
    kubernetes: bool,
}

/// Where the workload stands: what its short names stand for.
#[derive(Debug)]
pub(super) struct Place {
    /// What may follow a short name, with the dot in front, the longest last.
    tails: Vec<String>,
    /// The search domain, with a dot in front.
    search: Option<String>,
}

/// A name that is the mesh's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<'n> {
    pub(super) host: &'n Host,
    /// The name without the search domain, where it had that.
    pub(super) alias_of: Option<String>,
}

impl Names {
    /// From the control plane's table; hosts without a usable address are left out.
    pub fn new(table: NameTable) -> Names {
        let mut names = HashMap::with_capacity(table.table.len());
        for (host, info) in table.table {
            let ips: Vec<IpAddr> = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if ips.is_empty() {
                continue;
            }
            let v4 = ips.iter().filter_map(|ip| match ip {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            });
            let v6 = ips.iter().filter_map(|ip| match ip {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            });
            let kubernetes = info.registry == nds::KUBERNETES;
            let entry = Host { v4: v4.collect(), v6: v6.collect(), kubernetes };
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            names.insert(host.into_boxed_str(), entry);
        }
        Names(names)
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A name in lower case, without its last dot.
    pub(super) fn find(&self, name: &str, place: &Place) -> Option<Found<'_>> {
        if let Some(host) = self.plain(name, place) {
            return Some(Found { host, alias_of: None });
        }
        // The C library appends search domains before it asks for the name itself.
        let stripped = place.search.as_deref().and_then(|search| name.strip_suffix(search));
        if let Some(stripped) = stripped.filter(|stripped| !stripped.is_empty())
            && let Some(host) = self.plain(stripped, place).or_else(|| self.wildcard(stripped))
        {
            return Some(Found { host, alias_of: Some(stripped.to_owned()) });
        }
        let host = self.wildcard(name)?;
        Some(Found { host, alias_of: None })
    }

    fn plain(&self, name: &str, place: &Place) -> Option<&Host> {
        if let Some(host) = self.0.get(name) {
            return Some(host);
        }
        let mut longer = String::with_capacity(name.len() + 64);
        place.tails.iter().find_map(|tail| {
            longer.clear();
            longer.push_str(name);
            longer.push_str(tail);
            self.0.get(&*longer).filter(|host| host.kubernetes)
        })
    }

    /// The longest wildcard wins.
    fn wildcard(&self, name: &str) -> Option<&Host> {
        let mut pattern = String::with_capacity(name.len() + 1);
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            pattern.clear();
            pattern.push_str("*.");
            pattern.push_str(parent);
            if let Some(host) = self.0.get(&*pattern) {
                return Some(host);
            }
            rest = parent;
        }
        None
    }
}

impl Place {
    /// `domain` is `NAMESPACE.svc.CLUSTER`, as in the node's id. With another shape there are no
    /// short names.
    pub(super) fn new(namespace: &str, domain: &str, search: Option<&str>) -> Place {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let cluster = domain.strip_prefix(namespace).and_then(|rest| rest.strip_prefix(".svc."));
        let tails = match cluster {
            Some(cluster) => {
                vec![
                    format!(".{cluster}"),
                    format!(".svc.{cluster}"),
                    format!(".{namespace}.svc.{cluster}"),
                ]
            }
            None => Vec::new(),
        };
        Place { tails, search: search.map(|search| format!(".{search}")) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_xds::nds::NameInfo;

    use super::*;

    fn names() -> Names {
        let kube = |short: &str, ip: &str| NameInfo {
            ips: vec![ip.into()],
            registry: nds::KUBERNETES.into(),
            shortname: short.into(),
            namespace: "shop".into(),
        };
        let entry = |ips: &[&str]| NameInfo {
            ips: ips.iter().map(ToString::to_string).collect(),
            registry: nds::EXTERNAL.into(),
            ..NameInfo::default()
        };
        let table = BTreeMap::from([
            ("reviews.shop.svc.cluster.local".into(), kube("reviews", "10.0.0.1")),
            ("reviews.other.svc.cluster.local".into(), kube("reviews", "10.0.0.2")),
            ("db-0.db.shop.svc.cluster.local".into(), kube("db-0.db", "10.0.0.3")),
            ("api.example.com".into(), entry(&["240.240.0.1", "2001:2::1"])),
            ("*.example.com".into(), entry(&["10.0.0.5"])),
            ("*.eu.example.com".into(), entry(&["10.0.0.6"])),
            ("entry.shop.svc.cluster.local".into(), entry(&["10.0.0.7"])),
            ("nothing.example.org".into(), entry(&["10.0.0.0/8"])),
        ]);
        Names::new(NameTable { table })
    }

    fn place() -> Place {
        Place::new("shop", "shop.svc.cluster.local", Some("shop.svc.cluster.local"))
    }

    #[test]
    fn every_name_a_workload_may_use() {
        let (names, place) = (names(), place());
        let cases = [
            ("reviews.shop.svc.cluster.local", Some(1), None),
            ("reviews", Some(1), None),
            ("reviews.shop", Some(1), None),
            ("reviews.shop.svc", Some(1), None),
            ("reviews.other", Some(2), None),
            ("reviews.other.shop.svc.cluster.local", Some(2), Some("reviews.other")),
            ("db-0.db", Some(3), None),
            ("db-0.db.shop.svc", Some(3), None),
            ("api.example.com", Some(1), None),
            ("api.example.com.shop.svc.cluster.local", Some(1), Some("api.example.com")),
            ("www.example.com", Some(5), None),
            ("a.b.example.com", Some(5), None),
            ("a.eu.example.com", Some(6), None),
            ("a.eu.example.com.shop.svc.cluster.local", Some(6), Some("a.eu.example.com")),
            ("example.com", None, None),
            ("entry.shop.svc.cluster.local", Some(7), None),
            // A ServiceEntry has the names it says and no others.
            ("entry.shop", None, None),
            ("nothing.example.org", None, None),
            ("missing", None, None),
            ("", None, None),
        ];
        for (name, last, alias_of) in cases {
            let found = names.find(name, &place);
            let octet = found.as_ref().map(|found| found.host.v4[0].octets()[3]);
            assert_eq!(octet, last, "{name}");
            assert_eq!(found.and_then(|found| found.alias_of).as_deref(), alias_of, "{name}");
        }
        assert_eq!(names.find("api.example.com", &place).unwrap().host.v6.len(), 1);
    }

    #[test]
    fn elsewhere_short_names_mean_nothing() {
        let names = names();
        let place = Place::new("shop", "example.org", None);
        assert!(names.find("reviews", &place).is_none());
        assert!(names.find("reviews.shop.svc.cluster.local", &place).is_some());
    }
}
